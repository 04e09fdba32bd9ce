//! The only kernel effects: control groups, /proc, pressure, supervision and the ledger.
//!
//! [`LinuxHost`] is the live [`Host`](forebay_core::host::Host). It finds out at run time where
//! each controller lives (v2, or one of the v1 hierarchies), and writes to the [`ledger`]
//! what it is about to change before it changes it. [`restore`](restore::restore) and the
//! [`guardian`] put everything back from the ledger alone.
//!
//! Invariants: no control group that Forebay did not make is removed; no knob of such a group
//! is written before its original value is on disk; no process is ended unless it was asked.

use std::path::{Path, PathBuf};

use forebay_core::app::Device;

use crate::error::HostError;

pub mod activation;
mod adopt;
mod app_meters;
mod apply;
mod blkstat;
pub mod checkpoint;
mod compaction;
pub mod companion;
pub mod cost;
mod damon;
pub mod discover;
pub mod doctor;
pub mod error;
pub mod fence;
mod files;
#[cfg(test)]
mod fixtures;
mod foreign;
mod freeze;
pub mod groups;
pub mod guardian;
mod host;
mod host_meters;
mod interrupts;
mod knobs;
mod launch;
pub mod ledger;
mod limits;
pub mod lock;
mod memory;
pub mod mounts;
mod netlink;
mod network;
mod nft;
pub mod notify;
mod observe;
mod oom;
pub mod outside;
pub mod owner;
mod pages;
mod partition;
pub mod procs;
pub mod rdma;
pub mod reboot;
mod reclaim;
pub mod regular;
pub mod rehearsal;
mod resctrl;
pub mod restore;
pub mod service_address;
mod slow;
pub mod soft_reboot;
mod succeed;
mod supervise;
pub mod tcp_repair;
pub mod tenure;
pub mod tier;
pub mod timers;
pub mod topology;
mod worker;
pub mod zones;

pub use error::{ErrorKind, HostError as Error};
pub use host::{LinuxHost, Options};
pub use procs::{OwnUse, daemon_use, own_use};
pub use restore::{Report, restore, restore_all, restore_lost};
pub use supervise::{Identity, identity, identity_of};

/// Where the kernel's file systems are. Tests point them at captured trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// Usually /proc. Control groups are found through its mountinfo.
    pub proc: PathBuf,
    /// Usually /sys.
    pub sys: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            sys: PathBuf::from("/sys"),
        }
    }
}

impl Roots {
    /// Which boot this is.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn boot_id(&self) -> Result<String, HostError> {
        let path = self.proc.join(Path::new("sys/kernel/random/boot_id"));
        Ok(files::read_text(&path)?.trim().to_owned())
    }

    /// Whether a block device is there. The files of a group say nothing of one that is gone, as if
    /// somebody had taken its limits away.
    pub(crate) fn has_device(&self, device: Device) -> bool {
        self.sys.join(format!("dev/block/{device}")).exists()
    }
}
