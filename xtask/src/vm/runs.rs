//! Runs scenarios, each in a guest of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::tally::{Counts, Names};

use super::guest::Guest;
use super::probe::Probes;
use super::scenario::Scenario;
use super::scratch::Scratch;
use super::{Program, SKIP_STATUS, fill_share};

/// A scenario and the kernel that it runs on.
pub(super) type Run<'a> = (&'a Scenario, &'a str);

/// Runs scenarios, so many at a time, and shows what comes of each when it is over; alone, while it runs.
pub(super) fn run_scenarios(
    image: &Path,
    runs: &[Run<'_>],
    program: Program,
    at_once: usize,
) -> Result<(Counts, Names), String> {
    let share = Scratch::new("share")?;
    let wanted: BTreeSet<&str> = runs
        .iter()
        .flat_map(|(scenario, _)| scenario.needs.iter().map(String::as_str))
        .collect();
    fill_share(share.path(), &wanted, program)?;
    let mut counts = Counts::default();
    let mut names = Names::default();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (sender, ended) = mpsc::channel();
        for _ in 0..at_once {
            let (sender, next, share) = (sender.clone(), &next, share.path());
            scope.spawn(move || {
                while let Some((scenario, kernel)) = runs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let mut screen = Screen::new(at_once == 1);
                    let began = Instant::now();
                    let (verdict, skips) = run_one(image, scenario, kernel, share, &mut screen);
                    let name = (scenario.name.as_str(), *kernel);
                    let over = Ended {
                        verdict,
                        skips,
                        took: began.elapsed(),
                        said: screen.held,
                    };
                    if sender.send((name, over)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (name, over) in ended {
            over.tell(name, &mut counts, &mut names);
        }
    });
    Ok((counts, names))
}

/// What is to be seen of a scenario: at once, or held until it is over, so that two do not mix.
struct Screen {
    is_live: bool,
    held: Vec<String>,
}

impl Screen {
    const fn new(is_live: bool) -> Self {
        let held = Vec::new();
        Self { is_live, held }
    }

    fn show(&mut self, line: String) {
        match self.is_live {
            true => println!("{line}"),
            false => self.held.push(line),
        }
    }
}

/// One that is over.
struct Ended {
    verdict: Verdict,
    skips: Vec<String>,
    took: Duration,
    said: Vec<String>,
}

impl Ended {
    fn tell(self, (name, kernel): (&str, &str), counts: &mut Counts, names: &mut Names) {
        for line in self.said {
            println!("{line}");
        }
        if let Verdict::Failed(reason) = &self.verdict {
            names.failed.push(format!("{name} on {kernel}: {reason}"));
        }
        let (word, count) = match &self.verdict {
            Verdict::Passed => ("passed".to_owned(), &mut counts.passed),
            Verdict::Failed(reason) => (format!("FAILED ({reason})"), &mut counts.failed),
            Verdict::Skipped(reason) => (format!("skipped ({reason})"), &mut counts.skipped),
        };
        *count += 1;
        let took = self.took.as_secs_f64();
        println!("{name:<20} {kernel:<8} {took:>7.1} s  {word}");
        for skip in self.skips {
            // A test left out inside a scenario that passed is no pass either.
            if matches!(self.verdict, Verdict::Passed) {
                counts.skipped += 1;
            }
            println!("  SKIPPED: {skip}");
            names.skipped.push(format!("{name} on {kernel}: {skip}"));
        }
    }
}

/// Last lines of a failed scenario that are shown.
const LINES_SHOWN: usize = 60;

enum Verdict {
    Passed,
    Failed(String),
    Skipped(String),
}

fn run_one(
    image: &Path,
    scenario: &Scenario,
    kernel: &str,
    share: &Path,
    screen: &mut Screen,
) -> (Verdict, Vec<String>) {
    let mut skips = Vec::new();
    let directory = match Scratch::new(&format!("{}-{kernel}", scenario.name)) {
        Ok(directory) => directory,
        Err(text) => return (Verdict::Failed(text), skips),
    };
    let mut machine = scenario.machine.clone();
    machine.kernel = kernel.to_owned();
    machine.share = Some(share.to_path_buf());
    let command = format!("exec bash /host/tests/{}.sh", scenario.name);
    let mut output = String::new();
    let mut attempt = |path: &Path, screen: &mut Screen| -> Result<i32, (String, bool)> {
        output.clear();
        skips.clear();
        // QEMU or the kernel under it may die before anything is tested.
        let mut guest = Guest::start(image, &machine, path).map_err(|text| (text, true))?;
        let mut probes = Probes::new(guest.forwarded().clone());
        let status = guest.run(&command, scenario.bound, |line| {
            if let Some(said) = probes.take(line) {
                screen.show(format!("  {said}"));
            }
            if line.starts_with("table: ") {
                screen.show(format!("  {}", line.trim_start_matches("table: ")));
            }
            if let Some(skip) = line.trim_start().strip_prefix("SKIPPED: ") {
                skips.push(skip.to_owned());
            }
            output.push_str(line);
            output.push('\n');
        });
        let broken = probes.broken.join("; ");
        match status {
            Ok(0) if !broken.is_empty() => Err((broken, false)),
            status => status.map_err(|text| (text, guest.emulator_crashed())),
        }
    };
    let mut status = attempt(directory.path(), screen);
    if let Err((trouble, true)) = &status {
        // The emulator's own death says nothing of what is tested; twice is no accident.
        screen.show(format!("  started once more: {trouble}"));
        let again = directory.path().join("again");
        status = fs::create_dir(&again)
            .map_err(|error| (format!("make {}: {error}", again.display()), false))
            .and_then(|()| attempt(&again, screen));
    }
    let reason = match status {
        Ok(0) => return (Verdict::Passed, skips),
        Ok(SKIP_STATUS) => {
            let reason = skips
                .last()
                .cloned()
                .unwrap_or_else(|| "no reason given".to_owned());
            return (Verdict::Skipped(reason), skips);
        }
        Ok(status) => format!("exit status {status}"),
        Err((text, _)) => text,
    };
    // Where a log is all that is left of a run, the file is not.
    let lines: Vec<&str> = output.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(LINES_SHOWN)) {
        screen.show(format!("  | {line}"));
    }
    let kept = directory.keep(&output);
    (Verdict::Failed(format!("{reason}; log: {kept}")), skips)
}
