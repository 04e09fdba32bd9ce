//! Lets a process go that CRIU holds, when whoever had it held ends.
//!
//! CRIU waits for a word without a bound. Where the group of the process holds it as well, that group
//! alone decides after the end of the mover: whoever puts the host back lets it go on, or ends it. So where its
//! connections have to be given back before it may run, its group is stopped first.

use std::io::{self, PipeWriter, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};

use rustix::process::{Pid, WaitOptions, waitpid};

use super::guard::{close, fork};
use super::hold::{FREEZE_MAX, came};
use crate::fence::Stop;

/// A small process that waits for the end of this one. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Release {
    line: Option<PipeWriter>,
    pid: Pid,
}

impl Release {
    /// Says this to CRIU when this process ends, after it had the group stop. `holds` can be read once CRIU holds the
    /// process, and nobody reads it.
    pub(super) fn new(
        (criu, word): (BorrowedFd<'_>, &[u8]),
        holds: BorrowedFd<'_>,
        stop: Option<&Stop>,
    ) -> io::Result<Self> {
        let (waits, line) = io::pipe()?;
        let stops = stop.map_or(waits.as_fd(), |stop| stop.file.as_fd());
        let mut kept = [criu, waits.as_fd(), holds, stops].map(|fd| fd.as_raw_fd());
        kept.sort_unstable();
        let pid = fork(|| watch((waits.as_fd(), holds), (criu, word), stop, kept))?;
        Ok(Self {
            line: Some(line),
            pid,
        })
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            // It was not the end of this process.
            (&line).write_all(&[0]).ok();
        }
        if let Err(error) = waitpid(Some(self.pid), WaitOptions::empty()) {
            let pid = self.pid.as_raw_nonzero();
            tracing::warn!(%pid, %error, "a process that waited may stay");
        }
    }
}

/// Plain system calls alone: it is a fork of a program with threads.
fn watch(
    (waits, holds): (BorrowedFd<'_>, BorrowedFd<'_>),
    (criu, word): (BorrowedFd<'_>, &[u8]),
    stop: Option<&Stop>,
    kept: [RawFd; 4],
) {
    // It outlives whoever gets signals of the terminal. A fork is no leader, so this does not fail.
    rustix::process::setsid().ok();
    let mut first = 0;
    for fd in kept {
        close(first, fd - 1);
        first = fd + 1;
    }
    close(first, RawFd::MAX);
    let mut byte = [0];
    let heard = loop {
        match rustix::io::read(waits, &mut byte[..]) {
            Err(rustix::io::Errno::INTR) => {}
            heard => break heard,
        }
    };
    if let (Ok(0), Some(stop)) = (heard, stop) {
        // Not before: CRIU has the process run some code of its own, and takes all back itself where it fails.
        if !came(holds, FREEZE_MAX).unwrap_or(false) {
            return;
        }
        // Where it cannot stop it is held on, for the next daemon.
        if rustix::io::write(&stop.file, stop.word.as_bytes()).is_err() {
            return;
        }
    }
    // CRIU may have ended by then.
    rustix::io::write(criu, word).ok();
}
