//! Forecasts recorded traces at given origins with the LSTM alone, for comparison with
//! other models.
//!
//! `cargo run --release -p forebay-forecast --example lstm_traces -- FOLDER REGIME [PERIODS]`
//! reads `FOLDER/origins.csv` (series, origin: the 0-based row of the last value that
//! may be looked at) and `FOLDER/SERIES.csv` (timestamp, value), each with a heading,
//! and `PERIODS` (series, steps; no heading), and prints
//! `series,origin,step,q50,q90,q95,q99` for 1, 12 and 60 steps. Training sees what is
//! before the first origin of a series, never more. `REGIME` is
//!
//! - `pretrained`: the weights that come with the crate, as they are;
//! - `all`: these, trained further on all series;
//! - `halves`: these, trained further on every other series (sorted by name), and
//!   the rest is forecast; then the other way round;
//! - `cold`: as `halves`, but from nothing instead of the weights of the crate.
//!
//! What training did, and what a step costs, goes to standard error.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::Instant;
use std::{env, fs, io};

use forebay_forecast::lstm::{History, Layout, Progress, State, Trainer, TrainerConfig, Weights};

const HORIZONS: [usize; 3] = [1, 12, 60];
const SEED: u64 = 1;

struct Trace {
    name: String,
    values: Vec<f64>,
    period: Option<usize>,
    origins: Vec<usize>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [folder, regime, periods @ ..] = &args[..] else {
        return Err("which folder, and pretrained, all, halves or cold?".into());
    };
    let traces = read(Path::new(folder), periods.first().map(Path::new))?;
    let pretrained = Weights::pretrained();
    let start = Some(&pretrained).filter(|_| regime != "cold");
    let mut out = io::BufWriter::new(io::stdout());
    writeln!(out, "series,origin,step,q50,q90,q95,q99")?;
    match regime.as_str() {
        "pretrained" => {
            forecast(&mut out, &pretrained, traces.iter())?;
        }
        "all" => {
            let weights = train(start, traces.iter())?;
            forecast(&mut out, &weights, traces.iter())?;
        }
        "halves" | "cold" => {
            for half in [0, 1] {
                let seen = traces.iter().skip(half).step_by(2);
                let unseen = traces.iter().skip(1 - half).step_by(2);
                forecast(&mut out, &train(start, seen)?, unseen)?;
            }
        }
        _ => return Err(format!("{regime} is no regime").into()),
    }
    out.flush()?;
    Ok(())
}

/// Weights after training on what is before the first origins.
fn train<'a>(
    start: Option<&Weights>,
    traces: impl Iterator<Item = &'a Trace>,
) -> Result<Weights, Box<dyn Error>> {
    let histories: Vec<History> = traces
        .map(|trace| History {
            values: trace.values[..=trace.origins[0]].to_vec(),
            period: trace.period,
        })
        .collect();
    let layout = match start {
        Some(weights) => weights.layout().clone(),
        None => Layout::new(&HORIZONS, 16).ok_or("the layout is out of bounds")?,
    };
    let mut config = TrainerConfig::new(layout);
    if start.is_some() {
        // What was learnt from much is not to be forgotten for little.
        config.learning_rate = 3e-4;
    }
    let mut trainer = Trainer::new(&config, &histories, SEED);
    if let Some(weights) = start {
        trainer = trainer.improving(weights);
    }
    let begin = Instant::now();
    let verdict = loop {
        if let Progress::Done(verdict) = trainer.advance(4096) {
            break verdict;
        }
    };
    let seconds = begin.elapsed().as_secs_f64();
    let mut err = io::stderr();
    write!(err, "{verdict:?} after {seconds:.1} s")?;
    let Some(trained) = trainer.finish() else {
        writeln!(err)?;
        return Ok(start.ok_or("nothing was learnt")?.clone());
    };
    let (epochs, origin) = (trained.epochs, trained.weights.origin());
    writeln!(
        err,
        ": {:.4} of the naive loss became {:.4} in {epochs} epochs",
        origin.loss_before, origin.loss_after
    )?;
    Ok(trained.weights)
}

fn forecast<'a>(
    out: &mut impl Write,
    weights: &Weights,
    traces: impl Iterator<Item = &'a Trace>,
) -> Result<(), Box<dyn Error>> {
    let (mut seconds, mut steps) = (0.0, 0_u32);
    for trace in traces {
        let name = &trace.name;
        let mut state = State::new(weights, trace.period);
        for (row, &value) in trace.values.iter().enumerate() {
            let begin = Instant::now();
            state.step(weights, value);
            let forecasts = [0, 1, 2].map(|place| state.forecast(weights, place));
            seconds += begin.elapsed().as_secs_f64();
            steps += 1;
            if trace.origins.binary_search(&row).is_err() {
                continue;
            }
            for (steps, quantiles) in HORIZONS.iter().zip(forecasts) {
                let quantiles = quantiles.ok_or("an origin too early")?;
                let [q50, q90, q95, q99] = quantiles.to_array();
                writeln!(
                    out,
                    "{name},{row},{steps},{q50:.6e},{q90:.6e},{q95:.6e},{q99:.6e}"
                )?;
            }
        }
    }
    let microseconds = 1e6 * seconds / f64::from(steps.max(1));
    writeln!(
        io::stderr(),
        "{microseconds:.2} us for a step with three forecasts"
    )?;
    Ok(())
}

fn read(folder: &Path, periods: Option<&Path>) -> Result<Vec<Trace>, Box<dyn Error>> {
    let mut told = BTreeMap::new();
    for (name, period) in periods.map_or(Ok(Vec::new()), |path| pairs(path, 0))? {
        told.insert(name, period.parse()?);
    }
    let mut origins: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (name, origin) in pairs(&folder.join("origins.csv"), 1)? {
        origins.entry(name).or_default().push(origin.parse()?);
    }
    let mut traces = Vec::new();
    for (name, origins) in origins {
        let mut values = Vec::new();
        for (_, value) in pairs(&folder.join(format!("{name}.csv")), 1)? {
            values.push(value.parse()?);
        }
        traces.push(Trace {
            period: told.get(&name).copied(),
            name,
            values,
            origins,
        });
    }
    Ok(traces)
}

/// The two columns of a file, without its headings.
fn pairs(path: &Path, headings: usize) -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let text = fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))?;
    let split = |line: &str| {
        let (a, b) = line
            .split_once(',')
            .ok_or_else(|| format!("no comma in {line:?}"))?;
        Ok((a.to_owned(), b.to_owned()))
    };
    text.lines().skip(headings).map(split).collect()
}
