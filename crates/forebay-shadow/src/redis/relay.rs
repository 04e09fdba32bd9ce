//! Answers of the server: to whom each one belongs, and what it says about the connection.

use std::io;

use super::bounds::CLIENT_BYTES_MAX;
use super::commands::{Kind, Session};
use super::conversation::{Conversation, owner};
use super::entry::{Entry, What};
use super::replies::{Beginnings, Got, element, elements};
use super::requests::{Command, decimal};
use super::upstream::{Role, Upstream};
use crate::switchboard::Switchboard;

/// Replies longer than this are passed on as they come.
const PART_MIN: usize = 1024 * 1024;

/// Changes of the connection that are kept of one transaction.
const QUEUED_SESSIONS_MAX: usize = 64;

/// What the transaction that the server answers about will have done to the connection.
#[derive(Debug, Default)]
pub(super) struct Queued {
    /// How many commands are part of it.
    commands: usize,
    /// Those that change the connection, with their places.
    sessions: Vec<(usize, Session, Command)>,
    /// How their replies begin, of an answer that is too large to be looked at as a whole.
    large: Option<Beginnings>,
}

/// To whom a reply belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// To the command that has waited longest.
    Entry,
    /// To the client, which did not ask.
    Push,
    /// To the front, which asked in its own name.
    Front,
}

impl Conversation<'_> {
    /// Gives the client what has come, in the order in which it asked.
    pub(super) fn relay(&mut self) -> io::Result<()> {
        // The connection is taken out while what it brought is looked at.
        let mut up = self.up.take();
        let role = up.as_ref().map(|up| up.role);
        self.balance.answers = role == Some(Role::Shadow);
        let relayed = self.relay_from(up.as_mut());
        self.up = up;
        self.settle();
        relayed
    }

    fn relay_from(&mut self, mut up: Option<&mut Upstream>) -> io::Result<()> {
        loop {
            self.answer_local()?;
            self.stuffed = self.outlet.out.len() >= CLIENT_BYTES_MAX;
            if self.stuffed {
                return Ok(());
            }
            let Some(up) = up.as_deref_mut() else {
                return Ok(());
            };
            let mut replay = up.replay;
            let got = match up.replies.next(PART_MIN) {
                Ok(Some(got)) => got,
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::error!(%error, "a server's connection is given up");
                    up.ended = true;
                    return Ok(());
                }
            };
            if let Some(ticket) = self.entries.front().and_then(|entry| entry.ticket.as_ref()) {
                ticket.heard();
            }
            self.take(&got, &mut replay)?;
            up.replay = replay;
            if self.balance.declined {
                up.ended = true;
                return Ok(());
            }
        }
    }

    /// Entries whose turn it is and that need no server.
    pub(super) fn answer_local(&mut self) -> io::Result<()> {
        // Nothing may come between the parts of a large message.
        if self.parted.is_some() {
            return Ok(());
        }
        while let Some(entry) = self.entries.front() {
            let What::Local(reply) = &entry.what else {
                break;
            };
            let reply = self.outlet.reply(reply, super::entry::Owner::Other);
            reply.map_err(io::Error::other)?;
            self.pop();
        }
        Ok(())
    }

    fn take(&mut self, got: &Got<'_>, replay: &mut usize) -> io::Result<()> {
        match got {
            Got::Whole(reply) => self.take_whole(reply, replay),
            Got::Part(part) => {
                if let Some(whose) = self.parted {
                    return self.more(whose, part);
                }
                let whose = self.whose(part, *replay);
                self.parted = Some(whose);
                match whose {
                    Whose::Push => {
                        self.outlet.push(part);
                        Ok(())
                    }
                    Whose::Entry => {
                        self.begin_large();
                        self.look_into(part);
                        let strict = self.entries.front().is_some_and(|entry| entry.strict);
                        let reply = self.outlet.reply(part, owner(strict));
                        reply.map_err(io::Error::other)
                    }
                    Whose::Front => Err(io::Error::other("a reply to the front is too large")),
                }
            }
            Got::Last(part) => {
                let Some(whose) = self.parted.take() else {
                    return Ok(());
                };
                self.more(whose, part)?;
                if whose == Whose::Entry {
                    self.answered(b"*");
                }
                Ok(())
            }
        }
    }

    fn more(&mut self, whose: Whose, part: &[u8]) -> io::Result<()> {
        match whose {
            Whose::Push => {
                self.outlet.push(part);
                Ok(())
            }
            Whose::Entry | Whose::Front => {
                self.look_into(part);
                self.outlet.more(part).map_err(io::Error::other)
            }
        }
    }

    /// A large answer begins: of one to a transaction, it counts what becomes of the connection.
    fn begin_large(&mut self) {
        let entry = self.entries.front();
        if entry.is_some_and(|entry| matches!(entry.what, What::Exec { .. })) {
            let places = self.queued.sessions.iter().map(|(place, ..)| *place);
            self.queued.large = Some(Beginnings::of(places));
        }
    }

    fn look_into(&mut self, part: &[u8]) {
        if let Some(large) = &mut self.queued.large {
            large.add(part);
        }
    }

    fn take_whole(&mut self, reply: &[u8], replay: &mut usize) -> io::Result<()> {
        match self.whose(reply, *replay) {
            Whose::Push => {
                self.outlet.push(reply);
                return Ok(());
            }
            Whose::Front => {
                *replay -= 1;
                if reply.first() == Some(&b'-') {
                    let why = String::from_utf8_lossy(reply);
                    let why = why.trim_end();
                    // The primary knows the client, and answers instead.
                    if self.balance.answers {
                        tracing::warn!(why, "the shadow does not take a connection over");
                        self.balance.declined = true;
                        return Ok(());
                    }
                    return Err(io::Error::other(format!(
                        "the new primary does not take over a connection: {why}"
                    )));
                }
                return Ok(());
            }
            Whose::Entry => {}
        }
        let lingers = self.lingers();
        let Some(entry) = self.entries.front_mut() else {
            // Before it closes a connection, a server may say why; nobody asked for that.
            let why =
                String::from_utf8_lossy(reply.get(..reply.len().min(200)).unwrap_or_default());
            tracing::warn!(%why, "a server says what was not asked");
            return Ok(());
        };
        match &entry.what {
            What::Nothing | What::Abort => {
                self.answered(reply);
                return Ok(());
            }
            What::Confirm => {
                self.confirmed(reply);
                self.answered(reply);
                return Ok(());
            }
            // It copies what the primary has: the primary answers instead.
            What::Read
                if self.balance.answers
                    && (reply.starts_with(b"-LOADING") || reply.starts_with(b"-MASTERDOWN")) =>
            {
                self.balance.declined = true;
                return Ok(());
            }
            // One that handed over in order sends those away that wait for others.
            What::Blocking { .. } if reply.starts_with(b"-UNBLOCKED") && lingers => {
                entry.end = None;
                return Ok(());
            }
            What::Subscribe(subscribe) if self.state.confirmed(reply) => {
                let (of, adds) = (subscribe.of, subscribe.adds);
                entry.confirmations += 1;
                let named = entry
                    .command
                    .as_ref()
                    .map_or(0, |command| command.len() - 1);
                let all = if adds || named > 0 {
                    entry.confirmations >= named
                } else {
                    self.state.channels(of) == 0
                };
                self.outlet.push(reply);
                if all {
                    self.answered(b"+");
                }
                return Ok(());
            }
            _ => {}
        }
        let strict = entry.strict;
        let reply_to = self.outlet.reply(reply, owner(strict));
        reply_to.map_err(io::Error::other)?;
        self.answered(reply);
        Ok(())
    }

    fn whose(&self, reply: &[u8], replay: usize) -> Whose {
        let pushed = reply.first() == Some(&b'>') || self.state.is_message(reply);
        if pushed && !is_confirmation(reply) {
            Whose::Push
        } else if replay > 0 {
            Whose::Front
        } else {
            Whose::Entry
        }
    }

    /// Shadows have what was written before, or not.
    fn confirmed(&mut self, reply: &[u8]) {
        let digits = reply.strip_prefix(b":").unwrap_or_default();
        let digits = digits.strip_suffix(b"\r\n").unwrap_or_default();
        let has = decimal(digits).and_then(|count| usize::try_from(count).ok());
        if has.is_some_and(|has| has >= self.setup.confirmations(self.board)) || self.may_continue()
        {
            self.outlet.confirm();
            return;
        }
        let error = format!(
            "-INDOUBT forebay: executed, and not confirmed by the shadow within {} ms; it is lost \
             if the primary is\r\n",
            self.setup.options.confirm_ms
        );
        let doubted = self.outlet.doubt(error.as_bytes());
        doubt(self.board, doubted);
    }

    /// The oldest command got its whole answer.
    fn answered(&mut self, reply: &[u8]) {
        let Some(entry) = self.pop() else { return };
        let Entry {
            what,
            command,
            ticket,
            ..
        } = entry;
        if let Some(ticket) = ticket {
            ticket.answered();
        }
        if let (What::Session(session), Some(command)) = (&what, &command) {
            self.state.answered(*session, command, reply);
        }
        match what {
            What::Multi | What::Discard | What::Abort | What::Session(Session::Reset) => {
                self.queued = Queued::default();
            }
            What::Queued => self.was_queued(command.as_ref(), reply),
            // Redis selects for the connection what a transaction selected.
            What::Exec { .. } => {
                let Queued {
                    sessions, large, ..
                } = std::mem::take(&mut self.queued);
                for (place, session, command) in sessions {
                    let reply = match &large {
                        Some(large) => large.element(place),
                        None => element(reply, place),
                    };
                    if let Some(reply) = reply {
                        self.state.answered(session, &command, reply);
                    }
                }
            }
            _ => {}
        }
    }

    /// A command became part of a transaction, or was refused, with which the whole will be.
    fn was_queued(&mut self, command: Option<&Command>, reply: &[u8]) {
        if !reply.starts_with(b"+QUEUED") {
            let ended = self
                .entries
                .iter()
                .any(|entry| entry.what.ends_transaction());
            if let Some(open) = self.transaction.as_mut().filter(|_| !ended) {
                open.failed = true;
            }
            return;
        }
        let place = self.queued.commands;
        self.queued.commands += 1;
        if let Some(command) = command
            && let Kind::Session(session) = super::commands::kind(command)
            && self.queued.sessions.len() < QUEUED_SESSIONS_MAX
        {
            let session = (place, session, command.clone());
            self.queued.sessions.push(session);
        }
    }
}

/// Counts writes of which nobody knows what became.
pub(super) fn doubt(board: &Switchboard, writes: u64) {
    let unknown = &board.counters.unknown;
    unknown.fetch_add(writes, std::sync::atomic::Ordering::Relaxed);
}

fn is_confirmation(reply: &[u8]) -> bool {
    let elements = elements(reply);
    let word = elements.first().copied().unwrap_or_default();
    word.ends_with(b"subscribe")
}
