//! The commands and the API as people and programs use them.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use serde_json::Value;

use crate::http::{answer, request};
use crate::place::{EXE, PATIENCE, Place};

fn run(arguments: &[&str]) -> Output {
    Command::new(EXE.as_str()).args(arguments).output().unwrap()
}

fn with_apps(name: &str) -> Option<Place> {
    let mut place = Place::new(name)?;
    place.configure(&format!(
        "[apps.web]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n[apps.crunch]\nclass = \"batch\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1),
        place.seconds(2)
    ));
    place.start();
    place.await_pid("web");
    place.await_pid("crunch");
    Some(place)
}

#[test]
fn every_command_answers_people_and_programs() {
    let Some(place) = with_apps("every_command_answers_people_and_programs") else {
        return;
    };
    let check = |arguments: &[&str], words: &[&str]| {
        let output = place.ask(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        for word in words {
            assert!(text.contains(word), "{arguments:?}: no `{word}` in\n{text}");
        }
        let json = place.json(arguments);
        assert!(json.is_object(), "{arguments:?}: {json}");
    };
    check(&["status"], &["apps", "2", "CPUs", "punctuality"]);
    check(&["apps"], &["web", "crunch", "critical", "batch"]);
    check(&["top", "--once"], &["web", "crunch", "CPUs, shared"]);
    check(
        &[
            "top", "--once", "--view", "apps", "--filter", "we", "--sort", "cpu",
        ],
        &["1 of 2 with `we`", "web", "by use"],
    );
    check(
        &["top", "--once", "--view", "updates"],
        &["no update was run"],
    );
    check(&["top", "--once", "--view", "offload"], &["no app"]);
    check(&["top", "--once", "--view", "fleet"], &["fleet"]);
    check(&["explain", "web"], &["web", "critical", "CPU"]);
    check(&["forecast", "web"], &["web"]);
    check(&["events"], &["web", "was started"]);
    check(&["events", "--app", "crunch", "-n", "1"], &["crunch"]);
    check(&["history", "web", "cpu"], &[]);
    check(&["history", "web", "memory", "--step", "10s"], &[]);
    check(
        &["plan", "--what-if", "crunch", "class=critical"],
        &["crunch"],
    );
    check(
        &["set", "crunch", "floor.cpu=0.1", "io_weight=50"],
        &["crunch"],
    );
    check(&["pause"], &["paused"]);
    assert_eq!(place.json(&["status"])["paused"], true);
    check(&["resume"], &["resumed"]);
    assert_eq!(place.json(&["status"])["paused"], false);
    check(&["reload"], &["reloaded: 2 app(s)"]);
}

#[test]
fn a_plan_for_what_if_changes_nothing() {
    let Some(place) = with_apps("a_plan_for_what_if_changes_nothing") else {
        return;
    };
    place.json(&["plan", "--what-if", "crunch", "class=critical"]);
    assert_eq!(place.app("crunch")["class"], "batch");
}

#[test]
fn a_program_is_run_in_the_running_daemon() {
    let Some(mut place) = with_apps("a_program_is_run_in_the_running_daemon") else {
        return;
    };
    let seconds = place.seconds(3);
    place.json(&[
        "run",
        "--name",
        "job",
        "--class",
        "batch",
        "--ceiling-pids",
        "55",
        "--user",
        "65534",
        "--directory",
        "/tmp",
        "--",
        "sleep",
        &seconds,
    ]);
    let pid = place.await_pid("job");
    assert_eq!(crate::place::sleepers(&seconds), [pid]);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t65534\t65534"), "{status}");
    let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(directory.to_str(), Some("/tmp"));
    place.await_app("job", "limited", |app| app["slice"]["pids_max"] == 55);
    place.stop_well();
}

#[test]
fn without_a_daemon_the_client_says_so() {
    let output = run(&["status", "--socket", "/no/where/socket"]);
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("/no/where/socket"), "{text}");
    assert!(
        text.contains("forebay daemon") && text.lines().count() == 1,
        "{text}"
    );
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for arguments in [
        &["nonsense"][..],
        &["set"],
        &["set", "web", "floor"],
        &["run", "--name", "x"],
        &["history", "web", "colour"],
        &["explain", "a name with spaces"],
        &["plan", "--what-if", "class=batch"],
    ] {
        let output = run(arguments);
        // What clap cannot know is found out by asking, and there is no daemon here.
        let code = output.status.code();
        assert!(
            code == Some(2) || code == Some(3),
            "{arguments:?}: {output:?}"
        );
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_plain_user_may_look_and_not_touch() {
    let Some(mut place) = with_apps("a_plain_user_may_look_and_not_touch") else {
        return;
    };
    let as_nobody = |arguments: &[&str]| -> std::io::Result<Output> {
        place.asking(arguments).uid(65534).gid(65534).output()
    };
    match as_nobody(&["status"]) {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => {
            println!(
                "SKIPPED: a_plain_user_may_look: another user cannot run {}: {error}",
                *EXE
            );
            return;
        }
    }
    for arguments in [&["apps"][..], &["explain", "web"], &["events"]] {
        let output = as_nobody(arguments).unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    for arguments in [
        &["set", "crunch", "class=critical"][..],
        &["run", "--name", "x", "--class", "batch", "--", "true"],
        &["pause"],
        &["resume"],
        &["reload"],
    ] {
        let output = as_nobody(arguments).unwrap();
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            text.contains("group forebay") && text.lines().count() == 1,
            "{text}"
        );
    }
    assert_eq!(place.app("crunch")["class"], "batch");
    assert_eq!(place.json(&["status"])["paused"], false);

    place.stop_well();
    place.configure_daemon("readers = \"group\"", "");
    place.start();
    let output = place
        .asking(&["status"])
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    place.stop_well();
}

#[test]
fn completions_and_manual_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("forebay") && text.contains("what-if"),
            "{shell}: {text}"
        );
    }
    let output = run(&["man"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(
        text.contains(".TH") && text.contains("no daemon answers"),
        "{text}"
    );
    let output = run(&["check", "--schema"]);
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(schema["properties"]["apps"].is_object());
    let output = run(&["doctor", "--json"]);
    let features: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        features
            .as_array()
            .unwrap()
            .iter()
            .all(|feature| feature["present"].is_boolean())
    );
}

#[test]
fn the_api_describes_itself() {
    let Some(place) = Place::new("the_api_describes_itself").map(|mut place| {
        place.configure("");
        place.start();
        place
    }) else {
        return;
    };
    let socket = place.path("socket");
    let (status, body) = request(&socket, "GET", "/openapi.json", "");
    assert_eq!(status, 200);
    let document: Value = serde_json::from_str(&body).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    for path in [
        "/v1/status",
        "/v1/apps",
        "/v1/apps/{name}",
        "/v1/plan",
        "/metrics",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    // Every path that only looks and needs no name answers.
    for path in ["/v1/status", "/v1/apps", "/v1/events", "/metrics"] {
        assert_eq!(request(&socket, "GET", path, "").0, 200, "{path}");
    }
}

/// Asks over TCP.
fn over_tcp(address: SocketAddr, method: &str, uri: &str, host: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "{method} {uri} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    answer(stream)
}

/// TCP ports that a process listens on, as /proc has them.
fn listens(pid: u32) -> usize {
    let sockets: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| {
            let link = link.to_str()?;
            Some(
                link.strip_prefix("socket:[")?
                    .trim_end_matches(']')
                    .to_owned(),
            )
        })
        .collect();
    ["tcp", "tcp6"]
        .iter()
        .map(|table| {
            std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default()
        })
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<String>>())
        .filter(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(3) == Some(&"0A")
                && words
                    .get(9)
                    .is_some_and(|inode| sockets.iter().any(|s| s == inode))
        })
        .count()
}

#[test]
fn metrics_are_on_loopback_only_when_enabled_and_read_only() {
    let Some(mut place) = Place::new("metrics_are_on_loopback_only_when_enabled_and_read_only")
    else {
        return;
    };
    place.configure("");
    let daemon = place.start();
    assert_eq!(listens(daemon), 0, "nothing listens on TCP unless asked");
    place.stop_well();

    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    place.configure_daemon(
        &format!("http = \"{address}\""),
        &format!("[apps.web]\nexec = [\"sleep\", \"{}\"]\n", place.seconds(1)),
    );
    let daemon = place.start();
    assert_eq!(listens(daemon), 1);
    place.await_pid("web");
    let host = address.to_string();
    let (status, metrics) = over_tcp(address, "GET", "/metrics", &host);
    assert_eq!(status, 200);
    assert!(
        metrics.contains("forebay_") && metrics.contains("web"),
        "{metrics}"
    );
    for (method, uri) in [
        ("POST", "/v1/pause"),
        ("POST", "/v1/reload"),
        ("PATCH", "/v1/apps/web"),
    ] {
        let (status, body) = over_tcp(address, method, uri, &host);
        assert_eq!(status, 403, "{method} {uri}: {body}");
        assert!(body.contains("read-only"), "{body}");
    }
    assert_eq!(over_tcp(address, "GET", "/metrics", "evil.example").0, 403);
    place.stop_well();
}

#[test]
fn events_of_an_app_are_told_from_a_time_on_and_how_it_may_move() {
    let test = "events_of_an_app_are_told_from_a_time_on_and_how_it_may_move";
    let Some(mut place) = Place::new(test) else {
        return;
    };
    place.configure(&format!(
        "[apps.web]\nexec = [\"sleep\", \"{}\"]\nmove = {{ mode = \"restart\" }}\n[apps.pinned]\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1),
        place.seconds(2)
    ));
    place.start();
    place.await_event("web", "started");
    let told = |path: &str| {
        let (code, body) = request(&place.path("socket"), "GET", path, "");
        assert_eq!(code, 200, "{path}: {body}");
        serde_json::from_str::<Value>(&body).unwrap()
    };
    let times = |since: u64| -> Vec<u64> {
        let told = told(&format!("/v1/events?app=web&since_unix_ms={since}"));
        let events = told["events"].as_array().unwrap();
        let time = |event: &Value| event["time_unix_ms"].as_u64().unwrap();
        events.iter().map(time).collect()
    };
    let all = times(0);
    let last = *all.last().unwrap();
    assert!(times(last).iter().all(|time| *time >= last));
    assert!(times(last).contains(&last));
    assert_eq!(times(last + 3_600_000), [0_u64; 0]);
    assert_eq!(told("/v1/apps/web")["rules"]["moves_by"], "restart");
    assert!(told("/v1/apps/pinned")["rules"]["moves_by"].is_null());
    place.stop_well();
}

#[test]
fn events_are_followed_as_they_happen() {
    use std::io::{BufRead as _, BufReader};

    let Some(mut place) = with_apps("events_are_followed_as_they_happen") else {
        return;
    };
    let mut follower = place
        .asking(&["events", "--json", "--follow", "--app", "job"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let seconds = place.seconds(3);
    place.json(&[
        "run", "--name", "job", "--class", "batch", "--", "sleep", &seconds,
    ]);
    let mut line = String::new();
    let mut told = BufReader::new(follower.stdout.take().unwrap());
    told.read_line(&mut line).unwrap();
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["app"], "job", "{line}");
    place.stop_well();
    let ended = crate::place::wait_for_end(&mut follower);
    if ended.is_none() {
        follower.kill().unwrap();
        follower.wait().unwrap();
    }
    let ended = ended.expect("the follower outlives the daemon");
    assert_eq!(
        ended.code(),
        Some(1),
        "the daemon's end is no end of the events"
    );
}
