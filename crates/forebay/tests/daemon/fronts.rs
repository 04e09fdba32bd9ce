//! Fronts: what their clients see when a primary is killed, stopped or asked to make room.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::place::{EXE, PATIENCE, Place, eventually, is_running, signal, text};

/// A front named `web` before two services, `a` and `b`.
pub(crate) struct Stage {
    pub(crate) place: Place,
    pub(crate) port: u16,
}

/// A port that nobody has, and that was not given away before.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // The kernel may give one twice that was let go.
        if GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}

impl Stage {
    fn new(test: &str, keys: &str) -> Option<Self> {
        Self::of_mode(test, "tcp", keys)
    }

    pub(crate) fn of_mode(test: &str, mode: &str, keys: &str) -> Option<Self> {
        let mut place = Place::new(test)?;
        let [port, a, b] = [(); 3].map(|()| free_port());
        let service = |name: &str, port: u16| {
            format!(
                "[apps.{name}]\nclass = \"critical\"\nrestart = \"always\"\nexec = [\"{}\", \
                 \"workload\", \"service\", \"--port\", \"{port}\", \"--iterations\", \"1\"]\n",
                *EXE
            )
        };
        place.configure(&format!(
            "{}{}[fronts.web]\nmode = \"{mode}\"\nlisten = [\"127.0.0.1:{port}\"]\n\
             instances = {{ a = \"127.0.0.1:{a}\", b = \"127.0.0.1:{b}\" }}\n{keys}\n",
            service("a", a),
            service("b", b),
        ));
        place.start();
        let stage = Self { place, port };
        stage.await_ready("a");
        Some(stage)
    }

    pub(crate) fn front(&self) -> Value {
        self.place.json(&["shadow", "status", "web"])
    }

    /// Waits until this one serves and the other one stands by.
    #[track_caller]
    pub(crate) fn await_ready(&self, primary: &str) {
        let standby = if primary == "a" { "b" } else { "a" };
        eventually(&format!("{primary} serves and {standby} stands by"), || {
            let front = self.front();
            let fenced = front["instances"].as_array().is_some_and(|instances| {
                instances.iter().all(|instance| instance["fence"] == true)
            });
            front["stage"] == "warm"
                && front["primary"] == primary
                && front["standby"] == standby
                && fenced
        });
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn changes(&self) -> Vec<String> {
        let front = self.front();
        let changes = front["changes"].as_array().unwrap().iter();
        changes
            .map(|change| change.as_str().unwrap().to_owned())
            .collect()
    }
}

/// Kills a process and waits until it is gone: until then its socket may take a connection, which
/// goes with it.
pub(crate) fn kill(pid: u32) {
    signal(pid, Signal::KILL);
    eventually("a killed process is gone", || !is_running(pid));
}

/// Stops a process and waits until it stands.
pub(crate) fn stop(pid: u32) {
    signal(pid, Signal::STOP);
    eventually("a stopped process stands", || {
        let stat = text(format!("/proc/{pid}/stat").as_ref());
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    });
}

/// Sends a request and gives the status of the answer; none when the connection ended before one.
pub(crate) fn request(stream: &mut (impl Read + Write)) -> Option<u16> {
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .ok()?;
    answer(stream)
}

pub(crate) fn answer(stream: &mut impl Read) -> Option<u16> {
    let mut text = String::new();
    while !text.contains("\r\n\r\n") {
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer) {
            Ok(0) => return None,
            Ok(length) => text.push_str(&String::from_utf8_lossy(&buffer[..length])),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("{error}: {text}"),
        }
    }
    text.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn a_killed_primary_is_replaced_and_comes_back_as_the_shadow() {
    let name = "a_killed_primary_is_replaced_and_comes_back_as_the_shadow";
    let Some(mut stage) = Stage::new(name, "") else {
        return;
    };
    let first = stage.place.await_pid("a");
    assert_eq!(request(&mut stage.connect()), Some(200));
    kill(first);
    // A new connection waits for whoever serves next.
    assert_eq!(request(&mut stage.connect()), Some(200));
    stage.await_ready("b");
    assert_ne!(stage.place.await_pid("a"), first, "it was started again");
    let changes = stage.changes();
    let last = changes.last().unwrap();
    assert!(last.contains("a to b (death: its process ended)"), "{last}");
    let told = stage.place.await_event("web.front", "shadow");
    assert!(told.contains("epoch"), "{told}");
    // And back.
    kill(stage.place.await_pid("b"));
    assert_eq!(request(&mut stage.connect()), Some(200));
    stage.await_ready("a");
    stage.place.stop_well();
}

#[test]
fn a_stopped_primary_is_replaced_and_never_goes_on() {
    let name = "a_stopped_primary_is_replaced_and_never_goes_on";
    let Some(mut stage) = Stage::new(name, "") else {
        return;
    };
    let first = stage.place.await_pid("a");
    let mut client = stage.connect();
    assert_eq!(request(&mut client), Some(200));
    stop(first);
    // What was passed on is not sent again: the connection ends.
    assert_eq!(request(&mut client), None);
    // Whatever is done to it now, it stands until it is dead.
    signal(first, Signal::CONT);
    assert_eq!(request(&mut stage.connect()), Some(200));
    eventually("the old primary is gone", || !is_running(first));
    stage.await_ready("b");
    let counts = &stage.front()["counts"];
    assert_eq!(counts["unknown"], 1, "{counts}");
    assert_eq!(counts["failed"], 0, "{counts}");
    // Its group is let go, or the next one could not be started in it.
    assert_ne!(stage.place.await_pid("a"), first);
    stage.place.stop_well();
}

#[test]
fn a_hand_over_disturbs_nobody() {
    let Some(mut stage) = Stage::new("a_hand_over_disturbs_nobody", "") else {
        return;
    };
    let mut before = stage.connect();
    assert_eq!(request(&mut before), Some(200));
    before.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();
    let done = stage.place.json(&["shadow", "handover", "web"]);
    assert_eq!((&done["from"], &done["to"]), (&"a".into(), &"b".into()));
    let mut after = stage.connect();
    assert_eq!(request(&mut after), Some(200));
    before.write_all(b"st: x\r\n\r\n").unwrap();
    assert_eq!(
        answer(&mut before),
        Some(200),
        "an established connection goes on"
    );
    let counts = &stage.front()["counts"];
    assert_eq!(
        (&counts["failed"], &counts["unknown"]),
        (&0.into(), &0.into())
    );
    stage.await_ready("b");
    assert_eq!(stage.place.json(&["shadow", "handover", "web"])["to"], "a");
    stage.await_ready("a");
    stage.place.stop_well();
}

#[test]
fn a_shadow_is_detached_attached_and_promoted_by_hand() {
    let name = "a_shadow_is_detached_attached_and_promoted_by_hand";
    let Some(mut stage) = Stage::new(name, "") else {
        return;
    };
    let ask = |words: &[&str]| stage.place.json(&[&["shadow"], words].concat());
    ask(&["detach", "web", "b"]);
    assert_eq!(stage.front()["standby"], Value::Null);
    let busy = ["no shadow can take over"];
    stage.place.fails(&["shadow", "promote", "web"], 1, &busy);
    stage
        .place
        .fails(&["shadow", "detach", "web", "a"], 1, &["a is the primary"]);
    stage
        .place
        .fails(&["shadow", "resync", "web", "c"], 1, &["`c`", "a, b"]);
    ask(&["attach", "web", "b"]);
    ask(&["resync", "web", "b"]);
    stage.await_ready("a");
    let first = stage.place.await_pid("a");
    let done = ask(&["promote", "web"]);
    assert_eq!((&done["from"], &done["to"]), (&"a".into(), &"b".into()));
    eventually("the old primary is ended", || !is_running(first));
    assert_eq!(request(&mut stage.connect()), Some(200));
    stage.await_ready("b");
    stage.place.stop_well();
}

#[test]
fn a_front_outlives_its_daemon_and_fails_over_without_it() {
    let name = "a_front_outlives_its_daemon_and_fails_over_without_it";
    let Some(mut stage) = Stage::new(name, "") else {
        return;
    };
    let front = stage.place.await_pid("web.front");
    let first = stage.place.await_pid("a");
    let mut client = stage.connect();
    assert_eq!(request(&mut client), Some(200));
    stage.place.crash();
    assert_eq!(request(&mut client), Some(200), "no connection is dropped");
    stop(first);
    assert_eq!(request(&mut client), None);
    assert_eq!(
        request(&mut stage.connect()),
        Some(200),
        "nobody but the front could do that"
    );
    stage.place.start();
    assert_eq!(
        stage.place.await_pid("web.front"),
        front,
        "it is the same process"
    );
    stage.await_ready("b");
    stage.place.stop_well();
}

#[test]
fn a_shadow_is_small_until_it_serves() {
    let Some(mut stage) = Stage::new("a_shadow_is_small_until_it_serves", "") else {
        return;
    };
    let class = |app: &str, class: &str| {
        stage
            .place
            .await_app(app, class, |app| app["class"] == class);
    };
    class("a", "critical");
    class("b", "standard");
    kill(stage.place.await_pid("a"));
    class("b", "critical");
    class("a", "standard");
    stage.place.stop_well();
}

#[test]
fn a_front_has_no_rights() {
    let Some(mut stage) = Stage::new("a_front_has_no_rights", "") else {
        return;
    };
    let pid = stage.place.await_pid("web.front");
    let status = text(format!("/proc/{pid}/status").as_ref());
    let line = |key: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("Uid:"), "65534 65534 65534 65534");
    assert_eq!(line("CapEff:"), "0000000000000000");
    assert_eq!(line("CapPrm:"), "0000000000000000");
    assert_eq!(line("NoNewPrivs:"), "1");
    stage.place.stop_well();
}

#[test]
fn more_connections_than_there_may_be_are_refused_and_others_undisturbed() {
    let name = "more_connections_than_there_may_be_are_refused_and_others_undisturbed";
    let Some(mut stage) = Stage::new(name, "connections_max = 3\n") else {
        return;
    };
    let mut held: Vec<TcpStream> = (0..3).map(|_| stage.connect()).collect();
    for client in &mut held {
        assert_eq!(request(client), Some(200));
    }
    assert_eq!(request(&mut stage.connect()), None);
    for client in &mut held {
        assert_eq!(request(client), Some(200));
    }
    assert_eq!(stage.front()["counts"]["refused"], 1);
    held.pop();
    eventually("there is room again", || {
        request(&mut stage.connect()) == Some(200)
    });
    stage.place.stop_well();
}

#[test]
fn nobody_serves_for_longer_than_a_request_may_wait() {
    let name = "nobody_serves_for_longer_than_a_request_may_wait";
    let Some(mut stage) = Stage::new(name, "patience = \"100ms\"\n") else {
        return;
    };
    // Programs that Forebay is not to act on are not started again.
    stage.place.json(&["pause"]);
    for app in ["a", "b"] {
        signal(stage.place.await_pid(app), Signal::KILL);
    }
    eventually("nobody can serve", || stage.front()["stage"] == "down");
    assert_eq!(request(&mut stage.connect()), None);
    assert!(stage.front()["counts"]["failed"].as_u64() > Some(0));
    stage
        .place
        .fails(&["shadow", "handover", "web"], 1, &["front web", "busy"]);
    stage.place.json(&["resume"]);
    eventually("somebody serves again", || {
        request(&mut stage.connect()) == Some(200)
    });
    stage.place.stop_well();
}

#[test]
fn a_front_that_does_not_exist_is_named() {
    let Some(mut stage) = Stage::new("a_front_that_does_not_exist_is_named", "") else {
        return;
    };
    stage
        .place
        .fails(&["shadow", "status", "wen"], 2, &["`wen`", "web"]);
    stage
        .place
        .fails(&["shadow", "handover", "wen"], 5, &["`wen`", "web"]);
    stage
        .place
        .fails(&["shadow", "handover"], 2, &["name the front"]);
    let listed = stage.place.ask(&["shadow"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("web") && listed.contains("warm"),
        "{listed}"
    );
    stage.place.stop_well();
}

#[test]
fn who_wants_nothing_waits_for_nothing() {
    // A stopped primary that nobody asks anything is left alone: somebody may be debugging it.
    let Some(mut stage) = Stage::new("who_wants_nothing_waits_for_nothing", "") else {
        return;
    };
    let first = stage.place.await_pid("a");
    stop(first);
    let before = stage.changes().len();
    // Longer than it takes to be found out when somebody waits.
    let mut idle = stage.connect();
    idle.set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let silence = idle.read(&mut [0; 1]).unwrap_err();
    assert_eq!(silence.kind(), ErrorKind::WouldBlock);
    assert_eq!(stage.changes().len(), before);
    signal(first, Signal::CONT);
    assert_eq!(request(&mut stage.connect()), Some(200));
    assert_eq!(stage.place.await_pid("a"), first);
    stage.place.stop_well();
}

#[test]
fn a_reload_leaves_fronts_as_they_began() {
    let Some(mut stage) = Stage::new("a_reload_leaves_fronts_as_they_began", "") else {
        return;
    };
    let front = stage.place.await_pid("web.front");
    let file = stage.place.path("forebay.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let (apps, _) = text.split_once("[fronts.web]").unwrap();
    let other = format!(
        "{apps}[fronts.other]\nmode = \"tcp\"\nlisten = [\"127.0.0.1:{}\"]\n\
         instances = {{ a = \"127.0.0.1:1\", b = \"127.0.0.1:2\" }}\n",
        free_port()
    );
    std::fs::write(&file, other).unwrap();
    let done = stage.place.json(&["reload"]);
    let done = done.to_string();
    for said in ["front other is new", "front web is no longer configured"] {
        assert!(done.contains(said), "{done}");
    }
    assert_eq!(stage.place.await_pid("web.front"), front);
    assert_eq!(stage.place.app("other.front"), Value::Null);
    assert_eq!(request(&mut stage.connect()), Some(200));
    // What follows a change of the file is that which begins with it.
    std::fs::write(&file, text).unwrap();
    stage.place.stop_well();
}
