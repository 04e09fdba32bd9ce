//! What the agents of two hosts say to each other about a move, and about certificates.
//!
//! ```text
//!   source (departure)                                   target (arrival)
//!   Reserving   Reserve ─────────────────────────────>  room is promised:   Promised | Refused
//!               Reserve again renews the promise
//!   Copying     Content { phase: Copy(1) } + bytes ──>  Receiving:          Taken | Refused
//!               Content { phase: Copy(2) } + bytes ──>
//!   Sending     Content { phase: Final } + bytes ────>
//!               Prepare { contents } ────────────────>  Preparing, Waiting: Prepared | Refused
//!   (the record changes hands at the coordinator, not here)
//!   Sending, until Lending is over:
//!               <─────────────────────────────── Lend { pages }             Lent + bytes | Refused
//!   Lending     Owed ────────────────────────────────>  Over(Runs):         Owes
//!   Over        Release { epoch } ───────────────────>  Dropped(epoch):     Released
//!   anywhere    State { app } ───────────────────────>                      State
//!   anywhere    Measure + bytes ─────────────────────>  read and forgotten: Taken
//! ```
//!
//! A move is named by its application and the epoch that its record had when it began ([`Move`]): giving
//! up changes the epoch, so that no attempt is taken for another. What an application consists of is
//! opaque here: named streams of bytes ([`Content`]).
//!
//! Both machines stay right when any of these is lost, comes late or comes twice: every request can be
//! asked again. No answer within the time of a request is [`Outcome::Unknown`], `Refused` is
//! [`Outcome::Refused`], everything else [`Outcome::Done`].
//!
//! [`Outcome::Unknown`]: forebay_core::fleet::Outcome::Unknown
//! [`Outcome::Refused`]: forebay_core::fleet::Outcome::Refused
//! [`Outcome::Done`]: forebay_core::fleet::Outcome::Done

use std::collections::BTreeSet;
use std::fmt;

use forebay_core::app::{AppId, Class};
use forebay_core::fleet::choice::Room;
use forebay_core::fleet::policy::Look;
use forebay_core::fleet::{Epoch, HostName, Ownership};
use forebay_host::checkpoint::lend::Pages;
use serde::{Deserialize, Serialize};

/// Contents of one move at most, as they are named in [`Request::Prepare`].
pub(crate) const CONTENTS_MAX: usize = 4096;
/// Bytes that follow a [`Request::Measure`] at most.
pub(crate) const MEASURE_MAX: u64 = 256 << 20;

/// One attempt to move one application.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Move {
    /// What moves.
    pub(crate) app: AppId,
    /// The epoch that its record had when the move began.
    pub(crate) epoch: Epoch,
}

/// How an application is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Manner {
    /// A shadow on the target takes over.
    Handoff,
    /// The process goes on there, with its memory.
    Checkpoint,
    /// It is ended here and begun there.
    Restart,
}

/// One stream of bytes of what an application consists of. The link looks into none of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Content {
    /// Which one, among those of its move: `pages-1.img`, `/var/lib/shop/orders`. Whoever takes it in
    /// must not take this for a path that may be opened as it is.
    pub(crate) name: String,
    /// What it is, in words of whoever moves: `image`, `file`, `definition`.
    pub(crate) kind: String,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind, self.name)
    }
}

/// When in a move a content is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// While the application runs, in this round, counted from 1.
    Copy(u32),
    /// While it stands still: what is left.
    Final,
}

/// What one agent asks of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum Request {
    /// Keep room for an application, or keep it longer. Asked again within
    /// [`promises::PROMISE_TTL`](forebay_core::fleet::promises::PROMISE_TTL).
    Reserve(Reserve),
    /// Take in a content, whose bytes follow: [`Link::send`](super::Link::send).
    Content {
        /// Of which move.
        of: Move,
        /// When.
        phase: Phase,
        /// Which.
        content: Content,
        /// How many bytes follow, where that is known.
        bytes: Option<u64>,
    },
    /// All of it was sent: make a durable copy that stands still.
    Prepare {
        /// Of which move.
        of: Move,
        /// What it consists of, [`CONTENTS_MAX`] at most; refused where one of them did not come whole.
        contents: Vec<Content>,
    },
    /// Nothing will come of a move.
    Release {
        /// Of which.
        of: Move,
    },
    /// Lend memory of a process that stands still and goes on at whoever asks, in bytes that follow the answer:
    /// [`Link::fetch`](super::Link::fetch).
    Lend {
        /// Of which move.
        of: Move,
        /// Which.
        pages: Vec<Pages>,
    },
    /// How much of the memory of a process that goes on there is still to come from whoever asks.
    Owed {
        /// Of which move.
        of: Move,
    },
    /// How far an application has come.
    State {
        /// Which.
        app: AppId,
    },
    /// Make a new certificate for whoever asks, whose name stays, and say who was forgotten. Only the
    /// host that holds the fleet's authority does that.
    Renew {
        /// For this key; none where only the names of those who were forgotten are wanted.
        signing: Option<super::authority::SigningRequest>,
    },
    /// Read the bytes that follow and forget them, so that whoever asks knows how fast contents go. Asked only of whoever says in its
    /// greeting that it does; [`MEASURE_MAX`] at most.
    Measure,
    /// Let a stream in over RDMA, for contents. Asked only of whoever says in its greeting that it has that.
    Rdma,
}

/// Asks for room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reserve {
    /// What is to come.
    pub(crate) app: AppId,
    /// Its record as the source has it; the owner is the host that asks, or nothing is promised.
    pub(crate) record: Ownership,
    /// How much it matters.
    pub(crate) class: Class,
    /// What it will need at most within the next minutes.
    pub(crate) need: Room,
    /// How it is to come.
    pub(crate) manner: Manner,
    /// What the target has to have, by name: `criu-4`, `cpu-avx2`. A name that the target does not know
    /// is something that it lacks.
    pub(crate) requires: BTreeSet<String>,
    /// By which room it was chosen, and is judged.
    #[serde(default = "ahead")]
    pub(crate) look: Look,
    /// The hosts that it left, the longest ago first.
    #[serde(default)]
    pub(crate) homes: Vec<Home>,
}

/// What those that do not say so look at.
const fn ahead() -> Look {
    Look::Ahead
}

/// A host that an application left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Home {
    /// Which.
    pub(crate) host: HostName,
    /// How long ago, in milliseconds: clocks of hosts differ.
    pub(crate) left_ms_ago: u64,
}

impl Reserve {
    /// The move that it begins.
    pub(crate) fn of(&self) -> Move {
        Move {
            app: self.app.clone(),
            epoch: self.record.epoch,
        }
    }
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Room is kept.
    Promised {
        /// For so long from now, in milliseconds, unless it is asked for again.
        for_ms: u64,
    },
    /// It will not be done, and nothing was changed by it.
    Refused(Refused),
    /// A content came whole.
    Taken {
        /// So many bytes of it.
        bytes: u64,
    },
    /// A durable copy stands still.
    Prepared,
    /// What there was of the move is being removed, or nothing was there.
    Released,
    /// So many bytes of memory follow.
    Lent {
        /// How many.
        bytes: u64,
    },
    /// What is still to come.
    Owes {
        /// How many bytes; none where nothing is needed any more.
        bytes: Option<u64>,
    },
    /// How far it has come.
    State(Progressed),
    /// A new certificate, and those who are not of the fleet any more.
    Renewed(super::authority::Renewed),
    /// Where a stream is let in, once and soon.
    Rdma(super::rdma::Offered),
}

/// Why something is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    /// For programs.
    pub(crate) why: Why,
    /// For people: what was asked, and what to do.
    pub(crate) message: String,
}

/// Kinds of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Why {
    /// There is no room.
    Full,
    /// Too much at a time: it may do later.
    Busy,
    /// Another move of this application is not over.
    Underway,
    /// It cannot run there.
    Unfit,
    /// The host takes nothing in.
    Cordoned,
    /// There is no such move there, or it has another epoch.
    Unknown,
    /// Something of it did not come, or did not come whole.
    Incomplete,
    /// Whoever asks may not ask that.
    NotAllowed,
    /// Tried, and failed there.
    Failed,
}

/// How far an application has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progressed {
    /// The epoch of the move that is known, if one is.
    pub(crate) epoch: Option<Epoch>,
    /// Where it comes from.
    pub(crate) from: Option<HostName>,
    /// Where it stands.
    pub(crate) stage: Stage,
    /// The contents that came whole since the move began, [`CONTENTS_MAX`] at most.
    pub(crate) contents: Vec<Content>,
}

/// Where a move stands on the target; see [`arrival::Stage`](forebay_core::fleet::arrival::Stage).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// There is none.
    Nothing,
    /// Room is kept, and nothing has come.
    Promised,
    /// It is coming in.
    Receiving,
    /// A copy is being made.
    Preparing,
    /// The copy stands still.
    Waiting,
    /// It is being let go on.
    Starting,
    /// It runs.
    Runs,
    /// It is removed, or given back.
    Dropping,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_does_not_know_of_homes_is_heard_and_one_that_does_keeps_them() {
        let reserve = Reserve {
            app: "web".parse().unwrap(),
            record: Ownership::first("a".parse().unwrap()),
            class: Class::Standard,
            need: Room::default(),
            manner: Manner::Restart,
            requires: BTreeSet::new(),
            look: Look::Present,
            homes: vec![Home {
                host: "z".parse().unwrap(),
                left_ms_ago: 12,
            }],
        };
        let mut json = serde_json::to_value(&reserve).unwrap();
        let read: Reserve = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(read, reserve);
        let fields = json.as_object_mut().unwrap();
        assert!(fields.remove("look").is_some() && fields.remove("homes").is_some());
        let before: Reserve = serde_json::from_value(json).unwrap();
        assert_eq!((before.look, before.homes), (Look::Ahead, Vec::new()));
    }
}
