//! Connections that come to rest, and go on behind another front.

use forebay_shadow::control::{Answer, Line};
use forebay_shadow::redis::Options;

use super::harness::{Reply, has, pair, text};
use super::resting::{offered, resume, taken};

#[tokio::test]
async fn what_rests_goes_on_as_what_it_was() {
    let name = "what_rests_goes_on_as_what_it_was";
    if !has(name, "redis-server") {
        return;
    }
    let (_servers, first) = pair(&[], Options::default()).await;
    let (_others, second) = pair(&[], Options::default()).await;
    let mut there = second.client().await;
    assert_eq!(there.ask("SELECT 3").await, text("OK"));
    assert_eq!(there.ask("SET a 7").await, text("OK"));

    let mut client = first.client().await;
    assert_eq!(client.ask("SELECT 3").await, text("OK"));
    assert_eq!(client.ask("CLIENT SETNAME me").await, text("OK"));
    let mut listener = first.client().await;
    assert!(matches!(
        listener.ask("SUBSCRIBE news").await,
        Reply::Many(_)
    ));
    let mut open = first.client().await;
    assert_eq!(open.ask("MULTI").await, text("OK"));
    assert_eq!(open.ask("INCR b").await, text("QUEUED"));
    let mut waiting = first.client().await;
    waiting.send("BLPOP list 0").await.unwrap();
    // The beginning of a command, which is seen to be read when what came before it is answered.
    let begun = b"*2\r\n$3\r\nGET\r\n$1";
    client
        .send_bytes(&[b"*1\r\n$4\r\nPING\r\n".as_slice(), begun].concat())
        .await
        .unwrap();
    assert_eq!(client.receive().await.unwrap(), text("PONG"));
    while first.counts().await.requests < 7 {
        tokio::task::yield_now().await;
    }

    let mut line: Line = first.line().await;
    let (resting, left) = offered(&mut line).await;
    assert_eq!((resting.len(), left), (2, 2), "{resting:?}");
    let unread: Vec<&[u8]> = resting.iter().map(|one| one.unread.as_slice()).collect();
    println!("{unread:?}");
    taken(&mut line).await;
    let mut other = second.line().await;
    for one in &resting {
        assert_eq!(resume(&mut other, one).await, Answer::Done);
    }
    drop(resting);
    client.send_bytes(b"\r\na\r\n").await.unwrap();
    assert_eq!(client.receive().await.unwrap(), text("7"));
    assert_eq!(client.ask("CLIENT GETNAME").await, text("me"));
    // It listens again once its connection to the server is there.
    while there.ask("PUBLISH news hear").await == Reply::Number(0) {}
    let message = Reply::Many(["message", "news", "hear"].map(text).to_vec());
    assert_eq!(listener.receive().await.unwrap(), message);
    // Those with something under way go on where they are.
    assert_eq!(open.ask("EXEC").await, Reply::Many(vec![Reply::Number(1)]));
    let mut giver = first.client().await;
    assert_eq!(giver.ask("RPUSH list x").await, Reply::Number(1));
    let popped = Reply::Many(["list", "x"].map(text).to_vec());
    assert_eq!(waiting.receive().await.unwrap(), popped);
}

/// A transaction ends with commands that are still to come: they are waited for, while others rest.
#[tokio::test]
async fn a_transaction_is_ended_before_its_connection_rests() {
    let name = "a_transaction_is_ended_before_its_connection_rests";
    if !has(name, "redis-server") {
        return;
    }
    let (_servers, front) = pair(&[], Options::default()).await;
    let mut client = front.client().await;
    assert_eq!(client.ask("MULTI").await, text("OK"));
    assert_eq!(client.ask("INCR b").await, text("QUEUED"));
    let mut line = front.line().await;
    let ((resting, left), executed) = tokio::join!(offered(&mut line), client.ask("EXEC"));
    assert_eq!(executed, Reply::Many(vec![Reply::Number(1)]));
    assert_eq!((resting.len(), left), (1, 0));
    // Whoever asked ends, and the client is served on.
    drop((resting, line));
    assert_eq!(client.ask("GET b").await, text("1"));
}
