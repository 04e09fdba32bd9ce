//! A linear forecaster that learns with every sample: recursive least squares.
//!
//! # Problem
//!
//! How the last samples, the means and the season add up to the next value differs
//! from series to series. The network cannot know it of a series it never saw; a
//! linear fit learns it from a hundred samples.
//!
//! # Approach
//!
//! Recursive least squares with exponential forgetting. Errors are clipped before
//! they are learnt from, and the covariance is shrunk when its trace grows without
//! excitation: without both, one spike or a long calm ruins the fit.
//!
//! Source: Haykin, "Adaptive filter theory", chapter 10; Åström and Wittenmark,
//! "Adaptive control", section 11.5 (estimator wind-up).

/// Inputs of the fit.
pub(super) const INPUTS: usize = 16;
/// Weight of what is one sample older.
const FORGETTING: f64 = 0.9995;
/// Trace of the covariance from which it is shrunk.
const TRACE_MAX: f64 = 1e6;

#[derive(Clone, Debug)]
pub(super) struct LeastSquares {
    weights: [f64; INPUTS],
    covariance: Box<[[f64; INPUTS]; INPUTS]>,
}

impl LeastSquares {
    pub(super) fn new() -> Self {
        let mut covariance = Box::new([[0.0; INPUTS]; INPUTS]);
        for (k, row) in covariance.iter_mut().enumerate() {
            row[k] = 1.0;
        }
        Self {
            weights: [0.0; INPUTS],
            covariance,
        }
    }

    pub(super) fn predict(&self, x: &[f32; INPUTS]) -> f64 {
        self.weights
            .iter()
            .zip(x)
            .map(|(w, &x)| w * f64::from(x))
            .sum()
    }

    /// Learns that `x` led to `y`, believing an error of at most `error_max`.
    pub(super) fn update(&mut self, x: &[f32; INPUTS], y: f64, error_max: f64) {
        let error = (y - self.predict(x)).clamp(-error_max, error_max);
        let x = x.map(f64::from);
        let mut gain = [0.0; INPUTS];
        // The covariance is symmetric: its rows are its columns.
        for (row, x) in self.covariance.iter().zip(x) {
            for (gain, p) in gain.iter_mut().zip(row) {
                *gain += p * x;
            }
        }
        let spread: f64 = gain.iter().zip(x).map(|(g, x)| g * x).sum();
        let share = 1.0 / (FORGETTING + spread);
        if !(share.is_finite() && share > 0.0 && error.is_finite()) {
            *self = Self::new();
            return;
        }
        let mut trace = 0.0;
        for (k, row) in self.covariance.iter_mut().enumerate() {
            self.weights[k] += gain[k] * share * error;
            let factor = gain[k] * share;
            for (p, g) in row.iter_mut().zip(gain) {
                *p = (*p - factor * g) * (1.0 / FORGETTING);
            }
            trace += row[k];
        }
        if trace > TRACE_MAX {
            self.covariance.iter_mut().flatten().for_each(|p| *p *= 0.5);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_coefficients_of_a_linear_process() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut fit = LeastSquares::new();
        for _ in 0..2000 {
            let x: [f32; INPUTS] = std::array::from_fn(|_| rng.f32() - 0.5);
            let noise = 0.01 * (rng.f64() - 0.5);
            fit.update(&x, 2.0 * f64::from(x[0]) - f64::from(x[5]) + noise, 10.0);
        }
        assert!((fit.weights[0] - 2.0).abs() < 0.01, "{:?}", fit.weights);
        assert!((fit.weights[5] + 1.0).abs() < 0.01, "{:?}", fit.weights);
        assert!(fit.weights[1].abs() < 0.01, "{:?}", fit.weights);
    }

    #[test]
    fn long_calm_and_spikes_leave_it_finite() {
        let mut fit = LeastSquares::new();
        for step in 0..20_000 {
            let spike = if step % 5000 == 0 { 1e6 } else { 0.0 };
            let x: [f32; INPUTS] = std::array::from_fn(|_| spike);
            fit.update(&x, f64::from(spike) * 1e6, 6.0);
            assert!(fit.predict(&x).is_finite(), "at step {step}");
        }
    }
}
