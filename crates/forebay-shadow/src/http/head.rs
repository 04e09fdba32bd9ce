//! Heads of messages: where one ends, whether it may be believed, and what becomes of it on the way.
//!
//! Whoever reads a message differently than the next one in line lets a client hide one request
//! inside another. So whatever leaves room for two readings is refused (RFC 9112, 3.2, 6.1, 6.3
//! and 11.2): lines that end in a bare line feed, folded lines, two lengths, a length beside a
//! coding, any coding but `chunked` alone.

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::body::Body;

/// Longest head.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most fields of a head.
pub(crate) const FIELDS_MAX: usize = 100;

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bad {
    /// What the client is told.
    pub(crate) status: u16,
    /// In words.
    pub(crate) why: &'static str,
}

impl Bad {
    pub(crate) const fn syntax(why: &'static str) -> Self {
        Self { status: 400, why }
    }
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why)
    }
}

/// What a request's head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// Bytes of the head as it came.
    pub(crate) length: usize,
    pub(crate) method: Method,
    /// Where its target stands.
    pub(crate) target: Range<usize>,
    /// It speaks HTTP/1.1, not 1.0.
    pub(crate) modern: bool,
    /// The client goes on using the connection.
    pub(crate) keep: bool,
    pub(crate) body: Body,
    /// It waits for `100 Continue` before it sends its body.
    pub(crate) expects: bool,
    /// It asks for another protocol.
    pub(crate) upgrade: bool,
    /// It carries an `Idempotency-Key`.
    pub(crate) keyed: bool,
    /// Its client takes fields that come after a body.
    pub(crate) trailers: bool,
    /// It changes nothing (RFC 9110, 9.2.1).
    pub(crate) safe: bool,
}

/// What matters here of methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// Idempotent, and its answer has no body.
    Head,
    /// Idempotent (RFC 9110, 9.2.2).
    Idempotent,
    /// Any other.
    Other,
}

/// What a response's head says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    /// Bytes of the head as it came.
    pub(crate) length: usize,
    pub(crate) status: u16,
    /// It speaks HTTP/1.1, not 1.0.
    pub(crate) modern: bool,
    /// The connection can be used again.
    pub(crate) keep: bool,
    pub(crate) body: Body,
}

/// Looks for the end of a head in bytes that arrive piece by piece; each is looked at once.
#[derive(Debug, Default)]
pub(crate) struct Search {
    seen: usize,
    /// What has no end yet is judged once it has doubled, so that garbage is told early.
    judged: usize,
}

impl Search {
    /// The head's length, once it is whole.
    ///
    /// # Errors
    /// When it is too long.
    pub(crate) fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>, Bad> {
        let from = self.seen.saturating_sub(3);
        let found = end(bytes.get(from..).unwrap_or_default());
        self.seen = bytes.len();
        match found {
            Some(length) if from + length <= HEAD_BYTES_MAX => Ok(Some(from + length)),
            None if bytes.len() <= HEAD_BYTES_MAX => Ok(None),
            Some(_) | None => Err(Bad {
                status: 431,
                why: "the head is longer than 64 KiB",
            }),
        }
    }

    /// Whether it is time to judge a part of a head.
    pub(crate) const fn is_due(&mut self, length: usize) -> bool {
        let due = length >= 2 * self.judged;
        if due {
            self.judged = length;
        }
        due
    }
}

/// The length up to and including the first empty line.
pub(crate) fn end(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let feed = from + bytes.get(from..)?.iter().position(|byte| *byte == b'\n')?;
        if feed >= 3 && bytes.get(feed - 3..feed) == Some(b"\r\n\r") {
            return Some(feed + 1);
        }
        from = feed + 1;
    }
}

/// Judges a part of a request's head.
///
/// # Errors
/// When nothing that follows can make a request of it.
pub(crate) fn judge_part(bytes: &[u8]) -> Result<(), Bad> {
    let mut fields = [MaybeUninit::uninit(); FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let outcome = parsed.parse_with_uninit_headers(bytes, &mut fields);
    outcome.map(|_| ()).map_err(refusal)
}

/// Reads a request's head; fields that are not to be passed on go to `cuts`.
///
/// # Errors
/// When it is none, or may not be believed.
pub(crate) fn request(bytes: &[u8], cuts: &mut Vec<Range<usize>>) -> Result<Request, Bad> {
    let mut fields = [MaybeUninit::uninit(); FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let outcome = parsed.parse_with_uninit_headers(bytes, &mut fields);
    whole(bytes, outcome)?;
    let (Some(name), Some(path), Some(version)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(Bad::syntax("the request line is incomplete"));
    };
    let method = match name {
        "HEAD" => Method::Head,
        "GET" | "OPTIONS" | "TRACE" | "PUT" | "DELETE" => Method::Idempotent,
        "CONNECT" => {
            return Err(Bad {
                status: 501,
                why: "CONNECT is not for a service's front",
            });
        }
        _ => Method::Other,
    };
    let modern = version == 1;
    let seen = Fields::read(bytes, parsed.headers, cuts)?;
    if seen.hosts > 1 || (modern && seen.hosts == 0) {
        return Err(Bad::syntax("a request names one host"));
    }
    let body = match (seen.length, seen.chunked) {
        (Some(_), true) => {
            return Err(Bad::syntax("a request has a length or a coding, not both"));
        }
        (None, true) if !modern => return Err(Bad::syntax("HTTP/1.0 has no codings")),
        (None, true) => Body::chunked(),
        (length, false) => Body::Length(length.unwrap_or(0)),
    };
    let upgrade = modern && seen.upgrade && seen.asks_upgrade;
    if !upgrade {
        cuts.extend(seen.upgrade_at);
    }
    let start = offset(bytes, path.as_bytes());
    Ok(Request {
        length: bytes.len(),
        method,
        target: start..start + path.len(),
        modern,
        keep: if modern { !seen.close } else { seen.keep },
        expects: modern && seen.expects && !body.is_done(),
        body,
        upgrade,
        keyed: seen.keyed,
        trailers: modern && seen.trailers,
        safe: matches!(name, "GET" | "HEAD" | "OPTIONS" | "TRACE"),
    })
}

/// Reads a response's head; fields that are not to be passed on go to `cuts`.
///
/// # Errors
/// When it is none, or may not be believed.
pub(crate) fn response(
    bytes: &[u8],
    asked: Method,
    cuts: &mut Vec<Range<usize>>,
) -> Result<Response, Bad> {
    let mut fields = [MaybeUninit::uninit(); FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let outcome = config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields);
    whole(bytes, outcome)?;
    let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
        return Err(Bad::syntax("the status line is incomplete"));
    };
    let modern = version == 1;
    let seen = Fields::read(bytes, parsed.headers, cuts)?;
    if status != 101 {
        cuts.extend(seen.upgrade_at);
    }
    let bodiless = asked == Method::Head || status < 200 || status == 204 || status == 304;
    let body = match (seen.length, seen.chunked) {
        (Some(_), true) => {
            return Err(Bad::syntax("a response has a length or a coding, not both"));
        }
        _ if bodiless => Body::Length(0),
        (None, true) => Body::chunked(),
        (Some(length), false) => Body::Length(length),
        (None, false) => Body::Close,
    };
    Ok(Response {
        length: bytes.len(),
        status,
        modern,
        keep: body != Body::Close && if modern { !seen.close } else { seen.keep },
        body,
    })
}

fn refusal(error: httparse::Error) -> Bad {
    match error {
        httparse::Error::TooManyHeaders => Bad {
            status: 431,
            why: "the head has more than 100 fields",
        },
        httparse::Error::Version => Bad::syntax("only HTTP/1.1 and HTTP/1.0 are spoken here"),
        httparse::Error::HeaderName => Bad::syntax("a field's name is malformed, or folded"),
        httparse::Error::HeaderValue => Bad::syntax("a field's value is malformed"),
        _ => Bad::syntax("the first line is malformed"),
    }
}

/// Whether the parser read exactly these bytes, with every line ended as it has to be.
fn whole(bytes: &[u8], outcome: httparse::Result<usize>) -> Result<(), Bad> {
    match outcome.map_err(refusal)? {
        httparse::Status::Complete(length) if length == bytes.len() => {}
        _ => return Err(Bad::syntax("a line ends in a bare line feed")),
    }
    let mut before = 0;
    for byte in bytes {
        if *byte == b'\n' && before != b'\r' {
            return Err(Bad::syntax("a line ends in a bare line feed"));
        }
        before = *byte;
    }
    Ok(())
}

/// What the fields of a head say that concern the connection.
#[derive(Debug, Default)]
struct Fields {
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep: bool,
    expects: bool,
    keyed: bool,
    trailers: bool,
    /// `Connection: upgrade`.
    asks_upgrade: bool,
    /// There is an `Upgrade` to something that may be passed on.
    upgrade: bool,
    upgrade_at: Option<Range<usize>>,
}

impl Fields {
    fn read(
        bytes: &[u8],
        fields: &[httparse::Header<'_>],
        cuts: &mut Vec<Range<usize>>,
    ) -> Result<Self, Bad> {
        let mut seen = Self::default();
        let mut named = false;
        for field in fields {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            // Most fields concern nobody here; their length says so.
            match field.name.len() {
                2 if is("te") => {
                    seen.trailers |= list(field.value).any(is_token("trailers"));
                    cuts.push(line(bytes, field));
                }
                4 if is("host") => seen.hosts += 1,
                6 if is("expect") => seen.expects = list(field.value).any(is_token("100-continue")),
                7 if is("upgrade") => seen.add_upgrade(bytes, field, cuts),
                10 if is("keep-alive") => cuts.push(line(bytes, field)),
                10 if is("connection") => {
                    named |= seen.add_connection(field.value);
                    cuts.push(line(bytes, field));
                }
                14 if is("http2-settings") => cuts.push(line(bytes, field)),
                14 if is("content-length") => {
                    let length = number(field.value)?;
                    match seen.length {
                        None => seen.length = Some(length),
                        Some(before) if before == length => cuts.push(line(bytes, field)),
                        Some(_) => return Err(Bad::syntax("there are two lengths")),
                    }
                }
                15 if is("idempotency-key") => seen.keyed = !field.value.is_empty(),
                16 if is("proxy-connection") => cuts.push(line(bytes, field)),
                17 if is("transfer-encoding") => {
                    if seen.chunked || !field.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Bad {
                            status: if seen.chunked { 400 } else { 501 },
                            why: "the only coding spoken here is `chunked`, once",
                        });
                    }
                    seen.chunked = true;
                }
                _ => {}
            }
        }
        if named {
            cut_named(bytes, fields, cuts);
        }
        Ok(seen)
    }

    /// Whether it names fields that only concern the next one in line.
    fn add_connection(&mut self, value: &[u8]) -> bool {
        let mut named = false;
        for token in list(value) {
            if is_token("close")(token) {
                self.close = true;
            } else if is_token("keep-alive")(token) {
                self.keep = true;
            } else if is_token("upgrade")(token) {
                self.asks_upgrade = true;
            } else {
                named |= !token.is_empty();
            }
        }
        named
    }

    /// HTTP/2 in place of this connection would hide every further request.
    fn add_upgrade(
        &mut self,
        bytes: &[u8],
        field: &httparse::Header<'_>,
        cuts: &mut Vec<Range<usize>>,
    ) {
        if self.upgrade_at.is_some() || list(field.value).any(is_token("h2c")) {
            cuts.push(line(bytes, field));
        } else {
            self.upgrade = true;
            self.upgrade_at = Some(line(bytes, field));
        }
    }
}

/// Fields that a client may not have taken out by naming them in `Connection`.
const KEPT: [&str; 6] = [
    "host",
    "idempotency-key",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
];

fn cut_named(bytes: &[u8], fields: &[httparse::Header<'_>], cuts: &mut Vec<Range<usize>>) {
    let connections = || {
        let all = fields.iter();
        all.filter(|field| field.name.eq_ignore_ascii_case("connection"))
    };
    for field in fields {
        if KEPT
            .iter()
            .any(|kept| field.name.eq_ignore_ascii_case(kept))
        {
            continue;
        }
        let mut tokens = connections().flat_map(|connection| list(connection.value));
        if tokens.any(is_token(field.name)) {
            cuts.push(line(bytes, field));
        }
    }
}

fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn is_token(name: &str) -> impl Fn(&[u8]) -> bool {
    move |token| token.eq_ignore_ascii_case(name.as_bytes())
}

fn number(value: &[u8]) -> Result<u64, Bad> {
    const WRONG: Bad = Bad::syntax("a length is no number");
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(WRONG);
    }
    let text = std::str::from_utf8(value).map_err(|_| WRONG)?;
    text.parse().map_err(|_| WRONG)
}

/// Where a part of the head begins in it.
fn offset(bytes: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr().saturating_sub(bytes.as_ptr().addr())
}

/// Where a field's line stands, with its end.
fn line(bytes: &[u8], field: &httparse::Header<'_>) -> Range<usize> {
    let start = offset(bytes, field.name.as_bytes());
    let rest = bytes.get(start..).unwrap_or_default();
    let feed = rest.iter().position(|byte| *byte == b'\n');
    start..start + feed.map_or(rest.len(), |feed| feed + 1)
}

/// Finds the lines of all fields of a name in a head that was read.
pub(crate) fn lines_of(name: &str, head: &[u8], cuts: &mut Vec<Range<usize>>) {
    let mut start = 0;
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let field = line.split(|byte| *byte == b':').next();
        if field.is_some_and(|field| field.eq_ignore_ascii_case(name.as_bytes())) {
            cuts.push(start..start + line.len());
        }
        start += line.len();
    }
}

/// Takes fields out of the head that a buffer begins with, and puts lines at its end.
///
/// Returns the head's new length; what follows it moves along.
pub(crate) fn rewrite(
    buffer: &mut Vec<u8>,
    length: usize,
    cuts: &mut Vec<Range<usize>>,
    lines: &[u8],
) -> usize {
    if cuts.is_empty() && lines.is_empty() {
        return length;
    }
    cuts.sort_unstable_by_key(|cut| cut.start);
    let mut to = 0;
    let mut from = 0;
    for cut in cuts.drain(..) {
        // One field can be named twice.
        if cut.start < from {
            continue;
        }
        buffer.copy_within(from..cut.start, to);
        to += cut.start - from;
        from = cut.end;
    }
    buffer.copy_within(from..length, to);
    to += length - from;
    // Before the empty line.
    let place = to - 2;
    buffer.splice(place..length - 2, lines.iter().copied());
    place + lines.len() + 2
}

#[cfg(test)]
#[path = "head_tests.rs"]
pub(super) mod tests;
