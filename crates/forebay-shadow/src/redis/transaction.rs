//! Transactions, and commands that need no server to be answered.

use super::commands::{Kind, Session, Transaction};
use super::conversation::{ABORTED, Conversation};
use super::entry::What;
use super::requests::Command;
use super::state::SESSION_BYTES_MAX;

/// Bytes of a transaction that is carried to a new primary.
const TRANSACTION_BYTES_MAX: usize = 1024 * 1024;
const REJECTED: &[u8] = b"-EXECABORT Transaction discarded because of previous errors.\r\n";

/// How a transaction ends that cannot be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doom {
    /// As if a watched key had changed.
    Watched,
    /// It could not be carried to the new primary.
    Lost,
    /// One of its commands was refused.
    Rejected,
}

/// A transaction that was begun and not yet executed.
#[derive(Debug, Default)]
pub(super) struct Open {
    /// What was sent of it after `MULTI`.
    pub(super) commands: Vec<Command>,
    bytes: usize,
    /// It is too large to be kept.
    pub(super) too_large: bool,
    /// The server refused one of its commands, and will refuse to execute it.
    pub(super) failed: bool,
    /// It is answered here, and never executed.
    pub(super) doom: Option<Doom>,
}

impl Conversation<'_> {
    /// Refuses a command; a transaction that it would have been part of is not executed.
    pub(super) fn reject(&mut self, reply: &[u8]) {
        if let Some(open) = &mut self.transaction
            && open.doom.is_none()
        {
            open.doom = Some(Doom::Rejected);
            open.commands.clear();
            if self.up.is_some() {
                self.send_own(What::Abort, Command::new(&["DISCARD"]));
            }
        }
        self.local(reply.to_vec());
    }

    /// Answers what needs no server.
    pub(super) fn answer_here(&mut self, kind: Kind, command: &Command) -> bool {
        match kind {
            Kind::Quit => {
                self.local(b"+OK\r\n".to_vec());
                self.closing = true;
                return true;
            }
            Kind::Refused(why) => {
                self.reject(format!("-ERR forebay: {why}\r\n").as_bytes());
                return true;
            }
            Kind::Session(_) if command.bytes.len() > SESSION_BYTES_MAX => {
                self.reject(b"-ERR forebay: the command is too long to be remembered\r\n");
                return true;
            }
            Kind::Subscribe(_) if self.transaction.is_some() => {
                self.reject(b"-ERR forebay: subscriptions cannot be part of a transaction\r\n");
                return true;
            }
            Kind::Subscribe(_) if !self.state.has_room(command.bytes.len()) => {
                self.reject(b"-ERR forebay: too many channels on one connection\r\n");
                return true;
            }
            Kind::Transaction(Transaction::Multi)
                if self.watch_lost && self.transaction.is_none() =>
            {
                self.transaction = Some(Open {
                    doom: Some(Doom::Watched),
                    ..Open::default()
                });
                self.local(b"+OK\r\n".to_vec());
                return true;
            }
            _ => {}
        }
        let Some(doom) = self.transaction.as_ref().and_then(|open| open.doom) else {
            return false;
        };
        let reply = match kind {
            Kind::Transaction(Transaction::Exec) => {
                self.transaction = None;
                self.watch_lost = false;
                match doom {
                    Doom::Watched => self.state.protocol.nothing().to_vec(),
                    Doom::Lost => ABORTED.to_vec(),
                    Doom::Rejected => REJECTED.to_vec(),
                }
            }
            Kind::Transaction(Transaction::Discard) => {
                self.transaction = None;
                self.watch_lost = false;
                b"+OK\r\n".to_vec()
            }
            Kind::Transaction(Transaction::Multi) => {
                b"-ERR MULTI calls can not be nested\r\n".to_vec()
            }
            Kind::Transaction(Transaction::Watch) => {
                b"-ERR WATCH inside MULTI is not allowed\r\n".to_vec()
            }
            // It would end the transaction; one that is answered here is ended by other means.
            Kind::Session(Session::Reset) => {
                self.transaction = None;
                self.watch_lost = false;
                return false;
            }
            _ => b"+QUEUED\r\n".to_vec(),
        };
        self.local(reply);
        true
    }

    /// What a command is, with what it does to the transaction.
    pub(super) fn place(&mut self, kind: Kind, command: &Command) -> What {
        if let Some(open) = &mut self.transaction {
            match kind {
                Kind::Transaction(Transaction::Exec) => {
                    self.transaction = None;
                    let watched = std::mem::take(&mut self.watching);
                    return What::Exec { watched };
                }
                Kind::Transaction(Transaction::Discard) => {
                    self.transaction = None;
                    self.watching = false;
                    return What::Discard;
                }
                Kind::Session(Session::Reset) => {}
                // The server refuses these two, which changes nothing.
                Kind::Transaction(Transaction::Multi | Transaction::Watch) => return What::Read,
                _ => {
                    open.bytes += command.bytes.len();
                    open.too_large |= open.bytes > TRANSACTION_BYTES_MAX;
                    if open.too_large {
                        open.commands.clear();
                    } else {
                        open.commands.push(command.clone());
                    }
                    return What::Queued;
                }
            }
        }
        match kind {
            Kind::Write => What::Write,
            Kind::Once => What::Once,
            Kind::Wait => What::Wait,
            Kind::Blocking { writes } => What::Blocking { writes },
            Kind::Session(Session::Reset) => {
                self.transaction = None;
                self.watching = false;
                self.watch_lost = false;
                What::Session(Session::Reset)
            }
            Kind::Session(session) => What::Session(session),
            Kind::Subscribe(subscribe) => What::Subscribe(subscribe),
            Kind::Transaction(Transaction::Multi) => {
                self.transaction = Some(Open::default());
                What::Multi
            }
            Kind::Transaction(Transaction::Watch) => {
                self.watching = true;
                What::Watching
            }
            Kind::Transaction(Transaction::Unwatch) => {
                self.watching = false;
                self.watch_lost = false;
                What::Watching
            }
            // Without a transaction the server refuses them.
            Kind::Transaction(Transaction::Exec | Transaction::Discard)
            | Kind::Read
            | Kind::Quit
            | Kind::Refused(_) => What::Read,
        }
    }
}
