//! What holds for any input, and what holds on average.

mod samples;

use std::sync::Arc;

use forebay_forecast::lstm::Weights;
use forebay_forecast::{
    Ensemble, Forecast, Forecaster, MixtureOptions, Quantiles, Series, SeriesOptions, Target,
};
use proptest::prelude::*;
use samples::sample;

fn assert_sound(forecast: Option<Forecast>) {
    let Some(forecast) = forecast else { return };
    let levels = forecast.quantiles.to_array();
    assert!(
        levels
            .iter()
            .all(|level| level.is_finite() && *level >= 0.0),
        "{forecast:?}"
    );
    assert!(levels.is_sorted(), "{forecast:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn forecasts_are_sound_whatever_comes(
        samples in prop::collection::vec(sample(), 0..400),
        request in prop::option::of(sample()),
        steps in 0..2000_usize,
    ) {
        let horizons = vec![1, 5, 20];
        let mut series = Series::new(SeriesOptions { horizons, history_max: 64, request });
        for sample in samples {
            series.update(sample);
            for steps in [1, 5, 7, 20, steps] {
                assert_sound(series.forecast(steps));
                assert_sound(series.peak(steps));
            }
        }
    }

    /// Whatever came before, a bounded time of calm is enough to forget it.
    #[test]
    fn the_past_is_forgotten(samples in prop::collection::vec(sample(), 0..300)) {
        let horizons = vec![1, 5, 20];
        let mut series = Series::new(SeriesOptions { horizons, history_max: 64, request: None });
        samples.into_iter().for_each(|sample| series.update(sample));
        (0..2000).for_each(|_| series.update(3.0));
        for steps in [1, 5, 20] {
            let quantiles = series.peak(steps).unwrap().quantiles;
            prop_assert!((quantiles.q50() - 3.0).abs() < 1e-4, "{quantiles:?}");
            prop_assert!((quantiles.q99() - 3.0).abs() < 1e-4, "{quantiles:?}");
        }
    }

    #[test]
    fn quantiles_are_ordered(levels in prop::array::uniform4(any::<f64>())) {
        if let Some(quantiles) = Quantiles::new(levels) {
            prop_assert!(quantiles.to_array().is_sorted());
        } else {
            prop_assert!(levels.iter().any(|level| level.is_nan()));
        }
    }
}

/// Share of values and of peaks within the 0.95 bound, on persistent noise
/// (AR(1)) with bursts at a period.
fn coverage(seed: u64, persistence: f64, burst: f64, steps: usize) -> (f64, f64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut noise = 0.0;
    let samples: Vec<f64> = (0..8000)
        .map(|step| {
            let shock: f64 = (0..6).map(|_| rng.f64() - 0.5).sum();
            noise = persistence * noise + shock;
            let wave = if step % 60 < 12 { burst } else { 0.0 };
            (20.0 + wave + noise).max(0.0)
        })
        .collect();
    let mut series = Series::new(SeriesOptions::default());
    let (mut values, mut peaks, mut judged) = (0.0, 0.0, 0.0);
    for (step, &sample) in samples.iter().enumerate() {
        series.update(sample);
        let Some(ahead) = samples.get(step + 1..=step + steps) else {
            continue;
        };
        if step < 1000 {
            continue;
        }
        let bound = |forecast: Option<Forecast>| forecast.map_or(0.0, |f| f.quantiles.q95());
        let highest = ahead.iter().copied().fold(0.0, f64::max);
        judged += 1.0;
        values += f64::from(u8::from(ahead[steps - 1] <= bound(series.forecast(steps))));
        peaks += f64::from(u8::from(highest <= bound(series.peak(steps))));
    }
    (values / judged, peaks / judged)
}

#[test]
fn the_promised_coverage_is_the_measured_one() {
    fn check(persistence: f64, burst: f64) {
        for steps in [1, 10, 50] {
            for seed in 0..3 {
                let (values, peaks) = coverage(seed, persistence, burst, steps);
                for share in [values, peaks] {
                    assert!(
                        (0.91..=0.98).contains(&share),
                        "seed {seed}, persistence {persistence}, burst {burst}, {steps} steps: \
                         values {values}, peaks {peaks}"
                    );
                }
            }
        }
    }
    check(0.0, 0.0);
    check(0.8, 0.0);
    check(0.5, 10.0);
    check(0.8, 4.0);
}

/// One step of an ensemble's life.
#[derive(Clone, Debug)]
enum Event {
    Sample(f64),
    Gap,
    /// ARIMA is fitted, if that is due.
    Fit,
    Weights,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        30 => sample().prop_map(Event::Sample),
        3 => Just(Event::Gap),
        1 => Just(Event::Fit),
        1 => Just(Event::Weights),
    ]
}

fn assert_in_order(answer: Option<Quantiles>) {
    if let Some(answer) = answer {
        let levels = answer.to_array();
        assert!(
            levels.iter().all(|q| q.is_finite() && *q >= 0.0),
            "{levels:?}"
        );
        assert!(levels.is_sorted(), "{levels:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn an_ensemble_is_sound_whatever_comes(
        events in prop::collection::vec(event(), 0..300),
        with_weights in any::<bool>(),
        cycle in prop::option::of(0..100_usize),
    ) {
        let weights = Arc::new(Weights::pretrained());
        let options = MixtureOptions {
            targets: vec![Target::Value, Target::Peak],
            horizons: vec![1, 20],
            history_max: 64,
            cycle,
        };
        let mut ensemble = Ensemble::new(&options, with_weights.then(|| weights.clone()));
        for event in events {
            match event {
                Event::Sample(value) => ensemble.update(value),
                Event::Gap => ensemble.update_gap(),
                // What cannot be fitted stays as it was.
                Event::Fit => drop(ensemble.arima().fit_now()),
                Event::Weights => ensemble.set_weights(weights.clone()),
            }
            for steps in [0, 1, 20, 500] {
                assert_in_order(ensemble.forecast(steps));
                assert_in_order(ensemble.forecast_peak(steps));
            }
        }
    }

    /// Constants, zeros, a single value: what is asked for comes back, or nothing does.
    #[test]
    fn an_ensemble_of_one_value_answers_that_value(
        value in prop_oneof![Just(0.0), Just(1e18), 1e-6..1e12],
        count in 1..200_usize,
    ) {
        let options = MixtureOptions { horizons: vec![1, 20], history_max: 64, ..MixtureOptions::default() };
        let mut ensemble = Ensemble::new(&options, Some(Arc::new(Weights::pretrained())));
        for _ in 0..count {
            ensemble.update(value);
        }
        for steps in [1, 20] {
            if let Some(answer) = ensemble.forecast(steps) {
                let near = |q: f64| (q - value).abs() <= 1e-3 * value;
                prop_assert!(answer.to_array().into_iter().all(near), "{value}: {answer:?}");
            }
        }
    }
}
