//! Coefficients of one order.
//!
//! # Approach
//!
//! The series is differenced and scaled, so that the numbers are near 1 whatever
//! the unit. The conditional likelihood is maximised first, which is cheap, then
//! the exact one from there. Both over the numbers that [`polynomial`] makes
//! stable polynomials of.
//!
//! [`polynomial`]: super::polynomial
//!
//! # Properties
//!
//! - Stationary and invertible, whatever the samples.
//! - A start from other coefficients (a shorter order, or those of an hour ago)
//!   is only where the search begins: the end is at least as likely.

use super::difference::{difference, greatest, is_constant, mean};
use super::likelihood::{EXACT_LAGS_MAX, Evaluation, Evaluator, Judge, Likelihood};
use super::optimise::minimise;
use super::order::Order;
use super::polynomial;
use super::{Coefficients, FitError, count};
use crate::VALUE_MAX;

/// Iterations of the optimiser for one likelihood.
const ITERATIONS_MAX: usize = 40;

/// A series, differenced and scaled for an order's differences and constant.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    /// Less `location`, over `scale`.
    pub(super) series: Vec<f64>,
    pub(super) location: f64,
    pub(super) scale: f64,
}

/// Coefficients of an order over a [`Prepared`] series, in its scale but for the
/// log-likelihood.
#[derive(Clone, Debug)]
pub(super) struct Fit {
    pub(super) order: Order,
    /// What the optimiser found, by block: AR, MA, seasonal AR, seasonal MA.
    pub(super) numbers: Blocks,
    pub(super) coefficients: Coefficients,
    pub(super) evaluation: Evaluation,
    pub(super) likelihood: Likelihood,
    pub(super) innovations: Vec<f64>,
}

/// Numbers without bounds for the four groups of coefficients.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks([Vec<f64>; 4]);

impl Blocks {
    /// None if the coefficients are not stable.
    pub(super) fn of(coefficients: &Coefficients) -> Option<Self> {
        let negated = |block: &[f64]| block.iter().map(|c| -c).collect::<Vec<_>>();
        Some(Self([
            polynomial::unbounded(&coefficients.ar)?,
            polynomial::unbounded(&negated(&coefficients.ma))?,
            polynomial::unbounded(&coefficients.seasonal_ar)?,
            polynomial::unbounded(&negated(&coefficients.seasonal_ma))?,
        ]))
    }

    /// As many numbers as the order has coefficients: cut, or zeros added, which
    /// leave a polynomial as it was.
    fn fitted_to(&self, order: Order) -> Vec<f64> {
        let mut numbers = Vec::with_capacity(order.coefficients());
        for (block, length) in self.0.iter().zip(lengths(order)) {
            numbers.extend((0..length).map(|k| block.get(k).copied().unwrap_or(0.0)));
        }
        numbers
    }

    fn split(order: Order, numbers: &[f64]) -> Self {
        let mut rest = numbers;
        Self(lengths(order).map(|length| {
            let (block, after) = rest.split_at(length.min(rest.len()));
            rest = after;
            block.to_vec()
        }))
    }

    fn coefficients(&self) -> Coefficients {
        let negated = |block: &[f64]| polynomial::stable(block).iter().map(|c| -c).collect();
        let [ar, ma, seasonal_ar, seasonal_ma] = &self.0;
        Coefficients {
            ar: polynomial::stable(ar),
            ma: negated(ma),
            seasonal_ar: polynomial::stable(seasonal_ar),
            seasonal_ma: negated(seasonal_ma),
            constant: None,
        }
    }
}

fn lengths(order: Order) -> [usize; 4] {
    let seasonal = order.season();
    [order.p, order.q, seasonal.p, seasonal.q]
}

/// Refuses what no model can take.
pub(super) fn check_series(series: &[f64]) -> Result<(), FitError> {
    let sound = |x: &f64| x.abs() <= VALUE_MAX;
    match series.iter().position(|x| !sound(x)) {
        Some(index) => Err(FitError::Sample { index }),
        None if is_constant(series) && !series.is_empty() => Err(FitError::Constant),
        None => Ok(()),
    }
}

impl Prepared {
    /// The order's bounds and the samples have been checked.
    pub(super) fn new(series: &[f64], order: Order) -> Result<Self, FitError> {
        let needed = order.samples_min();
        if series.len() < needed {
            return Err(FitError::TooShort {
                samples: series.len(),
                needed,
            });
        }
        let magnitude = greatest(series.iter().copied());
        let seasonal = order.season();
        let mut differenced = series.to_vec();
        for _ in 0..seasonal.d {
            differenced = difference(&differenced, seasonal.period);
        }
        for _ in 0..order.d {
            differenced = difference(&differenced, 1);
        }
        let mean = mean(&differenced);
        let spread = greatest(differenced.iter().map(|x| x - mean));
        // What differences leave of the rounding of the samples is no variation.
        if spread <= 1e-12 * magnitude {
            return Err(FitError::Constant);
        }
        let location = if order.constant { mean } else { 0.0 };
        let squares = |sum: f64, x: &f64| sum + ((x - location) / magnitude).powi(2);
        let mean_square = differenced.iter().fold(0.0, squares) / count(differenced.len());
        let scale = magnitude * mean_square.sqrt();
        Ok(Self {
            series: differenced.iter().map(|x| (x - location) / scale).collect(),
            location,
            scale,
        })
    }

    /// The likeliest coefficients of an order with these differences, searched
    /// from a start. None if no likelihood could be computed.
    pub(super) fn fit(&self, order: Order, start: &Blocks, judge: Judge) -> Option<Fit> {
        let mut evaluator = Evaluator::new(&self.series, order.season().period, order.constant);
        let numbers = self.search(&mut evaluator, order, start, judge)?;
        let numbers = Blocks::split(order, &numbers);
        let coefficients = numbers.coefficients();
        let mut evaluation = evaluator.evaluate(judge, &coefficients)?;
        let innovations = evaluator.innovations(&evaluation);
        // Densities are per unit of the series.
        evaluation.log_likelihood -= count(evaluation.samples) * self.scale.ln();
        Some(Fit {
            order,
            numbers,
            evaluation,
            likelihood: judge.likelihood,
            innovations,
            coefficients: Coefficients {
                constant: order.constant.then_some(evaluation.mean),
                ..coefficients
            },
        })
    }

    /// The exact fit where the lags allow it, else the conditional one.
    pub(super) fn fit_best(&self, order: Order, start: &Blocks) -> Option<Fit> {
        let conditional = self.fit(order, start, Judge::CONDITIONAL);
        if order.lags() > EXACT_LAGS_MAX {
            return conditional;
        }
        let from = conditional.as_ref().map_or(start, |fit| &fit.numbers);
        self.fit(order, from, Judge::EXACT).or(conditional)
    }

    fn search(
        &self,
        evaluator: &mut Evaluator<'_>,
        order: Order,
        start: &Blocks,
        judge: Judge,
    ) -> Option<Vec<f64>> {
        let mut objective = |numbers: &[f64]| {
            let coefficients = Blocks::split(order, numbers).coefficients();
            let evaluation = evaluator.evaluate(judge, &coefficients)?;
            Some(evaluation.objective)
        };
        // A start that was good for other samples may be bad here.
        let zeros = Blocks::default().fitted_to(order);
        let given = start.fitted_to(order);
        let value = |found: Option<f64>| found.unwrap_or(f64::INFINITY);
        let start = if value(objective(&given)) <= value(objective(&zeros)) {
            given
        } else {
            zeros
        };
        Some(minimise(start, ITERATIONS_MAX, objective)?.at)
    }
}

impl Fit {
    /// Akaike's criterion with the correction for few samples. Lower is better.
    pub(super) fn aicc(&self) -> f64 {
        let (n, k) = (
            count(self.evaluation.samples),
            count(self.order.parameters()),
        );
        let corrected = 2.0 * k * (k + 1.0) / (n - k - 1.0).max(f64::MIN_POSITIVE);
        -2.0 * self.evaluation.log_likelihood + 2.0 * k + corrected
    }
}
