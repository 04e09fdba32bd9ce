//! Requests as they stand, without the program's own client.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::place::PATIENCE;

/// Sends one request as it stands, and gives status and body of the answer.
pub(crate) fn request(socket: &Path, method: &str, uri: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut head = String::new();
    write!(
        head,
        "{method} {uri} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    // A daemon that refuses early does not read to the end.
    stream.write_all(body.as_bytes()).ok();
    answer(stream)
}

/// Reads an answer to its end.
pub(crate) fn answer(mut stream: impl std::io::Read) -> (u16, String) {
    let mut bytes = Vec::new();
    // The rest may be cut off by a reset when the request was not read to its end.
    stream.read_to_end(&mut bytes).ok();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (
        status.unwrap_or_else(|| panic!("no answer: {text}")),
        body.to_owned(),
    )
}
