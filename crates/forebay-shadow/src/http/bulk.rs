//! A large body passes through a pipe, without its bytes entering this process.

use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;

use crate::stream::Stream;

/// Bodies of which less is left are copied: a pipe costs some calls by itself.
pub(crate) const BULK_MIN: u64 = 256 * 1024;
/// Bytes that a pipe takes; the kernel's limit for a process without privilege is 1 MiB.
const PIPE_BYTES: usize = 512 * 1024;

/// A pipe between two connections.
#[derive(Debug)]
pub(crate) struct Bulk {
    out: OwnedFd,
    into: OwnedFd,
    /// Bytes in it.
    held: usize,
}

/// Which end broke.
#[derive(Debug)]
pub(crate) enum Broke {
    /// Where the bytes come from.
    From(io::Error),
    /// Where they go.
    To(io::Error),
}

/// Where a pass stands that has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    /// For more bytes.
    From,
    /// For room.
    To,
    /// For others, who want to be served as well.
    Turn,
}

/// Pipes that are filled in a row before others have their turn: a thread serves all clients.
const ROUNDS_MAX: u32 = 16;

impl Bulk {
    /// # Errors
    /// What the system says.
    pub(crate) fn new() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A smaller pipe only takes more calls.
        if let Err(error) = fcntl_setpipe_size(&into, PIPE_BYTES) {
            tracing::debug!(%error, "a pipe keeps its size");
        }
        Ok(Self { out, into, held: 0 })
    }

    /// Bytes that are on their way.
    pub(crate) const fn held(&self) -> usize {
        self.held
    }

    /// Passes on what is left, as far as that goes without waiting; nothing when all was.
    ///
    /// # Errors
    /// When an end broke, or ended before its time.
    pub(crate) fn pass(
        &mut self,
        (from, to): (&Stream, &Stream),
        left: &mut u64,
        ask: Ask,
    ) -> Result<Option<Waits>, Broke> {
        let mut rounds = 0;
        loop {
            if self.held == 0 {
                if *left == 0 {
                    return Ok(None);
                }
                if rounds == ROUNDS_MAX {
                    return Ok(Some(Waits::Turn));
                }
                rounds += 1;
                let most = usize::try_from(*left).unwrap_or(usize::MAX).min(PIPE_BYTES);
                let read = || splice(from, None, &self.into, None, most, FLAGS);
                match ask.io(from, Interest::READABLE, read) {
                    Ok(Some(0)) => return Err(Broke::From(io::ErrorKind::UnexpectedEof.into())),
                    Ok(Some(length)) => {
                        self.held = length;
                        *left -= u64::try_from(length).unwrap_or(*left);
                    }
                    Ok(None) => return Ok(Some(Waits::From)),
                    Err(error) => return Err(Broke::From(error)),
                }
            }
            let write = || splice(&self.out, None, to, None, self.held, FLAGS);
            match Ask::Told.io(to, Interest::WRITABLE, write) {
                Ok(Some(length)) => self.held -= length.min(self.held),
                Ok(None) => return Ok(Some(Waits::To)),
                Err(error) => return Err(Broke::To(error)),
            }
        }
    }
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// What is asked whether an end is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// What was told of it, which is waited for anew when it turns out to be wrong.
    Told,
    /// The kernel itself.
    Kernel,
}

impl Ask {
    fn io(
        self,
        stream: &Stream,
        interest: Interest,
        operation: impl FnOnce() -> rustix::io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        let outcome = match self {
            Self::Told => stream.try_io(interest, || operation().map_err(Into::into)),
            Self::Kernel => operation().map_err(Into::into),
        };
        match outcome {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}
