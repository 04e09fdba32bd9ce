//! Messages and contents, whole and not.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWriteExt as _, ReadBuf};
use tokio::sync::Semaphore;

use super::super::frame::{self, CHUNK_HEAD, CHUNK_MAX, FrameKind, MESSAGE_MAX, Total};
use super::super::wire;
use super::handshakes::greeted;
use super::*;

/// Bytes that are half noise.
fn bytes(length: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(11);
    (0..length)
        .map(|at| if at / 512 % 2 == 0 { rng.u8(..) } else { 7 })
        .collect()
}

fn chunk(raw: &[u8]) -> Vec<u8> {
    let mut buffer = vec![0; CHUNK_HEAD];
    buffer.extend(raw);
    frame::seal(buffer, false)
}

async fn linked(fleet: &Fleet, keeper: Keeper) -> (Link, Agent) {
    let there = agent_with(fleet.host("b"), None, keeper, Patience::default()).await;
    let link = Link::connect(&fleet.host("c"), &name("b"), &there.address, BOUND)
        .await
        .unwrap();
    (link, there)
}

/// What is lent comes with its answer, as often as it is asked for; what is refused or is too much ends nothing.
#[tokio::test]
async fn memory_that_is_lent_comes_behind_its_answer() {
    let fleet = Fleet::begin();
    let of = |app: &str| Move {
        app: app.parse().unwrap(),
        epoch: 3,
    };
    let asked = |pages: &[u64]| Request::Lend {
        of: of("web"),
        pages: pages
            .iter()
            .map(|start| Pages {
                start: *start,
                len: 1,
            })
            .collect(),
    };
    let half = CHUNK_MAX / 2;
    let keeper = Keeper {
        lends: Some(half),
        ..Keeper::default()
    };
    let (mut link, _there) = linked(&fleet, keeper).await;
    for _ in 0..2 {
        let lent = link.fetch(&asked(&[7, 9]), BOUND).await.unwrap().unwrap();
        assert_eq!(lent.len(), CHUNK_MAX);
        assert!(lent[..half].iter().all(|byte| *byte == 7));
        assert!(lent[half..].iter().all(|byte| *byte == 9));
        let refused = link.fetch(&asked(&[1, 2, 3]), BOUND).await.unwrap();
        let Err(Answer::Refused(refused)) = refused else {
            panic!("more than can be lent at once came");
        };
        assert_eq!(refused.why, Why::Unfit);
        assert_eq!(
            link.fetch(&asked(&[]), BOUND).await.unwrap(),
            Ok(Vec::new())
        );
    }
    let (mut link, _there) = linked(&fleet, Keeper::default()).await;
    for _ in 0..2 {
        let refused = link.fetch(&asked(&[1]), BOUND).await.unwrap();
        assert!(matches!(refused, Err(Answer::Refused(refused)) if refused.why == Why::Unknown));
    }
    assert!(matches!(
        link.ask(&question(), BOUND).await,
        Ok(Answer::State(_))
    ));
}

/// Nobody but the listener hears of what is sent to be measured, and the link is good for more.
#[tokio::test]
async fn what_is_sent_to_be_measured_is_read_and_forgotten() {
    let fleet = Fleet::begin();
    let (mut link, there) = linked(&fleet, Keeper::default()).await;
    assert!(link.measures());
    let sent = bytes(3 * CHUNK_MAX + 17);
    for _ in 0..2 {
        let progress = Progress::default();
        let sending = sending(&progress, Compress::Never);
        let mut source = sent.as_slice();
        let answer = link.send(&Request::Measure, &mut source, sending);
        let bytes = u64::try_from(sent.len()).unwrap();
        assert_eq!(answer.await.unwrap(), Answer::Taken { bytes });
    }
    assert_eq!(there.keeper.asked(), 0);
}

#[tokio::test]
async fn contents_of_any_length_come_whole() {
    let fleet = Fleet::begin();
    let (mut link, there) = linked(&fleet, Keeper::default()).await;
    let lengths = [
        0,
        1,
        CHUNK_MAX - 1,
        CHUNK_MAX,
        CHUNK_MAX + 1,
        3 * CHUNK_MAX + 17,
    ];
    for compress in [Compress::Measured, Compress::Never, Compress::Always] {
        for length in lengths {
            let sent = bytes(length);
            let all = u64::try_from(length).unwrap();
            let progress = Progress::default();
            let sending = sending(&progress, compress);
            let answer = link
                .send(&content(Some(all)), &mut sent.as_slice(), sending)
                .await
                .unwrap();
            assert_eq!(
                answer,
                Answer::Taken { bytes: all },
                "{compress:?} {length}"
            );
            let kept = there
                .keeper
                .contents
                .lock()
                .unwrap()
                .pop()
                .unwrap()
                .unwrap();
            assert!(kept == sent, "{compress:?} {length}");
            assert_eq!(progress.bytes(), all);
            match compress {
                Compress::Always if length > 1000 => assert!(progress.wire_bytes() < all * 2 / 3),
                Compress::Never => assert!(progress.wire_bytes() >= all),
                _ => {}
            }
            assert!(length == 0 || progress.rate().unwrap() > 0.0);
        }
    }
    // The link is still good for messages.
    assert!(matches!(
        link.ask(&question(), BOUND).await.unwrap(),
        Answer::State(_)
    ));
}

#[tokio::test]
async fn a_frame_that_is_too_long_ends_the_connection() {
    let fleet = Fleet::begin();
    let there = agent(fleet.host("b")).await;
    let c = fleet.host("c");
    for (kind, longest) in [
        (FrameKind::Message, MESSAGE_MAX),
        (FrameKind::Chunk, CHUNK_MAX + CHUNK_HEAD),
    ] {
        let mut stream = greeted(&c, "b", &there.address).await;
        let length = u32::try_from(longest + 1).unwrap();
        stream.write_all(&frame::head(kind, length)).await.unwrap();
        stream.flush().await.unwrap();
        let answer = wire::receive::<Answer, _>(&mut stream, "b", "answer").await;
        assert!(matches!(answer, Ok(None) | Err(_)), "{answer:?}");
    }
    assert_eq!(there.keeper.asked(), 0);
    // The side that would send one says so, and is not broken by it.
    let (mut link, there) = linked(&fleet, Keeper::default()).await;
    let long = Request::Prepare {
        of: Move {
            app: "web".parse().unwrap(),
            epoch: 1,
        },
        contents: vec![
            Content {
                name: "x".repeat(1000),
                kind: "file".to_owned()
            };
            2000
        ],
    };
    let error = link.ask(&long, BOUND).await.unwrap_err();
    assert!(
        error.to_string().contains("bytes, where 1048576 may be"),
        "{error}"
    );
    assert_eq!(there.keeper.asked(), 0);
}

/// What the other side makes of frames that were written by hand after a content was announced.
async fn check_frames(frames: &[(FrameKind, Vec<u8>)], expected: Kind, words: &[&str]) {
    let fleet = Fleet::begin();
    let there = agent(fleet.host("b")).await;
    let mut stream = greeted(&fleet.host("c"), "b", &there.address).await;
    let asked = wire::Asked {
        within_ms: 10_000,
        request: content(Some(2000)),
        by: Transport::Tcp,
    };
    wire::send(&mut stream, &asked).await.unwrap();
    for (kind, payload) in frames {
        wire::write(&mut stream, *kind, payload).await.unwrap();
    }
    stream.flush().await.unwrap();
    drop(stream);
    until("it was judged", || {
        !there.keeper.contents.lock().unwrap().is_empty()
    })
    .await;
    let (kind, text) = there
        .keeper
        .contents
        .lock()
        .unwrap()
        .pop()
        .unwrap()
        .unwrap_err();
    assert_eq!(kind, expected, "{text}");
    for word in words.iter().chain(&["c at 127.0.0.1"]) {
        assert!(text.contains(word), "{text}");
    }
}

#[tokio::test]
async fn what_is_cut_is_not_taken_for_whole() {
    let half = (FrameKind::Chunk, chunk(&[1; 1000]));
    let end = |bytes, chunks| (FrameKind::End, frame::end(Total { bytes, chunks }));
    let cut = ["the connection ended"];
    check_frames(
        std::slice::from_ref(&half),
        Kind::Cut,
        &["after 1000 of 2000 bytes"],
    )
    .await;
    check_frames(&[], Kind::Cut, &cut).await;
    // An end that comes too early, and one that counts what did not come.
    check_frames(
        &[half.clone(), end(1000, 1)],
        Kind::Cut,
        &["after 1000 of 2000"],
    )
    .await;
    check_frames(
        &[half.clone(), end(2000, 2)],
        Kind::Cut,
        &["after 1000 of 2000"],
    )
    .await;
    let more = [half.clone(), half.clone(), half.clone()];
    check_frames(&more, Kind::Cut, &["more came", "of 2000"]).await;
    let gave_up = (FrameKind::Abort, b"the disk is gone".to_vec());
    check_frames(
        &[half, gave_up],
        Kind::Cut,
        &["gave up after 1000", "the disk is gone"],
    )
    .await;
}

#[tokio::test]
async fn a_corrupted_chunk_is_refused() {
    let mut changed = chunk(&[1; 1000]);
    changed[500] ^= 4;
    check_frames(&[(FrameKind::Chunk, changed)], Kind::Corrupt, &["checksum"]).await;
    let mut longer = chunk(&[1; 1000]);
    longer.push(1);
    check_frames(
        &[(FrameKind::Chunk, longer)],
        Kind::Corrupt,
        &["not as long as it says"],
    )
    .await;
    let message = (FrameKind::Message, b"{}".to_vec());
    check_frames(&[message], Kind::Corrupt, &["in the middle"]).await;
}

/// Never ends, or fails after so many bytes.
struct Source {
    left: Option<usize>,
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let take = buffer.remaining().min(self.left.unwrap_or(usize::MAX));
        if take == 0 {
            return Poll::Ready(Err(io::Error::other("the process is gone")));
        }
        buffer.initialize_unfilled_to(take).fill(3);
        buffer.advance(take);
        self.left = self.left.map(|left| left - take);
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_source_that_fails_is_told_to_both() {
    let fleet = Fleet::begin();
    let (mut link, there) = linked(&fleet, Keeper::default()).await;
    let progress = Progress::default();
    let mut source = Source {
        left: Some(3 * CHUNK_MAX / 2),
    };
    let sending = sending(&progress, Compress::Never);
    let error = link
        .send(&content(None), &mut source, sending)
        .await
        .unwrap_err();
    check(&error, Kind::Local, &["b at", "the process is gone"]);
    assert!(link.is_broken());
    until("it was judged", || {
        !there.keeper.contents.lock().unwrap().is_empty()
    })
    .await;
    let (kind, text) = there
        .keeper
        .contents
        .lock()
        .unwrap()
        .pop()
        .unwrap()
        .unwrap_err();
    assert_eq!(kind, Kind::Cut, "{text}");
    assert!(
        text.contains("gave up") && text.contains("the process is gone"),
        "{text}"
    );
}

#[tokio::test]
async fn who_cannot_take_it_in_says_so_before_its_end() {
    let fleet = Fleet::begin();
    let keeper = Keeper {
        refuses: true,
        ..Keeper::default()
    };
    let (mut link, _there) = linked(&fleet, keeper).await;
    let progress = Progress::default();
    let mut source = Source { left: None };
    let request = content(None);
    let sent = link.send(&request, &mut source, sending(&progress, Compress::Never));
    let answer = tokio::time::timeout(BOUND, sent).await.unwrap().unwrap();
    assert!(
        matches!(answer, Answer::Refused(Refused { why: Why::Full, .. })),
        "{answer:?}"
    );
    assert!(!link.is_usable());
}

/// Its sender kept the link, on which what was not read lay before what it asked next: that failed once.
#[tokio::test]
async fn a_link_whose_content_was_refused_is_not_used_again() {
    let fleet = Fleet::begin();
    let keeper = Keeper {
        refuses: true,
        ..Keeper::default()
    };
    let (mut link, _there) = linked(&fleet, keeper).await;
    assert!(link.is_usable());
    let progress = Progress::default();
    // It is sent to its end before anybody can have refused it.
    let sent = bytes(CHUNK_MAX / 2);
    let all = u64::try_from(sent.len()).unwrap();
    let answer = link
        .send(
            &content(Some(all)),
            &mut sent.as_slice(),
            sending(&progress, Compress::Never),
        )
        .await
        .unwrap();
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    assert_eq!(progress.bytes(), all);
    assert!(!link.is_usable());
    let error = link.ask(&question(), BOUND).await.unwrap_err();
    assert_eq!(error.kind, Kind::Cut, "{error}");
}

#[tokio::test]
async fn who_does_not_take_it_in_holds_the_sender_up() {
    let fleet = Fleet::begin();
    let hold = Arc::new(Semaphore::new(0));
    let keeper = Keeper {
        hold: Some(Arc::clone(&hold)),
        ..Keeper::default()
    };
    let (mut link, there) = linked(&fleet, keeper).await;
    let all = 64 * CHUNK_MAX;
    let (sent, progress) = (vec![5; all], Progress::default());
    let bytes = u64::try_from(all).unwrap();
    let request = content(Some(bytes));
    let mut source = sent.as_slice();
    let send = link.send(&request, &mut source, sending(&progress, Compress::Never));
    tokio::pin!(send);
    // Sockets take some megabytes, and then nothing more.
    let early = tokio::time::timeout(Duration::from_millis(500), &mut send).await;
    assert!(early.is_err(), "nobody took it");
    assert!(progress.bytes() < bytes / 2, "{}", progress.bytes());
    hold.add_permits(1);
    assert_eq!(send.await.unwrap(), Answer::Taken { bytes });
    assert!(
        there
            .keeper
            .contents
            .lock()
            .unwrap()
            .pop()
            .unwrap()
            .unwrap()
            == sent
    );
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_unknown_and_not_waited_for() {
    let fleet = Fleet::begin();
    let keeper = Keeper {
        silent: true,
        ..Keeper::default()
    };
    let (mut link, there) = linked(&fleet, keeper).await;
    let error = link
        .ask(&question(), Duration::from_millis(200))
        .await
        .unwrap_err();
    assert!(matches!(error.kind, Kind::Slow | Kind::Cut), "{error}");
    assert_eq!(there.keeper.asked(), 1);
    // An answer that comes late is not taken for that of something else.
    let error = link.ask(&question(), BOUND).await.unwrap_err();
    check(&error, Kind::Cut, &["b at"]);
}

#[tokio::test]
async fn a_sender_that_stalls_is_cut() {
    let fleet = Fleet::begin();
    let patience = Patience {
        stall: Duration::from_millis(200),
        ..Patience::default()
    };
    let there = agent_with(fleet.host("b"), None, Keeper::default(), patience).await;
    let mut stream = greeted(&fleet.host("c"), "b", &there.address).await;
    let asked = wire::Asked {
        within_ms: 10_000,
        request: content(Some(2000)),
        by: Transport::Tcp,
    };
    wire::send(&mut stream, &asked).await.unwrap();
    until("it was judged", || {
        !there.keeper.contents.lock().unwrap().is_empty()
    })
    .await;
    let (kind, text) = there
        .keeper
        .contents
        .lock()
        .unwrap()
        .pop()
        .unwrap()
        .unwrap_err();
    assert_eq!(kind, Kind::Slow, "{text}");
    assert!(text.contains("wait for the next chunk"), "{text}");
}

#[tokio::test]
async fn a_host_that_goes_away_in_the_middle_is_noticed() {
    let fleet = Fleet::begin();
    let hold = Arc::new(Semaphore::new(0));
    let keeper = Keeper {
        hold: Some(hold),
        ..Keeper::default()
    };
    let (mut link, there) = linked(&fleet, keeper).await;
    let progress = Progress::default();
    let mut source = Source { left: None };
    let request = content(None);
    let send = link.send(&request, &mut source, sending(&progress, Compress::Never));
    let goes = async {
        until("it is on its way", || progress.bytes() > 0).await;
        drop(there);
    };
    let (error, ()) = tokio::join!(send, goes);
    check(
        &error.unwrap_err(),
        Kind::Cut,
        &["b at", "ended in the middle"],
    );
}
