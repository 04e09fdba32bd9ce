//! Doing what was decided.
//!
//! A batch is done in two passes. The first writes to the ledger what the second is about to
//! change, with one sync for all; an action whose record could not be written is not done. The
//! second makes no decision but those that the kernel's own rules leave no choice in: a burst
//! has to fit its quota, an idle group takes no weight.
//!
//! An app's weight is meant against everything on the host, not only against other apps, but
//! the kernel compares siblings. So the group that holds all apps gets the sum of their
//! weights: each app then weighs as if it stood beside the rest by itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Binding, IoMax, Partition};
use forebay_core::host::{Action, Outcome};
use forebay_core::slice::{Knob, Setting};
use forebay_core::units::{Bytes, Limit, Rate};

use crate::error::HostError;
use crate::files::{read_text, write_text};
use crate::groups;
use crate::host::LinuxHost;
use crate::knobs::{self, PERIOD_US_DEFAULT, Way};
use crate::ledger::{AppRecord, Process, Record, Spot};
use crate::owner::book::Managers;
use crate::procs;
use crate::reclaim::{self, Lowering, Means};
use crate::restore::{self, Fate, Release, read_spot};
use crate::service_address::Addresses;
use crate::slow::Progress;
use crate::supervise::{self, Program};

/// How long a release within a period waits for members to leave; a later one goes on.
const RELEASE_PATIENCE: Duration = Duration::from_millis(20);
/// Memory that an app may take while its limit is being written.
const MEMORY_MARGIN: u64 = 16 << 20;

/// Why an action was not done.
pub(crate) enum Refusal {
    /// It is on its way.
    Pending,
    Unsupported,
    Failed(String),
}

impl From<HostError> for Refusal {
    fn from(error: HostError) -> Self {
        Self::Failed(error.explain())
    }
}

impl LinuxHost {
    /// Does a batch, one outcome for each action.
    pub(crate) fn carry_out(&mut self, actions: &[Action]) -> Vec<Outcome> {
        self.hear_owners();
        for action in actions {
            // Whoever is started or entered in this batch may be set in it before that.
            if let Action::Start { .. } | Action::Enter { .. } | Action::Adopt { .. } = action
                && let Some(app) = action.app()
            {
                self.entries.entry(app.clone()).or_default();
            }
        }
        let mut prepared: Vec<Result<Option<Program>, Refusal>> =
            actions.iter().map(|action| self.prepare(action)).collect();
        self.announce_owned();
        if let Err(error) = self.ledger.sync() {
            self.refuse_owned(&error);
            // Nothing may be changed that is not on disk; ending and releasing need no more
            // than what already is.
            for (action, prepared) in actions.iter().zip(&mut prepared) {
                if !matches!(action, Action::Release { .. } | Action::Kill { .. }) {
                    *prepared = Err(error_on(action, &error));
                }
            }
        }
        let mut released = BTreeSet::new();
        let mut outcomes = Vec::with_capacity(actions.len());
        for (action, mut prepared) in actions.iter().zip(prepared) {
            // A release earlier in the batch took the records back.
            let again = action.app().is_some_and(|app| released.contains(app));
            if again && prepared.is_ok() {
                prepared = self.prepare(action).and_then(|program| {
                    self.ledger.sync()?;
                    Ok(program)
                });
            }
            if let Action::Release { app } = action {
                released.insert(app.clone());
            }
            let done = prepared.and_then(|program| self.perform(action, program));
            outcomes.push(match done {
                Ok(()) => Outcome::Done,
                Err(Refusal::Pending) => Outcome::Pending,
                Err(Refusal::Unsupported) => Outcome::Unsupported,
                Err(Refusal::Failed(why)) => Outcome::Failed(why),
            });
        }
        self.send_owned();
        if let Err(error) = self.ledger.compact_when_long() {
            tracing::warn!(reason = error.explain(), "ledger stays long");
        }
        outcomes
    }

    /// Writes to the ledger what an action is about to change.
    fn prepare(&mut self, action: &Action) -> Result<Option<Program>, Refusal> {
        match action {
            Action::Enter { app, .. } | Action::Freeze { app } | Action::Thaw { app }
                if self.is_owned(app) =>
            {
                Err(Refusal::Unsupported)
            }
            // The limit of v1 is the owner's to change, also for a moment.
            Action::Reclaim { app, .. }
                if self.is_owned(app)
                    && self.reclaim_way.map(|way| way.means) == Some(Means::Limit) =>
            {
                Err(Refusal::Unsupported)
            }
            Action::Start { app } | Action::Succeed { app } => {
                let Binding::Exec(exec) = &app.binding else {
                    return Err(Refusal::Failed(format!(
                        "start {}: it is not an app that Forebay starts",
                        app.id
                    )));
                };
                let program = supervise::resolve(exec)
                    .map_err(|error| Refusal::Failed(format!("{}: {}", app.id, error.explain())))?;
                self.bind(app);
                self.announce_group(&app.id)?;
                Ok(Some(program))
            }
            Action::Adopt { app, .. } => {
                self.bind(app);
                self.announce_group(&app.id)?;
                Ok(None)
            }
            Action::Enter { app, pids } => {
                self.find_bound_group(app);
                self.announce_group(app)?;
                for pid in pids {
                    self.announce_move(app, *pid)?;
                }
                Ok(None)
            }
            Action::Set { app, setting } => {
                let is_file = self.ways.of(setting.knob()).is_some();
                let is_share = matches!(setting.knob(), Knob::L3Cache | Knob::MemoryBandwidth);
                let is_other = matches!(setting.knob(), Knob::EgressMax | Knob::OomScoreAdj);
                if !is_file && !is_share && !is_other {
                    return Err(Refusal::Unsupported);
                }
                if let Some(why) = knobs::nonsense(setting) {
                    return Err(Refusal::Failed(format!("{app}: {why}")));
                }
                if !self.entries.contains_key(app) {
                    return Err(Refusal::Failed(format!(
                        "write {setting} of {app}: no such app is known"
                    )));
                }
                self.find_bound_group(app);
                // Programs of BPF stand beside a manager's own.
                if is_file && self.asks_owner(app, setting.knob()) {
                    self.prepare_owned(app, setting)?;
                    return Ok(None);
                }
                self.announce_group(app)?;
                if is_file {
                    self.announce_setting(app, setting.knob())?;
                } else if is_share {
                    self.announce_shares(app)?;
                } else if let Setting::OomScoreAdj(value) = setting {
                    self.announce_oom(app, *value)?;
                }
                Ok(None)
            }
            Action::Freeze { app } | Action::Thaw { app } => {
                self.announce_freezer(app)?;
                Ok(None)
            }
            Action::Interrupts { keep_off } => {
                self.announce_interrupts(keep_off)?;
                Ok(None)
            }
            Action::WatchMemory { apps } => {
                self.announce_watching(apps)?;
                Ok(None)
            }
            Action::CostModel { device, model } => {
                if model.is_some() {
                    self.announce_cost_model(*device)?;
                }
                Ok(None)
            }
            Action::Reclaim { app, .. } => {
                self.announce_reclaim(app)?;
                Ok(None)
            }
            Action::Release { .. } | Action::Kill { .. } | Action::Compact => Ok(None),
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
        let known = |record: &AppRecord| record.moved.contains_key(&process);
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
            from.extend(dir.filter(|dir| !groups::is_ours(&hierarchy.dir(ours), dir)));
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
                device: knob.device(),
            }));
        }
        self.announce_originals(app, spots)?;
        Ok(())
    }

    /// Records what these places hold, where it is not known yet.
    pub(crate) fn announce_originals(
        &mut self,
        app: &AppId,
        spots: Vec<Spot>,
    ) -> Result<(), HostError> {
        for spot in spots {
            let known = self
                .ledger
                .state()
                .apps
                .get(app)
                .is_some_and(|record| record.originals.iter().any(|(known, _)| *known == spot));
            if !known {
                let mut host = self.ledger.state().host.iter();
                let text = match host.find(|(known, _)| *known == spot) {
                    Some((_, text)) => text.clone(),
                    None => read_spot(&spot)?,
                };
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
                Some(program) => {
                    self.have_address(app)?;
                    self.start(app, &program)
                }
                None => Err(Refusal::Unsupported),
            },
            Action::Succeed { app } => match program {
                Some(program) => self.succeed(&app.id, &program),
                None => Err(Refusal::Unsupported),
            },
            Action::Adopt {
                app,
                pid,
                start_time,
            } => self.adopt_process(
                app,
                Process {
                    pid: *pid,
                    start_time: *start_time,
                },
            ),
            Action::Enter { app, pids } => self.enter(app, pids),
            Action::Set { app, setting } => self.set(app, setting),
            Action::Reclaim { app, bytes } => self.reclaim(app, *bytes),
            Action::Compact => self.compact(),
            Action::Release { app } => self.release(app),
            Action::Freeze { app } => self.freeze(app),
            Action::Thaw { app } => self.thaw(app),
            Action::Kill { app } => self.kill(app),
            Action::Interrupts { keep_off } => self.move_interrupts(keep_off),
            Action::CostModel { device, model } => self.set_cost_model(*device, model.as_ref()),
            Action::WatchMemory { apps } => self.watch_memory(apps),
        }
    }

    /// Has an app's address be here before its program, which may listen on it.
    fn have_address(&self, app: &App) -> Result<(), Refusal> {
        let Some(address) = app.mobility.as_ref().and_then(|m| m.address.as_ref()) else {
            return Ok(());
        };
        self.addresses().answer(&app.id, address)?;
        Ok(())
    }

    fn addresses(&self) -> Addresses {
        Addresses::new(&self.options.state_dir, self.options.roots.clone())
    }

    /// Makes an app's group where it is missing.
    pub(crate) fn ensure_group(&mut self, app: &AppId) -> Result<(), HostError> {
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
        // Announced already, unless the group vanished within this batch.
        self.announce_group(app)?;
        self.ledger.sync()?;
        let dirs = self.own_dirs(app);
        for (hierarchy, dir) in self.hierarchies.list().iter().zip(&dirs) {
            if let Some(dir) = dir {
                groups::make(hierarchy, dir)?;
            }
        }
        let mut group = self.open_group(dirs);
        let entry = self.entries.entry(app.clone()).or_default();
        group.unreported = std::mem::take(&mut entry.lost_group);
        entry.group = Some(group);
        entry.released = false;
        Ok(())
    }

    pub(crate) fn enter(&mut self, app: &AppId, pids: &[u32]) -> Result<(), Refusal> {
        self.ensure_group(app)?;
        self.open_nodes(app, pids)?;
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
        if self.asks_owner(app, setting.knob()) && self.ways.of(setting.knob()).is_some() {
            return self.set_owned(app, setting);
        }
        self.ensure_group(app)?;
        if setting.knob() == Knob::MemoryMax && self.holds_limit(app) {
            return Err(Refusal::Failed(format!(
                "{} of {app}: it is lowered for a moment to reclaim memory; tried again",
                setting.knob()
            )));
        }
        match setting {
            Setting::CpuWeight(weight) => {
                if let Some(entry) = self.entries.get_mut(app) {
                    entry.weight = Some(*weight);
                }
                let wrote = self.write_knob(app, setting);
                // The kernel takes no weight while the group is idle: it is written when
                // that ends.
                if wrote.is_err() && self.is_idle(app) {
                    return Ok(());
                }
                wrote
            }
            Setting::CpuIdle(idle) => {
                self.write_knob(app, setting)?;
                let weight = self.entries.get_mut(app).and_then(|entry| {
                    entry.idle = *idle;
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
            Setting::Mems(nodes) => self.set_mems(app, *nodes),
            Setting::OomScoreAdj(value) => self.set_oom(app, *value),
            Setting::EgressMax(rate) => self.bound_egress(app, *rate),
            Setting::L3Cache(_) | Setting::MemoryBandwidth(_) => self.set_share(app, setting),
            Setting::CpusPartition(partition) if *partition != Partition::Member => {
                self.make_partition(app, *partition)
            }
            _ => self.write_knob(app, setting),
        }
    }

    /// Nothing of this outlives the daemon, so nothing of it is in the ledger.
    fn bound_egress(&mut self, app: &AppId, rate: Limit<Rate>) -> Result<(), Refusal> {
        let group = self.entries.get(app).and_then(|entry| entry.group.as_ref());
        let meter = group.and_then(|group| group.network.as_ref());
        let meter = meter.ok_or(Refusal::Unsupported)?;
        Ok(meter.bound(rate)?)
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

    pub(crate) fn write_knob(&mut self, app: &AppId, setting: &Setting) -> Result<(), Refusal> {
        let knob = setting.knob();
        let (Some(way), Some(entry)) = (self.ways.of(knob).cloned(), self.entries.get_mut(app))
        else {
            return Err(Refusal::Unsupported);
        };
        let dir = entry
            .group
            .as_ref()
            .and_then(|group| group.dir(way.hierarchy))
            .map(Path::to_path_buf);
        let Some(dir) = dir else {
            return Err(Refusal::Unsupported);
        };
        let is_ours = entry.bound.is_none();
        let used = match knob {
            Knob::MemoryHigh | Knob::MemoryMax => entry
                .group
                .as_ref()
                .and_then(|group| group.meters.memory_used()),
            _ => None,
        };
        let texts = knobs::texts(setting, &way, period_us(&way, &dir));
        let mut now = Vec::new();
        for (file, text) in way.files.iter().zip(texts) {
            let spot = Spot {
                file: dir.join(file),
                device: knob.device(),
            };
            // Groups of ours go as a whole: only those of others need their knobs known.
            if !is_ours {
                self.ledger.append(Record::Wrote {
                    spot: spot.clone(),
                    text: text.clone(),
                })?;
            }
            // The kernel brings pages along that are still elsewhere.
            let may_block = knob == Knob::Mems && self.topology.nodes().len() > 1
                || used.is_some_and(|used| reclaims(setting, used));
            let wrote = if may_block || self.slow.is_busy(&spot.file) {
                match self.slow.write(&spot.file, &text) {
                    Progress::Done => Ok(()),
                    Progress::Failed(error) => Err(error),
                    Progress::Pending => {
                        // What it holds meanwhile is neither ours nor foreign.
                        entry.last.remove(&knob);
                        if knob == Knob::Mems {
                            return Err(Refusal::Pending);
                        }
                        return Err(Refusal::Failed(format!(
                            "{knob} of {app}: the kernel is still making room"
                        )));
                    }
                }
            } else {
                write_text(&spot.file, &text)
            };
            if let Err(mut error) = wrote {
                if error.is_gone() && !dir.is_dir() {
                    entry.lose_group();
                } else if error.is_gone() && lifts_a_devices_limit(setting) {
                    // It went with the device.
                    entry.last.remove(&knob);
                    return Ok(());
                } else if let (true, Some(device)) = (error.is_gone(), spot.device) {
                    // The kernel says the same of a group and of a device that is gone.
                    error = error.advise(format!(
                        "there is no block device {device} now: calibrate what took its place, or \
                         take it out of the configuration"
                    ));
                }
                return Err(Refusal::Failed(format!(
                    "{knob} of {app}: {}",
                    error.explain()
                )));
            }
            let held = read_spot(&spot)?;
            if !is_ours && held != text {
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

    /// Whether the memory limit of an app is not its own for a moment.
    pub(crate) fn holds_limit(&self, app: &AppId) -> bool {
        self.reclaim_way
            .is_some_and(|way| way.means == Means::Limit)
            && self.reclaimer.is_running(app)
    }

    /// The directory in which an app's memory is reclaimed.
    fn reclaim_dir(&self, app: &AppId) -> Result<(Means, PathBuf), Refusal> {
        let way = self.reclaim_way.ok_or(Refusal::Unsupported)?;
        let Some(entry) = self.entries.get(app) else {
            return Err(Refusal::Failed(format!(
                "reclaim memory of {app}: no such app is known"
            )));
        };
        let Some(group) = &entry.group else {
            return Err(Refusal::Failed(format!(
                "reclaim memory of {app}: it has no control group yet"
            )));
        };
        let dir = group.dir(way.hierarchy).ok_or(Refusal::Unsupported)?;
        Ok((way.means, dir.to_path_buf()))
    }

    /// Records the limit of a group that is not ours, where that has to be lowered.
    fn announce_reclaim(&mut self, app: &AppId) -> Result<(), Refusal> {
        self.find_bound_group(app);
        let (means, dir) = self.reclaim_dir(app)?;
        let is_ours = self
            .entries
            .get(app)
            .is_none_or(|entry| entry.bound.is_none());
        if means == Means::Limit && !is_ours {
            let file = dir.join(reclaim::LIMIT_FILE);
            self.announce_originals(app, vec![Spot { file, device: None }])?;
        }
        Ok(())
    }

    fn reclaim(&mut self, app: &AppId, bytes: Bytes) -> Result<(), Refusal> {
        let (means, dir) = self.reclaim_dir(app)?;
        if means == Means::Reclaim {
            return Ok(self.reclaimer.start(app, &dir, bytes.0)?);
        }
        let lowering = Lowering::of(&dir, bytes.0)?;
        if self.slow.is_busy(&lowering.file) {
            return Err(Refusal::Failed(format!(
                "reclaim memory of {app}: its limit is being written; tried again"
            )));
        }
        // Both texts that may be found after a crash.
        for text in [&lowering.target, &lowering.original] {
            self.ledger.append(Record::Wrote {
                spot: Spot {
                    file: lowering.file.clone(),
                    device: None,
                },
                text: text.clone(),
            })?;
        }
        self.ledger.sync()?;
        Ok(self.reclaimer.lower(app, lowering)?)
    }

    fn release(&mut self, app: &AppId) -> Result<(), Refusal> {
        let way = self.reclaim_way.map(|way| way.means);
        if !self.reclaimer.cancel(app) && way == Some(Means::Limit) {
            return Err(Refusal::Failed(format!(
                "release {app}: its memory limit is lowered for a moment; tried again"
            )));
        }
        self.pages.cancel(app);
        self.return_owned(app)?;
        let proc_root = self.options.roots.proc.clone();
        if let Some(entry) = self.entries.get_mut(app) {
            entry.lose_group();
            entry.lost_group = false;
        }
        let release = Release {
            app,
            fate: Fate::Keep,
            deadline: Instant::now() + RELEASE_PATIENCE,
        };
        let report = restore::release_app(
            &mut self.ledger,
            &self.hierarchies,
            &proc_root,
            &release,
            &mut Managers::default(),
        )?;
        for foreign in &report.foreign {
            tracing::warn!(%app, knob = foreign, "left alone: somebody else wrote it");
        }
        if !report.is_complete() {
            return Err(Refusal::Failed(report.failed.join("; ")));
        }
        self.addresses().leave(app)?;
        let kept = self
            .ledger
            .state()
            .apps
            .get(app)
            .map(|record| record.kept.clone());
        if let Some(entry) = self.entries.get_mut(app) {
            entry.kept = kept.unwrap_or_default();
            entry.released = true;
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
        self.give_up_beginning(app);
        Ok(())
    }
}

fn error_on(action: &Action, error: &HostError) -> Refusal {
    Refusal::Failed(format!("{action}: {}", error.explain()))
}

/// Whether a setting takes what there is of limits of one device away.
fn lifts_a_devices_limit(setting: &Setting) -> bool {
    match setting {
        Setting::IoMax(_, max) => *max == IoMax::NONE,
        Setting::IoLatency(_, target) => *target == Limit::Max,
        _ => false,
    }
}

/// Whether the kernel has to make room first when this limit is written.
fn reclaims(setting: &Setting, used: u64) -> bool {
    match setting {
        Setting::MemoryHigh(Limit::At(limit)) | Setting::MemoryMax(Limit::At(limit)) => {
            limit.0 < used.saturating_add(MEMORY_MARGIN)
        }
        _ => false,
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
