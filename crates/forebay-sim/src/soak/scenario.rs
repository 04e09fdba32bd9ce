//! A made-up host with made-up apps, and what happens to them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use forebay_core::app::{
    App, AppId, Binding, Ceiling, Class, Device, Exec, Floor, Foresight, IoMax, IoProtection,
    Match, OnStop, Partition, Policy, Restart, Uclamp,
};
use forebay_core::host::Action;
use forebay_core::offload::{self, Mode};
use forebay_core::slice::Setting;
use forebay_core::snapshot::Ending;
use forebay_core::state::State;
use forebay_core::topology::{Shape, Topology};
use forebay_core::units::{Bytes, Limit, MilliCpu, Rate, Utilization};

use super::Stats;
use crate::disk::{DEVICE, Disk};
use crate::fault::Faults;
use crate::host::SimHost;
use crate::load::Load;
use crate::program::{Life, Program};

/// One scenario under way.
#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) host: SimHost,
    pub(super) policy: Policy,
    pub(super) paused: bool,
    /// Groups that the latest observation can see.
    pub(super) seen: BTreeSet<String>,
    /// Periods that it lasts.
    pub(super) ticks: u64,
    rng: fastrand::Rng,
    /// Apps that were in the policy once, with their programs.
    made: BTreeMap<AppId, App>,
    /// What happens beside the faults, each in this share of the periods.
    unrest: f64,
}

impl Scenario {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let topology = topology(&mut rng);
        let reduced = rng.u8(0..3) == 0;
        let seed = rng.u64(..);
        let mut host = SimHost::new(topology, seed).offering(|_| !reduced || rng.u8(0..4) > 0);
        let faults = match rng.u8(0..4) {
            0 | 1 => Faults::default(),
            2 => Faults::all(0.002),
            _ => Faults::all(rng.f64() * 0.05),
        };
        host.set_faults(faults);
        let mut policy = Policy {
            observe: false,
            period: Duration::from_millis([50, 100, 100, 250][rng.usize(0..4)]),
            headroom_percent: rng.u32(0..100),
            hold: Duration::from_millis(rng.u64(100..8000)),
            horizon: Duration::from_millis(rng.u64(100..3000)),
            system_memory: Bytes::mib(rng.u64(0..512)),
            // From a copy: what follows is drawn as before, and old seeds stay what they were.
            foresight: if rng.clone().u8(0..8) == 0 {
                Foresight::Present
            } else {
                Foresight::Models
            },
            lend: rng.clone().bool(),
            reclaim_cold: rng.clone().bool(),
            watch_memory: rng.clone().u8(0..4) > 1,
            partition: {
                let mut copy = rng.clone();
                copy.bool();
                match copy.u8(0..4) {
                    0 => Partition::Root,
                    1 => Partition::Isolated,
                    _ => Partition::Member,
                }
            },
            io_protection: match rng.clone().u8(0..3) {
                0 => IoProtection::Latency,
                1 => IoProtection::Cost,
                _ => IoProtection::None,
            },
            batch_cache_percent: rng.clone().bool().then_some(25),
            batch_bandwidth_percent: rng.clone().bool().then_some(50),
            move_interrupts: {
                let mut copy = rng.clone();
                copy.bool();
                copy.u8(0..4);
                copy.bool()
            },
            oom_protection: rng.clone().u8(0..4) != 0,
            on_stop: if rng.bool() {
                OnStop::Keep
            } else {
                OnStop::Kill
            },
            apps: BTreeMap::new(),
            devices: BTreeMap::new(),
            tiered: false,
            offload: offload::Rules {
                mode: match rng.clone().u8(0..4) {
                    0 => Mode::Off,
                    1 => Mode::Watch,
                    _ => Mode::Act,
                },
                persistence: Duration::from_millis(300),
                settling: Duration::from_secs(1),
                ..offload::Rules::default()
            },
        };
        let mut copy = rng.clone();
        if copy.bool() {
            let disk = Disk {
                bytes_per_second: copy.u64(1 << 20..1 << 30),
                latency: Duration::from_micros(copy.u64(10..10_000)),
            };
            host = host.with_disk(disk);
            policy.devices.insert(DEVICE, disk.capability());
        }
        let mut scenario = Self {
            paused: false,
            seen: BTreeSet::new(),
            ticks: rng.u64(200..2000),
            unrest: [0.0, 0.002, 0.01][rng.usize(0..3)],
            made: BTreeMap::new(),
            host,
            policy: policy.clone(),
            rng,
        };
        for number in 0..scenario.rng.u32(1..=10) {
            let app = scenario.app(number);
            policy.apps.insert(app.id.clone(), app);
        }
        scenario.made.clone_from(&policy.apps);
        scenario.policy = policy;
        scenario
    }

    /// Lets one period pass. True when the daemon was lost in it.
    pub(super) fn next(&mut self, state: &mut State, stats: &mut Stats) -> bool {
        let lost = self.pass(state, stats);
        self.seen = self.host.groups.keys().cloned().collect();
        lost
    }

    fn pass(&mut self, state: &mut State, stats: &mut Stats) -> bool {
        let late = if self.rng.u8(0..50) == 0 { 3 } else { 1 };
        self.host.advance(self.policy.period * late);
        if self.rng.f64() >= self.unrest {
            return false;
        }
        match self.rng.u8(0..7) {
            0 => self.paused = !self.paused,
            1 => {
                self.host.lose_daemon();
                stats.restarts += 1;
                return true;
            }
            2 => self.spawn(),
            3 => self.end_one(),
            _ => {
                self.reload();
                state.forgive();
                stats.reloads += 1;
            }
        }
        false
    }

    /// Releases of apps that left the policy.
    pub(super) fn departed(&self) -> Vec<Action> {
        let gone = self
            .made
            .keys()
            .filter(|id| !self.policy.apps.contains_key(*id));
        gone.filter(|id| self.host.has_record_of(id))
            .map(|id| Action::Release { app: id.clone() })
            .collect()
    }

    /// The user takes an app out, puts one in, or changes one.
    fn reload(&mut self) {
        let known: Vec<AppId> = self.made.keys().cloned().collect();
        let id = known[self.rng.usize(0..known.len())].clone();
        if self.policy.apps.len() > 1 && self.rng.bool() {
            self.policy.apps.remove(&id);
            return;
        }
        let mut app = self.made[&id].clone();
        app.class = class(&mut self.rng);
        (app.floor, app.ceiling) = self.bounds();
        app.io_max = io_max(&mut self.rng);
        app.uclamp = uclamp(&self.rng);
        self.policy.apps.insert(id, app);
    }

    fn spawn(&mut self) {
        let program = self.program();
        let name = format!("/opt/bin/app{}", self.rng.u32(0..10));
        self.host.spawn(&name, program, "");
    }

    fn end_one(&mut self) {
        let apps: Vec<&AppId> = self.made.keys().collect();
        let processes = self.host.processes(apps[self.rng.usize(0..apps.len())]);
        if let Some(pid) = processes.first() {
            self.host.end(*pid, Ending::Status(self.rng.i32(0..2)));
        }
    }

    fn app(&mut self, number: u32) -> App {
        let name = format!("app{number}");
        let binding = match self.rng.u8(0..4) {
            0 | 1 => {
                let program = self.program();
                self.host.install(&name, program);
                Binding::Exec(exec(&name, &mut self.rng))
            }
            2 if number.is_multiple_of(2) => Binding::Systemd(self.group(&name)),
            2 => Binding::Cgroup(self.group(&name).into()),
            _ => {
                for _ in 0..self.rng.u8(0..3) {
                    let program = self.program();
                    self.host.spawn(&format!("/opt/bin/{name}"), program, "");
                }
                Binding::Match(Match {
                    executable: Some(name.clone()),
                    command_line: None,
                })
            }
        };
        let (floor, ceiling) = self.bounds();
        let io_max = io_max(&mut self.rng);
        let uclamp = uclamp(&self.rng);
        App {
            id: name.parse().expect("made to be a name"),
            class: class(&mut self.rng),
            binding,
            floor,
            ceiling,
            uclamp,
            request: self.rng.bool().then(|| MilliCpu(self.rng.u64(0..4000))),
            cpu_weight: None,
            io_weight: self.rng.bool().then(|| self.rng.u32(1..=10_000)),
            io_max,
            images: None,
            response_time_max: None,
            mobility: None,
            accelerators: None,
            update: None,
        }
    }

    /// A group that is not Forebay's, sometimes not there, sometimes with knobs turned.
    fn group(&mut self, name: &str) -> String {
        let path = format!("system/{name}");
        if self.rng.u8(0..6) == 0 {
            return path;
        }
        self.host.create_group(&path);
        for _ in 0..self.rng.u8(0..3) {
            let program = self.program();
            self.host.spawn(name, program, &path);
        }
        let all = self.host.topology.cpu_set();
        let some = all.iter().filter(|_| self.rng.bool()).collect();
        for setting in [
            Setting::CpuWeight(self.rng.u32(1..=10_000)),
            Setting::Cpus(some),
            Setting::CpuMax(Limit::At(MilliCpu(self.rng.u64(10..4000)))),
            Setting::MemoryHigh(Limit::At(Bytes::mib(self.rng.u64(1..4096)))),
        ] {
            if self.rng.bool() && self.host.supports(setting.knob()) {
                // The kernel refuses an empty CPU set: then it has its default.
                self.host.write(&path, setting).ok();
            }
        }
        path
    }

    fn bounds(&mut self) -> (Floor, Ceiling) {
        let rng = &mut self.rng;
        let topology = &self.host.topology;
        let cpus = topology.cpus().len() as u64;
        let memory = topology.memory();
        let mut floor = Floor {
            cpu: MilliCpu(0),
            memory: Bytes(0),
        };
        if rng.u8(0..3) == 0 {
            floor.cpu = MilliCpu(rng.u64(0..=cpus * 400));
        }
        if rng.u8(0..3) == 0 {
            floor.memory = Bytes(rng.u64(0..=memory.0 / 4));
        }
        if rng.u8(0..20) == 0 {
            floor.cpu = MilliCpu(rng.u64(0..=cpus * 1500));
            floor.memory = Bytes(rng.u64(0..=memory.0.saturating_mul(2)));
        }
        let mut ceiling = Ceiling {
            cpu: Limit::Max,
            memory: Limit::Max,
            swap: Limit::Max,
            zswap: Limit::Max,
            pids: Limit::Max,
            // From a copy, so that old seeds stay what they were.
            egress: match rng.clone().u8(0..5) {
                0 => Limit::At(Rate(1_000_000)),
                _ => Limit::Max,
            },
        };
        if rng.u8(0..3) == 0 {
            ceiling.cpu = Limit::At(MilliCpu(floor.cpu.0 + rng.u64(10..=cpus * 1000)));
        }
        if rng.u8(0..3) == 0 {
            let above = Bytes::mib(rng.u64(1..8192));
            ceiling.memory = Limit::At(floor.memory.saturating_add(above));
        }
        if rng.u8(0..4) == 0 {
            ceiling.pids = Limit::At(rng.u64(1..1000));
        }
        (floor, ceiling)
    }

    fn program(&mut self) -> Program {
        let cpus = f64::from(u32::try_from(self.host.topology.cpus().len()).unwrap_or(u32::MAX));
        let memory = self.host.topology.memory().as_f64();
        let rng = &mut self.rng;
        let most = 1.0 + rng.f64() * cpus;
        let life = Duration::from_millis(rng.u64(100..60_000));
        Program {
            cpu: load(rng, most),
            threads: rng.u32(1..=32),
            backlog_max: Duration::from_millis(rng.u64(0..2000)),
            memory: load(rng, memory / 4.0),
            cold: Bytes::from_f64(rng.f64() * memory / 8.0),
            io: load(rng, 1e8),
            forks: if rng.u8(0..3) == 0 {
                rng.f64() * 5.0
            } else {
                0.0
            },
            children_max: rng.u32(0..8),
            child_life: Duration::from_millis(rng.u64(50..5000)),
            crashes: if rng.u8(0..5) == 0 {
                rng.f64() * 0.2
            } else {
                0.0
            },
            life: if rng.u8(0..4) == 0 {
                Life::For(life, Ending::Status(rng.i32(0..2)))
            } else {
                Life::Forever
            },
        }
    }
}

/// A load of any kind up to `most`; small ones are more frequent.
fn load(rng: &mut fastrand::Rng, most: f64) -> Load {
    let high = most * rng.f64() * rng.f64();
    let low = high * rng.f64();
    match rng.u8(0..5) {
        0 => Load::Constant(high),
        1 => Load::Step {
            before: low,
            after: high,
            at: Duration::from_millis(rng.u64(0..60_000)),
        },
        2 => Load::Sine {
            mean: low,
            amplitude: high,
            period: Duration::from_millis(rng.u64(500..60_000)),
        },
        3 => Load::Bursty {
            low,
            high,
            gap: Duration::from_millis(rng.u64(100..10_000)),
            length: Duration::from_millis(rng.u64(100..5000)),
        },
        _ => Load::Walk {
            start: low,
            step: high / 2.0,
            low: 0.0,
            high,
        },
    }
}

fn io_max(rng: &mut fastrand::Rng) -> BTreeMap<Device, IoMax> {
    let mut io_max = BTreeMap::new();
    if rng.u8(0..5) == 0 {
        let limit = Limit::At(rng.u64(1 << 20..1 << 28));
        let max = IoMax {
            rbps: limit,
            wbps: limit,
            riops: Limit::Max,
            wiops: Limit::Max,
        };
        io_max.insert(DEVICE, max);
    }
    io_max
}

/// From a copy, so that old seeds stay what they were.
fn uclamp(rng: &fastrand::Rng) -> Uclamp {
    let mut rng = rng.clone();
    let mut clamp = |least: u32| {
        let asked = rng.u8(0..3) == 0;
        asked.then(|| Utilization(rng.u32(least..=least + 5000)))
    };
    Uclamp {
        min: clamp(0),
        max: clamp(5000),
    }
}

fn class(rng: &mut fastrand::Rng) -> Class {
    [Class::Critical, Class::Standard, Class::Batch][rng.usize(0..3)]
}

fn exec(name: &str, rng: &mut fastrand::Rng) -> Exec {
    Exec {
        restart: [Restart::Always, Restart::OnFailure, Restart::Never][rng.usize(0..3)],
        ..Exec::of(vec![name.to_owned()])
    }
}

/// From one CPU to many, on one node or several, sometimes with CPUs off.
fn topology(rng: &mut fastrand::Rng) -> Topology {
    let shape = Shape {
        nodes: rng.usize(1..=3),
        l3s: rng.usize(1..=2),
        cores: rng.usize(1..=6),
        threads: rng.usize(1..=2),
        memory: Bytes::mib(rng.u64(256..65_536)),
    };
    let regular = Topology::regular(shape);
    if rng.bool() {
        return regular;
    }
    let mut cpus = regular.cpus().to_vec();
    let keep = rng.usize(1..=cpus.len());
    rng.shuffle(&mut cpus);
    cpus.truncate(keep);
    let some = Topology::new(cpus, regular.nodes().to_vec());
    some.unwrap_or(regular)
}
