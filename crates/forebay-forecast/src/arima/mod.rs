//! ARIMA: autoregression and moving average of a differenced series.
//!
//! # Problem
//!
//! Load that returns to a level after each burst, that oscillates, or that
//! follows last week's shape with an error that fades, has a centre that neither
//! the last value nor an average gives. A linear model with few coefficients
//! does, if its order and its coefficients are found without anybody looking at
//! plots, and without a control period that pays for it.
//!
//! # Approach
//!
//! The seasonal ARIMA of Box and Jenkins. From samples to forecasts:
//!
//! 1. `difference`: tests say how often to difference.
//! 2. `search`: a stepwise walk over the [`Order`]s, by Akaike's corrected
//!    criterion.
//! 3. `fit`: the likeliest coefficients of each, searched by `optimise` over
//!    numbers that `polynomial` makes stable polynomials of, with the
//!    `likelihood` as the judge.
//! 4. `model`: the fitted [`Arima`] takes in one sample at a time and forecasts
//!    any horizon.
//! 5. `online`: [`OnlineArima`] is the [`Forecaster`](crate::Forecaster): it
//!    holds the history, says when it wants to be fitted, and takes its quantiles
//!    from its own errors and not from the model's variance.
//!
//! A fit takes milliseconds to seconds, so the caller decides where it runs; a
//! step takes about a microsecond.
//!
//! # Properties
//!
//! - Every fitted model is stationary and invertible, by construction.
//! - Forecasts are finite; a series that cannot be fitted is a [`FitError`] that
//!   says what to do.
//! - Work is bounded: orders, iterations, samples and lags all are.
//! - The same samples give the same model.
//!
//! # Measured
//!
//! On a busy two-core virtual machine (AMD EPYC), 1,440 samples, five seeds each
//! (`examples/arima_cost.rs`):
//!
//! | season | search, ms | refit, ms | a sample and the next 60, us |
//! |---|---|---|---|
//! | none | 3 to 28 | 0.1 to 0.3 | 1.2 |
//! | 12 | 190 to 1,360 | 8 to 220 | 2.2 |
//! | 60 | 70 to 160 | 0.3 to 10 | 1.7 |
//! | 288 | 24 to 150 | 0.1 to 4 | 1.2 |
//!
//! The season of 12 is dearest because its exact likelihood does not settle: a
//! fixed shape has a seasonal root near the unit circle. [`OnlineArima`] takes 0.8
//! to 1.3 us for an update, a forecast and a peak.
//!
//! The model against statsforecast's AutoARIMA without a season, each fitted anew
//! to the last 1,440 samples, at the 30 common origins of 23 public traces of CPU,
//! memory, network and disk use: geometric mean of the ratios of absolute errors
//! 0.99, 1.01 and 1.03 at 1, 12 and 60 steps, of the loss at 0.95 (Gaussian) 0.99,
//! 1.00 and 1.01. A search took 65 ms (mean of 2,808, at most 790).
//!
//! [`OnlineArima`] with its default refits against the last value and its empirical
//! changes, 117 origins of 24 traces, same steps: loss at 0.95 by 0.87, 1.14 and
//! 1.15 (medians 0.94, 1.04 and 1.02), absolute error of the median by 0.93, 1.01
//! and 0.99; fits took 6 ms (mean of 2,112, at most 250). Told the season of a day
//! or an hour: 0.82, 1.07 and 1.02, and 0.95, 0.96 and 0.88; fits took 17 ms, at
//! most 3.3 s, for a season of 60. The worst is a network series whose greatest
//! sample is 1,000 times its median: without a season, 60 steps ahead, its median
//! misses by 8.5 times as much as the last value.
//!
//! Sources: Box and Jenkins, "Time series analysis: forecasting and control",
//! 1970; Hyndman and Athanasopoulos, "Forecasting: principles and practice", 3rd
//! edition, chapter 9. Each part names its own.

mod difference;
mod fit;
mod likelihood;
mod model;
mod online;
mod optimise;
mod order;
mod polynomial;
mod search;
#[cfg(test)]
mod tests_support;

use std::fmt;

pub use likelihood::{EXACT_LAGS_MAX, Likelihood};
pub use model::{Arima, Prediction};
pub(crate) use online::Unfed;
pub use online::{FitRequest, Fitted, OnlineArima, OnlineOptions};
pub use order::{DIFFERENCES_MAX, Order, PERIOD_MAX, SEASONAL_TERMS_MAX, SeasonalOrder, TERMS_MAX};
use polynomial::Polynomial;
pub use search::Search;

/// The coefficients of a model over the differenced series `w`, with innovations
/// `e`: `w[t] - c = ar[0] (w[t-1] - c) + ... + e[t] + ma[0] e[t-1] + ...`, times
/// the same in lags of whole seasons.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coefficients {
    /// Of the last samples, newest first.
    pub ar: Vec<f64>,
    /// Of the last innovations, newest first.
    pub ma: Vec<f64>,
    /// Of the samples whole seasons ago.
    pub seasonal_ar: Vec<f64>,
    /// Of the innovations whole seasons ago.
    pub seasonal_ma: Vec<f64>,
    /// Mean of the differenced series: the mean of the series without
    /// differences, the drift for each step (or season) with one.
    pub constant: Option<f64>,
}

impl Coefficients {
    /// Whether all roots of the four polynomials, the seasonal ones in whole seasons,
    /// lie further out than `radius`, at least 1. With 1: whether the model is
    /// stationary and invertible.
    #[must_use]
    pub fn is_stable_beyond(&self, radius: f64) -> bool {
        let negated = |block: &[f64]| block.iter().map(|c| -c).collect::<Vec<_>>();
        polynomial::is_stable_beyond(&self.ar, radius)
            && polynomial::is_stable_beyond(&negated(&self.ma), radius)
            && polynomial::is_stable_beyond(&self.seasonal_ar, radius)
            && polynomial::is_stable_beyond(&negated(&self.seasonal_ma), radius)
    }

    /// The polynomials of the samples and of the innovations.
    fn polynomials(&self, period: usize) -> (Polynomial, Polynomial) {
        let product = |ordinary: &[f64], seasonal: &[f64], sign: f64| {
            Polynomial::new(ordinary, 1, sign).times(&Polynomial::new(seasonal, period, sign))
        };
        (
            product(&self.ar, &self.seasonal_ar, -1.0),
            product(&self.ma, &self.seasonal_ma, 1.0),
        )
    }
}

/// Why there is no model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FitError {
    /// An order that is not allowed.
    Order(Order),
    /// A sample that is not finite, or beyond [`VALUE_MAX`](crate::VALUE_MAX).
    Sample {
        /// Its place in the series, 0 being the oldest.
        index: usize,
    },
    /// Too few samples for the order.
    TooShort {
        /// Samples there are.
        samples: usize,
        /// Samples that are needed.
        needed: usize,
    },
    /// The series, or what differences leave of it, does not vary.
    Constant,
    /// No order had a likelihood that could be computed.
    NoModel,
    /// A model that was fitted too long ago to be brought up to date.
    Stale {
        /// Steps since its samples ended.
        steps: usize,
    },
}

impl fmt::Display for FitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(order) => write!(
                f,
                "fit ARIMA {order}: out of bounds; use at most {TERMS_MAX} terms, \
                 {SEASONAL_TERMS_MAX} seasonal terms, {DIFFERENCES_MAX} differences in all (1 \
                 with a constant) and a period of 2 to {PERIOD_MAX}"
            ),
            Self::Sample { index } => write!(
                f,
                "fit ARIMA: sample {index} is not finite or beyond 1e18; leave it out or repeat \
                 the one before"
            ),
            Self::TooShort { samples, needed } => write!(
                f,
                "fit ARIMA: {samples} samples where {needed} are needed; wait for more, or use a \
                 smaller order or a shorter season"
            ),
            Self::Constant => write!(
                f,
                "fit ARIMA: the series does not vary after its differences; forecast its last \
                 value or season instead"
            ),
            Self::NoModel => write!(
                f,
                "fit ARIMA: no order fits within its bounds; forecast with another model until \
                 the history has changed"
            ),
            Self::Stale { steps } => write!(
                f,
                "adopt ARIMA: its samples ended {steps} steps ago, and the history is shorter or a \
                 later model is in use; fit again"
            ),
        }
    }
}

impl std::error::Error for FitError {}

/// A count as a number; counts are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn count(n: usize) -> f64 {
    n as f64
}
