//! The directories of a tier, opened once and checked; names are looked up beneath them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay_core::units::Bytes;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::TierPlace;
use super::brake::Brake;
use super::lease::Lease;
use super::moving::create;
use super::recover::Recovered;
use crate::error::HostError;

/// Names of files that are made to try a file system; no move has such a name.
const PROBE: &str = "probe";
const PROBE_LINK: &str = "probe-link";
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;

/// A tiered directory, ours alone until this is dropped.
#[derive(Debug)]
pub struct Tier {
    pub(super) place: TierPlace,
    pub(super) directory: OwnedFd,
    pub(super) files: OwnedFd,
    pub(super) moves: OwnedFd,
    pub(super) stage: OwnedFd,
    pub(super) links: OwnedFd,
    pub(super) kept: OwnedFd,
    pub(super) brake: Arc<Brake>,
    /// Bytes in `files`.
    pub(super) fast_used: u64,
    // The kernel drops the lock with the descriptor.
    _lock: File,
}

impl Tier {
    /// Checks the tier, takes it, and ends or undoes what an earlier process left.
    ///
    /// # Errors
    /// When the two are on one file system, one is read-only or was swapped for another,
    /// somebody but root may write to them, or another process moves files there.
    pub fn open(place: TierPlace) -> Result<(Self, Recovered), HostError> {
        let place = canonical(place)?;
        check(&place)?;
        let lock = lock(&place)?;
        identify(&place, &lock)?;
        let mut tier = Self {
            directory: open_directory(&place.directory)?,
            files: make_directory(&place.fast.join("files"), 0o711)?,
            moves: make_directory(&place.slow.join("moves"), 0o700)?,
            stage: make_directory(&place.slow.join("stage"), 0o700)?,
            links: make_directory(&place.slow.join("links"), 0o700)?,
            kept: make_directory(&place.slow.join("kept"), 0o700)?,
            brake: Arc::new(Brake::new(place.bandwidth_max)),
            fast_used: 0,
            _lock: lock,
            place,
        };
        tier.probe()?;
        let recovered = tier.recover()?;
        Ok((tier, recovered))
    }

    /// Tries what moves need of both file systems, on files of our own.
    fn probe(&self) -> Result<(), HostError> {
        let lacks = |path: &Path, what: &str, error: Errno| {
            let attempt = format!(
                "use tier {}: the file system of {} has no {what}",
                self.place.name,
                path.display()
            );
            HostError::io(attempt, error).advise("use one that has, such as ext4, xfs or btrfs")
        };
        let clear = || {
            for (directory, name) in [
                (&self.files, PROBE),
                (&self.stage, PROBE),
                (&self.stage, PROBE_LINK),
            ] {
                remove(directory, name)
                    .map_err(|error| HostError::file("clear", &self.place.slow, error))?;
            }
            Ok::<(), HostError>(())
        };
        clear()?;
        for (directory, path) in [
            (&self.files, &self.place.fast),
            (&self.stage, &self.place.slow),
        ] {
            let file = create(directory, PROBE)
                .map_err(|error| HostError::file("make a file in", path, error))?;
            Lease::take(&file).map_err(|error| lacks(path, "leases", error))?;
        }
        let slow = &self.place.slow;
        rustix::fs::symlinkat(PROBE, &self.stage, PROBE_LINK)
            .map_err(|error| lacks(slow, "symbolic links", error))?;
        let flags = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(&self.stage, PROBE, &self.stage, PROBE_LINK, flags)
            .map_err(|error| lacks(slow, "exchange of names", error))?;
        clear()
    }

    /// What it was opened with, as the kernel spells the paths.
    #[must_use]
    pub fn place(&self) -> &TierPlace {
        &self.place
    }

    /// What holds its moves back, for others to use.
    #[must_use]
    pub fn brake(&self) -> Arc<Brake> {
        Arc::clone(&self.brake)
    }

    /// Bytes on the fast file system.
    #[must_use]
    pub fn fast_used(&self) -> u64 {
        self.fast_used
    }

    /// Where the symbolic link of a copy leads.
    pub(super) fn target(&self, id: &str) -> PathBuf {
        self.place.fast.join("files").join(id)
    }

    /// The copy that a symbolic link leads to, if it is one of ours.
    pub(super) fn id_of(&self, target: &Path) -> Option<String> {
        let id = target.strip_prefix(self.place.fast.join("files")).ok()?;
        id.to_str().filter(|id| is_id(id)).map(str::to_owned)
    }

    /// The directory that holds a file, and the file's name in it. The application may
    /// exchange directories for links meanwhile: none is followed.
    pub(super) fn parent(&self, path: &Path) -> Result<(OwnedFd, PathBuf), Errno> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let parent = rustix::fs::openat2(&self.directory, parent, flags, Mode::empty(), resolve)?;
        Ok((parent, PathBuf::from(name)))
    }
}

/// What a name stands for, links not followed; none when there is no such name.
pub(super) fn look(
    directory: &OwnedFd,
    name: impl rustix::path::Arg,
) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a name; that there is none is as good.
pub(super) fn remove(directory: &OwnedFd, name: &str) -> Result<(), Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// A name that nobody can guess: files of all users lie side by side.
pub(super) fn new_id() -> Result<String, HostError> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| HostError::file("read", path, error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn is_id(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn canonical(mut place: TierPlace) -> Result<TierPlace, HostError> {
    for path in [&mut place.directory, &mut place.fast, &mut place.slow] {
        *path = std::fs::canonicalize(&*path).map_err(|error| {
            HostError::file("find", path, error)
                .advise(format!("make that directory for tier {}", place.name))
        })?;
    }
    Ok(place)
}

fn check(place: &TierPlace) -> Result<(), HostError> {
    let refuse = |what: String, advice: &str| {
        HostError::invalid(format!("use tier {}: {what}", place.name), advice)
    };
    let meta = |path: &Path| {
        std::fs::metadata(path).map_err(|error| HostError::file("look at", path, error))
    };
    let (directory, fast, slow) = (
        meta(&place.directory)?,
        meta(&place.fast)?,
        meta(&place.slow)?,
    );
    for (path, of) in [
        (&place.directory, &directory),
        (&place.fast, &fast),
        (&place.slow, &slow),
    ] {
        if !of.is_dir() {
            return Err(refuse(
                format!("{} is no directory", path.display()),
                "name a directory",
            ));
        }
    }
    if fast.dev() == slow.dev() {
        return Err(refuse(
            format!(
                "{} and {} are on one file system, so that moving a file would gain nothing",
                place.fast.display(),
                place.slow.display()
            ),
            "put `fast` on another file system",
        ));
    }
    if slow.dev() != directory.dev() {
        return Err(refuse(
            format!(
                "{} is not on the file system of {}",
                place.slow.display(),
                place.directory.display()
            ),
            "choose `slow` beside `directory`",
        ));
    }
    for ours in [&place.fast, &place.slow] {
        if ours.starts_with(&place.directory) || place.directory.starts_with(ours) {
            return Err(refuse(
                format!(
                    "{} and {} lie in one another",
                    ours.display(),
                    place.directory.display()
                ),
                "put them side by side",
            ));
        }
        let of = meta(ours)?;
        if of.uid() != 0 || of.mode() & 0o022 != 0 {
            return Err(refuse(
                format!("others than root may write to {}", ours.display()),
                "chown root and chmod 0755",
            ));
        }
    }
    let reachable = |path: &Path| -> Result<bool, HostError> {
        for ancestor in path.ancestors() {
            if meta(ancestor)?.mode() & 0o001 == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let above = place.directory.parent().unwrap_or(Path::new("/"));
    if reachable(above)? && !reachable(&place.fast)? {
        return Err(refuse(
            format!(
                "{} cannot be reached by everybody who reaches {}",
                place.fast.display(),
                place.directory.display()
            ),
            "chmod o+x it and what it lies in",
        ));
    }
    for path in [&place.fast, &place.slow] {
        let of = rustix::fs::statvfs(path).map_err(|e| HostError::file("look at", path, e))?;
        if of.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return Err(refuse(
                format!("{} is mounted read-only", path.display()),
                "remount it writable",
            ));
        }
    }
    let about =
        rustix::fs::statvfs(&place.fast).map_err(|e| HostError::file("look at", &place.fast, e))?;
    let holds = about.f_blocks.saturating_mul(about.f_frsize);
    if place.fast_size_max > holds {
        return Err(refuse(
            format!(
                "fast_size_max is {}, and the file system of {} holds {}",
                Bytes(place.fast_size_max),
                place.fast.display(),
                Bytes(holds)
            ),
            "lower fast_size_max, or put `fast` on a larger file system",
        ));
    }
    let kind = rustix::fs::statfs(&place.fast)
        .map_err(|e| HostError::file("look at", &place.fast, e))?
        .f_type
        .cast_unsigned();
    if matches!(kind, TMPFS | RAMFS) && !place.volatile {
        return Err(refuse(
            format!(
                "{} is in memory, so that a power failure loses what was promoted",
                place.fast.display()
            ),
            "use a disk, or set volatile = true if that may be lost",
        ));
    }
    Ok(())
}

fn lock(place: &TierPlace) -> Result<File, HostError> {
    let path = place.slow.join("tier");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| HostError::file("open", &path, error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(HostError::locked(
            format!("take tier {}: another process moves its files", place.name),
            "ask that one, or stop it first",
        )),
        Err(error) => Err(HostError::file("lock", &path, error)),
    }
}

/// Both sides carry the same identity: a fast tier that is not mounted, or another one, would
/// make every copy look removed.
fn identify(place: &TierPlace, mut ours: &File) -> Result<(), HostError> {
    let fast = place.fast.join("tier");
    let slow = place.slow.join("tier");
    let mut known = String::new();
    ours.read_to_string(&mut known)
        .map_err(|error| HostError::file("read", &slow, error))?;
    let theirs = match std::fs::read_to_string(&fast) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(HostError::file("read", &fast, error)),
    };
    match (known.as_str(), theirs) {
        (known, Some(theirs)) if known == theirs && !known.is_empty() => Ok(()),
        ("", None) => {
            // The path is part of it, because the links hold it.
            let text = format!("{} {}\n", new_id()?, place.fast.display());
            let write = |mut file: &File| {
                file.write_all(text.as_bytes())
                    .and_then(|()| file.sync_all())
            };
            File::create_new(&fast)
                .and_then(|file| write(&file))
                .map_err(|error| HostError::file("write", &fast, error))?;
            write(ours).map_err(|error| HostError::file("write", &slow, error))
        }
        // Killed between the two: nothing has been moved yet.
        ("", Some(theirs)) if theirs.is_empty() && is_fresh(place) => {
            std::fs::remove_file(&fast).map_err(|error| HostError::file("remove", &fast, error))?;
            identify(place, ours)
        }
        ("", Some(theirs)) if is_fresh(place) => ours
            .write_all(theirs.as_bytes())
            .and_then(|()| ours.sync_all())
            .map_err(|error| HostError::file("write", &slow, error)),
        _ => Err(HostError::invalid(
            format!(
                "use tier {}: {} is not the fast side that belongs to {}",
                place.name,
                place.fast.display(),
                place.slow.display()
            ),
            "mount the one that was used before, at the same path; drain the tier before you move it",
        )),
    }
}

fn is_fresh(place: &TierPlace) -> bool {
    std::fs::read_dir(place.fast.join("files"))
        .is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}

fn open_directory(path: &Path) -> Result<OwnedFd, HostError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|error| HostError::file("open", path, error))
}

fn make_directory(path: &Path, mode: u32) -> Result<OwnedFd, HostError> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(HostError::file("make", path, error));
        }
        _ => {}
    }
    let opened = open_directory(path)?;
    // The umask may have taken bits away.
    rustix::fs::fchmod(&opened, Mode::from_raw_mode(mode))
        .map_err(|error| HostError::file("chmod", path, error))?;
    Ok(opened)
}
