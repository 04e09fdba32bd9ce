//! Requests, answers and fields of HTTP/2 in the words of HTTP/1.1, and back (RFC 9113, 8).
//!
//! A request's head is written as a client of HTTP/1.1 would, and is then read and judged as such:
//! what is refused there is refused here. Names and values cannot hold a line's end: their types
//! do not allow it.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Response, StatusCode, request};

use super::body::Body;
use super::head::{self, Bad, FIELDS_MAX, Method};

/// How a request's body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    None,
    /// As it comes: its length was said.
    Length,
    /// In chunks.
    Chunks,
}

impl Framing {
    /// A piece of content.
    pub(crate) fn piece(self, content: Bytes) -> Bytes {
        // A chunk without content would be the last one.
        if self != Self::Chunks || content.is_empty() {
            return content;
        }
        let size = format!("{:x}\r\n", content.len());
        let mut chunk = BytesMut::with_capacity(size.len() + content.len() + 2);
        chunk.put_slice(size.as_bytes());
        chunk.put_slice(&content);
        chunk.put_slice(b"\r\n");
        chunk.freeze()
    }

    /// The end, with the fields that come after the content. Without chunks there is no place for
    /// them, and they may be left out (RFC 9110, 6.5.1).
    pub(crate) fn last(self, fields: &HeaderMap) -> Bytes {
        if self != Self::Chunks {
            return Bytes::new();
        }
        let mut last = b"0\r\n".to_vec();
        for (name, value) in fields {
            if !is_of_connection(name) {
                line(&mut last, name.as_str(), value.as_bytes());
            }
        }
        last.extend_from_slice(b"\r\n");
        last.into()
    }
}

/// A request's head, and how its body is to follow; `ended` says that none does.
///
/// # Errors
/// When it names two hosts, or none.
pub(crate) fn request(parts: &request::Parts, ended: bool) -> Result<(Vec<u8>, Framing), Bad> {
    let fields = &parts.headers;
    let mut head = Vec::with_capacity(256);
    head.extend_from_slice(parts.method.as_str().as_bytes());
    head.push(b' ');
    let target = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    head.extend_from_slice(target.as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    line(&mut head, "host", host(parts)?);
    for (name, value) in fields {
        if *name != HOST && *name != COOKIE && !is_of_connection(name) {
            line(&mut head, name.as_str(), value.as_bytes());
        }
    }
    // They may come in pieces (RFC 9113, 8.2.3), of which HTTP/1.1 does not know.
    let cookies = fields.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    let cookies: Vec<&[u8]> = cookies.collect();
    if !cookies.is_empty() {
        line(&mut head, "cookie", &cookies.join(b"; ".as_slice()));
    }
    let framing = match (ended, fields.contains_key(CONTENT_LENGTH)) {
        (true, said) => {
            if !said && matches!(parts.method.as_str(), "POST" | "PUT" | "PATCH") {
                line(&mut head, "content-length", b"0");
            }
            Framing::None
        }
        (false, true) => Framing::Length,
        (false, false) => {
            line(&mut head, "transfer-encoding", b"chunked");
            Framing::Chunks
        }
    };
    head.extend_from_slice(b"\r\n");
    Ok((head, framing))
}

/// Whom a request is for: `:authority`, or `host` where there is none (RFC 9113, 8.3.1).
fn host(parts: &request::Parts) -> Result<&[u8], Bad> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let named = hosts.next().map(HeaderValue::as_bytes);
    let authority = parts.uri.authority().map(|a| a.as_str().as_bytes());
    let chosen = match (authority, named) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => None,
        (Some(authority), _) => Some(authority),
        (None, host) => host,
    };
    chosen
        .filter(|host| hosts.next().is_none() && !host.contains(&b'@'))
        .ok_or(Bad::syntax("a request names one host"))
}

/// A field that concerns the connection; a client that sends one breaks the rules, and the codec
/// refuses it already.
fn is_of_connection(name: &HeaderName) -> bool {
    *name == CONNECTION
        || *name == TRANSFER_ENCODING
        || *name == UPGRADE
        || name.as_str() == "keep-alive"
        || name.as_str() == "proxy-connection"
}

fn line(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

/// An answer's head, and its body as HTTP/1.1 brings it.
///
/// # Errors
/// When it is none.
pub(crate) fn answer(bytes: &[u8], asked: Method) -> Result<(Response<()>, Body), &'static str> {
    let response = head::response(bytes, asked, &mut Vec::new()).map_err(|bad| bad.why)?;
    let start = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0) + 1;
    let mut answer = Response::new(());
    *answer.status_mut() =
        StatusCode::from_u16(response.status).map_err(|_| "an answer's status is no number")?;
    *answer.headers_mut() = fields(bytes.get(start..).unwrap_or_default())?;
    Ok((answer, response.body))
}

/// The fields after a body.
///
/// # Errors
/// When they are malformed.
pub(crate) fn trailer(bytes: &[u8]) -> Result<HeaderMap, &'static str> {
    if bytes.is_empty() {
        return Ok(HeaderMap::new());
    }
    fields(bytes)
}

fn fields(bytes: &[u8]) -> Result<HeaderMap, &'static str> {
    const WRONG: &str = "an answer's fields are malformed";
    let mut room = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let Ok(httparse::Status::Complete((_, parsed))) = httparse::parse_headers(bytes, &mut room)
    else {
        return Err(WRONG);
    };
    let mut fields = HeaderMap::with_capacity(parsed.len());
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| WRONG)?;
        if is_of_connection(&name) {
            continue;
        }
        let value = HeaderValue::from_bytes(field.value).map_err(|_| WRONG)?;
        fields.append(name, value);
    }
    Ok(fields)
}
