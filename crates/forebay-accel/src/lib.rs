//! The task broker: compute tasks of one app go to the device that is expected to end them first.
//!
//! Read [`kernel`] first: what can be computed, with the mandatory implementation on the CPU; then
//! [`device`], the one seam behind which OpenCL and CUDA are; then [`broker`].
//!
//! ```text
//! client ----tasks----> broker ----orders----> process of a device
//!    |                   | CPU threads            | driver
//!    +--- shared memory -+------ read only -------+
//! ```
//!
//! Invariants: a device lives in a process of its own that can be killed, and never writes to
//! memory of a client; every task is answered exactly once; every size is checked before a launch.

pub mod agree;
pub mod backends;
pub mod broker;
pub mod client;
pub mod device;
pub mod dispatch;
pub mod kernel;
pub mod kernels;
pub mod measure;
mod memory;
pub mod process;
mod scratch;
pub mod task;
pub mod trial;
pub mod wire;
