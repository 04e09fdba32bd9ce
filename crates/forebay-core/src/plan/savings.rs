//! Memory that batch holds and does not use, taken back slowly. Off by default.
//!
//! Problem: what a batch app touched once stays charged to it until somebody needs the room.
//! Nobody can see from outside which of it is in use; taking what is in use slows the app down.
//!
//! Approach: ask and watch. A little is reclaimed; once its effect shows, the next step is
//! decided by what it cost: the share of time in which the app waited for memory (PSI), and the
//! pages that came back. Nobody waited: the next step is twice as large. Somebody waited a
//! little: nothing is asked. Waiting above [`STALL_MAX`]: a pause that doubles, then a small step
//! again. Nothing holds the app down meanwhile: what it wants back, it takes.
//!
//! Senpai (Weiner et al., "TMO: Transparent Memory Offloading in Datacenters", ASPLOS 2022)
//! plays the same game with one constant step and pressure alone as its witness. Steps that
//! double find the end of what is cold in a few rounds; pages that come back end a step's growth
//! before they are enough of them to show as waiting.
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
use crate::demand::MemoryNow;
use crate::snapshot::ReclaimState;
use crate::units::{Bytes, Time};

/// Waiting for memory above this share of time is too much.
pub const STALL_MAX: f64 = 0.02;
/// Waiting below this share is none.
const STALL_CALM: f64 = 0.004;
/// Pages that come back in a second and are none to speak of.
const REFAULTS_CALM: f64 = 64.0;
/// The first step, and the one after a pause.
const STEP_MIN: Bytes = Bytes::mib(4);
/// The largest step is this part of what the app holds, or [`STEP_MAX`].
const STEP_PART: u64 = 16;
/// The largest step of all.
const STEP_MAX: Bytes = Bytes::mib(256);
/// Periods from the end of a step until its effect was read for certain: two rotations.
const SETTLE_PERIODS: u32 = 20;
/// The first pause after too much, and the longest.
const PAUSE_MIN: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(120);

/// What is remembered of one app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is asked for next.
    step: Bytes,
    /// Not before this.
    next_at: Time,
    pause: Duration,
    /// The last request of which the end was seen.
    seen: u64,
    /// The most that was seen of its cost: what it took from the app shows once, and is over
    /// when the next step is due.
    worst: Cost,
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
            step: STEP_MIN,
            next_at: later(situation, settle(situation)),
            pause: Duration::ZERO,
            seen: 0,
            worst: Cost::Nothing,
        };
        let mut probe = before.get(&app.id).copied().unwrap_or(fresh);
        let open = reclaim::giver(situation, app, givers, &mut swap).open;
        if !urgent.contains_key(&app.id)
            && let Some(bytes) = probe.go_on(situation, app, open)
        {
            asks.insert(app.id.clone(), bytes);
        }
        probes.insert(app.id.clone(), probe);
    }
    (asks, probes)
}

/// What a step cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Cost {
    /// Nobody missed it.
    Nothing,
    /// Some came back.
    Some,
    /// The app is slowed.
    TooMuch,
}

fn cost(now: &MemoryNow) -> Cost {
    // Where waiting is not seen, pages that come back are all there is to go by.
    let stalled = now.stalled.unwrap_or(0.0);
    let refaults = now.refaults_per_second.unwrap_or(0.0);
    let blind = now.stalled.is_none();
    if stalled > STALL_MAX || (blind && refaults > REFAULTS_CALM) {
        Cost::TooMuch
    } else if stalled > STALL_CALM || refaults > REFAULTS_CALM {
        Cost::Some
    } else {
        Cost::Nothing
    }
}

impl Probe {
    /// The next step, if it is time for one.
    fn go_on(&mut self, situation: &Situation<'_>, app: &App, open: Bytes) -> Option<Bytes> {
        let now = situation.demands[&app.id].memory_now;
        let used = now.used?;
        // What a pause is for is over before its end.
        if situation.time.monotonic + settle(situation) >= self.next_at.monotonic {
            self.worst = self.worst.max(cost(&now));
        }
        if let Some(reclaim) = now.reclaim
            && reclaim.number != self.seen
        {
            if reclaim.state == ReclaimState::Running {
                return None;
            }
            self.seen = reclaim.number;
            self.next_at = later(situation, settle(situation));
            if reclaim.state != ReclaimState::Done {
                self.back_off(situation);
            }
        }
        if situation.time.monotonic < self.next_at.monotonic {
            return None;
        }
        match std::mem::replace(&mut self.worst, Cost::Nothing) {
            Cost::TooMuch => {
                self.back_off(situation);
                None
            }
            Cost::Some => {
                self.step = STEP_MIN;
                self.next_at = later(situation, settle(situation));
                None
            }
            Cost::Nothing => {
                let most = Bytes(used.0 / STEP_PART).clamp(STEP_MIN, STEP_MAX);
                let bytes = self.step.min(most).min(open);
                self.next_at = later(situation, settle(situation));
                if bytes < STEP_MIN {
                    return None;
                }
                if self.step > STEP_MIN {
                    // The one before was no loss either.
                    self.pause /= 2;
                }
                self.step = Bytes(self.step.0 * 2).min(most);
                Some(bytes)
            }
        }
    }

    fn back_off(&mut self, situation: &Situation<'_>) {
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.step = STEP_MIN;
        self.next_at = later(situation, self.pause);
    }
}

fn settle(situation: &Situation<'_>) -> Duration {
    situation.policy.period * SETTLE_PERIODS
}

fn later(situation: &Situation<'_>, by: Duration) -> Time {
    Time {
        monotonic: situation.time.monotonic + by,
        ..situation.time
    }
}
