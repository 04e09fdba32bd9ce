//! The simulated host behaves as a host does, seen from outside.

use std::time::Duration;

use forebay_core::slice::{Knob, Setting};
use forebay_core::snapshot::Ending;
use forebay_core::topology::{Shape, Topology};
use forebay_core::units::{Bytes, Limit, MilliCpu};
use forebay_sim::{Faults, Program, SimHost};

fn host(cpus: usize) -> SimHost {
    let shape = Shape {
        nodes: 1,
        l3s: 1,
        cores: cpus,
        threads: 1,
        memory: Bytes::mib(1024),
    };
    let mut host = SimHost::new(Topology::regular(shape), 3);
    host.create_group("a");
    host.create_group("b");
    host
}

fn start(host: &mut SimHost, program: Program, group: &str) -> u32 {
    host.spawn("program", program, group)
        .expect("the group is there")
}

fn set(host: &mut SimHost, group: &str, setting: Setting) {
    host.write(group, setting)
        .expect("the kernel takes this value");
}

#[test]
fn use_follows_demand_weight_and_quota() {
    let check = |settings: &[Setting], used: f64| {
        let mut host = host(2);
        start(&mut host, Program::burner(2), "a");
        start(&mut host, Program::burner(2), "b");
        for setting in settings {
            set(&mut host, "a", *setting);
        }
        host.advance(Duration::from_secs(10));
        let usage = host.usage("a").expect("the group is there");
        let cpus = usage.cpu_used.as_secs_f64() / 10.0;
        assert!((cpus - used).abs() < 0.01, "{settings:?}: {cpus}");
    };
    check(&[], 1.0);
    check(&[Setting::CpuWeight(300)], 1.5);
    check(&[Setting::CpuIdle(true)], 0.0);
    check(&[Setting::CpuMax(Limit::At(MilliCpu(250)))], 0.25);
}

#[test]
fn a_quota_that_is_too_small_throttles() {
    let mut host = host(2);
    start(&mut host, Program::burner(1), "a");
    set(&mut host, "a", Setting::CpuMax(Limit::At(MilliCpu(500))));
    host.advance(Duration::from_secs(2));
    let usage = host.usage("a").expect("the group is there");
    assert_eq!(usage.cpu_throttled, Duration::from_secs(1));
}

#[test]
fn memory_is_held_at_the_limit_and_stalls() {
    let mut host = host(1);
    start(&mut host, Program::steady(0.1, 1, Bytes::mib(512)), "a");
    host.advance(Duration::from_secs(1));
    let usage = host.usage("a").expect("the group is there");
    assert_eq!(usage.memory_used, Bytes::mib(512));
    assert!(usage.memory_stalled.is_zero());
    let below_use = Setting::MemoryMax(Limit::At(Bytes::mib(100)));
    assert!(host.write("a", below_use).is_err());
    set(
        &mut host,
        "a",
        Setting::MemoryHigh(Limit::At(Bytes::mib(100))),
    );
    host.advance(Duration::from_secs(1));
    let usage = host.usage("a").expect("the group is there");
    assert_eq!(usage.memory_used, Bytes::mib(100));
    assert!(!usage.memory_stalled.is_zero());
}

#[test]
fn protected_memory_is_reclaimed_last() {
    let mut host = host(1);
    start(&mut host, Program::steady(0.1, 1, Bytes::mib(800)), "a");
    start(&mut host, Program::steady(0.1, 1, Bytes::mib(800)), "b");
    set(&mut host, "a", Setting::MemoryLow(Bytes::mib(800)));
    host.advance(Duration::from_secs(1));
    let used = |group| {
        let usage = host.usage(group).expect("the group is there");
        usage.memory_used
    };
    assert_eq!(used("a"), Bytes::mib(800));
    assert_eq!(used("b"), Bytes::mib(224));
}

#[test]
fn a_seed_gives_the_same_host() {
    let run = || {
        let mut host = host(4);
        host.set_faults(Faults::all(0.1));
        for group in ["a", "b", ""] {
            let program = Program {
                forks: 3.0,
                children_max: 5,
                crashes: 0.01,
                ..Program::burner(3)
            };
            start(&mut host, program, group);
        }
        host.advance(Duration::from_secs(60));
        format!("{host:?}")
    };
    assert_eq!(run(), run());
}

#[test]
fn an_ended_process_uses_nothing() {
    let mut host = host(1);
    let pid = start(&mut host, Program::burner(1), "a");
    host.advance(Duration::from_secs(1));
    assert!(host.end(pid, Ending::Status(0)));
    assert!(!host.end(pid, Ending::Status(0)));
    host.advance(Duration::from_secs(1));
    let usage = host.usage("a").expect("the group is there");
    assert_eq!(usage.cpu_used, Duration::from_secs(1));
    host.remove_group("a");
    assert_eq!(host.read("a", Knob::CpuWeight), None);
}
