//! `forebay instance`: begins a server behind a front, after it was made a standby unless it serves.
//!
//! The daemon starts it in the slice of the app that the server is, in place of the server, which
//! takes over its process. It asks who serves with the rights that it was started with, and gives
//! these up before it touches the data.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use forebay_host::Identity;
use forebay_shadow::front::Plan;
use forebay_shadow::postgres::standby::{Failed, Instance, Made, Mark};

use crate::front;

/// Begin a server behind a front
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// What the front serves: a file that the daemon writes
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
    /// The app that the server is
    #[arg(value_name = "APP")]
    app: String,
    /// User that the server runs as (default: the owner of its data)
    #[arg(long)]
    user: Option<String>,
    /// Wait until the server receives, and remove what it replaced; the plan is read from stdin
    #[arg(long)]
    clear: bool,
    /// Have another process do that, and end
    #[arg(long)]
    clear_later: bool,
    /// The command that is the server
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Why a server is not begun.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Front(#[from] front::Error),
    /// It would not be a standby.
    #[error("begin {app}: {source}")]
    Standby { app: String, source: Failed },
    /// It cannot be begun as whom it should.
    #[error("{0}")]
    User(String),
    /// The system refused something.
    #[error("{attempt}: {source}")]
    System {
        attempt: String,
        source: std::io::Error,
    },
}

/// Becomes the server.
///
/// # Errors
/// When it is not known who serves, or the instance cannot be made a standby.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    crate::log::begin("info");
    if args.clear_later {
        return clear_later(args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start the runtime"))?;
    let standby = |source| Error::Standby {
        app: args.app.clone(),
        source,
    };
    if args.clear {
        let plan = from_stdin()?;
        let instance = Instance::new(&plan, &args.app, &args.command).map_err(standby)?;
        runtime.block_on(instance.clear()).map_err(standby)?;
        return Ok(ExitCode::SUCCESS);
    }
    let plan = front::read(&args.plan)?;
    let instance = Instance::new(&plan, &args.app, &args.command).map_err(standby)?;
    let primary = runtime.block_on(instance.primary()).map_err(standby)?;
    let file = args.plan.with_file_name(format!("{}.data", args.app));
    let mark = Mark::open(&file).map_err(standby)?;
    become_owner(args, instance.directory())?;
    if primary == args.app {
        runtime.block_on(instance.serves(&mark)).map_err(standby)?;
    } else {
        let followed = runtime.block_on(instance.follow(&primary, &mark));
        match followed.map_err(standby)? {
            Made::Follows => {}
            Made::Rewound => tracing::info!(app = args.app, primary, "rewound to the primary"),
            Made::Copied(why) => tracing::info!(app = args.app, primary, why, "copied anew"),
        }
        // What was replaced is in nobody's way, and its data are fine.
        if instance.has_old()
            && let Err(error) = leave_clearing(args, &plan)
        {
            tracing::warn!(app = args.app, %error, "what was replaced stays");
        }
    }
    drop((runtime, mark));
    let (program, arguments) = args
        .command
        .split_first()
        .ok_or_else(|| Error::User(format!("{} has no command", args.app)))?;
    let error = Command::new(program).args(arguments).exec();
    Err(system(&format!("run {program}"))(error))
}

fn system(attempt: &str) -> impl FnOnce(std::io::Error) -> Error {
    let attempt = attempt.to_owned();
    move |source| Error::System { attempt, source }
}

/// Gives up the rights of root for those of whoever owns the data.
fn become_owner(args: &Args, directory: &Path) -> Result<(), Error> {
    let owner = match std::fs::metadata(directory) {
        Ok(data) => Some(data.uid()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(system(&format!("look at {}", directory.display()))(error)),
    };
    if !rustix::process::getuid().is_root() {
        return Ok(());
    }
    let user = match (&args.user, owner) {
        (Some(user), _) => user.clone(),
        (None, Some(owner)) => owner.to_string(),
        (None, None) => {
            return Err(Error::User(format!(
                "{} is not there, so that nobody owns it; set the `user` of app {}",
                directory.display(),
                args.app
            )));
        }
    };
    let identity: Identity =
        forebay_host::identity(&user).map_err(|error| Error::User(error.explain()))?;
    if let Some(owner) = owner.filter(|owner| *owner != identity.uid) {
        return Err(Error::User(format!(
            "{} belongs to user {owner}, and app {} runs as {user}; set its `user`, or chown that",
            directory.display(),
            args.app
        )));
    }
    Ok(front::become_user(&identity)?)
}

fn from_stdin() -> Result<Plan, Error> {
    let failed = system("read the plan from stdin");
    let mut text = String::new();
    match std::io::stdin().read_to_string(&mut text) {
        Ok(_) => serde_json::from_str(&text).map_err(|error| failed(error.into())),
        Err(error) => Err(failed(error)),
    }
}

/// Another instance of this program, with the same arguments and one more.
fn again(args: &Args, way: &str) -> Result<Command, Error> {
    let own = std::env::current_exe().map_err(system("find this program"))?;
    let mut command = Command::new(own);
    command
        .arg("instance")
        .arg(&args.plan)
        .args([args.app.as_str(), way, "--"])
        .args(&args.command);
    Ok(command)
}

/// Leaves somebody behind who removes what was replaced. It must be no child of the server, which
/// takes the end of a child that it does not know for a crash: hence the process between.
fn leave_clearing(args: &Args, plan: &Plan) -> Result<(), Error> {
    let failed = "have what was replaced removed";
    let mut child = again(args, "--clear-later")?
        .stdin(Stdio::piped())
        .spawn()
        .map_err(system(failed))?;
    let plan = serde_json::to_vec(plan).map_err(|error| system(failed)(error.into()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&plan).map_err(system(failed))?;
    }
    let status = child.wait().map_err(system(failed))?;
    if !status.success() {
        tracing::warn!(app = args.app, %status, "what was replaced stays");
    }
    Ok(())
}

fn clear_later(args: &Args) -> Result<ExitCode, Error> {
    // It reads the plan from where this process would.
    again(args, "--clear")?
        .spawn()
        .map_err(system("have what was replaced removed"))?;
    Ok(ExitCode::SUCCESS)
}
