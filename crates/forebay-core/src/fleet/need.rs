//! What an application will need within the next minutes, and what several come to.
//!
//! Problem: a move takes a minute, and a host that publishes what it needs now is chosen by
//! everybody just before it is full. What it will need at most is not the sum of what each of its
//! applications will need at most: they do not peak together.
//!
//! Approach: what an application used is gathered into buckets of two minutes, and one
//! [`Series`] over them tells the value [`AHEAD`] from now, and what is not exceeded until then in
//! nine of ten cases. It remembers long enough to find a day. Of several, the expected values are added,
//! and their distances to the bounds as if those were independent: as the root of the sum of squares.
//!
//! What an application wants while it waits for more than it gets nobody sees: a host knows what it uses, and
//! that it waits. It is taken to want [`WAITS_FOR`] times that ([`Use::wanted`]), which is a guess.
//!
//! Properties, tested: several never need less than is expected of them, nor more than the sum of their
//! bounds; before anything is learnt, present use is what is known; a clock that is set back begins a
//! new bucket, nothing else, and one that leaps ahead leaves a gap.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_forecast::{Series, SeriesOptions, is_plausible};

use super::choice::Room;
use crate::app::Class;
use crate::units::{Bytes, MilliCpu};

/// How far ahead it is looked.
pub const AHEAD: Duration = Duration::from_secs(16 * 60);
/// What is taken together.
pub const BUCKET: Duration = Duration::from_secs(2 * 60);
/// The buckets until then.
const AHEAD_BUCKETS: usize = 8;
/// Almost three days: a period is found that fits twice.
const HISTORY_MAX: usize = 2048;

/// What one that waits is taken to want, as a multiple of what it gets.
pub const WAITS_FOR: f64 = 1.25;

/// What a host sees of an application now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Use {
    /// CPUs that it gets.
    pub cpus: f64,
    /// Whether it waits for more.
    pub waits: bool,
}

impl Use {
    /// What it is taken to want, in CPUs.
    #[must_use]
    pub fn wanted(self) -> f64 {
        if self.waits {
            self.cpus * WAITS_FOR
        } else {
            self.cpus
        }
    }
}

/// Processor time that is needed, in CPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Need {
    /// Expected.
    pub expected: f64,
    /// Not exceeded in nine of ten cases; never less than expected.
    pub most: f64,
}

impl Need {
    /// Just this: nothing is foreseen.
    #[must_use]
    pub const fn just(cpus: f64) -> Self {
        Self {
            expected: cpus,
            most: cpus,
        }
    }

    /// What a target has to have for it.
    #[must_use]
    pub fn room(self, memory: Bytes) -> Room {
        Room {
            cpu: MilliCpu::from_cpus(self.most),
            memory,
        }
    }
}

/// One application's past, and what follows from it. See the [module](self).
#[derive(Debug, Clone)]
pub struct Foresight {
    series: Series,
    open: Option<Open>,
    /// What is foreseen since the last bucket closed.
    need: Option<Need>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    /// Since 1970, in buckets.
    at: u64,
    sum: f64,
    count: f64,
}

impl Default for Foresight {
    fn default() -> Self {
        Self::new()
    }
}

impl Foresight {
    /// Nothing is known.
    #[must_use]
    pub fn new() -> Self {
        Self {
            series: Series::new(SeriesOptions {
                horizons: vec![AHEAD_BUCKETS],
                history_max: HISTORY_MAX,
                request: None,
            }),
            open: None,
            need: None,
        }
    }

    /// So many CPUs were used, or wanted, at this time. What is not plausible leaves no trace.
    pub fn record(&mut self, unix_ms: u64, cpus: f64) {
        if !is_plausible(cpus) {
            return;
        }
        let bucket_ms = u64::try_from(BUCKET.as_millis()).unwrap_or(u64::MAX);
        let at = unix_ms / bucket_ms;
        if let Some(closed) = self.open.take_if(|open| open.at != at) {
            self.series.update(closed.sum / closed.count);
            let most = u64::try_from(HISTORY_MAX).unwrap_or(u64::MAX);
            for _ in 1..at.saturating_sub(closed.at).min(most) {
                self.series.update_gap();
            }
            self.need = self.foresee();
        }
        let open = self.open.get_or_insert(Open {
            at,
            sum: 0.0,
            count: 0.0,
        });
        open.sum += cpus;
        open.count += 1.0;
    }

    /// What is foreseen; never less than what is used now.
    #[must_use]
    pub fn need(&self, now: f64) -> Need {
        let Some(need) = self.need else {
            return Need::just(now);
        };
        let expected = need.expected.max(now);
        Need {
            expected,
            most: need.most.max(expected),
        }
    }

    fn foresee(&self) -> Option<Need> {
        let expected = self.series.forecast(AHEAD_BUCKETS)?.quantiles.q50();
        let most = self.series.peak(AHEAD_BUCKETS)?.quantiles.q90();
        Some(Need {
            expected,
            most: most.max(expected),
        })
    }
}

/// What applications come to, by class, as a host publishes it.
#[must_use]
pub fn together(apps: impl Iterator<Item = (Class, Need, Bytes)>) -> BTreeMap<Class, Room> {
    let mut sums: BTreeMap<Class, (Pool, Bytes)> = BTreeMap::new();
    for (class, need, memory) in apps {
        let (pool, held) = sums.entry(class).or_default();
        pool.add(need);
        *held = held.saturating_add(memory);
    }
    let room = |(pool, memory): (Pool, Bytes)| pool.need().room(memory);
    sums.into_iter()
        .map(|(class, sum)| (class, room(sum)))
        .collect()
}

/// A sum of needs.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pool {
    expected: f64,
    square: f64,
}

impl Pool {
    pub(super) fn add(&mut self, need: Need) {
        let beyond = (need.most - need.expected).max(0.0);
        self.expected += need.expected;
        self.square += beyond * beyond;
    }

    pub(super) fn need(self) -> Need {
        Need {
            expected: self.expected,
            most: self.expected + self.square.sqrt(),
        }
    }

    /// The same without one of those that were added.
    pub(super) fn without(self, need: Need) -> Self {
        let beyond = (need.most - need.expected).max(0.0);
        Self {
            expected: self.expected - need.expected,
            square: (self.square - beyond * beyond).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STEP_MS: u64 = 10_000;

    fn learnt(steps: u64, cpus: impl Fn(u64) -> f64) -> Foresight {
        let mut foresight = Foresight::new();
        for step in 0..steps {
            foresight.record(step * STEP_MS, cpus(step));
        }
        foresight
    }

    #[test]
    fn before_anything_is_learnt_present_use_is_what_is_known() {
        assert_eq!(Foresight::new().need(1.5), Need::just(1.5));
    }

    #[test]
    fn a_rise_that_comes_every_two_hours_is_foreseen() {
        let period = 720;
        let cpus = |step: u64| if step % period < 120 { 4.0 } else { 1.0 };
        // Ten minutes before the next one.
        let before = learnt(20 * period - 60, cpus);
        assert!(before.need(1.0).most > 3.0, "{:?}", before.need(1.0));
        // Forty minutes before it.
        let calm = learnt(20 * period - 240, cpus);
        assert!(calm.need(1.0).expected < 1.5, "{:?}", calm.need(1.0));
    }

    #[test]
    fn a_clock_that_jumps_costs_little() {
        let mut foresight = learnt(3_000, |_| 2.0);
        let now = 3_000 * STEP_MS;
        for unix_ms in [now + 600_000, now + 610_000, now, u64::MAX, 0, now] {
            foresight.record(unix_ms, 2.0);
        }
        foresight.record(now, f64::NAN);
        let need = foresight.need(2.0);
        assert!(need.expected <= 2.1 && need.most < 4.1, "{need:?}");
    }

    #[test]
    fn one_that_waits_is_taken_to_want_more_than_it_gets() {
        let seen = |waits| Use { cpus: 2.0, waits };
        assert_eq!((seen(false).wanted(), seen(true).wanted()), (2.0, 2.5));
    }

    proptest! {
        #[test]
        fn several_need_what_is_expected_at_least_and_the_sum_of_bounds_at_most(
            apps in prop::collection::vec((0.0..8.0_f64, 0.0..4.0_f64), 1..20)
        ) {
            let needs = apps.iter().map(|(expected, beyond)| Need {
                expected: *expected,
                most: expected + beyond,
            });
            let expected: f64 = needs.clone().map(|need| need.expected).sum();
            let most: f64 = needs.clone().map(|need| need.most).sum();
            let sums = together(needs.map(|need| (Class::Standard, need, Bytes::mib(1))));
            let sum = sums[&Class::Standard];
            prop_assert!(sum.cpu.as_cpus() >= expected - 1e-3);
            prop_assert!(sum.cpu.as_cpus() <= most + 1e-3);
            prop_assert_eq!(sum.memory, Bytes::mib(u64::try_from(apps.len()).unwrap()));
        }
    }
}
