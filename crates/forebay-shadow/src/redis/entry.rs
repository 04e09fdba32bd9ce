//! Commands under way on one connection, and the way of their answers to the client.

use super::commands::{Session, Subscribe};
use super::requests::Command;
use super::upstream::Outgoing;
use crate::flights::Ticket;

/// Replies that may be held back until a shadow has what they say.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a command under way is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// Answered here, like this, once it is its turn.
    Local(Vec<u8>),
    /// It changes nothing.
    Read,
    /// It may change data.
    Write,
    /// It may change the server, and no data.
    Once,
    /// It waits for others, and takes what it waited for or not.
    Blocking { writes: bool },
    /// It asks how far this connection's writes got.
    Wait,
    /// It changes the connection.
    Session(Session),
    /// It changes what is listened to.
    Subscribe(Subscribe),
    /// Watches keys, or does not any more.
    Watching,
    /// Begins a transaction.
    Multi,
    /// Becomes part of one.
    Queued,
    /// Gives one up.
    Discard,
    /// Executes one, if none of the keys changed that are watched.
    Exec { watched: bool },
    /// The front's own `WAIT` for what was written before.
    Confirm,
    /// The front's own `DISCARD` of a transaction that it refused.
    Abort,
    /// The front's own, for its effect on the connection; nobody is told its reply.
    Nothing,
}

impl What {
    /// Whether it may not be sent again once the server may have read it.
    pub(super) const fn is_once(&self) -> bool {
        matches!(
            self,
            Self::Write
                | Self::Once
                | Self::Blocking { writes: true }
                | Self::Wait
                | Self::Exec { .. }
        )
    }

    /// Whether it is not needed any more once it was sent.
    pub(super) const fn is_forgotten(&self) -> bool {
        matches!(
            self,
            Self::Write | Self::Once | Self::Wait | Self::Exec { .. }
        )
    }

    /// Whether it ends a transaction.
    pub(super) const fn ends_transaction(&self) -> bool {
        matches!(self, Self::Exec { .. } | Self::Discard | Self::Abort)
    }
}

/// A command under way.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) what: What,
    /// What is sent; of those that are not sent again, only until they were.
    pub(super) command: Option<Command>,
    /// Where it ends among the bytes of its connection; none while it is not queued there.
    pub(super) end: Option<u64>,
    pub(super) ticket: Option<Ticket<'a>>,
    /// Confirmations that have come of a subscription.
    pub(super) confirmations: usize,
    /// How often its connection was lost.
    pub(super) losses: u8,
    /// Its reply waits until a shadow has what it wrote.
    pub(super) strict: bool,
}

impl Entry<'_> {
    pub(super) const fn local(reply: Vec<u8>) -> Self {
        Self {
            what: What::Local(reply),
            command: None,
            end: None,
            ticket: None,
            confirmations: 0,
            losses: 0,
            strict: false,
        }
    }

    /// Whether the server may have read all of it.
    pub(super) fn is_sent(&self, written: u64) -> bool {
        self.end.is_some_and(|end| end <= written)
    }

    /// The front's own command, whose reply nobody is told.
    pub(super) const fn own(command: Command) -> Self {
        Self {
            what: What::Nothing,
            command: Some(command),
            end: None,
            ticket: None,
            confirmations: 0,
            losses: 0,
            strict: false,
        }
    }

    /// Bytes of the command that are kept.
    pub(super) fn bytes(&self) -> usize {
        self.command
            .as_ref()
            .map_or(0, |command| command.bytes.len())
    }

    /// It is answered here instead.
    pub(super) fn answer(&mut self, reply: &[u8]) {
        *self = Self::local(reply.to_vec());
    }
}

/// The way to the client, which may hold replies back.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    pub(super) out: Outgoing,
    /// Replies that wait, in order, and whether each one is of a write.
    held: Vec<(Vec<u8>, Owner)>,
    held_bytes: usize,
}

/// Whose reply is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// A write that a shadow has to have.
    Write,
    /// Whatever comes after one.
    Other,
}

/// More replies wait for a shadow than fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {HELD_BYTES_MAX} bytes of replies wait for the shadow")]
pub(super) struct HeldTooMuch;

impl Outlet {
    /// A whole reply, or the beginning of one.
    pub(super) fn reply(&mut self, bytes: &[u8], owner: Owner) -> Result<(), HeldTooMuch> {
        if self.held.is_empty() && owner == Owner::Other {
            self.out.push(bytes);
            return Ok(());
        }
        self.held_bytes += bytes.len();
        if self.held_bytes > HELD_BYTES_MAX {
            return Err(HeldTooMuch);
        }
        self.held.push((bytes.to_vec(), owner));
        Ok(())
    }

    /// More of the reply before.
    pub(super) fn more(&mut self, bytes: &[u8]) -> Result<(), HeldTooMuch> {
        let Some((last, _)) = self.held.last_mut() else {
            self.out.push(bytes);
            return Ok(());
        };
        self.held_bytes += bytes.len();
        if self.held_bytes > HELD_BYTES_MAX {
            return Err(HeldTooMuch);
        }
        last.extend_from_slice(bytes);
        Ok(())
    }

    /// What comes unasked, at the end of a reply.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.out.push(bytes);
    }

    /// Nothing waits on its way to the client.
    pub(super) fn is_empty(&self) -> bool {
        self.out.len() == 0 && self.held.is_empty()
    }

    /// A shadow has all that was written before.
    pub(super) fn confirm(&mut self) {
        for (reply, _) in self.held.drain(..) {
            self.out.push(&reply);
        }
        self.held_bytes = 0;
    }

    /// Nobody knows whether one has; how many writes that concerns.
    pub(super) fn doubt(&mut self, error: &[u8]) -> u64 {
        let mut doubted = 0;
        for (reply, owner) in self.held.drain(..) {
            // A write that failed changed nothing.
            if owner == Owner::Write && reply.first() != Some(&b'-') {
                doubted += 1;
                self.out.push(error);
            } else {
                self.out.push(&reply);
            }
        }
        self.held_bytes = 0;
        doubted
    }
}
