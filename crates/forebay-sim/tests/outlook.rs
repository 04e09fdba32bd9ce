//! What is known to come is prepared for before it comes.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use forebay_core::app::{App, AppId, Binding, Class, Policy};
use forebay_core::outlook::ahead::Forecasts;
use forebay_core::outlook::{Expected, Outlook, Quantiles, Resource};
use forebay_core::state::State;
use forebay_core::tick::{Inputs, tick};
use forebay_core::topology::{Shape, Topology};
use forebay_core::units::Bytes;
use forebay_sim::{Load, Program, SimHost};

/// From one rise to the next: twice what the series of the period remember, and more.
const EVERY: Duration = Duration::from_secs(300);
const LENGTH: Duration = Duration::from_secs(40);

/// A critical app that rises every five minutes beside batch that takes what is left.
fn host() -> (SimHost, Policy) {
    let topology = Topology::regular(Shape {
        nodes: 1,
        l3s: 1,
        cores: 8,
        threads: 1,
        memory: Bytes::mib(8192),
    });
    let mut host = SimHost::new(topology, 7);
    // With lending, the app may use the others' CPUs already and nothing has to be written.
    let mut policy = Policy {
        lend: false,
        ..Policy::default()
    };
    let cpu = Load::Pulse {
        low: 0.4,
        high: 4.0,
        every: EVERY,
        length: LENGTH,
    };
    let web = Program {
        cpu,
        ..Program::steady(4.0, 8, Bytes::mib(64))
    };
    let apps = [
        ("web", Class::Critical, web),
        ("burn", Class::Batch, Program::burner(16)),
    ];
    for (name, class, program) in apps {
        host.create_group(name);
        host.spawn(name, program, name).unwrap();
        let app = App::new(name.parse().unwrap(), class, Binding::Cgroup(name.into()));
        policy.apps.insert(app.id.clone(), app);
    }
    (host, policy)
}

/// Rises before the last one over which an average is taken: where one hold of 5 s lies is chance.
const AVERAGED: usize = 3;

/// CPUs of its own that `web` had just before each rise, and on average before the last three of
/// them; `known` says what is known.
fn run(
    rises: u32,
    mut known: impl FnMut(&SimHost, &mut Forecasts) -> Outlook,
) -> (Vec<usize>, f64) {
    let (mut host, policy) = host();
    let web: AppId = "web".parse().unwrap();
    let mut state = State::new();
    let mut forecasts = Forecasts::new(None);
    let mut outlook = Outlook::default();
    let (mut before, mut all, mut counted, mut periods) = (Vec::new(), 0, 0_u32, 0_u32);
    while before.len() < usize::try_from(rises).unwrap() {
        let time = host.time();
        let inputs = Inputs {
            outlook: &outlook,
            ..Inputs::new(time, &policy)
        };
        let report = tick(&mut state, &mut host, &inputs);
        forecasts.record(&report);
        if periods.is_multiple_of(10) {
            outlook = known(&host, &mut forecasts);
        }
        let reason = report.apps[&web].reason.as_ref();
        let own = reason.map_or(0, |reason| reason.exclusive.len());
        if before.len() + AVERAGED >= usize::try_from(rises).unwrap() {
            all += own;
            counted += 1;
        }
        periods += 1;
        host.advance(policy.period);
        let rises_now = |time: Duration| time.as_millis() / EVERY.as_millis();
        if rises_now(host.time().monotonic) > rises_now(time.monotonic) {
            before.push(own);
        }
    }
    let mean = f64::from(u32::try_from(all).unwrap()) / f64::from(counted);
    (before, mean)
}

#[test]
fn a_rise_that_came_often_is_prepared_for_and_batch_hardly_loses() {
    let (blind, held_blind) = run(6, |_, _| Outlook::default());
    assert_eq!(blind, [1; 6], "two minutes do not remember five");
    let (seen, held) = run(9, |_, forecasts| forecasts.outlook());
    assert!(seen[6..].iter().all(|own| *own >= 3), "{seen:?}");
    // Three buckets of ten seconds in five minutes, for some 4 CPUs, are 0.4 of one.
    assert!(held < held_blind + 0.45, "{held} {held_blind}");
}

#[test]
fn an_event_is_prepared_for_the_first_time() {
    let (first, _) = run(1, |host, _| {
        let time = host.time();
        let rise = time.unix_ms - u64::try_from(time.monotonic.as_millis()).unwrap() + 300_000;
        let expected = Expected {
            resource: Resource::Cpu,
            from_unix_ms: rise,
            until_unix_ms: rise + 40_000,
            peak: Quantiles::new([4.0; 4]).unwrap(),
            why: "event report".to_owned(),
        };
        Outlook {
            expected: [("web".parse().unwrap(), vec![expected])].into(),
            ..Outlook::default()
        }
    });
    assert!(first[0] >= 4, "{first:?}");
}

#[test]
fn the_sum_of_independent_apps_is_less_than_the_sum_of_their_bounds_and_holds() {
    let topology = Topology::regular(Shape {
        nodes: 1,
        l3s: 1,
        cores: 32,
        threads: 1,
        memory: Bytes::mib(8192),
    });
    let mut host = SimHost::new(topology, 3);
    // A longer period, so that two hours are not too many of them.
    let mut policy = Policy {
        period: Duration::from_secs(1),
        ..Policy::default()
    };
    for name in ["a", "b", "c", "d", "e", "f"] {
        host.create_group(name);
        let cpu = Load::Bursty {
            low: 0.2,
            high: 2.0,
            gap: Duration::from_secs(400),
            length: Duration::from_secs(20),
        };
        let program = Program {
            cpu,
            ..Program::steady(2.0, 4, Bytes::mib(64))
        };
        host.spawn(name, program, name).unwrap();
        let app = App::new(
            name.parse().unwrap(),
            Class::Standard,
            Binding::Cgroup(name.into()),
        );
        policy.apps.insert(app.id.clone(), app);
    }
    let (mut state, mut forecasts) = (State::new(), Forecasts::new(None));
    let mut recent = std::collections::VecDeque::new();
    let mut said = std::collections::VecDeque::new();
    let (mut within, mut judged, mut above) = (0, 0, 0.0);
    for second in 0..8_000_u32 {
        let inputs = Inputs::new(host.time(), &policy);
        let report = tick(&mut state, &mut host, &inputs);
        forecasts.record(&report);
        host.advance(policy.period);
        let used: f64 = report.apps.values().filter_map(|app| app.usage.cpu).sum();
        recent.push_back(used);
        if recent.len() > 120 {
            recent.pop_front();
        }
        if !second.is_multiple_of(10) {
            continue;
        }
        let sums = forecasts.sums();
        let two_minutes = |sum: &&forebay_core::outlook::together::Sum| {
            sum.resource == Resource::Cpu && sum.span == Duration::from_secs(120)
        };
        let sum = sums.iter().find(two_minutes).copied();
        said.push_back(sum);
        if said.len() > 12
            && let Some(Some(sum)) = said.pop_front()
        {
            let most = recent.iter().copied().fold(0.0, f64::max);
            judged += 1;
            within += u32::from(most <= sum.peak.q95());
            above += sum.bounds - sum.peak.q95();
        }
    }
    assert!(judged > 500, "{judged}");
    let covered = f64::from(within) / f64::from(judged);
    assert!(covered > 0.9, "{covered}");
    assert!(above / f64::from(judged) > 1.0, "{above} of {judged}");
}
