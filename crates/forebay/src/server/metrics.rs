//! Every metric there is, in one place. Names follow `forebay_<noun>_<unit>[_total]`; what is
//! counted or is yes or no has no unit.
//!
//! A scrape makes a registry of its own from the latest report, so that an app that is gone
//! leaves no stale value behind; what must add up is counted by the feed.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use forebay_api as api;
use forebay_core::accel::Use;
use forebay_core::app::AppId;
use forebay_core::demand::Band;
use forebay_core::io_history::DeviceUse;
use forebay_core::offload::Rung;
use forebay_core::offload::ladder::Verdict;
use forebay_core::report::AppReport;
use forebay_core::slice::{Knob, Setting};
use forebay_core::snapshot::{RunState, Traffic};
use forebay_core::units::{Bytes, Limit};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use super::AgentUse;
use super::convert::event_kind;
use super::feed::{Totals, View};

mod continuity;

pub(super) use continuity::Continuity;

type Labels = Vec<(&'static str, String)>;
/// Values, each of one direction or of both together.
type ByDirection = Vec<(Option<&'static str>, f64)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;

/// The metrics now, in the text format of OpenMetrics.
pub(super) fn render(
    view: Option<&View>,
    totals: &Totals,
    agent: AgentUse,
    movers: &[api::Tier],
    continuity: &Continuity,
) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("forebay");
    daemon(&mut registry, totals, agent);
    if let Some(view) = view {
        period(&mut registry, view);
        host(&mut registry, view);
        apps(&mut registry, view);
    }
    if !movers.is_empty() {
        tiers(&mut registry, movers);
    }
    continuity::register(&mut registry, continuity);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn daemon(registry: &mut Registry, totals: &Totals, agent: AgentUse) {
    registry.register(
        "build_info",
        "The daemon's version",
        gauges([(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0)]),
    );
    registry.register(
        "agent_cpu_seconds",
        "Processor time the daemon used",
        ConstCounter::new(agent.cpu.as_secs_f64()),
    );
    registry.register(
        "agent_resident_bytes",
        "Memory the daemon holds",
        ConstGauge::new(agent.resident.as_f64()),
    );
    let events: Family<Labels, prometheus_client::metrics::counter::Counter> = Family::default();
    for (kind, count) in &totals.events {
        let labels = vec![("kind", event_kind(*kind).to_owned())];
        events.get_or_create(&labels).inc_by(*count);
    }
    registry.register("events", "Events, by kind", events);
    registry.register(
        "actions_failed",
        "Effects on the host that failed and are tried again",
        ConstCounter::new(totals.actions_failed),
    );
    registry.register(
        "offload_steps",
        "Rungs of the offload ladder that were taken, by what became of them",
        counters(totals.steps.iter().map(|((rung, verdict), count)| {
            let labels = vec![
                ("rung", rung_word(*rung).to_owned()),
                ("outcome", verdict_word(*verdict).to_owned()),
            ];
            (labels, *count)
        })),
    );
    registry.register(
        "tick_busy_seconds",
        "Time spent in control periods",
        ConstCounter::new(totals.took.as_secs_f64()),
    );
}

fn period(registry: &mut Registry, view: &View) {
    let report = &view.published.report;
    let timing = &view.published.timing;
    registry.register(
        "ticks",
        "Control periods",
        ConstCounter::new(report.period + 1),
    );
    registry.register(
        "tick_seconds",
        "Time the latest control period took",
        ConstGauge::new(timing.took.as_secs_f64()),
    );
    let p99 = vec![("quantile", "0.99".to_owned())];
    registry.register(
        "tick_late_seconds",
        "How late control periods began lately",
        gauges([(p99, timing.jitter_p99.as_secs_f64())]),
    );
    registry.register(
        "tick_overruns",
        "Control periods skipped because the one before took too long",
        ConstCounter::new(timing.overruns),
    );
    registry.register(
        "paused",
        "1 while Forebay only observes",
        ConstGauge::new(u32::from(report.paused)),
    );
    registry.register(
        "shortfalls",
        "Promises that cannot be kept now",
        ConstGauge::new(count(report.shortfalls.len())),
    );
    let constrained = report.apps.values().filter(|app| {
        let climb = app.offload.as_ref();
        climb.is_some_and(|climb| !climb.constraints.is_empty())
    });
    registry.register(
        "offload_constrained_apps",
        "Apps that are constrained now",
        ConstGauge::new(count(constrained.count())),
    );
}

const fn rung_word(rung: Rung) -> &'static str {
    match rung {
        Rung::SpreadThreads => "spread_threads",
        Rung::WidenSlice => "widen_slice",
        Rung::Compact => "compact",
        Rung::ReclaimBatch => "reclaim_batch",
        Rung::ReclaimOwn => "reclaim_own",
        Rung::RebalanceIo => "rebalance_io",
        Rung::PromoteTier => "promote_tier",
        Rung::Move => "move",
        Rung::Accelerate => "accelerate",
    }
}

const fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Kept => "kept",
        Verdict::Undone => "undone",
        Verdict::Spent => "spent",
        Verdict::Refused => "refused",
    }
}

fn host(registry: &mut Registry, view: &View) {
    let report = &view.published.report;
    registry.register(
        "host_cpu_busy_ratio",
        "Share of the last second in which a CPU was busy",
        gauges(
            view.busy
                .iter()
                .map(|(cpu, busy)| (vec![("cpu", cpu.to_string())], *busy)),
        ),
    );
    registry.register(
        "host_shared_cpus",
        "CPUs that are nobody's own",
        ConstGauge::new(count(report.shared.len())),
    );
    if let Ok(available) = &report.host.memory_available {
        registry.register(
            "host_memory_available_bytes",
            "Memory that could be had without swapping",
            ConstGauge::new(available.as_f64()),
        );
    }
}

/// What apps do on block devices.
fn io(registry: &mut Registry, view: &View) {
    let apps = &view.published.report.apps;
    let by_device = |value: fn(&DeviceUse) -> ByDirection| {
        gauges(apps.iter().flat_map(move |(id, app)| {
            app.io.devices.iter().flat_map(move |(device, used)| {
                value(used).into_iter().map(move |(way, value)| {
                    let mut labels = labels(id, app);
                    labels.push(("device", device.to_string()));
                    labels.extend(way.map(|way| ("direction", way.to_owned())));
                    (labels, value)
                })
            })
        }))
    };
    registry.register(
        "app_io_bytes_per_second",
        "Bytes that the app reads from and writes to a block device, per second",
        by_device(|used| {
            vec![
                (Some("read"), used.rates.read_bytes),
                (Some("write"), used.rates.write_bytes),
            ]
        }),
    );
    registry.register(
        "app_io_requests_per_second",
        "Requests of the app to a block device, per second",
        by_device(|used| {
            vec![
                (Some("read"), used.rates.reads),
                (Some("write"), used.rates.writes),
            ]
        }),
    );
    registry.register(
        "app_io_device_ratio",
        "Part of a calibrated block device's time that the app takes",
        by_device(|used| used.share.map(|share| (None, share)).into_iter().collect()),
    );
    let each = |value: fn(&AppReport) -> Option<f64>| {
        gauges(
            apps.iter()
                .filter_map(|(id, app)| Some((labels(id, app), value(app)?))),
        )
    };
    registry.register(
        "app_io_stalled_ratio",
        "Share of time, lately, in which some task of the app waited for I/O",
        each(|app| app.io.stalled),
    );
    registry.register(
        "app_io_wait_seconds",
        "Time that tasks of the app waited, lately, for each request to block devices",
        each(|app| Some(app.io.wait?.as_secs_f64())),
    );
}

fn apps(registry: &mut Registry, view: &View) {
    let apps = &view.published.report.apps;
    let each = |value: fn(&AppReport) -> Option<f64>| {
        gauges(
            apps.iter()
                .filter_map(|(id, app)| Some((labels(id, app), value(app)?))),
        )
    };
    let band = |band: fn(&AppReport) -> Option<&Band>| {
        gauges(apps.iter().flat_map(|(id, app)| {
            band(app).into_iter().flat_map(|band| {
                [
                    ("0.5", band.q50),
                    ("0.9", band.q90),
                    ("0.95", band.q95),
                    ("0.99", band.q99),
                ]
                .map(|(quantile, value)| {
                    let mut labels = labels(id, app);
                    labels.push(("quantile", quantile.to_owned()));
                    (labels, value)
                })
            })
        }))
    };
    registry.register(
        "app_running",
        "Whether the app runs, 0 or 1",
        each(|app| Some(f64::from(u8::from(app.state == RunState::Running)))),
    );
    registry.register(
        "app_cpu_cores",
        "Processor time the app uses, in CPUs",
        each(|app| app.usage.cpu),
    );
    registry.register(
        "app_cpu_stalled_ratio",
        "Share of time in which some task of the app waited for a CPU",
        each(|app| app.usage.cpu_stalled),
    );
    registry.register(
        "app_memory_bytes",
        "Memory the app is charged",
        each(|app| Some(app.usage.memory?.as_f64())),
    );
    registry.register(
        "app_requests_per_second",
        "Requests the app serves, per second, as it, its metrics or its front told lately",
        each(|app| app.usage.requests),
    );
    registry.register(
        "app_response_time_seconds",
        "Time until the app answers a request, as it, its metrics or its front told lately",
        each(|app| Some(app.usage.response_time? / 1000.0)),
    );
    io(registry, view);
    registry.register(
        "app_demand_cpu_cores",
        "Forecast peak of processor time within the horizon, in CPUs",
        band(|app| Some(&app.demand.as_ref()?.cpu)),
    );
    registry.register(
        "app_demand_memory_bytes",
        "Forecast peak of memory within the horizon",
        band(|app| Some(&app.demand.as_ref()?.memory)),
    );
    registry.register(
        "app_wanted_cpu_cores",
        "Processor time planned for with headroom, in CPUs",
        each(|app| Some(app.reason.as_ref()?.cpu_wanted.as_cpus())),
    );
    registry.register(
        "app_slice_cpus",
        "CPUs the app may run on",
        each(|app| Some(f64::from(count(app.slice.cpus()?.len())))),
    );
    registry.register(
        "app_exclusive_cpus",
        "CPUs that nobody else of the app's rank may use",
        each(|app| Some(f64::from(count(app.reason.as_ref()?.exclusive.len())))),
    );
    registry.register(
        "app_memory_low_bytes",
        "Memory of the app that is reclaimed last",
        each(|app| match app.slice.get(Knob::MemoryLow)? {
            Setting::MemoryLow(bytes) => Some(bytes.as_f64()),
            _ => None,
        }),
    );
    registry.register(
        "app_memory_high_bytes",
        "Memory above which the app is slowed; absent without a limit",
        each(|app| match app.slice.get(Knob::MemoryHigh)? {
            Setting::MemoryHigh(Limit::At(bytes)) => Some(bytes.as_f64()),
            _ => None,
        }),
    );
    traffic(registry, apps);
    accelerators(registry, apps);
    let starts: Family<Labels, Counter> = Family::default();
    for (id, app) in apps {
        let labels = labels(id, app);
        starts.get_or_create(&labels).inc_by(u64::from(app.starts));
    }
    registry.register("app_starts", "Starts of the app's program", starts);
}

/// What apps do with accelerators: one value of each for each app, however many devices there are.
fn accelerators(registry: &mut Registry, apps: &BTreeMap<AppId, AppReport>) {
    let each = |value: fn(&Use) -> f64| {
        gauges(
            apps.iter()
                .filter_map(|(id, app)| Some((labels(id, app), value(&app.usage.accelerator?)))),
        )
    };
    registry.register(
        "app_accelerator_devices",
        "Accelerators that take tasks of the app now",
        each(|used| f64::from(used.devices)),
    );
    registry.register(
        "app_accelerator_quarantined_devices",
        "Accelerators that the app's worker leaves alone now, after faults",
        each(|used| f64::from(used.quarantined)),
    );
    let faults: Family<Labels, Counter> = Family::default();
    for (id, app) in apps {
        if let Some(used) = &app.usage.accelerator {
            faults.get_or_create(&labels(id, app)).inc_by(used.faults);
        }
    }
    registry.register(
        "app_accelerator_faults",
        "Runs on accelerators that were wrong, hung or crashed, and accelerators that did not begin",
        faults,
    );
    registry.register(
        "app_accelerator_busy_devices",
        "Time of accelerators that the app takes, in devices",
        each(|used| used.busy),
    );
    registry.register(
        "app_accelerator_tasks_per_second",
        "Compute tasks of the app that ended on an accelerator, per second",
        each(|used| used.on_devices),
    );
    registry.register(
        "app_cpu_tasks_per_second",
        "Compute tasks of the app that its worker computed on CPUs, per second",
        each(|used| used.on_cpu),
    );
    registry.register(
        "app_accelerator_cpu_price_ratio",
        "What a second of a CPU counts beside one of an accelerator; above 1 where CPUs are scarce for the app",
        each(|used| used.price),
    );
}

fn traffic(registry: &mut Registry, apps: &BTreeMap<AppId, AppReport>) {
    let each = |value: fn(&Traffic) -> u64| {
        counters(
            apps.iter()
                .filter_map(|(id, app)| Some((labels(id, app), value(app.traffic.as_ref()?)))),
        )
    };
    registry.register(
        "app_network_received_bytes",
        "Bytes the app received, loopback left out",
        each(|traffic| traffic.received.0),
    );
    registry.register(
        "app_network_sent_bytes",
        "Bytes the app sent, loopback left out",
        each(|traffic| traffic.sent.0),
    );
    registry.register(
        "app_network_received_packets",
        "Packets the app received, loopback left out",
        each(|traffic| traffic.received_packets),
    );
    registry.register(
        "app_network_sent_packets",
        "Packets the app sent, loopback left out",
        each(|traffic| traffic.sent_packets),
    );
    registry.register(
        "app_network_dropped_packets",
        "Packets of the app that its bound held back, most of them offered again",
        each(|traffic| traffic.dropped_packets),
    );
    registry.register(
        "app_network_retransmitted_segments",
        "TCP segments the app sent again",
        each(|traffic| traffic.retransmitted),
    );
}

fn tiers(registry: &mut Registry, tiers: &[api::Tier]) {
    let each = |value: fn(&api::Tier) -> u64| {
        gauges(tiers.iter().map(|tier| {
            (
                vec![("tier", tier.tier.clone())],
                Bytes(value(tier)).as_f64(),
            )
        }))
    };
    let sides = |fast: fn(&api::Tier) -> u64, slow: fn(&api::Tier) -> u64| {
        tiers.iter().flat_map(move |tier| {
            [("fast", fast(tier)), ("slow", slow(tier))].map(|(side, value)| {
                let labels = vec![("tier", tier.tier.clone()), ("side", side.to_owned())];
                (labels, value)
            })
        })
    };
    registry.register(
        "tier_bytes",
        "Bytes of a tiered directory on each side",
        gauges(
            sides(|tier| tier.fast_bytes, |tier| tier.slow_bytes)
                .map(|(labels, value)| (labels, Bytes(value).as_f64())),
        ),
    );
    registry.register(
        "tier_files",
        "Files of a tiered directory on each side",
        gauges(
            sides(|tier| tier.fast_files, |tier| tier.slow_files)
                .map(|(labels, value)| (labels, Bytes(value).as_f64())),
        ),
    );
    registry.register(
        "tier_fast_bytes_max",
        "The most bytes on the fast side",
        each(|tier| tier.fast_size_max_bytes),
    );
    registry.register(
        "tier_broken",
        "1 while a tiered directory cannot be used",
        each(|tier| u64::from(tier.state == api::TierState::Broken)),
    );
    registry.register(
        "tier_held",
        "1 while moves wait for critical apps, or Forebay is paused",
        each(|tier| u64::from(tier.state == api::TierState::Held)),
    );
    registry.register(
        "tier_moves",
        "Files moved, by the side they went to",
        counters(sides(
            |tier| tier.totals.promoted,
            |tier| tier.totals.demoted,
        )),
    );
    registry.register(
        "tier_moved_bytes",
        "Bytes moved, by the side they went to",
        counters(sides(
            |tier| tier.totals.promoted_bytes,
            |tier| tier.totals.demoted_bytes,
        )),
    );
    let one = |value: fn(&api::Tier) -> u64| {
        counters(
            tiers
                .iter()
                .map(move |tier| (vec![("tier", tier.tier.clone())], value(tier))),
        )
    };
    registry.register(
        "tier_left",
        "Moves that left the file where it was",
        one(|tier| tier.totals.left),
    );
    registry.register(
        "tier_touch_events",
        "Events of the kernel that tell of touched files",
        one(|tier| tier.heat.map_or(0, |heat| heat.events)),
    );
    registry.register(
        "tier_touch_overflows",
        "Times that the kernel dropped such events because they came too fast",
        one(|tier| tier.heat.map_or(0, |heat| heat.overflows)),
    );
}

fn counters(values: impl IntoIterator<Item = (Labels, u64)>) -> Family<Labels, Counter> {
    let family = Family::<Labels, Counter>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).inc_by(value);
    }
    family
}

fn labels(id: &AppId, app: &AppReport) -> Labels {
    vec![("app", id.to_string()), ("class", app.class.to_string())]
}

fn gauges(values: impl IntoIterator<Item = (Labels, f64)>) -> Gauges {
    let family = Gauges::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(value);
    }
    family
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;
    use std::time::Duration;

    use forebay_core::report::EventKind;

    use super::*;
    use crate::server::tests::published;

    #[test]
    fn the_latest_report_is_told_in_the_names_promised() {
        let view = View {
            published: Arc::new(published(7)),
            busy: BTreeMap::from([(0, 0.25)]),
        };
        let totals = Totals {
            events: BTreeMap::from([(EventKind::Slice, 3)]),
            steps: BTreeMap::from([((Rung::WidenSlice, Verdict::Kept), 2)]),
            took: Duration::from_millis(5),
            ..Totals::default()
        };
        let agent = AgentUse {
            cpu: Duration::from_millis(1500),
            resident: Bytes(4096),
        };
        let tier = api::Tier {
            tier: "data".to_owned(),
            state: api::TierState::Held,
            fast_bytes: 4096,
            totals: api::TierTotals {
                demoted_bytes: 512,
                ..api::TierTotals::default()
            },
            ..api::Tier::default()
        };
        let text = render(
            Some(&view),
            &totals,
            agent,
            &[tier],
            &continuity::tests::every(),
        )
        .unwrap();
        for line in [
            "forebay_agent_cpu_seconds_total 1.5",
            "forebay_agent_resident_bytes 4096.0",
            "forebay_events_total{kind=\"slice\"} 3",
            "forebay_tick_overruns_total 0",
            "forebay_tick_seconds 0.0",
            "forebay_tick_late_seconds{quantile=\"0.99\"} 0.0",
            "forebay_host_cpu_busy_ratio{cpu=\"0\"} 0.25",
            "forebay_app_cpu_cores{app=\"web\",class=\"critical\"} 0.4",
            "forebay_app_memory_bytes{app=\"web\",class=\"critical\"} 104857600.0",
            "forebay_app_requests_per_second{app=\"web\",class=\"critical\"} 120.0",
            "forebay_app_response_time_seconds{app=\"web\",class=\"critical\"} 0.0035",
            "forebay_app_demand_cpu_cores{app=\"web\",class=\"critical\",quantile=\"0.5\"} 0.4",
            "forebay_app_network_sent_bytes_total{app=\"web\",class=\"critical\"} 3000",
            "forebay_app_slice_cpus{app=\"crunch\",class=\"batch\"} 1.0",
            "forebay_app_accelerator_busy_devices{app=\"web\",class=\"critical\"} 0.25",
            "forebay_app_accelerator_quarantined_devices{app=\"web\",class=\"critical\"} 2.0",
            "forebay_app_accelerator_faults_total{app=\"web\",class=\"critical\"} 5",
            "forebay_app_accelerator_tasks_per_second{app=\"web\",class=\"critical\"} 12.0",
            "forebay_app_accelerator_cpu_price_ratio{app=\"web\",class=\"critical\"} 8.0",
            "forebay_app_starts_total{app=\"web\",class=\"critical\"} 1",
            "forebay_offload_steps_total{rung=\"widen_slice\",outcome=\"kept\"} 2",
            "forebay_offload_constrained_apps 0",
            "forebay_tier_bytes{tier=\"data\",side=\"fast\"} 4096.0",
            "forebay_tier_moved_bytes_total{tier=\"data\",side=\"slow\"} 512",
            "forebay_tier_held{tier=\"data\"} 1.0",
            "forebay_tier_broken{tier=\"data\"} 0.0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(
            !text.contains("app_memory_high_bytes{"),
            "no limit, no value"
        );
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn before_the_first_period_there_is_what_there_is() {
        let text = render(
            None,
            &Totals::default(),
            AgentUse::default(),
            &[],
            &Continuity::default(),
        )
        .unwrap();
        assert!(text.contains("forebay_agent_resident_bytes 0.0"), "{text}");
    }

    /// The names of all families, read where they are declared.
    fn declared() -> BTreeSet<&'static str> {
        let sources = [
            include_str!("metrics.rs"),
            include_str!("metrics/continuity.rs"),
        ];
        let declared = sources
            .into_iter()
            .flat_map(|source| source.split("registry.register(").skip(1));
        let declared = declared.filter_map(|rest| rest.split('"').nth(1));
        // The text that is split by stands there as well, above.
        let is_name = |name: &&str| name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'_'));
        declared.filter(is_name).collect()
    }

    /// An answer with a value of each metric.
    pub(in crate::server) fn every() -> String {
        let mut published = published(7);
        for app in published.report.apps.values_mut() {
            app.usage.cpu_stalled = Some(0.1);
            app.io.devices.insert(
                forebay_core::app::Device { major: 8, minor: 0 },
                DeviceUse {
                    share: Some(0.1),
                    ..DeviceUse::default()
                },
            );
            app.io.stalled = Some(0.1);
            app.io.wait = Some(Duration::from_millis(1));
            app.slice.set(Setting::MemoryLow(Bytes::mib(1)));
            app.slice.set(Setting::MemoryHigh(Limit::At(Bytes::mib(2))));
        }
        let view = View {
            published: Arc::new(published),
            busy: BTreeMap::from([(0, 0.25)]),
        };
        let totals = Totals {
            events: BTreeMap::from([(EventKind::Slice, 3)]),
            steps: BTreeMap::from([((Rung::Move, Verdict::Refused), 1)]),
            ..Totals::default()
        };
        let tier = api::Tier {
            tier: "data".to_owned(),
            ..api::Tier::default()
        };
        render(
            Some(&view),
            &totals,
            AgentUse::default(),
            &[tier],
            &continuity::tests::every(),
        )
        .unwrap()
    }

    #[test]
    fn every_metric_has_a_value_where_the_reference_reads_them() {
        let text = every();
        let has = |name: &str| {
            let sample = |line: &str| {
                let rest = line.strip_prefix("forebay_")?.strip_prefix(name)?;
                let rest = rest.strip_prefix("_total").unwrap_or(rest);
                rest.starts_with(['{', ' ']).then_some(())
            };
            text.lines().any(|line| sample(line).is_some())
        };
        let missing: Vec<_> = declared().into_iter().filter(|name| !has(name)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    /// A family without a value is not rendered.
    #[test]
    fn what_is_drawn_and_warned_of_elsewhere_has_names_that_exist() {
        let declared = declared();
        assert!(declared.contains("tick_overruns") && declared.contains("app_running"));
        let view = View {
            published: Arc::new(published(7)),
            busy: BTreeMap::from([(0, 0.25)]),
        };
        let (totals, agent) = (Totals::default(), AgentUse::default());
        let text = render(
            Some(&view),
            &totals,
            agent,
            &[],
            &continuity::tests::every(),
        )
        .unwrap();
        let is_counter = |name: &str| text.contains(&format!("# TYPE forebay_{name} counter"));
        for (file, content) in [
            (
                "grafana",
                include_str!("../../../../dist/grafana/forebay.json"),
            ),
            (
                "alerts",
                include_str!("../../../../dist/prometheus/alerts.yml"),
            ),
        ] {
            let parts = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
            let used = content.split(parts);
            let used: Vec<_> = used
                .filter_map(|word| word.strip_prefix("forebay_"))
                .collect();
            assert!(used.len() > 5, "{file}: {used:?}");
            for name in used {
                let plain = name.strip_suffix("_total").unwrap_or(name);
                let told = declared.contains(plain) && (plain != name || !is_counter(plain));
                assert!(told, "{file} has forebay_{name}; there are {declared:?}");
            }
        }
    }
}
