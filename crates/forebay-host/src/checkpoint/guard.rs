//! Sees to it that a process does not run on without memory that was to be filled in.
//!
//! When a `userfaultfd` closes, the kernel gives zeros for pages that are missing. So as long as some
//! are, a small process beside this one has the descriptor open as well, and waits: for a word that
//! nothing is missing any more, or for the end of whoever would say it. Then it ends the process, and only
//! then the descriptor closes.

use std::io::{self, PipeWriter, Write as _};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};

/// What is said when nothing is missing.
const DONE: u8 = b'd';

/// The process that waits. Unless it is dismissed, what it guards is ended.
#[derive(Debug)]
pub(super) struct Guard {
    line: Option<PipeWriter>,
    pid: Pid,
}

impl Guard {
    /// Guards a process with these descriptors.
    pub(super) fn new(process: u32, userfaults: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let number = i32::try_from(process).ok().and_then(Pid::from_raw);
        let number = number.ok_or_else(|| io::Error::other("it has no number"))?;
        let process = pidfd_open(number, PidfdFlags::empty())?;
        let (waits, line) = io::pipe()?;
        let mut kept: Vec<RawFd> = userfaults.iter().map(AsRawFd::as_raw_fd).collect();
        kept.extend([process.as_raw_fd(), waits.as_raw_fd()]);
        kept.sort_unstable();
        let pid = fork(|| watch(&process, waits.as_fd(), &kept))?;
        Ok(Self {
            line: Some(line),
            pid,
        })
    }

    /// Nothing is missing any more.
    pub(super) fn dismiss(mut self) -> io::Result<()> {
        match &mut self.line {
            Some(line) => line.write_all(&[DONE]),
            None => Ok(()),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.line.take());
        if let Err(error) = waitpid(Some(self.pid), WaitOptions::empty()) {
            let pid = self.pid.as_raw_nonzero();
            tracing::warn!(%pid, %error, "a guard may stay");
        }
    }
}

/// What the guard does; plain system calls alone, since it is a fork of a program with threads.
fn watch(process: &OwnedFd, waits: BorrowedFd<'_>, kept: &[RawFd]) {
    // It outlives whoever gets signals of the terminal. A fork is no leader, so this does not fail.
    rustix::process::setsid().ok();
    let mut first = 0;
    for fd in kept {
        close(first, *fd - 1);
        first = fd + 1;
    }
    close(first, RawFd::MAX);
    let mut word = [0];
    loop {
        match rustix::io::read(waits, &mut word[..]) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(1) if word == [DONE] => return,
            _ => break,
        }
    }
    // It may have ended by itself.
    rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL).ok();
    // Its memory goes before the descriptor does.
    let mut ended = [rustix::event::PollFd::new(
        process,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut ended, None).ok();
}

/// Closes descriptors from one to another.
#[expect(unsafe_code, reason = "rustix does not have close_range")]
fn close(first: RawFd, last: RawFd) {
    if first > last {
        return;
    }
    // SAFETY: in the child alone, none of whose other descriptors is used any more.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Runs something in a child, which ends with it.
#[expect(
    unsafe_code,
    reason = "a child of its own memory is made in no safe way"
)]
fn fork(work: impl FnOnce()) -> io::Result<Pid> {
    // SAFETY: the child makes plain system calls, allocates nothing, takes no lock, and ends by _exit.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            work();
            // SAFETY: it ends the child without running anything of the parent's state.
            unsafe { libc::_exit(0) }
        }
        pid => Pid::from_raw(pid).ok_or_else(|| io::Error::other("no process was made")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_ends_with_its_guard_unless_that_is_dismissed() {
        let check = |is_dismissed: bool| {
            let mut process = Command::new("sleep").arg("600").spawn().unwrap();
            let guard = Guard::new(process.id(), &[]).unwrap();
            if is_dismissed {
                guard.dismiss().unwrap();
                assert!(process.try_wait().unwrap().is_none());
                process.kill().unwrap();
                process.wait().unwrap();
            } else {
                drop(guard);
                assert_eq!(process.wait().unwrap().signal(), Some(libc::SIGKILL));
            }
        };
        check(true);
        check(false);
    }
}
