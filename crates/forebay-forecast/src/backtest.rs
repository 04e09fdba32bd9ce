//! What a forecaster's errors were, by horizon, and how good its bound was.
//!
//! # Problem
//!
//! Intervals that a model derives from its own assumptions are its weak part: on
//! workload traces one spike inflates them for long, or they are far too narrow.
//! And the peak within a window has no simple relation to the value at its end.
//!
//! # Approach
//!
//! Rolling-origin evaluation, online. At some steps (*origins*) the forecaster's
//! centres for each configured horizon are put aside. While an origin is pending,
//! the greatest sample since then is tracked; when its time comes, two errors are
//! known: of the value, and of the peak. Each goes to a sorted window of the last
//! 128, whose ranks are the quantiles around the next centre.
//! So the quantiles of a peak are those of peaks that were seen, not a guess
//! from the quantiles of values.
//!
//! Origins are a quarter of the horizon apart: errors of neighbouring origins
//! over a long horizon say nearly the same, and spacing them makes the window
//! remember 32 horizons. At most four are pending for a horizon. (On the traces
//! that [`select`](crate::select) was measured on, eighths remember too little: the loss at 0.95
//! is 10 % higher 12 steps ahead and 3 % higher 60 steps ahead.)
//!
//! The bound at 0.95 is put aside too, and scored by pinball loss with
//! exponential forgetting when its time comes.
//!
//! # Properties
//!
//! - Over exchangeable errors a quantile covers at least its level (the ranks
//!   are those of split-conformal prediction); after a change of regime it is
//!   right again within the 128 errors.
//! - A gap at the end of a horizon drops the error of the value. A peak of which
//!   more than a quarter was not seen is dropped.
//! - Beyond the greatest horizon the errors are widened by the square root of
//!   the ratio, as those of a random walk would be.
//!
//! Sources: Tashman, "Out-of-sample tests of forecasting accuracy", 2000
//! (rolling origins); Vovk, Gammerman and Shafer, "Algorithmic learning in a
//! random world", 2005 (ranks); Koenker and Bassett, "Regression quantiles",
//! 1978 (pinball loss).

use std::collections::VecDeque;

use crate::history::narrow;
use crate::mean::Mean;
use crate::ranked::{Exact, RankedWindow};
use crate::{Quantiles, Target, pinball};

/// Origins pending for one horizon.
const PENDING_MAX: usize = 4;
/// Errors that are remembered for a horizon.
const ERRORS: usize = 128;
/// Errors that a horizon needs before it answers.
const WARM_ERRORS: usize = 16;
/// Scores over which the weight of an old one falls to 1/e.
const SCORE_MEMORY: f64 = 64.0;
/// The level that is scored, and its place: the planner's, mostly.
const SCORED: f64 = 0.95;
const SCORED_PLACE: usize = 2;

/// How good the 0.95 bounds of a forecaster were lately.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Mean pinball loss with exponential forgetting, in the unit of the series.
    /// Lower is better.
    pub pinball: f64,
    /// Forecasts judged so far.
    pub samples: u64,
}

/// Keeps the score of 0.95 bounds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Judge(Mean);

impl Judge {
    pub(crate) fn judge(&mut self, actual: f64, bound: f64) {
        self.0
            .push(pinball(actual, bound, SCORED), 1.0 / SCORE_MEMORY);
    }

    /// None before anything was judged.
    pub(crate) fn score(&self) -> Option<Score> {
        (self.0.count() > 0).then(|| Score {
            pinball: self.0.value,
            samples: u64::from(self.0.count()),
        })
    }
}

/// Where a forecaster expects a horizon's value and its peak.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Centre {
    pub(crate) value: f64,
    pub(crate) peak: f64,
}

impl Centre {
    fn of(self, target: Target) -> f64 {
        match target {
            Target::Value => self.value,
            Target::Peak => self.peak,
        }
    }
}

/// The pending forecasts and known errors of one forecaster.
#[derive(Clone, Debug)]
pub(crate) struct Backtest {
    horizons: Box<[Horizon]>,
    /// Steps so far; wraps.
    now: u32,
}

#[derive(Clone, Debug)]
struct Horizon {
    steps: usize,
    /// Steps between origins.
    stride: usize,
    until_origin: usize,
    pending: VecDeque<Origin>,
    value: Track,
    /// None for one step, where peak and value are the same, and where none is asked for.
    peak: Option<Box<Track>>,
}

#[derive(Clone, Debug)]
struct Origin {
    at: u32,
    missing: u32,
    centre: Centre,
    seen_peak: f64,
    value_bound: Option<f32>,
    peak_bound: Option<f32>,
}

#[derive(Clone, Debug)]
struct Track {
    errors: RankedWindow<Exact, ERRORS>,
    judge: Judge,
}

impl Backtest {
    /// `horizons` in steps, ascending, each at least 1.
    pub(crate) fn new(horizons: &[usize]) -> Self {
        Self::of(horizons, &[Target::Value, Target::Peak])
    }

    /// For these targets alone: of peaks, where they are none of them, the answers are those of
    /// values.
    pub(crate) fn of(horizons: &[usize], targets: &[Target]) -> Self {
        let horizon = |&steps: &usize| Horizon::new(steps, targets);
        Self {
            horizons: horizons.iter().map(horizon).collect(),
            now: 0,
        }
    }

    /// One step passed: the forecasts that were about it are judged.
    pub(crate) fn observe(&mut self, sample: Option<f64>) {
        self.now = self.now.wrapping_add(1);
        for horizon in &mut self.horizons {
            horizon.observe(self.now, sample);
        }
    }

    /// Puts aside the centres where an origin is due. `centre` is asked for each
    /// such horizon, in steps.
    pub(crate) fn put_aside(&mut self, centre: impl Fn(usize) -> Option<Centre>) {
        for horizon in &mut self.horizons {
            if horizon.until_origin > 0 {
                horizon.until_origin -= 1;
            } else if let Some(centre) = centre(horizon.steps) {
                horizon.until_origin = horizon.stride - 1;
                horizon.put_aside(self.now, centre);
            }
        }
    }

    /// Forgets the errors and scores: they were of another model.
    pub(crate) fn clear(&mut self) {
        for horizon in &mut self.horizons {
            let targets: &[Target] = match horizon.peak {
                Some(_) => &[Target::Value, Target::Peak],
                None => &[Target::Value],
            };
            *horizon = Horizon::new(horizon.steps, targets);
        }
    }

    /// Quantiles of a target around the centre. None while the horizon is cold.
    pub(crate) fn quantiles(
        &self,
        target: Target,
        steps: usize,
        centre: Centre,
    ) -> Option<Quantiles> {
        let horizon = self.horizon(steps)?;
        horizon
            .track(target)
            .around(centre.of(target), widening(steps, horizon.steps))
    }

    pub(crate) fn score(&self, target: Target, steps: usize) -> Option<Score> {
        self.horizon(steps)?.track(target).judge.score()
    }

    /// The shortest horizon that covers the steps, else the longest.
    fn horizon(&self, steps: usize) -> Option<&Horizon> {
        self.horizons
            .iter()
            .find(|horizon| horizon.steps >= steps)
            .or(self.horizons.last())
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let pending = |h: &Horizon| h.pending.capacity() * size_of::<Origin>();
        let peak = |h: &Horizon| h.peak.as_deref().map_or(0, size_of_val);
        self.horizons
            .iter()
            .map(|h| size_of::<Horizon>() + pending(h) + peak(h))
            .sum()
    }
}

impl Horizon {
    fn new(steps: usize, targets: &[Target]) -> Self {
        let has_peak = steps > 1 && targets.contains(&Target::Peak);
        Self {
            steps,
            stride: stride(steps),
            until_origin: 0,
            pending: VecDeque::with_capacity(PENDING_MAX.min(steps)),
            value: Track::new(),
            peak: has_peak.then(|| Box::new(Track::new())),
        }
    }

    fn track(&self, target: Target) -> &Track {
        match target {
            Target::Value => &self.value,
            Target::Peak => self.peak.as_deref().unwrap_or(&self.value),
        }
    }

    fn observe(&mut self, now: u32, sample: Option<f64>) {
        for origin in &mut self.pending {
            match sample {
                Some(sample) => origin.seen_peak = origin.seen_peak.max(sample),
                None => origin.missing += 1,
            }
        }
        let due = |origin: &Origin| now.wrapping_sub(origin.at) as usize >= self.steps;
        if !self.pending.front().is_some_and(due) {
            return;
        }
        let Some(origin) = self.pending.pop_front() else {
            return;
        };
        if let Some(sample) = sample {
            self.value
                .judge(sample, origin.centre.value, origin.value_bound);
        }
        if let Some(peak) = &mut self.peak
            && origin.missing as usize * 4 <= self.steps
        {
            peak.judge(origin.seen_peak, origin.centre.peak, origin.peak_bound);
        }
    }

    fn put_aside(&mut self, now: u32, centre: Centre) {
        let bound = |target| self.track(target).bound(centre.of(target));
        let origin = Origin {
            at: now,
            missing: 0,
            centre,
            seen_peak: f64::NEG_INFINITY,
            value_bound: bound(Target::Value),
            peak_bound: bound(Target::Peak),
        };
        // One for each stride, each leaves after `steps`: never more than PENDING_MAX.
        self.pending.push_back(origin);
    }
}

impl Track {
    fn new() -> Self {
        Self {
            errors: RankedWindow::new(),
            judge: Judge::default(),
        }
    }

    fn judge(&mut self, actual: f64, centre: f64, bound: Option<f32>) {
        self.errors.push(actual - centre);
        if let Some(bound) = bound {
            self.judge.judge(actual, f64::from(bound));
        }
    }

    fn bound(&self, centre: f64) -> Option<f32> {
        if self.errors.len() < WARM_ERRORS {
            return None;
        }
        let errors = self.errors.quantiles()?;
        Some(narrow((centre + errors[SCORED_PLACE]).max(0.0)))
    }

    fn around(&self, centre: f64, widening: f64) -> Option<Quantiles> {
        if self.errors.len() < WARM_ERRORS {
            return None;
        }
        let at = |error: f64| centre + error * widening;
        Quantiles::new(self.errors.quantiles()?.map(at))
    }
}

/// Whether a value is above a bound that was kept in single precision, and not only rounded off it.
pub(crate) fn is_above(value: f64, bound: f64) -> bool {
    value > bound + 1e-6 * bound.abs()
}

/// Steps over which the errors of a horizon are remembered, at most.
pub(crate) fn memory_steps(steps: usize) -> usize {
    stride(steps) * ERRORS + steps
}

/// Steps between the origins of a horizon.
fn stride(steps: usize) -> usize {
    steps.div_ceil(PENDING_MAX)
}

/// How much wider errors are at `steps` than at a shorter horizon.
pub(crate) fn widening(steps: usize, horizon: usize) -> f64 {
    if steps <= horizon {
        return 1.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "steps are far below 2^52")]
    (steps as f64 / horizon as f64).sqrt()
}
