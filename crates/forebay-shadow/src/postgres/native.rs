//! `native`: the shadow is a streaming standby.
//!
//! The front watches both servers over connections of its own, and promotes the standby. It has no
//! right to anybody's data directory. Where these are configured (`data`), an instance that follows
//! nobody is ended, and made a standby when it is begun again ([`super::standby`]). Else that is up
//! to the command `rebuild`, which the front starts and whose end it waits for. Either is also what
//! stops a primary that has handed over: until then that one still takes writes of whoever reaches
//! it without the front, and they are lost.
//!
//! With [`Guarantee::Strict`] it also keeps `synchronous_standby_names` of the primary: it
//! names the standby for as long as that can take over, and nobody while none can, so that a primary
//! that is alone goes on. The name is the one by which the standby itself says that it is connected
//! ([`account`](super::account)), and counts only while nobody else who receives the log has it. The order
//! is what keeps the promise: a standby is ready only after commits really wait for it
//! ([`heed`](super::heed)), and commits stop waiting only after the front has ceased to regard it as ready.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use forebay_core::shadow::promotion::{Epoch, Slot};

use super::account::{PRIMARY, Primary, SHADOW, Shadow};
use super::client::{Connection, Credential, Rows, Trouble};
use super::frame::Opening;
use super::heed::{Heed, NAMES};
use super::scram::Verifier;
use super::sql::{identifier, literal};
use super::{Guarantee, Options};
use crate::stream::Stream;
use crate::switchboard::{Instance, Switchboard};
use crate::synchronise::{Lag, Pending, Renewal, Standing, Synchroniser, Witness};

/// How long a server may take to answer a question of the front.
const ANSWER_BOUND: Duration = Duration::from_secs(1);
/// How long a promotion may take.
const PROMOTE_BOUND: Duration = Duration::from_secs(9);
/// How often it is asked whether it is done; `pg_promote` itself looks every 100 ms.
const PROMOTE_POLL: Duration = Duration::from_millis(1);
/// How long a standby may take for what a primary that is to hand over has written.
const CATCH_UP_BOUND: Duration = Duration::from_secs(5);
/// How long a rebuild may take.
const REBUILD_BOUND: Duration = Duration::from_secs(3600);
/// How often it is looked whether it has ended.
const REBUILD_POLL: Duration = Duration::from_millis(20);
/// How soon after a rebuild another one is begun.
const REBUILD_PAUSE: Duration = Duration::from_secs(2);
/// A standby whose primary is gone heeds a promotion only after this pause of its own.
const RETRIES_MAX: Duration = Duration::from_millis(10);
/// Verifiers and promotions that are remembered.
const REMEMBERED_MAX: usize = 1024;

/// What is known of one server.
#[derive(Debug, Default)]
struct Place {
    monitor: tokio::sync::Mutex<Option<Connection>>,
    /// Whether it could take over when that was last seen; none before it was.
    in_step: Mutex<Option<bool>>,
    /// Since when it has been nobody's standby.
    astray_since: Mutex<Option<Instant>>,
    rebuilt: Mutex<Option<Instant>>,
    rebuilds: AtomicBool,
    warned: AtomicBool,
    /// How far it is known that its commits wait.
    heed: Mutex<Option<Heed>>,
}

/// The synchroniser.
#[derive(Debug)]
pub(crate) struct Native {
    options: Options,
    board: Arc<Switchboard>,
    places: Vec<Place>,
    /// For each promotion: the first transaction that can only be of the new primary.
    boundaries: Mutex<Vec<(Epoch, u64)>>,
    verifiers: Mutex<BTreeMap<String, Verifier>>,
}

impl Native {
    pub(crate) fn new(options: Options, board: Arc<Switchboard>) -> Self {
        let count = board.instances().len();
        Self {
            options,
            board,
            places: (0..count).map(|_| Place::default()).collect(),
            boundaries: Mutex::default(),
            verifiers: Mutex::default(),
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    fn slot(&self, instance: &Instance) -> Result<Slot, String> {
        let found = self
            .board
            .instances()
            .iter()
            .position(|one| one == instance);
        found.ok_or_else(|| format!("{} is no instance of this front", instance.app))
    }

    fn name(&self, slot: Slot) -> &str {
        let instance = self.board.instances().get(slot);
        instance.map_or("?", |instance| &instance.app)
    }

    /// Asks a server something.
    async fn ask(&self, slot: Slot, sql: &str) -> Result<Rows, String> {
        let failed = |why: &str| format!("ask {}: {why}", self.name(slot));
        let place = self
            .places
            .get(slot)
            .ok_or_else(|| failed("no such place"))?;
        let asked = async {
            let mut monitor = place.monitor.lock().await;
            // A connection that broke since is made anew once.
            if let Some(mut connection) = monitor.take() {
                match connection.query(sql).await {
                    Err(Trouble::Broken(_)) => {}
                    Ok(rows) => {
                        *monitor = Some(connection);
                        return Ok(rows);
                    }
                    Err(trouble) => return Err(trouble),
                }
            }
            let mut connection = self.connect(slot).await?;
            let rows = connection.query(sql).await?;
            *monitor = Some(connection);
            Ok(rows)
        };
        match tokio::time::timeout(ANSWER_BOUND, asked).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(trouble)) => Err(failed(&trouble.to_string())),
            Err(_) => Err(failed(&format!(
                "no answer within {} s",
                ANSWER_BOUND.as_secs()
            ))),
        }
    }

    async fn connect(&self, slot: Slot) -> Result<Connection, Trouble> {
        let stream = Stream::connect(self.board.address(slot)).await?;
        let opening = Opening::own(&self.options.user, &self.options.database);
        let password = self.options.password.as_ref();
        let credential = password.map_or(Credential::None, |password| {
            Credential::Password(password.0.clone())
        });
        Connection::open(stream, &opening, &credential).await
    }

    async fn value(&self, slot: Slot, sql: &str) -> Result<Option<String>, String> {
        Ok(one(self.ask(slot, sql).await?))
    }

    async fn is_standby(&self, slot: Slot) -> Result<bool, String> {
        let answer = self
            .value(slot, "SELECT pg_catalog.pg_is_in_recovery()")
            .await?;
        Ok(answer.as_deref() == Some("t"))
    }

    /// What a server stores of a user's password, where that is a key of SCRAM.
    pub(crate) async fn verifier(&self, user: &str) -> Result<Verifier, String> {
        let sql = format!(
            "SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname = {}",
            literal(user)
        );
        let primary = self.board.routing().primary;
        let stored = self.value(primary, &sql).await?.unwrap_or_default();
        Verifier::parse(&stored).ok_or_else(|| format!("no key of SCRAM is stored for {user}"))
    }

    /// What was stored when it was last asked.
    pub(crate) fn verifier_known(&self, user: &str) -> Option<Verifier> {
        let known = self
            .verifiers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.get(user).copied()
    }

    pub(crate) fn remember(&self, user: &str, verifier: Verifier) {
        let mut known = self
            .verifiers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.len() < REMEMBERED_MAX || known.contains_key(user) {
            known.insert(user.to_owned(), verifier);
        }
    }

    /// The first transaction that cannot be one from before: of all promotions after one epoch, up
    /// to another. None where that is not known of each of them.
    pub(crate) fn boundary(&self, after: Epoch, upto: Epoch) -> Option<u64> {
        let boundaries = self
            .boundaries
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let between = boundaries
            .iter()
            .filter(|(epoch, _)| (after + 1..=upto).contains(epoch));
        let between: BTreeMap<Epoch, u64> = between.copied().collect();
        let all = u64::try_from(between.len()) == Ok(upto.saturating_sub(after));
        between.into_values().min().filter(|_| all)
    }

    async fn promote_slot(&self, slot: Slot) -> Result<(), String> {
        // One that serves already refuses to be promoted.
        const PROMOTE: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() \
                               THEN pg_catalog.pg_promote(false) END";
        let deadline = Instant::now() + PROMOTE_BOUND;
        // The director makes the epoch known only after this.
        let epoch = self.board.routing().epoch + 1;
        if self.value(slot, PROMOTE).await?.is_some() {
            while self.is_standby(slot).await? {
                if Instant::now() >= deadline {
                    return Err(format!(
                        "promote {}: it is still a standby",
                        self.name(slot)
                    ));
                }
                tokio::time::sleep(PROMOTE_POLL).await;
            }
        }
        let next = "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())";
        let next = self.value(slot, next).await?;
        let next = next.and_then(|next| next.parse().ok());
        let next = next.ok_or_else(|| format!("{} tells no transaction", self.name(slot)))?;
        let mut boundaries = self
            .boundaries
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if boundaries.len() == REMEMBERED_MAX {
            boundaries.remove(0);
        }
        boundaries.retain(|(before, _)| *before != epoch);
        boundaries.push((epoch, next));
        drop(boundaries);
        // It serves from now on; whether it is in step with the next one is another question.
        if let Some(place) = self.places.get(slot) {
            set(&place.in_step, None);
        }
        Ok(())
    }

    /// Waits until a standby has all that the primary has written.
    async fn catch_up(&self, old: Slot, to: Slot) -> Result<(), String> {
        // A standby is sent what is flushed. Hint bits, and what was committed with `synchronous_commit = off`, wait
        // for the writer of the log otherwise, which comes every `wal_writer_delay`: 200 ms of a pause for nothing.
        const FLUSH: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'local', true), \
                             pg_catalog.pg_logical_emit_message(true, 'forebay', '')";
        // What nobody has written to since the last flush is on disk.
        const FLUSHED: &str = "SELECT CASE WHEN pg_catalog.pg_current_wal_insert_lsn() = \
                               pg_catalog.pg_current_wal_flush_lsn() \
                               THEN pg_catalog.pg_current_wal_flush_lsn() END";
        let deadline = Instant::now() + CATCH_UP_BOUND;
        let written = match self.value(old, FLUSHED).await? {
            Some(flushed) => flushed,
            None => {
                self.ask(old, FLUSH).await?;
                self.value(old, WRITTEN).await?.unwrap_or_default()
            }
        };
        let sql = has_replayed(&written);
        while self.value(to, &sql).await?.as_deref() != Some("t") {
            if Instant::now() >= deadline {
                return Err(format!(
                    "{} did not catch up with {} within {} s",
                    self.name(to),
                    self.name(old),
                    CATCH_UP_BOUND.as_secs()
                ));
            }
            tokio::time::sleep(PROMOTE_POLL).await;
        }
        Ok(())
    }

    /// Has both servers write to disk what they have in memory: a promotion waits for the disk again and again, and each
    /// time for all that others have left it to write.
    async fn write_out(&self, old: Slot, to: Slot) -> Result<(), String> {
        const WRITE_OUT: &str = "CHECKPOINT";
        let failed = |slot, trouble: Trouble| format!("write out {}: {trouble}", self.name(slot));
        // Over connections of their own: meanwhile it is asked how they stand.
        let (mut first, mut standby) = (
            self.connect(old).await.map_err(|why| failed(old, why))?,
            self.connect(to).await.map_err(|why| failed(to, why))?,
        );
        first
            .query(WRITE_OUT)
            .await
            .map_err(|why| failed(old, why))?;
        let written = first.query(WRITTEN).await;
        let written = one(written.map_err(|why| failed(old, why))?).unwrap_or_default();
        // What a standby writes out is up to the latest checkpoint of the primary that it knows.
        let sql = has_replayed(&written);
        loop {
            let replayed = standby.query(&sql).await.map_err(|why| failed(to, why))?;
            if one(replayed).as_deref() == Some("t") {
                break;
            }
            tokio::time::sleep(PROMOTE_POLL).await;
        }
        let asked = standby.query(WRITE_OUT).await;
        asked.map(|_| ()).map_err(|why| failed(to, why))
    }

    async fn standing_of(&self, slot: Slot, primary: Slot) -> Standing {
        // The standby first: what it lacks counts only if the primary is there afterwards.
        let shadow = match self.ask(slot, SHADOW).await {
            Ok(rows) => Shadow::of(rows),
            Err(why) => return self.away(slot, primary, why).await,
        };
        let Some(shadow) = shadow else {
            return Standing::Away(format!("{} gives no account of itself", self.name(slot)));
        };
        if let (Some(place), Some(shadow)) = (self.places.get(slot), &shadow)
            && shadow.retries.is_some_and(|time| time > RETRIES_MAX)
            && !place.warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                app = self.name(slot),
                "a failover may wait for wal_retrieve_retry_interval; set it to {} ms",
                RETRIES_MAX.as_millis()
            );
        }
        let asked = Instant::now();
        let first = self.ask(primary, PRIMARY).await;
        let first = first.map(|rows| Primary::of(rows, asked));
        let (first, shadow) = match (first, shadow) {
            (Ok(Some(first)), Some(shadow)) if !first.standby => (first, shadow),
            (Ok(Some(first)), None) if !first.standby => {
                self.goes_astray(slot);
                return self
                    .behind(
                        slot,
                        &first,
                        format!("{} is a primary of its own", self.name(slot)),
                        primary,
                    )
                    .await;
            }
            // One that was in step was promoted, later than somebody waited for it.
            (_, None) if self.was_in_step(slot) => return Standing::Ready { lag: None },
            (_, None) => {
                return Standing::Away(format!(
                    "{} is a primary of its own, and may lack what {} wrote",
                    self.name(slot),
                    self.name(primary)
                ));
            }
            (_, Some(shadow)) => return self.without_primary(slot, primary, &shadow),
        };
        let why = if !shadow.streams {
            self.goes_astray(slot);
            Some("it receives nothing from the primary".to_owned())
        } else {
            if let Some(place) = self.places.get(slot) {
                set(&place.astray_since, None);
            }
            let lag = first.written.saturating_sub(shadow.received);
            (lag > self.options.lag_bytes_max).then(|| format!("it is {lag} bytes behind"))
        };
        if let Some(why) = why {
            return self.behind(slot, &first, why, primary).await;
        }
        if self.options.guarantee == Guarantee::Strict
            && let Err(why) = self.commits_wait(slot, primary, &first, &shadow).await
        {
            self.note_step(slot, false);
            return Standing::Behind(why);
        }
        self.note_step(slot, true);
        Standing::Ready {
            lag: Some(Lag {
                bytes: Some(first.written.saturating_sub(shadow.received)),
                time: shadow.heard,
            }),
        }
    }

    fn was_in_step(&self, slot: Slot) -> bool {
        self.places.get(slot).and_then(|place| get(&place.in_step)) == Some(true)
    }

    fn note_step(&self, slot: Slot, in_step: bool) {
        if let Some(place) = self.places.get(slot) {
            set(&place.in_step, Some(in_step));
        }
    }

    /// How a standby stands whose primary does not answer: as before.
    fn without_primary(&self, slot: Slot, primary: Slot, shadow: &Shadow) -> Standing {
        let known = self.places.get(slot).and_then(|place| get(&place.in_step));
        let fast = self.options.guarantee == Guarantee::Fast;
        let ready = known.unwrap_or(fast && shadow.received > 0);
        if ready {
            Standing::Ready { lag: None }
        } else {
            let primary = self.name(primary);
            Standing::Away(format!(
                "{primary} does not answer, and whether {} has all it wrote is not known",
                self.name(slot)
            ))
        }
    }

    /// Commits on the primary wait for the standby; or begin to, which is a reason to wait.
    async fn commits_wait(
        &self,
        slot: Slot,
        primary: Slot,
        first: &Primary,
        shadow: &Shadow,
    ) -> Result<(), String> {
        if shadow.synchronous {
            // It would wait for a standby of its own once it is promoted.
            self.set_synchronous(slot, "").await?;
        }
        if !matches!(first.commit.as_str(), "on" | "remote_apply") {
            return Err(format!(
                "synchronous_commit of {} is {}: acknowledged commits are not on the shadow; set it to on",
                self.name(primary),
                first.commit
            ));
        }
        let name = shadow.name.as_deref();
        let name = name.ok_or_else(|| "it does not say how it is called".to_owned())?;
        let waits = first.waits_for(name, self.name(primary))?;
        let wanted = identifier(name);
        if first.names != wanted {
            self.set_synchronous(primary, &wanted).await?;
            return Err("commits begin to wait for it".to_owned());
        }
        if !waits {
            return Err("commits do not wait for it yet".to_owned());
        }
        self.heeds(primary, first, &wanted).await
    }

    /// Whether the primary's checkpointer goes by the names that its settings have.
    async fn heeds(&self, primary: Slot, first: &Primary, wanted: &str) -> Result<(), String> {
        let checkpointer = first.checkpointer.as_ref().map(|(pid, _)| *pid);
        let (Some(place), Some(checkpointer)) = (self.places.get(primary), checkpointer) else {
            return Err(format!("{} has no checkpointer now", self.name(primary)));
        };
        {
            let mut heed = place.heed.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(heed) = heed
                .as_mut()
                .filter(|heed| heed.is_of(wanted, checkpointer))
            {
                return if heed.is_done(first) {
                    Ok(())
                } else {
                    Err(format!(
                        "the checkpointer of {} has not read yet that commits are to wait for it",
                        self.name(primary)
                    ))
                };
            }
        }
        // The monitor's own backend may have been told before the checkpointer was; not so a new one.
        let asked = async {
            let mut connection = self.connect(primary).await?;
            connection.query(NAMES).await
        };
        let rows = match tokio::time::timeout(ANSWER_BOUND, asked).await {
            Ok(rows) => rows.map_err(|trouble| trouble.to_string()),
            Err(_) => Err("no answer".to_owned()),
        };
        let rows = rows.map_err(|why| format!("ask {}: {why}", self.name(primary)))?;
        let names = one(rows);
        if names.as_deref() == Some(wanted) {
            let mut heed = Heed::told(wanted, checkpointer, Instant::now());
            // It is looked at already; that alone is not enough.
            heed.is_done(first);
            set(&place.heed, Some(heed));
        }
        Err("commits begin to wait for it".to_owned())
    }

    async fn set_synchronous(&self, slot: Slot, names: &str) -> Result<(), String> {
        if let Some(place) = self.places.get(slot) {
            // What was heeded before is not what is set now.
            set(&place.heed, None);
        }
        let sql = format!(
            "ALTER SYSTEM SET synchronous_standby_names = {}",
            literal(names)
        );
        self.ask(slot, &sql).await?;
        self.ask(slot, "SELECT pg_catalog.pg_reload_conf()").await?;
        Ok(())
    }

    /// A standby cannot take over; commits stop to wait for it once nobody counts on it.
    async fn behind(&self, slot: Slot, first: &Primary, why: String, primary: Slot) -> Standing {
        self.note_step(slot, false);
        if self.options.guarantee == Guarantee::Strict
            && !first.names.is_empty()
            && self.board.routing().standby != Some(slot)
            && let Err(trouble) = self.set_synchronous(primary, "").await
        {
            tracing::warn!(app = self.name(primary), trouble, "commits wait for nobody");
        }
        Standing::Behind(why)
    }

    async fn away(&self, slot: Slot, primary: Slot, why: String) -> Standing {
        let asked = Instant::now();
        let first = self.ask(primary, PRIMARY).await.ok();
        let first = first.and_then(|rows| Primary::of(rows, asked));
        let Some(first) = first.filter(|first| !first.standby) else {
            return Standing::Away(why);
        };
        let standing = self.behind(slot, &first, why.clone(), primary).await;
        if self.is_managed(slot) {
            // It may be about to be made a standby, which takes as long as it takes.
            if let Some(place) = self.places.get(slot) {
                set(&place.astray_since, None);
            }
            return Standing::Away(why);
        }
        let long = self.goes_astray(slot);
        // Whoever is behind is made to follow.
        if long && !self.options.rebuild.is_empty() {
            standing
        } else {
            Standing::Away(why)
        }
    }

    /// Whoever begins it makes it follow.
    fn is_managed(&self, slot: Slot) -> bool {
        self.options.data.contains_key(self.name(slot))
    }

    /// An instance follows nobody; whether that has lasted long enough for it to be rebuilt.
    fn goes_astray(&self, slot: Slot) -> bool {
        self.places.get(slot).is_some_and(|place| {
            let since = get(&place.astray_since).unwrap_or_else(Instant::now);
            set(&place.astray_since, Some(since));
            since.elapsed() >= Duration::from_millis(self.options.rebuild_after_ms)
        })
    }

    async fn rebuild(&self, slot: Slot, primary: Slot) -> Result<(), String> {
        let Some((program, arguments)) = self.options.rebuild.split_first() else {
            return Err(format!(
                "{} has to be made a standby of {} by hand: no command `rebuild` is given",
                self.name(slot),
                self.name(primary)
            ));
        };
        let (Some(place), Some(shadow)) = (self.places.get(slot), self.board.instances().get(slot))
        else {
            return Err("no such place".to_owned());
        };
        let soon = get(&place.rebuilt).is_some_and(|at| at.elapsed() < REBUILD_PAUSE);
        if soon || place.rebuilds.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("FOREBAY_APP", &shadow.app)
            .env("FOREBAY_ADDRESS", shadow.address.to_string())
            .env("FOREBAY_PRIMARY", self.name(primary))
            .env(
                "FOREBAY_PRIMARY_ADDRESS",
                self.board.address(primary).to_string(),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        tracing::info!(app = shadow.app, "a standby is rebuilt");
        let ended = finish(command).await;
        set(&place.rebuilt, Some(Instant::now()));
        place.rebuilds.store(false, Ordering::Release);
        ended.map_err(|why| format!("rebuild {} with {program}: {why}", shadow.app))
    }
}

/// How far a primary's log is on its disk.
const WRITTEN: &str = "SELECT pg_catalog.pg_current_wal_flush_lsn()";

/// Whether a standby has done all up to a place of the log.
fn has_replayed(written: &str) -> String {
    format!(
        "SELECT pg_catalog.pg_last_wal_replay_lsn() >= {}::pg_lsn",
        literal(written)
    )
}

/// The first value of an answer.
fn one(rows: Rows) -> Option<String> {
    rows.into_iter().next()?.into_iter().next().flatten()
}

/// Runs a command to its end.
async fn finish(mut command: Command) -> Result<(), String> {
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let deadline = Instant::now() + REBUILD_BOUND;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("it ended with {status}")),
            Ok(None) if Instant::now() < deadline => tokio::time::sleep(REBUILD_POLL).await,
            Ok(None) => {
                let killed = child.kill().and_then(|()| child.wait());
                let late = format!("it took longer than {} s", REBUILD_BOUND.as_secs());
                return Err(match killed {
                    Ok(_) => late,
                    Err(error) => format!("{late}, and could not be ended: {error}"),
                });
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

fn get<T: Copy>(place: &Mutex<Option<T>>) -> Option<T> {
    *place.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set<T>(place: &Mutex<Option<T>>, value: Option<T>) {
    *place.lock().unwrap_or_else(PoisonError::into_inner) = value;
}

impl Synchroniser for Native {
    fn promote<'a>(&'a self, to: &'a Instance) -> Pending<'a, Result<(), String>> {
        Box::pin(async { self.promote_slot(self.slot(to)?).await })
    }

    fn prepare<'a>(
        &'a self,
        old: &'a Instance,
        to: &'a Instance,
    ) -> Pending<'a, Result<(), String>> {
        Box::pin(async { self.write_out(self.slot(old)?, self.slot(to)?).await })
    }

    fn settle<'a>(
        &'a self,
        old: &'a Instance,
        to: &'a Instance,
    ) -> Pending<'a, Result<(), String>> {
        Box::pin(async { self.catch_up(self.slot(old)?, self.slot(to)?).await })
    }

    fn follow<'a>(
        &'a self,
        shadow: &'a Instance,
        primary: &'a Instance,
    ) -> Pending<'a, Result<(), String>> {
        Box::pin(async {
            let (slot, primary) = (self.slot(shadow)?, self.slot(primary)?);
            let astray = self
                .places
                .get(slot)
                .and_then(|place| get(&place.astray_since));
            if astray.is_none() {
                // One that only lacks something gets it by itself.
                return Ok(());
            }
            if !self.goes_astray(slot) {
                return Ok(());
            }
            if self.is_managed(slot) {
                // It is begun anew instead, by whoever may touch its data.
                return Ok(());
            }
            if slot == self.board.routing().primary || self.is_standby(primary).await? {
                return Err(format!("{} is no primary", self.name(primary)));
            }
            self.rebuild(slot, primary).await
        })
    }

    fn standing<'a>(
        &'a self,
        shadow: &'a Instance,
        primary: &'a Instance,
    ) -> Pending<'a, Standing> {
        Box::pin(async {
            match (self.slot(shadow), self.slot(primary)) {
                (Ok(slot), Ok(primary)) => self.standing_of(slot, primary).await,
                (Err(why), _) | (_, Err(why)) => Standing::Away(why),
            }
        })
    }

    fn renewal(&self, instance: &Instance) -> Renewal {
        if !self.options.data.contains_key(&instance.app) {
            return Renewal::Never;
        }
        let place = self.slot(instance).ok();
        let place = place.and_then(|slot| self.places.get(slot));
        let astray = place.and_then(|place| get(&place.astray_since));
        let after = Duration::from_millis(self.options.rebuild_after_ms);
        match astray {
            Some(since) if since.elapsed() >= after => Renewal::Due,
            Some(_) | None => Renewal::Possible,
        }
    }

    fn witness(&self) -> Witness {
        Witness::Ping
    }

    fn ping<'a>(&'a self, instance: &'a Instance) -> Pending<'a, Result<(), String>> {
        Box::pin(async {
            let slot = self.slot(instance)?;
            if !self.is_standby(slot).await? {
                return Ok(());
            }
            // One that stands by may serve only if nobody does.
            for other in (0..self.places.len()).filter(|other| *other != slot) {
                if self.is_standby(other).await == Ok(false) {
                    return Err(format!(
                        "{} is a standby of {}",
                        instance.app,
                        self.name(other)
                    ));
                }
            }
            Ok(())
        })
    }
}
