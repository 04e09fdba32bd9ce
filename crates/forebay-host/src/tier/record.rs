//! The record of one move: durable before what it speaks of is done.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use serde::{Deserialize, Serialize};

use super::layout::Tier;
use crate::error::HostError;

/// Which way a file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    ToFast,
    ToSlow,
}

/// What has not happened before this was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// No exchange: whatever there is can go.
    Copy,
    /// Perhaps an exchange: what lies in `stage` tells.
    Swap,
}

/// How content is told to be unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Print {
    pub(super) inode: u64,
    pub(super) size: i64,
    pub(super) modified: (i64, u64),
}

impl Print {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
        }
    }

    /// Whether the content is the same, in whatever file.
    pub(super) fn same_content(self, other: Self) -> bool {
        self.size == other.size && self.modified == other.modified
    }
}

/// One move under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) way: Way,
    pub(super) phase: Phase,
    /// Relative to the directory; bytes, for names need not be text.
    path: Vec<u8>,
    /// The file that is copied.
    pub(super) source: Print,
    /// The inode that comes out of the exchange: the file itself, or its symbolic link.
    pub(super) out: u64,
    /// The inode that goes in, once it exists.
    pub(super) placed: Option<u64>,
}

impl Record {
    pub(super) fn new(id: String, way: Way, path: &Path, source: Print, out: u64) -> Self {
        Self {
            id,
            way,
            phase: Phase::Copy,
            path: path.as_os_str().as_bytes().to_vec(),
            source,
            out,
            placed: None,
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.path.clone()))
    }

    /// Makes the record durable, in place of what it said before.
    pub(super) fn write(&self, tier: &Tier) -> Result<(), HostError> {
        let fail = |error| HostError::io(format!("record the move of {}", self.show(tier)), error);
        let text = serde_json::to_vec(self).map_err(|error| fail(std::io::Error::other(error)))?;
        let next = format!("{}.next", self.id);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&tier.moves, &next, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| fail(error.into()))?;
        let mut file = File::from(file);
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(fail)?;
        rustix::fs::renameat(&tier.moves, &next, &tier.moves, &self.id)
            .and_then(|()| rustix::fs::fsync(&tier.moves))
            .map_err(|error| fail(error.into()))
    }

    /// The move is over, one way or the other.
    pub(super) fn remove(&self, tier: &Tier) -> Result<(), HostError> {
        rustix::fs::unlinkat(&tier.moves, &self.id, AtFlags::empty())
            .map_err(|error| HostError::io(format!("end the record of {}", self.show(tier)), error))
    }

    pub(super) fn show(&self, tier: &Tier) -> String {
        tier.place.directory.join(self.path()).display().to_string()
    }
}
