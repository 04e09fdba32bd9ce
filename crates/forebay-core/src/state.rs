//! What the control loop knows between periods.
//!
//! Everything here can be lost: a daemon that starts anew observes again and finds the slices
//! in force. Nothing here is shared with another thread.

mod costs;
mod offload;
mod settle;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::app::{App, AppId, Class, IoMax, Partition};
use crate::demand::{Demand, History, Prior};
use crate::host::{Action, Host, Outcome, Watch};
use crate::plan::{self, Plan, cpu, lack};
use crate::report::{AppReport, Event, EventKind, TickReport};
use crate::slice::{Knob, Setting, Slice};
use crate::snapshot::{AppSample, Gap, RunState, Snapshot};
use crate::steps::Steps;
use crate::supervise::{Home, Lives, Verdict};
use crate::tick::Inputs;
use crate::units::{Limit, Time, Utilization};

/// Events kept for those who ask later.
const EVENTS_MAX: usize = 1000;
/// A knob whose write failed is tried again after this, doubling up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest wait before a failed write is tried again.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What the control loop knows between periods.
#[derive(Debug, Clone, Default)]
pub struct State {
    period: u64,
    apps: BTreeMap<AppId, Known>,
    /// What is in force, by app; also what the host compares with to notice others.
    in_force: BTreeMap<AppId, Slice>,
    planner: plan::Memory,
    shortfalls: Vec<plan::Shortfall>,
    interrupts: Interrupts,
    costs: costs::Costs,
    watching: watch::Watching,
    events: VecDeque<Event>,
    fresh: Vec<Event>,
    host_memory: plan::HostMemory,
    /// Whether memory was missing that nobody could give, to say it once.
    unmet: bool,
}

/// What is known of one app.
#[derive(Debug, Clone)]
struct Known {
    history: History,
    lives: Lives,
    state: RunState,
    /// Knobs that somebody else writes, or that the host cannot do for this app.
    yielded: BTreeSet<Knob>,
    /// Knobs that are on their way to what was asked for, so that what they hold is not certain.
    pending: BTreeSet<Knob>,
    /// Knobs in force that do not yet hold for all processes.
    unsettled: BTreeSet<Knob>,
    retries: BTreeMap<Knob, Retry>,
    release: Option<Retry>,
    /// Whether this daemon made its group a partition, which others may have done as well.
    partitioned: bool,
    verdict: Verdict,
    /// What stood between Forebay and the owner of its group last time.
    troubles: BTreeSet<String>,
    /// Knobs that it does without, of which the user was told.
    told_lacks: BTreeSet<Knob>,
}

/// What is known of the interrupts of devices.
#[derive(Debug, Clone, Default)]
struct Interrupts {
    retry: Option<Retry>,
    /// This host does not move them.
    unsupported: bool,
}

/// Whether it was the kernel that took a partition back, and nobody who wrote.
fn is_lost(knob: Knob, value: &str) -> bool {
    knob == Knob::CpusPartition && value.contains("invalid")
}

/// What ends a setting that left the plan; others stay as they are.
fn lifted(setting: &Setting, app: &App, known: &Known, before: Option<&Slice>) -> Option<Setting> {
    let back_to = |nothing: Setting| {
        let before = before.and_then(|before| before.get(setting.knob()));
        let before = *before.unwrap_or(&nothing);
        (*setting != before).then_some(before)
    };
    match setting {
        Setting::IoMax(device, _) => back_to(Setting::IoMax(*device, IoMax::NONE)),
        Setting::IoLatency(device, _) => back_to(Setting::IoLatency(*device, Limit::Max)),
        Setting::CpuUclampMin(_) => back_to(Setting::CpuUclampMin(Utilization(0))),
        Setting::CpuUclampMax(_) => back_to(Setting::CpuUclampMax(Utilization::FULL)),
        Setting::L3Cache(percent) if *percent < 100 => Some(Setting::L3Cache(100)),
        Setting::MemoryBandwidth(percent) if *percent < 100 => Some(Setting::MemoryBandwidth(100)),
        Setting::OomScoreAdj(value) if *value != 0 => Some(Setting::OomScoreAdj(0)),
        // What was a partition before Forebay came stays one.
        Setting::CpusPartition(Partition::Root | Partition::Isolated)
            if known.partitioned || !app.binding.is_of_others() =>
        {
            Some(Setting::CpusPartition(Partition::Member))
        }
        _ => None,
    }
}

#[derive(Debug, Clone, Copy)]
struct Retry {
    delay: Duration,
    due_at: Duration,
}

impl State {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What to look at in this period.
    #[must_use]
    pub fn watch<'a>(&'a self, inputs: &'a Inputs<'_>) -> Watch<'a> {
        Watch {
            time: inputs.time,
            period: self.period,
            apps: &inputs.policy.apps,
            in_force: &self.in_force,
        }
    }

    /// Takes in what was seen: histories, adoptions, endings, other writers.
    pub fn record(&mut self, inputs: &Inputs<'_>, snapshot: &Snapshot) {
        self.period += 1;
        self.note_moved_interrupts(inputs.time, snapshot);
        self.record_cost_models(inputs.time, snapshot);
        self.record_watching(inputs, snapshot);
        self.host_memory = plan::HostMemory {
            available: snapshot.host.memory_available.as_ref().ok().copied(),
            swap_free: snapshot.host.swap_free.as_ref().ok().copied(),
            compaction: match &snapshot.host.compaction {
                Ok(compaction) => Some(*compaction),
                Err(Gap::NotDue) => self.host_memory.compaction,
                Err(Gap::Unsupported | Gap::Failed(_)) => None,
            },
        };
        for (id, sample) in &snapshot.apps {
            let Some(app) = inputs.policy.apps.get(id) else {
                continue;
            };
            let prior = match self.apps.contains_key(id) {
                true => None,
                false => self.prior(inputs, app.class),
            };
            let known = self.apps.entry(id.clone()).or_insert_with(|| Known {
                history: History::new(app, inputs.policy.period, prior),
                lives: Lives::default(),
                state: RunState::Absent,
                yielded: BTreeSet::new(),
                pending: BTreeSet::new(),
                unsettled: BTreeSet::new(),
                retries: BTreeMap::new(),
                release: None,
                partitioned: false,
                verdict: Verdict::Leave,
                troubles: BTreeSet::new(),
                told_lacks: BTreeSet::new(),
            });
            let told = (inputs.signals.of(id), inputs.signals.accelerator(id));
            known
                .history
                .record(inputs.time, sample, &inputs.policy.devices, told);
            known.unsettled.clone_from(&sample.unsettled);
            let home = match inputs.elsewhere.contains(id) {
                true => Home::Elsewhere,
                false => Home::Here,
            };
            known.verdict = known.lives.judge(inputs.time, app, &sample.state, home);
            let before = std::mem::replace(&mut known.state, sample.state.clone());
            // A partition that the kernel took back may be had again.
            let others = sample
                .foreign
                .iter()
                .filter(|(knob, v)| !is_lost(**knob, v));
            known.yielded.extend(others.map(|(knob, _)| *knob));

            self.adopt(id, app.class, sample, inputs.time);
            self.note_state(inputs.time, id, &before, sample);
            self.note_foreign(inputs.time, id, sample);
            self.note_troubles(inputs.time, id, sample);
        }
    }

    /// What apps of a class need that have run for a while.
    fn prior(&self, inputs: &Inputs<'_>, class: Class) -> Option<Prior> {
        let like = |id: &AppId| {
            inputs
                .policy
                .apps
                .get(id)
                .is_some_and(|app| app.class == class)
        };
        let others = self
            .apps
            .iter()
            .filter(|(id, known)| known.is_active() && like(id));
        Prior::of(others.filter_map(|(_, known)| known.history.typical()))
    }

    /// Starts from the slice that is in force already, when a daemon comes back.
    fn adopt(&mut self, id: &AppId, class: Class, sample: &AppSample, now: Time) {
        if sample.found.is_empty() {
            return;
        }
        let slice: Slice = sample.found.iter().copied().collect();
        if let (Class::Critical, Some(cpus)) = (class, slice.cpus()) {
            self.planner.cpus.entry(id.clone()).or_insert(cpu::Held {
                cpus,
                needed_at: now,
                found: true,
                beyond: 0,
                had_before: 0,
            });
        }
        self.planner
            .before
            .insert(id.clone(), sample.before.clone());
        self.in_force.insert(id.clone(), slice);
    }

    fn note_state(&mut self, time: Time, id: &AppId, before: &RunState, sample: &AppSample) {
        if *before == sample.state {
            return;
        }
        let (kind, message) = match &sample.state {
            RunState::Running => (EventKind::Appeared, "is running".to_owned()),
            RunState::Absent => (EventKind::Ended, "has no process left".to_owned()),
            RunState::Ended(ending) => (EventKind::Ended, format!("ended with {ending}")),
        };
        self.note(time, Some(id), kind, message);
    }

    fn note_foreign(&mut self, time: Time, id: &AppId, sample: &AppSample) {
        for (knob, value) in &sample.foreign {
            let in_force = self.in_force.entry(id.clone()).or_default();
            let Some(ours) = in_force.get(*knob).copied() else {
                let message =
                    format!("somebody set {knob} to `{value}`; left alone until the next reload");
                self.note(time, Some(id), EventKind::Foreign, message);
                continue;
            };
            in_force.forget(*knob);
            if is_lost(*knob, value) {
                let message = format!(
                    "{knob} is `{value}`, where Forebay had set {ours}: its CPUs are not taken \
                     from the rest of the host; tried again"
                );
                self.note(time, Some(id), EventKind::Failed, message);
                continue;
            }
            let message = format!(
                "somebody set {knob} to `{value}` where Forebay had set {ours}; left alone until the next reload"
            );
            self.note(time, Some(id), EventKind::Foreign, message);
        }
    }

    fn note_moved_interrupts(&mut self, time: Time, snapshot: &Snapshot) {
        let Ok(interrupts) = &snapshot.host.interrupts else {
            return;
        };
        if interrupts.foreign.is_empty() {
            return;
        }
        let numbers: Vec<String> = interrupts.foreign.iter().map(u32::to_string).collect();
        let message = format!(
            "somebody moved the interrupts {} after Forebay did (irqbalance does); left alone: \
             see /proc/irq",
            numbers.join(", ")
        );
        self.note(time, None, EventKind::Foreign, message);
    }

    /// Tells each trouble once, when it begins.
    fn note_troubles(&mut self, time: Time, id: &AppId, sample: &AppSample) {
        let Some(known) = self.apps.get_mut(id) else {
            return;
        };
        if known.troubles == sample.troubles {
            return;
        }
        let before = std::mem::replace(&mut known.troubles, sample.troubles.clone());
        for trouble in sample.troubles.difference(&before) {
            self.note(time, Some(id), EventKind::Failed, trouble.clone());
        }
    }

    /// What each active app will need.
    #[must_use]
    pub fn forecast(&self, inputs: &Inputs<'_>, snapshot: &Snapshot) -> BTreeMap<AppId, Demand> {
        snapshot
            .apps
            .keys()
            .filter_map(|id| Some((id, self.apps.get(id)?)))
            .filter(|(_, known)| known.is_active())
            .map(|(id, known)| (id.clone(), known.history.forecast(id, inputs)))
            .collect()
    }

    /// What the planner remembers.
    #[must_use]
    pub const fn planner(&self) -> &plan::Memory {
        &self.planner
    }

    /// What the host had in the latest period.
    #[must_use]
    pub const fn host_memory(&self) -> plan::HostMemory {
        self.host_memory
    }

    /// What has to be done to get to the plan, in order: put back what left the policy,
    /// shrink, grow, ask for memory, gather stray processes, start programs.
    #[must_use]
    pub fn actions(&self, inputs: &Inputs<'_>, plan: &Plan, snapshot: &Snapshot) -> Vec<Action> {
        if inputs.paused {
            return Vec::new();
        }
        // Also those without a knob in force: their group may be there, with processes in it.
        let known: BTreeSet<&AppId> = self.in_force.keys().chain(self.apps.keys()).collect();
        let mut actions: Vec<Action> = known
            .into_iter()
            .filter(|id| !inputs.policy.apps.contains_key(id))
            .filter(|id| {
                let retry = self.apps.get(id).and_then(|known| known.release);
                retry.is_none_or(|retry| retry.is_due(inputs.time))
            })
            .map(|id| Action::Release { app: id.clone() })
            .collect();
        actions.extend(self.settings(inputs, plan));
        actions.extend(self.move_interrupts(inputs, plan, snapshot));
        actions.extend(self.set_cost_models(inputs, plan, snapshot));
        actions.extend(self.watch_memory(inputs, plan, snapshot));
        let asks = plan.give_back.asks.iter().chain(&plan.saves);
        let asks = asks.map(|(app, bytes)| (app, *bytes));
        let offload = plan.offload.asks();
        actions.extend(asks.chain(offload).map(|(app, bytes)| Action::Reclaim {
            app: app.clone(),
            bytes,
        }));
        actions.extend(plan.offload.compacts().then_some(Action::Compact));
        for (id, sample) in &snapshot.apps {
            if !sample.strays.is_empty() && plan.slices.contains_key(id) {
                actions.push(Action::Enter {
                    app: id.clone(),
                    pids: sample.strays.iter().copied().collect(),
                });
            }
        }
        actions.extend(
            self.apps
                .iter()
                .filter(|(_, known)| known.verdict == Verdict::Start)
                .filter_map(|(id, _)| inputs.policy.apps.get(id))
                .map(|app| Action::Start {
                    app: app.clone().into(),
                }),
        );
        actions
    }

    fn move_interrupts(
        &self,
        inputs: &Inputs<'_>,
        plan: &Plan,
        snapshot: &Snapshot,
    ) -> Option<Action> {
        let keep_off = plan.keep_interrupts_off;
        let now = snapshot.host.interrupts.as_ref().ok()?;
        let retry = self.interrupts.retry;
        let due = retry.is_none_or(|retry| retry.is_due(inputs.time));
        (now.kept_off != Some(keep_off) && due && !self.interrupts.unsupported)
            .then_some(Action::Interrupts { keep_off })
    }

    fn settings(&self, inputs: &Inputs<'_>, plan: &Plan) -> Vec<Action> {
        let nothing = Slice::default();
        let mut steps = Steps::default();
        for (id, wanted) in &plan.slices {
            let (Some(known), Some(app)) = (self.apps.get(id), inputs.policy.apps.get(id)) else {
                continue;
            };
            let in_force = self.in_force.get(id).unwrap_or(&nothing);
            let before = self.planner.before.get(id);
            let lifted = in_force
                .iter()
                .filter(|setting| wanted.get(setting.knob()).is_none())
                .filter_map(|setting| lifted(setting, app, known, before));
            let open = wanted
                .iter()
                .filter(|setting| known.is_open(setting.knob()))
                .filter(|setting| in_force.get(setting.knob()) == Some(setting))
                .copied();
            for setting in wanted.changes_from(in_force).chain(open).chain(lifted) {
                if known.may_write(setting.knob(), inputs.time) {
                    steps.add(id, setting, in_force, wanted);
                }
            }
        }
        steps.in_order()
    }

    /// Gathers what readers want to know.
    pub fn report(
        &mut self,
        inputs: &Inputs<'_>,
        snapshot: Snapshot,
        mut demands: BTreeMap<AppId, Demand>,
        mut plan: Plan,
        actions: Vec<Action>,
        outcomes: Vec<Outcome>,
    ) -> TickReport {
        if plan.shortfalls != self.shortfalls {
            for shortfall in &plan.shortfalls {
                let message = shortfall.to_string();
                self.note(inputs.time, None, EventKind::Shortfall, message);
            }
            self.shortfalls.clone_from(&plan.shortfalls);
        }
        self.note_unmet(inputs.time, &plan.give_back);
        self.note_lacks(inputs.time, &plan.lacks);
        if inputs.paused {
            plan.offload.pause(&self.planner.offload);
        }
        self.note_offload(inputs, &plan.offload);
        let mut apps = BTreeMap::new();
        for (id, sample) in snapshot.apps {
            let (Some(app), Some(known)) = (inputs.policy.apps.get(&id), self.apps.get(&id)) else {
                continue;
            };
            let report = AppReport {
                class: app.class,
                state: sample.state,
                main_pid: sample.main_pid,
                starts: known.lives.starts,
                usage: known.history.usage(),
                io: known.history.io_use().clone(),
                traffic: known.history.traffic(),
                network: known.history.network_rates(),
                demand: demands.remove(&id),
                slice: self.in_force.get(&id).cloned().unwrap_or_default(),
                reason: plan.reasons.remove(&id),
                reclaim: sample.reclaim,
                page_move: sample.page_move,
                offload: plan.offload.climbs.remove(&id),
            };
            apps.insert(id, report);
        }
        TickReport {
            period: self.period,
            time: inputs.time,
            paused: inputs.paused,
            offload: inputs.policy.offload.mode,
            host: snapshot.host,
            shared: plan.shared,
            io: plan.io,
            apps,
            give_back: plan.give_back,
            actions: actions.into_iter().zip(outcomes).collect(),
            shortfalls: plan.shortfalls,
            events: std::mem::take(&mut self.fresh),
        }
    }

    /// Tells once of each knob that an app does without.
    fn note_lacks(&mut self, time: Time, lacks: &BTreeMap<AppId, BTreeMap<Knob, lack::Lack>>) {
        for (id, lacks) in lacks {
            for (knob, lack) in lacks {
                let known = self.apps.get_mut(id);
                if known.is_some_and(|known| known.told_lacks.insert(*knob)) {
                    let message = format!("{knob} is not set for {id}: {lack}");
                    self.note(time, Some(id), EventKind::Shortfall, message);
                }
            }
        }
    }

    /// Says when memory will be missing that nobody can give, and when that is over.
    fn note_unmet(&mut self, time: Time, give_back: &plan::reclaim::GiveBack) {
        let unmet = !give_back.refused.is_empty();
        if unmet && !self.unmet {
            let why: Vec<String> = give_back
                .refused
                .iter()
                .map(|(app, why)| format!("{app}: {why}"))
                .collect();
            let message = format!(
                "critical apps are expected to rise by {}, {} of it cannot be had from batch \
                 ({}): lower a floor, or give the host swap",
                give_back.rise,
                give_back.unmet,
                why.join("; ")
            );
            self.note(time, None, EventKind::Shortfall, message);
        }
        self.unmet = unmet;
    }

    /// What a plan by another policy would do now. Changes nothing.
    #[must_use]
    pub fn what_if(&self, host: &impl Host, inputs: &Inputs<'_>) -> (Plan, Vec<Action>) {
        let demands = self
            .apps
            .iter()
            .filter(|(_, known)| known.is_active())
            .map(|(id, known)| (id.clone(), known.history.forecast(id, inputs)))
            .collect();
        let situation = plan::Situation {
            time: inputs.time,
            topology: host.topology(),
            capabilities: host.capabilities(),
            policy: inputs.policy,
            demands: &demands,
            host: self.host_memory,
            placed: &self.placed(),
            away: inputs.away,
        };
        let (plan, _) = plan::plan(&situation, &self.planner);
        let actions = self.settings(inputs, &plan);
        (plan, actions)
    }

    /// The latest events, oldest first.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.iter()
    }

    /// Takes in what happened outside of the control period, for the next report.
    pub fn tell(&mut self, time: Time, kind: EventKind, message: String) {
        self.note(time, None, kind, message);
    }

    /// Notes what others found out about an app.
    pub fn tell_of(&mut self, time: Time, app: &AppId, kind: EventKind, message: String) {
        self.note(time, Some(app), kind, message);
    }

    /// The series of one app, to explain its forecast.
    #[must_use]
    pub fn history(&self, id: &AppId) -> Option<&History> {
        self.apps.get(id).map(|known| &known.history)
    }

    /// The end of an app's program was wanted: it is started again at once.
    pub fn excuse(&mut self, time: Time, id: &AppId) {
        if let Some(known) = self.apps.get_mut(id) {
            known.lives.excuse(time);
        }
    }

    /// Takes back the yielding to other writers, after the user changed the policy.
    pub fn forgive(&mut self) {
        for known in self.apps.values_mut() {
            known.yielded.clear();
            known.retries.clear();
            known.told_lacks.clear();
        }
        self.interrupts = Interrupts::default();
        self.costs = costs::Costs::default();
        self.watching = watch::Watching::default();
    }

    fn note(&mut self, time: Time, app: Option<&AppId>, kind: EventKind, message: String) {
        let event = Event {
            time,
            app: app.cloned(),
            kind,
            message,
        };
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event.clone());
        self.fresh.push(event);
    }
}

impl Retry {
    /// The next one after a failure now: later each time, with a bound.
    fn after(before: Option<Self>, now: Time) -> Self {
        let delay = before.map_or(RETRY_MIN, |retry| (retry.delay * 2).min(RETRY_MAX));
        Self {
            delay,
            due_at: now.monotonic + delay,
        }
    }

    fn is_due(self, now: Time) -> bool {
        now.monotonic >= self.due_at
    }
}

impl Known {
    /// Whether it gets a slice: it runs, or it is being started in this period.
    fn is_active(&self) -> bool {
        self.state == RunState::Running || self.verdict == Verdict::Start
    }

    /// Whether a knob has to be written again although it holds what it should.
    fn is_open(&self, knob: Knob) -> bool {
        self.pending.contains(&knob) || self.unsettled.contains(&knob)
    }

    fn may_write(&self, knob: Knob, now: Time) -> bool {
        !self.yielded.contains(&knob)
            && self
                .retries
                .get(&knob)
                .is_none_or(|retry| retry.is_due(now))
    }
}
