//! Metrics of apps and forecasts of others.

use forebay_core::outlook::Resource;

use super::*;
use crate::fetch::Place;

#[test]
fn metrics_and_forecasts_arrive() {
    let sources = config(
        r#"
        [apps.web]
        exec = ["sh"]
        metrics = { url = "http://127.0.0.1:9113/metrics", every = "500ms", requests = "hits{code=\"200\"}", response_time = "d_seconds" }
        [apps.db]
        exec = ["sh"]
        metrics = { url = "http://localhost/m", requests = "hits" }
        [[external_forecast]]
        app = "web"
        resource = "requests"
        source = "/srv/forecast.json"
        every = "5m"
        [[external_forecast]]
        app = "db"
        resource = "response_time"
        source = "http://127.0.0.1/f?app=db"
        "#,
    )
    .sources;
    let web = &sources.metrics[&"web".parse::<AppId>().unwrap()];
    assert_eq!(web.url.to_string(), "http://127.0.0.1:9113/metrics");
    assert_eq!(web.every, Duration::from_millis(500));
    assert_eq!(web.requests, Some("hits{code=\"200\"}".parse().unwrap()));
    assert_eq!(web.response_time, Some("d_seconds".parse().unwrap()));
    let db = &sources.metrics[&"db".parse::<AppId>().unwrap()];
    assert_eq!(
        (db.every, &db.response_time),
        (Duration::from_secs(1), &None)
    );
    let [file, url] = &sources.forecasts[..] else {
        panic!("{:?}", sources.forecasts);
    };
    assert_eq!(
        (file.app.as_str(), file.resource),
        ("web", Resource::Requests)
    );
    assert_eq!(file.place, Place::File("/srv/forecast.json".into()));
    assert_eq!(file.every, Duration::from_secs(300));
    assert_eq!(
        (url.app.as_str(), url.resource),
        ("db", Resource::ResponseTime)
    );
    assert_eq!(url.source().place, "http://127.0.0.1/f?app=db");
    assert_eq!(url.every, Duration::from_secs(60));
}

#[test]
fn metrics_that_cannot_be_read_are_refused() {
    check_app(
        "metrics = { requests = \"hits\" }\n",
        &["f:3: apps.a.metrics: there is no url; add url = \"http://127.0.0.1:PORT/metrics\""],
    );
    check_app(
        "metrics = { url = \"http://127.0.0.1/m\" }\n",
        &[
            "f:3: apps.a.metrics: there is no metric to read; add requests = \"NAME\", response_time = \"NAME\" or both",
        ],
    );
    check_app(
        "[apps.a.metrics]\nurl = \"https://127.0.0.1/m\"\nrequests = \"hits{code=~\\\"2..\\\"}\"\nevery = \"1ms\"\n",
        &[
            "f:4: apps.a.metrics.url: `https://127.0.0.1/m` is no address of plain HTTP; write http://HOST:PORT/PATH, without a password; TLS is not spoken",
            "f:5: apps.a.metrics.requests: `hits{code=~\"2..\"}` selects no metric; write its name, with labels by = or != if not all count: http_requests_total{code=\"200\"}",
            "f:6: apps.a.metrics.every: 1ms is out of bounds; use 100ms to 3600s",
        ],
    );
}

#[test]
fn forecasts_that_cannot_be_read_are_refused() {
    let forecast = |keys: &str| format!("[apps.a]\nexec = [\"sh\"]\n[[external_forecast]]\n{keys}");
    let whole = "app = \"a\"\nresource = \"cpu\"\nsource = \"/f\"\n";
    check(&forecast(whole), &[]);
    check(
        &forecast("app = \"a\"\nresource = \"cpu\"\n"),
        &[
            "f:3: external_forecast.1: there is no complete forecast; a forecast needs app, resource and source",
        ],
    );
    check(
        &forecast("app = \"b\"\nresource = \"cpu\"\nsource = \"f.json\"\n"),
        &[
            "f:4: external_forecast.1.app: there is no app `b`; name one of [apps]",
            "f:6: external_forecast.1.source: `f.json` is no address of plain HTTP; write http://HOST:PORT/PATH, without a password; TLS is not spoken",
        ],
    );
    check(
        &forecast("app = \"a\"\nresource = \"gpu\"\nsource = \"/f\"\nevery = \"2d\"\n"),
        &[
            "f:5: external_forecast.1.resource: `gpu` is not a resource; use cpu, memory, io, received, sent, requests or response_time",
            "f:7: external_forecast.1.every: 172800s is out of bounds; use 1s to 86400s",
        ],
    );
    check(
        &format!("{}[[external_forecast]]\n{whole}", forecast(whole)),
        &["f:7: external_forecast.2: the same forecast stands before; take one of them out"],
    );
    check(
        "external_forecast = [1]\n",
        &["f:1: external_forecast.1: `1` is no table; write a table in its place"],
    );
    let many: String = (0..65)
        .map(|n| {
            format!("[[external_forecast]]\napp = \"a\"\nresource = \"cpu\"\nsource = \"/{n}\"\n")
        })
        .collect();
    check(
        &format!("[apps.a]\nexec = [\"sh\"]\n{many}"),
        &[
            "f:259: external_forecast.65: there are more than 64 forecasts; give fewer, with more points each",
        ],
    );
}

#[test]
fn a_collector_of_metrics_arrives_and_is_checked() {
    let otlp = |keys: &str| format!("[daemon.otlp]\n{keys}");
    assert_eq!(config("").daemon.otlp, None);
    let usual = config(&otlp("url = \"http://127.0.0.1:4318/v1/metrics\"\n"));
    let usual = usual.daemon.otlp.unwrap();
    assert_eq!(usual.url.to_string(), "http://127.0.0.1:4318/v1/metrics");
    assert_eq!(usual.every, Duration::from_secs(10));
    check(
        &otlp("every = \"1m\"\n"),
        &["f:1: daemon.otlp: there is no url; add url = \"http://127.0.0.1:4318/v1/metrics\""],
    );
    check(
        &otlp("url = \"https://collector/v1/metrics\"\nevery = \"10ms\"\n"),
        &[
            "f:2: daemon.otlp.url: `https://collector/v1/metrics` is no address of plain HTTP; write http://HOST:PORT/PATH, without a password; TLS is not spoken",
            "f:3: daemon.otlp.every: 10ms is out of bounds; use 1s to 3600s",
        ],
    );
}
