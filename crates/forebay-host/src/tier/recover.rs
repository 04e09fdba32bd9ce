//! Ends or undoes what a killed process left. Can be interrupted anywhere and run again.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::copy::Stop;
use super::layout::{Tier, is_id, look, remove};
use super::lease::has_writer;
use super::moving::{opened, swap};
use super::record::{Phase, Print, Record, Way};
use crate::error::HostError;

/// What an earlier process had left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Moves that were ended.
    pub ended: u64,
    /// Moves that were undone.
    pub undone: u64,
    /// Contents in `kept`, for a person to judge.
    pub kept: u64,
    /// Copies that no link was made for: never removed by us.
    pub unclaimed: u64,
}

impl Tier {
    pub(super) fn recover(&mut self) -> Result<Recovered, HostError> {
        let mut recovered = Recovered::default();
        for name in names(&self.moves, "moves", self)? {
            if !is_id(&name) {
                // Never renamed into place, so that nothing was done yet that it speaks of.
                remove(&self.moves, &name).map_err(|error| self.failed("clear", error))?;
                continue;
            }
            let record = self.read_record(&name)?;
            if self.resume(&record)? {
                recovered.ended += 1;
            } else {
                recovered.undone += 1;
            }
        }
        recovered.unclaimed = self.count()?;
        recovered.kept = names(&self.kept, "kept", self)?.len() as u64;
        Ok(recovered)
    }

    /// Counts the bytes on the fast file system anew, for promoted files grow and shrink, and
    /// the copies that no link was made for.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn count(&mut self) -> Result<u64, HostError> {
        let (mut used, mut unclaimed) = (0_u64, 0);
        for id in names(&self.files, "files", self)? {
            let stat = look(&self.files, &*id).map_err(|error| self.failed("look", error))?;
            let size = stat.and_then(|stat| u64::try_from(stat.st_size).ok());
            used = used.saturating_add(size.unwrap_or(0));
            let link = look(&self.links, &*id).map_err(|error| self.failed("look", error))?;
            unclaimed += u64::from(link.is_none());
        }
        self.fast_used = used;
        Ok(unclaimed)
    }

    /// Whether the move was ended, and not undone.
    fn resume(&self, record: &Record) -> Result<bool, HostError> {
        let failed = |error| {
            HostError::io(format!("recover {}", record.show(self)), error)
                .advise("mend that and start again: nothing was removed")
        };
        let ended = match (record.phase, record.placed) {
            (Phase::Swap, Some(placed)) => self.judge(record, placed).map_err(failed)?,
            _ => false,
        };
        self.clear(record)?;
        Ok(ended)
    }

    /// Finds out whether the exchange happened and holds.
    fn judge(&self, record: &Record, placed: u64) -> Result<bool, Errno> {
        let id = &*record.id;
        let Some(staged) = look(&self.stage, id)? else {
            return Ok(true);
        };
        if staged.st_ino == placed {
            return Ok(false);
        }
        let name = match self.parent(&record.path()) {
            Ok(found) => Some(found),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Err(error) => return Err(error),
        };
        let there = match &name {
            Some((parent, name)) => look(parent, name)?.map(|stat| stat.st_ino),
            None => None,
        };
        if staged.st_ino != record.out {
            // The application's own file came out, and we died before putting it back.
            if let (Some((parent, name)), true) = (&name, there == Some(placed)) {
                swap(self, id, parent, name, placed, staged.st_ino)?;
            } else {
                self.keep(id)?;
            }
            return Ok(false);
        }
        if self.is_unchanged(record, &self.old_content(record))? {
            return Ok(true);
        }
        // The leases ended with the process that held them, and somebody who waited changed
        // the old content. It is the newer one, unless the new one was changed as well.
        if let (Some((parent, name)), true) = (&name, there == Some(placed))
            && self.is_unchanged(record, &self.new_content(record, parent, name))?
        {
            swap(self, id, parent, name, placed, record.out)?;
            return Ok(false);
        }
        self.keep(id)?;
        Ok(true)
    }

    fn old_content<'t>(&'t self, record: &'t Record) -> (&'t OwnedFd, &'t Path) {
        let directory = match record.way {
            Way::ToFast => &self.stage,
            Way::ToSlow => &self.files,
        };
        (directory, Path::new(&record.id))
    }

    fn new_content<'t>(
        &'t self,
        record: &'t Record,
        parent: &'t OwnedFd,
        name: &'t Path,
    ) -> (&'t OwnedFd, &'t Path) {
        match record.way {
            Way::ToFast => (&self.files, Path::new(&record.id)),
            Way::ToSlow => (parent, name),
        }
    }

    fn is_unchanged(
        &self,
        record: &Record,
        (directory, name): &(&OwnedFd, &Path),
    ) -> Result<bool, Errno> {
        let file = match opened(directory, name, OFlags::RDONLY) {
            Ok(file) => file,
            Err(Stop::Left(_)) => return Ok(false),
            Err(Stop::Failed(error)) => return Err(error),
        };
        let now = Print::of(&rustix::fs::fstat(&file)?);
        Ok(now.same_content(record.source) && !has_writer(&file)?)
    }

    /// Removes what is superfluous after a move ended or was undone, the record last.
    pub(super) fn clear(&self, record: &Record) -> Result<(), HostError> {
        let failed = |error| HostError::io(format!("clear up after {}", record.show(self)), error);
        if let Some(staged) = look(&self.stage, &*record.id).map_err(failed)? {
            let known = record.phase == Phase::Copy
                || Some(staged.st_ino) == record.placed
                || staged.st_ino == record.out;
            if known {
                remove(&self.stage, &record.id).map_err(failed)?;
            } else {
                self.keep(&record.id).map_err(failed)?;
            }
        }
        self.collect(&record.id).map_err(failed)?;
        record.remove(self)
    }

    /// Removes a copy that no name leads to. The kernel has counted them.
    pub(super) fn collect(&self, id: &str) -> Result<bool, Errno> {
        let link = look(&self.links, id)?;
        if link.is_some_and(|link| link.st_nlink > 1) {
            return Ok(false);
        }
        // The copy first: without it the link is nobody's; without the link nobody would
        // dare to remove the copy.
        remove(&self.files, id)?;
        remove(&self.links, id)?;
        Ok(true)
    }

    /// Puts content aside that may or may not be superseded.
    pub(super) fn keep(&self, id: &str) -> Result<(), Errno> {
        tracing::warn!(
            tier = self.place.name,
            id,
            "content was put aside in `kept`"
        );
        rustix::fs::renameat(&self.stage, id, &self.kept, id)
    }

    fn read_record(&self, name: &str) -> Result<Record, HostError> {
        let path = self.place.slow.join("moves").join(name);
        let failed = |error| HostError::file("read", &path, error);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.moves, name, flags, Mode::empty())
            .map_err(|error| failed(error.into()))?;
        let mut text = Vec::new();
        File::from(file).read_to_end(&mut text).map_err(failed)?;
        serde_json::from_slice(&text)
            .ok()
            .filter(|record: &Record| record.id == name)
            .ok_or_else(|| {
                HostError::invalid(
                    format!("read {}: it is no record of a move", path.display()),
                    "move it elsewhere, and compare the files that `stage` and `files` hold",
                )
            })
    }

    fn failed(&self, verb: &str, error: Errno) -> HostError {
        HostError::file(verb, &self.place.slow, error)
    }
}

/// The names in one of our directories.
pub(super) fn names(
    directory: &OwnedFd,
    what: &str,
    tier: &Tier,
) -> Result<Vec<String>, HostError> {
    let failed =
        |error: Errno| HostError::io(format!("list `{what}` of tier {}", tier.place.name), error);
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().to_str()
            && !matches!(name, "." | "..")
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}
