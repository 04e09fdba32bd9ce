//! Whether an app needs more after an occasion than at other times, and how much.
//!
//! # Problem
//!
//! A host has dozens of timers, and most of them mean nothing to most apps. After a few occurrences
//! it has to be told which ones matter, from series that are noisy, drift and burst by themselves.
//!
//! # Approach
//!
//! For each occurrence, the time after it is divided into [`BINS`] parts that grow, and what is kept
//! is by how much the peak of each part was above the level before (the median of ten one-minute
//! peaks). The same is done at times when nothing occurred: the *controls*. Then the question is one
//! of ranks. If occurrences were like other times, the `r`-th smallest of `m` controls would be
//! exceeded by `k` of `n` occurrences as a draw from an urn says (a beta-binomial law with `m - r + 1`
//! and `r`), whatever the distribution is. It is asked for each part and for two ranks, the highest
//! control and one below the top eighth, and the least probability is compared with [`ALPHA`]
//! divided by the number of questions (Bonferroni).
//!
//! The parts that stand out say when the effect begins and ends. The greatest rise over them is one
//! number for each occurrence, and a prediction interval of those is what the next will need.
//!
//! # Properties
//!
//! - Three occurrences above all of 32 controls are enough; less distinct effects need more.
//! - What is not worth planning for is no effect: less than a tenth of the level before, or less than
//!   [`least`] of the resource.
//! - Three occurrences in a row without it, and the effect is forgotten.
//! - At most [`SEEN_MAX`] occurrences and [`CONTROLS_MAX`] controls are kept, 1.5 KiB in all.
//!
//! Sources: Wilks, "Statistical prediction with special reference to the problem of tolerance limits"
//! (1942), for exceedances; Hahn and Meeker, "Statistical Intervals" (1991), for the prediction
//! interval of one more value.

use std::collections::VecDeque;

use forebay_forecast::Quantiles;
use serde::{Deserialize, Serialize};

use super::numbers::{median, quantiles_of, rough};
use crate::outlook::Resource;

/// Parts that the time after an occurrence is divided into.
pub(super) const BINS: usize = 8;
/// Where parts begin and end, in sixtieths of that time.
pub(super) const EDGES: [u64; BINS + 1] = [0, 1, 3, 6, 12, 20, 30, 45, 60];
/// Occurrences that are remembered.
pub const SEEN_MAX: usize = 12;
/// Times without an occurrence that are remembered.
pub const CONTROLS_MAX: usize = 32;
/// Fewer controls tell nothing.
const CONTROLS_MIN: usize = 20;
/// Fewer occurrences tell nothing.
pub const SEEN_MIN: usize = 3;
/// From so many occurrences on, what was declared counts no more.
pub const MEASURED_MIN: usize = 6;
/// The chance, in one look at one app and resource, to see an effect where there is none.
pub const ALPHA: f64 = 0.0025;
/// Ranks that are asked about.
const RANKS: usize = 2;
/// So many occurrences in a row without an effect end it.
const MISSES_MAX: usize = 3;
/// Share of the level before that a rise has to be.
const SHARE_MIN: f64 = 0.1;

/// The time after one occurrence, or after a time that was like any other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Course {
    /// Before, in the unit of the resource.
    #[serde(serialize_with = "rough")]
    pub(super) level: f32,
    /// By how much the peak of each part was above it; negative where it was below.
    #[serde(serialize_with = "super::numbers::rough_all")]
    pub(super) rises: [f32; BINS],
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Effect {
    /// The first part with it.
    pub(super) first: usize,
    /// The last part with it.
    pub(super) last: usize,
    /// How probable so much would be if there were no effect.
    pub(super) p: f64,
}

/// What is known of one source's effect on one resource of one app.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Evidence {
    pub(super) seen: VecDeque<Course>,
    controls: VecDeque<[f32; BINS]>,
    #[serde(skip)]
    effect: Option<Effect>,
}

impl Evidence {
    pub(super) fn add_seen(&mut self, course: Course, resource: Resource) {
        push(&mut self.seen, course, SEEN_MAX);
        self.judge(resource);
    }

    pub(super) fn add_control(&mut self, course: Course, resource: Resource) {
        push(&mut self.controls, course.rises, CONTROLS_MAX);
        // Before the third occurrence there is nothing to judge.
        if self.seen.len() >= SEEN_MIN {
            self.judge(resource);
        }
    }

    /// What was restored may be longer than is kept, and its effect is to be found again.
    pub(super) fn restore(&mut self, resource: Resource) {
        self.seen.truncate(SEEN_MAX);
        self.controls.truncate(CONTROLS_MAX);
        self.judge(resource);
    }

    /// Whether only numbers are in it.
    pub(super) fn is_plausible(&self) -> bool {
        let courses = self.seen.iter();
        let numbers = courses.flat_map(|course| course.rises.iter().chain([&course.level]));
        numbers
            .chain(self.controls.iter().flatten())
            .all(|number| number.is_finite())
    }

    pub(super) fn effect(&self) -> Option<Effect> {
        self.effect
    }

    fn judge(&mut self, resource: Resource) {
        self.effect = self.find(resource);
    }

    fn find(&self, resource: Resource) -> Option<Effect> {
        if self.seen.len() < SEEN_MIN || self.controls.len() < CONTROLS_MIN {
            return None;
        }
        let level = median(self.seen.iter().map(|course| f64::from(course.level)))?;
        let worth = (SHARE_MIN * level).max(least(resource));
        let bins: Vec<Bin> = (0..BINS).map(|bin| self.bin(bin)).collect();
        let bound = ALPHA / (BINS * RANKS) as f64;
        let is_found = |bin: &Bin| bin.p <= bound && bin.rise >= worth;
        let mut first = bins.iter().position(is_found)?;
        let mut last = bins.iter().rposition(is_found)?;
        let lately = self.seen.iter().rev().take(MISSES_MAX);
        let is_there =
            |course: &Course| (first..=last).any(|bin| course.rises[bin] > bins[bin].usual);
        if !lately.into_iter().any(is_there) {
            return None;
        }
        // Neighbours where most occurrences stand out belong to it, too.
        let belongs = |bin: &Bin| bin.rise >= worth && bin.rise > f64::from(bin.usual);
        while first > 0 && belongs(&bins[first - 1]) {
            first -= 1;
        }
        while last + 1 < BINS && belongs(&bins[last + 1]) {
            last += 1;
        }
        let p = bins.iter().map(|bin| bin.p).fold(1.0, f64::min);
        let p = (p * (BINS * RANKS) as f64).min(1.0);
        Some(Effect { first, last, p })
    }

    fn bin(&self, bin: usize) -> Bin {
        let mut controls: Vec<f32> = self.controls.iter().map(|rises| rises[bin]).collect();
        controls.sort_unstable_by(f32::total_cmp);
        let m = controls.len();
        let low = (7 * (m + 1)).div_ceil(8).min(m);
        let p = [low, m].map(|rank| {
            let above = |course: &&Course| course.rises[bin] > controls[rank - 1];
            let k = self.seen.iter().filter(above).count();
            chance(k, self.seen.len(), (m - rank + 1, rank))
        });
        let rises = self.seen.iter().map(|course| f64::from(course.rises[bin]));
        Bin {
            p: p[0].min(p[1]),
            usual: controls[low - 1],
            rise: median(rises).unwrap_or(0.0),
        }
    }

    /// The greatest need over some parts: above `level` where one is given, as it was otherwise.
    pub(super) fn peak(&self, parts: (usize, usize), level: Option<f64>) -> Option<Quantiles> {
        let (first, last) = parts;
        let peaks = self.seen.iter().map(|course| {
            let rises = course.rises[first..=last].iter().copied();
            let rise = rises.fold(f32::NEG_INFINITY, f32::max);
            level.unwrap_or_else(|| f64::from(course.level)) + f64::from(rise)
        });
        quantiles_of(peaks.collect())
    }

    /// The median of the greatest rises over some parts.
    pub(super) fn rise(&self, parts: (usize, usize)) -> Option<f64> {
        let (first, last) = parts;
        median(self.seen.iter().map(|course| {
            let rises = course.rises[first..=last].iter().copied();
            f64::from(rises.fold(f32::NEG_INFINITY, f32::max))
        }))
    }
}

struct Bin {
    p: f64,
    /// What controls seldom exceed.
    usual: f32,
    /// The median of occurrences.
    rise: f64,
}

pub(super) fn push<T>(ring: &mut VecDeque<T>, value: T, max: usize) {
    if ring.len() >= max {
        ring.pop_front();
    }
    ring.push_back(value);
}

/// The chance that at least `k` of `n` draws are of the first kind, from an urn with so many of two
/// kinds, into which every ball goes back with another of its kind.
pub(super) fn chance(k: usize, n: usize, (first, second): (usize, usize)) -> f64 {
    let exactly = |k: usize| {
        let mut p = 1.0;
        for i in 0..k {
            p *= (first + i) as f64 / (first + second + i) as f64 * (n - i) as f64 / (i + 1) as f64;
        }
        for i in 0..n - k {
            p *= (second + i) as f64 / (first + second + k + i) as f64;
        }
        p
    };
    (k..=n).map(exactly).sum::<f64>().min(1.0)
}

/// A rise that is not worth planning for, in the unit of the resource.
#[must_use]
pub const fn least(resource: Resource) -> f64 {
    match resource {
        Resource::Cpu => 0.05,
        Resource::Memory => 16.0 * 1024.0 * 1024.0,
        Resource::Io | Resource::Received | Resource::Sent => 256.0 * 1024.0,
        Resource::Requests => 1.0,
        Resource::ResponseTime => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_are_those_of_the_urn() {
        let check = |k, n, urn, expected: f64| {
            let found = chance(k, n, urn);
            assert!((found - expected).abs() < 1e-9, "{k} of {n}: {found}");
        };
        check(0, 5, (1, 32), 1.0);
        check(1, 1, (1, 32), 1.0 / 33.0);
        check(3, 3, (1, 32), 6.0 / (33.0 * 34.0 * 35.0));
        check(1, 2, (1, 1), 2.0 / 3.0);
        check(2, 2, (1, 1), 1.0 / 3.0);
        let all: f64 = (0..=12)
            .map(|k| {
                chance(k, 12, (4, 29)) - chance(k + 1, 12, (4, 29)) * f64::from(u8::from(k < 12))
            })
            .sum();
        assert!((all - 1.0).abs() < 1e-9, "{all}");
    }

    #[test]
    fn an_effect_is_found_where_it_is() {
        let mut evidence = Evidence::default();
        let course = |rises: [f32; BINS]| Course { level: 1.0, rises };
        for n in 0..32_u8 {
            evidence.add_control(course([f32::from(n) * 0.01; BINS]), Resource::Cpu);
        }
        let with = |at: usize| {
            let mut rises = [0.1; BINS];
            rises[at] = 2.0;
            rises[at + 1] = 2.5;
            course(rises)
        };
        evidence.add_seen(with(2), Resource::Cpu);
        evidence.add_seen(with(2), Resource::Cpu);
        assert_eq!(evidence.effect(), None);
        evidence.add_seen(with(2), Resource::Cpu);
        let effect = evidence.effect().unwrap();
        assert_eq!((effect.first, effect.last), (2, 3));
        assert!(effect.p < ALPHA);
        let peak = evidence.peak((2, 3), None).unwrap();
        assert!((peak.q95() - 3.5).abs() < 1e-6, "{peak:?}");
        // Three times without it, after six with it.
        (0..3).for_each(|_| evidence.add_seen(with(2), Resource::Cpu));
        for _ in 0..3 {
            assert!(evidence.effect().is_some());
            evidence.add_seen(course([0.1; BINS]), Resource::Cpu);
        }
        assert_eq!(evidence.effect(), None);
    }
}
