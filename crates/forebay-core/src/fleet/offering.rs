//! What a host publishes of the room that it has.
//!
//! Problem: what is free now is no promise: the apps that are there will need more in a moment, and
//! what nobody planned for may hold the rest.
//!
//! Approach: of every app that runs counts the most that its forecasts say of the time to come, by
//! their 95 % quantiles: of the next control periods, and of the next minutes where enough was seen of
//! it. What apps may use at all is the host less what it keeps for itself, and less what others than
//! apps hold of its memory now. Others hold what is neither available (`MemAvailable`, which has all
//! page cache in it that can go, that of apps as well) nor apps' for certain: their anonymous and locked
//! pages. What the kernel holds for apps counts as others': part of it is in `MemAvailable`, and
//! nothing must count twice.
//!
//! Properties, tested: an app that does not run needs nothing; what was not observed is not taken for
//! nothing: without a reading the host is taken to have what it has, and an app that nothing is known
//! of may need all of it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::choice::{Offer, Room};
use super::need::{Need, together};
use crate::app::{AppId, Class};
use crate::outlook::Resource;
use crate::report::{AppReport, TickReport};
use crate::snapshot::RunState;
use crate::units::{Bytes, MilliCpu};

/// How far ahead an offer looks: a move takes seconds to minutes, and has to pay for itself.
pub const AHEAD: Duration = Duration::from_secs(15 * 60);

/// What apps will stay below within [`AHEAD`] in 95 of 100 cases: CPUs, and bytes of memory. Without
/// those that too little was seen of.
pub type Ahead = BTreeMap<AppId, BTreeMap<Resource, f64>>;

/// An app that runs, as its host sees it.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// Which.
    pub app: &'a AppId,
    /// How much it matters.
    pub class: Class,
    /// Processor time that it will need.
    pub need: Need,
    /// Memory that it will need.
    pub memory: Bytes,
    /// What it uses now.
    pub used: Room,
}

/// What a host with so much for apps has room for, by what is seen of those that run there.
#[must_use]
pub fn of<'a>(
    capacity: Room,
    standing: impl Iterator<Item = Standing<'a>> + Clone,
    promised: BTreeMap<Class, Room>,
    cordoned: bool,
) -> Offer {
    let needs = standing.clone();
    let needs = needs.map(|app| (app.class, app.need, app.memory));
    let mut used: BTreeMap<Class, Room> = BTreeMap::new();
    for app in standing.clone() {
        let sum = used.entry(app.class).or_default();
        *sum = sum.and(app.used);
    }
    Offer {
        capacity,
        needed: together(needs),
        used: Some(used),
        promised,
        apps: standing.map(|app| app.app.clone()).collect(),
        cordoned,
        unfit: None,
        takes: None,
    }
}

/// The host, as its period saw it.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    /// CPUs that are online.
    pub cpus: usize,
    /// Memory in all.
    pub memory: Bytes,
    /// Memory that no app gets.
    pub system_memory: Bytes,
}

/// What a host has room for; `promised` and `cordoned` are as the host says.
#[must_use]
pub fn offer(
    host: Host,
    report: &TickReport,
    ahead: &Ahead,
    promised: BTreeMap<Class, Room>,
    cordoned: bool,
) -> Offer {
    let (capacity, standing) = standing(host, report, ahead);
    of(capacity, standing.iter().copied(), promised, cordoned)
}

/// What apps may use of a host, and those that run there.
#[must_use]
pub fn standing<'a>(
    host: Host,
    report: &'a TickReport,
    ahead: &Ahead,
) -> (Room, Vec<Standing<'a>>) {
    let running = || {
        let apps = report.apps.iter();
        apps.filter(|(_, app)| app.state == RunState::Running)
    };
    let held = running().map(|(_, app)| held(app));
    let held = held.fold(Bytes(0), Bytes::saturating_add);
    let own = Bytes(host.memory.0.saturating_sub(host.system_memory.0));
    // What neither apps hold nor anybody could have is others'.
    let memory = match &report.host.memory_available {
        Ok(available) => own.min(available.saturating_add(held)),
        Err(_) => own,
    };
    let capacity = Room {
        cpu: MilliCpu::cpus(host.cpus as u64),
        memory,
    };
    let standing = running().map(|(id, app)| {
        let need = need(app, ahead.get(id), capacity);
        Standing {
            app: id,
            class: app.class,
            // The bounds are added as they are: of what is far ahead only the bound is known, and many rise
            // together within a quarter of an hour.
            need: Need::just(need.cpu.as_cpus()),
            memory: need.memory,
            used: Room {
                cpu: app.usage.cpu.map_or(need.cpu, MilliCpu::from_cpus),
                memory: app.usage.memory.unwrap_or(need.memory),
            },
        }
    });
    (capacity, standing.collect())
}

/// What an app certainly holds and the host does not count as available: memory without a file behind
/// it, and locked one. Where its parts are not known, all that it holds may be page cache.
fn held(app: &AppReport) -> Bytes {
    let stat = app.demand.as_ref().and_then(|known| known.memory_now.stat);
    let held = stat.map(|stat| stat.anon().saturating_add(stat.unevictable));
    // The parts may have been read when it held more.
    held.unwrap_or_default()
        .min(app.usage.memory.unwrap_or_default())
}

/// The most that any forecast says, or that it uses now; all there is where nothing says anything.
fn need(app: &AppReport, ahead: Option<&BTreeMap<Resource, f64>>, all: Room) -> Room {
    let far = |resource| ahead.and_then(|ahead| ahead.get(&resource)).copied();
    let near = app.demand.as_ref();
    let most = |values: [Option<f64>; 3]| values.into_iter().flatten().reduce(f64::max);
    let cpu = most([
        near.map(|near| near.cpu.q95),
        far(Resource::Cpu),
        app.usage.cpu,
    ]);
    let memory = most([
        near.map(|near| near.memory.q95),
        far(Resource::Memory),
        // What it holds and does not need is page cache, where that is known.
        app.usage
            .memory
            .filter(|_| near.is_none())
            .map(Bytes::as_f64),
    ]);
    Room {
        cpu: cpu.map_or(all.cpu, MilliCpu::from_cpus),
        memory: memory.map_or(all.memory, Bytes::from_f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demand::{Band, Demand, MemoryNow, Usage};
    use crate::idset::CpuSet;
    use crate::io_history::IoUse;
    use crate::offload::Mode;
    use crate::plan::reclaim::GiveBack;
    use crate::slice::Slice;
    use crate::snapshot::{Gap, HostSample, Reading};
    use crate::units::Time;
    use crate::working_set::MemoryStat;

    const HOST: Host = Host {
        cpus: 8,
        memory: Bytes::mib(8192),
        system_memory: Bytes::mib(192),
    };

    fn band(q95: f64) -> Band {
        Band {
            q50: q95 / 2.0,
            q90: q95,
            q95,
            q99: q95 * 2.0,
            model: "window".to_owned(),
            cold: false,
        }
    }

    /// An app that will need so many CPUs and MiB in the next period, and uses half of them; half of
    /// that memory is page cache.
    fn app(class: Class, state: RunState, cpus: f64, mib: u64) -> AppReport {
        let usage = Usage {
            cpu: Some(cpus / 2.0),
            memory: Some(Bytes::mib(mib / 2)),
            ..Usage::default()
        };
        AppReport {
            class,
            state,
            main_pid: None,
            starts: 0,
            usage,
            io: IoUse::default(),
            traffic: None,
            network: None,
            demand: Some(Demand {
                cpu: band(cpus),
                memory: band(Bytes::mib(mib).as_f64()),
                cpu_stalled: 0.0,
                io_use: IoUse::default(),
                io: BTreeMap::new(),
                memory_now: MemoryNow {
                    stat: Some(MemoryStat {
                        active_anon: Bytes::mib(mib / 8),
                        inactive_anon: Bytes::mib(mib / 8 - 10),
                        active_file: Bytes::mib(mib / 8),
                        inactive_file: Bytes::mib(mib / 8),
                        unevictable: Bytes::mib(10),
                        refaults: None,
                    }),
                    ..MemoryNow::default()
                },
                usage,
                response_time: None,
            }),
            slice: Slice::default(),
            reason: None,
            reclaim: None,
            page_move: None,
            offload: None,
        }
    }

    fn report(available: Reading<Bytes>) -> TickReport {
        let apps = [
            ("web", app(Class::Critical, RunState::Running, 2.0, 1000)),
            ("db", app(Class::Critical, RunState::Running, 1.0, 2000)),
            ("crunch", app(Class::Batch, RunState::Running, 4.0, 500)),
            ("gone", app(Class::Batch, RunState::Absent, 4.0, 500)),
        ];
        TickReport {
            period: 1,
            time: Time::default(),
            paused: false,
            offload: Mode::Watch,
            host: HostSample {
                cpu_busy: Err(Gap::NotDue),
                steal: Err(Gap::NotDue),
                memory_available: available,
                interrupts: Err(Gap::NotDue),
                cost_models: Err(Gap::NotDue),
                swap_free: Err(Gap::NotDue),
                memory_watch: Err(Gap::NotDue),
                compaction: Err(Gap::NotDue),
            },
            shared: CpuSet::default(),
            io: BTreeMap::new(),
            apps: apps.map(|(name, app)| (name.parse().unwrap(), app)).into(),
            give_back: GiveBack::default(),
            actions: Vec::new(),
            shortfalls: Vec::new(),
            events: Vec::new(),
        }
    }

    fn check(available: Reading<Bytes>, ahead: &[(&str, Resource, f64)]) -> Offer {
        let mut known = Ahead::new();
        for (app, resource, value) in ahead {
            let app = known.entry(app.parse().unwrap()).or_default();
            app.insert(*resource, *value);
        }
        offer(HOST, &report(available), &known, BTreeMap::new(), false)
    }

    fn room(milli_cpu: u64, mib: u64) -> Room {
        Room {
            cpu: MilliCpu(milli_cpu),
            memory: Bytes::mib(mib),
        }
    }

    #[test]
    fn apps_that_run_count_by_the_most_that_any_forecast_says() {
        let offer = check(Err(Gap::NotDue), &[]);
        assert_eq!(offer.needed[&Class::Critical], room(3000, 3000));
        assert_eq!(offer.needed[&Class::Batch], room(4000, 500));
        let names: Vec<&str> = offer.apps.iter().map(AppId::as_str).collect();
        assert_eq!(names, ["crunch", "db", "web"]);
        let offer = check(
            Err(Gap::NotDue),
            &[
                ("web", Resource::Cpu, 3.5),
                ("db", Resource::Cpu, 0.1),
                ("web", Resource::Memory, Bytes::mib(1500).as_f64()),
                ("gone", Resource::Cpu, 9.0),
            ],
        );
        assert_eq!(offer.needed[&Class::Critical], room(4500, 3500));
        assert_eq!(offer.needed[&Class::Batch], room(4000, 500));
    }

    #[test]
    fn what_apps_use_now_is_said_beside_what_they_will_need() {
        let offer = check(Err(Gap::NotDue), &[("web", Resource::Cpu, 6.0)]);
        let used = offer.used.clone().unwrap();
        assert_eq!(used[&Class::Critical], room(1500, 1500));
        assert_eq!(offer.needed[&Class::Critical], room(7000, 3000));
        assert_eq!(offer.room_now(Class::Critical), Some(room(6500, 6500)));
        let unseen = {
            let mut report = report(Err(Gap::NotDue));
            for app in report.apps.values_mut() {
                app.usage = Usage::default();
            }
            offer_of(&report)
        };
        // What was not observed is not taken for nothing.
        assert_eq!(unseen.used, Some(unseen.needed));
    }

    fn offer_of(report: &TickReport) -> Offer {
        offer(HOST, report, &Ahead::new(), BTreeMap::new(), false)
    }

    #[test]
    fn memory_that_others_hold_is_not_offered() {
        let offered = |available| check(available, &[]).capacity;
        assert_eq!(offered(Err(Gap::Unsupported)), room(8000, 8000));
        // 874 MiB are the apps' own, and 3000 could be had, with what page cache they hold: the rest is
        // somebody's.
        assert_eq!(offered(Ok(Bytes::mib(3000))), room(8000, 3874));
        assert_eq!(offered(Ok(Bytes::mib(7900))), room(8000, 8000));
    }

    #[test]
    fn memory_that_may_be_page_cache_is_not_offered_twice() {
        let offered = |change: &dyn Fn(&mut AppReport)| {
            let mut report = report(Ok(Bytes::mib(3000)));
            change(
                report
                    .apps
                    .get_mut(&"web".parse::<AppId>().unwrap())
                    .unwrap(),
            );
            let offer = offer(HOST, &report, &Ahead::new(), BTreeMap::new(), false);
            offer.capacity.memory
        };
        let stat = |app: &mut AppReport, stat| {
            app.demand.as_mut().unwrap().memory_now.stat = stat;
        };
        // The other two hold 624 MiB for certain.
        assert_eq!(offered(&|web| stat(web, None)), Bytes::mib(3624));
        let all_file = MemoryStat {
            inactive_file: Bytes::mib(500),
            ..MemoryStat::default()
        };
        assert_eq!(offered(&|web| stat(web, Some(all_file))), Bytes::mib(3624));
        // It gave most back since its parts were read.
        let given_back = |web: &mut AppReport| web.usage.memory = Some(Bytes::mib(50));
        assert_eq!(offered(&given_back), Bytes::mib(3674));
    }

    #[test]
    fn an_app_that_nothing_is_known_of_may_need_all() {
        let offered = |change: &dyn Fn(&mut AppReport)| {
            let mut report = report(Err(Gap::NotDue));
            let crunch = report
                .apps
                .get_mut(&"crunch".parse::<AppId>().unwrap())
                .unwrap();
            (crunch.demand, crunch.usage) = (None, Usage::default());
            change(crunch);
            offer(HOST, &report, &Ahead::new(), BTreeMap::new(), false)
        };
        let offer = offered(&|_| {});
        assert_eq!(offer.needed[&Class::Batch], room(8000, 8000));
        assert_eq!(offer.room(Class::Batch), room(0, 0));
        // It makes way for those that matter more.
        assert_eq!(offer.room(Class::Critical), room(5000, 5000));
        let memory_read = |app: &mut AppReport| app.usage.memory = Some(Bytes::mib(100));
        let offer = offered(&memory_read);
        assert_eq!(offer.needed[&Class::Batch], room(8000, 100));
        let ended = |app: &mut AppReport| app.state = RunState::Absent;
        assert!(!offered(&ended).needed.contains_key(&Class::Batch));
    }
}
