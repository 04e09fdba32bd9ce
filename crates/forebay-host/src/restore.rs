//! Putting the host back as it was found.
//!
//! The same code serves a clean stop, the guardian after a crash, `forebay restore` by hand
//! and the release of a single app. It works from the ledger alone, and each step can be done
//! twice: killed at any point, it is simply run again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_core::app::{AppId, OnStop};

use crate::Roots;
use crate::checkpoint::{self, Side, disown_connections};
use crate::damon;
use crate::error::HostError;
use crate::files::{read_text, write_text};
use crate::freeze::{self, Unclaimed};
use crate::groups;
use crate::knobs::cut;
use crate::ledger::{AppRecord, Ledger, Process, Record, Spot};
use crate::lock::{Lock, Role};
use crate::mounts::{Hierarchies, Hierarchy};
use crate::oom;
use crate::owner::Note;
use crate::owner::book::{Managers, put_back};
use crate::partition;
use crate::procs;
use crate::service_address::Addresses;
use crate::supervise;

/// Knobs depend on each other (a burst fits its quota), so refused ones are tried again after
/// the rest.
const KNOB_PASSES: usize = 3;
/// What the kernel gives a group that leaves the idle class: cpu.shares and cpu.weight.
const WEIGHTS_DEFAULT: [&str; 2] = ["1024", "100"];
/// How long members have to leave a group when everything is put back.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long programs have between SIGTERM and SIGKILL, all together.
const END_PATIENCE: Duration = Duration::from_secs(3);
const END_POLL: Duration = Duration::from_millis(10);

/// What was put back, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Knobs that hold their original value again.
    pub knobs: usize,
    /// Processes that are in their original groups again, or ended.
    pub processes: usize,
    /// Groups removed.
    pub groups: usize,
    /// Knobs left alone because somebody else wrote them since, with what they hold.
    pub foreign: Vec<String>,
    /// Apps that stand still and lend their memory to another host, which are left so. They stay in the ledger.
    pub lend: Vec<String>,
    /// What could not be put back, and why. It stays in the ledger.
    pub failed: Vec<String>,
}

impl Report {
    /// Whether nothing was left undone.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty()
    }

    /// Adds what another one put back.
    pub fn absorb(&mut self, other: Self) {
        self.knobs += other.knobs;
        self.processes += other.processes;
        self.groups += other.groups;
        self.foreign.extend(other.foreign);
        for app in other.lend {
            if !self.lend.contains(&app) {
                self.lend.push(app);
            }
        }
        self.failed.extend(other.failed);
    }
}

/// Takes the state directory and puts back everything its ledger names, but for apps that lend their memory to
/// another host, which stand on.
///
/// # Errors
/// When a daemon holds the directory, or the ledger cannot be read or written. What the
/// kernel refused is in the report instead.
pub fn restore(state_dir: &Path, roots: &Roots, on_stop: OnStop) -> Result<Report, HostError> {
    with_ledger(state_dir, roots, on_stop, |ledger| {
        standing(ledger, &[Unclaimed::Lends])
    })
}

/// Does what [`restore`] does, and ends apps that lend their memory: what was not fetched of it is lost.
///
/// # Errors
/// As [`restore`].
pub fn restore_all(state_dir: &Path, roots: &Roots, on_stop: OnStop) -> Result<Report, HostError> {
    with_ledger(state_dir, roots, on_stop, |_| BTreeSet::new())
}

/// Does what [`restore`] does where a daemon was lost that another one may follow: what only a daemon can find
/// out whose it is stays as it stands.
///
/// # Errors
/// As [`restore`].
pub fn restore_lost(state_dir: &Path, roots: &Roots, on_stop: OnStop) -> Result<Report, HostError> {
    with_ledger(state_dir, roots, on_stop, |ledger| {
        unclaimed(ledger, on_stop)
    })
}

fn with_ledger(
    state_dir: &Path,
    roots: &Roots,
    on_stop: OnStop,
    left: impl FnOnce(&Ledger) -> BTreeSet<AppId>,
) -> Result<Report, HostError> {
    if !state_dir.exists() {
        return Ok(Report::default());
    }
    let _lock = Lock::take(state_dir, Role::Restorer, &roots.proc)?;
    let mut ledger = Ledger::open(state_dir, &roots.boot_id()?)?;
    let hierarchies = Hierarchies::read(&roots.proc)?;
    let left = left(&ledger);
    restore_but(&mut ledger, &hierarchies, &roots.proc, on_stop, &left)
}

/// Apps that stand still while nobody knows whose they are, and whose memory may be nowhere else
/// ([`freeze::Unclaimed`]). None where programs end with the daemon: their users want no memory of them kept.
///
/// Those that lend their memory stay by either: another host goes on with them.
pub(crate) fn unclaimed(ledger: &Ledger, on_stop: OnStop) -> BTreeSet<AppId> {
    match on_stop {
        OnStop::Kill => standing(ledger, &[Unclaimed::Lends]),
        OnStop::Keep => standing(ledger, &[Unclaimed::Stands, Unclaimed::Lends]),
    }
}

fn standing(ledger: &Ledger, marks: &[Unclaimed]) -> BTreeSet<AppId> {
    let apps = ledger.state().apps.iter();
    let stands = apps.filter(|(_, record)| stands(record, marks));
    let stands: BTreeSet<AppId> = stands.map(|(app, _)| app.clone()).collect();
    for app in &stands {
        tracing::warn!(
            %app,
            "stays frozen with its memory: a move was under way; a daemon that begins finds out whose it is, and \
             `forebay restore --lent` ends it in any case"
        );
    }
    stands
}

fn stands(record: &AppRecord, marks: &[Unclaimed]) -> bool {
    (record.created.iter()).any(|dir| freeze::stands_unclaimed(dir, marks))
}

/// Puts back everything a ledger names but for these apps, which stay in force as they are.
pub(crate) fn restore_but(
    ledger: &mut Ledger,
    hierarchies: &Hierarchies,
    proc_root: &Path,
    on_stop: OnStop,
    left: &BTreeSet<AppId>,
) -> Result<Report, HostError> {
    let lends = |app: &&AppId| {
        let record = ledger.state().apps.get(*app);
        record.is_some_and(|record| stands(record, &[Unclaimed::Lends]))
    };
    let mut report = Report {
        lend: left.iter().filter(lends).map(AppId::to_string).collect(),
        ..Report::default()
    };
    let fates: Vec<(AppId, Fate)> = ledger
        .state()
        .apps
        .iter()
        .filter(|(app, _)| !left.contains(*app))
        .map(|(app, record)| {
            let is_started = record.is_program();
            let fate = match on_stop {
                OnStop::Kill if is_started => Fate::Kill,
                OnStop::Kill | OnStop::Keep => Fate::Keep,
            };
            (app.clone(), fate)
        })
        .collect();
    let doomed: Vec<&Path> = fates
        .iter()
        .filter(|(_, fate)| *fate == Fate::Kill)
        .filter_map(|(app, _)| ledger.state().apps.get(app))
        .flat_map(|record| record.created.iter().map(PathBuf::as_path))
        .collect();
    let_go(ledger, left, &mut report);
    disown(ledger, proc_root, left, on_stop);
    // Who is frozen cannot answer.
    if let Err(error) = freeze::thaw_all(&doomed) {
        tracing::warn!(reason = error.explain(), "not thawed before it is ended");
    }
    ask_to_end(&doomed);
    // As long as one app has CPUs for itself, another's set cannot go back to all of them.
    let apps = ledger.state().apps.iter();
    for (_, record) in apps.filter(|(app, _)| !left.contains(*app)) {
        let dirs: Vec<&Path> = record.created.iter().map(PathBuf::as_path).collect();
        partition::dissolve(&dirs, &mut report);
        let own = record.originals.iter();
        let own: Vec<_> = own.filter(|(s, _)| is_named(s, partition::FILE)).collect();
        restore_knobs(ledger, own, &mut report);
    }
    let mut managers = Managers::default();
    for (app, fate) in fates {
        let release = Release {
            app: &app,
            fate,
            deadline: Instant::now() + PATIENCE,
        };
        let released = release_app(ledger, hierarchies, proc_root, &release, &mut managers)?;
        report.absorb(released);
    }
    leave_addresses(ledger, proc_root, left, &mut report);
    report.absorb(restore_host(ledger)?);
    if left.is_empty() {
        report.absorb(remove_parents(ledger)?);
    }
    Ok(report)
}

fn addresses(ledger: &Ledger, proc_root: &Path) -> Addresses {
    let roots = Roots {
        proc: proc_root.to_owned(),
        ..Roots::default()
    };
    Addresses::new(ledger.state_dir(), roots)
}

/// Has those that were frozen for a move be in nobody's hands before their groups are thawed: CRIU, which was ended or let
/// them go, leaves their connections out of the kernel's hands, and what is to come for them dropped.
fn let_go(ledger: &Ledger, left: &BTreeSet<AppId>, report: &mut Report) {
    let apps = ledger.state().apps.iter();
    for (app, record) in apps.filter(|(app, _)| !left.contains(*app)) {
        let images = checkpoint::moved(ledger.state_dir(), app, Side::Leaves);
        if !images.is_dir() {
            continue;
        }
        if let Err(error) = checkpoint::let_go(&members(record), &images) {
            // Nobody comes who could do more, and standing it would be lost as well.
            let why = error.explain();
            report.failed.push(format!(
                "give {app} its connections back, which goes on without some of them: {why}"
            ));
        }
    }
}

fn members(record: &AppRecord) -> Vec<u32> {
    let dirs = record.created.iter();
    let members: BTreeSet<u32> = dirs.flat_map(|dir| groups::members(dir)).collect();
    members.into_iter().collect()
}

/// Has what ends in the middle of a move leave nothing of its connections behind, which may go on at another host.
fn disown(ledger: &Ledger, proc_root: &Path, left: &BTreeSet<AppId>, on_stop: OnStop) {
    let addresses = addresses(ledger, proc_root);
    let apps = ledger.state().apps.iter();
    for (app, record) in apps.filter(|(app, _)| !left.contains(*app)) {
        let is_given = || record.created.iter().any(|dir| freeze::is_given(dir));
        if !addresses.is_quiet(app) || !(on_stop == OnStop::Kill || is_given()) {
            continue;
        }
        for pid in members(record) {
            if let Err(error) = disown_connections(pid) {
                tracing::warn!(%app, reason = error.explain(), "what it had is closed, unheard");
            }
        }
    }
}

/// Takes the addresses away that apps are reached at, but for those of apps that stay. Those whose programs were to end
/// did so before: what they said last was heard.
fn leave_addresses(ledger: &Ledger, proc_root: &Path, left: &BTreeSet<AppId>, report: &mut Report) {
    let addresses = addresses(ledger, proc_root);
    for app in addresses.all() {
        if !left.contains(&app)
            && let Err(error) = addresses.leave(&app)
        {
            report.failed.push(error.explain());
        }
    }
}

/// Puts the knobs back that are no app's. Those that the kernel refuses stay in the ledger.
fn restore_host(ledger: &mut Ledger) -> Result<Report, HostError> {
    let mut report = Report::default();
    if ledger.state().host.is_empty() {
        return Ok(report);
    }
    damon::put_back(ledger.state(), &mut report);
    let knobs = ledger.state().host.iter().rev();
    let knobs = knobs.filter(|(spot, _)| !damon::is_count(spot));
    restore_knobs(ledger, knobs.collect(), &mut report);
    if report.is_complete() {
        ledger.amend(|state| {
            for (spot, _) in std::mem::take(&mut state.host) {
                state.wrote.remove(&spot);
            }
        })?;
    }
    Ok(report)
}

/// Asks everybody in these groups to end, and gives them time to.
fn ask_to_end(dirs: &[&Path]) {
    let inside = || {
        let pids: BTreeSet<u32> = dirs.iter().flat_map(|dir| groups::members(dir)).collect();
        pids
    };
    for pid in inside() {
        groups::signal(pid, rustix::process::Signal::TERM);
    }
    let deadline = Instant::now() + END_PATIENCE;
    while Instant::now() < deadline && !inside().is_empty() {
        std::thread::sleep(END_POLL);
    }
}

/// What becomes of the processes in a group that is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Keep,
    Kill,
}

/// How one app is released.
#[derive(Debug)]
pub(crate) struct Release<'a> {
    pub(crate) app: &'a AppId,
    pub(crate) fate: Fate,
    /// Until when members may take to leave.
    pub(crate) deadline: Instant,
}

/// Puts one app back.
///
/// # Errors
/// When the ledger cannot be written. What the kernel refused is in the report.
pub(crate) fn release_app(
    ledger: &mut Ledger,
    hierarchies: &Hierarchies,
    proc_root: &Path,
    release: &Release<'_>,
    managers: &mut Managers,
) -> Result<Report, HostError> {
    let Some(record) = ledger.state().apps.get(release.app).cloned() else {
        return Ok(Report::default());
    };
    let mut report = Report::default();
    let short = restore_knobs(ledger, record.originals.iter().rev().collect(), &mut report);
    restore_owned(ledger, release.app, managers, &mut report)?;
    for (dir, value) in &record.oom_scores {
        match oom::put_back(proc_root, dir, &[*value]) {
            Ok(count) => report.knobs += count,
            Err(error) => report.failed.push(error.explain()),
        }
    }
    let dirs: Vec<&Path> = record.created.iter().map(PathBuf::as_path).collect();
    partition::dissolve(&dirs, &mut report);
    if let Err(error) = freeze::thaw_all(&dirs) {
        report.failed.push(error.explain());
    }
    if release.fate == Fate::Kill {
        let inside: usize = dirs
            .iter()
            .map(|d| groups::members(d).len())
            .max()
            .unwrap_or(0);
        report.processes += inside;
        if let Err(error) = groups::kill(&dirs) {
            report.failed.push(error.explain());
        }
        for process in record.kept.iter().chain(record.started.as_ref()) {
            if procs::is_alive(proc_root, *process) {
                groups::signal(process.pid, rustix::process::Signal::KILL);
            }
        }
    } else if record.started.is_some() || record.starting.is_some() {
        if let Some(process) = record
            .starting
            .and_then(|at| supervise::just_started(proc_root, &dirs, at))
        {
            ledger.append(Record::Started {
                app: release.app.clone(),
                process,
                command: record.command.clone(),
            })?;
        }
        keep(ledger, proc_root, release.app, &dirs)?;
    }
    let origins = Origins {
        hierarchies,
        proc_root,
        record: &record,
        home: ledger.state().home.clone(),
    };
    let mut moved = 0;
    for dir in &dirs {
        let outcome = groups::remove(dir, release.deadline, |pid| {
            if release.fate == Fate::Kill {
                groups::signal(pid, rustix::process::Signal::KILL);
            } else if origins.send_home(dir, pid) {
                moved += 1;
            }
        });
        match outcome {
            Ok(()) => report.groups += 1,
            Err(error) => report.failed.push(error.explain()),
        }
    }
    report.processes += moved / dirs.len().max(1);
    // Processes that were moved between groups of others.
    if dirs.is_empty() {
        for (process, from) in &record.moved {
            if procs::is_alive(proc_root, *process) {
                from.iter().for_each(|dir| {
                    if let Err(error) = groups::attach(dir, process.pid) {
                        report.failed.push(error.explain());
                    }
                });
                report.processes += 1;
            }
        }
    }
    if report.failed.is_empty() {
        if release.fate == Fate::Kill {
            // It did not end by itself: the next daemon starts it as if for the first time,
            // even where its policy would let an ended program rest.
            ledger.append(Record::Forgotten {
                app: release.app.clone(),
            })?;
        }
        ledger.append(Record::Released {
            app: release.app.clone(),
        })?;
        for (spot, text, wrote) in short {
            ledger.append(Record::HostOriginal {
                spot: spot.clone(),
                text,
            })?;
            ledger.append(Record::Wrote { spot, text: wrote })?;
        }
        ledger.amend(|_| ())?;
    }
    Ok(report)
}

/// Has managers put back what they own. It is noted at once, so that whatever else fails does
/// not make it be done again.
fn restore_owned(
    ledger: &mut Ledger,
    app: &AppId,
    managers: &mut Managers,
    report: &mut Report,
) -> Result<(), HostError> {
    let entries = ledger.state().owned.entries(app);
    if entries.is_empty() {
        return Ok(());
    }
    let owned = put_back(&entries, managers);
    if owned.is_complete() {
        let app = app.clone();
        ledger.append(Record::Owned(Note::Restored { app }))?;
    }
    report.absorb(owned);
    Ok(())
}

/// Notes the processes of a started app that will run on outside our groups, so that the next
/// daemon knows them.
fn keep(
    ledger: &mut Ledger,
    proc_root: &Path,
    app: &AppId,
    dirs: &[&Path],
) -> Result<(), HostError> {
    let mut pids: Vec<u32> = dirs.iter().flat_map(|dir| groups::members(dir)).collect();
    pids.sort_unstable();
    pids.dedup();
    let processes: Vec<Process> = pids
        .into_iter()
        .filter_map(|pid| procs::identify(proc_root, pid))
        .collect();
    if processes.is_empty() {
        return Ok(());
    }
    let app = app.clone();
    ledger.append(Record::Kept { app, processes })
}

/// Writes original values back where the knob still holds what we wrote. Returns what could
/// not be put back in full while CPUs are taken by a partition: place, original, and what it
/// holds instead.
pub(crate) fn restore_knobs(
    ledger: &Ledger,
    mut open: Vec<&(Spot, String)>,
    report: &mut Report,
) -> Vec<(Spot, String, String)> {
    let mut short = Vec::new();
    // A partition gives its CPUs back before its set of CPUs changes; a group in the idle class
    // takes no weight, so that class is left first.
    open.sort_by_key(|(spot, _)| {
        let first = [partition::FILE, "cpu.idle"];
        first
            .iter()
            .position(|name| is_named(spot, name))
            .unwrap_or(first.len())
    });
    for pass in 1..=KNOB_PASSES {
        let mut refused = Vec::new();
        for entry in open {
            let (spot, original) = entry;
            let wrote = ledger
                .state()
                .wrote
                .get(spot)
                .map_or(&[][..], Vec::as_slice);
            let mut ours = wrote.to_vec();
            if made_idle(ledger, spot) {
                ours.extend(WEIGHTS_DEFAULT.map(str::to_owned));
            }
            match restore_knob(spot, original, &ours) {
                Ok(Back::Done) => report.knobs += 1,
                Ok(Back::InNumbers(text)) => {
                    report.knobs += 1;
                    if !partition::taken(ledger.state()).is_empty() {
                        short.push((spot.clone(), original.clone(), text));
                    }
                }
                Ok(Back::Foreign(text)) => report
                    .foreign
                    .push(format!("{} = {text}", spot.file.display())),
                Err(error) if error.is_gone() => {}
                Err(error) if pass == KNOB_PASSES => report.failed.push(error.explain()),
                Err(_) => refused.push(entry),
            }
        }
        open = refused;
    }
    short
}

fn is_named(spot: &Spot, name: &str) -> bool {
    spot.file.file_name().is_some_and(|file| file == name)
}

/// Whether a knob is the weight of a group that we put into the idle class: the kernel sets the
/// default when a group leaves that class, and that is then no one else's doing.
fn made_idle(ledger: &Ledger, spot: &Spot) -> bool {
    let is_weight = ["cpu.shares", "cpu.weight"]
        .iter()
        .any(|name| is_named(spot, name));
    let idle = Spot {
        file: spot.file.with_file_name("cpu.idle"),
        device: None,
    };
    let wrote = ledger.state().wrote.get(&idle);
    is_weight && wrote.is_some_and(|texts| texts.iter().any(|text| text == "1"))
}

enum Back {
    Done,
    /// All that the parent has, written as what that is now.
    InNumbers(String),
    Foreign(String),
}

fn restore_knob(spot: &Spot, original: &str, wrote: &[String]) -> Result<Back, HostError> {
    let now = read_spot(spot)?;
    if same(&now, original) {
        return Ok(Back::Done);
    }
    if !wrote.iter().any(|text| same(text, &now)) {
        return Ok(Back::Foreign(now));
    }
    match write_text(&spot.file, original) {
        // v2 does not let a cpuset with members go back to "all of the parent's". The same
        // said in numbers is the nearest.
        Err(error) if original.is_empty() && error.errno() == Some(libc::ENOSPC) => {
            let all = effective_of_parent(&spot.file)?.trim().to_owned();
            write_text(&spot.file, &all)?;
            Ok(Back::InNumbers(all))
        }
        other => other.map(|()| Back::Done),
    }
}

/// What the parent of a cpuset really has.
fn effective_of_parent(file: &Path) -> Result<String, HostError> {
    let name = file.file_name().and_then(|name| name.to_str());
    let group = file.parent().and_then(Path::parent);
    match (group, name) {
        (Some(group), Some(name)) => read_text(&group.join(format!("{name}.effective"))),
        _ => Err(HostError::invalid(
            format!("find the parent of {}", file.display()),
            "report this as a bug",
        )),
    }
}

/// What a knob holds now, in the form in which it can be written back.
pub(crate) fn read_spot(spot: &Spot) -> Result<String, HostError> {
    let text = read_text(&spot.file)?;
    let name = spot
        .file
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    Ok(cut(name, spot.device, &text))
}

/// Whether two texts of one knob mean the same. v1 takes -1 and shows a huge number, and a
/// freezer is on its way to what it was asked.
fn same(a: &str, b: &str) -> bool {
    let unlimited = |text: &str| text == "-1" || text.parse().is_ok_and(|n: u64| n >= 1 << 62);
    let frozen = |text: &str| matches!(text, "FREEZING" | "FROZEN");
    // What the kernel found wrong with a partition does not make it somebody else's.
    let kind = |text: &str| text.split_once(" invalid").map(|(kind, _)| kind.to_owned());
    let (a, b) = (
        &kind(a).unwrap_or_else(|| a.to_owned()),
        &kind(b).unwrap_or_else(|| b.to_owned()),
    );
    a == b || (unlimited(a) && unlimited(b)) || (frozen(a) && frozen(b))
}

/// Where the members of a group came from.
struct Origins<'a> {
    hierarchies: &'a Hierarchies,
    proc_root: &'a Path,
    record: &'a AppRecord,
    home: Vec<PathBuf>,
}

impl Origins<'_> {
    /// Moves a process out of `dir`: to where it was taken from, or where the ancestor was
    /// that brought it here, or where the daemon runs, or to the root.
    fn send_home(&self, dir: &Path, pid: u32) -> bool {
        let Some(hierarchy) = hierarchy_of(self.hierarchies, dir) else {
            return false;
        };
        let inside = |from: &[PathBuf]| -> Option<PathBuf> {
            from.iter()
                .find(|dir| {
                    hierarchy_of(self.hierarchies, dir).map(|h| &h.mount) == Some(&hierarchy.mount)
                })
                .cloned()
        };
        let origin = self.origin(pid).and_then(inside);
        let home = inside(&self.home);
        [origin, home, Some(hierarchy.mount.clone())]
            .into_iter()
            .flatten()
            .any(|target| match groups::attach(&target, pid) {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(pid, reason = error.explain(), "not sent there");
                    false
                }
            })
    }

    /// The recorded origin of a process or of its nearest moved ancestor.
    fn origin(&self, pid: u32) -> Option<&[PathBuf]> {
        const ANCESTORS_MAX: usize = 64;
        if self.record.moved.is_empty() {
            return None;
        }
        let mut pid = pid;
        for _ in 0..ANCESTORS_MAX {
            let stat = procs::read_stat(self.proc_root, pid)?;
            let process = Process {
                pid,
                start_time: stat.start_time,
            };
            if let Some(from) = self.record.moved.get(&process) {
                return Some(from);
            }
            if stat.parent <= 1 {
                break;
            }
            pid = stat.parent;
        }
        self.record.moved.values().next().map(Vec::as_slice)
    }
}

/// The hierarchy that a directory lies in: the one with the longest mount point above it.
pub(crate) fn hierarchy_of<'a>(hierarchies: &'a Hierarchies, dir: &Path) -> Option<&'a Hierarchy> {
    hierarchies
        .list()
        .iter()
        .filter(|hierarchy| dir.starts_with(&hierarchy.mount))
        .max_by_key(|hierarchy| hierarchy.mount.as_os_str().len())
}

/// Removes the groups that held all others, and switches off what was switched on for them.
fn remove_parents(ledger: &mut Ledger) -> Result<Report, HostError> {
    let mut report = Report::default();
    let holds_apps: BTreeMap<PathBuf, bool> = ledger
        .state()
        .parents
        .iter()
        .map(|dir| {
            (
                dir.clone(),
                dir.exists() && !groups::children(dir).is_empty(),
            )
        })
        .collect();
    let mut left = Vec::new();
    for dir in ledger.state().parents.iter().rev() {
        match fs::remove_dir(dir) {
            Ok(()) => report.groups += 1,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                let mut error = HostError::file("remove control group", dir, error);
                if holds_apps.get(dir) == Some(&true) {
                    error = error.advise("it has groups in it that Forebay did not make");
                }
                report.failed.push(error.explain());
                left.push(dir.clone());
            }
        }
    }
    left.reverse();
    let mut still_enabled = Vec::new();
    if left.is_empty() {
        for (dir, controllers) in ledger.state().enabled.iter().rev() {
            // Left on where others have groups by now: that is theirs to decide.
            if let Err(error) = groups::disable(dir, controllers) {
                tracing::info!(reason = error.explain(), "controllers stay on");
            }
        }
    } else {
        still_enabled.clone_from(&ledger.state().enabled);
    }
    ledger.amend(|state| {
        state.parents = left;
        state.enabled = still_enabled;
    })?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_knob_goes_back_only_when_it_is_still_ours() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cpu.max");
        let spot = Spot {
            file: file.clone(),
            device: None,
        };
        let check = |now: &str, wrote: &[&str], after: &str| {
            fs::write(&file, now).unwrap();
            let wrote: Vec<String> = wrote.iter().map(|t| (*t).to_owned()).collect();
            restore_knob(&spot, "max 100000", &wrote).unwrap();
            // Kernel files are overwritten whole, plain ones keep their tail.
            let text = fs::read_to_string(&file).unwrap();
            assert_eq!(text.lines().next().unwrap(), after);
        };
        check("5000 100000\n", &["5000 100000"], "max 100000");
        check("7000 100000\n", &["5000 100000"], "7000 100000");
        check(
            "4000 100000\n",
            &["4000 100000", "5000 100000"],
            "max 100000",
        );
        check("max 100000\n", &[], "max 100000");
    }

    #[test]
    fn unlimited_has_two_faces() {
        assert!(same("-1", "9223372036854771712"));
        assert!(!same("-1", "4096"));
        assert!(same("x", "x"));
        assert!(same("FROZEN", "FREEZING"));
        assert!(!same("FROZEN", "THAWED"));
    }
}
