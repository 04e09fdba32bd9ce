//! What must hold after every control period.

use forebay_core::app::{App, AppId, Class, IoProtection};
use forebay_core::host::{Action, Host, Outcome};
use forebay_core::idset::CpuSet;
use forebay_core::plan::{Plan, Shortfall, io};
use forebay_core::report::{EventKind, TickReport};
use forebay_core::slice::{Knob, Setting, Slice};
use forebay_core::state::State;
use forebay_core::tick::Inputs;
use forebay_core::units::{Bytes, Limit, MilliCpu};

use super::scenario::Scenario;
use crate::disk::DEVICE;
use crate::fault::Faults;
use crate::group;
use crate::host::SimHost;

type Check = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

pub(super) fn after_tick(
    scenario: &Scenario,
    state: &State,
    inputs: &Inputs<'_>,
    report: &TickReport,
) -> Check {
    report_is_true(scenario, report)?;
    let (plan, mut again) = state.what_if(&scenario.host, inputs);
    // What is on its way is asked for again.
    let pending = |action: &Action| {
        let outcomes = report.actions.iter();
        outcomes
            .filter(|(_, outcome)| *outcome == Outcome::Pending)
            .any(|(asked, _)| match (asked, action) {
                (Action::Set { app: a, setting: x }, Action::Set { app: b, setting: y }) => {
                    a == b && x.knob() == y.knob()
                }
                _ => false,
            })
    };
    again.retain(|action| !pending(action));
    // What a ladder takes or gives back counts in the next plan, which is held against the one after it.
    let climbs = (report.events.iter()).any(|event| event.kind == EventKind::Offload);
    if !inputs.paused && !climbs {
        ensure!(
            again.is_empty(),
            "the same situation gives new settings: {}",
            again
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ")
        );
    }
    nothing_is_forgotten(scenario, inputs, report)?;
    interrupts_leave_them_alone(scenario, inputs, &plan)?;
    costs_are_those_planned(scenario, inputs, &plan)?;
    cpus_are_placed(scenario, &plan)?;
    floors_and_ceilings_hold(scenario, &plan)?;
    memory_fits(scenario, &plan)
}

/// What is said to be in force is in force, except in a group that was made in this very
/// period; what failed says for which app.
fn report_is_true(scenario: &Scenario, report: &TickReport) -> Check {
    for (id, app) in &report.apps {
        let group = SimHost::group_of(&scenario.policy.apps[id]);
        if !scenario.seen.contains(&group) {
            continue;
        }
        // A partition that another's CPUs break is seen in the next period.
        let lasting = |s: &&Setting| s.knob() != Knob::CpusPartition;
        for setting in app.slice.iter().filter(lasting) {
            if let Some(is) = scenario.host.read(&group, setting.knob()) {
                ensure!(
                    is == *setting,
                    "{id}: reports {setting}, the kernel has {is}"
                );
            }
        }
    }
    for (action, outcome) in &report.actions {
        if let Outcome::Failed(why) = outcome {
            ensure!(
                why.contains(object(action)),
                "`{action}` failed without naming its object: {why}"
            );
        }
    }
    Ok(())
}

/// What an action is about, as what failed of it names it.
fn object(action: &Action) -> &str {
    match action {
        Action::CostModel { .. } => "cost model",
        Action::WatchMemory { .. } => "watch",
        _ => action.app().map_or("interrupts", AppId::as_str),
    }
}

/// Where the kernel knows costs, they are those of the plan.
fn costs_are_those_planned(scenario: &Scenario, inputs: &Inputs<'_>, plan: &Plan) -> Check {
    if inputs.paused || scenario.host.faults != Faults::default() {
        return Ok(());
    }
    let planned = plan.cost_models.contains_key(&DEVICE);
    ensure!(
        scenario.host.has_cost_model(DEVICE) == planned,
        "a cost model is planned: {planned}, and in force is the contrary"
    );
    Ok(())
}

/// In a host without faults no interrupt is served on CPUs that are to be left alone.
fn interrupts_leave_them_alone(scenario: &Scenario, inputs: &Inputs<'_>, plan: &Plan) -> Check {
    if inputs.paused || scenario.host.faults != Faults::default() {
        return Ok(());
    }
    for (number, cpus) in scenario.host.interrupts() {
        ensure!(
            cpus.is_disjoint(&plan.keep_interrupts_off),
            "interrupt {number} is served on {cpus}, to be left alone are {}",
            plan.keep_interrupts_off
        );
    }
    Ok(())
}

/// Only batch apps run in the idle class and only limited apps have limits, also after the
/// policy changed.
fn nothing_is_forgotten(scenario: &Scenario, inputs: &Inputs<'_>, report: &TickReport) -> Check {
    if inputs.paused || scenario.host.faults != Faults::default() {
        return Ok(());
    }
    for (id, app) in &report.apps {
        let group = SimHost::group_of(&scenario.policy.apps[id]);
        let idle = scenario.host.read(&group, Knob::CpuIdle) == Some(Setting::CpuIdle(true));
        // The owner of a group takes its time.
        let on_its_way = |knob: Knob| {
            report.actions.iter().any(|(action, outcome)| {
                *outcome == Outcome::Pending
                    && matches!(action, Action::Set { app, setting } if app == id && setting.knob() == knob)
            })
        };
        ensure!(
            !idle || app.class == Class::Batch || app.reason.is_none() || on_its_way(Knob::CpuIdle),
            "{id} is {} and in the idle class",
            app.class
        );
        let planned = report.io.get(&DEVICE);
        let limited = scenario.policy.apps[id].io_max.contains_key(&DEVICE)
            || app.class == Class::Batch && planned.is_some_and(|planned| planned.room < io::FREE);
        let knob = Knob::IoMax(DEVICE);
        let is = scenario.host.read(&group, knob);
        let free = on_its_way(knob)
            || is.is_none_or(|is| is == group::default(knob, scenario.host.topology()));
        ensure!(
            limited || free || app.reason.is_none(),
            "{id} has a limit that neither its policy nor the plan has: {is:?}"
        );
        let targeted =
            scenario.policy.io_protection == IoProtection::Latency && app.class == Class::Critical;
        let knob = Knob::IoLatency(DEVICE);
        let is = scenario.host.read(&group, knob);
        let free = on_its_way(knob)
            || is.is_none_or(|is| is == group::default(knob, scenario.host.topology()));
        ensure!(
            targeted || free || app.reason.is_none(),
            "{id} has a target that nobody asked for: {is:?}"
        );
    }
    Ok(())
}

fn cpus_are_placed(scenario: &Scenario, plan: &Plan) -> Check {
    let all = scenario.host.topology().cpu_set();
    let offered = scenario.host.capabilities().knobs.contains(&Knob::Cpus);
    let mut somewhere = plan.shared;
    let mut owned = CpuSet::EMPTY;
    for (id, reason) in &plan.reasons {
        somewhere = somewhere.union(&reason.exclusive);
        let own = &reason.exclusive;
        ensure!(own.is_subset(&all), "{id} owns CPUs {own} of {all}");
        ensure!(
            own.is_disjoint(&owned) && own.is_disjoint(&plan.shared),
            "{id} owns {own}, owned {owned}, shared {}",
            plan.shared
        );
        owned = owned.union(own);
    }
    ensure!(somewhere == all, "CPUs {all}, placed {somewhere}");
    if !offered {
        return Ok(());
    }
    for (id, slice) in &plan.slices {
        let Some(cpus) = slice.cpus() else {
            return Err(format!("{id} has no CPU set"));
        };
        ensure!(!cpus.is_empty(), "{id} has an empty CPU set");
        ensure!(cpus.is_subset(&all), "{id} has {cpus} of {all}");
        let borrows = plan.lends && scenario.policy.apps[id].class == Class::Batch;
        for (other, reason) in plan.reasons.iter().filter(|(other, _)| *other != id) {
            if borrows {
                continue;
            }
            ensure!(
                cpus.is_disjoint(&reason.exclusive),
                "{id} has {cpus}, of which {other} owns {}",
                reason.exclusive
            );
        }
    }
    Ok(())
}

fn floors_and_ceilings_hold(scenario: &Scenario, plan: &Plan) -> Check {
    let cpu_short = plan
        .shortfalls
        .iter()
        .any(|s| matches!(s, Shortfall::Cpu { .. }));
    let memory_short = plan
        .shortfalls
        .iter()
        .any(|s| matches!(s, Shortfall::Memory { .. }));
    let mut pooled = MilliCpu(0);
    for (id, slice) in &plan.slices {
        let app = &scenario.policy.apps[id];
        let reason = &plan.reasons[id];
        if app.class == Class::Critical {
            let own = MilliCpu::cpus(reason.exclusive.len() as u64);
            ensure!(
                cpu_short || own >= app.floor.cpu || reason.spills,
                "{id} has {own} for a floor of {}",
                app.floor.cpu
            );
            pooled.0 += app.floor.cpu.0.saturating_sub(own.0);
        } else {
            pooled.0 += app.floor.cpu.0;
        }
        limits_hold(app, slice, memory_short)?;
    }
    let pool = MilliCpu::cpus(plan.shared.len() as u64);
    ensure!(
        cpu_short || pooled <= pool,
        "floors of {pooled} share a pool of {pool}"
    );
    Ok(())
}

fn limits_hold(app: &App, slice: &Slice, memory_short: bool) -> Check {
    let App {
        id, floor, ceiling, ..
    } = app;
    for setting in slice.iter() {
        let holds = match *setting {
            Setting::CpuMax(quota) => quota.allows(floor.cpu) && quota <= ceiling.cpu,
            Setting::MemoryMax(max) => max.allows(floor.memory) && max <= ceiling.memory,
            Setting::MemorySwapMax(max) => max <= ceiling.swap,
            Setting::MemoryZswapMax(max) => max <= ceiling.zswap,
            Setting::MemoryHigh(high) => high.allows(floor.memory),
            Setting::MemoryMin(min) => memory_short || min >= floor.memory,
            Setting::MemoryLow(low) => memory_short || low >= floor.memory,
            Setting::PidsMax(pids) => pids <= ceiling.pids,
            Setting::EgressMax(rate) => rate <= ceiling.egress,
            Setting::L3Cache(percent) | Setting::MemoryBandwidth(percent) => {
                app.class == Class::Batch && (1..=100).contains(&percent)
            }
            Setting::CpuWeight(weight) | Setting::IoWeight(weight) => {
                (1..=10_000).contains(&weight)
            }
            Setting::OomScoreAdj(value) => match app.class {
                Class::Critical => value < 0,
                Class::Standard => value == 0,
                Class::Batch => value > 0,
            },
            Setting::CpuIdle(idle) => !idle || app.class == Class::Batch,
            Setting::CpuUclampMin(min) => app.uclamp.min == Some(min),
            Setting::CpuUclampMax(max) => app.uclamp.max == Some(max),
            _ => true,
        };
        ensure!(
            holds,
            "{id}: {setting}, floor {floor:?}, ceiling {ceiling:?}"
        );
    }
    Ok(())
}

/// Memory that is promised is there.
fn memory_fits(scenario: &Scenario, plan: &Plan) -> Check {
    let policy = &scenario.policy;
    let room = scenario
        .host
        .topology()
        .memory()
        .saturating_sub(policy.system_memory);
    for knob in [Knob::MemoryMin, Knob::MemoryLow] {
        let mut sum = Bytes(0);
        for slice in plan.slices.values() {
            if let Some(Setting::MemoryMin(bytes) | Setting::MemoryLow(bytes)) = slice.get(knob) {
                sum = sum.saturating_add(*bytes);
            }
        }
        ensure!(
            Limit::At(room).allows(sum),
            "{knob} sums to {sum}, apps may use {room}"
        );
    }
    Ok(())
}
