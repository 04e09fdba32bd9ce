//! One connection to one member of etcd at a time; to another one when that does not answer.
//!
//! Every attempt is bounded in time. What may be asked twice is, at the next member, until the time of
//! the request is over; what may not is asked once.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::super::REQUEST_MAX;
use crate::config::EtcdConfig;

/// How long one attempt may take: a request of etcd takes milliseconds.
const ATTEMPT_MAX: Duration = Duration::from_millis(1200);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// What a request may take of [`REQUEST_MAX`], which is the whole with all that is around it.
const DEADLINE: Duration = REQUEST_MAX.saturating_sub(Duration::from_millis(200));
/// Silence after which the connection is tried; etcd takes more often than every five seconds for an
/// attack.
const KEEP_ALIVE: Duration = Duration::from_secs(6);
/// How long that may take.
const KEEP_ALIVE_ANSWER: Duration = Duration::from_secs(3);

/// The connection.
pub(super) struct Connection {
    endpoints: Vec<String>,
    options: ConnectOptions,
    current: Mutex<Current>,
    /// Counts the connections that were given up.
    turn: watch::Sender<u64>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// What is in use.
#[derive(Default)]
struct Current {
    at: usize,
    client: Option<Client>,
}

/// A client, and which connection it is of.
pub(super) struct Lent {
    pub(super) client: Client,
    pub(super) endpoint: String,
    turn: u64,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) endpoint: String,
    pub(super) why: String,
    /// etcd said no before it did anything.
    pub(super) certain: bool,
    /// It said so because there is no such lease.
    pub(super) not_found: bool,
}

/// When a request has to be over.
pub(super) fn deadline() -> Instant {
    Instant::now() + DEADLINE
}

impl Connection {
    pub(super) fn new(config: &EtcdConfig) -> Self {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(ATTEMPT_MAX)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE_ANSWER)
            .with_keep_alive_while_idle(true)
            // A member that lost the others says so, and does not keep those who watch waiting.
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((name, password)) = &config.user {
            options = options.with_user(name.as_str(), password.0.as_str());
        }
        if let Some(tls) = &config.tls {
            let mut known = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some(own) = &tls.own {
                known = known.identity(Identity::from_pem(&own.chain, &own.key.0));
            }
            options = options.with_tls(known);
        }
        Self {
            endpoints: config.endpoints.clone(),
            options,
            current: Mutex::new(Current::default()),
            turn: watch::channel(0).0,
        }
    }

    /// Counts on when a connection was given up, so that whoever listens on it goes as well.
    pub(super) fn turns(&self) -> watch::Receiver<u64> {
        self.turn.subscribe()
    }

    /// A client of the connection in use, which is made where there is none.
    pub(super) async fn client(&self, until: Instant) -> Result<Lent, Trouble> {
        let mut current = timeout_at(until, self.current.lock())
            .await
            .map_err(|_| self.silent(0))?;
        let endpoint = self.endpoints[current.at].clone();
        let client = match &current.client {
            Some(client) => client.clone(),
            None => {
                let connecting = Client::connect([&endpoint], Some(self.options.clone()));
                let result = timeout_at(attempt(until), connecting).await;
                let error = match result {
                    Ok(Ok(client)) => {
                        current.client = Some(client.clone());
                        return Ok(self.lend(client, endpoint));
                    }
                    Ok(Err(error)) => trouble(&endpoint, &error),
                    Err(_) => self.silent(current.at),
                };
                current.at = (current.at + 1) % self.endpoints.len();
                return Err(error);
            }
        };
        Ok(self.lend(client, endpoint))
    }

    fn lend(&self, client: Client, endpoint: String) -> Lent {
        Lent {
            client,
            endpoint,
            turn: *self.turn.borrow(),
        }
    }

    /// A connection gave no answer: the next request goes to the next member, by a new one.
    pub(super) async fn give_up(&self, lent: &Lent) {
        let mut current = self.current.lock().await;
        if *self.turn.borrow() != lent.turn {
            return;
        }
        current.at = (current.at + 1) % self.endpoints.len();
        current.client = None;
        self.turn.send_modify(|turn| *turn += 1);
    }

    fn silent(&self, at: usize) -> Trouble {
        Trouble {
            endpoint: self.endpoints[at].clone(),
            why: "no answer in time".to_owned(),
            certain: false,
            not_found: false,
        }
    }

    /// Asks once. Whether it was done is not known after an error that is not certain.
    pub(super) async fn once<T, F: Future<Output = Result<T, Error>>>(
        &self,
        until: Instant,
        ask: impl FnOnce(Client) -> F,
    ) -> Result<T, Trouble> {
        let lent = self.client(until).await?;
        let error = match timeout_at(attempt(until), ask(lent.client.clone())).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => trouble(&lent.endpoint, &error),
            Err(_) => Trouble {
                endpoint: lent.endpoint.clone(),
                why: "no answer in time".to_owned(),
                certain: false,
                not_found: false,
            },
        };
        if !error.certain {
            self.give_up(&lent).await;
        }
        Err(error)
    }

    /// Asks what may be asked again, until there is an answer or the time is over.
    pub(super) async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        until: Instant,
        ask: impl Fn(Client) -> F,
    ) -> Result<T, Trouble> {
        loop {
            match self.once(until, &ask).await {
                Err(error) if !error.certain && Instant::now() + PAUSE < until => {
                    sleep(PAUSE).await;
                }
                answered => return answered,
            }
        }
    }
}

fn attempt(until: Instant) -> Instant {
    until.min(Instant::now() + ATTEMPT_MAX)
}

/// gRPC's numbers of what was refused before anything was done. Not among them: `RESOURCE_EXHAUSTED`,
/// which etcd also answers when it has done a transaction and its disk is full then.
const CERTAIN: [i32; 4] = [
    3,         // INVALID_ARGUMENT
    NOT_FOUND, // the lease
    7,         // PERMISSION_DENIED
    16,        // UNAUTHENTICATED
];
const NOT_FOUND: i32 = 5;

pub(super) fn trouble(endpoint: &str, error: &Error) -> Trouble {
    let (mut why, certain) = match error {
        Error::GRpcStatus(status) => (
            status.message().to_owned(),
            CERTAIN.contains(&i32::from(status.code())),
        ),
        Error::InvalidArgs(_) | Error::InvalidUri(_) => (error.to_string(), true),
        other => (other.to_string(), false),
    };
    let not_found =
        matches!(error, Error::GRpcStatus(status) if i32::from(status.code()) == NOT_FOUND);
    // What a transport says of itself is `transport error`: the cause is behind it.
    let mut source: Option<&dyn std::error::Error> = match error {
        Error::GRpcStatus(status) => std::error::Error::source(status),
        Error::TransportError(error) => std::error::Error::source(error),
        _ => None,
    };
    while let Some(cause) = source {
        let text = cause.to_string();
        if !why.contains(&text) {
            why = format!("{why}: {text}");
        }
        source = cause.source();
    }
    Trouble {
        endpoint: endpoint.to_owned(),
        why,
        certain,
        not_found,
    }
}
