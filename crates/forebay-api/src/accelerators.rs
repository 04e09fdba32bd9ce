//! Accelerators, as workers of apps see them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an app does with accelerators, as its worker said last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Accelerator {
    /// Devices that take tasks now.
    pub devices: u32,
    /// Devices that are left alone now, after faults.
    #[serde(default)]
    pub quarantined: u32,
    /// Faults of devices since its worker began: results that were wrong, runs that hung or crashed.
    #[serde(default)]
    pub faults: u64,
    /// Kernels of the app that one of these has built.
    pub kernels: u32,
    /// Time of devices that it takes, in devices: 1 is one device all the time.
    pub busy: f64,
    /// Tasks that ended on CPUs, per second.
    pub on_cpu_per_second: f64,
    /// Tasks that ended on devices, per second.
    pub on_devices_per_second: f64,
    /// Memory that it shares with its worker.
    pub shared_bytes: u64,
    /// What a second of the CPU counts beside one of a device; more than 1 where CPUs are scarce for it.
    pub cpu_price: f64,
}
