//! What must hold however slow, damaged or wrong something beside a move is.

use std::sync::mpsc;

use forebay_core::fleet::departure::Mark;
use forebay_core::fleet::tenure::Takeover;

use super::*;

fn second() -> AppId {
    "second".parse().unwrap()
}

fn told(host: &Host) -> String {
    host.apps.told.lock().unwrap().join("\n")
}

/// A host by itself, with a coordinator of its own.
struct Alone {
    apps: Arc<ModelApps>,
    house: Arc<House>,
    kept: Arc<Mutex<Kept>>,
    luck: Arc<Mutex<Luck>>,
    _dir: tempfile::TempDir,
}

impl Alone {
    fn new(process: Process, record: Ownership) -> Self {
        let (apps, house, dir) = alone(process, |_| {});
        let luck = Arc::new(Mutex::new(Luck::none(1)));
        let kept = Arc::new(Mutex::new(Kept {
            record: Some(record),
            ..Kept::default()
        }));
        let records = ModelRecords::new("here", Arc::clone(&luck), Arc::clone(&kept));
        let house = House {
            records: Arc::new(records),
            ..Arc::try_unwrap(house).unwrap()
        };
        Self {
            apps,
            house: Arc::new(house),
            kept,
            luck,
            _dir: dir,
        }
    }

    fn told(&self) -> String {
        self.apps.told.lock().unwrap().join("\n")
    }

    fn record(&self) -> Ownership {
        self.kept.lock().unwrap().record.clone().unwrap()
    }

    fn says(&self, record: &Ownership) {
        self.kept.lock().unwrap().record = Some(record.clone());
    }
}

#[test]
fn a_slow_step_of_one_move_holds_up_no_other() {
    let pair = Pair::new();
    for host in [&pair.source, &pair.target] {
        *host.apps.more.lock().unwrap() = vec![second()];
    }
    let (go_on, waits) = mpsc::channel::<()>();
    pair.target.apps.at_start.set(move || {
        waits.recv().unwrap();
        Ok(())
    });
    let note = pair
        .source
        .moves
        .begin(&web(), &host("target"), Look::Ahead)
        .unwrap();
    eventually("its target has it", || {
        note.shown().stage == departure::Stage::Awaiting
    });

    // Another one comes, and is given up: its steps are taken.
    let file = pair.source.apps.data().with_file_name("second");
    std::fs::write(&file, "some").unwrap();
    let apps: Arc<dyn Apps> = Arc::clone(&pair.source.apps) as Arc<dyn Apps>;
    let app = apps.app(&second()).unwrap();
    let record = Ownership::first(host("source"));
    let wish = Wish {
        app: second(),
        record: record.clone(),
        class: app.class,
        need: apps.need(&second(), Look::Ahead),
        way: Way::Restart,
        requires: body::leaving(&app, &apps).unwrap().check().unwrap(),
        look: Look::Ahead,
        homes: Vec::new(),
    };
    let of = Attempt {
        app: second(),
        epoch: record.epoch,
    };
    let there = host("target");
    pair.link.reserve(&there, &wish).unwrap();
    let content = Content {
        name: file.display().to_string(),
        kind: "file".to_owned(),
    };
    let parcel = (Phase::Copy(1), &content, 4);
    pair.link
        .send(&there, &of, parcel, &mut b"some".as_slice())
        .unwrap();
    pair.link.release(&there, &of).unwrap();
    let is_there = |app: AppId| {
        let awaited = pair.target.moves.awaited();
        awaited.iter().any(|one| one.app == app)
    };
    eventually("nothing of the other one is left", || !is_there(second()));
    assert!(is_there(web()), "the slow one is not over");
    go_on.send(()).unwrap();
    eventually("it is over", || note.end() == Some(End::Moved));
    assert_eq!(pair.target.apps.process(), Process::Runs);
}

#[test]
fn a_disk_that_is_full_when_it_cannot_be_started_keeps_nobody_standing() {
    let pair = Pair::new();
    let dir = pair.dir.path().to_owned();
    pair.target.apps.at_start.set(move || {
        fill(&dir, "target");
        refuse("the program ended at once")
    });
    assert_given_back_and_moved_later(&pair);
}

#[test]
fn a_source_that_panics_goes_on_from_what_is_on_disk() {
    let pair = Pair::new();
    pair.source
        .apps
        .at_freeze
        .set(|| panic!("nobody foresaw that"));
    let (end, why) = pair.moves().unwrap();
    assert_eq!(end, End::Stayed);
    let why = why.unwrap();
    assert!(why.contains("nobody foresaw that"), "{why}");
    let told = told(&pair.source);
    assert!(
        told.contains("its move to target is taken up again") && told.contains("report it"),
        "{told}"
    );
    assert_eq!(pair.source.apps.process(), Process::Runs);
    eventually("nothing waits for it", || {
        pair.target.moves.awaited().is_empty()
    });
    assert_eq!(pair.moves().unwrap().0, End::Moved);
}

#[test]
fn a_target_that_panics_goes_on_from_what_is_on_disk() {
    let pair = Pair::new();
    pair.target
        .apps
        .at_start
        .set(|| panic!("nobody foresaw that"));
    assert_eq!(pair.moves().unwrap().0, End::Moved);
    // Nobody knows whether it ran: it is the target's, and supervision starts it from the files that came.
    eventually("supervision has it", || {
        !pair.target.elsewhere.borrow().contains(&web())
    });
    assert_eq!(pair.kept.lock().unwrap().owner(), "target");
    let told = told(&pair.target);
    assert!(
        told.contains("its move to here is taken up again") && told.contains("report it"),
        "{told}"
    );
}

#[test]
fn an_error_of_the_keeper_is_said_and_frees_nothing() {
    let alone = Alone::new(Process::Runs, Ownership::first(host("here")));
    let apps = &alone.apps;
    *apps.more.lock().unwrap() = vec![second()];
    *apps.takeover.lock().unwrap() = Takeover::AfterLease;
    // Looked at before the other one, which others may have taken over as well.
    *apps.confuses.lock().unwrap() = Some(second());
    let mut keeper = keeper::Keeper::new(Arc::clone(&alone.house));
    keeper.look();
    assert_eq!(apps.process(), Process::Stands { given: true });
    keeper.look();
    assert_eq!(apps.process(), Process::Stands { given: true });
    let told = apps.told.lock().unwrap().clone();
    let said: Vec<&String> = told
        .iter()
        .filter(|one| one.contains("report it"))
        .collect();
    assert_eq!(said.len(), 1, "{told:?}");
    assert!(said[0].contains("it is frozen meanwhile"), "{told:?}");
    // And the other one, whose lease ended, is looked after.
    assert!(
        told.iter()
            .any(|one| one.contains("the coordinator does not know of this host")),
        "{told:?}"
    );
}

#[test]
fn what_stands_already_is_frozen_once() {
    let theirs = Ownership::first(host("there"));
    let alone = Alone::new(Process::Runs, theirs);
    let apps = &alone.apps;
    let mut keeper = keeper::Keeper::new(Arc::clone(&alone.house));
    for _ in 0..20 {
        keeper.look();
    }
    assert_eq!(apps.process(), Process::Stands { given: true });
    assert_eq!(*apps.froze.lock().unwrap(), 1);
    // Somebody let it go on.
    *apps.process.lock().unwrap() = Process::Runs;
    keeper.look();
    assert_eq!(apps.process(), Process::Stands { given: true });
    assert_eq!(*apps.froze.lock().unwrap(), 2);
}

#[test]
fn a_second_owner_of_one_epoch_is_a_conflict_that_nobody_runs_by() {
    let ours = Ownership {
        epoch: 4,
        ..Ownership::first(host("here"))
    };
    let theirs = Ownership {
        epoch: 4,
        ..Ownership::first(host("there"))
    };
    let check = |known: &Ownership, said: &Ownership| {
        let alone = Alone::new(Process::Runs, known.clone());
        let (apps, house) = (&alone.apps, &alone.house);
        let mut claims = claims::Claims::new(Arc::clone(house));
        let mut keeper = keeper::Keeper::new(Arc::clone(house));
        claims.read(Duration::ZERO);
        keeper.look();
        alone.says(said);
        for second in 1..5 {
            claims.read(Duration::from_secs(second));
            keeper.look();
        }
        assert_eq!(apps.process(), Process::Stands { given: true });
        assert_eq!(house.book.record(&web()).as_ref(), Some(known));
        let told = alone.told();
        assert!(
            told.contains("two hosts were made owners of it at epoch 4")
                && told.contains("greater epoch"),
            "{told}"
        );
        let why = house.read_latest(&web()).unwrap_err().to_string();
        assert!(why.contains("nothing of it moves"), "{why}");
        let away = house.elsewhere.borrow().clone();
        assert!(away.contains(&web()), "nobody starts it");
        // A later record says whose it is.
        let settled = Ownership {
            epoch: 5,
            ..ours.clone()
        };
        alone.says(&settled);
        claims.read(Duration::from_secs(9));
        keeper.look();
        assert_eq!(house.book.record(&web()), Some(settled));
        assert_eq!(apps.process(), Process::Runs);
        assert!(!house.elsewhere.borrow().contains(&web()));
    };
    check(&ours, &theirs);
    check(&theirs, &ours);
}

#[test]
fn however_many_apps_there_are_few_requests_are_made() {
    let alone = Alone::new(Process::Runs, Ownership::first(host("here")));
    let (kept, luck) = (&alone.kept, &alone.luck);
    let more: Vec<AppId> = (0..2000)
        .map(|n| format!("app{n}").parse().unwrap())
        .collect();
    alone.apps.more.lock().unwrap().clone_from(&more);
    kept.lock().unwrap().more = more;
    let mut claims = claims::Claims::new(Arc::clone(&alone.house));
    let rounds = 20_u64;
    let asked = |claims: &mut claims::Claims, from: u64| {
        let before = kept.lock().unwrap().asked;
        for round in 0..rounds {
            claims.read(Duration::from_millis(500 * (from + round)));
        }
        kept.lock().unwrap().asked - before
    };
    let settled = asked(&mut claims, 0);
    assert_eq!(alone.house.book.content().records.len(), 2001);
    luck.lock().unwrap().coordinator_is_lost = true;
    let lost = asked(&mut claims, rounds);
    luck.lock().unwrap().coordinator_is_lost = false;
    // Put back to an earlier state: each of them says something else than what is known.
    let known = Ownership {
        epoch: 3,
        ..Ownership::first(host("there"))
    };
    alone.says(&known);
    asked(&mut claims, 2 * rounds);
    alone.says(&Ownership::first(host("there")));
    let older = asked(&mut claims, 3 * rounds);
    println!("2001 apps, {rounds} rounds of 500 ms: {settled}, {lost}, {older} requests");
    assert_eq!(settled, 0);
    assert!(lost <= rounds && older <= rounds, "{lost}, {older}");
}

/// An application came back, and the record that says so was put back before it said that it runs.
#[test]
fn what_runs_says_so_again_although_its_record_was_put_back() {
    let back = Ownership {
        epoch: 7,
        runs: false,
        ..Ownership::first(host("here"))
    };
    let alone = Alone::new(Process::Runs, back.clone());
    let house = &alone.house;
    house.book.learn(&web(), &back.running());
    let departing = journal::Departing {
        record: back.clone(),
        there: host("there"),
        way: Way::Restart,
        mark: Mark::Begun,
    };
    house.book.depart(&web(), Some(departing)).unwrap();
    let mut claims = claims::Claims::new(Arc::clone(house));
    claims.read(Duration::ZERO);
    assert_eq!(alone.record(), back, "its move is not over");
    house.book.depart(&web(), None).unwrap();
    claims.read(Duration::from_secs(3));
    assert_eq!(alone.record(), back.running());
    assert!(!house.elsewhere.borrow().contains(&web()));
    assert_eq!(alone.apps.process(), Process::Runs);
}

/// A host that looks at an application whose owner is no member, and again after so long.
fn taken_over(change: impl FnOnce(&ModelApps, &mut Kept), after: Duration) -> Alone {
    let lease = Lease {
        renewed_at: keeper::now(),
        ttl: Duration::from_secs(3600),
    };
    let alone = Alone::new(Process::None, Ownership::first(host("lost")));
    *alone.apps.takeover.lock().unwrap() = Takeover::AfterLease;
    *alone.apps.has_files.lock().unwrap() = false;
    {
        let mut kept = alone.kept.lock().unwrap();
        kept.lease = Some(lease);
        kept.members.insert(host("here"), offer(4000));
        change(&alone.apps, &mut kept);
    }
    look_twice(&alone, after);
    alone
}

fn look_twice(alone: &Alone, after: Duration) {
    let mut orphans = orphans::Orphans::new(Arc::clone(&alone.house));
    let now = keeper::now();
    orphans.look(now);
    orphans.look(now + after);
}

fn offer(cpu: u64) -> forebay_core::fleet::choice::Offer {
    let room = forebay_core::fleet::choice::Room {
        cpu: forebay_core::units::MilliCpu(cpu),
        ..models::ROOM
    };
    forebay_core::fleet::choice::Offer {
        capacity: room,
        needed: BTreeMap::new(),
        used: None,
        promised: BTreeMap::new(),
        apps: BTreeSet::new(),
        cordoned: false,
        unfit: None,
        takes: None,
    }
}

#[test]
fn what_a_lost_host_owned_is_taken_over_in_turn_and_only_without_files() {
    let lost = Ownership::first(host("lost"));
    let ours = lost.given_to(&host("here")).running();
    let now = Duration::ZERO;
    let alone = taken_over(|_, _| {}, now);
    assert_eq!(alone.record(), ours);
    let told = alone.told();
    assert!(told.contains("its host lost is lost"), "{told}");
    assert!(
        !alone.house.elsewhere.borrow().contains(&web()),
        "supervision starts it"
    );

    // A better one has its turn before.
    let better =
        |_: &ModelApps, kept: &mut Kept| _ = kept.members.insert(host("more"), offer(64_000));
    assert_eq!(taken_over(better, Duration::from_secs(1)).record(), lost);
    assert_eq!(taken_over(better, Duration::from_secs(5)).record(), ours);

    let long = Duration::from_secs(100);
    let refused = |change: &dyn Fn(&ModelApps, &mut Kept), words: &str| {
        let alone = taken_over(change, long);
        assert_eq!(alone.record(), lost, "{words}");
        let told = alone.told();
        assert!(told.contains(words), "{told}");
    };
    let lives = |_: &ModelApps, kept: &mut Kept| _ = kept.members.insert(host("lost"), offer(1));
    refused(&lives, "");
    refused(
        &|apps, _| *apps.has_files.lock().unwrap() = true,
        "with it its files",
    );
    refused(
        &|apps, _| *apps.takeover.lock().unwrap() = Takeover::Never,
        "",
    );
    refused(&|_, kept| kept.lease = None, "");
    let stands = Process::Stands { given: true };
    refused(
        &|apps, _| *apps.process.lock().unwrap() = stands,
        "of before is still there",
    );
    refused(
        &|_, kept| _ = kept.members.insert(host("here"), offer(1)),
        "no room for it",
    );
}

#[test]
fn the_guardian_is_told_until_when_what_others_may_take_may_run() {
    let alone = Alone::new(Process::Runs, Ownership::first(host("here")));
    let apps = &alone.apps;
    let mut keeper = keeper::Keeper::new(Arc::clone(&alone.house));
    keeper.look();
    assert_eq!(*apps.may_run.lock().unwrap(), Default::default());
    *apps.takeover.lock().unwrap() = Takeover::AfterLease;
    let lease = Lease {
        renewed_at: keeper::now(),
        ttl: Duration::from_secs(3600),
    };
    alone.kept.lock().unwrap().lease = Some(lease);
    keeper.look();
    let told = (lease.run_until(), BTreeSet::from([web()]));
    assert_eq!(*apps.may_run.lock().unwrap(), told);
    assert_eq!(apps.process(), Process::Runs);
    // The guardian froze it meanwhile, and it is this host's still.
    *apps.process.lock().unwrap() = Process::Stands { given: true };
    keeper.look();
    assert_eq!(apps.process(), Process::Runs);
}

/// Whichever of the two names the other.
#[test]
fn one_that_shares_no_host_with_another_does_not_come_to_where_it_is() {
    for (naming, named) in [(web(), second()), (second(), web())] {
        let pair = Pair::new();
        let apart = BTreeMap::from([(naming, BTreeSet::from([named]))]);
        for host in [&pair.source, &pair.target] {
            *host.apps.more.lock().unwrap() = vec![second()];
        }
        *pair.target.apps.apart.lock().unwrap() = apart;
        let house = &pair.target.moves.house;
        assert_eq!(pair.target.moves.takes().unwrap()[&web()].obstacle, None);
        house
            .book
            .learn(&second(), &Ownership::first(host("target")));
        let obstacle = pair.target.moves.takes().unwrap()[&web()].obstacle.clone();
        let obstacle = obstacle.unwrap();
        assert!(obstacle.contains("second is on target"), "{obstacle}");
        pair.refuses(&["second is on target", "shares no host with it"]);
        let gone = Ownership::first(host("target")).given_to(&host("third"));
        house.book.learn(&second(), &gone.running());
        assert_eq!(pair.moves().unwrap().0, End::Moved);
    }
}

#[test]
fn one_that_shares_no_host_with_another_is_not_taken_over_beside_it() {
    let lost = Ownership::first(host("lost"));
    let apart = |apps: &ModelApps, _: &mut Kept| {
        let apart = BTreeMap::from([(web(), BTreeSet::from([second()]))]);
        *apps.apart.lock().unwrap() = apart;
        *apps.takeover.lock().unwrap() = Takeover::Never;
    };
    let alone = taken_over(apart, Duration::ZERO);
    *alone.apps.takeover.lock().unwrap() = Takeover::AfterLease;
    let here = Ownership::first(host("here"));
    alone.house.book.learn(&second(), &here);
    look_twice(&alone, Duration::ZERO);
    assert_eq!(alone.record(), lost);
    let told = alone.told();
    assert!(told.contains("second is on here"), "{told}");
    let gone = here.given_to(&host("more")).running();
    alone.house.book.learn(&second(), &gone);
    look_twice(&alone, Duration::ZERO);
    assert_eq!(alone.record().owner, host("here"));
}
