//! What every host does, as checks that run on the simulated host and on a live one.
//!
//! A [`Fixture`] says how to get at one kind of host from outside: make one, let time pass,
//! read and write its knobs by another way than the host itself. [`check_all`] runs every
//! check on it; a check that the fixture cannot serve prints
//! `SKIPPED: contract::name: reason`, a broken one fails by its name.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_core::app::{App, AppId, Device, IoMax, Partition};
use forebay_core::host::{Action, Host, Outcome, Watch};
use forebay_core::idset::{CpuSet, IdSet};
use forebay_core::slice::{Knob, Setting, Slice};
use forebay_core::snapshot::{AppSample, RunState, Snapshot};
use forebay_core::topology::Topology;
use forebay_core::units::{Bytes, Limit, MilliCpu, Time, Utilization};

mod checks;
mod freeze;
mod interrupts;
mod io;
mod memory;

pub use checks::*;
pub use freeze::*;
pub use interrupts::*;
pub use io::*;
pub use memory::*;

/// The control period that the checks go by.
pub const PERIOD: Duration = Duration::from_millis(100);
/// Periods in which an effect must show.
pub const PERIODS_MAX: u32 = 10;

/// How to get at one kind of host from outside.
///
/// Where a method returns `Err`, it gives the reason why this kind of host, here, cannot
/// serve the check, which is then skipped; trouble that should not be, it panics about.
pub trait Fixture<H: Host> {
    /// A host that nobody used yet.
    fn fresh(&mut self) -> H;

    /// An `exec` app of this name whose program takes all of one CPU until it is ended.
    fn burner(&mut self, id: AppId) -> App;

    /// An `exec` app of this name that reads from a block device until it is ended.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn reader(&mut self, host: &mut H, id: AppId) -> Result<App, String>;

    /// Lets time pass.
    fn settle(&mut self, host: &mut H, time: Duration);

    /// Now.
    fn time(&mut self, host: &H) -> Time;

    /// What a knob of an app's group holds, by another way than the host's.
    ///
    /// # Errors
    /// Why it cannot be known.
    fn read(&mut self, host: &H, app: &App, knob: Knob) -> Result<Setting, String>;

    /// Writes a knob of an app's group as somebody else.
    ///
    /// # Errors
    /// Why it cannot be done.
    fn write(&mut self, host: &mut H, app: &App, setting: Setting) -> Result<(), String>;

    /// Makes a group that is not Forebay's, in which a process runs, and a `cgroup` app of
    /// this name for it.
    ///
    /// # Errors
    /// Why it cannot be done.
    fn occupied_group(&mut self, host: &mut H, id: AppId) -> Result<App, String>;

    /// Makes a group that is not Forebay's, in which a process runs, and a `cgroup` app of
    /// this name for it. At least [`HOARD`] of what it holds, soon if not yet, can be
    /// reclaimed.
    ///
    /// # Errors
    /// Why it cannot be done.
    fn hoarding_group(&mut self, host: &mut H, id: AppId) -> Result<App, String>;

    /// Starts a process that is not Forebay's, in no group of its own, that takes all of
    /// one CPU, and a `match` app of this name for it.
    ///
    /// # Errors
    /// Why it cannot be done.
    fn stray(&mut self, host: &mut H, id: AppId) -> Result<(App, u32), String>;

    /// Ends the processes in an app's group and removes it.
    ///
    /// # Errors
    /// Why it cannot be done.
    fn remove_group(&mut self, host: &mut H, app: &App) -> Result<(), String>;

    /// Where each interrupt of a device is served, by its number, by another way than the
    /// host's.
    ///
    /// # Errors
    /// Why it cannot be known.
    fn interrupts(&mut self, host: &H) -> Result<BTreeMap<u32, CpuSet>, String>;

    /// Whether the kernel goes by a model of what requests to a device cost, by another way than
    /// the host's.
    ///
    /// # Errors
    /// Why it cannot be known.
    fn has_cost_model(&mut self, host: &H, device: Device) -> Result<bool, String>;

    /// What Forebay did to the host and did not undo.
    ///
    /// # Errors
    /// Why it cannot be known.
    fn left_behind(&mut self, host: &H) -> Result<Vec<String>, String>;

    /// Cleans up after a check, passed or not.
    fn finish(&mut self, host: H) {
        drop(host);
    }
}

/// Why a check did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unmet {
    /// The fixture cannot serve it, for this reason.
    Skipped(String),
    /// The host breaks the contract.
    Broken(String),
}

/// What became of a check.
pub type Verdict = Result<(), Unmet>;

/// Ends a check when something does not hold.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(Unmet::Broken(format!($($message)+)));
        }
    };
}
use ensure;

/// One check under way.
struct Case<'a, H: Host, F: Fixture<H>> {
    fixture: &'a mut F,
    host: H,
    period: u64,
    apps: BTreeMap<AppId, App>,
    in_force: BTreeMap<AppId, Slice>,
}

fn with<H: Host, F: Fixture<H>>(
    fixture: &mut F,
    check: impl FnOnce(&mut Case<'_, H, F>) -> Verdict,
) -> Verdict {
    let host = fixture.fresh();
    let mut case = Case {
        fixture,
        host,
        period: 0,
        apps: BTreeMap::new(),
        in_force: BTreeMap::new(),
    };
    let verdict = check(&mut case);
    let Case { fixture, host, .. } = case;
    fixture.finish(host);
    verdict
}

impl<H: Host, F: Fixture<H>> Case<'_, H, F> {
    fn burner(&mut self) -> App {
        let app = self.fixture.burner(id("contract-burner"));
        self.apps.insert(app.id.clone(), app.clone());
        app
    }

    fn group(&mut self) -> Result<App, Unmet> {
        let made = self
            .fixture
            .occupied_group(&mut self.host, id("contract-group"));
        let app = made.map_err(Unmet::Skipped)?;
        self.apps.insert(app.id.clone(), app.clone());
        Ok(app)
    }

    fn observe(&mut self) -> Snapshot {
        let watch = Watch {
            time: self.fixture.time(&self.host),
            period: self.period,
            apps: &self.apps,
            in_force: &self.in_force,
        };
        self.period += 1;
        self.host.observe(&watch)
    }

    fn sample(&mut self, app: &App) -> Result<AppSample, Unmet> {
        let mut snapshot = self.observe();
        let sample = snapshot.apps.remove(&app.id);
        sample.ok_or_else(|| Unmet::Broken(format!("the snapshot lacks {}", app.id)))
    }

    fn settle(&mut self) {
        self.fixture.settle(&mut self.host, PERIOD);
    }

    /// Observes once a period until `wanted` holds.
    fn wait(
        &mut self,
        app: &App,
        what: &str,
        wanted: impl Fn(&AppSample) -> bool,
    ) -> Result<AppSample, Unmet> {
        let mut sample = self.sample(app)?;
        for _ in 0..PERIODS_MAX {
            if wanted(&sample) {
                return Ok(sample);
            }
            self.settle();
            sample = self.sample(app)?;
        }
        ensure!(
            wanted(&sample),
            "{} {what} not in {PERIODS_MAX} periods: {sample:?}",
            app.id
        );
        Ok(sample)
    }

    fn apply(&mut self, action: Action) -> Result<Outcome, Unmet> {
        let outcomes = self.host.apply(&[action]);
        match <[Outcome; 1]>::try_from(outcomes) {
            Ok([outcome]) => Ok(outcome),
            Err(outcomes) => Err(Unmet::Broken(format!("one action gave {outcomes:?}"))),
        }
    }

    fn done(&mut self, action: Action) -> Verdict {
        let outcome = self.apply(action.clone())?;
        ensure!(outcome == Outcome::Done, "`{action}` gave {outcome:?}");
        if let Action::Set { app, setting } = action {
            self.in_force.entry(app).or_default().set(setting);
        }
        Ok(())
    }

    /// The same, of what may find the host busy with what was asked for before.
    fn done_in_time(&mut self, action: &Action) -> Verdict {
        let mut outcome = self.apply(action.clone())?;
        for _ in 0..PERIODS_MAX {
            if !matches!(outcome, Outcome::Failed(_)) {
                break;
            }
            self.settle();
            outcome = self.apply(action.clone())?;
        }
        ensure!(outcome == Outcome::Done, "`{action}` gave {outcome:?}");
        Ok(())
    }

    fn start(&mut self, app: &App) -> Result<AppSample, Unmet> {
        self.sample(app)?;
        self.done(Action::Start {
            app: app.clone().into(),
        })?;
        self.wait(app, "is running", |sample| {
            sample.state == RunState::Running
        })
    }

    fn set(&mut self, app: &App, setting: Setting) -> Verdict {
        self.done(Action::Set {
            app: app.id.clone(),
            setting,
        })
    }

    fn read(&mut self, app: &App, knob: Knob) -> Result<Setting, Unmet> {
        let read = self.fixture.read(&self.host, app, knob);
        read.map_err(Unmet::Skipped)
    }

    fn ensure_in_force(&mut self, app: &App, setting: Setting) -> Verdict {
        let is = self.read(app, setting.knob())?;
        ensure!(is == setting, "set {setting}, the kernel has {is}");
        Ok(())
    }

    fn ensure_nothing_left(&mut self) -> Verdict {
        let left = self.fixture.left_behind(&self.host);
        let left = left.map_err(Unmet::Skipped)?;
        ensure!(left.is_empty(), "left behind: {}", left.join("; "));
        Ok(())
    }

    /// Values to try, for each knob that the host offers, in an order in which the kernel
    /// takes them.
    fn trials(&self) -> Vec<Setting> {
        let knobs = &self.host.capabilities().knobs;
        let topology = self.host.topology();
        knobs
            .iter()
            .flat_map(|&knob| values(knob, topology))
            .filter(|setting| setting_needs(setting).is_none_or(|need| knobs.contains(&need)))
            .collect()
    }
}

fn id(name: &str) -> AppId {
    name.parse().expect("the names of the checks are app names")
}

/// A knob without which the kernel refuses this setting.
fn setting_needs(setting: &Setting) -> Option<Knob> {
    match setting {
        Setting::CpuBurst(_) => Some(Knob::CpuMax),
        Setting::CpusPartition(_) => Some(Knob::Cpus),
        _ => None,
    }
}

/// Values that survive every kernel's rounding, the last one harmless to what follows.
fn values(knob: Knob, topology: &Topology) -> Vec<Setting> {
    let first = |ids: IdSet| ids.iter().take(1).collect::<IdSet>();
    match knob {
        Knob::Cpus => vec![
            Setting::Cpus(first(topology.cpu_set())),
            Setting::Cpus(topology.cpu_set()),
        ],
        // The host keeps a CPU.
        Knob::CpusPartition if topology.cpus().len() == 1 => vec![],
        Knob::CpusPartition => vec![
            Setting::Cpus(first(topology.cpu_set())),
            Setting::CpusPartition(Partition::Root),
            Setting::CpusPartition(Partition::Member),
            Setting::Cpus(topology.cpu_set()),
        ],
        Knob::Mems => vec![
            Setting::Mems(first(topology.memory_nodes())),
            Setting::Mems(topology.memory_nodes()),
        ],
        Knob::CpuWeight => vec![Setting::CpuWeight(200), Setting::CpuWeight(50)],
        Knob::CpuIdle => vec![Setting::CpuIdle(true), Setting::CpuIdle(false)],
        Knob::CpuMax => vec![
            Setting::CpuMax(Limit::At(MilliCpu(500))),
            Setting::CpuMax(Limit::Max),
        ],
        Knob::CpuBurst => vec![
            Setting::CpuMax(Limit::At(MilliCpu(500))),
            Setting::CpuBurst(MilliCpu(100)),
            Setting::CpuBurst(MilliCpu(0)),
            Setting::CpuMax(Limit::Max),
        ],
        Knob::CpuUclampMin => vec![
            Setting::CpuUclampMin(Utilization(3050)),
            Setting::CpuUclampMin(Utilization(0)),
        ],
        Knob::CpuUclampMax => vec![
            Setting::CpuUclampMax(Utilization::percent(60)),
            Setting::CpuUclampMax(Utilization::FULL),
        ],
        Knob::MemoryMin => vec![
            Setting::MemoryMin(Bytes::mib(64)),
            Setting::MemoryMin(Bytes(0)),
        ],
        Knob::MemoryLow => vec![
            Setting::MemoryLow(Bytes::mib(64)),
            Setting::MemoryLow(Bytes(0)),
        ],
        Knob::MemoryHigh => vec![
            Setting::MemoryHigh(Limit::At(Bytes::mib(512))),
            Setting::MemoryHigh(Limit::Max),
        ],
        Knob::MemoryMax => vec![
            Setting::MemoryMax(Limit::At(Bytes::mib(1024))),
            Setting::MemoryMax(Limit::Max),
        ],
        Knob::MemoryZswapMax => vec![
            Setting::MemoryZswapMax(Limit::At(Bytes::mib(16))),
            Setting::MemoryZswapMax(Limit::Max),
        ],
        Knob::MemorySwapMax => vec![
            Setting::MemorySwapMax(Limit::At(Bytes(0))),
            Setting::MemorySwapMax(Limit::Max),
        ],
        Knob::IoWeight => vec![Setting::IoWeight(200), Setting::IoWeight(50)],
        Knob::IoMax(device) => {
            let max = |bytes: Limit<u64>| IoMax {
                rbps: bytes,
                wbps: bytes,
                riops: Limit::Max,
                wiops: Limit::Max,
            };
            vec![
                Setting::IoMax(device, max(Limit::At(64 << 20))),
                Setting::IoMax(device, max(Limit::Max)),
            ]
        }
        Knob::IoLatency(device) => vec![
            Setting::IoLatency(device, Limit::At(Duration::from_micros(4000))),
            Setting::IoLatency(device, Limit::Max),
        ],
        Knob::PidsMax => vec![
            Setting::PidsMax(Limit::At(1000)),
            Setting::PidsMax(Limit::Max),
        ],
        // There is no file to read it back from: its effect is tested where there is a network.
        Knob::EgressMax | Knob::L3Cache | Knob::MemoryBandwidth | Knob::OomScoreAdj => vec![],
    }
}
