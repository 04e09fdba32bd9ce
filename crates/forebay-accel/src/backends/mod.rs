//! What is found of devices on this host, at run time.
//!
//! Libraries of drivers are loaded when they are first asked for, and by these modules alone. Nothing
//! of them is needed to build or to start Forebay.

mod copies;
mod cuda;
mod opencl;
#[cfg(feature = "vulkan")]
mod vulkan;

use crate::device::{Backend, Device, DeviceInfo};

/// What stands for Vulkan where it is left out.
#[cfg(not(feature = "vulkan"))]
mod vulkan {
    use crate::device::{Device, DeviceInfo};

    const ABSENT: &str = "not in this build; build Forebay with `--features vulkan`";

    pub(super) fn find() -> Result<Vec<DeviceInfo>, String> {
        Err(ABSENT.to_owned())
    }

    pub(super) fn open(id: &str) -> Result<Box<dyn Device>, String> {
        Err(format!("{}: {ABSENT}", super::unknown(id)))
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Found {
    pub devices: Vec<DeviceInfo>,
    /// A backend and why it has no device, e.g. that its library is not installed.
    pub absent: Vec<(Backend, String)>,
}

/// All devices that are found, and why backends found none.
///
/// Only called in a process of its own: libraries of drivers are loaded.
#[must_use]
pub fn find() -> Found {
    let mut found = Found::default();
    for (backend, devices) in [
        (Backend::Opencl, opencl::find()),
        (Backend::Cuda, cuda::find()),
        (Backend::Vulkan, vulkan::find()),
    ] {
        match devices {
            Ok(devices) => found.devices.extend(devices),
            Err(reason) => found.absent.push((backend, reason)),
        }
    }
    found
}

/// Opens a device by its id, in the process that is to drive it.
///
/// # Errors
/// When there is none of that id, or its driver fails.
pub fn open(id: &str) -> Result<Box<dyn Device>, String> {
    match id.split_once(':') {
        Some(("opencl", _)) => opencl::open(id),
        Some(("cuda", _)) => cuda::open(id),
        Some(("vulkan", _)) => vulkan::open(id),
        _ => Err(unknown(id)),
    }
}

fn unknown(id: &str) -> String {
    format!("there is no device {id}; see `forebay accel devices`")
}
