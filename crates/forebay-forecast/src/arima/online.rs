//! ARIMA as a forecaster: fitted beside the steps, not in them.
//!
//! # Problem
//!
//! A step has a microsecond, a fit takes milliseconds to a second, and a pure
//! function starts no thread.
//!
//! # Approach
//!
//! The forecaster holds the history and says when it [wants a
//! fit](OnlineArima::wants_fit). The caller takes a [`FitRequest`], which owns
//! what it needs, runs it where it likes, and gives the [`Fitted`] back; what came
//! meanwhile is fed to the new model before it answers. Without a thread,
//! [`OnlineArima::fit_now`] does all of it.
//!
//! The first fit is due after [`OnlineOptions::samples_min`] samples, the next
//! ones when the history has doubled, later every
//! [`OnlineOptions::refit_steps`]. Most refits keep the order and start from the
//! present coefficients. The order is searched again when the history has doubled
//! since it was, when the period changed, and after
//! [`OnlineOptions::refits_per_search`] refits.
//!
//! The model gives the centre alone. One spike inflates its variance for as long
//! as the spike is in the history, so quantiles are those of its own errors.
//!
//! # Properties
//!
//! - Silent (no forecast) until fitted; a fit that fails leaves the model that was.
//! - The centre stays within the range of the history.
//! - A step costs a product for each coefficient and each step of the longest
//!   horizon.
//! - A request that is lost is made again one refit later.
//!
//! Sources: those of [`arima`](super); Tashman, "Out-of-sample tests of
//! forecasting accuracy", 2000 (refitting at rolling origins).

use std::collections::VecDeque;

use super::{Arima, FitError, Search};
use crate::backtest::{Backtest, Centre};
use crate::history::{Range, narrow};
use crate::{Forecaster, Quantiles, Score, Target};

/// Steps ahead beyond which the centre is taken for the same.
const STEPS_MAX: usize = 4096;

/// How a series is forecast by [`OnlineArima`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnlineOptions {
    /// Steps ahead at which errors are learnt: ascending, each at least 1.
    pub horizons: Vec<usize>,
    /// Where orders are searched; its `history_max`, at least 16, is also the history
    /// kept, 4 bytes a sample.
    pub search: Search,
    /// Samples before the first fit.
    pub samples_min: usize,
    /// Steps between fits, at least 1.
    pub refit_steps: usize,
    /// Refits of one order before the order is searched again.
    pub refits_per_search: usize,
}

impl Default for OnlineOptions {
    /// A refit every 60 steps: every 144, the centre misses by 3 to 5 % more on the
    /// traces that the [module](super) names.
    fn default() -> Self {
        Self {
            horizons: vec![1, 10, 50],
            search: Search::default(),
            samples_min: 64,
            refit_steps: 60,
            refits_per_search: 8,
        }
    }
}

/// ARIMA as a [`Forecaster`]. It is silent until fitted, says when it wants to be,
/// and leaves to the caller where that happens:
///
/// ```
/// use forebay_forecast::Forecaster;
/// use forebay_forecast::arima::{OnlineArima, OnlineOptions};
///
/// let mut online = OnlineArima::new(OnlineOptions::default());
/// for step in 0..200_u32 {
///     online.update(10.0 + f64::from(step * step % 7));
///     if let Some(request) = online.fit_request() {
///         // In a background job, where there is one.
///         let fitted = request.run();
///         if let Err(error) = online.adopt(fitted) {
///             eprintln!("{error}");
///         }
///     }
/// }
/// assert!(online.forecast(10).is_some());
/// ```
#[derive(Clone, Debug)]
pub struct OnlineArima {
    unfed: Unfed,
    history: VecDeque<f32>,
}

/// All of it but the history, which somebody else holds too.
#[derive(Clone, Debug)]
pub(crate) struct Unfed {
    options: OnlineOptions,
    /// The newest sample, or what stands for it in a gap.
    last: Option<f32>,
    ahead: Ahead,
    backtest: Backtest,
    /// Samples and filled gaps so far.
    steps: u64,
    /// When the next fit is due, in steps.
    due: u64,
    /// When the samples of the model ended, in steps.
    fitted: u64,
    /// Refits since the order was searched. None if it has to be.
    refits: Option<usize>,
    /// Samples of the last search.
    searched: usize,
}

/// Where the model expects the next steps.
#[derive(Clone, Debug)]
struct Ahead {
    model: Option<Arima>,
    /// Means of the steps up to the longest horizon; empty without a model.
    path: Vec<f64>,
    longest: usize,
    range: Range,
}

/// Samples to fit, and where to start.
#[derive(Clone, Debug)]
pub struct FitRequest {
    samples: Vec<f64>,
    search: Search,
    /// The model whose order is kept. None to search the order.
    keep: Option<Arima>,
    step: u64,
}

/// What a [`FitRequest`] gave.
#[derive(Clone, Debug)]
pub struct Fitted {
    model: Result<Arima, FitError>,
    samples: usize,
    searched: bool,
    period: Option<usize>,
    step: u64,
}

impl FitRequest {
    /// Fits. Takes milliseconds to a second.
    #[must_use]
    pub fn run(self) -> Fitted {
        let model = match &self.keep {
            Some(model) => model.refit(&self.samples),
            None => Arima::fit_auto(&self.samples, self.search),
        };
        Fitted {
            model,
            samples: self.samples.len(),
            searched: self.keep.is_none(),
            period: self.search.period,
            step: self.step,
        }
    }

    /// Whether the order is searched, which takes longest.
    #[must_use]
    pub fn is_search(&self) -> bool {
        self.keep.is_none()
    }
}

impl OnlineArima {
    /// # Panics
    ///
    /// If the options break the bounds that [`OnlineOptions`] states.
    #[must_use]
    pub fn new(options: OnlineOptions) -> Self {
        Self {
            history: VecDeque::with_capacity(options.search.history_max),
            unfed: Unfed::new(options, &[Target::Value, Target::Peak]),
        }
    }

    /// Uses a season of so many steps, or none, from the next fit on, which is due
    /// now if that is a change.
    pub fn set_period(&mut self, period: Option<usize>) {
        self.unfed.set_period(period);
    }

    /// The model in use. None until fitted.
    #[must_use]
    pub fn model(&self) -> Option<&Arima> {
        self.unfed.ahead.model.as_ref()
    }

    /// Whether a fit is due.
    #[must_use]
    pub fn wants_fit(&self) -> bool {
        self.unfed.wants_fit()
    }

    /// What to fit, if a fit is due. The next one is due one refit later, whatever
    /// becomes of this one.
    pub fn fit_request(&mut self) -> Option<FitRequest> {
        self.unfed.fit_request(self.history.make_contiguous())
    }

    /// Uses a fitted model, after feeding it what came since the request.
    ///
    /// # Errors
    ///
    /// If the fit failed, or took longer than the history reaches, or a later one
    /// is in use; the model that was stays.
    pub fn adopt(&mut self, fitted: Fitted) -> Result<(), FitError> {
        self.unfed.adopt(fitted, self.history.make_contiguous())
    }

    /// Fits here and now, if a fit is due. None if none was.
    pub fn fit_now(&mut self) -> Option<Result<(), FitError>> {
        let request = self.fit_request()?;
        Some(self.adopt(request.run()))
    }
}

impl Unfed {
    /// # Panics
    ///
    /// As [`OnlineArima::new`] does.
    pub(crate) fn new(options: OnlineOptions, targets: &[Target]) -> Self {
        let horizons = &options.horizons;
        assert!(
            !horizons.is_empty() && horizons[0] >= 1 && horizons.is_sorted_by(|a, b| a < b),
            "horizons {horizons:?} do not ascend from 1"
        );
        assert!(options.refit_steps >= 1, "refit_steps 0");
        let history_max = options.search.history_max;
        assert!(history_max >= 16, "history_max {history_max}");
        Self {
            last: None,
            ahead: Ahead::new(horizons[horizons.len() - 1], history_max),
            backtest: Backtest::of(horizons, targets),
            steps: 0,
            due: u64::try_from(options.samples_min).unwrap_or(u64::MAX),
            fitted: 0,
            refits: None,
            searched: 0,
            options,
        }
    }

    pub(crate) fn set_period(&mut self, period: Option<usize>) {
        if period == self.options.search.period {
            return;
        }
        self.options.search.period = period;
        self.refits = None;
        if self.ahead.model.is_some() {
            self.due = self.steps;
        }
    }

    pub(crate) fn wants_fit(&self) -> bool {
        self.steps >= self.due
    }

    /// `history` is what was kept, oldest first, in this and the next.
    pub(crate) fn fit_request(&mut self, history: &[f32]) -> Option<FitRequest> {
        if !self.wants_fit() {
            return None;
        }
        let samples: Vec<f64> = history.iter().copied().map(f64::from).collect();
        let pause = samples.len().clamp(1, self.options.refit_steps);
        self.due = self.steps + u64::try_from(pause).unwrap_or(u64::MAX);
        let grown = samples.len() >= 2 * self.searched;
        let few = |refits: usize| refits < self.options.refits_per_search && !grown;
        let keep = self
            .ahead
            .model
            .as_ref()
            .filter(|_| self.refits.is_some_and(few));
        Some(FitRequest {
            samples,
            search: self.options.search,
            keep: keep.cloned(),
            step: self.steps,
        })
    }

    pub(crate) fn adopt(&mut self, fitted: Fitted, history: &[f32]) -> Result<(), FitError> {
        let mut model = match fitted.model {
            Ok(model) => model,
            Err(error) => {
                // The order no longer suits the samples.
                self.refits = None;
                return Err(error);
            }
        };
        // One from later than this forecaster has come is another's.
        let missed = self.steps.checked_sub(fitted.step);
        let missed = missed.map_or(usize::MAX, |m| usize::try_from(m).unwrap_or(usize::MAX));
        if missed > history.len() || fitted.step < self.fitted {
            return Err(FitError::Stale { steps: missed });
        }
        for &sample in &history[history.len() - missed..] {
            model.observe(f64::from(sample));
        }
        if fitted.period != self.options.search.period {
            // Another period was set meanwhile: better than nothing until it is fitted.
            self.refits = None;
            self.due = self.steps;
        } else if fitted.searched {
            self.refits = Some(0);
            self.searched = fitted.samples;
        } else {
            self.refits = self.refits.map(|refits| refits + 1);
        }
        self.fitted = fitted.step;
        self.ahead.adopt(model);
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        let path = self.ahead.path.capacity() * size_of::<f64>();
        let model = self.ahead.model.as_ref().map_or(0, Arima::heap_bytes);
        path + self.backtest.bytes() + model
    }
}

impl Ahead {
    fn new(longest: usize, range_steps: usize) -> Self {
        Self {
            model: None,
            path: Vec::with_capacity(longest),
            longest,
            range: Range::new(range_steps),
        }
    }

    fn adopt(&mut self, model: Arima) {
        self.model = Some(model);
        self.look();
    }

    /// One step passed; None for a gap.
    fn pass(&mut self, sample: Option<f64>) {
        if let Some(sample) = sample {
            self.range.push(sample);
        }
        if let Some(model) = &mut self.model {
            match sample {
                Some(sample) => model.observe(sample),
                None => model.observe_gap(),
            }
        }
        self.look();
    }

    fn look(&mut self) {
        if let Some(model) = &self.model {
            model.forecast_means(self.longest, &mut self.path);
        }
    }

    fn centre(&self, steps: usize) -> Option<Centre> {
        let model = self.model.as_ref()?;
        let (low, high) = self.range.bounds()?;
        let steps = steps.clamp(1, self.longest.max(STEPS_MAX));
        let mut longer = Vec::new();
        let path = if steps <= self.path.len() {
            &self.path[..steps]
        } else {
            model.forecast_means(steps, &mut longer);
            &longer[..]
        };
        let highest = |most: f64, mean: &f64| most.max(*mean);
        let peak = path.iter().fold(f64::NEG_INFINITY, highest);
        Some(Centre {
            value: path[steps - 1].clamp(low, high),
            peak: peak.clamp(low, high),
        })
    }
}

impl Forecaster for Unfed {
    fn name(&self) -> &'static str {
        "arima"
    }

    fn pass(&mut self, sample: Option<f64>) {
        self.backtest.observe(sample);
        // In a gap the forecast keeps time aligned, and says nothing new to a refit.
        let expected = || self.ahead.centre(1).map(|centre| centre.value);
        self.last = sample.or_else(expected).map(narrow).or(self.last);
        if self.last.is_none() {
            return;
        }
        self.steps += 1;
        self.ahead.pass(sample);
        if sample.is_some() {
            self.backtest.put_aside(|steps| self.ahead.centre(steps));
        }
    }

    fn forecast_of(&self, target: Target, steps: usize) -> Option<Quantiles> {
        let centre = self.ahead.centre(steps)?;
        self.backtest.quantiles(target, steps, centre)
    }

    fn score(&self, target: Target, steps: usize) -> Option<Score> {
        self.backtest.score(target, steps)
    }
}

impl Forecaster for OnlineArima {
    fn name(&self) -> &'static str {
        self.unfed.name()
    }

    fn pass(&mut self, sample: Option<f64>) {
        self.unfed.pass(sample);
        let Some(kept) = self.unfed.last else { return };
        if self.history.len() == self.unfed.options.search.history_max {
            self.history.pop_front();
        }
        self.history.push_back(kept);
    }

    fn forecast_of(&self, target: Target, steps: usize) -> Option<Quantiles> {
        self.unfed.forecast_of(target, steps)
    }

    fn score(&self, target: Target, steps: usize) -> Option<Score> {
        self.unfed.score(target, steps)
    }
}
