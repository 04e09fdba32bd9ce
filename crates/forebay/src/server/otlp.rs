//! Metrics for a collector of OpenTelemetry: OTLP over plain HTTP, as JSON.
//!
//! What `/metrics` says is said in the other form, so that there is one table of metrics. Counters are
//! cumulative: what could not be delivered is in what is delivered next. So nothing is kept for later,
//! and there is no queue that could grow. Trouble is told once, until things went well again.
//!
//! The form is the JSON mapping of `opentelemetry/proto/collector/metrics/v1`, version 1: names in
//! lowerCamelCase, 64-bit numbers as text, enumerations as numbers.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use super::Server;
use crate::fetch::{Url, exposition, http};

/// `AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE`.
const CUMULATIVE: u32 = 2;

/// Units of the Unified Code for Units of Measure, by what names end in. The first that fits counts.
const UNITS: [(&str, &str); 8] = [
    ("_bytes_per_second", "By/s"),
    ("_per_second", "1/s"),
    ("_seconds", "s"),
    ("_bytes", "By"),
    ("_bytes_max", "By"),
    ("_ratio", "1"),
    ("_cores", "{cpu}"),
    ("_cpus", "{cpu}"),
];

/// Where metrics are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Otlp {
    /// The collector's address, with its path.
    pub(crate) url: Url,
    /// From one delivery to the next.
    pub(crate) every: Duration,
}

/// Delivers metrics for ever; does nothing where nobody wants any.
pub(super) async fn export(server: &Server) {
    let Some(to) = &server.state.otlp else {
        return std::future::pending().await;
    };
    let began = unix_nanos();
    let mut turns = tokio::time::interval(to.every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut failing = false;
    loop {
        turns.tick().await;
        match deliver(server, to, began).await {
            Ok(()) if failing => tracing::info!(url = %to.url, "metrics are delivered again"),
            Ok(()) => {}
            Err(why) if !failing => {
                tracing::warn!(url = %to.url, why, "metrics not delivered; told again when they were");
                failing = true;
                continue;
            }
            Err(_) => continue,
        }
        failing = false;
    }
}

async fn deliver(server: &Server, to: &Otlp, began: u128) -> Result<(), String> {
    let text = server.metrics().await;
    let text = text.map_err(|error| format!("render them: {error}"))?;
    let request = request(&text, began, unix_nanos());
    let answer = http::post_json(&to.url, request.to_string()).await?;
    refused(&answer).map_or(Ok(()), Err)
}

/// What a collector took not, though it took the request.
fn refused(answer: &str) -> Option<String> {
    let answer: Value = serde_json::from_str(answer).ok()?;
    let partial = answer.get("partialSuccess")?;
    let why = partial["errorMessage"].as_str().unwrap_or_default();
    // 64-bit numbers are texts; some collectors write them as numbers all the same.
    let rejected = match &partial["rejectedDataPoints"] {
        Value::String(text) => text.parse().unwrap_or(0),
        number => number.as_u64().unwrap_or(0),
    };
    (rejected > 0).then(|| format!("the collector refused {rejected} values: {why}"))
}

fn unix_nanos() -> u128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos())
}

/// One family of the text format.
#[derive(Debug, Default)]
struct Family<'a> {
    is_counter: bool,
    help: &'a str,
    points: Vec<Value>,
}

/// An `ExportMetricsServiceRequest` with what a text of OpenMetrics says. Counters began at `began`; both
/// are nanoseconds since 1970.
fn request(text: &str, began: u128, now: u128) -> Value {
    let mut families: BTreeMap<&str, Family<'_>> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match *words.as_slice() {
            ["#", "HELP", name, help] => families.entry(name).or_default().help = help,
            ["#", "TYPE", name, kind] => {
                families.entry(name).or_default().is_counter = kind == "counter";
            }
            _ => {
                let Some((name, labels, value)) = exposition::read(line) else {
                    continue;
                };
                // A counter's samples have an ending that its name has not.
                let family = name.strip_suffix("_total").unwrap_or(name);
                let family = families.entry(family).or_default();
                let mut point = json!({
                    "attributes": labels.iter().map(attribute).collect::<Vec<_>>(),
                    "timeUnixNano": now.to_string(),
                    "asDouble": value,
                });
                if family.is_counter {
                    point["startTimeUnixNano"] = began.to_string().into();
                }
                family.points.push(point);
            }
        }
    }
    let metrics: Vec<Value> = families
        .into_iter()
        .filter(|(_, family)| !family.points.is_empty())
        .map(|(name, family)| metric(name, family))
        .collect();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let resource = [
        ("service.name".to_owned(), "forebay".to_owned()),
        ("service.version".to_owned(), version.clone()),
        ("host.name".to_owned(), host),
    ];
    json!({ "resourceMetrics": [{
        "resource": { "attributes": resource.iter().map(attribute).collect::<Vec<_>>() },
        "scopeMetrics": [{
            "scope": { "name": "forebay", "version": version },
            "metrics": metrics,
        }],
    }] })
}

fn metric(name: &str, family: Family<'_>) -> Value {
    let unit = UNITS.iter().find(|(suffix, _)| name.ends_with(suffix));
    let (kind, data) = match family.is_counter {
        true => (
            "sum",
            json!({
                "aggregationTemporality": CUMULATIVE,
                "isMonotonic": true,
                "dataPoints": family.points,
            }),
        ),
        false => ("gauge", json!({ "dataPoints": family.points })),
    };
    json!({
        "name": name,
        "description": family.help,
        "unit": unit.map_or("", |(_, unit)| unit),
        kind: data,
    })
}

fn attribute((key, value): &(String, String)) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::metrics;

    #[test]
    fn gauges_and_counters_are_told_in_the_form_of_otlp() {
        let text = "# HELP forebay_a_bytes Held.\n# TYPE forebay_a_bytes gauge\n\
                    forebay_a_bytes{app=\"w\\\"e,b\",class=\"batch\"} 4096.0\n\
                    # HELP forebay_events By kind.\n# TYPE forebay_events counter\n\
                    forebay_events_total{kind=\"slice\"} 3\n# EOF\n";
        let request = request(text, 5, 7);
        let scope = &request["resourceMetrics"][0]["scopeMetrics"][0];
        assert_eq!(
            scope["metrics"],
            json!([
                {
                    "name": "forebay_a_bytes",
                    "description": "Held.",
                    "unit": "By",
                    "gauge": { "dataPoints": [{
                        "attributes": [
                            { "key": "app", "value": { "stringValue": "w\"e,b" } },
                            { "key": "class", "value": { "stringValue": "batch" } },
                        ],
                        "timeUnixNano": "7",
                        "asDouble": 4096.0,
                    }] },
                },
                {
                    "name": "forebay_events",
                    "description": "By kind.",
                    "unit": "",
                    "sum": {
                        "aggregationTemporality": 2,
                        "isMonotonic": true,
                        "dataPoints": [{
                            "attributes": [{ "key": "kind", "value": { "stringValue": "slice" } }],
                            "startTimeUnixNano": "5",
                            "timeUnixNano": "7",
                            "asDouble": 3.0,
                        }],
                    },
                },
            ])
        );
    }

    #[test]
    fn every_metric_is_told() {
        let text = metrics::tests::every();
        let request = request(&text, 0, 1);
        let told = &request["resourceMetrics"][0]["scopeMetrics"][0]["metrics"];
        let points = told.as_array().unwrap().iter().flat_map(|metric| {
            let data = metric.get("sum").or_else(|| metric.get("gauge"));
            data.unwrap()["dataPoints"].as_array().unwrap()
        });
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(points.count(), samples);
    }

    #[test]
    fn what_a_collector_refused_is_trouble() {
        let says = |answer: &str| refused(answer);
        assert_eq!(says(""), None);
        assert_eq!(says("{}"), None);
        assert_eq!(says(r#"{"partialSuccess":{}}"#), None);
        let refused = says(r#"{"partialSuccess":{"rejectedDataPoints":"3","errorMessage":"no"}}"#);
        assert_eq!(refused.unwrap(), "the collector refused 3 values: no");
    }
}
