//! The threads of moves: one for each move away and each to here, one each for promises, for the keeper, for records
//! and for what lost hosts owned.
//!
//! A step may take minutes (a large directory that is removed, a program that does not end), so that none waits for
//! the steps of another move. How many there are is bounded where moves begin.
//!
//! A panic is an error that nobody foresaw. It is said with what it was about, and is to its move what the death
//! of the daemon is: the move is taken up again from what is on disk, so that what stood still stands still until
//! its machine lets it go. After [`PANICS_MAX`] of them a move is left as it is until the daemon begins anew. The
//! daemon does not end for it: everything else that it looks after would be without it, too.

use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use forebay_core::app::{App, AppId};
use forebay_core::fleet::departure::{End, Stage};

use super::arrive::Arrive;
use super::claims::Claims;
use super::depart::Depart;
use super::desk::{Coming, Moves, State, locked};
use super::keeper::{Keeper, now};
use super::note::{Ended, Note};
use super::orphans::Orphans;
use super::{REST_MAX, Turn, body};
use crate::fleet::guard::guarded;

/// How often it is looked whose applications are.
const READ: Duration = Duration::from_millis(500);
/// How often it is looked whether what runs may: a small part of the time in which it is to be frozen.
const HOLD: Duration = Duration::from_millis(100);
/// How often promises are looked after, and the longest that a move to here sleeps.
const SLEEP_MAX: Duration = Duration::from_millis(250);
/// How often one move is taken up again after an error that nobody foresaw.
const PANICS_MAX: u32 = 4;

const REPORT: &str = "an error in Forebay; report it";

/// What became of a driver that panicked.
enum Revived<T> {
    /// It goes on from what is on disk.
    Goes(T),
    /// Nothing of it is on disk: it is over.
    Over,
    /// It is left until the daemon begins anew.
    Left,
}

impl Moves {
    /// Starts the threads that are there while the daemon is; the one that others wait for.
    pub(super) fn attend_all(self: &Arc<Self>) -> std::io::Result<JoinHandle<()>> {
        // What has to be frozen waits for nobody's answer, and what comes for no record.
        let house = Arc::clone(&self.house);
        let mut keeper = Keeper::new(Arc::clone(&house));
        self.repeat("moves-keep", HOLD, move || keeper.look())?;
        let mut orphans = Orphans::new(Arc::clone(&house));
        self.repeat("moves-orphans", READ, move || orphans.look(now()))?;
        let mut claims = Claims::new(house);
        self.repeat("moves-records", READ, move || claims.read(now()))?;
        let own = Arc::clone(self);
        std::thread::Builder::new()
            .name("moves".to_owned())
            .spawn(move || own.again("moves", SLEEP_MAX, || own.look_after_promises()))
    }

    /// Does something again and again on a thread of its own, until the daemon ends.
    fn repeat(
        self: &Arc<Self>,
        name: &'static str,
        every: Duration,
        once: impl FnMut() + Send + 'static,
    ) -> std::io::Result<()> {
        let own = Arc::clone(self);
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || own.again(name, every, once))?;
        locked(&self.state).threads.push(thread);
        Ok(())
    }

    fn again(&self, name: &str, every: Duration, mut once: impl FnMut()) {
        let mut said = None;
        loop {
            match guarded(&mut once) {
                Ok(()) => said = None,
                Err(why) if said.as_ref() == Some(&why) => {}
                Err(why) => {
                    tracing::error!(thread = name, why, "a look was not finished: {REPORT}");
                    said = Some(why);
                }
            }
            let state = locked(&self.state);
            let idle = |state: &mut State| !state.is_stopping;
            let waited = self.bell.wait_timeout_while(state, every, idle);
            if waited.unwrap_or_else(PoisonError::into_inner).0.is_stopping {
                return;
            }
        }
    }

    /// Room that nobody asked for again is given to others; that of what is here already is kept.
    fn look_after_promises(&self) {
        let at = now();
        let coming: Vec<Arc<Coming>> = {
            let mut state = locked(&self.state);
            // Whoever is here already does not lose room by being late.
            for app in state.promises.expire(at) {
                if !state.coming.contains_key(&app) {
                    state.promised.remove(&app);
                }
            }
            state.coming.values().cloned().collect()
        };
        for coming in coming {
            self.renew(&coming.from, &coming.of);
        }
    }

    /// Moves away that are over since the daemon began.
    pub(crate) fn ended(&self) -> Ended {
        locked(&self.state).ended.clone()
    }

    /// Counts a move away, if it is over.
    fn count(&self, note: &Note) {
        if let Some(end) = note.end() {
            *locked(&self.state)
                .ended
                .entry((note.way, end))
                .or_default() += 1;
        }
    }

    /// Runs a move away on a thread of its own.
    pub(super) fn drive(
        self: &Arc<Self>,
        state: &mut State,
        mut depart: Depart,
    ) -> std::io::Result<()> {
        let note = Arc::clone(&depart.note);
        state.threads.retain(|thread| !thread.is_finished());
        let own = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name("move".to_owned())
            .spawn(move || {
                let mut panics = 0;
                while !locked(&own.state).is_stopping {
                    match guarded(|| depart.turn()) {
                        Ok(Turn::Goes) => {}
                        Ok(Turn::Rest(time)) => depart.note.rest(time),
                        Ok(Turn::Over) => return own.count(&depart.note),
                        Err(why) => {
                            panics += 1;
                            match own.revive_away(&Arc::clone(&depart.note), &why, panics) {
                                Revived::Goes(anew) => depart = anew,
                                Revived::Over | Revived::Left => return own.count(&depart.note),
                            }
                            depart.note.rest(REST_MAX);
                        }
                    }
                }
            })?;
        state.threads.push(thread);
        state.away.insert(note.app.clone(), note);
        Ok(())
    }

    fn revive_away(&self, note: &Arc<Note>, why: &str, panics: u32) -> Revived<Depart> {
        let app = &note.app;
        let departing = self
            .house
            .book
            .look(|content| content.departures.get(app).cloned());
        let Some(departing) = departing else {
            // It had touched nothing, or was over.
            let owner = self.house.book.record(app).map(|record| record.owner);
            let end = match owner.as_ref() == Some(&note.there) {
                true => End::Moved,
                false => End::Refused,
            };
            self.complain(app, &format!("its move to {} ended: {why}", note.there));
            note.trouble(format!("{REPORT} ({why})"));
            note.at(Stage::Over(end));
            return Revived::Over;
        };
        let made = (panics <= PANICS_MAX)
            .then(|| self.body_of(app, |app| body::leaving(app, &self.house.apps)))
            .flatten();
        let Some(body) = made else {
            self.leave(app, why);
            note.trouble(format!("{REPORT}, and start the daemon again ({why})"));
            return Revived::Left;
        };
        self.complain(
            app,
            &format!(
                "its move to {} is taken up again from what is on disk: {why}",
                note.there
            ),
        );
        let house = Arc::clone(&self.house);
        let depart = Depart::resume(house, Arc::clone(note), &departing, body);
        note.trouble(format!("{REPORT} ({why})"));
        Revived::Goes(depart)
    }

    /// Takes the steps of a move to here that are not its source's, on a thread of its own.
    pub(super) fn attend(
        self: &Arc<Self>,
        state: &mut State,
        coming: &Arc<Coming>,
    ) -> std::io::Result<()> {
        state.threads.retain(|thread| !thread.is_finished());
        let (own, its) = (Arc::clone(self), Arc::clone(coming));
        let thread = std::thread::Builder::new()
            .name("move-comes".to_owned())
            .spawn(move || own.take_in(&its))?;
        state.threads.push(thread);
        state
            .coming
            .insert(coming.of.app.clone(), Arc::clone(coming));
        Ok(())
    }

    fn take_in(&self, coming: &Coming) {
        let app = &coming.of.app;
        let mut panics = 0;
        while self.await_due(coming) {
            // Whoever holds it is being sent to: its source brings about the next step.
            let Ok(mut arrive) = coming.arrive.try_lock().or_else(|error| match error {
                std::sync::TryLockError::Poisoned(poisoned) => Ok(poisoned.into_inner()),
                std::sync::TryLockError::WouldBlock => Err(()),
            }) else {
                *locked(&coming.due) = now() + SLEEP_MAX;
                continue;
            };
            let turn = guarded(|| arrive.turn(now())).unwrap_or_else(|why| {
                panics += 1;
                match self.revive_here(app, &why, panics) {
                    Revived::Goes(anew) => {
                        *arrive = anew;
                        Turn::Rest(REST_MAX)
                    }
                    Revived::Over => Turn::Over,
                    Revived::Left => {
                        arrive.why = Some(format!("{REPORT}, and start the daemon again ({why})"));
                        Turn::Rest(Duration::MAX)
                    }
                }
            });
            drop(arrive);
            match turn {
                Turn::Goes => {}
                // It is shown, and nothing takes its place.
                Turn::Rest(Duration::MAX) => return,
                Turn::Rest(time) => *locked(&coming.due) = now() + time,
                Turn::Over => {
                    let mut state = locked(&self.state);
                    state.coming.remove(app);
                    state.promised.remove(app);
                    state.promises.release(app);
                    return;
                }
            }
        }
    }

    /// Waits until something is to be done for a move to here; whether it is.
    fn await_due(&self, coming: &Coming) -> bool {
        let mut state = locked(&self.state);
        loop {
            let due = *locked(&coming.due);
            let left = due.saturating_sub(now()).min(SLEEP_MAX);
            if state.is_stopping || left.is_zero() {
                return !state.is_stopping;
            }
            let waited = self.bell.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn revive_here(&self, app: &AppId, why: &str, panics: u32) -> Revived<Arrive> {
        let house = &self.house;
        let arriving = house
            .book
            .look(|content| content.arrivals.get(app).cloned());
        let Some(arriving) = arriving else {
            self.complain(app, &format!("its move to here ended: {why}"));
            return Revived::Over;
        };
        let coming = |app: &App| body::coming(app, &house.apps, &house.state_dir);
        let made = (panics <= PANICS_MAX)
            .then(|| self.body_of(app, coming))
            .flatten();
        let Some(body) = made else {
            self.leave(app, why);
            return Revived::Left;
        };
        self.complain(
            app,
            &format!("its move to here is taken up again from what is on disk: {why}"),
        );
        let house = Arc::clone(house);
        Revived::Goes(Arrive::resume(house, app.clone(), &arriving, body, now()))
    }

    /// What another host asked for panicked: what is told to it. The move begins anew from what is on disk.
    pub(super) fn relieve(&self, app: &AppId, arrive: &mut Arrive, why: &str) -> String {
        if let Revived::Goes(anew) = self.revive_here(app, why, 1) {
            *arrive = anew;
        }
        format!(
            "{app} is not taken in on {}: {REPORT} ({why})",
            self.house.here
        )
    }

    fn leave(&self, app: &AppId, why: &str) {
        self.complain(
            app,
            &format!(
                "its move is left as it is, and what stands still of it stands: {why}; start the daemon again"
            ),
        );
    }

    fn complain(&self, app: &AppId, what: &str) {
        tracing::error!(%app, "{what}: {REPORT}");
        self.house.apps.warn(app, format!("{what}: {REPORT}"));
    }

    /// Something is to be done for a move to here at once.
    pub(super) fn ring(&self, coming: &Coming) {
        *locked(&coming.due) = Duration::ZERO;
        // Under the lock, so that nobody who is about to sleep misses it.
        let _state = locked(&self.state);
        self.bell.notify_all();
    }
}
