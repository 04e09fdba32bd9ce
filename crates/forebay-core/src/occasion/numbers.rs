//! Medians and prediction intervals of a few numbers.

use forebay_forecast::Quantiles;
use serde::{Serialize, Serializer};

/// The levels of Student's t at 0.90, 0.95 and 0.99 by degrees of freedom from 1 on.
const STUDENT: [[f64; 3]; 11] = [
    [3.078, 6.314, 31.821],
    [1.886, 2.920, 6.965],
    [1.638, 2.353, 4.541],
    [1.533, 2.132, 3.747],
    [1.476, 2.015, 3.365],
    [1.440, 1.943, 3.143],
    [1.415, 1.895, 2.998],
    [1.397, 1.860, 2.896],
    [1.383, 1.833, 2.821],
    [1.372, 1.812, 2.764],
    [1.3634, 1.7959, 2.7181],
];

/// None of nothing.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some(f64::midpoint(values[low], values[high]))
}

/// What one more value will be: the median, and prediction intervals that are never below the
/// values' own quantiles. None of nothing.
pub(super) fn quantiles_of(mut values: Vec<f64>) -> Option<Quantiles> {
    values.sort_unstable_by(f64::total_cmp);
    let middle = median(values.iter().copied())?;
    let n = values.len();
    if n == 1 {
        return Quantiles::new([middle; 4]);
    }
    let mean = values.iter().sum::<f64>() / n as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let spread = (squares / (n - 1) as f64 * (1.0 + 1.0 / n as f64)).sqrt();
    let student = STUDENT[(n - 2).min(STUDENT.len() - 1)];
    let level = |at: usize, permille: usize| {
        let rank = (permille * (n + 1)).div_ceil(1000).clamp(1, n);
        (mean + student[at] * spread).max(values[rank - 1])
    };
    Quantiles::new([middle, level(0, 900), level(1, 950), level(2, 990)])
}

/// Four digits are enough to learn from.
fn four_digits(value: f32) -> f32 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
pub(super) fn rough<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    four_digits(*value).serialize(serializer)
}

pub(super) fn rough_all<S: Serializer, const N: usize>(
    values: &[f32; N],
    serializer: S,
) -> Result<S::Ok, S::Error>
where
    [f32; N]: Serialize,
{
    values.map(four_digits).serialize(serializer)
}
