//! Regular files: read within a bound, and replaced whole.
//!
//! What stands at a path may be a pipe that nobody writes to, or grow while it is read; a disk may
//! be full, and a host may lose its power at any moment. Neither may make a daemon wait, take its
//! memory, or leave half of a file.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

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
/// the old file or the new one, and a failure nothing beside it.
///
/// # Errors
/// When something could not be written, replaced or synced.
pub fn replace(file: &Path, bytes: &[u8], mode: u32) -> Result<(), ReplaceError> {
    let mut next = file.as_os_str().to_owned();
    next.push(".next");
    let next = PathBuf::from(next);
    let written = write(&next, bytes, mode)
        .map_err(refused("write", &next))
        .and_then(|()| fs::rename(&next, file).map_err(refused("replace", file)));
    if written.is_err() {
        // On a full disk, what is left of it is room that others need.
        fs::remove_file(&next).ok();
    }
    written?;
    let dir = file.parent().unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|opened| opened.sync_all())
        .map_err(refused("sync", dir))
}

fn write(file: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(file)?;
    // One that a crash left may have another mode.
    opened.set_permissions(Permissions::from_mode(mode))?;
    opened.write_all(bytes)?;
    opened.sync_all()
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
}
