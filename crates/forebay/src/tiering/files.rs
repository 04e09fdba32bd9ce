//! What a mover knows of its files: where they are, how warm, and who is to be left alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_core::tier::{self, Cause, Heats, Move, Place, Rests, Room};
use forebay_core::units::Bytes;
use forebay_host::tier::{Entry, FileKey, Left, Scan, Touches};

/// How long a file stays where a person moved it.
const BY_HAND: Duration = Duration::from_secs(3600);

/// The files of one tier.
#[derive(Debug)]
pub(super) struct Files {
    /// By path.
    entries: Vec<Entry>,
    heats: Heats<FileKey>,
    rests: Rests<FileKey>,
    seen: bool,
}

/// A move that was decided on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) path: PathBuf,
    pub(super) to: Place,
    pub(super) why: String,
}

/// How much is on one side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

impl Files {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            entries: Vec::new(),
            heats: Heats::new(now),
            rests: Rests::new(),
            seen: false,
        }
    }

    pub(super) const fn heats(&self) -> &Heats<FileKey> {
        &self.heats
    }

    pub(super) fn touched(&mut self, now: Duration, touches: &Touches) {
        for (file, times) in &touches.files {
            self.heats.touch(now, *file, *times);
        }
        self.heats.pass(now);
    }

    pub(super) fn scanned(&mut self, now: Duration, scan: Scan) {
        self.entries = scan.entries;
        if std::mem::replace(&mut self.seen, true) {
            return;
        }
        // An earlier mover found them warm; how warm, nobody knows any more.
        for entry in &self.entries {
            if let (Place::Fast, Some(key)) = (entry.place, entry.key) {
                self.rests.moved(now, key);
            }
        }
    }

    pub(super) fn on(&self, place: Place) -> Sum {
        let there = self.entries.iter().filter(|entry| entry.place == place);
        there.fold(Sum::default(), |sum, entry| Sum {
            files: sum.files + 1,
            bytes: sum.bytes.saturating_add(entry.size),
        })
    }

    /// All files on the fast side.
    pub(super) fn promoted(&self) -> Vec<PathBuf> {
        let there = self.entries.iter();
        there
            .filter(|entry| entry.place == Place::Fast)
            .map(|entry| entry.path.clone())
            .collect()
    }

    /// What to move next.
    pub(super) fn decide(&self, now: Duration, room: &Room) -> Vec<Planned> {
        let file = |entry: &Entry| {
            let key = entry.key;
            tier::File {
                size: Bytes(entry.size),
                heat: key.map_or(0.0, |key| self.heats.of(now, key).most()),
                place: entry.place,
                rest: key.map(|key| self.rests.of(key)).unwrap_or_default(),
            }
        };
        let files: Vec<tier::File> = self.entries.iter().map(file).collect();
        let moves = tier::decide(now, &files, room);
        let planned = |one: &Move| Planned {
            path: self.entries[one.file].path.clone(),
            to: one.to,
            why: self.why(now, &files[one.file], one),
        };
        moves.iter().map(planned).collect()
    }

    fn why(&self, now: Duration, file: &tier::File, one: &Move) -> String {
        let entry = &self.entries[one.file];
        let warmth = entry.key.map(|key| self.heats.of(now, key));
        let warmth = warmth.unwrap_or_default();
        let heat = match warmth
            .forecast
            .filter(|expected| *expected > warmth.measured)
        {
            Some(expected) => format!("{expected:.2} touches/s expected within a minute"),
            None => format!("{:.3} touches/s", warmth.measured),
        };
        match one.cause {
            Cause::Warm => format!("{heat} over {}", file.size),
            Cause::Yields { to } => {
                let to = self.entries[to].path.display();
                format!("{heat} over {}; makes room for {to}", file.size)
            }
            Cause::TooFull => "the fast side holds more than it may".to_owned(),
        }
    }

    /// A file is on the other side now, under another key.
    pub(super) fn moved(&mut self, now: Duration, path: &Path, to: Place, key: Option<FileKey>) {
        let Some(entry) = entry_of(&mut self.entries, path) else {
            return;
        };
        if let (Some(old), Some(new)) = (entry.key, key) {
            self.heats.rename(old, new);
            self.rests.moved(now, new);
        }
        entry.place = to;
        entry.key = key;
    }

    /// A file was left where it is. How long it is left alone now.
    pub(super) fn left(&mut self, now: Duration, path: &Path, why: &Left) -> Option<Duration> {
        if *why == Left::Stopped {
            return None;
        }
        let key = entry_of(&mut self.entries, path)?.key?;
        self.rests.failed(now, key);
        Some(self.rests.of(key).retry_at.saturating_sub(now))
    }

    /// A person decided where it is to be for now.
    pub(super) fn hold(&mut self, now: Duration, path: &Path) {
        if let Some(key) = entry_of(&mut self.entries, path).and_then(|entry| entry.key) {
            self.rests.hold(now, key, BY_HAND);
        }
    }
}

fn entry_of<'e>(entries: &'e mut [Entry], path: &Path) -> Option<&'e mut Entry> {
    let index = entries.binary_search_by(|entry| entry.path.as_path().cmp(path));
    index.ok().map(|index| &mut entries[index])
}
