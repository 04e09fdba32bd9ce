//! A simulated control group: its knobs, checked as the kernel checks them, and its
//! accounts.

use std::collections::BTreeMap;

use forebay_core::app::{IoMax, Partition};
use forebay_core::idset::CpuSet;
use forebay_core::io::IoCounters;
use forebay_core::slice::{Knob, Setting};
use forebay_core::topology::Topology;
use forebay_core::units::{Bytes, Limit, MilliCpu, Utilization};

use crate::disk::REQUEST;
use crate::memory::Holdings;

/// The kernel's cfs period, in seconds: what is saved up for bursts is meant for each.
const QUOTA_PERIOD: f64 = 0.1;

/// A control group.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// Whether it was there before Forebay, or somebody else made it.
    pub(crate) foreign: bool,
    /// Whether Forebay stopped its tasks.
    pub(crate) frozen: bool,
    /// Whether the kernel took its partition back, which it does not give again unasked.
    pub(crate) lost_partition: bool,
    /// Knobs that do not have their default.
    knobs: BTreeMap<Knob, Setting>,
    /// What others than Forebay last wrote: what must be there when Forebay is gone.
    pub(crate) outside: BTreeMap<Knob, Setting>,
    /// The knobs that every step looks at.
    pub(crate) limits: Limits,
    pub(crate) accounts: Accounts,
    pub(crate) holdings: Holdings,
}

/// Knobs in the form that the model uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) cpus: CpuSet,
    pub(crate) weight: f64,
    pub(crate) idle: bool,
    /// CPUs; infinite without a quota.
    pub(crate) quota: f64,
    /// CPU seconds that may be saved.
    pub(crate) burst: f64,
    /// Bytes that others cannot reclaim.
    pub(crate) protected: f64,
    /// Bytes; infinite without a limit.
    pub(crate) memory: f64,
    /// Bytes per second; infinite without a limit.
    pub(crate) io: f64,
    pub(crate) pids: Limit<u64>,
}

/// What a group used, in seconds and bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Accounts {
    pub(crate) cpu_used: f64,
    pub(crate) cpu_throttled: f64,
    pub(crate) cpu_stalled: f64,
    pub(crate) memory_used: f64,
    pub(crate) memory_stalled: f64,
    pub(crate) io_bytes: f64,
    pub(crate) io_requests: f64,
    pub(crate) io_stalled: f64,
    /// Saved quota.
    pub(crate) saved: f64,
}

impl Accounts {
    /// What was done on the block device, as the kernel counts it.
    pub(crate) fn io_counters(&self) -> IoCounters {
        IoCounters {
            read_bytes: Bytes::from_f64(self.io_bytes).0,
            reads: Bytes::from_f64(self.io_requests).0,
            ..IoCounters::default()
        }
    }
}

impl Group {
    pub(crate) fn new(topology: &Topology, foreign: bool) -> Self {
        let mut group = Self {
            foreign,
            frozen: false,
            lost_partition: false,
            knobs: BTreeMap::new(),
            outside: BTreeMap::new(),
            limits: Limits {
                cpus: CpuSet::EMPTY,
                weight: 0.0,
                idle: false,
                quota: 0.0,
                burst: 0.0,
                protected: 0.0,
                memory: 0.0,
                io: 0.0,
                pids: Limit::Max,
            },
            accounts: Accounts::default(),
            holdings: Holdings::default(),
        };
        group.refresh(topology);
        group
    }

    /// The CPUs that it was given by name, which no partition beside it may have.
    pub(crate) fn named_cpus(&self) -> CpuSet {
        match self.knobs.get(&Knob::Cpus) {
            Some(Setting::Cpus(cpus)) => *cpus,
            _ => CpuSet::EMPTY,
        }
    }

    /// The CPUs that it takes from everybody else.
    pub(crate) fn taken_cpus(&self) -> CpuSet {
        match self.knobs.get(&Knob::CpusPartition) {
            Some(Setting::CpusPartition(partition))
                if *partition != Partition::Member && !self.lost_partition =>
            {
                self.named_cpus()
            }
            _ => CpuSet::EMPTY,
        }
    }

    /// The value of a knob.
    pub(crate) fn read(&self, knob: Knob, topology: &Topology) -> Setting {
        if knob == Knob::CpusPartition && self.lost_partition {
            return default(knob, topology);
        }
        self.knobs
            .get(&knob)
            .copied()
            .unwrap_or_else(|| default(knob, topology))
    }

    /// What a knob must hold when Forebay is gone.
    pub(crate) fn read_outside(&self, knob: Knob, topology: &Topology) -> Setting {
        self.outside
            .get(&knob)
            .copied()
            .unwrap_or_else(|| default(knob, topology))
    }

    /// Knobs that were ever written.
    pub(crate) fn written(&self) -> impl Iterator<Item = Knob> + '_ {
        self.knobs.keys().copied()
    }

    /// Writes a knob.
    ///
    /// # Errors
    /// When the kernel would refuse the value.
    pub(crate) fn write(&mut self, setting: Setting, topology: &Topology) -> Result<(), String> {
        self.check(&setting, topology)?;
        if setting.knob() == Knob::CpusPartition {
            self.lost_partition = false;
        }
        self.knobs.insert(setting.knob(), setting);
        self.refresh(topology);
        Ok(())
    }

    /// Puts a value back that was there before, whatever the kernel thinks of it now.
    pub(crate) fn restore(&mut self, setting: Setting, topology: &Topology) {
        if setting.knob() == Knob::CpusPartition {
            self.lost_partition = false;
        }
        self.knobs.insert(setting.knob(), setting);
        self.refresh(topology);
    }

    fn check(&self, setting: &Setting, topology: &Topology) -> Result<(), String> {
        let refuse = |why: &str| Err(format!("{setting}: {why}"));
        match *setting {
            Setting::Cpus(cpus) if cpus.is_empty() => {
                refuse("invalid argument: a group with tasks needs a CPU")
            }
            Setting::Cpus(cpus) if !cpus.is_subset(&topology.cpu_set()) => {
                refuse("invalid argument: the host has no such CPU")
            }
            Setting::Mems(nodes) if nodes.is_empty() => {
                refuse("invalid argument: a group with tasks needs a NUMA node")
            }
            Setting::Mems(nodes) if !nodes.is_subset(&topology.memory_nodes()) => {
                refuse("invalid argument: the host has no such NUMA node")
            }
            Setting::CpuWeight(_) if self.limits.idle => {
                refuse("invalid argument: an idle group has no weight")
            }
            Setting::CpuWeight(weight) | Setting::IoWeight(weight)
                if !(1..=10_000).contains(&weight) =>
            {
                refuse("numerical result out of range: weights are 1 to 10,000")
            }
            Setting::CpuMax(Limit::At(quota)) if quota < MilliCpu(10) => {
                refuse("invalid argument: the shortest quota is 1 ms in 100 ms")
            }
            Setting::CpuMax(quota) if !quota.allows(self.burst()) => {
                refuse("invalid argument: cpu.max.burst is above this quota")
            }
            Setting::CpuBurst(burst) if !self.quota().allows(burst) => {
                refuse("invalid argument: the burst is above the quota")
            }
            Setting::MemoryMax(max) if !max.allows(Bytes::from_f64(self.accounts.memory_used)) => {
                refuse("device or resource busy: more memory is in use")
            }
            _ => Ok(()),
        }
    }

    fn burst(&self) -> MilliCpu {
        match self.knobs.get(&Knob::CpuBurst) {
            Some(Setting::CpuBurst(burst)) => *burst,
            _ => MilliCpu(0),
        }
    }

    fn quota(&self) -> Limit<MilliCpu> {
        match self.knobs.get(&Knob::CpuMax) {
            Some(Setting::CpuMax(quota)) => *quota,
            _ => Limit::Max,
        }
    }

    fn refresh(&mut self, topology: &Topology) {
        let bytes = |limit: Limit<Bytes>| match limit {
            Limit::At(bytes) => bytes.as_f64(),
            Limit::Max => f64::INFINITY,
        };
        let mut limits = Limits {
            cpus: topology.cpu_set(),
            weight: 100.0,
            idle: false,
            quota: f64::INFINITY,
            burst: 0.0,
            protected: 0.0,
            memory: f64::INFINITY,
            io: f64::INFINITY,
            pids: Limit::Max,
        };
        for setting in self.knobs.values() {
            match *setting {
                Setting::Cpus(cpus) => limits.cpus = cpus,
                Setting::CpuWeight(weight) => limits.weight = f64::from(weight),
                Setting::CpuIdle(idle) => limits.idle = idle,
                Setting::CpuMax(Limit::At(quota)) => limits.quota = quota.as_cpus(),
                Setting::CpuBurst(burst) => limits.burst = burst.as_cpus() * QUOTA_PERIOD,
                Setting::MemoryMin(low) | Setting::MemoryLow(low) => {
                    limits.protected = limits.protected.max(low.as_f64());
                }
                Setting::MemoryHigh(high) | Setting::MemoryMax(high) => {
                    limits.memory = limits.memory.min(bytes(high));
                }
                Setting::IoMax(_, max) => limits.io = limits.io.min(io_limit(max)),
                Setting::PidsMax(pids) => limits.pids = pids,
                Setting::CpuMax(Limit::Max)
                | Setting::CpuUclampMin(_)
                | Setting::CpuUclampMax(_)
                | Setting::Mems(_)
                | Setting::CpusPartition(_)
                | Setting::MemorySwapMax(_)
                | Setting::MemoryZswapMax(_)
                | Setting::IoWeight(_)
                | Setting::IoLatency(..)
                | Setting::EgressMax(_)
                | Setting::L3Cache(_)
                | Setting::MemoryBandwidth(_)
                | Setting::OomScoreAdj(_) => {}
            }
        }
        self.limits = limits;
    }

    /// CPU seconds that the quota leaves in a step of `step` seconds.
    pub(crate) fn allowance(&self, step: f64) -> f64 {
        self.limits.quota * step + self.accounts.saved
    }

    /// Books one step: `wanted` and `got` CPU seconds, `waited` part of the time.
    pub(crate) fn book_cpu(&mut self, step: f64, wanted: f64, got: f64, waited: f64) {
        let allowance = self.allowance(step);
        let accounts = &mut self.accounts;
        accounts.cpu_used += got;
        accounts.cpu_stalled += waited.clamp(0.0, 1.0) * step;
        if self.limits.quota.is_finite() {
            if wanted > allowance {
                accounts.cpu_throttled += step * (1.0 - allowance / wanted);
            }
            accounts.saved = (allowance - got).clamp(0.0, self.limits.burst);
        }
    }

    /// Bytes of those wanted that the limits let through in a step.
    pub(crate) fn io_allowed(&self, step: f64, wanted: f64) -> f64 {
        wanted.min(self.limits.io * step)
    }

    /// Books one step: bytes wanted and done, in requests that took `wait` seconds each.
    pub(crate) fn book_io(&mut self, step: f64, wanted: f64, done: f64, wait: f64) {
        let requests = done / REQUEST;
        self.accounts.io_bytes += done;
        self.accounts.io_requests += requests;
        let held_back = if wanted > done {
            1.0 - done / wanted
        } else {
            0.0
        };
        let waited = (requests * wait / step).max(held_back);
        self.accounts.io_stalled += step * waited.min(1.0);
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a device moves far fewer than 2^53 bytes in a second"
)]
fn io_limit(max: IoMax) -> f64 {
    // Simulated programs read.
    let bytes = match max.rbps {
        Limit::At(bytes) => bytes as f64,
        Limit::Max => f64::INFINITY,
    };
    match max.riops {
        Limit::At(requests) => bytes.min(requests as f64 * REQUEST),
        Limit::Max => bytes,
    }
}

/// What a fresh group has.
pub(crate) fn default(knob: Knob, topology: &Topology) -> Setting {
    match knob {
        Knob::Cpus => Setting::Cpus(topology.cpu_set()),
        Knob::CpusPartition => Setting::CpusPartition(Partition::Member),
        Knob::Mems => Setting::Mems(topology.memory_nodes()),
        Knob::CpuWeight => Setting::CpuWeight(100),
        Knob::CpuIdle => Setting::CpuIdle(false),
        Knob::CpuMax => Setting::CpuMax(Limit::Max),
        Knob::CpuBurst => Setting::CpuBurst(MilliCpu(0)),
        Knob::CpuUclampMin => Setting::CpuUclampMin(Utilization(0)),
        Knob::CpuUclampMax => Setting::CpuUclampMax(Utilization::FULL),
        Knob::MemoryMin => Setting::MemoryMin(Bytes(0)),
        Knob::MemoryLow => Setting::MemoryLow(Bytes(0)),
        Knob::MemoryHigh => Setting::MemoryHigh(Limit::Max),
        Knob::MemoryMax => Setting::MemoryMax(Limit::Max),
        Knob::MemorySwapMax => Setting::MemorySwapMax(Limit::Max),
        Knob::MemoryZswapMax => Setting::MemoryZswapMax(Limit::Max),
        Knob::IoWeight => Setting::IoWeight(100),
        Knob::IoMax(device) => Setting::IoMax(
            device,
            IoMax {
                rbps: Limit::Max,
                wbps: Limit::Max,
                riops: Limit::Max,
                wiops: Limit::Max,
            },
        ),
        Knob::IoLatency(device) => Setting::IoLatency(device, Limit::Max),
        Knob::PidsMax => Setting::PidsMax(Limit::Max),
        Knob::EgressMax => Setting::EgressMax(Limit::Max),
        Knob::L3Cache => Setting::L3Cache(100),
        Knob::MemoryBandwidth => Setting::MemoryBandwidth(100),
        Knob::OomScoreAdj => Setting::OomScoreAdj(0),
    }
}
