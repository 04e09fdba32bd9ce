//! An HTTP/1.1 service that answers at once, with few or many bytes: what stands behind a proxy whose
//! own cost is measured.
//!
//! `GET /small` gets 128 bytes, `GET /large` 1 MiB. One thread serves all connections.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Error, Lifetime, bind_to_parent};

/// Longest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const SMALL_BYTES: usize = 128;
const LARGE_BYTES: usize = 1024 * 1024;
/// Connections that wait for being accepted.
const BACKLOG: u32 = 4096;

/// `forebay workload origin`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Args {
    /// Port on 127.0.0.1
    #[arg(long, value_name = "PORT")]
    port: u16,
    #[command(flatten)]
    lifetime: Lifetime,
}

/// Answers, whole and prepared.
#[derive(Debug)]
struct Answers {
    small: Vec<u8>,
    large: Vec<u8>,
}

/// Serves until the process is killed.
pub(crate) fn run(args: Args) -> Result<(), Error> {
    bind_to_parent(args.lifetime)?;
    super::raise_open_files()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    let failed = |attempt| Error::system(attempt, address, "use another --port");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start the runtime for"))?;
    let answers = Arc::new(Answers {
        small: answer(SMALL_BYTES),
        large: answer(LARGE_BYTES),
    });
    runtime.block_on(async {
        let listener = listen(address).map_err(failed("listen on"))?;
        loop {
            let (stream, _) = listener.accept().await.map_err(failed("accept on"))?;
            let answers = Arc::clone(&answers);
            tokio::spawn(async move {
                if let Err(error) = converse(stream, &answers).await {
                    tracing::debug!(%error, "connection ended");
                }
            });
        }
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn answer(length: usize) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").into_bytes();
    bytes.resize(bytes.len() + length, b'x');
    bytes
}

async fn converse(mut stream: TcpStream, answers: &Answers) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut pending = Vec::new();
    loop {
        let Some(length) = head_length(&pending) else {
            if stream.read_buf(&mut pending).await? == 0 || pending.len() > HEAD_BYTES_MAX {
                return Ok(());
            }
            continue;
        };
        let answer = if pending.starts_with(b"GET /large ") {
            &answers.large
        } else {
            &answers.small
        };
        pending.drain(..length);
        stream.write_all(answer).await?;
    }
}

/// The length of the request that is whole at the beginning of these bytes; none has a body.
fn head_length(bytes: &[u8]) -> Option<usize> {
    let mut windows = bytes.windows(4);
    Some(windows.position(|window| window == b"\r\n\r\n")? + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_one_by_one() {
        let one = b"GET /small HTTP/1.1\r\nhost: x\r\n\r\n";
        for cut in 0..one.len() {
            assert_eq!(head_length(&one[..cut]), None, "{cut}");
        }
        assert_eq!(head_length(&[&one[..], b"GET "].concat()), Some(one.len()));
    }

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        let bytes = answer(SMALL_BYTES);
        let head = head_length(&bytes).unwrap();
        assert_eq!(bytes.len() - head, SMALL_BYTES);
        assert!(
            bytes
                .windows(19)
                .any(|window| window == b"content-length: 128")
        );
    }
}
