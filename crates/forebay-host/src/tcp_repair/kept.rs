//! Connections on disk: one file, which is whole or not used, and used once.
//!
//! ```text
//! "forebay connections 1\n"   length of the head (u32, little-endian)   head (JSON)
//! for each connection what it has to send, then what it received
//! checksum of all that comes before (CRC-32, u32, little-endian)
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::num::NonZeroU64;
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};

use super::socket::{Frozen, QUEUE_BYTES_MAX, Shape};
use crate::error::HostError;
use crate::regular;

const BEGIN: &[u8] = b"forebay connections 1\n";
const SUM_BYTES: usize = 4;
/// Most bytes of a file: what waits, and twice as much around it.
const BYTES_MAX: usize = 192 * 1024 * 1024;
/// Most bytes that wait in all connections together, with what fronts know of them: so much memory, and a file of that
/// size, is needed while a host goes down.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most connections in one.
const CONNECTIONS_MAX: usize = 65_536;
/// How long connections are worth anything, in milliseconds: for a quarter of an hour a client sends what is not
/// acknowledged, and four times that is given to one that has nothing to send.
const AGE_MAX_MS: u64 = 60 * 60 * 1000;
/// What is read back at once.
const PIECE: usize = 64 * 1024;
/// In the state directory.
const FILE: &str = "connections";
/// What is in use, or was.
const CLAIMED: &str = "connections.claimed";
const WORD: &str = "nothing but clients' connections is lost: they connect again";

/// One connection of a front's client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The front that it goes through.
    pub front: String,
    /// What the front knows of it, in the front's own words.
    pub state: String,
    /// The connection.
    pub frozen: Frozen,
}

/// All that were written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The update that it was done for.
    pub update: u64,
    /// When they stopped, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Connections that could not be written down, by front.
    pub left: BTreeMap<String, u64>,
    /// Those that could.
    pub connections: Vec<Connection>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    update: u64,
    at_unix_ms: u64,
    left: BTreeMap<String, u64>,
    connections: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    front: String,
    state: String,
    shape: Shape,
    to_send: usize,
    received: usize,
}

/// How many connections are still taken, and how much of what waits in them.
#[derive(Debug)]
pub struct Room {
    bytes: usize,
    connections: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            bytes: WAITING_BYTES_MAX,
            connections: CONNECTIONS_MAX,
        }
    }
}

impl Room {
    /// Whether there is room for this one as well; then it is taken.
    pub fn take(&mut self, one: &Connection) -> bool {
        let frozen = &one.frozen;
        let bytes = frozen.to_send.len() + frozen.received.len() + one.state.len();
        let left = self.bytes.checked_sub(bytes);
        let (Some(bytes), Some(connections)) = (left, self.connections.checked_sub(1)) else {
            return false;
        };
        *self = Self { bytes, connections };
        true
    }
}

/// Why bytes are not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Damaged(&'static str);

impl Kept {
    /// As bytes.
    ///
    /// # Errors
    /// When they are more than a file takes.
    pub fn encode(&self) -> Result<Vec<u8>, HostError> {
        let entry = |one: &Connection| Entry {
            front: one.front.clone(),
            state: one.state.clone(),
            shape: one.frozen.shape,
            to_send: one.frozen.to_send.len(),
            received: one.frozen.received.len(),
        };
        let head = Head {
            update: self.update,
            at_unix_ms: self.at_unix_ms,
            left: self.left.clone(),
            connections: self.connections.iter().map(entry).collect(),
        };
        let head = serde_json::to_vec(&head)
            .map_err(|error| HostError::io("write connections down", io::Error::from(error)))?;
        let mut bytes = BEGIN.to_vec();
        bytes.extend(u32::try_from(head.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(head);
        for one in &self.connections {
            bytes.extend(&one.frozen.to_send);
            bytes.extend(&one.frozen.received);
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        if bytes.len() > BYTES_MAX {
            return Err(HostError::invalid(
                format!("write {} bytes of connections down", bytes.len()),
                format!("{BYTES_MAX} are; {WORD}"),
            ));
        }
        Ok(bytes)
    }

    /// From bytes.
    ///
    /// # Errors
    /// When they are not what was written.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        const SHORT: Damaged = Damaged("it is too short");
        let end = bytes.len().checked_sub(SUM_BYTES).ok_or(SHORT)?;
        let (bytes, sum) = bytes.split_at(end);
        if crc32fast::hash(bytes).to_le_bytes() != sum {
            return Err(Damaged("its checksum is another one"));
        }
        let rest = bytes
            .strip_prefix(BEGIN)
            .ok_or(Damaged("it begins otherwise"))?;
        let (length, rest) = rest.split_first_chunk().ok_or(SHORT)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| SHORT)?;
        let (head, mut rest) = rest.split_at_checked(length).ok_or(SHORT)?;
        let head: Head =
            serde_json::from_slice(head).map_err(|_| Damaged("its head cannot be read"))?;
        if head.connections.len() > CONNECTIONS_MAX {
            return Err(Damaged("there are too many connections in it"));
        }
        let mut take = |length: usize| {
            let (taken, after) = rest.split_at_checked(length).ok_or(SHORT)?;
            rest = after;
            Ok::<_, Damaged>(taken.to_vec())
        };
        let mut connections = Vec::new();
        for entry in head.connections {
            if entry.to_send > QUEUE_BYTES_MAX || entry.shape.unsent > entry.to_send {
                return Err(Damaged("the numbers of a connection contradict"));
            }
            connections.push(Connection {
                front: entry.front,
                state: entry.state,
                frozen: Frozen {
                    shape: entry.shape,
                    to_send: take(entry.to_send)?,
                    received: take(entry.received)?,
                },
            });
        }
        if !rest.is_empty() {
            return Err(Damaged("something comes after it"));
        }
        Ok(Self {
            update: head.update,
            at_unix_ms: head.at_unix_ms,
            left: head.left,
            connections,
        })
    }

    /// Whether they are of another time: of a boot long ago, by the host's clock.
    #[must_use]
    pub fn is_old(&self, now_unix_ms: u64) -> bool {
        now_unix_ms.saturating_sub(self.at_unix_ms) > AGE_MAX_MS
    }
}

/// Writes them down, durably, and reads them back from the disk.
///
/// # Errors
/// When that fails, or the disk gives back something else.
pub fn write(state_dir: &Path, kept: &Kept) -> Result<(), HostError> {
    let file = state_dir.join(FILE);
    let bytes = kept.encode()?;
    regular::replace(&file, &bytes, 0o600)
        .map_err(|error| HostError::told(format!("write connections down: {error}; {WORD}")))?;
    let is_there =
        is_on_disk(&file, &bytes).map_err(|error| HostError::file("read back", &file, error))?;
    if !is_there {
        forget(&file)?;
        return Err(HostError::invalid(
            format!("compare {} with what was written", file.display()),
            "the disk gives back something else than was written: look at it",
        ));
    }
    Ok(())
}

/// Whether the disk has these bytes: what the kernel still has in memory says nothing of it.
fn is_on_disk(file: &Path, bytes: &[u8]) -> io::Result<bool> {
    let mut open = File::open(file)?;
    fadvise(&open, 0, None::<NonZeroU64>, Advice::DontNeed)?;
    let (mut rest, mut piece) = (bytes, vec![0; PIECE]);
    loop {
        let found = match open.read(&mut piece)? {
            0 => return Ok(rest.is_empty()),
            length => &piece[..length],
        };
        match rest.strip_prefix(found) {
            Some(after) => rest = after,
            None => return Ok(false),
        }
    }
}

/// What stands there, without taking it; none where nothing does.
///
/// # Errors
/// When it cannot be read, or is damaged.
pub fn look(state_dir: &Path) -> Result<Option<Kept>, HostError> {
    read(&state_dir.join(FILE))
}

/// Takes them: whoever comes after, in this boot or another, finds none. None where there are none that are worth
/// anything at this time, in milliseconds since 1970.
///
/// # Errors
/// When they cannot be read or taken, or are damaged; they are gone then as well.
pub fn take(state_dir: &Path, now_unix_ms: u64) -> Result<Option<Kept>, HostError> {
    let (file, claimed) = (state_dir.join(FILE), state_dir.join(CLAIMED));
    match fs::rename(&file, &claimed) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(HostError::file("claim", &file, error)),
    }
    // Before anything is made of them.
    File::open(state_dir)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| HostError::file("sync", state_dir, error))?;
    let kept = read(&claimed);
    forget(&claimed)?;
    Ok(kept?.filter(|kept| !kept.is_old(now_unix_ms)))
}

/// Removes them, as when an update that they were written for goes on without.
///
/// # Errors
/// When that fails.
pub fn discard(state_dir: &Path) -> Result<(), HostError> {
    forget(&state_dir.join(FILE))
}

fn forget(file: &Path) -> Result<(), HostError> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HostError::file("remove", file, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn read(file: &Path) -> Result<Option<Kept>, HostError> {
    let most = u64::try_from(BYTES_MAX).unwrap_or(u64::MAX);
    let (bytes, _) = match regular::read(file, most) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(HostError::file("read", file, error)),
    };
    let kept = Kept::decode(&bytes);
    kept.map(Some)
        .map_err(|why| HostError::invalid(format!("read {}: {why}", file.display()), WORD))
}

#[cfg(test)]
mod tests {
    use super::super::socket::Window;
    use super::*;

    fn kept() -> Kept {
        let one = |front: &str, to_send: &[u8], received: &[u8]| Connection {
            front: front.to_owned(),
            state: "{}".to_owned(),
            frozen: Frozen {
                shape: Shape {
                    local: "192.0.2.1:80".parse().unwrap(),
                    peer: "[2001:db8::1]:9".parse().unwrap(),
                    send_seq: u32::MAX,
                    receive_seq: 1,
                    unsent: to_send.len() / 2,
                    mss: 1448,
                    window_scale: Some((7, 10)),
                    sack: true,
                    timestamp: Some(4),
                    window: Window::default(),
                    send_buffer: 1,
                    receive_buffer: 2,
                },
                to_send: to_send.to_vec(),
                received: received.to_vec(),
            },
        };
        Kept {
            update: 3,
            at_unix_ms: 1_000,
            left: BTreeMap::from([("web".to_owned(), 2)]),
            connections: vec![one("web", b"answer", b"GET /"), one("cache", b"", b"")],
        }
    }

    #[test]
    fn what_was_written_is_read_and_nothing_else_is() {
        let bytes = kept().encode().unwrap();
        assert_eq!(Kept::decode(&bytes).unwrap(), kept());
        for length in 0..bytes.len() {
            assert!(Kept::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 0x10;
            assert!(Kept::decode(&other).is_err(), "byte {at}");
        }
    }

    /// A sum says that bytes are as somebody wrote them, and not that they make sense.
    #[test]
    fn bytes_with_a_proper_sum_are_read_or_refused() {
        let whole = kept().encode().unwrap();
        let body = &whole[..whole.len() - SUM_BYTES];
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..4000 {
            let mut bytes = body.to_vec();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                match random.u8(..3) {
                    0 => bytes[at] = random.u8(..),
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random.u8(..)),
                }
            }
            bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
            if let Ok(read) = Kept::decode(&bytes) {
                assert!(read.connections.len() <= CONNECTIONS_MAX);
            }
        }
    }

    #[test]
    fn what_waits_in_all_connections_together_has_a_bound() {
        let mut large = kept().connections.remove(0);
        large.frozen.to_send = vec![0; QUEUE_BYTES_MAX];
        large.frozen.received = Vec::new();
        large.state = String::new();
        let small = kept().connections.remove(1);
        let mut room = Room::default();
        let taken = (0..100).take_while(|_| room.take(&large)).count();
        assert_eq!(taken, WAITING_BYTES_MAX / QUEUE_BYTES_MAX);
        assert!(!room.take(&small), "nothing is left");
        let mut room = Room::default();
        let taken = (0..=CONNECTIONS_MAX).take_while(|_| room.take(&small));
        assert_eq!(taken.count(), CONNECTIONS_MAX);
        // What has room is written.
        let full = Kept {
            connections: vec![small; CONNECTIONS_MAX],
            ..kept()
        };
        let bytes = full.encode().unwrap();
        assert!(
            bytes.len() + WAITING_BYTES_MAX <= BYTES_MAX,
            "{}",
            bytes.len()
        );
    }

    #[test]
    fn a_disk_that_has_something_else_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let bytes: Vec<u8> = (0..=255).cycle().take(2 * PIECE + 7).collect();
        let check = |there: &[u8], expected: bool| {
            fs::write(&file, there).unwrap();
            assert_eq!(is_on_disk(&file, &bytes).unwrap(), expected);
        };
        check(&bytes, true);
        check(&bytes[..PIECE], false);
        check(&[&bytes[..], &[0]].concat(), false);
        let mut other = bytes.clone();
        other[PIECE + 1] ^= 1;
        check(&other, false);
        check(&[], false);
    }

    #[test]
    fn they_are_taken_once_and_while_they_are_worth_something() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        assert_eq!(take(at, 0).unwrap(), None);
        write(at, &kept()).unwrap();
        assert_eq!(look(at).unwrap(), Some(kept()));
        assert_eq!(take(at, 2_000).unwrap(), Some(kept()));
        assert_eq!(take(at, 2_000).unwrap(), None);
        assert_eq!(look(at).unwrap(), None);
        // A clock that is behind tells nothing.
        write(at, &kept()).unwrap();
        assert_eq!(take(at, 0).unwrap(), Some(kept()));
        write(at, &kept()).unwrap();
        assert_eq!(take(at, 1_001 + AGE_MAX_MS).unwrap(), None);
        write(at, &kept()).unwrap();
        discard(at).unwrap();
        assert_eq!(take(at, 2_000).unwrap(), None);
    }

    #[test]
    fn what_is_damaged_is_named_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        write(dir.path(), &kept()).unwrap();
        let mut bytes = fs::read(&file).unwrap();
        bytes[40] ^= 1;
        fs::write(&file, bytes).unwrap();
        let why = take(dir.path(), 2_000).unwrap_err().explain();
        assert!(
            why.contains("checksum") && why.contains("connect again"),
            "{why}"
        );
        assert_eq!(take(dir.path(), 2_000).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
