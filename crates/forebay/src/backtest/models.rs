//! The models that can be compared.

use std::sync::Arc;

use clap::ValueEnum;
use forebay_forecast::arima::{OnlineArima, OnlineOptions};
use forebay_forecast::baseline::{Histogram, HistogramOptions, LastValue, MovingMax, WINDOW_MAX};
use forebay_forecast::lstm::{Lstm, Weights};
use forebay_forecast::{
    Ensemble, Forecaster, Mixture, MixtureOptions, Quantiles, Seasonal, Series, SeriesOptions,
    Smoothing, Target, Window,
};
use serde::Serialize;

/// Seconds over which the rules of others look back.
const DAY: f64 = 86_400.0;
/// Samples that a moving window has at least.
const WINDOW_MIN: usize = 60;

/// A model, as it is named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// The mixture with ARIMA and the LSTM among its members: the best, and the dearest
    Ensemble,
    /// The ensemble without ARIMA: what that is worth
    WithoutArima,
    /// The ensemble without the LSTM
    WithoutLstm,
    /// Many forecasters, weighted by what they lost lately
    Mixture,
    /// ARIMA with automatic order, fitted anew every 60 steps, with the season of the clock
    Arima,
    /// One network for all series, as trained on synthetic ones, told the season of the clock; of
    /// other horizons than 1, 12 and 60 it says what it says of the next of these
    Lstm,
    /// Window, smoothing or seasonal, whichever did best lately: what the daemon runs
    Series,
    /// The last value or peak and the newest 128 errors
    Window,
    /// Exponential smoothing with a damped trend
    Smoothing,
    /// What was there one detected period ago; silent without one
    Seasonal,
    /// The last value and all changes seen from it within the history: the yardstick
    LastValue,
    /// Decayed histogram with a half-life of a day, as of the Kubernetes Vertical Pod Autoscaler
    Histogram,
    /// Quantiles and maximum of the last day, as of Autopilot's moving windows
    MovingMax,
}

impl Kind {
    /// All but those that only show what a member of the ensemble is worth.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let apart = |kind: &Self| !matches!(kind, Self::WithoutArima | Self::WithoutLstm);
        Self::value_variants().iter().copied().filter(apart)
    }

    /// Its name on the command line.
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// What models are told about a series.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// What is forecast.
    pub(crate) target: Target,
    /// Steps ahead, ascending: 1 to half of the history, at most
    /// [`HORIZONS_MAX`](forebay_forecast::select::HORIZONS_MAX) of them.
    pub(crate) horizons: Vec<usize>,
    /// Steps that models look back on, 16 to
    /// [`HISTORY_MAX`](forebay_forecast::select::HISTORY_MAX).
    pub(crate) history: usize,
    /// Between two samples.
    pub(crate) period_seconds: Option<f64>,
    /// The greatest value that is known beforehand.
    pub(crate) reference: f64,
}

impl Setting {
    /// Steps of a day; as many as the history has where the period is not known.
    #[expect(clippy::cast_precision_loss, reason = "at most 4096")]
    fn day(&self) -> f64 {
        self.period_seconds
            .map_or(self.history as f64, |period| DAY / period)
    }

    fn mixture(&self) -> MixtureOptions {
        MixtureOptions {
            targets: vec![self.target],
            horizons: self.horizons.clone(),
            history_max: self.history,
            cycle: self.cycle(),
        }
    }

    /// The period that the clock suggests, in steps.
    pub(crate) fn cycle(&self) -> Option<usize> {
        MixtureOptions::cycle_of_clock(self.period_seconds?, self.history)
    }
}

/// A model at work.
#[derive(Debug)]
pub(crate) enum Model {
    /// One forecaster.
    One(Box<dyn Forecaster>),
    /// Some that compete.
    Series(Box<Series>),
    /// One that is fitted now and then.
    Arima(Box<OnlineArima>),
    /// The same among many.
    Ensemble(Box<Ensemble>),
    /// Many without that one: it is never fitted, and silent until it is.
    WithoutArima(Box<Ensemble>),
}

impl Model {
    /// A model that has seen nothing.
    pub(crate) fn new(kind: Kind, setting: &Setting) -> Self {
        let horizons = &setting.horizons;
        let history_max = setting.history;
        let one: Box<dyn Forecaster> = match kind {
            Kind::Series => {
                return Self::Series(Box::new(Series::new(SeriesOptions {
                    horizons: horizons.clone(),
                    history_max,
                    request: None,
                })));
            }
            Kind::Ensemble => {
                let ensemble = Ensemble::new(&setting.mixture(), Some(weights()));
                return Self::Ensemble(Box::new(ensemble));
            }
            Kind::WithoutArima => {
                let ensemble = Ensemble::new(&setting.mixture(), Some(weights()));
                return Self::WithoutArima(Box::new(ensemble));
            }
            Kind::WithoutLstm => {
                let ensemble = Ensemble::new(&setting.mixture(), None);
                return Self::Ensemble(Box::new(ensemble));
            }
            Kind::Arima => {
                let mut arima = OnlineArima::new(OnlineOptions {
                    horizons: horizons.clone(),
                    ..OnlineOptions::default()
                });
                arima.set_period(setting.cycle());
                return Self::Arima(Box::new(arima));
            }
            Kind::Lstm => Box::new(Lstm::new(weights(), setting.cycle())),
            Kind::Mixture => Box::new(Mixture::new(&setting.mixture())),
            Kind::Window => Box::new(Window::new(horizons)),
            Kind::Smoothing => Box::new(Smoothing::new(horizons, history_max)),
            Kind::Seasonal => Box::new(Seasonal::new(horizons, history_max)),
            Kind::LastValue => Box::new(LastValue::new(horizons, history_max)),
            Kind::Histogram => Box::new(Histogram::new(HistogramOptions {
                reference: setting.reference,
                half_life: setting.day(),
            })),
            Kind::MovingMax => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "positive, and a float that is too great becomes the greatest integer"
                )]
                let window = setting.day() as usize;
                Box::new(MovingMax::new(window.clamp(WINDOW_MIN, WINDOW_MAX)))
            }
        };
        Self::One(one)
    }

    /// One step passed, with a sample or a gap.
    pub(crate) fn update(&mut self, sample: Option<f64>) {
        match self {
            Self::One(one) => one.pass(sample),
            Self::Arima(arima) => arima.pass(sample),
            Self::Ensemble(ensemble) | Self::WithoutArima(ensemble) => ensemble.pass(sample),
            Self::Series(series) => match sample {
                Some(value) => series.update(value),
                None => series.update_gap(),
            },
        }
    }

    /// Fits what is due to be fitted. False if nothing was. What cannot be fitted stays as it was:
    /// the model says nothing then, or what it said before.
    pub(crate) fn fit(&mut self) -> bool {
        let fitted = match self {
            Self::Arima(arima) => arima.fit_now(),
            Self::Ensemble(ensemble) => ensemble.arima().fit_now(),
            Self::One(_) | Self::Series(_) | Self::WithoutArima(_) => None,
        };
        fitted.is_some()
    }

    /// Whether something is due to be fitted.
    pub(crate) fn wants_fit(&mut self) -> bool {
        match self {
            Self::Arima(arima) => arima.wants_fit(),
            Self::Ensemble(ensemble) => ensemble.arima().wants_fit(),
            Self::One(_) | Self::Series(_) | Self::WithoutArima(_) => false,
        }
    }

    /// Quantiles of a target so many steps ahead.
    pub(crate) fn answer(&self, target: Target, steps: usize) -> Option<Quantiles> {
        match (self, target) {
            (Self::One(one), _) => one.forecast_of(target, steps),
            (Self::Arima(arima), _) => arima.forecast_of(target, steps),
            (Self::Ensemble(ensemble) | Self::WithoutArima(ensemble), _) => {
                ensemble.forecast_of(target, steps)
            }
            (Self::Series(series), Target::Value) => series.forecast(steps).map(|f| f.quantiles),
            (Self::Series(series), Target::Peak) => series.peak(steps).map(|f| f.quantiles),
        }
    }
}

/// The weights that come with the program.
fn weights() -> Arc<Weights> {
    Arc::new(Weights::pretrained())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_forecasts_a_constant() {
        for target in [Target::Value, Target::Peak] {
            let setting = Setting {
                target,
                horizons: vec![1, 12],
                history: 100,
                period_seconds: Some(300.0),
                reference: 4.0,
            };
            for kind in Kind::value_variants() {
                let mut model = Model::new(*kind, &setting);
                (0..600).for_each(|_| model.update(Some(4.0)));
                model.fit();
                let Some(quantiles) = model.answer(target, 12) else {
                    // A constant has no season, and no model can be fitted to it.
                    assert!(matches!(kind, Kind::Seasonal | Kind::Arima));
                    continue;
                };
                let q95 = quantiles.q95();
                assert!((3.99..4.3).contains(&q95), "{kind:?}: {quantiles:?}");
            }
        }
    }
}
