//! Small kernel files: read whole, written in one call.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::HostError;

/// A kernel file kept open, read from its start each time.
#[derive(Debug)]
pub(crate) struct Reader {
    file: File,
}

impl Reader {
    /// Opens a file; none where it does not exist.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        File::open(path).ok().map(|file| Self { file })
    }

    /// Reads the whole text into `buffer`, whose room is used again.
    pub(crate) fn read<'b>(&self, buffer: &'b mut Vec<u8>) -> io::Result<&'b str> {
        let mut filled = 0;
        loop {
            if buffer.len() < filled + 4096 {
                buffer.resize(filled + 4096, 0);
            }
            // Kernel files hand out whole lines that fit, so a short read is not yet the
            // end where the text may be long: only 0 is.
            let count = self.file.read_at(&mut buffer[filled..], filled as u64)?;
            filled += count;
            if count == 0 || (filled < 2048 && count < 2048) {
                break;
            }
        }
        std::str::from_utf8(&buffer[..filled])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Reads a small file whole: opened, read and closed, without asking for its size, which kernel
/// files do not know.
pub(crate) fn read_text(path: &Path) -> Result<String, HostError> {
    let read = || {
        let file = File::open(path)?;
        let mut buffer = Vec::new();
        let length = Reader { file }.read(&mut buffer)?.len();
        buffer.truncate(length);
        String::from_utf8(buffer).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    };
    read().map_err(|e| HostError::file("read", path, e))
}

/// Writes a kernel file in one call; never creates it.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), HostError> {
    let mut line = String::with_capacity(text.len() + 1);
    line.push_str(text);
    line.push('\n');
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .map_err(|e| HostError::io(format!("write {text} to {}", path.display()), e))
}

/// The number after a key in a file of `key number` lines.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

/// Microseconds of `some ... total=` in a pressure file.
pub(crate) fn pressure_total(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.rsplit_once("total=")?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_key() {
        let text = "usage_usec 12\nnr_throttled 3\nthrottled_usec 4\n";
        assert_eq!(keyed(text, "throttled_usec"), Some(4));
        assert_eq!(keyed(text, "usage"), None);
        let text = "some avg10=0.00 avg60=0.00 avg300=0.00 total=4711\nfull avg10=0 total=1\n";
        assert_eq!(pressure_total(text), Some(4711));
        assert_eq!(pressure_total(""), None);
    }

    #[test]
    fn long_and_short_files_are_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut buffer = Vec::new();
        for length in [0, 5, 2047, 2048, 4096, 100_000] {
            std::fs::write(&path, "x".repeat(length)).unwrap();
            let reader = Reader::open(&path).unwrap();
            assert_eq!(reader.read(&mut buffer).unwrap().len(), length);
            assert_eq!(read_text(&path).unwrap().len(), length);
        }
    }
}
