//! What every coordinator has to keep, and what it takes to keep it with etcd.

#[cfg(feature = "etcd")]
mod etcd;

use std::collections::BTreeSet;
use std::time::Instant;

use forebay_core::fleet::choice::Room;
use forebay_core::units::{Bytes, MilliCpu};

use super::*;

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a coordinator is tried with: two that share it, as two hosts would.
struct Pair {
    a: Arc<dyn Coordinator>,
    b: Arc<dyn Coordinator>,
    /// Whatever has to live for as long.
    _keep: Box<dyn std::any::Any>,
}

fn local() -> Pair {
    let directory = tempfile::tempdir().unwrap();
    let local: Arc<dyn Coordinator> = Arc::new(local::Local::open(directory.path()).unwrap());
    Pair {
        a: Arc::clone(&local),
        b: local,
        _keep: Box::new(directory),
    }
}

/// Tries every coordinator that there is here.
fn each(test: &str, check: impl Fn(&Pair)) {
    check(&local());
    #[cfg(feature = "etcd")]
    if let Some(pair) = etcd::pair(test) {
        check(&pair);
    }
    #[cfg(not(feature = "etcd"))]
    println!("SKIPPED: {test}: built without etcd");
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn app(name: &str) -> AppId {
    name.parse().unwrap()
}

fn member(name: &str, agent: &str) -> Member {
    let room = Room {
        cpu: MilliCpu::cpus(4),
        memory: Bytes::mib(4096),
    };
    Member {
        host: host(name),
        agent: agent.to_owned(),
        version: "0.1.0".to_owned(),
        address: Some("127.0.0.1:9476".to_owned()),
        offer: Offer {
            capacity: room,
            needed: [(forebay_core::app::Class::Batch, room)].into(),
            used: Some([(forebay_core::app::Class::Batch, room)].into()),
            promised: BTreeMap::new(),
            apps: BTreeSet::from([app("web")]),
            cordoned: false,
            unfit: None,
            takes: None,
        },
        unix_ms: 1,
    }
}

fn asked(view: &View, id: &CommandId) -> Option<Command> {
    let found = view.commands.iter().find(|(other, _)| other == id);
    found.map(|(_, command)| command.clone())
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Refused, "{error}");
    assert!(
        error.to_string().contains(words),
        "`{words}` is not in: {error}"
    );
}

#[test]
fn of_changes_of_one_record_one_takes_effect() {
    each("of_changes_of_one_record_one_takes_effect", |pair| {
        let web = app("web");
        let first = Ownership::first(host("a"));
        pair.a.create(&web, &first).unwrap();
        refused(pair.b.create(&web, &first), "a's already, at epoch 1");
        let outcomes: Vec<(Outcome, Ownership)> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|n| {
                    let by = if n % 2 == 0 { &pair.a } else { &pair.b };
                    let (web, to) = (&web, first.given_to(&host(&format!("h{n}"))));
                    scope.spawn(move || (outcome(&by.change(web, 1, &to)), to))
                })
                .collect();
            writers.into_iter().map(|w| w.join().unwrap()).collect()
        });
        let won: Vec<_> = outcomes
            .iter()
            .filter(|(how, _)| *how == Outcome::Done)
            .collect();
        assert_eq!(won.len(), 1, "{outcomes:?}");
        let lost = outcomes.iter().filter(|(how, _)| *how == Outcome::Refused);
        assert_eq!(lost.count(), 7, "{outcomes:?}");
        assert_eq!(pair.b.record(&web).unwrap().as_ref(), Some(&won[0].1));
        // What does not raise the epoch is no other change's enemy.
        let given = &won[0].1;
        pair.a.change(&web, 2, &given.running()).unwrap();
        pair.b.change(&web, 2, &given.recalled()).unwrap();
        refused(pair.a.change(&web, 2, given), "at epoch 3");
        refused(pair.a.change(&app("nobody"), 1, given), "nobody owns it");
        let (_, records) = pair.a.records().unwrap();
        assert_eq!(
            records.into_iter().collect::<Vec<_>>(),
            [(web.clone(), given.recalled())]
        );
        refused(pair.a.forget(&web, 2), "at epoch 3");
        pair.a.forget(&web, 3).unwrap();
        assert_eq!(pair.b.record(&web).unwrap(), None);
    });
}

#[test]
fn a_host_is_there_for_as_long_as_its_lease() {
    each("a_host_is_there_for_as_long_as_its_lease", |pair| {
        let ttl = Duration::from_secs(2);
        let before = now();
        let held = pair.a.join(&member("a", "1"), ttl).unwrap();
        assert!(held.lease.renewed_at >= before && held.lease.renewed_at <= now());
        assert!(held.lease.ttl >= ttl, "{held:?}");
        assert_eq!(pair.b.hosts().unwrap()[&host("a")], member("a", "1"));
        refused(
            pair.b.join(&member("a", "2"), ttl),
            "another agent is a member as a",
        );
        // The same agent after a restart.
        let held = pair.a.join(&member("a", "1"), ttl).unwrap();
        let mut changed = member("a", "1");
        changed.offer.cordoned = true;
        pair.a.publish(&held, &changed).unwrap();
        assert_eq!(pair.b.hosts().unwrap()[&host("a")], changed);
        let renewed = pair.a.renew(&held).unwrap().unwrap();
        assert!(renewed.lease.renewed_at > held.lease.renewed_at);
        let until = renewed.lease.renewed_at + renewed.lease.ttl;
        while now() < until {
            let (seen, at) = (pair.b.hosts().unwrap(), now());
            assert!(
                seen.contains_key(&host("a")) || at >= until,
                "gone too early"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        eventually("the host is gone", || pair.b.hosts().unwrap().is_empty());
        assert_eq!(pair.a.renew(&renewed).unwrap(), None);
        refused(pair.a.publish(&renewed, &changed), "lease has ended");
        let held = pair
            .a
            .join(&member("a", "1"), Duration::from_secs(60))
            .unwrap();
        pair.a.leave(&held).unwrap();
        pair.a.leave(&held).unwrap();
        assert!(pair.b.hosts().unwrap().is_empty());
    });
}

#[test]
fn a_lease_that_the_host_is_no_member_by_is_not_renewed() {
    each(
        "a_lease_that_the_host_is_no_member_by_is_not_renewed",
        |pair| {
            let ttl = Duration::from_secs(60);
            let early = pair.a.join(&member("a", "1"), ttl).unwrap();
            // The same agent, as a clone of the host would.
            let late = pair.b.join(&member("a", "1"), ttl).unwrap();
            assert_eq!(pair.a.renew(&early).unwrap(), None);
            refused(pair.a.publish(&early, &member("a", "1")), "lease has ended");
            let renewed = pair.b.renew(&late).unwrap().unwrap();
            assert_eq!((renewed.id, &renewed.host), (late.id, &host("a")));
            // What ends the early one is not the late one's.
            pair.a.leave(&early).unwrap();
            assert!(pair.b.renew(&late).unwrap().is_some());
            assert!(pair.a.hosts().unwrap().contains_key(&host("a")));
        },
    );
}

#[test]
fn others_take_over_from_a_host_that_is_gone_and_from_no_other() {
    each(
        "others_take_over_from_a_host_that_is_gone_and_from_no_other",
        |pair| {
            let web = app("web");
            let first = Ownership::first(host("a"));
            pair.a.create(&web, &first).unwrap();
            let held = pair
                .a
                .join(&member("a", "1"), Duration::from_secs(60))
                .unwrap();
            let taken = first.given_to(&host("b"));
            refused(pair.b.take_over(&web, &first, &taken), "a is a member");
            assert_eq!(pair.b.record(&web).unwrap(), Some(first.clone()));
            pair.a.leave(&held).unwrap();
            let other = first.recalled();
            refused(pair.b.take_over(&web, &other, &taken), "at epoch 1");
            pair.b.take_over(&web, &first, &taken).unwrap();
            assert_eq!(pair.a.record(&web).unwrap(), Some(taken));
        },
    );
}

#[test]
fn commands_stay_until_their_host_has_completed_them() {
    each(
        "commands_stay_until_their_host_has_completed_them",
        |pair| {
            let (a, b) = (host("a"), host("b"));
            let early = pair.b.post(&a, &Command::Cordon).unwrap();
            let mut view = pair.a.watch(&a);
            eventually("the command before is seen", || {
                asked(&view.borrow_and_update(), &early) == Some(Command::Cordon)
            });
            let command = Command::Move {
                app: app("web"),
                to: Some(b.clone()),
            };
            let id = pair.b.post(&a, &command).unwrap();
            pair.b.post(&b, &Command::Drain).unwrap();
            eventually("the command is seen", || {
                asked(&view.borrow_and_update(), &id).as_ref() == Some(&command)
            });
            // In this order, and another host's is not there.
            let ids: Vec<_> = view.borrow().commands.iter().map(|c| c.0.clone()).collect();
            assert_eq!(ids, [early.clone(), id.clone()]);
            assert_eq!(pair.b.completed(&a, &id).unwrap(), None);
            let how = Completed::Refused {
                why: "it cannot".to_owned(),
            };
            pair.a.complete(&a, &id, &how).unwrap();
            // The answer was lost, and it is said again.
            let other = Completed::Done {
                what: "done".to_owned(),
            };
            pair.a.complete(&a, &id, &other).unwrap();
            assert_eq!(pair.b.completed(&a, &id).unwrap(), Some(how));
            eventually("the command is gone", || {
                asked(&view.borrow_and_update(), &id).is_none()
            });
            for _ in 1..COMMANDS_MAX {
                pair.b.post(&a, &Command::Drain).unwrap();
            }
            refused(pair.b.post(&a, &Command::Drain), "64 commands wait");
        },
    );
}

#[test]
fn whoever_watches_sees_the_latest_of_every_record() {
    each("whoever_watches_sees_the_latest_of_every_record", |pair| {
        let mut view = pair.a.watch(&host("a"));
        let mut records: Vec<(AppId, Ownership)> = (0..20)
            .map(|n| (app(&format!("app{n}")), Ownership::first(host("b"))))
            .collect();
        for (app, record) in &mut records {
            pair.b.create(app, record).unwrap();
            let given = record.given_to(&host("a"));
            pair.b.change(app, 1, &given).unwrap();
            *record = given;
        }
        let (gone, _) = records.pop().unwrap();
        pair.b.forget(&gone, 2).unwrap();
        let expected: Records = records.into_iter().collect();
        eventually("all are seen", || {
            let view = view.borrow_and_update();
            view.lost.is_none() && view.records.as_deref() == Some(&expected)
        });
        let (revision, _) = pair.a.records().unwrap();
        assert!(view.borrow().revision <= revision);
    });
}

#[test]
fn of_those_who_want_the_last_slot_one_gets_it() {
    each("of_those_who_want_the_last_slot_one_gets_it", |pair| {
        let (seen, rolling) = pair.a.rolling().unwrap();
        assert_eq!(rolling, Rolling::default());
        let won: Vec<bool> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..8)
                .map(|n| {
                    let by = if n % 2 == 0 { &pair.a } else { &pair.b };
                    let mut rolling = rolling.clone();
                    scope.spawn(move || {
                        rolling.lock(&format!("id{n}"), "default", 1, 1).unwrap();
                        by.roll(seen, &rolling).unwrap()
                    })
                })
                .collect();
            clients.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
        let (read, held) = pair.b.rolling().unwrap();
        assert_eq!(held.holders.len(), 1);
        assert_eq!(pair.a.rolling().unwrap(), (read, held));
        assert!(pair.a.roll(read, &rolling).unwrap());
        assert!(!pair.b.roll(read, &rolling).unwrap());
    });
}

#[test]
fn a_command_of_a_later_release_is_known_as_such() {
    let command: Command = serde_json::from_str(r#"{"ask": "fly", "far": 3}"#).unwrap();
    assert_eq!(command, Command::Other);
}
