//! Files that go along with an application: which there are, and what changed since they were sent.
//!
//! A file counts as changed when its size, its number or its times are others than when it was sent.
//! Two things would hide a change: times that are counted in ticks of some milliseconds, and pages that
//! are written through a mapping without touching the times again. So a file is synced before it is
//! read, after which the kernel notes the next write through a mapping, and one whose last change is
//! about as young as its copy counts as changed. A file system without anything to sync (tmpfs) has only
//! the times.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Files, directories and links of one application at most.
pub(super) const ENTRIES_MAX: usize = 65_536;
/// Directories within each other at most.
const DEPTH_MAX: usize = 64;
/// Kernels count times of files in ticks of at most this, in nanoseconds.
const TICK_NS: i128 = 50_000_000;

/// One thing in the file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) what: What,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// When it was changed last, in nanoseconds since 1970.
    pub(super) modified_ns: i64,
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    File { bytes: u64 },
    Directory,
    Link { to: String },
}

/// By absolute path.
pub(super) type Entries = BTreeMap<String, Entry>;

/// By what it is seen whether a file is another than the one that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    bytes: u64,
    inode: (u64, u64),
    modified_ns: i128,
    changed_ns: i128,
    /// When it was looked at, in nanoseconds since 1970.
    at_ns: i128,
}

fn nanoseconds(seconds: i64, rest: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(rest)
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            bytes: found.len(),
            inode: (found.dev(), found.ino()),
            modified_ns: nanoseconds(found.mtime(), found.mtime_nsec()),
            changed_ns: nanoseconds(found.ctime(), found.ctime_nsec()),
            at_ns: i128::try_from(now.as_nanos()).unwrap_or(i128::MAX),
        }
    }

    /// Whether what was sent with this stamp may be something else by now.
    fn may_differ(&self, now: &Self) -> bool {
        let same = |a: &Self| (a.bytes, a.inode, a.modified_ns, a.changed_ns);
        same(self) != same(now) || self.changed_ns + TICK_NS >= self.at_ns
    }
}

/// What stands below some paths.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) entries: Entries,
    stamps: BTreeMap<String, Stamp>,
}

/// Looks at everything below these paths. A path that is not there holds nothing; sockets are left out,
/// since their servers make them.
///
/// # Errors
/// What cannot go along, and why.
pub(super) fn scan(paths: &[PathBuf]) -> Result<Scan, String> {
    let mut scan = Scan::default();
    for path in paths {
        visit(path, 0, &mut scan)?;
    }
    Ok(scan)
}

fn visit(path: &Path, depth: usize, scan: &mut Scan) -> Result<(), String> {
    let shown = path.display();
    let failed = |attempt: &str, error: &io::Error| format!("{attempt} {shown}: {error}");
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        // It may go while it is looked for.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", &error)),
    };
    let name = path
        .to_str()
        .ok_or_else(|| format!("{shown} is not UTF-8, and cannot go along; rename it"))?;
    if scan.entries.len() >= ENTRIES_MAX {
        return Err(format!(
            "more than {ENTRIES_MAX} files would go along; put them on storage that the hosts share"
        ));
    }
    let kind = found.file_type();
    let what = if kind.is_file() {
        scan.stamps.insert(name.to_owned(), Stamp::of(&found));
        What::File { bytes: found.len() }
    } else if kind.is_dir() {
        What::Directory
    } else if kind.is_symlink() {
        let to = match fs::read_link(path) {
            Ok(to) => to,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("read the link", &error)),
        };
        let to = to.into_os_string().into_string();
        What::Link {
            to: to
                .map_err(|_| format!("{shown} points to what is not UTF-8; point it elsewhere"))?,
        }
    } else if kind.is_socket() {
        return Ok(());
    } else {
        return Err(format!(
            "{shown} is a device or a pipe, which cannot go along; take it out of the app's `move.files`"
        ));
    };
    let entry = Entry {
        what,
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        modified_ns: i64::try_from(nanoseconds(found.mtime(), found.mtime_nsec()))
            .unwrap_or_default(),
    };
    let is_directory = entry.what == What::Directory;
    scan.entries.insert(name.to_owned(), entry);
    if !is_directory {
        return Ok(());
    }
    if depth == DEPTH_MAX {
        return Err(format!("{shown} is too deep within others; flatten it"));
    }
    let listed = match fs::read_dir(path) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("list", &error)),
    };
    for child in listed {
        let child = child.map_err(|error| failed("list", &error))?;
        visit(&child.path(), depth + 1, scan)?;
    }
    Ok(())
}

impl Scan {
    /// The files that may differ from what was sent, with how long they are.
    pub(super) fn news(&self, sent: &BTreeMap<String, Stamp>) -> Vec<(String, u64)> {
        let news = self.stamps.iter().filter(|(name, stamp)| {
            let before = sent.get(*name);
            before.is_none_or(|before| before.may_differ(stamp))
        });
        news.map(|(name, stamp)| (name.clone(), stamp.bytes))
            .collect()
    }
}

/// A file that is to be sent, as it is now.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) stamp: Stamp,
    pub(super) bytes: u64,
}

/// Opens a file to send it; none where it is gone, or is no file any more.
pub(super) fn open(name: &str) -> Result<Option<Opened>, String> {
    let failed = |attempt: &str, error: &io::Error| format!("{attempt} {name}: {error}");
    let no_link = rustix::fs::OFlags::NOFOLLOW.bits();
    let flags = i32::try_from(no_link).unwrap_or_default();
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(name);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", &error)),
    };
    file.sync_data().map_err(|error| failed("sync", &error))?;
    let found = file.metadata().map_err(|error| failed("look at", &error))?;
    if !found.is_file() {
        return Ok(None);
    }
    Ok(Some(Opened {
        stamp: Stamp::of(&found),
        bytes: found.len(),
        file,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    /// Makes a copy of it old enough that ticks do not matter.
    fn sent(name: &str) -> Stamp {
        let mut stamp = open(name).unwrap().unwrap().stamp;
        stamp.at_ns += 2 * TICK_NS;
        stamp
    }

    #[test]
    fn what_changed_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let name = |file: &str| path(file).to_str().unwrap().to_owned();
        fs::create_dir(path("d")).unwrap();
        fs::write(path("d/a"), "one").unwrap();
        fs::write(path("d/b"), "two").unwrap();
        symlink("a", path("d/l")).unwrap();
        let socket = UnixListener::bind(path("d/s")).unwrap();
        let paths = [path("d"), path("not-there")];
        let scan = |paths: &[PathBuf]| super::scan(paths).unwrap();
        let first = scan(&paths);
        let names: Vec<&String> = first.entries.keys().collect();
        let expected = ["d", "d/a", "d/b", "d/l"].map(name);
        assert_eq!(names, expected.iter().collect::<Vec<_>>());
        assert_eq!(first.news(&BTreeMap::new()).len(), 2);

        let mut known = BTreeMap::new();
        for file in ["d/a", "d/b"] {
            known.insert(name(file), sent(&name(file)));
        }
        assert_eq!(scan(&paths).news(&known), []);
        // As long as before, and of the same name.
        fs::write(path("new"), "TWO").unwrap();
        fs::rename(path("new"), path("d/b")).unwrap();
        assert_eq!(scan(&paths).news(&known), [(name("d/b"), 3)]);
        // One whose copy is as young as its last change.
        let young = open(&name("d/a")).unwrap().unwrap().stamp;
        known.insert(
            name("d/a"),
            Stamp {
                at_ns: young.changed_ns + TICK_NS / 2,
                ..young
            },
        );
        assert_eq!(scan(&paths).news(&known).len(), 2);
        drop(socket);

        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("d/p"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        let error = super::scan(&paths).unwrap_err();
        assert!(error.contains("d/p is a device or a pipe"), "{error}");
        assert!(open(&name("d/l")).is_err(), "links are not followed");
    }
}
