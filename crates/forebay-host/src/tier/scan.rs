//! What a tiered directory holds, and where.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{Dir, FileType};
use rustix::io::Errno;

use super::layout::{Tier, look};
use super::recover::names;
use crate::error::HostError;

/// Files of one tier that are looked at; the rest stays where it is.
const FILES_MAX: usize = 200_000;
/// How long a copy is kept after its last name was removed: a tool that moves the directory's
/// files to another file system copies the link, and its user can still turn back.
const REMOVED_KEPT: Duration = Duration::from_secs(600);

/// Where a file's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// On the fast file system.
    Fast,
    /// On the slow one.
    Slow,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the directory.
    pub path: PathBuf,
    /// Where its content is.
    pub place: Where,
    /// Bytes.
    pub size: u64,
    /// Of the content, for events of the kernel to be recognised by.
    pub inode: u64,
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
}

impl Tier {
    /// Lists the regular files; other file systems and links to elsewhere are left out.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn scan(&self) -> Result<Scan, HostError> {
        let mut scan = Scan::default();
        let mut waiting = vec![PathBuf::new()];
        while let Some(inside) = waiting.pop() {
            if let Err(error) = self.scan_one(&inside, &mut scan, &mut waiting) {
                // Directories come and go while we look.
                if !matches!(
                    error,
                    Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV
                ) {
                    let path = self.place.directory.join(&inside);
                    return Err(HostError::file("list", &path, error));
                }
            }
            if scan.truncated {
                break;
            }
        }
        scan.entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(scan)
    }

    fn scan_one(
        &self,
        inside: &Path,
        scan: &mut Scan,
        waiting: &mut Vec<PathBuf>,
    ) -> Result<(), Errno> {
        // The parent of a name in it is the directory itself.
        let (directory, _) = self.parent(&inside.join("x"))?;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            if scan.entries.len() + waiting.len() >= FILES_MAX {
                scan.truncated = true;
                return Ok(());
            }
            let path = inside.join(name);
            let Some(stat) = look(&directory, name)? else {
                continue;
            };
            let (place, content) = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    waiting.push(path);
                    continue;
                }
                FileType::RegularFile => (Where::Slow, stat),
                FileType::Symlink => match self.link_at(&directory, Path::new(name), &stat) {
                    Ok(Some(id)) => match look(&self.files, &*id)? {
                        Some(content) => (Where::Fast, content),
                        None => {
                            scan.broken.push(path);
                            continue;
                        }
                    },
                    Ok(None) | Err(Errno::NOENT | Errno::INVAL) => continue,
                    Err(error) => return Err(error),
                },
                _ => continue,
            };
            scan.entries.push(Entry {
                path,
                place,
                size: u64::try_from(content.st_size).unwrap_or(0),
                inode: content.st_ino,
            });
        }
        Ok(())
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
