//! Two hosts with all their threads: what is asked of [`Moves`], and what it refuses.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use forebay_core::fleet::departure::End;

use super::models::{self, Kept, Luck, ModelApps, ModelRecords, Process, host, web};
use crate::fleet::moves::desk::Moves;
use crate::fleet::moves::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// The link, where nothing goes wrong: paths are those of the target there.
#[derive(Debug, Default)]
struct Direct {
    hosts: OnceLock<[(HostName, Weak<Moves>, String); 2]>,
    here: OnceLock<HostName>,
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
        moves.prepare(self.here.get().unwrap(), of, contents)
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
            luck,
            kept,
            dir,
        }
    }

    /// Asks for a move and waits for its end.
    fn moves(&self) -> Result<(End, Option<String>), Refused> {
        let note = self.source.moves.begin(&web(), &host("target"))?;
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
    pair.source.moves.try_only(&web(), &host("target")).unwrap();
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
        .begin(&web(), &host("target"))
        .unwrap_err();
    assert!(refused.why().contains("is at target"), "{refused:?}");
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_touched() {
    let pair = Pair::new();
    pair.target.moves.cordon();
    pair.refuses(&["target is cordoned", "uncordon"]);
    pair.target.moves.uncordon();

    pair.target.apps.takes(Way::Checkpoint);
    pair.refuses(&["does not move by `checkpoint`"]);
    pair.target.apps.takes(Way::Restart);

    pair.target.apps.has_room(Room::default());
    pair.refuses(&["target has no room", "free some, or choose another host"]);
    pair.target.apps.has_room(models::ROOM);

    std::fs::remove_dir_all(pair.dir.path().join("target/srv")).unwrap();
    pair.refuses(&["the directory", "is missing on the target", "make it there"]);
    std::fs::create_dir_all(pair.dir.path().join("target/srv")).unwrap();

    let nowhere = pair.source.moves.begin(&web(), &host("source"));
    assert!(nowhere.unwrap_err().why().contains("where it is"));
    let note = pair.source.moves.begin(&web(), &host("z")).unwrap();
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
