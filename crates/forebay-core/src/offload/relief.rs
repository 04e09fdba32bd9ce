//! What each rung did for each app, remembered.
//!
//! Problem: what a rung brings depends on the app. A prior for all is wrong for most.
//!
//! Approach: the mean of what was measured, in which the newest counts for one of
//! [`WEIGHT_MAX`] at least, drawn towards the prior as if that had been measured [`PRIOR_WEIGHT`]
//! times. What is older than the longest bar says nothing.
//!
//! Properties, tested: bounded, whoever was measured longest ago makes room; a prediction is
//! between the prior and what was measured.

use serde::{Deserialize, Serialize};

use super::ladder::BAR_MAX;
use super::{Bottleneck, Rung};
use crate::app::AppId;
use crate::units::Time;

/// Entries kept, of all apps together.
pub(super) const ENTRIES_MAX: usize = 512;
/// So many measurements the prior stands for.
pub(super) const PRIOR_WEIGHT: f64 = 2.0;
/// What is older than so many measurements hardly counts.
pub(super) const WEIGHT_MAX: u32 = 8;

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Learned {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    app: AppId,
    bottleneck: Bottleneck,
    rung: Rung,
    mean: f64,
    count: u32,
    at: Time,
}

impl Learned {
    /// The part of a constraint that a rung will probably take away, 0 to 1.
    pub(super) fn predict(
        &self,
        now: Time,
        app: &AppId,
        bottleneck: Bottleneck,
        rung: Rung,
        prior: f64,
    ) -> f64 {
        let of = |entry: &&Entry| entry.is_of(app, bottleneck, rung) && entry.holds(now);
        let Some(entry) = self.entries.iter().find(of) else {
            return prior;
        };
        let count = f64::from(entry.count);
        (prior * PRIOR_WEIGHT + entry.mean * count) / (PRIOR_WEIGHT + count)
    }

    /// Takes in what a rung did.
    pub(super) fn record(
        &mut self,
        now: Time,
        app: &AppId,
        bottleneck: Bottleneck,
        rung: Rung,
        relief: f64,
    ) {
        let of = |entry: &&mut Entry| entry.is_of(app, bottleneck, rung);
        if let Some(entry) = self.entries.iter_mut().find(of) {
            if !entry.holds(now) {
                (entry.mean, entry.count) = (0.0, 0);
            }
            entry.count = (entry.count + 1).min(WEIGHT_MAX);
            entry.mean += (relief - entry.mean) / f64::from(entry.count);
            entry.at = now;
            return;
        }
        if self.entries.len() >= ENTRIES_MAX {
            let entries = self.entries.iter().enumerate();
            let oldest = entries.min_by_key(|(_, entry)| entry.at.monotonic);
            if let Some((place, _)) = oldest {
                self.entries.swap_remove(place);
            }
        }
        self.entries.push(Entry {
            app: app.clone(),
            bottleneck,
            rung,
            mean: relief,
            count: 1,
            at: now,
        });
    }
}

impl Entry {
    /// Whether it still says something. A rung that was bad once is not tried, so that nothing new
    /// would ever be measured of it.
    fn holds(&self, now: Time) -> bool {
        now.since(self.at) < BAR_MAX
    }

    fn is_of(&self, app: &AppId, bottleneck: Bottleneck, rung: Rung) -> bool {
        self.rung == rung && self.bottleneck == bottleneck && self.app == *app
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Time {
        Time {
            monotonic: Duration::from_secs(seconds),
            unix_ms: 0,
        }
    }

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} {b}");
    }

    #[test]
    fn what_was_measured_outweighs_the_prior_in_time() {
        let mut learned = Learned::default();
        let app: AppId = "web".parse().unwrap();
        let now = at(50);
        let predict =
            |learned: &Learned, rung| learned.predict(now, &app, Bottleneck::Cpu, rung, 0.8);
        near(predict(&learned, Rung::WidenSlice), 0.8);
        learned.record(at(1), &app, Bottleneck::Cpu, Rung::WidenSlice, 0.2);
        near(predict(&learned, Rung::WidenSlice), 0.6);
        for second in 2..50 {
            learned.record(at(second), &app, Bottleneck::Cpu, Rung::WidenSlice, 0.2);
        }
        near(predict(&learned, Rung::WidenSlice), 0.32);
        // Of another rung, nothing is known by that.
        near(predict(&learned, Rung::Move), 0.8);
    }

    #[test]
    fn what_was_measured_long_ago_says_nothing() {
        let mut learned = Learned::default();
        let app: AppId = "web".parse().unwrap();
        let (cpu, widen) = (Bottleneck::Cpu, Rung::WidenSlice);
        for second in 0..8 {
            learned.record(at(second), &app, cpu, widen, -1.0);
        }
        let predict =
            |learned: &Learned, second| learned.predict(at(second), &app, cpu, widen, 0.5);
        assert!(predict(&learned, 3606) < 0.0);
        near(predict(&learned, 3607), 0.5);
        // What is measured then is not mixed with it either.
        learned.record(at(4000), &app, cpu, widen, 0.8);
        near(predict(&learned, 4000), 0.6);
    }

    #[test]
    fn it_has_a_bound() {
        let mut learned = Learned::default();
        let app = |number: usize| -> AppId { number.to_string().parse().unwrap() };
        for number in 0..=ENTRIES_MAX {
            let second = number.try_into().unwrap();
            learned.record(at(second), &app(number), Bottleneck::Io, Rung::Move, 0.0);
        }
        assert_eq!(learned.entries.len(), ENTRIES_MAX);
        near(
            learned.predict(at(512), &app(0), Bottleneck::Io, Rung::Move, 1.0),
            1.0,
        );
        assert!(learned.predict(at(512), &app(1), Bottleneck::Io, Rung::Move, 1.0) < 1.0);
    }
}
