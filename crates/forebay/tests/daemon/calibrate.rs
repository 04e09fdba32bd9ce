//! Measuring a device: true numbers, and nothing changed on it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use forebay_host::mounts::{Controller, Hierarchies, Version};
use serde_json::Value;

use crate::place::{EXE, eventually, refusal};

/// Size of the device.
const SIZE: u64 = 256 << 20;
/// Bytes a second that the device is held to, each way.
pub(crate) const LIMIT: u64 = 24 << 20;

/// A block device of the test's own, with a file system mounted on it.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: tempfile::TempDir,
    node: String,
    mounted: bool,
    group: Option<PathBuf>,
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Disk {
    pub(crate) fn new(test: &str) -> Option<Self> {
        let skip = |reason: &str| {
            println!("SKIPPED: {test}: {reason}");
            None
        };
        if !rustix::process::geteuid().is_root() {
            return skip("not root");
        }
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        let tool = |name: &str| Command::new(name).arg("--version").output().is_ok();
        if !tool("mkfs.ext4") || !tool("losetup") {
            return skip("no mkfs.ext4 or losetup");
        }
        succeed(Command::new("mkfs.ext4").arg("-q").arg(&image));
        let attached = Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on"])
            .arg(&image)
            .output()
            .unwrap();
        if !attached.status.success() {
            return skip("no loop devices with direct I/O");
        }
        let mut disk = Self {
            dir,
            node: String::from_utf8(attached.stdout)
                .unwrap()
                .trim()
                .to_owned(),
            mounted: false,
            group: None,
        };
        disk.mount("rw");
        Some(disk)
    }

    fn mount(&mut self, options: &str) {
        fs::create_dir_all(self.path("mnt")).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-o", options, &self.node]);
        succeed(mount.arg(self.path("mnt")));
        self.mounted = true;
    }

    fn unmount(&mut self) {
        self.mounted = false;
        // Whoever was ended while it read waits for what it had asked for, which is held back.
        let mut umount = Command::new("umount");
        umount.arg(self.path("mnt"));
        eventually("nobody uses the device", || {
            umount.output().unwrap().status.success()
        });
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn calibrate(&self) -> Command {
        let mut command = Command::new(EXE.as_str());
        command.arg("calibrate").arg("--state-dir");
        command.arg(self.path("state")).stdin(Stdio::null());
        command
    }

    fn show(&self) -> Output {
        self.calibrate()
            .args(["--show", "--json"])
            .output()
            .unwrap()
    }

    /// What the kernel would have to free: nothing of a scratch file may be left.
    fn blocks_used(&self) -> u64 {
        let room = rustix::fs::statvfs(self.path("mnt")).unwrap();
        room.f_blocks - room.f_bfree
    }

    pub(crate) fn number(&self) -> String {
        let number = fs::metadata(&self.node).unwrap().rdev();
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        format!("{major}:{minor}")
    }

    /// The procs file of a group that may read and write so many bytes a second of the device.
    pub(crate) fn throttled(&mut self, bytes: u64) -> Option<PathBuf> {
        let hierarchies = Hierarchies::read(Path::new("/proc")).ok()?;
        let (_, hierarchy) = hierarchies.of(Controller::Io)?;
        if !hierarchy.writable {
            return None;
        }
        let group = format!("forebay-test-{}-calibrate", std::process::id());
        let dir = hierarchy.dir(Path::new(&group));
        fs::create_dir(&dir).unwrap();
        self.group = Some(dir.clone());
        let number = self.number();
        let writes = match hierarchy.version {
            Version::V2 => vec![(
                "io.max".to_owned(),
                format!("{number} rbps={bytes} wbps={bytes}"),
            )],
            Version::V1 => ["read", "write"]
                .map(|way| format!("blkio.throttle.{way}_bps_device"))
                .map(|file| (file, format!("{number} {bytes}")))
                .to_vec(),
        };
        for (file, text) in writes {
            // The controller may be there and not be given to this group.
            fs::write(dir.join(file), text).ok()?;
        }
        Some(dir.join("cgroup.procs"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            self.unmount();
        }
        succeed(Command::new("losetup").args(["--detach", &self.node]));
        if let Some(group) = &self.group {
            eventually("the group is empty", || fs::remove_dir(group).is_ok());
        }
    }
}

fn parsed(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_device_is_measured_as_it_is_and_nothing_on_it_changes() {
    let test = "a_device_is_measured_as_it_is_and_nothing_on_it_changes";
    let Some(mut disk) = Disk::new(test) else {
        return;
    };
    let Some(procs) = disk.throttled(LIMIT) else {
        println!("SKIPPED: {test}: no writable control group for block devices");
        return;
    };
    fs::write(disk.path("mnt/file"), "mine").unwrap();
    let used = disk.blocks_used();
    let mut inside = Command::new("sh");
    inside
        .args(["-c", r#"echo $$ > "$0" && exec "$@""#])
        .arg(procs)
        .arg(EXE.as_str())
        .arg("calibrate")
        .arg(disk.path("mnt"))
        .args(["--seconds", "7", "--json", "--state-dir"])
        .arg(disk.path("state"));
    let measured = parsed(&inside.output().unwrap());

    // The truth is known: the limit. Bursts of a throttle make it no sharper than a fifth.
    for way in ["read", "write"] {
        let found = measured[0][way]["sequential"]["bytes_per_second"].as_u64();
        let found = found.unwrap();
        assert!(found.abs_diff(LIMIT) < LIMIT / 5, "{way}: {measured:#}");
        let single = &measured[0][way]["single"];
        assert!(
            single["p50_us"].as_u64() <= single["p99_us"].as_u64(),
            "{measured:#}"
        );
        assert!(single["requests"].as_u64().unwrap() > 0, "{measured:#}");
    }
    assert_eq!(measured[0]["disk"]["device"], disk.number());
    assert_eq!(measured[0]["disk"]["size"], SIZE);
    assert_eq!(parsed(&disk.show()), measured);

    assert_eq!(disk.blocks_used(), used, "the scratch file is still there");
    assert_eq!(fs::read_to_string(disk.path("mnt/file")).unwrap(), "mine");
    disk.unmount();
    succeed(Command::new("fsck.ext4").args(["-f", "-n", &disk.node]));
}

#[test]
fn reading_a_device_leaves_every_byte() {
    let Some(mut disk) = Disk::new("reading_a_device_leaves_every_byte") else {
        return;
    };
    disk.unmount();
    let before = fs::read(disk.path("image")).unwrap();
    let mut command = disk.calibrate();
    let measured = parsed(
        &command
            .args([&disk.node, "--seconds", "2", "--json"])
            .output()
            .unwrap(),
    );
    assert_eq!(measured[0]["write"], Value::Null);
    assert!(
        before == fs::read(disk.path("image")).unwrap(),
        "it was written"
    );
}

#[test]
fn a_measurement_that_is_killed_leaves_no_file() {
    let Some(disk) = Disk::new("a_measurement_that_is_killed_leaves_no_file") else {
        return;
    };
    let used = disk.blocks_used();
    let mut child = disk
        .calibrate()
        .arg(disk.path("mnt"))
        .args(["--seconds", "600"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let files = PathBuf::from(format!("/proc/{}/fd", child.id()));
    let within = disk.path("mnt");
    eventually("the scratch file is there", || {
        fs::read_dir(&files)
            .unwrap()
            .flatten()
            .any(|file| fs::read_link(file.path()).is_ok_and(|target| target.starts_with(&within)))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let names = |dir: &Path| fs::read_dir(dir).unwrap().count();
    assert_eq!(names(&within), 1, "lost+found and nothing else");
    eventually("its blocks are free", || disk.blocks_used() == used);
    let kept = parsed(&disk.show());
    assert_eq!(kept, Value::Array(Vec::new()));
}

#[test]
fn places_that_cannot_be_measured_are_refused() {
    let Some(mut disk) = Disk::new("places_that_cannot_be_measured_are_refused") else {
        return;
    };
    let check = |disk: &Disk, arguments: &[&str], words: &[&str]| {
        let mut command = disk.calibrate();
        command.args(arguments);
        if !arguments.contains(&"--remove-model") {
            command.args(["--seconds", "2"]);
        }
        refusal(command).says(words);
    };
    let mnt = disk.path("mnt").display().to_string();
    let node = disk.node.clone();
    check(
        &disk,
        &["/dev/no-such-device"],
        &["/dev/no-such-device", "lsblk"],
    );
    check(
        &disk,
        &["/dev/null"],
        &["/dev/null", "neither a block device"],
    );
    check(&disk, &["/proc"], &["/proc", "name a block device"]);
    check(
        &disk,
        &[&node, "--scratch", "/proc"],
        &["/proc", "not on loop"],
    );
    let hierarchies = Hierarchies::read(Path::new("/proc")).unwrap();
    if let Some((_, hierarchy)) = hierarchies.of(Controller::Io)
        && hierarchy.version == Version::V1
    {
        // Before anything is measured.
        check(
            &disk,
            &[&node, "--install-model"],
            &["io.cost.model", "unified_cgroup_hierarchy"],
        );
    }
    check(&disk, &[&node, "--remove-model"], &["none was installed"]);
    // No room: all but some MiB.
    let filler = fs::File::create(disk.path("mnt/filler")).unwrap();
    let room = rustix::fs::statvfs(disk.path("mnt")).unwrap();
    let length = (room.f_bavail * room.f_frsize).saturating_sub(16 << 20);
    rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, length).unwrap();
    check(&disk, &[&mnt], &[&mnt, "is free there", "make room"]);
    drop(filler);
    disk.unmount();
    disk.mount("ro");
    check(&disk, &[&mnt], &[&mnt, "read-only"]);
    assert_eq!(parsed(&disk.show()), Value::Array(Vec::new()));
}
