//! Recent-window forecast: the last value, and the changes seen from it.
//!
//! # Problem
//!
//! Most workload series are close to a random walk over the next seconds, with
//! heavy and lopsided tails. Models of their dynamics mostly lose to saying "as
//! now, give or take what it changed by lately".
//!
//! # Approach
//!
//! The centre of the value is the last one; its quantiles are those of recent
//! changes over the same number of steps. The centre of the peak is the peak of
//! as many steps before now; its quantiles are those of the changes from one
//! window's peak to the next one's. A peak is steadier than a value, so a series
//! that is caught in a dip is not believed to stay there.
//!
//! # Properties
//!
//! - A jump moves the forecast at the next step, by the whole jump.
//! - A constant series forecasts the constant.
//! - It is the first to answer: one horizon and 16 origins after the start.
//!
//! Sources: Hyndman and Athanasopoulos, "Forecasting: principles and practice",
//! 3rd edition, chapter 5 (naive method, intervals from its residuals); peaks over moving windows as in
//! Rzadca et al., "Autopilot: workload autoscaling at Google", EuroSys 2020.

use crate::backtest::{Backtest, Centre};
use crate::history::Tail;
use crate::{Forecaster, Quantiles, Score, Target};

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Window {
    recent: Recent,
    backtest: Backtest,
}

#[derive(Clone, Debug)]
struct Recent {
    last: Option<f64>,
    tail: Tail,
}

impl Window {
    /// `horizons` in steps, ascending, each at least 1.
    #[must_use]
    pub fn new(horizons: &[usize]) -> Self {
        let longest = horizons.last().copied().unwrap_or(1);
        Self {
            recent: Recent {
                last: None,
                tail: Tail::new(longest),
            },
            backtest: Backtest::new(horizons),
        }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.backtest.bytes() + self.recent.tail.bytes()
    }
}

impl Recent {
    fn centre(&self, steps: usize) -> Option<Centre> {
        let value = self.last?;
        Some(Centre {
            value,
            peak: self.tail.peak(steps).unwrap_or(value),
        })
    }
}

impl Forecaster for Window {
    fn name(&self) -> &'static str {
        "window"
    }

    fn pass(&mut self, sample: Option<f64>) {
        self.backtest.observe(sample);
        let Some(value) = sample else { return };
        self.recent.last = Some(value);
        self.recent.tail.push(value);
        self.backtest.put_aside(|steps| self.recent.centre(steps));
    }

    fn forecast_of(&self, target: Target, steps: usize) -> Option<Quantiles> {
        self.backtest
            .quantiles(target, steps, self.recent.centre(steps)?)
    }

    fn score(&self, target: Target, steps: usize) -> Option<Score> {
        self.backtest.score(target, steps)
    }
}
