//! What a run did, as a table and as JSON.

use std::fmt::Write;
use std::time::Duration;

use super::coordinator::WINDOW;
use super::world::World;
use super::{MINUTE, Micros, Options, SECOND};

/// Sums of a run; spans are in microseconds of virtual time, added over applications.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Critical applications got less than they wanted.
    pub critical_lacked: u64,
    /// Standard ones.
    pub standard_lacked: u64,
    /// Batch, which takes what is left.
    pub batch_lacked: u64,
    /// Applications stood still for a move.
    pub held: u64,
    /// They did not run for another reason.
    pub down: u64,
    /// Moves that were begun.
    pub begun: u64,
    /// Those that a target let run.
    pub moved: u64,
    /// Those that ended at the source.
    pub left: u64,
    /// Those that came to nothing.
    pub stayed: u64,
    /// Looks for a target that found none.
    pub no_target: u64,
    /// Room that was refused: there was none.
    pub refused_full: u64,
    /// Too many were on their way.
    pub refused_busy: u64,
    /// That one was on its way already.
    pub refused_underway: u64,
    /// Leases that ended.
    pub leases_ended: u64,
    /// Applications frozen because a lease might end.
    pub lease_freezes: u64,
    /// Applications that began elsewhere after their host was lost.
    pub taken_over: u64,
    /// Things that broke.
    pub faults: u64,
    /// Applications that are lost with their host, which alone could give them away.
    pub lost: u64,
    /// Applications of lost hosts that others may take and for which no host has room in the end.
    pub homeless: u64,
    /// Steps of machines.
    pub tickets: u64,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What was run.
    pub options: Options,
    /// Its sums.
    pub totals: Totals,
    /// Requests to the coordinator.
    pub requests: u64,
    /// Of these, transactions on records.
    pub changes: u64,
    /// What watches told hosts.
    pub notices: u64,
    /// Requests of all hosts together in the busiest ten seconds.
    pub busiest_window: u64,
    /// Requests of one host in its busiest minute.
    pub busiest_minute: u64,
    /// Events of the simulation.
    pub events: u64,
}

fn minutes(span: Micros) -> f64 {
    float(span) / float(MINUTE)
}

#[expect(clippy::cast_precision_loss, reason = "figures for readers")]
fn float(n: u64) -> f64 {
    n as f64
}

impl Report {
    /// Application-minutes in which critical and standard applications got less than they wanted, or
    /// stood still for a move.
    #[must_use]
    pub fn constrained_minutes(&self) -> f64 {
        let totals = &self.totals;
        minutes(totals.critical_lacked + totals.standard_lacked + totals.held)
    }

    /// Requests of one host in a second, on average.
    #[must_use]
    pub fn requests_per_host_second(&self) -> f64 {
        let seconds = self.host_seconds();
        float(self.requests) / seconds
    }

    /// The same over the busiest ten seconds.
    #[must_use]
    pub fn busiest_per_host_second(&self) -> f64 {
        let hosts = float(u64::try_from(self.options.hosts).unwrap_or(u64::MAX));
        float(self.busiest_window) / hosts / float(WINDOW / SECOND)
    }

    fn host_seconds(&self) -> f64 {
        let hosts = u64::try_from(self.options.hosts).unwrap_or(u64::MAX);
        float(hosts.saturating_mul(self.options.hours * 3600)).max(1.0)
    }
}

impl World {
    pub(super) fn report(&self) -> Report {
        let load = &self.coordinator.load;
        Report {
            options: self.options,
            totals: self.totals,
            requests: load.requests,
            changes: load.changes,
            notices: load.notices,
            busiest_window: load.busiest_window,
            busiest_minute: load.busiest_minute,
            events: self.queue.count(),
        }
    }
}

/// One line for each run, with how long it took.
#[must_use]
pub fn table(runs: &[(Report, Duration)]) -> String {
    let mut text = String::from(
        "| arm | seed | load | constrained app-min | of these critical | held | batch | down | moves | \
         came to nothing | no target | taken over | requests per host and second, and in the busiest 10 s | \
         seconds |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for (report, took) in runs {
        let Report {
            options, totals, ..
        } = report;
        // Writing to a text does not fail.
        _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.0} | {:.0} | {:.1} | {:.0} | {:.0} | {} | {} | {} | {} | {:.3}, {:.3} | {:.0} |",
            options.arm,
            options.seed,
            options.load,
            report.constrained_minutes(),
            minutes(totals.critical_lacked),
            minutes(totals.held),
            minutes(totals.batch_lacked),
            minutes(totals.down),
            totals.moved,
            totals.stayed,
            totals.no_target,
            totals.taken_over,
            report.requests_per_host_second(),
            report.busiest_per_host_second(),
            took.as_secs_f64(),
        );
    }
    text
}

/// The same as a list of objects.
#[must_use]
pub fn json(runs: &[(Report, Duration)]) -> String {
    let objects: Vec<String> = runs
        .iter()
        .map(|(report, took)| object(report, *took))
        .collect();
    format!("[\n  {}\n]\n", objects.join(",\n  "))
}

fn object(report: &Report, took: Duration) -> String {
    let Report {
        options, totals, ..
    } = report;
    let fields = [
        ("arm", format!("\"{}\"", options.arm)),
        ("hosts", options.hosts.to_string()),
        ("apps", options.apps.to_string()),
        ("hours", options.hours.to_string()),
        ("seed", options.seed.to_string()),
        ("load", options.load.to_string()),
        ("faults", options.faults.to_string()),
        ("past_days", options.past_days.to_string()),
        (
            "constrained_app_minutes",
            report.constrained_minutes().to_string(),
        ),
        (
            "critical_lacked_minutes",
            minutes(totals.critical_lacked).to_string(),
        ),
        (
            "standard_lacked_minutes",
            minutes(totals.standard_lacked).to_string(),
        ),
        (
            "batch_lacked_minutes",
            minutes(totals.batch_lacked).to_string(),
        ),
        ("held_minutes", minutes(totals.held).to_string()),
        ("down_minutes", minutes(totals.down).to_string()),
        ("moves_begun", totals.begun.to_string()),
        ("moves", totals.moved.to_string()),
        ("came_to_nothing", totals.stayed.to_string()),
        ("no_target", totals.no_target.to_string()),
        ("refused_full", totals.refused_full.to_string()),
        ("refused_busy", totals.refused_busy.to_string()),
        ("taken_over", totals.taken_over.to_string()),
        ("leases_ended", totals.leases_ended.to_string()),
        ("lost_with_their_host", totals.lost.to_string()),
        ("without_a_home", totals.homeless.to_string()),
        ("breakages", totals.faults.to_string()),
        ("requests", report.requests.to_string()),
        ("record_changes", report.changes.to_string()),
        ("watch_events", report.notices.to_string()),
        (
            "requests_per_host_second",
            report.requests_per_host_second().to_string(),
        ),
        (
            "requests_per_host_second_busiest_10s",
            report.busiest_per_host_second().to_string(),
        ),
        (
            "requests_of_one_host_in_its_busiest_minute",
            report.busiest_minute.to_string(),
        ),
        ("events", report.events.to_string()),
        ("wall_seconds", took.as_secs_f64().to_string()),
    ];
    let fields = fields.map(|(name, value)| format!("\"{name}\": {value}"));
    format!("{{{}}}", fields.join(", "))
}
