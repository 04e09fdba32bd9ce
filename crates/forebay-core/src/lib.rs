//! Forebay's pure domain: topology, snapshot, demand, plan and the control period.
//!
//! Read [`tick`] first. Nothing here does I/O, reads a clock or draws a random number:
//! every effect is a call of [`host::Host`], and time is an argument.

pub mod accel;
pub mod app;
pub mod calendar;
pub mod demand;
pub mod external;
pub mod fleet;
pub mod host;
pub mod idset;
pub mod io;
pub mod io_history;
pub mod network;
pub mod occasion;
pub mod offload;
pub mod outlook;
pub mod plan;
pub mod report;
pub mod shadow;
pub mod signals;
pub mod slice;
pub mod snapshot;
pub mod state;
mod steps;
pub mod supervise;
pub mod tick;
pub mod tier;
pub mod topology;
pub mod units;
pub mod update;
pub mod working_set;
