//! What apps send and receive, over a pair of virtual links between two network namespaces.
//! Needs root, cgroup v2 somewhere, and ip(8).

#![expect(
    dead_code,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a fixture that fails should stop the test, and does not use all of the support"
)]

#[cfg(test)]
mod support;

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay_core::app::App;
use forebay_core::host::{Action, Host};
use forebay_core::slice::{Knob, Setting};
use forebay_core::snapshot::Traffic;
use forebay_core::units::{Bytes, Limit, Rate};
use forebay_host::LinuxHost;
use support::*;

/// A namespace with a link to here; gone when this is.
struct Far {
    name: String,
    link: String,
    /// The address at this end.
    here: String,
}

impl Far {
    /// None, with a line that says why, where there can be no namespace.
    fn new(test: &str, number: u8) -> Option<Self> {
        let name = format!("fb-{}-{number}", std::process::id());
        if Command::new("ip").arg("-V").output().is_err() {
            println!("SKIPPED: {test}: no ip(8); install iproute2");
            return None;
        }
        let far = Self {
            // A network for each process and test, so that tests may run side by side.
            here: format!(
                "10.{}.{}.{}",
                100 + number,
                std::process::id() / 256 % 256,
                { std::process::id() % 63 * 4 + 1 }
            ),
            link: format!("v{}n{number}", std::process::id()),
            name,
        };
        let (name, here) = (&far.name, &far.here);
        let link = &far.link;
        let (front, last) = here.rsplit_once('.').unwrap();
        let there = format!("{front}.{}", last.parse::<u32>().unwrap() + 1);
        ip(&format!("netns add {name}"));
        ip(&format!(
            "link add {link} type veth peer name far netns {name}"
        ));
        ip(&format!("address add {here}/30 dev {link}"));
        ip(&format!("link set {link} up"));
        ip(&format!("-n {name} address add {there}/30 dev far"));
        ip(&format!("-n {name} link set far up"));
        Some(far)
    }

    /// An app that connects from there to here and sends.
    fn sender(&self, port: u16, bytes: u64) -> App {
        let line = format!(
            "exec 3<>/dev/tcp/{}/{port}; head -c {bytes} /dev/zero >&3; exec 3>&-; sleep 1000",
            self.here
        );
        program(
            "sender",
            &["ip", "netns", "exec", &self.name, "bash", "-c", &line],
        )
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // The pair of links goes with the namespace.
        ip(&format!("netns delete {}", self.name));
    }
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {line}: {error}");
}

/// Takes one connection and reads it to its end: bytes, and the time from the first to the last.
fn receive(address: &str) -> (u16, JoinHandle<(u64, Duration)>) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || read_all(listener.accept().unwrap().0));
    (port, thread)
}

fn read_all(mut stream: TcpStream) -> (u64, Duration) {
    let mut buffer = vec![0; 65536];
    let mut began = None;
    let mut bytes = 0;
    loop {
        let read = stream.read(&mut buffer).unwrap();
        let first = *began.get_or_insert_with(Instant::now);
        if read == 0 {
            return (bytes, first.elapsed());
        }
        bytes += read as u64;
    }
}

/// A place, which goes last, somebody far away, and a host; none, with a line that says why,
/// where nothing can be counted.
fn stage(test: &str, number: u8) -> Option<(Place, Far, LinuxHost)> {
    let place = Place::new(test)?;
    let host = place.open();
    if !host.capabilities().knobs.contains(&Knob::EgressMax) {
        println!("SKIPPED: {test}: no BPF programs of control groups, or no cgroup v2");
        return None;
    }
    Some((place, Far::new(test, number)?, host))
}

/// The period in ten in which the host reads what the first app sent.
const DUE: u64 = 7;

fn traffic_of(host: &mut LinuxHost, app: &App) -> Traffic {
    let sample = look(host, &[app], DUE).apps.remove(&app.id).unwrap();
    sample.traffic.unwrap()
}

/// As long as a sender and its receiver are at it, for what may be exact.
const SENT: u64 = 3_000_000;

#[test]
fn what_is_sent_is_counted_and_loopback_is_not() {
    let Some((_place, far, mut host)) = stage("what_is_sent_is_counted_and_loopback_is_not", 1)
    else {
        return;
    };
    let (port, receiver) = receive(&far.here);
    let app = far.sender(port, SENT);
    apply(
        &mut host,
        &[Action::Start {
            app: app.clone().into(),
        }],
    );
    let (received, _) = receiver.join().unwrap();
    assert_eq!(received, SENT);
    let traffic = traffic_of(&mut host, &app);
    // Headers come on top, by segment of offloaded sending.
    assert!(
        (SENT..SENT * 11 / 10).contains(&traffic.sent.0),
        "{traffic:?}"
    );
    assert!(traffic.sent_packets >= SENT / 65536, "{traffic:?}");
    assert!(
        traffic.received_packets > 0,
        "acknowledgements: {traffic:?}"
    );
    assert!(traffic.received.0 < SENT / 10, "{traffic:?}");
    assert_eq!(traffic.dropped_packets, 0);

    let (port, receiver) = receive("127.0.0.1");
    let line = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port}; head -c {SENT} /dev/zero >&3; exec 3>&-; sleep 1000"
    );
    let local = program("local", &["bash", "-c", &line]);
    apply(
        &mut host,
        &[
            set("local", Setting::EgressMax(Limit::At(Rate(1000)))),
            Action::Start {
                app: local.clone().into(),
            },
        ],
    );
    assert_eq!(receiver.join().unwrap().0, SENT, "it is not bounded");
    let traffic = traffic_of(&mut host, &local);
    assert_eq!(traffic.sent, Bytes(0), "{traffic:?}");
}

#[test]
fn a_bound_holds_until_it_is_lifted_or_the_daemon_is_gone() {
    const RATE: u64 = 1_000_000;
    let Some((_place, far, mut host)) =
        stage("a_bound_holds_until_it_is_lifted_or_the_daemon_is_gone", 2)
    else {
        return;
    };
    let bound = |rate| set("sender", Setting::EgressMax(rate));
    let run = |host: &mut LinuxHost, rate| {
        let (port, receiver) = receive(&far.here);
        let app = far.sender(port, SENT);
        let start = Action::Start {
            app: app.clone().into(),
        };
        apply(host, &[bound(rate), start]);
        let (received, took) = receiver.join().unwrap();
        assert_eq!(received, SENT);
        let traffic = traffic_of(host, &app);
        apply(
            host,
            &[Action::Kill {
                app: app.id.clone(),
            }],
        );
        look_until(host, &app, "end", |s| s.main_pid.is_none());
        (took, traffic)
    };
    let (took, traffic) = run(&mut host, Limit::At(Rate(RATE)));
    // Half a second's worth may be ahead.
    let due = Duration::from_secs(SENT / RATE) - Duration::from_millis(500);
    assert!(took > due * 9 / 10, "{took:?} for {due:?}: {traffic:?}");
    // One that has to wait for its own timers again and again takes four times as long.
    assert!(took < due * 3, "{took:?} for {due:?}: {traffic:?}");
    let held_back = traffic.dropped_packets;
    assert!(held_back > 0, "{traffic:?}");

    let (_, traffic) = run(&mut host, Limit::Max);
    assert_eq!(traffic.dropped_packets, held_back, "without a bound");

    // The kernel lifts it when the daemon is gone, however it went.
    let (port, receiver) = receive(&far.here);
    let app = far.sender(port, SENT);
    let start = Action::Start { app: app.into() };
    apply(&mut host, &[bound(Limit::At(Rate(1000))), start]);
    drop(host);
    assert_eq!(receiver.join().unwrap().0, SENT);
}

#[test]
fn what_is_sent_again_is_counted() {
    let Some((_place, far, mut host)) = stage("what_is_sent_again_is_counted", 3) else {
        return;
    };
    let (port, receiver) = receive(&far.here);
    let app = far.sender(port, SENT);
    let slow = set("sender", Setting::EgressMax(Limit::At(Rate(1_000_000))));
    apply(
        &mut host,
        &[
            slow,
            Action::Start {
                app: app.clone().into(),
            },
        ],
    );
    let sent = |host: &mut LinuxHost| traffic_of(host, &app);
    wait_for("sending", || sent(&mut host).sent > Bytes(SENT / 4));
    // A busy machine may make TCP impatient by itself.
    let before = sent(&mut host).retransmitted;
    ip(&format!("link set {} down", far.link));
    wait_for("sending again", || sent(&mut host).retransmitted > before);
    ip(&format!("link set {} up", far.link));
    assert_eq!(receiver.join().unwrap().0, SENT);
}
