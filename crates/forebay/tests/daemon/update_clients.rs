//! Clients' connections that outlive a boot: here it is played by an end of all processes, and a daemon that finds
//! another number of the boot.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay_host::tcp_repair::Rule;
use serde_json::Value;

use crate::ender::Ender;
use crate::fronts::{free_port, kill};
use crate::images::criu;
use crate::place::{PATIENCE, Place, eventually, is_running};
use crate::update::last;

/// Longer than a client of this test waits for one answer: the boot, and what its last segment waits for then.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// Counts what it is asked by POST, in memory alone; guests have it, too.
const COUNTER: &str = include_str!("../../../../tests/vm/counter.py");

/// Runs a program with nothing open from outside: that is of no mount that CRIU finds there.
const CLOSED: &str = "import os, sys; os.closerange(3, 4096); os.execvp(sys.argv[1], sys.argv[1:])";

/// Connects where nobody listens, runs a program, and connects again: what became of each attempt.
const ALONE: &str = "
import socket, subprocess, sys
def attempt():
    for port in sys.argv[1].split():
        try:
            socket.create_connection(('127.0.0.1', int(port)), timeout=0.5)
        except OSError as error:
            print(type(error).__name__)
attempt()
subprocess.run(sys.argv[2:], check=True)
attempt()
";

/// A service that is kept behind a front, servers that are not behind another one, and a daemon that cannot end the
/// host.
struct Stage {
    place: Place,
    site: u16,
    kv: u16,
    ender: Ender,
    boots: u32,
}

impl Drop for Stage {
    /// A boot that does not come takes no rule away.
    fn drop(&mut self) {
        Rule::remove(&self.place.path("state")).unwrap();
    }
}

impl Stage {
    fn new(test: &str) -> Option<Self> {
        let criu = criu(test)?;
        for program in ["redis-server", "python3"] {
            if Command::new(program).arg("--version").output().is_err() {
                println!("SKIPPED: {test}: {program} is missing; `cargo xtask setup` installs it");
                return None;
            }
        }
        let place = Place::new(test)?;
        let [site, kv, counter, a, b] = [(); 5].map(|()| free_port());
        fs::write(place.path("counter.py"), COUNTER).unwrap();
        let server = |name: &str, port: u16| {
            let directory = place.path(name);
            fs::create_dir(&directory).unwrap();
            format!(
                "[apps.{name}]\nclass = \"standard\"\nrestart = \"always\"\ndirectory = \"{}\"\n\
                 exec = [\"redis-server\", \"--port\", \"{port}\", \"--save\", \"\", \"--bind\", \
                 \"127.0.0.1\"]\n",
                directory.display()
            )
        };
        let servers = [server("a", a), server("b", b)].concat();
        place.configure_daemon(
            &format!("criu = \"{}\"\n", criu.display()),
            &format!(
                "[policy]\non_stop = \"kill\"\n\
                 [apps.counter]\nclass = \"critical\"\nrestart = \"always\"\nimages = {{ every = \"1h\" }}\n\
                 exec = [\"python3\", \"-B\", {script}, \"{counter}\"]\nstdout = {log}\nstderr = {log}\n\
                 {servers}\
                 [fronts.site]\nmode = \"http\"\nlisten = [\"127.0.0.1:{site}\"]\n\
                 instances = {{ counter = \"127.0.0.1:{counter}\" }}\n\
                 [fronts.kv]\nmode = \"redis\"\nlisten = [\"127.0.0.1:{kv}\"]\n\
                 instances = {{ a = \"127.0.0.1:{a}\", b = \"127.0.0.1:{b}\" }}\n",
                script = place.quoted("counter.py"),
                log = place.quoted("counter.log"),
            ),
        );
        let ender = Ender::new(&place, &[("reboot", 0), ("systemctl", 0), ("kexec", 1)]);
        let mut stage = Self {
            place,
            site,
            kv,
            ender,
            boots: 0,
        };
        stage.boot();
        eventually("both fronts serve", || {
            let stage_of = |front| stage.place.json(&["shadow", "status", front])["stage"].clone();
            stage_of("site") == "warm" && stage_of("kv") == "warm"
        });
        Some(stage)
    }

    /// A daemon in a boot of its own, as far as it can tell.
    fn boot(&mut self) {
        self.boots += 1;
        let number = self.place.path(&format!("boot-{}", self.boots));
        let uuid = format!("00000000-0000-4000-8000-{:012x}\n", self.boots);
        fs::write(&number, uuid).unwrap();
        let daemon = self.ender.daemon_command(&self.place);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c"]);
        command.arg(
            "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec python3 -c \"$@\" </dev/null >/dev/null",
        );
        command
            .arg(&number)
            .arg(CLOSED)
            .arg(daemon.get_program())
            .args(daemon.get_args());
        for (name, value) in daemon.get_envs() {
            command.env(name, value.unwrap());
        }
        self.place.start_with(command);
    }

    /// Ends all that runs, as a host does.
    fn go_down(&mut self) {
        let apps = ["site.front", "kv.front", "a", "b"];
        let apps = apps.map(|app| self.place.await_pid(app));
        let guardians = self.place.guardians();
        self.place.crash();
        for pid in guardians.into_iter().chain(apps) {
            kill(pid);
        }
        // Control groups do not outlive a boot.
        let mut groups = self.place.groups_left();
        groups.sort_by_key(|group| std::cmp::Reverse(group.components().count()));
        for group in groups {
            eventually("a group is left by all", || fs::remove_dir(&group).is_ok());
        }
    }

    /// Has the kernel keep silent as a boot does before it has a network, in a network of its own; what happened there
    /// to who connected to the ends of these fronts.
    fn before_network(&self) -> String {
        let daemon = self.ender.daemon_command(&self.place);
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c"]);
        command.arg("ip link set lo up && python3 -c \"$@\" --before-network");
        command
            .arg("sh")
            .arg(ALONE)
            .arg(format!("{} {}", self.site, self.kv))
            .arg(daemon.get_program())
            .args(daemon.get_args());
        for (name, value) in daemon.get_envs() {
            command.env(name, value.unwrap());
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn connect(&self, port: u16) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Has the host written down; false where it cannot be.
    fn depart(&self, pid: u32) -> bool {
        let plan = self
            .place
            .json(&["update", "plan", "--rung", "checkpoint", "--", "true"]);
        if plan["refused"].to_string().contains("gives away") {
            println!("SKIPPED: the system gives away low numbers only: {plan}");
            return false;
        }
        assert_eq!(plan["refused"], Value::Array(Vec::new()), "{plan:#}");
        let order = [
            "update",
            "run",
            "--detach",
            "--unproved",
            "--rung",
            "checkpoint",
            "--",
            "true",
        ];
        let begun = self.place.ask(&order);
        assert!(begun.status.success(), "{begun:?}");
        eventually("the host is asked to begin anew", || {
            let update = self.place.json(&["update", "status"]);
            assert!(!update["current"].is_null(), "{update:#}");
            self.ender.asked().contains("reboot")
        });
        assert!(!is_running(pid), "it is written down and ended");
        true
    }

    /// One that was counted for over its connection when the host was written down.
    fn departed_with_a_client(test: &str) -> Option<(Self, TcpStream)> {
        let stage = Self::new(test)?;
        let pid = stage.place.await_pid("counter");
        let mut client = stage.connect(stage.site);
        assert_eq!(count(&mut client, "POST").unwrap(), 1);
        stage.depart(pid).then_some((stage, client))
    }

    fn over(&self) -> Value {
        let status = || self.place.json(&["update", "status"]);
        eventually("it is over", || status()["current"].is_null());
        last(&self.place)
    }
}

/// What the server answers to a command, one line.
fn ask(stream: &mut TcpStream, line: &str) -> Result<String, String> {
    stream
        .write_all(format!("{line}\r\n").as_bytes())
        .map_err(|error| error.to_string())?;
    heard(stream, b"\r\n")
}

/// What comes, up to and with these bytes.
fn heard(stream: &mut TcpStream, end: &[u8]) -> Result<String, String> {
    let mut answer = Vec::new();
    while !answer.ends_with(end) {
        let mut byte = [0];
        match stream.read(&mut byte).map_err(|error| error.to_string())? {
            0 => return Err("the connection ended".to_owned()),
            _ => answer.push(byte[0]),
        }
    }
    Ok(String::from_utf8_lossy(&answer).trim_end().to_owned())
}

/// How many were counted, by a request of this method.
fn count(stream: &mut TcpStream, method: &str) -> Result<u64, String> {
    let request = format!("{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .map_err(|error| error.to_string())?;
    let head = heard(stream, b"\r\n\r\n")?.to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length = length.ok_or_else(|| head.clone())?;
    let mut body = vec![0; length.parse().map_err(|_| head.clone())?];
    stream
        .read_exact(&mut body)
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&body).into_owned();
    text.parse().map_err(|_| format!("{head}\n{text}"))
}

/// A connection that the host does not know any more.
fn assert_is_reset(mut client: TcpStream) {
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let reset = count(&mut client, "GET").unwrap_err();
    assert!(reset.contains("reset"), "{reset}");
}

/// What a client saw that kept one connection.
struct Seen {
    answers: u64,
    pause: Duration,
}

/// A client with one connection that has the service count, one request after the other that must not be repeated.
struct Counting {
    ends: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    thread: JoinHandle<Seen>,
}

impl Counting {
    fn begin(mut stream: TcpStream) -> Self {
        let (ends, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (over, count) = (Arc::clone(&ends), Arc::clone(&answers));
        let thread = std::thread::spawn(move || {
            let mut pause = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let answer = self::count(&mut stream, "POST").unwrap();
                pause = pause.max(asked.elapsed());
                // One that was executed twice, or not at all, is seen at once.
                assert_eq!(answer, count.fetch_add(1, Ordering::Relaxed) + 1);
            }
            Seen {
                answers: count.load(Ordering::Relaxed),
                pause,
            }
        });
        Self {
            ends,
            answers,
            thread,
        }
    }

    fn await_more(&self) {
        let before = self.answers.load(Ordering::Relaxed);
        let until = Instant::now() + ANSWER_MAX;
        while self.answers.load(Ordering::Relaxed) < before + 10 {
            assert!(!self.thread.is_finished(), "its connection ended");
            assert!(Instant::now() < until, "it is not answered");
            std::thread::yield_now();
        }
    }

    fn end(self) -> Seen {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn clients_keep_their_connections_over_a_boot() {
    let Some(mut stage) = Stage::new("clients_keep_their_connections_over_a_boot") else {
        return;
    };
    let pid = stage.place.await_pid("counter");
    let mut idle = stage.connect(stage.kv);
    assert_eq!(ask(&mut idle, "CLIENT SETNAME me").unwrap(), "+OK");
    // In the middle of a transaction: it is closed, as without all this.
    let mut open = stage.connect(stage.kv);
    assert_eq!(ask(&mut open, "MULTI").unwrap(), "+OK");
    let counting = Counting::begin(stage.connect(stage.site));
    counting.await_more();
    if !stage.depart(pid) {
        return;
    }
    assert!(stage.place.path("state/connections").exists());
    stage.go_down();
    // Without the rule the kernel would answer what the client sends with a reset.
    let (refused, silent) = ("ConnectionRefusedError\n", "TimeoutError\n");
    assert_eq!(
        stage.before_network(),
        [refused, refused, silent, silent].concat()
    );
    stage.boot();
    counting.await_more();
    assert_eq!(
        stage.place.await_pid("counter"),
        pid,
        "under its old number"
    );
    assert_eq!(ask(&mut idle, "CLIENT GETNAME").unwrap(), "$2");
    assert_eq!(heard(&mut idle, b"\r\n").unwrap(), "me");
    assert!(ask(&mut open, "EXEC").is_err(), "it was closed");
    let receipt = stage.over();
    counting.await_more();
    let seen = counting.end();
    println!(
        "{} answers over one connection, the slowest after {} ms",
        seen.answers,
        seen.pause.as_millis()
    );
    assert_eq!(
        count(&mut stage.connect(stage.site), "GET").unwrap(),
        seen.answers
    );
    println!("{}", receipt["clients"]);
    assert_eq!(receipt["outcome"], "committed", "{receipt:#}");
    assert_eq!(receipt["troubles"], Value::Array(Vec::new()), "{receipt:#}");
    for (place, (front, left)) in [("kv", 1), ("site", 0)].into_iter().enumerate() {
        let clients = &receipt["clients"][place];
        assert_eq!(
            (
                &clients["front"],
                &clients["kept"],
                &clients["back"],
                &clients["left"]
            ),
            (&front.into(), &1.into(), &1.into(), &left.into()),
            "{receipt:#}"
        );
        assert!(clients["pause_ms"].as_f64() > Some(0.0), "{receipt:#}");
    }
    let left: Vec<String> = fs::read_dir(stage.place.path("state"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("connections"))
        .collect();
    assert_eq!(left, Vec::<String>::new(), "they are good for one boot");
    // Nothing of the rule is left: a new client is served.
    assert_eq!(ask(&mut stage.connect(stage.kv), "PING").unwrap(), "+PONG");
    stage.place.stop_well();
}

#[test]
fn what_was_damaged_is_named_and_clients_connect_again() {
    let test = "what_was_damaged_is_named_and_clients_connect_again";
    let Some((mut stage, client)) = Stage::departed_with_a_client(test) else {
        return;
    };
    let file = stage.place.path("state/connections");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    stage.go_down();
    stage.boot();
    let receipt = stage.over();
    let troubles = receipt["troubles"].to_string();
    assert!(
        troubles.contains("checksum") && troubles.contains("connect again"),
        "{receipt:#}"
    );
    assert_is_reset(client);
    assert_eq!(count(&mut stage.connect(stage.site), "GET").unwrap(), 1);
    stage.place.stop_well();
}

/// The host was asked to begin anew and did not: they go on in the same boot.
#[test]
fn clients_go_on_where_the_host_does() {
    let Some(mut stage) = Stage::new("clients_go_on_where_the_host_does") else {
        return;
    };
    let pid = stage.place.await_pid("counter");
    let counting = Counting::begin(stage.connect(stage.site));
    counting.await_more();
    if !stage.depart(pid) {
        return;
    }
    let resumed = stage.place.ask(&["update", "resume"]);
    assert!(resumed.status.success(), "{resumed:?}");
    counting.await_more();
    let receipt = stage.over();
    let seen = counting.end();
    println!(
        "{} answers, the slowest after {} ms",
        seen.answers,
        seen.pause.as_millis()
    );
    let site = &receipt["clients"][1];
    assert_eq!(
        (&site["front"], &site["back"]),
        (&"site".into(), &1.into()),
        "{receipt:#}"
    );
    stage.place.stop_well();
}

/// Whoever puts back what a daemon left wants nothing left that keeps clients waiting.
#[test]
fn restore_takes_the_rule_and_the_connections_away() {
    let test = "restore_takes_the_rule_and_the_connections_away";
    let Some((mut stage, client)) = Stage::departed_with_a_client(test) else {
        return;
    };
    stage.go_down();
    let file = stage.place.path("state/connections");
    let site = ([127, 0, 0, 1], stage.site).into();
    let attempt = || TcpStream::connect_timeout(&site, Duration::from_millis(500));
    assert!(file.exists());
    assert_eq!(attempt().unwrap_err().kind(), ErrorKind::TimedOut);
    let restored = stage.place.restore(&[]);
    assert!(restored.status.success(), "{restored:?}");
    assert!(!file.exists());
    assert_eq!(attempt().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // Without them a daemon that comes has nothing to make anew.
    stage.boot();
    assert_is_reset(client);
    stage.over();
    stage.place.stop_well();
}
