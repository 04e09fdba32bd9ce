//! How a move is going, for whoever looks, and whether somebody does not want it any more.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use forebay_core::app::AppId;
use forebay_core::fleet::HostName;
use forebay_core::fleet::departure::{End, Stage};
use forebay_core::fleet::mobility::Way;
use forebay_core::units::Bytes;

use super::Foreseen;
use crate::fleet::link::rdma::Carried;

/// One move away, shared by its driver and whoever looks.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) app: AppId,
    pub(crate) there: HostName,
    pub(crate) way: Way,
    began: Instant,
    pub(crate) began_unix_ms: u64,
    sent: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Clone)]
struct State {
    stage: Stage,
    why: Option<String>,
    took: Option<Duration>,
    froze: Option<Instant>,
    stood: Option<Duration>,
    foreseen: Option<Foreseen>,
    /// What was sent went by this, last.
    carried: Option<Carried>,
    /// What its target has still to fetch of it.
    owed: Option<Bytes>,
    /// The driver knows that it is not wanted.
    heard: bool,
}

/// How many moves ended, by their way and their end.
pub(crate) type Ended = BTreeMap<(Way, End), u64>;

/// What is shown of one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shown {
    pub(crate) stage: Stage,
    /// Bytes that were sent.
    pub(crate) sent: u64,
    /// Bytes that are to be sent, as far as it is known.
    pub(crate) total: u64,
    /// Since it began, or until it was over.
    pub(crate) took: Duration,
    /// How long the application stood still, so far.
    pub(crate) stood: Option<Duration>,
    /// What it was expected to be like before anything was touched, where that is known.
    pub(crate) foreseen: Option<Foreseen>,
    /// What is left of copying at the speed so far; none where none is known.
    pub(crate) left: Option<Duration>,
    /// What was sent went by this, last.
    pub(crate) carried: Option<Carried>,
    /// What its target, where it runs, has still to fetch of it.
    pub(crate) owed: Option<Bytes>,
    /// What turned it back, or holds it up.
    pub(crate) why: Option<String>,
}

impl Note {
    pub(crate) fn new(app: AppId, there: HostName, way: Way) -> Self {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            app,
            there,
            way,
            began: Instant::now(),
            began_unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
            sent: AtomicU64::new(0),
            total: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            state: Mutex::new(State {
                stage: Stage::Checking,
                why: None,
                took: None,
                froze: None,
                stood: None,
                foreseen: None,
                carried: None,
                owed: None,
                heard: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody does not want it any more.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        // Under the lock, so that nobody who is about to rest misses it.
        let _state = self.state();
        self.changed.notify_all();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// The driver knows that it is not wanted any more; whether that is news.
    pub(super) fn hear(&self) -> bool {
        self.is_cancelled() && !std::mem::replace(&mut self.state().heard, true)
    }

    /// Rests for so long, or until it is heard that it is not wanted any more.
    pub(crate) fn rest(&self, time: Duration) {
        let state = self.state();
        let wait = self
            .changed
            .wait_timeout_while(state, time, |state| state.heard || !self.is_cancelled());
        drop(wait);
    }

    pub(super) fn at(&self, stage: Stage) {
        let mut state = self.state();
        if state.stage == stage {
            return;
        }
        match stage {
            Stage::Freezing => state.froze = Some(Instant::now()),
            Stage::CallingOff | Stage::Lending | Stage::Ending | Stage::Over(_)
                if state.stood.is_none() =>
            {
                state.stood = state.froze.map(|froze| froze.elapsed());
            }
            _ => {}
        }
        if let Stage::Over(_) = stage {
            state.took = Some(self.began.elapsed());
        }
        state.stage = stage;
        self.changed.notify_all();
    }

    pub(super) fn trouble(&self, why: String) {
        self.state().why = Some(why);
    }

    /// It would be like this.
    pub(super) fn foresee(&self, foreseen: Option<Foreseen>) {
        self.state().foreseen = foreseen;
    }

    pub(super) fn carried(&self, carried: Carried) {
        self.state().carried = Some(carried);
    }

    /// So much is still to be fetched of it by its target.
    pub(super) fn owed(&self, owed: Option<Bytes>) {
        self.state().owed = owed;
    }

    /// So many bytes more are to be sent.
    pub(super) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How it ended, once it is over.
    pub(crate) fn end(&self) -> Option<End> {
        match self.state().stage {
            Stage::Over(end) => Some(end),
            _ => None,
        }
    }

    pub(crate) fn shown(&self) -> Shown {
        let state = self.state().clone();
        let sent = self.sent.load(Ordering::Relaxed);
        let total = self.total.load(Ordering::Relaxed).max(sent);
        let took = state.took.unwrap_or_else(|| self.began.elapsed());
        let copies = matches!(state.stage, Stage::Copying | Stage::Sending);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let left = (copies && sent > 0).then(|| {
            let part = (total - sent) as f64 / sent as f64;
            Duration::try_from_secs_f64(took.as_secs_f64() * part).unwrap_or(Duration::MAX)
        });
        Shown {
            stage: state.stage,
            sent,
            total,
            took,
            stood: state
                .stood
                .or_else(|| state.froze.map(|froze| froze.elapsed())),
            foreseen: state.foreseen,
            left,
            carried: state.carried,
            owed: state.owed,
            why: state.why,
        }
    }
}

/// Reads on behalf of a move: counts, and ends when the move is not wanted any more.
#[derive(Debug)]
pub(super) struct Counted<'a, R> {
    pub(super) from: R,
    pub(super) note: &'a Note,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.note.is_cancelled() {
            return Err(io::Error::other("the move was cancelled"));
        }
        let count = self.from.read(into)?;
        let bytes = u64::try_from(count).unwrap_or(u64::MAX);
        self.note.sent.fetch_add(bytes, Ordering::Relaxed);
        Ok(count)
    }
}
