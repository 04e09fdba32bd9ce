//! Elementary functions, vectors and pseudo-random numbers of the network.
//!
//! # Approach
//!
//! The exponential is a power of two put into the exponent bits, times a
//! polynomial for the rest (Cody and Waite, "Software manual for the elementary
//! functions", 1980). It has no branch and no call, so the compiler turns loops
//! over it into vector instructions; sigmoid and tanh are made of it. Sums run in
//! independent lanes for the same reason.
//!
//! # Properties
//!
//! - Against double precision: [`exp`] is within 3e-6 of its value for arguments
//!   of -20 to 20, [`sigmoid`] within 1e-6 and [`tanh`] within 2e-6 absolutely for
//!   all (tests hold these).
//! - No function returns NaN for a number, or infinity for a finite number.

/// `e^x`, the argument held to -87..=87.
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it rounds to a whole number, left in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    let exponent = x.clamp(-87.0, 87.0) * std::f32::consts::LOG2_E;
    let shifted = exponent + ROUNDER;
    let rest = exponent - (shifted - ROUNDER);
    // The series of 2^rest for |rest| <= 1/2; the next term is below 2e-7.
    let mut power = 1.540_353e-4_f32;
    for coefficient in [
        1.333_355_8e-3,
        9.618_13e-3,
        5.550_411e-2,
        0.240_226_5,
        std::f32::consts::LN_2,
        1.0,
    ] {
        power = power * rest + coefficient;
    }
    let bits = (shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits());
    power * f32::from_bits(bits)
}

/// The logistic function.
#[inline]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent.
#[inline]
pub(super) fn tanh(x: f32) -> f32 {
    2.0 * sigmoid(2.0 * x) - 1.0
}

/// How round the corner of [`squareplus`] is.
const CORNER: f32 = 0.1;

/// A softplus without transcendental functions: positive, and close to `max(x, 0)`
/// (Barron, "Squareplus: a softplus-like algebraic rectifier", 2021).
#[inline]
pub(super) fn squareplus(x: f32) -> f32 {
    0.5 * (x + (x * x + CORNER).sqrt())
}

/// The slope of [`squareplus`].
#[inline]
pub(super) fn squareplus_slope(x: f32) -> f32 {
    0.5 * (1.0 + x / (x * x + CORNER).sqrt())
}

/// Where [`squareplus`] has a value above 0.
pub(super) fn squareplus_inverse(value: f32) -> f32 {
    value - CORNER / (4.0 * value)
}

/// Holds a number to -bound..=bound smoothly: slope 1 at zero, order kept.
#[inline]
pub(super) fn soften(x: f32, bound: f32) -> f32 {
    bound * x / (bound + x.abs())
}

/// Adds to `out` the product of `x` with a matrix that has a row of `out.len()`
/// for each element of `x`.
pub(super) fn add_product(out: &mut [f32], rows: &[f32], x: &[f32]) {
    let n = out.len();
    debug_assert_eq!(rows.len(), n * x.len());
    // Four rows at once, so that `out` is read and written a quarter as often.
    let (fours, ones) = rows.split_at(x.len() / 4 * 4 * n);
    for (four, x) in fours.chunks_exact(4 * n).zip(x.chunks_exact(4)) {
        let (ab, cd) = four.split_at(2 * n);
        let ((a, b), (c, d)) = (ab.split_at(n), cd.split_at(n));
        for ((((out, a), b), c), d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *out += a * x[0] + b * x[1] + c * x[2] + d * x[3];
        }
    }
    let x = &x[x.len() / 4 * 4..];
    for (row, &x) in ones.chunks_exact(n).zip(x) {
        add_scaled(out, row, x);
    }
}

/// Adds a multiple of one vector to another.
#[inline]
pub(super) fn add_scaled(out: &mut [f32], vector: &[f32], factor: f32) {
    for (out, value) in out.iter_mut().zip(vector) {
        *out += value * factor;
    }
}

/// Inner product of two vectors of one length.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut sums = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let rest: f32 = rest.map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// A small number as a float.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^24")]
pub(super) fn float(count: usize) -> f32 {
    count as f32
}

/// Pseudo-random numbers from a seed: SplitMix64 (Steele, Lea and Flood, "Fast
/// splittable pseudorandom number generators", OOPSLA 2014).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform below `bound`, which must not be 0. (The bias is below 2^-32 for
    /// the counts in use.)
    pub(super) fn below(&mut self, bound: usize) -> usize {
        let wide = u128::from(self.next()) * bound as u128;
        usize::try_from(wide >> 64).unwrap_or(0)
    }

    /// Uniform in -1..1.
    pub(super) fn symmetric(&mut self) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "24 bits fit")]
        let unit = (self.next() >> 40) as f32 / 16_777_216.0;
        2.0 * unit - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Greatest error of a function over -100..=100 and beyond.
    fn worst(approximate: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        let beyond = [f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY];
        (-1_000_000..=1_000_000)
            .map(|i| i as f32 * 1e-4)
            .chain(beyond)
            .map(|x| (f64::from(approximate(x)) - exact(f64::from(x))).abs())
            .fold(0.0, f64::max)
    }

    #[test]
    fn approximations_are_within_their_bounds() {
        let sigmoid_error = worst(sigmoid, |x| 1.0 / (1.0 + (-x).exp()));
        assert!(sigmoid_error < 1e-6, "{sigmoid_error}");
        let tanh_error = worst(tanh, f64::tanh);
        assert!(tanh_error < 2e-6, "{tanh_error}");
        let exp_error = worst(
            |x| {
                let x = x.clamp(-20.0, 20.0);
                crate::history::narrow(f64::from(exp(x)) / f64::from(x).exp())
            },
            |_| 1.0,
        );
        assert!(exp_error < 3e-6, "{exp_error}");
        assert!(exp(f32::INFINITY).is_finite() && exp(f32::NEG_INFINITY) >= 0.0);
    }

    #[test]
    fn squareplus_and_its_inverse_agree() {
        for value in [0.02, 0.4, 1.0, 7.0] {
            let x = squareplus_inverse(value);
            assert!((squareplus(x) - value).abs() < 1e-6, "{value}");
            let rise = (squareplus(x + 1e-2) - squareplus(x - 1e-2)) / 2e-2;
            assert!((rise - squareplus_slope(x)).abs() < 1e-2, "{value}");
        }
    }

    #[test]
    fn products_agree_with_plain_loops() {
        for (n, inputs) in [(1, 1), (3, 4), (8, 7), (20, 13)] {
            let mut random = Random::new(7);
            let rows: Vec<f32> = (0..n * inputs).map(|_| random.symmetric()).collect();
            let x: Vec<f32> = (0..inputs).map(|_| random.symmetric()).collect();
            let mut out = vec![1.0; n];
            add_product(&mut out, &rows, &x);
            for (k, out) in out.iter().enumerate() {
                let sum: f32 = (0..inputs).map(|j| rows[j * n + k] * x[j]).sum();
                assert!((out - 1.0 - sum).abs() < 1e-5);
            }
            let sum: f32 = rows.iter().map(|r| r * r).sum();
            assert!((dot(&rows, &rows) - sum).abs() < 1e-4);
        }
    }
}
