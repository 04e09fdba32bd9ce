//! An update that stands still while a critical app suffers from it.

use std::fs;

use crate::place::{Place, eventually};
use crate::update::{alone, assert_nothing_of_it_is_left, last};

#[test]
fn an_update_stands_still_while_a_critical_app_suffers_and_then_goes_on() {
    let name = "an_update_stands_still_while_a_critical_app_suffers_and_then_goes_on";
    let Some(mut place) = alone(name) else {
        return;
    };
    place.start();
    let (steps, enough) = (place.path("steps"), place.path("enough"));
    let command = format!(
        "while [ ! -e {} ]; do echo x >> {}; sleep 0.02; done",
        enough.display(),
        steps.display()
    );
    place.json(&[
        "update",
        "run",
        "--detach",
        "--unproved",
        "--",
        "sh",
        "-c",
        &command,
    ]);
    let made = || fs::read(&steps).map_or(0, |steps| steps.len());
    eventually("the command runs", || made() > 0);
    // What the app says of itself, again and again, as one that measures does.
    let answers_in = |place: &Place, time: &str| {
        place.json(&["push", "web", &format!("response_time={time}")]);
    };
    let held = |place: &Place| {
        let status = place.json(&["update", "status"]);
        status["current"]["held"].as_str().map(str::to_owned)
    };
    let mut why = None;
    eventually("it stands still", || {
        answers_in(&place, "3s");
        why = held(&place);
        why.is_some()
    });
    let why = why.unwrap();
    assert!(why.contains("web: an answer takes 3000"), "{why}");
    // A step that had begun may still be written: from here on there is none, as long as it is held.
    let mut stood = 0;
    eventually("it is seen to make no step in four looks", || {
        answers_in(&place, "3s");
        let before = made();
        let is_held = held(&place).is_some();
        let stands = made() == before && is_held && held(&place).is_some();
        stood = if stands { stood + 1 } else { 0 };
        stood == 4
    });
    let stopped_at = made();
    eventually("it goes on", || {
        answers_in(&place, "1ms");
        held(&place).is_none() && made() > stopped_at
    });
    fs::write(&enough, "").unwrap();
    eventually("it is over", || last(&place)["outcome"] == "committed");
    let receipt = last(&place);
    assert!(receipt["held_times"].as_u64().unwrap() >= 1, "{receipt}");
    assert!(receipt["held_ms"].as_u64().unwrap() > 0, "{receipt}");
    assert_nothing_of_it_is_left(&place);
    place.stop_well();
}
