//! Memory that batch holds and does not use, taken back slowly. Off by default.
//!
//! Problem: what a batch app touched once stays charged to it until somebody needs the room.
//! Nobody can see from outside which of it is in use; taking what is in use slows the app down.
//!
//! Approach: ask and watch. A little is reclaimed, and once its effect shows, what is still gone
//! says what it was: memory that stays away was cold, memory that came back was not. Where most
//! of it stays away, the next step follows, larger if nobody waited; the kernel's lists are not
//! sorted before they were gone through once, so the first steps hit some of what is in use, and
//! that is no reason to stop. What waiting they cost (PSI) is a debt that time pays off at
//! [`STALL_BUDGET`]; there is no next step before it is paid. Where most of it came back, what is
//! left is in use: a pause that doubles. Nothing holds the app down meanwhile.
//!
//! Senpai (Weiner et al., "TMO: Transparent Memory Offloading in Datacenters", ASPLOS 2022)
//! plays the same game with steps by pressure alone: it cannot tell a step that hit the wrong
//! pages once from one that found the end of what is cold.
//!
//! Properties, tested: critical and standard apps are never asked; nothing is asked below a
//! floor, nor of what has no place to go; an app whose working set is known is not reclaimed
//! far into it; steps and pauses have bounds.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Situation;
use super::reclaim::{self, Held};
use crate::app::{App, AppId, Class};
use crate::snapshot::ReclaimState;
use crate::units::{Bytes, Time};
use crate::working_set::Witness;

/// Share of time that the app may wait for memory on the whole: well below the 5 % that it may
/// become slower, since the kernel's own work comes on top.
pub const STALL_BUDGET: f64 = 0.015;
/// The first step is this part of what the app holds, and so is the one after a pause.
const STEP_PART_MIN: u64 = 64;
/// The largest step is this part.
const STEP_PART_MAX: u64 = 8;
/// Less is not worth asking for.
const STEP_MIN: Bytes = Bytes::mib(4);
/// The largest step of all.
const STEP_MAX: Bytes = Bytes::mib(256);
/// Part of a step that must have stayed away.
const KEPT_PART: u64 = 4;
/// Periods from the end of a step until its effect was read for certain: two rotations.
const SETTLE_PERIODS: u32 = 20;
/// And at least so long, in which an app that works with a page touches it again: accesses are
/// forgotten after a step, and the next takes what was not touched since.
const SETTLE_MIN: Duration = Duration::from_secs(5);
/// The first pause after a step that came back, and the longest. Such a step costs the app a fault
/// for each page and saves nothing, and what becomes cold later can wait that long.
const PAUSE_MIN: Duration = Duration::from_secs(20);
const PAUSE_MAX: Duration = Duration::from_secs(120);
/// The most waiting that is held against the app's peace: a spell of it that has other reasons
/// must not keep Forebay away for ever.
const DEBT_MAX: Duration = Duration::from_secs(2);

/// What is remembered of one app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Part of what the app holds that is asked for next, as one in so many.
    part: u64,
    /// Not before this.
    next_at: Time,
    pause: Duration,
    /// The last request of which the end was seen.
    seen: u64,
    /// What was held before the last step, and what that was.
    step: Option<(Bytes, Bytes)>,
    /// Waiting that is not paid off.
    debt: Duration,
    /// Whether anybody waited since the last step.
    waited: bool,
}

/// Whom to ask for how much, beside those that are asked for more urgent reasons.
#[must_use]
pub(super) fn decide(
    situation: &Situation<'_>,
    givers: &BTreeMap<AppId, Held>,
    before: &BTreeMap<AppId, Probe>,
    urgent: &BTreeMap<AppId, Bytes>,
) -> (BTreeMap<AppId, Bytes>, BTreeMap<AppId, Probe>) {
    let mut asks = BTreeMap::new();
    let mut probes = BTreeMap::new();
    if !situation.policy.reclaim_cold || !situation.capabilities.reclaim {
        return (asks, probes);
    }
    let mut swap = situation.host.swap_free.unwrap_or(Bytes(0));
    for app in reclaim::apps(situation, Class::Batch) {
        let fresh = Probe {
            part: STEP_PART_MIN,
            next_at: later(situation, settle(situation)),
            pause: Duration::ZERO,
            seen: 0,
            step: None,
            debt: Duration::ZERO,
            waited: false,
        };
        let mut probe = before.get(&app.id).copied().unwrap_or(fresh);
        let giver = reclaim::giver(situation, app, givers, &mut swap);
        // Where accesses are watched, there is no need to try what is known to be in use.
        let open = match situation.demands[&app.id].memory_now.witness {
            Witness::Accesses => giver.cold,
            Witness::Lists => giver.open,
        };
        if !urgent.contains_key(&app.id)
            && let Some(bytes) = probe.go_on(situation, app, open)
        {
            asks.insert(app.id.clone(), bytes);
        }
        probes.insert(app.id.clone(), probe);
    }
    (asks, probes)
}

impl Probe {
    /// The next step, if it is time for one.
    fn go_on(&mut self, situation: &Situation<'_>, app: &App, open: Bytes) -> Option<Bytes> {
        let now = situation.demands[&app.id].memory_now;
        let used = now.used?;
        self.book(situation, now.stalled.unwrap_or(0.0));
        if let Some(reclaim) = now.reclaim
            && reclaim.number != self.seen
        {
            if reclaim.state == ReclaimState::Running {
                return None;
            }
            self.seen = reclaim.number;
            self.next_at = later(situation, settle(situation));
        }
        if situation.time.monotonic < self.next_at.monotonic {
            return None;
        }
        if let Some((before, asked)) = self.step.take() {
            if before.saturating_sub(used).0 < asked.0 / KEPT_PART {
                self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
                self.part = STEP_PART_MIN;
                self.next_at = later(situation, self.pause);
                return None;
            }
            self.pause = Duration::ZERO;
            self.part = match self.waited {
                true => (self.part * 2).min(STEP_PART_MIN),
                false => (self.part / 2).max(STEP_PART_MAX),
            };
        }
        if !self.debt.is_zero() {
            return None;
        }
        let bytes = Bytes(used.0 / self.part)
            .clamp(STEP_MIN, STEP_MAX)
            .min(open);
        self.next_at = later(situation, settle(situation));
        if bytes < STEP_MIN {
            return None;
        }
        self.step = Some((used, bytes));
        self.waited = false;
        Some(bytes)
    }

    /// Adds what was waited in this period, and pays off what may be waited.
    fn book(&mut self, situation: &Situation<'_>, stalled: f64) {
        let period = situation.policy.period;
        let waited = period.mul_f64(stalled.clamp(0.0, 1.0));
        self.debt = (self.debt + waited)
            .saturating_sub(period.mul_f64(STALL_BUDGET))
            .min(DEBT_MAX);
        self.waited |= stalled > STALL_BUDGET;
    }
}

fn settle(situation: &Situation<'_>) -> Duration {
    (situation.policy.period * SETTLE_PERIODS).max(SETTLE_MIN)
}

fn later(situation: &Situation<'_>, by: Duration) -> Time {
    Time {
        monotonic: situation.time.monotonic + by,
        ..situation.time
    }
}
