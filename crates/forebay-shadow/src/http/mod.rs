//! `http`: HTTP/1.1, request by request.
//!
//! Guarantee: a request is executed at most once, unless it is idempotent (RFC 9110, 9.2.2) or
//! carries an `Idempotency-Key`; those are sent again, to three primaries at most and for as
//! long as they may wait. A client whose request may have been executed by an instance that was lost is
//! told so:
//! `502` with `forebay-outcome: unknown`. A client's connection outlives its instance, except in the
//! middle of an answer.
//!
//! Read `serve`, then `Asking::run`: [`head`] and [`body`] say what a message is, [`exchange`] moves
//! one request and its answer, and [`again`] decides what may be sent again. Bodies pass through as
//! they came; heads lose only what concerns the connection.

mod again;
mod body;
mod bulk;
mod client;
mod exchange;
mod head;
pub mod mirror;
mod pool;
pub mod spread;
mod wire;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::shadow::promotion::{Epoch, Slot};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use self::again::{Broken, Fate, Tries};
use self::client::{Answer, Client, Said};
use self::exchange::{Download, Ends, Fault, Upload};
use self::head::{Bad, Method, Request, Response};
use self::mirror::{Mirror, Print};
use self::pool::Pool;
use self::spread::Spread;
use crate::flights::Ticket;
use crate::stream::Stream;
use crate::switchboard::{Assigned, Gate, Routing, Switchboard, count};
use crate::tcp;

/// How soon an instance that refused is tried again.
const RETRY: Duration = Duration::from_millis(5);
/// How long it may take until it shows that an instance is lost whose connection broke. One that
/// goes on is asked once more then.
const DOUBT: Duration = Duration::from_millis(100);
/// Longest part of a path that tells routes apart.
const SEGMENT_MAX: usize = 64;

/// What can be chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Instances are told the client's address in `X-Forwarded-For`.
    pub forwarded_for: bool,
    /// What the shadow gets as well.
    pub mirror: mirror::Options,
    /// What the shadow answers.
    pub spread: spread::Options,
}

/// What all connections of a front share.
#[derive(Debug)]
pub(crate) struct Shared {
    board: Arc<Switchboard>,
    pool: Pool,
    /// Connections to shadows.
    shadows: Arc<Pool>,
    mirror: Mirror,
    spread: Spread,
    options: Options,
    patience: Duration,
}

impl Shared {
    pub(crate) fn new(board: Arc<Switchboard>, options: Options, patience: Duration) -> Self {
        let shadows = Arc::<Pool>::default();
        let mirrored = (Arc::clone(&board), Arc::clone(&shadows));
        Self {
            mirror: Mirror::new(options.mirror.clone(), mirrored),
            spread: Spread::new(options.spread),
            shadows,
            board,
            pool: Pool::default(),
            options,
            patience,
        }
    }
}

/// What becomes of the client's connection.
#[derive(Debug)]
enum Next {
    Keep,
    /// It ends in order.
    Close,
    /// Both sides speak something else now.
    Relay(Stream, Assigned),
}

/// Serves one client, who has this address, until it ends.
///
/// # Errors
/// When its connection broke, or an instance was lost in the middle of an answer.
pub(crate) async fn serve(
    shared: &Shared,
    stream: Stream,
    address: Option<IpAddr>,
) -> io::Result<()> {
    let mut client = Client::new(stream, address);
    let mut routing = shared.board.subscribe();
    let mut route = Route::default();
    loop {
        let mut request = match client.next().await? {
            Said::Request(request) => request,
            Said::Nothing => return Ok(()),
            Said::Bad(bad) => {
                client.answer(&Answer::bad(bad)).await?;
                return client.linger().await;
            }
        };
        count(&shared.board.counters.requests);
        let route = route.of(&shared.board, &client, &request);
        let lines = upward(&request, &client, &shared.options);
        client.write(&lines, &mut request);
        let mut asking = Asking {
            shared,
            client: &mut client,
            request: &request,
            routing: &mut routing,
            route,
            deadline: Instant::now() + shared.patience,
        };
        match asking.run().await? {
            Next::Keep => {}
            Next::Close => return client.linger().await,
            Next::Relay(instance, assigned) => {
                return tcp::relay(&shared.board, &client.stream, &instance, assigned).await;
            }
        }
    }
}

/// Lines for the instance at the end of a request's head.
fn upward(request: &Request, client: &Client, options: &Options) -> Vec<u8> {
    let mut lines = Vec::new();
    if request.upgrade {
        lines.extend_from_slice(b"connection: upgrade\r\n");
    } else if !request.modern {
        // Without a word, the connection would end after the answer.
        lines.extend_from_slice(b"connection: keep-alive\r\n");
    }
    if let Some(address) = client.address.filter(|_| options.forwarded_for) {
        lines.extend_from_slice(
            format!("x-forwarded-for: {}\r\n", address.to_canonical()).as_bytes(),
        );
    }
    lines
}

/// Lines for the client at the end of an answer's head.
const fn downward(response: &Response, request: &Request, keep: bool) -> &'static [u8] {
    match (response.status, keep, request.modern) {
        (101, _, _) => b"connection: upgrade\r\n",
        (_, true, true) => b"",
        (_, true, false) => b"connection: keep-alive\r\n",
        (_, false, _) => b"connection: close\r\n",
    }
}

/// The kind of a request: its method and the first part of its path. A client's requests are of one
/// kind, as a rule, so that the latest is remembered.
#[derive(Debug, Default)]
struct Route {
    name: String,
    number: Option<usize>,
}

impl Route {
    fn of(&mut self, board: &Switchboard, client: &Client, request: &Request) -> usize {
        let line = client.buffer.get(..request.target.end).unwrap_or_default();
        let start = request.target.start.min(line.len());
        let (method, target) = line.split_at(start);
        let path = target
            .split(|byte| *byte == b'?')
            .next()
            .unwrap_or_default();
        let rest = path.get(1..).unwrap_or_default();
        let ends = rest.iter().take(SEGMENT_MAX).position(|byte| *byte == b'/');
        let length = ends.unwrap_or(rest.len().min(SEGMENT_MAX)) + path.len().min(1);
        let segment = path.get(..length).unwrap_or_default();
        let known = self.number.filter(|_| {
            let name = self.name.as_bytes();
            name.len() == method.len() + segment.len()
                && name.starts_with(method)
                && name.ends_with(segment)
        });
        known.unwrap_or_else(|| {
            self.name.clear();
            self.name.push_str(&String::from_utf8_lossy(method));
            self.name.push_str(&String::from_utf8_lossy(segment));
            let number = board.flights.route(&self.name);
            self.number = Some(number);
            number
        })
    }
}

/// One request of a client.
#[derive(Debug)]
struct Asking<'a> {
    shared: &'a Shared,
    client: &'a mut Client,
    request: &'a Request,
    routing: &'a mut watch::Receiver<Routing>,
    route: usize,
    deadline: Instant,
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
    async fn run(&mut self) -> io::Result<Next> {
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
            let Some(mut reached) = reach(self.shared, &tries, self.route, self.deadline).await
            else {
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
            match tries.judge(&self.shared.board, &broken).await {
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
            Some(instance) => Ok(instance),
            None => Stream::connect(board.address(slot)).await,
        };
        let Ok(mut instance) = connected else {
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
            let reset =
                rustix::net::sockopt::set_socket_linger(&self.client.stream, Some(Duration::ZERO));
            if let Err(error) = reset {
                tracing::debug!(%error, "a connection cannot be reset");
            }
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
        let connecting = Stream::connect(board.address(assigned.slot));
        let connected = tokio::select! {
            connected = connecting => connected,
            () = board.replaced(assigned) => continue,
        };
        match connected {
            Ok(instance) => {
                return Some(Reached {
                    instance,
                    assigned,
                    ticket,
                    used: false,
                });
            }
            Err(error) => tracing::debug!(%error, "an instance refused"),
        }
        drop(ticket);
        board.trouble();
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
struct Done {
    /// The client's connection goes on.
    keep: bool,
    /// The instance's connection can be used again.
    again: bool,
    /// Both speak something else now.
    switched: bool,
}

/// Whom a request is sent to, and how long the answer's head may take, if there is a bound.
#[derive(Debug, Clone, Copy)]
struct Terms {
    assigned: Assigned,
    within: Option<Duration>,
}

async fn exchange(
    mut ends: Ends<'_>,
    request: &Request,
    routing: &mut watch::Receiver<Routing>,
    terms: Terms,
    ticket: Ticket<'_>,
) -> Result<Done, Fault> {
    let assigned = terms.assigned;
    let is_lost = |routing: &Routing| routing.lost_before > assigned.epoch;
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

/// Whether a method may be executed twice without harm.
const fn is_idempotent(request: &Request) -> bool {
    matches!(request.method, Method::Head | Method::Idempotent) || request.keyed
}

#[cfg(test)]
mod tests;
