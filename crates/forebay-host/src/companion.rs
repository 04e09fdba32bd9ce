//! A process beside an app's program, in its slice: the worker that takes its compute tasks.
//!
//! It is started as programs are, so that it is in the slice before its first instruction, with the
//! rights of its user and nobody else's. It is no part of the app's life: whoever ends the slice ends it
//! too, and whoever started it here starts it again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_core::app::{AppId, Exec};
use forebay_core::snapshot::Ending;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use crate::Roots;
use crate::error::HostError;
use crate::freeze;
use crate::groups;
use crate::mounts::Hierarchies;
use crate::procs;
use crate::supervise::{self, Main};

/// One that is killed is gone in so long a time, unless the kernel is stuck.
const KILLED_BOUND: Duration = Duration::from_secs(5);

/// A process beside an app's program.
#[derive(Debug)]
pub struct Companion {
    main: Main,
}

/// The groups of an app that are there; none until it has all of them.
fn dirs(roots: &Roots, anchor: &Path, app: &AppId) -> Result<Option<Vec<PathBuf>>, HostError> {
    let hierarchies = Hierarchies::read(&roots.proc)?;
    let group = groups::of_app(anchor, app);
    let dirs = groups::placed(&hierarchies).map(|(_, hierarchy)| hierarchy.dir(&group));
    let dirs: Vec<PathBuf> = dirs.collect();
    let complete = !dirs.is_empty() && dirs.iter().all(|dir| dir.is_dir());
    Ok(complete.then_some(dirs))
}

/// Whether the slice of an app stands still, so that nobody in it answers.
#[must_use]
pub fn stands_still(roots: &Roots, anchor: &Path, app: &AppId) -> bool {
    let dirs = dirs(roots, anchor, app).ok().flatten().unwrap_or_default();
    let dirs: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
    freeze::is_frozen(&dirs)
}

impl Companion {
    /// Starts a program in the slice of an app, which has to be there and to go on.
    ///
    /// # Errors
    /// When there is no such slice, it is frozen, or the program cannot be started.
    pub fn start(
        roots: &Roots,
        anchor: &Path,
        app: &AppId,
        exec: &Exec,
    ) -> Result<Self, HostError> {
        let attempt = || format!("start a worker beside {app}");
        let Some(dirs) = dirs(roots, anchor, app)? else {
            return Err(HostError::invalid(attempt(), "its slice is not there yet"));
        };
        let dirs: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
        if freeze::is_frozen(&dirs) {
            // Between its fork and its exec it would stand, and hold up whoever starts it.
            return Err(HostError::invalid(attempt(), "its slice is frozen"));
        }
        let program = supervise::resolve(exec)?;
        let pid = supervise::start(app, &program, &dirs)?;
        let gone = || HostError::invalid(attempt(), "it ended at once; see what it said");
        Self::open(roots, pid).ok_or_else(gone)
    }

    /// Takes up a process that is in the slice of an app already.
    #[must_use]
    pub fn adopt(roots: &Roots, anchor: &Path, app: &AppId, pid: u32) -> Option<Self> {
        let dirs = dirs(roots, anchor, app).ok().flatten()?;
        let inside = dirs.iter().all(|dir| groups::members(dir).contains(&pid));
        inside.then(|| Self::open(roots, pid)).flatten()
    }

    /// Takes up a process wherever it is, to end it.
    #[must_use]
    pub fn stray(roots: &Roots, pid: u32) -> Option<Self> {
        Self::open(roots, pid)
    }

    fn open(roots: &Roots, pid: u32) -> Option<Self> {
        let start_time = procs::read_stat(&roots.proc, pid).map_or(0, |stat| stat.start_time);
        let process = crate::ledger::Process { pid, start_time };
        Some(Self {
            main: Main::open(process)?,
        })
    }

    /// Its number.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.main.process.pid
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn ended(&self) -> Option<Ending> {
        self.main.ended()
    }

    /// Asks it to end, ends it when it did not within `patience`, and waits until it is gone.
    ///
    /// # Errors
    /// When the kernel does not let it go.
    pub fn end(self, patience: Duration) -> Result<(), HostError> {
        let pid = self.pid();
        // One that is gone cannot be asked, and is waited for all the same.
        pidfd_send_signal(self.main.pidfd(), Signal::TERM).ok();
        if self.gone_within(patience) {
            return Ok(());
        }
        pidfd_send_signal(self.main.pidfd(), Signal::KILL).ok();
        if self.gone_within(KILLED_BOUND) {
            return Ok(());
        }
        Err(HostError::invalid(
            format!("end process {pid}"),
            "the kernel does not let it go: its slice may be frozen",
        ))
    }

    fn gone_within(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        loop {
            if self.ended().is_some() {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            let Ok(left) = Timespec::try_from(left) else {
                return false;
            };
            let mut fds = [PollFd::new(self.main.pidfd(), PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return self.ended().is_some(),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// The command line of a process, its name first; none when it is gone.
#[must_use]
pub fn command_of(roots: &Roots, pid: u32) -> Option<Vec<String>> {
    let bytes = std::fs::read(roots.proc.join(format!("{pid}/cmdline"))).ok()?;
    let words = bytes.split(|byte| *byte == 0);
    let mut words: Vec<String> = words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    words.pop();
    (!words.is_empty()).then_some(words)
}
