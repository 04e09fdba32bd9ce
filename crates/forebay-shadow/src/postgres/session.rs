//! One session: what its client and its server say to each other, until either ends it.
//!
//! Everything a session does is done by one task, in turns: what the server said is passed on, then
//! what the client said, then both are waited for. `relay` has what a message means, and `moving`
//! what happens when the server is lost.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use forebay_core::shadow::promotion::Slot;
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Shared;
use super::client::{Connection, Credential, Filled, Trouble, fill};
use super::frame::{Frames, Key, Opening, ServerError};
use super::login::{Begun, Heard};
use super::parameters::Parameters;
use super::request::Request;
use super::state::State;
use crate::flights::Ticket;
use crate::stream::Stream;
use crate::switchboard::{Assigned, Gate, Routing};
use crate::tls::{Flow, Wire};

/// Bytes that wait for one side before no more are read from the other.
const WAITING_BYTES_MAX: usize = 256 * 1024;
/// Requests without an answer before no more are read from a client.
const PENDING_MAX: usize = 128;
/// How soon a connection to the standby is tried again.
const SHADOW_RETRY: Duration = Duration::from_secs(1);
/// How long a login of the front may take.
pub(super) const LOGIN_BOUND: Duration = Duration::from_secs(5);
/// How long a client may take for the end of what it is told.
const FLUSH_BOUND: Duration = Duration::from_secs(5);

/// Bytes on their way out.
#[derive(Debug, Default)]
pub(super) struct Out {
    pub(super) bytes: Vec<u8>,
    sent: usize,
}

impl Out {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    fn is_full(&self) -> bool {
        self.bytes.len() - self.sent >= WAITING_BYTES_MAX
    }

    /// Writes as much as goes without waiting.
    fn flush(&mut self, mut stream: impl Flow) -> io::Result<()> {
        while !self.is_empty() {
            let rest = self.bytes.get(self.sent..).unwrap_or_default();
            match stream.write_now(rest) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // A reader that is never done with all of it must not keep what it has read.
                    if self.sent >= WAITING_BYTES_MAX {
                        self.bytes.drain(..self.sent);
                        self.sent = 0;
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.sent = 0;
        // An idle connection keeps no large buffer.
        self.bytes.clear();
        self.bytes.shrink_to(WAITING_BYTES_MAX / 16);
        stream.flush_now()
    }
}

/// The connection that is logged in at the standby.
#[derive(Debug)]
pub(super) enum Shadow {
    None { since: Option<Instant> },
    Opening(Slot, Task),
    Ready(Slot, Box<Connection>),
}

/// What came of opening it: what proves who the client is, and the connection.
type Opened = (Option<Credential>, Result<Connection, String>);

/// A task that ends with whoever waits for it.
#[derive(Debug)]
pub(super) struct Task(JoinHandle<Opened>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Which transaction the session is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transaction {
    /// It was not asked since it may have begun to write.
    Unasked,
    /// It has written nothing until now.
    None,
    Known(u64),
}

/// Why a session ends.
#[derive(Debug)]
pub(super) enum Ended {
    /// The client wanted it to.
    Asked,
    /// The server did, and has said why.
    Told,
    /// The front does, and says why.
    With(ServerError),
    Broken(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// A session.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) patience: Duration,
    pub(super) client: Wire,
    pub(super) from_client: Frames,
    pub(super) to_client: Out,
    pub(super) server: Stream,
    pub(super) from_server: Frames,
    pub(super) to_server: Out,
    pub(super) assigned: Assigned,
    pub(super) opening: Opening,
    pub(super) heard: Heard,
    pub(super) credential: Option<Credential>,
    /// What the client was told of the server's settings.
    pub(super) parameters: Parameters,
    /// By which the client would cancel.
    pub(super) key: Option<Key>,
    /// Of the transaction, as the server said last: `I`, `T` or `E`.
    pub(super) status: u8,
    pub(super) pending: VecDeque<Request<'a>>,
    /// The latest request is a batch that has not ended.
    pub(super) open: bool,
    /// The client sends rows, and the server says nothing.
    pub(super) copying: bool,
    pub(super) state: State,
    /// What changed the session since, where that can be carried out again.
    pub(super) redo: Option<Vec<u8>>,
    pub(super) transaction: Transaction,
    /// Rows that the server answered to a question of the front.
    pub(super) rows: super::client::Rows,
    pub(super) question_failed: bool,
    /// A question of the front has failed the transaction, and the client has not heard of it while
    /// its next request was already under way.
    pub(super) undone: bool,
    /// The transaction is lost, and the client has not asked for anything since.
    pub(super) interrupted: bool,
    /// Messages are left out until the client ends its batch, which then gets this status.
    pub(super) skipping: Option<u8>,
    /// The rest of a long message is left out.
    pub(super) skipping_part: bool,
    /// An error with which the server ended the session.
    pub(super) last_words: Option<Vec<u8>>,
    pub(super) shadow: Shadow,
    /// A transaction that is open and asks nothing; a hand-over waits for it.
    pub(super) resting: Option<Ticket<'a>>,
}

/// Serves a client that has logged in.
///
/// # Errors
/// When a connection broke that could not be replaced, or the client does not speak the protocol.
pub(super) async fn run(shared: &Arc<Shared>, begun: Begun, patience: Duration) -> io::Result<()> {
    let key = begun.key;
    if let Some(key) = key {
        shared.cancels.set(key, begun.assigned.slot, key);
    }
    let mut session = Session {
        shared,
        patience,
        client: begun.client,
        from_client: begun.from_client,
        to_client: Out::default(),
        server: begun.server,
        from_server: begun.from_server,
        to_server: Out::default(),
        assigned: begun.assigned,
        opening: begun.opening,
        heard: begun.heard,
        credential: None,
        parameters: Parameters::new(begun.parameters),
        key,
        status: b'I',
        pending: VecDeque::new(),
        open: false,
        copying: false,
        state: State::default(),
        redo: None,
        transaction: Transaction::Unasked,
        rows: Vec::new(),
        question_failed: false,
        undone: false,
        interrupted: false,
        skipping: None,
        skipping_part: false,
        last_words: None,
        shadow: Shadow::None { since: None },
        resting: None,
    };
    let ended = session.serve().await;
    if let Some(key) = key {
        shared.cancels.forget(key);
    }
    session.say_goodbye(ended).await
}

impl Session<'_> {
    async fn serve(&mut self) -> Ended {
        let mut news = follow(self.shared.board.subscribe());
        loop {
            // Over TLS much may be there that the runtime does not count.
            tokio::task::consume_budget().await;
            match self.turn(&mut news).await {
                Ok(()) => {}
                Err(ended) => return ended,
            }
        }
    }

    async fn turn(&mut self, news: &mut News) -> Result<(), Ended> {
        self.pass_down()?;
        self.pass_up().await?;
        self.to_client.flush(&mut self.client)?;
        // Whether the server is lost is seen by reading from it: it may have answered.
        let sent = self.to_server.flush(&self.server);
        if sent.is_err() {
            return self.lose().await;
        }
        if self.shared.board.is_replaced(self.assigned) {
            return self.lose().await;
        }
        self.tend_shadow();
        let mut retry = pin!(due(self.shadow_due()));
        let goes_on = poll_fn(|context| self.poll_more(context, news, retry.as_mut())).await?;
        if goes_on { Ok(()) } else { self.lose().await }
    }

    /// Takes in what there is to go on with, and is ready when there was something; false when the
    /// server is gone.
    fn poll_more(
        &mut self,
        context: &mut Context<'_>,
        news: &mut News,
        retry: Pin<&mut impl Future<Output = ()>>,
    ) -> Poll<Result<bool, Ended>> {
        let mut more = retry.poll(context).is_ready();
        // What is wrong with a connection is told by reading or writing.
        let unsent = !self.to_client.is_empty() || !self.client.is_flushed();
        more |= unsent && self.client.poll_write_ready(context).is_ready();
        more |= !self.to_server.is_empty() && self.server.poll_write_ready(context).is_ready();
        let reads = !self.to_server.is_full() && !self.is_crowded();
        if reads && self.client.poll_read_ready(context).is_ready() {
            more = true;
            if fill(&mut self.client, &mut self.from_client)? == Filled::End {
                return Poll::Ready(Err(Ended::Asked));
            }
        }
        if !self.to_client.is_full() && self.server.poll_read_ready(context).is_ready() {
            more = true;
            if !self.hear()? {
                return Poll::Ready(Ok(false));
            }
        }
        if let Poll::Ready(changes) = news.as_mut().poll(context) {
            more = true;
            // The sender is part of the board.
            *news = follow(changes.ok_or(Ended::Asked)?);
        }
        if let Shadow::Opening(_, task) = &mut self.shadow
            && let Poll::Ready(opened) = Pin::new(&mut task.0).poll(context)
        {
            more = true;
            self.note_shadow(opened);
        }
        if more {
            Poll::Ready(Ok(true))
        } else {
            Poll::Pending
        }
    }

    /// Too much is on its way to read more from the client.
    fn is_crowded(&self) -> bool {
        self.pending.len() >= PENDING_MAX
    }

    /// Reads from the server; false when that is gone.
    fn hear(&mut self) -> Result<bool, Ended> {
        match fill(&self.server, &mut self.from_server) {
            Ok(Filled::Some) => {
                let first = self.pending.front();
                if let Some(ticket) = first.and_then(|request| request.ticket.as_ref()) {
                    ticket.heard();
                }
                Ok(true)
            }
            Ok(Filled::Nothing) => Ok(true),
            Ok(Filled::End) | Err(_) => {
                self.pass_down()?;
                Ok(false)
            }
        }
    }

    /// A request may be sent: its server is the primary, and not about to be replaced.
    pub(super) fn may_begin(&self) -> bool {
        let routing = self.shared.board.routing();
        routing.gate == Gate::Open && routing.epoch == self.assigned.epoch
    }

    async fn say_goodbye(mut self, ended: Ended) -> io::Result<()> {
        let (error, result) = match ended {
            Ended::Asked => {
                // The server hears the end of it.
                let told = self.to_server.flush(&self.server);
                self.client.close().await;
                return told;
            }
            Ended::Told => (None, Ok(())),
            Ended::With(error) => {
                let result = Err(io::Error::other(error.message.clone()));
                (Some(error), result)
            }
            Ended::Broken(error) => (None, Err(error)),
        };
        // Within a message, an error would be taken for a part of it.
        if let Some(error) = error.filter(|_| !self.from_server.is_within()) {
            error.put(&mut self.to_client.bytes);
        }
        let told = async {
            self.to_client.flush(&mut self.client)?;
            while !self.to_client.is_empty() {
                self.client.ready(Interest::WRITABLE).await?;
                self.to_client.flush(&mut self.client)?;
            }
            self.client.close().await;
            Ok(())
        };
        match tokio::time::timeout(FLUSH_BOUND, told).await {
            Ok(told) => result.and(told),
            Err(_) => result,
        }
    }

    fn shadow_due(&self) -> Option<Instant> {
        match &self.shadow {
            Shadow::None { since: Some(since) } => self
                .shared
                .board
                .routing()
                .standby
                .map(|_| *since + SHADOW_RETRY),
            _ => None,
        }
    }

    /// Keeps a connection to the standby, if one stands by.
    fn tend_shadow(&mut self) {
        let standby = self.shared.board.routing().standby;
        let have = match &self.shadow {
            Shadow::Opening(slot, _) | Shadow::Ready(slot, _) => Some(*slot),
            Shadow::None { .. } => None,
        };
        if have.is_some() && have != standby {
            self.shadow = Shadow::None { since: None };
        }
        let Some(slot) = standby.filter(|_| !self.opening.replicates) else {
            return;
        };
        let due = self.shadow_due().is_none_or(|due| Instant::now() >= due);
        if matches!(self.shadow, Shadow::None { .. }) && due {
            let (shared, heard) = (Arc::clone(self.shared), self.heard.clone());
            let (opening, known) = (self.opening.clone(), self.credential.clone());
            let opening = async move { open_shadow(&shared, slot, opening, heard, known).await };
            self.shadow = Shadow::Opening(slot, Task(tokio::spawn(opening)));
        }
    }

    fn note_shadow(&mut self, opened: Result<Opened, tokio::task::JoinError>) {
        let slot = match &self.shadow {
            Shadow::Opening(slot, _) => *slot,
            _ => return,
        };
        let since = Some(Instant::now());
        self.shadow = match opened {
            Ok((credential, connection)) => {
                self.credential = credential.or(self.credential.take());
                match connection {
                    Ok(connection) => Shadow::Ready(slot, Box::new(connection)),
                    Err(why) => {
                        tracing::debug!(
                            why,
                            user = self.opening.user,
                            "no connection to the standby"
                        );
                        Shadow::None { since }
                    }
                }
            }
            Err(error) => {
                tracing::debug!(%error, "no connection to the standby");
                Shadow::None { since }
            }
        };
    }
}

async fn open_shadow(
    shared: &Shared,
    slot: Slot,
    opening: Opening,
    heard: Heard,
    known: Option<Credential>,
) -> Opened {
    // The semaphore is never closed.
    let _place = shared.logins.acquire().await;
    let credential = match known {
        Some(credential) => credential,
        None => match heard.credential(shared, &opening.user).await {
            Ok(credential) => credential,
            Err(why) => return (None, Err(why)),
        },
    };
    let opened = tokio::time::timeout(LOGIN_BOUND, open(shared, slot, &opening, &credential)).await;
    let connection = match opened {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(trouble)) => Err(trouble.to_string()),
        Err(_) => Err("the login took too long".to_owned()),
    };
    (Some(credential), connection)
}

/// Logs in at an instance on behalf of a client.
pub(super) async fn open(
    shared: &Shared,
    slot: Slot,
    opening: &Opening,
    credential: &Credential,
) -> Result<Connection, Trouble> {
    let stream = Stream::connect(shared.board.address(slot)).await?;
    Connection::open(stream, opening, credential).await
}

/// Waits for the next change of who serves; none once there is nobody to make one.
type News = Pin<Box<dyn Future<Output = Option<watch::Receiver<Routing>>> + Send>>;

/// One that is kept from turn to turn: to begin to wait costs more than to go on.
fn follow(mut changes: watch::Receiver<Routing>) -> News {
    Box::pin(async move { changes.changed().await.ok().map(|()| changes) })
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn what_was_sent_is_not_kept() {
        let (writer, reader) = UnixStream::pair().unwrap();
        let writer = Stream::Unix(writer);
        let mut reader = reader.into_std().unwrap();
        reader.set_nonblocking(false).unwrap();
        let mut out = Out::default();
        let mut taken = vec![0; 16 * 1024];
        for _ in 0..256 {
            // There is always more than goes without waiting.
            while !out.is_full() {
                let length = out.bytes.len() + WAITING_BYTES_MAX;
                out.bytes.resize(length, 0);
                out.flush(&writer).unwrap();
            }
            reader.read_exact(&mut taken).unwrap();
            tokio::task::yield_now().await;
            out.flush(&writer).unwrap();
            let kept = out.bytes.len();
            assert!(kept <= 3 * WAITING_BYTES_MAX, "{kept} bytes");
        }
    }
}
