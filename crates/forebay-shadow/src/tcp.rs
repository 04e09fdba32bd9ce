//! `tcp`: connections are passed on byte by byte.
//!
//! Guarantee: a new connection reaches the primary, or waits for the next one; an established one
//! lives through a planned hand-over, and ends when its instance is lost. Nothing that was passed
//! on is ever sent again.
//!
//! Small pieces are copied, since two system calls are cheaper than the four of splicing; a
//! direction in which a full buffer comes several times in a row is spliced through a pipe, so
//! that bulk never enters this process.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forebay_core::shadow::promotion::Slot;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;

use crate::flights::Ticket;
use crate::stream::Stream;
use crate::switchboard::{Assigned, Switchboard, count};

/// Bytes that are copied at once.
const BUFFER_BYTES: usize = 16 * 1024;
/// Full buffers in a row after which a direction is spliced.
const BULK: u32 = 4;
/// Bytes that a pipe takes; the kernel's limit for a process without privilege is 1 MiB.
const PIPE_BYTES: usize = 256 * 1024;

/// Serves one client until one side ends.
///
/// # Errors
/// When no instance could serve, or a connection broke.
pub(crate) async fn serve(
    board: &Arc<Switchboard>,
    client: Stream,
    patience: Duration,
) -> io::Result<()> {
    let (instance, assigned) = connect(board, patience).await?;
    count(&board.counters.requests);
    relay(board, &client, &instance, assigned).await
}

/// Passes on both ways until both sides ended, or the instance is lost.
pub(crate) async fn relay(
    board: &Switchboard,
    client: &Stream,
    instance: &Stream,
    assigned: Assigned,
) -> io::Result<()> {
    let mut lost = board.subscribe();
    let gone = async {
        // A hand-over leaves established connections alone; a loss does not.
        lost.wait_for(|routing| routing.is_lost(assigned))
            .await
            .ok();
    };
    let relayed = async {
        let waiting = Waiting::new(board, assigned.slot);
        let asked = || waiting.asked();
        let heard = || waiting.heard();
        let up = one_way(client, instance, &asked);
        let down = one_way(instance, client, &heard);
        let (up, down) = tokio::join!(up, down);
        up.and(down)
    };
    tokio::select! {
        relayed = relayed => relayed,
        () = gone => {
            count(&board.counters.unknown);
            Err(io::Error::new(io::ErrorKind::ConnectionAborted, "its instance was lost"))
        }
    }
}

/// Connects to the primary; when it refuses, to the one after it.
pub(crate) async fn connect(
    board: &Switchboard,
    patience: Duration,
) -> io::Result<(Stream, Assigned)> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let assigned = match board.assigned(left).await {
            Ok(assigned) => assigned,
            Err(unserved) => {
                count(&board.counters.failed);
                return Err(io::Error::new(io::ErrorKind::TimedOut, unserved));
            }
        };
        let connecting = Stream::connect(board.address(assigned.slot));
        let refusal = tokio::select! {
            connected = connecting => match connected {
                Ok(stream) => return Ok((stream, assigned)),
                Err(error) => error,
            },
            () = board.replaced(assigned) => continue,
            () = tokio::time::sleep_until(deadline) => io::ErrorKind::TimedOut.into(),
        };
        board.trouble();
        if tokio::time::Instant::now() >= deadline {
            count(&board.counters.failed);
            return Err(refusal);
        }
        // Whoever takes over is told by the board; one that only restarts is tried again.
        tokio::select! {
            () = board.replaced(assigned) => {}
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// How soon an instance that refused is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// A connection that has said something waits until it hears something. Whether that was an answer
/// to it, nobody here knows; that an instance is silent towards all who wait is what counts.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    board: &'a Switchboard,
    slot: Slot,
    route: usize,
    ticket: Mutex<Option<Ticket<'a>>>,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(board: &'a Switchboard, slot: Slot) -> Self {
        Self {
            board,
            slot,
            route: board.flights.route("tcp"),
            ticket: Mutex::new(None),
        }
    }

    pub(crate) fn asked(&self) {
        let mut ticket = self.ticket.lock().unwrap_or_else(PoisonError::into_inner);
        if ticket.is_none() {
            *ticket = Some(self.board.flights.begin(self.slot, self.route));
        }
    }

    pub(crate) fn heard(&self) {
        let mut ticket = self.ticket.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ticket) = ticket.take() {
            ticket.heard();
            ticket.answered();
        }
    }
}

/// Passes on what comes from one side until it ends, then ends the other one's.
async fn one_way(from: &Stream, to: &Stream, seen: &(impl Fn() + Sync)) -> io::Result<()> {
    let passed = pass(from, to, seen).await;
    // Half-closed connections are a way to speak: the other direction goes on.
    let ended = match to {
        Stream::Tcp(stream) => rustix::net::shutdown(stream, rustix::net::Shutdown::Write),
        Stream::Unix(stream) => rustix::net::shutdown(stream, rustix::net::Shutdown::Write),
    };
    match (passed, ended) {
        (Ok(()), Err(rustix::io::Errno::NOTCONN)) => Ok(()),
        (Ok(()), ended) => ended.map_err(Into::into),
        (Err(error), _) => Err(error),
    }
}

async fn pass(from: &Stream, to: &Stream, seen: &(impl Fn() + Sync)) -> io::Result<()> {
    let mut full = 0;
    loop {
        from.ready(Interest::READABLE).await?;
        match piece(from, to)? {
            Piece::None => {}
            Piece::End => return Ok(()),
            Piece::Passed(length) => {
                seen();
                full = if length == BUFFER_BYTES { full + 1 } else { 0 };
            }
            Piece::Rest(rest) => {
                seen();
                write_all(to, &rest).await?;
            }
        }
        if full == BULK {
            return bulk(from, to, seen).await;
        }
    }
}

enum Piece {
    None,
    End,
    Passed(usize),
    /// What the other side did not take yet.
    Rest(Vec<u8>),
}

thread_local! {
    /// One for all connections of a thread: an idle one holds no buffer.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_BYTES]);
}

/// Reads once and writes what was read, as far as it goes without waiting.
fn piece(from: &Stream, to: &Stream) -> io::Result<Piece> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut read = None;
        let drained = from.try_io(Interest::READABLE, || {
            let length = rustix::io::read(from, buffer.as_mut_slice())?;
            read = Some(length);
            // Less than there was room for is all that there was: to be told so by another call
            // would cost as much as the message.
            if length < BUFFER_BYTES {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        let bytes = match (read, drained) {
            (Some(0), _) => return Ok(Piece::End),
            (Some(length), _) => buffer.get(..length).unwrap_or_default(),
            (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            (None, _) => return Ok(Piece::None),
        };
        let written = write_some(to, bytes)?;
        Ok(match bytes.get(written..) {
            None | Some([]) => Piece::Passed(bytes.len()),
            Some(rest) => Piece::Rest(rest.to_vec()),
        })
    })
}

fn write_some(to: &Stream, bytes: &[u8]) -> io::Result<usize> {
    let written = to.try_io(Interest::WRITABLE, || {
        rustix::io::write(to, bytes).map_err(Into::into)
    });
    match written {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        written => written,
    }
}

async fn write_all(to: &Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.ready(Interest::WRITABLE).await?;
        let written = write_some(to, bytes)?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Passes on through a pipe, without the bytes entering this process.
async fn bulk(from: &Stream, to: &Stream, seen: &(impl Fn() + Sync)) -> io::Result<()> {
    let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // A smaller pipe only takes more calls.
    if let Err(error) = fcntl_setpipe_size(&into, PIPE_BYTES) {
        tracing::debug!(%error, "a pipe keeps its size");
    }
    let mut held = 0;
    loop {
        if held == 0 {
            from.ready(Interest::READABLE).await?;
            match from.try_io(Interest::READABLE, || splice_some(from, &into)) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    seen();
                    held = length;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            }
        }
        match to.try_io(Interest::WRITABLE, || splice_out(&out, to, held)) {
            Ok(written) => held -= written.min(held),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                to.ready(Interest::WRITABLE).await?;
            }
            Err(error) => return Err(error),
        }
    }
}

fn splice_some(from: &Stream, into: &OwnedFd) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    Ok(splice(from.as_fd(), None, into, None, PIPE_BYTES, flags)?)
}

fn splice_out(out: &OwnedFd, to: &Stream, length: usize) -> io::Result<usize> {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    Ok(splice(out, None, to.as_fd(), None, length, flags)?)
}
