//! An app's share of the host, and the knobs it is made of.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::app::{Device, IoMax, Partition};
use crate::idset::{CpuSet, NodeSet};
use crate::units::{Bytes, Limit, MilliCpu, Rate, Utilization};

/// One kernel control of one slice. Named after the cgroup v2 file; hosts translate for v1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Knob {
    /// cpuset.cpus
    Cpus,
    /// cpuset.cpus.partition; after cpuset.cpus, which it is about
    CpusPartition,
    /// cpuset.mems
    Mems,
    /// cpu.idle; before cpu.weight, which the kernel refuses on an idle group
    CpuIdle,
    /// cpu.weight
    CpuWeight,
    /// cpu.max
    CpuMax,
    /// cpu.max.burst
    CpuBurst,
    /// cpu.uclamp.min
    CpuUclampMin,
    /// cpu.uclamp.max
    CpuUclampMax,
    /// memory.min
    MemoryMin,
    /// memory.low
    MemoryLow,
    /// memory.high
    MemoryHigh,
    /// memory.max
    MemoryMax,
    /// memory.swap.max
    MemorySwapMax,
    /// memory.zswap.max
    MemoryZswapMax,
    /// io.weight
    IoWeight,
    /// io.max of one device
    IoMax(Device),
    /// io.latency of one device
    IoLatency(Device),
    /// pids.max
    PidsMax,
    /// What may be sent over the network; by a program of Forebay's in the kernel, which has no
    /// file for it
    EgressMax,
    /// Ways of the last-level cache, in /sys/fs/resctrl
    L3Cache,
    /// Memory bandwidth, in /sys/fs/resctrl
    MemoryBandwidth,
    /// /proc/PID/oom_score_adj of each process in the slice that nobody set it for
    OomScoreAdj,
}

impl Knob {
    /// The same for any device, where it is about one: what a host offers, it offers for all.
    #[must_use]
    pub const fn of_any_device(self) -> Self {
        const ANY: Device = Device { major: 0, minor: 0 };
        match self {
            Self::IoMax(_) => Self::IoMax(ANY),
            Self::IoLatency(_) => Self::IoLatency(ANY),
            other => other,
        }
    }

    /// The device that it is about.
    #[must_use]
    pub const fn device(self) -> Option<Device> {
        match self {
            Self::IoMax(device) | Self::IoLatency(device) => Some(device),
            _ => None,
        }
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Cpus => "cpuset.cpus",
            Self::CpusPartition => "cpuset.cpus.partition",
            Self::Mems => "cpuset.mems",
            Self::CpuWeight => "cpu.weight",
            Self::CpuIdle => "cpu.idle",
            Self::CpuMax => "cpu.max",
            Self::CpuBurst => "cpu.max.burst",
            Self::CpuUclampMin => "cpu.uclamp.min",
            Self::CpuUclampMax => "cpu.uclamp.max",
            Self::MemoryMin => "memory.min",
            Self::MemoryLow => "memory.low",
            Self::MemoryHigh => "memory.high",
            Self::MemoryMax => "memory.max",
            Self::MemorySwapMax => "memory.swap.max",
            Self::MemoryZswapMax => "memory.zswap.max",
            Self::IoWeight => "io.weight",
            Self::IoMax(device) => return write!(f, "io.max {device}"),
            Self::IoLatency(device) => return write!(f, "io.latency {device}"),
            Self::PidsMax => "pids.max",
            Self::EgressMax => "egress.max",
            Self::L3Cache => "resctrl L3",
            Self::MemoryBandwidth => "resctrl MB",
            Self::OomScoreAdj => "oom_score_adj",
        };
        f.write_str(name)
    }
}

/// A knob with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// CPUs the app may run on.
    Cpus(CpuSet),
    /// Whether these CPUs are taken from everybody else on the host.
    CpusPartition(Partition),
    /// NUMA nodes its memory comes from.
    Mems(NodeSet),
    /// Share under contention, 1 to 10,000; 100 is the kernel's default.
    CpuWeight(u32),
    /// Whether it runs only when nothing else wants the CPU.
    CpuIdle(bool),
    /// Processor time per time.
    CpuMax(Limit<MilliCpu>),
    /// Unused quota that may be saved up.
    CpuBurst(MilliCpu),
    /// Utilization that its tasks count for at least when the CPU's frequency is chosen.
    CpuUclampMin(Utilization),
    /// Utilization that its tasks count for at most when the CPU's frequency is chosen.
    CpuUclampMax(Utilization),
    /// Memory never reclaimed.
    MemoryMin(Bytes),
    /// Memory reclaimed last.
    MemoryLow(Bytes),
    /// Memory above which the app is slowed and reclaimed.
    MemoryHigh(Limit<Bytes>),
    /// Memory above which the app is out of memory.
    MemoryMax(Limit<Bytes>),
    /// Memory of the app that may be in swap.
    MemorySwapMax(Limit<Bytes>),
    /// Compressed memory of the app that zswap may hold.
    MemoryZswapMax(Limit<Bytes>),
    /// Share of the block devices, 1 to 10,000.
    IoWeight(u32),
    /// Limits of one block device.
    IoMax(Device, IoMax),
    /// Time in which requests to one block device are to be answered, or groups beside this one
    /// are held back; microseconds are told apart.
    IoLatency(Device, Limit<Duration>),
    /// Processes and threads.
    PidsMax(Limit<u64>),
    /// Data sent over the network, but for loopback.
    EgressMax(Limit<Rate>),
    /// Share of the last-level cache that may be filled, in percent; 100 is all of it.
    L3Cache(u32),
    /// Share of the memory bandwidth, in percent, as the processor throttles it.
    MemoryBandwidth(u32),
    /// How soon the kernel ends it when memory is out, from -1000 (never) to 1000 (first); 0 is
    /// the kernel's default.
    OomScoreAdj(i16),
}

impl Setting {
    /// Whether it asks for no limit.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        matches!(
            self,
            Self::CpuMax(Limit::Max)
                | Self::MemoryHigh(Limit::Max)
                | Self::MemoryMax(Limit::Max)
                | Self::MemorySwapMax(Limit::Max)
                | Self::PidsMax(Limit::Max)
                | Self::EgressMax(Limit::Max)
        )
    }

    /// Which knob this sets.
    #[must_use]
    pub const fn knob(&self) -> Knob {
        match self {
            Self::Cpus(_) => Knob::Cpus,
            Self::CpusPartition(_) => Knob::CpusPartition,
            Self::Mems(_) => Knob::Mems,
            Self::CpuWeight(_) => Knob::CpuWeight,
            Self::CpuIdle(_) => Knob::CpuIdle,
            Self::CpuMax(_) => Knob::CpuMax,
            Self::CpuBurst(_) => Knob::CpuBurst,
            Self::CpuUclampMin(_) => Knob::CpuUclampMin,
            Self::CpuUclampMax(_) => Knob::CpuUclampMax,
            Self::MemoryMin(_) => Knob::MemoryMin,
            Self::MemoryLow(_) => Knob::MemoryLow,
            Self::MemoryHigh(_) => Knob::MemoryHigh,
            Self::MemoryMax(_) => Knob::MemoryMax,
            Self::MemorySwapMax(_) => Knob::MemorySwapMax,
            Self::MemoryZswapMax(_) => Knob::MemoryZswapMax,
            Self::IoWeight(_) => Knob::IoWeight,
            Self::IoMax(device, _) => Knob::IoMax(*device),
            Self::IoLatency(device, _) => Knob::IoLatency(*device),
            Self::PidsMax(_) => Knob::PidsMax,
            Self::EgressMax(_) => Knob::EgressMax,
            Self::L3Cache(_) => Knob::L3Cache,
            Self::MemoryBandwidth(_) => Knob::MemoryBandwidth,
            Self::OomScoreAdj(_) => Knob::OomScoreAdj,
        }
    }

    /// Whether this takes something from the app that `old` gave it.
    /// The engine shrinks before it grows, so that two slices never own one thing.
    #[must_use]
    pub fn shrinks(&self, old: Option<&Self>) -> bool {
        match (self, old) {
            (Self::Cpus(new), Some(Self::Cpus(old))) => new.is_subset(old),
            (Self::Cpus(_), _) => false,
            // A member gives its CPUs back to everybody.
            (Self::CpusPartition(new), _) => *new == Partition::Member,
            (Self::MemoryMin(new), Some(Self::MemoryMin(old)))
            | (Self::MemoryLow(new), Some(Self::MemoryLow(old))) => new < old,
            (Self::MemoryMin(_) | Self::MemoryLow(_), _) => false,
            (Self::MemoryHigh(new), Some(Self::MemoryHigh(old)))
            | (Self::MemoryMax(new), Some(Self::MemoryMax(old))) => new < old,
            (Self::CpuMax(new), Some(Self::CpuMax(old))) => new < old,
            (Self::CpuWeight(new), Some(Self::CpuWeight(old))) => new < old,
            (Self::CpuUclampMin(new), Some(Self::CpuUclampMin(old)))
            | (Self::CpuUclampMax(new), Some(Self::CpuUclampMax(old))) => new < old,
            (Self::CpuUclampMin(_), None) => false,

            _ => true,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = ", self.knob())?;
        match self {
            Self::Cpus(set) | Self::Mems(set) => write!(f, "{set}"),
            Self::CpusPartition(partition) => write!(f, "{partition}"),
            Self::CpuWeight(weight) | Self::IoWeight(weight) => write!(f, "{weight}"),
            Self::CpuIdle(idle) => write!(f, "{}", u8::from(*idle)),
            Self::CpuMax(limit) => write!(f, "{limit}"),
            Self::CpuBurst(burst) => write!(f, "{burst}"),
            Self::CpuUclampMin(clamp) | Self::CpuUclampMax(clamp) => write!(f, "{clamp}"),
            Self::MemoryMin(bytes) | Self::MemoryLow(bytes) => write!(f, "{bytes}"),
            Self::MemoryHigh(limit)
            | Self::MemoryMax(limit)
            | Self::MemorySwapMax(limit)
            | Self::MemoryZswapMax(limit) => write!(f, "{limit}"),
            Self::IoMax(_, max) => write!(
                f,
                "rbps={} wbps={} riops={} wiops={}",
                max.rbps, max.wbps, max.riops, max.wiops
            ),
            Self::IoLatency(_, Limit::At(target)) => write!(f, "target={}", target.as_micros()),
            Self::IoLatency(_, Limit::Max) => f.write_str("target=max"),
            Self::PidsMax(limit) => write!(f, "{limit}"),
            Self::EgressMax(limit) => write!(f, "{limit}"),
            Self::L3Cache(percent) | Self::MemoryBandwidth(percent) => write!(f, "{percent}%"),
            Self::OomScoreAdj(value) => write!(f, "{value}"),
        }
    }
}

/// An app's share of the host: the knobs Forebay manages for it. A knob that is not
/// here is left as it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Setting>", into = "Vec<Setting>")]
pub struct Slice {
    settings: BTreeMap<Knob, Setting>,
}

impl Slice {
    /// Sets one knob, in place of what it had.
    pub fn set(&mut self, setting: Setting) {
        self.settings.insert(setting.knob(), setting);
    }

    /// No longer manages a knob.
    pub fn forget(&mut self, knob: Knob) {
        self.settings.remove(&knob);
    }

    /// The value of one knob, if it is managed.
    #[must_use]
    pub fn get(&self, knob: Knob) -> Option<&Setting> {
        self.settings.get(&knob)
    }

    /// All settings, in the order of [`Knob`].
    pub fn iter(&self) -> impl Iterator<Item = &Setting> {
        self.settings.values()
    }

    /// Its CPUs, when they are managed.
    #[must_use]
    pub fn cpus(&self) -> Option<CpuSet> {
        match self.get(Knob::Cpus) {
            Some(Setting::Cpus(cpus)) => Some(*cpus),
            _ => None,
        }
    }

    /// Processor time that it allows, in CPUs: those of its set, or its quota where that is less. None without either.
    #[must_use]
    pub fn allowed_cpu(&self) -> Option<f64> {
        let set = self.cpus().and_then(|cpus| u32::try_from(cpus.len()).ok());
        let quota = match self.get(Knob::CpuMax) {
            Some(Setting::CpuMax(Limit::At(most))) => Some(most.as_cpus()),
            _ => None,
        };
        set.map(f64::from).into_iter().chain(quota).reduce(f64::min)
    }

    /// Memory that it allows before whoever has more is slowed down or ended. None without a bound.
    #[must_use]
    pub fn allowed_memory(&self) -> Option<Bytes> {
        let bounds = [Knob::MemoryHigh, Knob::MemoryMax];
        let bounds = bounds.into_iter().filter_map(|knob| match self.get(knob)? {
            Setting::MemoryHigh(Limit::At(most)) | Setting::MemoryMax(Limit::At(most)) => {
                Some(*most)
            }
            _ => None,
        });
        bounds.min()
    }

    /// Whether its CPUs are taken from everybody else on the host.
    #[must_use]
    pub fn is_partition(&self) -> bool {
        matches!(
            self.get(Knob::CpusPartition),
            Some(Setting::CpusPartition(
                Partition::Root | Partition::Isolated
            ))
        )
    }

    /// What has to be written to get from `in_force` to this slice.
    pub fn changes_from<'a>(&'a self, in_force: &'a Self) -> impl Iterator<Item = Setting> + 'a {
        self.iter()
            .filter(|setting| in_force.get(setting.knob()) != Some(setting))
            .copied()
    }
}

impl From<Vec<Setting>> for Slice {
    fn from(settings: Vec<Setting>) -> Self {
        settings.into_iter().collect()
    }
}

impl From<Slice> for Vec<Setting> {
    fn from(slice: Slice) -> Self {
        slice.settings.into_values().collect()
    }
}

impl FromIterator<Setting> for Slice {
    fn from_iter<I: IntoIterator<Item = Setting>>(settings: I) -> Self {
        Self {
            settings: settings
                .into_iter()
                .map(|setting| (setting.knob(), setting))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_in_force_needs_no_change() {
        let slice: Slice = [Setting::CpuWeight(100), Setting::CpuIdle(false)]
            .into_iter()
            .collect();
        assert_eq!(slice.changes_from(&slice).count(), 0);
        assert_eq!(slice.changes_from(&Slice::default()).count(), 2);
    }

    #[test]
    fn giving_up_is_shrinking() {
        let cpus = |text: &str| Setting::Cpus(text.parse().unwrap());
        let check = |new: Setting, old: Setting, shrinks: bool| {
            assert_eq!(new.shrinks(Some(&old)), shrinks, "{old} to {new}");
        };
        check(cpus("0"), cpus("0-1"), true);
        check(cpus("0-1"), cpus("0"), false);
        check(cpus("1"), cpus("0"), false);
        check(
            Setting::MemoryHigh(Limit::At(Bytes(1))),
            Setting::MemoryHigh(Limit::Max),
            true,
        );
        check(
            Setting::MemoryMin(Bytes(2)),
            Setting::MemoryMin(Bytes(1)),
            false,
        );
        check(Setting::CpuIdle(true), Setting::CpuIdle(false), true);
        let partition = Setting::CpusPartition;
        check(
            partition(Partition::Member),
            partition(Partition::Root),
            true,
        );
        check(
            partition(Partition::Root),
            partition(Partition::Member),
            false,
        );
    }
}
