//! Whether a kernel is tried out before the host begins anew with it, and what that came to.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Record, Stage, System};

/// Rehearsals of one update that are begun: after that many were cut off nothing is known of the kernel.
pub const REHEARSALS_MAX: u32 = 2;

/// Whether a kernel is rehearsed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rehearse {
    /// Where that is possible.
    #[default]
    Auto,
    /// The host does not begin anew without.
    Required,
    /// It is not.
    Off,
}

impl Rehearse {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Required, Self::Off];

    /// What it is asked for by.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Required => "required",
            Self::Off => "off",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// What a rehearsal came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The kernel came up, and what was written down here went on there.
    Passed,
    /// It did not, and why.
    Failed(String),
    /// Nothing is known of the kernel, and why.
    Impossible(String),
}

impl Verdict {
    /// One word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::Impossible(_) => "impossible",
        }
    }

    /// Why, where it did not pass.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Passed => None,
            Self::Failed(why) | Self::Impossible(why) => Some(why),
        }
    }
}

/// A kernel that the host may begin anew with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its file.
    pub image: PathBuf,
    /// What the file says of itself, the release first: one build, and no other, says so. Absent where it is damaged.
    pub build: Option<String>,
    /// It is the one that runs.
    pub runs: bool,
}

impl Kernel {
    /// Its release, or its file where that does not say.
    #[must_use]
    pub fn name(&self) -> String {
        let build = self.build.as_deref().unwrap_or_default();
        match build.split_whitespace().next() {
            Some(release) => release.to_owned(),
            None => self.image.display().to_string(),
        }
    }
}

/// A rehearsal that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearsal {
    /// The kernel, by its release, or by its file where that does not say.
    pub kernel: String,
    /// What it came to.
    pub verdict: Verdict,
    /// How long it took; zero where none was made.
    pub took: Duration,
}

impl Rehearsal {
    /// One that was not made, and why.
    #[must_use]
    pub const fn impossible(kernel: String, why: String) -> Self {
        Self {
            kernel,
            verdict: Verdict::Impossible(why),
            took: Duration::ZERO,
        }
    }
}

impl Record {
    /// Notes that a rehearsal of this kernel is about to begin.
    ///
    /// # Errors
    /// What is known of the kernel where as many were cut off as are begun.
    pub fn begin_rehearsal(&mut self, kernel: &Kernel) -> Result<(), Rehearsal> {
        if self.rehearsals >= REHEARSALS_MAX {
            let why =
                format!("it was cut off {REHEARSALS_MAX} times, with the host or by somebody");
            return Err(Rehearsal::impossible(kernel.name(), why));
        }
        self.rehearsals += 1;
        self.rehearses = Some(kernel.image.clone());
        self.rehearses_build.clone_from(&kernel.build);
        Ok(())
    }

    /// Compares the kernel that the host is about to begin anew with, or why there is none, with the one that was
    /// rehearsed. Where it is another one, nothing is known of it: what is to be said where the host begins anew all the
    /// same.
    ///
    /// # Errors
    /// Why it does not begin anew, where it is not to without a rehearsal.
    pub fn begins_with(&mut self, next: Result<&Kernel, &str>) -> Result<Option<String>, String> {
        let is_wanted = self.order.keep && self.order.rehearse != Rehearse::Off;
        // Of others nothing is known anyway.
        let has_passed = |one: &Rehearsal| one.verdict == Verdict::Passed;
        if !is_wanted || !self.rehearsal.as_ref().is_none_or(has_passed) {
            return Ok(None);
        }
        let passed = match &self.rehearsal {
            Some(passed) => format!("kernel {} was rehearsed", passed.kernel),
            None => "the kernel that runs was found to be the newest".to_owned(),
        };
        let (name, why) = match next {
            Ok(next) if next.runs || self.has_rehearsed(next) => return Ok(None),
            Ok(next) if self.rehearses.as_ref() == Some(&next.image) => {
                (next.name(), format!("its file was replaced after {passed}"))
            }
            Ok(next) => (next.name(), format!("it came after {passed}")),
            Err(why) => ("that comes".to_owned(), format!("{passed}, and now: {why}")),
        };
        let said = format!("kernel {name} was not rehearsed: {why}");
        self.rehearsal = Some(Rehearsal::impossible(name, why));
        match self.order.rehearse {
            Rehearse::Required => Err(format!("{said}; `forebay update rehearse` tries it out")),
            Rehearse::Auto | Rehearse::Off => Ok(Some(said)),
        }
    }

    fn has_rehearsed(&self, kernel: &Kernel) -> bool {
        // Records of before do not say which build it was.
        let is_build = self.rehearses_build.is_none() || self.rehearses_build == kernel.build;
        self.rehearsal.is_some() && self.rehearses.as_ref() == Some(&kernel.image) && is_build
    }

    /// Once the command is done, and apps are to be kept or to run on: what comes.
    pub(super) fn before_departure(&self) -> Stage {
        match self.order.keep && self.order.rehearse != Rehearse::Off {
            true => Stage::Rehearsing,
            false => Stage::Departing,
        }
    }

    /// What comes after a rehearsal; none where the kernel is the one that runs. One that did not pass keeps the host up,
    /// and what undoes the command takes the kernel away: the firmware would start it one day.
    pub(super) fn rehearsed(&mut self, found: Option<Rehearsal>) -> Stage {
        let Some(found) = found else {
            return Stage::Departing;
        };
        let kernel = found.kernel.clone();
        let verdict = found.verdict.clone();
        self.rehearsal = Some(found);
        match verdict {
            Verdict::Passed => Stage::Departing,
            // What it came to is in the receipt.
            Verdict::Impossible(_) if self.order.rehearse != Rehearse::Required => Stage::Departing,
            Verdict::Impossible(why) => {
                self.stays_up(format!("kernel {kernel} cannot be rehearsed: {why}"))
            }
            Verdict::Failed(why) => {
                let why = format!("kernel {kernel} did not pass its rehearsal: {why}");
                if self.order.rollback.is_none() {
                    return self.stays_up(why);
                }
                self.system = System::Broken;
                self.trouble(format!("the host did not begin anew: {why}"));
                self.undo_or(Stage::Restoring)
            }
        }
    }

    /// The host goes on as it is, though it should not; nobody was written down yet.
    pub(super) fn stays_up(&mut self, why: String) -> Stage {
        self.alarm = true;
        self.trouble(format!("the host did not begin anew, and has to: {why}"));
        Stage::Restoring
    }

    /// Whether the host stays up because of its rehearsal.
    #[must_use]
    pub fn failed_rehearsal(&self) -> Option<&Rehearsal> {
        self.rehearsal.as_ref().filter(|one| match one.verdict {
            Verdict::Passed => false,
            Verdict::Failed(_) => true,
            Verdict::Impossible(_) => self.order.rehearse == Rehearse::Required,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    fn kernel(build: &str) -> Kernel {
        let release = build.split(' ').next().unwrap();
        Kernel {
            image: format!("/boot/vmlinuz-{release}").into(),
            build: Some(build.to_owned()),
            runs: false,
        }
    }

    fn kept(rehearse: Rehearse) -> Record {
        let mut record = record();
        record.order.keep = true;
        record.order.rehearse = rehearse;
        record
    }

    #[test]
    fn as_many_rehearsals_are_begun_as_may_be_cut_off() {
        let mut record = kept(Rehearse::Auto);
        for begun in 1..=REHEARSALS_MAX {
            record.begin_rehearsal(&kernel("6.2 #1")).unwrap();
            assert_eq!(record.rehearsals, begun);
        }
        let before = record.clone();
        let found = record.begin_rehearsal(&kernel("6.3 #1")).unwrap_err();
        assert_eq!(record, before);
        assert_eq!(found.kernel, "6.3");
        let why = found.verdict.why().unwrap();
        assert!(why.contains("it was cut off 2 times"), "{why}");
        assert_eq!(found.verdict.word(), "impossible");
    }

    #[test]
    fn the_host_begins_anew_with_the_kernel_that_was_rehearsed() {
        let passed = |rehearse| {
            let mut record = kept(rehearse);
            record.begin_rehearsal(&kernel("6.2 #1")).unwrap();
            record.rehearsal = Some(Rehearsal {
                kernel: "6.2".to_owned(),
                verdict: Verdict::Passed,
                took: Duration::from_secs(1),
            });
            record
        };
        let check = |mut record: Record, next: Result<&Kernel, &str>, expected: &str| {
            let before = record.rehearsal.clone();
            match record.begins_with(next) {
                Ok(None) => assert_eq!(("", before), (expected, record.rehearsal)),
                Ok(Some(said)) | Err(said) => {
                    assert_eq!(said, expected);
                    let found = record.rehearsal.unwrap();
                    assert_eq!(found.verdict.word(), "impossible");
                    assert!(said.contains(&found.kernel), "{said}: {found:?}");
                }
            }
        };
        let newer = "kernel 6.3 was not rehearsed: it came after kernel 6.2 was rehearsed";
        let refused = format!("{newer}; `forebay update rehearse` tries it out");
        check(passed(Rehearse::Auto), Ok(&kernel("6.2 #1")), "");
        check(passed(Rehearse::Required), Ok(&kernel("6.2 #1")), "");
        check(passed(Rehearse::Off), Ok(&kernel("6.3 #1")), "");
        check(passed(Rehearse::Auto), Ok(&kernel("6.3 #1")), newer);
        check(passed(Rehearse::Required), Ok(&kernel("6.3 #1")), &refused);
        check(
            passed(Rehearse::Auto),
            Ok(&kernel("6.2 #2")),
            "kernel 6.2 was not rehearsed: its file was replaced after kernel 6.2 was rehearsed",
        );
        check(
            passed(Rehearse::Auto),
            Err("no kernel"),
            "kernel that comes was not rehearsed: kernel 6.2 was rehearsed, and now: no kernel",
        );
        let running = Kernel {
            runs: true,
            ..kernel("6.1 #1")
        };
        // The one that ran was the newest when that was looked at.
        check(kept(Rehearse::Required), Ok(&running), "");
        check(
            kept(Rehearse::Auto),
            Ok(&kernel("6.3 #1")),
            "kernel 6.3 was not rehearsed: it came after the kernel that runs was found to be the newest",
        );
        // Nothing was known before.
        let mut unknown = kept(Rehearse::Auto);
        unknown.rehearsal = Some(Rehearsal::impossible("6.2".to_owned(), "no".to_owned()));
        check(unknown, Ok(&kernel("6.3 #1")), "");
        // One whose update began before builds were noted.
        let mut old = passed(Rehearse::Auto);
        old.rehearses_build = None;
        check(old, Ok(&kernel("6.2 #1")), "");
        assert!(
            passed(Rehearse::Auto)
                .begins_with(Ok(&kernel("6.3 #1")))
                .is_ok()
        );
        assert!(
            passed(Rehearse::Required)
                .begins_with(Ok(&kernel("6.3 #1")))
                .is_err()
        );
    }
}
