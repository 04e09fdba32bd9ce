//! Block devices: what apps ask of them, and what they can do.
//!
//! A device is asked for requests and for bytes, and either can be what it has too little of.
//! The common measure is its *share*: the part of the device's time that an amount of work
//! takes. A request takes a fixed time and each of its bytes takes some more, per direction,
//! as in the kernel's own linear cost model (block/blk-iocost.c, "Building Blocks").

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::app::Device;

/// Devices of one app that are followed; those beyond are not counted.
pub const DEVICES_MAX: usize = 32;

/// A request that takes so many times the median was not alone.
const WORST: u32 = 2;

/// What an app did on one device since its slice exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoCounters {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// The counters of each device that an app used.
pub type DeviceCounters = BTreeMap<Device, IoCounters>;

/// What an app does on one device in a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct IoRates {
    /// Bytes read.
    pub read_bytes: f64,
    /// Bytes written.
    pub write_bytes: f64,
    /// Reads.
    pub reads: f64,
    /// Writes.
    pub writes: f64,
}

impl IoCounters {
    /// The rates since `earlier`, `elapsed` ago. None where a counter went back, which is then
    /// another group's, or no time has passed.
    #[must_use]
    pub fn since(&self, earlier: &Self, elapsed: Duration) -> Option<IoRates> {
        let rate = |now: u64, before: u64| {
            let grown = now.checked_sub(before)?;
            (!elapsed.is_zero()).then(|| float(grown) / elapsed.as_secs_f64())
        };
        Some(IoRates {
            read_bytes: rate(self.read_bytes, earlier.read_bytes)?,
            write_bytes: rate(self.write_bytes, earlier.write_bytes)?,
            reads: rate(self.reads, earlier.reads)?,
            writes: rate(self.writes, earlier.writes)?,
        })
    }

    /// Requests in all.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.reads.saturating_add(self.writes)
    }
}

impl IoRates {
    /// Whether nothing is done.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.requests() <= 0.0
    }

    /// Bytes in all.
    #[must_use]
    pub fn bytes(&self) -> f64 {
        self.read_bytes + self.write_bytes
    }

    /// Requests in all.
    #[must_use]
    pub fn requests(&self) -> f64 {
        self.reads + self.writes
    }
}

/// What one direction of a device can do. No number is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// Bytes per second, in large requests.
    bytes_per_second: u64,
    /// Requests per second, small and several at a time.
    requests_per_second: u64,
    /// Length of these small requests, in bytes.
    block_bytes: u64,
    /// Time of one small request alone: the median, and what 99 of 100 do not exceed.
    latency: Duration,
    latency_p99: Duration,
}

/// The numbers of a [`Direction`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Bytes per second, in large requests.
    pub bytes_per_second: u64,
    /// Requests per second, small and several at a time.
    pub requests_per_second: u64,
    /// Length of these small requests, in bytes.
    pub block_bytes: u64,
    /// Median time of one small request alone.
    pub latency: Duration,
    /// 99 of 100 small requests alone take no longer.
    pub latency_p99: Duration,
}

impl Direction {
    /// A direction that was measured; none where it moved nothing.
    #[must_use]
    pub fn new(measured: Measured) -> Option<Self> {
        let Measured {
            bytes_per_second,
            requests_per_second,
            block_bytes,
            latency,
            latency_p99,
        } = measured;
        let useful = bytes_per_second > 0
            && requests_per_second > 0
            && block_bytes > 0
            && !latency.is_zero();
        useful.then_some(Self {
            bytes_per_second,
            requests_per_second,
            block_bytes,
            latency,
            latency_p99: latency_p99.max(latency),
        })
    }

    /// Bytes per second, in large requests.
    #[must_use]
    pub const fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second
    }

    /// Requests per second, small and several at a time.
    #[must_use]
    pub const fn requests_per_second(&self) -> u64 {
        self.requests_per_second
    }

    /// What a small request alone takes at worst: what 99 of 100 do not exceed, but at most
    /// [`WORST`] times the median. A device that others used while it was measured has a tail
    /// that is theirs, and its median hardly moves.
    #[must_use]
    pub fn latency_worst(&self) -> Duration {
        self.latency_p99.min(self.latency * WORST)
    }

    /// What a request of `bytes` takes when nobody else is there.
    #[must_use]
    pub fn time_alone(&self, bytes: f64) -> Duration {
        let beyond = (bytes - float(self.block_bytes)).max(0.0) / float(self.bytes_per_second);
        self.latency + Duration::try_from_secs_f64(beyond).unwrap_or(Duration::MAX / 2)
    }

    /// Part of the device's time that these rates take.
    fn share(&self, bytes: f64, requests: f64) -> f64 {
        let per_byte = 1.0 / float(self.bytes_per_second);
        let fixed = 1.0 / float(self.requests_per_second) - float(self.block_bytes) * per_byte;
        bytes * per_byte + requests * fixed.max(0.0)
    }
}

/// What requests of one direction cost on a device, as rates at which it does nothing else: the
/// coefficients of the kernel's linear model (block/blk-iocost.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costs {
    /// Bytes per second, in large requests.
    pub bytes_per_second: u64,
    /// Requests of 4 KiB per second, one after the other.
    pub sequential_per_second: u64,
    /// Requests of 4 KiB per second, anywhere.
    pub random_per_second: u64,
    /// In microseconds: where more than a few requests take longer, the device is asked for more
    /// than it can do.
    pub latency_us: u64,
}

/// What requests cost on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CostModel {
    /// Reads.
    pub read: Costs,
    /// Writes.
    pub write: Costs,
}

/// What a device can do, as `forebay calibrate` measured it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCapability {
    /// Its name in /dev.
    pub name: String,
    /// Reads.
    pub read: Direction,
    /// Writes; where they were not measured, they are taken to be as fast as reads.
    pub write: Option<Direction>,
    /// What the kernel can be told of it; absent where too little was measured.
    pub cost_model: Option<CostModel>,
}

impl DeviceCapability {
    /// What is gone by for writes.
    #[must_use]
    pub fn writes(&self) -> &Direction {
        self.write.as_ref().unwrap_or(&self.read)
    }

    /// Part of the device's time that these rates take; above 1 is more than it can do.
    #[must_use]
    pub fn share(&self, rates: &IoRates) -> f64 {
        self.read.share(rates.read_bytes, rates.reads)
            + self.writes().share(rates.write_bytes, rates.writes)
    }

    /// What a request of these rates takes on average when nobody else is there.
    #[must_use]
    pub fn time_alone(&self, rates: &IoRates) -> Option<Duration> {
        let mean = |bytes: f64, requests: f64| bytes / requests.max(f64::MIN_POSITIVE);
        let read = self.read.time_alone(mean(rates.read_bytes, rates.reads));
        let write = self
            .writes()
            .time_alone(mean(rates.write_bytes, rates.writes));
        let sum = read.as_secs_f64() * rates.reads + write.as_secs_f64() * rates.writes;
        (!rates.is_idle())
            .then(|| Duration::try_from_secs_f64(sum / rates.requests()).ok())
            .flatten()
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "statistics need no more than 53 bits"
)]
const fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> DeviceCapability {
        let read = Measured {
            bytes_per_second: 100 << 20,
            requests_per_second: 1000,
            block_bytes: 4096,
            latency: Duration::from_millis(2),
            latency_p99: Duration::from_millis(1),
        };
        DeviceCapability {
            name: "sda".to_owned(),
            read: Direction::new(read).unwrap(),
            write: None,
            cost_model: None,
        }
    }

    #[test]
    fn a_share_is_one_when_the_device_does_what_was_measured() {
        let check = |rates: IoRates, share: f64| {
            let is = disk().share(&rates);
            assert!((is - share).abs() < 0.02, "{is} for {rates:?}");
        };
        check(IoRates::default(), 0.0);
        let small = IoRates {
            read_bytes: 4096.0 * 1000.0,
            reads: 1000.0,
            ..IoRates::default()
        };
        check(small, 1.0);
        let large = IoRates {
            write_bytes: 50.0 * f64::from(1 << 20),
            writes: 12.0,
            ..IoRates::default()
        };
        check(large, 0.5);
    }

    #[test]
    fn what_moved_nothing_is_no_direction() {
        let measured = Measured {
            bytes_per_second: 1,
            requests_per_second: 1,
            block_bytes: 1,
            latency: Duration::from_nanos(1),
            latency_p99: Duration::ZERO,
        };
        let direction = Direction::new(measured).unwrap();
        assert_eq!(direction.latency_worst(), Duration::from_nanos(1));
        for broken in [
            Measured {
                bytes_per_second: 0,
                ..measured
            },
            Measured {
                requests_per_second: 0,
                ..measured
            },
            Measured {
                latency: Duration::ZERO,
                ..measured
            },
        ] {
            assert_eq!(Direction::new(broken), None);
        }
    }

    #[test]
    fn large_requests_may_take_longer() {
        let rates = |bytes: f64| IoRates {
            read_bytes: bytes,
            reads: 1.0,
            ..IoRates::default()
        };
        let alone = |bytes| disk().time_alone(&rates(bytes)).unwrap().as_secs_f64();
        assert!((alone(4096.0) - 0.002).abs() < 1e-9);
        assert!((alone(f64::from(1 << 20)) - 0.012).abs() < 1e-4);
        assert_eq!(disk().time_alone(&IoRates::default()), None);
    }

    #[test]
    fn a_counter_that_went_back_gives_no_rate() {
        let counters = |reads| IoCounters {
            reads,
            ..IoCounters::default()
        };
        let second = Duration::from_secs(1);
        let rates = counters(5).since(&counters(2), second).unwrap();
        assert!((rates.reads - 3.0).abs() < 1e-9);
        assert_eq!(counters(2).since(&counters(5), second), None);
        assert_eq!(counters(5).since(&counters(2), Duration::ZERO), None);
    }
}
