//! Memory that comes after its process, from a process that was looked at while it stood.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use forebay_host::checkpoint::lend::Pages;
use forebay_host::checkpoint::{Lender, Line, runs};

/// All memory of a process that stood, as it was then; whoever asks waits, so that all of it takes a while.
pub(crate) struct Snapshot(Vec<(u64, Vec<u8>)>);

impl Snapshot {
    /// And the areas, as whoever lends them names them.
    pub(crate) fn of(pid: u32) -> (Arc<Self>, Vec<u8>) {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let (mut areas, mut named) = (Vec::new(), Vec::new());
        for line in maps.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            // What is private and of no file, and not the kernel's own.
            let is_own = words
                .get(5)
                .is_none_or(|name| *name == "[heap]" || *name == "[stack]");
            if !words[1].ends_with('p') || words[4] != "0" || !is_own {
                continue;
            }
            let (start, end) = words[0].split_once('-').unwrap();
            let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
            let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
            // Some cannot be read; nobody asks for those.
            if memory.read_exact_at(&mut bytes, start).is_ok() {
                named.extend(start.to_le_bytes());
                named.extend((end - start).to_le_bytes());
                areas.push((start, bytes));
            }
        }
        runs::end(&mut named).unwrap();
        (Arc::new(Self(areas)), named)
    }
}

/// A way to it.
pub(crate) struct Slow(pub(crate) Arc<Snapshot>);

impl Lender for Slow {
    fn connect(&self) -> Result<Box<dyn Line>, forebay_host::Error> {
        Ok(Box::new(Self(Arc::clone(&self.0))))
    }
}

impl Line for Slow {
    fn fetch(&mut self, pages: &[Pages]) -> Result<Vec<u8>, forebay_host::Error> {
        std::thread::sleep(Duration::from_millis(20));
        let mut fetched = Vec::new();
        for Pages { start, len } in pages {
            let found = self.0.0.iter().rfind(|(first, _)| first <= start);
            let (first, bytes) = found.unwrap();
            let from = usize::try_from(start - first).unwrap();
            let to = from + usize::try_from(*len).unwrap();
            fetched.extend(&bytes[from..to]);
        }
        Ok(fetched)
    }
}
