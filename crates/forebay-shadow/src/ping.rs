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
/// One that failed sooner had an answer that was no good, or was refused; later, it was given up.
const GIVEN_UP_MIN: Duration = Duration::from_secs(1);
/// Those that were given up are counted together while the next look is no later than this: clients that
/// gave up come again.
const SERIES_PAUSE: Duration = Duration::from_secs(60);

/// The pings of one front, one at a time.
#[derive(Debug, Default)]
pub(crate) struct Ping {
    out: Option<(Slot, Instant, JoinHandle<()>)>,
    /// What the slowest that was answered took lately, in milliseconds; it fades with each that is
    /// faster.
    usual: Arc<AtomicU64>,
    /// For how many milliseconds those were out that were given up, since one was answered.
    in_vain: Arc<AtomicU64>,
    looked: Option<Instant>,
}

/// What became of pings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Silence {
    /// For how long one has been out that should have been answered.
    pub(crate) out: Option<Duration>,
    /// For how long those were out, in all, that were given up since one was answered.
    pub(crate) in_vain: Duration,
}

impl Ping {
    /// What became of the pings of an instance; sends one where none is out.
    ///
    /// One that was sent when the primary was silent before, and is still out, counts as well.
    pub(crate) fn look(
        &mut self,
        board: &Arc<Switchboard>,
        synchroniser: &Arc<dyn Synchroniser>,
        slot: Slot,
        now: Instant,
    ) -> Silence {
        let is_other = self.out.as_ref().is_some_and(|(of, ..)| *of != slot);
        let before = self.looked.replace(now);
        let pause = before.map(|before| now.saturating_duration_since(before));
        if is_other || pause.is_some_and(|pause| pause > SERIES_PAUSE) {
            // What is still out counts in its own series.
            self.in_vain = Arc::default();
        }
        Silence {
            out: self.out(board, synchroniser, slot, now),
            in_vain: Duration::from_millis(self.in_vain.load(Ordering::Relaxed)),
        }
    }

    fn out(
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
        let in_vain = Arc::clone(&self.in_vain);
        let task = tokio::spawn(async move {
            let Some(instance) = board.instances().get(slot) else {
                return;
            };
            let began = tokio::time::Instant::now();
            let answer = synchroniser.ping(instance).await;
            let time = began.elapsed();
            let took = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            if answer.is_err() && time >= GIVEN_UP_MIN {
                in_vain.fetch_add(took, Ordering::Relaxed);
            } else {
                in_vain.store(0, Ordering::Relaxed);
            }
            match answer {
                Ok(()) => {
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
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::switchboard::Instance;
    use crate::synchronise::{Pending, Standing};

    /// Answers pings of the first instance; those of a third are given up after a second and a half, or
    /// refused.
    #[derive(Debug, Default)]
    struct First {
        refuses: AtomicBool,
    }

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
                if self.refuses.load(Ordering::Relaxed) {
                    return Err("refused".to_owned());
                }
                if instance.app == "c" {
                    tokio::time::sleep(Duration::from_millis(1500)).await;
                    return Err("no answer".to_owned());
                }
                std::future::pending().await
            })
        }
    }

    fn board() -> Arc<Switchboard> {
        let instance = |app: &str| Instance {
            app: app.to_owned(),
            address: format!("/run/{app}").parse().unwrap(),
            elsewhere: None,
        };
        let instances = vec![instance("a"), instance("b"), instance("c")];
        Arc::new(Switchboard::new(instances, 0, 0))
    }

    /// What was in vain after a ping more, that is out until it is given up.
    async fn in_vain(ping: &mut Ping, first: &Arc<First>, slot: Slot, now: Instant) -> Duration {
        let synchroniser: Arc<dyn Synchroniser> = Arc::<First>::clone(first);
        let board = board();
        ping.look(&board, &synchroniser, slot, now);
        let (_, _, task) = ping.out.as_mut().unwrap();
        task.await.unwrap();
        // Too soon for another one.
        let silence = ping.look(&board, &synchroniser, slot, now);
        assert_eq!(silence.out, None);
        silence.in_vain
    }

    /// No ping is out for longer than an answer may take: only all of them tell that it never came.
    #[tokio::test(start_paused = true)]
    async fn pings_in_vain_are_counted_together() {
        let first = Arc::new(First::default());
        let mut ping = Ping::default();
        let ms = Duration::from_millis;
        let mut now = Instant::now();
        for count in 1..4 {
            now += ms(1500);
            let sum = in_vain(&mut ping, &first, 2, now).await;
            assert!(sum >= ms(1500) * count && sum < ms(1600) * count, "{sum:?}");
        }
        now += SERIES_PAUSE;
        let sum = in_vain(&mut ping, &first, 2, now).await;
        assert!(sum >= ms(6000), "clients come again: {sum:?}");
        now += SERIES_PAUSE + ms(1);
        let sum = in_vain(&mut ping, &first, 2, now).await;
        assert!(sum < ms(1600), "that was long ago: {sum:?}");
        first.refuses.store(true, Ordering::Relaxed);
        now += ms(1500);
        let sum = in_vain(&mut ping, &first, 2, now).await;
        assert_eq!(sum, Duration::ZERO, "it was refused, which is an answer");
        first.refuses.store(false, Ordering::Relaxed);
        now += ms(1500);
        assert!(in_vain(&mut ping, &first, 2, now).await >= ms(1500));
        now += ms(1500);
        let sum = in_vain(&mut ping, &first, 0, now).await;
        assert_eq!(sum, Duration::ZERO, "another one is asked");
    }

    #[tokio::test]
    async fn only_a_ping_that_is_out_for_long_speaks_for_a_loss() {
        let board = board();
        let synchroniser: Arc<dyn Synchroniser> = Arc::new(First::default());
        let mut ping = Ping::default();
        let began = Instant::now();
        let mut look = |slot, ms| {
            let now = began + Duration::from_millis(ms);
            ping.look(&board, &synchroniser, slot, now).out
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
