//! Clients that count, while primaries are lost.
//!
//! Every client increments a key of its own. What it was told is a history that can be checked: an
//! acknowledged increment that is missing later was lost, and one that counts more than what was
//! acknowledged or is in doubt was executed twice.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::harness::{BOUND, Client, Front, Reply};

/// Clients at the same time.
pub(crate) const CLIENTS: usize = 64;
/// How often each of them asks.
const PACE: Duration = Duration::from_millis(10);

/// What all clients saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) acknowledged: u64,
    pub(crate) in_doubt: u64,
    pub(crate) refused: u64,
    pub(crate) lost: u64,
    pub(crate) twice: u64,
    pub(crate) dropped: Vec<String>,
    /// For every client, how often it was served, and the longest that one lately took to be served,
    /// from when it first asked, with all that it was told in between.
    served: Vec<u64>,
    gap: Duration,
}

/// The load.
#[derive(Debug)]
pub(crate) struct Load {
    seen: Arc<Mutex<Seen>>,
    stop: watch::Sender<bool>,
    progress: watch::Receiver<u64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    pub(crate) async fn start(front: &Front) -> Self {
        let seen = Seen {
            served: vec![0; CLIENTS],
            ..Seen::default()
        };
        let seen = Arc::new(Mutex::new(seen));
        let (stop, stopped) = watch::channel(false);
        let (told, progress) = watch::channel(0);
        let mut tasks = Vec::new();
        for number in 0..CLIENTS {
            let client = front.client().await;
            let work = Work {
                number,
                seen: Arc::clone(&seen),
                stopped: stopped.clone(),
                told: told.clone(),
            };
            tasks.push(tokio::spawn(work.run(client)));
        }
        Self {
            seen,
            stop,
            progress,
            tasks,
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Waits for so many answers.
    pub(crate) async fn answers(&mut self, count: u64) {
        let from = *self.progress.borrow();
        let enough = self.progress.wait_for(|answers| *answers >= from + count);
        tokio::time::timeout(BOUND, enough)
            .await
            .expect("answers")
            .unwrap();
    }

    /// Begins to look for the longest gap.
    pub(crate) fn measure(&self) {
        self.seen.lock().unwrap().gap = Duration::ZERO;
    }

    /// Waits until every client was served twice more; the longest that any of them waited since
    /// [`Self::measure`].
    pub(crate) async fn gap(&mut self) -> Duration {
        let before = self.seen().served;
        let all = |seen: &Seen| {
            seen.served
                .iter()
                .zip(&before)
                .all(|(now, then)| *now >= then + 2)
        };
        let deadline = Instant::now() + BOUND;
        loop {
            let seen = self.seen();
            if all(&seen) {
                return seen.gap;
            }
            assert!(
                Instant::now() < deadline,
                "some clients are not served: {seen:?}"
            );
            self.progress.changed().await.unwrap();
        }
    }

    pub(crate) async fn end(self) -> Seen {
        self.stop.send_replace(true);
        for task in self.tasks {
            task.await.unwrap();
        }
        let seen = self.seen.lock().unwrap();
        seen.clone()
    }
}

struct Work {
    number: usize,
    seen: Arc<Mutex<Seen>>,
    stopped: watch::Receiver<bool>,
    told: watch::Sender<u64>,
}

impl Work {
    async fn run(mut self, mut client: Client) {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let command = format!("INCR key-{}", self.number);
        let (mut value, mut doubts, mut began) = (0, 0, None);
        while !*self.stopped.borrow_and_update() {
            if doubts == 0 {
                pace.tick().await;
            }
            let began_at = *began.get_or_insert_with(Instant::now);
            let reply = client.try_ask(&command).await;
            let mut seen = self.seen.lock().unwrap();
            match reply {
                Ok(Reply::Number(now)) => {
                    seen.acknowledged += 1;
                    seen.served[self.number] += 1;
                    seen.lost += u64::try_from(value + 1 - now).unwrap_or(0);
                    seen.twice += u64::try_from(now - (value + 1 + doubts)).unwrap_or(0);
                    seen.gap = seen.gap.max(began_at.elapsed());
                    (value, doubts, began) = (now, 0, None);
                }
                Ok(Reply::Error(error)) if error.starts_with("INDOUBT") => {
                    doubts += 1;
                    seen.in_doubt += 1;
                }
                Ok(Reply::Error(error)) => {
                    assert!(
                        error.starts_with("NOREPLICAS") || error.starts_with("TRYAGAIN"),
                        "{error}"
                    );
                    seen.refused += 1;
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => {
                    seen.dropped.push(error.to_string());
                    return;
                }
            }
            drop(seen);
            self.told.send_modify(|answers| *answers += 1);
        }
    }
}

/// Times that something took, in order.
#[derive(Debug, Default)]
pub(crate) struct Times(pub(crate) Vec<Duration>);

impl Times {
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let mut times = self.0.clone();
        times.sort();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in a list"
        )]
        let place = (times.len() as f64 * share).ceil() as usize;
        times[place.clamp(1, times.len()) - 1]
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("not measured");
        }
        write!(
            f,
            "p50 {:?}, p90 {:?}, p99 {:?}, longest {:?} of {}",
            self.quantile(0.5),
            self.quantile(0.9),
            self.quantile(0.99),
            self.quantile(1.0),
            self.0.len()
        )
    }
}
