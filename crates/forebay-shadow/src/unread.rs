//! Bytes and connections that an instance leaves unread, as the kernel counts them.
//!
//! An instance that hangs stops reading its sockets; one that waits for something else goes on
//! reading what others send. `sock_diag(7)` tells everybody how much lies in the receive queue of
//! each TCP socket, and how many connections wait for being accepted.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};

/// `NETLINK_SOCK_DIAG` and the constants of linux/sock_diag.h, linux/inet_diag.h, linux/netlink.h.
const NETLINK_SOCK_DIAG: u32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = 56;
const MESSAGE_BYTES: usize = 72;
const ESTABLISHED: u32 = 1;
const CLOSE_WAIT: u32 = 8;
const LISTEN: u32 = 10;
const FAMILIES: [u8; 2] = [2, 10];
/// Sockets that are followed from one look to the next.
const SOCKETS_MAX: usize = 4096;

/// One socket of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Queue {
    cookie: u64,
    /// The port of the other end; none of one that listens.
    pub(crate) peer: Option<u16>,
    /// Bytes unread, or connections not accepted.
    pub(crate) length: u32,
}

impl Queue {
    #[cfg(test)]
    pub(crate) const fn new(peer: Option<u16>, length: u32) -> Self {
        Self {
            cookie: 0,
            peer,
            length,
        }
    }
}

/// The sockets that are bound to an address, with what lies in them.
///
/// # Errors
/// When the kernel does not answer.
pub(crate) fn queues(address: SocketAddr) -> io::Result<Vec<Queue>> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        rustix::net::Protocol::from_raw(
            std::num::NonZero::new(NETLINK_SOCK_DIAG).unwrap_or(std::num::NonZero::<u32>::MIN),
        )
        .into(),
    )?;
    let mut found = Vec::new();
    for family in FAMILIES {
        send(
            &socket,
            &request(family, address.port()),
            SendFlags::empty(),
        )?;
        receive(&socket, address, &mut found)?;
    }
    Ok(found)
}

fn request(family: u8, port: u16) -> [u8; HEADER_BYTES + REQUEST_BYTES] {
    let mut bytes = [0; HEADER_BYTES + REQUEST_BYTES];
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let states: u32 = 1 << ESTABLISHED | 1 << CLOSE_WAIT | 1 << LISTEN;
    for (at, value) in [
        (0, length.to_ne_bytes().as_slice()),
        (4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes()),
        (6, &NLM_F_REQUEST_DUMP.to_ne_bytes()),
        // struct inet_diag_req_v2: family, protocol (TCP), states, source port.
        (16, &[family, 6]),
        (20, &states.to_ne_bytes()),
        (24, &port.to_be_bytes()),
    ] {
        if let Some(place) = bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
    bytes
}

fn receive(socket: &OwnedFd, address: SocketAddr, found: &mut Vec<Queue>) -> io::Result<()> {
    let mut buffer = [0; 32 * 1024];
    loop {
        let (length, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let (Some(size), Some(kind)) = (word(rest, 0), half(rest, 4)) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    return Err(io::Error::other("the kernel refused to list sockets"));
                }
                _ => {}
            }
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let Some(message) = rest.get(HEADER_BYTES..size) else {
                return Err(io::Error::other("a list of sockets was cut off"));
            };
            if found.len() < SOCKETS_MAX {
                found.extend(parse(message, address));
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// A `struct inet_diag_msg`, if it is of a socket at this address.
fn parse(message: &[u8], address: SocketAddr) -> Option<Queue> {
    if message.len() < MESSAGE_BYTES {
        return None;
    }
    let local = ip(*message.first()?, message.get(8..24)?)?;
    let wanted = address.ip().to_canonical();
    if local != wanted && !local.is_unspecified() {
        return None;
    }
    let listens = u32::from(*message.get(1)?) == LISTEN;
    Some(Queue {
        cookie: u64::from(word(message, 44)?) | u64::from(word(message, 48)?) << 32,
        peer: (!listens).then_some(u16::from_be_bytes([*message.get(6)?, *message.get(7)?])),
        length: word(message, 56)?,
    })
}

fn ip(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    if family == FAMILIES[0] {
        let bytes: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
        return Some(IpAddr::V4(Ipv4Addr::from(bytes)));
    }
    let bytes: [u8; 16] = bytes.try_into().ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Since when sockets have been left unread.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    since: BTreeMap<u64, (u32, Instant)>,
}

impl Unread {
    /// Takes in a look; how long the socket waits that waits longest with nothing taken out of it.
    pub(crate) fn add(&mut self, queues: &[Queue], now: Instant) -> Option<Duration> {
        let mut since = BTreeMap::new();
        for queue in queues.iter().filter(|queue| queue.length > 0) {
            let before = self.since.get(&queue.cookie);
            let untouched = before.filter(|(length, _)| queue.length >= *length);
            let from = untouched.map_or(now, |(_, from)| *from);
            since.insert(queue.cookie, (queue.length, from));
        }
        self.since = since;
        let waits = self
            .since
            .values()
            .map(|(_, from)| now.duration_since(*from));
        waits.max()
    }

    /// Nobody looks any more.
    pub(crate) fn forget(&mut self) {
        self.since.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn total(address: SocketAddr) -> u32 {
        queues(address)
            .unwrap()
            .iter()
            .map(|queue| queue.length)
            .sum()
    }

    #[test]
    fn what_is_not_accepted_and_not_read_is_counted() {
        for bound in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(bound) else {
                println!("SKIPPED: {bound}: no such address here");
                continue;
            };
            let address = listener.local_addr().unwrap();
            assert_eq!(total(address), 0);
            let mut client = TcpStream::connect(address).unwrap();
            assert_eq!(total(address), 1, "one connection waits");
            let (mut server, _) = listener.accept().unwrap();
            assert_eq!(total(address), 0);
            client.write_all(b"hello").unwrap();
            let deadline = Instant::now() + Duration::from_secs(5);
            while total(address) != 5 {
                assert!(Instant::now() < deadline, "{}", total(address));
                std::thread::yield_now();
            }
            let peer = client.local_addr().unwrap().port();
            let of_peer = queues(address)
                .unwrap()
                .into_iter()
                .find(|queue| queue.peer == Some(peer));
            assert_eq!(of_peer.unwrap().length, 5);
            server.read_exact(&mut [0; 5]).unwrap();
            assert_eq!(total(address), 0);
        }
    }

    #[test]
    fn a_queue_that_is_taken_from_starts_anew() {
        let mut unread = Unread::default();
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let queue = |cookie, length| Queue {
            cookie,
            peer: None,
            length,
        };
        let ms = |value| Some(Duration::from_millis(value));
        assert_eq!(unread.add(&[], at(0)), None);
        assert_eq!(unread.add(&[queue(1, 5)], at(10)), ms(0));
        assert_eq!(unread.add(&[queue(1, 9), queue(2, 1)], at(30)), ms(20));
        assert_eq!(unread.add(&[queue(1, 8), queue(2, 1)], at(40)), ms(10));
        assert_eq!(unread.add(&[queue(1, 0)], at(50)), None);
        assert_eq!(unread.add(&[queue(1, 8)], at(60)), ms(0));
        unread.forget();
        assert_eq!(unread.add(&[queue(1, 8)], at(90)), ms(0));
    }
}
