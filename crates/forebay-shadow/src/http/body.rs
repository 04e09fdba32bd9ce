//! Where a message's body ends. Its bytes are passed on as they came.

use super::head::Bad;

/// Longest line before a chunk: its size and what is said beside.
const CHUNK_LINE_MAX: u32 = 1024;
/// Longest fields after the last chunk.
const TRAILER_MAX: u32 = 16 * 1024;

/// A body, as far as it has not come yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    /// Bytes that are left.
    Length(u64),
    /// In chunks.
    Chunked(Chunks),
    /// Everything until the connection ends.
    Close,
}

/// What some bytes of a body are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Piece<'a> {
    /// Content, as it would be without a coding.
    Content(&'a [u8]),
    /// A part of the fields after the last chunk, with the ends of lines.
    Trailer(&'a [u8]),
}

/// Where a body in chunks stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunks {
    state: State,
    /// Bytes left of a chunk, or its size as far as it was read.
    size: u64,
    /// Bytes of the line, or of the trailer.
    length: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing of a size came.
    SizeBegin,
    Size,
    /// After the size; only what is said beside it is skipped.
    Beside,
    SizeFeed,
    Data,
    DataReturn,
    DataFeed,
    /// At the beginning of a line after the last chunk.
    Trailer,
    TrailerLine,
    TrailerFeed,
    LastFeed,
    Done,
}

impl State {
    const fn is_trailer(self) -> bool {
        matches!(
            self,
            Self::Trailer | Self::TrailerLine | Self::TrailerFeed | Self::LastFeed
        )
    }
}

impl Body {
    pub(crate) const fn chunked() -> Self {
        Self::Chunked(Chunks {
            state: State::SizeBegin,
            size: 0,
            length: 0,
        })
    }

    /// Whether all of it came.
    pub(crate) fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.state == State::Done,
            Self::Close => false,
        }
    }

    /// How many of these bytes belong to it; fewer than all means that it is done.
    ///
    /// # Errors
    /// When they are no chunks.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<usize, Bad> {
        self.take_pieces(bytes, |_| {})
    }

    /// The same, with the content among the bytes going somewhere.
    ///
    /// # Errors
    /// When they are no chunks.
    pub(crate) fn take_into(
        &mut self,
        bytes: &[u8],
        mut content: impl FnMut(&[u8]),
    ) -> Result<usize, Bad> {
        self.take_pieces(bytes, |piece| match piece {
            Piece::Content(bytes) => content(bytes),
            Piece::Trailer(_) => {}
        })
    }

    /// The same, with all that is not the coding itself.
    ///
    /// # Errors
    /// When they are no chunks.
    pub(crate) fn take_pieces(
        &mut self,
        bytes: &[u8],
        mut pieces: impl FnMut(Piece<'_>),
    ) -> Result<usize, Bad> {
        match self {
            Self::Length(left) => {
                let taken = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                *left -= u64::try_from(taken).unwrap_or(*left);
                pieces(Piece::Content(bytes.get(..taken).unwrap_or_default()));
                Ok(taken)
            }
            Self::Chunked(chunks) => chunks.take(bytes, pieces),
            Self::Close => {
                pieces(Piece::Content(bytes));
                Ok(bytes.len())
            }
        }
    }
}

impl Chunks {
    fn take(&mut self, bytes: &[u8], mut pieces: impl FnMut(Piece<'_>)) -> Result<usize, Bad> {
        let mut taken = 0;
        while let Some(byte) = bytes.get(taken) {
            match self.state {
                State::Done => break,
                State::Data => {
                    let here = bytes.len() - taken;
                    let some = usize::try_from(self.size).unwrap_or(usize::MAX).min(here);
                    self.size -= u64::try_from(some).unwrap_or(self.size);
                    let content = bytes.get(taken..taken + some).unwrap_or_default();
                    pieces(Piece::Content(content));
                    taken += some;
                    if self.size == 0 {
                        self.state = State::DataReturn;
                    }
                }
                before => {
                    self.state = self.next(*byte)?;
                    if before.is_trailer() {
                        pieces(Piece::Trailer(std::slice::from_ref(byte)));
                    }
                    taken += 1;
                }
            }
        }
        Ok(taken)
    }

    fn next(&mut self, byte: u8) -> Result<State, Bad> {
        const SIZE: Bad = Bad::syntax("the size of a chunk is malformed");
        const CHUNK: Bad = Bad::syntax("a chunk does not end where it has to");
        const TRAILER: Bad = Bad::syntax("the fields after the last chunk are malformed");
        self.length = self.length.saturating_add(1);
        Ok(match (self.state, byte) {
            (State::SizeBegin | State::Size, byte)
                if byte.is_ascii_hexdigit() && self.length <= CHUNK_LINE_MAX =>
            {
                let digit = char::from(byte).to_digit(16).ok_or(SIZE)?;
                let size = self.size.checked_mul(16).ok_or(SIZE)?;
                self.size = size + u64::from(digit);
                State::Size
            }
            (State::Size | State::Beside, b'\r') => State::SizeFeed,
            (State::Size, b';') => State::Beside,
            (State::Beside, byte) if !is_control(byte) && self.length <= CHUNK_LINE_MAX => {
                State::Beside
            }
            (State::SizeFeed, b'\n') => {
                self.length = 0;
                if self.size == 0 {
                    State::Trailer
                } else {
                    State::Data
                }
            }
            (State::SizeBegin | State::Size | State::Beside | State::SizeFeed, _) => {
                return Err(SIZE);
            }
            (State::DataReturn, b'\r') => State::DataFeed,
            (State::DataFeed, b'\n') => {
                self.length = 0;
                State::SizeBegin
            }
            (State::DataReturn | State::DataFeed, _) => return Err(CHUNK),
            (State::Trailer, b'\r') => State::LastFeed,
            (State::LastFeed, b'\n') => State::Done,
            // A folded line is none.
            (State::Trailer, b' ' | b'\t') => return Err(TRAILER),
            (State::TrailerLine, b'\r') => State::TrailerFeed,
            (State::TrailerFeed, b'\n') => State::Trailer,
            (State::Trailer | State::TrailerLine, byte)
                if !is_control(byte) && self.length <= TRAILER_MAX =>
            {
                State::TrailerLine
            }
            _ => return Err(TRAILER),
        })
    }
}

const fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn chunks_end_where_they_say() {
        let good: [(&[u8], usize); 5] = [
            (b"0\r\n\r\n", 5),
            (b"5\r\nhello\r\n0\r\n\r\nGET", 15),
            (b"A;name=\"v\"\r\n0123456789\r\n0\r\n\r\n", 29),
            (b"000a\r\n0123456789\r\n0\r\nEtag: x\r\n\r\nrest", 32),
            (b"0\r\nA: 1\r\nB: 2\r\n\r\n", 17),
        ];
        let mut content = Vec::new();
        let wiki = b"4\r\nwiki\r\n5;x=y\r\npedia\r\n0\r\n\r\n";
        let taken = Body::chunked().take_into(wiki, |bytes| content.extend(bytes));
        assert_eq!(
            (taken, content.as_slice()),
            (Ok(wiki.len()), b"wikipedia".as_slice())
        );
        let mut trailer = Vec::new();
        let fields = b"1\r\na\r\n0\r\nA: 1\r\nB: 2\r\n\r\nGET";
        let taken = Body::chunked().take_pieces(fields, |piece| {
            if let Piece::Trailer(bytes) = piece {
                trailer.extend(bytes);
            }
        });
        assert_eq!(
            (taken, trailer.as_slice()),
            (Ok(fields.len() - 3), b"A: 1\r\nB: 2\r\n\r\n".as_slice())
        );
        for (bytes, length) in good {
            let mut body = Body::chunked();
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(body.take(bytes), Ok(length), "{text}");
            assert!(body.is_done(), "{text}");
        }
    }

    #[test]
    fn what_may_be_read_in_two_ways_is_refused() {
        let long = format!("1;{}\r\n", "x".repeat(2000));
        let trailer = format!("0\r\nA: {}\r\n\r\n", "x".repeat(20_000));
        let zeros = "0".repeat(2000);
        let bad: [&[u8]; 18] = [
            b"1 \r\n",
            zeros.as_bytes(),
            b"\r\n",
            b"x\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b"1\n",
            b";a\r\n",
            b"1\rx",
            b"5\r\nhelloX",
            b"5\r\nhello\n",
            b"5\r\nhello\rX",
            b"11111111111111111\r\n",
            b"0\r\n folded\r\n\r\n",
            b"0\r\nA: 1\n\r\n",
            long.as_bytes(),
            trailer.as_bytes(),
        ];
        for bytes in bad {
            let text = String::from_utf8_lossy(bytes);
            assert!(Body::chunked().take(bytes).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn pieces_give_what_the_whole_gives(
            bytes in proptest::collection::vec(prop_oneof![
                Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'2'), Just(b';'), Just(b' '), any::<u8>()
            ], 0..60),
            cuts in proptest::collection::vec(1_usize..8, 0..60),
        ) {
            let mut at_once = Body::chunked();
            let whole = at_once.take(&bytes);
            let mut body = Body::chunked();
            let mut pieces = Ok(0);
            let mut rest = bytes.as_slice();
            for cut in cuts.into_iter().chain([bytes.len()]) {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                match body.take(piece) {
                    Ok(taken) => pieces = pieces.map(|before| before + taken),
                    Err(bad) => { pieces = Err(bad); break; }
                }
                rest = after;
            }
            prop_assert_eq!(whole, pieces);
            if whole.is_ok() {
                prop_assert_eq!(at_once, body);
            }
        }

        #[test]
        fn a_length_is_never_passed(length in 0_u64..100, bytes in 0_usize..200) {
            let mut body = Body::Length(length);
            let taken = body.take(&vec![0; bytes]).unwrap();
            prop_assert_eq!(taken, bytes.min(usize::try_from(length).unwrap()));
            prop_assert_eq!(body.is_done(), u64::try_from(bytes).unwrap() >= length);
        }
    }
}
