//! Lets a process go that CRIU holds, when whoever had it held ends.
//!
//! CRIU waits for a word without a bound. Where the group of the process holds it as well, that group
//! alone decides after the end of the mover: whoever puts the host back lets it go on, or ends it.

use std::io::{self, PipeWriter};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};

use rustix::process::{Pid, WaitOptions, waitpid};

use super::guard::{close, fork};

/// A small process that waits for the end of this one. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Release {
    line: Option<PipeWriter>,
    pid: Pid,
}

impl Release {
    /// Says this to CRIU when this process ends.
    pub(super) fn new(criu: BorrowedFd<'_>, word: &[u8]) -> io::Result<Self> {
        let (waits, line) = io::pipe()?;
        let mut kept = [criu.as_raw_fd(), waits.as_raw_fd()];
        kept.sort_unstable();
        let pid = fork(|| watch(waits.as_fd(), (criu, word), kept))?;
        Ok(Self {
            line: Some(line),
            pid,
        })
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        drop(self.line.take());
        if let Err(error) = waitpid(Some(self.pid), WaitOptions::empty()) {
            let pid = self.pid.as_raw_nonzero();
            tracing::warn!(%pid, %error, "a process that waited may stay");
        }
    }
}

/// Plain system calls alone: it is a fork of a program with threads.
fn watch(waits: BorrowedFd<'_>, (criu, word): (BorrowedFd<'_>, &[u8]), kept: [RawFd; 2]) {
    // It outlives whoever gets signals of the terminal. A fork is no leader, so this does not fail.
    rustix::process::setsid().ok();
    let mut first = 0;
    for fd in kept {
        close(first, fd - 1);
        first = fd + 1;
    }
    close(first, RawFd::MAX);
    let mut byte = [0];
    while let Err(rustix::io::Errno::INTR) = rustix::io::read(waits, &mut byte[..]) {}
    // CRIU may have ended by then.
    rustix::io::write(criu, word).ok();
}
