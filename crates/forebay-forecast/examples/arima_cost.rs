//! What ARIMA costs: an automatic fit, a warm refit, a step.
//!
//! `cargo run --release -p forebay-forecast --example arima_cost` prints
//! milliseconds for fits of 1,440 samples, and nanoseconds for a step with a
//! forecast of the next 60.

use std::hint::black_box;
use std::io::{self, Write};
use std::time::Instant;

use forebay_forecast::Forecaster;
use forebay_forecast::arima::{Arima, OnlineArima, OnlineOptions, Search};

const SAMPLES: usize = 1440;
const FITS: u64 = 5;
const STEPS: usize = 20_000;

fn main() -> io::Result<()> {
    for (kind, wave, period) in [
        ("no season", 0.0, None),
        ("season of 12", 4.0, Some(12)),
        ("season of 60", 4.0, Some(60)),
        ("season of 288", 4.0, Some(288)),
    ] {
        let (mut search_ms, mut refit_ms, mut orders) = (Vec::new(), Vec::new(), Vec::new());
        let mut step_ns = 0.0;
        for seed in 0..FITS {
            let series = load(seed, SAMPLES + 288, wave, period.unwrap_or(1));
            let search = Search {
                period,
                ..Search::default()
            };
            let start = Instant::now();
            let Ok(model) = Arima::fit_auto(&series[..SAMPLES], search) else {
                continue;
            };
            search_ms.push(start.elapsed().as_secs_f64() * 1e3);
            orders.push(model.order().to_string());
            let start = Instant::now();
            black_box(model.refit(&series[288..])).ok();
            refit_ms.push(start.elapsed().as_secs_f64() * 1e3);
            step_ns = steps(model);
        }
        writeln!(
            io::stdout(),
            "{kind}: search {} ms, refit {} ms, step and 60 ahead {step_ns:.0} ns; {}",
            range(&search_ms),
            range(&refit_ms),
            orders.join(", "),
        )?;
    }
    for horizons in [vec![1, 10, 50], vec![1, 12, 60]] {
        let ns = online(&horizons);
        writeln!(
            io::stdout(),
            "OnlineArima at {horizons:?}: {ns:.0} ns per update, forecast and peak"
        )?;
    }
    Ok(())
}

/// A level that is returned to, noise, and a wave.
fn load(seed: u64, length: usize, wave: f64, period: usize) -> Vec<f64> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut swing = 0.0;
    (0..length)
        .map(|step| {
            let shock: f64 = (0..6).map(|_| rng.f64() - 0.5).sum();
            swing = 0.8 * swing + shock;
            let peak = if step % period < period / 5 {
                wave
            } else {
                0.0
            };
            20.0 + peak + swing + 0.5 * rng.f64()
        })
        .collect()
}

/// Nanoseconds for a sample and the next 60 predictions.
fn steps(mut model: Arima) -> f64 {
    let mut rng = fastrand::Rng::with_seed(9);
    let start = Instant::now();
    for _ in 0..STEPS {
        model.observe(20.0 + rng.f64());
        black_box(model.forecast_path(60));
    }
    per_step(start)
}

/// Nanoseconds of the forecaster for an update, a forecast and a peak.
fn online(horizons: &[usize]) -> f64 {
    let mut online = OnlineArima::new(OnlineOptions {
        horizons: horizons.to_vec(),
        ..OnlineOptions::default()
    });
    let series = load(3, SAMPLES, 0.0, 1);
    series.iter().for_each(|&sample| online.update(sample));
    if online.fit_now().is_none_or(|fitted| fitted.is_err()) {
        return f64::NAN;
    }
    let samples = load(4, STEPS, 0.0, 1);
    let start = Instant::now();
    for sample in samples {
        online.update(sample);
        black_box(online.forecast(10));
        black_box(online.forecast_peak(50));
    }
    per_step(start)
}

fn per_step(start: Instant) -> f64 {
    let steps = u32::try_from(STEPS).map_or(f64::INFINITY, f64::from);
    start.elapsed().as_secs_f64() * 1e9 / steps
}

fn range(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{least:.1} to {most:.1}")
}
