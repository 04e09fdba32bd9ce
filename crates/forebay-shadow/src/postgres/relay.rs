//! What the messages of both sides mean for a session.

use std::sync::Arc;

use super::client::parameter;
use super::frame::{self, Frames, Garbage, Piece, ServerError};
use super::login::fatal;
use super::outcome;
use super::request::{Owner, Request};
use super::session::{Ended, Session, Transaction};
use super::sql::{Class, End, classify, classify_unsure};
use super::state::{Place, Prepared};
use crate::switchboard::count;

/// The question which transaction this is.
const TRANSACTION: &[u8] = b"SELECT pg_catalog.pg_current_xact_id_if_assigned()";

/// Rows that an answer to a question of the front has at most.
const ROWS_MAX: usize = 10_000;

impl<'a> Session<'a> {
    /// Passes on what the server said.
    pub(super) fn pass_down(&mut self) -> Result<(), Ended> {
        // Messages are looked at where they lie.
        let mut frames = std::mem::take(&mut self.from_server);
        let passed = self.pass_from_server(&mut frames);
        frames.shrink();
        self.from_server = frames;
        passed
    }

    fn pass_from_server(&mut self, frames: &mut Frames) -> Result<(), Ended> {
        while let Some(piece) = frames.next().map_err(|garbage| no_protocol(&garbage))? {
            match piece {
                Piece::Whole { tag, bytes } => {
                    let message = frames.bytes(&bytes);
                    // Rows are most of what a server says, and mean nothing here.
                    if let (b'D' | b'd', Some(request)) = (tag, self.pending.front_mut())
                        && request.owner == Owner::Client
                    {
                        request.answered = true;
                        self.to_client.bytes.extend_from_slice(message);
                        continue;
                    }
                    self.server_says(tag, message)?;
                }
                Piece::Head { bytes, .. } | Piece::More { bytes, .. } => {
                    let owner = self.pending.front_mut();
                    if owner
                        .as_ref()
                        .is_some_and(|request| request.owner != Owner::Client)
                    {
                        self.question_failed = true;
                        continue;
                    }
                    if let Some(request) = owner {
                        request.answered = true;
                    }
                    self.to_client.bytes.extend_from_slice(frames.bytes(&bytes));
                }
            }
        }
        Ok(())
    }

    fn server_says(&mut self, tag: u8, message: &[u8]) -> Result<(), Ended> {
        let out = &mut self.to_client.bytes;
        match tag {
            b'S' => {
                let Some((name, value)) = parameter(message) else {
                    return Ok(());
                };
                if self.parameters.tell(name, value) {
                    out.extend_from_slice(message);
                }
                return Ok(());
            }
            b'N' | b'A' => {
                out.extend_from_slice(message);
                return Ok(());
            }
            b'Z' => return self.server_is_ready(message),
            b'E' if matches!(frame::error_field(message, b'V'), Some(b"FATAL" | b"PANIC")) => {
                // Whether it is the server's own end or the session's alone is seen next.
                self.last_words = Some(message.to_vec());
                return Ok(());
            }
            _ => {}
        }
        let Some(request) = self.pending.front_mut() else {
            out.extend_from_slice(message);
            return Ok(());
        };
        if request.owner != Owner::Client {
            match tag {
                b'D' if self.rows.len() >= ROWS_MAX => self.question_failed = true,
                b'D' => self.rows.extend(frame::row(message)),
                b'E' => self.question_failed = true,
                _ => {}
            }
            return Ok(());
        }
        // That it rolled back, or is in a failed transaction, would say that the client had heard why.
        let hides = match tag {
            b'C' => request.class.ends == Some(End::Commit),
            b'E' => frame::error_field(message, b'C') == Some(b"25P02"),
            _ => false,
        };
        if self.undone && hides {
            self.undone = false;
            request.answered = true;
            request.fail();
            self.copying = false;
            self.tell(&outcome::failed());
            return Ok(());
        }
        out.extend_from_slice(message);
        request.answered = true;
        match tag {
            b'1' | b'3' => request.confirm(&mut self.state),
            b'C' => request.completed = request.completed.saturating_add(1),
            b'E' => {
                request.fail();
                self.copying = false;
            }
            b'G' => {
                self.copying = true;
                // The server leaves out what came before the rows.
                if request.is_batch {
                    request.is_whole = false;
                    self.open = true;
                }
                if let Some(ticket) = &request.ticket {
                    ticket.rest();
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn server_is_ready(&mut self, message: &[u8]) -> Result<(), Ended> {
        let status = message.get(5).copied().unwrap_or(b'I');
        let fails = std::mem::replace(&mut self.status, status) != b'E' && status == b'E';
        let Some(mut request) = self.pending.pop_front() else {
            frame::put_ready(&mut self.to_client.bytes, status);
            return Ok(());
        };
        if let Some(ticket) = request.ticket.take() {
            ticket.answered();
        }
        match request.owner {
            Owner::Client => self.answered(request),
            Owner::Transaction => {
                let rows = std::mem::take(&mut self.rows);
                if std::mem::take(&mut self.question_failed) {
                    self.interrupted |= fails && self.pending.is_empty();
                    self.undone |= fails && !self.pending.is_empty();
                } else {
                    let answer = rows
                        .into_iter()
                        .next()
                        .and_then(|row| row.into_iter().next());
                    self.transaction = match answer.flatten().map(|id| id.parse()) {
                        Some(Ok(id)) => Transaction::Known(id),
                        Some(Err(_)) => Transaction::Unasked,
                        None => Transaction::None,
                    };
                }
            }
            Owner::Session => {
                let rows = std::mem::take(&mut self.rows);
                let failed = std::mem::take(&mut self.question_failed);
                self.state.answer((!failed).then_some(rows));
                self.redo = None;
                frame::put_ready(&mut self.to_client.bytes, status);
            }
            Owner::Silent => self.question_failed = false,
        }
        Ok(())
    }

    /// A request of the client has been answered.
    fn answered(&mut self, request: Request<'a>) {
        self.copying = false;
        // One that does nothing in the transaction hears of no error.
        let unheard = std::mem::take(&mut self.undone) && !request.failed;
        self.interrupted |= unheard && self.status == b'E' && self.pending.is_empty();
        let first = !self.state.stale;
        let within = self.status != b'I' && request.class.ends.is_none();
        let place = if within {
            Place::Within
        } else {
            Place::Outside
        };
        self.state.note(&request.class, place);
        let quiet = self.pending.is_empty() && !self.open;
        let may_ask = self.may_ask();
        let out = &mut self.to_client.bytes;
        if self.status == b'I' {
            self.transaction = Transaction::Unasked;
            if quiet && self.state.stale && may_ask {
                let again = first && request.class.is_of_session && !request.failed;
                self.redo = request.copy.filter(|_| again);
                self.ask_session();
                return;
            }
            frame::put_ready(out, self.status);
            return;
        }
        frame::put_ready(out, self.status);
        if quiet {
            let flights = &self.shared.board.flights;
            let ticket = flights.begin(self.assigned.slot, self.shared.routes.writes);
            ticket.rest();
            self.resting = Some(ticket);
        }
        // Also the transaction that follows by `AND CHAIN` is another one.
        let another = request.class.ends.is_some();
        if another || self.transaction == Transaction::None && !request.class.reads {
            self.transaction = Transaction::Unasked;
        }
        let asks = may_ask && !request.class.unnumbered && !request.failed;
        if self.status == b'T' && quiet && asks && self.transaction == Transaction::Unasked {
            self.ask(Owner::Transaction, TRANSACTION);
        }
    }

    /// Asks how the session stands; the client hears that it is done when it is known what was.
    pub(super) fn ask_session(&mut self) {
        let question = self.state.question(&self.opening.user);
        self.ask(Owner::Session, question.as_bytes());
    }

    /// A session that streams the log takes simple queries only, and is not carried over anyway.
    fn may_ask(&self) -> bool {
        !self.opening.replicates
    }

    /// Asks the server something that the client does not see.
    fn ask(&mut self, owner: Owner, sql: &[u8]) {
        self.rows.clear();
        self.question_failed = false;
        frame::put_aside(&mut self.to_server.bytes, sql);
        self.expect(owner);
    }

    /// The server is going to answer something that the front sent for itself.
    pub(super) fn expect(&mut self, owner: Owner) {
        let flights = &self.shared.board.flights;
        let ticket = flights.begin(self.assigned.slot, self.shared.routes.own);
        self.pending.push_back(Request::own(owner, ticket));
    }

    /// Passes on what the client said.
    pub(super) async fn pass_up(&mut self) -> Result<(), Ended> {
        while !self.from_client.is_between() {
            // A request begins only while its server is the primary.
            let begins = self.status == b'I'
                && self.pending.is_empty()
                && self.skipping.is_none()
                && !self.from_client.is_within();
            if begins && !self.may_begin() {
                self.await_primary().await?;
            }
            // Messages are looked at where they lie.
            let mut frames = std::mem::take(&mut self.from_client);
            let passed = self.pass_from_client(&mut frames);
            self.from_client = frames;
            if !passed? {
                break;
            }
        }
        self.from_client.shrink();
        Ok(())
    }

    /// Passes on the next piece of what the client said; false when there is none yet.
    fn pass_from_client(&mut self, frames: &mut Frames) -> Result<bool, Ended> {
        match frames.next().map_err(|garbage| no_protocol(&garbage))? {
            None => return Ok(false),
            Some(Piece::Whole { tag, bytes }) => {
                let message = frames.bytes(&bytes);
                if tag == b'd' && self.copying {
                    self.to_server.bytes.extend_from_slice(message);
                } else {
                    self.client_says(tag, message, true)?;
                }
            }
            Some(Piece::Head { tag, bytes, ends }) => {
                self.skipping_part = !ends && self.skipping.is_some();
                self.client_says(tag, frames.bytes(&bytes), false)?;
                self.skipping_part &= !ends;
            }
            Some(Piece::More { bytes, ends }) => {
                if !self.skipping_part {
                    self.to_server.bytes.extend_from_slice(frames.bytes(&bytes));
                }
                self.skipping_part &= !ends;
            }
        }
        Ok(true)
    }

    fn client_says(&mut self, tag: u8, message: &[u8], whole: bool) -> Result<(), Ended> {
        if let Some(status) = self.skipping {
            // As a server does after an error in a batch.
            match tag {
                b'S' => {
                    self.skipping = None;
                    frame::put_ready(&mut self.to_client.bytes, status);
                }
                b'X' => return Err(Ended::Asked),
                _ => {}
            }
            return Ok(());
        }
        if self.interrupted && self.refuse(tag, message, whole) {
            self.skipping_part = !whole;
            return Ok(());
        }
        match tag {
            b'Q' => {
                let class = self.class_of_query(message, whole);
                self.before(&class);
                if self.open {
                    if let Some(request) = self.pending.back_mut() {
                        request.includes(class);
                    }
                } else {
                    self.begin(class, false);
                }
                self.keep(message, whole);
                self.end_batch();
            }
            b'F' => {
                self.begin(Class::of_unknown_portal(), false);
                self.keep(message, whole);
                self.end_batch();
            }
            b'P' | b'B' | b'D' | b'E' | b'C' | b'H' => self.extend(tag, message, whole),
            b'S' => {
                if !self.copying {
                    if !self.open {
                        self.begin(Class::default(), true);
                    }
                    self.keep(message, whole);
                    self.end_batch();
                }
            }
            b'c' | b'f' => {
                self.copying = false;
                let ticket = self
                    .pending
                    .back()
                    .and_then(|request| request.ticket.as_ref());
                if let Some(ticket) = ticket {
                    ticket.resume();
                }
            }
            b'd' | b'p' => {}
            b'X' => {
                self.to_server.bytes.extend_from_slice(message);
                return Err(Ended::Asked);
            }
            _ => return Err(no_protocol(&Garbage::Unexpected(char::from(tag)))),
        }
        self.to_server.bytes.extend_from_slice(message);
        Ok(())
    }

    fn class_of_query(&self, message: &[u8], whole: bool) -> Class {
        let sql = frame::body(message);
        // One that was not seen to its end may do anything.
        if whole {
            self.class_of_text(sql.split_last().map_or(sql, |(_, sql)| sql))
        } else {
            Class::unknown()
        }
    }

    /// How a text is read depends on the session, and what is under way may change that.
    fn class_of_text(&self, sql: &[u8]) -> Class {
        let changes = self
            .pending
            .iter()
            .any(|request| request.class.changes_session);
        if self.parameters.hides_backslash() && sql.contains(&b'\\') {
            Class::unknown()
        } else if changes || !self.parameters.is_standard() {
            classify_unsure(sql)
        } else {
            classify(sql)
        }
    }

    /// A message of the extended protocol.
    fn extend(&mut self, tag: u8, message: &[u8], whole: bool) {
        let body = frame::body(message);
        let mut parsed = None;
        if tag == b'P'
            && let Some((name, rest)) = frame::text(body)
        {
            let class = match frame::text(rest).filter(|_| whole) {
                Some((sql, _)) => self.class_of_text(sql),
                None => Class::unknown(),
            };
            let message = whole.then(|| message.to_vec());
            parsed = Some((name.to_vec(), Arc::new(Prepared { message, class })));
        }
        let bound = (tag == b'B').then(|| self.class_of_bind(body));
        if !self.open {
            let class = parsed
                .as_ref()
                .map(|(_, prepared)| &prepared.class)
                .or(bound.as_ref());
            if let Some(class) = class.cloned() {
                self.before(&class);
            }
            self.begin(Class::default(), true);
        }
        let Some(request) = self.pending.back_mut() else {
            return;
        };
        match tag {
            b'P' => {
                if let Some((name, prepared)) = parsed {
                    request.parse(name, prepared);
                }
            }
            b'B' => request.bind(bound.unwrap_or_else(Class::unknown)),
            b'E' => request.execute(),
            b'C' => match body.split_first() {
                Some((b'S', name)) => {
                    request.close(frame::text(name).map(|(name, _)| name.to_vec()));
                }
                _ => request.close(None),
            },
            b'H' => {
                if let Some(ticket) = &request.ticket {
                    ticket.resume();
                }
            }
            _ => {}
        }
        self.keep(message, whole);
    }

    /// The class of the statement that a portal is bound to.
    fn class_of_bind(&self, body: &[u8]) -> Class {
        let name = frame::text(body).and_then(|(_, rest)| frame::text(rest));
        let Some((name, _)) = name else {
            return Class::unknown();
        };
        let prepared = self
            .pending
            .iter()
            .rev()
            .find_map(|request| request.prepares(name));
        let prepared = prepared.or_else(|| self.state.prepared(name));
        match prepared {
            Some(prepared) => prepared.class.clone(),
            None if self.state.is_unkept() => Class::unknown(),
            // Prepared by a text, which prepares nothing that ends a transaction.
            None => Class::of_unknown_portal(),
        }
    }

    /// A request of this class is to be sent.
    fn before(&mut self, class: &Class) {
        let commits = class.ends == Some(End::Commit);
        let known = matches!(self.transaction, Transaction::Known(_));
        if commits && self.status == b'T' && !self.open && !known && self.may_ask() {
            // What it answered before may have changed: a view can call what writes.
            self.transaction = Transaction::Unasked;
            self.ask(Owner::Transaction, TRANSACTION);
        }
    }

    fn begin(&mut self, class: Class, is_batch: bool) {
        self.resting = None;
        count(&self.shared.board.counters.requests);
        let routes = self.shared.routes;
        let route = match (&class, is_batch) {
            (_, true) => routes.batches,
            (class, false) if class.ends.is_some() => routes.ends,
            (class, false) if class.reads => routes.reads,
            _ => routes.writes,
        };
        let ticket = self.shared.board.flights.begin(self.assigned.slot, route);
        if is_batch {
            // A server need not answer before the batch ends.
            ticket.rest();
            self.pending.push_back(Request::batch(ticket));
            self.open = true;
        } else {
            self.pending.push_back(Request::single(ticket, class));
        }
    }

    fn keep(&mut self, message: &[u8], whole: bool) {
        if let Some(request) = self.pending.back_mut() {
            if whole {
                request.keep(message);
            } else {
                request.is_too_long();
            }
        }
    }

    fn end_batch(&mut self) {
        self.open = false;
        if let Some(request) = self.pending.back_mut() {
            request.is_whole = true;
            if let Some(ticket) = &request.ticket {
                ticket.resume();
            }
        }
    }

    /// Answers the first request after the loss of a transaction; false where the server is to.
    fn refuse(&mut self, tag: u8, message: &[u8], whole: bool) -> bool {
        let body = frame::body(message);
        let class = match tag {
            b'Q' => self.class_of_query(message, whole),
            b'P' => match frame::text(body).and_then(|(_, rest)| frame::text(rest)) {
                Some((sql, _)) => self.class_of_text(sql),
                None => Class::unknown(),
            },
            b'B' => self.class_of_bind(body),
            b'D' | b'E' | b'C' | b'F' => Class::default(),
            _ => return false,
        };
        self.interrupted = false;
        if class.ends == Some(End::Rollback) {
            return false;
        }
        // A text of which a COMMIT is only a part fails in the part before it.
        let status = if class.ends == Some(End::Commit) {
            // It believes that its transaction has ended, so that it has to.
            frame::put_query(&mut self.to_server.bytes, b"ROLLBACK");
            self.expect(Owner::Silent);
            self.resting = None;
            b'I'
        } else {
            b'E'
        };
        self.tell(&outcome::failed());
        if matches!(tag, b'Q' | b'F') {
            frame::put_ready(&mut self.to_client.bytes, status);
        } else {
            self.skipping = Some(status);
        }
        true
    }

    /// Tells the client an error, and counts it.
    pub(super) fn tell(&mut self, error: &ServerError) {
        let counters = &self.shared.board.counters;
        count(if error.code == "08007" {
            &counters.unknown
        } else {
            &counters.failed
        });
        error.put(&mut self.to_client.bytes);
    }
}

fn no_protocol(garbage: &Garbage) -> Ended {
    Ended::With(fatal("08P01", garbage.to_string()))
}
