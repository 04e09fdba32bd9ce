//! Frames over a connection, and how two agents greet each other.
//!
//! Each says first who it is, what it speaks and what its clock says, and hears that of the other before
//! anything else: versions that do not go together, and clocks that are too far apart, are found before
//! anything is asked.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_core::fleet::HostName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::rustls::time_provider::TimeProvider;

use super::error::{Error, Kind, shown};
use super::frame::{self, FrameError, FrameKind, HEAD, MESSAGE_MAX};
use super::messages::Request;
use super::rdma::Transport;

/// The version of what is said after the greeting.
pub(crate) const PROTOCOL: u32 = 1;
/// How far two clocks may be apart.
pub(crate) const CLOCKS_APART_MAX: Duration = Duration::from_secs(300);

const SPARE: usize = 64;

/// What each side says first. Fields may be added, and these stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The version of Forebay.
    pub(super) forebay: String,
    pub(super) protocol: u32,
    pub(super) host: HostName,
    pub(super) clock_unix_ms: u64,
    /// Whoever says so can be asked for [`Request::Rdma`].
    #[serde(default)]
    pub(super) rdma: bool,
    /// Whoever says so can be asked for [`Request::Measure`].
    #[serde(default)]
    pub(super) measures: bool,
}

impl Hello {
    pub(super) fn new(host: HostName, clock: &dyn TimeProvider) -> Self {
        Self {
            forebay: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            host,
            clock_unix_ms: unix_ms(now(clock)),
            rdma: false,
            measures: true,
        }
    }
}

/// A question with the time that there is for it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) within_ms: u64,
    pub(super) request: Request,
    /// What the content comes by that follows, if one does.
    #[serde(default)]
    pub(super) by: Transport,
}

/// What a clock says.
pub(super) fn now(clock: &dyn TimeProvider) -> SystemTime {
    clock.current_time().map_or_else(SystemTime::now, |time| {
        UNIX_EPOCH + Duration::from_secs(time.as_secs())
    })
}

pub(super) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Greets, and judges how one is greeted; how far its clock is ahead, in milliseconds.
///
/// # Errors
/// It speaks another version, says another name than its certificate, has a clock that is too far
/// away, or does not answer as it has to.
pub(super) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    (ours, clock): (Hello, &dyn TimeProvider),
    certified: &HostName,
    peer: &str,
) -> Result<(Hello, i64), Error> {
    const DOING: &str = "greet it";
    let said = send(stream, &ours).await;
    let heard = receive(stream, peer, DOING).await;
    // Whoever refuses a certificate says so and hangs up, on what was said meanwhile as well.
    let theirs: Hello = match (said, heard) {
        (Ok(()), Ok(Some(theirs))) => theirs,
        (_, Err(error)) => return Err(error),
        (Err(error), _) => return Err(Error::io(peer, DOING, &error)),
        (Ok(()), Ok(None)) => return Err(Error::cut(peer, DOING)),
    };
    if theirs.protocol != ours.protocol {
        return Err(Error::new(
            Kind::Version,
            peer,
            format!(
                "it runs Forebay {} and speaks version {} of the fleet's protocol, and this host runs \
                 {} and speaks version {}",
                theirs.forebay, theirs.protocol, ours.forebay, ours.protocol
            ),
            "install the same version of Forebay on both",
        ));
    }
    if theirs.host != *certified {
        return Err(Error::new(
            Kind::WrongHost,
            peer,
            format!(
                "it calls itself {}, and its certificate is of {certified}",
                theirs.host
            ),
            "look whether its files were copied from another host, and have it join by itself",
        ));
    }
    let ahead_ms = apart(theirs.clock_unix_ms, unix_ms(now(clock)))
        .map_err(|what| Error::new(Kind::Clocks, peer, what, SET_CLOCKS))?;
    Ok((theirs, ahead_ms))
}

/// What to do about clocks.
pub(super) const SET_CLOCKS: &str = "set both clocks, by NTP for example";

/// How far their clock is ahead of ours, in milliseconds.
///
/// # Errors
/// Too far, with both.
pub(super) fn apart(theirs_unix_ms: u64, ours_unix_ms: u64) -> Result<i64, String> {
    let apart_ms = theirs_unix_ms.abs_diff(ours_unix_ms);
    if u128::from(apart_ms) > CLOCKS_APART_MAX.as_millis() {
        let at = |unix_ms| shown(UNIX_EPOCH + Duration::from_millis(unix_ms));
        return Err(format!(
            "its clock says {} and the clock of this host {}, {} s apart, where {} s may be",
            at(theirs_unix_ms),
            at(ours_unix_ms),
            apart_ms / 1000,
            CLOCKS_APART_MAX.as_secs()
        ));
    }
    let apart_ms = i64::try_from(apart_ms).unwrap_or(i64::MAX);
    Ok(if theirs_unix_ms < ours_unix_ms {
        -apart_ms
    } else {
        apart_ms
    })
}

/// Why no frame came.
#[derive(Debug)]
pub(super) enum Broken {
    Io(io::Error),
    Frame(FrameError),
}

impl Broken {
    pub(super) fn of(&self, peer: &str, doing: &str) -> Error {
        let error = match self {
            Self::Io(error) => return Error::io(peer, doing, error),
            Self::Frame(error) => error,
        };
        let (kind, remedy) = match error {
            FrameError::TooLong { .. } => (
                Kind::TooLong,
                "install the same version of Forebay on both hosts",
            ),
            FrameError::Kind(_) => (
                Kind::Garbage,
                "install the same version of Forebay on both hosts",
            ),
            FrameError::Malformed(_) | FrameError::Checksum { .. } => (
                Kind::Corrupt,
                "try again; if it comes again, test the memory of both hosts",
            ),
        };
        Error::new(kind, peer, format!("{doing}: {error}"), remedy)
    }
}

/// Where frames of a content go.
pub(super) trait Frames {
    /// Sends a frame, or has it ready to be sent.
    fn put(
        &mut self,
        kind: FrameKind,
        payload: Vec<u8>,
    ) -> impl Future<Output = io::Result<()>> + Send;

    /// Sends what is ready.
    fn finish(&mut self) -> impl Future<Output = io::Result<()>> + Send;
}

impl<W: AsyncWrite + Unpin + Send> Frames for W {
    async fn put(&mut self, kind: FrameKind, payload: Vec<u8>) -> io::Result<()> {
        write(self, kind, &payload).await
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.flush().await
    }
}

/// Writes a frame; not yet flushed.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    writer: &mut W,
    kind: FrameKind,
    payload: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= kind.bytes_max());
    let length = length.ok_or_else(|| {
        let long = format!(
            "a frame of kind {kind:?} would have {} bytes",
            payload.len()
        );
        io::Error::new(io::ErrorKind::InvalidInput, long)
    })?;
    writer.write_all(&frame::head(kind, length)).await?;
    writer.write_all(payload).await
}

/// Reads a frame; nothing where the other side ended the connection before one.
pub(super) async fn read<R: AsyncRead + Unpin>(
    reader: &mut R,
) -> Result<Option<(FrameKind, Vec<u8>)>, Broken> {
    let mut head = [0; HEAD];
    let mut filled = 0;
    while filled < HEAD {
        match reader.read(&mut head[filled..]).await {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(Broken::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => filled += read,
            // Many end without the end of TLS. Every content has an end of its own, so that nothing is
            // taken for whole by that.
            Err(error) if filled == 0 && error.kind() == io::ErrorKind::UnexpectedEof => {
                return Ok(None);
            }
            Err(error) => return Err(Broken::Io(error)),
        }
    }
    let (kind, length) = frame::parse_head(head).map_err(Broken::Frame)?;
    // Bounded by what a frame may be; the spare room is what reading to an end wants.
    let mut payload = Vec::with_capacity(length + SPARE);
    let limit = u64::try_from(length).unwrap_or(u64::MAX);
    let read = (&mut *reader).take(limit).read_to_end(&mut payload).await;
    match read.map_err(Broken::Io)? {
        read if read == length => Ok(Some((kind, payload))),
        _ => Err(Broken::Io(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Sends a message.
pub(super) async fn send<W: AsyncWrite + Unpin>(
    writer: &mut W,
    message: &impl Serialize,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > MESSAGE_MAX {
        let long = format!(
            "a message has {} bytes, where {MESSAGE_MAX} may be",
            text.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, long));
    }
    write(writer, FrameKind::Message, &text).await?;
    writer.flush().await
}

/// Receives a message; nothing where the other side ended the connection before one.
pub(super) async fn receive<T: DeserializeOwned, R: AsyncRead + Unpin>(
    reader: &mut R,
    peer: &str,
    doing: &str,
) -> Result<Option<T>, Error> {
    let frame = read(reader)
        .await
        .map_err(|broken| broken.of(peer, doing))?;
    match frame {
        None => Ok(None),
        Some((FrameKind::Message, text)) => understand(&text, peer, doing).map(Some),
        Some((kind, _)) => Err(Error::new(
            Kind::Garbage,
            peer,
            format!("{doing}: it sent a frame of kind {kind:?} where a message was due"),
            "install the same version of Forebay on both hosts",
        )),
    }
}

/// Reads a message.
pub(super) fn understand<T: DeserializeOwned>(
    text: &[u8],
    peer: &str,
    doing: &str,
) -> Result<T, Error> {
    serde_json::from_slice(text).map_err(|error| {
        Error::new(
            Kind::Garbage,
            peer,
            format!("{doing}: its message is not understood: {error}"),
            "install the same version of Forebay on both hosts",
        )
    })
}
