//! What a client sends: commands, one after the other, in whatever pieces they come.
//!
//! RESP arrays of bulk strings, and inline commands as a person types them. What has come of a
//! command is looked at once, however small the pieces are.

use std::ops::Range;

/// Most arguments of a command; the server's own limit.
const ARGUMENTS_MAX: usize = 1024 * 1024;
/// Longest inline command and longest line of a length; the server's own limit.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// A buffer that grew larger than this is given back once it is empty.
const KEEP_BYTES: usize = 16 * 1024;

/// Why a client is not understood. The connection ends with it, as the server's would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Protocol error: {0}")]
pub(super) struct ProtocolError(pub(super) &'static str);

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    /// As it is sent on: an array of bulk strings.
    pub(super) bytes: Vec<u8>,
    arguments: Vec<Range<usize>>,
}

impl Command {
    /// From its arguments.
    pub(super) fn new<T: AsRef<[u8]>>(arguments: &[T]) -> Self {
        let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
        let mut ranges = Vec::with_capacity(arguments.len());
        for argument in arguments {
            let argument = argument.as_ref();
            bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            ranges.push(bytes.len()..bytes.len() + argument.len());
            bytes.extend_from_slice(argument);
            bytes.extend_from_slice(b"\r\n");
        }
        Self {
            bytes,
            arguments: ranges,
        }
    }

    /// An argument; the first one is the command's name.
    pub(super) fn argument(&self, place: usize) -> Option<&[u8]> {
        self.bytes.get(self.arguments.get(place)?.clone())
    }

    /// All arguments.
    pub(super) fn arguments(&self) -> impl Iterator<Item = &[u8]> {
        let ranges = self.arguments.iter().cloned();
        ranges.filter_map(|range| self.bytes.get(range))
    }

    /// How many arguments there are, with the name.
    pub(super) const fn len(&self) -> usize {
        self.arguments.len()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the beginning of a command.
    Start,
    /// At the length of an argument; so many are to come.
    Length(usize),
    /// Within an argument of so many bytes.
    Argument { left: usize, length: usize },
}

/// Takes pieces in and gives commands out.
#[derive(Debug)]
pub(super) struct Requests {
    buffer: Vec<u8>,
    /// Where the command begins that is being read, and how far it was looked at.
    start: usize,
    at: usize,
    /// A line is looked for from here on.
    searched: usize,
    state: State,
    /// Counted from where the command begins.
    arguments: Vec<Range<usize>>,
    bytes_max: usize,
}

impl Requests {
    /// A reader of commands that are no longer than this.
    pub(super) const fn new(bytes_max: usize) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            at: 0,
            searched: 0,
            state: State::Start,
            arguments: Vec::new(),
            bytes_max,
        }
    }

    /// Takes a piece in.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start >= self.buffer.len() / 2 {
            self.shift();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// What came and belongs to no command that was given out.
    pub(super) fn rest(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// Bytes that are held.
    pub(super) const fn held(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn shift(&mut self) {
        self.buffer.drain(..self.start);
        self.at -= self.start;
        self.searched = self.searched.saturating_sub(self.start);
        self.start = 0;
    }

    /// The next command, if it is complete.
    ///
    /// # Errors
    /// When this is not the protocol. Nothing more comes out after that.
    pub(super) fn next(&mut self) -> Result<Option<Command>, ProtocolError> {
        loop {
            if self.at - self.start > self.bytes_max {
                return Err(ProtocolError("request too large for this front"));
            }
            match self.state {
                State::Start => match self.buffer.get(self.start) {
                    None => {
                        self.release();
                        return Ok(None);
                    }
                    Some(b'*') => {
                        let Some(count) = self.number(b'*', "invalid multibulk length")? else {
                            return Ok(None);
                        };
                        let Ok(count) = usize::try_from(count) else {
                            self.start = self.at;
                            continue;
                        };
                        if count > ARGUMENTS_MAX {
                            return Err(ProtocolError("invalid multibulk length"));
                        }
                        if count == 0 {
                            self.start = self.at;
                            continue;
                        }
                        self.state = State::Length(count);
                    }
                    Some(_) => match self.inline()? {
                        None => return Ok(None),
                        Some(words) if words.is_empty() => {}
                        Some(words) => return Ok(Some(Command::new(&words))),
                    },
                },
                State::Length(left) => {
                    match self.buffer.get(self.at) {
                        None => return Ok(None),
                        Some(b'$') => {}
                        Some(_) => return Err(ProtocolError("expected '$'")),
                    }
                    let Some(length) = self.number(b'$', "invalid bulk length")? else {
                        return Ok(None);
                    };
                    let length = usize::try_from(length)
                        .ok()
                        .filter(|length| *length <= self.bytes_max);
                    let length = length.ok_or(ProtocolError("invalid bulk length"))?;
                    if self.at - self.start + length > self.bytes_max {
                        return Err(ProtocolError("request too large for this front"));
                    }
                    self.state = State::Argument { left, length };
                }
                State::Argument { left, length } => {
                    let Some(end) = self.buffer.get(self.at + length..self.at + length + 2) else {
                        return Ok(None);
                    };
                    // The server takes any two bytes here; what is sent on is not of doubtful form.
                    if end != b"\r\n" {
                        return Err(ProtocolError("expected CRLF after a bulk string"));
                    }
                    self.arguments
                        .push(self.at - self.start..self.at - self.start + length);
                    self.at += length + 2;
                    self.searched = self.at;
                    self.state = State::Length(left - 1);
                    if left == 1 {
                        return Ok(Some(self.take()));
                    }
                }
            }
        }
    }

    fn take(&mut self) -> Command {
        let bytes = self.buffer.get(self.start..self.at).unwrap_or_default();
        let command = Command {
            bytes: bytes.to_vec(),
            arguments: std::mem::take(&mut self.arguments),
        };
        self.start = self.at;
        self.state = State::Start;
        command
    }

    fn release(&mut self) {
        self.start = 0;
        self.at = 0;
        self.searched = 0;
        self.buffer.clear();
        if self.buffer.capacity() > KEEP_BYTES {
            self.buffer = Vec::new();
        }
    }

    /// The line that begins at `at`, without its end, if it is complete.
    fn line(&mut self, error: &'static str) -> Result<Option<Range<usize>>, ProtocolError> {
        let from = self.searched.max(self.at);
        let rest = self.buffer.get(from..).unwrap_or_default();
        let found = rest.iter().position(|byte| *byte == b'\n');
        let end = found.map_or(self.buffer.len(), |place| from + place);
        if end - self.at > LINE_BYTES_MAX {
            return Err(ProtocolError(error));
        }
        self.searched = end;
        let Some(_) = found else { return Ok(None) };
        let start = self.at;
        self.at = end + 1;
        self.searched = self.at;
        let bare = self.buffer.get(start..end).unwrap_or_default();
        let bare = bare.strip_suffix(b"\r").unwrap_or(bare);
        Ok(Some(start..start + bare.len()))
    }

    /// A length with its mark, and the line's end.
    fn number(&mut self, mark: u8, error: &'static str) -> Result<Option<i64>, ProtocolError> {
        let long = if mark == b'*' {
            "too big mbulk count string"
        } else {
            "too big bulk count string"
        };
        let Some(line) = self.line(long)? else {
            return Ok(None);
        };
        let digits = self.buffer.get(line.start + 1..line.end);
        let number = digits.and_then(decimal).ok_or(ProtocolError(error))?;
        Ok(Some(number))
    }

    fn inline(&mut self) -> Result<Option<Vec<Vec<u8>>>, ProtocolError> {
        let Some(line) = self.line("too big inline request")? else {
            return Ok(None);
        };
        let words = words(self.buffer.get(line).unwrap_or_default());
        self.start = self.at;
        let words = words.ok_or(ProtocolError("unbalanced quotes in request"))?;
        Ok(Some(words))
    }
}

/// A decimal number with an optional minus and nothing else.
pub(super) fn decimal(bytes: &[u8]) -> Option<i64> {
    if bytes.first() == Some(&b'+') {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Splits a line into words as the server does; none when a quote is left open.
fn words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut rest = line.iter().copied().peekable();
    loop {
        while rest.next_if(u8::is_ascii_whitespace).is_some() {}
        if rest.peek().is_none() {
            return Some(words);
        }
        let mut word = Vec::new();
        while let Some(byte) = rest.next_if(|byte| !byte.is_ascii_whitespace()) {
            if byte != b'"' && byte != b'\'' {
                word.push(byte);
                continue;
            }
            loop {
                match rest.next()? {
                    end if end == byte => break,
                    b'\\' if byte == b'"' => word.push(escaped(&mut rest)?),
                    b'\\' if rest.next_if_eq(&b'\'').is_some() => word.push(b'\''),
                    other => word.push(other),
                }
            }
            if rest.peek().is_some_and(|next| !next.is_ascii_whitespace()) {
                return None;
            }
        }
        words.push(word);
    }
}

/// What stands for a byte after a backslash within double quotes.
fn escaped(rest: &mut std::iter::Peekable<impl Iterator<Item = u8> + Clone>) -> Option<u8> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    Some(match rest.next()? {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        b'x' => {
            let mut ahead = rest.clone();
            match (digit(ahead.next()), digit(ahead.next())) {
                (Some(high), Some(low)) => {
                    *rest = ahead;
                    u8::try_from(high * 16 + low).ok()?
                }
                _ => b'x',
            }
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(requests: &mut Requests) -> Result<Vec<Vec<Vec<u8>>>, ProtocolError> {
        let mut commands = Vec::new();
        while let Some(command) = requests.next()? {
            commands.push(command.arguments().map(<[u8]>::to_vec).collect());
        }
        Ok(commands)
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: Result<&[&[&str]], &str>) {
        let mut requests = Requests::new(1000);
        requests.push(bytes);
        let found = all(&mut requests).map_err(|error| error.to_string());
        let expected = expected.map_err(|error| format!("Protocol error: {error}"));
        let texts = found.map(|commands| {
            let text = |word: &Vec<u8>| String::from_utf8_lossy(word).into_owned();
            let texts = commands.iter().map(|words| words.iter().map(text));
            texts.map(Iterator::collect).collect::<Vec<Vec<String>>>()
        });
        let expected = expected.map(|commands| {
            let words = |words: &&[&str]| words.iter().map(|word| (*word).to_owned()).collect();
            commands.iter().map(words).collect::<Vec<Vec<String>>>()
        });
        assert_eq!(texts, expected, "{}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn commands_are_read() {
        check(b"", Ok(&[]));
        check(b"*1\r\n$4\r\nPING\r\n", Ok(&[&["PING"]]));
        check(b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET", Ok(&[&["PING"]]));
        check(
            b"*0\r\n*-1\r\n\r\nPING\r\n  set a \"b\\x41 \\n\" 'c\\' d'\r\n",
            Ok(&[&["PING"], &["set", "a", "bA \n", "c' d"]]),
        );
        check(b"*2\r\n$0\r\n\r\n$1\r\n\n\r\n", Ok(&[&["", "\n"]]));
        check(b"set \"a\r\n", Err("unbalanced quotes in request"));
        check(b"set \"a\"b\r\n", Err("unbalanced quotes in request"));
        check(b"*x\r\n", Err("invalid multibulk length"));
        check(b"*1048577\r\n", Err("invalid multibulk length"));
        check(
            b"*99999999999999999999\r\n",
            Err("invalid multibulk length"),
        );
        check(b"*1\r\n:4\r\n", Err("expected '$'"));
        check(b"*1\r\n$-1\r\n", Err("invalid bulk length"));
        check(b"*1\r\n$1001\r\n", Err("invalid bulk length"));
        check(b"*1\r\n$1\r\nabc", Err("expected CRLF after a bulk string"));
        check(&[b'a'; 70_000], Err("too big inline request"));
        let mut large = b"*3\r\n".to_vec();
        for _ in 0..3 {
            large.extend_from_slice(b"$500\r\n");
            large.extend_from_slice(&[b'x'; 500]);
            large.extend_from_slice(b"\r\n");
        }
        check(&large, Err("request too large for this front"));
    }

    fn commands() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
        let word = proptest::collection::vec(any::<u8>(), 0..20);
        let command = proptest::collection::vec(word, 1..5);
        proptest::collection::vec(command, 0..10)
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(commands in commands(), cuts in proptest::collection::vec(1_usize..9, 1..50)) {
            let bytes: Vec<u8> = commands.iter().flat_map(|words| Command::new(words).bytes).collect();
            let mut requests = Requests::new(1000);
            let (mut found, mut rest) = (Vec::new(), bytes.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                requests.push(piece);
                found.extend(all(&mut requests).unwrap());
                rest = more;
            }
            prop_assert_eq!(found, commands);
            prop_assert_eq!(requests.held(), 0);
        }

        #[test]
        fn garbage_is_an_error_or_a_command(pieces in proptest::collection::vec("[*$0-9a\r\n\" x-]{0,12}", 0..40)) {
            let mut requests = Requests::new(100);
            for piece in &pieces {
                requests.push(piece.as_bytes());
                if all(&mut requests).is_err() { break }
            }
            prop_assert!(requests.held() <= 12 * 40);
        }
    }
}
