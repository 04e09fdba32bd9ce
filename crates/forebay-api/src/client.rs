//! Asks the daemon over its socket. One connection for each request: a request is rare, and
//! the daemon counts connections.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::problem::{Problem, Refusal};
use crate::types::{StreamPace, Tick};

/// The largest answer taken in.
pub const RESPONSE_BYTES_MAX: usize = 16 << 20;

/// The longest line of the stream taken in: one period of ten thousand apps.
pub const STREAM_LINE_BYTES_MAX: usize = 32 << 20;

/// How long an answer may take; the daemon gives up earlier.
const ANSWER_WAIT: Duration = Duration::from_secs(15);

/// How long the stream may be silent: the daemon sends a comment every few seconds.
const STREAM_WAIT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers at the socket.
    #[error("connect to {path}: {}; {}", plain(cause), connect_fix(cause))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel does not let us use the socket.
    #[error(
        "connect to {path}: permission denied; ask root to add you to the daemon's group: `daemon.group`, which is group forebay unless it was set"
    )]
    SocketNotAllowed {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon refused.
    #[error("{message}")]
    Refused {
        /// Why, for programs.
        refusal: Refusal,
        /// Why, for people.
        message: String,
    },
    /// The connection broke, or what came is not what was expected.
    #[error("{method} {uri} at {path}: {why}")]
    Broken {
        /// What was asked.
        method: Method,
        /// What for.
        uri: String,
        /// The socket.
        path: PathBuf,
        /// What went wrong, and what to do.
        why: String,
    },
}

/// The kernel's words without `(os error N)`.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::TimedOut => "no answer".to_owned(),
        _ => error.to_string(),
    }
}

fn connect_fix(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "is the daemon running? start it with `forebay daemon`"
        }
        io::ErrorKind::TimedOut => "the daemon has as many connections as it takes; try again",
        _ => "name the daemon's socket with `--socket PATH`",
    }
}

/// The daemon behind one socket.
///
/// # Example
/// ```no_run
/// use forebay_api::{Apps, Client, Status};
///
/// #[tokio::main(flavor = "current_thread")]
/// async fn main() -> Result<(), forebay_api::Error> {
///     let client = Client::connect(forebay_api::SOCKET).await?;
///     let status: Status = client.get("/v1/status").await?;
///     println!("{} of {} apps run", status.apps_running, status.apps);
///     let apps: Apps = client.get("/v1/apps").await?;
///     for app in apps.apps {
///         println!("{}: {:?} CPUs", app.name, app.usage.cpu_cores);
///     }
///     Ok(())
/// }
/// ```
/// `examples/watch.rs` of this crate follows what happens.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
    answer_wait: Duration,
}

impl Client {
    /// Checks that somebody answers at `path`.
    ///
    /// # Example
    /// An error says what to do:
    /// ```
    /// use forebay_api::{Client, Error};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let error = Client::connect("/nowhere/forebay.sock").await.unwrap_err();
    /// assert!(matches!(error, Error::Connect { .. }));
    /// assert!(error.to_string().contains("is the daemon running?"));
    /// # }
    /// ```
    ///
    /// # Errors
    /// When nobody does, or the socket may not be used.
    pub async fn connect(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let client = Self {
            path: path.into(),
            answer_wait: ANSWER_WAIT,
        };
        client.stream().await?;
        Ok(client)
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same, for what takes its time: an answer may take so long.
    ///
    /// # Example
    /// ```no_run
    /// # async fn example(client: forebay_api::Client) -> Result<(), forebay_api::Error> {
    /// use std::time::Duration;
    ///
    /// let patient = client.patient(Duration::from_secs(60));
    /// let metrics = patient.get_text("/metrics").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn patient(&self, answer_wait: Duration) -> Self {
        Self {
            answer_wait,
            ..self.clone()
        }
    }

    /// Asks for what is at `uri`: a path with an encoded query.
    ///
    /// # Example
    /// ```no_run
    /// # async fn example(client: forebay_api::Client) -> Result<(), forebay_api::Error> {
    /// use forebay_api::{Error, Explanation, Refusal};
    ///
    /// match client.get::<Explanation>("/v1/apps/web").await {
    ///     Ok(explanation) => println!("{explanation:?}"),
    ///     Err(Error::Refused { refusal: Refusal::NotFound, .. }) => println!("there is no such app"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the daemon refuses, is not there, or answers something else.
    pub async fn get<T: DeserializeOwned>(&self, uri: &str) -> Result<T, Error> {
        self.call(Method::GET, uri, None::<&()>).await
    }

    /// Asks for what is at `uri`, as text.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_text(&self, uri: &str) -> Result<String, Error> {
        let asked = Asked::new(self, Method::GET, uri);
        let bytes = asked.answer(None).await?;
        String::from_utf8(bytes.into()).map_err(|e| asked.broken(format!("not text: {e}")))
    }

    /// Sends `body` to `uri`.
    ///
    /// # Example
    /// ```no_run
    /// # async fn example(client: forebay_api::Client) -> Result<(), forebay_api::Error> {
    /// use forebay_api::{Class, Done, RunRequest};
    ///
    /// let build = RunRequest {
    ///     name: "build".to_owned(),
    ///     class: Class::Batch,
    ///     command: ["make", "-j8"].map(str::to_owned).to_vec(),
    ///     user: None,
    ///     group: None,
    ///     directory: Some("/srv/build".to_owned()),
    ///     set: Vec::new(),
    /// };
    /// let done: Done = client.post("/v1/apps", &build).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        uri: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.call(Method::POST, uri, Some(body)).await
    }

    /// Changes what is at `uri`.
    ///
    /// # Example
    /// ```no_run
    /// # async fn example(client: forebay_api::Client) -> Result<(), forebay_api::Error> {
    /// use forebay_api::{Assignment, Done, SetRequest};
    ///
    /// let ceiling = Assignment { key: "ceiling.cpu".to_owned(), value: "0.5".to_owned() };
    /// let change = SetRequest { set: vec![ceiling] };
    /// let done: Done = client.patch("/v1/apps/build", &change).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn patch<T: DeserializeOwned>(
        &self,
        uri: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        self.call(Method::PATCH, uri, Some(body)).await
    }

    /// Follows the periods from the next one on.
    ///
    /// # Example
    /// ```no_run
    /// # async fn example(client: forebay_api::Client) -> Result<(), forebay_api::Error> {
    /// use forebay_api::StreamPace;
    ///
    /// let mut ticks = client.ticks(StreamPace { every_ms: Some(1000) }).await?;
    /// while let Some(tick) = ticks.next().await? {
    ///     for event in tick.events {
    ///         println!("{}: {}", event.kind, event.message);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn ticks(&self, pace: StreamPace) -> Result<Ticks, Error> {
        let uri = match pace.every_ms {
            Some(every) => format!("/v1/stream?every_ms={every}"),
            None => "/v1/stream".to_owned(),
        };
        let asked = Asked::new(self, Method::GET, &uri);
        let (response, connection) = asked.within(asked.send(None)).await?;
        if !response.status().is_success() {
            return Err(asked.refused(response).await);
        }
        Ok(Ticks {
            body: response.into_body(),
            lines: Lines::default(),
            asked,
            _connection: connection,
        })
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Error> {
        let asked = Asked::new(self, method, uri);
        let body = match body {
            Some(body) => Some(
                serde_json::to_vec(body)
                    .map_err(|e| asked.broken(format!("cannot say that in JSON: {e}")))?,
            ),
            None => None,
        };
        let bytes = asked.answer(body).await?;
        serde_json::from_slice(&bytes).map_err(|e| {
            asked.broken(format!(
                "the answer is not understood ({e}); is the daemon of another version?"
            ))
        })
    }

    async fn stream(&self) -> Result<UnixStream, Error> {
        let connected = tokio::time::timeout(ANSWER_WAIT, UnixStream::connect(&self.path))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|cause| match cause.kind() {
            io::ErrorKind::PermissionDenied => Error::SocketNotAllowed {
                path: self.path.clone(),
            },
            _ => Error::Connect {
                path: self.path.clone(),
                cause,
            },
        })
    }
}

/// One request, for its errors.
#[derive(Debug)]
struct Asked {
    client: Client,
    method: Method,
    uri: String,
}

impl Asked {
    fn new(client: &Client, method: Method, uri: &str) -> Self {
        Self {
            client: client.clone(),
            method,
            uri: uri.to_owned(),
        }
    }

    fn broken(&self, why: String) -> Error {
        Error::Broken {
            method: self.method.clone(),
            uri: self.uri.clone(),
            path: self.client.path.clone(),
            why,
        }
    }

    /// Sends the request on a connection of its own, which ends when the guard is dropped.
    async fn send(
        &self,
        body: Option<Vec<u8>>,
    ) -> Result<(Response<Incoming>, AbortOnDrop), Error> {
        let stream = self.client.stream().await?;
        let broken = |e: hyper::Error| self.broken(format!("the connection broke: {e}"));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // Why a connection ends is told by the request that it carried.
        let driver = AbortOnDrop(tokio::spawn(async {
            connection.await.ok();
        }));
        let request = Request::builder()
            .method(self.method.clone())
            .uri(&self.uri)
            .header(header::HOST, "forebay")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|e| self.broken(format!("not a request: {e}")))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        Ok((response, driver))
    }

    async fn answer(&self, body: Option<Vec<u8>>) -> Result<Bytes, Error> {
        let exchange = async {
            let (response, _connection) = self.send(body).await?;
            if response.status().is_success() {
                self.bytes(response).await
            } else {
                Err(self.refused(response).await)
            }
        };
        self.within(exchange).await
    }

    /// What comes of it in time.
    async fn within<T>(&self, what: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let wait = self.client.answer_wait;
        tokio::time::timeout(wait, what).await.unwrap_or_else(|_| {
            let seconds = wait.as_secs();
            Err(self.broken(format!("no answer in {seconds} s; see the daemon's log")))
        })
    }

    async fn bytes(&self, response: Response<Incoming>) -> Result<Bytes, Error> {
        Limited::new(response.into_body(), RESPONSE_BYTES_MAX)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .map_err(|e| self.broken(format!("the answer broke off: {e}")))
    }

    async fn refused(&self, response: Response<Incoming>) -> Error {
        let status = response.status();
        match self.bytes(response).await {
            Ok(bytes) => match serde_json::from_slice::<Problem>(&bytes) {
                Ok(Problem { refusal, message }) => Error::Refused { refusal, message },
                Err(_) => self.broken(format!("the daemon answered {status}")),
            },
            Err(broken) => broken,
        }
    }
}

/// Ends a connection's task with whoever needed it.
#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The periods as they come.
#[derive(Debug)]
pub struct Ticks {
    body: Incoming,
    lines: Lines,
    asked: Asked,
    _connection: AbortOnDrop,
}

impl Ticks {
    /// The next message; none when the daemon ended the stream, as it does when it stops.
    /// May be dropped before it is done: nothing is lost.
    ///
    /// # Errors
    /// When the connection breaks or what comes is not understood.
    pub async fn next(&mut self) -> Result<Option<Tick>, Error> {
        loop {
            while let Some(line) = self.lines.next() {
                let Some(data) = line.strip_prefix(b"data:") else {
                    continue;
                };
                return serde_json::from_slice(data).map(Some).map_err(|e| {
                    self.asked.broken(format!(
                        "the stream is not understood ({e}); is the daemon of another version?"
                    ))
                });
            }
            let frame = tokio::time::timeout(STREAM_WAIT, self.body.frame())
                .await
                .map_err(|_| self.asked.broken("the stream fell silent".to_owned()))?;
            match frame {
                None => return Ok(None),
                Some(Err(e)) => return Err(self.asked.broken(format!("the stream broke: {e}"))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !self.lines.add(&data)
                    {
                        return Err(self.asked.broken(format!(
                            "a line of the stream is beyond {STREAM_LINE_BYTES_MAX} bytes"
                        )));
                    }
                }
            }
        }
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
struct Lines {
    buffer: Vec<u8>,
    /// So much of it was looked at and has no end of a line: a long one comes in many pieces.
    looked_at: usize,
}

impl Lines {
    /// Takes in bytes; false when a line becomes too long.
    fn add(&mut self, bytes: &[u8]) -> bool {
        self.buffer.extend_from_slice(bytes);
        self.buffer.len() <= STREAM_LINE_BYTES_MAX
    }

    /// The next whole line, without its end.
    fn next(&mut self) -> Option<Vec<u8>> {
        let rest = &self.buffer[self.looked_at..];
        let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
            self.looked_at = self.buffer.len();
            return None;
        };
        let end = self.looked_at + end;
        self.looked_at = 0;
        let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
        line.pop();
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_arrive() {
        let mut lines = Lines::default();
        assert!(lines.add(b"event: ti"));
        assert_eq!(lines.next(), None);
        assert!(lines.add(b"ck\ndata: {}\n\nrest"));
        assert_eq!(lines.next().as_deref(), Some(b"event: tick".as_slice()));
        assert_eq!(lines.next().as_deref(), Some(b"data: {}".as_slice()));
        assert_eq!(lines.next().as_deref(), Some(b"".as_slice()));
        assert_eq!(lines.next(), None);
        assert!(!lines.add(&vec![b'x'; STREAM_LINE_BYTES_MAX]));
    }

    #[test]
    fn errors_name_the_socket_and_the_fix() {
        let check = |kind: io::ErrorKind, text: &str| {
            let error = Error::Connect {
                path: PathBuf::from("/run/forebay/forebay.sock"),
                cause: kind.into(),
            };
            assert_eq!(error.to_string(), text);
        };
        check(
            io::ErrorKind::NotFound,
            "connect to /run/forebay/forebay.sock: no such file; is the daemon running? \
             start it with `forebay daemon`",
        );
        check(
            io::ErrorKind::ConnectionRefused,
            "connect to /run/forebay/forebay.sock: connection refused; is the daemon running? \
             start it with `forebay daemon`",
        );
    }
}
