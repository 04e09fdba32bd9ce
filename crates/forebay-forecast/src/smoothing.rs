//! Exponential smoothing with a damped trend.
//!
//! # Problem
//!
//! A noisy series around a level is badly served by its last value: the noise of
//! that one sample is carried into the forecast. A drifting one needs a trend,
//! but a straight line is wrong soon.
//!
//! # Approach
//!
//! Holt's level and trend, the trend fading by a tenth with each step ahead.
//! Three speeds run side by side; the one whose forecasts over the middle horizon
//! missed least lately gives the centre. Quantiles are those of its own errors
//! over the same horizon, never of a fitted variance.
//!
//! # Properties
//!
//! - The centre stays within the recent range of the series: a trend never runs
//!   away.
//! - A constant series forecasts the constant.
//! - State and work do not depend on the length of the past.
//!
//! Source: Gardner and McKenzie, "Forecasting trends in time series", Management
//! Science 1985; Hyndman and Athanasopoulos, "Forecasting: principles and
//! practice", chapter 8.

use crate::backtest::{Backtest, Centre};
use crate::history::Range;
use crate::{Forecaster, Quantiles, Score, Target};

/// Share of the trend that is left after one more step.
const DAMPING: f64 = 0.9;
/// Share of a new slope that enters the trend.
const TREND_SPEED: f64 = 0.05;
/// Shares of a new sample that enter the level.
const LEVEL_SPEEDS: [f64; 3] = [0.05, 0.2, 0.5];
/// Weight of the newest error when the speeds are compared.
const ERROR_WEIGHT: f64 = 1.0 / 256.0;

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Smoothing {
    levels: Levels,
    backtest: Backtest,
}

#[derive(Clone, Debug)]
struct Levels {
    speeds: [Holt; LEVEL_SPEEDS.len()],
    range: Range,
    /// Steps over which the speeds are compared.
    compared_steps: usize,
    /// Steps since the comparison's forecasts were made.
    age: usize,
    /// Sum of the damping over `age` steps.
    damping_sum: f64,
    best: usize,
    started: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Holt {
    level: f64,
    trend: f64,
    /// (level, trend) when the comparison's forecasts were made.
    put_aside: (f64, f64),
    error: f64,
}

impl Smoothing {
    /// `horizons` in steps, ascending, each at least 1. The centre stays within
    /// the range of the last `range_steps`.
    #[must_use]
    pub fn new(horizons: &[usize], range_steps: usize) -> Self {
        let compared_steps = horizons.get(horizons.len() / 2).copied().unwrap_or(1);
        Self {
            levels: Levels::new(compared_steps, range_steps),
            backtest: Backtest::new(horizons),
        }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.backtest.bytes()
    }
}

impl Levels {
    fn new(compared_steps: usize, range_steps: usize) -> Self {
        Self {
            speeds: [Holt::default(); LEVEL_SPEEDS.len()],
            range: Range::new(range_steps),
            compared_steps,
            age: 0,
            damping_sum: 0.0,
            best: 0,
            started: false,
        }
    }

    fn update(&mut self, value: f64) {
        self.range.push(value);
        if !self.started {
            self.started = true;
            let holt = Holt {
                level: value,
                put_aside: (value, 0.0),
                ..Holt::default()
            };
            self.speeds = [holt; LEVEL_SPEEDS.len()];
            return;
        }
        self.age += 1;
        self.damping_sum = DAMPING * (1.0 + self.damping_sum);
        let renew = self.age >= self.compared_steps;
        for (holt, speed) in self.speeds.iter_mut().zip(LEVEL_SPEEDS) {
            let (level, trend) = holt.put_aside;
            let missed = (value - level - trend * self.damping_sum).abs();
            holt.error += ERROR_WEIGHT * (missed - holt.error);
            holt.update(value, speed);
            if renew {
                holt.put_aside = (holt.level, holt.trend);
            }
        }
        if renew {
            self.age = 0;
            self.damping_sum = 0.0;
            self.choose();
        }
    }

    /// A little in favour of the one in use, so that equals do not alternate.
    fn choose(&mut self) {
        for (index, holt) in self.speeds.iter().enumerate() {
            if holt.error < 0.95 * self.speeds[self.best].error {
                self.best = index;
            }
        }
    }

    fn centre(&self, steps: usize) -> Option<Centre> {
        let (low, high) = self.range.bounds()?;
        let holt = self.speeds[self.best];
        let exponent = i32::try_from(steps).unwrap_or(i32::MAX);
        let damping_sum = DAMPING * (1.0 - DAMPING.powi(exponent)) / (1.0 - DAMPING);
        let value = (holt.level + holt.trend * damping_sum).clamp(low, high);
        let next = (holt.level + holt.trend * DAMPING).clamp(low, high);
        Some(Centre {
            value,
            peak: value.max(next),
        })
    }
}

impl Holt {
    fn update(&mut self, value: f64, speed: f64) {
        let expected = self.level + DAMPING * self.trend;
        let level = expected + speed * (value - expected);
        let slope = level - self.level;
        self.trend = DAMPING * self.trend + TREND_SPEED * (slope - DAMPING * self.trend);
        self.level = level;
    }
}

impl Forecaster for Smoothing {
    fn name(&self) -> &'static str {
        "smoothing"
    }

    fn pass(&mut self, sample: Option<f64>) {
        self.backtest.observe(sample);
        let Some(value) = sample else { return };
        self.levels.update(value);
        self.backtest.put_aside(|steps| self.levels.centre(steps));
    }

    fn forecast_of(&self, target: Target, steps: usize) -> Option<Quantiles> {
        self.backtest
            .quantiles(target, steps, self.levels.centre(steps)?)
    }

    fn score(&self, target: Target, steps: usize) -> Option<Score> {
        self.backtest.score(target, steps)
    }
}
