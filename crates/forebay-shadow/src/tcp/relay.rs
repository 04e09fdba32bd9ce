//! Passes bytes on, both ways, until both sides ended or the instance is lost.
//!
//! Problem: a small request costs some microseconds of system calls, and as much again is quickly
//! lost around them.
//!
//! Approach: both ways are polled by hand in one task, which is woken for what it waits for alone. A way
//! reads once when there is something and writes once; a read that does not fill the buffer
//! has taken all that there was, so nobody asks a second time. A way in which a full buffer came several times
//! in a row is spliced through a pipe, so that bulk never enters this process.
//!
//! Properties: a request and its answer take two waits, two reads and two writes; an idle connection
//! holds no buffer; a side that ends is ended towards the other one, and the other way goes on.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::task::{Context, Poll, Waker, ready};

use forebay_core::shadow::promotion::Slot;
use rustix::net::{SendFlags, Shutdown};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;

use crate::flights::Ticket;
use crate::stream::Stream;
use crate::switchboard::{Assigned, Switchboard, count};

/// Bytes that are copied at once.
const BUFFER_BYTES: usize = 16 * 1024;
/// Full buffers in a row after which a way is spliced.
const BULK: u32 = 4;
/// Bytes that a pipe takes; the kernel's limit for a process without privilege is 1 MiB.
const PIPE_BYTES: usize = 256 * 1024;

/// Passes on both ways until both sides ended, or the instance is lost.
///
/// # Errors
/// When a side broke, or the instance is lost.
pub(crate) async fn relay(
    board: &Switchboard,
    client: &Stream,
    instance: &Stream,
    assigned: Assigned,
) -> io::Result<()> {
    let mut changes = board.subscribe();
    let mut lost = board.subscribe();
    let mut gone = pin!(async move {
        // A hand-over leaves established connections alone; a loss does not.
        lost.wait_for(|routing| routing.is_lost(assigned))
            .await
            .ok();
    });
    let mut waiting = Waiting::new(board, assigned.slot);
    let mut up = Way::default();
    let mut down = Way::default();
    let mut waker: Option<Waker> = None;
    poll_fn(|context| {
        // Most wakes are for bytes: who serves is looked at only when that changed.
        let known = waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(context.waker()));
        if !known || changes.has_changed().unwrap_or(true) {
            changes.mark_unchanged();
            waker = Some(context.waker().clone());
            if gone.as_mut().poll(context).is_ready() {
                count(&board.counters.unknown);
                let error = io::ErrorKind::ConnectionAborted;
                return Poll::Ready(Err(io::Error::new(error, "its instance was lost")));
            }
        }
        let upwards = up.poll(context, client, instance, &mut || waiting.asked());
        let downwards = down.poll(context, instance, client, &mut || waiting.heard());
        // A side that was reset hears nothing more: the other one need not say it.
        let is_over = (up.error.is_some() && downwards.is_pending() && client.is_hung_up())
            || (down.error.is_some() && upwards.is_pending() && instance.is_hung_up());
        if is_over {
            return Poll::Ready(up.result().and(down.result()));
        }
        ready!(upwards);
        ready!(downwards);
        Poll::Ready(up.result().and(down.result()))
    })
    .await
}

/// A connection that has said something waits until it hears something. Whether that was an answer
/// to it, nobody here knows; that an instance is silent towards all who wait is what counts.
pub(crate) struct Waiting<'a> {
    board: &'a Switchboard,
    slot: Slot,
    route: usize,
    ticket: Option<Ticket<'a>>,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(board: &'a Switchboard, slot: Slot) -> Self {
        Self {
            board,
            slot,
            route: board.flights.route("tcp"),
            ticket: None,
        }
    }

    pub(crate) fn asked(&mut self) {
        if self.ticket.is_none() {
            self.ticket = Some(self.board.flights.begin(self.slot, self.route));
        }
    }

    pub(crate) fn heard(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            ticket.complete();
        }
    }
}

/// From one side to the other.
#[derive(Debug, Default)]
struct Way {
    state: State,
    /// Full buffers in a row until now.
    full: u32,
    error: Option<io::Error>,
}

#[derive(Debug, Default)]
enum State {
    /// What comes is copied.
    #[default]
    Copying,
    /// The other side did not take all of a piece yet.
    Rest {
        bytes: Vec<u8>,
        written: usize,
    },
    Splicing(Pipe),
    Ended,
}

#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    held: usize,
}

impl Way {
    /// Passes on what there is; ready once this way has ended.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &Stream,
        to: &Stream,
        seen: &mut impl FnMut(),
    ) -> Poll<()> {
        if matches!(self.state, State::Ended) {
            return Poll::Ready(());
        }
        let passed = ready!(self.pass(context, from, to, seen));
        self.state = State::Ended;
        // Half-closed connections are a way to speak: the other way goes on.
        let ended = rustix::net::shutdown(to, Shutdown::Write);
        self.error = match (passed, ended) {
            (Ok(()), Ok(()) | Err(rustix::io::Errno::NOTCONN)) => None,
            (Ok(()), Err(error)) => Some(error.into()),
            (Err(error), _) => Some(error),
        };
        Poll::Ready(())
    }

    fn result(&mut self) -> io::Result<()> {
        self.error.take().map_or(Ok(()), Err)
    }

    /// Ready when nothing more comes.
    fn pass(
        &mut self,
        context: &mut Context<'_>,
        from: &Stream,
        to: &Stream,
        seen: &mut impl FnMut(),
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Copying => {
                    ready!(from.poll_read_ready(context))?;
                    match piece(from, to)? {
                        Piece::None => {}
                        Piece::End => return Poll::Ready(Ok(())),
                        Piece::Passed(length) => {
                            seen();
                            self.full = if length == BUFFER_BYTES {
                                self.full + 1
                            } else {
                                0
                            };
                            if self.full == BULK {
                                match Pipe::new() {
                                    Ok(pipe) => self.state = State::Splicing(pipe),
                                    // It is not tried again before the next pause.
                                    Err(error) => tracing::debug!(%error, "bulk is copied"),
                                }
                            }
                        }
                        Piece::Rest(bytes) => {
                            seen();
                            self.state = State::Rest { bytes, written: 0 };
                        }
                    }
                }
                State::Rest { bytes, written } => {
                    ready!(to.poll_write_ready(context))?;
                    *written += write_some(to, bytes.get(*written..).unwrap_or_default())?;
                    if *written >= bytes.len() {
                        self.state = State::Copying;
                    }
                }
                State::Splicing(pipe) => {
                    if ready!(pipe.poll(context, from, to, seen))? == Spliced::End {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
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
        let bytes = match from.read_now(buffer) {
            Ok(0) => return Ok(Piece::End),
            Ok(length) => buffer.get(..length).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Piece::None),
            Err(error) => return Err(error),
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
        rustix::net::send(to, bytes, SendFlags::NOSIGNAL).map_err(Into::into)
    });
    match written {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        written => written,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spliced {
    Some,
    End,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A smaller pipe only takes more calls.
        if let Err(error) = fcntl_setpipe_size(&into, PIPE_BYTES) {
            tracing::debug!(%error, "a pipe keeps its size");
        }
        Ok(Self { out, into, held: 0 })
    }

    /// Passes on through the pipe, without the bytes entering this process.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &Stream,
        to: &Stream,
        seen: &mut impl FnMut(),
    ) -> Poll<io::Result<Spliced>> {
        if self.held == 0 {
            ready!(from.poll_read_ready(context))?;
            match from.try_io(Interest::READABLE, || self.take(from)) {
                Ok(0) => return Poll::Ready(Ok(Spliced::End)),
                Ok(length) => {
                    seen();
                    self.held = length;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Ok(Spliced::Some));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        ready!(to.poll_write_ready(context))?;
        match to.try_io(Interest::WRITABLE, || self.give(to)) {
            Ok(written) => self.held -= written.min(self.held),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(Spliced::Some))
    }

    fn take(&self, from: &Stream) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        Ok(splice(
            from.as_fd(),
            None,
            &self.into,
            None,
            PIPE_BYTES,
            flags,
        )?)
    }

    fn give(&self, to: &Stream) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        Ok(splice(&self.out, None, to.as_fd(), None, self.held, flags)?)
    }
}
