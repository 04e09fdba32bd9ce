//! Reading and writing of one connection, without a buffer for one that is idle.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::stream::Stream;

/// Bytes that are read at once.
pub(crate) const READ_BYTES: usize = 64 * 1024;
/// Buffers that a thread keeps for its next requests.
const BUFFERS_MAX: usize = 64;
/// A larger buffer is given back.
const BUFFER_KEPT: usize = 128 * 1024;

thread_local! {
    /// What was read lies here until it is known that there was something.
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer.
pub(crate) fn buffer() -> Vec<u8> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// A buffer that is not needed any more.
pub(crate) fn give_back(mut buffer: Vec<u8>) {
    buffer.clear();
    BUFFERS.with_borrow_mut(|buffers| {
        if buffers.len() < BUFFERS_MAX && buffer.capacity() <= BUFFER_KEPT {
            buffers.push(buffer);
        }
    });
}

/// Appends what can be read; nothing at the end.
pub(crate) fn poll_read(
    stream: &mut (impl AsyncRead + Unpin),
    context: &mut Context<'_>,
    buffer: &mut Vec<u8>,
) -> Poll<io::Result<usize>> {
    READ.with_borrow_mut(|place| {
        let mut read = ReadBuf::new(place);
        ready!(Pin::new(stream).poll_read(context, &mut read))?;
        buffer.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
}

/// Writes some of the bytes; never none.
pub(crate) fn poll_write(
    stream: &mut (impl AsyncWrite + Unpin),
    context: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(stream).poll_write(context, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}

/// Appends what lies in the kernel now, whatever is known of it here; nothing at the end.
///
/// # Errors
/// What the system says, which is [`io::ErrorKind::WouldBlock`] where nothing lies there.
pub(crate) fn read_now(stream: &Stream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    READ.with_borrow_mut(|place| {
        let (length, _) = rustix::net::recv(stream, place.as_mut_slice(), RecvFlags::DONTWAIT)?;
        buffer.extend_from_slice(place.get(..length).unwrap_or_default());
        Ok(length)
    })
}

/// How long the other side of a connection may take. One timer serves all waits of a connection:
/// it is set anew when it is found to be early, not with every byte.
#[derive(Debug)]
pub(crate) struct Stall {
    deadline: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    pub(crate) fn new() -> Self {
        Self {
            deadline: Instant::now(),
            sleep: None,
        }
    }

    /// Something has to happen within a time from now.
    pub(crate) fn expect(&mut self, within: Duration) {
        self.deadline = Instant::now() + within;
    }

    /// Ready when it did not.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline;
        let new = || Box::pin(tokio::time::sleep_until(deadline));
        let sleep = self.sleep.get_or_insert_with(new);
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(context));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

/// Writes all of the bytes, as long as some are taken within a time.
///
/// # Errors
/// What the system says, or that it took too long.
pub(crate) async fn write_all(
    stream: &mut (impl AsyncWrite + Unpin),
    stall: &mut Stall,
    within: Duration,
    bytes: &[u8],
) -> io::Result<()> {
    let mut rest = bytes;
    stall.expect(within);
    poll_fn(|context| {
        while !rest.is_empty() {
            match poll_write(stream, context, rest)? {
                Poll::Ready(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    stall.expect(within);
                }
                Poll::Pending => return late(stall, context),
            }
        }
        match Pin::new(&mut *stream).poll_flush(context) {
            Poll::Pending => late(stall, context),
            flushed => flushed,
        }
    })
    .await
}

/// An error once the other side took too long.
pub(crate) fn late<T>(stall: &mut Stall, context: &mut Context<'_>) -> Poll<io::Result<T>> {
    stall
        .poll(context)
        .map(|()| Err(io::ErrorKind::TimedOut.into()))
}
