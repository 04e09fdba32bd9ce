//! From nothing to a configuration: `forebay setup`, and a daemon that only observes.

use std::fs;
use std::process::{Command, Output};

use crate::place::{EXE, Knob, Place, Sleeper, eventually, knob_in, text};

fn setup(place: &Place, arguments: &[&str]) -> Output {
    let mut command = Command::new(EXE.as_str());
    command.args(["setup", "--seconds", "1", "--config"]);
    command
        .arg(place.path("new/forebay.toml"))
        .args(arguments)
        .output()
        .unwrap()
}

fn table(place: &Place) -> toml::Table {
    let text = fs::read_to_string(place.path("new/forebay.toml")).unwrap();
    text.parse()
        .unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A group with a process that is nobody's app yet.
fn shop(place: &mut Place) -> (String, Sleeper) {
    let group = place.make_group("shop");
    let server = Sleeper::new(&place.seconds(1));
    for dir in place.made() {
        fs::write(dir.join("cgroup.procs"), server.pid().to_string()).unwrap();
    }
    (group, server)
}

#[test]
fn a_new_user_is_led_to_a_configuration_that_observes_or_protects() {
    let name = "a_new_user_is_led_to_a_configuration_that_observes_or_protects";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    let (group, _server) = shop(&mut place);

    let refused = setup(&place, &["--protect", "no-such-service"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.contains("start it first") && said.contains(&group),
        "{said}"
    );
    assert!(!place.path("new").exists(), "nothing is written");

    let shown = setup(&place, &["--dry-run"]);
    assert!(shown.status.success(), "{shown:?}");
    assert!(!place.path("new").exists(), "nothing is written");

    let observes = setup(&place, &[]);
    let said = String::from_utf8(observes.stdout).unwrap();
    assert!(observes.status.success(), "{said}");
    for step in [
        "1. Host",
        "2. Services",
        "3. Configuration",
        "4. Checked",
        "Next:",
    ] {
        assert!(said.contains(step), "{step} in {said}");
    }
    assert_eq!(table(&place)["policy"]["mode"].as_str(), Some("observe"));

    // What is there already stays.
    let file = place.path("new/forebay.toml");
    let before = fs::read(&file).unwrap();
    let refused = setup(&place, &["--protect", &group]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("left as it is"), "{said}");
    assert_eq!(fs::read(&file).unwrap(), before);

    // But for comments, as the package brings them: they stay, and settings come after them.
    fs::write(&file, "# of the package\n").unwrap();
    let protects = setup(&place, &["--protect", &group]);
    assert!(protects.status.success(), "{protects:?}");
    assert!(
        fs::read_to_string(&file)
            .unwrap()
            .starts_with("# of the package\n")
    );
    let written = table(&place);
    assert_eq!(written["policy"]["mode"].as_str(), Some("act"));
    let apps = written["apps"].as_table().unwrap();
    assert_eq!(apps.len(), 1, "{apps:?}");
    assert_eq!(apps[&group]["class"].as_str(), Some("critical"));
    assert_eq!(apps[&group]["cgroup"].as_str(), Some(group.as_str()));
    let mut check = Command::new(EXE.as_str());
    assert!(
        check
            .arg("check")
            .arg(&file)
            .output()
            .unwrap()
            .status
            .success()
    );
}

#[test]
fn a_daemon_that_only_observes_changes_nothing_until_it_may() {
    let name = "a_daemon_that_only_observes_changes_nothing_until_it_may";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    let (group, _server) = shop(&mut place);
    let configuration = |mode: &str| {
        format!(
            "[policy]\nmode = \"{mode}\"\n[apps.shop]\nclass = \"critical\"\ncgroup = \"{group}\"\n"
        )
    };
    let hierarchies = place.hierarchies.clone();
    let weight = || text(&knob_in(&hierarchies, &group, Knob::Weight));
    let before = weight();
    place.configure(&configuration("observe"));
    place.start();
    place.await_app("shop", "seen with its use", |app| {
        app["usage"]["memory_bytes"].is_u64()
    });
    let status = place.json(&["status"]);
    assert_eq!(status["paused"], true, "{status}");
    assert_eq!(weight(), before, "it was changed");
    // What would be done can be asked for all the same.
    let plan = place.json(&["plan"]);
    assert!(plan.to_string().contains("shop"), "{plan}");
    place.fails(&["resume"], 1, &["policy.mode", "forebay reload"]);

    place.configure(&configuration("act"));
    place.json(&["reload"]);
    place.await_app("shop", "in its slice", |app| {
        app["slice"]["cpu_weight"] == 10_000
    });
    assert_ne!(weight(), before, "it was not changed");
    eventually("it acts", || place.json(&["status"])["paused"] == false);
    place.stop_well();
}
