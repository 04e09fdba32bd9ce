//! What stands in pages of a process, as runs of pages to whoever takes them.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;

use super::userfault::Range;
use crate::checkpoint::runs;

/// Bytes that are read at once, and the memory that reading takes.
const BATCH: u64 = 1 << 20;
/// Runs that are read at once: as many as the kernel takes.
const RUNS_MAX: usize = 512;

/// Reads pages of one process.
#[derive(Debug)]
pub(crate) struct Reader {
    pid: i32,
    /// `/proc/PID/mem`, which also reads what the process itself may not.
    memory: File,
    buffer: Vec<u8>,
    page: u64,
}

impl Reader {
    pub(crate) fn new(pid: i32, memory: File) -> Self {
        Self {
            pid,
            memory,
            buffer: vec![0; usize::try_from(BATCH).unwrap_or(usize::MAX)],
            page: super::page_size(),
        }
    }

    /// Sends these pages. What could not be read, as it is no memory any more, is given to `unread`.
    ///
    /// # Errors
    /// When the taker refuses.
    pub(crate) fn send(
        &mut self,
        found: impl Iterator<Item = Range>,
        to: &mut impl Write,
        unread: &mut Vec<Range>,
    ) -> io::Result<u64> {
        let mut sent = 0;
        let mut batch: Vec<Range> = Vec::with_capacity(RUNS_MAX);
        let mut bytes = 0;
        for mut range in found {
            while range.len > 0 {
                let part = Range {
                    start: range.start,
                    len: range.len.min(BATCH - bytes),
                };
                batch.push(part);
                bytes += part.len;
                range.start += part.len;
                range.len -= part.len;
                if bytes == BATCH || batch.len() == RUNS_MAX {
                    sent += self.pass(&batch, to, unread)?;
                    batch.clear();
                    bytes = 0;
                }
            }
        }
        Ok(sent + self.pass(&batch, to, unread)?)
    }

    fn pass(
        &mut self,
        batch: &[Range],
        to: &mut impl Write,
        unread: &mut Vec<Range>,
    ) -> io::Result<u64> {
        let total: u64 = batch.iter().map(|range| range.len).sum();
        if total == 0 {
            return Ok(0);
        }
        let whole = self.buffer.get_mut(..size(total)).unwrap_or_default();
        if gather(self.pid, batch, whole).ok() != Some(size(total)) {
            return self.pass_pages(batch, to, unread);
        }
        let mut rest: &[u8] = whole;
        for range in batch {
            let (bytes, after) = rest.split_at(size(range.len));
            runs::write(to, range.start, bytes)?;
            rest = after;
        }
        Ok(total)
    }

    /// Page by page, since some cannot be read in the ordinary way, or at all.
    fn pass_pages(
        &mut self,
        batch: &[Range],
        to: &mut impl Write,
        unread: &mut Vec<Range>,
    ) -> io::Result<u64> {
        let mut sent = 0;
        for range in batch {
            for start in (range.start..range.start + range.len).step_by(size(self.page)) {
                let page = self.buffer.get_mut(..size(self.page)).unwrap_or_default();
                if self.memory.read_exact_at(page, start).is_ok() {
                    runs::write(to, start, page)?;
                    sent += self.page;
                } else {
                    unread.push(Range {
                        start,
                        len: self.page,
                    });
                }
            }
        }
        Ok(sent)
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Reads runs of another process's memory, one behind the other; how many bytes.
#[expect(unsafe_code, reason = "rustix has no process_vm_readv")]
fn gather(pid: i32, from: &[Range], into: &mut [u8]) -> io::Result<usize> {
    let remote: Vec<libc::iovec> = from
        .iter()
        .map(|range| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(size(range.start)),
            iov_len: size(range.len),
        })
        .collect();
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    // SAFETY: the kernel writes at most the length of `into`, which lives; the other addresses are
    // those of the other process, which it checks.
    let read = unsafe {
        libc::process_vm_readv(
            pid,
            &raw const local,
            1,
            remote.as_ptr(),
            remote.len() as libc::c_ulong,
            0,
        )
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}
