//! Pure numerics: series in, quantiles out.
//!
//! # Problem
//!
//! A planner that divides a host ahead of need asks, for every resource of every
//! application and in every control period: what will the value be some steps
//! from now, what is the most it will reach until then, and how sure is that? The
//! answer must be cheap (thousands of series-updates a second on a fraction of a
//! core), must follow a jump at once, and must be explainable.
//!
//! # Approach
//!
//! A [`Series`] runs three online forecasters side by side: [`window`] (the last
//! value and the changes seen from it), [`smoothing`] (a damped Holt trend) and
//! [`seasonal`] (the value one detected period ago). Each only says where the
//! *centre* is. The quantiles around the centre are empirical: a [`backtest`]
//! keeps forecasts at every configured horizon until their time comes, and ranks
//! the errors they turned out to have. It also scores the upper bound by pinball
//! loss, and [`select`] uses whichever forecaster scored best lately. [`arima`] is a
//! fourth forecaster, which is fitted beside the steps and not in them.
//!
//! A [`Mixture`] costs ten times as much and forecasts better: it mixes many
//! guesses, a regression and the analogues of the moment, at every level and horizon
//! by what they lost lately. [`lstm`] is one network for all series of a host, with bounds of its
//! own and training in portions. An [`Ensemble`] is the mixture with both of them as members.
//! [`baseline`] has the rules that are used elsewhere, to compare with.
//!
//! [`Scales`] look further ahead than samples reach, at coarser resolutions. A [`Joint`] says what
//! several series come to together.
//!
//! # Properties
//!
//! - Quantiles are finite, never negative, and never cross.
//! - A sample that is not plausible (see [`is_plausible`]) is counted and treated
//!   as a gap; it never reaches the state.
//! - State is bounded by the options: about 14 KiB for each series by default.
//! - Work per update is bounded too: nothing is sorted, fitted or searched in
//!   bursts, so no control period pays for the others.
//! - There is no clock, randomness, thread or file: one step is one call.
//!
//! # Measured
//!
//! One update with one forecast and one peak, 200 series in turn on a busy
//! two-core virtual machine (AMD EPYC): 0.8 to 1.2 us for a constant, 1.0 to 1.4 us
//! for noise, 1.2 to 1.7 us for a noisy season (`examples/cost.rs`). 2,000 of them a
//! second are 0.2 to 0.3 % of a core.
//!
//! # Examples
//!
//! ```
//! use forebay_forecast::{Series, SeriesOptions};
//!
//! let mut series = Series::new(SeriesOptions { request: Some(2.0), ..SeriesOptions::default() });
//! assert!(series.peak(10).is_some_and(|peak| peak.cold));
//! for _ in 0..500 {
//!     series.update(1.5);
//! }
//! let peak = series.peak(10).expect("a sample was seen");
//! assert!(!peak.cold);
//! assert!((peak.quantiles.q95() - 1.5).abs() < 1e-6);
//! ```

pub mod arima;
pub mod backtest;
pub mod baseline;
pub mod ensemble;
mod history;
pub mod joint;
mod least_squares;
pub mod lstm;
mod mean;
pub mod mixture;
mod period;
mod ranked;
pub mod scales;
pub mod seasonal;
pub mod select;
pub mod smoothing;
pub mod window;

use std::fmt::Debug;

pub use backtest::Score;
pub use ensemble::Ensemble;
pub use joint::Joint;
pub use mixture::{Mixture, MixtureOptions};
pub use scales::Scales;
pub use seasonal::Seasonal;
pub use select::{Forecast, ModelScore, Series, SeriesOptions};
pub use smoothing::Smoothing;
pub use window::Window;

/// Largest sample that is believed, in the unit of the series. Above any count
/// of bytes or operations a host can show, and small enough that squares and
/// sums of a history stay finite.
pub const VALUE_MAX: f64 = 1e18;

/// Whether a sample can be a demand: finite, not negative, at most [`VALUE_MAX`].
#[must_use]
pub fn is_plausible(value: f64) -> bool {
    (0.0..=VALUE_MAX).contains(&value)
}

/// What a forecast is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The value exactly so many steps ahead.
    Value,
    /// The greatest value within so many steps from now.
    Peak,
}

/// Four quantiles of one forecast, in the unit of the series.
///
/// They are finite, not negative, and do not decrease with the level.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantiles {
    q50: f64,
    q90: f64,
    q95: f64,
    q99: f64,
}

impl Quantiles {
    /// Levels of the four quantiles, in thousandths.
    pub const LEVELS_PERMILLE: [usize; 4] = [500, 900, 950, 990];

    /// Quantiles at 0.50, 0.90, 0.95 and 0.99, put in order and held between 0
    /// and [`VALUE_MAX`]. None if one of them is not a number.
    ///
    /// Putting crossed quantiles in order never makes any of them worse by
    /// pinball loss (Chernozhukov, Fernandez-Val and Galichon, "Quantile and
    /// probability curves without crossing", Econometrica 2010).
    #[must_use]
    pub fn new(mut levels: [f64; 4]) -> Option<Self> {
        if levels.iter().any(|level| level.is_nan()) {
            return None;
        }
        levels.sort_unstable_by(f64::total_cmp);
        let [q50, q90, q95, q99] = levels.map(|level| level.clamp(0.0, VALUE_MAX));
        Some(Self { q50, q90, q95, q99 })
    }

    /// The median.
    #[must_use]
    pub fn q50(&self) -> f64 {
        self.q50
    }

    /// The value that is not exceeded 90 times in 100.
    #[must_use]
    pub fn q90(&self) -> f64 {
        self.q90
    }

    /// The value that is not exceeded 95 times in 100.
    #[must_use]
    pub fn q95(&self) -> f64 {
        self.q95
    }

    /// The value that is not exceeded 99 times in 100.
    #[must_use]
    pub fn q99(&self) -> f64 {
        self.q99
    }

    /// All four, lowest level first.
    #[must_use]
    pub fn to_array(self) -> [f64; 4] {
        [self.q50, self.q90, self.q95, self.q99]
    }

    /// So many times as much at each level; a factor that is negative counts as zero.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        self.map(|level| level * factor.max(0.0))
    }

    /// Such a part of the way here from others at each level. None if that is not a number.
    pub(crate) fn after(self, others: Self, part: f64) -> Option<Self> {
        let (here, there) = (self.to_array(), others.to_array());
        Self::new(std::array::from_fn(|level| {
            there[level] + part * (here[level] - there[level])
        }))
    }

    /// The greater of both at each level.
    #[must_use]
    pub fn or_greater(self, other: Self) -> Self {
        self.merged(other, f64::max)
    }

    /// The lesser of both at each level.
    pub(crate) fn or_less(self, other: Self) -> Self {
        self.merged(other, f64::min)
    }

    fn merged(self, other: Self, choose: fn(f64, f64) -> f64) -> Self {
        let (a, b) = (self.to_array(), other.to_array());
        Self::new(std::array::from_fn(|level| choose(a[level], b[level]))).unwrap_or(self)
    }

    /// The distances from the median, so many times as large.
    pub(crate) fn widened(self, factor: f64) -> Self {
        let median = self.q50();
        self.map(|level| median + (level - median) * factor)
    }

    /// Applies a function that keeps order to each quantile.
    fn map(self, monotone: impl FnMut(f64) -> f64) -> Self {
        // A monotone function of numbers gives no NaN; if one does, nothing changes.
        Self::new(self.to_array().map(monotone)).unwrap_or(self)
    }
}

/// What a bound at a level loses once the truth is known, in the unit of both: the least for the
/// quantile at that level (Koenker and Bassett, "Regression quantiles", 1978).
#[must_use]
pub fn pinball(truth: f64, bound: f64, level: f64) -> f64 {
    let above = truth - bound;
    (level * above).max((level - 1.0) * above)
}

/// One way to forecast a series, fed one sample each step.
pub trait Forecaster: Debug {
    /// A fixed word for explanations.
    fn name(&self) -> &'static str;

    /// One step passed, with a plausible sample or without one.
    fn pass(&mut self, sample: Option<f64>);

    /// The value `steps` steps ahead, or the greatest until then. None while that horizon is too
    /// cold.
    fn forecast_of(&self, target: Target, steps: usize) -> Option<Quantiles>;

    /// One step passed with this sample. What [`is_plausible`] refuses counts as
    /// a gap.
    fn update(&mut self, value: f64) {
        self.pass(is_plausible(value).then_some(value));
    }

    /// One step passed without a sample.
    fn update_gap(&mut self) {
        self.pass(None);
    }

    /// The value `steps` steps ahead. None while that horizon is too cold.
    fn forecast(&self, steps: usize) -> Option<Quantiles> {
        self.forecast_of(Target::Value, steps)
    }

    /// The greatest value within the next `steps` steps. None while too cold.
    fn forecast_peak(&self, steps: usize) -> Option<Quantiles> {
        self.forecast_of(Target::Peak, steps)
    }

    /// How well past answers did at the horizon that serves `steps`. None until
    /// one could be judged, and of those who do not judge themselves.
    fn score(&self, _target: Target, _steps: usize) -> Option<Score> {
        None
    }
}
