//! A host of the fleet: what it holds, what it keeps on disk, and its clocks.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_core::fleet::arrival::{self, Arrival};
use forebay_core::fleet::choice::{Offer, Room};
use forebay_core::fleet::departure::{self, Departure};
use forebay_core::fleet::policy::{Cause, Homes, Look, Memory};
use forebay_core::fleet::promises::Promises;
use forebay_core::fleet::tenure::Lease;
use forebay_core::fleet::{Epoch, HostName, Ownership};

use super::Micros;

/// What a host has of an application. The number is how far its state got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copy {
    /// It runs, since then and from there.
    Runs { since: Micros, from: u64 },
    /// Its processes stand still.
    Stands(u64),
    /// The whole host stands still.
    Suspended(u64),
    /// There are no processes, only what is on disk.
    Files(u64),
}

impl Copy {
    /// How far its state got.
    pub(super) fn position(self, now: Micros) -> u64 {
        match self {
            Self::Runs { since, from } => from + (now - since),
            Self::Stands(at) | Self::Suspended(at) | Self::Files(at) => at,
        }
    }
}

/// An application's place on a host.
#[derive(Debug, Clone)]
pub(super) struct Local {
    pub(super) copy: Copy,
    pub(super) homes: Homes,
    /// Of the record by which it is here.
    pub(super) epoch: Epoch,
}

/// A move away, in memory.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) machine: Departure,
    pub(super) there: usize,
    pub(super) record: Ownership,
    pub(super) need: (Room, Look),
    pub(super) cause: Cause,
    /// Of the step that is waited for: whatever ends an earlier one comes too late.
    pub(super) ticket: u64,
    /// How often the same stage was come to again.
    pub(super) again: u32,
    /// What is left to send once it stands still, in bytes.
    pub(super) left: f64,
    /// Whether pages are on their way.
    pub(super) streams: bool,
    pub(super) reserved: bool,
}

/// A move here, in memory.
#[derive(Debug)]
pub(super) struct Coming {
    pub(super) machine: Arrival,
    pub(super) from: usize,
    pub(super) record: Ownership,
    pub(super) ages: Vec<(HostName, Duration)>,
    pub(super) ticket: u64,
    pub(super) again: u32,
    /// When the copy began to wait.
    pub(super) waits_since: Option<Micros>,
    pub(super) streams: bool,
}

/// What outlives the daemon and the host of moves.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) departures: BTreeMap<usize, (Ownership, usize, departure::Mark)>,
    pub(super) arrivals: BTreeMap<usize, (Ownership, usize, arrival::Mark)>,
    /// The lease's number, and what is known of it, which the guardian has as well.
    pub(super) lease_id: Option<u64>,
}

/// A host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: HostName,
    pub(super) capacity: Room,
    /// Bytes per second.
    pub(super) link: f64,
    pub(super) up: bool,
    /// It never comes back.
    pub(super) gone: bool,
    pub(super) daemon: bool,
    pub(super) paused_until: Micros,
    /// Which daemon this is, of those that were.
    pub(super) life: u64,
    pub(super) boot: u64,
    /// The clock since boot: what it showed at the beginning, and how much faster it runs.
    pub(super) boot_offset: Micros,
    pub(super) drift_ppm: i64,
    /// How much the wall clock is ahead, in milliseconds.
    pub(super) wall_offset_ms: i64,
    pub(super) cut_until: Micros,
    pub(super) isolated_until: Micros,
    pub(super) slow_until: Micros,
    pub(super) lease: Option<Lease>,
    pub(super) guarded: bool,
    /// It may have missed something.
    pub(super) missed: bool,
    pub(super) local: BTreeMap<usize, Local>,
    pub(super) records: BTreeMap<usize, Ownership>,
    pub(super) seen: BTreeMap<usize, Epoch>,
    pub(super) promises: Promises,
    /// Of promises, what the simulation counts beside.
    pub(super) policy: Memory,
    pub(super) leaving: BTreeMap<usize, Leaving>,
    pub(super) coming: BTreeMap<usize, Coming>,
    pub(super) disk: Disk,
    pub(super) published: Option<(Micros, Offer)>,
    /// Somebody lacks something.
    pub(super) is_short: bool,
    pub(super) looks: bool,
}

impl Host {
    /// The clock that goes on while it is suspended.
    pub(super) fn boot_clock(&self, now: Micros) -> Duration {
        let now_signed = i128::from(now);
        let runs = now_signed + now_signed * i128::from(self.drift_ppm) / 1_000_000;
        let runs = u64::try_from(runs).unwrap_or(0);
        Duration::from_micros(self.boot_offset + runs)
    }

    /// When that clock shows this, or a little later.
    pub(super) fn when(&self, boot_clock: Duration) -> Micros {
        let shown = i128::try_from(boot_clock.as_micros()).unwrap_or(i128::MAX);
        let runs = shown - i128::from(self.boot_offset);
        let now = runs * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm));
        u64::try_from(now).unwrap_or(0) + 1
    }

    /// What its wall clock says, where the world's is `unix_ms`.
    pub(super) fn wall_clock(&self, unix_ms: u64) -> u64 {
        unix_ms.saturating_add_signed(self.wall_offset_ms)
    }

    pub(super) fn is_paused(&self, now: Micros) -> bool {
        now < self.paused_until
    }

    /// Whether its applications can run.
    pub(super) fn works(&self, now: Micros) -> bool {
        self.up && !self.is_paused(now)
    }

    pub(super) fn streams(&self) -> usize {
        let out = self.leaving.values().filter(|of| of.streams).count();
        out + self.coming.values().filter(|of| of.streams).count()
    }

    pub(super) fn speed(&self, now: Micros) -> f64 {
        let slow = if now < self.slow_until { 0.05 } else { 1.0 };
        self.link * slow
    }
}
