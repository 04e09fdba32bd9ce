//! A batch application which takes memory and disk bandwidth and counts the MiB it gets done.
//!
//! A walker goes through all of its memory in random steps and folds what it finds into the MiB
//! that comes next; that MiB is written to a file, made durable, dropped from the page cache,
//! read back and compared. Only then does it count. The file has no name, or loses it at once,
//! so nothing remains of a killed process.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, OFlags, fadvise, fdatasync};
use rustix::io::Errno;

use super::{CountFile, Error, Lifetime, Progress, bind_to_parent};

const MIB: usize = 1 << 20;
const WORDS_PER_MIB: usize = MIB / size_of::<u64>();

/// MiB of memory read for every MiB of file.
const STEPS_PER_MIB: usize = 8;
/// MiB of file made durable and read back at a time.
const EXTENT_MIB: usize = 8;

/// `forebay workload churn`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Memory to allocate and walk through
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    mib: u32,
    /// Size of the file to write and read, over and over
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    file_mib: u32,
    /// Directory of that file, on the disk to be kept busy
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// File which shows the MiB done, rewritten every 100 ms
    #[arg(long, value_name = "FILE")]
    count_file: PathBuf,
    /// End after this time [default: run until killed]
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    #[command(flatten)]
    lifetime: Lifetime,
}

/// Churns until the time is over or the process is killed.
pub(crate) fn run(args: Args) -> Result<(), Error> {
    bind_to_parent(args.lifetime)?;
    let count_file = CountFile::create(&args.count_file)?;
    let progress = Progress::default();
    // Publishing has a thread of its own, because a sync may take longer than a period.
    std::thread::scope(|scope| {
        let publisher = std::thread::Builder::new()
            .spawn_scoped(scope, || progress.publish(&count_file, args.seconds))
            .map_err(Error::system(
                "start",
                "the publishing thread",
                "raise pids.max",
            ))?;
        let churned = churn(&args, &progress);
        progress.stop();
        let published = publisher
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic));
        churned.and(published)
    })
}

fn churn(args: &Args, progress: &Progress) -> Result<(), Error> {
    let mut walker = Walker::new(args.mib, progress)?;
    let scratch = Scratch::create(&args.dir)?;
    let file_mib = u64::from(args.file_mib);
    let mut wrote = Vec::with_capacity(MIB);
    let mut read = vec![0; MIB];
    let mut sums = Vec::new();
    for extent in extents(file_mib).cycle() {
        sums.clear();
        for mib in extent.clone() {
            walker.fill(&mut wrote);
            sums.push(fold(&wrote));
            scratch.write(mib, &wrote)?;
        }
        scratch.settle(&extent)?;
        for (mib, sum) in extent.zip(&sums) {
            scratch.read(mib, &mut read)?;
            if fold(&read) != *sum {
                return Err(Error::unusable(
                    format!("MiB {mib} of the file in {}", args.dir.display()),
                    "reads back different from what was written",
                    "check that disk, or use another --dir",
                ));
            }
            progress.add(1);
        }
        if progress.stopped() {
            return Ok(());
        }
    }
    Ok(())
}

/// The parts of the file which are written, settled and read back as one.
fn extents(file_mib: u64) -> impl Iterator<Item = std::ops::Range<u64>> + Clone {
    let starts = (0..file_mib).step_by(EXTENT_MIB);
    starts.map(move |start| start..file_mib.min(start + EXTENT_MIB as u64))
}

fn fold(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks();
    words.iter().fold(0, |sum: u64, word| {
        sum.rotate_left(5) ^ u64::from_le_bytes(*word)
    })
}

/// Memory, and where in it the random walk stands.
#[derive(Debug)]
struct Walker {
    words: Vec<u64>,
    random: fastrand::Rng,
}

impl Walker {
    /// Allocates and touches all of the memory, or as much as `progress` leaves time for.
    fn new(mib: u32, progress: &Progress) -> Result<Self, Error> {
        let mut walker = Self {
            words: Vec::new(),
            random: fastrand::Rng::with_seed(1),
        };
        let words = mib as usize * WORDS_PER_MIB;
        walker.words.try_reserve_exact(words).map_err(|source| {
            Error::system("allocate", format!("{mib} MiB"), "use a smaller --mib")(
                io::Error::other(source),
            )
        })?;
        for _ in 0..mib {
            if progress.stopped() && !walker.words.is_empty() {
                break;
            }
            let random = &mut walker.random;
            let fresh = (0..WORDS_PER_MIB).map(|_| random.u64(..));
            walker.words.extend(fresh);
        }
        Ok(walker)
    }

    /// Makes the next MiB: reads [`STEPS_PER_MIB`] random ones, and changes the last.
    fn fill(&mut self, bytes: &mut Vec<u8>) {
        let mut next = vec![self.random.u64(..); WORDS_PER_MIB];
        for _ in 0..STEPS_PER_MIB {
            let step = self.step();
            for (next, word) in next.iter_mut().zip(&self.words[step]) {
                *next = next.rotate_left(5) ^ word;
            }
        }
        let step = self.step();
        self.words[step].copy_from_slice(&next);
        bytes.clear();
        bytes.extend(next.iter().flat_map(|word| word.to_le_bytes()));
    }

    fn step(&mut self) -> std::ops::Range<usize> {
        let start = self.random.usize(..=self.words.len() - WORDS_PER_MIB);
        start..start + WORDS_PER_MIB
    }
}

/// The nameless file.
#[derive(Debug)]
struct Scratch {
    file: File,
    dir: PathBuf,
}

impl Scratch {
    fn create(dir: &Path) -> Result<Self, Error> {
        let file = nameless(dir).map_err(Error::system(
            "create a file in",
            dir.display(),
            "name a directory which exists and may be written to as --dir",
        ))?;
        Ok(Self {
            file,
            dir: dir.to_owned(),
        })
    }

    fn write(&self, mib: u64, bytes: &[u8]) -> Result<(), Error> {
        self.file
            .write_all_at(bytes, mib * MIB as u64)
            .map_err(Error::system(
                "write the file in",
                self.dir.display(),
                "free space there, or use a smaller --file-mib",
            ))
    }

    /// Makes these MiB durable and drops them from the page cache, so that reading them back
    /// reads the disk.
    fn settle(&self, extent: &std::ops::Range<u64>) -> Result<(), Error> {
        let length = NonZeroU64::new((extent.end - extent.start) * MIB as u64);
        fdatasync(&self.file)
            .and_then(|()| {
                let start = extent.start * MIB as u64;
                fadvise(&self.file, start, length, Advice::DontNeed)
            })
            .map_err(Error::system(
                "sync the file in",
                self.dir.display(),
                "check that disk, or use another --dir",
            ))
    }

    fn read(&self, mib: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.file
            .read_exact_at(bytes, mib * MIB as u64)
            .map_err(Error::system(
                "read the file in",
                self.dir.display(),
                "check that disk, or use another --dir",
            ))
    }
}

/// Opens a file without a name, or, where the file system has no such files, one which loses its
/// name at once.
fn nameless(dir: &Path) -> io::Result<File> {
    let tmpfile = i32::from_ne_bytes(OFlags::TMPFILE.bits().to_ne_bytes());
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let opened = options.clone().custom_flags(tmpfile).open(dir);
    match opened.as_ref().err().and_then(Errno::from_io_error) {
        // Not every file system has it, and some then see an attempt to write to a directory.
        Some(Errno::OPNOTSUPP | Errno::ISDIR) => {}
        _ => return opened,
    }
    let name = dir.join(format!("forebay-churn.{}", std::process::id()));
    let file = options.create_new(true).open(&name)?;
    std::fs::remove_file(&name)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::read_count;

    fn args(dir: &Path) -> Args {
        Args {
            mib: 2,
            file_mib: 10,
            dir: dir.to_owned(),
            count_file: dir.join("count"),
            seconds: Some(1),
            lifetime: Lifetime {
                parent_death: false,
            },
        }
    }

    #[test]
    fn what_was_read_back_counts_and_no_file_remains() {
        let dir = tempfile::tempdir().unwrap();
        run(args(dir.path())).unwrap();
        assert!(read_count(&dir.path().join("count")).unwrap() > 0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let error = run(Args {
            dir: missing.clone(),
            ..args(dir.path())
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains(&missing.display().to_string()), "{error}");
    }

    #[test]
    fn extents_cover_the_file_once() {
        for file_mib in [1, 7, 8, 9, 256] {
            let covered: Vec<_> = extents(file_mib).flatten().collect();
            assert_eq!(covered, (0..file_mib).collect::<Vec<_>>());
        }
    }
}
