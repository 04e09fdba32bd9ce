//! Hosts that are left, and services that are handed over to other hosts: daemons of their own on one
//! machine, a real etcd, and real programs with clients.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::etcd::Etcd;
use crate::fronts::{free_port, kill, request};
use crate::place::{EXE, PATIENCE, Place, eventually, processes, signal};

/// Hosts of one fleet.
pub(crate) struct Hosts {
    hosts: Vec<(&'static str, Place)>,
    links: Vec<u16>,
    etcd: Etcd,
}

impl Hosts {
    pub(crate) fn new(test: &str, names: &[&'static str]) -> Option<Self> {
        let mut hosts = Vec::new();
        for name in names {
            hosts.push((*name, Place::new(test)?));
        }
        let links = names.iter().map(|_| free_port()).collect();
        let etcd = Etcd::start(test)?;
        let fleet = Self { hosts, links, etcd };
        let (first, holder) = &fleet.hosts[0];
        let own = holder.path("state").join("fleet");
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        let run = |arguments: &[&str]| {
            let mut command = Command::new(EXE.as_str());
            command.arg("fleet").args(arguments).arg("--dir").arg(&own);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        };
        run(&["ca", "init", "--fleet", "t", "--host", first]);
        for (name, place) in &fleet.hosts[1..] {
            let out = place.path("state").join("fleet");
            fs::create_dir_all(out.parent().unwrap()).unwrap();
            run(&["ca", "issue", name, "--out", out.to_str().unwrap()]);
        }
        Some(fleet)
    }

    pub(crate) fn start(&mut self, name: &str, apps: &str) {
        let index = self
            .hosts
            .iter()
            .position(|(host, _)| *host == name)
            .unwrap();
        let (endpoint, link) = (self.etcd.endpoint(), self.links[index]);
        let (_, place) = &mut self.hosts[index];
        place.configure(&format!(
            "[policy]\non_stop = \"kill\"\n[fleet]\nhost = \"{name}\"\nlease = \"5s\"\n[fleet.etcd]\n\
             endpoints = [\"{endpoint}\"]\n[fleet.link]\nlisten = \"127.0.0.1:{link}\"\n{apps}"
        ));
        place.start();
    }

    fn restart_with(&mut self, name: &str, apps: &str) {
        let index = self
            .hosts
            .iter()
            .position(|(host, _)| *host == name)
            .unwrap();
        self.hosts[index].1.stop_well();
        self.start(name, apps);
    }

    pub(crate) fn restart(&mut self, name: &str) {
        let index = self
            .hosts
            .iter()
            .position(|(host, _)| *host == name)
            .unwrap();
        self.hosts[index].1.crash();
        self.hosts[index].1.start();
    }

    pub(crate) fn place(&self, name: &str) -> &Place {
        let found = self.hosts.iter().find(|(host, _)| *host == name);
        &found.unwrap().1
    }

    pub(crate) fn place_mut(&mut self, name: &str) -> &mut Place {
        let found = self.hosts.iter_mut().find(|(host, _)| *host == name);
        &mut found.unwrap().1
    }

    /// What a host owns.
    pub(crate) fn owns(&self, name: &str) -> Vec<String> {
        let owns = fleet(self.place(name), &["status"])["owns"].clone();
        serde_json::from_value(owns).unwrap()
    }

    pub(crate) fn await_members(&self) {
        eventually("all are members", || {
            let hosts = |(_, place): &(&str, Place)| fleet(place, &["hosts"])["hosts"].clone();
            let all = |hosts: Value| hosts.as_array().unwrap().len() == self.hosts.len();
            self.hosts.iter().map(hosts).all(all)
        });
    }
}

fn fleet_ends(place: &Place, arguments: &[&str]) -> (i32, Value) {
    let mut command = Command::new(EXE.as_str());
    command
        .arg("fleet")
        .args(arguments)
        .args(["--json", "--socket"]);
    let output = command.arg(place.path("socket")).output().unwrap();
    let said = serde_json::from_slice(&output.stdout);
    let said = said.unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"));
    (output.status.code().unwrap(), said)
}

pub(crate) fn fleet(place: &Place, arguments: &[&str]) -> Value {
    let (code, said) = fleet_ends(place, arguments);
    assert_eq!(code, 0, "{arguments:?}: {said}");
    said
}

/// Where the apps of a drained host stand, by name.
fn states(drain: &Value) -> Vec<(String, String)> {
    let text = |one: &Value, key: &str| one[key].as_str().unwrap().to_owned();
    let apps = drain["apps"].as_array().unwrap().iter();
    apps.map(|one| (text(one, "app"), text(one, "state")))
        .collect()
}

#[test]
fn a_drained_host_is_left_by_all_that_can_move_and_says_what_stays() {
    let test = "a_drained_host_is_left_by_all_that_can_move_and_says_what_stays";
    let Some(mut hosts) = Hosts::new(test, &["a", "b", "c"]) else {
        return;
    };
    let seconds = |n: u32| hosts.place("a").seconds(n);
    let movable = |name: &str, n: u32| {
        format!(
            "[apps.{name}]\nrestart = \"always\"\nexec = [\"/bin/sleep\", \"{}\"]\nmove = {{ mode = \"restart\" }}\n",
            seconds(n)
        )
    };
    let both = movable("one", 1) + &movable("two", 2);
    // Only here: nobody else takes it.
    let lonely = movable("lonely", 3);
    let pinned = format!("[apps.tied]\nexec = [\"/bin/sleep\", \"{}\"]\n", seconds(4));
    let sleepers = [1, 2, 3].map(seconds);
    let count =
        || processes(|words| words.last().is_some_and(|last| sleepers.contains(last))).len();
    hosts.start("a", &(both.clone() + &lonely + &pinned));
    eventually("it has all", || hosts.owns("a").len() == 3);
    hosts.start("b", &both);
    hosts.start("c", &both);
    hosts.await_members();
    let a = hosts.place("a");
    let (code, drained) = fleet_ends(a, &["drain"]);
    println!("{drained}");
    assert_eq!(code, 1, "one that can move did not: {drained}");
    let place = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    let expected = [
        place("lonely", "stays"),
        place("one", "left"),
        place("two", "left"),
        place("tied", "stays"),
    ];
    assert_eq!(states(&drained), expected);
    let why = |name: &str| {
        let apps = drained["apps"].as_array().unwrap();
        let app = apps.iter().find(|one| one["app"] == name).unwrap();
        app["why"].as_str().unwrap().to_owned()
    };
    assert!(why("tied").contains("pinned"), "{}", why("tied"));
    assert!(
        why("lonely").contains("write the same [apps.lonely] on it"),
        "{}",
        why("lonely")
    );
    assert_eq!(hosts.owns("a"), ["lonely"]);
    eventually("each runs once", || count() == 3);
    let others = [hosts.owns("b"), hosts.owns("c")].concat().len();
    assert_eq!(others, 2);
    // Nothing goes there any more, and nobody ends it by starting a daemon.
    let from = if hosts.owns("b").is_empty() { "c" } else { "b" };
    let app = hosts.owns(from)[0].clone();
    let place = hosts.place(from);
    place.fails(
        &["move", &app, "--to", "a"],
        1,
        &["a is cordoned", "uncordon"],
    );
    hosts.restart("a");
    let a = hosts.place("a");
    // It hears from the coordinator that it is cordoned.
    eventually("it is drained still", || {
        fleet(a, &["drain", "--show"])["draining"] == true
    });
    // Somebody may want it back.
    fleet(a, &["uncordon", "a"]);
    eventually("it takes applications again", || {
        let asked = hosts
            .place(from)
            .ask(&["move", &app, "--to", "a", "--dry-run"]);
        asked.status.success()
    });
    eventually("it is not drained any more", || {
        fleet(hosts.place("a"), &["drain", "--show"])["draining"] == false
    });
    let moved = hosts.place(from).json(&["move", &app, "--to", "a"]);
    assert_eq!(moved["stage"], "moved", "{moved}");
    // Another host asks for it.
    let told = fleet(hosts.place("b"), &["drain", "a"]);
    assert!(told.to_string().contains(&app), "{told}");
    eventually("it left again", || hosts.owns("a") == ["lonely"]);
    eventually("each runs once", || count() == 3);
}

#[test]
fn a_move_that_cannot_be_is_refused_before_the_app_is_touched() {
    let test = "a_move_that_cannot_be_is_refused_before_the_app_is_touched";
    let Some(mut hosts) = Hosts::new(test, &["a", "b", "c"]) else {
        return;
    };
    // One host of the same name has its certificate from another fleet.
    let other = hosts.place("c").path("other");
    fs::remove_dir_all(hosts.place("c").path("state/fleet")).unwrap();
    for arguments in [
        vec!["ca", "init", "--fleet", "u", "--host", "x"],
        vec!["ca", "issue", "c", "--out", "OUT"],
    ] {
        let out = hosts.place("c").path("state/fleet");
        let mut command = Command::new(EXE.as_str());
        command.arg("fleet");
        for word in arguments {
            match word {
                "OUT" => command.arg(&out),
                word => command.arg(word),
            };
        }
        let output = command.arg("--dir").arg(&other).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let seconds = |n: u32| hosts.place("a").seconds(n);
    let app = |n: u32, more: &str| {
        format!(
            "[apps.one]\nrestart = \"always\"\nexec = [\"/bin/sleep\", \"{}\"{more}]\n\
             move = {{ mode = \"restart\" }}\n",
            seconds(n)
        )
    };
    let (same, another) = (app(1, ""), app(1, ", \"1\""));
    let tied = format!("[apps.tied]\nexec = [\"/bin/sleep\", \"{}\"]\n", seconds(2));
    hosts.start("a", &(same.clone() + &tied));
    eventually("it has it", || hosts.owns("a") == ["one"]);
    hosts.start("b", &another);
    hosts.start("c", &same);
    hosts.await_members();
    let a = hosts.place("a");
    let pid = a.await_pid("one");
    a.fails(
        &["move", "one", "--to", "z"],
        1,
        &["z is no member", "a, b, c"],
    );
    a.fails(&["move", "one", "--to", "-"], 1, &["is not a host name"]);
    a.fails(&["move", "none", "--to", "b"], 5, &["none"]);
    a.fails(
        &["move", "tied", "--to", "b"],
        1,
        &["pinned", "mode = \"restart\""],
    );
    a.fails(
        &["move", "one", "--to", "b"],
        1,
        &["another `exec`", "[apps.one] on all hosts"],
    );
    // A member whose agent does not answer.
    let silent = hosts.place("b").daemon_pid();
    signal(silent, Signal::STOP);
    let words = ["b at 127.0.0.1", "took longer than", "try again"];
    a.fails(&["move", "one", "--to", "b"], 1, &words);
    signal(silent, Signal::CONT);
    a.fails(
        &["move", "one", "--to", "c"],
        1,
        &["fleet", "`forebay fleet join`"],
    );
    a.fails(
        &["move", "one", "--to", "c", "--dry-run"],
        1,
        &["`forebay fleet join`"],
    );
    let asked = a.ask(&["move", "one", "--detach"]);
    assert_eq!(
        asked.status.code(),
        Some(2),
        "nobody said where to: {asked:?}"
    );
    assert_eq!(a.await_pid("one"), pid, "it was not touched");
    assert_eq!(hosts.owns("a"), ["one"]);
    // What its target says is looked at before anything else, and mended there.
    hosts.restart_with("b", &same);
    let moved = hosts
        .place("a")
        .json(&["move", "one", "--to", "b", "--detach"]);
    assert!(
        moved["messages"][0]
            .as_str()
            .unwrap()
            .contains("one moves to b"),
        "{moved}"
    );
    eventually("it moved", || {
        hosts.place("a").json(&["move", "one"])["stage"] == "moved"
    });
    eventually("it has it", || hosts.owns("b") == ["one"]);
}

/// One host's part of a service that two run: a front is on `front`, if any.
fn service(own: &str, front: Option<String>) -> String {
    format!(
        "[apps.shop]\nclass = \"critical\"\nrestart = \"always\"\nexec = [{own}]\nmove = {{ mode = \"handoff\" }}\n{}",
        front.unwrap_or_default()
    )
}

/// The front on the host `a`.
fn front(mode: &str, port: u16, [a, b]: [u16; 2]) -> String {
    format!(
        "[fronts.web]\nmode = \"{mode}\"\nlisten = [\"127.0.0.1:{port}\"]\n\
         instances = {{ shop = \"127.0.0.1:{a}\", shop-b = \"127.0.0.1:{b}\" }}\nelsewhere = {{ shop-b = \"b\" }}\n"
    )
}

/// The longest that a client may wait during a hand-over, beside whatever else tests do; `FOREBAY_TEST_GAP_MS=50` is
/// what is promised of the optimised program with nothing beside.
const GAP_MAX: Duration = Duration::from_secs(3);

/// What a client does on its connection.
pub(crate) type Ask = fn(&mut TcpStream);

/// Clients that ask one after the other, each on one connection for all the time.
pub(crate) struct Load {
    ends: Arc<AtomicBool>,
    /// How long the longest request took since that was taken last, in microseconds.
    longest: Arc<AtomicU64>,
    gaps: Vec<Duration>,
    threads: Vec<JoinHandle<Vec<Duration>>>,
}

impl Load {
    pub(crate) fn start(port: u16, clients: usize, (open, ask): (Ask, Ask)) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let longest = Arc::new(AtomicU64::new(0));
        let client = move |ends: Arc<AtomicBool>, longest: Arc<AtomicU64>| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_nodelay(true).unwrap();
            open(&mut stream);
            let mut took = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                let began = Instant::now();
                ask(&mut stream);
                let time = began.elapsed();
                let micros = u64::try_from(time.as_micros()).unwrap();
                longest.fetch_max(micros, Ordering::Relaxed);
                took.push(time);
            }
            took
        };
        let threads = (0..clients).map(|_| {
            let (ends, longest) = (Arc::clone(&ends), Arc::clone(&longest));
            std::thread::spawn(move || client(ends, longest))
        });
        Self {
            threads: threads.collect(),
            gaps: Vec::new(),
            longest,
            ends,
        }
    }

    /// Forgets what was before a hand-over.
    pub(crate) fn begin(&self) {
        self.longest.store(0, Ordering::Relaxed);
    }

    /// A hand-over is over: the longest that a client waited since it was asked for.
    pub(crate) fn note(&mut self) {
        let micros = self.longest.swap(0, Ordering::Relaxed);
        self.gaps.push(Duration::from_micros(micros));
    }

    /// Ends it, and says what it saw: a client panics at the first request that failed.
    pub(crate) fn end(self, what: &str) {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(|one| one.join().unwrap());
        let mut took: Vec<Duration> = ended.flatten().collect();
        took.sort_unstable();
        let p99 = took[took.len() * 99 / 100];
        println!(
            "{what}: {} requests on 4 connections, 0 failed; p50 {:.1?}, p99 {p99:.1?}, longest {:.1?}; \
             longest during each hand-over {:.1?}",
            took.len(),
            took[took.len() / 2],
            took[took.len() - 1],
            self.gaps,
        );
        let asked = std::env::var("FOREBAY_TEST_GAP_MS").ok();
        let most = asked.map_or(GAP_MAX, |ms| Duration::from_millis(ms.parse().unwrap()));
        assert!(!self.gaps.is_empty());
        for gap in &self.gaps {
            assert!(*gap <= most, "{gap:?} of {:?}", self.gaps);
        }
    }
}

fn get(stream: &mut TcpStream) {
    assert_eq!(request(stream), Some(200));
}

fn set_and_get(stream: &mut TcpStream) {
    let mut line = |command: &str, expected: &str| {
        write!(stream, "{command}\r\n").unwrap();
        let mut said = String::new();
        BufReader::with_capacity(1, &*stream)
            .read_line(&mut said)
            .unwrap();
        assert_eq!(said.trim_end(), expected, "{command}");
    };
    line("SET k v", "+OK");
    line("STRLEN k", ":1");
}

/// Who serves, as the front and the record say.
pub(crate) fn await_served(hosts: &Hosts, by: &str) {
    let instance = if by == "a" { "shop" } else { "shop-b" };
    eventually("the front says so, and the other one is in step", || {
        let front = hosts.place("a").json(&["shadow", "status", "web"]);
        front["primary"] == instance && front["standby"].is_string() && front["stage"] == "warm"
    });
    eventually("the record says so, and one host owns it", || {
        let owns = |host: &str| hosts.owns(host).contains(&"shop".to_owned());
        owns(by) && !owns(if by == "a" { "b" } else { "a" })
    });
}

fn moves_there_and_back(test: &str, mode: &str, exec: fn(&Place, u16) -> String, ask: Ask) {
    let Some(mut hosts) = Hosts::new(test, &["a", "b"]) else {
        return;
    };
    let [port, a, b] = [(); 3].map(|()| free_port());
    hosts.start(
        "a",
        &service(&exec(hosts.place("a"), a), Some(front(mode, port, [a, b]))),
    );
    // There is no instance that could take over.
    eventually("it is served", || {
        hosts.place("a").json(&["shadow", "status", "web"])["primary"] == "shop"
            && hosts.owns("a") == ["shop"]
    });
    let place = hosts.place("a");
    place.fails(
        &["move", "shop", "--to", "b"],
        1,
        &["cannot be handed over to b", "not in step"],
    );
    place.fails(
        &["move", "shop", "--to", "z"],
        1,
        &["has no instance there", "some on: b"],
    );
    hosts.start("b", &service(&exec(hosts.place("b"), b), None));
    hosts.await_members();
    await_served(&hosts, "a");
    let pid = hosts.place("a").await_pid("shop");
    let mut load = Load::start(port, 4, (|_| (), ask));
    for _ in 0..3 {
        load.begin();
        let moved = hosts.place("a").json(&["move", "shop", "--to", "b"]);
        assert_eq!(
            (&moved["stage"], &moved["mode"]),
            (&"moved".into(), &"handoff".into()),
            "{moved}"
        );
        load.note();
        await_served(&hosts, "b");
        hosts
            .place("a")
            .fails(&["move", "shop", "--to", "b"], 1, &["is at b"]);
        // Its front is on the other host.
        load.begin();
        let moved = hosts.place("b").json(&["move", "shop", "--to", "a"]);
        assert_eq!(moved["stage"], "moved", "{moved}");
        load.note();
        await_served(&hosts, "a");
    }
    load.begin();
    let (code, drained) = fleet_ends(hosts.place("a"), &["drain"]);
    assert_eq!(code, 0, "{drained}");
    load.note();
    let first = states(&drained).into_iter().next();
    assert_eq!(
        first,
        Some(("shop".to_owned(), "left".to_owned())),
        "{drained}"
    );
    await_served(&hosts, "b");
    assert_eq!(hosts.place("a").await_pid("shop"), pid, "it stands by");
    load.end(test);
    // By hand, and by the front itself: the record follows.
    assert_eq!(
        hosts.place("a").json(&["shadow", "handover", "web"])["to"],
        "shop"
    );
    await_served(&hosts, "a");
    kill(pid);
    eventually("the record follows the front", || {
        hosts.owns("b") == ["shop"]
    });
    await_served(&hosts, "b");
}

#[test]
fn a_service_is_handed_over_by_a_move_and_no_request_fails() {
    let exec = |_: &Place, port: u16| {
        format!(
            "\"{}\", \"workload\", \"service\", \"--port\", \"{port}\", \"--iterations\", \"1\"",
            *EXE
        )
    };
    moves_there_and_back(
        "a_service_is_handed_over_by_a_move_and_no_request_fails",
        "http",
        exec,
        get,
    );
}

#[test]
fn a_redis_is_handed_over_by_a_move_and_no_request_fails() {
    let test = "a_redis_is_handed_over_by_a_move_and_no_request_fails";
    if Command::new("redis-server")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("SKIPPED: {test}: there is no redis-server");
        return;
    }
    let exec = |place: &Place, port: u16| {
        format!(
            "\"/usr/bin/redis-server\", \"--port\", \"{port}\", \"--save\", \"\", \"--bind\", \"127.0.0.1\", \
             \"--dir\", \"{}\"",
            place.path("").display()
        )
    };
    moves_there_and_back(test, "redis", exec, set_and_get);
}
