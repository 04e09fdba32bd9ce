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
//! Quantiles are exact and cost one lookup. Five bytes for each number where slots fit a byte,
//! six otherwise.
//!
//! Source: the sorted window of running-median filters (Juhola, Katajainen and
//! Raita, "Comparison of algorithms for standard median filtering", 1991).

use crate::Quantiles;
use crate::history::narrow;

/// See the [module](self). `N` is at least 1 and fits `S`.
#[derive(Clone, Debug)]
pub(crate) struct SortedWindow<S, const N: usize> {
    ring: [f32; N],
    order: [S; N],
    len: usize,
    oldest: usize,
}

impl<S: Copy + Default + TryFrom<usize>, const N: usize> SortedWindow<S, N>
where
    usize: From<S>,
{
    pub(crate) fn new() -> Self {
        Self {
            ring: [0.0; N],
            order: [S::default(); N],
            len: 0,
            oldest: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a number and, once full, forgets the oldest. NaN is left out.
    pub(crate) fn push(&mut self, value: f64) {
        let value = narrow(value);
        if value.is_nan() {
            return;
        }
        let slot = self.oldest;
        self.oldest = (slot + 1) % N;
        let vacated = if self.len == N {
            if self.ring[slot] == value {
                return;
            }
            self.rank_of(self.ring[slot], slot)
        } else {
            self.len += 1;
            self.len - 1
        };
        // The vacated place is left out of the search for the new one: first
        // below it, and only if that search runs into it, above it.
        let below =
            self.order[..vacated].partition_point(|&other| self.is_below(other, value, slot));
        let rank = if below < vacated {
            self.order.copy_within(below..vacated, below + 1);
            below
        } else {
            let above = &self.order[vacated + 1..self.len];
            let passed = above.partition_point(|&other| self.is_below(other, value, slot));
            self.order
                .copy_within(vacated + 1..vacated + 1 + passed, vacated);
            vacated + passed
        };
        self.ring[slot] = value;
        // A slot is below N, which fits.
        self.order[rank] = S::try_from(slot).unwrap_or_default();
    }

    /// The number at a level, by the rank `ceil((n + 1) level)`: over
    /// exchangeable numbers the next one is at most this with at least that
    /// probability, as far as `n` allows (the split-conformal rank). None if empty.
    pub(crate) fn quantile(&self, permille: usize) -> Option<f64> {
        if self.len == 0 {
            return None;
        }
        let rank = ((self.len + 1) * permille)
            .div_ceil(1000)
            .clamp(1, self.len)
            - 1;
        Some(f64::from(self.ring[usize::from(self.order[rank])]))
    }

    /// The numbers at the crate's levels. None if empty.
    pub(crate) fn quantiles(&self) -> Option<[f64; 4]> {
        (self.len > 0).then(|| {
            Quantiles::LEVELS_PERMILLE.map(|level| self.quantile(level).unwrap_or_default())
        })
    }

    fn rank_of(&self, value: f32, slot: usize) -> usize {
        self.order[..self.len].partition_point(|&other| self.is_below(other, value, slot))
    }

    fn is_below(&self, other: S, value: f32, slot: usize) -> bool {
        let held = self.ring[usize::from(other)];
        held < value || (held == value && usize::from(other) < slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees_with_sorting<S: Copy + Default + TryFrom<usize>, const N: usize>()
    where
        usize: From<S>,
    {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut window = SortedWindow::<S, N>::new();
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
        let mut window = SortedWindow::<u8, 4>::new();
        window.push(f64::NAN);
        assert_eq!(window.quantiles(), None);
        window.push(1.0);
        window.push(f64::NAN);
        assert_eq!(window.quantiles(), Some([1.0; 4]));
    }

    #[test]
    fn small_windows_agree_with_sorting() {
        agrees_with_sorting::<u8, 256>();
    }

    #[test]
    fn large_windows_agree_with_sorting() {
        agrees_with_sorting::<u16, 300>();
    }
}
