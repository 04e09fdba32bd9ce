//! `cargo xtask test`: everything a change must pass.
//!
//! Each row of [`STEPS`] runs even when one before it failed, so that one run
//! shows all there is to repair. The last line printed is always
//! `N passed, N failed, N skipped`: each test counts, and so does each step
//! that is not a test run.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::{SHIPPED, WHOLE};
use crate::tally::{Counts, Dialect, Names, Show, Tally};
use crate::{Failure, criu, docs, fpga, fuzz, process, setup, tidy, vm, web, workspace};

struct Step {
    name: &'static str,
    when: When,
    work: Work,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    /// Not with `--quick`.
    Full,
}

enum Work {
    /// The system packages of the build.
    Setup,
    /// The dashboard's page.
    Web,
    /// The house rules.
    Tidy,
    /// The book, which has to be clean. A moment, once mdBook is there.
    Book,
    /// `cargo ARGS...`: passes with exit status 0; is skipped when it prints a
    /// line `SKIPPED: name: reason`.
    Cargo(&'static [&'static str]),
    /// A program of the release build, by its file there, and its arguments; read as [`Self::Cargo`].
    Release(&'static str, &'static [&'static str]),
    /// `cargo NAME ARGS...`, skipped where the toolchain lacks `cargo NAME`.
    Component(&'static str, &'static [&'static str]),
    /// All tests but those in documentation.
    Tests,
    /// The tests in documentation.
    DocTests,
    /// The fuzz targets, each for a short time.
    Fuzz,
    /// The scenarios in virtual machines.
    Guests,
    /// The tests of OpenCL, on an emulator of FPGAs.
    Fpga,
}

/// What runs, in this order.
///
/// Long checks of the release binary are rows of `Work::Release` after its build, with `When::Full`.
const STEPS: &[Step] = &[
    Step {
        name: "setup",
        when: When::Always,
        work: Work::Setup,
    },
    // Before anything is compiled: the program has the page in it.
    Step {
        name: "web",
        when: When::Always,
        work: Work::Web,
    },
    Step {
        name: "fmt",
        when: When::Always,
        work: Work::Component("fmt", &["--all", "--check"]),
    },
    Step {
        name: "tidy",
        when: When::Always,
        work: Work::Tidy,
    },
    Step {
        name: "book",
        when: When::Always,
        work: Work::Book,
    },
    Step {
        name: "clippy",
        when: When::Always,
        work: Work::Component(
            "clippy",
            &[
                WHOLE[0],
                WHOLE[1],
                WHOLE[2],
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        ),
    },
    Step {
        name: "tests",
        when: When::Always,
        work: Work::Tests,
    },
    Step {
        name: "doc tests",
        when: When::Always,
        work: Work::DocTests,
    },
    // All of it at once, so that nothing is compiled twice; no example or test, whose dependencies have more
    // features.
    Step {
        name: "release build",
        when: When::Full,
        work: Work::Cargo(&[
            "build", SHIPPED[0], SHIPPED[1], SHIPPED[2], SHIPPED[3], "--bin", "forebay", "--bin",
            "soak",
        ]),
    },
    // Each of these runs real processes and fails when a promise is broken or something is left.
    Step {
        name: "demo",
        when: When::Full,
        work: Work::Release("forebay", &["demo", "--seconds", "15"]),
    },
    Step {
        name: "chaos",
        when: When::Full,
        work: Work::Release("forebay", &["chaos", "--kills", "25"]),
    },
    Step {
        name: "examples",
        when: When::Full,
        work: Work::Cargo(&["run", "--package", "xtask", "--", "examples", "--quick"]),
    },
    Step {
        name: "soak",
        when: When::Full,
        work: Work::Release("soak", &["--ticks", "100000", "--seed", "2"]),
    },
    Step {
        name: "fuzz",
        when: When::Full,
        work: Work::Fuzz,
    },
    Step {
        name: "guests",
        when: When::Full,
        work: Work::Guests,
    },
    Step {
        name: "fpga emulator",
        when: When::Always,
        work: Work::Fpga,
    },
];

/// What one step brought.
struct Outcome {
    counts: Counts,
    names: Names,
}

impl Outcome {
    fn of_check(result: &Result<(), String>) -> Self {
        if let Err(text) = result {
            println!("{text}");
        }
        let counts = Counts {
            passed: u64::from(result.is_ok()),
            failed: u64::from(result.is_err()),
            skipped: 0,
        };
        Self {
            counts,
            names: Names::default(),
        }
    }

    fn skipped(step: &Step, reason: &str) -> Self {
        let counts = Counts {
            skipped: 1,
            ..Counts::default()
        };
        Self {
            counts,
            names: Names {
                skipped: vec![format!("{}: {reason}", step.name)],
                ..Names::default()
            },
        }
    }

    /// What is told by name; of a step that failed and named nothing, itself.
    fn named(self, step: &Step) -> Names {
        let mut names = self.names;
        if self.counts.failed > 0 && names.failed.is_empty() {
            names.failed.push(step.name.to_owned());
        }
        names
    }

    fn word(&self) -> &'static str {
        match self.counts {
            Counts { failed: 1.., .. } => "FAILED",
            Counts { passed: 0, .. } => "skipped",
            _ => "passed",
        }
    }
}

/// Which steps run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    Quick,
    Full,
    /// Only the dashboard's page, in a browser.
    Web,
    /// Only what an emulator of FPGAs computes, which is fetched for that.
    Fpga,
}

pub(crate) fn parse(arguments: &[String]) -> Result<Extent, Failure> {
    match arguments {
        [] => Ok(Extent::Full),
        [flag] if flag == "--quick" => Ok(Extent::Quick),
        [part] if part == "web" => Ok(Extent::Web),
        [flag] if flag == "--fpga-emulator" => Ok(Extent::Fpga),
        other => Err(Failure::Usage(format!(
            "test takes only --quick, --fpga-emulator or web, not `{}`",
            other.join(" ")
        ))),
    }
}

pub(crate) fn run(extent: Extent) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let mut total = Counts::default();
    let mut names = Names::default();
    for step in STEPS.iter().filter(|step| is_part(step, extent)) {
        println!("== {}", step.name);
        let start = Instant::now();
        let outcome = perform(step, extent);
        let wall = start.elapsed();
        println!("== {}: {} in {}", step.name, outcome.word(), seconds(wall));
        total.add(outcome.counts);
        rows.push(row(step.name, &outcome, wall));
        names.add(outcome.named(step));
    }
    println!();
    for name in names.skipped {
        println!("skipped: {name}");
    }
    for name in names.flaky {
        println!("flaky: {name}: it failed, and passed when it was tried again");
    }
    // What somebody needs who sees only the end.
    println!("{}", rows.join("\n"));
    for name in names.failed {
        println!("failed: {name}");
    }
    let Counts {
        passed,
        failed,
        skipped,
    } = total;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed == 0 {
        Ok(())
    } else {
        Err(Failure::Checks)
    }
}

/// Whether a step is run, or named as left out. The emulator is asked for by name alone.
fn is_part(step: &Step, extent: Extent) -> bool {
    match extent {
        Extent::Quick | Extent::Full => !matches!(step.work, Work::Fpga),
        Extent::Web => matches!(step.work, Work::Setup | Work::Web | Work::Tests),
        Extent::Fpga => matches!(step.work, Work::Setup | Work::Fpga),
    }
}

fn perform(step: &Step, extent: Extent) -> Outcome {
    if step.when == When::Full && extent == Extent::Quick {
        return Outcome::skipped(step, "left out by --quick");
    }
    match step.work {
        Work::Setup => {
            let result = setup::ensure(setup::Group::Build);
            setup::ensure_components();
            criu::ensure();
            setup::say_which_test_runner();
            Outcome::of_check(&result)
        }
        Work::Web => match web::build() {
            Ok(()) => Outcome::of_check(&Ok(())),
            Err(text) => Outcome::skipped(step, &text),
        },
        Work::Tidy => {
            Outcome::of_check(&tidy::check(&process::repository()).and_then(|findings| {
                if findings.is_empty() {
                    Ok(())
                } else {
                    Err(findings.join("\n"))
                }
            }))
        }
        Work::Book => match docs::mdbook() {
            Ok(mdbook) => Outcome::of_check(&docs::build(&mdbook)),
            Err(text) => Outcome::skipped(step, &text),
        },
        Work::Cargo(arguments) => read(Dialect::Check, process::cargo(arguments)),
        Work::Release(program, arguments) => match release(program) {
            Ok(mut command) => {
                command.args(arguments);
                read(Dialect::Check, command)
            }
            Err(text) => Outcome::of_check(&Err(text)),
        },
        Work::Component(name, _) if !setup::has_cargo_command(name) => {
            Outcome::skipped(step, "this toolchain lacks it; install it with rustup")
        }
        Work::Component(name, arguments) => read(
            Dialect::Check,
            process::cargo(&[&[name], arguments].concat()),
        ),
        Work::Tests if setup::has_cargo_command("nextest") => {
            let mut command = process::cargo(NEXTEST);
            command.arg(format!("--test-threads={}", at_once()));
            if extent == Extent::Web {
                command.args(["-E", "test(dashboard)"]);
            }
            read(Dialect::Nextest, command)
        }
        Work::Tests => read(Dialect::Libtest, process::cargo(LIBTEST)),
        Work::DocTests => read(Dialect::Libtest, process::cargo(DOC_TESTS)),
        Work::Fpga => match fpga::tests() {
            Ok(command) => read(Dialect::Nextest, command),
            Err(text) => Outcome::of_check(&Err(text)),
        },
        Work::Fuzz => match fuzz::step() {
            Ok(counts) => Outcome {
                counts,
                names: Names::default(),
            },
            Err(text) => Outcome::of_check(&Err(text)),
        },
        Work::Guests => match vm::step() {
            Ok((counts, names)) => Outcome { counts, names },
            Err(text) => Outcome::of_check(&Err(text)),
        },
    }
}

/// Tests that run at a time. Most wait for daemons, servers and their clocks: with one for each processor
/// these stood still two thirds of the time, with two for each they fail for want of one.
fn at_once() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    cpus + cpus.div_ceil(2)
}

/// The output of passed tests is wanted because skips stand in it.
const NEXTEST: &[&str] = &[
    "nextest",
    "run",
    WHOLE[0],
    WHOLE[1],
    WHOLE[2],
    "--profile=routine",
    "--no-fail-fast",
    // What fails once is told by name: see `tally`.
    "--retries=1",
    "--success-output=final",
    "--failure-output=immediate",
    "--status-level=pass",
    "--final-status-level=skip",
];
const LIBTEST: &[&str] = &[
    "test",
    WHOLE[0],
    WHOLE[1],
    WHOLE[2],
    "--tests",
    "--no-fail-fast",
    "--",
    "--show-output",
];
const DOC_TESTS: &[&str] = &[
    "test",
    WHOLE[0],
    WHOLE[1],
    WHOLE[2],
    "--doc",
    "--no-fail-fast",
    "--",
    "--show-output",
];

/// A program that the step of the release build has made.
fn release(program: &str) -> Result<Command, String> {
    let built = workspace::read()?.target_directory.join("release");
    let mut command = Command::new(built.join(program));
    command.current_dir(process::repository());
    Ok(command)
}

/// Runs what says lines, shows them and counts what they say.
fn read(dialect: Dialect, mut command: Command) -> Outcome {
    command.env("CARGO_TERM_COLOR", "never");
    let mut tally = Tally::new(dialect);
    let status = process::run_lines(command, |line| {
        if tally.line(line) == Show::Yes {
            println!("{line}");
        }
    });
    match status {
        Ok(status) => {
            let (counts, names) = tally.finish(status);
            Outcome { counts, names }
        }
        Err(text) => Outcome::of_check(&Err(text)),
    }
}

fn row(name: &str, outcome: &Outcome, wall: Duration) -> String {
    let Counts {
        passed,
        failed,
        skipped,
    } = outcome.counts;
    let counts = format!("{passed} passed, {failed} failed, {skipped} skipped");
    format!(
        "{name:<16} {:<8} {:>9}  {counts}",
        outcome.word(),
        seconds(wall)
    )
}

fn seconds(wall: Duration) -> String {
    format!("{:.1} s", wall.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_options_are_known() {
        assert!(matches!(parse(&[]), Ok(Extent::Full)));
        assert!(matches!(parse(&["--quick".into()]), Ok(Extent::Quick)));
        assert!(matches!(parse(&["web".into()]), Ok(Extent::Web)));
        let fpga = parse(&["--fpga-emulator".into()]);
        assert!(matches!(fpga, Ok(Extent::Fpga)));
        assert!(matches!(parse(&["--fast".into()]), Err(Failure::Usage(_))));
    }

    #[test]
    fn the_emulator_is_part_of_nothing_that_does_not_name_it() {
        let names = |extent| {
            let steps = STEPS.iter().filter(|step| is_part(step, extent));
            steps.map(|step| step.name).collect::<Vec<_>>()
        };
        assert_eq!(names(Extent::Fpga), ["setup", "fpga emulator"]);
        for extent in [Extent::Quick, Extent::Full, Extent::Web] {
            assert!(!names(extent).contains(&"fpga emulator"));
        }
    }

    #[test]
    fn quick_names_what_it_leaves_out() {
        for step in STEPS.iter().filter(|step| step.when == When::Full) {
            let outcome = perform(step, Extent::Quick);
            assert_eq!(outcome.word(), "skipped");
            assert_eq!(
                outcome.names.skipped,
                [format!("{}: left out by --quick", step.name)]
            );
        }
    }

    #[test]
    fn a_step_is_failed_by_one_failure_and_passed_by_one_pass() {
        let outcome = |passed, failed, skipped| Outcome {
            counts: Counts {
                passed,
                failed,
                skipped,
            },
            names: Names::default(),
        };
        assert_eq!(outcome(9, 1, 0).word(), "FAILED");
        assert_eq!(outcome(1, 0, 9).word(), "passed");
        assert_eq!(outcome(0, 0, 1).word(), "skipped");
    }
}
