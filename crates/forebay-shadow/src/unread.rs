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
/// The kernel walks through all sockets of the host for a list. This request, the older one, lists those
/// of both families in one walk.
const TCPDIAG_GETSOCK: u16 = 18;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = 60;
const MESSAGE_BYTES: usize = 72;
const ESTABLISHED: u32 = 1;
const CLOSE_WAIT: u32 = 8;
const LISTEN: u32 = 10;
const INET: u8 = 2;
/// The attribute that holds a `struct tcp_info` (linux/tcp.h), and what was received, in it.
const INET_DIAG_INFO: u16 = 2;
const BYTES_RECEIVED: usize = 128;
/// Sockets that are followed from one look to the next.
const SOCKETS_MAX: usize = 4096;
/// How often they are looked at, at most: a walk takes a third of a millisecond, and more on a host with
/// many sockets.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// And at least, however long the silence is that would be suspicious.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// One socket of the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Queue {
    cookie: u64,
    /// The port of the other end; none of one that listens.
    pub(crate) peer: Option<u16>,
    /// Bytes unread, or connections not accepted.
    pub(crate) length: u32,
    /// Bytes that were read since the connection was made, where that is known.
    taken: Option<u64>,
}

impl Queue {
    /// Whether something was taken out of it since an earlier look. One that is filled as fast as it is
    /// emptied is as long as before.
    fn is_taken_from(&self, before: &Self) -> bool {
        match (self.taken, before.taken) {
            (Some(taken), Some(before)) => taken > before,
            _ => self.length < before.length,
        }
    }

    #[cfg(test)]
    pub(crate) const fn new(peer: Option<u16>, length: u32) -> Self {
        Self {
            cookie: 0,
            peer,
            length,
            taken: None,
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
    send(&socket, &request(address.port()), SendFlags::empty())?;
    receive(&socket, address, &mut found)?;
    Ok(found)
}

fn request(port: u16) -> [u8; HEADER_BYTES + REQUEST_BYTES] {
    let mut bytes = [0; HEADER_BYTES + REQUEST_BYTES];
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let states: u32 = 1 << ESTABLISHED | 1 << CLOSE_WAIT | 1 << LISTEN;
    for (at, value) in [
        (0, length.to_ne_bytes().as_slice()),
        (4, &TCPDIAG_GETSOCK.to_ne_bytes()),
        (6, &NLM_F_REQUEST_DUMP.to_ne_bytes()),
        // struct inet_diag_req: any family, attributes, source port, states.
        (19, &[1 << (INET_DIAG_INFO - 1)]),
        (20, &port.to_be_bytes()),
        (68, &states.to_ne_bytes()),
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
    let length = word(message, 56)?;
    let received = info(message.get(MESSAGE_BYTES..)?).and_then(received);
    let received = received.filter(|_| !listens);
    Some(Queue {
        cookie: u64::from(word(message, 44)?) | u64::from(word(message, 48)?) << 32,
        peer: (!listens).then_some(u16::from_be_bytes([*message.get(6)?, *message.get(7)?])),
        length,
        taken: received.map(|received| received.saturating_sub(u64::from(length))),
    })
}

/// The `struct tcp_info` among attributes.
fn info(mut attributes: &[u8]) -> Option<&[u8]> {
    loop {
        let size = usize::from(half(attributes, 0)?);
        let content = attributes.get(4..size)?;
        if half(attributes, 2)? == INET_DIAG_INFO {
            return Some(content);
        }
        attributes = attributes.get(size.next_multiple_of(4)..)?;
    }
}

fn received(info: &[u8]) -> Option<u64> {
    let bytes = info.get(BYTES_RECEIVED..BYTES_RECEIVED + 8)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

fn ip(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    if family == INET {
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
    since: BTreeMap<u64, (Queue, Instant)>,
    /// When they were looked at, and what was seen.
    looked: Option<(Instant, Option<Duration>)>,
}

impl Unread {
    /// How long the socket at an address waits that waits longest with nothing taken out of it, as it
    /// was a moment ago: a small share of the silence that would be suspicious.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub(crate) fn look(
        &mut self,
        address: SocketAddr,
        silence: Duration,
        now: Instant,
    ) -> io::Result<Option<Duration>> {
        let pause = (silence / 8).clamp(PAUSE_MIN, PAUSE_MAX);
        let recent = |at: &Instant| now.saturating_duration_since(*at) < pause;
        if let Some((_, seen)) = self.looked.filter(|(at, _)| recent(at)) {
            return Ok(seen);
        }
        let seen = self.add(&queues(address)?, now);
        self.looked = Some((now, seen));
        Ok(seen)
    }

    fn add(&mut self, queues: &[Queue], now: Instant) -> Option<Duration> {
        let mut since = BTreeMap::new();
        for queue in queues.iter().filter(|queue| queue.length > 0) {
            let before = self.since.get(&queue.cookie);
            let untouched = before.filter(|(before, _)| !queue.is_taken_from(before));
            let from = untouched.map_or(now, |(_, from)| *from);
            since.insert(queue.cookie, (*queue, from));
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
        self.looked = None;
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
            ..Queue::new(None, length)
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
        let taken = |length, taken| Queue {
            taken: Some(taken),
            ..queue(2, length)
        };
        assert_eq!(unread.add(&[taken(8, 100)], at(100)), ms(0));
        assert_eq!(unread.add(&[taken(9, 100)], at(120)), ms(20));
        assert_eq!(unread.add(&[taken(9, 101)], at(130)), ms(0));
    }

    /// A connection in which one side only sends, and that is read all the time and never empty, was
    /// taken for one that is left unread.
    #[test]
    fn a_queue_that_is_filled_as_fast_as_it_is_emptied_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let arrive = |bytes: u32| {
            let deadline = Instant::now() + Duration::from_secs(5);
            while total(address) != bytes {
                assert!(Instant::now() < deadline, "{}", total(address));
                std::thread::yield_now();
            }
        };
        let mut unread = Unread::default();
        let begin = Instant::now();
        client.write_all(&[0; 100]).unwrap();
        arrive(100);
        for round in 0..5 {
            let now = begin + round * PAUSE_MIN;
            let seen = unread.look(address, Duration::ZERO, now).unwrap();
            assert_eq!(seen, Some(Duration::ZERO), "round {round}");
            server.read_exact(&mut [0; 100]).unwrap();
            client.write_all(&[0; 100]).unwrap();
            arrive(100);
        }
        let now = begin + 5 * PAUSE_MIN;
        let seen = unread.look(address, Duration::ZERO, now).unwrap();
        assert_eq!(seen, Some(Duration::ZERO));
        client.write_all(&[0; 100]).unwrap();
        arrive(200);
        let now = begin + 7 * PAUSE_MIN;
        let seen = unread.look(address, Duration::ZERO, now).unwrap();
        assert_eq!(seen, Some(2 * PAUSE_MIN), "nobody read it");
        // Nothing is asked again before some time has gone by.
        server.read_exact(&mut [0; 200]).unwrap();
        arrive(0);
        let soon = now + PAUSE_MIN / 2;
        assert_eq!(unread.look(address, Duration::ZERO, soon).unwrap(), seen);
        let later = now + PAUSE_MIN;
        assert_eq!(unread.look(address, Duration::ZERO, later).unwrap(), None);
    }
}
