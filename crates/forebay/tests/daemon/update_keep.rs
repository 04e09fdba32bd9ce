//! Updates that keep apps as images while the host begins anew. Here it does not: what would have it do so is a
//! program of the test's. `cargo xtask vm test update` has a guest begin anew.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::ender::Ender;
use crate::images::criu;
use crate::place::{PATIENCE, Place, eventually, is_running};
use crate::update::{assert_nothing_of_it_is_left, last};

/// A server that keeps what it is told in memory alone, and a daemon that cannot end the host.
pub(crate) struct Stage {
    pub(crate) place: Place,
    pub(crate) port: u16,
    pub(crate) ender: Ender,
}

impl Stage {
    pub(crate) fn new(test: &str) -> Option<Self> {
        let criu = criu(test)?;
        if Command::new("redis-server")
            .arg("--version")
            .output()
            .is_err()
        {
            println!("SKIPPED: {test}: redis-server is missing; `cargo xtask setup` installs it");
            return None;
        }
        let place = Place::new(test)?;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        place.configure_daemon(
            &format!("criu = \"{}\"\n", criu.display()),
            &format!(
                "[policy]\non_stop = \"kill\"\n[apps.cache]\nclass = \"critical\"\nrestart = \"always\"\n\
                 images = {{ every = \"1h\" }}\nexec = [\"redis-server\", \"--port\", \"{port}\", \
                 \"--save\", \"\", \"--bind\", \"127.0.0.1\"]\n[apps.other]\nclass = \"batch\"\n\
                 exec = [\"sleep\", \"600\"]\n"
            ),
        );
        let ender = Ender::new(&place, &[("reboot", 0), ("systemctl", 0), ("kexec", 1)]);
        let mut stage = Self { place, port, ender };
        stage.start();
        Some(stage)
    }

    pub(crate) fn command(&self) -> Command {
        self.ender.daemon_command(&self.place)
    }

    fn start(&mut self) {
        self.place.start_with(self.command());
    }

    pub(crate) fn ask(&self, line: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("{line}\r\n").as_bytes()).ok()?;
        let mut answer = vec![0; 1024];
        let length = stream.read(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.ender.asked().contains("reboot")
    }

    fn status(&self) -> Value {
        self.place.json(&["update", "status"])
    }

    fn order<'a>(&self, words: &[&'a str]) -> Vec<&'a str> {
        let order = [
            "update",
            "run",
            "--detach",
            "--unproved",
            "--rung",
            "checkpoint",
        ];
        order.iter().chain(words).copied().collect()
    }

    /// The programs that the system numbers low, as a host without systemd does once they come round.
    pub(crate) fn is_low(&self) -> bool {
        let plan = self
            .place
            .json(&["update", "plan", "--rung", "checkpoint", "--", "true"]);
        let is_low = plan["refused"].to_string().contains("gives away");
        if is_low {
            println!("SKIPPED: the system gives away low numbers only: {plan}");
        }
        is_low
    }
}

#[test]
fn an_app_that_was_kept_goes_on_with_what_it_had() {
    let Some(mut stage) = Stage::new("an_app_that_was_kept_goes_on_with_what_it_had") else {
        return;
    };
    eventually("the server hears", || {
        stage.ask("set a 1").as_deref() == Some("+OK\r\n")
    });
    let pid = stage.place.await_pid("cache");
    if stage.is_low() {
        return;
    }
    let plan = stage
        .place
        .json(&["update", "plan", "--rung", "checkpoint", "--", "true"]);
    assert_eq!(plan["refused"], Value::Array(Vec::new()), "{plan:#}");
    let cache = plan["apps"].as_array().unwrap();
    let cache = cache.iter().find(|app| app["app"] == "cache").unwrap();
    assert_eq!(cache["rung"], "checkpoint", "{plan:#}");
    let chosen = stage
        .place
        .json(&["update", "plan", "--rung", "auto", "--", "true"]);
    assert_eq!(chosen["chosen"], "checkpoint", "{chosen:#}");
    assert_eq!(chosen["apps"], plan["apps"], "{chosen:#}");
    assert_eq!(chosen["passed_over"][0]["rung"], "other-host", "{chosen:#}");

    let mut order = stage.order(&["--", "true"]);
    let rung = order.iter_mut().find(|word| **word == "checkpoint");
    *rung.unwrap() = "auto";
    let begun = stage.place.ask(&order);
    assert!(begun.status.success(), "{begun:?}");
    eventually("the host is asked to begin anew", || stage.is_asked());
    assert!(!is_running(pid), "it is written down and ended");
    assert_eq!(stage.status()["current"]["stage"], "departing");
    // A daemon that comes in between lets it go on, and writes it down again.
    stage.ender.forget();
    stage.place.crash();
    stage.start();
    eventually("the host is asked once more", || stage.is_asked());
    println!("{:#}", stage.place.json(&["events", "--app", "cache"]));
    assert!(!is_running(pid), "it is written down and ended again");
    assert_eq!(stage.ask("get a"), None);

    let resumed = stage.place.ask(&["update", "resume"]);
    assert!(resumed.status.success(), "{resumed:?}");
    eventually("it is over", || stage.status()["current"].is_null());
    assert_eq!(stage.ask("get a").as_deref(), Some("$1\r\n1\r\n"));
    assert_eq!(stage.place.await_pid("cache"), pid, "under its old number");
    let receipt = last(&stage.place);
    // The update still needs its reboot, and somebody has to know.
    assert_eq!(receipt["outcome"], "alarmed", "{receipt:#}");
    assert!(
        receipt["troubles"]
            .to_string()
            .contains("did not begin anew"),
        "{receipt:#}"
    );
    assert!(
        !receipt["troubles"].to_string().contains("lost what it had"),
        "{receipt:#}"
    );
    let apps = receipt["apps"].as_array().unwrap();
    let cache = apps.iter().find(|app| app["app"] == "cache").unwrap();
    assert!(cache["pause_ms"].as_f64() > Some(0.0), "{receipt:#}");
    assert_nothing_of_it_is_left(&stage.place);
    // It is restarted as it is configured.
    crate::place::signal(pid, rustix::process::Signal::KILL);
    eventually("it runs again", || {
        stage.ask("ping").as_deref() == Some("+PONG\r\n")
    });
    stage.place.stop_well();
    stage.place.assert_nothing_left();
}

#[test]
fn what_cannot_be_kept_is_refused_before_anything_is_changed() {
    let Some(mut stage) = Stage::new("what_cannot_be_kept_is_refused") else {
        return;
    };
    eventually("the server answers", || stage.ask("ping").is_some());
    let ran = stage.place.path("ran");
    let touch = ["--", "touch", ran.to_str().unwrap()];
    // Its files are in memory, which goes with the host.
    let shm = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    let file = Path::new("/dev/shm").join(shm.path().file_name().unwrap());
    let text = fs::read_to_string(stage.place.path("forebay.toml")).unwrap();
    let text = text.replace(
        "[\"sleep\", \"600\"]",
        &format!(
            "[\"tail\", \"-f\", \"{}\"]\nimages = {{ every = \"1h\" }}",
            file.display()
        ),
    );
    fs::write(stage.place.path("forebay.toml"), text).unwrap();
    stage.place.stop_well();
    stage.start();
    let plan = ["update", "plan", "--rung", "checkpoint", "--", "true"];
    eventually("it has its file open", || {
        let plan = stage.place.json(&plan);
        plan["refused"].to_string().contains("/dev/shm/")
    });
    let refused = stage.place.ask(&stage.order(&touch));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("/dev/shm/"),
        "{refused:?}"
    );
    assert!(!ran.exists() && !stage.is_asked());
    assert_eq!(stage.status()["current"], Value::Null);
    stage.place.stop_well();
    stage.place.assert_nothing_left();
}
