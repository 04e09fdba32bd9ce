//! All moves of one host: the threads that take their steps, and where moves are asked for and shown.
//!
//! ```text
//! API ── begin, cancel ──▶ a thread for each move away, AWAY_MAX at most
//! other hosts ── reserve, take, prepare, release ──▶ Arrive, on the thread of their connection
//! a thread for each move to here, which takes its other steps; one for promises, the keeper, and records each
//! ```
//!
//! The threads are in [`super::threads`].

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId};
use forebay_core::fleet::departure::Mark;
use forebay_core::fleet::mobility::Way;
use forebay_core::fleet::policy::{Homes, Look};
use forebay_core::fleet::promises::{self, Promises};
use forebay_core::fleet::taking::{TAKES_MAX, Takes};
use forebay_core::fleet::{HostName, HostNameError};
use forebay_core::units::Bytes;
use forebay_host::checkpoint::lend::Pages;

use super::arrive::Arrive;
use super::depart::Depart;
use super::keeper::now;
use super::note::{Ended, Note, Shown};
use super::{Attempt, Content, House, Outlook, Phase, Trouble, Wish, body};
use crate::fleet::guard::guarded;

/// Moves away at a time: each is a stream that others have to make room for.
const AWAY_MAX: usize = 4;
/// Moves to here at a time. Promises bound them as well; what an earlier daemon left comes in beside.
const COMING_MAX: usize = 8;
/// How long moves that can still be given up have for that when the daemon ends.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Why something is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is no such application, or host.
    NoSuch(String),
    /// Too much at a time, or not now.
    Busy(String),
    /// It cannot be: why, and what to do.
    Cannot(String),
}

impl Refused {
    pub(crate) fn why(&self) -> &str {
        let (Self::NoSuch(why) | Self::Busy(why) | Self::Cannot(why)) = self;
        why
    }
}

/// What is shown of a move to here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Awaited {
    pub(crate) app: AppId,
    pub(crate) from: HostName,
    pub(crate) stage: forebay_core::fleet::arrival::Stage,
    pub(crate) why: Option<String>,
}

/// What a target is asked before it touches anything.
#[derive(Debug, Clone)]
pub(super) struct Promised {
    from: HostName,
    wish: Wish,
}

/// One move to here.
#[derive(Debug)]
pub(super) struct Coming {
    pub(super) from: HostName,
    pub(super) of: Attempt,
    /// Held for as long as its source sends one content: nobody waits for it with other locks held.
    pub(super) arrive: Mutex<Arrive>,
    /// Not before this, by [`now`].
    pub(super) due: Mutex<Duration>,
}

/// What host is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// One that is clearly better than this one.
    Better,
    /// Any with room.
    Other,
}

/// Instead of a host: any other with room.
pub(crate) const ANYWHERE: &str = "*";

/// Chooses the host with the most room for an application.
pub(crate) type Choose = Arc<dyn Fn(&AppId, Wanted) -> Result<HostName, String> + Send + Sync>;

/// Where moves are asked for. All of it may block for some seconds.
#[derive(Clone)]
pub(crate) struct Desk {
    pub(crate) moves: Arc<Moves>,
    pub(crate) choose: Choose,
    pub(crate) drain: Arc<super::Drain>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Desk {
    /// The host that is meant: a name, `auto`, or [`ANYWHERE`]; and the room there by which it is judged. Who
    /// names one knows best what is to come.
    ///
    /// # Errors
    /// It is no name, or no host has room.
    pub(crate) fn target(&self, app: &AppId, to: &str) -> Result<(HostName, Look), Refused> {
        let wanted = match to {
            "auto" => Wanted::Better,
            ANYWHERE => Wanted::Other,
            name => {
                let parsed = name.parse();
                let parsed =
                    parsed.map_err(|error: HostNameError| Refused::Cannot(error.to_string()));
                return Ok((parsed?, Look::Present));
            }
        };
        let chosen = (self.choose)(app, wanted).map_err(Refused::Cannot);
        Ok((chosen?, Look::Ahead))
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// The latest of each application.
    pub(super) away: BTreeMap<AppId, Arc<Note>>,
    pub(super) threads: Vec<JoinHandle<()>>,
    pub(super) coming: BTreeMap<AppId, Arc<Coming>>,
    pub(super) promises: Promises,
    pub(super) promised: BTreeMap<AppId, Promised>,
    /// Of which it is being asked whether they could move.
    tried: BTreeSet<AppId>,
    pub(super) is_stopping: bool,
    /// Moves away that are over since the daemon began.
    pub(super) ended: Ended,
}

impl State {
    /// Whether an application is on its way here, or was promised room.
    fn expects(&self, app: &AppId) -> bool {
        self.coming.contains_key(app) || self.promised.contains_key(app)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Moves {
    pub(super) house: Arc<House>,
    pub(super) state: Mutex<State>,
    /// Something is to be done before whoever sleeps looks by itself.
    pub(super) bell: Condvar,
    /// It takes no more.
    cordoned: AtomicBool,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Moves {
    /// Goes on with what the journal says, and starts the thread of moves.
    ///
    /// # Errors
    /// When the system starts no thread.
    pub(crate) fn start(house: House) -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        let moves = Arc::new(Self {
            house: Arc::new(house),
            state: Mutex::default(),
            bell: Condvar::new(),
            cordoned: AtomicBool::new(false),
        });
        body::checkpoint::attend_owed(&moves.house.apps);
        moves.resume()?;
        let thread = moves.attend_all()?;
        Ok((moves, thread))
    }

    fn resume(self: &Arc<Self>) -> std::io::Result<()> {
        let content = self.house.book.content();
        for (app, departing) in &content.departures {
            let note = Note::new(app.clone(), departing.there.clone(), departing.way);
            let note = Arc::new(note);
            let house = Arc::clone(&self.house);
            let Some(body) = self.body_of(app, |app| body::leaving(app, &house.apps)) else {
                continue;
            };
            let depart = Depart::resume(house, Arc::clone(&note), departing, body);
            self.drive(&mut locked(&self.state), depart)?;
        }
        for (app, arriving) in &content.arrivals {
            let house = Arc::clone(&self.house);
            let body = |app: &App| body::coming(app, &house.apps, &house.state_dir);
            if let Some(body) = self.body_of(app, body) {
                let arrive = Arrive::resume(Arc::clone(&house), app.clone(), arriving, body, now());
                self.attend(&mut locked(&self.state), &Arc::new(Coming::new(arrive)))?;
            }
        }
        Ok(())
    }

    /// What moves of an application that was moving when the daemon ended.
    pub(super) fn body_of<T>(
        &self,
        id: &AppId,
        make: impl FnOnce(&App) -> Result<T, String>,
    ) -> Option<T> {
        let app = self.house.apps.app(id);
        let made = app
            .ok_or_else(|| "it is not configured any more; configure it again".to_owned())
            .and_then(|app| make(&app));
        let why = match made {
            Ok(made) => return Some(made),
            Err(why) => why,
        };
        let what =
            format!("its move that is not over cannot go on: {why}, and start the daemon again");
        self.house.apps.warn(id, what);
        None
    }

    /// Begins a move away.
    ///
    /// # Errors
    /// It cannot begin; nothing was touched. What is found out by asking the target is in the [`Note`].
    pub(crate) fn begin(
        self: &Arc<Self>,
        app: &AppId,
        to: &HostName,
        look: Look,
    ) -> Result<Arc<Note>, Refused> {
        let mut depart = self.prepared(app, to)?;
        depart.look = look;
        let note = Arc::clone(&depart.note);
        let mut state = locked(&self.state);
        {
            let under_way = |note: &Arc<Note>| note.end().is_none();
            if state.away.get(app).is_some_and(under_way) {
                return Err(Refused::Busy(format!(
                    "{app} is on its way already; `forebay move` shows how far"
                )));
            }
            if state.tried.contains(app) {
                return Err(Refused::Busy(format!(
                    "another one asks whether {app} could move; try again"
                )));
            }
            if state.is_stopping {
                return Err(Refused::Busy("the daemon is stopping".to_owned()));
            }
            if state.away.values().filter(|note| under_way(note)).count() >= AWAY_MAX {
                return Err(Refused::Busy(format!(
                    "{AWAY_MAX} apps are on their way from here; try again when one is there"
                )));
            }
        }
        self.drive(&mut state, depart)
            .map_err(|error| Refused::Busy(format!("start a thread that moves {app}: {error}")))?;
        Ok(note)
    }

    /// What a move would find, without one, and what it would be.
    ///
    /// # Errors
    /// Why it would be refused.
    pub(crate) fn try_only(
        &self,
        app: &AppId,
        to: &HostName,
        look: Look,
    ) -> Result<Outlook, Refused> {
        // It ends with giving the room back, which must be nobody else's.
        let mut tried = self.prepared(app, to)?;
        tried.look = look;
        {
            let mut state = locked(&self.state);
            let under_way = |note: &Arc<Note>| note.end().is_none();
            if state.away.get(app).is_some_and(under_way) || !state.tried.insert(app.clone()) {
                return Err(Refused::Busy(format!(
                    "{app} is on its way, or is about to be; `forebay move` shows how far"
                )));
            }
        }
        let tried = tried.try_only();
        locked(&self.state).tried.remove(app);
        tried.map_err(|trouble| Refused::Cannot(trouble.to_string()))
    }

    /// A move that did not begin: what is known here does not speak against it.
    fn prepared(&self, id: &AppId, to: &HostName) -> Result<Depart, Refused> {
        let house = &self.house;
        if let Some(why) = house.book.broken() {
            return Err(Refused::Cannot(why.to_owned()));
        }
        let app = house
            .apps
            .app(id)
            .ok_or_else(|| Refused::NoSuch(format!("no app `{id}`; `forebay apps` lists them")))?;
        let body = body::leaving(&app, &house.apps).map_err(Refused::Cannot)?;
        let way = app.mobility.as_ref().map(|mobility| mobility.way);
        let way = way.ok_or_else(|| Refused::Cannot(format!("{id} is pinned to its host")))?;
        if *to == house.here {
            let what = format!("{id} is to move to {to}, where it is; name another host");
            return Err(Refused::Cannot(what));
        }
        if let Some(coming) = locked(&self.state).coming.get(id).cloned() {
            let from = &coming.from;
            let what = format!("{id} is on its way here from {from}; wait until that is over");
            return Err(Refused::Busy(what));
        }
        let under_way = |note: &Arc<Note>| note.end().is_none();
        let driven = locked(&self.state).away.get(id).is_some_and(under_way);
        if !driven && house.book.content().departures.contains_key(id) {
            let what =
                format!("a move of {id} is not over, and cannot go on: see `forebay events`");
            return Err(Refused::Busy(what));
        }
        let record = match house.read_latest(id) {
            Ok(Some(record)) => record,
            Ok(None) => {
                let what = format!("{id} is nobody's yet; try again in a few seconds");
                return Err(Refused::Busy(what));
            }
            Err(trouble) => {
                let what =
                    format!("whose {id} is cannot be read, and nothing moves meanwhile: {trouble}");
                return Err(Refused::Busy(what));
            }
        };
        if record.owner != house.here {
            let what = format!("{id} is at {}; ask there", record.owner);
            return Err(Refused::Cannot(what));
        }
        let note = Arc::new(Note::new(id.clone(), to.clone(), way));
        Ok(Depart::begin(Arc::clone(house), note, record, body))
    }

    /// Gives a move up, as far as that is still possible.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn cancel(&self, app: &AppId) -> Result<(), Refused> {
        let state = locked(&self.state);
        match state.away.get(app).filter(|note| note.end().is_none()) {
            Some(note) => {
                note.cancel();
                Ok(())
            }
            None => Err(Refused::NoSuch(format!(
                "{app} is not on its way from here; `forebay move` shows what is"
            ))),
        }
    }

    /// The latest move away of each application.
    pub(crate) fn away(&self) -> Vec<(Arc<Note>, Shown)> {
        let notes: Vec<Arc<Note>> = locked(&self.state).away.values().cloned().collect();
        notes
            .into_iter()
            .map(|note| {
                let shown = note.shown();
                (note, shown)
            })
            .collect()
    }

    /// Where an application of this host was before.
    pub(crate) fn homes(&self, app: &AppId) -> Homes {
        self.house.past.homes(app)
    }

    /// This host.
    pub(crate) fn here(&self) -> &HostName {
        &self.house.here
    }

    /// Says which applications are not this host's to start, where there are others now than before.
    pub(crate) fn look_whose(&self) {
        self.house.publish(now());
    }

    /// Takes no more from now on; what is on its way here comes.
    pub(crate) fn cordon(&self) {
        self.cordoned.store(true, Ordering::Relaxed);
    }

    /// Takes them again.
    pub(crate) fn uncordon(&self) {
        self.cordoned.store(false, Ordering::Relaxed);
    }

    /// Whether it takes no more.
    pub(crate) fn is_cordoned(&self) -> bool {
        self.cordoned.load(Ordering::Relaxed)
    }

    /// The movable applications that this host owns, as far as it is known.
    pub(crate) fn ours(&self) -> Vec<AppId> {
        let records = self.house.book.content().records;
        let is_ours = |app: &App| {
            let record = records.get(&app.id);
            record.is_some_and(|record| record.owner == self.house.here)
        };
        let movable = self.house.apps.movable().into_iter();
        movable.filter(is_ours).map(|app| app.id).collect()
    }

    /// Whose an application is, as the coordinator says now. Blocks.
    ///
    /// # Errors
    /// It cannot be read: why.
    pub(crate) fn owner(&self, app: &AppId) -> Result<Option<HostName>, String> {
        let record = self.house.read_latest(app);
        let record = record.map_err(|trouble| trouble.to_string())?;
        Ok(record.map(|record| record.owner))
    }

    /// Why nothing moves, if so.
    pub(crate) fn broken(&self) -> Option<String> {
        self.house.book.broken().map(str::to_owned)
    }

    /// Those that are on their way here.
    pub(crate) fn awaited(&self) -> Vec<Awaited> {
        let coming: Vec<Arc<Coming>> = locked(&self.state).coming.values().cloned().collect();
        let shown = coming.iter().map(|coming| {
            // While it is held, its source sends.
            let arrive = coming.arrive.try_lock().ok();
            let stage = arrive.as_ref().map(|arrive| arrive.stage());
            Awaited {
                app: coming.of.app.clone(),
                from: coming.from.clone(),
                stage: stage.unwrap_or(forebay_core::fleet::arrival::Stage::Receiving),
                why: arrive.and_then(|arrive| arrive.why.clone()),
            }
        });
        shown.collect()
    }

    /// Room that is promised, as it is published.
    pub(crate) fn promised(
        &self,
    ) -> BTreeMap<forebay_core::app::Class, forebay_core::fleet::choice::Room> {
        locked(&self.state).promises.by_class()
    }

    /// What would be taken in here, as it is published; none where that is too much. Looks at files and starts CRIU.
    pub(crate) fn takes(&self) -> Option<Takes> {
        let house = &self.house;
        let movable = house.apps.movable();
        if movable.len() > TAKES_MAX {
            return None;
        }
        let with_memory = |app: &App| {
            let mobility = app.mobility.as_ref();
            mobility.is_some_and(|mobility| mobility.way == Way::Checkpoint)
        };
        let criu = match movable.iter().any(with_memory) {
            true => body::checkpoint::can_land(house.apps.ground().as_ref()),
            false => Ok(()),
        };
        let taking = |app: App| {
            let mut taking = body::taking(&app, &house.apps, (&house.state_dir, &criu)).ok()?;
            taking.obstacle = taking
                .obstacle
                .or_else(|| house.crowds(&app.id, |mate| locked(&self.state).expects(mate)));
            Some((app.id, taking))
        };
        Some(movable.into_iter().filter_map(taking).collect())
    }

    /// Lends memory of what stands still here to the host that it moves to.
    ///
    /// # Errors
    /// It lends nothing to that one: why.
    pub(crate) fn lend(
        &self,
        to: &HostName,
        of: &Attempt,
        pages: &[Pages],
    ) -> Result<Vec<u8>, String> {
        let house = &self.house;
        let departing = house
            .book
            .look(|content| content.departures.get(&of.app).cloned());
        // Before it is marked as what may stand still it runs, and nothing says what is in its memory.
        let lends = departing.is_some_and(|one| {
            (&one.there, one.record.epoch) == (to, of.epoch) && one.mark != Mark::Begun
        });
        match lends {
            true => body::checkpoint::lend(house.apps.ground(), &of.app, pages),
            false => Err(format!(
                "{} of epoch {} does not move from {} to {to}: nothing is lent",
                of.app, of.epoch, house.here
            )),
        }
    }

    /// How much of the memory of an application that came here is still to come; none where nothing is needed of where
    /// it was any more. Asked when its record says that it runs here. What a later attempt brings is not what this one
    /// owes: it began only after all of this one was here, or lost.
    ///
    /// # Errors
    /// It cannot be found out.
    pub(crate) fn owes(&self, of: &Attempt) -> Result<Option<Bytes>, String> {
        let (app, ground) = (&of.app, self.house.apps.ground());
        let state = locked(&self.state);
        let comes = state.coming.get(app).map(|coming| coming.of.epoch);
        if comes.is_some_and(|epoch| epoch > of.epoch) {
            return Ok(None);
        }
        let owes = body::checkpoint::owes(ground.as_ref(), app)?;
        let arrives = |content: &super::journal::Content| content.arrivals.contains_key(app);
        // Held, so that nothing of a later one begins to come in meanwhile.
        if owes.is_none() && !state.coming.contains_key(app) && !self.house.book.look(arrives) {
            body::checkpoint::forget_owed(ground.as_ref(), app)?;
        }
        Ok(owes)
    }

    /// Another host asks for room, or for longer.
    ///
    /// # Errors
    /// Why it is not given; nothing is kept then.
    pub(crate) fn reserve(&self, from: &HostName, wish: &Wish) -> Result<(), Refused> {
        let house = &self.house;
        let id = &wish.app;
        if let Some(why) = house.book.broken() {
            return Err(Refused::Cannot(format!("{}: {why}", house.here)));
        }
        if self.is_cordoned() {
            let what = format!(
                "{} is cordoned and takes no apps; `forebay fleet uncordon`",
                house.here
            );
            return Err(Refused::Cannot(what));
        }
        if wish.record.owner != *from {
            let what = format!(
                "{id} is {}'s, and {from} may not give it away",
                wish.record.owner
            );
            return Err(Refused::Cannot(what));
        }
        let app = house.apps.app(id).ok_or_else(|| {
            Refused::Cannot(format!(
                "{id} is not configured on {}; write the same [apps.{id}] there",
                house.here
            ))
        })?;
        let body = body::coming(&app, &house.apps, &house.state_dir)
            .map_err(|why| Refused::Cannot(format!("{} takes {id} not in: {why}", house.here)))?;
        let way = app.mobility.as_ref().map(|mobility| mobility.way);
        if way != Some(wish.way) {
            let what = format!(
                "{id} moves by `{}` on {from} and not on {}; give it the same `move.mode` on both",
                wish.way, house.here
            );
            return Err(Refused::Cannot(what));
        }
        body.fits(&wish.requires).map_err(Refused::Cannot)?;
        let of = Attempt {
            app: id.clone(),
            epoch: wish.record.epoch,
        };
        let content = house.book.content();
        let leaving = content.departures.get(id).map(|departing| &departing.there);
        let mut state = locked(&self.state);
        if let Some(why) = house.crowds(id, |mate| state.expects(mate)) {
            return Err(Refused::Cannot(why));
        }
        if let Some(coming) = state.coming.get(id).cloned() {
            if !coming.is(from, &of) {
                return Err(Refused::Busy(format!(
                    "{id} is already on its way from {} to {}; wait until that is over",
                    coming.from, house.here
                )));
            }
        } else if wish.way != Way::Handoff && house.apps.runs(id) != Some(false) {
            return Err(Refused::Cannot(format!(
                "processes of {id} are there on {}; end them: `forebay explain {id}` there shows them",
                house.here
            )));
        }
        let room = house.apps.room(app.class, wish.look);
        let asked = (from, wish.class, wish.need);
        let promise = state.promises.promise(now(), id, asked, room, leaving);
        promise.map_err(|refusal| match refusal {
            promises::Refusal::Full { .. } => {
                Refused::Cannot(format!("{} has no room: {refusal}", house.here))
            }
            promises::Refusal::Busy { .. } | promises::Refusal::Underway { .. } => {
                Refused::Busy(format!("{}: {refusal}", house.here))
            }
        })?;
        let promised = Promised {
            from: from.clone(),
            wish: wish.clone(),
        };
        state.promised.insert(id.clone(), promised);
        house.past.comes(id, &wish.homes);
        Ok(())
    }

    /// The arrival that somebody speaks of; one that room was promised to begins.
    fn coming(self: &Arc<Self>, from: &HostName, of: &Attempt) -> Result<Arc<Coming>, Refused> {
        let unknown = || {
            Refused::Cannot(format!(
                "no room is kept for {} from {from} on {}; move it again",
                of.app, self.house.here
            ))
        };
        let mut state = locked(&self.state);
        if let Some(coming) = state.coming.get(&of.app).cloned() {
            let is_it = coming.is(from, of);
            return is_it.then_some(coming).ok_or_else(unknown);
        }
        let promised = state
            .promised
            .get(&of.app)
            .filter(|promised| promised.from == *from && promised.wish.record.epoch == of.epoch);
        let wish = promised.ok_or_else(unknown)?.wish.clone();
        if state.coming.len() >= COMING_MAX {
            return Err(Refused::Busy(format!(
                "{COMING_MAX} apps are on their way to {}; try again when one is there",
                self.house.here
            )));
        }
        let app = self.house.apps.app(&of.app).ok_or_else(unknown)?;
        let body =
            body::coming(&app, &self.house.apps, &self.house.state_dir).map_err(Refused::Cannot)?;
        let house = Arc::clone(&self.house);
        let arrive = Arrive::begin(house, (wish.app, wish.way, wish.record), body, now())
            .map_err(Refused::Cannot)?;
        let coming = Arc::new(Coming::new(arrive));
        self.attend(&mut state, &coming).map_err(|error| {
            Refused::Busy(format!(
                "start a thread that takes {} in: {error}; check limits on threads",
                of.app
            ))
        })?;
        Ok(coming)
    }

    /// Another host sends.
    ///
    /// # Errors
    /// It is not awaited, or did not come whole.
    pub(crate) fn take(
        self: &Arc<Self>,
        from: &HostName,
        of: &Attempt,
        parcel: (Phase, &Content, u64),
        bytes: &mut dyn Read,
    ) -> Result<(), Refused> {
        let coming = self.coming(from, of)?;
        self.renew(from, of);
        let mut arrive = locked(&coming.arrive);
        let taken = guarded(|| arrive.take(parcel, bytes, now));
        taken
            .unwrap_or_else(|why| Err(self.relieve(&of.app, &mut arrive, &why)))
            .map_err(Refused::Cannot)
    }

    /// Keeps the room for longer: its source was heard.
    pub(super) fn renew(&self, from: &HostName, of: &Attempt) {
        let mut state = locked(&self.state);
        // One that an earlier daemon promised is not known any more.
        let Some(Promised { wish, .. }) = state.promised.get(&of.app).cloned() else {
            return;
        };
        let room = self.house.apps.room(wish.class, wish.look);
        let asked = (from, wish.class, wish.need);
        let renewed = state.promises.promise(now(), &of.app, asked, room, None);
        if let Err(refusal) = renewed {
            tracing::debug!(app = %of.app, %refusal, "its room is not kept longer");
        }
    }

    /// All was sent.
    ///
    /// # Errors
    /// No copy stands still, or it is not known whether one does.
    pub(crate) fn prepare(
        self: &Arc<Self>,
        from: &HostName,
        of: &Attempt,
        contents: &[Content],
    ) -> Result<(), Trouble> {
        let coming = self.coming(from, of);
        let coming = coming.map_err(|refused| Trouble::Refused(refused.why().to_owned()))?;
        self.renew(from, of);
        let mut arrive = locked(&coming.arrive);
        let prepared = guarded(|| arrive.prepare(contents, now)).unwrap_or_else(|why| {
            let why = self.relieve(&of.app, &mut arrive, &why);
            Err(Trouble::Refused(why))
        });
        drop(arrive);
        self.ring(&coming);
        prepared
    }

    /// Nothing will come of it.
    pub(crate) fn release(&self, from: &HostName, of: &Attempt) {
        let coming = {
            let mut state = locked(&self.state);
            let is_it = |promised: &Promised| {
                promised.from == *from && promised.wish.record.epoch == of.epoch
            };
            let coming = state.coming.get(&of.app).cloned();
            if coming.is_none() && state.promised.get(&of.app).is_some_and(is_it) {
                state.promised.remove(&of.app);
                state.promises.release(&of.app);
            }
            coming
        };
        if let Some(coming) = coming {
            {
                if coming.is(from, of) {
                    locked(&coming.arrive).drop_it(of);
                }
            }
            self.ring(&coming);
        }
    }

    /// Gives up what can be, and ends the threads; what cannot goes on with the next daemon.
    pub(crate) fn stop(&self) {
        for (note, _) in self.away() {
            note.cancel();
        }
        let deadline = Instant::now() + STOP_MAX;
        let under_way = || self.away().iter().any(|(note, _)| note.end().is_none());
        while under_way() && Instant::now() < deadline {
            std::thread::sleep(super::REST_MIN);
        }
        let threads = {
            let mut state = locked(&self.state);
            state.is_stopping = true;
            std::mem::take(&mut state.threads)
        };
        self.bell.notify_all();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread that moves an app panicked");
            }
        }
        self.house.hold_what_others_may_take();
    }
}

impl Coming {
    /// Whether this is the attempt that somebody speaks of.
    fn is(&self, from: &HostName, of: &Attempt) -> bool {
        (&self.from, &self.of) == (from, of)
    }

    fn new(arrive: Arrive) -> Self {
        Self {
            from: arrive.from().clone(),
            of: arrive.attempt(),
            arrive: Mutex::new(arrive),
            due: Mutex::new(Duration::ZERO),
        }
    }
}
