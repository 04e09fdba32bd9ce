//! The thread that counts touches, however long a move takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use forebay_host::Error;
use forebay_host::tier::{Sampler, Tier, Touches, Watch};

use super::locked;

/// How long events are left to gather, and to merge by file: a hot file counts at most twenty
/// touches in a second for each process.
const GATHER: Duration = Duration::from_millis(50);
/// How often an idle reader looks whether it is to end.
const LOOK: Duration = Duration::from_millis(200);

/// Counts until it is dropped.
#[derive(Debug)]
pub(super) struct Touched {
    watch: Arc<Watch>,
    counted: Arc<Mutex<Touches>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Touched {
    /// Starts the thread; what it watches is said to [`Touched::watch`].
    pub(super) fn start(tier: &Tier) -> Result<Self, String> {
        let watch = Arc::new(Watch::open().map_err(|error| error.explain())?);
        let mut sampler = tier.sampler().map_err(|error| error.explain())?;
        let counted = Arc::new(Mutex::new(Touches::default()));
        let ended = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new()
            .name("touches".to_owned())
            .spawn({
                let (watch, counted, ended) =
                    (Arc::clone(&watch), Arc::clone(&counted), Arc::clone(&ended));
                move || {
                    if let Err(error) = count(&watch, &mut sampler, &counted, &ended) {
                        tracing::error!(reason = error.explain(), "touches are no longer counted");
                    }
                }
            });
        let thread = thread.map_err(|error| {
            format!("start a thread that counts touches: {error}; check limits on threads")
        })?;
        Ok(Self {
            watch,
            counted,
            ended,
            thread: Some(thread),
        })
    }

    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Whether touches are still counted.
    pub(super) fn is_counting(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }

    /// What was touched since this was asked last.
    pub(super) fn take(&self) -> Touches {
        std::mem::take(&mut locked(&self.counted))
    }
}

fn count(
    watch: &Watch,
    sampler: &mut Sampler,
    counted: &Mutex<Touches>,
    ended: &AtomicBool,
) -> Result<(), Error> {
    while !ended.load(Ordering::Relaxed) {
        watch.wait(LOOK)?;
        std::thread::sleep(GATHER);
        let mut counted = locked(counted);
        watch.read(&mut counted)?;
        sampler.look(&mut counted)?;
    }
    Ok(())
}

impl Drop for Touched {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that counts touches panicked; see its message above");
        }
    }
}
