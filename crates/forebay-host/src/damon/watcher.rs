//! What the thread does that looks at DAMON.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use forebay_core::app::AppId;
use forebay_core::plan::watch::WATCHED_MAX;
use forebay_core::snapshot::Touched;
use forebay_core::units::Bytes;

use super::files::{Files, Owner, number, write_patiently};
use crate::error::HostError;
use crate::files::read_text;
use crate::groups;

/// Sums of which the largest counts.
pub(super) const SUMS: usize = 3;
/// Processes of one app that are watched, at most.
pub(super) const TARGETS_MAX: usize = 16;
/// Anonymous memory that makes a process worth it, in pages.
pub(super) const TARGET_PAGES_MIN: u64 = 1024;
/// Looks of which nothing is taken: all is young, which says nothing of what is in use.
const LOOKS_OF_YOUTH: u32 = 3;
/// Part of what an app's processes hold that those may hold that came after the choice.
const UNWATCHED_PART: u64 = 4;
/// Looks before other processes of an app may be chosen: the kernel begins anew with them.
pub(super) const LOOKS_BETWEEN_CHANGES: u32 = 6;

/// One app's kdamond.
#[derive(Debug)]
pub(super) struct Watched {
    slot: usize,
    pids: BTreeSet<u32>,
    /// Looks since its processes were chosen, and the sums of the last ones.
    looks: u32,
    sums: VecDeque<u64>,
}

/// What the thread knows from one look to the next.
#[derive(Debug)]
pub(super) struct Watcher {
    files: Files,
    proc_root: PathBuf,
    page_size: u64,
    apps: BTreeMap<AppId, Watched>,
    /// Whether kdamonds were made, so that their absence is somebody's doing.
    made: bool,
}

/// What came of a look.
pub(super) enum Look {
    /// Somebody else came between.
    Taken(String),
    /// The kernel watches no processes.
    Unable,
    Sums(BTreeMap<AppId, Touched>),
}

/// What is known of one app.
pub(super) enum One {
    Touches(Touched),
    /// Not yet, or not any more.
    Unknown,
    /// By somebody else, while its processes run.
    SwitchedOff,
    /// The kernel watches no processes.
    Unable,
}

impl Watcher {
    pub(super) fn new(files: Files, proc_root: &Path) -> Self {
        Self {
            files,
            proc_root: proc_root.to_owned(),
            page_size: rustix::param::page_size() as u64,
            apps: BTreeMap::new(),
            made: false,
        }
    }

    /// Switches off whatever is still ours.
    pub(super) fn give_up(&mut self) {
        self.made = false;
        let made = [WATCHED_MAX.to_string()];
        let cleared = match self.files.owner(Some(&made)) {
            Ok(Owner::Us(count)) => self.files.clear(count),
            Ok(Owner::Nobody) => Ok(()),
            Ok(Owner::Others(_)) => {
                let slots = self.apps.values().map(|watched| watched.slot);
                let mut ours = slots.filter(|slot| self.files.is_marked(*slot));
                ours.try_for_each(|slot| self.files.switch_off(slot))
            }
            Err(error) => Err(error),
        };
        self.apps.clear();
        if let Err(error) = cleared {
            // The ledger still knows: the end of the daemon tries again.
            tracing::warn!(reason = error.explain(), "DAMON not switched off");
        }
    }

    /// Has these apps watched and no others, and says what they touched.
    pub(super) fn look(
        &mut self,
        groups: &BTreeMap<AppId, PathBuf>,
        stopped: &AtomicBool,
    ) -> Result<Look, HostError> {
        let made = [WATCHED_MAX.to_string()];
        match self.files.owner(Some(&made))? {
            Owner::Others(who) => return Ok(Look::Taken(who)),
            Owner::Nobody if self.made => {
                return Ok(Look::Taken(format!(
                    "somebody removed what Forebay had set up in {}",
                    self.files.dir.display()
                )));
            }
            Owner::Nobody if groups.is_empty() => return Ok(Look::Sums(BTreeMap::new())),
            Owner::Us(count) if groups.is_empty() => {
                self.apps.clear();
                self.made = false;
                self.files.clear(count)?;
                return Ok(Look::Sums(BTreeMap::new()));
            }
            Owner::Nobody => write_patiently(&self.files.count().file, &made[0])?,
            Owner::Us(_) => {}
        }
        self.made = true;
        let gone: Vec<AppId> = self.apps.keys().cloned().collect();
        for app in gone.iter().filter(|app| !groups.contains_key(app)) {
            if let Some(watched) = self.apps.remove(app) {
                self.files.switch_off(watched.slot)?;
            }
        }
        let mut sums = BTreeMap::new();
        for (app, dir) in groups {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            match self.look_at(app, dir)? {
                One::Touches(touched) => {
                    sums.insert(app.clone(), touched);
                }
                One::Unknown => {}
                One::SwitchedOff => {
                    let who = format!("somebody switched off the DAMON that watched {app}");
                    return Ok(Look::Taken(who));
                }
                One::Unable => return Ok(Look::Unable),
            }
        }
        Ok(Look::Sums(sums))
    }

    /// What one app touched, as far as that is known.
    fn look_at(&mut self, app: &AppId, dir: &Path) -> Result<One, HostError> {
        let sizes = self.processes(dir);
        let pids: BTreeSet<u32> = sizes.keys().copied().collect();
        let Some(watched) = self.apps.get(app) else {
            let used: BTreeSet<usize> = self.apps.values().map(|watched| watched.slot).collect();
            let free = (0..WATCHED_MAX).find(|slot| !used.contains(slot));
            return match free {
                Some(slot) => self.begin(app, slot, pids),
                None => Ok(One::Unknown),
            };
        };
        let slot = watched.slot;
        if !self.files.is_on(slot)? {
            // It goes with the last of its processes: who is there after it was off had no part in it.
            let there = groups::members(dir);
            let there = there.into_iter().filter(|pid| self.pages(*pid).is_some());
            if there.into_iter().any(|pid| watched.pids.contains(&pid)) {
                return Ok(One::SwitchedOff);
            }
            return self.begin(app, slot, pids);
        }
        let all: u64 = sizes.values().sum();
        let others = sizes.iter().filter(|(pid, _)| !watched.pids.contains(pid));
        let others: u64 = others.map(|(_, bytes)| bytes).sum();
        if others > all / UNWATCHED_PART && watched.looks >= LOOKS_BETWEEN_CHANGES {
            self.files.switch_off(slot)?;
            return self.begin(app, slot, pids);
        }
        let sum = match self.files.warm(slot) {
            // Its last process ended while it was asked.
            Err(error) if !self.files.is_on(slot)? => {
                tracing::debug!(%app, reason = error.explain(), "not watched any more");
                return Ok(One::Unknown);
            }
            sum => sum?,
        };
        let Some(watched) = self.apps.get_mut(app) else {
            return Ok(One::Unknown);
        };
        watched.take(sum);
        let of_watched = sizes.iter().filter(|(pid, _)| watched.pids.contains(pid));
        let bytes = Bytes(of_watched.map(|(_, bytes)| bytes).sum());
        Ok(watched.largest().map_or(One::Unknown, |hot| {
            One::Touches(Touched {
                watched: bytes,
                hot: Bytes(hot),
            })
        }))
    }

    /// Has these processes watched from now on.
    fn begin(&mut self, app: &AppId, slot: usize, pids: BTreeSet<u32>) -> Result<One, HostError> {
        self.apps.remove(app);
        if pids.is_empty() {
            return Ok(One::Unknown);
        }
        match self.files.begin(slot, &pids) {
            Ok(true) => {}
            Ok(false) => return Ok(One::Unable),
            // A process that ended just now cannot be named: the next look finds others.
            Err(error) => {
                let alive = |pid: &u32| self.proc_root.join(pid.to_string()).exists();
                if pids.iter().all(alive) {
                    return Err(error);
                }
                return Ok(One::Unknown);
            }
        }
        self.apps.insert(app.clone(), Watched::new(slot, pids));
        Ok(One::Unknown)
    }

    /// Anonymous memory of a process, in pages; none when it has ended.
    fn pages(&self, pid: u32) -> Option<u64> {
        let file = self.proc_root.join(pid.to_string()).join("statm");
        let text = read_text(&file).ok()?;
        let mut pages = text.split_whitespace().skip(1).map(number);
        let (resident, shared) = (pages.next()??, pages.next()??);
        (resident > 0).then(|| resident.saturating_sub(shared))
    }

    /// The processes of a group that are worth watching, and the anonymous memory of each.
    fn processes(&self, dir: &Path) -> BTreeMap<u32, u64> {
        let sizes = groups::members(dir).into_iter();
        let sizes = sizes.filter_map(|pid| Some((self.pages(pid)?, pid)));
        let mut sizes: Vec<(u64, u32)> = sizes
            .filter(|(pages, _)| *pages >= TARGET_PAGES_MIN)
            .collect();
        sizes.sort_unstable_by_key(|(pages, pid)| (std::cmp::Reverse(*pages), *pid));
        let largest = sizes.into_iter().take(TARGETS_MAX);
        largest
            .map(|(pages, pid)| (pid, pages.saturating_mul(self.page_size)))
            .collect()
    }
}

impl Watched {
    const fn new(slot: usize, pids: BTreeSet<u32>) -> Self {
        Self {
            slot,
            pids,
            looks: 0,
            sums: VecDeque::new(),
        }
    }

    fn take(&mut self, sum: u64) {
        self.looks += 1;
        if self.looks <= LOOKS_OF_YOUTH {
            return;
        }
        if self.sums.len() == SUMS {
            self.sums.pop_front();
        }
        self.sums.push_back(sum);
    }

    /// The largest of the last sums, once there are as many as it takes.
    fn largest(&self) -> Option<u64> {
        let enough = self.sums.len() == SUMS;
        self.sums.iter().max().copied().filter(|_| enough)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_the_last_sums_counts_once_there_are_enough() {
        let mut watched = Watched::new(0, BTreeSet::from([7]));
        let mut check = |sum: u64, largest: Option<u64>| {
            watched.take(sum);
            assert_eq!(watched.largest(), largest, "{watched:?}");
        };
        for _ in 0..LOOKS_OF_YOUTH {
            check(5000, None);
        }
        check(900, None);
        check(100, None);
        check(200, Some(900));
        check(100, Some(200));
        check(100, Some(200));
        check(100, Some(100));
    }

    #[test]
    fn the_largest_processes_of_a_group_are_watched() {
        let top = tempfile::tempdir().unwrap();
        let (group, proc_root) = (top.path().join("group"), top.path().join("proc"));
        std::fs::create_dir(&group).unwrap();
        let mut members = String::new();
        for pid in 1..=20_u64 {
            members.push_str(&format!("{pid}\n"));
            // The last has memory of files only, and the one before is gone.
            let shared = if pid == 20 { 9000 } else { 100 };
            let dir = proc_root.join(pid.to_string());
            if pid != 19 {
                std::fs::create_dir_all(&dir).unwrap();
                let resident = 1100 + pid * 100;
                let statm = format!("99999 {resident} {shared} 1 0 1 0\n");
                std::fs::write(dir.join("statm"), statm).unwrap();
            }
        }
        std::fs::write(group.join("cgroup.procs"), members).unwrap();
        let watcher = Watcher {
            page_size: 4096,
            ..Watcher::new(Files::below(top.path()), &proc_root)
        };
        let found = watcher.processes(&group);
        let pids: Vec<u32> = found.keys().copied().collect();
        assert_eq!(pids, (3..=18).collect::<Vec<u32>>());
        assert_eq!(found[&18], (1100 + 1800 - 100) * 4096);
    }
}
