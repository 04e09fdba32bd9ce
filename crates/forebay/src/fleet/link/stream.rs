//! Contents on their way from one host to another.
//!
//! A content goes in chunks of [`CHUNK_MAX`]. While one is written the next is read, and compressed where
//! [`compression`] says that it pays. Both sides hold two chunks, whatever the length of the content: the
//! receiver takes the next one when it has put the last away, and until then the socket holds the sender
//! up. A content without its end is never taken for whole.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use forebay_core::fleet::compression::{Chooser, Compressed, Sent};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::error::{Error, Kind};
use super::frame::{self, ABORT_MAX, CHUNK_HEAD, CHUNK_MAX, FrameKind, Total};
use super::rdma;
use super::wire::{self, Frames};

/// Room that reading to an end wants beyond it, without which the buffer is moved.
const SPARE: usize = 64;

/// Whether contents are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Compress {
    /// Where that is measured to be faster.
    #[default]
    Measured,
    /// Never: they do not shrink.
    Never,
    /// All that shrink.
    Always,
}

/// How far a content has come; shared with whoever shows it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    bytes: AtomicU64,
    wire_bytes: AtomicU64,
    began: OnceLock<Instant>,
}

impl Progress {
    /// Bytes of content that went over, or came.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes of chunks, as they went over the link, without TLS.
    pub(crate) fn wire_bytes(&self) -> u64 {
        self.wire_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of content per second since it began; none before.
    pub(crate) fn rate(&self) -> Option<f64> {
        let seconds = self.began.get()?.elapsed().as_secs_f64();
        let rate = self.bytes() as f64 / seconds;
        rate.is_finite().then_some(rate)
    }

    fn began(&self) {
        self.began.get_or_init(Instant::now);
    }

    fn add(&self, bytes: usize, wire_bytes: usize) {
        let count = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes.fetch_add(count(bytes), Ordering::Relaxed);
        self.wire_bytes
            .fetch_add(count(wire_bytes), Ordering::Relaxed);
    }
}

/// How a content is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sending<'a> {
    /// Counts on.
    pub(crate) progress: &'a Progress,
    /// Whether it is compressed.
    pub(crate) compress: Compress,
    /// How long one chunk may take to be read or to be written, before it is given up.
    pub(crate) stall: Duration,
    /// How long the other side may take for its answer after the last one.
    pub(crate) answer: Duration,
}

/// A chunk that is ready to be sent.
struct Ready {
    payload: Vec<u8>,
    bytes: usize,
    compressed: Option<Compressed>,
}

/// Sends a content from where it can be read, to its end.
///
/// # Errors
/// When it cannot be read, which the other side is told, or not be written, or stalls.
pub(super) async fn send<W, S>(
    writer: &mut W,
    source: &mut S,
    sending: Sending<'_>,
    peer: &str,
) -> Result<Total, Error>
where
    W: Frames,
    S: AsyncRead + Unpin + ?Sized,
{
    let mut chooser = Chooser::default();
    let mut total = Total::default();
    sending.progress.began();
    let at_once = sending.compress == Compress::Always;
    let mut next = ready(source, at_once, sending.stall, peer).await;
    loop {
        let ready_now = match next {
            Ok(Some(ready)) => ready,
            Ok(None) => break,
            Err(error) => return Err(abort(writer, error, sending.stall).await),
        };
        let compress = match sending.compress {
            Compress::Measured => chooser.compress_next(),
            Compress::Never => false,
            Compress::Always => true,
        };
        let wire_bytes = ready_now.payload.len();
        let write = writer.put(FrameKind::Chunk, ready_now.payload);
        let write = timed(within(sending.stall, "send a chunk", peer, write));
        let read = timed(ready(source, compress, sending.stall, peer));
        let ((written, wire), (read, prepared)) = tokio::join!(write, read);
        written?;
        sending.progress.add(ready_now.bytes, wire_bytes);
        total.bytes += u64::try_from(ready_now.bytes).unwrap_or(u64::MAX);
        total.chunks += 1;
        if let Ok(Some(read)) = &read {
            if let Some(compressed) = read.compressed {
                chooser.compressed(compressed);
            }
            chooser.sent(Sent {
                wire_bytes: u64::try_from(wire_bytes).unwrap_or(u64::MAX),
                wire,
                prepared,
            });
        }
        next = read;
    }
    let ends = async {
        writer.put(FrameKind::End, frame::end(total)).await?;
        writer.finish().await
    };
    within(sending.stall, "send the end of a content", peer, ends).await?;
    Ok(total)
}

fn local(peer: &str, doing: &str, error: &io::Error) -> Error {
    Error::new(
        Kind::Local,
        peer,
        format!("{doing}: {error}"),
        "look at the file or the process that it comes from",
    )
}

/// Tells the other side that there will be no end.
async fn abort<W: Frames>(writer: &mut W, error: Error, bound: Duration) -> Error {
    let mut why = error.what.clone();
    why.truncate(
        (0..=ABORT_MAX)
            .rev()
            .find(|at| why.is_char_boundary(*at))
            .unwrap_or(0),
    );
    let told = timeout(bound, async {
        writer.put(FrameKind::Abort, why.into_bytes()).await?;
        writer.finish().await
    });
    // It would see the end of the connection instead.
    if let Ok(Err(untold)) = told.await {
        tracing::debug!(peer = error.peer, error = %untold, "a content ends without a word");
    }
    error
}

async fn within<T>(
    bound: Duration,
    doing: &str,
    peer: &str,
    what: impl Future<Output = io::Result<T>>,
) -> Result<T, Error> {
    match timeout(bound, what).await {
        Ok(done) => done.map_err(|error| Error::io(peer, doing, &error)),
        Err(_) => Err(Error::slow(peer, doing, bound)),
    }
}

/// Makes the next chunk ready, in time.
async fn ready<S: AsyncRead + Unpin + ?Sized>(
    source: &mut S,
    compress: bool,
    bound: Duration,
    peer: &str,
) -> Result<Option<Ready>, Error> {
    const DOING: &str = "read what is sent";
    match timeout(bound, prepare(source, compress)).await {
        Ok(ready) => ready.map_err(|error| local(peer, DOING, &error)),
        Err(_) => Err(Error::slow(peer, DOING, bound)),
    }
}

async fn timed<T>(what: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    (what.await, began.elapsed())
}

/// Reads a chunk and makes it ready; nothing at the end.
async fn prepare<S: AsyncRead + Unpin + ?Sized>(
    source: &mut S,
    compress: bool,
) -> io::Result<Option<Ready>> {
    let mut buffer = Vec::with_capacity(CHUNK_HEAD + CHUNK_MAX + SPARE);
    buffer.resize(CHUNK_HEAD, 0);
    let limit = u64::try_from(CHUNK_MAX).unwrap_or(u64::MAX);
    let bytes = source.take(limit).read_to_end(&mut buffer).await?;
    if bytes == 0 {
        return Ok(None);
    }
    if !compress {
        return Ok(Some(Ready {
            payload: frame::seal(buffer, false),
            bytes,
            compressed: None,
        }));
    }
    // It takes a millisecond or more, in which others have their turn.
    let (payload, took) = tokio::task::spawn_blocking(move || {
        let began = std::time::Instant::now();
        let payload = frame::seal(buffer, true);
        (payload, began.elapsed())
    })
    .await?;
    let compressed = Compressed {
        bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
        bytes_left: u64::try_from(payload.len() - CHUNK_HEAD).unwrap_or(u64::MAX),
        took,
    };
    Ok(Some(Ready {
        payload,
        bytes,
        compressed: Some(compressed),
    }))
}

/// When something was heard last.
#[derive(Debug)]
pub(super) struct Heard(Mutex<Instant>);

impl Heard {
    pub(super) fn now() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    pub(super) fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn again(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// Where a body stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stands {
    /// Its end has not come.
    Open,
    /// It came whole.
    Ended,
    /// Nothing more can come of it.
    Broken,
}

/// Where the frames of a content come from.
pub(super) enum Source<'a> {
    /// From the connection by which it was announced.
    Link(&'a mut (dyn AsyncRead + Unpin + Send)),
    /// From a stream beside it.
    Rdma(&'a mut rdma::stream::Receiver),
}

impl Source<'_> {
    async fn next(&mut self) -> Result<Option<(FrameKind, Vec<u8>)>, wire::Broken> {
        match self {
            Self::Link(reader) => wire::read(reader).await,
            Self::Rdma(stream) => stream.next().await,
        }
    }
}

/// The bytes that come with a request.
pub(crate) struct Body<'a> {
    source: Source<'a>,
    peer: &'a str,
    heard: &'a Heard,
    expected: Option<u64>,
    stall: Duration,
    came: Total,
    stands: Stands,
    progress: Progress,
}

impl std::fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body")
            .field("peer", &self.peer)
            .field("came", &self.came)
            .field("stands", &self.stands)
            .finish_non_exhaustive()
    }
}

impl<'a> Body<'a> {
    pub(super) fn new(
        source: Source<'a>,
        (peer, heard): (&'a str, &'a Heard),
        comes: Option<Option<u64>>,
        stall: Duration,
    ) -> Self {
        Self {
            source,
            peer,
            heard,
            expected: comes.flatten(),
            stall,
            came: Total::default(),
            stands: if comes.is_some() {
                Stands::Open
            } else {
                Stands::Ended
            },
            progress: Progress::default(),
        }
    }

    /// How far it has come.
    pub(crate) const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Whether the connection can go on after it.
    pub(super) fn is_over(&self) -> bool {
        self.stands == Stands::Ended
    }

    /// The next bytes, [`CHUNK_MAX`] at most, as they were sent; nothing once it has come whole.
    ///
    /// # Errors
    /// When it ends in the middle, is not what was sent, is longer or shorter than was said, or nothing
    /// comes for too long. It is not to be used then.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        match self.stands {
            Stands::Ended => return Ok(None),
            Stands::Broken => return Err(Error::cut(self.peer, "take a content in")),
            Stands::Open => self.progress.began(),
        }
        self.stands = Stands::Broken;
        let next = self.chunk().await?;
        self.heard.again();
        self.stands = if next.is_some() {
            Stands::Open
        } else {
            Stands::Ended
        };
        Ok(next)
    }

    /// Writes all of it; how many bytes.
    ///
    /// # Errors
    /// As [`Self::next`], and when it cannot be written.
    pub(crate) async fn copy_to(
        &mut self,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<u64, Error> {
        const DOING: &str = "keep what comes";
        while let Some(bytes) = self.next().await? {
            let wrote = writer.write_all(&bytes).await;
            wrote.map_err(|error| local(self.peer, DOING, &error))?;
        }
        let flushed = writer.flush().await;
        flushed.map_err(|error| local(self.peer, DOING, &error))?;
        Ok(self.came.bytes)
    }

    async fn chunk(&mut self) -> Result<Option<Vec<u8>>, Error> {
        const DOING: &str = "take a content in";
        let peer = self.peer;
        let frame = timeout(self.stall, self.source.next()).await;
        let frame = frame.map_err(|_| Error::slow(peer, "wait for the next chunk", self.stall))?;
        let (kind, payload) = match frame {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(self.short("the connection ended")),
            Err(broken) => {
                let error = broken.of(peer, DOING);
                return Err(match error.kind {
                    Kind::Cut => self.short("the connection ended"),
                    _ => error,
                });
            }
        };
        let broken = |error| wire::Broken::Frame(error).of(peer, DOING);
        match kind {
            FrameKind::Chunk => {
                let wire_bytes = payload.len();
                let raw = match frame::is_compressed(&payload) {
                    false => frame::parse_chunk(payload),
                    true => tokio::task::spawn_blocking(move || frame::parse_chunk(payload))
                        .await
                        .map_err(|error| local(peer, DOING, &error.into()))?,
                };
                let raw = raw.map_err(broken)?;
                self.came.bytes += u64::try_from(raw.len()).unwrap_or(u64::MAX);
                self.came.chunks += 1;
                if self
                    .expected
                    .is_some_and(|expected| self.came.bytes > expected)
                {
                    return Err(self.short("more came"));
                }
                self.progress.add(raw.len(), wire_bytes);
                Ok(Some(raw))
            }
            FrameKind::End => {
                let sent = frame::parse_end(&payload).map_err(broken)?;
                let whole = self.expected.is_none_or(|expected| expected == sent.bytes);
                match sent == self.came && whole {
                    true => Ok(None),
                    false => Err(self.short("it ended")),
                }
            }
            FrameKind::Abort => Err(Error::new(
                Kind::Cut,
                peer,
                format!(
                    "{DOING}: it gave up after {} bytes: {}",
                    self.came.bytes,
                    String::from_utf8_lossy(&payload)
                ),
                "look at that host, and try again",
            )),
            FrameKind::Message => Err(broken(frame::FrameError::Malformed(
                "a message came in the middle of a content",
            ))),
        }
    }

    fn short(&self, what: &str) -> Error {
        let of = self
            .expected
            .map_or_else(String::new, |all| format!(" of {all}"));
        Error::new(
            Kind::Cut,
            self.peer,
            format!(
                "take a content in: {what} after {}{of} bytes",
                self.came.bytes
            ),
            "look at the other agent's log and at the network, and try again",
        )
    }
}
