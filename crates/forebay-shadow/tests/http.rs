//! `http` fronts with real sockets, real instances, and instances that really are lost.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, which clippy does not take for tests"
)]

mod common;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{BOUND, Instance};
use forebay_shadow::control::{Answer, Counts, Line, Request};
use forebay_shadow::fence::Hierarchy;
use forebay_shadow::front::{self, Plan};
use forebay_shadow::http::Options;
use forebay_shadow::mode::Mode;
use forebay_shadow::status::Status;
use forebay_shadow::stream::Address;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Not a test: the instances' main function.
#[test]
#[ignore = "it is started by the other tests"]
fn instance() {
    common::serve_as_instance();
}

/// A front in a thread of its own, with two instances behind it.
struct Stage {
    front: SocketAddr,
    control: PathBuf,
    instances: Vec<Instance>,
    groups: Vec<Option<PathBuf>>,
    directory: tempfile::TempDir,
}

impl Stage {
    /// With two instances, each behind a fence of its own if there is a place for groups.
    async fn new(patience: Duration, groups: Option<&Path>) -> Self {
        let stage = Self::unjoined(patience, groups).await;
        for slot in 0..2 {
            stage.join(slot).await;
        }
        stage
    }

    /// With two instances of whose processes the front is not told.
    async fn unjoined(patience: Duration, groups: Option<&Path>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let record = directory.path().join("record");
        let name =
            |slot: usize| groups.map(|path| PathBuf::from(format!("{}-{slot}", path.display())));
        let groups: Vec<_> = (0..2).map(name).collect();
        let start = |slot: usize| Instance::start("127.0.0.1:0", &record, groups[slot].clone());
        let instances: Vec<_> = (0..2).map(start).collect();
        // Nobody else takes a port that was just given up: ports are handed out in turn.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let front = free.local_addr().unwrap();
        drop(free);
        let control = directory.path().join("control");
        let described = instances.iter().enumerate();
        let plan = Plan {
            name: "test".to_owned(),
            mode: Mode::Http(Options {
                forwarded_for: true,
            }),
            listen: vec![Address::Tcp(front)],
            instances: described
                .map(|(slot, instance)| forebay_shadow::switchboard::Instance {
                    app: format!("app-{slot}"),
                    address: Address::Tcp(instance.address),
                })
                .collect(),
            connections_max: 1000,
            user: String::new(),
            patience,
            grace: Duration::ZERO,
            control: control.clone(),
            epoch_file: directory.path().join("epoch"),
        };
        std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime
                .block_on(async { front::open(plan).unwrap().serve().await })
                .unwrap();
        });
        let stage = Self {
            front,
            control,
            instances,
            groups,
            directory,
        };
        stage
            .until(|status| status.stage == "warm" && status.standby.is_some())
            .await;
        stage
    }

    async fn ask(&self, request: &Request, files: &[std::fs::File]) -> Answer {
        let deadline = Instant::now() + BOUND;
        loop {
            let conversation = async {
                let mut line = Line::connect(&self.control).await?;
                line.ask(request, &common::descriptors(files)).await
            };
            match conversation.await {
                Ok(answer) => return answer,
                // The front has not begun yet.
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn join(&self, slot: usize) {
        let instance = &self.instances[slot];
        let files = instance.fence();
        let fence = (!files.is_empty()).then_some(Hierarchy::V2);
        let request = Request::Joined {
            slot,
            pid: instance.child.id(),
            fence,
        };
        assert_eq!(self.ask(&request, &files).await, Answer::Done);
    }

    async fn until(&self, is: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + BOUND;
        let mut known = None;
        loop {
            let Answer::Status(status) = self.ask(&Request::Status { known }, &[]).await else {
                panic!("no status");
            };
            if is(&status) {
                return *status;
            }
            assert!(Instant::now() < deadline, "{status:?}");
            known = Some(status);
        }
    }

    async fn status(&self) -> Status {
        self.until(|_| true).await
    }

    async fn counts(&self) -> Counts {
        match self.ask(&Request::Counters, &[]).await {
            Answer::Counters(counts) => counts,
            other => panic!("{other:?}"),
        }
    }

    /// Starts an instance anew at its old address, and waits until it stands by.
    async fn restart(&mut self, slot: usize) {
        let address = self.instances[slot].address.to_string();
        let group = self.groups[slot].clone();
        self.instances.remove(slot);
        let record = self.directory.path().join("record");
        self.instances
            .insert(slot, Instance::start(&address, &record, group));
        self.join(slot).await;
        self.until(|status| status.stage == "warm" && status.standby == Some(slot))
            .await;
    }

    /// How often each request was executed.
    fn executed(&self) -> BTreeMap<String, usize> {
        let record = std::fs::read_to_string(self.directory.path().join("record")).unwrap();
        let mut times = BTreeMap::new();
        for line in record.lines() {
            let (_, id) = line.split_once(' ').unwrap();
            *times.entry(id.to_owned()).or_default() += 1;
        }
        times
    }

    async fn executed_once(&self, id: &str) {
        let deadline = Instant::now() + BOUND;
        while self.executed().get(id) != Some(&1) {
            assert!(Instant::now() < deadline, "{id} was not executed");
            tokio::task::yield_now().await;
        }
    }

    async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.front).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client {
            stream,
            buffer: Vec::new(),
        }
    }
}

/// A client of few words.
struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Client {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn more(&mut self) -> io::Result<usize> {
        let read = self.stream.read_buf(&mut self.buffer);
        tokio::time::timeout(BOUND, read)
            .await
            .expect("an answer in time")
    }

    async fn head(&mut self) -> io::Result<String> {
        loop {
            let end = self
                .buffer
                .windows(4)
                .position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
                return Ok(String::from_utf8(head).unwrap());
            }
            if self.more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn reply(&mut self, bodiless: bool) -> io::Result<Reply> {
        let head = self.head().await?;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let field = |name: &str| {
            let mut lines = head.lines();
            let line = lines.find(|line| line.to_lowercase().starts_with(name))?;
            line.split_once(": ").map(|(_, value)| value.to_owned())
        };
        let length = field("content-length").map(|length| length.parse().unwrap());
        let whole = |buffer: &[u8]| match length {
            _ if bodiless || status == 204 || status < 200 => Some(0),
            Some(length) => (buffer.len() >= length).then_some(length),
            None if field("transfer-encoding").is_some() => {
                let end = buffer.windows(5).position(|bytes| bytes == b"0\r\n\r\n");
                end.map(|end| end + 5)
            }
            None => None,
        };
        loop {
            if let Some(length) = whole(&self.buffer) {
                let body = self.buffer.drain(..length).collect();
                return Ok(Reply { status, head, body });
            }
            if self.more().await? == 0 {
                if length.is_none() && field("transfer-encoding").is_none() {
                    let body = std::mem::take(&mut self.buffer);
                    return Ok(Reply { status, head, body });
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn ask(&mut self, method: &str, path: &str, id: &str, body: &str) -> io::Result<Reply> {
        let length = body.len();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nX-Id: {id}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.stream.write_all(text.as_bytes()).await?;
        self.reply(method == "HEAD").await
    }
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
    let body: Vec<u8> = (0..size).map(common::pattern).collect();
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

/// What clients saw in a load.
#[derive(Default)]
struct Seen {
    asked: AtomicU64,
    unknown: AtomicU64,
    /// The longest wait, in microseconds.
    longest: AtomicU64,
}

/// Asks on one connection until told to end: reads, idempotent and other writes in turn. Every
/// connection lives to the end, and only a `POST` may have an unknown outcome.
async fn load(
    mut client: Client,
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
async fn under_load(stage: &mut Stage, rounds: usize, lose: &[Signal]) -> Arc<Seen> {
    let seen = Arc::new(Seen::default());
    let (tell, end) = tokio::sync::watch::channel(false);
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..16 {
        let client = stage.client().await;
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
    under_load(&mut stage, 10, &[Signal::KILL]).await;
    assert_eq!(stage.counts().await.failed, 0);
}

#[tokio::test]
async fn stopped_primaries_execute_nothing_more() {
    let Some(groups) = common::groups("stopped") else {
        return;
    };
    let mut stage = Stage::new(PATIENCE, Some(&groups)).await;
    under_load(&mut stage, 1, &[Signal::STOP, Signal::CONT]).await;
    assert_eq!(stage.counts().await.failed, 0);
}

#[tokio::test]
async fn a_hand_over_fails_nothing() {
    let mut stage = Stage::new(PATIENCE, None).await;
    let seen = under_load(&mut stage, 6, &[]).await;
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
    let Some(groups) = common::groups("unread") else {
        return;
    };
    let stage = Stage::new(PATIENCE, Some(&groups)).await;
    let mut client = stage.client().await;
    let mut keyed = stage.client().await;
    assert_eq!(client.ask("GET", "/a", "a", "").await.unwrap().status, 200);
    keyed
        .send("POST /hang HTTP/1.1\r\nHost: x\r\nX-Id: seen\r\nContent-Length: 0\r\n\r\n")
        .await;
    stage.executed_once("seen").await;
    stage.instances[0].signal(Signal::STOP);
    let reply = client.ask("POST", "/a", "post", "body").await.unwrap();
    assert_eq!(
        (reply.status, reply.body.as_slice()),
        (200, b"body".as_slice())
    );
    // The one that was read may be half done.
    assert_eq!(keyed.reply(false).await.unwrap().status, 502);
    stage.instances[0].signal(Signal::CONT);
    let executed = stage.executed();
    assert_eq!((executed["post"], executed["seen"]), (1, 1));
    let counts = stage.counts().await;
    assert_eq!((counts.replayed, counts.unknown), (1, 1));
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

impl Stage {
    /// Starts an instance anew when nobody serves.
    async fn restart_alone(&mut self, slot: usize) {
        let address = self.instances[slot].address.to_string();
        self.instances.remove(slot);
        let record = self.directory.path().join("record");
        self.instances
            .insert(slot, Instance::start(&address, &record, None));
        self.join(slot).await;
        self.until(|status| status.stage == "warm" && status.primary == slot)
            .await;
    }
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
