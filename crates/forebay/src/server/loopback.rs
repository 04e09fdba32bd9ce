//! Whose a connection over loopback is, as `sock_diag(7)` tells it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

/// `NETLINK_SOCK_DIAG`, and what is used of linux/sock_diag.h, linux/inet_diag.h and linux/netlink.h.
const NETLINK_SOCK_DIAG: NonZero<u32> = NonZero::<u32>::MIN.saturating_add(3);
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const TCP: u8 = 6;
const ESTABLISHED: u8 = 1;
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = HEADER_BYTES + 56;
/// Where a `struct inet_diag_msg` says the state and the user.
const STATE: usize = HEADER_BYTES + 1;
const USER: usize = HEADER_BYTES + 64;

/// The user of the process at `there` that is connected to `here`; none where that is no longer so.
///
/// # Errors
/// When the kernel does not tell, as one without `inet_diag` does not.
pub(super) fn user_of(there: SocketAddr, here: SocketAddr) -> io::Result<Option<u32>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(Protocol::from_raw(NETLINK_SOCK_DIAG)),
    )?;
    send(&socket, &request(there, here), SendFlags::empty())?;
    let mut answer = [0; 1024];
    // The kernel has answered before `send` returns.
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::DONTWAIT)?;
    Ok(answer.get(..length).and_then(user))
}

/// A question about the one socket whose own end is `there`.
fn request(there: SocketAddr, here: SocketAddr) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    let mut put = |at: usize, value: &[u8]| {
        if let Some(place) = bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    };
    put(
        0,
        &u32::try_from(REQUEST_BYTES)
            .unwrap_or(u32::MAX)
            .to_ne_bytes(),
    );
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    let family = match there {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    // struct inet_diag_req_v2: family, protocol, any state.
    put(16, &[u8::try_from(family.as_raw()).unwrap_or(0), TCP]);
    put(20, &u32::MAX.to_ne_bytes());
    // struct inet_diag_sockid: ports, addresses, any interface, no cookie.
    put(24, &there.port().to_be_bytes());
    put(26, &here.port().to_be_bytes());
    for (at, address) in [(28, there.ip()), (44, here.ip())] {
        match address {
            IpAddr::V4(address) => put(at, &address.octets()),
            IpAddr::V6(address) => put(at, &address.octets()),
        }
    }
    put(64, &[0xff; 8]);
    bytes
}

fn user(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    // Of one that is closed the user is not known any more, and stands there as root.
    let told = kind == SOCK_DIAG_BY_FAMILY && *answer.get(STATE)? == ESTABLISHED;
    let user = u32::from_ne_bytes(answer.get(USER..USER + 4)?.try_into().ok()?);
    told.then_some(user)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_user_at_the_other_end_is_told_while_it_is_there() {
        let own = rustix::process::geteuid().as_raw();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                println!("SKIPPED: the user at the other end: no {address}");
                continue;
            };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, there) = listener.accept().unwrap();
            let here = server.local_addr().unwrap();
            assert_eq!(user_of(there, here).unwrap(), Some(own), "{address}");
            drop(client);
            assert_eq!(user_of(there, here).unwrap(), None, "{address}: it is gone");
        }
    }

    #[test]
    fn an_answer_that_is_cut_off_tells_nothing() {
        for length in 0..USER + 4 {
            assert_eq!(user(&vec![1; length]), None);
        }
    }
}
