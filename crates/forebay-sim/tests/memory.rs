//! Memory ahead of need: batch gives back before a critical app's rise arrives.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use forebay_core::app::{App, AppId, Binding, Class, Policy};
use forebay_core::host::Action;
use forebay_core::plan::watch::WATCHED_MAX;
use forebay_core::report::TickReport;
use forebay_core::slice::Knob;
use forebay_core::state::State;
use forebay_core::tick::{Inputs, tick};
use forebay_core::topology::{Shape, Topology};
use forebay_core::units::Bytes;
use forebay_core::working_set::Witness;
use forebay_sim::{Load, Program, SimHost};

/// Time in which the forecast learns the season.
const LEARNING: Duration = Duration::from_secs(100);
/// From rise to rise.
const SEASON: Duration = Duration::from_secs(20);
const LENGTH: Duration = Duration::from_secs(200);

/// 4 GiB of memory; a kernel that cannot slow an app above a bound, so that reclaim is all
/// that makes room.
fn host() -> SimHost {
    let shape = Shape {
        nodes: 1,
        l3s: 1,
        cores: 4,
        threads: 1,
        memory: Bytes::mib(4096),
    };
    SimHost::new(Topology::regular(shape), 11)
        .offering(|knob| knob != Knob::MemoryHigh)
        .with_swap(Bytes::mib(4096))
}

fn app(name: &str, class: Class) -> App {
    App::new(name.parse().unwrap(), class, Binding::Cgroup(name.into()))
}

/// What the critical app suffered after the time of learning.
#[derive(Debug)]
struct Suffered {
    stalled: Duration,
    refaults: u64,
}

/// Runs a critical app that swings between 0.5 and 1.5 GiB beside a batch app that works with
/// 0.75 GiB and holds 2.25 GiB more.
fn run(mut host: SimHost, paused: bool, mut each: impl FnMut(&SimHost, &TickReport)) -> Suffered {
    let web = Program {
        memory: Load::Sine {
            mean: Bytes::mib(1024).as_f64(),
            amplitude: Bytes::mib(512).as_f64(),
            period: SEASON,
        },
        ..Program::steady(0.5, 4, Bytes::mib(64))
    };
    let crunch = Program {
        cold: Bytes::mib(2304),
        ..Program::steady(1.0, 1, Bytes::mib(768))
    };
    let mut policy = Policy::default();
    for (name, class, program) in [
        ("web", Class::Critical, web),
        ("crunch", Class::Batch, crunch),
    ] {
        host.create_group(name);
        host.spawn(name, program, name).unwrap();
        let app = app(name, class);
        policy.apps.insert(app.id.clone(), app);
    }
    let mut state = State::new();
    let mut learnt = None;
    while host.time().monotonic < LENGTH {
        let inputs = Inputs {
            paused,
            ..Inputs::new(host.time(), &policy)
        };
        let report = tick(&mut state, &mut host, &inputs);
        each(&host, &report);
        if host.time().monotonic >= LEARNING && learnt.is_none() {
            learnt = Some((host.usage("web").unwrap(), host.refaults("web").unwrap()));
        }
        host.advance(policy.period);
    }
    let (usage, refaults) = learnt.unwrap();
    Suffered {
        stalled: host.usage("web").unwrap().memory_stalled - usage.memory_stalled,
        refaults: host.refaults("web").unwrap() - refaults,
    }
}

#[test]
fn batch_gives_back_before_the_rise_arrives() {
    let uncontrolled = run(host(), true, |_, _| {});
    assert!(
        uncontrolled.stalled > Duration::ZERO,
        "nothing to protect from: {uncontrolled:?}"
    );
    let mut asked_at = Vec::new();
    let forebay = run(host(), false, |host, report| {
        let asks = report
            .actions
            .iter()
            .filter(|(action, _)| matches!(action, Action::Reclaim { .. }));
        for (action, _) in asks {
            assert_eq!(action.app().unwrap().as_str(), "crunch");
            asked_at.push(host.time().monotonic);
        }
        if host.time().monotonic < LEARNING {
            return;
        }
        // What comes within the second is there already.
        let web = &report.apps[&"web".parse().unwrap()];
        let used = web.usage.memory.unwrap();
        let soon = web.demand.as_ref().unwrap().memory.q50;
        let free = report.host.memory_available.clone().unwrap();
        assert!(
            free.as_f64() >= soon - used.as_f64(),
            "at {:?} {free} are free, and {used} become {soon}",
            host.time().monotonic
        );
    });
    assert!(!asked_at.is_empty(), "nobody was asked");
    assert_eq!(
        forebay.refaults, 0,
        "{forebay:?}, uncontrolled {uncontrolled:?}"
    );
    assert_eq!(
        forebay.stalled,
        Duration::ZERO,
        "uncontrolled {uncontrolled:?}"
    );
}

#[test]
fn without_a_rise_nobody_is_asked() {
    let mut policy = Policy::default();
    let mut host = host();
    for (name, class) in [("web", Class::Critical), ("crunch", Class::Batch)] {
        host.create_group(name);
        host.spawn(name, Program::steady(0.5, 1, Bytes::mib(1900)), name)
            .unwrap();
        let app = app(name, class);
        policy.apps.insert(app.id.clone(), app);
    }
    let mut state = State::new();
    for _ in 0..600 {
        let inputs = Inputs::new(host.time(), &policy);
        let report = tick(&mut state, &mut host, &inputs);
        let asked = report
            .actions
            .iter()
            .any(|(action, _)| matches!(action, Action::Reclaim { .. }));
        assert!(!asked, "{:?}", report.give_back);
        host.advance(policy.period);
    }
}

#[test]
fn what_cannot_be_had_is_said_once() {
    let host = host().with_swap(Bytes(0));
    let mut said = Vec::new();
    run(host, false, |_, report| {
        said.extend(
            report
                .events
                .iter()
                .filter(|event| event.message.contains("crunch: "))
                .map(|event| event.message.clone()),
        );
    });
    assert!(!said.is_empty());
    assert!(said.len() <= 10, "once for each season: {said:?}");
    assert!(said[0].contains("no free swap"), "{said:?}");
}

/// Runs a batch app that works with 768 MiB and holds 2,304 MiB more; what it holds at the end,
/// and the share of time in which it waited for memory.
fn save(host: SimHost, change: impl Fn(&mut Policy)) -> (Bytes, f64) {
    save_and(host, change, |_, _| {})
}

fn save_and(
    mut host: SimHost,
    change: impl Fn(&mut Policy),
    mut each: impl FnMut(&SimHost, &TickReport),
) -> (Bytes, f64) {
    let mut policy = Policy {
        reclaim_cold: true,
        ..Policy::default()
    };
    host.create_group("crunch");
    let program = Program {
        cold: Bytes::mib(2304),
        ..Program::steady(1.0, 1, Bytes::mib(768))
    };
    host.spawn("crunch", program, "crunch").unwrap();
    let crunch = app("crunch", Class::Batch);
    policy.apps.insert(crunch.id.clone(), crunch);
    change(&mut policy);
    let mut state = State::new();
    while host.time().monotonic < LENGTH {
        let inputs = Inputs::new(host.time(), &policy);
        let report = tick(&mut state, &mut host, &inputs);
        each(&host, &report);
        host.advance(policy.period);
    }
    let usage = host.usage("crunch").unwrap();
    let waited = usage.memory_stalled.as_secs_f64() / LENGTH.as_secs_f64();
    (usage.memory_used, waited)
}

#[test]
fn cold_memory_of_batch_is_taken_back_and_what_it_works_with_stays() {
    let (held, waited) = save(host(), |_| {});
    assert!(held <= Bytes::mib(768 + 32), "{held} are held");
    assert!(waited <= 0.05, "it waited {waited} of the time");
    assert!(waited > 0.0, "the end of what is cold was never reached");
}

#[test]
fn steps_are_bounded_and_the_pauses_grow_where_nothing_is_cold() {
    let mut asked = Vec::new();
    save_and(
        host(),
        |_| {},
        |host, report| {
            for (action, _) in &report.actions {
                if let Action::Reclaim { bytes, .. } = action {
                    let used = host.usage("crunch").unwrap().memory_used;
                    assert!(bytes.0 <= used.0 / 8, "{bytes} of {used} at once");
                    asked.push((host.time().monotonic, *bytes));
                }
            }
        },
    );
    assert!(
        asked[0].1 < asked[1].1 && asked[1].1 < asked[2].1,
        "{asked:?}"
    );
    let gaps: Vec<Duration> = asked.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(gaps[0] < Duration::from_secs(7), "{gaps:?}");
    assert!(
        gaps.last()
            .is_some_and(|gap| *gap >= Duration::from_secs(10)),
        "{gaps:?}"
    );
}

#[test]
fn what_batch_holds_stays_where_nobody_asked_or_nothing_can_go() {
    let all = Bytes::mib(768 + 2304);
    let check = |host: SimHost, change: fn(&mut Policy)| {
        assert_eq!(save(host, change), (all, 0.0));
    };
    check(host(), |policy| policy.reclaim_cold = false);
    check(host().with_swap(Bytes(0)), |_| {});
    check(host().without_reclaim(), |_| {});
    let crunch = || "crunch".parse().unwrap();
    // Another class, or a floor as large.
    for class in [Class::Standard, Class::Critical] {
        let (held, waited) = save(host(), |policy| {
            policy.apps.get_mut(&crunch()).unwrap().class = class;
        });
        assert_eq!((held, waited), (all, 0.0));
    }
    let (held, _) = save(host(), |policy| {
        policy.apps.get_mut(&crunch()).unwrap().floor.memory = Bytes::mib(2048);
    });
    assert!(
        held >= Bytes::mib(2048),
        "{held} are held of a floor of 2 GiB"
    );
}

#[test]
fn watched_memory_is_taken_back_without_trying_what_is_in_use() {
    let mut told = 0;
    let (held, waited) = save_and(
        host(),
        |policy| policy.watch_memory = true,
        |host, report| {
            let demand = report.apps.values().next().unwrap().demand.as_ref();
            let now = demand.map(|demand| demand.memory_now);
            told += usize::from(now.is_some_and(|now| now.witness == Witness::Accesses));
            assert!(host.watched().len() <= 1);
        },
    );
    assert!(told > 1000, "told in {told} periods");
    assert!(held <= Bytes::mib(768 + 32), "{held} are held");
    assert_eq!(waited, 0.0, "what is in use was taken");
}

#[test]
fn who_else_watches_memory_is_left_alone_and_told_once() {
    let mut told = Vec::new();
    let mut each = |host: &SimHost, report: &TickReport| {
        assert!(host.watched().is_empty());
        let events = report.events.iter().map(|event| event.message.clone());
        told.extend(events.filter(|message| message.contains("somebody else watches memory")));
    };
    let mut host = host();
    host.take_memory_watch();
    let (held, _) = save_and(host, |policy| policy.watch_memory = true, &mut each);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("cold memory is read off memory.stat instead"));
    assert!(held <= Bytes::mib(768 + 32), "memory.stat says it as well");
}

#[test]
fn whoever_comes_between_keeps_it_and_nobody_is_watched_who_is_no_batch() {
    let mut policy = Policy {
        watch_memory: true,
        ..Policy::default()
    };
    let mut host = host();
    let others = [("web", Class::Critical), ("mid", Class::Standard)];
    // Twelve that are large enough, and one that is not.
    let batch = (0..13).map(|index| (format!("batch-{index:02}"), Class::Batch));
    let others = others.map(|(name, class)| (name.to_owned(), class));
    for (name, class) in others.into_iter().chain(batch) {
        host.create_group(&name);
        let size = match name.as_str() {
            "batch-00" => 32,
            "batch-01" => 300,
            _ => 128,
        };
        host.spawn(&name, Program::steady(0.1, 1, Bytes::mib(size)), &name)
            .unwrap();
        let app = app(&name, class);
        policy.apps.insert(app.id.clone(), app);
    }
    let mut state = State::new();
    let mut run = |host: &mut SimHost, policy: &Policy| {
        for _ in 0..30 {
            let inputs = Inputs::new(host.time(), policy);
            tick(&mut state, host, &inputs);
            host.advance(policy.period);
        }
        state
            .events()
            .filter(|e| e.message.contains("somebody else watches"))
            .count()
    };
    assert_eq!(run(&mut host, &policy), 0);
    let watched: Vec<&str> = host.watched().iter().map(AppId::as_str).collect();
    assert_eq!(watched.len(), WATCHED_MAX);
    assert!(watched.contains(&"batch-01"), "{watched:?}");
    assert!(
        watched.iter().all(|app| app.starts_with("batch")),
        "{watched:?}"
    );
    assert!(!watched.contains(&"batch-00"), "{watched:?}");
    host.take_memory_watch();
    assert_eq!(run(&mut host, &policy), 1);
    assert!(host.watched().is_empty());
    policy.watch_memory = false;
    assert_eq!(run(&mut host, &policy), 1);
}
