//! Direct reads and writes of a block device: a critical reader that is measured, and a batch
//! application that takes what it can get.
//!
//! The reader sends at a fixed rate whatever happens, and a read's latency counts from when it
//! was due, so that a stall does not hide the reads that it held up. Both bypass the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use hdrhistogram::Histogram;
use rustix::fs::{OFlags, SeekFrom, seek};
use rustix::time::ClockId;

use super::{CountFile, Error, Lifetime, Progress, bind_to_parent, now, place, sleep_until};

/// Every address and length that direct I/O is given is a multiple of this.
const ALIGNMENT: usize = 4096;
/// Reads of the critical application that can be under way at a time.
const READERS: u32 = 32;
/// The longest latency that is told apart.
const LATENCY_US_MAX: u64 = 600_000_000;

/// `forebay workload disk-reads`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReadsArgs {
    /// Block device or file to read
    #[arg(long, value_name = "PATH")]
    device: PathBuf,
    /// Reads per second
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    per_s: u32,
    /// Length of a read, in KiB
    #[arg(long, value_name = "KIB", default_value_t = 4, value_parser = clap::value_parser!(u32).range(4..=4096))]
    kib: u32,
    /// How long to measure
    #[arg(long, value_name = "S")]
    seconds: u64,
    /// How long to read before that
    #[arg(long, value_name = "S", default_value_t = 0)]
    warmup_s: u64,
    /// File that receives the result
    #[arg(long, value_name = "FILE")]
    json: PathBuf,
    #[command(flatten)]
    lifetime: Lifetime,
}

/// `forebay workload disk-hog`.
#[derive(Debug, clap::Args)]
pub(crate) struct HogArgs {
    /// Block device or file to read and write: what is on it is lost
    #[arg(long, value_name = "PATH")]
    device: PathBuf,
    /// Reads at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(0..=256))]
    readers: u16,
    /// Writes at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(0..=256))]
    writers: u16,
    /// Length of a request, in KiB
    #[arg(long, value_name = "KIB", default_value_t = 128, value_parser = clap::value_parser!(u32).range(4..=4096))]
    kib: u32,
    /// File which shows the KiB done, rewritten every 100 ms
    #[arg(long, value_name = "FILE")]
    count_file: PathBuf,
    #[command(flatten)]
    lifetime: Lifetime,
}

/// What the reader reports.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Reads {
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p999_us: u64,
    pub(crate) max_us: u64,
    pub(crate) completed: u64,
}

/// A device open past the page cache.
#[derive(Debug)]
struct Target {
    file: File,
    path: PathBuf,
    blocks: u64,
}

impl Target {
    fn open(path: &Path, length: usize, writes: bool) -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(writes)
            .custom_flags(OFlags::DIRECT.bits().cast_signed())
            .open(path)
            .map_err(Error::system(
                "open",
                path.display(),
                "name a block device that you may use",
            ))?;
        let size = seek(&file, SeekFrom::End(0)).map_err(Error::system(
            "find the size of",
            path.display(),
            "name a block device",
        ))?;
        let blocks = size / length as u64;
        if blocks == 0 {
            return Err(Error::unusable(
                path.display(),
                "is smaller than one request",
                "name a larger device",
            ));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            blocks,
        })
    }

    fn failed(&self, attempt: &'static str) -> impl FnOnce(io::Error) -> Error {
        Error::system(attempt, self.path.display(), "see dmesg")
    }
}

/// A buffer at an address that direct I/O takes.
#[derive(Debug)]
struct Buffer {
    room: Vec<u8>,
    skip: usize,
}

impl Buffer {
    fn new(length: usize) -> Self {
        let room = vec![0x5A; length + ALIGNMENT];
        let skip = room.as_ptr().align_offset(ALIGNMENT);
        Self { room, skip }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let length = self.room.len() - ALIGNMENT;
        &mut self.room[self.skip..self.skip + length]
    }
}

/// Reads at a fixed rate and reports.
pub(crate) fn read(args: &ReadsArgs) -> Result<(), Error> {
    bind_to_parent(args.lifetime)?;
    let length = args.kib as usize * 1024;
    let target = Target::open(&args.device, length, false)?;
    let begin = now(ClockId::Monotonic);
    let measured_from = begin + Duration::from_secs(args.warmup_s);
    let end = measured_from + Duration::from_secs(args.seconds);
    let (sender, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for number in 0..READERS {
            let (target, sender) = (&target, sender.clone());
            scope.spawn(move || {
                let schedule = Schedule {
                    first: begin + Duration::from_secs(1) * number / args.per_s,
                    every: Duration::from_secs(1) * READERS / args.per_s,
                    measured_from,
                    end,
                };
                // The receiver lives longer.
                sender
                    .send(read_on_time(target, length, schedule, number))
                    .ok();
            });
        }
    });
    drop(sender);
    let mut all = histogram()?;
    for result in results {
        all.add(result?).map_err(|error| {
            Error::system("add up", "latencies", "this should not happen; report it")(
                io::Error::other(error),
            )
        })?;
    }
    let report = Reads {
        p50_us: all.value_at_quantile(0.5),
        p99_us: all.value_at_quantile(0.99),
        p999_us: all.value_at_quantile(0.999),
        max_us: all.max(),
        completed: all.len(),
    };
    let text = serde_json::json!(report).to_string() + "\n";
    place(&args.json, text.as_bytes()).map(drop)
}

fn histogram() -> Result<Histogram<u64>, Error> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).map_err(|error| {
        Error::system("make", "a histogram", "this should not happen; report it")(io::Error::other(
            error,
        ))
    })
}

#[derive(Debug, Clone, Copy)]
struct Schedule {
    first: Duration,
    every: Duration,
    measured_from: Duration,
    end: Duration,
}

fn read_on_time(
    target: &Target,
    length: usize,
    schedule: Schedule,
    seed: u32,
) -> Result<Histogram<u64>, Error> {
    let mut latency_us = histogram()?;
    let mut random = fastrand::Rng::with_seed(u64::from(seed));
    let mut buffer = Buffer::new(length);
    let mut due = schedule.first;
    while due < schedule.end {
        sleep_until(due)?;
        let offset = random.u64(0..target.blocks) * length as u64;
        target
            .file
            .read_exact_at(buffer.bytes(), offset)
            .map_err(target.failed("read"))?;
        let took = now(ClockId::Monotonic).saturating_sub(due);
        if due >= schedule.measured_from {
            let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            latency_us.saturating_record(us.max(1));
        }
        due += schedule.every;
    }
    Ok(latency_us)
}

/// Reads and writes as fast as it is let.
pub(crate) fn hog(args: &HogArgs) -> Result<(), Error> {
    bind_to_parent(args.lifetime)?;
    let length = args.kib as usize * 1024;
    let target = Target::open(&args.device, length, args.writers > 0)?;
    let count_file = CountFile::create(&args.count_file)?;
    let progress = Progress::default();
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for number in 0..args.readers + args.writers {
            let (target, progress) = (&target, &progress);
            let writes = number < args.writers;
            workers.push(scope.spawn(move || {
                let done = take(target, length, writes, number, progress);
                // Without one of them the figures mean something else.
                progress.stop();
                done
            }));
        }
        let published = progress.publish(&count_file, None);
        for worker in workers {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        published
    })
}

fn take(
    target: &Target,
    length: usize,
    writes: bool,
    seed: u16,
    progress: &Progress,
) -> Result<(), Error> {
    let mut random = fastrand::Rng::with_seed(u64::from(seed));
    let mut buffer = Buffer::new(length);
    let kib = length as u64 / 1024;
    while !progress.stopped() {
        let offset = random.u64(0..target.blocks) * length as u64;
        if writes {
            target
                .file
                .write_all_at(buffer.bytes(), offset)
                .map_err(target.failed("write"))?;
        } else {
            target
                .file
                .read_exact_at(buffer.bytes(), offset)
                .map_err(target.failed("read"))?;
        }
        progress.add(kib);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_read_that_was_due_is_counted() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let device = dir.path().join("device");
        File::create(&device).unwrap().set_len(1 << 20).unwrap();
        let json = dir.path().join("json");
        read(&ReadsArgs {
            device,
            per_s: 200,
            kib: 4,
            seconds: 1,
            warmup_s: 0,
            json: json.clone(),
            lifetime: Lifetime {
                parent_death: false,
            },
        })
        .unwrap();
        let text = std::fs::read_to_string(json).unwrap();
        let reads: Reads = serde_json::from_str(&text).unwrap();
        assert!((190..=210).contains(&reads.completed), "{reads:?}");
        assert!(
            reads.p50_us > 0 && reads.p50_us <= reads.max_us,
            "{reads:?}"
        );
    }

    #[test]
    fn what_is_too_small_is_refused() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let device = dir.path().join("device");
        File::create(&device).unwrap().set_len(4096).unwrap();
        let error = Target::open(&device, 8192, false).unwrap_err();
        assert!(error.to_string().contains("smaller than one request"));
    }
}
