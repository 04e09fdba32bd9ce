//! Whom the kernel ends first when memory is out, on the kernel that runs this test.

#![expect(dead_code, reason = "these tests do not use all of the support")]

#[cfg(test)]
mod support;

use std::collections::BTreeMap;
use std::path::Path;

use forebay_core::app::{AppId, OnStop};
use forebay_core::host::{Action, Host, Outcome};
use forebay_core::slice::{Knob, Setting, Slice};
use forebay_host::mounts::Controller;
use support::*;

const FIRST: Setting = Setting::OomScoreAdj(503);

/// One that chose for itself, its child, which it gave the default on purpose, and two of which
/// nobody said anything.
const FAMILY: &str = "
    (echo 300 > /proc/self/oom_score_adj
     exec sh -c 'sleep 1000 & echo 0 > /proc/$!/oom_score_adj; wait') &
    sleep 1000 &
    wait";

/// The values in a group, sorted.
fn values(dir: &Path) -> Vec<i32> {
    let value = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?;
        text.trim().parse().ok()
    };
    let mut values: Vec<i32> = members(dir).iter().filter_map(value).collect();
    values.sort_unstable();
    values
}

fn in_force(setting: Setting) -> BTreeMap<AppId, Slice> {
    [(id("job"), [setting].into_iter().collect())].into()
}

#[test]
fn only_who_has_no_value_gets_one_and_all_go_back() {
    let Some(place) = Place::new("oom_only_who_has_none") else {
        return;
    };
    let mut host = place.open();
    assert!(host.capabilities().knobs.contains(&Knob::OomScoreAdj));
    let app = program("job", &["sh", "-c", FAMILY]);
    look(&mut host, &[&app], 0);
    apply(
        &mut host,
        &[Action::Start {
            app: app.clone().into(),
        }],
    );
    let dir = place.dir(Controller::Cpu, "job");
    wait_for("the family", || values(&dir) == [0, 0, 0, 300]);
    apply(&mut host, &[set("job", FIRST)]);
    assert_eq!(values(&dir), [0, 300, 503, 503]);

    // Who comes later is noticed, and a killed daemon's successor knows what to put back.
    let mut late = std::process::Command::new("sh")
        .args(["-c", "echo 0 > /proc/self/oom_score_adj; exec sleep 1000"])
        .spawn()
        .unwrap();
    let value = format!("/proc/{}/oom_score_adj", late.id());
    wait_for("the default", || {
        text(Path::new(&value)) == "0" && command_of(late.id()).starts_with("sleep")
    });
    let enter = Action::Enter {
        app: id("job"),
        pids: vec![late.id()],
    };
    apply(&mut host, &[enter]);
    let exposed = |host: &mut _| {
        (0..10).any(|period| {
            let mut snapshot = look_with(host, &[&app], period, &in_force(FIRST));
            let sample = snapshot.apps.remove(&app.id).unwrap();
            sample.unsettled.contains(&Knob::OomScoreAdj)
        })
    };
    assert!(exposed(&mut host));
    apply(&mut host, &[set("job", FIRST)]);
    assert_eq!(values(&dir), [0, 300, 503, 503, 503]);
    assert!(!exposed(&mut host));
    drop(host);

    let mut host = place.open();
    let found = look(&mut host, &[&app], 0).apps.remove(&app.id).unwrap();
    assert!(found.found.contains(&FIRST), "{:?}", found.found);
    let pids = members(&dir);
    let report = host.close(OnStop::Keep).unwrap();
    assert!(report.is_complete(), "{report:?}");
    let mut left: Vec<String> = pids
        .iter()
        .map(|pid| text(Path::new(&format!("/proc/{pid}/oom_score_adj"))))
        .collect();
    left.sort_unstable();
    assert_eq!(left, ["0", "0", "0", "0", "300"]);
    late.kill().unwrap();
    late.wait().unwrap();
}

#[test]
fn another_class_is_another_value() {
    let Some(place) = Place::new("oom_another_class") else {
        return;
    };
    let mut host = place.open();
    // What the daemon has is not for its programs.
    let own = Path::new("/proc/self/oom_score_adj");
    let before = text(own);
    std::fs::write(own, "77").unwrap();
    let app = program("job", &["sh", "-c", "sleep 1000 & wait"]);
    look(&mut host, &[&app], 0);
    apply(
        &mut host,
        &[Action::Start {
            app: app.clone().into(),
        }],
    );
    let dir = place.dir(Controller::Cpu, "job");
    wait_for("the child", || members(&dir).len() == 2);
    apply(&mut host, &[set("job", FIRST)]);
    assert_eq!(values(&dir), [503, 503]);
    std::fs::write(own, before).unwrap();
    apply(&mut host, &[set("job", Setting::OomScoreAdj(0))]);
    assert_eq!(values(&dir), [0, 0]);
    // Lower than it was takes CAP_SYS_RESOURCE: either all have it, or it is said and none has.
    apply(&mut host, &[set("job", FIRST)]);
    let outcome = host.apply(&[set("job", Setting::OomScoreAdj(-903))]);
    match outcome.as_slice() {
        [Outcome::Done] => assert_eq!(values(&dir), [-903, -903]),
        [Outcome::Unsupported] => assert_eq!(values(&dir), [0, 0]),
        other => panic!("{other:?}"),
    }
    let nonsense = host.apply(&[set("job", Setting::OomScoreAdj(1001))]);
    assert!(matches!(nonsense.as_slice(), [Outcome::Failed(_)]));
}
