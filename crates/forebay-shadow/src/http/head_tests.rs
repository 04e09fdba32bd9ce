use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Result<Request, Bad> {
    request(text.as_bytes(), &mut Vec::new())
}

fn passed_on(text: &str, lines: &str) -> String {
    let mut cuts = Vec::new();
    let mut buffer = text.as_bytes().to_vec();
    let length = Search::default().find(&buffer).unwrap().unwrap();
    request(&buffer[..length], &mut cuts).unwrap();
    let new = rewrite(&mut buffer, length, &mut cuts, lines.as_bytes());
    assert_eq!(
        buffer.len() - new,
        text.len() - length,
        "the body moves along"
    );
    String::from_utf8(buffer).unwrap()
}

#[test]
fn a_request_is_read() {
    let get = read("GET /a/b?c HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(get.target, 4..10);
    assert!(get.keep && get.modern && get.body.is_done() && get.method == Method::Idempotent);
    let post = read(
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\nIdempotency-Key: k\r\n\r\n",
    );
    let post = post.unwrap();
    assert_eq!((post.body, post.method), (Body::Length(3), Method::Other));
    assert!(post.keyed && !post.keep);
    let chunked =
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\nExpect: 100-continue\r\n\r\n";
    let chunked = read(chunked).unwrap();
    assert!(chunked.expects && chunked.body == Body::chunked());
    let old = read("GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(!old.modern && !old.keep);
    assert!(
        read("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
            .unwrap()
            .keep
    );
    let socket = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert!(read(socket).unwrap().upgrade);
    let hidden = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    assert!(!read(hidden).unwrap().upgrade);
}

#[test]
fn what_may_be_read_in_two_ways_is_refused() {
    let cases = [
        (
            "both a length and a coding",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            400,
        ),
        (
            "two lengths",
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            400,
        ),
        ("a list of lengths", "Content-Length: 1, 1\r\n", 400),
        ("a signed length", "Content-Length: +1\r\n", 400),
        ("an empty length", "Content-Length:\r\n", 400),
        (
            "a huge length",
            "Content-Length: 99999999999999999999\r\n",
            400,
        ),
        ("two codings", "Transfer-Encoding: gzip, chunked\r\n", 501),
        (
            "a coding twice",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            400,
        ),
        ("an unknown coding", "Transfer-Encoding: xchunked\r\n", 501),
        ("a folded line", "A: 1\r\n b\r\n", 400),
        ("a space before the colon", "Content-Length : 1\r\n", 400),
        ("a bare line feed", "A: 1\nB: 2\r\n", 400),
        ("a bare return", "A: 1\rB: 2\r\n", 400),
        ("a zero byte", "A: \0\r\n", 400),
        ("two hosts", "Host: y\r\n", 400),
        ("no colon", "A\r\n", 400),
    ];
    for (name, fields, status) in cases {
        let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        assert_eq!(read(&text).map_err(|bad| bad.status), Err(status), "{name}");
    }
    for (text, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400),
        ("GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ("GET /\r\n\r\n", 400),
        ("CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ] {
        assert_eq!(read(text).map_err(|bad| bad.status), Err(status), "{text}");
    }
    let many = format!(
        "GET / HTTP/1.1\r\nHost: x\r\n{}\r\n",
        "A: 1\r\n".repeat(FIELDS_MAX)
    );
    assert_eq!(read(&many).map_err(|bad| bad.status), Err(431));
    let long = vec![b'a'; HEAD_BYTES_MAX + 1];
    assert_eq!(
        Search::default().find(&long).map_err(|bad| bad.status),
        Err(431)
    );
}

#[test]
fn what_concerns_the_connection_is_not_passed_on() {
    let cases = [
        (
            "A: 1\r\nConnection: keep-alive\r\nB: 2\r\n",
            "",
            "A: 1\r\nB: 2\r\n",
        ),
        (
            "Connection: close, A\r\nA: 1\r\na: 2\r\nB: 2\r\n",
            "",
            "B: 2\r\n",
        ),
        (
            "Keep-Alive: 5\r\nTE: trailers\r\nProxy-Connection: x\r\n",
            "C: 3\r\n",
            "C: 3\r\n",
        ),
        (
            "Connection: host, content-length\r\nContent-Length: 2\r\n",
            "",
            "Content-Length: 2\r\n",
        ),
        (
            "Content-Length: 2\r\nContent-Length: 2\r\n",
            "",
            "Content-Length: 2\r\n",
        ),
        ("Upgrade: x\r\nA: 1\r\n", "", "A: 1\r\n"),
        (
            "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n",
            "",
            "",
        ),
        ("A: 1\r\n", "B: 2\r\n", "A: 1\r\nB: 2\r\n"),
    ];
    for (fields, lines, left) in cases {
        let text = format!("PUT / HTTP/1.1\r\nHost: x\r\n{fields}\r\nhi");
        let expected = format!("PUT / HTTP/1.1\r\nHost: x\r\n{left}\r\nhi");
        assert_eq!(passed_on(&text, lines), expected, "{fields}");
    }
}

#[test]
fn a_response_has_the_body_that_it_says() {
    let read = |text: &str, asked| response(text.as_bytes(), asked, &mut Vec::new());
    let body = |text: &str, asked| read(text, asked).unwrap().body;
    let other = Method::Other;
    let sized = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(body(sized, other), Body::Length(5));
    assert_eq!(body(sized, Method::Head), Body::Length(0));
    assert_eq!(
        body("HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n", other),
        Body::Length(0)
    );
    assert_eq!(body("HTTP/1.1 204 x\r\n\r\n", other), Body::Length(0));
    assert_eq!(body("HTTP/1.1 200\r\n\r\n", other), Body::Close);
    assert_eq!(
        body("HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n", other),
        Body::chunked()
    );
    assert!(
        !read("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", other)
            .unwrap()
            .keep
    );
    assert!(!read("HTTP/1.1 200 OK\r\n\r\n", other).unwrap().keep);
    assert!(read(sized, other).unwrap().keep);
    for bad in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 5\n\r\n",
        "HTTP/1.1 2 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
    ] {
        assert!(read(bad, other).is_err(), "{bad}");
    }
}

/// Bytes that heads are made of, more often than others.
pub(crate) fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just(b"GET / HTTP/1.1\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\r\n\r\n".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"Host: x\r\n".to_vec()),
        Just(b"Content-Length: 3\r\n".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
        Just(b"Connection: a, close\r\n".to_vec()),
        Just(b"A: 1\r\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..8),
    ];
    proptest::collection::vec(word, 0..12).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn a_head_ends_where_it_ends_however_it_comes(
        bytes in bytes(), cuts in proptest::collection::vec(1_usize..9, 0..40),
    ) {
        let whole = Search::default().find(&bytes);
        let mut search = Search::default();
        let mut length = 0;
        let mut found = Ok(None);
        for cut in cuts.into_iter().chain([bytes.len()]) {
            length = (length + cut).min(bytes.len());
            found = search.find(&bytes[..length]);
            if found != Ok(None) {
                break;
            }
        }
        prop_assert_eq!(whole, found);
    }

    #[test]
    fn garbage_is_refused_and_what_is_passed_on_is_read_the_same(bytes in bytes()) {
        let Ok(Some(length)) = Search::default().find(&bytes) else { return Ok(()) };
        let mut cuts = Vec::new();
        let mut buffer = bytes;
        let Ok(first) = request(&buffer[..length], &mut cuts) else { return Ok(()) };
        prop_assert!(judge_part(&buffer[..length]).is_ok());
        let new = rewrite(&mut buffer, length, &mut cuts, b"x: y\r\n");
        let second = request(&buffer[..new], &mut cuts).unwrap();
        prop_assert!(cuts.is_empty());
        prop_assert_eq!((first.body, first.method, first.target), (second.body, second.method, second.target));
        prop_assert_eq!(Search::default().find(&buffer[..new]), Ok(Some(new)));
    }
}
