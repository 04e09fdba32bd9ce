//! Regular files: read within a bound, and replaced whole.
//!
//! What stands at a path may be a pipe that nobody writes to, or grow while it is read; a disk may
//! be full, and a host may lose its power at any moment. Neither may make a daemon wait, take its
//! memory, or leave half of a file.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Reads a file of at most so many bytes, and who may read it, as in the mode bits of a file. Blocks
/// for as long as its file system does.
///
/// # Errors
/// When it is not there or may not be read, is no regular file, or is longer.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<(Vec<u8>, u32)> {
    let file = OpenOptions::new()
        .read(true)
        // A pipe would wait for somebody who writes to it.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        let longer = format!("it is longer than {bytes_max} bytes");
        return Err(io::Error::other(longer));
    }
    Ok((bytes, metadata.permissions().mode()))
}

/// Why a file was not replaced; it is as it was.
#[derive(Debug, thiserror::Error)]
#[error("{attempt} {}: {source}", file.display())]
pub struct ReplaceError {
    /// `write`, `replace` or `sync`.
    pub attempt: &'static str,
    /// What could not be written, replaced or synced.
    pub file: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Writes a file whole, with this mode, in place of what was there. Durable on return; a crash leaves
/// the old file or the new one, and a failure nothing beside it. Who replaces the same file at the same
/// time, also in another process, is waited for; the last one stays.
///
/// What is written stands beside the file until it is whole, under one name for all: of names of their
/// own, each crash would leave one that nobody removes.
///
/// # Errors
/// When something could not be written, replaced or synced.
pub fn replace(file: &Path, bytes: &[u8], mode: u32) -> Result<(), ReplaceError> {
    let mut next = file.as_os_str().to_owned();
    next.push(".next");
    let next = PathBuf::from(next);
    let held = hold(&next, mode).map_err(refused("write", &next))?;
    let written = write(&held, bytes, mode)
        .map_err(refused("write", &next))
        .and_then(|()| fs::rename(&next, file).map_err(refused("replace", file)));
    if written.is_err() {
        // On a full disk, what is left of it is room that others need.
        fs::remove_file(&next).ok();
    }
    drop(held);
    written?;
    let dir = file.parent().unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|opened| opened.sync_all())
        .map_err(refused("sync", dir))
}

/// Opens the file that is to take the place of another, and holds it until it is closed.
fn hold(file: &Path, mode: u32) -> io::Result<File> {
    loop {
        let held = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(mode)
            .open(file)?;
        flock(&held, FlockOperation::LockExclusive)?;
        // Whoever held it before has moved it to its place since, or removed it: then it is another.
        let own = held.metadata()?;
        match fs::metadata(file) {
            Ok(there) if (there.dev(), there.ino()) == (own.dev(), own.ino()) => return Ok(held),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

fn write(mut held: &File, bytes: &[u8], mode: u32) -> io::Result<()> {
    // One that a crash left may have another mode, and bytes.
    held.set_permissions(Permissions::from_mode(mode))?;
    held.set_len(0)?;
    held.write_all(bytes)?;
    held.sync_all()
}

fn refused(attempt: &'static str, file: &Path) -> impl FnOnce(io::Error) -> ReplaceError {
    let file = file.to_owned();
    move |source| ReplaceError {
        attempt,
        file,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_bound_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "12345").unwrap();
        assert_eq!(read(&file, 5).unwrap().0, b"12345");
        let longer = read(&file, 4).unwrap_err().to_string();
        assert!(longer.contains("longer than 4 bytes"), "{longer}");
        let gone = read(&dir.path().join("gone"), 5).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        assert!(read(dir.path(), 5).is_err());
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let pipe = read(&pipe, 5).unwrap_err().to_string();
        assert!(pipe.contains("no regular file"), "{pipe}");
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_left_alone_when_that_fails() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "old").unwrap();
        replace(&file, b"new", 0o600).unwrap();
        let (bytes, mode) = read(&file, 9).unwrap();
        assert_eq!((bytes.as_slice(), mode & 0o777), (&b"new"[..], 0o600));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        let taken = dir.path().join("taken");
        fs::create_dir_all(taken.join("by")).unwrap();
        let error = replace(&taken, b"new", 0o600).unwrap_err();
        assert_eq!((error.attempt, &error.file), ("replace", &taken));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_a_crash_left_is_no_part_of_what_comes_after() {
        let dir = tempfile::tempdir().unwrap();
        let (file, left) = (dir.path().join("file"), dir.path().join("file.next"));
        fs::write(&left, "a long rest").unwrap();
        fs::set_permissions(&left, Permissions::from_mode(0o644)).unwrap();
        replace(&file, b"new", 0o600).unwrap();
        let (bytes, mode) = read(&file, 99).unwrap();
        assert_eq!((bytes.as_slice(), mode & 0o777), (&b"new"[..], 0o600));
        assert!(!left.exists());
    }

    #[test]
    fn many_who_replace_a_file_at_a_time_do_not_get_in_each_others_way() {
        const BYTES: usize = 1 << 16;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::thread::scope(|scope| {
            for own in 0..4_u8 {
                let file = &file;
                scope.spawn(move || {
                    for _ in 0..20 {
                        replace(file, &[own; BYTES], 0o600).unwrap();
                        let (bytes, _) = read(file, 1 << 20).unwrap();
                        assert_eq!(bytes.len(), BYTES);
                        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "of several");
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
