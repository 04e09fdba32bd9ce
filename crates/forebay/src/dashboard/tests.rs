//! The dashboard against a daemon's socket that a test answers at.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use hyper_util::service::TowerToHyperService;

use super::gate::{Gate, Names};
use super::relay::Relay;
use super::*;

/// Asks the router; status, headers and body.
async fn ask(
    router: &Router,
    request: Request<Body>,
) -> (StatusCode, axum::http::HeaderMap, String) {
    let service = TowerToHyperService::new(router.clone());
    let response = service.call(request).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    (
        head.status,
        head.headers,
        String::from_utf8_lossy(&bytes).into_owned(),
    )
}

fn dashboard(socket: &Path) -> Router {
    router(
        Gate::new("secret".to_owned(), false, Names::Loopback),
        Relay::new(socket.to_owned()),
    )
}

fn request(method: &str, path: &str, body: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "127.0.0.1:9476")
        .header(header::AUTHORIZATION, "Bearer secret")
        .header(header::COOKIE, "of another site")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap()
}

/// Takes one request at the socket and answers it; what was asked.
fn daemon(listener: UnixListener, answer: &'static str) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = Vec::new();
        let mut buffer = [0; 4096];
        // The body is what the head was said to end with.
        while !asked.windows(4).any(|four| four == b"\r\n\r\n") || !asked.ends_with(b"}") {
            let read = stream.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "{}", String::from_utf8_lossy(&asked));
            asked.extend_from_slice(&buffer[..read]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(asked).unwrap()
    })
}

#[tokio::test]
async fn what_is_allowed_reaches_the_daemon_and_nothing_else_of_the_browser_does() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let answer = "HTTP/1.1 422 Unprocessable\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno";
    let daemon = daemon(listener, answer);
    let asked = request("POST", "/v1/plan?x=1", "{\"changes\":[]}");
    let (status, headers, body) = ask(&dashboard(&socket), asked).await;
    assert_eq!((status.as_u16(), body.as_str()), (422, "no"));
    assert!(
        headers[header::CONTENT_SECURITY_POLICY]
            .to_str()
            .unwrap()
            .contains("default-src 'none'")
    );
    let seen = daemon.join().unwrap();
    assert!(seen.starts_with("POST /v1/plan?x=1 HTTP/1.1\r\n"), "{seen}");
    assert!(seen.ends_with("{\"changes\":[]}"), "{seen}");
    for word in ["secret", "cookie"] {
        assert!(!seen.contains(word), "{word} in {seen}");
    }
}

#[tokio::test]
async fn without_a_daemon_it_says_so_and_the_page_is_there() {
    let router = dashboard(Path::new("/nonexistent/socket"));
    let (status, _, body) = ask(&router, request("GET", "/v1/status", "")).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(
        body.contains("/nonexistent/socket") && body.contains("forebay daemon"),
        "{body}"
    );
    let (status, headers, body) = ask(&router, request("GET", "/", "")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers[header::CONTENT_TYPE], "text/html; charset=utf-8");
    assert!(body.contains("main.js"), "{body}");
    let (status, _, _) = ask(&router, request("GET", "/../Cargo.toml", "")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn strangers_and_other_names_are_refused() {
    let router = dashboard(Path::new("/nonexistent/socket"));
    let mut asked = request("GET", "/v1/status", "");
    asked.headers_mut().remove(header::AUTHORIZATION);
    let (status, _, body) = ask(&router, asked).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(body.contains("the page's token"), "{body}");
    for path in ["/v1/status", "/"] {
        let mut asked = request("GET", path, "");
        let name = header::HeaderValue::from_static("evil.example");
        asked.headers_mut().insert(header::HOST, name);
        let (status, _, _) = ask(&router, asked).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{path}");
    }
}

#[tokio::test]
async fn other_hosts_cannot_reach_it() {
    let args = Args {
        listen: "0.0.0.0:0".parse().unwrap(),
        socket: None,
        read_only: false,
        certificate: None,
        key: None,
        client_ca: None,
        kept: false,
    };
    let error = serve(&args).await.unwrap_err();
    assert!(matches!(error, Error::NotLoopback(_)), "{error}");
}

/// Somebody who has no token can connect as often as it likes, and keeps nobody out who has it.
#[tokio::test]
async fn who_holds_connections_without_the_token_gives_way() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn asks(stream: &mut TcpStream) -> String {
        let request =
            "GET /v1/status HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer secret\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
        }
        String::from_utf8(answer).unwrap()
    }

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = dashboard(Path::new("/nonexistent/socket"));
    let accepting = tokio::spawn(accept(listener, None, router));
    let mut page = TcpStream::connect(address).await.unwrap();
    // There is no daemon, which only who has the token is told.
    assert!(asks(&mut page).await.starts_with("HTTP/1.1 502"));
    let mut strangers = Vec::new();
    for _ in 0..3 * places::STRANGERS_MAX {
        strangers.push(TcpStream::connect(address).await.unwrap());
    }
    let mut late = TcpStream::connect(address).await.unwrap();
    assert!(asks(&mut late).await.starts_with("HTTP/1.1 502"));
    assert!(asks(&mut page).await.starts_with("HTTP/1.1 502"));
    let mut none = [0; 1];
    assert_eq!(
        strangers[0].read(&mut none).await.unwrap(),
        0,
        "it is closed"
    );
    accepting.abort();
}
