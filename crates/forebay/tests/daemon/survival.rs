//! The daemon or its guardian is killed: nothing is lost, nothing is left.

use rustix::process::Signal;

use crate::place::{Knob, Place, eventually, groups_of, is_running, signal, text};

fn started(name: &str) -> Option<(Place, u32)> {
    let mut place = Place::new(name)?;
    place.configure_daemon(
        "",
        &format!(
            "[apps.a]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\nceiling.pids = 66\n",
            place.seconds(1)
        ),
    );
    place.start();
    let pid = place.await_pid("a");
    place.await_app("a", "partitioned", |app| {
        app["slice"]["cpus"].is_string() && app["slice"]["pids_max"] == 66
    });
    Some((place, pid))
}

#[test]
fn the_guardian_puts_back_what_a_killed_daemon_left() {
    let Some((mut place, pid)) = started("the_guardian_puts_back_what_a_killed_daemon_left") else {
        return;
    };
    place.crash();
    assert!(!place.groups_left().is_empty(), "the lease has just begun");
    eventually("the guardian restores", || {
        place.groups_left().is_empty() && place.guardians().is_empty()
    });
    assert!(is_running(pid), "on_stop is keep");
    assert!(!groups_of(pid).contains(&place.group));
    place.start();
    assert_eq!(place.await_pid("a"), pid);
    place.stop_well();
}

/// What is in force for the app, as the kernel has it.
fn in_force(place: &Place) -> [String; 4] {
    [Knob::Cpus, Knob::PidsMax, Knob::Weight, Knob::Procs].map(|knob| text(&place.knob("a", knob)))
}

#[test]
fn a_daemon_that_comes_back_in_time_disturbs_nothing() {
    let Some((mut place, pid)) = started("a_daemon_that_comes_back_in_time_disturbs_nothing")
    else {
        return;
    };
    let before = in_force(&place);
    place.crash();
    assert_eq!(in_force(&place), before);
    place.start();
    assert_eq!(place.await_pid("a"), pid);
    let app = place.await_app("a", "adopted", |app| app["slice"]["cpus"].is_string());
    assert_eq!(app["starts"], 0, "it was started again");
    assert_eq!(in_force(&place), before);
    eventually("the old guardian goes", || place.guardians().len() == 1);
    assert!(!place.groups_left().is_empty());
    place.stop_well();
    assert_eq!(place.guardians(), Vec::<u32>::new());
}

#[test]
fn a_killed_guardian_is_replaced() {
    let Some((mut place, pid)) = started("a_killed_guardian_is_replaced") else {
        return;
    };
    let [first] = place.guardians()[..] else {
        panic!("one guardian, not {:?}", place.guardians());
    };
    signal(first, Signal::KILL);
    eventually("another watches", || {
        let now = place.guardians();
        now.len() == 1 && now != [first]
    });
    assert_eq!(place.await_pid("a"), pid);
    // It does its work.
    place.crash();
    eventually("it restores", || place.groups_left().is_empty());
    eventually("its socket is gone", || !place.path("socket").exists());
}

#[test]
fn the_guardian_ends_programs_when_told_to() {
    let Some(mut place) = Place::new("the_guardian_ends_programs_when_told_to") else {
        return;
    };
    place.configure(&format!(
        "[policy]\non_stop = \"kill\"\n[apps.a]\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1)
    ));
    place.start();
    let pid = place.await_pid("a");
    place.crash();
    eventually("everything is gone", || {
        place.groups_left().is_empty() && !is_running(pid)
    });
    eventually("its socket is gone", || !place.path("socket").exists());
}

#[test]
fn daemon_and_guardian_killed_together_are_recovered_by_the_next_daemon() {
    let name = "daemon_and_guardian_killed_together_are_recovered_by_the_next_daemon";
    let Some((mut place, pid)) = started(name) else {
        return;
    };
    for guardian in place.guardians() {
        signal(guardian, Signal::KILL);
    }
    place.crash();
    place.start();
    assert_eq!(place.await_pid("a"), pid);
    assert_eq!(place.app("a")["starts"], 0);
    place.stop_well();
}
