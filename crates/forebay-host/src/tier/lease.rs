//! Write leases: the kernel makes an opener wait, and tells us.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::error::HostError;

const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_CLASS_IDLE: libc::c_int = 3 << 13;

/// The thread that moves files yields to everybody: disk and CPU when nobody else wants them.
///
/// # Errors
/// When the kernel refuses.
pub fn idle_priority() -> Result<(), HostError> {
    set_io_priority(IOPRIO_CLASS_IDLE)
        .map_err(|error| HostError::io("give the moving thread idle I/O priority", error))
}

#[expect(unsafe_code, reason = "rustix has no ioprio_set")]
fn set_io_priority(priority: libc::c_int) -> Result<(), Errno> {
    // SAFETY: ioprio_set takes three integers; 0 is the calling thread.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            0 as libc::c_int,
            priority,
        )
    };
    last(libc::c_int::try_from(result).unwrap_or(-1)).map(drop)
}

#[expect(unsafe_code, reason = "rustix has no ioprio_get")]
fn io_priority() -> Result<libc::c_int, Errno> {
    // SAFETY: ioprio_get takes two integers; 0 is the calling thread.
    let result =
        unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0 as libc::c_int) };
    last(libc::c_int::try_from(result).unwrap_or(-1))
}

/// While others may wait for a lease of this thread, it yields to nobody.
#[derive(Debug)]
pub(super) struct Hurry {
    nice: i32,
    io: libc::c_int,
}

impl Hurry {
    pub(super) fn begin() -> Self {
        let hurry = Self {
            nice: rustix::process::getpriority_process(None).unwrap_or(0),
            io: io_priority().unwrap_or(0),
        };
        hurry.set(hurry.nice.min(0), 0);
        hurry
    }

    fn set(&self, nice: i32, io: libc::c_int) {
        let nice = match self.nice > 0 {
            true => rustix::process::setpriority_process(None, nice),
            false => Ok(()),
        };
        if let Err(error) = nice.and_then(|()| set_io_priority(io)) {
            tracing::debug!(%error, "the priority of the moving thread stays");
        }
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        self.set(self.nice, self.io);
    }
}

/// How often a file that is open is looked at again.
const LOOK: Duration = Duration::from_millis(1);

/// A write lease on an open file, given back on drop.
#[derive(Debug)]
pub(super) struct Lease<'f> {
    file: BorrowedFd<'f>,
}

impl<'f> Lease<'f> {
    /// None when somebody else has the file open.
    pub(super) fn take(file: &'f impl AsFd) -> Result<Option<Self>, Errno> {
        hold_signal()?;
        let file = file.as_fd();
        // The signal of a broken lease goes to this thread, where it is held, and not to the
        // process, which it would end.
        own(file)?;
        match fcntl(file, libc::F_SETLEASE, libc::F_WRLCK) {
            Ok(_) => Ok(Some(Self { file })),
            Err(Errno::AGAIN | Errno::BUSY) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until nobody else has the file open, at most so long.
    pub(super) fn wait_for(file: &'f impl AsFd, patience: Duration) -> Result<Option<Self>, Errno> {
        let end = Instant::now() + patience;
        loop {
            let taken = Self::take(file)?;
            if taken.is_some() || Instant::now() >= end {
                return Ok(taken);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether somebody waits to open the file.
    pub(super) fn is_broken(&self) -> bool {
        // An error means that the lease is no longer ours: the kernel waits only so long.
        fcntl(self.file, libc::F_GETLEASE, 0) != Ok(libc::F_WRLCK)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Err(error) = fcntl(self.file, libc::F_SETLEASE, libc::F_UNLCK) {
            // The kernel takes it back itself when the descriptor is closed.
            tracing::debug!(%error, "a lease was gone before it was given back");
        }
    }
}

/// Whether somebody may change a file, that we have open for reading only.
pub(super) fn has_writer(file: &impl AsFd) -> Result<bool, Errno> {
    hold_signal()?;
    let file = file.as_fd();
    own(file)?;
    match fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(_) => {
            drop(Lease { file });
            Ok(false)
        }
        Err(Errno::AGAIN | Errno::BUSY) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Waits until any of the leases of this thread is broken, at most so long.
#[expect(unsafe_code, reason = "rustix has no sigtimedwait")]
pub(super) fn wait_for_break(timeout: Duration) {
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    };
    let set = signals();
    // SAFETY: both point to live values; no information about the signal is asked for.
    // An early return is fine: callers look at the lease and at the clock.
    unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const timeout) };
}

#[expect(unsafe_code, reason = "signal sets have no safe interface")]
fn signals() -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set before it is used; SIGIO is a valid number.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGIO);
        set
    }
}

#[expect(unsafe_code, reason = "signal masks have no safe interface")]
fn hold_signal() -> Result<(), Errno> {
    let set = signals();
    // SAFETY: the set is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(Errno::from_raw_os_error(error)),
    }
}

#[expect(unsafe_code, reason = "rustix has no F_SETOWN_EX")]
fn own(file: BorrowedFd<'_>) -> Result<(), Errno> {
    #[repr(C)]
    struct Owner {
        kind: libc::c_int,
        pid: libc::pid_t,
    }
    const F_SETOWN_EX: libc::c_int = 15;
    const F_OWNER_TID: libc::c_int = 0;
    let owner = Owner {
        kind: F_OWNER_TID,
        pid: rustix::thread::gettid().as_raw_nonzero().get(),
    };
    // SAFETY: the kernel reads one struct f_owner_ex, laid out as above.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, &raw const owner) };
    last(result).map(drop)
}

#[expect(unsafe_code, reason = "rustix has no leases")]
fn fcntl(file: BorrowedFd<'_>, command: libc::c_int, value: libc::c_int) -> Result<i32, Errno> {
    // SAFETY: the commands used here take and return integers.
    last(unsafe { libc::fcntl(file.as_raw_fd(), command, value) })
}

fn last(result: libc::c_int) -> Result<i32, Errno> {
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(error
            .raw_os_error()
            .map_or(Errno::IO, Errno::from_raw_os_error));
    }
    Ok(result)
}
