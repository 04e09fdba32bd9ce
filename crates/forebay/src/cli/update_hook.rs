//! `forebay update hooks`, and what hooks run.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use forebay_api as api;
use forebay_api::Client;
use forebay_core::app::{Binding, Class};

use super::update::{STATE_DIR, updates};
use super::{Exit, Failure};
use crate::output::Output;
use crate::update::hooks::{self, Fail, System};
use crate::{config, daemon};

/// Where a system has its configuration.
const CONFIG: &str = "etc/forebay/forebay.toml";
/// Between two looks of those that wait.
const LOOK: Duration = Duration::from_secs(1);
/// How long critical units wait for what is put back.
const PUT_BACK_MAX: Duration = Duration::from_secs(60);

/// What to do with hooks.
#[derive(Debug, Args)]
pub(crate) struct HooksArgs {
    #[arg(value_enum, default_value = "status")]
    action: HooksAction,

    /// What they do where nobody can say whether an update is under way
    #[arg(long, value_enum, default_value = "open")]
    fail: hooks::Fail,

    /// The root of the system that they are for
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,

    /// The configuration whose critical units wait for what is put back; that of the root unless given
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum HooksAction {
    /// Write them for the package managers that are there
    Install,
    /// Take them away again
    Remove,
    /// Say which are there
    Status,
}

#[derive(Debug, Args)]
pub(crate) struct HookArgs {
    #[arg(value_enum)]
    moment: Moment,

    #[arg(long, value_enum, default_value = "open")]
    fail: Fail,

    #[arg(long, default_value = STATE_DIR)]
    state_dir: PathBuf,

    /// The kernel that was installed
    #[arg(long, required_if_eq("moment", "kernel"))]
    kernel: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Moment {
    /// Before packages are touched
    Pre,
    /// Afterwards
    Post,
    /// A kernel was installed
    Kernel,
    /// For as long as the system runs: a shutdown is held up while an update is under way
    Guard,
    /// Before critical units start
    Restore,
}

/// Writes hooks, takes them away, or says how they are.
pub(super) fn files(args: &HooksArgs, output: &mut Output) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(|cause| Failure::Io {
        doing: "find this program",
        cause,
    })?;
    let system = System {
        root: &args.root,
        program: &program,
    };
    let messages = match args.action {
        HooksAction::Install => {
            let (units, trouble) = match critical_units(args) {
                Ok(units) => (units, None),
                // Whatever is wrong with it, the other hooks are of use.
                Err(why) => (
                    Vec::new(),
                    Some(format!("no unit waits for what is put back: {why}")),
                ),
            };
            let installed = system.install(args.fail, &units);
            installed.map(|said| said.into_iter().chain(trouble).collect())
        }
        HooksAction::Remove => system.remove(),
        HooksAction::Status => system.status(),
    };
    let messages = messages.map_err(Failure::Failed)?;
    super::done(api::Done { messages }, output)
}

/// The units of systemd that critical applications are.
fn critical_units(args: &HooksArgs) -> Result<Vec<String>, String> {
    let usual = args.root.join(CONFIG);
    let file = match &args.config {
        Some(file) => file,
        None if usual.exists() => &usual,
        None => return Ok(Vec::new()),
    };
    let facts = daemon::facts().map_err(|error| error.to_string())?;
    let config = config::load(Some(file), &facts).map_err(|errors| errors.to_string())?;
    let apps = config.policy.apps.into_values();
    let critical = apps.filter(|app| app.class == Class::Critical);
    let unit = |binding| match binding {
        Binding::Systemd(unit) => Some(unit),
        Binding::Exec(_) | Binding::Cgroup(_) | Binding::Match(_) | Binding::Container(_) => None,
    };
    Ok(critical.filter_map(|app| unit(app.binding)).collect())
}

/// What somebody hears, on standard error, which is where package managers show it.
fn say(said: impl std::fmt::Display) {
    // One without a terminal has nobody to tell.
    writeln!(std::io::stderr(), "forebay: {said}").ok();
}

/// What a hook runs.
pub(super) async fn run(args: &HookArgs, socket: &Path) -> Result<Exit, Failure> {
    let inside = std::env::var_os("FOREBAY_UPDATE").is_some();
    match args.moment {
        Moment::Pre => Ok(before(args, socket, inside).await),
        Moment::Post => {
            after(args, socket, inside).await;
            Ok(Exit::Ok)
        }
        Moment::Kernel => {
            let version = args.kernel.as_deref().unwrap_or_default();
            if let Some(said) = hooks::kernel(inside, version) {
                say(said);
            }
            Ok(Exit::Ok)
        }
        Moment::Guard => guard(args, socket).await,
        Moment::Restore => Ok(put_back(args, socket).await),
    }
}

async fn known(args: &HookArgs, socket: &Path) -> Result<api::Updates, String> {
    let known = updates(socket, &args.state_dir).await;
    known.map_err(|error| error.to_string())
}

/// What is known to a daemon: its slices are in force once it answers, and not before.
async fn from_daemon(socket: &Path) -> Result<api::Updates, String> {
    let asked = async { Client::connect(socket).await?.get("/v1/update").await };
    asked.await.map_err(|error: api::Error| error.to_string())
}

async fn before(args: &HookArgs, socket: &Path, inside: bool) -> Exit {
    let known = known(args, socket).await;
    let known = known.as_ref().map_err(String::as_str);
    let (said, goes_on) = hooks::before(inside, known, args.fail);
    if let Some(said) = said {
        say(said);
    }
    match goes_on {
        true => Exit::Ok,
        false => Exit::Failed,
    }
}

async fn after(args: &HookArgs, socket: &Path, inside: bool) {
    if let Ok(updates) = known(args, socket).await
        && !inside
        && !updates.outdated.is_empty()
    {
        say(format_args!(
            "outdated code runs in {}; `forebay update run -- true` restarts it behind its fronts",
            updates.outdated.join(", ")
        ));
    }
}

/// Has critical units wait: in bounded time, unless they are not to start before. Those would fail for good
/// if this failed.
async fn put_back(args: &HookArgs, socket: &Path) -> Exit {
    let mut deadline = Instant::now() + PUT_BACK_MAX;
    loop {
        let known = from_daemon(socket).await;
        let why = match hooks::put_back(known.as_ref().map_err(String::as_str)) {
            Ok(()) => return Exit::Ok,
            Err(why) => why,
        };
        if Instant::now() >= deadline {
            say(format_args!(
                "{why} after {} s; `forebay update status` says how it stands",
                PUT_BACK_MAX.as_secs()
            ));
            match args.fail {
                Fail::Open => return Exit::Ok,
                Fail::Closed => deadline = Instant::now() + PUT_BACK_MAX,
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Holds up a shutdown while an update is under way, for ever.
async fn guard(args: &HookArgs, socket: &Path) -> Result<Exit, Failure> {
    let mut held: Option<Child> = None;
    loop {
        let known = known(args, socket).await;
        match hooks::holds(known.as_ref().map_err(String::as_str)) {
            Some(why) => {
                let ended = match &mut held {
                    Some(child) => child.try_wait().map_err(inhibit)?.is_some(),
                    None => true,
                };
                if ended {
                    held = Some(hold(&why, args.fail).map_err(inhibit)?);
                }
            }
            None => {
                if let Some(child) = held.take() {
                    let_go(child).map_err(inhibit)?;
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn inhibit(cause: std::io::Error) -> Failure {
    Failure::Io {
        doing: "hold up a shutdown with systemd-inhibit",
        cause,
    }
}

/// It ends when its standard input does: with this process, whatever ends that.
fn hold(why: &str, fail: Fail) -> std::io::Result<Child> {
    let mode = match fail {
        Fail::Open => "--mode=delay",
        Fail::Closed => "--mode=block",
    };
    Command::new("systemd-inhibit")
        .args(["--what=shutdown", "--who=Forebay", mode])
        .arg(format!("--why={why}"))
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
}

fn let_go(mut child: Child) -> std::io::Result<()> {
    drop(child.stdin.take());
    child.wait()?;
    Ok(())
}
