//! A minimum of a smooth function of a few numbers, without its derivatives.
//!
//! # Approach
//!
//! The quasi-Newton method of Broyden, Fletcher, Goldfarb and Shanno over
//! differences, with a backtracking line search. No step moves a number
//! by more than 1: the numbers are inverse hyperbolic tangents, and further out
//! the function is flat.
//!
//! # Properties
//!
//! - The value never rises from one iteration to the next.
//! - Evaluations are bounded by the iterations, the search steps and the numbers.
//! - Where the function is not defined (None) is avoided, not an error.
//!
//! Source: Nocedal and Wright, "Numerical optimization", 2nd edition, chapters 3
//! and 6 (first scaling: equation 6.20).

/// Distance of differences. The error of a slope is about as large, for a function
/// that is computed to ten digits or more.
const DELTA: f64 = 1e-6;
/// Decrease of the value under which the minimum counts as found.
const DECREASE_MIN: f64 = 1e-7;
/// Slope in every direction under which the minimum counts as found.
const SLOPE_MIN: f64 = 1e-5;
/// Halvings of one line search.
const HALVINGS_MAX: usize = 20;
/// Share of the decrease promised by the slope that a step must bring.
const SUFFICIENT: f64 = 1e-4;

#[derive(Clone, Debug)]
pub(super) struct Minimum {
    pub(super) at: Vec<f64>,
    pub(super) value: f64,
}

/// Minimises from a start, in at most so many iterations. None if the function
/// is not defined at the start.
pub(super) fn minimise(
    start: Vec<f64>,
    iterations_max: usize,
    mut function: impl FnMut(&[f64]) -> Option<f64>,
) -> Option<Minimum> {
    let mut function = |at: &[f64]| function(at).filter(|value| value.is_finite());
    let value = function(&start)?;
    let mut best = Minimum { at: start, value };
    let mut slope = slope(&best, &mut function);
    let mut curvature = InverseCurvature::new(best.at.len());
    for _ in 0..iterations_max {
        if slope.iter().all(|s| s.abs() < SLOPE_MIN) {
            break;
        }
        let step = curvature.step(&slope);
        let Some(next) = line_search(&best, &slope, step, &mut function) else {
            if curvature.is_fresh() {
                break;
            }
            // The curvature misleads: once more along the steepest descent.
            curvature = InverseCurvature::new(best.at.len());
            continue;
        };
        let next_slope = self::slope(&next, &mut function);
        curvature.learn(
            &difference(&next.at, &best.at),
            &difference(&next_slope, &slope),
        );
        let decrease = best.value - next.value;
        best = next;
        slope = next_slope;
        if decrease < DECREASE_MIN {
            break;
        }
    }
    Some(best)
}

/// Derivatives at a point by differences to one side, or to the other where the
/// function ends.
fn slope(point: &Minimum, function: &mut impl FnMut(&[f64]) -> Option<f64>) -> Vec<f64> {
    let mut at = point.at.clone();
    (0..at.len())
        .map(|index| {
            let here = at[index];
            let mut towards = |delta: f64| {
                at[index] = here + delta;
                Some((function(&at)? - point.value) / delta)
            };
            let slope = towards(DELTA).or_else(|| towards(-DELTA));
            at[index] = here;
            slope.unwrap_or(0.0)
        })
        .collect()
}

/// The first point along the step that is sufficiently lower.
fn line_search(
    from: &Minimum,
    slope: &[f64],
    step: Vec<f64>,
    function: &mut impl FnMut(&[f64]) -> Option<f64>,
) -> Option<Minimum> {
    let promised = dot(slope, &step);
    let longest = step.iter().fold(1.0, |most: f64, s| most.max(s.abs()));
    let mut share = 1.0 / longest;
    for _ in 0..HALVINGS_MAX {
        let at: Vec<f64> = from
            .at
            .iter()
            .zip(&step)
            .map(|(x, s)| x + share * s)
            .collect();
        if let Some(value) = function(&at)
            && value <= from.value + SUFFICIENT * share * promised
        {
            return Some(Minimum { at, value });
        }
        share /= 2.0;
    }
    None
}

/// An estimate of the inverse of the second derivatives.
#[derive(Debug)]
struct InverseCurvature {
    rows: Vec<Vec<f64>>,
    learnt: usize,
}

impl InverseCurvature {
    fn new(size: usize) -> Self {
        let row = |i| (0..size).map(|j| f64::from(u8::from(i == j))).collect();
        Self {
            rows: (0..size).map(row).collect(),
            learnt: 0,
        }
    }

    fn is_fresh(&self) -> bool {
        self.learnt == 0
    }

    /// The step to where the slope should vanish; always downhill.
    fn step(&mut self, slope: &[f64]) -> Vec<f64> {
        let step: Vec<f64> = self.rows.iter().map(|row| -dot(row, slope)).collect();
        if dot(&step, slope) < 0.0 {
            return step;
        }
        *self = Self::new(slope.len());
        slope.iter().map(|s| -s).collect()
    }

    fn learn(&mut self, step: &[f64], slope_change: &[f64]) {
        let along = dot(step, slope_change);
        // Not convex here: what is known stays as it is.
        if along <= 1e-12 {
            return;
        }
        if self.is_fresh() {
            let scale = along / dot(slope_change, slope_change);
            self.rows
                .iter_mut()
                .flatten()
                .for_each(|entry| *entry *= scale);
        }
        self.learnt += 1;
        let moved: Vec<f64> = self.rows.iter().map(|row| dot(row, slope_change)).collect();
        let scale = (1.0 + dot(slope_change, &moved) / along) / along;
        for (i, row) in self.rows.iter_mut().enumerate() {
            for (j, entry) in row.iter_mut().enumerate() {
                *entry +=
                    scale * step[i] * step[j] - (moved[i] * step[j] + step[i] * moved[j]) / along;
            }
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minima_are_found() {
        fn check(start: &[f64], at: &[f64], function: impl Fn(&[f64]) -> f64) {
            let found = minimise(start.to_vec(), 200, |x| Some(function(x))).unwrap();
            let near = found.at.iter().zip(at).all(|(a, b)| (a - b).abs() < 1e-3);
            assert!(near, "{found:?} instead of {at:?}");
        }
        check(&[], &[], |_| 1.0);
        check(&[5.0], &[2.0], |x| (x[0] - 2.0).powi(2));
        check(&[5.0, -3.0], &[1.0, 2.0], |x| {
            (x[0] - 1.0).powi(2) + 100.0 * (x[1] - 2.0).powi(2) + x[0] * 0.0
        });
        // Rosenbrock's valley.
        check(&[-1.2, 1.0], &[1.0, 1.0], |x| {
            (1.0 - x[0]).powi(2) + 100.0 * (x[1] - x[0] * x[0]).powi(2)
        });
    }

    #[test]
    fn undefined_places_are_avoided() {
        let root = |x: &[f64]| (x[0] > 0.0).then(|| x[0] - x[0].ln());
        let found = minimise(vec![0.1], 100, root).unwrap();
        assert!((found.at[0] - 1.0).abs() < 1e-3, "{found:?}");
        assert!(minimise(vec![-1.0], 100, root).is_none());
        let nan = minimise(vec![1.0], 100, |_| Some(f64::NAN));
        assert!(nan.is_none());
    }

    #[test]
    fn evaluations_are_bounded() {
        let mut evaluations = 0;
        minimise(vec![1.0; 3], 10, |x| {
            evaluations += 1;
            Some(-x.iter().sum::<f64>())
        });
        assert!(
            evaluations <= 1 + 6 + 10 * (HALVINGS_MAX + 6),
            "{evaluations}"
        );
    }
}
