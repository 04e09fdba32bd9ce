//! `cargo xtask fuzz`: random bytes, guided by coverage, for the parsers that read what anybody may
//! send.
//!
//! The targets are those of `cargo fuzz` (`fuzz/`), which does the same with a nightly compiler and
//! its sanitizers. What is needed of it here, coverage, is in the stable compiler, so that the
//! routine needs neither.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tally::Counts;
use crate::{Failure, process, setup, workspace};

/// Counters at every edge, which libFuzzer reads, and the operands of comparisons, from which it
/// learns what a parser looks for.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1";
/// Longest input; what needs more is in the unit tests.
const BYTES_MAX: u32 = 4096;
/// One input may take so long, and everything so much memory.
const INPUT_SECONDS_MAX: u32 = 5;
const MEMORY_MIB_MAX: u32 = 1024;
/// Time of each target unless asked otherwise.
const SECONDS: u32 = 60;
/// Time of each target in the routine.
const ROUTINE_SECONDS: u32 = 8;

struct Request {
    targets: Vec<String>,
    seconds: u32,
}

pub(crate) fn run(arguments: &[String]) -> Result<(), Failure> {
    let known = targets()?;
    let request = parse(arguments, &known).map_err(Failure::Usage)?;
    let counts = fuzz(&request)?;
    if counts.failed == 0 {
        Ok(())
    } else {
        Err(Failure::Checks)
    }
}

/// All targets for a short time.
pub(crate) fn step() -> Result<Counts, String> {
    fuzz(&Request {
        targets: targets()?,
        seconds: ROUTINE_SECONDS,
    })
}

fn parse(arguments: &[String], known: &[String]) -> Result<Request, String> {
    let mut request = Request {
        targets: Vec::new(),
        seconds: SECONDS,
    };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == "--seconds" {
            let number = words.next().and_then(|text| text.parse().ok());
            request.seconds = number
                .filter(|seconds| *seconds > 0)
                .ok_or("--seconds needs a number of at least 1")?;
        } else if known.contains(word) {
            request.targets.push(word.clone());
        } else {
            let known = known.join(", ");
            return Err(format!("no fuzz target `{word}`; there are: {known}"));
        }
    }
    if request.targets.is_empty() {
        request.targets = known.to_vec();
    }
    Ok(request)
}

/// The names of all targets, in order.
fn targets() -> Result<Vec<String>, String> {
    let folder = process::repository().join("fuzz/fuzz_targets");
    let fail = |error: io::Error| format!("list {}: {error}", folder.display());
    let mut names = Vec::new();
    for entry in folder.read_dir().map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if let (Some(name), Some("rs")) = (
            path.file_stem().and_then(|name| name.to_str()),
            path.extension().and_then(|end| end.to_str()),
        ) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn fuzz(request: &Request) -> Result<Counts, String> {
    setup::ensure(setup::Group::Build)?;
    let place = workspace::read()?.target_directory.join("fuzz");
    let programs = build(&place)?;
    let mut counts = Counts::default();
    for target in &request.targets {
        match attack(target, request.seconds, &programs, &place) {
            Ok(said) => {
                println!("{target:<16} {:>4} s  passed  {said}", request.seconds);
                counts.passed += 1;
            }
            Err(why) => {
                println!("{target:<16} {:>4} s  FAILED  {why}", request.seconds);
                counts.failed += 1;
            }
        }
    }
    Ok(counts)
}

/// Builds all targets and says in which folder they are.
fn build(place: &Path) -> Result<PathBuf, String> {
    let host = host()?;
    let mut command = process::cargo(&["build", "--release", "--locked"]);
    command
        .args(["--manifest-path", "fuzz/Cargo.toml", "--target", &host])
        .arg("--target-dir")
        .arg(place)
        .env("RUSTFLAGS", RUSTFLAGS);
    process::succeed(&mut command)?;
    Ok(place.join(host).join("release"))
}

/// What the compiler compiles for here. It has to be named: flags would else be those of build
/// scripts, too.
fn host() -> Result<String, String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .map_err(|error| format!("run `rustc -vV`: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .ok_or_else(|| "read `rustc -vV`: it names no host".to_owned())
}

/// Runs one target; what is found stays in a folder that the error names.
fn attack(target: &str, seconds: u32, programs: &Path, place: &Path) -> Result<String, String> {
    let corpus = place.join("corpus").join(target);
    let found = place.join("found").join(target);
    for folder in [&corpus, &found] {
        std::fs::create_dir_all(folder)
            .map_err(|error| format!("make {}: {error}", folder.display()))?;
    }
    let mut command = Command::new(programs.join(target));
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={BYTES_MAX}"))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg(&corpus);
    let seeds = process::repository().join("fuzz/seeds").join(target);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    let mut lines = Vec::new();
    let status = process::run_lines(command, |line| lines.push(line.to_owned()))?;
    if status.success() {
        return Ok(summary(&lines));
    }
    let last = lines.len().saturating_sub(20);
    let said = lines.get(last..).unwrap_or_default().join("\n  ");
    let found = found.display();
    Err(format!("{status}; what broke it is in {found}:\n  {said}"))
}

/// Runs and edges reached, from what libFuzzer prints.
fn summary(lines: &[String]) -> String {
    let runs = lines.iter().rev().find_map(|line| {
        let rest = line.strip_prefix("Done ")?;
        Some(rest.split(' ').next()?.to_owned())
    });
    let edges = lines.iter().rev().find_map(|line| {
        let (_, rest) = line.split_once(" cov: ")?;
        Some(rest.split(' ').next()?.to_owned())
    });
    let unknown = || "?".to_owned();
    let (runs, edges) = (runs.unwrap_or_else(unknown), edges.unwrap_or_else(unknown));
    format!("{runs} inputs, {edges} edges")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn targets_are_named_or_all() {
        let known = words("a b");
        let check = |text: &str, expected: Result<(&str, u32), &str>| {
            let request = parse(&words(text), &known);
            let request = request.map(|request| (request.targets.join(" "), request.seconds));
            let expected = expected.map(|(targets, seconds)| (targets.to_owned(), seconds));
            assert_eq!(request, expected.map_err(str::to_owned), "{text}");
        };
        check("", Ok(("a b", 60)));
        check("b --seconds 3", Ok(("b", 3)));
        check("c", Err("no fuzz target `c`; there are: a, b"));
        check("--seconds 0", Err("--seconds needs a number of at least 1"));
    }

    #[test]
    fn every_target_is_built() {
        let manifest = process::repository().join("fuzz/Cargo.toml");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        let targets = targets().unwrap();
        assert!(!targets.is_empty());
        for target in targets {
            assert!(
                manifest.contains(&format!("name = \"{target}\"")),
                "{target}"
            );
        }
    }

    #[test]
    fn what_was_reached_is_read_from_the_last_lines() {
        let lines = [
            "#2\tINITED cov: 4 ft: 5 corp: 1/1b exec/s: 0 rss: 30Mb",
            "#900\tDONE   cov: 321 ft: 640 corp: 90/2Kb lim: 4096 exec/s: 0 rss: 40Mb",
            "Done 900 runs in 2 second(s)",
        ];
        let lines = lines.map(str::to_owned);
        assert_eq!(summary(&lines), "900 inputs, 321 edges");
    }
}
