//! Weights on disk: written whole or not at all, and never believed.
//!
//! `lstm.weights` holds the weights in use, `lstm.weights.previous` those before, both as
//! [`Weights::to_bytes`] with a checksum; `lstm.training` says what was trained so far. Each is
//! written beside its place, synced, and renamed. A crash between two of them leaves weights that
//! the notes do not know; those are on trial from then on.
//!
//! What cannot be read is never deleted or written over: its user may have a use for it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay_forecast::lstm::{Weights, WeightsError};
use forebay_host::regular::{self, ReplaceError};
use serde::{Deserialize, Serialize};

use super::decision::Past;

/// The weights in use.
const FILE: &str = "lstm.weights";
/// Those before.
const PREVIOUS: &str = "lstm.weights.previous";
/// What was trained so far.
const NOTES: &str = "lstm.training";
/// A longer file is none of ours: weights take 68 kB.
const BYTES_MAX: u64 = 1 << 20;
/// Of the notes.
const FORMAT: u32 = 1;

/// Why a file is not used, or was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "{}: {why}; nothing is trained until it is moved away, and what can be read beside it or is built in is used: mv {} {}.unused",
        file.display(), file.display(), file.display()
    )]
    Unusable { file: PathBuf, why: String },
    #[error("{0}; see that it is writable by the daemon's user and has space")]
    System(#[from] ReplaceError),
}

/// What is on disk.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    /// Weights in use.
    pub(super) weights: Arc<Weights>,
    /// Those before, where there are any.
    pub(super) previous: Option<Arc<Weights>>,
    pub(super) past: Past,
    /// Whether the weights in use are those of the program.
    pub(super) built_in: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Notes {
    format: u32,
    #[serde(flatten)]
    past: Past,
}

impl Kept {
    /// The weights that come with the program; they have the number 0.
    pub(super) fn built_in() -> Self {
        Self {
            weights: Arc::new(Weights::pretrained().numbered(0)),
            previous: None,
            past: Past::default(),
            built_in: true,
        }
    }
}

/// What is kept, and what is wrong with it. `now_unix_ms` is when weights that no note knows begin
/// their trial.
pub(super) fn load(dir: &Path, now_unix_ms: u64) -> (Kept, Vec<Error>) {
    let mut troubles = Vec::new();
    let mut read = |name: &str| {
        read_weights(&dir.join(name)).unwrap_or_else(|error| {
            troubles.push(error);
            None
        })
    };
    let (weights, previous) = (read(FILE), read(PREVIOUS));
    let notes = dir.join(NOTES);
    let past = read_notes(&notes).unwrap_or_else(|why| {
        troubles.push(Error::Unusable { file: notes, why });
        None
    });
    let kept = match weights {
        None => Kept {
            previous: previous.map(Arc::new),
            past: past.filter(|past| past.version == 0).unwrap_or_default(),
            ..Kept::built_in()
        },
        Some(weights) => Kept {
            past: match past {
                Some(past) if past.version == weights.version() => past,
                past => unknown(&weights, past, now_unix_ms),
            },
            built_in: weights.version() == 0,
            weights: Arc::new(weights),
            previous: previous.map(Arc::new),
        },
    };
    (kept, troubles)
}

/// Of weights that the notes do not know.
fn unknown(weights: &Weights, past: Option<Past>, now_unix_ms: u64) -> Past {
    let past = past.unwrap_or_default();
    Past {
        version: weights.version(),
        versions: past.versions.max(weights.version()),
        until_unix_ms: Some(now_unix_ms),
        on_trial: true,
        ..past
    }
}

/// Writes new weights in place of those in use, which are kept as the ones before.
pub(super) fn replace(dir: &Path, new: &Weights, old: &Weights, past: &Past) -> Result<(), Error> {
    write(&dir.join(PREVIOUS), &old.to_bytes())?;
    write(&dir.join(FILE), &new.to_bytes())?;
    note(dir, past)
}

/// Writes the weights before in place of those in use.
pub(super) fn put_back(dir: &Path, old: &Weights, past: &Past) -> Result<(), Error> {
    write(&dir.join(FILE), &old.to_bytes())?;
    note(dir, past)
}

/// Writes down what was trained so far.
pub(super) fn note(dir: &Path, past: &Past) -> Result<(), Error> {
    let notes = Notes {
        format: FORMAT,
        past: *past,
    };
    let file = dir.join(NOTES);
    let text = serde_json::to_vec(&notes).map_err(|error| {
        Error::System(ReplaceError {
            attempt: "write",
            file: file.clone(),
            source: error.into(),
        })
    })?;
    write(&file, &text)
}

/// The weights in a file; nothing where there is none.
fn read_weights(file: &Path) -> Result<Option<Weights>, Error> {
    let unusable = |why: String| Error::Unusable {
        file: file.to_owned(),
        why,
    };
    let Some(bytes) = read(file).map_err(|error| unusable(error.to_string()))? else {
        return Ok(None);
    };
    let weights =
        Weights::from_bytes(&bytes).map_err(|error: WeightsError| unusable(error.to_string()))?;
    if weights.layout() != Weights::pretrained().layout() {
        let why = "these weights are for another network than this release has".to_owned();
        return Err(unusable(why));
    }
    Ok(Some(weights))
}

fn read_notes(file: &Path) -> Result<Option<Past>, String> {
    let Some(bytes) = read(file).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let notes: Notes = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    match notes.format {
        FORMAT => Ok(Some(notes.past)),
        other => Err(format!(
            "its format is {other}, this release reads {FORMAT}"
        )),
    }
}

fn read(file: &Path) -> io::Result<Option<Vec<u8>>> {
    match regular::read(file, BYTES_MAX) {
        Ok((bytes, _)) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write(file: &Path, bytes: &[u8]) -> Result<(), Error> {
    Ok(regular::replace(file, bytes, 0o644)?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn loaded(dir: &Path) -> (Kept, Vec<String>) {
        let (kept, troubles) = load(dir, 7);
        (kept, troubles.iter().map(Error::to_string).collect())
    }

    fn kept(version: u32) -> (tempfile::TempDir, Past) {
        let dir = tempfile::tempdir().unwrap();
        let old = Weights::pretrained();
        let past = Past {
            version,
            versions: version,
            jobs: 3,
            until_unix_ms: Some(5),
            on_trial: true,
        };
        replace(dir.path(), &old.clone().numbered(version), &old, &past).unwrap();
        (dir, past)
    }

    #[test]
    fn what_was_kept_is_there_again() {
        let empty = tempfile::tempdir().unwrap();
        let (nothing, troubles) = loaded(empty.path());
        assert!(nothing.built_in && nothing.previous.is_none());
        assert_eq!((nothing.past, troubles), (Past::default(), vec![]));

        let (dir, past) = kept(9);
        let (found, troubles) = loaded(dir.path());
        assert_eq!(troubles, Vec::<String>::new());
        assert_eq!((found.past, found.built_in), (past, false));
        assert_eq!(found.weights.version(), 9);
        assert_eq!(*found.previous.unwrap(), Weights::pretrained());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 3, "nothing is left beside them: {left:?}");
    }

    #[test]
    fn weights_that_no_note_knows_are_on_trial_from_now_on() {
        let (dir, _) = kept(9);
        let newer = Weights::pretrained().numbered(10);
        write(&dir.path().join(FILE), &newer.to_bytes()).unwrap();
        let past = loaded(dir.path()).0.past;
        assert_eq!((past.version, past.versions, past.jobs), (10, 10, 3));
        assert_eq!((past.until_unix_ms, past.on_trial), (Some(7), true));
    }

    #[test]
    fn what_is_damaged_foreign_or_newer_is_named_and_left_alone() {
        let check = |bytes: &[u8], words: &str| {
            let (dir, _) = kept(9);
            let file = dir.path().join(FILE);
            fs::write(&file, bytes).unwrap();
            let (found, troubles) = loaded(dir.path());
            assert!(found.built_in, "{words}");
            assert_eq!(troubles.len(), 1, "{troubles:?}");
            let named = file.display().to_string();
            let trouble = &troubles[0];
            assert!(
                trouble.starts_with(&named) && trouble.contains(words),
                "{trouble}"
            );
            assert_eq!(fs::read(&file).unwrap(), bytes, "it is as it was");
        };
        let good = Weights::pretrained().to_bytes();
        check(b"", "not a file of this format");
        check(b"SQLite format 3\0", "not a file of this format");
        check(&good[..good.len() / 2], "cut off");
        let mut newer = good.clone();
        newer[7] = 2;
        check(&newer, "later release");
        let mut damaged = good.clone();
        damaged[5000] ^= 1;
        check(&damaged, "checksum");
        check(&vec![0; 2 << 20], "longer than 1048576 bytes");
    }

    #[test]
    fn what_is_no_file_is_named_too() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(FILE)).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join(PREVIOUS),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let (found, troubles) = loaded(dir.path());
        assert!(found.built_in && found.previous.is_none());
        assert_eq!(troubles.len(), 2, "{troubles:?}");
        assert!(
            troubles.iter().all(|t| t.contains("no regular file")),
            "{troubles:?}"
        );
    }

    #[test]
    fn damaged_notes_are_named_and_left_alone_and_the_weights_are_on_trial() {
        let (dir, _) = kept(9);
        let notes = dir.path().join(NOTES);
        for text in ["", "{}", "{\"format\":2}", "\u{fffd}"] {
            fs::write(&notes, text).unwrap();
            let (found, troubles) = loaded(dir.path());
            assert_eq!(troubles.len(), 1, "{troubles:?}");
            assert!(troubles[0].contains("lstm.training"), "{troubles:?}");
            assert_eq!(found.weights.version(), 9, "{text}");
            assert!(found.past.on_trial);
            assert_eq!(fs::read_to_string(&notes).unwrap(), text);
        }
    }
}
