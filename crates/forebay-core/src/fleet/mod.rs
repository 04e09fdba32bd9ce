//! Several hosts that share applications: who owns one, and how it changes hosts.
//!
//! Problem: an application that may run on any of several hosts must run on one of them, whatever
//! host, network or coordinator fails in the middle of a move, and what it did must not be undone.
//!
//! Approach: one record for each application says who owns it, and only its owner changes it, by a
//! transaction; others take it over only as [`tenure`] says, and a user by force. Whoever does not own it never lets it run. A move is two machines, one on each side,
//! that hear what happened and say what to do next:
//!
//! ```text
//!   departure, on the source                          arrival, on the target
//!   Checking ─> Reserving ─> Copying ──────────────>  Receiving
//!                               v
//!                           Freezing ─> Sending ───>  Preparing          a copy that stands still
//!                                          v             v
//!                                      Committing     Waiting
//!                                          │ {source, n} -> {target, n + 1}
//!                                          v             v
//!                                      Awaiting       Starting ─> Announcing
//!                                          v  <──────────┘ {target, n + 1, runs}
//!                                       Ending
//! ```
//!
//! Until the transaction the source takes everything back by itself. Where it is not known whether
//! the transaction took effect, another one, [`Ownership::recalled`], makes certain that it cannot any
//! more, or fails and shows that it did. After it the target alone decides: it runs the copy, or gives
//! the application back if the copy never ran.
//!
//! A host takes no application in that it has not finished giving away: it could not tell a copy that
//! came back from one that never left.
//!
//! Properties, tested with lost messages, late transactions and crashes at every step: at most one
//! copy runs at any time; a copy goes on only from where the last one stood; when faults end, exactly
//! one runs, nothing is held frozen, and both sides know how it ended.

pub mod arrival;
pub mod choice;
pub mod compression;
pub mod departure;
pub mod dirtying;
pub mod mobility;
pub mod need;
pub mod offering;
pub mod ownership;
pub mod policy;
pub mod promises;
pub mod rolling;
pub mod rounds;
pub mod takeover;
pub mod taking;
pub mod tenure;
#[cfg(test)]
mod tests;

pub use ownership::{Epoch, HostName, HostNameError, News, Ownership};

/// How something that was asked for ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It is not done, and will not be.
    Refused,
    /// It may be done, or be done later.
    Unknown,
}
