//! The last numbers of a window of any length, also in order.
//!
//! # Problem
//!
//! The rules are defined by exact quantiles of thousands of samples, at every step.
//!
//! # Approach
//!
//! A queue holds the numbers by age, a sorted list by size: two binary searches and two
//! memory moves for each number.
//!
//! # Properties
//!
//! Quantiles are exact, in double precision: 16 bytes for each number.
//!
//! Source: Hyndman and Fan, "Sample quantiles in statistical packages", 1996 (definition 7,
//! which numerical libraries use unless told otherwise).

use std::collections::VecDeque;

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Ordered {
    by_age: VecDeque<f64>,
    by_size: Vec<f64>,
    len_max: usize,
}

impl Ordered {
    /// Keeps `len_max` numbers, at least one.
    pub(super) fn new(len_max: usize) -> Self {
        Self {
            by_age: VecDeque::new(),
            by_size: Vec::new(),
            len_max: len_max.max(1),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_size.len()
    }

    /// Adds a number and, once full, forgets the oldest. It must not be NaN.
    pub(super) fn push(&mut self, value: f64) {
        if self.by_age.len() == self.len_max
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.by_size.remove(self.place(oldest));
        }
        self.by_age.push_back(value);
        self.by_size.insert(self.place(value), value);
    }

    /// The number at a level in thousandths, between its neighbours in proportion. None if empty.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a thousandth of a length below 2^27"
    )]
    pub(super) fn quantile(&self, permille: usize) -> Option<f64> {
        let thousandths = self.by_size.len().checked_sub(1)? * permille.min(1000);
        let below = self.by_size[thousandths / 1000];
        let above = self.by_size[thousandths.div_ceil(1000)];
        Some(below + (above - below) * ((thousandths % 1000) as f64 / 1000.0))
    }

    /// The greatest number. None if empty.
    pub(super) fn greatest(&self) -> Option<f64> {
        self.by_size.last().copied()
    }

    fn place(&self, value: f64) -> usize {
        self.by_size
            .partition_point(|held| held.total_cmp(&value).is_lt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_a_sorted_copy() {
        for len_max in [1, 2, 7, 100] {
            let mut rng = fastrand::Rng::with_seed(3);
            let mut window = Ordered::new(len_max);
            let mut all = Vec::new();
            assert_eq!(window.quantile(500), None);
            assert_eq!(window.greatest(), None);
            for _ in 0..3 * len_max + 10 {
                let value = f64::from(rng.i32(-8..8));
                window.push(value);
                all.push(value);
                let mut recent = all[all.len().saturating_sub(len_max)..].to_vec();
                recent.sort_unstable_by(f64::total_cmp);
                assert_eq!(window.by_size, recent);
                assert_eq!(window.greatest(), recent.last().copied());
            }
        }
    }

    #[test]
    fn levels_between_two_numbers_are_in_proportion() {
        let mut window = Ordered::new(5);
        [10.0, 0.0, 40.0, 20.0, 30.0]
            .into_iter()
            .for_each(|value| window.push(value));
        let check = |permille, expected: f64| {
            let quantile = window.quantile(permille).unwrap();
            assert!((quantile - expected).abs() < 1e-9, "{permille}: {quantile}");
        };
        check(0, 0.0);
        check(500, 20.0);
        check(900, 36.0);
        check(990, 39.6);
        check(1000, 40.0);
    }
}
