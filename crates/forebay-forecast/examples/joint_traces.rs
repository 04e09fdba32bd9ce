//! How often real sums exceed their joint bounds, and what the sum of bounds would have taken.
//!
//! `cargo run --release -p forebay-forecast --example joint_traces -- FILE FILE...` reads files of
//! (timestamp, value) with a heading, whose rows are of the same times, and prints for values 1, 12
//! and 60 steps ahead and for peaks within 60: how much of the sums the bounds covered, and how far
//! the 0.95 bound lies above the sum, as a part of how far the sum of 0.95 bounds does.

use std::collections::VecDeque;
use std::error::Error;
use std::io::Write;
use std::{env, fs, io};

use forebay_forecast::{Forecaster, Joint, Mixture, MixtureOptions, Quantiles, Target};

const WARM_UP: usize = 1500;

fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<String> = env::args().skip(1).collect();
    let all: Vec<Vec<f64>> = files
        .iter()
        .map(|file| values(file))
        .collect::<Result<_, _>>()?;
    let rows = all.iter().map(Vec::len).min().ok_or("which files?")?;
    let mut out = io::stdout();
    for (target, steps) in [
        (Target::Value, 1),
        (Target::Value, 12),
        (Target::Value, 60),
        (Target::Peak, 60),
    ] {
        let found = measure(&all, rows, target, steps);
        writeln!(
            out,
            "{target:?} {steps:>2}: {} judged, covered .5 {:.3}, .9 {:.3}, .95 {:.3}, .99 {:.3}; \
             0.95 bound above the sum {:.3} of the sum of bounds, which covers {:.3}",
            found.judged,
            found.covered[0],
            found.covered[1],
            found.covered[2],
            found.covered[3],
            found.above,
            found.covered_by_bounds,
        )?;
    }
    Ok(())
}

#[derive(Default)]
struct Found {
    judged: u32,
    covered: [f64; 4],
    above: f64,
    covered_by_bounds: f64,
}

fn measure(all: &[Vec<f64>], rows: usize, target: Target, steps: usize) -> Found {
    let options = MixtureOptions {
        targets: vec![target],
        horizons: vec![steps],
        ..MixtureOptions::default()
    };
    let mut models: Vec<Mixture> = all.iter().map(|_| Mixture::new(&options)).collect();
    let mut joint = Joint::new(target, steps);
    let mut said: VecDeque<Option<(Quantiles, f64)>> = VecDeque::new();
    let mut sums: VecDeque<f64> = VecDeque::new();
    let mut found = Found::default();
    let (mut above, mut plain) = (0.0, 0.0);
    for row in 0..rows {
        let samples: Vec<f64> = all.iter().map(|values| values[row]).collect();
        sums.push_back(samples.iter().sum());
        if sums.len() > steps {
            sums.pop_front();
        }
        if said.len() == steps
            && let Some(Some((bounds, sum_of_bounds))) = said.pop_front()
            && row > WARM_UP
        {
            let truth = match target {
                Target::Value => sums[steps - 1],
                Target::Peak => sums.iter().copied().fold(0.0, f64::max),
            };
            found.judged += 1;
            for (covered, bound) in found.covered.iter_mut().zip(bounds.to_array()) {
                *covered += f64::from(u8::from(truth <= bound));
            }
            found.covered_by_bounds += f64::from(u8::from(truth <= sum_of_bounds));
            above += bounds.q95() - truth;
            plain += sum_of_bounds - truth;
        }
        for (model, sample) in models.iter_mut().zip(&samples) {
            model.update(*sample);
        }
        let forecasts = models.iter().map(|model| model.forecast_of(target, steps));
        let forecasts: Vec<Option<Quantiles>> = forecasts.collect();
        let samples: Vec<Option<f64>> = samples.into_iter().map(Some).collect();
        joint.step(&samples, &forecasts);
        let bounds = forecasts.iter().flatten().map(Quantiles::q95).sum();
        said.push_back(joint.sum(&forecasts).map(|sum| (sum, bounds)));
    }
    let judged = f64::from(found.judged.max(1));
    found.covered = found.covered.map(|count| count / judged);
    found.covered_by_bounds /= judged;
    found.above = above / plain;
    found
}

fn values(file: &str) -> Result<Vec<f64>, Box<dyn Error>> {
    let text = fs::read_to_string(file).map_err(|error| format!("read {file}: {error}"))?;
    let value = |line: &str| {
        let (_, value) = line
            .split_once(',')
            .ok_or_else(|| format!("{file}: no comma in {line:?}"))?;
        Ok(value.parse()?)
    };
    text.lines().skip(1).map(value).collect()
}
