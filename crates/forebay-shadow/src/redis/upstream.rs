//! A connection to a server, and where bytes wait to be written.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use forebay_core::shadow::promotion::Epoch;
use tokio::time::Instant;

use super::replies::Replies;
use crate::stream::Stream;
use crate::switchboard::{Assigned, Gate, Switchboard, Unserved};
use crate::tls::Flow;

/// Bytes that are read at once.
const READ_BYTES: usize = 64 * 1024;
/// How soon a server that refused is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(5);
/// A buffer that grew larger than this is given back once it is empty.
const KEEP_BYTES: usize = 16 * 1024;

/// Bytes on their way out.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    at: usize,
}

impl Outgoing {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) const fn len(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Writes as much as goes without waiting; how much that was.
    pub(super) fn flush(&mut self, mut stream: impl Flow) -> io::Result<usize> {
        let mut total = 0;
        while let Some(rest) = self.bytes.get(self.at..).filter(|rest| !rest.is_empty()) {
            match stream.write_now(rest) {
                Ok(written) => {
                    self.at += written;
                    total += written;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.at >= READ_BYTES {
                        self.bytes.drain(..self.at);
                        self.at = 0;
                    }
                    return Ok(total);
                }
                Err(error) => return Err(error),
            }
        }
        self.at = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEEP_BYTES {
            self.bytes = Vec::new();
        }
        stream.flush_now()?;
        Ok(total)
    }
}

/// What one look at a stream brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// Nothing for now.
    Nothing,
    /// Something.
    Some,
    /// It has ended.
    End,
}

thread_local! {
    /// One for all connections of a thread: an idle one holds no buffer.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// Reads once, without waiting.
pub(super) fn read(mut stream: impl Flow, mut take: impl FnMut(&[u8])) -> io::Result<Read> {
    BUFFER.with_borrow_mut(|buffer| match stream.read_now(buffer) {
        Ok(0) => Ok(Read::End),
        Ok(length) => {
            take(buffer.get(..length).unwrap_or_default());
            Ok(Read::Some)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Read::Nothing),
        Err(error) => Err(error),
    })
}

/// What a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Everything may be sent to it.
    Primary,
    /// Reads may be.
    Shadow,
}

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) stream: Stream,
    pub(super) assigned: Assigned,
    /// Whether the server is the shadow, which only reads are sent to.
    pub(super) role: Role,
    /// The version of the client's state that it was made with.
    pub(super) version: u64,
    pub(super) out: Outgoing,
    pub(super) replies: Replies,
    /// Replies that answer what the client did not ask.
    pub(super) replay: usize,
    /// It is what the client made of its connection: what the client asks may be sent.
    pub(super) settled: bool,
    /// Bytes that were ever to be sent, and those that were.
    pub(super) queued: u64,
    pub(super) written: u64,
    /// It has ended, or broke; what it said before may still be in `replies`.
    pub(super) ended: bool,
    /// Something came from it.
    pub(super) heard: bool,
}

impl Upstream {
    pub(super) const fn new(stream: Stream, assigned: Assigned, role: Role) -> Self {
        Self {
            stream,
            assigned,
            role,
            version: 0,
            out: Outgoing {
                bytes: Vec::new(),
                at: 0,
            },
            replies: Replies::new(),
            replay: 0,
            settled: true,
            queued: 0,
            written: 0,
            ended: false,
            heard: false,
        }
    }

    /// Queues bytes; where they end among all that are sent.
    pub(super) fn send(&mut self, bytes: &[u8]) -> u64 {
        self.out.push(bytes);
        self.queued += length(bytes);
        self.queued
    }

    pub(super) fn flush(&mut self) {
        match self.out.flush(&self.stream) {
            Ok(written) => self.written += u64::try_from(written).unwrap_or(u64::MAX),
            Err(error) => {
                tracing::debug!(%error, "a server takes nothing more");
                // What it said before is still read, up to the end.
                self.out = Outgoing::default();
            }
        }
    }

    /// Takes in what has come, up to a few buffers.
    pub(super) fn receive(&mut self) {
        const ROUNDS: usize = 4;
        for _ in 0..ROUNDS {
            if self.ended {
                return;
            }
            let replies = &mut self.replies;
            match read(&self.stream, |bytes| replies.push(bytes)) {
                Ok(Read::Some) => self.heard = true,
                Ok(Read::Nothing) => return,
                Ok(Read::End) => self.ended = true,
                Err(error) => {
                    tracing::debug!(%error, "a server's connection broke");
                    self.ended = true;
                }
            }
        }
    }

    /// Takes in all that has come, whether it was told of or not; nothing is read after that.
    pub(super) fn drain(&mut self, bytes_max: usize) {
        let mut buffer = vec![0; READ_BYTES];
        let mut total = 0;
        while !self.ended && total < bytes_max {
            let flags = rustix::net::RecvFlags::DONTWAIT;
            match rustix::net::recv(&self.stream, buffer.as_mut_slice(), flags) {
                Ok((0, _)) | Err(_) => self.ended = true,
                Ok((length, _)) => {
                    total += length;
                    self.replies.push(buffer.get(..length).unwrap_or_default());
                }
            }
        }
        self.ended = true;
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Connects to the primary. One that was just lost is not connected to again while it is open who
/// serves; its successor is at once, so that interrupted requests come before those that wait.
pub(super) async fn dial(
    board: &Switchboard,
    lost: Option<Epoch>,
    patience: Duration,
) -> Result<Upstream, Unserved> {
    let deadline = Instant::now() + patience;
    let mut changes = board.subscribe();
    if lost == Some(board.routing().epoch) {
        // As a rule it is dead, and its successor is there before it is worth asking the dead one.
        board.glance();
        let succeeded = changes.wait_for(|routing| Some(routing.epoch) != lost);
        if let Ok(Err(_)) = tokio::time::timeout(RETRY, succeeded).await {
            return Err(Unserved(patience));
        }
    }
    loop {
        let ready = changes.wait_for(|routing| {
            routing.gate == Gate::Open || lost.is_some_and(|lost| routing.epoch > lost)
        });
        let assigned = match tokio::time::timeout_at(deadline, ready).await {
            Ok(Ok(routing)) => Assigned {
                slot: routing.primary,
                epoch: routing.epoch,
            },
            Ok(Err(_)) | Err(_) => return Err(Unserved(patience)),
        };
        let connecting = Stream::connect_bounded(board.address(assigned.slot));
        tokio::select! {
            connected = tokio::time::timeout_at(deadline, connecting) => match connected {
                Ok(Ok(stream)) => return Ok(Upstream::new(stream, assigned, Role::Primary)),
                Ok(Err(error)) => tracing::debug!(%error, "a server refused"),
                Err(_) => return Err(Unserved(patience)),
            },
            () = board.replaced(assigned) => continue,
        }
        board.trouble();
        if Instant::now() >= deadline {
            return Err(Unserved(patience));
        }
        tokio::select! {
            () = board.replaced(assigned) => {}
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}
