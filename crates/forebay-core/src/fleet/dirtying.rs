//! Whether copying an application that runs would come to an end, told before anything of it is copied.
//!
//! Problem: what writes its memory faster than it can be sent is refused after rounds of copying that were
//! in vain: the link was full for a minute, and the process was slower meanwhile.
//!
//! Approach: a sample of its pages is looked at, again and again within half a second. What part of them
//! differs after some time says how much of all of it a round of that length would leave ([`Dirtying`]):
//! pages that are written again and again count once, as they are sent once. With the speed of the link, the rounds that
//! would follow are worked out and judged as those of a move are ([`rounds::judge`]).
//!
//! Beyond the last look, of what was spared so far the same part is spared in the same time. Where pages are
//! written at random, some more often than others, that is the most there can be, since those that are left are written
//! ever more seldom. A program that goes through all of its memory in turn writes more than that: it is told by
//! the rounds themselves.
//!
//! Properties, tested: what is left never shrinks with time and, where nothing grows, is never more than all; what
//! writes nothing is frozen after one round; the rounds come to an end.
//!
//! Source: the sampling of pages of QEMU's `calc-dirty-rate`; for the rounds, see [`rounds`].

use std::time::Duration;

use super::rounds::{self, Bounds, Round, Verdict};
use crate::units::Bytes;

/// What was seen of a sample of pages.
#[derive(Debug, Clone, PartialEq)]
pub struct Dirtying {
    /// All that is copied while it runs.
    tracked: Bytes,
    /// After how long which part differed from the first look, 0 to 1; both rise.
    looks: Vec<(Duration, f64)>,
    /// Bytes in a second by which it grew.
    growth: f64,
}

/// How copying would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreseen {
    /// Rounds until it is frozen, or is known to stay.
    pub rounds: usize,
    /// What would be said after the last one.
    pub verdict: Verdict,
}

impl Dirtying {
    /// Of so many bytes, of which a sample was looked at again after these times, rising; growth in bytes in a
    /// second.
    #[must_use]
    pub fn new(tracked: Bytes, looks: &[(Duration, f64)], growth: f64) -> Self {
        let mut rising: Vec<(Duration, f64)> = Vec::new();
        for (after, part) in looks {
            let (last, least) = rising.last().copied().unwrap_or_default();
            // A page may have been put back to what it was; it was written all the same.
            if *after > last && part.is_finite() {
                rising.push((*after, part.clamp(least, 1.0)));
            }
        }
        Self {
            tracked,
            looks: rising,
            growth: if growth.is_finite() {
                growth.max(0.0)
            } else {
                0.0
            },
        }
    }

    /// What differs after so long, or came.
    #[must_use]
    pub fn written(&self, after: Duration) -> Bytes {
        let grown = self.growth * after.as_secs_f64();
        let part = self.part(after).min(1.0);
        Bytes::from_f64(self.tracked.as_f64() * part + grown)
    }

    fn part(&self, after: Duration) -> f64 {
        let mut before = (Duration::ZERO, 0.0);
        let mut spared = 1.0;
        let mut lasted = 1.0;
        for look in &self.looks {
            lasted = (look.0 - before.0).as_secs_f64();
            if after <= look.0 {
                let share = after.saturating_sub(before.0).as_secs_f64() / lasted;
                return before.1 + share * (look.1 - before.1);
            }
            // Of what had been spared until then.
            spared = if before.1 < 1.0 {
                (1.0 - look.1) / (1.0 - before.1)
            } else {
                0.0
            };
            before = *look;
        }
        let beyond = after.saturating_sub(before.0).as_secs_f64() / lasted;
        1.0 - (1.0 - before.1) * spared.powf(beyond)
    }

    /// Bytes in a second that were written at first, before pages were written that had been.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let first = self.looks.iter().find(|(_, part)| *part > 0.0);
        let first = first.map_or(0.0, |(after, part)| part / after.as_secs_f64());
        self.tracked.as_f64() * first + self.growth
    }

    /// How copying would go over a link that takes so many bytes in a second.
    #[must_use]
    pub fn foresee(&self, bounds: Bounds, link: f64) -> Foreseen {
        let mut all: Vec<Round> = Vec::new();
        let mut copied = self.tracked;
        loop {
            let verdict = rounds::judge(bounds, &all);
            if verdict != Verdict::Again {
                return Foreseen {
                    rounds: all.len(),
                    verdict,
                };
            }
            let took = Duration::try_from_secs_f64(copied.as_f64() / link).unwrap_or(FOREVER);
            let took = took.min(FOREVER);
            let left = self.written(took);
            all.push(Round { copied, took, left });
            copied = left;
        }
    }
}

/// No round is thought of as longer.
const FOREVER: Duration = Duration::from_secs(1 << 20);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        aim: Duration::from_millis(170),
        most: Duration::from_secs(5),
        fixed: Duration::from_millis(120),
    };
    const LOOKS: [u64; 3] = [50, 150, 500];
    const MIB: f64 = 1_048_576.0;

    /// Of `mib`, of which `rate` MiB are written in a second, anywhere.
    fn evenly(mib: f64, rate: f64) -> Dirtying {
        let part = |seconds: f64| 1.0 - (-rate * seconds / mib).exp();
        let looks = LOOKS.map(|ms| {
            let after = Duration::from_millis(ms);
            (after, part(after.as_secs_f64()))
        });
        Dirtying::new(Bytes::from_f64(mib * MIB), &looks, 0.0)
    }

    #[test]
    fn what_is_slower_than_the_link_is_frozen_and_what_is_faster_stays() {
        let check = |rate: f64, link: f64, expected: &str| {
            let foreseen = evenly(1024.0, rate).foresee(BOUNDS, link * MIB);
            let said = match foreseen.verdict {
                Verdict::Freeze(pause) if pause <= BOUNDS.aim => "frozen",
                Verdict::Freeze(_) => "frozen for longer",
                Verdict::Stay(_) => "stays",
                Verdict::Again => "again",
            };
            assert_eq!(said, expected, "{rate} {link}: {foreseen:?}");
        };
        check(0.0, 100.0, "frozen");
        check(10.0, 100.0, "frozen");
        check(60.0, 100.0, "frozen");
        check(90.0, 100.0, "frozen for longer");
        check(2000.0, 100.0, "stays");
        check(50.0, 1.0, "stays");
    }

    #[test]
    fn what_writes_nothing_takes_one_round() {
        let foreseen = evenly(64.0, 0.0).foresee(BOUNDS, 100.0 * MIB);
        assert_eq!(foreseen.rounds, 1);
        assert_eq!(foreseen.verdict, Verdict::Freeze(BOUNDS.fixed));
    }

    /// It writes 40 MiB again and again, and nothing else.
    #[test]
    fn pages_that_are_written_again_and_again_count_once() {
        let looks = LOOKS.map(|ms| (Duration::from_millis(ms), 40.0 / 1024.0));
        let dirtying = Dirtying::new(Bytes::mib(1024), &looks, 0.0);
        let foreseen = dirtying.foresee(BOUNDS, 100.0 * MIB);
        let Verdict::Freeze(pause) = foreseen.verdict else {
            panic!("{foreseen:?}");
        };
        let rest = pause.checked_sub(BOUNDS.fixed).unwrap();
        assert!((0.3..0.45).contains(&rest.as_secs_f64()), "{rest:?}");
    }

    #[test]
    fn what_grows_is_left_as_well() {
        let grows = Dirtying::new(Bytes::mib(10), &[], 50.0 * MIB);
        assert_eq!(grows.written(Duration::from_secs(2)), Bytes::mib(100));
        assert!((grows.rate() - 50.0 * MIB).abs() < 1.0);
    }

    #[test]
    fn a_link_that_takes_nothing_is_no_panic() {
        for link in [0.0, -1.0, f64::NAN] {
            let foreseen = evenly(1024.0, 10.0).foresee(BOUNDS, link);
            assert!(matches!(foreseen.verdict, Verdict::Stay(_)), "{foreseen:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_left_never_shrinks_and_rounds_end(
            looks in prop::collection::vec((0..2000_u64, -0.5..1.5_f64), 0..6),
            mib in 1..100_000_u64,
            growth in -1e6..1e9_f64,
            link in 1.0..1e10_f64,
        ) {
            let looks: Vec<_> = looks.into_iter().map(|(ms, part)| (Duration::from_millis(ms), part)).collect();
            let dirtying = Dirtying::new(Bytes::mib(mib), &looks, growth);
            let mut before = Bytes(0);
            for ms in (0..5000).step_by(70) {
                let now = dirtying.written(Duration::from_millis(ms));
                prop_assert!(now >= before);
                before = now;
            }
            prop_assert!(dirtying.foresee(BOUNDS, link).rounds <= rounds::ROUNDS_MAX as usize);
        }
    }
}
