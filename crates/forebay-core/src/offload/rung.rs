//! The rungs of the ladders, what each would bring, and why one cannot be taken.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Bottleneck, MemoryBound, Seen};
use crate::app::{AppId, Class};
use crate::fleet::HostName;
use crate::fleet::policy::{Away, Stays};
use crate::snapshot::Compaction;
use crate::units::{Bytes, Limit, MilliCpu};

/// The most that is taken back from one app in one step, so that its effect is seen before the next.
const RECLAIM_MAX: Bytes = Bytes::mib(256);
/// Less is not worth asking for.
const RECLAIM_MIN: Bytes = Bytes::mib(4);
/// Free memory of which less lies in small pieces is not compacted, in permille.
const SCATTERED_MIN: u32 = 500;

/// One step of a ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// Place its threads on CPUs of its slice that are hardly used.
    SpreadThreads,
    /// Give it more CPUs than its forecast wants.
    WidenSlice,
    /// Have the kernel bring free memory together.
    Compact,
    /// Take back what batch holds and does not use.
    ReclaimBatch,
    /// Take back what it holds itself and does not use.
    ReclaimOwn,
    /// Divide block devices anew.
    RebalanceIo,
    /// Bring warm files to the fast side of tiered directories although it waits for I/O.
    PromoteTier,
    /// Move it to another host.
    Move,
    /// Send its compute tasks to an accelerator.
    Accelerate,
}

impl Rung {
    /// The rungs against a lack, the least disruptive first.
    #[must_use]
    pub const fn ladder(bottleneck: Bottleneck) -> &'static [Self] {
        match bottleneck {
            Bottleneck::Cpu => &[
                Self::SpreadThreads,
                Self::WidenSlice,
                Self::Move,
                Self::Accelerate,
            ],
            Bottleneck::Memory => &[
                Self::Compact,
                Self::ReclaimBatch,
                Self::ReclaimOwn,
                Self::Move,
            ],
            Bottleneck::Io => &[Self::RebalanceIo, Self::PromoteTier, Self::Move],
            Bottleneck::Network => &[Self::Move],
        }
    }

    /// Whether it can be taken back. Memory that was taken comes back by itself, and taking a move
    /// back would be another move.
    #[must_use]
    pub const fn can_be_undone(self) -> bool {
        match self {
            Self::SpreadThreads
            | Self::WidenSlice
            | Self::RebalanceIo
            | Self::PromoteTier
            | Self::Accelerate => true,
            Self::Compact | Self::ReclaimBatch | Self::ReclaimOwn | Self::Move => false,
        }
    }

    /// How long its effect takes to show, in multiples of the settling time.
    #[must_use]
    pub const fn slowness(self) -> u32 {
        match self {
            Self::SpreadThreads | Self::WidenSlice | Self::RebalanceIo => 1,
            Self::Compact | Self::ReclaimBatch | Self::ReclaimOwn | Self::Accelerate => 2,
            Self::PromoteTier | Self::Move => 6,
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SpreadThreads => "place its threads one by one",
            Self::WidenSlice => "give it more CPUs",
            Self::Compact => "compact memory",
            Self::ReclaimBatch => "take back memory of batch",
            Self::ReclaimOwn => "take back memory of its own",
            Self::RebalanceIo => "divide block devices anew",
            Self::PromoteTier => "let warm files move to fast storage although it waits",
            Self::Move => "move it to another host",
            Self::Accelerate => "send its tasks to an accelerator",
        })
    }
}

/// What taking a rung means in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The rung says it all.
    Whole,
    /// So much processor time beyond what its forecast wants.
    Widen(MilliCpu),
    /// So much of the time of the block devices that it uses, in percent, is left to it by batch
    /// beyond what its forecast wants.
    Spare(u32),
    /// So much memory of each of these.
    Reclaim(BTreeMap<AppId, Bytes>),
    /// To this host.
    Move(HostName),
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => Ok(()),
            Self::Widen(more) => write!(f, " ({:.2} CPU)", more.as_cpus()),
            Self::Spare(percent) => write!(f, " ({percent}% of their time taken from batch)"),
            Self::Reclaim(from) => {
                let parts = from.iter().map(|(app, bytes)| format!("{bytes} of {app}"));
                write!(f, " ({})", parts.collect::<Vec<_>>().join(", "))
            }
            Self::Move(host) => write!(f, " ({host})"),
        }
    }
}

/// What a rung would bring.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// The part of the constraint that it probably takes away, 0 to 1, when nothing was measured
    /// of this app yet.
    pub relief: f64,
    /// What it costs the app and others, on the scale of the harm it is to take away.
    pub cost: f64,
    /// What it means.
    pub effect: Effect,
}

/// Why a rung does not exist for an app now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Absence {
    /// Threads are not placed one by one.
    ThreadsNotPlaced,
    /// Only critical apps have CPUs of their own.
    SharesCpus,
    /// The slice holds all that the ceiling allows.
    Ceiling,
    /// No CPU is left beyond what others need.
    NoCpuLeft,
    /// CPU sets cannot be set for it.
    NoCpuSets,
    /// The kernel cannot be asked to compact.
    NoCompaction,
    /// It is compacting already.
    Compacting,
    /// Free memory lies together already.
    NotScattered,
    /// The host cannot ask for memory back.
    NoReclaim,
    /// What it meets is its own limit, and memory of others does not help.
    OwnLimit,
    /// Nobody of batch holds cold memory that could go.
    BatchHoldsNothingCold,
    /// It holds no cold memory itself that could go.
    HoldsNothingCold,
    /// Nothing of a device that it uses can be taken from batch.
    NothingToDivide,
    /// No device was measured.
    NoDevice,
    /// No directory is tiered.
    NoTier,
    /// Files move already, whoever waits.
    FilesMove,
    /// Files do not wait for it.
    MovesDoNotWait,
    /// There is no fleet.
    NoFleet,
    /// It stays on this host.
    Stays(Stays),
    /// No worker takes its tasks, or none answers.
    NoAccelerator,
    /// Its worker has no device that takes tasks now.
    NoAcceleratorFree,
    /// Its worker computes nothing that a device could.
    NoKernels,
    /// They go there already.
    Accelerated,
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ThreadsNotPlaced => {
                "the kernel balances threads over its slice, and pinning them did not pay"
            }
            Self::SharesCpus => "only critical apps have CPUs of their own, it shares the rest",
            Self::Ceiling => "its slice holds all that its ceiling allows",
            Self::NoCpuLeft => "no CPU is left beyond those of critical apps and what others need",
            Self::NoCpuSets => "its CPU set cannot be written, see `forebay doctor`",
            Self::NoCompaction => {
                "this kernel cannot be asked to compact memory: /proc/sys/vm/compact_memory cannot \
                 be written"
            }
            Self::Compacting => "the kernel is compacting memory already",
            Self::NotScattered => {
                "free memory is not scattered: half of it or more lies in pieces as large as huge \
                 pages"
            }
            Self::NoReclaim => {
                "this host cannot be asked to take memory back, see `forebay doctor`"
            }
            Self::OwnLimit => "it meets its own limit, and not that of the host",
            Self::BatchHoldsNothingCold => {
                "no batch app is known to hold memory that it does not use and that can go"
            }
            Self::HoldsNothingCold => {
                "it is not known to hold memory that it does not use and that can go"
            }
            Self::NothingToDivide => {
                "batch does nothing on the block devices that it uses, or is bounded to the least \
                 already"
            }
            Self::NoDevice => {
                "no block device was measured, so none is divided: `forebay calibrate` measures"
            }
            Self::NoTier => "no directory is tiered (`[tiers]`)",
            Self::FilesMove => "files of tiered directories move already although it waits",
            Self::MovesDoNotWait => {
                "files of tiered directories wait for critical apps only, and it is none"
            }
            Self::NoFleet => "this host takes no part in moves of a fleet (`fleet.link.listen`)",
            Self::Stays(why) => return why.fmt(f),
            Self::NoAccelerator => {
                "no worker takes tasks of it (`accelerators`), or it does not answer"
            }
            Self::NoAcceleratorFree => {
                "its worker has no accelerator that takes tasks now, see `forebay accel devices`"
            }
            Self::NoKernels => "it has handed its worker no task that an accelerator can compute",
            Self::Accelerated => {
                "its tasks go to an accelerator already where that takes less than \
                                  the CPUs are worth"
            }
        })
    }
}

/// Memory of one app that is not in use and can go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cold {
    /// Page cache.
    pub file: Bytes,
    /// Anonymous memory, as far as it may swap.
    pub anon: Bytes,
    /// No more than this of both together, since the rest is its floor.
    pub most: Bytes,
}

impl Cold {
    /// What can go with so much free swap.
    const fn within(&self, swap: Bytes) -> Bytes {
        let anon = if self.anon.0 < swap.0 {
            self.anon
        } else {
            swap
        };
        let all = self.file.saturating_add(anon);
        if all.0 < self.most.0 { all } else { self.most }
    }

    /// What of that the kernel may write to swap: it chooses, and so perhaps anonymous memory first.
    fn to_swap(self, bytes: Bytes) -> Bytes {
        bytes.min(self.anon)
    }
}

/// What the host can do in this period. What one app is promised is gone for the next.
#[derive(Debug, Clone, Default)]
pub struct Means<'a> {
    /// CPUs that critical apps could still have.
    pub spare_cpus: usize,
    /// CPUs of one core.
    pub core: usize,
    /// Whether apps can be asked for memory.
    pub reclaim: bool,
    /// Free swap that nobody was promised.
    pub swap: Bytes,
    /// Memory of batch apps that is not in use and can go.
    pub cold_batch: BTreeMap<AppId, Cold>,
    /// Apps that were asked in this period already, or are at it.
    pub asked: BTreeSet<AppId>,
    /// Whether any block device was measured.
    pub devices: bool,
    /// Whether there are tiered directories.
    pub tiered: bool,
    /// How free memory lies, where the kernel can be asked to bring it together.
    pub compaction: Option<Compaction>,
    /// Where apps could move to, as [`policy`](crate::fleet::policy) says; none without a fleet.
    pub away: Option<&'a BTreeMap<AppId, Away>>,
}

impl Means<'_> {
    /// What a rung would bring to an app against a lack.
    pub(super) fn offer(
        &self,
        seen: &Seen<'_>,
        rung: Rung,
        severity: f64,
    ) -> Result<Offer, Absence> {
        match rung {
            Rung::SpreadThreads => Err(Absence::ThreadsNotPlaced),
            Rung::WidenSlice => self.widen(seen, severity),
            Rung::Compact => self.compact(),
            Rung::ReclaimBatch => self.reclaim_batch(seen),
            Rung::ReclaimOwn => self.reclaim_own(seen),
            Rung::RebalanceIo if self.devices => Self::divide(seen),
            Rung::RebalanceIo => Err(Absence::NoDevice),
            Rung::PromoteTier => self.promote(seen),
            Rung::Move => self.elsewhere(seen),
            Rung::Accelerate => Self::accelerate(seen),
        }
    }

    /// Takes what was promised out of what is left.
    pub(super) fn claim(&mut self, seen: &Seen<'_>, rung: Rung, effect: &Effect) {
        match effect {
            Effect::Whole if rung == Rung::Compact => {
                if let Some(compaction) = &mut self.compaction {
                    compaction.running = true;
                }
            }
            Effect::Whole | Effect::Spare(_) | Effect::Move(_) => {}
            // However much that is beyond a forecast: a slice grows by a core.
            Effect::Widen(_) => {
                self.spare_cpus = self.spare_cpus.saturating_sub(self.core.max(1));
            }
            Effect::Reclaim(from) => {
                for (app, bytes) in from {
                    let own = (*app == seen.app.id).then_some(seen.cold);
                    let cold = own.or_else(|| self.cold_batch.get(app).copied());
                    let to_swap = cold.unwrap_or_default().to_swap(*bytes);
                    self.swap = self.swap.saturating_sub(to_swap);
                }
                self.asked.extend(from.keys().cloned());
            }
        }
    }

    fn widen(&self, seen: &Seen<'_>, severity: f64) -> Result<Offer, Absence> {
        if seen.app.class != Class::Critical {
            return Err(Absence::SharesCpus);
        }
        if !seen.cpu_sets {
            return Err(Absence::NoCpuSets);
        }
        let core = self.core.max(1);
        let more = MilliCpu::cpus(u64::try_from(core).unwrap_or(1));
        let with = MilliCpu::from_cpus(seen.cpus).0.saturating_add(more.0);
        if matches!(seen.app.ceiling.cpu, Limit::At(ceiling) if ceiling.0 < with) {
            return Err(Absence::Ceiling);
        }
        if self.spare_cpus < core {
            return Err(Absence::NoCpuLeft);
        }
        // What is used of more CPUs is a smaller part of them.
        let after = severity * seen.cpus / MilliCpu(with).as_cpus().max(1e-3);
        let open = (severity - super::trigger::RELEASE).max(super::ladder::OPEN_MIN);
        Ok(Offer {
            relief: ((severity - after) / open).clamp(0.0, 1.0),
            cost: 0.02,
            effect: Effect::Widen(more),
        })
    }

    /// Free memory that lies in small pieces makes the kernel compact while an app waits for memory,
    /// and gives it small pages where it could have huge ones, which khugepaged makes of them once
    /// there is room.
    const fn compact(&self) -> Result<Offer, Absence> {
        let Some(compaction) = self.compaction else {
            return Err(Absence::NoCompaction);
        };
        if compaction.running {
            return Err(Absence::Compacting);
        }
        if compaction.scattered < SCATTERED_MIN {
            return Err(Absence::NotScattered);
        }
        Ok(Offer {
            relief: 0.3,
            cost: 0.03,
            effect: Effect::Whole,
        })
    }

    /// Half of what batch may take of the device where that is least.
    fn divide(seen: &Seen<'_>) -> Result<Offer, Absence> {
        let half = seen.divisible.unwrap_or(0) / 2;
        if half == 0 {
            return Err(Absence::NothingToDivide);
        }
        Ok(Offer {
            relief: 0.4,
            cost: 0.05,
            effect: Effect::Spare(half),
        })
    }

    /// Moves of files wait while a critical app waits for I/O, which is wrong where it waits because
    /// its files are on the slow side. They do not wait for any other app.
    fn promote(&self, seen: &Seen<'_>) -> Result<Offer, Absence> {
        if !self.tiered {
            return Err(Absence::NoTier);
        }
        if seen.app.class != Class::Critical {
            return Err(Absence::MovesDoNotWait);
        }
        Ok(Offer {
            relief: 0.3,
            cost: 0.06,
            effect: Effect::Whole,
        })
    }

    /// How much of its work its tasks are is not known before it is tried.
    fn accelerate(seen: &Seen<'_>) -> Result<Offer, Absence> {
        let used = seen.demand.usage.accelerator;
        let used = used.ok_or(Absence::NoAccelerator)?;
        if used.devices == 0 {
            return Err(Absence::NoAcceleratorFree);
        }
        if used.kernels == 0 {
            return Err(Absence::NoKernels);
        }
        Ok(Offer {
            relief: 0.5,
            cost: 0.05,
            effect: Effect::Whole,
        })
    }

    fn reclaim_batch(&self, seen: &Seen<'_>) -> Result<Offer, Absence> {
        if seen.memory_bound == MemoryBound::Own {
            return Err(Absence::OwnLimit);
        }
        if !self.reclaim {
            return Err(Absence::NoReclaim);
        }
        let mut swap = self.swap;
        let mut from = BTreeMap::new();
        for (app, cold) in &self.cold_batch {
            let bytes = cold.within(swap).min(RECLAIM_MAX);
            if bytes >= RECLAIM_MIN && !self.asked.contains(app) && *app != seen.app.id {
                swap = swap.saturating_sub(cold.to_swap(bytes));
                from.insert(app.clone(), bytes);
            }
        }
        if from.is_empty() {
            return Err(Absence::BatchHoldsNothingCold);
        }
        Ok(Offer {
            relief: 0.5,
            cost: 0.04,
            effect: Effect::Reclaim(from),
        })
    }

    fn reclaim_own(&self, seen: &Seen<'_>) -> Result<Offer, Absence> {
        if !self.reclaim {
            return Err(Absence::NoReclaim);
        }
        let bytes = seen.cold.within(self.swap).min(RECLAIM_MAX);
        if bytes < RECLAIM_MIN || self.asked.contains(&seen.app.id) {
            return Err(Absence::HoldsNothingCold);
        }
        Ok(Offer {
            relief: 0.4,
            cost: 0.08,
            effect: Effect::Reclaim(BTreeMap::from([(seen.app.id.clone(), bytes)])),
        })
    }

    /// The host that was chosen for it, and reserved nothing yet: it may still refuse.
    fn elsewhere(&self, seen: &Seen<'_>) -> Result<Offer, Absence> {
        let away = self.away.ok_or(Absence::NoFleet)?;
        let stays = match away.get(&seen.app.id) {
            Some(Away::To(host)) => {
                return Ok(Offer {
                    relief: 0.9,
                    cost: 0.2,
                    effect: Effect::Move(host.clone()),
                });
            }
            Some(Away::Leaves) => Stays::Leaves,
            Some(Away::Stays(why)) => why.clone(),
            None => Stays::Unseen,
        };
        Err(Absence::Stays(stays))
    }
}
