//! One running instance: its process, and what stops it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_core::shadow::detection::Life;
use forebay_core::shadow::promotion::Cause;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::fence::Fence;
use crate::vitals::{Keeps, Vitals};

/// How long a fence may take to hold.
const FENCE_BOUND: Duration = Duration::from_millis(200);
/// How often it is asked whether it holds.
pub(crate) const FENCE_POLL: Duration = Duration::from_micros(250);
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

    /// What keeps its threads.
    pub(crate) fn keeps(&mut self, now: Instant) -> Keeps {
        self.vitals.keeps(now)
    }
}

/// Stops an instance where it stands, and sees that it does.
///
/// One that has no fence must be gone already; one of which nothing is known at all was refused by
/// the kernel: nobody listens.
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
/// thawed has been killed.
pub(crate) async fn end(name: String, fence: Arc<Fence>) {
    if let Err(error) = fence.kill() {
        tracing::error!(app = name, %error, "end the old primary");
    }
    loop {
        match fence.is_empty() {
            Ok(true) => break,
            Ok(false) => tokio::time::sleep(EMPTY_POLL).await,
            Err(error) => {
                tracing::debug!(app = name, %error, "its group is gone");
                return;
            }
        }
    }
    if let Err(error) = fence.thaw() {
        tracing::debug!(app = name, %error, "its group is gone");
    }
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
