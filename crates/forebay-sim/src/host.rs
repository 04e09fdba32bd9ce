//! The simulated host: what tests and scenarios do to it, and what Forebay does.

mod adopt;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use forebay_core::app::{App, AppId, Binding, Class, Match};
use forebay_core::host::{Action, Capabilities, Host, Outcome, Watch};
use forebay_core::idset::CpuSet;
use forebay_core::io::DeviceCounters;
use forebay_core::slice::{Knob, Setting};
use forebay_core::snapshot::{
    AppSample, CostModels, Ending, Gap, HostSample, MemoryWatch, Reading, Reclaim, RunState,
    Snapshot,
};
use forebay_core::topology::Topology;
use forebay_core::units::{Bytes, Limit, Time};

use crate::cpu::Region;
use crate::disk::{DEVICE, Queue, before};
use crate::fault::Faults;
use crate::group::Group;
use crate::interrupts::Interrupts;
use crate::program::{Program, Task};

/// The group that everything is in which was not moved.
pub(crate) const ROOT: &str = "";

/// Expensive readings are read every so many periods.
const ROTATION: u64 = 4;

/// A host in memory with its own time.
#[derive(Debug)]
pub struct SimHost {
    pub(crate) topology: Topology,
    pub(crate) capabilities: Capabilities,
    pub(crate) rng: fastrand::Rng,
    pub(crate) faults: Faults,
    pub(crate) now: Duration,
    pub(crate) groups: BTreeMap<String, Group>,
    /// Running processes by their number.
    pub(crate) tasks: BTreeMap<u32, Task>,
    next_pid: u32,
    /// What can be started, by executable.
    programs: BTreeMap<String, Program>,
    pub(crate) apps: BTreeMap<AppId, Bound>,
    pub(crate) swap: Bytes,
    /// Requests for memory so far.
    pub(crate) requests: u64,
    /// CPU seconds used, by position in the topology.
    pub(crate) busy: Vec<f64>,
    pub(crate) steal: f64,
    /// Until when the ledger's disk is full, and CPUs are stolen and how much.
    pub(crate) full_until: f64,
    pub(crate) steal_until: f64,
    pub(crate) stolen: f64,
    pub(crate) interrupts: Interrupts,
    pub(crate) cost_models: CostModels,
    pub(crate) memory_watch: MemoryWatch,
    /// The device that programs use; without it, one that is never busy.
    pub(crate) disk: Option<Queue>,
    /// The regions of the last step and the sets they belong to.
    pub(crate) regions: (Vec<CpuSet>, Vec<Region>),
}

/// What a group used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Processor time.
    pub cpu_used: Duration,
    /// Time spent throttled by the quota.
    pub cpu_throttled: Duration,
    /// Time in which a task waited for a CPU.
    pub cpu_stalled: Duration,
    /// Memory held now.
    pub memory_used: Bytes,
    /// Time in which a task waited for memory.
    pub memory_stalled: Duration,
}

/// An app as the host knows it.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) binding: Binding,
    pub(crate) group: String,
    /// Whether the group's knobs were given as found.
    seen: bool,
    /// The ledger: what others had written before Forebay did.
    pub(crate) originals: BTreeMap<Knob, Setting>,
    /// What Forebay last wrote.
    written: BTreeMap<Knob, Setting>,
    /// Knobs whose value in this group Forebay knows.
    known: BTreeSet<Knob>,
    /// What the manager that owns the group was last asked for.
    pub(crate) asked: BTreeMap<Knob, Setting>,
    started: Option<Started>,
    /// The last request for memory.
    pub(crate) reclaim: Option<Reclaim>,
}

#[derive(Debug)]
struct Started {
    pid: u32,
    ending: Option<Ending>,
}

impl SimHost {
    /// A host on which nothing runs, that offers every knob.
    #[must_use]
    pub fn new(topology: Topology, seed: u64) -> Self {
        let knobs = vec![
            Knob::Cpus,
            Knob::CpusPartition,
            Knob::Mems,
            Knob::CpuWeight,
            Knob::CpuIdle,
            Knob::CpuMax,
            Knob::CpuBurst,
            Knob::CpuUclampMin,
            Knob::CpuUclampMax,
            Knob::MemoryMin,
            Knob::MemoryLow,
            Knob::MemoryHigh,
            Knob::MemoryMax,
            Knob::MemorySwapMax,
            Knob::MemoryZswapMax,
            Knob::IoWeight,
            Knob::IoMax(DEVICE),
            Knob::IoLatency(DEVICE),
            Knob::PidsMax,
            Knob::EgressMax,
            Knob::L3Cache,
            Knob::MemoryBandwidth,
            Knob::OomScoreAdj,
        ];
        let root = Group::new(&topology, true);
        Self {
            busy: vec![0.0; topology.cpus().len()],
            interrupts: Interrupts::new(topology.cpu_set()),
            cost_models: CostModels::default(),
            memory_watch: MemoryWatch::default(),
            topology,
            capabilities: Capabilities {
                knobs,
                reclaim: true,
                cost_models: true,
                ..Capabilities::default()
            },
            rng: fastrand::Rng::with_seed(seed),
            faults: Faults::default(),
            now: Duration::ZERO,
            groups: BTreeMap::from([(ROOT.to_owned(), root)]),
            tasks: BTreeMap::new(),
            next_pid: 1000,
            programs: BTreeMap::new(),
            apps: BTreeMap::new(),
            swap: Bytes(0),
            requests: 0,
            steal: 0.0,
            full_until: 0.0,
            steal_until: 0.0,
            stolen: 0.0,
            regions: (Vec::new(), Vec::new()),
            disk: None,
        }
    }

    /// The same host with a kernel that lacks the knobs for which `offered` is false.
    #[must_use]
    pub fn offering(mut self, mut offered: impl FnMut(Knob) -> bool) -> Self {
        self.capabilities.knobs.retain(|knob| offered(*knob));
        self
    }

    /// From now on, things go wrong at these rates.
    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
        if faults == Faults::default() {
            self.full_until = 0.0;
            self.steal_until = 0.0;
        }
    }

    /// Now.
    #[must_use]
    pub fn time(&self) -> Time {
        const START_UNIX_MS: u64 = 1_700_000_000_000;
        let passed = u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX);
        Time {
            monotonic: self.now,
            unix_ms: START_UNIX_MS.saturating_add(passed),
        }
    }

    /// Puts a program where `exec` apps find it under this name.
    pub fn install(&mut self, executable: &str, program: Program) {
        self.programs.insert(executable.to_owned(), program);
    }

    /// Makes a control group that is not Forebay's. Its path is what a `cgroup` app names.
    pub fn create_group(&mut self, path: &str) {
        let group = Group::new(&self.topology, true);
        self.groups.entry(path.to_owned()).or_insert(group);
    }

    /// Removes a control group and ends what is in it.
    pub fn remove_group(&mut self, path: &str) {
        if path == ROOT || self.groups.remove(path).is_none() {
            return;
        }
        self.end_all_in(path);
        for app in self.apps.values_mut().filter(|app| app.group == path) {
            app.forget_group();
        }
    }

    /// Starts a process that is not Forebay's; `None` when there is no such group.
    pub fn spawn(&mut self, executable: &str, program: Program, group: &str) -> Option<u32> {
        self.groups.get(group)?;
        let task = Task::new(program, (executable, executable), group);
        Some(self.add(task))
    }

    /// Ends a process and its children. False when there is none.
    pub fn end(&mut self, pid: u32, ending: Ending) -> bool {
        let ended = self.tasks.remove(&pid).is_some();
        if ended {
            for app in self.apps.values_mut() {
                if let Some(started) = &mut app.started
                    && started.pid == pid
                {
                    started.ending = Some(ending);
                }
            }
        }
        ended
    }

    /// The running processes of an app's group, without their children.
    #[must_use]
    pub fn processes(&self, app: &AppId) -> Vec<u32> {
        let Some(app) = self.apps.get(app) else {
            return Vec::new();
        };
        let here = self
            .tasks
            .iter()
            .filter(|(_, task)| task.group == app.group);
        here.map(|(pid, _)| *pid).collect()
    }

    /// Writes a knob as somebody else than Forebay.
    ///
    /// # Errors
    /// When there is no such group or the kernel would refuse.
    pub fn write(&mut self, path: &str, setting: Setting) -> Result<(), String> {
        let topology = &self.topology;
        let found = self.groups.get_mut(path);
        let group = found.ok_or_else(|| format!("no group `{path}`"))?;
        let same = group.read(setting.knob(), topology) == setting;
        group.write(setting, topology)?;
        // Nobody can tell who wrote a value that was there already.
        if !same {
            group.outside.insert(setting.knob(), setting);
        }
        self.check_partitions(path);
        Ok(())
    }

    /// What a knob of a group holds; `None` when there is no such group.
    #[must_use]
    pub fn read(&self, group: &str, knob: Knob) -> Option<Setting> {
        Some(self.groups.get(group)?.read(knob, &self.topology))
    }

    /// What a group used since it exists; `None` when there is no such group.
    #[must_use]
    pub fn usage(&self, group: &str) -> Option<Usage> {
        let accounts = self.groups.get(group)?.accounts;
        let time = Duration::from_secs_f64;
        Some(Usage {
            cpu_used: time(accounts.cpu_used),
            cpu_throttled: time(accounts.cpu_throttled),
            cpu_stalled: time(accounts.cpu_stalled),
            memory_used: Bytes::from_f64(accounts.memory_used),
            memory_stalled: time(accounts.memory_stalled),
        })
    }

    /// The group that an app is in, or would be.
    #[must_use]
    pub fn group_of(app: &App) -> String {
        match &app.binding {
            Binding::Cgroup(path) => path.display().to_string(),
            Binding::Systemd(name) | Binding::Container(name) => name.clone(),
            Binding::Exec(_) | Binding::Match(_) => format!("forebay.{}", app.id),
        }
    }

    /// The daemon ends without a word and comes back: only what is durable is known.
    pub fn lose_daemon(&mut self) {
        for app in self.apps.values_mut() {
            app.seen = false;
            app.reclaim = None;
            app.known.clear();
        }
    }

    pub(crate) fn add(&mut self, task: Task) -> u32 {
        let pid = self.new_pid();
        self.tasks.insert(pid, task);
        pid
    }

    pub(crate) fn new_pid(&mut self) -> u32 {
        self.next_pid += 1;
        self.next_pid
    }

    pub(crate) fn supports(&self, knob: Knob) -> bool {
        let mut knobs = self.capabilities.knobs.iter();
        knobs.any(|offered| offered.of_any_device() == knob.of_any_device())
    }

    /// Whether a fault of this rate happens now.
    pub(crate) fn strikes(&mut self, rate: f64) -> bool {
        rate > 0.0 && self.rng.f64() < rate
    }

    fn end_all_in(&mut self, path: &str) {
        for task in self.tasks.values_mut() {
            task.children.retain(|child| child.group != path);
        }
        let here: Vec<u32> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.group == path)
            .map(|(pid, _)| *pid)
            .collect();
        for pid in here {
            self.end(pid, Ending::Signal(9));
        }
    }

    fn bind(&mut self, app: &App) {
        let known = self.apps.get(&app.id);
        if known.is_none_or(|known| known.binding != app.binding) {
            let bound = Bound {
                binding: app.binding.clone(),
                group: Self::group_of(app),
                seen: false,
                originals: BTreeMap::new(),
                written: BTreeMap::new(),
                known: BTreeSet::new(),
                asked: BTreeMap::new(),
                started: None,
                reclaim: None,
            };
            self.apps.insert(app.id.clone(), bound);
        }
    }

    fn do_one(&mut self, action: &Action) -> Outcome {
        if let Action::Set { setting, .. } = action
            && !self.supports(setting.knob())
        {
            return Outcome::Unsupported;
        }
        if matches!(action, Action::Reclaim { .. }) && !self.capabilities.reclaim {
            return Outcome::Unsupported;
        }
        if let Action::Set { app, setting } = action
            && self.is_first_asked(app, *setting)
        {
            return Outcome::Pending;
        }
        let faults = self.faults;
        let done = if self.strikes(faults.busy) {
            Err("device or resource busy".to_owned())
        } else if self.strikes(faults.invalid) {
            Err("invalid argument".to_owned())
        } else {
            match action {
                Action::Start { app } => self.start(app),
                Action::Succeed { app } => self.succeed(app),
                Action::Adopt { app, pid, .. } => self.adopt(app, *pid),
                Action::Enter { app, pids } => self.enter(app, pids),
                Action::Set { app, setting } => self.set(app, *setting),
                Action::Reclaim { app, bytes } => self.ask_for_memory(app, *bytes),
                Action::Compact => Err("its free memory is never scattered".to_owned()),
                Action::Release { app } => self.release(app),
                Action::Freeze { app } => self.slice_of(app).map(|slice| slice.frozen = true),
                Action::Thaw { app } => self.slice_of(app).map(|slice| slice.frozen = false),
                Action::Kill { app } => self.kill(app),
                Action::Interrupts { keep_off } => self.keep_interrupts_off(*keep_off),
                Action::CostModel { device, model } => self.set_cost_model(*device, *model),
                Action::WatchMemory { apps } => self.watch_memory(apps),
            }
        };
        match done {
            Ok(()) => Outcome::Done,
            Err(why) => Outcome::Failed(format!("{action}: {why}")),
        }
    }

    /// The program before runs on as one of the app's processes.
    fn succeed(&mut self, app: &App) -> Result<(), String> {
        let known = self.apps.get_mut(&app.id).ok_or("it does not run")?;
        let runs = |started: &Started| started.ending.is_none();
        let before = known.started.take_if(|started| runs(started));
        let before = before.ok_or("it does not run")?;
        let started = self.start(app);
        if started.is_err()
            && let Some(known) = self.apps.get_mut(&app.id)
        {
            known.started = Some(before);
        }
        started
    }

    fn start(&mut self, app: &App) -> Result<(), String> {
        let Binding::Exec(exec) = &app.binding else {
            return Err("only an `exec` app can be started".to_owned());
        };
        self.bind(app);
        let running = self.apps[&app.id].started.as_ref();
        if running.is_some_and(|started| started.ending.is_none()) {
            return Err("it runs already".to_owned());
        }
        let name = exec.command.first().map_or("", String::as_str);
        let program = self.programs.get(name).cloned();
        let program = program.ok_or_else(|| format!("no executable `{name}`"))?;
        let group = self.group_for(&app.id)?;
        if self.groups[&group].frozen {
            return Err("its slice is frozen: thaw it first".to_owned());
        }
        let mut task = Task::new(program, (name, &exec.command.join(" ")), &group);
        ROOT.clone_into(&mut task.home);
        let pid = self.add(task);
        if let Some(app) = self.apps.get_mut(&app.id) {
            app.started = Some(Started { pid, ending: None });
        }
        Ok(())
    }

    /// The path of an app's group, made if it is Forebay's to make.
    fn group_for(&mut self, id: &AppId) -> Result<String, String> {
        let app = self.apps.get(id).ok_or("the host does not know this app")?;
        if !self.groups.contains_key(&app.group) {
            if app.binding.is_of_others() {
                return Err(format!("no group `{}`", app.group));
            }
            let group = Group::new(&self.topology, false);
            self.groups.insert(app.group.clone(), group);
        }
        Ok(app.group.clone())
    }

    fn enter(&mut self, id: &AppId, pids: &[u32]) -> Result<(), String> {
        let group = self.group_for(id)?;
        let missing: Vec<String> = pids
            .iter()
            .filter(|&&pid| !self.move_to(pid, &group))
            .map(u32::to_string)
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("no process {}", missing.join(", ")))
        }
    }

    fn move_to(&mut self, pid: u32, group: &str) -> bool {
        if let Some(task) = self.tasks.get_mut(&pid) {
            group.clone_into(&mut task.group);
            return true;
        }
        let mut children = self.tasks.values_mut().flat_map(|task| &mut task.children);
        let child = children.find(|child| child.pid == pid);
        child.is_some_and(|child| {
            group.clone_into(&mut child.group);
            true
        })
    }

    fn set(&mut self, id: &AppId, setting: Setting) -> Result<(), String> {
        let path = self.group_for(id)?;
        if self.now.as_secs_f64() < self.full_until {
            return Err("record the original value: no space left on device".to_owned());
        }
        let knob = setting.knob();
        let missing = || format!("no group `{path}`");
        let group = self.groups.get_mut(&path).ok_or_else(missing)?;
        let before = group.read(knob, &self.topology);
        match setting {
            Setting::CpusPartition(partition) => self.make_partition(&path, partition)?,
            _ => group.write(setting, &self.topology)?,
        }
        self.check_partitions(&path);
        let app = self.apps.get_mut(id).ok_or_else(missing)?;
        if app.written.get(&knob) != Some(&before) {
            app.originals.insert(knob, before);
        }
        app.written.insert(knob, setting);
        app.known.insert(knob);
        Ok(())
    }

    fn release(&mut self, id: &AppId) -> Result<(), String> {
        let app = self
            .apps
            .get_mut(id)
            .ok_or("the host does not know this app")?;
        let originals = std::mem::take(&mut app.originals);
        let written = std::mem::take(&mut app.written);
        let path = app.group.clone();
        app.forget_group();
        let Some(group) = self.groups.get_mut(&path) else {
            return Ok(());
        };
        for (knob, original) in originals {
            // What somebody else wrote since is theirs.
            if written.get(&knob) == Some(&group.read(knob, &self.topology)) {
                group.restore(original, &self.topology);
            }
        }
        group.frozen = false;
        let foreign = group.foreign;
        self.send_home(&path);
        if foreign {
            self.check_partitions(&path);
        } else {
            self.groups.remove(&path);
        }
        Ok(())
    }

    fn send_home(&mut self, path: &str) {
        let groups = &self.groups;
        let go = |group: &mut String, home: &mut String| {
            if group == path {
                if !groups.contains_key(home.as_str()) {
                    ROOT.clone_into(home);
                }
                group.clone_from(home);
            }
        };
        for task in self.tasks.values_mut() {
            go(&mut task.group, &mut task.home);
            for child in &mut task.children {
                go(&mut child.group, &mut child.home);
            }
        }
    }

    fn kill(&mut self, id: &AppId) -> Result<(), String> {
        let app = self.apps.get(id).ok_or("the host does not know this app")?;
        let main = app.started.as_ref().map(|started| started.pid);
        let path = app.group.clone();
        if path != ROOT {
            self.end_all_in(&path);
        }
        if let Some(main) = main {
            self.end(main, Ending::Signal(9));
        }
        if let Some(group) = self.groups.get_mut(&path) {
            group.frozen = false;
        }
        Ok(())
    }

    fn slice_of(&mut self, id: &AppId) -> Result<&mut Group, String> {
        let app = self.apps.get(id).ok_or("the host does not know this app")?;
        let group = self.groups.get_mut(&app.group);
        group.ok_or_else(|| "it has no slice".to_owned())
    }

    fn reading<T>(&mut self, what: &str, value: T) -> Reading<T> {
        if self.strikes(self.faults.unreadable) {
            Err(Gap::Failed(format!("read {what}: no such file")))
        } else {
            Ok(value)
        }
    }

    fn sample(&mut self, app: &App, watch: &Watch<'_>, counts: &Counts) -> AppSample {
        self.bind(app);
        let bound = &self.apps[&app.id];
        let path = bound.group.clone();
        let strays = self.strays(app, bound);
        let inside = counts.get(path.as_str()).copied().unwrap_or(0);
        let main = bound.started.as_ref();
        let state = match main {
            Some(Started {
                ending: Some(ending),
                ..
            }) if inside == 0 => RunState::Ended(*ending),
            _ if inside > 0 || !strays.is_empty() => RunState::Running,
            _ => RunState::Absent,
        };
        let main_pid = main
            .filter(|main| main.ending.is_none())
            .map(|main| main.pid);
        let mut sample = AppSample {
            state,
            main_pid,
            strays,
            reclaim: bound.reclaim,
            touched: self.touched(&app.id, &path),
            ..AppSample::absent()
        };
        let Some(group) = self.groups.get(&path) else {
            return sample;
        };
        let accounts = group.accounts;
        let memory_stat = group.memory_stat();
        if let Some(in_force) = watch.in_force.get(&app.id) {
            for setting in in_force.iter().filter(|s| bound.known.contains(&s.knob())) {
                let is = group.read(setting.knob(), &self.topology);
                if is != *setting {
                    let says = match setting {
                        Setting::CpusPartition(ours) if group.lost_partition => {
                            format!("{ours} invalid (Cpu list in cpuset.cpus not exclusive)")
                        }
                        _ => is.to_string(),
                    };
                    sample.foreign.insert(setting.knob(), says);
                }
            }
        }
        if !bound.seen {
            let of_device = |knob: &Knob| knob.device().is_some();
            let offered = self.capabilities.knobs.iter().copied();
            let limited = group.written().filter(of_device);
            let knobs = offered.filter(|knob| !of_device(knob)).chain(limited);
            sample.found = knobs.map(|k| group.read(k, &self.topology)).collect();
            if app.binding.is_of_others() {
                sample.before = before(&sample.found, &bound.originals);
            }
            if let Some(bound) = self.apps.get_mut(&app.id) {
                bound.seen = true;
                bound.known.extend(sample.found.iter().map(Setting::knob));
            }
        }
        let time = Duration::from_secs_f64;
        sample.processes = self.reading("cgroup.procs", inside);
        sample.cpu_used = self.reading("cpu.stat", time(accounts.cpu_used));
        sample.cpu_throttled = self.reading("cpu.stat", time(accounts.cpu_throttled));
        sample.cpu_stalled = self.reading("cpu.pressure", time(accounts.cpu_stalled));
        sample.memory_used = self.reading("memory.current", Bytes::from_f64(accounts.memory_used));
        if watch.period.is_multiple_of(ROTATION) {
            sample.memory_stalled = self.reading("memory.pressure", time(accounts.memory_stalled));
            sample.memory_stat = self.reading("memory.stat", memory_stat);
        } else {
            sample.memory_stalled = Err(Gap::NotDue);
            sample.memory_stat = Err(Gap::NotDue);
        }
        // As on a live host, which reads in every period what moves or matters.
        if app.class == Class::Critical || watch.period.is_multiple_of(ROTATION) {
            let counters = DeviceCounters::from([(DEVICE, accounts.io_counters())]);
            sample.io = self.reading("io.stat", counters);
            sample.io_stalled = self.reading("io.pressure", time(accounts.io_stalled));
        } else {
            sample.io = Err(Gap::NotDue);
            sample.io_stalled = Err(Gap::NotDue);
        }
        sample
    }

    /// Processes of the app that are not in its group.
    fn strays(&self, app: &App, bound: &Bound) -> BTreeSet<u32> {
        let mut strays = BTreeSet::new();
        let mut add = |pid: u32, task: &Task| {
            let children = task.children.iter().map(|child| (child.pid, &child.group));
            let all = children.chain([(pid, &task.group)]);
            strays.extend(
                all.filter(|(_, at)| **at != bound.group)
                    .map(|(pid, _)| pid),
            );
        };
        match &app.binding {
            Binding::Exec(_) => {
                if let Some(main) = &bound.started
                    && let Some(task) = self.tasks.get(&main.pid)
                {
                    add(main.pid, task);
                }
            }
            Binding::Match(wanted) => {
                for (pid, task) in &self.tasks {
                    if matches(wanted, task) {
                        add(*pid, task);
                    }
                }
            }
            Binding::Cgroup(_) | Binding::Systemd(_) | Binding::Container(_) => {}
        }
        strays
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::new();
        let mut count = |group: &str| match counts.get_mut(group) {
            Some(count) => *count += 1,
            None => {
                counts.insert(group.to_owned(), 1);
            }
        };
        for task in self.tasks.values() {
            count(&task.group);
            task.children.iter().for_each(|child| count(&child.group));
        }
        counts
    }

    /// Whether a group may have one more process.
    pub(crate) fn may_fork(&self, group: &str, processes: u64) -> bool {
        let limit = self.groups.get(group).map_or(Limit::Max, |g| g.limits.pids);
        limit.allows(processes.saturating_add(1))
    }
}

/// Processes by group.
type Counts = BTreeMap<String, u32>;

impl Bound {
    /// The group is gone, or no longer Forebay's: nothing is known of its knobs.
    fn forget_group(&mut self) {
        self.seen = false;
        self.reclaim = None;
        self.originals.clear();
        self.written.clear();
        self.known.clear();
        self.asked.clear();
    }
}

fn matches(wanted: &Match, task: &Task) -> bool {
    let executable = wanted.executable.as_deref().is_none_or(|name| {
        if name.contains('/') {
            task.executable == name
        } else {
            task.executable.rsplit('/').next() == Some(name)
        }
    });
    let command_line = wanted.command_line.as_deref();
    executable && command_line.is_none_or(|text| task.command_line.contains(text))
}

impl Host for SimHost {
    fn topology(&self) -> &Topology {
        &self.topology
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn observe(&mut self, watch: &Watch<'_>) -> Snapshot {
        let counts = self.counts();
        let mut apps = BTreeMap::new();
        for (id, app) in watch.apps {
            apps.insert(id.clone(), self.sample(app, watch, &counts));
        }
        let ids = self.topology.cpus().iter().map(|cpu| cpu.id);
        let busy = ids.zip(self.busy.iter().map(|&busy| Duration::from_secs_f64(busy)));
        let busy = busy.collect();
        let used: f64 = self.groups.values().map(|g| g.accounts.memory_used).sum();
        let free = self.topology.memory().saturating_sub(Bytes::from_f64(used));
        let swap_free = self.swap_free();
        let host = HostSample {
            cpu_busy: self.reading("/proc/stat", busy),
            steal: self.reading("/proc/stat", Duration::from_secs_f64(self.steal)),
            memory_available: self.reading("/proc/meminfo", free),
            interrupts: Ok(self.interrupts.look()),
            cost_models: Ok(self.cost_models.clone()),
            swap_free: self.reading("/proc/meminfo", swap_free),
            memory_watch: Ok(self.memory_watch.clone()),
            compaction: Err(Gap::Unsupported),
        };
        Snapshot {
            time: watch.time,
            host,
            apps,
        }
    }

    fn apply(&mut self, actions: &[Action]) -> Vec<Outcome> {
        actions.iter().map(|action| self.do_one(action)).collect()
    }
}
