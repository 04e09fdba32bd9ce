//! The kernel that comes is tried out before apps are written down. The daemon sees a /boot of the test's, and what
//! would end the host is a program of the test's; so is QEMU, but for the last test.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::ender::Ender;
use crate::images::criu;
use crate::place::{Place, eventually, is_running};
use crate::update::{assert_nothing_of_it_is_left, last};

/// The kernel that comes.
const VERSION: &str = "9.9.9-forebay-test";
/// One that is newer.
const NEWER: &str = "9.9.10-forebay-test";
/// QEMU in whose machines each kernel comes up, and the canary answers what it has to; what is done before that stands
/// in place of `BEFORE`.
const MACHINE: &str = r#"exec python3 - "$@" <<'PY'
import re, sys
MASK = (1 << 64) - 1
def option(name):
    return sys.argv[sys.argv.index(name) + 1]
kernel = option('-kernel')
BEFORE
archive = open(option('-initrd'), 'rb').read()
number = int(re.search(rb'"canary":"[^"]*","number":(\d+)}', archive)[1])
total = 0
for thread in range(3):
    state, sum = 0x9E3779B97F4A7C15 * (thread + 1) & MASK, number
    for _ in range(1 << 18):
        state ^= state >> 12
        state = (state ^ state << 25) & MASK
        state ^= state >> 27
        sum = (sum ^ state * 0x2545F4914F6CDD1D & MASK) * 0x100000001B3 & MASK
        sum = (sum << 5 | sum >> 59) & MASK
    total = (total + sum) & MASK
for said in ['up of-the-test', 'restored', f'answered 2 {total}', 'over']:
    print('forebay-rehearsal: ' + said)
PY"#;
/// Only the kernel that runs comes up.
const PANICS: &str = "
if '9.9.9' in kernel:
    print('[    1.0] Linux version 9.9.9')
    print('[    2.0] Kernel panic - not syncing: No working init found.')
    sys.exit()
";
/// Meanwhile somebody installs a newer kernel.
const GIVES_WAY: &str = "
newer = open(kernel, 'rb').read().replace(b'9.9.9-', b'9.9.10-')
open(kernel.replace('9.9.9-', '9.9.10-'), 'wb').write(newer)
";
/// A machine that says nothing, and whose process is known.
const SILENT: &str = "echo $$ >>$0.begun; exec sleep 3600";

fn machine(before: &str) -> String {
    MACHINE.replace("BEFORE", before)
}

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
        for version in [VERSION, NEWER] {
            fs::create_dir_all(view.join("upper/modules").join(version)).unwrap();
        }
        let (release, running) = running();
        for (version, file) in [(VERSION, kernel), (&release, &running)] {
            let name = format!("vmlinuz-{version}");
            fs::write(view.join("boot").join(name), file).unwrap();
        }
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

    /// An update whose machine says nothing, and the number of that machine's process.
    fn rehearsing(test: &str) -> Option<(Self, u32)> {
        let stage = Self::new(test, &kernel(), SILENT)?;
        if !stage.begin(&[]) {
            return None;
        }
        let machine = stage.await_machine();
        Some((stage, machine))
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
        let left = fs::read_dir(self.place.path("state/update/rehearsal"));
        for entry in left.into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let stays = ["console", "last.json", "lock"];
            assert!(stays.contains(&name.as_str()), "{name} is left");
        }
        receipt
    }

    /// The process of the only machine that was started.
    fn await_machine(&self) -> u32 {
        let begun = self.place.path("qemu.begun");
        let read = || fs::read_to_string(&begun).unwrap_or_default();
        eventually("a machine is started", || read().ends_with('\n'));
        read().trim().parse().unwrap()
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

/// The file of the kernel that runs: its release, and what stands for it.
fn running() -> (String, Vec<u8>) {
    let said = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap();
    let release = said("osrelease").trim().to_owned();
    let file = kernel_of(&format!("{release} (a@b) {}", said("version").trim()));
    (release, file)
}

fn kernel() -> Vec<u8> {
    kernel_of(VERSION)
}

/// A file that says of itself that it is this kernel, and is whole.
fn kernel_of(words: &str) -> Vec<u8> {
    let mut file = vec![0; 3 * 512 + 16 * 100];
    file[0x1F1] = 2;
    file[0x1F4] = 100;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x20E..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    file[0x300..0x300 + words.len()].copy_from_slice(words.as_bytes());
    file
}

#[test]
fn a_kernel_that_does_not_pass_keeps_the_host_up_and_apps_as_they_are() {
    let test = "a_kernel_that_does_not_pass_keeps_the_host_up_and_apps_as_they_are";
    let Some(stage) = Stage::new(test, &kernel(), &machine(PANICS)) else {
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
    let Some((mut stage, machine)) = Stage::rehearsing(test) else {
        return;
    };
    assert_eq!(stage.current()["stage"], "rehearsing");
    let refused = stage.place.ask(&["update", "abort"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("tries the kernel out that comes"),
        "its command is over: {refused:?}"
    );
    stage.place.crash();
    stage.start();
    let pid = stage.place.await_pid("cache");
    eventually("it is taken up", || {
        let apps = stage.place.json(&["apps"]);
        apps.to_string().contains("os-update.1.rehearsal")
    });
    assert_eq!(stage.await_machine(), machine, "no second one");
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
    assert!(!is_running(machine));
    stage.end();
}

/// Somebody has it go on while nobody can say how far the rehearsal is.
#[test]
fn a_rehearsal_that_cannot_be_looked_at_ends_when_nobody_wants_the_reboot() {
    let test = "a_rehearsal_that_cannot_be_looked_at_ends_when_nobody_wants_the_reboot";
    let Some((mut stage, machine)) = Stage::rehearsing(test) else {
        return;
    };
    stage.place.crash();
    let errand = stage.place.path("state/update/1.rehearsal.errand");
    fs::rename(&errand, stage.place.path("errand")).unwrap();
    fs::create_dir(&errand).unwrap();
    stage.start();
    eventually("it cannot go on", || {
        let next = stage.current()["next"].to_string();
        next.contains("cannot go on") && next.contains("1.rehearsal.errand")
    });
    let resumed = stage.place.ask(&["update", "resume"]);
    assert!(resumed.status.success(), "{resumed:?}");
    eventually("it goes on", || stage.current()["stage"] != "rehearsing");
    fs::remove_dir(&errand).unwrap();
    let receipt = stage.await_end();
    assert!(!is_running(machine), "{receipt:#}");
    assert_eq!(receipt["outcome"], "alarmed", "{receipt:#}");
    stage.end();
}

#[test]
fn a_kernel_that_comes_after_the_rehearsal_is_not_taken_for_the_one_that_passed() {
    let test = "a_kernel_that_comes_after_the_rehearsal_is_not_taken_for_the_one_that_passed";
    let Some(stage) = Stage::new(test, &kernel(), &machine(GIVES_WAY)) else {
        return;
    };
    let pid = stage.place.await_pid("cache");
    if !stage.begin(&["--rehearse", "required"]) {
        return;
    }
    let receipt = stage.await_end();
    assert!(!stage.is_asked(), "the host goes on: {receipt:#}");
    assert_eq!(stage.place.await_pid("cache"), pid);
    assert_eq!(receipt["outcome"], "alarmed", "{receipt:#}");
    let rehearsal = &receipt["rehearsal"];
    assert_eq!(rehearsal["verdict"], "impossible", "{receipt:#}");
    assert_eq!(rehearsal["kernel"], NEWER, "{receipt:#}");
    assert_eq!(rehearsal["console"], Value::Null, "{receipt:#}");
    let troubles = receipt["troubles"].to_string();
    for part in [NEWER, VERSION, "`forebay update rehearse`"] {
        assert!(troubles.contains(part), "{part}: {receipt:#}");
    }
    let next = receipt["next"].as_str().unwrap();
    assert!(next.contains("--rehearse required"), "{next}");
    // It never ended.
    assert!(!troubles.contains("lost what it had"), "{receipt:#}");
    assert_eq!(receipt["apps"][0]["pause_ms"], Value::Null, "{receipt:#}");

    let newer = stage
        .place
        .path("view/boot")
        .join(format!("vmlinuz-{NEWER}"));
    fs::remove_file(newer).unwrap();
    assert!(stage.begin(&[]));
    eventually("the host is asked to begin anew", || stage.is_asked());
    let current = stage.current();
    assert_eq!(current["rehearsal"]["verdict"], "impossible", "{current:#}");
    assert_eq!(current["rehearsal"]["kernel"], NEWER, "{current:#}");
    let events = stage.place.json(&["events"]).to_string();
    let said = format!("kernel {NEWER} was not rehearsed: it came after kernel {VERSION}");
    assert!(events.contains(&said), "{events}");
    let resumed = stage.place.ask(&["update", "resume"]);
    assert!(resumed.status.success(), "{resumed:?}");
    stage.await_end();
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
