//! One connection: read whole, and made anew.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, recv, send,
    sockopt,
};
use serde::{Deserialize, Serialize};

use super::options::{Plain, get, queued, set, set_bytes};

/// Most bytes in one queue of a connection that is written down.
pub const QUEUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What is put into a queue at once.
const CHUNK: usize = 32 * 1024;

/// The level and the names of options (linux/tcp.h, asm-generic/socket.h).
const TCP: libc::c_int = libc::IPPROTO_TCP;
const SO_BUF_LOCK: libc::c_int = 72;
const ON: i32 = 1;
/// Back to normal, and the other side is asked for its window.
const OFF: i32 = 0;
/// Back to normal without a word to the other side.
const OFF_SILENTLY: i32 = -1;
const NO_QUEUE: i32 = 0;
const RECEIVE_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;
/// `SIOCOUTQNSD`: what of the queue was never sent.
const UNSENT: libc::c_ulong = 0x894B;
/// Options as they stand in the packet that begins a connection.
const MAXIMUM_SEGMENT: u32 = 2;
const WINDOW_SCALE: u32 = 3;
const SACK_PERMITTED: u32 = 4;
const TIMESTAMPS: u32 = 8;
/// `tcpi_options`.
const INFO_TIMESTAMPS: u8 = 1;
const INFO_SACK: u8 = 2;
const INFO_WINDOW_SCALE: u8 = 4;
/// `tcpi_state`.
const ESTABLISHED: u8 = 1;

/// What the two sides have said of how much may be sent (`struct tcp_repair_window`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The segment that the other side's window was last taken from.
    pub snd_wl1: u32,
    /// That window, in bytes.
    pub snd_wnd: u32,
    /// The largest that it ever was, in bytes.
    pub max_window: u32,
    /// This side's window, in bytes.
    pub rcv_wnd: u32,
    /// Up to where the other side was told of it.
    pub rcv_wup: u32,
}

impl Plain for Window {}

/// `struct tcp_repair_opt`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Agreed {
    code: u32,
    value: u32,
}

impl Plain for Agreed {}

/// The beginning of `struct tcp_info`, as far as it is read here.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Info {
    state: u8,
    congestion: u8,
    retransmits: u8,
    probes: u8,
    backoff: u8,
    options: u8,
    /// What may be sent to the other side is shifted by the low four bits, what this side takes by the high ones.
    scales: u8,
    flags: u8,
}

impl Plain for Info {}

/// All that a connection is, without its queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Behind the last byte that this side has to send.
    pub send_seq: u32,
    /// Behind the last byte that was received.
    pub receive_seq: u32,
    /// Of the bytes to send, so many were never sent.
    pub unsent: usize,
    /// The largest segment that the other side takes, in bytes.
    pub mss: u32,
    /// By how many bits windows are shifted: of what the other side takes, and of what this one does.
    pub window_scale: Option<(u8, u8)>,
    /// The other side says what it has out of order.
    pub sack: bool,
    /// What the clock of the connection's timestamps showed; the lowest bit says of what unit it is. Absent
    /// without timestamps.
    pub timestamp: Option<u32>,
    /// How much may be sent.
    pub window: Window,
    /// Room for what is to be sent, in bytes, as the kernel counts it.
    pub send_buffer: usize,
    /// Room for what was received.
    pub receive_buffer: usize,
}

/// A connection as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    /// All but the queues.
    pub shape: Shape,
    /// What was not acknowledged to this side yet, in order.
    pub to_send: Vec<u8>,
    /// What was acknowledged to the other side and not read yet, in order.
    pub received: Vec<u8>,
}

impl Frozen {
    /// Puts back what was read from the connection and not dealt with: it is read first again.
    pub fn put_back(&mut self, mut bytes: Vec<u8>) {
        bytes.append(&mut self.received);
        self.received = bytes;
    }
}

/// Reads a connection, which stands from then on: its end says nothing to the other side. Nothing may come in meanwhile
/// ([`super::Rule`]), since that would be acknowledged.
///
/// # Errors
/// When it is not established, as one that the other side has ended; when a queue holds more than
/// [`QUEUE_BYTES_MAX`]; what the kernel says. It goes on then.
pub fn freeze(socket: BorrowedFd<'_>) -> io::Result<Frozen> {
    if let Some(why) = unfit(socket)? {
        return Err(io::Error::other(why));
    }
    repair(socket, ON)?;
    let read = read(socket);
    if read.is_err() {
        repair(socket, OFF_SILENTLY)?;
    }
    read
}

/// Has a connection go on that was frozen.
///
/// # Errors
/// What the kernel says.
pub fn thaw(socket: BorrowedFd<'_>) -> io::Result<()> {
    repair(socket, OFF)
}

/// Whether nothing was received since a connection was frozen: a packet may have been on its way past the rule that
/// drops those after it, and what it brought was acknowledged.
///
/// # Errors
/// What the kernel says.
pub fn is_as_it_was(socket: BorrowedFd<'_>, frozen: &Frozen) -> io::Result<bool> {
    choose(socket, RECEIVE_QUEUE)?;
    let receive_seq: u32 = get(socket, libc::TCP_QUEUE_SEQ)?;
    choose(socket, NO_QUEUE)?;
    Ok(receive_seq == frozen.shape.receive_seq)
}

fn unfit(socket: BorrowedFd<'_>) -> io::Result<Option<&'static str>> {
    let info: Info = get(socket, libc::TCP_INFO)?;
    if info.state != ESTABLISHED {
        return Ok(Some("the client has ended it"));
    }
    let local = ends(socket)?.0;
    // The number of a link is another one in another boot.
    let is_link_local = match local {
        SocketAddr::V4(_) => false,
        SocketAddr::V6(local) => local.scope_id() != 0,
    };
    Ok(is_link_local.then_some("its address is one of the link alone"))
}

fn ends(socket: BorrowedFd<'_>) -> io::Result<(SocketAddr, SocketAddr)> {
    let local = rustix::net::getsockname(socket)?;
    let peer = rustix::net::getpeername(socket)?.ok_or(io::ErrorKind::NotConnected)?;
    Ok((local.try_into()?, peer.try_into()?))
}

fn read(socket: BorrowedFd<'_>) -> io::Result<Frozen> {
    let info: Info = get(socket, libc::TCP_INFO)?;
    let (local, peer) = ends(socket)?;
    let has = |option| info.options & option != 0;
    let unsent = queued(socket, UNSENT)?;
    let (to_send, received) = (
        queued(socket, libc::TIOCOUTQ)?,
        queued(socket, libc::FIONREAD)?,
    );
    choose(socket, SEND_QUEUE)?;
    let send_seq = get(socket, libc::TCP_QUEUE_SEQ)?;
    let to_send = peek(socket, to_send)?;
    choose(socket, RECEIVE_QUEUE)?;
    let receive_seq = get(socket, libc::TCP_QUEUE_SEQ)?;
    let received = peek(socket, received)?;
    choose(socket, NO_QUEUE)?;
    let timestamp = has(INFO_TIMESTAMPS).then(|| get(socket, libc::TCP_TIMESTAMP));
    let release = rustix::system::uname();
    let timestamp = timestamp.transpose()?.map(|shown| {
        let release = release.release().to_string_lossy();
        plain_timestamp(shown, &release)
    });
    Ok(Frozen {
        shape: Shape {
            local,
            peer,
            send_seq,
            receive_seq,
            unsent,
            mss: get(socket, libc::TCP_MAXSEG)?,
            window_scale: has(INFO_WINDOW_SCALE).then_some((info.scales & 15, info.scales >> 4)),
            sack: has(INFO_SACK),
            timestamp,
            window: get(socket, libc::TCP_REPAIR_WINDOW)?,
            send_buffer: sockopt::socket_send_buffer_size(socket)?,
            receive_buffer: sockopt::socket_recv_buffer_size(socket)?,
        },
        to_send,
        received,
    })
}

/// A timestamp as kernels from 6.7 on mean it: their lowest bit says that the unit is the microsecond. Before, it was
/// part of a number of milliseconds, of which one later is as good.
fn plain_timestamp(shown: u32, release: &str) -> u32 {
    let mut numbers = release.split(['.', '-']).map(|word| word.parse().ok());
    let version: (Option<u32>, Option<u32>) = (numbers.next().flatten(), numbers.next().flatten());
    let says_unit = version >= (Some(6), Some(7));
    if says_unit {
        shown
    } else {
        shown.wrapping_add(1) & !1
    }
}

/// Reads so many bytes of the queue that was chosen, and leaves them there.
fn peek(socket: BorrowedFd<'_>, length: usize) -> io::Result<Vec<u8>> {
    if length > QUEUE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "{length} bytes wait in one direction; {QUEUE_BYTES_MAX} are written down"
        )));
    }
    if length == 0 {
        return Ok(Vec::new());
    }
    // One more shows whether something came in between.
    let mut bytes = vec![0; length + 1];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let (_, found) = recv(socket, bytes.as_mut_slice(), flags)?;
    if found != length {
        return Err(io::Error::other(format!(
            "{length} bytes wait, and {found} could be read"
        )));
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Makes a connection like one that was read. It stands until it is told to go on ([`go_on`]); when it is closed
/// before, nobody hears of it.
///
/// # Errors
/// What the kernel says: `EADDRNOTAVAIL` while its address is not there, `ENETUNREACH` or `EHOSTUNREACH` while
/// there is no way to the other side ([`is_premature`]); in use where there is such a connection.
pub fn make(frozen: &Frozen) -> io::Result<OwnedFd> {
    let Frozen {
        shape,
        to_send,
        received,
    } = frozen;
    let impossible = || io::Error::new(io::ErrorKind::InvalidData, "its numbers contradict");
    let sent = to_send.len().checked_sub(shape.unsent);
    let sent = to_send.get(..sent.ok_or_else(impossible)?);
    let sent = sent.ok_or_else(impossible)?;
    let before = |seq: u32, bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        Ok::<u32, io::Error>(seq.wrapping_sub(length))
    };
    let family = match shape.local {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let made = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    let socket = made.as_fd();
    make_room(socket, shape, (to_send.len(), received.len()))?;
    repair(socket, ON)?;
    // One that came over IPv4 to a socket of IPv6.
    if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(socket, false)?;
    }
    choose(socket, SEND_QUEUE)?;
    set(
        socket,
        (TCP, libc::TCP_QUEUE_SEQ),
        &before(shape.send_seq, to_send)?,
    )?;
    choose(socket, RECEIVE_QUEUE)?;
    set(
        socket,
        (TCP, libc::TCP_QUEUE_SEQ),
        &before(shape.receive_seq, received)?,
    )?;
    bind(socket, &shape.local)?;
    connect(socket, &shape.peer).map_err(|error| match error {
        // Here the kernel says by it that both ends are in use; of the address alone it said so before.
        rustix::io::Errno::ADDRNOTAVAIL => io::Error::from(io::ErrorKind::AddrInUse),
        other => other.into(),
    })?;
    agree(socket, shape)?;
    put(socket, received)?;
    choose(socket, SEND_QUEUE)?;
    put(socket, sent)?;
    choose(socket, NO_QUEUE)?;
    set(socket, (TCP, libc::TCP_REPAIR_WINDOW), &shape.window)?;
    Ok(made)
}

/// The kernel halves what it says of a buffer's room when it is told.
fn make_room(
    socket: BorrowedFd<'_>,
    shape: &Shape,
    (to_send, received): (usize, usize),
) -> io::Result<()> {
    // What is put in is less dense than what came by segments.
    let send = (shape.send_buffer / 2).max(to_send.saturating_mul(2));
    let receive = (shape.receive_buffer / 2).max(received.saturating_mul(2));
    sockopt::set_socket_send_buffer_size_force(socket, send)?;
    Ok(sockopt::set_socket_recv_buffer_size_force(socket, receive)?)
}

/// What the two sides agreed on when they began.
fn agree(socket: BorrowedFd<'_>, shape: &Shape) -> io::Result<()> {
    let one = |code, value| Agreed { code, value };
    let mut agreed = vec![one(MAXIMUM_SEGMENT, shape.mss)];
    let scale = |(send, receive): (u8, u8)| u32::from(send) | u32::from(receive) << 16;
    agreed.extend(
        shape
            .window_scale
            .map(|both| one(WINDOW_SCALE, scale(both))),
    );
    agreed.extend(shape.sack.then_some(one(SACK_PERMITTED, 0)));
    agreed.extend(shape.timestamp.map(|_| one(TIMESTAMPS, 0)));
    set_bytes(socket, (TCP, libc::TCP_REPAIR_OPTIONS), &agreed)?;
    // The other side takes nothing that seems older than what it had.
    match shape.timestamp {
        Some(shown) => set(socket, (TCP, libc::TCP_TIMESTAMP), &shown),
        None => Ok(()),
    }
}

fn put(socket: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let piece = bytes.get(..CHUNK).unwrap_or(bytes);
        let taken = send(socket, piece, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        bytes = bytes.get(taken..).unwrap_or_default();
    }
    Ok(())
}

/// Has a connection that was made go on: from here on the other side hears of it.
///
/// # Errors
/// What the kernel says.
pub fn go_on(socket: BorrowedFd<'_>, frozen: &Frozen) -> io::Result<()> {
    let sent = frozen.to_send.len().saturating_sub(frozen.shape.unsent);
    repair(socket, OFF)?;
    // As those that a listening socket gives: whoever listens there next is not in the way.
    sockopt::set_socket_reuseaddr(socket, true)?;
    put(socket, frozen.to_send.get(sent..).unwrap_or_default())?;
    // The kernel chooses the room again, as for any connection.
    let unlocked = set(socket, (libc::SOL_SOCKET, SO_BUF_LOCK), &0_i32);
    if let Err(error) = unlocked {
        // Before Linux 5.14; the buffers stay as large as they were.
        tracing::debug!(%error, "the room of a connection stays as it is");
    }
    Ok(())
}

/// Whether a connection could not be made since its address is not there yet, or no way to its other end.
#[must_use]
pub fn is_premature(error: &io::Error) -> bool {
    let early = [
        libc::EADDRNOTAVAIL,
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::ENETDOWN,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| early.contains(&code))
}

/// Whether an address is this host's and can be reached over the network that it is on.
#[must_use]
pub const fn canonical(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

fn repair(socket: BorrowedFd<'_>, how: i32) -> io::Result<()> {
    set(socket, (TCP, libc::TCP_REPAIR), &how)
}

fn choose(socket: BorrowedFd<'_>, queue: i32) -> io::Result<()> {
    set(socket, (TCP, libc::TCP_REPAIR_QUEUE), &queue)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bit_of_a_timestamp_is_a_unit_from_linux_6_7_on() {
        let check = |release, shown, expected| {
            assert_eq!(plain_timestamp(shown, release), expected, "{release}");
        };
        check("6.18.1-debian", 7, 7);
        check("6.7.0", 8, 8);
        check("10.0-rc1", 7, 7);
        check("6.6.12", 7, 8);
        check("6.1.0-44-amd64", 8, 8);
        check("5.15", u32::MAX, 0);
    }
}
