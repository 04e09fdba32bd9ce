//! Which files of a tiered directory belong on the fast file system, and when they may move.
//!
//! Pure: what was touched, what lies where and what time it is are arguments. The files are
//! moved by `forebay-host`, the thread that does it is in the binary.

mod courtesy;
mod decide;
mod heat;
mod pace;
mod rest;

pub use courtesy::{Courtesy, Waiter, waiting};
pub use decide::{Cause, File, Move, Place, Room, decide};
pub use heat::{BUCKET, FILES_MAX, FORECASTS_MAX, Heats, Warmth};
pub use pace::Pace;
pub use rest::{Rest, Rests};
