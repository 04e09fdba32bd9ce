//! What forecasts at one resolution: models, light or deep, or a series that stands still.

use std::sync::Arc;

use super::{Depth, Scale};
use crate::lstm::Weights;
use crate::mixture::{Explanation, MixtureOptions, Part};
use crate::{Ensemble, Forecast, Forecaster, Mixture, Quantiles, Series, SeriesOptions, Target};

/// Buckets that differ by less than this part are alike.
const STILL_WITHIN: f64 = 1e-3;
/// Bounds of a series that stood still for less time than is asked about, as parts of what it is.
const STILL_MARGINS: [f64; 3] = [1.1, 1.25, 1.5];
/// Buckets that are all alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct Still {
    pub(super) mean: f64,
    pub(super) max: f64,
    /// That were seen.
    pub(super) buckets: usize,
    /// Passed unseen since.
    pub(super) unseen: usize,
}

impl Still {
    /// Whether a bucket with this mean and greatest sample is like the others.
    pub(super) fn is_like(&self, (mean, max): (f64, f64)) -> bool {
        let near = |one: f64, other: f64| (one - other).abs() <= STILL_WITHIN * one.max(other);
        near(mean, self.mean) && near(max, self.max)
    }

    /// What it was so far, for as long as it was so; wider, and cold, for longer than that.
    pub(super) fn answer(&self, target: Target, steps: usize) -> Option<(Quantiles, bool)> {
        let cold = self.buckets < steps;
        let [q90, q95, q99] = match cold {
            true => STILL_MARGINS.map(|margin| margin * self.max),
            false => [self.max; 3],
        };
        let centre = match target {
            Target::Value => self.mean,
            Target::Peak => self.max,
        };
        Some((Quantiles::new([centre, q90, q95, q99])?, cold))
    }
}

/// What forecasts means and maxima at one resolution.
#[derive(Clone, Debug)]
pub(super) enum Models {
    Light(Box<[Series; 2]>),
    /// With those that stand in until these know all their horizons.
    Full(Box<(Ensemble, Mixture)>, Option<Box<[Series; 2]>>),
}

/// Takes in one bucket, with its mean and its greatest sample.
fn pass_light(series: &mut [Series; 2], bucket: Option<(f64, f64)>) {
    match bucket {
        Some((mean, max)) => {
            series[0].update(mean);
            series[1].update(max);
        }
        None => series.iter_mut().for_each(Series::update_gap),
    }
}

impl Models {
    pub(super) fn new(scale: &Scale, depth: &Depth) -> Self {
        let (horizons, history_max) = (scale.horizons.to_vec(), scale.history_max);
        let series = || {
            Series::new(SeriesOptions {
                horizons: horizons.clone(),
                history_max,
                request: None,
            })
        };
        let light = Box::new([series(), series()]);
        let Depth::Full(weights) = depth else {
            return Self::Light(light);
        };
        let options = |target| MixtureOptions {
            targets: vec![target],
            horizons: horizons.clone(),
            history_max,
            cycle: scale.cycle,
        };
        let means = Ensemble::new(&options(Target::Value), weights.clone());
        let peaks = Mixture::new(&options(Target::Peak));
        Self::Full(Box::new((means, peaks)), Some(light))
    }

    /// One bucket passed, with its mean and its greatest sample.
    pub(super) fn pass(&mut self, bucket: Option<(f64, f64)>) {
        match self {
            Self::Light(series) => pass_light(series, bucket),
            Self::Full(models, light) => {
                models.0.pass(bucket.map(|(mean, _)| mean));
                models.1.pass(bucket.map(|(_, max)| max));
                if let Some(series) = light {
                    pass_light(series, bucket);
                    if models.0.knows_all() && models.1.knows_all() {
                        *light = None;
                    }
                }
            }
        }
    }

    pub(super) fn fit(&mut self) -> bool {
        match self {
            Self::Light(_) => false,
            Self::Full(models, _) => models.0.arima().fit_now().is_some(),
        }
    }

    pub(super) fn set_weights(&mut self, weights: &Arc<Weights>) {
        if let Self::Full(models, _) = self {
            models.0.set_weights(Arc::clone(weights));
        }
    }

    fn light(&self, target: Target, steps: usize) -> Option<Forecast> {
        let series = match self {
            Self::Light(series) => series,
            Self::Full(_, light) => light.as_ref()?,
        };
        match target {
            Target::Value => series[0].forecast(steps),
            Target::Peak => series[1].peak(steps),
        }
    }

    fn deep(&self, target: Target, steps: usize) -> Option<Quantiles> {
        match (self, target) {
            (Self::Light(_), _) => None,
            (Self::Full(models, _), Target::Value) => models.0.forecast(steps),
            (Self::Full(models, _), Target::Peak) => models.1.forecast_peak(steps),
        }
    }

    /// With whether it is cold.
    pub(super) fn answer(&self, target: Target, steps: usize) -> Option<(Quantiles, bool)> {
        if let Some(quantiles) = self.deep(target, steps) {
            return Some((quantiles, false));
        }
        let forecast = self.light(target, steps)?;
        Some((forecast.quantiles, forecast.cold))
    }

    pub(super) fn explain(&self, target: Target, steps: usize) -> Option<Explanation> {
        match (self, target) {
            (Self::Full(models, _), Target::Value) if models.0.forecast(steps).is_some() => {
                models.0.explain(target, steps)
            }
            (Self::Full(models, _), Target::Peak) if models.1.forecast_peak(steps).is_some() => {
                models.1.explain(target, steps)
            }
            _ => {
                let forecast = self.light(target, steps)?;
                Some(by_one(forecast.model))
            }
        }
    }

    pub(super) fn period(&self) -> Option<usize> {
        match self {
            Self::Light(series) => series[0].period(),
            Self::Full(models, _) => models.1.period(),
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Light(series) => series.iter().map(Series::bytes).sum(),
            Self::Full(models, light) => {
                let light = light.iter().flat_map(|series| series.iter());
                models.0.bytes() + models.1.bytes() + light.map(Series::bytes).sum::<usize>()
            }
        }
    }
}

/// Who answers for a series that does not change.
pub(super) const STILL: &str = "still";

/// An answer that one alone made.
pub(super) fn by_one(name: &'static str) -> Explanation {
    let all = vec![Part { name, weight: 1.0 }];
    Explanation {
        centre: all.clone(),
        bound: all,
        excess: 0.0,
    }
}
