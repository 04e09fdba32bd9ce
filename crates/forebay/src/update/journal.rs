//! What must survive the daemon: the update under way, and what came of those before it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use forebay_api as api;
use forebay_core::app::AppId;
use forebay_core::update::{Life, Looked, Pace, Record};
use forebay_shadow::answers::Answers;
use serde::{Deserialize, Serialize};

use crate::durable;

/// The file's name in the state directory.
pub(super) const FILE: &str = "update.json";
const HEADING: &str = "forebay updates 1 ";
/// Receipts that are kept.
pub(super) const HISTORY_MAX: usize = 50;

/// What a front had counted when the first command was about to begin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Counted {
    pub(super) answers: Answers,
    /// Absent in what was written before it was counted.
    #[serde(default)]
    pub(super) requests: u64,
    pub(super) held: u64,
    pub(super) failed: u64,
    pub(super) unknown: u64,
}

/// How an app was before anything began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Was {
    pub(super) runs: bool,
    pub(super) port: Option<bool>,
}

impl Was {
    pub(super) fn looked(self, pace: Pace) -> Looked {
        Looked {
            runs: self.runs,
            port: self.port,
            pace,
            ..Looked::default()
        }
    }
}

/// A hand-over for the update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HandOver {
    pub(super) front: AppId,
    pub(super) said: String,
    pub(super) pause_ms: f64,
}

/// The update under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) record: Record,
    /// The attempt of a rolling update that it is, if it is one's.
    #[serde(default)]
    pub(super) rollout: Option<String>,
    pub(super) was: BTreeMap<AppId, Was>,
    /// By front: before anything began.
    pub(super) before: BTreeMap<AppId, Pace>,
    /// By front, at the beginning of the first command.
    pub(super) counted: BTreeMap<AppId, Counted>,
    /// By front, from then until the apps were looked at.
    pub(super) during: BTreeMap<AppId, (Pace, Counted)>,
    pub(super) hand_overs: Vec<HandOver>,
    /// Those that are to be kept over a boot, as they ran before any of them was ended: whoever runs so still has lost
    /// nothing.
    #[serde(default)]
    pub(super) lives: BTreeMap<AppId, Life>,
    /// How long apps stood that were kept over a boot, in milliseconds.
    #[serde(default)]
    pub(super) pauses: BTreeMap<AppId, f64>,
    /// By front, what became of clients' connections.
    #[serde(default)]
    pub(super) clients: BTreeMap<AppId, super::clients::Passage>,
    pub(super) held_times: u32,
    pub(super) held_ms: u64,
}

impl Entry {
    pub(super) const fn new(record: Record) -> Self {
        Self {
            record,
            rollout: None,
            was: BTreeMap::new(),
            before: BTreeMap::new(),
            counted: BTreeMap::new(),
            during: BTreeMap::new(),
            hand_overs: Vec::new(),
            lives: BTreeMap::new(),
            pauses: BTreeMap::new(),
            clients: BTreeMap::new(),
            held_times: 0,
            held_ms: 0,
        }
    }
}

/// What is in the file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content {
    /// Updates so far.
    pub(super) updates: u64,
    pub(super) current: Option<Entry>,
    pub(super) history: Vec<api::UpdateReceipt>,
    /// Those that are over, by their outcome, also those whose receipts are gone.
    #[serde(default)]
    pub(super) outcomes: BTreeMap<String, u64>,
    /// How long those stood still because a critical app suffered.
    #[serde(default)]
    pub(super) held_ms: u64,
}

/// Reads it without a daemon.
///
/// # Errors
/// Why it cannot be used, and what to do.
pub(super) fn read(state_dir: &Path) -> Result<Content, String> {
    let file = state_dir.join(FILE);
    durable::read(&file, HEADING).map_err(|error| {
        format!(
            "{}; no update begins until it is whole: look at what the last one left (`dpkg --audit` \
             where there is dpkg), move the file away and start the daemon again",
            durable::said(&error)
        )
    })
}

/// The file, and what is in it.
#[derive(Debug)]
pub(super) struct Book {
    file: PathBuf,
    /// Why it cannot be used; then it is left as it is.
    broken: Option<String>,
    content: Mutex<Content>,
    #[cfg(debug_assertions)]
    writes: std::sync::atomic::AtomicU64,
}

impl Book {
    /// Reads it; one that is not there is empty, one that is damaged is left alone.
    pub(super) fn open(state_dir: &Path) -> Self {
        let (content, broken) = match read(state_dir) {
            Ok(content) => (content, None),
            Err(why) => {
                tracing::error!(why, "no update begins");
                (Content::default(), Some(why))
            }
        };
        Self {
            file: state_dir.join(FILE),
            broken,
            content: Mutex::new(content),
            #[cfg(debug_assertions)]
            writes: std::sync::atomic::AtomicU64::new(0),
        }
    }

    /// Why no update can begin, if so.
    pub(super) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn content(&self) -> Content {
        self.lock().clone()
    }

    pub(super) fn current(&self) -> Option<Entry> {
        self.lock().current.clone()
    }

    /// Changes it durably. In memory it is as it was where it could not be written.
    ///
    /// # Errors
    /// Why it is not on disk.
    pub(super) fn amend(&self, change: impl FnOnce(&mut Content)) -> Result<(), String> {
        if let Some(why) = &self.broken {
            return Err(why.clone());
        }
        let mut content = self.lock();
        let mut next = content.clone();
        change(&mut next);
        self.may_die();
        durable::write(&self.file, HEADING, &next).map_err(|error| durable::said(&error))?;
        self.may_die();
        *content = next;
        Ok(())
    }

    /// Tests have the daemon die at each write, before and after it: the variable says at which moment.
    #[cfg(debug_assertions)]
    fn may_die(&self) {
        use std::sync::atomic::Ordering;
        let moment = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        let asked = std::env::var("FOREBAY_UPDATE_DIES_AT").ok();
        if asked.and_then(|asked| asked.parse().ok()) == Some(moment) {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                .ok();
        }
    }

    #[cfg(not(debug_assertions))]
    const fn may_die(&self) {}
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use forebay_core::update::{Order, WELL_WITHIN_USUAL};

    use super::*;

    fn entry() -> Entry {
        let order = Order {
            command: vec!["true".to_owned()],
            directory: PathBuf::from("/"),
            rollback: None,
            rehearse: Default::default(),
            limit: Duration::from_secs(1),
            well_within: WELL_WITHIN_USUAL,
            restart: BTreeSet::new(),
            reboot: false,
            elsewhere: true,
            keep: false,
            soft: false,
            unproved: false,
            told: BTreeMap::new(),
        };
        let mut entry = Entry::new(Record::new(1, 2, "boot".to_owned(), order));
        let front: AppId = "web".parse().unwrap();
        entry.counted.insert(front.clone(), Counted::default());
        entry
            .during
            .insert(front, (Pace::default(), Counted::default()));
        entry
    }

    #[test]
    fn what_was_written_is_there_when_the_daemon_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path());
        assert_eq!(book.content(), Content::default());
        book.amend(|content| content.current = Some(entry()))
            .unwrap();
        assert_eq!(Book::open(dir.path()).current(), Some(entry()));
    }

    #[test]
    fn a_damaged_one_is_left_alone_and_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        Book::open(dir.path())
            .amend(|content| content.current = Some(entry()))
            .unwrap();
        let file = dir.path().join(FILE);
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        let book = Book::open(dir.path());
        let why = book.broken().unwrap();
        assert!(
            why.contains("update.json: ") && why.contains("move the file away"),
            "{why}"
        );
        book.amend(|content| content.updates = 9).unwrap_err();
        assert_eq!(std::fs::read(&file).unwrap().len(), whole.len() / 2);
    }

    #[test]
    fn what_cannot_be_written_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path());
        std::fs::create_dir(dir.path().join("update.json.new")).unwrap();
        let why = book.amend(|content| content.updates = 1).unwrap_err();
        assert!(why.contains("update.json.new"), "{why}");
        assert_eq!(book.content(), Content::default());
    }
}
