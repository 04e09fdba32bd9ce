//! The live host: applies actions, and keeps what is known of each app.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Binding, OnStop};
use forebay_core::host::{Action, Capabilities, Host, Outcome, Watch};
use forebay_core::slice::{Knob, Setting};
use forebay_core::snapshot::{Ending, Snapshot};
use forebay_core::topology::Topology;
use forebay_core::units::Limit;

use crate::Roots;
use crate::error::HostError;
use crate::files::{Reader, read_text, write_text};
use crate::groups;
use crate::knobs::{self, PERIOD_US_DEFAULT, Way, Ways};
use crate::ledger::{Ledger, Process, Record, Spot};
use crate::lock::{Lock, Role};
use crate::mounts::{Controller, Hierarchies, Version};
use crate::observe::Meters;
use crate::procs::{self, Scanner};
use crate::restore::{self, Fate, Release, Report, read_spot};
use crate::supervise::{self, Main, Program};
use crate::topology::read_topology;

/// How long a release within a period waits for members to leave; the next period goes on.
const RELEASE_PATIENCE: Duration = Duration::from_millis(20);

/// How a live host is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where the kernel's file systems are.
    pub roots: Roots,
    /// The group that holds all groups of ours, relative to the root of each hierarchy.
    pub group: PathBuf,
    /// Where the ledger and the lock are.
    pub state_dir: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            roots: Roots::default(),
            group: PathBuf::from("forebay"),
            state_dir: PathBuf::from("/var/lib/forebay"),
        }
    }
}

/// The live host. Dropping it leaves everything in force, as a crash would;
/// [`close`](Self::close) puts everything back.
#[derive(Debug)]
pub struct LinuxHost {
    pub(crate) options: Options,
    pub(crate) hierarchies: Hierarchies,
    topology: Topology,
    capabilities: Capabilities,
    pub(crate) ways: Ways,
    ledger: Ledger,
    _lock: Lock,
    pub(crate) entries: BTreeMap<AppId, Entry>,
    pub(crate) scanner: Scanner,
    pub(crate) host_stat: Option<Reader>,
    pub(crate) host_memory: Option<Reader>,
    pub(crate) buffer: Vec<u8>,
}

/// What is known of one app.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// The group it is bound to, when that is not one of ours.
    pub(crate) bound: Option<PathBuf>,
    pub(crate) group: Option<Group>,
    pub(crate) main: Option<Main>,
    pub(crate) ended: Option<Ending>,
    /// What each knob held right after we wrote it, or when it was found.
    pub(crate) last: BTreeMap<Knob, Vec<String>>,
    /// The weight that was asked for; the kernel takes none while a group is idle.
    pub(crate) weight: Option<u32>,
    /// Processes that ran on outside our groups while no daemon was there.
    pub(crate) kept: Vec<Process>,
}

/// The directories of one app's group, by hierarchy, and what is read from them.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) dirs: Vec<Option<PathBuf>>,
    pub(crate) meters: Meters,
    /// It was there before we looked and its settings were not yet reported.
    pub(crate) unreported: bool,
}

impl Group {
    pub(crate) fn dir(&self, hierarchy: usize) -> Option<&Path> {
        self.dirs.get(hierarchy)?.as_deref()
    }

    pub(crate) fn all_dirs(&self) -> Vec<&Path> {
        self.dirs.iter().flatten().map(PathBuf::as_path).collect()
    }
}

/// Why an action was not done.
enum Refusal {
    Unsupported,
    Failed(String),
}

impl From<HostError> for Refusal {
    fn from(error: HostError) -> Self {
        Self::Failed(error.explain())
    }
}

impl LinuxHost {
    /// Takes the state directory, makes the parent groups, finds out what the kernel offers,
    /// and adopts whatever an earlier daemon of this boot left in force.
    ///
    /// # Errors
    /// When another daemon runs, or control groups cannot be made.
    pub fn open(options: Options) -> Result<Self, HostError> {
        let roots = &options.roots;
        let lock = Lock::take(&options.state_dir, Role::Daemon, &roots.proc)?;
        let hierarchies = Hierarchies::read(&roots.proc)?;
        let topology = read_topology(&roots.proc, &roots.sys)?;
        let mut ledger = Ledger::open(&options.state_dir, &roots.boot_id()?)?;
        set_home(&mut ledger, &hierarchies, &options)?;
        make_parents(&mut ledger, &hierarchies, &options.group)?;
        let parents: Vec<PathBuf> = hierarchies
            .list()
            .iter()
            .map(|hierarchy| hierarchy.dir(&options.group))
            .collect();
        let ways = Ways::probe(&hierarchies, |index| {
            parents.get(index).map(PathBuf::as_path)
        });
        let mut host = Self {
            capabilities: ways.capabilities(),
            host_stat: Reader::open(&roots.proc.join("stat")),
            host_memory: Reader::open(&roots.proc.join("meminfo")),
            options,
            hierarchies,
            topology,
            ways,
            ledger,
            _lock: lock,
            entries: BTreeMap::new(),
            scanner: Scanner::default(),
            buffer: Vec::new(),
        };
        host.adopt()?;
        Ok(host)
    }

    /// The apps of which the ledger knows something, whether configured or not: those that
    /// are no longer configured want a [`Action::Release`].
    #[must_use]
    pub fn known_apps(&self) -> Vec<AppId> {
        self.ledger.state().apps.keys().cloned().collect()
    }

    /// Puts everything back and gives the state directory up.
    ///
    /// # Errors
    /// When the ledger cannot be written. What the kernel refused is in the report.
    pub fn close(mut self, on_stop: OnStop) -> Result<Report, HostError> {
        let proc_root = self.options.roots.proc.clone();
        // Open descriptors do not hold a group, but there is no use in them any more.
        self.entries.clear();
        restore::restore_all(&mut self.ledger, &self.hierarchies, &proc_root, on_stop)
    }

    /// Takes up what the ledger says of each app.
    fn adopt(&mut self) -> Result<(), HostError> {
        let proc_root = self.options.roots.proc.clone();
        for (id, record) in self.ledger.state().apps.clone() {
            let mut entry = Entry {
                ended: record.ended,
                kept: record.kept.clone(),
                ..Entry::default()
            };
            if !record.created.is_empty() {
                entry.group = self.own_group(&id);
            }
            let started = match (record.started, &entry.group) {
                // The daemon died while it was starting this: whoever is oldest in the
                // group is what it started.
                (None, Some(group)) if record.starting => group
                    .all_dirs()
                    .iter()
                    .flat_map(|dir| groups::members(dir))
                    .filter_map(|pid| procs::identify(&proc_root, pid))
                    .min_by_key(|process| (process.start_time, process.pid)),
                (started, _) => started,
            };
            if let Some(process) = started {
                if procs::is_alive(&proc_root, process) {
                    entry.main = Main::open(process);
                }
                let record = if entry.main.is_some() {
                    Record::Started {
                        app: id.clone(),
                        process,
                    }
                } else {
                    entry.ended = Some(Ending::Unknown);
                    Record::Ended {
                        app: id.clone(),
                        ending: Ending::Unknown,
                    }
                };
                self.ledger.append(record)?;
            }
            self.entries.insert(id, entry);
        }
        Ok(())
    }

    /// The group of ours for an app, if all its directories are there.
    fn own_group(&self, app: &AppId) -> Option<Group> {
        let dirs = self.own_dirs(app);
        dirs.iter()
            .flatten()
            .all(|dir| dir.is_dir())
            .then(|| self.open_group(dirs))
    }

    fn own_dirs(&self, app: &AppId) -> Vec<Option<PathBuf>> {
        self.dirs_of(&self.options.group.join(app.as_str()))
    }

    /// The directories of a group that is named relative to each hierarchy's root.
    fn dirs_of(&self, group: &Path) -> Vec<Option<PathBuf>> {
        let mut dirs = vec![None; self.hierarchies.list().len()];
        for (index, hierarchy) in groups::used(&self.hierarchies) {
            dirs[index] = Some(hierarchy.dir(group));
        }
        dirs
    }

    pub(crate) fn open_group(&self, dirs: Vec<Option<PathBuf>>) -> Group {
        let meters = Meters::open(&self.hierarchies, &dirs);
        Group {
            dirs,
            meters,
            unreported: true,
        }
    }

    /// Opens the group an app is bound to, in the hierarchies that have it.
    pub(crate) fn bound_group(&self, path: &Path) -> Option<Group> {
        let mut dirs = self.dirs_of(path);
        for dir in &mut dirs {
            if dir.as_ref().is_some_and(|dir| !dir.is_dir()) {
                *dir = None;
            }
        }
        dirs.iter()
            .any(Option::is_some)
            .then(|| self.open_group(dirs))
    }

    /// Notes how an app is bound.
    pub(crate) fn bind(&mut self, app: &App) {
        let entry = self.entries.entry(app.id.clone()).or_default();
        let bound = match &app.binding {
            Binding::Cgroup(path) => Some(path.clone()),
            Binding::Exec(_) | Binding::Match(_) => None,
        };
        if entry.bound != bound {
            entry.bound = bound;
            entry.group = None;
            entry.last.clear();
        }
    }

    /// Notes that a started program ended.
    pub(crate) fn note_ending(&mut self, app: &AppId, ending: Ending) {
        let record = Record::Ended {
            app: app.clone(),
            ending,
        };
        if let Err(error) = self.ledger.append(record) {
            // A daemon that comes later finds the process gone all the same.
            tracing::warn!(%app, reason = error.explain(), "ending not recorded");
        }
    }

    /// Writes to the ledger what an action is about to change.
    fn prepare(&mut self, action: &Action) -> Result<Option<Program>, Refusal> {
        match action {
            Action::Start { app } => {
                let Binding::Exec(exec) = &app.binding else {
                    return Err(Refusal::Failed(format!(
                        "start {}: it is not an app that Forebay starts",
                        app.id
                    )));
                };
                let program = supervise::resolve(exec)?;
                self.bind(app);
                self.announce_group(&app.id)?;
                Ok(Some(program))
            }
            Action::Enter { app, pids } => {
                self.announce_group(app)?;
                for pid in pids {
                    self.announce_move(app, *pid)?;
                }
                Ok(None)
            }
            Action::Set { app, setting } => {
                self.announce_group(app)?;
                self.announce_setting(app, setting.knob())?;
                Ok(None)
            }
            Action::Release { .. } | Action::Kill { .. } => Ok(None),
        }
    }

    fn announce_group(&mut self, app: &AppId) -> Result<(), HostError> {
        let entry = self.entries.entry(app.clone()).or_default();
        if entry.bound.is_some() || entry.group.is_some() {
            return Ok(());
        }
        let known = self
            .ledger
            .state()
            .apps
            .get(app)
            .map_or_else(Vec::new, |record| record.created.clone());
        for dir in self.own_dirs(app).into_iter().flatten() {
            if !known.contains(&dir) {
                self.ledger.append(Record::Created {
                    app: Some(app.clone()),
                    dir,
                })?;
            }
        }
        Ok(())
    }

    fn announce_move(&mut self, app: &AppId, pid: u32) -> Result<(), HostError> {
        let proc_root = &self.options.roots.proc;
        let Some(process) = procs::identify(proc_root, pid) else {
            return Ok(());
        };
        let known = |record: &crate::ledger::AppRecord| record.moved.contains_key(&process);
        if self.ledger.state().apps.get(app).is_some_and(known) {
            return Ok(());
        }
        let path = proc_root.join(format!("{pid}/cgroup"));
        let text = match read_text(&path) {
            Err(error) if error.is_gone() => return Ok(()),
            other => other?,
        };
        let ours = &self.options.group;
        let mut from = Vec::new();
        for (hierarchy, dir) in self
            .hierarchies
            .list()
            .iter()
            .zip(self.hierarchies.membership(&text))
        {
            // What is already in a group of ours came from elsewhere and is known.
            from.extend(dir.filter(|dir| !dir.starts_with(hierarchy.dir(ours))));
        }
        self.ledger.append(Record::Moved {
            app: app.clone(),
            process,
            from,
        })
    }

    /// Records the original of a knob, and of those that the kernel changes along with it.
    fn announce_setting(&mut self, app: &AppId, knob: Knob) -> Result<(), Refusal> {
        let Some(way) = self.ways.of(knob).cloned() else {
            return Err(Refusal::Unsupported);
        };
        let Some(bound) = self.entries.get(app).and_then(|entry| entry.bound.clone()) else {
            return Ok(());
        };
        let entry = self.entries.get(app);
        let Some(group) = entry.and_then(|entry| entry.group.as_ref()) else {
            return Err(Refusal::Failed(format!(
                "write {knob} of {app}: there is no control group {}; start what makes it",
                bound.display()
            )));
        };
        let related = match knob {
            Knob::CpuIdle => Some(Knob::CpuWeight),
            Knob::CpuMax => Some(Knob::CpuBurst),
            _ => None,
        };
        let related = related.and_then(|knob| Some((knob, self.ways.of(knob)?.clone())));
        // The group need not exist in every hierarchy.
        if group.dir(way.hierarchy).is_none() {
            return Err(Refusal::Unsupported);
        }
        let mut spots = Vec::new();
        for (knob, way) in [(knob, way)].into_iter().chain(related) {
            let Some(dir) = group.dir(way.hierarchy) else {
                continue;
            };
            spots.extend(way.files.iter().map(|file| Spot {
                file: dir.join(file),
                device: knobs::device(knob),
            }));
        }
        for spot in spots {
            let known = self
                .ledger
                .state()
                .apps
                .get(app)
                .is_some_and(|record| record.originals.iter().any(|(known, _)| *known == spot));
            if !known {
                let text = read_spot(&spot)?;
                self.ledger.append(Record::Original {
                    app: app.clone(),
                    spot,
                    text,
                })?;
            }
        }
        Ok(())
    }

    fn perform(&mut self, action: &Action, program: Option<Program>) -> Result<(), Refusal> {
        match action {
            Action::Start { app } => match program {
                Some(program) => self.start(&app.id, &program),
                None => Err(Refusal::Unsupported),
            },
            Action::Enter { app, pids } => self.enter(app, pids),
            Action::Set { app, setting } => self.set(app, setting),
            Action::Release { app } => self.release(app),
            Action::Kill { app } => self.kill(app),
        }
    }

    /// Makes an app's group where it is missing.
    fn ensure_group(&mut self, app: &AppId) -> Result<(), HostError> {
        let entry = self.entries.entry(app.clone()).or_default();
        if entry.group.is_some() {
            return Ok(());
        }
        if let Some(bound) = &entry.bound {
            return Err(HostError::invalid(
                format!("use control group {} of {app}", bound.display()),
                "it is not there: start what makes it",
            ));
        }
        let dirs = self.own_dirs(app);
        for (hierarchy, dir) in self.hierarchies.list().iter().zip(&dirs) {
            if let Some(dir) = dir {
                groups::make(hierarchy, dir)?;
            }
        }
        let mut group = self.open_group(dirs);
        group.unreported = false;
        self.entries.entry(app.clone()).or_default().group = Some(group);
        Ok(())
    }

    fn start(&mut self, app: &AppId, program: &Program) -> Result<(), Refusal> {
        let running = self.entries.get(app).and_then(|entry| entry.main.as_ref());
        if let Some(main) = running {
            return Err(Refusal::Failed(format!(
                "start {app}: it runs already as process {}",
                main.process.pid
            )));
        }
        self.ensure_group(app)?;
        self.ledger.append(Record::Starting { app: app.clone() })?;
        let Some(entry) = self.entries.get_mut(app) else {
            return Err(Refusal::Failed(format!("start {app}: unknown app")));
        };
        let dirs = entry
            .group
            .as_ref()
            .map(Group::all_dirs)
            .unwrap_or_default();
        let pid = match supervise::start(program, &dirs) {
            Ok(pid) => pid,
            Err(error) => {
                self.note_ending(app, Ending::Unknown);
                return Err(error.into());
            }
        };
        // A program may be gone at once: its start time is still there until it is reaped.
        let start_time =
            procs::read_stat(&self.options.roots.proc, pid).map_or(0, |stat| stat.start_time);
        let process = Process { pid, start_time };
        entry.main = Main::open(process);
        entry.ended = None;
        entry.kept.clear();
        self.ledger.append(Record::Started {
            app: app.clone(),
            process,
        })?;
        Ok(())
    }

    fn enter(&mut self, app: &AppId, pids: &[u32]) -> Result<(), Refusal> {
        self.ensure_group(app)?;
        let Some(group) = self.entries.get(app).and_then(|e| e.group.as_ref()) else {
            return Err(Refusal::Failed(format!("enter {app}: no group")));
        };
        let mut refused = Vec::new();
        for pid in pids {
            if *pid == std::process::id() {
                refused.push(format!("process {pid} is the daemon itself"));
                continue;
            }
            for dir in group.all_dirs() {
                if let Err(error) = groups::attach(dir, *pid) {
                    refused.push(error.explain());
                    break;
                }
            }
        }
        if refused.is_empty() {
            Ok(())
        } else {
            Err(Refusal::Failed(refused.join("; ")))
        }
    }

    fn set(&mut self, app: &AppId, setting: &Setting) -> Result<(), Refusal> {
        self.ensure_group(app)?;
        match setting {
            Setting::CpuWeight(weight) => {
                if let Some(entry) = self.entries.get_mut(app) {
                    entry.weight = Some(*weight);
                }
                // The kernel refuses a weight while the group is idle: it is written when
                // that ends.
                if self.is_idle(app) {
                    return Ok(());
                }
                self.write_knob(app, setting)
            }
            Setting::CpuIdle(idle) => {
                self.write_knob(app, setting)?;
                let entry = self.entries.get_mut(app);
                let weight = entry.and_then(|entry| {
                    entry.last.remove(&Knob::CpuWeight);
                    entry.weight
                });
                match weight {
                    Some(weight) if !idle => self.write_knob(app, &Setting::CpuWeight(weight)),
                    _ => Ok(()),
                }
            }
            Setting::CpuMax(Limit::At(quota)) => match self.write_knob(app, setting) {
                // A burst above the quota is in the way.
                Err(Refusal::Failed(_)) if self.ways.of(Knob::CpuBurst).is_some() => {
                    self.write_knob(app, &Setting::CpuBurst(*quota))?;
                    self.write_knob(app, setting)
                }
                other => other,
            },
            _ => self.write_knob(app, setting),
        }
    }

    fn is_idle(&self, app: &AppId) -> bool {
        let idle = || {
            let way = self.ways.of(Knob::CpuIdle)?;
            let dir = self.entries.get(app)?.group.as_ref()?.dir(way.hierarchy)?;
            let text = read_text(&dir.join(way.files.first()?)).ok()?;
            Some(text.trim() != "0")
        };
        idle().unwrap_or(false)
    }

    fn write_knob(&mut self, app: &AppId, setting: &Setting) -> Result<(), Refusal> {
        let knob = setting.knob();
        let Some(way) = self.ways.of(knob).cloned() else {
            return Err(Refusal::Unsupported);
        };
        let Some(entry) = self.entries.get_mut(app) else {
            return Err(Refusal::Unsupported);
        };
        let Some(group) = &entry.group else {
            return Err(Refusal::Unsupported);
        };
        let Some(dir) = group.dir(way.hierarchy).map(Path::to_path_buf) else {
            return Err(Refusal::Unsupported);
        };
        let ours = entry.bound.is_none();
        let texts = knobs::texts(setting, &way, period_us(&way, &dir));
        let mut now = Vec::new();
        for (file, text) in way.files.iter().zip(texts) {
            let spot = Spot {
                file: dir.join(file),
                device: knobs::device(knob),
            };
            // Groups of ours go as a whole: only those of others need their knobs known.
            if !ours {
                self.ledger.append(Record::Wrote {
                    spot: spot.clone(),
                    text: text.clone(),
                })?;
            }
            let wrote = write_text(&spot.file, &text).map_err(|error| {
                let gone = error.is_gone();
                (error, gone)
            });
            if let Err((error, gone)) = wrote {
                if gone {
                    entry.group = None;
                }
                return Err(Refusal::Failed(format!(
                    "{knob} of {app}: {}",
                    error.explain()
                )));
            }
            let held = read_spot(&spot)?;
            if !ours && held != text {
                self.ledger.append(Record::Wrote {
                    spot,
                    text: held.clone(),
                })?;
            }
            now.push(held);
        }
        entry.last.insert(knob, now);
        Ok(())
    }

    fn release(&mut self, app: &AppId) -> Result<(), Refusal> {
        let proc_root = self.options.roots.proc.clone();
        if let Some(entry) = self.entries.get_mut(app) {
            entry.group = None;
            entry.last.clear();
            entry.weight = None;
        }
        let release = Release {
            app,
            fate: Fate::Keep,
            deadline: Instant::now() + RELEASE_PATIENCE,
        };
        let report =
            restore::release_app(&mut self.ledger, &self.hierarchies, &proc_root, &release)?;
        for foreign in &report.foreign {
            tracing::warn!(%app, knob = foreign, "left alone: somebody else wrote it");
        }
        if !report.is_complete() {
            return Err(Refusal::Failed(report.failed.join("; ")));
        }
        let kept = self
            .ledger
            .state()
            .apps
            .get(app)
            .map(|record| record.kept.clone());
        if let Some(entry) = self.entries.get_mut(app) {
            entry.kept = kept.unwrap_or_default();
            if entry.main.is_none() {
                self.entries.remove(app);
            }
        }
        Ok(())
    }

    fn kill(&mut self, app: &AppId) -> Result<(), Refusal> {
        let proc_root = self.options.roots.proc.clone();
        let Some(entry) = self.entries.get(app) else {
            return Ok(());
        };
        if let Some(group) = &entry.group {
            groups::kill(&group.all_dirs())?;
        }
        let mut outside = entry.kept.clone();
        outside.extend(entry.main.as_ref().map(|main| main.process));
        for pid in procs::families(&proc_root, &outside) {
            groups::signal(pid, rustix::process::Signal::KILL);
        }
        Ok(())
    }
}

/// The period of the quota in a group; the kernel's default where it cannot be read.
pub(crate) fn period_us(way: &Way, dir: &Path) -> u64 {
    let period = match way.files.first() {
        Some(&"cpu.max" | &"cpu.max.burst") => read_text(&dir.join("cpu.max"))
            .ok()
            .and_then(|text| text.split_whitespace().nth(1)?.parse().ok()),
        Some(&"cpu.cfs_quota_us" | &"cpu.cfs_burst_us") => {
            read_text(&dir.join("cpu.cfs_period_us"))
                .ok()
                .and_then(|text| text.trim().parse().ok())
        }
        _ => None,
    };
    period.unwrap_or(PERIOD_US_DEFAULT)
}

/// Remembers in which groups the daemon runs.
fn set_home(
    ledger: &mut Ledger,
    hierarchies: &Hierarchies,
    options: &Options,
) -> Result<(), HostError> {
    let path = options.roots.proc.join("self/cgroup");
    let membership = hierarchies.membership(&read_text(&path)?);
    let home: Vec<PathBuf> = hierarchies
        .list()
        .iter()
        .zip(membership)
        .filter_map(|(hierarchy, dir)| {
            dir.filter(|dir| !dir.starts_with(hierarchy.dir(&options.group)))
        })
        .collect();
    if ledger.state().home == home {
        return Ok(());
    }
    ledger.amend(|state| state.home = home)
}

/// Makes the groups that hold all others and switches their controllers on.
fn make_parents(
    ledger: &mut Ledger,
    hierarchies: &Hierarchies,
    group: &Path,
) -> Result<(), HostError> {
    let mut missing = Vec::new();
    for (_, hierarchy) in groups::used(hierarchies) {
        let mut prefix = PathBuf::new();
        for part in group.components() {
            prefix.push(part);
            let dir = hierarchy.dir(&prefix);
            let ours = ledger.state().parents.contains(&dir);
            let innermost = prefix == group;
            if !dir.exists() || (innermost && !ours) {
                if innermost && dir.exists() && !is_unused(&dir) {
                    return Err(HostError::invalid(
                        format!(
                            "make control group {}: it is in use and not in this ledger",
                            dir.display()
                        ),
                        "stop the daemon that uses it, or choose another group",
                    ));
                }
                if !ours {
                    ledger.append(Record::Created {
                        app: None,
                        dir: dir.clone(),
                    })?;
                }
                missing.push((hierarchy, dir));
            }
        }
    }
    ledger.sync()?;
    for (hierarchy, dir) in missing {
        groups::make(hierarchy, &dir)?;
    }
    for (_, hierarchy) in groups::used(hierarchies) {
        if hierarchy.version == Version::V2 {
            enable_along(ledger, hierarchy, group)?;
        }
    }
    Ok(())
}

/// Switches the controllers of v2 on from the root down to our group.
fn enable_along(
    ledger: &mut Ledger,
    hierarchy: &crate::mounts::Hierarchy,
    group: &Path,
) -> Result<(), HostError> {
    let mut prefix = PathBuf::new();
    let mut dirs = vec![hierarchy.dir(&prefix)];
    for part in group.components() {
        prefix.push(part);
        dirs.push(hierarchy.dir(&prefix));
    }
    for dir in dirs {
        let off = groups::disabled_controllers(hierarchy, &dir);
        if off.is_empty() {
            continue;
        }
        if !ledger.state().parents.contains(&dir) {
            ledger.append(Record::Enabled {
                dir: dir.clone(),
                controllers: off.clone(),
            })?;
            ledger.sync()?;
        }
        groups::enable(&dir, &off);
    }
    Ok(())
}

/// Whether a group has neither members nor groups below.
fn is_unused(dir: &Path) -> bool {
    groups::children(dir).is_empty() && groups::direct_members(dir).is_empty()
}

impl Host for LinuxHost {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn observe(&mut self, watch: &Watch<'_>) -> Snapshot {
        self.look(watch)
    }

    fn apply(&mut self, actions: &[Action]) -> Vec<Outcome> {
        let mut prepared: Vec<Result<Option<Program>, Refusal>> =
            actions.iter().map(|action| self.prepare(action)).collect();
        if let Err(error) = self.ledger.sync() {
            // Nothing may be changed that is not on disk; ending and releasing need no more
            // than what already is.
            for (action, prepared) in actions.iter().zip(&mut prepared) {
                if !matches!(action, Action::Release { .. } | Action::Kill { .. }) {
                    *prepared = Err(Refusal::Failed(error.explain()));
                }
            }
        }
        let outcomes = actions
            .iter()
            .zip(prepared)
            .map(|(action, prepared)| {
                let done = prepared.and_then(|program| self.perform(action, program));
                match done {
                    Ok(()) => Outcome::Done,
                    Err(Refusal::Unsupported) => Outcome::Unsupported,
                    Err(Refusal::Failed(why)) => Outcome::Failed(why),
                }
            })
            .collect();
        if let Err(error) = self.ledger.compact_when_long() {
            tracing::warn!(reason = error.explain(), "ledger stays long");
        }
        outcomes
    }
}

/// Which hierarchy pressure and accounting of v2 are read from.
pub(crate) fn unified_index(hierarchies: &Hierarchies) -> Option<usize> {
    hierarchies.unified().map(|(index, _)| index)
}

/// The hierarchy of a controller.
pub(crate) fn index_of(hierarchies: &Hierarchies, controller: Controller) -> Option<usize> {
    hierarchies.of(controller).map(|(index, _)| index)
}
