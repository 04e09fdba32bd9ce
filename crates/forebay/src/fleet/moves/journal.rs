//! What must survive the daemon: how far moves are, and whose applications are.
//!
//! One small file in the state directory ([`durable`]). It is written when a mark changes or a record was
//! read that is news, a few times for each move.
//!
//! ```text
//! forebay moves 1 CHECKSUM
//! {"records": {...}, "departures": {...}, "arrivals": {...}}
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use forebay_core::app::AppId;
use forebay_core::fleet::mobility::Way;
use forebay_core::fleet::{HostName, News, Ownership, arrival, departure};
use serde::{Deserialize, Serialize};

use crate::durable;
pub(super) use crate::durable::said;

/// The file's name in the state directory.
pub(crate) const FILE: &str = "moves.json";
const HEADING: &str = "forebay moves 1 ";

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
    /// What it said of another owner at the epoch of that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) disputes: BTreeMap<AppId, Ownership>,
    pub(crate) departures: BTreeMap<AppId, Departing>,
    pub(crate) arrivals: BTreeMap<AppId, Arriving>,
}

impl Content {
    /// Takes in what the coordinator says of an application; whether that is news. An answer that was late says
    /// nothing new, and a second owner of one epoch is none: that stands until a later record says who is.
    fn learn(&mut self, app: &AppId, record: &Ownership) -> bool {
        let known = self.records.get(app);
        match known.map_or(News::Later, |known| known.news(record)) {
            News::None => false,
            News::Later => {
                let is_settled = |other: &Ownership| other.epoch < record.epoch;
                if self.disputes.get(app).is_some_and(is_settled) {
                    self.disputes.remove(app);
                }
                self.records.insert(app.clone(), record.clone());
                true
            }
            News::Conflict => {
                self.disputes.insert(app.clone(), record.clone()).as_ref() != Some(record)
            }
        }
    }
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

impl Error {
    /// The new content took its place, and may be gone again after a crash of the host.
    fn is_unknown(&self) -> bool {
        matches!(self, Self::File { attempt, .. } if *attempt == durable::SYNC_DIRECTORY)
    }
}

impl From<durable::Error> for Error {
    fn from(error: durable::Error) -> Self {
        match error {
            durable::Error::Damaged { file, what } => Self::Damaged { file, what },
            durable::Error::File {
                attempt,
                file,
                source,
            } => Self::File {
                attempt,
                file,
                source,
            },
        }
    }
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
        let (content, broken) = match durable::read(&file, HEADING).map_err(Error::from) {
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
            None => Ok(durable::write(&self.file, HEADING, content)?),
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

    /// Looks at what is in it.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Content) -> T) -> T {
        look(&self.inner().content)
    }

    /// What the coordinator said of another owner at the epoch of the record that is known, if it did.
    pub(crate) fn dispute(&self, app: &AppId) -> Option<Ownership> {
        self.look(|content| content.disputes.get(app).cloned())
    }

    /// Remembers what the coordinator said. Where that cannot be written it is the next time: an older
    /// record on disk makes nobody start what is not his, since marks say what was asked for since.
    pub(crate) fn learn(&self, app: &AppId, record: &Ownership) {
        self.learn_all([(app, record)]);
    }

    /// The same of several, which are written at once.
    pub(crate) fn learn_all<'a>(
        &self,
        records: impl IntoIterator<Item = (&'a AppId, &'a Ownership)>,
    ) {
        let mut inner = self.inner();
        for (app, record) in records {
            inner.is_behind |= inner.content.learn(app, record);
        }
        if inner.is_behind && self.broken.is_none() {
            match self.write(&inner.content) {
                Ok(()) => {
                    inner.is_behind = false;
                    inner.is_unknown = false;
                }
                Err(error) => {
                    inner.is_unknown |= error.is_unknown();
                    tracing::warn!(%error, "what the coordinator said is not on disk");
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
    use std::fs;

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

    #[test]
    fn a_second_owner_of_one_epoch_is_no_news_and_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path());
        let [known, other] = ["a", "b"].map(|name| Ownership::first(name.parse().unwrap()));
        book.learn(&app(), &known);
        assert_eq!(book.dispute(&app()), None);
        book.learn(&app(), &other);
        let again = Book::open(dir.path());
        for book in [&book, &again] {
            assert_eq!(book.record(&app()), Some(known.clone()));
            assert_eq!(book.dispute(&app()), Some(other.clone()));
        }
        // The first one says nothing more; a later one does.
        book.learn(&app(), &known.running());
        assert_eq!(book.dispute(&app()), Some(other.clone()));
        book.learn(&app(), &other.recalled());
        assert_eq!(book.record(&app()), Some(other.recalled()));
        assert_eq!(Book::open(dir.path()).dispute(&app()), None);
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
