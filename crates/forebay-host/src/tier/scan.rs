//! What a tiered directory holds, and where.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{Dir, FileType};
use rustix::io::Errno;

use super::Place;
use super::layout::{Tier, look};
use super::recover::names;
use super::watch::{FileKey, Sampler, Watch, file_system, key};
use crate::error::HostError;

/// Files of one tier that are looked at; the rest stays where it is.
const FILES_MAX: usize = 200_000;
/// Directories of one tier that are watched: the kernel keeps each in memory meanwhile.
const WATCHED_MAX: u64 = 10_000;
/// How long a copy is kept after its last name was removed: a tool that moves the directory's
/// files to another file system copies the link, and its user can still turn back.
const REMOVED_KEPT: Duration = Duration::from_secs(600);

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the directory.
    pub path: PathBuf,
    /// Where its content is.
    pub place: Place,
    /// Bytes.
    pub size: u64,
    /// Of the content.
    pub inode: u64,
    /// How events name the content; none where the file system has no such names.
    pub key: Option<FileKey>,
}

/// A scan under way.
struct Walk<'t> {
    tier: &'t Tier,
    watch: Option<&'t Watch>,
    fast: [i32; 2],
    slow: [i32; 2],
    waiting: Vec<PathBuf>,
    watched: u64,
    scan: Scan,
}

impl Walk<'_> {
    fn directory(&mut self, inside: &Path) -> Result<(), Errno> {
        // The parent of a name in it is the directory itself.
        let (directory, _) = self.tier.parent(&inside.join("x"))?;
        self.watch(&directory);
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            if self.scan.entries.len() + self.waiting.len() >= FILES_MAX {
                self.scan.truncated = true;
                return Ok(());
            }
            self.file(&directory, inside, Path::new(name))?;
        }
        Ok(())
    }

    fn watch(&mut self, directory: &OwnedFd) {
        let Some(watch) = self.watch else { return };
        if self.watched < WATCHED_MAX && watch.mark(directory.as_fd()).is_ok() {
            self.watched += 1;
        } else {
            self.scan.unwatched += 1;
        }
    }

    fn file(&mut self, directory: &OwnedFd, inside: &Path, name: &Path) -> Result<(), Errno> {
        let tier = self.tier;
        let path = inside.join(name);
        let Some(stat) = look(directory, name)? else {
            return Ok(());
        };
        let (place, content, key) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.waiting.push(path);
                return Ok(());
            }
            FileType::RegularFile => {
                let key = key(directory.as_fd(), name, self.slow);
                (Place::Slow, stat, key)
            }
            FileType::Symlink => match tier.link_at(directory, name, &stat) {
                Ok(Some(id)) => match look(&tier.files, &*id)? {
                    Some(content) => {
                        let key = key(tier.files.as_fd(), Path::new(&id), self.fast);
                        (Place::Fast, content, key)
                    }
                    None => {
                        self.scan.broken.push(path);
                        return Ok(());
                    }
                },
                Ok(None) | Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
                Err(error) => return Err(error),
            },
            _ => return Ok(()),
        };
        self.scan.entries.push(Entry {
            path,
            place,
            size: u64::try_from(content.st_size).unwrap_or(0),
            inode: content.st_ino,
            // Gone meanwhile; the next scan does not see it either.
            key: key.unwrap_or(None),
        });
        Ok(())
    }
}

/// All files of a tier at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// By path.
    pub entries: Vec<Entry>,
    /// Whether there were more than are looked at.
    pub truncated: bool,
    /// Links whose copy is not there.
    pub broken: Vec<PathBuf>,
    /// Directories whose files could not be watched, or are too many to be.
    pub unwatched: u64,
}

impl Tier {
    /// Lists the regular files; other file systems and links to elsewhere are left out.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn scan(&self) -> Result<Scan, HostError> {
        self.walk(None)
    }

    /// Lists the regular files, and watches those of the slow side from now on.
    ///
    /// # Errors
    /// When the directory cannot be read, or nothing can be watched there.
    pub fn scan_and_watch(&self, watch: &Watch) -> Result<Scan, HostError> {
        watch.mark(self.directory.as_fd()).map_err(|error| {
            HostError::file("watch the files in", &self.place.directory, error)
                .advise("a file system without file handles cannot be watched: move files by hand")
        })?;
        self.walk(Some(watch))
    }

    /// Watches the promoted files.
    ///
    /// # Errors
    /// When they cannot be watched.
    pub fn sampler(&self) -> Result<Sampler, HostError> {
        let directory = rustix::io::fcntl_dupfd_cloexec(&self.files, 0)
            .map_err(|error| HostError::file("open", &self.place.fast, error))?;
        Sampler::new(directory)
    }

    fn walk(&self, watch: Option<&Watch>) -> Result<Scan, HostError> {
        let failed = |error| HostError::file("look at", &self.place.directory, error);
        let mut walk = Walk {
            tier: self,
            watch,
            fast: file_system(self.files.as_fd()).map_err(failed)?,
            slow: file_system(self.directory.as_fd()).map_err(failed)?,
            waiting: vec![PathBuf::new()],
            watched: 0,
            scan: Scan::default(),
        };
        while let Some(inside) = walk.waiting.pop() {
            if let Err(error) = walk.directory(&inside) {
                // Directories come and go while we look.
                if !matches!(
                    error,
                    Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV
                ) {
                    let path = self.place.directory.join(&inside);
                    return Err(HostError::file("list", &path, error));
                }
            }
            if walk.scan.truncated {
                break;
            }
        }
        walk.scan.entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(walk.scan)
    }

    /// Free bytes of the fast and of the slow file system.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn free(&self) -> Result<(u64, u64), HostError> {
        let of = |directory: &OwnedFd, path: &Path| {
            let of = rustix::fs::fstatvfs(directory)
                .map_err(|error| HostError::file("look at", path, error))?;
            Ok::<_, HostError>(of.f_bavail.saturating_mul(of.f_frsize))
        };
        Ok((
            of(&self.files, &self.place.fast)?,
            of(&self.directory, &self.place.directory)?,
        ))
    }

    /// How events name the content of a file now.
    ///
    /// # Errors
    /// When the file is gone or cannot be looked at.
    pub fn key_of(&self, path: &Path) -> Result<Option<FileKey>, HostError> {
        let find = || {
            let (parent, name) = self.parent(path)?;
            let stat = look(&parent, &name)?.ok_or(Errno::NOENT)?;
            match self.link_at(&parent, &name, &stat)? {
                Some(id) => self.key_at(&self.files, Path::new(&id)),
                None => self.key_at(&parent, &name),
            }
        };
        let path = self.place.directory.join(path);
        find().map_err(|error| HostError::file("look at", &path, error))
    }

    fn key_at(&self, directory: &OwnedFd, name: &Path) -> Result<Option<FileKey>, Errno> {
        key(directory.as_fd(), name, file_system(directory.as_fd())?)
    }

    /// Copies that no name on the slow file system leads to. The application removed the
    /// file, or something moved its link elsewhere: nobody can tell which from here.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn nameless(&self) -> Result<u64, HostError> {
        let mut count = 0;
        for id in names(&self.links, "links", self)? {
            let link = look(&self.links, &*id)
                .map_err(|error| HostError::file("count the names of", &self.place.slow, error))?;
            count += u64::from(link.is_some_and(|link| link.st_nlink == 1));
        }
        Ok(count)
    }

    /// Removes the copies whose last name was removed a while ago. Only a person may ask for
    /// it: where a tool moved the links elsewhere, these copies are all there is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn collect_removed(&mut self, now: SystemTime) -> Result<u64, HostError> {
        let now = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let mut count = 0;
        for id in names(&self.links, "links", self)? {
            let failed = |error| HostError::file("collect", &self.place.fast, error);
            let link = look(&self.links, &*id).map_err(failed)?;
            let old = link.is_some_and(|link| {
                let since = u64::try_from(link.st_ctime).unwrap_or(0);
                now.saturating_sub(Duration::from_secs(since)) >= REMOVED_KEPT
            });
            if !old {
                continue;
            }
            let size = look(&self.files, &*id)
                .map_err(failed)?
                .and_then(|stat| u64::try_from(stat.st_size).ok());
            if self.collect(&id).map_err(failed)? {
                self.fast_used = self.fast_used.saturating_sub(size.unwrap_or(0));
                count += 1;
            }
        }
        Ok(count)
    }
}
