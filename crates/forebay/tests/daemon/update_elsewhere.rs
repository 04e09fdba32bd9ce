//! Updates during which apps are on another host: daemons of their own on one machine, a real etcd.

use std::fs;

use serde_json::Value;

use crate::leaving::{Hosts, fleet};
use crate::place::{EXE, Place, eventually, processes};
use crate::update::{assert_nothing_of_it_is_left, last};

/// Two hosts and an app on the first one that may run on either.
pub(crate) struct Stage {
    pub(crate) hosts: Hosts,
    sleeper: String,
}

impl Stage {
    pub(crate) fn new(test: &str) -> Option<Self> {
        let mut hosts = Hosts::new(test, &["a", "b"])?;
        let sleeper = hosts.place("a").seconds(1);
        let app = format!(
            "[apps.one]\nrestart = \"always\"\nexec = [\"/bin/sleep\", \"{sleeper}\"]\n\
             move = {{ mode = \"restart\" }}\n"
        );
        let tied = format!(
            "[apps.tied]\nexec = [\"/bin/sleep\", \"{}\"]\n",
            hosts.place("a").seconds(2)
        );
        hosts.start("a", &(app.clone() + &tied));
        eventually("it has it", || hosts.owns("a") == ["one"]);
        hosts.start("b", &app);
        hosts.await_members();
        Some(Self { hosts, sleeper })
    }

    pub(crate) fn a(&self) -> &Place {
        self.hosts.place("a")
    }

    /// A command that says who has the app, and then waits until it may end.
    fn command(&self) -> Vec<String> {
        let own = self.a().path("");
        let script = format!(
            "{EXE} fleet status --json --socket {b} >{own}/seen; while [ ! -e {own}/go ]; do sleep 0.05; done",
            EXE = *EXE,
            b = self.hosts.place("b").path("socket").display(),
            own = own.display(),
        );
        ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
    }

    fn let_it_end(&self) {
        fs::write(self.a().path("go"), "").unwrap();
    }

    fn owned_meanwhile(&self) -> Value {
        let seen = fs::read_to_string(self.a().path("seen")).unwrap_or_default();
        let seen: Value = serde_json::from_str(&seen).unwrap_or_default();
        seen["owns"].clone()
    }

    /// Everything is where it was, and runs once.
    pub(crate) fn await_home(&self) {
        eventually("it is back", || {
            self.hosts.owns("a") == ["one"] && self.hosts.owns("b").is_empty()
        });
        let count =
            || processes(|words| words.last().is_some_and(|last| *last == self.sleeper)).len();
        eventually("it runs once", || count() == 1);
        let hosts = fleet(self.a(), &["hosts"]);
        let hosts = hosts["hosts"].as_array().unwrap();
        assert!(
            hosts.iter().all(|host| host["cordoned"] == false),
            "{hosts:?}"
        );
        assert_nothing_of_it_is_left(self.a());
    }
}

#[test]
fn apps_are_on_another_host_while_the_command_runs() {
    let Some(mut stage) = Stage::new("apps_are_on_another_host_while_the_command_runs") else {
        return;
    };
    let plan = stage
        .a()
        .json(&["update", "plan", "--rung", "other-host", "--", "true"]);
    let rung = |app: &str| {
        let apps = plan["apps"].as_array().unwrap();
        apps.iter().find(|one| one["app"] == app).unwrap()["rung"].clone()
    };
    assert_eq!(
        (rung("one"), rung("tied")),
        ("other-host".into(), "userspace".into())
    );
    assert_eq!(plan["refused"], serde_json::json!([]));
    let command = stage.command();
    let run = |detach: bool| {
        let mut words = vec!["update", "run", "--unproved", "--rung", "other-host"];
        words.extend(detach.then_some("--detach"));
        words.push("--");
        words.extend(command.iter().map(String::as_str));
        stage.a().json(&words)
    };
    stage.let_it_end();
    let receipt = run(false);
    assert_eq!(receipt["outcome"], "committed", "{receipt}");
    assert_eq!(receipt["troubles"], serde_json::json!([]), "{receipt}");
    assert_eq!(stage.owned_meanwhile(), serde_json::json!(["one"]));
    stage.await_home();

    // The daemon dies in the midst of it, and the next one brings it back.
    fs::remove_file(stage.a().path("go")).unwrap();
    fs::remove_file(stage.a().path("seen")).unwrap();
    run(true);
    eventually("the command runs", || {
        stage.owned_meanwhile() == serde_json::json!(["one"])
    });
    stage.hosts.restart("a");
    assert_eq!(stage.hosts.owns("b"), ["one"]);
    stage.let_it_end();
    eventually("it is over", || last(stage.a())["number"] == 2);
    let receipt = last(stage.a());
    assert_eq!(receipt["outcome"], "committed", "{receipt}");
    stage.await_home();
}

#[test]
fn a_reboot_that_an_app_cannot_leave_for_is_refused_and_nothing_stays_elsewhere() {
    let test = "a_reboot_that_an_app_cannot_leave_for_is_refused_and_nothing_stays_elsewhere";
    let Some(stage) = Stage::new(test) else {
        return;
    };
    let a = stage.a();
    // With a reboot apps leave by themselves.
    let plan = a.json(&["update", "plan", "--reboot", "--", "true"]);
    let rungs: Vec<&str> = plan["apps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["rung"].as_str().unwrap())
        .collect();
    assert_eq!(rungs, ["other-host", "reboot"], "{plan}");
    // Left to it, that is no way where it would end one of them.
    let plan = a.json(&["update", "plan", "--rung", "auto", "--", "true"]);
    assert_eq!(plan["chosen"], "reboot", "{plan}");
    let why = plan["passed_over"][0]["reason"].as_str().unwrap();
    assert!(why.contains("end tied, which cannot leave"), "{plan}");
    a.json(&["set", "tied", "class=batch"]);
    let plan = a.json(&["update", "plan", "--rung", "auto", "--", "true"]);
    assert_eq!(
        plan["chosen"], "other-host",
        "batch does not decide: {plan}"
    );
    let pid = a.await_pid("one");
    fleet(stage.hosts.place("b"), &["cordon", "b"]);
    eventually("b takes no more", || {
        let hosts = fleet(a, &["hosts"]);
        let hosts = hosts["hosts"].as_array().unwrap();
        hosts
            .iter()
            .any(|host| host["host"] == "b" && host["cordoned"] == true)
    });
    let asked = a.ask(&[
        "update",
        "run",
        "--unproved",
        "--reboot",
        "--json",
        "--",
        "true",
    ]);
    let receipt = last(a);
    assert!(!asked.status.success(), "{asked:?}");
    assert_eq!(receipt["outcome"], "rolled_back", "{receipt}");
    let troubles = receipt["troubles"].to_string();
    for word in ["one stays", "b: takes no more", "--rung reboot"] {
        assert!(troubles.contains(word), "{troubles}");
    }
    assert_eq!(a.await_pid("one"), pid, "it was not touched");
    fleet(stage.hosts.place("b"), &["uncordon", "b"]);
    eventually("a takes apps again", || {
        let hosts = fleet(a, &["hosts"]);
        let hosts = hosts["hosts"].as_array().unwrap();
        hosts.iter().all(|host| host["cordoned"] == false)
    });
    stage.await_home();
    // Whoever takes no apps could not have them back.
    fleet(a, &["cordon", "a"]);
    eventually("it is refused", || {
        let asked = a.ask(&["update", "run", "--rung", "other-host", "--", "true"]);
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        !asked.status.success() && said.contains("uncordon a")
    });
}
