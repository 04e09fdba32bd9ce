//! How much more or less an app needs on the days of a calendar.
//!
//! # Problem
//!
//! A holiday changes the whole day of some apps, and is too rare to be a season.
//!
//! # Approach
//!
//! For each app and resource, the peak of a day is compared with the median of the last [`BASE`]
//! ordinary days' peaks, as the logarithm of their ratio: a factor. Ordinary days are compared in the
//! same way and are the controls. The test is that of [`evidence`](super::evidence): by ranks, on
//! either side.
//!
//! # Properties
//!
//! - At least three days of the calendar and 20 ordinary ones are needed.
//! - A day with less than two thirds of its samples does not count.
//! - No factor is beyond [`FACTOR_MAX`] or its inverse. 400 bytes for each app and resource.

use std::collections::VecDeque;

use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use super::evidence::{ALPHA, CONTROLS_MAX, SEEN_MAX, SEEN_MIN, chance, push};
use super::numbers::median;
use super::track::SLOT_MS;

/// Ordinary days that a day is compared with.
const BASE: usize = 7;
/// So many of them are enough.
const BASE_MIN: usize = 3;
/// Factors of fewer ordinary days tell nothing.
const CONTROLS_MIN: usize = 20;
/// Slots that a day has to have.
const SLOTS_MIN: u64 = 86_400_000 / SLOT_MS * 2 / 3;
/// The greatest factor that is believed.
const FACTOR_MAX: f64 = 100.0;
/// Two ranks on two sides.
const QUESTIONS: f64 = 4.0;
/// The least change that is worth planning for.
const CHANGE_MIN: f64 = 0.1;

/// What is known of one calendar's effect on one resource of one app.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct HolidayEvidence {
    /// Peaks of the last ordinary days.
    ordinary: VecDeque<f64>,
    /// Logarithms of factors of ordinary days.
    controls: VecDeque<f64>,
    /// Logarithms of factors of the calendar's days.
    pub(super) seen: VecDeque<f64>,
    #[serde(skip)]
    today: Option<Today>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Today {
    date: Date,
    is_holiday: bool,
    peak: f64,
    slots: u64,
}

impl HolidayEvidence {
    pub(super) fn feed(&mut self, date: Date, is_holiday: bool, peak: f64) {
        if let Some(today) = self.today.as_mut().filter(|today| today.date == date) {
            today.peak = today.peak.max(peak);
            today.slots += 1;
            return;
        }
        let over = self.today.replace(Today {
            date,
            is_holiday,
            peak,
            slots: 1,
        });
        if let Some(over) = over.filter(|over| over.slots >= SLOTS_MIN) {
            self.close(over);
        }
    }

    fn close(&mut self, day: Today) {
        if let Some(base) = self.base().filter(|base| *base > 0.0) {
            let factor = (day.peak / base).clamp(1.0 / FACTOR_MAX, FACTOR_MAX).ln();
            if day.is_holiday {
                push(&mut self.seen, factor, SEEN_MAX);
            } else {
                push(&mut self.controls, factor, CONTROLS_MAX);
            }
        }
        if !day.is_holiday {
            push(&mut self.ordinary, day.peak, BASE);
        }
    }

    fn base(&self) -> Option<f64> {
        let is_enough = self.ordinary.len() >= BASE_MIN;
        is_enough.then(|| median(self.ordinary.iter().copied()))?
    }

    /// The median factor, when the calendar's days differ.
    pub(super) fn factor(&self) -> Option<f64> {
        let (n, m) = (self.seen.len(), self.controls.len());
        if n < SEEN_MIN || m < CONTROLS_MIN {
            return None;
        }
        let mut controls: Vec<f64> = self.controls.iter().copied().collect();
        controls.sort_unstable_by(f64::total_cmp);
        let low = (7 * (m + 1)).div_ceil(8).min(m);
        let beyond = |is_beyond: &dyn Fn(f64) -> bool, rank: usize| {
            let k = self.seen.iter().filter(|seen| is_beyond(**seen)).count();
            chance(k, n, (m - rank + 1, rank))
        };
        let chances = [low, m].into_iter().flat_map(|rank| {
            let (above, below) = (controls[rank - 1], controls[m - rank]);
            [
                beyond(&|seen| seen > above, rank),
                beyond(&|seen| seen < below, rank),
            ]
        });
        let factor = median(self.seen.iter().copied())?.exp();
        let is_told = chances.fold(1.0, f64::min) <= ALPHA / QUESTIONS;
        (is_told && (factor - 1.0).abs() >= CHANGE_MIN).then_some(factor)
    }

    pub(super) fn restore(&mut self) {
        self.ordinary.truncate(BASE);
        self.controls.truncate(CONTROLS_MAX);
        self.seen.truncate(SEEN_MAX);
    }

    pub(super) fn is_plausible(&self) -> bool {
        let bound = FACTOR_MAX.ln() * 1.01;
        let mut factors = self.controls.iter().chain(&self.seen);
        factors.all(|factor| factor.abs() <= bound)
            && self
                .ordinary
                .iter()
                .all(|peak| forebay_forecast::is_plausible(*peak))
    }
}
