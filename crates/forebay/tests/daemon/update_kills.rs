//! Updates whose daemon is killed before and after each write of the journal.
//!
//! Each moment takes as long as an update does, so that all of them are for whoever asks:
//!
//! ```text
//! cargo nextest run --features forebay/etcd --run-ignored only -E 'test(/^update_kills::/)'
//! ```
//!
//! `FOREBAY_TEST_FIRST_MOMENT` says where to begin, `FOREBAY_TEST_MOMENTS` how many to try; without them
//! they are enumerated until none is left. Where the host, or userspace, is to begin anew in the middle of an update,
//! moments are those of the daemon that comes after that once the first daemon has no more: `second` in what is said,
//! and `FOREBAY_TEST_SECOND` has it begin there.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fronts;
use crate::place::{Place, eventually, processes, sleepers, text};
use crate::update::{Client, alone, append, assert_nothing_of_it_is_left, last};
#[cfg(feature = "etcd")]
use crate::update_elsewhere;
use crate::{update_keep, update_soft};

/// For one update on a host that does much else.
const UPDATE_MAX: Duration = Duration::from_secs(400);
/// An update without a front writes more often than this, before and after each write counted.
const MOMENTS_MIN: u64 = 16;

fn within(what: &str, place: &Place, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + UPDATE_MAX;
    while !holds() {
        let status = place.ask(&["update", "status"]);
        assert!(
            Instant::now() < deadline,
            "not in time: {what}: {}\n{}",
            String::from_utf8_lossy(&status.stdout),
            place.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap())
}

/// What updates are tried on.
trait Tried {
    /// Where the daemon is that dies.
    fn place(&self) -> &Place;
    fn place_mut(&mut self) -> &mut Place;
    /// How that is started.
    fn command(&self) -> Command {
        self.place().daemon_command()
    }
    /// Another daemon, which did not die.
    fn renew(&mut self, command: Command) {
        self.place_mut().stop();
        self.place_mut().start_with(command);
    }
    /// What is asked for, beside the command.
    fn order(&self) -> Vec<&'static str>;
    /// Looks at what is to be the same afterwards, or is not.
    fn before(&mut self);
    /// Whether the daemon waits for what cannot happen here.
    fn is_waiting(&self) -> bool {
        false
    }
    /// Does as if it happened, and begins the next daemon.
    fn go_on(&mut self, _next: Command) {}
    /// How the update is to end.
    fn outcome(&self) -> &'static str {
        "committed"
    }
    /// Nothing is lost, and everything there once.
    fn after(&mut self, moment: &str);
}

/// Which daemon of an update dies, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    First(u64),
    /// The one that comes after the host, or userspace, began anew.
    Second(u64),
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First(moment) => write!(f, "first-{moment}"),
            Self::Second(moment) => write!(f, "second-{moment}"),
        }
    }
}

impl Death {
    fn of(self, command: &mut Command, is_second: bool) {
        match self {
            Self::First(moment) if !is_second => dies_at(command, moment),
            Self::Second(moment) if is_second => dies_at(command, moment),
            Self::First(_) | Self::Second(_) => {}
        }
    }
}

fn dies_at(command: &mut Command, moment: u64) {
    command.env("FOREBAY_UPDATE_DIES_AT", moment.to_string());
}

/// What came of one update.
struct Ended {
    died: bool,
    went_on: bool,
}

/// Has a daemon die at each moment of an update.
fn kill_at_every_moment(tried: &mut impl Tried) {
    let first = number("FOREBAY_TEST_FIRST_MOMENT").unwrap_or(1);
    let count = number("FOREBAY_TEST_MOMENTS").unwrap_or(u64::MAX);
    let mut death = match std::env::var_os("FOREBAY_TEST_SECOND") {
        None => Death::First(first),
        Some(_) => Death::Second(first),
    };
    let (mut updates, mut moments) = (0, 0);
    while moments < count {
        let ended = kill_at(tried, death, &mut updates);
        moments += u64::from(ended.died);
        death = match (death, ended) {
            (Death::First(moment), Ended { died: true, .. }) => Death::First(moment + 1),
            (Death::Second(moment), Ended { died: true, .. }) => Death::Second(moment + 1),
            (Death::First(_), Ended { went_on: true, .. }) => Death::Second(1),
            (death, _) => {
                println!("{moments} moments, none at {death}");
                assert!(moments > MOMENTS_MIN || first > 1, "{moments}");
                return;
            }
        };
    }
}

fn is_over(place: &Place, updates: usize) -> bool {
    let status = place.ask(&["update", "--json", "status"]);
    let status = serde_json::from_slice::<Value>(&status.stdout);
    status.is_ok_and(|status| {
        status["history"].as_array().map_or(0, Vec::len) == updates && status["current"].is_null()
    })
}

/// One update whose daemon dies then.
fn kill_at(tried: &mut impl Tried, death: Death, updates: &mut usize) -> Ended {
    let (began, said) = (Instant::now(), death.to_string());
    let ran = tried.place().path(&format!("ran-{said}"));
    let mut command = tried.command();
    death.of(&mut command, false);
    tried.renew(command);
    tried.before();
    let line = append(&ran);
    let mut order = vec!["update", "run", "--detach", "--unproved"];
    order.extend(tried.order());
    order.extend(["--", "sh", "-c", &line]);
    let begun = tried.place().ask(&order);
    // Before the first write nothing was promised.
    let is_promised = death != Death::First(1);
    *updates += usize::from(is_promised);
    let mut ended = Ended {
        died: false,
        went_on: false,
    };
    loop {
        let daemon = tried.place().daemon_pid();
        let is_dead = || text(Path::new(&format!("/proc/{daemon}/stat"))).contains(") Z ");
        let is_over = || is_promised && is_over(tried.place(), *updates);
        within(
            "the daemon dies, or waits, or the update is over",
            tried.place(),
            || is_dead() || tried.is_waiting() || is_over(),
        );
        if is_dead() {
            assert!(!ended.died, "{said}: a second one died");
            ended.died = true;
            let command = tried.command();
            tried.place_mut().crash();
            tried.place_mut().start_with(command);
            if !is_promised {
                assert_eq!(
                    tried.place().json(&["update", "status"])["current"],
                    Value::Null
                );
                assert!(!ran.exists());
                break;
            }
        } else if tried.is_waiting() {
            let mut command = tried.command();
            // One after a daemon that died is to come to the end.
            if !ended.died {
                death.of(&mut command, true);
            }
            ended.went_on = true;
            tried.go_on(command);
        } else {
            break;
        }
    }
    assert!(ended.died || begun.status.success(), "{begun:?}");
    let mut outcome = Value::Null;
    if is_promised {
        let receipt = last(tried.place());
        outcome = receipt["outcome"].clone();
        assert_eq!(outcome, tried.outcome(), "{said}: {receipt:#}");
        assert_eq!(text(&ran), "x", "{said}: it ran once");
        tried.after(&said);
    }
    assert_nothing_of_it_is_left(tried.place());
    println!(
        "{said}: died {}, {outcome}, {:?}",
        ended.died,
        began.elapsed()
    );
    ended
}

/// A program that is restarted.
struct Alone {
    place: Place,
    seconds: String,
    old: u32,
}

impl Tried for Alone {
    fn place(&self) -> &Place {
        &self.place
    }

    fn place_mut(&mut self) -> &mut Place {
        &mut self.place
    }

    fn order(&self) -> Vec<&'static str> {
        vec!["--restart", "web"]
    }

    fn before(&mut self) {
        self.old = self.place.await_pid("web");
    }

    fn after(&mut self, moment: &str) {
        let new = self.place.await_pid("web");
        assert_ne!(new, self.old, "{moment}: it was restarted");
        assert_eq!(sleepers(&self.seconds).len(), 1, "{moment}: one owner");
    }
}

#[test]
#[ignore = "kills the daemon at each write of the journal, which takes minutes"]
fn a_daemon_that_dies_at_any_write_leaves_an_update_that_ends_well() {
    let name = "a_daemon_that_dies_at_any_write_leaves_an_update_that_ends_well";
    let Some(mut place) = alone(name) else {
        return;
    };
    place.start();
    let seconds = place.seconds(1);
    let mut tried = Alone {
        place,
        seconds,
        old: 0,
    };
    kill_at_every_moment(&mut tried);
    tried.place.stop_well();
}

/// Two instances behind a front, which are replaced under a client.
struct Behind {
    stage: fronts::Stage,
    /// Of the instances.
    ports: BTreeSet<String>,
    seen: Option<([u32; 2], Client)>,
}

impl Tried for Behind {
    fn place(&self) -> &Place {
        &self.stage.place
    }

    fn place_mut(&mut self) -> &mut Place {
        &mut self.stage.place
    }

    fn order(&self) -> Vec<&'static str> {
        vec!["--restart", "a", "--restart", "b"]
    }

    fn before(&mut self) {
        let place = &self.stage.place;
        within("one serves and one stands by", place, || {
            let front = place.json(&["shadow", "status", "web"]);
            let instances = front["instances"].as_array();
            front["stage"] == "warm"
                && front["standby"].is_string()
                && instances.is_some_and(|all| all.iter().all(|one| one["fence"] == true))
        });
        let old = ["a", "b"].map(|app| place.await_pid(app));
        self.seen = Some((old, Client::start(self.stage.port)));
    }

    fn after(&mut self, moment: &str) {
        let place = &self.stage.place;
        let (old, client) = self.seen.take().unwrap();
        let seen = client.end();
        assert_eq!(seen.failed, 0, "{moment}: {}", last(place));
        for (app, old) in ["a", "b"].iter().zip(old) {
            assert_ne!(place.await_pid(app), old, "{moment}: {app} was replaced");
        }
        let services = processes(|words| {
            words.iter().any(|word| word == "service")
                && words.iter().any(|word| self.ports.contains(word))
        });
        assert_eq!(services.len(), 2, "{moment}: one of each: {services:?}");
    }
}

#[test]
#[ignore = "kills the daemon at each write of the journal, which takes minutes"]
fn a_daemon_that_dies_at_any_write_leaves_a_front_that_serves() {
    let name = "a_daemon_that_dies_at_any_write_leaves_a_front_that_serves";
    let Some(stage) = fronts::Stage::of_mode(name, "http", "") else {
        return;
    };
    let configured = fs::read_to_string(stage.place.path("forebay.toml")).unwrap();
    let ports: BTreeSet<String> = configured
        .split('"')
        .skip_while(|word| *word != "--port")
        .filter(|word| word.parse::<u16>().is_ok_and(|port| port > 1024))
        .map(str::to_owned)
        .collect();
    let mut tried = Behind {
        stage,
        ports,
        seen: None,
    };
    kill_at_every_moment(&mut tried);
    tried.stage.place.stop_well();
}

/// A server that is kept as an image, on a host that somebody has go on without a reboot.
struct Kept {
    stage: update_keep::Stage,
    pid: u32,
    /// What it was told last.
    told: u32,
    /// How often the host was to begin anew in this update.
    asked: u32,
}

impl Tried for Kept {
    fn place(&self) -> &Place {
        &self.stage.place
    }

    fn place_mut(&mut self) -> &mut Place {
        &mut self.stage.place
    }

    fn command(&self) -> Command {
        self.stage.command()
    }

    fn order(&self) -> Vec<&'static str> {
        vec!["--rung", "checkpoint"]
    }

    fn renew(&mut self, command: Command) {
        // It ends with a daemon that is stopped, and what it has as well.
        self.stage.place.crash();
        self.stage.place.start_with(command);
    }

    fn before(&mut self) {
        self.pid = self.stage.place.await_pid("cache");
        (self.told, self.asked) = (self.told + 1, 0);
        let line = format!("set a {}", self.told);
        let stage = &self.stage;
        eventually("the server hears", || {
            stage.ask(&line).as_deref() == Some("+OK\r\n")
        });
    }

    fn is_waiting(&self) -> bool {
        self.stage.is_asked()
    }

    /// The first time another daemon comes, as where the host did not go down. It asks once more, and somebody has it go
    /// on.
    fn go_on(&mut self, next: Command) {
        let is_there = !processes(|words| self.is_server(words)).is_empty();
        assert!(!is_there, "it is written down and ended");
        self.stage.ender.forget();
        self.asked += 1;
        if self.asked == 1 {
            self.stage.place.crash();
            self.stage.place.begin_with(next);
            return;
        }
        let resumed = self.stage.place.ask(&["update", "resume"]);
        assert!(resumed.status.success(), "{resumed:?}");
    }

    fn outcome(&self) -> &'static str {
        // It still has to begin anew, and somebody has to know.
        "alarmed"
    }

    fn after(&mut self, moment: &str) {
        let receipt = last(&self.stage.place).to_string();
        assert!(!receipt.contains("lost what it had"), "{moment}: {receipt}");
        let (told, stage) = (self.told.to_string(), &self.stage);
        eventually("it has what it was told", || {
            let answer = stage.ask("get a");
            answer.is_some_and(|answer| answer.lines().nth(1) == Some(&told))
        });
        let pid = stage.place.await_pid("cache");
        assert_eq!(pid, self.pid, "{moment}: under its old number");
        let servers = processes(|words| self.is_server(words));
        assert_eq!(servers, [pid], "{moment}: one owner");
    }
}

impl Kept {
    fn is_server(&self, words: &[String]) -> bool {
        let port = self.stage.port.to_string();
        words[0].contains("redis-server") && words.iter().any(|word| word.contains(&port))
    }
}

#[test]
#[ignore = "kills the daemon at each write of the journal, which takes minutes"]
fn a_daemon_that_dies_at_any_write_loses_nothing_of_an_app_that_is_kept() {
    let name = "a_daemon_that_dies_at_any_write_loses_nothing_of_an_app_that_is_kept";
    let Some(stage) = update_keep::Stage::new(name) else {
        return;
    };
    stage.place.await_pid("cache");
    if stage.is_low() {
        return;
    }
    let mut tried = Kept {
        stage,
        pid: 0,
        told: 0,
        asked: 0,
    };
    kill_at_every_moment(&mut tried);
    tried.stage.place.stop_well();
}

/// A critical app that runs on while an imitation of systemd has userspace begin anew.
struct RunsOn {
    stage: update_soft::Stage,
    web: u32,
    other: u32,
}

impl Tried for RunsOn {
    fn place(&self) -> &Place {
        &self.stage.place
    }

    fn place_mut(&mut self) -> &mut Place {
        &mut self.stage.place
    }

    fn command(&self) -> Command {
        self.stage.command()
    }

    fn order(&self) -> Vec<&'static str> {
        vec!["--rung", "soft-reboot"]
    }

    fn before(&mut self) {
        self.web = self.stage.place.await_pid("web");
        self.other = self.stage.place.await_pid("other");
    }

    fn is_waiting(&self) -> bool {
        self.stage.is_asked()
    }

    fn renew(&mut self, command: Command) {
        self.stage.place.crash();
        self.stage.place.start_with(command);
    }

    /// As systemd does it.
    fn go_on(&mut self, next: Command) {
        self.stage.ender.forget();
        let status = self.stage.place.stop();
        assert!(status.success(), "{status}: {}", self.stage.place.log());
        self.stage.bus.units().soft_reboots += 1;
        self.stage.place.begin_with(next);
    }

    fn after(&mut self, moment: &str) {
        let place = &self.stage.place;
        assert_eq!(place.await_pid("web"), self.web, "{moment}: it ran on");
        assert_ne!(place.await_pid("other"), self.other, "{moment}: it ended");
        for n in [1, 2] {
            let owners = sleepers(&place.seconds(n));
            assert_eq!(owners.len(), 1, "{moment}: one owner");
        }
        assert!(!self.stage.is_spared(), "{moment}: the mark is left");
        let respite = place.path("state/respite.json");
        assert!(!respite.exists(), "{moment}: the respite is left");
    }
}

#[test]
#[ignore = "kills the daemon at each write of the journal, which takes minutes"]
fn a_daemon_that_dies_at_any_write_leaves_an_app_that_runs_on() {
    let name = "a_daemon_that_dies_at_any_write_leaves_an_app_that_runs_on";
    let Some(stage) = update_soft::Stage::new(name) else {
        return;
    };
    let (web, other) = (0, 0);
    let mut tried = RunsOn { stage, web, other };
    kill_at_every_moment(&mut tried);
    tried.stage.place.stop_well();
}

/// An app that is on another host meanwhile.
#[cfg(feature = "etcd")]
impl Tried for update_elsewhere::Stage {
    fn place(&self) -> &Place {
        self.a()
    }

    fn place_mut(&mut self) -> &mut Place {
        self.hosts.place_mut("a")
    }

    fn order(&self) -> Vec<&'static str> {
        vec!["--rung", "other-host"]
    }

    fn renew(&mut self, command: Command) {
        // A host that stops gives away what it may.
        self.place_mut().crash();
        self.place_mut().start_with(command);
    }

    fn before(&mut self) {
        self.hosts.await_members();
        self.await_home();
    }

    fn after(&mut self, _moment: &str) {
        self.await_home();
    }
}

#[cfg(feature = "etcd")]
#[test]
#[ignore = "kills the daemon at each write of the journal, which takes minutes"]
fn a_daemon_that_dies_at_any_write_has_apps_come_back_from_another_host() {
    let name = "a_daemon_that_dies_at_any_write_has_apps_come_back_from_another_host";
    let Some(mut stage) = update_elsewhere::Stage::new(name) else {
        return;
    };
    kill_at_every_moment(&mut stage);
}
