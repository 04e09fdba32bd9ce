//! When the primary is looked at.
//!
//! Problem: a look takes longer than a request, in the thread that passes requests on, and a primary
//! that was killed is to be found out within milliseconds.
//!
//! Approach: while requests come it is asked every 2 ms whether somebody has waited for longer than a
//! millisecond, which costs next to nothing. Only then the primary is looked at, and now and then in any
//! case.
//!
//! Properties: whoever waits has the primary looked at within [`DOUBT`] and [`LOOK`]; whoever is
//! answered at once waits for no look.

use std::io;
use std::time::{Duration, Instant};

use forebay_core::shadow::promotion::Slot;

use super::ticks::Ticks;
use crate::switchboard::Switchboard;

/// How often it is asked whether somebody waits, and for a while after somebody did: between two requests
/// in quick succession nobody waits for an instant.
pub(super) const LOOK: Duration = Duration::from_millis(2);
const LOOK_AFTER: Duration = Duration::from_millis(20);
/// The primary is looked at at least so often. Its end is told by the kernel, and a request that begins
/// after a silence by itself.
const LOOK_IDLE: Duration = Duration::from_millis(50);
/// Waits shorter than this are no reason to look.
const DOUBT: Duration = Duration::from_millis(1);

/// What a look is due for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// Requests are under way.
    Requests,
    /// New ones are held back until it is known how the primary is.
    All,
}

/// The times of looks.
#[derive(Debug)]
pub(super) struct Looks {
    latest: Instant,
    busy_until: Instant,
    ticks: Ticks,
    /// The log has it already that the timer fails.
    is_told: bool,
}

impl Looks {
    /// # Errors
    /// When the system has no timer.
    pub(super) fn new(now: Instant) -> io::Result<Self> {
        Ok(Self {
            latest: now,
            busy_until: now,
            ticks: Ticks::new(LOOK)?,
            is_told: false,
        })
    }

    /// Waits until a look is due; since when it is. What was waited for is not forgotten when this is
    /// dropped.
    pub(super) async fn due(
        &mut self,
        board: &Switchboard,
        primary: Slot,
        waits: Waits,
    ) -> Instant {
        // The timer goes on during a look, whose own time is not the front's being late.
        let entered = Instant::now();
        loop {
            let now = Instant::now();
            if waits == Waits::All || board.under_way(primary) > 0 {
                self.busy_until = now + LOOK_AFTER;
            }
            let last = (self.latest + LOOK_IDLE).max(now);
            let due = if self.busy_until < now {
                self.stop();
                tokio::select! {
                    biased;
                    () = board.flights.begun() => {
                        self.busy_until = Instant::now() + LOOK_AFTER;
                        continue;
                    }
                    () = tokio::time::sleep_until(last.into()) => last,
                }
            } else {
                self.tick().await
            };
            if waits == Waits::All || due >= last || board.is_awaited(primary, DOUBT) {
                self.latest = Instant::now();
                return due.max(entered);
            }
        }
    }

    /// Waits for [`LOOK`] at most; when that was over.
    async fn tick(&mut self) -> Instant {
        let late = match self.ticks.next().await {
            Ok(late) => late,
            Err(error) => {
                if !std::mem::replace(&mut self.is_told, true) {
                    tracing::error!(%error, "the timer of looks fails, and another one is used");
                }
                tokio::time::sleep(LOOK).await;
                Duration::ZERO
            }
        };
        let now = Instant::now();
        now.checked_sub(late).unwrap_or(now)
    }

    fn stop(&mut self) {
        if let Err(error) = self.ticks.stop() {
            tracing::warn!(%error, "the timer of looks goes on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switchboard::Instance;

    fn board() -> Switchboard {
        let instance = |app: &str| Instance {
            app: app.to_owned(),
            address: format!("/run/{app}").parse().unwrap(),
            elsewhere: None,
        };
        Switchboard::new(vec![instance("a"), instance("b")], 0, 0)
    }

    /// Looks that were due within a time while something went on.
    async fn count(board: &Switchboard, within: Duration, work: impl Future<Output = ()>) -> usize {
        let mut looks = Looks::new(Instant::now()).unwrap();
        let mut count = 0;
        let counting = async {
            loop {
                looks.due(board, 0, Waits::Requests).await;
                count += 1;
            }
        };
        tokio::select! {
            () = counting => {}
            () = work => {}
            () = tokio::time::sleep(within) => {}
        }
        count
    }

    /// A front looked at its primary every 2 ms however quick that was, and each request that came
    /// meanwhile waited.
    #[tokio::test]
    async fn who_is_answered_at_once_waits_for_no_look() {
        let board = board();
        let route = board.flights.route("tcp");
        let quick = async {
            loop {
                let ticket = board.flights.begin(0, route);
                tokio::task::yield_now().await;
                ticket.complete();
                tokio::task::yield_now().await;
            }
        };
        let time = 6 * LOOK_IDLE;
        let few = count(&board, time, quick).await;
        let long = async {
            let _ticket = board.flights.begin(0, route);
            std::future::pending::<()>().await;
        };
        let many = count(&board, time, long).await;
        // Every 2 ms is 150 times; this thread may get no CPU for a while in either.
        assert!(few <= 15, "{few} looks within {time:?}");
        assert!(many >= 20, "{many} looks within {time:?}");
    }

    #[tokio::test]
    async fn requests_that_are_held_back_have_the_primary_looked_at() {
        let mut looks = Looks::new(Instant::now()).unwrap();
        let begun = Instant::now();
        let due = looks.due(&board(), 0, Waits::All).await;
        assert!(due < begun + LOOK_IDLE, "{:?}", due - begun);
    }
}
