//! Answers that are not a success, on the wire.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// It does not make sense: bad syntax, an unknown key, an impossible value.
    BadRequest,
    /// Whoever asked may not do that.
    NotAllowed,
    /// No such app or path.
    NotFound,
    /// It is larger than the daemon takes.
    TooLarge,
    /// It took too long.
    Timeout,
    /// The daemon is starting, stopping or has too much to do.
    Busy,
    /// It made sense and failed.
    Failed,
    /// Something this client does not know.
    #[serde(other)]
    Other,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// Why, for programs.
    pub refusal: Refusal,
    /// The object, the cause and the fix, for people.
    pub message: String,
}
