//! The daemon: control thread, guardian, history, API.
//!
//! The control thread owns the host. Everything else runs on one thread beside it and hears
//! of it through the watch channel and the command queue only.

mod early;
mod error;
mod guardian;
mod history;
mod joining;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use forebay_core::app::{OnStop, Policy};
use forebay_core::host::{Action, Host as _, Outcome};
use forebay_core::occasion::Source;
use forebay_core::offload::Climb;
use forebay_core::report::TickReport;
use forebay_core::tier::{self, Courtesy, Waiter};
use forebay_forecast::lstm::Weights;
use forebay_host::mounts::Hierarchies;
use forebay_host::notify::Notifier;
use forebay_host::owner::Addresses;
use forebay_host::{ErrorKind, LinuxHost, Options, Roots, outside};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};

pub(crate) use error::Error;
use error::system;
use guardian::Guardian;

use crate::backing::{self, Desks, History, Reload};
use crate::calibrate;
use crate::config::{self, Config, HostFacts};
use crate::control::{self, Beside, Command, Published};
use crate::dashboard::Keeper;
use crate::fetch::{Fetcher, Foretold};
use crate::fleet::agent::Agent;
use crate::fleet::link;
use crate::fleet::member::Membership;
use crate::fronts;
use crate::images::{self, Imager};
use crate::outlook::{self, Lookout};
use crate::server;
use crate::signals::{self, Teller};
use crate::store;
use crate::tiering::{self, Movers};
use crate::training::{Training, TrainingConfig};
use crate::update::rolling::Roller;
use crate::update::{self, Opened, Updater};
use crate::workers::Workers;

/// Commands that may wait for the control thread.
const COMMANDS_MAX: usize = 64;
/// How often a release is tried when apps are put back at the start.
const RELEASES_MAX: u32 = 50;
/// How often the daemon looks whether its guardian lives.
const GUARDIAN_CHECK: Duration = Duration::from_secs(1);

/// Run the daemon
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Configuration file [default: /etc/forebay/forebay.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only begin the apps that an update keeps over this boot, for the daemon that comes after
    #[arg(long)]
    early: bool,
    /// Only keep the kernel from answering for clients' connections that an update keeps over this boot, and end
    #[arg(long, conflicts_with = "early")]
    before_network: bool,
    /// End as soon as the thread that started this process ends
    #[arg(long, hide = true)]
    parent_death: bool,
    /// What is started sees the file systems as process 1 does: the unit protects them from the daemon alone
    #[arg(long, hide = true)]
    outside: bool,
}

/// Runs until SIGTERM or SIGINT; then puts everything back.
///
/// # Errors
/// When the configuration is wrong, another daemon runs, or something could not be put back.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    let passed = fronts::Passed::take().map_err(Error::Host)?;
    let systemd = Notifier::take().map_err(|error| Error::Host(error.explain()))?;
    if args.outside {
        outside::start_outside(&Roots::default().proc)
            .map_err(|error| Error::Host(error.explain()))?;
    }
    if args.parent_death {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
            .map_err(|error| {
                system(
                    "follow the parent's end",
                    "this should not happen; report it",
                )(error.into())
            })?;
    }
    crate::log::begin("warn");
    let facts = facts()?;
    let mut config = config::load(args.config.as_deref(), &facts).map_err(Error::Config)?;
    if args.before_network {
        update::hold(&config.daemon.state_dir).map_err(Error::Host)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.early {
        match early::only_kept(config).map_err(Error::Host)? {
            Some(kept) => config = kept,
            None => {
                if let Some(systemd) = &systemd {
                    systemd.ready();
                }
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    let measured = calibrate::known(&config.daemon.state_dir, &facts.root);
    for why in &measured.unused {
        tracing::warn!("{why}");
    }
    config.policy.devices = measured.devices;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start the runtime", "check limits on open files"))?
        .block_on(guarded(args, config, facts, passed, systemd))
}

/// This host, as far as a configuration depends on it.
///
/// # Errors
/// When the topology cannot be read.
pub(crate) fn facts() -> Result<HostFacts, Error> {
    let roots = Roots::default();
    let topology = forebay_host::topology::host_topology(&roots, None)
        .map_err(|error| Error::Host(error.explain()))?;
    Ok(HostFacts {
        cpus: topology.cpus().len(),
        memory: topology.memory(),
        root: PathBuf::from("/"),
        executable: std::env::current_exe()
            .map_err(|error| Error::Host(format!("find this program: {error}; mount /proc")))?,
        search_path: std::env::var("PATH")
            .unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
    })
}

/// Runs with a guardian. Signals are caught and the guardian watches before the first change
/// to the host, so that neither a signal nor a kill finds a change that nobody answers for.
async fn guarded(
    args: &Args,
    config: Config,
    facts: HostFacts,
    passed: fronts::Passed,
    systemd: Option<Notifier>,
) -> Result<ExitCode, Error> {
    let mut signals = Signals::catch()?;
    let mut guardian = Guardian::start(&config, config.policy.on_stop)?;
    let result = match begin(args, &config, facts, passed) {
        Ok(running) => {
            running
                .serve(&config, &mut signals, &mut guardian, systemd)
                .await?
        }
        Err(refusal) => {
            guardian.end();
            return Err(refusal);
        }
    };
    // Where something was left, it stays and tries again.
    guardian.end();
    Ok(result)
}

/// The signals that the daemon acts on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn catch() -> Result<Self, Error> {
        let on = |kind| {
            signal(kind).map_err(system("catch signals", "this should not happen; report it"))
        };
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }
}

/// What runs beside the main thread.
struct Running {
    early: bool,
    control: JoinHandle<LinuxHost>,
    commands: SyncSender<Command>,
    published: watch::Receiver<Option<Arc<Published>>>,
    on_stop: watch::Receiver<OnStop>,
    reload: Reload,
    movers: Movers,
    lookout: Lookout,
    training: Training,
    imager: Imager,
    updater: Updater,
    roller: Option<Roller>,
    fetcher: Fetcher,
    membership: Option<Membership>,
    agent: Option<Agent>,
    workers: Workers,
    courtesy: Courtesy,
    dashboard: Option<Keeper>,
    stop_api: oneshot::Sender<()>,
    api: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// Starts everything. When something refuses, the host is as it was before.
fn begin(
    args: &Args,
    config: &Config,
    facts: HostFacts,
    passed: fronts::Passed,
) -> Result<Running, Error> {
    check_writable()?;
    let host = LinuxHost::open(Options {
        group: PathBuf::from(&config.daemon.cgroup_root),
        state_dir: config.daemon.state_dir.clone(),
        owners: owners(config),
        criu: config.daemon.criu.clone(),
        ..Options::default()
    });
    let begun = match host {
        // Whoever holds the directory answers for what is in it.
        Err(error) if error.kind() == ErrorKind::Locked => {
            return Err(Error::Host(error.explain()));
        }
        Err(error) => Err(Error::Host(error.explain())),
        Ok(host) => {
            tracing::debug!("the host is known");
            begin_on(host, args, config, facts, passed)
        }
    };
    begun.inspect_err(|_| undo(config))
}

/// Where managers of groups are: as the configuration says, else the environment.
fn owners(config: &Config) -> Addresses {
    let mut addresses = Addresses::from_environment();
    if let Some(socket) = &config.daemon.container_socket {
        addresses.containers = socket.to_string_lossy().into_owned();
    }
    addresses
}

fn begin_on(
    mut host: LinuxHost,
    args: &Args,
    config: &Config,
    facts: HostFacts,
    passed: fronts::Passed,
) -> Result<Running, Error> {
    let listen = |error: server::ListenError| Error::Listen(error.to_string());
    let rules = backing::rules(config);
    let listeners = server::Listeners {
        socket: server::Socket::bind(&config.daemon.socket, &rules).map_err(listen)?,
        tcp: config
            .daemon
            .http
            .map(server::bind_loopback)
            .transpose()
            .map_err(listen)?,
        lock: joining::lock(config).map_err(listen)?,
    };
    fronts::write_plans(config).map_err(Error::Host)?;
    let attended = update::attended(&config.daemon.socket).map_err(listen)?;
    let lender = fronts::Passed::lender(&config.daemon.state_dir).map_err(Error::Host)?;
    let update = Opened::open(&config.daemon, &facts, owners(config).systemd);
    let update = update.map_err(Error::Host)?.stands_by(args.early);
    let mut policy = config.policy.clone();
    // The command of an update outlives a daemon, as all that was started does.
    policy.apps.extend(update.kept().apps());
    update.kept().apart().impose(&mut policy);
    release_unknown(&mut host, &policy, &config.daemon.state_dir);
    let recorder = (!args.early).then(|| history::recorder(config)).flatten();
    let (commands, asked) = mpsc::sync_channel(COMMANDS_MAX);
    let (reports, published) = watch::channel(None::<Arc<Published>>);
    let told = commands.clone();
    let tell: tiering::Tell = Arc::new(move |kind, message| {
        if let Err(error) = told.try_send(Command::Tell(kind, message)) {
            tracing::warn!(%error, "an event was not told");
        }
    });
    // Without a history there is nothing to learn from; reading one would cost room on its disk.
    let learns = TrainingConfig {
        on: config.training.on && recorder.is_some(),
        ..config.training
    };
    let training = Training::start(learns, &config.daemon.state_dir, Arc::clone(&tell));
    let database = config.daemon.state_dir.join(store::FILE);
    let foretold = Foretold::default();
    let (declare, declared) = watch::channel(config.known_future.sources());
    let history = recorder.is_some().then(|| database.clone());
    let weights = training.weights();
    let lookout = lookout(config, &facts, history, weights, &foretold, declared)?;
    let (standing, standing_by) = watch::channel(fronts::StandingBy::default());
    let (apps, configured) = watch::channel(config.policy.apps.clone());
    let membership = joining::membership(config, &facts, &published, lookout.desk(), &tell)?;
    // Without a fleet nothing is.
    let (foreign, elsewhere) = watch::channel(Arc::default());
    let (abroad, away) = watch::channel(None);
    let agent = joining::agent(
        config,
        membership.as_ref(),
        &commands,
        &published,
        configured,
        joining::Told {
            elsewhere: foreign,
            away: abroad,
        },
    )?;
    let known = Beside {
        outlook: lookout.desk().known(),
        standing_by,
        elsewhere,
        ended: update.ended(),
        away,
    };
    let (teller, listener) = signals::board();
    let control = std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            prefer();
            control::run(&mut host, policy, &asked, &known, &reports, listener);
            host
        })
        .map_err(system(
            "start the control thread",
            "check limits on threads",
        ))?;
    let movers = Movers::start(&config.tiers, &tell).map_err(system(
        "start the threads that move files",
        "check limits on threads",
    ))?;
    let tell_of = control::tell_of(&commands);
    passed.lend(lender, config, &tell_of);
    let fronts = fronts::follow(
        config,
        fronts::board(config),
        &published,
        standing,
        &tell_of,
        &teller,
        fronts::Upgrades {
            file: args.config.clone(),
            facts: facts.clone(),
            commands: commands.clone(),
            tell: Arc::clone(&tell_of),
            turn: tokio::sync::Mutex::default(),
        },
    );
    let (imaged, wanted) = watch::channel(match args.early {
        // What has just begun is left alone.
        true => BTreeMap::new(),
        false => images::wanted(&config.policy.apps),
    });
    let imager = Imager::start(images::Beginning {
        state_dir: config.daemon.state_dir.clone(),
        criu: config.daemon.criu.clone(),
        wanted,
        reports: published.clone(),
        tell: Arc::clone(&tell_of),
    })
    .map_err(system(
        "start the thread that takes images",
        "check limits on threads",
    ))?;
    let told = (teller.clone(), Arc::clone(&tell_of));
    let workers = Workers::of(config, &facts.executable, told, apps.subscribe());
    let fetcher = fetcher(config, tell_of, &teller, &foretold)?;
    let main = tokio::runtime::Handle::current();
    let agent = agent
        .map(|agent| agent.start(fronts.clone(), main))
        .transpose();
    let agent =
        agent.map_err(|why| Error::Host(format!("take part in moves of the fleet: {why}")))?;
    let (stopping, on_stop) = watch::channel(config.policy.on_stop);
    let reload = Reload {
        file: args.config.clone(),
        state_dir: config.daemon.state_dir.clone(),
        facts,
        commands: commands.clone(),
        on_stop: stopping,
        sources: fetcher.sources(),
        declared: declare,
        imaged,
        apps,
        moves: agent.as_ref().map(Agent::desk),
        update: update.kept(),
        fronts: fronts::apps(config),
        desk: fronts.clone(),
    };
    let fleet = agent.as_ref().zip(membership.as_ref());
    let fleet = fleet.map(|(agent, membership)| update::Fleet {
        member: membership.desk(),
        moves: agent.desk(),
    });
    let updater = Updater::start(
        update,
        commands.clone(),
        published.clone(),
        (fronts.clone(), imager.desk()),
        fleet,
        attended,
    );
    let updater = updater.map_err(system(
        "start the thread that carries out updates",
        "check limits on threads",
    ))?;
    let roller = joining::roller(membership.as_ref(), updater.desk())?;
    let state = backing::state(
        config,
        reload.clone(),
        published.clone(),
        match recorder {
            Some(_) => History::Kept(database),
            None => History::Off(database),
        },
        Desks {
            tiers: movers.desk(),
            outlook: lookout.desk(),
            fronts,
            images: imager.desk(),
            fleet: membership.as_ref().map(Membership::desk),
            moves: agent.as_ref().map(Agent::desk),
            update: updater.desk(),
            rolling: roller.as_ref().map(Roller::desk),
            teller,
            foretold,
            training: Arc::new(training.status_reader()),
        },
    );
    let (stop_api, stopped) = oneshot::channel::<()>();
    let api = tokio::spawn(server::serve(state, listeners, async move {
        // A dropped sender means the same as a sent stop.
        stopped.await.ok();
    }));
    tokio::spawn(history::record(published.clone(), recorder, lookout.desk()));
    if agent.is_none() {
        // The agent's own thread does it.
        let fleet = config.daemon.state_dir.join(link::agent::DIR);
        tokio::spawn(async move { link::agent::renewing(&fleet).await });
    }
    Ok(Running {
        early: args.early,
        control,
        commands,
        published,
        on_stop,
        reload,
        movers,
        lookout,
        training,
        imager,
        updater,
        roller,
        fetcher,
        membership,
        agent,
        workers,
        courtesy: Courtesy::default(),
        dashboard: dashboard(config),
        stop_api,
        api,
    })
}

/// Starts the page; without it the daemon works all the same, and says so.
fn dashboard(config: &Config) -> Option<Keeper> {
    Keeper::start(config).unwrap_or_else(|error| {
        tracing::error!(error, "no dashboard is kept");
        None
    })
}

/// Starts the thread that looks ahead, with the history where one is kept.
fn lookout(
    config: &Config,
    facts: &HostFacts,
    history: Option<PathBuf>,
    weights: watch::Receiver<Arc<Weights>>,
    foretold: &Foretold,
    declared: watch::Receiver<Vec<Source>>,
) -> Result<Lookout, Error> {
    let apps = config.policy.apps.values();
    Lookout::start(outlook::Beginning {
        history,
        apps: apps.map(|app| (app.id.clone(), app.class)).collect(),
        weights,
        foretold: foretold.clone(),
        origins: outlook::Origins {
            declared,
            root: facts.root.clone(),
            bus: owners(config).systemd,
            state_dir: config.daemon.state_dir.clone(),
        },
    })
    .map_err(system(
        "start the thread that looks ahead",
        "check limits on threads",
    ))
}

/// Starts the thread that reads metrics and forecasts.
fn fetcher(
    config: &Config,
    tell: control::TellOf,
    teller: &Teller,
    foretold: &Foretold,
) -> Result<Fetcher, Error> {
    Fetcher::start(
        config.sources.clone(),
        teller.clone(),
        foretold.clone(),
        tell,
    )
    .map_err(system(
        "start the thread that reads metrics and forecasts",
        "check limits on threads",
    ))
}

/// Without any group to write to, apps would be started and nothing be done for them.
fn check_writable() -> Result<(), Error> {
    let hierarchies =
        Hierarchies::read(&Roots::default().proc).map_err(|error| Error::Host(error.explain()))?;
    if hierarchies
        .list()
        .iter()
        .any(|hierarchy| hierarchy.writable)
    {
        return Ok(());
    }
    Err(Error::Host(
        "partition this host: no control group hierarchy is writable; run as root, and in a \
         container with /sys/fs/cgroup mounted writable"
            .to_owned(),
    ))
}

/// Puts back what a start that was refused had begun, and what it had taken over from a
/// daemon before it: nobody else is there to do it.
fn undo(config: &Config) {
    let restored = forebay_host::restore_lost(
        &config.daemon.state_dir,
        &Roots::default(),
        config.policy.on_stop,
    );
    match restored {
        Ok(report) if report.is_complete() => {}
        Ok(report) => tracing::error!(failed = ?report.failed, "not everything was put back"),
        Err(error) => tracing::debug!(reason = error.explain(), "nothing could be put back"),
    }
}

/// Puts back the apps that an earlier daemon left in force and the configuration has no more.
fn release_unknown(host: &mut LinuxHost, policy: &Policy, state_dir: &Path) {
    let mut gone = host.known_apps();
    gone.retain(|app| !policy.apps.contains_key(app));
    for app in gone {
        // A front without a configuration would go on serving by a plan that nobody has any more.
        // Its epochs stay: should it be configured again, they say who has the latest state.
        if fronts::was_front(&app, state_dir) {
            let ended = host.apply(&[Action::Kill { app: app.clone() }]);
            tracing::warn!(%app, ?ended, "the front is no longer configured, and is ended");
        }
        let action = [Action::Release { app: app.clone() }];
        let mut outcome = Outcome::Unsupported;
        for _ in 0..RELEASES_MAX {
            outcome = host.apply(&action).pop().unwrap_or(outcome);
            if outcome == Outcome::Done {
                break;
            }
        }
        match outcome {
            Outcome::Done => tracing::info!(%app, "no longer configured: released"),
            other => tracing::error!(%app, ?other, "no longer configured, and not released"),
        }
    }
}

impl Running {
    /// Serves until a signal, then puts everything back.
    async fn serve(
        mut self,
        config: &Config,
        signals: &mut Signals,
        guardian: &mut Guardian,
        mut systemd: Option<Notifier>,
    ) -> Result<ExitCode, Error> {
        if self.early {
            early::begin(config, &self.imager.desk(), &mut self.published).await;
        }
        if let Some(systemd) = &systemd {
            systemd.ready();
        }
        let mut check = tokio::time::interval(GUARDIAN_CHECK);
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                _ = signals.hangup.recv() => {
                    let reload = self.reload.clone();
                    tokio::task::spawn_blocking(move || match reload.run() {
                        Ok(messages) => tracing::info!(?messages, "reloaded"),
                        Err(error) => tracing::error!(%error, "not reloaded; the running policy stays"),
                    });
                }
                Ok(()) = self.on_stop.changed() => {
                    let on_stop = *self.on_stop.borrow_and_update();
                    guardian.relieve(config, on_stop);
                }
                _ = check.tick() => {
                    guardian.keep(config);
                    if let Some(dashboard) = &mut self.dashboard {
                        dashboard.keep();
                    }
                }
                changed = self.published.changed() => match changed {
                    Ok(()) => {
                        // Both threads are at work: one published, and this one heard.
                        if let Some(systemd) = &mut systemd {
                            systemd.well(Instant::now());
                        }
                        self.pass_on();
                    }
                    Err(_) => break,
                },
            }
        }
        if let Some(systemd) = &systemd {
            systemd.stopping();
        }
        if self.early {
            tracing::info!("the next daemon takes over, and nothing is put back");
            return Ok(ExitCode::SUCCESS);
        }
        let is_last = self.updater.desk().farewell().await;
        if is_last && self.membership.is_none() {
            // Clients wait for apps that are written down now. What would be put back goes with this boot.
            tracing::info!("the host goes down, and nothing is put back");
            return Ok(ExitCode::SUCCESS);
        }
        self.end().await
    }

    /// Lets files move only while it hurts no critical app, and Forebay is to act; tells workers of
    /// accelerators what was decided.
    fn pass_on(&mut self) {
        let Some(published) = self.published.borrow_and_update().clone() else {
            return;
        };
        let report = &published.report;
        let waits = self.courtesy.step(report.time.monotonic, waiting(report));
        self.movers.hold(waits || report.paused);
        self.workers.heed(report);
    }

    async fn end(self) -> Result<ExitCode, Error> {
        if let Some(dashboard) = self.dashboard {
            dashboard.end();
        }
        self.stop_api.send(()).ok();
        match self.api.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the API ended early"),
            Err(error) => tracing::error!(%error, "the API panicked"),
        }
        // What it asks others for must not outlive them.
        if let Some(roller) = self.roller
            && let Err(error) = tokio::task::spawn_blocking(move || roller.stop()).await
        {
            tracing::error!(%error, "the thread of rolling updates was not stopped");
        }
        if let Some(agent) = self.agent
            && let Err(error) = tokio::task::spawn_blocking(move || agent.stop()).await
        {
            tracing::error!(%error, "the agent of the fleet was not stopped");
        }
        if let Some(membership) = self.membership
            && let Err(error) = tokio::task::spawn_blocking(move || membership.stop()).await
        {
            tracing::error!(%error, "the thread of the fleet was not stopped");
        }
        let workers = self.workers;
        if let Err(error) = tokio::task::spawn_blocking(move || workers.stop()).await {
            tracing::error!(%error, "the workers of accelerators were not stopped");
        }
        let fetcher = self.fetcher;
        if let Err(error) = tokio::task::spawn_blocking(move || fetcher.stop()).await {
            tracing::error!(%error, "the thread that reads metrics was not stopped");
        }
        let updater = self.updater;
        if let Err(error) = tokio::task::spawn_blocking(move || updater.stop()).await {
            tracing::error!(%error, "the thread that carries out updates was not stopped");
        }
        let imager = self.imager;
        if let Err(error) = tokio::task::spawn_blocking(move || imager.stop()).await {
            tracing::error!(%error, "the thread that takes images was not stopped");
        }
        let movers = self.movers;
        if let Err(error) = tokio::task::spawn_blocking(move || movers.stop()).await {
            tracing::error!(%error, "the movers of tiers were not stopped");
        }
        let lookout = self.lookout;
        if let Err(error) = tokio::task::spawn_blocking(move || lookout.stop()).await {
            tracing::error!(%error, "the thread that looks ahead was not stopped");
        }
        let training = self.training;
        tracing::info!(status = ?training.status(), "training ends");
        if let Err(error) = tokio::task::spawn_blocking(move || training.stop()).await {
            tracing::error!(%error, "the training thread was not stopped");
        }
        // The control thread may have ended already, which the join below finds out.
        self.commands.send(Command::Stop).ok();
        let host = self.control.join().map_err(|_| {
            Error::Host("the control thread panicked; see its message above".to_owned())
        })?;
        let on_stop = *self.on_stop.borrow();
        let report = host
            .close(on_stop)
            .map_err(|error| Error::Host(error.explain()))?;
        if report.is_complete() {
            Ok(ExitCode::SUCCESS)
        } else {
            Err(Error::Farewell(report.failed.join("; ")))
        }
    }
}

/// The most that any app waits for I/O that moves of files wait for, as a share of time. One may wait
/// because its files are on the slow side: its ladder tries that, and measures, for itself alone.
fn waiting(report: &TickReport) -> Option<f64> {
    tier::waiting(report.apps.values().map(|app| Waiter {
        class: app.class,
        stalled: app.io.stalled,
        moves_files: app.offload.as_ref().is_some_and(Climb::moves_files),
    }))
}

/// The control thread goes ahead of everything else on a loaded host.
fn prefer() {
    if let Err(error) = rustix::process::setpriority_process(None, -20) {
        tracing::warn!(%error, "no higher priority for the control thread: periods may come late");
    }
}
