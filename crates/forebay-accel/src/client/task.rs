//! Tasks: described, submitted, waited for.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::link::{Job, Part};
use super::memory::Shared;
use super::{Client, Error, Inner, Memory, lock};
use crate::task::{Grid, Scalar};
use crate::wire::{Outcome, Piece, Request, Run, Task as WireTask, Wish, send};

/// A task that is described; it borrows its memory until it is submitted.
#[must_use = "a task does nothing until it is submitted"]
pub struct Task<'a> {
    pub(super) client: &'a Client,
    pub(super) kernel: String,
    pub(super) buffers: Vec<(&'a Arc<Shared>, std::ops::Range<usize>, bool)>,
    pub(super) scalars: Vec<Scalar>,
    pub(super) grid: Grid,
    pub(super) deadline: Option<Duration>,
    pub(super) wish: Wish,
}

impl fmt::Debug for Task<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("kernel", &self.kernel)
            .field("scalars", &self.scalars)
            .finish_non_exhaustive()
    }
}

impl<'a> Task<'a> {
    /// The next buffer of the kernel, which it reads: all of this memory.
    pub fn input(self, memory: &'a Memory) -> Self {
        let all = 0..memory.length();
        self.input_part(memory, all)
    }

    /// As [`input`](Self::input), of a part, in bytes.
    pub fn input_part(mut self, memory: &'a Memory, part: std::ops::Range<usize>) -> Self {
        self.buffers.push((&memory.shared, part, false));
        self
    }

    /// The next buffer of the kernel, which it writes (and perhaps reads): all of this memory.
    pub fn output(self, memory: &'a mut Memory) -> Self {
        let all = 0..memory.length();
        self.output_part(memory, all)
    }

    /// As [`output`](Self::output), of a part, in bytes.
    pub fn output_part(mut self, memory: &'a mut Memory, part: std::ops::Range<usize>) -> Self {
        self.buffers.push((&memory.shared, part, true));
        self
    }

    /// The next number of the kernel.
    pub fn scalar(mut self, scalar: Scalar) -> Self {
        self.scalars.push(scalar);
        self
    }

    /// For how many items a kernel of the app's own runs.
    pub const fn grid(mut self, grid: Grid) -> Self {
        self.grid = grid;
        self
    }

    /// It begins within so long a time, or not at all. One beyond what a clock holds is none.
    pub const fn deadline(mut self, within: Duration) -> Self {
        self.deadline = Some(within);
        self
    }

    /// Where it runs, whatever would be better.
    pub fn place(mut self, wish: Wish) -> Self {
        self.wish = wish;
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// When the broker is gone.
    pub fn submit(self) -> Result<Handle, Error> {
        let mut handles = self.client.submit(vec![self])?;
        let gone = || Error::Lost("no task was submitted".to_owned());
        handles.pop().ok_or_else(gone)
    }

    pub(super) fn into_parts(self, number: u64) -> (WireTask, Job) {
        let pieces = self.buffers.iter().map(|(shared, part, write)| Piece {
            memory: shared.number,
            offset: part.start as u64,
            length: part.len() as u64,
            write: *write,
        });
        let wire = WireTask {
            task: number,
            kernel: self.kernel.clone(),
            buffers: pieces.collect(),
            scalars: self.scalars.clone(),
            grid: self.grid,
            deadline_us: self
                .deadline
                .map(|within| u64::try_from(within.as_micros()).unwrap_or(u64::MAX)),
            place: self.wish,
        };
        let parts = self.buffers.into_iter().map(|(shared, part, write)| {
            shared.busy.fetch_add(1, Ordering::Acquire);
            Part {
                shared: Arc::clone(shared),
                offset: part.start,
                length: part.len(),
                write,
            }
        });
        let job = Job {
            kernel: self.kernel,
            buffers: parts.collect(),
            scalars: self.scalars,
            grid: self.grid,
        };
        (wire, job)
    }
}

/// A task that was submitted. It goes on when this is dropped.
#[must_use = "the result is there once the task was waited for"]
pub struct Handle {
    number: u64,
    ticket: Arc<Ticket>,
    client: Weak<Inner>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// Where the answer to a task is left.
#[derive(Default)]
pub(super) struct Ticket {
    pub(super) outcome: Mutex<Option<Result<Outcome, String>>>,
    pub(super) ready: Condvar,
}

impl Handle {
    pub(super) const fn new(number: u64, ticket: Arc<Ticket>, client: Weak<Inner>) -> Self {
        Self {
            number,
            ticket,
            client,
        }
    }

    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// Waits for the answer.
    ///
    /// # Errors
    /// When there is no result.
    pub fn wait(self) -> Result<Run, Error> {
        let mut outcome = lock(&self.ticket.outcome);
        loop {
            if let Some(outcome) = outcome.take() {
                return to_run(outcome);
            }
            let woken = self.ticket.ready.wait(outcome);
            outcome = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the answer for so long; the handle back where there is none.
    ///
    /// # Errors
    /// When there is no result.
    pub fn wait_within(self, within: Duration) -> Result<Result<Run, Error>, Self> {
        let Some(end) = Instant::now().checked_add(within) else {
            // No clock holds it: nobody lives to see the end of that.
            return Ok(self.wait());
        };
        let mut outcome = lock(&self.ticket.outcome);
        loop {
            if let Some(outcome) = outcome.take() {
                return Ok(to_run(outcome));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(outcome);
                return Err(self);
            }
            let woken = self.ticket.ready.wait_timeout(outcome, left);
            outcome = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has it not run if it did not begin; it is waited for all the same.
    pub fn cancel(&self) {
        if let Some(client) = self.client.upgrade() {
            let request = Request::Cancel { task: self.number };
            let socket = lock(&client.link).socket();
            if let Some(Err(error)) = socket.map(|socket| send(&socket, &request, &[])) {
                tracing::debug!(%error, "a task is cancelled with the connection");
            }
        }
    }
}

fn to_run(outcome: Result<Outcome, String>) -> Result<Run, Error> {
    Err(match outcome {
        Ok(Outcome::Done(run)) => return Ok(run),
        Ok(Outcome::Failed(why)) => Error::Failed(why),
        Ok(Outcome::Refused(why)) => Error::Refused(why),
        Ok(Outcome::Busy) => Error::Busy,
        Ok(Outcome::Cancelled) => Error::Cancelled,
        Ok(Outcome::Late) => Error::Late,
        Err(why) => Error::Lost(why),
    })
}
