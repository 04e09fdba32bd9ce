//! What one period did, for every reader: command line, screen, page, metrics, store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::app::{AppId, Class, Device};
use crate::demand::{Demand, Usage};
use crate::host::{Action, Outcome};
use crate::idset::CpuSet;
use crate::io_history::IoUse;
use crate::network::NetworkRates;
use crate::offload::Climb;
use crate::plan::reclaim::GiveBack;
use crate::plan::{Reason, Shortfall, io};
use crate::slice::Slice;
use crate::snapshot::{HostSample, PageMove, Reclaim, RunState, Traffic};
use crate::units::Time;

/// Something an operator would want to have been told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: Time,
    /// The app it is about, unless it is about the host.
    pub app: Option<AppId>,
    /// What happened.
    pub kind: EventKind,
    /// In words.
    pub message: String,
}

/// What kinds of events there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A program was started.
    Started,
    /// Processes appeared or an app was adopted.
    Appeared,
    /// A program ended or its processes left.
    Ended,
    /// A slice changed.
    Slice,
    /// Somebody else wrote a knob; Forebay leaves it alone from now on.
    Foreign,
    /// An action failed.
    Failed,
    /// A promise cannot be kept.
    Shortfall,
    /// An app was put back as it was found.
    Released,
    /// Files of a tiered directory moved, or something keeps them from it.
    Tier,
    /// Something was done about an app that was constrained, or taken back.
    Offload,
    /// What forecasts are made by changed.
    Forecast,
    /// A worker of accelerators was started, ended or does not answer.
    Accelerator,
    /// An instance took over from another one, or could not.
    Shadow,
    /// This host joined others, lost them, or was asked for something by them.
    Fleet,
    /// An app moves between hosts, moved, or stays.
    Move,
    /// An update of the operating system went on, ended, or harms somebody.
    Update,
}

/// One app in one period.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppReport {
    /// Its class.
    pub class: Class,
    /// Whether it runs.
    pub state: RunState,
    /// The process Forebay started, while it lives.
    pub main_pid: Option<u32>,
    /// Starts so far.
    pub starts: u32,
    /// Latest use.
    pub usage: Usage,
    /// Latest use of block devices.
    pub io: IoUse,
    /// What it sent and received since the daemon looks, where that is counted.
    pub traffic: Option<Traffic>,
    /// How fast that grew between its last two readings, which are some periods apart.
    pub network: Option<NetworkRates>,
    /// Forecast, while it runs.
    pub demand: Option<Demand>,
    /// What is in force.
    pub slice: Slice,
    /// Why, while it runs.
    pub reason: Option<Reason>,
    /// The last request to give memory back, and how far it is.
    pub reclaim: Option<Reclaim>,
    /// How far the last move of its pages between NUMA nodes is.
    pub page_move: Option<PageMove>,
    /// What constrains it and what was tried about it, where that is so.
    pub offload: Option<Climb>,
}

/// One period.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TickReport {
    /// Its number since the daemon started.
    pub period: u64,
    /// When it began.
    pub time: Time,
    /// Whether only observing.
    pub paused: bool,
    /// The host.
    pub host: HostSample,
    /// CPUs that are nobody's own.
    pub shared: CpuSet,
    /// Why batch may do on measured block devices what it may.
    pub io: BTreeMap<Device, io::Reason>,
    /// The apps.
    pub apps: BTreeMap<AppId, AppReport>,
    /// Memory that batch gives back ahead of a rise.
    pub give_back: GiveBack,
    /// What was done, with what became of it.
    pub actions: Vec<(Action, Outcome)>,
    /// Promises that cannot be kept.
    pub shortfalls: Vec<Shortfall>,
    /// What happened.
    pub events: Vec<Event>,
}
