//! One stream of HTTP/2 in the words of HTTP/1.1, so that all that is known of requests and of
//! instances that are lost holds for it, too.
//!
//! What is read from it is a request's body, in chunks where its length was not said; what is
//! written to it is an answer. Bytes wait for room in the windows of both sides: a body goes no
//! faster than whoever reads it.

use std::io;
use std::mem;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use tokio::io::ReadBuf;

use super::body::{Body, Piece};
use super::head::{self, HEAD_BYTES_MAX, Method};
use super::translate::{self, Framing};

/// A client's side of one stream.
#[derive(Debug)]
pub(crate) struct Half {
    asking: Asking,
    answering: Answering,
    /// What was asked: an answer's body depends on it.
    method: Method,
    /// The connection is one over TLS.
    pub(crate) is_secure: bool,
}

/// A request's body.
#[derive(Debug)]
struct Asking {
    receive: RecvStream,
    framing: Framing,
    /// What came and was not read.
    pending: Bytes,
    ended: bool,
}

/// An answer, as far as it was passed on.
#[derive(Debug)]
enum Answering {
    /// Its head did not come, or only a part.
    Head(SendResponse<Bytes>, Vec<u8>),
    Body {
        send: SendStream<Bytes>,
        body: Body,
        /// Fields after the body.
        trailer: Vec<u8>,
    },
    Done,
}

impl Half {
    pub(crate) fn new(
        (receive, respond): (RecvStream, SendResponse<Bytes>),
        framing: Framing,
        method: Method,
    ) -> Self {
        Self {
            asking: Asking {
                receive,
                framing,
                pending: Bytes::new(),
                ended: framing == Framing::None,
            },
            answering: Answering::Head(respond, Vec::new()),
            method,
            is_secure: false,
        }
    }

    /// Ready once the client has given the stream up, or its connection has ended.
    pub(crate) fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let reset = match &mut self.answering {
            Answering::Head(respond, _) => respond.poll_reset(context),
            Answering::Body { send, .. } => send.poll_reset(context),
            Answering::Done => return Poll::Pending,
        };
        reset.map(|reset| match reset {
            Ok(reason) => given_up(reason),
            Err(error) => broken(error),
        })
    }

    /// Reads of the request's body.
    pub(crate) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let asking = &mut self.asking;
        while asking.pending.is_empty() && !asking.ended {
            asking.pending = ready!(asking.poll_more(context))?;
        }
        let length = asking.pending.len().min(buffer.remaining());
        buffer.put_slice(asking.pending.get(..length).unwrap_or_default());
        asking.pending.advance(length);
        Poll::Ready(Ok(()))
    }

    /// Takes some of an answer.
    pub(crate) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.answering {
            Answering::Head(..) => Poll::Ready(self.head(bytes)),
            Answering::Body {
                send,
                body,
                trailer,
            } => {
                // Only content takes room: an end may always follow.
                let bytes = match content_length(*body, bytes) {
                    0 => bytes,
                    wanted => {
                        let room = ready!(poll_room(send, wanted, context))?;
                        bytes.get(..room.min(bytes.len())).unwrap_or_default()
                    }
                };
                let mut content = BytesMut::with_capacity(bytes.len());
                let taken = body.take_pieces(bytes, |piece| match piece {
                    Piece::Content(bytes) => content.extend_from_slice(bytes),
                    Piece::Trailer(bytes) => trailer.extend_from_slice(bytes),
                });
                let taken = taken.map_err(|bad| malformed(bad.why))?;
                if !content.is_empty() {
                    let ends = body.is_done() && trailer.len() <= EMPTY_LINE;
                    send.send_data(content.freeze(), ends).map_err(broken)?;
                    if ends {
                        self.answering = Answering::Done;
                        return Poll::Ready(Ok(taken));
                    }
                }
                // What is left over goes to the other streams.
                send.reserve_capacity(0);
                if body.is_done() {
                    self.end()?;
                }
                Poll::Ready(Ok(taken))
            }
            Answering::Done => Poll::Ready(Err(malformed("an answer goes on after its end"))),
        }
    }

    /// Takes some of an answer's head; the stream has it once it is whole.
    fn head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Answering::Head(respond, before) = &mut self.answering else {
            return Ok(0);
        };
        let known = before.len();
        before.extend_from_slice(bytes);
        let Some(length) = head::end(before) else {
            if before.len() > 2 * HEAD_BYTES_MAX {
                return Err(malformed("the head of an answer has no end"));
            }
            return Ok(bytes.len());
        };
        before.truncate(length);
        let (answer, body) = translate::answer(before, self.method).map_err(malformed)?;
        before.clear();
        if answer.status().is_informational() {
            respond.send_informational(answer).map_err(broken)?;
            return Ok(length - known);
        }
        let ends = body.is_done();
        let send = respond.send_response(answer, ends).map_err(broken)?;
        self.answering = if ends {
            Answering::Done
        } else {
            let trailer = Vec::new();
            Answering::Body {
                send,
                body,
                trailer,
            }
        };
        Ok(length - known)
    }

    /// All that there will be was written.
    ///
    /// # Errors
    /// When that is not all of the answer.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        match &self.answering {
            Answering::Body { body, .. } if *body == Body::Close => self.end(),
            Answering::Done => Ok(()),
            Answering::Head(..) | Answering::Body { .. } => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        }
    }

    fn end(&mut self) -> io::Result<()> {
        let Answering::Body { send, trailer, .. } = &mut self.answering else {
            return Ok(());
        };
        let fields = translate::trailer(trailer).map_err(malformed)?;
        if fields.is_empty() {
            send.send_data(Bytes::new(), true).map_err(broken)?;
        } else {
            send.send_trailers(fields).map_err(broken)?;
        }
        self.answering = Answering::Done;
        Ok(())
    }
}

/// A trailer without fields.
const EMPTY_LINE: usize = b"\r\n".len();

impl Asking {
    /// Waits for more of the body, as HTTP/1.1 would bring it.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        match ready!(self.receive.poll_data(context)) {
            Some(data) => {
                let data = data.map_err(broken)?;
                let flow = self.receive.flow_control();
                flow.release_capacity(data.len()).map_err(broken)?;
                Poll::Ready(Ok(self.framing.piece(data)))
            }
            None => {
                let fields = ready!(self.receive.poll_trailers(context)).map_err(broken)?;
                self.ended = true;
                Poll::Ready(Ok(self
                    .framing
                    .last(&fields.unwrap_or_else(HeaderMap::new))))
            }
        }
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        match mem::replace(&mut self.answering, Answering::Done) {
            Answering::Head(mut respond, _) => respond.send_reset(Reason::INTERNAL_ERROR),
            Answering::Body { mut send, .. } => send.send_reset(Reason::INTERNAL_ERROR),
            Answering::Done => {}
        }
    }
}

/// Bytes of content among those that come next.
fn content_length(mut body: Body, bytes: &[u8]) -> usize {
    let mut length = 0;
    // What is malformed is told when it is taken.
    let taken = body.take_into(bytes, |content| length += content.len());
    taken.map_or(0, |_| length)
}

/// Ready with how many bytes may be sent, which is never none.
fn poll_room(
    send: &mut SendStream<Bytes>,
    wanted: usize,
    context: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    send.reserve_capacity(wanted);
    while send.capacity() == 0 {
        match ready!(send.poll_capacity(context)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            None => return Poll::Ready(Err(given_up(Reason::CANCEL))),
        }
    }
    Poll::Ready(Ok(send.capacity()))
}

fn given_up(reason: Reason) -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        format!("the client gave its request up: {reason}"),
    )
}

fn broken(error: h2::Error) -> io::Error {
    let reset = error.is_reset();
    match error.into_io() {
        Some(error) => error,
        None if reset => io::ErrorKind::ConnectionReset.into(),
        None => io::Error::other("its stream has ended"),
    }
}

fn malformed(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
