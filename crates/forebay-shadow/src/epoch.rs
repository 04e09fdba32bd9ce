//! Who is the primary, and since which epoch: written before anybody is promoted.
//!
//! Problem: whoever begins anew has to know who was promoted last, and may use no epoch twice, also
//! after the host was cut off from power; but the clients of a primary that is lost wait meanwhile, and
//! a disk takes some milliseconds to keep something.
//!
//! Approach: two records of one sector each are written in turn. One that was torn by a crash does not
//! agree with its check sum, and the other one counts. While all is calm, a record is made durable that
//! says up to which epoch some may have been used. A promotion under such an epoch needs its record to
//! be *written* only, if instances have no state of their own: that outlives this process, and no
//! instance outlives the host. Where they have a state, it is waited for until the record is *durable*,
//! since the host that begins again has to begin with the one that was written to last.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use forebay_core::shadow::promotion::Epoch;

const SECTOR: usize = 512;

/// What a front has to remember.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Record {
    pub(crate) epoch: Epoch,
    /// The app that it is: places change with the configuration.
    pub(crate) primary: String,
    /// Epochs up to this one may have been used.
    pub(crate) reserved: Epoch,
}

impl Record {
    /// The latest epoch that may have been used.
    pub(crate) fn used(&self) -> Epoch {
        self.epoch.max(self.reserved)
    }
}

/// The file.
#[derive(Debug)]
pub(crate) struct EpochFile {
    file: File,
    path: PathBuf,
    /// The number of the latest record that was written from here.
    written: Mutex<Option<u64>>,
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
            written: Mutex::default(),
        })
    }

    /// Takes the right to say who serves: of all processes of a front, one has it.
    ///
    /// # Errors
    /// When another one has it, or the file system cannot tell.
    pub(crate) fn lock(&self) -> io::Result<()> {
        let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(&self.file, lock).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => io::Error::new(
                io::ErrorKind::WouldBlock,
                "another process of this front says who serves",
            ),
            other => other.into(),
        })?;
        // Whoever had it before may have written.
        *self.written() = None;
        Ok(())
    }

    /// Leaves that right to another process.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn unlock(&self) -> io::Result<()> {
        Ok(rustix::fs::flock(
            &self.file,
            rustix::fs::FlockOperation::Unlock,
        )?)
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
                written: Mutex::default(),
            }
            .latest(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn written(&self) -> MutexGuard<'_, Option<u64>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn records_written(&self) -> u64 {
        self.written().map_or(0, |number| number + 1)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The latest record that is whole.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn latest(&self) -> io::Result<Option<Record>> {
        Ok(self.read()?.map(|(_, record)| record))
    }

    fn read(&self) -> io::Result<Option<(u64, Record)>> {
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
        Ok(records.max_by_key(|(number, _)| *number))
    }

    /// Writes a record: it outlives this process.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        // One at a time, or two would go to the same sector.
        let mut written = self.written();
        let before = match *written {
            Some(before) => Some(before),
            None => self.read()?.map(|(number, _)| number),
        };
        let number = before.map_or(0, |before| before + 1);
        let mut bytes = format(number, record).into_bytes();
        bytes.resize(SECTOR, b' ');
        let place = if number.is_multiple_of(2) { 0 } else { SECTOR };
        let offset = u64::try_from(place).unwrap_or(u64::MAX);
        self.file.write_all_at(&bytes, offset)?;
        *written = Some(number);
        Ok(())
    }

    /// Makes durable what was written: it outlives the host's end.
    ///
    /// # Errors
    /// What the file system says.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// One line: the number of the record, its epoch, the primary, the reserved epoch, and a check sum.
fn format(number: u64, record: &Record) -> String {
    let Record {
        epoch,
        primary,
        reserved,
    } = record;
    let text = format!("{number} {epoch} {primary} {reserved}");
    format!("{text} {:08x}\n", checksum(text.as_bytes()))
}

fn parse(sector: &[u8]) -> Option<(u64, Record)> {
    let text = std::str::from_utf8(sector).ok()?;
    let (text, sum) = text.lines().next()?.rsplit_once(' ')?;
    if u32::from_str_radix(sum, 16).ok()? != checksum(text.as_bytes()) {
        return None;
    }
    let words: Vec<&str> = text.split(' ').collect();
    match words.as_slice() {
        [number, epoch, primary, reserved] => {
            let record = Record {
                epoch: epoch.parse().ok()?,
                primary: (*primary).to_owned(),
                reserved: reserved.parse().ok()?,
            };
            Some((number.parse().ok()?, record))
        }
        // As it was written before epochs were reserved: the epoch was the record's number.
        [epoch, primary] => {
            let record = Record {
                epoch: epoch.parse().ok()?,
                primary: (*primary).to_owned(),
                ..Record::default()
            };
            Some((record.epoch, record))
        }
        _ => None,
    }
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

    fn record(epoch: Epoch) -> Record {
        Record {
            epoch,
            primary: format!("app-{}", epoch % 2),
            reserved: epoch + 1,
        }
    }

    #[test]
    fn the_latest_whole_record_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("epoch");
        let file = EpochFile::open(&path).unwrap();
        assert_eq!(file.latest().unwrap(), None);
        // The same epoch again is a record of its own: it does not take the place of the one before.
        for epoch in [1, 2, 3, 3, 4, 5] {
            file.write(&record(epoch)).unwrap();
            let latest = EpochFile::open(&path).unwrap().latest().unwrap();
            assert_eq!(latest, Some(record(epoch)));
        }
        // A crash tears the next one anywhere: the one before it counts.
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..20 {
            for (place, left) in [(0, 5), (SECTOR, 4)] {
                let mut torn = whole.clone();
                torn[place + cut] ^= 0x41;
                std::fs::write(&path, &torn).unwrap();
                let latest = EpochFile::open(&path).unwrap().latest().unwrap().unwrap();
                assert_eq!(latest.epoch, left, "cut at {cut}");
            }
        }
    }

    /// A process that took the right back went on counting where it had stopped, so that its records
    /// were older than those of the process between.
    #[test]
    fn what_was_written_meanwhile_is_older_than_what_is_written_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("epoch");
        let (one, other) = (
            EpochFile::open(&path).unwrap(),
            EpochFile::open(&path).unwrap(),
        );
        one.lock().unwrap();
        one.write(&record(1)).unwrap();
        one.unlock().unwrap();
        other.lock().unwrap();
        for epoch in [2, 3, 4] {
            other.write(&record(epoch)).unwrap();
        }
        other.unlock().unwrap();
        one.lock().unwrap();
        one.write(&record(5)).unwrap();
        assert_eq!(other.latest().unwrap(), Some(record(5)));
    }

    #[test]
    fn whoever_begins_anew_goes_on_after_the_latest_record() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("epoch");
        for epoch in 1..=5 {
            let file = EpochFile::open(&path).unwrap();
            file.write(&record(epoch)).unwrap();
            file.sync().unwrap();
            assert_eq!(file.latest().unwrap(), Some(record(epoch)));
        }
    }

    #[test]
    fn records_from_before_epochs_were_reserved_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("epoch");
        let old = |epoch: Epoch| {
            let text = format!("{epoch} app-{epoch}");
            let line = format!("{text} {:08x}\n", checksum(text.as_bytes()));
            format!("{line:<SECTOR$}")
        };
        std::fs::write(&path, old(6) + &old(5)).unwrap();
        let file = EpochFile::open(&path).unwrap();
        let latest = file.latest().unwrap().unwrap();
        assert_eq!((latest.epoch, latest.primary.as_str()), (6, "app-6"));
        assert_eq!(latest.used(), 6);
        file.write(&record(7)).unwrap();
        assert_eq!(file.latest().unwrap(), Some(record(7)));
    }
}
