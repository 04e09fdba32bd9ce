//! Clients that write what nobody else writes, while primaries are lost.
//!
//! Every client appends tokens to lists of its own, each token once. What it was told is a history
//! that can be checked: a token that was acknowledged is there exactly once, one that is in doubt at
//! most once, and one that was said not to be executed not at all. A counter would not do: one that
//! lost an increment and counted another twice looks right.
//!
//! A list is checked when the next one is full, and then given up, so that a long run copies no more
//! to a new shadow than a short one.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::harness::{BOUND, Client, Front, Reply};

/// Clients at the same time.
pub(crate) const CLIENTS: usize = 64;
/// How often each of them asks.
const PACE: Duration = Duration::from_millis(10);
/// Tokens of one list.
const LIST_TOKENS: usize = 200;

/// What all clients saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) acknowledged: u64,
    pub(crate) in_doubt: u64,
    pub(crate) refused: u64,
    /// Acknowledged tokens that are not there.
    pub(crate) lost: u64,
    /// Tokens that are there more than once.
    pub(crate) twice: u64,
    /// Tokens that are there though their client was told that they are not, or asked for nothing
    /// like them.
    pub(crate) denied: u64,
    /// Lists that are there though an acknowledged command removed them.
    pub(crate) revived: u64,
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

/// What a client was told of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Acknowledged,
    Doubted,
    Refused,
}

struct Work {
    number: usize,
    seen: Arc<Mutex<Seen>>,
    stopped: watch::Receiver<bool>,
    told: watch::Sender<u64>,
}

impl Work {
    async fn run(self, mut client: Client) {
        if let Err(error) = self.write(&mut client).await {
            self.seen().dropped.push(error.to_string());
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    async fn write(&self, client: &mut Client) -> io::Result<()> {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut list, mut token, mut began) = (0_u64, 0_u64, None);
        let mut before = BTreeMap::new();
        let mut history = BTreeMap::new();
        while !*self.stopped.borrow() {
            // One that is in doubt is followed at once; one that was refused is not pressed.
            if history.last_key_value().map(|(_, told)| *told) != Some(Told::Doubted) {
                pace.tick().await;
            }
            let began_at = *began.get_or_insert_with(Instant::now);
            token += 1;
            let append = format!("RPUSH {} {token}", self.list(list));
            let told = told(client.try_ask(&append).await?);
            history.insert(token, told);
            {
                let mut seen = self.seen();
                match told {
                    Told::Acknowledged => {
                        seen.acknowledged += 1;
                        seen.served[self.number] += 1;
                        seen.gap = seen.gap.max(began_at.elapsed());
                        began = None;
                    }
                    Told::Doubted => seen.in_doubt += 1,
                    Told::Refused => seen.refused += 1,
                }
            }
            self.told.send_modify(|answers| *answers += 1);
            // What this took is no gap: it is not measured between two tokens.
            if history.len() >= LIST_TOKENS && began.is_none() {
                if list > 0 {
                    self.check(client, list - 1, &before).await?;
                    self.remove(client, list - 1).await?;
                }
                before = std::mem::take(&mut history);
                list += 1;
            }
        }
        if list > 0 {
            self.check(client, list - 1, &before).await?;
        }
        self.check(client, list, &history).await?;
        self.look_for_revived(client, list).await
    }

    fn list(&self, number: u64) -> String {
        format!("list-{}-{number}", self.number)
    }

    /// Compares a list with what the client was told of its tokens.
    async fn check(
        &self,
        client: &mut Client,
        list: u64,
        history: &BTreeMap<u64, Told>,
    ) -> io::Result<()> {
        let read = format!("LRANGE {} 0 -1", self.list(list));
        let Reply::Many(found) = persist(client, &read).await? else {
            panic!("{read}: no list");
        };
        let mut there: BTreeMap<u64, u64> = BTreeMap::new();
        for token in found {
            let Reply::Text(token) = token else {
                panic!("{read}: {token:?}");
            };
            *there.entry(token.parse().unwrap()).or_default() += 1;
        }
        let mut seen = self.seen();
        for (token, times) in &there {
            seen.twice += times - 1;
            seen.denied += u64::from(!matches!(
                history.get(token),
                Some(Told::Acknowledged | Told::Doubted)
            ));
        }
        let acknowledged = history
            .iter()
            .filter(|(_, told)| **told == Told::Acknowledged);
        let lost = acknowledged.filter(|(token, _)| !there.contains_key(token));
        seen.lost += lost.count() as u64;
        Ok(())
    }

    async fn remove(&self, client: &mut Client, list: u64) -> io::Result<()> {
        let remove = format!("UNLINK {}", self.list(list));
        let removed = persist(client, &remove).await?;
        assert!(matches!(removed, Reply::Number(_)), "{remove}: {removed:?}");
        Ok(())
    }

    async fn look_for_revived(&self, client: &mut Client, list: u64) -> io::Result<()> {
        for old in 0..list.saturating_sub(1) {
            let ask = format!("EXISTS {}", self.list(old));
            let there = persist(client, &ask).await?;
            self.seen().revived += u64::from(there != Reply::Number(0));
        }
        Ok(())
    }
}

/// What a reply says of a token.
fn told(reply: Reply) -> Told {
    match reply {
        Reply::Number(_) => Told::Acknowledged,
        Reply::Error(error) if error.starts_with("INDOUBT") => Told::Doubted,
        Reply::Error(error) => {
            let known = error.starts_with("NOREPLICAS") || error.starts_with("TRYAGAIN");
            assert!(known, "{error}");
            Told::Refused
        }
        other => panic!("{other:?}"),
    }
}

/// Asks until there is an answer: for what may be executed more than once.
async fn persist(client: &mut Client, ask: &str) -> io::Result<Reply> {
    let deadline = Instant::now() + BOUND;
    loop {
        let reply = client.try_ask(ask).await?;
        if !matches!(&reply, Reply::Error(_)) {
            return Ok(reply);
        }
        told(reply);
        assert!(Instant::now() < deadline, "{ask}: no answer");
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
