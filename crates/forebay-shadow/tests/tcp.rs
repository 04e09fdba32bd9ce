//! `tcp` fronts, and the PROXY protocol of all fronts, with real sockets, instances and proxies.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, which clippy does not take for tests"
)]

#[expect(
    dead_code,
    reason = "shared with the tests of http, which use more of it"
)]
mod instances;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use forebay_shadow::front::{self, Plan};
use forebay_shadow::http::Options;
use forebay_shadow::mode::Mode;
use forebay_shadow::proxy;
use forebay_shadow::stream::Address;
use instances::BOUND;
use instances::stage::{Client, Stage};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Not a test: the instances' main function.
#[test]
#[ignore = "it is started by the other tests"]
fn instance() {
    instances::serve_as_instance();
}

const PATIENCE: Duration = Duration::from_secs(10);
const NO_PROXY: proxy::Options = proxy::Options {
    accept: false,
    send: false,
};

async fn stage(mode: Mode, proxy: proxy::Options) -> Stage {
    let stage = Stage::of(PATIENCE, None, mode, proxy).await;
    for slot in 0..2 {
        stage.join(slot).await;
    }
    stage
        .until(|status| status.stage == "warm" && status.standby.is_some())
        .await;
    stage
}

/// A client that comes from this address.
async fn client_from(ip: [u8; 4], to: SocketAddr) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::from(ip), 0).into()).unwrap();
    let stream = socket.connect(to).await.unwrap();
    Client {
        stream,
        buffer: Vec::new(),
    }
}

#[tokio::test]
async fn bytes_pass_both_ways_whatever_their_number() {
    let stage = stage(Mode::Tcp, NO_PROXY).await;
    let mut client = stage.client().await;
    assert_eq!(
        client.ask("POST", "/a", "1", "hello").await.unwrap().body,
        b"hello"
    );
    // More than any buffer takes, so that it is spliced; and small ones after it.
    let length = 3 << 20;
    let body = "x".repeat(length);
    for round in 0..2 {
        let reply = client.ask("POST", "/a", "2", &body).await.unwrap();
        assert!(reply.body == body.as_bytes(), "{round}");
        let reply = client
            .ask("GET", &format!("/large/{length}"), "3", "")
            .await;
        let reply = reply.unwrap().body;
        let expected: Vec<u8> = (0..length).map(instances::pattern).collect();
        assert!(reply == expected, "{round}");
        assert_eq!(
            client.ask("POST", "/a", "4", "small").await.unwrap().body,
            b"small"
        );
    }
}

#[tokio::test]
async fn a_side_that_ended_still_hears_the_other_one() {
    let stage = stage(Mode::Tcp, NO_PROXY).await;
    let mut client = stage.client().await;
    client
        .send("GET /socket HTTP/1.1\r\nUpgrade: echo\r\n\r\n")
        .await;
    assert!(client.head().await.unwrap().contains(" 101 "));
    client.send("last words").await;
    client.stream.shutdown().await.unwrap();
    while client.more().await.unwrap() > 0 {}
    assert_eq!(client.buffer, b"last words");
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_up_nobody_else() {
    let stage = stage(Mode::Tcp, NO_PROXY).await;
    let mut slow = stage.client().await;
    let length = 64 << 20;
    slow.send(format!("GET /large/{length} HTTP/1.1\r\n\r\n"))
        .await;
    slow.more().await.unwrap();
    let mut quick = stage.client().await;
    for id in 0..100 {
        let reply = quick.ask("POST", "/a", &id.to_string(), "hello").await;
        assert_eq!(reply.unwrap().body, b"hello");
    }
    assert_eq!(slow.reply(false).await.unwrap().body.len(), length);
}

#[tokio::test]
async fn established_connections_end_with_their_instance_and_new_ones_reach_the_next() {
    let Some(groups) = instances::groups("tcp") else {
        return;
    };
    let stage = Stage::of(PATIENCE, Some(&groups), Mode::Tcp, NO_PROXY).await;
    for slot in 0..2 {
        stage.join(slot).await;
    }
    stage
        .until(|status| status.stage == "warm" && status.standby.is_some())
        .await;
    let mut client = stage.client().await;
    let first = client.ask("GET", "/pid", "1", "").await.unwrap().body;
    client.send("GET /hang HTTP/1.1\r\nX-Id: 2\r\n\r\n").await;
    stage.executed_once("2").await;
    stage.instances[0].signal(Signal::KILL);
    // It ends, however it does.
    assert!(matches!(client.more().await, Ok(0) | Err(_)));
    // Until its end is noticed, the socket of one that dies may take a connection, which goes with it.
    stage
        .until(|status| status.stage == "warm" && status.primary == 1)
        .await;
    let mut next = stage.client().await;
    let second = next.ask("GET", "/pid", "3", "").await.unwrap().body;
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_hand_over_leaves_connections_where_they_are() {
    let stage = stage(Mode::Tcp, NO_PROXY).await;
    let mut client = stage.client().await;
    let first = client.ask("GET", "/pid", "1", "").await.unwrap().body;
    let answer = stage
        .ask(&forebay_shadow::control::Request::HandOver, &[])
        .await;
    let changed = matches!(answer, forebay_shadow::control::Answer::Changed(_));
    assert!(changed, "{answer:?}");
    assert_eq!(
        client.ask("GET", "/pid", "2", "").await.unwrap().body,
        first
    );
    let mut next = stage.client().await;
    assert_ne!(next.ask("GET", "/pid", "3", "").await.unwrap().body, first);
}

#[tokio::test]
async fn whoever_does_not_begin_with_a_header_is_refused() {
    let accept = proxy::Options {
        accept: true,
        send: false,
    };
    let options = Options {
        forwarded_for: true,
        ..Options::default()
    };
    let stage = stage(Mode::Http(options), accept).await;
    let mut bare = stage.client().await;
    bare.send("GET /head HTTP/1.1\r\n\r\n").await;
    assert!(matches!(bare.more().await, Ok(0) | Err(_)));
    assert_eq!(stage.counts().await.refused, 1);
    let mut proper = stage.client().await;
    proper
        .send("PROXY TCP4 192.0.2.7 192.0.2.8 5 6\r\nGET /head HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    let head = proper.reply(false).await.unwrap().body;
    let head = String::from_utf8(head).unwrap();
    assert!(head.contains("x-forwarded-for: 192.0.2.7\r\n"), "{head}");
}

/// A real proxy beside the tests; it ends with this value.
struct Proxy {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may be gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Starts a proxy with this text in a file, once it listens.
async fn start(
    port: u16,
    text: impl Fn(&Path) -> String,
    command: impl Fn(&Path, &Path) -> Command,
) -> Proxy {
    let directory = tempfile::tempdir().unwrap();
    let file: PathBuf = directory.path().join("configuration");
    std::fs::write(&file, text(directory.path())).unwrap();
    let mut command = command(directory.path(), &file);
    let child = command.stdin(Stdio::null()).spawn().unwrap();
    let mut proxy = Proxy {
        child,
        _directory: directory,
    };
    let deadline = Instant::now() + BOUND;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .is_err()
    {
        assert_eq!(proxy.child.try_wait().unwrap(), None, "it ended");
        assert!(Instant::now() < deadline, "nobody listens");
        tokio::task::yield_now().await;
    }
    proxy
}

fn is_installed(test: &str, program: &str, flag: &str) -> bool {
    let mut command = Command::new(program);
    let command = command.arg(flag).stdin(Stdio::null());
    let found = command.output().is_ok();
    if !found {
        println!("SKIPPED: {test}: {program} is not installed");
    }
    found
}

async fn haproxy(port: u16, text: String) -> Proxy {
    let defaults =
        "defaults\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n".to_owned();
    let command = |_: &Path, file: &Path| {
        let mut command = Command::new("haproxy");
        command.args(["-q", "-db", "-f"]).arg(file);
        command
    };
    start(port, |_| format!("{defaults}{text}"), command).await
}

#[tokio::test]
async fn haproxy_says_who_a_client_is() {
    if !is_installed("haproxy_says_who_a_client_is", "haproxy", "-v") {
        return;
    }
    let accept = proxy::Options {
        accept: true,
        send: false,
    };
    let options = Options {
        forwarded_for: true,
        ..Options::default()
    };
    let stage = stage(Mode::Http(options), accept).await;
    for word in [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id",
    ] {
        let port = free_port();
        let text = format!(
            "listen it\n  mode tcp\n  bind 127.0.0.1:{port}\n  unique-id-format %pid\n  server front {} {word}\n",
            stage.front
        );
        let _haproxy = haproxy(port, text).await;
        let mut client = client_from([127, 0, 0, 7], ([127, 0, 0, 1], port).into()).await;
        for _ in 0..2 {
            let head = client.ask("GET", "/head", "1", "").await.unwrap().body;
            let head = String::from_utf8(head).unwrap();
            assert!(
                head.contains("x-forwarded-for: 127.0.0.7\r\n"),
                "{word}: {head}"
            );
        }
    }
}

/// A front of mode tcp that says who its clients are, before a server at this port.
async fn front_before(port: u16, directory: &Path) -> SocketAddr {
    let at = |port| Address::Tcp((Ipv4Addr::LOCALHOST, port).into());
    let front = free_port();
    let instance = |app: &str, port| forebay_shadow::switchboard::Instance {
        app: app.to_owned(),
        address: at(port),
        elsewhere: None,
    };
    let plan = Plan {
        name: "test".to_owned(),
        mode: Mode::Tcp,
        listen: vec![at(front).into()],
        // The second one never runs.
        instances: vec![instance("a", port), instance("b", free_port())],
        connections_max: 100,
        user: String::new(),
        patience: PATIENCE,
        grace: Duration::ZERO,
        drain: Duration::ZERO,
        proxy: proxy::Options {
            accept: false,
            send: true,
        },
        control: directory.join("control"),
        epoch_file: directory.join("epoch"),
        lender: None,
    };
    tokio::spawn(async { front::open(plan).await.unwrap().serve().await.unwrap() });
    (Ipv4Addr::LOCALHOST, front).into()
}

/// What a server behind a front says of a client that comes from 127.0.0.8.
async fn heard(port: u16) -> String {
    let directory = tempfile::tempdir().unwrap();
    let front = front_before(port, directory.path()).await;
    let deadline = Instant::now() + BOUND;
    while TcpStream::connect(front).await.is_err() {
        assert!(Instant::now() < deadline, "the front does not listen");
        tokio::task::yield_now().await;
    }
    let mut client = client_from([127, 0, 0, 8], front).await;
    client
        .send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    let mut text = String::new();
    let read = client.stream.read_to_string(&mut text);
    tokio::time::timeout(BOUND, read).await.unwrap().unwrap();
    let expected = format!("127.0.0.8 {}", front.port());
    assert!(text.contains(&expected), "{expected}: {text}");
    text
}

#[tokio::test]
async fn nginx_hears_who_a_client_is() {
    if !is_installed("nginx_hears_who_a_client_is", "nginx", "-v") {
        return;
    }
    let port = free_port();
    let text = |directory: &Path| {
        let directory = directory.display();
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {directory}/{name}; "))
            .concat();
        format!(
            "daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log;\n\
             events {{}}\nhttp {{ access_log off; {paths}\nserver {{ listen 127.0.0.1:{port} proxy_protocol;\n\
             location / {{ return 200 \"$proxy_protocol_addr $proxy_protocol_server_port\\n\"; }} }} }}\n"
        )
    };
    let command = |directory: &Path, file: &Path| {
        let mut command = Command::new("nginx");
        command.arg("-p").arg(directory).arg("-c").arg(file);
        command.arg("-e").arg(directory.join("start.log"));
        command
    };
    let _nginx = start(port, text, command).await;
    heard(port).await;
}

#[tokio::test]
async fn haproxy_hears_who_a_client_is() {
    if !is_installed("haproxy_hears_who_a_client_is", "haproxy", "-v") {
        return;
    }
    let port = free_port();
    let text = format!(
        "frontend it\n  mode http\n  bind 127.0.0.1:{port} accept-proxy\n  \
         http-request return status 200 content-type text/plain lf-string \"%[src] %[dst_port]\"\n"
    );
    let _haproxy = haproxy(port, text).await;
    heard(port).await;
}
