//! Rolling updates: three daemons that share a real etcd, daemons that die, hosts that are not well, and
//! clients that speak FleetLock.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::Output;

use serde_json::Value;

use crate::etcd::Etcd;
use crate::fronts::free_port;
use crate::http::answer;
use crate::place::{Place, eventually, text};

/// Hosts of one fleet, and a directory in which their commands meet.
struct Three {
    hosts: Vec<(&'static str, Place)>,
    etcd: Etcd,
    shared: tempfile::TempDir,
}

/// A command that says where it runs, and whether another one runs at the same time.
const SCRIPT: &str = r#"
mkdir "$1/alone" || echo "$2" >> "$1/overlaps"
cat /proc/self/cgroup > "$1/own"
for place in "$1"/places/*; do
    if grep -q "$(cat "$place")[.]" "$1/own"; then name=${place##*/}; fi
done
echo "$name" >> "$1/ran"
while [ -e "$1/hold-$name" ]; do sleep 0.05; done
if [ -e "$1/kill-$name" ]; then kill -9 "$(cat "$1/kill-$name")"; fi
rmdir "$1/alone"
"#;

impl Three {
    fn new(test: &str, rest: impl Fn(&str, &Place) -> String) -> Option<Self> {
        let hosts = ["a", "b", "c"].map(|name| Some((name, Place::new(test)?)));
        let hosts = hosts.into_iter().collect::<Option<Vec<_>>>()?;
        let etcd = Etcd::start(test)?;
        let shared = tempfile::tempdir().unwrap();
        fs::create_dir(shared.path().join("places")).unwrap();
        fs::write(shared.path().join("update.sh"), SCRIPT).unwrap();
        let mut three = Self {
            hosts,
            etcd,
            shared,
        };
        for (name, place) in &mut three.hosts {
            fs::write(three.shared.path().join("places").join(*name), &place.group).unwrap();
            place.configure(&format!(
                "[fleet]\nhost = \"{name}\"\nlease = \"5s\"\n[fleet.etcd]\nendpoints = [\"{}\"]\n{}",
                three.etcd.endpoint(),
                rest(name, place)
            ));
            place.start();
        }
        three.await_members(3);
        Some(three)
    }

    fn await_members(&self, count: usize) {
        eventually("all are members", || self.members().len() == count);
    }

    /// As one that lives sees them.
    fn members(&self) -> Vec<String> {
        let hosts = self.place("c").json(&["fleet", "hosts"]);
        let hosts = hosts["hosts"].as_array().unwrap().iter();
        hosts
            .map(|one| one["host"].as_str().unwrap().to_owned())
            .collect()
    }

    fn place(&self, name: &str) -> &Place {
        let found = self.hosts.iter().find(|(host, _)| *host == name);
        &found.unwrap().1
    }

    fn place_mut(&mut self, name: &str) -> &mut Place {
        let found = self.hosts.iter_mut().find(|(host, _)| *host == name);
        &mut found.unwrap().1
    }

    /// Begins a rolling update of all, with the script, asked for at a host.
    fn run(&self, at: &str, words: &[&str]) -> Output {
        let shared = self.shared.path();
        let script = shared.join("update.sh");
        let mut all = vec!["update", "fleet", "run", "--unproved"];
        all.extend(words);
        let command = [script.to_str().unwrap(), shared.to_str().unwrap()];
        all.extend(["--", "sh", command[0], command[1]]);
        self.place(at).ask(&all)
    }

    /// The names of those whose command ran, in that order.
    fn ran(&self) -> Vec<String> {
        let ran = text(&self.shared.path().join("ran"));
        ran.lines().map(str::to_owned).collect()
    }

    fn hold(&self, name: &str) {
        fs::write(self.shared.path().join(format!("hold-{name}")), "").unwrap();
    }

    fn let_go(&self, name: &str) {
        fs::remove_file(self.shared.path().join(format!("hold-{name}"))).unwrap();
    }

    /// How it stands, as a host sees it.
    fn status(&self, at: &str) -> Value {
        self.place(at).json(&["update", "fleet", "status"])
    }

    #[track_caller]
    fn await_phase(&self, at: &str, phase: &str) -> Value {
        eventually(phase, || self.status(at)["rollout"]["phase"] == phase);
        self.status(at)["rollout"].clone()
    }

    /// That commands never met, nor did updates from their beginning to their end.
    fn assert_one_at_a_time(&self) {
        assert_eq!(text(&self.shared.path().join("overlaps")), "");
        let mut times: Vec<(u64, u64)> = Vec::new();
        for (name, place) in &self.hosts {
            let history = place.json(&["update", "history"]);
            let history = history.as_array().unwrap();
            assert_eq!(history.len(), 1, "{name}: {history:?}");
            assert_eq!(history[0]["outcome"], "committed", "{name}: {history:?}");
            let ms = |key: &str| history[0][key].as_u64().unwrap();
            times.push((ms("began_unix_ms"), ms("ended_unix_ms")));
        }
        times.sort_unstable();
        assert!(times.is_sorted_by_key(|times| times.0), "{times:?}");
        let meet = times.windows(2).any(|pair| pair[0].1 > pair[1].0);
        assert!(!meet, "{times:?}");
    }
}

fn states(rollout: &Value) -> Vec<(String, String)> {
    let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    let hosts = rollout["hosts"].as_array().unwrap().iter();
    hosts
        .map(|one| (text(one, "host"), text(one, "state")))
        .collect()
}

fn pairs(expected: [(&str, &str); 3]) -> Vec<(String, String)> {
    let owned = |(a, b): (&str, &str)| (a.to_owned(), b.to_owned());
    expected.map(owned).into()
}

#[test]
fn hosts_are_updated_one_after_the_other_though_the_one_updated_and_the_one_asked_die() {
    let name = "hosts_are_updated_one_after_the_other_though_the_one_updated_and_the_one_asked_die";
    let Some(mut three) = Three::new(name, |_, _| String::new()) else {
        return;
    };
    three.hold("b");
    let begun = three.run("a", &["--detach"]);
    assert!(begun.status.success(), "{begun:?}");
    eventually("b runs it", || three.ran() == ["b"]);
    let status = three.status("c");
    let expected = pairs([("b", "updates"), ("c", "waits"), ("a", "waits")]);
    assert_eq!(states(&status["rollout"]), expected, "{status}");
    assert_eq!(status["slots"][0]["holder"], "b", "{status}");
    let waits = status["rollout"]["hosts"][1]["said"].as_str().unwrap();
    assert!(waits.contains("for a slot, held by b"), "{status}");
    let refused = three.run("c", &["--detach"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("update fleet abort"), "{said}");

    // The host at which it was asked for dies, and the one that is updated.
    three.place_mut("a").crash();
    three.place_mut("b").crash();
    eventually("both are gone", || three.members() == ["c"]);
    let status = three.status("c");
    assert_eq!(
        status["slots"][0]["holder"], "b",
        "its slot stays: {status}"
    );
    assert_eq!(three.ran(), ["b"]);
    three.place_mut("b").start();
    three.let_go("b");
    eventually("c is updated without a", || {
        let rollout = &three.status("c")["rollout"];
        states(rollout)[..2] == pairs([("b", "updated"), ("c", "updated"), ("", "")])[..2]
    });
    let status = three.status("c");
    let waits = status["rollout"]["hosts"][2]["said"].as_str().unwrap();
    assert!(waits.contains("no member now"), "{status}");
    three.place_mut("a").start();
    let done = three.await_phase("c", "complete");
    assert_eq!(three.status("a")["slots"], serde_json::json!([]));
    assert!(
        done["next"].as_str().unwrap().contains("all 3 hosts"),
        "{done}"
    );
    assert_eq!(three.ran(), ["b", "c", "a"]);
    three.assert_one_at_a_time();
    for (_, place) in &mut three.hosts {
        place.stop_well();
    }
}

#[test]
fn the_first_host_that_is_not_well_stops_the_rest_until_somebody_decides() {
    let name = "the_first_host_that_is_not_well_stops_the_rest_until_somebody_decides";
    let app = |name: &str, place: &Place| match name {
        "b" => format!(
            "[apps.web]\nexec = [\"sleep\", \"{}\"]\nrestart = \"never\"\n",
            place.seconds(1)
        ),
        _ => String::new(),
    };
    let Some(mut three) = Three::new(name, app) else {
        return;
    };
    let pid = three.place("b").await_pid("web");
    fs::write(three.shared.path().join("kill-b"), pid.to_string()).unwrap();
    let order = ["--host", "b", "--host", "c", "--host", "a"];
    // Whoever waits for it hears of it.
    let ended = three.run("a", &order);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let said = String::from_utf8(ended.stdout).unwrap();
    println!("{said}");
    for words in [
        "stopped",
        "web: it does not run any more",
        "forebay update fleet resume",
        "--without HOST",
    ] {
        assert!(said.contains(words), "`{words}` is not in {said}");
    }
    assert_eq!(three.ran(), ["b"]);
    let rollout = three.await_phase("c", "stopped");
    let expected = pairs([("b", "failed"), ("c", "waits"), ("a", "waits")]);
    assert_eq!(states(&rollout), expected, "{rollout}");
    let history = three.place("b").json(&["update", "history"]);
    assert_eq!(history[0]["outcome"], "alarmed", "{history}");
    // Nobody went on by himself; left out, the rest does.
    three
        .place("c")
        .json(&["update", "fleet", "resume", "--without", "b"]);
    three.await_phase("c", "complete");
    assert_eq!(three.ran(), ["b", "c", "a"]);
    three
        .place("c")
        .fails(&["update", "fleet", "abort"], 1, &["no rolling update"]);
    for (_, place) in &mut three.hosts {
        place.stop_well();
    }
}

/// Asks as Zincati does.
fn ask(port: u16, path: &str, id: &str, group: &str) -> (u16, Value) {
    let body = format!("{{\"client_params\": {{\"id\": \"{id}\", \"group\": \"{group}\"}}}}");
    send(port, "POST", path, "fleet-lock-protocol: true\r\n", &body)
}

fn send(port: u16, method: &str, path: &str, headers: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: lock\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let (status, text) = answer(stream);
    (status, serde_json::from_str(&text).unwrap_or_default())
}

#[test]
fn whoever_speaks_fleet_lock_shares_the_slots_with_rolling_updates() {
    let name = "whoever_speaks_fleet_lock_shares_the_slots_with_rolling_updates";
    let ports = [free_port(), free_port()];
    let lock = |name: &str, _: &Place| {
        let index = ["a", "b"].iter().position(|other| *other == name);
        index.map_or(String::new(), |index| {
            let port = ports[index];
            format!(
                "[fleet.lock]\nlisten = \"127.0.0.1:{port}\"\ngroups = [\"default\", \"edge\"]\n"
            )
        })
    };
    let Some(mut three) = Three::new(name, lock) else {
        return;
    };
    let [a, b] = ports;
    let take = |port, id| ask(port, "/v1/pre-reboot", id, "default");
    let give = |port, id| ask(port, "/v1/steady-state", id, "default");
    assert_eq!(take(a, "one").0, 200);
    assert_eq!(take(b, "one").0, 200, "again, at another host");
    let (status, said) = take(b, "two");
    assert_eq!((status, &said["kind"]), (409, &"failed_lock".into()));
    assert!(
        said["value"].as_str().unwrap().contains("client one"),
        "{said}"
    );
    assert_eq!(give(a, "two").0, 200, "what is not held is given back");
    assert_eq!(take(b, "two").0, 409);
    assert_eq!(ask(b, "/v1/pre-reboot", "two", "edge").0, 200);
    assert_eq!(give(b, "two").0, 200);
    assert_eq!(give(b, "one").0, 200);

    // What is no such request takes nothing.
    let good = "{\"client_params\": {\"id\": \"x\", \"group\": \"default\"}}";
    let header = "fleet-lock-protocol: true\r\n";
    let check = |method, path, headers, body: &str, status: u16, kind: &str| {
        let (got, said) = send(a, method, path, headers, body);
        assert_eq!((got, &said["kind"]), (status, &kind.into()), "{said}");
    };
    let wrong = "invalid_client_identity";
    check("POST", "/v1/pre-reboot", "", good, 400, wrong);
    check(
        "POST",
        "/v1/pre-reboot",
        "fleet-lock-protocol: no\r\n",
        good,
        400,
        wrong,
    );
    check("POST", "/v1/pre-reboot", header, "{", 400, wrong);
    check(
        "POST",
        "/v1/pre-reboot",
        header,
        "{\"client_params\": {\"id\": \"x\"}}",
        400,
        wrong,
    );
    check(
        "POST",
        "/v1/pre-reboot",
        header,
        &good.replace('x', ""),
        400,
        wrong,
    );
    check(
        "POST",
        "/v1/pre-reboot",
        header,
        &good.replace("default", "no"),
        400,
        "unknown_group",
    );
    check(
        "GET",
        "/v1/pre-reboot",
        header,
        "",
        405,
        "unsupported_method",
    );
    check("POST", "/v1/status", header, good, 404, "unknown_path");
    let long = good.replace('x', &"x".repeat(8192));
    assert_eq!(send(a, "POST", "/v1/pre-reboot", header, &long).0, 413);
    assert_eq!(three.status("c")["slots"], serde_json::json!([]));

    // A client that is away, and hosts that are updated, wait for each other.
    assert_eq!(take(a, "one").0, 200);
    three.hold("b");
    assert!(three.run("a", &["--detach"]).status.success());
    eventually("b waits for it", || {
        let said = three.status("a")["rollout"]["hosts"][0]["said"].to_string();
        said.contains("for a slot, held by the FleetLock client one")
    });
    assert_eq!(three.ran(), [""; 0]);
    three
        .place("a")
        .json(&["update", "fleet", "release", "one"]);
    eventually("b runs it", || three.ran() == ["b"]);
    let (status, said) = take(a, "two");
    assert_eq!(status, 409);
    assert!(said["value"].as_str().unwrap().contains("by b"), "{said}");
    assert_eq!(
        give(a, "b").0,
        200,
        "a client is no host, whatever it calls itself"
    );
    assert_eq!(take(a, "two").0, 409);
    // Nobody else begins; b comes to its end.
    three.place("c").json(&["update", "fleet", "abort"]);
    three.await_phase("c", "ending");
    three.let_go("b");
    let rollout = three.await_phase("c", "called_off");
    let expected = pairs([("b", "updated"), ("c", "waits"), ("a", "waits")]);
    assert_eq!(states(&rollout), expected, "{rollout}");
    assert_eq!(take(b, "two").0, 200);
    three.etcd.crash();
    let (status, said) = give(b, "two");
    assert_eq!(
        (status, &said["kind"]),
        (503, &"failed_unlock".into()),
        "{said}"
    );
    three.etcd.restart();
    eventually("it is given back", || give(b, "two").0 == 200);
    for (_, place) in &mut three.hosts {
        place.stop_well();
    }
}
