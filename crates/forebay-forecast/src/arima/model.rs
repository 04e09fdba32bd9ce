//! A fitted model, and its state online.
//!
//! # Approach
//!
//! Multiplied out, differences and polynomials are one difference equation: a
//! sample is a few earlier samples and innovations, each times a coefficient, and
//! a new innovation. The state is the samples and innovations of the longest lag,
//! so a sample costs one product for each coefficient that is not 0: at most 53
//! in the largest seasonal order, however long the season. The state-space
//! covariance that the textbooks carry along has settled by then, and is not
//! needed.
//!
//! # Properties
//!
//! - Nothing accumulates: differences are taken from the samples that are kept,
//!   so rounding does not grow with the number of steps.
//! - A gap counts as the forecast that was made for it: its innovation is 0.
//! - Forecasts are finite at every horizon.

use super::fit::{Blocks, Fit, Prepared, check_series};
use super::likelihood::Likelihood;
use super::order::Order;
use super::polynomial::Polynomial;
use super::search::{Search, search};
use super::{Coefficients, FitError};
use crate::VALUE_MAX;
use crate::history::narrow;

/// A value ahead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Its mean, in the unit of the series.
    pub mean: f64,
    /// Its variance if the innovations are as large as they were, in that unit
    /// squared.
    pub variance: f64,
}

/// A fitted model. See the [module](super).
#[derive(Clone, Debug)]
pub struct Arima {
    order: Order,
    coefficients: Coefficients,
    innovation_variance: f64,
    log_likelihood: f64,
    aicc: f64,
    likelihood: Likelihood,
    equation: Equation,
    samples: Lags,
    innovations: Lags,
}

/// The difference equation, multiplied out.
#[derive(Clone, Debug)]
struct Equation {
    /// (lag, coefficient) of earlier samples.
    samples: Vec<(usize, f64)>,
    /// (lag, coefficient) of earlier innovations.
    innovations: Vec<(usize, f64)>,
    constant: f64,
}

impl Arima {
    /// The likeliest coefficients of a given order, by all samples, oldest first.
    /// Samples may be negative. There is no mark for a missing one: repeat the
    /// last, or forecast it.
    ///
    /// # Errors
    ///
    /// If the order is out of its bounds, or the samples do not determine a model
    /// of it.
    pub fn fit(series: &[f64], order: Order) -> Result<Self, FitError> {
        Self::fit_from(series, order, &Blocks::default())
    }

    /// The likeliest coefficients of an order that the samples choose.
    ///
    /// # Errors
    ///
    /// If the samples do not determine any model.
    pub fn fit_auto(series: &[f64], options: Search) -> Result<Self, FitError> {
        let (prepared, fit) = search(series, options)?;
        let used = &series[series.len().saturating_sub(options.history_max)..];
        Ok(Self::new(used, &prepared, fit))
    }

    /// The same order by other samples, searched from the present coefficients.
    ///
    /// # Errors
    ///
    /// If the samples do not determine a model of the order.
    pub fn refit(&self, series: &[f64]) -> Result<Self, FitError> {
        let start = Blocks::of(&self.coefficients).unwrap_or_default();
        Self::fit_from(series, self.order, &start)
    }

    fn fit_from(series: &[f64], order: Order, start: &Blocks) -> Result<Self, FitError> {
        order.check()?;
        check_series(series)?;
        let prepared = Prepared::new(series, order)?;
        let fit = prepared.fit_best(order, start).ok_or(FitError::NoModel)?;
        Ok(Self::new(series, &prepared, fit))
    }

    fn new(series: &[f64], prepared: &Prepared, fit: Fit) -> Self {
        let Prepared {
            location, scale, ..
        } = *prepared;
        let aicc = fit.aicc();
        let constant = fit.coefficients.constant;
        let coefficients = Coefficients {
            constant: constant.map(|mean| location + scale * mean),
            ..fit.coefficients
        };
        let equation = Equation::new(fit.order, &coefficients);
        let mut samples = Lags::new(longest(&equation.samples));
        let mut innovations = Lags::new(longest(&equation.innovations));
        series.iter().for_each(|&sample| samples.push(sample));
        for innovation in &fit.innovations {
            innovations.push(scale * innovation);
        }
        Self {
            order: fit.order,
            innovation_variance: fit.evaluation.variance * scale * scale,
            log_likelihood: fit.evaluation.log_likelihood,
            aicc,
            likelihood: fit.likelihood,
            coefficients,
            equation,
            samples,
            innovations,
        }
    }

    /// The order.
    #[must_use]
    pub fn order(&self) -> Order {
        self.order
    }

    /// The coefficients.
    #[must_use]
    pub fn coefficients(&self) -> &Coefficients {
        &self.coefficients
    }

    /// Variance of what a step brings that could not be foreseen, in the unit of
    /// the series squared.
    #[must_use]
    pub fn innovation_variance(&self) -> f64 {
        self.innovation_variance
    }

    /// Natural logarithm of the likelihood of the differenced series.
    #[must_use]
    pub fn log_likelihood(&self) -> f64 {
        self.log_likelihood
    }

    /// Akaike's criterion with the correction for few samples. Comparable among
    /// models of one series with the same differences; lower is better.
    #[must_use]
    pub fn aicc(&self) -> f64 {
        self.aicc
    }

    /// Which likelihood the coefficients maximise.
    #[must_use]
    pub fn likelihood(&self) -> Likelihood {
        self.likelihood
    }

    /// One step passed with this sample. One that is not finite or beyond
    /// [`VALUE_MAX`] counts as a gap.
    pub fn observe(&mut self, value: f64) {
        // Also refuses what is not a number.
        if !(-VALUE_MAX..=VALUE_MAX).contains(&value) {
            return self.observe_gap();
        }
        let innovation = value - self.step(1, &[]);
        self.samples.push(value);
        self.innovations.push(innovation);
    }

    /// One step passed without a sample.
    pub fn observe_gap(&mut self) {
        let expected = self.step(1, &[]);
        self.samples.push(expected);
        self.innovations.push(0.0);
    }

    /// The value so many steps ahead, at least 1.
    #[must_use]
    pub fn forecast(&self, steps: usize) -> Prediction {
        let steps = steps.max(1);
        let path = self.forecast_path(steps);
        path[steps - 1]
    }

    /// The values of the next steps.
    #[must_use]
    pub fn forecast_path(&self, steps: usize) -> Vec<Prediction> {
        let mut means = Vec::new();
        self.forecast_means(steps, &mut means);
        // How far an innovation carries: its echo after each step.
        let mut echoes: Vec<f64> = Vec::with_capacity(steps);
        let mut variance = 0.0;
        let variances: Vec<f64> = (0..steps)
            .map(|step| {
                let own = self
                    .equation
                    .innovations
                    .iter()
                    .find(|(lag, _)| *lag == step);
                let start = if step == 0 {
                    1.0
                } else {
                    own.map_or(0.0, |(_, c)| *c)
                };
                let known = self
                    .equation
                    .samples
                    .iter()
                    .take_while(|(lag, _)| *lag <= step);
                let echo = start + known.map(|(lag, c)| c * echoes[step - lag]).sum::<f64>();
                echoes.push(echo);
                variance += echo * echo * self.innovation_variance;
                variance
            })
            .collect();
        let pairs = means.into_iter().zip(variances);
        pairs
            .map(|(mean, variance)| Prediction {
                mean,
                variance: variance.min(f64::MAX),
            })
            .collect()
    }

    /// The means of the next steps alone, in place of what `path` held.
    pub(super) fn forecast_means(&self, steps: usize, path: &mut Vec<f64>) {
        path.clear();
        for step in 1..=steps {
            let mean = self.step(step, path);
            path.push(mean);
        }
    }

    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        let Equation {
            samples,
            innovations,
            ..
        } = &self.equation;
        let terms = samples.capacity() + innovations.capacity();
        let lags = self.samples.numbers.capacity() + self.innovations.numbers.capacity();
        terms * size_of::<(usize, f64)>() + lags * size_of::<f32>()
    }

    /// The mean `step` steps ahead, when those before it are in `path`.
    fn step(&self, step: usize, path: &[f64]) -> f64 {
        let (ahead, known) = self.equation.samples.split_at(
            self.equation
                .samples
                .partition_point(|(lag, _)| *lag < step),
        );
        let ahead: f64 = ahead.iter().map(|(lag, c)| c * path[step - 1 - lag]).sum();
        let known: f64 = known
            .iter()
            .map(|(lag, c)| c * self.samples.back(lag + 1 - step))
            .sum();
        let echoes: f64 = self
            .equation
            .innovations
            .iter()
            .filter(|(lag, _)| *lag >= step)
            .map(|(lag, c)| c * self.innovations.back(lag + 1 - step))
            .sum();
        // Only sums of samples near the greatest number can leave these bounds.
        (self.equation.constant + ahead + known + echoes).clamp(-1e3 * VALUE_MAX, 1e3 * VALUE_MAX)
    }
}

impl Equation {
    fn new(order: Order, coefficients: &Coefficients) -> Self {
        let seasonal = order.season();
        let (ar, ma) = coefficients.polynomials(seasonal.period);
        let constant = coefficients.constant.unwrap_or(0.0) * ar.at_one();
        let differenced = ar
            .times(&Polynomial::difference(1, order.d))
            .times(&Polynomial::difference(seasonal.period, seasonal.d));
        let carried = differenced.terms().iter().map(|(lag, c)| (*lag, -c));
        Self {
            samples: carried.collect(),
            innovations: ma.terms().to_vec(),
            constant,
        }
    }
}

fn longest(terms: &[(usize, f64)]) -> usize {
    terms.last().map_or(0, |(lag, _)| *lag)
}

/// The last numbers of a series, contiguous, in single precision: there may be two seasons of them.
#[derive(Clone, Debug)]
struct Lags {
    numbers: Vec<f32>,
    kept: usize,
    /// Appended numbers before the kept ones move to the front again.
    slack: usize,
}

impl Lags {
    /// Zeros, as before the first sample.
    fn new(kept: usize) -> Self {
        let slack = (kept / 32).max(8);
        let mut numbers = Vec::with_capacity(kept + slack);
        numbers.resize(kept, 0.0);
        Self {
            numbers,
            kept,
            slack,
        }
    }

    fn push(&mut self, number: f64) {
        if self.numbers.len() == self.kept + self.slack {
            self.numbers.drain(..self.slack);
        }
        self.numbers.push(narrow(number));
    }

    /// The newest is 1 back.
    fn back(&self, lag: usize) -> f64 {
        f64::from(self.numbers[self.numbers.len() - lag])
    }
}
