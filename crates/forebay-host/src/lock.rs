//! One writer for each state directory.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::ledger::Process;
use crate::procs;

/// How long to wait for a holder that goes by itself: a restorer at work, or a child that a
/// dead daemon was just starting, which holds a copy of the lock until it runs its program.
const WAIT_PASSING: Duration = Duration::from_secs(15);
/// How long to wait for a daemon: it may be on its way out.
const WAIT_DAEMON: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);

/// Who may hold a state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The daemon.
    Daemon,
    /// Somebody who puts everything back: the guardian, or `forebay restore`.
    Restorer,
}

/// What the lock file says of its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// As what.
    pub role: Role,
    /// Which process.
    pub process: Process,
}

/// A state directory that is ours until this is dropped, or the process dies.
#[derive(Debug)]
pub struct Lock {
    // The kernel drops the lock with the descriptor.
    _file: File,
}

impl Lock {
    /// Takes the directory, which is made if need be. Waits for a restorer to finish.
    ///
    /// # Errors
    /// When another daemon has it, named by its process number, or it cannot be written.
    pub fn take(state_dir: &Path, role: Role, proc_root: &Path) -> Result<Self, HostError> {
        fs::create_dir_all(state_dir).map_err(|e| {
            HostError::file("make state directory", state_dir, e)
                .advise("run as root, or choose a state directory you can write")
        })?;
        let path = lock_path(state_dir);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| {
                HostError::file("open", &path, e)
                    .advise("run as root, or choose a state directory you can write")
            })?;
        let start = Instant::now();
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(HostError::file("lock", &path, error));
            }
            let holder = holder(state_dir);
            let passes = holder.is_none_or(|holder| {
                holder.role == Role::Restorer || !procs::is_alive(proc_root, holder.process)
            });
            let patience = if passes { WAIT_PASSING } else { WAIT_DAEMON };
            if start.elapsed() >= patience {
                return Err(locked(state_dir, holder));
            }
            std::thread::sleep(POLL);
        }
        let process = procs::identify(proc_root, std::process::id()).unwrap_or(Process {
            pid: std::process::id(),
            start_time: 0,
        });
        let text = serde_json::to_string(&Holder { role, process })
            .map_err(|e| HostError::invalid(format!("write {}: {e}", path.display()), ""))?;
        file.set_len(0)
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(|e| HostError::file("write", &path, e))?;
        Ok(Self { _file: file })
    }
}

/// Who took the directory last, whether or not it still runs.
#[must_use]
pub fn holder(state_dir: &Path) -> Option<Holder> {
    let mut text = String::new();
    File::open(lock_path(state_dir))
        .ok()?
        .read_to_string(&mut text)
        .ok()?;
    serde_json::from_str(&text).ok()
}

fn lock_path(state_dir: &Path) -> PathBuf {
    state_dir.join("lock")
}

fn locked(state_dir: &Path, holder: Option<Holder>) -> HostError {
    let who = match holder {
        Some(holder) => format!("process {}", holder.process.pid),
        None => "another process".to_owned(),
    };
    HostError::locked(
        format!("take state directory {}: {who} has it", state_dir.display()),
        "stop that one first, or choose another state directory",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_second_daemon_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let proc_root = Path::new("/proc");
        let first = Lock::take(dir.path(), Role::Daemon, proc_root).unwrap();
        let error = Lock::take(dir.path(), Role::Daemon, proc_root).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Locked);
        let pid = std::process::id().to_string();
        assert!(error.explain().contains(&pid), "{}", error.explain());
        assert_eq!(
            holder(dir.path()).unwrap().process,
            procs::identify(proc_root, std::process::id()).unwrap()
        );
        drop(first);
        Lock::take(dir.path(), Role::Restorer, proc_root).unwrap();
    }
}
