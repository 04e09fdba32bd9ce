//! What remains of a trial: processes and control groups.

use std::fs;
use std::path::{Path, PathBuf};

use super::stage::MARK;

/// A process, told from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pid: u32,
    start_time: u64,
}

/// All that descends from this process now.
pub(super) fn family() -> Vec<Process> {
    let all: Vec<_> = pids()
        .into_iter()
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect();
    let mut parents = vec![std::process::id()];
    let mut found = Vec::new();
    while let Some(parent) = parents.pop() {
        for (pid, stat) in all.iter().filter(|(_, stat)| stat.parent == parent) {
            parents.push(*pid);
            found.push(Process {
                pid: *pid,
                start_time: stat.start_time,
            });
        }
    }
    found
}

/// What is left, one line each: processes of the family and processes with the mark of `dir` in
/// their environment, and control groups named after `root`.
pub(super) fn find(family: &[Process], dir: &Path, root: &str) -> Vec<String> {
    let mark = format!("{MARK}={}", dir.display());
    let mut left = Vec::new();
    for pid in pids() {
        let Some(stat) = stat(pid).filter(|stat| !matches!(stat.state, 'Z' | 'X')) else {
            continue;
        };
        let known = family.contains(&Process {
            pid,
            start_time: stat.start_time,
        });
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let is_marked = environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == mark.as_bytes());
        if known || is_marked {
            left.push(format!("process {pid}: {}", command_line(pid)));
        }
    }
    let groups = mounts()
        .into_iter()
        .flat_map(|mount| groups_in(&mount, root));
    left.extend(groups.map(|group| format!("control group {}", group.display())));
    left
}

/// Control groups at the top of a hierarchy that are `root` or begin with `root.`.
fn groups_in(mount: &Path, root: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(mount) else {
        return Vec::new();
    };
    let is_named = |name: &str| {
        name.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_named))
        .map(|entry| entry.path())
        .collect()
}

/// Where control group hierarchies are mounted.
fn mounts() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts_in(&text)
}

fn mounts_in(mountinfo: &str) -> Vec<PathBuf> {
    let hierarchy = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let kind = after.split(' ').next()?;
        let point = before.split(' ').nth(4)?;
        matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(point))
    };
    mountinfo.lines().filter_map(hierarchy).collect()
}

struct Stat {
    state: char,
    parent: u32,
    start_time: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 3, 4 and 22 of proc(5); the name in parentheses may contain anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
    })
}

/// Numbers of all processes.
pub(super) fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The file name of a process's executable; kernel threads have none.
pub(super) fn program(pid: u32) -> Option<String> {
    let executable = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(executable.file_name()?.to_str()?.to_owned())
}

pub(super) fn command_line(pid: u32) -> String {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .replace('\0', " ")
        .trim()
        .to_owned()
}

impl Process {
    pub(super) fn pid(self) -> u32 {
        self.pid
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_marked_child_is_left_until_it_is_waited_for() {
        let dir = Path::new("/no/such/leftovers-test");
        let mut child = Command::new("sleep")
            .arg("60")
            .env(MARK, dir)
            .spawn()
            .unwrap();
        let family = family();
        assert!(family.iter().any(|process| process.pid == child.id()));
        let own: Vec<_> = family
            .into_iter()
            .filter(|process| process.pid == child.id())
            .collect();
        assert_eq!(find(&own, dir, "no-such-group").len(), 1);
        assert_eq!(find(&[], dir, "no-such-group").len(), 1, "by its mark");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(find(&own, dir, "no-such-group").is_empty());
    }

    #[test]
    fn hierarchies_are_read_from_mountinfo() {
        let text = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs rw\n\
                    31 30 0:27 / /sys/fs/cgroup/cpu rw shared:5 - cgroup cgroup rw,cpu\n\
                    32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let expected = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        assert_eq!(mounts_in(text), expected);
    }

    #[test]
    fn groups_are_told_by_their_whole_name() {
        let dir = std::env::temp_dir().join(format!("forebay-leftovers-{}", std::process::id()));
        for name in ["a-1", "a-1.web", "a-12", "b"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let mut found = groups_in(&dir, "a-1");
        found.sort();
        assert_eq!(found, [dir.join("a-1"), dir.join("a-1.web")]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
