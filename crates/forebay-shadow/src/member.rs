//! One running instance: its process, and what stops it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_core::shadow::detection::Life;
use forebay_core::shadow::promotion::Cause;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::fence::Fence;
use crate::vitals::{Keeps, Vitals, Whose};

/// How long a fence may take to hold.
const FENCE_BOUND: Duration = Duration::from_millis(200);
/// How often it is asked whether it holds.
pub(crate) const FENCE_POLL: Duration = Duration::from_micros(250);
/// How long those take who were killed: memory is freed first, some 70 ms for each gigabyte.
const END_BOUND: Duration = Duration::from_secs(10);
/// How often it is asked whether a group that was ended is empty.
const EMPTY_POLL: Duration = Duration::from_millis(2);

/// An instance that runs, as far as it is known.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) pid: u32,
    end: Arc<AsyncFd<OwnedFd>>,
    vitals: Vitals,
    pub(crate) fence: Option<Arc<Fence>>,
}

impl Member {
    /// Takes hold of a process.
    ///
    /// # Errors
    /// When there is no such process.
    pub(crate) fn new(pid: u32, fence: Option<Fence>) -> io::Result<Self> {
        let (vitals, end) = Vitals::of(pid)?;
        #[expect(unsafe_code, reason = "tokio has no other way to wait for a pidfd")]
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and the
        // `AsyncFd` that takes it here ends its registration before it drops it.
        let end = unsafe { AsyncFd::register_with_interest(end, Interest::READABLE) }?;
        Ok(Self {
            pid,
            end: Arc::new(end),
            vitals,
            fence: fence.map(Arc::new),
        })
    }

    /// What can be waited for until the process ended.
    pub(crate) fn end(&self) -> Arc<AsyncFd<OwnedFd>> {
        Arc::clone(&self.end)
    }

    pub(crate) fn life(&self) -> Life {
        self.vitals.life()
    }

    /// It is gone, or on its way out.
    pub(crate) fn has_ended(&self) -> bool {
        self.life() == Life::Ending
    }

    /// What keeps its threads.
    pub(crate) fn keeps(&mut self, whose: Whose, now: Instant) -> Keeps {
        self.vitals.keeps(whose, now)
    }
}

/// Stops an instance where it stands, and sees that it does.
///
/// One that has no fence must be gone already; one of which nothing is known at all was refused by
/// the kernel: nobody listens. The kernel of another host says nothing about who runs there.
///
/// # Errors
/// When it may still execute something.
pub(crate) async fn stop(
    name: String,
    fence: Option<Arc<Fence>>,
    life: Option<Life>,
    cause: Option<Cause>,
) -> Result<(), String> {
    let unknown_is_gone = matches!(cause, Some(Cause::Death | Cause::Vacancy));
    let gone = life.map_or(unknown_is_gone, |life| life == Life::Ending);
    let failed = |error: io::Error| format!("freeze {name}: {error}");
    // Of one that was killed nobody is left to be stopped, as a rule.
    if let Some(fence) = fence.as_ref().filter(|_| gone)
        && fence.is_over().unwrap_or(false)
    {
        return Ok(());
    }
    let fence = match fence {
        // The group of one that is gone may be gone as well.
        Some(fence) => match fence.freeze() {
            Ok(()) => fence,
            Err(_) if gone => return Ok(()),
            Err(error) => return Err(failed(error)),
        },
        None if gone => return Ok(()),
        None => {
            return Err(format!("stop {name}: its group cannot be frozen from here"));
        }
    };
    let deadline = Instant::now() + FENCE_BOUND;
    while !fence.stands().map_err(failed)? {
        if Instant::now() >= deadline {
            return Err(format!(
                "freeze {name}: it did not stand within {} ms",
                FENCE_BOUND.as_millis()
            ));
        }
        tokio::time::sleep(FENCE_POLL).await;
    }
    Ok(())
}

/// Ends everybody behind a fence, and lets the group go once nobody is left in it: whoever is
/// thawed has been killed. Until then everybody in it stands.
///
/// # Errors
/// When somebody is left.
pub(crate) async fn end(app: &str, fence: &Fence) -> Result<(), String> {
    match kill_and_wait(fence).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!(
            "end {app}: it is still there {} s after it was killed",
            END_BOUND.as_secs()
        )),
        // Its group is gone, and nobody is in a group that is gone.
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(()),
        Err(error) => Err(format!("end {app}: {error}")),
    }
}

/// Whether nobody is left in the end.
async fn kill_and_wait(fence: &Fence) -> io::Result<bool> {
    // It died by itself: whoever is in its group now came after it, and is not to be ended.
    if !fence.is_asked()? {
        return Ok(true);
    }
    fence.kill()?;
    let deadline = tokio::time::Instant::now() + END_BOUND;
    while !fence.is_empty()? {
        if tokio::time::Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(EMPTY_POLL).await;
    }
    fence.thaw()?;
    Ok(true)
}

/// Waits for the end of a process; for ever where none is known.
pub(crate) async fn ended(end: Option<Arc<AsyncFd<OwnedFd>>>) {
    let Some(end) = end else {
        return std::future::pending().await;
    };
    if let Err(error) = end.readable().await {
        tracing::error!(%error, "the end of a process cannot be waited for");
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::fence::Hierarchy;

    /// It was asked for ever whether the group is empty, and nobody was told.
    #[tokio::test(start_paused = true)]
    async fn who_cannot_be_ended_is_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        // A list that goes on naming a process that was ended.
        std::fs::write(directory.path().join("procs"), child.id().to_string()).unwrap();
        std::fs::write(directory.path().join("state"), "FROZEN").unwrap();
        let open = |name: &str| {
            let mut options = File::options();
            let path = directory.path().join(name);
            OwnedFd::from(options.read(true).write(true).open(path).unwrap())
        };
        let fence = Fence::new(Hierarchy::V1, vec![open("state"), open("procs")]).unwrap();
        let left = end("a", &fence).await.unwrap_err();
        assert!(left.contains("a: it is still there 10 s"), "{left}");
        child.wait().unwrap();
    }
}
