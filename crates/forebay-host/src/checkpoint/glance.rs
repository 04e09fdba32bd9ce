//! How much of its memory a process that runs writes, found out without touching it.
//!
//! # Problem
//!
//! Whether copying a process would come to an end has to be known before anything is done to it. What the
//! rounds of a copy go by ([`precopy`](super::precopy)) is exact, and leaves traces: the process is stopped, by which
//! some calls that it waits in (`epoll_wait`) end with EINTR, huge pages are split and stay so, and each first write to a
//! page is a fault.
//!
//! # Approach
//!
//! A sample of its pages is read, and read again within half a second: what differs was written. Reading
//! memory of another process changes nothing that it can see.
//!
//! What was not chosen: the kernel's soft-dirty bits are exact and cheap, but many kernels are built without them, and
//! clearing them takes them from whoever else goes by them; bits of what was referenced tell reads as well, are not set for
//! what the processor has the translation of, and reclaim goes by them; counts of faults tell of pages that are new alone.
//!
//! # Properties
//!
//! - Only pages that are there are read: none is brought in from swap, and none is made.
//! - What is written as it was before is not seen: the kernel counts that, so that rounds may have more to send.
//! - One page of each part of the memory is looked at, and which one of that part is chance: no pattern of
//!   writes falls in with it. With [`SAMPLE`] pages, a part of 10 % is seen as 9 to 11 %, one of 1 % as 0.7 to 1.3 % (95 %).
//! - It takes half a second, some 20 ms of processor time, and twice the sample in memory.
//!
//! Source: QEMU's `calc-dirty-rate` in its mode `page-sampling`.

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use forebay_core::fleet::dirtying::Dirtying;
use forebay_core::units::Bytes;

use super::precopy::userfault::Range;
use super::precopy::{maps, page_size, scan};
use super::preflight::{field, read};
use crate::error::HostError;

/// Pages that are looked at, at most.
const SAMPLE: usize = 4096;
/// When they are looked at again.
const LOOKS: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(500),
];

/// Looks at a process for half a second; so much of it would be copied while it runs.
///
/// # Errors
/// When it may not be looked at, or ended meanwhile.
pub fn glance(pid: u32, tracked: Bytes) -> Result<Dirtying, HostError> {
    let root = PathBuf::from(format!("/proc/{pid}"));
    let open = |name: &str| {
        let path = root.join(name);
        File::open(&path).map_err(|error| HostError::file("open", &path, error))
    };
    let runs = present(pid, &open("pagemap")?)?;
    let there: u64 = runs.iter().map(|run| run.len).sum();
    let memory = open("mem")?;
    let before = anonymous(&root)?;
    let began = Instant::now();
    let sample: Vec<(u64, Vec<u8>)> = chosen(&runs)
        .filter_map(|at| Some((at, page(&memory, at)?)))
        .collect();
    // What is not there, in swap for one, is not written.
    let share = Bytes(there).as_f64() / tracked.as_f64().max(Bytes(there).as_f64()).max(1.0);
    let mut looks = Vec::new();
    for after in LOOKS {
        std::thread::sleep(after.saturating_sub(began.elapsed()));
        let looked = began.elapsed();
        looks.push((looked, differs(&memory, &sample) * share));
    }
    let grown = anonymous(&root)?.as_f64() - before.as_f64();
    Ok(Dirtying::new(
        tracked,
        &looks,
        grown / began.elapsed().as_secs_f64(),
    ))
}

/// The runs of pages that would be copied and are in memory.
fn present(pid: u32, pagemap: &File) -> Result<Vec<Range>, HostError> {
    let mut runs = Vec::new();
    let number = i32::try_from(pid).map_err(|_| {
        let what = format!("look at process {pid}: no process has that number");
        HostError::missing(what, "see `ps` for those that run")
    })?;
    for area in maps::read(number)? {
        if !area.is_lazy() {
            continue;
        }
        let range = Range {
            start: area.start,
            len: area.end - area.start,
        };
        let which = (scan::Which::Present, scan::Doing::Look);
        scan::scan(pagemap, range, which, |run| runs.push(run)).map_err(|error| {
            HostError::io(format!("look which pages process {pid} has"), error)
                .advise("that needs Linux 6.7 or newer")
        })?;
    }
    Ok(runs)
}

/// The addresses of one page of each part of these, all where there are few.
fn chosen(runs: &[Range]) -> impl Iterator<Item = u64> {
    let size = page_size();
    let pages: u64 = runs.iter().map(|run| run.len / size).sum();
    let part = pages.div_ceil(SAMPLE as u64).max(1);
    let chance = RandomState::new();
    let mut numbers = (0..pages.div_ceil(part)).map(move |number| {
        let within = chance.hash_one(number) % part;
        (number * part + within).min(pages - 1)
    });
    let mut next = numbers.next();
    let mut first = 0;
    let mut addresses = Vec::new();
    for run in runs {
        let behind = first + run.len / size;
        while let Some(number) = next.filter(|number| *number < behind) {
            addresses.push(run.start + (number - first) * size);
            next = numbers.next();
        }
        first = behind;
    }
    addresses.into_iter()
}

/// What stands in a page; nothing where it is no memory any more.
fn page(memory: &File, at: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(page_size()).ok()?];
    memory.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

/// The part of the sample that is another now, 0 to 1. What is no memory any more need not be copied.
fn differs(memory: &File, sample: &[(u64, Vec<u8>)]) -> f64 {
    let mut now = vec![0; usize::try_from(page_size()).unwrap_or(0)];
    let mut differs = 0_u32;
    for (at, before) in sample {
        let is_other = memory.read_exact_at(&mut now, *at).is_ok() && now != *before;
        differs += u32::from(is_other);
    }
    let all = u32::try_from(sample.len()).unwrap_or(u32::MAX);
    f64::from(differs) / f64::from(all.max(1))
}

/// Anonymous memory that it has.
fn anonymous(root: &std::path::Path) -> Result<Bytes, HostError> {
    let status = read(&root.join("status"))?;
    let value = field(&status, "RssAnon:").and_then(|text| text.strip_suffix(" kB"));
    let kib = value.and_then(|text| text.trim().parse::<u64>().ok());
    Ok(Bytes(kib.unwrap_or(0) << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_page_of_each_part_is_chosen() {
        let size = page_size();
        let check = |runs: &[(u64, u64)]| {
            let ranges: Vec<Range> = runs
                .iter()
                .map(|(start, pages)| Range {
                    start: start * size,
                    len: pages * size,
                })
                .collect();
            let found: Vec<u64> = chosen(&ranges).collect();
            let pages: u64 = runs.iter().map(|(_, pages)| pages).sum();
            let part = pages.div_ceil(SAMPLE as u64).max(1);
            assert_eq!(found.len() as u64, pages.div_ceil(part), "{runs:?}");
            assert!(found.len() <= SAMPLE);
            assert!(
                found.is_sorted()
                    && found.iter().all(|at| {
                        ranges
                            .iter()
                            .any(|run| (run.start..run.start + run.len).contains(at))
                    })
            );
        };
        check(&[]);
        check(&[(16, 1)]);
        check(&[(16, 3), (100, 4)]);
        check(&[(16, 4096), (9000, 1), (10_000, 20_000)]);
        let scattered: Vec<(u64, u64)> = (0..5000).map(|at| (16 + at * 3, 2)).collect();
        check(&scattered);
    }
}
