//! Whom the kernel ends first when memory is out: /proc/PID/oom_score_adj.
//!
//! Problem: the kernel picks its victim by size, so the database goes and the batch job stays.
//! It can be told, but process by process: a child has what its parent had when it was born, and
//! some choose for themselves (service managers, databases for their children).
//!
//! Approach: only processes at 0, the default that nobody chose, are written to, and none whose
//! parent in the same slice has another value: it gave its child 0 on purpose. Each is looked at
//! once, in one period of ten; what is born later inherits. What is written is a value that nobody
//! else chooses, so who has it can be put back to 0, child or not, without a list of processes.
//!
//! A process that leaves the slice by itself before it is put back keeps the value.

use std::collections::BTreeSet;
use std::path::Path;

use forebay_core::app::AppId;

use crate::apply::Refusal;
use crate::error::HostError;
use crate::files::{read_text, write_text};
use crate::groups;
use crate::host::{Group, LinuxHost};
use crate::ledger::Record;
use crate::procs;

/// The kernel's default.
const DEFAULT: i16 = 0;
/// New processes looked at in one period.
const NEW_MAX: usize = 256;
/// Rounds in which processes are caught that are born meanwhile.
const ROUNDS_MAX: usize = 5;

/// What is known of the processes of one app.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Those that need no more look.
    settled: BTreeSet<u32>,
}

impl Seen {
    /// Whether somebody in a group does not have `value` who should.
    pub(crate) fn is_exposed(&mut self, proc_root: &Path, group: &Group, value: i16) -> bool {
        let Some(dir) = group.all_dirs().last().copied() else {
            return false;
        };
        value != DEFAULT
            && !self
                .unset(proc_root, &groups::members(dir), value)
                .is_empty()
    }

    /// The newcomers among the members that nobody chose a value for.
    fn unset(&mut self, proc_root: &Path, members: &[u32], value: i16) -> Vec<u32> {
        let here: BTreeSet<u32> = members.iter().copied().collect();
        self.settled.retain(|pid| here.contains(pid));
        let new: Vec<u32> = here.difference(&self.settled).copied().collect();
        let mut unset = Vec::new();
        for pid in new.into_iter().take(NEW_MAX) {
            let chosen = match read(proc_root, pid) {
                Some(DEFAULT) => {
                    let parent = procs::read_stat(proc_root, pid).map(|stat| stat.parent);
                    let parent = parent.filter(|parent| here.contains(parent));
                    let parents = parent.and_then(|parent| read(proc_root, parent));
                    parents.is_some_and(|parents| parents != DEFAULT && parents != value)
                        || parent.is_some_and(|parent| self.settled.contains(&parent))
                }
                Some(_) | None => true,
            };
            if chosen {
                self.settled.insert(pid);
            } else {
                unset.push(pid);
            }
        }
        unset
    }
}

fn file(proc_root: &Path, pid: u32) -> std::path::PathBuf {
    proc_root.join(format!("{pid}/oom_score_adj"))
}

/// None when the process is gone.
fn read(proc_root: &Path, pid: u32) -> Option<i16> {
    read_text(&file(proc_root, pid)).ok()?.trim().parse().ok()
}

fn write(proc_root: &Path, pid: u32, value: i16) -> Result<(), HostError> {
    match write_text(&file(proc_root, pid), &value.to_string()) {
        Err(error) if error.is_gone() || error.errno() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// Puts everybody in a group back who has one of `values`; how many there were.
pub(crate) fn put_back(proc_root: &Path, dir: &Path, values: &[i16]) -> Result<usize, HostError> {
    let mut count = 0;
    for _ in 0..ROUNDS_MAX {
        let members = groups::members(dir).into_iter();
        let ours = |pid: &u32| read(proc_root, *pid).is_some_and(|value| values.contains(&value));
        let ours: Vec<u32> = members.filter(ours).collect();
        if ours.is_empty() {
            break;
        }
        for pid in ours {
            write(proc_root, pid, DEFAULT)?;
            count += 1;
        }
    }
    Ok(count)
}

impl LinuxHost {
    /// Records that processes in an app's group may have this value from now on.
    pub(crate) fn announce_oom(&mut self, app: &AppId, value: i16) -> Result<(), HostError> {
        let entry = self.entries.get(app);
        let dirs = match entry.and_then(|entry| entry.group.as_ref()) {
            Some(group) => group.dirs.clone(),
            // Not made yet.
            None => self.own_dirs(app),
        };
        let Some(dir) = dirs.into_iter().flatten().next_back() else {
            return Ok(());
        };
        let record = self.ledger.state().apps.get(app);
        let wrote = record.and_then(|record| record.oom_scores.last());
        if value == DEFAULT || wrote == Some(&(dir.clone(), value)) {
            return Ok(());
        }
        self.ledger.append(Record::OomScoreAdj {
            app: app.clone(),
            dir,
            value,
        })
    }

    /// Gives an app's processes a value, but for those that somebody chose one for.
    pub(crate) fn set_oom(&mut self, app: &AppId, value: i16) -> Result<(), Refusal> {
        let proc_root = self.options.roots.proc.clone();
        let record = self.ledger.state().apps.get(app);
        let wrote = record.map_or_else(Vec::new, |record| record.oom_scores.clone());
        let Some(entry) = self.entries.get_mut(app) else {
            return Ok(());
        };
        // From when the app was of another class.
        for (dir, other) in wrote.iter().filter(|(_, other)| *other != value) {
            if put_back(&proc_root, dir, &[*other])? > 0 {
                entry.oom = Seen::default();
            }
        }
        let Some(group) = entry.group.as_ref() else {
            return Ok(());
        };
        if value == DEFAULT {
            entry.oom = Seen::default();
            return Ok(());
        }
        let Some(dir) = group.all_dirs().last().map(|dir| dir.to_path_buf()) else {
            return Ok(());
        };
        let mut done = BTreeSet::new();
        for _ in 0..ROUNDS_MAX {
            let unset = entry.oom.unset(&proc_root, &groups::members(&dir), value);
            let unset: Vec<u32> = unset.into_iter().filter(|pid| done.insert(*pid)).collect();
            if unset.is_empty() {
                break;
            }
            for pid in unset {
                match write(&proc_root, pid, value) {
                    // Below what a process had takes a capability, in a container for instance.
                    Err(error) if error.errno() == Some(libc::EACCES) => {
                        return Err(Refusal::Unsupported);
                    }
                    other => other?,
                }
            }
        }
        entry.oom.settled.extend(done);
        Ok(())
    }
}
