//! librdmacm, loaded at run time: the calls of its rsockets (`man 7 rsocket`), as the system's own of these names.

#![expect(
    unsafe_code,
    reason = "functions of a C library that is loaded at run time"
)]

use std::error::Error as _;
use std::ffi::c_int;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::sync::OnceLock;
use std::time::Duration;

use libloading::Library;
use rustix::net::SocketAddrAny;
use rustix::net::addr::{SocketAddrArg as _, SocketAddrOpaque, SocketAddrStorage};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// What every version of it since 2012 is called.
const NAME: &str = "librdmacm.so.1";

type Length = libc::socklen_t;

/// A call with this returns when one of its descriptors has something.
const WITHOUT_END: c_int = -1;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Readable,
    Writable,
}

/// The calls. They are used after the library was found to have all of them, and it is never unloaded.
pub(super) struct Calls {
    socket: unsafe extern "C" fn(c_int, c_int, c_int) -> c_int,
    bind: unsafe extern "C" fn(c_int, *const SocketAddrOpaque, Length) -> c_int,
    listen: unsafe extern "C" fn(c_int, c_int) -> c_int,
    accept: unsafe extern "C" fn(c_int, *mut SocketAddrStorage, *mut Length) -> c_int,
    connect: unsafe extern "C" fn(c_int, *const SocketAddrOpaque, Length) -> c_int,
    send: unsafe extern "C" fn(c_int, *const u8, usize, c_int) -> isize,
    recv: unsafe extern "C" fn(c_int, *mut u8, usize, c_int) -> isize,
    poll: unsafe extern "C" fn(*mut libc::pollfd, libc::nfds_t, c_int) -> c_int,
    close: unsafe extern "C" fn(c_int) -> c_int,
    fcntl: unsafe extern "C" fn(c_int, c_int, ...) -> c_int,
    getsockname: unsafe extern "C" fn(c_int, *mut SocketAddrStorage, *mut Length) -> c_int,
    getsockopt: unsafe extern "C" fn(c_int, c_int, c_int, *mut c_int, *mut Length) -> c_int,
    _library: Library,
}

/// The library of this host.
///
/// # Errors
/// It is not there or lacks something: what to install.
pub(super) fn calls() -> Result<&'static Calls, String> {
    static CALLS: OnceLock<Result<Calls, String>> = OnceLock::new();
    CALLS
        .get_or_init(|| load(NAME))
        .as_ref()
        .map_err(Clone::clone)
}

fn load(name: &str) -> Result<Calls, String> {
    let refused = |error: libloading::Error| {
        // What it says itself is only what was called.
        let error = error
            .source()
            .map_or_else(|| error.to_string(), ToString::to_string);
        format!("load {name}: {error}; install librdmacm1 and ibverbs-providers, or rdma-core")
    };
    // SAFETY: what the library does when it is loaded is to prepare itself; it has no other demands.
    let library = unsafe { Library::new(name) }.map_err(refused)?;
    macro_rules! symbol {
        ($name:literal) => {
            // SAFETY: the type is that of the function of this name in <rdma/rsocket.h>, and the library
            // stays loaded for as long as the table that this goes into.
            *unsafe { library.get($name) }.map_err(refused)?
        };
    }
    Ok(Calls {
        socket: symbol!(b"rsocket\0"),
        bind: symbol!(b"rbind\0"),
        listen: symbol!(b"rlisten\0"),
        accept: symbol!(b"raccept\0"),
        connect: symbol!(b"rconnect\0"),
        send: symbol!(b"rsend\0"),
        recv: symbol!(b"rrecv\0"),
        poll: symbol!(b"rpoll\0"),
        close: symbol!(b"rclose\0"),
        fcntl: symbol!(b"rfcntl\0"),
        getsockname: symbol!(b"rgetsockname\0"),
        getsockopt: symbol!(b"rgetsockopt\0"),
        _library: library,
    })
}

fn checked(result: c_int) -> io::Result<c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        // Some of these calls give what went wrong instead of leaving it in errno.
        wrong if wrong < 0 => Err(io::Error::from_raw_os_error(-wrong)),
        right => Ok(right),
    }
}

fn counted(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Calls with room for an address, and gives that.
fn with_address(
    call: impl FnOnce(*mut SocketAddrStorage, *mut Length) -> c_int,
) -> io::Result<(c_int, SocketAddr)> {
    let mut storage = SocketAddrStorage::zeroed();
    let room = Length::try_from(size_of::<SocketAddrStorage>()).unwrap_or(Length::MAX);
    let mut length = room;
    let result = checked(call(&raw mut storage, &raw mut length))?;
    // SAFETY: all of the storage was zeroed, and the library wrote an address into it.
    let address = unsafe { SocketAddrAny::read(&raw const storage, room) };
    Ok((result, SocketAddr::try_from(address)?))
}

impl Calls {
    pub(super) fn socket(&self, address: SocketAddr) -> io::Result<c_int> {
        let domain = match address {
            SocketAddr::V4(_) => libc::AF_INET,
            SocketAddr::V6(_) => libc::AF_INET6,
        };
        // SAFETY: only numbers are passed.
        checked(unsafe { (self.socket)(domain, libc::SOCK_STREAM, 0) })
    }

    pub(super) fn set_nonblocking(&self, socket: c_int) -> io::Result<()> {
        // SAFETY: only numbers are passed, and this command takes one more.
        checked(unsafe { (self.fcntl)(socket, libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
    }

    pub(super) fn bind(&self, socket: c_int, address: SocketAddr) -> io::Result<()> {
        // SAFETY: pointer and length are those of an address for as long as the call takes.
        let result = unsafe {
            address.with_sockaddr(|address, length| (self.bind)(socket, address, length))
        };
        checked(result).map(drop)
    }

    pub(super) fn listen(&self, socket: c_int, backlog: c_int) -> io::Result<()> {
        // SAFETY: only numbers are passed.
        checked(unsafe { (self.listen)(socket, backlog) }).map(drop)
    }

    pub(super) fn accept(&self, socket: c_int) -> io::Result<(c_int, SocketAddr)> {
        // SAFETY: both pointers are to what lives beyond the call, and the length is that of the room.
        with_address(|address, length| unsafe { (self.accept)(socket, address, length) })
    }

    pub(super) fn connect(&self, socket: c_int, to: SocketAddr) -> io::Result<()> {
        // SAFETY: pointer and length are those of an address for as long as the call takes.
        let result =
            unsafe { to.with_sockaddr(|address, length| (self.connect)(socket, address, length)) };
        checked(result).map(drop)
    }

    pub(super) fn address(&self, socket: c_int) -> io::Result<SocketAddr> {
        // SAFETY: both pointers are to what lives beyond the call, and the length is that of the room.
        let named =
            with_address(|address, length| unsafe { (self.getsockname)(socket, address, length) });
        named.map(|(_, address)| address)
    }

    /// What went wrong with a socket, if something did.
    pub(super) fn trouble(&self, socket: c_int) -> io::Result<()> {
        let mut error: c_int = 0;
        let mut length = Length::try_from(size_of::<c_int>()).unwrap_or(Length::MAX);
        // SAFETY: both pointers are to what lives beyond the call, and the length is that of a number.
        let result = unsafe {
            (self.getsockopt)(
                socket,
                libc::SOL_SOCKET,
                libc::SO_ERROR,
                &raw mut error,
                &raw mut length,
            )
        };
        checked(result)?;
        match error {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    pub(super) fn send(&self, socket: c_int, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: pointer and length are those of a slice, which is only read.
        counted(unsafe { (self.send)(socket, bytes.as_ptr(), bytes.len(), 0) })
    }

    pub(super) fn receive(&self, socket: c_int, into: &mut [u8]) -> io::Result<usize> {
        // SAFETY: pointer and length are those of a slice that nobody else has.
        counted(unsafe { (self.recv)(socket, into.as_mut_ptr(), into.len(), 0) })
    }

    /// Waits until something can be done with a socket, or it is broken; whether it came to that.
    ///
    /// The time is kept by a timer beside the socket: of releases before 56.4 (Debian 12 and 13 have such) `rpoll`
    /// does not count itself out when its own time is over, and from the second time on every call of the process
    /// turns on the spot and never returns. rdma-core's a1747742e mends that.
    pub(super) fn poll(&self, socket: c_int, event: Event, within: Duration) -> io::Result<bool> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let once = Itimerspec {
            it_interval: Timespec::default(),
            // None at all would stop it.
            it_value: Timespec::try_from(within.max(Duration::from_nanos(1)))
                .map_err(io::Error::other)?,
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
        let events = match event {
            Event::Readable => libc::POLLIN,
            Event::Writable => libc::POLLOUT,
        };
        let awaited = |fd, events| libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let mut wanted = [
            awaited(socket, events),
            awaited(timer.as_raw_fd(), libc::POLLIN),
        ];
        // SAFETY: the pointer is to two structures, and the call is told that it is two.
        match checked(unsafe { (self.poll)(wanted.as_mut_ptr(), 2, WITHOUT_END) }) {
            Ok(_) => Ok(wanted[0].revents != 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn close(&self, socket: c_int) {
        // SAFETY: only a number is passed, which whoever owned it does not use any more.
        if let Err(error) = checked(unsafe { (self.close)(socket) }) {
            tracing::debug!(%error, "an RDMA connection was not closed in order");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_said_with_what_to_install() {
        let Err(error) = load("librdmacm-that-nobody-has.so.1") else {
            panic!("it is there");
        };
        for word in ["librdmacm-that-nobody-has.so.1", "install librdmacm1"] {
            assert!(error.contains(word), "{error}");
        }
    }

    /// Of a descriptor that is none of the library's it waits as of its own.
    #[test]
    fn what_never_comes_is_waited_for_again_and_again() {
        let Ok(calls) = calls() else {
            println!("SKIPPED: what never comes is waited for: no {NAME}");
            return;
        };
        let (tell, told) = std::sync::mpsc::channel();
        // One that never returns stays behind, and ends with the test's process.
        std::thread::spawn(move || {
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            let wait = || {
                calls.poll(
                    reader.as_raw_fd(),
                    Event::Readable,
                    Duration::from_millis(20),
                )
            };
            for _ in 0..4 {
                assert!(!wait().unwrap());
            }
            rustix::io::write(&writer, b"x").unwrap();
            tell.send(wait().unwrap()).unwrap();
        });
        assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(true));
    }

    #[test]
    fn another_library_is_not_taken_for_it() {
        let Err(error) = load("libc.so.6") else {
            panic!("it has no rsockets");
        };
        assert!(error.contains("rsocket"), "{error}");
    }
}
