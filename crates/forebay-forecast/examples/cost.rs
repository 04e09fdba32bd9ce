//! What one step of one series costs: an update, a forecast and a peak.
//!
//! `cargo run --release -p forebay-forecast --example cost` prints nanoseconds
//! per step. There are many series in turn, as on a host, so that their state
//! does not stay in the nearest cache.

use std::hint::black_box;
use std::io::{self, Write};
use std::time::Instant;

use forebay_forecast::{Series, SeriesOptions};

const SERIES: usize = 200;
const STEPS: usize = 3000;

fn main() -> io::Result<()> {
    for (kind, noise, season) in [
        ("constant", 0.0, 0.0),
        ("noise", 1.0, 0.0),
        ("noise and season", 0.3, 4.0),
    ] {
        let ns = measure(noise, season);
        writeln!(
            io::stdout(),
            "{kind:>16}: {ns:6.0} ns per update, forecast and peak"
        )?;
    }
    Ok(())
}

fn measure(noise: f64, season: f64) -> f64 {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut all: Vec<Series> = (0..SERIES)
        .map(|_| Series::new(SeriesOptions::default()))
        .collect();
    let mut spent = 0.0;
    for step in 0..STEPS {
        let wave = if step % 60 < 10 { season } else { 0.0 };
        let samples: Vec<f64> = (0..SERIES)
            .map(|_| 10.0 + wave + noise * rng.f64())
            .collect();
        let start = Instant::now();
        for (series, sample) in all.iter_mut().zip(samples) {
            series.update(sample);
            black_box(series.forecast(10));
            black_box(series.peak(50));
        }
        spent += start.elapsed().as_secs_f64();
    }
    let steps = u32::try_from(SERIES * STEPS).map_or(f64::INFINITY, f64::from);
    spent * 1e9 / steps
}
