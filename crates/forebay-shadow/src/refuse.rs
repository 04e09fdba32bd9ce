//! What a client hears when there are as many connections as there may be.
//!
//! A connection that is only closed looks like a fault of the network. Whoever is refused is told
//! so by its protocol, within [`BOUND`] and without an instance: its first words are awaited, since
//! an answer before them would be lost in the reset that unread bytes cause.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stream::Stream;

/// How long a client may take to say something, and to read why it is refused.
const BOUND: Duration = Duration::from_secs(1);
/// What is read of it at a time.
const BUFFER_BYTES: usize = 4096;
/// Requests for encryption before the login: one for each of PostgreSQL's two kinds.
const ENCRYPTIONS_MAX: usize = 2;

/// In which protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Http,
    Redis,
    /// Of a client that does not speak TLS where it has to.
    RedisInCleartext,
    Postgres,
    /// Of a client that may ask for TLS, which would cost more than it is worth to refuse in.
    PostgresOverTls,
}

const HTTP: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-type: text/plain\r\ncontent-length: 60\r\n\r\n\
    there are too many connections; the request was not executed";
const REDIS: &[u8] = b"-ERR max number of clients reached\r\n";
const CLEARTEXT: &[u8] =
    b"-ERR forebay: TLS is spoken at this address; connect with rediss:// or --tls\r\n";
/// 53300 is too_many_connections; the length counts itself and what follows.
const POSTGRES: &[u8] = b"E\0\0\0\x3bSFATAL\0VFATAL\0C53300\0Msorry, too many clients already\0\0";

/// Tells a client, and sees that it hears it, for a bounded time.
///
/// # Errors
/// When it does not.
pub(crate) async fn tell(mut client: Stream, refusal: Refusal) -> io::Result<()> {
    let told = async {
        let mut buffer = [0; BUFFER_BYTES];
        let mut length = client.read(&mut buffer).await?;
        for _ in 0..ENCRYPTIONS_MAX {
            let asks = refusal == Refusal::Postgres
                && matches!(
                    buffer.get(..length),
                    Some([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f | 0x30])
                );
            if !asks {
                break;
            }
            client.write_all(b"N").await?;
            length = client.read(&mut buffer).await?;
        }
        if length == 0 {
            return Ok(());
        }
        let words = match refusal {
            Refusal::Http => HTTP,
            Refusal::Redis => REDIS,
            Refusal::RedisInCleartext => CLEARTEXT,
            // An error is an answer to the request for encryption, too.
            Refusal::Postgres | Refusal::PostgresOverTls => POSTGRES,
        };
        client.write_all(words).await?;
        client.shutdown().await?;
        while client.read(&mut buffer).await? > 0 {}
        Ok(())
    };
    match tokio::time::timeout(BOUND, told).await {
        Ok(told) => told,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_right() {
        let length = u32::from_be_bytes(POSTGRES[1..5].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), POSTGRES.len() - 1);
        let text = std::str::from_utf8(HTTP).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())));
    }

    #[tokio::test]
    async fn a_client_hears_why_after_its_first_words() {
        for (refusal, said, expected) in [
            (Refusal::Http, b"GET / HTTP/1.1\r\n\r\n".as_slice(), HTTP),
            (Refusal::Redis, b"PING\r\n", REDIS),
            (Refusal::RedisInCleartext, b"PING\r\n", CLEARTEXT),
            (Refusal::Postgres, b"\0\0\0\x08\0\x03\0\0", POSTGRES),
            (
                Refusal::PostgresOverTls,
                b"\0\0\0\x08\x04\xd2\x16\x2f",
                POSTGRES,
            ),
        ] {
            let (client, front) = tokio::net::UnixStream::pair().unwrap();
            let mut client = Stream::Unix(client);
            let hears = async {
                client.write_all(said).await.unwrap();
                let mut heard = Vec::new();
                client.read_to_end(&mut heard).await.unwrap();
                drop(client);
                heard
            };
            let (told, heard) = tokio::join!(tell(Stream::Unix(front), refusal), hears);
            assert_eq!(heard, expected, "{refusal:?}");
            told.unwrap();
        }
    }

    #[tokio::test]
    async fn who_asks_for_encryption_is_denied_it_and_hears_why() {
        let (client, front) = tokio::net::UnixStream::pair().unwrap();
        let mut client = Stream::Unix(client);
        let hears = async {
            client
                .write_all(b"\0\0\0\x08\x04\xd2\x16\x2f")
                .await
                .unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'N');
            client.write_all(b"\0\0\0\x08\0\x03\0\0").await.unwrap();
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.unwrap();
            drop(client);
            heard
        };
        let tells = tell(Stream::Unix(front), Refusal::Postgres);
        let (told, heard) = tokio::join!(tells, hears);
        assert_eq!(heard, POSTGRES);
        told.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_waited_for() {
        let (client, front) = tokio::net::UnixStream::pair().unwrap();
        let told = tell(Stream::Unix(front), Refusal::Http).await;
        assert_eq!(told.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(client);
    }
}
