//! Tiered directories: hot files on a fast file system, the others on a slow one, under one
//! directory that the application sees.
//!
//! # Mechanism
//!
//! The directory is a real one, on the slow file system. A file of the slow tier is an
//! ordinary file in it. A file of the fast tier is a symbolic link to a copy in
//! `FAST/files`, under a name that nobody can guess. Moving a file exchanges one for the
//! other by one `renameat2(RENAME_EXCHANGE)`, so that the name resolves at every instant.
//!
//! Why not an overlay: changing a layer below a mounted one is undefined. Why no bind mount
//! over each file: a mount point cannot be renamed or removed. Why no file system of our own:
//! the application would lose its files with our process. What links cost: `lstat` shows them,
//! `O_NOFOLLOW` refuses them, and a tool that copies links as links copies no content; `drain`
//! makes all files ordinary again.
//!
//! # What is where
//!
//! ```text
//! SLOW/tier       which tier this is; locked by the process that moves files
//! SLOW/moves/ID   the move under way: which file, how far
//! SLOW/stage/ID   the other half of an exchange
//! SLOW/links/ID   a hard link to the symbolic link of a promoted file
//! SLOW/kept/ID    content that could not be told to be superseded; for a person to judge
//! FAST/tier       the same identity, so that an unmounted tier is noticed
//! FAST/files/ID   the content of a promoted file
//! ```
//!
//! `links/ID` makes the kernel count the names of a copy: while its link count is 2 or more,
//! some name on the slow file system still leads to the copy, wherever it was renamed to.
//! At 1 the application has removed it, and the copy is superfluous.
//!
//! # A move
//!
//! 1. Record the move (`copy`) and copy the content, beside whoever reads the file.
//! 2. Take a write lease: granted only while nobody else has the file open. Whoever opens it
//!    from now on waits until the lease is given back, at most one chunk of comparing later.
//!    Set owner, mode, attributes and times, sync, and compare all of it: what was changed
//!    while it was copied, through mapped memory too, shows now and cannot change any more.
//! 3. Record what will be exchanged (`swap`), exchange, and look at what came out. If
//!    it is not the file that was copied, the application renamed another one there: put back.
//! 4. Hold both leases a little longer: somebody may have looked the name up before the exchange
//!    and open only now. If so, put back.
//! 5. Sync the directory, remove the old content, remove the record.
//!
//! Every durable step can be told from `moves`, `stage`, `links` and `files`, and
//! [`Tier::open`] ends or undoes what a killed process left, before anything else.

mod brake;
mod copy;
mod layout;
mod lease;
mod moving;
mod record;
mod recover;
mod scan;
mod watch;

use std::path::PathBuf;

pub use brake::Brake;
pub use forebay_core::tier::Place;
pub use layout::Tier;
pub use lease::idle_priority;
pub use recover::Recovered;
pub use scan::{Entry, Scan};
pub use watch::{FileKey, Sampler, Touches, Watch};

/// Which directory is tiered, and where its content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierPlace {
    /// Its name, for messages.
    pub name: String,
    /// What the application sees.
    pub directory: PathBuf,
    /// A directory of ours on the fast file system.
    pub fast: PathBuf,
    /// A directory of ours on the file system of `directory`, outside of it.
    pub slow: PathBuf,
    /// The most bytes on the fast file system.
    pub fast_size_max: u64,
    /// The most bytes moved in a second; none is without bound.
    pub bandwidth_max: Option<u64>,
    /// Whether promoted files may be lost with the memory of the host: tmpfs is then allowed.
    pub volatile: bool,
}

/// How a move ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// The file is on the other tier.
    Done {
        /// Its size.
        bytes: u64,
    },
    /// The file is as it was.
    Left(Left),
}

/// Why a file was left where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// Somebody has it open, or had for too long.
    Open,
    /// Somebody opened or changed it while it was copied.
    Wanted,
    /// It is there already.
    AlreadyThere,
    /// It is gone, or another one has its name.
    Gone,
    /// It lies elsewhere, or behind another mount.
    Outside,
    /// It is no regular file.
    NotRegular,
    /// It has several names, which would come apart.
    SeveralNames,
    /// It is immutable, append-only, encrypted or sealed.
    Flags,
    /// The target has no room for it.
    Full,
    /// Its copy reads as another.
    Differs,
    /// Whoever moves was told to stop.
    Stopped,
    /// The target cannot hold one of its attributes.
    Attribute(String),
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open => f.write_str("a process holds it open"),
            Self::Wanted => f.write_str("it was opened or changed while it was copied"),
            Self::AlreadyThere => f.write_str("it is on that tier already"),
            Self::Gone => f.write_str("it is gone or was replaced"),
            Self::Outside => f.write_str("it lies outside of the directory"),
            Self::NotRegular => f.write_str("it is no regular file"),
            Self::SeveralNames => f.write_str("it has several names"),
            Self::Flags => f.write_str("it is immutable, append-only, encrypted or sealed"),
            Self::Full => f.write_str("the tier has no room for it"),
            Self::Differs => f.write_str(
                "its copy reads as another: it was changed through mapped memory meanwhile, or the target's medium fails",
            ),
            Self::Stopped => f.write_str("the mover was told to stop"),
            Self::Attribute(name) => write!(f, "the tier cannot hold its attribute {name}"),
        }
    }
}
