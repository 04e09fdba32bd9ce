//! The kernel that comes is tried out before apps are written down. The daemon sees a /boot of the test's, and what
//! would end the host is a program of the test's; so is QEMU, but for the last test.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::ender::Ender;
use crate::images::criu;
use crate::place::{Place, eventually};
use crate::update::{assert_nothing_of_it_is_left, last};

/// The kernel that comes.
const VERSION: &str = "9.9.9-forebay-test";
/// Where `cargo xtask vm build` leaves kernels.
const KERNELS: &str = "/var/cache/forebay-vm";
/// Gives the daemon a view of its own: kernels, and modules for them. What it has open is of that view as well, and
/// nothing is what whoever ran the test had open: CRIU could not find it.
const VIEW: &str = r#"
set -e
mount -t overlay overlay -o "lowerdir=/usr/lib,upperdir=$1/upper,workdir=$1/work" /usr/lib
mount --bind "$1/boot" /boot
log=$2
shift 2
for open in /proc/self/fd/*; do
  number=${open##*/}
  if [ "$number" -gt 2 ]; then eval "exec $number>&-"; fi
done
exec "$@" </dev/null >/dev/null 2>>"$log"
"#;

struct Stage {
    place: Place,
    ender: Ender,
}

impl Stage {
    /// A daemon of a host with this kernel, and with this script as QEMU.
    fn new(test: &str, kernel: &[u8], qemu: &str) -> Option<Self> {
        Self::with(test, kernel, qemu, |_| {})
    }

    /// The same, where this puts more into the host's /usr/lib.
    fn with(test: &str, kernel: &[u8], qemu: &str, more: impl Fn(&Path)) -> Option<Self> {
        let criu = criu(test)?;
        let place = Place::new(test)?;
        let view = place.path("view");
        for name in ["upper", "work", "boot"] {
            fs::create_dir_all(view.join(name)).unwrap();
        }
        more(&view.join("upper"));
        fs::create_dir_all(view.join("upper/modules").join(VERSION)).unwrap();
        fs::write(view.join("boot").join(format!("vmlinuz-{VERSION}")), kernel).unwrap();
        let seen = Command::new("unshare")
            .args(["--mount", "bash", "-c", VIEW, "bash"])
            .arg(&view)
            .args(["/dev/null", "true"])
            .output();
        if !seen.is_ok_and(|seen| seen.status.success()) {
            println!("SKIPPED: {test}: no overlay of file systems can be mounted here");
            return None;
        }
        let qemu = match qemu.starts_with('/') {
            true => PathBuf::from(qemu),
            false => script(&place.path("qemu"), qemu),
        };
        place.configure_daemon(
            &format!("criu = \"{}\"\nqemu = \"{}\"\n", criu.display(), qemu.display()),
            &format!(
                "[policy]\non_stop = \"kill\"\n[apps.cache]\nclass = \"critical\"\nrestart = \"always\"\n\
                 images = {{ every = \"1h\" }}\nexec = [\"sleep\", \"{}\"]\n",
                place.seconds(1)
            ),
        );
        let ender = Ender::new(&place, &[("reboot", 0), ("systemctl", 0), ("kexec", 1)]);
        let mut stage = Self { place, ender };
        stage.start();
        stage.place.await_pid("cache");
        Some(stage)
    }

    fn start(&mut self) {
        let daemon = self.ender.daemon_command(&self.place);
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "bash", "-c", VIEW, "bash"])
            .arg(self.place.path("view"))
            .arg(self.place.path("daemon.log"))
            .arg(daemon.get_program())
            .args(daemon.get_args());
        for (name, value) in daemon.get_envs() {
            command.env(name, value.unwrap());
        }
        self.place.start_with(command);
    }

    fn plan(&self, words: &[&str]) -> Value {
        let order = ["update", "plan", "--rung", "checkpoint"];
        let order: Vec<&str> = order
            .iter()
            .chain(words)
            .chain(&["--", "true"])
            .copied()
            .collect();
        self.place.json(&order)
    }

    /// Begins an update, unless processes have low numbers here.
    fn begin(&self, words: &[&str]) -> bool {
        let plan = self.plan(&[]);
        if plan["refused"].to_string().contains("gives away") {
            println!("SKIPPED: the system gives away low numbers only: {plan}");
            return false;
        }
        let order = [
            "update",
            "run",
            "--detach",
            "--unproved",
            "--rung",
            "checkpoint",
        ];
        let order: Vec<&str> = order
            .iter()
            .chain(words)
            .chain(&["--", "true"])
            .copied()
            .collect();
        let begun = self.place.ask(&order);
        assert!(begun.status.success(), "{begun:?}\n{plan:#}");
        true
    }

    fn current(&self) -> Value {
        self.place.json(&["update", "status"])["current"].take()
    }

    fn await_end(&self) -> Value {
        eventually("it is over", || self.current().is_null());
        let receipt = last(&self.place);
        assert_nothing_of_it_is_left(&self.place);
        receipt
    }

    fn is_asked(&self) -> bool {
        self.ender.asked().contains("reboot")
    }

    fn end(mut self) {
        self.place.stop_well();
        self.place.assert_nothing_left();
    }
}

fn script(file: &Path, text: &str) -> PathBuf {
    fs::write(file, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    file.to_owned()
}

/// A file that says of itself that it is a kernel, and is whole.
fn kernel() -> Vec<u8> {
    let mut file = vec![0; 3 * 512 + 16 * 100];
    file[0x1F1] = 2;
    file[0x1F4] = 100;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x20E..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    file[0x300..0x300 + VERSION.len()].copy_from_slice(VERSION.as_bytes());
    file
}

#[test]
fn a_kernel_that_does_not_pass_keeps_the_host_up_and_apps_as_they_are() {
    let test = "a_kernel_that_does_not_pass_keeps_the_host_up_and_apps_as_they_are";
    let panics = "echo '[    1.0] Linux version 9.9.9'\necho '[    2.0] Kernel panic - not syncing: No working init found.'";
    let Some(stage) = Stage::new(test, &kernel(), panics) else {
        return;
    };
    let pid = stage.place.await_pid("cache");
    let plan = stage.plan(&[]);
    assert_eq!(plan["rehearsal"]["rehearsed"], true, "{plan:#}");
    assert_eq!(plan["rehearsal"]["last"], Value::Null, "{plan:#}");
    if !stage.begin(&[]) {
        return;
    }
    let receipt = stage.await_end();
    assert!(!stage.is_asked(), "the host goes on");
    assert_eq!(
        stage.place.await_pid("cache"),
        pid,
        "nobody was written down"
    );
    assert_eq!(receipt["outcome"], "alarmed", "{receipt:#}");
    let rehearsal = &receipt["rehearsal"];
    assert_eq!(rehearsal["verdict"], "failed", "{receipt:#}");
    assert_eq!(rehearsal["kernel"], VERSION, "{receipt:#}");
    let why = rehearsal["why"].as_str().unwrap();
    assert!(
        why.contains("Kernel panic - not syncing: No working init found."),
        "{why}"
    );
    let console = fs::read_to_string(rehearsal["console"].as_str().unwrap()).unwrap();
    assert!(console.contains("Linux version 9.9.9"), "{console}");
    let troubles = receipt["troubles"].to_string();
    assert!(
        troubles.contains("did not begin anew") && troubles.contains(VERSION),
        "{receipt:#}"
    );
    assert!(!troubles.contains("lost what it had"), "{receipt:#}");
    let next = receipt["next"].as_str().unwrap();
    for part in ["`forebay update rehearse`", VERSION, "--rung checkpoint"] {
        assert!(next.contains(part), "{part}: {next}");
    }
    let said = stage.place.ask(&["update", "status"]).stdout;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("did not pass its rehearsal"), "{said}");
    // The next plan knows the last one.
    let plan = stage.plan(&[]);
    assert_eq!(plan["rehearsal"]["last"]["verdict"], "failed", "{plan:#}");

    // What undoes the command takes the kernel away.
    let undo = format!("touch {}", stage.place.path("undone").display());
    assert!(stage.begin(&["--rollback", &undo]));
    let receipt = stage.await_end();
    assert_eq!(receipt["outcome"], "rolled_back", "{receipt:#}");
    assert!(stage.place.path("undone").exists() && !stage.is_asked());
    stage.end();
}

#[test]
fn a_rehearsal_outlives_the_daemon_and_ends_when_nobody_wants_the_reboot() {
    let test = "a_rehearsal_outlives_the_daemon_and_ends_when_nobody_wants_the_reboot";
    let Some(mut stage) = Stage::new(test, &kernel(), "echo begun >>$0.begun; exec sleep 3600")
    else {
        return;
    };
    if !stage.begin(&[]) {
        return;
    }
    let begun = stage.place.path("qemu.begun");
    eventually("a machine is started", || begun.exists());
    assert_eq!(stage.current()["stage"], "rehearsing");
    let refused = stage.place.ask(&["update", "abort"]);
    assert!(
        !refused.status.success(),
        "its command is over: {refused:?}"
    );
    stage.place.crash();
    stage.start();
    let pid = stage.place.await_pid("cache");
    eventually("it is taken up", || {
        let apps = stage.place.json(&["apps"]);
        apps.to_string().contains("os-update.1.rehearsal")
    });
    assert_eq!(
        fs::read_to_string(&begun).unwrap(),
        "begun\n",
        "no second machine"
    );
    let resumed = stage.place.ask(&["update", "resume"]);
    assert!(resumed.status.success(), "{resumed:?}");
    let receipt = stage.await_end();
    assert!(!stage.is_asked());
    assert_eq!(stage.place.await_pid("cache"), pid);
    assert_eq!(receipt["outcome"], "alarmed", "{receipt:#}");
    assert!(
        receipt["troubles"]
            .to_string()
            .contains("somebody had it go on"),
        "{receipt:#}"
    );
    assert_eq!(receipt["rehearsal"], Value::Null, "{receipt:#}");
    stage.end();
}

#[test]
fn without_qemu_an_update_goes_on_unless_it_has_to_be_rehearsed() {
    let test = "without_qemu_an_update_goes_on_unless_it_has_to_be_rehearsed";
    let Some(stage) = Stage::new(test, &kernel(), "/no/such/qemu") else {
        return;
    };
    let plan = stage.plan(&["--rehearse", "required"]);
    assert!(
        plan["refused"].to_string().contains("/no/such/qemu"),
        "{plan:#}"
    );
    let plan = stage.plan(&[]);
    assert_eq!(plan["rehearsal"]["rehearsed"], false, "{plan:#}");
    let why = plan["rehearsal"]["reason"].as_str().unwrap();
    assert!(why.contains("/no/such/qemu"), "{why}");
    if !stage.begin(&[]) {
        return;
    }
    eventually("the host is asked to begin anew", || stage.is_asked());
    let current = stage.current();
    assert_eq!(current["rehearsal"]["verdict"], "impossible", "{current:#}");
    let resumed = stage.place.ask(&["update", "resume"]);
    assert!(resumed.status.success(), "{resumed:?}");
    let receipt = stage.await_end();
    let why = receipt["rehearsal"]["why"].as_str().unwrap();
    assert!(why.contains("/no/such/qemu"), "{receipt:#}");
    stage.end();
}

#[test]
fn a_kernel_of_debians_passes_and_the_host_begins_anew() {
    let test = "a_kernel_of_debians_passes_and_the_host_begins_anew";
    let kernels = std::env::var_os("FOREBAY_VM_CACHE");
    let kernels = kernels.map_or_else(|| PathBuf::from(KERNELS), PathBuf::from);
    let Ok(kernel) = fs::read(kernels.join("vmlinuz-stable")) else {
        println!("SKIPPED: {test}: no kernel; `cargo xtask vm build` gets one");
        return;
    };
    let qemu = Path::new("/usr/bin/qemu-system-x86_64");
    if !qemu.is_file() {
        println!("SKIPPED: {test}: no QEMU; `cargo xtask setup vm` installs it");
        return;
    }
    // Its modules are in the root file system of guests.
    let modules = |upper: &Path| {
        let extracted = Command::new("debugfs")
            .arg("-R")
            .arg(format!("rdump /usr/lib/modules {}", upper.display()))
            .arg(kernels.join("root.ext4"))
            .output();
        assert!(upper.join("modules").is_dir(), "{extracted:?}");
    };
    let qemu = qemu.display().to_string();
    let Some(stage) = Stage::with(test, &kernel, &qemu, modules) else {
        return;
    };
    if !stage.begin(&["--rehearse", "required"]) {
        return;
    }
    eventually("it is tried out", || {
        stage.current()["stage"] == "rehearsing"
    });
    eventually("the host is asked to begin anew", || {
        let receipt = last(&stage.place);
        assert_eq!(receipt, Value::Null, "{}", stage.place.log());
        stage.is_asked()
    });
    let current = stage.current();
    assert_eq!(current["rehearsal"]["verdict"], "passed", "{current:#}");
    println!("it took {} s", current["rehearsal"]["seconds"]);
    let resumed = stage.place.ask(&["update", "resume"]);
    assert!(resumed.status.success(), "{resumed:?}");
    let receipt = stage.await_end();
    assert_eq!(receipt["rehearsal"]["verdict"], "passed", "{receipt:#}");
    stage.end();
}
