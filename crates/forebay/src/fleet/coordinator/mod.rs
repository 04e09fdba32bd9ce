//! What hosts of a fleet share: who is there, who owns which application, what was asked of whom.
//!
//! Problem: hosts fail, networks part and replies are lost, and still no two hosts may believe that
//! they own one application, nor may a host go on running what others were allowed to take over.
//!
//! Approach: a [`Coordinator`] keeps a handful of keys, each of which changes as a whole or not at
//! all. [`etcd::Etcd`] shares them between hosts; [`local::Local`] keeps them in the state directory
//! of a host that is alone, so that one host runs the same code.
//!
//! ```text
//!   PREFIX/hosts/HOST            a Member, bound to its host's lease: gone when that has ended
//!   PREFIX/apps/APP              an Ownership
//!   PREFIX/commands/HOST/ID      a Command, kept until its host has completed it
//!   PREFIX/completed/HOST/ID     a Completed, for whoever asked; gone after `COMPLETED_TTL`
//!   PREFIX/rolling               a Rolling: who may be away, and the rolling update
//! ```
//!
//! Properties, which the contract in `tests.rs` holds both to: of two changes that were made of one
//! record, one takes effect; whatever could not be found out is [`Outcome::Unknown`], never a guess;
//! every request ends within [`REQUEST_MAX`]; whoever watches sees the latest state again after any
//! loss of the connection, and a command until it is completed.
//!
//! Every call blocks, for [`REQUEST_MAX`] at most: call from a thread of your own, or from
//! `spawn_blocking`, not from the daemon's main thread.

#![cfg_attr(
    not(test),
    expect(dead_code, reason = "nobody forgets in the product yet, and tests do")
)]

#[cfg(feature = "etcd")]
pub(crate) mod etcd;
pub(crate) mod local;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::fleet::choice::Offer;
use forebay_core::fleet::rolling::Rolling;
use forebay_core::fleet::tenure::Lease;
use forebay_core::fleet::{Epoch, HostName, Outcome, Ownership};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// No request takes longer; what it asked for is `Unknown` then.
#[cfg_attr(
    all(test, not(feature = "etcd")),
    expect(dead_code, reason = "files answer at once")
)]
pub(crate) const REQUEST_MAX: Duration = Duration::from_secs(3);
/// Commands that may wait for one host.
pub(crate) const COMMANDS_MAX: usize = 64;
/// How long it can be asked how a command ended.
pub(crate) const COMPLETED_TTL: Duration = Duration::from_secs(600);
/// The longest value that is read or written; a longer one is a mistake of somebody else.
#[cfg(feature = "etcd")]
pub(crate) const VALUE_MAX: usize = 256 * 1024;

/// A clock that goes on while the host is suspended (`CLOCK_BOOTTIME`), from the boot on: the one
/// that leases are told by.
pub(crate) fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither is negative: the kernel counts from the boot on.
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// Keeps what hosts share. See the module for what it promises.
pub(crate) trait Coordinator: fmt::Debug + Send + Sync {
    /// What it is and where, for messages: `etcd at https://a:2379`.
    fn place(&self) -> &str;

    /// Makes this host a member, with a lease of so long, and publishes it.
    ///
    /// # Errors
    /// It cannot be reached, or another agent is a member under this name.
    fn join(&self, member: &Member, ttl: Duration) -> Result<Held, Error>;

    /// Makes the lease begin anew. None: this host is no member by it any more, since it has ended,
    /// or the member was removed or joined under another lease: others go by the member alone.
    ///
    /// # Errors
    /// It cannot be reached; the lease stands for as long as it did.
    fn renew(&self, held: &Held) -> Result<Option<Held>, Error>;

    /// Publishes what changed of a member, for as long as the lease stands.
    ///
    /// # Errors
    /// It cannot be reached, or the lease has ended.
    fn publish(&self, held: &Held, member: &Member) -> Result<(), Error>;

    /// Ends the lease: others see at once that this host is gone.
    ///
    /// # Errors
    /// It cannot be reached; the lease ends by itself.
    fn leave(&self, held: &Held) -> Result<(), Error>;

    /// The members now.
    ///
    /// # Errors
    /// It cannot be reached.
    fn hosts(&self) -> Result<Members, Error>;

    /// Whose an application is; none where nobody ever said.
    ///
    /// # Errors
    /// It cannot be reached, or the record cannot be read.
    fn record(&self, app: &AppId) -> Result<Option<Ownership>, Error>;

    /// Whose all are, and at which revision that is ([`View::revision`]). Those that cannot be read
    /// are left out, with a warning: each concerns its application alone.
    ///
    /// # Errors
    /// It cannot be reached.
    fn records(&self) -> Result<(i64, Records), Error>;

    /// Makes the first record of an application.
    ///
    /// # Errors
    /// There is one already, or it is not known ([`Error::outcome`]).
    fn create(&self, app: &AppId, record: &Ownership) -> Result<(), Error>;

    /// Changes a record, if it has this epoch, in one transaction. Where the answer was lost this
    /// says so and asks no second time: the transaction may still take effect, until the record was
    /// changed by another ([`Ownership::recalled`]).
    ///
    /// # Errors
    /// It has another epoch, or it is not known ([`Error::outcome`]).
    fn change(&self, app: &AppId, epoch: Epoch, to: &Ownership) -> Result<(), Error>;

    /// Like `change`, for whoever is not the owner: only if the owner is no member, which the same
    /// transaction looks at.
    ///
    /// # Errors
    /// Like `change`, or the owner is a member.
    fn take_over(&self, app: &AppId, from: &Ownership, to: &Ownership) -> Result<(), Error>;

    /// Removes the record of an application that is nobody's any more, if it has this epoch.
    ///
    /// # Errors
    /// It has another epoch, or it is not known ([`Error::outcome`]).
    fn forget(&self, app: &AppId, epoch: Epoch) -> Result<(), Error>;

    /// All records and the commands for a host, from now on until the receiver is dropped. It always
    /// holds the latest that was heard, so that nothing queues up, and what was missed while the
    /// connection was lost is read again.
    fn watch(&self, host: &HostName) -> watch::Receiver<View>;

    /// Asks a host for something.
    ///
    /// # Errors
    /// So many wait for it already, or it cannot be reached.
    fn post(&self, host: &HostName, command: &Command) -> Result<CommandId, Error>;

    /// Says how a command ended that was for this host, which then hears no more of it.
    ///
    /// # Errors
    /// It cannot be reached; the host hears of the command again.
    fn complete(&self, host: &HostName, id: &CommandId, how: &Completed) -> Result<(), Error>;

    /// How a command ended; none while it has not, or longer than [`COMPLETED_TTL`] ago.
    ///
    /// # Errors
    /// It cannot be reached.
    fn completed(&self, host: &HostName, id: &CommandId) -> Result<Option<Completed>, Error>;

    /// Who may be away, and the rolling update; with what [`Coordinator::roll`] knows it by.
    ///
    /// # Errors
    /// It cannot be reached, or what is there cannot be read.
    fn rolling(&self) -> Result<(i64, Rolling), Error>;

    /// Puts another in its place, if nobody did since it was read as `seen`; whether it did.
    ///
    /// # Errors
    /// It cannot be reached; whether it did is not known then ([`Error::outcome`]), until it is read again.
    fn roll(&self, seen: i64, to: &Rolling) -> Result<bool, Error>;
}

/// A lease that this host holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// The coordinator's name for it.
    pub(crate) id: i64,
    /// Who is a member by it.
    pub(crate) host: HostName,
    /// Until when it certainly stands: counted from before the request was sent.
    pub(crate) lease: Lease,
}

/// What a host publishes of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Its name.
    pub(crate) host: HostName,
    /// Tells its agent from another one that took the same name by mistake; the same after a restart.
    pub(crate) agent: String,
    /// Of its Forebay.
    pub(crate) version: String,
    /// Where its agent listens to others, as they reach it: `HOST:PORT`; none where it does not.
    pub(crate) address: Option<String>,
    /// What it has room for.
    pub(crate) offer: Offer,
    /// When this was found, in milliseconds since 1970 by that host's clock: for people only.
    pub(crate) unix_ms: u64,
}

/// Everybody.
pub(crate) type Members = BTreeMap<HostName, Member>;
/// Whose everything is.
pub(crate) type Records = BTreeMap<AppId, Ownership>;

/// Keys of records that cannot be read, and why.
pub(crate) type Unreadable = BTreeMap<String, String>;
/// What was asked of a host, in the order in which it was, whatever clocks said.
pub(crate) type Commands = Vec<(CommandId, Command)>;

/// What whoever watches sees.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct View {
    /// Of the records: those that were read at a greater one are newer. Zero before.
    pub(crate) revision: i64,
    /// Whose everything is; none before that was read once.
    pub(crate) records: Option<Arc<Records>>,
    /// What is not among the records, although it is there.
    pub(crate) unreadable: Arc<Unreadable>,
    /// What was asked of this host and is not completed.
    pub(crate) commands: Arc<Commands>,
    /// Since when nothing can be heard, by [`now`], and why; none while it can.
    pub(crate) lost: Option<(Duration, String)>,
}

/// One command's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct CommandId(String);

impl CommandId {
    /// A new one: the time, then what keeps two of one millisecond apart. Clocks differ, so that it
    /// says nothing of the order.
    fn new() -> Self {
        Self::of(unix_ms())
    }

    /// A new one that sorts behind this one, wherever the clock was set since.
    fn after(last: &Self) -> Self {
        let digits = last.0.split('-').next().unwrap_or_default();
        let last = digits.parse::<u64>().unwrap_or_default();
        Self::of(unix_ms().max(last.saturating_add(1)))
    }

    fn of(ms: u64) -> Self {
        Self(format!("{ms:013}-{:08x}", fastrand::u32(..)))
    }
}

fn unix_ms() -> u64 {
    let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(unix.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

impl std::str::FromStr for CommandId {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a host may be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub(crate) enum Command {
    /// Take no more applications.
    Cordon,
    /// Take them again.
    Uncordon,
    /// Take no more, and give away those that can move.
    Drain,
    /// Give this one away.
    Move {
        /// Which.
        app: AppId,
        /// Where to; where there is most room if none.
        to: Option<HostName>,
    },
    /// Something that a later release knows, or that cannot be read.
    #[serde(other)]
    Other,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cordon => f.write_str("take no more applications"),
            Self::Uncordon => f.write_str("take applications again"),
            Self::Drain => f.write_str("give its applications away"),
            Self::Move { app, to: Some(to) } => write!(f, "give {app} to {to}"),
            Self::Move { app, to: None } => write!(f, "give {app} away"),
            Self::Other => f.write_str("do what this release does not know"),
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub(crate) enum Completed {
    /// It was done.
    Done {
        /// What was done.
        what: String,
    },
    /// It was not.
    Refused {
        /// Why, and what to do.
        why: String,
    },
}

/// Why something was not done, or is not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{attempt} at {place}: {}", kind.why())]
pub(crate) struct Error {
    /// What was attempted, on what: `change who owns web`.
    pub(crate) attempt: String,
    /// [`Coordinator::place`].
    pub(crate) place: String,
    /// How it ended.
    pub(crate) kind: ErrorKind,
}

/// How an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// It is not done, and will not be: what is there instead.
    Refused(String),
    /// It may be done, or be done later.
    Unknown(String),
}

impl ErrorKind {
    fn why(&self) -> &str {
        match self {
            Self::Refused(why) | Self::Unknown(why) => why,
        }
    }
}

impl Error {
    /// Whether it may have been done after all.
    pub(crate) const fn outcome(&self) -> Outcome {
        match self.kind {
            ErrorKind::Refused(_) => Outcome::Refused,
            ErrorKind::Unknown(_) => Outcome::Unknown,
        }
    }
}

/// How something ended, for the machines of a move.
pub(crate) fn outcome(result: &Result<(), Error>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => error.outcome(),
    }
}

/// What is attempted of a rolling update.
const READ_ROLLING: &str = "read how far a rolling update is";
const CHANGE_ROLLING: &str = "change how far a rolling update is";

const LEASE_ENDED: &str = "the lease has ended; join again";

/// Why nobody can be a member under this one's name.
fn taken(other: &Member) -> String {
    let address = other.address.as_deref().unwrap_or("no address");
    format!(
        "another agent is a member as {} ({address}, Forebay {}); give this host another name with \
         fleet.host, or wait until that one's lease has ended",
        other.host, other.version
    )
}

fn exists(found: &Ownership) -> String {
    format!(
        "it is {}'s already, at epoch {}; change that record",
        found.owner, found.epoch
    )
}

fn owner_lives(owner: &HostName) -> String {
    format!("{owner} is a member: it alone gives it away")
}

fn too_many(host: &HostName) -> String {
    format!("{COMMANDS_MAX} commands wait for it already; see whether {host} is there")
}
