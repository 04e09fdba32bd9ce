//! A ping that a silent primary is asked to answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay_core::shadow::promotion::Slot;
use tokio::task::JoinHandle;

use crate::switchboard::Switchboard;
use crate::synchronise::Synchroniser;

/// A ping that is out for less says nothing: a machine under load answers late.
const LATE_MIN: Duration = Duration::from_millis(100);
/// Lateness is measured in multiples of what pings took lately.
const LATE_FACTOR: u32 = 4;
/// How soon after one ping another is sent.
const PAUSE: Duration = Duration::from_millis(20);

/// The pings of one front, one at a time.
#[derive(Debug, Default)]
pub(crate) struct Ping {
    out: Option<(Slot, Instant, JoinHandle<()>)>,
    /// What the slowest that was answered took lately, in milliseconds; it fades with each that is
    /// faster.
    usual: Arc<AtomicU64>,
}

impl Ping {
    /// For how long a ping has been out that should have been answered; sends one where none is.
    ///
    /// One that was sent when the primary was silent before, and is still out, counts as well.
    pub(crate) fn out(
        &mut self,
        board: &Arc<Switchboard>,
        synchroniser: &Arc<dyn Synchroniser>,
        slot: Slot,
        now: Instant,
    ) -> Option<Duration> {
        if let Some((_, since, task)) = self.out.as_ref().filter(|(of, ..)| *of == slot) {
            let time = now.saturating_duration_since(*since);
            if !task.is_finished() {
                let usual = Duration::from_millis(self.usual.load(Ordering::Relaxed));
                let late = LATE_MIN.max(usual.saturating_mul(LATE_FACTOR));
                return (time >= late).then_some(time);
            }
            if time < PAUSE {
                return None;
            }
        }
        let (board, synchroniser) = (Arc::clone(board), Arc::clone(synchroniser));
        let usual = Arc::clone(&self.usual);
        let task = tokio::spawn(async move {
            let Some(instance) = board.instances().get(slot) else {
                return;
            };
            let began = Instant::now();
            match synchroniser.ping(instance).await {
                Ok(()) => {
                    let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    let before = usual.load(Ordering::Relaxed);
                    usual.store(took.max(before - before / 8), Ordering::Relaxed);
                }
                Err(why) => {
                    tracing::debug!(app = instance.app, why, "a ping was not answered");
                }
            }
        });
        self.out = Some((slot, now, task));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switchboard::Instance;
    use crate::synchronise::{Pending, Standing};

    /// Answers pings of the first instance only.
    #[derive(Debug)]
    struct First;

    impl Synchroniser for First {
        fn promote<'a>(&'a self, _: &'a Instance) -> Pending<'a, Result<(), String>> {
            Box::pin(async { Ok(()) })
        }

        fn follow<'a>(
            &'a self,
            _: &'a Instance,
            _: &'a Instance,
        ) -> Pending<'a, Result<(), String>> {
            Box::pin(async { Ok(()) })
        }

        fn standing<'a>(&'a self, _: &'a Instance, _: &'a Instance) -> Pending<'a, Standing> {
            Box::pin(async { Standing::Ready { lag: None } })
        }

        fn ping<'a>(&'a self, instance: &'a Instance) -> Pending<'a, Result<(), String>> {
            Box::pin(async {
                if instance.app == "a" {
                    return Ok(());
                }
                std::future::pending().await
            })
        }
    }

    #[tokio::test]
    async fn only_a_ping_that_is_out_for_long_speaks_for_a_loss() {
        let instance = |app: &str| Instance {
            app: app.to_owned(),
            address: format!("/run/{app}").parse().unwrap(),
            elsewhere: None,
        };
        let board = Switchboard::new(vec![instance("a"), instance("b")], 0, 0);
        let board = Arc::new(board);
        let synchroniser: Arc<dyn Synchroniser> = Arc::new(First);
        let mut ping = Ping::default();
        let began = Instant::now();
        let mut look = |slot, ms| {
            ping.out(
                &board,
                &synchroniser,
                slot,
                began + Duration::from_millis(ms),
            )
        };
        assert_eq!(look(0, 0), None);
        tokio::task::yield_now().await;
        assert_eq!(look(0, 500), None, "it was answered");
        // One of another instance says nothing of this one.
        assert_eq!(look(1, 500), None);
        tokio::task::yield_now().await;
        assert_eq!(look(1, 599), None);
        assert_eq!(look(1, 600), Some(Duration::from_millis(100)));
        assert_eq!(look(0, 700), None);
    }
}
