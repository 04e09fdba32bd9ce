//! Rolling updates on the wire: several hosts, a few at a time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::UpdateRequest;

/// Asks for an update of several hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutRequest {
    /// What each host does. Apps of `restart` are those of the hosts that have them; `directory` is `/` when
    /// absent.
    pub update: UpdateRequest,
    /// The hosts in the order in which they begin; all that are there, this one last, when empty.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Hosts that may be away at once; one when absent.
    #[serde(default)]
    pub at_once: Option<u32>,
    /// The group whose slots they take; `default` when absent.
    #[serde(default)]
    pub group: Option<String>,
    /// When hosts may begin, as a timer of systemd or a crontab has it; always when absent.
    #[serde(default)]
    pub when: Option<String>,
    /// How long they may from then on, in seconds.
    #[serde(default)]
    pub lasts_seconds: Option<u64>,
    /// How long a host that updates may say nothing before the others stop, in seconds; 15 minutes when absent.
    #[serde(default)]
    pub silence_seconds: Option<u64>,
}

/// Goes on after a stop.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutResume {
    /// Hosts that are left out from now on.
    #[serde(default)]
    pub without: Vec<String>,
}

/// Frees the slot of somebody who does not come back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SlotRelease {
    /// The identity that a FleetLock client gave.
    pub id: String,
}

/// Updates of the hosts of a fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FleetUpdate {
    /// The rolling update under way, or the last.
    pub rollout: Option<Rollout>,
    /// Who may be away now.
    pub slots: Vec<Slot>,
}

/// A rolling update.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rollout {
    /// Its number.
    pub number: u64,
    /// What updates each host.
    pub command: Vec<String>,
    /// The host at which it was asked for.
    pub by: String,
    /// When, in milliseconds since 1970.
    pub began_unix_ms: u64,
    /// The group whose slots its hosts take.
    pub group: String,
    /// Hosts of the group that may be away at once.
    pub at_once: u32,
    /// When hosts may begin; always when absent.
    pub when: Option<String>,
    /// How long they may from then on, in seconds.
    pub lasts_seconds: Option<u64>,
    /// `going`, `stopped`, `ending`, `called_off` or `complete`.
    pub phase: String,
    /// How it stands, and what to type next if that is somebody's turn.
    pub next: String,
    /// In the order in which they begin.
    pub hosts: Vec<RolloutHost>,
}

/// One host of a rolling update.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutHost {
    /// The host.
    pub host: String,
    /// Counts from 1.
    pub attempt: u32,
    /// `waits`, `updates`, `silent`, `updated` or `failed`.
    pub state: String,
    /// What it waits for, how far it is, or why it failed.
    pub said: Option<String>,
}

/// A slot that is held.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Slot {
    /// By whom.
    pub holder: String,
    /// `host`, or `client` of FleetLock.
    pub kind: String,
    /// Slots of one group are counted together.
    pub group: String,
    /// Since when, in milliseconds since 1970.
    pub since_unix_ms: u64,
}
