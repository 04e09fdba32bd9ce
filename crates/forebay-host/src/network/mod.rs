//! What apps send and receive, and bounds on what they send.
//!
//! The kernel's groups have no counters or limits of the network; BPF programs attached to the
//! app's v2 group have ([`program`]). They see what sockets send that were made inside the group:
//! of a process that was moved in, the connections from before are not seen. Nothing of it
//! outlives the daemon, so nothing of it is in the ledger.

mod bpf;
mod program;

use std::os::fd::OwnedFd;
use std::path::Path;

use forebay_core::snapshot::Traffic;
use forebay_core::units::{Bytes, Limit, Rate};

use crate::error::HostError;
use crate::mounts::Hierarchies;
use bpf::{Hook, Program, Row};
use program::{Rows, field};

/// Whether this kernel takes the programs, and there are groups to attach them to.
pub(crate) fn probe(hierarchies: &Hierarchies) -> Result<(), HostError> {
    if hierarchies.unified().is_none() {
        return Err(HostError::invalid(
            "count packets: there is no hierarchy of cgroup v2",
            "mount one, as `mount -t cgroup2 none /sys/fs/cgroup/unified` does beside v1",
        ));
    }
    Loaded::new().map(|_| ())
}

/// Counts the packets of one group and bounds what it sends, as long as it lives.
#[derive(Debug)]
pub(crate) struct Meter {
    counters: Row<{ field::COUNT }>,
    rate: Row<1>,
    _links: [OwnedFd; 3],
}

/// Programs that the kernel has checked, with what they share.
struct Loaded {
    counters: Row<{ field::COUNT }>,
    rate: Row<1>,
    programs: [Program; 3],
}

impl Loaded {
    fn new() -> Result<Self, HostError> {
        let (counters, rate) = (Row::new()?, Row::new()?);
        let rows = Rows {
            counters: counters.descriptor(),
            rate: rate.descriptor(),
        };
        Ok(Self {
            programs: [
                Program::load(Hook::Ingress, &program::ingress(rows))?,
                Program::load(Hook::Egress, &program::egress(rows))?,
                Program::load(Hook::SockOps, &program::sock_ops(rows))?,
            ],
            counters,
            rate,
        })
    }
}

impl Meter {
    /// Attaches to a group of v2.
    pub(crate) fn attach(group: &Path) -> Result<Self, HostError> {
        let Loaded {
            counters,
            rate,
            programs: [ingress, egress, sock_ops],
        } = Loaded::new()?;
        Ok(Self {
            _links: [
                ingress.attach(group)?,
                egress.attach(group)?,
                sock_ops.attach(group)?,
            ],
            counters,
            rate,
        })
    }

    /// What went through since it was attached.
    pub(crate) fn read(&self) -> Result<Traffic, HostError> {
        let row = self.counters.read()?;
        Ok(Traffic {
            received: Bytes(row[field::RECEIVED_BYTES]),
            received_packets: row[field::RECEIVED_PACKETS],
            sent: Bytes(row[field::SENT_BYTES]),
            sent_packets: row[field::SENT_PACKETS],
            dropped_packets: row[field::DROPPED_PACKETS],
            retransmitted: row[field::RETRANSMITTED],
        })
    }

    /// Bounds what is sent from now on, in bytes per second.
    pub(crate) fn bound(&self, rate: Limit<Rate>) -> Result<(), HostError> {
        let kib_ns = match rate {
            Limit::Max => 0,
            Limit::At(Rate(rate)) => (1024 * 1_000_000_000_u64 / rate.max(1)).max(1),
        };
        self.rate.write(&[kib_ns])
    }
}
