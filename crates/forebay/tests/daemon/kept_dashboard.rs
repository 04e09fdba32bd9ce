//! The page that the daemon keeps by itself.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;

use crate::fronts::free_port;
use crate::http::answer;
use crate::place::{PATIENCE, Place, eventually, signal};

/// The process of the page: the daemon's child that has `--kept` on its command line.
fn page(place: &Place) -> Option<u32> {
    let daemon = place.daemon_pid();
    let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap();
    let mut children = children.split_whitespace();
    let kept = children.find(|child| {
        let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == b"--kept")
    });
    kept.map(|child| child.parse().unwrap())
}

fn ask(port: u16, method: &str, uri: &str, token: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "{method} {uri} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {token}\r\ncontent-length: 0\r\n\r\n"
    )
    .unwrap();
    Some(answer(stream))
}

#[test]
fn the_daemon_keeps_a_page_with_fewer_rights_and_takes_it_away() {
    let test = "the_daemon_keeps_a_page_with_fewer_rights_and_takes_it_away";
    let Some(mut place) = Place::new(test) else {
        return;
    };
    let port = free_port();
    place.configure(&format!("[dashboard]\nlisten = \"127.0.0.1:{port}\"\n"));
    place.start();
    let file = place.path("dashboard.url");
    let address = fs::read_to_string(&file).unwrap();
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o007, 0, "others must not read it: {mode:o}");
    let head = format!("http://127.0.0.1:{port}/#token=");
    let token = address.trim().strip_prefix(&head).unwrap().to_owned();

    let well =
        |token: &str| ask(port, "GET", "/v1/status", token).is_some_and(|(code, _)| code == 200);
    eventually("the page answers", || well(&token));
    let (code, body) = ask(port, "GET", "/v1/status", "wrong").unwrap();
    assert_eq!(code, 401, "{body}");
    let (code, body) = ask(port, "POST", "/v1/pause", &token).unwrap();
    assert_eq!(code, 403, "{body}");

    // It is nobody, and no secret is where others look.
    let first = page(&place).unwrap();
    let status = fs::read_to_string(format!("/proc/{first}/status")).unwrap();
    let ids = status
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .unwrap();
    assert!(!ids.split_whitespace().skip(1).any(|id| id == "0"), "{ids}");
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    let line = fs::read(format!("/proc/{first}/cmdline")).unwrap();
    assert!(!String::from_utf8_lossy(&line).contains(&token));

    // One that is lost is started again, at the same address.
    signal(first, Signal::KILL);
    eventually("another page", || {
        page(&place).is_some_and(|pid| pid != first)
    });
    eventually("it answers", || well(&token));

    place.stop_well();
    assert!(!file.exists());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn a_page_goes_with_a_daemon_that_is_killed() {
    let Some(mut place) = Place::new("a_page_goes_with_a_daemon_that_is_killed") else {
        return;
    };
    let port = free_port();
    place.configure(&format!("[dashboard]\nlisten = \"127.0.0.1:{port}\"\n"));
    place.start();
    eventually("the page listens", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    place.crash();
    eventually("the page is gone", || {
        TcpStream::connect(("127.0.0.1", port)).is_err()
    });
    // The next one has its address again.
    place.start();
    eventually("the page is back", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    place.stop_well();
}
