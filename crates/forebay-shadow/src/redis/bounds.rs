//! What one client may take up: bytes of what is under way, and time for what it began.
//!
//! A client that sends and reads nothing is not read from once so much waits for it; one that leaves
//! that unread for long, or a command unfinished, is left. A client that has nothing under way may
//! be silent as long as it likes, and holds no buffer.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::conversation::Conversation;

/// Commands under way on one connection.
const ENTRIES_MAX: usize = 4096;
/// Bytes of commands under way that would be sent again to a new primary.
const ENTRY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Replies that a client has not read, beyond which no more are taken. A client may send all of a
/// long pipeline before it reads, and would wait for ever if this were small.
pub(super) const CLIENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of commands that cannot be sent now, beyond which no more are read.
const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a command from a client that has yet to say who it is.
const LOGIN_BYTES_MAX: usize = 64 * 1024;
/// So many bytes of a command that is long in coming are worth as much time as its beginning.
const PROGRESS_BYTES: usize = 64 * 1024;

/// What a client began, and since when.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// The reader waits for the rest of a command, or for a command.
    pub(super) starved: bool,
    /// Bytes that ever came from the client.
    pub(super) received: usize,
    /// Since when a command is unfinished, and what had come then.
    unfinished: Option<(Instant, usize)>,
    /// Since when as much as may wait for the client was not read.
    unread: Option<Instant>,
    /// Bytes of the commands under way.
    pub(super) entry_bytes: usize,
}

impl Patience {
    /// A command was read to its end.
    pub(super) const fn finished(&mut self) {
        self.unfinished = None;
    }
}

impl Conversation<'_> {
    /// How many bytes of commands may lie here before no more are read. The rest of a command that
    /// was begun is read in any case; its bound is the reader's.
    pub(super) fn request_room(&self) -> usize {
        match (self.bounds.starved, self.needs_login()) {
            (true, false) => usize::MAX,
            (true, true) => LOGIN_BYTES_MAX,
            (false, _) => REQUEST_BYTES_MAX,
        }
    }

    /// No more commands are taken for now.
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= ENTRIES_MAX
            || self.bounds.entry_bytes >= ENTRY_BYTES_MAX
            || self.outlet.out.len() >= CLIENT_BYTES_MAX
    }

    /// The servers know nobody without a password, and this client has given none.
    fn needs_login(&self) -> bool {
        let options = &self.setup.options;
        options.password.is_some() && options.user.is_none() && !self.state.is_logged_in()
    }

    /// Sums up anew what is under way.
    pub(super) fn weigh(&mut self) {
        self.bounds.entry_bytes = self.entries.iter().map(super::entry::Entry::bytes).sum();
    }

    /// There is no whole command to be read.
    pub(super) fn note_unfinished(&mut self) {
        self.bounds.starved = true;
        if self.requests.held() == 0 {
            self.bounds.unfinished = None;
            return;
        }
        // It may log in by what is under way.
        if self.needs_login() && self.requests.held() > LOGIN_BYTES_MAX && self.entries.is_empty() {
            self.local(b"-ERR Protocol error: too long a command before AUTH\r\n".to_vec());
            self.closing = true;
            return;
        }
        let received = self.bounds.received;
        let progress = |(_, before): &(Instant, usize)| received - before < PROGRESS_BYTES;
        let kept = self.bounds.unfinished.filter(progress);
        self.bounds.unfinished = kept.or_else(|| Some((Instant::now(), received)));
    }

    /// The client took so many bytes of what waits for it.
    pub(super) fn note_unread(&mut self, taken: usize) {
        let waiting = self.outlet.out.len();
        let leaves = self.closing || self.client_ended;
        if waiting < CLIENT_BYTES_MAX && !(leaves && waiting > 0) {
            self.bounds.unread = None;
        } else if taken > 0 || self.bounds.unread.is_none() {
            self.bounds.unread = Some(Instant::now());
        }
    }

    /// When the client has had enough time for what it began.
    pub(super) fn stuck_at(&self) -> Option<Instant> {
        let unfinished = self.bounds.unfinished.map(|(since, _)| since);
        let unfinished = unfinished.filter(|_| !self.closing && !self.client_ended);
        let since = unfinished.into_iter().chain(self.bounds.unread).min()?;
        Some(since + self.stuck())
    }

    fn stuck(&self) -> Duration {
        Duration::from_millis(self.setup.options.stuck_ms.max(1))
    }

    /// Leaves a client that had enough time.
    pub(super) fn end_stuck(&mut self, now: Instant) -> io::Result<()> {
        let stuck = self.stuck();
        let is_over = |since: Instant| since + stuck <= now;
        if self.bounds.unread.is_some_and(is_over) {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "the client reads nothing of {} bytes for {} ms",
                    self.outlet.out.len(),
                    stuck.as_millis()
                ),
            ));
        }
        if self
            .bounds
            .unfinished
            .is_some_and(|(since, _)| is_over(since))
            && !self.closing
        {
            self.bounds.unfinished = None;
            let error = format!(
                "-ERR Protocol error: a command was not finished within {} ms\r\n",
                stuck.as_millis()
            );
            self.local(error.into_bytes());
            self.closing = true;
        }
        Ok(())
    }
}
