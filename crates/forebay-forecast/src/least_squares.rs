//! A linear fit that learns with every sample: recursive least squares.
//!
//! # Problem
//!
//! How the last samples, the means and the season add up to a later value differs from series to
//! series, and changes. A fit over a window would cost a burst of work each time.
//!
//! # Approach
//!
//! Recursive least squares with exponential forgetting. Errors are clipped before they are learnt
//! from, and the covariance is halved when its trace grows without excitation: without both, one
//! spike or a long calm ruins the fit. The covariance is symmetric, and one triangle of it is kept.
//!
//! Sources: Haykin, "Adaptive filter theory", chapter 10; Åström and Wittenmark, "Adaptive
//! control", section 11.5 (estimator wind-up); Huber, "Robust statistics" (clipped errors).

use crate::history::narrow;

/// Weight of what is one sample older.
const FORGETTING: f64 = 0.9995;

/// A fit of `N` inputs. See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct LeastSquares<const N: usize> {
    weights: [f32; N],
    /// The lower triangle, by rows.
    covariance: Box<[f32]>,
    trace_max: f32,
}

impl<const N: usize> LeastSquares<N> {
    /// `trace_max` is the trace of the covariance above which it is halved. It begins as `N`.
    pub(crate) fn new(trace_max: f32) -> Self {
        let row = |row: usize| (0..=row).map(move |column| if row == column { 1.0 } else { 0.0 });
        Self {
            weights: [0.0; N],
            covariance: (0..N).flat_map(row).collect(),
            trace_max,
        }
    }

    pub(crate) fn predict(&self, x: &[f32; N]) -> f32 {
        dot(&self.weights, x)
    }

    /// Learns that `x` led to `y`, believing an error of at most `error_max`. Returns how far the
    /// weights moved for each unit of error; None if numbers ran out of bounds, so that the fit
    /// began anew.
    pub(crate) fn learn(&mut self, x: &[f32; N], y: f32, error_max: f32) -> Option<[f32; N]> {
        let wide = x.map(f64::from);
        let spread = self.times(&wide);
        let along: f64 = spread.iter().zip(&wide).map(|(part, x)| part * x).sum();
        let share = (FORGETTING + along).recip();
        let gain = spread.map(|part| part * share);
        let error = (y - self.predict(x)).clamp(-error_max, error_max);
        let sound = share > 0.0 && error.is_finite() && gain.iter().all(|part| part.is_finite());
        if !sound {
            *self = Self::new(self.trace_max);
            return None;
        }
        self.forget(&gain, &spread);
        let gain = gain.map(narrow);
        for (weight, part) in self.weights.iter_mut().zip(&gain) {
            *weight += part * error;
        }
        Some(gain)
    }

    /// Takes what was learnt out of the covariance.
    fn forget(&mut self, gain: &[f64; N], spread: &[f64; N]) {
        let grow = FORGETTING.recip();
        let mut trace = 0.0;
        let mut rest = &mut self.covariance[..];
        for (row, gain) in gain.iter().enumerate() {
            let (line, after) = rest.split_at_mut(row + 1);
            for (entry, part) in line.iter_mut().zip(spread) {
                *entry = narrow((f64::from(*entry) - gain * part) * grow);
            }
            trace += line[row];
            rest = after;
        }
        if trace > self.trace_max {
            self.covariance.iter_mut().for_each(|entry| *entry *= 0.5);
        }
    }

    /// The covariance times a vector: in double precision, since after a spike little is left of
    /// large terms.
    fn times(&self, vector: &[f64; N]) -> [f64; N] {
        let mut product = [0.0; N];
        let mut rest = &self.covariance[..];
        for row in 0..N {
            let (line, after) = rest.split_at(row + 1);
            let mut sum = 0.0;
            for column in 0..row {
                let entry = f64::from(line[column]);
                sum += entry * vector[column];
                product[column] += entry * vector[row];
            }
            product[row] += sum + f64::from(line[row]) * vector[row];
            rest = after;
        }
        product
    }

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.covariance)
    }
}

/// The sum of products of two vectors of one length.
pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
    const LANES: usize = 4;
    // Independent lanes, which the compiler turns into vector instructions.
    let mut sums = [0.0; LANES];
    let (lefts, rest) = left.as_chunks::<LANES>();
    let (rights, others) = right.as_chunks::<LANES>();
    for (left, right) in lefts.iter().zip(rights) {
        for lane in 0..LANES {
            sums[lane] += left[lane] * right[lane];
        }
    }
    let rest: f32 = rest.iter().zip(others).map(|(l, r)| l * r).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: usize = 16;
    const TRACE_MAX: f32 = 1e6;

    #[test]
    fn finds_the_coefficients_of_a_linear_process() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut fit = LeastSquares::<N>::new(TRACE_MAX);
        for _ in 0..2000 {
            let x: [f32; N] = std::array::from_fn(|_| rng.f32() - 0.5);
            let noise = 0.01 * (rng.f32() - 0.5);
            fit.learn(&x, 2.0 * x[0] - x[5] + noise, 10.0);
        }
        assert!((fit.weights[0] - 2.0).abs() < 0.01, "{:?}", fit.weights);
        assert!((fit.weights[5] + 1.0).abs() < 0.01, "{:?}", fit.weights);
        assert!(fit.weights[1].abs() < 0.01, "{:?}", fit.weights);
    }

    #[test]
    fn long_calm_and_spikes_leave_it_finite() {
        let mut fit = LeastSquares::<N>::new(TRACE_MAX);
        for step in 0..20_000 {
            let spike = if step % 5000 == 0 { 1e6 } else { 0.0 };
            fit.learn(&[spike; N], spike * 1e6, 6.0);
            assert!(fit.predict(&[spike; N]).is_finite(), "at step {step}");
        }
    }

    #[test]
    fn what_is_no_number_is_forgotten_with_all_else() {
        let mut fit = LeastSquares::<2>::new(TRACE_MAX);
        assert!(fit.learn(&[1.0, 0.0], 1.0, 1.0).is_some());
        assert_eq!(fit.learn(&[f32::NAN, 0.0], 1.0, 1.0), None);
        assert!(fit.predict(&[1.0, 1.0]).abs() < f32::EPSILON);
    }
}
