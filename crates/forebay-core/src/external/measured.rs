//! What was measured of one series, as means of ten seconds.

use std::collections::VecDeque;

use super::SPAN_MIN;

/// Means that are kept to look up what was known at a time: one hour.
const MEANS_MAX: usize = 360;

/// The latest means, and the ten seconds that are being filled.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    /// Where each starts, in milliseconds since 1970-01-01 UTC, and its mean; oldest first.
    means: VecDeque<(u64, f64)>,
    filling: Option<Filling>,
}

#[derive(Debug, Clone, Copy)]
struct Filling {
    start: u64,
    sum: f64,
    count: f64,
}

impl Measured {
    /// Takes in a value; gives the ten seconds that ended before it, with their mean.
    pub(super) fn add(&mut self, unix_ms: u64, value: f64) -> Option<(u64, f64)> {
        let start = unix_ms - unix_ms % SPAN_MIN;
        if let Some(filling) = &mut self.filling
            && filling.start == start
        {
            filling.sum += value;
            filling.count += 1.0;
            return None;
        }
        let ended = self.filling.replace(Filling {
            start,
            sum: value,
            count: 1.0,
        })?;
        if ended.start > start {
            // The clock was set back: what was measured belongs to no time any more.
            self.means.clear();
            return None;
        }
        let mean = (ended.start, ended.sum / ended.count);
        if self.means.len() == MEANS_MAX {
            self.means.pop_front();
        }
        self.means.push_back(mean);
        Some(mean)
    }

    /// The last mean.
    pub(super) fn last(&self) -> Option<f64> {
        self.means.back().map(|(_, mean)| *mean)
    }

    /// The last mean that was complete at a time; the last of all where that is too long ago.
    pub(super) fn before(&self, unix_ms: u64) -> Option<f64> {
        let complete = |(start, _): &&(u64, f64)| start.saturating_add(SPAN_MIN) <= unix_ms;
        let then = self.means.iter().rev().find(complete);
        then.map(|(_, mean)| *mean).or_else(|| self.last())
    }
}
