//! Answers about what an application will need.

use std::time::Duration;

use forebay_api as api;
use forebay_core::outlook::Resource;
use forebay_core::outlook::ahead::Forecasts;
use forebay_forecast::mixture::{Explanation, Part};
use forebay_forecast::scales::{AHEAD_MAX, SCALES, Scales};
use forebay_forecast::{Quantiles, Target};

use super::Question;

/// How far ahead answers go, as far as the question does.
const USUAL: [Duration; 6] = [
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(600),
    Duration::from_secs(3600),
    Duration::from_secs(6 * 3600),
    AHEAD_MAX,
];
/// Points of a course.
const POINTS: u32 = 24;
/// Who is named of those that made an answer, and the least weight of one.
const NAMED_MAX: usize = 4;
const NAMED_WEIGHT_MIN: f32 = 0.05;

/// What is forecast of one application, a row for each horizon.
pub(super) fn answer(forecasts: &Forecasts, question: &Question) -> Vec<api::ResourceForecast> {
    let now = forecasts.now_unix_ms();
    let asked = |resource: &Resource| question.resource.is_none_or(|wanted| wanted == *resource);
    let known = forecasts.resources(&question.app).into_iter().flatten();
    known
        .filter(|(resource, _)| asked(resource))
        .map(|(resource, scales)| of_resource(resource, scales, now, question.horizon))
        .collect()
}

/// What all applications need together.
pub(super) fn together(forecasts: &Forecasts) -> Vec<api::SumForecast> {
    let sums = forecasts.sums().into_iter();
    sums.map(|sum| api::SumForecast {
        resource: sum.resource.to_string(),
        seconds: sum.span.as_secs_f64(),
        peak: levels(sum.peak),
        bounds: sum.bounds,
        apps: sum.apps as u64,
    })
    .collect()
}

fn of_resource(
    resource: Resource,
    scales: &Scales,
    now: u64,
    horizon: Duration,
) -> api::ResourceForecast {
    let horizon = horizon.min(AHEAD_MAX);
    let mut horizons: Vec<Duration> = USUAL
        .into_iter()
        .filter(|ahead| *ahead <= horizon)
        .collect();
    if horizons.last() != Some(&horizon) && horizon > USUAL[0] {
        horizons.push(horizon);
    }
    let course = (1..=POINTS).filter_map(|point| {
        let ahead = horizon * point / POINTS;
        let value = scales.forecast(Target::Value, now, ahead)?;
        Some(api::CoursePoint {
            seconds: ahead.as_secs_f64(),
            value: levels(value.quantiles),
        })
    });
    api::ResourceForecast {
        resource: resource.to_string(),
        rows: horizons
            .into_iter()
            .filter_map(|ahead| row(scales, now, ahead))
            .collect(),
        course: course.collect(),
        scales: SCALES
            .iter()
            .zip(scales.buckets().zip(scales.periods()))
            .map(|(scale, (seen, period))| api::ForecastScale {
                bucket_seconds: scale.bucket.as_secs_f64(),
                buckets_seen: seen,
                period_seconds: period.map(|period| period.as_secs_f64()),
            })
            .collect(),
    }
}

fn row(scales: &Scales, now: u64, ahead: Duration) -> Option<api::ForecastRow> {
    let peak = scales.forecast(Target::Peak, now, ahead)?;
    let value = scales.forecast(Target::Value, now, ahead);
    let explained = |target| scales.explain(target, now, ahead).unwrap_or_default();
    let Explanation { centre, .. } = explained(Target::Value);
    let Explanation { bound, excess, .. } = explained(Target::Peak);
    Some(api::ForecastRow {
        seconds: ahead.as_secs_f64(),
        value: value.map(|value| levels(value.quantiles)),
        peak: levels(peak.quantiles),
        bucket_seconds: SCALES[peak.scale].bucket.as_secs_f64(),
        cold: peak.cold,
        centre: shares(&centre),
        bound: shares(&bound),
        bound_excess: excess,
    })
}

pub(crate) fn levels(quantiles: Quantiles) -> api::Levels {
    api::Levels {
        q50: quantiles.q50(),
        q90: quantiles.q90(),
        q95: quantiles.q95(),
        q99: quantiles.q99(),
    }
}

fn shares(parts: &[Part]) -> Vec<api::ModelShare> {
    let named = parts.iter().take(NAMED_MAX);
    named
        .filter(|part| part.weight >= NAMED_WEIGHT_MIN)
        .map(|part| api::ModelShare {
            model: part.name.to_owned(),
            weight: f64::from(part.weight),
        })
        .collect()
}
