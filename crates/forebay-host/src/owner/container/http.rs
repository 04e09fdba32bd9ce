//! One request to a runtime's socket: bounded in time and in size.

use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// The largest answer taken in, in MiB: what is known of one container is some kilobytes.
const ANSWER_MIB_MAX: usize = 4;

/// What is asked for.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) path: String,
    /// JSON; empty for nothing.
    pub(super) body: Vec<u8>,
}

impl Ask {
    pub(super) const fn get(path: String) -> Self {
        Self {
            method: Method::GET,
            path,
            body: Vec::new(),
        }
    }
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// Asks on a connection of its own. Blocks for `patience` at most.
///
/// # Errors
/// Of the kind `TimedOut` when that was not enough, and `InvalidData` when the answer is not HTTP
/// or has no end.
///
/// The reactor has a thread of its own for that time: whoever puts a host back may be inside
/// another one, in which none can be started.
pub(super) fn call(socket: &Path, ask: Ask, patience: Duration) -> io::Result<Answer> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("container-call".to_owned())
            .spawn_scoped(scope, || {
                let reactor = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                reactor.block_on(async {
                    tokio::time::timeout(patience, exchange(socket, ask))
                        .await
                        .unwrap_or_else(|_| {
                            let text = format!("no answer in {patience:?}");
                            Err(io::Error::new(io::ErrorKind::TimedOut, text))
                        })
                })
            })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the call panicked")))
    })
}

async fn exchange(socket: &Path, ask: Ask) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    // Why a connection ends is told by the request that it carried; it ends with the reactor.
    tokio::spawn(async {
        connection.await.ok();
    });
    let request = Request::builder()
        .method(ask.method)
        .uri(ask.path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(ask.body)))
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MIB_MAX << 20)
        .collect()
        .await
        .map_err(|error| {
            if error.is::<LengthLimitError>() {
                let text = format!("the answer is longer than {ANSWER_MIB_MAX} MiB");
                io::Error::new(io::ErrorKind::InvalidData, text)
            } else {
                io::Error::other(format!("the answer broke off: {error}"))
            }
        })?
        .to_bytes();
    Ok(Answer { status, body })
}

fn broken(error: hyper::Error) -> io::Error {
    if error.is_parse() {
        let text = format!("the answer is not HTTP: {error}");
        io::Error::new(io::ErrorKind::InvalidData, text)
    } else {
        io::Error::other(format!("the connection broke: {error}"))
    }
}
