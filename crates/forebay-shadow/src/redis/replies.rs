//! What a server sends: replies and pushes of RESP2 and RESP3, without looking into large ones.

use std::collections::BTreeMap;

use super::requests::decimal;

/// Depth of replies within replies.
const DEPTH_MAX: usize = 512;
/// Longest line that says a length.
const HEAD_BYTES_MAX: usize = 32;
/// A buffer that grew larger than this is given back once it is empty.
const KEEP_BYTES: usize = 16 * 1024;

/// Why a server is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server does not speak RESP: {0}")]
pub(super) struct Garbled(&'static str);

/// Where a reply is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the mark of a reply.
    Mark,
    /// In a line that says a length, after this mark.
    Head(u8),
    /// In a line that is a reply by itself.
    Line,
    /// In so many more bytes.
    Bytes(u64),
}

/// Finds where one reply ends.
#[derive(Debug)]
struct Scanner {
    state: State,
    head: Vec<u8>,
    /// How many replies are to come, for every level.
    open: Vec<u64>,
}

impl Scanner {
    const fn new() -> Self {
        Self {
            state: State::Mark,
            head: Vec::new(),
            open: Vec::new(),
        }
    }

    /// Goes through some bytes until the reply ends; how many those were, and whether it did.
    fn scan(&mut self, bytes: &[u8]) -> Result<(usize, bool), Garbled> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at).copied() {
            match self.state {
                State::Mark => {
                    at += 1;
                    self.state = match byte {
                        b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => State::Line,
                        b'$' | b'!' | b'=' | b'*' | b'~' | b'>' | b'%' | b'|' => State::Head(byte),
                        _ => return Err(Garbled("a reply begins with an unknown mark")),
                    };
                    self.head.clear();
                }
                State::Line => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                        return Ok((bytes.len(), false));
                    };
                    at += end + 1;
                    if self.ended() {
                        return Ok((at, true));
                    }
                }
                State::Head(mark) => {
                    at += 1;
                    if byte != b'\n' {
                        if self.head.len() >= HEAD_BYTES_MAX {
                            return Err(Garbled("a length is too long"));
                        }
                        self.head.push(byte);
                    } else if self.opened(mark)? {
                        return Ok((at, true));
                    }
                }
                State::Bytes(left) => {
                    let here = u64::try_from(bytes.len() - at).unwrap_or(u64::MAX);
                    if here < left {
                        self.state = State::Bytes(left - here);
                        return Ok((bytes.len(), false));
                    }
                    at += usize::try_from(left).map_err(|_| Garbled("a length is too large"))?;
                    if self.ended() {
                        return Ok((at, true));
                    }
                }
            }
        }
        Ok((at, false))
    }

    /// A length was read; whether the whole reply ended with it.
    fn opened(&mut self, mark: u8) -> Result<bool, Garbled> {
        let digits = self.head.strip_suffix(b"\r").unwrap_or(&self.head);
        let length = decimal(digits).ok_or(Garbled("a length is not a number"))?;
        let Ok(length) = u64::try_from(length) else {
            return Ok(self.ended());
        };
        let inner = match mark {
            b'$' | b'!' | b'=' => {
                self.state = State::Bytes(length.saturating_add(2));
                return Ok(false);
            }
            b'%' => length.checked_mul(2),
            // An attribute goes before the reply that it belongs to.
            b'|' => length
                .checked_mul(2)
                .and_then(|length| length.checked_add(1)),
            _ => Some(length),
        };
        match inner.ok_or(Garbled("a length is too large"))? {
            0 => Ok(self.ended()),
            inner => {
                if self.open.len() >= DEPTH_MAX {
                    return Err(Garbled("replies are nested too deep"));
                }
                self.open.push(inner);
                self.state = State::Mark;
                Ok(false)
            }
        }
    }

    /// One reply of the innermost level ended; whether the outermost did.
    fn ended(&mut self) -> bool {
        self.state = State::Mark;
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                return false;
            }
            self.open.pop();
        }
        true
    }
}

/// What came of replies.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Got<'a> {
    /// A reply, or a push.
    Whole(&'a [u8]),
    /// Some bytes of one that is large; more of it will come.
    Part(&'a [u8]),
    /// The last bytes of one that is large.
    Last(&'a [u8]),
}

/// Takes pieces in and gives replies out.
#[derive(Debug)]
pub(super) struct Replies {
    buffer: Vec<u8>,
    start: usize,
    at: usize,
    scanner: Scanner,
    /// Some of the reply was given out already.
    parted: bool,
}

impl Replies {
    pub(super) const fn new() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            at: 0,
            scanner: Scanner::new(),
            parted: false,
        }
    }

    /// Takes a piece in.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start >= self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.at -= self.start;
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next reply; of one that is longer than a limit, what has come.
    ///
    /// # Errors
    /// When this is not the protocol. Nothing more comes out after that.
    pub(super) fn next(&mut self, part_min: usize) -> Result<Option<Got<'_>>, Garbled> {
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let (read, ended) = self.scanner.scan(rest)?;
        self.at += read;
        let start = self.start;
        if !ended && self.at - start <= part_min {
            if self.at == start {
                self.release();
            }
            return Ok(None);
        }
        self.start = self.at;
        let parted = std::mem::replace(&mut self.parted, !ended);
        let bytes = self.buffer.get(start..self.at).unwrap_or_default();
        Ok(Some(match (ended, parted) {
            (true, false) => Got::Whole(bytes),
            (true, true) => Got::Last(bytes),
            (false, _) => Got::Part(bytes),
        }))
    }

    fn release(&mut self) {
        self.start = 0;
        self.at = 0;
        self.buffer.clear();
        if self.buffer.capacity() > KEEP_BYTES {
            self.buffer = Vec::new();
        }
    }
}

/// The first elements of a reply that is an array or a push of short strings and numbers.
pub(super) fn elements(reply: &[u8]) -> Vec<&[u8]> {
    const ELEMENTS_MAX: usize = 3;
    let mut lines = Vec::new();
    let Some((_, mut rest)) = line(reply) else {
        return lines;
    };
    while lines.len() < ELEMENTS_MAX {
        let Some((head, after)) = line(rest) else {
            break;
        };
        rest = after;
        let Some((mark, head)) = head.split_first() else {
            break;
        };
        if *mark != b'$' {
            lines.push(head);
            continue;
        }
        let length = decimal(head).and_then(|length| usize::try_from(length).ok());
        // An absent string is an empty one to those who ask.
        let length = length.unwrap_or(0);
        let Some(string) = rest.get(..length) else {
            break;
        };
        lines.push(string);
        if decimal(head).is_some_and(|length| length >= 0) {
            rest = rest.get(length + 2..).unwrap_or_default();
        }
    }
    lines
}

/// An element of a reply that is an array, whatever it is itself.
pub(super) fn element(reply: &[u8], place: usize) -> Option<&[u8]> {
    let (head, mut rest) = line(reply)?;
    let count = decimal(head.strip_prefix(b"*")?)?;
    if usize::try_from(count).ok()? <= place {
        return None;
    }
    let mut scanner = Scanner::new();
    for _ in 0..place {
        let (length, _) = scanner.scan(rest).ok().filter(|(_, ended)| *ended)?;
        rest = rest.get(length..)?;
    }
    let (length, _) = scanner.scan(rest).ok().filter(|(_, ended)| *ended)?;
    rest.get(..length)
}

/// How some elements of an array begin that comes in parts.
#[derive(Debug)]
pub(super) struct Beginnings {
    /// The elements that are asked for, and the mark of each that came.
    wanted: BTreeMap<usize, Option<u8>>,
    /// The line that says how many there are has not ended.
    in_head: bool,
    /// Which element comes or is being read.
    place: usize,
    begun: bool,
    scanner: Scanner,
}

impl Beginnings {
    pub(super) fn of(places: impl Iterator<Item = usize>) -> Self {
        Self {
            wanted: places.map(|place| (place, None)).collect(),
            in_head: true,
            place: 0,
            begun: false,
            scanner: Scanner::new(),
        }
    }

    /// Takes a part in. What follows something that is no reply is of no element.
    pub(super) fn add(&mut self, part: &[u8]) {
        let mut rest = part;
        if self.in_head {
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                return;
            };
            rest = rest.get(end + 1..).unwrap_or_default();
            self.in_head = false;
        }
        while let Some(first) = rest.first() {
            if !std::mem::replace(&mut self.begun, true)
                && let Some(mark) = self.wanted.get_mut(&self.place)
            {
                *mark = Some(*first);
            }
            let Ok((read, ended)) = self.scanner.scan(rest) else {
                return;
            };
            rest = rest.get(read..).unwrap_or_default();
            if ended {
                self.place += 1;
                self.begun = false;
            }
        }
    }

    /// The first byte of an element, which says what it is.
    pub(super) fn element(&self, place: usize) -> Option<&[u8]> {
        let mark = self.wanted.get(&place)?.as_ref()?;
        Some(std::slice::from_ref(mark))
    }
}

fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = bytes.get(..end)?;
    Some((
        line.strip_suffix(b"\r").unwrap_or(line),
        bytes.get(end + 1..)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLES: &[&str] = &[
        "+OK\r\n",
        "-ERR no\r\n",
        ":1000\r\n",
        "$-1\r\n",
        "$0\r\n\r\n",
        "$5\r\na\r\nbc\r\n",
        "*-1\r\n",
        "*0\r\n",
        "*2\r\n$1\r\na\r\n*2\r\n:1\r\n*0\r\n",
        "_\r\n",
        "#t\r\n",
        ",1.5\r\n",
        "(123456789012345678901234567890\r\n",
        "=7\r\ntxt:abc\r\n",
        "!3\r\nERR\r\n",
        "%1\r\n+a\r\n%0\r\n",
        "~2\r\n:1\r\n:2\r\n",
        ">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n",
        "|1\r\n+ttl\r\n:9\r\n*1\r\n$1\r\na\r\n",
    ];

    fn whole(replies: &mut Replies) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while let Some(got) = replies.next(usize::MAX).unwrap() {
            let Got::Whole(bytes) = got else {
                panic!("{got:?}")
            };
            found.push(bytes.to_vec());
        }
        found
    }

    #[test]
    fn every_kind_ends_where_it_does() {
        let mut replies = Replies::new();
        replies.push(SAMPLES.concat().as_bytes());
        let found = whole(&mut replies);
        let expected: Vec<_> = SAMPLES
            .iter()
            .map(|text| text.as_bytes().to_vec())
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        let deep = "*1\r\n".repeat(600);
        let long = format!("${}\r\n", "1".repeat(40));
        for text in ["x", "$x\r\n", "*9223372036854775808\r\n", "?", &deep, &long] {
            let mut replies = Replies::new();
            replies.push(text.as_bytes());
            assert!(replies.next(usize::MAX).is_err(), "{text}");
        }
    }

    #[test]
    fn a_large_reply_comes_in_parts() {
        let mut replies = Replies::new();
        replies.push(b"$10\r\n01");
        assert_eq!(replies.next(4).unwrap(), Some(Got::Part(b"$10\r\n01")));
        assert_eq!(replies.next(4).unwrap(), None);
        replies.push(b"23456789\r\n+OK\r\n");
        assert_eq!(replies.next(4).unwrap(), Some(Got::Last(b"23456789\r\n")));
        assert_eq!(replies.next(4).unwrap(), Some(Got::Whole(b"+OK\r\n")));
        assert_eq!(replies.next(4).unwrap(), None);
    }

    #[test]
    fn an_element_is_found_behind_whatever_comes_before_it() {
        let reply = b"*4\r\n*2\r\n:1\r\n$1\r\na\r\n+OK\r\n-ERR no\r\n_\r\n";
        let expected = [
            Some(b"*2\r\n:1\r\n$1\r\na\r\n".as_slice()),
            Some(b"+OK\r\n"),
            Some(b"-ERR no\r\n"),
            Some(b"_\r\n"),
            None,
        ];
        for (place, expected) in expected.into_iter().enumerate() {
            assert_eq!(element(reply, place), expected, "{place}");
        }
        for reply in [b"*-1\r\n".as_slice(), b"-EXECABORT\r\n", b"*2\r\n:1", b""] {
            assert_eq!(element(reply, 0).filter(|found| *found != b":1\r\n"), None);
        }
    }

    #[test]
    fn how_an_element_begins_is_found_in_whatever_parts_it_comes() {
        let reply = b"*5\r\n*2\r\n:1\r\n$3\r\n+-:\r\n+OK\r\n-ERR no\r\n$-1\r\n*0\r\n";
        for size in 1..reply.len() {
            let mut beginnings = Beginnings::of([0, 1, 2, 4, 9].into_iter());
            for part in reply.chunks(size) {
                beginnings.add(part);
            }
            let found: Vec<_> = (0..6).map(|place| beginnings.element(place)).collect();
            let expected = [
                Some(b"*".as_slice()),
                Some(b"+"),
                Some(b"-"),
                None,
                Some(b"*"),
                None,
            ];
            assert_eq!(found, expected, "parts of {size}");
        }
    }

    #[test]
    fn the_first_elements_are_told() {
        let found = elements(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n");
        assert_eq!(found, [b"subscribe".as_slice(), b"c", b"1"]);
        let found = elements(b">3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n");
        assert_eq!(found, [b"unsubscribe".as_slice(), b"", b"0"]);
        assert_eq!(elements(b"*2\r\n$9\r\nsub"), Vec::<&[u8]>::new());
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            picked in proptest::collection::vec(0..SAMPLES.len(), 0..20),
            cuts in proptest::collection::vec(1_usize..9, 1..50),
        ) {
            let expected: Vec<Vec<u8>> =
                picked.iter().map(|place| SAMPLES[*place].as_bytes().to_vec()).collect();
            let bytes = expected.concat();
            let (mut replies, mut found, mut rest) = (Replies::new(), Vec::new(), bytes.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                replies.push(piece);
                found.extend(whole(&mut replies));
                rest = more;
            }
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn garbage_is_never_more_than_an_error(pieces in proptest::collection::vec("[*$%|>0-9a\r\n+-]{0,12}", 0..40)) {
            let mut replies = Replies::new();
            'all: for piece in &pieces {
                replies.push(piece.as_bytes());
                loop {
                    match replies.next(16) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'all,
                    }
                }
            }
            prop_assert!(replies.buffer.len() <= 12 * 40);
        }
    }
}
