//! Having the kernel bring free memory together, and how scattered it is.
//!
//! The kernel compacts while the writer waits, a second for each 4 GiB or so, and cannot be
//! interrupted within a node: a thread of its own writes, node by node, until the time for it is over.
//! The next request goes on after the node where that was, and a node that fails ends nothing.
//! Nobody waits for that thread, since there is nothing to put back: it ends by itself.
//!
//! How scattered free memory is, is read from /proc/buddyinfo: what of it lies in blocks too small for
//! a huge page (the unusable index of Gorman and Whitcroft, "The what, the why and the where to of
//! anti-fragmentation", 2006).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use forebay_core::snapshot::{self, Gap, Reading};

use crate::apply::Refusal;
use crate::error::HostError;
use crate::files::{Reader, read_text, write_text};
use crate::host::LinuxHost;

/// How long one request may go on with further nodes.
const TIME_MAX: Duration = Duration::from_secs(5);
/// How often it is read, in periods: it changes slowly.
const EVERY: u64 = 50;
/// The order of a huge page where the kernel does not say its size.
const HUGE_ORDER: usize = 9;

/// The compaction of this host.
#[derive(Debug)]
pub(crate) struct Compactor {
    /// Files of which a write of `1` compacts a part of memory each.
    files: Vec<PathBuf>,
    blocks: Reader,
    /// The order of the blocks from which on a huge page fits.
    huge_order: usize,
    running: Arc<AtomicBool>,
    /// The file with which the next request begins.
    next: Arc<AtomicUsize>,
    /// How long one request may go on with further nodes.
    time: Duration,
    /// Whether the last look said that it runs: the next must not wait to say that it ended.
    said_running: bool,
    number: u64,
}

impl Compactor {
    /// None where the kernel cannot be asked.
    pub(crate) fn open(proc_root: &Path, sys_root: &Path) -> Option<Self> {
        let writable = |file: &PathBuf| {
            let access = rustix::fs::access(file, rustix::fs::Access::WRITE_OK);
            access.is_ok()
        };
        let nodes = std::fs::read_dir(sys_root.join("devices/system/node"));
        let nodes = nodes.into_iter().flatten().filter_map(Result::ok);
        let nodes = nodes.map(|entry| entry.path().join("compact"));
        let mut files: Vec<PathBuf> = nodes.filter(writable).collect();
        files.sort();
        if files.is_empty() {
            let all = proc_root.join("sys/vm/compact_memory");
            files.extend(Some(all).filter(writable));
        }
        let huge = sys_root.join("kernel/mm/transparent_hugepage/hpage_pmd_size");
        let size = read_text(&huge)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        let page = u64::try_from(rustix::param::page_size()).ok()?;
        let huge_order = size.and_then(|size| {
            let pages = (size / page).checked_ilog2()?;
            usize::try_from(pages).ok()
        });
        let blocks = Reader::open(&proc_root.join("buddyinfo"))?;
        (!files.is_empty()).then(|| Self {
            files,
            blocks,
            huge_order: huge_order.unwrap_or(HUGE_ORDER),
            running: Arc::default(),
            next: Arc::default(),
            time: TIME_MAX,
            said_running: false,
            number: 0,
        })
    }

    /// Whether it is to be looked at in this period.
    pub(crate) fn is_due(&self, period: u64) -> bool {
        let running = || self.running.load(Ordering::Acquire);
        period.is_multiple_of(EVERY) || self.said_running || running()
    }

    pub(crate) fn look(&mut self, buffer: &mut Vec<u8>) -> Reading<snapshot::Compaction> {
        let text = self.blocks.read(buffer);
        let text = text.map_err(|error| Gap::Failed(format!("read buddyinfo: {error}")))?;
        let scattered = scattered(text, self.huge_order).ok_or_else(|| {
            Gap::Failed("read buddyinfo: it has no free block in a zone of memory".to_owned())
        })?;
        self.said_running = self.running.load(Ordering::Acquire);
        Ok(snapshot::Compaction {
            scattered,
            number: self.number,
            running: self.said_running,
        })
    }

    fn start(&mut self) -> Result<(), HostError> {
        let attempt = "compact memory";
        if self.running.swap(true, Ordering::AcqRel) {
            return Err(HostError::invalid(
                attempt,
                "the kernel is at it since an earlier request; wait until it is done",
            ));
        }
        let (files, running) = (self.files.clone(), Arc::clone(&self.running));
        let (next, time) = (Arc::clone(&self.next), self.time);
        let thread = std::thread::Builder::new().name("compact".to_owned());
        let spawned = thread.spawn(move || {
            let first = next.load(Ordering::Acquire);
            next.store(compact(&files, first, time), Ordering::Release);
            running.store(false, Ordering::Release);
        });
        if let Err(error) = spawned {
            self.running.store(false, Ordering::Release);
            return Err(HostError::io("start the thread `compact`", error));
        }
        self.number += 1;
        Ok(())
    }
}

/// Writes to every file once, beginning with one of them, until the time is over, but to one at least.
/// Gives the place of the file that the next request begins with.
fn compact(files: &[PathBuf], first: usize, time: Duration) -> usize {
    let began = Instant::now();
    let (mut tried, mut failed) = (0, 0);
    let places = (first..files.len()).chain(0..first.min(files.len()));
    for file in places.filter_map(|place| files.get(place)) {
        tried += 1;
        if let Err(error) = write_text(file, "1") {
            failed += 1;
            let (file, error) = (file.display(), error.explain());
            tracing::warn!(%file, error, "this part of memory was not compacted");
        }
        if began.elapsed() >= time {
            break;
        }
    }
    let ms = began.elapsed().as_millis();
    let left = files.len() - tried;
    if left > 0 {
        tracing::info!(
            ms,
            left,
            failed,
            "the time to compact memory was over before all nodes were; the next request goes on"
        );
    } else if failed < tried {
        tracing::info!(ms, failed, "memory was compacted");
    }
    (first + tried) % files.len().max(1)
}

/// What of free memory lies in blocks below an order, in permille; none where nothing is free.
fn scattered(text: &str, order: usize) -> Option<u32> {
    let (mut small, mut all) = (0_u64, 0_u64);
    for line in text.lines() {
        // Node 0, zone   Normal   free blocks of order 0, 1, 2 ...
        let counts = line.split_whitespace().skip(4).enumerate();
        for (at, count) in counts {
            let blocks = count.parse::<u64>().ok()?;
            let pages = blocks.checked_shl(u32::try_from(at).ok()?)?;
            all = all.saturating_add(pages);
            if at < order {
                small = small.saturating_add(pages);
            }
        }
    }
    let permille = u128::from(small) * 1000 / u128::from(all.max(1));
    (all > 0).then(|| u32::try_from(permille).ok())?
}

impl LinuxHost {
    pub(crate) fn compact(&mut self) -> Result<(), Refusal> {
        match &mut self.compactor {
            Some(compactor) => Ok(compactor.start()?),
            None => Err(Refusal::Unsupported),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_small_blocks_is_scattered() {
        let check =
            |text: &str, order, expected| assert_eq!(scattered(text, order), expected, "{text}");
        let zone = "Node 0, zone   Normal      4      2      0      1 \n";
        // 4 + 4 of 16 pages are in blocks of less than four.
        check(zone, 2, Some(500));
        check(zone, 3, Some(500));
        check(zone, 4, Some(1000));
        check(zone, 0, Some(0));
        let two = format!("{zone}Node 1, zone   Normal      0      0      0      2 \n");
        check(&two, 2, Some(250));
        check("", 2, None);
        check("Node 0, zone   Normal      0      0 \n", 2, None);
        check("Node 0, zone   Normal      x      0 \n", 2, None);
    }

    const BLOCKS: &str = "Node 0, zone Normal 1 0 0 0 0 0 0 0 0 1\n";

    /// Waits until no request runs.
    fn rests(compactor: &mut Compactor) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while compactor.look(&mut Vec::new()).unwrap().running {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_request_goes_on_where_the_last_stopped_and_after_what_fails() {
        let dir = tempfile::tempdir().unwrap();
        let (proc_root, sys_root) = (dir.path().join("proc"), dir.path().join("sys"));
        std::fs::create_dir_all(&proc_root).unwrap();
        std::fs::write(proc_root.join("buddyinfo"), BLOCKS).unwrap();
        let nodes = [0, 1, 2].map(|node| {
            let node = sys_root.join(format!("devices/system/node/node{node}"));
            std::fs::create_dir_all(&node).unwrap();
            std::fs::write(node.join("compact"), "").unwrap();
            node.join("compact")
        });
        let mut compactor = Compactor::open(&proc_root, &sys_root).unwrap();
        assert_eq!(compactor.files, nodes);
        let mut request = |time| {
            compactor.time = time;
            compactor.start().unwrap();
            rests(&mut compactor);
            // Which were written, and are empty again.
            [0, 1, 2].map(|node| {
                let written = std::fs::read_to_string(&nodes[node]);
                if nodes[node].is_file() {
                    std::fs::write(&nodes[node], "").unwrap();
                }
                written.is_ok_and(|text| text == "1\n")
            })
        };
        // No time for more than one.
        assert_eq!(request(Duration::ZERO), [true, false, false]);
        assert_eq!(request(Duration::ZERO), [false, true, false]);
        assert_eq!(request(Duration::ZERO), [false, false, true]);
        assert_eq!(request(Duration::ZERO), [true, false, false]);
        // Time for all of them, of which the first now fails.
        std::fs::remove_file(&nodes[1]).unwrap();
        std::fs::create_dir(&nodes[1]).unwrap();
        assert_eq!(request(Duration::from_secs(60)), [true, false, true]);
        // One that fails is no place to stay at.
        assert_eq!(request(Duration::ZERO), [false, false, false]);
        assert_eq!(request(Duration::ZERO), [false, false, true]);
    }

    #[test]
    fn one_request_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (proc_root, sys_root) = (dir.path().join("proc"), dir.path().join("sys"));
        let node = sys_root.join("devices/system/node/node0");
        std::fs::create_dir_all(&node).unwrap();
        std::fs::create_dir_all(&proc_root).unwrap();
        assert!(Compactor::open(&proc_root, &sys_root).is_none(), "no files");
        std::fs::write(proc_root.join("buddyinfo"), BLOCKS).unwrap();
        std::fs::write(node.join("compact"), "").unwrap();
        let mut compactor = Compactor::open(&proc_root, &sys_root).unwrap();
        assert_eq!(compactor.files, [node.join("compact")]);
        compactor.running.store(true, Ordering::Release);
        let refused = compactor.start().unwrap_err().explain();
        assert!(refused.contains("the kernel is at it"), "{refused}");
        let seen = compactor.look(&mut Vec::new()).unwrap();
        assert_eq!((seen.number, seen.running, seen.scattered), (0, true, 1));
        // That it ended is told in the next period, and then all is quiet.
        compactor.running.store(false, Ordering::Release);
        assert!(compactor.is_due(EVERY + 1));
        assert!(!compactor.look(&mut Vec::new()).unwrap().running);
        assert!(!compactor.is_due(EVERY + 2) && compactor.is_due(EVERY * 2));
        compactor.start().unwrap();
        rests(&mut compactor);
        assert_eq!(
            std::fs::read_to_string(node.join("compact")).unwrap(),
            "1\n"
        );
        assert_eq!(compactor.look(&mut Vec::new()).unwrap().number, 1);
    }
}
