//! Updates of the operating system: real commands, real package managers, a daemon that dies.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fronts::{Stage, request};
use crate::place::{EXE, PATIENCE, Place, eventually, processes, sleepers, text};

/// A client that asks one request after the other until it is told to end.
pub(crate) struct Client {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What a client saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) failed: usize,
    took: Vec<(Instant, Duration)>,
}

impl Seen {
    /// What one answer in a hundred exceeds, of those since a moment or before it.
    fn p99(&self, counts: impl Fn(Instant) -> bool) -> Duration {
        let took = self.took.iter().filter(|(at, _)| counts(*at));
        let mut took: Vec<Duration> = took.map(|(_, took)| *took).collect();
        took.sort_unstable();
        took[took.len() * 99 / 100]
    }
}

impl Client {
    pub(crate) fn start(port: u16) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            let connect = || {
                let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream
            };
            let mut stream = connect();
            while !told.load(Ordering::Relaxed) {
                let began = Instant::now();
                if request(&mut stream) == Some(200) {
                    seen.took.push((began, began.elapsed()));
                } else {
                    seen.failed += 1;
                    stream = connect();
                }
                // A client that does nothing else would be what critical apps suffer from.
                std::thread::sleep(Duration::from_millis(2));
            }
            seen
        });
        Self { ends, thread }
    }

    pub(crate) fn end(self) -> Seen {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// A package of one file, and a root with a database of its own to install it in.
pub(crate) fn package(place: &Place) -> (PathBuf, PathBuf) {
    let tree = place.path("package");
    fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    fs::create_dir_all(tree.join("usr/share/forebay-test")).unwrap();
    fs::write(tree.join("usr/share/forebay-test/file"), "new\n").unwrap();
    fs::write(
        tree.join("DEBIAN/control"),
        "Package: forebay-test\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n\
         Description: a file\n",
    )
    .unwrap();
    let file = place.path("package.deb");
    let made = Command::new("dpkg-deb")
        .arg("--build")
        .arg(&tree)
        .arg(&file)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let root = place.path("root");
    for dir in ["info", "updates", "triggers"] {
        fs::create_dir_all(root.join("var/lib/dpkg").join(dir)).unwrap();
    }
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    (file, root)
}

/// The receipt of the latest update.
pub(crate) fn last(place: &Place) -> Value {
    let updates = place.json(&["update", "status"]);
    let history = updates["history"].as_array().unwrap();
    history.last().cloned().unwrap_or(Value::Null)
}

#[track_caller]
pub(crate) fn assert_nothing_of_it_is_left(place: &Place) {
    let apps = place.json(&["apps"]);
    let apps = apps["apps"].as_array().unwrap();
    let left: Vec<&Value> = apps
        .iter()
        .filter(|app| app["name"].as_str().unwrap().starts_with("os-update."))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let errands = processes(|words| {
        let dir = place.path("state/update").display().to_string();
        words.iter().any(|word| word.starts_with(&dir))
    });
    assert_eq!(errands, [0; 0]);
}

#[test]
fn a_package_is_installed_under_load_and_services_are_replaced_behind_their_front() {
    let name = "a_package_is_installed_under_load_and_services_are_replaced_behind_their_front";
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        println!("SKIPPED: {name}: there is no dpkg");
        return;
    }
    let Some(mut stage) = Stage::of_mode(name, "http", "") else {
        return;
    };
    let place = &stage.place;
    let (file, root) = package(place);
    let old = [place.await_pid("a"), place.await_pid("b")];
    let client = Client::start(stage.port);
    let plan = place.json(&["update", "plan", "--restart", "a", "--", "true"]);
    let choice = plan["apps"].as_array().unwrap();
    let choice = choice.iter().find(|choice| choice["app"] == "a").unwrap();
    assert_eq!(choice["rung"], "userspace", "{plan}");
    assert_eq!(plan["refused"], serde_json::json!([]));
    let began = Instant::now();
    let receipt = place.json(&[
        "update",
        "run",
        "--unproved",
        "--restart",
        "a",
        "--restart",
        "b",
        "--",
        "dpkg",
        "--root",
        root.to_str().unwrap(),
        "--install",
        file.to_str().unwrap(),
    ]);
    let took = began.elapsed();
    let seen = client.end();
    println!("{receipt:#}");
    let before = seen.p99(|at| at < began);
    let during = seen.p99(|at| at >= began);
    println!(
        "{} answers; p99 before {before:?}, in {took:?} of the update {during:?}",
        seen.took.len()
    );
    assert_eq!(receipt["outcome"], "committed");
    assert_eq!(seen.failed, 0);
    let installed = root.join("usr/share/forebay-test/file");
    assert_eq!(fs::read_to_string(installed).unwrap(), "new\n");
    for (app, old) in ["a", "b"].iter().zip(old) {
        assert_ne!(place.await_pid(app), old, "{app} was replaced");
    }
    let front = &receipt["fronts"][0];
    assert_eq!(
        (&front["failed"], &front["unknown"]),
        (&0.into(), &0.into())
    );
    assert!(
        front["during"]["answers"].as_u64().unwrap() > 100,
        "{front}"
    );
    assert_eq!(front["hand_overs"].as_array().unwrap().len(), 1, "{front}");
    assert!(front["pause_ms"].as_f64().unwrap() > 0.0);
    assert!(receipt["apps"][0]["p99_loaded_ms"].is_number(), "{receipt}");
    assert_nothing_of_it_is_left(place);
    stage.place.stop_well();
}

/// A daemon with one app that may be restarted.
pub(crate) fn alone(test: &str) -> Option<Place> {
    let place = Place::new(test)?;
    place.configure(&format!(
        "[apps.web]\nclass = \"critical\"\nexec = [\"sleep\", \"{}\"]\n",
        place.seconds(1)
    ));
    Some(place)
}

pub(crate) fn append(file: &Path) -> String {
    format!("echo x >> {}", file.display())
}

#[test]
fn a_command_that_fails_is_undone_by_what_was_declared() {
    let Some(mut place) = alone("a_command_that_fails_is_undone_by_what_was_declared") else {
        return;
    };
    place.start();
    let undone = place.path("undone");
    let rollback = append(&undone);
    let run = |arguments: &[&str]| {
        let output = place.ask(&[&["update", "run"][..], arguments].concat());
        (output.status.code(), last(&place))
    };
    let (code, receipt) = run(&["--rollback", &rollback, "--", "false"]);
    assert_eq!(
        (code, &receipt["outcome"]),
        (Some(1), &"rolled_back".into())
    );
    assert_eq!(text(&undone), "x");
    let said = receipt["troubles"][0].as_str().unwrap();
    assert!(said.contains("ended with status 1"), "{said}");
    // Without anything that undoes it somebody has to look.
    let (code, receipt) = run(&["--", "false"]);
    assert_eq!((code, &receipt["outcome"]), (Some(1), &"alarmed".into()));
    let next = receipt["next"].as_str().unwrap();
    assert!(
        next.contains("nobody knows how far the system is: `less "),
        "{next}"
    );
    // One that never began has changed nothing.
    let (code, receipt) = run(&["--", "/nowhere/program"]);
    assert_eq!(
        (code, &receipt["outcome"]),
        (Some(1), &"rolled_back".into())
    );
    // One that hangs is ended with all that it started.
    let hangs = format!("sleep {} & wait", place.seconds(2));
    let (code, receipt) = run(&["--limit", "1", "--", "sh", "-c", &hangs]);
    assert_eq!((code, &receipt["outcome"]), (Some(1), &"alarmed".into()));
    let said = receipt["troubles"][0].as_str().unwrap();
    assert!(said.contains("longer than its limit"), "{said}");
    assert_eq!(sleepers(&place.seconds(2)), [0; 0]);
    assert_nothing_of_it_is_left(&place);
    place.stop_well();
}

#[test]
fn there_is_one_at_a_time_and_it_says_where_it_stands_without_a_daemon() {
    let name = "there_is_one_at_a_time_and_it_says_where_it_stands_without_a_daemon";
    let Some(mut place) = alone(name) else {
        return;
    };
    place.start();
    let seconds = place.seconds(2);
    place.json(&["update", "run", "--detach", "--", "sleep", &seconds]);
    eventually("the command runs", || sleepers(&seconds).len() == 1);
    let status = place.json(&["update", "status"]);
    assert_eq!(status["current"]["stage"], "updating", "{status}");
    place.await_app("os-update.1.1", "bounded", |app| {
        let slice = &app["slice"];
        app["class"] == "standard" && slice["cpu_weight"] == 50 && slice["cpu_max_cores"].is_f64()
    });
    place.fails(
        &["update", "run", "--", "true"],
        1,
        &["update 1 is under way"],
    );
    // The configuration may be read again meanwhile.
    place.json(&["reload"]);
    eventually("it is planned for as before", || {
        place.app("os-update.1.1")["state"] == "running"
    });
    let hook = |place: &Place, fail| {
        let mut command = Command::new(EXE.as_str());
        command.args(["update", "hook", "pre", "--fail", fail, "--socket"]);
        command.arg(place.path("socket")).arg("--state-dir");
        let output = command.arg(place.path("state")).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("update 1 is under way (updating)"), "{said}");
        output.status.code()
    };
    assert_eq!(hook(&place, "open"), Some(0));
    assert_eq!(hook(&place, "closed"), Some(1));
    place.crash();
    let state = place.path("state");
    let output = place.ask(&["update", "status", "--state-dir", state.to_str().unwrap()]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("updating") && said.contains("no daemon runs: start it"),
        "{said}"
    );
    assert_eq!(hook(&place, "open"), Some(0));
    assert_eq!(hook(&place, "closed"), Some(1));
    place.start();
    assert_eq!(
        sleepers(&seconds).len(),
        1,
        "the command outlives the daemon"
    );
    place.json(&["update", "abort"]);
    eventually("it is over", || last(&place)["outcome"] == "alarmed");
    assert_eq!(sleepers(&seconds), [0; 0]);
    place.fails(&["update", "abort"], 1, &["no update is under way"]);
    assert_nothing_of_it_is_left(&place);
    place.stop_well();
}

#[test]
fn a_command_that_fills_the_disk_holds_the_update_up_and_loses_nothing() {
    let name = "a_command_that_fills_the_disk_holds_the_update_up_and_loses_nothing";
    let Some(mut place) = alone(name) else {
        return;
    };
    place.mount_small("state", 4096);
    place.start();
    let fill = place.path("state/filler");
    let command = format!("cat /dev/zero > {}; true", fill.display());
    place.json(&["update", "run", "--detach", "--", "sh", "-c", &command]);
    eventually("it says that it cannot go on", || {
        let status = place.json(&["update", "status"]);
        let next = status["current"]["next"].as_str().unwrap_or_default();
        next.contains("it cannot go on, and tries again") && next.contains("No space left")
    });
    fs::remove_file(&fill).unwrap();
    eventually("it goes on when there is room", || {
        last(&place)["outcome"] == "committed"
    });
    assert_nothing_of_it_is_left(&place);
    place.stop_well();
}

#[test]
fn a_plan_names_every_way_and_a_run_refuses_what_is_not_offered() {
    let name = "a_plan_names_every_way_and_a_run_refuses_what_is_not_offered";
    let Some(mut place) = alone(name) else {
        return;
    };
    // Whatever systemd this host has.
    let mut command = place.daemon_command();
    command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere");
    place.start_with(command);
    let plan = place.json(&["update", "plan", "--", "true"]);
    let rungs = plan["rungs"].as_array().unwrap().iter();
    let rungs: Vec<(&str, bool)> = rungs
        .map(|rung| {
            assert!(!rung["reason"].as_str().unwrap().is_empty(), "{plan}");
            let name = rung["rung"].as_str().unwrap();
            (name, rung["offered"].as_bool().unwrap())
        })
        .collect();
    let expected = [
        ("userspace", true),
        ("soft-reboot", false),
        ("other-host", false),
        ("checkpoint", false),
        ("cooperative", true),
        ("reboot", true),
    ];
    assert_eq!(rungs, expected);
    assert_eq!(plan["refused"], serde_json::json!([]));
    let ran = place.path("ran");
    let command = append(&ran);
    for (rung, _) in expected.iter().filter(|(_, offered)| !offered) {
        let order = ["--rung", rung, "--", "sh", "-c", &command];
        let said = format!("rung {rung} is not offered");
        let plan = place.json(&[&["update", "plan"][..], &order].concat());
        let refused = plan["refused"][0].as_str().unwrap();
        assert!(refused.contains(&said), "{refused}");
        place.fails(
            &[&["update", "run"][..], &order].concat(),
            1,
            &[&said, "`forebay update plan"],
        );
    }
    place.fails(
        &["update", "run", "--", "systemctl", "reboot"],
        1,
        &["systemctl reboot", "--reboot", "`forebay update status`"],
    );
    let output = place.ask(&["update", "run", "--rung", "telepathy", "--", "true"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && said.contains("rung telepathy: there is none"),
        "{said}"
    );
    let updates = place.json(&["update", "status"]);
    assert_eq!(updates["current"], Value::Null, "nothing began");
    assert_eq!(updates["history"], serde_json::json!([]));
    assert!(!ran.exists());
    place.stop_well();
}

#[test]
fn an_update_is_called_off_or_waits_for_a_reboot_until_somebody_says_so() {
    let name = "an_update_is_called_off_or_waits_for_a_reboot_until_somebody_says_so";
    let Some(mut place) = alone(name) else {
        return;
    };
    place.start();
    let ran = place.path("ran");
    let command = append(&ran);
    place.json(&["update", "run", "--detach", "--", "sh", "-c", &command]);
    let said = place.json(&["update", "abort"]);
    assert!(said.to_string().contains("is called off"), "{said}");
    eventually("it is over", || last(&place)["outcome"] == "rolled_back");
    let said = last(&place)["troubles"].to_string();
    assert!(said.contains("called off before anything"), "{said}");
    assert!(!ran.exists());
    assert_nothing_of_it_is_left(&place);
    let before = place.await_pid("web");
    place.json(&[
        "update",
        "run",
        "--detach",
        "--reboot",
        "--restart",
        "web",
        "--",
        "sh",
        "-c",
        &command,
    ]);
    let is_waiting = |place: &Place| {
        let status = place.json(&["update", "status"]);
        status["current"]["stage"] == "reboot_pending"
    };
    eventually("it waits", || is_waiting(&place));
    place.fails(
        &["update", "abort"],
        1,
        &["update 2", "`forebay update resume`"],
    );
    // It waits on in the next daemon, and does nothing twice.
    place.crash();
    place.start();
    assert!(is_waiting(&place));
    place.json(&["update", "resume"]);
    eventually("it is over", || last(&place)["outcome"] == "committed");
    assert_eq!(text(&ran), "x");
    let receipt = last(&place);
    let said = receipt["troubles"].to_string();
    assert!(said.contains("without the reboot"), "{said}");
    let next = receipt["next"].as_str().unwrap();
    assert!(!next.contains("nothing is left"), "{next}");
    assert_ne!(place.await_pid("web"), before, "it was to be restarted");
    assert_nothing_of_it_is_left(&place);
    place.stop_well();
}

/// Once the host goes down in the midst of it, nobody knows how far it came.
#[test]
fn a_command_that_is_cut_off_is_not_run_again_and_says_where_it_stands() {
    let name = "a_command_that_is_cut_off_is_not_run_again_and_says_where_it_stands";
    let Some(mut place) = alone(name) else {
        return;
    };
    place.start();
    let (ran, undone, seconds) = (place.path("ran"), place.path("undone"), place.seconds(2));
    let command = format!("{}; exec sleep {seconds}", append(&ran));
    let rollback = append(&undone);
    for (number, order) in [(1, &["--rollback", &rollback][..]), (2, &[])] {
        let words = [
            &["update", "run", "--detach"][..],
            order,
            &["--", "sh", "-c", &command],
        ];
        place.json(&words.concat());
        eventually("the command runs", || sleepers(&seconds).len() == 1);
        place.crash();
        // What a host does that reboots under it: the program that runs it and all that it started are gone.
        let errand = place.path("state/update").display().to_string();
        for pid in processes(|words| words.iter().any(|word| word.starts_with(&errand))) {
            crate::place::signal(pid, rustix::process::Signal::KILL);
        }
        for pid in sleepers(&seconds) {
            crate::place::signal(pid, rustix::process::Signal::KILL);
        }
        place.start();
        eventually("it is over", || last(&place)["number"] == number);
        let receipt = last(&place);
        let troubles = receipt["troubles"].to_string();
        assert!(
            troubles.contains("was cut off; nobody knows how far it came"),
            "{receipt}"
        );
        let (outcome, next) = match order.is_empty() {
            true => ("alarmed", "nobody knows how far the system is: `less "),
            false => ("rolled_back", "the rollback went through"),
        };
        assert_eq!(receipt["outcome"], outcome, "{receipt}");
        assert!(
            receipt["next"].as_str().unwrap().starts_with(next),
            "{receipt}"
        );
    }
    assert_eq!((text(&ran).as_str(), text(&undone).as_str()), ("x\nx", "x"));
    assert_nothing_of_it_is_left(&place);
    place.stop_well();
}

/// A package whose configuration fails, in the database of this host; purged afterwards.
struct Unfinished {
    name: String,
    file: PathBuf,
}

impl Unfinished {
    fn new(place: &Place) -> Self {
        let name = format!("forebay-test-{}", std::process::id());
        let (tree, file) = (place.path("unfinished"), place.path("unfinished.deb"));
        fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        let control = format!(
            "Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n\
             Description: a package whose configuration fails\n"
        );
        fs::write(tree.join("DEBIAN/control"), control).unwrap();
        let script = tree.join("DEBIAN/postinst");
        fs::write(&script, "#!/bin/sh\nexit 7\n").unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let made = Command::new("dpkg-deb")
            .arg("--build")
            .arg(&tree)
            .arg(&file)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        Self { name, file }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let purge = [
            "--log=/dev/null",
            "--force-remove-reinstreq",
            "--purge",
            &self.name,
        ];
        let purged = Command::new("dpkg").args(purge).output();
        if !std::thread::panicking() {
            assert!(purged.unwrap().status.success());
        }
    }
}

#[test]
fn a_package_that_is_left_unconfigured_is_named_with_what_configures_it() {
    let name = "a_package_that_is_left_unconfigured_is_named_with_what_configures_it";
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        println!("SKIPPED: {name}: there is no dpkg");
        return;
    }
    let Some(mut place) = alone(name) else {
        return;
    };
    place.start();
    let package = Unfinished::new(&place);
    let file = package.file.to_str().unwrap();
    place.ask(&[
        "update",
        "run",
        "--",
        "dpkg",
        "--log=/dev/null",
        "--install",
        file,
    ]);
    let receipt = last(&place);
    assert_eq!(receipt["outcome"], "alarmed", "{receipt}");
    let next = receipt["next"].as_str().unwrap();
    assert!(
        next.contains(&package.name)
            && next.ends_with("`forebay update run -- dpkg --configure -a`"),
        "{next}"
    );
    drop(package);
    assert_nothing_of_it_is_left(&place);
    place.stop_well();
}

/// A command that succeeds and leaves a program that does not start again.
#[test]
fn apps_that_are_not_well_afterwards_have_the_update_undone() {
    let name = "apps_that_are_not_well_afterwards_have_the_update_undone";
    let Some(mut place) = Place::new(name) else {
        return;
    };
    let program = place.path("web");
    let seconds = place.seconds(1);
    fs::copy("/bin/sleep", &program).unwrap();
    place.configure(&format!(
        "[apps.web]\nclass = \"critical\"\nrestart = \"always\"\nexec = [{}, \"{seconds}\"]\n",
        place.quoted("web"),
    ));
    place.start();
    place.await_pid("web");
    let away = format!("mv {0} {0}.away", program.display());
    let back = format!("mv {0}.away {0}", program.display());
    let output = place.ask(&[
        "update",
        "run",
        "--restart",
        "web",
        "--well-within",
        "10",
        "--rollback",
        &back,
        "--",
        "sh",
        "-c",
        &away,
    ]);
    let receipt = last(&place);
    println!("{}", String::from_utf8(output.stdout).unwrap());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(receipt["outcome"], "rolled_back", "{receipt:#}");
    let said = receipt["troubles"].to_string();
    assert!(said.contains("web: "), "{said}");
    let pid = place.await_pid("web");
    let runs = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert_eq!(runs, program, "it runs again, from where it was");
    assert_nothing_of_it_is_left(&place);
    place.stop_well();
}

/// The configuration of the real apt is read with the hooks in it; nothing of this host is changed.
#[test]
fn hooks_are_what_apt_reads() {
    let name = "hooks_are_what_apt_reads";
    if Command::new("apt-config")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("SKIPPED: {name}: there is no apt");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let parts = root.path().join("etc/apt/apt.conf.d");
    fs::create_dir_all(&parts).unwrap();
    let hooks = |action: &str| {
        let output = Command::new(EXE.as_str())
            .args(["update", "hooks", action, "--root"])
            .arg(root.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(hooks("install").contains("50forebay: written"));
    let read = || {
        let output = Command::new("apt-config")
            .arg("dump")
            .arg("-o")
            .arg(format!("Dir::Etc::parts={}", parts.display()))
            .env("APT_CONFIG", parts.join("50forebay"))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let dump = read();
    let has = |what: &str| {
        let mut lines = dump.lines();
        lines.any(|line| line.starts_with(what) && line.contains(EXE.as_str()))
    };
    assert!(
        has("DPkg::Pre-Invoke") && has("DPkg::Post-Invoke"),
        "{dump}"
    );
    assert!(hooks("remove").contains("50forebay: removed"));
    assert_eq!(fs::read_dir(&parts).unwrap().count(), 0);
}
