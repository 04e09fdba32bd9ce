//! The client's end: its requests, one after the other.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncWrite;

use super::head::{self, Bad, Method, Request, Search};
use super::link::{Link, Watch};
use super::wire::{self, Stall};
use crate::rest::{self, Known, Resting};
use crate::stream::Stream;

/// How long a client may keep a connection without asking anything.
pub(crate) const IDLE_BOUND: Duration = Duration::from_secs(75);
/// How long a head may take from its first byte.
pub(crate) const HEAD_BOUND: Duration = Duration::from_secs(10);
/// How long a client may take for the next byte of a body, in either direction.
pub(crate) const STEP_BOUND: Duration = Duration::from_secs(30);
/// What a client still sends after the last answer is read, so that the answer is not lost: for so
/// long, and so much.
pub(crate) const LINGER_BOUND: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 256 * 1024;
/// An idle connection keeps a buffer of this size.
const BUFFER_KEPT: usize = 2048;
/// Empty lines before a request.
const EMPTY_LINES_MAX: u32 = 8;

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) link: Link,
    /// What was read and not dealt with: the request under way comes first.
    pub(crate) buffer: Vec<u8>,
    pub(crate) stall: Stall,
    /// Room for fields that are not to be passed on.
    pub(crate) cuts: Vec<Range<usize>>,
    pub(crate) address: Option<IpAddr>,
    /// It is spoken with over TLS.
    pub(crate) is_secure: bool,
    /// It said nothing so far.
    fresh: bool,
    watch: Watch,
}

/// What a client said.
#[derive(Debug)]
pub(crate) enum Said {
    Request(Request),
    /// It begins to speak HTTP/2.
    Http2,
    /// It speaks, but not this.
    Bad(Bad),
    /// It ended, or asked nothing for long.
    Nothing,
}

impl Client {
    pub(crate) fn new(link: Link, address: Option<IpAddr>) -> Self {
        Self {
            is_secure: link.is_secure(),
            link,
            buffer: Vec::new(),
            stall: Stall::new(),
            cuts: Vec::new(),
            address,
            fresh: true,
            watch: Watch::default(),
        }
    }

    /// Goes on with a connection that was at rest.
    pub(crate) fn resume(
        stream: Stream,
        address: Option<IpAddr>,
        fresh: bool,
        unread: Vec<u8>,
    ) -> Self {
        Self {
            buffer: unread,
            fresh,
            ..Self::new(Link::Plain(stream), address)
        }
    }

    /// Whether the connection can rest between two requests.
    pub(crate) fn may_rest(&self) -> bool {
        let plain = self.link.plain();
        plain.is_some_and(|stream| rest::may_rest(stream, self.buffer.len()))
    }

    /// The connection, between two requests, with what is known of it; none where it cannot rest.
    pub(crate) fn rest(self) -> Option<Resting> {
        let known = Known::Http {
            address: self.address,
            fresh: self.fresh,
        };
        let Link::Plain(stream) = self.link else {
            return None;
        };
        Some(Resting {
            stream,
            unread: self.buffer,
            known,
        })
    }

    /// Waits for the next request's head. Given up in between, nothing is lost.
    ///
    /// # Errors
    /// When the connection broke.
    pub(crate) async fn next(&mut self) -> io::Result<Said> {
        let mut search = Search::default();
        let mut begun = false;
        if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_KEPT {
            wire::give_back(std::mem::take(&mut self.buffer));
        }
        self.stall.expect(IDLE_BOUND);
        let mut empty = 0;
        loop {
            // Old clients send an empty line after a body (RFC 9112, 2.2).
            while self.buffer.starts_with(b"\r\n") {
                empty += 1;
                if empty > EMPTY_LINES_MAX {
                    return Ok(Said::Bad(Bad::syntax("there is no request")));
                }
                self.buffer.drain(..2);
                search = Search::default();
                // Nothing of a request came yet, in however many pieces that did.
                begun = false;
            }
            let preface = self.fresh && is_begun(PREFACE, &self.buffer);
            if preface && self.buffer.len() >= PREFACE.len() {
                return Ok(Said::Http2);
            }
            if !self.buffer.is_empty() && !preface {
                match self.look(&mut search) {
                    Ok(Some(request)) => {
                        self.fresh = false;
                        return Ok(Said::Request(request));
                    }
                    Ok(None) => {}
                    Err(bad) => return Ok(Said::Bad(bad)),
                }
            }
            if !self.buffer.is_empty() && !begun {
                begun = true;
                self.stall.expect(HEAD_BOUND);
            }
            match poll_fn(|context| self.poll_read(context)).await {
                Ok(0) if begun => return Ok(Said::Bad(Bad::syntax("the head is incomplete"))),
                Ok(0) => return Ok(Said::Nothing),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut && begun => {
                    return Ok(Said::Bad(SLOW));
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(Said::Nothing),
                Err(error) => return Err(error),
            }
        }
    }

    fn look(&mut self, search: &mut Search) -> Result<Option<Request>, Bad> {
        match search.find(&self.buffer)? {
            Some(length) => {
                self.cuts.clear();
                let bytes = self.buffer.get(..length).unwrap_or_default();
                head::request(bytes, &mut self.cuts).map(Some)
            }
            None => {
                if search.is_due(self.buffer.len()) {
                    head::judge_part(&self.buffer)?;
                }
                Ok(None)
            }
        }
    }

    /// Reads on; too late is an error of the kind [`io::ErrorKind::TimedOut`].
    pub(crate) fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match wire::poll_read(&mut self.link, context, &mut self.buffer) {
            Poll::Pending => self.stalled(context),
            ready => ready,
        }
    }

    /// An error once the client took too long.
    pub(crate) fn stalled<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        wire::late(&mut self.stall, context)
    }

    /// Waits until nobody is there any more to hear an answer.
    pub(crate) async fn gone(&mut self) -> io::Error {
        poll_fn(|context| self.poll_gone(context)).await
    }

    /// Ready once nobody is there any more to hear an answer.
    pub(crate) fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        self.link.poll_gone(&mut self.watch, context)
    }

    /// Puts the request's head into the form in which the instance gets it.
    pub(crate) fn write(&mut self, lines: &[u8], request: &mut Request) {
        let length = head::rewrite(&mut self.buffer, request.length, &mut self.cuts, lines);
        request.length = length;
    }

    /// Answers in place of an instance.
    ///
    /// # Errors
    /// When the client does not take it.
    pub(crate) async fn answer(&mut self, answer: &Answer<'_>) -> io::Result<()> {
        let bytes = answer.bytes();
        wire::write_all(&mut self.link, &mut self.stall, STEP_BOUND, &bytes).await
    }

    /// Ends a connection so that the last answer arrives though the client still sends: bytes that
    /// nobody reads would make the kernel reset it.
    ///
    /// # Errors
    /// When the connection broke.
    pub(crate) async fn linger(&mut self) -> io::Result<()> {
        self.stall.expect(LINGER_BOUND);
        let shut = poll_fn(
            |context| match Pin::new(&mut self.link).poll_shutdown(context) {
                Poll::Pending => self.stalled(context),
                shut => shut,
            },
        );
        match shut.await {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => return Err(error),
            Err(_) | Ok(()) => {}
        }
        if self.link.is_half() {
            return Ok(());
        }
        let mut read = 0;
        while read < LINGER_BYTES_MAX {
            self.buffer.clear();
            match poll_fn(|context| self.poll_read(context)).await {
                Ok(0) => break,
                Ok(length) => read += length,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What a client sends first that speaks HTTP/2 without having asked (RFC 9113, 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether bytes are the beginning of a text, or begin with it.
fn is_begun(text: &[u8], bytes: &[u8]) -> bool {
    let length = bytes.len().min(text.len());
    length > 0 && text.get(..length) == bytes.get(..length)
}

/// A request came too slowly.
pub(crate) const SLOW: Bad = Bad {
    status: 408,
    why: "the request came too slowly",
};

/// An answer of the front itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    /// Further lines of the head, each with its end.
    pub(crate) lines: &'a str,
    pub(crate) why: &'a str,
    /// What was asked, as far as that is known.
    pub(crate) method: Method,
    /// The connection goes on.
    pub(crate) keep: bool,
    /// The client speaks HTTP/1.1, not 1.0.
    pub(crate) modern: bool,
}

impl<'a> Answer<'a> {
    /// To somebody who does not speak HTTP, or may not be believed.
    pub(crate) const fn bad(bad: Bad) -> Answer<'static> {
        Answer {
            status: bad.status,
            lines: "",
            why: bad.why,
            method: Method::Other,
            keep: false,
            modern: true,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let reason = match self.status {
            400 => "Bad Request",
            408 => "Request Timeout",
            431 => "Request Header Fields Too Large",
            501 => "Not Implemented",
            502 => "Bad Gateway",
            503 => "Service Unavailable",
            _ => "Error",
        };
        let connection = match (self.keep, self.modern) {
            (true, true) => "",
            (true, false) => "connection: keep-alive\r\n",
            (false, _) => "connection: close\r\n",
        };
        let mut text = format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n{connection}{}\r\n",
            self.status,
            self.why.len() + 1,
            self.lines,
        );
        if self.method != Method::Head {
            text.push_str(self.why);
            text.push('\n');
        }
        text.into_bytes()
    }
}
