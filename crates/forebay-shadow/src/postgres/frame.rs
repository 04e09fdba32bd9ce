//! Messages of protocol version 3: where one ends and the next begins, and those that a front
//! says itself.
//!
//! A message is gathered whole, up to [`WHOLE_BYTES_MAX`]; a longer one is handed on as it comes, so
//! that a row of a gigabyte takes no more memory than that.

use std::ops::Range;

/// A message longer than this is handed on in parts.
pub(crate) const WHOLE_BYTES_MAX: usize = 256 * 1024;
/// Longest message that a server takes (`PQ_LARGE_MESSAGE_LIMIT`).
const MESSAGE_BYTES_MAX: usize = 0x3fff_ffff;
/// Longest first message of a client (`MAX_STARTUP_PACKET_LENGTH`).
const STARTUP_BYTES_MAX: usize = 10_000;
/// Tag and length.
const HEADER_BYTES: usize = 5;

/// Version 3 of the protocol; minor versions are negotiated by the server.
const VERSION_3: u32 = 3;
const CANCEL_REQUEST: u32 = 80_877_102;
pub(super) const SSL_REQUEST: u32 = 80_877_103;
pub(super) const GSSENC_REQUEST: u32 = 80_877_104;

/// What is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Garbage {
    #[error("a message of type {tag:?} says that it is {length} bytes long")]
    Length { tag: char, length: u32 },
    #[error("the first message says that it is {0} bytes long")]
    StartupLength(u32),
    #[error("protocol version {}.{} is not spoken here", .0 >> 16, .0 & 0xffff)]
    Version(u32),
    #[error("a message of type {0:?} is malformed")]
    Malformed(char),
    #[error("a message of type {0:?} is not expected from this side")]
    Unexpected(char),
}

/// A part of the input that can be handled now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// All of a message, with its header.
    Whole { tag: u8, bytes: Range<usize> },
    /// The beginning of one that is handed on as it comes.
    Head {
        tag: u8,
        bytes: Range<usize>,
        ends: bool,
    },
    /// More of it.
    More { bytes: Range<usize>, ends: bool },
}

/// Bytes of one direction, cut into messages.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    buffer: Vec<u8>,
    start: usize,
    /// Bytes of the present message that are still to come.
    passing: usize,
}

impl Frames {
    /// Takes bytes in.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The bytes of a piece.
    pub(crate) fn bytes(&self, range: &Range<usize>) -> &[u8] {
        self.buffer.get(range.clone()).unwrap_or_default()
    }

    /// Nothing waits to be cut, not even a part of a message.
    pub(crate) fn is_between(&self) -> bool {
        self.start == self.buffer.len() && self.passing == 0
    }

    /// An idle connection keeps no buffer.
    pub(crate) fn shrink(&mut self) {
        if self.is_between() && self.buffer.capacity() > 0 {
            self.buffer = Vec::new();
            self.start = 0;
        }
    }

    /// The next message, of which not all has come, is longer than this.
    ///
    /// # Errors
    /// Then.
    pub(crate) fn check_next(&self, bytes_max: u32) -> Result<(), Garbage> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        match header(rest) {
            Some((tag, length)) if length > bytes_max => Err(Garbage::Length {
                tag: char::from(tag),
                length,
            }),
            _ => Ok(()),
        }
    }

    /// A message was handed on in part.
    pub(crate) fn is_within(&self) -> bool {
        self.passing > 0
    }

    /// The next piece, if enough has come.
    ///
    /// # Errors
    /// When a length makes no sense.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>, Garbage> {
        let available = self.buffer.len() - self.start;
        if self.passing > 0 {
            if available == 0 {
                return Ok(None);
            }
            let length = available.min(self.passing);
            self.passing -= length;
            let bytes = self.take(length);
            let ends = self.passing == 0;
            return Ok(Some(Piece::More { bytes, ends }));
        }
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some((tag, length)) = header(rest) else {
            return Ok(None);
        };
        let whole = usize::try_from(length).unwrap_or(usize::MAX);
        if !(4..=MESSAGE_BYTES_MAX).contains(&whole) {
            let tag = char::from(tag);
            return Err(Garbage::Length { tag, length });
        }
        let whole = whole + 1;
        if whole <= WHOLE_BYTES_MAX {
            return Ok((available >= whole).then(|| Piece::Whole {
                tag,
                bytes: self.take(whole),
            }));
        }
        let length = available.min(whole);
        self.passing = whole - length;
        let bytes = self.take(length);
        let ends = self.passing == 0;
        Ok(Some(Piece::Head { tag, bytes, ends }))
    }

    fn take(&mut self, length: usize) -> Range<usize> {
        let bytes = self.start..self.start + length;
        self.start = bytes.end;
        bytes
    }

    /// The first message of a client, if all of it has come.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn startup(&mut self) -> Result<Option<Startup>, Garbage> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some(length) = rest.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else {
            return Ok(None);
        };
        let whole = usize::try_from(length).unwrap_or(usize::MAX);
        if !(8..=STARTUP_BYTES_MAX).contains(&whole) {
            return Err(Garbage::StartupLength(length));
        }
        if rest.len() < whole {
            return Ok(None);
        }
        let range = self.take(whole);
        let message = self.bytes(&range);
        let code = number(message, 4).unwrap_or_default();
        Ok(Some(match code {
            SSL_REQUEST | GSSENC_REQUEST => Startup::Encryption,
            CANCEL_REQUEST => match (number(message, 8), number(message, 12)) {
                (Some(process), Some(secret)) => Startup::Cancel(Key { process, secret }),
                _ => return Err(Garbage::StartupLength(length)),
            },
            version if version >> 16 == VERSION_3 => Startup::Session(Opening::of(message)?),
            version => return Err(Garbage::Version(version)),
        }))
    }
}

fn header(bytes: &[u8]) -> Option<(u8, u32)> {
    let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
    let [tag, a, b, c, d] = *header;
    Some((tag, u32::from_be_bytes([a, b, c, d])))
}

/// Four bytes of a message.
pub(crate) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_be_bytes(*bytes))
}

/// The body of a whole message.
pub(crate) fn body(message: &[u8]) -> &[u8] {
    message.get(HEADER_BYTES..).unwrap_or_default()
}

/// Text that ends with a zero byte, and what comes after it.
pub(crate) fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

/// What a backend is known by to who wants to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) process: u32,
    pub(crate) secret: u32,
}

/// What a client begins with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Startup {
    /// It would like to encrypt.
    Encryption,
    /// It wants a query of somebody to be cancelled.
    Cancel(Key),
    /// It opens a session.
    Session(Opening),
}

/// The message that opens a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) message: Vec<u8>,
    pub(crate) user: String,
    /// It streams the log: nothing of it can be carried over.
    pub(crate) replicates: bool,
}

impl Opening {
    fn of(message: &[u8]) -> Result<Self, Garbage> {
        let mut user = String::new();
        let mut replicates = false;
        let mut rest = message.get(8..).unwrap_or_default();
        while let Some((name, after)) = text(rest).filter(|(name, _)| !name.is_empty()) {
            let (value, after) = text(after).ok_or(Garbage::Malformed(' '))?;
            match name {
                b"user" => user = String::from_utf8_lossy(value).into_owned(),
                b"replication" => replicates = !matches!(value, b"false" | b"off" | b"no" | b"0"),
                _ => {}
            }
            rest = after;
        }
        Ok(Self {
            message: message.to_vec(),
            user,
            replicates,
        })
    }

    /// One of this project's own.
    pub(crate) fn own(user: &str, database: &str) -> Self {
        let mut message = vec![0; 4];
        message.extend((VERSION_3 << 16).to_be_bytes());
        for (name, value) in [
            ("user", user),
            ("database", database),
            ("application_name", "forebay"),
            // Operators, too, are looked up, and it is a superuser who asks.
            ("search_path", "pg_catalog"),
        ] {
            for part in [name, value] {
                message.extend(part.bytes().filter(|byte| *byte != 0));
                message.push(0);
            }
        }
        message.push(0);
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        if let Some(place) = message.first_chunk_mut() {
            *place = length.to_be_bytes();
        }
        Self {
            message,
            user: user.to_owned(),
            replicates: false,
        }
    }
}

/// Adds a message.
pub(crate) fn put(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.push(tag);
    let length = u32::try_from(length + 4).unwrap_or(u32::MAX);
    out.extend(length.to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Adds a simple query.
pub(crate) fn put_query(out: &mut Vec<u8>, sql: &[u8]) {
    put(out, b'Q', &[sql, b"\0"]);
}

/// The name of what a front asks for itself within a client's session.
const OWN: &[u8] = b"forebay\0";

/// Adds a query that leaves no trace in the session: neither its unnamed statement nor its unnamed
/// portal is touched.
pub(crate) fn put_aside(out: &mut Vec<u8>, sql: &[u8]) {
    put(out, b'P', &[OWN, sql, b"\0", &[0, 0]]);
    put(out, b'B', &[OWN, OWN, &[0; 6]]);
    put(out, b'E', &[OWN, &[0; 4]]);
    put(out, b'C', &[b"P", OWN]);
    put(out, b'C', &[b"S", OWN]);
    put(out, b'S', &[]);
}

/// Adds the request that cancels a query.
pub(crate) fn put_cancel(out: &mut Vec<u8>, key: Key) {
    for number in [16, CANCEL_REQUEST, key.process, key.secret] {
        out.extend(number.to_be_bytes());
    }
}

/// Adds "ready for query".
pub(crate) fn put_ready(out: &mut Vec<u8>, status: u8) {
    put(out, b'Z', &[&[status]]);
}

/// An error as a server tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerError {
    pub(crate) severity: &'static str,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
}

impl ServerError {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let mut fields = Vec::new();
        let detail = self.detail.as_deref();
        for (field, value) in [
            (b'S', Some(self.severity)),
            (b'V', Some(self.severity)),
            (b'C', Some(self.code)),
            (b'M', Some(self.message.as_str())),
            (b'D', detail),
        ] {
            let Some(value) = value else { continue };
            fields.push(field);
            fields.extend(value.bytes().filter(|byte| *byte != 0));
            fields.push(0);
        }
        fields.push(0);
        put(out, b'E', &[&fields]);
    }
}

/// One field of an error or notice.
pub(crate) fn error_field(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = body(message);
    while let Some((field, after)) = rest.split_first().filter(|(field, _)| **field != 0) {
        let (value, after) = text(after)?;
        if *field == wanted {
            return Some(value);
        }
        rest = after;
    }
    None
}

/// An error in a line.
pub(crate) fn error_line(message: &[u8]) -> String {
    let field = |field| String::from_utf8_lossy(error_field(message, field).unwrap_or_default());
    format!("{} ({})", field(b'M'), field(b'C'))
}

/// The values of a row, as text.
pub(crate) fn row(message: &[u8]) -> Option<Vec<Option<String>>> {
    let mut rest = body(message);
    let count = u16::from_be_bytes(*rest.first_chunk()?);
    rest = rest.get(2..)?;
    let mut values = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let length = number(rest, 0)?;
        rest = rest.get(4..)?;
        // A length of -1 is NULL.
        if length == u32::MAX {
            values.push(None);
            continue;
        }
        let length = usize::try_from(length).ok()?;
        let value = rest.get(..length)?;
        values.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = rest.get(length..)?;
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(frames: &mut Frames) -> Result<Vec<(u8, Vec<u8>)>, Garbage> {
        let mut found: Vec<(u8, Vec<u8>)> = Vec::new();
        while let Some(piece) = frames.next()? {
            match piece {
                Piece::Whole { tag, bytes } | Piece::Head { tag, bytes, .. } => {
                    found.push((tag, frames.bytes(&bytes).to_vec()));
                }
                Piece::More { bytes, .. } => {
                    let more = frames.bytes(&bytes).to_vec();
                    match found.last_mut() {
                        Some((_, bytes)) => bytes.extend(more),
                        None => found.push((0, more)),
                    }
                }
            }
        }
        Ok(found)
    }

    fn session(parameters: &[u8]) -> Vec<u8> {
        let mut message = vec![0; 4];
        message.extend(196_608_u32.to_be_bytes());
        message.extend_from_slice(parameters);
        let length = u32::try_from(message.len()).unwrap();
        message[..4].copy_from_slice(&length.to_be_bytes());
        message
    }

    #[test]
    fn a_client_begins_with_one_of_four() {
        let check = |bytes: &[u8], expected: Result<Option<Startup>, Garbage>| {
            let mut frames = Frames::default();
            frames.push(bytes);
            assert_eq!(frames.startup(), expected);
        };
        let request = |code: u32| [8_u32.to_be_bytes(), code.to_be_bytes()].concat();
        check(&request(SSL_REQUEST), Ok(Some(Startup::Encryption)));
        check(&request(GSSENC_REQUEST), Ok(Some(Startup::Encryption)));
        let key = Key {
            process: 7,
            secret: 9,
        };
        let mut cancel = Vec::new();
        put_cancel(&mut cancel, key);
        check(&cancel, Ok(Some(Startup::Cancel(key))));
        check(&cancel[..15], Ok(None));
        check(&request(CANCEL_REQUEST), Err(Garbage::StartupLength(8)));
        check(&request(131_072), Err(Garbage::Version(131_072)));
        check(&[0, 0, 0, 7, 0], Err(Garbage::StartupLength(7)));
        check(
            b"GET / HTTP/1.1\r\n",
            Err(Garbage::StartupLength(0x4745_5420)),
        );
        let message = session(b"user\0a\0replication\0database\0\0");
        check(
            &message,
            Ok(Some(Startup::Session(Opening {
                message: message.clone(),
                user: "a".to_owned(),
                replicates: true,
            }))),
        );
        let message = session(b"user\0a");
        check(&message, Err(Garbage::Malformed(' ')));
        check(
            &Opening::own("a", "b").message,
            Ok(Some(Startup::Session(Opening::own("a", "b")))),
        );
        let own = Opening::own("a", "b").message;
        let path = b"\0search_path\0pg_catalog\0";
        assert!(own.windows(path.len()).any(|part| part == path));
    }

    #[test]
    fn an_error_says_what_it_is() {
        let error = ServerError {
            severity: "FATAL",
            code: "57P01",
            message: "gone\0".to_owned(),
            detail: None,
        };
        let mut out = Vec::new();
        error.put(&mut out);
        assert_eq!(error_field(&out, b'C'), Some(b"57P01".as_slice()));
        assert_eq!(error_line(&out), "gone (57P01)");
        assert_eq!(error_field(&out, b'D'), None);
        assert_eq!(error_field(b"E\0\0\0\x06SX", b'S'), None);
    }

    #[test]
    fn a_row_that_lies_is_none() {
        let mut good = Vec::new();
        put(
            &mut good,
            b'D',
            &[&[0, 2, 0, 0, 0, 1, b'x', 255, 255, 255, 255]],
        );
        assert_eq!(row(&good), Some(vec![Some("x".to_owned()), None]));
        let mut bad = Vec::new();
        put(&mut bad, b'D', &[&[0, 2, 0, 0, 0, 9, b'x']]);
        assert_eq!(row(&bad), None);
    }

    #[test]
    fn a_length_that_makes_no_sense_is_garbage() {
        for length in [0_u32, 3, 0x4000_0000, u32::MAX] {
            let mut frames = Frames::default();
            frames.push(b"Q");
            frames.push(&length.to_be_bytes());
            assert_eq!(frames.next(), Err(Garbage::Length { tag: 'Q', length }));
        }
    }

    proptest! {
        /// However the bytes come, the same messages come out, and nothing is kept of those that
        /// are handed on.
        #[test]
        fn splits_do_not_matter(
            messages in proptest::collection::vec((any::<u8>(), prop_oneof![9 => 0_usize..300, 1 => Just(WHOLE_BYTES_MAX)]), 1..20),
            cuts in proptest::collection::vec(prop_oneof![9 => 1_usize..97, 1 => Just(100_000)], 1..50),
        ) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (tag, length) in &messages {
                let before = bytes.len();
                put(&mut bytes, *tag, &[&vec![*tag; *length]]);
                expected.push((*tag, bytes[before..].to_vec()));
            }
            let mut frames = Frames::default();
            let mut found: Vec<(u8, Vec<u8>)> = Vec::new();
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                frames.push(now);
                let passing = frames.passing > 0;
                for (at, (tag, bytes)) in all(&mut frames)?.into_iter().enumerate() {
                    match found.last_mut() {
                        Some(last) if at == 0 && passing => last.1.extend(bytes),
                        _ => found.push((tag, bytes)),
                    }
                }
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, expected);
            prop_assert!(frames.is_between());
        }

        /// Whatever comes, there is an end to it, and no more is kept than one inspected message.
        #[test]
        fn garbage_is_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut frames = Frames::default();
            frames.push(&bytes);
            frames.startup().ok();
            let mut frames = Frames::default();
            frames.push(&bytes);
            all(&mut frames).ok();
            row(&bytes);
            error_field(&bytes, b'M');
            prop_assert!(frames.buffer.len() <= 2000);
        }
    }
}
