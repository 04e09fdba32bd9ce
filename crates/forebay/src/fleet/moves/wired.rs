//! Moves over the link: what this host asks of others, and what others ask of it.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::fleet::choice::Offer;
use forebay_core::fleet::mobility::Way;
use forebay_core::fleet::promises::PROMISE_TTL;
use forebay_core::fleet::{Epoch, HostName, Ownership};
use forebay_core::units::Bytes;
use forebay_host::checkpoint::lend::Pages;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, oneshot, watch};

use super::desk::{Moves, Refused};
use super::speed;
use super::{Attempt, Content, Heard, Owners, Peer, Phase, Records, Trouble, Wish};
use crate::fleet::coordinator::{self, Coordinator};
use crate::fleet::link::authority::{self, Authority};
use crate::fleet::link::messages::{
    Content as WireContent, Home, Manner, Move, Phase as WirePhase, Refused as WireRefused,
    Reserve, Why,
};
use crate::fleet::link::rdma::{Carried, Choice, Door};
use crate::fleet::link::{
    Answer, Body, Compress, Error, Handler, Identity, Kind, Link, Listener, Peer as Other,
    Progress, Request, Sending, renewal,
};
use crate::fleet::member::Standing;

/// How long another host may take to be connected to.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long it may take to answer what it does at once.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long it may take to make what came durable.
const PREPARE_MAX: Duration = Duration::from_secs(120);
/// How long no byte may go over.
const STALL_MAX: Duration = Duration::from_secs(20);
/// Chunks that wait to be written.
const CHUNKS_MAX: usize = 4;

/// The agents of other hosts.
pub(crate) struct Wired {
    coordinator: Arc<dyn Coordinator>,
    identity: Arc<Identity>,
    runtime: Handle,
    rdma: Choice,
    /// One connection to each, while it is good.
    links: Mutex<BTreeMap<HostName, Link>>,
    /// What the last content to each went by.
    carried: Mutex<BTreeMap<HostName, Carried>>,
}

impl std::fmt::Debug for Wired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wired").finish_non_exhaustive()
    }
}

/// Reads a file on the thread that waits for it.
struct Blocking<'a>(&'a mut (dyn Read + Send));

impl AsyncRead for Blocking<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.0.read(into.initialize_unfilled())?;
        into.advance(count);
        Poll::Ready(Ok(()))
    }
}

const fn manner(way: Way) -> Manner {
    match way {
        Way::Restart => Manner::Restart,
        Way::Checkpoint => Manner::Checkpoint,
        Way::Handoff => Manner::Handoff,
    }
}

const fn way(manner: Manner) -> Way {
    match manner {
        Manner::Restart => Way::Restart,
        Manner::Checkpoint => Way::Checkpoint,
        Manner::Handoff => Way::Handoff,
    }
}

fn home((host, ago): &(HostName, Duration)) -> Home {
    Home {
        host: host.clone(),
        left_ms_ago: u64::try_from(ago.as_millis()).unwrap_or(u64::MAX),
    }
}

fn left(home: Home) -> (HostName, Duration) {
    (home.host, Duration::from_millis(home.left_ms_ago))
}

fn of(attempt: &Attempt) -> Move {
    Move {
        app: attempt.app.clone(),
        epoch: attempt.epoch,
    }
}

fn attempt(of: Move) -> Attempt {
    Attempt {
        app: of.app,
        epoch: of.epoch,
    }
}

fn wire_content(content: &Content) -> WireContent {
    WireContent {
        name: content.name.clone(),
        kind: content.kind.clone(),
    }
}

/// What did not even begin was not done; of everything else nobody knows.
fn trouble(error: &Error) -> Trouble {
    match error.kind {
        Kind::Unreachable
        | Kind::NotOfFleet
        | Kind::Validity
        | Kind::Forgotten
        | Kind::WrongHost
        | Kind::Version
        | Kind::Clocks => Trouble::Refused(error.to_string()),
        _ => Trouble::Unknown(error.to_string()),
    }
}

impl From<coordinator::Error> for Trouble {
    fn from(error: coordinator::Error) -> Self {
        match error.kind {
            coordinator::ErrorKind::Refused(_) => Self::Refused(error.to_string()),
            coordinator::ErrorKind::Unknown(_) => Self::Unknown(error.to_string()),
        }
    }
}

/// The coordinator as moves see it, with the lease that this host holds there.
#[derive(Debug)]
pub(crate) struct Coordinated {
    pub(crate) here: HostName,
    pub(crate) coordinator: Arc<dyn Coordinator>,
    pub(crate) standing: watch::Receiver<Arc<Standing>>,
}

impl Records for Coordinated {
    fn read(&self, app: &AppId) -> Result<Option<Ownership>, Trouble> {
        Ok(self.coordinator.record(app)?)
    }

    fn create(&self, app: &AppId, record: &Ownership) -> Result<(), Trouble> {
        Ok(self.coordinator.create(app, record)?)
    }

    fn change(&self, app: &AppId, epoch: Epoch, to: &Ownership) -> Result<(), Trouble> {
        Ok(self.coordinator.change(app, epoch, to)?)
    }

    fn take_over(&self, app: &AppId, from: &Ownership, to: &Ownership) -> Result<(), Trouble> {
        Ok(self.coordinator.take_over(app, from, to)?)
    }

    fn members(&self) -> BTreeMap<HostName, Offer> {
        let members = Arc::clone(&self.standing.borrow().members);
        let members = members.iter();
        members
            .map(|(host, member)| (host.clone(), member.offer.clone()))
            .collect()
    }

    fn all(&self) -> Result<Owners, Trouble> {
        Ok(self.coordinator.records()?.1)
    }

    fn heard(&self) -> Heard {
        let standing = self.standing.borrow();
        Heard {
            lease: standing.tenure,
            records: standing.records.clone(),
            is_in_reach: standing.lost.is_none(),
        }
    }

    fn is_at_another(&self, app: &AppId) -> Result<bool, Trouble> {
        let members = self.coordinator.hosts()?;
        let mut others = members.iter().filter(|(host, _)| **host != self.here);
        Ok(others.any(|(_, member)| member.offer.apps.contains(app)))
    }
}

impl Wired {
    pub(crate) const fn new(
        coordinator: Arc<dyn Coordinator>,
        identity: Arc<Identity>,
        runtime: Handle,
        rdma: Choice,
    ) -> Self {
        Self {
            coordinator,
            identity,
            runtime,
            rdma,
            links: Mutex::new(BTreeMap::new()),
            carried: Mutex::new(BTreeMap::new()),
        }
    }

    fn links(&self) -> std::sync::MutexGuard<'_, BTreeMap<HostName, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection from before, if it seems to be whole.
    fn kept(&self, to: &HostName) -> Option<Link> {
        self.links().remove(to).filter(Link::is_usable)
    }

    /// A connection: the one from before, or a new one.
    fn connect(&self, to: &HostName) -> Result<Link, Trouble> {
        self.kept(to).map_or_else(|| self.reach(to), Ok)
    }

    /// A new connection.
    fn reach(&self, to: &HostName) -> Result<Link, Trouble> {
        let address = self.address(to)?;
        let link = Link::connect(&self.identity, to, &address, CONNECT_MAX);
        let link = self.runtime.block_on(link);
        let link = link.map_err(|error| trouble(&error))?;
        Ok(link.prefer(self.rdma.clone()))
    }

    fn carries(&self) -> std::sync::MutexGuard<'_, BTreeMap<HostName, Carried>> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, to: &HostName, request: &Request, within: Duration) -> Result<Answer, Trouble> {
        // One from before may lead to an agent that ended since. Nothing was asked of the one that is there
        // now, and what is asked twice is answered as once.
        if let Some(mut link) = self.kept(to) {
            let answer = self.runtime.block_on(link.ask(request, within));
            match answer {
                Err(Error {
                    kind: Kind::Cut | Kind::Unreachable,
                    ..
                }) => tracing::debug!(host = %to, "the connection from before had ended"),
                answer => return self.keep(to, link, answer),
            }
        }
        let mut link = self.reach(to)?;
        let answer = self.runtime.block_on(link.ask(request, within));
        self.keep(to, link, answer)
    }

    fn keep(
        &self,
        to: &HostName,
        link: Link,
        answer: Result<Answer, Error>,
    ) -> Result<Answer, Trouble> {
        let answer = answer.map_err(|error| match error.kind {
            // It was asked already.
            Kind::Unreachable => Trouble::Unknown(error.to_string()),
            _ => trouble(&error),
        })?;
        self.links().insert(to.clone(), link);
        match answer {
            Answer::Refused(refused) => Err(Trouble::Refused(refused.message)),
            answer => Ok(answer),
        }
    }

    fn expect(
        to: &HostName,
        answer: Result<Answer, Trouble>,
        expected: &str,
    ) -> Result<(), Trouble> {
        let answer = answer?;
        let said = match answer {
            Answer::Promised { .. } => "promised",
            Answer::Taken { .. } => "taken",
            Answer::Prepared => "prepared",
            Answer::Released => "released",
            _ => "something else",
        };
        match said == expected {
            true => Ok(()),
            false => Err(Trouble::Unknown(format!(
                "{to} answers `{said}` where `{expected}` makes sense; update it"
            ))),
        }
    }
}

impl Peer for Wired {
    fn reserve(&self, to: &HostName, wish: &Wish) -> Result<(), Trouble> {
        let request = Request::Reserve(Reserve {
            app: wish.app.clone(),
            record: wish.record.clone(),
            class: wish.class,
            need: wish.need,
            manner: manner(wish.way),
            requires: wish.requires.clone(),
            look: wish.look,
            homes: wish.homes.iter().map(home).collect(),
        });
        Self::expect(to, self.ask(to, &request, ANSWER_MAX), "promised")
    }

    fn send(
        &self,
        to: &HostName,
        attempt: &Attempt,
        (phase, content, bytes): (Phase, &Content, u64),
        from: &mut (dyn Read + Send),
    ) -> Result<(), Trouble> {
        let request = Request::Content {
            of: of(attempt),
            phase: match phase {
                Phase::Copy(round) => WirePhase::Copy(round),
                Phase::Final => WirePhase::Final,
            },
            content: wire_content(content),
            bytes: Some(bytes),
        };
        let mut link = self.connect(to)?;
        let progress = Progress::default();
        let sending = Sending {
            progress: &progress,
            compress: Compress::Measured,
            stall: STALL_MAX,
            answer: PREPARE_MAX,
        };
        // It may have grown since it was looked at: what is more is sent the next time.
        let mut limited = from.take(bytes);
        let mut source = Blocking(&mut limited);
        let answer = self
            .runtime
            .block_on(link.send(&request, &mut source, sending));
        if let Some(carried) = link.carried() {
            self.carries().insert(to.clone(), carried);
        }
        Self::expect(to, self.keep(to, link, answer), "taken")
    }

    fn speed(&self, to: &HostName) -> Result<Option<f64>, Trouble> {
        let mut link = self.connect(to)?;
        if !link.measures() {
            self.links().insert(to.clone(), link);
            return Ok(None);
        }
        let (answer, took) = self.runtime.block_on(speed::measure(&mut link));
        #[expect(clippy::cast_precision_loss, reason = "a speed")]
        let speed = |bytes: u64| bytes as f64 / took.as_secs_f64();
        match self.keep(to, link, answer)? {
            Answer::Taken { bytes } if bytes > 0 => Ok(Some(speed(bytes))),
            _ => Ok(None),
        }
    }

    fn carried(&self, to: &HostName) -> Option<Carried> {
        self.carries().get(to).cloned()
    }

    fn prepare(
        &self,
        to: &HostName,
        attempt: &Attempt,
        contents: &[Content],
    ) -> Result<(), Trouble> {
        let request = Request::Prepare {
            of: of(attempt),
            contents: contents.iter().map(wire_content).collect(),
        };
        Self::expect(to, self.ask(to, &request, PREPARE_MAX), "prepared")
    }

    fn release(&self, to: &HostName, attempt: &Attempt) -> Result<(), Trouble> {
        let request = Request::Release { of: of(attempt) };
        Self::expect(to, self.ask(to, &request, ANSWER_MAX), "released")
    }

    fn owes(&self, to: &HostName, attempt: &Attempt) -> Result<Option<Bytes>, Trouble> {
        let request = Request::Owed { of: of(attempt) };
        match self.ask(to, &request, ANSWER_MAX)? {
            Answer::Owes { bytes } => Ok(bytes.map(Bytes)),
            _ => Err(Trouble::Unknown(format!(
                "{to} answers something else than how much is still to come; update it"
            ))),
        }
    }

    fn address(&self, of: &HostName) -> Result<String, Trouble> {
        let members = self.coordinator.hosts();
        let members = members.map_err(|error| Trouble::Refused(error.to_string()))?;
        let Some(member) = members.get(of) else {
            let names: Vec<&str> = members.keys().map(HostName::as_str).collect();
            return Err(Trouble::Refused(format!(
                "{of} is no member of the fleet now; members are: {}",
                names.join(", ")
            )));
        };
        member.address.clone().ok_or_else(|| {
            Trouble::Refused(format!(
                "{of} does not say where its agent listens; set `fleet.listen` there"
            ))
        })
    }
}

/// Answers what other hosts ask.
struct Answers {
    moves: Arc<Moves>,
}

/// What comes over the link, for whoever writes it on another thread.
struct Pipe {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.chunks.blocking_recv() {
                Some(chunk) => (self.chunk, self.at) = (chunk?, 0),
                None => return Ok(0),
            }
        }
        let count = into.len().min(self.chunk.len() - self.at);
        into[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

fn refused(refused: &Refused) -> Answer {
    let why = match refused {
        Refused::NoSuch(_) => Why::Unknown,
        Refused::Busy(_) => Why::Busy,
        Refused::Cannot(_) => Why::Failed,
    };
    Answer::Refused(WireRefused {
        why,
        message: refused.why().to_owned(),
    })
}

fn failed(message: impl Into<String>) -> Answer {
    Answer::Refused(WireRefused {
        why: Why::Failed,
        message: message.into(),
    })
}

impl Answers {
    async fn off(&self, ask: impl FnOnce(&Arc<Moves>) -> Answer + Send + 'static) -> Answer {
        let moves = Arc::clone(&self.moves);
        let answered = tokio::task::spawn_blocking(move || ask(&moves)).await;
        answered.unwrap_or_else(|error| failed(format!("the request was given up: {error}")))
    }

    async fn take(
        &self,
        from: HostName,
        attempt: Attempt,
        (phase, content, bytes): (Phase, Content, u64),
        body: &mut Body<'_>,
    ) -> Answer {
        let (chunks, received) = mpsc::channel(CHUNKS_MAX);
        let writes = self.off(move |moves| {
            let mut pipe = Pipe {
                chunks: received,
                chunk: Vec::new(),
                at: 0,
            };
            let parcel = (phase, &content, bytes);
            match moves.take(&from, &attempt, parcel, &mut pipe) {
                Ok(()) => Answer::Taken { bytes },
                Err(why) => refused(&why),
            }
        });
        let reads = async move {
            loop {
                let chunk = match body.next().await {
                    Ok(Some(chunk)) => Ok(chunk),
                    Ok(None) => return,
                    Err(error) => Err(io::Error::other(error.to_string())),
                };
                let is_last = chunk.is_err();
                // Whoever writes has given up, and says why.
                if chunks.send(chunk).await.is_err() || is_last {
                    return;
                }
            }
        };
        tokio::join!(writes, reads).0
    }
}

impl Handler for Answers {
    async fn answer(&self, peer: &Other, request: Request, body: &mut Body<'_>) -> Answer {
        let from = peer.host.clone();
        match request {
            Request::Reserve(reserve) => {
                let wish = Wish {
                    app: reserve.app,
                    record: reserve.record,
                    class: reserve.class,
                    need: reserve.need,
                    way: way(reserve.manner),
                    requires: reserve.requires,
                    look: reserve.look,
                    homes: reserve.homes.into_iter().map(left).collect(),
                };
                self.off(move |moves| match moves.reserve(&from, &wish) {
                    Ok(()) => Answer::Promised {
                        for_ms: u64::try_from(PROMISE_TTL.as_millis()).unwrap_or(u64::MAX),
                    },
                    Err(why) => refused(&why),
                })
                .await
            }
            Request::Content {
                of,
                phase,
                content,
                bytes: Some(bytes),
            } => {
                let attempt = attempt(of);
                let phase = match phase {
                    WirePhase::Copy(round) => Phase::Copy(round),
                    WirePhase::Final => Phase::Final,
                };
                let content = Content {
                    name: content.name,
                    kind: content.kind,
                };
                self.take(from, attempt, (phase, content, bytes), body)
                    .await
            }
            Request::Content { .. } => failed("say how many bytes come: update the other host"),
            Request::Prepare { of, contents } => {
                let attempt = attempt(of);
                let contents: Vec<Content> = contents
                    .into_iter()
                    .map(|content| Content {
                        name: content.name,
                        kind: content.kind,
                    })
                    .collect();
                self.off(
                    move |moves| match moves.prepare(&from, &attempt, &contents) {
                        Ok(()) => Answer::Prepared,
                        Err(trouble) => failed(trouble.to_string()),
                    },
                )
                .await
            }
            Request::Release { of } => {
                let attempt = attempt(of);
                self.off(move |moves| {
                    moves.release(&from, &attempt);
                    Answer::Released
                })
                .await
            }
            Request::Owed { of } => {
                let attempt = attempt(of);
                self.off(move |moves| match moves.owes(&attempt) {
                    Ok(bytes) => Answer::Owes {
                        bytes: bytes.map(|bytes| bytes.0),
                    },
                    Err(why) => failed(why),
                })
                .await
            }
            // The listener asks for it by itself.
            Request::Lend { .. } => failed("memory is lent with its bytes"),
            Request::State { app } => failed(format!(
                "nobody tells others how far {app} is; ask its host"
            )),
            // The listener answers this where this host holds the authority.
            Request::Renew { .. } => failed("this host does not hold the fleet's authority"),
            // It reads and forgets by itself.
            Request::Measure => failed("what is sent to be measured is read by the listener"),
            // So it does this.
            Request::Rdma => failed("this host takes nothing by RDMA"),
        }
    }

    async fn lend(&self, peer: &Other, of: Move, pages: Vec<Pages>) -> Result<Vec<u8>, Answer> {
        let (moves, to) = (Arc::clone(&self.moves), peer.host.clone());
        let attempt = attempt(of);
        let lent = tokio::task::spawn_blocking(move || moves.lend(&to, &attempt, &pages)).await;
        let lent = lent.map_err(|error| failed(format!("the request was given up: {error}")))?;
        lent.map_err(failed)
    }
}

/// Listens to other agents and keeps the certificate valid on a thread of its own, until `stopped`.
///
/// # Errors
/// When the address cannot be listened at.
pub(crate) fn listen(
    runtime: Runtime,
    identity: Arc<Identity>,
    (address, rdma): (SocketAddr, Choice),
    moves: Arc<Moves>,
    stopped: oneshot::Receiver<()>,
) -> Result<JoinHandle<()>, String> {
    let door = Door::open(rdma, address.ip());
    let door = door.map_err(|error| {
        format!("start the thread that lets RDMA in: {error}; check limits on threads")
    })?;
    let authority = match authority::place(identity.dir()).exists() {
        true => {
            let opened = Authority::open(identity.dir()).map_err(|error| error.to_string())?;
            Some(Arc::new(opened))
        }
        false => None,
    };
    let (told, bound) = std::sync::mpsc::sync_channel(1);
    let address = address.to_string();
    let thread = std::thread::Builder::new()
        .name("fleet-link".to_owned())
        .spawn(move || {
            let stop = async {
                // A dropped sender means the same as a sent stop.
                stopped.await.ok();
            };
            runtime.block_on(async {
                let bound = Listener::bind(Arc::clone(&identity), authority, &address).await;
                let (listener, bound) = match bound {
                    Ok(listener) => (Some(listener.with_door(door)), Ok(())),
                    Err(error) => (None, Err(error.to_string())),
                };
                let is_heard = told.send(bound).is_ok();
                let Some(listener) = listener.filter(|_| is_heard) else {
                    return;
                };
                tokio::select! {
                    () = listener.serve(Arc::new(Answers { moves }), stop) => {}
                    () = renewal::keep(identity, renewal::NEWS_EVERY) => {}
                }
            });
        });
    let thread = thread.map_err(|error| {
        format!("start the thread that listens to other hosts: {error}; check limits on threads")
    })?;
    match bound.recv() {
        Ok(bound) => bound.map(|()| thread),
        Err(_) => Err("the thread that listens to other hosts ended; see its message".to_owned()),
    }
}
