//! What comes again with one period.

use crate::Target;
use crate::history::{narrow, peak_of};

/// Weight of the newest value in the mean of its phase, at least.
const NEWEST: f32 = 0.25;

/// A period and the mean of each of its phases.
#[derive(Clone, Debug, Default)]
pub(super) struct Season {
    profile: Vec<f32>,
    /// The phase of the newest sample.
    phase: usize,
    /// Whole periods in the profile, up to as many as count.
    rounds: u8,
}

/// What a season says of one horizon.
#[derive(Clone, Copy, Debug)]
pub(super) struct Echo {
    /// The value, or peak, of one period ago.
    pub(super) one: f64,
    /// That, smoothed over its neighbours.
    pub(super) around: f64,
    /// Of two periods ago.
    pub(super) two: f64,
    /// The mean of that phase, and of the present one.
    pub(super) then: f64,
    pub(super) now: f64,
}

impl Season {
    pub(super) fn period(&self) -> Option<usize> {
        (!self.profile.is_empty()).then_some(self.profile.len())
    }

    /// Learns the profile of a period from what is remembered, if that is one period at least.
    pub(super) fn begin(&mut self, period: Option<usize>, samples: &[f32]) {
        self.profile.clear();
        self.rounds = 0;
        let Some(period) = period.filter(|&period| period > 0) else {
            return;
        };
        let whole = samples.len() / period * period;
        // The last sample is the last phase, whatever was the first.
        for round in samples[samples.len() - whole..].chunks_exact(period) {
            if self.profile.is_empty() {
                self.profile.extend_from_slice(round);
            }
            self.rounds = (self.rounds + 1).min(4);
            let rate = f32::from(self.rounds).recip().max(NEWEST);
            for (mean, value) in self.profile.iter_mut().zip(round) {
                *mean += rate * (value - *mean);
            }
        }
        self.phase = period - 1;
    }

    /// One step passed.
    pub(super) fn step(&mut self, value: f64) {
        let Some(period) = self.period() else { return };
        self.phase = (self.phase + 1) % period;
        if self.phase == 0 {
            self.rounds = (self.rounds + 1).min(4);
        }
        let rate = f32::from(self.rounds).recip().max(NEWEST);
        let mean = &mut self.profile[self.phase];
        *mean += rate * (narrow(value) - *mean);
    }

    /// What `samples`, the newest last, say of the same phase. None without a period that they
    /// reach back to.
    pub(super) fn echo(&self, samples: &[f32], target: Target, steps: usize) -> Option<Echo> {
        let period = self.period()?;
        let last = samples.len().checked_sub(1)?;
        let window = |ago: usize| {
            let back = period * (steps.div_ceil(period) + ago);
            let end = (last + steps).checked_sub(back)?;
            match target {
                Target::Value => Some((end, end)),
                Target::Peak => Some(((end + 1).checked_sub(steps.min(period))?, end)),
            }
        };
        let of = |(begin, end): (usize, usize)| peak_of(&samples[begin..=end]);
        let (begin, end) = window(0)?;
        let one = of((begin, end))?;
        let around = match target {
            Target::Value => {
                let near = &samples[begin.saturating_sub(1)..=(end + 1).min(last)];
                #[expect(clippy::cast_precision_loss, reason = "three at most")]
                let mean = f64::from(near.iter().sum::<f32>()) / near.len() as f64;
                mean
            }
            Target::Peak => one,
        };
        Some(Echo {
            one,
            around,
            two: window(1).and_then(of).unwrap_or(one),
            then: self.profile_at(target, steps)?,
            now: f64::from(self.profile[self.phase]),
        })
    }

    fn profile_at(&self, target: Target, steps: usize) -> Option<f64> {
        let period = self.profile.len();
        let phase = |ahead: usize| (self.phase + ahead) % period;
        match target {
            Target::Value => Some(f64::from(self.profile[phase(steps)])),
            Target::Peak if steps >= period => peak_of(&self.profile),
            Target::Peak => {
                let (first, last) = (phase(1), phase(steps));
                if first <= last {
                    return peak_of(&self.profile[first..=last]);
                }
                Some(peak_of(&self.profile[first..])?.max(peak_of(&self.profile[..=last])?))
            }
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.profile.capacity() * size_of::<f32>()
    }
}
