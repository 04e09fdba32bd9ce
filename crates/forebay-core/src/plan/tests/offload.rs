//! What the plan shows the ladders, and what it makes of what they give.

use super::*;
use crate::offload::ladder::Skip;
use crate::offload::{Absence, Mode};

#[test]
fn an_app_is_measured_against_the_cpus_that_are_in_force() {
    let web: AppId = "web".parse().unwrap();
    let climb = |cpus: CpuSet, yielded| {
        let mut case = Case::new(server()).app("web", Class::Critical, 1.9);
        case.demands.get_mut(&web).unwrap().usage.cpu = Some(1.9);
        let cpus = Some(cpus);
        case.placed.insert(web.clone(), Placed { cpus, yielded });
        let (mut plan, mut memory) = (Plan::default(), Memory::default());
        for second in 0..5 {
            (plan, memory) = case.plan_at(second, &memory);
        }
        plan.offload.climbs.remove(&web)
    };
    let two = || [0, 1].into_iter().collect();
    // The plan gives it more, but that is not there yet.
    let constrained = climb(two(), false).unwrap();
    assert_eq!(constrained.constraints[0].whole, Some(2.0));
    assert!(constrained.could.is_some());
    assert_eq!(climb((0..8).collect(), false), None);
    // What somebody else writes is not made larger.
    let skipped = climb(two(), true).unwrap().skipped;
    let no_sets = Skip::Absent(Absence::NoCpuSets);
    assert!(
        skipped.iter().any(|(_, skip)| *skip == no_sets),
        "{skipped:?}"
    );
}

/// What a ladder holds for `web` that was given so many CPUs more.
fn widened(case: &mut Case, seconds: u64) -> Memory {
    let web: AppId = "web".parse().unwrap();
    case.policy.offload.mode = Mode::Act;
    case.demands.get_mut(&web).unwrap().usage.response_time = Some(900.0);
    case.demands.get_mut(&web).unwrap().usage.cpu = Some(1.0);
    let all = Some(own(&case.plan(), "web"));
    let placed = Placed {
        cpus: all,
        yielded: false,
    };
    case.placed.insert(web, placed);
    let mut memory = Memory::default();
    for second in 0..seconds {
        memory = case.plan_at(second, &memory).1;
    }
    memory
}

#[test]
fn what_is_beyond_a_forecast_makes_room_for_what_others_are_expected_to_need() {
    let mut case = Case::new(Shape {
        cores: 8,
        ..small()
    });
    case = case.app("web", Class::Critical, 1.2);
    case = case.app("db", Class::Critical, 1.0);
    case = case.app("burn", Class::Batch, 1.0);
    let memory = widened(&mut case, 5);
    let (plan, memory) = case.plan_at(5, &memory);
    assert_eq!((own(&plan, "web").len(), own(&plan, "db").len()), (3, 2));
    // Five of seven: 3.8 and the headroom.
    case.demand("db", 3.8);
    let (plan, _) = case.plan_at(6, &memory);
    assert_eq!((own(&plan, "web").len(), own(&plan, "db").len()), (2, 5));
    let web = &plan.reasons[&"web".parse().unwrap()];
    assert_eq!((web.cpu_extra, web.spills), (MilliCpu(0), false));
}

#[test]
fn one_that_keeps_more_than_it_needs_gets_more_than_it_keeps() {
    let mut case = Case::new(Shape {
        cores: 8,
        ..small()
    });
    case = case.app("web", Class::Critical, 3.0);
    case = case.app("burn", Class::Batch, 1.0);
    let (plan, before) = case.plan_at(0, &Memory::default());
    assert_eq!(own(&plan, "web").len(), 4);
    case.demand("web", 1.2);
    let mut memory = widened(&mut case, 0);
    memory.cpus = before.cpus;
    for second in 1..5 {
        memory = case.plan_at(second, &memory).1;
    }
    let (plan, memory) = case.plan_at(5, &memory);
    assert_eq!(own(&plan, "web").len(), 5);
    // More demand within what it keeps, or above it, makes no more of what is given beyond.
    for (demand, cpus) in [(2.9, 5), (3.2, 6)] {
        case.demand("web", demand);
        let (plan, _) = case.plan_at(6, &memory);
        assert_eq!(own(&plan, "web").len(), cpus, "{demand}");
        assert_eq!(
            plan.reasons[&"web".parse().unwrap()].cpu_extra,
            MilliCpu::cpus(1)
        );
    }
}

#[test]
fn a_core_that_was_cut_is_not_taken_back_once_more() {
    let mut case = Case::new(Shape {
        cores: 8,
        ..small()
    });
    case = case.app("web", Class::Critical, 3.0);
    case = case.app("db", Class::Critical, 1.0);
    case = case.app("burn", Class::Batch, 1.0);
    let before = case.plan_at(0, &Memory::default()).1;
    case.demand("web", 1.2);
    let mut memory = widened(&mut case, 0);
    memory.cpus = before.cpus;
    for second in 1..6 {
        memory = case.plan_at(second, &memory).1;
    }
    let (plan, _) = case.plan_at(6, &memory);
    assert_eq!((own(&plan, "web").len(), own(&plan, "db").len()), (5, 2));
    // Three of the seven that critical apps may have: the core beyond goes, and no other.
    case.demand("db", 2.2);
    let (plan, mut memory) = case.plan_at(6, &memory);
    assert_eq!((own(&plan, "web").len(), own(&plan, "db").len()), (4, 3));
    // The rung is taken back while the hold lasts.
    memory.offload = crate::offload::Memory::default();
    let (plan, _) = case.plan_at(7, &memory);
    assert_eq!((own(&plan, "web").len(), own(&plan, "db").len()), (4, 3));
}

#[test]
fn what_is_beyond_a_forecast_stays_within_the_ceiling() {
    let web: AppId = "web".parse().unwrap();
    let check = |ceiling, expected: [usize; 3]| {
        let mut case = Case::new(Shape {
            cores: 8,
            ..small()
        });
        case = case.app("web", Class::Critical, 2.3);
        case = case.app("burn", Class::Batch, 1.0);
        case.policy.apps.get_mut(&web).unwrap().ceiling.cpu = ceiling;
        let mut memory = widened(&mut case, 0);
        case.demands.get_mut(&web).unwrap().usage.cpu = Some(2.0);
        for second in 0..5 {
            memory = case.plan_at(second, &memory).1;
        }
        // Three and one; a rise; and a fall while what came with the rise is held.
        let got = [2.3, 3.3, 2.3].map(|demand| {
            case.demand("web", demand);
            let (plan, after) = case.plan_at(5, &memory);
            memory = after;
            own(&plan, "web").len()
        });
        assert_eq!(got, expected, "{ceiling:?}");
    };
    check(Limit::At(MilliCpu::cpus(4)), [4, 4, 4]);
    check(Limit::Max, [4, 6, 6]);
}

#[test]
fn page_cache_of_an_app_is_not_counted_as_had_and_as_available() {
    let web: AppId = "web".parse().unwrap();
    // It holds 3 GiB, 2 of them page cache that it works with, which the kernel counts among the
    // 4 GiB that are available: 5 are there for it, and not 7.
    let whole = |stat: Option<MemoryStat>| {
        let mut case = Case::new(server()).app("web", Class::Critical, 0.2);
        case.policy.offload.memory_percent = 1;
        case.host.available = Some(Bytes::mib(4096));
        let now = &mut case.demands.get_mut(&web).unwrap().memory_now;
        now.used = Some(Bytes::mib(3072));
        now.stat = stat;
        let (mut plan, mut memory) = (Plan::default(), Memory::default());
        for second in 0..5 {
            (plan, memory) = case.plan_at(second, &memory);
        }
        let climb = plan.offload.climbs.remove(&web)?;
        climb
            .constraints
            .iter()
            .find_map(|constraint| constraint.whole)
    };
    let stat = MemoryStat {
        active_anon: Bytes::mib(1024),
        active_file: Bytes::mib(2048),
        ..MemoryStat::default()
    };
    assert_eq!(whole(Some(stat)), Some(Bytes::mib(5120).as_f64()));
    // What it consists of is not known: nor is what it may have.
    assert_eq!(whole(None), None);
}
