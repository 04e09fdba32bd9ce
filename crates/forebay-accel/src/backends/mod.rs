//! What is found of devices on this host, at run time.

use crate::device::{Device, DeviceInfo};

/// All devices that are found, and why backends found none.
///
/// Only called in a process of its own: libraries of drivers are loaded.
#[must_use]
pub fn find() -> Found {
    Found::default()
}

/// Opens a device by its id, in the process that is to drive it.
///
/// # Errors
/// When there is none of that id, or its driver fails.
pub fn open(id: &str) -> Result<Box<dyn Device>, String> {
    Err(format!(
        "there is no device {id}; see `forebay accel devices`"
    ))
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Found {
    pub devices: Vec<DeviceInfo>,
    /// A backend and why it has no device, e.g. that its library is not installed.
    pub absent: Vec<(crate::device::Backend, String)>,
}
