//! A client that shows what the server says, message by message.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// What came back for one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) rows: Vec<Vec<Option<String>>>,
    pub(crate) tags: Vec<String>,
    /// The SQLSTATE of an error.
    pub(crate) error: Option<String>,
    pub(crate) message: String,
    pub(crate) status: u8,
    /// Types of all messages.
    pub(crate) types: String,
}

impl Answer {
    pub(crate) fn value(&self) -> &str {
        self.rows[0][0].as_deref().unwrap()
    }
}

pub(crate) struct Client {
    stream: Box<dyn Bytes>,
    /// Process and secret.
    pub(crate) key: Vec<u8>,
    pub(crate) parameters: Vec<(String, String)>,
}

/// What a client speaks over.
pub(crate) trait Bytes: Read + Write + Send {}

impl<T: Read + Write + Send> Bytes for T {}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], length.to_be_bytes().as_slice(), body].concat()
}

pub(crate) fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

pub(crate) fn bind_execute(name: &str) -> Vec<u8> {
    let bind = message(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes());
    [bind, message(b'E', b"\0\0\0\0\0")].concat()
}

pub(crate) fn sync() -> Vec<u8> {
    message(b'S', b"")
}

pub(crate) fn query(sql: &str) -> Vec<u8> {
    message(b'Q', format!("{sql}\0").as_bytes())
}

/// A connection that gives up after a while.
pub(crate) fn tcp(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    stream
}

impl Client {
    pub(crate) fn connect(port: u16, user: &str) -> Self {
        Self::over(tcp(port), user)
    }

    /// Opens a session.
    pub(crate) fn over(mut stream: impl Bytes + 'static, user: &str) -> Self {
        let parameters = format!("user\0{user}\0database\0postgres\0application_name\0a test\0\0");
        let mut opening = 196_608_u32.to_be_bytes().to_vec();
        opening.extend(parameters.as_bytes());
        let length = u32::try_from(opening.len() + 4).unwrap();
        stream
            .write_all(&[length.to_be_bytes().to_vec(), opening].concat())
            .unwrap();
        let mut client = Self {
            stream: Box::new(stream),
            key: Vec::new(),
            parameters: Vec::new(),
        };
        let answer = client.answer().unwrap();
        assert_eq!(answer.error, None, "{answer:?}");
        client
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // One that ended is seen when it is read from.
        self.stream.write_all(bytes).ok();
    }

    /// What comes until the server is ready; an error when the connection ends.
    pub(crate) fn answer(&mut self) -> Result<Answer, Answer> {
        let mut answer = Answer::default();
        loop {
            let mut header = [0; 5];
            if self.stream.read_exact(&mut header).is_err() {
                return Err(answer);
            }
            let length = u32::from_be_bytes(header[1..].try_into().unwrap());
            let mut body = vec![0; usize::try_from(length).unwrap() - 4];
            if self.stream.read_exact(&mut body).is_err() {
                return Err(answer);
            }
            answer.types.push(char::from(header[0]));
            let texts = || {
                body.split(|byte| *byte == 0)
                    .map(|text| String::from_utf8_lossy(text).into_owned())
            };
            match header[0] {
                b'Z' => {
                    answer.status = body[0];
                    return Ok(answer);
                }
                b'C' => answer.tags.extend(texts().next()),
                b'D' => answer.rows.push(row(&body)),
                b'K' => self.key = body,
                b'S' => {
                    let texts: Vec<String> = texts().collect();
                    self.parameters.push((texts[0].clone(), texts[1].clone()));
                }
                b'E' => {
                    for field in texts() {
                        match field.split_at_checked(1) {
                            Some(("C", code)) => answer.error = Some(code.to_owned()),
                            Some(("M" | "D", text)) => {
                                answer.message = format!("{} {text}", answer.message);
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
    }

    pub(crate) fn try_query(&mut self, sql: &str) -> Result<Answer, Answer> {
        self.send(&query(sql));
        self.answer()
    }

    /// A query that has to succeed.
    pub(crate) fn query(&mut self, sql: &str) -> Answer {
        let answer = self.try_query(sql).unwrap();
        assert_eq!(answer.error, None, "{sql}: {answer:?}");
        answer
    }

    /// A query that has to fail.
    pub(crate) fn fails(&mut self, sql: &str) -> Answer {
        let answer = self.try_query(sql).unwrap();
        assert!(answer.error.is_some(), "{sql}: {answer:?}");
        answer
    }
}

fn row(body: &[u8]) -> Vec<Option<String>> {
    let mut values = Vec::new();
    let mut at = 2;
    while at < body.len() {
        let length = i32::from_be_bytes(body[at..at + 4].try_into().unwrap());
        at += 4;
        let length = usize::try_from(length).ok();
        values.push(
            length.map(|length| String::from_utf8_lossy(&body[at..at + length]).into_owned()),
        );
        at += length.unwrap_or_default();
    }
    values
}
