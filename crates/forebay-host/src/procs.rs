//! Processes, from /proc.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use forebay_core::app::{AppId, Match};
use forebay_core::units::Bytes;

use crate::ledger::Process;

/// A newcomer is looked at in this many scans: it may run another program only after a while.
const LOOKS_NEW: u8 = 4;
/// An old acquaintance is looked at again every so many scans: numbers are used again.
const SCANS_BETWEEN_LOOKS: u64 = 16;

/// What /proc/PID/stat says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: char,
    pub(crate) parent: u32,
    pub(crate) session: u32,
    /// User and system time in clock ticks.
    pub(crate) ticks: u64,
    /// Since boot, in clock ticks.
    pub(crate) start_time: u64,
    pub(crate) resident_pages: u64,
}

/// Parses /proc/PID/stat. The name in parentheses may contain anything.
pub(crate) fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Numbered from 3 in proc(5).
    let field = |number: usize| fields.get(number - 3);
    let number = |at: usize| field(at)?.parse::<u64>().ok();
    Some(Stat {
        state: field(3)?.chars().next()?,
        parent: field(4)?.parse().ok()?,
        session: field(6)?.parse().ok()?,
        ticks: number(14)? + number(15)?,
        start_time: number(22)?,
        resident_pages: number(24)?,
    })
}

pub(crate) fn read_stat(proc_root: &Path, pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(proc_root.join(format!("{pid}/stat"))).ok()?)
}

/// The process with this number now; none when it is gone or only waits to be reaped.
#[must_use]
pub fn identify(proc_root: &Path, pid: u32) -> Option<Process> {
    let stat = read_stat(proc_root, pid)?;
    (!matches!(stat.state, 'Z' | 'X')).then_some(Process {
        pid,
        start_time: stat.start_time,
    })
}

/// Whether this very process still runs.
#[must_use]
pub fn is_alive(proc_root: &Path, process: Process) -> bool {
    identify(proc_root, process.pid) == Some(process)
}

/// Whether a process of this name runs; the kernel cuts names to 15 bytes.
pub(crate) fn is_any_named(proc_root: &Path, name: &str) -> bool {
    let named = |pid| {
        let text = fs::read_to_string(proc_root.join(format!("{pid}/comm")));
        text.is_ok_and(|text| text.trim_end() == name)
    };
    all(proc_root).into_iter().any(named)
}

/// All process numbers.
pub(crate) fn all(proc_root: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(proc_root) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The processes given that still run, and everything that descends from them.
pub(crate) fn families(proc_root: &Path, roots: &[Process]) -> Vec<u32> {
    let mut family: Vec<u32> = roots
        .iter()
        .filter(|process| is_alive(proc_root, **process))
        .map(|process| process.pid)
        .collect();
    if family.is_empty() {
        return family;
    }
    let parents: Vec<(u32, u32)> = all(proc_root)
        .into_iter()
        .filter_map(|pid| Some((pid, read_stat(proc_root, pid)?.parent)))
        .collect();
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        next += 1;
        for &(pid, of) in &parents {
            if of == parent && !family.contains(&pid) {
                family.push(pid);
            }
        }
    }
    family
}

fn matches(rule: &Match, executable: &str, command_line: &str) -> bool {
    let executable_fits = rule.executable.as_ref().is_none_or(|wanted| {
        if wanted.contains('/') {
            executable == wanted
        } else {
            executable.rsplit('/').next() == Some(wanted)
        }
    });
    let command_fits = rule
        .command_line
        .as_ref()
        .is_none_or(|wanted| command_line.contains(wanted.as_str()));
    let asks_something = rule.executable.is_some() || rule.command_line.is_some();
    asks_something && executable_fits && command_fits
}

#[derive(Debug)]
struct Seen {
    looks: u8,
    app: Option<AppId>,
}

/// Follows which processes belong to which `match` app.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    seen: BTreeMap<u32, Seen>,
    scans: u64,
}

impl Scanner {
    /// Looks through all processes but `except`. The first app by name that matches has it.
    pub(crate) fn scan(&mut self, proc_root: &Path, rules: &[(&AppId, &Match)], except: &[u32]) {
        self.scans += 1;
        let mut seen = BTreeMap::new();
        for pid in all(proc_root) {
            if except.contains(&pid) {
                continue;
            }
            let known = self.seen.remove(&pid);
            let looks = known.as_ref().map_or(0, |seen| seen.looks);
            let due = looks < LOOKS_NEW
                || (self.scans + u64::from(pid)).is_multiple_of(SCANS_BETWEEN_LOOKS);
            let entry = match known {
                Some(known) if !due => known,
                _ => Seen {
                    looks: looks.saturating_add(1),
                    app: app_of(proc_root, pid, rules),
                },
            };
            seen.insert(pid, entry);
        }
        self.seen = seen;
    }

    /// The processes that belong to an app, as of the last scan.
    pub(crate) fn of<'a>(&'a self, app: &'a AppId) -> impl Iterator<Item = u32> + 'a {
        self.seen
            .iter()
            .filter(move |(_, seen)| seen.app.as_ref() == Some(app))
            .map(|(pid, _)| *pid)
    }
}

fn app_of(proc_root: &Path, pid: u32, rules: &[(&AppId, &Match)]) -> Option<AppId> {
    let dir = proc_root.join(pid.to_string());
    // Kernel threads have no executable and cannot be moved.
    let executable = fs::read_link(dir.join("exe")).ok()?;
    let executable = executable.to_str()?;
    // A program that was replaced on disk while it runs is still that program.
    let executable = executable.strip_suffix(" (deleted)").unwrap_or(executable);
    let command_line = fs::read(dir.join("cmdline")).unwrap_or_default();
    let command_line = String::from_utf8_lossy(&command_line).replace('\0', " ");
    rules
        .iter()
        .find(|(_, rule)| matches(rule, executable, &command_line))
        .map(|(app, _)| (*app).clone())
}

/// What a process uses itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnUse {
    /// Processor time since it started.
    pub cpu: Duration,
    /// Resident memory.
    pub memory: Bytes,
}

/// Processor time and memory of the calling process, from /proc/self.
#[must_use]
pub fn own_use(proc_root: &Path) -> Option<OwnUse> {
    use_in(&proc_root.join("self"))
}

/// What a daemon uses together with its guardian: the whole of what its user pays.
#[must_use]
pub fn daemon_use(proc_root: &Path, daemon: u32) -> Option<OwnUse> {
    let mut sum = use_in(&proc_root.join(daemon.to_string()))?;
    for pid in children(proc_root, daemon) {
        let dir = proc_root.join(pid.to_string());
        let command_line = fs::read(dir.join("cmdline")).unwrap_or_default();
        // Children are mostly programs of apps.
        if command_line.split(|byte| *byte == 0).nth(1) != Some(b"guardian") {
            continue;
        }
        if let Some(guardian) = use_in(&dir) {
            sum.cpu += guardian.cpu;
            sum.memory = sum.memory.saturating_add(guardian.memory);
        }
    }
    Some(sum)
}

fn use_in(dir: &Path) -> Option<OwnUse> {
    let stat = parse_stat(&fs::read_to_string(dir.join("stat")).ok()?)?;
    Some(OwnUse {
        cpu: ticks(stat.ticks),
        memory: Bytes(stat.resident_pages * rustix::param::page_size() as u64),
    })
}

/// Children of any thread of a process.
pub(crate) fn children(proc_root: &Path, pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(proc_root.join(format!("{pid}/task"))) else {
        return Vec::new();
    };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|child| child.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

/// Now, on the clock of start times.
pub(crate) fn ticks_since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let per_second = rustix::param::clock_ticks_per_second();
    let whole = u64::try_from(now.tv_sec).unwrap_or(0) * per_second;
    whole + u64::try_from(now.tv_nsec).unwrap_or(0) * per_second / 1_000_000_000
}

/// A number of clock ticks as time.
pub(crate) fn ticks(count: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_nanos((count * 1000).saturating_mul(1_000_000 / per_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_strange_names() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 0 0 0 30 12 0 0 20 0 1 0 99 4096 250 1";
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat.parent, 7);
        assert_eq!(stat.session, 42);
        assert_eq!(stat.ticks, 42);
        assert_eq!(stat.start_time, 99);
        assert_eq!(stat.resident_pages, 250);
        assert_eq!(parse_stat("42 (x"), None);
    }

    #[test]
    fn rules_match_by_name_path_and_command_line() {
        let check = |executable: Option<&str>, command_line: Option<&str>, expected: bool| {
            let rule = Match {
                executable: executable.map(str::to_owned),
                command_line: command_line.map(str::to_owned),
            };
            assert_eq!(
                matches(&rule, "/usr/sbin/nginx", "nginx -g daemon off; "),
                expected,
                "{rule:?}"
            );
        };
        check(Some("nginx"), None, true);
        check(Some("ngin"), None, false);
        check(Some("/usr/sbin/nginx"), None, true);
        check(Some("/sbin/nginx"), None, false);
        check(None, Some("daemon off"), true);
        check(Some("nginx"), Some("--other"), false);
        check(None, None, false);
    }

    #[test]
    fn ticks_are_hundredths_of_a_second() {
        assert_eq!(ticks(250), Duration::from_millis(2500));
    }

    #[test]
    fn this_process_is_found_and_alive() {
        let proc_root = Path::new("/proc");
        let me = identify(proc_root, std::process::id()).unwrap();
        assert!(is_alive(proc_root, me));
        let other = Process {
            start_time: me.start_time + 1,
            ..me
        };
        assert!(!is_alive(proc_root, other));
        assert!(families(proc_root, &[me]).contains(&me.pid));
        assert!(me.start_time <= ticks_since_boot());
        assert!(own_use(proc_root).unwrap().memory > Bytes(0));
    }
}
