//! Reads that the shadow answers, where that is allowed.
//!
//! Answers have to come in the order in which was asked. So commands are under way on one connection
//! at a time: on the primary's, or, while they are reads alone, on the shadow's; the other one is
//! parked. A client that watches keys, is within a transaction or listens stays with the primary.

use std::time::Duration;

use forebay_core::shadow::promotion::{Epoch, Slot};

use super::commands::{self, Kind};
use super::conversation::Conversation;
use super::requests::Command;
use super::state::Listens;
use super::upstream::{Role, Upstream};
use crate::stream::Stream;
use crate::switchboard::{Assigned, Gate, Routing};

/// How long a shadow may take to accept a connection before the primary is asked instead.
const CONNECT_BOUND: Duration = Duration::from_millis(100);

/// Whether a command may be sent on the connection in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Steered {
    /// It may.
    Go,
    /// Not before what is under way was answered, or the other connection is there.
    Wait,
}

/// The connection that is not in use.
#[derive(Debug, Default)]
pub(super) struct Balance {
    parked: Option<Upstream>,
    /// The shadow has to be connected to.
    wanted: bool,
    /// The connections were changed over for the command that is next.
    changed: bool,
    /// They were, and that command was not looked at since.
    unsettled: bool,
    /// A shadow that did not accept a connection.
    shunned: Option<(Epoch, Slot)>,
    /// Whose turn it is while both have as much to do.
    turn: bool,
    /// What is being looked at came from the shadow.
    pub(super) answers: bool,
    /// The shadow said that it cannot answer now.
    pub(super) declined: bool,
}

impl Balance {
    const fn change(&mut self) {
        self.changed = true;
        self.unsettled = true;
    }
}

impl Upstream {
    /// Whether its server still is the shadow.
    pub(super) fn is_shadow_in(&self, routing: &Routing) -> bool {
        routing.epoch == self.assigned.epoch && routing.standby == Some(self.assigned.slot)
    }
}

impl Conversation<'_> {
    /// Chooses the server for a command, and sees that the connection in use is to it.
    pub(super) fn steer(&mut self, kind: Kind, command: &Command) -> Steered {
        let on_shadow = self.is_on_shadow();
        let standby = self
            .shadow_for_reads()
            .filter(|_| kind == Kind::Read && !commands::is_of_one_server(command));
        if !self.entries.is_empty() {
            self.balance.changed = false;
            return match (on_shadow, standby) {
                (true, None) => Steered::Wait,
                (true, Some(_)) | (false, _) => Steered::Go,
            };
        }
        let standby = standby.filter(|slot| self.is_turn_of(*slot));
        match (on_shadow, standby) {
            (false, None) | (true, Some(_)) => {
                self.balance.changed = false;
                Steered::Go
            }
            (true, None) => {
                std::mem::swap(&mut self.up, &mut self.balance.parked);
                self.balance.change();
                Steered::Wait
            }
            (false, Some(_)) => {
                let routing = self.board.routing();
                let parked = self.balance.parked.as_ref();
                let usable = parked.is_some_and(|parked| {
                    parked.is_shadow_in(&routing)
                        && !parked.ended
                        && parked.version == self.state.version
                });
                if usable {
                    std::mem::swap(&mut self.up, &mut self.balance.parked);
                    self.balance.change();
                } else {
                    self.balance.wanted = true;
                }
                Steered::Wait
            }
        }
    }

    pub(super) fn is_on_shadow(&self) -> bool {
        let up = self.up.as_ref();
        up.is_some_and(|up| up.role == Role::Shadow)
    }

    /// The shadow, if reads may go there now.
    fn shadow_for_reads(&self) -> Option<Slot> {
        let routing = self.board.routing();
        let bound = self.transaction.is_some() || self.watching || self.state.listens();
        if !self.setup.options.read_from_shadow || bound || routing.gate == Gate::Held {
            return None;
        }
        let standby = routing.standby?;
        (self.balance.shunned != Some((routing.epoch, standby))).then_some(standby)
    }

    /// Whoever has less to do answers; in turn while both have as much.
    fn is_turn_of(&mut self, standby: Slot) -> bool {
        // A command that waits for its connection was given its turn before.
        if self.balance.changed || self.balance.wanted {
            return self.balance.turn;
        }
        let flights = &self.board.flights;
        let primary = flights.count(self.board.routing().primary);
        self.balance.turn = match flights.count(standby).cmp(&primary) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => !self.balance.turn,
            std::cmp::Ordering::Greater => false,
        };
        self.balance.turn
    }

    /// Connects to the shadow if that is wanted; whether anything changed.
    pub(super) async fn settle_balance(&mut self) -> bool {
        if std::mem::take(&mut self.balance.wanted) {
            self.dial_shadow().await;
            self.balance.changed = true;
            return true;
        }
        // Each change is looked at once: one that does not help is not gone through for ever.
        std::mem::take(&mut self.balance.unsettled)
    }

    async fn dial_shadow(&mut self) {
        let routing = self.board.routing();
        let Some(slot) = routing.standby else { return };
        let assigned = Assigned {
            slot,
            epoch: routing.epoch,
        };
        let connecting = Stream::connect_bounded(self.board.address(slot));
        match tokio::time::timeout(CONNECT_BOUND, connecting).await {
            Ok(Ok(stream)) => {
                let mut shadow = Upstream::new(stream, assigned, Role::Shadow);
                let replay = self.state.replay(Listens::No);
                shadow.send(&replay.bytes);
                shadow.replay = replay.replies;
                shadow.settled = replay.replies == 0;
                shadow.version = self.state.version;
                self.balance.parked = self.up.replace(shadow);
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "the shadow refuses reads");
                self.balance.shunned = Some((routing.epoch, slot));
            }
            Err(_) => self.balance.shunned = Some((routing.epoch, slot)),
        }
    }

    /// The shadow's connection was lost: the primary answers what was asked there.
    pub(super) fn resume_parked(&mut self, lost: Option<Assigned>) {
        self.balance.shunned = lost
            .map(|lost| (lost.epoch, lost.slot))
            .or(self.balance.shunned);
        if let Some(primary) = self.balance.parked.take() {
            self.resume(primary);
        }
    }
}
