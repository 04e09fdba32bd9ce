//! What was learnt, to outlive a restart.

use serde::{Deserialize, Serialize};

use super::evidence::Evidence;
use super::holiday::HolidayEvidence;
use crate::app::AppId;
use crate::outlook::Resource;

/// The version of [`State`]. Another one is not read.
pub const STATE_VERSION: u32 = 1;

/// What was learnt of every source. At most [`PAIRS_MAX`](super::PAIRS_MAX) pairs, below 6 KiB of
/// JSON each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// [`STATE_VERSION`] when it was written.
    pub version: u32,
    pub(super) sources: Vec<SourceState>,
}

/// Why a state is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Of another version.
    #[error(
        "what was learnt of timers and events is of version {0}, and not {STATE_VERSION}; it is learnt anew"
    )]
    Version(u32),
    /// With numbers that nobody wrote.
    #[error("what was learnt of `{0}` has impossible numbers; all of it is learnt anew")]
    Numbers(String),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SourceState {
    pub(super) name: String,
    pub(super) present_ms: u64,
    pub(super) length_ms: Option<u64>,
    pub(super) pairs: Vec<PairState<Evidence>>,
    pub(super) days: Vec<PairState<HolidayEvidence>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PairState<T> {
    pub(super) app: AppId,
    pub(super) resource: Resource,
    pub(super) evidence: T,
}
