//! The memory of a process that comes in, run by run, until the process can begin with it.
//!
//! Pages lie in a file without a name, in memory, in the order in which they came first; a page that
//! comes again takes the place of what it was. So the file is no larger than all pages that ever came,
//! and goes with whoever has it open.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;

use forebay_core::units::Bytes;
use rustix::fs::{MemfdFlags, memfd_create};

use super::precopy::page_size;
use super::precopy::userfault::Range;
use super::runs;
use crate::error::HostError;

/// Pages beside each other, in memory and in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) len: u64,
    /// Where in the file.
    pub(super) offset: u64,
}

/// Runs by their first address.
pub(super) type Runs = BTreeMap<u64, Run>;

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
            runs: Runs::new(),
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
                    let next = self.runs.range(at..).next().map_or(end, |(next, _)| *next);
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
        if let Some((first, run)) = self.runs.range_mut(..at).next_back()
            && *first + run.len == at
            && run.offset + run.len == offset
        {
            run.len += len;
        } else {
            self.runs.insert(at, Run { len, offset });
        }
        Ok((offset, len))
    }

    /// Where these pages are, or the first address of those that did not come.
    pub(super) fn find(&self, wanted: &[Range]) -> Result<Runs, u64> {
        let mut found = Runs::new();
        for range in wanted {
            let (mut at, end) = (range.start, range.start + range.len);
            while at < end {
                let (first, run) = self.runs.range(..=at).next_back().ok_or(at)?;
                let within = at - first;
                let len = run
                    .len
                    .checked_sub(within)
                    .filter(|len| *len > 0)
                    .ok_or(at)?;
                let len = len.min(end - at);
                let offset = run.offset + within;
                found.insert(at, Run { len, offset });
                at += len;
            }
        }
        Ok(found)
    }

    pub(super) fn into_file(self) -> (File, u64) {
        (self.file, self.end)
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
        let offset = found.values().next().map_or(0, |run| run.offset);
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
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
