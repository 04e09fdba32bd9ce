//! Nothing stays: the outer process of a demo or benchmark.
//!
//! It makes the directory, starts the inner process, passes signals on, and when that has
//! ended for whatever reason puts back and removes what is left. Whatever loses its parent
//! becomes a child of the outer process, so that nothing can get away from it. Should the outer
//! process be killed itself, the kernel tells the inner one to end, which then sweeps in its
//! place.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use forebay_core::app::OnStop;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper,
    set_parent_process_death_signal, wait,
};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Error;

/// Subdirectory that the daemon keeps its ledger in.
pub(crate) const STATE_DIR: &str = "state";

/// How long what still runs may take to end when it is killed.
const END_PATIENCE: Duration = Duration::from_secs(10);
const END_POLL: Duration = Duration::from_millis(10);

/// Starts this program again with the same arguments and a directory, waits, sweeps.
pub(super) fn outer(subcommand: &str) -> Result<ExitCode, Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    adopt_orphans()?;
    let dir = directory()?;
    let result = work(subcommand, &dir);
    sweep(&dir)?;
    let status = result?;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Start of the directory's name; the process number of the outer process follows.
const DIRECTORY: &str = "forebay-demo-";

/// For the inner process, when it is done: sweeps if the outer process is gone.
pub(super) fn in_place_of_outer(dir: &Path) -> Result<(), Error> {
    let outer = dir
        .file_name()
        .and_then(|name| name.to_str()?.strip_prefix(DIRECTORY)?.parse::<u32>().ok());
    if outer == Some(std::os::unix::process::parent_id()) {
        return Ok(());
    }
    sweep(dir)
}

fn directory() -> Result<PathBuf, Error> {
    let dir = std::env::temp_dir().join(format!("{DIRECTORY}{}", std::process::id()));
    fs::create_dir(&dir).map_err(Error::system(
        "make directory",
        dir.display(),
        "remove it if an earlier run left it",
    ))?;
    Ok(dir)
}

fn work(subcommand: &str, dir: &Path) -> Result<ExitStatus, Error> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGCHLD]).map_err(Error::system(
        "catch",
        "signals",
        "this should not happen; report it",
    ))?;
    let arguments: Vec<_> = std::env::args_os()
        .skip_while(|argument| argument.as_os_str() != subcommand)
        .skip(1)
        .collect();
    let mut child = Command::new("/proc/self/exe")
        .arg(subcommand)
        .arg("--inner")
        .arg(dir)
        .args(arguments)
        .spawn()
        .map_err(Error::system(
            "start",
            "the inner process",
            "check memory and process limits",
        ))?;
    loop {
        if let Some(status) = child.try_wait().map_err(Error::system(
            "wait for",
            "the inner process",
            "this should not happen; report it",
        ))? {
            return Ok(status);
        }
        for signal in signals.wait() {
            if signal != SIGCHLD {
                pass_on(&child);
            }
        }
    }
}

/// The inner process hears of the end at most twice, from the terminal and from here.
fn pass_on(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have just ended, which is what the signal is for.
        kill_process(pid, Signal::TERM).ok();
    }
}

/// Puts back what the ledger names, ends what still runs and removes the directory.
fn sweep(dir: &Path) -> Result<(), Error> {
    // A daemon among them puts back what it did, and gives the state directory up.
    for pid in children() {
        kill_process(pid, Signal::TERM).ok();
    }
    let states = states(dir);
    let put: Result<(), Error> = states.iter().try_for_each(|state| put_back(state));
    end_children()?;
    if put.is_err() {
        // Whoever was in the way has ended by now.
        states.iter().try_for_each(|state| put_back(state))?;
    }
    super::update::package::sweep(dir)?;
    fs::remove_dir_all(dir).map_err(Error::system("remove", dir.display(), "remove it by hand"))
}

/// Where daemons kept their ledgers: here, or one for each of several hosts.
fn states(dir: &Path) -> Vec<PathBuf> {
    let hosts = fs::read_dir(dir).into_iter().flatten().flatten();
    let hosts = hosts.map(|entry| entry.path().join(STATE_DIR));
    let hosts = hosts.filter(|state| state.is_dir());
    std::iter::once(dir.join(STATE_DIR)).chain(hosts).collect()
}

fn put_back(state: &Path) -> Result<(), Error> {
    let report = restore_when_free(state)
        .map_err(|error| Error::part("put back what the demo did", error))?;
    if report.is_complete() {
        return Ok(());
    }
    Err(Error::part(
        "put back what the demo did",
        format!(
            "not everything: {}; try `forebay restore --state-dir {}`",
            report.failed.join("; "),
            state.display()
        ),
    ))
}

/// Makes this process the parent of all descendants whose own parent ends.
fn adopt_orphans() -> Result<(), Error> {
    set_child_subreaper(Some(getpid())).map_err(Error::system(
        "become the parent of",
        "what loses its own",
        "this should not happen; report it",
    ))
}

/// Ends all children, and those that become children by that, until there are none.
fn end_children() -> Result<(), Error> {
    let until = Instant::now() + END_PATIENCE;
    while Instant::now() < until {
        for pid in children() {
            // It may have ended by itself; the wait below tells.
            kill_process(pid, Signal::KILL).ok();
        }
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return Ok(()),
            }
        }
        std::thread::sleep(END_POLL);
    }
    Err(Error::part(
        "end what the demo started",
        format!("{:?} do not end; end them by hand", children()),
    ))
}

/// The children of this process, from /proc.
fn children() -> Vec<Pid> {
    let own = std::process::id();
    let is_own = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name in parentheses may hold anything; state and parent follow it.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        parent == Some(own)
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| is_own(*pid))
        .filter_map(Pid::from_raw)
        .collect()
}

/// The guardian may be at it: then it holds the directory, and ends within its lease.
fn restore_when_free(state: &Path) -> Result<forebay_host::restore::Report, String> {
    let mut tries = 100;
    loop {
        let result =
            forebay_host::restore::restore(state, &forebay_host::Roots::default(), OnStop::Kill);
        match result {
            Ok(report) => return Ok(report),
            Err(error) if tries == 0 => return Err(error.to_string()),
            Err(_) => {
                tries -= 1;
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Asks the kernel for a SIGTERM when the outer process ends, and takes its place as the
/// parent of orphans.
pub(super) fn follow_parent() -> Result<(), Error> {
    adopt_orphans()?;
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(Error::system(
        "follow the end of",
        "the outer process",
        "this should not happen; report it",
    ))
}
