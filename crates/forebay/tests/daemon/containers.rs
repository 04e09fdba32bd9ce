//! Apps that are containers of a real Docker or Podman.

use std::fs;

use forebay_host::mounts::{Controller, Version};

use crate::place::{Knob, Place, eventually, json_with_runtime, knob_in, text};
use crate::runtime::{Kind, Runtime};

/// A daemon that has a container as an app.
struct Web {
    // Dropped in this order: Forebay puts back what the runtime is there to be asked for.
    place: Place,
    runtime: Runtime,
}

const KNOBS: [Knob; 5] = [
    Knob::Weight,
    Knob::Quota,
    Knob::Cpus,
    Knob::MemoryMax,
    Knob::PidsMax,
];

impl Web {
    fn new(test: &str, kind: Kind, made_with: &[&str]) -> Option<Self> {
        let place = Place::new(test)?;
        let mut runtime = Runtime::new(test, kind, &place)?;
        runtime.run("web", made_with);
        let web = Self { place, runtime };
        web.configure(
            "class = \"critical\"\nceiling.pids = 99\nceiling.memory = \"300MiB\"\nceiling.cpu = 1.5\n",
        );
        Some(web)
    }

    fn configure(&self, keys: &str) {
        let socket = format!("container_socket = \"{}\"", self.runtime.socket.display());
        let app = format!("[apps.web]\ncontainer = \"web\"\n{keys}");
        self.place.configure_daemon(&socket, &app);
    }

    /// What the kernel has.
    fn file(&self, knob: Knob) -> String {
        self.file_in(&self.runtime.group("web"), knob)
    }

    fn file_in(&self, group: &str, knob: Knob) -> String {
        let mut file = knob_in(&self.place.hierarchies, group, knob);
        let (_, hierarchy) = self.place.hierarchies.of(Controller::Cpuset).unwrap();
        if matches!(knob, Knob::Cpus) && hierarchy.version == Version::V2 {
            // None set means all of the parent's, which is what comes back: no runtime can be
            // told to set none.
            file.set_extension("cpus.effective");
        }
        text(&file)
    }

    fn files(&self) -> [String; 5] {
        self.files_in(&self.runtime.group("web"))
    }

    fn files_in(&self, group: &str) -> [String; 5] {
        KNOBS.map(|knob| self.file_in(group, knob))
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
        assert_eq!(self.file(Knob::PidsMax), "99");
        assert_eq!(self.file(Knob::MemoryMax), (300 << 20).to_string());
        let quota = self.file(Knob::Quota);
        assert!(quota.starts_with("150000"), "{quota}");
    }

    fn ledger(&self) -> String {
        fs::read_to_string(self.place.path("state/ledger")).unwrap()
    }
}

/// The same with either runtime.
macro_rules! with_each {
    ($($check:ident)*) => {
        mod docker {
            $(#[test] fn $check() { super::$check(super::Kind::Docker, concat!("docker::", stringify!($check))) })*
        }
        mod podman {
            $(#[test] fn $check() { super::$check(super::Kind::Podman, concat!("podman::", stringify!($check))) })*
        }
    };
}

with_each! {
    a_container_is_limited_through_its_runtime_and_put_back
    the_guardian_has_the_runtime_put_back_what_a_killed_daemon_left
    what_somebody_updates_is_left_alone
    a_container_that_goes_and_comes_is_followed
    limits_that_a_container_was_made_with_stay_without_a_ceiling
    a_runtime_that_is_away_is_done_without_and_then_asked_again
    its_name_is_suggested
}

fn a_container_is_limited_through_its_runtime_and_put_back(kind: Kind, test: &str) {
    let Some(mut web) = Web::new(test, kind, &["--cpu-shares=500", "--pids-limit=4242"]) else {
        return;
    };
    let before = web.files();
    web.place.start();
    web.await_in_force();
    let explained = web.place.json(&["explain", "web"]);
    assert_eq!(explained["rules"]["binding"], "container web");
    if kind == Kind::Docker {
        let format = "{{.HostConfig.PidsLimit}} {{.HostConfig.Memory}} {{.HostConfig.CpuQuota}}";
        let known = web.runtime.command(&["inspect", "--format", format, "web"]);
        assert_eq!(known, "99 314572800 150000", "Docker does not know of it");
    }
    // A plan in force writes nothing.
    let ledger = web.ledger();
    web.await_periods();
    assert_eq!(web.ledger(), ledger);
    web.place.stop_well();
    assert_eq!(web.files(), before);
}

fn the_guardian_has_the_runtime_put_back_what_a_killed_daemon_left(kind: Kind, test: &str) {
    let Some(mut web) = Web::new(test, kind, &[]) else {
        return;
    };
    let before = web.files();
    web.place.start();
    web.await_in_force();
    web.place.crash();
    assert_ne!(web.files(), before);
    eventually("the guardian restores", || {
        web.place.groups_left().is_empty() && web.place.guardians().is_empty()
    });
    assert_eq!(web.files(), before);
    web.place.start();
    web.await_in_force();
    web.place.stop_well();
    assert_eq!(web.files(), before);
}

fn what_somebody_updates_is_left_alone(kind: Kind, test: &str) {
    let Some(mut web) = Web::new(test, kind, &[]) else {
        return;
    };
    let before = web.files();
    web.place.start();
    web.await_in_force();
    web.runtime.command(&["update", "--cpu-shares=321", "web"]);
    let message = web.place.await_event("web", "foreign");
    assert!(message.contains("cpu.weight"), "{message}");
    let theirs = web.file(Knob::Weight);
    assert_ne!(theirs, before[0]);
    web.await_periods();
    assert_eq!(web.file(Knob::Weight), theirs, "it was fought over");
    web.place.json(&["reload"]);
    eventually("a reload takes it up again", || {
        web.file(Knob::Weight) != theirs
    });
    web.await_in_force();
    web.runtime.command(&["update", "--cpu-shares=321", "web"]);
    web.place.stop_well();
    let mut left = before;
    left[0] = theirs;
    assert_eq!(web.files(), left, "a restore leaves what somebody else set");
}

fn a_container_that_goes_and_comes_is_followed(kind: Kind, test: &str) {
    let Some(mut web) = Web::new(test, kind, &[]) else {
        return;
    };
    let before = web.files();
    web.runtime.run("other", &[]);
    web.configure("class = \"critical\"\nceiling.pids = 99\nceiling.memory = \"300MiB\"\nceiling.cpu = 1.5\n[apps.other]\ncontainer = \"other\"\n");
    web.place.start();
    web.await_in_force();
    // The same container with another process, in a group that was made anew.
    web.runtime.command(&["restart", "--time=0", "web"]);
    eventually("in force after a restart", || {
        web.file(Knob::PidsMax) == "99"
    });
    web.await_in_force();
    let first = web.runtime.group("web");
    web.runtime.remove("web");
    web.place
        .await_app("web", "absent", |app| app["state"] == "absent");
    // While it is on its way out, Podman has other words for it.
    eventually("it is said that it is gone", || {
        let events = web.place.json(&["events", "--app", "web"]);
        let events = events["events"].as_array().unwrap();
        let words = ["look for container web", "has none of this name", "ps -a"];
        events.iter().any(|event| {
            let message = event["message"].as_str().unwrap();
            words.iter().all(|word| message.contains(word))
        })
    });
    assert_eq!(web.place.app("other")["state"], "running");
    // Another container under the same name.
    web.runtime.run("web", &[]);
    web.place
        .await_app("web", "running", |app| app["state"] == "running");
    eventually("in force in another container", || {
        web.file(Knob::PidsMax) == "99"
    });
    web.await_in_force();
    // A ledger that kept what is gone would grow with every container.
    let id = first.rsplit(['/', '-']).next().unwrap().to_owned();
    eventually("the ledger lets go of the first", || {
        web.place.log().contains("it is another by now")
    });
    let events = web.place.json(&["events", "--app", "web"]);
    let events = events["events"].as_array().unwrap();
    assert!(
        events.iter().all(|event| event["kind"] != "foreign"),
        "{events:#?}"
    );
    web.place.crash();
    web.place.start();
    assert!(!web.ledger().contains(&id), "{}", web.ledger());
    web.await_in_force();
    web.place.stop_well();
    assert_eq!(web.files(), before);
}

fn limits_that_a_container_was_made_with_stay_without_a_ceiling(kind: Kind, test: &str) {
    let made_with = ["--memory=200m", "--pids-limit=55", "--cpus=0.7"];
    let Some(mut web) = Web::new(test, kind, &made_with) else {
        return;
    };
    let before = web.files();
    assert_eq!(web.file(Knob::PidsMax), "55");
    web.configure("class = \"critical\"\n");
    web.place.start();
    web.place
        .await_app("web", "weighed", |app| app["slice"]["cpu_weight"] == 10_000);
    web.await_periods();
    let kept = |web: &Web| [Knob::Quota, Knob::MemoryMax, Knob::PidsMax].map(|knob| web.file(knob));
    assert_eq!(kept(&web)[..], [&before[1..2], &before[3..]].concat()[..]);
    web.configure("class = \"critical\"\nceiling.pids = 40\nceiling.cpu = 0.5\n");
    web.place.json(&["reload"]);
    eventually("the ceiling is in force", || {
        web.file(Knob::PidsMax) == "40" && web.file(Knob::Quota).starts_with("50000")
    });
    web.configure("class = \"critical\"\n");
    web.place.json(&["reload"]);
    eventually("its own limits are back", || {
        kept(&web)[..] == [&before[1..2], &before[3..]].concat()[..]
    });
    web.place.stop_well();
    assert_eq!(web.files(), before);
}

fn a_runtime_that_is_away_is_done_without_and_then_asked_again(kind: Kind, test: &str) {
    let Some(mut web) = Web::new(test, kind, &[]) else {
        return;
    };
    let before = web.files();
    let group = web.runtime.group("web");
    web.place.start();
    web.await_in_force();
    web.runtime.hide();
    let message = web.place.await_event("web", "failed");
    assert!(message.contains("no container runtime at"), "{message}");
    assert_eq!(web.place.app("web")["state"], "running", "it runs on");
    web.place.crash();
    eventually("the guardian gives up", || web.place.guardians().is_empty());
    assert_eq!(web.files_in(&group), before, "it is not put back");
    let restored = web.place.restore(&[]);
    assert!(!restored.status.success(), "{restored:?}");
    let said = String::from_utf8(restored.stderr).unwrap();
    let socket = web.runtime.socket.display().to_string();
    for word in ["directly", "forebay restore", &socket] {
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
    web.runtime.show();
    let restored = web.place.restore(&[]);
    assert!(restored.status.success(), "{restored:?}");
    if kind == Kind::Docker {
        let format = "{{.HostConfig.CpuShares}}";
        let known = web.runtime.command(&["inspect", "--format", format, "web"]);
        assert_eq!(known, "1024", "Docker would set it again");
    }
    assert_eq!(web.files(), before);
    // Its socket was left by the crash.
    web.place.start();
    web.place.stop_well();
}

fn its_name_is_suggested(kind: Kind, test: &str) {
    let Some(web) = Web::new(test, kind, &[]) else {
        return;
    };
    let words = ["adopt", "--suggest", "--json", "--seconds", "1"];
    let list = json_with_runtime(&web.runtime.socket, &words);
    let group = web.runtime.group("web");
    let mut own = list.as_array().unwrap().iter();
    let own = own.find(|one| one["cgroup"] == group.as_str());
    let own = own.unwrap_or_else(|| panic!("no {group}: {list:#}"));
    assert_eq!(
        (&own["container"], &own["name"]),
        (&"web".into(), &"web".into())
    );
    let owner = match kind {
        Kind::Docker => "docker container",
        Kind::Podman => "podman container",
    };
    assert_eq!(own["owner"], owner);
}
