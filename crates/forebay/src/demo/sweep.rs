//! Nothing stays: the outer process of a demo or benchmark.
//!
//! It makes the directory, starts the inner process, passes signals on, and when that has
//! ended for whatever reason puts back and removes what is left. Should the outer process be
//! killed itself, the kernel tells the inner one to end, which then cleans up as at a Ctrl-C.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};

use forebay_core::app::OnStop;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Error;

/// Subdirectory that the daemon keeps its ledger in.
pub(super) const STATE_DIR: &str = "state";

/// Starts this program again with the same arguments and a directory, waits, sweeps.
pub(super) fn outer(subcommand: &str) -> Result<ExitCode, Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let dir = directory()?;
    let result = work(subcommand, &dir);
    sweep(&dir)?;
    let status = result?;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn directory() -> Result<PathBuf, Error> {
    let dir = std::env::temp_dir().join(format!("forebay-demo-{}", std::process::id()));
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

/// Puts back what the ledger names and removes the directory.
fn sweep(dir: &Path) -> Result<(), Error> {
    let state = dir.join(STATE_DIR);
    if state.exists() {
        let report = restore_when_free(&state)
            .map_err(|error| Error::part("put back what the demo did", error))?;
        if !report.is_complete() {
            return Err(Error::part(
                "put back what the demo did",
                format!(
                    "not everything: {report:?}; try `forebay restore --state-dir {}`",
                    state.display()
                ),
            ));
        }
    }
    fs::remove_dir_all(dir).map_err(Error::system("remove", dir.display(), "remove it by hand"))
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
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

/// Asks the kernel for a SIGTERM when the outer process ends.
pub(super) fn follow_parent() -> Result<(), Error> {
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(Error::system(
        "follow the end of",
        "the outer process",
        "this should not happen; report it",
    ))
}
