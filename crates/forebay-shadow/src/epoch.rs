//! Who is the primary, and since which epoch: on disk before anybody is promoted.
//!
//! Two records of one sector each are written in turn. One that was torn by a crash does not
//! agree with its check sum, and the other one counts.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use forebay_core::shadow::promotion::Epoch;

const SECTOR: usize = 512;

/// What a front has to remember.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) epoch: Epoch,
    /// The app that it is: places change with the configuration.
    pub(crate) primary: String,
}

/// The file.
#[derive(Debug)]
pub(crate) struct EpochFile {
    file: File,
    path: PathBuf,
}

impl EpochFile {
    /// Opens or makes it.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        Ok(Self {
            file: options.open(path)?,
            path: path.to_path_buf(),
        })
    }

    /// The latest record of a file that is another process's; none where there is no file.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn look(path: &Path) -> io::Result<Option<Record>> {
        match File::open(path) {
            Ok(file) => Self {
                file,
                path: path.to_path_buf(),
            }
            .latest(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The latest record that is whole.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn latest(&self) -> io::Result<Option<Record>> {
        let mut bytes = [0; 2 * SECTOR];
        let mut length = 0;
        while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
            let offset = u64::try_from(length).unwrap_or(u64::MAX);
            match self.file.read_at(rest, offset)? {
                0 => break,
                read => length += read,
            }
        }
        let records = bytes.chunks(SECTOR).filter_map(parse);
        Ok(records.max_by_key(|record| record.epoch))
    }

    /// Makes a record durable.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        let mut bytes = format(record).into_bytes();
        bytes.resize(SECTOR, b' ');
        let place = if record.epoch.is_multiple_of(2) {
            0
        } else {
            SECTOR
        };
        let offset = u64::try_from(place).unwrap_or(u64::MAX);
        self.file.write_all_at(&bytes, offset)?;
        self.file.sync_data()
    }
}

fn format(record: &Record) -> String {
    let text = format!("{} {}", record.epoch, record.primary);
    format!("{text} {:08x}\n", checksum(text.as_bytes()))
}

fn parse(sector: &[u8]) -> Option<Record> {
    let text = std::str::from_utf8(sector).ok()?;
    let (text, sum) = text.lines().next()?.rsplit_once(' ')?;
    if u32::from_str_radix(sum, 16).ok()? != checksum(text.as_bytes()) {
        return None;
    }
    let (epoch, primary) = text.split_once(' ')?;
    Some(Record {
        epoch: epoch.parse().ok()?,
        primary: primary.to_owned(),
    })
}

/// FNV-1a: <https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum, byte| {
        (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_whole_record_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("epoch");
        let file = EpochFile::open(&path).unwrap();
        assert_eq!(file.latest().unwrap(), None);
        for epoch in 1..=5 {
            let record = Record {
                epoch,
                primary: format!("app-{}", epoch % 2),
            };
            file.write(&record).unwrap();
            assert_eq!(
                EpochFile::open(&path).unwrap().latest().unwrap(),
                Some(record)
            );
        }
        // A crash tears the next one anywhere: the one before it counts.
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..16 {
            let mut torn = whole.clone();
            torn[cut] ^= 0x41;
            std::fs::write(&path, &torn).unwrap();
            let latest = EpochFile::open(&path).unwrap().latest().unwrap().unwrap();
            assert_eq!(latest.epoch, 5, "the other sector");
            let mut torn = whole.clone();
            torn[SECTOR + cut.min(11)] ^= 0x41;
            std::fs::write(&path, &torn).unwrap();
            let latest = EpochFile::open(&path).unwrap().latest().unwrap().unwrap();
            assert_eq!(latest.epoch, 4, "cut at {cut}");
        }
    }
}
