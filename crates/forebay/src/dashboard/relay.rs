//! Passes requests on to the daemon's socket, and what it answers back, as it comes.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::response::{IntoResponse as _, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::server::{CHANGE_WAIT, Failure};

/// How long the daemon may take to begin its answer: a little longer than it gives itself.
const ANSWER_WAIT: Duration = Duration::from_secs(12);
/// How much longer than that.
const MORE: Duration = Duration::from_secs(2);

/// Where requests go.
#[derive(Debug)]
pub(super) struct Relay {
    socket: PathBuf,
}

impl Relay {
    pub(super) const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// One connection for each request, like every client: the daemon counts them, and a stream keeps one.
    async fn ask(&self, request: Request) -> Result<Response, Failure> {
        let socket = self.socket.display();
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => Failure::not_allowed(format!(
                "connect to {socket}: permission denied; ask root to add you to the daemon's group (`daemon.group`, which is forebay unless it was set)"
            )),
            _ => Failure::no_daemon(format!(
                "connect to {socket}: {error}; is the daemon running? start it with `forebay daemon`"
            )),
        })?;
        let broken = |error: hyper::Error| {
            Failure::no_daemon(format!("ask the daemon at {socket}: {error}; see its log"))
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // It ends with the answer's body, or with whoever reads that.
        tokio::spawn(connection);
        let response = sender.send_request(to_the_daemon(request)).await;
        Ok(response.map_err(broken)?.map(Body::new))
    }
}

/// The request as the daemon is to see it: what a browser says of itself and its page stays here.
fn to_the_daemon(request: Request) -> Request {
    let (head, body) = request.into_parts();
    let mut passed = Request::new(body);
    *passed.method_mut() = head.method;
    *passed.uri_mut() = head.uri;
    let headers = passed.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("forebay"));
    for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        if let Some(value) = head.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    passed
}

/// Passes a request on.
pub(super) async fn pass(State(relay): State<Arc<Relay>>, request: Request) -> Response {
    let changes_a_front =
        request.method() != Method::GET && request.uri().path().starts_with("/v1/fronts/");
    let wait = match changes_a_front {
        true => CHANGE_WAIT + MORE,
        false => ANSWER_WAIT,
    };
    match tokio::time::timeout(wait, relay.ask(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(failure)) => failure.into_response(),
        Err(_) => {
            let seconds = wait.as_secs();
            Failure::timeout(format!("no answer in {seconds} s; see the daemon's log"))
                .into_response()
        }
    }
}
