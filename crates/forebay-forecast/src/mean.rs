//! A mean that forgets.

/// Mean with exponential forgetting; plain until it is warm.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mean {
    pub(crate) value: f64,
    count: u32,
}

impl Mean {
    /// How many numbers it is the mean of.
    pub(crate) fn count(self) -> u32 {
        self.count
    }

    /// `rate` is the weight of a new number, once there are many.
    pub(crate) fn push(&mut self, value: f64, rate: f64) {
        self.count = self.count.saturating_add(1);
        self.value += rate.max(1.0 / f64::from(self.count)) * (value - self.value);
    }
}
