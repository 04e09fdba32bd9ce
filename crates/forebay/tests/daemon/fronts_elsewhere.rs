//! Instances that another host runs: they are handed over to and from, and no one is replaced there
//! who has a state of its own and cannot be seen to stand.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fronts::{free_port, kill, request};
use crate::place::{EXE, PATIENCE, Place, eventually};

/// A process of another host: nothing that Forebay starts, sees or stops.
struct Other(Child);

impl Other {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A host at the other end of a link: a network namespace.
pub(crate) struct Far {
    pub(crate) name: String,
    link: String,
    pub(crate) here: String,
    there: String,
}

impl Far {
    pub(crate) fn new(test: &str) -> Option<Self> {
        if Command::new("ip").arg("-V").output().is_err() {
            println!("SKIPPED: {test}: no ip(8); install iproute2");
            return None;
        }
        let id = std::process::id();
        let net = format!("10.98.{}.{}", id / 63 % 256, id % 63 * 4);
        let (front, last) = net.rsplit_once('.').unwrap();
        let last: u32 = last.parse().unwrap();
        let far = Self {
            name: format!("fbe-{id}"),
            link: format!("fbe{id}"),
            here: format!("{front}.{}", last + 1),
            there: format!("{front}.{}", last + 2),
        };
        let (name, link) = (&far.name, &far.link);
        ip(&format!("netns add {name}"));
        ip(&format!(
            "link add {link} type veth peer name far netns {name}"
        ));
        ip(&format!("address add {}/30 dev {link}", far.here));
        ip(&format!("link set {link} up"));
        ip(&format!("-n {name} address add {}/30 dev far", far.there));
        ip(&format!("-n {name} link set far up"));
        Some(far)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    fn cut(&self) {
        ip(&format!("link set {} down", self.link));
    }

    fn mend(&self) {
        ip(&format!("link set {} up", self.link));
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // The pair of links goes with the namespace.
        ip(&format!("netns delete {}", self.name));
    }
}

#[track_caller]
fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {line}: {error}");
}

fn service(port: u16) -> Command {
    let mut command = Command::new(&*EXE);
    command.args(["workload", "service", "--iterations", "1", "--port"]);
    command.arg(port.to_string());
    command
}

/// Clients that ask one after the other, each on a connection of its own, and what became of that.
struct Load {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(u32, Duration)>>,
}

impl Load {
    fn start(port: u16, clients: usize) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let client = move |ends: Arc<AtomicBool>| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let (mut count, mut longest) = (0, Duration::ZERO);
            while !ends.load(Ordering::Relaxed) {
                let began = Instant::now();
                assert_eq!(request(&mut stream), Some(200));
                longest = longest.max(began.elapsed());
                count += 1;
            }
            (count, longest)
        };
        let threads = (0..clients).map(|_| {
            let ends = Arc::clone(&ends);
            std::thread::spawn(move || client(ends))
        });
        Self {
            threads: threads.collect(),
            ends,
        }
    }

    /// Requests, all of which were answered well on their connections, and the longest that one took.
    fn end(self) -> (u32, Duration) {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().map(|one| one.join().unwrap());
        ended.fold((0, Duration::ZERO), |(all, longest), (count, gap)| {
            (all + count, longest.max(gap))
        })
    }
}

fn await_front(place: &Place, what: &str, holds: impl Fn(&Value) -> bool) {
    eventually(what, || holds(&place.json(&["shadow", "status", "web"])));
}

#[test]
fn a_service_moves_to_another_host_and_back_and_no_request_fails() {
    let name = "a_service_moves_to_another_host_and_back_and_no_request_fails";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    let [port, a, b] = [(); 3].map(|()| free_port());
    place.configure(&format!(
        "[apps.a]\nclass = \"critical\"\nrestart = \"always\"\nexec = [\"{}\", \"workload\", \"service\", \
         \"--port\", \"{a}\", \"--iterations\", \"1\"]\n[fronts.web]\nmode = \"http\"\n\
         listen = [\"127.0.0.1:{port}\"]\ninstances = {{ a = \"127.0.0.1:{a}\", b = \"127.0.0.1:{b}\" }}\n\
         elsewhere = {{ b = \"host-b\" }}\n",
        *EXE
    ));
    place.start();
    let serves = |primary: &'static str, standby: Option<&'static str>| {
        let what = format!("{primary} serves and {standby:?} stands by");
        await_front(&place, &what, |front| {
            front["primary"] == primary
                && front["standby"].as_str() == standby
                && front["stage"] == "warm"
        });
    };
    serves("a", None);
    let other = Other::start(&mut service(b));
    serves("a", Some("b"));
    let said = place.ask(&["shadow", "status", "web"]).stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.contains("b (shadow)") && said.contains("on host-b"),
        "{said}"
    );
    let load = Load::start(port, 8);
    for to in ["b", "a", "b"] {
        let done = place.json(&["shadow", "handover", "web"]);
        assert_eq!(done["to"], to);
        serves(to, Some(if to == "a" { "b" } else { "a" }));
    }
    let (requests, longest) = load.end();
    println!("{requests} requests through three moves, the longest took {longest:?}");
    // The other host goes down. What has no state of its own may begin where it can be reached.
    drop(other);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(request(&mut client), Some(200));
    serves("a", None);
    // And it takes over from whoever ends here.
    let _other = Other::start(&mut service(b));
    serves("a", Some("b"));
    kill(place.await_pid("a"));
    assert_eq!(request(&mut client), Some(200));
    serves("b", Some("a"));
    place.stop_well();
}

/// One command, and the first line of its answer.
fn redis(port: u16, command: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{command}\r\n").unwrap();
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{said:?}");
        said.push(byte[0]);
    }
    String::from_utf8(said).unwrap().trim_end().to_owned()
}

#[test]
fn who_cannot_be_seen_to_stand_on_another_host_is_not_replaced() {
    let name = "who_cannot_be_seen_to_stand_on_another_host_is_not_replaced";
    if Command::new("redis-server")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("SKIPPED: {name}: there is no redis-server");
        return;
    }
    let Some(far) = Far::new(name) else { return };
    let Some(mut place) = Place::new(name) else {
        return;
    };
    let [port, a] = [(); 2].map(|()| free_port());
    let (here, there) = (&far.here, &far.there);
    let options = ["--save", "", "--protected-mode", "no", "--bind"];
    let quoted = options.map(|option| format!("\"{option}\"")).join(", ");
    place.configure(&format!(
        "[apps.a]\nclass = \"critical\"\nrestart = \"always\"\nexec = [\"/usr/bin/redis-server\", \"--port\", \
         \"{a}\", {quoted}, \"{here}\"]\n[fronts.web]\nmode = \"redis\"\nlisten = [\"127.0.0.1:{port}\"]\n\
         instances = {{ a = \"{here}:{a}\", b = \"{there}:6379\" }}\nelsewhere = {{ b = \"host-b\" }}\n\
         patience = \"200ms\"\n"
    ));
    let mut server = far.command("/usr/bin/redis-server");
    server.args(options).arg(there).stdout(Stdio::null());
    server.current_dir(place.path(""));
    let _server = Other::start(&mut server);
    place.start();
    let serves = |primary: &'static str, standby: Option<&'static str>| {
        let what = format!("{primary} serves and {standby:?} stands by");
        await_front(&place, &what, |front| {
            front["primary"] == primary && front["standby"].as_str() == standby
        });
    };
    serves("a", Some("b"));
    assert_eq!(redis(port, "SET k before"), "+OK");
    assert_eq!(place.json(&["shadow", "handover", "web"])["to"], "b");
    serves("b", Some("a"));
    assert_eq!(redis(port, "SET k moved"), "+OK");
    let record = || std::fs::read(place.path("state/fronts/web/epoch")).unwrap();
    let before = record();
    far.cut();
    // Somebody has to want something for a silence to be one.
    let said = redis(port, "SET k lost");
    assert!(said.starts_with('-'), "{said}");
    place.fails(
        &["shadow", "promote", "web"],
        1,
        &["stop b: it runs on host-b", "hand over once it answers"],
    );
    // A front that began anew would believe it.
    assert_eq!(record(), before);
    far.mend();
    serves("b", Some("a"));
    let value = redis(port, "SETRANGE k 0 m");
    assert_eq!(value, ":5", "it is what the other host had");
    place.stop_well();
}
