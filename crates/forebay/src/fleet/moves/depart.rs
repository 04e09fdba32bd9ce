//! The source's side of a move: the steps of [`Departure`], carried out one at a time.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use forebay_core::fleet::departure::{Departure, End, Input, Stage, Step};
use forebay_core::fleet::mobility::Way;
use forebay_core::fleet::policy::Look;
use forebay_core::fleet::tenure::{Leave, Takeover, leave};
use forebay_core::fleet::{HostName, Ownership};

use super::journal::Departing;
use super::note::Note;
use super::{
    Attempt, House, Leaving, Outlook, REST_MAX, REST_WAITING, Road, Trouble, Turn, Wish, outcome,
    refuse, rest,
};

/// One move away.
#[derive(Debug)]
pub(crate) struct Depart {
    house: Arc<House>,
    pub(crate) note: Arc<Note>,
    machine: Departure,
    steps: VecDeque<Step>,
    record: Ownership,
    there: HostName,
    body: Box<dyn Leaving>,
    requires: BTreeSet<String>,
    /// By which room its target was chosen.
    pub(super) look: Look,
    /// Whether the mark of the steps to come is on disk.
    is_marked: bool,
    /// How often the step was tried that is to be tried again.
    attempts: u32,
    is_told: bool,
}

impl Depart {
    /// Begins one of an application whose record says that it is this host's.
    pub(crate) fn begin(
        house: Arc<House>,
        note: Arc<Note>,
        record: Ownership,
        body: Box<dyn Leaving>,
    ) -> Self {
        let begun = Departure::begin(record.clone(), note.there.clone());
        Self::with(house, note, record, body, begun)
    }

    /// Goes on with one that an earlier daemon began.
    pub(crate) fn resume(
        house: Arc<House>,
        note: Arc<Note>,
        from: &Departing,
        body: Box<dyn Leaving>,
    ) -> Self {
        let record = from.record.clone();
        note.trouble("the daemon began anew".to_owned());
        let begun = Departure::resume(record.clone(), from.there.clone(), from.mark);
        Self::with(house, note, record, body, begun)
    }

    fn with(
        house: Arc<House>,
        note: Arc<Note>,
        record: Ownership,
        mut body: Box<dyn Leaving>,
        (machine, steps): (Departure, Vec<Step>),
    ) -> Self {
        body.goes_to(&note.there);
        note.at(machine.stage());
        Self {
            there: note.there.clone(),
            house,
            note,
            machine,
            steps: steps.into(),
            record,
            body,
            requires: BTreeSet::new(),
            look: Look::Present,
            is_marked: false,
            attempts: 0,
            is_told: false,
        }
    }

    fn attempt(&self) -> Attempt {
        Attempt {
            app: self.note.app.clone(),
            epoch: self.record.epoch,
        }
    }

    /// Takes the next step, as far as it is durable that it may be taken.
    pub(super) fn turn(&mut self) -> Turn {
        // At its end there is nothing to give up, and a last word to the target that must not be lost.
        if !matches!(self.machine.stage(), Stage::Over(_)) && self.note.hear() {
            let steps = self.machine.step(Input::Cancel);
            if !steps.is_empty() || matches!(self.machine.stage(), Stage::Over(_)) {
                self.steps = steps.into();
                self.is_marked = false;
                self.note.trouble("it was cancelled".to_owned());
            }
        }
        if !self.is_marked {
            match self.machine.stage() {
                // Before it is forgotten: whoever dies in between says it once more.
                Stage::Over(_) if !self.is_told => {
                    self.tell_end();
                    self.is_told = true;
                }
                // It is not over for others before it is forgotten: they may begin another one.
                Stage::Over(_) => {}
                stage => self.note.at(stage),
            }
            if let Err(error) = self.mark() {
                self.note.trouble(super::journal::said(&error));
                return match self.turn_back() {
                    true => Turn::Goes,
                    false => self.again(),
                };
            }
            self.is_marked = true;
            // Before its end is carried out, nobody may start it again here.
            self.house.publish(super::keeper::now());
            self.note.at(self.machine.stage());
        }
        let Some(step) = self.steps.pop_front() else {
            assert!(
                matches!(self.machine.stage(), Stage::Over(_)),
                "a move that is not over has a step to take"
            );
            return Turn::Over;
        };
        let Some(input) = self.take(&step) else {
            return Turn::Goes;
        };
        let next = self.machine.step(input);
        self.is_marked = false;
        let again = next == [step];
        self.steps.extend(next);
        match again {
            true => self.again(),
            false => {
                self.attempts = 0;
                Turn::Goes
            }
        }
    }

    /// Turns back to where nothing new has to be on disk, if that can be.
    fn turn_back(&mut self) -> bool {
        let is_over = |machine: &Departure| matches!(machine.stage(), Stage::Over(_));
        if is_over(&self.machine) {
            return false;
        }
        let steps = self.machine.step(Input::Unmarked);
        let turned = !steps.is_empty() || is_over(&self.machine);
        if turned {
            self.steps = steps.into();
        }
        turned
    }

    fn again(&mut self) -> Turn {
        self.attempts = self.attempts.saturating_add(1);
        let longest = match self.machine.stage() {
            Stage::Awaiting => REST_WAITING,
            _ => REST_MAX,
        };
        Turn::Rest(rest(self.attempts).min(longest))
    }

    fn mark(&self) -> Result<(), super::journal::Error> {
        let state = self.machine.mark().map(|mark| Departing {
            record: self.record.clone(),
            there: self.there.clone(),
            way: self.note.way,
            mark,
        });
        // Whoever holds applications looks whether one leaves and then lets it go on: not in between.
        let _held = self.house.hold();
        // It goes on for good, which a full disk keeps from being written down.
        let is_let_go = matches!(
            self.machine.stage(),
            Stage::CallingOff | Stage::Over(End::Stayed)
        );
        if is_let_go {
            self.house.goes_on().insert(self.note.app.clone());
        }
        // With the mark, or before it: supervision has it, and whoever finds the record of before knows better.
        if let Some(known) = self.machine.known() {
            self.house.book.learn(&self.note.app, &known);
        }
        let written = self.house.book.depart(&self.note.app, state);
        if !is_let_go || (written.is_ok() && self.machine.mark().is_none()) {
            self.house.goes_on().remove(&self.note.app);
        }
        written
    }

    /// Takes one step; none where nobody waits for how it ended.
    fn take(&mut self, step: &Step) -> Option<Input> {
        let done = match step {
            Step::Check => self.check(),
            Step::Reserve => self.reserve(),
            Step::Copy => {
                let of = self.attempt();
                let road = Road {
                    peer: &*self.house.peer,
                    to: &self.there,
                    of: &of,
                    note: &self.note,
                };
                self.body.copy(&road)
            }
            Step::Freeze => self.body.freeze(),
            Step::Send => {
                let of = self.attempt();
                let road = Road {
                    peer: &*self.house.peer,
                    to: &self.there,
                    of: &of,
                    note: &self.note,
                };
                self.body.send(&road)
            }
            Step::Change(epoch, to) => self.change(*epoch, to),
            Step::Read => match self.house.read(&self.note.app) {
                Ok(Some(record)) => {
                    if record.epoch < self.record.epoch {
                        self.note.trouble(format!(
                            "the coordinator was put back to before this move; put its latest data back there \
                             (`forebay explain {0}` on {1} shows whether it runs there)",
                            self.note.app, self.there
                        ));
                    }
                    return Some(Input::Read(record));
                }
                // Nobody removes a record while it moves: the coordinator lost it.
                Ok(None) => {
                    self.note.trouble(format!(
                        "the coordinator has no record of {0} any more; put its latest data back there (`forebay \
                         explain {0}` on {1} shows whether it runs there)",
                        self.note.app, self.there
                    ));
                    return Some(Input::Gone);
                }
                Err(trouble) => Err(trouble),
            },
            Step::Thaw => self.thaw(),
            Step::Lend => self.lend(),
            Step::End => self.end(),
            Step::Release(_) => {
                // The target would find it out by the record.
                if let Err(trouble) = self.house.peer.release(&self.there, &self.attempt()) {
                    tracing::debug!(app = %self.note.app, why = %trouble, "the target was not told");
                }
                return None;
            }
        };
        if matches!(step, Step::Copy | Step::Send)
            && let Some(carried) = self.house.peer.carried(&self.there)
        {
            self.note.carried(carried);
        }
        if let Err(trouble) = &done {
            self.note.trouble(trouble.to_string());
        }
        Some(Input::Ended(outcome(&done)))
    }

    fn check(&mut self) -> Result<(), Trouble> {
        self.requires = self.body.check()?;
        self.note.foresee(self.body.foresees());
        Ok(())
    }

    fn reserve(&mut self) -> Result<(), Trouble> {
        let wish = self.wish()?;
        self.house.peer.reserve(&self.there, &wish)?;
        self.weigh()?;
        let what = format!("moves to {} by {}", self.there, self.note.way);
        self.house.apps.tell(&self.note.app, what);
        Ok(())
    }

    /// What takes longer to find out than whether there is room.
    fn weigh(&mut self) -> Result<(), Trouble> {
        let of = self.attempt();
        let road = Road {
            peer: &*self.house.peer,
            to: &self.there,
            of: &of,
            note: &self.note,
        };
        let weighed = self.body.weigh(&road);
        self.note.foresee(self.body.foresees());
        weighed
    }

    fn wish(&self) -> Result<Wish, Trouble> {
        let app = &self.note.app;
        let class = match self.house.apps.app(app) {
            Some(app) => app.class,
            None => return refuse(format!("there is no app {app}")),
        };
        Ok(Wish {
            app: app.clone(),
            record: self.record.clone(),
            class,
            need: self.house.apps.need(app, self.look),
            way: self.note.way,
            requires: self.requires.clone(),
            look: self.look,
            homes: self.house.past.ages(app, super::keeper::now()),
        })
    }

    fn change(&mut self, epoch: u64, to: &Ownership) -> Result<(), Trouble> {
        let app = &self.note.app;
        if self.machine.stage() == Stage::Committing && self.note.way != Way::Handoff {
            // From here on another may let it run: whoever finds it frozen must not let it go.
            self.house.apps.give(app, self.body.unclaimed())?;
        }
        self.house.change(app, epoch, to)
    }

    fn thaw(&mut self) -> Result<(), Trouble> {
        let (house, app) = (&self.house, &self.note.app);
        let lease = house.lease();
        if let Some(why) = house.disputed(app) {
            return refuse(format!("{app} stays frozen: {why}"));
        }
        // What was asked of the record cannot take effect any more, or was not asked: the mark says nothing.
        let record = house
            .book
            .record(app)
            .unwrap_or_else(|| self.record.clone());
        let mobility = house.apps.app(app).and_then(|app| app.mobility);
        let takeover = mobility.map_or(Takeover::Never, |mobility| mobility.takeover);
        let now = super::keeper::now();
        let known = (Some(&record), None);
        match leave(&house.here, known, takeover, lease, now) {
            Leave::Run { .. } => {}
            Leave::NotOurs => {
                return refuse(format!(
                    "{app} stays frozen: {} took it over meanwhile; end its processes here (`forebay explain {app}` \
                     shows them)",
                    record.owner
                ));
            }
            Leave::NotKnown | Leave::Leaves | Leave::LeaseEnds => {
                return refuse(format!(
                    "{app} stays frozen until this host is a member of the fleet again, since others may \
                     have taken it over; see `forebay fleet status`"
                ));
            }
        }
        house.apps.keep(app)?;
        // It may have been ended while nobody ran here: then supervision starts it.
        match house.apps.runs(app) {
            Some(false) => self.body.clean(),
            Some(true) => self.body.thaw(),
            None => Err(Trouble::Unknown(format!("{app} was not looked at yet"))),
        }
    }

    fn lend(&mut self) -> Result<(), Trouble> {
        // Who is gone has nothing that could be needed.
        if self.house.apps.runs(&self.note.app) == Some(false) {
            return Ok(());
        }
        let of = self.attempt();
        let road = Road {
            peer: &*self.house.peer,
            to: &self.there,
            of: &of,
            note: &self.note,
        };
        self.body.lend(&road)
    }

    fn end(&mut self) -> Result<(), Trouble> {
        match self.house.apps.runs(&self.note.app) {
            Some(false) => self.body.clean()?,
            Some(true) => self.body.end()?,
            None => {
                let what = format!("{} was not looked at yet", self.note.app);
                return Err(Trouble::Unknown(what));
            }
        }
        self.house.apps.leave_address(&self.note.app)?;
        self.house.apps.keep(&self.note.app)
    }

    fn tell_end(&self) {
        let Stage::Over(end) = self.machine.stage() else {
            return;
        };
        let shown = self.note.shown();
        let (app, there) = (&self.note.app, &self.there);
        let why = shown.why.unwrap_or_else(|| "no reason is known".to_owned());
        match end {
            End::Moved => {
                let stood = shown.stood.unwrap_or_default();
                let by = shown.carried.map(|carried| format!(" over {}", carried.by));
                let by = by.unwrap_or_default();
                let what = format!(
                    "moved to {there}: {} bytes{by} in {:.1?}, of which it stood still for {stood:.1?}",
                    shown.sent, shown.took
                );
                self.house.apps.tell(app, what);
            }
            End::Stayed => {
                let what = format!("stays here and did not move to {there}: {why}");
                self.house.apps.warn(app, what);
            }
            End::Refused => {
                let what = format!("does not move to {there}: {why}");
                self.house.apps.warn(app, what);
            }
        }
    }

    /// Whether it may be asked for, before anything is touched: what it needs of the target is found out,
    /// room is asked for and given back. What it would be.
    pub(super) fn try_only(&mut self) -> Result<Outlook, Trouble> {
        self.check()?;
        let wish = self.wish()?;
        self.house.peer.reserve(&self.there, &wish)?;
        let weighed = self.weigh();
        self.house.peer.release(&self.there, &self.attempt())?;
        weighed?;
        Ok(Outlook {
            foreseen: self.body.foresees(),
            risks: self.body.risks(),
        })
    }

    /// Where it stands.
    #[cfg(test)]
    pub(super) const fn stage(&self) -> Stage {
        self.machine.stage()
    }
}
