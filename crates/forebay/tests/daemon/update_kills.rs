//! Updates whose daemon is killed before and after each write of the journal.
//!
//! Each moment takes as long as an update does, so that all of them are for whoever asks:
//!
//! ```text
//! cargo nextest run --features forebay/etcd --run-ignored only -E 'test(/^update_kills::/)'
//! ```
//!
//! `FOREBAY_TEST_FIRST_MOMENT` says where to begin, `FOREBAY_TEST_MOMENTS` how many to try; without them
//! they are enumerated until none is left.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fronts::Stage;
use crate::place::{Place, processes, sleepers, text};
use crate::update::{Client, alone, append, assert_nothing_of_it_is_left, last};

/// For one update on a host that does much else.
const UPDATE_MAX: Duration = Duration::from_secs(400);
/// An update without a front writes more often than this, before and after each write counted.
const MOMENTS_MIN: u64 = 16;

fn within(what: &str, place: &Place, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + UPDATE_MAX;
    while !holds() {
        let status = place.ask(&["update", "status"]);
        assert!(
            Instant::now() < deadline,
            "not in time: {what}: {}\n{}",
            String::from_utf8_lossy(&status.stdout),
            place.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap())
}

/// Has the daemon die at each moment of an update; `before` and `after` look at what it is done to.
fn kill_at_every_moment<T>(
    place: &mut Place,
    restart: &[&str],
    before: impl Fn(&Place) -> T,
    after: impl Fn(&Place, u64, T),
) {
    let first = number("FOREBAY_TEST_FIRST_MOMENT").unwrap_or(1);
    let count = number("FOREBAY_TEST_MOMENTS").unwrap_or(u64::MAX);
    let mut updates = 0;
    for moment in first..first.saturating_add(count) {
        let began = Instant::now();
        let ran = place.path(&format!("ran-{moment}"));
        place.stop();
        let mut command = place.daemon_command();
        command.env("FOREBAY_UPDATE_DIES_AT", moment.to_string());
        place.start_with(command);
        let was = before(place);
        let line = append(&ran);
        let mut order = vec!["update", "run", "--detach", "--unproved"];
        for app in restart {
            order.extend(["--restart", app]);
        }
        order.extend(["--", "sh", "-c", &line]);
        let begun = place.ask(&order);
        // Before the first write nothing was promised.
        let is_promised = moment > 1;
        updates += usize::from(is_promised);
        let daemon = place.daemon_pid();
        let is_over = |place: &Place| {
            let status = place.ask(&["update", "--json", "status"]);
            let status = serde_json::from_slice::<Value>(&status.stdout);
            status.is_ok_and(|status| {
                status["history"].as_array().map_or(0, Vec::len) == updates
                    && status["current"].is_null()
            })
        };
        let mut is_dead = false;
        within("the daemon dies or the update is over", place, || {
            let stat = text(Path::new(&format!("/proc/{daemon}/stat")));
            is_dead = stat.contains(") Z ");
            is_dead || (is_promised && is_over(place))
        });
        if is_dead {
            place.crash();
            place.start();
        } else {
            assert!(begun.status.success(), "{begun:?}");
        }
        let mut outcome = Value::Null;
        if is_promised {
            within("the update is over", place, || is_over(place));
            let receipt = last(place);
            outcome = receipt["outcome"].clone();
            assert_eq!(outcome, "committed", "{moment}: {receipt:#}");
            assert_eq!(text(&ran), "x", "{moment}: it ran once");
            after(place, moment, was);
        } else {
            assert_eq!(place.json(&["update", "status"])["current"], Value::Null);
            assert!(!ran.exists());
        }
        assert_nothing_of_it_is_left(place);
        println!(
            "moment {moment}: died {is_dead}, {outcome}, {:?}",
            began.elapsed()
        );
        if !is_dead {
            println!("{} moments in all", moment - 1);
            assert!(moment > MOMENTS_MIN, "{moment}");
            return;
        }
    }
}

#[test]
#[ignore = "kills the daemon at each write of the journal, which takes minutes"]
fn a_daemon_that_dies_at_any_write_leaves_an_update_that_ends_well() {
    let name = "a_daemon_that_dies_at_any_write_leaves_an_update_that_ends_well";
    let Some(mut place) = alone(name) else {
        return;
    };
    place.start();
    let seconds = place.seconds(1);
    kill_at_every_moment(
        &mut place,
        &["web"],
        |place| place.await_pid("web"),
        |place, moment, old| {
            assert_ne!(place.await_pid("web"), old, "{moment}: it was restarted");
            assert_eq!(sleepers(&seconds).len(), 1, "{moment}: one owner");
        },
    );
    place.stop_well();
}

#[test]
#[ignore = "kills the daemon at each write of the journal, which takes minutes"]
fn a_daemon_that_dies_at_any_write_leaves_a_front_that_serves() {
    let name = "a_daemon_that_dies_at_any_write_leaves_a_front_that_serves";
    let Some(mut stage) = Stage::of_mode(name, "http", "") else {
        return;
    };
    let port = stage.port;
    let configured = fs::read_to_string(stage.place.path("forebay.toml")).unwrap();
    let ports: BTreeSet<String> = configured
        .split('"')
        .skip_while(|word| *word != "--port")
        .filter(|word| word.parse::<u16>().is_ok_and(|port| port > 1024))
        .map(str::to_owned)
        .collect();
    kill_at_every_moment(
        &mut stage.place,
        &["a", "b"],
        |place| {
            within("one serves and one stands by", place, || {
                let front = place.json(&["shadow", "status", "web"]);
                let instances = front["instances"].as_array();
                front["stage"] == "warm"
                    && front["standby"].is_string()
                    && instances.is_some_and(|all| all.iter().all(|one| one["fence"] == true))
            });
            let old = ["a", "b"].map(|app| place.await_pid(app));
            (old, Client::start(port))
        },
        |place, moment, (old, client)| {
            let seen = client.end();
            assert_eq!(seen.failed, 0, "{moment}: {}", last(place));
            for (app, old) in ["a", "b"].iter().zip(old) {
                assert_ne!(place.await_pid(app), old, "{moment}: {app} was replaced");
            }
            let services = processes(|words| {
                words.iter().any(|word| word == "service")
                    && words.iter().any(|word| ports.contains(word))
            });
            assert_eq!(services.len(), 2, "{moment}: one of each: {services:?}");
        },
    );
    stage.place.stop_well();
}
