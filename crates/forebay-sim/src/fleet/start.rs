//! How a fleet is when it begins.

use std::collections::{BTreeMap, VecDeque};

use fastrand::Rng;
use forebay_core::fleet::choice::Room;
use forebay_core::fleet::need::{Foresight, Use};
use forebay_core::fleet::policy::{Homes, Look, Rules};
use forebay_core::fleet::promises::Promises;
use forebay_core::fleet::tenure::Takeover;
use forebay_core::fleet::{HostName, Ownership};
use forebay_core::units::{Bytes, MilliCpu};

use super::coordinator::{BEAT, Coordinator};
use super::host::{Copy, Disk, Host, Local};
use super::queue::{Event, Queue};
use super::report::Totals;
use super::store::Store;
use super::trace::{STEP_S, Trace};
use super::world::{App, Fares, World};
use super::{Arm, MINUTE, Micros, Options, SECOND};

/// Memory of a host, for each CPU.
const MEMORY_PER_CPU: u64 = 4096;
/// What of 10 Gbit/s pages get, encrypted, in bytes per second.
const LINK: f64 = 875e6;
/// Before the end, so long nothing breaks.
const CALM: Micros = 15 * MINUTE;

/// A fleet whose applications run where their owners put them.
pub(super) fn begin(options: Options) -> World {
    let mut rng = Rng::with_seed(options.seed ^ 0x000f_1ee7);
    let hosts: Vec<Host> = (0..options.hosts)
        .map(|number| host(number, &options, &mut rng))
        .collect();
    let cpus: f64 = hosts.iter().map(|host| host.capacity.cpu.as_cpus()).sum();
    let steps_before = options.past_days * 86_400 / STEP_S;
    let steps = steps_before + options.hours * 3600 / STEP_S + 1;
    let mut trace = Trace::new(options.seed, options.apps, steps, cpus * options.load);
    let apps: Vec<App> = (0..options.apps)
        .map(|number| app(number, &options, &trace, &mut rng))
        .collect();
    let end = options.hours * 60 * MINUTE;
    let by_name = hosts.iter().enumerate();
    let by_id = apps.iter().enumerate();
    let mut world = World {
        rules: Rules {
            look: if options.arm == Arm::Forecast {
                Look::Ahead
            } else {
                Look::Present
            },
            ..Rules::default()
        },
        now: 0,
        end,
        calm_from: end.saturating_sub(CALM),
        queue: Queue::default(),
        by_name: by_name
            .map(|(number, host)| (host.name.clone(), number))
            .collect(),
        by_id: by_id
            .map(|(number, app)| (app.id.clone(), number))
            .collect(),
        coordinator: Coordinator::new(options.hosts),
        cuts: BTreeMap::new(),
        totals: Totals::default(),
        broken: None,
        wants: Vec::new(),
        gets: Vec::new(),
        trace: trace.clone(),
        step: steps_before,
        options,
        rng,
        hosts,
        apps,
    };
    past(&mut world, &mut trace, steps_before);
    world.trace = trace;
    world.place();
    world.put_in_first_events();
    world
}

fn host(number: usize, options: &Options, rng: &mut Rng) -> Host {
    // Two in three have 16 CPUs.
    let cpus = [16, 16, 32][rng.usize(0..3)];
    let drift_max = if options.faults { 20_000 } else { 100 };
    Host {
        #[expect(clippy::unwrap_used, reason = "a name made of letters and digits")]
        name: format!("host-{number:04}").parse().unwrap(),
        capacity: Room {
            cpu: MilliCpu::cpus(cpus),
            memory: Bytes::mib(cpus * MEMORY_PER_CPU),
        },
        link: LINK,
        up: true,
        gone: false,
        daemon: true,
        paused_until: 0,
        life: 0,
        boot: 0,
        boot_offset: rng.u64(MINUTE..1_000_000 * SECOND),
        drift_ppm: rng.i64(-drift_max..drift_max),
        wall_offset_ms: rng.i64(-2_000..2_000),
        cut_until: 0,
        isolated_until: 0,
        slow_until: 0,
        lease: None,
        guarded: false,
        missed: true,
        local: BTreeMap::new(),
        records: BTreeMap::new(),
        seen: BTreeMap::new(),
        promises: Promises::default(),
        policy: Default::default(),
        leaving: BTreeMap::new(),
        coming: BTreeMap::new(),
        disk: Disk::default(),
        published: None,
        is_short: false,
        looks: false,
    }
}

fn app(number: usize, options: &Options, trace: &Trace, rng: &mut Rng) -> App {
    let load = &trace.apps()[number];
    // From a quarter of a gibibyte to eight, as many of each doubling.
    let mib = 256.0 * (rng.f64() * 5.0).exp2();
    let takes_over = rng.u32(0..10) < 4;
    App {
        #[expect(clippy::unwrap_used, reason = "a name made of letters and digits")]
        id: format!("app-{number:05}").parse().unwrap(),
        class: load.class,
        takeover: if takes_over {
            Takeover::AfterLease
        } else {
            Takeover::Never
        },
        // One in ten is bound to its host.
        movable: takes_over || rng.u32(0..6) > 0,
        memory: Bytes::from_f64(mib * 1_048_576.0),
        // 1 to 100 MB/s.
        writes: 1e6 * (rng.f64() * 2.0 * std::f64::consts::LN_10).exp(),
        request: load.request,
        wants: 0.0,
        uses: Use::default(),
        foresight: (options.arm == Arm::Forecast).then(Foresight::new),
        reached: 0,
        store: Store::default(),
        running: None,
        fares: Fares::Down,
        since: 0,
        stopped: 0,
        moves: VecDeque::new(),
    }
}

/// What is known of the days before.
fn past(world: &mut World, trace: &mut Trace, steps: u64) {
    let began_ms = world.unix_ms() - steps * STEP_S * 1000;
    for number in 0..world.apps.len() {
        let app = &mut world.apps[number];
        for step in 0..steps {
            let wants = trace.next(number, step);
            if let Some(foresight) = &mut app.foresight {
                foresight.record(began_ms + step * STEP_S * 1000, wants);
            }
        }
    }
}

impl World {
    /// Each application where most was left of what owners asked for, in the order in which they came.
    fn place(&mut self) {
        let mut left: Vec<(f64, u64)> = self
            .hosts
            .iter()
            .map(|host| (host.capacity.cpu.as_cpus(), host.capacity.memory.0))
            .collect();
        let mut order: Vec<usize> = (0..self.apps.len()).collect();
        self.rng.shuffle(&mut order);
        let mut homes: Vec<(usize, usize)> = Vec::new();
        for app in order {
            let of = &self.apps[app];
            let memory = of.memory.0;
            let part = |host: usize| left[host].0 / self.hosts[host].capacity.cpu.as_cpus();
            let fits = (0..left.len()).filter(|host| left[*host].1 >= memory);
            let best = fits.max_by(|a, b| part(*a).total_cmp(&part(*b)));
            let host = best.unwrap_or_else(|| app % left.len());
            left[host].0 -= of.request;
            left[host].1 = left[host].1.saturating_sub(memory);
            homes.push((app, host));
        }
        homes.sort_unstable();
        for (app, host) in homes {
            let name: HostName = self.hosts[host].name.clone();
            let record = Ownership::first(name);
            self.coordinator.records.push(record.clone());
            self.coordinator.owned[host].insert(app);
            let local = Local {
                copy: Copy::Files(0),
                homes: Homes::default(),
                epoch: record.epoch,
            };
            self.put(host, app, local);
            self.hosts[host].records.insert(app, record);
        }
    }

    fn put_in_first_events(&mut self) {
        self.queue.push(0, Event::Step);
        self.queue.push(10 * MINUTE, Event::Audit);
        for host in 0..self.hosts.len() {
            let life = self.hosts[host].life;
            let first = self.rng.u64(0..BEAT);
            // What only its owner gives away runs without the coordinator.
            self.queue.push(first, Event::Beat { host, life });
            let look = BEAT + self.rng.u64(0..MINUTE);
            self.queue.push(
                look,
                Event::Look {
                    host,
                    life,
                    again: true,
                },
            );
            let apps = &self.apps;
            let records = &mut self.hosts[host].records;
            records.retain(|app, _| apps[*app].takeover == Takeover::Never);
            self.let_run(host);
        }
        if self.options.faults {
            self.plan_faults();
        }
        let within = u64::try_from(super::SETTLES_WITHIN.as_micros()).unwrap_or(0);
        self.queue.push(self.calm_from + within, Event::Settled);
    }
}
