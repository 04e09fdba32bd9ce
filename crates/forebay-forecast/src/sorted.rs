//! The last [`CAPACITY`] numbers, always in order.
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
//! Quantiles are exact and cost one lookup. Five bytes for each number.
//!
//! Source: the sorted window of running-median filters (Juhola, Katajainen and
//! Raita, "Comparison of algorithms for standard median filtering", 1991).

use crate::history::narrow;

/// Numbers kept; slots fit a byte.
pub(crate) const CAPACITY: usize = 128;

#[derive(Clone, Debug)]
pub(crate) struct SortedWindow {
    ring: [f32; CAPACITY],
    order: [u8; CAPACITY],
    len: usize,
    oldest: usize,
}

impl SortedWindow {
    pub(crate) fn new() -> Self {
        Self {
            ring: [0.0; CAPACITY],
            order: [0; CAPACITY],
            len: 0,
            oldest: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a number and, once full, forgets the oldest. It must not be NaN.
    pub(crate) fn push(&mut self, value: f64) {
        let value = narrow(value);
        let slot = self.oldest;
        self.oldest = (slot + 1) % CAPACITY;
        let vacated = if self.len == CAPACITY {
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
        let below = partition(&self.order[..vacated], |&other| {
            self.is_below(other, value, slot)
        });
        let rank = if below < vacated {
            self.order.copy_within(below..vacated, below + 1);
            below
        } else {
            let above = &self.order[vacated + 1..self.len];
            let passed = partition(above, |&other| self.is_below(other, value, slot));
            self.order
                .copy_within(vacated + 1..vacated + 1 + passed, vacated);
            vacated + passed
        };
        self.ring[slot] = value;
        self.order[rank] = byte(slot);
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

    fn rank_of(&self, value: f32, slot: usize) -> usize {
        partition(&self.order[..self.len], |&other| {
            self.is_below(other, value, slot)
        })
    }

    fn is_below(&self, other: u8, value: f32, slot: usize) -> bool {
        let held = self.ring[usize::from(other)];
        held < value || (held == value && usize::from(other) < slot)
    }
}

fn partition(order: &[u8], is_below: impl FnMut(&u8) -> bool) -> usize {
    order.partition_point(is_below)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a slot is below CAPACITY, which fits a byte"
)]
fn byte(slot: usize) -> u8 {
    slot as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_sorting() {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut window = SortedWindow::new();
            let mut all = Vec::new();
            for _ in 0..500 {
                // Few distinct values, so that ties are exercised.
                let value = f64::from(rng.i32(-8..8));
                window.push(value);
                all.push(value);
                let mut recent = all[all.len().saturating_sub(CAPACITY)..].to_vec();
                recent.sort_unstable_by(f64::total_cmp);
                for permille in [1, 500, 900, 950, 990, 1000] {
                    let rank = ((recent.len() + 1) * permille).div_ceil(1000);
                    let expected = recent[rank.clamp(1, recent.len()) - 1];
                    assert_eq!(window.quantile(permille), Some(expected), "seed {seed}");
                }
            }
        }
    }
}
