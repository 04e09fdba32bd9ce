//! Samples in, one summary for each series and 10 s out. Pure.
//!
//! Properties, tested: a roll-up equals what is computed from its samples directly, in whatever
//! pieces they were merged; values that are not numbers leave no trace.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::report::TickReport;

use super::{Level, Resource};

/// Several samples of one series, summarised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    /// Samples.
    pub(super) count: u64,
    pub(super) sum: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// The latest.
    pub(super) last: f64,
    /// Forecasts among the samples.
    pub(super) demand_count: u64,
    /// Sum of their 95 % quantiles.
    pub(super) demand_sum: f64,
}

impl Summary {
    /// Nothing yet.
    const EMPTY: Self = Self {
        count: 0,
        sum: 0.0,
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
        last: 0.0,
        demand_count: 0,
        demand_sum: 0.0,
    };

    /// Takes in a sample with its forecast. What is missing or no number is left out, since
    /// the file holds only numbers.
    pub(super) fn add(&mut self, value: Option<f64>, demand: Option<f64>) {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.count += 1;
            self.sum += value;
            self.min = self.min.min(value);
            self.max = self.max.max(value);
            self.last = value;
        }
        if let Some(demand) = demand.filter(|demand| demand.is_finite()) {
            self.demand_count += 1;
            self.demand_sum += demand;
        }
    }
}

/// An app's series, in the order of [`APP_RESOURCES`].
type AppSummaries = [Summary; APP_RESOURCES.len()];

/// What is recorded of an app.
const APP_RESOURCES: [Resource; 11] = [
    Resource::Cpu,
    Resource::CpuStalled,
    Resource::Io,
    Resource::Memory,
    Resource::Received,
    Resource::Sent,
    Resource::Requests,
    Resource::ResponseTime,
    Resource::Accelerator,
    Resource::CpuAllowed,
    Resource::MemoryAllowed,
];

/// What is recorded of the host.
const HOST_RESOURCES: [Resource; 2] = [Resource::Cpu, Resource::MemoryAvailable];

/// The roll-ups of one span of 10 s.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    /// Where it starts.
    pub(super) unix_ms: u64,
    apps: BTreeMap<AppId, AppSummaries>,
    host: [Summary; HOST_RESOURCES.len()],
}

impl Bucket {
    fn new(unix_ms: u64) -> Self {
        Self {
            unix_ms,
            apps: BTreeMap::new(),
            host: [Summary::EMPTY; HOST_RESOURCES.len()],
        }
    }

    /// Every series that has samples; the host's are of no app.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Option<&AppId>, Resource, &Summary)> {
        let apps = self.apps.iter().flat_map(|(id, summaries)| {
            let named = APP_RESOURCES.into_iter().zip(summaries);
            named.map(move |(resource, summary)| (Some(id), resource, summary))
        });
        let host = HOST_RESOURCES.into_iter().zip(&self.host);
        apps.chain(host.map(|(resource, summary)| (None, resource, summary)))
            .filter(|(_, _, summary)| summary.count > 0)
    }
}

/// Rolls up report after report.
#[derive(Debug, Default)]
pub(super) struct RollUp {
    current: Option<Bucket>,
    busy: Busy,
}

impl RollUp {
    /// Takes in a report. Returns the span that ended with it. A wall clock that was set
    /// back starts another span for a time already written; writing merges the two.
    pub(super) fn add(&mut self, report: &TickReport) -> Option<Bucket> {
        let start = Level::TenSeconds.start_of(report.time.unix_ms);
        let same = |bucket: &Bucket| bucket.unix_ms == start;
        let ended = if self.current.as_ref().is_some_and(same) {
            None
        } else {
            self.current.replace(Bucket::new(start))
        };
        if let Some(bucket) = &mut self.current {
            add_apps(bucket, report);
            let busy = self.busy.since_last(report);
            let available = report.host.memory_available.as_ref().ok();
            bucket.host[0].add(busy, None);
            bucket.host[1].add(available.map(|bytes| bytes.as_f64()), None);
        }
        ended
    }

    /// Ends the span that is being filled.
    pub(super) fn finish(&mut self) -> Option<Bucket> {
        self.current.take()
    }
}

fn add_apps(bucket: &mut Bucket, report: &TickReport) {
    for (id, app) in &report.apps {
        if !bucket.apps.contains_key(id) {
            bucket
                .apps
                .insert(id.clone(), [Summary::EMPTY; APP_RESOURCES.len()]);
        }
        let Some(summaries) = bucket.apps.get_mut(id) else {
            continue;
        };
        let [
            cpu,
            stalled,
            io,
            memory,
            received,
            sent,
            requests,
            response,
            accelerator,
            cpu_allowed,
            memory_allowed,
        ] = summaries;
        let (usage, demand) = (&app.usage, app.demand.as_ref());
        cpu.add(usage.cpu, demand.map(|demand| demand.cpu.q95));
        stalled.add(usage.cpu_stalled, None);
        io.add(usage.io, None);
        memory.add(
            usage.memory.map(|bytes| bytes.as_f64()),
            demand.map(|demand| demand.memory.q95),
        );
        received.add(usage.received, None);
        sent.add(usage.sent, None);
        requests.add(usage.requests, None);
        response.add(usage.response_time, None);
        accelerator.add(usage.accelerator.map(|used| used.busy), None);
        cpu_allowed.add(app.slice.allowed_cpu(), None);
        let most = app.slice.allowed_memory();
        memory_allowed.add(most.map(|bytes| bytes.as_f64()), None);
    }
}

/// Busy time of the host's CPUs, to turn counters into a rate.
#[derive(Debug, Default)]
struct Busy {
    last: Option<(Duration, BTreeMap<usize, Duration>)>,
}

impl Busy {
    /// CPUs busy on average since the last report. A CPU that was not there or whose counter
    /// went back adds nothing; without an earlier reading there is no rate.
    fn since_last(&mut self, report: &TickReport) -> Option<f64> {
        let Ok(now) = &report.host.cpu_busy else {
            self.last = None;
            return None;
        };
        let time = report.time.monotonic;
        let rate = self.last.as_ref().and_then(|(then, before)| {
            let elapsed = time.checked_sub(*then).filter(|time| !time.is_zero())?;
            let grown: Duration = now
                .iter()
                .filter_map(|(cpu, busy)| busy.checked_sub(*before.get(cpu)?))
                .sum();
            Some(grown.as_secs_f64() / elapsed.as_secs_f64())
        });
        self.last = Some((time, now.clone()));
        rate
    }
}

#[cfg(test)]
mod tests {
    use forebay_core::idset::CpuSet;
    use forebay_core::slice::Setting;
    use forebay_core::units::{Bytes, Limit, MilliCpu};

    use super::*;
    use crate::store::tests::{report_at, report_of_apps};

    #[test]
    fn a_host_is_as_busy_as_its_counters_grow() {
        let mut busy = Busy::default();
        let mut rate = |ms: u64, counters: &[(usize, u64)]| {
            let mut report = report_at(ms);
            report.host.cpu_busy = Ok(counters
                .iter()
                .map(|(cpu, ms)| (*cpu, Duration::from_millis(*ms)))
                .collect());
            busy.since_last(&report)
        };
        assert_eq!(rate(0, &[(0, 0), (1, 0)]), None);
        assert_eq!(rate(1000, &[(0, 1000), (1, 500)]), Some(1.5));
        // No time passed, a CPU went back, a CPU came.
        assert_eq!(rate(1000, &[(0, 1000), (1, 500)]), None);
        assert_eq!(rate(2000, &[(0, 0), (1, 1000), (2, 900)]), Some(0.5));
    }

    #[test]
    fn what_is_read_in_some_periods_is_one_sample_each() {
        let mut report = report_of_apps(0, 1);
        let (id, app) = report.apps.first_key_value().unwrap();
        let (id, mut app) = (id.clone(), app.clone());
        let mut rollup = RollUp::default();
        for period in 0..100_u32 {
            app.usage.sent = (period % 10 == 7).then_some(f64::from(period));
            app.usage.requests = Some(120.0);
            app.usage.response_time = (period < 50).then_some(2.0);
            let most = if period < 25 { 500 } else { 1500 };
            app.slice.set(Setting::CpuMax(Limit::At(MilliCpu(most))));
            app.slice.set(Setting::Cpus(CpuSet::from_iter([0])));
            app.slice.set(Setting::MemoryHigh(Limit::At(Bytes(64))));
            app.slice.set(Setting::MemoryMax(Limit::At(Bytes(96))));
            report.apps.insert(id.clone(), app.clone());
            assert!(rollup.add(&report).is_none());
            report.time.unix_ms += 100;
        }
        let bucket = rollup.finish().unwrap();
        let check = |resource: Resource, expected: Option<(u64, f64, f64)>| {
            let found = bucket.iter().find(|(_, kept, _)| *kept == resource);
            let found = found.map(|(_, _, summary)| (summary.count, summary.sum, summary.max));
            assert_eq!(found, expected, "{resource}");
        };
        check(Resource::Sent, Some((10, 520.0, 97.0)));
        check(Resource::Requests, Some((100, 12_000.0, 120.0)));
        check(Resource::ResponseTime, Some((50, 100.0, 2.0)));
        // Its quota, and then its one CPU.
        check(Resource::CpuAllowed, Some((100, 87.5, 1.0)));
        check(Resource::MemoryAllowed, Some((100, 6400.0, 64.0)));
        // Nobody counts it: no row, and no zero.
        check(Resource::Received, None);
    }

    #[test]
    fn what_is_no_number_leaves_no_trace() {
        let mut summary = Summary::EMPTY;
        summary.add(Some(f64::NAN), Some(f64::INFINITY));
        summary.add(None, None);
        assert_eq!(summary, Summary::EMPTY);
    }
}
