//! Memory ahead of need: batch gives back before a critical app's rise arrives.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use forebay_core::app::{App, Binding, Class, Policy};
use forebay_core::host::Action;
use forebay_core::report::TickReport;
use forebay_core::slice::Knob;
use forebay_core::state::State;
use forebay_core::tick::{Inputs, tick};
use forebay_core::topology::{Shape, Topology};
use forebay_core::units::Bytes;
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
            time: host.time(),
            policy: &policy,
            paused,
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
        let inputs = Inputs {
            time: host.time(),
            policy: &policy,
            paused: false,
        };
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
        let inputs = Inputs {
            time: host.time(),
            policy: &policy,
            paused: false,
        };
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
                    assert!(bytes.0 <= used.0 / 16, "{bytes} of {used} at once");
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
    assert!(gaps[0] < Duration::from_secs(4), "{gaps:?}");
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
