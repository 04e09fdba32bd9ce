//! One bounded request over plain HTTP.

use std::future::poll_fn;
use std::path::Path;
use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use forebay_host::regular;
use hyper::body::{Body as _, Incoming};
use hyper::http::request::Builder;
use hyper::{Request, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The largest answer or file that is taken.
pub(super) const BYTES_MAX: usize = 1 << 20;
/// How long a whole request may take.
pub(super) const WAIT: Duration = Duration::from_secs(2);
/// The port of URLs that name none.
const PORT: u16 = 80;

/// An address of plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    uri: Uri,
    text: String,
}

/// Why a text is no address that can be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address of plain HTTP")]
pub(crate) struct UrlError(String);

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let uri: Option<Uri> = text.parse().ok();
        // Passwords in addresses end up in logs and events.
        let fits = |uri: &Uri| {
            let authority = uri.authority();
            uri.scheme_str() == Some("http")
                && authority.is_some_and(|authority| !authority.as_str().contains('@'))
                && uri.host().is_some_and(|host| !host.is_empty())
        };
        uri.filter(fits)
            .map(|uri| Self {
                uri,
                text: text.to_owned(),
            })
            .ok_or_else(|| UrlError(text.to_owned()))
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// Asks for what is there; one connection for one request.
///
/// # Errors
/// What went wrong, and what to do.
pub(super) async fn get(url: &Url, accept: &'static str) -> Result<String, String> {
    let request = Request::get(path(url)).header(header::ACCEPT, accept);
    within(ask(url, request, String::new())).await
}

/// Sends JSON there; one connection for one request. Any success is one.
///
/// # Errors
/// What went wrong, and what to do.
pub(crate) async fn post_json(url: &Url, body: String) -> Result<String, String> {
    let request = Request::post(path(url))
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONTENT_LENGTH, body.len());
    within(ask(url, request, body)).await
}

fn path(url: &Url) -> &str {
    url.uri.path_and_query().map_or("/", |path| path.as_str())
}

async fn within(answer: impl Future<Output = Result<String, String>>) -> Result<String, String> {
    match tokio::time::timeout(WAIT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(format!(
            "no whole answer within {} s; see what serves it",
            WAIT.as_secs()
        )),
    }
}

async fn ask(url: &Url, request: Builder, body: String) -> Result<String, String> {
    let broken = |error: hyper::Error| format!("{error}; see what serves it");
    let host = url.uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, url.uri.port_u16().unwrap_or(PORT)))
        .await
        .map_err(|error| format!("connect: {error}; start what serves it, or correct the URL"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let request = request
        .header(header::HOST, url.uri.authority().map_or("", |a| a.as_str()))
        .header(header::CONNECTION, "close")
        .header(
            header::USER_AGENT,
            concat!("forebay/", env!("CARGO_PKG_VERSION")),
        )
        .body(body)
        .map_err(|error| format!("{error}; correct the URL"))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        match response.status() {
            status if status.is_success() => text(response.into_body()).await,
            status if status.is_redirection() => Err(format!(
                "it answers {status}; give the URL that it leads to"
            )),
            status => Err(format!("it answers {status}; correct the URL")),
        }
    };
    tokio::pin!(answer, connection);
    tokio::select! {
        answer = &mut answer => answer,
        // What was received before the connection ended can still be read.
        ended = &mut connection => {
            ended.map_err(broken)?;
            answer.await
        }
    }
}

async fn text(mut body: Incoming) -> Result<String, String> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| format!("{error}; see what serves it"))?;
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > BYTES_MAX {
            return Err(too_large());
        }
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8; serve text".to_owned())
}

fn too_large() -> String {
    format!("it is larger than {BYTES_MAX} bytes; serve less there")
}

/// Reads a regular file; blocks as long as its file system does.
///
/// # Errors
/// What went wrong, and what to do.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let bound = u64::try_from(BYTES_MAX).unwrap_or(u64::MAX);
    let (bytes, _) = regular::read(path, bound).map_err(|error| {
        format!("{error}; name a regular file of at most {BYTES_MAX} bytes that may be read")
    })?;
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8; write text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_is_asked() {
        let check =
            |text: &str, fits: bool| assert_eq!(text.parse::<Url>().is_ok(), fits, "{text}");
        check("http://127.0.0.1:9113/metrics", true);
        check("http://localhost/metrics?name=a", true);
        check("http://[::1]:9113", true);
        check("https://127.0.0.1/metrics", false);
        check("http://user:password@127.0.0.1/", false);
        check("http://", false);
        check("127.0.0.1:9113/metrics", false);
        check("/metrics", false);
        check("ftp://127.0.0.1/", false);
        check("http://a b/", false);
    }

    #[test]
    fn files_are_bounded_and_regular() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let says = |words: &str| {
            let refused = read(&path).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        };
        says("No such file");
        std::fs::write(&path, vec![b' '; BYTES_MAX]).unwrap();
        assert_eq!(read(&path).unwrap().len(), BYTES_MAX);
        std::fs::write(&path, vec![b' '; BYTES_MAX + 1]).unwrap();
        says("longer than");
        std::fs::write(&path, [0xff]).unwrap();
        says("not UTF-8");
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        says("no regular file");
    }
}
