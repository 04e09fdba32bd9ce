//! The last `N` numbers, always in order.
//!
//! # Problem
//!
//! Quantiles of recent errors are wanted at every step, and sorting at every
//! step costs too much.
//!
//! # Approach
//!
//! A ring holds the numbers by age; a permutation of its slots holds them by
//! size. A new number takes the oldest one's slot, so that one element of the
//! permutation moves: two binary searches and one short memory move. Ties are
//! ordered by slot, which makes every search exact.
//!
//! # Properties
//!
//! Quantiles are exact, of numbers as they are kept, and cost one lookup. Five bytes for each
//! number where slots fit a byte; three where numbers are kept [`Upward`].
//!
//! Source: the sorted window of running-median filters (Juhola, Katajainen and
//! Raita, "Comparison of algorithms for standard median filtering", 1991).

use crate::Quantiles;
use crate::history::narrow;

/// How a number is kept.
pub(crate) trait Kept: Copy + Default {
    /// Of a number that is not NaN.
    fn keep(value: f32) -> Self;
    fn value(self) -> f32;
}

impl Kept for f32 {
    fn keep(value: f32) -> Self {
        value
    }

    fn value(self) -> f32 {
        self
    }
}

/// A number in two bytes, at most 0.8 % above what it was and never below: a quantile of such
/// errors still covers those that are equal to it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Upward(u16);

impl Kept for Upward {
    fn keep(value: f32) -> Self {
        let bits = value.to_bits();
        let upper = (bits >> 16) as u16;
        let is_cut = bits & 0xffff != 0;
        // Towards zero is upward for what is negative.
        let size = (upper & !Self::SIGN) + u16::from(is_cut && value > 0.0);
        Self(size.min(Self::MOST) | (upper & Self::SIGN))
    }

    fn value(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

impl Upward {
    const SIGN: u16 = 0x8000;
    /// The greatest that is finite.
    const MOST: u16 = 0x7f7f;
}

/// See the [module](self). `N` is at least 1, and slots of it fit `S`.
#[derive(Clone, Debug)]
pub(crate) struct SortedWindow<K, S, const N: usize> {
    ring: [K; N],
    order: [S; N],
    len: u16,
    oldest: u16,
}

impl<K, S, const N: usize> SortedWindow<K, S, N>
where
    K: Kept,
    S: Copy + Default + TryFrom<usize> + Into<usize>,
{
    pub(crate) fn new() -> Self {
        Self {
            ring: [K::default(); N],
            order: [S::default(); N],
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
        let value = kept.value();
        let slot = usize::from(self.oldest);
        self.oldest += 1;
        if usize::from(self.oldest) == N {
            self.oldest = 0;
        }
        let vacated = if self.len() == N {
            let held = self.ring[slot].value();
            if held == value {
                return;
            }
            self.rank_of(held, slot)
        } else {
            self.len += 1;
            self.len() - 1
        };
        // The vacated place is left out of the search for the new one: first
        // below it, and only if that search runs into it, above it.
        let below =
            self.order[..vacated].partition_point(|&other| self.is_below(other, value, slot));
        let rank = if below < vacated {
            self.order.copy_within(below..vacated, below + 1);
            below
        } else {
            let above = &self.order[vacated + 1..self.len()];
            let passed = above.partition_point(|&other| self.is_below(other, value, slot));
            self.order
                .copy_within(vacated + 1..vacated + 1 + passed, vacated);
            vacated + passed
        };
        self.ring[slot] = kept;
        // A slot is below N, which fits.
        self.order[rank] = S::try_from(slot).unwrap_or_default();
    }

    /// The number at a level, by the rank `ceil((n + 1) level)`: over
    /// exchangeable numbers the next one is at most this with at least that
    /// probability, as far as `n` allows (the split-conformal rank). None if empty.
    pub(crate) fn quantile(&self, permille: usize) -> Option<f64> {
        let len = self.len();
        if len == 0 {
            return None;
        }
        let rank = ((len + 1) * permille).div_ceil(1000).clamp(1, len) - 1;
        Some(f64::from(self.ring[self.order[rank].into()].value()))
    }

    /// The numbers at the crate's levels. None if empty.
    pub(crate) fn quantiles(&self) -> Option<[f64; 4]> {
        (self.len > 0).then(|| {
            Quantiles::LEVELS_PERMILLE.map(|level| self.quantile(level).unwrap_or_default())
        })
    }

    fn rank_of(&self, value: f32, slot: usize) -> usize {
        self.order[..self.len()].partition_point(|&other| self.is_below(other, value, slot))
    }

    fn is_below(&self, other: S, value: f32, slot: usize) -> bool {
        let other = other.into();
        let held = self.ring[other].value();
        held < value || (held == value && other < slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees_with_sorting<K, S, const N: usize>()
    where
        K: Kept,
        S: Copy + Default + TryFrom<usize> + Into<usize>,
    {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut window = SortedWindow::<K, S, N>::new();
            let mut all = Vec::new();
            for _ in 0..4 * N {
                // Few distinct values, so that ties are exercised.
                let value = f64::from(rng.i32(-8..8));
                window.push(value);
                all.push(value);
                let mut recent = all[all.len().saturating_sub(N)..].to_vec();
                recent.sort_unstable_by(f64::total_cmp);
                for permille in [1, 500, 900, 950, 990, 1000] {
                    let rank = ((recent.len() + 1) * permille).div_ceil(1000);
                    let expected = recent[rank.clamp(1, recent.len()) - 1];
                    assert_eq!(window.quantile(permille), Some(expected), "seed {seed}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let mut window = SortedWindow::<f32, u8, 4>::new();
        window.push(f64::NAN);
        assert_eq!(window.quantiles(), None);
        window.push(1.0);
        window.push(f64::NAN);
        assert_eq!(window.quantiles(), Some([1.0; 4]));
    }

    #[test]
    fn small_windows_agree_with_sorting() {
        agrees_with_sorting::<f32, u8, 256>();
        agrees_with_sorting::<Upward, u8, 180>();
    }

    #[test]
    fn large_windows_agree_with_sorting() {
        agrees_with_sorting::<f32, u16, 300>();
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
