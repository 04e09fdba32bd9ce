//! What is read of others: metrics of apps, and forecasts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::outlook::Resource;

use super::app::absolute;
use super::error::{Findings, Problem};
use super::resolve::{Bounds, bounded};
use super::text::{At, Section};
use crate::fetch::{ForecastSource, Place, Scrape, Selector, Url};
use crate::server::Otlp;

/// Forecasts at most.
const FORECASTS_MAX: usize = 64;
/// How often metrics may be read.
const METRICS_EVERY: Bounds = Bounds {
    min: Duration::from_millis(100),
    max: Duration::from_secs(3600),
};
const METRICS_EVERY_USUAL: Duration = Duration::from_secs(1);
/// How often a forecast may be read.
const FORECAST_EVERY: Bounds = Bounds {
    min: Duration::from_secs(1),
    max: Duration::from_secs(86_400),
};
const FORECAST_EVERY_USUAL: Duration = Duration::from_secs(60);

/// How often metrics may be sent.
const OTLP_EVERY: Bounds = Bounds {
    min: Duration::from_secs(1),
    max: Duration::from_secs(3600),
};
const OTLP_EVERY_USUAL: Duration = Duration::from_secs(10);

/// Resolves where metrics are sent.
pub(super) fn otlp(mut section: Section, findings: &mut Findings<'_>) -> Option<Otlp> {
    let every = bounded(&mut section, "every", OTLP_EVERY, findings);
    let Some(url) = section.take::<String>("url") else {
        let fix = "add url = \"http://127.0.0.1:4318/v1/metrics\"";
        lacks(&section, "url", fix, findings);
        return None;
    };
    let url = findings.keep(url.at, section.key("url"), address(&url.value))?;
    Some(Otlp {
        url,
        every: every.unwrap_or(OTLP_EVERY_USUAL),
    })
}

/// Resolves an app's metrics.
pub(super) fn metrics(mut section: Section, findings: &mut Findings<'_>) -> Option<Scrape> {
    let every = bounded(&mut section, "every", METRICS_EVERY, findings);
    let requests = selector(&mut section, "requests", findings);
    let response_time = selector(&mut section, "response_time", findings);
    let Some(url) = section.take::<String>("url") else {
        let fix = "add url = \"http://127.0.0.1:PORT/metrics\"";
        lacks(&section, "url", fix, findings);
        return None;
    };
    if requests.is_none() && response_time.is_none() {
        let fix = "add requests = \"NAME\", response_time = \"NAME\" or both";
        lacks(&section, "metric to read", fix, findings);
    }
    let url = findings.keep(url.at, section.key("url"), address(&url.value))?;
    Some(Scrape {
        url,
        every: every.unwrap_or(METRICS_EVERY_USUAL),
        requests,
        response_time,
    })
}

fn lacks(section: &Section, what: &str, fix: &str, findings: &mut Findings<'_>) {
    // What was refused has been said already.
    if !section.refused {
        let problem = Problem::new(format!("there is no {what}"), fix);
        findings.add(section.at, &section.name, problem);
    }
}

fn selector(section: &mut Section, key: &str, findings: &mut Findings<'_>) -> Option<Selector> {
    let At { value, at } = section.take::<String>(key)?;
    let selector = value.parse::<Selector>().map_err(|error| {
        Problem::new(
            error.to_string(),
            "write its name, with labels by = or != if not all count: \
             http_requests_total{code=\"200\"}",
        )
    });
    let kept = findings.keep(at, section.key(key), selector);
    section.refused |= kept.is_none();
    kept
}

fn address(text: &str) -> Result<Url, Problem> {
    text.parse::<Url>().map_err(|error| {
        let fix = "write http://HOST:PORT/PATH, without a password; TLS is not spoken";
        Problem::new(error.to_string(), fix)
    })
}

/// Resolves all forecasts; `is_app` says which apps there are.
pub(super) fn forecasts(
    sections: Option<At<Vec<Section>>>,
    is_app: impl Fn(&AppId) -> bool,
    findings: &mut Findings<'_>,
) -> Vec<ForecastSource> {
    let mut forecasts: Vec<ForecastSource> = Vec::new();
    for section in sections.map_or_else(Vec::new, |v| v.value) {
        let (at, name) = (section.at, section.name.clone());
        let Some(forecast) = forecast(section, &is_app, findings) else {
            continue;
        };
        let same = |other: &ForecastSource| other.source() == forecast.source();
        let problem = if forecasts.len() == FORECASTS_MAX {
            let message = format!("there are more than {FORECASTS_MAX} forecasts");
            Some(Problem::new(message, "give fewer, with more points each"))
        } else if forecasts.iter().any(same) {
            let message = "the same forecast stands before";
            Some(Problem::new(message, "take one of them out"))
        } else {
            None
        };
        match problem {
            Some(problem) => findings.add(at, name, problem),
            None => forecasts.push(forecast),
        }
    }
    forecasts
}

fn forecast(
    mut section: Section,
    is_app: impl Fn(&AppId) -> bool,
    findings: &mut Findings<'_>,
) -> Option<ForecastSource> {
    let every = bounded(&mut section, "every", FORECAST_EVERY, findings);
    let app = section.take::<String>("app");
    let resource = section.take::<&str>("resource");
    let source = section.take::<String>("source");
    let (Some(app), Some(resource), Some(source)) = (app, resource, source) else {
        let fix = "a forecast needs app, resource and source";
        lacks(&section, "complete forecast", fix, findings);
        return None;
    };
    let id = app.value.parse::<AppId>().ok().filter(is_app);
    let id = id.ok_or_else(|| {
        let message = format!("there is no app `{}`", app.value);
        Problem::new(message, "name one of [apps]")
    });
    let id = findings.keep(app.at, section.key("app"), id);
    let place = match source.value.starts_with('/') {
        true => {
            absolute(Path::new(&source.value)).map(|()| Place::File(PathBuf::from(&source.value)))
        }
        false => address(&source.value).map(Place::Url),
    };
    let place = findings.keep(source.at, section.key("source"), place);
    let named = |known: &Resource| known.as_str() == resource.value;
    Some(ForecastSource {
        app: id?,
        resource: Resource::ALL.into_iter().find(named)?,
        place: place?,
        every: every.unwrap_or(FORECAST_EVERY_USUAL),
    })
}
