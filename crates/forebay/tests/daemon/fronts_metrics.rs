//! What a scrape says of a front, its changes and what was lost.

use crate::fronts::{Stage, kill, request};
use crate::http;
use crate::place::eventually;

/// The value of a sample, by its name with its labels.
fn value(scraped: &str, sample: &str) -> Option<f64> {
    let line = scraped.lines().find_map(|line| line.strip_prefix(sample));
    line?.trim().parse().ok()
}

#[test]
fn a_scrape_tells_of_hand_overs_promotions_and_standbys() {
    let name = "a_scrape_tells_of_hand_overs_promotions_and_standbys";
    let Some(mut stage) = Stage::of_mode(name, "http", "") else {
        return;
    };
    let socket = stage.place.path("socket");
    let scrape = || http::request(&socket, "GET", "/metrics", "").1;
    let changes = |way: &str| {
        value(
            &scrape(),
            &format!("forebay_front_changes_total{{front=\"web\",way=\"{way}\"}} "),
        )
    };
    let before = scrape();
    for (sample, expected) in [
        ("forebay_front_stage{front=\"web\",stage=\"warm\"} ", 1.0),
        ("forebay_front_stage{front=\"web\",stage=\"down\"} ", 0.0),
        ("forebay_front_standby_ready{front=\"web\"} ", 1.0),
        ("forebay_front_requests_failed_total{front=\"web\"} ", 0.0),
        ("forebay_updates_total{outcome=\"alarmed\"} ", 0.0),
        ("forebay_update_in_progress ", 0.0),
        ("forebay_offload_constrained_apps ", 0.0),
    ] {
        assert_eq!(
            value(&before, sample),
            Some(expected),
            "{sample} in {before}"
        );
    }
    assert!(
        !before.contains("forebay_fleet_"),
        "this host is alone: {before}"
    );
    let (planned, death) = (changes("planned"), changes("death"));
    assert_eq!((planned, death), (Some(0.0), Some(0.0)));

    let answered = |scraped: &str| value(scraped, "forebay_front_requests_total{front=\"web\"} ");
    assert_eq!(request(&mut stage.connect()), Some(200));
    eventually("the request is counted", || {
        answered(&scrape()) > answered(&before)
    });

    stage.place.json(&["shadow", "handover", "web"]);
    eventually("the hand-over is counted", || {
        changes("planned") == Some(1.0)
    });
    stage.await_ready("b");
    kill(stage.place.await_pid("b"));
    eventually("the promotion is counted", || changes("death") == Some(1.0));
    assert_eq!(changes("planned"), Some(1.0));
    stage.await_ready("a");
    stage.place.json(&["shadow", "detach", "web", "b"]);
    eventually("nobody would take over", || {
        value(&scrape(), "forebay_front_standby_ready{front=\"web\"} ") == Some(0.0)
    });
    stage.place.stop_well();
}
