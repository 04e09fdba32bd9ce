//! The coordinator of a host that is alone: files in its state directory.
//!
//! Records and commands are one file, which is replaced whole and made durable before anybody hears
//! of a change. Who is a member is known in memory only: a daemon that ended is none.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::fleet::rolling::Rolling;
use forebay_core::fleet::tenure::Lease;
use forebay_core::fleet::{Epoch, HostName, Ownership};
use forebay_host::regular;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    COMMANDS_MAX, COMPLETED_TTL, Command, CommandId, Completed, Coordinator, Error, ErrorKind,
    Held, Member, Members, Records, View, now,
};

const FILE: &str = "coordinator.json";
const LOCK: &str = "coordinator.lock";
/// Some ten thousand records.
const FILE_BYTES_MAX: u64 = 16 << 20;
const FORMAT: u32 = 1;
/// Commands of which it is known how they ended.
const COMPLETED_MAX: usize = 1024;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Local {
    file: PathBuf,
    place: String,
    state: Mutex<State>,
    /// Held for as long as this lives.
    _lock: File,
}

/// What is on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u32,
    records: Records,
    /// Each host's in the order of their names, which is that in which they were asked for.
    commands: BTreeMap<HostName, BTreeMap<CommandId, Command>>,
    /// Left out where there is none, so that an earlier release reads the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rolling: Option<Rolling>,
}

#[derive(Debug)]
struct State {
    kept: Kept,
    members: BTreeMap<HostName, (Held, Member)>,
    completed: BTreeMap<(HostName, CommandId), (Duration, Completed)>,
    leases: i64,
    /// Changes since it was opened.
    revision: i64,
    watchers: Vec<(HostName, watch::Sender<View>)>,
}

impl Local {
    /// Opens what is kept in a directory, or begins there.
    ///
    /// # Errors
    /// What could not be read, made or locked, and what to do.
    pub(crate) fn open(directory: &Path) -> Result<Self, String> {
        let failed = |attempt: &str, path: &Path, error: &dyn std::fmt::Display| {
            format!("{attempt} {}: {error}", path.display())
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| failed("make the directory", directory, &error))?;
        let lock_path = directory.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|error| failed("open", &lock_path, &error))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            let held = format!("{error}; another daemon has the directory: end it first");
            failed("lock", &lock_path, &held)
        })?;
        let file = directory.join(FILE);
        let kept = read(&file)?;
        Ok(Self {
            place: format!("this host, in {}", file.display()),
            file,
            state: Mutex::new(State {
                kept,
                members: BTreeMap::new(),
                completed: BTreeMap::new(),
                leases: 0,
                revision: 1,
                watchers: Vec::new(),
            }),
            _lock: lock,
        })
    }

    /// Nothing that panics holds the lock with the state half changed: what is new is made first.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, attempt: impl Into<String>, kind: ErrorKind) -> Error {
        Error {
            attempt: attempt.into(),
            place: self.place.clone(),
            kind,
        }
    }

    fn refused(&self, attempt: impl Into<String>, why: impl Into<String>) -> Error {
        self.error(attempt, ErrorKind::Refused(why.into()))
    }

    /// Makes a change durable, and tells whoever watches.
    fn keep(&self, state: &mut State, kept: Kept, attempt: &str) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(&kept)
            .map_err(|error| self.refused(attempt, error.to_string()))?;
        let replaced = regular::replace(&self.file, &text, 0o600);
        // Only the sync of the directory comes after the file has taken its place.
        let took_place = match &replaced {
            Ok(()) => true,
            Err(error) => error.attempt == "sync",
        };
        if took_place {
            state.kept = kept;
            state.revision += 1;
            state.tell();
        }
        replaced.map_err(|error| {
            let why = format!("{error}; make room, or repair the disk");
            match took_place {
                true => self.error(attempt, ErrorKind::Unknown(why)),
                false => self.error(attempt, ErrorKind::Refused(why)),
            }
        })
    }

    /// Changes one record from what `check` accepts.
    fn put(
        &self,
        app: &AppId,
        to: Option<&Ownership>,
        check: impl FnOnce(&State, Option<&Ownership>) -> Result<(), String>,
    ) -> Result<(), Error> {
        let attempt = format!("change who owns {app}");
        let mut state = self.state();
        check(&state, state.kept.records.get(app)).map_err(|why| self.refused(&attempt, why))?;
        let mut kept = state.kept.clone();
        match to {
            Some(to) => _ = kept.records.insert(app.clone(), to.clone()),
            None => _ = kept.records.remove(app),
        }
        self.keep(&mut state, kept, &attempt)
    }
}

fn read(file: &Path) -> Result<Kept, String> {
    let empty = Kept {
        format: FORMAT,
        records: Records::new(),
        commands: BTreeMap::new(),
        rolling: None,
    };
    let bytes = match regular::read(file, FILE_BYTES_MAX) {
        Ok((bytes, _)) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(empty),
        Err(error) => return Err(format!("read {}: {error}", file.display())),
    };
    let unusable = |why: String| {
        format!(
            "read who owns which application in {}: {why}; look whose they are, then move the file away",
            file.display()
        )
    };
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|e| unusable(e.to_string()))?;
    match kept.format {
        FORMAT => Ok(kept),
        other => Err(unusable(format!(
            "it is of format {other}, and this program reads {FORMAT}"
        ))),
    }
}

impl State {
    fn view(&self, host: &HostName) -> View {
        let commands = self.kept.commands.get(host).into_iter().flatten();
        View {
            revision: self.revision,
            records: Some(Arc::new(self.kept.records.clone())),
            // The file is read as a whole, or not at all.
            unreadable: Arc::default(),
            commands: Arc::new(
                commands
                    .map(|(id, asked)| (id.clone(), asked.clone()))
                    .collect(),
            ),
            lost: None,
        }
    }

    fn tell(&mut self) {
        self.watchers.retain(|(_, watcher)| !watcher.is_closed());
        for (host, watcher) in &self.watchers {
            let view = self.view(host);
            watcher.send_replace(view);
        }
    }

    /// Members whose lease has ended are gone.
    fn expire(&mut self, now: Duration) {
        let stands = |held: &Held| held.lease.renewed_at + held.lease.ttl > now;
        self.members.retain(|_, (held, _)| stands(held));
        self.completed
            .retain(|_, (at, _)| *at + COMPLETED_TTL > now);
        while self.completed.len() > COMPLETED_MAX {
            self.completed.pop_first();
        }
    }

    fn member(&mut self, held: &Held) -> Option<&mut (Held, Member)> {
        self.expire(now());
        let mut members = self.members.values_mut();
        members.find(|(other, _)| other.id == held.id)
    }
}

/// What is said of a record that is not as it was thought to be.
pub(super) fn other_epoch(found: Option<&Ownership>, epoch: Epoch) -> String {
    match found {
        Some(found) => format!(
            "it is at epoch {} and {}'s, not at epoch {epoch}; read it again",
            found.epoch, found.owner
        ),
        None => "nobody owns it; make its first record".to_owned(),
    }
}

impl Coordinator for Local {
    fn place(&self) -> &str {
        &self.place
    }

    fn join(&self, member: &Member, ttl: Duration) -> Result<Held, Error> {
        let renewed_at = now();
        let mut state = self.state();
        state.expire(renewed_at);
        if let Some((_, other)) = state.members.get(&member.host)
            && other.agent != member.agent
        {
            let why = super::taken(other);
            return Err(self.refused(format!("join as {}", member.host), why));
        }
        state.leases += 1;
        let held = Held {
            id: state.leases,
            host: member.host.clone(),
            lease: Lease { renewed_at, ttl },
        };
        let entry = (held.clone(), member.clone());
        state.members.insert(member.host.clone(), entry);
        Ok(held)
    }

    fn renew(&self, held: &Held) -> Result<Option<Held>, Error> {
        let renewed_at = now();
        let mut state = self.state();
        Ok(state.member(held).map(|(own, _)| {
            own.lease.renewed_at = renewed_at;
            own.clone()
        }))
    }

    fn publish(&self, held: &Held, member: &Member) -> Result<(), Error> {
        match self.state().member(held) {
            Some((_, own)) => {
                *own = member.clone();
                Ok(())
            }
            None => Err(self.refused(format!("publish {}", member.host), super::LEASE_ENDED)),
        }
    }

    fn leave(&self, held: &Held) -> Result<(), Error> {
        let mut state = self.state();
        state.members.retain(|_, (other, _)| other.id != held.id);
        Ok(())
    }

    fn hosts(&self) -> Result<Members, Error> {
        let mut state = self.state();
        state.expire(now());
        let members = state.members.values();
        Ok(members
            .map(|(_, member)| (member.host.clone(), member.clone()))
            .collect())
    }

    fn record(&self, app: &AppId) -> Result<Option<Ownership>, Error> {
        Ok(self.state().kept.records.get(app).cloned())
    }

    fn records(&self) -> Result<(i64, Records), Error> {
        let state = self.state();
        Ok((state.revision, state.kept.records.clone()))
    }

    fn create(&self, app: &AppId, record: &Ownership) -> Result<(), Error> {
        self.put(app, Some(record), |_, found| match found {
            None => Ok(()),
            Some(found) => Err(super::exists(found)),
        })
    }

    fn change(&self, app: &AppId, epoch: Epoch, to: &Ownership) -> Result<(), Error> {
        self.put(app, Some(to), |_, found| match found {
            Some(found) if found.epoch == epoch => Ok(()),
            other => Err(other_epoch(other, epoch)),
        })
    }

    fn take_over(&self, app: &AppId, from: &Ownership, to: &Ownership) -> Result<(), Error> {
        let at = now();
        self.state().expire(at);
        self.put(app, Some(to), |state, found| match found {
            Some(found) if found != from => Err(other_epoch(Some(found), from.epoch)),
            Some(_) if state.members.contains_key(&from.owner) => {
                Err(super::owner_lives(&from.owner))
            }
            Some(_) => Ok(()),
            None => Err(other_epoch(None, from.epoch)),
        })
    }

    fn forget(&self, app: &AppId, epoch: Epoch) -> Result<(), Error> {
        self.put(app, None, |_, found| match found {
            Some(found) if found.epoch == epoch => Ok(()),
            other => Err(other_epoch(other, epoch)),
        })
    }

    fn watch(&self, host: &HostName) -> watch::Receiver<View> {
        let mut state = self.state();
        let (watcher, view) = watch::channel(state.view(host));
        state.watchers.retain(|(_, other)| !other.is_closed());
        state.watchers.push((host.clone(), watcher));
        view
    }

    fn post(&self, host: &HostName, command: &Command) -> Result<CommandId, Error> {
        let attempt = format!("ask {host} to {command}");
        let mut state = self.state();
        let mut kept = state.kept.clone();
        let commands = kept.commands.entry(host.clone()).or_default();
        if commands.len() >= COMMANDS_MAX {
            return Err(self.refused(attempt, super::too_many(host)));
        }
        let last = commands.last_key_value();
        let id = last.map_or_else(CommandId::new, |(last, _)| CommandId::after(last));
        commands.insert(id.clone(), command.clone());
        self.keep(&mut state, kept, &attempt)?;
        Ok(id)
    }

    fn complete(&self, host: &HostName, id: &CommandId, how: &Completed) -> Result<(), Error> {
        let mut state = self.state();
        let mut kept = state.kept.clone();
        let commands = kept.commands.get_mut(host);
        if commands.is_none_or(|commands| commands.remove(id).is_none()) {
            // It was completed before, and the answer was lost.
            return Ok(());
        }
        kept.commands.retain(|_, commands| !commands.is_empty());
        self.keep(&mut state, kept, &format!("complete a command for {host}"))?;
        let at = now();
        state.expire(at);
        let key = (host.clone(), id.clone());
        state.completed.insert(key, (at, how.clone()));
        Ok(())
    }

    fn completed(&self, host: &HostName, id: &CommandId) -> Result<Option<Completed>, Error> {
        let mut state = self.state();
        state.expire(now());
        let found = state.completed.get(&(host.clone(), id.clone()));
        Ok(found.map(|(_, how)| how.clone()))
    }

    fn rolling(&self) -> Result<(i64, Rolling), Error> {
        let state = self.state();
        let rolling = state.kept.rolling.clone();
        Ok((state.revision, rolling.unwrap_or_default()))
    }

    fn roll(&self, seen: i64, to: &Rolling) -> Result<bool, Error> {
        let mut state = self.state();
        // Whatever else changed counts as well: whoever asks reads it again.
        if state.revision != seen {
            return Ok(false);
        }
        let mut kept = state.kept.clone();
        kept.rolling = Some(to.clone());
        self.keep(&mut state, kept, super::CHANGE_ROLLING)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_kept_is_there_after_a_restart_and_one_opens_it_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("fleet");
        let host: HostName = "a".parse().unwrap();
        let app: AppId = "web".parse().unwrap();
        let local = Local::open(&directory).unwrap();
        local.create(&app, &Ownership::first(host.clone())).unwrap();
        let id = local.post(&host, &Command::Cordon).unwrap();
        let error = Local::open(&directory).unwrap_err();
        assert!(error.contains("another daemon"), "{error}");
        drop(local);
        let local = Local::open(&directory).unwrap();
        let record = local.record(&app).unwrap();
        assert_eq!(record, Some(Ownership::first(host.clone())));
        let view = local.watch(&host).borrow().clone();
        assert_eq!(*view.commands, [(id, Command::Cordon)]);
        assert!(local.hosts().unwrap().is_empty());
    }

    #[test]
    fn commands_are_in_order_although_the_clock_was_set_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join(FILE),
            r#"{"format": 1, "records": {}, "commands":
                {"a": {"8000000000000-00000000": {"ask": "cordon"}}}}"#,
        )
        .unwrap();
        let host: HostName = "a".parse().unwrap();
        let local = Local::open(dir.path()).unwrap();
        for _ in 0..20 {
            local.post(&host, &Command::Uncordon).unwrap();
            local.post(&host, &Command::Cordon).unwrap();
        }
        let view = local.watch(&host).borrow().clone();
        let asked: Vec<&Command> = view.commands.iter().map(|(_, asked)| asked).collect();
        assert_eq!(asked.len(), 41);
        for pair in asked.chunks(2) {
            assert_eq!(pair[0], &Command::Cordon, "{asked:?}");
            assert!(pair.get(1).is_none_or(|next| **next == Command::Uncordon));
        }
    }

    #[test]
    fn a_damaged_file_is_said_and_left() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let check = |text: &str, words: &str| {
            fs::write(&file, text).unwrap();
            let error = Local::open(dir.path()).unwrap_err();
            assert!(error.contains(words), "{error}");
            assert!(error.contains("move the file away"), "{error}");
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        };
        check("{", "EOF");
        check(
            r#"{"format": 2, "records": {}, "commands": {}}"#,
            "format 2, and this program reads 1",
        );
        check(
            r#"{"format": 1, "records": {"a b": {}}, "commands": {}}"#,
            "not an app name",
        );
    }

    #[test]
    fn a_change_that_could_not_be_written_did_not_happen() {
        let dir = tempfile::tempdir().unwrap();
        let local = Local::open(dir.path()).unwrap();
        // A directory stands where the file is to be.
        fs::create_dir_all(dir.path().join(FILE).join("x")).unwrap();
        let app: AppId = "web".parse().unwrap();
        let error = local
            .create(&app, &Ownership::first("a".parse().unwrap()))
            .unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Refused(_)), "{error}");
        assert!(error.to_string().contains("make room"), "{error}");
        assert_eq!(local.record(&app).unwrap(), None);
    }
}
