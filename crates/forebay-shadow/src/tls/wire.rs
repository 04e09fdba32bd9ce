//! A client's connection that is read from and written to without waiting, in cleartext or over TLS.
//!
//! [`crate::redis`] and [`crate::postgres`] move bytes in turns: they wait until something can be
//! moved, and then move what goes without waiting. Over TLS two things lie between the socket and
//! them: what was decrypted and not taken yet, for which [`Wire::ready`] does not wait, and what was
//! encrypted and not sent yet, which [`Flow::flush_now`] sends on ([`Wire::is_flushed`]).

use std::io::{self, IoSlice, Read as _, Write as _};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::Interest;
use tokio_rustls::rustls::{ProtocolVersion, ServerConnection};
use tokio_rustls::server::TlsStream;

use crate::stream::Stream;

/// How long a client may take for what is encrypted and not sent yet, and for the end of TLS, which
/// tells it that nothing was cut off.
const CLOSE_BOUND: Duration = Duration::from_secs(5);

/// What one record holds.
const RECORD_BYTES: usize = 16 << 10;
/// Records under one key of TLS 1.2: below 2^24, which is as many as AES-GCM may encrypt.
const RECORDS_MAX: u64 = (1 << 24) - (1 << 16);

/// Bytes that go either way without waiting; what would have to wait is an error of the kind
/// [`io::ErrorKind::WouldBlock`].
pub(crate) trait Flow {
    /// Reads some bytes; none at the end.
    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Takes some of the bytes to send them.
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Sends on what was taken and lies here still, as far as that goes.
    fn flush_now(&mut self) -> io::Result<()>;
}

impl Flow for &Stream {
    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Stream::read_now(self, buffer)
    }

    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stream = *self;
        stream.try_io(Interest::WRITABLE, || {
            rustix::net::send(stream, bytes, SendFlags::NOSIGNAL).map_err(Into::into)
        })
    }

    fn flush_now(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client's connection.
#[derive(Debug)]
pub(crate) enum Wire {
    /// In cleartext.
    Plain(Stream),
    /// Over TLS.
    Tls(Box<Session>),
}

impl Wire {
    /// A connection whose two sides have agreed.
    ///
    /// # Errors
    /// When what came behind the agreement is not TLS.
    pub(crate) fn agreed(stream: TlsStream<Stream>) -> io::Result<Self> {
        let (stream, session) = stream.into_inner();
        let mut session = Session {
            stream,
            session,
            unread: 0,
            is_over: false,
            broken: None,
            records: 0,
        };
        // The client's first words may have come with the end of the handshake.
        session.process()?;
        Ok(Self::Tls(Box::new(session)))
    }

    /// Others cannot read it.
    pub(crate) const fn is_secure(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// All that was taken is sent.
    pub(crate) fn is_flushed(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(session) => !session.session.wants_write(),
        }
    }

    /// Waits until it can be read from or written to, or both.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.ready(interest).await,
            Self::Tls(session) => session.ready(interest).await,
        }
    }

    /// Ready when it can be read from, or when that would say that it cannot any more.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => stream.poll_read_ready(context),
            Self::Tls(session) if session.has_unread() => Poll::Ready(Ok(())),
            Self::Tls(session) => session.stream.poll_read_ready(context),
        }
    }

    /// Ready when it can be written to.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => stream.poll_write_ready(context),
            Self::Tls(session) => session.stream.poll_write_ready(context),
        }
    }

    /// Sends all of the bytes, however long that takes.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match (&mut *self).write_now(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready(Interest::WRITABLE).await?;
                }
                Err(error) => return Err(error),
            }
        }
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        (&mut *self).flush_now()?;
        while !self.is_flushed() {
            self.ready(Interest::WRITABLE).await?;
            (&mut *self).flush_now()?;
        }
        Ok(())
    }

    /// Tells a client of TLS that this is the end, and not that the connection was cut. In cleartext
    /// the end of the connection says so.
    pub(crate) async fn close(&mut self) {
        let Self::Tls(session) = self else { return };
        session.session.send_close_notify();
        match tokio::time::timeout(CLOSE_BOUND, self.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a client does not hear the end of TLS"),
            Err(_) => tracing::debug!("a client does not take the end of TLS"),
        }
    }
}

impl Flow for &mut Wire {
    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(stream) => stream.read_now(buffer),
            Wire::Tls(session) => session.read_now(buffer),
        }
    }

    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(stream) => (&*stream).write_now(bytes),
            Wire::Tls(session) => session.write_now(bytes),
        }
    }

    fn flush_now(&mut self) -> io::Result<()> {
        match self {
            Wire::Plain(_) => Ok(()),
            Wire::Tls(session) => session.send().map(drop),
        }
    }
}

/// TLS over a connection.
#[derive(Debug)]
pub(crate) struct Session {
    stream: Stream,
    session: ServerConnection,
    /// Bytes that are decrypted and were not read yet.
    unread: usize,
    /// Nothing comes any more.
    is_over: bool,
    /// What was wrong with what came behind bytes that are good.
    broken: Option<io::Error>,
    /// Records that were sent, at most.
    records: u64,
}

impl Session {
    async fn ready(&self, interest: Interest) -> io::Result<()> {
        if interest.is_readable() && self.has_unread() {
            return Ok(());
        }
        self.stream.ready(interest).await
    }

    /// There is something to read for which the socket need not be waited for.
    const fn has_unread(&self) -> bool {
        self.unread > 0 || self.is_over || self.broken.is_some()
    }

    /// Reads until the buffer is full or nothing more has come: a record is smaller than a buffer.
    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut length = 0;
        if let Some(error) = self.broken.take() {
            self.is_over = true;
            return Err(error);
        }
        while let Some(room) = buffer.get_mut(length..).filter(|room| !room.is_empty()) {
            let read = match self.session.reader().read(room) {
                Ok(0) => {
                    self.is_over = true;
                    break;
                }
                Ok(read) => {
                    self.unread = self.unread.saturating_sub(read);
                    length += read;
                    continue;
                }
                // Many clients end the connection without the end of TLS. What is spoken here says by
                // itself where a message ends, so that nothing cut off is taken for whole.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.is_over = true;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.receive(),
                Err(error) => Err(error),
            };
            match read {
                Ok(()) => {}
                Err(error) if length > 0 && error.kind() != io::ErrorKind::WouldBlock => {
                    self.broken = Some(error);
                    break;
                }
                Err(_) if length > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(length)
    }

    /// Takes in what has come.
    fn receive(&mut self) -> io::Result<()> {
        self.session.read_tls(&mut Socket(&self.stream))?;
        self.process()
    }

    fn process(&mut self) -> io::Result<()> {
        match self.session.process_new_packets() {
            Ok(state) => {
                self.unread = state.plaintext_bytes_to_read();
                self.is_over |= state.peer_has_closed();
                Ok(())
            }
            Err(error) => {
                // The client is told what it did, if it listens.
                if let Err(error) = self.send() {
                    tracing::debug!(%error, "a client does not hear what is wrong with its TLS");
                }
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }

    /// Encrypts some of the bytes, once all before them are sent.
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.send()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.count(bytes.len())?;
        let taken = self.session.writer().write(bytes)?;
        self.send()?;
        Ok(taken)
    }

    /// Counts records that are sent under one key. TLS 1.3 changes its keys; with 1.2 rustls drops what
    /// comes after the last one that is safe, without a word, so that the connection ends before that.
    fn count(&mut self, bytes: usize) -> io::Result<()> {
        self.records += 1 + u64::try_from(bytes / RECORD_BYTES).unwrap_or(u64::MAX);
        let is_old = self.session.protocol_version() == Some(ProtocolVersion::TLSv1_2);
        if is_old && self.records >= RECORDS_MAX {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the connection has sent as much as is safe under one key of TLS 1.2; connect anew, or \
                 use TLS 1.3",
            ));
        }
        Ok(())
    }

    /// Sends what is encrypted; whether that is all.
    fn send(&mut self) -> io::Result<bool> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Socket(&self.stream)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// A socket as TLS moves its bytes: without waiting.
struct Socket<'a>(&'a Stream);

impl io::Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_now(buffer)
    }
}

impl io::Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_now(bytes)
    }

    fn write_vectored(&mut self, records: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_io(Interest::WRITABLE, || {
            let mut none = SendAncillaryBuffer::default();
            rustix::net::sendmsg(self.0, records, &mut none, SendFlags::NOSIGNAL)
                .map_err(Into::into)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
