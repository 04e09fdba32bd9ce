//! What a server still has to answer.

use std::collections::VecDeque;
use std::sync::Arc;

use super::sql::{Class, End};
use super::state::{NAMES_MAX, Prepared, State};
use crate::flights::Ticket;

/// A request longer than this is not kept for being sent again.
const COPY_BYTES_MAX: usize = 64 * 1024;

/// Whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The client's.
    Client,
    /// The front asks which transaction this is.
    Transaction,
    /// It asks how the session stands.
    Session,
    /// Something whose answer tells nothing.
    Silent,
}

/// A change of the prepared statements that the server confirms.
#[derive(Debug)]
enum Change {
    Parse(Vec<u8>, Arc<Prepared>),
    Close(Vec<u8>),
    /// Of a portal.
    Other,
}

/// Something that ends with one "ready for query".
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) owner: Owner,
    pub(crate) ticket: Option<Ticket<'a>>,
    /// It is a batch of the extended protocol.
    pub(crate) is_batch: bool,
    /// All of it was sent.
    pub(crate) is_whole: bool,
    pub(crate) class: Class,
    /// Statements that it executes.
    executes: u32,
    /// The class of what its latest portal executes, where this batch bound it.
    bound: Option<Class>,
    /// All of it, to be sent again.
    pub(crate) copy: Option<Vec<u8>>,
    changes: VecDeque<Change>,
    /// The client was told a part of the answer.
    pub(crate) answered: bool,
    /// Statements that were complete.
    pub(crate) completed: u32,
    /// The client was told an error.
    pub(crate) failed: bool,
}

impl<'a> Request<'a> {
    /// One of the front. It has a ticket, too: a hand-over waits until it is answered, since what the
    /// client says meanwhile is sent right behind it.
    pub(crate) fn own(owner: Owner, ticket: Ticket<'a>) -> Self {
        Self {
            is_whole: true,
            ..Self::new(owner, Some(ticket), false, Class::default())
        }
    }

    fn new(owner: Owner, ticket: Option<Ticket<'a>>, is_batch: bool, class: Class) -> Self {
        Self {
            owner,
            ticket,
            is_batch,
            is_whole: false,
            class,
            executes: 0,
            bound: None,
            copy: Some(Vec::new()),
            changes: VecDeque::new(),
            answered: false,
            completed: 0,
            failed: false,
        }
    }

    /// One message that is a request of its own.
    pub(crate) fn single(ticket: Ticket<'a>, class: Class) -> Self {
        Self {
            is_whole: true,
            executes: 1,
            ..Self::new(Owner::Client, Some(ticket), false, class)
        }
    }

    /// The beginning of a batch, which does nothing yet.
    pub(crate) fn batch(ticket: Ticket<'a>) -> Self {
        let class = Class {
            reads: true,
            unnumbered: true,
            ..Class::default()
        };
        Self::new(Owner::Client, Some(ticket), true, class)
    }

    /// A message belongs to it.
    pub(crate) fn keep(&mut self, message: &[u8]) {
        match &mut self.copy {
            Some(copy) if copy.len() + message.len() <= COPY_BYTES_MAX => {
                copy.extend_from_slice(message);
            }
            _ => self.copy = None,
        }
    }

    /// A part of it cannot be kept.
    pub(crate) fn is_too_long(&mut self) {
        self.copy = None;
    }

    pub(crate) fn parse(&mut self, name: Vec<u8>, prepared: Arc<Prepared>) {
        if !self.failed {
            self.changes.push_back(Change::Parse(name, prepared));
        }
    }

    pub(crate) fn close(&mut self, name: Option<Vec<u8>>) {
        if !self.failed {
            let change = name.map_or(Change::Other, Change::Close);
            self.changes.push_back(change);
        }
    }

    /// What it prepares under a name, and the server has not confirmed yet.
    pub(crate) fn prepares(&self, name: &[u8]) -> Option<&Arc<Prepared>> {
        self.changes.iter().rev().find_map(|change| match change {
            Change::Parse(parsed, prepared) if parsed == name => Some(prepared),
            _ => None,
        })
    }

    /// A portal is bound to a statement of this class.
    pub(crate) fn bind(&mut self, class: Class) {
        self.bound = Some(class);
    }

    /// The latest portal is executed.
    pub(crate) fn execute(&mut self) {
        let class = self.bound.take();
        let class = class.unwrap_or_else(Class::of_unknown_portal);
        self.executes = self.executes.saturating_add(1);
        self.class.reads &= class.reads;
        self.class.unnumbered &= class.unnumbered;
        self.class.begins = class.begins && self.executes == 1;
        self.class.is_of_session = class.is_of_session && self.executes == 1;
        self.class.changes_session |= class.changes_session;
        self.class.lasting |= class.lasting;
        self.class.hidden_setting |= class.hidden_setting;
        // A batch without an end may name any number of them.
        if self.class.settings.len() + class.settings.len() <= NAMES_MAX {
            self.class.settings.extend(class.settings);
        } else {
            self.class.hidden_setting = true;
        }
        self.class.ends = match (self.class.ends, class.ends) {
            (None, None) => None,
            (None, Some(end)) if self.executes == 1 => Some(end),
            _ => Some(End::Among),
        };
    }

    /// It does what a simple query within a batch does.
    pub(crate) fn includes(&mut self, class: Class) {
        self.bound = Some(class);
        self.execute();
    }

    /// The server confirmed the next change.
    pub(crate) fn confirm(&mut self, state: &mut State) {
        match self.changes.pop_front() {
            Some(Change::Parse(name, prepared)) => state.prepare(name, prepared),
            Some(Change::Close(name)) => state.close(&name),
            Some(Change::Other) | None => {}
        }
    }

    /// The server told an error: what comes after it in a batch is not carried out.
    pub(crate) fn fail(&mut self) {
        self.failed = true;
        self.changes.clear();
    }

    /// To send it again does no harm.
    pub(crate) fn may_be_repeated(&self) -> bool {
        (self.class.reads || self.class.begins || self.class.is_of_session)
            && !self.answered
            && self.copy.is_some()
    }
}
