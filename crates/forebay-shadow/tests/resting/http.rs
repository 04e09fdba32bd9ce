//! Connections that come to rest between two requests, and go on in another process.

use forebay_shadow::control::{Answer, Line};
use forebay_shadow::mode::Mode;
use forebay_shadow::proxy;

use super::PATIENCE;
use super::instances::stage::Stage;
use super::resting::{offered, resume, taken};

#[tokio::test]
async fn what_rests_between_two_requests_goes_on_behind_another_front() {
    let first = Stage::new(PATIENCE, None).await;
    let second = Stage::new(PATIENCE, None).await;
    let mut client = first.client().await;
    let reply = client.ask("POST", "/a", "one", "1").await.unwrap();
    assert_eq!(reply.status, 200);
    // It read so much of the next one, and sent it to nobody.
    client
        .send("POST /a HTTP/1.1\r\nHost: x\r\nX-Id: two\r\nConte")
        .await;
    // One that said nothing, and one in the middle of a request.
    let mut silent = first.client().await;
    let mut busy = first.client().await;
    busy.send("POST /a HTTP/1.1\r\nHost: x\r\nX-Id: busy\r\nContent-Length: 2\r\n\r\n1")
        .await;
    // All three are seen to be there.
    while first.counts().await.open < 3 || first.counts().await.requests < 2 {
        tokio::task::yield_now().await;
    }
    let mut line = Line::connect(&first.control).await.unwrap();
    let (resting, left) = offered(&mut line).await;
    assert_eq!((resting.len(), left), (2, 1), "{resting:?}");
    taken(&mut line).await;
    let mut other = Line::connect(&second.control).await.unwrap();
    for one in &resting {
        assert_eq!(resume(&mut other, one).await, Answer::Done);
    }
    drop(resting);
    client.send("nt-Length: 1\r\n\r\n2").await;
    assert_eq!(client.reply(false).await.unwrap().body, b"2");
    let reply = silent.ask("GET", "/a", "three", "").await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(first.executed().get("two"), None);
    second.executed_once("two").await;
    second.executed_once("three").await;
    // What does not rest goes on where it is.
    busy.send("2").await;
    assert_eq!(busy.reply(false).await.unwrap().body, b"12");
    first.executed_once("busy").await;
}

#[tokio::test]
async fn what_nobody_takes_goes_on() {
    let stage = Stage::new(PATIENCE, None).await;
    let mut client = stage.client().await;
    client
        .send("GET /a HTTP/1.1\r\nHost: x\r\nX-Id: one\r\n")
        .await;
    while stage.counts().await.open < 1 {
        tokio::task::yield_now().await;
    }
    let mut line = Line::connect(&stage.control).await.unwrap();
    let (resting, left) = offered(&mut line).await;
    assert_eq!((resting.len(), left), (1, 0));
    // Whoever asked ends.
    drop((line, resting));
    client.send("\r\n").await;
    assert_eq!(client.reply(false).await.unwrap().status, 200);
    stage.executed_once("one").await;
    // It may be asked for again.
    let mut line = Line::connect(&stage.control).await.unwrap();
    let (resting, _) = offered(&mut line).await;
    taken(&mut line).await;
    assert_eq!(resume(&mut line, &resting[0]).await, Answer::Done);
    drop(resting);
    assert_eq!(
        client.ask("GET", "/a", "two", "").await.unwrap().status,
        200
    );
}

#[tokio::test]
async fn what_a_front_does_not_know_is_refused() {
    let stage = Stage::new(PATIENCE, None).await;
    let mut client = stage.client().await;
    assert_eq!(
        client.ask("GET", "/a", "one", "").await.unwrap().status,
        200
    );
    let mut line = Line::connect(&stage.control).await.unwrap();
    let (mut resting, _) = offered(&mut line).await;
    taken(&mut line).await;
    let mut one = resting.pop().unwrap();
    let bytes = Stage::of(PATIENCE, None, Mode::Tcp, proxy::Options::default()).await;
    let mut other = Line::connect(&bytes.control).await.unwrap();
    let answer = resume(&mut other, &one).await;
    assert!(
        matches!(&answer, Answer::Refused(why) if why.contains("mode")),
        "{answer:?}"
    );
    one.state = "{}".to_owned();
    let answer = resume(&mut line, &one).await;
    assert!(
        matches!(&answer, Answer::Refused(why) if why.contains("read")),
        "{answer:?}"
    );
}
