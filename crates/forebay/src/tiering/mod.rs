//! Tiered directories while the daemon runs: one thread for each that moves its files, and one
//! that counts touches.
//!
//! ```text
//! touches ──counts──▶ mover ──status, answers──▶ API, metrics
//!   main ──held────▶    ▲
//!    API ──orders───────┘   (bounded; full is "busy")
//! ```
//!
//! A mover holds its tier's lock as long as it can be used, so that `forebay tier` asks it
//! instead of moving beside it. One tier that cannot be used says why and is tried again; the
//! others do not notice.

mod files;
mod job;
mod touched;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use forebay_api as api;
use forebay_core::report::EventKind;
use forebay_host::tier::{Brake, TierPlace};

pub(crate) use wire::{answered, direct, row};

/// Requests of one tier that wait to be worked on.
const ORDERS_MAX: usize = 16;
/// Answers of one tier that are remembered.
const ANSWERS_MAX: usize = 64;
/// Moves of one tier that are remembered.
const MOVES_MAX: usize = 50;

/// Takes in what happened.
pub(crate) type Tell = Arc<dyn Fn(EventKind, String) + Send + Sync>;

/// Something to do for somebody who asked.
#[derive(Debug)]
pub(crate) struct Order {
    request: u64,
    what: api::TierOrder,
    files: Vec<PathBuf>,
}

/// What a mover shows, and how it is held back.
#[derive(Debug)]
pub(crate) struct Shared {
    place: TierPlace,
    status: Mutex<api::Tier>,
    answers: Mutex<VecDeque<api::TierAnswer>>,
    requests: AtomicU64,
    brake: Mutex<Option<Arc<Brake>>>,
    held: AtomicBool,
    stopping: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(place: TierPlace) -> Self {
        let status = api::Tier {
            tier: place.name.clone(),
            directory: place.directory.display().to_string(),
            fast_size_max_bytes: place.fast_size_max,
            ..api::Tier::default()
        };
        Self {
            place,
            status: Mutex::new(status),
            answers: Mutex::default(),
            requests: AtomicU64::new(0),
            brake: Mutex::default(),
            held: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    fn update(&self, change: impl FnOnce(&mut api::Tier)) {
        change(&mut locked(&self.status));
    }

    fn note_move(&self, one: api::TierMove) {
        self.update(|status| {
            if status.moves.len() >= MOVES_MAX {
                status.moves.remove(0);
            }
            status.moves.push(one);
        });
    }

    /// Hands the brake of an opened tier to those who hold moves back.
    fn set_brake(&self, brake: Arc<Brake>) {
        let mut known = locked(&self.brake);
        if self.is_held() {
            brake.hold();
        }
        if self.is_stopping() {
            brake.stop();
        }
        *known = Some(brake);
    }

    fn hold(&self, hold: bool) {
        let brake = locked(&self.brake);
        self.held.store(hold, Ordering::Relaxed);
        match brake.as_deref() {
            Some(brake) if hold => brake.hold(),
            Some(brake) => brake.release(),
            None => {}
        }
    }

    fn stop(&self) {
        let brake = locked(&self.brake);
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(brake) = brake.as_deref() {
            brake.stop();
        }
    }

    /// Changes the answer to a request, which appears with its first change.
    fn answer(&self, request: u64, change: impl FnOnce(&mut api::TierAnswer)) {
        let mut answers = locked(&self.answers);
        if let Some(answer) = answers.iter_mut().find(|answer| answer.request == request) {
            return change(answer);
        }
        if answers.len() >= ANSWERS_MAX {
            answers.pop_front();
        }
        let mut answer = api::TierAnswer {
            request,
            ..api::TierAnswer::default()
        };
        change(&mut answer);
        answers.push_back(answer);
    }
}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is no such tier, or no such request any more.
    Unknown(String),
    /// There are too many requests, or the daemon is stopping.
    Busy(String),
}

/// A mover, and where it takes requests.
type Asked = (Arc<Shared>, SyncSender<Order>);

/// Where the API asks movers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Desk {
    tiers: Arc<BTreeMap<String, Asked>>,
}

impl Desk {
    /// All tiers now, by name.
    pub(crate) fn status(&self) -> Vec<api::Tier> {
        let tiers = self.tiers.values();
        tiers
            .map(|(shared, _)| locked(&shared.status).clone())
            .collect()
    }

    /// Asks a mover for something; what becomes of it is told by [`Desk::answer`].
    pub(crate) fn ask(
        &self,
        tier: &str,
        what: api::TierOrder,
        files: Vec<PathBuf>,
    ) -> Result<api::TierAnswer, Refused> {
        let (shared, orders) = self.find(tier)?;
        let request = shared.requests.fetch_add(1, Ordering::Relaxed) + 1;
        shared.answer(request, |_| ());
        let order = Order {
            request,
            what,
            files,
        };
        match orders.try_send(order) {
            Ok(()) => self.answer(tier, request),
            Err(TrySendError::Full(_)) => Err(Refused::Busy(format!(
                "tier {tier} has {ORDERS_MAX} requests waiting; try again when one is done"
            ))),
            Err(TrySendError::Disconnected(_)) => {
                Err(Refused::Busy("the daemon is stopping".to_owned()))
            }
        }
    }

    /// What became of a request.
    pub(crate) fn answer(&self, tier: &str, request: u64) -> Result<api::TierAnswer, Refused> {
        let (shared, _) = self.find(tier)?;
        let answers = locked(&shared.answers);
        let answer = answers.iter().find(|answer| answer.request == request);
        answer.cloned().ok_or_else(|| {
            Refused::Unknown(format!(
                "no request {request} of tier {tier}: the latest {ANSWERS_MAX} are kept"
            ))
        })
    }

    fn find(&self, tier: &str) -> Result<&Asked, Refused> {
        self.tiers.get(tier).ok_or_else(|| {
            let known: Vec<&str> = self.tiers.keys().map(String::as_str).collect();
            Refused::Unknown(match known.is_empty() {
                true => format!("no tier `{tier}`: the daemon started with none"),
                false => format!("no tier `{tier}`; use {}", known.join(" or ")),
            })
        })
    }
}

/// All movers of a daemon.
#[derive(Debug, Default)]
pub(crate) struct Movers {
    desk: Desk,
    threads: Vec<JoinHandle<()>>,
}

impl Movers {
    /// Starts one mover for each tier.
    pub(crate) fn start(
        places: &BTreeMap<String, TierPlace>,
        tell: &Tell,
    ) -> std::io::Result<Self> {
        let mut movers = Self::default();
        let mut tiers = BTreeMap::new();
        for (name, place) in places {
            let shared = Arc::new(Shared::new(place.clone()));
            let (orders, asked) = mpsc::sync_channel(ORDERS_MAX);
            let job = job::Job::new(Arc::clone(&shared), asked, Arc::clone(tell));
            tiers.insert(name.clone(), (shared, orders));
            movers.threads.push(
                std::thread::Builder::new()
                    .name("tier".to_owned())
                    .spawn(move || job.run())?,
            );
        }
        movers.desk.tiers = Arc::new(tiers);
        Ok(movers)
    }

    /// Where to ask them.
    pub(crate) fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Lets all of them wait, or go on.
    pub(crate) fn hold(&self, hold: bool) {
        for (shared, _) in self.desk.tiers.values() {
            if shared.is_held() != hold {
                shared.hold(hold);
            }
        }
    }

    /// Ends all of them, moves under way first: those are undone.
    pub(crate) fn stop(self) {
        for (shared, _) in self.desk.tiers.values() {
            shared.stop();
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a mover of a tier panicked; see its message above");
            }
        }
    }
}

#[cfg(test)]
mod tests;
