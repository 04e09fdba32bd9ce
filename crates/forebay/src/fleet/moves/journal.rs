//! What must survive the daemon: how far moves are, and whose applications are.
//!
//! One small file in the state directory, replaced as a whole: written beside, synced, renamed, and the
//! directory synced. It is written when a mark changes or a record was read that is news, a few times
//! for each move.
//!
//! ```text
//! forebay moves 1 CHECKSUM
//! {"records": {...}, "departures": {...}, "arrivals": {...}}
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use forebay_core::app::AppId;
use forebay_core::fleet::mobility::Way;
use forebay_core::fleet::{HostName, Ownership, arrival, departure};
use serde::{Deserialize, Serialize};

/// The file's name in the state directory.
pub(crate) const FILE: &str = "moves.json";
const HEADING: &str = "forebay moves 1 ";
/// A longer one is not read: it is none of ours.
const BYTES_MAX: u64 = 16 << 20;

/// A move away that is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Departing {
    /// The record that it was begun with.
    pub(crate) record: Ownership,
    pub(crate) there: HostName,
    pub(crate) way: Way,
    pub(crate) mark: departure::Mark,
}

/// A move to here that is not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arriving {
    /// The record that the source began with.
    pub(crate) record: Ownership,
    pub(crate) way: Way,
    pub(crate) mark: arrival::Mark,
}

/// What is in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Content {
    /// What the coordinator said last.
    pub(crate) records: BTreeMap<AppId, Ownership>,
    pub(crate) departures: BTreeMap<AppId, Departing>,
    pub(crate) arrivals: BTreeMap<AppId, Arriving>,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It is not what was written.
    #[error(
        "{file}: {what}; nothing moves from or to this host until it is whole: look with `forebay \
         fleet status` at which host each application is, move the file away and start the daemon again"
    )]
    Damaged { file: String, what: String },
    /// It was found so when the daemon began.
    #[error("{0}")]
    Broken(String),
    /// The system refused something.
    #[error("{attempt} {file}; check the disk")]
    File {
        attempt: &'static str,
        file: String,
        source: io::Error,
    },
}

const SYNC_DIRECTORY: &str = "sync the directory of";

impl Error {
    /// The new content took its place, and may be gone again after a crash of the host.
    fn is_unknown(&self) -> bool {
        matches!(self, Self::File { attempt, .. } if *attempt == SYNC_DIRECTORY)
    }
}

/// An error with its cause.
pub(super) fn said(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn failed(attempt: &'static str, file: &Path) -> impl FnOnce(io::Error) -> Error {
    let file = file.display().to_string();
    move |source| Error::File {
        attempt,
        file,
        source,
    }
}

/// FNV-1a of 64 bits: it tells a damaged file from a whole one, and nothing more is asked of it.
fn checksum(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn write(file: &Path, content: &Content) -> Result<(), Error> {
    let json = serde_json::to_string(content)
        .map_err(|error| failed("write", file)(io::Error::other(error)))?;
    let text = format!("{HEADING}{:016x}\n{json}\n", checksum(&json));
    let beside = file.with_extension("json.new");
    let mut new = File::create(&beside).map_err(failed("create", &beside))?;
    new.write_all(text.as_bytes())
        .and_then(|()| new.sync_all())
        .map_err(failed("write", &beside))?;
    fs::rename(&beside, file).map_err(failed("replace", file))?;
    let dir = file.parent().unwrap_or_else(|| Path::new("/"));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(failed(SYNC_DIRECTORY, file))
}

fn read(file: &Path) -> Result<Content, Error> {
    let damaged = |what: &str| Error::Damaged {
        file: file.display().to_string(),
        what: what.to_owned(),
    };
    match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::default()),
        Ok(found) if found.len() > BYTES_MAX => return Err(damaged("it is far too long")),
        Ok(_) | Err(_) => {}
    }
    let bytes = fs::read(file).map_err(failed("read", file))?;
    let text = String::from_utf8(bytes).map_err(|_| damaged("it is no text"))?;
    let (heading, json) = text
        .split_once('\n')
        .ok_or_else(|| damaged("it ends in its first line"))?;
    let expected = heading
        .strip_prefix(HEADING)
        .ok_or_else(|| damaged("it does not begin as a journal of moves does"))?;
    let json = json
        .strip_suffix('\n')
        .ok_or_else(|| damaged("its end is missing"))?;
    if format!("{:016x}", checksum(json)) != expected {
        return Err(damaged("its checksum differs"));
    }
    serde_json::from_str(json).map_err(|error| damaged(&error.to_string()))
}

/// The file, and what is in it.
#[derive(Debug)]
pub(crate) struct Book {
    file: PathBuf,
    /// Why it cannot be used. Then it is left as it is, and only what the coordinator says is known.
    broken: Option<String>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    content: Content,
    /// The latest records are not on disk.
    is_behind: bool,
    /// A new content may be on disk, or not: it took its place, and that was not made durable.
    is_unknown: bool,
}

impl Book {
    /// Reads it; one that is not there is empty, one that is damaged is left alone.
    pub(crate) fn open(state_dir: &Path) -> Self {
        let file = state_dir.join(FILE);
        let (content, broken) = match read(&file) {
            Ok(content) => (content, None),
            Err(error) => {
                tracing::error!(%error, "nothing moves");
                (Content::default(), Some(said(&error)))
            }
        };
        Self {
            file,
            broken,
            inner: Mutex::new(Inner {
                content,
                is_behind: false,
                is_unknown: false,
            }),
        }
    }

    /// Why nothing can move, if so.
    pub(crate) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    fn write(&self, content: &Content) -> Result<(), Error> {
        match &self.broken {
            Some(why) => Err(Error::Broken(why.clone())),
            None => write(&self.file, content),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in it.
    pub(crate) fn content(&self) -> Content {
        self.inner().content.clone()
    }

    /// What the coordinator said last of an application.
    pub(crate) fn record(&self, app: &AppId) -> Option<Ownership> {
        self.inner().content.records.get(app).cloned()
    }

    /// Makes how far a move away is durable; none when it is over.
    pub(crate) fn depart(&self, app: &AppId, state: Option<Departing>) -> Result<(), Error> {
        self.amend(|content| put(&mut content.departures, app, state))
    }

    /// Makes how far a move to here is durable; none when it is over.
    pub(crate) fn arrive(&self, app: &AppId, state: Option<Arriving>) -> Result<(), Error> {
        self.amend(|content| put(&mut content.arrivals, app, state))
    }

    /// Remembers what the coordinator said. Where that cannot be written it is the next time: an older
    /// record on disk makes nobody start what is not his, since marks say what was asked for since.
    pub(crate) fn learn(&self, app: &AppId, record: &Ownership) {
        let mut inner = self.inner();
        let known = inner.content.records.get(app);
        // An answer that was late says nothing new. What runs does not become what never ran.
        let is_news = known.is_none_or(|known| {
            let is_late = known.owner == record.owner && known.runs;
            known.epoch < record.epoch
                || (known.epoch == record.epoch && known != record && !is_late)
        });
        if is_news {
            inner.content.records.insert(app.clone(), record.clone());
            inner.is_behind = true;
        }
        if inner.is_behind && self.broken.is_none() {
            match self.write(&inner.content) {
                Ok(()) => {
                    inner.is_behind = false;
                    inner.is_unknown = false;
                }
                Err(error) => {
                    inner.is_unknown |= error.is_unknown();
                    tracing::warn!(%error, %app, "a record is not on disk");
                }
            }
        }
    }

    /// In memory it is as it was where it could not be written.
    fn amend(&self, change: impl FnOnce(&mut Content)) -> Result<(), Error> {
        let mut inner = self.inner();
        let mut content = inner.content.clone();
        change(&mut content);
        // While it is not known what is there, what is to be there is written again.
        if content == inner.content && !inner.is_unknown {
            // Marks are on disk; records may follow.
            if inner.is_behind && self.write(&content).is_ok() {
                inner.is_behind = false;
            }
            return Ok(());
        }
        if let Err(error) = self.write(&content) {
            inner.is_unknown |= error.is_unknown();
            return Err(error);
        }
        *inner = Inner {
            content,
            is_behind: false,
            is_unknown: false,
        };
        Ok(())
    }
}

fn put<T>(map: &mut BTreeMap<AppId, T>, app: &AppId, state: Option<T>) {
    match state {
        Some(state) => _ = map.insert(app.clone(), state),
        None => _ = map.remove(app),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> AppId {
        "web".parse().unwrap()
    }

    fn departing(mark: departure::Mark) -> Departing {
        Departing {
            record: Ownership::first("a".parse().unwrap()),
            there: "b".parse().unwrap(),
            way: Way::Restart,
            mark,
        }
    }

    #[test]
    fn what_was_marked_is_there_when_the_daemon_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path());
        assert_eq!(book.content(), Content::default());
        for mark in [
            departure::Mark::Begun,
            departure::Mark::Frozen,
            departure::Mark::Committing,
        ] {
            book.depart(&app(), Some(departing(mark))).unwrap();
            let again = Book::open(dir.path());
            assert_eq!(again.content(), book.content());
            assert_eq!(again.content().departures[&app()].mark, mark);
        }
        book.depart(&app(), None).unwrap();
        let record = Ownership::first("a".parse().unwrap());
        book.learn(&app(), &record.recalled());
        book.learn(&app(), &record);
        let again = Book::open(dir.path()).content();
        assert!(again.departures.is_empty());
        assert_eq!(again.records[&app()], record.recalled());
        // An answer that was late does not make what runs one that never ran.
        let given = record.recalled().given_to(&record.owner);
        book.learn(&app(), &given.running());
        book.learn(&app(), &given);
        assert_eq!(book.record(&app()), Some(given.running()));
    }

    /// A daemon or a host that dies while it is written leaves a part of it beside, which is in nobody's way.
    #[test]
    fn a_write_that_was_cut_short_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path());
        book.depart(&app(), Some(departing(departure::Mark::Begun)))
            .unwrap();
        let whole = fs::read(dir.path().join(FILE)).unwrap();
        let marks = [departure::Mark::Begun, departure::Mark::Frozen];
        for length in 0..=2 * whole.len() {
            let left = [whole.clone(), whole.clone()].concat();
            fs::write(dir.path().join("moves.json.new"), &left[..length]).unwrap();
            let book = Book::open(dir.path());
            let mark = marks[length % 2];
            book.depart(&app(), Some(departing(mark))).unwrap();
            let again = Book::open(dir.path());
            assert_eq!(again.broken(), None);
            assert_eq!(again.content().departures[&app()].mark, mark);
        }
    }

    #[test]
    fn a_damaged_one_names_the_file_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path());
        book.depart(&app(), Some(departing(departure::Mark::Frozen)))
            .unwrap();
        let file = dir.path().join(FILE);
        let whole = fs::read(&file).unwrap();
        let mut damaged: Vec<Vec<u8>> = (0..whole.len()).map(|n| whole[..n].to_vec()).collect();
        damaged.extend((0..whole.len()).map(|at| {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            bytes
        }));
        for bytes in damaged {
            fs::write(&file, &bytes).unwrap();
            let error = Book::open(dir.path()).broken().unwrap().to_owned();
            assert!(error.contains("moves.json: "), "{error}");
            assert!(error.contains("nothing moves"), "{error}");
            // It is left for whoever looks.
            let book = Book::open(dir.path());
            book.learn(&app(), &Ownership::first("a".parse().unwrap()));
            assert!(book.record(&app()).is_some());
            book.depart(&app(), Some(departing(departure::Mark::Begun)))
                .unwrap_err();
            assert_eq!(fs::read(&file).unwrap(), bytes);
        }
    }

    #[test]
    fn what_cannot_be_written_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path());
        // A directory where the new file is to be written.
        fs::create_dir(dir.path().join("moves.json.new")).unwrap();
        let error = book.depart(&app(), Some(departing(departure::Mark::Begun)));
        assert!(error.unwrap_err().to_string().contains("moves.json.new"));
        assert!(book.content().departures.is_empty());
        let record = Ownership::first("a".parse().unwrap());
        book.learn(&app(), &record);
        assert_eq!(book.record(&app()), Some(record.clone()));
        fs::remove_dir(dir.path().join("moves.json.new")).unwrap();
        book.depart(&app(), None).unwrap();
        assert_eq!(Book::open(dir.path()).record(&app()), Some(record));
    }
}
