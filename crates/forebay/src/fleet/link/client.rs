//! The side that asks.

use std::sync::Arc;
use std::time::Duration;

use forebay_core::fleet::HostName;
use rustix::net::sockopt::set_socket_keepalive;
use tokio::io::{AsyncRead, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig};

use super::error::{Error, Kind};
use super::frame::{self, FrameKind};
use super::identity::Identity;
use super::messages::{Answer, Request};
use super::rdma::{Carried, Choice, Exported, Next, Outgoing, Transport};
use super::stream::{self, Sending};
use super::wire::{self, Asked, Hello};
use super::{Peer, verify};

/// A connection to the agent of another host. One thing is asked at a time; several at a time need several
/// connections.
#[derive(Debug)]
pub(crate) struct Link {
    reader: ReadHalf<TlsStream<TcpStream>>,
    writer: WriteHalf<TlsStream<TcpStream>>,
    peer: Peer,
    label: String,
    identity: Arc<Identity>,
    /// What contents go by.
    outgoing: Outgoing,
    /// By which it showed who it is.
    certificate: CertificateDer<'static>,
    /// Whether it can be asked for [`Request::Measure`].
    measures: bool,
    /// An answer may still come to what nobody waits for any more.
    is_broken: bool,
}

impl Link {
    /// Connects to a host of the fleet, and sees that it is that host.
    ///
    /// # Errors
    /// When nobody answers there in time, it is not of the fleet or not that host, or it speaks another
    /// version, or its clock is too far away.
    pub(crate) async fn connect(
        identity: &Arc<Identity>,
        to: &HostName,
        address: &str,
        within: Duration,
    ) -> Result<Self, Error> {
        let label = format!("{to} at {address}");
        let connected = timeout(within, connect(identity, to, address, &label));
        connected
            .await
            .unwrap_or_else(|_| Err(Error::slow(&label, "connect to it", within)))
    }

    /// Whom it leads to.
    pub(crate) const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Sends contents by RDMA where that is wanted and can be.
    pub(crate) fn prefer(mut self, choice: Choice) -> Self {
        self.outgoing.prefer(choice);
        self
    }

    /// What contents go by; none where they do not go.
    pub(crate) fn carried(&self) -> Option<Carried> {
        self.outgoing.carried()
    }

    /// Whether it can be measured how fast contents go to it.
    pub(crate) const fn measures(&self) -> bool {
        self.measures
    }

    /// Whether something went wrong that makes it useless.
    pub(crate) const fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Whether something can be asked: nothing went wrong, and the other side is of the fleet still.
    pub(crate) fn is_usable(&self) -> bool {
        !self.is_broken && verify::again(&self.identity, &self.certificate).is_ok()
    }

    /// Asks, and waits for the answer for so long.
    ///
    /// # Errors
    /// When the other side's certificate has ended or it was forgotten, and nothing was asked. When no answer
    /// came: whether it was done is not known then. The link is broken.
    pub(crate) async fn ask(
        &mut self,
        request: &Request,
        within: Duration,
    ) -> Result<Answer, Error> {
        self.begin()?;
        let (label, peer) = (&self.label, &mut self.reader);
        let asked = timeout(within, async {
            put(&mut self.writer, request, (within, Transport::Tcp), label).await?;
            answer(peer, label).await
        });
        let answered = asked
            .await
            .unwrap_or_else(|_| Err(Error::slow(label, "answer", within)))?;
        self.is_broken = false;
        Ok(answered)
    }

    /// Asks for a content to be taken in, and sends its bytes.
    ///
    /// # Errors
    /// As [`Self::ask`], and when the content could not be read or sent to its end: whether it came whole is
    /// not known then. What has begun goes on to its end, whatever becomes of the certificate. After a content that
    /// was refused nothing can be asked any more.
    pub(crate) async fn send<S: AsyncRead + Unpin + ?Sized>(
        &mut self,
        request: &Request,
        source: &mut S,
        sending: Sending<'_>,
    ) -> Result<Answer, Error> {
        self.begin()?;
        let by = self.choose().await?;
        let (label, reader, writer) = (&self.label, &mut self.reader, &mut self.writer);
        put(writer, request, (sending.answer, by), label).await?;
        let stream = match by {
            Transport::Rdma => self.outgoing.stream(),
            Transport::Tcp => None,
        };
        let sends = async {
            match stream {
                Some(stream) => stream::send(stream, source, sending, label).await,
                None => stream::send(writer, source, sending, label).await,
            }
        };
        let mut answered = Box::pin(answer(reader, label));
        let mut sends = Box::pin(sends);
        let sent = tokio::select! {
            biased;
            sent = &mut sends => sent,
            early = &mut answered => {
                // Whoever cannot take it in says so before its end. Whoever has it all may say so before the
                // thread of a stream beside the link has said that it is sent.
                let early = early?;
                let is_sent = matches!(early, Answer::Taken { .. })
                    && matches!(timeout(LAST_WORD, sends).await, Ok(Ok(_)));
                self.is_broken = !is_sent;
                return Ok(early);
            }
        };
        let answered = match sent {
            Ok(_) => timeout(sending.answer, answered)
                .await
                .unwrap_or_else(|_| Err(Error::slow(label, "answer", sending.answer)))?,
            // It may have said why before it went away.
            Err(error) if matches!(error.kind, Kind::Cut | Kind::Unreachable) => {
                match timeout(LAST_WORD, answered).await {
                    Ok(Ok(refused @ Answer::Refused(_))) => return Ok(refused),
                    _ => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        // Refused before it was read: what is left of it would be taken for what is asked next.
        self.is_broken = matches!(answered, Answer::Refused(_));
        Ok(answered)
    }

    /// Asks for memory ([`Request::Lend`]), and waits for it for so long: what came, or what was answered instead.
    ///
    /// # Errors
    /// As [`Self::ask`], and when what came is not what was sent.
    pub(crate) async fn fetch(
        &mut self,
        request: &Request,
        within: Duration,
    ) -> Result<Result<Vec<u8>, Answer>, Error> {
        self.begin()?;
        let (label, reader) = (&self.label, &mut self.reader);
        let fetched = timeout(within, async {
            put(&mut self.writer, request, (within, Transport::Tcp), label).await?;
            match answer(reader, label).await? {
                Answer::Lent { bytes } => chunk(reader, bytes, label).await.map(Ok),
                other => Ok(Err(other)),
            }
        });
        let fetched = fetched
            .await
            .unwrap_or_else(|_| Err(Error::slow(label, "lend memory", within)))?;
        self.is_broken = false;
        Ok(fetched)
    }

    /// What the next content goes by.
    ///
    /// # Errors
    /// It has to be RDMA and cannot be, or the link broke.
    async fn choose(&mut self) -> Result<Transport, Error> {
        let next = match self.outgoing.next() {
            Next::Ask => {
                let (label, reader) = (&self.label, &mut self.reader);
                let asked = timeout(OFFER_MAX, async {
                    let writer = &mut self.writer;
                    put(writer, &Request::Rdma, (OFFER_MAX, Transport::Tcp), label).await?;
                    answer(reader, label).await
                });
                let offered = asked
                    .await
                    .unwrap_or_else(|_| Err(Error::slow(label, "offer RDMA", OFFER_MAX)))?;
                let offered = match offered {
                    Answer::Rdma(offered) => Ok(offered),
                    Answer::Refused(refused) => Err(refused.message),
                    _ => {
                        Err("the other host answers otherwise than is known here; update it".into())
                    }
                };
                self.outgoing.asked(offered).await
            }
            next => next,
        };
        match next {
            Next::Stream => Ok(Transport::Rdma),
            Next::Ask | Next::Tcp => Ok(Transport::Tcp),
            Next::Not(why) => Err(Error::new(
                Kind::Refused,
                &self.label,
                format!("send it by RDMA, as `fleet.link.rdma = \"require\"` wants: {why}"),
                "mend that, or set it to \"auto\"",
            )),
        }
    }

    /// Ends it, and says so to the other side.
    pub(crate) async fn close(mut self) {
        // It would see that the connection ended; an orderly end only spares it a line in its log.
        if let Ok(Err(error)) = timeout(LAST_WORD, self.writer.shutdown()).await {
            tracing::debug!(peer = self.label, %error, "a link ended without a word");
        }
    }

    fn begin(&mut self) -> Result<(), Error> {
        if self.is_broken {
            return Err(Error::cut(&self.label, "ask it again"));
        }
        self.is_broken = true;
        verify::again(&self.identity, &self.certificate)
            .map_err(|error| Error::tls(&self.label, "ask it", &error))
    }
}

/// How long a stream over RDMA may take to be offered.
const OFFER_MAX: Duration = Duration::from_secs(5);
/// How long the last word of somebody who goes away is waited for.
const LAST_WORD: Duration = Duration::from_secs(1);

async fn put(
    writer: &mut WriteHalf<TlsStream<TcpStream>>,
    request: &Request,
    (within, by): (Duration, Transport),
    label: &str,
) -> Result<(), Error> {
    let asked = Asked {
        within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
        request: request.clone(),
        by,
    };
    let sent = timeout(within, wire::send(writer, &asked)).await;
    match sent {
        Ok(sent) => sent.map_err(|error| Error::io(label, "ask it", &error)),
        Err(_) => Err(Error::slow(label, "ask it", within)),
    }
}

async fn answer(reader: &mut ReadHalf<TlsStream<TcpStream>>, label: &str) -> Result<Answer, Error> {
    let answer = wire::receive(reader, label, "hear its answer").await?;
    answer.ok_or_else(|| Error::cut(label, "hear its answer"))
}

/// So many bytes that follow an answer.
async fn chunk(
    reader: &mut ReadHalf<TlsStream<TcpStream>>,
    bytes: u64,
    label: &str,
) -> Result<Vec<u8>, Error> {
    const DOING: &str = "take what it lends";
    let frame = wire::read(reader).await;
    let raw = match frame.map_err(|broken| broken.of(label, DOING))? {
        Some((FrameKind::Chunk, payload)) => frame::parse_chunk(payload)
            .map_err(|error| wire::Broken::Frame(error).of(label, DOING))?,
        _ => return Err(Error::cut(label, DOING)),
    };
    match u64::try_from(raw.len()) == Ok(bytes) {
        true => Ok(raw),
        false => Err(Error::cut(label, DOING)),
    }
}

async fn connect(
    identity: &Arc<Identity>,
    to: &HostName,
    address: &str,
    label: &str,
) -> Result<Link, Error> {
    let clock = identity.clock();
    identity.look();
    let credentials = identity.credentials();
    let config = verify::client(&credentials, to, clock)
        .map_err(|error| unusable(label, &error.to_string()))?;
    // No name is sent, and none but the one in the certificate is looked at.
    let (mut stream, at) = tls(address, config, None, label).await?;
    let shown = stream.get_ref().1.peer_certificates();
    let certificate = shown.and_then(|shown| shown.first()).cloned();
    let certificate = certificate
        .ok_or_else(|| Error::tls(label, "greet it", &rustls::Error::NoCertificatesPresented))?;
    let own = Hello::new(credentials.host.clone(), &**clock);
    let (hello, clock_ahead_ms) = wire::greet(&mut stream, (own, &**clock), to, label).await?;
    let exported = Exported::of(stream.get_ref().1);
    let exported = exported.map_err(|error| Error::tls(label, "greet it", &error))?;
    let (reader, writer) = tokio::io::split(stream);
    Ok(Link {
        reader,
        writer,
        peer: Peer {
            host: hello.host,
            version: hello.forebay,
            address: at,
            clock_ahead_ms,
        },
        label: label.to_owned(),
        identity: Arc::clone(identity),
        outgoing: Outgoing::new(exported, hello.rdma),
        certificate,
        measures: hello.measures,
        is_broken: false,
    })
}

/// The certificate and key of this host cannot be used.
pub(super) fn unusable(label: &str, why: &str) -> Error {
    Error::new(
        Kind::Local,
        label,
        format!("use the certificate of this host: {why}"),
        "have it join the fleet anew: `forebay fleet join`",
    )
}

/// Connects and agrees on TLS; where it leads to.
pub(super) async fn tls(
    address: &str,
    config: ClientConfig,
    name: Option<ServerName<'static>>,
    label: &str,
) -> Result<(TlsStream<TcpStream>, std::net::SocketAddr), Error> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error| Error::io(label, "connect to it", &error))?;
    prepare(&stream).map_err(|error| Error::io(label, "connect to it", &error))?;
    let at = stream
        .peer_addr()
        .map_err(|error| Error::io(label, "connect to it", &error))?;
    let name = name.unwrap_or_else(|| ServerName::IpAddress(at.ip().into()));
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| Error::io(label, "agree on TLS with it", &error))?;
    Ok((stream, at))
}

/// Messages go at once, and a host that is gone is noticed.
pub(super) fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    set_socket_keepalive(stream, true)?;
    Ok(())
}
