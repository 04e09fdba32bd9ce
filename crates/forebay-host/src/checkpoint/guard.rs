//! Sees to it that a process does not run on without memory that was to be filled in.
//!
//! When a `userfaultfd` closes, the kernel gives zeros for pages that are missing. So as long as some
//! are, a small process beside this one has the descriptor open as well, and waits: for a word that
//! nothing is missing any more, or for the end of whoever would say it. Then it ends the process with its
//! group, and only then the descriptor closes.
//!
//! A process that forks meanwhile has a descriptor for the child, and the kernel does not say which process
//! that is. So the child has a guard of its own, which ends the group as well, and has the descriptor open
//! until nobody has that memory any more: a child that left the group stands still at the first page that is
//! missing, where it would read zeros, until somebody ends it.

use std::io::{self, PipeWriter, Write as _};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};

use super::precopy::userfault::Userfault;

/// What is said when nothing is missing.
const DONE: u8 = b'd';

/// Between two looks whether the memory of a child is gone.
const LOOK: rustix::event::Timespec = rustix::event::Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
/// For `pidfd_send_signal`, from Linux 6.9 on: to all of the group that the process leads, or led.
const TO_GROUP: libc::c_uint = 1 << 2;

/// The process that waits. Unless it is dismissed, what it guards is ended.
#[derive(Debug)]
pub(super) struct Guard {
    line: Option<PipeWriter>,
    pid: Pid,
    /// Whether it ends as soon as it was told how it went.
    is_prompt: bool,
}

impl Guard {
    /// Guards a process with these descriptors.
    pub(super) fn new(process: u32, userfaults: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let fds = userfaults.iter().map(AsRawFd::as_raw_fd).collect();
        Self::begin(process, fds, None)
    }

    /// Guards a child of a process, which has this descriptor.
    pub(super) fn of_child(process: u32, userfault: &Userfault) -> io::Result<Self> {
        let fds = vec![userfault.as_fd().as_raw_fd()];
        Self::begin(process, fds, Some(userfault))
    }

    fn begin(process: u32, mut kept: Vec<RawFd>, child: Option<&Userfault>) -> io::Result<Self> {
        let number = i32::try_from(process).ok().and_then(Pid::from_raw);
        let number = number.ok_or_else(|| io::Error::other("it has no number"))?;
        let process = pidfd_open(number, PidfdFlags::empty())?;
        let (waits, line) = io::pipe()?;
        kept.extend([process.as_raw_fd(), waits.as_raw_fd()]);
        kept.sort_unstable();
        let pid = fork(|| watch(&process, waits.as_fd(), (&kept, child)))?;
        Ok(Self {
            line: Some(line),
            pid,
            is_prompt: child.is_none(),
        })
    }

    /// Nothing is missing any more.
    pub(super) fn dismiss(mut self) -> io::Result<()> {
        match &mut self.line {
            Some(line) => {
                line.write_all(&[DONE])?;
                self.is_prompt = true;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.line.take());
        if !self.is_prompt {
            // It stays for as long as somebody has that memory; this program hears of its end.
            let pid = self.pid;
            let waits = std::thread::Builder::new().name("guard".to_owned());
            if let Err(error) = waits.spawn(move || hear(pid)) {
                tracing::warn!(%error, "the end of a guard will not be heard");
            }
            return;
        }
        hear(self.pid);
    }
}

/// Waits for the end of a guard.
fn hear(guard: Pid) {
    if let Err(error) = waitpid(Some(guard), WaitOptions::empty()) {
        let pid = guard.as_raw_nonzero();
        tracing::warn!(%pid, %error, "a guard may stay");
    }
}

/// What the guard does; plain system calls alone, since it is a fork of a program with threads.
fn watch(process: &OwnedFd, waits: BorrowedFd<'_>, (kept, child): (&[RawFd], Option<&Userfault>)) {
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
    // It may have ended by itself, and older kernels know of no group here.
    rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL).ok();
    end_group(process);
    if let Some(child) = child {
        while !child.is_over() {
            // It may be woken before; then it looks before.
            rustix::event::poll(&mut [], Some(&LOOK)).ok();
        }
        return;
    }
    // Its memory goes before the descriptor does.
    let mut ended = [rustix::event::PollFd::new(
        process,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut ended, None).ok();
}

/// Ends all who are in the group that a process leads, or led.
#[expect(unsafe_code, reason = "rustix sends to no group by a descriptor")]
fn end_group(process: &OwnedFd) {
    // SAFETY: plain numbers, and no information that goes along.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::c_void>(),
            TO_GROUP,
        )
    };
}

/// Closes descriptors from one to another.
#[expect(unsafe_code, reason = "rustix does not have close_range")]
pub(super) fn close(first: RawFd, last: RawFd) {
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
pub(super) fn fork(work: impl FnOnce()) -> io::Result<Pid> {
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

    /// A process that sleeps, gone with this.
    struct Sleeps(std::process::Child);

    impl Sleeps {
        /// In a group of its own, in another one's, or in that of the test.
        fn begin(group: Option<i32>) -> Self {
            use std::os::unix::process::CommandExt as _;
            let mut command = Command::new("sleep");
            command.arg("600").stdout(std::process::Stdio::null());
            if let Some(group) = group {
                command.process_group(group);
            }
            Self(command.spawn().unwrap())
        }
    }

    impl Drop for Sleeps {
        fn drop(&mut self) {
            // It may have ended.
            self.0.kill().ok();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn a_process_ends_with_its_guard_unless_that_is_dismissed() {
        let check = |is_dismissed: bool| {
            let mut sleeps = Sleeps::begin(None);
            let process = &mut sleeps.0;
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

    /// A child is ended with the group of its parent; one that left that group stands, and does not read on.
    #[test]
    fn a_child_ends_with_its_parent_or_is_held() {
        let version = rustix::system::uname();
        let version = version.release().to_string_lossy().into_owned();
        let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
        let number: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
        if number < (6, 9) || !rustix::process::geteuid().is_root() {
            println!("SKIPPED: a_child_ends_with_its_parent_or_is_held: needs root and Linux 6.9");
            return;
        }
        let mut parent = Sleeps::begin(Some(0));
        let mut child = Sleeps::begin(i32::try_from(parent.0.id()).ok());
        let mut strange = Sleeps::begin(None);
        let pid = Pid::from_child(&strange.0);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let number = pid.as_raw_nonzero().get();
        // It is started before it is made.
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let is_made = || {
            let maps = std::fs::read_to_string(format!("/proc/{number}/maps")).unwrap();
            maps.contains("/sleep") && maps.contains("[vdso]") && maps.contains("libc")
        };
        while !is_made() {
            assert!(std::time::Instant::now() < until, "it is not made");
            std::thread::yield_now();
        }
        let fetched = super::super::precopy::fetch(number, pidfd.as_fd());
        let userfault = Userfault::tracking(fetched.unwrap()).unwrap();
        let guard = Guard::of_child(parent.0.id(), &userfault).unwrap();
        let held = pidfd_open(guard.pid, PidfdFlags::empty()).unwrap();
        drop(guard);
        for ended in [&mut parent, &mut child] {
            assert_eq!(ended.0.wait().unwrap().signal(), Some(libc::SIGKILL));
        }
        let is_over = |most: i64| {
            let mut polled = [rustix::event::PollFd::new(
                &held,
                rustix::event::PollFlags::IN,
            )];
            let most = rustix::event::Timespec {
                tv_sec: most,
                tv_nsec: 300_000_000,
            };
            rustix::event::poll(&mut polled, Some(&most)).unwrap() > 0
        };
        assert!(!is_over(0), "somebody has the memory");
        assert!(strange.0.try_wait().unwrap().is_none());
        strange.0.kill().unwrap();
        strange.0.wait().unwrap();
        assert!(is_over(20), "nobody has");
    }
}
