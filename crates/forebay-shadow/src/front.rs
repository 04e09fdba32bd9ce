//! A front: its listening sockets, its connections, its director.

use std::io;
use std::net::{self as inet, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::control::{Answer, Counts, Line, PATIENCE, Request};
use crate::director::{Detached, Director, Order, Parts};
use crate::epoch::EpochFile;
use crate::fence::Fence;
use crate::mode::{Mode, Service};
use crate::proxy::{self, Introduction};
use crate::status::{Status, Transition};
use crate::stream::{Address, Stream};
use crate::switchboard::{Counters, Instance, Switchboard, count};

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
    /// The user that the front runs as once everything is open, by name or number.
    pub user: String,
    /// Connections at the same time.
    pub connections_max: usize,
    /// How long a request may wait for somebody to serve it.
    pub patience: Duration,
    /// Silence of the primary that is always allowed.
    pub grace: Duration,
    /// Where the PROXY protocol is spoken.
    #[serde(default, skip_serializing_if = "proxy::Options::is_off")]
    pub proxy: proxy::Options,
    /// The socket on which the daemon asks.
    pub control: PathBuf,
    /// Where epochs are kept.
    pub epoch_file: PathBuf,
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
const BACKLOG: i32 = 4096;
/// Orders that wait for the director.
const ORDERS_MAX: usize = 16;
/// Conversations with the daemon and its clients at the same time.
const CONTROLS_MAX: usize = 16;

/// What a front holds before it gives up the rights that it began with.
#[derive(Debug)]
pub struct Opened {
    plan: Plan,
    epochs: EpochFile,
    listeners: Vec<Listener>,
    control: net::UnixListener,
}

/// Opens everything that a front needs: its sockets and the file of its epochs.
///
/// # Errors
/// When it cannot listen, or cannot keep its epochs.
pub fn open(plan: Plan) -> Result<Opened, Error> {
    let epochs = EpochFile::open(&plan.epoch_file).map_err(failed(
        "open",
        plan.epoch_file.display(),
        "the front needs to write there",
    ))?;
    let listeners = plan.listen.iter().map(Listener::bind);
    Ok(Opened {
        listeners: listeners.collect::<Result<_, _>>()?,
        control: bind_unix(&plan.control, 0o600)?,
        epochs,
        plan,
    })
}

impl Opened {
    /// Serves until the process ends.
    ///
    /// # Errors
    /// When the epochs cannot be read, or the daemon could not be heard any more.
    pub async fn serve(self) -> Result<(), Error> {
        let plan = self.plan;
        let latest = self.epochs.latest().map_err(failed(
            "read",
            plan.epoch_file.display(),
            "the front needs to read it",
        ))?;
        // An epoch is never used twice, whoever the instances are now.
        let epoch = latest.as_ref().map_or(0, |latest| latest.epoch);
        let mut instances = plan.instances.iter();
        let primary = latest
            .and_then(|latest| instances.position(|instance| instance.app == latest.primary))
            .unwrap_or(0);
        let board = Arc::new(Switchboard::new(plan.instances.clone(), primary, epoch));
        let (service, synchroniser) = Service::new(&plan.mode, &board, plan.patience).map_err(
            failed("prepare", &plan.name, "correct what is said of its mode"),
        )?;
        let (orders, obeyed) = mpsc::channel(ORDERS_MAX);
        let (status, told) = watch::channel(Status::default());
        let director = Director::new(Parts {
            board: Arc::clone(&board),
            synchroniser,
            epochs: self.epochs,
            orders: obeyed,
            status,
            grace: plan.grace,
        });
        tokio::spawn(director.run());
        let room = Arc::new(Semaphore::new(plan.connections_max));
        for listener in self.listeners {
            let served = Served {
                board: Arc::clone(&board),
                room: Arc::clone(&room),
                service: service.clone(),
                proxy: plan.proxy,
            };
            tokio::spawn(accept(listener.into_async()?, served));
        }
        let failed = |error| failed("listen on", plan.control.display(), "try again")(error);
        let control = UnixListener::from_std(self.control).map_err(failed)?;
        let controls = Arc::new(Semaphore::new(CONTROLS_MAX));
        // The semaphore is never closed.
        while let Ok(place) = Arc::clone(&controls).acquire_owned().await {
            let stream = match control.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the daemon was not heard");
                    tokio::time::sleep(BREATH).await;
                    continue;
                }
            };
            let (board, orders, told) = (Arc::clone(&board), orders.clone(), told.clone());
            tokio::spawn(async move {
                if let Err(error) = converse(stream, &board, &orders, told).await {
                    tracing::warn!(%error, "a conversation with the daemon ended");
                }
                drop(place);
            });
        }
        Ok(())
    }
}

/// A listening socket that no runtime knows yet.
#[derive(Debug)]
enum Listener {
    Tcp(inet::TcpListener),
    Unix(net::UnixListener),
}

impl Listener {
    fn bind(address: &Address) -> Result<Self, Error> {
        const REMEDY: &str = "stop whoever listens there, or choose another address; a port below \
                              1024 needs privilege";
        match address {
            Address::Tcp(socket) => {
                let bound = bind_tcp(*socket).map(Self::Tcp);
                bound.map_err(failed("listen on", address, REMEDY))
            }
            Address::Unix(path) => bind_unix(path, 0o666).map(Self::Unix),
        }
    }

    fn into_async(self) -> Result<AsyncListener, Error> {
        let listener = match self {
            Self::Tcp(listener) => TcpListener::from_std(listener).map(AsyncListener::Tcp),
            Self::Unix(listener) => UnixListener::from_std(listener).map(AsyncListener::Unix),
        };
        listener.map_err(failed(
            "wait for connections on",
            "a listening socket",
            "raise the limit on open files",
        ))
    }
}

#[derive(Debug)]
enum AsyncListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl AsyncListener {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                Stream::prepared(stream)
            }
            Self::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

/// Listens on TCP; a port whose last connections are still ending can be taken at once.
fn bind_tcp(address: SocketAddr) -> io::Result<inet::TcpListener> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Listens on a Unix socket, in place of one that nobody listens on any more.
fn bind_unix(path: &Path, mode: u32) -> Result<net::UnixListener, Error> {
    const REMEDY: &str = "stop whoever listens there, or choose another path";
    let failed = |error| failed("listen on", path.display(), REMEDY)(error);
    let before = net::UnixStream::connect(path);
    if before.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = net::UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// What every connection of a front has.
#[derive(Debug, Clone)]
struct Served {
    board: Arc<Switchboard>,
    room: Arc<Semaphore>,
    service: Service,
    proxy: proxy::Options,
}

impl Served {
    async fn serve(&self, client: Stream) -> io::Result<()> {
        let introduction = Introduction::of(&client, self.proxy).await;
        let introduction = introduction.inspect_err(|_| count(&self.board.counters.refused))?;
        self.service.serve(client, introduction).await
    }
}

/// How long a front that may open no more files waits before it accepts again.
const BREATH: Duration = Duration::from_millis(10);

async fn accept(listener: AsyncListener, served: Served) {
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
            if let Err(error) = served.serve(client).await {
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
            Request::Joined { app, pid, fence } => {
                let fence = fence.map(|hierarchy| Fence::new(hierarchy, descriptors));
                let fence = fence.transpose()?;
                let order = |reply| Order::Joined {
                    app,
                    pid,
                    fence,
                    reply,
                };
                done(ordered(orders, order).await)
            }
            Request::HandOver => changed(ordered(orders, Order::HandOver).await),
            Request::Promote => changed(ordered(orders, Order::Promote).await),
            Request::Resync { app } => {
                done(ordered(orders, |reply| Order::Resync(app, reply)).await)
            }
            Request::Detach { app } => {
                done(ordered(orders, |reply| Order::Detach(app, Detached::Yes, reply)).await)
            }
            Request::Attach { app } => {
                done(ordered(orders, |reply| Order::Detach(app, Detached::No, reply)).await)
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

/// Gives the director an order and waits for the answer.
async fn ordered<T>(
    orders: &mpsc::Sender<Order>,
    order: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Order,
) -> Result<T, String> {
    const GONE: &str = "the front is ending";
    let (reply, answer) = oneshot::channel();
    let sent = orders.send(order(reply)).await;
    sent.map_err(|_| GONE.to_owned())?;
    answer.await.map_err(|_| GONE.to_owned())?
}

fn done(result: Result<(), String>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(why) => Answer::Refused(why),
    }
}

fn changed(result: Result<Transition, String>) -> Answer {
    match result {
        Ok(transition) => Answer::Changed(transition),
        Err(why) => Answer::Refused(why),
    }
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
        mirrored: of(&counters.mirrored),
        mismatched: of(&counters.mismatched),
        unmirrored: of(&counters.unmirrored),
        spread: of(&counters.spread),
    }
}
