//! The directory with an instance's data: what is in it, and what takes its place.
//!
//! Beside `DIR` there may be `DIR.forebay-new`, a copy that is not complete, and `DIR.forebay-old`,
//! what a copy replaced. Whoever finds the first without a note that it is being made leaves it
//! alone, and so with the second unless it holds the same cluster.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Failed;
use super::program::Program;

/// All of a note: one sector, which is written whole or not at all.
const NOTE_BYTES: usize = 512;
/// Room that is left beside a copy, in percent of it.
const MARGIN_PERCENT: u64 = 5;
/// Settings of a former primary, or of the one that was copied, that are another's now.
const REPLACED: [&str; 2] = ["primary_conninfo", "synchronous_standby_names"];

/// What is being done about a directory, or was last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// Its server was begun as the primary.
    Serves,
    /// Its server was begun as a standby.
    Follows,
    /// It is being rewound, and is worth nothing until it is.
    Rewinding,
    /// A copy is being made beside it.
    Copying,
    /// The same, and what is there is worth nothing: it was being rewound, or is being removed.
    Replacing,
    /// The copy is complete, and takes its place.
    Placing,
}

impl State {
    /// What is in the directory is worth nothing.
    pub(super) const fn is_worthless(self) -> bool {
        matches!(self, Self::Rewinding | Self::Replacing)
    }
}

/// Where there is room for a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Beside what it replaces.
    Beside,
    /// Once that is removed.
    Instead,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) state: State,
    /// The cluster's own number.
    pub(super) system: String,
}

impl Note {
    pub(super) fn new(state: State, system: &str) -> Self {
        Self {
            state,
            system: system.to_owned(),
        }
    }
}

/// The file that says what is being done about a directory. It is kept where nobody writes who may
/// write to the data.
#[derive(Debug)]
pub struct Mark {
    file: File,
    path: PathBuf,
}

impl Mark {
    /// Opens or makes it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path) -> Result<Self, Failed> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(path);
        let file = file.map_err(|error| failed("open", path, &error))?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
        })
    }

    pub(super) fn read(&self) -> Result<Option<Note>, Failed> {
        let mut bytes = [0; NOTE_BYTES];
        match self.file.read_exact_at(&mut bytes, 0) {
            Ok(()) => {}
            // Nobody has noted anything.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(failed("read", &self.path, &error)),
        }
        let note = serde_json::from_slice(&bytes);
        note.map(Some)
            .map_err(|error| failed("read", &self.path, &error.into()))
    }

    pub(super) fn write(&self, note: &Note) -> Result<(), Failed> {
        let written = serde_json::to_vec(note).map_err(io::Error::from);
        let written = written.and_then(|mut bytes| {
            bytes.resize(NOTE_BYTES, b' ');
            self.file.write_all_at(&bytes, 0)?;
            self.file.sync_data()
        });
        written.map_err(|error| failed("write", &self.path, &error))
    }
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Lsn(pub(super) u64);

impl Lsn {
    fn parse(text: &str) -> Option<Self> {
        let (high, low) = text.split_once('/')?;
        let number = |text| u32::from_str_radix(text, 16).ok().map(u64::from);
        Some(Self(number(high)? << 32 | number(low)?))
    }
}

/// What a cluster says of itself while its server does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) system: String,
    /// The latest timeline that it stood in.
    pub(super) timeline: u32,
    /// From where on it needs the log.
    pub(super) needs: Lsn,
    pub(super) is_standby: bool,
}

impl Control {
    fn parse(text: &str) -> Option<Self> {
        let of = |key: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
        };
        let timeline = |key| of(key)?.parse::<u32>().ok();
        let place = |key| Lsn::parse(of(key)?);
        Some(Self {
            system: of("Database system identifier")?.to_owned(),
            timeline: timeline("Latest checkpoint's TimeLineID")?
                .max(timeline("Min recovery ending loc's timeline")?),
            needs: place("Latest checkpoint's REDO location")?
                .max(place("Minimum recovery ending location")?),
            is_standby: false,
        })
    }
}

/// What is in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// It is empty, or not there.
    Nothing,
    Cluster(Control),
    /// Something else.
    Foreign,
}

#[derive(Debug, Clone)]
pub(super) struct Directory {
    path: PathBuf,
    copy: PathBuf,
    old: PathBuf,
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Directory {
    /// A directory, or a link to one.
    pub(super) fn new(path: &Path) -> Result<Self, Failed> {
        let path = match fs::canonicalize(path) {
            Ok(path) => path,
            Err(error) if error.kind() == ErrorKind::NotFound => path.to_path_buf(),
            Err(error) => return Err(failed("look at", path, &error)),
        };
        let beside = |end: &str| {
            let mut name = path.clone().into_os_string();
            name.push(end);
            PathBuf::from(name)
        };
        Ok(Self {
            copy: beside(".forebay-new"),
            old: beside(".forebay-old"),
            path,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn copy(&self) -> &Path {
        &self.copy
    }

    pub(super) fn old(&self) -> &Path {
        &self.old
    }

    pub(super) fn look(&self, program: Program) -> Result<Found, Failed> {
        look(&self.path, program)
    }

    /// Ends or undoes what was interrupted.
    pub(super) fn resume(&self, state: Option<State>) -> Result<(), Failed> {
        match state {
            // It is complete, whether what it replaces was moved away already or not.
            Some(State::Placing) if self.copy.exists() => self.place(),
            Some(State::Copying | State::Replacing | State::Placing) => self.drop_copy(),
            _ if self.copy.exists() => Err(Failed(format!(
                "{} is there, and nothing is noted of it; move it away",
                self.copy.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Gives up a copy that was to replace what is to serve now.
    pub(super) fn keep(&self, state: Option<State>) -> Result<(), Failed> {
        match state {
            Some(State::Copying | State::Placing) => self.drop_copy(),
            _ => Ok(()),
        }
    }

    pub(super) fn drop_copy(&self) -> Result<(), Failed> {
        remove(&self.copy)
    }

    /// Sees whether there is room for a copy: beside what there is, or else in its place.
    pub(super) fn look_for_room(
        &self,
        bytes: u64,
        before: Option<&Control>,
        program: &Program,
    ) -> Result<Room, Failed> {
        if let Some(control) = before.filter(|_| self.old.exists()) {
            self.drop_old(&control.system, program)?;
        }
        let needed = bytes.saturating_add(bytes / 100 * MARGIN_PERCENT);
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let stat = rustix::fs::statvfs(parent);
        let stat = stat.map_err(|error| failed("look at", parent, &error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free >= needed {
            return Ok(Room::Beside);
        }
        let device = |path: &Path| fs::metadata(path).map(|data| data.dev());
        if before.is_some() && device(&self.path).ok() != device(parent).ok() {
            return Err(Failed(format!(
                "{self} is a file system of its own, which a copy cannot take the place of; name a directory in it"
            )));
        }
        let taken = before.map_or(Ok(0), |_| size(&self.path))?;
        if free.saturating_add(taken) < needed {
            return Err(Failed(format!(
                "a copy of the primary takes {} MiB in {}, and {} MiB are free; make room, or keep \
                 more of its log so that a copy is not needed",
                needed >> 20,
                parent.display(),
                free >> 20
            )));
        }
        Ok(Room::Instead)
    }

    /// Removes what a copy is to replace, for want of room. What is half removed is never taken for
    /// whole: it is moved away first.
    pub(super) fn clear(&self) -> Result<(), Failed> {
        tracing::warn!(
            path = %self,
            "there is no room to keep what the copy replaces; it is removed first"
        );
        if self.path.exists() {
            remove(&self.old)?;
            fs::rename(&self.path, &self.old)
                .map_err(|error| failed("move away", &self.path, &error))?;
            sync(self.path.parent().unwrap_or(Path::new("/")))?;
        }
        remove(&self.old)
    }

    /// Puts a copy into place, and keeps what was there.
    pub(super) fn place(&self) -> Result<(), Failed> {
        if self.path.exists() {
            let is_empty = fs::read_dir(&self.path)
                .map_err(|error| failed("look at", &self.path, &error))?
                .next()
                .is_none();
            if !is_empty && self.old.exists() {
                return Err(Failed(format!(
                    "{} is there, where {self} is to be kept now that a copy takes its place; move it away",
                    self.old.display()
                )));
            }
            let moved = if is_empty {
                fs::remove_dir(&self.path)
            } else {
                fs::rename(&self.path, &self.old)
            };
            moved.map_err(|error| failed("move away", &self.path, &error))?;
        }
        fs::rename(&self.copy, &self.path)
            .map_err(|error| failed("put a copy into place at", &self.path, &error))?;
        sync(self.path.parent().unwrap_or(Path::new("/")))
    }

    /// Removes what was replaced, if it is of this cluster.
    pub(super) fn drop_old(&self, system: &str, program: &Program) -> Result<(), Failed> {
        if !self.old.exists() {
            return Ok(());
        }
        match look(&self.old, program.again())? {
            Found::Cluster(control) if control.system == system => remove(&self.old),
            found => Err(Failed(format!(
                "{} is to be removed, and does not hold the cluster {system} ({found:?}); move it away",
                self.old.display()
            ))),
        }
    }

    /// Has the server in a directory follow the primary that this describes.
    pub(super) fn set(&self, at: &Path, conninfo: &str) -> Result<(), Failed> {
        if let Some(control) = conninfo.chars().find(|c| c.is_control()) {
            return Err(Failed(format!(
                "the user or the password of the front has {control:?}, which no setting takes"
            )));
        }
        let path = at.join("postgresql.auto.conf");
        let before = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed("read", &path, &error)),
        };
        let text = with_conninfo(&before, conninfo);
        let new = at.join("postgresql.auto.conf.forebay-new");
        replace(&new, &path, text.as_bytes()).map_err(|error| failed("write", &path, &error))?;
        let signal = at.join("standby.signal");
        replace(&at.join("standby.signal.forebay-new"), &signal, b"")
            .map_err(|error| failed("write", &signal, &error))?;
        sync(at)
    }
}

fn with_conninfo(before: &str, conninfo: &str) -> String {
    let is_replaced = |line: &&str| {
        let name = line
            .trim_start()
            .split(|c: char| c.is_whitespace() || c == '=');
        let name = name.into_iter().next().unwrap_or_default();
        REPLACED.iter().any(|key| key.eq_ignore_ascii_case(name))
    };
    let kept = before.lines().filter(|line| !is_replaced(line));
    let mut text: String = kept.flat_map(|line| [line, "\n"]).collect();
    let value = conninfo.replace('\\', "\\\\").replace('\'', "''");
    text.push_str(&format!("primary_conninfo = '{value}'\n"));
    text
}

fn replace(new: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(new)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(new, path)
}

fn sync(directory: &Path) -> Result<(), Failed> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| failed("sync", directory, &error))
}

fn look(path: &Path, mut program: Program) -> Result<Found, Failed> {
    let mut entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(failed("look at", path, &error)),
    };
    if entries.next().is_none() {
        return Ok(Found::Nothing);
    }
    if !path.join("PG_VERSION").exists() || !path.join("global/pg_control").exists() {
        return Ok(Found::Foreign);
    }
    program.argument(path);
    let said = program.ask()?;
    let mut control = Control::parse(&said).ok_or_else(|| {
        Failed(format!(
            "pg_controldata says of {} what is not understood: {said}",
            path.display()
        ))
    })?;
    control.is_standby = path.join("standby.signal").exists();
    Ok(Found::Cluster(control))
}

fn remove(path: &Path) -> Result<(), Failed> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", path, &error)),
    }
}

/// Bytes on disk of all files below a directory.
fn size(path: &Path) -> Result<u64, Failed> {
    use std::os::unix::fs::MetadataExt as _;
    let mut total = 0_u64;
    let mut left = vec![path.to_path_buf()];
    while let Some(path) = left.pop() {
        let entries = fs::read_dir(&path).map_err(|error| failed("look at", &path, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| failed("look at", &path, &error))?;
            let data = entry
                .metadata()
                .map_err(|error| failed("look at", &entry.path(), &error))?;
            total = total.saturating_add(data.blocks().saturating_mul(512));
            if data.is_dir() {
                left.push(entry.path());
            }
        }
    }
    Ok(total)
}

fn failed(attempt: &str, path: &Path, error: &io::Error) -> Failed {
    Failed(format!("{attempt} {}: {error}", path.display()))
}

#[cfg(test)]
#[path = "directory_room_tests.rs"]
mod room_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cluster_says_is_understood() {
        let text = "pg_control version number:            1300\n\
             Database system identifier:           7441\n\
             Latest checkpoint's REDO location:    0/3000028\n\
             Latest checkpoint's TimeLineID:       2\n\
             Minimum recovery ending location:     1/4000060\n\
             Min recovery ending loc's timeline:   3\n";
        let control = Control::parse(text).unwrap();
        assert_eq!((control.system.as_str(), control.timeline), ("7441", 3));
        assert_eq!(control.needs, Lsn(0x1_0400_0060));
        assert_eq!(Control::parse(""), None);
    }

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let mark = Mark::open(&directory.path().join("a.data")).unwrap();
        assert_eq!(mark.read().unwrap(), None);
        for state in [State::Copying, State::Serves] {
            let note = Note::new(state, "7441");
            mark.write(&note).unwrap();
            assert_eq!(mark.read().unwrap(), Some(note));
        }
    }

    #[test]
    fn settings_of_another_are_replaced() {
        let before = "# Do not edit\nprimary_conninfo = 'host=a'\nwork_mem = '5MB'\n\
             synchronous_standby_names='b'\nprimary_conninfo_x = '1'\n";
        let text = with_conninfo(before, r"password='it\'s \\'");
        let expected = "# Do not edit\nwork_mem = '5MB'\nprimary_conninfo_x = '1'\n\
             primary_conninfo = 'password=''it\\\\''s \\\\\\\\'''\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_was_interrupted_is_ended_or_undone() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("data");
        let directory = Directory::new(&path).unwrap();
        let make = |path: &Path, file: &str| {
            fs::create_dir_all(path).unwrap();
            fs::write(path.join(file), "").unwrap();
        };
        // A copy of which nothing is noted is somebody else's.
        make(directory.copy(), "theirs");
        assert!(directory.resume(Some(State::Follows)).is_err());
        assert!(directory.resume(None).is_err());
        directory.resume(Some(State::Copying)).unwrap();
        assert!(!directory.copy().exists());
        // One that was complete is put into place, whatever was moved away already.
        make(directory.copy(), "new");
        directory.resume(Some(State::Placing)).unwrap();
        assert!(path.join("new").exists() && !directory.old().exists());
        make(directory.copy(), "newer");
        directory.place().unwrap();
        assert!(path.join("newer").exists() && directory.old().join("new").exists());
        // Nor is it made again where nothing was moved away yet.
        fs::remove_dir_all(directory.old()).unwrap();
        make(directory.copy(), "newest");
        directory.resume(Some(State::Placing)).unwrap();
        assert!(path.join("newest").exists() && directory.old().join("newer").exists());
        assert!(!directory.copy().exists());
        directory.resume(Some(State::Placing)).unwrap();
        assert!(path.join("newest").exists(), "it is in place already");
        // Of three, none is thrown away.
        make(directory.copy(), "third");
        let Failed(why) = directory.resume(Some(State::Placing)).unwrap_err();
        assert!(why.contains("move it away"), "{why}");
        assert!(path.join("newest").exists() && directory.copy().join("third").exists());
        // Whoever serves after all keeps what it has.
        directory.keep(Some(State::Placing)).unwrap();
        assert!(path.join("newest").exists() && !directory.copy().exists());
        make(directory.copy(), "theirs");
        directory.keep(Some(State::Follows)).unwrap();
        assert!(directory.copy().exists());
        // Nobody removes what is no cluster.
        let program = Program::new("/bin/true".into());
        assert!(directory.drop_old("7441", &program).is_err());
        assert!(directory.old().exists());
    }
}
