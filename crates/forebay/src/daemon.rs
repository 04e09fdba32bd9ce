//! The daemon: control thread, guardian, history, API.
//!
//! The control thread owns the host. Everything else runs on one thread beside it and hears
//! of it through the watch channel and the command queue only.

use std::path::PathBuf;
use std::process::{Child, Command as Process, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use forebay_core::app::OnStop;
use forebay_host::{LinuxHost, Options, Roots};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::backing::{self, Reload};
use crate::config::{self, Config, HostFacts};
use crate::control::{self, Command, Published};
use crate::server;
use crate::store::{Recorder, Retention, Store};

/// Commands that may wait for the control thread.
const COMMANDS_MAX: usize = 64;
/// How often the daemon looks whether its guardian lives.
const GUARDIAN_CHECK: Duration = Duration::from_secs(1);

/// Run the daemon
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Configuration file [default: /etc/forebay/forebay.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// End as soon as the thread that started this process ends
    #[arg(long, hide = true)]
    parent_death: bool,
}

/// Why the daemon did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The configuration has mistakes.
    #[error("{0}")]
    Config(config::Errors),
    /// The host refused something.
    #[error("{0}")]
    Host(String),
    /// The API cannot be reached.
    #[error("{0}")]
    Listen(String),
    /// The system refused something.
    #[error("{attempt}; {remedy}")]
    System {
        attempt: &'static str,
        remedy: &'static str,
        source: std::io::Error,
    },
    /// Some things could not be put back.
    #[error("not everything was put back: {0}; run `forebay restore`")]
    Farewell(String),
}

fn system(attempt: &'static str, remedy: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::System {
        attempt,
        remedy,
        source,
    }
}

/// Runs until SIGTERM or SIGINT; then puts everything back.
///
/// # Errors
/// When the configuration is wrong, another daemon runs, or something could not be put back.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    if args.parent_death {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
            .map_err(|error| {
                system(
                    "follow the parent's end",
                    "this should not happen; report it",
                )(error.into())
            })?;
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("FOREBAY_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .init();
    let facts = facts()?;
    let config = config::load(args.config.as_deref(), &facts).map_err(Error::Config)?;
    let host = open(&config)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start the runtime", "check limits on open files"))?
        .block_on(serve(args, config, host, facts))
}

/// This host, as far as a configuration depends on it.
///
/// # Errors
/// When the topology cannot be read.
pub(crate) fn facts() -> Result<HostFacts, Error> {
    let roots = Roots::default();
    let topology = forebay_host::topology::read_topology(&roots.proc, &roots.sys)
        .map_err(|error| Error::Host(error.explain()))?;
    Ok(HostFacts {
        cpus: topology.cpus().len(),
        memory: topology.memory(),
        root: PathBuf::from("/"),
        search_path: std::env::var("PATH")
            .unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
    })
}

fn open(config: &Config) -> Result<LinuxHost, Error> {
    LinuxHost::open(Options {
        roots: Roots::default(),
        group: PathBuf::from(&config.daemon.cgroup_root),
        state_dir: config.daemon.state_dir.clone(),
    })
    .map_err(|error| Error::Host(error.explain()))
}

async fn serve(
    args: &Args,
    config: Config,
    mut host: LinuxHost,
    facts: HostFacts,
) -> Result<ExitCode, Error> {
    // What can refuse comes first: nothing runs yet that would have to be ended.
    let rules = backing::rules(&config);
    let listeners = server::Listeners {
        socket: server::Socket::bind(&config.daemon.socket, &rules)
            .map_err(|error| Error::Listen(error.to_string()))?,
        tcp: config
            .daemon
            .http
            .map(server::bind_loopback)
            .transpose()
            .map_err(|error| Error::Listen(error.to_string()))?,
    };
    let mut guardian = Guardian::start(&config)?;
    let recorder = recorder(&config);
    let (commands, asked) = mpsc::sync_channel(COMMANDS_MAX);
    let (reports, published) = watch::channel(None::<Arc<Published>>);
    let policy = config.policy.clone();
    let control = std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            prefer();
            control::run(&mut host, policy, &asked, &reports);
            host
        })
        .map_err(system(
            "start the control thread",
            "check limits on threads",
        ))?;

    let reload = Reload {
        file: args.config.clone(),
        facts,
        commands: commands.clone(),
    };
    let state = backing::state(
        &config,
        reload.clone(),
        published.clone(),
        &config.daemon.state_dir.join("state.db"),
    );
    let (stop, stopped) = oneshot::channel::<()>();
    let api = tokio::spawn(server::serve(state, listeners, async move {
        // A dropped sender means the same as a sent stop.
        stopped.await.ok();
    }));
    tokio::spawn(record(published.clone(), recorder));
    let mut terminate = on(SignalKind::terminate())?;
    let mut interrupt = on(SignalKind::interrupt())?;
    let mut hangup = on(SignalKind::hangup())?;
    let mut check = tokio::time::interval(GUARDIAN_CHECK);
    let mut alive = published;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                let reload = reload.clone();
                tokio::task::spawn_blocking(move || match reload.run() {
                    Ok(messages) => tracing::info!(?messages, "reloaded"),
                    Err(error) => tracing::error!(%error, "not reloaded; the running policy stays"),
                });
            }
            _ = check.tick() => guardian.keep(&config),
            changed = alive.changed() => if changed.is_err() { break },
        }
    }

    stop.send(()).ok();
    match api.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the API ended early"),
        Err(error) => tracing::error!(%error, "the API panicked"),
    }
    // The control thread may have ended already, which the join below finds out.
    commands.send(Command::Stop).ok();
    let host = control.join().map_err(|_| {
        Error::Host("the control thread panicked; see its message above".to_owned())
    })?;
    let on_stop = config.policy.on_stop;
    let report = host
        .close(on_stop)
        .map_err(|error| Error::Host(error.explain()))?;
    guardian.end();
    if report.is_complete() {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(Error::Farewell(format!("{report:?}")))
    }
}

/// The control thread goes ahead of everything else on a loaded host.
fn prefer() {
    if let Err(error) = rustix::process::setpriority_process(None, -20) {
        tracing::warn!(%error, "no higher priority for the control thread: periods may come late");
    }
}

fn on(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Error> {
    signal(kind).map_err(system("catch signals", "this should not happen; report it"))
}

/// Opens the history; without one the daemon works all the same, and says so.
fn recorder(config: &Config) -> Option<Recorder> {
    let retention = Retention {
        ten_seconds: config.daemon.history.rollup_10s,
        minute: config.daemon.history.rollup_1min,
        hour: config.daemon.history.rollup_1h,
        ..Retention::default()
    };
    let file = config.daemon.state_dir.join("state.db");
    match Store::open(&file, retention).and_then(Recorder::start) {
        Ok(recorder) => Some(recorder),
        Err(error) => {
            tracing::error!(%error, "no history is kept");
            None
        }
    }
}

async fn record(
    mut published: watch::Receiver<Option<Arc<Published>>>,
    recorder: Option<Recorder>,
) {
    let Some(recorder) = recorder else { return };
    let mut told = None;
    while published.changed().await.is_ok() {
        let trouble = recorder.last_error();
        if trouble != told {
            match &trouble {
                Some(error) => tracing::warn!(
                    error,
                    errors = recorder.errors(),
                    lost = recorder.lost(),
                    dropped = recorder.dropped(),
                    "history is not being kept; trying on"
                ),
                None => tracing::info!("history is being kept again"),
            }
            told = trouble;
        }
        let latest = published.borrow_and_update().clone();
        if let Some(latest) = latest {
            recorder.offer(Arc::new(latest.report.clone()));
        }
    }
    recorder.stop();
}

/// The process that puts everything back when the daemon is lost.
#[derive(Debug)]
struct Guardian {
    child: Child,
}

impl Guardian {
    fn start(config: &Config) -> Result<Self, Error> {
        let on_stop = match config.policy.on_stop {
            OnStop::Keep => "keep",
            OnStop::Kill => "kill",
        };
        let child = Process::new("/proc/self/exe")
            .args(["guardian", "--daemon", &std::process::id().to_string()])
            .arg("--state-dir")
            .arg(&config.daemon.state_dir)
            .args(["--lease-ms", &config.daemon.lease.as_millis().to_string()])
            .args(["--on-stop", on_stop])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(system(
                "start the guardian",
                "check memory and process limits",
            ))?;
        Ok(Self { child })
    }

    /// Starts another when it was lost.
    fn keep(&mut self, config: &Config) {
        match self.child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                tracing::warn!(%status, "the guardian ended; starting another");
                match Self::start(config) {
                    Ok(another) => *self = another,
                    Err(error) => tracing::error!(%error, "no guardian watches"),
                }
            }
            Err(error) => tracing::error!(%error, "cannot ask after the guardian"),
        }
    }

    /// Ends it: everything has been put back.
    fn end(mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            tracing::error!(%error, "the guardian could not be ended");
        }
    }
}
