//! What a front says of itself.

use std::fmt;
use std::time::Duration;

use forebay_core::shadow::promotion::{Cause, Epoch, Slot, Step};
use serde::{Deserialize, Serialize};

use crate::stream::Address;
use crate::synchronise::Standing;

/// A front at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Where the promotion machine stands, in lower case.
    pub stage: String,
    /// The epoch of the primary.
    pub epoch: Epoch,
    /// The primary's place among the members.
    pub primary: Slot,
    /// The place of the one that would take over, if one could.
    pub standby: Option<Slot>,
    /// All instances.
    pub members: Vec<MemberStatus>,
    /// The latest changes, oldest first.
    pub transitions: Vec<Transition>,
    /// Processes that stand behind a fence for good, and that the front could not end: the daemon does.
    #[serde(default)]
    pub left: Vec<Left>,
    /// The latest changes that did not work, oldest first.
    #[serde(default)]
    pub failures: Vec<Failure>,
    /// The process that the front is.
    #[serde(default)]
    pub about: About,
}

/// A process that was to be ended, and is still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The app that it is.
    pub app: String,
    /// Its main process, which stands.
    pub pid: u32,
    /// Why the front could not end it.
    pub why: String,
}

/// Which process a front is, and what it was begun with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its number.
    pub pid: u32,
    /// The fingerprint of its plan.
    pub plan: String,
    /// The release of Forebay that it is of.
    pub release: String,
}

/// A change that did not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Grows by one with each, from 1 when the process begins.
    pub number: u64,
    /// The epoch in which it was tried.
    pub epoch: Epoch,
    /// What was tried, and what became of it.
    pub what: String,
}

/// One instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// The app that it is.
    pub app: String,
    /// Where it is reached.
    pub address: Address,
    /// The host that runs it, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<String>,
    /// Its main process, once known.
    pub pid: Option<u32>,
    /// Whether it can be stopped from here.
    pub fence: bool,
    /// Whether it could take over.
    pub standing: Standing,
    /// It may not, because somebody said so.
    pub detached: bool,
}

/// One change of the primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// The epoch that began with it.
    pub epoch: Epoch,
    /// Why: `death`, `stall` or `planned`.
    pub cause: String,
    /// What spoke for it.
    pub evidence: Vec<String>,
    /// The old primary.
    pub from: String,
    /// The new one.
    pub to: Option<String>,
    /// How long each step took.
    pub steps: Vec<(String, Duration)>,
    /// What did not work.
    pub trouble: Vec<String>,
}

impl Transition {
    pub(crate) fn begin(cause: Cause, evidence: Vec<String>, from: &str) -> Self {
        Self {
            epoch: 0,
            cause: format!("{cause:?}").to_lowercase(),
            evidence,
            from: from.to_owned(),
            to: None,
            steps: Vec::new(),
            trouble: Vec::new(),
        }
    }

    /// What did not work, without what differs from one attempt to the next.
    pub(crate) fn failure(&self) -> String {
        let evidence = if self.evidence.is_empty() {
            String::new()
        } else {
            format!(": {}", self.evidence.join(", "))
        };
        format!(
            "{} was not replaced ({}{evidence}): {}",
            self.from,
            self.cause,
            self.trouble.join("; ")
        )
    }

    pub(crate) fn took(&mut self, step: Step, time: Duration) {
        let name = match step {
            Step::Fence(_) => "fence",
            Step::Settle(_) => "settle",
            Step::Promote(..) => "promote",
            Step::Replay(_) => "replay",
            Step::Hold | Step::Release | Step::Unfence(_) | Step::Kill(_) | Step::Drain(_) => {
                return;
            }
        };
        self.steps.push((name.to_owned(), time));
    }
}

impl fmt::Display for Transition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = self.to.as_deref().unwrap_or("nobody");
        write!(
            f,
            "epoch {}: {} to {to} ({}",
            self.epoch, self.from, self.cause
        )?;
        if !self.evidence.is_empty() {
            write!(f, ": {}", self.evidence.join(", "))?;
        }
        f.write_str(")")?;
        for (name, time) in &self.steps {
            write!(f, ", {name} {:.1} ms", time.as_secs_f64() * 1e3)?;
        }
        if !self.trouble.is_empty() {
            write!(f, "; {}", self.trouble.join("; "))?;
        }
        Ok(())
    }
}
