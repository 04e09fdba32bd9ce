//! Looking at the host and the apps.
//!
//! Cheap files are read every period, through descriptors that stay open. What costs more, or
//! changes slowly, is read in one period of ten; apps take turns, so that no period is heavier
//! than another.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use forebay_core::app::{App, AppId, Binding, Class};
use forebay_core::host::Watch;
use forebay_core::slice::{Knob, Setting, Slice};
use forebay_core::snapshot::{AppSample, Gap, RunState, Snapshot};
use forebay_core::units::Limit;

use crate::app_meters::{Due, Found, is_populated, read_meters};
use crate::apply::period_us;
use crate::files::read_text;
use crate::groups;
use crate::host::{Entry, Group, LinuxHost};
use crate::knobs::{self, Way, Ways};
use crate::limits;
use crate::partition;
use crate::procs;
use crate::supervise;
use crate::topology::read_topology;

/// Periods in a full rotation.
const ROTATION: u64 = 10;
/// Periods between two looks at every interrupt that was moved, and at who else uses DAMON.
const OTHERS_ROTATION: u64 = 50;
/// Periods between two scans for processes of `match` apps.
const SCAN_EVERY: u64 = 5;

impl LinuxHost {
    /// Looks at the host and at every app asked for.
    pub(crate) fn look(&mut self, watch: &Watch<'_>) -> Snapshot {
        self.notice_endings();
        self.hear_owners();
        if watch.period.is_multiple_of(ROTATION) {
            let mains: Vec<u32> = self
                .entries
                .values()
                .filter_map(|entry| Some(entry.main.as_ref()?.process.pid))
                .collect();
            supervise::reap_orphans(&self.options.roots.proc, &self.options.group, &mains);
            self.follow_cpus();
        }
        self.scan_when_due(watch);
        let mut host = self.look_at_host();
        if let Some(compactor) = &mut self.compactor {
            host.compaction = if compactor.is_due(watch.period) {
                compactor.look(&mut self.buffer)
            } else {
                Err(Gap::NotDue)
            };
        }
        if let Some(interrupts) = &mut self.interrupts {
            let thorough = watch.period.is_multiple_of(OTHERS_ROTATION);
            host.interrupts = Ok(interrupts.look(thorough));
        }
        if let Some(costs) = &mut self.costs {
            if watch.period.is_multiple_of(ROTATION) {
                costs.look(self.ledger.state(), &self.options.roots);
            }
            host.cost_models = Ok(costs.seen());
        }
        let thorough = watch.period.is_multiple_of(OTHERS_ROTATION);
        if thorough {
            self.counting.follow(&self.options.roots.sys);
        }
        host.memory_watch = self.look_at_memory_watch(watch.time, thorough);
        let mut apps = BTreeMap::new();
        for (index, (id, app)) in (0u64..).zip(watch.apps) {
            let turn = (watch.period + index) % ROTATION;
            if turn == 4 {
                self.follow_shares(id);
            }
            let mut sample = self.look_at_app(app, turn, watch.in_force.get(id));
            self.look_at_owner(id, watch.period + index);
            self.tell_of_owner(id, &mut sample);
            if let Some(damon) = &self.damon {
                sample.touched = damon.of(id, watch.time);
            }
            apps.insert(id.clone(), sample);
        }
        Snapshot {
            time: watch.time,
            host,
            apps,
        }
    }

    /// Sees which started programs ended. All are asked, also those not looked at, so that
    /// none stays a zombie.
    fn notice_endings(&mut self) {
        let (mut endings, mut restored, mut resumed) = (Vec::new(), Vec::new(), Vec::new());
        for (id, entry) in &mut self.entries {
            if entry
                .before
                .as_ref()
                .is_some_and(|before| before.ended().is_some())
            {
                entry.before = None;
            }
            if let Some(ending) = entry.main.as_ref().and_then(|main| main.ended()) {
                if let Some(restoring) = entry.restoring.take() {
                    entry.main = None;
                    restored.push((id.clone(), restoring.image, ending));
                    continue;
                }
                entry.main = entry.before.take();
                if let Some(main) = &entry.main {
                    tracing::warn!(app = %id, ?ending, pid = main.process.pid,
                        "its successor ended; the program before it goes on");
                    resumed.push((id.clone(), main.process));
                    continue;
                }
                entry.ended = Some(ending);
                endings.push((id.clone(), ending));
            }
        }
        for (id, entry) in &self.entries {
            if let Some(restoring) = &entry.restoring {
                self.bound_restore(id, restoring);
            }
        }
        for (id, image, ending) in restored {
            self.settle_restore(&id, &image, ending);
        }
        for (app, process) in resumed {
            self.note_resumed(&app, process);
        }
        for (id, ending) in endings {
            self.judge_trial(&id, ending);
            self.note_ending(&id, ending);
        }
    }

    /// Reads the topology anew when CPUs came or went.
    fn follow_cpus(&mut self) {
        let Some(Ok(text)) = self
            .online
            .as_ref()
            .map(|online| online.read(&mut self.buffer))
        else {
            return;
        };
        if text == self.online_text {
            return;
        }
        let first = self.online_text.is_empty();
        self.online_text = text.to_owned();
        if first {
            return;
        }
        let roots = &self.options.roots;
        let taken = partition::taken(self.ledger.state());
        match read_topology(&roots.proc, &roots.sys, &taken) {
            Ok(topology) => {
                tracing::info!(cpus = %topology.cpu_set(), "CPUs came or went");
                self.topology = topology;
            }
            Err(error) => tracing::warn!(reason = error.explain(), "topology not read again"),
        }
        // v1 takes a CPU that goes out of every set, and does not put it back.
        for (hierarchy, dir) in self
            .hierarchies
            .list()
            .iter()
            .map(|hierarchy| (hierarchy, hierarchy.dir(&self.options.group)))
        {
            if let Err(error) = groups::follow_parent(hierarchy, &dir) {
                tracing::warn!(reason = error.explain(), "new CPUs stay unused");
            }
        }
    }

    fn scan_when_due(&mut self, watch: &Watch<'_>) {
        if !watch.period.is_multiple_of(SCAN_EVERY) {
            return;
        }
        let rules: Vec<_> = watch
            .apps
            .iter()
            .filter_map(|(id, app)| match &app.binding {
                Binding::Match(rule) => Some((id, rule)),
                _ => None,
            })
            .collect();
        if !rules.is_empty() {
            let proc_root = &self.options.roots.proc;
            self.scanner
                .scan(proc_root, &rules, &[1, std::process::id()]);
        }
    }

    fn look_at_app(&mut self, app: &App, turn: u64, in_force: Option<&Slice>) -> AppSample {
        self.bind(app);
        self.find_bound_group(&app.id);
        let mut sample = AppSample::absent();
        let proc_root = self.options.roots.proc.clone();
        let holds_limit = self.holds_limit(&app.id);
        let mut buffer = std::mem::take(&mut self.buffer);
        let Some(entry) = self.entries.get_mut(&app.id) else {
            return sample;
        };
        let mut populated = false;
        if let Some(group) = &mut entry.group {
            let first = std::mem::take(&mut group.unreported);
            let throttle = in_force.is_some_and(|slice| {
                matches!(slice.get(Knob::CpuMax), Some(Setting::CpuMax(Limit::At(_))))
            });
            let due = Due {
                throttled: throttle || turn == 0 || first,
                memory: turn == 0 || first,
                io: turn == 2 || first || app.class == Class::Critical || group.is_busy_on_disk,
                memory_stat: turn == 8 || first,
                processes: turn == 4 || first,
                traffic: turn == 7 || first,
                waits: turn == 2 || first,
            };
            let found = read_meters(&mut group.meters, &due, &mut buffer, &mut sample);
            if let Ok(counters) = &sample.io {
                group.is_busy_on_disk = *counters != group.disk_counters;
                group.disk_counters.clone_from(counters);
            }
            sample.traffic = match &group.network {
                Some(_) if !due.traffic => Err(Gap::NotDue),
                Some(meter) => meter.read().map_err(|error| Gap::Failed(error.explain())),
                None => Err(Gap::Unsupported),
            };
            // What Forebay started is known by its process.
            populated = !matches!(app.binding, Binding::Exec(_))
                && is_populated(&group.meters, &mut buffer);
            if first {
                sample.found = found_settings(&self.ways, group, app, &mut entry.last);
                let record = self.ledger.state().apps.get(&app.id);
                let value = record.and_then(|record| Some(record.oom_scores.last()?.1));
                sample.found.push(Setting::OomScoreAdj(value.unwrap_or(0)));
                let owned = self.ledger.state().owned.originals(&app.id);
                sample.before = limits::before(&self.ways, group, app, record, &owned);
                for setting in &sample.found {
                    match setting {
                        Setting::CpuWeight(weight) => entry.weight = Some(*weight),
                        Setting::CpuIdle(idle) => entry.idle = *idle,
                        _ => {}
                    }
                }
            }
            if turn == 5
                && let Some(Setting::OomScoreAdj(value)) =
                    in_force.and_then(|slice| slice.get(Knob::OomScoreAdj))
                && entry.oom.is_exposed(&proc_root, group, *value)
            {
                sample.unsettled.insert(Knob::OomScoreAdj);
            }
            if entry.pages_unsettled {
                sample.unsettled.insert(Knob::Mems);
            }
            if (turn == 6 || first)
                && let Some(in_force) = in_force
            {
                sample.foreign = group.knob_files.written_since(
                    &self.ways,
                    &group.dirs,
                    &entry.last,
                    in_force,
                    &mut buffer,
                );
                let roots = &self.options.roots;
                sample.foreign.retain(|knob, _| {
                    let stays = knob.device().is_none_or(|device| roots.has_device(device));
                    if !stays {
                        // Setting it again says what is the matter, until the device is back.
                        sample.unsettled.insert(*knob);
                    }
                    stays
                });
                if holds_limit {
                    sample.foreign.remove(&Knob::MemoryMax);
                }
            }
            if found == Found::Gone {
                entry.lose_group();
                sample = AppSample::absent();
                populated = false;
            }
        }
        self.buffer = buffer;
        sample.reclaim = self.reclaimer.of(&app.id);
        sample.page_move = self.pages.of(&app.id);
        // What begins it is not it.
        let main = entry.main.as_ref().filter(|_| entry.restoring.is_none());
        sample.main_pid = main.map(|main| main.process.pid);
        sample.state = run_state(entry, &app.binding, populated);
        sample.strays = match &app.binding {
            Binding::Exec(_) if entry.kept.is_empty() => BTreeSet::new(),
            Binding::Exec(_) => {
                let all = procs::families(&proc_root, &entry.kept);
                let outside = outside_of(entry.group.as_ref(), all);
                if outside.is_empty() {
                    // All are in, or gone: what comes after is born inside.
                    entry.kept.clear();
                }
                outside
            }
            Binding::Match(_) => {
                outside_of(entry.group.as_ref(), self.scanner.of(&app.id).collect())
            }
            Binding::Cgroup(_) | Binding::Systemd(_) | Binding::Container(_) => BTreeSet::new(),
        };
        if matches!(app.binding, Binding::Match(_)) && !sample.strays.is_empty() {
            sample.state = RunState::Running;
        }
        sample
    }

    /// Opens the group that an app is bound to, once it is there.
    pub(crate) fn find_bound_group(&mut self, app: &AppId) {
        let missing = self
            .entries
            .get(app)
            .filter(|entry| entry.group.is_none())
            .and_then(|entry| entry.bound.clone());
        let Some(path) = missing else { return };
        let group = self.bound_group(&path);
        if let Some(entry) = self.entries.get_mut(app) {
            entry.group = group;
        }
    }
}

fn run_state(entry: &Entry, binding: &Binding, populated: bool) -> RunState {
    match binding {
        Binding::Exec(_) if entry.is_begun() => RunState::Running,
        Binding::Exec(_) => entry.ended.map_or(RunState::Absent, RunState::Ended),
        _ if populated => RunState::Running,
        Binding::Cgroup(_) | Binding::Match(_) | Binding::Systemd(_) | Binding::Container(_) => {
            RunState::Absent
        }
    }
}

/// Those of the processes given that are not in the group, in some hierarchy.
fn outside_of(group: Option<&Group>, mut pids: Vec<u32>) -> BTreeSet<u32> {
    if let Some(group) = group
        && !pids.is_empty()
        && let Some(dir) = group.all_dirs().last()
    {
        let inside = groups::members(dir);
        pids.retain(|pid| !inside.contains(pid));
    }
    pids.into_iter().collect()
}

/// The settings in force in a group that was there before, and what its files hold.
fn found_settings(
    ways: &Ways,
    group: &Group,
    app: &App,
    last: &mut BTreeMap<Knob, Vec<String>>,
) -> Vec<Setting> {
    let devices = limits::of_devices(ways, group, app).into_iter();
    let devices = devices.filter_map(|knob| Some((knob, ways.of(knob)?)));
    let mut found = Vec::new();
    for (knob, way) in ways.knobs().chain(devices) {
        let Some((texts, period)) = read_knob(group, knob, way) else {
            continue;
        };
        found.extend(
            knobs::parse(knob, way, &texts, period).or_else(|| inherited(group, knob, way, period)),
        );
        last.insert(knob, texts);
    }
    // The weight of an idle group is the kernel's, not what anybody asked for.
    if found.contains(&Setting::CpuIdle(true)) {
        found.retain(|setting| setting.knob() != Knob::CpuWeight);
        last.remove(&Knob::CpuWeight);
    }
    found
}

/// The CPUs or nodes of a v2 group in which none were set: those of its parent.
fn inherited(group: &Group, knob: Knob, way: &Way, period: u64) -> Option<Setting> {
    if !matches!(knob, Knob::Cpus | Knob::Mems) {
        return None;
    }
    let file = format!("{}.effective", way.files.first()?);
    let text = read_text(&group.dir(way.hierarchy)?.join(file)).ok()?;
    knobs::parse(knob, way, &[text.trim().to_owned()], period)
}

/// What a knob's files hold, and the period of the quota.
pub(crate) fn read_knob(group: &Group, knob: Knob, way: &Way) -> Option<(Vec<String>, u64)> {
    read_files(group.dir(way.hierarchy)?, knob, way)
}

/// What a knob's files hold in a directory, and the period of the quota.
pub(crate) fn read_files(dir: &Path, knob: Knob, way: &Way) -> Option<(Vec<String>, u64)> {
    let texts: Option<Vec<String>> = way
        .files
        .iter()
        .map(|file| {
            let text = read_text(&dir.join(file)).ok()?;
            Some(knobs::cut(file, knob.device(), &text))
        })
        .collect();
    Some((texts?, period_us(way, dir)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app_meters::Meters;
    use crate::fixtures::{self, DEBIAN_11_V1, DEBIAN_12, DEBIAN_13, DEVICE, HYBRID, Tree};
    use forebay_core::app::IoMax;
    use forebay_core::units::{Bytes, MilliCpu};

    #[test]
    fn the_slice_in_force_is_found_on_every_kernel() {
        let check = |fixture: &str, expected: &[Setting], lacking: &[Knob]| {
            let tree = Tree::unpack(fixture);
            let dirs = tree.dirs();
            let ways = Ways::probe(&tree.hierarchies, |index| dirs.get(index)?.as_deref());
            let meters = Meters::open(&tree.hierarchies, &dirs);
            let group = Group::new(dirs.clone(), meters);
            let app = fixtures::app();
            let found = found_settings(&ways, &group, &app, &mut BTreeMap::new());
            for setting in expected {
                assert!(found.contains(setting), "{setting} is not in {found:?}");
            }
            for knob in lacking {
                assert!(ways.of(*knob).is_none(), "{knob} is said to be offered");
            }
        };
        let common = [
            Setting::CpuWeight(200),
            Setting::CpuMax(Limit::At(MilliCpu(500))),
            Setting::MemoryMax(Limit::At(Bytes::mib(256))),
            Setting::MemoryHigh(Limit::Max),
            Setting::PidsMax(Limit::At(64)),
        ];
        let with = |more: &[Setting]| [&common, more].concat();
        let cpus = |text: &str| Setting::Cpus(text.parse().unwrap());
        let mems = |text: &str| Setting::Mems(text.parse().unwrap());
        check(
            DEBIAN_12,
            // None of its own: those of the parent are in force.
            &with(&[cpus("0-3"), mems("0"), Setting::IoWeight(100)]),
            &[],
        );
        check(
            DEBIAN_13,
            &with(&[
                cpus("1"),
                mems("0-1"),
                Setting::MemoryLow(Bytes::mib(64)),
                Setting::IoWeight(150),
                Setting::IoMax(
                    DEVICE,
                    IoMax {
                        rbps: Limit::At(1 << 20),
                        ..IoMax::NONE
                    },
                ),
            ]),
            &[],
        );
        check(
            HYBRID,
            &with(&[
                cpus("0-1"),
                mems("0"),
                Setting::CpuIdle(false),
                Setting::IoWeight(100),
            ]),
            &[Knob::MemoryMin, Knob::MemoryLow],
        );
        check(
            DEBIAN_11_V1,
            &with(&[cpus("0-1,4"), mems("0")]),
            &[
                Knob::CpuIdle,
                Knob::CpuBurst,
                Knob::MemoryLow,
                Knob::IoWeight,
            ],
        );
    }
}
