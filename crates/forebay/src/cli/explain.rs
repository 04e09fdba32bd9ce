//! Why an app's slice is what it is, in sentences with the numbers that decided.

use forebay_api as api;
use forebay_core::demand::{CLASS_PRIOR, PRESENT};
use forebay_core::units::Rate;

use super::render::{cores, limit, memory, milliseconds, model, per_second, requests};

/// The whole explanation, one paragraph for each decision.
pub(crate) fn explain(explanation: &api::Explanation) -> String {
    let app = &explanation.app;
    let mut paragraphs = vec![who(explanation)];
    match (&app.demand, &app.reason) {
        (Some(demand), Some(reason)) => {
            paragraphs.push(processor(explanation, &demand.cpu, reason));
            paragraphs.push(cpus(explanation, reason));
            paragraphs.push(memory_bounds(explanation, demand, reason));
            paragraphs.extend(network(app));
            paragraphs.extend(signals(app));
            paragraphs.extend(super::explain_io::io(explanation));
        }
        _ => paragraphs.push("It has no slice: only apps that run get one.".to_owned()),
    }
    paragraphs.extend(accelerator(app));
    paragraphs.extend(offload(explanation));
    for forecast in &explanation.external_forecasts {
        paragraphs.push(format!("A forecast of others: {forecast}."));
    }
    paragraphs.push(what_would_change_it(explanation));
    if explanation.paused {
        paragraphs.push(
            "Forebay is paused: what is in force stays, whatever is said above; `forebay \
             resume` goes on."
                .to_owned(),
        );
    }
    for shortfall in &explanation.shortfalls {
        paragraphs.push(format!("A promise cannot be kept: {shortfall}."));
    }
    paragraphs.join("\n\n") + "\n"
}

/// Where its compute tasks go; nothing where it has no worker that answers.
fn accelerator(app: &api::App) -> Option<String> {
    let used = app.accelerator.as_ref()?;
    let scarce = match used.cpu_price > 1.0 {
        true => format!(
            " A second of a CPU counts as {:.0} of an accelerator, since CPUs are scarce for it.",
            used.cpu_price
        ),
        false => String::new(),
    };
    let alone = match used.quarantined {
        0 => String::new(),
        count => format!(
            " {count} accelerator(s) are left alone after faults: `forebay accel devices --worker` with \
             its socket says why."
        ),
    };
    Some(format!(
        "Of its compute tasks {:.1}/s end on accelerators and {:.1}/s on CPUs; {} accelerator(s) take \
         them, {} of its kernels run there, and they are busy with it for {:.0}% of their time.{scarce}{alone}",
        used.on_devices_per_second,
        used.on_cpu_per_second,
        used.devices,
        used.kernels,
        100.0 * used.busy / f64::from(used.devices.max(1)),
    ))
}

/// What constrains it beyond its slice; nothing where nothing does and nothing was tried lately.
fn offload(explanation: &api::Explanation) -> Option<String> {
    let sentences = &explanation.offload;
    (!sentences.is_empty()).then(|| sentences.join(" "))
}

fn cpu(cores_: f64) -> String {
    format!("{} CPU", cores(cores_))
}

fn who(explanation: &api::Explanation) -> String {
    let app = &explanation.app;
    let state = match (app.state, &app.ending, app.main_pid) {
        (api::RunState::Running, _, Some(pid)) => format!("runs as process {pid}"),
        (api::RunState::Running, _, None) => "runs".to_owned(),
        (api::RunState::Absent, ..) => "has no processes".to_owned(),
        (api::RunState::Ended, Some(ending), _) => format!("ended with {ending}"),
        (api::RunState::Ended, None, _) => "ended".to_owned(),
    };
    let starts = match app.starts {
        0 | 1 => String::new(),
        starts => format!(", started {starts} times"),
    };
    format!(
        "{} is {} and {state}{starts} ({}).",
        app.name, app.class, explanation.rules.binding
    )
}

/// From use to the processor time that is wanted.
fn processor(explanation: &api::Explanation, band: &api::Band, reason: &api::Reason) -> String {
    let rules = &explanation.rules;
    let usage = &explanation.app.usage;
    let now = match (usage.cpu_cores, usage.cpu_stalled) {
        (Some(used), Some(stalled)) if stalled >= 0.005 => format!(
            "It uses {} now, and some task waited for a CPU {:.0}% of the time.",
            cpu(used),
            stalled * 100.0
        ),
        (Some(used), _) => format!("It uses {} now.", cpu(used)),
        (None, _) => "Its use is not known yet.".to_owned(),
    };
    let expected = format!(
        "Within {} s it is expected to peak at {} (q50), {} (q95), {} (q99), says the model `{}`.",
        rules.horizon_seconds,
        cores(band.q50),
        cores(band.q95),
        cpu(band.q99),
        band.model,
    );
    let foreseen = band.model != PRESENT;
    let start = match rules.request_cpu_cores {
        _ if band.model == CLASS_PRIOR => "class: what others of it need".to_owned(),
        Some(request) => format!("request of {}", cpu(request)),
        None => format!("floor of {}", cpu(rules.floor_cpu_cores)),
    };
    let forecast = match (foreseen, band.cold) {
        (false, _) => "Nothing is forecast (`forecast = \"off\"`).".to_owned(),
        (true, true) => format!(
            "{expected} There is too little history yet: the forecast starts from its {start} \
             and its bounds are wide."
        ),
        (true, false) => expected,
    };
    let at = |wanted: f64| (reason.cpu_demand_cores - wanted).abs() < 0.0015;
    let bound = match rules.ceiling_cpu_cores {
        api::Limit::At(ceiling) if at(ceiling) && band.q95 > ceiling => {
            format!("cut to its ceiling of {}", cpu(ceiling))
        }
        _ if at(rules.floor_cpu_cores) && band.q95 < rules.floor_cpu_cores => {
            format!("raised to its floor of {}", cpu(rules.floor_cpu_cores))
        }
        _ => format!(
            "within its floor of {} and its ceiling of {}",
            cores(rules.floor_cpu_cores),
            limit(&rules.ceiling_cpu_cores, |c| cpu(*c)),
        ),
    };
    let by = if foreseen { "q95" } else { "present use" };
    let extra = match reason.cpu_extra_cores {
        extra if extra > 0.0 => format!(" and {} more, since it is constrained,", cpu(extra)),
        _ => String::new(),
    };
    format!(
        "{now} {forecast} The plan goes by {by}: {}, {bound}. With {}% headroom{extra} that wants {}.",
        cpu(reason.cpu_demand_cores),
        rules.headroom_percent,
        cpu(reason.cpu_wanted_cores),
    )
}

/// From wanted processor time to CPUs.
fn cpus(explanation: &api::Explanation, reason: &api::Reason) -> String {
    let app = &explanation.app;
    let shared = match explanation.shared_cpus.as_str() {
        "" => "no CPU is shared".to_owned(),
        list => format!("the shared CPUs are {list}"),
    };
    let own = match (reason.exclusive_cpus.as_str(), app.class) {
        ("", api::Class::Critical) => format!(
            "It has no CPU of its own: the host's {} are too few for what all critical apps \
             want, so it goes ahead of the others where it runs.",
            explanation.host_cpus
        ),
        ("", api::Class::Standard) => {
            format!("Standard apps share the CPUs that critical ones leave; {shared}.")
        }
        ("", api::Class::Batch) => {
            format!("Batch runs in what the others leave; {shared}.")
        }
        (own, _) => format!(
            "CPU {own} of {} is its own: nobody else of its rank runs there.",
            explanation.host_cpus
        ),
    };
    let spill = match reason.spills {
        true => format!(
            " That does not hold what it wants, so it also runs on shared CPUs, ahead of the \
             others there; {shared}."
        ),
        false => String::new(),
    };
    let beyond = app.slice.cpus.as_deref().map_or(0.0, set_len);
    let lent = match app.class {
        api::Class::Critical if !reason.spills && beyond > set_len(&reason.exclusive_cpus) => {
            " While only batch is beside it, it may run there too, and batch may use its CPUs \
             while they are idle."
        }
        api::Class::Batch if beyond > set_len(&explanation.shared_cpus) => {
            " While no critical app waits, it also borrows what those leave idle of their own."
        }
        _ => "",
    };
    let held = match reason.held_cpus {
        0 => String::new(),
        held => format!(
            " {held} of its CPUs it would not be given anew: CPUs are taken back one core at a \
             time, each after {} s in which fewer would clearly have done.",
            explanation.rules.hold_seconds
        ),
    };
    format!("{own}{spill}{lent}{held} {}", in_force(&app.slice))
}

fn in_force(slice: &api::Slice) -> String {
    let mut knobs = Vec::new();
    if let Some(cpus) = &slice.cpus {
        knobs.push(format!("cpuset.cpus = {cpus}"));
    }
    if let Some(partition) = &slice.cpus_partition {
        knobs.push(format!("cpuset.cpus.partition = {partition}"));
    }
    if let Some(mems) = &slice.mems {
        knobs.push(format!("cpuset.mems = {mems}"));
    }
    if slice.cpu_idle == Some(true) {
        knobs.push("cpu.idle = 1".to_owned());
    }
    if let Some(weight) = slice.cpu_weight {
        knobs.push(format!("cpu.weight = {weight}"));
    }
    if let Some(max) = &slice.cpu_max_cores {
        knobs.push(format!("cpu.max = {}", limit(max, |c| cpu(*c))));
    }
    if let Some(percent) = slice.cpu_uclamp_min_percent {
        knobs.push(format!("cpu.uclamp.min = {percent}%"));
    }
    if let Some(percent) = slice.cpu_uclamp_max_percent {
        knobs.push(format!("cpu.uclamp.max = {percent}%"));
    }
    if let Some(percent) = slice.l3_cache_percent {
        knobs.push(format!("resctrl L3 = {percent}%"));
    }
    if let Some(percent) = slice.memory_bandwidth_percent {
        knobs.push(format!("resctrl MB = {percent}%"));
    }
    match knobs.is_empty() {
        true => "None of its CPU knobs is managed on this host.".to_owned(),
        false => format!("In force: {}.", knobs.join(", ")),
    }
}

/// What is known of memory without a file behind it, and who says so.
fn cold_anonymous(demand: &api::Demand) -> String {
    let cold = memory(demand.memory_cold_anonymous_bytes);
    match (demand.memory_witness, demand.memory_cold_anonymous_bytes) {
        (api::MemoryWitness::Lists, 0) => String::new(),
        (api::MemoryWitness::Lists, _) => format!(
            "{cold} of its anonymous memory seem cold, by the kernel's lists (memory.stat). "
        ),
        (api::MemoryWitness::Accesses, _) => format!(
            "{cold} of its anonymous memory are cold: watched by DAMON, and not touched lately. "
        ),
    }
}

fn memory_bounds(
    explanation: &api::Explanation,
    demand: &api::Demand,
    reason: &api::Reason,
) -> String {
    let band = &demand.memory;
    let slice = &explanation.app.slice;
    let now = match explanation.app.usage.memory_bytes {
        Some(used) if demand.memory_cold_bytes > 0 => format!(
            "It holds {} now, of which {} are page cache that was not used again, and not \
             planned for",
            memory(used),
            memory(demand.memory_cold_bytes)
        ),
        Some(used) => format!("It holds {} now", memory(used)),
        None => "How much memory it holds is not known".to_owned(),
    };
    let mut knobs = Vec::new();
    if let Some(min) = slice.memory_min_bytes {
        knobs.push(format!("memory.min = {}", memory(min)));
    }
    if let Some(low) = slice.memory_low_bytes {
        knobs.push(format!("memory.low = {}", memory(low)));
    }
    if let Some(high) = &slice.memory_high_bytes {
        knobs.push(format!("memory.high = {}", limit(high, |b| memory(*b))));
    }
    if let Some(max) = &slice.memory_max_bytes {
        knobs.push(format!("memory.max = {}", limit(max, |b| memory(*b))));
    }
    if let Some(max) = &slice.memory_swap_max_bytes {
        knobs.push(format!("memory.swap.max = {}", limit(max, |b| memory(*b))));
    }
    if let Some(max) = &slice.memory_zswap_max_bytes {
        knobs.push(format!("memory.zswap.max = {}", limit(max, |b| memory(*b))));
    }
    if let Some(value) = slice.oom_score_adj.filter(|value| *value != 0) {
        knobs.push(format!("oom_score_adj = {value}"));
    }
    let knobs = match knobs.is_empty() {
        true => "None of its memory knobs is managed on this host.".to_owned(),
        false => format!("In force: {}.", knobs.join(", ")),
    };
    let gave = explanation
        .app
        .reclaim
        .as_ref()
        .map_or_else(String::new, gave_back);
    let went = explanation
        .app
        .page_move
        .as_ref()
        .map_or_else(String::new, page_move);
    let cold = cold_anonymous(demand);
    let by = match band.model.as_str() {
        PRESENT => "present use".to_owned(),
        _ => format!("q95 by `{}`", model(band)),
    };
    format!(
        "{now}; {} is planned for ({by}, floor {}, ceiling {}). {cold}{knobs}{gave}{went}",
        memory(reason.memory_demand_bytes),
        memory(explanation.rules.floor_memory_bytes),
        limit(&explanation.rules.ceiling_memory_bytes, |b| memory(*b)),
    )
}

/// How far its pages are on their way to other nodes.
fn page_move(pages: &api::PageMove) -> String {
    let share = 100 * pages.looked_at_bytes / pages.mapped_bytes.max(1);
    let state = match pages.state {
        api::PageMoveState::Running => format!("{share} % of what it maps was looked at so far"),
        api::PageMoveState::Done => "all was looked at".to_owned(),
        api::PageMoveState::CutShort => format!("it was cut short at {share} %"),
    };
    format!(
        " Its pages go to node(s) {}: {} were moved, {} stay elsewhere; {state}.",
        pages.to_nodes,
        memory(pages.moved_bytes),
        memory(pages.stayed_bytes)
    )
}

/// What it was last asked to give back, and what came of it.
fn gave_back(reclaim: &api::Reclaim) -> String {
    let state = match reclaim.state {
        api::ReclaimState::Running => "the kernel is at it",
        api::ReclaimState::Done => "that is done",
        api::ReclaimState::Short => "the kernel found no more in time",
        api::ReclaimState::Failed => "the kernel refused, see the daemon's log",
    };
    format!(
        " It was last asked to give back {}; {} came, {state}.",
        memory(reclaim.asked_bytes),
        memory(reclaim.got_bytes)
    )
}

/// What goes over the network; nothing where it is not counted.
fn network(app: &api::App) -> Option<String> {
    let traffic = app.traffic.as_ref()?;
    let again = match traffic.retransmitted_segments {
        0 => String::new(),
        count => format!(", {count} segments again"),
    };
    let rates = app.usage.sent_bytes_per_second;
    let now = match rates.zip(app.usage.received_bytes_per_second) {
        Some((sent, received)) => format!(
            "It sends {} and receives {} now. ",
            per_second(sent),
            per_second(received)
        ),
        None => String::new(),
    };
    let counted = format!(
        "{now}It sent {} in {} packets{again}, and received {} in {}, since the daemon looks; \
         loopback is left out.",
        memory(traffic.sent_bytes),
        traffic.sent_packets,
        memory(traffic.received_bytes),
        traffic.received_packets,
    );
    Some(match &app.slice.egress_max_bytes_per_second {
        Some(api::Limit::At(rate)) => format!(
            "{counted} It may send {}; packets were held back {} times.",
            Rate(*rate),
            traffic.dropped_packets
        ),
        _ => counted,
    })
}

/// What it, its metrics or its front told lately; nothing where nobody tells.
fn signals(app: &api::App) -> Option<String> {
    let usage = &app.usage;
    let told = match (usage.requests_per_second, usage.response_time_ms) {
        (Some(rate), Some(time)) => format!(
            "It serves {} and answers in {}",
            requests(rate),
            milliseconds(time)
        ),
        (Some(rate), None) => format!("It serves {}", requests(rate)),
        (None, Some(time)) => format!("It answers in {}", milliseconds(time)),
        (None, None) => return None,
    };
    Some(format!(
        "{told}, as was told lately (a push, its metrics, or its front)."
    ))
}

fn what_would_change_it(explanation: &api::Explanation) -> String {
    let app = &explanation.app;
    let name = &app.name;
    let Some(reason) = &app.reason else {
        return "Once it runs, it gets a slice in the next period.".to_owned();
    };
    let wanted = reason.cpu_wanted_cores;
    let headroom = 1.0 + f64::from(explanation.rules.headroom_percent) / 100.0;
    let own = set_len(&reason.exclusive_cpus);
    let by_demand = match app.class {
        api::Class::Critical if reason.spills => {
            "It gets more CPUs of its own when other critical apps want less.".to_owned()
        }
        api::Class::Critical if own > 0.0 => format!(
            "It gets another CPU as soon as its demand exceeds {}, if the host has one, and \
             gives one back after {} s in which fewer would clearly have done.",
            cpu(own / headroom),
            explanation.rules.hold_seconds
        ),
        api::Class::Critical => format!(
            "It gets CPUs of its own when other critical apps want less: it wants {} itself.",
            cpu(wanted)
        ),
        api::Class::Standard | api::Class::Batch => {
            "Its CPUs change as critical apps grow and shrink.".to_owned()
        }
    };
    format!(
        "{by_demand} You can change it with `forebay set {name} floor.cpu=...`, `ceiling.cpu`, \
         `floor.memory` or `ceiling.memory`; `forebay plan --what-if {name} floor.cpu=...` shows \
         what that would do."
    )
}

/// How many numbers are in a list such as `0-3,8`.
fn set_len(list: &str) -> f64 {
    let cpus: Option<forebay_core::idset::CpuSet> = list.parse().ok();
    let count = cpus.map_or(0, |cpus| cpus.len());
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
