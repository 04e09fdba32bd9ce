//! What one observation saw.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::app::{AppId, Device};
use crate::idset::{CpuSet, NodeSet};
use crate::io::{CostModel, DeviceCounters};
use crate::slice::{Knob, Setting, Slice};
use crate::units::{Bytes, Time};
use crate::working_set::MemoryStat;

/// Why a reading is missing. A gap is never taken for a zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gap {
    /// The kernel or this control group does not offer it.
    Unsupported,
    /// It is read in another period of the rotation.
    NotDue,
    /// Reading it failed.
    Failed(String),
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported => f.write_str("not offered by this kernel"),
            Self::NotDue => f.write_str("not due"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// A value, or why there is none.
pub type Reading<T> = Result<T, Gap>;

/// Whether an app's processes are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// It was never seen, or its processes left.
    Absent,
    /// It runs.
    Running,
    /// A program that Forebay started ended.
    Ended(Ending),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It returned this status.
    Status(i32),
    /// This signal ended it.
    Signal(i32),
    /// It ended while nobody could ask how.
    Unknown,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("unknown status"),
        }
    }
}

impl Ending {
    /// Whether the program says that all went well.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Status(0))
    }
}

/// A request to give memory back: what was asked for last, and how far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaim {
    /// Counts the requests on this host.
    pub number: u64,
    /// What was asked for.
    pub asked: Bytes,
    /// What came so far.
    pub got: Bytes,
    /// Whether it is over.
    pub state: ReclaimState,
}

/// How far a request to give memory back is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReclaimState {
    /// The kernel looks for pages.
    Running,
    /// All of it came.
    Done,
    /// The kernel found no more, or the time for it was over.
    Short,
    /// The kernel refused.
    Failed,
}

/// How the free memory of a host lies, and who brings it together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compaction {
    /// What of free memory lies in pieces smaller than a huge page, in permille.
    pub scattered: u32,
    /// How often the kernel was asked to bring it together.
    pub number: u64,
    /// Whether it is at it.
    pub running: bool,
}

/// Bringing an app's pages to other NUMA nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageMove {
    /// The nodes they go to.
    pub to: NodeSet,
    /// What its processes mapped when it began.
    pub mapped: Bytes,
    /// What of that was looked at.
    pub looked_at: Bytes,
    /// What was moved.
    pub moved: Bytes,
    /// What was elsewhere and stayed there: other processes use it, or there was no room.
    pub stayed: Bytes,
    /// Whether it is over.
    pub state: PageMoveState,
}

/// How far a move of pages is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageMoveState {
    /// It goes on.
    Running,
    /// All were looked at.
    Done,
    /// It was given up, or its time was over.
    CutShort,
}

/// What an app sent and received over the network since the daemon looks, loopback left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes received.
    pub received: Bytes,
    /// Packets received.
    pub received_packets: u64,
    /// Bytes sent.
    pub sent: Bytes,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets that were not sent because of the app's bound.
    pub dropped_packets: u64,
    /// TCP segments sent again.
    pub retransmitted: u64,
}

/// What of an app's memory its processes touch, as far as accesses to it are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Anonymous memory that the processes watched have in memory.
    pub watched: Bytes,
    /// What they touched lately, of any kind, rounded up: never less than is in use, as far as
    /// samples can tell.
    pub hot: Bytes,
}

/// What was seen of one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppSample {
    /// Whether it runs.
    pub state: RunState,
    /// The process that Forebay started, while it lives.
    pub main_pid: Option<u32>,
    /// Processes in the slice.
    pub processes: Reading<u32>,
    /// Knobs in force that do not yet hold for all processes: some came later.
    pub unsettled: BTreeSet<Knob>,
    /// How far the last move of its pages between NUMA nodes is.
    pub page_move: Option<PageMove>,
    /// Processor time used since the slice exists.
    pub cpu_used: Reading<Duration>,
    /// Time spent throttled by the quota since the slice exists.
    pub cpu_throttled: Reading<Duration>,
    /// Time in which some task of the app waited for a CPU (PSI some total).
    pub cpu_stalled: Reading<Duration>,
    /// Memory charged now.
    pub memory_used: Reading<Bytes>,
    /// Time in which some task of the app waited for memory (PSI some total).
    pub memory_stalled: Reading<Duration>,
    /// What was done on each block device since the slice exists.
    pub io: Reading<DeviceCounters>,
    /// What the memory consists of.
    pub memory_stat: Reading<MemoryStat>,
    /// What of it is touched. A gap while nobody watches, and until enough was seen.
    pub touched: Reading<Touched>,
    /// The last request to give memory back, and how far it is.
    pub reclaim: Option<Reclaim>,
    /// Time in which some task of the app waited for I/O (PSI some total).
    pub io_stalled: Reading<Duration>,
    /// What it sent and received since the daemon looks.
    pub traffic: Reading<Traffic>,
    /// Processes that belong to the app and are not in its slice yet.
    pub strays: BTreeSet<u32>,
    /// Knobs that somebody else wrote since Forebay did, with what they hold now.
    pub foreign: BTreeMap<Knob, String>,
    /// What keeps the owner of the app's group (systemd, a container runtime) from being heard
    /// or obeyed, for as long as it does.
    pub troubles: BTreeSet<String>,
    /// The slice as it was found in the kernel: given once, when the host first sees the
    /// app, so that a daemon that comes back starts from what is in force.
    pub found: Vec<Setting>,
    /// What the group had before Forebay wrote any of it, of knobs that are set only while
    /// something asks for them: those of single block devices, and uclamp's. Given along
    /// with `found`, for a group that is not Forebay's.
    pub before: Slice,
}

impl AppSample {
    /// An app of which nothing is there.
    #[must_use]
    pub fn absent() -> Self {
        Self {
            state: RunState::Absent,
            main_pid: None,
            processes: Ok(0),
            unsettled: BTreeSet::new(),
            page_move: None,
            cpu_used: Err(Gap::Unsupported),
            cpu_throttled: Err(Gap::Unsupported),
            cpu_stalled: Err(Gap::Unsupported),
            memory_used: Err(Gap::Unsupported),
            memory_stalled: Err(Gap::Unsupported),
            io: Err(Gap::Unsupported),
            memory_stat: Err(Gap::Unsupported),
            touched: Err(Gap::Unsupported),
            reclaim: None,
            io_stalled: Err(Gap::Unsupported),
            traffic: Err(Gap::Unsupported),
            strays: BTreeSet::new(),
            foreign: BTreeMap::new(),
            troubles: BTreeSet::new(),
            found: Vec::new(),
            before: Slice::default(),
        }
    }
}

/// What was seen of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSample {
    /// Busy time of each CPU since boot, by CPU number.
    pub cpu_busy: Reading<BTreeMap<usize, Duration>>,
    /// Time stolen by the hypervisor since boot, over all CPUs.
    pub steal: Reading<Duration>,
    /// Memory that could be had without swapping.
    pub memory_available: Reading<Bytes>,
    /// Where the interrupts of devices are served.
    pub interrupts: Reading<Interrupts>,
    /// The models of what requests to block devices cost.
    pub cost_models: Reading<CostModels>,
    /// Swap that is free.
    pub swap_free: Reading<Bytes>,
    /// Whose accesses to memory are watched.
    pub memory_watch: Reading<MemoryWatch>,
    /// How free memory lies; read once in a while.
    pub compaction: Reading<Compaction>,
}

/// Whose accesses to memory the kernel watches (DAMON), which has one user on a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryWatch {
    /// The apps that the daemon has it watch.
    pub apps: BTreeSet<AppId>,
    /// What somebody else does with it, for as long as that keeps the daemon from using it.
    pub taken: Option<String>,
}

/// Where the interrupts of devices are served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupts {
    /// The CPUs that they are kept off; not known after a daemon that was killed.
    pub kept_off: Option<CpuSet>,
    /// Those that somebody else moved since, named once. They are left alone from then on.
    pub foreign: BTreeSet<u32>,
}

/// Models of what requests to block devices cost, which are one for the whole host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CostModels {
    /// Those that the daemon installed.
    pub in_force: BTreeMap<Device, CostModel>,
    /// Devices of which somebody else has switched a model on.
    pub others: BTreeSet<Device>,
    /// Devices whose model is not what the daemon installed any more.
    pub foreign: BTreeSet<Device>,
}

/// What one observation saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When.
    pub time: Time,
    /// The host.
    pub host: HostSample,
    /// The apps, each that was asked for.
    pub apps: BTreeMap<AppId, AppSample>,
}
