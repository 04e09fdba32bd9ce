//! The network as one of the crate's forecasters.
//!
//! Its bounds are its own: they are judged by pinball loss at 0.95 as all others are,
//! from origins a quarter of the horizon apart, but not corrected by past errors.

use std::collections::VecDeque;
use std::sync::Arc;

use super::TARGETS;
use super::state::State;
use super::weights::Weights;
use crate::backtest::{Judge, widening};
use crate::{Forecaster, Quantiles, Score, Target};

/// Origins pending for one target.
const PENDING_MAX: usize = 4;

/// One series, forecast by shared weights.
#[derive(Clone, Debug)]
pub struct Lstm {
    weights: Arc<Weights>,
    state: State,
    targets: &'static [Target],
    /// By the place of the target. None where others judge the answers.
    trials: Vec<Trial>,
}

/// The bounds of one target whose time has not come, and the score of those before.
#[derive(Clone, Debug)]
struct Trial {
    target: Target,
    steps: usize,
    until_origin: usize,
    pending: VecDeque<Pending>,
    judge: Judge,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    age: usize,
    bound: f64,
    peak: f64,
    missing: usize,
}

impl Lstm {
    /// `period` in steps, if one is known.
    #[must_use]
    pub fn new(weights: Arc<Weights>, period: Option<usize>) -> Self {
        Self {
            state: State::new(&weights, period),
            targets: &TARGETS,
            trials: trials(&weights),
            weights,
        }
    }

    /// For one who judges the answers: it has no score. Without peaks among the targets it
    /// says nothing of them, and is smaller.
    pub(crate) fn member(weights: Arc<Weights>, targets: &[Target], period: Option<usize>) -> Self {
        let targets = if targets.contains(&Target::Peak) {
            &TARGETS[..]
        } else {
            &TARGETS[..1]
        };
        Self {
            state: State::of(&weights, targets, period),
            targets,
            trials: Vec::new(),
            weights,
        }
    }

    /// Another period, or none. Its season is used once a whole period was seen.
    pub fn set_period(&mut self, period: Option<usize>) {
        self.state.set_period(period);
    }

    /// Other weights from now on. Scores are kept if they are for the same targets:
    /// new weights were only taken because they are better.
    pub fn set_weights(&mut self, weights: Arc<Weights>) {
        if weights.layout() != self.weights.layout() {
            if !self.trials.is_empty() {
                self.trials = trials(&weights);
            }
            self.state = State::of(&weights, self.targets, self.state.period());
        }
        self.weights = weights;
    }

    /// The weights in use.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Without the weights, which many share.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let trial = |t: &Trial| size_of::<Trial>() + t.pending.capacity() * size_of::<Pending>();
        let trials = self.trials.iter().map(trial).sum::<usize>();
        size_of::<Self>() - size_of::<State>() + self.state.bytes() + trials
    }

    /// The place of the target that serves so many steps: the shortest horizon that
    /// covers them, else the longest; and that horizon.
    fn serving(&self, target: Target, steps: usize) -> Option<(usize, usize)> {
        let of = |wanted: Target| {
            let all = || self.weights.layout().targets().enumerate();
            let fitting = |&(_, (target, _)): &(usize, (Target, usize))| target == wanted;
            all()
                .find(|of @ (_, (_, horizon))| fitting(of) && *horizon >= steps)
                .or_else(|| all().filter(fitting).last())
        };
        // One step ahead the peak is the value.
        let found = match target {
            Target::Peak if steps > 1 => of(Target::Peak).or_else(|| of(Target::Value)),
            _ => of(Target::Value),
        };
        found.map(|(index, (_, horizon))| (index, horizon))
    }
}

fn trials(weights: &Weights) -> Vec<Trial> {
    let trial = |(target, steps)| Trial {
        target,
        steps,
        until_origin: 0,
        pending: VecDeque::with_capacity(PENDING_MAX),
        judge: Judge::default(),
    };
    weights.layout().targets().map(trial).collect()
}

impl Trial {
    fn observe(&mut self, sample: Option<f64>) {
        for pending in &mut self.pending {
            pending.age += 1;
            match sample {
                Some(value) => pending.peak = pending.peak.max(value),
                None => pending.missing += 1,
            }
        }
        if self.pending.front().is_none_or(|p| p.age < self.steps) {
            return;
        }
        let Some(then) = self.pending.pop_front() else {
            return;
        };
        let actual = match self.target {
            Target::Value => sample,
            Target::Peak => (then.missing * 4 <= self.steps).then_some(then.peak),
        };
        if let Some(actual) = actual {
            self.judge.judge(actual, then.bound);
        }
    }

    /// Whether this step is an origin.
    fn is_due(&mut self) -> bool {
        self.until_origin = self.until_origin.saturating_sub(1);
        self.until_origin == 0
    }

    fn put_aside(&mut self, quantiles: Option<Quantiles>) {
        let Some(quantiles) = quantiles else { return };
        self.until_origin = self.steps.div_ceil(PENDING_MAX);
        self.pending.push_back(Pending {
            age: 0,
            bound: quantiles.q95(),
            peak: 0.0,
            missing: 0,
        });
    }
}

impl Forecaster for Lstm {
    fn name(&self) -> &'static str {
        "lstm"
    }

    fn pass(&mut self, sample: Option<f64>) {
        match sample {
            Some(value) => self.state.step(&self.weights, value),
            None => self.state.step_gap(),
        }
        for (index, trial) in self.trials.iter_mut().enumerate() {
            trial.observe(sample);
            if trial.is_due() && sample.is_some() {
                trial.put_aside(self.state.forecast(&self.weights, index));
            }
        }
    }

    fn forecast_of(&self, target: Target, steps: usize) -> Option<Quantiles> {
        let (index, horizon) = self.serving(target, steps)?;
        let quantiles = self.state.forecast(&self.weights, index)?;
        Some(quantiles.widened(widening(steps, horizon)))
    }

    fn score(&self, target: Target, steps: usize) -> Option<Score> {
        let (index, _) = self.serving(target, steps)?;
        self.trials.get(index)?.judge.score()
    }
}
