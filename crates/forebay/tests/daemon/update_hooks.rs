//! Hooks as those run them that they are for: the real apt and dpkg, run-parts and kernel-install, with roots of
//! their own; nothing of this host is changed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;

use crate::kernel::signal;
use crate::place::{EXE, Place, eventually, text, wait_for_end};
use crate::update::{alone, last, package};

fn is_there(test: &str, program: &str) -> bool {
    let asked = Command::new(program).arg("--version").output().is_ok();
    if !asked {
        println!("SKIPPED: {test}: there is no {program}");
    }
    asked
}

fn hooks(root: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(EXE.as_str());
    command.args(["update", "hooks"]).args(arguments);
    let output = command.arg("--root").arg(root).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Installs a package with the real apt, below directories of this place.
fn apt(place: &Place, parts: &Path, file: &Path, root: &Path) -> Output {
    for dir in ["apt/lists/partial", "apt/cache/archives/partial"] {
        fs::create_dir_all(place.path(dir)).unwrap();
    }
    let dir = |name: &str| place.path(name).display().to_string();
    let options = [
        "Dir::Etc::main=/dev/null".to_owned(),
        "Dir::Etc::parts=/nowhere".to_owned(),
        "Dir::Etc::sourcelist=/dev/null".to_owned(),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State={}", dir("apt")),
        format!("Dir::State::status={}/var/lib/dpkg/status", root.display()),
        format!("Dir::Cache={}", dir("apt/cache")),
        format!("Dir::Log={}", dir("apt")),
        format!("DPkg::Options::=--root={}", root.display()),
        "Debug::NoLocking=1".to_owned(),
    ];
    let mut command = Command::new("apt-get");
    for option in &options {
        command.arg("-o").arg(option);
    }
    command
        .args(["-y", "install"])
        .arg(file)
        .env("APT_CONFIG", parts.join("50forebay"))
        .env("FOREBAY_SOCKET", place.path("socket"))
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn apt_asks_before_it_begins_and_stops_only_where_that_is_the_policy() {
    let name = "apt_asks_before_it_begins_and_stops_only_where_that_is_the_policy";
    if !is_there(name, "apt-get") || !is_there(name, "dpkg-deb") {
        return;
    }
    let Some(mut place) = alone(name) else {
        return;
    };
    let (file, root) = package(&place);
    let parts = root.join("etc/apt/apt.conf.d");
    fs::create_dir_all(&parts).unwrap();
    place.start();
    let seconds = place.seconds(2);
    place.json(&[
        "update",
        "run",
        "--detach",
        "--unproved",
        "--",
        "sleep",
        &seconds,
    ]);
    eventually("its command runs", || {
        place.json(&["update", "status"])["current"]["stage"] == "updating"
    });
    let installed = root.join("usr/share/forebay-test/file");

    hooks(&root, &["install", "--fail", "closed"]);
    let refused = apt(&place, &parts, &file, &root);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("update 1 is under way (updating)"), "{said}");
    assert!(!installed.exists(), "{said}");

    // Open, it says so and goes on, and so it does without any daemon.
    hooks(&root, &["install"]);
    place.crash();
    let open = apt(&place, &parts, &file, &root);
    let said = String::from_utf8_lossy(&open.stderr).into_owned();
    assert!(open.status.success(), "{said}");
    assert!(said.contains("no daemon and no journal"), "{said}");
    assert_eq!(text(&installed), "new");
    place.start();
    place.json(&["update", "abort"]);
    eventually("it is over", || last(&place)["outcome"] == "alarmed");
    hooks(&root, &["remove"]);
    assert_eq!(fs::read_dir(&parts).unwrap().count(), 0);
    place.stop_well();
}

/// A root with what kernels' hooks are for.
fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for dir in [
        "etc/kernel/postinst.d",
        "etc/systemd/system",
        "usr/lib/kernel/install.d",
        "usr/lib/systemd/system",
    ] {
        fs::create_dir_all(root.path().join(dir)).unwrap();
    }
    root
}

#[test]
fn whoever_installs_a_kernel_hears_what_to_type_before_the_reboot() {
    let name = "whoever_installs_a_kernel_hears_what_to_type_before_the_reboot";
    if !is_there(name, "run-parts") || !is_there(name, "kernel-install") {
        return;
    }
    let root = root();
    hooks(root.path(), &["install", "--fail", "closed"]);
    let heard = |output: Output| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let line = "kernel 6.1.0-x runs from the next boot on; `forebay update run --reboot";
        assert!(said.contains(line), "{said}");
    };
    let dir = root.path().join("etc/kernel/postinst.d");
    let mut debian = Command::new("run-parts");
    debian.args(["--arg=6.1.0-x", "--arg=/boot/vmlinuz-6.1.0-x"]);
    heard(debian.arg(dir).output().unwrap());

    let image = root.path().join("vmlinuz");
    fs::write(&image, "x").unwrap();
    for dir in ["boot", "conf"] {
        fs::create_dir(root.path().join(dir)).unwrap();
    }
    let mut others = Command::new("kernel-install");
    others
        .args(["add", "6.1.0-x"])
        .arg(&image)
        .env("MACHINE_ID", "0123456789abcdef0123456789abcdef")
        .env("BOOT_ROOT", root.path().join("boot"))
        .env("KERNEL_INSTALL_CONF_ROOT", root.path().join("conf"))
        .env(
            "KERNEL_INSTALL_PLUGINS",
            root.path().join("etc/kernel/install.d/90-forebay.install"),
        );
    heard(others.output().unwrap());
    hooks(root.path(), &["remove"]);
    assert!(!root.path().join("etc/kernel/install.d").exists());
}

#[test]
fn units_are_what_systemd_reads_and_critical_ones_wait() {
    let name = "units_are_what_systemd_reads_and_critical_ones_wait";
    if !is_there(name, "systemd-analyze") {
        return;
    }
    let root = root();
    fs::create_dir_all(root.path().join("etc/forebay")).unwrap();
    fs::write(
        root.path().join("etc/forebay/forebay.toml"),
        "[apps.web]\nclass = \"critical\"\nsystemd = \"nginx.service\"\n[apps.log]\nsystemd = \"rsyslog.service\"\n",
    )
    .unwrap();
    let said = hooks(root.path(), &["install"]);
    assert!(
        said.contains("nginx.service.d/50-forebay.conf: written"),
        "{said}"
    );
    assert!(!said.contains("rsyslog"), "{said}");
    let units = root.path().join("etc/systemd/system");
    // Those that it takes for granted.
    fs::write(
        root.path().join("usr/lib/systemd/system/forebay.service"),
        "[Service]\nExecStart=/bin/true\n",
    )
    .unwrap();
    let program = root.path().join(EXE.trim_start_matches('/'));
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    fs::write(&program, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    for unit in ["forebay-guard.service", "forebay-restore.service"] {
        let checked = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .arg(format!("--root={}", root.path().display()))
            .arg(units.join(unit))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        let about = said.lines().filter(|line| line.contains(unit));
        assert_eq!(about.count(), 0, "{said}");
    }
    hooks(root.path(), &["remove"]);
    assert_eq!(fs::read_dir(&units).unwrap().count(), 0);
}

/// A program in the place of systemd-inhibit, since no logind runs where tests do: it says when it holds.
fn inhibitor(place: &Place) -> PathBuf {
    let dir = place.path("bin");
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("systemd-inhibit");
    let held = place.path("held");
    let held = held.display();
    fs::write(
        &file,
        format!("#!/bin/sh\necho \"$@\" > {held}\nfor last; do :; done\n\"$last\"\nrm {held}\n"),
    )
    .unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

#[test]
fn a_shutdown_is_held_up_for_as_long_as_an_update_is_under_way() {
    let name = "a_shutdown_is_held_up_for_as_long_as_an_update_is_under_way";
    let Some(mut place) = alone(name) else {
        return;
    };
    place.start();
    let path = std::env::var("PATH").unwrap();
    let hook = |moment: &str| {
        let mut command = Command::new(EXE.as_str());
        command
            .args(["update", "hook", moment, "--fail", "closed", "--socket"])
            .arg(place.path("socket"))
            .env("PATH", format!("{}:{path}", inhibitor(&place).display()))
            .stdin(Stdio::null());
        command
    };
    let mut guard = hook("guard").spawn().unwrap();
    // Nothing is under way: critical units may start.
    assert!(hook("restore").status().unwrap().success());
    let held = place.path("held");
    assert!(!held.exists());
    let seconds = place.seconds(2);
    let run = [
        "update",
        "run",
        "--detach",
        "--unproved",
        "--",
        "sleep",
        &seconds,
    ];
    place.json(&run);
    eventually("it is held", || held.exists());
    let said = text(&held);
    for words in ["--what=shutdown", "--mode=block", "update 1 is under way"] {
        assert!(said.contains(words), "{said}");
    }
    place.json(&["update", "abort"]);
    eventually("it is over", || last(&place)["number"] == 1);
    eventually("it is let go", || !held.exists());
    // It ends with the guard, whatever ends that.
    place.json(&run);
    eventually("it is held again", || held.exists());
    signal(guard.id(), Signal::KILL);
    wait_for_end(&mut guard).unwrap();
    eventually("it is let go with it", || !held.exists());
    eventually("it can be called off", || {
        place.ask(&["update", "abort"]).status.success()
    });
    eventually("it is over", || last(&place)["number"] == 2);
    place.stop_well();
}
