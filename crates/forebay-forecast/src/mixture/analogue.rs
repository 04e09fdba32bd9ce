//! What came after moments that were like this one.
//!
//! # Problem
//!
//! Services fall into the same few courses again and again, at no fixed period: a batch job
//! begins, a cache warms up, a backup runs. A linear model of the last values averages over them.
//!
//! # Approach
//!
//! For each lag within the history the course that led there is compared with the present one:
//! the squared differences of the samples, discounted by age. That sum follows itself: with every
//! sample it is discounted and grows by one difference, for all lags in one pass. What followed
//! the nearest [`NEIGHBOURS`] moments, `steps` later, is the forecast: as it was, and moved by the
//! difference between then and now. The nearer weigh more.
//!
//! # Properties
//!
//! - One pass over the history for each sample, and one for all horizons together. A distance takes
//!   two bytes, and is right to half a percent.
//! - Quantiles are of what was seen: nothing is extrapolated, but for the move.
//!
//! Sources: Lorenz, "Atmospheric predictability as revealed by naturally occurring analogues",
//! 1969; Sugihara and May, "Nonlinear forecasting as a way of distinguishing chaos from
//! measurement error in time series", 1990.

use super::{LEVELS, level};
use crate::history::Rough;

/// Moments that a forecast is made of, at most.
pub(super) const NEIGHBOURS: usize = 64;
/// At most one in so many moments is a neighbour, and at least so many are.
const ONE_IN: usize = 3;
const NEIGHBOURS_MIN: usize = 8;
/// Moments that there must be.
const MOMENTS_MIN: usize = 60;
/// Weight of a difference one step older.
const KEPT: f32 = 0.6;
/// By how much the furthest neighbour weighs less than a perfect one.
const FURTHEST: f32 = 0.8;
/// A squared difference counts no more than this, in units.
const DIFFERENCE_MAX: f32 = 1e12;
/// Of one distance in so many it is told how far to look for the nearest, which are within that of
/// the place so given among them: twice as many as are wanted, mostly.
const SAMPLED: usize = 13;
const SAMPLED_PLACE: usize = 2 * NEIGHBOURS / SAMPLED;
/// Moments that one look finds, at most.
const FOUND_MAX: usize = 8 * NEIGHBOURS;
/// Distances that are looked through at once.
const LANES: usize = 16;

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Analogues {
    /// By lag, in squared units.
    distances: Box<[Rough]>,
    /// The longest horizon: lags from there on serve all of them.
    far: usize,
    /// The nearest [`NEIGHBOURS`] of the lags from `far` on.
    nearest: Vec<Moment>,
}

/// A distance and its lag in one integer, which sorts as the distance does and, of equal ones, as the
/// lag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(u32);

impl Moment {
    /// Of a lag below 2^16.
    fn new(distance: Rough, lag: u32) -> Self {
        // Bits of numbers that are not negative sort as these do.
        Self(u32::from(distance.to_bits()) << 16 | lag)
    }

    fn distance(self) -> Rough {
        Rough::from_bits((self.0 >> 16) as u16)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lower part")]
    fn lag(self) -> u16 {
        self.0 as u16
    }
}

/// Moments like the present one, and how far away the furthest of them is.
#[derive(Debug)]
pub(super) struct Neighbours {
    moments: Vec<Moment>,
    most: f32,
}

impl Neighbours {
    /// How long ago each was, and what it weighs.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, f32)> {
        let part = FURTHEST / self.most;
        let weigh = move |m: &Moment| (m.lag().into(), 1.0 - part * m.distance().get());
        self.moments.iter().map(weigh)
    }
}

/// What follows, by the neighbours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequel {
    pub(super) mean: f64,
    pub(super) quantiles: [f64; LEVELS],
}

impl Analogues {
    /// For histories of `history_max` samples, up to `far` steps ahead.
    pub(super) fn new(history_max: usize, far: usize) -> Self {
        Self {
            distances: vec![Rough::ZERO; history_max].into(),
            far,
            nearest: Vec::with_capacity(NEIGHBOURS),
        }
    }

    /// One step passed; the newest of `samples` is the last. `unit` is what differences are
    /// measured in.
    pub(super) fn step(&mut self, samples: &[f32], unit: f32) {
        let Some((&now, before)) = samples.split_last() else {
            return;
        };
        let part = unit.recip();
        let lags = self.distances.iter_mut().skip(1);
        for (distance, then) in lags.zip(before.iter().rev()) {
            let difference = (now - then) * part;
            let added = (difference * difference).min(DIFFERENCE_MAX);
            *distance = Rough::of_number(distance.get() * KEPT + added);
        }
        self.look(samples.len());
    }

    /// Finds the nearest of the far lags.
    fn look(&mut self, len: usize) {
        self.nearest.clear();
        let Some(distances) = self.distances.get(self.far..len) else {
            return;
        };
        if distances.len() < MOMENTS_MIN {
            return;
        }
        let mut within = [Moment(0); FOUND_MAX];
        let found = reach(distances)
            .and_then(|reach| find(distances, self.far, reach, &mut within))
            .filter(|&found| found >= NEIGHBOURS);
        if let Some(found) = found {
            let kept = keep_nearest(&mut within[..found], NEIGHBOURS);
            self.nearest.extend_from_slice(kept);
        } else {
            let mut all: Vec<Moment> = moments(distances, self.far).collect();
            let kept = keep_nearest(&mut all, NEIGHBOURS);
            self.nearest.extend_from_slice(kept);
        }
    }

    /// The moments at least `steps` ago that are most like the present one, of `len` in all.
    /// None while there are too few.
    pub(super) fn neighbours(&self, len: usize, steps: usize) -> Option<Neighbours> {
        let count = len.checked_sub(steps)?;
        if count < MOMENTS_MIN {
            return None;
        }
        let near = &self.distances[steps.min(self.far)..self.far.min(len)];
        let mut nearest = Vec::with_capacity(self.nearest.len() + near.len());
        nearest.extend_from_slice(&self.nearest);
        let near = moments(near, steps);
        match self.nearest.iter().max() {
            // Beyond all of a full number, none is among the nearest.
            Some(&last) if self.nearest.len() == NEIGHBOURS => {
                nearest.extend(near.filter(|&moment| moment < last));
            }
            _ => nearest.extend(near),
        }
        let wanted = (count / ONE_IN).clamp(NEIGHBOURS_MIN, NEIGHBOURS);
        let kept = keep_nearest(&mut nearest, wanted).len();
        nearest.truncate(kept);
        Some(Neighbours {
            most: furthest(&nearest).max(f32::MIN_POSITIVE),
            moments: nearest,
        })
    }

    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        self.nearest.capacity() * size_of::<Moment>() + size_of_val(&*self.distances)
    }
}

/// Distances with their lags, the first of which is `first`.
fn moments(distances: &[Rough], first: usize) -> impl Iterator<Item = Moment> {
    // Of a history there are at most 2^16.
    let lags = u32::try_from(first).unwrap_or(u32::MAX)..;
    let moment = |(&distance, lag)| Moment::new(distance, lag);
    distances.iter().zip(lags).map(moment)
}

/// Within which some of the distances are, more than [`NEIGHBOURS`] mostly. None of few.
fn reach(distances: &[Rough]) -> Option<Rough> {
    let sampled = distances.iter().step_by(SAMPLED);
    let mut sampled: Vec<u16> = sampled.map(|distance| distance.to_bits()).collect();
    if sampled.len() <= 2 * SAMPLED_PLACE {
        return None;
    }
    let (_, reach, _) = sampled.select_nth_unstable(SAMPLED_PLACE);
    Some(Rough::from_bits(*reach))
}

/// Puts the moments within a reach into `found`, the first lag being `first`. Their number; None
/// if there are more than it holds.
fn find(distances: &[Rough], first: usize, reach: Rough, found: &mut [Moment]) -> Option<usize> {
    let reach = reach.to_bits();
    let mut count = 0;
    for (chunk, first) in distances.chunks(LANES).zip((first..).step_by(LANES)) {
        let is_within = |distance: &Rough| distance.to_bits() <= reach;
        let mut within = match chunk.first_chunk::<LANES>() {
            // Bit by bit, so that the compiler makes vector instructions of it.
            Some(whole) => (0..LANES).fold(0_u16, |bits, lane| {
                bits | u16::from(is_within(&whole[lane])) << lane
            }),
            None => (0..chunk.len()).fold(0, |bits, lane| {
                bits | u16::from(is_within(&chunk[lane])) << lane
            }),
        };
        while within != 0 {
            let lane = within.trailing_zeros() as usize;
            let lag = u32::try_from(first + lane).unwrap_or(u32::MAX);
            *found.get_mut(count)? = Moment::new(chunk[lane], lag);
            count += 1;
            within &= within - 1;
        }
    }
    Some(count)
}

/// The `count` nearest, in no order.
fn keep_nearest(moments: &mut [Moment], count: usize) -> &[Moment] {
    if moments.len() > count {
        moments.select_nth_unstable(count);
    }
    &moments[..count.min(moments.len())]
}

fn furthest(moments: &[Moment]) -> f32 {
    moments.iter().max().map_or(0.0, |m| m.distance().get())
}

/// Mean and quantiles of the first [`NEIGHBOURS`] values, each with its weight. None if there are
/// none.
///
/// The quantile at a level lies where that part of the weight is below, the levels being those
/// of one value more, as with ranks of exchangeable values, and `above` of a rank on top: windows
/// that overlap are fewer than they look.
pub(super) fn sequel(values: impl Iterator<Item = (f32, f32)>, above: f64) -> Option<Sequel> {
    let mut sorted = [0; NEIGHBOURS];
    let (mut count, mut total, mut sum) = (0, 0.0, 0.0);
    for (place, (value, weight)) in sorted.iter_mut().zip(values) {
        *place = pack(value, weight);
        count += 1;
        total += f64::from(weight);
        sum += f64::from(value) * f64::from(weight);
    }
    let sorted = &mut sorted[..count];
    let &mut [.., _] = sorted else { return None };
    sorted.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let one = 1.0 / sorted.len() as f64;
    // To the middle of the value of that rank, and not to its upper end.
    let moved = one * (above - 0.5);
    // From the greatest down: the levels are in the upper half.
    let mut rest = sorted.iter().rev().copied().map(unpack);
    let (mut value, mut weight) = rest.next()?;
    let mut below = total - f64::from(weight);
    let mut middle = below + 0.5 * f64::from(weight);
    let (mut higher, mut beyond) = (value, middle);
    let mut quantiles = [0.0; LEVELS];
    for (index, quantile) in quantiles.iter_mut().enumerate().rev() {
        let wanted = (level(index) * (1.0 + one) + moved) * total;
        while middle > wanted {
            (higher, beyond) = (value, middle);
            let Some(next) = rest.next() else { break };
            (value, weight) = next;
            below -= f64::from(weight);
            middle = below + 0.5 * f64::from(weight);
        }
        let part = (wanted - middle) / (beyond - middle).max(f64::MIN_POSITIVE);
        *quantile = f64::from(value) + part.clamp(0.0, 1.0) * f64::from(higher - value);
    }
    Some(Sequel {
        mean: sum / total,
        quantiles,
    })
}

/// A value and its weight in one integer that sorts as the value does.
fn pack(value: f32, weight: f32) -> u64 {
    let bits = value.to_bits();
    let sign = 1 << 31;
    let ordered = if bits & sign == 0 { bits | sign } else { !bits };
    u64::from(ordered) << 32 | u64::from(weight.to_bits())
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves")]
fn unpack(packed: u64) -> (f32, f32) {
    let ordered = (packed >> 32) as u32;
    let sign = 1 << 31;
    let bits = if ordered & sign == 0 {
        !ordered
    } else {
        ordered & !sign
    };
    (f32::from_bits(bits), f32::from_bits(packed as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_moments_are_those_that_a_full_search_finds() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut analogues = Analogues::new(400, 20);
        let mut samples: Vec<f32> = Vec::new();
        for step in 0..900_u16 {
            samples.push(f32::from(step % 37) + 5.0 * random.f32());
            let history = &samples[samples.len().saturating_sub(400)..];
            analogues.step(history, 1.0);
            if history.len() < 100 {
                continue;
            }
            for steps in [1, 7, 20] {
                let found = analogues.neighbours(history.len(), steps).expect("enough");
                let mut lags: Vec<usize> = found.iter().map(|n| n.0).collect();
                let mut all: Vec<usize> = (steps..history.len()).collect();
                all.sort_by_key(|&lag| analogues.distances[lag].to_bits());
                all.truncate(lags.len());
                lags.sort_unstable();
                all.sort_unstable();
                assert_eq!(lags, all, "step {step}, {steps} ahead");
            }
        }
    }

    #[test]
    fn quantiles_are_those_of_equal_weights() {
        let values = (1_u8..=49).map(|value| (f32::from(value), 1.0));
        let at = |above| sequel(values.clone(), above).expect("there are values");
        let sequel = at(0.0);
        assert!((sequel.mean - 25.0).abs() < 1e-4);
        // Ranks 25, 45, 47.5 and 49.5 of 50, of which there are 49.
        for (found, expected) in sequel.quantiles.iter().zip([25.0, 45.0, 47.5, 49.0]) {
            assert!((found - expected).abs() < 1e-4, "{sequel:?}");
        }
        for (found, expected) in at(0.5).quantiles.iter().zip([25.5, 45.5, 48.0, 49.0]) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }

    #[test]
    fn values_sort_by_size_and_come_back_whole() {
        let mut values = [-3.5_f32, 0.0, -0.1, 7.0, 1e18, -1e18];
        let mut packed = values.map(|value| pack(value, 0.25));
        packed.sort_unstable();
        values.sort_by(f32::total_cmp);
        assert_eq!(packed.map(unpack), values.map(|value| (value, 0.25)));
    }
}
