//! One move, from the lease to the removed record. The protocol is drawn in [`super`].

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::copy::{Stop, copy, movable, verify};
use super::layout::{Tier, look, new_id, remove};
use super::lease::{Hurry, Lease, wait_for_break};
use super::record::{Phase, Print, Record, Way};
use super::{Left, Moved};
use crate::error::HostError;

/// How long both leases are held after the exchange, for those who looked the name up before
/// it and open only now: two steps within one system call.
const GRACE: Duration = Duration::from_millis(20);
/// How long a file is waited for to be closed: before it is copied, and when it has been.
const CLOSED_FIRST: Duration = Duration::from_millis(100);
const CLOSED_AT_LAST: Duration = Duration::from_millis(500);
/// How often an application may rename files over one name while it is put back.
const EXCHANGES_MAX: u32 = 16;
const OPEN: OFlags = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOATIME)
    .union(OFlags::CLOEXEC);

/// What lies in `stage` after an exchange was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exchanged {
    /// What was to come out.
    Out,
    /// What was to go in, or nothing: the name is the application's.
    In,
}

/// A file to move, and where its name is.
struct Source {
    parent: OwnedFd,
    name: PathBuf,
    file: File,
}

impl Tier {
    /// Moves a file, named relative to the directory, to the fast file system.
    ///
    /// # Errors
    /// When the kernel refuses something; the file is then as it was.
    pub fn promote(&mut self, path: &Path) -> Result<Moved, HostError> {
        self.finish(path, "promote", |tier| tier.promoting(path))
    }

    /// Moves a file back to the slow file system.
    ///
    /// # Errors
    /// When the kernel refuses something; the file is then as it was.
    pub fn demote(&mut self, path: &Path) -> Result<Moved, HostError> {
        self.finish(path, "demote", |tier| tier.demoting(path))
    }

    fn finish(
        &mut self,
        path: &Path,
        verb: &str,
        work: impl FnOnce(&mut Self) -> Result<u64, Trouble>,
    ) -> Result<Moved, HostError> {
        match work(self) {
            Ok(bytes) => Ok(Moved::Done { bytes }),
            Err(Trouble::Stop(Stop::Left(left))) => Ok(Moved::Left(left)),
            Err(Trouble::Stop(Stop::Failed(error))) => {
                let path = self.place.directory.join(path);
                Err(HostError::file(verb, &path, error))
            }
            Err(Trouble::Host(error)) => Err(error),
        }
    }

    fn promoting(&mut self, path: &Path) -> Result<u64, Trouble> {
        let (parent, name) = self.find(path)?;
        let seen = look(&parent, &name)?.ok_or(Left::Gone)?;
        if self.link_at(&parent, &name, &seen)?.is_some() {
            return Err(Left::AlreadyThere.into());
        }
        if rustix::fs::FileType::from_raw_mode(seen.st_mode) != rustix::fs::FileType::RegularFile {
            return Err(Left::NotRegular.into());
        }
        let file = File::from(opened(&parent, &name, OFlags::RDONLY)?);
        let stat = rustix::fs::fstat(&file)?;
        movable(&file, &stat)?;
        let size = u64::try_from(stat.st_size).map_err(|_| Errno::INVAL)?;
        if self.fast_used.saturating_add(size) > self.place.fast_size_max {
            return Err(Left::Full.into());
        }
        let out = stat.st_ino;
        let source = Source { parent, name, file };
        self.record_and_move(path, &source, Way::ToFast, new_id()?, out)?;
        self.fast_used = self.fast_used.saturating_add(size);
        Ok(size)
    }

    fn demoting(&mut self, path: &Path) -> Result<u64, Trouble> {
        let (parent, name) = self.find(path)?;
        let seen = look(&parent, &name)?.ok_or(Left::Gone)?;
        let Some(id) = self.link_at(&parent, &name, &seen)? else {
            return Err(match rustix::fs::FileType::from_raw_mode(seen.st_mode) {
                rustix::fs::FileType::RegularFile => Left::AlreadyThere.into(),
                _ => Left::NotRegular.into(),
            });
        };
        // A link that somebody copied is none of the ones that were counted.
        let ours = look(&self.links, &id)?.ok_or(Left::SeveralNames)?;
        if ours.st_ino != seen.st_ino || ours.st_nlink != 2 {
            return Err(Left::SeveralNames.into());
        }
        let file = File::from(opened(&self.files, Path::new(&id), OFlags::RDONLY)?);
        let stat = rustix::fs::fstat(&file)?;
        movable(&file, &stat)?;
        let size = u64::try_from(stat.st_size).map_err(|_| Errno::INVAL)?;
        let source = Source { parent, name, file };
        self.record_and_move(path, &source, Way::ToSlow, id, seen.st_ino)?;
        self.fast_used = self.fast_used.saturating_sub(size);
        Ok(size)
    }

    /// Steps 1 to 5 of a file that may be moved as far as it can tell itself.
    fn record_and_move(
        &mut self,
        path: &Path,
        source: &Source,
        way: Way,
        id: String,
        out: u64,
    ) -> Result<(), Trouble> {
        // What is open for ever is not copied for nothing.
        drop(Lease::wait_for(&source.file, CLOSED_FIRST)?.ok_or(Left::Open)?);
        let stat = rustix::fs::fstat(&source.file)?;
        let mut record = Record::new(id, way, path, Print::of(&stat), out);
        record.write(self)?;
        let result = match way {
            Way::ToFast => self.promote_recorded(&mut record, source, &stat),
            Way::ToSlow => self.demote_recorded(&mut record, source, &stat),
        };
        self.settle(&record, source, result)
    }

    fn promote_recorded(
        &mut self,
        record: &mut Record,
        source: &Source,
        before: &Stat,
    ) -> Result<(), Trouble> {
        let id = record.id.clone();
        let target = create(&self.files, &id)?;
        copy(&source.file, &target, before, &self.brake)?;
        rustix::fs::fsync(&self.files)?;
        rustix::fs::symlinkat(self.target(&id), &self.links, &id)?;
        // Else a sticky directory would not let the owner of the file follow it.
        rustix::fs::chownat(
            &self.links,
            &id,
            Some(rustix::fs::Uid::from_raw(before.st_uid)),
            Some(rustix::fs::Gid::from_raw(before.st_gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        rustix::fs::linkat(&self.links, &id, &self.stage, &id, AtFlags::empty())?;
        let placed = look(&self.links, &id)?.ok_or(Errno::NOENT)?.st_ino;
        rustix::fs::fsync(&self.links)?;
        self.exchange(record, placed, source, &target, before)
    }

    fn demote_recorded(
        &mut self,
        record: &mut Record,
        source: &Source,
        before: &Stat,
    ) -> Result<(), Trouble> {
        let target = create(&self.stage, &record.id)?;
        copy(&source.file, &target, before, &self.brake)?;
        let placed = rustix::fs::fstat(&target)?.st_ino;
        self.exchange(record, placed, source, &target, before)
    }

    /// Steps 3 and 4: from the copy to an exchange that holds.
    fn exchange(
        &mut self,
        record: &mut Record,
        placed: u64,
        source: &Source,
        target: &File,
        before: &Stat,
    ) -> Result<(), Trouble> {
        let Source { parent, name, file } = source;
        rustix::fs::fsync(&self.stage)?;
        let _hurry = Hurry::begin();
        let lease = Lease::wait_for(file, CLOSED_AT_LAST)?.ok_or(Left::Open)?;
        let stat = verify(file, target, before, &lease, &self.brake)?;
        let copy_lease = Lease::take(target)?.ok_or(Left::Wanted)?;
        let leases = [&lease, &copy_lease];
        record.phase = Phase::Swap;
        record.source = Print::of(&stat);
        record.placed = Some(placed);
        record.write(self)?;
        let now = rustix::fs::fstat(file)?;
        let named = look(parent, name)?.ok_or(Left::Gone)?;
        let changed = (now.st_ctime, now.st_ctime_nsec) != (stat.st_ctime, stat.st_ctime_nsec);
        // Renaming, linking, chmod and attributes change ctime; leases do not see them.
        if changed || leases.iter().any(|lease| lease.is_broken()) {
            return Err(Left::Wanted.into());
        }
        if named.st_ino != record.out {
            return Err(Left::Gone.into());
        }
        if swap(self, &record.id, parent, name, record.out, placed)? == Exchanged::In {
            return Err(Left::Gone.into());
        }
        let end = Instant::now() + GRACE;
        while !leases[0].is_broken() {
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(());
            }
            wait_for_break(rest);
        }
        if leases[1].is_broken() {
            // One waits for the old file and one for the new: each gets what it looked up, and
            // nothing of the old one is removed.
            self.keep(&record.id)?;
            return Ok(());
        }
        // Whoever waits has the old file: it becomes the only one again.
        swap(self, &record.id, parent, name, placed, record.out)?;
        Err(Left::Wanted.into())
    }

    /// Step 5, or back to the beginning. What cannot be removed now, the next start removes.
    fn settle(
        &mut self,
        record: &Record,
        source: &Source,
        result: Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let Source { parent, name, .. } = source;
        // What the name stands for is durable before the other content goes.
        rustix::fs::fsync(parent)?;
        rustix::fs::fsync(&self.stage)?;
        tracing::debug!(name = %name.display(), ok = result.is_ok(), "a move ended");
        self.clear(record)?;
        result
    }

    fn find(&self, path: &Path) -> Result<(OwnedFd, PathBuf), Trouble> {
        match self.parent(path) {
            Ok(found) => Ok(found),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Err(Left::Gone.into()),
            Err(Errno::XDEV) => Err(Left::Outside.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// The copy behind a name, when it is a link of ours.
    pub(super) fn link_at(
        &self,
        parent: &OwnedFd,
        name: &Path,
        stat: &Stat,
    ) -> Result<Option<String>, Errno> {
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Symlink {
            return Ok(None);
        }
        let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
        let target = std::ffi::OsStr::new(target.to_str().unwrap_or_default());
        Ok(self.id_of(Path::new(target)))
    }
}

/// Exchanges what lies in `stage` (`put`) for what the name stands for (`out`), and looks at
/// what came. Anything else is a newer file of the application, which goes back at once.
///
/// What comes out of putting back is what was put there before, or again something newer, so
/// that the loop ends with the newest in place.
pub(super) fn swap(
    tier: &Tier,
    id: &str,
    parent: &OwnedFd,
    name: &Path,
    out: u64,
    put: u64,
) -> Result<Exchanged, Errno> {
    let exchange = || {
        let flags = RenameFlags::EXCHANGE;
        match rustix::fs::renameat_with(&tier.stage, id, parent, name, flags) {
            Ok(()) => look(&tier.stage, id).map(|stat| stat.map(|stat| stat.st_ino)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let Some(mut came) = exchange()? else {
        return Ok(Exchanged::In);
    };
    if came == out {
        return Ok(Exchanged::Out);
    }
    let mut there = put;
    for _ in 0..EXCHANGES_MAX {
        match exchange()? {
            Some(next) if next == there => {
                if there != put {
                    // An application's own file that it has replaced since.
                    remove(&tier.stage, id)?;
                }
                return Ok(Exchanged::In);
            }
            Some(next) => {
                there = came;
                came = next;
            }
            // The name was removed or moved meanwhile: nobody can tell which.
            None => break,
        }
    }
    tier.keep(id)?;
    Ok(Exchanged::In)
}

/// Why a move did not come to its end.
#[derive(Debug)]
enum Trouble {
    Stop(Stop),
    Host(HostError),
}

impl From<Left> for Trouble {
    fn from(left: Left) -> Self {
        Self::Stop(Stop::Left(left))
    }
}

impl From<Stop> for Trouble {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<Errno> for Trouble {
    fn from(error: Errno) -> Self {
        Self::Stop(Stop::from(error))
    }
}

impl From<HostError> for Trouble {
    fn from(error: HostError) -> Self {
        Self::Host(error)
    }
}

/// Opens without waiting for somebody else's lease, and without a trace in the access time.
pub(super) fn opened(directory: &OwnedFd, name: &Path, access: OFlags) -> Result<OwnedFd, Stop> {
    match rustix::fs::openat(directory, name, OPEN | access, Mode::empty()) {
        Ok(file) => Ok(file),
        Err(Errno::WOULDBLOCK | Errno::TXTBSY) => Err(Stop::Left(Left::Open)),
        Err(Errno::NOENT | Errno::LOOP) => Err(Stop::Left(Left::Gone)),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn create(directory: &OwnedFd, id: &str) -> Result<File, Errno> {
    let flags = OPEN | OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::openat(directory, id, flags, mode).map(File::from)
}
