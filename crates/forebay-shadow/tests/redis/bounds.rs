//! Clients that take more than their share: of memory, or of time.

use std::time::Duration;

use forebay_shadow::redis::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::harness::{BOUND, Client, Front, Reply, has, pair, text};
use super::password;

/// More than a front may take from one client that reads nothing, with what the kernel takes.
const TOO_MUCH: usize = 192 * 1024 * 1024;

/// How a flood of commands ended.
#[derive(Debug, PartialEq, Eq)]
enum Flood {
    /// The front took no more.
    Stood,
    /// It left the client.
    Left,
}

/// Sends the same over and over, and reads nothing.
async fn flood(stream: &mut TcpStream, piece: &[u8]) -> Flood {
    const STANDS: Duration = Duration::from_secs(2);
    let pieces = piece.repeat(64 * 1024 / piece.len() + 1);
    let mut total = 0;
    while total < TOO_MUCH {
        match tokio::time::timeout(STANDS, stream.write_all(&pieces)).await {
            Ok(Ok(())) => total += pieces.len(),
            Ok(Err(_)) => return Flood::Left,
            Err(_) => return Flood::Stood,
        }
    }
    panic!("the front took {total} bytes of a client that reads nothing");
}

/// Waits until the front ended a connection of which nothing is read.
async fn until_left(stream: &mut TcpStream) {
    let mut taken = 0;
    let ended = async {
        while stream.write_all(&[b'\n'; 4096]).await.is_ok() {
            taken += 4096;
            assert!(taken < TOO_MUCH, "the front takes more and more");
        }
    };
    tokio::time::timeout(BOUND, ended).await.expect("the end");
}

async fn connect(front: &Front) -> TcpStream {
    drop(front.client().await);
    TcpStream::connect(("127.0.0.1", front.port)).await.unwrap()
}

#[tokio::test]
async fn a_client_that_reads_nothing_takes_bounded_memory_and_is_left() {
    let name = "a_client_that_reads_nothing_takes_bounded_memory_and_is_left";
    if !has(name, "redis-server") {
        return;
    }
    let options = Options {
        stuck_ms: 3000,
        ..Options::default()
    };
    let (_servers, front) = pair(&[], options).await;
    let mut good = front.client().await;
    // One is answered by the front itself, the other by the server.
    let echo = format!("*2\r\n$4\r\nECHO\r\n$1000\r\n{}\r\n", "x".repeat(1000));
    for piece in ["MONITOR\r\n", &echo] {
        let mut stream = connect(&front).await;
        let flooded = flood(&mut stream, piece.as_bytes()).await;
        println!("{name}: {flooded:?}");
        until_left(&mut stream).await;
        assert_eq!(good.ask("PING").await, text("PONG"));
    }
}

#[tokio::test]
async fn what_comes_behind_a_command_that_waits_is_bounded() {
    let name = "what_comes_behind_a_command_that_waits_is_bounded";
    if !has(name, "redis-server") {
        return;
    }
    let (_servers, front) = pair(&[], Options::default()).await;
    let mut stream = connect(&front).await;
    stream.write_all(b"BLPOP list 0\r\n").await.unwrap();
    assert_eq!(flood(&mut stream, b"PING\r\n").await, Flood::Stood);
    // It goes on as soon as it can.
    let mut other = front.client().await;
    assert_eq!(other.ask("RPUSH list x").await, Reply::Number(1));
    let popped = b"*2\r\n$4\r\nlist\r\n$1\r\nx\r\n";
    assert_eq!(exactly(&mut stream, popped.len()).await, popped);
}

#[tokio::test]
async fn a_command_that_is_not_finished_is_waited_for_a_while() {
    let name = "a_command_that_is_not_finished_is_waited_for_a_while";
    if !has(name, "redis-server") {
        return;
    }
    let options = Options {
        stuck_ms: 300,
        ..Options::default()
    };
    let (_servers, front) = pair(&[], options).await;
    let mut idle = front.client().await;
    for begun in ["*2\r\n$3\r\nGET\r\n$100\r\nabc", "*1\r\n", "GE"] {
        let mut client = front.client().await;
        client.send_bytes(begun.as_bytes()).await.unwrap();
        let why = "ERR Protocol error: a command was not finished within 300 ms";
        assert_eq!(
            client.receive().await.unwrap(),
            Reply::Error(why.to_owned())
        );
        assert!(client.is_ended().await);
    }
    assert_eq!(idle.ask("PING").await, text("PONG"));
}

#[tokio::test]
async fn whoever_did_not_log_in_sends_no_long_command() {
    let name = "whoever_did_not_log_in_sends_no_long_command";
    if !has(name, "redis-server") {
        return;
    }
    let (_servers, front) = pair(&["--requirepass", "sesame"], password("sesame")).await;
    let long = format!(
        "*2\r\n$3\r\nGET\r\n$1000000\r\n{}\r\n",
        "x".repeat(1_000_000)
    );
    let mut client = front.client().await;
    let sent = client.send_bytes(long.as_bytes()).await;
    if sent.is_ok() {
        let why = "ERR Protocol error: too long a command before AUTH";
        assert_eq!(
            client.receive().await.unwrap(),
            Reply::Error(why.to_owned())
        );
    }
    // One that logs in with the same breath may.
    let mut client = front.client().await;
    let both = format!("AUTH sesame\r\n{long}");
    client.send_bytes(both.as_bytes()).await.unwrap();
    assert_eq!(client.receive().await.unwrap(), text("OK"));
    assert_eq!(client.receive().await.unwrap(), Reply::Nothing);
}

async fn exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let reading = stream.read_exact(&mut bytes);
    tokio::time::timeout(BOUND, reading)
        .await
        .expect("bytes")
        .unwrap();
    bytes
}

/// A message of which the client has a part cannot go on with another primary.
#[tokio::test]
async fn a_message_that_broke_off_ends_the_connection() {
    let name = "a_message_that_broke_off_ends_the_connection";
    if !has(name, "redis-server") {
        return;
    }
    let unbounded = ["--client-output-buffer-limit", "pubsub", "0", "0", "0"];
    let (servers, front) = pair(&unbounded, Options::default()).await;
    let primary = front.ready().await.primary;
    let mut listener = connect(&front).await;
    listener.write_all(b"SUBSCRIBE news\r\n").await.unwrap();
    let confirmation = b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n";
    assert_eq!(
        exactly(&mut listener, confirmation.len()).await,
        confirmation
    );
    // More than fits between the server and a client that does not read.
    const LENGTH: usize = 60_000_000;
    let mut teller = Client::connect(servers[primary].port).await.unwrap();
    let mut publish = format!("*3\r\n$7\r\nPUBLISH\r\n$4\r\nnews\r\n${LENGTH}\r\n").into_bytes();
    publish.resize(publish.len() + LENGTH, b'x');
    publish.extend_from_slice(b"\r\n");
    let publishing = teller.send_bytes(&publish);
    tokio::time::timeout(BOUND, publishing)
        .await
        .expect("the server takes it")
        .unwrap();
    assert_eq!(teller.receive().await.unwrap(), Reply::Number(1));
    let mark = exactly(&mut listener, 1).await;
    // The shadow got the message, too.
    front.ready().await;
    servers[primary].signal(rustix::process::Signal::KILL);
    front
        .until("another primary", |status| {
            status.primary != primary && status.stage == "warm"
        })
        .await;
    // What comes is the message, as far as it came, and nothing else.
    listener.write_all(b"PING\r\n").await.unwrap();
    let mut all = mark;
    let rest = listener.read_to_end(&mut all);
    match tokio::time::timeout(BOUND, rest).await.expect("the end") {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    assert!(all.len() < LENGTH, "{}", all.len());
    let head = format!("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n${LENGTH}\r\n");
    let body = all.strip_prefix(head.as_bytes()).unwrap();
    assert!(body.iter().all(|byte| *byte == b'x'));
}
