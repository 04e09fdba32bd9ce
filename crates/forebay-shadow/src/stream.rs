//! One byte stream, over TCP or a Unix socket.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, sockopt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// Silence after which the other side of a TCP connection is asked whether it is there, how soon again
/// when it does not answer, and how often: one that vanished is known after two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMES: u32 = 6;
/// How long the other side may leave bytes without acknowledgement, where that is bounded: as long as it
/// may leave such questions.
const VANISHED_BOUND: Duration = Duration::from_secs(
    KEEPALIVE_IDLE.as_secs() + KEEPALIVE_TIMES as u64 * KEEPALIVE_INTERVAL.as_secs(),
);

/// Where a front listens or an instance is reached: `ADDRESS:PORT`, or the path of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// TCP, over IPv4 or IPv6.
    Tcp(SocketAddr),
    /// A Unix socket of type stream.
    Unix(PathBuf),
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no address: use ADDRESS:PORT, [ADDRESS]:PORT for IPv6, or the absolute path of a Unix socket"
)]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.starts_with('/') {
            return Ok(Self::Unix(PathBuf::from(text)));
        }
        let parsed = text.parse().map(Self::Tcp);
        parsed.map_err(|_| AddressError(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP, without delay of small segments.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Connects.
    ///
    /// # Errors
    /// What the system says.
    pub async fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Self::prepared(TcpStream::connect(address).await?),
            Address::Unix(path) => UnixStream::connect(path).await.map(Self::Unix),
        }
    }

    /// A TCP connection, of either side: small segments are not delayed, and the other side is asked
    /// whether it is there when nothing was heard of it for long.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn prepared(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_TIMES)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        Ok(Self::Tcp(stream))
    }

    /// Connects, with the bound of [`Self::bound_vanished`].
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn connect_bounded(address: &Address) -> io::Result<Self> {
        let stream = Self::connect(address).await?;
        stream.bound_vanished()?;
        Ok(stream)
    }

    /// Has a connection end in two minutes also when bytes are under way to one that vanished, which the
    /// kernel would send again for a quarter of an hour.
    ///
    /// The bound is one, too, on how long somebody who is there may take nothing of what waits for it: the
    /// kernel (seen of 6.18) counts that alike, though it is acknowledged. So it is for protocols in which
    /// nobody may pause for so long anyway, and not for bytes of any kind or a COPY into a pager.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn bound_vanished(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                let bound = u32::try_from(VANISHED_BOUND.as_millis()).unwrap_or(u32::MAX);
                Ok(sockopt::set_tcp_user_timeout(stream, bound)?)
            }
            // Whoever is on this host does not vanish.
            Self::Unix(_) => Ok(()),
        }
    }

    /// Waits until it can be read from or written to, or both.
    ///
    /// # Errors
    /// What the system says.
    pub async fn ready(&self, interest: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.ready(interest).await.map(drop),
            Self::Unix(stream) => stream.ready(interest).await.map(drop),
        }
    }

    /// Ready when it can be read from.
    ///
    /// # Errors
    /// What the system says.
    pub fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(context),
            Self::Unix(stream) => stream.poll_read_ready(context),
        }
    }

    /// Ready when it can be written to.
    ///
    /// # Errors
    /// What the system says.
    pub fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(context),
            Self::Unix(stream) => stream.poll_write_ready(context),
        }
    }

    /// Tries an operation on the descriptor; when it would block, readiness is waited for anew.
    ///
    /// # Errors
    /// What the operation says.
    pub fn try_io<T>(
        &self,
        interest: Interest,
        operation: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Self::Tcp(stream) => stream.try_io(interest, operation),
            Self::Unix(stream) => stream.try_io(interest, operation),
        }
    }

    /// Reads once, without waiting; nothing at the end.
    ///
    /// # Errors
    /// What the system says, which is [`io::ErrorKind::WouldBlock`] where there is nothing yet.
    pub(crate) fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len();
        let mut read = None;
        let drained = self.try_io(Interest::READABLE, || {
            let (length, _) = rustix::net::recv(self, buffer, RecvFlags::empty())?;
            read = Some(length);
            // Less than there was room for is all that there was: to be told so by another call
            // would cost as much as the message.
            if length < room {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match (read, drained) {
            (Some(length), _) => Ok(length),
            (None, Err(error)) => Err(error),
            (None, Ok(())) => Ok(0),
        }
    }

    /// The port that this end of a TCP connection has.
    #[must_use]
    pub fn local_port(&self) -> Option<u16> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok().map(|address| address.port()),
            Self::Unix(_) => None,
        }
    }
}

/// Whether a connection failed because nobody listens there. Whoever has no room for one, or cannot
/// make one on this side, says nothing of the instance.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), ConnectionRefused | NotFound)
}

impl Stream {
    /// Whether the connection broke, in both ways: the kernel tells that apart from bytes and ends
    /// only where nothing else is asked for.
    pub(crate) fn is_hung_up(&self) -> bool {
        let mut asked = [PollFd::new(self, PollFlags::empty())];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut asked, Some(&at_once)), Ok(1..))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes without acknowledgement were sent again for a quarter of an hour to somebody who vanished,
    /// whatever keepalive said.
    #[tokio::test]
    async fn both_ends_are_known_to_have_vanished_in_bounded_time() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let (instance, client) = tokio::join!(Stream::connect_bounded(&address), listener.accept());
        let client = Stream::prepared(client.unwrap().0).unwrap();
        client.bound_vanished().unwrap();
        for stream in [instance.unwrap(), client] {
            let bound = sockopt::tcp_user_timeout(&stream).unwrap();
            assert_eq!(Duration::from_millis(bound.into()), VANISHED_BOUND);
            assert!(sockopt::socket_keepalive(&stream).unwrap());
        }
    }
}
