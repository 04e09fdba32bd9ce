//! The last numbers of a stream, in order of size.
//!
//! # Approach
//!
//! A ring by age and a sorted copy. A new number replaces the oldest: two binary
//! searches and one short memory move. Equal numbers are alike, so any of them may
//! leave. (The crate's other sorted window keeps 128 numbers in five bytes each;
//! 0.99 wants more of them, and eight bytes each buy plain searches.)

/// Numbers that are kept.
pub(super) const CAPACITY: usize = 256;

#[derive(Clone, Debug, Default)]
pub(super) struct Ranks {
    ring: Vec<f32>,
    sorted: Vec<f32>,
    oldest: usize,
}

impl Ranks {
    /// Adds a number and, once full, forgets the oldest. NaN is left out.
    pub(super) fn push(&mut self, value: f32) {
        if value.is_nan() {
            return;
        }
        let place = self.sorted.partition_point(|&held| held < value);
        if self.ring.len() < CAPACITY {
            self.ring.push(value);
            self.sorted.insert(place, value);
            return;
        }
        let old = std::mem::replace(&mut self.ring[self.oldest], value);
        self.oldest = (self.oldest + 1) % CAPACITY;
        let vacated = self.sorted.partition_point(|&held| held < old);
        if vacated < place {
            self.sorted.copy_within(vacated + 1..place, vacated);
            self.sorted[place - 1] = value;
        } else {
            self.sorted.copy_within(place..vacated, place + 1);
            self.sorted[place] = value;
        }
    }

    /// Quantiles at the crate's levels, by the rank `ceil((n + 1) level)`; zeros
    /// while there is no number.
    pub(super) fn quantiles(&self) -> [f32; 4] {
        let n = self.sorted.len();
        crate::Quantiles::LEVELS_PERMILLE.map(|permille| {
            let rank = ((n + 1) * permille).div_ceil(1000).clamp(1, n.max(1));
            self.sorted.get(rank - 1).copied().unwrap_or(0.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_sorting() {
        let mut ranks = Ranks::default();
        assert_eq!(ranks.quantiles(), [0.0; 4]);
        let mut rng = fastrand::Rng::with_seed(1);
        let mut all = Vec::new();
        for _ in 0..3 * CAPACITY {
            // Few distinct values, so that ties are exercised.
            let value = (rng.f32() * 16.0).floor();
            ranks.push(value);
            all.push(value);
            let mut recent = all[all.len().saturating_sub(CAPACITY)..].to_vec();
            recent.sort_unstable_by(f32::total_cmp);
            assert_eq!(ranks.sorted, recent);
        }
    }
}
