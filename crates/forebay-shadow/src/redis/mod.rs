//! `redis`: RESP2 and RESP3, with shadows that replicate.
//!
//! Guarantee `fast`: a write that was acknowledged is on the primary, and on the shadow a moment
//! later; when the primary is lost within that moment, the write is.
//!
//! Guarantee `strict`: a write that was acknowledged is in the memory of the primary and of every
//! shadow, so that none is lost with the primary; while a shadow is missing, writes wait for a moment
//! and then are refused, or are acknowledged as with `fast` if the options say so.
//!
//! In both: a client's connection lives through the loss of the primary, and is on the new one what
//! it was on the old one. A command that only reads, or that the old primary cannot have read whole,
//! is sent to the new one; any other that was not answered is answered with `-INDOUBT`, and is never
//! sent twice. That word is one that no client library repeats commands for, as some do for
//! `-TRYAGAIN`, which here says that a command was surely not executed. A transaction that was not
//! executed yet goes on where it was; one with watched keys fails as if a key had changed.
//!
//! What does not go through a front is refused by name: replication, `MONITOR`, `CLIENT REPLY`,
//! and `CLIENT TRACKING` with `REDIRECT`. The number of a connection (`CLIENT ID`) changes with the
//! primary, scripts have to be loaded anew as after any restart of a server, and messages that were
//! published while a listener changed over do not reach it.

mod balance;
mod bounds;
mod commands;
mod conversation;
mod entry;
#[cfg(fuzzing)]
pub mod fuzzing;
mod lose;
mod native;
mod relay;
mod replies;
mod requests;
mod rest;
mod state;
mod transaction;
mod upstream;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::refuse::{self, Refusal};
use crate::rest::Known;
use crate::secret::Secret;
use crate::stream::Stream;
use crate::switchboard::Switchboard;
use crate::tls::{self, Accepted, Tls, Wire};
use conversation::Conversation;
pub(crate) use native::Native;
pub(crate) use state::State;

/// What is promised of writes that were acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// They are on the primary.
    #[default]
    Fast,
    /// They are on every shadow as well.
    Strict,
}

/// What `strict` does while a shadow is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithoutShadow {
    /// Refuses writes.
    #[default]
    Refuse,
    /// Acknowledges them as `fast` does.
    Continue,
}

/// Options of the mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What is promised of writes.
    pub guarantee: Guarantee,
    /// What `strict` does while a shadow is missing.
    pub without_shadow: WithoutShadow,
    /// How long `strict` waits for shadows to have what was written, and for a shadow that is
    /// missing, in milliseconds.
    pub confirm_ms: u64,
    /// How long a command that works on much data may keep the primary from answering anybody, in
    /// milliseconds; a silence shorter than this beside such a command is no stall.
    pub long_ms: u64,
    /// Whether a shadow answers reads as well, perhaps with what was true a moment ago.
    pub read_from_shadow: bool,
    /// Longest command, in bytes.
    pub command_bytes_max: usize,
    /// How long a client may leave a command unfinished, or leave what waits for it unread once that
    /// is all that may wait, in milliseconds.
    pub stuck_ms: u64,
    /// The user of the front itself and of replication, where that is not the default one.
    pub user: Option<String>,
    /// The password of the front itself and of replication. Clients bring their own.
    pub password: Option<Secret>,
    /// TLS with clients, from the first byte on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<tls::Options>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            guarantee: Guarantee::Fast,
            without_shadow: WithoutShadow::Refuse,
            confirm_ms: 500,
            long_ms: 2000,
            read_from_shadow: false,
            command_bytes_max: 64 * 1024 * 1024,
            stuck_ms: 60_000,
            user: None,
            password: None,
            tls: None,
        }
    }
}

/// What all connections of a front share.
#[derive(Debug)]
pub(crate) struct Setup {
    options: Options,
    /// Numbers of routes, by the places of [`commands::route`]; given when first needed.
    routes: Vec<AtomicUsize>,
    /// How many replicas there are that are none of the front's.
    strangers: Arc<AtomicUsize>,
    tls: Option<Tls>,
}

impl Setup {
    /// # Errors
    /// When the certificate for TLS cannot be used.
    pub(crate) fn new(
        options: &Options,
        native: &Native,
        board: &Arc<Switchboard>,
    ) -> io::Result<Self> {
        let unknown = || AtomicUsize::new(usize::MAX);
        let tls = options.tls.as_ref();
        Ok(Self {
            options: options.clone(),
            routes: (0..commands::ROUTES).map(|_| unknown()).collect(),
            strangers: native.strangers(),
            tls: tls.map(|tls| Tls::new(tls, &[], board)).transpose()?,
        })
    }

    pub(crate) const fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// What a client has to begin with, where that is TLS.
    pub(crate) fn speaks_tls(&self, client: &Stream) -> Option<&Tls> {
        self.tls.as_ref().filter(|tls| tls.is_spoken(client))
    }

    /// Until when a write waits for a shadow; none when one is in step.
    fn shadow_due(&self, board: &Switchboard) -> Option<Instant> {
        let since: Instant = board.alone_since()?.into();
        Some(since + Duration::from_millis(self.options.confirm_ms))
    }

    /// How many replicas have to have a write, so that every shadow does: `WAIT` counts replicas, and
    /// does not say whose. Where there are strangers among them, all have to.
    fn confirmations(&self, board: &Switchboard) -> usize {
        let shadows = board.instances().len().saturating_sub(1);
        shadows + self.strangers.load(Ordering::Relaxed)
    }

    /// The number of a command's route.
    fn route(&self, board: &Switchboard, command: &requests::Command) -> usize {
        let place = commands::route(command);
        let Some(number) = self.routes.get(place) else {
            return board.flights.route("other");
        };
        match number.load(Ordering::Relaxed) {
            usize::MAX => {
                let route = board.flights.route(commands::route_name(place));
                number.store(route, Ordering::Relaxed);
                route
            }
            route => route,
        }
    }
}

/// Serves one client until it leaves.
///
/// # Errors
/// When its connection broke, or cannot be made on the new primary what it was on the old one.
pub(crate) async fn serve(
    board: &Arc<Switchboard>,
    client: Stream,
    setup: &Setup,
    patience: Duration,
) -> io::Result<()> {
    client.bound_vanished()?;
    let client = match setup.speaks_tls(&client) {
        Some(tls) => match tls.accept(client).await? {
            Accepted::Tls(stream) => Wire::agreed(*stream)?,
            Accepted::Cleartext(client) => {
                return refuse::tell(client, Refusal::RedisInCleartext).await;
            }
        },
        None => Wire::Plain(client),
    };
    attend(board, setup, patience, |board| {
        Conversation::new(board, client, setup, patience)
    })
    .await
}

/// Goes on with one client whose connection was at rest.
///
/// # Errors
/// As [`serve`].
pub(crate) async fn resume(
    board: &Arc<Switchboard>,
    resting: (Stream, Vec<u8>, State),
    setup: &Setup,
    patience: Duration,
) -> io::Result<()> {
    resting.0.bound_vanished()?;
    attend(board, setup, patience, |board| {
        resumed(board, resting, setup, patience)
    })
    .await
}

fn resumed<'a>(
    board: &'a Switchboard,
    (stream, unread, state): (Stream, Vec<u8>, State),
    setup: &'a Setup,
    patience: Duration,
) -> Conversation<'a> {
    let mut conversation = Conversation::new(board, Wire::Plain(stream), setup, patience);
    conversation.requests.push(&unread);
    conversation.state = state;
    conversation.rested = true;
    conversation
}

async fn attend<'a>(
    board: &'a Switchboard,
    setup: &'a Setup,
    patience: Duration,
    begin: impl FnOnce(&'a Switchboard) -> Conversation<'a>,
) -> io::Result<()> {
    let mut conversation = begin(board);
    loop {
        let Some(resting) = conversation.run().await? else {
            return Ok(());
        };
        let Some(kept) = board.rest.leave(resting) else {
            return Ok(());
        };
        let Known::Redis(state) = kept.known else {
            return Ok(());
        };
        conversation = resumed(board, (kept.stream, kept.unread, *state), setup, patience);
    }
}
