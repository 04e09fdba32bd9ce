//! TLS with clients that ask for it: before the first message, or with their first byte.
//!
//! A client says in cleartext that it would like to speak TLS, and is told `S`; one of PostgreSQL 17
//! may begin with TLS at once, and says then by ALPN what it is going to speak. What comes in
//! cleartext behind the request would be taken as if it were encrypted (CVE-2021-23214): not a byte
//! beyond the request is read before both have agreed, and a client that sends any is refused.
//!
//! What binds a login to its channel (SCRAM-SHA-256-PLUS) cannot be passed on: the instance is at
//! the end of another channel, and has another certificate or none.

use std::io;

use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::time::Instant;

use super::frame::{self, Frames, GSSENC_REQUEST, Garbage, SSL_REQUEST, ServerError};
use super::login::{ENCRYPTIONS_MAX, broken, fatal, in_time, tell};
use crate::stream::Stream;
use crate::tls::{HANDSHAKE, Tls, Wire, first_byte};

/// What TLS is agreed for: asked for by PostgreSQL 17, and by every client that begins with TLS.
pub(super) const PROTOCOLS: [&[u8]; 1] = [b"postgresql"];
/// Bytes of a request for encryption: its length and its code.
const REQUEST_BYTES: usize = 8;
/// The kind of a request for a proof that names mechanisms of SASL.
pub(super) const MECHANISMS: u32 = 10;
/// How mechanisms end that bind to a channel.
const BINDING: &[u8] = b"-PLUS";

/// What a client begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begins {
    /// TLS.
    Directly,
    /// The request for it.
    Asking,
    /// Something else, which was read in part.
    Otherwise,
}

/// The connection on which a session begins, encrypted if the client wants it to be and may.
///
/// # Errors
/// When it does not go on in time, or does not speak TLS after it has asked for it; it was told.
pub(super) async fn begin(
    tls: Option<&Tls>,
    mut client: Stream,
    frames: &mut Frames,
    until: Instant,
) -> io::Result<Wire> {
    let Some(tls) = tls else {
        return Ok(Wire::Plain(client));
    };
    match in_time(until, begins(&mut client, frames)).await {
        Ok(Begins::Otherwise) => Ok(Wire::Plain(client)),
        Ok(Begins::Asking) => {
            client.write_all(b"S").await?;
            Wire::agreed(tls.agree(client, until).await?)
        }
        Ok(Begins::Directly) => {
            let agreed = tls.agree(client, until).await?;
            if agreed.get_ref().1.alpn_protocol() == Some(PROTOCOLS[0]) {
                return Wire::agreed(agreed);
            }
            let why =
                "a client that begins with TLS does not say by ALPN that it speaks postgresql";
            Err(tls.refused(io::Error::new(io::ErrorKind::InvalidData, why)))
        }
        Err(error) => {
            let said = fatal("08P01", error.to_string());
            let error = match error.kind() {
                io::ErrorKind::InvalidData => tls.refused(error),
                io::ErrorKind::TimedOut => error,
                _ => return Err(error),
            };
            tell(&mut Wire::Plain(client), &said).await?;
            Err(error)
        }
    }
}

async fn begins(client: &mut Stream, frames: &mut Frames) -> io::Result<Begins> {
    if first_byte(client).await? == Some(HANDSHAKE) {
        return Ok(Begins::Directly);
    }
    for _ in 0..ENCRYPTIONS_MAX {
        let head = head(client).await?;
        match (frame::number(&head, 0), frame::number(&head, 4)) {
            (Some(8), Some(SSL_REQUEST)) if is_silent(client)? => return Ok(Begins::Asking),
            (Some(8), Some(SSL_REQUEST)) => {
                let why = "bytes in cleartext follow the request for TLS: the client is at fault, or \
                           somebody else sent them";
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            (Some(8), Some(GSSENC_REQUEST)) => client.write_all(b"N").await?,
            _ => {
                frames.push(&head);
                return Ok(Begins::Otherwise);
            }
        }
    }
    Err(broken(&Garbage::Unexpected(' ')))
}

/// The first bytes of a message, and not one more; fewer at the end.
async fn head(client: &Stream) -> io::Result<Vec<u8>> {
    let mut head = [0; REQUEST_BYTES];
    let mut length = 0;
    while let Some(room) = head.get_mut(length..).filter(|room| !room.is_empty()) {
        client.ready(Interest::READABLE).await?;
        match client.read_now(room) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(head.get(..length).unwrap_or_default().to_vec())
}

/// Nothing lies in the kernel that a client has sent.
fn is_silent(client: &Stream) -> io::Result<bool> {
    Ok(rustix::io::ioctl_fionread(client)? == 0)
}

/// What a client hears that has to speak TLS, and does not.
pub(super) fn required() -> ServerError {
    fatal(
        "28000",
        "this front takes clients over TLS alone; connect with sslmode=require or better",
    )
}

/// What a client hears that binds its login to its channel.
pub(super) fn unbound() -> ServerError {
    fatal(
        "0A000",
        "a login that is bound to its channel (SCRAM-SHA-256-PLUS) cannot be passed on by a front; \
         connect with channel_binding=prefer or disable",
    )
}

/// The mechanisms that a server offers, without those that bind to a channel.
pub(super) fn without_binding(said: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut rest = said.get(9..).unwrap_or_default();
    while let Some((name, after)) = frame::text(rest).filter(|(name, _)| !name.is_empty()) {
        if !name.ends_with(BINDING) {
            kept.extend_from_slice(name);
            kept.push(0);
        }
        rest = after;
    }
    let mut out = Vec::new();
    frame::put(&mut out, b'R', &[&MECHANISMS.to_be_bytes(), &kept, b"\0"]);
    out
}

/// Whether a client has chosen a mechanism that binds to its channel.
pub(super) fn binds(answer: &[u8]) -> bool {
    frame::text(frame::body(answer)).is_some_and(|(name, _)| name.ends_with(BINDING))
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    const SSL: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    const GSS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
    const SESSION: &[u8] = b"\0\0\0\x12\0\x03\0\0user\0app\0\0";

    #[tokio::test]
    async fn not_a_byte_is_read_behind_a_request() {
        for (bytes, expected) in [
            (SSL.to_vec(), Some(Begins::Asking)),
            ([&GSS[..], &SSL].concat(), Some(Begins::Asking)),
            (b"\x16\x03\x01".to_vec(), Some(Begins::Directly)),
            (SESSION.to_vec(), Some(Begins::Otherwise)),
            ([&GSS[..], SESSION].concat(), Some(Begins::Otherwise)),
            (b"GET".to_vec(), Some(Begins::Otherwise)),
            (Vec::new(), Some(Begins::Otherwise)),
            ([&SSL[..], SESSION].concat(), None),
            ([&GSS[..], &SSL, b"\x16"].concat(), None),
            ([&GSS[..], &GSS, &SSL].concat(), None),
        ] {
            let (mut client, front) = UnixStream::pair().unwrap();
            client.write_all(&bytes).await.unwrap();
            client.shutdown().await.unwrap();
            let mut front = Stream::Unix(front);
            let mut frames = Frames::default();
            let found = begins(&mut front, &mut frames).await;
            assert_eq!(
                found.as_ref().ok(),
                expected.as_ref(),
                "{bytes:?}: {found:?}"
            );
            if found.is_err() {
                continue;
            }
            let mut held = 0;
            while let Ok(Some(_)) = frames.startup() {
                held += 1;
            }
            assert_eq!(held, 0, "a whole message was read: {bytes:?}");
        }
    }

    #[test]
    fn what_binds_to_a_channel_is_not_offered() {
        let offer = |names: &[u8]| {
            let mut out = Vec::new();
            frame::put(&mut out, b'R', &[&MECHANISMS.to_be_bytes(), names]);
            out
        };
        for (offered, passed_on) in [
            (
                b"SCRAM-SHA-256\0\0".as_slice(),
                b"SCRAM-SHA-256\0\0".as_slice(),
            ),
            (
                b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0",
                b"SCRAM-SHA-256\0\0",
            ),
            (b"SCRAM-SHA-256-PLUS\0\0", b"\0"),
            (b"SCRAM-SHA-256-PLUS", b"\0"),
            (b"", b"\0"),
        ] {
            assert_eq!(without_binding(&offer(offered)), offer(passed_on));
        }
        for (answer, expected) in [
            (b"SCRAM-SHA-256-PLUS\0\0\0\0\0".as_slice(), true),
            (b"SCRAM-SHA-256\0\0\0\0\0", false),
            (b"SCRAM-SHA-256-PLUS", false),
        ] {
            let mut out = Vec::new();
            frame::put(&mut out, b'p', &[answer]);
            assert_eq!(binds(&out), expected);
        }
    }
}
