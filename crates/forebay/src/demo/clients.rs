//! Clients that ask one thing after the other, each on one connection, and what each request met.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::demo::Error;

/// How many ask.
pub(super) const COUNT: usize = 4;
/// From an answer to the next request.
const PACE: Duration = Duration::from_millis(5);
/// A client waits no longer for an answer: then it failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before a client that failed asks again.
const AGAIN: Duration = Duration::from_millis(100);
/// Requests that are remembered of each client; more of them end the demo's figures, and none comes near.
const SAMPLES_MAX: usize = 200_000;
const HEAD_BYTES_MAX: usize = 16 * 1024;
const REQUEST: &[u8] = b"GET /work HTTP/1.1\r\nHost: shop\r\n\r\n";

/// One request.
#[derive(Debug, Clone, Copy)]
struct Sample {
    sent: Instant,
    took: Duration,
    is_answered: bool,
}

/// What was met within some time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) requests: usize,
    pub(super) failed: usize,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    pub(super) longest: Duration,
}

/// Clients that ask until they are told to stop.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    samples: Arc<Mutex<Vec<Sample>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    pub(super) fn start(address: SocketAddr) -> Result<Self, Error> {
        let mut clients = Self {
            stop: Arc::new(AtomicBool::new(false)),
            samples: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..COUNT {
            let (stop, samples) = (Arc::clone(&clients.stop), Arc::clone(&clients.samples));
            let thread = std::thread::Builder::new()
                .name("client".to_owned())
                .spawn(move || ask(address, &stop, &samples));
            let thread = thread.map_err(Error::system("start", "a client", "check limits"))?;
            clients.threads.push(thread);
        }
        Ok(clients)
    }

    /// What requests met that were under way between two moments.
    pub(super) fn between(&self, from: Instant, to: Instant) -> Result<Span, Error> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let is_in = |sample: &&Sample| sample.sent < to && sample.sent + sample.took > from;
        span(samples.iter().filter(is_in).copied().collect())
    }

    /// Ends them; what all requests met.
    pub(super) fn stop(self) -> Result<Span, Error> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let ended = thread.join();
            ended.map_err(|_| Error::part("a client", "it panicked; see its message"))?;
        }
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        span(samples.clone())
    }
}

fn span(mut samples: Vec<Sample>) -> Result<Span, Error> {
    samples.sort_unstable_by_key(|sample| sample.took);
    let Some(longest) = samples.last().map(|sample| sample.took) else {
        return Err(Error::part("the clients", "no request was answered"));
    };
    let at = |permille: usize| samples[(samples.len() - 1) * permille / 1000].took;
    let failed = samples.iter().filter(|sample| !sample.is_answered);
    Ok(Span {
        requests: samples.len(),
        failed: failed.count(),
        p50: at(500),
        p99: at(990),
        longest,
    })
}

fn ask(address: SocketAddr, stop: &AtomicBool, samples: &Mutex<Vec<Sample>>) {
    let mut stream = None;
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let answered = match stream.take() {
            Some(stream) => one(stream),
            None => connect(address).and_then(one),
        };
        let sample = Sample {
            sent,
            took: sent.elapsed(),
            is_answered: answered.is_ok(),
        };
        {
            let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
            if samples.len() < SAMPLES_MAX * COUNT {
                samples.push(sample);
            }
        }
        match answered {
            Ok(kept) => {
                stream = Some(kept);
                std::thread::sleep(PACE);
            }
            Err(_) => std::thread::sleep(AGAIN),
        }
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One request; the connection, where it was answered with 200.
fn one(mut stream: TcpStream) -> io::Result<TcpStream> {
    stream.write_all(REQUEST)?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.len() > HEAD_BYTES_MAX {
            return Err(io::Error::other("its head does not end"));
        }
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    if !head.starts_with("http/1.1 200") {
        return Err(io::Error::other(head));
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let length: u64 = length.ok_or_else(|| io::Error::other("its length is not said"))?;
    io::copy(&mut (&stream).take(length), &mut io::sink())?;
    Ok(stream)
}
