//! `http`: HTTP/1.1 and HTTP/2, request by request.
//!
//! Guarantee: a request is executed at most once, unless it is idempotent (RFC 9110, 9.2.2) or
//! carries an `Idempotency-Key`; those are sent again, to three primaries at most and for as
//! long as they may wait. A client whose request may have been executed by an instance that was lost is
//! told so:
//! `502` with `forebay-outcome: unknown`. A client's connection outlives its instance, except in the
//! middle of an answer.
//!
//! Read `serve`, then [`asking`]: [`head`] and [`body`] say what a message is, [`exchange`] moves
//! one request and its answer, and [`again`] decides what may be sent again. Bodies pass through as
//! they came; heads lose only what concerns the connection. Instances are asked in HTTP/1.1; a stream
//! of HTTP/2 is put into its words and is then a client like any other ([`http2`], [`half`]).

mod again;
mod asking;
mod body;
mod bulk;
mod client;
mod exchange;
#[cfg(fuzzing)]
pub mod fuzzing;
mod half;
mod head;
mod http2;
mod link;
pub mod mirror;
mod pool;
mod relay;
pub mod spread;
mod translate;
mod wire;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::asking::Asking;
use self::client::{Answer, Client, Said};
use self::head::{Bad, Method, Request, Response};
use self::link::Link;
use self::mirror::Mirror;
use self::pool::Pool;
use self::spread::Spread;
use crate::rest::{self, Known};
use crate::stream::Stream;
use crate::switchboard::{Assigned, Switchboard, count};
use crate::tcp;
use crate::tls::{self, Accepted, Tls};

/// How long it may take until it shows that an instance is lost whose connection broke. One that
/// goes on is asked once more then.
const DOUBT: Duration = Duration::from_millis(100);
/// What is offered over TLS, the best one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Longest part of a path that tells routes apart.
const SEGMENT_MAX: usize = 64;

/// What can be chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Instances are told the client's address in `X-Forwarded-For` and, of a front that speaks TLS,
    /// whether the client does in `X-Forwarded-Proto`.
    pub forwarded_for: bool,
    /// What the shadow gets as well.
    pub mirror: mirror::Options,
    /// What the shadow answers.
    pub spread: spread::Options,
    /// TLS with clients.
    pub tls: Option<tls::Options>,
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
    tls: Option<Tls>,
    /// Room for requests that have no connection of their own.
    streams: Arc<Semaphore>,
}

impl Shared {
    /// # Errors
    /// When the certificate for TLS cannot be used.
    pub(crate) fn new(
        board: Arc<Switchboard>,
        options: Options,
        patience: Duration,
    ) -> io::Result<Self> {
        let shadows = Arc::<Pool>::default();
        let mirrored = (Arc::clone(&board), Arc::clone(&shadows));
        Ok(Self {
            tls: options
                .tls
                .as_ref()
                .map(|options| Tls::new(options, &PROTOCOLS, &board))
                .transpose()?,
            mirror: Mirror::new(options.mirror.clone(), mirrored),
            spread: Spread::new(options.spread),
            shadows,
            board,
            pool: Pool::default(),
            options,
            patience,
            streams: Arc::new(Semaphore::new(http2::STREAMS_ALL_MAX)),
        })
    }

    /// Where some clients speak TLS, an instance is told which.
    const fn tells_scheme(&self) -> bool {
        self.options.forwarded_for && self.tls.is_some()
    }

    /// Whether a client's first bytes are to be those of TLS.
    pub(crate) fn speaks_tls(&self, client: &Stream) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_spoken(client))
    }

    pub(crate) const fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
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
    shared: &Arc<Shared>,
    stream: Stream,
    address: Option<IpAddr>,
) -> io::Result<()> {
    stream.bound_vanished()?;
    let link = match &shared.tls {
        Some(tls) if tls.is_spoken(&stream) => match tls.accept(stream).await? {
            Accepted::Tls(stream) => Link::Tls(stream),
            Accepted::Cleartext(stream) => {
                let mut client = Client::new(Link::Plain(stream), address);
                client.answer(&Answer::bad(CLEARTEXT)).await?;
                return client.linger().await;
            }
        },
        _ => Link::Plain(stream),
    };
    let agreed = match &link {
        Link::Tls(stream) => stream.get_ref().1.alpn_protocol(),
        _ => None,
    };
    let is_agreed = agreed == Some(PROTOCOLS[0]);
    let client = Client::new(link, address);
    if is_agreed {
        return http2::serve(shared, client).await;
    }
    attend(shared, client).await
}

/// Goes on with one client whose connection was at rest.
///
/// # Errors
/// As [`serve`].
pub(crate) async fn resume(
    shared: &Arc<Shared>,
    (stream, unread): (Stream, Vec<u8>),
    address: Option<IpAddr>,
    fresh: bool,
) -> io::Result<()> {
    stream.bound_vanished()?;
    let client = Client::resume(stream, address, fresh, unread);
    attend(shared, client).await
}

async fn attend(shared: &Arc<Shared>, mut client: Client) -> io::Result<()> {
    loop {
        match converse(shared, &mut client).await? {
            End::Over => return Ok(()),
            End::Http2 => return http2::serve(shared, client).await,
            End::Rests => {
                let Some(resting) = client.rest() else {
                    return Ok(());
                };
                let Some(kept) = shared.board.rest.leave(resting) else {
                    return Ok(());
                };
                let Known::Http { address, fresh } = kept.known else {
                    return Ok(());
                };
                client = Client::resume(kept.stream, address, fresh, kept.unread);
            }
        }
    }
}

/// Somebody does not speak TLS where it is due.
const CLEARTEXT: Bad = Bad {
    status: 400,
    why: "TLS is spoken at this address: ask with https",
};

/// How a conversation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Over,
    /// It had not begun: the client speaks HTTP/2.
    Http2,
    /// It may go on in another process.
    Rests,
}

/// Answers one request after the other.
async fn converse(shared: &Shared, client: &mut Client) -> io::Result<End> {
    let mut routing = shared.board.subscribe();
    let mut rest = shared.board.rest.subscribe();
    let mut route = Route::default();
    loop {
        let may_rest = client.may_rest();
        let said = tokio::select! {
            biased;
            // Before another request, since there would be no end of them.
            () = rest::wanted(&mut rest, may_rest) => {
                // A part of a request may have come meanwhile.
                if client.may_rest() {
                    return Ok(End::Rests);
                }
                continue;
            }
            said = client.next() => said?,
        };
        let mut request = match said {
            Said::Request(request) => request,
            Said::Http2 => return Ok(End::Http2),
            Said::Nothing => return Ok(End::Over),
            Said::Bad(bad) => {
                client.answer(&Answer::bad(bad)).await?;
                client.linger().await?;
                return Ok(End::Over);
            }
        };
        count(&shared.board.counters.requests);
        // The next request goes to the process that has taken this one's place.
        request.keep &= !shared.board.is_ending();
        let route = route.of(&shared.board, client, &request);
        if shared.tells_scheme() {
            let head = client.buffer.get(..request.length).unwrap_or_default();
            head::lines_of(SCHEME, head, &mut client.cuts);
        }
        let lines = upward(&request, client, shared);
        client.write(&lines, &mut request);
        let mut asking = Asking {
            shared,
            client: &mut *client,
            request: &request,
            routing: &mut routing,
            route,
            deadline: Instant::now() + shared.patience,
        };
        match asking.run().await? {
            Next::Keep if client.link.is_half() => return Ok(End::Over),
            Next::Keep => {}
            Next::Close => {
                client.linger().await?;
                return Ok(End::Over);
            }
            Next::Relay(instance, assigned) => {
                relay(shared, client, instance, assigned).await?;
                return Ok(End::Over);
            }
        }
    }
}

/// Passes on what is no HTTP any more.
async fn relay(
    shared: &Shared,
    client: &mut Client,
    instance: Stream,
    assigned: Assigned,
) -> io::Result<()> {
    match &mut client.link {
        Link::Plain(stream) => tcp::relay(&shared.board, stream, &instance, assigned).await,
        link @ Link::Tls(_) => relay::relay(&shared.board, link, instance, assigned).await,
        Link::Half(_) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a stream of HTTP/2 does not change its protocol",
        )),
    }
}

/// The field that says whether a client speaks TLS.
const SCHEME: &str = "x-forwarded-proto";

/// Lines for the instance at the end of a request's head.
fn upward(request: &Request, client: &Client, shared: &Shared) -> Vec<u8> {
    let mut lines = Vec::new();
    if request.upgrade {
        lines.extend_from_slice(b"connection: upgrade\r\n");
    } else if !request.modern {
        // Without a word, the connection would end after the answer.
        lines.extend_from_slice(b"connection: keep-alive\r\n");
    }
    if request.trailers && !request.upgrade {
        // It takes two lines (RFC 9110, 10.1.4).
        lines.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
    }
    if let Some(address) = client.address.filter(|_| shared.options.forwarded_for) {
        lines.extend_from_slice(
            format!("x-forwarded-for: {}\r\n", address.to_canonical()).as_bytes(),
        );
    }
    if shared.tells_scheme() {
        let scheme = if client.is_secure { "https" } else { "http" };
        lines.extend_from_slice(format!("{SCHEME}: {scheme}\r\n").as_bytes());
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
        let known = self.number.filter(|number| {
            let name = self.name.as_bytes();
            name.len() == method.len() + segment.len()
                && name.starts_with(method)
                && name.ends_with(segment)
                && board.flights.is_route(*number)
        });
        known.unwrap_or_else(|| {
            self.name.clear();
            self.name.push_str(&String::from_utf8_lossy(method));
            self.name.push_str(&String::from_utf8_lossy(segment));
            let number = board.flights.passing_route(&self.name);
            self.number = Some(number);
            number
        })
    }
}

/// Whether a method may be executed twice without harm.
const fn is_idempotent(request: &Request) -> bool {
    matches!(request.method, Method::Head | Method::Idempotent) || request.keyed
}

#[cfg(test)]
mod tests;
