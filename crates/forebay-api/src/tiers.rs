//! Tiered directories on the wire.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// All tiers now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tiers {
    /// By name.
    pub tiers: Vec<Tier>,
}

/// What a tier's mover does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TierState {
    /// It looks at the files for the first time.
    #[default]
    Starting,
    /// Every file is where it belongs.
    Idle,
    /// Files are being moved.
    Moving,
    /// Moves wait, because a critical app waits for I/O.
    Held,
    /// It was drained: nothing is promoted until somebody asks, or the daemon starts again.
    Drained,
    /// Files move only when asked for: no daemon runs, or touches cannot be counted.
    ByHand,
    /// It cannot be used now; `trouble` says why.
    Broken,
}

impl fmt::Display for TierState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Idle => "idle",
            Self::Moving => "moving",
            Self::Held => "held",
            Self::Drained => "drained",
            Self::ByHand => "by hand",
            Self::Broken => "broken",
        })
    }
}

/// One tiered directory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tier {
    /// Its name.
    pub tier: String,
    /// What applications see.
    pub directory: String,
    /// What its mover does.
    pub state: TierState,
    /// Why it is broken, or why touches cannot be counted.
    pub trouble: Option<String>,
    /// Files on the fast side.
    pub fast_files: u64,
    /// Bytes on the fast side.
    pub fast_bytes: u64,
    /// The most of them.
    pub fast_size_max_bytes: u64,
    /// Files on the slow side.
    pub slow_files: u64,
    /// Bytes on the slow side.
    pub slow_bytes: u64,
    /// Contents put aside for a person to judge.
    pub kept: u64,
    /// Copies that no link was made for.
    pub unclaimed: u64,
    /// Copies that no file leads to any more.
    pub nameless: u64,
    /// Links whose copy is not there: the first 100 of them.
    pub broken: Vec<String>,
    /// Whether there were more files than are looked at.
    pub truncated: bool,
    /// Directories whose files are not watched.
    #[serde(default)]
    pub unwatched: u64,
    /// What is known of touches; absent where they are not counted.
    #[serde(default)]
    pub heat: Option<TierHeat>,
    /// What was done since the daemon started.
    #[serde(default)]
    pub totals: TierTotals,
    /// The latest moves, oldest first.
    #[serde(default)]
    pub moves: Vec<TierMove>,
}

/// What is known of touches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TierHeat {
    /// Files whose touches are remembered.
    pub files: u64,
    /// Files whose touches are forecast.
    pub forecast_files: u64,
    /// Files that were forgotten because there were too many.
    pub forgotten: u64,
    /// Events of the kernel read since the daemon started.
    pub events: u64,
    /// Times that the kernel dropped events because they came too fast.
    pub overflows: u64,
    /// Touches not counted because too many files were touched at once.
    pub lost: u64,
}

/// What was done since the daemon started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TierTotals {
    /// Files promoted.
    pub promoted: u64,
    /// Their bytes.
    pub promoted_bytes: u64,
    /// Files demoted.
    pub demoted: u64,
    /// Their bytes.
    pub demoted_bytes: u64,
    /// Moves that left the file where it was.
    pub left: u64,
}

/// A side of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TierSide {
    /// The fast file system.
    Fast,
    /// The slow one.
    Slow,
}

/// One move that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TierMove {
    /// When, in milliseconds since 1970.
    pub time_unix_ms: u64,
    /// Relative to the directory.
    pub file: String,
    /// Where to.
    pub to: TierSide,
    /// Its length; absent where it was left.
    pub bytes: Option<u64>,
    /// Why it was to move.
    pub why: String,
    /// Why it was left.
    pub left: Option<String>,
}

/// What to do with a tier's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TierOrder {
    /// Move these to the fast side.
    Promote,
    /// Move these to the slow side.
    Demote,
    /// Move all to the slow side, and promote none until somebody asks.
    Drain,
    /// Remove the copies that no file has led to for 10 minutes, for ever.
    Forget,
}

/// Asks for moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TierRequest {
    /// What to do.
    pub order: TierOrder,
    /// The files, in the tier's directory or relative to it; none with `drain` and `forget`.
    #[serde(default)]
    pub files: Vec<String>,
}

/// What became of a request. The latest 64 of each tier are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TierAnswer {
    /// Its number.
    pub request: u64,
    /// Whether it is over.
    pub done: bool,
    /// Files moved, or copies forgotten.
    pub moved: u64,
    /// With `forget`, copies that lost their file less than 10 minutes ago.
    pub young: u64,
    /// The files, in the order they were tried: the first 1,000 of them.
    pub files: Vec<TierFile>,
    /// Files beyond those that were left where they are.
    pub left_beyond: u64,
    /// Why the whole of it failed.
    pub trouble: Option<String>,
}

/// One file that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TierFile {
    /// As it was asked for.
    pub file: String,
    /// Whether it was moved.
    pub moved: bool,
    /// Its length, where it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes: Option<u64>,
    /// Why not, where it was not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}
