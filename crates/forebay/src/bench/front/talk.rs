//! What clients say, and when an answer is whole.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// Longest head of an answer, or longest answer of PostgreSQL.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What is asked, over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Talk {
    /// HTTP/1.1, this path.
    Http { path: &'static str },
    /// PostgreSQL's protocol, `SELECT 1` as a simple query, in this database.
    Postgres { database: &'static str },
}

/// Reads one answer after the other.
#[derive(Debug, Default)]
pub(super) struct Reader {
    head: Vec<u8>,
    /// Bytes of the body that are still to come, once the head is whole.
    left: Option<u64>,
}

impl Talk {
    pub(super) fn request(self) -> Vec<u8> {
        match self {
            Self::Http { path } => format!(
                "GET {path} HTTP/1.1\r\nhost: bench\r\nuser-agent: forebay\r\naccept: */*\r\n\r\n"
            )
            .into_bytes(),
            Self::Postgres { .. } => message(Some(b'Q'), b"SELECT 1\0"),
        }
    }

    /// Says what has to be said before the first request; the connection blocks.
    pub(super) fn greet(self, stream: &mut TcpStream) -> Result<(), String> {
        let Self::Postgres { database } = self else {
            return Ok(());
        };
        let startup = format!("\0\x03\0\0user\0postgres\0database\0{database}\0\0");
        let said = stream.write_all(&message(None, startup.as_bytes()));
        said.map_err(|error| error.to_string())?;
        let mut reader = Reader::default();
        let mut buffer = [0; 4096];
        loop {
            let read = stream
                .read(&mut buffer)
                .map_err(|error| error.to_string())?;
            if read == 0 {
                return Err("it ended the connection at the login".to_owned());
            }
            if reader.take(self, buffer.get(..read).unwrap_or_default())? {
                return Ok(());
            }
        }
    }
}

fn message(kind: Option<u8>, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    let mut bytes: Vec<u8> = kind.into_iter().collect();
    bytes.extend(length.to_be_bytes());
    bytes.extend(body);
    bytes
}

impl Reader {
    /// Takes bytes of the answer; whether it is whole now.
    pub(super) fn take(&mut self, talk: Talk, bytes: &[u8]) -> Result<bool, String> {
        let whole = match talk {
            Talk::Http { .. } => self.http(bytes)?,
            Talk::Postgres { .. } => self.postgres(bytes)?,
        };
        if whole {
            self.head.clear();
            self.left = None;
        }
        Ok(whole)
    }

    fn http(&mut self, bytes: &[u8]) -> Result<bool, String> {
        let mut body = bytes.len() as u64;
        let left = match self.left {
            Some(left) => left,
            None => {
                self.head.extend(bytes);
                let mut windows = self.head.windows(4);
                let Some(end) = windows.position(|window| window == b"\r\n\r\n") else {
                    return self.bounded();
                };
                body = (self.head.len() - end - 4) as u64;
                length(self.head.get(..end).unwrap_or_default())?
            }
        };
        let left = left.checked_sub(body);
        let left = left.ok_or("more came than the answer is long")?;
        self.left = Some(left);
        Ok(left == 0)
    }

    fn postgres(&mut self, bytes: &[u8]) -> Result<bool, String> {
        self.head.extend(bytes);
        let mut rest = self.head.as_slice();
        while let [kind, a, b, c, d, ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]);
            let length = usize::try_from(length).map_err(|error| error.to_string())?;
            let Some(after) = rest.get(1 + length..) else {
                break;
            };
            match kind {
                b'Z' => return Ok(true),
                b'E' => {
                    let text = String::from_utf8_lossy(rest.get(5..=length).unwrap_or_default());
                    return Err(format!("the server said: {}", text.replace('\0', " ")));
                }
                _ => rest = after,
            }
        }
        self.bounded()
    }

    fn bounded(&self) -> Result<bool, String> {
        if self.head.len() > HEAD_BYTES_MAX {
            return Err(format!("no answer within {HEAD_BYTES_MAX} bytes"));
        }
        Ok(false)
    }
}

/// The length of the body after this head.
fn length(head: &[u8]) -> Result<u64, String> {
    let text = String::from_utf8_lossy(head).to_lowercase();
    let status = text.split_whitespace().nth(1);
    if status != Some("200") {
        return Err(format!("the answer is {}", status.unwrap_or("no HTTP")));
    }
    let mut lines = text.lines();
    let length = lines.find_map(|line| line.strip_prefix("content-length:"));
    let length = length.and_then(|length| length.trim().parse().ok());
    length.ok_or_else(|| "the answer does not say how long it is".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte by byte and at once, the answer is whole at its last byte.
    fn check(talk: Talk, answer: &[u8]) {
        let mut reader = Reader::default();
        for _ in 0..2 {
            for (place, byte) in answer.iter().enumerate() {
                let whole = reader.take(talk, &[*byte]).unwrap();
                assert_eq!(whole, place + 1 == answer.len(), "{place}");
            }
            assert!(reader.take(talk, answer).unwrap());
        }
    }

    #[test]
    fn answers_end_with_their_last_byte() {
        let http = Talk::Http { path: "/" };
        check(http, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc");
        let row = [
            message(Some(b'D'), b"\0\x01\0\0\0\x011"),
            message(Some(b'Z'), b"I"),
        ];
        check(Talk::Postgres { database: "x" }, &row.concat());
    }

    #[test]
    fn an_error_is_no_answer() {
        let http = Talk::Http { path: "/" };
        for wrong in [
            &b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
            &[b'x'; HEAD_BYTES_MAX + 1],
        ] {
            assert!(Reader::default().take(http, wrong).is_err());
        }
        let error = message(Some(b'E'), b"SFATAL\0Mno\0\0");
        let postgres = Talk::Postgres { database: "x" };
        let said = Reader::default().take(postgres, &error);
        assert!(said.unwrap_err().contains("FATAL"));
    }
}
