//! A simulated block device: one queue for all groups, served at a fixed rate.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_core::app::{Device, IoMax};
use forebay_core::io::{CostModel, Costs, DeviceCapability, Direction, Measured};
use forebay_core::slice::{Knob, Setting, Slice};
use forebay_core::units::Limit;

use crate::host::SimHost;

/// The device that simulated programs use.
pub const DEVICE: Device = Device { major: 8, minor: 0 };

/// Length of a simulated request, in bytes.
pub(crate) const REQUEST: f64 = 16_384.0;
/// Work that the queue holds, in seconds; programs wait before they send more.
const QUEUE_MAX: f64 = 0.25;

/// What a device is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Disk {
    /// Bytes served in a second.
    pub bytes_per_second: u64,
    /// Time of a request besides that, in which the device serves others.
    pub latency: Duration,
}

/// A device at work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Queue {
    disk: Disk,
    /// Seconds of work that wait.
    backlog: f64,
}

impl Disk {
    /// What a calibration of it finds.
    ///
    /// # Panics
    /// When it serves nothing.
    #[must_use]
    pub fn capability(&self) -> DeviceCapability {
        let block_bytes = 4096;
        let alone = self.latency + Duration::from_secs_f64(4096.0 / self.rate());
        let read = Direction::new(Measured {
            bytes_per_second: self.bytes_per_second,
            requests_per_second: self.bytes_per_second / block_bytes,
            block_bytes,
            latency: alone,
            latency_p99: alone,
        });
        let costs = Costs {
            bytes_per_second: self.bytes_per_second,
            sequential_per_second: self.bytes_per_second / block_bytes,
            random_per_second: self.bytes_per_second / block_bytes,
            latency_us: u64::try_from(alone.as_micros()).unwrap_or(u64::MAX),
        };
        DeviceCapability {
            name: "sim".to_owned(),
            read: read.expect("a device serves something"),
            write: None,
            cost_model: Some(CostModel {
                read: costs,
                write: costs,
            }),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^53")]
    const fn rate(&self) -> f64 {
        self.bytes_per_second as f64
    }
}

impl Queue {
    pub(crate) const fn new(disk: Disk) -> Self {
        Self { disk, backlog: 0.0 }
    }

    /// Takes in the bytes that all groups would send in a step. The part of them that has
    /// room, and how long each request then takes.
    pub(crate) fn serve(&mut self, step: f64, bytes: f64) -> (f64, f64) {
        let work = bytes / self.disk.rate();
        let room = (QUEUE_MAX + step - self.backlog).max(0.0);
        let part = if work > room { room / work } else { 1.0 };
        self.backlog = (self.backlog + work * part - step).max(0.0);
        (part, self.wait())
    }

    /// How long a request takes now.
    pub(crate) fn wait(&self) -> f64 {
        self.backlog + REQUEST / self.disk.rate() + self.disk.latency.as_secs_f64()
    }
}

impl SimHost {
    /// The same host with a block device that all groups share.
    #[must_use]
    pub const fn with_disk(mut self, disk: Disk) -> Self {
        self.disk = Some(Queue::new(disk));
        self
    }

    /// Somebody else switches a device's cost model on, or changes the one that Forebay installed.
    pub fn take_cost_model(&mut self, device: Device) {
        match self.cost_models.in_force.remove(&device) {
            Some(_) => self.cost_models.foreign.insert(device),
            None => self.cost_models.others.insert(device),
        };
    }

    pub(crate) fn set_cost_model(
        &mut self,
        device: Device,
        model: Option<CostModel>,
    ) -> Result<(), String> {
        let models = &mut self.cost_models;
        models.foreign.remove(&device);
        match model {
            Some(_) if models.others.contains(&device) => {
                return Err("somebody else has a model of it".to_owned());
            }
            Some(model) => models.in_force.insert(device, model),
            None => models.in_force.remove(&device),
        };
        Ok(())
    }

    /// The costs that a device has, and whether they are on.
    #[must_use]
    pub fn has_cost_model(&self, device: Device) -> bool {
        self.cost_models.in_force.contains_key(&device)
    }

    /// How long a request takes on the block device now.
    #[must_use]
    pub fn disk_wait(&self) -> Duration {
        let wait = self.disk.map_or(0.0, |disk| disk.wait());
        Duration::from_secs_f64(wait)
    }
}

/// What a group had before Forebay of what is set only on request: the ledger's, and what it never wrote.
pub(crate) fn before(found: &[Setting], originals: &BTreeMap<Knob, Setting>) -> Slice {
    let found = found
        .iter()
        .map(|setting| originals.get(&setting.knob()).unwrap_or(setting));
    let set = found.filter(|setting| match setting {
        Setting::IoMax(_, max) => *max != IoMax::NONE,
        Setting::IoLatency(_, target) => *target != Limit::Max,
        Setting::CpuUclampMin(_) | Setting::CpuUclampMax(_) => true,
        _ => false,
    });
    set.copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Disk = Disk {
        bytes_per_second: 100 << 20,
        latency: Duration::from_millis(1),
    };

    #[test]
    fn a_queue_grows_only_when_more_comes_than_is_served() {
        let mut queue = Queue::new(DISK);
        let alone = queue.wait();
        for _ in 0..10 {
            assert_eq!(queue.serve(0.1, 0.09 * DISK.rate()), (1.0, alone));
        }
        let mut part = 1.0;
        for _ in 0..10 {
            part = queue.serve(0.1, 0.2 * DISK.rate()).0;
        }
        assert!((part - 0.5).abs() < 1e-9, "{part}");
        assert!((queue.wait() - alone - QUEUE_MAX).abs() < 1e-9);
    }

    #[test]
    fn a_calibration_finds_what_it_is() {
        let found = DISK.capability();
        assert_eq!(found.read.bytes_per_second(), 100 << 20);
        assert_eq!(found.read.requests_per_second(), 25_600);
    }
}
