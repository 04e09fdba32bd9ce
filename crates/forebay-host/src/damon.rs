//! Which memory apps touch, watched by DAMON: /sys/kernel/mm/damon/admin.
//!
//! Problem: the kernel's lists say of anonymous memory that it is cold only after somebody
//! reclaimed. DAMON looks at the accessed bits of page tables instead. Its interface has one user
//! on a host, who sets the number of watching threads (kdamonds), each with one context.
//!
//! Approach: nr_kdamonds is set once to as many as there may be apps, and each app gets one of
//! them, switched on while the app is watched. Its targets are the app's processes with the most
//! anonymous memory. Two schemes that do nothing (`stat`) sum up what was touched: regions with
//! an access in the last aggregation, and those whose last access is not long ago. What belongs to
//! neither is cold. All of a new target is young, so that nothing is taken of the first half
//! minute. The kernel splits and merges regions as it learns, and samples can miss: the largest of
//! the last few sums counts. The first number comes after a minute.
//!
//! Whose it is: all of ours have an interval that nobody would choose, an odd one. Where
//! nr_kdamonds is not 0 and one of those that are set up has another, it is somebody else's, and
//! nothing is written. The kernel refuses another number as long as one is on.
//!
//! Reading a sum waits for the kernel's thread, about a second for each app, so all this is done
//! by a thread of its own, every [`LOOK_EVERY`].
//!
//! Source: SeongJae Park et al., "DAOS: Data Access-aware Operating System", HPDC 2022;
//! Documentation/admin-guide/mm/damon/usage.rst.

mod files;
mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::plan::watch::WATCHED_MAX;
use forebay_core::snapshot::{Gap, MemoryWatch, Reading, Touched};
use forebay_core::units::Time;

use crate::Roots;
use crate::apply::Refusal;
use crate::error::HostError;
use crate::host::LinuxHost;
use crate::ledger::{Ledger, Record, Spot, State};
use crate::restore::Report;
use crate::worker::Worker;
use files::{COUNT, Files, Owner};
use watcher::{Look, Watcher};

/// Between two looks at the sums.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Older sums are not believed any more.
const STALE: Duration = Duration::from_secs(60);
/// Jobs that may wait: the one after next would find nothing new.
const JOBS_MAX: usize = 1;

/// For `doctor`: whether batch can be watched now.
///
/// # Errors
/// Why not.
pub(crate) fn examine(roots: &Roots) -> Result<&'static str, HostError> {
    let files = Files::below(&roots.sys);
    let count = files.count().file;
    if !count.exists() {
        return Err(HostError::missing(
            format!("there is no {}", count.display()),
            "boot a kernel with CONFIG_DAMON_VADDR and CONFIG_DAMON_SYSFS (Debian's from 6.12 on)",
        ));
    }
    let owner = files.owner(None)?;
    if let Owner::Others(who) = owner {
        return Err(HostError::invalid(who, "left alone: it has one user"));
    }
    if !watches_processes(&roots.proc) {
        return Err(HostError::missing(
            "it watches no processes here",
            "boot a kernel with CONFIG_DAMON_VADDR",
        ));
    }
    Ok(match owner {
        Owner::Us(_) => "used by Forebay",
        _ => "used by nobody",
    })
}

/// Whether the kernel can watch processes, by a function that it needs for it. Where its symbols
/// cannot be read, only trying tells.
fn watches_processes(proc_root: &Path) -> bool {
    let Ok(symbols) = File::open(proc_root.join("kallsyms")) else {
        return true;
    };
    let mut lines = BufReader::new(symbols)
        .lines()
        .map_while(Result::ok)
        .peekable();
    lines.peek().is_none() || lines.any(|line| line.ends_with(" damon_va_target_valid"))
}

/// Takes down what an earlier daemon left: the kernel knows nothing that would not be known again
/// in a minute.
pub(crate) fn start_anew(ledger: &mut Ledger) -> Result<(), HostError> {
    if !ledger.state().host.iter().any(|(spot, _)| is_count(spot)) {
        return Ok(());
    }
    let mut report = Report::default();
    put_back(ledger.state(), &mut report);
    for who in &report.foreign {
        tracing::warn!(who, "DAMON is left to them");
    }
    if !report.is_complete() {
        tracing::warn!(why = report.failed.join("; "), "DAMON not switched off");
        return Ok(());
    }
    ledger.amend(|state| {
        state.host.retain(|(spot, _)| !is_count(spot));
        state.wrote.retain(|spot, _| !is_count(spot));
    })
}

/// Takes down what a ledger says was made, if it is still as it was made. What is somebody
/// else's by now is in the report. It is for the caller to forget the place in the ledger.
pub(crate) fn put_back(ledger: &State, report: &mut Report) {
    let known = ledger.host.iter().map(|(spot, _)| spot);
    for spot in known.filter(|spot| is_count(spot)) {
        let Some(dir) = spot.file.parent() else {
            continue;
        };
        let files = Files {
            dir: dir.to_owned(),
        };
        let made = ledger.wrote.get(spot).map_or(&[][..], Vec::as_slice);
        let done = files.owner(Some(made)).and_then(|owner| match owner {
            Owner::Nobody => Ok(None),
            Owner::Us(count) => files.clear(count).map(|()| None),
            Owner::Others(who) => Ok(Some(who)),
        });
        match done {
            Ok(None) => report.knobs += 1,
            Ok(Some(who)) => report.foreign.push(who),
            Err(error) if error.is_gone() => {}
            Err(error) => report.failed.push(error.explain()),
        }
    }
}

/// Whether a place in the ledger is the number of kdamonds.
pub(crate) fn is_count(spot: &Spot) -> bool {
    spot.file.file_name().is_some_and(|name| name == COUNT)
}

/// What the thread found out.
#[derive(Debug, Default)]
struct Seen {
    touched: BTreeMap<AppId, (Time, Touched)>,
    /// Who else uses it.
    taken: Option<String>,
    /// What the kernel refused, until somebody asks.
    failure: Option<String>,
    /// It watches no processes.
    unable: bool,
}

#[derive(Debug)]
struct Shared {
    watcher: Mutex<Watcher>,
    seen: Mutex<Seen>,
    /// Whether nobody wants to know any more.
    stopped: AtomicBool,
}

#[derive(Debug)]
struct Job {
    shared: Arc<Shared>,
    time: Time,
    apps: BTreeMap<AppId, PathBuf>,
}

/// DAMON, as a daemon uses it.
#[derive(Debug)]
pub(crate) struct Damon {
    files: Files,
    worker: Worker<Job>,
    shared: Arc<Shared>,
    /// The apps that are to be watched.
    apps: BTreeSet<AppId>,
    looked_at: Option<Time>,
}

impl Damon {
    /// None where the kernel has none, or it cannot be had.
    pub(crate) fn open(roots: &Roots) -> Option<Self> {
        let files = Files::below(&roots.sys);
        rustix::fs::access(&files.count().file, rustix::fs::Access::WRITE_OK).ok()?;
        let watcher = Watcher::new(files.clone(), &roots.proc);
        Some(Self {
            files,
            worker: Worker::new("damon", JOBS_MAX, |job: Job| job.work()),
            shared: Arc::new(Shared {
                watcher: Mutex::new(watcher),
                seen: Mutex::new(Seen::default()),
                stopped: AtomicBool::new(false),
            }),
            apps: BTreeSet::new(),
            looked_at: None,
        })
    }

    /// Who is watched, and who else uses it. While nobody is watched, a `thorough` look finds out
    /// whether somebody else uses it.
    pub(crate) fn look(&mut self, ledger: &State, thorough: bool) -> Reading<MemoryWatch> {
        if thorough && self.apps.is_empty() {
            let wrote = ledger.wrote.get(&self.files.count());
            let owner = self.files.owner(Some(wrote.map_or(&[][..], Vec::as_slice)));
            lock(&self.shared.seen).taken = match owner {
                Ok(Owner::Others(who)) => Some(who),
                Ok(Owner::Nobody | Owner::Us(_)) => None,
                Err(error) => return Err(Gap::Failed(error.explain())),
            };
        }
        let seen = lock(&self.shared.seen);
        if seen.unable {
            return Err(Gap::Unsupported);
        }
        if seen.taken.is_some() || seen.failure.is_some() {
            self.apps.clear();
        }
        Ok(MemoryWatch {
            apps: self.apps.clone(),
            taken: seen.taken.clone(),
        })
    }

    /// What an app touches.
    pub(crate) fn of(&self, app: &AppId, now: Time) -> Reading<Touched> {
        if !self.apps.contains(app) {
            return Err(Gap::Unsupported);
        }
        match lock(&self.shared.seen).touched.get(app) {
            Some((at, touched)) if now.since(*at) <= STALE => Ok(*touched),
            Some(_) => Err(Gap::Failed(format!(
                "DAMON has said nothing for {} s",
                STALE.as_secs()
            ))),
            None => Err(Gap::Unsupported),
        }
    }

    /// Whether the thread is to look again.
    pub(crate) fn is_due(&self, now: Time) -> bool {
        let waited = self
            .looked_at
            .is_none_or(|then| now.since(then) >= LOOK_EVERY);
        !self.apps.is_empty() && waited
    }

    pub(crate) const fn apps(&self) -> &BTreeSet<AppId> {
        &self.apps
    }

    /// Sends the thread to look at these groups.
    pub(crate) fn send(
        &mut self,
        time: Time,
        apps: BTreeMap<AppId, PathBuf>,
    ) -> Result<(), HostError> {
        self.looked_at = Some(time);
        let shared = Arc::clone(&self.shared);
        let job = Job { shared, time, apps };
        self.worker
            .submit(job, "look at which memory apps touch".to_owned())
    }

    /// Waits for the end of what the thread is at, so that nobody sets anything up any more.
    pub(crate) fn stop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.worker.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job {
    fn work(self) {
        let mut watcher = lock(&self.shared.watcher);
        let looked = watcher.look(&self.apps, &self.shared.stopped);
        if !matches!(looked, Ok(Look::Sums(_))) {
            watcher.give_up();
        }
        let mut seen = lock(&self.shared.seen);
        seen.touched.clear();
        match looked {
            Ok(Look::Taken(who)) => seen.taken = Some(who),
            Ok(Look::Unable) => seen.unable = true,
            Ok(Look::Sums(sums)) => {
                let sums = sums.into_iter();
                seen.touched = sums.map(|(app, sum)| (app, (self.time, sum))).collect();
            }
            Err(error) => seen.failure = Some(error.explain()),
        }
    }
}

impl LinuxHost {
    /// Records what is about to be set up.
    pub(crate) fn announce_watching(&mut self, apps: &BTreeSet<AppId>) -> Result<(), Refusal> {
        let damon = self.damon.as_ref().ok_or(Refusal::Unsupported)?;
        let spot = damon.files.count();
        let known = self.ledger.state().host.iter().any(|(s, _)| *s == spot);
        if !apps.is_empty() && !known {
            self.ledger.append(Record::HostOriginal {
                spot: spot.clone(),
                text: "0".to_owned(),
            })?;
            self.ledger.append(Record::Wrote {
                spot,
                text: WATCHED_MAX.to_string(),
            })?;
        }
        Ok(())
    }

    /// Has these apps watched from now on.
    pub(crate) fn watch_memory(&mut self, apps: &BTreeSet<AppId>) -> Result<(), Refusal> {
        let damon = self.damon.as_mut().ok_or(Refusal::Unsupported)?;
        if let Some(why) = lock(&damon.shared.seen).failure.take() {
            return Err(Refusal::Failed(format!("watch memory by DAMON: {why}")));
        }
        if apps.len() > WATCHED_MAX {
            return Err(Refusal::Failed(format!(
                "watch the memory of {} apps by DAMON: at most {WATCHED_MAX} at once",
                apps.len()
            )));
        }
        // Without apps, nobody would send the thread any more.
        if let (true, Some(then)) = (apps.is_empty(), damon.looked_at) {
            damon.send(then, BTreeMap::new())?;
        }
        damon.looked_at = None;
        damon.apps.clone_from(apps);
        Ok(())
    }

    /// Sends the thread to look when it is time.
    pub(crate) fn look_at_memory_watch(
        &mut self,
        now: Time,
        thorough: bool,
    ) -> Reading<MemoryWatch> {
        let damon = self.damon.as_mut().ok_or(Gap::Unsupported)?;
        let seen = damon.look(self.ledger.state(), thorough);
        if damon.is_due(now) {
            let groups = damon.apps().iter().filter_map(|app| {
                let group = self.entries.get(app)?.group.as_ref()?;
                Some((app.clone(), group.all_dirs().last()?.to_path_buf()))
            });
            if let Err(error) = damon.send(now, groups.collect()) {
                // It is still at the look before.
                tracing::debug!(reason = error.explain(), "not looked");
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests;
