//! HTTP/2 towards clients: many requests on one connection.
//!
//! Each stream is a client of its own, for one request: it is served in a task that speaks HTTP/1.1
//! with it ([`super::half`]), so that everything that holds for a request holds here. The connection's
//! own task only moves frames.
//!
//! Bounds: streams of a connection and of all together, the size of a head, what is unread of
//! bodies in either direction, requests that a client gives up, and the time that a connection may
//! be without a request.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::client::{Answer, Client, HEAD_BOUND, IDLE_BOUND, LINGER_BOUND, STEP_BOUND};
use super::half::Half;
use super::head::{HEAD_BYTES_MAX, Method};
use super::link::Link;
use super::translate::{self, Framing};
use super::{Shared, converse};

/// Streams of all connections at the same time; more are refused, which tells their clients that
/// they may ask again.
pub(super) const STREAMS_ALL_MAX: usize = 16 * 1024;
/// Streams of one connection at the same time.
const STREAMS_MAX: u32 = 128;
/// Bytes of one request's body that may lie here unread, and of one answer's that may wait to be
/// sent.
const STREAM_BYTES_MAX: u32 = 64 * 1024;
/// Bytes of all bodies of one connection that may lie here unread.
const CONNECTION_BYTES_MAX: u32 = 256 * 1024;
/// Requests that a client may give up beyond those that it lets be answered: each one costs an
/// instance more than the client.
const GIVEN_UP_MAX: u32 = 200;

/// Serves a client whose first bytes said that it speaks HTTP/2.
///
/// # Errors
/// When its connection broke, or it breaks the rules.
pub(super) async fn serve(shared: &Arc<Shared>, client: Client) -> io::Result<()> {
    let origin = Origin {
        address: client.address,
        is_secure: client.is_secure,
    };
    let begun = Begun {
        bytes: client.buffer.into(),
        link: client.link,
    };
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_BYTES_MAX)
        .initial_connection_window_size(CONNECTION_BYTES_MAX)
        .max_send_buffer_size(usize::try_from(STREAM_BYTES_MAX).unwrap_or(usize::MAX));
    let handshake = timeout(HEAD_BOUND, builder.handshake::<_, Bytes>(begun)).await;
    let mut connection = handshake?.map_err(broken)?;
    let mut streams = JoinSet::new();
    let mut deadline = Instant::now() + IDLE_BOUND;
    let mut given_up = 0_u32;
    let mut closes = false;
    loop {
        if !closes && shared.board.is_ending() {
            // The next request goes to the process that has taken this one's place.
            connection.graceful_shutdown();
            closes = true;
            deadline = Instant::now() + STEP_BOUND;
        }
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, mut respond))) => match place(shared, &streams) {
                    Some(place) => {
                        let (shared, ends) = (Arc::clone(shared), (request, respond));
                        streams.spawn(answer(shared, ends, origin, place));
                    }
                    None => respond.send_reset(Reason::REFUSED_STREAM),
                },
                Some(Err(error)) => return Err(broken(error)),
                None => return Ok(()),
            },
            Some(ended) = streams.join_next() => {
                given_up = match ended {
                    Ok(Outcome::GivenUp) => given_up + 1,
                    Ok(Outcome::Answered) | Err(_) => given_up.saturating_sub(1),
                };
                if given_up > GIVEN_UP_MAX {
                    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                }
                // What its last stream said may lie here: the connection ends by itself once it was
                // taken.
                let bound = if closes { STEP_BOUND } else { IDLE_BOUND };
                deadline = Instant::now() + bound;
            }
            () = sleep_until(deadline), if streams.is_empty() => {
                if closes {
                    return Ok(());
                }
                connection.graceful_shutdown();
                closes = true;
                deadline = Instant::now() + LINGER_BOUND;
            }
        }
    }
}

/// Room for one more stream. A task may outlive its stream by a moment, which takes room, too.
fn place(shared: &Shared, streams: &JoinSet<Outcome>) -> Option<OwnedSemaphorePermit> {
    let most = usize::try_from(2 * STREAMS_MAX).unwrap_or(usize::MAX);
    if streams.len() >= most {
        return None;
    }
    Arc::clone(&shared.streams).try_acquire_owned().ok()
}

/// Where all streams of a connection come from.
#[derive(Debug, Clone, Copy)]
struct Origin {
    address: Option<IpAddr>,
    is_secure: bool,
}

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered,
    /// The client wants no answer any more.
    GivenUp,
}

/// Serves one stream until it ends.
async fn answer(
    shared: Arc<Shared>,
    (request, respond): (http::Request<RecvStream>, SendResponse<Bytes>),
    origin: Origin,
    place: OwnedSemaphorePermit,
) -> Outcome {
    let (parts, receive) = request.into_parts();
    let method = if parts.method == http::Method::HEAD {
        Method::Head
    } else {
        Method::Other
    };
    let written = translate::request(&parts, receive.is_end_stream());
    let framing = written
        .as_ref()
        .map_or(Framing::None, |(_, framing)| *framing);
    let mut half = Half::new((receive, respond), framing, method);
    half.is_secure = origin.is_secure;
    let mut client = Client::new(Link::Half(Box::new(half)), origin.address);
    let served = match written {
        Ok((head, _)) => {
            client.buffer = head;
            converse(&shared, &mut client).await.map(drop)
        }
        Err(bad) => client.answer(&Answer::bad(bad)).await,
    };
    drop((client, place));
    match served {
        Ok(()) => Outcome::Answered,
        Err(error) => {
            tracing::debug!(%error, "a stream ended");
            if error.kind() == io::ErrorKind::ConnectionReset {
                Outcome::GivenUp
            } else {
                Outcome::Answered
            }
        }
    }
}

/// A connection of which some bytes were read already.
#[derive(Debug)]
struct Begun {
    bytes: Bytes,
    link: Link,
}

impl AsyncRead for Begun {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let begun = self.get_mut();
        if begun.bytes.is_empty() {
            return Pin::new(&mut begun.link).poll_read(context, buffer);
        }
        let length = begun.bytes.len().min(buffer.remaining());
        buffer.put_slice(&begun.bytes.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().link).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().link).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().link).poll_shutdown(context)
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::other(error)
}
