//! The workloads of the demo and the benchmark: `forebay workload service|load|burn|churn`.
//!
//! Each is a small program of its own, run as a process of its own, so that the daemon sees what
//! it would see on a user's host:
//!
//! - [`service`]: a latency-critical HTTP service which computes for every request;
//! - [`load`]: the open-loop load generator which measures that service;
//! - [`burn`]: a batch application which takes all the CPU it gets;
//! - [`churn`]: a batch application which takes memory and disk bandwidth;
//! - [`slow_disk`]: a file as slow as a disk can be;
//! - [`disk_load`]: a critical reader of a block device, and a batch application which saturates it;
//! - [`heap`]: an application whose working set is known;
//! - [`orders`]: an HTTP service that writes down what it executed, to be killed;
//! - [`origin`]: an HTTP service that answers at once, behind a proxy that is measured;
//! - [`tasks`]: a service that hands compute tasks to the worker beside it;
//! - [`pages`]: an application whose memory can be checked after it was moved.
//!
//! The batch applications say how much they got done through a *count file*: one decimal number
//! of fixed width, overwritten ten times a second, read with [`read_count`].

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{
    Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::clock_nanosleep_absolute;
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::bench::moving::{host, stage};

mod burn;
mod churn;
pub(crate) mod disk_load;
mod heap;
mod load;
mod orders;
mod origin;
mod pages;
mod schedule;
mod service;
mod slow_disk;
pub(crate) mod tasks;

/// The programs under `forebay workload`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Workload {
    /// Serve HTTP on 127.0.0.1 and compute for every request
    Service(service::Args),
    /// Send requests at a given rate and record their latency
    Load(load::Args),
    /// Compute on every CPU and count the units done
    Burn(burn::Args),
    /// Walk through memory and a file, and count the MiB done
    Churn(churn::Args),
    /// Serve a file at the speed of a slow disk
    SlowDisk(slow_disk::Args),
    /// Read a block device at a given rate and record the latency
    DiskReads(disk_load::ReadsArgs),
    /// Read and write a block device as fast as possible
    DiskHog(disk_load::HogArgs),
    /// Work with some memory, hold some more, and count the pages done
    Heap(heap::Args),
    /// Take orders over HTTP, and write down which were executed
    Orders(orders::Args),
    /// Answer over HTTP at once, with few or many bytes
    Origin(origin::Args),
    /// Hand compute tasks to the worker beside it, and check the results
    Tasks(tasks::Args),
    /// Write memory at a given rate, and say over TCP whether all of it is right
    Pages(pages::Args),
    /// Move such an application from one host to another, under a client
    Move(stage::Args),
    /// Be one host of such a move
    Mover(host::Args),
}

/// What every workload takes.
#[derive(Debug, Clone, Copy, clap::Args)]
struct Lifetime {
    /// Be killed as soon as the thread which started this process ends
    #[arg(long)]
    parent_death: bool,
}

/// Why a workload could not start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The system refused something.
    #[error("{attempt} {object} failed; {remedy}")]
    System {
        attempt: &'static str,
        object: String,
        remedy: &'static str,
        source: io::Error,
    },
    /// What was given or found cannot be used.
    #[error("{object}: {reason}; {remedy}")]
    Unusable {
        object: String,
        reason: &'static str,
        remedy: &'static str,
    },
    /// A move failed.
    #[error(transparent)]
    Move(#[from] crate::demo::Error),
}

impl Error {
    /// Turns a system error into one which names the attempt, its object and a remedy.
    fn system<E: Into<io::Error>>(
        attempt: &'static str,
        object: impl ToString,
        remedy: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            attempt,
            object: object.to_string(),
            remedy,
            source: source.into(),
        }
    }

    fn unusable(object: impl ToString, reason: &'static str, remedy: &'static str) -> Self {
        Self::Unusable {
            object: object.to_string(),
            reason,
            remedy,
        }
    }
}

/// Runs one workload until it is done or killed.
pub(crate) fn run(workload: Workload) -> Result<(), Error> {
    match workload {
        Workload::Service(args) => service::run(args),
        Workload::Load(args) => load::run(args),
        Workload::Burn(args) => burn::run(args),
        Workload::Churn(args) => churn::run(args),
        Workload::SlowDisk(args) => slow_disk::run(&args),
        Workload::DiskReads(args) => disk_load::read(&args),
        Workload::DiskHog(args) => disk_load::hog(&args),
        Workload::Orders(args) => orders::run(&args),
        Workload::Origin(args) => origin::run(args),
        Workload::Heap(args) => heap::run(args),
        Workload::Tasks(args) => tasks::run(&args),
        Workload::Pages(args) => pages::run(&args),
        Workload::Move(args) => Ok(stage::run(&args)?),
        Workload::Mover(args) => Ok(host::run(&args)?),
    }
}

/// Lets this process have as many files open as it may have at all: one for each connection.
fn raise_open_files() -> Result<(), Error> {
    let most = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, raised).map_err(Error::system(
        "raise the limit on open files of",
        "this process",
        "this should not happen; report it",
    ))
}

/// Reads the number in a count file.
///
/// The writer overwrites the number in place, so a single read might see half of an update; the
/// number counts when two reads in a row agree.
pub(crate) fn read_count(path: &Path) -> Result<u64, Error> {
    let read = || -> Result<u64, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::system(
            "read count file",
            path.display(),
            "check that its workload was started with this --count-file",
        ))?;
        parse_count(&text).ok_or_else(|| {
            Error::unusable(
                path.display(),
                "is not a count file (20 digits and a newline)",
                "name the file given to a workload as --count-file",
            )
        })
    };
    let mut previous = read()?;
    for _ in 0..COUNT_READS_MAX {
        let current = read()?;
        if current == previous {
            return Ok(current);
        }
        previous = current;
    }
    Err(Error::unusable(
        path.display(),
        "changes at every read",
        "let only one workload write to it",
    ))
}

const COUNT_READS_MAX: usize = 8;
const COUNT_DIGITS: usize = 20;
const PUBLISH_PERIOD: Duration = Duration::from_millis(100);

fn parse_count(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('\n')?;
    let plain = digits.len() == COUNT_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// A count file open for writing.
#[derive(Debug)]
struct CountFile {
    file: File,
    path: PathBuf,
}

impl CountFile {
    /// Creates or replaces the file, which reads as 0 from its first moment on.
    fn create(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            file: place(path, Self::line(0).as_bytes())?,
            path: path.to_owned(),
        })
    }

    fn write(&self, count: u64) -> Result<(), Error> {
        self.file
            .write_all_at(Self::line(count).as_bytes(), 0)
            .map_err(Error::system(
                "write count file",
                self.path.display(),
                "free space there, or name another --count-file",
            ))
    }

    fn line(count: u64) -> String {
        format!("{count:0COUNT_DIGITS$}\n")
    }
}

/// What the threads of a batch workload share: units done, and whether to stop.
#[derive(Debug, Default)]
struct Progress {
    done: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    fn add(&self, units: u64) {
        self.done.fetch_add(units, Ordering::Relaxed);
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Writes the count every [`PUBLISH_PERIOD`] until `seconds` are over or a worker stopped,
    /// and leaves with the stop flag set, whatever happened.
    fn publish(&self, file: &CountFile, seconds: Option<u64>) -> Result<(), Error> {
        let start = now(ClockId::Monotonic);
        let end = seconds.map(|seconds| start + Duration::from_secs(seconds));
        let mut next = start;
        let outcome = loop {
            if let Err(error) = file.write(self.done.load(Ordering::Relaxed)) {
                break Err(error);
            }
            if self.stopped() || end.is_some_and(|end| next >= end) {
                break Ok(());
            }
            // A publisher that was held up goes on from now: it owes nobody the missed periods.
            next = (next + PUBLISH_PERIOD).max(now(ClockId::Monotonic));
            if let Err(error) = sleep_until(next) {
                break Err(error);
            }
        };
        self.stop();
        outcome
    }
}

/// Asks the kernel to kill this process when its parent ends, if the user wants that.
///
/// The kernel watches the *thread* which started this process, so that thread has to stay.
fn bind_to_parent(lifetime: Lifetime) -> Result<(), Error> {
    if !lifetime.parent_death {
        return Ok(());
    }
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(Error::system(
        "set the parent-death signal of",
        "this process",
        "run it without --parent-death and end it yourself",
    ))?;
    // A parent which ended before the call above would never be noticed.
    if getppid() == parent {
        Ok(())
    } else {
        Err(Error::unusable(
            "the parent process",
            "ended while this one was starting",
            "start this one from a process which stays",
        ))
    }
}

/// Puts a file with these contents at `path` in one step: a reader finds all of it or none.
fn place(path: &Path, contents: &[u8]) -> Result<File, Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = PathBuf::from(name);
    let remedy = "name a file in a directory which exists and may be written to";
    let mut file =
        File::create_new(&new).map_err(Error::system("create", new.display(), remedy))?;
    let placed = file
        .write_all(contents)
        .and_then(|()| std::fs::rename(&new, path));
    if placed.is_err()
        && let Err(error) = std::fs::remove_file(&new)
    {
        tracing::warn!(file = %new.display(), %error, "a temporary file remains");
    }
    placed.map_err(Error::system("write", path.display(), remedy))?;
    Ok(file)
}

/// Writes one line to standard output; a closed pipe is an error, not a panic.
fn print_line(line: &str) -> Result<(), Error> {
    writeln!(io::stdout().lock(), "{line}").map_err(Error::system(
        "write",
        "standard output",
        "keep its reader open, or write to a file",
    ))
}

/// Reads from a socket; being stopped and continued, which interrupts a read that has a timeout,
/// goes unnoticed. 0 means the other side has closed the connection, or there is no room left.
fn receive(mut stream: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(room) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Reads a clock as the time since its own beginning.
fn now(clock: ClockId) -> Duration {
    // The clocks used here, monotonic and CPU time, are never negative.
    Duration::try_from(clock_gettime(clock)).unwrap_or(Duration::ZERO)
}

/// Sleeps until the monotonic clock shows `at`.
fn sleep_until(at: Duration) -> Result<(), Error> {
    let failed = |source: io::Error| Error::System {
        attempt: "sleep until",
        object: format!("{at:?} of the monotonic clock"),
        remedy: "use shorter times",
        source,
    };
    let at = Timespec::try_from(at).map_err(|source| failed(io::Error::other(source)))?;
    loop {
        match clock_nanosleep_absolute(ClockId::Monotonic, &at) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_file_reads_back_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("count");
        std::fs::write(&path, "something longer than a count, from before").unwrap();
        let file = CountFile::create(&path).unwrap();
        assert_eq!(read_count(&path).unwrap(), 0);
        for count in [1, 42, u64::MAX, 7] {
            file.write(count).unwrap();
            assert_eq!(read_count(&path).unwrap(), count);
        }
        let names = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 1, "the temporary name is gone");
    }

    #[test]
    fn a_file_which_cannot_be_placed_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("directory");
        std::fs::create_dir(&taken).unwrap();
        let error = place(&taken, b"text").unwrap_err().to_string();
        assert!(error.contains("directory"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_count_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("count");
        let error = read_count(&path).unwrap_err().to_string();
        assert!(error.contains("--count-file"), "{error}");
        let bad = [
            "",
            "12\n",
            "00000000000000000012",
            "+0000000000000000012\n",
            "99999999999999999999\n",
        ];
        for text in bad {
            std::fs::write(&path, text).unwrap();
            assert!(read_count(&path).is_err(), "{text:?}");
        }
    }

    #[test]
    fn publishing_ends_when_a_worker_stops_and_writes_the_last_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("count");
        let progress = Progress::default();
        progress.add(5);
        progress.stop();
        progress
            .publish(&CountFile::create(&path).unwrap(), None)
            .unwrap();
        assert_eq!(read_count(&path).unwrap(), 5);
    }
}
