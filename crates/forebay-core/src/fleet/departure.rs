//! The source's side of a move: the host that has the application and gives it away.
//!
//! ```text
//!   Checking ─> Reserving ─> Copying ─> Freezing ─> Sending ─> Committing ─> Awaiting ─> Lending ─> Ending
//!      v            │           │           │          │         │   │ Unknown          ^  │            v
//!   Refused         │           │           v          v         │   v        read      │  │          Moved
//!                   │           │        Thawing <─────┴─────────│─ Recalling ─> Reading┘  │
//!                   v           v           │   <────────────────┴───────────────────┴─────┘ given back
//!               CallingOff <────┴───────────┤
//!                   └─────> Stayed <────────┘
//! ```
//!
//! Giving up changes the record as well: a target that still holds a copy, and has not heard of it, sees
//! by that that nothing will come, and takes no later attempt for this one.
//!
//! What the target fetches of the frozen one after it let its own copy run, it fetches while that stands in
//! Lending; where it has all that it needs when it lets that run, that is over at once. Once the record says that
//! the target's runs nothing leads from there to Thawing.
//!
//! A step that comes out again is to be tried again, after a rest.

use super::{Epoch, HostName, Outcome, Ownership};

/// Where the source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is looked whether it can move at all.
    Checking,
    /// The target is asked for room.
    Reserving,
    /// It runs, and what it has is copied.
    Copying,
    /// It is being frozen.
    Freezing,
    /// It stands still, and the rest is sent; the target makes a copy of it that stands still.
    Sending,
    /// The record is being changed.
    Committing,
    /// Whether it was changed is not known: it is made certain that it cannot be.
    Recalling,
    /// It was changed by somebody: by whom?
    Reading,
    /// The target owns it; the frozen one is kept until that one runs.
    Awaiting,
    /// The target's runs, and the frozen one is kept for as long as that one may need something of it.
    Lending,
    /// The frozen one is being ended.
    Ending,
    /// The frozen one is let go on.
    Thawing,
    /// It runs, and the record is being changed so that no target waits for it.
    CallingOff,
    /// It is over.
    Over(End),
}

/// How a move ended, for the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// It cannot move; nothing was touched.
    Refused,
    /// It runs here.
    Stayed,
    /// It is the target's.
    Moved,
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
    /// Somebody does not want the move any more.
    Cancel,
    /// The mark of the steps that came out last cannot be made durable: they were not taken.
    Unmarked,
}

/// What has to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Look whether it can move, without touching it.
    Check,
    /// Ask the target for room.
    Reserve,
    /// Copy what it has while it runs, until little is left.
    Copy,
    /// Freeze it, and see that it stands still.
    Freeze,
    /// Send the rest; done when the target has a durable copy that stands still.
    Send,
    /// Change the record to this one, if it has this epoch.
    Change(Epoch, Ownership),
    /// Read the record.
    Read,
    /// Let it go on here, if [`super::tenure::leave`] lets it: somebody may have taken it over meanwhile.
    Thaw,
    /// Find out that the target needs nothing more of the one that stands here; refused and unknown are both that
    /// it may.
    Lend,
    /// End it here, while it stands still.
    End,
    /// Tell the target that nothing will come of what began with this epoch. Nobody waits for that.
    Release(Epoch),
}

/// What is on disk before a step is taken, and all that a daemon that begins anew needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// The target may hold room.
    Begun,
    /// It may stand still.
    Frozen,
    /// The record may have been changed.
    Committing,
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    here: HostName,
    there: HostName,
    /// The record that it was begun with.
    record: Ownership,
    stage: Stage,
    mark: Option<Mark>,
    /// Nothing that was asked of the record with its epoch can take effect any more.
    is_off: bool,
    /// As a target gave it back whose copy never ran: it is to say that it runs here.
    back: Option<Ownership>,
    /// The commit was refused when it was asked for, so that it never took effect.
    is_refused: bool,
    /// What is on disk while it is called off, where that is not known to be written yet.
    written: Option<Mark>,
}

impl Departure {
    /// Begins a move of an application that `record.owner` has.
    #[must_use]
    pub fn begin(record: Ownership, there: HostName) -> (Self, Vec<Step>) {
        let machine = Self {
            here: record.owner.clone(),
            there,
            record,
            stage: Stage::Checking,
            mark: None,
            is_off: false,
            back: None,
            is_refused: false,
            written: None,
        };
        (machine, vec![Step::Check])
    }

    /// Goes on after the daemon ended, from what it had made durable.
    #[must_use]
    pub fn resume(record: Ownership, there: HostName, mark: Mark) -> (Self, Vec<Step>) {
        let (mut machine, _) = Self::begin(record, there);
        machine.mark = Some(mark);
        let steps = match mark {
            Mark::Begun => machine.call_off(),
            Mark::Frozen => machine.thaw(),
            Mark::Committing => machine.recall(),
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

    /// The record as its host knows it from now on, whatever a coordinator says that was put back meanwhile: that it
    /// runs again, or that nothing asked of the record before counts any more. To be durable before the last mark is
    /// taken away.
    #[must_use]
    pub fn known(&self) -> Option<Ownership> {
        match (self.stage, &self.back) {
            (Stage::CallingOff | Stage::Over(End::Stayed), Some(back)) => Some(back.running()),
            (Stage::Over(End::Stayed), None) if !self.is_off => Some(self.record.recalled()),
            _ => None,
        }
    }

    /// Takes in what happened. What makes no sense where the machine stands changes nothing.
    pub fn step(&mut self, input: Input) -> Vec<Step> {
        use Outcome::{Done, Refused, Unknown};
        let ended = match input {
            Input::Cancel => return self.cancel(),
            Input::Unmarked => return self.unmarked(),
            Input::Read(record) => return self.read(&record),
            Input::Gone => return self.put_back(),
            Input::Ended(outcome) => outcome,
        };
        match (self.stage, ended) {
            (Stage::Checking, Done) => self.go(Stage::Reserving, Some(Mark::Begun), Step::Reserve),
            (Stage::Checking, Refused | Unknown) => {
                self.stage = Stage::Over(End::Refused);
                Vec::new()
            }
            (Stage::Reserving, Done) => self.go(Stage::Copying, self.mark, Step::Copy),
            (Stage::Copying, Done) => self.go(Stage::Freezing, Some(Mark::Frozen), Step::Freeze),
            (Stage::Reserving | Stage::Copying, Refused | Unknown) => self.call_off(),
            (Stage::Freezing, Done) => self.go(Stage::Sending, self.mark, Step::Send),
            (Stage::Sending, Done) => {
                let change = Step::Change(self.record.epoch, self.record.given_to(&self.there));
                self.go(Stage::Committing, Some(Mark::Committing), change)
            }
            // Nobody was asked to change the record yet, so that it is still ours.
            (Stage::Freezing | Stage::Sending, Refused | Unknown) => self.thaw(),
            (Stage::Committing, Done) => self.go(Stage::Awaiting, self.mark, Step::Read),
            (Stage::Committing, Unknown) => self.recall(),
            (Stage::Committing, Refused) => {
                self.is_refused = true;
                self.go(Stage::Reading, self.mark, Step::Read)
            }
            (Stage::Recalling, Refused) => self.go(Stage::Reading, self.mark, Step::Read),
            // Whichever of the two took effect, the commit cannot any more once the epoch went on.
            (Stage::Recalling, Unknown) => self.recall(),
            (Stage::Recalling, Done) => {
                self.is_off = true;
                self.thaw()
            }
            (Stage::Reading | Stage::Awaiting, Refused | Unknown) => vec![Step::Read],
            (Stage::Lending, Done) => self.go(Stage::Ending, self.mark, Step::End),
            (Stage::Lending, Refused | Unknown) => vec![Step::Lend],
            (Stage::Ending, Done) => self.over(End::Moved),
            (Stage::Ending, Refused | Unknown) => vec![Step::End],
            (Stage::Thawing, Done) => match (&self.back, self.is_off) {
                (Some(_), _) => self.confirm(),
                (None, true) => self.over(End::Stayed),
                (None, false) => self.call_off(),
            },
            (Stage::Thawing, Refused | Unknown) => vec![Step::Thaw],
            // Refused, an earlier one took effect, or the record was put back to before: what its host knows of it
            // is said again once no move is about it.
            (Stage::CallingOff, Done | Refused) => self.over(End::Stayed),
            (Stage::CallingOff, Unknown) if self.back.is_some() => self.confirm(),
            (Stage::CallingOff, Unknown) => self.call_off(),
            (Stage::Reading | Stage::Awaiting, Done) | (Stage::Over(_), _) => Vec::new(),
        }
    }

    fn read(&mut self, record: &Ownership) -> Vec<Step> {
        if !matches!(self.stage, Stage::Reading | Stage::Awaiting) {
            return Vec::new();
        }
        if record.epoch < self.record.epoch {
            return self.put_back();
        }
        let given = self.record.epoch + 1;
        match (record.owner == self.here, record.epoch) {
            // Recalled, or given back by a target whose copy never ran.
            (true, epoch) if epoch >= given => {
                self.is_off = true;
                self.back = (!record.runs).then(|| record.clone());
                self.thaw()
            }
            (true, _) => self.recall(),
            (false, epoch) if epoch > given => self.go(Stage::Lending, self.mark, Step::Lend),
            (false, epoch) if epoch == given && record.owner == self.there => match record.runs {
                true => self.go(Stage::Lending, self.mark, Step::Lend),
                false => self.go(Stage::Awaiting, self.mark, Step::Read),
            },
            // Two were made owners of one epoch: it stands until a later one says who is.
            (false, _) => vec![Step::Read],
        }
    }

    /// The record was put back to before this move, or is gone: it says nothing of what was asked since, and
    /// whoever has it by that is no reason to end what stands here.
    fn put_back(&mut self) -> Vec<Step> {
        match self.stage {
            // Nobody else was given it.
            Stage::Reading if self.is_refused => self.thaw(),
            Stage::Reading | Stage::Awaiting => vec![Step::Read],
            _ => Vec::new(),
        }
    }

    fn cancel(&mut self) -> Vec<Step> {
        match self.stage {
            Stage::Checking => {
                self.stage = Stage::Over(End::Refused);
                Vec::new()
            }
            Stage::Reserving | Stage::Copying => self.call_off(),
            Stage::Freezing | Stage::Sending => self.thaw(),
            // The record is being changed: it is the target's to say now.
            _ => Vec::new(),
        }
    }

    /// Turns back where that needs nothing on disk: a full one must not keep it standing.
    fn unmarked(&mut self) -> Vec<Step> {
        match self.stage {
            Stage::Reserving => self.over(End::Refused),
            // Nothing was frozen.
            Stage::Freezing => self.call_off(),
            // Nobody was asked to change the record; what is on disk is that it may stand still.
            Stage::Committing => {
                self.mark = Some(Mark::Frozen);
                self.thaw()
            }
            // It runs, whatever the disk says: that the record says so must not wait for room.
            Stage::CallingOff => match self.written.take() {
                Some(mark) => {
                    let change = Step::Change(self.record.epoch, self.record.recalled());
                    self.go(Stage::CallingOff, Some(mark), change)
                }
                None => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// It runs here again, which the record is to say: what never ran where it was given to is started by
    /// nobody. The mark stays, so that a daemon that begins anew reads the record once more.
    fn confirm(&mut self) -> Vec<Step> {
        let Some(back) = &self.back else {
            return self.over(End::Stayed);
        };
        let change = Step::Change(back.epoch, back.running());
        self.go(Stage::CallingOff, self.mark, change)
    }

    fn recall(&mut self) -> Vec<Step> {
        let change = Step::Change(self.record.epoch, self.record.recalled());
        self.go(Stage::Recalling, self.mark, change)
    }

    fn call_off(&mut self) -> Vec<Step> {
        let change = Step::Change(self.record.epoch, self.record.recalled());
        if self.mark != Some(Mark::Begun) {
            self.written = self.mark;
        }
        // It runs: whoever begins anew from here has nothing to thaw.
        self.go(Stage::CallingOff, Some(Mark::Begun), change)
    }

    fn thaw(&mut self) -> Vec<Step> {
        self.go(Stage::Thawing, self.mark, Step::Thaw)
    }

    fn go(&mut self, stage: Stage, mark: Option<Mark>, step: Step) -> Vec<Step> {
        self.stage = stage;
        self.mark = mark;
        vec![step]
    }

    fn over(&mut self, end: End) -> Vec<Step> {
        self.stage = Stage::Over(end);
        self.mark = None;
        match end {
            End::Stayed => vec![Step::Release(self.record.epoch)],
            End::Refused | End::Moved => Vec::new(),
        }
    }
}
