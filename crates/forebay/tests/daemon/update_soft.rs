//! Updates by which userspace begins anew under apps that run on. Here it does not: systemd is an imitation, and what
//! would be asked is a program of the test's. `cargo xtask vm test softreboot` has a guest's userspace begin anew.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ender::Ender;
use crate::imitation::Bus;
use crate::place::{Place, eventually, is_running};
use crate::update::{append, assert_nothing_of_it_is_left, last};

/// What systemd looks for on a group before it ends its processes.
const SPARED: &str = "user.survive_final_kill_signal";
/// Longer than the lease of a daemon that is lost.
const BEYOND_LEASE: Duration = Duration::from_millis(1500);

/// An app that is to run on and one that ends, and a daemon that cannot end the host's userspace.
pub(crate) struct Stage {
    pub(crate) place: Place,
    pub(crate) bus: Bus,
    pub(crate) ender: Ender,
}

impl Stage {
    pub(crate) fn new(test: &str) -> Option<Self> {
        let place = Place::new(test)?;
        if place.hierarchies.unified().is_none_or(|(_, h)| !h.writable) {
            println!("SKIPPED: {test}: no unified hierarchy of control groups");
            return None;
        }
        let bus = Bus::new(test, &place.path(""), "")?;
        // What is ended with the daemon otherwise runs on here.
        place.configure(&format!(
            "[policy]\non_stop = \"kill\"\n\
             [apps.web]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n\
             [apps.other]\nclass = \"batch\"\nrestart = \"never\"\nexec = [\"sleep\", \"{}\"]\n",
            place.seconds(1),
            place.seconds(2),
        ));
        let ender = Ender::new(&place, &[("systemctl", 0)]);
        let mut stage = Self { place, bus, ender };
        stage.start();
        Some(stage)
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = self.ender.daemon_command(&self.place);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &self.bus.address);
        command
    }

    fn start(&mut self) {
        self.place.start_with(self.command());
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.ender.asked() == "systemctl soft-reboot\n"
    }

    fn group(&self) -> PathBuf {
        let (_, unified) = self.place.hierarchies.unified().unwrap();
        unified.dir(format!("{}.web", self.place.group).as_ref())
    }

    pub(crate) fn is_spared(&self) -> bool {
        rustix::fs::getxattr(self.group(), SPARED, &mut [0_u8; 1][..]).is_ok()
    }
}

#[test]
fn a_critical_app_runs_on_while_userspace_begins_anew() {
    let Some(mut stage) = Stage::new("a_critical_app_runs_on_while_userspace_begins_anew") else {
        return;
    };
    let web = stage.place.await_pid("web");
    let other = stage.place.await_pid("other");
    let ran = stage.place.path("ran");
    let command = append(&ran);
    let order = ["--rung", "soft-reboot", "--", "sh", "-c", &command];
    let plan = stage
        .place
        .json(&[&["update", "plan"][..], &order].concat());
    assert_eq!(plan["refused"], serde_json::json!([]), "{plan:#}");
    let rungs = plan["apps"].as_array().unwrap().iter();
    let rungs: Vec<(&str, &str)> = rungs
        .map(|app| (app["app"].as_str().unwrap(), app["rung"].as_str().unwrap()))
        .collect();
    assert_eq!(rungs, [("other", "restart"), ("web", "soft-reboot")]);
    stage
        .place
        .json(&[&["update", "run", "--detach", "--unproved"][..], &order].concat());
    eventually("systemd is asked", || stage.is_asked());
    assert!(is_running(web) && !is_running(other) && stage.is_spared());
    // A daemon that is lost now is followed by one that asks again.
    stage.ender.forget();
    stage.place.crash();
    stage.start();
    eventually("systemd is asked again", || stage.is_asked());
    assert!(is_running(web));
    assert_eq!(stage.place.app("other")["main_pid"], Value::Null);

    // As systemd ends it; neither it nor its guardian puts back what is left in force.
    let status = stage.place.stop();
    assert!(status.success(), "{status}: {}", stage.place.log());
    let until = Instant::now() + BEYOND_LEASE;
    while Instant::now() < until {
        assert!(is_running(web) && stage.is_spared(), "its slice is gone");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    stage.bus.units().soft_reboots += 1;
    stage.start();
    eventually("it is over", || {
        stage.place.json(&["update", "status"])["current"].is_null()
    });
    let receipt = last(&stage.place);
    assert_eq!(receipt["outcome"], "committed", "{receipt:#}");
    assert_eq!(stage.place.await_pid("web"), web, "it ran on");
    assert_ne!(stage.place.await_pid("other"), other, "it began again");
    assert_eq!(fs::read_to_string(&ran).unwrap(), "x\n");
    assert!(!stage.is_spared() && !stage.place.path("state/respite.json").exists());
    assert_nothing_of_it_is_left(&stage.place);
    stage.place.stop_well();
    assert!(
        !is_running(web),
        "it ends with the daemon as it is configured"
    );
}
