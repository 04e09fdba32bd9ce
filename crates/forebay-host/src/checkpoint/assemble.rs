//! The memory of a process that comes in, run by run, until the process can begin with it.
//!
//! Pages lie in a file without a name, in memory, in the order in which they came first; a page that
//! comes again takes the place of what it was. So the file is no larger than all pages that ever came,
//! and goes with whoever has it open.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;

use forebay_core::units::Bytes;
use rustix::fs::{MemfdFlags, memfd_create};

use super::pages::{Run, Runs};
use super::precopy::page_size;
use super::precopy::userfault::Range;
use super::runs;
use crate::error::HostError;

/// What came of a process's memory so far.
#[derive(Debug)]
pub struct Assembly {
    file: File,
    runs: Runs,
    /// How long the file is.
    end: u64,
    /// How long it may become.
    most: Bytes,
    page: u64,
}

impl Assembly {
    /// An empty one, for at most so many bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(most: Bytes) -> Result<Self, HostError> {
        let file = memfd_create("forebay-arrival", MemfdFlags::CLOEXEC)
            .map_err(|e| HostError::io("make a file for memory that comes in", e))?;
        Ok(Self {
            file: file.into(),
            runs: Runs::default(),
            end: 0,
            most,
            page: page_size(),
        })
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub const fn size(&self) -> Bytes {
        Bytes(self.end)
    }

    /// Takes runs in until their end.
    ///
    /// # Errors
    /// When the stream is cut off or no runs, when it is more than was said, and without memory.
    pub fn take(&mut self, from: &mut impl Read) -> Result<(), HostError> {
        let mut bytes = Vec::new();
        let fail = |e| HostError::io("take in the memory of a process", e);
        while let Some(start) = runs::read(from, self.page, &mut bytes).map_err(fail)? {
            self.put(start, &bytes)?;
        }
        Ok(())
    }

    fn put(&mut self, start: u64, bytes: &[u8]) -> Result<(), HostError> {
        let end = start + bytes.len() as u64;
        let mut at = start;
        while at < end {
            let known = self
                .runs
                .0
                .range(..=at)
                .next_back()
                .map(|(first, run)| (*first, *run))
                .filter(|(first, run)| at < first + run.len);
            let (offset, len) = match known {
                Some((first, run)) => {
                    let within = at - first;
                    (run.offset + within, (run.len - within).min(end - at))
                }
                None => {
                    let next = self
                        .runs
                        .0
                        .range(at..)
                        .next()
                        .map_or(end, |(next, _)| *next);
                    self.append(at, next.min(end) - at)?
                }
            };
            let part = (at - start, at - start + len);
            let part = bytes.get(index(part.0)..index(part.1)).unwrap_or_default();
            self.file
                .write_all_at(part, offset)
                .map_err(|e| HostError::io("keep memory that comes in", e))?;
            at += len;
        }
        Ok(())
    }

    /// Makes room for pages that are new.
    fn append(&mut self, at: u64, len: u64) -> Result<(u64, u64), HostError> {
        let offset = self.end;
        if offset + len > self.most.0 {
            return Err(HostError::invalid(
                format!("take in more than {} MiB of a process", self.most.0 >> 20),
                "it grew since room was made for it; move it again",
            ));
        }
        self.end += len;
        if let Some((first, run)) = self.runs.0.range_mut(..at).next_back()
            && *first + run.len == at
            && run.offset + run.len == offset
        {
            run.len += len;
        } else {
            self.runs.0.insert(at, Run { len, offset });
        }
        Ok((offset, len))
    }

    /// Where these pages are, or the first address of those that did not come.
    pub(super) fn find(&self, wanted: &[Range]) -> Result<Runs, u64> {
        let mut found = Runs::default();
        for range in wanted {
            let end = range.start + range.len;
            let mut at = range.start;
            while at < end {
                let (_, run) = self.runs.at(at, end - at).ok_or(at)?;
                found.0.insert(at, run);
                at += run.len;
            }
        }
        Ok(found)
    }

    /// Takes in which pages are to come later: what came of them is not what they are any more.
    ///
    /// # Errors
    /// When the stream is cut off or names no pages.
    pub fn owe(&mut self, from: &mut impl Read) -> Result<(), HostError> {
        let stale = runs::read_places(from, self.page);
        let stale = stale
            .map_err(|error| HostError::io("hear what of a process is to come later", error))?;
        self.forget(&stale);
        Ok(())
    }

    fn forget(&mut self, stale: &[Range]) {
        use rustix::fs::{FallocateFlags, fallocate};
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for (_, run) in stale.iter().flat_map(|range| self.runs.take(*range)) {
            // Where its memory is not given back, it goes with the file.
            fallocate(&self.file, flags, run.offset, run.len).ok();
        }
    }

    /// Where these pages are, with places in the file for those that did not come; and of those places, by where they
    /// are, the addresses.
    pub(super) fn find_or_owe(&mut self, wanted: &[Range]) -> (Runs, Runs) {
        let (mut found, mut owed) = (Runs::default(), Runs::default());
        for range in wanted {
            let end = range.start.saturating_add(range.len);
            let mut at = range.start;
            while at < end {
                let run = self.runs.at(at, end - at).map(|(_, run)| run);
                let run = run.unwrap_or_else(|| {
                    let len = self.runs.gap(at, end - at);
                    let offset = self.end;
                    // More than a file can hold is refused when it gets its length.
                    self.end = self.end.saturating_add(len);
                    owed.0.insert(offset, Run { len, offset: at });
                    Run { len, offset }
                });
                found.0.insert(at, run);
                at += run.len;
            }
        }
        (found, owed)
    }

    /// The file, and how long it is. What did not come has no memory in it yet.
    pub(super) fn into_file(self) -> std::io::Result<(File, u64)> {
        self.file.set_len(self.end)?;
        Ok((self.file, self.end))
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Reads what is at an address, for tests.
#[cfg(test)]
impl Assembly {
    pub(super) fn page_at(&self, at: u64) -> std::io::Result<Vec<u8>> {
        let page = Range {
            start: at,
            len: self.page,
        };
        let found = self
            .find(&[page])
            .map_err(|at| std::io::Error::other(format!("{at:#x} is missing")))?;
        let mut bytes = vec![0; index(self.page)];
        let offset = found.0.values().next().map_or(0, |run| run.offset);
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Runs of pages come in; then every page holds what came last for it.
    #[test]
    fn what_came_last_counts() {
        fastrand::seed(7);
        let page = page_size();
        let mut assembly = Assembly::new(Bytes::mib(1)).unwrap();
        let mut expected: BTreeMap<u64, u8> = BTreeMap::new();
        for value in 0..200 {
            let first = fastrand::u64(0..60);
            let pages = fastrand::u64(1..8);
            let bytes = vec![value; index(pages * page)];
            assembly.put(first * page, &bytes).unwrap();
            expected.extend((first..first + pages).map(|at| (at, value)));
        }
        for (at, value) in &expected {
            let found = assembly.page_at(at * page).unwrap();
            assert!(found.iter().all(|byte| byte == value), "page {at}");
        }
        assert_eq!(assembly.size(), Bytes(expected.len() as u64 * page));
        let missing = (0..100).find(|at| !expected.contains_key(at)).unwrap();
        assert!(assembly.page_at(missing * page).is_err());
    }

    /// What is owed is what did not come, or came and was written since; all else is where it came.
    #[test]
    fn what_came_and_is_of_before_is_owed_like_what_did_not_come() {
        let page = page_size();
        let range = |first: u64, pages: u64| Range {
            start: first * page,
            len: pages * page,
        };
        let mut assembly = Assembly::new(Bytes::mib(1)).unwrap();
        for first in [10, 30] {
            let bytes = vec![1; index(10 * page)];
            assembly.put(first * page, &bytes).unwrap();
        }
        assembly.forget(&[range(12, 3), range(38, 10)]);
        let size = assembly.size().0;
        let (found, owed) = assembly.find_or_owe(&[range(5, 20), range(33, 9)]);
        assert_eq!(found.bytes(), 29 * page);
        let addresses: Vec<(u64, u64)> = owed.0.values().map(|run| (run.offset, run.len)).collect();
        let expected = [(5, 5), (12, 3), (20, 5), (38, 4)];
        assert_eq!(
            addresses,
            expected.map(|(at, pages)| (at * page, pages * page))
        );
        for (at, run) in &found.0 {
            let is_owed = owed.at(run.offset, 1).is_some();
            assert_eq!(is_owed, run.offset >= size, "page {}", at / page);
        }
        let (file, length) = assembly.into_file().unwrap();
        assert_eq!(length, size + owed.bytes());
        assert_eq!(file.metadata().unwrap().len(), length);
    }

    #[test]
    fn no_more_comes_in_than_room_was_made_for() {
        let page = page_size();
        let mut assembly = Assembly::new(Bytes(2 * page)).unwrap();
        let bytes = vec![1; index(2 * page)];
        assembly.put(0, &bytes).unwrap();
        assembly.put(0, &bytes).unwrap();
        let error = assembly.put(2 * page, &bytes[..index(page)]).unwrap_err();
        assert!(error.explain().contains("it grew"), "{error}");
    }

    #[test]
    fn a_stream_that_is_cut_off_is_told() {
        let page = page_size();
        let mut stream = Vec::new();
        runs::write(&mut stream, page, &vec![1; index(page)]).unwrap();
        let mut assembly = Assembly::new(Bytes::mib(1)).unwrap();
        assert!(assembly.take(&mut stream.as_slice()).is_err());
        runs::end(&mut stream).unwrap();
        assembly.take(&mut stream.as_slice()).unwrap();
    }
}
