//! What one step of one series costs: an update with its forecasts.
//!
//! `cargo run --release -p forebay-forecast --example cost` prints nanoseconds
//! per step. There are many series in turn, as on a host, so that their state
//! does not stay in the nearest cache. The mixture and the ensemble forecast three
//! horizons; ARIMA is fitted once, before the time is taken.

use std::hint::black_box;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Instant;

use forebay_forecast::lstm::Weights;
use forebay_forecast::{Ensemble, Forecaster, Mixture, MixtureOptions, Series, SeriesOptions};

fn main() -> io::Result<()> {
    for (kind, noise, season) in [
        ("constant", 0.0, 0.0),
        ("noise", 1.0, 0.0),
        ("noise and season", 0.3, 4.0),
    ] {
        let mut all = vec![Series::new(SeriesOptions::default()); 200];
        let mut load = Load::new(noise, season);
        let ns = measure(&mut all, 3000, &mut load, |series, sample| {
            series.update(sample);
            black_box(series.forecast(10));
            black_box(series.peak(50));
        });
        writeln!(
            io::stdout(),
            "{kind:>16}: {ns:6.0} ns per update, forecast and peak"
        )?;
    }
    let options = MixtureOptions::default();
    let mut mixtures = vec![Mixture::new(&options); 50];
    three_ahead("mixture", &mut mixtures, |_| {})?;
    let weights = Some(Arc::new(Weights::pretrained()));
    let mut ensembles = vec![Ensemble::new(&options, weights); 50];
    three_ahead("ensemble", &mut ensembles, |ensemble| {
        // Without a fit it would be a mixture of fewer.
        if ensemble.arima().fit_now().is_none_or(|fit| fit.is_err()) {
            writeln!(io::stderr(), "ARIMA was not fitted").ok();
        }
    })
}

/// Prints what a noisy season costs, 1, 12 and 60 steps ahead, once the history is full.
fn three_ahead<F: Forecaster>(
    name: &str,
    all: &mut [F],
    prepare: impl FnMut(&mut F),
) -> io::Result<()> {
    let mut load = Load::new(0.3, 4.0);
    let step = |model: &mut F, sample| {
        model.update(sample);
        for steps in [1, 12, 60] {
            black_box(model.forecast(steps));
        }
    };
    measure(all, 1500, &mut load, step);
    all.iter_mut().for_each(prepare);
    let ns = measure(all, 1000, &mut load, step);
    writeln!(
        io::stdout(),
        "{name:>16}: {ns:6.0} ns per update and three forecasts"
    )
}

/// A level with noise and a season of 60 steps.
struct Load {
    rng: fastrand::Rng,
    noise: f64,
    season: f64,
    step: usize,
}

impl Load {
    fn new(noise: f64, season: f64) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(1),
            noise,
            season,
            step: 0,
        }
    }

    /// The next sample of each of so many series.
    fn next(&mut self, count: usize) -> Vec<f64> {
        let wave = if self.step % 60 < 10 {
            self.season
        } else {
            0.0
        };
        self.step += 1;
        (0..count)
            .map(|_| 10.0 + wave + self.noise * self.rng.f64())
            .collect()
    }
}

/// Nanoseconds for a step of one of the series, over `steps` steps of all.
fn measure<T>(
    all: &mut [T],
    steps: usize,
    load: &mut Load,
    mut each: impl FnMut(&mut T, f64),
) -> f64 {
    let mut spent = 0.0;
    for _ in 0..steps {
        let samples = load.next(all.len());
        let start = Instant::now();
        for (series, sample) in all.iter_mut().zip(samples) {
            each(series, sample);
        }
        spent += start.elapsed().as_secs_f64();
    }
    let count = u32::try_from(all.len() * steps).map_or(f64::INFINITY, f64::from);
    spent * 1e9 / count
}
