//! What holds moves back: their bandwidth together, and whoever says to wait or to stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use forebay_core::tier::Pace;
use forebay_core::units::Bytes;

use super::Left;
use super::copy::Stop;

/// How often a move that is held back looks whether it may go on.
const LOOK: Duration = Duration::from_millis(50);

/// Shared between the thread that moves and those that hold it back.
#[derive(Debug)]
pub struct Brake {
    began: Instant,
    pace: Option<Mutex<Pace>>,
    hold: AtomicBool,
    stop: AtomicBool,
}

impl Brake {
    pub(super) fn new(bandwidth_max: Option<u64>) -> Self {
        Self {
            began: Instant::now(),
            pace: bandwidth_max.map(|most| Mutex::new(Pace::new(Bytes(most)))),
            hold: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    /// Lets moves wait, wherever they are, until they are let go on.
    pub fn hold(&self) {
        self.hold.store(true, Ordering::Relaxed);
    }

    /// Lets moves go on.
    pub fn release(&self) {
        self.hold.store(false, Ordering::Relaxed);
    }

    /// Whether moves wait.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.hold.load(Ordering::Relaxed)
    }

    /// Ends the move under way, which is undone, and all later ones.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether moves are ended.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits until so many more bytes are due.
    pub(super) fn spend(&self, bytes: usize) -> Result<(), Stop> {
        let mut wait = self.pace(|pace, now| pace.spend(now, Bytes(bytes as u64)));
        loop {
            if self.is_stopped() {
                return Err(Stop::Left(Left::Stopped));
            }
            if self.is_held() {
                wait = wait.max(LOOK);
            }
            if wait.is_zero() {
                return Ok(());
            }
            std::thread::sleep(wait.min(LOOK));
            wait = self.pace(|pace, now| pace.wait(now));
        }
    }

    /// Takes so many bytes without waiting: whoever spends next does.
    pub(super) fn charge(&self, bytes: usize) {
        self.pace(|pace, now| pace.spend(now, Bytes(bytes as u64)));
    }

    fn pace(&self, ask: impl FnOnce(&mut Pace, Duration) -> Duration) -> Duration {
        let Some(pace) = &self.pace else {
            return Duration::ZERO;
        };
        let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
        ask(&mut pace, self.began.elapsed())
    }
}
