//! A batch application which takes all the CPU it gets and counts the work it gets done.
//!
//! One unit is a fixed amount of work: fill 32 KiB with pseudo-random numbers, sort them, fold
//! them into one. It needs next to no memory and no disk, so that what the count measures is CPU
//! time, at the speed the CPU had.

use std::hint::black_box;
use std::path::PathBuf;

use super::{CountFile, Error, Lifetime, Progress, bind_to_parent};

const UNIT_WORDS: usize = 4096;
const THREADS_MAX: u16 = 1024;

/// `forebay workload burn`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Threads which compute [default: twice the CPUs this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(THREADS_MAX)))]
    threads: Option<u16>,
    /// File which shows the units done, rewritten every 100 ms
    #[arg(long, value_name = "FILE")]
    count_file: PathBuf,
    /// End after this time [default: run until killed]
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    #[command(flatten)]
    lifetime: Lifetime,
}

/// Computes until the time is over or the process is killed.
pub(crate) fn run(args: Args) -> Result<(), Error> {
    bind_to_parent(args.lifetime)?;
    let threads = match args.threads {
        Some(threads) => usize::from(threads),
        None => 2 * cpus()?,
    };
    let count_file = CountFile::create(&args.count_file)?;
    let progress = Progress::default();
    std::thread::scope(|scope| {
        for seed in 0..threads {
            let progress = &progress;
            std::thread::Builder::new()
                .spawn_scoped(scope, move || burn(progress, seed as u64))
                .map_err(|source| {
                    progress.stop();
                    Error::System {
                        attempt: "start",
                        object: format!("thread {} of {threads}", seed + 1),
                        remedy: "use fewer --threads or raise pids.max",
                        source,
                    }
                })?;
        }
        progress.publish(&count_file, args.seconds)
    })
}

fn cpus() -> Result<usize, Error> {
    let cpus = std::thread::available_parallelism().map_err(Error::system(
        "count the CPUs of",
        "this process",
        "give --threads",
    ))?;
    Ok(cpus.get().min(usize::from(THREADS_MAX / 2)))
}

fn burn(progress: &Progress, seed: u64) {
    let mut words = vec![0; UNIT_WORDS];
    let mut random = fastrand::Rng::with_seed(seed);
    while !progress.stopped() {
        black_box(unit(&mut words, &mut random));
        progress.add(1);
    }
}

/// One unit of work; what it returns depends on every step of it.
fn unit(words: &mut [u64], random: &mut fastrand::Rng) -> u64 {
    for word in words.iter_mut() {
        *word = random.u64(..);
    }
    words.sort_unstable();
    words
        .iter()
        .fold(0, |folded: u64, word| folded.rotate_left(5) ^ *word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::read_count;

    #[test]
    fn a_unit_is_the_same_work_every_time() {
        let compute = || unit(&mut vec![0; UNIT_WORDS], &mut fastrand::Rng::with_seed(1));
        assert_eq!(compute(), compute());
    }

    #[test]
    fn units_done_are_published() {
        let dir = tempfile::tempdir().unwrap();
        let count_file = dir.path().join("count");
        run(Args {
            threads: Some(1),
            count_file: count_file.clone(),
            seconds: Some(1),
            lifetime: Lifetime {
                parent_death: false,
            },
        })
        .unwrap();
        assert!(read_count(&count_file).unwrap() > 0);
    }
}
