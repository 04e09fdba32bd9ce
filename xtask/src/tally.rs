//! Counts what a test run printed, line by line.
//!
//! # Problem
//!
//! A test that finds no kernel feature to work on cannot tell the test runner
//! so: it prints `SKIPPED: name: reason` and returns, and is counted as passed.
//! This reader takes the runner's own summary and moves such tests from passed
//! to skipped, so that no skip is silent.
//!
//! # Properties
//!
//! A test counts as skipped at most once, however many lines it prints. Lines
//! of tests that failed do not count. The numbers come from the runner's
//! summary alone; without a summary nothing is counted. A test that failed and
//! passed when it was tried again is named, and more than [`FLAKY_MAX`] of
//! them are failures.

use std::process::ExitStatus;

/// So many tests may pass at the second try in one run: one of a thousand that work on real servers on a
/// busy machine meets something that it did not expect. More are not an accident.
const FLAKY_MAX: usize = 3;

/// What is in the status of a test that failed for good, in nextest's words.
const FAILED: [&str; 4] = ["FAIL", "TIMEOUT", "ABORT", "SIG"];

/// Whose output is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// One check that passes or fails by its exit status.
    Check,
    /// `cargo nextest run --success-output final --final-status-level skip`.
    Nextest,
    /// `cargo test -- --show-output`.
    Libtest,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Tests that are told by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// With the reason.
    pub(crate) skipped: Vec<String>,
    /// Failed, and passed when they were tried again.
    pub(crate) flaky: Vec<String>,
    pub(crate) failed: Vec<String>,
}

impl Names {
    pub(crate) fn add(&mut self, other: Self) {
        self.skipped.extend(other.skipped);
        self.flaky.extend(other.flaky);
        self.failed.extend(other.failed);
    }
}

/// Whether a line is worth showing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    Yes,
    No,
}

#[derive(Debug)]
pub(crate) struct Tally {
    dialect: Dialect,
    counts: Counts,
    /// Tests that passed by the runner's count but printed a skip.
    passed_in_name: u64,
    names: Names,
    /// The output of tests that passed has begun.
    in_successes: bool,
    /// The present test has been counted as skipped.
    counted: bool,
    muted: bool,
}

impl Tally {
    pub(crate) fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            counts: Counts::default(),
            passed_in_name: 0,
            names: Names::default(),
            in_successes: dialect == Dialect::Check,
            counted: false,
            muted: false,
        }
    }

    pub(crate) fn line(&mut self, line: &str) -> Show {
        let show = match self.dialect {
            Dialect::Check => Show::Yes,
            Dialect::Nextest => self.nextest(line),
            Dialect::Libtest => self.libtest(line),
        };
        if self.in_successes
            && let Some(skip) = line.trim_start().strip_prefix("SKIPPED: ")
        {
            self.names.skipped.push(skip.to_owned());
            self.passed_in_name += u64::from(!self.counted);
            self.counted = true;
        }
        show
    }

    /// The final counts and the names of what was skipped.
    ///
    /// A run that failed without any failed test (it did not compile, or a
    /// process died) counts as one failure.
    pub(crate) fn finish(mut self, status: ExitStatus) -> (Counts, Names) {
        if self.dialect == Dialect::Check {
            self.counts.passed = u64::from(status.success());
        }
        if !status.success() && self.counts.failed == 0 {
            self.counts.failed = 1;
        }
        let moved = self.passed_in_name.min(self.counts.passed);
        self.counts.passed -= moved;
        self.counts.skipped += moved;
        if self.names.flaky.len() > FLAKY_MAX {
            let flaky = u64::try_from(self.names.flaky.len()).unwrap_or(u64::MAX);
            let flaky = flaky.min(self.counts.passed);
            self.counts.passed -= flaky;
            self.counts.failed += flaky;
        }
        (self.counts, self.names)
    }

    /// After the summary nextest prints the output of every test that passed:
    /// it is read here, but only what is not about a passed test is shown.
    fn nextest(&mut self, line: &str) -> Show {
        if !self.in_successes {
            if let Some(summary) = line.strip_prefix("     Summary [") {
                self.counts = nextest_summary(summary);
                self.in_successes = true;
            }
            return Show::Yes;
        }
        if let Some((status, name)) = nextest_header(line) {
            self.counted = false;
            self.muted = matches!(status, "PASS" | "SKIP");
            if status == "SKIP" {
                self.names.skipped.push(format!("{name}: ignored"));
            }
            if status.starts_with("FLAKY") {
                self.names.flaky.push(name.to_owned());
            }
            if self.in_successes && FAILED.iter().any(|word| status.contains(word)) {
                self.names.failed.push(name.to_owned());
            }
        } else if line.starts_with(|first: char| !first.is_whitespace()) {
            self.muted = false;
        }
        if self.muted { Show::No } else { Show::Yes }
    }

    fn libtest(&mut self, line: &str) -> Show {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.counts.add(libtest_result(result));
            self.in_successes = false;
        } else if let Some((name, rest)) = libtest_ignored(line) {
            self.names.skipped.push(format!("{name}: ignored{rest}"));
        } else if line == "successes:" {
            self.in_successes = true;
        } else if line == "failures:" {
            self.in_successes = false;
        } else if line.starts_with("---- ") {
            self.counted = false;
        }
        if self.in_successes {
            Show::No
        } else {
            Show::Yes
        }
    }
}

/// `   0.091s] 5 tests run: 3 passed (1 slow), 2 failed, 1 skipped`
fn nextest_summary(text: &str) -> Counts {
    let mut counts = Counts::default();
    let Some((_, list)) = text.split_once(" run: ") else {
        return counts;
    };
    for (number, word) in numbered(list) {
        match word {
            "passed" => counts.passed += number,
            "skipped" => counts.skipped += number,
            _ => counts.failed += number,
        }
    }
    counts
}

/// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; ...`
fn libtest_result(text: &str) -> Counts {
    let mut counts = Counts::default();
    for (number, word) in numbered(text) {
        match word {
            "passed" => counts.passed += number,
            "failed" => counts.failed += number,
            "ignored" => counts.skipped += number,
            _ => {}
        }
    }
    counts
}

/// The `number word` pairs of a list, leaving out what stands in parentheses.
fn numbered(list: &str) -> impl Iterator<Item = (u64, &str)> {
    let outside = list
        .split('(')
        .map(|part| part.rsplit(')').next().unwrap_or(part));
    outside
        .flat_map(|part| part.split([',', ';', '.']))
        .filter_map(|item| {
            let (number, word) = item.trim().split_once(' ')?;
            Some((number.parse().ok()?, word.trim()))
        })
}

/// Status and name of `        PASS [   0.004s] (2/5) crate test::name`.
fn nextest_header(line: &str) -> Option<(&str, &str)> {
    let (status, rest) = line.trim_start().split_once(" [")?;
    let (_, rest) = rest.split_once("] (")?;
    let (_, name) = rest.split_once(") ")?;
    let capitals = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || " /-+".contains(c);
    (!status.is_empty() && status.chars().all(capitals)).then_some((status, name))
}

/// Name and reason of `test name ... ignored, reason`.
fn libtest_ignored(line: &str) -> Option<(&str, &str)> {
    let (name, state) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    Some((name, state.strip_prefix("ignored")?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const NEXTEST: &str = "\
    Starting 5 tests across 1 binary (1 test skipped)
        PASS [   0.004s] (3/5) nx t::sk
        FAIL [   0.091s] (5/5) nx t::bad
  stdout ───

    SKIPPED: bad: said before it failed
    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 5 filtered out

────────────
     Summary [   0.091s] 5 tests run: 3 passed (1 slow, 1 leaky), 1 failed, 1 timed out, 1 skipped
        PASS [   0.004s] (2/5) nx t::ok
  stdout ───

    test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 5 filtered out

        PASS [   0.004s] (3/5) nx t::sk
  stdout ───

    SKIPPED: sk: no root
    SKIPPED: sk again: no memory.high

        SKIP [         ] (───) nx t::ign
        FAIL [   0.091s] (5/5) nx t::bad
error: test run failed
";

    const LIBTEST: &str = "\
running 4 tests
test t::ok ... ok
test t::sk ... ok
test t::ign ... ignored, takes an hour
test t::bad ... FAILED

successes:

---- t::ok stdout ----
hello

---- t::sk stdout ----
SKIPPED: sk: no root

successes:
    t::ok
    t::sk

failures:

---- t::bad stdout ----
SKIPPED: bad: said before it failed

failures:
    t::bad

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 1 test
test src/lib.rs - (line 1) ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.09s
";

    const PASS: i32 = 0;
    const FAIL: i32 = 1 << 8;

    /// Checks the counts, the names and the lines left out of a run.
    fn check(dialect: Dialect, output: &str, status: i32, wanted: (u64, u64, u64), names: &[&str]) {
        let mut tally = Tally::new(dialect);
        for line in output.lines() {
            tally.line(line);
        }
        let (counts, told) = tally.finish(ExitStatus::from_raw(status));
        assert_eq!(
            (counts.passed, counts.failed, counts.skipped),
            wanted,
            "{output}"
        );
        assert_eq!(told.skipped, names, "{output}");
    }

    #[test]
    fn who_passes_at_the_second_try_is_named_and_few_may() {
        let finish = |flaky: usize| {
            let mut tally = Tally::new(Dialect::Nextest);
            let line =
                format!("     Summary [   9.1s] 9 tests run: 9 passed ({flaky} flaky), 0 skipped");
            tally.line("  TRY 1 FAIL [   0.020s] (1/9) nx t::a0");
            tally.line(&line);
            for number in 0..flaky {
                tally.line(&format!("   FLAKY 2/2 [   0.020s] (1/9) nx t::a{number}"));
            }
            tally.finish(ExitStatus::from_raw(PASS))
        };
        let (counts, names) = finish(1);
        assert_eq!((counts.passed, counts.failed), (9, 0));
        assert_eq!(names.flaky, ["nx t::a0"]);
        assert_eq!(finish(FLAKY_MAX).0.failed, 0);
        let (counts, names) = finish(FLAKY_MAX + 1);
        assert_eq!((counts.passed, counts.failed), (5, 4));
        assert_eq!(names.flaky.len(), 4);
    }

    #[test]
    fn nextest_runs_are_counted() {
        let skips = [
            "sk: no root",
            "sk again: no memory.high",
            "nx t::ign: ignored",
        ];
        check(Dialect::Nextest, NEXTEST, FAIL, (2, 2, 2), &skips);
        let cancelled =
            "     Summary [   1.2s] 3/5 tests run: 2 passed, 1 exec failed, 0 skipped\n";
        check(Dialect::Nextest, cancelled, FAIL, (2, 1, 0), &[]);
        let single = "     Summary [   1.2s] 1 test run: 1 passed, 0 skipped\n";
        check(Dialect::Nextest, single, PASS, (1, 0, 0), &[]);
    }

    #[test]
    fn what_failed_for_good_is_named_once() {
        let mut tally = Tally::new(Dialect::Nextest);
        let after =
            "  TRY 2 FAIL [   0.1s] (2/5) nx t::worse\n TRY 2 SIGKILL [   9.1s] (4/5) nx t::late\n";
        let before = "  TRY 1 FAIL [   0.1s] (2/5) nx t::worse\n";
        for line in before.lines().chain(NEXTEST.lines()).chain(after.lines()) {
            tally.line(line);
        }
        let (_, told) = tally.finish(ExitStatus::from_raw(FAIL));
        assert_eq!(told.failed, ["nx t::bad", "nx t::worse", "nx t::late"]);
    }

    #[test]
    fn libtest_runs_are_summed() {
        let skips = ["t::ign: ignored, takes an hour", "sk: no root"];
        check(Dialect::Libtest, LIBTEST, FAIL, (2, 1, 2), &skips);
    }

    #[test]
    fn a_run_that_dies_without_a_failed_test_is_one_failure() {
        let uncompiled = "error[E0308]: mismatched types\n";
        check(Dialect::Nextest, uncompiled, FAIL, (0, 1, 0), &[]);
        check(Dialect::Libtest, uncompiled, FAIL, (0, 1, 0), &[]);
        let died = "test result: ok. 2 passed; 0 failed; 0 ignored\nerror: SIGABRT\n";
        check(Dialect::Libtest, died, FAIL, (2, 1, 0), &[]);
    }

    #[test]
    fn a_check_passes_skips_or_fails_as_one() {
        check(Dialect::Check, "all well\n", PASS, (1, 0, 0), &[]);
        check(Dialect::Check, "error: no\n", FAIL, (0, 1, 0), &[]);
        let skip = "SKIPPED: chaos: needs root\n";
        check(
            Dialect::Check,
            skip,
            PASS,
            (0, 0, 1),
            &["chaos: needs root"],
        );
    }

    #[test]
    fn output_of_passed_tests_is_read_but_not_shown() {
        let shown = |dialect, output: &str| {
            let mut tally = Tally::new(dialect);
            let lines = output.lines().filter(|line| tally.line(line) == Show::Yes);
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let lines = shown(Dialect::Nextest, NEXTEST);
        assert!(!lines.iter().any(|line| line.contains("no root")));
        let last: Vec<_> = lines.iter().rev().take(2).rev().collect();
        assert_eq!(last[0], "        FAIL [   0.091s] (5/5) nx t::bad");
        assert_eq!(last[1], "error: test run failed");
        let lines = shown(Dialect::Libtest, LIBTEST);
        assert!(!lines.iter().any(|line| line.contains("hello")));
        assert!(lines.iter().any(|line| line == "---- t::bad stdout ----"));
    }
}
