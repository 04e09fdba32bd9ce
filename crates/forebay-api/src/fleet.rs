//! Hosts that share applications, on the wire.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the host that was asked stands in its fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Fleet {
    /// Its name.
    pub host: String,
    /// What the hosts share, and where that is.
    pub coordinator: String,
    /// How long its lease certainly stands; `null` while it has none.
    pub lease_seconds: Option<f64>,
    /// Since when the coordinator cannot be reached, in milliseconds since 1970 UTC; `null` while it can.
    pub lost_since_unix_ms: Option<u64>,
    /// Why.
    pub lost: Option<String>,
    /// It takes no more applications.
    pub cordoned: bool,
    /// Hosts that are members, as was last looked.
    pub hosts: u64,
    /// Applications that can move and are this host's.
    pub owns: Vec<String>,
    /// Whose applications are, as far as this host heard.
    pub apps: Vec<FleetApp>,
}

/// Whose an application is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FleetApp {
    /// Its name.
    pub app: String,
    /// The host that it is at.
    pub owner: String,
    /// How often that changed, from 1 on.
    pub epoch: u64,
    /// It was let run there; false while it is on its way.
    pub runs: bool,
    /// What this host does to have it move: `to b: copying` or `from b: receiving`; `null` where it does not.
    pub moves: Option<String>,
}

/// The hosts that are members now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FleetHosts {
    /// By name.
    pub hosts: Vec<FleetHost>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FleetHost {
    /// Its name.
    pub host: String,
    /// Of its Forebay.
    pub version: String,
    /// Where other agents reach its own; `null` where it does not listen.
    pub address: Option<String>,
    /// It takes no more applications.
    pub cordoned: bool,
    /// All that apps may use.
    pub capacity: FleetRoom,
    /// What apps will need at most within the next minutes, and what was promised to those on their way.
    pub needed: FleetRoom,
    /// What an app finds there by its class: `critical`, `standard` and `batch`. Those that matter less
    /// make way.
    pub room: std::collections::BTreeMap<String, FleetRoom>,
    /// The apps that run there.
    pub apps: Vec<String>,
    /// When it said so, in milliseconds since 1970 UTC by its own clock.
    pub time_unix_ms: u64,
}

/// Some CPU and some memory.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FleetRoom {
    /// CPUs.
    pub cpus: f64,
    /// Memory.
    pub memory_bytes: u64,
}
