//! Who serves now: what every connection asks, and what the director alone changes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use forebay_core::shadow::promotion::{Epoch, Slot};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::flights::{Flights, Seen};
use crate::followers::Followers;
use crate::rest::Rest;
use crate::stream::Address;
use crate::unread::Queue;

/// One instance behind a front.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The app that it is.
    pub app: String,
    /// Where it is reached.
    pub address: Address,
    /// The host that runs it, if that is not the front's: nobody here can see or stop it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<String>,
}

/// Whether requests may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// They may.
    Open,
    /// New ones wait.
    Held,
}

/// Who serves now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routing {
    /// The epoch of the primary.
    pub epoch: Epoch,
    /// The primary.
    pub primary: Slot,
    /// Whether requests may go on.
    pub gate: Gate,
    /// The instance that stands by and is in step, if one does.
    pub standby: Option<Slot>,
    /// Who was lost, and when.
    lost: Lost,
}

/// Instances of one front.
pub const INSTANCES_MAX: usize = 16;

/// For each instance, the epoch that began when it was lost: what it was assigned before is lost.
type Lost = [Epoch; INSTANCES_MAX];

impl Routing {
    /// Of a primary that serves since an epoch, and of nobody who was lost; requests wait.
    #[must_use]
    pub const fn new(primary: Slot, epoch: Epoch) -> Self {
        Self {
            epoch,
            primary,
            gate: Gate::Held,
            standby: None,
            lost: [0; INSTANCES_MAX],
        }
    }

    /// Whether the instance was lost to which something was assigned. One that handed over goes on
    /// with what it has, whatever becomes of those that serve after it.
    #[must_use]
    pub fn is_lost(&self, assigned: Assigned) -> bool {
        let lost = self.lost.get(assigned.slot);
        lost.is_some_and(|lost| *lost > assigned.epoch)
    }

    /// An instance is lost, and an epoch begins.
    pub(crate) fn lose(&mut self, slot: Slot, epoch: Epoch) {
        if let Some(lost) = self.lost.get_mut(slot) {
            *lost = epoch;
        }
    }
}

/// Until which epoch instances were lost, by their apps.
pub(crate) type Losses = BTreeMap<String, Epoch>;

/// What a request was assigned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assigned {
    /// The instance.
    pub slot: Slot,
    /// The epoch in which it is the primary.
    pub epoch: Epoch,
}

/// Nobody could serve for as long as a request may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no instance could serve within {} ms", .0.as_millis())]
pub struct Unserved(pub Duration);

/// What is counted of requests and connections. Grows only.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Connections refused because there were too many, or because they lacked the header of the
    /// PROXY protocol, or TLS where it is spoken.
    pub refused: AtomicU64,
    /// Requests, or connections where there is nothing smaller.
    pub requests: AtomicU64,
    /// Requests that waited until it was known who serves.
    pub held: AtomicU64,
    /// Requests that were sent to a new primary again.
    pub replayed: AtomicU64,
    /// Requests that got no answer, and surely were not executed.
    pub failed: AtomicU64,
    /// Requests that got no answer, and of which nobody knows.
    pub unknown: AtomicU64,
    /// Copies of requests that the shadow was asked and whose answers were compared.
    pub mirrored: AtomicU64,
    /// Of those, answers that differ or did not come.
    pub mismatched: AtomicU64,
    /// Requests that were not copied because too many copies were under way.
    pub unmirrored: AtomicU64,
    /// Reads that the shadow answered.
    pub spread: AtomicU64,
}

/// Counts one more.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What the last primary that was stopped left unread, by the port of the other end.
#[derive(Debug, Default)]
struct Left {
    /// Its epoch.
    epoch: Epoch,
    queues: BTreeMap<u16, Option<u32>>,
}

/// The board.
#[derive(Debug)]
pub struct Switchboard {
    instances: Vec<Instance>,
    routing: watch::Sender<Routing>,
    /// Requests under way.
    pub flights: Flights,
    /// What is counted.
    pub counters: Counters,
    /// Processes before this one, which do what this board says.
    pub(crate) followers: Followers,
    /// Connections of clients that are to outlive this process.
    pub(crate) rest: Rest,
    /// Another process has taken this one's place.
    ending: AtomicBool,
    left: Mutex<Left>,
    /// Since when no instance stands by, if none does.
    alone_since: Mutex<Option<Instant>>,
    troubled: Notify,
    refused: AtomicBool,
}

impl Switchboard {
    /// A board whose primary serves since an epoch; requests wait until it is opened.
    ///
    /// # Panics
    /// With more than [`INSTANCES_MAX`] instances, which the configuration refuses.
    #[must_use]
    pub fn new(instances: Vec<Instance>, primary: Slot, epoch: Epoch) -> Self {
        assert!(
            instances.len() <= INSTANCES_MAX,
            "a front has at most {INSTANCES_MAX} instances"
        );
        let (routing, _) = watch::channel(Routing::new(primary, epoch));
        Self {
            instances,
            routing,
            flights: Flights::default(),
            counters: Counters::default(),
            followers: Followers::default(),
            rest: Rest::default(),
            ending: AtomicBool::new(false),
            left: Mutex::default(),
            alone_since: Mutex::new(Some(Instant::now())),
            troubled: Notify::new(),
            refused: AtomicBool::new(false),
        }
    }

    /// All instances.
    #[must_use]
    pub fn instances(&self) -> &[Instance] {
        &self.instances
    }

    /// The address of an instance.
    ///
    /// # Panics
    /// When there is no such instance: slots come from this board.
    #[must_use]
    pub fn address(&self, slot: Slot) -> &Address {
        &self.instances[slot].address
    }

    /// Until which epoch each instance was lost, by its app: places differ between plans.
    pub(crate) fn losses(&self, routing: &Routing) -> Losses {
        let instances = self.instances.iter().zip(routing.lost);
        let lost = instances.filter(|(_, epoch)| *epoch > 0);
        lost.map(|(instance, epoch)| (instance.app.clone(), epoch))
            .collect()
    }

    /// Takes over what another process knows of that.
    pub(crate) fn take_losses(&self, routing: &mut Routing, losses: &Losses) {
        for (slot, instance) in self.instances.iter().enumerate() {
            let epoch = losses.get(&instance.app).copied().unwrap_or_default();
            routing.lose(slot, epoch);
        }
    }

    /// Who serves now.
    #[must_use]
    pub fn routing(&self) -> Routing {
        *self.routing.borrow()
    }

    /// The primary, once requests may go on.
    ///
    /// # Errors
    /// When they may not for as long as they can wait.
    pub async fn assigned(&self, patience: Duration) -> Result<Assigned, Unserved> {
        let routing = self.routing();
        if routing.gate == Gate::Open {
            return Ok(assigned(&routing));
        }
        count(&self.counters.held);
        let mut changes = self.routing.subscribe();
        let opened = changes.wait_for(|routing| routing.gate == Gate::Open);
        match tokio::time::timeout(patience, opened).await {
            Ok(Ok(routing)) => Ok(assigned(&routing)),
            Ok(Err(_)) | Err(_) => Err(Unserved(patience)),
        }
    }

    /// Waits until somebody else is the primary than in this assignment.
    pub async fn replaced(&self, before: Assigned) {
        let mut changes = self.routing.subscribe();
        // The sender is part of this board, so there always is one.
        changes
            .wait_for(|routing| routing.epoch != before.epoch)
            .await
            .ok();
    }

    /// Somebody else is the primary by now.
    #[must_use]
    pub fn is_replaced(&self, before: Assigned) -> bool {
        self.routing.borrow().epoch != before.epoch
    }

    /// Bytes that the primary of an epoch left unread on a connection from this port of ours, when
    /// it was stopped for good. None where that is not known for certain.
    #[must_use]
    pub fn unread(&self, epoch: Epoch, port: u16) -> Option<u32> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let queues = left.queues.get(&port).filter(|_| left.epoch == epoch);
        queues.copied().flatten()
    }

    /// Notes what the primary of an epoch, which stands, left unread.
    pub(crate) fn leave(&self, epoch: Epoch, queues: &[Queue]) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.epoch = epoch;
        left.queues.clear();
        for queue in queues {
            let Some(peer) = queue.peer else { continue };
            // Two hosts may have a connection from the same port: then this says nothing.
            let length = if left.queues.contains_key(&peer) {
                None
            } else {
                Some(queue.length)
            };
            left.queues.insert(peer, length);
        }
    }

    /// Follows changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Routing> {
        self.routing.subscribe()
    }

    /// A connection to an instance was refused: the director had better look at once. Of one whose
    /// process is not known, this says that nobody listens.
    pub fn trouble(&self) {
        self.refused.store(true, Ordering::Relaxed);
        self.troubled.notify_one();
    }

    /// A connection to an instance ended, which a well one may do: a look does no harm.
    pub fn glance(&self) {
        self.troubled.notify_one();
    }

    /// Waits until a look is due; whether an instance refused a connection.
    pub(crate) async fn troubled(&self) -> bool {
        self.troubled.notified().await;
        self.refused.swap(false, Ordering::Relaxed)
    }

    /// Since when no instance stands by that is in step; none when one does.
    #[must_use]
    pub fn alone_since(&self) -> Option<Instant> {
        let since = self.alone_since.lock();
        *since.unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Routing)) {
        self.routing.send_modify(|routing| {
            change(routing);
            // Whoever reads the routing reads the number that belongs to it.
            self.followers.changes();
            let since = self.alone_since.lock();
            let mut since = since.unwrap_or_else(PoisonError::into_inner);
            *since = match (routing.standby, *since) {
                (Some(_), _) => None,
                (None, since) => since.or_else(|| Some(Instant::now())),
            };
        });
    }

    /// Requests that an instance has not answered to the end, of clients of all processes.
    pub(crate) fn under_way(&self, slot: Slot) -> usize {
        let app = self.instances.get(slot).map(|instance| &instance.app);
        let elsewhere = app.map_or(0, |app| self.followers.count(app));
        self.flights.count(slot) + elsewhere
    }

    /// Looks at the requests to the primary, of clients of all processes. What came of answers is known
    /// of this one's alone.
    pub(crate) fn look(&self, primary: Slot, grace: Duration) -> Seen {
        let here = self.flights.look(primary, grace);
        let all = here.waiting.into_iter().chain(self.followers.waiting());
        let waiting = all.min_by_key(|waiting| waiting.suspicion(here.grace));
        Seen { waiting, ..here }
    }

    /// Whether a request to the primary, of clients of all processes, has waited for so long.
    pub(crate) fn is_awaited(&self, primary: Slot, long: Duration) -> bool {
        let elsewhere = self.followers.waiting().map(|waiting| waiting.time);
        let longest = self.flights.longest(primary).max(elsewhere);
        longest.is_some_and(|time| time >= long)
    }

    /// Another process has taken this one's place: connections end where that harms nobody.
    pub(crate) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Whether connections had better end where that harms nobody.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }
}

fn assigned(routing: &Routing) -> Assigned {
    Assigned {
        slot: routing.primary,
        epoch: routing.epoch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Switchboard {
        let instance = |app: &str| Instance {
            app: app.to_owned(),
            address: format!("/run/{app}").parse().unwrap(),
            elsewhere: None,
        };
        Switchboard::new(vec![instance("a"), instance("b")], 0, 3)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_the_gate_and_no_longer_than_it_may() {
        let board = board();
        let patience = Duration::from_millis(50);
        assert_eq!(board.assigned(patience).await, Err(Unserved(patience)));
        let (assigned, ()) = tokio::join!(board.assigned(patience), async {
            board.change(|routing| routing.gate = Gate::Open);
        });
        assert_eq!(assigned, Ok(Assigned { slot: 0, epoch: 3 }));
        assert_eq!(board.counters.held.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn what_was_left_unread_counts_for_its_epoch_and_for_one_connection() {
        let board = board();
        let queue = |peer, length| Queue::new(peer, length);
        board.leave(
            3,
            &[
                queue(None, 2),
                queue(Some(7), 5),
                queue(Some(8), 6),
                queue(Some(8), 0),
            ],
        );
        assert_eq!(board.unread(3, 7), Some(5));
        assert_eq!(board.unread(4, 7), None, "another epoch");
        assert_eq!(board.unread(3, 8), None, "nobody knows which");
        assert_eq!(board.unread(3, 9), None);
        board.leave(4, &[]);
        assert_eq!(board.unread(3, 7), None);
    }

    #[test]
    fn each_absence_of_a_shadow_has_a_beginning_of_its_own() {
        let board = board();
        let first = board.alone_since().unwrap();
        board.change(|routing| routing.gate = Gate::Open);
        assert_eq!(board.alone_since(), Some(first));
        board.change(|routing| routing.standby = Some(1));
        assert_eq!(board.alone_since(), None);
        board.change(|routing| routing.standby = None);
        assert!(board.alone_since().unwrap() > first);
    }

    #[tokio::test]
    async fn a_connection_that_ended_is_no_refusal() {
        let board = board();
        board.glance();
        assert!(!board.troubled().await);
        board.trouble();
        board.glance();
        assert!(board.troubled().await);
        board.glance();
        assert!(!board.troubled().await);
    }

    /// After a hand-over from a to b, the loss of b cut what still went through a.
    #[test]
    fn who_handed_over_goes_on_when_the_next_one_is_lost() {
        let mut routing = Routing::new(0, 3);
        let on = |slot, epoch| Assigned { slot, epoch };
        (routing.primary, routing.epoch) = (1, 4);
        routing.lose(1, 5);
        (routing.primary, routing.epoch) = (0, 5);
        assert!(!routing.is_lost(on(0, 3)), "it handed over");
        assert!(routing.is_lost(on(1, 4)));
        assert!(!routing.is_lost(on(0, 5)), "it serves now");
        routing.lose(0, 6);
        assert!(routing.is_lost(on(0, 3)) && routing.is_lost(on(0, 5)));
        assert!(!routing.is_lost(on(1, 6)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_assignment_is_replaced_by_an_epoch() {
        let board = board();
        let before = Assigned { slot: 0, epoch: 3 };
        assert!(!board.is_replaced(before));
        tokio::join!(board.replaced(before), async {
            board.change(|routing| routing.standby = Some(1));
            tokio::task::yield_now().await;
            assert!(!board.is_replaced(before));
            board.change(|routing| {
                routing.epoch = 4;
                routing.primary = 1;
            });
        });
        assert!(board.is_replaced(before));
    }
}
