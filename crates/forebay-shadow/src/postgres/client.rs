//! A connection to a server that the front opens itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

use base64::Engine as _;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use tokio::io::{AsyncWriteExt as _, Interest};

use super::frame::{self, Frames, Key, Opening, Piece};
use super::scram::{self, Keys};
use crate::stream::Stream;
use crate::tls::Flow;

/// Bytes that are read at once.
const READ_BYTES: usize = 32 * 1024;
/// Rows that an answer to the front's own question has at most.
const ROWS_MAX: usize = 10_000;

thread_local! {
    /// One for all connections of a thread: an idle one holds no buffer.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// What a read came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    Nothing,
    Some,
    End,
}

/// Reads once, without waiting.
///
/// # Errors
/// What the system says.
pub(crate) fn fill(mut stream: impl Flow, frames: &mut Frames) -> io::Result<Filled> {
    BUFFER.with_borrow_mut(|buffer| match stream.read_now(buffer) {
        Ok(0) => Ok(Filled::End),
        Ok(length) => {
            frames.push(buffer.get(..length).unwrap_or_default());
            Ok(Filled::Some)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Filled::Nothing),
        Err(error) => Err(error),
    })
}

/// Takes in what a server that is lost still said, up to so many bytes. The kernel is asked, since
/// the runtime may not have heard yet that there is something.
pub(crate) fn drain(stream: &Stream, frames: &mut Frames, bytes_max: usize) {
    BUFFER.with_borrow_mut(|buffer| {
        let mut total = 0;
        while total < bytes_max {
            let flags = rustix::net::RecvFlags::DONTWAIT;
            match rustix::net::recv(stream, buffer.as_mut_slice(), flags) {
                Ok((0, _)) => return,
                Ok((length, _)) => {
                    total += length;
                    frames.push(buffer.get(..length).unwrap_or_default());
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    });
}

/// What proves who the front is, or who it acts for.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// Nothing: hosts that are trusted.
    None,
    Password(String),
    Keys(Keys),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Password(_) => "Password",
            Self::Keys(_) => "Keys",
        })
    }
}

/// Why there is no connection, or no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("{0}")]
    Broken(#[from] io::Error),
    #[error("the server does not speak the protocol: {0}")]
    Garbage(#[from] frame::Garbage),
    /// It answered, with an error.
    #[error("{0}")]
    Refused(String),
    /// It lets this user in no more.
    #[error("{0}")]
    Denied(String),
    #[error("the server asks for a proof that the front does not have: {0}")]
    Unproven(&'static str),
}

impl Trouble {
    /// Whether to ask the same again makes no sense.
    pub(crate) const fn is_final(&self) -> bool {
        matches!(self, Self::Unproven(_) | Self::Garbage(_) | Self::Denied(_))
    }
}

/// The rows of an answer.
pub(crate) type Rows = Vec<Vec<Option<String>>>;

/// A connection on which nothing is under way.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    pub(crate) frames: Frames,
    pub(crate) key: Option<Key>,
    pub(crate) parameters: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Connection {
    /// Opens a session.
    ///
    /// # Errors
    /// When the server is not there, or does not let it in.
    pub(crate) async fn open(
        stream: Stream,
        opening: &Opening,
        credential: &Credential,
    ) -> Result<Self, Trouble> {
        let mut this = Self {
            stream,
            frames: Frames::default(),
            key: None,
            parameters: BTreeMap::new(),
        };
        this.stream.write_all(&opening.message).await?;
        let mut proof = Proof::None;
        loop {
            let message = this.message().await?;
            match message.first() {
                Some(b'R') => {
                    let answer = prove(&mut proof, &message, &opening.user, credential)?;
                    this.stream.write_all(&answer).await?;
                }
                Some(b'Z') => return Ok(this),
                // Class 28 is about who asks, and not about how the server is.
                Some(b'E')
                    if frame::error_field(&message, b'C')
                        .is_some_and(|code| code.starts_with(b"28")) =>
                {
                    return Err(Trouble::Denied(frame::error_line(&message)));
                }
                _ => this.note(&message)?,
            }
        }
    }

    /// Takes in what may come at any time.
    fn note(&mut self, message: &[u8]) -> Result<(), Trouble> {
        match message.first() {
            Some(b'K') => {
                let key = (frame::number(message, 5), frame::number(message, 9));
                if let (Some(process), Some(secret)) = key {
                    self.key = Some(Key { process, secret });
                }
            }
            Some(b'S') => {
                if let Some((name, value)) = parameter(message) {
                    self.parameters.insert(name.to_vec(), value.to_vec());
                }
            }
            Some(b'E') => return Err(Trouble::Refused(frame::error_line(message))),
            _ => {}
        }
        Ok(())
    }

    /// The next message that is not too long to be looked at.
    async fn message(&mut self) -> Result<Vec<u8>, Trouble> {
        loop {
            match self.frames.next()? {
                Some(Piece::Whole { bytes, .. }) => return Ok(self.frames.bytes(&bytes).to_vec()),
                Some(Piece::Head { .. } | Piece::More { .. }) => {}
                None => {
                    self.stream.ready(Interest::READABLE).await?;
                    if fill(&self.stream, &mut self.frames)? == Filled::End {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                }
            }
        }
    }

    /// Asks one question.
    ///
    /// # Errors
    /// When the server does not answer, or not with rows.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Rows, Trouble> {
        let mut out = Vec::new();
        frame::put_query(&mut out, sql.as_bytes());
        self.ask(&out, 1).await
    }

    /// Sends messages that are answered by so many "ready for query".
    ///
    /// # Errors
    /// The first error that the server tells, once all is answered.
    pub(crate) async fn ask(&mut self, out: &[u8], readies: usize) -> Result<Rows, Trouble> {
        let mut rows = Rows::new();
        let mut troubles = self.ask_each(out, readies, &mut rows).await?.into_iter();
        troubles
            .find_map(|trouble| trouble)
            .map_or(Ok(rows), |why| Err(Trouble::Refused(why)))
    }

    /// Sends messages that are answered by so many "ready for query", gathers all rows and gives
    /// the error of each, if there was one.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn ask_each(
        &mut self,
        out: &[u8],
        readies: usize,
        rows: &mut Rows,
    ) -> Result<Vec<Option<String>>, Trouble> {
        self.stream.write_all(out).await?;
        let mut troubles = Vec::with_capacity(readies);
        let mut trouble = None;
        while troubles.len() < readies {
            let message = self.message().await?;
            match message.first() {
                Some(b'Z') => troubles.push(trouble.take()),
                Some(b'D') if rows.len() < ROWS_MAX => rows.extend(frame::row(&message)),
                _ => match self.note(&message) {
                    Err(Trouble::Refused(why)) => trouble = trouble.or(Some(why)),
                    noted => noted?,
                },
            }
        }
        Ok(troubles)
    }
}

/// Name and value of a parameter that a server tells.
pub(crate) fn parameter(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = frame::text(frame::body(message))?;
    let (value, _) = frame::text(rest)?;
    Some((name, value))
}

enum Proof {
    None,
    Password(Box<ScramSha256>),
    Keys(Box<scram::Login>),
}

/// The answer to a server that wants to know who asks.
fn prove(
    proof: &mut Proof,
    message: &[u8],
    user: &str,
    credential: &Credential,
) -> Result<Vec<u8>, Trouble> {
    const WRONG: Trouble = Trouble::Garbage(frame::Garbage::Malformed('R'));
    let mut out = Vec::new();
    let rest = message.get(9..).unwrap_or_default();
    match (frame::number(message, 5).ok_or(WRONG)?, credential) {
        (0, _) => {}
        (3, Credential::Password(password)) => {
            frame::put(&mut out, b'p', &[password.as_bytes(), b"\0"]);
        }
        (5, Credential::Password(password)) => {
            let salt = rest.first_chunk().ok_or(WRONG)?;
            let answer = md5_hash(user.as_bytes(), password.as_bytes(), *salt);
            frame::put(&mut out, b'p', &[answer.as_bytes(), b"\0"]);
        }
        (10, Credential::Password(password)) => {
            let begun = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
            put_initial(&mut out, begun.message());
            *proof = Proof::Password(Box::new(begun));
        }
        (10, Credential::Keys(keys)) => {
            let begun = scram::Login::new(*keys, &nonce()?);
            put_initial(&mut out, begun.first().as_bytes());
            *proof = Proof::Keys(Box::new(begun));
        }
        (11, _) => match proof {
            Proof::Password(begun) => {
                begun.update(rest)?;
                frame::put(&mut out, b'p', &[begun.message()]);
            }
            Proof::Keys(begun) => {
                let answer = begun.answer(rest).ok_or(WRONG)?;
                frame::put(&mut out, b'p', &[answer.as_bytes()]);
            }
            Proof::None => return Err(WRONG),
        },
        (12, _) => match proof {
            Proof::Password(begun) => begun.finish(rest)?,
            Proof::Keys(begun) if begun.is_answered_by(rest) => {}
            Proof::Keys(_) | Proof::None => return Err(WRONG),
        },
        (3, _) => return Err(Trouble::Unproven("a password")),
        (5, _) => return Err(Trouble::Unproven("an MD5 hash of a password")),
        (10, _) => return Err(Trouble::Unproven("SCRAM-SHA-256")),
        _ => return Err(Trouble::Unproven("a method that it does not know")),
    }
    Ok(out)
}

fn put_initial(out: &mut Vec<u8>, first: &[u8]) {
    let length = u32::try_from(first.len()).unwrap_or(u32::MAX);
    let parts = [scram::MECHANISM, b"\0", &length.to_be_bytes(), first];
    frame::put(out, b'p', &parts);
}

fn nonce() -> io::Result<String> {
    let mut bytes = [0; 18];
    let length = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    // The kernel gives up to 256 bytes at once.
    if length < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn what_a_lost_server_said_is_read_without_waiting() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let reader = Stream::Unix(reader);
        let mut writer = writer.into_std().unwrap();
        let mut frames = Frames::default();
        // There is nothing to read, and now the runtime knows.
        assert_eq!(fill(&reader, &mut frames).unwrap(), Filled::Nothing);
        let mut said = Vec::new();
        frame::put_ready(&mut said, b'I');
        writer.write_all(&said).unwrap();
        // It does not know of this.
        assert_eq!(fill(&reader, &mut frames).unwrap(), Filled::Nothing);
        drain(&reader, &mut frames, 1024);
        assert!(matches!(
            frames.next(),
            Ok(Some(Piece::Whole { tag: b'Z', .. }))
        ));
        drain(&reader, &mut frames, 1024);
        assert_eq!(frames.next(), Ok(None));
        drop(writer);
        drain(&reader, &mut frames, 1024);
        assert_eq!(frames.next(), Ok(None));
    }

    /// The kernel was asked once more after each message, only to hear that there is nothing.
    #[tokio::test]
    async fn what_is_read_whole_is_not_asked_for_again() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let reader = Stream::Unix(reader);
        let mut writer = writer.into_std().unwrap();
        let mut frames = Frames::default();
        writer.write_all(&[b'd'; 9]).unwrap();
        reader.ready(Interest::READABLE).await.unwrap();
        assert_eq!(fill(&reader, &mut frames).unwrap(), Filled::Some);
        // Nobody has told the runtime of this yet.
        writer.write_all(&[b'd'; 9]).unwrap();
        assert_eq!(fill(&reader, &mut frames).unwrap(), Filled::Nothing);
        reader.ready(Interest::READABLE).await.unwrap();
        assert_eq!(fill(&reader, &mut frames).unwrap(), Filled::Some);
        drop(writer);
        reader.ready(Interest::READABLE).await.unwrap();
        assert_eq!(fill(&reader, &mut frames).unwrap(), Filled::End);
    }

    #[tokio::test]
    async fn no_more_is_read_than_is_allowed() {
        let (reader, writer) = UnixStream::pair().unwrap();
        let reader = Stream::Unix(reader);
        let mut writer = writer.into_std().unwrap();
        writer.write_all(&[b'd'; 2 * READ_BYTES]).unwrap();
        drain(&reader, &mut Frames::default(), 1);
        assert_eq!(
            rustix::io::ioctl_fionread(&reader).unwrap(),
            u64::try_from(READ_BYTES).unwrap()
        );
    }
}
