//! Clients of a service that is killed under them: what each request met.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::cache;
use crate::demo::Error;

/// What the clients speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    /// HTTP/1.1, to a service that takes orders.
    Http,
    /// RESP, to a redis-server whose lists take them.
    Redis,
}

/// Connections, each of which asks one thing after the other.
pub(super) const CONNECTIONS: u32 = 64;
/// Requests per second, of all connections together.
pub(super) const RATE: u32 = 1000;
/// Of so many requests, one is an order; all others only look.
const ORDER_EVERY: u64 = 4;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Answered,
    /// The client was told that nobody knows whether it was executed.
    Unknown,
    Failed,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) sent: Instant,
    pub(super) took: Duration,
    /// The number of the order; none of a request that may be repeated at will.
    pub(super) order: Option<u64>,
    pub(super) end: End,
}

/// All that the clients met.
#[derive(Debug, Default)]
pub(super) struct Met {
    pub(super) samples: Vec<Sample>,
    /// Connections that ended under a client.
    pub(super) dropped: u32,
}

/// Clients that ask until they are told to stop.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Met>,
}

impl Clients {
    /// Starts asking a service; orders are numbered from the first one on.
    pub(super) fn start(
        address: SocketAddr,
        speech: Speech,
        first_order: u64,
    ) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::system("start", "the clients", "check limits"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("clients".to_owned())
            .spawn(move || runtime.block_on(all(address, speech, first_order, told)))
            .map_err(Error::system("start", "the clients", "check limits"))?;
        Ok(Self { stop, thread })
    }

    /// Stops asking; what was met.
    pub(super) fn stop(self) -> Result<Met, Error> {
        self.stop.store(true, Ordering::Relaxed);
        let met = self.thread.join();
        met.map_err(|_| Error::part("the clients", "panicked; see the message above"))
    }
}

async fn all(address: SocketAddr, speech: Speech, first_order: u64, stop: Arc<AtomicBool>) -> Met {
    let orders = Arc::new(AtomicU64::new(first_order));
    let begin = Instant::now();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let (orders, stop) = (Arc::clone(&orders), Arc::clone(&stop));
            tokio::spawn(async move {
                let gap = Duration::from_secs(1) * CONNECTIONS / RATE;
                let first = begin + gap * number / CONNECTIONS;
                one((address, speech), first, gap, &orders, &stop).await
            })
        })
        .collect();
    let mut met = Met::default();
    for client in clients {
        // A task of these ends by itself only.
        if let Ok(one) = client.await {
            met.samples.extend(one.samples);
            met.dropped += one.dropped;
        }
    }
    met.samples.sort_by_key(|sample| sample.sent);
    met
}

async fn one(
    (address, speech): (SocketAddr, Speech),
    first: Instant,
    gap: Duration,
    orders: &AtomicU64,
    stop: &AtomicBool,
) -> Met {
    let mut met = Met::default();
    let mut stream = None;
    let mut due = first;
    let mut count = u64::from(address.port());
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep_until(due.into()).await;
        // Open loop: a request that was due while another one was waited for is sent at once.
        due += gap;
        count += 1;
        let order = count
            .is_multiple_of(ORDER_EVERY)
            .then(|| orders.fetch_add(1, Ordering::Relaxed));
        let request = speech.request(order);
        let sent = Instant::now();
        let asked = ask(&mut stream, address, speech, &request);
        let asked = tokio::time::timeout(PATIENCE, asked).await;
        let end = match asked {
            Ok(Ok(end)) => end,
            Ok(Err(_)) | Err(_) => {
                if stream.take().is_some() {
                    met.dropped += 1;
                }
                End::Failed
            }
        };
        met.samples.push(Sample {
            sent,
            took: sent.elapsed(),
            order,
            end,
        });
    }
    met
}

/// Sends a request, over the connection that is there or a new one, and reads the answer.
async fn ask(
    connection: &mut Option<TcpStream>,
    address: SocketAddr,
    speech: Speech,
    request: &str,
) -> std::io::Result<End> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            connection.insert(stream)
        }
    };
    stream.write_all(request.as_bytes()).await?;
    let mut text = Vec::new();
    loop {
        if let Some((end, keeps)) = speech.answer(&text) {
            if !keeps {
                // It said so, which is no drop.
                *connection = None;
            }
            return Ok(end);
        }
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await?;
        if read == 0 || text.len() > ANSWER_BYTES_MAX {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        text.extend(buffer.iter().take(read));
    }
}

impl Speech {
    fn request(self, order: Option<u64>) -> String {
        match (self, order) {
            (Self::Redis, order) => cache::request(order),
            (Self::Http, Some(id)) => {
                format!("POST /order/{id} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            }
            (Self::Http, None) => "GET /item HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        }
    }

    /// What a whole answer means, and whether its connection goes on.
    fn answer(self, bytes: &[u8]) -> Option<(End, bool)> {
        match self {
            Self::Http => answer(bytes),
            Self::Redis => cache::answer(bytes).map(|end| (end, true)),
        }
    }
}

/// What a whole answer means, and whether its connection goes on.
fn answer(bytes: &[u8]) -> Option<(End, bool)> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(bytes.get(..head)?).to_lowercase();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let body: usize = field("content-length:").map_or(Some(0), |n| n.trim().parse().ok())?;
    if bytes.len() < head + body {
        return None;
    }
    let status = text.split_whitespace().nth(1).unwrap_or("");
    let end = match status {
        "200" => End::Answered,
        "502" if field("forebay-outcome:").is_some_and(|outcome| outcome.trim() == "unknown") => {
            End::Unknown
        }
        _ => End::Failed,
    };
    let keeps = field("connection:").is_none_or(|word| word.trim() != "close");
    Some((end, keeps))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_to_their_end() {
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab";
        for cut in 0..ok.len() {
            assert_eq!(answer(&ok[..cut]), None);
        }
        assert_eq!(answer(ok), Some((End::Answered, true)));
        let unknown =
            b"HTTP/1.1 502 Bad Gateway\r\nForebay-Outcome: unknown\r\nConnection: close\r\n\r\n";
        assert_eq!(answer(unknown), Some((End::Unknown, false)));
        assert_eq!(
            answer(b"HTTP/1.0 503 No\r\n\r\n"),
            Some((End::Failed, true))
        );
    }
}
