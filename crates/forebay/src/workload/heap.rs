//! An application with a known working set: some of its memory it works with all the time, some
//! it only holds, and some comes and goes in a regular swing.
//!
//! One unit is one page of 4 KiB: picked at random in the hot part (and what the swing holds just
//! then), read, mixed, written. So the count measures how much of the hot part is in memory. A
//! page of the cold part is touched in turn, all of them once in `--touch-cold-every`, or never.

use std::path::PathBuf;
use std::time::Duration;

use rustix::time::ClockId;

use super::{CountFile, Error, Lifetime, Progress, bind_to_parent, now};

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
const MIB_MAX: i64 = 1 << 20;
/// Pages between two looks at the clock.
const ROUND: u64 = 64;

/// `forebay workload heap`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Memory it works with, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=MIB_MAX))]
    hot: u32,
    /// Memory it only holds, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=MIB_MAX))]
    cold: u32,
    /// Touch all of the cold memory once in this time [default: never]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    touch_cold_every: Option<u64>,
    /// Memory that comes and goes, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=MIB_MAX))]
    swing: u32,
    /// Time from one peak of the swing to the next
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    swing_period: u64,
    /// Pages to work on in a second, at most [default: as many as it can]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// File which shows the pages done, rewritten every 100 ms
    #[arg(long, value_name = "FILE")]
    count_file: PathBuf,
    /// End after this time [default: run until killed]
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    #[command(flatten)]
    lifetime: Lifetime,
}

/// Works until the time is over or the process is killed.
pub(crate) fn run(args: Args) -> Result<(), Error> {
    bind_to_parent(args.lifetime)?;
    let count_file = CountFile::create(&args.count_file)?;
    let progress = Progress::default();
    std::thread::scope(|scope| {
        let worker = std::thread::Builder::new().spawn_scoped(scope, || {
            Heap::new(&args).work(&args, &progress);
        });
        if let Err(source) = worker {
            progress.stop();
            return Err(Error::System {
                attempt: "start",
                object: "the thread that works".to_owned(),
                remedy: "raise pids.max",
                source,
            });
        }
        progress.publish(&count_file, args.seconds)
    })
}

struct Heap {
    /// Pieces of 1 MiB, as is the swing.
    hot: Vec<Box<[u8]>>,
    cold: Vec<Box<[u8]>>,
    /// How many of the hot ones always stay.
    steady: usize,
    random: fastrand::Rng,
    /// The cold page that is touched next.
    next_cold: usize,
}

impl Heap {
    fn new(args: &Args) -> Self {
        let mut heap = Self {
            hot: Vec::new(),
            cold: Vec::new(),
            steady: args.hot as usize,
            random: fastrand::Rng::with_seed(1),
            next_cold: 0,
        };
        for _ in 0..args.cold {
            let piece = heap.piece();
            heap.cold.push(piece);
        }
        heap.follow(0);
        heap
    }

    /// A piece of memory that is really there: every page is written.
    fn piece(&mut self) -> Box<[u8]> {
        let mut piece = vec![0; MIB].into_boxed_slice();
        for page in (0..MIB).step_by(PAGE) {
            piece[page] = self.random.u8(1..);
        }
        piece
    }

    /// Holds so much beyond what always stays.
    fn follow(&mut self, swing: usize) {
        let wanted = self.steady + swing;
        while self.hot.len() < wanted {
            let piece = self.piece();
            self.hot.push(piece);
        }
        self.hot.truncate(wanted);
    }

    fn work(&mut self, args: &Args, progress: &Progress) {
        let began = now(ClockId::Monotonic);
        let mut touched = 0;
        let mut done: u64 = 0;
        while !progress.stopped() {
            for _ in 0..ROUND {
                let piece = self.random.usize(..self.hot.len());
                let page = self.random.usize(..MIB / PAGE) * PAGE;
                mix(&mut self.hot[piece][page..page + PAGE]);
            }
            done += ROUND;
            progress.add(ROUND);
            let passed = now(ClockId::Monotonic).saturating_sub(began);
            if args.swing > 0 {
                self.follow(swing_at(args, passed));
            }
            if let Some(every) = args.touch_cold_every {
                touched = self.touch_cold(touched, every, passed);
            }
            if let Some(rate) = args.rate {
                let due = Duration::from_secs(done) / u32::try_from(rate).unwrap_or(u32::MAX);
                std::thread::sleep(due.saturating_sub(passed));
            }
        }
    }

    /// Touches the cold pages that are due by now; says how many were, in all.
    fn touch_cold(&mut self, touched: u64, every: u64, passed: Duration) -> u64 {
        let pages = self.cold.len() * (MIB / PAGE);
        let due = passed.as_millis() * pages as u128 / (u128::from(every) * 1000);
        let due = u64::try_from(due).unwrap_or(u64::MAX);
        // What was missed while nothing ran is not made up for.
        for _ in touched..due.min(touched + ROUND) {
            let (piece, page) = (
                self.next_cold / (MIB / PAGE),
                self.next_cold % (MIB / PAGE) * PAGE,
            );
            mix(&mut self.cold[piece][page..page + PAGE]);
            self.next_cold = (self.next_cold + 1) % pages;
        }
        due
    }
}

/// What the swing holds, in pieces: nothing at first, all of it half a period later.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and the number of pieces"
)]
fn swing_at(args: &Args, passed: Duration) -> usize {
    let turns = passed.as_secs_f64() / Duration::from_secs(args.swing_period).as_secs_f64();
    let part = (1.0 - (std::f64::consts::TAU * turns).cos()) / 2.0;
    (part * f64::from(args.swing)).round() as usize
}

/// Reads every cache line of a page and leaves the sum in it.
fn mix(page: &mut [u8]) {
    let sum = page
        .iter()
        .step_by(64)
        .fold(0u8, |sum, byte| sum.rotate_left(1) ^ byte);
    page[0] = sum;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::read_count;

    fn args(count_file: PathBuf) -> Args {
        Args {
            hot: 2,
            cold: 1,
            touch_cold_every: Some(1),
            swing: 4,
            swing_period: 2,
            rate: None,
            count_file,
            seconds: Some(1),
            lifetime: Lifetime {
                parent_death: false,
            },
        }
    }

    #[test]
    fn pages_done_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let count_file = dir.path().join("count");
        run(args(count_file.clone())).unwrap();
        assert!(read_count(&count_file).unwrap() > 0);
    }

    #[test]
    fn the_swing_comes_and_goes() {
        let args = args(PathBuf::new());
        let mut heap = Heap::new(&args);
        for (ms, pieces) in [(0, 2), (1000, 6), (2000, 2), (2500, 4)] {
            heap.follow(swing_at(&args, Duration::from_millis(ms)));
            assert_eq!(heap.hot.len(), pieces, "at {ms} ms");
        }
    }

    #[test]
    fn the_cold_part_is_touched_as_often_as_asked() {
        let args = args(PathBuf::new());
        let mut heap = Heap::new(&args);
        let touched = heap.touch_cold(0, 10, Duration::from_secs(1));
        assert_eq!((touched, heap.next_cold), (25, 25));
        let touched = heap.touch_cold(touched, 10, Duration::from_secs(2));
        assert_eq!((touched, heap.next_cold), (51, 51));
    }
}
