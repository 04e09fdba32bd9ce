//! Demand in, slices out.
//!
//! Problem: several apps of three classes want one host. Give the critical ones what they
//! will need before they need it, let the rest use everything else, and disturb nobody
//! without a reason.
//!
//! Approach: [`cpu`] gives critical apps whole CPUs of their own while the host has enough,
//! and precedence on shared ones beyond that; [`lend`] lets batch use them while they are idle; [`memory`] turns forecast working sets into
//! protection and holds batch below what is left; [`reclaim`] asks batch for what a forecast
//! rise lacks, [`savings`] for what it does not use; [`io`] bounds what batch sends to block devices. Needs grow a slice at once and
//! shrink it one step per hold, so an oscillating demand does not make an oscillating slice.
//!
//! Properties, each tested: exclusive sets are disjoint; every CPU is in a slice or in the
//! shared pool; floors hold or the shortfall is named; the sum of protected memory fits;
//! a plan that is in force plans to itself; one more CPU of demand moves a bounded number of
//! CPUs.

pub mod cpu;
pub mod io;
pub mod lack;
pub mod lend;
pub mod memory;
mod offload;
pub mod reclaim;
pub mod savings;
#[cfg(test)]
mod tests;
pub mod watch;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::app::{App, AppId, Class, Device, IoMax, IoProtection, Partition, Policy};
use crate::demand::Demand;
use crate::fleet::policy::Away;
use crate::host::Capabilities;
use crate::idset::CpuSet;
use crate::io::CostModel;
use crate::slice::{Knob, Setting, Slice};
use crate::snapshot::Compaction;
use crate::topology::Topology;
use crate::units::{Bytes, Limit, MilliCpu, Time};

/// Everything a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// Now.
    pub time: Time,
    /// The host.
    pub topology: &'a Topology,
    /// What it can control.
    pub capabilities: &'a Capabilities,
    /// What the user decided.
    pub policy: &'a Policy,
    /// The apps that run or are about to, with what they will need. Others get no slice.
    pub demands: &'a BTreeMap<AppId, Demand>,
    /// The memory the host has.
    pub host: HostMemory,
    /// Where the apps run at this moment, whatever was planned for them.
    pub placed: &'a BTreeMap<AppId, Placed>,
    /// Where apps could move to; none without a fleet.
    pub away: Option<&'a BTreeMap<AppId, Away>>,
}

/// Where one app runs at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Placed {
    /// The CPUs that were written last; none where none were, and it may run on all.
    pub cpus: Option<CpuSet>,
    /// Whether they are left to somebody else, who writes them as well.
    pub yielded: bool,
}

/// The memory that a host has left; none where it does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostMemory {
    /// What could be had without swapping.
    pub available: Option<Bytes>,
    /// Free swap.
    pub swap_free: Option<Bytes>,
    /// How free memory lies.
    pub compaction: Option<Compaction>,
}

impl Situation<'_> {
    /// Whether the own CPUs of critical apps are to be taken from everybody else, and can be.
    #[must_use]
    pub fn partitions(&self) -> bool {
        self.policy.partition != Partition::Member
            && self.capabilities.knobs.contains(&Knob::CpusPartition)
    }
}

/// What the planner remembers between periods: who has what, and since when less would do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Critical apps' own CPUs.
    pub cpus: BTreeMap<AppId, cpu::Held>,
    /// Memory bounds.
    pub bytes: BTreeMap<AppId, memory::Held>,
    /// Who gave how readily.
    pub givers: BTreeMap<AppId, reclaim::Held>,
    /// What batch may take of block devices.
    pub io: BTreeMap<Device, io::Held>,
    /// Which way each batch app goes on block devices.
    pub leanings: io::Leanings,
    /// Devices of which somebody else has switched a cost model on.
    pub costed: BTreeSet<Device>,
    /// What somebody had set of an app's group before Forebay came, of knobs that are set only
    /// while something asks for them: limits of single block devices are ceilings like those of the user.
    pub before: BTreeMap<AppId, Slice>,
    /// How far batch apps' cold memory was taken back.
    pub probes: BTreeMap<AppId, savings::Probe>,
    /// Apps of which the kernel watches which memory they touch; none where it cannot.
    pub watched: Option<BTreeSet<AppId>>,
    /// Whether critical apps' CPUs are lent to batch.
    pub lending: lend::Lending,
    /// Who is constrained, and what was tried about it.
    pub offload: crate::offload::Memory,
}

/// Why a slice is what it is: the numbers that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Processor time planned for: forecast, floor and ceiling applied, without headroom.
    pub cpu_demand: MilliCpu,
    /// The same with headroom: what the CPUs must hold.
    pub cpu_wanted: MilliCpu,
    /// What of that is beyond forecast and headroom, since the app is constrained all the same.
    pub cpu_extra: MilliCpu,
    /// CPUs that nobody else of its rank may use.
    pub exclusive: CpuSet,
    /// Whether it also runs on the shared CPUs, ahead of the others there.
    pub spills: bool,
    /// CPUs it keeps only because the hold has not passed.
    pub held_cpus: usize,
    /// Memory planned for.
    pub memory_demand: Bytes,
}

/// A promise that the host cannot keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortfall {
    /// The floors of all apps need more CPUs than there are.
    Cpu {
        /// Sum of floors.
        floors: MilliCpu,
        /// What the host has.
        host: MilliCpu,
    },
    /// The floors of all apps need more memory than there is.
    Memory {
        /// Sum of floors.
        floors: Bytes,
        /// What the host has, less what the system keeps.
        host: Bytes,
    },
}

impl std::fmt::Display for Shortfall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu { floors, host } => {
                write!(
                    f,
                    "the CPU floors sum to {floors}, the host has {host}: lower a floor"
                )
            }
            Self::Memory { floors, host } => write!(
                f,
                "the memory floors sum to {floors}, apps may use {host}: lower a floor"
            ),
        }
    }
}

/// The slices that should be in force.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Each active app's slice.
    pub slices: BTreeMap<AppId, Slice>,
    /// Why, for each.
    pub reasons: BTreeMap<AppId, Reason>,
    /// Why batch may do on measured block devices what it may.
    pub io: BTreeMap<Device, io::Reason>,
    /// CPUs that are nobody's own.
    pub shared: CpuSet,
    /// Whether batch may use critical apps' own CPUs while those leave them idle.
    pub lends: bool,
    /// What the kernel is told of the cost of requests, for the whole host.
    pub cost_models: BTreeMap<Device, CostModel>,
    /// CPUs that serve no interrupts of devices.
    pub keep_interrupts_off: CpuSet,
    /// What cannot be kept.
    pub shortfalls: Vec<Shortfall>,
    /// Knobs that apps do without although they are asked for.
    pub lacks: BTreeMap<AppId, BTreeMap<Knob, lack::Lack>>,
    /// Memory that batch gives back ahead of a rise.
    pub give_back: reclaim::GiveBack,
    /// Memory that batch is asked for because it does not seem to use it.
    pub saves: BTreeMap<AppId, Bytes>,
    /// Apps of which the kernel is to watch which memory they touch.
    pub watch: BTreeSet<AppId>,
    /// Who is constrained, and what is done about it.
    pub offload: crate::offload::Decision,
}

/// Decides every slice. Pure: the same situation and memory give the same plan, and the
/// memory to bring next time.
#[must_use]
pub fn plan(situation: &Situation<'_>, memory: &Memory) -> (Plan, Memory) {
    let lending = lend::decide(situation, memory.lending);
    let cpus = cpu::allocate(situation, &memory.cpus, lending, &memory.offload);
    let (give_back, givers) = reclaim::decide(situation, &memory.givers);
    let (saves, probes) = savings::decide(situation, &givers, &memory.probes, &give_back.asks);
    let bytes = memory::allocate(situation, &memory.bytes, &give_back.held);
    let devices = io::allocate(situation, &memory.io, &memory.leanings, &memory.offload);

    let mut plan = Plan {
        shared: cpus.shared,
        lends: lending.is_on(),
        io: devices.reasons,
        shortfalls: cpus.shortfall.into_iter().chain(bytes.shortfall).collect(),
        give_back,
        saves,
        watch: watch::choose(situation, memory.watched.as_ref()),
        ..Plan::default()
    };
    let (nothing, unlimited) = (Slice::default(), BTreeMap::new());
    for (id, share) in &cpus.shares {
        let app = &situation.policy.apps[id];
        let mut slice = Slice::default();
        cpu_settings(situation, app, share, &mut slice);
        memory_settings(app, &bytes.bounds[id], &mut slice);
        other_settings(app, &mut slice);
        if situation.policy.oom_protection {
            slice.set(Setting::OomScoreAdj(oom_score_adj(app.class)));
        }
        cache_settings(situation, app, &mut slice);
        let before = memory.before.get(id).unwrap_or(&nothing);
        let planned = devices.limits.get(id).unwrap_or(&unlimited);
        device_settings(app, before, planned, &mut slice);
        latency_settings(situation.policy, app, before, &memory.costed, &mut slice);
        let lacks = lack::of(app, &slice, situation.capabilities);
        if !lacks.is_empty() {
            plan.lacks.insert(id.clone(), lacks);
        }
        plan.slices
            .insert(id.clone(), supported(app, slice, situation.capabilities));
        plan.reasons.insert(
            id.clone(),
            Reason {
                cpu_demand: share.demand,
                cpu_wanted: share.wanted,
                cpu_extra: share.extra,
                exclusive: share.exclusive,
                spills: share.spills,
                held_cpus: share.held,
                memory_demand: bytes.bounds[id].demand,
            },
        );
    }
    plan.cost_models = cost_models(situation, &memory.costed);
    plan.keep_interrupts_off = keep_interrupts_off(situation, &plan);
    let (decision, offload) =
        offload::decide(situation, &plan, cpus.spare, &givers, &memory.offload);
    plan.offload = decision;
    let memory = Memory {
        cpus: cpus.held,
        bytes: bytes.held,
        givers,
        io: devices.held,
        leanings: devices.leanings,
        costed: memory.costed.clone(),
        before: memory.before.clone(),
        probes,
        watched: memory.watched.clone(),
        lending,
        offload,
    };
    (plan, memory)
}

/// The models of measured devices, but of those of which somebody else's is on.
fn cost_models(
    situation: &Situation<'_>,
    costed: &BTreeSet<Device>,
) -> BTreeMap<Device, CostModel> {
    let policy = situation.policy;
    if policy.io_protection != IoProtection::Cost || !situation.capabilities.cost_models {
        return BTreeMap::new();
    }
    let devices = policy.devices.iter();
    devices
        .filter(|(device, _)| !costed.contains(device))
        .filter_map(|(device, capability)| Some((*device, capability.cost_model?)))
        .collect()
}

/// Critical apps' own CPUs, as long as another one is left to serve interrupts.
fn keep_interrupts_off(situation: &Situation<'_>, plan: &Plan) -> CpuSet {
    let policy = situation.policy;
    let critical = |id: &AppId| policy.apps[id].class == Class::Critical;
    let own = plan.reasons.iter().filter(|(id, _)| critical(id));
    let own = own.fold(CpuSet::EMPTY, |all, (_, reason)| {
        all.union(&reason.exclusive)
    });
    if policy.move_interrupts && !situation.topology.cpu_set().is_subset(&own) {
        own
    } else {
        CpuSet::EMPTY
    }
}

fn cpu_settings(situation: &Situation<'_>, app: &App, share: &cpu::Share, slice: &mut Slice) {
    slice.set(Setting::Cpus(share.cpus));
    if situation.partitions() {
        // CPUs that another app may use as well cannot be taken from everybody.
        let own = share.cpus == share.exclusive && app.class == Class::Critical;
        slice.set(Setting::CpusPartition(if own {
            situation.policy.partition
        } else {
            Partition::Member
        }));
    }
    slice.set(Setting::Mems(share.mems));
    let (weight, idle) = match app.class {
        Class::Critical => (10_000, false),
        Class::Standard => (100, false),
        Class::Batch => (1, true),
    };
    // The kernel refuses a weight on an idle group, and an idle group needs none.
    slice.set(Setting::CpuIdle(idle));
    if !(idle && situation.capabilities.offers(&app.id, Knob::CpuIdle)) {
        let own = app.cpu_weight.filter(|_| !idle);
        slice.set(Setting::CpuWeight(own.unwrap_or(weight)));
    }
    slice.set(Setting::CpuMax(app.ceiling.cpu));
    if let Some(min) = app.uclamp.min {
        slice.set(Setting::CpuUclampMin(min));
    }
    if let Some(max) = app.uclamp.max {
        slice.set(Setting::CpuUclampMax(max));
    }
}

fn memory_settings(app: &App, bounds: &memory::Bounds, slice: &mut Slice) {
    slice.set(Setting::MemoryMin(bounds.min));
    slice.set(Setting::MemoryLow(bounds.low));
    slice.set(Setting::MemoryHigh(bounds.high));
    slice.set(Setting::MemoryMax(app.ceiling.memory));
    slice.set(Setting::MemorySwapMax(app.ceiling.swap));
    slice.set(Setting::MemoryZswapMax(app.ceiling.zswap));
}

fn other_settings(app: &App, slice: &mut Slice) {
    let by_class = match app.class {
        Class::Critical => 1000,
        Class::Standard => 100,
        Class::Batch => 10,
    };
    slice.set(Setting::IoWeight(app.io_weight.unwrap_or(by_class)));
    slice.set(Setting::PidsMax(app.ceiling.pids));
    slice.set(Setting::EgressMax(app.ceiling.egress));
}

/// Whom the kernel ends first when memory is out. Not the round numbers that people choose:
/// whoever has one of these got it from Forebay, itself or by its parent, and can be put back.
const fn oom_score_adj(class: Class) -> i16 {
    match class {
        Class::Critical => -903,
        Class::Standard => 0,
        Class::Batch => 503,
    }
}

/// Batch gets its share of what all CPUs have in common as long as a critical app runs.
fn cache_settings(situation: &Situation<'_>, app: &App, slice: &mut Slice) {
    let Policy {
        batch_cache_percent,
        batch_bandwidth_percent,
        ..
    } = situation.policy;
    if app.class != Class::Batch {
        return;
    }
    let class_of = |id: &AppId| situation.policy.apps.get(id).map(|app| app.class);
    let mut running = situation.demands.keys();
    let bounded = running.any(|id| class_of(id) == Some(Class::Critical));
    let share = |percent: u32| if bounded { percent } else { 100 };
    if let Some(percent) = batch_cache_percent {
        slice.set(Setting::L3Cache(share(*percent)));
    }
    if let Some(percent) = batch_bandwidth_percent {
        slice.set(Setting::MemoryBandwidth(share(*percent)));
    }
}

/// The user's limits and the plan's, and the strictest of all where there are several.
fn device_settings(
    app: &App,
    before: &Slice,
    planned: &BTreeMap<Device, IoMax>,
    slice: &mut Slice,
) {
    let wanted: BTreeSet<&Device> = app.io_max.keys().chain(planned.keys()).collect();
    for device in wanted {
        let before = match before.get(Knob::IoMax(*device)) {
            Some(Setting::IoMax(_, max)) => *max,
            _ => IoMax::NONE,
        };
        let limits = [&app.io_max, planned];
        let limits = limits.into_iter().filter_map(|limits| limits.get(device));
        let max = limits.fold(before, |all, limit| io::stricter(all, *limit));
        slice.set(Setting::IoMax(*device, max));
    }
}

/// A critical app's target on every measured device, whether it uses it now or not: who sends
/// nothing misses nothing, and its first slow request finds the target there.
///
/// Not where requests have costs: two that hold back by their own lights would fight.
fn latency_settings(
    policy: &Policy,
    app: &App,
    before: &Slice,
    costed: &BTreeSet<Device>,
    slice: &mut Slice,
) {
    if policy.io_protection != IoProtection::Latency || app.class != Class::Critical {
        return;
    }
    let devices = policy.devices.iter();
    for (device, capability) in devices.filter(|(device, _)| !costed.contains(device)) {
        let before = match before.get(Knob::IoLatency(*device)) {
            Some(Setting::IoLatency(_, target)) => *target,
            _ => Limit::Max,
        };
        let target = before.min(Limit::At(io::latency_target(capability)));
        slice.set(Setting::IoLatency(*device, target));
    }
}

/// Leaves out what the host does not offer for an app: planned around, and said by `doctor` and [`lack`].
fn supported(app: &App, slice: Slice, capabilities: &Capabilities) -> Slice {
    slice
        .iter()
        .filter(|setting| capabilities.offers(&app.id, setting.knob()))
        .copied()
        .collect()
}
