//! Who leaves, when, and where to.

use super::*;

const STEP: Duration = Duration::from_secs(10);

struct App {
    id: AppId,
    class: Class,
    uses: Use,
    need: Need,
    memory: Bytes,
    homes: Homes,
    leaves: bool,
}

fn app(name: &str, class: Class, now: f64, most: f64, mib: u64) -> App {
    App {
        id: name.parse().unwrap(),
        class,
        uses: Use {
            cpus: now,
            waits: false,
        },
        need: Need {
            expected: most,
            most,
        },
        memory: Bytes::mib(mib),
        homes: Homes::default(),
        leaves: false,
    }
}

fn residents(apps: &[App]) -> Vec<Resident<'_>> {
    let each = |app: &'_ App| Resident {
        app: Box::leak(Box::new(app.id.clone())),
        class: app.class,
        uses: app.uses,
        need: app.need,
        memory: app.memory,
        movable: true,
        leaves: app.leaves,
        homes: Box::leak(Box::new(app.homes.clone())),
    };
    apps.iter().map(each).collect()
}

/// What leaves a host of 8 CPUs that looks so for ten minutes, and when.
fn check(rules: &Rules, apps: &[App]) -> Option<(u32, String)> {
    let mut memory = Memory::default();
    (0..60).find_map(|step| {
        let now = Duration::from_secs(10_000) + STEP * step;
        let capacity = MilliCpu::cpus(8);
        let shed = decide(
            rules,
            now,
            capacity,
            &residents(apps),
            &mut memory,
            &mut |_| true,
        )?;
        Some((step, shed.app.to_string()))
    })
}

#[test]
fn what_is_enough_and_costs_least_leaves() {
    let rules = Rules::default();
    let apps = [
        app("big", Class::Standard, 5.0, 5.0, 4096),
        app("enough", Class::Standard, 2.0, 2.0, 1024),
        app("small", Class::Standard, 1.0, 1.0, 100),
        app("critical", Class::Critical, 2.0, 2.0, 600),
        app("batch", Class::Batch, 6.0, 6.0, 10),
    ];
    // 10 are wanted of 8, and 7.2 are the limit: 2.8 are too much.
    assert_eq!(check(&rules, &apps), Some((1, "big".into())));
    // Of 8.5, 1.3 are: two would do, and the critical one counts twice.
    let lighter = [
        app("big", Class::Standard, 3.5, 3.5, 4096),
        app("enough", Class::Standard, 2.0, 2.0, 1024),
        app("small", Class::Standard, 1.0, 1.0, 100),
        app("critical", Class::Critical, 2.0, 2.0, 600),
    ];
    assert_eq!(check(&rules, &lighter), Some((1, "enough".into())));
}

#[test]
fn one_that_nobody_takes_is_passed_over_for_the_next() {
    let rules = Rules::default();
    let apps = [
        app("big", Class::Standard, 3.5, 3.5, 4096),
        app("enough", Class::Standard, 2.0, 2.0, 1024),
        app("small", Class::Standard, 1.0, 1.0, 100),
        app("critical", Class::Critical, 2.0, 2.0, 600),
    ];
    let leaves = |refused: &[&str]| {
        let mut memory = Memory::default();
        let mut asked = Vec::new();
        let shed = (0..2).find_map(|step| {
            let now = Duration::from_secs(10_000) + STEP * step;
            let may_be_taken = &mut |app: &AppId| {
                asked.push(app.to_string());
                !refused.contains(&app.as_str())
            };
            let capacity = MilliCpu::cpus(8);
            let residents = residents(&apps);
            decide(&rules, now, capacity, &residents, &mut memory, may_be_taken)
        });
        (shed.map(|shed| shed.app.to_string()), asked)
    };
    let check = |refused: &[&str], wanted: Option<&str>, asked: &[&str]| {
        let (shed, was_asked) = leaves(refused);
        assert_eq!(shed.as_deref(), wanted, "{refused:?}");
        assert_eq!(was_asked, asked, "{refused:?}");
    };
    check(&[], Some("enough"), &["enough"]);
    check(&["enough"], Some("critical"), &["enough", "critical"]);
    check(
        &["enough", "critical"],
        Some("big"),
        &["enough", "critical", "big"],
    );
    // What is not enough is better than nothing.
    let three = ["enough", "critical", "big"];
    let all = ["enough", "critical", "big", "small"];
    check(&three, Some("small"), &all);
    check(&all, None, &all);
}

#[test]
fn a_foreseen_shortage_counts_only_where_it_is_looked_ahead() {
    let apps = [
        app("a", Class::Standard, 3.0, 6.0, 100),
        app("b", Class::Standard, 3.0, 4.0, 100),
    ];
    let ahead = Rules::default();
    assert_eq!(check(&ahead, &apps), Some((6, "a".into())));
    let present = Rules {
        look: Look::Present,
        ..ahead
    };
    assert_eq!(check(&present, &apps), None);
}

#[test]
fn who_waits_shows_a_shortage_however_little_is_used() {
    let mut apps = [
        app("a", Class::Standard, 3.0, 3.0, 100),
        app("b", Class::Standard, 4.5, 4.5, 200),
    ];
    assert_eq!(check(&Rules::default(), &apps), None);
    // 7.5 of 8 are used, and what waits is taken to want a quarter more: 1.4 are too much.
    apps[1].uses.waits = true;
    assert_eq!(check(&Rules::default(), &apps), Some((1, "a".into())));
}

#[test]
fn a_limit_below_all_there_is_counts_for_what_is_used_now() {
    let apps = [
        app("a", Class::Standard, 3.0, 3.0, 100),
        app("b", Class::Standard, 4.0, 4.0, 200),
    ];
    let present = Rules {
        look: Look::Present,
        ..Rules::default()
    };
    assert_eq!(check(&present, &apps), None);
    let early = Rules {
        short_percent: 80,
        clear_percent: 70,
        ..present
    };
    assert_eq!(check(&early, &apps), Some((1, "a".into())));
}

#[test]
fn one_whose_leaving_changes_nothing_stays() {
    let mut bound = app("busy", Class::Standard, 9.0, 9.0, 100);
    bound.homes = Homes::arrived(
        Duration::from_secs(9_990),
        &[],
        "elsewhere".parse().unwrap(),
    );
    let idle = app("idle", Class::Standard, 0.0, 0.0, 100);
    // The busy one came ten seconds ago and rests for a quarter of an hour; ten minutes are looked at.
    assert_eq!(check(&Rules::default(), &[bound, idle]), None);
}

#[test]
fn what_is_foreseen_leaves_room_for_what_is_there() {
    let rules = Rules::default();
    let at = |s: u64| Duration::from_secs(10_000 + s);
    let soon = [
        app("a", Class::Standard, 3.0, 6.0, 100),
        app("b", Class::Standard, 3.0, 4.0, 200),
    ];
    let mut waits = [
        app("a", Class::Standard, 4.0, 6.0, 100),
        app("b", Class::Standard, 4.0, 4.0, 200),
    ];
    waits[0].uses.waits = true;
    let cause = |memory: &mut Memory, apps: &[App], from: u64| {
        let looks = (0..8).map(|step| at(from + 10 * step));
        looks.into_iter().find_map(|now| {
            let shed = decide(
                &rules,
                now,
                MilliCpu::cpus(8),
                &residents(apps),
                memory,
                &mut |_| true,
            )?;
            Some((shed.app, shed.why.cause()))
        })
    };
    let mut memory = Memory::default();
    let (app, _) = cause(&mut memory, &soon, 0).unwrap();
    memory.found_none(&rules, at(70), (&app, Cause::Foreseen));
    // The next look is a few seconds later, within pause and bar.
    let found = cause(&mut memory, &waits, 72);
    assert_eq!(found, Some((app.clone(), Cause::Short)));
    memory.found_none(&rules, at(82), (&app, Cause::Short));
    let now = at(86);
    let none = decide(
        &rules,
        now,
        MilliCpu::cpus(8),
        &residents(&waits),
        &mut memory,
        &mut |_| true,
    );
    assert_eq!(none, None, "a shortage's own pause holds");
    // Moves by forecast use their part of the budget up, and no more.
    let mut memory = Memory::default();
    for _ in 0..rules.ahead_per_hour {
        memory.began(at(0), Cause::Foreseen);
    }
    assert_eq!(cause(&mut memory, &soon, 100), None);
    let found = cause(&mut memory, &waits, 200);
    assert_eq!(found.map(|(_, cause)| cause), Some(Cause::Short));
}

#[test]
fn only_who_lacks_something_goes_where_room_is_short_lived() {
    let rules = Rules::default();
    let room = |cpus| Room {
        cpu: MilliCpu::cpus(cpus),
        memory: Bytes::mib(100),
    };
    let offer = |needed, used| Offer {
        capacity: Room {
            memory: Bytes::mib(4096),
            ..room(8)
        },
        needed: BTreeMap::from([(Class::Standard, room(needed))]),
        used: Some(BTreeMap::from([(Class::Standard, room(used))])),
        promised: BTreeMap::new(),
        apps: BTreeSet::new(),
        cordoned: false,
        unfit: None,
        takes: None,
    };
    let host = |name: &str| name.parse::<HostName>().unwrap();
    let here = host("here");
    let offers = BTreeMap::from([(here.clone(), offer(9, 8)), (host("there"), offer(8, 3))]);
    let to = |why| {
        let shed = Shed {
            app: "web".parse().unwrap(),
            class: Class::Standard,
            need: room(3),
            now: room(2),
            why,
        };
        let homes = Homes::default();
        target(&rules, Duration::ZERO, &shed, (&here, &homes), &offers)
    };
    let foreseen = Why::Foreseen {
        needed: 9.0,
        capacity: 8.0,
    };
    assert_eq!(to(foreseen), None);
    let short = Why::Short {
        wanted: 9.0,
        capacity: 8.0,
    };
    assert_eq!(to(short), Some((host("there"), Look::Present)));
}

#[test]
fn batch_makes_way_and_does_not_leave() {
    let apps = [
        app("a", Class::Standard, 6.0, 6.0, 100),
        app("b", Class::Batch, 6.0, 6.0, 1),
    ];
    assert_eq!(check(&Rules::default(), &apps), None);
}

#[test]
fn homes_travel_as_ages_and_are_held_for_an_hour() {
    let rules = Rules::default();
    let host = |name: &str| name.parse::<HostName>().unwrap();
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let homes = Homes::arrived(minutes(1000), &[], host("a"));
    let ages = homes.ages(minutes(1040));
    assert_eq!(ages, [(host("a"), minutes(40))]);
    // The clock of the next host shows something else.
    let homes = Homes::arrived(minutes(100), &ages, host("b"));
    let held = |now| {
        homes
            .held(&rules, minutes(now))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(held(110), [host("a"), host("b")]);
    assert_eq!(held(125), [host("b")]);
    assert!(homes.rests(&rules, minutes(110)) && !homes.rests(&rules, minutes(115)));
    let mut many = homes.clone();
    for n in 0..20 {
        many = Homes::arrived(
            minutes(100),
            &many.ages(minutes(100)),
            host(&format!("h{n}")),
        );
    }
    assert_eq!(many.0.len(), HOMES_MAX);
}

#[test]
fn whatever_the_load_nothing_wanders() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let rules = Rules::default();
        let mut memory = Memory::default();
        let mut apps: Vec<App> = (0..8)
            .map(|n| {
                let class = [Class::Critical, Class::Standard, Class::Batch][rng.usize(0..3)];
                app(&format!("app-{n}"), class, 1.0, 1.0, rng.u64(1..4096))
            })
            .collect();
        let mut begun: Vec<(Duration, Cause)> = Vec::new();
        let mut last: BTreeMap<AppId, Duration> = BTreeMap::new();
        let mut short_for = 0;
        for step in 0..2_000_u32 {
            let now = Duration::from_secs(100_000) + STEP * step;
            for app in &mut apps {
                let cpus = (app.uses.cpus + rng.f64() - 0.5).clamp(0.1, 4.0);
                app.uses = Use {
                    cpus,
                    waits: rng.u8(0..8) == 0,
                };
                app.need = Need {
                    expected: cpus * (0.5 + rng.f64()),
                    most: cpus * 2.0,
                };
            }
            let counts = apps.iter().filter(|of| of.class != Class::Batch);
            let waits = counts.clone().any(|of| of.uses.waits);
            let wanted: f64 = counts.clone().map(|of| of.uses.wanted()).sum();
            let most: f64 = counts.map(|of| of.need.most).sum();
            let is_short = waits || wanted > 8.0 || most > 8.0;
            short_for = if is_short { short_for + 1 } else { 0 };
            let capacity = MilliCpu::cpus(8);
            let Some(shed) = decide(
                &rules,
                now,
                capacity,
                &residents(&apps),
                &mut memory,
                &mut |_| true,
            ) else {
                continue;
            };
            assert!(short_for >= 2, "seed {seed}: nothing lasted");
            let cause = shed.why.cause();
            match rng.u8(0..5) {
                4 => memory.refused(&rules, now, cause),
                0 => memory.found_none(&rules, now, (&shed.app, cause)),
                1 => memory.stayed(&rules, now, (&shed.app, cause)),
                _ => {
                    memory.began(now, cause);
                    begun.push((now, cause));
                    let app = apps.iter_mut().find(|of| of.id == shed.app).unwrap();
                    assert_ne!(app.class, Class::Batch, "seed {seed}");
                    let before = last.insert(shed.app.clone(), now);
                    let rested = before.is_none_or(|at| now - at >= rules.rest);
                    assert!(rested, "seed {seed}: no rest");
                    // It went, and another one like it came.
                    let ages = app.homes.ages(now);
                    app.homes = Homes::arrived(now, &ages, "x".parse().unwrap());
                }
            }
            let hour = begun.iter().filter(|(at, _)| now - *at < HOUR);
            let ahead = hour
                .clone()
                .filter(|(_, of)| *of == Cause::Foreseen)
                .count();
            let hour = hour.count();
            assert!(hour <= rules.moves_per_hour as usize, "seed {seed}: {hour}");
            assert!(
                ahead <= rules.ahead_per_hour as usize,
                "seed {seed}: {ahead}"
            );
        }
    }
}

#[test]
fn a_host_that_was_just_left_is_not_offered() {
    let rules = Rules::default();
    let offer = Offer {
        capacity: Room::default(),
        needed: BTreeMap::new(),
        used: None,
        promised: BTreeMap::new(),
        apps: BTreeSet::new(),
        cordoned: false,
        unfit: None,
        takes: None,
    };
    let host = |name: &str| name.parse::<HostName>().unwrap();
    let offers = BTreeMap::from([(host("a"), offer.clone()), (host("b"), offer)]);
    let homes = Homes::arrived(Duration::from_secs(100), &[], host("a"));
    let at = |s| {
        without(
            homes.held(&rules, Duration::from_secs(s)).collect(),
            &offers,
        )
    };
    assert_eq!(at(200).unwrap().keys().collect::<Vec<_>>(), [&host("b")]);
    assert_eq!(at(3_700), None);
}

#[test]
fn one_that_is_constrained_goes_where_room_is_whatever_its_host_says_of_itself() {
    let room = |cpus| Room {
        cpu: MilliCpu::cpus(cpus),
        memory: Bytes::mib(8192),
    };
    let offer = |used: u64| Offer {
        capacity: room(8),
        needed: BTreeMap::from([(Class::Standard, room(used))]),
        used: Some(BTreeMap::from([(Class::Standard, room(used))])),
        promised: BTreeMap::new(),
        apps: BTreeSet::new(),
        cordoned: false,
        unfit: None,
        takes: None,
    };
    let name = |name: &str| -> HostName { name.parse().unwrap() };
    // Here hardly anything is needed, by what is published: who takes the rest is nobody's app.
    let offers = BTreeMap::from([(name("a"), offer(1)), (name("b"), offer(2))]);
    let offers = offers
        .into_iter()
        .map(|(name, mut offer)| {
            for room in offer.needed.values_mut() {
                room.memory = Bytes::mib(64);
            }
            for room in offer.used.iter_mut().flat_map(BTreeMap::values_mut) {
                room.memory = Bytes::mib(64);
            }
            (name, offer)
        })
        .collect();
    let web = app("web", Class::Standard, 1.0, 1.0, 64);
    let apps = [web];
    let resident = &residents(&apps)[0];
    let to = |why, homes: &Homes| {
        let shed = Shed::of(resident, why);
        let now = Duration::from_secs(10_000);
        target(&Rules::default(), now, &shed, (&name("a"), homes), &offers)
    };
    let short = Why::Short {
        wanted: 1.0,
        capacity: 8.0,
    };
    assert_eq!(to(short, &Homes::default()), None);
    let there = Some((name("b"), Look::Ahead));
    assert_eq!(to(Why::Constrained, &Homes::default()), there);
    let left_b = Homes::arrived(Duration::from_secs(9_000), &[], name("b"));
    assert_eq!(to(Why::Constrained, &left_b), None);
}
