//! Polynomials in the lag operator, stable by construction.
//!
//! # Problem
//!
//! An autoregression is stationary, and a moving average invertible, only where
//! all roots of its polynomial lie outside the unit circle. That region has no
//! simple shape in the coefficients, so an optimiser over them would leave it.
//!
//! # Approach
//!
//! Partial autocorrelations, each in -1..1, cover the region exactly once. An
//! optimiser moves in their inverse hyperbolic tangents, which have no bounds.
//! The recursion of Durbin and Levinson gives the coefficients; run backwards it
//! tells whether given coefficients are stable.
//!
//! # Properties
//!
//! - Whatever numbers the optimiser tries, the polynomial is stable.
//! - One more partial autocorrelation of 0 leaves a polynomial as it was, so a
//!   longer model can start where a shorter one ended.
//!
//! Source: Monahan, "A note on enforcing stationarity in
//! autoregressive-moving average models", Biometrika 1984.

/// Greatest partial autocorrelation. Nearer to 1 the autocovariances of a
/// stationary process lose all their digits.
const PARTIAL_MAX: f64 = 0.9999;

/// Coefficients `c` of `x[t] = c[0] x[t-1] + c[1] x[t-2] + ...` from numbers
/// without bounds, one for each.
pub(super) fn stable(unbounded: &[f64]) -> Vec<f64> {
    let mut coefficients: Vec<f64> = Vec::with_capacity(unbounded.len());
    for number in unbounded {
        let partial = PARTIAL_MAX * number.tanh();
        let shorter = coefficients.clone();
        for (coefficient, mirrored) in coefficients.iter_mut().zip(shorter.iter().rev()) {
            *coefficient -= partial * mirrored;
        }
        coefficients.push(partial);
    }
    coefficients
}

/// The inverse of [`stable`]. None if the coefficients are not stable.
pub(super) fn unbounded(coefficients: &[f64]) -> Option<Vec<f64>> {
    let partials = partials(coefficients)?;
    let within = |partial: f64| (partial / PARTIAL_MAX).clamp(-0.999_999, 0.999_999);
    Some(partials.into_iter().map(|p| within(p).atanh()).collect())
}

/// Whether all roots lie further out than `radius` (at least 1).
pub(super) fn is_stable_beyond(coefficients: &[f64], radius: f64) -> bool {
    // The roots of c(radius * z) are those of c(z), nearer by the radius.
    let mut power = 1.0;
    let scaled: Vec<f64> = coefficients
        .iter()
        .map(|coefficient| {
            power *= radius;
            coefficient * power
        })
        .collect();
    partials(&scaled).is_some()
}

/// Partial autocorrelations, all within -1..1, or None.
fn partials(coefficients: &[f64]) -> Option<Vec<f64>> {
    let mut left = coefficients.to_vec();
    let mut partials = vec![0.0; coefficients.len()];
    for slot in partials.iter_mut().rev() {
        let partial = left.pop()?;
        // Also refuses what is not a number.
        if !(-1.0 < partial && partial < 1.0) {
            return None;
        }
        *slot = partial;
        let longer = left.clone();
        for (coefficient, mirrored) in left.iter_mut().zip(longer.iter().rev()) {
            *coefficient = (*coefficient + partial * mirrored) / (1.0 - partial * partial);
        }
    }
    Some(partials)
}

/// `1 + c1 B^l1 + c2 B^l2 + ...` with ascending lags; terms of 0 are left out,
/// so that a season of hundreds of steps costs no more than one of four.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Polynomial {
    terms: Vec<(usize, f64)>,
}

impl Polynomial {
    /// `1 + sign * (c[0] B^stride + c[1] B^(2 stride) + ...)`.
    pub(super) fn new(coefficients: &[f64], stride: usize, sign: f64) -> Self {
        let lags = (1..).map(|k| k * stride);
        let terms = lags.zip(coefficients.iter().map(|c| sign * c));
        Self {
            terms: terms.filter(|(_, c)| *c != 0.0).collect(),
        }
    }

    /// `(1 - B^lag)^times`.
    pub(super) fn difference(lag: usize, times: usize) -> Self {
        let once = Self {
            terms: vec![(lag, -1.0)],
        };
        (0..times).fold(Self { terms: Vec::new() }, |product, _| {
            product.times(&once)
        })
    }

    pub(super) fn times(&self, other: &Self) -> Self {
        let with_one = |terms: &[(usize, f64)]| {
            std::iter::once((0, 1.0))
                .chain(terms.iter().copied())
                .collect::<Vec<_>>()
        };
        let mut dense = vec![0.0; self.degree() + other.degree() + 1];
        for (lag, coefficient) in with_one(&self.terms) {
            for (other_lag, other_coefficient) in with_one(&other.terms) {
                dense[lag + other_lag] += coefficient * other_coefficient;
            }
        }
        let terms = dense.into_iter().enumerate().skip(1);
        Self {
            terms: terms.filter(|(_, c)| *c != 0.0).collect(),
        }
    }

    /// (lag, coefficient) without the leading 1, lags ascending.
    pub(super) fn terms(&self) -> &[(usize, f64)] {
        &self.terms
    }

    pub(super) fn degree(&self) -> usize {
        self.terms.last().map_or(0, |(lag, _)| *lag)
    }

    /// Sum of all coefficients, the leading 1 among them.
    pub(super) fn at_one(&self) -> f64 {
        self.terms.iter().fold(1.0, |sum, (_, c)| sum + c)
    }

    /// All coefficients up to a lag, the leading 1 first.
    pub(super) fn dense(&self, lag_max: usize) -> Vec<f64> {
        let mut dense = vec![0.0; lag_max + 1];
        dense[0] = 1.0;
        for (lag, coefficient) in &self.terms {
            if let Some(slot) = dense.get_mut(*lag) {
                *slot = *coefficient;
            }
        }
        dense
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9)
    }

    #[test]
    fn stable_and_unbounded_are_inverse() {
        let mut rng = fastrand::Rng::with_seed(1);
        for length in 0..=5 {
            for _ in 0..50 {
                let numbers: Vec<f64> = (0..length).map(|_| 4.0 * (rng.f64() - 0.5)).collect();
                let coefficients = stable(&numbers);
                let back = unbounded(&coefficients).unwrap();
                assert!(
                    numbers.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-6),
                    "{numbers:?} {back:?}"
                );
            }
        }
    }

    #[test]
    fn one_more_partial_of_zero_changes_nothing() {
        let shorter = stable(&[0.7, -0.4]);
        let longer = stable(&[0.7, -0.4, 0.0]);
        assert_eq!(shorter, longer[..2]);
        assert_eq!(longer[2], 0.0);
    }

    #[test]
    fn stability_is_that_of_the_roots() {
        fn check(coefficients: &[f64], radius: f64, stable: bool) {
            assert_eq!(
                is_stable_beyond(coefficients, radius),
                stable,
                "{coefficients:?} beyond {radius}"
            );
        }
        check(&[], 1.0, true);
        check(&[0.5], 1.0, true);
        check(&[0.5], 1.99, true);
        check(&[0.5], 2.01, false);
        check(&[1.0], 1.0, false);
        check(&[-1.1], 1.0, false);
        // Roots of 1 - 0.5 z - 0.3 z^2: 1.17 and -2.84.
        check(&[0.5, 0.3], 1.15, true);
        check(&[0.5, 0.3], 1.19, false);
        check(&[0.5, 0.6], 1.0, false);
        check(&[f64::NAN], 1.0, false);
    }

    #[test]
    fn products_are_those_of_polynomials() {
        let airline = Polynomial::new(&[-0.4], 1, 1.0).times(&Polynomial::new(&[-0.6], 12, 1.0));
        assert_eq!(airline.terms(), [(1, -0.4), (12, -0.6), (13, 0.24)]);
        assert!((airline.at_one() - 0.6 * 0.4).abs() < 1e-12);
        let twice = Polynomial::difference(1, 2);
        assert!(close(&twice.dense(3), &[1.0, -2.0, 1.0, 0.0]));
        assert_eq!(Polynomial::difference(7, 0).terms(), []);
    }
}
