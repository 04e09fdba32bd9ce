//! Lends the memory of a process that stands still here and goes on elsewhere.
//!
//! Who lends is on disk, beside its images, from before another host may be given it until it is let go or ended:
//! whoever answers for this host reads pages of that process and of no other, and only while it stands.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::precopy::page_size;
use super::precopy::userfault::Range;
use super::store::boot;
use crate::error::HostError;
use crate::ledger::Process;
use crate::{procs, regular};

/// Bytes that are lent at once.
pub const BYTES_MAX: u64 = 1 << 20;
/// Runs that are lent at once.
pub const RANGES_MAX: usize = 256;
/// The note of who lends.
const NOTE: &str = "lends.json";
const NOTE_MAX: u64 = 4096;

/// Pages beside each other, by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pages {
    /// The first one.
    pub start: u64,
    /// How many bytes.
    pub len: u64,
}

impl From<Range> for Pages {
    fn from(Range { start, len }: Range) -> Self {
        Self { start, len }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    process: Process,
    boot: String,
}

/// Makes it durable that a process, which stands still, lends its memory.
///
/// # Errors
/// When it ended, or that cannot be written.
pub fn begin(pid: u32, images: &Path) -> Result<(), HostError> {
    let proc_root = Path::new("/proc");
    let process = procs::identify(proc_root, pid).ok_or_else(|| {
        HostError::missing(
            format!("lend the memory of process {pid}: it ended"),
            "it is started anew where it was",
        )
    })?;
    let file = images.join(NOTE);
    let fail = |error| HostError::file("write", &file, io::Error::other(error));
    let boot = boot(proc_root)?;
    let text = serde_json::to_vec(&Note { process, boot }).map_err(|e| fail(e.to_string()))?;
    regular::replace(&file, &text, 0o600).map_err(|e| fail(e.to_string()))
}

/// It lends nothing any more: before it is let go on.
///
/// # Errors
/// When that cannot be written.
pub fn end(images: &Path) -> Result<(), HostError> {
    let file = images.join(NOTE);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HostError::file("remove", &file, error))
        }
        _ => Ok(()),
    }
}

/// Whether a note says that a process lends; one that cannot be read may.
#[must_use]
pub fn is_noted(images: &Path) -> bool {
    !matches!(images.join(NOTE).try_exists(), Ok(false))
}

/// Who lends.
fn lender(images: &Path) -> Result<Process, HostError> {
    let file = images.join(NOTE);
    let nobody = |why: String| {
        HostError::missing(
            format!("find out whose memory is lent by {}: {why}", file.display()),
            "it is lost where it was not fetched",
        )
    };
    let (text, _) = regular::read(&file, NOTE_MAX).map_err(|error| nobody(error.to_string()))?;
    let Note { process, boot: at } =
        serde_json::from_slice(&text).map_err(|error| nobody(error.to_string()))?;
    let proc_root = Path::new("/proc");
    match boot(proc_root)? == at && procs::is_alive(proc_root, process) {
        true => Ok(process),
        false => Err(nobody(format!("process {} ended", process.pid))),
    }
}

/// What the process that lends has in these pages, one behind the other.
///
/// # Errors
/// When nobody lends, or it is more than may be asked for at once, no whole pages, or no memory.
pub fn read(images: &Path, pages: &[Pages]) -> Result<Vec<u8>, HostError> {
    let page = page_size();
    let is_whole = |pages: &Pages| {
        let numbers = [pages.start, pages.len];
        let ends = pages.start.checked_add(pages.len);
        pages.len > 0 && ends.is_some() && numbers.iter().all(|number| number.is_multiple_of(page))
    };
    let total = (pages.iter()).try_fold(0_u64, |sum, pages| sum.checked_add(pages.len));
    let length = total.filter(|total| *total <= BYTES_MAX);
    let length = length.and_then(|total| usize::try_from(total).ok());
    let Some(length) = length.filter(|_| pages.len() <= RANGES_MAX && pages.iter().all(is_whole))
    else {
        return Err(HostError::invalid(
            format!(
                "lend {} runs of memory: they are too many, or no pages",
                pages.len()
            ),
            "install the same version of Forebay on both hosts",
        ));
    };
    let process = lender(images)?;
    let path = format!("/proc/{}/mem", process.pid);
    let fail = |error| HostError::io(format!("read {path}"), error);
    let memory = File::open(&path).map_err(fail)?;
    // Its number may have become another's before it was opened, and not since.
    lender(images)?;
    let mut bytes = vec![0; length];
    let mut rest = bytes.as_mut_slice();
    for pages in pages {
        let (into, after) = rest.split_at_mut(usize::try_from(pages.len).unwrap_or(usize::MAX));
        memory.read_exact_at(into, pages.start).map_err(fail)?;
        rest = after;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_of_whoever_lends_and_of_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let page = page_size();
        let length = usize::try_from(page).unwrap();
        let memory = vec![7_u8; 4 * length];
        let first = (memory.as_ptr().addr() as u64).next_multiple_of(page);
        let asked = [0, 2].map(|at| Pages {
            start: first + at * page,
            len: page,
        });
        let refused = |asked: &[Pages], part: &str| {
            let error = read(dir.path(), asked).unwrap_err().explain();
            assert!(error.contains(part), "{error}");
        };
        refused(&asked, "lends.json");
        assert!(!is_noted(dir.path()));
        begin(std::process::id(), dir.path()).unwrap();
        assert!(is_noted(dir.path()));
        assert_eq!(read(dir.path(), &asked).unwrap(), vec![7; 2 * length]);
        drop(memory);

        let with = |start, len| [Pages { start, len }];
        refused(&with(first + 1, page), "no pages");
        refused(&with(first, 0), "no pages");
        refused(&with(first, BYTES_MAX + page), "too many");
        refused(&with(u64::MAX - page + 1, page), "no pages");
        refused(&vec![asked[0]; RANGES_MAX + 1], "too many");
        refused(&with(0, page), "/mem");

        // One whose number somebody else has, and one of another boot.
        let file = dir.path().join(NOTE);
        let text = fs::read_to_string(&file).unwrap();
        let mut note: Note = serde_json::from_str(&text).unwrap();
        note.process.start_time += 1;
        fs::write(&file, serde_json::to_vec(&note).unwrap()).unwrap();
        refused(&asked, "ended");
        note.process.start_time -= 1;
        note.boot = "another".to_owned();
        fs::write(&file, serde_json::to_vec(&note).unwrap()).unwrap();
        refused(&asked, "ended");
        end(dir.path()).unwrap();
        end(dir.path()).unwrap();
        refused(&asked, "lends.json");
    }
}
