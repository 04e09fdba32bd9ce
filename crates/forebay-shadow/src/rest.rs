//! Clients' connections that are at rest, so that they can outlive this process: given up, and taken up again.
//!
//! Problem: the host is to begin anew, and its clients are to notice a pause. Whoever makes their connections anew in the
//! next boot knows bytes, and not what was said on them.
//!
//! Approach: whoever serves a client hears that connections are wanted ([`Rest::wanted`]), answers what it was asked, and
//! then leaves the connection here ([`Rest::leave`]) with what it read and did not deal with, and with what the client made of it.
//! The daemon is given all of them, or they are served on from here ([`crate::front`]).
//!
//! Properties: what is unread of a connection that rests was sent to no instance, so that nothing is executed twice. Over
//! TLS, with HTTP/2, in the middle of a request, and in modes without a word for it, connections do not rest.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::redis;
use crate::stream::Stream;

/// Most bytes that were read of a connection and not dealt with: a line of the daemon's has to hold them.
pub(crate) const UNREAD_BYTES_MAX: usize = 32 * 1024;
/// Most bytes of what a client made of its connection, as text.
const STATE_BYTES_MAX: usize = 32 * 1024;

/// What a client made of its connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Known {
    /// It asks in HTTP/1.1.
    Http {
        /// Where it is, as far as that is known.
        address: Option<IpAddr>,
        /// It said nothing so far.
        fresh: bool,
    },
    /// It speaks RESP.
    Redis(Box<redis::State>),
}

impl Known {
    /// In words that another process of a front understands.
    pub(crate) fn text(&self) -> Option<String> {
        let text = serde_json::to_string(self).ok()?;
        (text.len() <= STATE_BYTES_MAX).then_some(text)
    }
}

/// A connection at rest.
#[derive(Debug)]
pub(crate) struct Resting {
    pub(crate) stream: Stream,
    /// What was read and sent to nobody.
    pub(crate) unread: Vec<u8>,
    pub(crate) known: Known,
}

/// All that rest.
#[derive(Debug)]
pub(crate) struct Rest {
    wanted: watch::Sender<bool>,
    /// The same, for whoever looks before each command.
    is_wanted: AtomicBool,
    resting: Mutex<Vec<Resting>>,
}

impl Default for Rest {
    fn default() -> Self {
        Self {
            wanted: watch::Sender::new(false),
            is_wanted: AtomicBool::new(false),
            resting: Mutex::default(),
        }
    }
}

impl Rest {
    /// Hears whether connections are wanted.
    pub(crate) fn subscribe(&self) -> watch::Receiver<bool> {
        self.wanted.subscribe()
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    /// From now on connections are wanted.
    pub(crate) fn begin(&self) {
        self.is_wanted.store(true, Ordering::Relaxed);
        self.wanted.send_replace(true);
    }

    /// They are not any more; those that came.
    pub(crate) fn end(&self) -> Vec<Resting> {
        // Whoever leaves a connection looks at this while it holds the list.
        let mut resting = self.resting();
        self.is_wanted.store(false, Ordering::Relaxed);
        self.wanted.send_replace(false);
        std::mem::take(&mut resting)
    }

    /// Leaves a connection here, or gives it back where none is wanted any more.
    pub(crate) fn leave(&self, connection: Resting) -> Option<Resting> {
        let mut resting = self.resting();
        if !self.is_wanted() {
            return Some(connection);
        }
        resting.push(connection);
        None
    }

    fn resting(&self) -> MutexGuard<'_, Vec<Resting>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a connection of which so many bytes were read may be given to another process, over a boot.
pub(crate) const fn may_rest(stream: &Stream, unread: usize) -> bool {
    matches!(stream, Stream::Tcp(_)) && unread <= UNREAD_BYTES_MAX
}

/// Waits until connections are wanted; for ever where a connection cannot rest.
pub(crate) async fn wanted(told: &mut watch::Receiver<bool>, may: bool) {
    if !may {
        return std::future::pending().await;
    }
    // The sender is part of the board, so there always is one.
    told.wait_for(|wanted| *wanted).await.ok();
}
