//! What is made for one rehearsal on this host, and how nothing of it is left.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::error::HostError;

/// Removes what a rehearsal made that was ended before it could do so itself. One that is being made keeps it.
///
/// # Errors
/// When that fails.
pub fn clear_up(directory: &Path) -> Result<(), HostError> {
    if !directory.is_dir() {
        return Ok(());
    }
    match lock(directory, FlockOperation::NonBlockingLockExclusive)? {
        Some(_held) => clear(directory),
        None => Ok(()),
    }
}

/// One at a time: the next waits, or has none where it is not to.
pub(super) fn lock(directory: &Path, how: FlockOperation) -> Result<Option<File>, HostError> {
    let path = directory.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| HostError::file("open", &path, error))?;
    match flock(&file, how) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(HostError::file("lock", &path, error)),
    }
}

/// What is made for one rehearsal.
pub(super) struct Places {
    pub(super) program: PathBuf,
    pub(super) images: PathBuf,
    pub(super) canary: PathBuf,
    pub(super) archive: PathBuf,
}

impl Places {
    pub(super) fn of(directory: &Path) -> Self {
        Self {
            program: directory.join("forebay"),
            images: directory.join("images"),
            canary: directory.join("canary"),
            archive: directory.join("archive"),
        }
    }
}

/// Removes what one before this made.
pub(super) fn clear(directory: &Path) -> Result<(), HostError> {
    let places = Places::of(directory);
    for place in [places.images, places.canary] {
        remove(&place, |place| fs::remove_dir_all(place))?;
    }
    for place in [places.program, places.archive] {
        remove(&place, |place| fs::remove_file(place))?;
    }
    Ok(())
}

pub(super) fn remove(
    place: &Path,
    with: impl Fn(&Path) -> std::io::Result<()>,
) -> Result<(), HostError> {
    match with(place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(HostError::file("remove", place, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::CONSOLE;
    use super::*;

    #[test]
    fn what_an_ended_rehearsal_made_is_removed_unless_another_one_is_being_made() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("rehearsal");
        clear_up(&directory).unwrap();
        assert!(!directory.exists());
        fs::create_dir_all(directory.join("images")).unwrap();
        fs::create_dir(directory.join("canary")).unwrap();
        for file in ["forebay", "archive", "images/1.img", CONSOLE] {
            fs::write(directory.join(file), "").unwrap();
        }
        let names = || {
            let names = fs::read_dir(&directory).unwrap();
            names
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect::<std::collections::BTreeSet<_>>()
        };
        let held = lock(&directory, FlockOperation::LockExclusive).unwrap();
        clear_up(&directory).unwrap();
        assert_eq!(names().len(), 6);
        drop(held);
        clear_up(&directory).unwrap();
        assert_eq!(names(), [CONSOLE, "lock"].map(str::to_owned).into());
    }
}
