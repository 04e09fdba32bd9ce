//! Freezing on the kernel that runs this test, beyond what the contract says: across crashes,
//! and by v1's freezer. Needs root and writable control groups.

#![expect(
    dead_code,
    clippy::unwrap_used,
    reason = "a test that fails stops, and does not use all of the support"
)]

#[cfg(test)]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use forebay_core::app::{App, Binding, OnStop};
use forebay_core::host::{Action, Host, Outcome};
use forebay_core::snapshot::RunState;
use forebay_host::fence::{self, Unclaimed};
use forebay_host::mounts::{Controller, Version};
use forebay_host::{LinuxHost, restore, restore_all, restore_lost};
use support::*;

/// Freezes an app. False where the host cannot.
fn freeze(host: &mut LinuxHost, app: &str) -> bool {
    let action = Action::Freeze { app: id(app) };
    let mut outcome = Outcome::Unsupported;
    wait_for("freeze", || {
        outcome = host.apply(std::slice::from_ref(&action)).remove(0);
        !matches!(outcome, Outcome::Failed(_))
    });
    outcome == Outcome::Done
}

/// Clock ticks that a process used.
fn ticks(pid: u32) -> u64 {
    let stat = text(Path::new(&format!("/proc/{pid}/stat")));
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn wait_until_it_goes_on(pid: u32) {
    let before = ticks(pid);
    wait_for("use of CPU", || ticks(pid) > before);
}

const BURN: [&str; 3] = ["sh", "-c", "while :; do :; done"];

#[test]
fn a_crash_leaves_an_app_frozen_and_whoever_restores_thaws_it() {
    let Some(place) = Place::new("frozen_crash") else {
        return;
    };
    let app = program("web", &BURN);
    let mut host = place.open();
    apply(
        &mut host,
        &[Action::Start {
            app: app.clone().into(),
        }],
    );
    let pid = look(&mut host, &[&app], 1).apps[&app.id].main_pid.unwrap();
    if !freeze(&mut host, "web") {
        println!("SKIPPED: frozen_crash: this host cannot freeze");
        return;
    }
    // A daemon that comes back leaves it as it is.
    drop(host);
    let mut host = place.open();
    let sample = look(&mut host, &[&app], 1).apps.remove(&app.id).unwrap();
    assert_eq!(
        (sample.state, sample.main_pid),
        (RunState::Running, Some(pid))
    );
    assert!(freeze(&mut host, "web"));
    drop(host);
    let options = &place.options;
    let report = restore(&options.state_dir, &options.roots, OnStop::Keep).unwrap();
    assert!(report.is_complete(), "{report:?}");
    wait_until_it_goes_on(pid);

    // And a stop that ends programs, asking them first.
    let mut host = place.open();
    look(&mut host, &[&app], 1);
    apply(
        &mut host,
        &[Action::Enter {
            app: app.id.clone(),
            pids: vec![pid],
        }],
    );
    assert!(freeze(&mut host, "web"));
    let report = host.close(OnStop::Kill).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert!(!is_running(pid));
}

/// One that was frozen to be moved with its memory was ended by whoever came after a lost daemon, and by the daemon
/// when it was stopped.
#[test]
fn what_may_be_anothers_and_has_its_memory_here_alone_stands_until_a_daemon_knows() {
    let Some(place) = Place::new("frozen_unclaimed") else {
        return;
    };
    let options = &place.options;
    let apps = ["ends", "stands", "goes"].map(|name| program(name, &BURN));
    let begin = |host: &mut LinuxHost| {
        let starts = apps.iter().map(|app| Action::Start {
            app: app.clone().into(),
        });
        apply(host, &starts.collect::<Vec<_>>());
        let all: Vec<&App> = apps.iter().collect();
        let seen = look(host, &all, 1);
        [0, 1, 2].map(|at| seen.apps[&apps[at].id].main_pid.unwrap())
    };
    let give = |name: &str, unclaimed| {
        fence::give(&options.roots, &options.group, &id(name), unclaimed).unwrap();
    };
    let mut host = place.open();
    let [ends, stands, goes] = begin(&mut host);
    if !freeze(&mut host, "goes") {
        println!("SKIPPED: frozen_unclaimed: this host cannot freeze");
        return;
    }
    assert!(freeze(&mut host, "ends") && freeze(&mut host, "stands"));
    give("ends", Unclaimed::Ends);
    give("stands", Unclaimed::Stands);
    // As after a crash, twice as by a guardian that tries again; then as by a stop; then once more.
    drop(host);
    let used = ticks(stands);
    for _ in 0..2 {
        let report = restore_lost(&options.state_dir, &options.roots, OnStop::Keep).unwrap();
        assert!(report.is_complete(), "{report:?}");
    }
    wait_until_it_goes_on(goes);
    wait_for("end", || !is_running(ends));
    let stopped = place.open().close(OnStop::Keep).unwrap();
    assert!(stopped.is_complete(), "{stopped:?}");
    assert!(fence::is_given(
        &options.roots,
        &options.group,
        &id("stands")
    ));
    assert_eq!(ticks(stands), used, "it stands");

    // The next daemon has it, and knows.
    let mut host = place.open();
    let sample = look(&mut host, &[&apps[1]], 1).apps.remove(&id("stands"));
    assert_eq!(sample.unwrap().main_pid, Some(stands));
    fence::keep(&options.roots, &options.group, &id("stands")).unwrap();
    apply(&mut host, &[Action::Thaw { app: id("stands") }]);
    wait_until_it_goes_on(stands);

    // By hand, and where programs are to end with the daemon, nothing stays.
    assert!(freeze(&mut host, "stands"));
    give("stands", Unclaimed::Stands);
    drop(host);
    let report = restore(&options.state_dir, &options.roots, OnStop::Keep).unwrap();
    assert!(report.is_complete(), "{report:?}");
    wait_for("end", || !is_running(stands));
    let mut host = place.open();
    let [_, stands, _] = begin(&mut host);
    assert!(freeze(&mut host, "stands"));
    give("stands", Unclaimed::Stands);
    drop(host);
    let report = restore_lost(&options.state_dir, &options.roots, OnStop::Kill).unwrap();
    assert!(report.is_complete(), "{report:?}");
    wait_for("end", || !is_running(stands));

    // Another host goes on with one that lends its memory, whatever is to become of programs here.
    let mut host = place.open();
    let [_, lends, _] = begin(&mut host);
    assert!(freeze(&mut host, "stands"));
    give("stands", Unclaimed::Lends);
    let used = ticks(lends);
    let stopped = host.close(OnStop::Kill).unwrap();
    let on_stops = [OnStop::Kill, OnStop::Keep];
    let (state_dir, roots) = (&options.state_dir, &options.roots);
    let lost = on_stops.map(|on_stop| restore_lost(state_dir, roots, on_stop).unwrap());
    let by_hand = on_stops.map(|on_stop| restore(state_dir, roots, on_stop).unwrap());
    for report in lost.iter().chain(&by_hand).chain([&stopped]) {
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(report.lend, ["stands"]);
        assert!(is_running(lends));
    }
    assert_eq!(ticks(lends), used, "it stands");
    let report = restore_all(state_dir, roots, OnStop::Keep).unwrap();
    assert!(report.is_complete() && report.lend.is_empty(), "{report:?}");
    wait_for("end", || !is_running(lends));
}

/// A group of v1's freezer and cpu controllers that is not Forebay's, with somebody in it.
struct Others {
    dirs: Vec<PathBuf>,
    child: Child,
}

impl Drop for Others {
    fn drop(&mut self) {
        // Whoever is frozen by v1 cannot be ended.
        std::fs::write(self.state(), "THAWED").unwrap();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        for dir in &self.dirs {
            wait_for("end of a group", || std::fs::remove_dir(dir).is_ok());
        }
    }
}

impl Others {
    fn state(&self) -> PathBuf {
        self.dirs[0].join("freezer.state")
    }
}

#[test]
fn a_group_of_others_is_frozen_by_v1_where_v2_does_not_have_it() {
    let Some(place) = Place::new("freezer_v1") else {
        return;
    };
    let (Some((_, freezer)), Some((_, cpu))) = (
        place.hierarchies.of(Controller::Freezer),
        place.hierarchies.of(Controller::Cpu),
    ) else {
        println!("SKIPPED: freezer_v1: no v1 freezer");
        return;
    };
    if cpu.version != Version::V1 {
        println!("SKIPPED: freezer_v1: the cpu controller is of v2");
        return;
    }
    let name = PathBuf::from(format!("{}-other", place.options.group.display()));
    let others = Others {
        dirs: vec![freezer.dir(&name), cpu.dir(&name)],
        child: Command::new(BURN[0]).args(&BURN[1..]).spawn().unwrap(),
    };
    let pid = others.child.id();
    for dir in &others.dirs {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
    }
    let app = app("theirs", Binding::Cgroup(name));
    let mut host = place.open();
    look(&mut host, &[&app], 1);
    assert!(freeze(&mut host, "theirs"));
    assert_eq!(text(&others.state()), "FROZEN");
    apply(&mut host, &[Action::Thaw { app: id("theirs") }]);
    wait_until_it_goes_on(pid);

    // Put back from the ledger alone.
    assert!(freeze(&mut host, "theirs"));
    drop(host);
    let options = &place.options;
    let report = restore(&options.state_dir, &options.roots, OnStop::Keep).unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(text(&others.state()), "THAWED");
    wait_until_it_goes_on(pid);

    // What others had frozen is frozen again after a release.
    std::fs::write(others.state(), "FROZEN").unwrap();
    wait_for("freeze by others", || text(&others.state()) == "FROZEN");
    let mut host = place.open();
    look(&mut host, &[&app], 1);
    apply(&mut host, &[Action::Thaw { app: id("theirs") }]);
    assert_eq!(text(&others.state()), "THAWED");
    apply(&mut host, &[Action::Release { app: id("theirs") }]);
    wait_for("freeze", || text(&others.state()) == "FROZEN");

    // The frozen of v1 die as well.
    look(&mut host, &[&app], 1);
    apply(&mut host, &[Action::Kill { app: id("theirs") }]);
    wait_for("end", || !is_running(pid));
}

#[test]
fn the_daemon_does_not_freeze_itself() {
    let Some(place) = Place::new("freeze_itself") else {
        return;
    };
    let own = text(Path::new("/proc/self/cgroup"));
    let group = own.lines().find_map(|line| line.strip_prefix("0::"));
    let Some(group) = group.filter(|group| *group != "/") else {
        println!("SKIPPED: freeze_itself: it runs in the root group, which cannot be frozen");
        return;
    };
    let app = app("own", Binding::Cgroup(group.into()));
    let mut host = place.open();
    look(&mut host, &[&app], 1);
    let outcome = host.apply(&[Action::Freeze { app: id("own") }]).remove(0);
    assert!(
        matches!(&outcome, Outcome::Failed(why) if why.contains("the daemon")),
        "{outcome:?}"
    );
}
