//! History that outlives the daemon: roll-ups, events and decisions in one SQLite file.
//!
//! The control thread hands each [`TickReport`](forebay_core::report::TickReport) to a
//! [`Recorder`], which never makes it wait. The recorder rolls samples up in memory
//! ([`rollup`]) and writes them in batches ([`writer`]). Readers use connections of their own
//! ([`query`]) and never hold up the writer.
//!
//! Durability: the file is in write-ahead mode with `synchronous=NORMAL`. What a batch wrote is
//! there after the daemon is killed at any point; after a power loss the file opens in the
//! state of some earlier batch, at most a minute back, because the log is checkpointed (which
//! syncs it) once a minute. That is the right price for history: one sync a minute, and control
//! never depends on what is in here.
//!
//! Bounds: rows by age ([`Retention`]), events and decisions by number, the file by size. Freed
//! pages are used again; the file does not shrink.

mod query;
mod recorder;
mod rollup;
#[cfg(test)]
pub(crate) mod sample;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rusqlite::Connection;

pub(crate) use query::{EventQuery, HistoryQuery, Reader, Resolution, Row};
pub(crate) use recorder::Recorder;

/// The history, in the state directory.
pub(crate) const FILE: &str = "state.db";

/// How long history is kept, and how large it may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention {
    /// Roll-ups of 10 s.
    pub(crate) ten_seconds: Duration,
    /// Roll-ups of 1 min.
    pub(crate) minute: Duration,
    /// Roll-ups of 1 h.
    pub(crate) hour: Duration,
    /// Newest events kept, and newest decisions.
    pub(crate) events_max: u64,
    /// Size that the file is kept below, by giving up the oldest rows early.
    pub(crate) bytes_max: u64,
}

impl Default for Retention {
    /// About 0.4 MB for each series with samples, at 60 bytes a roll-up; an app has up to eight.
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            ten_seconds: DAY / 4,
            minute: 3 * DAY,
            hour: 90 * DAY,
            events_max: 100_000,
            bytes_max: 512 << 20,
        }
    }
}

impl Retention {
    fn of(&self, level: Level) -> Duration {
        match level {
            Level::TenSeconds => self.ten_seconds,
            Level::Minute => self.minute,
            Level::Hour => self.hour,
        }
    }
}

/// How much time one roll-up covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Level {
    /// 10 s.
    TenSeconds,
    /// 1 min.
    Minute,
    /// 1 h.
    Hour,
}

impl Level {
    /// All, the finest first.
    pub(crate) const ALL: [Self; 3] = [Self::TenSeconds, Self::Minute, Self::Hour];

    /// Its length in milliseconds.
    pub(crate) const fn step_ms(self) -> u64 {
        match self {
            Self::TenSeconds => 10_000,
            Self::Minute => 60_000,
            Self::Hour => 3_600_000,
        }
    }

    /// Where the roll-up that covers `unix_ms` starts.
    const fn start_of(self, unix_ms: u64) -> u64 {
        unix_ms - unix_ms % self.step_ms()
    }

    const fn table(self) -> &'static str {
        match self {
            Self::TenSeconds => "rollup_10s",
            Self::Minute => "rollup_1min",
            Self::Hour => "rollup_1h",
        }
    }
}

/// What is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Resource {
    /// Processor time, in CPUs: an app's use, or the host's busy CPUs.
    Cpu,
    /// Share of time in which some task of an app waited for a CPU, 0 to 1.
    CpuStalled,
    /// Bytes per second to and from block devices.
    Io,
    /// Memory in bytes: what an app is charged.
    Memory,
    /// Memory in bytes that the host could give out without swapping.
    MemoryAvailable,
    /// Bytes per second that an app received over the network.
    Received,
    /// Bytes per second that an app sent over the network.
    Sent,
    /// Requests that an app served, per second.
    Requests,
    /// Milliseconds until an app answers a request.
    ResponseTime,
    /// Time of accelerators that an app takes, in devices.
    Accelerator,
    /// Processor time that an app's slice allows, in CPUs.
    CpuAllowed,
    /// Memory in bytes that an app's slice allows.
    MemoryAllowed,
}

impl Resource {
    /// All of them.
    pub(crate) const ALL: [Self; 12] = [
        Self::Cpu,
        Self::CpuStalled,
        Self::Io,
        Self::Memory,
        Self::MemoryAvailable,
        Self::Received,
        Self::Sent,
        Self::Requests,
        Self::ResponseTime,
        Self::Accelerator,
        Self::CpuAllowed,
        Self::MemoryAllowed,
    ];

    /// Whether it is what an app does, which is forecast: not what it is given, nor what is left over.
    pub(crate) const fn is_demand(self) -> bool {
        !matches!(
            self,
            Self::MemoryAvailable | Self::CpuAllowed | Self::MemoryAllowed
        )
    }

    /// Its name in the file and on the command line.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuStalled => "cpu_stalled",
            Self::Io => "io",
            Self::Memory => "memory",
            Self::MemoryAvailable => "memory_available",
            Self::Received => "received",
            Self::Sent => "sent",
            Self::Requests => "requests",
            Self::ResponseTime => "response_time",
            Self::Accelerator => "accelerator",
            Self::CpuAllowed => "cpu_allowed",
            Self::MemoryAllowed => "memory_allowed",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text is not a resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a resource: use one of {known}", known = Resource::ALL.map(Resource::as_str).join(", "))]
pub(crate) struct ResourceError(String);

impl FromStr for Resource {
    type Err = ResourceError;

    fn from_str(text: &str) -> Result<Self, ResourceError> {
        Self::ALL
            .into_iter()
            .find(|resource| resource.as_str() == text)
            .ok_or_else(|| ResourceError(text.to_owned()))
    }
}

/// Why the history cannot be used. The file is never deleted or replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// It could not be opened.
    #[error(
        "open history {path}: {attempt} failed; see that its directory exists, is writable by the daemon's user and has space"
    )]
    Open {
        path: PathBuf,
        attempt: &'static str,
        source: std::io::Error,
    },
    /// SQLite refused it for another reason than its content.
    #[error(
        "open history {path}: {attempt} failed; see that its directory is writable by the daemon's user, has space and that no other program holds the file"
    )]
    Sqlite {
        path: PathBuf,
        attempt: &'static str,
        source: rusqlite::Error,
    },
    /// It is not a database, or a damaged one.
    #[error(
        "history {path} is damaged or not a database; move it away to start a new one: mv {path} {path}.corrupt"
    )]
    Damaged {
        path: PathBuf,
        source: rusqlite::Error,
    },
    /// It is a database of something else.
    #[error("{path} is a database of another program; configure another path for the history")]
    Foreign { path: PathBuf },
    /// A later release wrote it.
    #[error(
        "history {path} has format {found}, this release reads up to {known}; run the release that wrote it, or move the file away to start a new one"
    )]
    Newer {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    /// A query failed.
    #[error("read {what} from history {path}; try again, and see `forebay doctor` if it persists")]
    Query {
        path: PathBuf,
        what: &'static str,
        source: rusqlite::Error,
    },
    /// The thread could not be started.
    #[error(
        "start the history recorder: the system refused a thread; raise the limit on processes of the daemon's user"
    )]
    Thread { source: std::io::Error },
}

impl StoreError {
    fn sqlite(path: &Path, attempt: &'static str, source: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(NotADatabase | DatabaseCorrupt) => Self::Damaged { path, source },
            _ => Self::Sqlite {
                path,
                attempt,
                source,
            },
        }
    }
}

/// The history file, opened for writing.
#[derive(Debug)]
pub(crate) struct Store {
    db: Connection,
    retention: Retention,
}

impl Store {
    /// Opens the history, creating it or bringing it to this release's format if needed.
    pub(crate) fn open(path: &Path, retention: Retention) -> Result<Self, StoreError> {
        let db = schema::open(path, &retention)?;
        Ok(Self { db, retention })
    }
}

/// A point in time as SQLite's signed integer.
fn signed(unix_ms: u64) -> i64 {
    i64::try_from(unix_ms).unwrap_or(i64::MAX)
}

/// An integer from the file; what a hostile file has below zero becomes zero.
fn unsigned(stored: i64) -> u64 {
    u64::try_from(stored).unwrap_or(0)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
