//! Where the files of a guest are while it runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What names of directories begin with; that of a process follows, and what it is for.
const PREFIX: &str = "forebay-vm-";

/// A directory that goes when it is dropped, or with the next one where nobody could drop it.
pub(super) struct Scratch {
    path: PathBuf,
    /// Locked for as long as its process lives: whoever can lock a directory may take it away.
    _lock: File,
}

impl Scratch {
    pub(super) fn new(name: &str) -> Result<Self, String> {
        Self::new_in(&std::env::temp_dir(), name)
    }

    fn new_in(parent: &Path, name: &str) -> Result<Self, String> {
        sweep(parent);
        let path = parent.join(format!("{PREFIX}{}-{name}", std::process::id()));
        let failed = |doing: &str, error| format!("{doing} {}: {error}", path.display());
        loop {
            fs::create_dir_all(&path).map_err(|error| failed("make", error))?;
            let lock = File::open(&path).map_err(|error| failed("open", error))?;
            lock.lock().map_err(|error| failed("lock", error))?;
            // Somebody who swept may have had it between these.
            if path.exists() {
                return Ok(Self { path, _lock: lock });
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the log of a failure beside the directory; says where.
    pub(super) fn keep(&self, output: &str) -> String {
        let console = fs::read(self.path.join("console")).unwrap_or_default();
        let text = format!(
            "{output}\n--- console ---\n{}",
            String::from_utf8_lossy(&console)
        );
        let kept = self.path.with_extension("log");
        match fs::write(&kept, text) {
            Ok(()) => kept.display().to_string(),
            Err(error) => format!("not kept, write {}: {error}", kept.display()),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Takes away what processes left that were killed.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let is_scratch = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.file_type().is_ok_and(|kind| kind.is_dir());
        let path = entry.path();
        // Held to the end: nobody else takes it away meanwhile.
        let Some(lock) = is_scratch.then(|| File::open(&path).ok()).flatten() else {
            continue;
        };
        if lock.try_lock().is_ok() {
            remove(&path);
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        println!("vm: remove {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_goes_with_the_next_and_nothing_else_does() {
        let parent = std::env::temp_dir().join(format!("scratch-test-{}", std::process::id()));
        let left = parent.join("forebay-vm-1-left");
        let log = parent.join("forebay-vm-1-left.log");
        let other = parent.join("somebody-elses");
        fs::create_dir_all(left.join("inside")).unwrap();
        fs::create_dir_all(&other).unwrap();
        fs::write(&log, "why it failed").unwrap();
        let first = Scratch::new_in(&parent, "first").unwrap();
        assert!(!left.exists(), "nobody has it locked");
        let second = Scratch::new_in(&parent, "second").unwrap();
        assert!(first.path().exists(), "its process lives");
        assert!(log.exists() && other.exists());
        let path = second.path().to_owned();
        drop(second);
        assert!(!path.exists());
        drop(first);
        fs::remove_dir_all(&parent).unwrap();
    }
}
