//! `cargo xtask vm`: virtual machines to test on.
//!
//! A guest is QEMU without acceleration, so it runs everywhere; it has a kernel
//! of Debian's, control groups v2 only, and the machine shape that a scenario
//! names. Scenarios are the files `tests/vm/*.sh`; `CONTRIBUTING.md` says how to
//! add one.

mod guest;
mod image;
mod probe;
mod scenario;
mod scratch;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::json::{self, Json};
use crate::tally::{Counts, Names};
use crate::{Failure, dist, process, workspace};

use guest::{Guest, Machine};
use probe::Probes;
use scenario::Scenario;
use scratch::Scratch;

const HELP: &str = "\
Virtual machines to test on

  cargo xtask vm build                    build the guest image, if it is not there
  cargo xtask vm run [OPTIONS] -- CMD...  a fresh guest: run CMD in it, power off
  cargo xtask vm test [--list] [--release] [NAME[@KERNEL]...]
                                          the scenarios of tests/vm; --release: with the optimised program,
                                          where times count

Options of run: --kernel stable|old, --init systemd|bare, --smp N, --mem MIB,
--packed (the kernel unpacks itself, as one that a boot loader starts), --numa (two nodes), --disk SIZE or SIZE@RATE (repeatable; 64M@8M serves 8 MiB/s),
--share DIR (on /host), --reboots (it may begin anew; CMD is run again then),
--forward PORT (repeatable: a port of the guest that this host reaches)

FOREBAY_VM_CACHE names the directory of the image (/var/cache/forebay-vm).
";

/// How long a command of `vm run` may take.
const RUN_BOUND: Duration = Duration::from_secs(3600);

/// The test binaries that scenarios find in /host/bin where they name them: by package, the names of the tests.
const TEST_BINARIES: &[(&str, &[&str])] = &[
    (
        "forebay-host",
        &[
            "contract",
            "kernel",
            "crash",
            "freeze",
            "network",
            "oom",
            "partition",
        ],
    ),
    ("forebay", &["daemon"]),
];

/// A scenario exits with this status when the guest lacks what it needs.
const SKIP_STATUS: i32 = 77;

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode, Failure> {
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", arguments),
    };
    match command {
        "build" if rest.is_empty() => {
            image::ensure()?;
            Ok(ExitCode::SUCCESS)
        }
        "run" => run_command(rest),
        "test" => test_command(rest),
        "help" | "--help" => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(Failure::Usage(format!(
            "vm does not understand `{}`",
            arguments.join(" ")
        ))),
    }
}

fn run_command(arguments: &[String]) -> Result<ExitCode, Failure> {
    let end = arguments.iter().position(|word| word == "--");
    let Some((options, [_, command @ ..])) = end.map(|at| arguments.split_at(at)) else {
        return Err(Failure::Usage("vm run needs `-- CMD`".to_owned()));
    };
    let machine = Machine::parse(options).map_err(Failure::Usage)?;
    let image = image::ensure()?;
    let directory = Scratch::new("run")?;
    let mut guest = Guest::start(&image, &machine, directory.path())?;
    let status = guest.run(&command.join(" "), RUN_BOUND, |line| println!("{line}"))?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}

fn test_command(arguments: &[String]) -> Result<ExitCode, Failure> {
    let (options, names): (Vec<&str>, Vec<&str>) = arguments
        .iter()
        .map(String::as_str)
        .partition(|word| word.starts_with("--"));
    let (list, program) = read_options(&options)?;
    let scenarios = scenario::all()?;
    let mut asked: Vec<(&str, Option<&str>)> = Vec::new();
    for name in &names {
        let (name, kernel) = match name.split_once('@') {
            Some((name, kernel)) => (name, Some(kernel)),
            None => (*name, None),
        };
        let has = |each: &Scenario| {
            kernel.is_none_or(|kernel| each.kernels.iter().any(|other| other == kernel))
        };
        let fits = |each: &Scenario| each.name == name && has(each);
        if !scenarios.iter().any(fits) {
            let on = kernel.map_or_else(String::new, |kernel| format!(" on kernel `{kernel}`"));
            return Err(Failure::Usage(format!(
                "no scenario `{name}`{on}; `cargo xtask vm test --list` names them"
            )));
        }
        asked.push((name, kernel));
    }
    let is_asked = |each: &Scenario, on: Option<&str>| {
        let fits = |(name, kernel): &(&str, Option<&str>)| {
            *name == each.name && (on.is_none() || kernel.is_none() || *kernel == on)
        };
        asked.is_empty() || asked.iter().any(fits)
    };
    let wanted: Vec<&Scenario> = scenarios
        .iter()
        .filter(|each| is_asked(each, None))
        .collect();
    if list {
        for each in wanted {
            println!(
                "{:<20} {:<12} {}",
                each.name,
                each.kernels.join(","),
                each.about
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    let runs: Vec<Run<'_>> = wanted
        .into_iter()
        .flat_map(|scenario| {
            scenario
                .kernels
                .iter()
                .map(move |kernel| (scenario, &**kernel))
        })
        .filter(|(scenario, kernel)| is_asked(scenario, Some(kernel)))
        .collect();
    let (counts, _) = run_scenarios(&image::ensure()?, &runs, program)?;
    let Counts {
        passed,
        failed,
        skipped,
    } = counts;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// What `vm test` was asked for: only names, and which program.
fn read_options(options: &[&str]) -> Result<(bool, Program), Failure> {
    let mut asked = (false, Program::OfTheTests);
    for option in options {
        match *option {
            "--list" => asked.0 = true,
            "--release" => asked.1 = Program::Optimised,
            other => {
                return Err(Failure::Usage(format!(
                    "vm test does not understand `{other}`"
                )));
            }
        }
    }
    Ok(asked)
}

/// The program that guests find in /host/bin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    /// The one that the tests were compiled with.
    OfTheTests,
    Optimised,
}

/// The scenarios as a step of `cargo xtask test`, on the kernels that each names for it. What is
/// left out, and all where there can be no guest, is skipped with the reason.
pub(crate) fn step() -> Result<(Counts, Names), String> {
    let scenarios = scenario::all()?;
    let skip = |skipped: Vec<String>| {
        let counts = Counts {
            skipped: skipped.len() as u64,
            ..Counts::default()
        };
        let names = Names {
            skipped,
            ..Names::default()
        };
        (counts, names)
    };
    let named = |reason: &str, left_out: bool| -> Vec<String> {
        let runs = scenarios.iter().flat_map(|scenario| {
            let kernels = scenario.kernels.iter();
            kernels.map(move |kernel| (scenario, kernel))
        });
        runs.filter(|(scenario, kernel)| !left_out || !scenario.routine.contains(kernel))
            .map(|(scenario, kernel)| format!("{} on {kernel}: {reason}", scenario.name))
            .collect()
    };
    let image = match image::ensure() {
        Ok(image) => image,
        Err(reason) => return Ok(skip(named(&reason, false))),
    };
    let runs: Vec<Run<'_>> = scenarios
        .iter()
        .flat_map(|scenario| {
            scenario
                .routine
                .iter()
                .map(move |kernel| (scenario, &**kernel))
        })
        .collect();
    let (mut counts, mut names) = run_scenarios(&image, &runs, Program::OfTheTests)?;
    let (more, left_out) = skip(named("left to `cargo xtask vm test`", true));
    counts.skipped += more.skipped;
    for name in &left_out.skipped {
        println!("  SKIPPED: {name}");
    }
    names.add(left_out);
    Ok((counts, names))
}

/// A scenario and the kernel that it runs on.
type Run<'a> = (&'a Scenario, &'a str);

fn run_scenarios(
    image: &Path,
    runs: &[Run<'_>],
    program: Program,
) -> Result<(Counts, Names), String> {
    let share = Scratch::new("share")?;
    let wanted: BTreeSet<&str> = runs
        .iter()
        .flat_map(|(scenario, _)| scenario.needs.iter().map(String::as_str))
        .collect();
    fill_share(share.path(), &wanted, program)?;
    let mut counts = Counts::default();
    let mut names = Names::default();
    // A guest keeps two processors busy: two at a time took four fifths as long in all, and each half as long again.
    for (scenario, kernel) in runs {
        let began = Instant::now();
        let (verdict, skips) = run_one(image, scenario, kernel, share.path());
        if let Verdict::Failed(reason) = &verdict {
            let name = &scenario.name;
            names.failed.push(format!("{name} on {kernel}: {reason}"));
        }
        let (word, count) = match &verdict {
            Verdict::Passed => ("passed".to_owned(), &mut counts.passed),
            Verdict::Failed(reason) => (format!("FAILED ({reason})"), &mut counts.failed),
            Verdict::Skipped(reason) => (format!("skipped ({reason})"), &mut counts.skipped),
        };
        *count += 1;
        println!(
            "{:<20} {kernel:<8} {:>7.1} s  {word}",
            scenario.name,
            began.elapsed().as_secs_f64()
        );
        for skip in skips {
            // A test left out inside a scenario that passed is no pass either.
            if matches!(verdict, Verdict::Passed) {
                counts.skipped += 1;
            }
            println!("  SKIPPED: {skip}");
            names
                .skipped
                .push(format!("{} on {kernel}: {skip}", scenario.name));
        }
    }
    Ok((counts, names))
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
    let mut attempt = |path: &Path| -> Result<i32, (String, bool)> {
        output.clear();
        skips.clear();
        // QEMU or the kernel under it may die before anything is tested.
        let mut guest = Guest::start(image, &machine, path).map_err(|text| (text, true))?;
        let mut probes = Probes::new(guest.forwarded().clone());
        let status = guest.run(&command, scenario.bound, |line| {
            if let Some(said) = probes.take(line) {
                println!("  {said}");
            }
            if line.starts_with("table: ") {
                println!("  {}", line.trim_start_matches("table: "));
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
    let mut status = attempt(directory.path());
    if let Err((trouble, true)) = &status {
        // The emulator's own death says nothing of what is tested; twice is no accident.
        println!("  started once more: {trouble}");
        let again = directory.path().join("again");
        status = fs::create_dir(&again)
            .map_err(|error| (format!("make {}: {error}", again.display()), false))
            .and_then(|()| attempt(&again));
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
        println!("  | {line}");
    }
    let kept = directory.keep(&output);
    (Verdict::Failed(format!("{reason}; log: {kept}")), skips)
}

/// Puts what scenarios need into the folder that guests share: the program, the scenarios, and
/// the test binaries and the package where they are wanted. Without debug information: a guest reads slowly.
fn fill_share(share: &Path, wanted: &BTreeSet<&str>, program: Program) -> Result<(), String> {
    // With the tests, as the suite has it: alone it would have fewer features, and all be compiled once more.
    process::succeed(process::cargo_whole(&["test", "--no-run"]).args(["--test", "daemon"]))?;
    let built = match program {
        Program::OfTheTests => workspace::read()?.target_directory.join("debug/forebay"),
        Program::Optimised => crate::build_forebay()?,
    };
    if wanted.contains("package") {
        // What people install; a guest would unpack the unoptimised one for longer than it runs it.
        dist::debian(&crate::build_forebay()?, share)?;
    }
    let mut binaries = vec![("forebay".to_owned(), built)];
    binaries.extend(test_binaries(wanted)?);
    let bin = share.join("bin");
    fs::create_dir_all(&bin).map_err(|error| format!("make {}: {error}", bin.display()))?;
    for (name, path) in binaries {
        let mut strip = Command::new("strip");
        strip
            .arg("--strip-debug")
            .arg("-o")
            .arg(bin.join(name))
            .arg(path);
        process::succeed(&mut strip)?;
    }
    let mut copy = Command::new("cp");
    copy.arg("-r")
        .arg(scenario::directory())
        .arg(share.join("tests"));
    process::succeed(&mut copy)
}

/// Compiles the tests that run in guests; the binaries by name.
fn test_binaries(asked: &BTreeSet<&str>) -> Result<Vec<(String, PathBuf)>, String> {
    let mut command = process::cargo_whole(&["test", "--no-run", "--message-format=json"]);
    let wanted = TEST_BINARIES
        .iter()
        .flat_map(|(package, names)| names.iter().map(move |name| (*package, *name)))
        .filter(|(_, name)| asked.contains(name));
    if wanted.clone().next().is_none() {
        return Ok(Vec::new());
    }
    for (_, name) in wanted.clone() {
        command.args(["--test", name]);
    }
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|error| format!("run `{}`: {error}", process::describe(&command)))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let messages: Vec<Json> = text
        .lines()
        .filter_map(|line| json::parse(line).ok())
        .collect();
    wanted
        .map(|(package, name)| {
            // Two packages may have a test of one name.
            let is_it = |message: &&Json| {
                let id = message.get("package_id").text().unwrap_or_default();
                id.contains(&format!("/{package}#"))
                    && message.get("target").get("name").text() == Some(name)
            };
            let path = messages
                .iter()
                .filter(is_it)
                .find_map(|message| message.get("executable").text());
            let path =
                path.ok_or_else(|| format!("compile test `{name}` of {package}: no binary"))?;
            Ok((name.to_owned(), PathBuf::from(path)))
        })
        .collect()
}
