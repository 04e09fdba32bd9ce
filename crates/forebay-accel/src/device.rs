//! The seam behind which devices are.
//!
//! A device is only ever opened in a process of its own, by one thread. What it cannot survive
//! (a kernel that leaves its buffers, a driver that aborts) ends that process and nothing else.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::kernel::Kernel;
use crate::task::{Launch, Scalar, View};

/// One device, in the process that drives it.
pub trait Device {
    fn info(&self) -> &DeviceInfo;

    /// Makes a kernel ready. Called once for each kernel before it runs.
    ///
    /// # Errors
    /// When it has no source for this device, or the source does not compile.
    fn build(&mut self, kernel: &Kernel) -> Result<(), BuildError>;

    /// Runs all launches and brings back what was written. `scalars` are those of the task, for
    /// backends that need them beside those of the launches.
    ///
    /// A buffer that has a [`Constant`] in `kept` is only read, and always holds the same: its copy
    /// on the device stays there after the run, and is used instead of the buffer by later ones,
    /// until it is to be [forgotten](Self::forget).
    ///
    /// # Errors
    /// When nothing of the buffers may be believed.
    fn run(
        &mut self,
        kernel: &Kernel,
        buffers: &mut [View<'_>],
        kept: &[Option<Constant>],
        scalars: &[Scalar],
        launches: &[Launch],
    ) -> Result<Timing, DeviceError>;

    /// Frees copies that it keeps; some may not be there.
    fn forget(&mut self, constants: &[Constant]);
}

/// A part of memory that nobody can write to any more, by which a device knows its copy again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Constant {
    /// Of no other memory, as long as the broker lives.
    pub memory: u64,
    /// In bytes, as `length`.
    pub offset: u64,
    pub length: u64,
}

/// What is known of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Unique on the host and the same after a restart, e.g. `opencl:0:1`.
    pub id: String,
    pub backend: Backend,
    /// The platform that brings the driver, e.g. `Portable Computing Language`.
    pub platform: String,
    pub vendor: String,
    pub name: String,
    pub driver: String,
    pub memory_bytes: u64,
    /// The largest single buffer.
    pub buffer_bytes_max: u64,
    pub kind: DeviceKind,
}

#[cfg(test)]
impl DeviceInfo {
    /// Of a device that a test makes up.
    pub(crate) fn of_a_test(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            backend: Backend::Opencl,
            platform: String::new(),
            vendor: String::new(),
            name: String::new(),
            driver: String::new(),
            memory_bytes: 1,
            buffer_bytes_max: 1,
            kind: DeviceKind::Gpu,
        }
    }
}

/// Through what a device is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    Opencl,
    Cuda,
    Vulkan,
}

impl Backend {
    /// All of them, whether they are in this build or not.
    pub const ALL: [Self; 3] = [Self::Opencl, Self::Cuda, Self::Vulkan];
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opencl => "opencl",
            Self::Cuda => "cuda",
            Self::Vulkan => "vulkan",
        })
    }
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    Cpu,
    Gpu,
    /// An FPGA, or another card.
    Accelerator,
}

/// How long the parts of a run took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    pub transfer_in: Duration,
    pub compute: Duration,
    pub transfer_out: Duration,
}

impl Timing {
    #[must_use]
    pub fn total(self) -> Duration {
        self.transfer_in + self.compute + self.transfer_out
    }
}

/// Why a kernel cannot run on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum BuildError {
    /// There is no source for it.
    #[error("it has no source for {0}")]
    NoSource(Backend),
    /// What the compiler said.
    #[error("it does not compile: {0}")]
    Compile(String),
    /// The driver failed otherwise.
    #[error("{0}")]
    Failed(String),
}

impl BuildError {
    /// The same with another text.
    #[must_use]
    pub fn map(self, change: fn(String) -> String) -> Self {
        match self {
            Self::NoSource(backend) => Self::NoSource(backend),
            Self::Compile(text) => Self::Compile(change(text)),
            Self::Failed(text) => Self::Failed(change(text)),
        }
    }
}

/// Why a device gave no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum DeviceError {
    #[error("its memory does not suffice")]
    OutOfMemory,
    /// Nothing was started.
    #[error("the task is beyond the limits of the device: {0}")]
    TooLarge(String),
    /// It is gone, or its process is.
    #[error("the device is gone: {0}")]
    Lost(String),
    #[error("it did not end in time")]
    Timeout,
    #[error("{0}")]
    Failed(String),
}
