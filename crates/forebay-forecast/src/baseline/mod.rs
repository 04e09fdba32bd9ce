//! Rules that operators know, to compare forecasters with.
//!
//! # Problem
//!
//! Whether a forecaster is any good is only seen beside what runs in production elsewhere:
//! a decayed histogram, the maximum of a moving window, and the last value with a margin
//! that the past suggests.
//!
//! # Approach
//!
//! [`Histogram`] is the rule of the Kubernetes Vertical Pod Autoscaler, [`MovingMax`] that of
//! Autopilot's moving windows, [`LastValue`] the last value and the changes seen from it. Each
//! does what is published of it and no more: no margin is added, and nothing is corrected.
//!
//! # Properties
//!
//! - Memory is bounded by the options; nothing is sorted in bursts.
//! - A gap leaves all as it is, but for time.
//! - They keep no score of themselves, so [`Forecaster::score`](crate::Forecaster::score) is
//!   None: whoever compares them judges all alike.
//!
//! Sources: each module names its own.

mod histogram;
mod last_value;
mod moving_max;
mod ordered;

pub use histogram::{Histogram, HistogramOptions};
pub use last_value::LastValue;
pub use moving_max::MovingMax;

/// Samples that a rule may be told to look back on.
pub const WINDOW_MAX: usize = 65_536;
