//! Processes and groups that are not Forebay's: followed, respected, and put back.

use std::fs;
use std::path::PathBuf;

use crate::place::{Knob, Place, Sleeper, eventually, groups_of, knob_in, text};

#[test]
fn matched_processes_are_followed_and_sent_home() {
    let Some(mut place) = Place::new("matched_processes_are_followed_and_sent_home") else {
        return;
    };
    let seconds = place.seconds(1);
    let mut first = Sleeper::new(&seconds);
    let home = groups_of(first.pid());
    place.configure(&format!(
        "[apps.m]\nclass = \"batch\"\nmatch = {{ executable = \"sleep\", command_line = \"{seconds}\" }}\n"
    ));
    place.start();
    let inside = |pid: u32| groups_of(pid).contains(&place.group);
    eventually("the first is taken in", || inside(first.pid()));
    let second = Sleeper::new(&seconds);
    eventually("one that comes later is, too", || inside(second.pid()));
    drop(second);
    place.await_app("m", "running", |app| app["state"] == "running");
    assert!(first.is_running());
    place.stop_well();
    assert!(first.is_running(), "it is not Forebay's to end");
    assert_eq!(groups_of(first.pid()), home);
}

#[test]
fn matched_processes_come_and_go() {
    let Some(mut place) = Place::new("matched_processes_come_and_go") else {
        return;
    };
    let seconds = place.seconds(1);
    place.configure(&format!(
        "[apps.m]\nmatch = {{ command_line = \"sleep {seconds}\" }}\n"
    ));
    place.start();
    place.await_app("m", "absent", |app| app["state"] == "absent");
    for _ in 0..2 {
        let process = Sleeper::new(&seconds);
        place.await_app("m", "running", |app| app["state"] == "running");
        eventually("it is taken in", || {
            groups_of(process.pid()).contains(&place.group)
        });
        drop(process);
        place.await_app("m", "absent again", |app| app["state"] == "absent");
    }
    place.await_event("m", "appeared");
    place.await_event("m", "ended");
    place.stop_well();
}

/// Everything that the files of a group hold, except counters.
fn settings(dirs: &[PathBuf]) -> Vec<(PathBuf, String)> {
    let names = [
        "cpu.shares",
        "cpu.cfs_quota_us",
        "cpu.cfs_burst_us",
        "cpu.idle",
        "cpu.weight",
        "cpu.max",
        "cpu.max.burst",
        "memory.limit_in_bytes",
        "memory.soft_limit_in_bytes",
        "memory.min",
        "memory.low",
        "memory.high",
        "memory.max",
        "pids.max",
        "cgroup.procs",
    ];
    dirs.iter()
        .flat_map(|dir| names.map(|name| dir.join(name)))
        .filter(|file| file.exists())
        .map(|file| (file.clone(), text(&file)))
        .collect()
}

/// A group that was there, with a member and an odd weight, as an app of this class.
fn bound(name: &str, class: &str) -> Option<(Place, Sleeper, PathBuf)> {
    let mut place = Place::new(name)?;
    let group = place.make_group("bound");
    let weight = knob_in(&place.hierarchies, &group, Knob::Weight);
    fs::write(&weight, "517").unwrap();
    let member = Sleeper::new(&place.seconds(1));
    for dir in place.made() {
        fs::write(dir.join("cgroup.procs"), member.pid().to_string()).unwrap();
    }
    place.configure(&format!(
        "[apps.bound]\nclass = \"{class}\"\ncgroup = \"{group}\"\nceiling.pids = 99\nceiling.memory = \"300MiB\"\n"
    ));
    Some((place, member, weight))
}

fn bound_settings_are_put_back(name: &str, class: &str) {
    let Some((mut place, mut member, weight)) = bound(name, class) else {
        return;
    };
    let before = settings(place.made());
    place.start();
    place.await_app("bound", "limited", |app| app["slice"]["pids_max"] == 99);
    eventually("the kernel has it", || settings(place.made()) != before);
    eventually("the weight is set", || text(&weight) != "517");
    place.stop_well();
    assert_eq!(settings(place.made()), before);
    assert!(member.is_running());
}

#[test]
fn the_settings_of_a_bound_group_are_put_back() {
    bound_settings_are_put_back("the_settings_of_a_bound_group_are_put_back", "critical");
}

#[test]
fn the_settings_of_a_bound_batch_group_are_put_back() {
    bound_settings_are_put_back("the_settings_of_a_bound_batch_group_are_put_back", "batch");
}

#[test]
fn what_somebody_else_writes_is_noticed_and_left_alone() {
    let Some((mut place, _member, weight)) = bound(
        "what_somebody_else_writes_is_noticed_and_left_alone",
        "critical",
    ) else {
        return;
    };
    let before = settings(place.made());
    place.start();
    eventually("the weight is set", || text(&weight) != "517");
    fs::write(&weight, "333").unwrap();
    let message = place.await_event("bound", "foreign");
    assert!(
        message.contains("left alone until the next reload"),
        "{message}"
    );
    let period = |place: &Place| place.json(&["status"])["period"].as_u64().unwrap();
    let noticed = period(&place);
    eventually("more periods", || period(&place) > noticed + 5);
    assert_eq!(text(&weight), "333", "it was fought over");
    place.stop_well();
    let after: Vec<(PathBuf, String)> = before
        .into_iter()
        .map(|(file, text)| match file == weight {
            true => (file, "333".to_owned()),
            false => (file, text),
        })
        .collect();
    assert_eq!(settings(place.made()), after);
}

#[test]
fn a_reload_takes_up_again_what_was_left_alone() {
    let Some((mut place, _member, weight)) =
        bound("a_reload_takes_up_again_what_was_left_alone", "critical")
    else {
        return;
    };
    place.start();
    eventually("the weight is set", || text(&weight) != "517");
    let ours = text(&weight);
    fs::write(&weight, "333").unwrap();
    place.await_event("bound", "foreign");
    place.json(&["reload"]);
    eventually("the weight is set again", || text(&weight) == ours);
    place.stop_well();
}
