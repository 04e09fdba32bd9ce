//! Requests of one kind for a while, and how fast they were answered.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use forebay_core::units::Bytes;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::Error;
use super::disk::Scratch;

/// How long a device may leave a request unanswered after the measurement.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest latency that is told apart, in us.
const LATENCY_US_MAX: u64 = 60_000_000;

/// A file or device open for direct I/O.
#[derive(Debug, Clone)]
pub(super) struct Target {
    file: Arc<File>,
    /// What errors call it.
    name: PathBuf,
    /// Addresses, offsets and lengths are multiples of this.
    alignment: usize,
}

impl Target {
    pub(super) fn new(file: File, name: PathBuf, alignment: usize) -> Self {
        let file = Arc::new(file);
        Self {
            file,
            name,
            alignment,
        }
    }
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "reads",
            Self::Write => "writes",
        })
    }
}

/// Which requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phase {
    /// Length of each, in bytes.
    pub(super) block: usize,
    /// How many at a time.
    pub(super) depth: usize,
    /// Anywhere, or one after the other.
    pub(super) random: bool,
}

/// How fast requests were answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rate {
    /// Length of a request.
    pub(super) block_bytes: u64,
    /// Requests at a time.
    pub(super) depth: u64,
    /// Requests answered in all.
    pub(super) requests: u64,
    /// Bandwidth.
    pub(super) bytes_per_second: u64,
    /// Requests answered in a second.
    pub(super) requests_per_second: u64,
    /// Median latency.
    pub(super) p50_us: u64,
    /// 99 of 100 were answered within this.
    pub(super) p99_us: u64,
    /// The longest latency.
    pub(super) max_us: u64,
}

/// What the threads of one phase share.
#[derive(Debug)]
struct Work {
    target: Target,
    access: Access,
    phase: Phase,
    /// Blocks within reach.
    blocks: u64,
    /// Whether to end after the last block, instead of starting over.
    once: bool,
    /// The next block of a phase in order.
    next: AtomicU64,
    deadline: Instant,
}

/// What one thread saw.
struct Tally {
    latency_us: Histogram<u64>,
    bytes: u64,
}

/// Sends requests of one kind to the first `span` bytes for a while.
///
/// # Errors
/// When the device refuses one, or leaves one unanswered.
pub(super) fn measure(
    target: &Target,
    access: Access,
    phase: Phase,
    span: Bytes,
    length: Duration,
) -> Result<Rate, Error> {
    let begin = Instant::now();
    let work = Arc::new(Work::new(target, access, phase, span, begin + length)?);
    let tally = work.run()?;
    let elapsed = begin.elapsed().as_secs_f64();
    let requests = tally.latency_us.len();
    let per_second = |amount: u64| Bytes::from_f64(Bytes(amount).as_f64() / elapsed).0;
    Ok(Rate {
        block_bytes: phase.block as u64,
        depth: phase.depth as u64,
        requests,
        bytes_per_second: per_second(tally.bytes),
        requests_per_second: per_second(requests),
        p50_us: tally.latency_us.value_at_quantile(0.5),
        p99_us: tally.latency_us.value_at_quantile(0.99),
        max_us: tally.latency_us.max(),
    })
}

/// Writes a scratch file from its start, as far as it gets in the time given; how far.
///
/// # Errors
/// As [`measure`], and when the file system is full.
pub(super) fn fill(
    scratch: &Scratch,
    block: usize,
    depth: usize,
    length: Duration,
) -> Result<Bytes, Error> {
    let phase = Phase {
        block,
        depth,
        random: false,
    };
    let deadline = Instant::now() + length;
    let mut work = Work::new(
        &scratch.target(),
        Access::Write,
        phase,
        scratch.size,
        deadline,
    )?;
    work.once = true;
    let work = Arc::new(work);
    // Each block that a thread has taken it also writes before it looks at the clock.
    work.run()?;
    let blocks = work.next.load(Ordering::Relaxed).min(work.blocks);
    Ok(Bytes(blocks * block as u64))
}

impl Work {
    fn new(
        target: &Target,
        access: Access,
        phase: Phase,
        span: Bytes,
        deadline: Instant,
    ) -> Result<Self, Error> {
        let blocks = span.0 / phase.block as u64;
        if blocks == 0 {
            return Err(Error::invalid(
                format!(
                    "measure {access} of {}: {span} is less than one request of {}",
                    target.name.display(),
                    Bytes(phase.block as u64)
                ),
                "give it more --seconds",
            ));
        }
        Ok(Self {
            target: target.clone(),
            access,
            phase,
            blocks,
            once: false,
            next: AtomicU64::new(0),
            deadline,
        })
    }

    /// Runs one thread for each request at a time and adds up what they saw. The threads are
    /// not joined: one whose request is never answered cannot be ended by anybody.
    fn run(self: &Arc<Self>) -> Result<Tally, Error> {
        let attempt = || format!("measure {} of {}", self.access, self.target.name.display());
        let (sender, tallies) = mpsc::channel();
        for seed in 0..self.phase.depth as u64 {
            let (work, sender) = (Arc::clone(self), sender.clone());
            std::thread::Builder::new()
                .name("calibrate".to_owned())
                .spawn(move || {
                    // Nobody listens any more only after another thread has failed.
                    sender.send(work.requests(seed)).ok();
                })
                .map_err(|e| Error::system(format!("{}: start a thread", attempt()), e))?;
        }
        drop(sender);
        let mut all = Tally::new().map_err(|e| Error::system(attempt(), e))?;
        for _ in 0..self.phase.depth {
            let left = self.deadline.saturating_duration_since(Instant::now()) + PATIENCE;
            let tally = tallies
                .recv_timeout(left)
                .map_err(|_| {
                    Error::invalid(
                        format!(
                            "{}: a request was not answered within {} s",
                            attempt(),
                            PATIENCE.as_secs()
                        ),
                        "see `dmesg` for what the kernel says of the device",
                    )
                })?
                .map_err(|e| Error::system(attempt(), e))?;
            all.bytes += tally.bytes;
            all.latency_us
                .add(&tally.latency_us)
                .map_err(|e| Error::system(attempt(), io::Error::other(e)))?;
        }
        if self.access == Access::Write {
            // What the device still holds back belongs to the time that it took.
            self.target
                .file
                .sync_data()
                .map_err(|e| Error::system(attempt(), e))?;
        }
        Ok(all)
    }

    /// Sends requests, one after the other, until the time is over.
    fn requests(&self, seed: u64) -> io::Result<Tally> {
        let mut tally = Tally::new()?;
        let mut rng = fastrand::Rng::with_seed(seed);
        let length = self.phase.block;
        // An aligned part of a buffer that is longer by the alignment.
        let mut room = vec![0_u8; length + self.target.alignment];
        let skip = room.as_ptr().align_offset(self.target.alignment);
        let buffer = &mut room[skip..skip + length];
        // A device that compresses must not be flattered.
        rng.fill(buffer);
        // One request at least, so that a slow device has a number too.
        loop {
            let block = if self.phase.random {
                rng.u64(0..self.blocks)
            } else {
                let next = self.next.fetch_add(1, Ordering::Relaxed);
                if self.once && next >= self.blocks {
                    return Ok(tally);
                }
                next % self.blocks
            };
            let offset = block * length as u64;
            let begin = Instant::now();
            let done = match self.access {
                Access::Read => self.target.file.read_at(buffer, offset)?,
                Access::Write => self.target.file.write_at(buffer, offset)?,
            };
            if done == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            tally.bytes += done as u64;
            let latency = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
            tally.latency_us.saturating_record(latency.max(1));
            if Instant::now() >= self.deadline {
                return Ok(tally);
            }
        }
    }
}

impl Tally {
    fn new() -> io::Result<Self> {
        let latency_us =
            Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).map_err(io::Error::other)?;
        let bytes = 0;
        Ok(Self { latency_us, bytes })
    }
}
