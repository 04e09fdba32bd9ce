//! Hosts that update one after the other, and die at any moment.

use super::*;
use crate::calendar::Zones;

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn rollout(names: &[&str], at_once: u32) -> Rollout {
    Rollout {
        number: 0,
        began_unix_ms: 5,
        by: host("a"),
        wanted: Wanted {
            command: vec!["true".to_owned()],
            ..Wanted::default()
        },
        group: GROUP.to_owned(),
        at_once,
        window: None,
        silence: Duration::from_secs(60),
        hosts: names
            .iter()
            .map(|name| Host {
                name: host(name),
                attempt: 1,
                standing: Standing::Waits,
            })
            .collect(),
        called_off: false,
    }
}

fn begun(names: &[&str], at_once: u32) -> Rolling {
    let mut rolling = Rolling::default();
    rolling.begin(rollout(names, at_once)).unwrap();
    rolling
}

fn all(names: &[&str]) -> BTreeSet<HostName> {
    names.iter().map(|name| host(name)).collect()
}

fn take(rolling: &mut Rolling, name: &str, there: &[&str]) -> Result<(), Turn> {
    rolling.take(&host(name), &all(there), Opening::Open, 7)
}

/// What never differs between a state and what its rules promise.
fn check(rolling: &Rolling, at_once: u32) {
    for group in [GROUP, "others"] {
        let count = rolling.of_group(group).count();
        assert!(count <= at_once as usize, "{rolling:?}");
    }
    let rollout = rolling.rollout.as_ref().unwrap();
    for one in &rollout.hosts {
        let away = matches!(
            one.standing,
            Standing::Updates { .. } | Standing::Silent { .. }
        );
        let holds = rolling.holds(&Owner::Host(one.name.clone()));
        assert_eq!(away, holds, "{rolling:?}");
    }
}

#[test]
fn hosts_begin_in_their_order_and_wait_for_a_slot() {
    let there = ["a", "b", "c"];
    let mut rolling = begun(&there, 1);
    assert_eq!(
        take(&mut rolling, "b", &there),
        Err(Turn::Wait(Wait::Behind(host("a"))))
    );
    take(&mut rolling, "a", &there).unwrap();
    assert_eq!(
        take(&mut rolling, "b", &there),
        Err(Turn::Wait(Wait::Slot(vec![Owner::Host(host("a"))])))
    );
    assert_eq!(take(&mut rolling, "a", &there), Err(Turn::CarryOn));
    assert_eq!(take(&mut rolling, "x", &there), Err(Turn::Nothing));
    rolling.ended(&host("a"), Ok(()));
    // One that is not there is passed over, and begins when it is back.
    take(&mut rolling, "c", &["a", "c"]).unwrap();
    rolling.ended(&host("c"), Ok(()));
    assert_eq!(rolling.rollout.as_ref().unwrap().phase(), Phase::Going);
    take(&mut rolling, "b", &there).unwrap();
    rolling.ended(&host("b"), Ok(()));
    assert_eq!(rolling.rollout.as_ref().unwrap().phase(), Phase::Complete);
    assert_eq!(rolling.holders, []);
    assert_eq!(rolling.begin(rollout(&there, 1)), Ok(2));
}

#[test]
fn nobody_begins_after_one_that_is_not_well_until_somebody_decided() {
    let there = ["a", "b", "c"];
    let mut rolling = begun(&there, 2);
    take(&mut rolling, "a", &there).unwrap();
    take(&mut rolling, "b", &there).unwrap();
    rolling.ended(&host("a"), Err("it does not run".to_owned()));
    assert_eq!(
        take(&mut rolling, "c", &there),
        Err(Turn::Wait(Wait::Decision))
    );
    let refused = rolling.lock("id", GROUP, 9, 1).unwrap_err();
    assert!(refused.contains("has stopped"), "{refused}");
    // The group of others is another one.
    rolling.lock("id", "others", 1, 1).unwrap();
    let refused = rolling.begin(rollout(&there, 1)).unwrap_err();
    assert!(refused.contains("under way"), "{refused}");
    // Those that had begun come to their end.
    rolling.ended(&host("b"), Ok(()));
    assert_eq!(rolling.resume(&BTreeSet::new()), Ok(1));
    take(&mut rolling, "a", &there).unwrap();
    let again = rolling.rollout.as_ref().unwrap().host(&host("a")).unwrap();
    assert_eq!(again.attempt, 2);
    assert_eq!(rolling.call_off(), Ok(1));
    assert_eq!(rolling.rollout.as_ref().unwrap().phase(), Phase::Ending);
    assert_eq!(take(&mut rolling, "c", &there), Err(Turn::Nothing));
    rolling.ended(&host("a"), Ok(()));
    assert_eq!(rolling.rollout.as_ref().unwrap().phase(), Phase::CalledOff);
    rolling.call_off().unwrap_err();
}

#[test]
fn one_that_falls_silent_stops_the_rest_and_goes_on_when_it_is_back() {
    let there = ["a", "b"];
    let mut rolling = begun(&there, 2);
    take(&mut rolling, "a", &there).unwrap();
    let mut ears = Ears::default();
    let at = Duration::from_secs;
    assert_eq!(ears.hear(&rolling, at(0)), []);
    assert_eq!(ears.hear(&rolling, at(59)), []);
    rolling.beat(&host("a"), "updating", "wait");
    assert_eq!(ears.hear(&rolling, at(60)), []);
    assert_eq!(ears.hear(&rolling, at(119)), []);
    assert_eq!(ears.hear(&rolling, at(120)), [(host("a"), 1)]);
    // It said something in between.
    rolling.beat(&host("a"), "updating", "wait");
    rolling.silent(&host("a"), 1);
    assert_eq!(rolling.rollout.as_ref().unwrap().phase(), Phase::Going);
    rolling.silent(&host("a"), 2);
    assert_eq!(
        take(&mut rolling, "b", &there),
        Err(Turn::Wait(Wait::Decision))
    );
    check(&rolling, 2);
    let refused = rolling.resume(&BTreeSet::new()).unwrap_err();
    assert!(refused.contains("--without a"), "{refused}");
    // Back, it carries on.
    assert_eq!(take(&mut rolling, "a", &there), Err(Turn::CarryOn));
    let mut back = rolling.clone();
    back.beat(&host("a"), "verifying", "wait");
    take(&mut back, "b", &there).unwrap();
    // Lost for good, it is left out, and its slot is free.
    assert_eq!(rolling.resume(&all(&["a"])), Ok(1));
    assert_eq!(rolling.holders, []);
    take(&mut rolling, "b", &there).unwrap();
    let refused = rolling.resume(&all(&["b"])).unwrap_err();
    assert!(refused.contains("updates now"), "{refused}");
}

#[test]
fn one_that_is_lost_does_not_hold_up_what_was_called_off() {
    let there = ["a", "b", "c"];
    let mut rolling = begun(&there, 2);
    take(&mut rolling, "a", &there).unwrap();
    take(&mut rolling, "b", &there).unwrap();
    rolling.call_off().unwrap();
    rolling.silent(&host("a"), 0);
    let phase = |rolling: &Rolling| rolling.rollout.as_ref().unwrap().phase();
    assert_eq!(phase(&rolling), Phase::Ending);
    for without in [&[][..], &["b"], &["a", "b"], &["c"]] {
        let refused = rolling.resume(&all(without)).unwrap_err();
        assert!(refused.contains("was called off"), "{refused}");
    }
    rolling.resume(&all(&["a"])).unwrap();
    check(&rolling, 2);
    assert_eq!(phase(&rolling), Phase::Ending, "b updates");
    rolling.silent(&host("b"), 0);
    rolling.resume(&all(&["b"])).unwrap();
    assert_eq!(phase(&rolling), Phase::CalledOff);
    assert_eq!(rolling.holders, []);
    // Also where no host is left.
    let mut rolling = begun(&["a"], 1);
    take(&mut rolling, "a", &["a"]).unwrap();
    rolling.silent(&host("a"), 0);
    rolling.resume(&all(&["a"])).unwrap_err();
    rolling.call_off().unwrap();
    rolling.resume(&all(&["a"])).unwrap();
    assert_eq!(phase(&rolling), Phase::CalledOff);
    assert_eq!(rolling.holders, []);
}

#[test]
fn a_slot_has_one_owner_and_is_taken_and_given_back_any_number_of_times() {
    let there = ["a"];
    let mut rolling = begun(&there, 1);
    rolling.lock("one", GROUP, 1, 1).unwrap();
    rolling.lock("one", GROUP, 1, 2).unwrap();
    let refused = rolling.lock("two", GROUP, 1, 3).unwrap_err();
    assert!(
        refused.contains("held, by the FleetLock client one"),
        "{refused}"
    );
    rolling.lock("one", "others", 1, 3).unwrap_err();
    assert_eq!(
        take(&mut rolling, "a", &there),
        Err(Turn::Wait(Wait::Slot(vec![Owner::Client(
            "one".to_owned()
        )])))
    );
    assert!(!rolling.give_back(&Owner::Client("two".to_owned())));
    assert!(rolling.give_back(&Owner::Client("one".to_owned())));
    assert!(!rolling.give_back(&Owner::Client("one".to_owned())));
    take(&mut rolling, "a", &there).unwrap();
    // A client of a host's name is not that host.
    rolling.release("a").unwrap_err();
    rolling.lock("a", GROUP, 1, 4).unwrap_err();
    check(&rolling, 1);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let check = |change: fn(&mut Rollout), expected: &str| {
        let mut wrong = rollout(&["a", "b"], 1);
        change(&mut wrong);
        let refused = Rolling::default().begin(wrong).unwrap_err();
        assert!(refused.contains(expected), "{refused}");
    };
    check(|one| one.at_once = 0, "0 hosts at once");
    check(|one| one.at_once = 65, "65 hosts at once");
    check(|one| one.hosts.clear(), "0 hosts");
    check(|one| one.hosts[1] = one.hosts[0].clone(), "named twice");
    check(|one| one.group = "a b".to_owned(), "is not a group");
    for id in ["", "a b", &"x".repeat(129)] {
        check_client(id).unwrap_err();
    }
    check_client("0123456789abcdef0123456789abcdef").unwrap();
}

#[test]
fn a_window_is_open_from_its_time_on_and_says_when_it_opens() {
    let schedule = Schedule::parse("Sat 02:00", Zones::UTC).unwrap();
    let lasts = Duration::from_secs(4 * 3600);
    let at = |text: &str| opening(&schedule, lasts, text.parse().unwrap());
    let next = Some("2025-01-11T02:00:00Z".parse().unwrap());
    assert_eq!(
        at("2025-01-04T01:59:59Z"),
        Opening::Closed(Some("2025-01-04T02:00:00Z".parse().unwrap()))
    );
    assert_eq!(at("2025-01-04T02:00:00Z"), Opening::Open);
    assert_eq!(at("2025-01-04T05:59:59Z"), Opening::Open);
    assert_eq!(at("2025-01-04T06:00:00Z"), Opening::Closed(next));
    let there = ["a"];
    let rolling = begun(&there, 1);
    assert_eq!(
        rolling.turn(&host("a"), &all(&there), Opening::Closed(next)),
        Turn::Wait(Wait::Window(next))
    );
}

#[test]
fn it_is_read_as_it_was_written() {
    let mut rolling = begun(&["a", "b"], 1);
    rolling.rollout.as_mut().unwrap().window = Some(Window {
        when: "daily".to_owned(),
        lasts: Duration::from_secs(60),
    });
    take(&mut rolling, "a", &["a", "b"]).unwrap();
    rolling.lock("id", "others", 1, 2).unwrap();
    rolling.ended(&host("a"), Err("x".repeat(9999)));
    let text = serde_json::to_string(&rolling).unwrap();
    assert!(text.len() < 2000, "{text}");
    assert_eq!(serde_json::from_str::<Rolling>(&text).unwrap(), rolling);
}

/// Numbers that look random and come again from their seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// One host: what it has read, and what outlives its death.
#[derive(Default)]
struct Agent {
    dead: bool,
    /// What it read last, and which version that was.
    read: Option<(u64, Rolling)>,
    /// Updates that it began, by key, and whether they are over.
    updates: BTreeMap<String, bool>,
}

/// Runs hosts that read, die and write in any order, until all is over; how many began.
fn run(seed: u64, at_once: u32, sick: Option<&str>) -> (Rolling, usize) {
    let names = ["a", "b", "c", "d", "e"];
    let mut dice = Dice(seed);
    let mut shared = (0_u64, begun(&names, at_once));
    let mut agents: BTreeMap<HostName, Agent> = names
        .iter()
        .map(|name| (host(name), Agent::default()))
        .collect();
    for _ in 0..5_000 {
        let name = host(names[usize::try_from(dice.below(5)).unwrap()]);
        let there: BTreeSet<HostName> = agents
            .iter()
            .filter(|(_, agent)| !agent.dead)
            .map(|(name, _)| name.clone())
            .collect();
        let agent = agents.get_mut(&name).unwrap();
        if agent.dead || dice.below(20) == 0 {
            // What it read is lost with it; a write that it had sent may have been made.
            agent.dead = !agent.dead;
            agent.read = None;
            continue;
        }
        let Some((seen, mut rolling)) = agent.read.take() else {
            agent.read = Some(shared.clone());
            continue;
        };
        let before = rolling.clone();
        match rolling.turn(&name, &there, Opening::Open) {
            Turn::Take => rolling
                .take(&name, &there, Opening::Open, 1)
                .expect("it is its turn"),
            Turn::CarryOn => {
                let one = rolling.rollout.as_ref().unwrap();
                let key = one.key(one.host(&name).unwrap().attempt);
                match agent.updates.get(&key) {
                    None => _ = agent.updates.insert(key, false),
                    Some(false) if dice.below(4) == 0 => _ = agent.updates.insert(key, true),
                    Some(false) => rolling.beat(&name, "updating", ""),
                    Some(true) if sick == Some(name.as_str()) => {
                        rolling.ended(&name, Err("sick".to_owned()));
                    }
                    Some(true) => rolling.ended(&name, Ok(())),
                }
            }
            Turn::Nothing | Turn::Wait(_) => {}
        }
        // A transaction: whoever is slower has to read again.
        if rolling != before && shared.0 == seen {
            shared = (seen + 1, rolling);
        }
        check(&shared.1, at_once);
        if shared.1.rollout.as_ref().unwrap().phase() == Phase::Complete {
            break;
        }
        let open = agents
            .values()
            .flat_map(|agent| agent.updates.values())
            .filter(|over| !**over);
        assert!(open.count() <= at_once as usize, "seed {seed}");
    }
    let began = agents.values().map(|agent| agent.updates.len()).sum();
    (shared.1, began)
}

#[test]
fn hosts_that_die_at_any_moment_update_once_each_and_never_too_many_at_once() {
    for seed in 0..60 {
        for at_once in [1, 2] {
            let (rolling, began) = run(seed, at_once, None);
            let rollout = rolling.rollout.unwrap();
            assert_eq!(rollout.phase(), Phase::Complete, "seed {seed}");
            assert_eq!((began, rolling.holders.len()), (5, 0), "seed {seed}");
        }
    }
}

#[test]
fn after_the_first_that_is_not_well_no_other_begins() {
    for seed in 0..60 {
        let (rolling, began) = run(seed, 1, Some("b"));
        let rollout = rolling.rollout.unwrap();
        assert_eq!(rollout.phase(), Phase::Stopped, "seed {seed}");
        assert_eq!(rolling.holders, [], "seed {seed}");
        let waiting = rollout.hosts.iter();
        let waiting = waiting.filter(|one| one.standing == Standing::Waits);
        assert_eq!(began + waiting.count(), 5, "seed {seed}");
    }
}
