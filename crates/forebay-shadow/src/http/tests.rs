use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;
use crate::switchboard::{Gate, Instance};

/// A front with an instance that nobody has started.
fn shared() -> Arc<Shared> {
    let instance = Instance {
        app: "a".to_owned(),
        address: "/nonexistent/socket".parse().unwrap(),
        elsewhere: None,
    };
    let board = Switchboard::new(vec![instance], 0, 1);
    board.change(|routing| routing.gate = Gate::Open);
    let patience = Duration::from_millis(200);
    Arc::new(Shared::new(Arc::new(board), Options::default(), patience).unwrap())
}

/// What a client gets that sends some bytes and no more, and after how long. Time passes as soon
/// as everybody waits.
async fn said(bytes: &[u8]) -> (String, Duration) {
    let (mut client, stream) = UnixStream::pair().unwrap();
    let began = Instant::now();
    client.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let shared = shared();
    let (served, read) = tokio::join!(serve(&shared, Stream::Unix(stream), None), async {
        let read = client.read_to_end(&mut answer).await;
        drop(client);
        read
    });
    served.unwrap();
    read.unwrap();
    (String::from_utf8(answer).unwrap(), began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_slow_is_told_so_in_bounded_time() {
    let cases: [(&[u8], &str, u64); 5] = [
        (b"", "", 75),
        (b"GET / HT", "HTTP/1.1 408 Request Timeout\r\n", 10),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nA",
            "HTTP/1.1 408 Request Timeout\r\n",
            10,
        ),
        (
            b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc",
            "HTTP/1.1 408 Request Timeout\r\n",
            30,
        ),
        // Answered, and then idle.
        (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "HTTP/1.1 503 Service Unavailable\r\n",
            75,
        ),
    ];
    for (bytes, line, seconds) in cases {
        let (answer, after) = said(bytes).await;
        assert!(answer.starts_with(line), "{answer}");
        assert_eq!(answer.is_empty(), line.is_empty(), "{answer}");
        let bound = Duration::from_secs(seconds);
        let text = String::from_utf8_lossy(bytes);
        assert!(
            after >= bound && after < bound + Duration::from_secs(2),
            "{text}: {after:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_http2_without_a_request_ends_in_bounded_time() {
    const GOAWAY: u8 = 7;
    let cases: [(&[u8], u64); 3] = [
        // It never says its settings, its settings stop short, a request's head has no end.
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 76),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04", 76),
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\0\0\0\0\x01\x82",
            76,
        ),
    ];
    for (bytes, seconds) in cases {
        let (mut client, stream) = UnixStream::pair().unwrap();
        let began = Instant::now();
        client.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let shared = shared();
        let (served, read) = tokio::join!(
            async { serve(&shared, Stream::Unix(stream), None).await },
            client.read_to_end(&mut answer)
        );
        served.unwrap();
        read.unwrap();
        let after = began.elapsed();
        let bound = Duration::from_secs(seconds);
        assert!(after + Duration::from_secs(2) > bound && after < bound + Duration::from_secs(1));
        let mut rest = answer.as_slice();
        let mut kinds = Vec::new();
        while let Some((head, after)) = rest.split_first_chunk::<9>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            kinds.push(head[3]);
            rest = &after[usize::try_from(length).unwrap()..];
        }
        assert!(kinds.contains(&GOAWAY), "{kinds:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_is_bounded_as_a_whole() {
    let (mut client, stream) = UnixStream::pair().unwrap();
    let began = Instant::now();
    let shared = shared();
    let trickle = async {
        let (mut read, mut write) = client.split();
        let mut answer = String::new();
        let send = async {
            write.write_all(b"GET / HTTP/1.1\r\nA: ").await.unwrap();
            // Each byte comes well within any time for one.
            while write.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        tokio::select! {
            () = send => {}
            read = read.read_to_string(&mut answer) => drop(read.unwrap()),
        }
        answer
    };
    let (_, answer) = tokio::join!(serve(&shared, Stream::Unix(stream), None), trickle);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(13));
}

#[test]
fn a_route_is_a_method_and_the_first_part_of_a_path() {
    let shared = shared();
    let mut route = Route::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let (stream, _other) = UnixStream::pair().unwrap();
    let mut client = Client::new(Link::Plain(Stream::Unix(stream)), None);
    let mut of = |target: &str, method: &str| {
        client.buffer = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes();
        let request = head::request(&client.buffer, &mut Vec::new()).unwrap();
        let number = route.of(&shared.board, &client, &request);
        (number, route.name.clone())
    };
    let long = format!("/{}", "a".repeat(200));
    for (method, target, number, name) in [
        ("GET", "/", 0, "GET /"),
        ("GET", "/?q=1", 0, "GET /"),
        ("GET", "/users/7/x", 1, "GET /users"),
        ("GET", "/users?q", 1, "GET /users"),
        ("POST", "/users/7", 2, "POST /users"),
        ("GET", "/users", 1, "GET /users"),
        ("OPTIONS", "*", 3, "OPTIONS *"),
    ] {
        assert_eq!(of(target, method), (number, name.to_owned()), "{target}");
    }
    assert_eq!(of(&long, "GET").1.len(), "GET /".len() + SEGMENT_MAX);
}

/// The status of each answer to bytes that come in pieces, after which the client asks no more.
fn statuses(pieces: &[&[u8]]) -> Vec<String> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (mut client, stream) = UnixStream::pair().unwrap();
        let shared = shared();
        let mut answers = Vec::new();
        let client = async {
            for piece in pieces {
                // The front may have refused the rest.
                if client.write_all(piece).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            client.shutdown().await.ok();
            client.read_to_end(&mut answers).await.ok();
        };
        let (served, ()) = tokio::join!(serve(&shared, Stream::Unix(stream), None), client);
        served.ok();
        let answers = String::from_utf8(answers).unwrap();
        let lines = answers.lines().filter(|line| line.starts_with("HTTP/1.1 "));
        lines.map(str::to_owned).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn pieces_are_answered_like_the_whole(
        bytes in head::tests::bytes(), cuts in proptest::collection::vec(1_usize..30, 0..12),
    ) {
        let whole = statuses(&[&bytes]);
        let mut pieces = Vec::new();
        let mut rest = bytes.as_slice();
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        prop_assert_eq!(&statuses(&pieces), &whole);
        // At most the last one is a refusal: what follows it cannot be understood.
        for status in whole.iter().rev().skip(1) {
            prop_assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
        }
    }
}
