//! What goes wrong on a host, at which rate.

/// Rates of faults; all zero by default. Each is drawn from the host's seed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// Share of actions that fail with EBUSY.
    pub busy: f64,
    /// Share of actions that fail with EINVAL.
    pub invalid: f64,
    /// Share of readings that fail.
    pub unreadable: f64,
    /// Control groups, of each, that somebody removes in a second, with their processes.
    pub group_vanishes: f64,
    /// Processes, of each, that end by a signal in a second.
    pub process_vanishes: f64,
    /// Times in a second that the ledger's disk becomes full, for [`EPISODE`].
    pub ledger_full: f64,
    /// Knobs that somebody else writes in a second, in each group.
    pub foreign_write: f64,
    /// Times in a second that the hypervisor begins to take CPU time, for [`EPISODE`].
    pub steal: f64,
}

/// How long a full disk or stolen CPUs last, in seconds.
pub(crate) const EPISODE: f64 = 2.0;

impl Faults {
    /// Every kind, `rate` of each per action, reading or second.
    #[must_use]
    pub fn all(rate: f64) -> Self {
        Self {
            busy: rate,
            invalid: rate,
            unreadable: rate,
            group_vanishes: rate,
            process_vanishes: rate,
            ledger_full: rate,
            foreign_write: rate,
            steal: rate,
        }
    }
}
