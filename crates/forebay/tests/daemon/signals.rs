//! What the kernel does not know: signals that are pushed or read, and forecasts of others.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::http::request;
use crate::place::{Place, eventually};

/// A place with one app that sleeps, after some keys of it.
fn with_app(name: &str, keys: &str, rest: &str) -> Option<Place> {
    let mut place = Place::new(name)?;
    place.configure(&format!(
        "[apps.web]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n{keys}\n{rest}",
        place.seconds(1)
    ));
    place.start();
    place.await_pid("web");
    Some(place)
}

#[test]
fn a_pushed_signal_stands_for_a_while_and_is_then_absent() {
    let name = "a_pushed_signal_stands_for_a_while_and_is_then_absent";
    let Some(mut place) = with_app(name, "", "") else {
        return;
    };
    let usage = |key: &str| place.app("web")["usage"][key].clone();
    assert_eq!(usage("requests_per_second"), Value::Null);
    let push = || place.json(&["push", "web", "requests=120", "response_time=3.4ms"]);
    eventually("it shows", || {
        push();
        usage("requests_per_second") == 120.0 && usage("response_time_ms") == 3.4
    });
    push();
    let (status, metrics) = request(&place.path("socket"), "GET", "/metrics", "");
    assert_eq!(status, 200);
    let line = "forebay_app_requests_per_second{app=\"web\",class=\"critical\"} 120.0";
    assert!(metrics.contains(line), "{metrics}");
    let text = String::from_utf8(place.ask(&["explain", "web"]).stdout).unwrap();
    assert!(text.contains("120.0/s and answers in 3.40 ms"), "{text}");
    place.await_app("web", "without a signal", |app| {
        let requests = &app["usage"]["requests_per_second"];
        assert!(requests.is_null() || *requests == 120.0, "{requests}");
        requests.is_null() && app["usage"]["response_time_ms"].is_null()
    });
    for (resource, value) in [("requests", 120.0), ("response_time", 3.4)] {
        eventually("it is in the history", || {
            let history = place.json(&["history", "web", resource, "--step", "10s"]);
            let rows = history["rows"].as_array().unwrap().clone();
            rows.iter()
                .any(|row| row["min"] == value && row["max"] == value)
        });
    }
    eventually("it is forecast", || {
        place.json(&["push", "web", "requests=120"]);
        let forecast = place.json(&["forecast", "web"]);
        let resources = forecast["resources"].as_array().unwrap().clone();
        resources.iter().any(|one| one["resource"] == "requests")
    });
    place.fails(&["push", "nope", "requests=1"], 5, &["no app `nope`"]);
    place.fails(
        &["push", "web", "response_time=3.4"],
        2,
        &["not a duration"],
    );
    place.stop_well();
}

/// Serves metrics that grow by 100 requests a second, of 20 ms each, until it is told to end.
fn serve(ends: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let begun = Instant::now();
        while let Ok((mut stream, _)) = listener.accept() {
            if ends.load(Ordering::Relaxed) {
                return;
            }
            let served = begun.elapsed().as_millis() / 10;
            let seconds = served as f64 * 0.02;
            let body = format!(
                "# TYPE hits counter\nhits{{code=\"200\"}} {served}\nhits{{code=\"500\"}} {}\n\
                 # TYPE d_seconds histogram\nd_seconds_bucket{{le=\"+Inf\"}} {served}\n\
                 d_seconds_sum {seconds}\nd_seconds_count {served}\n",
                served * 7
            );
            let mut head = [0; 4096];
            // A client that went away is no trouble of the server's.
            if stream.read(&mut head).is_ok_and(|read| read == 0) {
                continue;
            }
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).ok();
        }
    });
    port
}

#[test]
fn metrics_of_an_app_are_read_until_they_are_gone_and_from_elsewhere_after_a_reload() {
    let ends = Arc::new(AtomicBool::new(false));
    let port = serve(Arc::clone(&ends));
    let url = format!("http://127.0.0.1:{port}/metrics");
    let keys = |url: &str| {
        format!(
            "metrics = {{ url = \"{url}\", every = \"200ms\", requests = 'hits{{code=\"200\"}}', response_time = \"d_seconds\" }}"
        )
    };
    let name = "metrics_of_an_app_are_read_until_they_are_gone_and_from_elsewhere_after_a_reload";
    let Some(mut place) = with_app(name, &keys(&url), "") else {
        return;
    };
    let served = |app: &Value| {
        let usage = &app["usage"];
        let near = |key: &str, low: f64, high: f64| {
            let value = usage[key].as_f64();
            value.is_some_and(|value| (low..high).contains(&value))
        };
        near("requests_per_second", 80.0, 120.0) && near("response_time_ms", 19.99, 20.01)
    };
    place.await_app("web", "serving 100 requests a second of 20 ms", served);
    ends.store(true, Ordering::Relaxed);
    let told = place.await_event("web", "failed");
    assert!(
        told.contains(&url) && told.contains("start what serves it"),
        "{told}"
    );
    place.await_app("web", "without a signal", |app| {
        app["usage"]["requests_per_second"].is_null()
    });
    let again = serve(Arc::new(AtomicBool::new(false)));
    let text = fs::read_to_string(place.path("forebay.toml")).unwrap();
    let text = text.replace(&format!(":{port}/"), &format!(":{again}/"));
    fs::write(place.path("forebay.toml"), text).unwrap();
    place.json(&["reload"]);
    place.await_app("web", "serving again", served);
    let events = place.json(&["events", "--app", "web"]);
    let events = events["events"].as_array().unwrap();
    let told = events.iter().filter(|event| event["kind"] == "failed");
    assert_eq!(told.count(), 1, "{events:#?}");
    place.stop_well();
}

#[test]
fn a_forecast_of_others_is_judged_and_a_bad_one_refused_with_the_reason() {
    let name = "a_forecast_of_others_is_judged_and_a_bad_one_refused_with_the_reason";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    let file = place.path("forecast.json");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let mut text = format!("{{\"issued\": {now}, \"points\": [");
    for span in 0..6 {
        let from = now + 15 + span * 10;
        let comma = if span == 0 { "" } else { "," };
        write!(
            text,
            "{comma}{{\"from\": {from}, \"until\": {}, \"q50\": 100}}",
            from + 10
        )
        .unwrap();
    }
    fs::write(&file, text + "]}").unwrap();
    let from = now + 15;
    let busy = format!(
        "{{\"issued\": {now}, \"points\": [{{\"from\": {from}, \"until\": {}, \"q50\": 1}}]}}",
        now + 600
    );
    fs::write(place.path("cpu.json"), busy).unwrap();
    let of = |resource: &str, file: &str| {
        format!(
            "[[external_forecast]]\napp = \"web\"\nresource = \"{resource}\"\nsource = {}\nevery = \"1s\"\n",
            place.quoted(file)
        )
    };
    place.configure(&format!(
        "[apps.web]\nexec = [\"sleep\", \"{}\"]\n{}{}",
        place.seconds(1),
        of("requests", "forecast.json"),
        of("cpu", "cpu.json")
    ));
    place.start();
    place.await_pid("web");
    let said = || {
        let explained = place.json(&["explain", "web"]);
        explained["external_forecasts"][1]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    eventually("it is believed by half", || {
        said().contains("believed 50 %: 0 of the 6 spans")
    });
    eventually("a span is judged", || {
        place.json(&["push", "web", "requests=100"]);
        said().contains("believed 50 %: 1 of the 6 spans")
    });
    let planned = place.await_app("web", "planned for half of a CPU", |app| {
        app["demand"]["cpu"]["q95"].as_f64() > Some(0.45)
    });
    let why = planned["demand"]["cpu"]["model"].as_str().unwrap();
    assert!(why.contains("cpu.json (believed 50 %"), "{why}");
    fs::write(&file, "{\"issued\": 0, \"points\": []}").unwrap();
    let told = place.await_event("web", "failed");
    let path = file.display().to_string();
    assert!(
        told.contains(&path) && told.contains("it has 0 points"),
        "{told}"
    );
    assert!(
        said().contains("the latest was refused: it has 0 points"),
        "{}",
        said()
    );
    let text = String::from_utf8(place.ask(&["explain", "web"]).stdout).unwrap();
    assert!(
        text.contains("A forecast of others: requests from"),
        "{text}"
    );
    place.stop_well();
}
