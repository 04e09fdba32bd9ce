//! How a session begins: the client proves to the server who it is, through the front.

use std::collections::BTreeMap;
use std::io;
use std::io::ErrorKind::{InvalidData, TimedOut};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::time::Instant;

use super::client::{Credential, Filled, fill, parameter};
use super::frame::{self, Frames, Garbage, Key, Opening, Piece, ServerError, Startup};
use super::scram::Overheard;
use super::{Shared, encryption};
use crate::stream::Stream;
use crate::switchboard::Assigned;
use crate::tcp;
use crate::tls::Wire;

/// How long a login may take in all (`authentication_timeout`).
const LOGIN_BOUND: Duration = Duration::from_secs(60);
/// How long a client may take for the message that opens a session: nobody has to type it.
const OPENING_BOUND: Duration = Duration::from_secs(10);
/// How long it may take for hearing that it was too slow.
const LAST_WORDS_BOUND: Duration = Duration::from_secs(5);
/// Longest message by which a client proves who it is (`PG_MAX_AUTH_TOKEN_LENGTH`).
const TOKEN_BYTES_MAX: u32 = 65_535;
/// Requests for encryption before a session: of TLS and of GSSAPI.
pub(super) const ENCRYPTIONS_MAX: u32 = 2;

/// What was heard of how a client proved who it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard {
    password: Option<String>,
    scram: Option<Overheard>,
}

impl Heard {
    /// What proves the same again.
    pub(crate) async fn credential(
        &self,
        shared: &Shared,
        user: &str,
    ) -> Result<Credential, String> {
        if let Some(password) = shared.native.options().passwords.get(user) {
            return Ok(Credential::Password(password.0.clone()));
        }
        if let Some(password) = &self.password {
            return Ok(Credential::Password(password.clone()));
        }
        let Some(overheard) = &self.scram else {
            return Ok(Credential::None);
        };
        let known = shared.native.verifier_known(user);
        if let Some(keys) = known.and_then(|verifier| overheard.keys(verifier)) {
            return Ok(Credential::Keys(keys));
        }
        let verifier = shared.native.verifier(user).await?;
        let keys = overheard
            .keys(verifier)
            .ok_or_else(|| format!("what is stored for {user} is not what the client proved"))?;
        shared.native.remember(user, verifier);
        Ok(Credential::Keys(keys))
    }
}

/// A session that has begun.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) client: Wire,
    pub(crate) from_client: Frames,
    pub(crate) server: Stream,
    pub(crate) from_server: Frames,
    pub(crate) assigned: Assigned,
    pub(crate) opening: Opening,
    pub(crate) heard: Heard,
    pub(crate) parameters: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) key: Option<Key>,
    /// The client was told something.
    spoken: bool,
}

pub(crate) fn fatal(code: &'static str, message: impl Into<String>) -> ServerError {
    ServerError {
        severity: "FATAL",
        code,
        message: message.into(),
        detail: None,
    }
}

pub(crate) fn broken(garbage: &Garbage) -> io::Error {
    io::Error::new(InvalidData, garbage.to_string())
}

/// Tells a client why its session ends.
pub(crate) async fn tell(client: &mut Wire, error: &ServerError) -> io::Result<()> {
    let mut out = Vec::new();
    error.put(&mut out);
    client.write_all(&out).await?;
    client.close().await;
    Ok(())
}

/// Begins a session; none where the client wanted something else, or the server did not let it in.
///
/// # Errors
/// When the client does not speak the protocol, or nobody serves.
pub(crate) async fn begin(
    shared: &Arc<Shared>,
    client: Stream,
    patience: Duration,
) -> io::Result<Option<Begun>> {
    let deadline = Instant::now() + LOGIN_BOUND;
    let until = Instant::now() + OPENING_BOUND;
    let begun = async {
        let mut from_client = Frames::default();
        let tls = shared.offers_tls(&client);
        let is_required = tls.is_some_and(|tls| tls.is_required);
        let mut client = encryption::begin(tls, client, &mut from_client, until).await?;
        let opening = first(shared, &mut client, &mut from_client);
        let opening = in_time(until, opening).await;
        let opening = match opening {
            Ok(Some(_)) if is_required && !client.is_secure() => {
                tell(&mut client, &encryption::required()).await?;
                return Ok(None);
            }
            Ok(Some(opening)) => opening,
            Ok(None) => return Ok(None),
            Err(error) => {
                if matches!(error.kind(), InvalidData | TimedOut) {
                    tell(&mut client, &fatal("08P01", error.to_string())).await?;
                }
                return Err(error);
            }
        };
        let enters = Enters { patience, deadline };
        enter(shared, client, from_client, opening, enters).await
    };
    match tokio::time::timeout_at(deadline + LAST_WORDS_BOUND, begun).await {
        Ok(begun) => begun,
        Err(_) => Err(slow("the login", LOGIN_BOUND)),
    }
}

/// What comes of the first message in time.
pub(super) async fn in_time<T>(
    until: Instant,
    first: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let first = tokio::time::timeout_at(until, first).await;
    first.unwrap_or_else(|_| Err(slow("the first message", OPENING_BOUND)))
}

fn slow(what: &str, bound: Duration) -> io::Error {
    let why = format!("{what} took longer than {} s", bound.as_secs());
    io::Error::new(TimedOut, why)
}

/// How long who begins a session may take.
#[derive(Debug, Clone, Copy)]
struct Enters {
    /// Until somebody serves.
    patience: Duration,
    /// For all of it.
    deadline: Instant,
}

/// Logs in at the primary; at the next one, if that is lost before it has said anything.
async fn enter(
    shared: &Arc<Shared>,
    mut client: Wire,
    from_client: Frames,
    opening: Opening,
    enters: Enters,
) -> io::Result<Option<Begun>> {
    let deadline = Instant::now() + enters.patience;
    let connect = || {
        let left = deadline.saturating_duration_since(Instant::now());
        tcp::connect(&shared.board, left)
    };
    let (server, assigned) = match connect().await {
        Ok(connected) => connected,
        Err(error) => return unserved(&mut client, error).await,
    };
    let mut begun = Begun {
        client,
        from_client,
        server,
        from_server: Frames::default(),
        assigned,
        opening,
        heard: Heard::default(),
        parameters: BTreeMap::new(),
        key: None,
        spoken: false,
    };
    loop {
        let before = begun.assigned;
        let introduced = tokio::select! {
            introduced = introduce(&mut begun, enters.deadline) => introduced,
            () = shared.board.replaced(before) => Err(io::ErrorKind::ConnectionAborted.into()),
        };
        match introduced {
            Ok(true) => return Ok(Some(begun)),
            Ok(false) => {
                begun.client.close().await;
                return Ok(None);
            }
            Err(error) if begun.spoken || error.kind() == InvalidData => {
                let message = format!("the login was interrupted: {error}");
                tell(&mut begun.client, &fatal("57P01", message)).await?;
                return Err(error);
            }
            Err(_) => match connect().await {
                Ok((server, assigned)) => {
                    begun.server = server;
                    begun.assigned = assigned;
                    begun.from_server = Frames::default();
                }
                Err(error) => return unserved(&mut begun.client, error).await,
            },
        }
        if Instant::now() >= deadline {
            let error = io::Error::from(TimedOut);
            return unserved(&mut begun.client, error).await;
        }
    }
}

async fn unserved(client: &mut Wire, error: io::Error) -> io::Result<Option<Begun>> {
    let message = format!("no server can be reached: {error}");
    tell(client, &fatal("57P03", message)).await?;
    Err(error)
}

/// Waits for more bytes of the server.
async fn more(stream: &Stream, frames: &mut Frames) -> io::Result<()> {
    stream.ready(Interest::READABLE).await?;
    goes_on(fill(stream, frames)?)
}

/// Waits for more bytes of the client.
async fn more_of(client: &mut Wire, frames: &mut Frames) -> io::Result<()> {
    client.ready(Interest::READABLE).await?;
    goes_on(fill(client, frames)?)
}

fn goes_on(filled: Filled) -> io::Result<()> {
    match filled {
        Filled::End => Err(io::ErrorKind::UnexpectedEof.into()),
        Filled::Nothing | Filled::Some => Ok(()),
    }
}

/// The message that opens a session.
async fn first(
    shared: &Shared,
    client: &mut Wire,
    frames: &mut Frames,
) -> io::Result<Option<Opening>> {
    let mut encryptions = 0;
    loop {
        match frames.startup().map_err(|garbage| broken(&garbage))? {
            None => more_of(client, frames).await?,
            Some(Startup::Encryption) if encryptions < ENCRYPTIONS_MAX && !client.is_secure() => {
                encryptions += 1;
                client.write_all(b"N").await?;
            }
            Some(Startup::Encryption) => {
                return Err(broken(&Garbage::Unexpected(' ')));
            }
            Some(Startup::Cancel(key)) => {
                shared.cancels.pass_on(&shared.board, key).await;
                return Ok(None);
            }
            Some(Startup::Session(opening)) => return Ok(Some(opening)),
        }
    }
}

async fn message(stream: &Stream, frames: &mut Frames) -> io::Result<Vec<u8>> {
    loop {
        match frames.next().map_err(|garbage| broken(&garbage))? {
            Some(Piece::Whole { bytes, .. }) => return Ok(frames.bytes(&bytes).to_vec()),
            Some(Piece::Head { tag, .. }) => {
                return Err(broken(&Garbage::Malformed(char::from(tag))));
            }
            Some(Piece::More { .. }) => {}
            None => more(stream, frames).await?,
        }
    }
}

/// What a client proves who it is by. It is not known yet who that is, so that little is kept of it.
async fn token(client: &mut Wire, frames: &mut Frames) -> io::Result<Vec<u8>> {
    loop {
        frames
            .check_next(TOKEN_BYTES_MAX)
            .map_err(|garbage| broken(&garbage))?;
        match frames.next().map_err(|garbage| broken(&garbage))? {
            Some(Piece::Whole { bytes, .. }) => return Ok(frames.bytes(&bytes).to_vec()),
            Some(Piece::Head { .. } | Piece::More { .. }) => {}
            None => more_of(client, frames).await?,
        }
    }
}

/// Passes on what both say until the server is ready, and listens. Whether it lets the client in.
async fn introduce(begun: &mut Begun, deadline: Instant) -> io::Result<bool> {
    begun.server.write_all(&begun.opening.message).await?;
    loop {
        let mut said = message(&begun.server, &mut begun.from_server).await?;
        let asked = frame::number(&said, 5);
        match said.first() {
            Some(b'S') => {
                if let Some((name, value)) = parameter(&said) {
                    begun.parameters.insert(name.to_vec(), value.to_vec());
                }
            }
            Some(b'K') => {
                if let (Some(process), Some(secret)) = (asked, frame::number(&said, 9)) {
                    begun.key = Some(Key { process, secret });
                }
            }
            _ => {}
        }
        begun.spoken = true;
        if said.first() == Some(&b'R') && asked == Some(encryption::MECHANISMS) {
            said = encryption::without_binding(&said);
        }
        begun.client.write_all(&said).await?;
        match (said.first(), asked) {
            (Some(b'Z'), _) => return Ok(true),
            (Some(b'E'), _) => return Ok(false),
            // Who may come in at once, or has proved all there is to be proved, says nothing.
            (Some(b'R'), Some(asked)) if asked != 0 && asked != 12 => {
                let answer = token(&mut begun.client, &mut begun.from_client);
                let answer = tokio::time::timeout_at(deadline, answer).await;
                let answer = answer.unwrap_or_else(|_| Err(slow("the login", LOGIN_BOUND)))?;
                if answer.first() != Some(&b'p') {
                    return Err(broken(&Garbage::Unexpected('p')));
                }
                if asked == encryption::MECHANISMS && encryption::binds(&answer) {
                    tell(&mut begun.client, &encryption::unbound()).await?;
                    return Ok(false);
                }
                listen(&mut begun.heard, asked, &said, &answer);
                begun.server.write_all(&answer).await?;
            }
            _ => {}
        }
    }
}

fn listen(heard: &mut Heard, asked: u32, said: &[u8], answer: &[u8]) {
    match asked {
        3 => {
            let password = frame::text(frame::body(answer));
            let password = password.and_then(|(text, _)| String::from_utf8(text.to_vec()).ok());
            heard.password = password;
        }
        10 => {
            // The mechanism, a length, and the client's first words.
            let first = frame::text(frame::body(answer)).and_then(|(_, rest)| rest.get(4..));
            heard.scram = Some(Overheard {
                client_first: first.unwrap_or_default().to_vec(),
                ..Overheard::default()
            });
        }
        11 => {
            if let Some(scram) = &mut heard.scram {
                scram.server_first = said.get(9..).unwrap_or_default().to_vec();
                scram.client_final = frame::body(answer).to_vec();
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixStream;

    use super::*;
    use crate::postgres::Options;
    use crate::switchboard::{Instance, Switchboard};

    fn shared() -> Arc<Shared> {
        let instance = |app: &str| Instance {
            app: app.to_owned(),
            address: format!("/nonexistent/{app}").parse().unwrap(),
            elsewhere: None,
        };
        let board = Arc::new(Switchboard::new(vec![instance("a"), instance("b")], 0, 1));
        Arc::new(Shared::new(&Options::new("postgres".to_owned()), &board).unwrap())
    }

    /// What a client hears that says this, and then waits; with the time that takes.
    async fn hears(says: &[u8]) -> (String, Duration) {
        let (mut client, front) = UnixStream::pair().unwrap();
        let began = Instant::now();
        let shared = shared();
        let (ended, heard) = tokio::join!(
            begin(&shared, Stream::Unix(front), Duration::from_secs(5)),
            async {
                client.write_all(says).await.unwrap();
                let mut heard = Vec::new();
                client.read_to_end(&mut heard).await.unwrap();
                heard
            }
        );
        assert!(ended.is_err());
        (
            String::from_utf8_lossy(&heard).into_owned(),
            began.elapsed(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_is_told_so_and_left() {
        for says in [b"".as_slice(), b"\0\0\0\x20\0\x03\0\0user\0"] {
            let (heard, time) = hears(says).await;
            assert!(heard.contains("08P01") && heard.contains("10 s"), "{heard}");
            assert!(time < OPENING_BOUND + Duration::from_secs(1));
        }
    }

    #[tokio::test]
    async fn a_client_that_proves_too_much_is_refused_at_once() {
        let (mut client, front) = UnixStream::pair().unwrap();
        client.write_all(b"p\0\x01\0\x04").await.unwrap();
        let mut frames = Frames::default();
        let mut client = Wire::Plain(Stream::Unix(front));
        let refused = token(&mut client, &mut frames).await.unwrap_err();
        assert_eq!(refused.kind(), InvalidData, "{refused}");
    }
}
