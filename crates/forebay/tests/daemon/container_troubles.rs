//! Apps that are containers of a runtime that does not do what it should.

use std::fs;

use serde_json::Value;

use crate::place::{Knob, Place, Sleeper, eventually, json_with_runtime, knob_in, text};
use crate::runtime_imitation::{Imitation, Manner};

const NAME: &str = "front";
const KNOBS: [Knob; 4] = [Knob::Weight, Knob::Quota, Knob::MemoryMax, Knob::PidsMax];

/// A daemon that has a container of an imitated runtime as an app, and another app beside it.
struct Web {
    // Dropped in this order: the groups have to be empty, and the runtime there to the end.
    _members: [Sleeper; 2],
    place: Place,
    runtime: Imitation,
    /// The container's.
    id: String,
    group: String,
    other: String,
    before: [String; 4],
    /// The ceiling of processes that the container's app has.
    pids: u32,
}

impl Web {
    fn new(test: &str) -> Option<Self> {
        let mut place = Place::new(test)?;
        // Whoever looks for a container looks at all processes of the host, other tests' as well.
        let id = format!("{:0<64}", place.seconds(1));
        let group = place.make_group(&id);
        let web = Sleeper::new(&place.seconds(1));
        join(&place, &group, web.pid());
        let other = place.make_group("other");
        let beside = Sleeper::new(&place.seconds(2));
        join(&place, &other, beside.pid());
        let runtime = Imitation::new(NAME, &id, web.pid(), &group);
        let mut web = Self {
            _members: [web, beside],
            place,
            runtime,
            id,
            group,
            other,
            before: Default::default(),
            pids: 99,
        };
        web.before = web.files();
        web.configure(99);
        Some(web)
    }

    /// Periods are short, so that it is looked at the container every second.
    fn configure(&self, other_pids: u32) {
        let socket = format!("container_socket = \"{}\"", self.runtime.socket.display());
        let rest = format!(
            "[policy]\nperiod = \"20ms\"\n\
             [apps.web]\nclass = \"critical\"\ncontainer = \"{NAME}\"\nceiling.pids = {}\nceiling.memory = \"300MiB\"\nceiling.cpu = 1.5\n\
             [apps.other]\ncgroup = \"{}\"\nceiling.pids = {other_pids}\n",
            self.pids, self.other
        );
        self.place.configure_daemon(&socket, &rest);
    }

    /// What the kernel has.
    fn files(&self) -> [String; 4] {
        KNOBS.map(|knob| text(&knob_in(&self.place.hierarchies, &self.group, knob)))
    }

    #[track_caller]
    fn await_in_force(&self) {
        self.place.await_app("web", "limited", |app| {
            app["slice"]["pids_max"] == self.pids
                && app["slice"]["cpu_weight"] == 10_000
                && app["slice"]["memory_max_bytes"] == 300 << 20
        });
        assert_eq!(self.files()[3], self.pids.to_string());
    }

    /// Waits until it is said of the container with all these words; what is said.
    #[track_caller]
    fn await_said(&self, words: &[&str]) -> String {
        let mut said = None;
        eventually(&format!("it is said: {words:?}"), || {
            let events = self.place.json(&["events", "--app", "web"]);
            let messages = events["events"].as_array().unwrap().clone();
            let mut messages = messages
                .iter()
                .map(|event| event["message"].as_str().unwrap().to_owned());
            said = messages.find(|message| words.iter().all(|word| message.contains(word)));
            said.is_some()
        });
        let said = said.unwrap();
        let socket = self.runtime.socket.display().to_string();
        for word in [&socket, NAME] {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
        said
    }

    /// Periods go on, and the other app is changed as its configuration is.
    #[track_caller]
    fn assert_others_run_on(&self) {
        let file = knob_in(&self.place.hierarchies, &self.other, Knob::PidsMax);
        let pids = if text(&file) == "55" { 77 } else { 55 };
        self.configure(pids);
        self.place.json(&["reload"]);
        eventually("the other app is changed", || {
            text(&file) == pids.to_string()
        });
        let period = || self.place.json(&["status"])["period"].as_u64().unwrap();
        let now = period();
        eventually("periods go on", || period() > now + 40);
        assert_eq!(self.place.app("other")["state"], "running");
    }

    /// A clean stop puts everything back.
    #[track_caller]
    fn stop_well(&mut self) {
        self.place.stop_well();
        assert_eq!(self.files(), self.before);
    }
}

fn join(place: &Place, group: &str, pid: u32) {
    let of_group = |dir: &&std::path::PathBuf| dir.ends_with(group);
    for dir in place.made().iter().filter(of_group) {
        fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

#[test]
fn an_answer_that_is_none_is_said_and_the_container_is_observed_on() {
    let Some(mut web) = Web::new("an_answer_that_is_none_is_said_and_the_container_is_observed_on")
    else {
        return;
    };
    web.place.start();
    web.await_in_force();
    let in_force = web.files();
    let check = |manner: Manner, words: &[&str]| {
        web.runtime.known().inspect = manner;
        let said = web.await_said(words);
        assert!(said.len() < 600, "{said}");
        assert_eq!(web.place.app("web")["state"], "running");
        assert_eq!(web.files(), in_force);
        assert!(web.runtime.known().endless_mib < 16);
    };
    let long = format!("no more\nmemory {}", "x".repeat(1 << 20));
    let whose = "is that the socket of Docker or Podman?";
    check(
        Manner::Refuses(500, long),
        &["no more memory x", "see the runtime's log"],
    );
    check(
        Manner::Says("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"Id\":"),
        &["the answer is not understood", whose],
    );
    check(
        Manner::Says(
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n\
             {\"Id\":\"\",\"Name\":\"/web\",\"State\":{\"Running\":true,\"Pid\":1},\"HostConfig\":{}}",
        ),
        &["names no container's ID", whose],
    );
    check(
        Manner::Says("SSH-2.0-OpenSSH_9.2\r\n"),
        &["the answer is not HTTP", whose],
    );
    check(Manner::Says(""), &["connection", "see the runtime's log"]);
    check(Manner::Endless, &["longer than 4 MiB", whose]);
    assert!(web.runtime.known().endless_mib >= 1, "it was not read");
    web.assert_others_run_on();
    web.runtime.known().inspect = Manner::Well;
    web.await_in_force();
    web.stop_well();
}

#[test]
fn whoever_is_no_runtime_is_not_believed_that_a_container_is_gone() {
    let test = "whoever_is_no_runtime_is_not_believed_that_a_container_is_gone";
    let Some(mut web) = Web::new(test) else {
        return;
    };
    web.place.start();
    web.await_in_force();
    let mut known = web.runtime.known();
    // Some other service answers there.
    known.version = Manner::Says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
    known.inspect = Manner::Refuses(404, "no such page".to_owned());
    drop(known);
    web.place.crash();
    eventually("the guardian gives up", || web.place.guardians().is_empty());
    let restored = web.place.restore(&[]);
    assert!(!restored.status.success(), "{restored:?}");
    let said = String::from_utf8(restored.stderr).unwrap();
    for word in ["it names no version", &web.id[..12], "forebay restore"] {
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
    let mut known = web.runtime.known();
    known.version = Manner::Well;
    known.inspect = Manner::Well;
    drop(known);
    let restored = web.place.restore(&[]);
    assert!(restored.status.success(), "{restored:?}");
    assert_eq!(web.files(), web.before);
    assert_eq!(web.runtime.known().config["CpuShares"], 1024);
    web.place.start();
    web.stop_well();
}

#[test]
fn a_silent_runtime_holds_up_no_period_and_no_other_app() {
    let Some(mut web) = Web::new("a_silent_runtime_holds_up_no_period_and_no_other_app") else {
        return;
    };
    web.runtime.known().inspect = Manner::Silent;
    web.place.start();
    web.assert_others_run_on();
    web.await_said(&["no answer in 15s", "restart it if it is stuck"]);
    assert_eq!(web.place.app("web")["state"], "absent");
    web.runtime.known().inspect = Manner::Well;
    web.await_in_force();
    web.runtime.known().update = Manner::Silent;
    web.pids = 88;
    web.assert_others_run_on();
    web.await_said(&["no answer in 15s", "PidsLimit = 88"]);
    web.runtime.known().update = Manner::Well;
    web.await_in_force();
    web.stop_well();
}

#[test]
fn a_refused_update_names_container_and_socket_and_is_tried_again() {
    let Some(mut web) = Web::new("a_refused_update_names_container_and_socket_and_is_tried_again")
    else {
        return;
    };
    let message = "Memory limit should be smaller than already set memoryswap limit".to_owned();
    web.runtime.known().update = Manner::Refuses(409, message);
    web.place.start();
    web.await_said(&[
        "PidsLimit = 99 of container front",
        "already set memoryswap",
        "change the limit that it names",
    ]);
    web.assert_others_run_on();
    assert_eq!(web.place.app("web")["state"], "running", "it is observed");
    assert_eq!(web.files(), web.before);
    web.runtime.known().update = Manner::Well;
    web.await_in_force();
    // A runtime that has no updates says this of every container; none of them is gone.
    web.runtime.known().update = Manner::Refuses(404, "page not found".to_owned());
    web.pids = 88;
    web.assert_others_run_on();
    web.await_said(&["PidsLimit = 88", "page not found"]);
    assert_eq!(web.place.app("web")["state"], "running");
    web.runtime.known().update = Manner::Well;
    web.await_in_force();
    web.stop_well();
}

#[test]
fn a_container_that_vanishes_before_its_update_is_gone_and_leaves_nothing_to_put_back() {
    let test = "a_container_that_vanishes_before_its_update_is_gone_and_leaves_nothing_to_put_back";
    let Some(mut web) = Web::new(test) else {
        return;
    };
    web.runtime.known().update = Manner::Vanishes;
    web.place.start();
    web.await_said(&["it is there no more", "ps -a"]);
    web.place
        .await_app("web", "absent", |app| app["state"] == "absent");
    web.assert_others_run_on();
    web.stop_well();
    assert_eq!(web.runtime.known().updates.len(), 0);
}

#[test]
fn a_container_that_vanishes_while_it_is_put_back_is_let_go_of() {
    let Some(mut web) = Web::new("a_container_that_vanishes_while_it_is_put_back_is_let_go_of")
    else {
        return;
    };
    web.place.start();
    web.await_in_force();
    web.runtime.known().update = Manner::Vanishes;
    web.place.stop_well();
    let ledger = fs::read_to_string(web.place.path("state/ledger")).unwrap();
    assert!(!ledger.contains(&web.id), "{ledger}");
}

#[test]
fn a_runtime_that_leaves_while_a_container_is_put_back_is_asked_again() {
    let Some(mut web) =
        Web::new("a_runtime_that_leaves_while_a_container_is_put_back_is_asked_again")
    else {
        return;
    };
    web.place.start();
    web.await_in_force();
    web.place.crash();
    web.runtime.known().inspect = Manner::Leaves;
    eventually("the guardian gives up", || web.place.guardians().is_empty());
    web.runtime.known().inspect = Manner::Well;
    web.runtime.come_back();
    let restored = web.place.restore(&[]);
    assert!(restored.status.success(), "{restored:?}");
    assert_eq!(web.files(), web.before);
    assert_eq!(web.runtime.known().config["CpuShares"], 1024);
    web.place.start();
    web.stop_well();
}

#[test]
fn containers_are_suggested_by_the_names_that_their_runtime_says() {
    let Some(web) = Web::new("containers_are_suggested_by_the_names_that_their_runtime_says")
    else {
        return;
    };
    let suggested = |key: &str, value: &str| {
        let list = json_with_runtime(
            &web.runtime.socket,
            &["adopt", "--suggest", "--json", "--seconds", "1"],
        );
        let list = list.as_array().unwrap();
        let mut own = list
            .iter()
            .filter(|one| one["cgroup"] == web.group.as_str());
        let one = own.next().unwrap_or_else(|| panic!("{list:#?}"));
        assert_eq!(one[key], value, "{one:#}");
        one["container"].clone()
    };
    assert_eq!(suggested("owner", "docker container"), NAME);
    // A process elsewhere is not what this group holds.
    let (pid, elsewhere) = (web.runtime.known().pid, std::process::id());
    web.runtime.known().pid = elsewhere;
    assert_eq!(suggested("owner", "control group"), Value::Null);
    web.runtime.known().pid = pid;
    for manner in [Manner::Silent, Manner::Says("no"), Manner::Endless] {
        web.runtime.known().inspect = manner;
        assert_eq!(suggested("owner", "control group"), Value::Null);
    }
}

#[test]
fn doctor_says_who_answers_at_a_runtimes_socket() {
    let Some(web) = Web::new("doctor_says_who_answers_at_a_runtimes_socket") else {
        return;
    };
    let socket = web.runtime.socket.display().to_string();
    let check = |manner: Manner, present: bool, words: &[&str]| {
        web.runtime.known().version = manner;
        let features = json_with_runtime(&web.runtime.socket, &["doctor", "--json"]);
        let features = features.as_array().unwrap();
        let named = |feature: &&Value| feature["name"] == "container runtime";
        let found: Vec<&Value> = features.iter().filter(named).collect();
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0]["present"], present, "{found:#?}");
        let detail = found[0]["detail"].as_str().unwrap();
        for word in words.iter().chain([&socket.as_str()]) {
            assert!(detail.contains(word), "`{word}` is not in: {detail}");
        }
    };
    check(Manner::Well, true, &["Docker 20.10.24, API 1.41"]);
    let broken = "out of everything".to_owned();
    check(
        Manner::Refuses(500, broken),
        false,
        &["out of everything", "see the runtime's log"],
    );
    check(
        Manner::Says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"),
        false,
        &["it names no version", "socket of Docker or Podman"],
    );
}
