//! One request of a client: who is asked, and what becomes of it when that one is lost.

use std::io;
use std::time::Duration;

use forebay_core::shadow::promotion::{Epoch, Slot};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::again::{Broken, Fate, Tries};
use super::body;
use super::client::{Answer, Client};
use super::exchange::{Download, Ends, Fault, Upload};
use super::head::{Bad, Request, Response};
use super::mirror::Print;
use super::{Next, Shared, downward, pool};
use crate::answers::Kind;
use crate::flights::Ticket;
use crate::stream::{Stream, is_refusal};
use crate::switchboard::{Assigned, Gate, Routing, count};

/// How soon an instance that refused is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// One request of a client.
#[derive(Debug)]
pub(super) struct Asking<'a> {
    pub(super) shared: &'a Shared,
    pub(super) client: &'a mut Client,
    pub(super) request: &'a Request,
    pub(super) routing: &'a mut watch::Receiver<Routing>,
    pub(super) route: usize,
    pub(super) deadline: Instant,
}

/// A connection to the primary.
struct Reached<'a> {
    instance: Stream,
    assigned: Assigned,
    ticket: Ticket<'a>,
    /// It was used before, and may have been closed meanwhile.
    used: bool,
}

impl Asking<'_> {
    /// Sees to it that the client gets one answer.
    ///
    /// # Errors
    /// When the client has gone, or has a part of an answer that nobody will complete.
    pub(super) async fn run(&mut self) -> io::Result<Next> {
        let mut upload = match Upload::of(self.client, self.request) {
            Ok(upload) => upload,
            Err(bad) => return self.refuse(bad).await,
        };
        if upload.is_small() && !self.request.expects {
            // A slow client then occupies no instance, and is no reason to doubt one.
            match upload.gather(self.client).await {
                Ok(()) => {}
                Err(Fault::ClientBad(bad)) => return self.refuse(bad).await,
                Err(Fault::Client(error)) => return Err(error),
                Err(_) => return Ok(Next::Close),
            }
        }
        let copied = if upload.is_whole() {
            let mirror = &self.shared.mirror;
            mirror.copy(self.client, self.request, upload.known())
        } else {
            None
        };
        let from_shadow = if upload.is_whole() {
            self.shared.spread.choose(&self.shared.board, self.request)
        } else {
            None
        };
        if let Some(slot) = from_shadow {
            if let Some(next) = self.ask_shadow(slot, &mut upload).await? {
                return Ok(next);
            }
            upload.again();
        }
        let mut tries = Tries::new(self.request, self.deadline);
        loop {
            let reached = tokio::select! {
                biased;
                reached = reach(self.shared, &tries, self.route, self.deadline) => reached,
                gone = self.client.gone() => return Err(gone),
            };
            let Some(mut reached) = reached else {
                return self.unserved(&tries, &upload).await;
            };
            if tries.begin(reached.assigned) {
                count(&self.shared.board.counters.replayed);
            }
            let mut download = Download::new();
            download.print = copied.as_ref().map(|_| Print::of(0));
            let ends = Ends {
                client: self.client,
                instance: &mut reached.instance,
                upload: &mut upload,
                download: &mut download,
            };
            let terms = Terms {
                assigned: reached.assigned,
                within: None,
            };
            let asked = exchange(ends, self.request, self.routing, terms, reached.ticket);
            let fault = match asked.await {
                Ok(done) if done.switched => {
                    self.client.buffer.clear();
                    return Ok(Next::Relay(reached.instance, reached.assigned));
                }
                Ok(done) => {
                    if let (Some(copied), Some(print)) = (copied, download.print) {
                        self.shared.mirror.send(copied, print);
                    }
                    if done.again && upload.is_whole() && download.is_clean() {
                        self.shared.pool.put(reached.assigned, reached.instance);
                    }
                    return Ok(self.finish(&done, &upload));
                }
                Err(fault) => fault,
            };
            let broken = Broken {
                assigned: reached.assigned,
                used: reached.used,
                replaced: matches!(fault, Fault::Replaced),
                written: upload.sent(),
                retained: upload.retained,
                port: reached.instance.local_port(),
            };
            if let Some(next) = self.fail(fault, &upload, &download).await? {
                return Ok(next);
            }
            let fate = tokio::select! {
                biased;
                fate = tries.judge(&self.shared.board, &broken) => fate,
                gone = self.client.gone() => return Err(gone),
            };
            match fate {
                Fate::Again => upload.again(),
                Fate::Unknown => return self.unserved(&tries, &upload).await,
            }
        }
    }

    /// Asks the shadow for something safe; nothing when the primary has to be asked after all.
    async fn ask_shadow(&mut self, slot: Slot, upload: &mut Upload) -> io::Result<Option<Next>> {
        let Shared {
            board,
            spread,
            shadows,
            ..
        } = self.shared;
        let pooled = Assigned {
            slot,
            epoch: board.routing().epoch,
        };
        let ticket = board.flights.begin(slot, self.route);
        let connected = match shadows.take(pooled) {
            Some(instance) => Ok(Ok(instance)),
            None => {
                timeout(
                    spread.within(),
                    Stream::connect_bounded(board.address(slot)),
                )
                .await
            }
        };
        let Ok(Ok(mut instance)) = connected else {
            spread.failed();
            return Ok(None);
        };
        let mut download = Download::new();
        let ends = Ends {
            client: self.client,
            instance: &mut instance,
            upload: &mut *upload,
            download: &mut download,
        };
        let terms = Terms {
            // Whatever becomes of the primary, this one goes on.
            assigned: Assigned {
                slot,
                epoch: Epoch::MAX,
            },
            within: Some(spread.within()),
        };
        match exchange(ends, self.request, self.routing, terms, ticket).await {
            Ok(done) => {
                spread.well();
                count(&board.counters.spread);
                if done.again && download.is_clean() {
                    shadows.put(pooled, instance);
                }
                Ok(Some(self.finish(&done, upload)))
            }
            Err(Fault::Client(error)) => Err(error),
            Err(fault) => {
                spread.failed();
                if download.begun {
                    return self.fail(fault, upload, &download).await;
                }
                Ok(None)
            }
        }
    }

    /// The answer is complete.
    fn finish(&mut self, done: &Done, upload: &Upload) -> Next {
        self.client.buffer.drain(..upload.known());
        if done.keep && upload.is_whole() {
            Next::Keep
        } else {
            Next::Close
        }
    }

    /// The answer is not complete; nothing when the request may be looked at again.
    async fn fail(
        &mut self,
        fault: Fault,
        upload: &Upload,
        download: &Download,
    ) -> io::Result<Option<Next>> {
        match fault {
            Fault::Client(error) => Err(error),
            Fault::ClientBad(bad) if !download.begun => self.refuse(bad).await.map(Some),
            Fault::ClientBad(bad) => Err(io::Error::new(io::ErrorKind::InvalidData, bad.why)),
            Fault::Replaced | Fault::Instance(_) | Fault::AnswerBad(_) if download.begun => {
                Err(self.truncate(download))
            }
            Fault::AnswerBad(bad) => {
                tracing::warn!(why = bad.why, "an answer could not be passed on");
                let why = "the instance's answer could not be understood";
                self.unknown(upload, why).await.map(Some)
            }
            Fault::Instance(error) => {
                tracing::debug!(%error, "an instance's connection broke");
                Ok(None)
            }
            Fault::Replaced => Ok(None),
        }
    }

    async fn unserved(&mut self, tries: &Tries, upload: &Upload) -> io::Result<Next> {
        if tries.may_have_been_executed() {
            let why = "the instance was lost, and may have executed the request";
            return self.unknown(upload, why).await;
        }
        count(&self.shared.board.counters.failed);
        let why = "nobody serves at the moment; the request was not executed";
        self.give(503, "retry-after: 1\r\n", why, upload).await
    }

    async fn unknown(&mut self, upload: &Upload, why: &str) -> io::Result<Next> {
        count(&self.shared.board.counters.unknown);
        self.give(502, "forebay-outcome: unknown\r\n", why, upload)
            .await
    }

    async fn give(
        &mut self,
        status: u16,
        lines: &str,
        why: &str,
        upload: &Upload,
    ) -> io::Result<Next> {
        let keep = self.request.keep && upload.is_whole();
        let answer = Answer {
            status,
            lines,
            why,
            method: self.request.method,
            keep,
            modern: self.request.modern,
        };
        self.client.buffer.drain(..upload.known());
        self.client.answer(&answer).await?;
        Ok(if keep { Next::Keep } else { Next::Close })
    }

    /// What follows a malformed request cannot be told from its body.
    async fn refuse(&mut self, bad: Bad) -> io::Result<Next> {
        let answer = Answer {
            method: self.request.method,
            ..Answer::bad(bad)
        };
        self.client.answer(&answer).await?;
        Ok(Next::Close)
    }

    /// The client has a part of an answer that nobody will complete: only the end of its
    /// connection says so, and where that would look like the end of the answer, a reset.
    fn truncate(&self, download: &Download) -> io::Error {
        count(&self.shared.board.counters.unknown);
        if download.ends_with_connection() {
            self.client.link.reset();
        }
        io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "its instance was lost in an answer",
        )
    }
}

/// A connection to the primary; none when there is nobody for as long as the request may wait.
async fn reach<'a>(
    shared: &'a Shared,
    tries: &Tries,
    route: usize,
    deadline: Instant,
) -> Option<Reached<'a>> {
    let board = &shared.board;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let assigned = board.assigned(left).await.ok()?;
        let ticket = board.flights.begin(assigned.slot, route);
        // Whoever waits until an instance has answered must not miss a request that was
        // assigned just before.
        let routing = board.routing();
        if routing.gate != Gate::Open || routing.epoch != assigned.epoch {
            continue;
        }
        if !tries.wants_fresh()
            && let Some(instance) = shared.pool.take(assigned)
            // What must not be sent twice is worth a question.
            && (tries.is_safe() || pool::is_open(&instance))
        {
            return Some(Reached {
                instance,
                assigned,
                ticket,
                used: true,
            });
        }
        let connecting = timeout_at(
            deadline,
            Stream::connect_bounded(board.address(assigned.slot)),
        );
        let connected = tokio::select! {
            connected = connecting => connected,
            () = board.replaced(assigned) => continue,
        };
        match connected {
            Ok(Ok(instance)) => {
                return Some(Reached {
                    instance,
                    assigned,
                    ticket,
                    used: false,
                });
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "an instance could not be connected to");
                if is_refusal(&error) {
                    board.trouble();
                } else {
                    board.glance();
                }
            }
            Err(_) => board.glance(),
        }
        drop(ticket);
        if Instant::now() >= deadline {
            return None;
        }
        // Whoever takes over is told by the board; one that only restarts is tried again.
        tokio::select! {
            () = board.replaced(assigned) => {}
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// How an exchange ended well.
#[derive(Debug)]
pub(super) struct Done {
    /// The client's connection goes on.
    pub(super) keep: bool,
    /// The instance's connection can be used again.
    again: bool,
    /// Both speak something else now.
    switched: bool,
}

/// Whom a request is sent to, and how long the answer's head may take, if there is a bound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) assigned: Assigned,
    pub(super) within: Option<Duration>,
}

/// Sends a request to one instance and passes its answer on.
///
/// # Errors
/// Whatever broke first.
pub(super) async fn exchange(
    mut ends: Ends<'_>,
    request: &Request,
    routing: &mut watch::Receiver<Routing>,
    terms: Terms,
    ticket: Ticket<'_>,
) -> Result<Done, Fault> {
    let assigned = terms.assigned;
    let is_lost = |routing: &Routing| routing.is_lost(assigned);
    let mut lost = false;
    let mut found = None;
    let response = loop {
        let response: Response = match found.take() {
            Some(response) => response,
            None if lost => ends.head_now(request.method)?.ok_or(Fault::Replaced)?,
            None => tokio::select! {
                biased;
                head = ends.head(request.method, &ticket) => head?,
                () = lapse(terms.within) => {
                    return Err(Fault::Instance(io::ErrorKind::TimedOut.into()));
                }
                _ = until(routing, is_lost) => {
                    lost = true;
                    continue;
                }
            },
        };
        if response.status >= 200 || response.status == 101 {
            break response;
        }
        found = ends.interim(&response, request).await?;
    };
    let kind = if response.status >= 500 {
        Kind::Error
    } else {
        Kind::Answer
    };
    ticket.replied(kind, ends.upload.came());
    let switched = response.status == 101;
    if switched && !request.upgrade {
        return Err(Fault::AnswerBad(Bad::syntax(
            "it switches protocols unasked",
        )));
    }
    if !request.modern && matches!(response.body, body::Body::Chunked(_)) {
        return Err(Fault::AnswerBad(Bad::syntax("HTTP/1.0 has no codings")));
    }
    let keep = request.keep && ends.upload.is_whole() && response.body != body::Body::Close;
    let done = Done {
        keep,
        again: response.keep,
        switched,
    };
    ends.begin(&response, downward(&response, request, keep))?;
    if switched {
        ends.switch().await?;
        ticket.answered();
        return Ok(done);
    }
    if lost {
        ends.body_now().await?;
        return Ok(done);
    }
    let mut ticket = Some(ticket);
    loop {
        tokio::select! {
            biased;
            body = ends.body(ticket.as_ref()) => {
                body?;
                break;
            }
            seen = until(routing, |routing| {
                is_lost(routing) || (routing.gate == Gate::Held && ticket.is_some())
            }) => {
                if is_lost(&seen) {
                    ends.body_now().await?;
                    break;
                }
                // An instance that hands over goes on with the answers that it began: nobody has
                // to wait for the end of a long one.
                ticket = None;
            }
        }
    }
    if let Some(ticket) = ticket {
        ticket.answered();
    }
    Ok(done)
}

/// Waits for a time, or for ever.
async fn lapse(within: Option<Duration>) {
    match within {
        Some(within) => tokio::time::sleep(within).await,
        None => std::future::pending().await,
    }
}

/// Waits until something is true of who serves.
async fn until(
    routing: &mut watch::Receiver<Routing>,
    is: impl FnMut(&Routing) -> bool,
) -> Routing {
    let seen = routing.wait_for(is).await.map(|seen| *seen);
    match seen {
        Ok(seen) => seen,
        // The sender is part of the board, which outlives its connections.
        Err(_) => std::future::pending().await,
    }
}
