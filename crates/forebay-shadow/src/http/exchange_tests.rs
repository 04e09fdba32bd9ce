use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::super::asking::{Done, Terms, exchange};
use super::super::link::Link;
use super::*;
use crate::flights::Flights;
use crate::stream::Stream;
use crate::switchboard::{Assigned, Gate, Routing};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// One exchange of a request that was read, between a client and an instance.
async fn ask(
    head: &str,
    client: UnixStream,
    instance: UnixStream,
    routing: watch::Receiver<Routing>,
) -> Result<Done, Fault> {
    let flights = Flights::default();
    let ticket = flights.begin(0, flights.route("/"));
    ask_with(ticket, head, client, instance, routing).await
}

async fn ask_with(
    ticket: Ticket<'_>,
    head: &str,
    client: UnixStream,
    instance: UnixStream,
    mut routing: watch::Receiver<Routing>,
) -> Result<Done, Fault> {
    let mut client = Client::new(Link::Plain(Stream::Unix(client)), None);
    let mut instance = Stream::Unix(instance);
    client.buffer.extend_from_slice(head.as_bytes());
    let request = head::request(head.as_bytes(), &mut Vec::new()).unwrap();
    let mut upload = Upload::of(&client, &request).unwrap();
    let mut download = Download::new();
    let ends = Ends {
        client: &mut client,
        instance: &mut instance,
        upload: &mut upload,
        download: &mut download,
    };
    let terms = Terms {
        assigned: Assigned { slot: 0, epoch: 1 },
        within: None,
    };
    exchange(ends, &request, &mut routing, terms, ticket).await
}

/// The first instance serves.
fn serves() -> (watch::Sender<Routing>, watch::Receiver<Routing>) {
    let mut open = Routing::new(0, 1);
    open.gate = Gate::Open;
    watch::channel(open)
}

/// What comes of a request whose instance has written some bytes and hangs, and is then lost: how
/// the exchange ends, and what the client has by then.
async fn lost_after(written: &[&[u8]]) -> (Result<Done, Fault>, Vec<u8>) {
    let (mut asker, client) = UnixStream::pair().unwrap();
    let (mut hanging, instance) = UnixStream::pair().unwrap();
    let (change, routing) = serves();
    let asked = ask(REQUEST, client, instance, routing);
    let story = async {
        hanging.read_exact(&mut [0; REQUEST.len()]).await.unwrap();
        let (last, first) = written.split_last().unwrap();
        for piece in first {
            hanging.write_all(piece).await.unwrap();
            // The client has it when it is passed on.
            asker.read_exact(&mut vec![0; piece.len()]).await.unwrap();
        }
        // The last piece and the loss are there before the front looks again.
        let (mut lost, hanging) = (change, hanging.into_std().unwrap());
        std::io::Write::write_all(&mut &hanging, last).unwrap();
        lost_now(&mut lost);
        (lost, hanging)
    };
    let (outcome, open) = tokio::join!(asked, story);
    drop(open);
    let mut got = Vec::new();
    asker.read_to_end(&mut got).await.unwrap();
    (outcome, got)
}

fn lost_now(routing: &mut watch::Sender<Routing>) {
    routing.send_modify(|routing| {
        routing.epoch = 2;
        routing.primary = 1;
        routing.lose(0, 2);
    });
}

#[tokio::test]
async fn what_a_lost_instance_had_answered_in_full_is_taken() {
    let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let (outcome, got) = lost_after(&[whole]).await;
    assert!(outcome.is_ok_and(|done| done.keep));
    assert_eq!(got, whole);
    let chunked: [&[u8]; 2] = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
        b"1\r\nb\r\n0\r\n\r\n",
    ];
    let (outcome, got) = lost_after(&chunked).await;
    assert!(outcome.is_ok());
    assert_eq!(got, chunked[1]);
}

#[tokio::test]
async fn a_part_of_an_answer_is_not_passed_on_if_it_can_be_had_whole() {
    for part in [
        b"HTTP/1.1 200".as_slice(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    ] {
        let (outcome, got) = lost_after(&[part]).await;
        let text = String::from_utf8_lossy(part);
        assert!(
            matches!(outcome, Err(Fault::Replaced)),
            "{text}: {outcome:?}"
        );
        assert!(!got.windows(3).any(|bytes| bytes == b"200"), "{text}");
    }
}

#[tokio::test]
async fn a_large_body_in_a_pipe_arrives_in_order() {
    let length = 600_000;
    let body: Vec<u8> = (0_u32..length)
        .map(|place| (place % 251).to_le_bytes()[0])
        .collect();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    let (first, last) = body.split_at(550_000);
    let (outcome, got) = lost_after(&[head.as_bytes(), first, last]).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert!(got == last);
    // Of one that is not complete, the client has what came.
    let (outcome, _) = lost_after(&[head.as_bytes(), first, &last[1..]]).await;
    assert!(matches!(outcome, Err(Fault::Replaced)), "{outcome:?}");
}

/// An instance that read nothing for long cost the client its request: when it read on, the time for the
/// client's next byte was over.
#[tokio::test(start_paused = true)]
async fn what_an_instance_takes_is_not_counted_against_the_client() {
    // It is read at once, and far more than the kernel takes for the instance.
    const PART: usize = 60 * 1024;
    let (asker, client) = UnixStream::pair().unwrap();
    let (mut slow, instance) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&instance, 4096).unwrap();
    let head = format!(
        "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        2 * PART
    );
    let (_change, routing) = serves();
    let (mut answers, mut asks) = asker.into_split();
    let (go_on, mut goes_on) = watch::channel(false);
    let sender = async {
        asks.write_all(&vec![b'x'; PART]).await.unwrap();
        goes_on.wait_for(|goes_on| *goes_on).await.unwrap();
        // It takes a while, and less than it may.
        tokio::time::sleep(STEP_BOUND / 2).await;
        asks.write_all(&vec![b'x'; PART]).await.unwrap();
    };
    let reader = async {
        tokio::time::sleep(3 * STEP_BOUND).await;
        slow.read_exact(&mut vec![0; head.len() + PART])
            .await
            .unwrap();
        go_on.send(true).unwrap();
        slow.read_exact(&mut vec![0; PART]).await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        slow.write_all(answer).await.unwrap();
        answers
            .read_exact(&mut vec![0; answer.len()])
            .await
            .unwrap();
    };
    let asked = async {
        let asked = ask(&head, client, instance, routing).await;
        assert!(asked.is_ok(), "{asked:?}");
    };
    tokio::join!(asked, sender, reader);
}

/// And one that brings nothing, to an instance that reads, is too slow.
#[tokio::test(start_paused = true)]
async fn a_client_that_stops_in_a_large_body_is_too_slow() {
    let (mut asker, client) = UnixStream::pair().unwrap();
    let (mut fast, instance) = UnixStream::pair().unwrap();
    let head = "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n";
    let (_change, routing) = serves();
    let began = tokio::time::Instant::now();
    let asked = ask(head, client, instance, routing);
    let story = async {
        asker.write_all(b"some").await.unwrap();
        fast.read_exact(&mut vec![0; head.len() + 4]).await.unwrap();
    };
    let (asked, ()) = tokio::join!(asked, story);
    assert!(
        matches!(asked, Err(Fault::ClientBad(bad)) if bad.status == 408),
        "{asked:?}"
    );
    let after = began.elapsed();
    assert!(after >= STEP_BOUND && after < 2 * STEP_BOUND, "{after:?}");
}

/// A stream of events, or a large answer that a client reads slowly, made its instance seem slow once it
/// was over, and was no request before.
#[tokio::test]
async fn an_answer_is_counted_when_it_begins() {
    let (mut asker, client) = UnixStream::pair().unwrap();
    let (mut streams, instance) = UnixStream::pair().unwrap();
    let (_change, routing) = serves();
    let flights = Flights::default();
    let ticket = flights.begin(0, flights.passing_route("/"));
    let counted = || {
        let answers = flights.answers(0);
        (answers.count(), answers.errors())
    };
    let asked = ask_with(ticket, REQUEST, client, instance, routing);
    let story = async {
        streams.read_exact(&mut [0; REQUEST.len()]).await.unwrap();
        assert_eq!(counted(), (0, 0));
        let begun = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
        streams.write_all(begun).await.unwrap();
        asker.read_exact(&mut vec![0; begun.len()]).await.unwrap();
        assert_eq!(counted(), (1, 1));
        streams.write_all(b"0\r\n\r\n").await.unwrap();
    };
    let (asked, ()) = tokio::join!(asked, story);
    assert!(asked.is_ok(), "{asked:?}");
    assert_eq!(counted(), (1, 1));
}

/// An instance cannot answer what a client has not sent yet.
#[tokio::test]
async fn the_time_of_an_answer_begins_with_the_end_of_its_request() {
    let (mut asker, client) = UnixStream::pair().unwrap();
    let (mut fast, instance) = UnixStream::pair().unwrap();
    let (_change, routing) = serves();
    let flights = Flights::default();
    let ticket = flights.begin(0, flights.passing_route("/"));
    let hour = Duration::from_secs(3600);
    ticket.set_age(hour);
    let head = "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n";
    let asked = ask_with(ticket, head, client, instance, routing);
    let story = async {
        asker.write_all(b"late").await.unwrap();
        fast.read_exact(&mut vec![0; head.len() + 4]).await.unwrap();
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        fast.write_all(answer).await.unwrap();
        asker.read_exact(&mut vec![0; answer.len()]).await.unwrap();
    };
    let (asked, ()) = tokio::join!(asked, story);
    assert!(asked.is_ok(), "{asked:?}");
    let took = flights.answers(0).quantile(1.0).unwrap();
    assert!(took < hour / 2, "{took:?}");
}
