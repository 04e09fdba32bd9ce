//! A critical reader beside batch that saturates the disk.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_core::app::{App, Binding, Class, IoMax, IoProtection, Policy, Uclamp};
use forebay_core::plan::io::latency_target;
use forebay_core::report::Event;
use forebay_core::slice::{Knob, Setting};
use forebay_core::state::State;
use forebay_core::tick::{Inputs, tick};
use forebay_core::topology::{Shape, Topology};
use forebay_core::units::{Bytes, Limit, Utilization};
use forebay_sim::{DEVICE, Disk, Load, Program, SimHost};

const DISK: Disk = Disk {
    bytes_per_second: 100 << 20,
    latency: Duration::from_millis(2),
};
const SECONDS: u32 = 60;

/// One run of a critical reader, of which the load is given, beside a batch reader.
struct Run {
    state: State,
    host: SimHost,
    policy: Policy,
}

impl Run {
    fn new(web: Load) -> Self {
        let shape = Shape {
            nodes: 1,
            l3s: 1,
            cores: 4,
            threads: 1,
            memory: Bytes::mib(4096),
        };
        let mut host = SimHost::new(Topology::regular(shape), 5).with_disk(DISK);
        let mut policy = Policy {
            devices: BTreeMap::from([(DEVICE, DISK.capability())]),
            ..Policy::default()
        };
        let hog = Load::Constant(1e9);
        for (name, class, io) in [("web", Class::Critical, web), ("hog", Class::Batch, hog)] {
            let program = Program {
                io,
                ..Program::steady(0.2, 4, Bytes::mib(32))
            };
            host.create_group(name);
            host.spawn(name, program, name).unwrap();
            let app = App::new(name.parse().unwrap(), class, Binding::Cgroup(name.into()));
            policy.apps.insert(app.id.clone(), app);
        }
        Self {
            state: State::new(),
            host,
            policy,
        }
    }

    fn step(&mut self) {
        let inputs = Inputs::new(self.host.time(), &self.policy);
        tick(&mut self.state, &mut self.host, &inputs);
        self.host.advance(self.policy.period);
    }

    fn limit(&self, app: &str) -> IoMax {
        match self.host.read(app, Knob::IoMax(DEVICE)) {
            Some(Setting::IoMax(_, max)) => max,
            other => panic!("{other:?} is no limit"),
        }
    }
}

/// Longest time of a request after the first second, and limits by period.
fn longest(run: &mut Run) -> Duration {
    (0..SECONDS * 10)
        .map(|period| {
            run.step();
            if period < 10 {
                Duration::ZERO
            } else {
                run.host.disk_wait()
            }
        })
        .max()
        .unwrap()
}

#[test]
fn a_critical_reader_does_not_wait_behind_batch() {
    let reads = || Load::Constant(5e6);
    let alone = {
        let mut run = Run::new(reads());
        run.host.remove_group("hog");
        longest(&mut run)
    };
    let uncontrolled = {
        let mut run = Run::new(reads());
        // A device of which nobody knows what it can do is not planned for.
        run.policy.devices.clear();
        longest(&mut run)
    };
    let mut run = Run::new(reads());
    let with_forebay = longest(&mut run);
    assert!(uncontrolled > 5 * alone, "{uncontrolled:?}, {alone:?}");
    assert!(with_forebay <= 2 * alone, "{with_forebay:?}, {alone:?}");
    // Batch goes on all the same.
    let Limit::At(bytes) = run.limit("hog").rbps else {
        panic!("the hog has no limit");
    };
    assert!(bytes >= 256 << 10, "{bytes}");
    assert_eq!(run.limit("web"), IoMax::NONE);
}

#[test]
fn a_reader_that_ends_gives_the_disk_back() {
    let mut run = Run::new(Load::Step {
        before: 5e6,
        after: 0.0,
        at: Duration::from_secs(20),
    });
    for _ in 0..200 {
        run.step();
    }
    assert!(run.limit("hog") != IoMax::NONE);
    // The forecast's window, and a hold for each step of the release.
    for _ in 0..1800 {
        run.step();
        if run.limit("hog") == IoMax::NONE {
            return;
        }
    }
    panic!("three minutes later the limit is {:?}", run.limit("hog"));
}

#[test]
fn clamps_that_are_asked_for_no_longer_go_back_to_the_owners() {
    let owners = Setting::CpuUclampMin(Utilization::percent(20));
    let mut run = Run::new(Load::Constant(0.0));
    run.host.write("web", owners).unwrap();
    let web = "web".parse().unwrap();
    let mut check = |wanted: Uclamp, anew: bool, expected: [u32; 2]| {
        run.policy.apps.get_mut(&web).unwrap().uclamp = wanted;
        if anew {
            run.host.lose_daemon();
            run.state = State::new();
        }
        for _ in 0..5 {
            run.step();
        }
        let held = [Knob::CpuUclampMin, Knob::CpuUclampMax].map(|k| run.host.read("web", k));
        let [min, max] = expected.map(Utilization::percent);
        let expected = [Setting::CpuUclampMin(min), Setting::CpuUclampMax(max)].map(Some);
        assert_eq!(held, expected, "{wanted:?}");
    };
    let nothing = Uclamp::default();
    let clamp = |percent| Some(Utilization::percent(percent));
    let both = Uclamp {
        min: clamp(40),
        max: clamp(80),
    };
    check(nothing, false, [20, 100]);
    check(both, false, [40, 80]);
    check(nothing, false, [20, 100]);
    check(both, false, [40, 80]);
    check(nothing, true, [20, 100]);
}

#[test]
fn what_the_owner_had_set_is_a_ceiling_and_comes_back() {
    let owners = IoMax {
        rbps: Limit::At(200 << 10),
        ..IoMax::NONE
    };
    let mut run = Run::new(Load::Constant(5e6));
    let setting = Setting::IoMax(DEVICE, owners);
    run.host.write("hog", setting).unwrap();
    for _ in 0..100 {
        run.step();
    }
    let limited = run.limit("hog");
    assert_eq!(limited.rbps, owners.rbps);
    assert!(limited.riops != Limit::Max, "{limited:?}");
    // A new daemon still knows what the owner had set.
    run.host.lose_daemon();
    run.state = State::new();
    run.policy.devices.clear();
    for _ in 0..10 {
        run.step();
    }
    assert_eq!(run.limit("hog"), owners);
}

#[test]
fn a_target_holds_as_long_as_it_is_asked_for_and_an_owners_comes_back() {
    let target = |run: &Run| run.host.read("web", Knob::IoLatency(DEVICE)).unwrap();
    let none = Setting::IoLatency(DEVICE, Limit::Max);
    let steps = |run: &mut Run| (0..20).for_each(|_| run.step());
    let owners = Setting::IoLatency(DEVICE, Limit::At(Duration::from_millis(50)));
    for before in [none, owners] {
        let mut run = Run::new(Load::Constant(5e6));
        run.host.write("web", before).unwrap();
        steps(&mut run);
        assert_eq!(target(&run), before);
        run.policy.io_protection = IoProtection::Latency;
        steps(&mut run);
        let expected = latency_target(&DISK.capability());
        let ours = Setting::IoLatency(DEVICE, Limit::At(expected));
        assert_eq!(target(&run), ours);
        let hogs = run.host.read("hog", Knob::IoLatency(DEVICE)).unwrap();
        assert_eq!(hogs, none);
        // The next daemon knows what is whose.
        run.host.lose_daemon();
        run.state = State::new();
        steps(&mut run);
        assert_eq!(target(&run), ours);
        run.policy.io_protection = IoProtection::None;
        steps(&mut run);
        assert_eq!(target(&run), before);
    }
}

#[test]
fn somebody_elses_target_is_noticed_and_left() {
    let mut run = Run::new(Load::Constant(5e6));
    run.policy.io_protection = IoProtection::Latency;
    (0..20).for_each(|_| run.step());
    let theirs = Setting::IoLatency(DEVICE, Limit::At(Duration::from_millis(77)));
    run.host.write("web", theirs).unwrap();
    (0..20).for_each(|_| run.step());
    assert_eq!(run.host.read("web", Knob::IoLatency(DEVICE)), Some(theirs));
    let told = |event: &Event| event.message.contains("somebody set io.latency 8:0");
    assert!(run.state.events().any(told), "nobody was told");
}

#[test]
fn a_cost_model_is_there_as_long_as_it_is_asked_for() {
    let mut run = Run::new(Load::Constant(5e6));
    let steps = |run: &mut Run| (0..20).for_each(|_| run.step());
    steps(&mut run);
    assert!(!run.host.has_cost_model(DEVICE));
    run.policy.io_protection = IoProtection::Cost;
    steps(&mut run);
    assert!(run.host.has_cost_model(DEVICE));
    // With it, weights divide the device; a target beside it would fight it.
    let weight = |app| run.host.read(app, Knob::IoWeight);
    assert_eq!(weight("web"), Some(Setting::IoWeight(1000)));
    assert_eq!(weight("hog"), Some(Setting::IoWeight(10)));
    let target = run.host.read("web", Knob::IoLatency(DEVICE));
    assert_eq!(target, Some(Setting::IoLatency(DEVICE, Limit::Max)));
    run.policy.io_protection = IoProtection::None;
    steps(&mut run);
    assert!(!run.host.has_cost_model(DEVICE));
}

#[test]
fn somebody_elses_cost_model_is_left() {
    let steps = |run: &mut Run| (0..20).for_each(|_| run.step());
    let mut run = Run::new(Load::Constant(5e6));
    run.policy.io_protection = IoProtection::Cost;
    run.host.take_cost_model(DEVICE);
    steps(&mut run);
    assert!(!run.host.has_cost_model(DEVICE));
    // Nor is there a target beside it.
    run.policy.io_protection = IoProtection::Latency;
    steps(&mut run);
    let target = run.host.read("web", Knob::IoLatency(DEVICE));
    assert_eq!(target, Some(Setting::IoLatency(DEVICE, Limit::Max)));

    let mut run = Run::new(Load::Constant(5e6));
    run.policy.io_protection = IoProtection::Cost;
    steps(&mut run);
    run.host.take_cost_model(DEVICE);
    steps(&mut run);
    assert!(!run.host.has_cost_model(DEVICE));
    let told = |event: &Event| {
        event
            .message
            .contains("somebody changed the cost model of 8:0")
    };
    assert_eq!(run.state.events().filter(|event| told(event)).count(), 1);
}
