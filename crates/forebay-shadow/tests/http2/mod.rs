//! The same fronts, asked in HTTP/2.

mod tools;

use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_shadow::http::{Options, mirror, spread};
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request};
use rustix::process::Signal;
use tokio::net::TcpStream;

use crate::instances::stage::{Reply, Stage};
use crate::instances::{self, BOUND};
use crate::{PATIENCE, Speaks, under_load};

/// A client that asks on one stream after the other. Its clones use the same connection.
#[derive(Clone)]
pub(crate) struct Client {
    send: SendRequest<Bytes>,
}

/// An answer whose body was not read.
pub(crate) struct Begun {
    status: u16,
    fields: HeaderMap,
    body: RecvStream,
}

impl Client {
    pub(crate) async fn connect(stage: &Stage) -> Self {
        let stream = TcpStream::connect(stage.front).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream).await
    }

    pub(crate) async fn over<T>(stream: T) -> Self
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = h2::client::Builder::new();
        // A stream that is not read must not take the room of all.
        builder.initial_connection_window_size(1 << 20);
        let (send, connection) = builder.handshake(stream).await.unwrap();
        tokio::spawn(async move {
            // Streams tell how it ended.
            connection.await.ok();
        });
        Self { send }
    }

    async fn begin(
        &mut self,
        request: Request<()>,
        body: impl Into<Bytes>,
    ) -> Result<Begun, h2::Error> {
        let body = body.into();
        let mut ready = self.send.clone().ready().await?;
        let (answer, mut send) = ready.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            send.send_data(body, true)?;
        }
        let answer = tokio::time::timeout(BOUND, answer)
            .await
            .expect("an answer in time")?;
        let (parts, body) = answer.into_parts();
        Ok(Begun {
            status: parts.status.as_u16(),
            fields: parts.headers,
            body,
        })
    }

    pub(crate) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        id: &str,
        body: &str,
    ) -> Result<Reply, h2::Error> {
        let begun = self
            .begin(request(method, path, id), body.to_owned())
            .await?;
        begun.whole().await
    }
}

impl Begun {
    pub(crate) async fn whole(mut self) -> Result<Reply, h2::Error> {
        let mut body = Vec::new();
        while let Some(piece) = self.more().await? {
            body.extend_from_slice(&piece);
        }
        let trailer = self.body.trailers().await?;
        let mut head = String::new();
        for (name, value) in self.fields.iter().chain(trailer.iter().flatten()) {
            head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
        }
        let status = self.status;
        Ok(Reply { status, head, body })
    }

    async fn more(&mut self) -> Result<Option<Bytes>, h2::Error> {
        let piece = tokio::time::timeout(BOUND, self.body.data())
            .await
            .expect("more of an answer in time");
        let Some(piece) = piece.transpose()? else {
            return Ok(None);
        };
        self.body.flow_control().release_capacity(piece.len())?;
        Ok(Some(piece))
    }
}

fn request(method: &str, path: &str, id: &str) -> Request<()> {
    let request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(format!("http://test{path}"))
        .header("x-id", id);
    request.body(()).unwrap()
}

#[tokio::test]
async fn streams_pass_as_requests_do() {
    let stage = Stage::new(PATIENCE, None).await;
    let mut client = Client::connect(&stage).await;
    for (method, path, body, status, answer) in [
        ("GET", "/a", "", 200, ""),
        ("POST", "/a", "hello", 200, "hello"),
        ("POST", "/a", "", 200, ""),
        ("POST", "/pieces", "hello", 200, "hello"),
        ("HEAD", "/a", "", 200, ""),
        ("GET", "/none", "", 204, ""),
        ("GET", "/chunked", "", 200, "wikipedia"),
        ("GET", "/until-close", "", 200, "until the end"),
        (
            "GET",
            "/rude",
            "",
            502,
            "the instance was lost, and may have executed the request\n",
        ),
    ] {
        let reply = client.ask(method, path, "a", body).await.unwrap();
        assert_eq!(
            (reply.status, String::from_utf8_lossy(&reply.body).as_ref()),
            (status, answer),
            "{method} {path}"
        );
        assert!(!reply.head.contains("connection"), "{}", reply.head);
        assert!(!reply.head.contains("transfer-encoding"), "{}", reply.head);
        assert_eq!(
            reply.head.contains("forebay-outcome: unknown"),
            status == 502
        );
    }
    let mut asked = request("GET", "/head", "a");
    for (name, value) in [("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")] {
        asked.headers_mut().append(name, value.parse().unwrap());
    }
    let reply = client
        .begin(asked, "")
        .await
        .unwrap()
        .whole()
        .await
        .unwrap();
    assert_eq!(
        String::from_utf8(reply.body).unwrap(),
        "GET /head HTTP/1.1\r\nhost: test\r\nx-id: a\r\ncookie: a=1; b=2\r\n\
         te: trailers\r\nconnection: te\r\nx-forwarded-for: 127.0.0.1\r\n\r\n"
    );
    // An answer before the request is whole.
    let mut asked = request("POST", "/early", "a");
    asked.headers_mut().append("content-length", 5.into());
    let mut ready = client.send.clone().ready().await.unwrap();
    let (answer, mut send) = ready.send_request(asked, false).unwrap();
    send.send_data(Bytes::from_static(b"long"), false).unwrap();
    send.send_data(Bytes::from_static(b"!"), true).unwrap();
    assert_eq!(answer.await.unwrap().status().as_u16(), 413);
    let mut asked = request("GET", "/a", "a");
    asked.headers_mut().append("host", "other".parse().unwrap());
    let reply = client
        .begin(asked, "")
        .await
        .unwrap()
        .whole()
        .await
        .unwrap();
    assert_eq!(
        (reply.status, reply.body.as_slice()),
        (400, b"a request names one host\n".as_slice())
    );
    let counts = stage.counts().await;
    assert_eq!((counts.connections, counts.failed), (1, 0), "{counts:?}");
}

#[tokio::test]
async fn trailers_and_interim_answers_pass() {
    let stage = Stage::new(PATIENCE, None).await;
    let client = Client::connect(&stage).await;
    let mut ready = client.send.clone().ready().await.unwrap();
    let mut asked = request("POST", "/trailers", "a");
    asked
        .headers_mut()
        .append("expect", "100-continue".parse().unwrap());
    let (answer, mut send) = ready.send_request(asked, false).unwrap();
    send.send_data(Bytes::from_static(b"body"), false).unwrap();
    let mut trailer = HeaderMap::new();
    trailer.append("x-up", "1".parse().unwrap());
    send.send_trailers(trailer).unwrap();
    let (parts, body) = answer.await.unwrap().into_parts();
    let begun = Begun {
        status: parts.status.as_u16(),
        fields: parts.headers,
        body,
    };
    let reply = begun.whole().await.unwrap();
    assert_eq!(
        (reply.status, reply.body.as_slice()),
        (200, b"wiki".as_slice())
    );
    assert!(
        reply.head.ends_with("x-up: 1\r\nx-sum: 4\r\n"),
        "{}",
        reply.head
    );
}

#[tokio::test]
async fn large_bodies_stream_and_one_that_is_not_read_holds_up_no_other() {
    let stage = Stage::new(PATIENCE, None).await;
    let mut client = Client::connect(&stage).await;
    let size = 8 << 20;
    let body: Vec<u8> = (0..size).map(instances::pattern).collect();
    let unread = client
        .begin(request("GET", &format!("/large/{size}"), "a"), "")
        .await
        .unwrap();
    let reply = client
        .ask("GET", &format!("/large/{size}"), "a", "")
        .await
        .unwrap();
    assert!(reply.body == body);
    let mut said = request("POST", "/a", "a");
    said.headers_mut().append("content-length", size.into());
    for asked in [said, request("POST", "/a", "a")] {
        let begun = client.begin(asked, body.clone()).await.unwrap();
        assert!(begun.whole().await.unwrap().body == body);
    }
    assert!(unread.whole().await.unwrap().body == body);
}

#[tokio::test]
async fn killed_primaries_lose_no_idempotent_stream_and_no_connection() {
    let mut stage = Stage::new(PATIENCE, None).await;
    under_load(&mut stage, 10, &[Signal::KILL], Speaks::Http2).await;
    let counts = stage.counts().await;
    assert_eq!((counts.failed, counts.connections), (0, 4), "{counts:?}");
}

#[tokio::test]
async fn a_hand_over_fails_no_stream() {
    let mut stage = Stage::new(PATIENCE, None).await;
    under_load(&mut stage, 6, &[], Speaks::Http2).await;
    let counts = stage.counts().await;
    assert_eq!((counts.failed, counts.unknown, counts.replayed), (0, 0, 0));
    assert_eq!(counts.connections, 4);
}

#[tokio::test]
async fn a_part_of_an_answer_is_reset_and_others_go_on() {
    let stage = Stage::new(PATIENCE, None).await;
    let mut client = Client::connect(&stage).await;
    let mut streaming = client
        .begin(request("GET", "/stream", "stream"), "")
        .await
        .unwrap();
    let mut posting = client.clone();
    let posting = tokio::spawn(async move { posting.ask("POST", "/hang", "post", "").await });
    stage.executed_once("post").await;
    stage.instances[0].signal(Signal::KILL);
    let reply = posting.await.unwrap().unwrap();
    assert_eq!(reply.status, 502);
    assert!(
        reply.head.contains("forebay-outcome: unknown"),
        "{}",
        reply.head
    );
    let end = loop {
        match streaming.more().await {
            Ok(piece) => assert!(piece.is_some(), "it looks like an end"),
            Err(error) => break error,
        }
    };
    assert_eq!(end.reason(), Some(Reason::INTERNAL_ERROR), "{end}");
    assert_eq!(client.ask("GET", "/a", "a", "").await.unwrap().status, 200);
    assert_eq!(stage.counts().await.connections, 1);
}

#[tokio::test]
async fn a_request_that_is_given_up_is_ended_at_its_instance() {
    let stage = Stage::new(PATIENCE, None).await;
    let client = Client::connect(&stage).await;
    // More of them than of those that were let be answered are an attack: the connection is
    // ended, which is seen by whatever the client does next.
    let mut given_up = 0;
    let end = loop {
        assert!(given_up < 1000, "nobody minds");
        match give_up(&stage, &client, &given_up.to_string()).await {
            Ok(()) => given_up += 1,
            Err(end) => break end,
        }
    };
    assert_eq!(end.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{end}");
    assert!(given_up > 200, "{given_up}");
    let counts = stage.counts().await;
    assert_eq!((counts.failed, counts.unknown), (0, 0), "{counts:?}");
}

/// Asks for what is never answered, and gives it up once the instance has begun it: `Err` when
/// the front ended the connection instead.
async fn give_up(stage: &Stage, client: &Client, id: &str) -> Result<(), h2::Error> {
    let mut ready = client.send.clone().ready().await?;
    let (mut answer, mut send) = ready.send_request(request("GET", "/hang", id), true)?;
    tokio::select! {
        () = stage.executed_once(id) => {}
        end = &mut answer => return Err(end.expect_err("it hangs")),
    }
    send.send_reset(Reason::CANCEL);
    drop(answer);
    stage.executed_once(&format!("{id}-ended")).await;
    Ok(())
}

#[tokio::test]
async fn streams_are_mirrored_and_spread() {
    let options = Options {
        mirror: mirror::Options {
            per_mille: 1000,
            ..mirror::Options::default()
        },
        spread: spread::Options {
            per_mille: 500,
            within_ms: 1000,
        },
        ..Options::default()
    };
    let stage = Stage::with(PATIENCE, None, options).await;
    let mut client = Client::connect(&stage).await;
    for _ in 0..10 {
        assert_eq!(client.ask("GET", "/a", "a", "").await.unwrap().status, 200);
    }
    let deadline = Instant::now() + BOUND;
    loop {
        let counts = stage.counts().await;
        assert_eq!((counts.spread, counts.mismatched), (5, 0), "{counts:?}");
        if counts.mirrored == 5 {
            break;
        }
        assert!(Instant::now() < deadline, "{counts:?}");
    }
}

#[tokio::test]
async fn a_connection_has_a_bound_of_streams() {
    let stage = Stage::new(Duration::from_secs(60), None).await;
    let mut client = Client::connect(&stage).await;
    assert_eq!(client.ask("GET", "/a", "a", "").await.unwrap().status, 200);
    assert_eq!(client.send.current_max_send_streams(), 128);
}

/// What curl says of an answer: its version and its status.
pub(crate) fn curl(arguments: &[&str], url: &str) -> (String, String) {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "30"]);
    command.args(["--write-out", "\n%{http_version} %{http_code}"]);
    let output = command.args(arguments).arg(url).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "curl {arguments:?}: {complaint}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, outcome) = text.rsplit_once('\n').unwrap();
    (body.to_owned(), outcome.to_owned())
}

#[tokio::test]
async fn curl_speaks_it_unasked_and_goes_on_without() {
    let stage = Stage::new(PATIENCE, None).await;
    let url = |path: &str| format!("http://{}{path}", stage.front);
    for (arguments, version) in [
        (["--http2-prior-knowledge"].as_slice(), "2"),
        // It offers to change over, which nobody has to accept.
        (&["--http2"], "1.1"),
        (&["--http1.1"], "1.1"),
    ] {
        let (url, arguments) = (url("/chunked"), arguments.to_vec());
        let said = tokio::task::spawn_blocking(move || curl(&arguments, &url));
        let (body, outcome) = said.await.unwrap();
        assert_eq!(
            (body.as_str(), outcome),
            ("wikipedia", format!("{version} 200"))
        );
    }
    let url = url("/a");
    let said = tokio::task::spawn_blocking(move || {
        curl(&["--http2-prior-knowledge", "--data", "hello"], &url)
    });
    assert_eq!(
        said.await.unwrap(),
        ("hello".to_owned(), "2 200".to_owned())
    );
}
