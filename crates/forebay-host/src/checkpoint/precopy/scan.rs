//! Which pages of a process are there, or were written lately: the request PAGEMAP_SCAN.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use super::userfault::Range;

const SCAN: libc::c_ulong = 0xc060_6610;
const PROTECT: u64 = 1 << 0;
const WRITTEN: u64 = 1 << 1;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const ZERO: u64 = 1 << 5;
/// The flag by which the kernel refuses areas whose writes it does not note.
const CHECKED: u64 = 1 << 1;
/// Runs of pages that one request tells of.
const RUNS_MAX: usize = 1024;

/// Which pages are meant. Pages that were never written, and read as zeros, never are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// All that are there.
    There,
    /// Those of them that are in memory, and not in swap.
    Present,
    /// Those that were written since they were marked.
    Written,
}

/// What is done with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    /// They are marked: what is written to them from now on is noted.
    Mark,
    /// Nothing. In areas that are not tracked, all pages count as written.
    Look,
}

/// Calls `each` with every run of such pages within a range, in their order.
///
/// # Errors
/// What the kernel refuses, `PermissionDenied` where pages are to be marked that are not tracked.
pub(crate) fn scan(
    pagemap: &File,
    range: Range,
    (which, doing): (Which, Doing),
    mut each: impl FnMut(Range),
) -> io::Result<()> {
    let end = range.start + range.len;
    let mut at = range.start;
    let mut found = vec![[0_u64; 3]; RUNS_MAX];
    while at < end {
        let (runs, reached) = request(pagemap, (at, end), (which, doing), &mut found)?;
        for [start, end, _] in found.iter().take(runs) {
            each(Range {
                start: *start,
                len: end - start,
            });
        }
        if reached <= at {
            return Err(io::Error::other("the kernel looks at no page"));
        }
        at = reached;
    }
    Ok(())
}

/// One request: how many runs were found, and how far it came.
#[expect(unsafe_code, reason = "rustix does not have the request")]
fn request(
    pagemap: &File,
    (start, end): (u64, u64),
    (which, doing): (Which, Doing),
    found: &mut [[u64; 3]],
) -> io::Result<(usize, u64)> {
    let flags = match doing {
        Doing::Mark => PROTECT | CHECKED,
        Doing::Look => 0,
    };
    let required = match which {
        Which::There => ZERO,
        Which::Present => ZERO | PRESENT,
        Which::Written => ZERO | WRITTEN,
    };
    let mut words = [
        96,
        flags,
        start,
        end,
        0,
        found.as_mut_ptr().addr() as u64,
        found.len() as u64,
        0,
        // Those that are not zero.
        ZERO,
        required,
        PRESENT | SWAPPED,
        WRITTEN,
    ];
    // SAFETY: twelve words as the request has them, of which it writes the fifth, and as many
    // runs of three words as the seventh says, which live.
    let result = unsafe { libc::ioctl(pagemap.as_raw_fd(), SCAN, words.as_mut_ptr()) };
    let runs = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    Ok((runs, words[4]))
}
