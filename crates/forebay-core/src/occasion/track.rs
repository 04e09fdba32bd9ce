//! One resource of one app: peaks of slots and of the last minutes.

use std::collections::VecDeque;

use super::evidence::push;
use super::numbers::median;

/// The resolution of what is learnt.
pub const SLOT_MS: u64 = 10_000;
const MINUTE_MS: u64 = 60_000;
/// Minutes that say what the level is.
const LEVEL_MINUTES: u64 = 10;
/// So many of them have to be known.
const LEVEL_MINUTES_MIN: usize = 5;
const MINUTES_MAX: usize = 16;

/// The peak of ten seconds that are over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Slot {
    /// Its middle, in milliseconds.
    pub(super) at_ms: u64,
    pub(super) peak: f64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Track {
    slot: u64,
    peak: f64,
    /// Number and peak.
    minutes: VecDeque<(u64, f64)>,
}

impl Track {
    pub(super) fn new(unix_ms: u64, value: f64) -> Self {
        Self {
            slot: unix_ms / SLOT_MS,
            peak: value,
            minutes: VecDeque::new(),
        }
    }

    /// Takes a sample in; gives the slot that it ends. What comes from an earlier slot is late and
    /// left out.
    pub(super) fn add(&mut self, unix_ms: u64, value: f64) -> Option<Slot> {
        let slot = unix_ms / SLOT_MS;
        if slot == self.slot {
            self.peak = self.peak.max(value);
            return None;
        }
        if slot < self.slot {
            return None;
        }
        let done = Slot {
            at_ms: self.slot * SLOT_MS + SLOT_MS / 2,
            peak: self.peak,
        };
        let minute = done.at_ms / MINUTE_MS;
        match self.minutes.back_mut() {
            Some((last, peak)) if *last == minute => *peak = peak.max(done.peak),
            _ => push(&mut self.minutes, (minute, done.peak), MINUTES_MAX),
        }
        (self.slot, self.peak) = (slot, value);
        Some(done)
    }

    /// When the newest sample was, to ten seconds.
    pub(super) fn last_ms(&self) -> u64 {
        self.slot * SLOT_MS
    }

    /// The median of the peaks of the minutes before.
    pub(super) fn level(&self, before_ms: u64) -> Option<f64> {
        let end = before_ms / MINUTE_MS;
        let minutes = end.saturating_sub(LEVEL_MINUTES)..end;
        let known = self.minutes.iter();
        let known: Vec<f64> = known
            .filter(|(minute, _)| minutes.contains(minute))
            .map(|(_, peak)| *peak)
            .collect();
        if known.len() < LEVEL_MINUTES_MIN {
            return None;
        }
        median(known)
    }
}
