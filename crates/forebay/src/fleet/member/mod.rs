//! This host as a member of a fleet: a thread beside the control thread.
//!
//! ```text
//! reports, outlook ──▶ member thread ──Standing──▶ API, moves
//!   promises ──watch──▶  │    ▲
//!                        v    │ View
//!                     Coordinator
//! ```
//!
//! It joins, keeps the lease alive, publishes what this host has room for, hears of commands, and
//! carries out those that cordon and uncordon it. Without the coordinator apps run on where they are;
//! it is tried again and again, and nothing may begin to move until it is there.
//!
//! [`Standing::tenure`] is what [`tenure::leave`] needs: the lease counts only once all records were
//! read *after* it was granted. What was known before is of a time in which others may have taken
//! applications over. Whoever freezes goes by the time in it, with a clock of their own: this thread may
//! wait for an answer for as long as [`super::coordinator::REQUEST_MAX`]. Before each request it looks
//! whether the lease is to be renewed, so that no two of them add up.

mod files;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_core::app::Class;
use forebay_core::fleet::choice::{Offer, Room};
use forebay_core::fleet::offering::{self, Ahead};
use forebay_core::fleet::taking::Takes;
use forebay_core::fleet::tenure::Lease;
use forebay_core::fleet::{HostName, Outcome};
use forebay_core::report::EventKind;
use tokio::sync::watch;

use super::coordinator::{
    Command, CommandId, Commands, Completed, Coordinator, Error, Held, Member, Members, Records,
    View, local::Local, now,
};
use super::guard::Guard;
use crate::config::FleetConfig;
use crate::control::Published;
use crate::outlook;
use crate::tiering::Tell;

/// How often the thread looks what is due.
const LOOK: Duration = Duration::from_millis(250);
/// A lease is renewed so many times before it would end.
const RENEWALS: u32 = 4;
/// Between two attempts to join: at first, and at most.
const JOIN_PAUSE_MIN: Duration = Duration::from_millis(250);
const JOIN_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Between two renewals of which the first failed.
const RENEW_PAUSE: Duration = Duration::from_millis(300);
/// An offer that changed is published so often at most, and one that did not so often at least.
const PUBLISH_MIN: Duration = Duration::from_secs(2);
const PUBLISH_MAX: Duration = Duration::from_secs(15);
/// How often it is looked whether it changed.
const PUBLISH_LOOK: Duration = Duration::from_secs(1);
/// Less of a change than this part of the host is none.
const CHANGE_PART: f64 = 0.02;
/// How often the thread that looks ahead is asked what apps will need, and for how long it is waited for.
const ASK_AHEAD: Duration = Duration::from_secs(5);
const AHEAD_WAIT: Duration = Duration::from_millis(500);
/// How often it is looked who is there, and how much later for each host: a thousand of them read a
/// thousand entries each.
const HOSTS_EVERY: Duration = Duration::from_secs(5);
const HOSTS_EVERY_EACH: Duration = Duration::from_millis(20);
/// How long whoever asked a host for something waits for its answer.
const ANSWER_WAIT: Duration = Duration::from_secs(4);
const ANSWER_LOOK: Duration = Duration::from_millis(100);

/// How this host stands in the fleet.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Standing {
    /// Until when others cannot have taken over what is this host's; none without a lease, or before
    /// all records were read under it.
    pub(crate) tenure: Option<Lease>,
    /// Since when the coordinator cannot be reached, and why.
    pub(crate) lost: Option<Lost>,
    /// Whose everything is, as far as was heard; none before that was read once.
    pub(crate) records: Option<Arc<Records>>,
    /// What others asked of this host and it has not completed, without what this thread carries out.
    pub(crate) commands: Arc<Commands>,
    /// Who is there, as was last looked.
    pub(crate) members: Arc<Members>,
    /// It takes no more applications.
    pub(crate) cordoned: bool,
}

/// Since when the coordinator cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost {
    /// By [`now`].
    pub(crate) since: Duration,
    /// In milliseconds since 1970, for people.
    pub(crate) since_unix_ms: u64,
    /// What was attempted, where, and what came of it.
    pub(crate) why: String,
}

impl Standing {
    /// Whether an application may begin to move, or why not.
    pub(crate) fn may_move(&self, now: Duration) -> Result<(), String> {
        if let Some(lost) = &self.lost {
            return Err(format!(
                "nothing moves without the coordinator: {}",
                lost.why
            ));
        }
        match self.tenure {
            Some(lease) if now < lease.run_until() => Ok(()),
            _ => Err("nothing moves before this host is a member of the fleet".to_owned()),
        }
    }
}

/// Where the member is asked, by whoever needs the fleet.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    /// This host's name.
    pub(crate) host: HostName,
    /// What the hosts share. Its requests block.
    pub(crate) coordinator: Arc<dyn Coordinator>,
    /// How this host stands, whenever that changes.
    pub(crate) standing: watch::Receiver<Arc<Standing>>,
    /// Room that was promised to applications on their way here: published with the offer.
    pub(crate) promised: Arc<watch::Sender<BTreeMap<Class, Room>>>,
    /// What would be taken in here: published as well.
    pub(crate) takes: Arc<watch::Sender<Option<Takes>>>,
    /// What the offer is made of beside the report.
    pub(crate) size: offering::Host,
    /// See [`size`](Self::size).
    pub(crate) ahead: watch::Receiver<Arc<Ahead>>,
}

impl Desk {
    /// Asks a host of the fleet for something, and waits a while for its answer. Blocks.
    ///
    /// # Errors
    /// There is no such host, the coordinator cannot be reached, or the host refused.
    pub(crate) fn ask(&self, host: &HostName, command: &Command) -> Result<String, AskError> {
        let members = self.coordinator.hosts().map_err(AskError::Coordinator)?;
        if !members.contains_key(host) {
            let names: Vec<&str> = members.keys().map(HostName::as_str).collect();
            return Err(AskError::NoHost(format!(
                "no host `{host}` is a member now; there are: {}",
                names.join(", ")
            )));
        }
        let id = self
            .coordinator
            .post(host, command)
            .map_err(AskError::Coordinator)?;
        let until = now() + ANSWER_WAIT;
        while now() < until {
            match self.coordinator.completed(host, &id) {
                Ok(Some(Completed::Done { what })) => return Ok(what),
                Ok(Some(Completed::Refused { why })) => return Err(AskError::Refused(why)),
                Ok(None) => std::thread::sleep(ANSWER_LOOK),
                Err(error) => return Err(AskError::Coordinator(error)),
            }
        }
        Ok(format!(
            "{host} was asked to {command}, and has not answered yet; `forebay fleet hosts` shows when it has"
        ))
    }
}

/// Why a host was not asked, or said no.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// It is not there.
    #[error("{0}")]
    NoHost(String),
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// Nobody could be asked.
    #[error(transparent)]
    Coordinator(Error),
}

/// What the thread begins with.
pub(crate) struct Beginning {
    pub(crate) config: FleetConfig,
    /// The fleet's directory in the state directory.
    pub(crate) directory: PathBuf,
    pub(crate) host: offering::Host,
    pub(crate) reports: watch::Receiver<Option<Arc<Published>>>,
    pub(crate) outlook: outlook::Desk,
    pub(crate) tell: Tell,
}

/// The running thread.
#[derive(Debug)]
pub(crate) struct Membership {
    desk: Desk,
    /// Dropped to end the thread.
    stop: watch::Sender<()>,
    thread: JoinHandle<()>,
}

impl Membership {
    /// Opens the coordinator and starts the thread; nobody need be there yet.
    ///
    /// # Errors
    /// What cannot be read, made or started, and what to do.
    pub(crate) fn start(beginning: Beginning) -> Result<Self, String> {
        let coordinator = open(&beginning.config, &beginning.directory)?;
        Self::start_with(beginning, coordinator)
    }

    fn start_with(beginning: Beginning, coordinator: Arc<dyn Coordinator>) -> Result<Self, String> {
        let files = files::Files::open(&beginning.directory)?;
        let standing = Standing {
            cordoned: files.is_cordoned()?,
            ..Standing::default()
        };
        let (tell, told) = watch::channel(Arc::new(standing.clone()));
        let (promised, promises) = watch::channel(BTreeMap::new());
        let (takes, taken) = watch::channel(None);
        let (ahead, asked_ahead) = watch::channel(Arc::default());
        let (stop, stopped) = watch::channel(());
        let desk = Desk {
            host: beginning.config.host.clone(),
            coordinator: Arc::clone(&coordinator),
            standing: told,
            promised: Arc::new(promised),
            takes: Arc::new(takes),
            size: beginning.host,
            ahead: asked_ahead,
        };
        let failed = |error: std::io::Error| {
            format!("start the thread of the fleet: {error}; check limits on threads")
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let job = Job {
            view: coordinator.watch(&beginning.config.host),
            agent: files.agent()?,
            standing,
            files,
            coordinator,
            beginning,
            promises,
            takes: taken,
            tell,
            held: None,
            read_at: 0,
            completed: BTreeSet::new(),
            published: None,
            ahead,
            due: Due::default(),
            pause: JOIN_PAUSE_MIN,
            stopped,
        };
        let thread = std::thread::Builder::new()
            .name("fleet".to_owned())
            .spawn(move || job.run(&runtime))
            .map_err(failed)?;
        Ok(Self { desk, stop, thread })
    }

    pub(crate) fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Ends the thread. The lease is given up where nothing is this host's; else it ends by itself, since
    /// apps outlive the daemon.
    pub(crate) fn stop(self) {
        let Self { desk, stop, thread } = self;
        drop((desk, stop));
        if thread.join().is_err() {
            tracing::error!("the thread of the fleet panicked; see its message above");
        }
    }
}

fn open(config: &FleetConfig, directory: &std::path::Path) -> Result<Arc<dyn Coordinator>, String> {
    match &config.etcd {
        None => Ok(Arc::new(Local::open(directory)?)),
        #[cfg(feature = "etcd")]
        Some(etcd) => Ok(Arc::new(super::coordinator::etcd::Etcd::start(etcd)?)),
        #[cfg(not(feature = "etcd"))]
        Some(_) => Err("this program was built without etcd".to_owned()),
    }
}

/// When something is to be done next, by [`now`].
#[derive(Debug, Default)]
struct Due {
    join: Duration,
    renew: Duration,
    ahead: Duration,
    publish: Duration,
    hosts: Duration,
}

struct Job {
    beginning: Beginning,
    files: files::Files,
    agent: String,
    coordinator: Arc<dyn Coordinator>,
    view: watch::Receiver<View>,
    promises: watch::Receiver<BTreeMap<Class, Room>>,
    takes: watch::Receiver<Option<Takes>>,
    tell: watch::Sender<Arc<Standing>>,
    /// What is told next.
    standing: Standing,
    held: Option<Held>,
    /// At which revision the records were read under the lease.
    read_at: i64,
    /// Commands that are completed, as long as they are heard of.
    completed: BTreeSet<CommandId>,
    /// What was published last, and when.
    published: Option<(Duration, Offer)>,
    ahead: watch::Sender<Arc<Ahead>>,
    due: Due,
    /// Before the next attempt to join.
    pause: Duration,
    /// Without a sender once the thread is to end.
    stopped: watch::Receiver<()>,
}

impl Job {
    fn run(mut self, runtime: &tokio::runtime::Runtime) {
        // The desks of others outlive the thread, so that only this ends it.
        let mut guard = Guard::new("this host's place in the fleet");
        while !self.is_over() {
            if let Some(defect) = guard.turn(|| self.step(runtime)) {
                self.event(defect);
            }
            runtime.block_on(async {
                tokio::select! {
                    _ = self.stopped.changed() => {}
                    Ok(()) = self.view.changed() => {}
                    Ok(()) = self.promises.changed() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            });
        }
        let own = |records: &Arc<Records>| {
            let mut records = records.values();
            records.any(|record| record.owner == self.beginning.config.host)
        };
        // One that cannot be read may be this host's.
        let owns = self.standing.records.as_ref().is_none_or(own)
            || !self.view.borrow().unreadable.is_empty();
        // Of a coordinator that gives no answer none is waited for.
        let tells = !owns && self.standing.lost.is_none();
        if let (Some(held), true) = (&self.held, tells)
            && let Err(error) = self.coordinator.leave(held)
        {
            tracing::info!(%error, "the lease ends by itself");
        }
    }

    /// Whether the thread is to end: looked at before each request, since one to a coordinator that gives no
    /// answer takes its [longest](super::coordinator::REQUEST_MAX), and a step has several.
    fn is_over(&self) -> bool {
        self.stopped.has_changed().is_err()
    }

    fn step(&mut self, runtime: &tokio::runtime::Runtime) {
        let kept = self.keep_up();
        let (next, heard) = match self.hear() {
            Ok(next) => (next, Ok(())),
            Err(why) => (None, Err(why)),
        };
        self.settle(kept.and(heard).err());
        if self.is_over() {
            return;
        }
        if let Some((id, command)) = next {
            self.answer(id, &command);
        }
        if now() >= self.due.ahead {
            self.due.ahead = now() + ASK_AHEAD;
            self.look_ahead(runtime);
        }
        self.publish();
        self.look_around();
        self.show();
    }

    /// Joins, or renews the lease, where that is due, and tells of it.
    fn keep_up(&mut self) -> Result<(), String> {
        let done = match self.held {
            None if now() >= self.due.join => self.join(),
            Some(_) if now() >= self.due.renew => self.renew(),
            _ => return Ok(()),
        };
        // Whoever freezes must not have to wait for the requests that follow.
        self.show();
        done
    }

    /// The lease that a request is made under, renewed before if that is due. None is made any more once the
    /// thread is to end.
    fn lease(&mut self) -> Option<Held> {
        if self.is_over() {
            return None;
        }
        if let Err(why) = self.keep_up() {
            self.settle(Some(why));
        }
        self.held.clone()
    }

    /// Joins, and reads all records under the new lease.
    fn join(&mut self) -> Result<(), String> {
        let member = self.member(self.offer());
        let ttl = self.beginning.config.lease;
        let joined = self.coordinator.join(&member, ttl).and_then(|held| {
            let (read_at, records) = self.coordinator.records()?;
            Ok((held, read_at, records))
        });
        match joined {
            Ok((held, read_at, records)) => {
                self.pause = JOIN_PAUSE_MIN;
                self.read_at = read_at;
                self.standing.records = Some(Arc::new(records));
                self.standing.tenure = Some(held.lease);
                self.due.renew = now() + held.lease.ttl / RENEWALS;
                self.due.hosts = now();
                self.held = Some(held);
                self.published = Some((now(), member.offer));
                self.event(format!(
                    "{} is a member of the fleet at {}",
                    self.beginning.config.host,
                    self.coordinator.place()
                ));
                Ok(())
            }
            Err(error) => {
                self.due.join = now() + self.pause.mul_f64(0.5 + fastrand::f64());
                self.pause = (self.pause * 2).min(JOIN_PAUSE_MAX);
                Err(error.to_string())
            }
        }
    }

    fn renew(&mut self) -> Result<(), String> {
        let Some(held) = &self.held else {
            return Ok(());
        };
        match self.coordinator.renew(held) {
            Ok(Some(renewed)) => {
                self.due.renew = now() + renewed.lease.ttl / RENEWALS;
                self.standing.tenure = Some(renewed.lease);
                self.held = Some(renewed);
                Ok(())
            }
            Ok(None) => {
                self.held = None;
                self.standing.tenure = None;
                self.due.join = now();
                self.event("this host is no member any more; joining the fleet again".to_owned());
                Ok(())
            }
            Err(error) => {
                self.due.renew = now() + RENEW_PAUSE;
                Err(error.to_string())
            }
        }
    }

    /// Takes in what changed. What this thread is asked for next, if anything.
    fn hear(&mut self) -> Result<Option<(CommandId, Command)>, String> {
        let view = self.view.borrow_and_update().clone();
        // Older than what was read under the lease, it may be of before another host took over.
        if view.revision >= self.read_at && view.records.is_some() {
            self.standing.records.clone_from(&view.records);
        }
        let (own, others): (Commands, Commands) =
            (*view.commands)
                .clone()
                .into_iter()
                .partition(|(_, asked)| {
                    matches!(asked, Command::Cordon | Command::Uncordon | Command::Other)
                });
        if *self.standing.commands != others {
            self.standing.commands = Arc::new(others);
        }
        let waits = |id: &CommandId| own.iter().any(|(other, _)| other == id);
        self.completed.retain(waits);
        // Before anything was heard it is joining that says whether the coordinator is there.
        if let (Some((_, why)), true) = (view.lost, view.revision > 0) {
            return Err(why);
        }
        let is_open = |(id, _): &(CommandId, Command)| !self.completed.contains(id);
        Ok(own.into_iter().find(is_open))
    }

    /// Carries a command out, and says how that ended. One in a step: others wait for the next.
    fn answer(&mut self, id: CommandId, command: &Command) {
        let how = self.carry_out(command);
        self.lease();
        let host = &self.beginning.config.host;
        match self.coordinator.complete(host, &id, &how) {
            Ok(()) => _ = self.completed.insert(id),
            Err(error) => self.settle(Some(error.to_string())),
        }
    }

    fn carry_out(&mut self, command: &Command) -> Completed {
        let host = self.beginning.config.host.clone();
        let cordoned = match command {
            Command::Cordon => true,
            Command::Uncordon => false,
            _ => {
                let version = env!("CARGO_PKG_VERSION");
                let why = format!(
                    "Forebay {version} on {host} does not know that command, or cannot read it; its log \
                     tells more"
                );
                return Completed::Refused { why };
            }
        };
        if let Err(why) = self.files.cordon(cordoned) {
            return Completed::Refused { why };
        }
        if self.standing.cordoned != cordoned {
            self.standing.cordoned = cordoned;
            self.event(format!("asked to {command}"));
        }
        // Whoever asked looks at what is published.
        self.due.publish = Duration::ZERO;
        self.publish();
        let what = match cordoned {
            true => format!("{host} takes no more applications"),
            false => format!("{host} takes applications again"),
        };
        Completed::Done { what }
    }

    /// Notes that the coordinator is lost, or there again.
    fn settle(&mut self, trouble: Option<String>) {
        let since = self.standing.lost.as_ref().map(|lost| lost.since);
        match (trouble, since) {
            (Some(why), Some(_)) => {
                if let Some(lost) = &mut self.standing.lost {
                    lost.why = why;
                }
            }
            (Some(why), None) => {
                self.event(format!(
                    "the fleet is out of reach, and nothing moves until it is not: {why}"
                ));
                self.standing.lost = Some(Lost {
                    since: now(),
                    since_unix_ms: unix_ms(),
                    why,
                });
            }
            // Before it is tried again nobody knows.
            (None, Some(since)) if self.has_renewed_since(since) => {
                let seconds = now().saturating_sub(since).as_secs();
                self.standing.lost = None;
                self.event(format!("the fleet is in reach again, after {seconds} s"));
            }
            (None, _) => {}
        }
    }

    fn has_renewed_since(&self, since: Duration) -> bool {
        let held = self.held.as_ref();
        held.is_some_and(|held| held.lease.renewed_at > since)
    }

    /// Asks what apps will need. Without an answer, what was said last stands.
    fn look_ahead(&mut self, runtime: &tokio::runtime::Runtime) {
        let asked = self.beginning.outlook.ask_needs(offering::AHEAD);
        let answer = runtime.block_on(async { tokio::time::timeout(AHEAD_WAIT, asked).await });
        match answer {
            Ok(Ok(ahead)) => _ = self.ahead.send_replace(Arc::new(ahead)),
            Ok(Err(why)) => tracing::debug!(why, "the offer goes by what was forecast before"),
            Err(_) => tracing::debug!("the offer goes by what was forecast before"),
        }
    }

    fn offer(&self) -> Offer {
        let promised = self.promises.borrow().clone();
        let cordoned = self.standing.cordoned;
        let offer = match &*self.beginning.reports.borrow() {
            Some(published) => offering::offer(
                self.beginning.host,
                &published.report,
                &self.ahead.borrow(),
                promised,
                cordoned,
            ),
            // Nothing was observed yet, so that nothing can be promised.
            None => Offer {
                capacity: Room::default(),
                needed: BTreeMap::new(),
                used: None,
                promised,
                apps: std::collections::BTreeSet::new(),
                cordoned,
                unfit: None,
                takes: None,
            },
        };
        Offer {
            takes: self.takes.borrow().clone(),
            ..offer
        }
    }

    fn member(&self, offer: Offer) -> Member {
        Member {
            host: self.beginning.config.host.clone(),
            agent: self.agent.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: self.beginning.config.link.address.clone(),
            offer,
            unix_ms: unix_ms(),
        }
    }

    /// Publishes what this host has room for, when that changed and from time to time.
    fn publish(&mut self) {
        if now() < self.due.publish || self.held.is_none() {
            return;
        }
        let offer = self.offer();
        let due = self
            .published
            .as_ref()
            .is_none_or(|(at, old)| now() >= *at + PUBLISH_MAX || differs(old, &offer));
        if !due {
            self.due.publish = now() + PUBLISH_LOOK;
            return;
        }
        self.due.publish = now() + PUBLISH_MIN;
        let Some(held) = self.lease() else {
            return;
        };
        let member = self.member(offer);
        match self.coordinator.publish(&held, &member) {
            Ok(()) => self.published = Some((now(), member.offer)),
            Err(error) => {
                tracing::debug!(%error, "the offer was not published");
                // Others may see this host gone: renewing finds out.
                if error.outcome() == Outcome::Refused {
                    self.due.renew = now();
                }
            }
        }
    }

    /// Looks who is there.
    fn look_around(&mut self) {
        if now() < self.due.hosts || self.lease().is_none() {
            return;
        }
        match self.coordinator.hosts() {
            Ok(members) => self.standing.members = Arc::new(members),
            Err(error) => tracing::debug!(%error, "it is not known who is there now"),
        }
        let hosts = u32::try_from(self.standing.members.len()).unwrap_or(u32::MAX);
        self.due.hosts = now() + HOSTS_EVERY + HOSTS_EVERY_EACH * hosts;
    }

    fn show(&self) {
        self.tell.send_if_modified(|told| {
            let changed = **told != self.standing;
            if changed {
                *told = Arc::new(self.standing.clone());
            }
            changed
        });
    }

    fn event(&self, what: String) {
        tracing::info!("{what}");
        (self.beginning.tell)(EventKind::Fleet, what);
    }
}

/// Whether an offer is another one for whoever chooses by it.
fn differs(old: &Offer, new: &Offer) -> bool {
    let is_near = |a: f64, b: f64, all: f64| (a - b).abs() <= CHANGE_PART * all;
    let room = |a: Room, b: Room| {
        is_near(a.cpu.as_cpus(), b.cpu.as_cpus(), new.capacity.cpu.as_cpus())
            && is_near(
                a.memory.as_f64(),
                b.memory.as_f64(),
                new.capacity.memory.as_f64(),
            )
    };
    let rooms = |a: &BTreeMap<Class, Room>, b: &BTreeMap<Class, Room>| {
        a.len() == b.len()
            && a.iter()
                .all(|(class, a)| b.get(class).is_some_and(|b| room(*a, *b)))
    };
    !(room(old.capacity, new.capacity)
        && rooms(&old.needed, &new.needed)
        && match (&old.used, &new.used) {
            (Some(old), Some(new)) => rooms(old, new),
            (old, new) => old == new,
        }
        && old.promised == new.promised
        && old.apps == new.apps
        && old.cordoned == new.cordoned
        && old.unfit == new.unfit
        && old.takes == new.takes)
}

fn unix_ms() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(unix.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
