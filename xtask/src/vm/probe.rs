//! What a client outside a guest sees of the services in it: for how long nobody answers.
//!
//! A client for each port sends one line every millisecond and waits for one. It has the host's clock, which goes on
//! while the guest begins anew. A scenario says what is looked at:
//!
//! ```text
//! mark: watch NAME PORT              begins to look for pauses
//! mark: seen NAME                    ends it: the longest time between two answers is NAME's pause
//! mark: at-most NAME SHARE OTHER     NAME's pause is at most this share of OTHER's, or the scenario fails
//! mark: hold NAME PORT               begins to have a service of HTTP count, over one connection ([`held`])
//! mark: held NAME                    ends it: that connection is there, and each request was counted once, or the scenario fails
//! ```

mod held;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use held::Held;

/// Between two lines that are sent.
const EVERY: Duration = Duration::from_millis(1);
/// So long an answer is waited for; then another connection is tried.
const ANSWER_MAX: Duration = Duration::from_millis(250);
/// For so long an answer is waited for at the end.
const SEEN_MAX: Duration = Duration::from_secs(60);
/// Servers of Redis answer it with a line, and others are to.
const LINE: &[u8] = b"PING\r\n";

#[derive(Debug, Default)]
struct Seen {
    last: Option<Instant>,
    longest: Duration,
    answers: u64,
}

impl Seen {
    fn answer(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            self.longest = self.longest.max(now - last);
        }
        self.answers += 1;
    }
}

/// A client; it ends when this is dropped.
struct Client {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    fn of(port: u16) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (noted, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut connection = None;
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                connection = connection.or_else(|| connect(port));
                if connection.as_mut().is_some_and(is_answered) {
                    let mut seen = noted.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.answer(Instant::now());
                } else {
                    connection = None;
                }
                std::thread::sleep(EVERY.saturating_sub(began.elapsed()));
            }
        });
        Self {
            seen,
            stop,
            thread: Some(thread),
        }
    }

    /// The longest time between two answers, and how many there were; none came lately otherwise.
    fn end(&self) -> Option<(Duration, u64)> {
        let asked = Instant::now();
        while asked.elapsed() < SEEN_MAX {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.last.is_some_and(|last| last > asked) {
                return Some((seen.longest, seen.answers));
            }
            drop(seen);
            std::thread::sleep(EVERY);
        }
        None
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            println!("vm: a client of the guest panicked");
        }
    }
}

fn connect(port: u16) -> Option<BufReader<TcpStream>> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(ANSWER_MAX)).ok()?;
    Some(BufReader::new(stream))
}

/// What goes wrong is what is measured.
fn is_answered(connection: &mut BufReader<TcpStream>) -> bool {
    let mut line = String::new();
    connection.get_mut().write_all(LINE).is_ok()
        && connection
            .read_line(&mut line)
            .is_ok_and(|length| length > 0)
}

/// What a scenario has looked at.
pub(super) struct Probes {
    /// By port of the guest: the port of this host that leads there.
    ports: BTreeMap<u16, u16>,
    watched: BTreeMap<String, Client>,
    pauses: BTreeMap<String, Duration>,
    held: BTreeMap<String, Held>,
    /// What was claimed and is not so.
    pub(super) broken: Vec<String>,
}

impl Probes {
    pub(super) const fn new(ports: BTreeMap<u16, u16>) -> Self {
        Self {
            ports,
            watched: BTreeMap::new(),
            pauses: BTreeMap::new(),
            held: BTreeMap::new(),
            broken: Vec::new(),
        }
    }

    /// What is to be shown of a line of the scenario.
    pub(super) fn take(&mut self, line: &str) -> Option<String> {
        let words = line.trim().strip_prefix("mark: ")?;
        let words: Vec<&str> = words.split_whitespace().collect();
        let said = match *words.as_slice() {
            ["watch", name, port] => self.watch(name, port).map(|()| None),
            ["seen", name] => self.seen(name).map(Some),
            ["hold", name, port] => self.hold(name, port).map(|()| None),
            ["held", name] => self.end_held(name).map(Some),
            ["at-most", name, share, other] => self.at_most(name, share, other).map(Some),
            _ => return None,
        };
        said.unwrap_or_else(|why| {
            let said = format!("{}: {why}", line.trim());
            self.broken.push(said.clone());
            Some(said)
        })
    }

    /// The port of this host that leads to one of the guest.
    fn forwarded(&self, port: &str) -> Result<u16, String> {
        let forwarded = port.parse().ok().and_then(|port| self.ports.get(&port));
        Ok(*forwarded.ok_or("the machine has no `--forward` for this port")?)
    }

    fn hold(&mut self, name: &str, port: &str) -> Result<(), String> {
        let held = Held::new(self.forwarded(port)?)?;
        self.held.insert(name.to_owned(), held);
        Ok(())
    }

    fn end_held(&mut self, name: &str) -> Result<String, String> {
        let held = self.held.remove(name).ok_or("nobody holds it")?;
        let (requests, slowest) = held.end()?;
        Ok(format!(
            "{name:<28} {requests} requests over one connection, {:.2} s the slowest",
            slowest.as_secs_f64()
        ))
    }

    fn watch(&mut self, name: &str, port: &str) -> Result<(), String> {
        let port = self.forwarded(port)?;
        self.watched.insert(name.to_owned(), Client::of(port));
        Ok(())
    }

    fn seen(&mut self, name: &str) -> Result<String, String> {
        let client = self.watched.remove(name).ok_or("nobody watched it")?;
        let (pause, answers) = client.end().ok_or("nobody answers")?;
        self.pauses.insert(name.to_owned(), pause);
        Ok(format!(
            "{name:<28} {:>8.2} s without an answer ({answers} answers)",
            pause.as_secs_f64()
        ))
    }

    fn at_most(&mut self, name: &str, share: &str, other: &str) -> Result<String, String> {
        let pause = |name: &str| {
            let found = self.pauses.get(name).map(Duration::as_secs_f64);
            found.ok_or_else(|| format!("no pause of {name} is known"))
        };
        let bound: f64 = share.parse().map_err(|_| "the share is no number")?;
        let found = pause(name)? / pause(other)?;
        let said = format!("{found:.3} of {other}; at most {bound} is wanted");
        if found > bound {
            return Err(said);
        }
        Ok(format!("{name:<28} {said}"))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers each line until it is dropped.
    fn server(listener: TcpListener) -> JoinHandle<()> {
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut stream = stream;
            while let Some(Ok(_)) = lines.next() {
                if stream.write_all(b"+PONG\r\n").is_err() {
                    return;
                }
            }
        })
    }

    #[test]
    fn a_pause_is_the_longest_time_between_two_answers() {
        let mut seen = Seen::default();
        let began = Instant::now();
        for ms in [0, 1, 2, 40, 41, 60] {
            seen.answer(began + Duration::from_millis(ms));
        }
        assert_eq!(seen.longest, Duration::from_millis(38));
        assert_eq!(seen.answers, 6);
    }

    #[test]
    fn what_a_scenario_claims_is_looked_at() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut probes = Probes::new(BTreeMap::from([(6379, port)]));
        let server = server(listener);
        assert_eq!(probes.take("anything"), None);
        assert_eq!(probes.take("mark: watch a 6379"), None);
        let said = probes.take("mark: seen a").unwrap();
        assert!(said.contains("without an answer"), "{said}");
        server.join().unwrap();
        probes
            .pauses
            .insert("long".to_owned(), Duration::from_secs(40));
        probes
            .pauses
            .insert("short".to_owned(), Duration::from_secs(10));
        let said = probes.take("mark: at-most short 0.333 long").unwrap();
        assert!(said.contains("0.250 of long"), "{said}");
        assert!(probes.broken.is_empty(), "{:?}", probes.broken);
        for wrong in [
            "mark: at-most long 0.333 short",
            "mark: at-most short 0.333 other",
            "mark: watch b 80",
            "mark: seen b",
        ] {
            assert!(probes.take(wrong).is_some());
        }
        assert_eq!(probes.broken.len(), 4, "{:?}", probes.broken);
    }
}
