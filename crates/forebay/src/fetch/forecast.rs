//! Forecasts of others, as JSON: docs/external-forecasts.md has the format.

use std::path::PathBuf;
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::external::{Given, POINTS_MAX, Point, Source};
use forebay_core::outlook::Resource;
use serde::Deserialize;

use super::http::Url;
use crate::backtest::time;

/// A source of forecasts, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForecastSource {
    /// The app it is about.
    pub(crate) app: AppId,
    /// What of it.
    pub(crate) resource: Resource,
    /// Where it is.
    pub(crate) place: Place,
    /// Time between two readings.
    pub(crate) every: Duration,
}

/// Where a forecast is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a file.
    File(PathBuf),
    /// At an address.
    Url(Url),
}

impl ForecastSource {
    /// As the domain knows it.
    pub(crate) fn source(&self) -> Source {
        Source {
            app: self.app.clone(),
            resource: self.resource,
            place: match &self.place {
                Place::File(path) => path.display().to_string(),
                Place::Url(url) => url.to_string(),
            },
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    issued: When,
    points: Vec<PointText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PointText {
    from: When,
    until: When,
    q50: f64,
    q90: Option<f64>,
    q95: Option<f64>,
    q99: Option<f64>,
}

/// RFC 3339, or seconds since 1970-01-01 UTC.
#[derive(Deserialize)]
#[serde(untagged)]
enum When {
    Seconds(f64),
    Date(String),
}

/// Reads a forecast.
///
/// # Errors
/// What is wrong with it, and what to do.
pub(super) fn parse(text: &str) -> Result<Given, String> {
    let text: Text = serde_json::from_str(text).map_err(|error| {
        format!("{error}; write {{\"issued\": .., \"points\": [{{\"from\": .., \"until\": .., \"q50\": ..}}]}}")
    })?;
    let issued = text.issued.unix_ms()?;
    // Beyond the bound only their number counts.
    let mut points = Vec::with_capacity(text.points.len().min(POINTS_MAX));
    for (index, point) in text.points.iter().enumerate() {
        let at = |why: String| format!("points[{index}]: {why}");
        let from = point.from.unix_ms().map_err(at)?;
        let until = point.until.unix_ms().map_err(at)?;
        let higher = [point.q90, point.q95, point.q99];
        points.push(
            Point::new(from, until, point.q50, higher).map_err(|error| at(error.to_string()))?,
        );
    }
    Given::new(issued, points).map_err(|error| error.to_string())
}

impl When {
    fn unix_ms(&self) -> Result<u64, String> {
        let seconds = match self {
            Self::Seconds(seconds) => Some(*seconds),
            Self::Date(text) => match time::parse(text) {
                Some(time::Time::Date(seconds)) => Some(seconds),
                Some(time::Time::Number(_)) | None => None,
            },
        };
        let shown = || match self {
            Self::Seconds(seconds) => seconds.to_string(),
            Self::Date(text) => text.clone(),
        };
        seconds
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .and_then(|since| u64::try_from(since.as_millis()).ok())
            .ok_or_else(|| {
                format!(
                    "`{}` is no time; write RFC 3339, or seconds since 1970 as a number",
                    shown()
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forecasts_are_read_with_either_kind_of_time() {
        let dates = r#"{"issued": "2026-01-01T00:00:00Z", "points": [
            {"from": "2026-01-01T01:00:00+01:00", "until": "2026-01-01T00:01:00.5Z", "q50": 1, "q95": 2}]}"#;
        let numbers = r#"{"points": [{"until": 1767225660.5, "from": 1767225600, "q95": 2.0, "q90": 1.0, "q50": 1.0, "q99": 2}],
            "issued": 1767225600}"#;
        let given = parse(dates).unwrap();
        assert_eq!(given, parse(numbers).unwrap());
        assert_eq!(given.issued_unix_ms(), 1_767_225_600_000);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let says = |text: &str, words: &str| {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        };
        let point = |point: &str| format!("{{\"issued\": 0, \"points\": [{point}]}}");
        says("", "EOF");
        says("[]", "write {\"issued\"");
        says(
            r#"{"issued": 0, "points": [], "more": 1}"#,
            "unknown field `more`",
        );
        says(r#"{"issued": 0, "points": []}"#, "0 points");
        says(r#"{"issued": "today", "points": []}"#, "`today` is no time");
        says(r#"{"issued": -1, "points": []}"#, "`-1` is no time");
        says(r#"{"issued": "1767225600", "points": []}"#, "is no time");
        says(&point(r#"{"from": 0, "until": 60}"#), "missing field `q50`");
        says(
            &point(r#"{"from": 0, "until": 60, "q50": 1e999}"#),
            "number out of range",
        );
        says(
            &point(r#"{"from": 0, "until": 60, "q50": -1}"#),
            "points[0]: a quantile is negative",
        );
        says(
            &point(r#"{"from": 0, "until": 60, "q50": 2, "q99": 1}"#),
            "points[0]: a higher quantile",
        );
        says(
            &point(r#"{"from": 60, "until": 0, "q50": 2}"#),
            "points[0] is shorter",
        );
        says(
            &point(r#"{"from": 0, "until": 60, "q05": 2}"#),
            "unknown field `q05`",
        );
    }
}
