//! `forebay front`: one front, as a process of its own.
//!
//! The daemon starts it in the slice of an app of its own. It opens its sockets with the rights
//! that it was started with and gives these up before it hears the first client.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use forebay_host::Identity;
use forebay_shadow::front::{self, Plan};
use rustix::process::{Gid, Resource, Rlimit, Uid, getrlimit, setrlimit};

/// Serve as a front
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// What to serve: a file that the daemon writes
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
}

/// Why a front does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Its plan cannot be used.
    #[error("read {path}: {why}; let the daemon start the front, which writes it", path = .path.display())]
    Plan { path: PathBuf, why: String },
    /// The user is unknown.
    #[error("{0}")]
    User(String),
    /// The system refused something.
    #[error("{attempt}: {source}; {remedy}")]
    System {
        attempt: String,
        remedy: &'static str,
        source: io::Error,
    },
    /// It cannot serve.
    #[error(transparent)]
    Front(#[from] front::Error),
}

/// Serves until the process is ended.
///
/// # Errors
/// When the plan cannot be used, or the front cannot listen.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Error> {
    crate::log::begin("warn");
    let plan = read(&args.plan)?;
    let identity = forebay_host::identity(&plan.user).map_err(|e| Error::User(e.explain()))?;
    raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System {
            attempt: "start the runtime".to_owned(),
            remedy: "check limits on open files",
            source,
        })?;
    let opened = match runtime.block_on(front::succeed(&plan)) {
        Ok(Some(opened)) => Ok(opened),
        Ok(None) => runtime.block_on(front::open(plan)),
        Err(error) => Err(error),
    };
    let opened = opened.map_err(Error::from);
    let opened = opened.inspect_err(|error| explain(word(&args.plan), error))?;
    // Whoever takes a place may fail later, without the rights to leave word then.
    let word = opened.succeeds().then(|| word(&args.plan));
    let served = become_user(&identity).and_then(|()| Ok(runtime.block_on(opened.serve())?));
    if let (Err(error), Some(word)) = (&served, word) {
        explain(word, error);
    }
    served.map(|()| ExitCode::SUCCESS)
}

/// Where a front says why it could not begin.
pub(crate) fn trouble_file(plan: &Path) -> PathBuf {
    plan.with_extension("trouble")
}

/// Opens that file; it says nothing as long as it is empty.
fn word(plan: &Path) -> io::Result<File> {
    File::create(trouble_file(plan))
}

/// Leaves word for whoever started this process and cannot hear it: one line.
fn explain(word: io::Result<File>, error: &Error) {
    let line = format!("{error}\n");
    if let Err(error) = word.and_then(|mut file| file.write_all(line.as_bytes())) {
        tracing::warn!(%error, "nobody is told why");
    }
}

/// Why the process of a front that was started could not begin, if it said so.
///
/// # Errors
/// What the file system says.
pub(crate) fn trouble(plan: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(trouble_file(plan)) {
        // It is said once all of it is there.
        Ok(text) => Ok(text.strip_suffix('\n').map(str::to_owned)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Each client takes two descriptors: as many as this process may have at all.
fn raise_open_files() -> Result<(), Error> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).map_err(|source| Error::System {
        attempt: "raise the limit on open files".to_owned(),
        remedy: "this should not happen; report it",
        source: source.into(),
    })
}

pub(crate) fn read(path: &PathBuf) -> Result<Plan, Error> {
    let failed = |why: String| Error::Plan {
        path: path.clone(),
        why,
    };
    let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| failed(error.to_string()))
}

/// Gives up the rights of the user that started this process. Done while it has one thread: the
/// kernel keeps them for each thread by itself.
pub(crate) fn become_user(identity: &Identity) -> Result<(), Error> {
    if rustix::process::getuid().as_raw() == identity.uid {
        return Ok(());
    }
    let failed = |source: rustix::io::Errno| Error::System {
        attempt: format!("become user {}", identity.uid),
        remedy: "start it as root, or set the front's `user` to the daemon's own",
        source: source.into(),
    };
    let gid = Gid::from_raw(identity.gid);
    let uid = Uid::from_raw(identity.uid);
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups).map_err(failed)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed)?;
    rustix::thread::set_no_new_privs(true).map_err(failed)
}
