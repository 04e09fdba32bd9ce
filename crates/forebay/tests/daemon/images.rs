//! Images: a program that keeps its state in memory begins with it again.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::place::{PATIENCE, Place, eventually, is_running, signal};

/// Where `cargo xtask setup` puts a CRIU that knows the kernel at hand.
const UNPACKED: &str = "/var/cache/forebay-criu/criu";

/// A CRIU that works here, or none and why.
pub(crate) fn criu(test: &str) -> Option<PathBuf> {
    let usual = ["/usr/sbin/criu", "/usr/local/sbin/criu", UNPACKED];
    let works = |program: &PathBuf| {
        let check = Command::new(program).arg("check").output();
        check.is_ok_and(|check| check.status.success())
    };
    let found = usual.into_iter().map(PathBuf::from).find(works);
    if found.is_none() {
        println!("SKIPPED: {test}: no CRIU that works here; `cargo xtask setup` gets one");
    }
    found
}

/// A server that keeps what it is told in memory alone, and images of it.
struct Stage {
    place: Place,
    port: u16,
}

impl Stage {
    fn new(test: &str, every: &str) -> Option<Self> {
        Self::with(test, every, |_| String::new())
    }

    /// With more of a configuration, which may know the server's port.
    fn with(test: &str, every: &str, more: impl Fn(u16) -> String) -> Option<Self> {
        let criu = criu(test)?;
        if Command::new("redis-server")
            .arg("--version")
            .output()
            .is_err()
        {
            println!("SKIPPED: {test}: redis-server is missing; `cargo xtask setup` installs it");
            return None;
        }
        let mut place = Place::new(test)?;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        place.configure_daemon(
            &format!("criu = \"{}\"\n", criu.display()),
            &format!(
                "[policy]\non_stop = \"kill\"\n[apps.cache]\nclass = \"critical\"\nrestart = \"always\"\n\
                 images = {{ every = \"{every}\" }}\nexec = [\"redis-server\", \"--port\", \"{port}\", \
                 \"--save\", \"\", \"--bind\", \"127.0.0.1\"]\n{}",
                more(port)
            ),
        );
        place.start();
        let stage = Self { place, port };
        eventually("the first image is taken", || {
            let row = stage.row();
            assert_eq!(row["trouble"], Value::Null, "{row}");
            row["taken_unix_ms"].is_u64()
        });
        Some(stage)
    }

    /// What the server answers to one line; nothing while there is none.
    fn ask(&self, line: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("{line}\r\n").as_bytes()).ok()?;
        let mut answer = vec![0; 1024];
        let length = stream.read(&mut answer).ok()?;
        answer.truncate(length);
        Some(String::from_utf8(answer).unwrap())
    }

    #[track_caller]
    fn tell(&self, line: &str) {
        eventually("the server hears", || {
            self.ask(line).as_deref() == Some("+OK\r\n")
        });
    }

    fn row(&self) -> Value {
        self.place.json(&["image"])["images"][0].clone()
    }

    /// Takes an image that has what the server was told so far.
    #[track_caller]
    fn take(&self) -> Value {
        let taken = |row: &Value| row["taken_unix_ms"].as_u64();
        let before = taken(&self.row());
        let asked = self.place.ask(&["image", "take", "cache"]);
        assert!(asked.status.success(), "{asked:?}");
        eventually("an image is taken", || {
            let row = self.row();
            assert_eq!(row["trouble"], Value::Null, "{row}");
            taken(&row) != before
        });
        self.row()
    }

    #[track_caller]
    fn kill(&self) -> u32 {
        let pid = self.place.await_pid("cache");
        signal(pid, Signal::KILL);
        pid
    }
}

#[test]
fn a_program_begins_with_what_it_had() {
    let Some(mut stage) = Stage::new("a_program_begins_with_what_it_had", "1h") else {
        return;
    };
    stage.tell("set a 1");
    // One that was served before the image was taken, and is served after it.
    let mut client = TcpStream::connect(("127.0.0.1", stage.port)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let row = stage.take();
    assert!(row["bytes"].as_u64() > Some(1 << 20), "{row}");
    assert!(row["pause_us"].as_u64() > Some(0), "{row}");
    client.write_all(b"set b 2\r\n").unwrap();
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+OK\r\n");

    let pid = stage.kill();
    eventually("it is there again", || {
        stage.ask("get a").as_deref() == Some("$1\r\n1\r\n")
    });
    assert_eq!(
        stage.ask("get b").as_deref(),
        Some("$-1\r\n"),
        "it came later"
    );
    assert_eq!(
        client.read(&mut answer).unwrap_or(0),
        0,
        "its connection is over"
    );
    assert_eq!(stage.place.await_pid("cache"), pid, "under its old number");
    eventually("it is told", || {
        let events = stage.place.json(&["events", "--app", "cache"]).to_string();
        events.contains("begun from its image 2")
    });

    // It is in its slice, and known to the next daemon.
    let groups = crate::kernel::groups_of(pid);
    assert!(groups.contains("cache"), "{groups}");
    stage.place.crash();
    stage.place.start();
    assert_eq!(stage.place.await_pid("cache"), pid);
    assert_eq!(stage.ask("get a").as_deref(), Some("$1\r\n1\r\n"));
    stage.place.stop_well();
    eventually("it is ended", || !is_running(pid));
    stage.place.assert_nothing_left();
}

#[test]
fn a_front_waits_for_a_program_that_begins_from_its_image() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let front = listener.local_addr().unwrap().port();
    drop(listener);
    let test = "a_front_waits_for_a_program_that_begins_from_its_image";
    let stage = Stage::with(test, "1h", |port| {
        format!(
            "[fronts.store]\nmode = \"tcp\"\nlisten = [\"127.0.0.1:{front}\"]\n\
             instances = {{ cache = \"127.0.0.1:{port}\" }}\n"
        )
    });
    let Some(mut stage) = stage else { return };
    eventually("the front serves", || {
        stage.place.json(&["shadow", "status", "store"])["stage"] == "warm"
    });
    stage.tell("set a 1");
    stage.take();
    for _ in 0..3 {
        let pid = stage.kill();
        eventually("it is killed", || {
            stage.ask("ping").is_none() || !is_running(pid)
        });
        // Nobody is refused: the front waits for it.
        let mut client = TcpStream::connect(("127.0.0.1", front)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"get a\r\n").unwrap();
        let mut answer = [0; 7];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"$1\r\n1\r\n");
        stage.tell("set a 1");
        stage.take();
    }
    let status = stage.place.json(&["shadow", "status", "store"]);
    assert!(status["epoch"].as_u64() < Some(100), "{status}");
    stage.place.stop_well();
    stage.place.assert_nothing_left();
}

#[test]
fn an_image_that_nothing_lives_from_is_not_used_again() {
    let Some(mut stage) = Stage::new("an_image_that_nothing_lives_from_is_not_used_again", "1h")
    else {
        return;
    };
    stage.tell("set a 1");
    stage.take();
    stage.kill();
    eventually("it is there again", || {
        stage.ask("get a").as_deref() == Some("$1\r\n1\r\n")
    });
    // It dies at once: whatever killed it may be in the image.
    stage.kill();
    eventually("it begins with nothing", || {
        stage.ask("get a").as_deref() == Some("$-1\r\n")
    });
    eventually("why is told", || {
        let events = stage.place.json(&["events", "--app", "cache"]).to_string();
        events.contains("it ended within 10 s")
    });
    assert_eq!(stage.row()["taken_unix_ms"], Value::Null);
    stage.place.stop_well();
    stage.place.assert_nothing_left();
}

#[test]
fn a_damaged_image_is_no_obstacle() {
    let Some(mut stage) = Stage::new("a_damaged_image_is_no_obstacle", "1h") else {
        return;
    };
    stage.tell("set a 1");
    stage.take();
    let images = stage.place.path("state").join("images/cache/2");
    for entry in std::fs::read_dir(&images).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("pages-") {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(100).unwrap();
        }
    }
    stage.kill();
    eventually("it begins with nothing", || {
        stage.ask("get a").as_deref() == Some("$-1\r\n")
    });
    eventually("why is told", || {
        let events = stage.place.json(&["events", "--app", "cache"]).to_string();
        events.contains("image 2 of cache is damaged")
    });
    stage.place.stop_well();
    stage.place.assert_nothing_left();
}

#[test]
fn a_daemon_that_dies_while_it_begins_a_program_leaves_one() {
    let test = "a_daemon_that_dies_while_it_begins_a_program_leaves_one";
    let Some(mut stage) = Stage::new(test, "1h") else {
        return;
    };
    stage.tell("set a 1");
    stage.take();
    for after in [0, 5, 10, 20, 40, 80] {
        stage.kill();
        // Nothing tells how far CRIU is: it is met at different moments.
        std::thread::sleep(Duration::from_millis(after));
        stage.place.crash();
        stage.place.start();
        eventually("it is there again", || {
            stage
                .ask("ping")
                .is_some_and(|answer| answer == "+PONG\r\n")
        });
        let pid = stage.place.await_pid("cache");
        let port = stage.port.to_string();
        let servers = crate::kernel::processes(|words| {
            words
                .first()
                .is_some_and(|word| word.contains("redis-server"))
                && words.iter().any(|word| word.contains(&port))
        });
        assert_eq!(servers, [pid], "{after} ms after its end");
    }
    stage.place.stop_well();
    stage.place.assert_nothing_left();
}

/// Whoever becomes the parent of what outlives a daemon need not be quick, as the init of a container.
#[test]
fn a_number_that_an_ended_process_keeps_is_waited_for() {
    let test = "a_number_that_an_ended_process_keeps_is_waited_for";
    // Orphans become this process's.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let Some(mut stage) = Stage::new(test, "1h") else {
        return;
    };
    stage.tell("set a 1");
    stage.take();
    let pid = stage.place.await_pid("cache");
    stage.place.crash();
    stage.place.start();
    assert_eq!(
        stage.place.await_pid("cache"),
        pid,
        "it outlived the daemon"
    );
    stage.kill();
    let period = || stage.place.json(&["status"])["period"].as_u64().unwrap();
    let killed = period();
    eventually("some periods pass", || period() > killed + 10);
    assert_eq!(stage.ask("ping"), None);

    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap());
    rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap();
    eventually("it is there again", || {
        stage.ask("get a").as_deref() == Some("$1\r\n1\r\n")
    });
    stage.place.stop_well();
    stage.place.assert_nothing_left();
}
