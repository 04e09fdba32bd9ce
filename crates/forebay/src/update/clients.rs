//! Clients' connections of fronts, over a boot: written down last, made anew first.
//!
//! Fronts give away what rests, whether their apps are kept or begin anew with the host; the daemon reads each
//! connection, has that durable, and closes it without a word (`forebay_host::tcp_repair`). In the next boot, or in this
//! one where it goes on, they are made anew once their addresses are there and the front serves, and given to it. What
//! does not come to that is closed, as without all this, and the receipt says how many and why.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_host::tcp_repair::kept::Room;
use forebay_host::tcp_repair::{Connection, Frozen, Kept, News, Rule, kept, socket};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::journal::Entry;
use super::keep::blocking;
use super::run::Runner;
use super::{Shared, locked, unix_ms};
use crate::fronts::{Client, Given, Refused};

/// For so long nothing comes in to connections that are written down: what a host may take to go down.
const DOWN_MAX: Duration = Duration::from_secs(900);
/// And in a boot before its daemon is there.
const EARLY_MAX: Duration = Duration::from_secs(600);
/// How long addresses and fronts have to be back once the daemon is there.
const BACK_MAX: Duration = Duration::from_secs(120);

/// What became of the connections of a front.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Passage {
    /// So many were written down.
    pub(super) kept: u64,
    /// Of these, so many went on.
    pub(super) back: u64,
    /// So many could not be.
    pub(super) left: u64,
    /// From when they were taken until they went on, in milliseconds.
    pub(super) pause_ms: Option<f64>,
}

/// What became of all.
#[derive(Debug, Default)]
pub(super) struct Returned {
    pub(super) update: Option<u64>,
    pub(super) fronts: BTreeMap<AppId, Passage>,
    pub(super) troubles: Vec<String>,
}

/// What is done with connections, one after the other.
#[derive(Debug)]
pub(super) struct Clients {
    turn: tokio::sync::Mutex<()>,
    /// None until it was looked whether there are any.
    returned: watch::Sender<Option<Arc<Returned>>>,
}

impl Default for Clients {
    fn default() -> Self {
        Self {
            turn: tokio::sync::Mutex::default(),
            returned: watch::Sender::new(None),
        }
    }
}

/// Keeps the kernel from answering for connections that it does not know yet, before there is a network.
///
/// # Errors
/// When they cannot be read, or the kernel refuses.
pub(crate) fn hold(state_dir: &Path) -> Result<(), String> {
    let held = || {
        let Some(kept) = kept::look(state_dir)? else {
            return Ok(());
        };
        // Nobody made anything of them in boots before this one: whoever connects there must not wait in each.
        if kept.is_old(unix_ms()) {
            return Ok(());
        }
        Rule::of(state_dir, ends(&kept.connections))?.put(EARLY_MAX)
    };
    held().map_err(|error: forebay_host::Error| error.explain())
}

fn ends(connections: &[Connection]) -> impl Iterator<Item = SocketAddr> {
    connections.iter().map(|one| one.frozen.shape.local)
}

impl Runner {
    /// Writes down the connections of fronts' clients. The update goes on whatever becomes of them.
    pub(super) async fn write_clients_down(&self, entry: &Entry) {
        let shared = &self.shared;
        let _turn = shared.clients.turn.lock().await;
        let mut troubles = Vec::new();
        let given = self.take_clients(&mut troubles).await;
        let has_any = |given: &Given| !given.clients.is_empty() || given.left > 0;
        if given.values().any(has_any) {
            let (state_dir, update) = (shared.place.state_dir.clone(), entry.record.number);
            let written = blocking(move || write_down(&state_dir, update, given)).await;
            match written {
                Ok(Ok(written)) => {
                    self.tell(written.said);
                    troubles.extend(written.troubles);
                }
                Ok(Err(Unwritten { why, given })) => {
                    troubles.push(why);
                    self.give_back(given, &mut troubles).await;
                }
                Err(why) => troubles.push(why),
            }
        }
        if troubles.is_empty() {
            return;
        }
        for why in &troubles {
            tracing::warn!(why, "clients' connections are not kept over the boot");
            self.tell(why.clone());
        }
        // The next boot says so.
        let noted = shared.book.amend(|content| {
            if let Some(entry) = &mut content.current {
                for why in troubles {
                    entry.record.trouble(why);
                }
            }
        });
        if let Err(why) = noted {
            tracing::error!(why, "the journal does not say so");
        }
    }

    /// What fronts give away, all at the same time.
    async fn take_clients(&self, troubles: &mut Vec<String>) -> BTreeMap<String, Given> {
        let mut taking = JoinSet::new();
        for name in self.shared.fronts.all().into_keys() {
            let (desk, name) = (self.shared.fronts.clone(), name.to_string());
            taking.spawn(async move {
                let taken = desk.take_clients(&name).await;
                (name, taken)
            });
        }
        let mut given = BTreeMap::new();
        while let Some(taken) = taking.join_next().await {
            match taken {
                Ok((name, Ok(taken))) => {
                    given.insert(name, taken);
                }
                Ok((_, Err(Refused::Unknown(why) | Refused::Busy(why)))) => troubles.push(why),
                Err(error) => troubles.push(error.to_string()),
            }
        }
        given
    }

    /// Has fronts serve on what could not be written down.
    async fn give_back(&self, given: BTreeMap<String, Given>, troubles: &mut Vec<String>) {
        for (front, given) in given {
            match self.shared.fronts.give_clients(&front, given.clients).await {
                Ok((_, None)) => {}
                Ok((_, Some(why))) | Err(Refused::Unknown(why) | Refused::Busy(why)) => {
                    troubles.push(why);
                }
            }
        }
    }

    /// What became of the connections that were written down for this update.
    pub(super) async fn clients_returned(&self, entry: &mut Entry) {
        let mut told = self.shared.clients.returned.subscribe();
        let Ok(returned) = told.wait_for(Option::is_some).await else {
            return;
        };
        let Some(returned) = returned.clone() else {
            return;
        };
        if returned
            .update
            .is_some_and(|update| update != entry.record.number)
        {
            return;
        }
        entry.clients.clone_from(&returned.fronts);
        for why in &returned.troubles {
            entry.record.trouble(why.clone());
        }
    }
}

/// What was written down.
struct Written {
    said: String,
    troubles: Vec<String>,
}

/// Why nothing is, and what goes back.
struct Unwritten {
    why: String,
    given: BTreeMap<String, Given>,
}

/// Reads all connections, has them durable, and closes them.
fn write_down(
    state_dir: &Path,
    update: u64,
    mut given: BTreeMap<String, Given>,
) -> Result<Written, Unwritten> {
    let locals = given.values().flat_map(|given| &given.clients);
    let locals: Vec<SocketAddr> = locals
        .filter_map(|client| {
            rustix::net::getsockname(&client.socket)
                .ok()?
                .try_into()
                .ok()
        })
        .collect();
    let held = Rule::of(state_dir, locals).and_then(|rule| rule.put(DOWN_MAX));
    if let Err(error) = held {
        let why = error.explain();
        return Err(Unwritten { why, given });
    }
    let kept = Kept {
        update,
        at_unix_ms: unix_ms(),
        left: BTreeMap::new(),
        connections: Vec::new(),
    };
    let mut still = Still::read(&mut given);
    match still.write(state_dir, kept) {
        Ok(count) => {
            let troubles = still.closed.into_iter().map(|((front, why), count)| {
                format!("{count} connections of front {front}: {why}: closed")
            });
            Ok(Written {
                said: format!("{count} connections of clients are written down"),
                troubles: troubles.collect(),
            })
        }
        Err(why) => {
            // What was written by then must not be made again beside connections that go on: what they asked would be
            // done twice.
            if let Err(error) = kept::discard(state_dir) {
                let reason = error.explain();
                tracing::error!(reason, "clients' connections are closed");
                for (connection, _) in still.take_all() {
                    still.close(&connection.front, "they may be made again in the next boot");
                }
            }
            if let Err(error) = Rule::remove(state_dir) {
                let reason = error.explain();
                tracing::error!(reason, "connections wait until it ends by itself");
            }
            for (connection, client) in still.take_all() {
                thaw(&client.socket);
                if let Some(given) = given.get_mut(&connection.front) {
                    given.clients.push(client);
                }
            }
            Err(Unwritten { why, given })
        }
    }
}

/// Connections that were read, and stand.
#[derive(Default)]
struct Still {
    connections: Vec<Connection>,
    /// Of each of them, what the front gave away.
    clients: Vec<Client>,
    /// By front: those that it did not give away.
    left: BTreeMap<String, u64>,
    /// By front and why: others that are closed, as without all this, and how many.
    closed: BTreeMap<(String, String), u64>,
}

impl Still {
    fn read(given: &mut BTreeMap<String, Given>) -> Self {
        let mut still = Self::default();
        let mut room = Room::default();
        for (front, given) in given {
            still.left.insert(front.clone(), given.left);
            for client in std::mem::take(&mut given.clients) {
                let frozen = match freeze(&client) {
                    Ok(frozen) => frozen,
                    Err(why) => {
                        still.close(front, &why.to_string());
                        continue;
                    }
                };
                let connection = Connection {
                    front: front.clone(),
                    state: client.state.clone(),
                    frozen,
                };
                match room.take(&connection) {
                    true => still.add(connection, client),
                    false => {
                        thaw(&client.socket);
                        still.close(front, "they are too many, or hold too much");
                    }
                }
            }
        }
        still
    }

    fn add(&mut self, connection: Connection, client: Client) {
        self.connections.push(connection);
        self.clients.push(client);
    }

    fn take_all(&mut self) -> impl Iterator<Item = (Connection, Client)> + use<> {
        let connections = std::mem::take(&mut self.connections);
        connections
            .into_iter()
            .zip(std::mem::take(&mut self.clients))
    }

    fn close(&mut self, front: &str, why: &str) {
        let closed = (front.to_owned(), why.to_owned());
        *self.closed.entry(closed).or_default() += 1;
    }

    /// By front, how many are not written down.
    fn all_left(&self) -> BTreeMap<String, u64> {
        let mut left = self.left.clone();
        for ((front, _), count) in &self.closed {
            *left.entry(front.clone()).or_default() += count;
        }
        left
    }

    /// Has all durable that received nothing since; how many that are.
    fn write(&mut self, state_dir: &Path, mut kept: Kept) -> Result<u64, String> {
        /// Whoever came past the rule did so before it was in force: once is enough.
        const TIMES: usize = 3;
        for _ in 0..TIMES {
            kept.left = self.all_left();
            // Lent, since they may be large.
            kept.connections = std::mem::take(&mut self.connections);
            let written = kept::write(state_dir, &kept);
            self.connections = std::mem::take(&mut kept.connections);
            written.map_err(|error| error.explain())?;
            let before = self.clients.len();
            for (connection, client) in self.take_all() {
                match socket::is_as_it_was(client.socket.as_fd(), &connection.frozen) {
                    Ok(true) => self.add(connection, client),
                    Ok(false) => self.close(&connection.front, "something came in between"),
                    Err(why) => self.close(&connection.front, &why.to_string()),
                }
            }
            if self.clients.len() == before {
                return Ok(count(before));
            }
        }
        Err("clients' connections are not kept: something comes in past the rule".to_owned())
    }
}

fn freeze(client: &Client) -> std::io::Result<Frozen> {
    let mut frozen = socket::freeze(client.socket.as_fd())?;
    frozen.put_back(client.unread.clone());
    Ok(frozen)
}

fn thaw(socket: &OwnedFd) {
    if let Err(error) = socket::thaw(socket.as_fd()) {
        tracing::warn!(%error, "a client's connection does not go on");
    }
}

/// Looks, once a daemon begins, whether connections were written down, and makes them anew.
pub(super) async fn begin(shared: Arc<Shared>) {
    bring_back(&shared).await;
}

/// Makes all connections anew that were written down, and gives them to their fronts.
pub(super) async fn bring_back(shared: &Shared) {
    let _turn = shared.clients.turn.lock().await;
    let state_dir = shared.place.state_dir.clone();
    let taken = blocking({
        let state_dir = state_dir.clone();
        move || kept::take(&state_dir, unix_ms()).map_err(|error| error.explain())
    });
    let returned = match taken.await.and_then(|taken| taken) {
        Ok(Some(kept)) => Return::of(shared, kept).run().await,
        Ok(None) => {
            forget_rule(state_dir).await;
            Returned::default()
        }
        Err(why) => {
            forget_rule(state_dir).await;
            Returned {
                troubles: vec![why],
                ..Returned::default()
            }
        }
    };
    for why in &returned.troubles {
        tracing::warn!(why, "clients' connections did not go on");
    }
    shared
        .clients
        .returned
        .send_replace(Some(Arc::new(returned)));
}

/// What a daemon before this one may have left.
async fn forget_rule(state_dir: PathBuf) {
    let removed = blocking(move || Rule::remove(&state_dir)).await;
    if let Ok(Err(error)) = removed {
        // Where there is no nftables, there is none.
        tracing::debug!(
            reason = error.explain(),
            "nobody knows whether a rule is left"
        );
    }
}

/// Ends that are held closed.
#[derive(Debug)]
struct Held {
    state_dir: PathBuf,
    ends: Mutex<BTreeSet<SocketAddr>>,
}

impl Held {
    /// Lets pass what comes to these, and nothing to the others.
    fn open(&self, opened: &[SocketAddr]) -> Result<(), String> {
        let mut ends = locked(&self.ends);
        ends.retain(|end| !opened.contains(end));
        let done = match ends.is_empty() {
            true => Rule::remove(&self.state_dir),
            false => Rule::of(&self.state_dir, ends.iter().copied())
                .and_then(|rule| rule.put(BACK_MAX * 2)),
        };
        done.map_err(|error| error.explain())
    }
}

/// Connections on their way back.
struct Return<'a> {
    shared: &'a Shared,
    kept: Kept,
}

impl<'a> Return<'a> {
    const fn of(shared: &'a Shared, kept: Kept) -> Self {
        Self { shared, kept }
    }

    async fn run(self) -> Returned {
        let Kept {
            update,
            at_unix_ms,
            left,
            connections,
            ..
        } = self.kept;
        let ends: BTreeSet<SocketAddr> = ends(&connections).collect();
        let state_dir = self.shared.place.state_dir.clone();
        let mut returned = Returned {
            update: Some(update),
            ..Returned::default()
        };
        // There already, where the boot began with it.
        let rule = Rule::of(&state_dir, ends.iter().copied());
        if let Err(error) = rule.and_then(|rule| rule.put(BACK_MAX * 2)) {
            returned.troubles.push(error.explain());
        }
        let held = Arc::new(Held {
            state_dir,
            ends: Mutex::new(ends),
        });
        let mut fronts: BTreeMap<String, Vec<Connection>> = BTreeMap::new();
        for (front, left) in left {
            if let Ok(id) = front.parse() {
                let passage = Passage {
                    left,
                    ..Passage::default()
                };
                returned.fronts.insert(id, passage);
            }
        }
        for one in connections {
            fronts.entry(one.front.clone()).or_default().push(one);
        }
        let until = Instant::now() + BACK_MAX;
        let mut returning = JoinSet::new();
        for (front, pending) in fronts {
            let one = OneFront {
                desk: self.shared.fronts.clone(),
                held: Arc::clone(&held),
                front,
                at_unix_ms,
                until,
                passage: Passage::default(),
                troubles: Vec::new(),
            };
            returning.spawn(one.run(pending));
        }
        while let Some(one) = returning.join_next().await {
            match one {
                Ok(one) => {
                    returned.troubles.extend(one.troubles);
                    if let Ok(id) = one.front.parse::<AppId>() {
                        let passage = returned.fronts.entry(id).or_default();
                        let left = passage.left;
                        *passage = Passage {
                            left,
                            ..one.passage
                        };
                    }
                }
                Err(error) => returned.troubles.push(error.to_string()),
            }
        }
        // Whatever is still held is nobody's any more.
        let all: Vec<SocketAddr> = locked(&held.ends).iter().copied().collect();
        let opened = blocking(move || held.open(&all)).await;
        returned
            .troubles
            .extend(opened.and_then(|opened| opened).err());
        returned
    }
}

/// The connections of one front on their way back.
struct OneFront {
    desk: crate::fronts::Desk,
    held: Arc<Held>,
    front: String,
    at_unix_ms: u64,
    until: Instant,
    passage: Passage,
    troubles: Vec<String>,
}

/// What one attempt brought.
struct Made {
    made: Vec<(Connection, OwnedFd)>,
    /// Their addresses or ways are not there.
    pending: Vec<Connection>,
    /// Why others cannot be made, and how many.
    refused: BTreeMap<String, u64>,
}

impl OneFront {
    async fn run(mut self, pending: Vec<Connection>) -> Self {
        self.passage.kept = count(pending.len());
        let ends: Vec<SocketAddr> = ends(&pending).collect();
        if let Err(why) = self.bring(pending).await {
            let front = &self.front;
            self.troubles.push(format!(
                "connections of clients of front {front} are closed: {why}"
            ));
        }
        // Whoever waits there is told.
        self.open(ends).await;
        self
    }

    async fn bring(&mut self, mut pending: Vec<Connection>) -> Result<(), String> {
        self.desk.serving(&self.front, self.until).await?;
        let news = News::open().map_err(|error| format!("hear of addresses: {error}"))?;
        let mut news = Some(news);
        while !pending.is_empty() {
            let tried = blocking(move || make(pending)).await?;
            pending = tried.pending;
            for (why, count) in tried.refused {
                let front = &self.front;
                self.troubles.push(format!(
                    "{count} connections of front {front} are closed: {why}"
                ));
            }
            self.go_on(tried.made, &pending).await;
            let (Some(heard), false) = (news.take(), pending.is_empty()) else {
                continue;
            };
            let until = self.until.into_std();
            let (back, more) = blocking(move || {
                let more = heard.wait(until);
                (heard, more)
            })
            .await?;
            news = Some(back);
            if !more.map_err(|error| format!("hear of addresses: {error}"))? {
                let missing: BTreeSet<_> = self::ends(&pending).map(|end| end.ip()).collect();
                let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
                return Err(format!(
                    "{}: its address, or the way to the client, did not come back within {} s",
                    missing.join(", "),
                    BACK_MAX.as_secs()
                ));
            }
        }
        Ok(())
    }

    /// Gives what was made to the front, once the kernel hears of it again.
    async fn go_on(&mut self, made: Vec<(Connection, OwnedFd)>, pending: &[Connection]) {
        if made.is_empty() {
            return;
        }
        let waits: BTreeSet<SocketAddr> = ends(pending).collect();
        let here = made.iter().map(|(one, _)| one.frozen.shape.local);
        self.open(here.filter(|end| !waits.contains(end)).collect())
            .await;
        let mut clients = Vec::new();
        for (one, socket) in made {
            match socket::go_on(socket.as_fd(), &one.frozen) {
                Ok(()) => clients.push(Client {
                    state: one.state,
                    unread: Vec::new(),
                    socket,
                }),
                Err(error) => self
                    .troubles
                    .push(format!("a connection of front {}: {error}", self.front)),
            }
        }
        let given = self.desk.give_clients(&self.front, clients).await;
        let (back, why) = match given {
            Ok((back, why)) => (back, why),
            Err(Refused::Unknown(why) | Refused::Busy(why)) => (0, Some(why)),
        };
        self.passage.back += back;
        if back > 0 {
            let pause = unix_ms().saturating_sub(self.at_unix_ms);
            self.passage.pause_ms = Some(Duration::from_millis(pause).as_secs_f64() * 1000.0);
        }
        self.troubles.extend(why.map(|why| {
            format!(
                "connections of clients of front {} are closed: {why}",
                self.front
            )
        }));
    }

    async fn open(&mut self, ends: Vec<SocketAddr>) {
        let held = Arc::clone(&self.held);
        let opened = blocking(move || held.open(&ends)).await;
        self.troubles.extend(opened.and_then(|opened| opened).err());
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn make(pending: Vec<Connection>) -> Made {
    let mut tried = Made {
        made: Vec::new(),
        pending: Vec::new(),
        refused: BTreeMap::new(),
    };
    for one in pending {
        match socket::make(&one.frozen) {
            Ok(made) => tried.made.push((one, made)),
            Err(error) if socket::is_premature(&error) => tried.pending.push(one),
            Err(error) => *tried.refused.entry(error.to_string()).or_default() += 1,
        }
    }
    tried
}
