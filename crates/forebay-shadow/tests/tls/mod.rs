//! The same fronts, asked over TLS.

use forebay_shadow::control::{Answer, Request};
use forebay_shadow::http::Options;
use forebay_shadow::tls::Pem;
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificate::{self, believer, certificate};
use crate::http2::{self, curl};
use crate::instances;
use crate::instances::stage::{Client, Stage};
use crate::{PATIENCE, Speaks, under_load};

pub(crate) type Stream = TlsStream<TcpStream>;

/// A front that speaks TLS, with a place for certificates, the first of which is `first.crt`.
pub(crate) async fn stage() -> (Stage, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        tls: Some(certificate::options(directory.path(), "first")),
        forwarded_for: true,
        ..Options::default()
    };
    let stage = Stage::with(PATIENCE, None, options).await;
    for slot in 0..2 {
        stage.join(slot).await;
    }
    (stage, directory)
}

/// A connection of somebody who believes one certificate.
async fn connect(stage: &Stage, chain: &str, protocol: &str) -> std::io::Result<Stream> {
    let stream = TcpStream::connect(stage.front).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let name = "test".try_into().unwrap();
    let connector = TlsConnector::from(believer(chain, protocol));
    connector.connect(name, stream).await
}

/// A client in HTTP/1.1.
pub(crate) async fn client(stage: &Stage, chain: &str) -> Client<Stream> {
    Client {
        stream: connect(stage, chain, "http/1.1").await.unwrap(),
        buffer: Vec::new(),
    }
}

/// A client in HTTP/2.
pub(crate) async fn client2(stage: &Stage, chain: &str) -> http2::Client {
    http2::Client::over(connect(stage, chain, "h2").await.unwrap()).await
}

fn chain(directory: &tempfile::TempDir) -> String {
    std::fs::read_to_string(directory.path().join("first.crt")).unwrap()
}

#[tokio::test]
async fn curl_speaks_both_over_tls() {
    let (stage, directory) = stage().await;
    let port = stage.front.port();
    let url = format!("https://test:{port}/head");
    let resolve = format!("test:{port}:127.0.0.1");
    let ca = directory.path().join("first.crt");
    for (version, outcome) in [("--http2", "2 200"), ("--http1.1", "1.1 200")] {
        let (url, resolve, ca) = (url.clone(), resolve.clone(), ca.clone());
        let said = tokio::task::spawn_blocking(move || {
            let ca = ca.to_str().unwrap();
            curl(&[version, "--cacert", ca, "--resolve", &resolve], &url)
        });
        let (body, got) = said.await.unwrap();
        assert_eq!(got, outcome);
        assert!(
            body.ends_with("x-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: https\r\n\r\n"),
            "{body}"
        );
    }
    let url = format!("http://{}/a", stage.front);
    let said = tokio::task::spawn_blocking(move || curl(&[], &url)).await;
    let why = "TLS is spoken at this address: ask with https\n".to_owned();
    assert_eq!(said.unwrap(), (why, "1.1 400".to_owned()));
}

#[tokio::test]
async fn messages_and_other_protocols_pass_over_tls() {
    let (stage, directory) = stage().await;
    let chain = chain(&directory);
    let mut client = client(&stage, &chain).await;
    let size = 4 << 20;
    let body: Vec<u8> = (0..size).map(instances::pattern).collect();
    let reply = client
        .ask("GET", &format!("/large/{size}"), "a", "")
        .await
        .unwrap();
    assert!(reply.body == body);
    client
        .send(format!(
            "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
        ))
        .await;
    client.send(&body).await;
    assert!(client.reply(false).await.unwrap().body == body);
    // What a client says of how it came is not believed.
    client
        .send("GET /head HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: http\r\n\r\n")
        .await;
    let seen = client.reply(false).await.unwrap().body;
    assert_eq!(
        String::from_utf8(seen).unwrap(),
        "GET /head HTTP/1.1\r\nHost: x\r\nx-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: https\r\n\r\n"
    );
    client
        .send(
            "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nfirst",
        )
        .await;
    let head = client.head().await.unwrap();
    assert!(head.contains(" 101 "), "{head}");
    client.send(" second").await;
    while client.buffer.len() < 12 {
        client.more().await.unwrap();
    }
    assert_eq!(client.buffer, b"first second");
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.more().await.unwrap(), 0);
    // An end that is the end of an answer is told as such.
    let mut client = self::client(&stage, &chain).await;
    let reply = client.ask("GET", "/until-close", "a", "").await.unwrap();
    assert_eq!(reply.body, b"until the end");
}

#[tokio::test]
async fn killed_primaries_lose_no_idempotent_request_over_tls() {
    for second in [true, false] {
        let (mut stage, directory) = stage().await;
        let chain = chain(&directory);
        let (speaks, connections) = if second {
            (Speaks::Tls2(&chain), 4)
        } else {
            (Speaks::Tls1(&chain), 16)
        };
        under_load(&mut stage, 5, &[Signal::KILL], speaks).await;
        let counts = stage.counts().await;
        assert_eq!((counts.failed, counts.connections), (0, connections));
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_without_a_client_noticing() {
    let (stage, directory) = stage().await;
    let first = chain(&directory);
    let mut before = client(&stage, &first).await;
    let second = certificate(directory.path(), "second");
    let mixed = Pem {
        chain: first.clone(),
        key: second.key.clone(),
    };
    let Answer::Refused(why) = stage.ask(&Request::Certificate(mixed), &[]).await else {
        panic!("they are not of each other");
    };
    assert!(why.contains("cannot be used together"), "{why}");
    let renew = Request::Certificate(second.clone());
    assert_eq!(stage.ask(&renew, &[]).await, Answer::Done);
    assert!(connect(&stage, &first, "h2").await.is_err());
    let mut after = client(&stage, &second.chain).await;
    for client in [&mut before, &mut after] {
        assert_eq!(client.ask("GET", "/a", "a", "").await.unwrap().status, 200);
    }
}
