//! What a front speaks with its clients, and how its shadows are kept in step.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::http;
use crate::listen::{Listen, Listener};
use crate::postgres;
use crate::proxy::Introduction;
use crate::redis;
use crate::refuse::{self, Refusal};
use crate::rest::{Known, Resting};
use crate::secret::Secret;
use crate::stream::Stream;
use crate::switchboard::Switchboard;
use crate::synchronise::{Standby, Synchroniser};
use crate::tcp;
use crate::tls::{self, Tls};

/// A mode with what can be chosen of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Bytes.
    Tcp,
    /// HTTP/1.1 and HTTP/2.
    Http(http::Options),
    /// RESP, the protocol of Redis.
    Redis(redis::Options),
    /// Version 3 of PostgreSQL's protocol.
    Postgres(postgres::Options),
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Http(_) => "http",
            Self::Redis(_) => "redis",
            Self::Postgres(_) => "postgres",
        })
    }
}

impl Mode {
    /// TLS with clients, where it is spoken.
    #[must_use]
    pub const fn tls(&self) -> Option<&tls::Options> {
        match self {
            Self::Tcp => None,
            Self::Http(options) => options.tls.as_ref(),
            Self::Redis(options) => options.tls.as_ref(),
            Self::Postgres(options) => options.tls.as_ref(),
        }
    }

    fn tls_mut(&mut self) -> Option<&mut tls::Options> {
        match self {
            Self::Tcp => None,
            Self::Http(options) => options.tls.as_mut(),
            Self::Redis(options) => options.tls.as_mut(),
            Self::Postgres(options) => options.tls.as_mut(),
        }
    }

    /// Leaves a certificate out, which is renewed without another plan.
    pub fn forget_certificate(&mut self) {
        if let Some(tls) = self.tls_mut() {
            tls.pem = tls::Pem {
                chain: String::new(),
                key: Secret(String::new()),
            };
        }
    }

    /// The same, with the addresses of sockets that were passed in place of their names.
    ///
    /// # Errors
    /// When one of these has none.
    pub(crate) fn listening(&self, listeners: &[(Listen, Listener)]) -> io::Result<Self> {
        let mut mode = self.clone();
        if let Some(tls) = mode.tls_mut() {
            let (mut listen, names) = tls
                .listen
                .drain(..)
                .partition::<Vec<_>, _>(|one| matches!(one, Listen::At(_)));
            for (_, socket) in listeners.iter().filter(|(name, _)| names.contains(name)) {
                listen.push(socket.address()?.into());
            }
            if listen.is_empty() && !names.is_empty() {
                // None would mean all.
                return Err(io::ErrorKind::AddrNotAvailable.into());
            }
            tls.listen = listen;
        }
        Ok(mode)
    }

    /// Leaves out what is nobody's to know, but not that it is there.
    pub fn forget_secrets(&mut self) {
        self.forget_certificate();
        let forget = |secret: &mut Secret| secret.0.clear();
        match self {
            Self::Tcp | Self::Http(_) => {}
            Self::Redis(options) => options.password.iter_mut().for_each(forget),
            Self::Postgres(options) => {
                options.password.iter_mut().for_each(forget);
                options.passwords.values_mut().for_each(forget);
            }
        }
    }
}

/// What all connections of a front share.
#[derive(Debug, Clone)]
pub(crate) enum Service {
    Tcp(Arc<Switchboard>, Duration),
    Http(Arc<http::Shared>),
    Redis(Arc<Switchboard>, Arc<redis::Setup>, Duration),
    Postgres(Arc<postgres::Shared>, Duration),
}

impl Service {
    /// For requests that may wait so long for somebody to serve them, with what keeps shadows in
    /// step.
    ///
    /// # Errors
    /// When what was chosen of the mode cannot be.
    pub(crate) fn new(
        mode: &Mode,
        board: &Arc<Switchboard>,
        patience: Duration,
    ) -> io::Result<(Self, Arc<dyn Synchroniser>)> {
        let own = Arc::clone(board);
        Ok(match mode {
            Mode::Tcp => (Self::Tcp(own, patience), Arc::new(Standby)),
            Mode::Http(options) => {
                let shared = http::Shared::new(own, options.clone(), patience)?;
                (Self::Http(Arc::new(shared)), Arc::new(Standby))
            }
            Mode::Redis(options) => {
                let native = redis::Native::new(options, board.instances());
                let setup = Arc::new(redis::Setup::new(options, &native, board)?);
                let native = Arc::new(native);
                (Self::Redis(own, setup, patience), native)
            }
            Mode::Postgres(options) => {
                let shared = postgres::Shared::new(options, board)?;
                let native = shared.synchroniser();
                (Self::Postgres(Arc::new(shared), patience), native)
            }
        })
    }

    /// Tells a client that there are too many, in the words of its protocol where it has some.
    pub(crate) async fn refuse(&self, client: Stream) {
        let refusal = match self {
            Self::Tcp(..) => return,
            // What is not encrypted says nothing to a client of TLS.
            Self::Http(shared) if shared.speaks_tls(&client) => return,
            Self::Http(_) => Refusal::Http,
            Self::Redis(_, setup, _) if setup.speaks_tls(&client).is_some() => return,
            Self::Redis(..) => Refusal::Redis,
            Self::Postgres(shared, _) if shared.offers_tls(&client).is_some() => {
                Refusal::PostgresOverTls
            }
            Self::Postgres(..) => Refusal::Postgres,
        };
        if let Err(error) = refuse::tell(client, refusal).await {
            tracing::debug!(%error, "a client was not told that there are too many");
        }
    }

    /// Takes another certificate for connections to come.
    ///
    /// # Errors
    /// When it cannot be used, or there is no use for one.
    pub(crate) fn renew(&self, pem: &tls::Pem) -> Result<(), String> {
        let tls: Option<&Tls> = match self {
            Self::Tcp(..) => return Err("mode tcp passes TLS on and speaks none".to_owned()),
            Self::Http(shared) => shared.tls(),
            Self::Redis(_, setup, _) => setup.tls(),
            Self::Postgres(shared, _) => shared.tls(),
        };
        let tls = tls.ok_or("the front speaks no TLS; restart it with its new plan")?;
        tls.renew(pem).map_err(|error| error.to_string())
    }

    /// Goes on with a client whose connection was at rest, until it ends.
    ///
    /// # Errors
    /// When its connection broke, or could not be served.
    pub(crate) async fn resume(&self, resting: Resting) -> io::Result<()> {
        let Resting {
            stream,
            unread,
            known,
        } = resting;
        match (self, known) {
            (Self::Http(shared), Known::Http { address, fresh }) => {
                http::resume(shared, (stream, unread), address, fresh).await
            }
            (Self::Redis(board, setup, patience), Known::Redis(state)) => {
                redis::resume(board, (stream, unread, *state), setup, *patience).await
            }
            (_, Known::Http { .. } | Known::Redis(_)) => Err(io::Error::other(
                "a connection of another mode does not go on here",
            )),
        }
    }

    /// Whether it can go on with such a connection.
    pub(crate) const fn knows(&self, known: &Known) -> bool {
        matches!(
            (self, known),
            (Self::Http(_), Known::Http { .. }) | (Self::Redis(..), Known::Redis(_))
        )
    }

    /// Serves one client until it ends.
    ///
    /// # Errors
    /// When its connection broke, or could not be served.
    pub(crate) async fn serve(&self, client: Stream, introduction: Introduction) -> io::Result<()> {
        match self {
            Self::Tcp(board, patience) => {
                tcp::serve(board, client, &introduction.header, *patience).await
            }
            Self::Redis(board, setup, patience) => {
                redis::serve(board, client, setup, *patience).await
            }
            Self::Postgres(shared, patience) => postgres::serve(shared, client, *patience).await,
            Self::Http(shared) => http::serve(shared, client, introduction.address()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn tls_is_spoken_at_the_addresses_of_sockets_that_were_passed() {
        let passed = |name: &str| Listen::Passed(name.to_owned());
        let listener = || Listener::Tcp(TcpListener::bind("127.0.0.1:0").unwrap());
        let own: Listen = "127.0.0.1:443".parse().unwrap();
        let listeners = ["tls", "plain", "tls"].map(|name| (passed(name), listener()));
        let mode = |listen: Vec<Listen>| {
            let tls = tls::Options {
                certificate_file: "/crt".into(),
                key_file: "/key".into(),
                pem: tls::Pem {
                    chain: String::new(),
                    key: Secret(String::new()),
                },
                listen,
                require: false,
            };
            Mode::Http(http::Options {
                tls: Some(tls),
                ..http::Options::default()
            })
        };
        let check = |listen: Vec<Listen>, expected: Vec<Listen>| {
            let prepared = mode(listen).listening(&listeners).unwrap();
            assert_eq!(prepared, mode(expected));
        };
        check(Vec::new(), Vec::new());
        check(vec![own.clone()], vec![own.clone()]);
        let at = |place: usize| Listen::At(listeners[place].1.address().unwrap());
        check(vec![passed("tls"), own.clone()], vec![own, at(0), at(2)]);
        // Nowhere is not everywhere.
        assert!(mode(vec![passed("other")]).listening(&listeners).is_err());
    }
}
