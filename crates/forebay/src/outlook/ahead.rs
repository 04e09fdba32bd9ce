//! Answers about what an application will need.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_api as api;
use forebay_core::app::AppId;
use forebay_core::outlook::ahead::Forecasts;
use forebay_core::outlook::{Outlook, Resource, Window};
use forebay_forecast::mixture::{Explanation, Part};
use forebay_forecast::scales::{AHEAD_MAX, Ahead, SCALES, Scales};
use forebay_forecast::{Quantiles, Target};

use super::Question;
use super::occasions::Known;

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

/// What is forecast of one application, a row for each horizon. `expected` has what is to come by
/// name, and `known` the days that are unlike others.
pub(super) fn answer(
    forecasts: &Forecasts,
    expected: &Outlook,
    known: &Known,
    question: &Question,
) -> Vec<api::ResourceForecast> {
    let now = forecasts.now_unix_ms();
    let asked = |resource: &Resource| question.resource.is_none_or(|wanted| wanted == *resource);
    let seen = forecasts.resources(&question.app).into_iter().flatten();
    let mut series: BTreeMap<Resource, Option<&Scales>> = seen
        .map(|(resource, scales)| (resource, Some(scales)))
        .collect();
    // Of what was never used nothing is kept, and it may be known to come all the same.
    for span in expected.expected.get(&question.app).into_iter().flatten() {
        series.entry(span.resource).or_default();
    }
    series
        .into_iter()
        .filter(|(resource, _)| asked(resource))
        .map(|(resource, scales)| {
            let series = Series {
                app: &question.app,
                resource,
                scales,
                expected,
                known,
                now,
            };
            of_resource(&series, question.horizon)
        })
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

/// One resource of one application, as it looks from now.
struct Series<'a> {
    app: &'a AppId,
    resource: Resource,
    /// None of what was never used.
    scales: Option<&'a Scales>,
    expected: &'a Outlook,
    known: &'a Known,
    now: u64,
}

/// What is said of one moment.
struct Said {
    quantiles: Quantiles,
    /// Of the models: the resolution that answered, and whether it saw too little.
    scale: usize,
    cold: bool,
    /// Who is known to bring something else than the models say.
    known: Option<String>,
}

impl Series<'_> {
    /// What the models say, changed by what is known to come.
    fn forecast(&self, target: Target, ahead: Duration) -> Option<Said> {
        let answer = self.models(target, ahead)?;
        let mut said = Said {
            quantiles: answer.quantiles,
            scale: answer.scale,
            cold: answer.cold,
            known: None,
        };
        let until = Window::ahead(self.now, ahead);
        let series = (self.app, self.resource);
        if let Some((factor, by)) = self.known.factor_on(series, self.now, until.until_unix_ms) {
            match target {
                Target::Value => said.change(said.quantiles.scaled(factor), by),
                // Before the day it is as ever.
                Target::Peak => {
                    let then = self.models(Target::Value, ahead);
                    said.raise(then.map(|then| then.quantiles.scaled(factor)), &by);
                }
            }
        }
        let span = match target {
            Target::Peak => until,
            Target::Value => until.end(),
        };
        if let Some((most, by)) = self.expected.brought(self.app, self.resource, span) {
            said.raise(Some(most), by);
        }
        Some(said)
    }

    /// What the models say.
    fn models(&self, target: Target, ahead: Duration) -> Option<Ahead> {
        match self.scales {
            Some(scales) => scales.forecast(target, self.now, ahead),
            None => Some(Ahead {
                quantiles: Quantiles::new([0.0; 4])?,
                scale: 0,
                cold: true,
            }),
        }
    }
}

impl Said {
    fn change(&mut self, quantiles: Quantiles, by: String) {
        self.quantiles = quantiles;
        self.known = Some(by);
    }

    fn raise(&mut self, most: Option<Quantiles>, by: &str) {
        let Some(most) = most else { return };
        let raised = self.quantiles.or_greater(most);
        if raised != self.quantiles {
            self.change(raised, by.to_owned());
        }
    }
}

fn of_resource(series: &Series<'_>, horizon: Duration) -> api::ResourceForecast {
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
        let value = series.forecast(Target::Value, ahead)?;
        Some(api::CoursePoint {
            seconds: ahead.as_secs_f64(),
            value: levels(value.quantiles),
        })
    });
    api::ResourceForecast {
        resource: series.resource.to_string(),
        rows: horizons
            .into_iter()
            .filter_map(|ahead| row(series, ahead))
            .collect(),
        course: course.collect(),
        scales: series.scales.map(resolutions).unwrap_or_default(),
    }
}

fn resolutions(scales: &Scales) -> Vec<api::ForecastScale> {
    let seen = scales.buckets().zip(scales.periods());
    let each = SCALES.iter().zip(seen);
    each.map(|(scale, (seen, period))| api::ForecastScale {
        bucket_seconds: scale.bucket.as_secs_f64(),
        buckets_seen: seen,
        period_seconds: period.map(|period| period.as_secs_f64()),
    })
    .collect()
}

fn row(series: &Series<'_>, ahead: Duration) -> Option<api::ForecastRow> {
    let peak = series.forecast(Target::Peak, ahead)?;
    let value = series.forecast(Target::Value, ahead);
    let explained = |target| {
        let scales = series.scales;
        let explained = scales.and_then(|scales| scales.explain(target, series.now, ahead));
        explained.unwrap_or_default()
    };
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
        known: peak.known,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_raises_any_level_is_named_and_nobody_else() {
        let quantiles = |levels| Quantiles::new(levels).unwrap();
        let mut said = Said {
            quantiles: quantiles([1.0, 1.2, 1.26, 1.5]),
            scale: 0,
            cold: false,
            known: None,
        };
        said.raise(None, "nobody");
        said.raise(Some(quantiles([0.5; 4])), "event small");
        assert_eq!(said.known, None);
        said.raise(Some(quantiles([1.25; 4])), "event rush");
        assert_eq!(said.quantiles, quantiles([1.25, 1.25, 1.26, 1.5]));
        assert_eq!(said.known.as_deref(), Some("event rush"));
    }
}
