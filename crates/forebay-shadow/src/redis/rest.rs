//! A connection at rest, and one that goes on after it was.

use super::conversation::Conversation;
use crate::rest::{self, Known, Resting};
use crate::tls::Wire;

impl Conversation<'_> {
    /// Whether no more commands are taken, so that the connection comes to rest. A transaction, and one that watches keys,
    /// ends with commands that are still to come.
    pub(super) fn pauses(&self) -> bool {
        let can = match &self.client {
            Wire::Plain(stream) => rest::may_rest(stream, self.requests.held()),
            Wire::Tls(_) => false,
        };
        let ends_itself = self.transaction.is_none() && !self.watching && !self.watch_lost;
        self.board.rest.is_wanted() && can && ends_itself
    }

    /// Whether everything that was asked is answered, and another process may go on.
    pub(super) fn is_at_rest(&self) -> bool {
        let is_asked_nothing = self.next.is_none() && self.again.is_empty();
        let is_settled = self.entries.is_empty() && self.unconfirmed == 0 && self.parted.is_none();
        let stays = !self.closing && !self.client_ended && !self.stuffed;
        self.pauses() && is_asked_nothing && is_settled && stays && self.outlet.is_empty()
    }

    /// The connection, which is at rest.
    pub(super) fn rest(self) -> Option<Resting> {
        let unread = self.requests.rest().to_vec();
        let Wire::Plain(stream) = self.client else {
            return None;
        };
        Some(Resting {
            stream,
            unread,
            known: Known::Redis(Box::new(self.state)),
        })
    }
}
