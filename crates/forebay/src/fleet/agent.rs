//! The agent: what makes this host take part in moves.
//!
//! ```text
//!   coordinator ──▶ member ── lease, records, commands ──▶ agent ──▶ moves ◀── link ── agents of others
//!                                                                       │
//!                                                                 control thread
//! ```
//!
//! [`prepare`] is called before the control thread begins, so that nothing is started here that another
//! host may own. Then there are two threads beside those of the moves: one speaks TLS with other agents, one
//! carries out what was asked of this host by the coordinator, and says which room was promised.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use forebay_core::app::{App, AppId};
use forebay_core::fleet::HostName;
use forebay_core::fleet::choice::{self, Mover, Offer, Reason};
use forebay_core::fleet::policy::{Away, Look};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{oneshot, watch};

use super::coordinator::{Command as Asked, CommandId, Completed, Members};
use super::guard::Guard;
use super::link::identity::system_clock;
use super::link::rdma::Choice;
use super::link::{self, Identity};
use super::member;
use super::moves::service::{Fronts, fit};
use super::moves::{
    Apps, Around, Choose, Coordinated, Desk, Drain, Found, Hosted, House, Initiative, Moves,
    Wanted, Wired, wired,
};
use crate::config::{MovesConfig, Rdma};
use crate::control::{Command, Published, TellOf};
use crate::fronts;

/// How often it is looked for what was not told.
const LOOK: Duration = Duration::from_millis(250);
/// How often it is looked what could be taken in here, where the configuration stays: programs are installed, fronts
/// come into step.
const TAKES_EVERY: Duration = Duration::from_secs(20);

/// What the agent begins with.
pub(crate) struct Beginning<'a> {
    pub(crate) member: member::Desk,
    /// Where others reach this agent.
    pub(crate) listen: SocketAddr,
    /// Whether what moves goes over RDMA.
    pub(crate) rdma: Rdma,
    pub(crate) state_dir: &'a Path,
    /// CRIU, where its place is configured.
    pub(crate) criu: Option<PathBuf>,
    /// The anchor of the groups of apps.
    pub(crate) anchor: &'a Path,
    pub(crate) commands: SyncSender<Command>,
    pub(crate) reports: watch::Receiver<Option<Arc<Published>>>,
    pub(crate) apps: watch::Receiver<BTreeMap<AppId, App>>,
    pub(crate) tell: TellOf,
    /// For the control thread: what is not this host's to start.
    pub(crate) elsewhere: watch::Sender<Arc<BTreeSet<AppId>>>,
    /// For the control thread: where apps could move to.
    pub(crate) away: watch::Sender<Option<Arc<BTreeMap<AppId, Away>>>>,
    /// What moves without being asked for.
    pub(crate) own: MovesConfig,
}

/// What is there before the control thread begins.
pub(crate) struct Prepared {
    member: member::Desk,
    listen: SocketAddr,
    rdma: Choice,
    runtime: Runtime,
    identity: Arc<Identity>,
    house: House,
    hosted: Arc<Hosted>,
    drain: Arc<Drain>,
    initiative: Initiative,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").finish_non_exhaustive()
    }
}

/// Reads what is on disk, and says what is not to be started here.
///
/// # Errors
/// This host cannot be one of the fleet: why, and what to do.
pub(crate) fn prepare(beginning: Beginning<'_>) -> Result<Prepared, String> {
    let Beginning {
        member,
        listen,
        rdma,
        state_dir,
        criu,
        anchor,
        commands,
        reports,
        apps,
        tell,
        elsewhere,
        away,
        own,
    } = beginning;
    let identity = Identity::load(&state_dir.join(link::agent::DIR), system_clock());
    let identity = identity.map_err(|error| {
        format!("{error}; make this host one of the fleet with `forebay fleet join`, or leave `fleet.link` out")
    })?;
    let identity = Arc::new(identity);
    if identity.host() != member.host {
        return Err(format!(
            "its certificate is for the host {}, and `fleet.host` is {}: name it like its certificate, or let \
             it join again",
            identity.host(),
            member.host
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("fleet-blocking")
        .build()
        .map_err(|error| format!("start a runtime for its link: {error}; check limits on files"))?;
    let records = Arc::new(Coordinated {
        here: member.host.clone(),
        coordinator: Arc::clone(&member.coordinator),
        standing: member.standing.clone(),
    });
    let rdma = Choice::new(rdma);
    let peer = Arc::new(Wired::new(
        Arc::clone(&member.coordinator),
        Arc::clone(&identity),
        runtime.handle().clone(),
        rdma.clone(),
    ));
    let hosted = Arc::new(Hosted {
        commands,
        reports,
        apps,
        tell,
        anchor: anchor.to_owned(),
        state_dir: state_dir.to_owned(),
        size: member.size,
        ahead: member.ahead.clone(),
        criu,
        fronts: OnceLock::new(),
    });
    let apps: Arc<dyn Apps> = Arc::clone(&hosted) as Arc<dyn Apps>;
    let house = House::open(
        member.host.clone(),
        state_dir,
        (records, peer, apps),
        elsewhere,
    );
    Ok(Prepared {
        member,
        listen,
        rdma,
        runtime,
        identity,
        house,
        hosted,
        initiative: Initiative::new(own, away),
        drain: Arc::new(Drain::open(&state_dir.join(link::agent::DIR))),
    })
}

/// The threads.
#[derive(Debug)]
pub(crate) struct Agent {
    desk: Desk,
    /// Dropped to end the threads.
    stop_link: oneshot::Sender<()>,
    stop: watch::Sender<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Prepared {
    /// Starts the threads.
    ///
    /// # Errors
    /// Its address cannot be listened at, or the system starts no threads.
    pub(crate) fn start(self, fronts: fronts::Desk, main: Handle) -> Result<Agent, String> {
        // Nobody else knows it yet, and there is nothing in it.
        self.hosted.fronts.get_or_init(|| {
            Arc::new(Fronts {
                here: self.member.host.clone(),
                desk: fronts,
                runtime: main,
            })
        });
        let system =
            |error: std::io::Error| format!("start a thread: {error}; check limits on threads");
        let (moves, thread) = Moves::start(self.house).map_err(system)?;
        let mut threads = vec![thread];
        let (stop_link, link_stopped) = oneshot::channel();
        threads.push(wired::listen(
            self.runtime,
            self.identity,
            (self.listen, self.rdma),
            Arc::clone(&moves),
            link_stopped,
        )?);
        let desk = Desk {
            choose: chooser(&self.member, &self.hosted),
            moves,
            drain: self.drain,
        };
        let (stop, stopped) = watch::channel(());
        let job = Job {
            member: self.member,
            desk: desk.clone(),
            hosted: self.hosted,
            initiative: self.initiative,
            done: BTreeMap::new(),
            configured: BTreeMap::new(),
            takes_due: Duration::ZERO,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(system)?;
        let thread = std::thread::Builder::new()
            .name("fleet-agent".to_owned())
            .spawn(move || job.run(&runtime, stopped))
            .map_err(system)?;
        threads.push(thread);
        Ok(Agent {
            desk,
            stop_link,
            stop,
            threads,
        })
    }
}

impl Agent {
    pub(crate) fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Gives moves up that can be, and ends the threads. Blocks for some seconds.
    pub(crate) fn stop(self) {
        let Self {
            desk,
            stop_link,
            stop,
            threads,
        } = self;
        desk.moves.stop();
        drop((stop_link, stop));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the fleet's agent panicked; see its message above");
            }
        }
    }
}

/// Chooses by what all hosts say that they have room for.
fn chooser(member: &member::Desk, hosted: &Arc<Hosted>) -> Choose {
    let (member, hosted) = (member.clone(), Arc::clone(hosted));
    Arc::new(move |id, wanted| {
        let app = hosted
            .app(id)
            .ok_or_else(|| format!("no app `{id}`; `forebay apps` lists them"))?;
        let members = member.coordinator.hosts();
        let members = members.map_err(|error| error.to_string())?;
        // Nothing goes where no agent listens.
        let listening = members.into_iter().filter(|(_, one)| one.address.is_some());
        let mut offers: BTreeMap<HostName, Offer> =
            listening.map(|(name, one)| (name, one.offer)).collect();
        fit(&app, &*hosted, &mut offers).map_err(|trouble| trouble.to_string())?;
        let mover = Mover {
            class: app.class,
            need: hosted.need(id, Look::Ahead),
            here: member.host.clone(),
        };
        let (chosen, reasons) = match wanted {
            Wanted::Better => choice::choose(&mover, &offers),
            Wanted::Other => choice::any(&mover, &offers),
        };
        chosen.ok_or_else(|| nowhere(id, &reasons))
    })
}

fn nowhere(app: &AppId, reasons: &BTreeMap<HostName, Reason>) -> String {
    if reasons.is_empty() {
        return format!("{app} can go nowhere: no other host is a member whose agent listens");
    }
    let reasons = reasons.iter().map(|(host, why)| format!("{host}: {why}"));
    let reasons: Vec<String> = reasons.collect();
    format!("{app} can go nowhere; {}", reasons.join("; "))
}

/// How far a command is that was carried out.
#[derive(Debug)]
enum Completion {
    /// Whoever asked hears of it.
    Written,
    /// It still has to be written what came of it.
    Owed(Completed),
}

/// The thread that carries out what was asked by the coordinator.
struct Job {
    member: member::Desk,
    desk: Desk,
    hosted: Arc<Hosted>,
    initiative: Initiative,
    /// Commands that were carried out and are still told.
    done: BTreeMap<CommandId, Completion>,
    /// As it was when it was looked last what could be taken in.
    configured: BTreeMap<AppId, App>,
    takes_due: Duration,
}

impl Job {
    fn run(mut self, runtime: &Runtime, mut stopped: watch::Receiver<()>) {
        let mut standing = self.member.standing.clone();
        let mut guard = Guard::new("what the coordinator asked of this host");
        while stopped.has_changed().is_ok() {
            guard.turn(|| self.step());
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped.changed() => {}
                    Ok(()) = standing.changed() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            });
        }
    }

    fn step(&mut self) {
        let standing = Arc::clone(&self.member.standing.borrow());
        match standing.cordoned {
            true => self.desk.moves.cordon(),
            false => self.desk.moves.uncordon(),
        }
        self.desk.drain.hear(standing.cordoned);
        let promised = self.desk.moves.promised();
        self.member.promised.send_if_modified(|told| {
            let is_news = *told != promised;
            if is_news {
                *told = promised;
            }
            is_news
        });
        self.say_takes();
        let waits = |id: &CommandId| standing.commands.iter().any(|(other, _)| other == id);
        self.done.retain(|id, _| waits(id));
        for (id, command) in standing.commands.iter() {
            let how = match self.done.get(id) {
                Some(Completion::Written) => continue,
                Some(Completion::Owed(how)) => how.clone(),
                None => {
                    let may = standing.may_move(super::coordinator::now());
                    let how = match self.carry_out(command, may) {
                        Ok(what) => Completed::Done { what },
                        Err(why) => Completed::Refused { why },
                    };
                    tracing::info!(%id, ?command, ?how, "asked by the coordinator");
                    how
                }
            };
            // What is not written would be carried out once more by the daemon after this one.
            let host = &self.member.host;
            let completion = match self.member.coordinator.complete(host, id, &how) {
                Ok(()) => Completion::Written,
                Err(error) => {
                    tracing::warn!(%error, %id, "whoever asked does not hear of it yet");
                    Completion::Owed(how)
                }
            };
            self.done.insert(id.clone(), completion);
        }
        let may = standing.may_move(super::coordinator::now());
        // Whose everything is has to be known before it is known what leaves.
        if may.is_ok() && standing.cordoned && self.desk.drain.is_to_resume() {
            self.desk.drain.begin(&self.found());
        }
        self.desk
            .drain
            .step(&self.desk.moves, &self.desk.choose, may.clone());
        let now: &dyn Fn() -> Arc<Members> = &|| match self.member.coordinator.hosts() {
            Ok(members) => Arc::new(members),
            Err(error) => {
                tracing::debug!(%error, "who is there is as it was looked last");
                Arc::clone(&standing.members)
            }
        };
        self.initiative.step(&Around {
            desk: &self.desk,
            hosted: &self.hosted,
            members: &LazyCell::new(now),
            may: may.is_ok(),
        });
    }

    /// Says what could be taken in here.
    fn say_takes(&mut self) {
        let now = super::coordinator::now();
        let configured = self.hosted.apps.borrow().clone();
        if now < self.takes_due && configured == self.configured {
            return;
        }
        self.takes_due = now + TAKES_EVERY;
        self.configured = configured;
        let takes = self.desk.moves.takes();
        self.member.takes.send_if_modified(|told| {
            let is_news = *told != takes;
            if is_news {
                *told = takes;
            }
            is_news
        });
    }

    /// What is here, for a host that is to be left.
    fn found(&self) -> Found {
        let apps = self.hosted.apps.borrow().clone();
        let is_pinned =
            |app: &&App| app.mobility.is_none() && self.hosted.runs(&app.id) == Some(true);
        let pinned = apps.values().filter(is_pinned);
        Found {
            pinned: pinned.map(|app| app.id.clone()).collect(),
            movable: self.desk.moves.ours(),
        }
    }

    fn carry_out(&mut self, command: &Asked, may: Result<(), String>) -> Result<String, String> {
        match command {
            Asked::Move { app, to } => {
                may?;
                let (to, look) = match to {
                    Some(host) => (host.clone(), Look::Present),
                    None => (self.target(app, Wanted::Better)?, Look::Ahead),
                };
                let begun = self.desk.moves.begin(app, &to, look);
                begun.map_err(|refused| refused.why().to_owned())?;
                Ok(format!("{app} moves to {to}"))
            }
            Asked::Drain => {
                let cordoned = self
                    .member
                    .coordinator
                    .post(&self.member.host, &Asked::Cordon);
                cordoned.map_err(|error| error.to_string())?;
                let found = self.found();
                self.desk.drain.begin(&found);
                let names: Vec<&str> = found.movable.iter().map(AppId::as_str).collect();
                let host = &self.member.host;
                Ok(match names.is_empty() {
                    true => format!("{host} takes no more; nothing of it can move"),
                    false => format!("{host} takes no more; to leave it: {}", names.join(", ")),
                })
            }
            // The member answers these by itself.
            Asked::Cordon | Asked::Uncordon | Asked::Other => {
                Err(format!("nobody here carries out {command:?}; update it"))
            }
        }
    }

    fn target(&self, app: &AppId, wanted: Wanted) -> Result<HostName, String> {
        (self.desk.choose)(app, wanted)
    }
}
