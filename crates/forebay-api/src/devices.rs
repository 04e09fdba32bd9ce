//! What apps do on block devices, and may; what else of the host is divided.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Band, Limit};

/// What an app does on one block device, and may.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceIo {
    /// The device, as `major:minor`.
    pub device: String,
    /// Bytes read per second.
    pub read_bytes_per_second: f64,
    /// Bytes written per second.
    pub write_bytes_per_second: f64,
    /// Reads per second.
    pub reads_per_second: f64,
    /// Writes per second.
    pub writes_per_second: f64,
    /// Part of the device's time that this takes, where it was measured.
    pub share: Option<f64>,
    /// Forecast of that part.
    pub demand: Option<Band>,
}

/// What an app does on block devices.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Io {
    /// Each device that it used.
    pub devices: Vec<DeviceIo>,
    /// Share of time, lately, in which some task waited for I/O, 0 to 1.
    pub stalled: Option<f64>,
    /// Time that tasks waited, lately, for each request; too low where several are waited for
    /// at a time.
    pub wait_seconds: Option<f64>,
    /// What requests of these lengths take alone, where all its devices were measured.
    pub wait_alone_seconds: Option<f64>,
}

/// Limits of one block device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IoMax {
    /// The device, as `major:minor`.
    pub device: String,
    /// Bytes read per second.
    pub rbps: Limit<u64>,
    /// Bytes written per second.
    pub wbps: Limit<u64>,
    /// Reads per second.
    pub riops: Limit<u64>,
    /// Writes per second.
    pub wiops: Limit<u64>,
}

/// A target for the requests to one block device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IoLatency {
    /// The device, as `major:minor`.
    pub device: String,
    /// The target.
    pub target_seconds: Limit<f64>,
}

/// Why batch may take of a block device what it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IoBound {
    /// No critical app uses the device.
    Free,
    /// Critical apps' use is left free.
    Bandwidth,
    /// A critical app waits for I/O: what is sent at a time is kept short.
    Delay,
}

/// Memory of one NUMA node now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodeMemory {
    /// The node's number.
    pub node: u64,
    /// Installed.
    pub total_bytes: u64,
    /// Used by nobody.
    pub free_bytes: u64,
    /// Holds contents of files, most of which could be read again.
    pub cache_bytes: u64,
}

/// What the host has beside CPUs, and what is planned of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HostParts {
    /// By node; one that does not say is left out.
    pub memory: Vec<NodeMemory>,
    /// The block devices that were measured.
    pub devices: Vec<DevicePlan>,
}

/// What is planned for a measured block device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DevicePlan {
    /// The device, as `major:minor`.
    pub device: String,
    /// Its name in /dev.
    pub name: String,
    /// Bytes it reads per second, in large requests.
    pub read_bytes_per_second: u64,
    /// Small reads per second.
    pub read_requests_per_second: u64,
    /// 99 of 100 small reads alone take no longer.
    pub read_p99_seconds: f64,
    /// Whether writes were measured; else they are taken to be as fast as reads.
    pub writes_measured: bool,
    /// Part of the device's time that critical apps will take, with headroom.
    pub critical: f64,
    /// Part that batch may take, all of it together; 1 is no limit.
    pub room: f64,
    /// Batch apps that share it.
    pub sharers: u32,
    /// Why it is what it is.
    pub bound: IoBound,
    /// What is left of it because critical requests are slow all the same.
    pub pressed_to_percent: u32,
    /// Critical apps that use the device.
    pub used_by: Vec<String>,
}
