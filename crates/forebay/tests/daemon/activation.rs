//! Fronts on sockets that systemd opened: who gets them, how long they live, and what is said when
//! they are not there.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::process::Signal;

use crate::fronts::{free_port, request};
use crate::place::{EXE, PATIENCE, Place, eventually, is_running, refusal, signal};

/// What systemd would have opened, and keeps.
struct Sockets {
    four: TcpListener,
    six: TcpListener,
    unix: UnixListener,
    datagrams: UdpSocket,
    spare: TcpListener,
}

impl Sockets {
    fn open(place: &Place) -> Self {
        Self {
            four: TcpListener::bind("127.0.0.1:0").unwrap(),
            six: TcpListener::bind("[::1]:0").unwrap(),
            unix: UnixListener::bind(place.path("web.sock")).unwrap(),
            datagrams: UdpSocket::bind("127.0.0.1:0").unwrap(),
            spare: TcpListener::bind("127.0.0.1:0").unwrap(),
        }
    }

    fn named(&self) -> [(&str, BorrowedFd<'_>); 5] {
        [
            ("web", self.four.as_fd()),
            ("web", self.six.as_fd()),
            ("web", self.unix.as_fd()),
            ("datagrams", self.datagrams.as_fd()),
            ("spare", self.spare.as_fd()),
        ]
    }

    /// Has a program started with them as systemd starts it: blocking, from the third descriptor on.
    fn pass(&self, program: &Command) -> Command {
        let mut script = String::new();
        let mut names = Vec::new();
        for (number, (name, socket)) in (3..).zip(self.named()) {
            names.push(name);
            ioctl_fionbio(socket, false).unwrap();
            // Each gets a number out of the way first, which is not left open.
            fcntl_setfd(socket, FdFlags::empty()).unwrap();
            let (own, high) = (socket.as_raw_fd(), 200 + number);
            script = format!("exec {high}<&{own}-; {script} exec {number}<&{high}-;");
        }
        script += &format!(
            "export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={}; exec \"$@\"",
            names.len(),
            names.join(":")
        );
        let mut command = Command::new("bash");
        command.args(["-c", &script, "bash"]);
        command.arg(program.get_program()).args(program.get_args());
        command
    }

    /// No program that is started by anybody else gets them.
    fn keep(&self) {
        for (_, socket) in self.named() {
            fcntl_setfd(socket, FdFlags::CLOEXEC).unwrap();
        }
    }

    fn start(&self, place: &mut Place) {
        let command = self.pass(&place.daemon_command());
        place.start_with(command);
        self.keep();
    }

    /// Whether a process has a socket.
    fn has(pid: u32, socket: BorrowedFd<'_>) -> bool {
        let inode = rustix::fs::fstat(socket).unwrap().st_ino;
        let target = format!("socket:[{inode}]");
        fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .any(|link| link == Path::new(&target))
    }

    fn clients(&self, place: &Place) -> [Box<dyn Client>; 3] {
        let tcp = |listener: &TcpListener| {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        };
        let unix = UnixStream::connect(place.path("web.sock")).unwrap();
        unix.set_read_timeout(Some(PATIENCE)).unwrap();
        [
            Box::new(tcp(&self.four)),
            Box::new(tcp(&self.six)),
            Box::new(unix),
        ]
    }

    #[track_caller]
    fn are_served(&self, place: &Place) {
        for mut client in self.clients(place) {
            assert_eq!(request(&mut client), Some(200));
        }
    }
}

trait Client: Read + Write {}

impl<T: Read + Write> Client for T {}

/// A front before two services of its own.
fn front(name: &str, listen: &str) -> String {
    let mut text = String::new();
    let mut instances = Vec::new();
    for app in [format!("{name}-a"), format!("{name}-b")] {
        let port = free_port();
        text += &format!(
            "[apps.{app}]\nclass = \"critical\"\nrestart = \"always\"\nexec = [\"{}\", \"workload\", \
             \"service\", \"--port\", \"{port}\", \"--iterations\", \"1\"]\n",
            *EXE
        );
        instances.push(format!("{app} = \"127.0.0.1:{port}\""));
    }
    let instances = instances.join(", ");
    format!(
        "{text}[fronts.{name}]\nmode = \"tcp\"\nlisten = [{listen}]\ninstances = {{ {instances} }}\n"
    )
}

fn await_warm(place: &Place) {
    eventually("one serves and the other one stands by", || {
        place.json(&["shadow", "status", "web"])["stage"] == "warm"
    });
}

#[track_caller]
fn await_told(place: &Place, app: &str, what: &str) {
    eventually(&format!("it is told of {app}: {what}"), || {
        let events = place.json(&["events", "--app", app]);
        let mut events = events["events"].as_array().unwrap().iter();
        events.any(|event| event["message"].as_str().unwrap().contains(what))
    });
}

#[test]
fn a_front_serves_on_sockets_of_systemd_whoever_is_restarted() {
    let name = "a_front_serves_on_sockets_of_systemd_whoever_is_restarted";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    let fronts = [
        front("web", "\"systemd:web\""),
        front("lost", "\"systemd:lost\""),
        front("mute", "\"systemd:datagrams\""),
    ];
    place.configure(&fronts.concat());
    let sockets = Sockets::open(&place);
    sockets.start(&mut place);
    await_warm(&place);
    sockets.are_served(&place);

    // Those that lack theirs say so, and are nobody else's trouble.
    await_told(
        &place,
        "lost.front",
        "no socket `lost` to the daemon, and only datagrams, spare, web",
    );
    await_told(&place, "mute.front", "`datagrams`, and it is no stream");
    let log = place.log();
    assert!(log.contains("that no front listens on"), "{log}");
    assert!(log.contains("name=\"spare\""), "{log}");

    // Nobody but the front has them, or takes them for its own.
    let process = place.await_pid("web.front");
    let daemon = place.daemon_pid();
    let [service, ..] = [place.await_pid("web-a"), place.await_pid("web-b")];
    for (_, socket) in sockets.named() {
        assert!(Sockets::has(daemon, socket));
        assert!(!Sockets::has(service, socket));
    }
    assert!(Sockets::has(process, sockets.unix.as_fd()));
    assert!(!Sockets::has(process, sockets.spare.as_fd()));
    for pid in [process, service].into_iter().chain(place.guardians()) {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment);
        assert!(!environment.contains("LISTEN_"), "{environment}");
    }

    // The front goes on without a daemon, also where systemd has made its sockets blocking again.
    let mut clients = sockets.clients(&place);
    for client in &mut clients {
        assert_eq!(request(client), Some(200));
    }
    place.crash();
    for (_, socket) in sockets.named() {
        ioctl_fionbio(socket, false).unwrap();
    }
    sockets.are_served(&place);
    for client in &mut clients {
        assert_eq!(request(client), Some(200));
    }

    // And with another daemon, which has them again.
    sockets.start(&mut place);
    await_warm(&place);
    assert_eq!(place.await_pid("web.front"), process);
    sockets.are_served(&place);
    place.json(&["shadow", "upgrade", "web"]);
    let upgraded = place.await_pid("web.front");
    assert_ne!(upgraded, process);
    sockets.are_served(&place);

    // A front that dies gets them from the daemon once more.
    signal(upgraded, Signal::KILL);
    eventually("the front is gone", || !is_running(upgraded));
    sockets.are_served(&place);
    await_warm(&place);

    // They are systemd's: a front that is configured no longer does not close them.
    let file = place.path("forebay.toml");
    let text = fs::read_to_string(&file).unwrap();
    let web = text.find("[fronts.web]").unwrap();
    let rest = text[web..].find("[apps.").unwrap();
    let without = format!("{}{}", &text[..web], &text[web + rest..]);
    fs::write(&file, without).unwrap();
    place.json(&["reload"]);
    assert!(Sockets::has(place.daemon_pid(), sockets.four.as_fd()));
    fs::write(&file, text).unwrap();
    place.json(&["reload"]);

    // A daemon that nobody passed any to leaves the front those it has, and its successor, too.
    place.crash();
    place.start();
    await_warm(&place);
    await_told(
        &place,
        "web.front",
        "no socket `web` to the daemon, and none at all",
    );
    place.json(&["shadow", "upgrade", "web"]);
    sockets.are_served(&place);
    place.stop_well();
}

#[test]
fn what_was_passed_to_another_process_is_left_alone() {
    let name = "what_was_passed_to_another_process_is_left_alone";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    place.configure(&front("web", "\"systemd:web\""));
    let mut command = place.daemon_command();
    command.env("LISTEN_PID", std::process::id().to_string());
    command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "web");
    place.start_with(command);
    await_told(
        &place,
        "web.front",
        "no socket `web` to the daemon, and none at all",
    );
    place.stop_well();
    // What is said to be there and is not is no reason to take what else may be there.
    let mut command = Command::new("bash");
    let script = "export LISTEN_PID=$$ LISTEN_FDS=two; exec \"$@\"";
    let daemon = place.daemon_command();
    command
        .args(["-c", script, "bash"])
        .arg(daemon.get_program());
    command.args(daemon.get_args());
    refusal(command).says(&["LISTEN_FDS=two", "systemd"]);
}

#[test]
fn systemd_itself_passes_sockets() {
    let name = "systemd_itself_passes_sockets";
    const ACTIVATE: &str = "/usr/bin/systemd-socket-activate";
    if !Path::new(ACTIVATE).exists() {
        println!("SKIPPED: {name}: there is no {ACTIVATE}");
        return;
    }
    let Some(mut place) = Place::new(name) else {
        return;
    };
    place.configure(&front("web", "\"systemd:web\""));
    let [four, six] = [(); 2].map(|()| free_port());
    let path = place.path("web.sock");
    let daemon = place.daemon_command();
    let mut command = Command::new(ACTIVATE);
    command.args(["--setenv=FOREBAY_LOG", "--fdname=web:web:web"]);
    command.args([
        "-l",
        &format!("127.0.0.1:{four}"),
        "-l",
        &format!("[::1]:{six}"),
    ]);
    command
        .arg("-l")
        .arg(&path)
        .arg(daemon.get_program())
        .args(daemon.get_args());
    // It starts the daemon for the first client, who waits in the queue meanwhile.
    let first = std::thread::spawn(move || {
        let mut client = None;
        eventually("it listens", || {
            client = TcpStream::connect(("::1", six)).ok();
            client.is_some()
        });
        let mut client = client.unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        request(&mut client)
    });
    place.start_with(command);
    assert_eq!(first.join().unwrap(), Some(200));
    await_warm(&place);
    let mut client = TcpStream::connect(("127.0.0.1", four)).unwrap();
    assert_eq!(request(&mut client), Some(200));
    let mut client = UnixStream::connect(&path).unwrap();
    assert_eq!(request(&mut client), Some(200));
    place.stop_well();
}
