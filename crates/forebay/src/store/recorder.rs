//! The thread that writes history, and the queue in front of it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use forebay_core::report::TickReport;
use forebay_core::units::Time;

use super::writer::Writer;
use super::{Store, StoreError};

/// Reports that wait for the thread: a minute at the default period.
pub(crate) const QUEUE_MAX: usize = 600;

/// Time between two batches. The thread looks at its queue this often instead of being woken
/// for every report.
const BATCH_PERIOD: Duration = Duration::from_secs(1);

/// Takes reports and writes history from a thread of its own. Dropping it writes what is left.
pub(crate) struct Recorder {
    queue: SyncSender<Arc<TickReport>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    dropped: AtomicU64,
    lost: AtomicU64,
    errors: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

impl Recorder {
    /// Starts the thread.
    pub(crate) fn start(store: Store) -> Result<Self, StoreError> {
        let (queue, reports) = mpsc::sync_channel(QUEUE_MAX);
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new()
            .name("history".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || run(&shared, &reports, Writer::new(store))
            })
            .map_err(|source| StoreError::Thread { source })?;
        Ok(Self {
            queue,
            shared,
            thread: Some(thread),
        })
    }

    /// Hands over a report. Never waits, for a lock neither: the thread polls the queue, so
    /// there is nobody to wake. A report that finds the queue full is dropped and counted.
    pub(crate) fn offer(&self, report: Arc<TickReport>) {
        if self.queue.try_send(report).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reports dropped because the queue was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Roll-ups and events given up because they could not be written for too long.
    pub(crate) fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Batches that failed.
    pub(crate) fn errors(&self) -> u64 {
        self.shared.errors.load(Ordering::Relaxed)
    }

    /// Why the latest batch failed; none once one has succeeded again.
    pub(crate) fn last_error(&self) -> Option<String> {
        self.shared.last_error().clone()
    }

    /// Writes what is left and ends the thread: for a stopping daemon, after its last period.
    pub(crate) fn stop(self) {
        drop(self);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the history recorder panicked; the latest history is lost");
            }
        }
    }
}

impl Shared {
    fn last_error(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how a batch went; logs only when that changed.
    fn note(&self, result: rusqlite::Result<()>) {
        let mut last = self.last_error();
        match result {
            Ok(()) => {
                if last.take().is_some() {
                    tracing::info!("history is written again");
                }
            }
            Err(error) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                if last.is_none() {
                    tracing::warn!(%error, "history cannot be written; trying again");
                }
                *last = Some(format!(
                    "write history: {error}; see that the disk has space and the file is intact"
                ));
            }
        }
    }
}

fn run(shared: &Shared, reports: &Receiver<Arc<TickReport>>, mut writer: Writer) {
    let mut now = None;
    loop {
        // Read before the queue is emptied: what came before the stop is in the last batch.
        let stopping = shared.stop.load(Ordering::Acquire);
        for report in reports.try_iter().take(QUEUE_MAX) {
            now = Some(report.time);
            writer.add(&report);
        }
        if stopping {
            writer.finish();
        }
        write(shared, &mut writer, now);
        if stopping {
            return;
        }
        thread::park_timeout(BATCH_PERIOD);
    }
}

/// Writes a batch, once there has been a report to tell the time.
fn write(shared: &Shared, writer: &mut Writer, now: Option<Time>) {
    if let Some(now) = now {
        shared.note(writer.write(now));
        shared.lost.fetch_add(writer.take_lost(), Ordering::Relaxed);
    }
}
