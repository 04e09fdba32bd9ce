//! An open-loop load generator: it sends when the schedule says, not when the service is ready.
//!
//! # Problem
//!
//! A generator which waits for a response before it sends the next request sends nothing while
//! the service stalls, and so leaves out just the latencies which matter ("coordinated omission",
//! Gil Tene, "How NOT to Measure Latency").
//!
//! # Approach
//!
//! Every request has an intended time, which follows from the load pattern alone. A fixed number
//! of workers, one connection each, take the requests in order: a worker sleeps until the
//! intended time of its request, sends, and reads the response. If all workers are busy, requests
//! which are due wait; a request found with more than `--queue` due requests waiting behind it is
//! given up. The generator shares the host with what it measures, so there is no scheduling
//! thread: a request costs one wake-up to send and one to receive.
//!
//! # Properties
//!
//! - Latency runs from the intended time to the last byte of the response: waiting for a free
//!   connection counts, and so does a late wake-up of the generator itself (which is also reported
//!   by itself, as `wake_late_p99_ms`).
//! - A request which fails is counted, and enters the percentiles with the timeout or the time it
//!   took, whichever is longer: a service cannot look fast by failing.
//! - Requests intended in the warm-up are sent, but leave no trace in the report.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use rustix::process::setpriority_process;
use rustix::thread::set_current_timer_slack;
use rustix::time::ClockId;
use serde::Serialize;

use super::schedule::{Pattern, RATE_MAX, SECONDS_MAX, Schedule};
use super::{Error, Lifetime, bind_to_parent, now, place, print_line, receive, sleep_until};

/// Latencies are recorded in microseconds up to this bound.
const LATENCY_MAX: Duration = Duration::from_secs(60);
/// Longest response accepted, head and body, in bytes.
const RESPONSE_BYTES_MAX: usize = 8 * 1024;
const WORKER_STACK_BYTES: usize = 256 * 1024;

/// `forebay workload load`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("load").required(true).args(["rate", "pattern"]))]
pub(crate) struct Args {
    /// Service to send to; only loopback addresses are accepted
    #[arg(long, value_name = "127.0.0.1:PORT", value_parser = parse_target)]
    target: SocketAddr,
    /// Path to request
    #[arg(long, value_name = "PATH", default_value = "/work", value_parser = parse_path)]
    path: String,
    /// Constant rate in requests per second
    #[arg(long, value_name = "R", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Repeating rate: low:high:period_s[:square|:sine], low first
    #[arg(long, value_name = "PATTERN")]
    pattern: Option<Pattern>,
    /// Time to measure
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: u64,
    /// Time to send before measuring; a pattern begins here
    #[arg(long, value_name = "S", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=SECONDS_MAX))]
    warmup_s: u64,
    /// Connections, and so requests under way at the same time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Due requests which may wait for a connection; others fail
    #[arg(long, value_name = "N", default_value_t = 1024)]
    queue: u32,
    /// Time after its intended time at which a request fails
    #[arg(long, value_name = "MS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    timeout_ms: u64,
    /// Nice value of the generator, -20 to 19; see --realtime
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-20..=19))]
    nice: Option<i32>,
    /// Run at real-time priority N (SCHED_FIFO), so that it is never late; needs chrt of util-linux
    #[arg(long, value_name = "N", conflicts_with = "nice", value_parser = clap::value_parser!(u8).range(1..=99))]
    realtime: Option<u8>,
    /// File which receives the report [default: standard output]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    lifetime: Lifetime,
}

/// Sends for the given time and reports.
pub(crate) fn run(args: Args) -> Result<(), Error> {
    bind_to_parent(args.lifetime)?;
    be_punctual(&args)?;
    let report = generate(&args)?;
    let json = serde_json::to_string(&report).map_err(Error::system(
        "encode",
        "the report",
        "report this as a bug",
    ))?;
    match &args.json {
        Some(path) => place(path, format!("{json}\n").as_bytes()).map(drop),
        None => print_line(&json),
    }
}

/// Makes this thread, and those it starts, wake up as punctually as the user asks for.
///
/// Beside other busy threads the fair scheduler lets even a thread of nice -20 wait for
/// milliseconds, which end up in the latencies; only a real-time thread is punctual then.
fn be_punctual(args: &Args) -> Result<(), Error> {
    set_current_timer_slack(Some(NonZeroU64::MIN)).map_err(Error::system(
        "set the timer slack of",
        "this thread",
        "allow prctl(PR_SET_TIMERSLACK)",
    ))?;
    if let Some(nice) = args.nice {
        setpriority_process(None, nice).map_err(Error::system(
            "set the nice value of",
            "this process",
            "run as root, or leave --nice out",
        ))?;
    }
    args.realtime.map_or(Ok(()), run_in_real_time)
}

/// Has `chrt` change this thread, since no safe interface to sched_setscheduler(2) exists.
pub(super) fn run_in_real_time(priority: u8) -> Result<(), Error> {
    let changed = Command::new("chrt")
        .args(["--fifo", "--pid", &priority.to_string()])
        .arg(std::process::id().to_string())
        .status()
        .map_err(Error::system(
            "start",
            "chrt",
            "install util-linux, or leave --realtime out",
        ))?;
    if changed.success() {
        Ok(())
    } else {
        Err(Error::unusable(
            format!("--realtime {priority}"),
            "was refused by the system",
            "run as root, or leave it out",
        ))
    }
}

fn parse_target(text: &str) -> Result<SocketAddr, String> {
    let target: SocketAddr = text
        .parse()
        .map_err(|_| "expected ADDRESS:PORT, such as 127.0.0.1:8080".to_owned())?;
    if target.ip().to_canonical().is_loopback() {
        Ok(target)
    } else {
        Err("is not a loopback address; this generator loads nothing but its own host".to_owned())
    }
}

fn parse_path(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.starts_with('/') && plain && text.len() <= 256 {
        Ok(text.to_owned())
    } else {
        Err("expected up to 256 visible ASCII characters beginning with /".to_owned())
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && rate <= RATE_MAX => Ok(rate),
        _ => Err(format!(
            "expected a rate above 0 and up to {RATE_MAX} per second"
        )),
    }
}

/// What the workers share.
#[derive(Debug)]
struct Run<'a> {
    args: &'a Args,
    schedule: Schedule,
    total: u64,
    /// Monotonic time at which the schedule begins.
    start: Duration,
    /// The next request to be taken by a worker.
    next: AtomicU64,
    recorder: Mutex<Recorder>,
}

fn generate(args: &Args) -> Result<Report, Error> {
    let pattern = match (args.pattern, args.rate) {
        (Some(pattern), _) => pattern,
        (None, Some(rate)) => Pattern::constant(rate),
        (None, None) => {
            return Err(Error::unusable(
                "the load",
                "is not given",
                "give --rate or --pattern",
            ));
        }
    };
    let schedule = Schedule {
        pattern,
        warmup: Duration::from_secs(args.warmup_s),
        measured: Duration::from_secs(args.seconds),
    };
    let connections = (0..args.connections)
        .map(|_| Connection::open(args))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Error::system(
            "connect to",
            args.target,
            "start the service there first, and let it serve as many --connections",
        ))?;
    let run = Run {
        args,
        schedule,
        total: schedule.total(),
        start: now(ClockId::Monotonic),
        next: AtomicU64::new(0),
        recorder: Mutex::new(Recorder::new(args.seconds)?),
    };
    let cpu_before = std::thread::scope(|scope| -> Result<Duration, Error> {
        let mut workers = Vec::with_capacity(connections.len());
        for connection in connections {
            let run = &run;
            let worker = std::thread::Builder::new()
                .stack_size(WORKER_STACK_BYTES)
                .spawn_scoped(scope, move || drive(run, connection))
                .map_err(|source| {
                    run.next.store(run.total, Ordering::Relaxed);
                    Error::System {
                        attempt: "start",
                        object: "a thread for a connection".to_owned(),
                        remedy: "raise pids.max, or lower --connections",
                        source,
                    }
                })?;
            workers.push(worker);
        }
        sleep_until(run.start + schedule.warmup)?;
        let cpu_before = now(ClockId::ProcessCPUTime);
        for worker in workers {
            worker.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        Ok(cpu_before)
    })?;
    let own_cpu = now(ClockId::ProcessCPUTime).saturating_sub(cpu_before);
    let recorder = run.recorder.into_inner();
    Ok(recorder
        .unwrap_or_else(PoisonError::into_inner)
        .report(own_cpu))
}

/// Sends one request after the other until the schedule has no more. A failed request is a
/// result; an error is the generator's own.
fn drive(run: &Run<'_>, connection: Connection) -> Result<(), Error> {
    let timeout = Duration::from_millis(run.args.timeout_ms);
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\n\r\n",
        run.args.path, run.args.target
    );
    let mut connection = Some(connection);
    loop {
        let index = run.next.fetch_add(1, Ordering::Relaxed);
        if index >= run.total {
            return Ok(());
        }
        let intended = run.schedule.intended(index);
        let taken = run.elapsed();
        sleep_until(run.start + intended)?;
        let woken = run.elapsed();
        let taken_by_now = run.next.load(Ordering::Relaxed);
        let waiting = run.schedule.due(woken).saturating_sub(taken_by_now);
        let overrun = waiting > u64::from(run.args.queue);
        let outcome = if overrun {
            Outcome::Failed
        } else {
            exchange(run, &mut connection, &request, intended + timeout)
        };
        let latency = run.elapsed().saturating_sub(intended);
        let sample = Sample {
            slice: run.schedule.slice(intended),
            latency: match outcome {
                Outcome::Completed => latency,
                Outcome::Failed => latency.max(timeout),
            },
            outcome,
            // A worker which came late to its request was busy, and did not sleep too long.
            wake_late: (taken < intended).then(|| woken.saturating_sub(intended)),
        };
        let mut recorder = run.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.record(&sample);
    }
}

impl Run<'_> {
    fn elapsed(&self) -> Duration {
        now(ClockId::Monotonic).saturating_sub(self.start)
    }
}

/// Sends one request and reads its response, on a new connection if the last one was lost.
fn exchange(
    run: &Run<'_>,
    connection: &mut Option<Connection>,
    request: &str,
    deadline: Duration,
) -> Outcome {
    let time_left = || {
        deadline
            .checked_sub(run.elapsed())
            .filter(|left| !left.is_zero())
    };
    let mut attempt = || {
        let mut open = match connection.take() {
            Some(open) => open,
            None => Connection::open_within(run.args.target, time_left()?).ok()?,
        };
        open.stream.set_write_timeout(Some(time_left()?)).ok()?;
        open.stream.write_all(request.as_bytes()).ok()?;
        let response = open.response(time_left)?;
        if response.keep_alive {
            *connection = Some(open);
        }
        (response.status == 200).then_some(())
    };
    match attempt() {
        Some(()) => Outcome::Completed,
        None => Outcome::Failed,
    }
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    buffer: Box<[u8; RESPONSE_BYTES_MAX]>,
}

impl Connection {
    fn open(args: &Args) -> std::io::Result<Self> {
        Self::open_within(args.target, Duration::from_millis(args.timeout_ms))
    }

    fn open_within(target: SocketAddr, timeout: Duration) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&target, timeout)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Box::new([0; RESPONSE_BYTES_MAX]),
        })
    }

    /// Reads one whole response; `None` if it does not come in time or is none.
    fn response(&mut self, time_left: impl Fn() -> Option<Duration>) -> Option<Response> {
        let mut filled = 0;
        loop {
            self.stream.set_read_timeout(Some(time_left()?)).ok()?;
            let read = receive(&self.stream, &mut self.buffer[filled..]).ok()?;
            if read == 0 {
                return None;
            }
            filled += read;
            match parse_response(&self.buffer[..filled]) {
                Answer::Partial => {}
                Answer::Whole(response) => return Some(response),
                Answer::Garbage => return None,
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Response {
    status: u16,
    keep_alive: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Partial,
    Whole(Response),
    Garbage,
}

/// Parses a response with a Content-Length, which has to be all that was received.
fn parse_response(bytes: &[u8]) -> Answer {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Answer::Partial;
    };
    let parsed = || {
        let mut lines = str::from_utf8(&bytes[..end]).ok()?.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?;
        let mut response = Response {
            status: status.parse().ok()?,
            keep_alive: true,
        };
        let mut length = None;
        for line in lines {
            let (name, value) = line.split_once(':')?;
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse::<usize>().ok()?);
            } else if name.eq_ignore_ascii_case("connection") {
                response.keep_alive = !value.trim().eq_ignore_ascii_case("close");
            }
        }
        Some((response, length?))
    };
    let received = bytes.len() - (end + 4);
    match parsed() {
        Some((_, length)) if received < length => Answer::Partial,
        Some((response, length)) if received == length => Answer::Whole(response),
        _ => Answer::Garbage,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Completed,
    Failed,
}

/// What became of one request.
#[derive(Debug)]
struct Sample {
    slice: Option<usize>,
    latency: Duration,
    outcome: Outcome,
    wake_late: Option<Duration>,
}

/// All samples of the measured time, as distributions in microseconds.
#[derive(Debug)]
struct Recorder {
    all: Tally,
    slices: Vec<Tally>,
    wake_late: Histogram<u64>,
}

#[derive(Debug, Clone)]
struct Tally {
    latency: Histogram<u64>,
    completed: u64,
    failed: u64,
}

impl Tally {
    /// `digits` is the number of significant decimal digits kept.
    fn new(digits: u8) -> Result<Self, Error> {
        Ok(Self {
            latency: histogram(digits)?,
            completed: 0,
            failed: 0,
        })
    }

    fn record(&mut self, sample: &Sample) {
        self.latency.saturating_record(micros(sample.latency));
        match sample.outcome {
            Outcome::Completed => self.completed += 1,
            Outcome::Failed => self.failed += 1,
        }
    }
}

impl Recorder {
    fn new(seconds: u64) -> Result<Self, Error> {
        Ok(Self {
            all: Tally::new(3)?,
            slices: (0..seconds)
                .map(|_| Tally::new(2))
                .collect::<Result<_, _>>()?,
            wake_late: histogram(3)?,
        })
    }

    fn record(&mut self, sample: &Sample) {
        let Some(slice) = sample.slice else { return };
        self.all.record(sample);
        // The last intended time may round up to the end of the measured time.
        let last = self.slices.len().saturating_sub(1);
        if let Some(slice) = self.slices.get_mut(slice.min(last)) {
            slice.record(sample);
        }
        if let Some(late) = sample.wake_late {
            self.wake_late.saturating_record(micros(late));
        }
    }

    fn report(&self, own_cpu: Duration) -> Report {
        let latency = &self.all.latency;
        Report {
            p50_ms: quantile_ms(latency, 0.5),
            p90_ms: quantile_ms(latency, 0.9),
            p99_ms: quantile_ms(latency, 0.99),
            p999_ms: quantile_ms(latency, 0.999),
            max_ms: quantile_ms(latency, 1.0),
            completed: self.all.completed,
            failed: self.all.failed,
            seconds: self.slices.len(),
            own_cpu_seconds: own_cpu.as_secs_f64(),
            wake_late_p99_ms: quantile_ms(&self.wake_late, 0.99),
            slices: self.slices.iter().map(SliceReport::new).collect(),
        }
    }
}

/// The report. Latencies are in milliseconds and absent where there was no request.
#[derive(Debug, Serialize)]
struct Report {
    p50_ms: Option<f64>,
    p90_ms: Option<f64>,
    p99_ms: Option<f64>,
    p999_ms: Option<f64>,
    max_ms: Option<f64>,
    /// Requests answered with 200 in time.
    completed: u64,
    /// Requests which were not.
    failed: u64,
    /// Measured time, without the warm-up.
    seconds: usize,
    /// CPU time the generator itself took in the measured time.
    own_cpu_seconds: f64,
    /// How late the generator woke up to send; part of the latencies above.
    wake_late_p99_ms: Option<f64>,
    /// The same for each second, by intended time.
    slices: Vec<SliceReport>,
}

#[derive(Debug, Serialize)]
struct SliceReport {
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
    completed: u64,
    failed: u64,
}

impl SliceReport {
    fn new(tally: &Tally) -> Self {
        Self {
            p99_ms: quantile_ms(&tally.latency, 0.99),
            max_ms: quantile_ms(&tally.latency, 1.0),
            completed: tally.completed,
            failed: tally.failed,
        }
    }
}

fn histogram(digits: u8) -> Result<Histogram<u64>, Error> {
    Histogram::new_with_max(micros(LATENCY_MAX), digits).map_err(|source| Error::System {
        attempt: "create",
        object: "a latency histogram".to_owned(),
        remedy: "report this as a bug",
        source: std::io::Error::other(source),
    })
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn quantile_ms(histogram: &Histogram<u64>, quantile: f64) -> Option<f64> {
    let micros = (!histogram.is_empty()).then(|| histogram.value_at_quantile(quantile))?;
    Some(micros as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::service;
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn only_loopback_is_a_target() {
        for good in [
            "127.0.0.1:80",
            "127.9.9.9:1",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
        ] {
            assert!(parse_target(good).is_ok(), "{good}");
        }
        for bad in [
            "192.0.2.1:80",
            "0.0.0.0:80",
            "[2001:db8::1]:80",
            "localhost",
            "127.0.0.1",
        ] {
            assert!(parse_target(bad).is_err(), "{bad}");
        }
        let error = parse_target("192.0.2.1:80").unwrap_err();
        assert!(error.contains("loopback"), "{error}");
    }

    #[test]
    fn responses_are_parsed() {
        let whole = |status, keep_alive| Answer::Whole(Response { status, keep_alive });
        let check = |text: &str, expected: Answer| {
            assert_eq!(parse_response(text.as_bytes()), expected, "{text}");
        };
        check("HTTP/1.1 200 OK\r\nContent-Le", Answer::Partial);
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na",
            Answer::Partial,
        );
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
            whole(200, true),
        );
        check(
            "HTTP/1.1 503 No\r\ncontent-length: 0\r\nConnection: close\r\n\r\n",
            whole(503, false),
        );
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc",
            Answer::Garbage,
        );
        check("HTTP/1.1 200 OK\r\n\r\n", Answer::Garbage);
        check("SSH-2.0\r\n\r\n", Answer::Garbage);
    }

    #[test]
    fn a_failure_never_looks_faster_than_the_timeout() {
        let mut recorder = Recorder::new(2).unwrap();
        for (latency_ms, outcome) in [(1, Outcome::Completed), (5000, Outcome::Failed)] {
            recorder.record(&Sample {
                slice: Some(1),
                latency: Duration::from_millis(latency_ms),
                outcome,
                wake_late: None,
            });
        }
        let report = recorder.report(Duration::ZERO);
        assert_eq!((report.completed, report.failed), (1, 1));
        assert!(report.p99_ms.unwrap() >= 5000.0);
        assert_eq!(report.slices[0].p99_ms, None);
        assert!(report.slices[1].p99_ms.unwrap() >= 5000.0);
    }

    fn args(target: SocketAddr) -> Args {
        Args {
            target,
            path: "/work".to_owned(),
            rate: Some(100.0),
            pattern: None,
            seconds: 1,
            warmup_s: 0,
            connections: 4,
            queue: 1024,
            timeout_ms: 5000,
            nice: None,
            realtime: None,
            json: None,
            lifetime: Lifetime {
                parent_death: false,
            },
        }
    }

    #[test]
    fn a_service_under_load_answers_everything() {
        let work = Duration::from_micros(200);
        let pool = service::Pool::new(2, 64, service::calibrate(64, work));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let args = args(listener.local_addr().unwrap());
        let connections = usize::from(args.connections);
        let report = std::thread::scope(|scope| {
            let accepted = listener.incoming().take(connections);
            let served = scope.spawn(|| service::serve(accepted, &pool, connections));
            let report = generate(&args).unwrap();
            served.join().unwrap().unwrap();
            report
        });
        assert_eq!((report.completed, report.failed), (100, 0));
        let p50_ms = report.p50_ms.unwrap();
        // Half of the calibrated time allows for an unlucky calibration; the rest is a busy host.
        assert!((0.1..500.0).contains(&p50_ms), "{p50_ms} ms");
        assert_eq!(report.slices.len(), 1);
    }

    #[test]
    fn a_service_which_never_answers_fails_every_request() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let report = generate(&Args {
            timeout_ms: 100,
            rate: Some(20.0),
            ..args(listener.local_addr().unwrap())
        })
        .unwrap();
        assert_eq!((report.completed, report.failed), (0, 20));
        assert!(report.p50_ms.unwrap() >= 100.0);
    }

    #[test]
    fn a_missing_service_is_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = listener.local_addr().unwrap();
        drop(listener);
        let error = generate(&args(target)).unwrap_err().to_string();
        assert!(error.contains(&target.to_string()), "{error}");
    }
}
