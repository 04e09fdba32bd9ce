//! The table of nftables by which CRIU holds connections up; it stays when CRIU's work does not end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::netlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const DELETE_TABLE: u16 = (SUBSYSTEM << 8) | 2;
const TABLE_NAME: u16 = 1;
const FAMILY_INET: u8 = 1;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
/// A message that carries an error number, or 0.
const ERROR: u16 = 2;

/// Removes a table of the family `inet`. One that is not there is removed.
pub(crate) fn remove_table(name: &str) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )?;
    let mut batch = message(BATCH_BEGIN, 0, (0, SUBSYSTEM), &[]);
    let mut text = name.as_bytes().to_vec();
    text.push(0);
    let attribute = attribute(TABLE_NAME, &text);
    batch.extend(message(
        DELETE_TABLE,
        ACKNOWLEDGE,
        (FAMILY_INET, 0),
        &attribute,
    ));
    batch.extend(message(BATCH_END, 0, (0, SUBSYSTEM), &[]));
    send(socket.as_fd(), &batch, SendFlags::empty())?;
    match answer(&socket)? {
        0 | libc::ENOENT => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The error number of the first answer.
fn answer(socket: &OwnedFd) -> io::Result<i32> {
    let mut buffer = [0_u8; 1024];
    let (_, length) = recv(socket.as_fd(), &mut buffer[..], RecvFlags::empty())?;
    let found = buffer.get(..length).unwrap_or_default();
    let kind = found.get(4..6).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    let number = found
        .get(16..20)
        .map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    match (kind, number) {
        (Some(ERROR), Some(number)) => Ok(-number),
        _ => Err(io::Error::other("the kernel answers something else")),
    }
}

/// One message: its kind, flags, and its head's family and resource, then what it carries.
fn message(kind: u16, flags: u16, (family, resource): (u8, u16), body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    // A sequence number and the sender, which is nobody in particular.
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
