//! Metrics sent to a collector of OpenTelemetry.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use serde::Deserialize;

use crate::place::{PATIENCE, Place, eventually};

/// `opentelemetry.proto.collector.metrics.v1.ExportMetricsServiceRequest` in its JSON mapping, as far as
/// it is used. A field that is not named so there is refused.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Export {
    resource_metrics: Vec<ResourceMetrics>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ResourceMetrics {
    resource: Resource,
    scope_metrics: Vec<ScopeMetrics>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    attributes: Vec<KeyValue>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScopeMetrics {
    scope: Scope,
    metrics: Vec<Metric>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scope {
    name: String,
    version: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metric {
    name: String,
    description: String,
    #[serde(rename = "unit")]
    _unit: String,
    gauge: Option<Gauge>,
    sum: Option<Sum>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Gauge {
    data_points: Vec<Point>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Sum {
    data_points: Vec<Point>,
    aggregation_temporality: u32,
    is_monotonic: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Point {
    attributes: Vec<KeyValue>,
    /// `fixed64` is a text in JSON.
    time_unix_nano: String,
    start_time_unix_nano: Option<String>,
    as_double: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyValue {
    key: String,
    value: AnyValue,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AnyValue {
    string_value: String,
}

/// Takes one request, and answers it: its head, and its body.
fn take(listener: &TcpListener, answer: &str) -> (String, String) {
    let mut accepted = None;
    eventually("a delivery begins", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.parse().unwrap())
    });
    let mut body = vec![0; length.unwrap()];
    reader.read_exact(&mut body).unwrap();
    let mut stream: TcpStream = reader.into_inner();
    stream.write_all(answer.as_bytes()).unwrap();
    (head, String::from_utf8(body).unwrap())
}

const TAKEN: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
const NOT_NOW: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

#[test]
fn metrics_reach_a_collector_in_its_form_and_trouble_is_told_once() {
    let name = "metrics_reach_a_collector_in_its_form_and_trouble_is_told_once";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    place.configure(&format!(
        "[daemon.otlp]\nurl = \"http://127.0.0.1:{port}/v1/metrics\"\nevery = \"1s\"\n\
         [apps.web]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1)
    ));
    place.start();
    // Refused twice: that is one trouble.
    take(&listener, NOT_NOW);
    take(&listener, NOT_NOW);
    let running = "forebay_app_running";
    let (head, export) = loop {
        let (head, body) = take(&listener, TAKEN);
        let export: Export = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"));
        if body.contains(running) {
            break (head, export);
        }
    };
    assert!(head.starts_with("POST /v1/metrics HTTP/1.1\r\n"), "{head}");
    assert!(
        head.to_ascii_lowercase()
            .contains("content-type: application/json\r\n"),
        "{head}"
    );
    check(&export);
    eventually("it is told that metrics are delivered again", || {
        place.log().contains("metrics are delivered again")
    });
    assert_eq!(
        place.log().matches("metrics not delivered").count(),
        1,
        "{}",
        place.log()
    );
    place.stop_well();
}

fn check(export: &Export) {
    let resource = &export.resource_metrics[0];
    let has = |key: &str, value: &str| {
        let attributes = &resource.resource.attributes;
        attributes
            .iter()
            .any(|one| one.key == key && one.value.string_value == value)
    };
    assert!(has("service.name", "forebay"), "{resource:?}");
    let scope = &resource.scope_metrics[0];
    assert_eq!(
        (scope.scope.name.as_str(), scope.scope.version.is_empty()),
        ("forebay", false)
    );
    for metric in &scope.metrics {
        assert!(!metric.description.is_empty(), "{metric:?}");
        let points = match (&metric.gauge, &metric.sum) {
            (Some(gauge), None) => &gauge.data_points,
            (None, Some(sum)) => {
                assert_eq!((sum.aggregation_temporality, sum.is_monotonic), (2, true));
                let began = |point: &Point| point.start_time_unix_nano.is_some();
                assert!(sum.data_points.iter().all(began), "{metric:?}");
                &sum.data_points
            }
            _ => panic!("it is either a gauge or a sum: {metric:?}"),
        };
        assert!(!points.is_empty(), "{metric:?}");
        for point in points {
            let now: u64 = point.time_unix_nano.parse().unwrap();
            assert!(
                now > 1_600_000_000_000_000_000 && point.as_double.is_finite(),
                "{point:?}"
            );
        }
    }
    let named = |name: &str| {
        scope
            .metrics
            .iter()
            .find(|metric| metric.name == name)
            .unwrap()
    };
    let point = &named("forebay_app_running")
        .gauge
        .as_ref()
        .unwrap()
        .data_points[0];
    let of_web = |one: &KeyValue| one.key == "app" && one.value.string_value == "web";
    assert!(point.attributes.iter().any(of_web), "{point:?}");
    assert!(named("forebay_ticks").sum.is_some());
}
