//! Seasonal naive forecast, with a period that is detected.
//!
//! # Problem
//!
//! Timers, garbage collectors, checkpoints and batch loops return with a period
//! that nobody declares. Before such a rise the last value says nothing.
//!
//! # Approach
//!
//! The value one period ago is the centre, and the peak of the window one period
//! ago is the centre of the peak. `period` says how it is found: by hills of the
//! autocorrelation. The errors of the old one are forgotten with it.
//!
//! # Properties
//!
//! - Silent (no forecast) while no period is found; then as good as its score.
//! - Periods of 2 to half the history are found, others are not.
//! - One step costs one pass over at most the history.
//! - A gap repeats the last value in the history, so that time stays aligned.
//!
//! Sources: Hyndman and Athanasopoulos, "Forecasting: principles and practice",
//! chapter 5 (seasonal naive).

use crate::backtest::{Backtest, Centre};
use crate::history::{Tail, peak_of};
use crate::period::{Search, Verdict};
use crate::{Forecaster, Quantiles, Score, Target};

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Seasonal {
    past: Past,
    search: Search,
    backtest: Backtest,
}

#[derive(Clone, Debug)]
struct Past {
    tail: Tail,
    period: Option<usize>,
}

impl Seasonal {
    /// `horizons` in steps, ascending, each at least 1. Periods up to half of
    /// `history_max` samples are found.
    #[must_use]
    pub fn new(horizons: &[usize], history_max: usize) -> Self {
        Self {
            past: Past {
                tail: Tail::new(history_max),
                period: None,
            },
            search: Search::START,
            backtest: Backtest::new(horizons),
        }
    }

    /// The period in use, in steps.
    #[must_use]
    pub fn period(&self) -> Option<usize> {
        self.past.period
    }

    fn use_period(&mut self, period: Option<usize>) {
        self.past.period = period;
        self.backtest.clear();
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.backtest.bytes() + self.past.tail.bytes()
    }
}

impl Past {
    fn push(&mut self, sample: Option<f64>) {
        if let Some(value) = sample.or(self.tail.last().map(f64::from)) {
            self.tail.push(value);
        }
    }

    fn centre(&self, steps: usize) -> Option<Centre> {
        let period = self.period?;
        let samples = self.tail.samples();
        // The last whole period; `samples[len - period + k]` is like `k + 1` steps ahead.
        let season = &samples[samples.len().checked_sub(period)?..];
        let value = f64::from(*season.get(steps.saturating_sub(1) % period)?);
        let peak = peak_of(&season[..steps.clamp(1, period)])?;
        Some(Centre { value, peak })
    }
}

impl Forecaster for Seasonal {
    fn name(&self) -> &'static str {
        "seasonal"
    }

    fn pass(&mut self, sample: Option<f64>) {
        self.backtest.observe(sample);
        self.past.push(sample);
        match self.search.step(self.past.tail.samples(), self.past.period) {
            Some(Verdict::Replace(period)) => self.use_period(Some(period)),
            Some(Verdict::Drop) => self.use_period(None),
            Some(Verdict::Keep) | None => {}
        }
        self.backtest.put_aside(|steps| self.past.centre(steps));
    }

    fn forecast_of(&self, target: Target, steps: usize) -> Option<Quantiles> {
        self.backtest
            .quantiles(target, steps, self.past.centre(steps)?)
    }

    fn score(&self, target: Target, steps: usize) -> Option<Score> {
        self.backtest.score(target, steps)
    }
}
