//! Messages to the kernel over netlink, and its answers.
//!
//! The kernel does what a message asks before `send` returns, and its answer is there by then.
//!
//! Source: netlink(7), and Documentation/userspace-api/netlink of the kernel.

use std::io;
use std::os::fd::AsFd as _;

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

const REQUEST: u16 = 1;
/// The kernel says as well that it did what was asked.
pub(crate) const ACKNOWLEDGE: u16 = 4;
/// All of a table is wanted.
const DUMP: u16 = 0x300;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
pub(crate) const APPEND: u16 = 0x800;
/// A message that carries an error number, or 0.
const ERROR: u16 = 2;
/// The last one of a table.
const DONE: u16 = 3;
const NESTED: u16 = 0x8000;
/// What comes before the contents of a message, in bytes.
const HEAD: usize = 16;
/// Whole messages of a table fit into this.
const BUFFER: usize = 64 << 10;

/// One message: its kind, its flags, and what it carries.
pub(crate) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEAD + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    // A sequence number and the sender, which is nobody in particular.
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// One attribute.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute that consists of others.
pub(crate) fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(NESTED | kind, &parts.concat())
}

/// Attributes by kind, as they stand in what the kernel said.
pub(crate) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some(head) = bytes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & !NESTED;
        let Some(value) = bytes.get(4..length) else {
            break;
        };
        found.push((kind, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn socket(protocol: Option<Protocol>) -> io::Result<rustix::fd::OwnedFd> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?)
}

/// Has the kernel do something; what it answers first is how that ended. Of several messages one has to want an
/// answer ([`ACKNOWLEDGE`]).
///
/// # Errors
/// The kernel's own, or when it answers something else.
pub(crate) fn ask(protocol: Option<Protocol>, messages: &[u8]) -> io::Result<()> {
    let socket = socket(protocol)?;
    send(socket.as_fd(), messages, SendFlags::empty())?;
    // Where it is refused, all that was asked comes back behind the number.
    let mut buffer = vec![0_u8; BUFFER.max(messages.len() + 2 * HEAD)];
    let (_, length) = recv(socket.as_fd(), &mut buffer[..], RecvFlags::empty())?;
    let said = buffer.get(..length).unwrap_or_default();
    match parts(said).next() {
        Some((ERROR, body)) => outcome(body),
        _ => Err(io::Error::other("the kernel answers something else")),
    }
}

/// How something ended, by the contents of a message that says so.
fn outcome(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|number| i32::from_ne_bytes(*number)) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::Error::other("the kernel's answer is cut off")),
    }
}

/// All of a table: the contents of its messages.
///
/// # Errors
/// The kernel's own.
pub(crate) fn dump(protocol: Option<Protocol>, kind: u16, head: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let socket = socket(protocol)?;
    let asked = message(kind, DUMP, head);
    send(socket.as_fd(), &asked, SendFlags::empty())?;
    let mut buffer = vec![0_u8; BUFFER];
    let mut found = Vec::new();
    loop {
        let (_, length) = recv(socket.as_fd(), &mut buffer[..], RecvFlags::empty())?;
        let said = buffer.get(..length).unwrap_or_default();
        if said.is_empty() {
            return Err(io::Error::other("the kernel's answer is cut off"));
        }
        for (kind, body) in parts(said) {
            match kind {
                DONE => return Ok(found),
                ERROR => outcome(body)?,
                _ => found.push(body.to_vec()),
            }
        }
    }
}

/// The messages in what the kernel said: their kinds and contents.
fn parts(mut said: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = said
            .first_chunk()
            .map(|bytes| u32::from_ne_bytes(*bytes))
            .and_then(|length| usize::try_from(length).ok())?;
        let kind = said.get(4..6)?;
        let kind = u16::from_ne_bytes([kind[0], kind[1]]);
        let body = said.get(HEAD..length)?;
        said = said.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_are_read_as_they_were_written() {
        let own = nested(1, &[attribute(2, b"lo"), attribute(3, &[1, 2, 3, 4])]);
        let both = [message(20, ACKNOWLEDGE, &own), message(3, 0, &[])].concat();
        let found: Vec<_> = parts(&both).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1], (3, &[][..]));
        let (kind, body) = found[0];
        assert_eq!(kind, 20);
        let outer = attributes(body);
        assert_eq!(outer.len(), 1);
        assert_eq!(
            attributes(outer[0].1),
            [(2, &b"lo"[..]), (3, &[1, 2, 3, 4])]
        );
        for length in 0..both.len() {
            // Whatever is cut off is no message, and no panic.
            assert!(parts(&both[..length]).count() <= 2);
            assert!(attributes(&both[..length]).len() <= both.len());
        }
    }
}
