//! What a client speaks over: a connection of its own, or one stream among others of HTTP/2.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;

use super::half::Half;
use crate::stream::Stream;

/// A client's end of a conversation in the words of HTTP/1.1.
#[derive(Debug)]
pub(crate) enum Link {
    /// A connection in cleartext.
    Plain(Stream),
    /// A connection over TLS.
    Tls(Box<TlsStream<Stream>>),
    /// A stream of HTTP/2, for one request.
    Half(Box<Half>),
}

impl Link {
    /// The connection, where its bytes are those of the conversation.
    pub(crate) const fn plain(&self) -> Option<&Stream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(_) | Self::Half(_) => None,
        }
    }

    /// Others cannot read it.
    pub(crate) fn is_secure(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(_) => true,
            Self::Half(half) => half.is_secure,
        }
    }

    /// It is for one request.
    pub(crate) const fn is_half(&self) -> bool {
        matches!(self, Self::Half(_))
    }

    /// Ready once nobody is there any more to hear an answer. A client that has only ended its own
    /// direction is there.
    pub(crate) fn poll_gone(
        &mut self,
        watch: &mut Watch,
        context: &mut Context<'_>,
    ) -> Poll<io::Error> {
        match self {
            Self::Plain(stream) => watch.poll_hung_up(stream, context),
            Self::Tls(stream) => watch.poll_hung_up(stream.get_ref().0, context),
            Self::Half(half) => half.poll_gone(context),
        }
    }

    /// Ends it in a way that cannot be taken for the end of an answer.
    pub(crate) fn reset(&self) {
        let stream = match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
            // A stream that is dropped before its end is reset.
            Self::Half(_) => return,
        };
        let reset = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
        if let Err(error) = reset {
            tracing::debug!(%error, "a connection cannot be reset");
        }
    }
}

/// How often a client is looked after that has sent more than is due, or has ended its direction.
const HUNG_UP_POLL: Duration = Duration::from_millis(100);

/// Looks after a client that waits for an answer.
#[derive(Debug, Default)]
pub(crate) struct Watch(Option<Pin<Box<Sleep>>>);

impl Watch {
    /// The kernel tells of bytes, of an end and of a break alike, and only the last one is asked for:
    /// so this costs a system call only where something came while nothing was due. Bytes that lie
    /// unread, and an end, stay, and nobody would be woken for a break after them: there it is looked
    /// for again and again.
    fn poll_hung_up(&mut self, stream: &Stream, context: &mut Context<'_>) -> Poll<io::Error> {
        if let Err(error) = ready!(stream.poll_read_ready(context)) {
            return Poll::Ready(error);
        }
        loop {
            if stream.is_hung_up() {
                return Poll::Ready(io::ErrorKind::ConnectionReset.into());
            }
            let new = || Box::pin(tokio::time::sleep(HUNG_UP_POLL));
            let sleep = self.0.get_or_insert_with(new);
            ready!(sleep.as_mut().poll(context));
            sleep.as_mut().reset(Instant::now() + HUNG_UP_POLL);
        }
    }
}

impl AsyncRead for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Half(half) => half.poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Half(half) => half.poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
            // What was written is HTTP/2's to send.
            Self::Half(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Half(half) => Poll::Ready(half.finish()),
        }
    }
}
