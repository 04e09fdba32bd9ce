//! Start, reload, stop: what runs on, what ends, and what the next daemon takes up.

use std::fs;
use std::process::Command;

use rustix::process::Signal;

use crate::place::{Place, eventually, groups_of, is_running, signal, sleepers};

#[test]
fn a_stop_puts_everything_back_and_programs_run_on() {
    let Some(mut place) = Place::new("a_stop_puts_everything_back_and_programs_run_on") else {
        return;
    };
    place.configure(&format!(
        "[apps.a]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n[apps.b]\nclass = \"batch\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1),
        place.seconds(2)
    ));
    place.start();
    let pids = [place.await_pid("a"), place.await_pid("b")];
    place.await_app("a", "partitioned", |app| app["slice"]["cpus"].is_string());
    place.stop_well();
    for pid in pids {
        assert!(is_running(pid), "on_stop is keep");
        assert!(!groups_of(pid).contains(&place.group));
    }
    // The next daemon takes up the same processes.
    place.start();
    assert_eq!([place.await_pid("a"), place.await_pid("b")], pids);
    eventually("they are in their slices", || {
        pids.iter()
            .all(|pid| groups_of(*pid).contains(&place.group))
    });
    place.stop_well();
}

#[test]
fn an_interrupt_is_a_stop_too() {
    let Some(mut place) = Place::new("an_interrupt_is_a_stop_too") else {
        return;
    };
    place.configure(&format!(
        "[apps.a]\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1)
    ));
    let pid = place.start();
    place.await_pid("a");
    signal(pid, Signal::INT);
    // The second signal finds it on its way out.
    place.stop_well();
}

#[test]
fn programs_end_with_the_daemon_when_told_to() {
    let Some(mut place) = Place::new("programs_end_with_the_daemon_when_told_to") else {
        return;
    };
    // One that takes a SIGTERM for nothing.
    let (polite, deaf) = (place.seconds(1), place.path("deaf").display().to_string());
    place.configure(&format!(
        "[policy]\non_stop = \"kill\"\n[apps.polite]\nexec = [\"sleep\", \"{polite}\"]\n\
         [apps.deaf]\nexec = [\"sh\", \"-c\", \"trap '' TERM; while :; do sleep 1; done\", \"{deaf}\"]\n"
    ));
    place.start();
    let pids = [place.await_pid("polite"), place.await_pid("deaf")];
    place.stop_well();
    assert!(!pids.into_iter().any(is_running));
}

#[test]
fn a_signal_while_it_starts_leaves_nothing() {
    let Some(place) = Place::new("a_signal_while_it_starts_leaves_nothing") else {
        return;
    };
    place.configure(&format!(
        "[policy]\non_stop = \"kill\"\n[apps.a]\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1)
    ));
    let state = place.path("state");
    let mut daemon = place.daemon_command().spawn().unwrap();
    // The state directory is the first thing it makes.
    eventually("it begins", || state.exists());
    signal(daemon.id(), Signal::TERM);
    let status = crate::place::wait_for_end(&mut daemon).unwrap();
    assert!(status.success(), "{status}");
    place.assert_nothing_left();
    assert_eq!(sleepers(&place.seconds(1)), Vec::<u32>::new());
    eventually("no guardian stays", || place.guardians().is_empty());
}

#[test]
fn a_reload_adds_and_removes_apps() {
    let Some(mut place) = Place::new("a_reload_adds_and_removes_apps") else {
        return;
    };
    let app = |name: &str, n: u32| {
        format!(
            "[apps.{name}]\nexec = [\"sleep\", \"{}\"]\n",
            place.seconds(n)
        )
    };
    let both = [app("a", 1), app("b", 2)].concat();
    let other = [app("a", 1), app("c", 3)].concat();
    place.configure(&both);
    let daemon = place.start();
    let (a, b) = (place.await_pid("a"), place.await_pid("b"));
    place.configure(&other);
    signal(daemon, Signal::HUP);
    place.await_pid("c");
    place.await_app("b", "gone", serde_json::Value::is_null);
    eventually("b is out of its slice", || {
        !groups_of(b).contains(&place.group)
    });
    assert!(is_running(b), "a reload ended a program");
    assert_eq!(place.await_pid("a"), a);
    place.configure(&both);
    let said = place.json(&["reload"]).to_string();
    assert!(said.contains("c is no longer configured"), "{said}");
    assert_eq!(place.await_pid("b"), b, "taken up again, not started again");
    place.stop_well();
}

#[test]
fn a_reload_changes_what_happens_at_the_stop() {
    let Some(mut place) = Place::new("a_reload_changes_what_happens_at_the_stop") else {
        return;
    };
    let app = format!("[apps.a]\nexec = [\"sleep\", \"{}\"]\n", place.seconds(1));
    place.configure(&app);
    place.start();
    let pid = place.await_pid("a");
    let guardian = place.guardians();
    place.configure(&format!("[policy]\non_stop = \"kill\"\n{app}"));
    place.json(&["reload"]);
    eventually("the guardian knows", || {
        let now = place.guardians();
        now.len() == 1 && now != guardian
    });
    place.stop_well();
    assert!(!is_running(pid));
}

#[test]
fn apps_that_are_configured_no_more_are_released_at_the_start() {
    let Some(mut place) = Place::new("apps_that_are_configured_no_more_are_released_at_the_start")
    else {
        return;
    };
    let app = |name: &str, n: u32| {
        format!(
            "[apps.{name}]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n",
            place.seconds(n)
        )
    };
    let (a, b) = (app("a", 1), app("b", 2));
    place.configure(&[a.clone(), b].concat());
    place.start();
    let (a_pid, b_pid) = (place.await_pid("a"), place.await_pid("b"));
    place.await_app("b", "partitioned", |app| app["slice"]["cpus"].is_string());
    place.crash();
    place.configure(&a);
    place.start();
    assert_eq!(place.await_pid("a"), a_pid);
    assert!(
        !groups_of(b_pid).contains(&place.group),
        "b is in a slice that nobody plans"
    );
    assert!(is_running(b_pid));
    assert!(
        place.log().contains("no longer configured"),
        "{}",
        place.log()
    );
    assert!(place.app("b").is_null());
    let left = place.groups_left();
    assert!(
        !left
            .iter()
            .any(|dir| dir.ends_with(format!("{}.b", place.group))),
        "{left:?}"
    );
    place.stop_well();
}

#[test]
fn a_restore_by_hand_puts_everything_back() {
    let Some(mut place) = Place::new("a_restore_by_hand_puts_everything_back") else {
        return;
    };
    place.configure(&format!(
        "[apps.a]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1)
    ));
    place.start();
    let pid = place.await_pid("a");
    let refused = place.restore(&[]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("has it") && said.lines().count() == 1,
        "{said}"
    );

    for guardian in place.guardians() {
        signal(guardian, Signal::KILL);
    }
    place.crash();
    let restored = place.restore(&["--json"]);
    assert!(restored.status.success(), "{restored:?}");
    let report: serde_json::Value = serde_json::from_slice(&restored.stdout).unwrap();
    assert!(report["groups"].as_u64() > Some(0), "{report}");
    assert_eq!(place.groups_left(), Vec::<std::path::PathBuf>::new());
    assert!(is_running(pid));
    // Once more does nothing.
    let again = place.restore(&[]);
    assert!(again.status.success(), "{again:?}");
    assert!(place.restore(&["--kill"]).status.success());
    assert!(!is_running(pid));
    fs::remove_file(place.path("socket")).unwrap();
}

#[test]
fn a_restore_without_a_state_directory_has_nothing_to_do() {
    let output = Command::new(crate::place::EXE.as_str())
        .args(["restore", "--state-dir", "/no/where/at/all"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}
