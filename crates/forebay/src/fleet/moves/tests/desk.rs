//! Two hosts with all their threads: what is asked of [`Moves`], and what it refuses.

mod sound;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use forebay_core::fleet::departure::End;

use super::models::{self, Hook, Kept, Luck, ModelApps, ModelRecords, Process, host, web};
use crate::fleet::moves::desk::Moves;
use crate::fleet::moves::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// The link, where nothing goes wrong: paths are those of the target there.
#[derive(Debug, Default)]
struct Direct {
    hosts: OnceLock<[(HostName, Weak<Moves>, String); 2]>,
    here: OnceLock<HostName>,
    /// Done once, before and after a target is asked for a copy that stands still.
    before_prepare: Hook,
    after_prepare: Hook,
}

impl Direct {
    fn hosts(&self) -> &[(HostName, Weak<Moves>, String); 2] {
        self.hosts.get().unwrap()
    }

    fn there(&self, to: &HostName) -> Result<(Arc<Moves>, &str), Trouble> {
        let found = self.hosts().iter().find(|(name, ..)| name == to);
        let (_, moves, data) =
            found.ok_or_else(|| Trouble::Refused(format!("{to} is no member of the fleet now")))?;
        Ok((moves.upgrade().unwrap(), data))
    }

    fn translate(&self, text: &str, to: &str) -> String {
        let mut text = text.to_owned();
        for (.., data) in self.hosts() {
            text = text.replace(data.as_str(), to);
        }
        text
    }
}

fn refused<T>(done: Result<T, Refused>) -> Result<T, Trouble> {
    done.map_err(|refused| Trouble::Refused(refused.why().to_owned()))
}

impl Peer for Direct {
    fn reserve(&self, to: &HostName, wish: &Wish) -> Result<(), Trouble> {
        let (moves, data) = self.there(to)?;
        let requires = wish.requires.iter();
        let wish = Wish {
            requires: requires.map(|one| self.translate(one, data)).collect(),
            ..wish.clone()
        };
        refused(moves.reserve(self.here.get().unwrap(), &wish))
    }

    fn send(
        &self,
        to: &HostName,
        of: &Attempt,
        (phase, content, bytes): (Phase, &Content, u64),
        from: &mut (dyn Read + Send),
    ) -> Result<(), Trouble> {
        let (moves, there) = self.there(to)?;
        let mut data = Vec::new();
        let read = from.take(bytes).read_to_end(&mut data);
        read.map_err(|error| Trouble::Refused(error.to_string()))?;
        if content.kind == "list" {
            let text = String::from_utf8(data).unwrap();
            data = self.translate(&text, there).into_bytes();
        }
        let content = Content {
            name: self.translate(&content.name, there),
            ..content.clone()
        };
        let parcel = (phase, &content, u64::try_from(data.len()).unwrap());
        let here = self.here.get().unwrap();
        refused(moves.take(here, of, parcel, &mut data.as_slice()))
    }

    fn prepare(&self, to: &HostName, of: &Attempt, contents: &[Content]) -> Result<(), Trouble> {
        let (moves, _) = self.there(to)?;
        self.before_prepare.pull();
        let prepared = moves.prepare(self.here.get().unwrap(), of, contents);
        self.after_prepare.pull();
        prepared
    }

    fn release(&self, to: &HostName, of: &Attempt) -> Result<(), Trouble> {
        let (moves, _) = self.there(to)?;
        moves.release(self.here.get().unwrap(), of);
        Ok(())
    }
}

struct Host {
    apps: Arc<ModelApps>,
    moves: Arc<Moves>,
    elsewhere: watch::Receiver<Arc<BTreeSet<AppId>>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.moves.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Pair {
    source: Host,
    target: Host,
    /// From the source.
    link: Arc<Direct>,
    luck: Arc<Mutex<Luck>>,
    kept: Arc<Mutex<Kept>>,
    dir: tempfile::TempDir,
}

fn begin(
    name: &'static str,
    dir: &Path,
    (luck, kept): (&Arc<Mutex<Luck>>, &Arc<Mutex<Kept>>),
    peer: &Arc<Direct>,
    process: Process,
) -> Host {
    let data = dir.join(name).join("srv/data");
    let state_dir = dir.join(name).join("state");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::create_dir_all(&state_dir).unwrap();
    let reached = Arc::new(Mutex::new(0));
    let apps = Arc::new(ModelApps::new(
        name,
        data,
        Arc::clone(luck),
        process,
        reached,
    ));
    let records = Arc::new(ModelRecords::new(name, Arc::clone(luck), Arc::clone(kept)));
    let (sender, elsewhere) = watch::channel(Arc::default());
    let all: (Arc<dyn Records>, Arc<dyn Peer>, Arc<dyn Apps>) = (
        records,
        Arc::clone(peer) as Arc<dyn Peer>,
        Arc::clone(&apps) as Arc<dyn Apps>,
    );
    let house = House::open(host(name), &state_dir, all, sender);
    let (moves, thread) = Moves::start(house).unwrap();
    Host {
        apps,
        moves,
        elsewhere,
        thread: Some(thread),
    }
}

impl Pair {
    fn new() -> Self {
        Self::with(|_| {})
    }

    /// With something on disk before the daemons begin.
    fn with(prepare: impl FnOnce(&Path)) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let luck = Arc::new(Mutex::new(Luck::none(
            COUNT.fetch_add(1, Ordering::Relaxed),
        )));
        let kept = Arc::new(Mutex::new(Kept::first("source")));
        let peers = [Arc::new(Direct::default()), Arc::new(Direct::default())];
        let world = (&luck, &kept);
        let source = begin("source", dir.path(), world, &peers[0], Process::Runs);
        let target = begin("target", dir.path(), world, &peers[1], Process::None);
        let known = |host: &Host| {
            let data = host.apps.data().parent().unwrap();
            let data = data.to_str().unwrap().to_owned();
            (host.moves.here().clone(), Arc::downgrade(&host.moves), data)
        };
        for (peer, own) in peers.iter().zip([&source, &target]) {
            peer.hosts.set([known(&source), known(&target)]).unwrap();
            peer.here.set(own.moves.here().clone()).unwrap();
        }
        std::fs::write(source.apps.data().join("fixed"), "what it has").unwrap();
        Self {
            source,
            target,
            link: Arc::clone(&peers[0]),
            luck,
            kept,
            dir,
        }
    }

    /// Asks for a move and waits for its end.
    fn moves(&self) -> Result<(End, Option<String>), Refused> {
        let note = self
            .source
            .moves
            .begin(&web(), &host("target"), Look::Ahead)?;
        eventually("the move is over", || note.end().is_some());
        Ok((note.end().unwrap(), note.shown().why))
    }

    /// Neither side's application was touched, and the reason has these words.
    #[track_caller]
    fn refuses(&self, words: &[&str]) {
        let before = [&self.source, &self.target].map(|host| host.apps.process());
        let why = match self.moves() {
            Err(refused) => refused.why().to_owned(),
            Ok((end, why)) => {
                assert_ne!(end, End::Moved);
                why.unwrap()
            }
        };
        for word in words {
            assert!(why.contains(word), "`{word}` is not in: {why}");
        }
        let after = [&self.source, &self.target].map(|host| host.apps.process());
        assert_eq!(before, after, "{why}");
        assert_eq!(self.kept.lock().unwrap().owner(), "source");
    }
}

#[track_caller]
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn it_moves_and_only_its_owner_may_start_it() {
    let pair = Pair::new();
    let is_away = |host: &Host| host.elsewhere.borrow().contains(&web());
    eventually("each knows whose it is", || {
        !is_away(&pair.source) && is_away(&pair.target)
    });
    pair.source
        .moves
        .try_only(&web(), &host("target"), Look::Ahead)
        .unwrap();
    assert!(pair.target.moves.awaited().is_empty());
    assert_eq!(pair.moves().unwrap().0, End::Moved);
    eventually("each knows whose it is now", || {
        is_away(&pair.source) && !is_away(&pair.target)
    });
    assert_eq!(pair.source.apps.process(), Process::None);
    assert_eq!(pair.target.apps.process(), Process::Runs);
    let there = std::fs::read_to_string(pair.target.apps.data().join("fixed")).unwrap();
    assert_eq!(there, "what it has");
    assert!(
        pair.target.moves.promised().is_empty(),
        "its room is not kept any more"
    );
    // It is not the source's any more.
    let refused = pair
        .source
        .moves
        .begin(&web(), &host("target"), Look::Ahead)
        .unwrap_err();
    assert!(refused.why().contains("is at target"), "{refused:?}");
}

#[test]
fn where_it_was_goes_along() {
    let pair = Pair::new();
    let left = |host: &Host| {
        let ages = host.moves.homes(&web()).ages(keeper::now());
        let names = ages.into_iter().map(|(host, _)| host.to_string());
        names.collect::<Vec<_>>()
    };
    assert_eq!(left(&pair.source), [""; 0]);
    assert_eq!(pair.moves().unwrap().0, End::Moved);
    eventually("the target knows where it was", || {
        left(&pair.target) == ["source"]
    });
    eventually("it knows whose it is", || {
        let home = host("source");
        let back = pair.target.moves.begin(&web(), &home, Look::Present);
        back.is_ok_and(|back| {
            eventually("that is over", || back.end().is_some());
            back.end() == Some(End::Moved)
        })
    });
    eventually("and the source where it was before", || {
        left(&pair.source) == ["source", "target"]
    });
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_touched() {
    let pair = Pair::new();
    pair.target.moves.cordon();
    pair.refuses(&["target is cordoned", "uncordon"]);
    pair.target.moves.uncordon();

    pair.target.apps.takes(Way::Checkpoint);
    pair.refuses(&["moves by `restart` on source", "the same `move.mode`"]);
    pair.target.apps.takes(Way::Restart);

    pair.target.apps.has_room(Room::default());
    pair.refuses(&["target has no room", "free some, or choose another host"]);
    pair.target.apps.has_room(models::ROOM);

    std::fs::remove_dir_all(pair.dir.path().join("target/srv")).unwrap();
    pair.refuses(&["the directory", "is missing on the target", "make it there"]);
    std::fs::create_dir_all(pair.dir.path().join("target/srv")).unwrap();

    let nowhere = pair
        .source
        .moves
        .begin(&web(), &host("source"), Look::Ahead);
    assert!(nowhere.unwrap_err().why().contains("where it is"));
    let note = pair
        .source
        .moves
        .begin(&web(), &host("z"), Look::Ahead)
        .unwrap();
    eventually("it is refused", || {
        note.end() == Some(End::Refused) || note.end() == Some(End::Stayed)
    });
    assert!(note.shown().why.unwrap().contains("z is no member"));

    pair.luck.lock().unwrap().lose_coordinator();
    pair.refuses(&["cannot be read", "nothing moves"]);
}

#[test]
fn a_damaged_journal_stops_moves_and_no_app() {
    let pair = Pair::with(|dir| {
        let state = dir.join("source/state");
        std::fs::create_dir_all(&state).unwrap();
        std::fs::write(state.join(journal::FILE), "nonsense").unwrap();
    });
    pair.refuses(&["moves.json", "move the file away"]);
    let is_away = || pair.source.elsewhere.borrow().contains(&web());
    eventually("the coordinator says whose it is", || !is_away());
    assert_eq!(pair.source.apps.process(), Process::Runs);
}

#[test]
fn a_question_does_not_touch_a_move() {
    let pair = Pair::new();
    let source = Arc::downgrade(&pair.source.moves);
    let asked = Arc::new(Mutex::new(None));
    let answer = Arc::clone(&asked);
    pair.link.before_prepare.set(move || {
        let tried = source
            .upgrade()
            .unwrap()
            .try_only(&web(), &host("target"), Look::Ahead);
        *answer.lock().unwrap() = Some(tried);
    });
    assert_eq!(pair.moves().unwrap().0, End::Moved);
    let asked = asked.lock().unwrap().take().unwrap();
    assert!(asked.unwrap_err().why().contains("is on its way"));
    eventually("it runs there", || {
        pair.target.apps.process() == Process::Runs
    });
}

/// The word of an attempt that is given up comes when the copy is whole, and is not true.
#[test]
fn a_word_of_the_source_that_is_not_true_loses_nothing() {
    let pair = Pair::new();
    let target = Arc::downgrade(&pair.target.moves);
    pair.link.after_prepare.set(move || {
        let of = Attempt {
            app: web(),
            epoch: 1,
        };
        target.upgrade().unwrap().release(&host("source"), &of);
    });
    assert_eq!(pair.moves().unwrap().0, End::Stayed);
    assert_eq!(pair.source.apps.process(), Process::Runs);
    assert_eq!(pair.target.apps.process(), Process::None);
    let record = pair.kept.lock().unwrap().record.clone().unwrap();
    assert_eq!((record.owner.as_str(), record.runs), ("source", true));
    assert_eq!(pair.moves().unwrap().0, End::Moved);
}

/// A directory stands where the journal's next content is to be written.
fn fill(dir: &Path, side: &str) {
    std::fs::create_dir(dir.join(side).join("state/moves.json.new")).unwrap();
}

fn make_room(dir: &Path, side: &str) {
    std::fs::remove_dir(dir.join(side).join("state/moves.json.new")).unwrap();
}

#[test]
fn a_full_disk_lets_it_go_on_where_it_is() {
    let pair = Pair::new();
    eventually("its record is on disk", || {
        let state = pair.dir.path().join("source/state");
        journal::Book::open(&state).record(&web()).is_some()
    });
    let dir = pair.dir.path().to_owned();
    pair.link.after_prepare.set(move || fill(&dir, "source"));
    let note = pair
        .source
        .moves
        .begin(&web(), &host("target"), Look::Ahead)
        .unwrap();
    let is_off = forebay_core::fleet::departure::Stage::CallingOff;
    eventually("it goes on", || note.shown().stage == is_off);
    assert_eq!(pair.source.apps.process(), Process::Runs);
    let why = note.shown().why.unwrap();
    assert!(why.contains("moves.json.new"), "{why}");
    // Neither the record nor supervision waits for room.
    let epoch = || pair.kept.lock().unwrap().record.clone().unwrap().epoch;
    eventually("its record says that it stays", || epoch() == 2);
    eventually("supervision has it again", || {
        !pair.source.elsewhere.borrow().contains(&web())
    });
    assert_eq!(note.end(), None);
    make_room(pair.dir.path(), "source");
    eventually("it is over", || note.end() == Some(End::Stayed));
    assert_eq!(pair.kept.lock().unwrap().owner(), "source");
    eventually("nothing waits for it", || {
        pair.target.moves.awaited().is_empty()
    });
    assert_eq!(pair.moves().unwrap().0, End::Moved);
}
/// A target whose disk is full gives it back, and takes it once there is room.
#[track_caller]
fn assert_given_back_and_moved_later(pair: &Pair) {
    assert_eq!(pair.moves().unwrap().0, End::Stayed);
    assert_eq!(pair.source.apps.process(), Process::Runs);
    assert_eq!(pair.target.apps.process(), Process::None);
    let record = pair.kept.lock().unwrap().record.clone().unwrap();
    assert_eq!((record.owner.as_str(), record.runs), ("source", true));
    make_room(pair.dir.path(), "target");
    eventually("nothing of it is left", || {
        pair.target.moves.awaited().is_empty()
    });
    assert_eq!(pair.moves().unwrap().0, End::Moved);
}

#[test]
fn a_full_disk_at_the_target_gives_it_back() {
    let pair = Pair::new();
    let dir = pair.dir.path().to_owned();
    pair.link.after_prepare.set(move || fill(&dir, "target"));
    assert_given_back_and_moved_later(&pair);
}

#[test]
fn what_others_may_take_is_frozen_although_the_coordinator_hangs() {
    let pair = Pair::new();
    *pair.source.apps.takeover.lock().unwrap() = forebay_core::fleet::tenure::Takeover::AfterLease;
    let lease = |ttl| Lease {
        renewed_at: keeper::now(),
        ttl,
    };
    pair.kept.lock().unwrap().lease = Some(lease(Duration::from_secs(600)));
    eventually("it runs", || {
        pair.source.moves.ours() == [web()] && pair.source.apps.process() == Process::Runs
    });
    pair.luck.lock().unwrap().coordinator_hangs = true;
    pair.kept.lock().unwrap().lease = Some(lease(Duration::from_millis(600)));
    // Whoever lets it go on after this daemon died ends it.
    let frozen = Process::Stands { given: true };
    eventually("it stands still", || pair.source.apps.process() == frozen);
    pair.luck.lock().unwrap().coordinator_hangs = false;
    pair.kept.lock().unwrap().lease = Some(lease(Duration::from_secs(600)));
    eventually("it goes on", || pair.source.apps.process() == Process::Runs);
}

#[test]
fn what_is_anothers_stands_still_and_is_nobodys_to_let_go() {
    let pair = Pair::new();
    let owned = |owner: &str, epoch| Ownership {
        epoch,
        ..Ownership::first(host(owner))
    };
    pair.kept.lock().unwrap().record = Some(owned("elsewhere", 7));
    let frozen = Process::Stands { given: true };
    eventually("it stands still", || pair.source.apps.process() == frozen);
    pair.kept.lock().unwrap().record = Some(owned("source", 8));
    eventually("it goes on", || pair.source.apps.process() == Process::Runs);
}

/// A keeper that looks once, at a host whose journal was left by an earlier daemon.
fn alone(
    process: Process,
    write: impl FnOnce(&journal::Book),
) -> (Arc<ModelApps>, Arc<House>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let luck = Arc::new(Mutex::new(Luck::none(1)));
    let kept = Arc::new(Mutex::new(Kept::default()));
    let apps = Arc::new(ModelApps::new(
        "here",
        dir.path().join("data"),
        Arc::clone(&luck),
        process,
        Arc::default(),
    ));
    std::fs::create_dir(dir.path().join("data")).unwrap();
    let records = Arc::new(ModelRecords::new("here", luck, kept));
    let all: (Arc<dyn Records>, Arc<dyn Peer>, Arc<dyn Apps>) = (
        records,
        Arc::new(Direct::default()),
        Arc::clone(&apps) as Arc<dyn Apps>,
    );
    let house = House::open(
        host("here"),
        dir.path(),
        all,
        watch::channel(Arc::default()).0,
    );
    write(&house.book);
    (apps, Arc::new(house), dir)
}

#[test]
fn what_a_move_froze_is_not_let_go_by_the_keeper() {
    let record = Ownership::first(host("here"));
    for mark in [
        forebay_core::fleet::departure::Mark::Frozen,
        forebay_core::fleet::departure::Mark::Committing,
    ] {
        let stands = Process::Stands { given: false };
        let (apps, house, _dir) = alone(stands, |book| {
            book.learn(&web(), &record);
            let departing = journal::Departing {
                record: record.clone(),
                there: host("there"),
                way: Way::Restart,
                mark,
            };
            book.depart(&web(), Some(departing)).unwrap();
        });
        keeper::Keeper::new(Arc::clone(&house)).look();
        assert_eq!(apps.process(), stands, "{mark:?}");
        house.book.depart(&web(), None).unwrap();
        keeper::Keeper::new(house).look();
        assert_eq!(apps.process(), Process::Runs);
    }
}

/// What a host makes of what the coordinator says, after so long; what is on record then.
fn claimed(
    process: Process,
    known: Option<Ownership>,
    (record, is_at_another): (Option<Ownership>, bool),
    after: Duration,
) -> Option<Ownership> {
    let luck = Arc::new(Mutex::new(Luck::none(1)));
    let lease = Lease {
        renewed_at: Duration::ZERO,
        ttl: Duration::from_secs(10),
    };
    let kept = Arc::new(Mutex::new(Kept {
        record,
        is_at_another,
        lease: Some(lease),
        ..Kept::default()
    }));
    let (apps, house, _dir) = alone(process, |book| {
        if let Some(known) = &known {
            book.learn(&web(), known);
        }
    });
    let records = Arc::new(ModelRecords::new("here", luck, Arc::clone(&kept)));
    let house = House {
        records,
        ..Arc::try_unwrap(house).unwrap()
    };
    let mut claims = claims::Claims::new(Arc::new(house));
    claims.read(Duration::ZERO);
    claims.read(after);
    assert_eq!(apps.process(), process);
    let kept = kept.lock().unwrap();
    kept.record.clone()
}

#[test]
fn nobody_claims_what_may_run_elsewhere() {
    let first = Some(Ownership::first(host("here")));
    let (short, long) = (Duration::from_secs(4), Duration::from_secs(11));
    let none = (None, false);
    assert_eq!(
        claimed(Process::Runs, None, none.clone(), Duration::ZERO),
        first
    );
    // One that runs it may become a member yet.
    assert_eq!(claimed(Process::None, None, none.clone(), short), None);
    assert_eq!(claimed(Process::None, None, none.clone(), long), first);
    assert_eq!(claimed(Process::None, None, (None, true), long), None);
    // The coordinator lost what it knew.
    let theirs = Ownership {
        epoch: 4,
        ..Ownership::first(host("there"))
    };
    let ours = Ownership {
        epoch: 4,
        ..Ownership::first(host("here"))
    };
    assert_eq!(
        claimed(Process::None, Some(theirs.clone()), none.clone(), long),
        None
    );
    assert_eq!(
        claimed(Process::Runs, Some(theirs.clone()), none.clone(), long),
        None
    );
    assert_eq!(
        claimed(Process::Runs, Some(ours.clone()), none, Duration::ZERO),
        Some(ours.recalled())
    );
    // Where it does not run, another host may.
    let none = (None, false);
    let unknown = claimed(Process::None, Some(ours.clone()), none.clone(), short);
    assert_eq!(unknown, None);
    let there = claimed(Process::None, Some(ours.clone()), (None, true), long);
    assert_eq!(there, None);
    let again = claimed(Process::None, Some(ours.clone()), none, long);
    assert_eq!(again, Some(ours.recalled()));
    // It was put back to before it was given away, and before it came.
    let before = Ownership {
        epoch: 2,
        ..Ownership::first(host("here"))
    };
    let kept = claimed(
        Process::None,
        Some(theirs),
        (Some(before.clone()), false),
        long,
    );
    assert_eq!(kept, Some(before));
    let before = Ownership {
        epoch: 2,
        ..Ownership::first(host("there"))
    };
    let kept = claimed(
        Process::Runs,
        Some(ours.clone()),
        (Some(before), false),
        long,
    );
    assert_eq!(kept, Some(ours.recalled()));
}

#[test]
fn nothing_begins_from_a_record_of_before() {
    let known = Ownership {
        epoch: 5,
        ..Ownership::first(host("here"))
    };
    let before = Ownership {
        epoch: 3,
        ..known.clone()
    };
    let (apps, house, _dir) = alone(Process::Runs, |book| book.learn(&web(), &known));
    let kept = Arc::new(Mutex::new(Kept {
        record: Some(before),
        ..Kept::default()
    }));
    let luck = Arc::new(Mutex::new(Luck::none(1)));
    let house = House {
        records: Arc::new(ModelRecords::new("here", luck, Arc::clone(&kept))),
        ..Arc::try_unwrap(house).unwrap()
    };
    let why = house.read_latest(&web()).unwrap_err().to_string();
    assert!(why.contains("put back to an earlier state"), "{why}");

    // Whoever waits for a move that is not over hears it, with the record gone as well.
    let departing = journal::Departing {
        record: known.clone(),
        there: host("there"),
        way: Way::Restart,
        mark: forebay_core::fleet::departure::Mark::Committing,
    };
    house.book.depart(&web(), Some(departing)).unwrap();
    let mut claims = claims::Claims::new(Arc::new(house));
    claims.read(Duration::ZERO);
    kept.lock().unwrap().record = None;
    claims.read(Duration::ZERO);
    let told = apps.told.lock().unwrap().clone();
    assert_eq!(told.len(), 2, "{told:?}");
    for told in told {
        assert!(told.contains("a move of it is not over"), "{told}");
    }
}
