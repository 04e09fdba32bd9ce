//! `postgres`: sessions of protocol version 3, which live on when their server does not.
//!
//! Guarantee `fast`: a commit that was acknowledged is on the primary, and is lost with it if the
//! standby had not received it yet. Guarantee `strict`: a commit that was acknowledged while a
//! standby was ready to take over is on the standby, too.
//!
//! Each client has a connection of its own to the primary and, once it has logged in, one to the
//! standby that is logged in as well. Who logs in proves that to the server, through the front.
//! [`session`] has the rest:
//!
//! - outside a transaction, a client notices nothing; what it set, prepared and listens to is
//!   [`state`], which the front asks the server for whenever a text may have changed it;
//! - in a transaction, it gets an error (40001), and the session is in a failed transaction as after
//!   any other error;
//! - a query that only reads is sent again; a COMMIT without an answer gets the answer that the
//!   status of its transaction gives; whatever else is in doubt is said to be (08007);
//! - a session that holds what cannot be carried over (temporary tables, cursors WITH HOLD, advisory
//!   locks) ends with an error that names it (57P01).
//!
//! What is not carried over without being noticed: the seed of `random()`, and notifications sent
//! between the loss and the moment the session listens again. `currval` and `lastval` raise the
//! server's own error until the sequence is used again. What functions, views and triggers of a
//! user do is not in a text: what they set is asked for only when a text gives another reason to,
//! and a query that reads a view whose functions write may be sent again.

mod account;
mod cancel;
mod client;
mod encryption;
mod frame;
#[cfg(fuzzing)]
pub mod fuzzing;
mod heed;
mod login;
mod moving;
mod native;
mod outcome;
mod parameters;
mod relay;
mod request;
mod scram;
mod session;
mod sql;
pub mod standby;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::flights;
use crate::secret::Secret;
use crate::stream::Stream;
use crate::switchboard::Switchboard;
use crate::synchronise::Synchroniser;
use crate::tls::{self, Tls};

use cancel::Cancels;
use native::Native;

/// Logins to standbys at the same time.
const LOGINS_MAX: usize = 16;

/// What an acknowledged commit is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// It is on the primary.
    #[default]
    Fast,
    /// It is on the standby, too, whenever one is ready.
    Strict,
}

/// What the mode has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Who the front is to the servers: a superuser, for it promotes, and reads `pg_authid`.
    pub user: String,
    /// Its password, where hosts are not trusted.
    #[serde(default)]
    pub password: Option<Secret>,
    /// The database that it connects to.
    #[serde(default = "postgres")]
    pub database: String,
    /// What an acknowledged commit is worth.
    #[serde(default)]
    pub guarantee: Guarantee,
    /// How far a standby may be behind and still take over, in bytes of the log.
    #[serde(default = "lag_bytes_max")]
    pub lag_bytes_max: u64,
    /// The command, with its arguments, that makes an instance a standby of the primary and starts
    /// it. It finds both in `FOREBAY_APP`, `FOREBAY_ADDRESS`, `FOREBAY_PRIMARY` and
    /// `FOREBAY_PRIMARY_ADDRESS`. Without one, that is left to others.
    #[serde(default)]
    pub rebuild: Vec<String>,
    /// How long an instance may be away before it is rebuilt, in milliseconds.
    #[serde(default = "rebuild_after_ms")]
    pub rebuild_after_ms: u64,
    /// Where the data of instances are that Forebay itself makes standbys, by app. For these no
    /// `rebuild` is run: whoever begins their servers makes them follow first ([`standby`]).
    #[serde(default)]
    pub data: BTreeMap<String, PathBuf>,
    /// The directory with PostgreSQL's programs.
    #[serde(default)]
    pub programs: PathBuf,
    /// Passwords of users whose logins the front cannot repeat otherwise: those with MD5.
    #[serde(default)]
    pub passwords: BTreeMap<String, Secret>,
    /// TLS with clients that ask for it, over TCP: as with a server, nobody asks on a Unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<tls::Options>,
}

impl Options {
    /// For a user, and what is usual otherwise.
    #[must_use]
    pub fn new(user: String) -> Self {
        Self {
            user,
            password: None,
            database: postgres(),
            guarantee: Guarantee::default(),
            lag_bytes_max: lag_bytes_max(),
            rebuild: Vec::new(),
            rebuild_after_ms: rebuild_after_ms(),
            data: BTreeMap::new(),
            programs: PathBuf::new(),
            passwords: BTreeMap::new(),
            tls: None,
        }
    }
}

fn postgres() -> String {
    "postgres".to_owned()
}

const fn lag_bytes_max() -> u64 {
    16 * 1024 * 1024
}

const fn rebuild_after_ms() -> u64 {
    2000
}

/// What all sessions of a front share.
#[derive(Debug)]
pub(crate) struct Shared {
    native: Arc<Native>,
    cancels: Cancels,
    logins: Arc<Semaphore>,
    board: Arc<Switchboard>,
    routes: Routes,
    tls: Option<Tls>,
}

/// Requests whose answers take alike.
#[derive(Debug, Clone, Copy)]
struct Routes {
    reads: usize,
    writes: usize,
    ends: usize,
    batches: usize,
    /// Those of the front itself.
    own: usize,
}

impl Shared {
    /// # Errors
    /// When the options do not fit together, or the certificate for TLS cannot be used.
    pub(crate) fn new(options: &Options, board: &Arc<Switchboard>) -> io::Result<Self> {
        if options.guarantee == Guarantee::Strict && board.instances().len() > 2 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "`strict` is for a primary and one standby; leave out the other instances, or use `fast`",
            ));
        }
        let route = |name| board.flights.route(name);
        let tls = options.tls.as_ref();
        Ok(Self {
            tls: tls
                .map(|tls| Tls::new(tls, &encryption::PROTOCOLS, board))
                .transpose()?,
            native: Arc::new(Native::new(options.clone(), Arc::clone(board))),
            cancels: Cancels::default(),
            logins: Arc::new(Semaphore::new(LOGINS_MAX)),
            board: Arc::clone(board),
            routes: Routes {
                reads: route("read"),
                writes: route("write"),
                ends: route("end"),
                batches: route("batch"),
                own: route(flights::OWN),
            },
        })
    }

    pub(crate) const fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// What a client gets that asks for it, where that is TLS.
    pub(crate) fn offers_tls(&self, client: &Stream) -> Option<&Tls> {
        let tls = self.tls.as_ref()?;
        (matches!(client, Stream::Tcp(_)) && tls.is_spoken(client)).then_some(tls)
    }

    pub(crate) fn synchroniser(&self) -> Arc<dyn Synchroniser> {
        Arc::<Native>::clone(&self.native)
    }
}

/// Serves one client until it ends its session.
///
/// # Errors
/// When a connection broke that could not be replaced, or the client does not speak the protocol.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    client: Stream,
    patience: Duration,
) -> io::Result<()> {
    let Some(begun) = login::begin(shared, client, patience).await? else {
        return Ok(());
    };
    session::run(shared, begun, patience).await
}
