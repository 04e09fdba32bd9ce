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
//! - One pass over the history for each sample, and one for all horizons together.
//! - Quantiles are of what was seen: nothing is extrapolated, but for the move.
//!
//! Sources: Lorenz, "Atmospheric predictability as revealed by naturally occurring analogues",
//! 1969; Sugihara and May, "Nonlinear forecasting as a way of distinguishing chaos from
//! measurement error in time series", 1990.

use super::{LEVELS, level};

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
/// How far beyond the neighbours the next step looks for them.
const LOOK_BEYOND: f32 = 1.1;
/// Moments that one look finds, at most.
const FOUND_MAX: usize = 8 * NEIGHBOURS;
/// Moments found in a look, from which it looks less far the next time.
const CROWD: usize = 3 * NEIGHBOURS;

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Analogues {
    /// By lag, in squared units.
    distances: Vec<f32>,
    /// The longest horizon: lags from there on serve all of them.
    far: usize,
    /// The nearest [`NEIGHBOURS`] of the lags from `far` on.
    nearest: Vec<Moment>,
    /// How far was looked for them.
    reach: f32,
}

/// A distance and its lag in one integer, which sorts as the distance does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(u64);

impl Moment {
    fn new(distance: f32, lag: usize) -> Self {
        // Bits of numbers that are not negative sort as these do. Lags are below 2^16.
        Self(u64::from(distance.to_bits()) << 16 | lag as u64)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the upper part")]
    fn distance(self) -> f32 {
        f32::from_bits((self.0 >> 16) as u32)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lower part")]
    fn lag(self) -> u16 {
        self.0 as u16
    }
}

/// Moments like the present one: how long ago, and what each weighs.
pub(super) type Neighbours = Vec<(u16, f32)>;

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
            distances: vec![0.0; history_max],
            far,
            nearest: Vec::new(),
            reach: 0.0,
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
            *distance = *distance * KEPT + (difference * difference).min(DIFFERENCE_MAX);
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
        // Most steps find them where the last one did, and a few more.
        let mut within = [Moment(0); FOUND_MAX];
        let found = find(distances, self.far, self.reach, &mut within);
        if let Some(found) = found.filter(|&f| f >= NEIGHBOURS.min(distances.len())) {
            let kept = keep_nearest(&mut within[..found], NEIGHBOURS);
            self.nearest.extend_from_slice(kept);
            if found <= CROWD {
                return;
            }
        } else {
            let lags = distances.iter().zip(self.far..);
            let mut all: Vec<Moment> = lags.map(|(&d, lag)| Moment::new(d, lag)).collect();
            let kept = keep_nearest(&mut all, NEIGHBOURS);
            self.nearest.extend_from_slice(kept);
        }
        self.reach = furthest(&self.nearest) * LOOK_BEYOND;
    }

    /// The moments at least `steps` ago that are most like the present one, of `len` in all.
    /// None while there are too few.
    pub(super) fn neighbours(&self, len: usize, steps: usize) -> Option<Neighbours> {
        let moments = len.checked_sub(steps)?;
        if moments < MOMENTS_MIN {
            return None;
        }
        let near = steps..self.far.min(len);
        let mut moments_near = Vec::with_capacity(self.nearest.len() + near.len());
        moments_near.extend_from_slice(&self.nearest);
        moments_near.extend(near.map(|lag| Moment::new(self.distances[lag], lag)));
        let wanted = (moments / ONE_IN).clamp(NEIGHBOURS_MIN, NEIGHBOURS);
        let nearest = keep_nearest(&mut moments_near, wanted);
        let most = furthest(nearest).max(f32::MIN_POSITIVE);
        let weigh = |m: &Moment| (m.lag(), 1.0 - FURTHEST * m.distance() / most);
        Some(nearest.iter().map(weigh).collect())
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let nearest = self.nearest.capacity() * size_of::<Moment>();
        nearest + self.distances.capacity() * size_of::<f32>()
    }
}

/// Puts the moments within a reach into `found`, the first lag being `first`. Their number; None
/// if there are more than it holds.
fn find(distances: &[f32], first: usize, reach: f32, found: &mut [Moment]) -> Option<usize> {
    const LANES: usize = 8;
    let mut count = 0;
    for (chunk, first) in distances.chunks(LANES).zip((first..).step_by(LANES)) {
        // Most hold none, and that is seen for all of a chunk at once.
        if !chunk.iter().fold(false, |any, &d| any | (d <= reach)) {
            continue;
        }
        for (&distance, lag) in chunk.iter().zip(first..) {
            if distance <= reach {
                *found.get_mut(count)? = Moment::new(distance, lag);
                count += 1;
            }
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
    moments.iter().fold(0.0, |most, m| most.max(m.distance()))
}

/// Mean and quantiles of the first [`NEIGHBOURS`] values, each with its weight. None if there are
/// none.
///
/// The quantile at a level lies where that part of the weight is below, the levels being those
/// of one value more, as with ranks of exchangeable values, and `above` of a rank on top: windows
/// that overlap are fewer than they look.
pub(super) fn sequel(values: impl Iterator<Item = (f32, f32)>, above: f64) -> Option<Sequel> {
    let mut sorted = [0; NEIGHBOURS];
    let mut count = 0;
    for (place, (value, weight)) in sorted.iter_mut().zip(values) {
        *place = pack(value, weight);
        count += 1;
    }
    let sorted = &mut sorted[..count];
    let &mut [.., _] = sorted else { return None };
    sorted.sort_unstable();
    let (mut total, mut sum) = (0.0, 0.0);
    for (value, weight) in sorted.iter().copied().map(unpack) {
        total += weight;
        sum += f64::from(value) * f64::from(weight);
    }
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let one = 1.0 / sorted.len() as f64;
    // To the middle of the value of that rank, and not to its upper end.
    let moved = one * (above - 0.5);
    let mut quantiles = [f64::from(unpack(sorted[sorted.len() - 1]).0); LEVELS];
    let mut rest = sorted.iter().copied().map(unpack);
    let mut next = rest.next();
    let (mut below, mut before) = (0.0, None);
    for (index, quantile) in quantiles.iter_mut().enumerate() {
        let wanted = (level(index) * (1.0 + one) + moved) * f64::from(total);
        while let Some((value, weight)) = next {
            let middle = below + 0.5 * f64::from(weight);
            if middle >= wanted {
                let (least, from) = before.unwrap_or((value, 0.0));
                let part = (wanted - from) / (middle - from).max(f64::MIN_POSITIVE);
                *quantile = f64::from(least) + part.min(1.0) * f64::from(value - least);
                break;
            }
            before = Some((value, middle));
            below += f64::from(weight);
            next = rest.next();
        }
    }
    Some(Sequel {
        mean: sum / f64::from(total),
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
                let mut lags: Vec<usize> = found.iter().map(|n| usize::from(n.0)).collect();
                let mut all: Vec<usize> = (steps..history.len()).collect();
                let distance = |lag: &usize| analogues.distances[*lag];
                all.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
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
