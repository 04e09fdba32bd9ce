//! Whether batch may use the CPUs that critical apps own, while those leave them idle.
//!
//! Problem: a CPU of one's own is idle most of the time, since it is sized for a forecast peak
//! with headroom. Leaving it idle wastes half of a small host; sharing it may cost the
//! critical app its response time.
//!
//! Approach: lend to the kernel's idle class only, which yields to everybody else at once, and
//! watch the borrower's effect: the share of time in which tasks of a critical app waited for a
//! CPU. When any critical app waits more than [`STALL_MAX`], all lent CPUs are taken back in the
//! same period, and lent again after a pause that doubles with every withdrawal that comes soon
//! after the last. The measure is PSI (Weiner, "Getting Better Metrics for Memory, CPU and I/O
//! Pressure", 2018).
//!
//! Properties: never lends what the host cannot take back (no idle class, no CPU sets); a
//! withdrawal is immediate, a return is late; the pause has a bound.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Situation;
use crate::app::{App, Class};
use crate::slice::Knob;
use crate::units::Time;

/// Waiting beyond this share of time takes the lent CPUs back.
pub const STALL_MAX: f64 = 0.10;
/// The longest pause after a withdrawal.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// What is remembered of lending.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lending {
    /// When it was last withdrawn; never, when absent.
    withdrawn_at: Option<Time>,
    /// How long it stays withdrawn.
    pause: Duration,
    /// Whether CPUs are lent.
    lent: bool,
}

/// Decides for this period.
#[must_use]
pub(super) fn decide(situation: &Situation<'_>, before: Lending) -> Lending {
    if !possible(situation) {
        return Lending {
            lent: false,
            ..before
        };
    }
    let since = before
        .withdrawn_at
        .map(|withdrawn_at| situation.time.since(withdrawn_at));
    let waits = worst_stall(situation) > STALL_MAX;
    if before.lent && waits {
        let soon = since.is_some_and(|since| since < before.pause * 4);
        let pause = if soon {
            (before.pause * 2).min(PAUSE_MAX)
        } else {
            situation.policy.hold
        };
        return Lending {
            withdrawn_at: Some(situation.time),
            pause,
            lent: false,
        };
    }
    Lending {
        lent: before.lent || (!waits && since.is_none_or(|since| since >= before.pause)),
        ..before
    }
}

impl Lending {
    /// Whether CPUs are lent.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.lent
    }
}

fn possible(situation: &Situation<'_>) -> bool {
    let has = |class| active(situation).any(|app| app.class == class);
    // Who cannot be put behind the critical apps would not yield to them.
    let yields = |app: &App| {
        [Knob::CpuIdle, Knob::Cpus]
            .into_iter()
            .all(|knob| situation.capabilities.offers(&app.id, knob))
    };
    let batch = |app: &&App| app.class == Class::Batch;
    situation.policy.lend
        && !situation.partitions()
        && active(situation).filter(batch).all(yields)
        && has(Class::Critical)
        && has(Class::Batch)
}

fn worst_stall(situation: &Situation<'_>) -> f64 {
    active(situation)
        .filter(|app| app.class == Class::Critical)
        .map(|app| situation.demands[&app.id].cpu_stalled)
        .fold(0.0, f64::max)
}

fn active<'a>(situation: &'a Situation<'_>) -> impl Iterator<Item = &'a App> {
    situation
        .demands
        .keys()
        .filter_map(|id| situation.policy.apps.get(id))
}
