//! What apps do on block devices that nobody ever put a limit on. Needs root, writable control groups and loop devices.

#![expect(
    dead_code,
    unsafe_code,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a fixture that fails should stop the test, and does not use all of the support"
)]

#[cfg(test)]
mod support;

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;

use forebay_core::app::{App, Device, OnStop};
use forebay_core::host::Action;
use forebay_host::mounts::Controller;
use support::*;

/// LOOP_CTL_ADD and LOOP_CTL_REMOVE (linux/loop.h).
const ADD: libc::Ioctl = 0x4C80;
const REMOVE: libc::Ioctl = 0x4C81;

/// A block device that is new to the kernel, with what it knows of one: not one that was detached before.
struct Disk {
    number: u32,
    node: String,
    _dir: tempfile::TempDir,
}

fn control(request: libc::Ioctl, number: u32) -> std::io::Result<()> {
    let control = File::options().write(true).open("/dev/loop-control")?;
    // SAFETY: both take a number and touch no memory of ours.
    match unsafe { libc::ioctl(control.as_raw_fd(), request, libc::c_ulong::from(number)) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

impl Disk {
    fn new(test: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, vec![1; 1 << 20]).unwrap();
        // Numbers that nobody takes who asks for the next free one.
        let first = 1 << 16 | (std::process::id() & 0xff) << 4;
        let mut numbers = first..first + 16;
        let added = numbers.find_map(|number| control(ADD, number).ok().map(|()| number));
        let Some(number) = added else {
            println!("SKIPPED: {test}: no loop devices");
            return None;
        };
        let disk = Self {
            number,
            node: format!("/dev/loop{number}"),
            _dir: dir,
        };
        let attached = Command::new("losetup").arg(&disk.node).arg(&image).output();
        match attached {
            Ok(output) if output.status.success() => Some(disk),
            other => {
                println!("SKIPPED: {test}: losetup: {other:?}");
                None
            }
        }
    }

    fn device(&self) -> Device {
        let name = Path::new(&self.node).file_name().unwrap();
        let number = Path::new("/sys/block").join(name).join("dev");
        text(&number).parse().unwrap()
    }

    /// An app that reads it past the cache.
    fn reader(&self, name: &str) -> App {
        let node = &self.node;
        let script =
            format!("while :; do dd if={node} of=/dev/null bs=64k iflag=direct 2>/dev/null; done");
        program(name, &["sh", "-c", &script])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Not attached where losetup is missing.
        Command::new("losetup")
            .args(["--detach", &self.node])
            .status()
            .ok();
        wait_for("end of the device", || control(REMOVE, self.number).is_ok());
    }
}

#[test]
fn what_is_done_on_a_device_is_counted_whether_it_ever_had_a_limit_or_not() {
    let test = "what_is_done_on_a_device_is_counted_whether_it_ever_had_a_limit_or_not";
    let Some(place) = Place::new(test) else {
        return;
    };
    if place
        .hierarchies
        .of(Controller::Io)
        .is_none_or(|(_, io)| !io.writable)
    {
        println!("SKIPPED: {test}: no writable control group for block devices");
        return;
    }
    let Some(before) = Disk::new(test) else {
        return;
    };
    let mut host = place.open();
    // One that comes while the daemon runs, too.
    let after = Disk::new(test).unwrap();
    for disk in [&before, &after] {
        let app = disk.reader(&format!("reader{}", disk.device().minor));
        apply(
            &mut host,
            &[Action::Start {
                app: app.clone().into(),
            }],
        );
        look_until(&mut host, &app, "reading that is counted", |sample| {
            let of_it = sample
                .io
                .as_ref()
                .ok()
                .and_then(|io| io.get(&disk.device()));
            of_it.is_some_and(|counters| counters.reads > 0)
        });
    }
    let report = host.close(OnStop::Kill).unwrap();
    assert!(report.is_complete(), "{report:?}");
}
