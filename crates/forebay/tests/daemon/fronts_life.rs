//! The life of a front: how its process is replaced, found out of date, hung, and ended.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::fronts::{Stage, answer, free_port, kill, request, stop};
use crate::place::{EXE, PATIENCE, Place, eventually, is_running, signal};

impl Stage {
    fn upgrade(&self) -> String {
        self.place.json(&["shadow", "upgrade", "web"]).to_string()
    }

    /// Changes one line of the front's configuration.
    fn edit(&self, from: &str, to: &str) {
        let file = self.place.path("forebay.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&file, text.replace(from, to)).unwrap();
    }

    fn counts(&self) -> Value {
        self.front()["counts"].clone()
    }

    /// Waits for an event of the front that says this.
    fn await_told(&self, what: &str) {
        eventually(&format!("it is told: {what}"), || {
            let events = self.place.json(&["events", "--app", "web.front"]);
            let events = events["events"].as_array().unwrap();
            events.iter().any(|event| {
                let message = event["message"].as_str().unwrap();
                event["kind"] == "shadow" && message.contains(what)
            })
        });
    }

    fn await_outdated(&self, what: Option<&str>) {
        eventually(&format!("it is told: {what:?}"), || {
            let front = self.front();
            let outdated = front["outdated"].as_str();
            match what {
                Some(what) => outdated.is_some_and(|outdated| outdated.contains(what)),
                None => outdated.is_none(),
            }
        });
    }
}

/// Somebody who connects, asks, and connects again, as fast as it goes.
struct Load {
    ends: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Load {
    fn new(port: u16) -> Self {
        let (ends, done) = (Arc::default(), Arc::default());
        let (end, count) = (Arc::clone(&ends), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            while !AtomicBool::load(&end, Ordering::Relaxed) {
                let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                assert_eq!(request(&mut client), Some(200));
                AtomicU64::fetch_add(&count, 1, Ordering::Relaxed);
            }
        });
        Self { ends, done, thread }
    }

    fn await_more(&self) {
        let before = self.done.load(Ordering::Relaxed);
        eventually("clients are served", || {
            self.thread.is_finished() || self.done.load(Ordering::Relaxed) > before + 5
        });
    }

    #[track_caller]
    fn end(self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

#[test]
fn upgrades_refuse_and_reset_nobody() {
    let Some(mut stage) = Stage::of_mode("upgrades_refuse_and_reset_nobody", "tcp", "") else {
        return;
    };
    let load = Load::new(stage.port);
    let mut clients = Vec::new();
    let mut processes = vec![stage.place.await_pid("web.front")];
    for _ in 0..3 {
        load.await_more();
        let mut client = stage.connect();
        assert_eq!(request(&mut client), Some(200));
        clients.push(client);
        let said = stage.upgrade();
        let new = stage.place.await_pid("web.front");
        assert!(!processes.contains(&new), "{said}");
        assert!(
            said.contains(&format!("process {new} has taken the place")),
            "{said}"
        );
        processes.push(new);
        // Whoever was connected before goes on.
        for client in &mut clients {
            assert_eq!(request(client), Some(200));
        }
    }
    load.await_more();
    load.end();
    stage.await_ready("a");
    eventually("each process before has its client alone", || {
        let counts = stage.counts();
        counts["before"] == 3 && counts["before_open"] == 3
    });
    let counts = stage.counts();
    assert_eq!(
        (&counts["failed"], &counts["unknown"]),
        (&0.into(), &0.into())
    );
    assert!(counts["connections"].as_u64() > Some(15), "{counts}");
    stage.await_told("taken the place");
    // Each process ends with its last client.
    drop(clients);
    for process in &processes[..3] {
        eventually("the process before is gone", || !is_running(*process));
    }
    assert_eq!(request(&mut stage.connect()), Some(200));
    assert_eq!(stage.place.await_pid("web.front"), processes[3]);
    eventually("nobody is before it", || stage.counts()["before"] == 0);
    stage.place.stop_well();
}

#[test]
fn a_process_before_follows_hand_overs_and_losses() {
    let name = "a_process_before_follows_hand_overs_and_losses";
    let Some(mut stage) = Stage::of_mode(name, "http", "") else {
        return;
    };
    let mut before: Vec<TcpStream> = (0..2).map(|_| stage.connect()).collect();
    for client in &mut before {
        client.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();
    }
    // Its process has read that.
    let old = stage.place.await_pid("web.front");
    stage.upgrade();
    stage.upgrade();
    stage.await_ready("a");
    // Nobody was connected to the second.
    eventually("one process is left", || stage.counts()["before"] == 1);
    assert_eq!(stage.place.json(&["shadow", "handover", "web"])["to"], "b");
    // The old primary may be gone now: a request of before goes to the new one.
    let first = stage.place.await_pid("a");
    stop(first);
    let mut client = before.remove(0);
    client.write_all(b"st: x\r\n\r\n").unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(text.contains("connection: close"), "{text}");
    signal(first, Signal::CONT);
    stage.await_ready("b");
    // A loss that only a client of the old process could notice.
    stop(stage.place.await_pid("b"));
    let mut client = before.remove(0);
    client.write_all(b"st: x\r\n\r\n").unwrap();
    assert_eq!(answer(&mut client), Some(200));
    stage.await_ready("a");
    drop(client);
    eventually("the process before is gone", || !is_running(old));
    stage.place.stop_well();
}

#[test]
fn a_process_before_ends_when_it_does_not_follow_or_has_nobody_to_follow() {
    let name = "a_process_before_ends_when_it_does_not_follow_or_has_nobody_to_follow";
    let Some(mut stage) = Stage::of_mode(name, "tcp", "") else {
        return;
    };
    let mut client = stage.connect();
    assert_eq!(request(&mut client), Some(200));
    let old = stage.place.await_pid("web.front");
    stage.upgrade();
    // One that hangs may not serve anybody once the primary is another.
    stop(old);
    assert_eq!(stage.place.json(&["shadow", "handover", "web"])["to"], "b");
    eventually("it was ended", || !is_running(old));
    assert_eq!(request(&mut client), None);
    stage.await_ready("b");
    // And one that is led by nobody ends by itself, before the front begins anew.
    let mut client = stage.connect();
    assert_eq!(request(&mut client), Some(200));
    let old = stage.place.await_pid("web.front");
    stage.upgrade();
    assert_eq!(request(&mut client), Some(200));
    kill(stage.place.await_pid("web.front"));
    eventually("it ended", || !is_running(old));
    stage.await_ready("b");
    assert_eq!(request(&mut stage.connect()), Some(200));
    stage.place.stop_well();
}

#[test]
fn an_upgrade_puts_another_plan_in_force() {
    let name = "an_upgrade_puts_another_plan_in_force";
    let Some(mut stage) = Stage::of_mode(name, "tcp", "") else {
        return;
    };
    let mut client = stage.connect();
    assert_eq!(request(&mut client), Some(200));
    let (before, after) = (stage.port, free_port());
    stage.edit(
        &format!("listen = [\"127.0.0.1:{before}\"]"),
        &format!("listen = [\"127.0.0.1:{after}\"]"),
    );
    let done = stage.place.json(&["reload"]).to_string();
    assert!(done.contains("forebay shadow upgrade web"), "{done}");
    assert_eq!(stage.front()["outdated"], Value::Null, "not yet in force");
    stage.upgrade();
    assert_eq!(
        request(&mut client),
        Some(200),
        "who was connected stays so"
    );
    let refused = TcpStream::connect(("127.0.0.1", before)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    stage.port = after;
    assert_eq!(request(&mut stage.connect()), Some(200));
    stage.await_ready("a");
    stage.await_outdated(None);
    stage.place.stop_well();
}

#[test]
fn an_upgrade_that_fails_changes_nothing() {
    let name = "an_upgrade_that_fails_changes_nothing";
    let Some(mut stage) = Stage::of_mode(name, "tcp", "") else {
        return;
    };
    let front = stage.place.await_pid("web.front");
    let mut client = stage.connect();
    assert_eq!(request(&mut client), Some(200));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let own = format!("\"127.0.0.1:{}\"", stage.port);
    stage.edit(&own, &format!("{own}, \"127.0.0.1:{port}\""));
    let why = format!("listen on 127.0.0.1:{port}");
    let goes_on = format!("process {front} goes on");
    stage
        .place
        .fails(&["shadow", "upgrade", "web"], 1, &[&why, &goes_on]);
    eventually("the old process is the front again", || {
        stage.place.await_pid("web.front") == front
    });
    assert_eq!(request(&mut client), Some(200));
    assert_eq!(request(&mut stage.connect()), Some(200));
    stage.await_ready("a");
    stage.await_outdated(None);
    // It directs as before, and the next attempt is free to succeed.
    assert_eq!(stage.place.json(&["shadow", "handover", "web"])["to"], "b");
    drop(taken);
    stage.upgrade();
    assert_eq!(request(&mut client), Some(200));
    stage.await_ready("b");
    stage.place.stop_well();
}

#[test]
fn an_upgrade_that_moves_the_primary_changes_nothing() {
    let name = "an_upgrade_that_moves_the_primary_changes_nothing";
    let Some(mut stage) = Stage::of_mode(name, "tcp", "") else {
        return;
    };
    let front = stage.place.await_pid("web.front");
    stage.await_ready("a");
    let mut client = stage.connect();
    assert_eq!(request(&mut client), Some(200));
    stage.edit("{ a = \"127.0.0.1:", "{ a = \"127.0.0.2:");
    let why = "and is to be at 127.0.0.2:";
    stage
        .place
        .fails(&["shadow", "upgrade", "web"], 1, &[why, "hand over"]);
    eventually("the old process is the front again", || {
        stage.place.await_pid("web.front") == front
    });
    assert_eq!(request(&mut client), Some(200));
    assert_eq!(request(&mut stage.connect()), Some(200));
    stage.place.stop_well();
}

#[test]
fn a_front_that_runs_with_another_plan_says_so_until_it_is_upgraded() {
    let name = "a_front_that_runs_with_another_plan_says_so_until_it_is_upgraded";
    let Some(mut stage) = Stage::of_mode(name, "tcp", "patience = \"2s\"") else {
        return;
    };
    let front = stage.place.await_pid("web.front");
    stage.await_outdated(None);
    stage.place.crash();
    stage.edit("patience = \"2s\"", "patience = \"3s\"");
    stage.place.start();
    stage.await_ready("a");
    assert_eq!(stage.place.await_pid("web.front"), front);
    stage.await_outdated(Some("another plan than the one that is configured"));
    stage.await_told("forebay shadow upgrade web");
    stage.upgrade();
    stage.await_outdated(None);
    stage.await_ready("a");
    stage.place.stop_well();
}

#[test]
fn a_front_that_hangs_is_unreachable_and_delays_nobody() {
    let name = "a_front_that_hangs_is_unreachable_and_delays_nobody";
    let Some(mut stage) = Stage::of_mode(name, "tcp", "") else {
        return;
    };
    let front = stage.place.await_pid("web.front");
    stop(front);
    eventually("it is said to be unreachable", || {
        let asked = Instant::now();
        let front = stage.front();
        // A second for its counts, and as much for a busy machine.
        assert!(
            asked.elapsed() < Duration::from_secs(4),
            "{:?}",
            asked.elapsed()
        );
        front["stage"] == "unreachable"
    });
    stage.await_told("does not answer");
    let busy = ["unreachable"];
    stage.place.fails(&["shadow", "upgrade", "web"], 1, &busy);
    signal(front, Signal::CONT);
    stage.await_ready("a");
    assert_eq!(request(&mut stage.connect()), Some(200));
    stage.place.stop_well();
}

#[test]
fn a_front_that_is_no_longer_configured_is_ended_at_the_next_start() {
    let name = "a_front_that_is_no_longer_configured_is_ended_at_the_next_start";
    let Some(mut stage) = Stage::of_mode(name, "tcp", "") else {
        return;
    };
    let front = stage.place.await_pid("web.front");
    let service = stage.place.await_pid("a");
    stage.place.crash();
    let file = stage.place.path("forebay.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.split_once("[fronts.web]").unwrap().0).unwrap();
    stage.place.start();
    eventually("the front is ended", || !is_running(front));
    assert_eq!(stage.place.await_pid("a"), service, "and nothing else");
    assert_eq!(stage.place.app("web.front"), Value::Null);
    let refused = TcpStream::connect(("127.0.0.1", stage.port)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    stage.place.stop_well();
}

#[test]
fn a_client_too_many_hears_so() {
    let name = "a_client_too_many_hears_so";
    let Some(mut stage) = Stage::of_mode(name, "http", "connections_max = 2\n") else {
        return;
    };
    let mut held: Vec<TcpStream> = (0..2).map(|_| stage.connect()).collect();
    for client in &mut held {
        assert_eq!(request(client), Some(200));
    }
    assert_eq!(request(&mut stage.connect()), Some(503));
    for client in &mut held {
        assert_eq!(request(client), Some(200));
    }
    let counts = stage.counts();
    assert_eq!(
        (&counts["refused"], &counts["open"]),
        (&1.into(), &2.into())
    );
    stage.place.stop_well();
}

/// A service that somebody else starts, in a group that is not Forebay's.
struct Foreign {
    child: Child,
    group: Vec<PathBuf>,
    port: u16,
}

impl Foreign {
    fn start(group: &[PathBuf], port: u16) -> Self {
        let child = Command::new(EXE.as_str())
            .args([
                "workload",
                "service",
                "--iterations",
                "1",
                "--port",
                &port.to_string(),
            ])
            .spawn()
            .unwrap();
        for dir in group {
            std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        Self {
            child,
            group: group.to_vec(),
            port,
        }
    }

    fn again(&mut self) {
        self.child.wait().unwrap();
        *self = Self::start(&self.group.clone(), self.port);
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn instances_in_groups_of_others_are_fenced_and_replaced() {
    let name = "instances_in_groups_of_others_are_fenced_and_replaced";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    let [port, a, b] = [(); 3].map(|()| free_port());
    let mut groups = Vec::new();
    for app in ["a", "b"] {
        let group = place.make_group(app);
        place.make_unified(&group);
        groups.push(group);
    }
    place.configure(&format!(
        "[apps.a]\nclass = \"critical\"\ncgroup = \"{}\"\n[apps.b]\nclass = \"critical\"\n\
         cgroup = \"{}\"\n[fronts.web]\nmode = \"tcp\"\nlisten = [\"127.0.0.1:{port}\"]\n\
         instances = {{ a = \"127.0.0.1:{a}\", b = \"127.0.0.1:{b}\" }}\n",
        groups[0], groups[1]
    ));
    let dirs = |group: &str| -> Vec<PathBuf> {
        let made = place.made().iter();
        made.filter(|dir| dir.ends_with(group)).cloned().collect()
    };
    let mut first = Foreign::start(&dirs(&groups[0]), a);
    let second = Foreign::start(&dirs(&groups[1]), b);
    place.start();
    let mut stage = Stage { place, port };
    stage.await_ready("a");
    let mut client = stage.connect();
    assert_eq!(request(&mut client), Some(200));
    stop(first.child.id());
    assert_eq!(
        request(&mut client),
        None,
        "what was passed on is not sent again"
    );
    assert_eq!(request(&mut stage.connect()), Some(200));
    eventually("the old primary is gone", || !is_running(first.child.id()));
    // Whoever started it starts it again, and it stands by.
    first.again();
    stage.await_ready("b");
    drop((first, second));
    stage.place.stop_well();
}
