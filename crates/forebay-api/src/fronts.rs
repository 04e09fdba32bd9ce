//! Fronts and shadows on the wire.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// All fronts now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Fronts {
    /// By name.
    pub fronts: Vec<Front>,
}

/// One front.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Front {
    /// Its name.
    pub front: String,
    /// What clients speak.
    pub mode: String,
    /// Where clients connect.
    pub listen: Vec<String>,
    /// `warm` while its primary serves; else what is going on: `suspect`, `fencing`, `settling`,
    /// `promoting`, `replaying`, or `down` when nobody can serve; `unreachable` while it does not
    /// answer: the rest is what was known last.
    pub stage: Option<String>,
    /// The app that serves.
    pub primary: Option<String>,
    /// The app that would take over, if one could.
    pub standby: Option<String>,
    /// Grows by one with each change of the primary.
    pub epoch: u64,
    /// All instances.
    pub instances: Vec<FrontInstance>,
    /// The latest changes, oldest first, in words.
    pub changes: Vec<String>,
    /// What it counted since it began, where it could be asked.
    pub counts: Option<FrontCounts>,
    /// Why it cannot be asked.
    pub trouble: Option<String>,
    /// The latest changes that did not work, oldest first, in words.
    pub failures: Vec<String>,
    /// The process that it is.
    pub pid: Option<u32>,
    /// How that process differs from what is configured or installed, if it does.
    pub outdated: Option<String>,
}

/// One instance behind a front.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FrontInstance {
    /// The app that it is.
    pub app: String,
    /// Where the front reaches it.
    pub address: String,
    /// The host that runs it, if that is not the front's.
    #[serde(default)]
    pub elsewhere: Option<String>,
    /// Its main process.
    pub pid: Option<u32>,
    /// Whether the front can stop it where it stands.
    pub fence: bool,
    /// Whether it could take over.
    pub ready: bool,
    /// It may not, because somebody said so.
    pub detached: bool,
    /// Why it could not.
    pub trouble: Option<String>,
    /// How many bytes it is behind the primary, where that can be told.
    pub lag_bytes: Option<u64>,
    /// How long ago it heard from the primary, in milliseconds, where that can be told.
    pub lag_ms: Option<u64>,
}

/// What a front counted since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FrontCounts {
    /// Connections accepted.
    pub connections: u64,
    /// Connections refused because there were too many.
    pub refused: u64,
    /// Requests, or connections where there is nothing smaller.
    pub requests: u64,
    /// Requests that waited until it was known who serves.
    pub held: u64,
    /// Requests that were sent to a new primary again.
    pub replayed: u64,
    /// Requests that got no answer, and surely were not executed.
    pub failed: u64,
    /// Requests that got no answer, and of which nobody knows.
    pub unknown: u64,
    /// Requests whose answers of the primary and the shadow were compared.
    pub mirrored: u64,
    /// Those of them whose answers differed.
    pub mismatched: u64,
    /// Requests that were to be compared and could not be.
    pub unmirrored: u64,
    /// Reads that the shadow answered.
    pub spread: u64,
    /// Connections of clients now.
    pub open: u64,
    /// Processes of the front before this one that still serve the connections they had.
    pub before: u64,
    /// Those connections.
    pub before_open: u64,
}

/// A change of the primary that was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandOver {
    /// The front.
    pub front: String,
    /// The app that served.
    pub from: String,
    /// The app that serves now.
    pub to: String,
    /// The epoch that began with it.
    pub epoch: u64,
    /// What was done, each with its time in milliseconds.
    pub steps: Vec<HandOverStep>,
}

/// One step of a change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HandOverStep {
    /// `settle`, `fence`, `promote` or `replay`.
    pub step: String,
    /// Its time in milliseconds.
    pub ms: f64,
}
