//! Options of sockets that rustix does not have.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// One option of TCP as the kernel gives it: a plain structure.
///
/// # Errors
/// What the kernel says; when it gives less than that.
pub(super) fn get<T: Plain>(socket: BorrowedFd<'_>, name: libc::c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut length = length_of::<T>();
    #[expect(unsafe_code, reason = "rustix does not have the options of TCP_REPAIR")]
    // SAFETY: the kernel writes at most `length` bytes into `value`, which lives, and of which any bytes are a value
    // (`Plain`).
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    if length < length_of::<T>() {
        return Err(io::Error::other("the kernel knows less of it"));
    }
    Ok(value)
}

/// Sets one option of a level.
///
/// # Errors
/// What the kernel says.
pub(super) fn set<T: Plain>(
    socket: BorrowedFd<'_>,
    (level, name): (libc::c_int, libc::c_int),
    value: &T,
) -> io::Result<()> {
    set_bytes(socket, (level, name), std::slice::from_ref(value))
}

/// Sets an option whose value is a list.
///
/// # Errors
/// What the kernel says.
pub(super) fn set_bytes<T: Plain>(
    socket: BorrowedFd<'_>,
    (level, name): (libc::c_int, libc::c_int),
    values: &[T],
) -> io::Result<()> {
    let length = length_of::<T>() * libc::socklen_t::try_from(values.len()).unwrap_or(0);
    #[expect(unsafe_code, reason = "rustix does not have the options of TCP_REPAIR")]
    // SAFETY: the kernel reads `length` bytes, which are those of `values`, which lives.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            values.as_ptr().cast(),
            length,
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// How many bytes a request of this socket's answers with, as those of queues do.
///
/// # Errors
/// What the kernel says.
pub(super) fn queued(socket: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    #[expect(unsafe_code, reason = "rustix does not have SIOCOUTQ and SIOCOUTQNSD")]
    // SAFETY: the kernel writes one integer, which lives.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut count) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(count).map_err(io::Error::other)
}

fn length_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

/// Values of which any bytes are one.
pub(super) trait Plain: Default {}

impl Plain for u32 {}
impl Plain for i32 {}
