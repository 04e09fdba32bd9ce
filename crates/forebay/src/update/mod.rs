//! Updates of the operating system: who asks, what is kept, who carries them out.
//!
//! ```text
//! API ──order──▶ journal ──wake──▶ thread: deed, fact, journal, and so on (`run.rs`)
//!                                    │ edits and deeds    ▲ reports
//!                                    ▼                    │
//!                               control thread ───────────┘
//!                                    │ starts in a slice of its own, bounded
//!                                    ▼
//!                               forebay errand (`errand.rs`): runs the command once
//! ```
//!
//! The rules are `forebay_core::update`; its page says what a crash leaves. The thread is dropped where it
//! stands when the daemon stops: that is no other than a crash.

mod apart;
mod clients;
mod elsewhere;
mod errand;
pub(crate) mod hooks;
mod journal;
mod keep;
mod measure;
mod order;
mod outdated;
mod plan;
mod proof;
mod proposal;
mod receipt;
pub(crate) mod rehearse;
mod restore;
pub(crate) mod rolling;
mod run;
mod seats;
mod soft;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_api as api;
use forebay_core::app::{App, AppId, Binding, Ceiling, Class, Exec, Policy, Restart, Sink};
use forebay_core::units::{Bytes, Limit, MilliCpu};
use forebay_core::update::{Call, Order, Record, Stage, Step};
use forebay_host::Roots;
use tokio::sync::{Notify, oneshot, watch};

use apart::Apart;
pub(crate) use clients::hold;
pub(crate) use elsewhere::Fleet;
pub(crate) use errand::{Args as ErrandArgs, run as run_errand};
use journal::{Book, Entry};
pub(crate) use keep::arriving;
pub(crate) use told::attended;

use crate::config::{DaemonConfig, HostFacts};
use crate::control::{Command, Published};
use crate::server::Socket;
use crate::{fronts, images};

/// The apps of updates are named by it; no other app may be.
const PREFIX: &str = "os-update.";
/// Its share of the CPUs beside others: half of what a standard app has, and a hundredth of a critical
/// one's. Not the idle class: on a host that is full a package manager would hold its locks for minutes.
const CPU_WEIGHT: u32 = 50;
/// Its share of the disk beside others.
const IO_WEIGHT: u32 = 10;
const PIDS_MAX: u64 = 4096;
/// The least memory that a package manager is known to need.
const MEMORY_MIN: u64 = 512 << 20;

/// What an update needs to know of the host.
#[derive(Debug, Clone)]
struct Place {
    state_dir: PathBuf,
    executable: PathBuf,
    /// The anchor of the groups of apps.
    anchor: PathBuf,
    /// The bus that systemd is on.
    bus: String,
    boot: String,
    cpus: usize,
    memory: u64,
    criu: Option<PathBuf>,
    qemu: Option<PathBuf>,
}

/// What `forebay errand` is run with, beside the command.
#[derive(Debug)]
struct Errands {
    /// Of the app, behind [`PREFIX`].
    name: String,
    file: PathBuf,
    output: PathBuf,
    directory: PathBuf,
    limit: Duration,
}

impl Place {
    fn dir(&self) -> PathBuf {
        self.state_dir.join("update")
    }

    fn errand(&self, update: u64, run: u32) -> PathBuf {
        self.dir().join(format!("{update}.{run}.errand"))
    }

    fn output(&self, update: u64, run: u32) -> PathBuf {
        self.dir().join(format!("{update}.{run}.output"))
    }

    /// The app that runs a command.
    fn app(&self, step: &Step, order: &Order, command: &[String]) -> Option<App> {
        let errands = Errands {
            name: format!("{}.{}", step.update, step.run),
            file: self.errand(step.update, step.run),
            output: self.output(step.update, step.run),
            directory: order.directory.clone(),
            limit: order.limit,
        };
        self.small(errands, step, command)
    }

    /// An app that runs something once, with little of everything.
    fn small(&self, errands: Errands, step: &Step, command: &[String]) -> Option<App> {
        let id: AppId = format!("{PREFIX}{}", errands.name).parse().ok()?;
        let output = errands.output;
        let words = [
            self.executable.display().to_string(),
            "errand".to_owned(),
            "--file".to_owned(),
            errands.file.display().to_string(),
            "--step".to_owned(),
            serde_json::to_string(step).ok()?,
            "--output".to_owned(),
            output.display().to_string(),
            "--limit-ms".to_owned(),
            errands.limit.as_millis().to_string(),
            "--".to_owned(),
        ];
        let exec = Exec {
            directory: Some(errands.directory),
            environment: BTreeMap::from([("FOREBAY_UPDATE".to_owned(), step.update.to_string())]),
            stdout: Some(Sink::File(output.clone())),
            stderr: Some(Sink::File(output)),
            restart: Restart::Never,
            ..Exec::of(words.into_iter().chain(command.iter().cloned()).collect())
        };
        let cpus = (self.cpus as f64 / 4.0).max(0.5);
        Some(App {
            ceiling: Ceiling {
                cpu: Limit::At(MilliCpu::from_cpus(cpus)),
                memory: Limit::At(Bytes((self.memory / 4).max(MEMORY_MIN))),
                pids: Limit::At(PIDS_MAX),
                ..Ceiling::default()
            },
            cpu_weight: Some(CPU_WEIGHT),
            io_weight: Some(IO_WEIGHT),
            ..App::new(id, Class::Standard, Binding::Exec(exec))
        })
    }
}

/// The app that runs the command of an update's stage, where one does.
fn running(place: &Place, record: &Record) -> Option<App> {
    let command = match record.stage {
        Stage::Updating => &record.order.command,
        Stage::Undoing => record.order.rollback.as_ref()?,
        Stage::Rehearsing => return place.rehearsal(record),
        _ => return None,
    };
    place.app(&record.step(), &record.order, command)
}

/// Which apps of an update are held apart from everybody else.
fn detached(record: &Record) -> BTreeSet<AppId> {
    if matches!(record.stage, Stage::Planned | Stage::Over(_)) {
        return BTreeSet::new();
    }
    let told = record.order.told.iter();
    let detached = told.filter(|(_, call)| **call == Call::Detach);
    detached.map(|(app, _)| app.clone()).collect()
}

type Apps = Arc<Mutex<BTreeMap<AppId, App>>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The apps of the update under way, which stand in no configuration and which a reload leaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept(Apps, Apart, Restarts);

/// How apps are started again as they are configured, while they are kept over a boot.
type Restarts = Arc<Mutex<BTreeMap<AppId, Restart>>>;

impl Kept {
    /// What holds while apps run detached.
    pub(crate) fn apart(&self) -> Apart {
        self.1.clone()
    }

    pub(crate) fn apps(&self) -> BTreeMap<AppId, App> {
        locked(&self.0).clone()
    }

    /// Has a policy that comes leave those ended that are kept over a boot; it says how they are started again after it.
    pub(crate) fn hold_back(&self, policy: &mut Policy) {
        for (app, before) in locked(&self.2).iter_mut() {
            let binding = policy.apps.get_mut(app).map(|app| &mut app.binding);
            if let Some(Binding::Exec(exec)) = binding {
                *before = std::mem::replace(&mut exec.restart, Restart::Never);
            }
        }
    }
}

/// What is known before anything runs.
#[derive(Debug)]
pub(crate) struct Opened {
    book: Arc<Book>,
    place: Place,
    kept: Kept,
    board: told::Board,
    stands_by: bool,
}

impl Opened {
    /// Whether nothing is carried out, since another daemon comes that does.
    pub(crate) fn stands_by(self, stands_by: bool) -> Self {
        Self { stands_by, ..self }
    }

    /// Reads how far an update is.
    ///
    /// # Errors
    /// When the directory of updates cannot be made, or /proc is not there.
    pub(crate) fn open(
        daemon: &DaemonConfig,
        facts: &HostFacts,
        bus: String,
    ) -> Result<Self, String> {
        let state_dir = &daemon.state_dir;
        let place = Place {
            state_dir: state_dir.to_owned(),
            executable: facts.executable.clone(),
            anchor: PathBuf::from(&daemon.cgroup_root),
            bus,
            boot: Roots::default()
                .boot_id()
                .map_err(|error| error.explain())?,
            cpus: facts.cpus,
            memory: facts.memory.0,
            criu: daemon.criu.clone(),
            qemu: daemon.qemu.clone(),
        };
        let dir = place.dir();
        std::fs::create_dir_all(&dir)
            .map_err(|error| format!("make {}: {error}", dir.display()))?;
        let book = Arc::new(Book::open(state_dir));
        let kept = Kept::default();
        let current = book.current();
        if let Some(entry) = &current {
            kept.1.set(detached(&entry.record));
        }
        if let Some(app) = current
            .as_ref()
            .and_then(|entry| running(&place, &entry.record))
        {
            locked(&kept.0).insert(app.id.clone(), app);
        }
        let board = told::Board::new(current.as_ref());
        Ok(Self {
            book,
            place,
            kept,
            board,
            stands_by: false,
        })
    }

    pub(crate) fn kept(&self) -> Kept {
        self.kept.clone()
    }

    /// Apps that an update ended, and starts again itself.
    pub(crate) fn ended(&self) -> watch::Receiver<Arc<BTreeSet<AppId>>> {
        self.board.ended()
    }
}

/// What others want of the update under way.
#[derive(Debug, Default)]
struct Wishes {
    abort: AtomicBool,
    resume: AtomicBool,
}

/// What all parts of an update share.
#[derive(Debug)]
struct Shared {
    book: Arc<Book>,
    place: Place,
    kept: Kept,
    /// Who is told what.
    board: told::Board,
    wake: Notify,
    wishes: Wishes,
    /// Why it stands still now, if it does.
    held: Mutex<Option<String>>,
    /// Why it cannot go on now.
    stuck: Mutex<Option<String>>,
    commands: SyncSender<Command>,
    reports: watch::Receiver<Option<Arc<Published>>>,
    fronts: fronts::Desk,
    images: images::Desk,
    /// Connections of clients that are kept over a boot.
    clients: clients::Clients,
    /// What is done when the daemon ends with the host.
    farewell: keep::Farewell,
    /// Where apps of this host may be meanwhile, if it has a place in a fleet.
    fleet: Option<Fleet>,
}

impl Shared {
    /// Asks the control thread.
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        let mut command = command(reply);
        loop {
            match self.commands.try_send(command) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => command = back,
                Err(TrySendError::Disconnected(_)) => {
                    return Err("the daemon is stopping".to_owned());
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        answer
            .await
            .map_err(|_| "the daemon is stopping".to_owned())
    }

    async fn policy(&self) -> Result<Policy, String> {
        self.ask(Command::Policy).await
    }
}

/// Why something is not done.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It makes no sense.
    Mistake(String),
    /// Not now, or not here.
    Cannot(String),
}

/// Updates of this host in numbers, kept over boots.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Those that are over, by `committed`, `rolled_back` or `alarmed`.
    pub(crate) outcomes: BTreeMap<String, u64>,
    /// One is under way.
    pub(crate) is_under_way: bool,
    /// How long they stood still because a critical app suffered.
    pub(crate) held: Duration,
}

/// Where updates are asked for and shown.
#[derive(Debug, Clone)]
pub(crate) struct Desk(Arc<Shared>);

impl Desk {
    /// The daemon is to end: what an update does last in a boot is done first. Whether there was something.
    pub(crate) async fn farewell(&self) -> bool {
        self.0.farewell.bid().await
    }

    /// What an update would do; nothing is touched.
    ///
    /// # Errors
    /// When the request makes no sense.
    pub(crate) async fn plan(
        &self,
        request: api::UpdateRequest,
    ) -> Result<api::UpdatePlan, Refused> {
        let proposal = self.0.propose(request).await?;
        let fleet = self.0.fleet.as_ref();
        let passed_over = proposal.passed_over.iter();
        Ok(api::UpdatePlan {
            apps: proposal
                .choices
                .iter()
                .map(|(app, choice)| plan::shown(app, choice))
                .collect(),
            rungs: plan::rungs(fleet.is_some(), &proposal.keeping, &proposal.softly),
            chosen: proposal.chosen.map(|way| way.name().to_owned()),
            passed_over: passed_over
                .map(|(way, why)| api::UpdatePassedOver {
                    rung: way.name().to_owned(),
                    reason: why.clone(),
                })
                .collect(),
            rehearsal: self.0.rehearsed(&proposal.order),
            refused: proposal
                .refused
                .into_iter()
                .chain(self.obstacle())
                .collect(),
        })
    }

    /// Why none can begin now.
    fn obstacle(&self) -> Option<String> {
        if let Some(why) = self.0.book.broken() {
            return Some(why.to_owned());
        }
        if let Some(entry) = self.0.book.current() {
            let number = entry.record.number;
            return Some(format!(
                "update {number} is under way ({}): there is one at a time; `forebay update status` shows it",
                receipt::stage(entry.record.stage)
            ));
        }
        outdated::package_lock()
            .map(|lock| format!("a package manager is at work (it holds {lock}): wait for its end"))
    }

    /// Begins one; its number.
    ///
    /// # Errors
    /// Why it does not begin.
    pub(crate) async fn begin(&self, request: api::UpdateRequest) -> Result<u64, Refused> {
        self.begin_for(request, None).await
    }

    /// Begins one, for an attempt of a rolling update if it is one's.
    async fn begin_for(
        &self,
        request: api::UpdateRequest,
        rollout: Option<String>,
    ) -> Result<u64, Refused> {
        let proposal = self.0.propose(request).await?;
        let mut refused = proposal.refused.into_iter().chain(self.obstacle());
        if let Some(why) = refused.next() {
            return Err(Refused::Cannot(why));
        }
        let (order, plan) = (proposal.order, proposal.choices);
        let boot = self.0.place.boot.clone();
        let mut begun = None;
        let written = self.0.book.amend(|content| {
            // Two that came at the same time were both told that there is none.
            if content.current.is_none() {
                content.updates += 1;
                let mut record = Record::new(content.updates, unix_ms(), boot, order);
                record.plan = plan;
                begun = Some(content.updates);
                content.current = Some(Entry {
                    rollout,
                    ..Entry::new(record)
                });
            }
        });
        written.map_err(Refused::Cannot)?;
        self.0.wishes.abort.store(false, Ordering::Relaxed);
        self.0.wishes.resume.store(false, Ordering::Relaxed);
        self.0.wake.notify_one();
        begun.ok_or_else(|| {
            Refused::Cannot(
                "another update began at the same time: there is one at a time".to_owned(),
            )
        })
    }

    /// Calls it off, or ends its command.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn abort(&self) -> Result<String, Refused> {
        let entry = self.current()?;
        let (number, stage) = (entry.record.number, entry.record.stage);
        let said = if entry.record.can_be_called_off() {
            format!("update {number} is called off: nothing was changed")
        } else if stage == Stage::Updating {
            if let Some(lock) = outdated::package_lock() {
                return Err(Refused::Cannot(format!(
                    "update {number}: a package manager is at work (it holds {lock}), and ended now it \
                     would leave packages half configured; try again when it is done"
                )));
            }
            format!("the command of update {number} is asked to end")
        } else if has_reboot_before_it(stage) {
            let does = receipt::before_reboot(stage);
            return Err(Refused::Cannot(format!(
                "update {number} {does}, and its command is over: `forebay update resume` goes on without the reboot"
            )));
        } else {
            return Err(Refused::Cannot(format!(
                "update {number} is {}: its command is over, and it goes on to its end by itself",
                receipt::stage(stage)
            )));
        };
        self.0.wishes.abort.store(true, Ordering::Relaxed);
        self.0.wake.notify_one();
        Ok(said)
    }

    /// Goes on without the reboot that it waits for.
    ///
    /// # Errors
    /// When it waits for none.
    pub(crate) fn resume(&self) -> Result<String, Refused> {
        let entry = self.current()?;
        let number = entry.record.number;
        if !has_reboot_before_it(entry.record.stage) {
            return Err(Refused::Cannot(format!(
                "update {number} is {} and goes on by itself; `forebay update status` shows it",
                receipt::stage(entry.record.stage)
            )));
        }
        self.0.wishes.resume.store(true, Ordering::Relaxed);
        self.0.wake.notify_one();
        Ok(format!("update {number} goes on without a reboot"))
    }

    fn current(&self) -> Result<Entry, Refused> {
        self.0.book.current().ok_or_else(|| {
            Refused::Cannot(
                "no update is under way; `forebay update history` shows those that are over"
                    .to_owned(),
            )
        })
    }

    /// The one under way, and those before it.
    pub(crate) async fn updates(&self) -> api::Updates {
        let outdated = self.outdated().await;
        let content = self.0.book.content();
        let held = locked(&self.0.held).clone();
        let stuck = locked(&self.0.stuck).clone();
        api::Updates {
            current: content.current.map(|entry| {
                let output = self.0.place.output(entry.record.number, entry.record.runs);
                receipt::current(&entry, &output, held, stuck)
            }),
            history: content.history,
            trouble: self.0.book.broken().map(str::to_owned),
            outdated,
        }
    }

    /// Updates in numbers. Asks nobody.
    pub(crate) fn tally(&self) -> Tally {
        let content = self.0.book.content();
        let current = content.current.as_ref();
        let held_ms = current.map_or(0, |entry| entry.held_ms);
        Tally {
            outcomes: content.outcomes,
            is_under_way: current.is_some(),
            held: Duration::from_millis(content.held_ms.saturating_add(held_ms)),
        }
    }

    async fn outdated(&self) -> Vec<String> {
        let policy = self.0.policy().await.unwrap_or_default();
        let published = self.0.reports.borrow().clone();
        let report = published.as_ref().map(|published| &published.report);
        let old = report.map(|report| run::old(&policy, report, &Default::default()));
        let old = old.unwrap_or_default().into_keys();
        let all = old.chain(run::outside(&policy).into_keys());
        all.map(|app| app.to_string()).collect()
    }
}

/// What the journal says while no daemon runs.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn without_daemon(state_dir: &Path) -> Result<api::Updates, String> {
    let content = journal::read(state_dir)?;
    Ok(api::Updates {
        current: content.current.map(|entry| {
            let (number, runs) = (entry.record.number, entry.record.runs);
            let output = state_dir.join(format!("update/{number}.{runs}.output"));
            api::Update {
                next: "no daemon runs: start it (`systemctl start forebay`), and the update goes on from \
                       here by itself"
                    .to_owned(),
                ..receipt::current(&entry, &output, None, None)
            }
        }),
        history: content.history,
        ..api::Updates::default()
    })
}

/// Whether an update can go on without the reboot that comes.
const fn has_reboot_before_it(stage: Stage) -> bool {
    matches!(
        stage,
        Stage::Rehearsing | Stage::RebootPending | Stage::Departing
    )
}

fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The thread that carries updates out.
#[derive(Debug)]
pub(crate) struct Updater {
    desk: Desk,
    /// Dropped to end the thread.
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
    /// Where apps are told; gone with this.
    attended: Option<Socket>,
}

impl Updater {
    /// Starts it; an update that was under way goes on.
    ///
    /// # Errors
    /// When the system starts none.
    pub(crate) fn start(
        opened: Opened,
        commands: SyncSender<Command>,
        reports: watch::Receiver<Option<Arc<Published>>>,
        (fronts, images): (fronts::Desk, images::Desk),
        fleet: Option<Fleet>,
        mut attended: Option<Socket>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            book: opened.book,
            place: opened.place,
            kept: opened.kept,
            board: opened.board,
            wake: Notify::new(),
            wishes: Wishes::default(),
            held: Mutex::default(),
            stuck: Mutex::default(),
            commands,
            reports,
            fronts,
            images,
            clients: clients::Clients::default(),
            farewell: keep::Farewell::default(),
            fleet,
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let listener = {
            let _entered = runtime.enter();
            attended.as_mut().map(Socket::listener).transpose()?
        };
        let stands_by = opened.stands_by;
        let runner = run::Runner::new(Arc::clone(&shared));
        let listening = told::listen(Arc::clone(&shared), listener);
        let returning = clients::begin(Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("update".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    if !stands_by {
                        tokio::spawn(returning);
                    }
                    tokio::select! {
                        () = runner.run(), if !stands_by => {}
                        () = listening => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            desk: Desk(shared),
            stop,
            thread,
            attended,
        })
    }

    pub(crate) fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Ends it where it stands; the journal says how to go on.
    pub(crate) fn stop(self) {
        let Self {
            desk,
            stop,
            thread,
            attended,
        } = self;
        drop((desk, stop));
        if thread.join().is_err() {
            tracing::error!("the thread that carries out updates panicked");
        }
        drop(attended);
    }
}
