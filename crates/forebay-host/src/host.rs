//! The live host: opened, adopted from an earlier daemon, closed; what is known of each app.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use forebay_core::app::{App, AppId, Binding, OnStop};
use forebay_core::host::{Action, Capabilities, Host, Outcome, Watch};
use forebay_core::io::DeviceCounters;
use forebay_core::slice::Knob;
use forebay_core::snapshot::{Ending, Snapshot};
use forebay_core::topology::Topology;

use crate::Roots;
use crate::app_meters::Meters;
use crate::blkstat::Counting;
use crate::checkpoint::{self, Comparing, Restoring};
use crate::compaction::Compactor;
use crate::cost;
use crate::damon::{self, Damon};
use crate::error::HostError;
use crate::files::{Reader, read_text};
use crate::foreign::KnobFiles;
use crate::freeze;
use crate::groups;
use crate::interrupts::Interrupts;
use crate::knobs::Ways;
use crate::ledger::{Ledger, Process, Record};
use crate::lock::{Lock, Role};
use crate::mounts::{Controller, Hierarchies, Hierarchy, Version};
use crate::network;
use crate::oom;
use crate::owner::Addresses;
use crate::owner::apps::{Owned, Owners};
use crate::pages::PageMover;
use crate::partition;
use crate::procs::{self, Scanner};
use crate::reclaim::{ReclaimWay, Reclaimer};
use crate::resctrl::Resctrl;
use crate::restore::{self, Report};
use crate::slow::SlowWriter;
use crate::soft_reboot;
use crate::supervise::{self, Main};
use crate::topology::{disks, read_topology};

/// How a live host is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where the kernel's file systems are.
    pub roots: Roots,
    /// The group that holds all groups of ours, relative to the root of each hierarchy.
    pub group: PathBuf,
    /// Where the ledger and the lock are.
    pub state_dir: PathBuf,
    /// Where the managers are that own groups.
    pub owners: Addresses,
    /// The program that begins programs from their images; looked for in the usual places unless
    /// given.
    pub criu: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            roots: Roots::default(),
            group: PathBuf::from("forebay"),
            state_dir: PathBuf::from("/var/lib/forebay"),
            owners: Addresses::default(),
            criu: None,
        }
    }
}

/// The live host. Dropping it leaves everything in force, as a crash would;
/// [`close`](Self::close) puts everything back.
#[derive(Debug)]
pub struct LinuxHost {
    pub(crate) options: Options,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) topology: Topology,
    pub(crate) capabilities: Capabilities,
    pub(crate) ways: Ways,
    pub(crate) ledger: Ledger,
    _lock: Lock,
    pub(crate) entries: BTreeMap<AppId, Entry>,
    pub(crate) scanner: Scanner,
    pub(crate) host_stat: Option<Reader>,
    pub(crate) host_memory: Option<Reader>,
    /// The list of online CPUs, and what it said last.
    pub(crate) online: Option<Reader>,
    pub(crate) online_text: String,
    pub(crate) slow: SlowWriter,
    pub(crate) interrupts: Option<Interrupts>,
    pub(crate) costs: Option<cost::Models>,
    pub(crate) counting: Counting,
    pub(crate) damon: Option<Damon>,
    pub(crate) resctrl: Option<Resctrl>,
    pub(crate) reclaim_way: Option<ReclaimWay>,
    pub(crate) reclaimer: Reclaimer,
    pub(crate) compactor: Option<Compactor>,
    pub(crate) pages: PageMover,
    pub(crate) owners: Owners,
    /// The weight of the group that holds all apps, once it was written.
    pub(crate) buffer: Vec<u8>,
}

/// What is known of one app.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// The group it is bound to, when that is not one of ours.
    pub(crate) bound: Option<PathBuf>,
    /// The manager that owns that group, if one does.
    pub(crate) owned: Option<Owned>,
    pub(crate) group: Option<Group>,
    /// Its group was there and vanished: what is made in its place holds none of what was set.
    pub(crate) lost_group: bool,
    pub(crate) main: Option<Main>,
    /// The program that the main one was started to succeed, while it runs.
    pub(crate) before: Option<Main>,
    pub(crate) ended: Option<Ending>,
    pub(crate) oom: oom::Seen,
    /// Processes came whose pages may be on nodes that it does not have.
    pub(crate) pages_unsettled: bool,
    /// What each knob held right after we wrote it, or when it was found.
    pub(crate) last: BTreeMap<Knob, Vec<String>>,
    /// The weight that was asked for; the kernel takes none while a group is idle.
    pub(crate) weight: Option<u32>,
    /// Whether it runs only when nothing else wants the CPU.
    pub(crate) idle: bool,
    /// Processes that ran on outside our groups while no daemon was there.
    pub(crate) kept: Vec<Process>,
    /// What the program was started with; empty when that is not known.
    pub(crate) command: Vec<String>,
    /// Its program runs on outside our groups since a release: taken up again if it is what
    /// the app wants to run.
    pub(crate) released: bool,
    /// Its program was not started, because its slice is frozen.
    pub(crate) refused_frozen: bool,
    /// Since when a process that ended has had the number that its image needs.
    pub(crate) number_awaited: Option<Instant>,
    /// The image that it is to begin from is compared with its checksums: it is on its way meanwhile.
    pub(crate) comparing: Option<Comparing>,
    /// Its main process is CRIU, which begins it from this image.
    pub(crate) restoring: Option<Restoring>,
    /// It was begun from the image of this number, and has to live until then.
    pub(crate) trial: Option<(u64, Instant)>,
}

impl Entry {
    /// Whether what runs on outside was started for another command than the app has now.
    fn is_of_another_command(&self, app: &App) -> bool {
        let Binding::Exec(exec) = &app.binding else {
            return self.released;
        };
        self.released && !self.command.is_empty() && self.command != exec.command
    }

    /// Gives up a program that runs outside our groups. It runs on by itself.
    fn forget_program(&mut self) {
        self.main = None;
        self.before = None;
        self.ended = None;
        self.comparing = None;
        self.kept.clear();
        self.command.clear();
        self.released = false;
    }

    /// Whether its program runs, or is on its way.
    pub(crate) fn is_begun(&self) -> bool {
        let is_compared = self.comparing.as_ref().is_some_and(|one| !one.is_over());
        self.main.is_some() || is_compared
    }

    /// Forgets a group that is there no more, with everything that was set in it.
    pub(crate) fn lose_group(&mut self) {
        self.group = None;
        self.oom = oom::Seen::default();
        self.lost_group = true;
        self.last.clear();
        self.weight = None;
        self.idle = false;
        if let Some(owned) = &mut self.owned {
            owned.lose_group();
        }
    }
}

/// The directories of one app's group, by hierarchy, and what is read from them.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) dirs: Vec<Option<PathBuf>>,
    pub(crate) meters: Meters,
    pub(crate) knob_files: KnobFiles,
    /// It was there before we looked and its settings were not yet reported.
    pub(crate) unreported: bool,
    /// What it had done on block devices at the last reading, and whether that was more than
    /// at the one before: who is busy is read in every period.
    pub(crate) disk_counters: DeviceCounters,
    pub(crate) is_busy_on_disk: bool,
    /// Counts and bounds what its processes send, where the kernel can.
    pub(crate) network: Option<network::Meter>,
}

impl Group {
    /// A group of which nothing was read or reported yet.
    pub(crate) fn new(dirs: Vec<Option<PathBuf>>, meters: Meters) -> Self {
        Self {
            dirs,
            meters,
            knob_files: KnobFiles::default(),
            unreported: true,
            disk_counters: DeviceCounters::new(),
            is_busy_on_disk: false,
            network: None,
        }
    }

    pub(crate) fn dir(&self, hierarchy: usize) -> Option<&Path> {
        self.dirs.get(hierarchy)?.as_deref()
    }

    pub(crate) fn all_dirs(&self) -> Vec<&Path> {
        self.dirs.iter().flatten().map(PathBuf::as_path).collect()
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
        let mut ledger = Ledger::open(&options.state_dir, &roots.boot_id()?)?;
        damon::start_anew(&mut ledger)?;
        let taken = partition::taken(ledger.state());
        let topology = read_topology(&roots.proc, &roots.sys, &taken)?;
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
        let reclaim_way = ReclaimWay::probe(&hierarchies, |index| {
            parents.get(index).map(PathBuf::as_path)
        });
        let costs = cost::Models::open(&hierarchies, ledger.state(), roots);
        let compactor = Compactor::open(&roots.proc, &roots.sys);
        let mut capabilities = Capabilities {
            compact: compactor.is_some(),
            reclaim: reclaim_way.is_some(),
            cost_models: costs.is_some(),
            ..ways.capabilities(disks(&roots.sys).into_iter().next())
        };
        if let Err(error) = network::probe(&hierarchies) {
            tracing::info!(
                reason = error.explain(),
                "network is neither counted nor bounded"
            );
        } else {
            capabilities.knobs.push(Knob::EgressMax);
        }
        if roots.proc.join("self/oom_score_adj").exists() {
            capabilities.knobs.push(Knob::OomScoreAdj);
        }
        let resctrl = Resctrl::open(&roots.sys);
        capabilities
            .knobs
            .extend(resctrl.iter().flat_map(Resctrl::knobs));
        let mut host = Self {
            capabilities,
            resctrl,
            host_stat: Reader::open(&roots.proc.join("stat")),
            host_memory: Reader::open(&roots.proc.join("meminfo")),
            online: Reader::open(&roots.sys.join("devices/system/cpu/online")),
            online_text: String::new(),
            slow: SlowWriter::default(),
            interrupts: Interrupts::open(&options.roots.proc, ledger.state()),
            costs,
            counting: Counting::new(&hierarchies, &options.group),
            damon: Damon::open(&options.roots),
            reclaim_way,
            reclaimer: Reclaimer::default(),
            compactor,
            pages: PageMover::default(),
            owners: Owners::new(options.owners.clone()),
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
        host.counting.follow(&host.options.roots.sys);
        host.adopt()?;
        supervise::become_subreaper();
        supervise::raise_open_files();
        Ok(host)
    }

    /// The apps of which the ledger knows something, whether configured or not.
    ///
    /// A daemon asks once, right after [`open`](Self::open), and applies an
    /// [`Action::Release`] for each that its configuration does not name: nobody watches
    /// those, so nobody else would put them back before the daemon goes. Releasing what was
    /// released already does nothing.
    #[must_use]
    pub fn known_apps(&self) -> Vec<AppId> {
        self.ledger.state().apps.keys().cloned().collect()
    }

    /// Puts everything back and gives the state directory up. What runs on while userspace begins anew
    /// ([`crate::soft_reboot`]) stays in force, and what only a daemon can find out whose it is as it stands
    /// ([`crate::guardian`]).
    ///
    /// # Errors
    /// When the ledger cannot be written. What the kernel refused is in the report.
    pub fn close(mut self, on_stop: OnStop) -> Result<Report, HostError> {
        // A limit that is lowered just now is written back first.
        self.reclaimer.stop();
        self.pages.stop();
        if let Some(damon) = &mut self.damon {
            damon.stop();
        }
        let proc_root = self.options.roots.proc.clone();
        // Open descriptors do not hold a group, but there is no use in them any more.
        self.entries.clear();
        self.leave_owners();
        let options = &self.options;
        let mut left = soft_reboot::left_in_force(&options.roots, &options.state_dir);
        left.extend(restore::unclaimed(&self.ledger, on_stop));
        let (ledger, hierarchies) = (&mut self.ledger, &self.hierarchies);
        restore::restore_but(ledger, hierarchies, &proc_root, on_stop, &left)
    }

    /// Takes up what the ledger says of each app.
    fn adopt(&mut self) -> Result<(), HostError> {
        let proc_root = self.options.roots.proc.clone();
        for (id, record) in self.ledger.state().apps.clone() {
            let mut entry = Entry {
                ended: record.ended,
                kept: record.kept.clone(),
                command: record.command.clone(),
                released: record.is_released(),
                ..Entry::default()
            };
            if !record.created.is_empty() {
                entry.group = self.own_group(&id);
            }
            if let Some(group) = &entry.group
                && group
                    .all_dirs()
                    .iter()
                    .all(|dir| groups::members(dir).is_empty())
            {
                // A daemon that died while it ended a frozen app: nobody is left to be held.
                freeze::thaw_all(&group.all_dirs())?;
            }
            let started = match (record.started, record.starting, &entry.group) {
                (None, Some(_), Some(group)) if checkpoint::is_restore(&record.command) => {
                    let dirs = group.all_dirs();
                    let members: Vec<u32> =
                        dirs.iter().flat_map(|dir| groups::members(dir)).collect();
                    let whole = self.restored_meanwhile(&id, &record.command, &members);
                    if let Some((process, image)) = whole {
                        entry.command = image.begun.arguments().to_vec();
                        self.note_running(&id, process, &image.begun, Some(&image));
                        Some(process)
                    } else {
                        // Half of a program is none: it begins again.
                        groups::kill(&dirs)?;
                        entry.ended = Some(Ending::Unknown);
                        self.note_ending(&id, Ending::Unknown);
                        None
                    }
                }
                (None, Some(at), Some(group)) => {
                    supervise::just_started(&proc_root, &group.all_dirs(), at)
                }
                (started, ..) => started,
            };
            if let Some(process) = started {
                if procs::is_alive(&proc_root, process) {
                    entry.main = Main::open(process);
                }
                let record = if entry.main.is_some() {
                    Record::Started {
                        app: id.clone(),
                        process,
                        command: entry.command.clone(),
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

    pub(crate) fn own_dirs(&self, app: &AppId) -> Vec<Option<PathBuf>> {
        let group = groups::of_app(&self.options.group, app);
        self.dirs_in(groups::placed(&self.hierarchies), &group)
    }

    /// The directories of a group that is named relative to each hierarchy's root.
    fn dirs_in<'a>(
        &self,
        hierarchies: impl Iterator<Item = (usize, &'a Hierarchy)>,
        group: &Path,
    ) -> Vec<Option<PathBuf>> {
        let mut dirs = vec![None; self.hierarchies.list().len()];
        for (index, hierarchy) in hierarchies {
            dirs[index] = Some(hierarchy.dir(group));
        }
        dirs
    }

    pub(crate) fn open_group(&self, dirs: Vec<Option<PathBuf>>) -> Group {
        let meters = Meters::open(&self.hierarchies, &dirs);
        let counts = self.capabilities.knobs.contains(&Knob::EgressMax);
        let unified = unified_index(&self.hierarchies).filter(|_| counts);
        let dir = unified.and_then(|index| dirs.get(index)?.as_deref());
        let network = dir.and_then(|dir| match network::Meter::attach(dir) {
            Ok(meter) => Some(meter),
            Err(error) => {
                tracing::warn!(reason = error.explain(), "its packets are not counted");
                None
            }
        });
        Group {
            network,
            ..Group::new(dirs, meters)
        }
    }

    /// Opens the group an app is bound to, in the hierarchies that have it.
    pub(crate) fn bound_group(&self, path: &Path) -> Option<Group> {
        let mut dirs = self.dirs_in(groups::used(&self.hierarchies), path);
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
    ///
    /// A program that runs inside its slice is the app's, whatever its configuration says
    /// by now: a new command is used at the next start. One that was released is taken up
    /// again only if it is what the app is to run; the name may be another program's today.
    pub(crate) fn bind(&mut self, app: &App) {
        let entry = self.entries.entry(app.id.clone()).or_default();
        if entry.is_of_another_command(app) {
            let program = entry.command.join(" ");
            entry.forget_program();
            tracing::info!(app = %app.id, program, "runs on by itself: not what the app runs now");
            let app = app.id.clone();
            if let Err(error) = self.ledger.append(Record::Forgotten { app }) {
                // A daemon that comes later compares again.
                tracing::warn!(reason = error.explain(), "not recorded");
            }
        }
        let entry = self.entries.entry(app.id.clone()).or_default();
        if entry.owned.as_ref().is_some_and(|owned| !owned.is_of(app)) || entry.owned.is_none() {
            entry.owned = Owned::of(app);
        }
        self.follow_ceiling(app);
        let entry = self.entries.entry(app.id.clone()).or_default();
        let bound = match &app.binding {
            Binding::Cgroup(path) => Some(path.clone()),
            Binding::Systemd(_) | Binding::Container(_) => {
                entry.owned.as_ref().and_then(Owned::group)
            }
            Binding::Exec(_) | Binding::Match(_) => None,
        };
        if entry.bound != bound {
            // What was done to the group it had is put back by its release.
            entry.bound = bound;
            entry.group = None;
            entry.last.clear();
        }
    }

    /// A program does not begin whose image is still compared with its checksums: as if it had been killed.
    pub(crate) fn give_up_beginning(&mut self, app: &AppId) {
        const KILLED: Ending = Ending::Signal(9);
        if let Some(entry) = self.entries.get_mut(app)
            && entry.comparing.take().is_some()
        {
            entry.ended = Some(KILLED);
            self.note_ending(app, KILLED);
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
            dir.filter(|dir| !groups::is_ours(&hierarchy.dir(&options.group), dir))
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
    for (_, hierarchy) in groups::placed(hierarchies) {
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
    for (_, hierarchy) in groups::placed(hierarchies) {
        if hierarchy.version == Version::V2 {
            enable_along(ledger, hierarchy, group)?;
        }
    }
    Ok(())
}

/// Switches the controllers of v2 on from the root down to our group.
fn enable_along(ledger: &mut Ledger, hierarchy: &Hierarchy, group: &Path) -> Result<(), HostError> {
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
        self.carry_out(actions)
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
