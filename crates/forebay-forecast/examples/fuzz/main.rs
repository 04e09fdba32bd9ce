//! Throws random sequences of public calls at all forecasters and readers of bytes.
//!
//!     cargo run --release -p forebay-forecast --example fuzz -- --seconds 60 --seed 1
//!     cargo run --release -p forebay-forecast --example fuzz -- --case 12345
//!
//! A case is one subject and some hundred calls, all drawn from one number. What must hold: no
//! call panics, and every answer is finite, in order and not negative. The first case that breaks
//! it is printed, and `--case` runs it again.

mod subject;

use std::io::{self, Write};
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use subject::run;

const USAGE: &str = "usage: fuzz [--seconds N] [--seed S] [--case C]";

fn main() -> ExitCode {
    let (mut seconds, mut seed, mut only) = (10, 1, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let number = arguments.next().and_then(|text| text.parse::<u64>().ok());
        match (name.as_str(), number) {
            ("--seconds", Some(number)) => seconds = number,
            ("--seed", Some(number)) => seed = number,
            ("--case", Some(number)) => only = Some(number),
            _ => {
                say(&format!("`{name}` with a number is not an option\n{USAGE}"));
                return ExitCode::from(2);
            }
        }
    }
    if let Some(case) = only {
        return try_one(case);
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut cases = fastrand::Rng::with_seed(seed);
    let mut passed = 0_u64;
    while Instant::now() < end {
        let case = cases.u64(..);
        if try_one(case) == ExitCode::FAILURE {
            say(&format!("seed {seed}: {passed} cases passed before"));
            return ExitCode::FAILURE;
        }
        passed += 1;
    }
    say(&format!("seed {seed}: {passed} cases, none broke anything"));
    ExitCode::SUCCESS
}

fn try_one(case: u64) -> ExitCode {
    match catch_unwind(|| run(case)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(what)) => {
            say(&format!("case {case}: {what}\nagain: --case {case}"));
            ExitCode::FAILURE
        }
        Err(_) => {
            say(&format!("case {case} panicked\nagain: --case {case}"));
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) {
    // Nobody reads it; the exit status says the same.
    writeln!(io::stderr(), "{text}").ok();
}
