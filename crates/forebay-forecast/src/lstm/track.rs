//! What cheap models say of one target, and how wrong they lately were.
//!
//! # Approach
//!
//! For every step the centres of the cheap models are put aside; when the target's
//! time has come, their errors are known and enter sorted windows, whose ranks
//! are the gaps that the network weighs. Values know errors about the last value,
//! about a linear fit and about a slow mean; peaks about the last value and the
//! peak of the window before. The unit of a target is its mean absolute change. Where peaks are no
//! target, their unit and changes are still inputs of the network, and the rest is left out.
//!
//! # Properties
//!
//! - A window of errors takes every error until it is full, then one in several, so
//!   that it remembers longer. Which one is drawn by a golden-ratio sequence: a
//!   fixed beat could miss every spike of a series that has one.
//! - What was not seen is not judged.

use std::collections::VecDeque;

use super::head::{Anchors, CENTRES};
use crate::Target;
use crate::history::{Rough, narrow};
use crate::least_squares::LeastSquares;
use crate::mean::Mean;
use crate::ranked::{RankedWindow, Upward};

/// Inputs of the fit.
pub(super) const INPUTS: usize = 16;
/// Trace of its covariance above which that is halved.
const TRACE_MAX: f32 = 1e6;
/// Errors that are remembered: 0.99 wants many.
const REMEMBERED: usize = 256;

/// Weight of the newest change in the unit of a target, once there are many.
const UNIT_RATE: f64 = 1.0 / 256.0;
/// Changes that are not learnt from by the fit.
const FIT_COLD: u32 = 16;
/// Most that a fit is told it erred, in its scale.
const FIT_ERROR_MAX: f32 = 10.0;
/// Weight of the newest error of a centre.
const EVIDENCE_RATE: f64 = 1.0 / 128.0;
/// Bound of evidence.
const EVIDENCE_MAX: f32 = 5.0;
/// Bound of centres and gaps, in units.
const ANCHOR_MAX: f32 = 100.0;

type Errors = RankedWindow<Upward, REMEMBERED>;

/// What the features of a step say to all targets, in the unit of the series.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) last: f64,
    pub(super) slow: f64,
    /// Least unit of any target.
    pub(super) unit_min: f64,
    /// Lowest and highest value that is believed of a fit.
    pub(super) bounds: (f64, f64),
}

/// Draws which errors enter a full window.
#[derive(Clone, Debug)]
struct Draw {
    sequence: u32,
    limit: u32,
    drawn: usize,
}

impl Draw {
    fn one_in(stride: usize) -> Self {
        let stride = u32::try_from(stride).unwrap_or(u32::MAX).max(1);
        Self {
            sequence: 0,
            limit: u32::MAX / stride,
            drawn: 0,
        }
    }

    fn next(&mut self) -> bool {
        self.sequence = self.sequence.wrapping_add(0x9e37_79b9);
        let wanted = self.drawn < REMEMBERED || self.sequence <= self.limit;
        self.drawn += usize::from(wanted);
        wanted
    }
}

/// A value at one horizon.
#[derive(Clone, Debug)]
pub(super) struct ValueTrack {
    pub(super) steps: usize,
    pending: VecDeque<PendingValue>,
    fit: LeastSquares<INPUTS>,
    errors: [Errors; 3],
    draw: Draw,
    change: Mean,
    misses: Misses,
    /// Where the fit now sees the target, in the unit of the series.
    pub(super) expected: f64,
}

/// Mean absolute errors of the centres; a fit's is the last.
#[derive(Clone, Debug, Default)]
struct Misses {
    means: [f32; CENTRES],
    count: u32,
}

#[derive(Clone, Debug)]
struct PendingValue {
    x: [Rough; INPUTS],
    scale: f32,
    last: f32,
    expected: f32,
    slow: f32,
    /// Differences from the last value.
    centres: [Rough; CENTRES],
    known: bool,
}

impl ValueTrack {
    pub(super) fn new(steps: usize) -> Self {
        Self {
            steps,
            pending: VecDeque::with_capacity(steps),
            fit: LeastSquares::new(TRACE_MAX),
            errors: std::array::from_fn(|_| Errors::new()),
            draw: Draw::one_in(4 + steps / 12),
            change: Mean::default(),
            misses: Misses::default(),
            expected: 0.0,
        }
    }

    /// A step passed: what was put aside about it is judged.
    pub(super) fn observe(&mut self, sample: Option<f64>) {
        if self.pending.len() < self.steps {
            return;
        }
        let Some(then) = self.pending.pop_front() else {
            return;
        };
        let Some(value) = sample.filter(|_| then.known) else {
            return;
        };
        let value = f64::from(narrow(value));
        let change = value - f64::from(then.last);
        self.change.push(change.abs(), UNIT_RATE);
        self.misses.judge(&then.centres, change);
        // Before, the scale of a first step may be that of no change at all.
        if self.change.count() > FIT_COLD {
            let scale = f64::from(then.scale);
            let clip = narrow(6.0 * self.change.value / scale).min(FIT_ERROR_MAX);
            self.fit
                .learn(&then.x.map(Rough::get), narrow(change / scale), clip);
        }
        if self.draw.next() {
            let centres = [then.last, then.expected, then.slow];
            for (errors, centre) in self.errors.iter_mut().zip(centres) {
                errors.push(value - f64::from(centre));
            }
        }
    }

    /// Puts aside what is expected now, and says it. `centres` are differences from the last
    /// value, in the unit of the series, without those of what is usual about the slow
    /// mean and of the fit, which come last.
    pub(super) fn put_aside(
        &mut self,
        now: Now,
        (x, scale): (&[f32; INPUTS], f64),
        centres: [f64; CENTRES - 2],
    ) -> Anchors {
        let fitted = now.last + scale * f64::from(self.fit.predict(x));
        self.expected = fitted.clamp(now.bounds.0, now.bounds.1);
        let quantiles = self.errors.each_ref().map(quantiles);
        let unit = unit(self.change.value, &quantiles[0], now.unit_min);
        let fit = self.expected - now.last;
        // The slow mean is pulled by spikes; what was lately seen about it is not.
        let usual = now.slow + f64::from(quantiles[2][0]) - now.last;
        let mut differences = [0.0; CENTRES];
        let all = centres.into_iter().chain([usual, fit]);
        differences.iter_mut().zip(all).for_each(|(d, c)| *d = c);
        let anchors = Anchors {
            unit: narrow(unit),
            gaps: gaps(&quantiles, unit),
            centres: differences.map(|difference| in_units(difference, unit)),
            evidence: self.misses.evidence(),
        };
        self.pending.push_back(PendingValue {
            x: x.map(Rough::new),
            scale: narrow(scale).max(f32::MIN_POSITIVE),
            last: narrow(now.last),
            expected: narrow(self.expected),
            slow: narrow(now.slow),
            centres: differences.map(|difference| Rough::new(narrow(difference))),
            known: true,
        });
        anchors
    }

    /// As before, for a step without a sample.
    pub(super) fn put_nothing_aside(&mut self) {
        self.pending.push_back(PendingValue {
            x: [Rough::ZERO; INPUTS],
            scale: 1.0,
            last: 0.0,
            expected: 0.0,
            slow: 0.0,
            centres: [Rough::ZERO; CENTRES],
            known: false,
        });
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let pending = self.pending.capacity() * size_of::<PendingValue>();
        size_of::<Self>() + pending + self.fit.heap_bytes()
    }

    /// How much less the fit errs than the last value does: 0 as much, 1 never.
    pub(super) fn gain(&self) -> f32 {
        if self.change.value > 0.0 {
            let fit = f64::from(self.misses.means[CENTRES - 1]);
            narrow((1.0 - fit / self.change.value).max(-1.0))
        } else {
            0.0
        }
    }

    /// The median of changes, in the unit of the series.
    pub(super) fn drift(&self) -> f32 {
        quantiles(&self.errors[0])[0]
    }
}

/// The peak within one horizon.
#[derive(Clone, Debug)]
pub(super) struct PeakTrack {
    pub(super) steps: usize,
    /// About the last value.
    errors: Errors,
    draw: Draw,
    change: Mean,
    /// What only those need who forecast peaks.
    target: Option<Box<PeakTarget>>,
}

#[derive(Clone, Debug)]
struct PeakTarget {
    pending: VecDeque<Option<PendingPeak>>,
    /// About the peak before.
    errors: Errors,
    misses: Misses,
}

#[derive(Clone, Debug)]
struct PendingPeak {
    before: f32,
    centres: [Rough; CENTRES],
}

/// The greatest sample of as many steps as a horizon has, and the one right before them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) peak: f64,
    pub(super) last: f64,
}

impl PeakTrack {
    /// What is not among the targets is not forecast.
    pub(super) fn new(steps: usize, targets: &[Target]) -> Self {
        let is_target = targets.contains(&Target::Peak);
        Self {
            steps,
            errors: Errors::new(),
            draw: Draw::one_in(4 + steps / 12),
            change: Mean::default(),
            target: is_target.then(|| {
                Box::new(PeakTarget {
                    pending: VecDeque::with_capacity(steps),
                    errors: Errors::new(),
                    misses: Misses::default(),
                })
            }),
        }
    }

    /// A step passed; what was seen is None where one of the steps was not.
    pub(super) fn observe(&mut self, seen: Option<Seen>) {
        let then = self
            .target
            .as_mut()
            .and_then(|target| target.due(self.steps));
        let Some(Seen { peak, last }) = seen else {
            return;
        };
        let change = peak - last;
        self.change.push(change.abs(), UNIT_RATE);
        let drawn = self.draw.next();
        if drawn {
            self.errors.push(change);
        }
        if let (Some(target), Some(then)) = (&mut self.target, then) {
            target.misses.judge(&then.centres, change);
            if drawn {
                target.errors.push(peak - f64::from(then.before));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let target = self.target.as_ref().map_or(0, |target| {
            size_of::<PeakTarget>() + target.pending.capacity() * size_of::<Option<PendingPeak>>()
        });
        size_of::<Self>() + target
    }

    /// The unit of the peak, and how far it was seen above the last value: the quantiles.
    pub(super) fn changes(&self, now: Now) -> (f64, [f32; 4]) {
        let changes = quantiles(&self.errors);
        (unit(self.change.value, &changes, now.unit_min), changes)
    }

    /// `before` is the peak of the window that ends now; `centres` as for values. None if peaks are
    /// no target.
    pub(super) fn put_aside(
        &mut self,
        now: Now,
        before: f64,
        centres: [f64; CENTRES],
    ) -> Option<Anchors> {
        let (unit, changes) = self.changes(now);
        let target = self.target.as_mut()?;
        let quantiles = [changes, quantiles(&target.errors)];
        // Not the last value but what was seen above it: the first centre.
        let mut centres = centres;
        centres[0] = f64::from(changes[0]);
        target.pending.push_back(Some(PendingPeak {
            before: narrow(before),
            centres: centres.map(|centre| Rough::new(narrow(centre))),
        }));
        Some(Anchors {
            unit: narrow(unit),
            gaps: gaps(&quantiles, unit),
            centres: centres.map(|centre| in_units(centre, unit)),
            evidence: target.misses.evidence(),
        })
    }

    /// As before, for a step without a sample.
    pub(super) fn put_nothing_aside(&mut self) {
        if let Some(target) = &mut self.target {
            target.pending.push_back(None);
        }
    }
}

impl PeakTarget {
    /// What was put aside that many steps ago.
    fn due(&mut self, steps: usize) -> Option<PendingPeak> {
        if self.pending.len() < steps {
            return None;
        }
        self.pending.pop_front().flatten()
    }
}

impl Misses {
    /// Takes the errors of centres in, which are differences like `actual`.
    fn judge(&mut self, centres: &[Rough; CENTRES], actual: f64) {
        self.count = self.count.saturating_add(1);
        let rate = narrow(EVIDENCE_RATE.max(1.0 / f64::from(self.count)));
        for (mean, &centre) in self.means.iter_mut().zip(centres) {
            let miss = narrow((actual - f64::from(centre.get())).abs());
            *mean += rate * (miss - *mean);
        }
    }

    /// What the errors say of each centre: 0 for the best.
    fn evidence(&self) -> [f32; CENTRES] {
        let errors = self.means.map(f64::from);
        let least = errors.iter().copied().fold(f64::INFINITY, f64::min);
        let most = errors.iter().copied().fold(0.0, f64::max);
        // Without errors there is no evidence.
        let floor = 1e-3 * most + f64::MIN_POSITIVE;
        errors.map(|error| {
            let worse = narrow((error + floor) / (least + floor)).ln();
            -worse.min(EVIDENCE_MAX)
        })
    }
}

/// The quantiles of errors; zeros while there is none.
fn quantiles(errors: &Errors) -> [f32; 4] {
    errors.quantiles().unwrap_or_default().map(narrow)
}

/// Mean change, but not so small that the tail of changes is out of proportion.
fn unit(mean_change: f64, changes: &[f32; 4], unit_min: f64) -> f64 {
    let tail = f64::from(changes[3] - changes[0]);
    mean_change.max(0.02 * tail).max(unit_min)
}

pub(super) fn in_units(difference: f64, unit: f64) -> f32 {
    narrow(difference / unit).clamp(-ANCHOR_MAX, ANCHOR_MAX)
}

/// Distances between neighbouring quantiles by source; the last source is the unit
/// itself, so that there is always something to scale.
fn gaps<const SOURCES: usize>(
    quantiles: &[[f32; 4]; SOURCES],
    unit: f64,
) -> [[f32; super::head::SPREADS]; 3] {
    std::array::from_fn(|level| {
        std::array::from_fn(|source| match quantiles.get(source) {
            Some(q) => in_units(f64::from(q[level + 1] - q[level]), unit),
            None if source + 1 == super::head::SPREADS => 1.0,
            None => 0.0,
        })
    })
}
