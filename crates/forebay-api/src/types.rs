//! What goes over the wire.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::accelerators::Accelerator;
use crate::devices::{DevicePlan, Io, IoLatency, IoMax};
use crate::fleet::Fleet;
use crate::fronts::Front;
use crate::usage::Usage;

/// A bound that may be absent: a number, or `"max"`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Limit<T> {
    /// At most this much.
    At(T),
    /// No limit.
    Max(Max),
}

/// The word for "no limit".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Max {
    /// No limit.
    Max,
}

impl<T> Limit<T> {
    /// No limit.
    pub const MAX: Self = Self::Max(Max::Max);
}

/// How much an app matters.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Its response time is protected ahead of everything else.
    Critical,
    /// Gets a fair share of what the critical ones leave.
    Standard,
    /// Runs in what is left.
    Batch,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Critical => "critical",
            Self::Standard => "standard",
            Self::Batch => "batch",
        })
    }
}

/// Whether an app's processes are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// It was never seen, or its processes left.
    Absent,
    /// It runs.
    Running,
    /// A program that Forebay started ended.
    Ended,
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Absent => "absent",
            Self::Running => "running",
            Self::Ended => "ended",
        })
    }
}

/// A forecast: the highest value within the horizon, in CPUs or bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Band {
    /// As likely above as below.
    pub q50: f64,
    /// Not above this in 90 of 100 cases.
    pub q90: f64,
    /// Not above this in 95 of 100 cases: what the plan goes by.
    pub q95: f64,
    /// Not above this in 99 of 100 cases.
    pub q99: f64,
    /// The model that made it.
    pub model: String,
    /// Whether there was too little history, so that the request stands in.
    pub cold: bool,
}

/// What an app will need at most within the horizon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Demand {
    /// Processor time, in CPUs.
    pub cpu: Band,
    /// Memory, in bytes.
    pub memory: Band,
    /// Page cache that is charged and left out of that, because it was not used again.
    #[serde(default)]
    pub memory_cold_bytes: u64,
    /// Other memory that does not seem to be in use.
    #[serde(default)]
    pub memory_cold_anonymous_bytes: u64,
    /// Who says so.
    #[serde(default)]
    pub memory_witness: MemoryWitness,
}

/// Where it is known from which anonymous memory is not in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemoryWitness {
    /// The kernel's lists in memory.stat: a guess.
    #[default]
    Lists,
    /// Accesses that the kernel watches (DAMON).
    Accesses,
}

/// The knobs in force. One that is `null` is left as it was found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Slice {
    /// CPUs it may run on, as a list such as `0-3,8`.
    pub cpus: Option<String>,
    /// Whether they are taken from everybody else on the host: `member` (no), `root`, or
    /// `isolated`, which is without load balancing too.
    #[serde(default)]
    pub cpus_partition: Option<String>,
    /// NUMA nodes its memory comes from.
    pub mems: Option<String>,
    /// Share under contention, 1 to 10,000.
    pub cpu_weight: Option<u32>,
    /// Whether it runs only when nothing else wants the CPU.
    pub cpu_idle: Option<bool>,
    /// Processor time per time, in CPUs.
    pub cpu_max_cores: Option<Limit<f64>>,
    /// Unused quota that may be saved up, in CPUs.
    pub cpu_burst_cores: Option<f64>,
    /// What its tasks count for at least when the frequency of a CPU is chosen, in percent of
    /// the highest capacity.
    #[serde(default)]
    pub cpu_uclamp_min_percent: Option<f64>,
    /// What they count for at most; 100 is no bound.
    #[serde(default)]
    pub cpu_uclamp_max_percent: Option<f64>,
    /// Memory never reclaimed.
    pub memory_min_bytes: Option<u64>,
    /// Memory reclaimed last.
    pub memory_low_bytes: Option<u64>,
    /// Memory above which it is slowed and reclaimed.
    pub memory_high_bytes: Option<Limit<u64>>,
    /// Memory above which it is out of memory.
    pub memory_max_bytes: Option<Limit<u64>>,
    /// Memory that may be in swap.
    #[serde(default)]
    pub memory_swap_max_bytes: Option<Limit<u64>>,
    /// Compressed memory that zswap may hold in front of it.
    #[serde(default)]
    pub memory_zswap_max_bytes: Option<Limit<u64>>,
    /// Share of the block devices, 1 to 10,000.
    pub io_weight: Option<u32>,
    /// Limits of block devices.
    pub io_max: Vec<IoMax>,
    /// Within what time requests to block devices are to be answered, or the groups beside this
    /// one are held back.
    #[serde(default)]
    pub io_latency: Vec<IoLatency>,
    /// Processes and threads.
    pub pids_max: Option<Limit<u64>>,
    /// Data sent over the network, in bytes per second.
    #[serde(default)]
    pub egress_max_bytes_per_second: Option<Limit<u64>>,
    /// Share of the last-level cache that it may fill, in percent.
    #[serde(default)]
    pub l3_cache_percent: Option<u32>,
    /// Share of the memory bandwidth, in percent.
    #[serde(default)]
    pub memory_bandwidth_percent: Option<u32>,
    /// How soon the kernel ends it when memory is out: from -1000, never, to 1000, first.
    #[serde(default)]
    pub oom_score_adj: Option<i16>,
}

/// Bringing an app's pages to other NUMA nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PageMove {
    /// The nodes they go to.
    pub to_nodes: String,
    /// What its processes mapped when it began.
    pub mapped_bytes: u64,
    /// What of that was looked at.
    pub looked_at_bytes: u64,
    /// What was moved.
    pub moved_bytes: u64,
    /// What was elsewhere and stayed there.
    pub stayed_bytes: u64,
    /// How far it is.
    pub state: PageMoveState,
}

/// How far a move of pages is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PageMoveState {
    /// It goes on.
    Running,
    /// All were looked at.
    Done,
    /// It was given up, or its time was over.
    CutShort,
}

/// What an app sent and received since the daemon looks, loopback left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Traffic {
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets that were not sent because of the app's bound.
    pub dropped_packets: u64,
    /// TCP segments sent again.
    pub retransmitted_segments: u64,
}

/// Why a slice is what it is: the numbers that decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Reason {
    /// Processor time planned for: forecast, floor and ceiling applied, in CPUs.
    pub cpu_demand_cores: f64,
    /// The same with headroom.
    pub cpu_wanted_cores: f64,
    /// What of that is beyond forecast and headroom, since the app is constrained all the same.
    #[serde(default)]
    pub cpu_extra_cores: f64,
    /// CPUs that nobody else of its rank may use.
    pub exclusive_cpus: String,
    /// Whether it also runs on the shared CPUs, ahead of the others there.
    pub spills: bool,
    /// CPUs it keeps only because the hold has not passed.
    pub held_cpus: u64,
    /// Memory planned for.
    pub memory_demand_bytes: u64,
}

/// A request to give memory back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reclaim {
    /// What was asked for.
    pub asked_bytes: u64,
    /// What came so far.
    pub got_bytes: u64,
    /// How far it is.
    pub state: ReclaimState,
}

/// How far a request to give memory back is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// One app now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct App {
    /// Its name.
    pub name: String,
    /// How much it matters.
    pub class: Class,
    /// Whether it runs.
    pub state: RunState,
    /// How it ended, when it did: `status 1`, `signal 9`.
    pub ending: Option<String>,
    /// The process that Forebay started, while it lives.
    pub main_pid: Option<u32>,
    /// Starts so far.
    pub starts: u32,
    /// Latest use.
    pub usage: Usage,
    /// Latest use of block devices.
    #[serde(default)]
    pub io: Io,
    /// Its traffic, where the kernel counts it.
    #[serde(default)]
    pub traffic: Option<Traffic>,
    /// Forecast, while it runs.
    pub demand: Option<Demand>,
    /// What is in force.
    pub slice: Slice,
    /// Why, while it runs.
    pub reason: Option<Reason>,
    /// The last request to it to give memory back.
    #[serde(default)]
    pub reclaim: Option<Reclaim>,
    /// How far the last move of its pages between NUMA nodes is.
    #[serde(default)]
    pub page_move: Option<PageMove>,
    /// What it does with accelerators, where its worker says so.
    #[serde(default)]
    pub accelerator: Option<Accelerator>,
}

/// All apps now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Apps {
    /// In the order of their names.
    pub apps: Vec<App>,
}

/// One CPU now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Cpu {
    /// Its number.
    pub id: u32,
    /// Share of the last second in which it was busy, 0 to 1.
    pub busy: Option<f64>,
    /// The app whose own it is; `null` when it is shared.
    pub owner: Option<String>,
    /// The NUMA node it belongs to; `null` for one that came since the daemon started.
    #[serde(default)]
    pub node: Option<u32>,
    /// The last-level cache that it shares with others, by number; `null` as above.
    #[serde(default)]
    pub l3: Option<u32>,
}

/// The host now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Its CPUs.
    pub cpus: Vec<Cpu>,
    /// CPUs that are nobody's own, as a list.
    pub shared_cpus: String,
    /// Memory that could be had without swapping.
    pub memory_available_bytes: Option<u64>,
}

/// How punctual the control period is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// How late the latest period began.
    pub late_seconds: f64,
    /// How long it took.
    pub took_seconds: f64,
    /// Lateness not exceeded in 99 of 100 of the latest periods.
    pub late_p99_seconds: f64,
    /// Periods skipped because the one before took too long.
    pub overruns: u64,
}

/// What the daemon itself uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Agent {
    /// Processor time since it started.
    pub cpu_seconds: f64,
    /// Memory it holds.
    pub resident_bytes: u64,
}

/// The daemon and the host now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Periods since the daemon started.
    pub period: u64,
    /// When the latest began, in milliseconds since 1970 UTC.
    pub time_unix_ms: u64,
    /// How long the daemon has run.
    pub uptime_seconds: f64,
    /// Whether it only observes.
    pub paused: bool,
    /// How punctual it is.
    pub timing: Timing,
    /// What it uses.
    pub agent: Agent,
    /// The host.
    pub host: Host,
    /// How many apps it knows.
    pub apps: u64,
    /// How many of them run.
    pub apps_running: u64,
    /// Promises that cannot be kept, and what to do.
    pub shortfalls: Vec<String>,
    /// How this host stands among others; absent where it is alone.
    #[serde(default)]
    pub fleet: Option<Fleet>,
}

/// Something an operator would want to have been told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// When, in milliseconds since 1970 UTC.
    pub time_unix_ms: u64,
    /// The app it is about; `null` when it is about the host.
    pub app: Option<String>,
    /// What kind: `started`, `appeared`, `ended`, `slice`, `foreign`, `failed`, `shortfall`
    /// or `released`; more may come.
    pub kind: String,
    /// In words.
    pub message: String,
}

/// The latest events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Events {
    /// Oldest first.
    pub events: Vec<Event>,
}

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tick {
    /// The daemon and the host.
    pub status: Status,
    /// The apps, in the order of their names.
    pub apps: Vec<App>,
    /// What happened since the message before, oldest first.
    pub events: Vec<Event>,
    /// The fronts, by name, as far as they are known without being asked: without what they counted,
    /// and without their latest changes.
    #[serde(default)]
    pub fronts: Vec<Front>,
}

/// How well a model did lately.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelScore {
    /// Its name.
    pub model: String,
    /// How far ahead.
    pub horizon_seconds: f64,
    /// Whether peaks within the horizon were judged, rather than the value at its end.
    pub peak: bool,
    /// Mean pinball loss at 0.95, in CPUs or bytes; lower is better.
    pub pinball: Option<f64>,
    /// Forecasts judged.
    pub samples: u64,
    /// Whether it is the one that answers now.
    pub used: bool,
}

/// The models of an app's two series.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Models {
    /// For processor time.
    pub cpu: Vec<ModelScore>,
    /// For memory.
    pub memory: Vec<ModelScore>,
}

/// What was decided about an app, and the policy's numbers that bear on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rules {
    /// How its processes are found: `exec sleep 1`, `cgroup web.slice`, `match nginx`.
    pub binding: String,
    /// Processor time never taken away, in CPUs.
    pub floor_cpu_cores: f64,
    /// Memory never taken away.
    pub floor_memory_bytes: u64,
    /// The most processor time, in CPUs.
    pub ceiling_cpu_cores: Limit<f64>,
    /// The most memory.
    pub ceiling_memory_bytes: Limit<u64>,
    /// The most memory in swap; none where the daemon is too old to say.
    #[serde(default)]
    pub ceiling_swap_bytes: Option<Limit<u64>>,
    /// The most processes and threads.
    pub ceiling_pids: Limit<u64>,
    /// Expected use before history exists, in CPUs.
    pub request_cpu_cores: Option<f64>,
    /// What the plan leaves above demand, in percent of it.
    pub headroom_percent: u32,
    /// How far ahead demand is planned for.
    pub horizon_seconds: f64,
    /// Shortest time between two reductions of one slice.
    pub hold_seconds: f64,
    /// What its response time is to stay below; `null` where it has no target of its own.
    #[serde(default)]
    pub response_time_max_ms: Option<f64>,
    /// How it may change hosts, `restart`, `checkpoint` or `handoff`; `null` where it is pinned.
    #[serde(default)]
    pub moves_by: Option<String>,
}

/// Why an app's slice is what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The app now.
    pub app: App,
    /// What was decided about it.
    pub rules: Rules,
    /// How its forecasts are made; `null` before it was seen.
    pub models: Option<Models>,
    /// CPUs that are nobody's own.
    pub shared_cpus: String,
    /// CPUs of the host.
    pub host_cpus: u64,
    /// What is planned for each block device that was measured.
    #[serde(default)]
    pub devices: Vec<DevicePlan>,
    /// Forecasts of others about it, and how far each is believed, in words.
    #[serde(default)]
    pub external_forecasts: Vec<String>,
    /// What constrains it beyond its slice, and what was tried about that, in words.
    #[serde(default)]
    pub offload: Vec<String>,
    /// Whether Forebay only observes now.
    pub paused: bool,
    /// Promises that cannot be kept.
    pub shortfalls: Vec<String>,
}

/// A resource whose history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Processor time, in CPUs.
    Cpu,
    /// Share of time in which some task waited for a CPU, 0 to 1.
    CpuStalled,
    /// Bytes per second to and from block devices.
    Io,
    /// Memory, in bytes.
    Memory,
    /// Bytes per second received over the network.
    Received,
    /// Bytes per second sent over the network.
    Sent,
    /// Requests served, per second.
    Requests,
    /// Time until a request is answered, in milliseconds.
    ResponseTime,
    /// Time of accelerators, in devices.
    Accelerator,
    /// Processor time that its slice allows, in CPUs: those of its set, or its quota where that is less.
    CpuAllowed,
    /// Memory that its slice allows before it is slowed down or ended, in bytes.
    MemoryAllowed,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Cpu,
        Self::CpuStalled,
        Self::Io,
        Self::Memory,
        Self::Received,
        Self::Sent,
        Self::Requests,
        Self::ResponseTime,
        Self::Accelerator,
        Self::CpuAllowed,
        Self::MemoryAllowed,
    ];

    /// As on the wire and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuStalled => "cpu_stalled",
            Self::Io => "io",
            Self::Memory => "memory",
            Self::Received => "received",
            Self::Sent => "sent",
            Self::Requests => "requests",
            Self::ResponseTime => "response_time",
            Self::Accelerator => "accelerator",
            Self::CpuAllowed => "cpu_allowed",
            Self::MemoryAllowed => "memory_allowed",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Length of the intervals that a history is told in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Step {
    /// Ten seconds.
    #[serde(rename = "10s")]
    TenSeconds,
    /// One minute.
    #[serde(rename = "1m")]
    Minute,
    /// One hour.
    #[serde(rename = "1h")]
    Hour,
}

impl Step {
    /// In seconds.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        match self {
            Self::TenSeconds => 10,
            Self::Minute => 60,
            Self::Hour => 3600,
        }
    }

    /// As on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TenSeconds => "10s",
            Self::Minute => "1m",
            Self::Hour => "1h",
        }
    }
}

/// What part of a history is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HistoryRange {
    /// Length of the intervals: `10s`, `1m` or `1h`; unless told, the shortest that reaches
    /// back far enough and fits the limit.
    pub step: Option<Step>,
    /// Not before this, in milliseconds since 1970 UTC.
    pub since_unix_ms: Option<u64>,
    /// At most so many intervals, the latest: 360 unless told, 10,000 at most.
    pub limit: Option<u32>,
}

/// One interval of a history.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HistoryRow {
    /// When it began, in milliseconds since 1970 UTC.
    pub time_unix_ms: u64,
    /// Smallest value.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// Greatest value.
    pub max: f64,
    /// Samples in it; fewer than periods when there were gaps.
    pub samples: u64,
    /// Mean of the forecasts' 95 % quantiles, when there were any.
    pub demand_q95: Option<f64>,
}

/// A history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct History {
    /// The app.
    pub app: String,
    /// The resource.
    pub resource: Resource,
    /// Length of the intervals.
    pub step: Step,
    /// Oldest first.
    pub rows: Vec<HistoryRow>,
}

/// Which events are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventsRange {
    /// At most so many, the latest: 100 unless told, 10,000 at most.
    pub limit: Option<u32>,
    /// Only those about this app, and its decisions.
    pub app: Option<String>,
    /// Not before this, in milliseconds since 1970 UTC.
    pub since_unix_ms: Option<u64>,
}

/// How often the stream sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamPace {
    /// Shortest time between two messages; every period unless told.
    pub every_ms: Option<u64>,
}

/// A program to start and protect or confine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// Its name.
    pub name: String,
    /// How much it matters.
    pub class: Class,
    /// Program and arguments.
    pub command: Vec<String>,
    /// User to run as; the one who asks when absent and not root.
    pub user: Option<String>,
    /// Group to run as; the user's own when absent.
    pub group: Option<String>,
    /// Working directory.
    pub directory: Option<String>,
    /// Further settings by key, as `set` takes them: `floor.cpu`, `ceiling.memory`, ...
    #[serde(default)]
    pub set: Vec<Assignment>,
}

/// One key and its new value, as in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The key: `class`, `floor.cpu`, `ceiling.memory`, ...
    pub key: String,
    /// The value, as text.
    pub value: String,
}

/// Changes of one app. All of them, or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetRequest {
    /// In the order in which they are made.
    pub set: Vec<Assignment>,
}

/// Changes of one app, among others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AppChange {
    /// The app.
    pub app: String,
    /// In the order in which they are made.
    pub set: Vec<Assignment>,
}

/// What if these were set? Nothing is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// The changes; none asks what the next period would do.
    #[serde(default)]
    pub changes: Vec<AppChange>,
}

/// One effect that would be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Action {
    /// The app, unless it is about the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// What would be done, in words.
    pub what: String,
}

/// One app's planned slice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedSlice {
    /// The app.
    pub app: String,
    /// What would be in force.
    pub slice: Slice,
    /// Why.
    pub reason: Option<Reason>,
}

/// What would be in force, and what would have to be done for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// The slices, in the order of the apps' names.
    pub slices: Vec<PlannedSlice>,
    /// CPUs that would be nobody's own.
    pub shared_cpus: String,
    /// Promises that could not be kept.
    pub shortfalls: Vec<String>,
    /// What would be done, in order.
    pub actions: Vec<Action>,
}

/// A change was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Done {
    /// What was done, and what to know about it.
    pub messages: Vec<String>,
}
