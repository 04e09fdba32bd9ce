//! Machines within one: rooms of process numbers and mounts, and of networks.

use std::fs;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::place::{eventually, signal};

/// Runs its arguments without descriptors of whoever began the test: they are of other mounts, and what a daemon has
/// open its programs have.
const ALONE: &str = "for fd in /proc/self/fd/*; do fd=${fd##*/}; \
                     [ \"$fd\" -gt 2 ] && eval \"exec $fd>&-\"; done; exec \"$@\"";

/// What a machine has of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rooms {
    /// Process numbers and mounts.
    Processes,
    /// And a network, in which there is nothing yet.
    Network,
}

/// A room of process numbers and mounts, which stays when its daemon ends.
#[derive(Debug)]
pub(crate) struct Machine {
    unshare: Child,
    /// The first of its processes, by the numbers of the test.
    pub(crate) init: u32,
    rooms: Rooms,
}

impl Machine {
    /// Its next process has this number: those of two hosts do not meet.
    pub(crate) fn start(next: u32, rooms: Rooms) -> Option<Self> {
        let mut command = Command::new("setpriv");
        let unshare = command
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid"])
            .args((rooms == Rooms::Network).then_some("--net"))
            .args(["--fork", "--mount-proc", "--kill-child", "--", "sh", "-c"])
            // It reaps what its daemons leave.
            .arg("echo \"$1\" > /proc/sys/kernel/ns_last_pid; sleep infinity & wait")
            .args(["sh", &next.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let mut machine = Self {
            unshare,
            init: 0,
            rooms,
        };
        eventually("its first process sleeps", || {
            let ended = machine.unshare.try_wait().unwrap();
            let [init] = children(machine.unshare.id())[..] else {
                return ended.is_some();
            };
            machine.init = init;
            !children(init).is_empty()
        });
        (machine.init != 0).then_some(machine)
    }

    /// Runs something in it.
    pub(crate) fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg("--target")
            .arg(self.init.to_string())
            .args(["--mount", "--pid"])
            .args((self.rooms == Rooms::Network).then_some("--net"))
            .args(["--", "bash", "-c", ALONE, "bash"]);
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All that is in it ends with its first process.
        signal(self.init, Signal::KILL);
        self.unshare.wait().unwrap();
    }
}

pub(crate) fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    text.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}
