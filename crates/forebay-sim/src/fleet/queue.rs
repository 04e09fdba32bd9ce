//! What happens, and when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use forebay_core::fleet::choice::{Offer, Room};
use forebay_core::fleet::policy::{Look, Shed};
use forebay_core::fleet::{Epoch, HostName, Outcome, Ownership, arrival, departure};

use super::Micros;
use super::fault::Fault;

/// Which side of a move waits for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Departure,
    Arrival,
}

/// Who takes a step: a daemon, and which step of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) host: usize,
    pub(super) life: u64,
    pub(super) app: usize,
    pub(super) side: Side,
    pub(super) ticket: u64,
}

/// What the coordinator is asked.
#[derive(Debug, Clone)]
pub(super) enum Call {
    /// Renew this lease, or grant one where there is none.
    Lease {
        id: Option<u64>,
        sent: std::time::Duration,
    },
    /// Change a record.
    Change {
        turn: Option<Turn>,
        app: usize,
        epoch: Epoch,
        to: Ownership,
    },
    /// Read a record.
    Read { turn: Turn },
    /// Read what is owned, and the records of what is here.
    Resync { also: Vec<usize> },
    /// Publish what is offered.
    Publish(Box<Offer>),
    /// Read all offers, to find a target for this one.
    Target { app: usize, shed: Box<Shed> },
    /// What a lost host owned, and where that could go.
    Orphans { lost: usize },
    /// Give one of a lost host to another host.
    Takeover {
        lost: usize,
        app: usize,
        epoch: Epoch,
        to: Ownership,
    },
}

/// What it answers.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// Nobody knows.
    Unknown,
    Ended(Outcome),
    Granted {
        id: u64,
        anew: bool,
    },
    Gone,
    Record(Ownership),
    Records(Vec<(usize, Ownership)>),
    Target(Option<(HostName, Look)>),
    Orphans(Vec<(usize, Epoch, HostName)>),
}

/// A request, and who asked.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) host: usize,
    pub(super) life: u64,
    pub(super) call: Call,
    /// Whether the answer is lost.
    pub(super) silent: bool,
}

/// What hosts say to each other.
#[derive(Debug, Clone)]
pub(super) enum Message {
    /// Room for one, by what is to be judged whether there is, and how long ago it left which host.
    Reserve {
        turn: Turn,
        record: Ownership,
        need: (Room, Look),
        ages: Vec<(HostName, std::time::Duration)>,
    },
    /// The same again.
    Renew {
        app: usize,
        record: Ownership,
        need: (Room, Look),
    },
    /// The rest of one, which stands still there.
    Sent {
        turn: Turn,
        record: Ownership,
        position: u64,
    },
    /// How that ended.
    Reply { turn: Turn, outcome: Outcome },
    /// Nothing will come of it.
    Release { app: usize, epoch: Epoch },
    /// A keeper asks room for one of a lost host.
    Promise {
        keeper: usize,
        lost: usize,
        app: usize,
        epoch: Epoch,
    },
    /// And has it.
    Promised {
        lost: usize,
        app: usize,
        epoch: Epoch,
    },
}

/// What happens.
#[derive(Debug)]
pub(super) enum Event {
    /// The next sample of all loads.
    Step,
    /// Everything is counted anew.
    Audit,
    Beat {
        host: usize,
        life: u64,
    },
    Expire {
        host: usize,
    },
    Guard {
        host: usize,
        boot: u64,
    },
    Look {
        host: usize,
        life: u64,
        again: bool,
    },
    AtCoordinator(Box<Request>),
    Answer(Box<Request>, Answer),
    /// The record of one changed.
    Notice {
        host: usize,
        app: usize,
        record: Ownership,
    },
    Message {
        from: usize,
        to: usize,
        message: Box<Message>,
    },
    Departure {
        turn: Turn,
        step: departure::Step,
    },
    Departed {
        turn: Turn,
        input: departure::Input,
    },
    Arrival {
        turn: Turn,
        step: arrival::Step,
    },
    Arrived {
        turn: Turn,
        input: arrival::Input,
    },
    /// A target looks after what came.
    Tend {
        host: usize,
        life: u64,
        app: usize,
        epoch: Epoch,
    },
    Renew {
        turn: Turn,
    },
    Keep {
        lost: usize,
    },
    Fault(Fault),
    Strike {
        host: usize,
        fault: Fault,
    },
    Resume {
        host: usize,
    },
    Boot {
        host: usize,
    },
    Daemon {
        host: usize,
        life: u64,
    },
    /// All faults are over for as long as settling may take.
    Settled,
}

/// Events in order of time, and of when they were put in.
#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<(Micros, u64, usize)>>,
    slots: Vec<Option<Event>>,
    free: Vec<usize>,
    count: u64,
}

impl Queue {
    pub(super) fn push(&mut self, at: Micros, event: Event) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(event);
                slot
            }
            None => {
                self.slots.push(Some(event));
                self.slots.len() - 1
            }
        };
        self.count += 1;
        self.heap.push(Reverse((at, self.count, slot)));
    }

    pub(super) fn pop(&mut self) -> Option<(Micros, Event)> {
        let Reverse((at, _, slot)) = self.heap.pop()?;
        self.free.push(slot);
        Some((at, self.slots[slot].take()?))
    }

    /// How many were put in.
    pub(super) fn count(&self) -> u64 {
        self.count
    }
}
