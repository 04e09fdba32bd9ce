//! What each forecaster promises, one line for each case.

use forebay_forecast::{
    Forecaster, Quantiles, Seasonal, Series, SeriesOptions, Smoothing, Target, Window,
};

const HORIZONS: [usize; 3] = [1, 10, 50];

fn close(actual: f64, expected: f64) -> bool {
    (actual - expected).abs() <= 1e-5 * expected.abs().max(1e-9)
}

/// A series fed with `count` values of a function of the step.
fn fed(count: u32, value: impl Fn(u32) -> f64) -> Series {
    let mut series = Series::new(SeriesOptions::default());
    (0..count).for_each(|step| series.update(value(step)));
    series
}

#[test]
fn a_constant_is_forecast() {
    fn check(constant: f64) {
        let candidates: [Box<dyn Forecaster>; 2] = [
            Box::new(Window::new(&HORIZONS)),
            Box::new(Smoothing::new(&HORIZONS, 512)),
        ];
        for mut candidate in candidates {
            (0..400).for_each(|_| candidate.update(constant));
            for steps in [1, 7, 50, 80] {
                for q in [candidate.forecast(steps), candidate.forecast_peak(steps)] {
                    let q = q.unwrap();
                    assert!(close(q.q50(), constant), "{candidate:?} {constant}: {q:?}");
                    assert!(close(q.q99(), constant), "{constant}: {q:?}");
                }
            }
        }
        let series = fed(400, |_| constant);
        assert!(close(series.peak(50).unwrap().quantiles.q99(), constant));
        assert_eq!(series.period(), None);
    }
    check(0.0);
    check(1.0);
    check(0.3);
    check(123_456_789_012.0);
    check(1e18);
}

#[test]
fn a_step_is_in_the_next_forecast() {
    fn check(before: f64, noise: f64, after: f64) {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut series = Series::new(SeriesOptions::default());
        (0..600).for_each(|_| series.update(before + noise * rng.f64()));
        series.update(after);
        for steps in [1, 10, 50] {
            for forecast in [series.forecast(steps), series.peak(steps)] {
                let q = forecast.unwrap().quantiles;
                assert!(
                    q.q50() >= after - noise,
                    "{before} to {after} in {steps}: {q:?}"
                );
                assert!(q.q95() >= after, "{before} to {after} in {steps}: {q:?}");
            }
        }
    }
    check(1.0, 0.0, 5.0);
    check(1.0, 0.5, 5.0);
    check(0.0, 0.1, 1e6);
    check(100.0, 20.0, 400.0);
}

#[test]
fn a_period_is_found() {
    fn check(period: u32, shape: impl Fn(u32) -> f64) {
        let mut seasonal = Seasonal::new(&HORIZONS, 512);
        let value = |step: u32| shape(step % period);
        (0..1500).for_each(|step| seasonal.update(value(step)));
        assert_eq!(
            seasonal.period(),
            usize::try_from(period).ok(),
            "of period {period}"
        );
        for steps in [1, 10, 50_u32] {
            let q = seasonal.forecast(usize::try_from(steps).unwrap()).unwrap();
            let ahead = value(1499 + steps);
            assert!(
                close(q.q50(), ahead) && close(q.q99(), ahead),
                "{period}, {steps}: {q:?}"
            );
            let highest = (1..=steps).map(|k| value(1499 + k)).fold(0.0, f64::max);
            let q = seasonal
                .forecast_peak(usize::try_from(steps).unwrap())
                .unwrap();
            assert!(
                close(q.q95(), highest),
                "{period}, {steps}: {q:?} for {highest}"
            );
        }
    }
    let burst = |phase| if phase < 5 { 9.0 } else { 1.0 };
    check(20, burst);
    check(37, burst);
    check(100, burst);
    check(200, burst);
    check(60, |phase| {
        5.0 + 4.0 * (f64::from(phase) / 60.0 * std::f64::consts::TAU).sin()
    });
    check(16, |phase| f64::from(phase * phase));
}

#[test]
fn no_period_is_seen_where_there_is_none() {
    fn check(name: &str, mut next: impl FnMut(&mut fastrand::Rng, f64) -> f64) {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut seasonal = Seasonal::new(&HORIZONS, 512);
        let mut value = 50.0;
        for _ in 0..1500 {
            value = next(&mut rng, value);
            seasonal.update(value);
        }
        assert_eq!(seasonal.period(), None, "{name}");
    }
    check("noise", |rng, _| rng.f64());
    check("rise", |_, value| value + 1.0);
    check("persistent noise", |rng, value| {
        5.0 + 0.9 * value + rng.f64()
    });
}

#[test]
fn the_period_is_given_up_when_it_is_gone() {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut seasonal = Seasonal::new(&HORIZONS, 512);
    (0..1500).for_each(|step| seasonal.update(if step % 30 < 4 { 9.0 } else { 1.0 }));
    assert_eq!(seasonal.period(), Some(30));
    (0..1500).for_each(|_| seasonal.update(rng.f64()));
    assert_eq!(seasonal.period(), None);
    assert_eq!(seasonal.forecast(1), None);
}

#[test]
fn the_season_is_used_before_the_rise() {
    let series = fed(2000 - 15, |step| if step % 40 < 5 { 9.0 } else { 1.0 });
    // The last step is 24 of 40; in 16 steps the next burst begins.
    let forecast = series.forecast(16).unwrap();
    assert_eq!(forecast.model, "seasonal");
    assert!(close(forecast.quantiles.q50(), 9.0), "{forecast:?}");
    let near = series.peak(10).unwrap();
    assert!(close(near.quantiles.q95(), 1.0), "{near:?}");
}

#[test]
fn a_cold_series_starts_from_its_request() {
    fn check(request: Option<f64>, samples: &[f64], expected: Option<(&str, f64)>) {
        let options = SeriesOptions {
            request,
            ..SeriesOptions::default()
        };
        let mut series = Series::new(options);
        samples.iter().for_each(|&sample| series.update(sample));
        let peak = series.peak(10);
        assert_eq!(
            peak.map(|p| p.model),
            expected.map(|e| e.0),
            "{request:?} {samples:?}"
        );
        if let (Some(peak), Some((_, q95_min))) = (peak, expected) {
            assert!(peak.cold);
            assert!(
                peak.quantiles.q95() >= q95_min,
                "{request:?} {samples:?}: {peak:?}"
            );
        }
    }
    check(None, &[], None);
    check(Some(f64::NAN), &[], None);
    check(None, &[f64::NAN], None);
    check(Some(2.0), &[], Some(("request", 2.0)));
    check(Some(2.0), &[0.1], Some(("window", 2.0)));
    check(Some(2.0), &[0.1, 5.0, 0.2], Some(("window", 5.0)));
    check(None, &[3.0], Some(("window", 3.0)));
    check(Some(0.0), &[], Some(("request", 0.0)));
}

#[test]
fn cold_bounds_narrow_as_samples_come() {
    let mut series = Series::new(SeriesOptions {
        request: Some(1.0),
        ..SeriesOptions::default()
    });
    let mut before = f64::INFINITY;
    for _ in 0..300 {
        let now = series.peak(50).unwrap().quantiles.q99();
        assert!(now <= before, "{now} after {before}");
        before = now;
        series.update(0.5);
    }
    assert!(!series.peak(50).unwrap().cold);
    assert!(close(series.peak(50).unwrap().quantiles.q99(), 0.5));
}

#[test]
fn gaps_and_refused_samples_break_nothing() {
    fn check(name: &str, miss: impl Fn(u32, &mut Series)) {
        let mut series = Series::new(SeriesOptions::default());
        for step in 0..3000 {
            if step % 7 == 3 || (1000..1030).contains(&step) {
                miss(step, &mut series);
            } else {
                series.update(if step % 40 < 5 { 9.0 } else { 1.0 });
            }
        }
        for steps in [1, 10, 50] {
            let forecast = series.peak(steps).unwrap();
            assert!(!forecast.cold, "{name}");
            assert!(forecast.quantiles.q99() <= 10.0, "{name}: {forecast:?}");
        }
        // Gaps at a beat of their own may make a multiple the better period.
        assert!(
            series.period().is_some_and(|p| p % 40 == 0),
            "{name}: {:?}",
            series.period()
        );
        assert_eq!(series.samples() + series.gaps(), 3000, "{name}");
    }
    check("gap", |_, series| series.update_gap());
    check("not a number", |_, series| series.update(f64::NAN));
    check("infinite", |_, series| series.update(f64::INFINITY));
    check("negative", |_, series| series.update(-1.0));
    check("absurd", |_, series| series.update(1e300));
}

/// Regression: the plausible range once forgot sooner than the errors did, and cut
/// the bound of an idle series down between two bursts.
#[test]
fn rare_bursts_are_remembered_while_idle() {
    let mut series = Series::new(SeriesOptions::default());
    for step in 0..6000 {
        series.update(if step % 600 < 10 { 4.0 } else { 0.01 });
        if step > 3000 {
            let peak = series.peak(50).unwrap();
            assert!(peak.quantiles.q95() >= 3.9, "at step {step}: {peak:?}");
        }
    }
}

#[test]
fn quantiles_are_put_in_order() {
    fn check(levels: [f64; 4], expected: Option<[f64; 4]>) {
        assert_eq!(
            Quantiles::new(levels).map(Quantiles::to_array),
            expected,
            "{levels:?}"
        );
    }
    check([1.0, 2.0, 3.0, 4.0], Some([1.0, 2.0, 3.0, 4.0]));
    check([4.0, 2.0, 3.0, 1.0], Some([1.0, 2.0, 3.0, 4.0]));
    check([-5.0, 2.0, f64::INFINITY, 3.0], Some([0.0, 2.0, 3.0, 1e18]));
    check([1.0, f64::NAN, 3.0, 4.0], None);
}

#[test]
fn scores_explain_the_choice() {
    let series = fed(2000, |step| if step % 40 < 5 { 9.0 } else { 1.0 });
    let scores = series.scores();
    assert_eq!(scores.len(), 18);
    for steps in HORIZONS {
        for target in [Target::Value, Target::Peak] {
            let rows = scores
                .iter()
                .filter(|s| s.steps == steps && s.target == target);
            let used: Vec<_> = rows.clone().filter(|s| s.used).collect();
            let [used] = used[..] else {
                panic!("{used:?} of {steps}")
            };
            let least = rows.filter_map(|s| s.pinball).fold(f64::INFINITY, f64::min);
            assert!(
                used.pinball.unwrap() <= least / 0.95 + 1e-9,
                "{used:?}, least {least}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "do not ascend")]
fn horizons_must_ascend() {
    let horizons = vec![10, 1];
    drop(Series::new(SeriesOptions {
        horizons,
        ..SeriesOptions::default()
    }));
}
