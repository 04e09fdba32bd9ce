//! The recent samples of a series, and the season among them.

use super::math::float;
use crate::history::{Tail, narrow, peak_of};

/// Longest period that may be known, in steps.
pub const PERIOD_MAX: usize = 1024;

/// Samples that are kept at least, for recent peaks.
const TAIL_MIN: usize = 64;

/// One known period and the longest horizon of samples, at least.
#[derive(Clone, Debug)]
pub(super) struct Past {
    tail: Tail,
    longest: usize,
    period: Option<usize>,
    /// Mean over periods, by phase.
    profile: Vec<f32>,
    /// Phase of the last sample.
    phase: usize,
    pushed: usize,
}

/// What the season says of one step ahead: differences from the last sample, 0 while
/// nothing is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlook {
    /// The sample one period before, and the same smoothed.
    pub(super) exact: f64,
    pub(super) smooth: f64,
    /// How far the smoothed season goes from now to then.
    pub(super) drift: f64,
    /// The mean over periods.
    pub(super) profile: f64,
    /// How far that goes from now to then.
    pub(super) turn: f64,
}

/// Weight of the newest period in the profile, once there are several.
const PROFILE_RATE: f32 = 0.25;

impl Past {
    /// `longest` horizon in steps. A period that is not 2 to [`PERIOD_MAX`] counts as
    /// none.
    pub(super) fn new(longest: usize, period: Option<usize>) -> Self {
        let period = period.filter(|period| (2..=PERIOD_MAX).contains(period));
        // One period and its neighbours, or the window of the longest peak.
        let needed = period.map_or(0, |period| period + 4).max(longest + 2);
        Self {
            tail: Tail::new(needed.max(TAIL_MIN)),
            longest,
            period,
            profile: Vec::with_capacity(period.unwrap_or(0)),
            phase: 0,
            pushed: 0,
        }
    }

    /// The same samples, as far as they are kept, with another period.
    pub(super) fn with_period(&self, period: Option<usize>) -> Self {
        let mut other = Self::new(self.longest, period);
        for &sample in self.tail.samples() {
            other.push(f64::from(sample));
        }
        other
    }

    pub(super) fn push(&mut self, value: f64) {
        self.tail.push(value);
        let Some(period) = self.period else { return };
        let value = narrow(value);
        self.phase = self.pushed % period;
        match self.profile.get_mut(self.phase) {
            Some(mean) => {
                let rate = PROFILE_RATE.max(1.0 / float(1 + self.pushed / period));
                *mean += rate * (value - *mean);
            }
            None => self.profile.push(value),
        }
        self.pushed += 1;
    }

    /// Phase of the last sample, in 0..1. 0 without a period.
    pub(super) fn phase(&self) -> f32 {
        float(self.phase) / float(self.period.unwrap_or(1))
    }

    /// The mean over past periods at the phase of the sample `ahead` steps from now.
    fn profile(&self, ahead: usize) -> Option<f64> {
        let phase = (self.phase + ahead) % self.period?;
        self.profile.get(phase).map(|&mean| f64::from(mean))
    }

    pub(super) fn period(&self) -> Option<usize> {
        self.period
    }

    pub(super) fn last(&self) -> Option<f64> {
        self.tail.last().map(f64::from)
    }

    /// Whether a whole period was seen.
    pub(super) fn has_season(&self) -> bool {
        self.period
            .is_some_and(|period| self.tail.samples().len() > period)
    }

    /// The sample `steps` before the last.
    pub(super) fn back(&self, steps: usize) -> Option<f64> {
        let samples = self.tail.samples();
        let index = samples.len().checked_sub(steps + 1)?;
        samples.get(index).map(|&sample| f64::from(sample))
    }

    /// The greatest of the last `count` samples. None if there is none.
    pub(super) fn peak(&self, count: usize) -> Option<f64> {
        self.tail.peak(count)
    }

    /// The least of the last `count` samples. None if there is none.
    pub(super) fn lowest(&self, count: usize) -> Option<f64> {
        let samples = self.tail.samples();
        let (first, rest) = samples[samples.len().saturating_sub(count)..].split_first()?;
        let least = |a: f32, &b: &f32| if b < a { b } else { a };
        Some(f64::from(rest.iter().fold(*first, least)))
    }

    /// What the season says of the sample `ahead` steps from now.
    pub(super) fn outlook(&self, ahead: usize, last: f64) -> Outlook {
        let from_last = |sample: Option<f64>| sample.map_or(0.0, |sample| sample - last);
        let rise = |then: Option<f64>, now: Option<f64>| match (then, now) {
            (Some(then), Some(now)) => then - now,
            _ => 0.0,
        };
        let (smooth, profile) = (self.smooth_season(ahead), self.profile(ahead));
        Outlook {
            exact: from_last(self.season(ahead)),
            smooth: from_last(smooth),
            drift: rise(smooth, self.smooth_season(0)),
            profile: from_last(profile),
            turn: rise(profile, self.profile(0)),
        }
    }

    /// The last seen sample at the phase of the one `ahead` steps from now.
    pub(super) fn season(&self, ahead: usize) -> Option<f64> {
        self.back(self.season_back(ahead)?)
    }

    /// The same, smoothed over three samples.
    fn smooth_season(&self, ahead: usize) -> Option<f64> {
        let back = self.season_back(ahead)?;
        let middle = self.back(back)?;
        let early = self.back(back + 1).unwrap_or(middle);
        let late = self.back(back.saturating_sub(1)).unwrap_or(middle);
        Some((early + middle + late) / 3.0)
    }

    /// The peak of the window like the next `steps`, one period before.
    pub(super) fn season_peak(&self, steps: usize) -> Option<f64> {
        let period = self.period?;
        let samples = self.tail.samples();
        let season = &samples[samples.len().checked_sub(period)?..];
        peak_of(&season[..steps.clamp(1, period)])
    }

    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        self.tail.bytes() + self.profile.capacity() * size_of::<f32>()
    }

    /// How many steps before the last one that sample is.
    fn season_back(&self, ahead: usize) -> Option<usize> {
        let period = self.period?;
        Some(ahead.div_ceil(period).max(1) * period - ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seasons_are_found_by_phase() {
        let mut past = Past::new(60, Some(24));
        for step in 0..240 {
            past.push(f64::from(step % 24));
        }
        // The last step is of phase 23.
        for ahead in 0..100 {
            let phase = (23 + ahead) % 24;
            assert_eq!(past.season(ahead), Some(phase as f64), "{ahead} ahead");
        }
        assert_eq!(past.smooth_season(5), Some(4.0));
        assert_eq!(past.season_peak(6), Some(5.0));
        assert_eq!((past.peak(3), past.lowest(3)), (Some(23.0), Some(21.0)));
        assert_eq!(past.profile(5), Some(4.0));
        let other = past.with_period(Some(12));
        assert_eq!(other.season(3), Some(14.0));
        assert_eq!(Past::new(1, Some(1)).period(), None);
        assert_eq!(Past::new(1, Some(PERIOD_MAX + 1)).period(), None);
    }
}
