//! The recent past of a series: a bounded tail of samples, and its range.

/// Rounds to single precision: ample for errors and shapes, half the memory.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to 24 bits is the purpose"
)]
pub(crate) fn narrow(value: f64) -> f32 {
    value as f32
}

/// A number to three digits in two bytes: the upper half of a single-precision one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rough(u16);

impl Rough {
    pub(crate) const ZERO: Self = Self(0);

    pub(crate) fn new(value: f32) -> Self {
        if value.is_nan() {
            // Rounding might carry into the sign.
            return Self((value.to_bits() >> 16) as u16 | 0x40);
        }
        Self::of_number(value)
    }

    /// Of what is not NaN: without a branch, for loops.
    pub(crate) fn of_number(value: f32) -> Self {
        Self((value.to_bits().wrapping_add(0x8000) >> 16) as u16)
    }

    pub(crate) fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Sorts as numbers that are not negative do.
    pub(crate) fn to_bits(self) -> u16 {
        self.0
    }

    pub(crate) fn get(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

/// The last samples, contiguous so that windows of them are plain slices.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    samples: Vec<f32>,
    len_max: usize,
    /// Appended samples before the kept ones move to the front again.
    slack: usize,
}

impl Tail {
    /// Keeps `len_max` samples, in memory for one in 32 more: so a sample moves 32 others.
    pub(crate) fn new(len_max: usize) -> Self {
        let slack = (len_max / 32).max(8);
        Self {
            samples: Vec::with_capacity(len_max + slack),
            len_max,
            slack,
        }
    }

    pub(crate) fn push(&mut self, value: f64) {
        if self.samples.len() == self.len_max + self.slack {
            self.samples.drain(..self.slack);
        }
        self.samples.push(narrow(value));
    }

    /// Oldest first, at most `len_max`.
    pub(crate) fn samples(&self) -> &[f32] {
        &self.samples[self.samples.len().saturating_sub(self.len_max)..]
    }

    /// The greatest of the last `count` samples. None if there is none.
    pub(crate) fn peak(&self, count: usize) -> Option<f64> {
        let samples = self.samples();
        peak_of(&samples[samples.len().saturating_sub(count)..])
    }

    /// The newest sample. None if there is none.
    pub(crate) fn last(&self) -> Option<f32> {
        self.samples.last().copied()
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.samples.capacity() * size_of::<f32>()
    }
}

/// The greatest of some samples. None if there is none.
pub(crate) fn peak_of(samples: &[f32]) -> Option<f64> {
    let greatest = |a: f32, &b: &f32| if b > a { b } else { a };
    let (first, rest) = samples.split_first()?;
    Some(f64::from(rest.iter().fold(*first, greatest)))
}

/// Lowest and highest sample of the last seven to eight eighths of a span.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    blocks: [(f64, f64); Range::BLOCKS],
    current: usize,
    in_block: usize,
    block_len: usize,
}

impl Range {
    const BLOCKS: usize = 8;
    const EMPTY: (f64, f64) = (f64::INFINITY, f64::NEG_INFINITY);

    pub(crate) fn new(span: usize) -> Self {
        Self {
            blocks: [Self::EMPTY; Self::BLOCKS],
            current: 0,
            in_block: 0,
            block_len: (span / Self::BLOCKS).max(1),
        }
    }

    pub(crate) fn push(&mut self, value: f64) {
        if self.in_block == self.block_len {
            self.current = (self.current + 1) % Self::BLOCKS;
            self.blocks[self.current] = Self::EMPTY;
            self.in_block = 0;
        }
        let (low, high) = self.blocks[self.current];
        self.blocks[self.current] = (low.min(value), high.max(value));
        self.in_block += 1;
    }

    /// (lowest, highest). None before the first sample.
    pub(crate) fn bounds(&self) -> Option<(f64, f64)> {
        let join = |a: (f64, f64), b: &(f64, f64)| (a.0.min(b.0), a.1.max(b.1));
        let bounds = self.blocks.iter().fold(Self::EMPTY, join);
        (bounds.0 <= bounds.1).then_some(bounds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rough_numbers_are_right_to_a_quarter_of_a_percent() {
        for value in [0.0_f32, 1.0, -1.0, 0.1, -123.456, 3.3e-20, 7.7e18] {
            let rough = Rough::new(value).get();
            assert!(
                (rough - value).abs() <= 0.004 * value.abs(),
                "{rough} {value}"
            );
        }
        assert!(Rough::new(f32::NAN).get().is_nan());
        assert!(Rough::new(f32::MAX).get().is_infinite());
        assert!(Rough::new(f32::NEG_INFINITY).get().is_infinite());
    }

    #[test]
    fn tail_is_the_last_samples() {
        let mut tail = Tail::new(10);
        assert_eq!(tail.peak(3), None);
        for i in 0..100_u8 {
            tail.push(f64::from(i));
            let expected: Vec<f32> = (i.saturating_sub(9)..=i).map(f32::from).collect();
            assert_eq!(tail.samples(), expected);
            assert_eq!(tail.peak(3), Some(f64::from(i)));
        }
        assert!(tail.bytes() <= 18 * 4);
    }

    #[test]
    fn range_forgets_after_its_span() {
        let mut range = Range::new(80);
        assert_eq!(range.bounds(), None);
        range.push(100.0);
        for _ in 0..70 {
            range.push(1.0);
        }
        assert_eq!(range.bounds(), Some((1.0, 100.0)));
        for _ in 0..10 {
            range.push(1.0);
        }
        assert_eq!(range.bounds(), Some((1.0, 1.0)));
    }
}
