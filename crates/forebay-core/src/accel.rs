//! Accelerators as a resource: what an app may have of them, and what its worker says of it.
//!
//! A worker takes the compute tasks of one app and gives each to a device or to the CPU. It stands in
//! the app's slice, so that what it computes on CPUs is the app's; what devices do is not in any slice.

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Limit};

/// What an app may have of the accelerators of its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accelerators {
    /// The devices that it may use, by their names (`forebay accel devices`); all when empty.
    pub allow: Vec<String>,
    /// Devices that it may not use.
    pub deny: Vec<String>,
    /// Part of the time of each device, in percent, 1 to 100.
    pub time_percent: u32,
    /// Memory of a device that its tasks may take.
    pub memory: Limit<Bytes>,
    /// Beside others on the same device; by its class when absent.
    pub priority: Option<Priority>,
}

impl Default for Accelerators {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            deny: Vec::new(),
            time_percent: 100,
            memory: Limit::Max,
            priority: None,
        }
    }
}

/// What an app is worth beside others that use the same device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Whatever others leave.
    Low,
    /// As most.
    Normal,
    /// Ahead of others.
    High,
}

impl Priority {
    /// By how many parts a device's time is divided among those who use it.
    #[must_use]
    pub const fn weight(self) -> u32 {
        match self {
            Self::Low => 1,
            Self::Normal => 4,
            Self::High => 16,
        }
    }
}

/// What the worker of an app said last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Use {
    /// Devices that take tasks now: those that are left alone after a fault do not count.
    pub devices: u32,
    /// Devices that are left alone now, after faults.
    #[serde(default)]
    pub quarantined: u32,
    /// Runs of devices that gave no result that could be believed, and devices that did not begin, since
    /// its worker began.
    #[serde(default)]
    pub faults: u64,
    /// Kernels of the app that one of these has built.
    pub kernels: u32,
    /// Time of devices that it takes, in devices: 1 is one device all the time.
    pub busy: f64,
    /// Tasks that ended on CPUs, per second.
    pub on_cpu: f64,
    /// Tasks that ended on devices, per second.
    pub on_devices: f64,
    /// Memory that it shares with its worker.
    pub shared: Bytes,
    /// What a second of the CPU counts beside one of a device, 1 or more.
    pub price: f64,
}

impl Use {
    /// Whether it makes sense: whoever tells it may be any process of the app's user.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        let numbers = [self.busy, self.on_cpu, self.on_devices, self.price];
        numbers.into_iter().all(forebay_forecast::is_plausible)
    }
}

/// What a second of the CPU counts for an app whose tasks are to go to an accelerator: a task goes there
/// although it takes so many times as long.
pub const SCARCE_PRICE: f64 = 8.0;
