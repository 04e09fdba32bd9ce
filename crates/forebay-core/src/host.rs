//! The one seam between decisions and effects.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::app::{App, AppId, Device};
use crate::idset::CpuSet;
use crate::io::CostModel;
use crate::slice::{Knob, Setting, Slice};
use crate::snapshot::Snapshot;
use crate::topology::Topology;
use crate::units::{Bytes, Time};

/// What an observation is asked for.
#[derive(Debug)]
pub struct Watch<'a> {
    /// Now.
    pub time: Time,
    /// The number of the period; rotations of expensive readings go by it.
    pub period: u64,
    /// The apps to look at.
    pub apps: &'a BTreeMap<AppId, App>,
    /// What Forebay believes to be in force, to notice other writers.
    pub in_force: &'a BTreeMap<AppId, Slice>,
}

/// One effect. The closed list of everything that Forebay does to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Start an `exec` app's program inside its slice.
    Start {
        /// The app.
        app: Box<App>,
    },
    /// Start an `exec` app's program beside the one that runs. It is the app's program from then on,
    /// and the one before it, which nobody ends here, is one of the app's processes. Should the new
    /// one end while that one runs, that one is the app's program again.
    Succeed {
        /// The app.
        app: Box<App>,
    },
    /// Take a process that came from another host, and stands still in its slice, up as an `exec` app's
    /// program. It is let go on by whoever asked. Done as well when it is that already.
    Adopt {
        /// The app.
        app: Box<App>,
        /// The process.
        pid: u32,
        /// When it was made, in clock ticks since boot: a later one of its number is another.
        start_time: u64,
    },
    /// Move processes into an app's slice; without any, only make the slice.
    Enter {
        /// The app.
        app: AppId,
        /// The processes.
        pids: Vec<u32>,
    },
    /// Write one knob.
    Set {
        /// The app.
        app: AppId,
        /// The knob and its value.
        setting: Setting,
    },
    /// Make an app give memory back. Done when the kernel was asked: that takes a while, and
    /// [`AppSample::reclaim`](crate::snapshot::AppSample::reclaim) shows how far it is.
    Reclaim {
        /// The app.
        app: AppId,
        /// How much.
        bytes: Bytes,
    },
    /// Have the kernel bring free memory together. Done when it was asked: that takes a while, and
    /// [`HostSample::compaction`](crate::snapshot::HostSample::compaction) shows whether it is at it.
    Compact,
    /// Put one app back as it was found: knobs to their original values, processes to
    /// their original groups.
    Release {
        /// The app.
        app: AppId,
    },
    /// Stop all tasks in an app's slice where they stand, and those that come into it. Done
    /// when none runs any more; until then it has failed, and may be asked for again.
    ///
    /// A frozen app is not started; a release thaws it first, and so does everything else
    /// that gives its processes up. It stays frozen when the daemon dies and comes back.
    Freeze {
        /// The app.
        app: AppId,
    },
    /// Let a frozen app go on. Done as well when it is not frozen.
    Thaw {
        /// The app.
        app: AppId,
    },
    /// End all processes of an app, frozen or not. Its slice is not frozen afterwards.
    Kill {
        /// The app.
        app: AppId,
    },
    /// Serve the interrupts of devices on other CPUs than these; with none, where they were
    /// served before. Interrupts that the kernel binds itself stay where they are.
    Interrupts {
        /// CPUs that are to be left alone.
        keep_off: CpuSet,
    },
    /// Watch which memory these apps touch, and no other app's; with none, leave it as it was
    /// before. Results are in [`AppSample::touched`](crate::snapshot::AppSample::touched).
    WatchMemory {
        /// The apps, at most [`WATCHED_MAX`](crate::plan::watch::WATCHED_MAX).
        apps: BTreeSet<AppId>,
    },
    /// Tell the kernel what requests to a device cost, so that weights divide its time; with
    /// none, what it knew before.
    CostModel {
        /// The device.
        device: Device,
        /// The costs.
        model: Option<CostModel>,
    },
}

impl Action {
    /// The app it is about, unless it is about the host.
    #[must_use]
    pub const fn app(&self) -> Option<&AppId> {
        Some(match self {
            Self::Interrupts { .. }
            | Self::CostModel { .. }
            | Self::WatchMemory { .. }
            | Self::Compact => return None,
            Self::Start { app } | Self::Succeed { app } | Self::Adopt { app, .. } => &app.id,
            Self::Enter { app, .. }
            | Self::Set { app, .. }
            | Self::Reclaim { app, .. }
            | Self::Release { app }
            | Self::Freeze { app }
            | Self::Thaw { app }
            | Self::Kill { app } => app,
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { app } => write!(f, "start {}", app.id),
            Self::Succeed { app } => write!(f, "start a successor of {}", app.id),
            Self::Adopt { app, pid, .. } => write!(f, "take process {pid} up as {}", app.id),
            Self::Enter { app, pids } => write!(f, "move {} process(es) into {app}", pids.len()),
            Self::Set { app, setting } => write!(f, "{app}: {setting}"),
            Self::Reclaim { app, bytes } => write!(f, "reclaim {bytes} of {app}"),
            Self::Compact => f.write_str("compact memory"),
            Self::Release { app } => write!(f, "release {app}"),
            Self::Freeze { app } => write!(f, "freeze {app}"),
            Self::Thaw { app } => write!(f, "thaw {app}"),
            Self::Kill { app } => write!(f, "end {app}"),
            Self::Interrupts { keep_off } if keep_off.is_empty() => {
                f.write_str("serve interrupts where they were")
            }
            Self::WatchMemory { apps } if apps.is_empty() => {
                f.write_str("watch no app's memory any more")
            }
            Self::WatchMemory { apps } => {
                let apps: Vec<&str> = apps.iter().map(AppId::as_str).collect();
                write!(f, "watch which memory is touched by {}", apps.join(", "))
            }
            Self::CostModel { device, model } => match model {
                Some(_) => write!(f, "install a cost model of {device}"),
                None => write!(f, "put back the cost model of {device}"),
            },
            Self::Interrupts { keep_off } => write!(f, "keep interrupts off CPUs {keep_off}"),
        }
    }
}

/// What became of one action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is in force.
    Done,
    /// It is on its way, and asking for the same again tells what became of it.
    Pending,
    /// The host cannot do this at all: not tried again.
    Unsupported,
    /// It failed now: what was attempted, on which object, and why. Tried again later.
    Failed(String),
}

/// What a host can control.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Knobs it offers. Those of single devices are listed once, for any device.
    pub knobs: Vec<Knob>,
    /// Whether an app can be made to give memory back.
    pub reclaim: bool,
    /// Whether the kernel can be asked to bring free memory together.
    pub compact: bool,
    /// Whether the kernel can be told what requests to a device cost.
    pub cost_models: bool,
    /// Those knobs that the owner of an app's group has no way to set.
    pub withheld: BTreeMap<AppId, BTreeSet<Knob>>,
}

impl Capabilities {
    /// Whether a knob can be set for an app.
    #[must_use]
    pub fn offers(&self, app: &AppId, knob: Knob) -> bool {
        let mut withheld = self.withheld.get(app).into_iter().flatten();
        let same = |withheld: &Knob| withheld.of_any_device() == knob.of_any_device();
        self.has(knob) && !withheld.any(same)
    }

    /// Whether a knob can be set for apps whose owner has a way to.
    #[must_use]
    pub fn has(&self, knob: Knob) -> bool {
        let mut offered = self.knobs.iter();
        offered.any(|offered| offered.of_any_device() == knob.of_any_device())
    }
}

/// A host, live or simulated.
pub trait Host {
    /// What the host is made of. Read anew when CPUs come and go.
    fn topology(&self) -> &Topology;

    /// What the host can control.
    fn capabilities(&self) -> &Capabilities;

    /// Looks at the host and the apps. Never fails as a whole: what could not be read is a
    /// gap in the snapshot.
    fn observe(&mut self, watch: &Watch<'_>) -> Snapshot;

    /// Does the actions in the order given and returns one outcome for each, in that order.
    /// The original value of every knob is durable before the first write to it.
    fn apply(&mut self, actions: &[Action]) -> Vec<Outcome>;
}
