//! A front: its listening sockets, its connections, its director.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::control::{Answer, Counts, Line, PATIENCE, Request};
use crate::director::{Director, Order, Parts};
use crate::epoch::EpochFile;
use crate::fence::Fence;
use crate::postgres;
use crate::status::Status;
use crate::stream::{Address, Stream};
use crate::switchboard::{Counters, Instance, Switchboard, count};
use crate::synchronise::{Standby, Synchroniser};
use crate::tcp;

/// What a front speaks with its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Bytes.
    Tcp,
    /// Protocol version 3 of PostgreSQL; needs [`Plan::postgres`].
    Postgres,
}

/// Everything that a front has to know; written by the daemon, read when the front begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// What it speaks.
    pub mode: Mode,
    /// Where clients connect.
    pub listen: Vec<Address>,
    /// Who serves; the first one does at the very beginning.
    pub instances: Vec<Instance>,
    /// Connections at the same time.
    pub connections_max: usize,
    /// How long a request may wait for somebody to serve it, in milliseconds.
    pub patience_ms: u64,
    /// The socket on which the daemon asks.
    pub control: PathBuf,
    /// Where epochs are kept.
    pub epoch_file: PathBuf,
    /// What [`Mode::Postgres`] has to know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<postgres::Options>,
}

/// Why a front does not run.
#[derive(Debug, thiserror::Error)]
#[error("{attempt} {object}: {source}; {remedy}")]
pub struct Error {
    attempt: &'static str,
    object: String,
    remedy: &'static str,
    source: io::Error,
}

fn failed(
    attempt: &'static str,
    object: impl ToString,
    remedy: &'static str,
) -> impl FnOnce(io::Error) -> Error {
    let object = object.to_string();
    move |source| Error {
        attempt,
        object,
        remedy,
        source,
    }
}

/// Connections that wait for being accepted; the kernel has a limit of its own.
const BACKLOG: u32 = 4096;
/// Orders that wait for the director.
const ORDERS_MAX: usize = 16;
/// Conversations with the daemon and its clients at the same time.
const CONTROLS_MAX: usize = 16;

/// Serves until the process ends.
///
/// # Errors
/// When it cannot listen, or cannot keep its epochs.
pub async fn run(plan: &Plan) -> Result<(), Error> {
    let epochs = EpochFile::open(&plan.epoch_file).map_err(failed(
        "open",
        plan.epoch_file.display(),
        "the front's user needs to write there",
    ))?;
    let latest = epochs.latest().map_err(failed(
        "read",
        plan.epoch_file.display(),
        "the front's user needs to read it",
    ))?;
    let known = latest.filter(|latest| latest.primary < plan.instances.len());
    let (primary, epoch) = known.map_or((0, 0), |latest| (latest.primary, latest.epoch));
    let board = Arc::new(Switchboard::new(plan.instances.clone(), primary, epoch));
    let (protocol, synchroniser) = protocol(plan, &board)?;
    let (orders, obeyed) = mpsc::channel(ORDERS_MAX);
    let (status, told) = watch::channel(Status::default());
    let mut listeners = Vec::new();
    for address in &plan.listen {
        listeners.push(Listener::bind(address)?);
    }
    let control = bind_unix(&plan.control, 0o600)?;
    let director = Director::new(Parts {
        board: Arc::clone(&board),
        synchroniser,
        epochs,
        orders: obeyed,
        status,
    });
    tokio::spawn(director.run());
    let room = Arc::new(Semaphore::new(plan.connections_max));
    for listener in listeners {
        let served = Served {
            board: Arc::clone(&board),
            room: Arc::clone(&room),
            protocol: protocol.clone(),
            patience: Duration::from_millis(plan.patience_ms),
        };
        tokio::spawn(accept(listener, served));
    }
    let controls = Arc::new(Semaphore::new(CONTROLS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&controls).acquire_owned().await else {
            return Ok(());
        };
        let (stream, _) = control.accept().await.map_err(failed(
            "accept on",
            plan.control.display(),
            "raise the limit on open files",
        ))?;
        let (board, orders, told) = (Arc::clone(&board), orders.clone(), told.clone());
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &board, &orders, told).await {
                tracing::warn!(%error, "a conversation with the daemon ended");
            }
            drop(place);
        });
    }
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn bind(address: &Address) -> Result<Self, Error> {
        const REMEDY: &str = "stop whoever listens there, or choose another address; a port below \
                              1024 needs privilege";
        match address {
            Address::Tcp(socket) => {
                let bound = || {
                    let listener = if socket.is_ipv4() {
                        TcpSocket::new_v4()?
                    } else {
                        TcpSocket::new_v6()?
                    };
                    listener.set_reuseaddr(true)?;
                    listener.bind(*socket)?;
                    listener.listen(BACKLOG)
                };
                bound()
                    .map(Self::Tcp)
                    .map_err(failed("listen on", address, REMEDY))
            }
            Address::Unix(path) => bind_unix(path, 0o666).map(Self::Unix),
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

/// Listens on a Unix socket, in place of one that nobody listens on any more.
fn bind_unix(path: &Path, mode: u32) -> Result<UnixListener, Error> {
    const REMEDY: &str = "stop whoever listens there, or choose another path";
    let failed = |error| failed("listen on", path.display(), REMEDY)(error);
    if std::os::unix::net::UnixStream::connect(path)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    {
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    Ok(listener)
}

/// What every connection of a front has.
#[derive(Debug, Clone)]
struct Served {
    board: Arc<Switchboard>,
    room: Arc<Semaphore>,
    protocol: Protocol,
    patience: Duration,
}

/// What the connections of a front have in common, by what they speak.
#[derive(Debug, Clone)]
enum Protocol {
    Tcp,
    Postgres(Arc<postgres::Shared>),
}

fn protocol(
    plan: &Plan,
    board: &Arc<Switchboard>,
) -> Result<(Protocol, Arc<dyn Synchroniser>), Error> {
    match plan.mode {
        Mode::Tcp => Ok((Protocol::Tcp, Arc::new(Standby))),
        Mode::Postgres => {
            const REMEDY: &str = "give the front's user to PostgreSQL in `postgres`";
            let failed = failed("prepare", &plan.name, REMEDY);
            let options = plan.postgres.as_ref();
            let shared = options
                .ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidInput, "no `postgres` is given")
                })
                .and_then(|options| postgres::Shared::new(options, board))
                .map_err(failed)?;
            let synchroniser = shared.synchroniser();
            Ok((Protocol::Postgres(Arc::new(shared)), synchroniser))
        }
    }
}

/// How long a front that may open no more files waits before it accepts again.
const BREATH: Duration = Duration::from_millis(10);

async fn accept(listener: Listener, served: Served) {
    loop {
        let client = match listener.accept().await {
            Ok(client) => client,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&served.room).try_acquire_owned() else {
            count(&served.board.counters.refused);
            continue;
        };
        count(&served.board.counters.connections);
        let served = served.clone();
        tokio::spawn(async move {
            let ended = match &served.protocol {
                Protocol::Tcp => tcp::serve(&served.board, client, served.patience).await,
                Protocol::Postgres(shared) => {
                    postgres::serve(shared, client, served.patience).await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        });
    }
}

/// How long a question after a change is left open.
const STATUS_BOUND: Duration = Duration::from_secs(5);

async fn converse(
    stream: UnixStream,
    board: &Switchboard,
    orders: &mpsc::Sender<Order>,
    mut told: watch::Receiver<Status>,
) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {uid} may not ask this front"),
        ));
    }
    let mut line = Line::new(stream);
    while let Some((request, descriptors)) = line.receive::<Request>().await? {
        let answer = match request {
            Request::Joined { slot, pid, fence } => {
                let fence = fence.map(|hierarchy| Fence::new(hierarchy, descriptors));
                let fence = fence.transpose()?;
                let (reply, joined) = oneshot::channel();
                let order = Order::Joined {
                    slot,
                    pid,
                    fence,
                    reply,
                };
                match ordered(orders, order, joined).await {
                    Ok(()) => Answer::Done,
                    Err(why) => Answer::Refused(why),
                }
            }
            Request::HandOver => {
                let (reply, done) = oneshot::channel();
                match ordered(orders, Order::HandOver(reply), done).await {
                    Ok(transition) => Answer::Changed(transition),
                    Err(why) => Answer::Refused(why),
                }
            }
            Request::Status { known } => {
                let known = known.map(|known| *known);
                let changed = told.wait_for(|status| known.as_ref() != Some(status));
                let status = match tokio::time::timeout(STATUS_BOUND, changed).await {
                    Ok(Ok(status)) => Some(status.clone()),
                    Ok(Err(_)) | Err(_) => None,
                };
                let status = status.unwrap_or_else(|| told.borrow().clone());
                Answer::Status(Box::new(status))
            }
            Request::Counters => Answer::Counters(counts(&board.counters)),
        };
        tokio::time::timeout(PATIENCE, line.send(&answer, &[])).await??;
    }
    Ok(())
}

async fn ordered<T>(
    orders: &mpsc::Sender<Order>,
    order: Order,
    reply: oneshot::Receiver<Result<T, String>>,
) -> Result<T, String> {
    const GONE: &str = "the front is ending";
    orders.send(order).await.map_err(|_| GONE.to_owned())?;
    reply.await.map_err(|_| GONE.to_owned())?
}

fn counts(counters: &Counters) -> Counts {
    let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    Counts {
        connections: of(&counters.connections),
        refused: of(&counters.refused),
        requests: of(&counters.requests),
        held: of(&counters.held),
        replayed: of(&counters.replayed),
        failed: of(&counters.failed),
        unknown: of(&counters.unknown),
    }
}
