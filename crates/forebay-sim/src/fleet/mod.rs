//! A fleet of hosts in virtual time, driven by the rules of `forebay_core::fleet`.
//!
//! Problem: what a fleet does in a day, when hosts die, networks split and clocks jump, cannot be tried
//! with real hosts often enough to believe it.
//!
//! Approach: discrete events. Hosts, their daemons, the coordinator and the messages between them are
//! models here; what they decide is decided by the code that is the agent's to use: who may run
//! ([`tenure`](forebay_core::fleet::tenure)), both sides of a move ([`departure`](forebay_core::fleet::departure),
//! [`arrival`](forebay_core::fleet::arrival), [`rounds`](forebay_core::fleet::rounds)), who leaves
//! ([`policy`](forebay_core::fleet::policy)), where to ([`choice`](forebay_core::fleet::choice)), what is
//! kept ([`promises`](forebay_core::fleet::promises)), what is foreseen
//! ([`need`](forebay_core::fleet::need)), and who looks after the lost
//! ([`takeover`](forebay_core::fleet::takeover)). `trace` makes the load, `coordinator` is etcd,
//! `departures` and `arrivals` carry moves out over `wire`, `agent` is the rest of what a daemon does,
//! `fault` breaks things, `world` holds the state and checks, whenever it changes, what must hold.
//!
//! What must hold: at most one copy of an application runs; it runs only where its record says; it goes on
//! exactly where it stood; it does not go back to the host that it just left, and rests between moves;
//! promises of a host fit; the coordinator is asked so much and no more; when faults end, everything runs
//! within [`SETTLES_WITHIN`], but for what only a host could give away that never comes back.
//!
//! The same options give the same result, to the last request.

mod agent;
mod arrivals;
mod coordinator;
mod departures;
mod fault;
mod host;
mod queue;
mod report;
mod share;
mod start;
mod store;
#[cfg(test)]
mod tests;
mod trace;
mod wire;
mod world;

use std::fmt;

pub use report::{Report, Totals, json, table};

/// Virtual time, in microseconds.
pub(crate) type Micros = u64;
const SECOND: Micros = 1_000_000;
const MINUTE: Micros = 60 * SECOND;

/// How long after the last fault everything runs again.
pub const SETTLES_WITHIN: std::time::Duration = std::time::Duration::from_secs(300);
/// Requests to the coordinator in a minute, of one host: more is broken.
pub const REQUESTS_PER_MINUTE_MAX: u64 = 300;

/// What is done about shortages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// Nothing.
    Off,
    /// Applications move when they lack something now.
    Reactive,
    /// They move before.
    Forecast,
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "no offload",
            Self::Reactive => "reactive",
            Self::Forecast => "forecast",
        })
    }
}

/// What to run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// How many hosts.
    pub hosts: usize,
    /// How many applications.
    pub apps: usize,
    /// For how long, in hours of virtual time.
    pub hours: u64,
    /// Where all randomness comes from.
    pub seed: u64,
    /// Whether things break.
    pub faults: bool,
    /// What applications want on average, as a part of what all hosts have.
    pub load: f64,
    /// How many days are known when it begins.
    pub past_days: u64,
    /// What is done about shortages.
    pub arm: Arm,
}

impl Options {
    /// So many hosts and applications, half loaded, with three days of past.
    #[must_use]
    pub fn of(hosts: usize, apps: usize) -> Self {
        Self {
            hosts,
            apps,
            hours: 24,
            seed: 1,
            faults: false,
            load: 0.5,
            past_days: 3,
            arm: Arm::Forecast,
        }
    }
}

/// A broken invariant.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What was run.
    pub options: Options,
    /// When it broke, in microseconds of virtual time.
    pub at: u64,
    /// What does not hold.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options {
            hosts, apps, seed, ..
        } = self.options;
        write!(
            f,
            "seed {seed}, {hosts} hosts, {apps} applications, {} arm, after {:.3} s: {}",
            self.options.arm,
            std::time::Duration::from_micros(self.at).as_secs_f64(),
            self.what
        )
    }
}

impl std::error::Error for Failure {}

/// Runs a fleet.
///
/// # Errors
/// The first broken invariant, with the seed that shows it again.
pub fn run(options: Options) -> Result<Report, Failure> {
    let mut world = start::begin(options);
    let outcome = world.play();
    let at = world.now;
    outcome
        .map(|()| world.report())
        .map_err(|what| Failure { options, at, what })
}
