//! Apps whose groups somebody else owns, and is asked to write.

use std::fs;

use crate::imitation::{Bus, Held, UNIT};
use crate::place::{Knob, Place, Sleeper, eventually, knob_in, text};

/// A daemon that has a unit of an imitated systemd as an app.
struct Unit {
    // Dropped in this order: the group has to be empty, and the bus there to the end.
    member: Sleeper,
    place: Place,
    bus: Bus,
    group: String,
}

impl Unit {
    fn new(test: &str) -> Option<Self> {
        let mut place = Place::new(test)?;
        let group = place.make_group(UNIT);
        let bus = Bus::new(test, &place.path(""), &group)?;
        let member = Sleeper::new(&place.seconds(1));
        for dir in place.made() {
            fs::write(dir.join("cgroup.procs"), member.pid().to_string()).unwrap();
        }
        place.configure(&format!(
            "[apps.web]\nclass = \"critical\"\nsystemd = \"{UNIT}\"\nceiling.pids = 99\nceiling.memory = \"300MiB\"\nceiling.cpu = 1.5\n"
        ));
        Some(Self {
            place,
            bus,
            group,
            member,
        })
    }

    fn start(&mut self) {
        let mut command = self.place.daemon_command();
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &self.bus.address);
        self.place.start_with(command);
    }

    /// What the kernel has.
    fn file(&self, knob: Knob) -> String {
        text(&knob_in(&self.place.hierarchies, &self.group, knob))
    }

    /// What systemd has.
    fn held(&self) -> [u64; 4] {
        let units = self.bus.units();
        ["CPUWeight", "CPUQuotaPerSecUSec", "MemoryMax", "TasksMax"]
            .map(|property| units.number(property))
    }

    fn await_periods(&self) {
        let period = || self.place.json(&["status"])["period"].as_u64().unwrap();
        let now = period();
        eventually("more periods", || period() > now + 25);
    }

    #[track_caller]
    fn await_in_force(&self) {
        self.place.await_app("web", "limited", |app| {
            app["slice"]["pids_max"] == 99
                && app["slice"]["cpu_weight"] == 10_000
                && app["slice"]["memory_max_bytes"] == 300 << 20
        });
    }
}

const ORIGINAL: [u64; 4] = [100, u64::MAX, u64::MAX, 4242];
const WANTED: [u64; 4] = [10_000, 1_500_000, 300 << 20, 99];

fn unit(test: &str) -> Option<Unit> {
    let unit = Unit::new(test)?;
    let mut units = unit.bus.units();
    units.set("CPUWeight", Held::Number(ORIGINAL[0]));
    units.set("TasksMax", Held::Number(ORIGINAL[3]));
    drop(units);
    Some(unit)
}

#[test]
fn systemd_is_asked_to_write_and_to_put_back() {
    let Some(mut unit) = unit("systemd_is_asked_to_write_and_to_put_back") else {
        return;
    };
    let knobs = [Knob::Weight, Knob::Quota, Knob::MemoryMax, Knob::PidsMax];
    let files = |unit: &Unit| knobs.map(|knob| unit.file(knob));
    let before = files(&unit);
    unit.start();
    unit.await_in_force();
    assert_eq!(unit.held(), WANTED);
    let calls = unit.bus.units().calls.clone();
    assert!(
        calls
            .iter()
            .all(|(name, runtime, _)| name == UNIT && *runtime)
    );
    assert_eq!(calls.len(), 1, "one call for all of it: {calls:?}");
    let explained = unit.place.json(&["explain", "web"]);
    assert_eq!(explained["rules"]["binding"], format!("systemd {UNIT}"));
    // A plan in force asks for nothing.
    unit.await_periods();
    assert_eq!(unit.bus.units().calls, calls);
    unit.place.stop_well();
    assert_eq!(unit.held(), ORIGINAL);
    assert_eq!(files(&unit), before);
}

#[test]
fn what_systemd_has_no_way_to_set_is_said_once() {
    let Some(mut unit) = unit("what_systemd_has_no_way_to_set_is_said_once") else {
        return;
    };
    unit.start();
    unit.await_in_force();
    // The CPUs of units are systemd's to give on v2 only, and uclamp nowhere: this host has v1.
    let said = |unit: &Unit| {
        let events = unit.place.json(&["events", "--app", "web"]);
        let events = events["events"].as_array().unwrap().iter();
        let message = "cpuset.cpus is not set for web: its owner, systemd, has no way to set it";
        events.filter(|event| event["message"] == message).count()
    };
    eventually("it is said", || said(&unit) > 0);
    unit.await_periods();
    assert_eq!(said(&unit), 1);
    // Nobody asked for a limit of what it sends.
    let events = unit.place.json(&["events", "--app", "web"]).to_string();
    assert!(!events.contains("egress.max"), "{events}");
    unit.place.stop_well();
}

#[test]
fn the_guardian_has_systemd_put_back_what_a_killed_daemon_left() {
    let Some(mut unit) = unit("the_guardian_has_systemd_put_back_what_a_killed_daemon_left") else {
        return;
    };
    unit.start();
    unit.await_in_force();
    unit.place.crash();
    assert_eq!(unit.held(), WANTED);
    eventually("the guardian restores", || {
        unit.place.groups_left().is_empty() && unit.place.guardians().is_empty()
    });
    assert_eq!(unit.held(), ORIGINAL);
    unit.start();
    unit.place.stop_well();
}

#[test]
fn a_daemon_that_comes_back_takes_over_what_systemd_holds() {
    let Some(mut unit) = unit("a_daemon_that_comes_back_takes_over_what_systemd_holds") else {
        return;
    };
    unit.start();
    unit.await_in_force();
    let calls = unit.bus.units().calls.clone();
    unit.place.crash();
    unit.start();
    unit.await_in_force();
    unit.await_periods();
    assert_eq!(unit.bus.units().calls, calls, "it was written again");
    unit.place.stop_well();
    assert_eq!(unit.held(), ORIGINAL);
}

#[test]
fn what_an_administrator_sets_is_left_alone() {
    let Some(mut unit) = unit("what_an_administrator_sets_is_left_alone") else {
        return;
    };
    unit.start();
    unit.await_in_force();
    unit.bus.units().set("CPUWeight", Held::Number(321));
    let message = unit.place.await_event("web", "foreign");
    assert!(message.contains("cpu.weight"), "{message}");
    unit.await_periods();
    assert_eq!(
        unit.bus.units().number("CPUWeight"),
        321,
        "it was fought over"
    );
    unit.place.json(&["reload"]);
    eventually("a reload takes it up again", || unit.held() == WANTED);
    // Until the answer has come, the daemon does not know that its own value was there.
    unit.await_periods();
    unit.bus.units().set("CPUWeight", Held::Number(321));
    unit.place.stop_well();
    let mut left = ORIGINAL;
    left[0] = 321;
    assert_eq!(unit.held(), left, "a restore leaves what somebody else set");
}

#[test]
fn a_refusal_names_unit_and_property_and_is_tried_again() {
    let Some(mut unit) = unit("a_refusal_names_unit_and_property_and_is_tried_again") else {
        return;
    };
    unit.bus.units().refuses = Some("not today".to_owned());
    unit.start();
    let message = unit.place.await_event("web", "failed");
    for word in [UNIT, "TasksMax = 99", "not today", "web"] {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    unit.bus.units().refuses = None;
    unit.await_in_force();
    unit.place.stop_well();
    assert_eq!(unit.held(), ORIGINAL);
}

#[test]
fn a_unit_that_is_not_there_and_a_manager_that_is_away_are_said() {
    let test = "a_unit_that_is_not_there_and_a_manager_that_is_away_are_said";
    let Some(mut place) = Place::new(test) else {
        return;
    };
    place.configure("[apps.web]\nsystemd = \"nowhere.service\"\n");
    let mut command = place.daemon_command();
    command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/no/such/bus");
    place.start_with(command);
    let message = place.await_event("web", "failed");
    for word in ["nowhere.service", "/no/such/bus", "is systemd running"] {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    assert_eq!(place.app("web")["state"], "absent");
    place.stop_well();
}

#[test]
fn a_silent_bus_holds_up_no_period() {
    let Some(mut place) = Place::new("a_silent_bus_holds_up_no_period") else {
        return;
    };
    let socket = place.path("silent");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    place.configure("[apps.web]\nsystemd = \"web.service\"\n");
    let mut command = place.daemon_command();
    let address = format!("unix:path={}", socket.display());
    command.env("DBUS_SYSTEM_BUS_ADDRESS", address);
    place.start_with(command);
    let silent = listener.accept().unwrap();
    // Were a period to wait for the bus, so many would take longer than a test waits.
    let period = || place.json(&["status"])["period"].as_u64().unwrap();
    let now = period();
    eventually("periods go on", || period() > now + 40);
    let message = place.await_event("web", "failed");
    assert!(message.contains("timed out"), "{message}");
    place.stop_well();
    drop(silent);
}

#[test]
fn a_unit_whose_processes_are_another_apps_is_left_alone() {
    let Some(mut unit) = unit("a_unit_whose_processes_are_another_apps_is_left_alone") else {
        return;
    };
    unit.place.configure(&format!(
        "[apps.a]\ncgroup = \"{}\"\n[apps.web]\nclass = \"critical\"\nsystemd = \"{UNIT}\"\n",
        unit.group
    ));
    unit.start();
    let message = unit.place.await_event("web", "failed");
    for word in [UNIT, "app a has", "processes of its own"] {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
    unit.await_periods();
    assert_eq!(unit.place.app("web")["state"], "absent");
    assert_eq!(unit.bus.units().calls, []);
    unit.place.stop_well();
}

#[test]
fn an_app_that_leaves_the_configuration_is_put_back_while_the_daemon_runs() {
    let test = "an_app_that_leaves_the_configuration_is_put_back_while_the_daemon_runs";
    let Some(mut unit) = unit(test) else {
        return;
    };
    unit.start();
    unit.await_in_force();
    unit.place.configure("");
    unit.place.json(&["reload"]);
    eventually("systemd has what it had", || unit.held() == ORIGINAL);
    unit.place.stop_well();
}

#[test]
fn a_group_that_is_made_anew_is_looked_at_once_systemd_has_filled_it() {
    let test = "a_group_that_is_made_anew_is_looked_at_once_systemd_has_filled_it";
    let Some(mut unit) = unit(test) else {
        return;
    };
    unit.start();
    unit.await_in_force();
    // A restart, as slow as can be: the old group goes, the new one is empty of settings.
    let member = unit.member.pid().to_string();
    let group = std::mem::take(&mut unit.bus.units().group);
    for dir in unit.place.made() {
        fs::write(dir.parent().unwrap().join("cgroup.procs"), &member).unwrap();
        fs::remove_dir(dir).unwrap();
    }
    unit.place
        .await_app("web", "absent", |app| app["state"] == "absent");
    for dir in unit.place.made() {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("cgroup.procs"), &member).unwrap();
    }
    unit.await_periods();
    assert_eq!(unit.place.app("web")["state"], "absent");
    let mut units = unit.bus.units();
    units.group = group;
    for (property, value) in units.values.clone() {
        units.set(&property, value);
    }
    drop(units);
    unit.place
        .await_app("web", "running", |app| app["state"] == "running");
    unit.await_in_force();
    unit.await_periods();
    let events = unit.place.json(&["events", "--app", "web"]);
    let events = events["events"].as_array().unwrap();
    assert!(
        events.iter().all(|event| event["kind"] != "foreign"),
        "{events:#?}"
    );
    unit.place.stop_well();
    assert_eq!(unit.held(), ORIGINAL);
}

#[test]
fn a_unit_that_stops_and_starts_is_followed() {
    let Some(mut unit) = unit("a_unit_that_stops_and_starts_is_followed") else {
        return;
    };
    unit.start();
    unit.await_in_force();
    let group = std::mem::take(&mut unit.bus.units().group);
    unit.place
        .await_app("web", "absent", |app| app["state"] == "absent");
    unit.bus.units().group = group;
    unit.place
        .await_app("web", "running", |app| app["state"] == "running");
    unit.await_in_force();
    unit.place.stop_well();
    assert_eq!(unit.held(), ORIGINAL);
}
