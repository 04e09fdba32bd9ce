//! Runs a simulated fleet in three arms on the same load, and prints a table.
//!
//!     cargo xtask sim fleet --hosts 1000 --apps 10000 --hours 24 --seed 1 --json fleet.json
//!     cargo xtask sim fleet --hosts 100 --apps 1000 --hours 12 --faults --arm forecast --seeds 20

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use forebay_sim::fleet::{Arm, Options, Report, json, run, table};

const USAGE: &str = "\
usage: fleet [--hosts N] [--apps N] [--hours H] [--seed S] [--seeds COUNT] [--load PART,...]
             [--arm off|reactive|forecast] [--past-days D] [--faults] [--json FILE]";

/// Targets of the comparison.
const OFF_MIN: f64 = 5.0;
const REACTIVE_MIN: f64 = 1.5;

struct Asked {
    options: Options,
    seeds: u64,
    loads: Vec<f64>,
    arms: Vec<Arm>,
    json: Option<String>,
}

fn main() -> ExitCode {
    match asked(std::env::args().skip(1)) {
        Ok(asked) => play(&asked).unwrap_or_else(|error| {
            eprintln!("{error}");
            ExitCode::FAILURE
        }),
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn asked(mut words: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut asked = Asked {
        options: Options::of(100, 1000),
        seeds: 1,
        loads: vec![0.5],
        arms: vec![Arm::Off, Arm::Reactive, Arm::Forecast],
        json: None,
    };
    while let Some(name) = words.next() {
        if name == "--faults" {
            asked.options.faults = true;
            continue;
        }
        let value = words
            .next()
            .ok_or_else(|| format!("{name} needs a value"))?;
        let number = |least: u64, most: u64| {
            let number = value.parse::<u64>().ok();
            let number = number.filter(|number| (least..=most).contains(number));
            number.ok_or_else(|| format!("{name} {value}: give a number from {least} to {most}"))
        };
        let count = |least, most| {
            number(least, most).and_then(|n| usize::try_from(n).map_err(|error| error.to_string()))
        };
        match name.as_str() {
            "--hosts" => asked.options.hosts = count(2, 5_000)?,
            "--apps" => asked.options.apps = count(1, 100_000)?,
            "--hours" => asked.options.hours = number(1, 24 * 31)?,
            "--seed" => asked.options.seed = number(0, u64::MAX)?,
            "--seeds" => asked.seeds = number(1, 100_000)?,
            "--past-days" => asked.options.past_days = number(0, 31)?,
            "--json" => asked.json = Some(value),
            "--load" => {
                let parts = value.split(',').map(|part| part.parse::<f64>().ok());
                let loads = parts.map(|part| part.filter(|part| (0.01..=0.95).contains(part)));
                let loads: Option<Vec<f64>> = loads.collect();
                asked.loads = loads.ok_or_else(|| {
                    format!("--load {value}: give parts from 0.01 to 0.95, with commas between")
                })?;
            }
            "--arm" => {
                let arm = match value.as_str() {
                    "off" => Arm::Off,
                    "reactive" => Arm::Reactive,
                    "forecast" => Arm::Forecast,
                    _ => return Err(format!("no arm `{value}`")),
                };
                asked.arms = vec![arm];
            }
            _ => return Err(format!("`{name}` is not an option")),
        }
    }
    Ok(asked)
}

fn play(asked: &Asked) -> Result<ExitCode, String> {
    let mut runs = Vec::new();
    let mut met = true;
    let mut ratios = String::new();
    for load in &asked.loads {
        for seed in asked.options.seed..asked.options.seed.saturating_add(asked.seeds) {
            let mut of_this = Vec::new();
            for arm in &asked.arms {
                let began = Instant::now();
                let report = run(Options {
                    seed,
                    load: *load,
                    arm: *arm,
                    ..asked.options
                })
                .map_err(|failure| format!("broken: {failure}"))?;
                eprintln!(
                    "{arm}, seed {seed}, load {load}: {:.0} s",
                    began.elapsed().as_secs_f64()
                );
                of_this.push((report, began.elapsed()));
            }
            if let [(off, _), (reactive, _), (forecast, _)] = &of_this[..] {
                let (text, is_met) = ratio(off, reactive, forecast);
                ratios += &text;
                met &= is_met;
            }
            runs.extend(of_this);
        }
    }
    let text = format!("{}\n{ratios}", table(&runs));
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| format!("write the table: {error}"))?;
    if let Some(file) = &asked.json {
        std::fs::write(file, json(&runs)).map_err(|error| format!("write {file}: {error}"))?;
    }
    // With faults, what counts is that nothing breaks.
    Ok(match met || asked.options.faults {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn ratio(off: &Report, reactive: &Report, forecast: &Report) -> (String, bool) {
    let least = forecast.constrained_minutes().max(1e-3);
    let off = off.constrained_minutes() / least;
    let reactive = reactive.constrained_minutes() / least;
    let met = off >= OFF_MIN && reactive >= REACTIVE_MIN;
    let text = format!(
        "seed {}, load {:.2}: without offload {off:.1} times the constrained application-minutes of \
         forecast (target {OFF_MIN}), reactive {reactive:.2} times (target {REACTIVE_MIN}): {}\n",
        forecast.options.seed,
        forecast.options.load,
        if met { "met" } else { "missed" }
    );
    (text, met)
}
