//! What goes over the wire, in frames: parsed and written here, without a socket.
//!
//! ```text
//!   frame    kind (1 byte)   length (4 bytes, big end first)   payload
//!   Message  1               up to MESSAGE_MAX                 JSON
//!   Chunk    2               up to CHUNK_MAX + CHUNK_HEAD      flags (1)  raw length (4)  CRC-32 of the raw bytes (4)  bytes
//!   End      3               16                                raw bytes in all (8)  chunks in all (8)
//!   Abort    4               up to ABORT_MAX                   why, as text: the sender cannot go on
//! ```
//!
//! Nothing is allocated for a length beyond these. The checksum is of the bytes before they were
//! compressed: TLS sees to it that nobody changes them on the way, the checksum that neither memory nor
//! a compressor did.

/// Bytes of a message at most.
pub(crate) const MESSAGE_MAX: usize = 1 << 20;
/// Bytes of content in a chunk at most.
pub(crate) const CHUNK_MAX: usize = 1 << 20;
/// Bytes before a chunk's content.
pub(crate) const CHUNK_HEAD: usize = 9;
/// Bytes of a reason at most.
pub(crate) const ABORT_MAX: usize = 1024;
/// Bytes before a frame's payload.
pub(crate) const HEAD: usize = 5;

const END_BYTES: usize = 16;
const COMPRESSED: u8 = 1;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// A question, an answer or a greeting.
    Message,
    /// A piece of a content.
    Chunk,
    /// The end of a content.
    End,
    /// A content that has no end.
    Abort,
}

impl FrameKind {
    const fn byte(self) -> u8 {
        match self {
            Self::Message => 1,
            Self::Chunk => 2,
            Self::End => 3,
            Self::Abort => 4,
        }
    }

    /// The longest payload.
    pub(crate) const fn bytes_max(self) -> usize {
        match self {
            Self::Message => MESSAGE_MAX,
            Self::Chunk => CHUNK_MAX + CHUNK_HEAD,
            Self::End => END_BYTES,
            Self::Abort => ABORT_MAX,
        }
    }
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// There is no such kind.
    #[error("there is no frame of kind {0}")]
    Kind(u8),
    /// Longer than its kind may be.
    #[error("a frame of kind {kind:?} has {length} bytes, where {} may be", kind.bytes_max())]
    TooLong {
        /// What it is.
        kind: FrameKind,
        /// How long it says that it is.
        length: usize,
    },
    /// It does not hold what it has to.
    #[error("{0}")]
    Malformed(&'static str),
    /// The checksum says that it is not what was sent.
    #[error("a chunk has the checksum {found:08x}, and {sent:08x} was sent")]
    Checksum {
        /// Of what came.
        found: u32,
        /// Of what was sent.
        sent: u32,
    },
}

/// The beginning of a frame.
pub(crate) const fn head(kind: FrameKind, length: u32) -> [u8; HEAD] {
    let [a, b, c, d] = length.to_be_bytes();
    [kind.byte(), a, b, c, d]
}

/// Reads the beginning of a frame: what it is, and the length of its payload.
///
/// # Errors
/// No such kind, or longer than its kind may be.
pub(crate) fn parse_head(head: [u8; HEAD]) -> Result<(FrameKind, usize), FrameError> {
    let [kind, length @ ..] = head;
    let kind = match kind {
        1 => FrameKind::Message,
        2 => FrameKind::Chunk,
        3 => FrameKind::End,
        4 => FrameKind::Abort,
        other => return Err(FrameError::Kind(other)),
    };
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > kind.bytes_max() {
        return Err(FrameError::TooLong { kind, length });
    }
    Ok((kind, length))
}

/// Makes the payload of a chunk of a buffer whose content, [`CHUNK_MAX`] bytes at most, begins after
/// [`CHUNK_HEAD`] bytes of any kind; compressed where that was asked for and makes it shorter.
///
/// # Panics
/// Where there is more content, or no room before it.
pub(crate) fn seal(mut buffer: Vec<u8>, compress: bool) -> Vec<u8> {
    assert!(
        (CHUNK_HEAD..=CHUNK_HEAD + CHUNK_MAX).contains(&buffer.len()),
        "a chunk holds {CHUNK_MAX} bytes at most, after its beginning"
    );
    let (_, raw) = buffer.split_at(CHUNK_HEAD);
    let (checksum, length) = (
        crc32fast::hash(raw),
        u32::try_from(raw.len()).unwrap_or(u32::MAX),
    );
    let compressed = compress.then(|| lz4_flex::block::compress(raw));
    let shorter = compressed.filter(|compressed| compressed.len() < raw.len());
    let flags = if shorter.is_some() { COMPRESSED } else { 0 };
    if let Some(shorter) = shorter {
        buffer.truncate(CHUNK_HEAD);
        buffer.extend(shorter);
    }
    buffer[0] = flags;
    buffer[1..5].copy_from_slice(&length.to_be_bytes());
    buffer[5..CHUNK_HEAD].copy_from_slice(&checksum.to_be_bytes());
    buffer
}

/// Whether the content of a chunk is compressed.
pub(crate) fn is_compressed(payload: &[u8]) -> bool {
    payload.first() == Some(&COMPRESSED)
}

/// The bytes that a chunk holds.
///
/// # Errors
/// Malformed, or not what was sent.
pub(crate) fn parse_chunk(mut payload: Vec<u8>) -> Result<Vec<u8>, FrameError> {
    let Some((head, bytes)) = payload.split_first_chunk::<CHUNK_HEAD>() else {
        return Err(FrameError::Malformed(
            "a chunk is shorter than its own beginning",
        ));
    };
    let [flags, l0, l1, l2, l3, c0, c1, c2, c3] = *head;
    let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
    if length > CHUNK_MAX {
        return Err(FrameError::Malformed("a chunk holds more than it may"));
    }
    let raw = match flags {
        0 if bytes.len() == length => {
            payload.drain(..CHUNK_HEAD);
            payload
        }
        0 => return Err(FrameError::Malformed("a chunk is not as long as it says")),
        COMPRESSED => lz4_flex::block::decompress(bytes, length)
            .ok()
            .filter(|raw| raw.len() == length)
            .ok_or(FrameError::Malformed("a chunk cannot be decompressed"))?,
        _ => {
            return Err(FrameError::Malformed(
                "a chunk has flags that are not known",
            ));
        }
    };
    let (found, sent) = (crc32fast::hash(&raw), u32::from_be_bytes([c0, c1, c2, c3]));
    match found == sent {
        true => Ok(raw),
        false => Err(FrameError::Checksum { found, sent }),
    }
}

/// How much a content was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Total {
    /// Bytes, before they were compressed.
    pub(crate) bytes: u64,
    /// In so many chunks.
    pub(crate) chunks: u64,
}

/// The payload of an end.
pub(crate) fn end(total: Total) -> Vec<u8> {
    let mut payload = Vec::with_capacity(END_BYTES);
    payload.extend(total.bytes.to_be_bytes());
    payload.extend(total.chunks.to_be_bytes());
    payload
}

/// How much a content was, by its end.
///
/// # Errors
/// Malformed.
pub(crate) fn parse_end(payload: &[u8]) -> Result<Total, FrameError> {
    let malformed = FrameError::Malformed("the end of a content is malformed");
    let (bytes, rest) = payload.split_first_chunk::<8>().ok_or(malformed.clone())?;
    let chunks: [u8; 8] = rest.try_into().map_err(|_| malformed)?;
    Ok(Total {
        bytes: u64::from_be_bytes(*bytes),
        chunks: u64::from_be_bytes(chunks),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunk(raw: &[u8], compress: bool) -> Vec<u8> {
        let mut buffer = vec![9; CHUNK_HEAD];
        buffer.extend(raw);
        seal(buffer, compress)
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_frame_within_its_bound_or_an_error(head in any::<[u8; HEAD]>()) {
            if let Ok((kind, length)) = parse_head(head) {
                prop_assert!(length <= kind.bytes_max());
                let length = u32::try_from(length).unwrap();
                prop_assert_eq!(super::head(kind, length), head);
            }
        }

        #[test]
        fn any_payload_is_a_chunk_within_its_bound_or_an_error(
            payload in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            if let Ok(raw) = parse_chunk(payload.clone()) {
                prop_assert!(raw.len() <= CHUNK_MAX);
            }
            if let Ok(total) = parse_end(&payload) {
                prop_assert_eq!(end(total), payload);
            }
        }

        #[test]
        fn chunks_come_back_and_a_changed_one_never_as_something_else(
            raw in proptest::collection::vec(0_u8..4, 0..5000),
            compress in any::<bool>(),
            at in any::<prop::sample::Index>(),
            bit in 0_u32..8,
        ) {
            let payload = chunk(&raw, compress);
            prop_assert_eq!(parse_chunk(payload.clone()), Ok(raw.clone()));
            let mut changed = payload;
            let at = at.index(changed.len());
            changed[at] ^= 1 << bit;
            // A compressor has several ways to say the same.
            if let Ok(came) = parse_chunk(changed) {
                prop_assert_eq!(came, raw);
            }
        }
    }

    #[test]
    fn a_chunk_that_cannot_be_compressed_is_sent_as_it_is() {
        let mut rng = fastrand::Rng::with_seed(1);
        let raw: Vec<u8> = std::iter::repeat_with(|| rng.u8(..))
            .take(CHUNK_MAX)
            .collect();
        assert_eq!(chunk(&raw, true), chunk(&raw, false));
        let zeros = vec![0; CHUNK_MAX];
        assert!(chunk(&zeros, true).len() < CHUNK_MAX / 50);
    }

    #[test]
    fn a_bomb_is_refused_without_room_for_it() {
        let mut bomb = chunk(&vec![0; CHUNK_MAX], true);
        bomb[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
        let refused = Err(FrameError::Malformed("a chunk holds more than it may"));
        assert_eq!(parse_chunk(bomb), refused);
        let mut short = chunk(&vec![0; CHUNK_MAX], true);
        short[1..5].copy_from_slice(&100_u32.to_be_bytes());
        assert!(matches!(parse_chunk(short), Err(FrameError::Malformed(_))));
    }
}
