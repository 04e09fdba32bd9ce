//! The seam between v1 and v2: one setting, written into the files of either.
//!
//! | knob | v2 | v1 |
//! |---|---|---|
//! | `Cpus`, `Mems` | cpuset.cpus, cpuset.mems | the same |
//! | `CpusPartition` | cpuset.cpus.partition | none |
//! | `CpuWeight` | cpu.weight | cpu.shares = weight * 1024 / 100 |
//! | `CpuIdle` | cpu.idle | cpu.idle |
//! | `CpuMax`, `CpuBurst` | cpu.max, cpu.max.burst | cpu.cfs_quota_us, cpu.cfs_burst_us |
//! | `CpuUclampMin`, `CpuUclampMax` | cpu.uclamp.min, cpu.uclamp.max | the same |
//! | `MemoryMin`, `MemoryLow` | memory.min, memory.low | none |
//! | `MemoryHigh` | memory.high | memory.soft_limit_in_bytes |
//! | `MemoryMax` | memory.max | memory.limit_in_bytes |
//! | `MemorySwapMax`, `MemoryZswapMax` | memory.swap.max, memory.zswap.max | none |
//! | `IoWeight` | io.weight or io.bfq.weight | blkio.bfq.weight or blkio.weight, at most 1000 |
//! | `IoMax` | io.max | blkio.throttle.* |
//! | `IoLatency` | io.latency | none |
//! | `PidsMax` | pids.max | pids.max |
//! | `EgressMax` | none: see `network` | none |
//! | `OomScoreAdj` | none: of each process, see `oom` | none |
//! | `L3Cache`, `MemoryBandwidth` | none: see `resctrl` | none |
//!
//! v1's soft limit is where reclaim starts first when memory is short, not where the group is
//! slowed: it is nearer to memory.high than to memory.low, which protects and has no
//! counterpart. The period of the quota is left as it is found.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use forebay_core::app::{Device, IoMax, Partition};
use forebay_core::host::Capabilities;
use forebay_core::slice::{Knob, Setting};
use forebay_core::units::{Bytes, Limit, MilliCpu, Utilization};

use crate::cost;
use crate::mounts::{Controller, Hierarchies, Version};

/// The kernel refuses quotas below a millisecond.
const QUOTA_US_MIN: u64 = 1000;
/// The kernel's own period of the quota.
pub(crate) const PERIOD_US_DEFAULT: u64 = 100_000;
const BFQ_WEIGHT_MAX: u32 = 1000;
const SHARES_MIN: u64 = 2;
const SHARES_MAX: u64 = 262_144;
/// v1 shows "no limit" as the largest multiple of the page size.
const V1_UNLIMITED: u64 = 1 << 62;

const ANY: Device = Device { major: 0, minor: 0 };

const THROTTLES: [&str; 4] = [
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_iops_device",
];

/// Where one knob is written on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    /// The hierarchy's place in the list.
    pub(crate) hierarchy: usize,
    pub(crate) version: Version,
    /// The files, written in this order.
    pub(crate) files: Vec<&'static str>,
}

/// How every knob is written on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ways {
    by_knob: BTreeMap<Knob, Way>,
}

impl Ways {
    /// Finds out which files exist. `dir` gives our group's directory in a hierarchy.
    pub(crate) fn probe<'a>(
        hierarchies: &Hierarchies,
        dir: impl Fn(usize) -> Option<&'a Path>,
    ) -> Self {
        let mut by_knob = BTreeMap::new();
        for knob in all_knobs() {
            let place = controller(knob).and_then(|controller| hierarchies.of(controller));
            let Some((index, hierarchy)) = place else {
                continue;
            };
            let Some(dir) = dir(index) else { continue };
            let files = candidates(knob, hierarchy.version)
                .into_iter()
                .find(|files| {
                    !files.is_empty() && files.iter().all(|file| dir.join(file).exists())
                });
            if let Some(files) = files {
                let way = Way {
                    hierarchy: index,
                    version: hierarchy.version,
                    files,
                };
                by_knob.insert(knob, way);
            }
        }
        Self { by_knob }
    }

    /// How a knob is written; none where the host does not offer it.
    pub(crate) fn of(&self, knob: Knob) -> Option<&Way> {
        self.by_knob.get(&knob.of_any_device())
    }

    /// The knobs the host offers. Those that are for any device are listed with a device that
    /// this host has.
    pub(crate) fn capabilities(&self, disk: Option<Device>) -> Capabilities {
        let knobs = self.by_knob.keys().map(|knob| match (knob, disk) {
            (Knob::IoMax(_), Some(disk)) => Knob::IoMax(disk),
            (Knob::IoLatency(_), Some(disk)) => Knob::IoLatency(disk),
            (knob, _) => *knob,
        });
        Capabilities {
            knobs: knobs.collect(),
            ..Capabilities::default()
        }
    }

    /// The knobs the host offers, but those of single devices.
    pub(crate) fn knobs(&self) -> impl Iterator<Item = (Knob, &Way)> {
        self.by_knob
            .iter()
            .filter(|(knob, _)| knob.device().is_none())
            .map(|(knob, way)| (*knob, way))
    }
}

/// Every knob that is a file, once; those of single devices for no particular one.
pub(crate) fn all_knobs() -> [Knob; 19] {
    [
        Knob::Cpus,
        Knob::CpusPartition,
        Knob::Mems,
        Knob::CpuWeight,
        Knob::CpuIdle,
        Knob::CpuMax,
        Knob::CpuBurst,
        Knob::CpuUclampMin,
        Knob::CpuUclampMax,
        Knob::MemoryMin,
        Knob::MemoryLow,
        Knob::MemoryHigh,
        Knob::MemoryMax,
        Knob::MemorySwapMax,
        Knob::MemoryZswapMax,
        Knob::IoWeight,
        Knob::IoMax(ANY),
        Knob::IoLatency(ANY),
        Knob::PidsMax,
    ]
}

/// The controller whose files a knob is written to.
pub(crate) const fn controller(knob: Knob) -> Option<Controller> {
    Some(match knob {
        Knob::Cpus | Knob::CpusPartition | Knob::Mems => Controller::Cpuset,
        Knob::CpuWeight
        | Knob::CpuIdle
        | Knob::CpuMax
        | Knob::CpuBurst
        | Knob::CpuUclampMin
        | Knob::CpuUclampMax => Controller::Cpu,
        Knob::MemoryMin
        | Knob::MemoryLow
        | Knob::MemoryHigh
        | Knob::MemoryMax
        | Knob::MemorySwapMax
        | Knob::MemoryZswapMax => Controller::Memory,
        Knob::IoWeight | Knob::IoMax(_) | Knob::IoLatency(_) => Controller::Io,
        Knob::PidsMax => Controller::Pids,
        Knob::EgressMax | Knob::L3Cache | Knob::MemoryBandwidth | Knob::OomScoreAdj => return None,
    })
}

/// The sets of files a knob may be written to, best first.
fn candidates(knob: Knob, version: Version) -> Vec<Vec<&'static str>> {
    match (version, knob) {
        (_, Knob::Cpus) => vec![vec!["cpuset.cpus"]],
        (Version::V2, Knob::CpusPartition) => vec![vec!["cpuset.cpus.partition"]],
        (Version::V1, Knob::CpusPartition) => vec![],
        (_, Knob::Mems) => vec![vec!["cpuset.mems"]],
        (Version::V2, Knob::CpuWeight) => vec![vec!["cpu.weight"]],
        (Version::V1, Knob::CpuWeight) => vec![vec!["cpu.shares"]],
        (_, Knob::CpuIdle) => vec![vec!["cpu.idle"]],
        (Version::V2, Knob::CpuMax) => vec![vec!["cpu.max"]],
        (Version::V1, Knob::CpuMax) => vec![vec!["cpu.cfs_quota_us"]],
        (Version::V2, Knob::CpuBurst) => vec![vec!["cpu.max.burst"]],
        (Version::V1, Knob::CpuBurst) => vec![vec!["cpu.cfs_burst_us"]],
        (_, Knob::CpuUclampMin) => vec![vec!["cpu.uclamp.min"]],
        (_, Knob::CpuUclampMax) => vec![vec!["cpu.uclamp.max"]],
        (Version::V2, Knob::MemoryMin) => vec![vec!["memory.min"]],
        (Version::V2, Knob::MemoryLow) => vec![vec!["memory.low"]],
        (Version::V1, Knob::MemoryMin | Knob::MemoryLow) => vec![],
        (Version::V2, Knob::MemoryHigh) => vec![vec!["memory.high"]],
        (Version::V1, Knob::MemoryHigh) => vec![vec!["memory.soft_limit_in_bytes"]],
        (Version::V2, Knob::MemorySwapMax) => vec![vec!["memory.swap.max"]],
        // memory.memsw.limit_in_bytes bounds memory and swap together: another thing.
        (Version::V1, Knob::MemorySwapMax) => vec![],
        (Version::V2, Knob::MemoryZswapMax) => vec![vec!["memory.zswap.max"]],
        (Version::V1, Knob::MemoryZswapMax) => vec![],
        (Version::V2, Knob::MemoryMax) => vec![vec!["memory.max"]],
        (Version::V1, Knob::MemoryMax) => vec![vec!["memory.limit_in_bytes"]],
        (Version::V2, Knob::IoWeight) => vec![vec!["io.weight"], vec!["io.bfq.weight"]],
        (Version::V1, Knob::IoWeight) => vec![vec!["blkio.bfq.weight"], vec!["blkio.weight"]],
        (Version::V2, Knob::IoMax(_)) => vec![vec!["io.max"]],
        (Version::V1, Knob::IoMax(_)) => vec![THROTTLES.to_vec()],
        (Version::V2, Knob::IoLatency(_)) => vec![vec!["io.latency"]],
        (Version::V1, Knob::IoLatency(_)) => vec![],
        (_, Knob::PidsMax) => vec![vec!["pids.max"]],
        (_, Knob::EgressMax | Knob::L3Cache | Knob::MemoryBandwidth | Knob::OomScoreAdj) => vec![],
    }
}

/// Why no kernel takes a setting, when none does. v1 would quietly make the nearest of it.
pub(crate) fn nonsense(setting: &Setting) -> Option<String> {
    match setting {
        Setting::CpuWeight(weight) | Setting::IoWeight(weight)
            if !(1..=10_000).contains(weight) =>
        {
            Some(format!("{setting} is not within 1 to 10000"))
        }
        Setting::OomScoreAdj(value) if !(-1000..=1000).contains(value) => {
            Some(format!("{setting} is not within -1000 to 1000"))
        }
        Setting::CpuUclampMin(clamp) | Setting::CpuUclampMax(clamp)
            if *clamp > Utilization::FULL =>
        {
            Some(format!("{setting} is more than a CPU has"))
        }
        Setting::Cpus(set) | Setting::Mems(set) if set.is_empty() => Some(format!(
            "{} of nothing leaves nowhere to run",
            setting.knob()
        )),
        _ => None,
    }
}

/// What to write into each file of `way`, in its order. `period_us` is the period of the
/// quota in this group. Amounts are rounded as the kernel rounds them, so that what is read
/// back is what was written.
pub(crate) fn texts(setting: &Setting, way: &Way, period_us: u64) -> Vec<String> {
    let v2 = way.version == Version::V2;
    let one = |text: String| vec![text];
    match setting {
        Setting::Cpus(set) | Setting::Mems(set) => one(set.to_string()),
        Setting::CpusPartition(partition) => one(partition.to_string()),
        Setting::CpuWeight(weight) => one(if v2 {
            weight.to_string()
        } else {
            shares(*weight).to_string()
        }),
        Setting::CpuIdle(idle) => one(u8::from(*idle).to_string()),
        Setting::CpuMax(limit) => one(match (limit, v2) {
            (Limit::Max, true) => format!("max {period_us}"),
            (Limit::Max, false) => "-1".to_owned(),
            (Limit::At(cpu), true) => format!("{} {period_us}", quota_us(*cpu, period_us)),
            (Limit::At(cpu), false) => quota_us(*cpu, period_us).to_string(),
        }),
        Setting::CpuBurst(burst) => one((burst.0.saturating_mul(period_us) / 1000).to_string()),
        Setting::CpuUclampMin(clamp) | Setting::CpuUclampMax(clamp) => one(match *clamp {
            Utilization::FULL => "max".to_owned(),
            Utilization(hundredths) => format!("{}.{:02}", hundredths / 100, hundredths % 100),
        }),
        Setting::MemoryMin(bytes) | Setting::MemoryLow(bytes) => one(pages(*bytes).to_string()),
        Setting::MemoryHigh(limit)
        | Setting::MemoryMax(limit)
        | Setting::MemorySwapMax(limit)
        | Setting::MemoryZswapMax(limit) => one(match (limit, v2) {
            (Limit::At(bytes), _) => pages(*bytes).to_string(),
            (Limit::Max, true) => "max".to_owned(),
            (Limit::Max, false) => "-1".to_owned(),
        }),
        Setting::IoWeight(weight) => one(match way.files.first() {
            Some(&"io.weight") => format!("default {weight}"),
            _ => bfq_weight(*weight).to_string(),
        }),
        Setting::IoMax(device, max) if v2 => one(format!(
            "{device} rbps={} wbps={} riops={} wiops={}",
            max.rbps, max.wbps, max.riops, max.wiops
        )),
        Setting::IoMax(device, max) => [max.rbps, max.wbps, max.riops, max.wiops]
            .into_iter()
            .map(|limit| match limit {
                Limit::At(rate) => format!("{device} {rate}"),
                Limit::Max => format!("{device} 0"),
            })
            .collect(),
        Setting::IoLatency(device, target) => one(match target {
            Limit::At(target) => format!("{device} target={}", target.as_micros()),
            Limit::Max => format!("{device} target=max"),
        }),
        Setting::PidsMax(limit) => one(limit.to_string()),
        Setting::EgressMax(_)
        | Setting::L3Cache(_)
        | Setting::MemoryBandwidth(_)
        | Setting::OomScoreAdj(_) => vec![],
    }
}

/// Reads a knob back from the texts of its files, cut by [`cut`]. None when the kernel says
/// something that no setting stands for, such as a weight while the group is idle.
pub(crate) fn parse(knob: Knob, way: &Way, texts: &[String], period_us: u64) -> Option<Setting> {
    let first = texts.first()?.as_str();
    let v2 = way.version == Version::V2;
    Some(match knob {
        // Empty in v2 means all of the parent's: nothing was set.
        Knob::Cpus if !first.is_empty() => Setting::Cpus(first.parse().ok()?),
        Knob::Mems if !first.is_empty() => Setting::Mems(first.parse().ok()?),
        Knob::Cpus | Knob::Mems => return None,
        // One that is invalid has its CPUs as a member has them.
        Knob::CpusPartition => Setting::CpusPartition(match first {
            "root" => Partition::Root,
            "isolated" => Partition::Isolated,
            _ => Partition::Member,
        }),
        Knob::CpuWeight if v2 => Setting::CpuWeight(first.parse().ok().filter(|w| *w > 0)?),
        Knob::CpuWeight => Setting::CpuWeight(weight_of_shares(first.parse().ok()?)),
        Knob::CpuIdle => Setting::CpuIdle(first.parse::<i32>().ok()? != 0),
        Knob::CpuMax => {
            let mut parts = first.split_whitespace();
            let quota = parts.next()?;
            let period = match parts.next() {
                Some(period) => period.parse().ok()?,
                None => period_us,
            };
            Setting::CpuMax(match quota {
                "max" | "-1" => Limit::Max,
                quota => Limit::At(milli(quota.parse().ok()?, period)),
            })
        }
        Knob::CpuBurst => Setting::CpuBurst(milli(first.parse().ok()?, period_us)),
        Knob::CpuUclampMin => Setting::CpuUclampMin(utilization(first)?),
        Knob::CpuUclampMax => Setting::CpuUclampMax(utilization(first)?),
        Knob::MemoryMin => Setting::MemoryMin(match limit(first)? {
            Limit::At(bytes) => bytes,
            Limit::Max => Bytes(u64::MAX),
        }),
        Knob::MemoryLow => Setting::MemoryLow(match limit(first)? {
            Limit::At(bytes) => bytes,
            Limit::Max => Bytes(u64::MAX),
        }),
        Knob::MemoryHigh => Setting::MemoryHigh(limit(first)?),
        Knob::MemoryMax => Setting::MemoryMax(limit(first)?),
        Knob::MemorySwapMax => Setting::MemorySwapMax(limit(first)?),
        Knob::MemoryZswapMax => Setting::MemoryZswapMax(limit(first)?),
        Knob::IoWeight => {
            let number = first.strip_prefix("default ").unwrap_or(first);
            let number: u32 = number.trim().parse().ok()?;
            Setting::IoWeight(number)
        }
        Knob::IoMax(device) if v2 => Setting::IoMax(device, io_max_v2(first)?),
        Knob::IoMax(device) => {
            let rate = |at: usize| {
                let number = texts.get(at)?.split_whitespace().nth(1)?;
                Some(match number.parse().ok()? {
                    0 => Limit::Max,
                    rate => Limit::At(rate),
                })
            };
            Setting::IoMax(
                device,
                IoMax {
                    rbps: rate(0)?,
                    wbps: rate(1)?,
                    riops: rate(2)?,
                    wiops: rate(3)?,
                },
            )
        }
        Knob::IoLatency(device) => {
            let target = first.split_once("target=")?.1;
            Setting::IoLatency(device, target_of(target.trim())?)
        }
        Knob::EgressMax | Knob::L3Cache | Knob::MemoryBandwidth | Knob::OomScoreAdj => return None,
        Knob::PidsMax => Setting::PidsMax(match first {
            "max" => Limit::Max,
            number => Limit::At(number.parse().ok()?),
        }),
    })
}

/// The part of a file's text that belongs to a knob, in the form in which it can be written
/// back: the line of its device, the default weight, or everything.
pub(crate) fn cut(file: &str, device: Option<Device>, text: &str) -> String {
    let Some(device) = device else {
        return match file {
            "io.weight" | "io.bfq.weight" | "blkio.bfq.weight" | "blkio.weight" => {
                text.lines().next().unwrap_or_default().trim().to_owned()
            }
            _ => text.trim().to_owned(),
        };
    };
    let name = device.to_string();
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(&name));
    if let Some(text) = cost::canonical(file, device, line) {
        return text;
    }
    match (line, file) {
        (Some(line), _) => line.trim().to_owned(),
        (None, "io.latency") => format!("{name} target=max"),
        (None, "io.max") => format!("{name} rbps=max wbps=max riops=max wiops=max"),
        (None, _) => format!("{name} 0"),
    }
}

pub(crate) fn shares(weight: u32) -> u64 {
    (u64::from(weight) * 1024 / 100).clamp(SHARES_MIN, SHARES_MAX)
}

fn weight_of_shares(shares: u64) -> u32 {
    let weight = (shares.clamp(SHARES_MIN, SHARES_MAX) * 100).div_ceil(1024);
    u32::try_from(weight.clamp(1, 10_000)).unwrap_or(10_000)
}

/// BFQ takes up to 1,000. Weights below stay as they are, so that their ratios hold.
fn bfq_weight(weight: u32) -> u32 {
    weight.clamp(1, BFQ_WEIGHT_MAX)
}

fn quota_us(cpu: MilliCpu, period_us: u64) -> u64 {
    (cpu.0.saturating_mul(period_us) / 1000).max(QUOTA_US_MIN)
}

fn milli(quota_us: u64, period_us: u64) -> MilliCpu {
    MilliCpu(
        quota_us
            .saturating_mul(1000)
            .checked_div(period_us)
            .unwrap_or(0),
    )
}

pub(crate) fn pages(bytes: Bytes) -> u64 {
    let page = rustix::param::page_size() as u64;
    bytes.0 / page * page
}

/// `max`, or a percentage with up to two decimals.
fn utilization(text: &str) -> Option<Utilization> {
    if text == "max" {
        return Some(Utilization::FULL);
    }
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let hundredths = format!("{whole}{decimals:0<2}").parse().ok()?;
    (decimals.len() <= 2).then_some(Utilization(hundredths))
}

fn limit(text: &str) -> Option<Limit<Bytes>> {
    if text == "max" {
        return Some(Limit::Max);
    }
    let bytes: u64 = text.parse().ok()?;
    Some(if bytes >= V1_UNLIMITED {
        Limit::Max
    } else {
        Limit::At(Bytes(bytes))
    })
}

/// A number of microseconds; the kernel shows no line where there is no target.
fn target_of(text: &str) -> Option<Limit<Duration>> {
    Some(match text {
        "max" | "0" => Limit::Max,
        number => Limit::At(Duration::from_micros(number.parse().ok()?)),
    })
}

fn io_max_v2(line: &str) -> Option<IoMax> {
    let mut max = IoMax {
        rbps: Limit::Max,
        wbps: Limit::Max,
        riops: Limit::Max,
        wiops: Limit::Max,
    };
    for part in line.split_whitespace().skip(1) {
        let (name, value) = part.split_once('=')?;
        let value = match value {
            "max" => Limit::Max,
            number => Limit::At(number.parse().ok()?),
        };
        match name {
            "rbps" => max.rbps = value,
            "wbps" => max.wbps = value,
            "riops" => max.riops = value,
            "wiops" => max.wiops = value,
            _ => {}
        }
    }
    Some(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(version: Version, files: &[&'static str]) -> Way {
        Way {
            hierarchy: 0,
            version,
            files: files.to_vec(),
        }
    }

    #[test]
    fn settings_become_the_files_of_each_version() {
        let check = |setting: Setting, version: Version, expected: &[&str]| {
            let files = candidates(setting.knob().of_any_device(), version).remove(0);
            let way = way(version, &files);
            let written = texts(&setting, &way, PERIOD_US_DEFAULT);
            assert_eq!(written, expected, "{setting}");
            let knob = setting.knob();
            let read: Vec<String> = written
                .iter()
                .zip(&way.files)
                .map(|(text, file)| cut(file, knob.device(), text))
                .collect();
            assert_eq!(
                parse(knob, &way, &read, PERIOD_US_DEFAULT),
                Some(setting),
                "{setting} read back"
            );
        };
        use Version::{V1, V2};
        check(Setting::Cpus("0-3,8".parse().unwrap()), V1, &["0-3,8"]);
        check(Setting::CpusPartition(Partition::Root), V2, &["root"]);
        check(Setting::CpuWeight(100), V2, &["100"]);
        check(Setting::CpuWeight(100), V1, &["1024"]);
        check(Setting::CpuWeight(1), V1, &["10"]);
        check(Setting::CpuWeight(10_000), V1, &["102400"]);
        check(Setting::CpuIdle(true), V1, &["1"]);
        check(Setting::CpuUclampMin(Utilization(1205)), V2, &["12.05"]);
        check(Setting::CpuUclampMin(Utilization(0)), V1, &["0.00"]);
        check(
            Setting::CpuUclampMax(Utilization::percent(60)),
            V2,
            &["60.00"],
        );
        check(Setting::CpuUclampMax(Utilization::FULL), V2, &["max"]);
        check(
            Setting::CpuMax(Limit::At(MilliCpu(1500))),
            V2,
            &["150000 100000"],
        );
        check(Setting::CpuMax(Limit::At(MilliCpu(1500))), V1, &["150000"]);
        check(Setting::CpuMax(Limit::Max), V2, &["max 100000"]);
        check(Setting::CpuMax(Limit::Max), V1, &["-1"]);
        check(Setting::CpuBurst(MilliCpu(500)), V1, &["50000"]);
        check(Setting::MemoryLow(Bytes::mib(1)), V2, &["1048576"]);
        check(
            Setting::MemoryHigh(Limit::At(Bytes::mib(1))),
            V1,
            &["1048576"],
        );
        check(Setting::MemoryMax(Limit::Max), V2, &["max"]);
        check(Setting::MemorySwapMax(Limit::At(Bytes(0))), V2, &["0"]);
        check(Setting::MemoryZswapMax(Limit::Max), V2, &["max"]);
        check(Setting::IoWeight(250), V2, &["default 250"]);
        check(Setting::IoWeight(1000), V1, &["1000"]);
        check(Setting::PidsMax(Limit::At(7)), V1, &["7"]);
        let device = Device { major: 8, minor: 0 };
        let max = IoMax {
            rbps: Limit::At(1000),
            wbps: Limit::Max,
            riops: Limit::Max,
            wiops: Limit::At(5),
        };
        check(
            Setting::IoMax(device, max),
            V2,
            &["8:0 rbps=1000 wbps=max riops=max wiops=5"],
        );
        check(
            Setting::IoMax(device, max),
            V1,
            &["8:0 1000", "8:0 0", "8:0 0", "8:0 5"],
        );
        let target = Limit::At(Duration::from_micros(4000));
        check(Setting::IoLatency(device, target), V2, &["8:0 target=4000"]);
        check(
            Setting::IoLatency(device, Limit::Max),
            V2,
            &["8:0 target=max"],
        );
    }

    #[test]
    fn every_weight_survives_shares() {
        for weight in 1..=10_000 {
            assert_eq!(weight_of_shares(shares(weight)), weight);
        }
    }

    #[test]
    fn what_the_kernel_shows_is_understood() {
        let check = |knob: Knob, version: Version, text: &str, expected: Option<Setting>| {
            let files = candidates(knob.of_any_device(), version).remove(0);
            let texts = vec![text.to_owned()];
            assert_eq!(
                parse(knob, &way(version, &files), &texts, PERIOD_US_DEFAULT),
                expected,
                "{knob} {text}"
            );
        };
        use Version::{V1, V2};
        let unlimited = Some(Setting::MemoryMax(Limit::Max));
        check(Knob::MemoryMax, V1, "9223372036854771712", unlimited);
        check(Knob::CpuWeight, V2, "0", None);
        let min = |hundredths| Some(Setting::CpuUclampMin(Utilization(hundredths)));
        check(Knob::CpuUclampMin, V2, "0.00", min(0));
        check(Knob::CpuUclampMin, V2, "12.05", min(1205));
        check(Knob::CpuUclampMin, V1, "50", min(5000));
        check(Knob::CpuUclampMin, V2, "max", min(10_000));
        check(Knob::CpuUclampMin, V2, "12.345", None);
        check(Knob::CpuUclampMin, V2, "-1.00", None);
        check(
            Knob::CpuMax,
            V2,
            "50000 50000",
            Some(Setting::CpuMax(Limit::At(MilliCpu(1000)))),
        );
        check(Knob::Cpus, V2, "", None);
        check(
            Knob::CpusPartition,
            V2,
            "isolated invalid (Cpu list in cpuset.cpus not exclusive)",
            Some(Setting::CpusPartition(Partition::Member)),
        );
        check(Knob::Cpus, V2, "nonsense", None);
    }

    #[test]
    fn lines_of_devices_are_cut_out() {
        let device: Device = "8:16".parse().unwrap();
        let check = |file: &str, device: Option<Device>, text: &str, expected: &str| {
            assert_eq!(cut(file, device, text), expected);
        };
        check(
            "io.max",
            Some(device),
            "8:0 rbps=1 wbps=max riops=max wiops=max\n8:16 rbps=2 wbps=max riops=max wiops=max\n",
            "8:16 rbps=2 wbps=max riops=max wiops=max",
        );
        check(
            "io.max",
            Some(device),
            "",
            "8:16 rbps=max wbps=max riops=max wiops=max",
        );
        check(THROTTLES[0], Some(device), "8:0 5\n", "8:16 0");
        check(
            "io.latency",
            Some(device),
            "8:0 target=9\n",
            "8:16 target=max",
        );
        check("io.weight", None, "default 100\n8:0 50\n", "default 100");
        check("cpu.max", None, "max 100000\n", "max 100000");
    }
}
