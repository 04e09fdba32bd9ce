//! A front: its listening sockets, its connections, its director.

use std::collections::BTreeMap;
use std::io;
use std::net::{self as inet, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay_core::shadow::promotion::Epoch;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::control::{self, Answer, Counts, Line, PATIENCE, Request, STATUS_BOUND};
use crate::director::{Detached, Director, Endings, Heritage, Order, Parts};
use crate::epoch::EpochFile;
use crate::fence::Fence;
use crate::followers::Course;
use crate::listen::{Listen, Listener, Passed};
use crate::mode::{Mode, Service};
use crate::proxy::{self, Introduction};
use crate::status::{About, Status, Transition};
use crate::stream::{Address, Stream};
use crate::succession::{self, Inherited, Listening, Served, Successor};
use crate::switchboard::{Instance, Switchboard, count};

mod resting;
mod sockets;

use sockets::{listeners, passed};

/// Everything that a front has to know; written by the daemon, read when the front begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// What it speaks.
    pub mode: Mode,
    /// Where clients connect.
    pub listen: Vec<Listen>,
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
    /// How long connections may go on once another process has taken the place.
    pub drain: Duration,
    /// Where the PROXY protocol is spoken.
    #[serde(default, skip_serializing_if = "proxy::Options::is_off")]
    pub proxy: proxy::Options,
    /// The socket on which the daemon asks.
    pub control: PathBuf,
    /// Where epochs are kept.
    pub epoch_file: PathBuf,
    /// Where the daemon gives the sockets that systemd opened, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lender: Option<PathBuf>,
}

impl Plan {
    /// The same without what is nobody's to guess, and what is renewed without another plan.
    #[must_use]
    pub fn without_secrets(&self) -> Self {
        let mut plan = self.clone();
        plan.mode.forget_secrets();
        plan
    }

    /// What tells this plan from every other one.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        // A plan is made of text and numbers, which JSON can hold.
        let text = serde_json::to_vec(&self.without_secrets()).unwrap_or_default();
        let digest = Sha256::digest(&text);
        let hex = digest.iter().take(6).map(|byte| format!("{byte:02x}"));
        hex.collect()
    }

    fn about(&self) -> About {
        About {
            pid: std::process::id(),
            plan: self.fingerprint(),
            release: RELEASE.to_owned(),
        }
    }
}

/// The release that this process is of.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

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
    served: Served,
    listeners: Vec<(Listen, Listener)>,
    control: net::UnixListener,
    /// The process that this one succeeds.
    before: Option<Before>,
}

/// A process that is succeeded, once its sockets are taken.
#[derive(Debug)]
struct Before {
    line: Line,
    pid: u32,
    number: u64,
    counts: Counts,
    followers: Vec<(u32, Line)>,
    epoch: Epoch,
    primary: String,
    heritage: Heritage,
}

const KEEP: &str = "the front needs to write there";

/// Opens everything that a front needs: its sockets and the file of its epochs. No other process of
/// this front may serve anybody.
///
/// # Errors
/// When it cannot listen, cannot keep its epochs, or another process serves.
pub async fn open(plan: Plan) -> Result<Opened, Error> {
    const WAIT: &str = "end that process, or wait until its connections have ended";
    let path = plan.epoch_file.display();
    let epochs = EpochFile::open(&plan.epoch_file).map_err(failed("open", &path, KEEP))?;
    let served = Served::open(&plan.epoch_file).map_err(failed("open beside", &path, KEEP))?;
    let alone = served.alone();
    alone.map_err(failed("serve alone at", &path, WAIT))?;
    let passed = passed(&plan).await?;
    Ok(Opened {
        listeners: listeners(&plan, passed, BTreeMap::new())?,
        control: bind_unix(&plan.control, 0o600)?,
        epochs,
        served,
        before: None,
        plan,
    })
}

/// Takes the sockets of the process of this front that runs, which is succeeded as soon as this one
/// serves. None where none runs.
///
/// # Errors
/// When that process refuses, or what it does not have cannot be opened: it goes on as it was.
pub async fn succeed(plan: &Plan) -> Result<Option<Opened>, Error> {
    // First, since nobody says who serves from the moment on that the old process has answered.
    let passed = passed(plan).await?;
    let inherited = succession::ask(&plan.control, &plan.user).await;
    let inherited = inherited.map_err(not_taken(plan, "try again, or end it"))?;
    inherited
        .map(|inherited| take_over(plan.clone(), inherited, passed))
        .transpose()
}

fn not_taken(plan: &Plan, remedy: &'static str) -> impl FnOnce(io::Error) -> Error {
    const ATTEMPT: &str = "take the place of the front that listens on";
    failed(ATTEMPT, plan.control.display(), remedy)
}

/// Takes the sockets of the process before, and opens those that it does not have.
fn take_over(plan: Plan, inherited: Inherited, passed: Passed) -> Result<Opened, Error> {
    let path = plan.epoch_file.display();
    let epochs = EpochFile::open(&plan.epoch_file).map_err(failed("open", &path, KEEP))?;
    let served = Served::open(&plan.epoch_file).map_err(failed("open beside", &path, KEEP))?;
    served
        .together()
        .map_err(failed("lock beside", &path, KEEP))?;
    let mut instances = plan.instances.iter();
    let primary = instances.find(|instance| instance.app == inherited.primary);
    let why = match (primary, &inherited.primary_at) {
        (None, _) => Some(format!(
            "its primary {} is not among the instances any more",
            inherited.primary
        )),
        // Connections that it has would go on to where it does not serve any more.
        (Some(primary), Some(at)) if primary.address != *at => Some(format!(
            "its primary {} is at {at}, and is to be at {}",
            inherited.primary, primary.address
        )),
        (Some(_), _) => None,
    };
    if let Some(why) = why {
        let remedy = "hand over to an instance that stays as it is, and try again";
        return Err(not_taken(&plan, remedy)(io::Error::other(why)));
    }
    let mut taken: BTreeMap<Listen, Vec<OwnedFd>> = BTreeMap::new();
    for (listen, socket) in inherited.sockets {
        taken.entry(listen).or_default().push(socket);
    }
    Ok(Opened {
        listeners: listeners(&plan, passed, taken)?,
        control: net::UnixListener::from(inherited.control),
        epochs,
        served,
        before: Some(Before {
            line: inherited.line,
            pid: inherited.pid,
            number: inherited.number,
            counts: inherited.counts,
            followers: inherited.followers,
            epoch: inherited.epoch,
            primary: inherited.primary,
            heritage: Heritage {
                serves: inherited.serves,
                lost: inherited.lost,
                members: inherited.members,
                detached: inherited.detached,
                transitions: inherited.transitions,
                left: inherited.left,
            },
        }),
        plan,
    })
}

impl Opened {
    /// It takes the place of another process.
    #[must_use]
    pub const fn succeeds(&self) -> bool {
        self.before.is_some()
    }

    /// Serves until the process ends, or another one has taken its place and its last connection has
    /// ended.
    ///
    /// # Errors
    /// When the epochs cannot be read, the place of the process before could not be taken, or the
    /// daemon could not be heard any more.
    pub async fn serve(self) -> Result<(), Error> {
        let plan = self.plan;
        let path = plan.epoch_file.display();
        let locked = self.epochs.lock();
        locked.map_err(failed("lock", &path, "end the other process"))?;
        let latest = self.epochs.latest();
        let latest = latest.map_err(failed("read", &path, "the front needs to read it"))?;
        // An epoch is never used twice, whoever the instances are now.
        let (epoch, primary) = match (&self.before, &latest) {
            (Some(before), _) => (before.epoch, Some(&before.primary)),
            (None, Some(latest)) => (latest.used(), Some(&latest.primary)),
            (None, None) => (0, None),
        };
        let mut instances = plan.instances.iter();
        let primary = primary
            .and_then(|primary| instances.position(|instance| instance.app == *primary))
            .unwrap_or(0);
        let board = Arc::new(Switchboard::new(plan.instances.clone(), primary, epoch));
        let prepared = plan.mode.listening(&self.listeners);
        let prepared = prepared.and_then(|mode| Service::new(&mode, &board, plan.patience));
        let (service, synchroniser) = prepared.map_err(failed(
            "prepare",
            &plan.name,
            "correct what is said of its mode",
        ))?;
        let (orders, obeyed) = mpsc::channel(ORDERS_MAX);
        let (status, told) = watch::channel(Status::default());
        let endings = Endings::default();
        let mut director = Director::new(Parts {
            board: Arc::clone(&board),
            synchroniser,
            epochs: self.epochs,
            orders: obeyed,
            status,
            grace: plan.grace,
            about: plan.about(),
            endings: endings.clone(),
        })
        .map_err(failed("make a timer for", &plan.name, "report this"))?;
        let failed = |error| failed("listen on", plan.control.display(), "try again")(error);
        let control = UnixListener::from_std(self.control).map_err(failed)?;
        let listeners = self.listeners.into_iter().map(|(address, listener)| {
            let listener = listener.into_async()?;
            Ok((address, Arc::new(listener)))
        });
        let listeners: Vec<_> = listeners.collect::<Result<_, Error>>()?;
        // Whatever may fail comes before: the process before goes on as it was then.
        if let Some(before) = self.before {
            place::take(before, &mut director, &board, &plan).await?;
        }
        tokio::spawn(director.run());
        let room = Arc::new(Semaphore::new(plan.connections_max));
        let mut accepting = JoinSet::new();
        for (_, listener) in &listeners {
            let clients = Clients {
                board: Arc::clone(&board),
                room: Arc::clone(&room),
                refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
                service: service.clone(),
                proxy: plan.proxy,
            };
            accepting.spawn(accept(Arc::clone(listener), clients));
        }
        let desk = Arc::new(Desk {
            board: Arc::clone(&board),
            orders,
            told,
            room: Arc::clone(&room),
            plan: plan.clone(),
            service,
            control,
            listeners,
        });
        let (line, course) = desk.attend().await;
        // From here on another process accepts, and says who serves.
        accepting.shutdown().await;
        drop(desk);
        board.end();
        place::run_out((line, course), &plan, &board, &room, &endings).await;
        // Held until here.
        drop(self.served);
        Ok(())
    }
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

impl AsFd for AsyncListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
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
struct Clients {
    board: Arc<Switchboard>,
    room: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    service: Service,
    proxy: proxy::Options,
}

impl Clients {
    async fn serve(&self, client: Stream) -> io::Result<()> {
        let introduction = Introduction::of(&client, self.proxy).await;
        let introduction = introduction.inspect_err(|_| count(&self.board.counters.refused))?;
        self.service.serve(client, introduction).await
    }
}

/// How long a front that may open no more files waits before it accepts again.
const BREATH: Duration = Duration::from_millis(10);
/// How often it says that it cannot.
const COMPLAINT: Duration = Duration::from_secs(1);
/// Clients that are told at the same time that there are too many.
const REFUSALS_MAX: usize = 64;

async fn accept(listener: Arc<AsyncListener>, clients: Clients) {
    let mut complaint = Complaint::default();
    loop {
        let client = match listener.accept().await {
            Ok(client) => client,
            Err(error) => {
                complaint.add("a connection was not accepted", &error);
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&clients.room).try_acquire_owned() else {
            count(&clients.board.counters.refused);
            // Of more than that, nobody is told why.
            if let Ok(place) = Arc::clone(&clients.refusals).try_acquire_owned() {
                let service = clients.service.clone();
                tokio::spawn(async move {
                    service.refuse(client).await;
                    drop(place);
                });
            }
            continue;
        };
        count(&clients.board.counters.connections);
        let clients = clients.clone();
        tokio::spawn(async move {
            if let Err(error) = clients.serve(client).await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        });
    }
}

/// What happens again and again is said once in a while.
#[derive(Debug, Default)]
pub(crate) struct Complaint {
    said: Option<Instant>,
    unsaid: u64,
}

impl Complaint {
    pub(crate) fn add(&mut self, what: &str, error: &io::Error) {
        if self.said.is_some_and(|said| said.elapsed() < COMPLAINT) {
            self.unsaid += 1;
            return;
        }
        tracing::warn!(%error, unsaid = self.unsaid, "{what}");
        (self.said, self.unsaid) = (Some(Instant::now()), 0);
    }
}

/// Where the daemon, and whoever takes the place, is heard.
#[derive(Debug)]
struct Desk {
    plan: Plan,
    service: Service,
    board: Arc<Switchboard>,
    room: Arc<Semaphore>,
    orders: mpsc::Sender<Order>,
    told: watch::Receiver<Status>,
    control: UnixListener,
    listeners: Vec<(Listen, Arc<AsyncListener>)>,
}

impl Desk {
    /// Answers until another process has taken the place; the line to that one, and what it said first.
    async fn attend(self: &Arc<Self>) -> (Line, Course) {
        let (succeeded, mut taken) = mpsc::channel(1);
        let mut talks = JoinSet::new();
        let mut complaint = Complaint::default();
        loop {
            tokio::select! {
                Some(taken) = taken.recv() => {
                    talks.shutdown().await;
                    return taken;
                }
                Some(ended) = talks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a conversation with the daemon broke");
                    }
                }
                accepted = self.control.accept(), if talks.len() < CONTROLS_MAX => match accepted {
                    Ok((stream, _)) => {
                        let (desk, succeeded) = (Arc::clone(self), succeeded.clone());
                        talks.spawn(async move {
                            if let Err(error) = desk.converse(stream, &succeeded).await {
                                tracing::warn!(%error, "a conversation with the daemon ended");
                            }
                        });
                    }
                    Err(error) => {
                        complaint.add("the daemon was not heard", &error);
                        tokio::time::sleep(BREATH).await;
                    }
                },
            }
        }
    }

    async fn converse(
        &self,
        stream: UnixStream,
        succeeded: &mpsc::Sender<(Line, Course)>,
    ) -> io::Result<()> {
        let peer = control::admit(&stream)?;
        let mut line = Line::new(stream);
        while let Some((request, descriptors)) = line.receive::<Request>().await? {
            if let Request::Succeed { user } = request {
                let successor = Asker {
                    user,
                    pid: peer.pid().and_then(|pid| u32::try_from(pid).ok()),
                };
                return self.give(line, successor, succeeded).await;
            }
            if request == Request::Rest {
                self.give_clients(&mut line).await?;
                continue;
            }
            let answer = self.answer(request, descriptors).await?;
            tokio::time::timeout(PATIENCE, line.send(&answer, &[])).await??;
        }
        Ok(())
    }

    async fn answer(&self, request: Request, descriptors: Vec<OwnedFd>) -> io::Result<Answer> {
        let orders = &self.orders;
        Ok(match request {
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
                let mut told = self.told.clone();
                let changed = told.wait_for(|status| known.as_ref() != Some(status));
                let status = match tokio::time::timeout(STATUS_BOUND, changed).await {
                    Ok(Ok(status)) => Some(status.clone()),
                    Ok(Err(_)) | Err(_) => None,
                };
                let status = status.unwrap_or_else(|| told.borrow().clone());
                Answer::Status(Box::new(status))
            }
            Request::Counters => {
                let own = counts(&self.board, &self.plan, &self.room);
                Answer::Counters(self.board.followers.add_to(own))
            }
            // It knows what it passed on itself, which would be taken for all.
            Request::Answers if self.board.followers.any() => {
                let why = "a process before this one still serves connections, and what it passes on is \
                           not counted here";
                Answer::Refused(why.to_owned())
            }
            Request::Answers => {
                let primary = self.board.routing().primary;
                let app = self.plan.instances.get(primary);
                Answer::Answers {
                    app: app.map_or_else(String::new, |instance| instance.app.clone()),
                    answers: self.board.flights.answers(primary),
                    all: Some(self.board.flights.answers_of_all()),
                }
            }
            Request::Certificate(pem) => done(self.service.renew(&pem)),
            Request::Resume { state, unread } => done(self.resume(&state, unread, descriptors)),
            Request::Succeed { .. } | Request::Succeeded | Request::Rest | Request::Taken => {
                Answer::Refused("that was not to be asked here".to_owned())
            }
        })
    }

    /// Gives the place to the process at the other end of a line, if it may have it.
    async fn give(
        &self,
        mut line: Line,
        Asker { user, pid }: Asker,
        succeeded: &mpsc::Sender<(Line, Course)>,
    ) -> io::Result<()> {
        let own = &self.plan.user;
        let (verdict, judged) = oneshot::channel();
        let testament = if user == *own {
            let successor = pid.and_then(|pid| Successor::of(pid).ok());
            let order = |reply| Order::Yield(reply, judged, successor);
            ordered(&self.orders, order).await
        } else {
            // It could not end this process, if that did not follow.
            Err(format!(
                "it runs as `{own}` and cannot be followed by one that runs as `{user}`; end it \
                 and let it be started anew"
            ))
        };
        let testament = match testament {
            Ok(testament) => testament,
            Err(why) => {
                let refused = Answer::Refused(why);
                return tokio::time::timeout(PATIENCE, line.send(&refused, &[])).await?;
            }
        };
        let sockets = self.listeners.iter();
        let own = counts(&self.board, &self.plan, &self.room);
        let listening = Listening {
            control: self.control.as_fd(),
            sockets: sockets
                .map(|(address, listener)| (address.clone(), listener.as_fd()))
                .collect(),
            counts: self.board.followers.settled(own),
        };
        let taken = succession::give(line, testament, (listening, &self.board), verdict).await?;
        // Whoever receives this ends with the process.
        succeeded.send(taken).await.ok();
        Ok(())
    }
}

/// Who asks for the place.
#[derive(Debug)]
struct Asker {
    user: String,
    pid: Option<u32>,
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

/// What this process counted.
fn counts(board: &Switchboard, plan: &Plan, room: &Semaphore) -> Counts {
    let counters = &board.counters;
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
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
        open: open_now(plan, room),
        before: 0,
        before_open: 0,
    }
}

/// Connections of clients now.
fn open_now(plan: &Plan, room: &Semaphore) -> u64 {
    let open = plan
        .connections_max
        .saturating_sub(room.available_permits());
    u64::try_from(open).unwrap_or(u64::MAX)
}

mod place;
