//! `http` fronts with real sockets, real instances, and instances that really are lost.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, which clippy does not take for tests"
)]

mod certificate;
mod http2;
mod instances;
#[path = "resting/http.rs"]
mod rest;
mod resting;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay_shadow::control::{Answer, Request};
use forebay_shadow::http::{Options, mirror, spread};
use forebay_shadow::status::Status;
use instances::BOUND;
use instances::stage::{Client, Reply, Stage};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt;

/// Not a test: the instances' main function.
#[test]
#[ignore = "it is started by the other tests"]
fn instance() {
    instances::serve_as_instance();
}

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn messages_pass_as_they_are() {
    let stage = Stage::new(PATIENCE, None).await;
    let mut client = stage.client().await;
    for (method, path, body, status, answer) in [
        ("GET", "/a", "", 200, ""),
        ("POST", "/a", "hello", 200, "hello"),
        ("POST", "/pieces", "hello", 200, "hello"),
        ("HEAD", "/a", "", 200, ""),
        ("GET", "/none", "", 204, ""),
        (
            "GET",
            "/chunked",
            "",
            200,
            "4\r\nwiki\r\n5;x=y\r\npedia\r\n0\r\n\r\n",
        ),
    ] {
        let reply = client.ask(method, path, "a", body).await.unwrap();
        assert_eq!(
            (reply.status, reply.body.as_slice()),
            (status, answer.as_bytes()),
            "{method} {path}"
        );
    }
    // Two at once, and the second one in pieces.
    client
        .send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nHo")
        .await;
    assert_eq!(client.reply(false).await.unwrap().status, 200);
    client
        .send("st: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab")
        .await;
    client.send("c\r\n0\r\n\r\n").await;
    assert_eq!(client.reply(false).await.unwrap().body, b"abc");
    client
        .send("POST /3 HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .await;
    assert_eq!(client.reply(true).await.unwrap().status, 100);
    client.send("ok").await;
    assert_eq!(client.reply(false).await.unwrap().body, b"ok");
    // What concerns the connection stays here; the client's address goes on.
    client
        .send("GET /head HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, x-secret\r\nX-Secret: 1\r\n\r\n")
        .await;
    let reply = client.reply(false).await.unwrap();
    let seen = String::from_utf8(reply.body).unwrap();
    assert_eq!(
        seen,
        "GET /head HTTP/1.1\r\nHost: x\r\nx-forwarded-for: 127.0.0.1\r\n\r\n"
    );
    client
        .send("GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    let reply = client.reply(false).await.unwrap();
    assert!(reply.head.contains("connection: close"), "{}", reply.head);
    assert_eq!(client.more().await.unwrap(), 0);
    for (text, keeps) in [
        ("GET /a HTTP/1.0\r\n\r\n", false),
        ("GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
    ] {
        let mut client = stage.client().await;
        client.send(text).await;
        let reply = client.reply(false).await.unwrap();
        assert_eq!(
            reply.head.contains("connection: keep-alive"),
            keeps,
            "{}",
            reply.head
        );
        if keeps {
            client.send(text).await;
            assert_eq!(client.reply(false).await.unwrap().status, 200);
        } else {
            assert_eq!(client.more().await.unwrap(), 0);
        }
    }
    // A client that has ended its direction gets its answer.
    let mut client = stage.client().await;
    client.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\n").await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.reply(false).await.unwrap().status, 200);
    let mut client = stage.client().await;
    let reply = client.ask("GET", "/until-close", "a", "").await.unwrap();
    assert_eq!(
        (reply.status, reply.body.as_slice()),
        (200, b"until the end".as_slice())
    );
    let counts = stage.counts().await;
    assert_eq!((counts.failed, counts.unknown, counts.replayed), (0, 0, 0));
}

#[tokio::test]
async fn large_bodies_stream_and_early_answers_arrive() {
    let stage = Stage::new(PATIENCE, None).await;
    let mut client = stage.client().await;
    let size = 8 << 20;
    let body: Vec<u8> = (0..size).map(instances::pattern).collect();
    let reply = client
        .ask("GET", &format!("/large/{size}"), "a", "")
        .await
        .unwrap();
    assert_eq!(reply.body.len(), size);
    assert!(reply.body == body);
    client
        .send(format!(
            "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
        ))
        .await;
    client.send(&body).await;
    assert!(client.reply(false).await.unwrap().body == body);
    client
        .send("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    for piece in body.chunks(100_000) {
        client.send(format!("{:x}\r\n", piece.len())).await;
        client.send(piece).await;
        client.send("\r\n").await;
    }
    client.send("0\r\n\r\n").await;
    assert!(client.reply(false).await.unwrap().body == body);
    client
        .send("POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nabc")
        .await;
    let reply = client.reply(false).await.unwrap();
    assert_eq!(
        (reply.status, reply.body.as_slice()),
        (413, b"much".as_slice())
    );
}

#[tokio::test]
async fn another_protocol_is_relayed() {
    let stage = Stage::new(PATIENCE, None).await;
    let mut client = stage.client().await;
    client
        .send(
            "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nfirst",
        )
        .await;
    let head = client.head().await.unwrap();
    assert!(
        head.contains(" 101 ") && head.contains("connection: upgrade"),
        "{head}"
    );
    while client.buffer.len() < 5 {
        client.more().await.unwrap();
    }
    client.send(" second").await;
    while client.buffer.len() < 12 {
        client.more().await.unwrap();
    }
    assert_eq!(client.buffer, b"first second");
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.more().await.unwrap(), 0);
}

#[tokio::test]
async fn what_is_no_request_gets_one_clear_answer() {
    let stage = Stage::new(PATIENCE, None).await;
    let fill = "x".repeat(70_000);
    for (text, status) in [
        ("hello\r\n\r\n".to_owned(), 400),
        ("\x16\x03\x01\x02\0\x01\0".to_owned(), 400),
        (
            "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
                .to_owned(),
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
                .to_owned(),
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned(),
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc".to_owned(),
            400,
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: x\r\nA: {fill}\r\n\r\n"),
            431,
        ),
        (
            format!(
                "GET / HTTP/1.1\r\nHost: x\r\n{}\r\n",
                "A: 1\r\n".repeat(101)
            ),
            431,
        ),
    ] {
        let mut client = stage.client().await;
        client.send(&text).await;
        let shown = &text[..text.len().min(60)];
        let reply = client.reply(false).await;
        assert_eq!(
            reply.map(|reply| reply.status).unwrap_or(0),
            status,
            "{shown}"
        );
        client.stream.shutdown().await.unwrap();
        assert_eq!(client.more().await.unwrap_or(0), 0, "{shown}");
    }
    let mut client = stage.client().await;
    let reply = client.ask("POST", "/garbage", "a", "").await.unwrap();
    assert_eq!(reply.status, 502);
    assert!(
        reply.head.contains("forebay-outcome: unknown"),
        "{}",
        reply.head
    );
    assert_eq!(client.ask("GET", "/a", "a", "").await.unwrap().status, 200);
}

/// What clients speak; in HTTP/2, four of them share a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks<'a> {
    Http1,
    Http2,
    /// HTTP/1.1 over TLS, with a certificate that is believed.
    Tls1(&'a str),
    /// HTTP/2 over TLS.
    Tls2(&'a str),
}

/// A client of either kind.
enum Asker {
    Http1(Client),
    Tls1(Box<Client<tls::Stream>>),
    Http2(http2::Client),
}

impl Asker {
    /// As many as are asked for.
    async fn some(stage: &Stage, speaks: Speaks<'_>, many: usize) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for number in 0..many {
            let next = match (speaks, all.last()) {
                (Speaks::Http1, _) => Self::Http1(stage.client().await),
                (Speaks::Tls1(chain), _) => Self::Tls1(Box::new(tls::client(stage, chain).await)),
                (_, Some(Self::Http2(last))) if number % 4 != 0 => Self::Http2(last.clone()),
                (Speaks::Http2, _) => Self::Http2(http2::Client::connect(stage).await),
                (Speaks::Tls2(chain), _) => Self::Http2(tls::client2(stage, chain).await),
            };
            all.push(next);
        }
        all
    }

    async fn ask(
        &mut self,
        method: &str,
        path: &str,
        id: &str,
        body: &str,
    ) -> std::io::Result<Reply> {
        match self {
            Self::Http1(client) => client.ask(method, path, id, body).await,
            Self::Tls1(client) => client.ask(method, path, id, body).await,
            Self::Http2(client) => {
                let asked = client.ask(method, path, id, body).await;
                asked.map_err(std::io::Error::other)
            }
        }
    }
}

/// What clients saw in a load.
#[derive(Default)]
pub(crate) struct Seen {
    asked: AtomicU64,
    unknown: AtomicU64,
    /// The longest wait, in microseconds.
    longest: AtomicU64,
}

/// Asks on one connection until told to end: reads, idempotent and other writes in turn. Every
/// connection lives to the end, and only a `POST` may have an unknown outcome.
async fn load(
    mut client: Asker,
    number: usize,
    seen: Arc<Seen>,
    mut end: tokio::sync::watch::Receiver<bool>,
) -> Vec<(String, u16)> {
    let mut posts = Vec::new();
    for turn in 0.. {
        if *end.borrow_and_update() {
            break;
        }
        let id = format!("{number}-{turn}");
        let method = ["GET", "PUT", "POST"][turn % 3];
        let began = Instant::now();
        let reply = client
            .ask(method, "/a", &format!("{method}-{id}"), "body")
            .await;
        let took = u64::try_from(began.elapsed().as_micros()).unwrap();
        let reply =
            reply.unwrap_or_else(|error| panic!("{method} {id}: the client was dropped: {error}"));
        seen.longest.fetch_max(took, Ordering::Relaxed);
        seen.asked.fetch_add(1, Ordering::Relaxed);
        if method == "POST" && reply.status == 502 {
            assert!(
                reply.head.contains("forebay-outcome: unknown"),
                "{}",
                reply.head
            );
            seen.unknown.fetch_add(1, Ordering::Relaxed);
        } else {
            assert_eq!(reply.status, 200, "{method} {id}: {}", reply.head);
        }
        if method == "POST" {
            posts.push((format!("POST-{id}"), reply.status));
        }
    }
    posts
}

/// Runs a load while instances are lost, and counts what was executed.
pub(crate) async fn under_load(
    stage: &mut Stage,
    rounds: usize,
    lose: &[Signal],
    speaks: Speaks<'_>,
) -> Arc<Seen> {
    let seen = Arc::new(Seen::default());
    let (tell, end) = tokio::sync::watch::channel(false);
    let mut clients = tokio::task::JoinSet::new();
    let askers = Asker::some(stage, speaks, 16).await;
    for (number, client) in askers.into_iter().enumerate() {
        clients.spawn(load(client, number, Arc::clone(&seen), end.clone()));
    }
    for round in 0..rounds {
        let target = seen.asked.load(Ordering::Relaxed) + 500;
        let deadline = Instant::now() + BOUND;
        while seen.asked.load(Ordering::Relaxed) < target {
            assert!(Instant::now() < deadline, "the load does not go on");
            tokio::task::yield_now().await;
        }
        let before = stage.status().await;
        if let [first, rest @ ..] = lose {
            stage.instances[before.primary].signal(*first);
            let after = stage
                .until(|status| status.stage == "warm" && status.epoch > before.epoch)
                .await;
            println!("round {round}: {}", after.transitions.last().unwrap());
            assert_ne!(after.primary, before.primary);
            for signal in rest {
                stage.instances[before.primary].signal(*signal);
            }
            stage.restart(before.primary).await;
        } else {
            let Answer::Changed(transition) = stage.ask(&Request::HandOver, &[]).await else {
                panic!("no hand-over");
            };
            println!("round {round}: {transition}");
            let other = |status: &Status| status.stage == "warm" && status.standby.is_some();
            stage.until(other).await;
        }
    }
    tell.send_replace(true);
    let posts = clients.join_all().await;
    let executed = stage.executed();
    for (id, status) in posts.into_iter().flatten() {
        let times = executed.get(&id).copied().unwrap_or(0);
        assert!(times <= 1, "{id} was executed {times} times");
        assert!(
            status != 200 || times == 1,
            "{id} was answered and not executed"
        );
    }
    println!(
        "{} requests, {} of unknown outcome, longest {:.1} ms; {:?}",
        seen.asked.load(Ordering::Relaxed),
        seen.unknown.load(Ordering::Relaxed),
        f64::from(u32::try_from(seen.longest.load(Ordering::Relaxed)).unwrap()) / 1e3,
        stage.counts().await,
    );
    seen
}

#[tokio::test]
async fn killed_primaries_lose_no_idempotent_request_and_no_client() {
    let mut stage = Stage::new(PATIENCE, None).await;
    under_load(&mut stage, 10, &[Signal::KILL], Speaks::Http1).await;
    assert_eq!(stage.counts().await.failed, 0);
}

#[tokio::test]
async fn stopped_primaries_execute_nothing_more() {
    let Some(groups) = instances::groups("stopped") else {
        return;
    };
    let mut stage = Stage::new(PATIENCE, Some(&groups)).await;
    under_load(&mut stage, 1, &[Signal::STOP, Signal::CONT], Speaks::Http1).await;
    assert_eq!(stage.counts().await.failed, 0);
}

#[tokio::test]
async fn a_hand_over_fails_nothing() {
    let mut stage = Stage::new(PATIENCE, None).await;
    let seen = under_load(&mut stage, 6, &[], Speaks::Http1).await;
    assert_eq!(seen.unknown.load(Ordering::Relaxed), 0);
    let counts = stage.counts().await;
    assert_eq!((counts.failed, counts.unknown, counts.replayed), (0, 0, 0));
}

#[tokio::test]
async fn what_may_have_been_executed_is_said_to_be_unknown() {
    let stage = Stage::new(PATIENCE, None).await;
    let mut posting = stage.client().await;
    let mut streaming = stage.client().await;
    let mut halved = stage.client().await;
    posting
        .send("POST /hang HTTP/1.1\r\nHost: x\r\nX-Id: post\r\nContent-Length: 0\r\n\r\n")
        .await;
    streaming
        .send("GET /stream HTTP/1.1\r\nHost: x\r\nX-Id: stream\r\n\r\n")
        .await;
    halved
        .send("POST /half HTTP/1.1\r\nHost: x\r\nX-Id: half\r\nContent-Length: 0\r\n\r\n")
        .await;
    for id in ["post", "stream", "half"] {
        stage.executed_once(id).await;
    }
    streaming.head().await.unwrap();
    stage.instances[0].signal(Signal::KILL);
    for client in [&mut posting, &mut halved] {
        let reply = client.reply(false).await.unwrap();
        assert_eq!(reply.status, 502);
        assert!(
            reply.head.contains("forebay-outcome: unknown"),
            "{}",
            reply.head
        );
        assert_eq!(client.ask("GET", "/a", "a", "").await.unwrap().status, 200);
    }
    // The client has a part of an answer: only the end of its connection says that no more comes.
    while streaming.more().await.unwrap_or(0) > 0 {}
    assert!(!streaming.buffer.ends_with(b"0\r\n\r\n"));
    let executed = stage.executed();
    assert_eq!((executed["post"], executed["half"]), (1, 1));
    assert_eq!(stage.counts().await.unknown, 3);
}

#[tokio::test]
async fn what_a_stopped_primary_never_read_is_executed_by_the_next() {
    let Some(groups) = instances::groups("unread") else {
        return;
    };
    let stage = Stage::new(PATIENCE, Some(&groups)).await;
    let mut client = stage.client().await;
    assert_eq!(client.ask("GET", "/a", "a", "").await.unwrap().status, 200);
    stage.instances[0].signal(Signal::STOP);
    let reply = client.ask("POST", "/a", "post", "body").await.unwrap();
    assert_eq!(
        (reply.status, reply.body.as_slice()),
        (200, b"body".as_slice())
    );
    stage.instances[0].signal(Signal::CONT);
    assert_eq!(stage.executed()["post"], 1);
    let counts = stage.counts().await;
    assert_eq!((counts.replayed, counts.unknown), (1, 0));
}

#[tokio::test]
async fn what_a_stopped_primary_has_read_is_unknown() {
    let Some(groups) = instances::groups("read") else {
        return;
    };
    let stage = Stage::new(PATIENCE, Some(&groups)).await;
    let mut client = stage.client().await;
    let head = "POST /hang HTTP/1.1\r\nHost: x\r\nX-Id: seen\r\nContent-Length: 0\r\n\r\n";
    client.send(head).await;
    stage.executed_once("seen").await;
    stage.instances[0].signal(Signal::STOP);
    // It may be half done.
    assert_eq!(client.reply(false).await.unwrap().status, 502);
    stage.instances[0].signal(Signal::CONT);
    assert_eq!(stage.executed()["seen"], 1);
    let counts = stage.counts().await;
    assert_eq!((counts.replayed, counts.unknown), (0, 1));
}

#[tokio::test]
async fn with_nobody_to_serve_it_is_said_when_to_come_back() {
    let mut stage = Stage::new(Duration::from_millis(300), None).await;
    let mut client = stage.client().await;
    assert_eq!(client.ask("POST", "/a", "a", "").await.unwrap().status, 200);
    for slot in [1, 0] {
        stage.instances[slot].signal(Signal::KILL);
        stage.instances[slot].child.wait().unwrap();
    }
    stage.until(|status| status.stage == "down").await;
    let reply = client.ask("POST", "/a", "b", "body").await.unwrap();
    assert_eq!(reply.status, 503);
    assert!(reply.head.contains("retry-after: 1"), "{}", reply.head);
    assert_eq!(stage.counts().await.failed, 1);
    stage.restart_alone(0).await;
    assert_eq!(
        client.ask("POST", "/a", "c", "body").await.unwrap().status,
        200
    );
    assert!(!stage.executed().contains_key("b"));
}

#[tokio::test]
async fn a_broken_connection_is_no_death_and_a_refused_one_is() {
    let mut stage = Stage::unjoined(PATIENCE, None).await;
    let mut client = stage.client().await;
    let reply = client.ask("GET", "/rude", "get", "").await.unwrap();
    assert_eq!(reply.status, 502);
    let status = stage.status().await;
    assert_eq!((status.primary, status.epoch), (0, 1), "{status:?}");
    stage.instances[0].signal(Signal::KILL);
    stage.instances[0].child.wait().unwrap();
    let reply = client.ask("GET", "/a", "get", "").await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(stage.status().await.primary, 1);
}

#[tokio::test]
async fn a_shadow_gets_copies_and_its_answers_are_compared() {
    let mirror = mirror::Options {
        per_mille: 500,
        writes: false,
        ignore_bodies: vec!["/pid/ignored".to_owned()],
    };
    let options = Options {
        mirror,
        ..Options::default()
    };
    let stage = Stage::with(PATIENCE, None, options).await;
    let mut client = stage.client().await;
    // Those that change something get no copies.
    assert_eq!(
        client.ask("POST", "/a", "post", "x").await.unwrap().status,
        200
    );
    let mut compared = 0;
    for (path, differ) in [
        ("/a", 0),
        ("/chunked", 0),
        ("/large/1000000", 0),
        ("/pid/ignored", 0),
        ("/pid", 2),
        ("/rude-shadow", 4),
    ] {
        for turn in 0..4 {
            let id = format!("{path}-{turn}");
            assert_eq!(client.ask("GET", path, &id, "").await.unwrap().status, 200);
        }
        compared += 2;
        let deadline = Instant::now() + BOUND;
        let counts = loop {
            let counts = stage.counts().await;
            if counts.mirrored == compared {
                break counts;
            }
            assert!(Instant::now() < deadline, "{path}: {counts:?}");
        };
        assert_eq!(
            (counts.mismatched, counts.unmirrored),
            (differ, 0),
            "{path}"
        );
    }
    let executed = stage.executed();
    assert_eq!(executed["post"], 1);
    let twice = executed.iter().filter(|(_, times)| **times == 2).count();
    assert_eq!(twice, 12, "half of the reads: {executed:?}");
}

#[tokio::test]
async fn reads_are_spread_and_a_shadow_that_fails_costs_none() {
    let spread = spread::Options {
        per_mille: 500,
        within_ms: 100,
    };
    let options = Options {
        spread,
        ..Options::default()
    };
    let stage = Stage::with(PATIENCE, None, options).await;
    let mut client = stage.client().await;
    let pids = [0, 1].map(|slot| stage.instances[slot].child.id().to_string().into_bytes());
    let mut ask = async |method: &str| {
        let reply = client.ask(method, "/pid", "a", "").await.unwrap();
        assert_eq!(reply.status, 200);
        pids.iter().position(|pid| *pid == reply.body).unwrap()
    };
    let mut by = [0; 2];
    for _ in 0..20 {
        by[ask("GET").await] += 1;
        assert_eq!(ask("POST").await, 0);
    }
    assert_eq!(by, [10, 10]);
    assert_eq!(stage.counts().await.spread, 10);
    for signal in [Signal::STOP, Signal::KILL] {
        stage.instances[1].signal(signal);
        for _ in 0..20 {
            assert_eq!(ask("GET").await, 0, "{signal:?}");
        }
    }
    let counts = stage.counts().await;
    assert_eq!((counts.failed, counts.unknown, counts.spread), (0, 0, 10));
}

#[tokio::test]
async fn a_primary_that_cannot_be_fenced_stays_it_on_disk() {
    let stage = Stage::new(Duration::from_millis(500), None).await;
    let mut client = stage.client().await;
    assert_eq!(client.ask("GET", "/a", "a", "").await.unwrap().status, 200);
    stage.instances[0].signal(Signal::STOP);
    let head = "POST /a HTTP/1.1\r\nHost: x\r\nX-Id: post\r\nContent-Length: 0\r\n\r\n";
    client.send(head).await;
    let path = stage.directory.path().join("epoch");
    let latest = || {
        let file = std::fs::read_to_string(&path).unwrap();
        let records = file.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let number = words.next()?.parse::<u64>().ok()?;
            let epoch = words.next()?.parse::<u64>().ok()?;
            Some((number, (epoch, words.next()?.to_owned())))
        });
        records.max().map(|(_, record)| record)
    };
    // It was to be replaced in epoch 2, and could not be stopped for that.
    let deadline = Instant::now() + BOUND;
    while latest() != Some((2, "app-0".to_owned())) {
        assert!(Instant::now() < deadline, "{:?}", latest());
        tokio::task::yield_now().await;
    }
    stage.instances[0].signal(Signal::CONT);
    assert_eq!(client.reply(false).await.unwrap().status, 200);
    let status = stage.status().await;
    assert_eq!((status.primary, status.epoch), (0, 1));
    assert_eq!(stage.executed()["post"], 1);
}

#[tokio::test]
async fn a_rude_instance_is_asked_again_only_for_what_is_safe() {
    let stage = Stage::new(PATIENCE, None).await;
    let mut client = stage.client().await;
    let reply = client.ask("POST", "/rude", "post", "body").await.unwrap();
    assert_eq!(reply.status, 502);
    let reply = client.ask("GET", "/rude", "get", "").await.unwrap();
    assert_eq!(reply.status, 502);
    let executed = stage.executed();
    assert_eq!((executed["post"], executed["get"]), (1, 2));
    let status = stage.status().await;
    assert_eq!(
        (status.primary, status.stage.as_str()),
        (0, "warm"),
        "it is well, if rude"
    );
}

#[tokio::test]
async fn a_client_that_is_gone_ends_its_request() {
    let stage = Stage::new(PATIENCE, None).await;
    let mut client = stage.client().await;
    client
        .send("POST /hang HTTP/1.1\r\nHost: x\r\nX-Id: hang\r\nContent-Length: 0\r\n\r\n")
        .await;
    stage.executed_once("hang").await;
    // It has not only ended what it sends: nobody is there to hear an answer.
    rustix::net::sockopt::set_socket_linger(&client.stream, Some(Duration::ZERO)).unwrap();
    drop(client);
    stage.executed_once("hang-ended").await;
    let counts = stage.counts().await;
    assert_eq!((counts.failed, counts.unknown), (0, 0));
}

/// The kernel tells of a break once, and of bytes and an end all the time: a client that had sent its next
/// request, or ended its direction, was worked for after it was gone.
#[tokio::test]
async fn a_client_that_is_gone_after_it_sent_more_or_ended_ends_its_request() {
    let stage = Stage::new(PATIENCE, None).await;
    for (id, more) in [("more", "GET / HTTP/1.1\r\n"), ("end", "")] {
        let mut client = stage.client().await;
        let request = format!("GET /hang HTTP/1.1\r\nHost: x\r\nX-Id: {id}\r\n\r\n");
        client.send(&request).await;
        stage.executed_once(id).await;
        if more.is_empty() {
            client.stream.shutdown().await.unwrap();
        } else {
            client.send(more).await;
        }
        // The front has seen that, and that the client is there, before it is gone.
        for _ in 0..3 {
            stage.counts().await;
        }
        rustix::net::sockopt::set_socket_linger(&client.stream, Some(Duration::ZERO)).unwrap();
        drop(client);
        stage.executed_once(&format!("{id}-ended")).await;
    }
}
