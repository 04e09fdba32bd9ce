//! The coordinator that hosts share: etcd, version 3.4 or later.
//!
//! A thread of its own has the connection, so that whoever asks may be on any thread, and keeps
//! watching between two requests. A change of a record is one transaction on what the key was at when
//! it was read (its `mod_revision`): whatever another transaction did in between makes it fail, and one
//! whose answer was lost cannot take effect any more once the record was changed again.

mod connection;
mod watching;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, GetOptions, KeyValue, PutOptions, ResponseHeader, Txn, TxnOp,
    TxnOpResponse,
};
use forebay_core::app::AppId;
use forebay_core::fleet::rolling::Rolling;
use forebay_core::fleet::tenure::Lease;
use forebay_core::fleet::{Epoch, HostName, Ownership};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use self::connection::{Connection, Trouble, deadline};
use super::local::other_epoch;
use super::{
    CHANGE_ROLLING, COMMANDS_MAX, COMPLETED_TTL, Command, CommandId, Completed, Coordinator, Error,
    ErrorKind, Held, LEASE_ENDED, Member, Members, READ_ROLLING, REQUEST_MAX, Records, Unreadable,
    VALUE_MAX, View, exists, now, owner_lives, taken, too_many,
};
use crate::config::EtcdConfig;

/// A whole fleet in one answer: five thousand hosts, or some ten thousand records.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How often a change is tried that another one was faster than.
const CONTENDED_MAX: u32 = 8;

/// See the [module](self).
pub(crate) struct Etcd {
    place: String,
    shared: Arc<Shared>,
    runtime: Handle,
    /// Dropped to end the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Shared {
    connection: Connection,
    prefix: String,
}

impl Etcd {
    /// Starts the thread. etcd need not be there yet.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(config: &EtcdConfig) -> Result<Self, String> {
        let failed = |error: std::io::Error| {
            format!("start the thread that speaks with etcd: {error}; check limits on threads")
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("etcd".to_owned())
            .spawn(move || {
                // A dropped sender means the same as a sent stop.
                runtime.block_on(stopped).ok();
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Self {
            place: format!("etcd at {}", config.endpoints.join(", ")),
            shared: Arc::new(Shared {
                connection: Connection::new(config),
                prefix: config.prefix.clone(),
            }),
            runtime: handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Has the thread do something, and waits for it.
    fn run<T, F>(
        &self,
        attempt: String,
        work: impl FnOnce(Arc<Shared>, Instant) -> F,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failed>> + Send + 'static,
    {
        let (reply, answer) = mpsc::sync_channel(1);
        let working = work(Arc::clone(&self.shared), deadline());
        self.runtime.spawn(async move {
            // Whoever asked waits for it.
            reply.send(working.await).ok();
        });
        let failed = match answer.recv_timeout(REQUEST_MAX) {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(failed)) => failed,
            Err(_) => Failed {
                endpoint: None,
                kind: ErrorKind::Unknown("no answer in time".to_owned()),
            },
        };
        Err(Error {
            attempt,
            place: failed.endpoint.map_or_else(
                || self.place.clone(),
                |endpoint| format!("etcd at {endpoint}"),
            ),
            kind: failed.kind,
        })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that speaks with etcd panicked");
        }
    }
}

/// How an attempt failed, and at which member.
#[derive(Debug)]
struct Failed {
    endpoint: Option<String>,
    kind: ErrorKind,
}

impl From<Trouble> for Failed {
    fn from(trouble: Trouble) -> Self {
        let kind = match trouble.certain {
            true => ErrorKind::Refused(trouble.why),
            false => ErrorKind::Unknown(trouble.why),
        };
        Self {
            endpoint: Some(trouble.endpoint),
            kind,
        }
    }
}

fn refused(why: impl Into<String>) -> Failed {
    Failed {
        endpoint: None,
        kind: ErrorKind::Refused(why.into()),
    }
}

impl Shared {
    fn hosts(&self) -> String {
        format!("{}/hosts/", self.prefix)
    }

    fn host(&self, host: &HostName) -> String {
        format!("{}/hosts/{host}", self.prefix)
    }

    fn apps(&self) -> String {
        format!("{}/apps/", self.prefix)
    }

    fn app(&self, app: &AppId) -> String {
        format!("{}/apps/{app}", self.prefix)
    }

    fn commands(&self, host: &HostName) -> String {
        format!("{}/commands/{host}/", self.prefix)
    }

    fn completed(&self, host: &HostName, id: &CommandId) -> String {
        format!("{}/completed/{host}/{id}", self.prefix)
    }

    fn rolling(&self) -> String {
        format!("{}/rolling", self.prefix)
    }

    async fn get(&self, until: Instant, key: &str) -> Result<Option<KeyValue>, Failed> {
        let read = |mut client: Client| async move { client.get(key, None).await };
        let mut answer = self.connection.ask(until, read).await?;
        Ok(answer.take_kvs().pop())
    }

    /// All keys of a prefix, and at which revision that is.
    async fn list(&self, until: Instant, prefix: &str) -> Result<(i64, Vec<KeyValue>), Failed> {
        let read = |client: Client| async move {
            let mut client = client
                .kv_client()
                .max_decoding_message_size(ANSWER_BYTES_MAX);
            client
                .get(prefix, Some(GetOptions::new().with_prefix()))
                .await
        };
        let mut answer = self.connection.ask(until, read).await?;
        Ok((revision(answer.header())?, answer.take_kvs()))
    }

    /// Does what may be done again.
    async fn repeat(&self, until: Instant, txn: &Txn) -> Result<bool, Failed> {
        let write = |mut client: Client| async move { client.txn(txn.clone()).await };
        Ok(self.connection.ask(until, write).await?.succeeded())
    }

    async fn grant(&self, until: Instant, ttl: Duration) -> Result<(i64, Lease), Failed> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let ask = |mut client: Client| async move {
            // Before it is sent: etcd counts from when it hears of it, which is later.
            let renewed_at = now();
            Ok((renewed_at, client.lease_grant(seconds, None).await?))
        };
        let (renewed_at, granted) = self.connection.ask(until, ask).await?;
        // It may grant more than it was asked for.
        let ttl = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or_default());
        Ok((granted.id(), Lease { renewed_at, ttl }))
    }

    async fn join(&self, until: Instant, member: &Member, ttl: Duration) -> Result<Held, Failed> {
        let key = self.host(&member.host);
        let value = encode(member)?;
        let (id, lease) = self.grant(until, ttl).await?;
        for _ in 0..CONTENDED_MAX {
            let found = self.get(until, &key).await?;
            if let Some(found) = &found {
                let other: Member = decode(found)?;
                if other.agent != member.agent {
                    // It ends by itself where this does not reach it.
                    self.revoke(until, id).await.ok();
                    return Err(refused(taken(&other)));
                }
            }
            let seen = found.map_or(0, |found| found.mod_revision());
            let leased = PutOptions::new().with_lease(id);
            let txn = Txn::new()
                .when([Compare::mod_revision(key.as_str(), CompareOp::Equal, seen)])
                .and_then([TxnOp::put(key.as_str(), value.clone(), Some(leased))]);
            if self.repeat(until, &txn).await? {
                return Ok(Held {
                    id,
                    host: member.host.clone(),
                    lease,
                });
            }
        }
        Err(refused(
            "others keep changing this host's key; look who they are",
        ))
    }

    async fn renew(&self, until: Instant, held: &Held) -> Result<Option<Held>, Failed> {
        let id = held.id;
        let ask = |mut client: Client| async move {
            let renewed_at = now();
            match client.lease_keep_alive(id).await {
                Ok(_) => Ok(Some(renewed_at)),
                // It says so, too, when it could not ask.
                Err(error @ etcd_client::Error::LeaseKeepAliveError(_)) => {
                    let left = client.lease_time_to_live(id, None).await?.ttl();
                    if left > 0 { Err(error) } else { Ok(None) }
                }
                Err(error) => Err(error),
            }
        };
        let Some(renewed_at) = self.connection.ask(until, ask).await? else {
            return Ok(None);
        };
        // Others look at the key alone, which somebody may have deleted while the lease goes on, or a
        // clone of this host put under its own.
        let key = self.get(until, &self.host(&held.host)).await?;
        Ok(key.filter(|key| key.lease() == id).map(|_| Held {
            lease: Lease {
                renewed_at,
                ..held.lease
            },
            ..held.clone()
        }))
    }

    async fn revoke(&self, until: Instant, id: i64) -> Result<(), Failed> {
        let ask = |mut client: Client| async move { client.lease_revoke(id).await };
        match self.connection.ask(until, ask).await {
            Ok(_) => Ok(()),
            // It has ended already; of one that may not be ended nobody can say so.
            Err(trouble) if trouble.not_found => Ok(()),
            Err(trouble) => Err(trouble.into()),
        }
    }

    /// Changes a record from what `check` accepts to another one, or removes it. `gone` must not be a
    /// member, which is looked at in the same transaction.
    async fn change(
        &self,
        until: Instant,
        app: &AppId,
        to: Option<&Ownership>,
        gone: Option<&HostName>,
        check: impl Fn(Option<&Ownership>) -> Result<(), String>,
    ) -> Result<(), Failed> {
        let key = self.app(app);
        for _ in 0..CONTENDED_MAX {
            let found = self.get(until, &key).await?;
            let record = found.as_ref().map(decode::<Ownership>).transpose()?;
            check(record.as_ref()).map_err(refused)?;
            let seen = found.map_or(0, |found| found.mod_revision());
            let mut when = vec![Compare::mod_revision(key.as_str(), CompareOp::Equal, seen)];
            let mut otherwise = Vec::new();
            if let Some(gone) = gone {
                let host = self.host(gone);
                when.push(Compare::create_revision(host.as_str(), CompareOp::Equal, 0));
                otherwise.push(TxnOp::get(host, None));
            }
            let then = match to {
                Some(to) => TxnOp::put(key.as_str(), encode(to)?, None),
                None => TxnOp::delete(key.as_str(), None),
            };
            let txn = Txn::new().when(when).and_then([then]).or_else(otherwise);
            // Once: of one whose answer was lost nobody knows whether it took effect.
            let ask = |mut client: Client| async move { client.txn(txn).await };
            let answer = self.connection.once(until, ask).await?;
            if answer.succeeded() {
                return Ok(());
            }
            let lives = answer.op_responses().into_iter().any(
                |answer| matches!(answer, TxnOpResponse::Get(found) if !found.kvs().is_empty()),
            );
            if let (Some(gone), true) = (gone, lives) {
                return Err(refused(owner_lives(gone)));
            }
        }
        Err(refused("others keep changing it; try again"))
    }

    async fn post(
        &self,
        until: Instant,
        host: &HostName,
        command: &Command,
    ) -> Result<CommandId, Failed> {
        let prefix = self.commands(host);
        let counted = prefix.as_str();
        let count = |mut client: Client| async move {
            let options = GetOptions::new().with_prefix().with_count_only();
            client.get(counted, Some(options)).await
        };
        let waiting = self.connection.ask(until, count).await?.count();
        if usize::try_from(waiting).unwrap_or(usize::MAX) >= COMMANDS_MAX {
            return Err(refused(too_many(host)));
        }
        let id = CommandId::new();
        let key = format!("{prefix}{id}");
        let completed = self.completed(host, &id);
        let never = |key: &str| Compare::create_revision(key, CompareOp::Equal, 0);
        let txn = Txn::new()
            .when([never(&key), never(&completed)])
            .and_then([TxnOp::put(key.as_str(), encode(command)?, None)]);
        // Where one of them is there, an earlier attempt put it whose answer was lost: once more, and
        // its host would carry it out twice.
        self.repeat(until, &txn).await?;
        Ok(id)
    }

    async fn complete(
        &self,
        until: Instant,
        host: &HostName,
        id: &CommandId,
        how: &Completed,
    ) -> Result<(), Failed> {
        let asked = format!("{}{id}", self.commands(host));
        let (kept, _) = self.grant(until, COMPLETED_TTL).await?;
        let answer = TxnOp::put(
            self.completed(host, id),
            encode(how)?,
            Some(PutOptions::new().with_lease(kept)),
        );
        // Where it is not there, it was completed before, and the answer was lost.
        let txn = Txn::new()
            .when([Compare::create_revision(
                asked.as_str(),
                CompareOp::Greater,
                0,
            )])
            .and_then([TxnOp::delete(asked, None), answer]);
        self.repeat(until, &txn).await?;
        Ok(())
    }
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, Failed> {
    let bytes = serde_json::to_vec(value).map_err(|error| refused(error.to_string()))?;
    match bytes.len() <= VALUE_MAX {
        true => Ok(bytes),
        false => Err(refused(format!(
            "it is {} bytes long, and {VALUE_MAX} are the most",
            bytes.len()
        ))),
    }
}

fn decode<T: DeserializeOwned>(found: &KeyValue) -> Result<T, Failed> {
    let unreadable = |why: String| {
        refused(format!(
            "what is in {} cannot be read: {why}; look who wrote it, and remove it if it is nobody's",
            String::from_utf8_lossy(found.key())
        ))
    };
    if found.value().len() > VALUE_MAX {
        return Err(unreadable(format!("it is longer than {VALUE_MAX} bytes")));
    }
    serde_json::from_slice(found.value()).map_err(|error| unreadable(error.to_string()))
}

fn revision(header: Option<&ResponseHeader>) -> Result<i64, Failed> {
    let revision = header.map(ResponseHeader::revision);
    revision.ok_or_else(|| refused("etcd did not say at which revision it is"))
}

/// What a key says after its prefix.
fn rest(found: &KeyValue, prefix: &str) -> String {
    let key = String::from_utf8_lossy(found.key());
    key.strip_prefix(prefix).unwrap_or(&key).to_owned()
}

fn name<T: std::str::FromStr>(found: &KeyValue, prefix: &str) -> Result<T, Failed>
where
    T::Err: fmt::Display,
{
    rest(found, prefix).parse().map_err(|error| {
        let key = String::from_utf8_lossy(found.key());
        refused(format!(
            "the key {key} is not Forebay's: {error}; remove it, or give the fleet another prefix"
        ))
    })
}

/// One record; why it cannot be read otherwise, of which there is a warning.
fn readable(found: &KeyValue, prefix: &str) -> Result<(AppId, Ownership), String> {
    let read = || Ok((name(found, prefix)?, decode(found)?));
    read().map_err(|failed: Failed| {
        let why = failed.kind.why().to_owned();
        tracing::warn!(why, "nobody can tell who owns an application");
        why
    })
}

/// Those that can be read: what somebody wrote by mistake, or a later release, must not hide all others.
fn records(found: &[KeyValue], prefix: &str) -> (Records, Unreadable) {
    let (mut records, mut unreadable) = (Records::new(), Unreadable::new());
    for found in found {
        match readable(found, prefix) {
            Ok((app, record)) => _ = records.insert(app, record),
            Err(why) => {
                let key = String::from_utf8_lossy(found.key());
                unreadable.insert(key.into_owned(), why);
            }
        }
    }
    (records, unreadable)
}

/// A command; one that cannot be read is one that this release does not know, and is refused as such.
fn command(found: &KeyValue) -> Command {
    decode(found).unwrap_or_else(|failed| {
        tracing::warn!(why = failed.kind.why(), "a command is refused");
        Command::Other
    })
}

impl Coordinator for Etcd {
    fn place(&self) -> &str {
        &self.place
    }

    fn join(&self, member: &Member, ttl: Duration) -> Result<Held, Error> {
        let own = member.clone();
        self.run(
            format!("join as {}", member.host),
            move |shared, until| async move { shared.join(until, &own, ttl).await },
        )
    }

    fn renew(&self, held: &Held) -> Result<Option<Held>, Error> {
        let held = held.clone();
        self.run(
            "renew the lease".to_owned(),
            move |shared, until| async move { shared.renew(until, &held).await },
        )
    }

    fn publish(&self, held: &Held, member: &Member) -> Result<(), Error> {
        let (id, own) = (held.id, member.clone());
        self.run(
            format!("publish {}", member.host),
            move |shared, until| async move {
                let key = shared.host(&own.host);
                let leased = PutOptions::new().with_lease(id);
                let txn = Txn::new()
                    .when([Compare::lease(key.as_str(), CompareOp::Equal, id)])
                    .and_then([TxnOp::put(key, encode(&own)?, Some(leased))]);
                match shared.repeat(until, &txn).await? {
                    true => Ok(()),
                    false => Err(refused(LEASE_ENDED)),
                }
            },
        )
    }

    fn leave(&self, held: &Held) -> Result<(), Error> {
        let id = held.id;
        self.run(
            "end the lease".to_owned(),
            move |shared, until| async move { shared.revoke(until, id).await },
        )
    }

    fn hosts(&self) -> Result<Members, Error> {
        self.run("list the hosts".to_owned(), |shared, until| async move {
            let mut members = Members::new();
            for found in shared.list(until, &shared.hosts()).await?.1 {
                match decode::<Member>(&found) {
                    Ok(member) => _ = members.insert(member.host.clone(), member),
                    // One host of another release must not hide all others.
                    Err(failed) => tracing::warn!(?failed, "a host is left out"),
                }
            }
            Ok(members)
        })
    }

    fn record(&self, app: &AppId) -> Result<Option<Ownership>, Error> {
        let own = app.clone();
        self.run(
            format!("read who owns {app}"),
            move |shared, until| async move {
                let found = shared.get(until, &shared.app(&own)).await?;
                found.as_ref().map(decode).transpose()
            },
        )
    }

    fn records(&self) -> Result<(i64, Records), Error> {
        self.run(
            "read who owns what".to_owned(),
            |shared, until| async move {
                let prefix = shared.apps();
                let (revision, found) = shared.list(until, &prefix).await?;
                Ok((revision, records(&found, &prefix).0))
            },
        )
    }

    fn create(&self, app: &AppId, record: &Ownership) -> Result<(), Error> {
        let (own, record) = (app.clone(), record.clone());
        self.run(
            format!("change who owns {app}"),
            move |shared, until| async move {
                let check = |found: Option<&Ownership>| found.map_or(Ok(()), |f| Err(exists(f)));
                shared.change(until, &own, Some(&record), None, check).await
            },
        )
    }

    fn change(&self, app: &AppId, epoch: Epoch, to: &Ownership) -> Result<(), Error> {
        let (own, to) = (app.clone(), to.clone());
        self.run(
            format!("change who owns {app}"),
            move |shared, until| async move {
                let check = |found: Option<&Ownership>| at_epoch(found, epoch);
                shared.change(until, &own, Some(&to), None, check).await
            },
        )
    }

    fn take_over(&self, app: &AppId, from: &Ownership, to: &Ownership) -> Result<(), Error> {
        let (own, from, to) = (app.clone(), from.clone(), to.clone());
        self.run(
            format!("change who owns {app}"),
            move |shared, until| async move {
                let check = |found: Option<&Ownership>| match found {
                    Some(found) if *found == from => Ok(()),
                    other => Err(other_epoch(other, from.epoch)),
                };
                let gone = Some(&from.owner);
                shared.change(until, &own, Some(&to), gone, check).await
            },
        )
    }

    fn forget(&self, app: &AppId, epoch: Epoch) -> Result<(), Error> {
        let own = app.clone();
        self.run(
            format!("change who owns {app}"),
            move |shared, until| async move {
                let check = |found: Option<&Ownership>| at_epoch(found, epoch);
                shared.change(until, &own, None, None, check).await
            },
        )
    }

    fn watch(&self, host: &HostName) -> watch::Receiver<View> {
        let (tell, view) = watch::channel(View {
            lost: Some((now(), "nothing was read yet".to_owned())),
            ..View::default()
        });
        let following = watching::follow(Arc::clone(&self.shared), host.clone(), tell);
        self.runtime.spawn(following);
        view
    }

    fn post(&self, host: &HostName, command: &Command) -> Result<CommandId, Error> {
        let (to, command) = (host.clone(), command.clone());
        let attempt = format!("ask {host} to {command}");
        self.run(attempt, move |shared, until| async move {
            shared.post(until, &to, &command).await
        })
    }

    fn complete(&self, host: &HostName, id: &CommandId, how: &Completed) -> Result<(), Error> {
        let (by, id, how) = (host.clone(), id.clone(), how.clone());
        let attempt = format!("complete a command for {host}");
        self.run(attempt, move |shared, until| async move {
            shared.complete(until, &by, &id, &how).await
        })
    }

    fn completed(&self, host: &HostName, id: &CommandId) -> Result<Option<Completed>, Error> {
        let attempt = format!("ask what became of a command for {host}");
        let (by, id) = (host.clone(), id.clone());
        self.run(attempt, move |shared, until| async move {
            let found = shared.get(until, &shared.completed(&by, &id)).await?;
            found.as_ref().map(decode).transpose()
        })
    }

    fn rolling(&self) -> Result<(i64, Rolling), Error> {
        self.run(READ_ROLLING.to_owned(), |shared, until| async move {
            match shared.get(until, &shared.rolling()).await? {
                None => Ok((0, Rolling::default())),
                Some(found) => Ok((found.mod_revision(), decode(&found)?)),
            }
        })
    }

    fn roll(&self, seen: i64, to: &Rolling) -> Result<bool, Error> {
        let to = to.clone();
        self.run(CHANGE_ROLLING.to_owned(), move |shared, until| async move {
            let key = shared.rolling();
            let txn = Txn::new()
                .when([Compare::mod_revision(key.as_str(), CompareOp::Equal, seen)])
                .and_then([TxnOp::put(key, encode(&to)?, None)]);
            // Once: of one whose answer was lost nobody knows whether it took effect.
            let ask = |mut client: Client| async move { client.txn(txn).await };
            Ok(shared.connection.once(until, ask).await?.succeeded())
        })
    }
}

fn at_epoch(found: Option<&Ownership>, epoch: Epoch) -> Result<(), String> {
    match found {
        Some(found) if found.epoch == epoch => Ok(()),
        other => Err(other_epoch(other, epoch)),
    }
}
