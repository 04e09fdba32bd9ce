//! Which app runs on which CPUs.
//!
//! Problem: critical apps should not share CPUs with others, a host has few of them, and
//! moving a task between CPUs costs it its caches.
//!
//! Approach: each critical app wants whole CPUs for its forecast with headroom. What others'
//! floors need (at least one CPU when there are others) is set aside first; the rest goes to
//! the critical apps, one CPU each in turn, whole cores where the host has SMT. An app keeps
//! what it has, grows towards what shares its core, cache and node, and gives back the
//! farthest. An app that wants more than it got also runs on the shared CPUs, where its
//! weight puts it ahead of everybody else. What an app is given beyond its forecast, to see whether
//! that helps, is the first to go where CPUs run short.
//!
//! Properties: see [`plan`](super). The order of giving is by name, so equal situations give
//! equal sets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::lend::Lending;
use super::{Shortfall, Situation};
use crate::app::{App, AppId, Class};
use crate::idset::{CpuSet, NodeSet};
use crate::offload;
use crate::topology::{Cpu, Topology};
use crate::units::{Limit, MilliCpu, Time};

/// A smaller set must hold the wanted time with this much to spare before CPUs are given
/// back, in percent, so that a demand at the edge does not flip.
const GIVE_BACK_SPARE_PERCENT: u64 = 10;

/// CPUs that one critical app had after the last plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its own CPUs.
    pub cpus: CpuSet,
    /// When all of them were last needed.
    pub needed_at: Time,
    /// Whether they were found in force, and not planned.
    pub found: bool,
    /// How many of them are beyond what it needs and keeps, to see whether they help.
    #[serde(default)]
    pub beyond: usize,
    /// How many it had when it was first given some beyond that: as long as it is, these stay, too,
    /// since what it is given would else be no more than it had.
    #[serde(default)]
    pub had_before: usize,
}

/// One app's CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Where it may run: its own and, when it spills or has none, the shared ones.
    pub cpus: CpuSet,
    /// NUMA nodes of its memory.
    pub mems: NodeSet,
    /// Its own.
    pub exclusive: CpuSet,
    /// Whether it runs on the shared ones beside its own.
    pub spills: bool,
    /// CPUs above its present need, kept for the hold.
    pub held: usize,
    /// Forecast within floor and ceiling.
    pub demand: MilliCpu,
    /// With headroom, and what is given beyond that.
    pub wanted: MilliCpu,
    /// What is given beyond that, because the app is constrained all the same.
    pub extra: MilliCpu,
}

/// All apps' CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// By app.
    pub shares: BTreeMap<AppId, Share>,
    /// Nobody's own.
    pub shared: CpuSet,
    /// How many of these critical apps could have, before others lack what is set aside for them.
    pub spare: usize,
    /// For the next plan.
    pub held: BTreeMap<AppId, Held>,
    /// Floors beyond the host.
    pub shortfall: Option<Shortfall>,
}

/// Gives every active app its CPUs.
#[must_use]
pub fn allocate(
    situation: &Situation<'_>,
    before: &BTreeMap<AppId, Held>,
    lending: Lending,
    offload: &offload::Memory,
) -> Allocation {
    let active: Vec<&App> = situation
        .demands
        .keys()
        .filter_map(|id| situation.policy.apps.get(id))
        .collect();
    let all = situation.topology.cpu_set();
    let for_critical = all.len() - set_aside(situation, &active);

    let mut needs: Vec<Need<'_>> = active
        .iter()
        .filter(|app| app.class == Class::Critical)
        .map(|app| {
            let extra = offload.extra_cpu(&app.id);
            Need::of(situation, app, before.get(&app.id), extra)
        })
        .collect();
    share_out(
        &mut needs,
        for_critical,
        situation.topology.threads_per_core(),
    );
    let owned = place(situation.topology, &needs);
    let shared = owned
        .values()
        .fold(all, |shared, cpus| shared.difference(cpus));

    // Where only idle batch runs, a critical app loses nothing by running there too, as long as
    // it stays on its nodes: it has more CPUs for a burst, and batch yields at once.
    let only_idle = active.iter().all(|app| app.class != Class::Standard);
    let joins = lending.is_on() && only_idle;

    let mut shares = BTreeMap::new();
    let mut held = BTreeMap::new();
    for need in &needs {
        let exclusive = owned[&need.app.id];
        let spills = exclusive.len() < need.now && !shared.is_empty();
        let cpus = if spills || exclusive.is_empty() {
            exclusive.union(&shared)
        } else if joins {
            let near = near(situation.topology, &exclusive);
            exclusive.union(&shared.intersection(&near))
        } else {
            exclusive
        };
        shares.insert(
            need.app.id.clone(),
            Share {
                cpus,
                mems: mems(situation, need.app, &cpus),
                exclusive,
                spills,
                held: exclusive.len().saturating_sub(need.now),
                demand: need.demand,
                wanted: need.wanted,
                extra: need.extra,
            },
        );
        held.insert(
            need.app.id.clone(),
            Held {
                cpus: exclusive,
                needed_at: need.needed_at,
                found: false,
                beyond: need.beyond.min(exclusive.len()),
                had_before: need.had_before,
            },
        );
    }
    for app in active.iter().filter(|app| app.class != Class::Critical) {
        let (demand, wanted) = wanted(situation, app, MilliCpu(0));
        let cpus = if app.class == Class::Batch && lending.is_on() {
            all
        } else {
            shared
        };
        shares.insert(
            app.id.clone(),
            Share {
                cpus,
                mems: mems(situation, app, &cpus),
                exclusive: CpuSet::EMPTY,
                spills: false,
                held: 0,
                demand,
                wanted,
                extra: MilliCpu(0),
            },
        );
    }
    let shortfall = shortfall(&active, &owned, shared.len(), all.len());
    let given: usize = owned.values().map(CpuSet::len).sum();
    Allocation {
        shares,
        shared,
        spare: for_critical.saturating_sub(given),
        held,
        shortfall,
    }
}

/// What one critical app needs.
#[derive(Debug)]
struct Need<'a> {
    app: &'a App,
    demand: MilliCpu,
    wanted: MilliCpu,
    extra: MilliCpu,
    /// Whole CPUs for the wanted time.
    now: usize,
    /// Whole CPUs for what is wanted by forecast and headroom alone.
    needs: usize,
    /// What it gets without what is beyond: that, what the hold keeps, and what it had before.
    without: usize,
    /// What it gets beyond that.
    beyond: usize,
    had_before: usize,
    /// What it gets: `now`, or more while the hold lasts.
    gets: usize,
    had: CpuSet,
    needed_at: Time,
}

impl<'a> Need<'a> {
    fn of(situation: &Situation<'_>, app: &'a App, before: Option<&Held>, extra: MilliCpu) -> Self {
        let (demand, wanted) = wanted(situation, app, extra);
        let core = situation.topology.threads_per_core();
        let whole_cores = |cpus: usize| cpus.max(1).next_multiple_of(core);
        let now = whole_cores(wanted.whole_cpus());
        let (_, forecast) = self::wanted(situation, app, MilliCpu(0));
        let needs = whole_cores(forecast.whole_cpus());
        let had = before.map_or(CpuSet::EMPTY, |held| {
            let all = situation.topology.cpu_set();
            // A set of everything that was found says nothing about what is its own: batch may
            // have been lent the same CPUs.
            if held.found && held.cpus == all {
                CpuSet::EMPTY
            } else {
                held.cpus.intersection(&all)
            }
        });
        let time = situation.time;
        let spare = MilliCpu(forecast.0 + forecast.0 * GIVE_BACK_SPARE_PERCENT / 100);
        let needed_at = before.map_or(time, |held| held.needed_at);
        // What is beyond has no hold of its own: it stays as long as it is asked for, on top of
        // whatever else there is, and is no reason to keep more later.
        let kept = before.map_or(0, |held| had.len().saturating_sub(held.beyond));
        let (keeps, needed_at) = if needs >= kept {
            (needs, time)
        } else if whole_cores(spare.whole_cpus()) >= kept {
            (kept, time)
        } else if time.since(needed_at) >= situation.policy.hold {
            (kept.saturating_sub(core).max(needs), time)
        } else {
            (kept, needed_at)
        };
        let beyond = now.saturating_sub(needs);
        let had_before = match before.map_or(0, |held| held.had_before) {
            _ if beyond == 0 => 0,
            0 => kept,
            before => before,
        };
        // Its quota holds for all of them together: what is beyond it could not be used.
        let most = match app.ceiling.cpu {
            Limit::At(ceiling) => whole_cores(ceiling.whole_cpus()),
            Limit::Max => usize::MAX,
        };
        let without = keeps.max(had_before.min(most));
        let beyond = beyond.min(most.saturating_sub(without));
        Self {
            app,
            demand,
            wanted,
            extra,
            now,
            needs,
            without,
            beyond,
            had_before,
            gets: without + beyond,
            had,
            needed_at,
        }
    }
}

/// Forecast within floor and ceiling, and the same with headroom and what is given beyond.
fn wanted(situation: &Situation<'_>, app: &App, extra: MilliCpu) -> (MilliCpu, MilliCpu) {
    let demand = situation.demands[&app.id].cpu_planned();
    let demand = app.ceiling.cpu.cut(demand.max(app.floor.cpu));
    let headroom = demand
        .0
        .saturating_mul(u64::from(situation.policy.headroom_percent))
        / 100;
    let more = headroom.saturating_add(extra.0);
    let with_more = MilliCpu(demand.0.saturating_add(more));
    (demand, app.ceiling.cpu.cut(with_more))
}

/// CPUs that stay out of critical hands: for others' floors, and one at least when there
/// are others. Critical floors come first.
fn set_aside(situation: &Situation<'_>, active: &[&App]) -> usize {
    let floors = |critical: bool| {
        MilliCpu(
            active
                .iter()
                .filter(|app| (app.class == Class::Critical) == critical)
                .map(|app| app.floor.cpu.0)
                .sum(),
        )
    };
    let others = active.iter().any(|app| app.class != Class::Critical);
    // A partition takes its CPUs from the whole host, which has to run somewhere.
    if !others && !situation.partitions() {
        return 0;
    }
    let host = situation.topology.cpus().len();
    // Whole CPUs of critical floors; their fractions share the pool with the others.
    let whole = usize::try_from(floors(true).0 / 1000).unwrap_or(usize::MAX);
    let most = host.saturating_sub(whole).max(1);
    floors(false).whole_cpus().clamp(1, most).min(host)
}

/// Cuts what the apps get to `available`, a core at a time from the one with the most. What is given
/// beyond a forecast goes first: it is worth trying only as long as nobody else is expected to need it.
fn share_out(needs: &mut [Need<'_>], available: usize, core: usize) {
    let mut sum: usize = needs.iter().map(|need| need.gets).sum();
    while sum > available {
        let beyond = |need: &Need<'_>| need.gets.saturating_sub(need.needs);
        let tries = needs.iter_mut().filter(|need| need.extra.0 > 0);
        let Some(most) = tries.max_by_key(|need| beyond(need)) else {
            break;
        };
        let less = beyond(most).min(core);
        if less == 0 {
            break;
        }
        sum -= less;
        most.gets -= less;
        // What is cut is beyond first, and so what is taken back later is only what is left of that.
        most.beyond = most.beyond.min(most.gets.saturating_sub(most.without));
        // What it does not get, it does not look for on the shared CPUs either.
        let gone = MilliCpu::cpus(most.now.saturating_sub(most.gets).try_into().unwrap_or(0));
        most.now = most.now.min(most.gets);
        most.extra = MilliCpu(most.extra.0.saturating_sub(gone.0));
        most.wanted = most
            .wanted
            .min(MilliCpu::cpus(most.now.try_into().unwrap_or(u64::MAX)));
    }
    let cut = |needs: &mut [Need<'_>], sum: &mut usize| {
        if let Some(most) = needs.iter_mut().max_by_key(|need| {
            (
                need.gets.saturating_sub(need.app.floor.cpu.whole_cpus()),
                need.gets,
            )
        }) {
            let less = if most.gets > core {
                (most.gets - 1) / core * core
            } else {
                most.gets.saturating_sub(1)
            };
            *sum -= most.gets - less;
            most.gets = less;
        }
    };
    while sum > available {
        cut(needs, &mut sum);
    }
    // Apps that got none run on the shared CPUs, so there must be some.
    if sum == available && needs.iter().any(|need| need.gets == 0) {
        cut(needs, &mut sum);
    }
}

/// Chooses the CPUs: first everybody keeps the best of what it had, then the wanting choose.
fn place(topology: &Topology, needs: &[Need<'_>]) -> BTreeMap<AppId, CpuSet> {
    let mut free = topology.cpu_set();
    let mut owned = BTreeMap::new();
    for need in needs {
        let mut keeps = need.had.intersection(&free);
        while keeps.len() > need.gets {
            let worst = farthest(topology, &keeps);
            keeps.remove(worst);
        }
        free = free.difference(&keeps);
        owned.insert(need.app.id.clone(), keeps);
    }
    for need in needs {
        let cpus = owned
            .get_mut(&need.app.id)
            .expect("every need was entered above");
        while cpus.len() < need.gets {
            let Some(best) = nearest(topology, cpus, &free) else {
                break;
            };
            cpus.insert(best);
            free.remove(best);
        }
    }
    owned
}

/// The free CPU closest to `cpus`: same core, then cache, then node; among equals in the
/// emptiest place, and the highest number, because interrupts favour low ones.
fn nearest(topology: &Topology, cpus: &CpuSet, free: &CpuSet) -> Option<usize> {
    let own: Vec<&Cpu> = members(topology, cpus).collect();
    let free_cpus: Vec<&Cpu> = members(topology, free).collect();
    free_cpus
        .iter()
        .max_by_key(|cpu| {
            let count = |same: fn(&Cpu, &Cpu) -> bool| {
                free_cpus.iter().filter(|other| same(cpu, other)).count()
            };
            (
                affinity(cpu, &own),
                // A core half taken by another app is the last choice.
                core_is_whole(topology, cpu, free, cpus),
                count(|a, b| a.node == b.node),
                count(|a, b| a.l3 == b.l3),
                cpu.id,
            )
        })
        .map(|cpu| cpu.id)
}

/// The CPU of the set that shares least with the others of it.
fn farthest(topology: &Topology, cpus: &CpuSet) -> usize {
    members(topology, cpus)
        .min_by_key(|cpu| {
            let others: Vec<&Cpu> = members(topology, cpus)
                .filter(|other| other.id != cpu.id)
                .collect();
            (affinity(cpu, &others), cpu.id)
        })
        .map(|cpu| cpu.id)
        .expect("only called with a CPU to give")
}

fn core_is_whole(topology: &Topology, cpu: &Cpu, free: &CpuSet, own: &CpuSet) -> bool {
    topology
        .cpus()
        .iter()
        .filter(|other| other.core == cpu.core)
        .all(|other| free.contains(other.id) || own.contains(other.id))
}

/// All CPUs of the nodes that the given ones sit on.
fn near(topology: &Topology, cpus: &CpuSet) -> CpuSet {
    let nodes = topology.nodes_of(cpus);
    topology
        .cpus()
        .iter()
        .filter(|cpu| nodes.contains(cpu.node))
        .map(|cpu| cpu.id)
        .collect()
}

fn members<'a>(topology: &'a Topology, set: &'a CpuSet) -> impl Iterator<Item = &'a Cpu> {
    topology.cpus().iter().filter(|cpu| set.contains(cpu.id))
}

/// How much a CPU shares with others, counting each kind of neighbour.
fn affinity(cpu: &Cpu, others: &[&Cpu]) -> (usize, usize, usize) {
    let count =
        |same: fn(&Cpu, &Cpu) -> bool| others.iter().filter(|other| same(cpu, other)).count();
    (
        count(|a, b| a.core == b.core),
        count(|a, b| a.l3 == b.l3),
        count(|a, b| a.node == b.node),
    )
}

/// The nodes of the app's CPUs, when their memory holds what the app will use; else all that
/// have memory.
fn mems(situation: &Situation<'_>, app: &App, cpus: &CpuSet) -> NodeSet {
    let all = situation.topology.memory_nodes();
    let near = situation.topology.nodes_of(cpus).intersection(&all);
    let room: u64 = situation
        .topology
        .nodes()
        .iter()
        .filter(|node| near.contains(node.id))
        .map(|node| node.memory.0)
        .sum();
    let needs = situation.demands[&app.id]
        .memory_planned()
        .max(app.floor.memory);
    // Half a node may be taken by others; closer bookkeeping would move pages for little.
    if app.class == Class::Critical && !near.is_empty() && needs.0 <= room / 2 {
        near
    } else {
        all
    }
}

fn shortfall(
    active: &[&App],
    owned: &BTreeMap<AppId, CpuSet>,
    shared: usize,
    cpus: usize,
) -> Option<Shortfall> {
    let millis = |cpus: usize| MilliCpu::cpus(u64::try_from(cpus).unwrap_or(u64::MAX));
    let floors = MilliCpu(active.iter().map(|app| app.floor.cpu.0).sum());
    let host = millis(cpus);
    // What the own CPUs do not hold has to find its place on the shared ones.
    let pooled: u64 = active
        .iter()
        .map(|app| {
            let own = owned.get(&app.id).map_or(0, CpuSet::len);
            app.floor.cpu.0.saturating_sub(millis(own).0)
        })
        .sum();
    (floors > host || pooled > millis(shared).0).then_some(Shortfall::Cpu { floors, host })
}
