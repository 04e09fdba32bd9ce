//! TLS towards clients, ended at the front: instances are asked in cleartext.
//!
//! A certificate is renewed while the front runs: connections that are there keep the old one, the
//! next ones get the new one. The front itself could not read its key: only its owner may.
//!
//! Which mode speaks it how is the mode's: `http` and `redis` from the first byte on
//! ([`Tls::accept`]), `postgres` once a client has asked for it ([`Tls::agree`]). Agreeing is bounded
//! in time, and in number by the front's connections alone: places of its own, fewer than those, would be
//! held by whoever begins and says no more, against everybody else. Whoever fails is counted as refused and
//! told of once in a while.

mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustix::net::RecvFlags;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

pub(crate) use self::wire::{Flow, Wire};
use crate::front::Complaint;
use crate::listen::Listen;
use crate::secret::Secret;
use crate::stream::{Address, Stream};
use crate::switchboard::{Switchboard, count};

/// How long a client may take until both sides have agreed.
const HANDSHAKE_BOUND: Duration = Duration::from_secs(10);
/// The first byte of TLS, which nothing that is spoken in cleartext begins with.
pub(crate) const HANDSHAKE: u8 = 0x16;

/// What can be chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Where the certificate is from.
    pub certificate_file: PathBuf,
    /// Where its key is from.
    pub key_file: PathBuf,
    /// What stood there.
    pub pem: Pem,
    /// Addresses at which TLS is spoken; all where none is named.
    pub listen: Vec<Listen>,
    /// Whether clients that could do without have to speak it: those of mode `postgres`, which say
    /// in cleartext that they would like to. In the other modes all have to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require: bool,
}

/// A certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pem {
    /// The certificate and then those that vouch for it.
    pub chain: String,
    /// The key.
    pub key: Secret,
}

/// Why TLS cannot be spoken with a certificate and a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The first file is none.
    #[error("there is no certificate in PEM: {0}")]
    Certificate(String),
    /// The second file is none.
    #[error("there is no private key in PEM: {0}")]
    Key(String),
    /// They are not of each other, or of a kind that is not known here.
    #[error("the certificate and the key cannot be used together: {0}")]
    Pair(String),
    /// Clients cannot be known by them.
    #[error("there is no authority in PEM to know clients by: {0}")]
    Clients(String),
}

/// Those whose certificates clients have to show, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Authorities(pub String);

impl Authorities {
    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.0.as_bytes()) {
            let certificate = certificate.map_err(|error| Error::Clients(error.to_string()))?;
            let added = roots.add(certificate);
            added.map_err(|error| Error::Clients(error.to_string()))?;
        }
        let provider = Arc::new(ring::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let built = builder.build();
        built.map_err(|error| Error::Clients(error.to_string()))
    }
}

impl Pem {
    /// Whether it can be used.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), Error> {
        self.server(&[], None).map(drop)
    }

    /// What speaks TLS with it: the protocols that are offered by ALPN, and whose clients are taken; anybody's
    /// where that is not said.
    ///
    /// # Errors
    /// What is wrong with it, or with the authorities of clients.
    pub fn server(
        &self,
        protocols: &[&[u8]],
        clients: Option<&Authorities>,
    ) -> Result<ServerConfig, Error> {
        let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes());
        let chain: Result<Vec<_>, _> = chain.collect();
        let chain = chain.map_err(|error| Error::Certificate(error.to_string()))?;
        if chain.is_empty() {
            return Err(Error::Certificate("it holds none".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(self.key.0.as_bytes())
            .map_err(|error| Error::Key(error.to_string()))?;
        let pair = |error: tokio_rustls::rustls::Error| Error::Pair(error.to_string());
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(pair)?;
        let builder = match clients {
            Some(clients) => builder.with_client_cert_verifier(clients.verifier()?),
            None => builder.with_no_client_auth(),
        };
        let mut server = builder.with_single_cert(chain, key).map_err(pair)?;
        server.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(server)
    }
}

fn addresses(listen: &[Listen]) -> io::Result<Vec<Address>> {
    let addresses = listen.iter().map(|listen| match listen {
        Listen::At(address) => Ok(address.clone()),
        // Its address was to be put in its place.
        Listen::Passed(_) => Err(io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            format!("nobody knows the address of {listen}"),
        )),
    });
    addresses.collect()
}

/// What all connections of a front share.
#[derive(Debug)]
pub(crate) struct Tls {
    listen: Vec<Address>,
    /// All clients have to speak it.
    pub(crate) is_required: bool,
    /// What is offered by ALPN, the best one first (RFC 7301).
    protocols: &'static [&'static [u8]],
    server: RwLock<Arc<ServerConfig>>,
    board: Arc<Switchboard>,
    complaint: Mutex<Complaint>,
}

impl Tls {
    /// # Errors
    /// When the certificate cannot be used.
    pub(crate) fn new(
        options: &Options,
        protocols: &'static [&'static [u8]],
        board: &Arc<Switchboard>,
    ) -> io::Result<Self> {
        let server = options.pem.server(protocols, None).map_err(|error| {
            let files = (
                options.certificate_file.display(),
                options.key_file.display(),
            );
            let why = format!("{} and {}: {error}", files.0, files.1);
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        Ok(Self {
            listen: addresses(&options.listen)?,
            is_required: options.require,
            protocols,
            server: RwLock::new(Arc::new(server)),
            board: Arc::clone(board),
            complaint: Mutex::new(Complaint::default()),
        })
    }

    /// Takes another certificate for all connections to come.
    ///
    /// # Errors
    /// When it cannot be used; the one before stays.
    pub(crate) fn renew(&self, pem: &Pem) -> Result<(), Error> {
        let server = Arc::new(pem.server(self.protocols, None)?);
        *self.server.write().unwrap_or_else(PoisonError::into_inner) = server;
        Ok(())
    }

    fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it is spoken at the address at which a connection was accepted.
    pub(crate) fn is_spoken(&self, stream: &Stream) -> bool {
        let mut listen = self.listen.iter();
        self.listen.is_empty()
            || match stream {
                Stream::Tcp(stream) => stream.local_addr().is_ok_and(|local| {
                    listen.any(|address| match address {
                        Address::Tcp(address) => {
                            let ip = address.ip().to_canonical();
                            address.port() == local.port()
                                && (ip.is_unspecified() || ip == local.ip().to_canonical())
                        }
                        Address::Unix(_) => false,
                    })
                }),
                Stream::Unix(stream) => stream.local_addr().is_ok_and(|local| {
                    listen.any(|address| match address {
                        Address::Tcp(_) => false,
                        Address::Unix(path) => local.as_pathname() == Some(path),
                    })
                }),
            }
    }

    /// Agrees with a client that has to begin with TLS.
    ///
    /// # Errors
    /// When it does not go on for ten seconds, or does not speak TLS as it is spoken here.
    pub(crate) async fn accept(&self, stream: Stream) -> io::Result<Accepted> {
        let until = Instant::now() + HANDSHAKE_BOUND;
        match within(until, first_byte(&stream)).await {
            Ok(Some(HANDSHAKE)) => {
                let stream = self.agree(stream, until).await?;
                Ok(Accepted::Tls(Box::new(stream)))
            }
            Ok(said) => {
                if said.is_some() {
                    count(&self.board.counters.refused);
                }
                Ok(Accepted::Cleartext(stream))
            }
            Err(error) => Err(self.refused(error)),
        }
    }

    /// Agrees with a client that begins TLS now.
    ///
    /// # Errors
    /// When it is not done by then, or the client does not speak TLS as it is spoken here.
    pub(crate) async fn agree(
        &self,
        stream: Stream,
        until: Instant,
    ) -> io::Result<TlsStream<Stream>> {
        let agreed = TlsAcceptor::from(self.server()).accept(stream);
        let agreed = within(until, agreed).await;
        agreed.map_err(|error| self.refused(error))
    }

    /// Counts a client that does not speak TLS as it has to, and says so once in a while.
    pub(crate) fn refused(&self, error: io::Error) -> io::Error {
        count(&self.board.counters.refused);
        let mut complaint = self
            .complaint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        complaint.add("a client did not agree on TLS", &error);
        error
    }
}

/// What comes of it in time.
async fn within<T>(until: Instant, what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout_at(until, what).await.unwrap_or_else(|_| {
        let why = format!("it took longer than {} s", HANDSHAKE_BOUND.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    })
}

/// What a client speaks where TLS is due.
#[derive(Debug)]
pub(crate) enum Accepted {
    Tls(Box<TlsStream<Stream>>),
    /// Not that; it has not been read yet.
    Cleartext(Stream),
}

/// What a client says first, which stays where it is; nothing when it says nothing.
pub(crate) async fn first_byte(stream: &Stream) -> io::Result<Option<u8>> {
    loop {
        stream.ready(Interest::READABLE).await?;
        let mut byte = [0];
        let peeked = stream.try_io(Interest::READABLE, || {
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            let (length, _) = rustix::net::recv(stream, &mut byte[..], flags)?;
            Ok(length)
        });
        match peeked {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(byte[0])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
    use tokio::time::Instant;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::ClientConfig;

    use super::*;
    use crate::switchboard::Instance;

    /// A certificate that vouches for itself, by the tool that everybody has.
    fn pem() -> Pem {
        let output = std::process::Command::new("openssl")
            .args([
                "req", "-x509", "-newkey", "ec", "-nodes", "-subj", "/CN=test",
            ])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", "-"])
            .args(["-addext", "subjectAltName=DNS:test"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let (key, chain) = text.split_once("-----BEGIN CERTIFICATE").unwrap();
        Pem {
            chain: format!("-----BEGIN CERTIFICATE{chain}"),
            key: Secret(key.to_owned()),
        }
    }

    fn options(listen: Vec<Listen>) -> Options {
        Options {
            certificate_file: "/etc/shop.crt".into(),
            key_file: "/etc/shop.key".into(),
            pem: pem(),
            listen,
            require: false,
        }
    }

    fn tls(options: &Options) -> io::Result<Tls> {
        let instance = Instance {
            app: "a".to_owned(),
            address: "/nonexistent/a".parse().unwrap(),
            elsewhere: None,
        };
        Tls::new(
            options,
            &[],
            &Arc::new(Switchboard::new(vec![instance], 0, 1)),
        )
    }

    #[test]
    fn what_cannot_be_used_is_said_with_its_file() {
        let good = options(Vec::new());
        assert!(
            !format!("{good:?}").contains("PRIVATE"),
            "it would reach logs"
        );
        let cases = [
            (
                "",
                good.pem.key.0.as_str(),
                "no certificate in PEM: it holds none",
            ),
            (good.pem.chain.as_str(), "", "no private key in PEM"),
            (&good.pem.chain, &good.pem.chain, "no private key in PEM"),
            (&good.pem.chain, &pem().key.0, "cannot be used together"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                &good.pem.key.0,
                "cannot be used together",
            ),
        ];
        for (chain, key, words) in cases {
            let mut bad = good.clone();
            bad.pem.chain = chain.to_owned();
            bad.pem.key = Secret(key.to_owned());
            let why = tls(&bad).unwrap_err().to_string();
            assert!(why.contains(words), "{why}");
            assert!(why.contains("/etc/shop.crt and /etc/shop.key"), "{why}");
        }
        assert!(tls(&good).is_ok());
    }

    #[tokio::test]
    async fn it_is_spoken_where_that_was_chosen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = UnixListener::bind(&path).unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (_tcp, tcp) = (asked.unwrap(), Stream::Tcp(accepted.unwrap().0));
        let (asked, accepted) = tokio::join!(UnixStream::connect(&path), local.accept());
        let (_unix, unix) = (asked.unwrap(), Stream::Unix(accepted.unwrap().0));
        let port = address.port();
        let path = path.to_str().unwrap();
        for (listen, expected) in [
            (vec![], (true, true)),
            (vec![format!("127.0.0.1:{port}")], (true, false)),
            (
                vec![format!("0.0.0.0:{port}"), path.to_owned()],
                (true, true),
            ),
            (vec![format!("[::]:{port}")], (true, false)),
            (vec![format!("127.0.0.2:{port}")], (false, false)),
            (
                vec!["127.0.0.1:1".to_owned(), path.to_owned()],
                (false, true),
            ),
        ] {
            let addresses = listen.iter().map(|text| text.parse().unwrap());
            let tls = tls(&options(addresses.collect())).unwrap();
            let spoken = (tls.is_spoken(&tcp), tls.is_spoken(&unix));
            assert_eq!(spoken, expected, "{listen:?}");
        }
    }

    #[tokio::test]
    async fn clients_that_begin_and_say_no_more_keep_nobody_waiting() {
        let options = options(Vec::new());
        let tls = Arc::new(tls(&options).unwrap());
        let mut silent = Vec::new();
        for _ in 0..1000 {
            let (mut client, stream) = UnixStream::pair().unwrap();
            client.write_all(b"\x16\x03\x01").await.unwrap();
            let tls = Arc::clone(&tls);
            let accepting = tokio::spawn(async move { tls.accept(Stream::Unix(stream)).await });
            silent.push((client, accepting));
        }
        let mut roots = RootCertStore::empty();
        let chain = CertificateDer::from_pem_slice(options.pem.chain.as_bytes());
        roots.add(chain.unwrap()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(config));
        let (client, stream) = UnixStream::pair().unwrap();
        let name = "test".try_into().unwrap();
        let agreed = timeout_at(Instant::now() + HANDSHAKE_BOUND / 2, async {
            tokio::join!(
                connector.connect(name, client),
                tls.accept(Stream::Unix(stream))
            )
        });
        let (_, accepted) = agreed.await.unwrap();
        assert!(matches!(accepted, Ok(Accepted::Tls(_))), "{accepted:?}");
        assert!(silent.iter().all(|(_, accepting)| !accepting.is_finished()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_does_not_end_is_bounded() {
        for bytes in [
            b"".as_slice(),
            b"\x16\x03\x01",
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        ] {
            let tls = tls(&options(Vec::new())).unwrap();
            let (mut client, stream) = UnixStream::pair().unwrap();
            client.write_all(bytes).await.unwrap();
            let began = Instant::now();
            let error = tls.accept(Stream::Unix(stream)).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
            assert_eq!(began.elapsed().as_secs(), HANDSHAKE_BOUND.as_secs());
            assert_eq!(tls.board.counters.refused.load(Ordering::Relaxed), 1);
        }
    }
}
