//! The task broker: compute tasks of one app go to the device that is expected to end them first.
//!
//! Read [`kernel`] first: what can be computed, with the mandatory implementation on the CPU; then
//! [`device`], the one seam behind which OpenCL, CUDA and Vulkan are.
//!
//! Invariants: a device lives in a process of its own that can be killed, and never writes to
//! memory of a client; every task is answered exactly once; every size is checked before a launch.

pub mod agree;
pub mod backends;
pub mod device;
pub mod kernel;
pub mod kernels;
pub mod measure;
pub mod task;
