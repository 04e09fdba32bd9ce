//! Runs many simulated control periods and says which invariant broke, with its seed.
//!
//!     cargo run --release -p forebay-sim --bin soak -- --ticks 1000000 --seed 1
//!     cargo run --release -p forebay-sim --bin soak -- --scenario-seed 12345

use std::process::ExitCode;
use std::time::Instant;

use forebay_sim::soak::{Options, replay, run};

const USAGE: &str = "usage: soak [--ticks N] [--seed S] [--scenario-seed S]";

fn main() -> ExitCode {
    let mut options = Options {
        ticks: 1_000_000,
        seed: 1,
    };
    let mut scenario = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|text| text.parse::<u64>().ok());
        match (name.as_str(), value) {
            ("--ticks", Some(ticks)) => options.ticks = ticks,
            ("--seed", Some(seed)) => options.seed = seed,
            ("--scenario-seed", Some(seed)) => scenario = Some(seed),
            _ => {
                eprintln!("`{name}` with a number is not an option\n{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    let began = Instant::now();
    let result = scenario.map_or_else(|| run(options), replay);
    match result {
        Ok(stats) => {
            let seconds = began.elapsed().as_secs_f64();
            eprintln!("{stats:#?}");
            eprintln!("seed {}: no invariant broken, {seconds:.1} s", options.seed);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!(
                "broken with seed {}: {failure}\nreplay: --scenario-seed {}",
                options.seed, failure.seed
            );
            ExitCode::FAILURE
        }
    }
}
