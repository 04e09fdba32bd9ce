//! What the kernel says: knobs, groups and processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use forebay_host::mounts::{Controller, Hierarchies, Version};
use rustix::process::{Pid, Signal, kill_process};

/// A knob that tests look at, by its names.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Knob {
    Weight,
    Quota,
    Idle,
    Cpus,
    MemoryMin,
    MemoryMax,
    PidsMax,
    Procs,
}

pub(crate) fn knob_in(hierarchies: &Hierarchies, group: &str, knob: Knob) -> PathBuf {
    let (controller, v2, v1) = match knob {
        Knob::Weight => (Controller::Cpu, "cpu.weight", "cpu.shares"),
        Knob::Quota => (Controller::Cpu, "cpu.max", "cpu.cfs_quota_us"),
        Knob::Idle => (Controller::Cpu, "cpu.idle", "cpu.idle"),
        Knob::Cpus => (Controller::Cpuset, "cpuset.cpus", "cpuset.cpus"),
        Knob::MemoryMin => (Controller::Memory, "memory.min", "memory.min"),
        Knob::MemoryMax => (Controller::Memory, "memory.max", "memory.limit_in_bytes"),
        Knob::PidsMax => (Controller::Pids, "pids.max", "pids.max"),
        Knob::Procs => (Controller::Cpu, "cgroup.procs", "cgroup.procs"),
    };
    let (_, hierarchy) = hierarchies.of(controller).unwrap();
    let file = if hierarchy.version == Version::V2 {
        v2
    } else {
        v1
    };
    hierarchy.dir(Path::new(group)).join(file)
}

/// The directories of a daemon's own groups that are there: its anchor, and the apps' beside it.
pub(crate) fn groups_left(hierarchies: &Hierarchies, anchor: &str) -> Vec<PathBuf> {
    let ours = |name: &str| {
        name.strip_prefix(anchor)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    hierarchies
        .list()
        .iter()
        .flat_map(|hierarchy| fs::read_dir(hierarchy.dir(Path::new(""))).unwrap())
        .map(|entry| entry.unwrap())
        .filter(|entry| ours(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect()
}

/// The text of a kernel file; empty when it is not there.
pub(crate) fn text(path: &Path) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The control groups of a process, a line for each hierarchy.
pub(crate) fn groups_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default()
}

/// Living processes by their command lines.
pub(crate) fn processes(wanted: impl Fn(&[String]) -> bool) -> Vec<u32> {
    let pid_of = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| pid_of(entry.ok()?))
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let words: Vec<String> = line.split_terminator('\0').map(str::to_owned).collect();
            !words.is_empty() && wanted(&words) && is_running(*pid)
        })
        .collect()
}

/// Processes that sleep for so many seconds.
pub(crate) fn sleepers(seconds: &str) -> Vec<u32> {
    processes(|words| words.len() == 2 && words[0].ends_with("sleep") && words[1] == seconds)
}

/// Whether a process is there and not only waiting to be reaped.
pub(crate) fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    // It may be gone already, which is what most signals are for.
    kill_process(pid, signal).ok();
}

/// A process that is not Forebay's, ended with the test.
#[derive(Debug)]
pub(crate) struct Sleeper(Child);

impl Sleeper {
    pub(crate) fn new(seconds: &str) -> Self {
        Self(Command::new("sleep").arg(seconds).spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
