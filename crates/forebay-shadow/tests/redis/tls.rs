//! Clients that speak TLS with a front.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use forebay_shadow::control::{Answer, Request};
use forebay_shadow::redis::Options;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate::{self, believer, certificate};
use super::harness::{Client, Front, Reply, Server, has, pair, text};
use super::{kill, strict};

/// Two servers and a front that speaks TLS, with a place for certificates: the front's is `first`.
async fn stage(options: Options) -> (Vec<Server>, Front, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        tls: Some(certificate::options(directory.path(), "first")),
        ..options
    };
    let (servers, front) = pair(&[], options).await;
    (servers, front, directory)
}

fn chain(directory: &TempDir) -> String {
    std::fs::read_to_string(directory.path().join("first.crt")).unwrap()
}

async fn secure(front: &Front, chain: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", front.port)).await?;
    stream.set_nodelay(true)?;
    let connector = TlsConnector::from(believer(chain, ""));
    let name = "test".try_into().unwrap();
    connector.connect(name, stream).await
}

async fn connect(front: &Front, chain: &str) -> std::io::Result<Client> {
    Ok(Client::over(secure(front, chain).await?))
}

/// What a program prints that is given this to read.
async fn output(program: &str, arguments: Vec<String>, input: &'static str) -> Output {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let run = move || {
        let mut child = command.spawn().unwrap();
        // One that does not read ends by itself.
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        child.wait_with_output().unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn words(text: &[&str]) -> Vec<String> {
    text.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn redis_cli_speaks_tls() {
    let name = "redis_cli_speaks_tls";
    if !has(name, "redis-server") || !has(name, "redis-cli") || !has(name, "openssl") {
        return;
    }
    let (_servers, front, directory) = stage(strict()).await;
    let port = front.port.to_string();
    let first = directory.path().join("first.crt");
    let first = first.to_str().unwrap();
    certificate(directory.path(), "second");
    let second = directory.path().join("second.crt");
    let second = second.to_str().unwrap();
    let base = ["-p", &port];
    for trust in [&["--insecure"][..], &["--cacert", first]] {
        let arguments = words(&[&base[..], &["--tls"], trust].concat());
        let got = output("redis-cli", arguments, "SET a 1\nINCR a\nGET a\n").await;
        let said = String::from_utf8_lossy(&got.stdout);
        assert_eq!(said, "OK\n2\n2\n", "{trust:?}: {got:?}");
    }
    let arguments = words(&[&base[..], &["--tls", "--cacert", second, "PING"]].concat());
    let got = output("redis-cli", arguments, "").await;
    let said = String::from_utf8_lossy(&got.stderr);
    assert!(said.contains("certificate verify failed"), "{said}");
    // It tries more than once.
    let refused = front.counts().await.refused;
    assert!(refused > 0);
    // Who does not speak TLS is told to.
    let got = output("redis-cli", words(&[&base[..], &["PING"]].concat()), "").await;
    let said = String::from_utf8_lossy(&got.stdout);
    assert!(said.contains("TLS is spoken at this address"), "{got:?}");
    assert!(front.counts().await.refused > refused);
}

#[tokio::test]
async fn redis_benchmark_speaks_tls() {
    let name = "redis_benchmark_speaks_tls";
    if !has(name, "redis-server") || !has(name, "redis-benchmark") || !has(name, "openssl") {
        return;
    }
    let (_servers, front, _directory) = stage(Options::default()).await;
    for pipeline in ["1", "64"] {
        let port = front.port.to_string();
        let arguments = words(&[
            "-p",
            &port,
            "--tls",
            "--insecure",
            "-q",
            "-n",
            "5000",
            "-P",
            pipeline,
            "-t",
            "set,get,lrange_600",
        ]);
        let got = output("redis-benchmark", arguments, "").await;
        let said = String::from_utf8_lossy(&got.stdout);
        let lines: Vec<&str> = said
            .split(['\r', '\n'])
            .filter(|line| line.contains("requests per second"))
            .collect();
        println!("over TLS, {pipeline} in a pipeline: {lines:#?}");
        assert_eq!(lines.len(), 4, "{got:?}");
    }
}

#[tokio::test]
async fn clients_of_tls_stay_connected_through_the_loss_of_a_primary() {
    let name = "clients_of_tls_stay_connected_through_the_loss_of_a_primary";
    if !has(name, "redis-server") || !has(name, "redis-cli") || !has(name, "openssl") {
        return;
    }
    let (mut servers, front, directory) = stage(strict()).await;
    let chain = chain(&directory);
    let mut clients = Vec::new();
    for number in 0..8 {
        let mut client = connect(&front, &chain).await.unwrap();
        assert_eq!(client.ask(&format!("SELECT {number}")).await, text("OK"));
        assert_eq!(client.ask(&format!("SET a {number}")).await, text("OK"));
        clients.push(client);
    }
    let mut listener = connect(&front, &chain).await.unwrap();
    assert!(matches!(
        listener.ask("SUBSCRIBE news").await,
        Reply::Many(_)
    ));
    // A program that would connect again by itself, which would be counted.
    let mut cli = Command::new("redis-cli")
        .args(["-p", &front.port.to_string(), "--tls", "--insecure"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut says = cli.stdin.take().unwrap();
    says.write_all(b"SELECT 9\nSET a 9\n").unwrap();
    let mut looker = connect(&front, &chain).await.unwrap();
    assert_eq!(looker.ask("SELECT 9").await, text("OK"));
    let deadline = std::time::Instant::now() + super::harness::BOUND;
    while looker.ask("GET a").await != text("9") {
        assert!(
            std::time::Instant::now() < deadline,
            "redis-cli wrote nothing"
        );
    }
    let before = front.counts().await.connections;
    for _ in 0..2 {
        kill(&mut servers, &front).await;
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.ask("GET a").await, text(&number.to_string()));
            // Nothing is written in `strict` while no shadow is in step, which it may be late for.
            let mut reply = client.ask("SET b 1").await;
            let deadline = std::time::Instant::now() + super::harness::BOUND;
            while matches!(&reply, Reply::Error(why) if why.starts_with("NOREPLICAS")) {
                assert!(std::time::Instant::now() < deadline, "{reply:?}");
                front.ready().await;
                reply = client.ask("SET b 1").await;
            }
            assert_eq!(reply, text("OK"));
        }
    }
    let heard = listener.receive();
    let told = async {
        while clients[0].ask("PUBLISH news x").await != Reply::Number(1) {
            front.ready().await;
        }
    };
    let (heard, ()) = tokio::join!(heard, told);
    assert_eq!(
        heard.unwrap(),
        Reply::Many(vec![text("message"), text("news"), text("x")])
    );
    says.write_all(b"INCR a\n").unwrap();
    drop(says);
    let got = tokio::task::spawn_blocking(move || cli.wait_with_output().unwrap()).await;
    let said = got.unwrap().stdout;
    assert_eq!(String::from_utf8_lossy(&said), "OK\nOK\n10\n");
    assert_eq!(front.counts().await.connections, before);
}

/// What is encrypted waits in other places than what is not.
#[tokio::test]
async fn large_values_and_long_pipelines_pass_over_tls() {
    let name = "large_values_and_long_pipelines_pass_over_tls";
    if !has(name, "redis-server") || !has(name, "openssl") {
        return;
    }
    let (_servers, front, directory) = stage(Options::default()).await;
    let mut client = connect(&front, &chain(&directory)).await.unwrap();
    let large = "x".repeat(5_000_000);
    assert_eq!(client.ask(&format!("SET large {large}")).await, text("OK"));
    assert_eq!(client.ask("GET large").await, text(&large));
    // All of it is sent before anything is read, and twice: the second time nothing else follows.
    const COMMANDS: usize = 20_000;
    let lines: Vec<String> = (0..COMMANDS)
        .map(|number| format!("SET k {number}\nGET k"))
        .collect();
    let lines = lines.join("\n");
    for _ in 0..2 {
        client.send(&lines).await.unwrap();
        for number in 0..COMMANDS {
            assert_eq!(client.receive().await.unwrap(), text("OK"));
            assert_eq!(client.receive().await.unwrap(), text(&number.to_string()));
        }
    }
    // The end is told as such: what is cut off would be an error.
    let mut stream = secure(&front, &chain(&directory)).await.unwrap();
    stream.write_all(b"PING\r\nQUIT\r\n").await.unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"+PONG\r\n+OK\r\n");
}

#[tokio::test]
async fn a_certificate_is_renewed_without_a_client_noticing() {
    let name = "a_certificate_is_renewed_without_a_client_noticing";
    if !has(name, "redis-server") || !has(name, "openssl") {
        return;
    }
    let (_servers, front, directory) = stage(Options::default()).await;
    let first = chain(&directory);
    let mut before = connect(&front, &first).await.unwrap();
    let second = certificate(directory.path(), "second");
    let renew = Request::Certificate(second.clone());
    let answer = front.line().await.ask(&renew, &[]).await.unwrap();
    assert_eq!(answer, Answer::Done);
    assert!(connect(&front, &first).await.is_err());
    let mut after = connect(&front, &second.chain).await.unwrap();
    for client in [&mut before, &mut after] {
        assert_eq!(client.ask("PING").await, text("PONG"));
    }
}

#[tokio::test]
async fn what_is_no_tls_is_counted_and_disturbs_nobody() {
    let name = "what_is_no_tls_is_counted_and_disturbs_nobody";
    if !has(name, "redis-server") || !has(name, "openssl") {
        return;
    }
    let (_servers, front, directory) = stage(Options::default()).await;
    let chain = chain(&directory);
    let mut good = connect(&front, &chain).await.unwrap();
    // Begun and not gone on with: held until the end of the test.
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(("127.0.0.1", front.port)).await.unwrap();
        stream.write_all(b"\x16\x03\x01\x02\0").await.unwrap();
        slow.push(stream);
    }
    let garbage: [&[u8]; 4] = [
        b"\x16\x03\x01\0\x05hello",
        b"\x16\xff\xff\xff\xff",
        b"\x16GET / HTTP/1.1\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
    ];
    for (number, bytes) in (1..).zip(garbage) {
        let mut stream = TcpStream::connect(("127.0.0.1", front.port)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut heard = Vec::new();
        // It may be reset with bytes that were not read.
        stream.read_to_end(&mut heard).await.ok();
        // In the words of Redis, or by an alert of TLS, if anything.
        if bytes.starts_with(b"*") {
            assert!(
                heard.starts_with(b"-ERR forebay: TLS is spoken"),
                "{heard:?}"
            );
        } else {
            assert!(heard.is_empty() || heard.starts_with(b"\x15"), "{heard:?}");
        }
        let deadline = std::time::Instant::now() + super::harness::BOUND;
        while front.counts().await.refused < number {
            assert!(
                std::time::Instant::now() < deadline,
                "{bytes:?} is not counted"
            );
        }
        assert_eq!(good.ask("PING").await, text("PONG"));
        let mut other = connect(&front, &chain).await.unwrap();
        assert_eq!(other.ask("PING").await, text("PONG"));
    }
    // What stops to be TLS ends that connection, and no other.
    let (mut stream, _) = secure(&front, &chain).await.unwrap().into_inner();
    stream.write_all(b"PING\r\n").await.unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.ok();
    assert_eq!(good.ask("PING").await, text("PONG"));
    drop(slow);
}
