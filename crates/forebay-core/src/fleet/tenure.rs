//! Whether a host may let an application run.
//!
//! Problem: a host that lost the coordinator cannot tell whether it alone did, in which case others
//! may have taken its applications over, or everybody did, in which case nobody has.
//!
//! Approach: the user says which applications others may take over when their host is lost. Those run
//! for as long as the host's lease certainly stands, and are frozen before it can have ended. All
//! others change hosts by their owner's hand alone, and so run on without the coordinator.
//!
//! A lease counts from when its renewal was *sent*: the coordinator counts from when it arrived,
//! which is later. The clock is one that goes on while the host is suspended (`CLOCK_BOOTTIME`).
//!
//! Source: Gray and Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file
//! cache consistency", SOSP 1989.

use std::time::Duration;

use super::departure::Mark;
use super::{HostName, Ownership};

/// Whether others may take an application over without its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Takeover {
    /// Only its owner gives it away.
    Never,
    /// When the lease of its owner has ended.
    AfterLease,
}

/// What a host holds at the coordinator while it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// When the latest renewal that was granted was sent.
    pub renewed_at: Duration,
    /// How long it stands from then on.
    pub ttl: Duration,
}

/// The part of a lease's time that is left to freeze what others may take.
const MARGIN_PART: u32 = 4;
/// At least so much, whatever the lease.
const MARGIN_MIN: Duration = Duration::from_millis(500);

impl Lease {
    /// Until when what others may take over may run.
    #[must_use]
    pub fn run_until(&self) -> Duration {
        let margin = (self.ttl / MARGIN_PART).max(MARGIN_MIN);
        self.renewed_at + self.ttl.saturating_sub(margin)
    }
}

/// Whether it may run, or why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// It may, until this time if there is one.
    Run {
        /// Ask again before.
        until: Option<Duration>,
    },
    /// Nobody was asked yet whose it is.
    NotKnown,
    /// Another host owns it.
    NotOurs,
    /// It is being given away, and nobody knows yet whether it was.
    Leaves,
    /// The lease may have ended, and others may have taken it over.
    LeaseEnds,
}

/// Whether `here` may let an application run, by the record that was read last, or kept on disk, and by
/// what is on disk of a move away.
#[must_use]
pub fn leave(
    here: &HostName,
    (record, departure): (Option<&Ownership>, Option<Mark>),
    takeover: Takeover,
    lease: Option<Lease>,
    now: Duration,
) -> Leave {
    let Some(record) = record else {
        return Leave::NotKnown;
    };
    if record.owner != *here {
        return Leave::NotOurs;
    }
    // The record may be older than the change that was asked for.
    if departure == Some(Mark::Committing) {
        return Leave::Leaves;
    }
    match (takeover, lease.map(|lease| lease.run_until())) {
        (Takeover::Never, _) => Leave::Run { until: None },
        (Takeover::AfterLease, Some(until)) if now < until => Leave::Run { until: Some(until) },
        (Takeover::AfterLease, _) => Leave::LeaseEnds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn check(owner: Option<&str>, takeover: Takeover, renewed_s: Option<u64>, now_s: f64) -> Leave {
        let record = owner.map(|owner| Ownership::first(owner.parse().unwrap()));
        let lease = renewed_s.map(|s| Lease {
            renewed_at: Duration::from_secs(s),
            ttl: TTL,
        });
        let now = Duration::from_secs_f64(now_s);
        leave(
            &"a".parse().unwrap(),
            (record.as_ref(), None),
            takeover,
            lease,
            now,
        )
    }

    #[test]
    fn what_only_its_owner_gives_away_runs_without_the_coordinator() {
        let run = Leave::Run { until: None };
        assert_eq!(check(Some("a"), Takeover::Never, None, 1e6), run);
        assert_eq!(check(Some("a"), Takeover::Never, Some(0), 1e6), run);
        assert_eq!(
            check(Some("b"), Takeover::Never, Some(0), 1.0),
            Leave::NotOurs
        );
        assert_eq!(check(None, Takeover::Never, Some(0), 1.0), Leave::NotKnown);
    }

    #[test]
    fn what_others_may_take_stops_before_the_lease_can_have_ended() {
        let until = Duration::from_millis(107_500);
        let check = |now_s| check(Some("a"), Takeover::AfterLease, Some(100), now_s);
        assert_eq!(check(100.0), Leave::Run { until: Some(until) });
        assert_eq!(check(107.4), Leave::Run { until: Some(until) });
        assert_eq!(check(107.5), Leave::LeaseEnds);
        assert_eq!(check(1e6), Leave::LeaseEnds);
    }

    #[test]
    fn what_may_have_been_given_away_does_not_run() {
        let here: HostName = "a".parse().unwrap();
        let record = Ownership::first(here.clone());
        for (mark, expected) in [
            (Mark::Begun, Leave::Run { until: None }),
            (Mark::Frozen, Leave::Run { until: None }),
            (Mark::Committing, Leave::Leaves),
        ] {
            let known = (Some(&record), Some(mark));
            let leave = leave(&here, known, Takeover::Never, None, Duration::ZERO);
            assert_eq!(leave, expected, "{mark:?}");
        }
    }

    #[test]
    fn without_a_lease_it_does_not_begin() {
        assert_eq!(
            check(Some("a"), Takeover::AfterLease, None, 0.0),
            Leave::LeaseEnds
        );
    }

    #[test]
    fn a_lease_too_short_to_freeze_in_is_none() {
        let lease = Lease {
            renewed_at: Duration::from_secs(1),
            ttl: Duration::from_millis(300),
        };
        assert_eq!(lease.run_until(), Duration::from_secs(1));
    }
}
