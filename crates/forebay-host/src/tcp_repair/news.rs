//! Hears of addresses, links and routes as they come.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv};

/// Groups of `NETLINK_ROUTE` (linux/rtnetlink.h): links; addresses and routes of IPv4 and of IPv6.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// What the kernel says of its network.
#[derive(Debug)]
pub struct News(OwnedFd);

impl News {
    /// From now on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = (AddressFamily::NETLINK, SocketType::RAW);
        // No protocol is the one of routes.
        let socket = rustix::net::socket_with(kind.0, kind.1, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self(socket))
    }

    /// Waits for something that was not heard yet; whether there was something before this moment.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait(&self, until: Instant) -> io::Result<bool> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut polled, Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) => {
                    self.forget()?;
                    return Ok(true);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads all that is there: what it says is looked up, and not believed.
    fn forget(&self) -> io::Result<()> {
        let mut buffer = [0_u8; 4096];
        loop {
            match recv(self.0.as_fd(), &mut buffer[..], RecvFlags::empty()) {
                Ok(_) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
                // More came than there was room for.
                Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
