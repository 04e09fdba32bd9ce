//! The way `checkpoint`: the process goes along with its memory.
//!
//! ```text
//!   source                                    target
//!   check    Survey ── requires ────────────▶ fits      what is there for it
//!   copy     Tracker::round ── memory ──────▶ take      a porter has it; the process runs
//!   freeze   CRIU holds it, then its group
//!   send     Tracker::last ── memory ───────▶ take
//!            CRIU's images ── images ───────▶ take
//!            prepare ───────────────────────▶ prepare   it stands at both
//!            {source, n} ─▶ {target, n + 1}
//!                                             start     the ledger names it, and it goes on
//!   end      its group is ended
//! ```
//!
//! With post-copy the rounds are one or two, `send` says which pages they left (`owed`), and between `start` and `end`
//! the one that stands at the source lends them:
//!
//! ```text
//!            Tracker::owe ── owed ──────────▶ take      what came of them is forgotten
//!   lend     lend::read ◀── Lend { pages } ── porter    from `prepare` on; for whoever waits first, then all others
//!            ── Owed ───────────────────────▶ owes      until nothing is needed
//! ```
//!
//! Why this order is sound:
//!
//! - Before the record is changed the source holds it by its group, which the ledger of its host knows, and CRIU
//!   only beside that: if the daemon ends, CRIU lets it go, and the group alone says whether it goes on.
//! - The copy at the target needs no daemon: it is a stopped process in the slice of its app, with a porter beside it
//!   that fills its memory in. Who it is is on disk before the source hears that it is prepared.
//! - It goes on only after the ledger there names it as the app's program: a daemon that ends at any moment
//!   after that is followed by one that finds it, and starts no other.
//! - The source's copy is ended only after the record says that the target's runs, and, where it lends, after the
//!   target said that nothing more is needed: its memory is whole there, or lost with its process. Nothing lets it go
//!   on meanwhile: by its record and its mark it is the target's.
//! - Whoever lends is on disk from before `prepare` until it is let go: a daemon that begins anew lends on.
//!
//! Its address, where it has one:
//!
//! ```text
//!   source                                    target
//!   freeze   CRIU locks its connections; it stands; the address goes, what is left of it is quiet
//!            prepare ───────────────────────▶ prepare   the address is there, quiet; the process is made
//!            {source, n} ─▶ {target, n + 1}
//!                                             start     it answers, and is announced; the process goes on
//!   end      its connections are disowned, and it is ended: nobody hears of it
//! ```
//!
//! - Until the record is changed nothing leaves the target for these connections, and nothing comes to it: its kernel
//!   would acknowledge, or say again, what the source's does not know of when the move is given up.
//! - The source answers again when the process goes on there, and by then the record cannot be changed any more. What
//!   is still on the target then is quiet, whoever lives there.

pub(in crate::fleet::moves) mod comes;
pub(in crate::fleet::moves) mod leaves;
pub(crate) mod lending;
mod parcels;
mod weigh;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use forebay_core::app::AppId;
use forebay_core::fleet::mobility::{Connections, Memory, ServiceAddress};
use forebay_host::checkpoint::{self, Criu, Side, Tcp};

pub(in crate::fleet::moves) use self::lending::{attend_owed, forget_owed, lend, owes};
use crate::fleet::moves::Ground;

/// Kinds of contents.
const MEMORY: &str = "memory";
const IMAGES: &str = "images";
/// Which pages are to come once it goes on.
const OWED: &str = "owed";
/// What a target has to have: room and all else for a process that was looked at.
const SURVEY: &str = "checkpoint";
/// And the same that becomes of connections.
const CONNECTIONS: &str = "connections";
/// And that it can fetch memory afterwards.
const LENDS: &str = "memory";

/// What becomes of connections, where they are at its own address or at others'.
const fn tcp(connections: Connections, address: Option<&ServiceAddress>) -> Tcp {
    match (connections, address) {
        (Connections::Close, _) => Tcp::Close,
        (Connections::Refuse, Some(_)) => Tcp::Keep,
        (Connections::Refuse, None) => Tcp::Refuse,
    }
}

/// As the configuration has it.
const fn word(connections: Connections) -> &'static str {
    match connections {
        Connections::Refuse => "refuse",
        Connections::Close => "close",
    }
}

/// What has to be the same of them on the target.
pub(super) fn connections(connections: Connections) -> String {
    format!("{CONNECTIONS}:{}", word(connections))
}

/// As the configuration has it.
const fn memory_word(memory: Memory) -> &'static str {
    match memory {
        Memory::PreCopy => "pre-copy",
        Memory::PostCopy => "post-copy",
    }
}

/// What a target has to know of where memory comes after it; none where all of it comes before, as with releases that
/// know nothing of that.
pub(super) fn memory(memory: Memory) -> Option<String> {
    (memory == Memory::PostCopy).then(|| format!("{LENDS}:{}", memory_word(memory)))
}

/// Whether processes can be taken in with their memory.
///
/// # Errors
/// Why not, and what to do.
pub(in crate::fleet::moves) fn can_land(ground: Option<&Ground>) -> Result<(), String> {
    let ground = ground.ok_or("processes do not come to the target")?;
    criu(ground)
        .map(|_| ())
        .map_err(|why| format!("on the target: {why}"))
}

fn criu(ground: &Ground) -> Result<Criu, String> {
    Criu::find(ground.criu.as_deref()).map_err(|error| error.explain())
}

/// Where images of an app are, on their way from or to this host.
fn place(ground: &Ground, app: &AppId, side: Side) -> PathBuf {
    checkpoint::moved(&ground.state_dir, app, side)
}

/// Makes a directory anew, for nobody but root.
fn clear(dir: &Path) -> Result<(), String> {
    remove(dir)?;
    let made = DirBuilder::new().mode(0o700).recursive(true).create(dir);
    made.map_err(|error| format!("make {}: {error}; check the disk", dir.display()))
}

fn remove(dir: &Path) -> Result<(), String> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}; check the disk", dir.display()))
        }
        _ => Ok(()),
    }
}
