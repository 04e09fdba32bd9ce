//! From the domain to the wire, by hand: neither freezes the other.

use std::time::Duration;

use forebay_api as api;
use forebay_core::accel;
use forebay_core::app::{App, AppId, Binding, Class, Device, Policy};
use forebay_core::demand::{Band, Demand};
use forebay_core::host::Action;
use forebay_core::idset::CpuSet;
use forebay_core::offload::Climb;
use forebay_core::plan::{Plan, Reason, io};
use forebay_core::report::{AppReport, Event, EventKind, TickReport};
use forebay_core::slice::{Setting, Slice};
use forebay_core::snapshot::{PageMove, PageMoveState, Reclaim, ReclaimState, RunState, Traffic};
use forebay_core::units::{Bytes, Limit, MilliCpu, Time};
use forebay_core::working_set::Witness;
use forebay_forecast::{Forecast, ModelScore, Target};
use forebay_host::topology::NodeUse;

use super::AgentUse;
use super::feed::View;
use crate::control::{Models, Near};
use crate::outlook::levels;
use crate::training;

pub(super) fn status(view: &View, agent: AgentUse) -> api::Status {
    let report = &view.published.report;
    let timing = &view.published.timing;
    let running = report
        .apps
        .values()
        .filter(|app| app.state == RunState::Running);
    api::Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        period: report.period,
        time_unix_ms: report.time.unix_ms,
        uptime_seconds: report.time.monotonic.as_secs_f64(),
        paused: report.paused,
        timing: api::Timing {
            late_seconds: timing.late.as_secs_f64(),
            took_seconds: timing.took.as_secs_f64(),
            late_p99_seconds: timing.jitter_p99.as_secs_f64(),
            overruns: timing.overruns,
        },
        agent: api::Agent {
            cpu_seconds: agent.cpu.as_secs_f64(),
            resident_bytes: agent.resident.0,
        },
        host: host(view),
        apps: report.apps.len() as u64,
        apps_running: running.count() as u64,
        shortfalls: report.shortfalls.iter().map(ToString::to_string).collect(),
        fleet: None,
    }
}

fn host(view: &View) -> api::Host {
    let report = &view.published.report;
    let owned = |id: usize| {
        let owner = report.apps.iter().find(|(_, app)| {
            let reason = app.reason.as_ref();
            reason.is_some_and(|reason| reason.exclusive.contains(id))
        });
        owner.map(|(name, _)| name.to_string())
    };
    let known = view.published.topology.cpus();
    let place = |id: usize| known.iter().find(|cpu| cpu.id == id);
    api::Host {
        cpus: all_cpus(view)
            .iter()
            .filter_map(|id| {
                Some(api::Cpu {
                    id: u32::try_from(id).ok()?,
                    busy: view.busy.get(&id).copied(),
                    owner: owned(id),
                    node: place(id).and_then(|cpu| u32::try_from(cpu.node).ok()),
                    l3: place(id).and_then(|cpu| u32::try_from(cpu.l3).ok()),
                })
            })
            .collect(),
        shared_cpus: report.shared.to_string(),
        memory_available_bytes: report.host.memory_available.as_ref().ok().map(|b| b.0),
    }
}

/// Every CPU that is read, shared or somebody's own.
pub(super) fn all_cpus(view: &View) -> CpuSet {
    let report = &view.published.report;
    let read = report.host.cpu_busy.iter().flat_map(|busy| busy.keys());
    let owned = report.apps.values().filter_map(|app| app.reason.as_ref());
    owned.fold(
        report.shared.union(&read.copied().collect()),
        |all, reason| all.union(&reason.exclusive),
    )
}

pub(super) fn apps(view: &View) -> Vec<api::App> {
    let apps = &view.published.report.apps;
    apps.iter().map(|(id, report)| app(id, report)).collect()
}

pub(super) fn app(id: &AppId, report: &AppReport) -> api::App {
    let (state, ending) = match &report.state {
        RunState::Absent => (api::RunState::Absent, None),
        RunState::Running => (api::RunState::Running, None),
        RunState::Ended(ending) => (api::RunState::Ended, Some(ending.to_string())),
    };
    api::App {
        name: id.to_string(),
        class: class(report.class),
        state,
        ending,
        main_pid: report.main_pid,
        starts: report.starts,
        usage: usage(report),
        io: app_io(report),
        traffic: report.traffic.as_ref().map(traffic),
        demand: report.demand.as_ref().map(demand),
        slice: slice(&report.slice),
        reason: report.reason.as_ref().map(reason),
        reclaim: report.reclaim.map(reclaim),
        page_move: report.page_move.map(page_move),
        accelerator: report.usage.accelerator.map(accelerator),
    }
}

/// What moves of an app did lately, the latest last: also of one that is not here any more.
pub(super) fn moves_lately(events: &[Event], app: &AppId, now: Time) -> Vec<String> {
    /// Older ones are in `forebay events`.
    const LATELY: Duration = Duration::from_secs(3600);
    const MOST: usize = 4;
    let is_of = |event: &&Event| {
        event.kind == EventKind::Move
            && event.app.as_ref() == Some(app)
            && now.since(event.time) < LATELY
    };
    let latest = events.iter().rev().filter(is_of).take(MOST);
    let said = latest.map(|event| {
        let ago = now.since(event.time).as_secs();
        format!("{ago} s ago it {}.", event.message)
    });
    let mut said: Vec<String> = said.collect();
    said.reverse();
    said
}

/// What constrains an app beyond its slice, and what was tried about that.
pub(super) fn offload(report: Option<&AppReport>) -> Vec<String> {
    let climb = report.and_then(|report| report.offload.as_ref());
    climb.map_or_else(Vec::new, Climb::sentences)
}

/// An app that no period has seen yet.
pub(super) fn unseen(app: &App) -> api::App {
    api::App {
        name: app.id.to_string(),
        class: class(app.class),
        state: api::RunState::Absent,
        ending: None,
        main_pid: None,
        starts: 0,
        usage: api::Usage::default(),
        io: api::Io::default(),
        traffic: None,
        demand: None,
        slice: api::Slice::default(),
        reason: None,
        reclaim: None,
        page_move: None,
        accelerator: None,
    }
}

const fn accelerator(used: accel::Use) -> api::Accelerator {
    api::Accelerator {
        devices: used.devices,
        quarantined: used.quarantined,
        faults: used.faults,
        kernels: used.kernels,
        busy: used.busy,
        on_cpu_per_second: used.on_cpu,
        on_devices_per_second: used.on_devices,
        shared_bytes: used.shared.0,
        cpu_price: used.price,
    }
}

fn page_move(pages: PageMove) -> api::PageMove {
    api::PageMove {
        to_nodes: pages.to.to_string(),
        mapped_bytes: pages.mapped.0,
        looked_at_bytes: pages.looked_at.0,
        moved_bytes: pages.moved.0,
        stayed_bytes: pages.stayed.0,
        state: match pages.state {
            PageMoveState::Running => api::PageMoveState::Running,
            PageMoveState::Done => api::PageMoveState::Done,
            PageMoveState::CutShort => api::PageMoveState::CutShort,
        },
    }
}

const fn reclaim(reclaim: Reclaim) -> api::Reclaim {
    api::Reclaim {
        asked_bytes: reclaim.asked.0,
        got_bytes: reclaim.got.0,
        state: match reclaim.state {
            ReclaimState::Running => api::ReclaimState::Running,
            ReclaimState::Done => api::ReclaimState::Done,
            ReclaimState::Short => api::ReclaimState::Short,
            ReclaimState::Failed => api::ReclaimState::Failed,
        },
    }
}

pub(super) const fn class(class: Class) -> api::Class {
    match class {
        Class::Critical => api::Class::Critical,
        Class::Standard => api::Class::Standard,
        Class::Batch => api::Class::Batch,
    }
}

/// What is read in some periods only is told as it was last read.
pub(super) fn usage(report: &AppReport) -> api::Usage {
    let usage = &report.usage;
    api::Usage {
        cpu_cores: usage.cpu,
        cpu_stalled: usage.cpu_stalled,
        memory_bytes: usage.memory.map(|bytes| bytes.0),
        io_bytes_per_second: usage.io,
        received_bytes_per_second: report.network.map(|rates| rates.received),
        sent_bytes_per_second: report.network.map(|rates| rates.sent),
        requests_per_second: usage.requests,
        response_time_ms: usage.response_time,
    }
}

/// What is planned for the measured devices.
pub(super) fn devices(report: &TickReport, policy: &Policy) -> Vec<api::DevicePlan> {
    let part = |part: io::Ppm| f64::from(part.0) / f64::from(io::FREE.0);
    let planned = report.io.iter().filter_map(|(device, reason)| {
        let capability = policy.devices.get(device)?;
        Some(api::DevicePlan {
            device: device.to_string(),
            name: capability.name.clone(),
            read_bytes_per_second: capability.read.bytes_per_second(),
            read_requests_per_second: capability.read.requests_per_second(),
            read_p99_seconds: capability.read.latency_worst().as_secs_f64(),
            writes_measured: capability.write.is_some(),
            critical: part(reason.critical),
            room: part(reason.room),
            sharers: reason.sharers,
            bound: match reason.bound {
                io::Bound::Free => api::IoBound::Free,
                io::Bound::Bandwidth => api::IoBound::Bandwidth,
                io::Bound::Delay => api::IoBound::Delay,
            },
            pressed_to_percent: reason.pressed_to,
            used_by: reason.used_by.iter().map(ToString::to_string).collect(),
        })
    });
    planned.collect()
}

/// Memory by node, as the kernel has it now.
pub(super) fn memory(nodes: &[NodeUse]) -> Vec<api::NodeMemory> {
    let one = |node: &NodeUse| api::NodeMemory {
        node: node.id as u64,
        total_bytes: node.total.0,
        free_bytes: node.free.0,
        cache_bytes: node.cache.0,
    };
    nodes.iter().map(one).collect()
}

fn app_io(report: &AppReport) -> api::Io {
    let used = &report.io;
    let demand = |device: &Device| Some(&report.demand.as_ref()?.io.get(device)?.share);
    let devices = used.devices.iter().map(|(device, used)| api::DeviceIo {
        device: device.to_string(),
        read_bytes_per_second: used.rates.read_bytes,
        write_bytes_per_second: used.rates.write_bytes,
        reads_per_second: used.rates.reads,
        writes_per_second: used.rates.writes,
        share: used.share,
        demand: demand(device).map(band),
    });
    api::Io {
        devices: devices.collect(),
        stalled: used.stalled,
        wait_seconds: used.wait.map(|wait| wait.as_secs_f64()),
        wait_alone_seconds: used.wait_alone.map(|wait| wait.as_secs_f64()),
    }
}

fn traffic(traffic: &Traffic) -> api::Traffic {
    api::Traffic {
        received_bytes: traffic.received.0,
        received_packets: traffic.received_packets,
        sent_bytes: traffic.sent.0,
        sent_packets: traffic.sent_packets,
        dropped_packets: traffic.dropped_packets,
        retransmitted_segments: traffic.retransmitted,
    }
}

fn band(band: &Band) -> api::Band {
    api::Band {
        q50: band.q50,
        q90: band.q90,
        q95: band.q95,
        q99: band.q99,
        model: band.model.clone(),
        cold: band.cold,
    }
}

pub(super) fn demand(demand: &Demand) -> api::Demand {
    api::Demand {
        cpu: band(&demand.cpu),
        memory: band(&demand.memory),
        memory_cold_bytes: demand.memory_now.cold_file.0,
        memory_cold_anonymous_bytes: demand.memory_now.cold_anon.0,
        memory_witness: match demand.memory_now.witness {
            Witness::Lists => api::MemoryWitness::Lists,
            Witness::Accesses => api::MemoryWitness::Accesses,
        },
    }
}

pub(super) fn slice(slice: &Slice) -> api::Slice {
    let mut wire = api::Slice::default();
    for setting in slice.iter() {
        match setting {
            Setting::Cpus(cpus) => wire.cpus = Some(cpus.to_string()),
            Setting::CpusPartition(partition) => wire.cpus_partition = Some(partition.to_string()),
            Setting::Mems(nodes) => wire.mems = Some(nodes.to_string()),
            Setting::CpuWeight(weight) => wire.cpu_weight = Some(*weight),
            Setting::CpuIdle(idle) => wire.cpu_idle = Some(*idle),
            Setting::CpuMax(max) => wire.cpu_max_cores = Some(cores_limit(*max)),
            Setting::CpuBurst(burst) => wire.cpu_burst_cores = Some(burst.as_cpus()),
            Setting::CpuUclampMin(clamp) => wire.cpu_uclamp_min_percent = Some(clamp.as_percent()),
            Setting::CpuUclampMax(clamp) => wire.cpu_uclamp_max_percent = Some(clamp.as_percent()),
            Setting::MemoryMin(bytes) => wire.memory_min_bytes = Some(bytes.0),
            Setting::MemoryLow(bytes) => wire.memory_low_bytes = Some(bytes.0),
            Setting::MemoryHigh(max) => wire.memory_high_bytes = Some(bytes_limit(*max)),
            Setting::MemorySwapMax(max) => {
                wire.memory_swap_max_bytes = Some(bytes_limit(*max));
            }
            Setting::MemoryZswapMax(max) => {
                wire.memory_zswap_max_bytes = Some(bytes_limit(*max));
            }
            Setting::MemoryMax(max) => wire.memory_max_bytes = Some(bytes_limit(*max)),
            Setting::IoWeight(weight) => wire.io_weight = Some(*weight),
            Setting::IoMax(device, max) => wire.io_max.push(api::IoMax {
                device: device.to_string(),
                rbps: limit(max.rbps),
                wbps: limit(max.wbps),
                riops: limit(max.riops),
                wiops: limit(max.wiops),
            }),
            Setting::IoLatency(device, target) => wire.io_latency.push(api::IoLatency {
                device: device.to_string(),
                target_seconds: match target {
                    Limit::At(target) => api::Limit::At(target.as_secs_f64()),
                    Limit::Max => api::Limit::MAX,
                },
            }),
            Setting::PidsMax(max) => wire.pids_max = Some(limit(*max)),
            Setting::L3Cache(percent) => wire.l3_cache_percent = Some(*percent),
            Setting::OomScoreAdj(value) => wire.oom_score_adj = Some(*value),
            Setting::MemoryBandwidth(percent) => wire.memory_bandwidth_percent = Some(*percent),
            Setting::EgressMax(rate) => {
                wire.egress_max_bytes_per_second = Some(match rate {
                    Limit::At(rate) => api::Limit::At(rate.0),
                    Limit::Max => api::Limit::MAX,
                });
            }
        }
    }
    wire
}

fn limit<T>(limit: Limit<T>) -> api::Limit<T> {
    match limit {
        Limit::At(value) => api::Limit::At(value),
        Limit::Max => api::Limit::MAX,
    }
}

fn cores_limit(limit: Limit<MilliCpu>) -> api::Limit<f64> {
    match limit {
        Limit::At(cpu) => api::Limit::At(cpu.as_cpus()),
        Limit::Max => api::Limit::MAX,
    }
}

fn bytes_limit(limit: Limit<Bytes>) -> api::Limit<u64> {
    match limit {
        Limit::At(bytes) => api::Limit::At(bytes.0),
        Limit::Max => api::Limit::MAX,
    }
}

fn reason(reason: &Reason) -> api::Reason {
    api::Reason {
        cpu_demand_cores: reason.cpu_demand.as_cpus(),
        cpu_wanted_cores: reason.cpu_wanted.as_cpus(),
        cpu_extra_cores: reason.cpu_extra.as_cpus(),
        exclusive_cpus: reason.exclusive.to_string(),
        spills: reason.spills,
        held_cpus: reason.held_cpus as u64,
        memory_demand_bytes: reason.memory_demand.0,
    }
}

pub(super) fn event(event: &Event) -> api::Event {
    api::Event {
        time_unix_ms: event.time.unix_ms,
        app: event.app.as_ref().map(ToString::to_string),
        kind: event_kind(event.kind).to_owned(),
        message: event.message.clone(),
    }
}

pub(super) const fn event_kind(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Started => "started",
        EventKind::Appeared => "appeared",
        EventKind::Ended => "ended",
        EventKind::Slice => "slice",
        EventKind::Foreign => "foreign",
        EventKind::Failed => "failed",
        EventKind::Shortfall => "shortfall",
        EventKind::Released => "released",
        EventKind::Tier => "tier",
        EventKind::Offload => "offload",
        EventKind::Forecast => "forecast",
        EventKind::Accelerator => "accelerator",
        EventKind::Shadow => "shadow",
        EventKind::Fleet => "fleet",
        EventKind::Move => "move",
        EventKind::Update => "update",
    }
}

pub(super) fn models(models: &Models, policy: &Policy) -> api::Models {
    let score = |score: &ModelScore| api::ModelScore {
        model: score.name.to_owned(),
        horizon_seconds: policy
            .period
            .saturating_mul(u32::try_from(score.steps).unwrap_or(u32::MAX))
            .as_secs_f64(),
        peak: score.target == Target::Peak,
        pinball: score.pinball,
        samples: score.samples,
        used: score.used,
    };
    api::Models {
        cpu: models.cpu.iter().map(score).collect(),
        memory: models.memory.iter().map(score).collect(),
    }
}

/// Puts what the series of the control period say before what is further ahead, and holds peaks to
/// what is reached earlier.
pub(super) fn add_near(
    resources: &mut Vec<api::ResourceForecast>,
    near: &[Near],
    query: &api::ForecastQuery,
) {
    for near in near.iter().rev() {
        let name = near.resource.as_str();
        let wanted = query
            .resource
            .as_deref()
            .is_none_or(|wanted| wanted == name);
        let within = query
            .horizon_seconds
            .is_none_or(|horizon| near.ahead.as_secs_f64() <= horizon);
        if !wanted || !within {
            continue;
        }
        let row = near_row(near);
        match resources.iter_mut().find(|one| one.resource == name) {
            Some(known) => known.rows.insert(0, row),
            None => resources.insert(
                0,
                api::ResourceForecast {
                    resource: name.to_owned(),
                    rows: vec![row],
                    course: Vec::new(),
                    scales: Vec::new(),
                },
            ),
        }
    }
    for one in resources {
        in_order(&mut one.rows);
    }
}

/// The greatest value until a moment is not below the greatest until an earlier one.
fn in_order(rows: &mut [api::ForecastRow]) {
    for i in 1..rows.len() {
        let earlier = rows[i - 1].peak;
        let peak = &mut rows[i].peak;
        peak.q50 = peak.q50.max(earlier.q50);
        peak.q90 = peak.q90.max(earlier.q90);
        peak.q95 = peak.q95.max(earlier.q95);
        peak.q99 = peak.q99.max(earlier.q99);
    }
}

fn near_row(near: &Near) -> api::ForecastRow {
    let share = |forecast: &Forecast| {
        vec![api::ModelShare {
            model: forecast.model.to_owned(),
            weight: 1.0,
        }]
    };
    api::ForecastRow {
        seconds: near.ahead.as_secs_f64(),
        value: Some(levels(near.value.quantiles)),
        peak: levels(near.peak.quantiles),
        bucket_seconds: 0.0,
        cold: near.peak.cold,
        centre: share(&near.value),
        bound: share(&near.peak),
        bound_excess: 0.0,
        known: None,
    }
}

pub(super) fn learning(status: &training::Status) -> api::Learning {
    let (before, now) = status.held_out.unzip();
    api::Learning {
        phase: status.phase.as_str().to_owned(),
        version: status.version,
        on_trial: status.on_trial,
        verdict: status.verdict.map(|verdict| verdict.as_str().to_owned()),
        loss_before: before,
        loss: now,
        cpu_seconds: status.cpu.as_secs_f64(),
        trouble: status.trouble.clone(),
    }
}

pub(super) fn rules(app: &App, policy: &Policy) -> api::Rules {
    api::Rules {
        binding: binding(&app.binding),
        floor_cpu_cores: app.floor.cpu.as_cpus(),
        floor_memory_bytes: app.floor.memory.0,
        ceiling_cpu_cores: cores_limit(app.ceiling.cpu),
        ceiling_memory_bytes: bytes_limit(app.ceiling.memory),
        ceiling_swap_bytes: Some(bytes_limit(app.ceiling.swap)),
        ceiling_pids: limit(app.ceiling.pids),
        request_cpu_cores: app.request.map(MilliCpu::as_cpus),
        headroom_percent: policy.headroom_percent,
        horizon_seconds: policy.horizon.as_secs_f64(),
        hold_seconds: policy.hold.as_secs_f64(),
        response_time_max_ms: app
            .response_time_max
            .map(|most| most.as_secs_f64() * 1000.0),
        moves_by: app.mobility.as_ref().map(|of| of.way.to_string()),
    }
}

fn binding(binding: &Binding) -> String {
    match binding {
        Binding::Exec(exec) => format!("exec {}", exec.command.join(" ")),
        Binding::Cgroup(path) => format!("cgroup {}", path.display()),
        Binding::Systemd(unit) => format!("systemd {unit}"),
        Binding::Container(name) => format!("container {name}"),
        Binding::Match(wanted) => {
            let executable = wanted.executable.as_deref();
            let line = wanted.command_line.as_ref();
            let line = line.map(|text| format!("a command line with `{text}`"));
            let parts: Vec<&str> = executable.into_iter().chain(line.as_deref()).collect();
            format!("match {}", parts.join(" and "))
        }
    }
}

pub(super) fn plan(plan: &Plan, actions: &[Action]) -> api::Plan {
    let slices = plan.slices.iter().map(|(id, planned)| api::PlannedSlice {
        app: id.to_string(),
        slice: slice(planned),
        reason: plan.reasons.get(id).map(reason),
    });
    let actions = actions.iter().map(|action| api::Action {
        app: action.app().map(ToString::to_string),
        what: action.to_string(),
    });
    api::Plan {
        slices: slices.collect(),
        shared_cpus: plan.shared.to_string(),
        shortfalls: plan.shortfalls.iter().map(ToString::to_string).collect(),
        actions: actions.collect(),
    }
}
