//! Quantities with their units in the type.
//!
//! Absence is an `Option` or a [`Gap`](crate::snapshot::Gap) and "no limit" is
//! [`Limit::Max`]; no quantity has a magic value.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An amount of memory or storage, in bytes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `n` mebibytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The nearest amount to `bytes`; negative and not-a-number become zero.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "float-to-integer casts saturate, which is the contract"
    )]
    pub fn from_f64(bytes: f64) -> Self {
        Self(bytes.round() as u64)
    }

    /// As a float, for statistics. Exact up to 2^53.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "statistics need no more than 53 bits"
    )]
    pub fn as_f64(self) -> f64 {
        self.0 as f64
    }

    /// `self - other`, never below zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self + other`, never above the largest amount.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [
            (1 << 40, "TiB"),
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
        ];
        for (size, name) in UNITS {
            if self.0 >= size {
                return write!(f, "{:.1} {name}", self.as_f64() / Bytes(size).as_f64());
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// A rate of data, in bytes per second.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Rate(pub u64);

impl fmt::Display for Rate {
    /// In bits, as networks are measured.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = Bytes(self.0).as_f64() * 8.0;
        let (size, name) = [(1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "Kbit/s")]
            .into_iter()
            .find(|(size, _)| bits >= *size)
            .unwrap_or((1.0, "bit/s"));
        write!(f, "{:.1} {name}", bits / size)
    }
}

/// An amount of processor time per time, in thousandths of one CPU.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct MilliCpu(pub u64);

impl MilliCpu {
    /// `n` whole CPUs.
    #[must_use]
    pub const fn cpus(n: u64) -> Self {
        Self(n * 1000)
    }

    /// The nearest amount to `cpus`; negative and not-a-number become zero.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "float-to-integer casts saturate, which is the contract"
    )]
    pub fn from_cpus(cpus: f64) -> Self {
        Self((cpus * 1000.0).round() as u64)
    }

    /// In CPUs.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "a host has far fewer than 2^53 thousandths"
    )]
    pub fn as_cpus(self) -> f64 {
        self.0 as f64 / 1000.0
    }

    /// The smallest number of whole CPUs that holds this amount.
    #[must_use]
    pub fn whole_cpus(self) -> usize {
        usize::try_from(self.0.div_ceil(1000)).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} CPU", self.as_cpus())
    }
}

/// A share of the capacity of the fastest CPU at its highest frequency, in hundredths of a
/// percent: what cpu.uclamp.min and cpu.uclamp.max count in.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Utilization(pub u32);

impl Utilization {
    /// All of it, which the kernel writes as `max`.
    pub const FULL: Self = Self::percent(100);

    /// `n` hundredths of it.
    #[must_use]
    pub const fn percent(n: u32) -> Self {
        Self(n.saturating_mul(100))
    }

    /// In hundredths of it.
    #[must_use]
    pub fn as_percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl fmt::Display for Utilization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.as_percent())
    }
}

/// A bound that may be absent. Orders `Max` above every value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit<T> {
    /// At most this much.
    At(T),
    /// No limit.
    Max,
}

impl<T: fmt::Display> fmt::Display for Limit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(value) => value.fmt(f),
            Self::Max => f.write_str("max"),
        }
    }
}

impl<T: PartialOrd + Copy> Limit<T> {
    /// Whether `value` is within the limit.
    pub fn allows(&self, value: T) -> bool {
        match self {
            Self::At(limit) => value <= *limit,
            Self::Max => true,
        }
    }

    /// `value`, cut at the limit.
    pub fn cut(&self, value: T) -> T {
        match self {
            Self::At(limit) if value > *limit => *limit,
            _ => value,
        }
    }
}

/// A point in time: monotonic for arithmetic, wall clock for people.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Time {
    /// Since an origin that the host chose; never goes back.
    pub monotonic: Duration,
    /// Milliseconds since 1970-01-01 UTC.
    pub unix_ms: u64,
}

impl Time {
    /// Monotonic time since `earlier`; zero when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.monotonic.saturating_sub(earlier.monotonic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_order_max_last() {
        assert!(Limit::At(u64::MAX) < Limit::Max);
        assert!(Limit::Max.allows(7));
        assert_eq!(Limit::At(3).cut(9), 3);
    }

    #[test]
    fn amounts_print_in_the_unit_people_use() {
        let check = |bytes: u64, shown: &str| assert_eq!(Bytes(bytes).to_string(), shown);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1536, "1.5 KiB");
        check(3 << 30, "3.0 GiB");
    }

    #[test]
    fn amounts_from_floats_never_wrap() {
        assert_eq!(MilliCpu::from_cpus(-1.0), MilliCpu(0));
        assert_eq!(MilliCpu::from_cpus(f64::NAN), MilliCpu(0));
        assert_eq!(Bytes::from_f64(f64::INFINITY), Bytes(u64::MAX));
        assert_eq!(MilliCpu(1001).whole_cpus(), 2);
    }
}
