//! Images of running programs, and programs begun anew from them.
//!
//! # Problem
//!
//! A program that keeps its state in memory and replicates it to nobody begins with nothing after
//! it was lost. An image of it, taken now and then, lets it begin with what it had.
//!
//! # Approach
//!
//! CRIU does it, by its command line, which it keeps stable. A program is frozen while its memory
//! is copied, goes on, and notices nothing but the pause; its connections are not part of the image
//! (`--tcp-close`): a client that was served after it would not agree with it on what was said. It
//! is begun anew under its old process number, in the groups of its app, as a child of the daemon.
//!
//! ```text
//! images/APP/8/           whole: made as 8.part, synced, and renamed
//! images/APP/9.part/      being taken; whoever takes the next one removes it
//! images/APP/restored     what became of the last restore, for whoever tells of it
//! images/APP/failed       why the last one failed
//! ```
//!
//! # Properties
//!
//! - An image is whole or not there, and the newest whole one goes only after a newer one is whole.
//! - No image is taken where there is no room for twice what the program has in memory.
//! - An image is used for the command that it was taken of, and in the boot that it was taken in, or, where it
//!   was kept for that (`over_boot`) and is as it was written (`compare`), in the one after it. One whose program dies
//!   within [`TRIAL`] is not used again.
//!
//! # Moves
//!
//! A program that moves to another host goes on where it stopped, with its memory and its connections:
//!
//! ```text
//!   source                                       target
//!   preflight::Survey  <── preflight::Place ───  what is there for it
//!   Tracker::rounds    ─── runs of pages ─────>  Assembly::take        it runs
//!   Held::freeze                                                       it stands still
//!   Tracker::last      ─── runs of pages ─────>  Assembly::take
//!                      ─── CRIU's images ─────>  Landed::prepare       two copies, both still
//!   Held::end, or thaw <── who owns it ───────>  Landed::start, or discard
//! ```
//!
//! Where memory may come after it (post-copy), the rounds are few, what they left is named instead of sent
//! ([`Tracker::owe`]), and is fetched by whoever fills the memory in ([`owed`]) of the process that stands still
//! ([`lend`]), which is ended only when nobody needs it any more ([`owes`]).
//!
//! Source: CRIU's manual, criu(8).

mod assemble;
mod begin;
pub mod boot_survey;
mod compare;
pub(crate) mod criu;
mod fill;
mod glance;
mod guard;
mod hold;
mod land;
pub mod lend;
mod message;
mod over_boot;
mod owed;
pub mod owes;
pub mod pack;
mod pagemap;
mod pages;
pub mod porter;
mod precopy;
pub mod preflight;
mod release;
pub mod runs;
mod statistics;
mod store;

use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_core::app::AppId;

pub use assemble::Assembly;
pub(crate) use begin::Restoring;
pub(crate) use compare::Comparing;
pub use criu::{Criu, Taken, Tcp};
pub use fill::Filled;
pub use glance::glance;
pub use hold::{Freezing, Held, Orphaned, disown_connections, let_go, take_back};
pub use land::{Landed, Landing};
pub(crate) use over_boot::raise_numbers;
pub use over_boot::{Kept, Origin};
pub use owed::{LOST_AFTER, Lender, Line};
pub use precopy::Tracker;
pub(crate) use precopy::probe as probe_tracking;
pub(crate) use store::is_restore;
pub use store::{Image, Note, Store};

/// A program that was begun from an image has to live so long for the image to be used again.
pub const TRIAL: Duration = Duration::from_secs(10);

/// On which side of a move a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The process is here.
    Leaves,
    /// It is to be here.
    Comes,
}

/// Where images of an app that moves between hosts are: for the daemon, and for whoever puts back what it left.
#[must_use]
pub fn moved(state_dir: &Path, app: &AppId, side: Side) -> PathBuf {
    let side = match side {
        Side::Leaves => "leaves",
        Side::Comes => "comes",
    };
    state_dir.join("moves").join(format!("{app}.{side}"))
}
