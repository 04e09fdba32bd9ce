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
        };
        (machine, vec![Step::Receive])
    }

    /// Goes on after the daemon ended, from what it had made durable, and whether the copy is there:
    /// its processes, standing still or running. Files that it could be made of again do not count,
    /// since it may have run. Where the host went down between the mark and the start, an application
    /// is lost that never ran: nobody can tell that from one that did.
    #[must_use]
    pub fn resume(record: Ownership, here: HostName, mark: Mark, copy: bool) -> (Self, Vec<Step>) {
        let (mut machine, _) = Self::begin(record, here);
        machine.mark = Some(mark);
        let steps = match (mark, copy) {
            (Mark::Receiving, _) => machine.discard(false),
            (Mark::Prepared, true) => machine.go(Stage::Waiting, Step::Read),
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

    /// Takes in what happened. What makes no sense where the machine stands changes nothing.
    pub fn step(&mut self, input: Input) -> Vec<Step> {
        use Outcome::{Done, Refused, Unknown};
        let ended = match input {
            Input::Read(record) => return self.read(&record),
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
            (Stage::Starting, Done) => self.announce(),
            // One before this may have taken effect: it must not be begun from before that elsewhere.
            (Stage::Starting, Refused) if self.may_have_run => self.announce(),
            (Stage::Starting, Refused) => self.give_back(),
            (Stage::Starting, Unknown) => {
                self.may_have_run = true;
                vec![Step::Start]
            }
            // Refused, the record is another's by force: whoever watches who may run sees that.
            (Stage::Announcing, Done | Refused) => self.over(End::Runs),
            (Stage::Announcing, Unknown) => self.announce(),
            // Refused, an earlier one took effect.
            (Stage::Returning, Done | Refused) => self.discard(false),
            (Stage::Returning, Unknown) => self.give_back(),
            (Stage::Discarding { watch: false }, Done) => self.over(End::Dropped),
            (Stage::Discarding { watch: true }, Done) => self.go(Stage::Watching, Step::Read),
            (Stage::Discarding { .. }, Refused | Unknown) => vec![Step::Discard],
            (Stage::Waiting | Stage::Watching, Refused | Unknown) => vec![Step::Read],
            (Stage::Waiting | Stage::Watching, Done) | (Stage::Over(_), _) => Vec::new(),
        }
    }

    fn read(&mut self, record: &Ownership) -> Vec<Step> {
        let copy = match self.stage {
            Stage::Waiting => true,
            Stage::Watching => false,
            _ => return Vec::new(),
        };
        let given = self.record.epoch + 1;
        match (record.owner == self.here && record.epoch == given, copy) {
            (true, true) => {
                self.mark = Some(Mark::Starting);
                self.go(Stage::Starting, Step::Start)
            }
            (true, false) => self.give_back(),
            (false, _) if record.epoch < given => vec![Step::Read],
            (false, true) => self.discard(false),
            (false, false) => self.over(End::Dropped),
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
        let given = self.record.given_to(&self.here);
        // Where that cannot be written, the record says the same to whoever begins anew.
        if !self.is_unmarked {
            self.mark = Some(Mark::Dropped);
        }
        self.go(
            Stage::Returning,
            Step::Change(given.epoch, given.given_to(&self.record.owner)),
        )
    }

    fn discard(&mut self, watch: bool) -> Vec<Step> {
        if watch {
            self.mark = Some(Mark::Dropped);
        }
        self.go(Stage::Discarding { watch }, Step::Discard)
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
