//! What Forebay changed on this host, durable before it is changed.
//!
//! The problem: a process can be killed between any two instructions, and whoever comes after
//! it (the next daemon, the guardian, a person with `forebay restore`) has to know what to put
//! back. The approach: an append-only file of JSON lines, each written before the change it
//! speaks of. The properties:
//!
//! - a knob's original value is on disk (fsync) before the first write to it;
//! - reading the lines again gives the same state, whatever line the writer died at: a torn
//!   last line never had its effect on the kernel and is dropped;
//! - control groups and processes do not outlive a boot, so neither does a ledger: one of
//!   another boot is set aside, but for what a manager of containers was told and remembers. That is also why records about processes need no fsync:
//!   a killed daemon's writes are safe in the page cache, and a power cut ends the processes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use forebay_core::app::{AppId, Device};
use forebay_core::snapshot::Ending;
use serde::{Deserialize, Serialize};

use crate::error::{ErrorKind, HostError};
use crate::owner;

const FORMAT: u32 = 1;
/// Lines after which the file is written anew from the state.
const LINES_MAX: usize = 4096;
/// Values of ours that are remembered for each knob: the last, the one before, and what the
/// kernel made of the last. A crash leaves one of these.
const WROTE_MAX: usize = 3;

/// One place in the kernel that a knob is written to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Spot {
    /// The file.
    pub file: PathBuf,
    /// The line of this device only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The first line.
    Head {
        /// Of the format.
        format: u32,
        /// The boot this is about.
        boot_id: String,
        /// The groups that the daemon runs in: where processes go that have no better origin.
        home: Vec<PathBuf>,
    },
    /// A group is about to be made.
    Created {
        /// Whose; none for the group that holds all others.
        app: Option<AppId>,
        /// Its directory.
        dir: PathBuf,
    },
    /// Controllers are about to be switched on for a group's children (v2).
    Enabled {
        /// The group's directory.
        dir: PathBuf,
        /// The controllers that were off.
        controllers: Vec<String>,
    },
    /// What a knob holds before it is first written.
    Original {
        /// Whose.
        app: AppId,
        /// Where.
        spot: Spot,
        /// The text to write back.
        text: String,
    },
    /// What a knob of the host holds before it is first written, or one that could not be put
    /// back in full when its app was released. It is put back when all apps are.
    HostOriginal {
        /// Where.
        spot: Spot,
        /// The text to write back.
        text: String,
    },
    /// What a knob of the host holds before a command of the user's first writes it. It is put
    /// back when the user says so.
    Asked {
        /// Where.
        spot: Spot,
        /// The text to write back.
        text: String,
    },
    /// What is about to be written to a knob, or what the kernel made of it.
    Wrote {
        /// Where.
        spot: Spot,
        /// The text.
        text: String,
    },
    /// A process is about to be moved.
    Moved {
        /// Into whose group.
        app: AppId,
        /// Which.
        process: Process,
        /// The groups it was in.
        from: Vec<PathBuf>,
    },
    /// Processes in a group may have this oom_score_adj from now on, where they had 0.
    OomScoreAdj {
        /// Whose.
        app: AppId,
        /// The group's directory.
        dir: PathBuf,
        /// The value.
        value: i16,
    },
    /// A program is about to be started.
    Starting {
        /// Whose.
        app: AppId,
        /// When, in clock ticks since boot: whoever is older is not it.
        at: u64,
        /// The program and its arguments.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        command: Vec<String>,
    },
    /// It was started.
    Started {
        /// Whose.
        app: AppId,
        /// The process.
        process: Process,
        /// The program and its arguments; empty where an older version did not write them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        command: Vec<String>,
    },
    /// It ended.
    Ended {
        /// Whose.
        app: AppId,
        /// How.
        ending: Ending,
    },
    /// Its processes keep running, outside any group of ours.
    Kept {
        /// Whose.
        app: AppId,
        /// The processes.
        processes: Vec<Process>,
    },
    /// What runs outside our groups is not the app's any more: its command is another now.
    Forgotten {
        /// Whose it was.
        app: AppId,
    },
    /// Everything of the app is as it was found.
    Released {
        /// Whose.
        app: AppId,
    },
    /// A property that a manager owns.
    Owned(owner::Note),
}

/// What the ledger says of one app.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AppRecord {
    /// Groups made for it.
    pub created: Vec<PathBuf>,
    /// Original values, in the order of the first writes.
    pub originals: Vec<(Spot, String)>,
    /// Processes moved into it, and where they were.
    pub moved: BTreeMap<Process, Vec<PathBuf>>,
    /// Values of oom_score_adj that processes in these groups may have from us, newest last.
    pub oom_scores: Vec<(PathBuf, i16)>,
    /// A start was begun at this clock tick, and its process is not known.
    pub starting: Option<u64>,
    /// The process that was started.
    pub started: Option<Process>,
    /// The program it runs, with its arguments: not always what the configuration says now.
    /// Empty when nothing was started.
    pub command: Vec<String>,
    /// How it ended.
    pub ended: Option<Ending>,
    /// Processes that run on outside our groups.
    pub kept: Vec<Process>,
}

/// What the ledger says altogether.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Groups that the daemon ran in.
    pub home: Vec<PathBuf>,
    /// Groups made to hold all others, outermost first.
    pub parents: Vec<PathBuf>,
    /// Controllers switched on.
    pub enabled: Vec<(PathBuf, Vec<String>)>,
    /// Original values of knobs that are no app's, in the order of the first writes.
    pub host: Vec<(Spot, String)>,
    /// Original values of knobs that the user had written, to stay.
    pub asked: Vec<(Spot, String)>,
    /// The apps.
    pub apps: BTreeMap<AppId, AppRecord>,
    /// The last values written to knobs of groups that are not ours, newest last.
    pub wrote: BTreeMap<Spot, Vec<String>>,
    /// What managers are to put back.
    pub owned: owner::Book,
}

impl State {
    /// What is left of it on another boot: what managers remember.
    fn after_boot(&self) -> Self {
        let mut state = Self::default();
        for note in self.owned.lasting() {
            state.take(Record::Owned(note));
        }
        state
    }

    /// Whether the kernel is as it was found, but for what the user asked to stay.
    #[must_use]
    pub fn is_restored(&self) -> bool {
        self.parents.is_empty()
            && self.enabled.is_empty()
            && self.host.is_empty()
            && self.owned.is_empty()
            && self.apps.values().all(AppRecord::is_restored)
    }

    fn take(&mut self, record: Record) {
        match record {
            Record::Head { home, .. } => self.home = home,
            Record::Created { app: None, dir } => push_new(&mut self.parents, dir),
            Record::Created {
                app: Some(app),
                dir,
            } => push_new(&mut self.app(app).created, dir),
            Record::Enabled { dir, controllers } => self.enabled.push((dir, controllers)),
            Record::Original { app, spot, text } => {
                // What an app takes over from the host goes back with the app.
                self.host.retain(|(known, _)| *known != spot);
                let originals = &mut self.app(app).originals;
                if !originals.iter().any(|(known, _)| *known == spot) {
                    originals.push((spot, text));
                }
            }
            Record::HostOriginal { spot, text } => {
                if !self.host.iter().any(|(known, _)| *known == spot) {
                    self.host.push((spot, text));
                }
            }
            Record::Asked { spot, text } => {
                if !self.asked.iter().any(|(known, _)| *known == spot) {
                    self.asked.push((spot, text));
                }
            }
            Record::Wrote { spot, text } => {
                let texts = self.wrote.entry(spot).or_default();
                texts.retain(|known| *known != text);
                texts.push(text);
                if texts.len() > WROTE_MAX {
                    texts.remove(0);
                }
            }
            Record::Moved { app, process, from } => {
                self.app(app).moved.entry(process).or_insert(from);
            }
            Record::OomScoreAdj { app, dir, value } => {
                let scores = &mut self.app(app).oom_scores;
                scores.retain(|known| *known != (dir.clone(), value));
                scores.push((dir, value));
            }
            Record::Starting { app, at, command } => {
                let app = self.app(app);
                app.forget_program();
                app.starting = Some(at);
                app.command = command;
            }
            Record::Started {
                app,
                process,
                command,
            } => {
                let app = self.app(app);
                app.starting = None;
                app.started = Some(process);
                app.command = command;
                app.ended = None;
            }
            Record::Ended { app, ending } => {
                let app = self.app(app);
                app.forget_program();
                app.ended = Some(ending);
            }
            Record::Forgotten { app } => {
                self.app(app.clone()).forget_program();
                self.drop_if_empty(&app);
            }
            Record::Kept { app, processes } => self.app(app).kept = processes,
            Record::Released { app } => self.release(&app),
            Record::Owned(note) => {
                if let Some(app) = note.app() {
                    self.app(app.clone());
                }
                self.owned.take(note);
            }
        }
    }

    fn app(&mut self, app: AppId) -> &mut AppRecord {
        self.apps.entry(app).or_default()
    }

    fn release(&mut self, id: &AppId) {
        let Some(app) = self.apps.get_mut(id) else {
            return;
        };
        for (spot, _) in std::mem::take(&mut app.originals) {
            self.wrote.remove(&spot);
        }
        app.created.clear();
        app.moved.clear();
        app.oom_scores.clear();
        self.drop_if_empty(id);
    }

    fn drop_if_empty(&mut self, id: &AppId) {
        if self.apps.get(id) == Some(&AppRecord::default()) && !self.owned.has(id) {
            self.apps.remove(id);
        }
    }

    /// The fewest records that give this state.
    fn records(&self, boot_id: &str) -> Vec<Record> {
        let mut records = vec![Record::Head {
            format: FORMAT,
            boot_id: boot_id.to_owned(),
            home: self.home.clone(),
        }];
        let created = |app: Option<&AppId>, dir: &PathBuf| Record::Created {
            app: app.cloned(),
            dir: dir.clone(),
        };
        records.extend(self.parents.iter().map(|dir| created(None, dir)));
        for (dir, controllers) in &self.enabled {
            records.push(Record::Enabled {
                dir: dir.clone(),
                controllers: controllers.clone(),
            });
        }
        records.extend(self.host.iter().map(|(spot, text)| Record::HostOriginal {
            spot: spot.clone(),
            text: text.clone(),
        }));
        records.extend(self.asked.iter().map(|(spot, text)| Record::Asked {
            spot: spot.clone(),
            text: text.clone(),
        }));
        for (id, app) in &self.apps {
            records.extend(app.created.iter().map(|dir| created(Some(id), dir)));
            records.extend(app.originals.iter().map(|(spot, text)| Record::Original {
                app: id.clone(),
                spot: spot.clone(),
                text: text.clone(),
            }));
            records.extend(app.moved.iter().map(|(process, from)| Record::Moved {
                app: id.clone(),
                process: *process,
                from: from.clone(),
            }));
            let scores = app.oom_scores.iter();
            records.extend(scores.map(|(dir, value)| Record::OomScoreAdj {
                app: id.clone(),
                dir: dir.clone(),
                value: *value,
            }));
            if let Some(at) = app.starting {
                records.push(Record::Starting {
                    app: id.clone(),
                    at,
                    command: app.command.clone(),
                });
            }
            if let Some(process) = app.started {
                records.push(Record::Started {
                    app: id.clone(),
                    process,
                    command: app.command.clone(),
                });
            }
            if let Some(ending) = app.ended {
                records.push(Record::Ended {
                    app: id.clone(),
                    ending,
                });
            }
            if !app.kept.is_empty() {
                records.push(Record::Kept {
                    app: id.clone(),
                    processes: app.kept.clone(),
                });
            }
        }
        records.extend(self.owned.notes().into_iter().map(Record::Owned));
        for (spot, texts) in &self.wrote {
            records.extend(texts.iter().map(|text| Record::Wrote {
                spot: spot.clone(),
                text: text.clone(),
            }));
        }
        records
    }
}

impl AppRecord {
    fn is_restored(&self) -> bool {
        self.created.is_empty()
            && self.originals.is_empty()
            && self.moved.is_empty()
            && self.oom_scores.is_empty()
    }

    /// Whether a program was started for it. It may have ended, and left children in the slice.
    pub(crate) fn is_program(&self) -> bool {
        self.started.is_some() || self.starting.is_some() || self.ended.is_some()
    }

    /// Whether a program that was started runs on outside our groups.
    pub(crate) fn is_released(&self) -> bool {
        self.created.is_empty() && self.started.is_some()
    }

    fn forget_program(&mut self) {
        self.starting = None;
        self.started = None;
        self.command.clear();
        self.ended = None;
        self.kept.clear();
    }
}

fn push_new(list: &mut Vec<PathBuf>, dir: PathBuf) {
    if !list.contains(&dir) {
        list.push(dir);
    }
}

/// The open ledger of a state directory. Whoever has it holds the directory's lock.
#[derive(Debug)]
pub struct Ledger {
    state: State,
    file: File,
    path: PathBuf,
    boot_id: String,
    lines: usize,
    /// Whether something is to be synced before the kernel is touched.
    unsynced: bool,
}

impl Ledger {
    /// Opens or begins the ledger in `state_dir`, which the caller has locked.
    ///
    /// # Errors
    /// When the directory cannot be written, or a line other than the last is not a record.
    pub fn open(state_dir: &Path, boot_id: &str) -> Result<Self, HostError> {
        let path = state_dir.join("ledger");
        let state = match read(&path)? {
            Some(found) if found.boot_id == boot_id => Some(found.state),
            Some(found) => {
                let aside = state_dir.join("ledger.other-boot");
                // What is taken over from it is never in neither file.
                fs::copy(&path, &aside).map_err(|e| HostError::file("set aside", &path, e))?;
                tracing::info!(boot = found.boot_id, "ledger of another boot set aside");
                Some(found.state.after_boot())
            }
            None => None,
        };
        let (file, lines) = rewrite(&path, state.as_ref().unwrap_or(&State::default()), boot_id)?;
        Ok(Self {
            state: state.unwrap_or_default(),
            file,
            path,
            boot_id: boot_id.to_owned(),
            lines,
            unsynced: false,
        })
    }

    /// The directory that it is in.
    pub(crate) fn state_dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// What it says.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Appends a record. It is safe from the death of this process when this returns, and
    /// from that of the host after [`sync`](Self::sync).
    ///
    /// # Errors
    /// When it cannot be written, such as on a full disk: then the change that the record
    /// announces must not be made.
    pub fn append(&mut self, record: Record) -> Result<(), HostError> {
        let before = self.file.stream_position().unwrap_or(0);
        let mut line = to_line(&record)?;
        line.push('\n');
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // Half a line in the middle would make the file unreadable: cut it off.
            let cut = self
                .file
                .set_len(before)
                .and_then(|()| self.file.seek(SeekFrom::Start(before)));
            if let Err(cut) = cut {
                tracing::warn!(ledger = %self.path.display(), %cut, "torn line stays");
            }
            return Err(HostError::file("append to", &self.path, error));
        }
        self.state.take(record);
        self.lines += 1;
        self.unsynced = true;
        Ok(())
    }

    /// Makes everything appended so far durable.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&mut self) -> Result<(), HostError> {
        if self.unsynced {
            self.file
                .sync_data()
                .map_err(|e| HostError::file("sync", &self.path, e))?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Changes the state where records do not say it all (what was put back), and writes the
    /// file anew.
    pub(crate) fn amend(&mut self, change: impl FnOnce(&mut State)) -> Result<(), HostError> {
        change(&mut self.state);
        self.compact()
    }

    /// Writes the file anew when it has grown long.
    pub(crate) fn compact_when_long(&mut self) -> Result<(), HostError> {
        if self.lines > LINES_MAX {
            self.compact()?;
        }
        Ok(())
    }

    fn compact(&mut self) -> Result<(), HostError> {
        let (file, lines) = rewrite(&self.path, &self.state, &self.boot_id)?;
        self.file = file;
        self.lines = lines;
        self.unsynced = false;
        Ok(())
    }
}

struct Found {
    boot_id: String,
    state: State,
}

/// Reads a ledger without opening it for writing; none when there is none or it is empty.
///
/// # Errors
/// When it cannot be read, or a line other than the last is not a record.
fn read(path: &Path) -> Result<Option<Found>, HostError> {
    let mut text = String::new();
    match File::open(path) {
        Ok(mut file) => {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)
                .map_err(|e| HostError::file("read", path, e))?;
            text.push_str(&String::from_utf8_lossy(&bytes));
        }
        Err(error) => {
            let error = HostError::file("read", path, error);
            return if error.kind() == ErrorKind::Missing {
                Ok(None)
            } else {
                Err(error)
            };
        }
    }
    let mut found: Option<Found> = None;
    let mut lines = text.split_inclusive('\n').enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let last = lines.peek().is_none();
        let record = match serde_json::from_str::<Record>(line) {
            Ok(record) if line.ends_with('\n') => record,
            // A whole record without its newline is torn as well: its effect was not begun.
            _ if last => {
                tracing::warn!(ledger = %path.display(), line = number + 1, "torn line dropped");
                break;
            }
            Ok(_) => break,
            Err(error) => {
                return Err(HostError::invalid(
                    format!("read {} line {}: {error}", path.display(), number + 1),
                    "move the file away and check the control groups by hand",
                ));
            }
        };
        match (&mut found, record) {
            (
                None,
                Record::Head {
                    format,
                    boot_id,
                    home,
                },
            ) => {
                if format != FORMAT {
                    return Err(HostError::invalid(
                        format!("read {}: format {format}", path.display()),
                        "it was written by another version of forebay: restore with that one",
                    ));
                }
                found = Some(Found {
                    boot_id,
                    state: State {
                        home,
                        ..State::default()
                    },
                });
            }
            (None, _) => {
                return Err(HostError::invalid(
                    format!("read {}: no head", path.display()),
                    "move the file away and check the control groups by hand",
                ));
            }
            (Some(found), record) => found.state.take(record),
        }
    }
    Ok(found)
}

/// Reads what a ledger says, for those who do not own it.
///
/// # Errors
/// When it cannot be read.
pub fn peek(state_dir: &Path, boot_id: &str) -> Result<State, HostError> {
    let found = read(&state_dir.join("ledger"))?;
    Ok(match found {
        Some(found) if found.boot_id == boot_id => found.state,
        Some(found) => found.state.after_boot(),
        None => State::default(),
    })
}

/// Writes a whole ledger beside the old one and swaps it in. A crash leaves either.
fn rewrite(path: &Path, state: &State, boot_id: &str) -> Result<(File, usize), HostError> {
    let fresh = path.with_extension("new");
    let fail = |e| HostError::file("write", &fresh, e);
    let records = state.records(boot_id);
    let mut text = String::new();
    for record in &records {
        text.push_str(&to_line(record)?);
        text.push('\n');
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&fresh)
        .map_err(fail)?;
    file.write_all(text.as_bytes()).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    fs::rename(&fresh, path).map_err(fail)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| HostError::file("sync", dir, e))?;
    Ok((file, records.len()))
}

fn to_line(record: &Record) -> Result<String, HostError> {
    serde_json::to_string(record).map_err(|error| {
        HostError::invalid(
            format!("write {record:?} as JSON: {error}"),
            "report this as a bug",
        )
    })
}

#[cfg(test)]
mod tests;
