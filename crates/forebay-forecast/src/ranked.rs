//! The last `N` numbers, and their quantiles.
//!
//! # Problem
//!
//! Quantiles of recent errors are wanted at every step, and sorting at every
//! step costs too much.
//!
//! # Approach
//!
//! A ring holds the numbers by age, as integers that sort as the numbers do. Beside it stand the
//! quantiles. A number that takes the place of one on the same side of a quantile leaves that as it
//! was, and most do. Where it does not, the ring is counted through, eight numbers at once, and the
//! quantile moves to its neighbour: from one number to the next a rank moves by one place.
//!
//! # Properties
//!
//! Quantiles are exact, of numbers as they are kept, and cost one lookup. Four bytes for each
//! number; two where numbers are kept [`Upward`].
//!
//! Source: the windows of running-median filters (Juhola, Katajainen and Raita, "Comparison of
//! algorithms for standard median filtering", 1991), of which this one keeps no order.

use crate::Quantiles;
use crate::history::narrow;

const LEVELS: usize = Quantiles::LEVELS_PERMILLE.len();

/// How a number is kept: sorted as the number is.
pub(crate) trait Kept: Copy + Default + Ord {
    const LEAST: Self;
    const MOST: Self;

    /// Of a number that is not NaN.
    fn keep(value: f32) -> Self;
    fn value(self) -> f32;
}

/// A number as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Exact(i32);

impl Kept for Exact {
    const LEAST: Self = Self(i32::MIN);
    const MOST: Self = Self(i32::MAX);

    fn keep(value: f32) -> Self {
        // Without the sign of zero, which would sort.
        let bits = (value + 0.0).to_bits().cast_signed();
        Self(if bits < 0 { bits ^ i32::MAX } else { bits })
    }

    fn value(self) -> f32 {
        let bits = if self.0 < 0 {
            self.0 ^ i32::MAX
        } else {
            self.0
        };
        f32::from_bits(bits.cast_unsigned())
    }
}

/// A number in two bytes, at most 0.8 % above what it was and never below: a quantile of such
/// errors still covers those that are equal to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Upward(i16);

impl Kept for Upward {
    const LEAST: Self = Self(i16::MIN);
    const MOST: Self = Self(i16::MAX);

    fn keep(value: f32) -> Self {
        let bits = value.to_bits();
        let is_cut = bits & 0xffff != 0;
        // Towards zero is upward for what is negative.
        let size = (bits >> 16) as u16 & !Self::SIGN;
        if value > 0.0 {
            return Self(
                (size + u16::from(is_cut))
                    .min(Self::FINITE_MAX)
                    .cast_signed(),
            );
        }
        // Of which the smallest is zero.
        Self(-size.min(Self::FINITE_MAX).cast_signed())
    }

    fn value(self) -> f32 {
        let sign = if self.0 < 0 { Self::SIGN } else { 0 };
        f32::from_bits(u32::from(self.0.unsigned_abs() | sign) << 16)
    }
}

impl Upward {
    const SIGN: u16 = 0x8000;
    /// The greatest that is finite.
    const FINITE_MAX: u16 = 0x7f7f;
}

/// See the [module](self). `N` is at least 1.
#[derive(Clone, Debug)]
pub(crate) struct RankedWindow<K, const N: usize> {
    ring: [K; N],
    /// At the crate's levels.
    quantiles: [K; LEVELS],
    len: u16,
    oldest: u16,
}

impl<K: Kept, const N: usize> RankedWindow<K, N> {
    pub(crate) fn new() -> Self {
        Self {
            ring: [K::default(); N],
            quantiles: [K::default(); LEVELS],
            len: 0,
            oldest: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Adds a number and, once full, forgets the oldest. NaN is left out.
    pub(crate) fn push(&mut self, value: f64) {
        let value = narrow(value);
        if value.is_nan() {
            return;
        }
        let kept = K::keep(value);
        let slot = usize::from(self.oldest);
        self.oldest += 1;
        if usize::from(self.oldest) == N {
            self.oldest = 0;
        }
        let was_full = self.len() == N;
        let forgotten = std::mem::replace(&mut self.ring[slot], kept);
        if !was_full {
            self.len += 1;
        }
        for (index, permille) in Quantiles::LEVELS_PERMILLE.into_iter().enumerate() {
            let quantile = self.quantiles[index];
            let stays = was_full && kept.cmp(&quantile) == forgotten.cmp(&quantile);
            if !stays {
                self.quantiles[index] = self.at_rank(self.rank(permille), quantile);
            }
        }
    }

    /// The numbers at the crate's levels, by the rank `ceil((n + 1) level)`: over
    /// exchangeable numbers the next one is at most this with at least that
    /// probability, as far as `n` allows (the split-conformal rank). None if empty.
    pub(crate) fn quantiles(&self) -> Option<[f64; LEVELS]> {
        (self.len > 0).then(|| self.quantiles.map(|kept| f64::from(kept.value())))
    }

    /// How many numbers are before that of a level.
    fn rank(&self, permille: usize) -> usize {
        let len = self.len();
        ((len + 1) * permille).div_ceil(1000).clamp(1, len) - 1
    }

    /// The number of a rank, looked for from another one on.
    fn at_rank(&self, rank: usize, from: K) -> K {
        let held = &self.ring[..self.len()];
        let mut found = from;
        loop {
            // Without branches and checks of the sums, which a ring cannot overflow: so the compiler
            // makes vector instructions of it.
            let (mut below, mut above) = (0_u16, 0_u16);
            let (mut lower, mut higher) = (K::LEAST, K::MOST);
            for &number in held {
                below = below.wrapping_add(u16::from(number < found));
                above = above.wrapping_add(u16::from(number > found));
                lower = lower.max(if number < found { number } else { K::LEAST });
                higher = higher.min(if number > found { number } else { K::MOST });
            }
            if rank < usize::from(below) {
                found = lower;
            } else if rank + usize::from(above) >= held.len() {
                found = higher;
            } else {
                return found;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees_with_sorting<K: Kept, const N: usize>(
        mut draw: impl FnMut(&mut fastrand::Rng) -> f64,
    ) {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut window = RankedWindow::<K, N>::new();
            let mut all = Vec::new();
            for _ in 0..4 * N {
                let value = draw(&mut rng);
                window.push(value);
                all.push(f64::from(K::keep(narrow(value)).value()));
                let mut recent = all[all.len().saturating_sub(N)..].to_vec();
                recent.sort_unstable_by(f64::total_cmp);
                let expected = Quantiles::LEVELS_PERMILLE.map(|permille| {
                    let rank = ((recent.len() + 1) * permille).div_ceil(1000);
                    recent[rank.clamp(1, recent.len()) - 1]
                });
                assert_eq!(window.quantiles(), Some(expected), "seed {seed}");
            }
        }
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let mut window = RankedWindow::<Exact, 4>::new();
        window.push(f64::NAN);
        assert_eq!(window.quantiles(), None);
        window.push(1.0);
        window.push(f64::NAN);
        assert_eq!(window.quantiles(), Some([1.0; 4]));
    }

    #[test]
    fn quantiles_are_those_of_sorting() {
        // Few distinct values, so that ties are exercised.
        let few = |rng: &mut fastrand::Rng| f64::from(rng.i32(-8..8));
        agrees_with_sorting::<Exact, 128>(few);
        agrees_with_sorting::<Upward, 180>(few);
        agrees_with_sorting::<Exact, 1>(few);
        let many = |rng: &mut fastrand::Rng| 1e3 * (rng.f64() - 0.5);
        agrees_with_sorting::<Exact, 300>(many);
        agrees_with_sorting::<Upward, 256>(many);
    }

    #[test]
    fn a_level_that_moves_is_followed() {
        for size in [1.0, 1e18, f64::from(f32::MAX)] {
            let mut step = 0_u32;
            agrees_with_sorting::<Exact, 64>(|_| {
                step += 1;
                if step % 200 < 100 { size } else { -size }
            });
        }
    }

    #[test]
    fn what_is_kept_upward_is_never_below() {
        for value in [
            0.0_f32, 1.0, -1.0, 0.1, -0.1, 123.456, 3.3e-20, -7.7e18, 1e-40, -1e-40,
        ] {
            let kept = Upward::keep(value).value();
            assert!(
                kept >= value && kept - value <= 0.008 * value.abs() + 1e-38,
                "{kept} {value}"
            );
        }
        for value in [f32::MAX, f32::INFINITY] {
            assert!(Upward::keep(value).value() > 3e38);
            assert!(Upward::keep(value).value().is_finite());
        }
        assert!(Upward::keep(f32::NEG_INFINITY).value() < -3e38);
        assert!(Upward::keep(-f32::MAX).value() < -3e38);
    }
}
