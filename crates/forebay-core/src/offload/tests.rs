//! Who is served, and by what.

mod accelerate;
mod fleet;

use super::trigger::Sign;
use super::*;
use crate::app::{Binding, Device, Match};
use crate::demand::{Band, MemoryNow, Usage};
use crate::io::IoRates;
use crate::io_history::{DeviceUse, IoDemand, IoUse};
use crate::snapshot::Compaction;

/// One app and what it does.
struct Case {
    app: App,
    demand: Demand,
    cpus: f64,
    cold: Cold,
    divisible: Option<u32>,
}

fn band(value: f64) -> Band {
    Band {
        q50: value,
        q90: value,
        q95: value,
        q99: value,
        model: "test".to_owned(),
        cold: false,
    }
}

impl Case {
    /// One that uses so many of its two CPUs, and is expected to go on so.
    fn new(name: &str, class: Class, cpu: f64) -> Self {
        let binding = Binding::Match(Match {
            executable: Some(name.to_owned()),
            command_line: None,
        });
        Self {
            app: App::new(name.parse().unwrap(), class, binding),
            demand: Demand {
                cpu: Band {
                    cold: true,
                    ..band(cpu)
                },
                memory: band(1e8),
                cpu_stalled: 0.0,
                io_use: IoUse::default(),
                io: BTreeMap::new(),
                memory_now: MemoryNow {
                    used: Some(Bytes(100_000_000)),
                    ..MemoryNow::default()
                },
                usage: Usage {
                    cpu: Some(cpu),
                    ..Usage::default()
                },
                response_time: None,
            },
            cpus: 2.0,
            cold: Cold::default(),
            divisible: None,
        }
    }

    fn seen(&self) -> Seen<'_> {
        Seen {
            app: &self.app,
            demand: &self.demand,
            cpus: self.cpus,
            cpu_sets: true,
            memory: Some(Bytes::mib(1024)),
            memory_bound: MemoryBound::Host,
            cold: self.cold,
            divisible: self.divisible,
            errors: self.demand.usage.errors,
        }
    }
}

fn at(ms: u64) -> Time {
    Time {
        monotonic: Duration::from_millis(ms),
        unix_ms: 0,
    }
}

fn acting() -> Rules {
    Rules {
        mode: Mode::Act,
        persistence: Duration::from_secs(1),
        ..Rules::default()
    }
}

/// A host with so many CPUs left.
fn means(spare_cpus: usize) -> Means<'static> {
    Means {
        spare_cpus,
        core: 1,
        reclaim: true,
        ..Means::default()
    }
}

/// The periods of 100 ms of a host on which all goes on like this.
fn run(
    cases: &[Case],
    rules: &Rules,
    memory: &mut Memory,
    from_ms: u64,
    periods: u64,
    spare_cpus: usize,
) -> Vec<Decision> {
    let mut decisions = Vec::new();
    for period in 0..periods {
        let time = at(from_ms + period * 100);
        let view = View {
            time,
            rules,
            horizon: Duration::from_secs(1),
            apps: cases.iter().map(Case::seen).collect(),
            means: means(spare_cpus),
        };
        let (decision, after) = decide(&view, memory);
        *memory = after;
        decisions.push(decision);
    }
    decisions
}

fn steps(decisions: &[Decision]) -> Vec<(usize, String, Rung)> {
    let numbered = decisions.iter().enumerate();
    numbered
        .flat_map(|(period, decision)| {
            let steps = decision.steps.iter();
            steps.map(move |step| (period, step.app.to_string(), step.rung))
        })
        .collect()
}

#[test]
fn the_first_step_is_taken_in_the_period_in_which_the_constraint_is_raised() {
    let cases = [Case::new("web", Class::Critical, 1.9)];
    let mut memory = Memory::default();
    let decisions = run(&cases, &acting(), &mut memory, 0, 30, 4);
    assert_eq!(
        steps(&decisions),
        [(10, "web".to_owned(), Rung::WidenSlice)]
    );
    assert!(decisions[9].climbs.is_empty());
    let climb = &decisions[10].climbs[&cases[0].app.id];
    assert_eq!(climb.constraints[0].watched.sign, Sign::CpuUse);
    assert_eq!(
        climb.sentences(),
        [
            "It is constrained: it uses 1.90 CPU, more than 80% of the 2.00 of its slice, for \
             1.0 s; what it lacks is processor time.",
            "Not taken: place its threads one by one: the kernel balances threads over its slice, \
             and pinning them did not pay.",
            "In force for it: give it more CPUs (1.00 CPU), its effect is being measured.",
        ]
    );
    assert_eq!(memory.extra_cpu(&cases[0].app.id), MilliCpu::cpus(1));
}

#[test]
fn one_that_only_watches_says_what_could_be_done_and_does_nothing() {
    let watching = Rules {
        mode: Mode::Watch,
        ..acting()
    };
    let cases = [Case::new("web", Class::Critical, 1.9)];
    let mut memory = Memory::default();
    let decisions = run(&cases, &watching, &mut memory, 0, 100, 4);
    assert_eq!(steps(&decisions), []);
    let climb = &decisions[99].climbs[&cases[0].app.id];
    let more = Effect::Widen(MilliCpu::cpus(1));
    assert_eq!(climb.could, Some((Rung::WidenSlice, more)));
    assert_eq!(memory.extra_cpu(&cases[0].app.id), MilliCpu(0));

    let off = Rules {
        mode: Mode::Off,
        ..acting()
    };
    let decisions = run(&cases, &off, &mut memory, 10_000, 100, 4);
    assert!(decisions.iter().all(|of| *of == Decision::default()));
    assert_eq!(memory, Memory::default());
}

/// What was decided in a period in which nothing is done was told as if it were in force and measured.
#[test]
fn while_paused_nothing_is_told_to_be_in_force_or_measured_that_is_not() {
    let cases = [Case::new("web", Class::Critical, 1.9)];
    let mut before = Memory::default();
    run(&cases, &acting(), &mut before, 0, 10, 4);
    let paused = |before: &Memory, at_ms| {
        let mut decision = run(&cases, &acting(), &mut before.clone(), at_ms, 1, 4).remove(0);
        let steps = decision.steps.len();
        decision.pause(before);
        assert_eq!(decision.steps, []);
        (steps, decision.climbs.remove(&cases[0].app.id).unwrap())
    };
    // It would be taken now.
    let (steps, climb) = paused(&before, 1000);
    assert_eq!((steps, climb.settling, climb.in_force.len()), (1, None, 0));
    let said = climb.sentences();
    assert_eq!(
        said.last().unwrap(),
        "It could be tried to give it more CPUs (1.00 CPU); nothing is tried while Forebay is paused."
    );
    assert!(!said.join(" ").contains("In force"), "{said:?}");

    // It was taken, and Forebay paused before it was measured: also where its time is over meanwhile.
    run(&cases, &acting(), &mut before, 1000, 2, 4);
    for at_ms in [1200, 60_000] {
        let (_, climb) = paused(&before, at_ms);
        assert_eq!((climb.settling, climb.tried.len()), (None, 0), "{at_ms}");
        let said = climb.sentences();
        let in_force = "In force for it: give it more CPUs (1.00 CPU).".to_owned();
        assert!(said.contains(&in_force), "{at_ms}: {said:?}");
    }
}

#[test]
fn nothing_is_taken_against_what_is_not_known_at_the_moment() {
    let mut cases = [Case::new("web", Class::Critical, 1.9)];
    let mut memory = Memory::default();
    // Raised, and there is nothing yet that could be given.
    assert_eq!(steps(&run(&cases, &acting(), &mut memory, 0, 20, 0)), []);
    cases[0].demand.usage.cpu = None;
    let decisions = run(&cases, &acting(), &mut memory, 2000, 20, 4);
    assert!(
        !decisions[19].climbs[&cases[0].app.id]
            .constraints
            .is_empty()
    );
    assert_eq!(steps(&decisions), []);
    cases[0].demand.usage.cpu = Some(1.9);
    let decisions = run(&cases, &acting(), &mut memory, 4000, 1, 4);
    assert_eq!(steps(&decisions), [(0, "web".to_owned(), Rung::WidenSlice)]);
}

#[test]
fn what_the_host_cannot_do_is_named() {
    let cases = [
        Case::new("web", Class::Critical, 1.9),
        Case::new("job", Class::Standard, 1.9),
    ];
    let mut memory = Memory::default();
    let decisions = run(&cases, &acting(), &mut memory, 0, 30, 0);
    assert_eq!(steps(&decisions), []);
    let skipped = |name: &str| {
        let climb = &decisions[29].climbs[&name.parse().unwrap()];
        let skipped = climb.skipped.iter().map(|(_, skip)| skip.clone());
        skipped.collect::<Vec<_>>()
    };
    let absent = |what: [Absence; 4]| what.map(Skip::Absent).to_vec();
    assert_eq!(
        skipped("web"),
        absent([
            Absence::ThreadsNotPlaced,
            Absence::NoCpuLeft,
            Absence::NoFleet,
            Absence::NoAccelerator
        ])
    );
    assert_eq!(
        skipped("job"),
        absent([
            Absence::ThreadsNotPlaced,
            Absence::SharesCpus,
            Absence::NoFleet,
            Absence::NoAccelerator
        ])
    );
}

#[test]
fn the_worst_of_the_most_important_class_is_served_first() {
    let check = |mut cases: Vec<Case>, spare, expected: &[&str]| {
        // Whatever the order in which they are looked at.
        for _ in 0..cases.len() {
            cases.rotate_left(1);
            let decisions = run(&cases, &acting(), &mut Memory::default(), 0, 11, spare);
            let served: Vec<String> = steps(&decisions).into_iter().map(|step| step.1).collect();
            assert_eq!(served, expected, "{spare} CPUs left");
        }
    };
    let critical = |name, cpu| Case::new(name, Class::Critical, cpu);
    let three = || vec![critical("a", 1.7), critical("b", 1.99), critical("c", 1.8)];
    check(three(), 1, &["b"]);
    check(three(), 2, &["b", "c"]);
    check(three(), 9, &["b", "c", "a"]);
    // A standard app has no CPUs of its own, and is not in the way.
    let mut with_standard = three();
    with_standard.push(Case::new("s", Class::Standard, 2.0));
    check(with_standard, 1, &["b"]);
}

#[test]
fn slow_answers_are_blamed_on_what_is_nearest_to_its_limit() {
    let check = |cpu: f64, stalled: Option<f64>, expected| {
        let mut case = Case::new("web", Class::Critical, cpu);
        case.demand.usage.response_time = Some(900.0);
        case.demand.memory_now.stalled = stalled;
        let decisions = run(&[case], &acting(), &mut Memory::default(), 0, 11, 0);
        let climb = &decisions[10].climbs.values().next().unwrap();
        let of_answers = climb.constraints.iter();
        let mut of_answers = of_answers.filter(|of| of.watched.sign == Sign::ResponseTime);
        assert_eq!(of_answers.next().unwrap().bottleneck, expected, "{cpu}");
    };
    check(1.2, None, Some(Bottleneck::Cpu));
    check(1.2, Some(0.09), Some(Bottleneck::Memory));
    check(0.1, Some(0.01), None);
}

#[test]
fn an_app_says_itself_how_long_its_answers_may_take() {
    let raised = |ms: f64, most: Option<u64>| {
        let mut case = Case::new("web", Class::Standard, 1.0);
        case.app.response_time_max = most.map(Duration::from_millis);
        case.demand.usage.response_time = Some(ms);
        let decisions = run(&[case], &acting(), &mut Memory::default(), 0, 11, 0);
        !decisions[10].climbs.is_empty()
    };
    assert!(raised(501.0, None));
    assert!(!raised(499.0, None));
    assert!(raised(51.0, Some(50)));
    assert!(!raised(800.0, Some(1000)));
}

#[test]
fn what_is_forecast_counts_with_the_chance_asked_for() {
    let raised = |chance_percent| {
        let mut case = Case::new("web", Class::Critical, 0.5);
        case.demand.cpu = Band {
            q50: 0.5,
            q90: 1.7,
            q95: 1.8,
            q99: 1.9,
            model: "ets".to_owned(),
            cold: false,
        };
        let rules = Rules {
            chance_percent,
            ..acting()
        };
        let decisions = run(&[case], &rules, &mut Memory::default(), 0, 11, 4);
        let climb = decisions[10].climbs.values().next().cloned();
        climb.map(|climb| climb.constraints[0].to_string())
    };
    assert_eq!(raised(50), None);
    assert_eq!(
        raised(10).unwrap(),
        "it is expected to use 1.70 CPU, more than 80% of the 2.00 of its slice, within 1 s and \
         with a chance of 13% (`ets`), for 1.0 s"
    );
}

#[test]
fn batch_that_takes_all_there_is_is_not_constrained() {
    let mut case = Case::new("burn", Class::Batch, 2.0);
    case.demand.usage.cpu_stalled = Some(0.9);
    case.demand.cpu_stalled = 0.9;
    case.demand.cpu.cold = false;
    case.demand.memory_now.used = Some(Bytes::mib(1020));
    case.demand.memory_now.stalled = Some(0.9);
    case.demand.memory = band(Bytes::mib(1020).as_f64());
    case.demand.io_use.stalled = Some(0.9);
    let disk = Device { major: 8, minor: 0 };
    let used = DeviceUse {
        rates: IoRates::default(),
        share: Some(1.0),
    };
    case.demand.io_use.devices.insert(disk, used);
    let expected = IoDemand { share: band(1.0) };
    case.demand.io.insert(disk, expected);
    let constraints = |case: Case| {
        let decisions = run(&[case], &acting(), &mut Memory::default(), 0, 30, 4);
        let mut climbs = decisions.into_iter().flat_map(|decision| decision.climbs);
        climbs
            .next()
            .map_or(0, |(_, climb)| climb.constraints.len())
    };
    let mut standard = Case::new("job", Class::Standard, 2.0);
    standard.demand = case.demand.clone();
    assert_eq!(constraints(case), 0);
    // Of anybody else, each of these would be one.
    assert_eq!(constraints(standard), 9);
}

#[test]
fn memory_is_asked_of_batch_and_of_nobody_twice() {
    let mut cases = [
        Case::new("a", Class::Critical, 0.1),
        Case::new("b", Class::Critical, 0.1),
    ];
    for case in &mut cases {
        case.demand.memory_now.stalled = Some(0.2);
    }
    let rules = acting();
    let mut memory = Memory::default();
    let mut asked = Vec::new();
    for period in 0..20 {
        let time = at(period * 100);
        let burn: AppId = "burn".parse().unwrap();
        let view = View {
            time,
            rules: &rules,
            horizon: Duration::from_secs(1),
            apps: cases.iter().map(Case::seen).collect(),
            means: Means {
                cold_batch: [(burn, page_cache(300))].into(),
                ..means(0)
            },
        };
        let (decision, after) = decide(&view, &memory);
        memory = after;
        let asks = decision.asks().map(|(app, bytes)| (app.to_string(), bytes));
        asked.push(asks.collect::<Vec<_>>());
    }
    // Both are constrained from the same period on. In that it is asked for the first; the second
    // finds nobody, and comes later, when the first was answered.
    let first = asked.iter().find(|asks| !asks.is_empty()).unwrap();
    assert_eq!(*first, [("burn".to_owned(), Bytes::mib(256))]);
}

/// Page cache that nobody uses.
fn page_cache(mib: u64) -> Cold {
    Cold {
        file: Bytes::mib(mib),
        anon: Bytes(0),
        most: Bytes::mib(mib),
    }
}

/// Anonymous memory that nobody uses.
fn untouched(mib: u64) -> Cold {
    Cold {
        file: Bytes(0),
        anon: Bytes::mib(mib),
        most: Bytes::mib(mib),
    }
}

/// What is asked for in the period in which critical apps that lack memory, each with so much of its
/// own that is cold, are found constrained.
fn asked_for(
    own: Cold,
    count: usize,
    batch: &[(&str, Cold)],
    swap_mib: u64,
) -> (Vec<String>, Memory) {
    let cases: Vec<Case> = (0..count)
        .map(|number| {
            let mut case = Case::new(&format!("app{number}"), Class::Critical, 0.1);
            case.demand.memory_now.stalled = Some(0.2);
            case.cold = own;
            case
        })
        .collect();
    let rules = acting();
    let batch = batch
        .iter()
        .map(|(name, cold)| (name.parse().unwrap(), *cold));
    let cold_batch: BTreeMap<AppId, Cold> = batch.collect();
    let mut memory = Memory::default();
    let mut asked = Vec::new();
    for period in 0..=10 {
        let time = at(period * 100);
        let view = View {
            time,
            rules: &rules,
            horizon: Duration::from_secs(1),
            apps: cases.iter().map(Case::seen).collect(),
            means: Means {
                cold_batch: cold_batch.clone(),
                swap: Bytes::mib(swap_mib),
                ..means(0)
            },
        };
        let (decision, after) = decide(&view, &memory);
        memory = after;
        let asks = decision.asks().map(|(app, bytes)| format!("{app} {bytes}"));
        asked = asks.collect();
    }
    (asked, memory)
}

#[test]
fn free_swap_is_promised_once() {
    let check = |own, count, batch: &[(&str, Cold)], swap_mib, expected: &[&str]| {
        let (asked, _) = asked_for(own, count, batch, swap_mib);
        assert_eq!(asked, expected, "{swap_mib} MiB of swap");
    };
    // Three apps that would each swap 100 MiB of their own.
    let all = ["app0 100.0 MiB", "app1 100.0 MiB", "app2 100.0 MiB"];
    check(untouched(100), 3, &[], 300, &all);
    check(
        untouched(100),
        3,
        &[],
        150,
        &["app0 100.0 MiB", "app1 50.0 MiB"],
    );
    check(untouched(100), 3, &[], 0, &[]);
    check(page_cache(100), 3, &[], 0, &all);
    // Of batch, within one rung as well.
    let two = [("burn", untouched(100)), ("crunch", untouched(100))];
    check(
        untouched(100),
        2,
        &two,
        150,
        &["burn 100.0 MiB", "crunch 50.0 MiB"],
    );
    // The kernel may swap before it drops page cache.
    let mixed = Cold {
        file: Bytes::mib(100),
        anon: Bytes::mib(100),
        most: Bytes::mib(100),
    };
    check(mixed, 2, &[], 100, &["app0 100.0 MiB", "app1 100.0 MiB"]);
    check(
        untouched(100),
        1,
        &[("burn", mixed)],
        100,
        &["burn 100.0 MiB"],
    );
}

#[test]
fn one_that_cannot_be_asked_leaves_the_others_asked() {
    let two = [("burn", page_cache(100)), ("crunch", page_cache(100))];
    let (_, mut memory) = asked_for(Cold::default(), 1, &two, 0);
    let app: AppId = "app0".parse().unwrap();
    let settles = |memory: &Memory| {
        let effects = memory.apps[&app].ascent.in_force();
        let effects = effects.map(|(_, effect)| effect.to_string());
        effects.collect::<Vec<_>>()
    };
    let burn = "burn".parse().unwrap();
    // What is refused in another period was not asked for by this rung.
    memory.refused_memory(at(900), &burn);
    let both = " (100.0 MiB of burn, 100.0 MiB of crunch)";
    assert_eq!(settles(&memory), [both]);
    memory.refused_memory(at(1000), &burn);
    assert_eq!(settles(&memory), [" (100.0 MiB of crunch)"]);
    memory.refused_memory(at(1000), &"nobody".parse().unwrap());
    assert_eq!(settles(&memory), [" (100.0 MiB of crunch)"]);
    memory.refused_memory(at(1000), &"crunch".parse().unwrap());
    assert_eq!(memory.apps[&app].ascent.settling(), None, "nobody is left");
}

#[test]
fn scattered_free_memory_is_compacted_once_for_all() {
    let compacted = |scattered, running, can| {
        let mut cases = [
            Case::new("a", Class::Critical, 0.1),
            Case::new("b", Class::Critical, 0.1),
        ];
        for case in &mut cases {
            case.demand.memory_now.stalled = Some(0.3);
        }
        let compaction = Compaction {
            scattered,
            number: 0,
            running,
        };
        let rules = acting();
        let mut memory = Memory::default();
        let mut decision = Decision::default();
        for period in 0..=10 {
            let time = at(period * 100);
            let view = View {
                time,
                rules: &rules,
                horizon: Duration::from_secs(1),
                apps: cases.iter().map(Case::seen).collect(),
                means: Means {
                    compaction: Some(compaction).filter(|_| can),
                    ..means(0)
                },
            };
            (decision, memory) = decide(&view, &memory);
        }
        let why = decision.climbs[&cases[1].app.id].skipped[0].clone();
        let taken = decision.steps.iter().map(|step| step.app.to_string());
        let taken = taken.collect::<Vec<_>>();
        assert_eq!(decision.compacts(), !taken.is_empty());
        // Whoever counts on it hears when it was not asked for.
        memory.refused_compaction(at(1000));
        let settling = memory
            .apps
            .values()
            .filter_map(|held| held.ascent.settling());
        assert_eq!(settling.count(), 0);
        (taken, why)
    };
    let absent = |why| (Rung::Compact, Skip::Absent(why));
    let one = vec!["a".to_owned()];
    assert_eq!(
        compacted(500, false, true),
        (one, absent(Absence::Compacting))
    );
    let none = Vec::new();
    assert_eq!(
        compacted(499, false, true),
        (none.clone(), absent(Absence::NotScattered))
    );
    assert_eq!(
        compacted(900, true, true),
        (none.clone(), absent(Absence::Compacting))
    );
    assert_eq!(
        compacted(900, false, false),
        (none, absent(Absence::NoCompaction))
    );
}

#[test]
fn files_move_although_it_waits_where_that_is_tried() {
    let mut case = Case::new("web", Class::Critical, 0.1);
    case.demand.io_use.stalled = Some(0.5);
    let cases = [case];
    let run = |tiered| {
        let rules = acting();
        let mut memory = Memory::default();
        let mut told = Vec::new();
        for period in 0..400 {
            let time = at(period * 100);
            // It helps by half, and then it is tried no more.
            let mut helped = cases[0].demand.clone();
            helped.io_use.stalled = Some(0.35);
            let mut view = View {
                time,
                rules: &rules,
                horizon: Duration::from_secs(1),
                apps: cases.iter().map(Case::seen).collect(),
                means: Means { tiered, ..means(0) },
            };
            if period > 10 {
                view.apps[0].demand = &helped;
            }
            let (decision, after) = decide(&view, &memory);
            memory = after;
            for step in &decision.steps {
                told.push((period, step.rung, step.turn));
            }
            let climb = decision.climbs.get(&cases[0].app.id);
            let moves = climb.is_some_and(Climb::moves_files);
            assert_eq!(moves, tiered && period >= 10, "{period}");
            if let Some(climb) = climb.filter(|_| period == 399) {
                let absent = if tiered {
                    Absence::FilesMove
                } else {
                    Absence::NoTier
                };
                let expected = (Rung::PromoteTier, Skip::Absent(absent));
                assert!(climb.skipped.contains(&expected), "{:?}", climb.skipped);
            }
        }
        told
    };
    assert_eq!(run(true), [(10, Rung::PromoteTier, Direction::Take)]);
    assert_eq!(run(false), []);
}

#[test]
fn files_move_for_critical_apps_alone_since_they_wait_for_no_other() {
    for class in [Class::Critical, Class::Standard, Class::Batch] {
        let mut case = Case::new("web", class, 0.1);
        case.demand.io_use.stalled = Some(0.5);
        let means = Means {
            tiered: true,
            ..means(0)
        };
        let offer = means.offer(&case.seen(), Rung::PromoteTier, 2.0);
        let expected = match class {
            Class::Critical => None,
            _ => Some(Absence::MovesDoNotWait),
        };
        assert_eq!(offer.err(), expected, "{class:?}");
    }
}

#[test]
fn errors_among_answers_are_a_constraint() {
    let mut case = Case::new("web", Class::Standard, 1.9);
    case.demand.usage.errors = Some(0.02);
    let decisions = run(&[case], &acting(), &mut Memory::default(), 0, 11, 0);
    let climb = decisions[10].climbs.values().next().unwrap();
    let errors = climb
        .constraints
        .iter()
        .find(|of| of.watched.sign == Sign::Errors);
    let errors = errors.unwrap();
    assert_eq!(
        errors.to_string(),
        "it has 2.0% of errors among its answers, more than 1.0%, for 1.0 s"
    );
    assert_eq!(errors.bottleneck, Some(Bottleneck::Cpu));
}

#[test]
fn who_left_is_forgotten_with_what_was_taken() {
    let cases = [Case::new("web", Class::Critical, 1.9)];
    let mut memory = Memory::default();
    run(&cases, &acting(), &mut memory, 0, 20, 4);
    assert_eq!(memory.extra_cpu(&cases[0].app.id), MilliCpu::cpus(1));
    run(&[], &acting(), &mut memory, 2000, 1, 4);
    assert_eq!(memory.extra_cpu(&cases[0].app.id), MilliCpu(0));
    assert!(memory.apps.is_empty());
}

#[test]
fn nothing_is_remembered_of_those_who_are_well() {
    let cases = [Case::new("web", Class::Critical, 0.5)];
    let mut memory = Memory::default();
    run(&cases, &acting(), &mut memory, 0, 100, 4);
    assert_eq!(memory, Memory::default());
}
