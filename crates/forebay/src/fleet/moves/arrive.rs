//! The target's side of a move: the steps of [`Arrival`], carried out one at a time.
//!
//! What the source asks is answered on the thread that its connection is on; everything else is done by
//! [`Arrive::turn`] on the thread of moves.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::fleet::arrival::{Arrival, End, Found, Input, Stage, Step};
use forebay_core::fleet::mobility::Way;
use forebay_core::fleet::promises::PROMISE_TTL;
use forebay_core::fleet::{HostName, Ownership};

use super::journal::Arriving;
use super::{
    Attempt, Coming, Content, House, Origin, Phase, REST_MAX, REST_WAITING, Trouble, Turn, outcome,
    rest,
};

/// How long a copy stands still before its room is wanted back.
const PATIENCE: Duration = Duration::from_secs(60);

/// One move to here.
#[derive(Debug)]
pub(crate) struct Arrive {
    house: Arc<House>,
    pub(crate) app: AppId,
    way: Way,
    /// As the source had it.
    record: Ownership,
    machine: Arrival,
    steps: VecDeque<Step>,
    body: Box<dyn Coming>,
    is_marked: bool,
    attempts: u32,
    /// When the source was heard last, or the copy was whole.
    heard_at: Duration,
    /// What turned it back, or holds it up.
    pub(crate) why: Option<String>,
    is_finished: bool,
    /// A start of it may have taken effect.
    is_started: bool,
}

impl Arrive {
    /// Begins one that was given room. Its mark is durable.
    ///
    /// # Errors
    /// The journal cannot be written: what the source is told.
    pub(crate) fn begin(
        house: Arc<House>,
        (app, way, record): (AppId, Way, Ownership),
        body: Box<dyn Coming>,
        now: Duration,
    ) -> Result<Self, String> {
        let begun = Arrival::begin(record.clone(), house.here.clone());
        let mut arrive = Self::with(house, (app, way, record), body, begun, now);
        arrive.marked()?;
        Ok(arrive)
    }

    /// Goes on with one that an earlier daemon began.
    pub(crate) fn resume(
        house: Arc<House>,
        app: AppId,
        from: &Arriving,
        body: Box<dyn Coming>,
        now: Duration,
    ) -> Self {
        let record = from.record.clone();
        let found = body.found(from.mark);
        let begun = Arrival::resume(record.clone(), house.here.clone(), from.mark, found);
        let mut arrive = Self::with(house, (app, from.way, record), body, begun, now);
        arrive.is_started = found == Found::Started;
        arrive.why = Some("the daemon began anew".to_owned());
        arrive
    }

    fn with(
        house: Arc<House>,
        (app, way, record): (AppId, Way, Ownership),
        mut body: Box<dyn Coming>,
        (machine, steps): (Arrival, Vec<Step>),
        now: Duration,
    ) -> Self {
        body.comes_from(Origin {
            peer: Arc::clone(&house.peer),
            host: record.owner.clone(),
            of: Attempt {
                app: app.clone(),
                epoch: record.epoch,
            },
        });
        Self {
            house,
            app,
            way,
            record,
            machine,
            steps: steps.into(),
            body,
            is_marked: false,
            attempts: 0,
            heard_at: now,
            why: None,
            is_finished: false,
            is_started: false,
        }
    }

    /// Who has it, or had.
    pub(crate) const fn from(&self) -> &HostName {
        &self.record.owner
    }

    /// Where it stands.
    pub(crate) const fn stage(&self) -> Stage {
        self.machine.stage()
    }

    /// Which attempt it is.
    pub(crate) fn attempt(&self) -> Attempt {
        Attempt {
            app: self.app.clone(),
            epoch: self.record.epoch,
        }
    }

    fn marked(&mut self) -> Result<(), String> {
        if !self.is_marked {
            // Before it is forgotten: whoever dies in between does it once more.
            if matches!(self.stage(), Stage::Over(_)) && !self.is_finished {
                self.finish();
                self.is_finished = true;
            }
            let state = self.machine.mark().map(|mark| Arriving {
                record: self.record.clone(),
                way: self.way,
                mark,
            });
            // With the mark, or before it: whoever finds the record of before knows better.
            if let Some(known) = self.machine.known() {
                self.house.book.learn(&self.app, &known);
            }
            let written = self.house.book.arrive(&self.app, state);
            written.map_err(|error| super::journal::said(&error))?;
            self.is_marked = true;
            self.house.publish(super::keeper::now());
        }
        Ok(())
    }

    /// Whether that changes what is to be done.
    fn input(&mut self, input: Input) -> bool {
        let steps = self.machine.step(input);
        let is_news = !steps.is_empty() || matches!(self.machine.stage(), Stage::Over(_));
        if is_news {
            // What was to be done before is not any more.
            self.steps = steps.into();
            self.is_marked = false;
        }
        is_news
    }

    /// The source sends.
    pub(crate) fn take(
        &mut self,
        parcel: (Phase, &Content, u64),
        from: &mut dyn Read,
        now: impl Fn() -> Duration,
    ) -> Result<(), String> {
        if self.stage() != Stage::Receiving {
            return Err(format!("{} is not awaited here any more", self.app));
        }
        let taken = self.body.take(parcel, from);
        // One content may take longer than a source may be silent.
        self.heard_at = now();
        taken
    }

    /// The source sent all: a durable copy is made that stands still.
    pub(crate) fn prepare(
        &mut self,
        contents: &[Content],
        now: impl Fn() -> Duration,
    ) -> Result<(), Trouble> {
        match self.stage() {
            Stage::Receiving => {}
            // The answer was lost.
            Stage::Waiting => return self.marked().map_err(Trouble::Refused),
            _ => {
                let what = format!("{} is not awaited here any more", self.app);
                return Err(Trouble::Refused(what));
            }
        }
        self.input(Input::Ended(forebay_core::fleet::Outcome::Done));
        self.steps.clear();
        let prepared = self.body.prepare(contents);
        self.note(&prepared);
        self.input(Input::Ended(outcome(&prepared)));
        self.heard_at = now();
        prepared?;
        // Before that is on disk a daemon that begins anew would drop the copy.
        self.marked().map_err(|why| {
            self.why = Some(why.clone());
            self.input(Input::Unmarked);
            Trouble::Refused(why)
        })
    }

    /// The source says that nothing will come of it.
    pub(crate) fn drop_it(&mut self, of: &Attempt) {
        self.why
            .get_or_insert_with(|| format!("{} gave it up", self.record.owner));
        self.input(Input::Dropped(of.epoch));
    }

    fn note<T>(&mut self, result: &Result<T, Trouble>) {
        if let Err(trouble) = result {
            self.why = Some(trouble.to_string());
        }
    }

    /// Takes the next step that is not the source's to bring about.
    pub(super) fn turn(&mut self, now: Duration) -> Turn {
        let since = now.saturating_sub(self.heard_at);
        let bound = match self.stage() {
            Stage::Receiving => PROMISE_TTL,
            Stage::Waiting => PATIENCE,
            _ => Duration::MAX,
        };
        if since > bound {
            self.why = Some(format!(
                "{} was not heard for {} s",
                self.record.owner,
                since.as_secs()
            ));
            self.input(Input::Impatient);
        }
        if let Err(why) = self.marked() {
            self.why = Some(why);
            let is_over = matches!(self.stage(), Stage::Over(_));
            return match !is_over && self.input(Input::Unmarked) {
                true => Turn::Goes,
                false => self.again(),
            };
        }
        let step = match self.steps.pop_front() {
            Some(step) => step,
            None if matches!(self.stage(), Stage::Over(_)) => return Turn::Over,
            // Between the source's words.
            None => return Turn::Rest(REST_MAX),
        };
        if step == Step::Receive {
            self.steps.push_front(step);
            return Turn::Rest(REST_MAX);
        }
        let input = self.carry_out(&step);
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

    fn again(&mut self) -> Turn {
        self.attempts = self.attempts.saturating_add(1);
        let longest = match self.stage() {
            Stage::Waiting => REST_WAITING,
            _ => REST_MAX,
        };
        Turn::Rest(rest(self.attempts).min(longest))
    }

    fn carry_out(&mut self, step: &Step) -> Input {
        let done = match step {
            Step::Read => match self.house.read(&self.app) {
                Ok(Some(record)) => return Input::Read(record),
                Ok(None) => {
                    self.why = Some(format!(
                        "nobody has a record of {0}; its owner makes one once no move is about it (`forebay move \
                         {0}` on {1} shows whether one is)",
                        self.app, self.record.owner
                    ));
                    return Input::Gone;
                }
                Err(trouble) => Err(trouble),
            },
            Step::Start => self.start(),
            Step::Change(epoch, to) => self.house.change(&self.app, *epoch, to),
            Step::Discard => self.body.discard(),
            // The source brings these about.
            Step::Receive | Step::Prepare => Ok(()),
        };
        self.note(&done);
        Input::Ended(outcome(&done))
    }

    fn start(&mut self) -> Result<(), Trouble> {
        let is_there = match self.house.apps.runs(&self.app) {
            Some(runs) => runs,
            None => self.is_started,
        };
        // Images of it are of before its files went away and came back; those of what runs are its own.
        if !is_there {
            self.house.apps.forget_images(&self.app)?;
        }
        let started = self.body.start();
        self.is_started |= !matches!(started, Err(Trouble::Refused(_)));
        started
    }

    /// It is over: what is left of it is removed, and how it ended is told.
    fn finish(&mut self) {
        let from = &self.record.owner;
        let why = self.why.as_deref().unwrap_or("no reason is known");
        match self.stage() {
            Stage::Over(End::Runs) => {
                if let Err(trouble) = self.body.settle() {
                    let what = format!("runs here, and something is left of its move: {trouble}");
                    self.house.apps.warn(&self.app, what);
                }
                self.house
                    .past
                    .arrived(&self.app, from, super::keeper::now());
                let what = format!("came from {from} by {}", self.way);
                self.house.apps.tell(&self.app, what);
            }
            _ => {
                let what = format!("did not come from {from}: {why}");
                self.house.apps.warn(&self.app, what);
            }
        }
    }
}
