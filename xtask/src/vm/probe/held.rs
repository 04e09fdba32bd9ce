//! A client that has one connection and a service that counts its requests.
//!
//! The service answers each POST of HTTP/1.1 with how many there were. So one that failed, was not done or was done twice
//! is seen by the next answer.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two requests.
const EVERY: Duration = Duration::from_millis(5);
/// An emulated guest begins anew in less.
const ANSWER_MAX: Duration = Duration::from_secs(600);
/// An answer is no longer.
const BODY_MAX: usize = 64;
const REQUEST: &[u8] = b"POST / HTTP/1.1\r\nHost: guest\r\nContent-Length: 0\r\n\r\n";

/// A client; it ends when this is dropped, after the answer that it waits for.
pub(super) struct Held {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Result<(u64, Duration), String>>,
}

impl Held {
    pub(super) fn new(port: u16) -> Result<Self, String> {
        let fail = |error| format!("connect to port {port}: {error}");
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(fail)?;
        stream.set_nodelay(true).map_err(fail)?;
        stream.set_read_timeout(Some(ANSWER_MAX)).map_err(fail)?;
        let ends = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ends);
        let thread = std::thread::spawn(move || count_on(&mut BufReader::new(stream), &over));
        Ok(Self { ends, thread })
    }

    /// How many requests were answered, each counted once, and how long the slowest answer took.
    pub(super) fn end(self) -> Result<(u64, Duration), String> {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.unwrap_or_else(|_| Err("the client panicked".to_owned()))
    }
}

fn count_on(
    connection: &mut BufReader<TcpStream>,
    over: &AtomicBool,
) -> Result<(u64, Duration), String> {
    let (mut answered, mut slowest) = (0, Duration::ZERO);
    // At least one after it is asked to end.
    loop {
        let is_last = over.load(Ordering::Relaxed);
        let asked = Instant::now();
        let said = count(connection).map_err(|why| format!("after {answered} answers: {why}"))?;
        slowest = slowest.max(asked.elapsed());
        answered += 1;
        if said != answered {
            return Err(format!("answer {answered} says {said} requests"));
        }
        if is_last {
            return Ok((answered, slowest));
        }
        std::thread::sleep(EVERY);
    }
}

fn count(connection: &mut BufReader<TcpStream>) -> Result<u64, String> {
    let fail = |error: std::io::Error| error.to_string();
    connection.get_mut().write_all(REQUEST).map_err(fail)?;
    let (mut head, mut length) = (String::new(), None);
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line).map_err(fail)? == 0 {
            return Err("the connection ended".to_owned());
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some((_, number)) = line.to_ascii_lowercase().split_once("content-length:") {
            length = number.trim().parse::<usize>().ok();
        }
        head.push_str(&line);
    }
    let length = length.filter(|length| *length <= BODY_MAX);
    let mut body = vec![0; length.ok_or_else(|| format!("no length: {head}"))?];
    connection.read_exact(&mut body).map_err(fail)?;
    let text = String::from_utf8_lossy(&body);
    text.parse().map_err(|_| format!("{head}{text}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers requests of one connection with these numbers, and ends it.
    fn server(counts: &'static [u64]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut connection = BufReader::new(stream);
            for count in counts {
                let mut line = String::new();
                while line != "\r\n" {
                    line.clear();
                    connection.read_line(&mut line).unwrap();
                }
                let body = count.to_string();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                connection.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        });
        port
    }

    #[test]
    fn what_is_not_counted_once_or_loses_its_connection_is_seen() {
        let check = |counts: &'static [u64], expected: &str| {
            let held = Held::new(server(counts)).unwrap();
            let why = held.thread.join().unwrap().unwrap_err();
            assert!(why.contains(expected), "{why}");
        };
        check(&[1, 2, 2], "answer 3 says 2 requests");
        check(&[1, 2, 4], "answer 3 says 4 requests");
        check(&[1, 2], "after 2 answers: ");
        let held = Held::new(server(&[1, 2, 3, 4, 5, 6, 7, 8])).unwrap();
        assert!(held.end().unwrap().0 >= 1);
    }
}
