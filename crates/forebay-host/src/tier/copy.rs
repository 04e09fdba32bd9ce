//! Copies one file: content and holes beside its users; then, under its lease, owner, mode,
//! attributes and times, and all of it compared.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{
    Advice, Gid, Mode, Stat, StatxAttributes, StatxFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::Left;
use super::brake::Brake;
use super::lease::Lease;

/// An opener waits for one of these at most.
const CHUNK: usize = 256 * 1024;
/// The kernel's own bound on one attribute and on the list of names.
const ATTRIBUTE_MAX: usize = 64 * 1024;

/// Why a copy was not finished.
#[derive(Debug)]
pub(super) enum Stop {
    /// The file is to be left.
    Left(Left),
    /// Something was refused.
    Failed(Errno),
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Self::Left(Left::Full),
            error => Self::Failed(error),
        }
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        let number = error.raw_os_error();
        Self::from(number.map_or(Errno::IO, Errno::from_raw_os_error))
    }
}

/// Whether a file may be moved as far as it can tell itself.
pub(super) fn movable(file: &File, stat: &Stat) -> Result<(), Stop> {
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(Stop::Left(Left::NotRegular));
    }
    if stat.st_nlink != 1 {
        return Err(Stop::Left(Left::SeveralNames));
    }
    let more = rustix::fs::statx(
        file,
        c"",
        rustix::fs::AtFlags::EMPTY_PATH,
        StatxFlags::empty(),
    )?;
    let special = StatxAttributes::IMMUTABLE
        | StatxAttributes::APPEND
        | StatxAttributes::ENCRYPTED
        | StatxAttributes::VERITY;
    if more.stx_attributes.intersects(special) {
        return Err(Stop::Left(Left::Flags));
    }
    Ok(())
}

/// Copies and syncs the content, beside whoever uses the file. `to` is new and empty.
pub(super) fn copy(from: &File, to: &File, stat: &Stat, brake: &Brake) -> Result<(), Stop> {
    let size = u64::try_from(stat.st_size).map_err(|_| Errno::INVAL)?;
    let sparse = stat.st_blocks.saturating_mul(512) < stat.st_size;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    to.set_len(size)?;
    while at < size {
        let count = from.read_at(&mut buffer, at)?;
        if count == 0 {
            return Err(Stop::Left(Left::Wanted));
        }
        let chunk = &buffer[..count];
        if !(sparse && chunk.iter().all(|byte| *byte == 0)) {
            to.write_all_at(chunk, at)?;
        }
        at += count as u64;
        brake.spend(count)?;
    }
    to.sync_all()?;
    // From the medium, not from memory, as far as the kernel lets go of it.
    rustix::fs::fadvise(to, 0, None, Advice::DontNeed)?;
    Ok(())
}

/// Under the lease: makes sure that the copy is what the file is now, and gives it the rest of
/// it. Nobody can change the file meanwhile; what was changed before, times may hide.
pub(super) fn verify(
    from: &File,
    to: &File,
    before: &Stat,
    lease: &Lease<'_>,
    brake: &Brake,
) -> Result<Stat, Stop> {
    let stat = rustix::fs::fstat(from)?;
    let changed = |stat: &Stat| (stat.st_size, stat.st_ctime, stat.st_ctime_nsec);
    if changed(&stat) != changed(before) {
        return Err(Stop::Left(Left::Wanted));
    }
    movable(from, &stat)?;
    dress(from, to, &stat)?;
    to.sync_all()?;
    let size = u64::try_from(stat.st_size).map_err(|_| Errno::INVAL)?;
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    while at < size {
        let count = usize::try_from(size - at).unwrap_or(CHUNK).min(CHUNK);
        from.read_exact_at(&mut left[..count], at)?;
        to.read_exact_at(&mut right[..count], at)?;
        if left[..count] != right[..count] {
            return Err(Stop::Left(Left::Differs));
        }
        at += count as u64;
        brake.charge(count);
        if lease.is_broken() {
            return Err(Stop::Left(Left::Wanted));
        }
        if brake.is_stopped() {
            return Err(Stop::Left(Left::Stopped));
        }
    }
    Ok(stat)
}

/// Owner before mode and attributes: changing the owner clears some of both.
fn dress(from: &File, to: &File, stat: &Stat) -> Result<(), Stop> {
    rustix::fs::fchown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let mut names = vec![0; ATTRIBUTE_MAX];
    let count = match rustix::fs::flistxattr(from, &mut names) {
        Err(Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let mut value = vec![0; ATTRIBUTE_MAX];
    for name in names[..count].split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
        let length = rustix::fs::fgetxattr(from, name, &mut value)?;
        rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()).map_err(
            |error| match error {
                Errno::OPNOTSUPP | Errno::NOSPC | Errno::PERM => {
                    Stop::Left(Left::Attribute(name.to_string_lossy().into_owned()))
                }
                error => Stop::from(error),
            },
        )?;
    }
    set_times(to, stat)?;
    Ok(())
}

fn set_times(to: impl AsFd, stat: &Stat) -> Result<(), Errno> {
    let time = |seconds, nanoseconds: u64| {
        Ok(Timespec {
            tv_sec: seconds,
            tv_nsec: i64::try_from(nanoseconds).map_err(|_| Errno::INVAL)?,
        })
    };
    rustix::fs::futimens(
        to,
        &Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec)?,
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec)?,
        },
    )
}
