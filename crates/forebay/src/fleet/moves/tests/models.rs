//! The models around the drivers: coordinator, control thread and link, with what goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use fastrand::Rng;
use forebay_core::app::{App, AppId, Binding, Class, Exec};
use forebay_core::fleet::choice::{Offer, Room};
use forebay_core::fleet::mobility::{Connections, Memory, Mobility, Way};
use forebay_core::fleet::policy::Look;
use forebay_core::fleet::tenure::{Lease, Takeover};
use forebay_core::fleet::{Epoch, HostName, Ownership};
use forebay_core::units::{Bytes, MilliCpu};
use forebay_host::fence::Unclaimed;

use crate::fleet::moves::arrive::Arrive;
use crate::fleet::moves::{
    Apps, Attempt, Content, Heard, House, Owners, Peer, Phase, Records, Trouble, Wish, body, refuse,
};

pub(super) fn web() -> AppId {
    "web".parse().unwrap()
}

pub(super) fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

/// What goes wrong, and how often: once in so many.
#[derive(Debug)]
pub(super) struct Luck {
    pub(super) rng: Rng,
    pub(super) faults: bool,
    /// The daemon that dies in the middle of what it does.
    pub(super) dying: Option<&'static str>,
    pub(super) coordinator_is_lost: bool,
    /// Who asks it waits.
    pub(super) coordinator_hangs: bool,
    pub(super) network_is_lost: bool,
}

impl Luck {
    /// Nothing goes wrong by itself.
    pub(super) fn none(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            faults: false,
            dying: None,
            coordinator_is_lost: false,
            coordinator_hangs: false,
            network_is_lost: false,
        }
    }

    pub(super) fn lose_coordinator(&mut self) {
        self.coordinator_is_lost = true;
    }

    pub(super) fn one_in(&mut self, n: u32) -> bool {
        self.faults && self.rng.u32(0..n) == 0
    }

    /// Whether what a daemon does has no effect any more.
    pub(super) fn is_dead(&mut self, name: &'static str) -> bool {
        if self.dying.is_none() && self.one_in(60) {
            self.dying = Some(name);
        }
        self.dying == Some(name)
    }
}

pub(super) type Shared<T> = Arc<Mutex<T>>;

/// No test waits longer for one that hangs.
const HANGS_MAX: Duration = Duration::from_secs(90);

/// The coordinator, as one host sees it.
#[derive(Debug)]
pub(super) struct ModelRecords {
    pub(super) name: &'static str,
    pub(super) luck: Shared<Luck>,
    pub(super) kept: Shared<Kept>,
}

#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) record: Option<Ownership>,
    /// Transactions that were sent and of which nobody heard.
    pub(super) late: Vec<(Epoch, Ownership)>,
    /// What hosts hold there.
    pub(super) lease: Option<Lease>,
    /// Another member says that the application is there.
    pub(super) is_at_another: bool,
    /// Further applications, whose records say the same.
    pub(super) more: Vec<AppId>,
    /// Requests so far.
    pub(super) asked: u64,
    /// Who is there.
    pub(super) members: BTreeMap<HostName, Offer>,
}

impl ModelRecords {
    pub(super) const fn new(name: &'static str, luck: Shared<Luck>, kept: Shared<Kept>) -> Self {
        Self { name, luck, kept }
    }
}

impl Kept {
    pub(super) fn first(owner: &str) -> Self {
        Self {
            record: Some(Ownership::first(host(owner))),
            ..Self::default()
        }
    }

    pub(super) fn owner(&self) -> String {
        self.record.as_ref().unwrap().owner.to_string()
    }

    pub(super) fn apply(&mut self, epoch: Epoch, to: &Ownership) -> bool {
        let fits = self.record.as_ref().map(|record| record.epoch) == Some(epoch);
        if fits {
            self.record = Some(to.clone());
        }
        fits
    }
}

pub(super) fn lost() -> Trouble {
    Trouble::Unknown("no answer".to_owned())
}

impl Records for ModelRecords {
    fn read(&self, _: &AppId) -> Result<Option<Ownership>, Trouble> {
        let began = std::time::Instant::now();
        while self.luck.lock().unwrap().coordinator_hangs && began.elapsed() < HANGS_MAX {
            std::thread::yield_now();
        }
        let mut luck = self.luck.lock().unwrap();
        self.kept.lock().unwrap().asked += 1;
        if luck.is_dead(self.name) || luck.coordinator_is_lost || luck.one_in(5) {
            return Err(lost());
        }
        Ok(self.kept.lock().unwrap().record.clone())
    }

    fn take_over(&self, app: &AppId, from: &Ownership, to: &Ownership) -> Result<(), Trouble> {
        if self.kept.lock().unwrap().members.contains_key(&from.owner) {
            return refuse("it is a member");
        }
        self.change(app, from.epoch, to)
    }

    fn members(&self) -> BTreeMap<HostName, Offer> {
        self.kept.lock().unwrap().members.clone()
    }

    fn all(&self) -> Result<Owners, Trouble> {
        let record = self.read(&web())?;
        let more = self.kept.lock().unwrap().more.clone();
        let names = more.into_iter().chain([web()]);
        Ok(names
            .filter_map(|name| Some((name, record.clone()?)))
            .collect())
    }

    fn heard(&self) -> Heard {
        let mut luck = self.luck.lock().unwrap();
        let kept = self.kept.lock().unwrap();
        let names = kept.more.iter().cloned().chain([web()]);
        let records = names.filter_map(|name| Some((name, kept.record.clone()?)));
        Heard {
            lease: kept.lease,
            records: Some(Arc::new(records.collect())).filter(|_| !luck.coordinator_is_lost),
            is_in_reach: !luck.coordinator_is_lost && !luck.one_in(2),
        }
    }

    fn create(&self, _: &AppId, record: &Ownership) -> Result<(), Trouble> {
        let mut kept = self.kept.lock().unwrap();
        match kept.record.is_some() {
            true => refuse("there is one"),
            false => {
                kept.record = Some(record.clone());
                Ok(())
            }
        }
    }

    fn change(&self, _: &AppId, epoch: Epoch, to: &Ownership) -> Result<(), Trouble> {
        let mut luck = self.luck.lock().unwrap();
        self.kept.lock().unwrap().asked += 1;
        if luck.is_dead(self.name) || luck.coordinator_is_lost {
            return Err(lost());
        }
        let mut kept = self.kept.lock().unwrap();
        if luck.one_in(4) {
            match luck.rng.u8(0..3) {
                0 => {}
                1 => _ = kept.apply(epoch, to),
                _ => kept.late.push((epoch, to.clone())),
            }
            return Err(lost());
        }
        let fits = kept.apply(epoch, to);
        if luck.one_in(40) {
            // Its effect, and no more.
            luck.dying = Some(self.name);
            return Err(lost());
        }
        match fits {
            true => Ok(()),
            false => refuse("another epoch"),
        }
    }

    fn is_at_another(&self, _: &AppId) -> Result<bool, Trouble> {
        Ok(self.kept.lock().unwrap().is_at_another)
    }
}

/// One host: what the control thread would do, on a directory of its own.
#[derive(Debug)]
pub(super) struct ModelApps {
    pub(super) name: &'static str,
    pub(super) data: PathBuf,
    pub(super) luck: Shared<Luck>,
    pub(super) process: Mutex<Process>,
    /// Its group is marked as one that is given away.
    pub(super) is_given: Mutex<bool>,
    /// What the user was told.
    pub(super) told: Mutex<Vec<String>>,
    pub(super) reached: Shared<u64>,
    pub(super) way: Mutex<Way>,
    pub(super) takeover: Mutex<Takeover>,
    pub(super) room: Mutex<Room>,
    /// There are images of its program.
    pub(super) has_images: Mutex<bool>,
    /// Further applications, which are like the first one.
    pub(super) more: Mutex<Vec<AppId>>,
    /// How often it was frozen.
    pub(super) froze: Mutex<u32>,
    /// Done before the next start, which may be refused by that.
    pub(super) at_start: Hook<Result<(), Trouble>>,
    /// Done before the next freeze.
    pub(super) at_freeze: Hook<()>,
    /// Its files go along.
    pub(super) has_files: Mutex<bool>,
    /// What the guardian was told.
    pub(super) may_run: Mutex<(Duration, BTreeSet<AppId>)>,
    /// Whom each shares no host with.
    pub(super) apart: Mutex<BTreeMap<AppId, BTreeSet<AppId>>>,
    /// Whoever looks at this one panics.
    pub(super) confuses: Mutex<Option<AppId>>,
}

/// Something that is done once.
pub(super) struct Hook<T = ()>(Mutex<Option<Box<dyn FnOnce() -> T + Send>>>);

impl<T> Default for Hook<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> std::fmt::Debug for Hook<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook").finish_non_exhaustive()
    }
}

impl<T> Hook<T> {
    pub(super) fn set(&self, what: impl FnOnce() -> T + Send + 'static) {
        *self.0.lock().unwrap() = Some(Box::new(what));
    }

    pub(super) fn pull(&self) -> Option<T> {
        let what = self.0.lock().unwrap().take();
        what.map(|what| what())
    }
}

/// What there is on every host.
pub(super) const ROOM: Room = Room {
    cpu: MilliCpu(1000),
    memory: Bytes::mib(64),
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Process {
    None,
    Runs,
    Stands { given: bool },
}

pub(super) fn last_number(data: &Path) -> u64 {
    let text = std::fs::read_to_string(data.join("numbers")).unwrap_or_default();
    let lines: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    let count = u64::try_from(lines.len()).unwrap();
    assert!(lines.iter().copied().eq(1..=count), "{lines:?}");
    count
}

impl ModelApps {
    pub(super) fn new(
        name: &'static str,
        data: PathBuf,
        luck: Shared<Luck>,
        process: Process,
        reached: Shared<u64>,
    ) -> Self {
        Self {
            name,
            data,
            luck,
            process: Mutex::new(process),
            is_given: Mutex::new(false),
            told: Mutex::new(Vec::new()),
            reached,
            way: Mutex::new(Way::Restart),
            takeover: Mutex::new(Takeover::Never),
            room: Mutex::new(ROOM),
            has_images: Mutex::new(true),
            more: Mutex::default(),
            froze: Mutex::default(),
            at_start: Hook::default(),
            at_freeze: Hook::default(),
            has_files: Mutex::new(true),
            may_run: Mutex::default(),
            apart: Mutex::default(),
            confuses: Mutex::default(),
        }
    }

    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    pub(super) fn takes(&self, way: Way) {
        *self.way.lock().unwrap() = way;
    }

    pub(super) fn has_room(&self, room: Room) {
        *self.room.lock().unwrap() = room;
    }

    pub(super) fn process(&self) -> Process {
        *self.process.lock().unwrap()
    }

    /// It runs, and goes on from where it was.
    pub(super) fn run(&self) {
        if self.process() == Process::Runs {
            let number = last_number(&self.data) + 1;
            let mut reached = self.reached.lock().unwrap();
            assert_eq!(number, *reached + 1, "{}: what it did was lost", self.name);
            *reached = number;
            let mut file = std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(self.data.join("numbers"))
                .unwrap();
            writeln!(file, "{number}").unwrap();
        }
    }

    pub(super) fn begin(&self) {
        assert_eq!(self.process(), Process::None);
        let reached = *self.reached.lock().unwrap();
        assert_eq!(
            last_number(&self.data),
            reached,
            "{}: it starts from before",
            self.name
        );
        *self.process.lock().unwrap() = Process::Runs;
    }

    /// Somebody who is not its daemon puts the host back.
    pub(super) fn restore(&self) {
        let mut process = self.process.lock().unwrap();
        *process = match *process {
            Process::Stands { given: true } => Process::None,
            Process::Stands { given: false } => Process::Runs,
            other => other,
        };
    }

    /// Does something, refuses it, or does it and does not say so.
    pub(super) fn own(&self, deed: impl FnOnce(&mut Process)) -> Result<(), Trouble> {
        let mut luck = self.luck.lock().unwrap();
        if luck.is_dead(self.name) {
            return Err(lost());
        }
        if luck.one_in(12) {
            return refuse("the host is busy");
        }
        drop(luck);
        deed(&mut self.process.lock().unwrap());
        match self.luck.lock().unwrap().one_in(12) {
            true => Err(lost()),
            false => Ok(()),
        }
    }
}

impl Apps for ModelApps {
    fn app(&self, id: &AppId) -> Option<App> {
        let exec = Exec::of(vec!["/bin/true".to_owned()]);
        let data = match *id == web() {
            true => self.data.clone(),
            false => self.data.with_file_name(id.as_str()),
        };
        let has_files = *self.has_files.lock().unwrap();
        let mut app = App::new(id.clone(), Class::Standard, Binding::Exec(exec));
        app.mobility = Some(Mobility {
            way: *self.way.lock().unwrap(),
            files: Vec::from_iter(has_files.then_some(data)),
            takeover: *self.takeover.lock().unwrap(),
            connections: Connections::Refuse,
            memory: Memory::PreCopy,
            address: None,
            apart: self
                .apart
                .lock()
                .unwrap()
                .get(id)
                .cloned()
                .unwrap_or_default(),
        });
        Some(app)
    }

    fn movable(&self) -> Vec<App> {
        let more = self.more.lock().unwrap().clone();
        let names = more.iter().chain([&web()]).cloned().collect::<Vec<_>>();
        names.iter().filter_map(|name| self.app(name)).collect()
    }

    fn runs(&self, id: &AppId) -> Option<bool> {
        let is_confused = self.confuses.lock().unwrap().as_ref() == Some(id);
        assert!(!is_confused, "nobody foresaw this");
        match self.luck.lock().unwrap().one_in(20) {
            true => None,
            false => Some(self.process() != Process::None),
        }
    }

    fn freeze(&self, _: &AppId) -> Result<(), Trouble> {
        self.at_freeze.pull();
        *self.froze.lock().unwrap() += 1;
        self.own(|process| {
            if *process == Process::Runs {
                let given = *self.is_given.lock().unwrap();
                *process = Process::Stands { given };
            }
        })
    }

    fn thaw(&self, _: &AppId) -> Result<(), Trouble> {
        self.own(|process| {
            if let Process::Stands { given } = *process {
                assert!(!given, "let go while it may be another's");
                *process = Process::Runs;
            }
        })
    }

    fn is_given(&self, _: &AppId) -> bool {
        self.process() == Process::Stands { given: true }
    }

    fn end(&self, _: &AppId) -> Result<(), Trouble> {
        self.own(|process| {
            assert_ne!(*process, Process::Runs, "ended while it ran");
            *process = Process::None;
        })
    }

    fn start(&self, _: &AppId) -> Result<(), Trouble> {
        assert!(
            !*self.has_images.lock().unwrap(),
            "begun from an image of before it came"
        );
        if let Some(refused @ Err(_)) = self.at_start.pull() {
            return refused;
        }
        let mut begins = false;
        let done = self.own(|process| begins = *process == Process::None);
        if begins {
            self.begin();
        }
        done
    }

    fn forget_images(&self, _: &AppId) -> Result<(), Trouble> {
        let process = self.process();
        assert_eq!(
            process,
            Process::None,
            "images of what is there were removed"
        );
        *self.has_images.lock().unwrap() = false;
        Ok(())
    }

    fn give(&self, _: &AppId, _: Unclaimed) -> Result<(), Trouble> {
        self.own(|process| {
            *self.is_given.lock().unwrap() = true;
            if let Process::Stands { given } = process {
                *given = true;
            }
        })
    }

    fn keep(&self, _: &AppId) -> Result<(), Trouble> {
        self.own(|process| {
            *self.is_given.lock().unwrap() = false;
            if let Process::Stands { given } = process {
                *given = false;
            }
        })
    }

    fn may_run(&self, until: Duration, apps: &BTreeSet<AppId>) -> Result<(), Trouble> {
        *self.may_run.lock().unwrap() = (until, apps.clone());
        Ok(())
    }

    fn need(&self, _: &AppId, _: Look) -> Room {
        Room {
            cpu: MilliCpu(100),
            memory: Bytes::mib(1),
        }
    }

    fn room(&self, _: Class, _: Look) -> Room {
        *self.room.lock().unwrap()
    }

    fn tell(&self, _: &AppId, what: String) {
        self.told.lock().unwrap().push(what);
    }

    fn warn(&self, _: &AppId, what: String) {
        self.told.lock().unwrap().push(what);
    }
}

/// The link from the source to the target.
#[derive(Debug)]
pub(super) struct ModelPeer {
    pub(super) luck: Shared<Luck>,
    pub(super) from: PathBuf,
    pub(super) target: Weak<Target>,
}

/// The target's daemon, as others reach it.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) arrive: Mutex<Option<Arrive>>,
    pub(super) clock: Mutex<Duration>,
    pub(super) house: Mutex<Option<Arc<House>>>,
    pub(super) data: PathBuf,
    pub(super) luck: Shared<Luck>,
}

impl Target {
    pub(super) fn house(&self) -> Option<Arc<House>> {
        self.house.lock().unwrap().clone()
    }

    fn reserve(&self, wish: &Wish) -> Result<(), String> {
        let house = self.house().ok_or("it is down")?;
        // A target takes nothing in beside what came before.
        let mut arrive = self.arrive.lock().unwrap();
        let content = house.book.content();
        if arrive.is_some() || !content.arrivals.is_empty() || !content.departures.is_empty() {
            return Err("it is on its way already".to_owned());
        }
        if house.apps.runs(&web()) != Some(false) {
            return Err("it is there already".to_owned());
        }
        let app = house.apps.app(&web()).ok_or("no app")?;
        let body = body::coming(&app, &house.apps, &house.state_dir)?;
        let what = (web(), wish.way, wish.record.clone());
        let at = *self.clock.lock().unwrap();
        *arrive = Some(Arrive::begin(Arc::clone(&house), what, body, at)?);
        Ok(())
    }

    pub(super) fn with<T>(
        &self,
        of: &Attempt,
        ask: impl FnOnce(&mut Arrive, Duration) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let at = *self.clock.lock().unwrap();
        let mut arrive = self.arrive.lock().unwrap();
        match arrive.as_mut().filter(|arrive| arrive.attempt() == *of) {
            Some(arrive) => ask(arrive, at),
            None => refuse("no such move is known"),
        }
    }
}

impl ModelPeer {
    pub(super) fn ask<T>(
        &self,
        ask: impl FnOnce(&Target) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let target = self.target.upgrade().unwrap();
        {
            let mut luck = self.luck.lock().unwrap();
            if luck.is_dead("source") || luck.network_is_lost || luck.one_in(15) {
                return Err(lost());
            }
        }
        let answer = ask(&target);
        let mut luck = self.luck.lock().unwrap();
        match luck.dying == Some("target") || luck.one_in(15) {
            true => Err(lost()),
            false => answer,
        }
    }

    /// Paths of the source, as they are on the target.
    pub(super) fn there(&self, text: &str, target: &Target) -> String {
        let (from, to) = (self.from.to_str().unwrap(), target.data.to_str().unwrap());
        text.replace(from, to)
    }
}

impl Peer for ModelPeer {
    fn reserve(&self, _: &HostName, wish: &Wish) -> Result<(), Trouble> {
        self.ask(|target| target.reserve(wish).map_err(Trouble::Refused))
    }

    fn send(
        &self,
        _: &HostName,
        of: &Attempt,
        (phase, content, bytes): (Phase, &Content, u64),
        from: &mut (dyn Read + Send),
    ) -> Result<(), Trouble> {
        let mut data = Vec::new();
        let read = from
            .take(bytes)
            .read_to_end(&mut data)
            .map_err(|e| e.to_string());
        read.map_err(Trouble::Refused)?;
        self.ask(|target| {
            let content = Content {
                name: self.there(&content.name, target),
                ..content.clone()
            };
            if content.kind == "list" {
                let text = String::from_utf8(data).unwrap();
                data = self.there(&text, target).into_bytes();
            }
            let whole = u64::try_from(data.len()).unwrap();
            // The file became shorter while it was read, or the connection broke.
            if target.luck.lock().unwrap().one_in(20) {
                data.truncate(data.len() / 2);
            }
            target.with(of, |arrive, at| {
                let parcel = (phase, &content, whole.max(bytes.min(whole)));
                arrive
                    .take(parcel, &mut data.as_slice(), || at)
                    .map_err(Trouble::Refused)
            })
        })
    }

    fn prepare(&self, _: &HostName, of: &Attempt, contents: &[Content]) -> Result<(), Trouble> {
        self.ask(|target| target.with(of, |arrive, at| arrive.prepare(contents, || at)))
    }

    fn release(&self, _: &HostName, of: &Attempt) -> Result<(), Trouble> {
        self.ask(|target| {
            target.with(of, |arrive, _| {
                arrive.drop_it(of);
                Ok(())
            })
        })
    }
}
