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
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
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
/// since their servers make them. One that is a link itself is refused: what it points to would stay behind.
///
/// # Errors
/// What cannot go along, and why.
pub(super) fn scan(paths: &[PathBuf]) -> Result<Scan, String> {
    let mut scan = Scan::default();
    for path in paths {
        no_link(path)?;
        visit(path, 0, &mut scan)?;
    }
    Ok(scan)
}

/// Refuses a declared path that is a link.
pub(super) fn no_link(path: &Path) -> Result<(), String> {
    match fs::read_link(path) {
        Ok(to) => Err(format!(
            "{} is a link to {}, which would stay behind; write the path that it leads to in `move.files`",
            path.display(),
            to.display()
        )),
        // It is no link, or is not there.
        Err(_) => Ok(()),
    }
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

/// Opens what stands at a path below a declared one without following a link on the way: whoever may write
/// there could put one in between, and have somebody else's file sent. A pipe is not waited for.
fn open_below(root: &Path, path: &Path) -> Result<OwnedFd, Errno> {
    let fixed = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fixed | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let directory = fixed | OFlags::PATH | OFlags::DIRECTORY;
    let below = path.strip_prefix(root).unwrap_or_else(|_| Path::new(""));
    let mut parts: Vec<_> = below.components().collect();
    let Some(last) = parts.pop() else {
        return rustix::fs::open(root, file, Mode::empty());
    };
    let mut at = rustix::fs::open(root, directory, Mode::empty())?;
    for part in parts {
        at = rustix::fs::openat(&at, part.as_os_str(), directory, Mode::empty())?;
    }
    rustix::fs::openat(&at, last.as_os_str(), file, Mode::empty())
}

/// Opens a file below one of the declared paths to send it; none where it is gone, or is no file any more.
pub(super) fn open(roots: &[PathBuf], name: &str) -> Result<Option<Opened>, String> {
    let failed = |attempt: &str, error: &io::Error| format!("{attempt} {name}: {error}");
    let path = Path::new(name);
    let Some(root) = roots.iter().find(|root| path.starts_with(root)) else {
        return Err(format!("{name} is in none of the app's `move.files`"));
    };
    let file = match open_below(root, path) {
        Ok(file) => File::from(file),
        // It is gone, or a link or a socket is in its place.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(failed("open", &error.into())),
    };
    let found = file.metadata().map_err(|error| failed("look at", &error))?;
    if !found.is_file() {
        return Ok(None);
    }
    file.sync_data().map_err(|error| failed("sync", &error))?;
    let found = file.metadata().map_err(|error| failed("look at", &error))?;
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
    fn sent(paths: &[PathBuf], name: &str) -> Stamp {
        let mut stamp = open(paths, name).unwrap().unwrap().stamp;
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
            known.insert(name(file), sent(&paths, &name(file)));
        }
        assert_eq!(scan(&paths).news(&known), []);
        // As long as before, and of the same name.
        fs::write(path("new"), "TWO").unwrap();
        fs::rename(path("new"), path("d/b")).unwrap();
        assert_eq!(scan(&paths).news(&known), [(name("d/b"), 3)]);
        // One whose copy is as young as its last change.
        let young = open(&paths, &name("d/a")).unwrap().unwrap().stamp;
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
    }

    /// What a move finds where a file was when it was looked at: not read, and not waited for.
    #[test]
    fn what_came_in_place_of_a_file_is_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("d/in")).unwrap();
        fs::create_dir(path("other")).unwrap();
        fs::write(path("other/secret"), "not the app's").unwrap();
        fs::write(path("d/in/secret"), "its own").unwrap();
        let opens = |below: &str| {
            let (roots, name) = ([path("d")], path(below));
            let (said, heard) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let opened = open(&roots, name.to_str().unwrap());
                said.send(opened.unwrap().is_some()).unwrap();
            });
            let opened = heard.recv_timeout(std::time::Duration::from_secs(30));
            opened.expect("nobody waits for the other end of a pipe")
        };
        assert!(opens("d/in/secret"));
        symlink(path("other/secret"), path("d/link")).unwrap();
        assert!(!opens("d/link"), "a link");
        fs::rename(path("d/in"), path("d/before")).unwrap();
        symlink(path("other"), path("d/in")).unwrap();
        assert!(!opens("d/in/secret"), "a link on the way");
        let (kind, mode) = (rustix::fs::FileType::Fifo, Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, path("d/pipe"), kind, mode, 0).unwrap();
        assert!(!opens("d/pipe"), "a pipe");
        let _socket = UnixListener::bind(path("d/socket")).unwrap();
        assert!(!opens("d/socket"), "a socket");
    }

    #[test]
    fn a_declared_path_that_is_a_link_does_not_move_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (data, link) = (dir.path().join("data"), dir.path().join("link"));
        fs::create_dir(&data).unwrap();
        symlink(&data, &link).unwrap();
        super::scan(std::slice::from_ref(&data)).unwrap();
        let error = super::scan(&[link]).unwrap_err();
        assert!(error.contains("is a link to"), "{error}");
        assert!(error.contains(data.to_str().unwrap()), "{error}");
    }
}
