//! Answers of the daemon as text for people.

use std::fmt;

use forebay_api as api;
use forebay_core::units::Bytes;

use crate::output::{numbers, table, utc, words};

/// What stands for a reading that is not there.
const ABSENT: &str = "-";

/// Processor time, in CPUs.
pub(crate) fn cores(cpus: f64) -> String {
    format!("{cpus:.2}")
}

/// An amount of memory.
pub(crate) fn memory(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

/// A share.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

pub(super) fn memory_f64(bytes: f64) -> String {
    Bytes::from_f64(bytes).to_string()
}

/// Bytes per second.
pub(super) fn per_second(bytes: f64) -> String {
    format!("{}/s", memory_f64(bytes))
}

/// Requests per second.
pub(super) fn requests(per_second: f64) -> String {
    format!("{per_second:.1}/s")
}

/// A response time, in milliseconds.
pub(super) fn milliseconds(ms: f64) -> String {
    format!("{ms:.2} ms")
}

fn or_absent<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| ABSENT.to_owned(), show)
}

pub(super) fn limit<T>(limit: &api::Limit<T>, show: impl FnOnce(&T) -> String) -> String {
    match limit {
        api::Limit::At(value) => show(value),
        api::Limit::Max(_) => "max".to_owned(),
    }
}

/// A forecast's quantiles at a glance: `0.41-0.75-0.99`.
#[derive(Debug)]
pub(crate) struct Band<'a>(pub(crate) &'a api::Band);

impl fmt::Display for Band<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(band) = self;
        let text = format!("{:.2}-{:.2}-{:.2}", band.q50, band.q95, band.q99);
        f.pad(&text)
    }
}

/// Milliseconds of a time in seconds.
fn ms(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1000.0)
}

fn span(seconds: f64) -> String {
    let total = std::time::Duration::try_from_secs_f64(seconds)
        .unwrap_or_default()
        .as_secs();
    let (days, hours, minutes) = (total / 86_400, total / 3600 % 24, total / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{total} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", total % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

pub(super) fn status(status: &api::Status) -> String {
    let acting = match status.paused {
        true => "paused: observes and changes nothing; `forebay resume` goes on",
        false => "partitioning",
    };
    let timing = &status.timing;
    let agent = &status.agent;
    let share = agent.cpu_seconds / status.uptime_seconds.max(1e-9);
    let busy: Vec<f64> = status.host.cpus.iter().filter_map(|cpu| cpu.busy).collect();
    let owned = status.host.cpus.iter().filter(|cpu| cpu.owner.is_some());
    let lines = [
        ("forebay", format!("{}, {acting}", status.version)),
        (
            "running",
            format!(
                "{}, {} periods",
                span(status.uptime_seconds),
                status.period + 1
            ),
        ),
        (
            "punctuality",
            format!(
                "late by {} (p99 {}), took {}, {} overruns",
                ms(timing.late_seconds),
                ms(timing.late_p99_seconds),
                ms(timing.took_seconds),
                timing.overruns
            ),
        ),
        (
            "own use",
            format!(
                "{:.2}% of one CPU since it started, {}",
                share * 100.0,
                memory(agent.resident_bytes)
            ),
        ),
        (
            "CPUs",
            format!(
                "{}, {} busy, {} exclusive, shared: {}",
                status.host.cpus.len(),
                match busy.is_empty() {
                    true => ABSENT.to_owned(),
                    false => cores(busy.iter().sum()),
                },
                owned.count(),
                match status.host.shared_cpus.as_str() {
                    "" => "none",
                    list => list,
                }
            ),
        ),
        (
            "memory",
            format!(
                "{} available",
                or_absent(status.host.memory_available_bytes, memory)
            ),
        ),
        (
            "apps",
            format!("{}, {} running", status.apps, status.apps_running),
        ),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        text += &format!("{name:<12} {value}\n");
    }
    if let Some(fleet) = &status.fleet {
        text += &format!("fleet        {}\n", super::fleet::standing(fleet));
    }
    for shortfall in &status.shortfalls {
        text += &format!("cannot keep  {shortfall}\n");
    }
    text
}

pub(super) fn apps(apps: &[api::App]) -> String {
    if apps.is_empty() {
        return "no apps; start one with `forebay run --name NAME --class CLASS -- COMMAND`, \
                or configure some and `forebay reload`\n"
            .to_owned();
    }
    let rows: Vec<_> = apps
        .iter()
        .map(|app| {
            let demand = app.demand.as_ref();
            let slice = &app.slice;
            [
                app.name.clone(),
                app.class.to_string(),
                match &app.ending {
                    Some(ending) => format!("{} ({ending})", app.state),
                    None => app.state.to_string(),
                },
                or_absent(app.usage.cpu_cores, cores),
                or_absent(demand, |demand| Band(&demand.cpu).to_string()),
                or_absent(slice.cpus.clone(), |cpus| cpus),
                match slice.cpu_idle {
                    Some(true) => "idle".to_owned(),
                    _ => or_absent(slice.cpu_weight, |weight| weight.to_string()),
                },
                or_absent(app.usage.memory_bytes, memory),
                or_absent(slice.memory_low_bytes, memory),
                or_absent(slice.memory_high_bytes, |high| limit(&high, |b| memory(*b))),
            ]
        })
        .collect();
    let columns = [
        words("APP"),
        words("CLASS"),
        words("STATE"),
        numbers("CPU"),
        numbers("DEMAND q50-q95-q99"),
        words("CPUS"),
        numbers("WEIGHT"),
        numbers("MEMORY"),
        numbers("LOW"),
        numbers("HIGH"),
    ];
    table(columns, &rows)
}

pub(super) fn events(events: &[api::Event]) -> String {
    if events.is_empty() {
        return "no events\n".to_owned();
    }
    events.iter().map(|e| event(e) + "\n").collect()
}

pub(super) fn event(event: &api::Event) -> String {
    format!(
        "{}  {:<9}  {:<16}  {}",
        utc(event.time_unix_ms),
        event.kind,
        event.app.as_deref().unwrap_or("(host)"),
        event.message
    )
}

pub(super) fn history(history: &api::History) -> String {
    if history.rows.is_empty() {
        return format!(
            "no history of {} of {} in that time; an interval of {} is kept when it ends\n",
            history.resource,
            history.app,
            history.step.as_str()
        );
    }
    let show = |value: f64| match history.resource {
        api::Resource::Cpu | api::Resource::Accelerator | api::Resource::CpuAllowed => cores(value),
        api::Resource::CpuStalled => percent(value),
        api::Resource::Io | api::Resource::Received | api::Resource::Sent => per_second(value),
        api::Resource::Memory | api::Resource::MemoryAllowed => memory_f64(value),
        api::Resource::Requests => requests(value),
        api::Resource::ResponseTime => milliseconds(value),
    };
    let rows: Vec<_> = history
        .rows
        .iter()
        .map(|row| {
            [
                utc(row.time_unix_ms),
                show(row.min),
                show(row.mean),
                show(row.max),
                or_absent(row.demand_q95, show),
                row.samples.to_string(),
            ]
        })
        .collect();
    let columns = [
        words("FROM (UTC)"),
        numbers("MIN"),
        numbers("MEAN"),
        numbers("MAX"),
        numbers("DEMAND q95"),
        numbers("SAMPLES"),
    ];
    table(columns, &rows)
}

pub(super) fn forecast(forecast: &api::Forecast) -> String {
    let Some(demand) = &forecast.demand else {
        return format!(
            "{} does not run; there is no forecast of it\n",
            forecast.app
        );
    };
    let row = |name: &str, band: &api::Band, now: Option<f64>, show: fn(f64) -> String| {
        [
            name.to_owned(),
            or_absent(now, show),
            show(band.q50),
            show(band.q90),
            show(band.q95),
            show(band.q99),
            model(band),
        ]
    };
    let memory_now = forecast
        .usage
        .memory_bytes
        .map(|bytes| Bytes(bytes).as_f64());
    let rows = [
        row("cpu", &demand.cpu, forecast.usage.cpu_cores, cores),
        row("memory", &demand.memory, memory_now, memory_f64),
    ];
    let columns = [
        words("RESOURCE"),
        numbers("NOW"),
        numbers("q50"),
        numbers("q90"),
        numbers("q95"),
        numbers("q99"),
        words("MODEL"),
    ];
    let mut text = format!(
        "peak of {} within {} s:\n{}",
        forecast.app,
        forecast.horizon_seconds,
        table(columns, &rows)
    );
    if let Some(models) = &forecast.models {
        text += &scores("cpu", &models.cpu, |loss| format!("{loss:.4} CPU"));
        text += &scores("memory", &models.memory, memory_f64);
    }
    text += "\n";
    text + &super::forecast::text(forecast, &[], super::forecast::Detail::Full)
}

/// The model of a band, in words.
pub(super) fn model(band: &api::Band) -> String {
    match band.cold {
        true => format!("{} (too little history yet)", band.model),
        false => band.model.clone(),
    }
}

/// How the models did at peaks, which is what plans go by.
fn scores(resource: &str, scores: &[api::ModelScore], show: fn(f64) -> String) -> String {
    if scores.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = scores
        .iter()
        .filter(|score| score.peak)
        .map(|score| {
            [
                if score.used { "*" } else { "" }.to_owned(),
                score.model.clone(),
                format!("{} s", score.horizon_seconds),
                or_absent(score.pinball, show),
                score.samples.to_string(),
            ]
        })
        .collect();
    let columns = [
        words(" "),
        words("MODEL"),
        words("PEAK IN"),
        numbers("LOSS"),
        numbers("JUDGED"),
    ];
    format!(
        "\nmodels for {resource} (* in use; the least pinball loss at 0.95 is used):\n{}",
        table(columns, &rows)
    )
}

pub(super) fn plan(plan: &api::Plan) -> String {
    let rows: Vec<_> = plan
        .slices
        .iter()
        .map(|planned| {
            let slice = &planned.slice;
            let reason = planned.reason.as_ref();
            [
                planned.app.clone(),
                or_absent(reason, |reason| cores(reason.cpu_wanted_cores)),
                or_absent(slice.cpus.clone(), |cpus| cpus),
                or_absent(reason, |reason| match reason.exclusive_cpus.as_str() {
                    "" => ABSENT.to_owned(),
                    own => own.to_owned(),
                }),
                or_absent(slice.memory_low_bytes, memory),
                or_absent(slice.memory_high_bytes, |high| limit(&high, |b| memory(*b))),
            ]
        })
        .collect();
    let columns = [
        words("APP"),
        numbers("WANTS CPU"),
        words("CPUS"),
        words("EXCLUSIVE"),
        numbers("MEMORY LOW"),
        numbers("HIGH"),
    ];
    let mut text = table(columns, &rows);
    for shortfall in &plan.shortfalls {
        text += &format!("cannot keep: {shortfall}\n");
    }
    text += "\n";
    if plan.actions.is_empty() {
        text += "nothing would change\n";
    } else {
        text += "would change (nothing was):\n";
        for action in &plan.actions {
            text += &format!("  {}\n", action.what);
        }
    }
    text
}
