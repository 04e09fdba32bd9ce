//! The target's side of a move: the host that gets the application.
//!
//! ```text
//!   Receiving ─> Preparing ─> Waiting ── owns it ──> Starting ─> Announcing ─> Runs
//!       v            v         │  │ impatient           │ it never ran
//!       └────────────┴─────────┘  v                     v
//!             Discarding <────────┴──────────────── Returning
//!                 v                                     ^
//!              Dropped, or Watching ─── owns it ────────┘
//! ```
//!
//! A step that comes out again is to be tried again, after a rest.

use super::{Epoch, HostName, Outcome, Ownership};

/// Where the target stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// What the application has is coming in.
    Receiving,
    /// A copy is being made that stands still.
    Preparing,
    /// The copy stands still until the record says whose the application is.
    Waiting,
    /// It is ours, and the copy is let go on.
    Starting,
    /// It goes on, and the record is to say so.
    Announcing,
    /// It is ours and never ran: it is given back.
    Returning,
    /// The copy is removed; whether it is over then, or the record is watched on.
    Discarding {
        /// The source may still change the record.
        watch: bool,
    },
    /// There is no copy, and the source may still change the record.
    Watching,
    /// It is over.
    Over(End),
}

/// How a move ended, for the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It runs here, or did: it is ours.
    Runs,
    /// There is no copy here, and it is not ours.
    Dropped,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// How the latest step ended.
    Ended(Outcome),
    /// What the record says.
    Read(Ownership),
    /// There is no record.
    Gone,
    /// The source says that nothing will come of what began with this epoch.
    Dropped(Epoch),
    /// The copy has stood still for as long as it may take room.
    Impatient,
    /// The mark of the steps that came out last cannot be made durable: they were not taken.
    Unmarked,
}

/// What has to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Take in what the source sends.
    Receive,
    /// Make a durable copy that stands still; the source is told when that is done.
    Prepare,
    /// Read the record.
    Read,
    /// Let the copy go on. Refused only where it certainly never ran.
    Start,
    /// Change the record to this one, if it has this epoch.
    Change(Epoch, Ownership),
    /// Remove the copy.
    Discard,
}

/// What is on disk before a step is taken, and all that a daemon that begins anew needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// A part of a copy may be there, and the source was told nothing.
    Receiving,
    /// A copy is there that never ran.
    Prepared,
    /// The copy may have run.
    Starting,
    /// No copy is there, or none that may run.
    Dropped,
}

/// What a daemon that begins anew finds of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing. Files that it could be made of again do not count where it may have run.
    Nothing,
    /// A copy that certainly never ran.
    Fresh,
    /// A copy that runs, or may have run.
    Started,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    here: HostName,
    /// The record as the source had it when it began.
    record: Ownership,
    stage: Stage,
    mark: Option<Mark>,
    /// A start of it ended so that nobody knows whether it ran.
    may_have_run: bool,
    /// What is on disk says that its copy never ran, and nothing else could be written since.
    is_unmarked: bool,
    /// The mark before [`Mark::Dropped`], which is on disk where that cannot be written.
    before: Option<Mark>,
}

impl Arrival {
    /// Begins when room was given to an application that `record.owner` has.
    #[must_use]
    pub fn begin(record: Ownership, here: HostName) -> (Self, Vec<Step>) {
        let machine = Self {
            here,
            record,
            stage: Stage::Receiving,
            mark: Some(Mark::Receiving),
            may_have_run: false,
            is_unmarked: false,
            before: None,
        };
        (machine, vec![Step::Receive])
    }

    /// Goes on after the daemon ended, from what it had made durable, and what is there of the copy. Where the
    /// host went down between the mark and the start, an application is lost that never ran: nobody can
    /// tell that from one that did.
    #[must_use]
    pub fn resume(
        record: Ownership,
        here: HostName,
        mark: Mark,
        found: Found,
    ) -> (Self, Vec<Step>) {
        let (mut machine, _) = Self::begin(record, here);
        machine.mark = Some(mark);
        machine.may_have_run = mark == Mark::Starting && found == Found::Started;
        let is_there = found != Found::Nothing;
        let steps = match (mark, is_there) {
            (Mark::Receiving, _) => machine.discard(false),
            // One that never ran may have been given back, which a full disk kept from being written down.
            (Mark::Prepared, true) => machine.go(Stage::Waiting, Step::Read),
            (Mark::Starting, true) if !machine.may_have_run => {
                machine.go(Stage::Waiting, Step::Read)
            }
            (Mark::Starting, true) => machine.go(Stage::Starting, Step::Start),
            // What may have run must not be begun again from before that.
            (Mark::Starting, false) => machine.announce(),
            (Mark::Prepared, false) | (Mark::Dropped, _) => machine.discard(true),
        };
        (machine, steps)
    }

    /// Where it stands.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// What has to be durable before the steps are taken that came out last.
    #[must_use]
    pub const fn mark(&self) -> Option<Mark> {
        self.mark
    }

    /// The record as this host knows it from now on, whatever a coordinator says that was put back meanwhile: that
    /// it was let run here. To be durable before the last mark is taken away.
    #[must_use]
    pub fn known(&self) -> Option<Ownership> {
        let is_let_run = self.stage == Stage::Over(End::Runs);
        is_let_run.then(|| self.record.given_to(&self.here).running())
    }

    /// Takes in what happened. What makes no sense where the machine stands changes nothing.
    pub fn step(&mut self, input: Input) -> Vec<Step> {
        use Outcome::{Done, Refused, Unknown};
        let ended = match input {
            Input::Read(record) => return self.read(&record),
            Input::Gone => return self.gone(),
            Input::Dropped(epoch) if epoch != self.record.epoch => return Vec::new(),
            Input::Dropped(_) | Input::Impatient => return self.dropped(),
            Input::Unmarked => return self.unmarked(),
            Input::Ended(outcome) => outcome,
        };
        match (self.stage, ended) {
            (Stage::Receiving, Done) => self.go(Stage::Preparing, Step::Prepare),
            (Stage::Receiving | Stage::Preparing, Refused | Unknown) => self.discard(false),
            (Stage::Preparing, Done) => {
                self.mark = Some(Mark::Prepared);
                self.go(Stage::Waiting, Step::Read)
            }
            (Stage::Starting, Done) => {
                self.may_have_run = true;
                self.announce()
            }
            // One before this may have taken effect: it must not be begun from before that elsewhere.
            (Stage::Starting, Refused) if self.may_have_run => self.announce(),
            (Stage::Starting, Refused) => self.give_back(),
            (Stage::Starting, Unknown) => {
                self.may_have_run = true;
                vec![Step::Start]
            }
            (Stage::Announcing, Done) => self.over(End::Runs),
            (Stage::Announcing, Unknown) => self.announce(),
            (Stage::Returning, Done) => self.discard(false),
            (Stage::Returning, Unknown) => self.give_back(),
            // An earlier one took effect, or the record was put back to before: that says which.
            (Stage::Announcing | Stage::Returning, Refused) => vec![Step::Read],
            (Stage::Discarding { watch: false }, Done) => self.over(End::Dropped),
            (Stage::Discarding { watch: true }, Done) => self.go(Stage::Watching, Step::Read),
            (Stage::Discarding { .. }, Refused | Unknown) => vec![Step::Discard],
            (Stage::Waiting | Stage::Watching, Refused | Unknown) => vec![Step::Read],
            (Stage::Waiting | Stage::Watching, Done) | (Stage::Over(_), _) => Vec::new(),
        }
    }

    fn read(&mut self, record: &Ownership) -> Vec<Step> {
        let given = self.record.epoch + 1;
        let is_ours = record.owner == self.here && record.epoch == given;
        let is_before = record.epoch < given;
        match self.stage {
            Stage::Waiting if is_ours => {
                self.mark = Some(Mark::Starting);
                self.go(Stage::Starting, Step::Start)
            }
            Stage::Watching if is_ours => self.give_back(),
            Stage::Waiting | Stage::Watching if is_before => vec![Step::Read],
            Stage::Waiting => self.discard(false),
            Stage::Watching => self.over(End::Dropped),
            Stage::Announcing if is_ours && !record.runs => self.announce(),
            // Put back to before, it is said again by its owner, once no move is about it: this host.
            Stage::Announcing if is_ours || self.may_have_run => self.over(End::Runs),
            // Of what is not here any more, it may be that it was given back, which a full disk kept from being
            // written down.
            Stage::Announcing if is_before => vec![Step::Read],
            Stage::Announcing => self.over(End::Dropped),
            Stage::Returning if is_ours => self.give_back(),
            // It is this host's by all that it knows, and so it says again what became of it.
            Stage::Returning if is_before => self.give_back_from(record.epoch),
            Stage::Returning => self.discard(false),
            _ => Vec::new(),
        }
    }

    fn gone(&mut self) -> Vec<Step> {
        match self.stage {
            Stage::Announcing if self.may_have_run => self.over(End::Runs),
            Stage::Waiting | Stage::Watching | Stage::Announcing | Stage::Returning => {
                vec![Step::Read]
            }
            _ => Vec::new(),
        }
    }

    /// The source's word is no proof where a copy is whole: it may be of another question that it asked,
    /// or be late. So the record is watched until that says it.
    fn dropped(&mut self) -> Vec<Step> {
        match self.stage {
            Stage::Receiving | Stage::Preparing => self.discard(false),
            Stage::Waiting => self.discard(true),
            // It is ours already, or on its way out.
            _ => Vec::new(),
        }
    }

    /// Turns back where that needs nothing on disk: a full one must not keep the source standing.
    fn unmarked(&mut self) -> Vec<Step> {
        match self.stage {
            // The source was not told that a copy is there.
            Stage::Waiting => {
                self.mark = Some(Mark::Receiving);
                self.go(Stage::Discarding { watch: false }, Step::Discard)
            }
            Stage::Starting if !self.may_have_run => {
                self.is_unmarked = true;
                self.mark = Some(Mark::Prepared);
                self.give_back()
            }
            // What is on disk is of before, and has a daemon that begins anew ask whose it is.
            Stage::Discarding { watch: true } | Stage::Returning => match self.before.take() {
                Some(before) => {
                    self.is_unmarked = true;
                    self.mark = Some(before);
                    match self.stage {
                        Stage::Returning => self.give_back(),
                        stage => self.go(stage, Step::Discard),
                    }
                }
                None => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    fn announce(&mut self) -> Vec<Step> {
        let given = self.record.given_to(&self.here);
        self.go(
            Stage::Announcing,
            Step::Change(given.epoch, given.running()),
        )
    }

    fn give_back(&mut self) -> Vec<Step> {
        self.give_back_from(self.record.epoch + 1)
    }

    /// Gives it back, whatever the record was put back to.
    fn give_back_from(&mut self, epoch: Epoch) -> Vec<Step> {
        let given = self.record.given_to(&self.here);
        // Where that cannot be written, the record says the same to whoever begins anew.
        if !self.is_unmarked {
            self.drop_mark();
        }
        self.go(
            Stage::Returning,
            Step::Change(epoch, given.given_to(&self.record.owner)),
        )
    }

    fn discard(&mut self, watch: bool) -> Vec<Step> {
        if watch {
            self.drop_mark();
        }
        self.go(Stage::Discarding { watch }, Step::Discard)
    }

    fn drop_mark(&mut self) {
        if self.mark != Some(Mark::Dropped) {
            self.before = self.mark.replace(Mark::Dropped);
        }
    }

    fn go(&mut self, stage: Stage, step: Step) -> Vec<Step> {
        self.stage = stage;
        vec![step]
    }

    fn over(&mut self, end: End) -> Vec<Step> {
        self.stage = Stage::Over(end);
        self.mark = None;
        Vec::new()
    }
}
