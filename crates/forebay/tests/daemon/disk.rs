//! What is on disk is full, damaged or not ours: said once, and control goes on where it can.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use forebay_host::mounts::Controller;

use crate::place::{EXE, Knob, Place, eventually, knob_in, sleepers, text};

fn sleeper_config(place: &Place) -> String {
    format!(
        "[apps.a]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1)
    )
}

/// Takes all the room there is.
fn fill(dir: &Path) {
    let mut file = fs::File::create(dir.join("filler")).unwrap();
    for size in [4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[test]
fn a_disk_without_room_for_the_ledger_is_refused() {
    let Some(mut place) = Place::new("a_disk_without_room_for_the_ledger_is_refused") else {
        return;
    };
    place.mount_small("state", 64);
    fill(&place.path("state"));
    place.configure(&sleeper_config(&place));
    let state = place.path("state").display().to_string();
    place
        .refusal()
        .says(&[&state, "no space left", "make room"]);
    place.assert_nothing_left();
    assert_eq!(sleepers(&place.seconds(1)), Vec::<u32>::new());
    assert_eq!(place.guardians(), Vec::<u32>::new());
}

#[test]
fn a_disk_without_room_for_the_history_costs_only_the_history() {
    let Some(mut place) = Place::new("a_disk_without_room_for_the_history_costs_only_the_history")
    else {
        return;
    };
    place.mount_small("state", 48);
    place.configure(&sleeper_config(&place));
    place.start();
    place.await_app("a", "partitioned", |app| app["slice"]["cpus"].is_string());
    eventually("the log says so", || {
        place.log().contains("no history is kept")
    });
    place.fails(&["history", "a", "cpu"], 1, &["state.db"]);
    // What happened is still told, from memory.
    place.await_event("a", "started");
    place.stop_well();
}

#[test]
fn a_disk_that_fills_up_stops_new_changes_and_no_running_app() {
    let Some(mut place) = Place::new("a_disk_that_fills_up_stops_new_changes_and_no_running_app")
    else {
        return;
    };
    place.mount_small("state", 512);
    place.configure(&sleeper_config(&place));
    place.start();
    let pid = place.await_pid("a");
    fill(&place.path("state"));
    // What the ledger's last page has left is used up, too: in the end an app is refused.
    let mut running = 0_usize;
    let refused = (0..60).map(|n| format!("b{n}")).find(|name| {
        let seconds = place.seconds(2);
        place.json(&[
            "run", "--name", name, "--class", "batch", "--", "sleep", &seconds,
        ]);
        let started = place.await_any_event(name, &["started", "failed"]);
        running += usize::from(started == "started");
        started == "failed"
    });
    let refused = refused.expect("a full disk refuses at last");
    let running_now = sleepers(&place.seconds(2)).len();
    assert_eq!(running_now, running, "a program runs that no ledger knows");
    assert_eq!(place.await_pid("a"), pid);
    fs::remove_file(place.path("state/filler")).unwrap();
    place.await_pid(&refused);
    assert_eq!(place.await_pid("a"), pid);
    place.stop_well();
}

#[test]
fn a_history_that_is_no_database_is_left_alone() {
    let Some(mut place) = Place::new("a_history_that_is_no_database_is_left_alone") else {
        return;
    };
    let words = "these are my notes\n".repeat(100);
    fs::create_dir(place.path("state")).unwrap();
    fs::write(place.path("state/state.db"), &words).unwrap();
    place.configure(&sleeper_config(&place));
    place.start();
    place.await_app("a", "partitioned", |app| app["slice"]["cpus"].is_string());
    place.fails(
        &["history", "a", "cpu"],
        1,
        &["state.db", "not a database", "move it away"],
    );
    place.await_event("a", "started");
    place.stop_well();
    assert_eq!(
        fs::read_to_string(place.path("state/state.db")).unwrap(),
        words
    );
}

#[test]
fn a_damaged_ledger_is_refused_and_left_alone() {
    let Some(mut place) = Place::new("a_damaged_ledger_is_refused_and_left_alone") else {
        return;
    };
    place.configure(&sleeper_config(&place));
    place.start();
    place.await_pid("a");
    place.stop_well();
    let ledger = place.path("state/ledger");
    let good = fs::read_to_string(&ledger).unwrap();
    let (head, rest) = good.split_once('\n').unwrap();
    let bad = format!("{head}\nscribbles\n{rest}");
    fs::write(&ledger, &bad).unwrap();
    place.refusal().says(&[ledger.to_str().unwrap(), "line 2"]);
    assert_eq!(fs::read_to_string(&ledger).unwrap(), bad);
    place.assert_nothing_left();
    assert_eq!(place.guardians(), Vec::<u32>::new());
    fs::write(&ledger, good).unwrap();
}

#[test]
fn a_ledger_of_another_boot_is_set_aside() {
    let Some(mut place) = Place::new("a_ledger_of_another_boot_is_set_aside") else {
        return;
    };
    place.configure(&sleeper_config(&place));
    place.start();
    place.crash();
    let restored = place.restore(&["--kill"]);
    assert!(restored.status.success(), "{restored:?}");
    let ledger = place.path("state/ledger");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let old = fs::read_to_string(&ledger)
        .unwrap()
        .replace(boot.trim(), "00000000-0000-0000-0000-000000000000");
    fs::write(&ledger, &old).unwrap();
    fs::remove_file(place.path("socket")).unwrap();
    place.start();
    place.await_pid("a");
    assert_eq!(
        fs::read_to_string(place.path("state/ledger.other-boot")).unwrap(),
        old
    );
    place.stop_well();
}

/// The daemon in a private mount namespace, after a script that mounts there.
fn with_mounts(place: &Place, script: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-e", "-c"])
        .arg(format!("{script}\nexec \"$@\""))
        .args(["sh", EXE.as_str(), "daemon", "--config"])
        .arg(place.path("forebay.toml"));
    command
}

#[test]
fn a_read_only_group_is_reported_and_the_rest_goes_on() {
    let Some(mut place) = Place::new("a_read_only_group_is_reported_and_the_rest_goes_on") else {
        return;
    };
    let group = place.make_group("bound");
    let weight = knob_in(&place.hierarchies, &group, Knob::Weight);
    let before = text(&weight);
    place.configure(&format!(
        "[apps.bound]\nclass = \"critical\"\ncgroup = \"{group}\"\n{}",
        sleeper_config(&place)
    ));
    let script: String = place
        .made()
        .iter()
        .map(|dir| dir.display())
        .map(|dir| format!("mount --bind {dir} {dir}\nmount -o remount,bind,ro {dir}\n"))
        .collect();
    let procs = knob_in(&place.hierarchies, &group, Knob::Procs);
    let member = crate::place::Sleeper::new(&place.seconds(3));
    fs::write(&procs, member.pid().to_string()).unwrap();
    let command = with_mounts(&place, &script);
    place.start_with(command);
    let message = place.await_event("bound", "failed");
    assert!(message.contains(&group), "{message}");
    assert!(message.contains("ead-only"), "{message}");
    place.await_app("a", "partitioned", |app| app["slice"]["cpus"].is_string());
    place.stop_well();
    assert_eq!(text(&weight), before);
}

#[test]
fn a_host_without_writable_groups_is_refused() {
    let Some(place) = Place::new("a_host_without_writable_groups_is_refused") else {
        return;
    };
    place.configure(&sleeper_config(&place));
    let script: String = place
        .hierarchies
        .list()
        .iter()
        .map(|hierarchy| format!("mount -o remount,bind,ro {}\n", hierarchy.mount.display()))
        .collect();
    let refusal = crate::place::refusal(with_mounts(&place, &script));
    refusal.says(&["control group", "writable", "root"]);
    place.assert_nothing_left();
    assert_eq!(sleepers(&place.seconds(1)), Vec::<u32>::new());
}

#[test]
fn one_read_only_hierarchy_is_done_without() {
    let Some(mut place) = Place::new("one_read_only_hierarchy_is_done_without") else {
        return;
    };
    let (_, pids) = place.hierarchies.of(Controller::Pids).unwrap();
    let (_, cpu) = place.hierarchies.of(Controller::Cpu).unwrap();
    if pids.mount == cpu.mount {
        println!("SKIPPED: one_read_only_hierarchy_is_done_without: there is only one hierarchy");
        return;
    }
    let script = format!("mount -o remount,bind,ro {}\n", pids.mount.display());
    place.configure(&sleeper_config(&place));
    let command = with_mounts(&place, &script);
    place.start_with(command);
    place.await_app("a", "partitioned", |app| app["slice"]["cpus"].is_string());
    assert!(!place.knob("a", Knob::PidsMax).exists());
    place.stop_well();
}
