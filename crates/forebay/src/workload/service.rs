//! A latency-critical HTTP/1.1 service which computes for every request.
//!
//! `GET /work` hashes through a working set a fixed number of times. How often is calibrated once
//! in CPU time, or given, so that every arm of a benchmark does the same work; nothing waits for a
//! clock. `GET /` answers with what is being served, and costs nothing.
//!
//! One thread serves one connection, with blocking sockets, up to a bound; a connection beyond it
//! is told 503. At most `--threads` requests compute at a time, each in a working set of its own;
//! the others wait in the order they came.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::ClockId;

use super::{Error, Lifetime, bind_to_parent, now, place, print_line, receive};

/// Longest request head accepted, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// A connection which is silent for this long is closed.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// A client which does not take its response for this long is given up.
const WRITE_MAX: Duration = Duration::from_secs(5);
/// How long a refused connection may hold up the next one.
const REFUSAL_MAX: Duration = Duration::from_millis(20);
const CONNECTION_STACK_BYTES: usize = 256 * 1024;

/// Words hashed by one iteration of the work.
const BLOCK_WORDS: usize = 512;
const BLOCK_KIB: u32 = 4;
/// CPU time over which the work is calibrated, and how often.
const CALIBRATION_CPU_TIME: Duration = Duration::from_millis(20);
const CALIBRATION_ROUNDS: usize = 5;

/// `forebay workload service`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address to listen at
    #[arg(long, value_name = "IP", default_value_t = Ipv4Addr::LOCALHOST)]
    address: Ipv4Addr,
    /// Port there; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// File which receives the port once the service listens
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
    /// Requests which compute at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Connections served at the same time; others are told 503
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: u16,
    /// CPU time of one request, from which its iterations are calibrated at the start
    #[arg(long, value_name = "US", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    work_us: u32,
    /// Iterations of one request, instead of calibrating
    #[arg(long, value_name = "N", conflicts_with = "work_us", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    iterations: Option<u64>,
    /// Working set of each of the threads
    #[arg(long, value_name = "KIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(i64::from(BLOCK_KIB)..=1 << 20))]
    set_kib: u32,
    /// Print the calibrated iterations as JSON, and end
    #[arg(long)]
    calibrate: bool,
    #[command(flatten)]
    lifetime: Lifetime,
}

/// Serves until the process is killed.
pub(crate) fn run(args: Args) -> Result<(), Error> {
    bind_to_parent(args.lifetime)?;
    let iterations = match args.iterations {
        Some(iterations) => iterations,
        None => calibrate(args.set_kib, Duration::from_micros(args.work_us.into())),
    };
    if args.calibrate {
        return print_line(&calibration_json(&args, iterations).to_string());
    }
    let listener = TcpListener::bind((args.address, args.port)).map_err(Error::system(
        "listen on",
        format!("{}:{}", args.address, args.port),
        "use another --port; 0 takes a free one",
    ))?;
    if let Some(port_file) = &args.port_file {
        let address = listener.local_addr().map_err(Error::system(
            "read the address of",
            "the listening socket",
            "give --port and leave --port-file out",
        ))?;
        place(port_file, format!("{}\n", address.port()).as_bytes())?;
    }
    let pool = Pool::new(args.threads, args.set_kib, iterations);
    serve(listener.incoming(), &pool, args.connections.into())
}

/// Serves these connections, and returns when they have all ended.
pub(super) fn serve(
    connections: impl Iterator<Item = io::Result<TcpStream>>,
    pool: &Pool,
    connections_max: usize,
) -> Result<(), Error> {
    let open = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for connection in connections {
            let stream = match connection {
                Ok(stream) => stream,
                // The client went away between connecting and being accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(source) => {
                    return Err(Error::System {
                        attempt: "accept a connection on",
                        object: "the listening socket".to_owned(),
                        remedy: "raise the limit on open files, or lower --connections",
                        source,
                    });
                }
            };
            if open.load(Ordering::Relaxed) >= connections_max {
                log_end(refuse(stream));
                continue;
            }
            open.fetch_add(1, Ordering::Relaxed);
            let open = &open;
            std::thread::Builder::new()
                .stack_size(CONNECTION_STACK_BYTES)
                .spawn_scoped(scope, move || {
                    log_end(converse(&stream, pool));
                    open.fetch_sub(1, Ordering::Relaxed);
                })
                .map_err(Error::system(
                    "start",
                    "a thread for a connection",
                    "raise pids.max, or lower --connections",
                ))?;
        }
        Ok(())
    })
}

/// A client may leave at any time; that is its business, and this service goes on.
fn log_end(ended: io::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

fn refuse(mut stream: TcpStream) -> io::Result<()> {
    stream.set_write_timeout(Some(REFUSAL_MAX))?;
    stream.set_read_timeout(Some(REFUSAL_MAX))?;
    let response = response("503 Service Unavailable", "too many connections\n", false);
    stream.write_all(response.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    // Closing with the request unread would reset the connection and could lose the response.
    receive(&stream, &mut [0; HEAD_BYTES_MAX]).map(drop)
}

/// Answers the requests of one connection, one after the other, until either side closes it.
fn converse(mut stream: &TcpStream, pool: &Pool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_MAX))?;
    stream.set_write_timeout(Some(WRITE_MAX))?;
    let mut buffer = [0; HEAD_BYTES_MAX];
    let mut filled = 0;
    loop {
        let (answer, keep_alive) = match parse_request(&buffer[..filled]) {
            Parsed::Partial => {
                let read = receive(stream, &mut buffer[filled..])?;
                if read == 0 {
                    return Ok(());
                }
                filled += read;
                continue;
            }
            Parsed::Request(request) => {
                let answer = answer(request.target, pool);
                let (length, keep_alive) = (request.length, request.keep_alive);
                buffer.copy_within(length..filled, 0);
                filled -= length;
                (answer, keep_alive)
            }
            Parsed::Bad(status) => ((status, String::new()), false),
        };
        stream.write_all(response(answer.0, &answer.1, keep_alive).as_bytes())?;
        if !keep_alive {
            return stream.shutdown(Shutdown::Write);
        }
    }
}

fn answer(target: &str, pool: &Pool) -> (&'static str, String) {
    match target {
        "/work" => match pool.work() {
            Some(digest) => ("200 OK", format!("{digest:016x}\n")),
            None => ("500 Internal Server Error", String::new()),
        },
        "/" => ("200 OK", format!("{}\n", pool.describe())),
        _ => ("404 Not Found", "try /work\n".to_owned()),
    }
}

fn response(status: &str, body: &str, keep_alive: bool) -> String {
    let length = body.len();
    let close = if keep_alive {
        ""
    } else {
        "Connection: close\r\n"
    };
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{close}\r\n{body}")
}

/// What the bytes received so far amount to.
#[derive(Debug, PartialEq, Eq)]
enum Parsed<'a> {
    /// The beginning of a request.
    Partial,
    Request(Request<'a>),
    /// Nothing this service understands; the status to answer with.
    Bad(&'static str),
}

#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    target: &'a str,
    keep_alive: bool,
    /// Bytes the request took.
    length: usize,
}

const BAD_REQUEST: Parsed<'static> = Parsed::Bad("400 Bad Request");

/// Parses the first request in `bytes`, of which only its head may exist.
fn parse_request(bytes: &[u8]) -> Parsed<'_> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    // Garbage is refused as soon as it shows, not when an end of the head fails to come.
    let textual = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n');
    let head = &bytes[..end.unwrap_or(bytes.len())];
    let Ok(text) = str::from_utf8(head) else {
        return BAD_REQUEST;
    };
    if !head.iter().all(textual) || head.first().is_some_and(|byte| !byte.is_ascii_uppercase()) {
        return BAD_REQUEST;
    }
    match end {
        Some(end) => parse_head(text, end + 4),
        None if bytes.len() >= HEAD_BYTES_MAX => Parsed::Bad("431 Request Header Fields Too Large"),
        None => Parsed::Partial,
    }
}

fn parse_head(head: &str, length: usize) -> Parsed<'_> {
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return BAD_REQUEST;
    };
    let mut keep_alive = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ => return BAD_REQUEST,
    };
    if !target.starts_with('/') {
        return BAD_REQUEST;
    }
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            return BAD_REQUEST;
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return BAD_REQUEST;
        }
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "connection" => keep_alive = !value.eq_ignore_ascii_case("close"),
            "content-length" if value == "0" => {}
            "content-length" | "transfer-encoding" => {
                return Parsed::Bad("413 Content Too Large");
            }
            _ => {}
        }
    }
    if method != "GET" {
        return Parsed::Bad("405 Method Not Allowed");
    }
    Parsed::Request(Request {
        target,
        keep_alive,
        length,
    })
}

/// The working sets, which go to requests in the order these came.
#[derive(Debug)]
pub(super) struct Pool {
    shelf: Mutex<Shelf>,
    threads: u16,
    set_kib: u32,
    iterations: u64,
}

/// Either some sets are free, or some requests wait; as many as there are connections at most.
#[derive(Debug)]
struct Shelf {
    free: Vec<WorkingSet>,
    waiting: VecDeque<SyncSender<WorkingSet>>,
}

impl Pool {
    pub(super) fn new(threads: u16, set_kib: u32, iterations: u64) -> Self {
        let free = (0..threads).map(|_| WorkingSet::new(set_kib)).collect();
        Self {
            shelf: Mutex::new(Shelf {
                free,
                waiting: VecDeque::new(),
            }),
            threads,
            set_kib,
            iterations,
        }
    }

    /// Does the work of one request; `None` if the working set went missing.
    fn work(&self) -> Option<u64> {
        let mut set = self.take()?;
        let digest = set.work(self.iterations);
        self.put_back(set);
        Some(digest)
    }

    fn take(&self) -> Option<WorkingSet> {
        let (sender, receiver) = sync_channel(1);
        {
            let mut shelf = self.shelf();
            if let Some(set) = shelf.free.pop() {
                return Some(set);
            }
            shelf.waiting.push_back(sender);
        }
        receiver.recv().ok()
    }

    fn put_back(&self, mut set: WorkingSet) {
        let mut shelf = self.shelf();
        while let Some(next) = shelf.waiting.pop_front() {
            match next.send(set) {
                Ok(()) => return,
                Err(returned) => set = returned.0,
            }
        }
        shelf.free.push(set);
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self) -> serde_json::Value {
        serde_json::json!({
            "iterations": self.iterations,
            "set_kib": self.set_kib,
            "threads": self.threads,
        })
    }
}

/// The numbers a request hashes through.
#[derive(Debug)]
struct WorkingSet {
    words: Vec<u64>,
    state: u64,
}

impl WorkingSet {
    fn new(set_kib: u32) -> Self {
        let words = (set_kib / BLOCK_KIB).max(1) as usize * BLOCK_WORDS;
        let mut random = fastrand::Rng::with_seed(1);
        Self {
            words: (0..words).map(|_| random.u64(..)).collect(),
            state: random.u64(..),
        }
    }

    /// Hashes one block after the other, each chosen and changed by the hash of the one before,
    /// so that no step can be left out or done early.
    fn work(&mut self, iterations: u64) -> u64 {
        let (blocks, _) = self.words.as_chunks_mut::<BLOCK_WORDS>();
        for _ in 0..iterations {
            let block = &mut blocks[index(self.state, blocks.len())];
            for word in block.iter() {
                self.state = (self.state ^ word)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .rotate_left(29);
            }
            block[index(self.state, BLOCK_WORDS)] = self.state;
        }
        self.state
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the remainder is below a length, which is a usize"
)]
fn index(hash: u64, length: usize) -> usize {
    (hash % length as u64) as usize
}

/// Iterations which take `work` of CPU time on an undisturbed CPU; at least one.
///
/// Disturbance (a cold cache, a shared core) only ever makes a round slower, so the fastest of
/// some rounds counts.
pub(super) fn calibrate(set_kib: u32, work: Duration) -> u64 {
    let mut set = WorkingSet::new(set_kib);
    let mut cost = |iterations| {
        let start = now(ClockId::ThreadCPUTime);
        std::hint::black_box(set.work(iterations));
        now(ClockId::ThreadCPUTime).saturating_sub(start)
    };
    let mut iterations = 1;
    while cost(iterations) < CALIBRATION_CPU_TIME {
        iterations *= 2;
    }
    let fastest = (0..CALIBRATION_ROUNDS).map(|_| cost(iterations)).min();
    let nanoseconds = fastest.unwrap_or(CALIBRATION_CPU_TIME).as_nanos().max(1);
    let wanted = (u128::from(iterations) * work.as_nanos() + nanoseconds / 2) / nanoseconds;
    u64::try_from(wanted).unwrap_or(u64::MAX).max(1)
}

fn calibration_json(args: &Args, iterations: u64) -> serde_json::Value {
    serde_json::json!({
        "iterations": iterations,
        "set_kib": args.set_kib,
        "work_us": args.work_us,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn requests_are_parsed() {
        let check = |bytes: &[u8], expected: Parsed<'_>| {
            let shown = String::from_utf8_lossy(bytes);
            assert_eq!(parse_request(bytes), expected, "{shown:.80}");
        };
        let request = |target, keep_alive, length| {
            Parsed::Request(Request {
                target,
                keep_alive,
                length,
            })
        };
        let too_large = Parsed::Bad("413 Content Too Large");
        check(b"", Parsed::Partial);
        check(b"GET /work HTTP/1.1\r\nHost: a\r\n", Parsed::Partial);
        check(b"GET / HTTP/1.1\r\n\r\n", request("/", true, 18));
        check(b"GET / HTTP/1.1\r\n\r\nGET", request("/", true, 18));
        check(b"GET / HTTP/1.0\r\n\r\n", request("/", false, 18));
        check(
            b"GET /work HTTP/1.1\r\nhost: a\r\nCONNECTION: Close\r\n\r\n",
            request("/work", false, 50),
        );
        check(b"GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", too_large);
        check(
            b"PUT / HTTP/1.1\r\n\r\n",
            Parsed::Bad("405 Method Not Allowed"),
        );
        for garbage in [
            b"\x16\x03\x01\x02".as_slice(),
            b"\r\n\r\n",
            b"get / HTTP/1.1\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET  / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/2\r\n\r\n",
            b"GET work HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1\r\na b: c\r\n\r\n",
            b"GET / HTTP/1.1\r\na: \xff\r\n\r\n",
        ] {
            check(garbage, BAD_REQUEST);
        }
    }

    #[test]
    fn a_head_is_bounded() {
        let mut head = b"GET / HTTP/1.1\r\na: ".to_vec();
        head.resize(HEAD_BYTES_MAX - 1, b'a');
        assert_eq!(parse_request(&head), Parsed::Partial);
        head.push(b'a');
        assert_eq!(
            parse_request(&head),
            Parsed::Bad("431 Request Header Fields Too Large")
        );
    }

    #[test]
    fn the_same_iterations_are_the_same_work() {
        let digest = |iterations| WorkingSet::new(64).work(iterations);
        assert_eq!(digest(10), digest(10));
        assert_ne!(digest(10), digest(11));
    }

    /// Sends `bytes` on a connection of its own and returns all that comes back.
    fn exchange(address: std::net::SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        received
    }

    #[test]
    fn connections_are_answered_in_turn_and_bounded() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let pool = Pool::new(1, 4, 1);
        std::thread::scope(|scope| {
            let served = scope.spawn(|| serve(listener.incoming().take(3), &pool, 1));

            let mut first = TcpStream::connect(address).unwrap();
            first
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            // Two requests at once, then one more: all on the same connection.
            let request = b"GET /work HTTP/1.1\r\n\r\n";
            first
                .write_all(&[request.as_slice(), request].concat())
                .unwrap();
            let one = "HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n".len() + 17;
            let mut two = vec![0; 2 * one];
            first.read_exact(&mut two).unwrap();
            assert!(two.starts_with(b"HTTP/1.1 200 OK\r\n"));

            let refused = exchange(address, request);
            assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");

            first.write_all(b"\x16garbage").unwrap();
            let mut rest = String::new();
            first.read_to_string(&mut rest).unwrap();
            assert!(rest.starts_with("HTTP/1.1 400 "), "{rest}");
            drop(first);

            // Whether the first connection's place is free by now is a race; both are answers.
            let third = exchange(address, b"GET / HTTP/1.1\r\n\r\n");
            assert!(third.starts_with("HTTP/1.1 "), "{third}");
            served.join().unwrap().unwrap();
        });
    }
}
