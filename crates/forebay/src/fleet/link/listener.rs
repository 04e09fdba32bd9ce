//! The side that is asked.
//!
//! Whoever is not of the fleet hears nothing: who does not begin TLS is hung up on without a word, who
//! begins it for something else than this as well, and who shows no certificate of the fleet hears an alert
//! of TLS. Agreeing is bounded in time and in number, by address, so that nobody takes the places of others.
//! So are connections, by host: one too many keeps its place among those who agree, and is told so if it asks
//! while it has that.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forebay_core::fleet::HostName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::server::TlsStream;

use super::authority::Authority;
use super::client::{prepare, unusable};
use super::error::{Error, Kind};
use super::frame::{self, FrameKind};
use super::identity::Identity;
use super::messages::{Answer, CONTENTS_MAX, MEASURE_MAX, Refused, Request, Why};
use super::places::{Bounds, Place, Places};
use super::rdma::{Door, Exported, Incoming, Transport};
use super::stream::{Body, Heard, Source};
use super::wire::{self, Asked, Hello};
use super::{Handler, Peer, join, verify};

/// How long others are waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Until both sides have agreed and greeted each other.
    pub(super) handshake: Duration,
    /// Until the next question.
    pub(super) idle: Duration,
    /// Until the next chunk.
    pub(super) stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(300),
            stall: Duration::from_secs(30),
        }
    }
}

/// How many may agree at a time.
const HANDSHAKES: Bounds = Bounds { all: 64, of_one: 8 };
/// How many connections hosts may have.
const CONNECTIONS: Bounds = Bounds {
    all: 256,
    of_one: 16,
};
/// No answer may take longer, whatever was asked for.
const ANSWER_BOUND: Duration = Duration::from_secs(600);
/// How long it is waited until an answer that came early was heard.
const HEARD_BOUND: Duration = Duration::from_secs(5);
/// How often it is said that somebody was refused.
const SAID_EVERY: Duration = Duration::from_secs(10);
/// The first byte of TLS.
const HANDSHAKE: u8 = 0x16;

/// Waits for other agents.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    room: Box<Room>,
}

/// What all connections share.
#[derive(Debug)]
struct Room {
    identity: Arc<Identity>,
    authority: Option<Arc<Authority>>,
    patience: Patience,
    handshakes: Arc<Places<IpAddr>>,
    connections: Arc<Places<HostName>>,
    /// Where streams over RDMA are let in.
    door: Option<Door>,
    refusals: Mutex<Refusals>,
}

/// Those who were refused since it was said last.
#[derive(Debug, Default)]
struct Refusals {
    said: Option<Instant>,
    unsaid: u64,
}

impl Listener {
    /// Listens. With an authority, hosts join and renew their certificates here.
    ///
    /// # Errors
    /// When the address cannot be listened at.
    pub(crate) async fn bind(
        identity: Arc<Identity>,
        authority: Option<Arc<Authority>>,
        address: &str,
    ) -> Result<Self, Error> {
        Self::patient(identity, authority, address, Patience::default()).await
    }

    pub(super) async fn patient(
        identity: Arc<Identity>,
        authority: Option<Arc<Authority>>,
        address: &str,
        patience: Patience,
    ) -> Result<Self, Error> {
        let bound = TcpListener::bind(address).await;
        let bound = bound.and_then(|socket| Ok((socket.local_addr()?, socket)));
        let (address, socket) = bound.map_err(|error| {
            Error::new(
                Kind::Local,
                address,
                format!("listen there: {error}"),
                "name an address of this host that nobody listens at",
            )
        })?;
        Ok(Self {
            socket,
            address,
            room: Box::new(Room {
                identity,
                authority,
                patience,
                handshakes: Places::new(HANDSHAKES),
                connections: Places::new(CONNECTIONS),
                door: None,
                refusals: Mutex::new(Refusals::default()),
            }),
        })
    }

    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets streams over RDMA in as well.
    pub(crate) fn with_door(mut self, door: Option<Door>) -> Self {
        self.room.door = door;
        self
    }

    /// Answers until `end`, and then hangs up.
    pub(crate) async fn serve<H: Handler>(self, handler: Arc<H>, end: impl Future<Output = ()>) {
        let room: Arc<Room> = self.room.into();
        let mut tasks = JoinSet::new();
        tokio::pin!(end);
        loop {
            let accepted = tokio::select! {
                () = &mut end => break,
                Some(_) = tasks.join_next() => continue,
                accepted = self.socket.accept() => accepted,
            };
            let (socket, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted; tried again in a moment");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Who finds no place is hung up on at once, so that there are never more than that.
            let Some(place) = room.handshakes.take(&address.ip()) else {
                let busy = Error::new(
                    Kind::Slow,
                    address,
                    "agree on TLS: as many do already as may",
                    "look who connects from there",
                );
                room.refused(&busy);
                continue;
            };
            let (room, handler) = (Arc::clone(&room), Arc::clone(&handler));
            tasks.spawn(async move {
                if let Err(error) = room.connection((socket, address), place, &*handler).await {
                    room.refused(&error);
                }
            });
        }
        tasks.shutdown().await;
    }
}

/// Whose questions are answered.
#[derive(Debug, Clone, Copy)]
struct Who<'a> {
    peer: &'a Peer,
    label: &'a str,
    certificate: &'a CertificateDer<'static>,
}

/// What somebody wants who connects.
enum Wants {
    Link,
    Join(String),
}

impl Room {
    /// Counts somebody who was refused or cut, and says so once in a while.
    fn refused(&self, error: &Error) {
        tracing::debug!(%error, "a connection was refused or ended");
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.unsaid += 1;
        if refusals
            .said
            .is_some_and(|said| said.elapsed() < SAID_EVERY)
        {
            return;
        }
        let count = std::mem::take(&mut refusals.unsaid);
        refusals.said = Some(Instant::now());
        tracing::warn!(%error, count, "connections of other agents were refused or cut; this was the last");
    }

    async fn connection<H: Handler>(
        &self,
        (mut socket, address): (TcpStream, SocketAddr),
        place: Place<IpAddr>,
        handler: &H,
    ) -> Result<(), Error> {
        let bound = self.patience.handshake;
        let until = Instant::now() + bound;
        let slow = || Error::slow(address, "agree on TLS", bound);
        prepare(&socket).map_err(|error| Error::io(address, "accept it", &error))?;
        let clock = self.identity.clock();
        let agreed = timeout_at(until, async move {
            let doing = "agree on TLS";
            let io = |error: std::io::Error| Error::io(address, doing, &error);
            let mut first = [0];
            if socket.peek(&mut first).await.map_err(io)? == 0 || first[0] != HANDSHAKE {
                socket.shutdown().await.map_err(io)?;
                let what = format!("{doing}: it does not speak TLS");
                return Err(Error::new(
                    Kind::Garbage,
                    address,
                    what,
                    "look who connects from there",
                ));
            }
            let start = LazyConfigAcceptor::new(Acceptor::default(), socket)
                .await
                .map_err(io)?;
            let Some(wants) = self.wants(&start.client_hello(), wire::now(&**clock)) else {
                let what = format!(
                    "{doing}: it wants something else than agents speak, or has a token \
                                    that is not good any more"
                );
                let remedy = "look who connects from there, or make a new token";
                return Err(Error::new(Kind::NotOfFleet, address, what, remedy));
            };
            self.identity.look();
            let credentials = self.identity.credentials();
            let config = match wants {
                Wants::Link => verify::server(&credentials, clock),
                Wants::Join(_) => verify::door(&credentials, clock),
            };
            let config =
                config.map_err(|error| unusable(&address.to_string(), &error.to_string()))?;
            let stream = start.into_stream(Arc::new(config)).await.map_err(io)?;
            Ok((wants, stream))
        });
        let (wants, mut stream) = agreed.await.map_err(|_| slow())??;
        if let (Wants::Join(id), Some(authority)) = (&wants, &self.authority) {
            let label = address.to_string();
            let joined = join::admit(&mut stream, authority, id, clock, &label);
            return timeout_at(until, joined).await.map_err(|_| slow())?;
        }
        let greeted = timeout_at(until, self.greet(&mut stream, address)).await;
        let (peer, certificate) = greeted.map_err(|_| slow())??;
        let label = format!("{} at {address}", peer.host);
        let Some(_room) = self.connections.take(&peer.host) else {
            let told = timeout_at(until, one_too_many(&mut stream, &peer.host, &label)).await;
            return told.map_err(|_| Error::slow(&label, "ask for something", bound))?;
        };
        drop(place);
        let who = Who {
            peer: &peer,
            label: &label,
            certificate: &certificate,
        };
        self.answer(&mut stream, who, handler).await
    }

    fn wants(
        &self,
        hello: &tokio_rustls::rustls::server::ClientHello<'_>,
        now: std::time::SystemTime,
    ) -> Option<Wants> {
        let mut protocols = hello.alpn()?;
        match protocols.next()? {
            verify::LINK => Some(Wants::Link),
            verify::JOIN => {
                let id = hello.server_name()?.strip_suffix(join::NAME_SUFFIX)?;
                let authority = self.authority.as_ref()?;
                // A file of some kilobytes, read for whoever knows to ask.
                authority
                    .expects(id, now)
                    .ok()?
                    .then(|| Wants::Join(id.to_owned()))
            }
            _ => None,
        }
    }

    async fn greet(
        &self,
        stream: &mut TlsStream<TcpStream>,
        address: SocketAddr,
    ) -> Result<(Peer, CertificateDer<'static>), Error> {
        let credentials = self.identity.credentials();
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let certified = certificates
            .first()
            .and_then(|own| Some((verify::name(&credentials.fleet, own)?, own.clone())));
        let (certified, certificate) = certified.ok_or_else(|| {
            let what = "greet it: its certificate names no host of this fleet";
            Error::new(
                Kind::NotOfFleet,
                address,
                what,
                "have it join: `forebay fleet join`",
            )
        })?;
        let label = format!("{certified} at {address}");
        let clock = &**self.identity.clock();
        let ours = Hello {
            rdma: self.door.as_ref().is_some_and(Door::is_open),
            ..Hello::new(credentials.host.clone(), clock)
        };
        let (hello, clock_ahead_ms) =
            wire::greet(stream, (ours, clock), &certified, &label).await?;
        let peer = Peer {
            host: certified,
            version: hello.forebay,
            address,
            clock_ahead_ms,
        };
        Ok((peer, certificate))
    }

    /// Answers one question after the other, until the other side has none.
    async fn answer<H: Handler>(
        &self,
        stream: &mut TlsStream<TcpStream>,
        who: Who<'_>,
        handler: &H,
    ) -> Result<(), Error> {
        let label = who.label;
        let (socket, tls) = stream.get_ref();
        let here = socket
            .local_addr()
            .map_err(|error| Error::io(label, "answer it", &error))?;
        let exported = Exported::of(tls).map_err(|error| Error::tls(label, "answer it", &error))?;
        let mut streams = (Incoming::new(exported), here.ip());
        loop {
            let asked = timeout(
                self.patience.idle,
                wire::receive(stream, label, "hear what it asks"),
            )
            .await;
            let Ok(asked) = asked else {
                return hang_up(stream, label).await;
            };
            let Some(asked) = asked? else {
                return hang_up(stream, label).await;
            };
            verify::again(&self.identity, who.certificate)
                .map_err(|error| Error::tls(label, "answer what it asked", &error))?;
            if !self
                .question(stream, who, asked, (&mut streams, handler))
                .await?
            {
                return after_early(stream, label).await;
            }
        }
    }

    /// Answers one question; whether the connection can go on.
    async fn question<H: Handler>(
        &self,
        stream: &mut TlsStream<TcpStream>,
        who: Who<'_>,
        asked: Asked,
        ((incoming, here), handler): (&mut (Incoming, IpAddr), &H),
    ) -> Result<bool, Error> {
        let Asked {
            within_ms,
            request,
            by,
        } = asked;
        let within = Duration::from_millis(within_ms).min(ANSWER_BOUND);
        if request == Request::Rdma {
            let answer = match incoming.offer(self.door.as_ref(), *here) {
                Ok(offered) => Answer::Rdma(offered),
                Err(why) => refuse(Why::Failed, &why),
            };
            let sent = wire::send(stream, &answer).await;
            sent.map_err(|error| Error::io(who.label, "answer it", &error))?;
            return Ok(true);
        }
        if let Request::Lend { of, pages } = request {
            let lent = timeout(within, handler.lend(who.peer, of, pages)).await;
            let lent = lent.map_err(|_| Error::slow(who.label, "answer what it asked", within))?;
            return lend(stream, lent)
                .await
                .map(|()| true)
                .map_err(|error| Error::io(who.label, "lend it memory", &error));
        }
        let heard = Heard::now();
        let comes = match &request {
            Request::Content { bytes, .. } => Some(*bytes),
            Request::Measure => Some(None),
            _ => None,
        };
        let (mut reader, mut writer) = tokio::io::split(stream);
        let source = match (comes, by) {
            (Some(_), by) => match self.source(by, incoming).await {
                Ok(Some(stream)) => Ok(Source::Rdma(stream)),
                Ok(None) => Ok(Source::Link(&mut reader)),
                Err(why) => Err(why),
            },
            (None, _) => Ok(Source::Link(&mut reader)),
        };
        let source = match source {
            Ok(source) => source,
            Err(why) => {
                let sent = wire::send(&mut writer, &refuse(Why::NotAllowed, &why)).await;
                sent.map_err(|error| Error::io(who.label, "answer it", &error))?;
                return Ok(false);
            }
        };
        let mut body = Body::new(source, (who.label, &heard), comes, self.patience.stall);
        let answer = self
            .one(who, request, &mut body, handler, (&heard, within))
            .await;
        let goes_on = body.is_over();
        // Whoever asked does not wait any more, and cannot know whether it was done.
        let answer =
            answer.ok_or_else(|| Error::slow(who.label, "answer what it asked", within))?;
        wire::send(&mut writer, &answer)
            .await
            .map_err(|error| Error::io(who.label, "answer it", &error))?;
        Ok(goes_on)
    }

    /// The stream that a content comes over; none where that is the connection.
    async fn source<'a>(
        &self,
        by: Transport,
        incoming: &'a mut Incoming,
    ) -> Result<Option<&'a mut super::rdma::stream::Receiver>, String> {
        if let Some(why) = self.door.as_ref().and_then(|door| door.refuses(by)) {
            return Err(why);
        }
        match by {
            Transport::Tcp => Ok(None),
            Transport::Rdma => incoming.stream().await.map(Some),
        }
    }

    async fn one<H: Handler>(
        &self,
        who: Who<'_>,
        request: Request,
        body: &mut Body<'_>,
        handler: &H,
        (heard, within): (&Heard, Duration),
    ) -> Option<Answer> {
        let peer = who.peer;
        let answer = async {
            match request {
                Request::Renew { signing } => self.renew(who, signing).await,
                Request::Measure => measured(body).await,
                Request::Reserve(reserve) if reserve.record.owner != peer.host => {
                    let (of, owner) = (reserve.of(), &reserve.record.owner);
                    let message = format!(
                        "{} of epoch {} belongs to {owner}, and {} asks for room for it; ask from there",
                        of.app, of.epoch, peer.host
                    );
                    refuse(Why::NotAllowed, &message)
                }
                Request::Prepare { contents, .. } if contents.len() > CONTENTS_MAX => {
                    let message = format!(
                        "it consists of {} contents, where {CONTENTS_MAX} may be; send some of them as one",
                        contents.len()
                    );
                    refuse(Why::Unfit, &message)
                }
                request => handler.answer(peer, request, body).await,
            }
        };
        tokio::pin!(answer);
        // As long as something comes, there is time.
        loop {
            let until = heard.last() + within;
            tokio::select! {
                answer = &mut answer => return Some(answer),
                () = tokio::time::sleep_until(until) => {
                    if heard.last() + within <= Instant::now() {
                        return None;
                    }
                }
            }
        }
    }

    async fn renew(
        &self,
        who: Who<'_>,
        signing: Option<super::authority::SigningRequest>,
    ) -> Answer {
        let Some(authority) = &self.authority else {
            let message = "this host does not hold the fleet's authority; ask the one that does";
            return refuse(Why::NotAllowed, message);
        };
        let authority = Arc::clone(authority);
        let Some(serial) = verify::serial(who.certificate) else {
            return refuse(Why::NotAllowed, "its certificate has no number; join anew");
        };
        let host = who.peer.host.clone();
        let now = wire::now(&**self.identity.clock());
        let renewed = tokio::task::spawn_blocking(move || {
            authority.renew((&host, &serial), signing.as_ref(), now)
        });
        match renewed.await {
            Ok(Ok(renewed)) => Answer::Renewed(renewed),
            Ok(Err(error)) => refuse(Why::Failed, &error.to_string()),
            Err(error) => refuse(
                Why::Failed,
                &format!("renew the certificate: {error}; try again"),
            ),
        }
    }
}

/// Answers with memory, or says why not.
async fn lend(
    stream: &mut TlsStream<TcpStream>,
    lent: Result<Vec<u8>, Answer>,
) -> std::io::Result<()> {
    let bytes = match lent {
        Ok(bytes) if bytes.len() <= frame::CHUNK_MAX => bytes,
        Ok(_) => {
            let refused = refuse(Why::Unfit, "it is more than can be lent at once");
            return wire::send(stream, &refused).await;
        }
        Err(answer) => return wire::send(stream, &answer).await,
    };
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let mut chunk = vec![0; frame::CHUNK_HEAD];
    chunk.extend(bytes);
    let chunk = frame::seal(chunk, false);
    wire::send(stream, &Answer::Lent { bytes: length }).await?;
    wire::write(stream, FrameKind::Chunk, &chunk).await?;
    stream.flush().await
}

/// Reads what comes, and forgets it.
async fn measured(body: &mut Body<'_>) -> Answer {
    let mut bytes = 0_u64;
    loop {
        match body.next().await {
            Ok(Some(_)) if bytes > MEASURE_MAX => {
                let message = format!("measure the link: more than {MEASURE_MAX} bytes came");
                return refuse(Why::NotAllowed, &message);
            }
            Ok(Some(chunk)) => bytes += u64::try_from(chunk.len()).unwrap_or(u64::MAX),
            Ok(None) => return Answer::Taken { bytes },
            Err(error) => return refuse(Why::Incomplete, &error.to_string()),
        }
    }
}

fn refuse(why: Why, message: &str) -> Answer {
    Answer::Refused(Refused {
        why,
        message: message.to_owned(),
    })
}

/// Tells a host that it has no room for another connection. Before it asks it expects no answer.
async fn one_too_many(
    stream: &mut TlsStream<TcpStream>,
    host: &HostName,
    label: &str,
) -> Result<(), Error> {
    let asked: Option<Asked> = wire::receive(stream, label, "hear what it asks").await?;
    if asked.is_none() {
        return hang_up(stream, label).await;
    }
    let sent = wire::send(stream, &too_many(host)).await;
    sent.map_err(|error| Error::io(label, "answer it", &error))?;
    after_early(stream, label).await
}

fn too_many(host: &HostName) -> Answer {
    let message = format!(
        "{host} has {} connections here, or all hosts together {}; try again when some have ended",
        CONNECTIONS.of_one, CONNECTIONS.all
    );
    refuse(Why::Busy, &message)
}

async fn hang_up(stream: &mut TlsStream<TcpStream>, label: &str) -> Result<(), Error> {
    let ended = timeout(HEARD_BOUND, stream.shutdown()).await;
    match ended {
        Ok(Err(error)) => Err(Error::io(label, "end the connection", &error)),
        _ => Ok(()),
    }
}

/// Waits until an answer was heard that came before the end of what was sent: a connection that is closed
/// while bytes are unread takes the answer away.
async fn after_early(stream: &mut TlsStream<TcpStream>, label: &str) -> Result<(), Error> {
    let mut unread = vec![0; 64 * 1024];
    let heard = timeout(HEARD_BOUND, async {
        stream.shutdown().await?;
        while stream.read(&mut unread).await? > 0 {}
        Ok::<_, std::io::Error>(())
    });
    match heard.await {
        // It has its answer, and hung up in the middle of what it sent.
        Ok(_) => Ok(()),
        Err(_) => Err(Error::slow(label, "hang up after its answer", HEARD_BOUND)),
    }
}
