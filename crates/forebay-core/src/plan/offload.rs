//! What the watch over constraints is shown of a plan, and what it decides.
//!
//! It looks at the CPUs that are in force, and not at those that are planned: what could not be
//! written, or is left to somebody else, would else look like help that came.

use std::collections::{BTreeMap, BTreeSet};

use super::io::{self, Ppm};
use super::{Plan, Situation, reclaim};
use crate::app::{App, AppId, Class};
use crate::demand::Demand;
use crate::offload::{self, Cold, Decision, Means, Memory, MemoryBound, Mode, Seen, View};
use crate::slice::{Knob, Setting, Slice};
use crate::units::{Bytes, Limit, MilliCpu};

/// Decides for this period.
#[must_use]
pub(super) fn decide(
    situation: &Situation<'_>,
    plan: &Plan,
    spare_cpus: usize,
    givers: &BTreeMap<AppId, reclaim::Held>,
    before: &Memory,
) -> (Decision, Memory) {
    let policy = situation.policy;
    if policy.offload.mode == Mode::Off {
        return (Decision::default(), Memory::default());
    }
    let apps = plan.slices.iter().filter_map(|(id, slice)| {
        let app = policy.apps.get(id)?;
        let demand = situation.demands.get(id)?;
        let divisible = io::divisible(situation, &plan.io, id);
        Some(seen(situation, app, demand, slice, divisible))
    });
    let swap = situation.host.swap_free.unwrap_or(Bytes(0));
    let batch = reclaim::apps(situation, Class::Batch);
    let cold_batch = batch.map(|app| {
        // What it could swap alone; the rungs see to it that nobody is promised the same.
        let giver = reclaim::giver(situation, app, givers, &mut { swap });
        (app.id.clone(), giver.cold_of())
    });
    let asked = plan.give_back.asks.keys().chain(plan.saves.keys());
    let at_it = situation.demands.keys();
    let at_it = at_it.filter(|id| reclaim::running(situation, id).is_some());
    let view = View {
        time: situation.time,
        rules: &policy.offload,
        horizon: policy.horizon,
        apps: apps.collect(),
        means: Means {
            spare_cpus,
            core: situation.topology.threads_per_core(),
            reclaim: situation.capabilities.reclaim,
            swap: swap.saturating_sub(promised_swap(situation, plan)),
            cold_batch: cold_batch.collect(),
            asked: asked.chain(at_it).cloned().collect::<BTreeSet<_>>(),
            devices: !policy.devices.is_empty(),
            tiered: policy.tiered,
            compaction: situation
                .host
                .compaction
                .filter(|_| situation.capabilities.compact),
            away: situation.away,
        },
    };
    offload::decide(&view, before)
}

fn seen<'a>(
    situation: &Situation<'a>,
    app: &'a App,
    demand: &'a Demand,
    slice: &Slice,
    divisible: Option<Ppm>,
) -> Seen<'a> {
    let all = situation.topology.cpu_set();
    let placed = situation.placed.get(&app.id).copied().unwrap_or_default();
    let cpus = placed.cpus.unwrap_or(all).len();
    let cpus = MilliCpu::cpus(u64::try_from(cpus).unwrap_or(u64::MAX));
    let (memory, memory_bound) = memory(situation, demand, slice);
    let now = demand.memory_now;
    let above_floor = now
        .used
        .map_or(Bytes(0), |used| used.saturating_sub(app.floor.memory));
    let swap = situation.host.swap_free.unwrap_or(Bytes(0));
    let untouched = now.untouched().min(app.ceiling.swap.cut(swap));
    Seen {
        app,
        demand,
        cpus: app.ceiling.cpu.cut(cpus).as_cpus(),
        cpu_sets: situation.capabilities.offers(&app.id, Knob::Cpus) && !placed.yielded,
        memory,
        memory_bound,
        cold: Cold {
            file: now.cold_file,
            anon: untouched,
            most: above_floor,
        },
        divisible: divisible.map(|room| room.0 / 10_000),
        errors: demand.usage.errors,
    }
}

/// What those who were asked for memory may write to swap: in this period, or since they are at it.
fn promised_swap(situation: &Situation<'_>, plan: &Plan) -> Bytes {
    let asks = plan.give_back.asks.iter().chain(&plan.saves);
    let asked = asks.map(|(app, bytes)| (app, *bytes));
    let at_it = situation.demands.keys().filter_map(|app| {
        let reclaim = reclaim::running(situation, app)?;
        Some((app, reclaim.asked.saturating_sub(reclaim.got)))
    });
    let to_swap = asked.chain(at_it).map(|(app, bytes)| {
        let stat = situation.demands.get(app).and_then(|of| of.memory_now.stat);
        stat.map_or(bytes, |stat| bytes.min(stat.anon()))
    });
    to_swap.fold(Bytes(0), Bytes::saturating_add)
}

/// The memory that an app may have: by its own limits, or else what it holds and what the host has
/// left.
fn memory(
    situation: &Situation<'_>,
    demand: &Demand,
    slice: &Slice,
) -> (Option<Bytes>, MemoryBound) {
    let limits = slice.iter().filter_map(|setting| match setting {
        Setting::MemoryHigh(Limit::At(bytes)) | Setting::MemoryMax(Limit::At(bytes)) => {
            Some(*bytes)
        }
        _ => None,
    });
    // The kernel counts page cache as available, also that of the app.
    let now = demand.memory_now;
    let kept = now.used.zip(now.stat);
    let kept = kept.map(|(used, stat)| used.saturating_sub(stat.file()));
    let left = situation.host.available.zip(kept);
    let host = left.map(|(available, kept)| available.saturating_add(kept));
    match (limits.min(), host) {
        (Some(own), Some(host)) if host < own => (Some(host), MemoryBound::Host),
        (Some(own), _) => (Some(own), MemoryBound::Own),
        (None, host) => (host, MemoryBound::Host),
    }
}
