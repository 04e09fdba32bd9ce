//! What holds for any input, and what holds on average.

mod samples;

use forebay_forecast::{Forecast, Quantiles, Series, SeriesOptions};
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
