//! How likely a differenced series is under given coefficients.
//!
//! # Problem
//!
//! The likelihood decides everything: the coefficients, the order, the variance.
//! It is evaluated thousands of times for one automatic fit, and the state-space
//! filter that textbooks give costs the square of the longest lag at each
//! sample: hopeless for a season of 288.
//!
//! # Approach
//!
//! Two likelihoods, both with the mean and the variance solved for, so that the
//! optimiser sees the coefficients alone.
//!
//! *Conditional*: innovations by the difference equation, started with zeros
//! after the first autoregressive lags. The seasonal and the ordinary filter run
//! one after the other, so a sample costs one product for each coefficient
//! however long the season is.
//!
//! *Exact* Gaussian: the innovations algorithm on the series that is left
//! untouched up to the longest lag `m` and has its autoregression taken off from
//! there. The covariance of that series is banded, and its Cholesky factor gives
//! the innovations and their variances. These variances fall towards that of the
//! process; once there, the difference equation is exact too and takes over. For
//! lags up to [`EXACT_LAGS_MAX`].
//!
//! The mean is the generalised least-squares one: the filter is linear, so a
//! series of ones is filtered beside the samples, and the mean is a regression of
//! one on the other.
//!
//! # Properties
//!
//! - The exact likelihood is that of the multivariate normal distribution with
//!   the model's covariances (tested against the dense matrix).
//! - No coefficients and no samples give NaN: what cannot be evaluated is None.
//!
//! Sources: Ansley, "An algorithm for the exact likelihood of a mixed
//! autoregressive-moving average process", Biometrika 1979; Brockwell and Davis,
//! "Time series: theory and methods", 2nd edition, sections 5.3 and 8.7; Box and
//! Jenkins, "Time series analysis", chapter 7 (conditional sum of squares).

use std::f64::consts::TAU;

use super::polynomial::Polynomial;
use super::{Coefficients, count};

/// Longest lag for which the exact likelihood is computed; its cost grows with
/// the square. Beyond, the conditional one stands.
pub const EXACT_LAGS_MAX: usize = 72;
/// How near the variance of an innovation must be to that of the process, as a
/// share, to count as the same.
const SETTLED: f64 = 1e-8;
/// Smallest innovation variance, as a share of the square of the series' scale:
/// where a model leaves less, it explains the samples to their rounding.
const VARIANCE_MIN: f64 = 1e-20;

/// Which likelihood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likelihood {
    /// Given the samples of the first lags, with earlier innovations of zero.
    Conditional,
    /// Of all samples.
    Exact,
}

/// How coefficients are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judge {
    pub(super) likelihood: Likelihood,
    /// Differenced samples that no conditional likelihood takes in, whatever its
    /// lags: orders that leave out different samples do not compare.
    pub(super) skip: usize,
}

impl Judge {
    pub(super) const EXACT: Self = Self {
        likelihood: Likelihood::Exact,
        skip: 0,
    };
    pub(super) const CONDITIONAL: Self = Self {
        likelihood: Likelihood::Conditional,
        skip: 0,
    };
}

/// What a likelihood says of coefficients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evaluation {
    /// What the optimiser minimises: minus the log-likelihood of one sample, but
    /// for what is constant.
    pub(super) objective: f64,
    /// Of the innovations.
    pub(super) variance: f64,
    /// Of the differenced series; 0 without a constant.
    pub(super) mean: f64,
    pub(super) log_likelihood: f64,
    /// Samples that the log-likelihood is of.
    pub(super) samples: usize,
}

/// The filters over one differenced series, with their memory.
#[derive(Debug)]
pub(super) struct Evaluator<'a> {
    series: &'a [f64],
    period: usize,
    ones: Option<Vec<f64>>,
    /// Innovations of the samples, and of the ones.
    innovations: [Vec<f64>; 2],
    scratch: Vec<f64>,
    factor: Factor,
}

impl<'a> Evaluator<'a> {
    /// `period` is 1 where there are no seasonal terms.
    pub(super) fn new(series: &'a [f64], period: usize, constant: bool) -> Self {
        Self {
            series,
            period,
            ones: constant.then(|| vec![1.0; series.len()]),
            innovations: [Vec::new(), Vec::new()],
            scratch: Vec::new(),
            factor: Factor::default(),
        }
    }

    /// None where the series is too short or the likelihood is not a number.
    pub(super) fn evaluate(
        &mut self,
        judge: Judge,
        coefficients: &Coefficients,
    ) -> Option<Evaluation> {
        match judge.likelihood {
            Likelihood::Conditional => self.conditional(coefficients, judge.skip),
            Likelihood::Exact => self.exact(coefficients),
        }
    }

    /// The innovations of the last evaluation, about its mean.
    pub(super) fn innovations(&self, evaluation: &Evaluation) -> Vec<f64> {
        let [samples, ones] = &self.innovations;
        if self.ones.is_none() {
            return samples.clone();
        }
        let about = |(x, one): (&f64, &f64)| x - evaluation.mean * one;
        samples.iter().zip(ones).map(about).collect()
    }

    fn conditional(&mut self, coefficients: &Coefficients, skip: usize) -> Option<Evaluation> {
        let own_skip = coefficients.ar.len() + coefficients.seasonal_ar.len() * self.period;
        if self.series.len() <= own_skip.max(skip) {
            return None;
        }
        let [innovations, ones] = &mut self.innovations;
        let scratch = &mut self.scratch;
        innovate(
            self.series,
            coefficients,
            self.period,
            [scratch, innovations],
        );
        if let Some(series) = &self.ones {
            innovate(series, coefficients, self.period, [scratch, ones]);
        }
        // A little more left out by its own lags counts as if it were there.
        let samples = self.series.len() - skip;
        self.conclude(own_skip.max(skip), samples, &[])
    }

    fn exact(&mut self, coefficients: &Coefficients) -> Option<Evaluation> {
        let process = Process::new(coefficients, self.period);
        if process.lags > EXACT_LAGS_MAX || process.lags >= self.series.len() {
            return None;
        }
        self.factor.compute(&process, self.series.len())?;
        let [innovations, ones] = &mut self.innovations;
        let (period, lags, scratch) = (self.period, process.lags, &mut self.scratch);
        transform(
            self.series,
            coefficients,
            period,
            lags,
            [scratch, innovations],
        );
        self.factor.innovate(&process, innovations);
        if let Some(series) = &self.ones {
            transform(series, coefficients, period, lags, [scratch, ones]);
            self.factor.innovate(&process, ones);
        }
        let variances = std::mem::take(&mut self.factor.variances);
        let evaluation = self.conclude(0, self.series.len(), &variances);
        self.factor.variances = variances;
        evaluation
    }

    /// Mean, variance and likelihood from the innovations after the first `skip`
    /// and their relative variances, which are 1 where none is given. The likelihood
    /// is that of `likely` samples.
    fn conclude(&self, skip: usize, likely: usize, variances: &[f64]) -> Option<Evaluation> {
        let weight = |index: usize| variances.get(index).map_or(1.0, |variance| 1.0 / variance);
        let product = |a: &[f64], b: &[f64]| -> f64 {
            let pairs = a.iter().zip(b).enumerate().skip(skip);
            pairs.map(|(index, (a, b))| a * b * weight(index)).sum()
        };
        let [samples, ones] = &self.innovations;
        let (mut mean, mut squares) = (0.0, product(samples, samples));
        if self.ones.is_some() {
            mean = product(samples, ones) / product(ones, ones);
            if !mean.is_finite() {
                return None;
            }
            let about = |x: f64, one: f64| (x - mean * one).powi(2);
            let pairs = samples.iter().zip(ones).enumerate().skip(skip);
            squares = pairs.map(|(i, (x, one))| about(*x, *one) * weight(i)).sum();
        }
        let used = count(self.series.len() - skip);
        let variance = (squares / used).max(VARIANCE_MIN);
        let log_determinant: f64 = variances.iter().map(|variance| variance.ln()).sum();
        let objective = 0.5 * (variance.ln() + log_determinant / used);
        let log_likelihood = -count(likely) * (objective + 0.5 * (TAU.ln() + 1.0));
        let sound = variance.is_finite() && log_likelihood.is_finite();
        sound.then_some(Evaluation {
            objective,
            variance,
            mean,
            log_likelihood,
            samples: likely,
        })
    }
}

/// Innovations by the difference equation; zero for the first lags.
fn innovate(
    series: &[f64],
    coefficients: &Coefficients,
    period: usize,
    [ordinary, out]: [&mut Vec<f64>; 2],
) {
    let skip = coefficients.ar.len() + coefficients.seasonal_ar.len() * period;
    take_off(series, &coefficients.ar, 1, ordinary);
    take_off(ordinary, &coefficients.seasonal_ar, period, out);
    out[..skip].fill(0.0);
    for (block, stride) in [(&coefficients.ma, 1), (&coefficients.seasonal_ma, period)] {
        if !block.is_empty() {
            for t in skip..out.len() {
                out[t] -= lagged(&out[..t], block, stride);
            }
        }
    }
}

/// The series up to sample `untouched`, from there without its autoregression.
fn transform(
    series: &[f64],
    coefficients: &Coefficients,
    period: usize,
    untouched: usize,
    [ordinary, out]: [&mut Vec<f64>; 2],
) {
    take_off(series, &coefficients.ar, 1, ordinary);
    take_off(ordinary, &coefficients.seasonal_ar, period, out);
    out[..untouched].copy_from_slice(&series[..untouched]);
}

/// The series less `c[0] x[t - stride] + c[1] x[t - 2 stride] + ...`, with zeros
/// before the first.
fn take_off(series: &[f64], coefficients: &[f64], stride: usize, out: &mut Vec<f64>) {
    out.clear();
    out.extend_from_slice(series);
    for (lag, coefficient) in (1..).map(|k| k * stride).zip(coefficients) {
        let later = out.iter_mut().skip(lag);
        later
            .zip(series)
            .for_each(|(x, before)| *x -= coefficient * before);
    }
}

/// `c[0] x[t - stride] + c[1] x[t - 2 stride] + ...` of what came before `t`, with
/// zeros before the first.
fn lagged(before: &[f64], coefficients: &[f64], stride: usize) -> f64 {
    let mut lag = (coefficients.len() + 1) * stride;
    let mut sum = 0.0;
    // The newest last: it was computed just now, and all else need not wait for it.
    for coefficient in coefficients.iter().rev() {
        lag -= stride;
        if let Some(place) = before.len().checked_sub(lag) {
            sum += coefficient * before[place];
        }
    }
    sum
}

/// A process of innovation variance 1: its polynomials and covariances.
#[derive(Debug)]
struct Process {
    /// The longer of the two longest lags.
    lags: usize,
    /// Coefficients of the innovations, the leading 1 first.
    ma: Vec<f64>,
    ma_terms: Polynomial,
    /// Minus the coefficients of the samples, the leading 1 first.
    ar: Vec<f64>,
}

impl Process {
    fn new(coefficients: &Coefficients, period: usize) -> Self {
        let (ar, ma_terms) = coefficients.polynomials(period);
        // By the terms there are, also where a coefficient is 0.
        let p = coefficients.ar.len() + coefficients.seasonal_ar.len() * period;
        let q = coefficients.ma.len() + coefficients.seasonal_ma.len() * period;
        Self {
            lags: p.max(q),
            ma: ma_terms.dense(q),
            ar: ar.dense(p),
            ma_terms,
        }
    }

    /// Covariance of the innovation part of a sample with one `lag` earlier, for
    /// lags up to that of the moving average.
    fn cross_covariances(&self) -> Vec<f64> {
        let q = self.ma.len() - 1;
        // Weights of past innovations in a sample.
        let mut weights: Vec<f64> = Vec::with_capacity(q + 1);
        for lag in 0..=q {
            let echo: f64 = (1..=lag.min(self.ar.len() - 1))
                .map(|r| self.ar[r] * weights[lag - r])
                .sum();
            weights.push(self.ma[lag] - echo);
        }
        (0..=q)
            .map(|lag| {
                self.ma[lag..]
                    .iter()
                    .zip(&weights)
                    .map(|(a, b)| a * b)
                    .sum()
            })
            .collect()
    }

    /// Autocovariances of the samples up to the longest lag.
    fn autocovariances(&self, cross: &[f64]) -> Option<Vec<f64>> {
        let p = self.ar.len() - 1;
        let at = |lag: usize| cross.get(lag).copied().unwrap_or(0.0);
        // The Yule-Walker equations of lags 0 to p, in the covariances of these.
        let mut rows = vec![vec![0.0; p + 2]; p + 1];
        for (lag, row) in rows.iter_mut().enumerate() {
            for (r, coefficient) in self.ar.iter().enumerate() {
                row[lag.abs_diff(r)] += coefficient;
            }
            row[p + 1] = at(lag);
        }
        let mut covariances = solve(rows)?;
        for lag in p + 1..=self.lags {
            let echo: f64 = (1..=p).map(|r| self.ar[r] * covariances[lag - r]).sum();
            covariances.push(at(lag) - echo);
        }
        Some(covariances)
    }
}

/// Solves linear equations, the right side in the last column, by elimination
/// with pivots. None if they have no single solution.
fn solve(mut rows: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let size = rows.len();
    for column in 0..size {
        let greatest =
            |a: &usize, b: &usize| rows[*a][column].abs().total_cmp(&rows[*b][column].abs());
        let pivot = (column..size).max_by(greatest)?;
        rows.swap(column, pivot);
        let (above, below) = rows.split_at_mut(column + 1);
        let pivot = &above[column];
        if pivot[column] == 0.0 {
            return None;
        }
        for row in below {
            let factor = row[column] / pivot[column];
            if factor != 0.0 {
                for (entry, above) in row[column..].iter_mut().zip(&pivot[column..]) {
                    *entry -= factor * above;
                }
            }
        }
    }
    let mut solution = vec![0.0; size];
    for index in (0..size).rev() {
        let row = &rows[index];
        let known: f64 = (index + 1..size).map(|j| row[j] * solution[j]).sum();
        solution[index] = (row[size] - known) / row[index];
    }
    solution.iter().all(|x| x.is_finite()).then_some(solution)
}

/// The Cholesky factor of the transformed series' covariance, up to where it
/// settles.
#[derive(Debug, Default)]
struct Factor {
    /// Rows of the unit lower triangle without the diagonal, one after another.
    entries: Vec<f64>,
    /// Where each row begins in `entries`, and its first column.
    rows: Vec<(usize, usize)>,
    /// Variances of the innovations, relative to that of the process.
    variances: Vec<f64>,
}

impl Factor {
    /// None if the covariance is not positive definite to rounding.
    fn compute(&mut self, process: &Process, length: usize) -> Option<()> {
        let cross = process.cross_covariances();
        let covariances = process.autocovariances(&cross)?;
        let (lags, q) = (process.lags, process.ma.len() - 1);
        let own: Vec<f64> = (0..=q)
            .map(|lag| {
                process.ma[lag..]
                    .iter()
                    .zip(&process.ma)
                    .map(|(a, b)| a * b)
                    .sum()
            })
            .collect();
        let covariance = |row: usize, column: usize| {
            let lag = row - column;
            let table = if row < lags {
                &covariances
            } else if column < lags {
                &cross
            } else {
                &own
            };
            table.get(lag).copied().unwrap_or(0.0)
        };
        self.entries.clear();
        self.rows.clear();
        self.variances.clear();
        let mut scaled: Vec<f64> = Vec::with_capacity(lags);
        for row in 0..length {
            if row > lags && self.variances.last().is_some_and(|v| v - 1.0 < SETTLED) {
                break;
            }
            let first = if row < lags { 0 } else { row - q };
            let begin = self.entries.len();
            // Each entry times the variance of its column.
            scaled.clear();
            for column in first..row {
                let (column_begin, column_first) = self.rows[column];
                let both = first.max(column_first);
                let known = &self.entries[column_begin + both - column_first..];
                let known = dot(&scaled[both - first..], known);
                scaled.push(covariance(row, column) - known);
                self.entries
                    .push(scaled[column - first] / self.variances[column]);
            }
            let explained = dot(&self.entries[begin..], &scaled);
            let variance = covariance(row, row) - explained;
            // Also refuses what is not a number.
            if !(variance > 0.0 && variance.is_finite()) {
                return None;
            }
            self.rows.push((begin, first));
            self.variances.push(variance);
        }
        Some(())
    }

    /// Replaces transformed samples by their innovations.
    fn innovate(&self, process: &Process, samples: &mut [f64]) {
        for (row, (begin, first)) in self.rows.iter().enumerate() {
            let known = &self.entries[*begin..begin + row - first];
            let expected = dot(known, &samples[*first..row]);
            samples[row] -= expected;
        }
        let terms = process.ma_terms.terms();
        for row in self.rows.len()..samples.len() {
            // The newest last, as in `lagged`.
            let known = terms.iter().rev();
            let expected: f64 = known.map(|(lag, c)| c * samples[row - lag]).sum();
            samples[row] -= expected;
        }
    }
}

/// The sum of products, as far as both go. In lanes of their own, which the
/// compiler turns into vector instructions.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let length = a.len().min(b.len());
    let ((a, a_left), (b, b_left)) = (
        a[..length].as_chunks::<LANES>(),
        b[..length].as_chunks::<LANES>(),
    );
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    let left: f64 = a_left.iter().zip(b_left).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f64>() + left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arima::polynomial::stable;

    fn coefficients(rng: &mut fastrand::Rng, terms: [usize; 4]) -> Coefficients {
        let mut block = |length| {
            let numbers: Vec<f64> = (0..length).map(|_| 2.0 * (rng.f64() - 0.5)).collect();
            stable(&numbers)
        };
        Coefficients {
            ar: block(terms[0]),
            ma: block(terms[1]),
            seasonal_ar: block(terms[2]),
            seasonal_ma: block(terms[3]),
            constant: None,
        }
    }

    /// The log-likelihood by the dense covariance matrix, from the weights of a
    /// long past of innovations.
    fn dense(series: &[f64], coefficients: &Coefficients, period: usize, mean: f64) -> f64 {
        let (ar, ma) = coefficients.polynomials(period);
        let past = 4000;
        let mut weights = ma.dense(past);
        for lag in 0..=past {
            for (back, c) in ar.terms() {
                if *back <= lag {
                    weights[lag] -= c * weights[lag - back];
                }
            }
        }
        let covariance = |lag: usize| -> f64 {
            weights[lag..]
                .iter()
                .zip(&weights)
                .map(|(a, b)| a * b)
                .sum()
        };
        let n = series.len();
        let covariances: Vec<f64> = (0..n).map(covariance).collect();
        let mut lower = vec![vec![0.0; n]; n];
        let mut log_determinant = 0.0;
        let mut white = vec![0.0; n];
        for i in 0..n {
            for j in 0..=i {
                let known: f64 = (0..j).map(|k| lower[i][k] * lower[j][k]).sum();
                let left: f64 = covariances[i - j] - known;
                lower[i][j] = if i == j {
                    left.sqrt()
                } else {
                    left / lower[j][j]
                };
            }
            let known: f64 = (0..i).map(|k| lower[i][k] * white[k]).sum();
            white[i] = (series[i] - mean - known) / lower[i][i];
            log_determinant += 2.0 * lower[i][i].ln();
        }
        let n = count(n);
        let variance = white.iter().map(|x| x * x).sum::<f64>() / n;
        -0.5 * (n * (TAU.ln() + 1.0 + variance.ln()) + log_determinant)
    }

    #[test]
    fn exact_is_the_multivariate_normal() {
        let mut rng = fastrand::Rng::with_seed(4);
        for terms in [
            [0, 0, 0, 0],
            [2, 0, 0, 0],
            [0, 3, 0, 0],
            [1, 1, 0, 0],
            [5, 2, 0, 0],
            [1, 4, 0, 0],
            [1, 0, 1, 0],
            [0, 1, 0, 1],
            [2, 1, 1, 2],
        ] {
            for constant in [false, true] {
                let coefficients = coefficients(&mut rng, terms);
                let series: Vec<f64> = (0..90).map(|_| 1.0 + 3.0 * rng.f64()).collect();
                let mut evaluator = Evaluator::new(&series, 6, constant);
                let exact = evaluator.evaluate(Judge::EXACT, &coefficients).unwrap();
                let expected = dense(&series, &coefficients, 6, exact.mean);
                assert!(
                    (exact.log_likelihood - expected).abs() < 1e-5 * expected.abs(),
                    "{terms:?} {constant}: {exact:?} instead of {expected}"
                );
                for moved in [-1e-3, 1e-3] {
                    let worse = dense(&series, &coefficients, 6, exact.mean + moved);
                    assert!(
                        !constant || worse < expected,
                        "{terms:?}: mean {}",
                        exact.mean
                    );
                }
            }
        }
    }

    #[test]
    fn conditional_innovations_are_those_that_made_the_series() {
        let mut rng = fastrand::Rng::with_seed(9);
        let coefficients = coefficients(&mut rng, [2, 1, 1, 1]);
        let (ar, ma) = coefficients.polynomials(7);
        let made: Vec<f64> = (0..400).map(|_| rng.f64() - 0.5).collect();
        let mut series: Vec<f64> = Vec::new();
        for t in 0..made.len() {
            let past = |terms: &[(usize, f64)], of: &[f64]| -> f64 {
                let known = terms.iter().filter(|(lag, _)| *lag <= t);
                known.map(|(lag, c)| c * of[t - lag]).sum()
            };
            let sample = made[t] + past(ma.terms(), &made) - past(ar.terms(), &series);
            series.push(sample);
        }
        for judge in [Judge::CONDITIONAL, Judge::EXACT] {
            let mut evaluator = Evaluator::new(&series, 7, false);
            let evaluation = evaluator.evaluate(judge, &coefficients).unwrap();
            let found = evaluator.innovations(&evaluation);
            let last = found.iter().zip(&made).skip(300);
            let off = last.fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
            assert!(off < 1e-3, "{judge:?}: {off}");
        }
    }
}
