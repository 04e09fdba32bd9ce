//! Forebay's wire format, version 1, and the client of the daemon's socket.
//!
//! The types are the wire's own: the daemon converts by hand, so that neither freezes the
//! other. Units come last in a name (`memory_bytes`, `hold_seconds`), an absent reading is
//! `null`, and "no limit" is the text `"max"`. Within a version, fields are added and never
//! taken away or changed; readers ignore those they do not know.

mod accelerators;
pub mod attend;
mod client;
mod devices;
mod fleet;
mod forecast;
mod fronts;
mod images;
mod moves;
mod problem;
mod rolling;
mod tiers;
mod types;
mod update;
mod usage;

pub use accelerators::*;
pub use client::{Client, Error, RESPONSE_BYTES_MAX, STREAM_LINE_BYTES_MAX, Ticks};
pub use devices::*;
pub use fleet::*;
pub use forecast::*;
pub use fronts::*;
pub use images::*;
pub use moves::*;
pub use problem::*;
pub use rolling::*;
pub use tiers::*;
pub use types::*;
pub use update::*;
pub use usage::*;

/// The version in every path.
pub const VERSION: &str = "v1";

/// Where the daemon listens unless told otherwise.
pub const SOCKET: &str = "/run/forebay/forebay.sock";
