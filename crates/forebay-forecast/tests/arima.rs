//! What ARIMA promises: known processes are recovered, and nothing breaks it.

use forebay_forecast::arima::{
    Arima, Coefficients, FitError, OnlineArima, OnlineOptions, Order, Search,
};
use forebay_forecast::{Forecaster, VALUE_MAX};
use proptest::prelude::*;

/// A standard normal number (Box and Muller, 1958).
fn gaussian(rng: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}

/// A process of unit innovations by its definition, after 500 steps of run-up.
fn process(seed: u64, length: usize, order: Order, coefficients: &Coefficients) -> Vec<f64> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let seasonal = order.seasonal;
    let period = seasonal.map_or(1, |seasonal| seasonal.period);
    let made: Vec<f64> = (0..length + 500).map(|_| gaussian(&mut rng)).collect();
    let back = |x: &[f64], t: usize, lag: usize| t.checked_sub(lag).map_or(0.0, |at| x[at]);
    let at = |x: &[f64], t: usize, c: &[f64], stride: usize| -> f64 {
        let lags = (1..).map(|k| k * stride);
        lags.zip(c).map(|(lag, c)| c * back(x, t, lag)).sum()
    };
    // Seasonal parts first, each a process of the one before.
    let (mut shocks, mut between, mut x) = (Vec::new(), Vec::new(), Vec::new());
    for t in 0..made.len() {
        shocks.push(made[t] + at(&made, t, &coefficients.seasonal_ma, period));
        let moved = shocks[t] + at(&shocks, t, &coefficients.ma, 1);
        between.push(moved + at(&between, t, &coefficients.seasonal_ar, period));
        x.push(between[t] + at(&x, t, &coefficients.ar, 1));
    }
    let mut x = x.split_off(500);
    x.iter_mut()
        .for_each(|x| *x += coefficients.constant.unwrap_or(0.0));
    for (lag, times) in [(1, order.d), (period, seasonal.map_or(0, |s| s.d))] {
        for _ in 0..times {
            (lag..x.len()).for_each(|t| x[t] += x[t - lag]);
        }
    }
    x
}

/// All coefficients but the constant, block after block.
fn flat(c: &Coefficients) -> Vec<f64> {
    [&c.ar[..], &c.ma, &c.seasonal_ar, &c.seasonal_ma].concat()
}

#[test]
fn known_processes_are_recovered() {
    /// `error` is what each coefficient may be off by: three standard errors.
    fn check(order: Order, length: usize, error: f64, truth: &Coefficients) {
        for seed in 0..4 {
            let series = process(seed, length, order, truth);
            let model = Arima::fit(&series, order).unwrap();
            let what = format!("{order} seed {seed}: {:?}", model.coefficients());
            for (found, truth) in flat(model.coefficients()).iter().zip(flat(truth)) {
                assert!((found - truth).abs() < error, "{what}");
            }
            let variance = model.innovation_variance();
            assert!((variance - 1.0).abs() < 0.15, "{what}: {variance}");
            let constant = |c: &Coefficients| c.constant.unwrap_or(0.0);
            let off = constant(model.coefficients()) - constant(truth);
            assert!(off.abs() < 0.5, "{what}");
        }
    }
    let none = Coefficients::default();
    check(
        Order::new(2, 0, 0).with_constant(),
        1000,
        0.09,
        &Coefficients {
            ar: vec![1.2, -0.5],
            constant: Some(20.0),
            ..none.clone()
        },
    );
    check(
        Order::new(0, 0, 1),
        1000,
        0.08,
        &Coefficients {
            ma: vec![-0.6],
            ..none.clone()
        },
    );
    check(
        Order::new(1, 1, 1).with_constant(),
        1000,
        0.12,
        &Coefficients {
            ar: vec![0.6],
            ma: vec![0.4],
            constant: Some(0.5),
            ..none.clone()
        },
    );
    check(
        Order::new(1, 0, 0).seasonal(1, 0, 0, 12).with_constant(),
        1000,
        0.09,
        &Coefficients {
            ar: vec![0.6],
            seasonal_ar: vec![0.5],
            constant: Some(-7.0),
            ..none.clone()
        },
    );
    check(
        Order::new(0, 1, 1).seasonal(0, 1, 1, 12),
        1000,
        0.09,
        &Coefficients {
            ma: vec![-0.4],
            seasonal_ma: vec![-0.6],
            ..none.clone()
        },
    );
    // A season beyond the exact likelihood.
    check(
        Order::new(1, 0, 0).seasonal(0, 1, 1, 288),
        2880,
        0.12,
        &Coefficients {
            ar: vec![0.7],
            seasonal_ma: vec![-0.3],
            ..none
        },
    );
}

#[test]
fn the_order_of_a_process_is_found() {
    let truth = Coefficients {
        ar: vec![1.2, -0.5],
        constant: Some(20.0),
        ..Coefficients::default()
    };
    let order = Order::new(2, 0, 0).with_constant();
    let mut found = 0;
    for seed in 0..10 {
        let series = process(seed, 600, order, &truth);
        let model = Arima::fit_auto(&series, Search::default()).unwrap();
        found += usize::from(model.order() == order);
        // Whatever the order, it is at least as good by the criterion.
        let given = Arima::fit(&series, order).unwrap();
        assert!(
            model.aicc() < given.aicc() + 0.1 || model.order().d > 0,
            "{seed}"
        );
    }
    // The criterion takes a longer one now and then.
    assert!(found >= 5, "{found} of 10");
}

#[test]
fn forecasts_are_those_of_the_definition() {
    let ar = Coefficients {
        ar: vec![0.8],
        constant: Some(10.0),
        ..Coefficients::default()
    };
    let order = Order::new(1, 0, 0).with_constant();
    let model = Arima::fit(&process(1, 500, order, &ar), order).unwrap();
    let c = model.coefficients();
    let (phi, mean) = (c.ar[0], c.constant.unwrap());
    let first = model.forecast(1);
    for (steps, prediction) in (1..).zip(model.forecast_path(200)) {
        let fading = phi.powi(steps - 1);
        let expected = mean + fading * (first.mean - mean);
        assert!((prediction.mean - expected).abs() < 1e-9);
        let spread = (1.0 - phi.powi(2 * steps)) / (1.0 - phi * phi);
        let expected = model.innovation_variance() * spread;
        assert!((prediction.variance / expected - 1.0).abs() < 1e-9);
    }
    // A walk with drift: a straight line of linearly growing variance.
    let drift = Coefficients {
        constant: Some(0.3),
        ..Coefficients::default()
    };
    let order = Order::new(0, 1, 0).with_constant();
    let series = process(2, 300, order, &drift);
    let model = Arima::fit(&series, order).unwrap();
    let drift = (series[299] - series[0]) / 299.0;
    for (steps, prediction) in (1..).zip(model.forecast_path(50)) {
        let steps = f64::from(steps);
        assert!((prediction.mean - series[299] - drift * steps).abs() < 1e-6);
        let expected = model.innovation_variance() * steps;
        assert!((prediction.variance / expected - 1.0).abs() < 1e-9);
    }
}

#[test]
fn observing_is_as_good_as_having_seen_it_all() {
    let truth = Coefficients {
        ar: vec![0.7],
        ma: vec![0.3],
        seasonal_ma: vec![-0.5],
        ..Coefficients::default()
    };
    let order = Order::new(1, 1, 1).seasonal(0, 1, 1, 12);
    let series = process(3, 900, order, &truth);
    let mut online = Arima::fit(&series[..600], order).unwrap();
    series[600..].iter().for_each(|&x| online.observe(x));
    // One more fit of the same coefficients over all: forecasts agree.
    let all = online.refit(&series).unwrap();
    for (a, b) in online.forecast_path(48).iter().zip(all.forecast_path(48)) {
        assert!(
            (a.mean - b.mean).abs() < 0.2 * b.variance.sqrt(),
            "{a:?} {b:?}"
        );
    }
    // A gap is the forecast that was made for it.
    let expected = online.forecast_path(5);
    let mut with_gaps = online.clone();
    (0..4).for_each(|_| with_gaps.observe_gap());
    // What is remembered is in single precision.
    let apart = with_gaps.forecast(1).mean - expected[4].mean;
    assert!(
        apart.abs() < 1e-5 * expected[4].mean.abs().max(1.0),
        "{apart}"
    );
    with_gaps.observe(f64::NAN);
    with_gaps.observe(f64::INFINITY);
    assert!(with_gaps.forecast(1).mean.is_finite());
}

#[test]
fn what_cannot_be_fitted_says_why() {
    fn check(series: &[f64], expected: FitError) {
        let automatic = Arima::fit_auto(series, Search::default());
        assert_eq!(automatic.unwrap_err(), expected, "{series:?}");
        assert!(expected.to_string().contains(';'), "{expected}");
    }
    let too_short = |samples, needed| FitError::TooShort { samples, needed };
    check(&[5.0; 100], FitError::Constant);
    check(&[0.0; 100], FitError::Constant);
    check(&[VALUE_MAX; 100], FitError::Constant);
    check(&[5.0], FitError::Constant);
    check(&[1.0, 2.0], too_short(2, 6));
    check(&[], too_short(0, 6));
    check(&[1.0, f64::NAN, 2.0], FitError::Sample { index: 1 });
    check(&[f64::INFINITY; 50], FitError::Sample { index: 0 });
    check(&[1.0, 2.0, -2e18], FitError::Sample { index: 2 });
    let line: Vec<f64> = (0..100).map(f64::from).collect();
    check(&line, FitError::Constant);
    let order = Order::new(9, 0, 0);
    let error = Arima::fit(&line, order).unwrap_err();
    assert_eq!(error, FitError::Order(order));
}

fn assert_sound(model: &Arima) {
    assert!(model.coefficients().is_stable_beyond(1.0), "{model:?}");
    assert!(model.log_likelihood().is_finite(), "{model:?}");
    assert!(model.innovation_variance() > 0.0, "{model:?}");
    for prediction in model.forecast_path(300) {
        assert!(prediction.mean.is_finite(), "{model:?}");
        assert!(prediction.variance.is_finite() && prediction.variance > 0.0);
    }
}

#[test]
fn odd_series_give_sound_models() {
    fn check(what: &str, series: &[f64]) {
        for period in [None, Some(7)] {
            let search = Search {
                period,
                models_max: 30,
                ..Search::default()
            };
            let model = Arima::fit_auto(series, search);
            let mut model = model.unwrap_or_else(|error| panic!("{what} {period:?}: {error}"));
            assert_sound(&model);
            for sample in [0.0, VALUE_MAX, -VALUE_MAX, f64::NAN, 1.0, VALUE_MAX] {
                model.observe(sample);
                assert_sound(&model);
            }
        }
    }
    let mut rng = fastrand::Rng::with_seed(5);
    let mut noise = |scale: f64| -> Vec<f64> { (0..200).map(|_| scale * rng.f64()).collect() };
    check("noise", &noise(1.0));
    check("noise at 1e18", &noise(1e18));
    check("noise at 1e-18", &noise(1e-18));
    let mut spike = noise(1.0);
    spike[150] = 1e18;
    check("a huge spike", &spike);
    let mut last = noise(1.0);
    last[199] = 1e18;
    check("a huge spike at the end", &last);
    let mut single = vec![0.0; 200];
    single[100] = 1.0;
    check("one that is not zero", &single);
    let step: Vec<f64> = (0..200).map(|t| f64::from(u8::from(t > 120))).collect();
    check("a step", &step);
    let parabola: Vec<f64> = noise(1e-3)
        .iter()
        .zip(0..)
        .map(|(x, t)| x + f64::from(t * t))
        .collect();
    check("a parabola", &parabola);
    let wave: Vec<f64> = (0..200).map(|t| (f64::from(t) / 5.0).sin()).collect();
    check("a pure wave", &wave);
    let alternating: Vec<f64> = (0..200).map(|t| f64::from(t % 2)).collect();
    check("two values in turn", &alternating);
}

/// Samples as hosts show them, and as they never should.
fn sample() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..100.0,
        2 => Just(7.0),
        1 => Just(0.0),
        1 => -10.0..0.0,
        1 => -VALUE_MAX..VALUE_MAX,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn every_fitted_model_is_stationary_and_invertible(
        samples in prop::collection::vec(sample(), 0..120),
        (p, d, q) in (0..=5_usize, 0..=2_usize, 0..=5_usize),
        seasonal in prop::option::of((0..=2_usize, 0..=1_usize, 0..=2_usize, 2..9_usize)),
        constant: bool,
    ) {
        let mut order = Order::new(p, d, q);
        if let Some((p, d, q, period)) = seasonal {
            order = order.seasonal(p, d, q, period);
        }
        order.constant = constant;
        if let Ok(model) = Arima::fit(&samples, order) {
            assert_sound(&model);
        }
    }

    #[test]
    fn the_forecaster_is_sound_whatever_comes(
        samples in prop::collection::vec(prop_oneof![
            8 => sample(), 1 => any::<f64>(), 1 => Just(f64::NAN),
        ], 0..100),
        period in prop::option::of(prop_oneof![0..20_usize, Just(usize::MAX)]),
        steps in prop_oneof![0..500_usize, Just(usize::MAX)],
    ) {
        let search = Search { period, history_max: 64, models_max: 12 };
        let mut online = OnlineArima::new(OnlineOptions {
            horizons: vec![1, 5, 20],
            search,
            samples_min: 16,
            refit_steps: 20,
            refits_per_search: 2,
        });
        for sample in samples {
            online.update(sample);
            // Some of these series cannot be fitted, which is an error and no more.
            if let Some(Err(error)) = online.fit_now() {
                prop_assert!(!error.to_string().is_empty());
            }
            for steps in [1, 5, 20, steps] {
                for answer in [online.forecast(steps), online.forecast_peak(steps)] {
                    let Some(quantiles) = answer else { continue };
                    let levels = quantiles.to_array();
                    prop_assert!(levels.iter().all(|level| level.is_finite() && *level >= 0.0));
                    prop_assert!(levels.is_sorted());
                }
            }
        }
    }
}

fn online() -> OnlineArima {
    OnlineArima::new(OnlineOptions {
        search: Search {
            history_max: 400,
            ..Search::default()
        },
        refit_steps: 288,
        ..OnlineOptions::default()
    })
}

/// Load that swings back to 50 with a memory of a few steps.
fn load(seed: u64, length: usize) -> Vec<f64> {
    let truth = Coefficients {
        ar: vec![1.4, -0.7],
        constant: Some(50.0),
        ..Coefficients::default()
    };
    process(seed, length, Order::new(2, 0, 0), &truth)
}

#[test]
fn it_is_silent_until_fitted_and_says_when_it_wants_to_be() {
    let mut online = online();
    let mut fits = Vec::new();
    for (step, sample) in load(1, 1500).into_iter().enumerate() {
        online.update(sample);
        if let Some(request) = online.fit_request() {
            assert!(!online.wants_fit());
            fits.push((step + 1, request.is_search()));
            online.adopt(request.run()).unwrap();
        }
        assert_eq!(online.model().is_none(), step + 1 < 64);
    }
    // At the first 64, when that has doubled, and every 288 from then on.
    let expected = [
        (64, true),
        (128, true),
        (256, true),
        (512, false),
        (800, false),
        (1088, false),
        (1376, false),
    ];
    assert_eq!(fits, expected);
    assert!(online.forecast(10).is_some());
    online.set_period(Some(24));
    assert!(online.fit_request().unwrap().is_search());
}

#[test]
fn a_fit_that_comes_late_is_brought_up_to_date() {
    let samples = load(2, 700);
    let (mut late, mut prompt) = (online(), online());
    for sample in &samples[..200] {
        late.update(*sample);
        prompt.update(*sample);
    }
    let request = late.fit_request().unwrap();
    prompt.fit_now().unwrap().unwrap();
    for sample in &samples[200..260] {
        late.update(*sample);
        prompt.update(*sample);
    }
    late.adopt(request.clone().run()).unwrap();
    let (a, b) = (late.model().unwrap(), prompt.model().unwrap());
    assert_eq!(a.forecast_path(20), b.forecast_path(20));
    // One that is older than the history, or than the model in use, is refused.
    samples[260..].iter().for_each(|&x| late.update(x));
    let steps = 500;
    assert_eq!(late.adopt(request.run()), Err(FitError::Stale { steps }));
}

#[test]
fn a_fit_that_fails_leaves_the_model_that_was() {
    let mut online = online();
    load(3, 300).into_iter().for_each(|x| online.update(x));
    online.fit_now().unwrap().unwrap();
    (0..1200).for_each(|_| online.update(42.0));
    assert_eq!(online.fit_now(), Some(Err(FitError::Constant)));
    assert!(online.model().is_some());
    let quantiles = online.forecast(10).unwrap();
    assert!((quantiles.q50() - 42.0).abs() < 1e-6, "{quantiles:?}");
}

#[test]
fn quantiles_cover_what_they_promise_and_beat_the_last_value() {
    let mut online = online();
    let samples = load(4, 6000);
    let (mut covered, mut judged, mut ours, mut naive) = (0.0, 0.0, 0.0, 0.0);
    for (step, &sample) in samples.iter().enumerate() {
        online.update(sample);
        if let Some(fitted) = online.fit_now() {
            fitted.unwrap();
        }
        let Some(&ahead) = samples.get(step + 10) else {
            continue;
        };
        if step < 1000 {
            continue;
        }
        let quantiles = online.forecast(10).unwrap();
        judged += 1.0;
        covered += f64::from(u8::from(ahead <= quantiles.q95()));
        ours += (ahead - quantiles.q50()).abs();
        naive += (ahead - sample).abs();
    }
    let share = covered / judged;
    assert!((0.93..=0.97).contains(&share), "{share}");
    assert!(ours < 0.8 * naive, "{ours} of {naive}");
}

#[test]
fn a_period_that_is_set_during_a_search_is_searched_for_next() {
    let mut online = online();
    let wave = |step: u32| f64::from(step % 12) + f64::from(step * step % 7);
    (0..200).for_each(|step| online.update(wave(step)));
    let request = online.fit_request().expect("it is due");
    online.set_period(Some(12));
    online.adopt(request.run()).expect("better than nothing");
    let next = online.fit_request().expect("it is due again");
    assert!(next.is_search(), "the order was sought without the period");
    online.adopt(next.run()).expect("it fits");
    assert!(!online.wants_fit());
}

#[test]
fn a_fit_of_another_forecaster_is_refused() {
    let (mut older, mut newer) = (online(), online());
    (0..300_u32).for_each(|step| older.update(f64::from(step * step % 7)));
    (0..100_u32).for_each(|step| newer.update(f64::from(step * step % 7)));
    let fitted = older.fit_request().expect("it is due").run();
    assert!(matches!(newer.adopt(fitted), Err(FitError::Stale { .. })));
}
