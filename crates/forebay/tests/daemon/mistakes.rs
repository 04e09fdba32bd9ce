//! Mistakes while a daemon runs: the running policy stays as it is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;

use crate::http::request;
use crate::place::{Place, eventually, signal};

fn with_sleeper(name: &str) -> Option<Place> {
    let mut place = Place::new(name)?;
    place.configure(&format!(
        "[apps.a]\nclass = \"batch\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1)
    ));
    place.start();
    place.await_pid("a");
    Some(place)
}

#[test]
fn a_reload_of_an_invalid_file_changes_nothing() {
    let Some(mut place) = with_sleeper("a_reload_of_an_invalid_file_changes_nothing") else {
        return;
    };
    let pid = place.await_pid("a");
    let slice = place.app("a")["slice"].clone();
    place.configure("[apps.a]\nclass = \"critical\"\nexec = [\"sleep\", \"1\"]\nfloot = 1\n");
    let line = format!("forebay.toml:{}:", place.line_of("floot"));
    place.fails(&["reload"], 1, &[&line, "floot", "floor"]);
    let daemon = place.app("a");
    assert_eq!(daemon["class"], "batch");
    assert_eq!(daemon["main_pid"], pid);
    assert_eq!(daemon["slice"]["cpu_idle"], slice["cpu_idle"]);

    signal(place.daemon_pid(), Signal::HUP);
    eventually("the log says why", || place.log().contains(&line));
    assert_eq!(place.app("a")["class"], "batch");
    assert_eq!(place.await_pid("a"), pid);
    place.stop_well();
}

#[test]
fn what_cannot_be_set_is_refused_with_a_reason() {
    let Some(place) = with_sleeper("what_cannot_be_set_is_refused_with_a_reason") else {
        return;
    };
    let check = |arguments: &[&str], code: i32, words: &[&str]| place.fails(arguments, code, words);
    check(
        &["set", "nope", "class=batch"],
        5,
        &["nope", "forebay apps"],
    );
    check(&["explain", "nope"], 5, &["nope", "forebay apps"]);
    check(&["forecast", "nope"], 5, &["nope", "forebay apps"]);
    check(&["history", "nope", "cpu"], 5, &["nope", "forebay apps"]);
    check(
        &["plan", "--what-if", "nope", "class=batch"],
        5,
        &["nope", "forebay apps"],
    );
    check(&["set", "a", "clas=batch"], 2, &["clas", "class"]);
    check(
        &["set", "a", "class=crit"],
        2,
        &["a.class", "crit", "critical, standard or batch"],
    );
    check(&["set", "a", "floor.cpu=4000"], 2, &["floor.cpu", "4000"]);
    check(
        &["set", "a", "floor.memory=900TiB"],
        2,
        &["floor.memory", "900.0 TiB"],
    );
    // All keys or none.
    check(
        &["set", "a", "class=critical", "floor.cpu=x"],
        2,
        &["a.floor.cpu", "x"],
    );
    assert_eq!(place.app("a")["class"], "batch");
}

#[test]
fn what_cannot_run_is_refused_with_a_reason() {
    let Some(place) = with_sleeper("what_cannot_run_is_refused_with_a_reason") else {
        return;
    };
    let check = |options: &[&str], command: &[&str], code: i32, words: &[&str]| {
        let mut arguments = vec!["run", "--class", "batch"];
        arguments.extend(options);
        arguments.push("--");
        arguments.extend(command);
        place.fails(&arguments, code, words);
    };
    check(
        &["--name", "b"],
        &["no-program-like-this"],
        2,
        &["no-program-like-this"],
    );
    check(
        &["--name", "b", "--user", "nobody-like-this"],
        &["true"],
        2,
        &["nobody-like-this"],
    );
    check(
        &["--name", "b", "--directory", "/no/where"],
        &["true"],
        2,
        &["/no/where"],
    );
    check(
        &["--name", "b", "--floor-cpu", "4000"],
        &["true"],
        2,
        &["floor.cpu", "4000"],
    );
    check(
        &["--name", "a"],
        &["true"],
        2,
        &["`a` already", "another name"],
    );
    assert_eq!(place.json(&["apps"])["apps"].as_array().unwrap().len(), 1);
}

#[test]
fn an_oversized_body_is_refused_and_the_daemon_lives() {
    let Some(place) = with_sleeper("an_oversized_body_is_refused_and_the_daemon_lives") else {
        return;
    };
    let socket = place.path("socket");
    let check = |method: &str, uri: &str, body: &str, status: u16, words: &str| {
        let (got, answer) = request(&socket, method, uri, body);
        assert_eq!(got, status, "{method} {uri}: {answer}");
        assert!(answer.contains(words), "{answer}");
    };
    let huge = "x".repeat(70_000);
    check("POST", "/v1/apps", &huge, 413, "65536 bytes");
    check("POST", "/v1/plan", &huge, 413, "65536 bytes");
    check("PATCH", "/v1/apps/a", "{\"set\":", 400, "/openapi.json");
    check("POST", "/v1/apps", "[]", 400, "/openapi.json");
    check("GET", "/v1/nothing", "", 404, "/openapi.json");
    check("DELETE", "/v1/apps/a", "", 405, "/openapi.json");
    check("GET", "/v1/events?limit=x", "", 400, "limit");
    assert!(place.ask(&["status"]).status.success());
}

#[test]
fn a_program_that_vanishes_is_reported_and_tried_again() {
    let Some(mut place) = Place::new("a_program_that_vanishes_is_reported_and_tried_again") else {
        return;
    };
    let program = place.path("program");
    let write = || {
        fs::write(&program, "#!/bin/sh\nexit 3\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    };
    write();
    place.configure(&format!(
        "[apps.gone]\nexec = [{}]\nrestart = \"always\"\n[apps.a]\nexec = [\"sleep\", \"{}\"]\n",
        place.quoted("program"),
        place.seconds(1)
    ));
    place.start();
    let pid = place.await_pid("a");
    place.await_app("gone", "started", |app| app["starts"] == 1);
    fs::remove_file(&program).unwrap();
    let message = place.await_event("gone", "failed");
    assert!(message.contains(program.to_str().unwrap()), "{message}");
    assert!(message.contains("no such program"), "{message}");
    write();
    place.await_app("gone", "started again", |app| {
        app["starts"].as_u64() >= Some(3) && app["ending"] == "status 3"
    });
    assert_eq!(place.await_pid("a"), pid);
    place.stop_well();
}
