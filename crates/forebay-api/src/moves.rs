//! Moves between hosts on the wire.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Asks for an app to move to another host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    /// The app.
    pub app: String,
    /// The host, or `auto` for the one with the most room.
    pub to: String,
    /// Only find out whether it could: room is asked for and given back, and nothing is touched.
    #[serde(default)]
    pub dry_run: bool,
}

/// Moves from and to this host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Moves {
    /// This host in the fleet; absent on a host that is in none.
    pub host: Option<String>,
    /// The latest of each app from here.
    pub away: Vec<Move>,
    /// Those on their way here.
    pub coming: Vec<Arrival>,
    /// Why nothing moves, if so.
    pub trouble: Option<String>,
}

/// A move from this host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Move {
    /// The app.
    pub app: String,
    /// The host it moves to.
    pub to: String,
    /// `restart`, `checkpoint` or `handoff`.
    pub mode: String,
    /// When it began, in milliseconds since 1970.
    pub began_unix_ms: u64,
    /// `checking`, `reserving`, `copying`, `freezing`, `sending`, `committing`, `recalling`, `reading`,
    /// `awaiting`, `lending`, `ending`, `thawing`, `calling_off`, `refused`, `stayed` or `moved`.
    pub stage: String,
    /// Whether it is over.
    pub over: bool,
    /// Sent so far.
    pub sent_bytes: u64,
    /// To be sent, as far as it is known.
    pub total_bytes: u64,
    /// Since it began, or until it was over, in seconds.
    pub took_seconds: f64,
    /// How long the app stood still so far, in seconds.
    pub stood_seconds: Option<f64>,
    /// How long the app was expected to stand still before anything was touched, in seconds, where that can
    /// be known.
    pub expected_pause_seconds: Option<f64>,
    /// What the app was seen to write of its memory before anything was touched, in bytes per second, where it moves
    /// with it.
    #[serde(default)]
    pub written_bytes_per_second: Option<f64>,
    /// What was found, or supposed, to go to the target, in bytes per second, where the app moves with its memory.
    #[serde(default)]
    pub link_bytes_per_second: Option<f64>,
    /// What is left of sending at the speed so far, in seconds.
    pub left_seconds: Option<f64>,
    /// Bytes of its memory that its target, where it runs, has still to fetch from here (post-copy); absent where
    /// nothing is fetched.
    #[serde(default)]
    pub owed_bytes: Option<u64>,
    /// What was sent went over `tcp` or `rdma`, the last of it; absent before that.
    #[serde(default)]
    pub transport: Option<String>,
    /// Why it was not RDMA, where that was wanted.
    #[serde(default)]
    pub transport_why: Option<String>,
    /// What turned it back, or holds it up.
    pub why: Option<String>,
}

/// A move to this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Arrival {
    /// The app.
    pub app: String,
    /// The host it comes from.
    pub from: String,
    /// `receiving`, `preparing`, `waiting`, `starting`, `announcing`, `returning`, `discarding`,
    /// `watching`, or `over`.
    pub stage: String,
    /// What turned it back, or holds it up.
    pub why: Option<String>,
}

/// How far a host is left: every app that can move away does, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Drain {
    /// The host.
    pub host: String,
    /// It was begun, and nobody ended it with `uncordon`.
    pub draining: bool,
    /// Nothing is to leave any more.
    pub over: bool,
    /// In the order in which they leave; those that are pinned come last.
    pub apps: Vec<DrainedApp>,
    /// What keeps it from going on after a new start of the daemon, if so.
    pub trouble: Option<String>,
}

/// An app of a host that is left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainedApp {
    /// The app.
    pub app: String,
    /// Whether it can move at all.
    pub movable: bool,
    /// `waits`, `moves`, `left` or `stays`.
    pub state: String,
    /// The host that it moves or moved to.
    pub to: Option<String>,
    /// Why it waits or stays.
    pub why: Option<String>,
}
