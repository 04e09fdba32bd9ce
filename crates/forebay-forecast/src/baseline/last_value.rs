//! The last value, and how far series went from it.
//!
//! # Problem
//!
//! On workload traces most models lose to "as now, give or take what it changed by lately":
//! the yardstick for every other.
//!
//! # Approach
//!
//! For values: the last one is the median; above it, the exact quantiles of all changes over
//! as many steps within the history. For peaks: the last value and the quantiles of how far
//! the greatest of the next steps was above the value before them.
//!
//! It differs from [`window`](crate::window) by the whole history in place of 128 errors, and by
//! peaks that start from the last value.
//!
//! # Properties
//!
//! - A constant series forecasts the constant.
//! - A change is known only where both ends were seen, a peak only where at most a quarter of
//!   its steps was not.
//! - 32 bytes for each step of the history, at each horizon.
//!
//! Source: Hyndman and Athanasopoulos, "Forecasting: principles and practice", 3rd edition,
//! chapter 5 (naive method, bootstrapped residuals).

use std::collections::VecDeque;

use super::WINDOW_MAX;
use super::ordered::Ordered;
use crate::{Forecaster, Quantiles, Target};

/// Changes that a horizon needs before it answers.
const WARM_CHANGES: usize = 16;

/// The last value, and how far series went from it.
#[derive(Clone, Debug)]
pub struct LastValue {
    last: Option<f64>,
    /// The newest samples, newest last; None for a gap. As many as the longest horizon and one.
    recent: VecDeque<Option<f64>>,
    horizons: Box<[Horizon]>,
}

#[derive(Clone, Debug)]
struct Horizon {
    steps: usize,
    changes: Ordered,
    rises: Ordered,
    /// Greatest samples of the last `steps`, as (time, value): later and smaller to the back.
    greatest: VecDeque<(u64, f64)>,
    now: u64,
    seen: usize,
}

impl LastValue {
    /// `horizons` in steps, ascending, each at least 1; changes are those of the last
    /// `history_max` steps, at most [`WINDOW_MAX`].
    #[must_use]
    pub fn new(horizons: &[usize], history_max: usize) -> Self {
        let history_max = history_max.min(WINDOW_MAX);
        Self {
            last: None,
            recent: VecDeque::new(),
            horizons: horizons
                .iter()
                .map(|&steps| Horizon::new(steps, history_max))
                .collect(),
        }
    }

    /// The shortest horizon that covers the steps, else the longest.
    fn horizon(&self, steps: usize) -> Option<&Horizon> {
        let covers = |horizon: &&Horizon| horizon.steps >= steps;
        self.horizons.iter().find(covers).or(self.horizons.last())
    }
}

impl Horizon {
    fn new(steps: usize, history_max: usize) -> Self {
        let len_max = history_max.saturating_sub(steps).max(WARM_CHANGES);
        Self {
            steps,
            changes: Ordered::new(len_max),
            rises: Ordered::new(len_max),
            greatest: VecDeque::new(),
            now: 0,
            seen: 0,
        }
    }

    fn pass(&mut self, recent: &VecDeque<Option<f64>>) {
        self.now += 1;
        let sample = recent.back().copied().flatten();
        if let Some(sample) = sample {
            while self
                .greatest
                .back()
                .is_some_and(|&(_, held)| held <= sample)
            {
                self.greatest.pop_back();
            }
            self.greatest.push_back((self.now, sample));
            self.seen += 1;
        }
        let Some(before) = recent.len().checked_sub(self.steps + 1) else {
            return;
        };
        let expired = |&(time, _): &(u64, f64)| {
            time + u64::try_from(self.steps).unwrap_or(u64::MAX) <= self.now
        };
        if self.greatest.front().is_some_and(expired) {
            self.greatest.pop_front();
        }
        // What is `steps` before now is where the peak starts from, and not in it.
        let Some(origin) = recent[before] else {
            return;
        };
        self.seen -= 1;
        if let Some(sample) = sample {
            self.changes.push(sample - origin);
        }
        if let Some(&(_, greatest)) = self.greatest.front()
            && (self.steps - self.seen) * 4 <= self.steps
        {
            self.rises.push(greatest - origin);
        }
    }
}

impl Forecaster for LastValue {
    fn name(&self) -> &'static str {
        "last-value"
    }

    fn pass(&mut self, sample: Option<f64>) {
        self.last = sample.or(self.last);
        let longest = self.horizons.iter().map(|h| h.steps).max().unwrap_or(0);
        self.recent.push_back(sample);
        if self.recent.len() > longest + 1 {
            self.recent.pop_front();
        }
        for horizon in &mut self.horizons {
            horizon.pass(&self.recent);
        }
    }

    fn forecast_of(&self, target: Target, steps: usize) -> Option<Quantiles> {
        let (last, horizon) = (self.last?, self.horizon(steps)?);
        let seen = match target {
            Target::Value => &horizon.changes,
            Target::Peak => &horizon.rises,
        };
        if seen.len() < WARM_CHANGES {
            return None;
        }
        let [q50, q90, q95, q99] = Quantiles::LEVELS_PERMILLE;
        let median = match target {
            // The last value stays the best guess of a value, as this rule has it.
            Target::Value => last,
            Target::Peak => last + seen.quantile(q50)?,
        };
        Quantiles::new([
            median,
            last + seen.quantile(q90)?,
            last + seen.quantile(q95)?,
            last + seen.quantile(q99)?,
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(numbers: impl IntoIterator<Item = f64>) -> Ordered {
        let mut ordered = Ordered::new(usize::MAX);
        numbers.into_iter().for_each(|number| ordered.push(number));
        ordered
    }

    #[test]
    fn it_is_the_plain_recomputation() {
        let (horizons, history) = ([1, 4, 12], 100);
        for gaps in [0, 5] {
            let mut rng = fastrand::Rng::with_seed(9);
            let mut rule = LastValue::new(&horizons, history);
            let mut samples: Vec<Option<f64>> = Vec::new();
            for step in 0..400 {
                let sample = (gaps == 0 || rng.usize(0..gaps) > 0).then(|| 10.0 * rng.f64());
                match sample {
                    Some(value) => rule.update(value),
                    None => rule.update_gap(),
                }
                samples.push(sample);
                let last = samples.iter().rev().find_map(|&sample| sample);
                for steps in horizons {
                    let (changes, rises) = plain(&samples, steps, history);
                    assert_eq!(
                        rule.forecast(steps).is_some(),
                        changes.len() >= WARM_CHANGES
                    );
                    if let Some(quantiles) = rule.forecast(steps) {
                        assert_eq!(Some(quantiles.q50()), last);
                        let q95 = last.unwrap() + changes.quantile(950).unwrap();
                        assert_eq!(quantiles.q95(), q95.max(quantiles.q50()), "step {step}");
                    }
                    assert_eq!(
                        rule.forecast_peak(steps).is_some(),
                        rises.len() >= WARM_CHANGES
                    );
                    if let Some(quantiles) = rule.forecast_peak(steps) {
                        let q95 = last.unwrap() + rises.quantile(950).unwrap();
                        assert_eq!(quantiles.q95(), q95.max(0.0), "step {step}");
                    }
                }
            }
        }
    }

    /// The last changes and rises that are known, as many as the history has room for.
    fn plain(samples: &[Option<f64>], steps: usize, history: usize) -> (Ordered, Ordered) {
        let (mut changes, mut rises) = (Vec::new(), Vec::new());
        for origin in 0..samples.len().saturating_sub(steps) {
            let Some(from) = samples[origin] else {
                continue;
            };
            let next = &samples[origin + 1..=origin + steps];
            if let Some(to) = next[steps - 1] {
                changes.push(to - from);
            }
            let seen: Vec<f64> = next.iter().copied().flatten().collect();
            if !seen.is_empty() && (steps - seen.len()) * 4 <= steps {
                rises.push(seen.into_iter().fold(f64::MIN, f64::max) - from);
            }
        }
        let kept = |all: Vec<f64>| {
            let from = all.len().saturating_sub(history - steps);
            ordered(all[from..].iter().copied())
        };
        (kept(changes), kept(rises))
    }

    #[test]
    fn a_constant_forecasts_the_constant() {
        let mut rule = LastValue::new(&[1, 12], 1440);
        (0..100).for_each(|_| rule.update(0.3));
        for steps in [0, 1, 5, 12, 60] {
            for quantiles in [rule.forecast(steps), rule.forecast_peak(steps)] {
                assert_eq!(quantiles.unwrap().to_array(), [0.3; 4]);
            }
        }
        assert_eq!(LastValue::new(&[], 10).forecast(1), None);
    }
}
