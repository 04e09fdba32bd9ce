//! What happens to a session whose server is lost, or hands over.
//!
//! What the old server still said is passed on first. Then the session is made anew at the new
//! primary, over the connection that was kept there if there is one, and each request that has no
//! answer gets the outcome that is known.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::client::{Connection, Rows, Trouble, drain};
use super::frame::{self, error_field};
use super::login::fatal;
use super::outcome::{self, Fate, Later, Outcome, outcome};
use super::request::{Owner, Request};
use super::session::{Ended, LOGIN_BOUND, Out, Session, Shadow, Transaction, open};
use crate::switchboard::{Assigned, count};

/// How soon an instance that let nobody in is tried again.
const RETRY: Duration = Duration::from_millis(5);
/// Most bytes that are taken in of what a lost server still said; one that goes on says no end of it.
const LAST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long the new server may take to make a session like the old one.
const REPLAY_BOUND: Duration = Duration::from_secs(5);

impl<'a> Session<'a> {
    /// Waits until a request may begin, with whoever is the primary then.
    pub(super) async fn await_primary(&mut self) -> Result<(), Ended> {
        match self.shared.board.assigned(self.patience).await {
            Ok(assigned) if assigned.epoch == self.assigned.epoch => Ok(()),
            Ok(_) => self.lose().await,
            Err(unserved) => {
                count(&self.shared.board.counters.failed);
                Err(Ended::With(fatal("57P03", unserved.to_string())))
            }
        }
    }

    /// The server is not the primary any more, or gone.
    pub(super) async fn lose(&mut self) -> Result<(), Ended> {
        drain(&self.server, &mut self.from_server, LAST_BYTES_MAX);
        self.pass_down()?;
        if self.from_server.is_within() {
            let error = io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the server was lost within a long row",
            );
            return Err(Ended::Broken(error));
        }
        let before = self.assigned;
        let (connection, assigned) = self.successor().await?;
        // A session that was ended at a server that goes on was meant to be.
        if assigned.epoch == before.epoch
            && let Some(words) = self.last_words.take()
            && error_field(&words, b'C') != Some(b"57P02")
        {
            self.to_client.bytes.extend_from_slice(&words);
            return Err(Ended::Told);
        }
        self.last_words = None;
        self.settle(before, assigned, connection).await
    }

    /// A session at the new primary that is like this one.
    async fn successor(&mut self) -> Result<(Connection, Assigned), Ended> {
        let deadline = Instant::now() + self.patience;
        let mut why = "nobody serves".to_owned();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                count(&self.shared.board.counters.failed);
                return Err(Ended::With(fatal("57P03", why)));
            }
            let assigned = match self.following(left).await {
                Ok(assigned) => assigned,
                Err(unserved) => {
                    why = unserved;
                    continue;
                }
            };
            if self.opening.replicates {
                return Err(lost("a stream of the log"));
            }
            if let Some(obstacles) = self.obstacles() {
                return Err(lost(&obstacles));
            }
            if let Some(kept) = self.take_shadow(assigned)
                && let Some(connection) = self.replayed(kept).await?
            {
                return Ok((connection, assigned));
            }
            match self.login(assigned).await {
                Ok(connection) => {
                    if let Some(connection) = self.replayed(connection).await? {
                        return Ok((connection, assigned));
                    }
                }
                Err(trouble) if trouble.is_final() => {
                    return Err(lost(&format!("the login ({trouble})")));
                }
                Err(trouble) => {
                    why = trouble.to_string();
                    if matches!(trouble, Trouble::Broken(_)) {
                        self.shared.board.trouble();
                    }
                }
            }
            tokio::select! {
                () = self.shared.board.replaced(assigned) => {}
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// The connection that is logged in at this instance. One at another instance is kept: the old
    /// primary may be asked once more before it is known that it is lost.
    fn take_shadow(&mut self, assigned: Assigned) -> Option<Connection> {
        let none = Shadow::None { since: None };
        match std::mem::replace(&mut self.shadow, none) {
            Shadow::Ready(slot, connection) if slot == assigned.slot => Some(*connection),
            other => {
                self.shadow = other;
                None
            }
        }
    }

    /// Whoever serves now; those that were interrupted come before those that wait.
    async fn following(&self, patience: Duration) -> Result<Assigned, String> {
        let routing = self.shared.board.routing();
        if routing.epoch != self.assigned.epoch {
            return Ok(Assigned {
                slot: routing.primary,
                epoch: routing.epoch,
            });
        }
        tokio::select! {
            assigned = self.shared.board.assigned(patience) => assigned.map_err(|error| error.to_string()),
            () = self.shared.board.replaced(self.assigned) => Err("the primary changes".to_owned()),
        }
    }

    fn obstacles(&mut self) -> Option<String> {
        // What a transaction that is lost has set is lost with it.
        if self.is_redone() {
            self.state.begin_redo();
        } else if self.status != b'I' {
            self.state.lose_transaction();
        }
        self.state.obstacles()
    }

    /// The front was about to learn what the client's latest request had changed, and can have it
    /// changed again instead.
    fn is_redone(&self) -> bool {
        let mut owners = self.pending.iter().map(|request| request.owner);
        self.redo.is_some() && owners.next() == Some(Owner::Session) && owners.next().is_none()
    }

    async fn login(&mut self, assigned: Assigned) -> Result<Connection, Trouble> {
        let credential = match self.credential.clone() {
            Some(credential) => credential,
            None => {
                let heard = self.heard.credential(self.shared, &self.opening.user).await;
                let credential = heard.map_err(Trouble::Refused)?;
                self.credential = Some(credential.clone());
                credential
            }
        };
        let board = &self.shared.board;
        let opening = open(self.shared, assigned.slot, &self.opening, &credential);
        let opened = async {
            tokio::select! {
                opened = tokio::time::timeout(LOGIN_BOUND, opening) => opened,
                () = board.replaced(assigned) => Ok(Err(late())),
            }
        };
        opened.await.unwrap_or_else(|_| Err(late()))
    }

    /// Makes a new session like the old one; none when its connection breaks.
    async fn replayed(&mut self, mut connection: Connection) -> Result<Option<Connection>, Ended> {
        let (out, readies, loose) = self.state.replay();
        if readies == 0 {
            return Ok(Some(connection));
        }
        let mut rows = Rows::new();
        let replay = connection.ask_each(&out, readies, &mut rows);
        match tokio::time::timeout(REPLAY_BOUND, replay).await {
            Ok(Ok(troubles)) => {
                let strict = troubles.into_iter().take(readies - loose);
                match strict.flatten().next() {
                    Some(why) => Err(lost(&format!("its state ({why})"))),
                    None => Ok(Some(connection)),
                }
            }
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    /// Gives each request without an answer its outcome, and goes on with the new server.
    async fn settle(
        &mut self,
        before: Assigned,
        assigned: Assigned,
        mut connection: Connection,
    ) -> Result<(), Ended> {
        let redone = self.is_redone();
        let requests: Vec<Request<'a>> = self.pending.drain(..).collect();
        let requests: Vec<Request<'a>> = requests
            .into_iter()
            .filter(|request| request.owner == Owner::Client)
            .collect();
        self.resting = None;
        let commits = requests.iter().any(|request| request.class.ends.is_some());
        let fate = if commits && self.status == b'T' {
            self.fate(before, assigned, &mut connection).await
        } else {
            Fate::Unknown
        };
        self.adopt(connection, assigned);
        if redone && let Some(again) = &self.redo {
            self.to_server.bytes.extend_from_slice(again);
            self.expect(Owner::Silent);
            self.state.redone();
            self.ask_session();
            return Ok(());
        }
        let repeats = self.status == b'I'
            && !requests.is_empty()
            && requests.iter().all(Request::may_be_repeated);
        if repeats {
            for request in requests {
                self.repeat(request);
            }
            return Ok(());
        }
        let was_idle = requests.is_empty();
        let later: Vec<Later> = (0..requests.len())
            .map(|at| Later::of(requests.get(at + 1..).unwrap_or_default()))
            .collect();
        let mut resend = None;
        for (request, later) in requests.into_iter().zip(later) {
            let (outcome, status) = outcome(&request, self.status, fate, later);
            self.status = status;
            match outcome {
                Outcome::Failed => self.tell(&outcome::failed()),
                Outcome::Unknown => self.tell(&outcome::unknown()),
                Outcome::Done => {}
                Outcome::Commit | Outcome::Rollback => {
                    resend = Some((outcome, request));
                    continue;
                }
            }
            if request.is_whole {
                frame::put_ready(&mut self.to_client.bytes, status);
            } else {
                self.skipping = Some(status);
            }
        }
        self.open = false;
        self.copying = false;
        self.undone = false;
        self.skipping_part = self.from_client.is_within();
        match resend {
            Some((Outcome::Commit, request)) => {
                self.own(b"BEGIN");
                self.repeat(request);
            }
            Some((_, request)) => {
                self.begin_failed();
                self.repeat(request);
            }
            None if self.status != b'I' => {
                self.begin_failed();
                self.status = b'E';
                self.interrupted = was_idle;
            }
            None => {}
        }
        Ok(())
    }

    /// Sends something that the client does not see.
    fn own(&mut self, sql: &[u8]) {
        frame::put_query(&mut self.to_server.bytes, sql);
        self.expect(Owner::Silent);
    }

    /// Begins a transaction that has failed, so that the server says by itself what it says in one.
    fn begin_failed(&mut self) {
        self.own(b"BEGIN");
        self.own(b"ROLLBACK TO SAVEPOINT interrupted_by_failover");
    }

    fn repeat(&mut self, mut request: Request<'a>) {
        count(&self.shared.board.counters.replayed);
        self.to_server
            .bytes
            .extend_from_slice(request.copy.as_deref().unwrap_or_default());
        let flights = &self.shared.board.flights;
        let ticket = flights.begin(self.assigned.slot, self.shared.routes.batches);
        if !request.is_whole {
            ticket.rest();
        }
        request.ticket = Some(ticket);
        self.open = !request.is_whole;
        self.pending.push_back(request);
    }

    /// From here on, the new connection is the session's.
    fn adopt(&mut self, connection: Connection, assigned: Assigned) {
        let Connection {
            stream,
            frames,
            key,
            parameters,
        } = connection;
        self.server = stream;
        self.from_server = frames;
        self.to_server = Out::default();
        self.transaction = Transaction::Unasked;
        let before = std::mem::replace(&mut self.assigned, assigned);
        if let (Some(known), Some(key)) = (self.key, key) {
            self.shared.cancels.set(known, self.assigned.slot, key);
        }
        for (name, value) in parameters {
            // It said so when it still was a standby.
            if name != b"in_hot_standby" && self.parameters.tell(&name, &value) {
                let parts = [name.as_slice(), b"\0", &value, b"\0"];
                frame::put(&mut self.to_client.bytes, b'S', &parts);
            }
        }
        tracing::debug!(
            user = self.opening.user,
            from = before.epoch,
            to = assigned.epoch,
            "a session moved"
        );
    }

    /// Whether the transaction was committed, as the new primary has it.
    async fn fate(&self, before: Assigned, now: Assigned, connection: &mut Connection) -> Fate {
        let id = match self.transaction {
            Transaction::Known(id) => id,
            // It wrote nothing, so that there is nothing to lose.
            Transaction::None => return Fate::Committed,
            Transaction::Unasked => return Fate::Unknown,
        };
        let same = now.epoch == before.epoch;
        if !same {
            match self.shared.native.boundary(before.epoch, now.epoch) {
                // The standby never heard of it, and the number may be another's by now.
                Some(boundary) if id >= boundary => return Fate::Aborted,
                Some(_) => {}
                None => return Fate::Unknown,
            }
        }
        let sql = format!(
            "SELECT CASE WHEN '{id}'::xid8 >= pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) \
             THEN 'aborted' ELSE pg_catalog.pg_xact_status('{id}'::xid8) END"
        );
        let asked = tokio::time::timeout(REPLAY_BOUND, connection.query(&sql)).await;
        let status = match asked {
            Ok(Ok(rows)) => rows
                .into_iter()
                .next()
                .and_then(|row| row.into_iter().next().flatten()),
            Ok(Err(_)) | Err(_) => None,
        };
        match status.as_deref() {
            // A server that crashed gives numbers anew that it had not made durable.
            Some("committed") if same => Fate::Unknown,
            Some("committed") => Fate::Committed,
            Some("aborted") => Fate::Aborted,
            _ => Fate::Unknown,
        }
    }
}

fn late() -> Trouble {
    Trouble::Broken(io::ErrorKind::TimedOut.into())
}

/// A session that cannot be carried over ends, and says why.
fn lost(what: &str) -> Ended {
    let mut error = fatal(
        "57P01",
        "the primary was lost, and this session cannot be carried over to the next one",
    );
    error.detail = Some(format!("What would be lost: {what}."));
    Ended::With(error)
}
