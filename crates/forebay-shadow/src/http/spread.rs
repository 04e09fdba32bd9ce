//! Some reads go to the shadow, so that the primary has less to do.
//!
//! Only what is safe (RFC 9110, 9.2.1), and only where the shadow answers as the primary does. A
//! shadow that fails or is silent for too long costs no request: the primary is asked then, and the
//! shadow is left alone for a while, which doubles with each failure in a row.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use forebay_core::shadow::promotion::Slot;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::head::Request;
use crate::switchboard::{Gate, Switchboard};

/// How long a shadow that failed is left alone.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Which reads go to the shadow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Of a thousand, so many.
    pub per_mille: u16,
    /// How long the shadow may take until its answer begins, in milliseconds.
    pub within_ms: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            per_mille: 0,
            within_ms: 1000,
        }
    }
}

/// Chooses.
#[derive(Debug)]
pub(crate) struct Spread {
    options: Options,
    seen: AtomicU64,
    trust: Mutex<Trust>,
}

/// Whether the shadow is asked at present.
#[derive(Debug, Default)]
struct Trust {
    from: Option<Instant>,
    pause: Duration,
}

impl Spread {
    pub(crate) const fn new(options: Options) -> Self {
        Self {
            options,
            seen: AtomicU64::new(0),
            trust: Mutex::new(Trust {
                from: None,
                pause: Duration::ZERO,
            }),
        }
    }

    pub(crate) const fn within(&self) -> Duration {
        Duration::from_millis(self.options.within_ms as u64)
    }

    /// The shadow, if it is to be asked this.
    pub(crate) fn choose(&self, board: &Switchboard, request: &Request) -> Option<Slot> {
        let share = u64::from(self.options.per_mille);
        if share == 0 || !request.safe || request.upgrade {
            return None;
        }
        let routing = board.routing();
        let slot = routing.standby.filter(|_| routing.gate == Gate::Open)?;
        let number = self.seen.fetch_add(1, Ordering::Relaxed);
        let due = |number: u64| number.wrapping_mul(share) / 1000;
        if due(number) == due(number.wrapping_add(1)) {
            return None;
        }
        let trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        trust
            .from
            .is_none_or(|from| Instant::now() >= from)
            .then_some(slot)
    }

    /// The shadow answered.
    pub(crate) fn well(&self) {
        *self.trust.lock().unwrap_or_else(PoisonError::into_inner) = Trust::default();
    }

    /// The shadow did not answer.
    pub(crate) fn failed(&self) {
        let mut trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        // Those that were under way when it failed say nothing new.
        if trust.from.is_some_and(|from| now < from) {
            return;
        }
        trust.pause = (trust.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        trust.from = Some(now + trust.pause);
        tracing::info!(
            pause_ms = trust.pause.as_millis(),
            "the shadow is asked no reads for a while"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::head;
    use crate::switchboard::Instance;

    #[tokio::test(start_paused = true)]
    async fn a_share_goes_to_a_shadow_that_can_be_trusted() {
        let instance = |app: &str| Instance {
            app: app.to_owned(),
            address: format!("/run/{app}").parse().unwrap(),
            elsewhere: None,
        };
        let board = Switchboard::new(vec![instance("a"), instance("b")], 0, 1);
        let request = |method: &str| {
            let head = format!("{method} / HTTP/1.1\r\nHost: x\r\n\r\n");
            head::request(head.as_bytes(), &mut Vec::new()).unwrap()
        };
        let spread = Spread::new(Options {
            per_mille: 250,
            within_ms: 100,
        });
        let chosen = |method: &str| {
            let request = request(method);
            let all = (0..400).filter_map(|_| spread.choose(&board, &request));
            all.inspect(|slot| assert_eq!(*slot, 1)).count()
        };
        assert_eq!(chosen("GET"), 0, "nobody stands by");
        board.change(|routing| routing.standby = Some(1));
        assert_eq!(chosen("GET"), 0, "the gate is held");
        board.change(|routing| routing.gate = Gate::Open);
        assert_eq!(
            (chosen("GET"), chosen("PUT"), chosen("HEAD")),
            (100, 0, 100)
        );
        for pause in [1, 2, 4] {
            spread.failed();
            spread.failed();
            tokio::time::advance(Duration::from_secs(pause) - Duration::from_millis(1)).await;
            assert_eq!(chosen("GET"), 0, "{pause} s");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(chosen("GET"), 100, "{pause} s");
        }
        spread.well();
        spread.failed();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(chosen("GET"), 100);
    }
}
