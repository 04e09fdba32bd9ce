//! What the ladder does with other hosts, and what no fleet of hosts may do to an app.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::fleet::choice::{self, Room};
use crate::fleet::need::{Need, Use};
use crate::fleet::policy::{self, Cause, Homes, Resident, Shed, Stays, Why};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Three hosts, each with memories of its own, and loads and rooms that change at random: no app goes
    /// straight back, none moves twice within the rest, no host begins more moves in an hour than it may.
    #[test]
    fn no_fleet_throws_an_app_to_and_fro(
        loads in prop::collection::vec(prop::collection::vec(0.1..2.0_f64, 4), 1..80),
        rooms in prop::collection::vec(prop::collection::vec(0..6_u64, 3), 1..80),
    ) {
        const TICK: u64 = 10;
        let rules = Rules {
            persistence: Duration::from_secs(TICK),
            cool_down: Duration::from_secs(TICK),
            settling: Duration::from_secs(TICK),
            ..acting()
        };
        let limits = policy::Rules { moves_per_hour: 2, ..policy::Rules::default() };
        let names: [HostName; 3] = ["h0", "h1", "h2"].map(|name| name.parse().unwrap());
        let mut memories = vec![(Memory::default(), policy::Memory::default()); 3];
        let mut journeys: Vec<(usize, Homes)> =
            (0..4).map(|app| (app % 3, Homes::default())).collect();
        let mut moves: Vec<(u64, usize, usize, usize)> = Vec::new();
        for tick in 0..900_u64 {
            let second = tick * TICK;
            let now = Duration::from_secs(second);
            let epoch = usize::try_from(tick / 9).unwrap();
            let load = &loads[epoch % loads.len()];
            let room = &rooms[epoch % rooms.len()];
            let offers = names.iter().zip(room).map(|(name, cpus)| (name.clone(), open(*cpus)));
            let offers = offers.collect();
            for (host, (memory, budget)) in memories.iter_mut().enumerate() {
                let here: Vec<usize> = (0..4).filter(|app| journeys[*app].0 == host).collect();
                let name = |app: usize| format!("app{app}");
                let cases: Vec<Case> = here
                    .iter()
                    .map(|app| Case::new(&name(*app), Class::Critical, load[*app]))
                    .collect();
                let away = here.iter().zip(&cases).map(|(app, case)| {
                    let homes = &journeys[*app].1;
                    let id = &case.app.id;
                    let to = budget.allows(&limits, now, (id, homes), 0).and_then(|()| {
                        let shed = leaver(case, homes);
                        let place = (&names[host], homes);
                        let to = policy::target(&limits, now, &shed, place, &offers);
                        to.map(|(to, _)| to).ok_or(Stays::NoTarget)
                    });
                    (id.clone(), to.map_or_else(Away::Stays, Away::To))
                });
                let away = away.collect();
                let time = at(second * 1000);
                let view = View {
                    time,
                    rules: &rules,
                    horizon: Duration::from_secs(1),
                    apps: cases.iter().map(Case::seen).collect(),
                    means: Means { away: Some(&away), ..means(0) },
                };
                let (decision, after) = decide(&view, memory);
                *memory = after;
                for step in &decision.steps {
                    let Effect::Move(to) = &step.effect else { continue };
                    let to = names.iter().position(|name| name == to).unwrap();
                    let app = here.iter().find(|app| name(**app) == step.app.as_str());
                    let app = *app.unwrap();
                    // Two of one period: who begins them looks again before the second.
                    let (at_host, homes) = &mut journeys[app];
                    if budget.allows(&limits, now, (&step.app, homes), 0).is_err() {
                        memory.refused_move(time, &step.app);
                        continue;
                    }
                    budget.began(now, Cause::Short);
                    moves.push((second, app, host, to));
                    *homes = Homes::arrived(now, &homes.ages(now), names[host].clone());
                    *at_host = to;
                }
            }
        }
        for (place, (second, app, from, to)) in moves.iter().enumerate() {
            let later = || moves[place + 1..].iter().filter(move |other| other.0 - second < 3600);
            for (again, _, _, back) in moves[place + 1..].iter().filter(|other| other.1 == *app) {
                let since = Duration::from_secs(again - second);
                prop_assert!(since >= limits.rest, "app{app} moved again after {since:?}");
                prop_assert!(back != from || since >= limits.hold, "app{app} went back");
            }
            let begun = 1 + later().filter(|other| other.2 == *from).count();
            prop_assert!(begun <= limits.moves_per_hour as usize, "host {from} began {begun}");
            prop_assert!(from != to);
        }
    }
}

/// A host with room for so many CPUs and on which nothing runs.
fn open(cpus: u64) -> choice::Offer {
    choice::Offer {
        capacity: Room {
            cpu: MilliCpu::cpus(cpus),
            memory: Bytes::mib(4096),
        },
        needed: BTreeMap::new(),
        used: None,
        promised: BTreeMap::new(),
        apps: BTreeSet::new(),
        cordoned: false,
        unfit: None,
        takes: None,
    }
}

fn leaver(case: &Case, homes: &Homes) -> Shed {
    let cpus = case.demand.usage.cpu.unwrap();
    let resident = Resident {
        app: &case.app.id,
        class: case.app.class,
        uses: Use { cpus, waits: true },
        need: Need::just(cpus),
        memory: Bytes::mib(100),
        movable: true,
        leaves: false,
        homes,
    };
    Shed::of(&resident, Why::Constrained)
}

#[test]
fn one_that_can_go_goes_and_one_that_cannot_says_why() {
    let check = |away: Option<Away>, expected: Result<&str, Absence>| {
        let case = Case::new("web", Class::Critical, 1.9);
        let away = away.map(|away| BTreeMap::from([(case.app.id.clone(), away)]));
        let means = Means {
            away: away.as_ref(),
            ..means(0)
        };
        let offer = means.offer(&case.seen(), Rung::Move, 2.0);
        let effect = offer.map(|offer| offer.effect);
        assert_eq!(
            effect,
            expected.map(|host| Effect::Move(host.parse().unwrap()))
        );
    };
    check(None, Err(Absence::NoFleet));
    check(Some(Away::To("b".parse().unwrap())), Ok("b"));
    let stays = Stays::NoTarget;
    check(Some(Away::Stays(stays.clone())), Err(Absence::Stays(stays)));
    check(Some(Away::Leaves), Err(Absence::Stays(Stays::Leaves)));
    // Who came a moment ago is looked at in a moment.
    let nobody = BTreeMap::new();
    let means = Means {
        away: Some(&nobody),
        ..means(0)
    };
    let offer = means.offer(
        &Case::new("web", Class::Critical, 1.9).seen(),
        Rung::Move,
        2.0,
    );
    assert_eq!(offer.err(), Some(Absence::Stays(Stays::Unseen)));
}
