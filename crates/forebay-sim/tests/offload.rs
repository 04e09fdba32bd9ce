//! What is done about an app that its slice does not hold, from the constraint to the way down.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use forebay_core::app::{App, AppId, Binding, Class, Policy};
use forebay_core::host::{Action, Outcome};
use forebay_core::offload::ladder::Verdict;
use forebay_core::offload::{Climb, Mode, Rules, Rung};
use forebay_core::report::{EventKind, TickReport};
use forebay_core::signals::{Signal, Signals};
use forebay_core::slice::{Knob, Setting, Slice};
use forebay_core::state::State;
use forebay_core::tick::{Inputs, tick};
use forebay_core::topology::{Shape, Topology};
use forebay_core::units::Bytes;
use forebay_sim::{Faults, Program, SimHost};

/// The promise, in periods after the one in which the constraint was raised.
const PERIODS_MAX: u64 = 2;

/// A host of eight CPUs, on which `web` has two of its own by its use of 1.2 and batch takes the
/// rest.
struct World {
    host: SimHost,
    policy: Policy,
    state: State,
    web: AppId,
}

impl World {
    fn new(mode: Mode) -> Self {
        let shape = Shape {
            nodes: 1,
            l3s: 1,
            cores: 8,
            threads: 1,
            memory: Bytes::mib(8192),
        };
        let mut host = SimHost::new(Topology::regular(shape), 11);
        let mut policy = Policy {
            offload: Rules {
                mode,
                ..Rules::default()
            },
            ..Policy::default()
        };
        let programs = [
            (
                "web",
                Class::Critical,
                Program::steady(1.2, 8, Bytes::mib(64)),
            ),
            ("burn", Class::Batch, Program::burner(16)),
        ];
        for (name, class, program) in programs {
            host.create_group(name);
            host.spawn(name, program, name).unwrap();
            let id: AppId = name.parse().unwrap();
            let app = App::new(id.clone(), class, Binding::Cgroup(name.into()));
            policy.apps.insert(id, app);
        }
        Self {
            host,
            policy,
            state: State::new(),
            web: "web".parse().unwrap(),
        }
    }

    /// One period in which `web` tells how long its answers take.
    fn tick(&mut self, response_time_ms: f64) -> TickReport {
        self.tick_paused(response_time_ms, false)
    }

    fn tick_paused(&mut self, response_time_ms: f64, paused: bool) -> TickReport {
        let signal = Signal {
            requests_per_second: None,
            response_time_ms: Some(response_time_ms),
            errors: None,
        };
        let signals = Signals {
            apps: [(self.web.clone(), signal)].into(),
            ..Signals::default()
        };
        let inputs = Inputs {
            signals: &signals,
            paused,
            ..Inputs::new(self.host.time(), &self.policy)
        };
        let report = tick(&mut self.state, &mut self.host, &inputs);
        self.host.advance(self.policy.period);
        report
    }

    fn own_cpus(&self, report: &TickReport) -> usize {
        let reason = report.apps[&self.web].reason.as_ref();
        reason.map_or(0, |reason| reason.exclusive.len())
    }

    fn climb<'a>(&self, report: &'a TickReport) -> Option<&'a Climb> {
        report.apps[&self.web].offload.as_ref()
    }
}

/// Whether a larger CPU set was written for `web`.
fn placed_anew(report: &TickReport) -> bool {
    report.actions.iter().any(|(action, outcome)| {
        let web = matches!(action, Action::Set { app, setting: Setting::Cpus(_) } if app.as_str() == "web");
        web && *outcome == Outcome::Done
    })
}

#[test]
fn slow_answers_get_more_cpus_within_two_periods_and_give_them_back_in_time() {
    let mut world = World::new(Mode::Act);
    let mut story = Vec::new();
    let mut own = 0;
    let mut raised_at = None;
    let mut waited = None;
    for period in 0..2400_u64 {
        // Slow from the twentieth second on, as long as it has fewer than three CPUs.
        let slow = period >= 200 && own < 3;
        let report = world.tick(if slow { 900.0 } else { 100.0 });
        let constrained = world
            .climb(&report)
            .is_some_and(|climb| !climb.constraints.is_empty());
        if constrained && raised_at.is_none() {
            raised_at = Some(period);
        }
        if let Some(raised) = raised_at.filter(|raised| period > *raised)
            && waited.is_none()
            && placed_anew(&report)
        {
            waited = Some(period - raised);
        }
        let before = std::mem::replace(&mut own, world.own_cpus(&report));
        for event in &report.events {
            if event.kind == EventKind::Offload {
                story.push(format!("{:.1} {}", seconds(&report), event.message));
            }
        }
        if before != own && period >= 200 {
            story.push(format!("{:.1} {own} CPUs of its own", seconds(&report)));
        }
    }
    let waited = waited.unwrap();
    assert!(waited <= PERIODS_MAX, "{waited} periods");
    assert_eq!(story, STORY, "\n{}", story.join("\n"));
}

/// What happens in four minutes. A rung that was let go is needed again at once, because the load
/// is what it was; the next time it stays for twice as long.
const STORY: &[&str] = &[
    "23.0 offload: give it more CPUs (1.00 CPU), since an answer of it takes 900.0 ms, more than 500.0 ms, for 3.0 s",
    "23.1 3 CPUs of its own",
    "88.1 offload, taken back: give it more CPUs (1.00 CPU)",
    "88.2 2 CPUs of its own",
    "91.3 offload: give it more CPUs (1.00 CPU), since an answer of it takes 900.0 ms, more than 500.0 ms, for 3.0 s",
    "91.4 3 CPUs of its own",
    "216.4 offload, taken back: give it more CPUs (1.00 CPU)",
    "216.5 2 CPUs of its own",
    "219.6 offload: give it more CPUs (1.00 CPU), since an answer of it takes 900.0 ms, more than 500.0 ms, for 3.0 s",
    "219.7 3 CPUs of its own",
];

fn seconds(report: &TickReport) -> f64 {
    report.time.monotonic.as_secs_f64()
}

#[test]
fn by_default_it_is_said_what_could_be_tried_and_nothing_is_done() {
    let mut world = World::new(Rules::default().mode);
    let mut plain = World::new(Mode::Off);
    for period in 0..600 {
        let slow = period >= 200;
        let report = world.tick(if slow { 900.0 } else { 100.0 });
        let other = plain.tick(100.0);
        assert_eq!(report.actions, other.actions, "{period}");
        assert_eq!(world.climb(&report).is_some(), period >= 230, "{period}");
        assert_eq!(plain.climb(&other), None);
        if let Some(climb) = world.climb(&report) {
            assert_eq!(climb.could.as_ref().unwrap().0, Rung::WidenSlice);
            let said = climb.sentences().join(" ");
            for part in [
                "an answer of it takes 900.0 ms, more than 500.0 ms",
                "what it lacks is processor time",
                "Not taken: place its threads one by one",
                "`offload.mode = \"act\"`",
            ] {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
    }
}

#[test]
fn a_pause_keeps_what_is_in_force_and_tries_nothing() {
    let mut world = World::new(Mode::Act);
    let mut in_force = None;
    for period in 0..1200 {
        // So long that it would be let go, if it were not paused.
        let paused = period >= 260;
        let response_time_ms = if (200..235).contains(&period) {
            900.0
        } else {
            100.0
        };
        let report = world.tick_paused(response_time_ms, paused);
        let slice = report.apps[&world.web].slice.clone();
        if !paused {
            in_force = Some(slice);
            continue;
        }
        if period == 260 {
            let placed = in_force.as_ref().and_then(Slice::cpus);
            assert!(placed.is_some_and(|cpus| cpus.len() >= 3), "{placed:?}");
            assert_eq!(world.own_cpus(&report), 3);
        }
        assert_eq!(Some(slice), in_force, "{period}");
        assert_eq!(world.own_cpus(&report), 3, "{period}");
        let told = report.events.iter();
        let told = told.filter(|event| event.kind == EventKind::Offload);
        assert_eq!(told.count(), 0, "{period}");
        assert_eq!(report.actions, [], "{period}");
    }
}

/// It was judged by the first period after the pause alone.
#[test]
fn a_rung_is_judged_by_what_it_does_after_a_pause() {
    let mut world = World::new(Mode::Act);
    let (mut taken, mut judged) = (None, None);
    for period in 0..600_u64 {
        // It helps, but for one slow second when Forebay goes on, and long after its settling time is over.
        let paused = (250..400).contains(&period);
        let slow = (200..231).contains(&period) || (395..410).contains(&period);
        let report = world.tick_paused(if slow { 900.0 } else { 100.0 }, paused);
        let taken_now = report
            .events
            .iter()
            .any(|event| event.kind == EventKind::Offload);
        taken = taken.or(taken_now.then_some(period));
        let climb = world.climb(&report);
        let tried = climb.and_then(|climb| climb.tried.last().cloned());
        judged = judged.or(tried.map(|tried| (period, tried)));
    }
    assert_eq!(taken, Some(230));
    let (period, tried) = judged.unwrap();
    let settling = u64::try_from(Rules::default().settling.as_millis() / 100).unwrap();
    assert!(period >= 399 + settling, "{period}: {tried}");
    assert_eq!(tried.verdict, Verdict::Kept, "{tried}");
    assert!(tried.after.is_some_and(|after| after < 0.3), "{tried}");
}

#[test]
fn cold_memory_of_batch_is_asked_for_in_the_period_that_decides_it() {
    let shape = Shape {
        nodes: 1,
        l3s: 1,
        cores: 4,
        threads: 1,
        memory: Bytes::mib(4096),
    };
    let mut host = SimHost::new(Topology::regular(shape), 11)
        .offering(|knob| knob != Knob::MemoryHigh)
        .with_swap(Bytes::mib(4096));
    // So strict that an app is constrained by what it works with from the beginning.
    let mut policy = Policy {
        offload: Rules {
            mode: Mode::Act,
            memory_percent: 1,
            ..Rules::default()
        },
        ..Policy::default()
    };
    let crunch = Program {
        cold: Bytes::mib(2048),
        ..Program::steady(1.0, 1, Bytes::mib(512))
    };
    let programs = [
        (
            "web",
            Class::Critical,
            Program::steady(0.5, 4, Bytes::mib(256)),
        ),
        ("crunch", Class::Batch, crunch),
    ];
    for (name, class, program) in programs {
        host.create_group(name);
        host.spawn(name, program, name).unwrap();
        let id: AppId = name.parse().unwrap();
        let app = App::new(id.clone(), class, Binding::Cgroup(name.into()));
        policy.apps.insert(id, app);
    }
    let web: AppId = "web".parse().unwrap();
    let mut state = State::new();
    let (mut decided, mut tried) = (0, 0);
    for _ in 0..600 {
        let inputs = Inputs::new(host.time(), &policy);
        let report = tick(&mut state, &mut host, &inputs);
        host.advance(policy.period);
        let told = report.events.iter().any(|event| {
            event.app.as_ref() == Some(&web) && event.message.contains("take back memory of batch")
        });
        if told {
            decided += 1;
            let asked = report.actions.iter().any(|(action, outcome)| {
                matches!(action, Action::Reclaim { app, .. } if app.as_str() == "crunch")
                    && *outcome == Outcome::Done
            });
            assert!(asked, "it was decided, and nobody was asked");
        }
        let climb = report.apps[&web].offload.as_ref();
        tried = climb.map_or(tried, |climb| climb.tried.len());
    }
    assert!(decided > 0, "nothing was decided");
    assert!(tried > 0, "nothing was measured");
}

#[test]
fn cpus_that_cannot_be_written_are_refused_and_nothing_is_learned_of_them() {
    let mut world = World::new(Mode::Act);
    let mut verdicts = Vec::new();
    for period in 0..300 {
        let busy = if period < 200 { 0.0 } else { 1.0 };
        world.host.set_faults(Faults {
            busy,
            ..Faults::default()
        });
        let report = world.tick(if period < 200 { 100.0 } else { 900.0 });
        if let Some(climb) = world.climb(&report) {
            verdicts = climb.tried.iter().map(|tried| tried.verdict).collect();
        }
    }
    assert_eq!(verdicts, [Verdict::Refused]);
}
