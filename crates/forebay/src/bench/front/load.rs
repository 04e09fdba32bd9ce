//! Clients in one thread, which ask at a fixed rate or as fast as they are answered.
//!
//! At a fixed rate the loop is open: a request that is due while its connection still waits for an answer
//! counts from the moment at which it was due. One that is sent when it is due counts from being sent, so
//! that the time which this thread needs to wake is not taken for the server's. Each connection has
//! one request under way at most.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::epoll;
use rustix::time::Timespec;

use super::talk::{Reader, Talk};

/// Time before anything counts.
const WARM: Duration = Duration::from_millis(150);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
const BUFFER_BYTES: usize = 256 * 1024;
const EVENTS_MAX: usize = 64;

/// How requests follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Pace {
    /// So many in a second, of all connections together.
    Fixed(u32),
    /// The next one once the one before is answered.
    Full,
}

/// What the clients do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) address: SocketAddr,
    pub(super) talk: Talk,
    pub(super) connections: u32,
    pub(super) pace: Pace,
    pub(super) time: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) requests: u64,
    pub(super) time: Duration,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    /// CPU time that the process between used meanwhile.
    pub(super) cpu: Duration,
}

struct Client {
    stream: TcpStream,
    reader: Reader,
    asked: Option<Instant>,
    /// When requests were due that could not be sent yet; no more than are due in the whole time.
    owed: VecDeque<Instant>,
}

/// Works, and has `cpu` say what was used until the beginning and the end of what counts.
///
/// # Errors
/// When a connection breaks, or an answer is wrong or missing.
pub(super) fn run(work: &Work, cpu: impl Fn() -> Result<Duration, String>) -> Result<Done, String> {
    let mut all = All::connect(work)?;
    let began = Instant::now();
    all.drive(work, began, began + WARM)?;
    (all.requests, all.latencies) = (0, latencies()?);
    let (before, begin) = (cpu()?, Instant::now());
    all.drive(work, began, begin + work.time)?;
    let (after, time) = (cpu()?, begin.elapsed());
    let requests = all.requests;
    let quantile = |share| Duration::from_nanos(all.latencies.value_at_quantile(share));
    let done = Done {
        requests,
        time,
        p50: quantile(0.5),
        p99: quantile(0.99),
        cpu: after.saturating_sub(before),
    };
    // A pooler drops connections whose client goes in the middle.
    all.drain(work)?;
    Ok(done)
}

/// Connections that ask nothing, each greeted.
///
/// # Errors
/// When one cannot be made.
pub(super) fn connect(address: SocketAddr, talk: Talk) -> Result<TcpStream, String> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE);
    let mut stream = stream.map_err(|error| format!("connect: {error}"))?;
    let set = stream.set_nodelay(true);
    set.and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
        .map_err(|error| error.to_string())?;
    talk.greet(&mut stream)?;
    Ok(stream)
}

/// Asks once and waits for the whole answer.
///
/// # Errors
/// When it does not come.
pub(super) fn ask_once(stream: &mut TcpStream, talk: Talk) -> Result<(), String> {
    let asked = stream.write_all(&talk.request());
    asked.map_err(|error| error.to_string())?;
    let mut reader = Reader::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = stream.read(&mut buffer);
        match read.map_err(|error| error.to_string())? {
            0 => return Err("it ended the connection".to_owned()),
            read => {
                if reader.take(talk, buffer.get(..read).unwrap_or_default())? {
                    return Ok(());
                }
            }
        }
    }
}

struct All {
    clients: Vec<Client>,
    epoll: OwnedFd,
    request: Vec<u8>,
    buffer: Vec<u8>,
    latencies: Histogram<u64>,
    requests: u64,
    /// Requests that were due at a fixed rate until now.
    due: u32,
}

/// In nanoseconds, up to twice the time that an answer may take, to three digits.
fn latencies() -> Result<Histogram<u64>, String> {
    let most = 2 * u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX / 2);
    Histogram::new_with_bounds(1, most, 3).map_err(|error| error.to_string())
}

impl All {
    fn connect(work: &Work) -> Result<Self, String> {
        let failed = |error: io::Error| error.to_string();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let mut clients = Vec::new();
        for place in 0..work.connections {
            let stream = connect(work.address, work.talk)?;
            stream.set_nonblocking(true).map_err(failed)?;
            let data = epoll::EventData::new_u64(place.into());
            epoll::add(&epoll, &stream, data, epoll::EventFlags::IN)
                .map_err(|error| failed(error.into()))?;
            clients.push(Client {
                stream,
                reader: Reader::default(),
                asked: None,
                owed: VecDeque::new(),
            });
        }
        Ok(Self {
            clients,
            epoll,
            request: work.talk.request(),
            buffer: vec![0; BUFFER_BYTES],
            latencies: latencies()?,
            requests: 0,
            due: 0,
        })
    }

    /// Asks and hears answers until then.
    fn drive(&mut self, work: &Work, began: Instant, end: Instant) -> Result<(), String> {
        if work.pace == Pace::Full {
            let idle = self.clients.iter_mut();
            for client in idle.filter(|client| client.asked.is_none()) {
                client.ask(&self.request, Instant::now())?;
            }
        }
        loop {
            let next = self.ask_due(work, began)?.map_or(end, |due| due.min(end));
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            self.hear(work, next.saturating_duration_since(now))?;
        }
    }

    /// Sends what is due; when the next one is.
    fn ask_due(&mut self, work: &Work, began: Instant) -> Result<Option<Instant>, String> {
        let Pace::Fixed(rate) = work.pace else {
            return Ok(None);
        };
        loop {
            let due = began + Duration::from_secs(1) * self.due / rate;
            let now = Instant::now();
            if due > now {
                return Ok(Some(due));
            }
            let place = self.due % work.connections;
            self.due += 1;
            let place = usize::try_from(place).map_err(|error| error.to_string())?;
            let client = self.clients.get_mut(place).ok_or("no such connection")?;
            if client.asked.is_some() {
                client.owed.push_back(due);
            } else {
                client.ask(&self.request, now)?;
            }
        }
    }

    /// Hears what comes within this time.
    fn hear(&mut self, work: &Work, time: Duration) -> Result<(), String> {
        let timeout = Timespec::try_from(time).map_err(|error| error.to_string())?;
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let waited = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&timeout),
        );
        match waited {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.to_string()),
        }
        for event in &events {
            let place = usize::try_from(event.data.u64()).map_err(|error| error.to_string())?;
            let client = self.clients.get_mut(place).ok_or("no such connection")?;
            let Some(asked) = client.hear(work.talk, &mut self.buffer)? else {
                continue;
            };
            let took = u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.latencies.saturating_record(took);
            self.requests += 1;
            match (work.pace, client.owed.pop_front()) {
                (_, Some(due)) => client.ask(&self.request, due)?,
                (Pace::Full, None) => client.ask(&self.request, Instant::now())?,
                (Pace::Fixed(_), None) => {}
            }
        }
        if events.is_empty() {
            self.overdue()?;
        }
        Ok(())
    }

    fn overdue(&self) -> Result<(), String> {
        let mut asked = self.clients.iter().filter_map(|client| client.asked);
        if asked.any(|asked| asked.elapsed() > PATIENCE) {
            return Err(format!("no answer within {} s", PATIENCE.as_secs()));
        }
        Ok(())
    }

    /// Hears the answers that are still to come, and asks nothing more.
    fn drain(&mut self, work: &Work) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        for client in &mut self.clients {
            client.owed.clear();
        }
        let quiet = Work {
            pace: Pace::Fixed(1),
            ..*work
        };
        while self.clients.iter().any(|client| client.asked.is_some()) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("no answer within {} s", PATIENCE.as_secs()));
            }
            self.hear(&quiet, left)?;
        }
        Ok(())
    }
}

impl Client {
    /// Sends a request that counts from then on.
    fn ask(&mut self, request: &[u8], from: Instant) -> Result<(), String> {
        // It is shorter than any buffer of a connection that has nothing under way.
        let written = self.stream.write(request).map_err(|e| e.to_string())?;
        if written < request.len() {
            return Err("a request was not taken whole".to_owned());
        }
        self.asked = Some(from);
        Ok(())
    }

    /// Reads what is there; since when the request counts, if its answer is whole now.
    fn hear(&mut self, talk: Talk, buffer: &mut [u8]) -> Result<Option<Instant>, String> {
        let read = match self.stream.read(buffer) {
            Ok(0) => return Err("it ended a connection".to_owned()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let whole = self
            .reader
            .take(talk, buffer.get(..read).unwrap_or_default())?;
        Ok(whole.then(|| self.asked.take()).flatten())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A server that answers every read with a whole answer, after a pause.
    fn serve(pause: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
                        std::thread::sleep(pause);
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        if stream.write_all(answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    fn work(address: SocketAddr, pace: Pace) -> Done {
        let work = Work {
            address,
            talk: Talk::Http { path: "/" },
            connections: 2,
            pace,
            time: Duration::from_millis(300),
        };
        run(&work, || Ok(Duration::ZERO)).unwrap()
    }

    #[test]
    fn a_rate_is_kept_and_what_is_late_counts_from_when_it_was_due() {
        let at_once = work(serve(Duration::ZERO), Pace::Fixed(200));
        assert!((30..=62).contains(&at_once.requests), "{at_once:?}");
        // Two connections whose answers take 20 ms serve 100 in a second: the rest waits.
        let slow = work(serve(Duration::from_millis(20)), Pace::Fixed(200));
        assert!(slow.requests < 40, "{slow:?}");
        assert!(slow.p50 > Duration::from_millis(60), "{slow:?}");
    }

    #[test]
    fn without_a_rate_each_answer_is_followed_by_a_request() {
        let full = work(serve(Duration::from_millis(5)), Pace::Full);
        assert!((20..=122).contains(&full.requests), "{full:?}");
        assert!(full.p50 < Duration::from_millis(30), "{full:?}");
    }
}
