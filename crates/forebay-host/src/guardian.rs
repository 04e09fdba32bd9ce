//! Watching over the daemon, and putting everything back when it is lost.
//!
//! The guardian is a process of its own, started by the daemon, with nothing to do but wait
//! on a pidfd. When the daemon dies it gives a new one the time of a lease to come back; the
//! new one has a guardian of its own, and this one goes. Otherwise it restores. Whether the daemon is there or
//! hangs, the guardian freezes in time what other hosts may take over ([`crate::tenure`]). While userspace begins anew
//! a daemon has longer to come back, so that what runs on meanwhile stays in force ([`crate::soft_reboot`]).
//!
//! # An app whose owner nobody knows
//!
//! The group of an app is marked before its record at the coordinator is asked to be changed to another host, and
//! the mark is taken away as soon as that is known not to have taken effect ([`crate::fence::give`]). So a
//! guardian that finds the mark knows no more than that the other host may run it by now:
//!
//! - It must not let it go on: there would be two.
//! - Nothing on disk says more. The mark goes before whatever else is written of a move that was given up, so
//!   that there is no moment in which a file says that it is this host's and the mark is still there.
//! - It does not ask the coordinator. To read is not enough, since what the lost daemon asked for may take effect
//!   later; the record has to be changed so that it cannot. That is the next daemon's work, which has all that
//!   it takes, and is begun anew by its manager for as long as that takes.
//! - It need not end it either. A process that stands is nobody's second owner: no group is let go by anybody
//!   but that daemon, which knows by then. What it costs to keep it is its memory.
//!
//! So one that is begun from its files wherever it is ends (there is nothing to keep), and one that moves with its
//! memory, which may be nowhere else, stands on in its group, which stays in the ledger. The same is so when the
//! daemon is stopped at such a moment, by `on_stop = "keep"`. Whoever wants it gone runs `forebay restore`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_core::app::OnStop;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::Roots;
use crate::error::{ErrorKind, HostError};
use crate::ledger::{self, Process};
use crate::lock::{Role, holder};
use crate::procs;
use crate::restore::{Report, restore_lost};
use crate::service_address::Addresses;
use crate::soft_reboot;
use crate::tenure;

/// How often it is seen whether another daemon came.
const POLL: Duration = Duration::from_millis(100);
/// How often it is looked whether what others may take over has time left.
const TENURE_POLL: Duration = Duration::from_secs(1);
/// How often what the kernel refused is tried again.
const RESTORES_MAX: u32 = 20;
const RESTORE_PAUSE: Duration = Duration::from_secs(1);
/// So that the kernel ends others first when memory is out. Needs privilege; -1000 is never.
const OOM_SCORE: &str = "-900";

/// Whom to watch, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// The daemon's process number.
    pub daemon: u32,
    /// Its state directory.
    pub state_dir: PathBuf,
    /// Where the kernel's file systems are.
    pub roots: Roots,
    /// How long a lost daemon has to come back.
    pub lease: Duration,
    /// What becomes of the apps it started.
    pub on_stop: OnStop,
}

/// How the watch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guarded {
    /// The daemon put everything back itself.
    Stopped,
    /// Another daemon has taken over.
    Relieved,
    /// The daemon was lost, and this was put back.
    Restored(Report),
}

/// Waits for the end of the daemon, and restores if no other comes. Blocks until then.
///
/// # Errors
/// When the daemon cannot be watched or the ledger cannot be read.
pub fn guard(watched: &Watched) -> Result<Guarded, HostError> {
    detach(&watched.roots.proc);
    let daemon = wait_for_end(watched)?;
    let lease_end = Instant::now() + watched.lease;
    tracing::info!(pid = watched.daemon, "the daemon is gone");
    loop {
        if is_relieved(watched, daemon) {
            return Ok(Guarded::Relieved);
        }
        if is_restored(watched) {
            return Ok(Guarded::Stopped);
        }
        tenure::hold(&watched.roots, &watched.state_dir, false);
        let left = lease_end.saturating_duration_since(Instant::now());
        let respite = || soft_reboot::left_in_force(&watched.roots, &watched.state_dir);
        if left.is_zero() && respite().is_empty() {
            break;
        }
        std::thread::sleep(if left.is_zero() { POLL } else { POLL.min(left) });
    }
    // Nobody is there any more who would freeze it later: it is ended as what others may run.
    tenure::hold(&watched.roots, &watched.state_dir, true);
    put_back(watched)
}

fn put_back(watched: &Watched) -> Result<Guarded, HostError> {
    let mut report = Report::default();
    for attempt in 0..RESTORES_MAX {
        if attempt > 0 {
            std::thread::sleep(RESTORE_PAUSE);
        }
        match restore_lost(&watched.state_dir, &watched.roots, watched.on_stop) {
            Ok(now) => {
                let complete = now.is_complete();
                report.absorb(now);
                if complete {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::Locked => return Ok(Guarded::Relieved),
            Err(error) if attempt + 1 == RESTORES_MAX => return Err(error),
            Err(error) => tracing::warn!(reason = error.explain(), "restore fails, once more"),
        }
    }
    Ok(Guarded::Restored(report))
}

/// Leaves the daemon's session, so that what ends that one (a terminal that closes, Ctrl-C)
/// leaves the guardian alive to clean up.
fn detach(proc_root: &Path) {
    if let Err(error) = rustix::process::setsid() {
        // A leader of a process group cannot, and needs to less.
        tracing::debug!(%error, "no session of its own");
    }
    if let Err(error) = std::fs::write(proc_root.join("self/oom_score_adj"), OOM_SCORE) {
        tracing::debug!(%error, "may be ended when memory is out");
    }
}

/// Waits until the daemon has ended. Gives its identity, as far as it is known.
fn wait_for_end(watched: &Watched) -> Result<Option<Process>, HostError> {
    let recorded = holder(&watched.state_dir)
        .map(|holder| holder.process)
        .filter(|process| process.pid == watched.daemon);
    let pidfd = match i32::try_from(watched.daemon).ok().and_then(Pid::from_raw) {
        Some(pid) => pidfd_open(pid, PidfdFlags::empty()),
        None => Err(Errno::SRCH),
    };
    let pidfd = match pidfd {
        Ok(pidfd) => pidfd,
        // It ended before it could be watched.
        Err(Errno::SRCH) => return Ok(recorded),
        Err(error) => {
            return Err(HostError::io(
                format!("watch process {}", watched.daemon),
                error,
            ));
        }
    };
    // The number may be somebody else's by now.
    let now = procs::identify(&watched.roots.proc, watched.daemon);
    if recorded.is_some() && now != recorded {
        return Ok(recorded);
    }
    loop {
        let left = tenure::hold(&watched.roots, &watched.state_dir, false);
        let wait = left.unwrap_or(TENURE_POLL).min(TENURE_POLL);
        let wait = rustix::event::Timespec {
            tv_sec: wait.as_secs().try_into().unwrap_or(1),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&wait)) {
            Ok(0) => {}
            Ok(_) => return Ok(recorded.or(now)),
            Err(Errno::INTR) => {}
            Err(error) => {
                return Err(HostError::io(
                    format!("watch process {}", watched.daemon),
                    error,
                ));
            }
        }
    }
}

/// Whether another daemon has the state directory.
fn is_relieved(watched: &Watched, daemon: Option<Process>) -> bool {
    holder(&watched.state_dir).is_some_and(|holder| {
        holder.role == Role::Daemon
            && Some(holder.process) != daemon
            && procs::is_alive(&watched.roots.proc, holder.process)
    })
}

fn is_restored(watched: &Watched) -> bool {
    let addresses = Addresses::new(&watched.state_dir, watched.roots.clone());
    let known = watched
        .roots
        .boot_id()
        .and_then(|boot_id| ledger::peek(&watched.state_dir, &boot_id));
    addresses.all().is_empty() && known.is_ok_and(|state| state.is_restored())
}
