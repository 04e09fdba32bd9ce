//! Forecasts beyond the control period, and what a restart keeps of them.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::place::{PATIENCE, Place, eventually};

/// Buckets of ten seconds of `web`'s processor time that were seen.
fn buckets(place: &Place) -> u64 {
    let forecast = place.json(&["forecast", "web", "--resource", "cpu"]);
    let scales = &forecast["resources"][0]["scales"];
    scales[0]["buckets_seen"].as_u64().unwrap_or(0)
}

fn rows(forecast: &Value) -> Vec<(f64, f64)> {
    let rows = forecast["resources"][0]["rows"].as_array();
    let rows = rows.into_iter().flatten();
    rows.map(|row| {
        let seconds = row["seconds"].as_f64().unwrap();
        (seconds, row["peak"]["q95"].as_f64().unwrap())
    })
    .collect()
}

#[test]
fn forecasts_reach_a_day_ahead_and_outlive_a_restart() {
    let Some(mut place) = Place::new("forecasts_reach_a_day_ahead_and_outlive_a_restart") else {
        return;
    };
    // About half of a CPU: one that a critical app burns whole is missing to everybody else.
    let work = "while :; do timeout 0.2 sh -c 'while :; do :; done'; sleep 0.2; done";
    place.configure(&format!(
        "[apps.web]\nclass = \"critical\"\nexec = [\"sh\", \"-c\", \"{work}\"]\n"
    ));
    place.start();
    place.await_pid("web");
    let awaited = |place: &Place, enough: u64| {
        let began = Instant::now();
        while buckets(place) < enough {
            assert!(began.elapsed() < PATIENCE, "{}", place.log());
            std::thread::park_timeout(Duration::from_millis(200));
        }
    };
    awaited(&place, 2);
    let forecast = place.json(&["forecast", "web", "--resource", "cpu", "--horizon", "24h"]);
    let rows = rows(&forecast);
    assert_eq!(rows.last().map(|row| row.0), Some(86_400.0), "{forecast}");
    assert!(
        rows.windows(2).all(|pair| pair[0].1 <= pair[1].1),
        "{rows:?}"
    );
    // In the next tenth of a second it may well sleep.
    let seconds = rows.iter().filter(|(ahead, _)| *ahead >= 1.0);
    assert!(seconds.clone().all(|(_, bound)| *bound > 0.2), "{rows:?}");
    let text = place.ask(&["explain", "web", "--forecast"]);
    let text = String::from_utf8(text.stdout).unwrap();
    for word in ["peak of web within 1 s", "95% BOUND BY", "at steps of 10 s"] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
    place.fails(&["forecast", "web", "--horizon", "25h"], 2, &["86400 s"]);

    assert!(place.stop().success());
    place.start();
    // As many as a daemon without a past would need half a minute for, at the first answer.
    let answered = || place.json(&["forecast", "web", "--resource", "cpu"]);
    eventually("an answer", || {
        answered()["resources"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    });
    assert!(buckets(&place) >= 2, "the past was not taken in");
    place.stop_well();
}

#[test]
fn an_event_that_is_declared_meanwhile_raises_the_plan_and_is_named() {
    let Some(mut place) =
        Place::new("an_event_that_is_declared_meanwhile_raises_the_plan_and_is_named")
    else {
        return;
    };
    let app = format!(
        "[apps.web]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1)
    );
    place.configure(&app);
    place.start();
    place.await_pid("web");
    let planned = |place: &Place| {
        let forecast = place.json(&["forecast", "web"]);
        forecast["demand"]["cpu"]["q95"].as_f64()
    };
    // It sleeps.
    eventually("a forecast", || {
        planned(&place).is_some_and(|cpus| cpus < 0.5)
    });
    // Every minute, for a minute: it is always under way.
    place.configure(&format!(
        "{app}[[event]]\nname = \"rush\"\nschedule = \"*:*\"\nduration = \"1min\"\n\
         apps = [\"web\"]\ncpu = 1.25\n"
    ));
    let reloaded = place.ask(&["reload"]);
    assert!(reloaded.status.success(), "{reloaded:?}");
    eventually("the event counts", || {
        planned(&place).is_some_and(|cpus| cpus >= 1.25)
    });
    // Once the first ten seconds are over, it is in what is said of the next ten minutes.
    let asked = ["forecast", "web", "--resource", "cpu", "--horizon", "10m"];
    eventually("the event is named", || {
        let forecast = place.json(&asked);
        let rows = forecast["resources"][0]["rows"].as_array();
        let last = rows.and_then(|rows| rows.last());
        last.is_some_and(|row| {
            let peak = row["peak"]["q95"].as_f64();
            row["known"] == "event rush: declared" && peak.is_some_and(|peak| peak >= 1.25)
        })
    });
    let text = place.ask(&["forecast", "web"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("event rush: declared"), "{text}");

    place.configure(&app);
    assert!(place.ask(&["reload"]).status.success());
    eventually("the event is gone", || {
        planned(&place).is_some_and(|cpus| cpus < 0.5)
    });
    place.stop_well();
}
