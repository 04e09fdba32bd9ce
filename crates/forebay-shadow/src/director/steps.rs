//! Carrying out one step of a promotion.

use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_core::shadow::promotion::{Cause, Epoch, Input, Slot, Step};
use tokio::sync::mpsc;

use super::{Director, Note};
use crate::epoch::Record;
use crate::fence::Fence;
use crate::member::{self, FENCE_POLL, Member};
use crate::status::Left;
use crate::stream::Address;
use crate::switchboard::Gate;
use crate::synchronise::Standing;
use crate::unread;

/// How long requests to a primary that is to hand over may take.
const SETTLE_BOUND: Duration = Duration::from_secs(1);
/// How long a shadow may take to take over.
const PROMOTE_BOUND: Duration = Duration::from_secs(10);

/// What a record has to outlive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// This process.
    Process,
    /// The host, cut off from power.
    Host,
}

impl Director {
    pub(super) async fn carry_out(&mut self, step: Step) -> Option<Input> {
        let began = Instant::now();
        let outcome = match step {
            Step::Hold => {
                self.board.change(|routing| routing.gate = Gate::Held);
                // Nobody sends anything to anybody from here on.
                self.board.followers.heard().await;
                return None;
            }
            Step::Release => {
                self.board.change(|routing| routing.gate = Gate::Open);
                return None;
            }
            Step::Unfence(slot) => {
                self.unfence(slot);
                return None;
            }
            Step::Kill(slot) => {
                self.kill(slot);
                return None;
            }
            Step::Drain(slot) => {
                self.follow(slot, None);
                return None;
            }
            Step::Fence(slot) => self.fence(slot).await,
            Step::Settle(slot) => self.settle(slot).await,
            Step::Promote(slot, epoch) => self.promote(slot, epoch).await,
            Step::Replay(slot) => {
                let epoch = self.machine.epoch();
                let old = self.machine.primary();
                let is_lost = self.machine.cause() != Some(Cause::Planned);
                self.board.change(|routing| {
                    routing.epoch = epoch;
                    routing.primary = slot;
                    routing.standby = None;
                    if is_lost {
                        routing.lose(old, epoch);
                    }
                });
                // Whoever was in step was so with another primary, or was the primary itself.
                self.standings.fill(Standing::Away(
                    "it was not asked since the primary changed".to_owned(),
                ));
                // Those that were interrupted come before those that wait.
                tokio::task::yield_now().await;
                Ok(())
            }
        };
        if let Some(running) = &mut self.running {
            running.took(step, began.elapsed());
        }
        Some(match outcome {
            Ok(()) => Input::Done,
            Err(why) => {
                tracing::error!(?step, why, "a step of a promotion failed");
                if let Some(running) = &mut self.running {
                    running.trouble.push(why);
                }
                Input::Refused
            }
        })
    }

    /// Why an instance can neither be stopped from here nor be replaced while it goes on.
    fn out_of_reach(&self, slot: Slot) -> Option<String> {
        let host = self.board.instances().get(slot)?.elsewhere.as_ref()?;
        // What has no state of its own may go on there: nobody is sent to it any more.
        self.synchroniser.is_exclusive().then(|| {
            format!(
                "stop {}: it runs on {host}, and nobody here can stop it or see that it ended; end it \
                 there, or hand over once it answers",
                self.name(slot)
            )
        })
    }

    /// Stops the old primary and keeps the next epoch at the same time.
    async fn fence(&mut self, slot: Slot) -> Result<(), String> {
        // Before a record names another one: whoever begins anew would believe it.
        if let Some(why) = self.out_of_reach(slot) {
            return Err(why);
        }
        let next = self.machine.next();
        let record = next.map(|(to, epoch)| self.record(to, epoch));
        let stood = self.stand(slot);
        let Some(record) = record else {
            return stood.await;
        };
        let kept = self.keep(record.clone(), self.durability(record.epoch));
        let (stood, kept) = tokio::join!(stood, kept);
        if let Err(why) = kept {
            // It may have been written and not be durable: whoever begins anew must not take for
            // the primary what did not become it.
            self.stay(slot, record.epoch).await?;
            return Err(why);
        }
        if let Err(why) = stood {
            // Whoever begins anew must not take for the primary what did not become it.
            self.stay(slot, record.epoch).await?;
            return Err(why);
        }
        self.kept = Some(record);
        self.note_unread(slot);
        Ok(())
    }

    fn record(&self, primary: Slot, epoch: Epoch) -> Record {
        Record {
            epoch,
            primary: self.name(primary).to_owned(),
            reserved: self.reserved.max(epoch),
        }
    }

    /// How well the record of a promotion has to be kept before anybody is promoted: see [`crate::epoch`].
    pub(super) fn durability(&self, epoch: Epoch) -> Durability {
        if epoch <= self.reserved && !self.synchroniser.is_exclusive() {
            Durability::Process
        } else {
            Durability::Host
        }
    }

    /// Keeps, while all is calm, that the next epoch may be used, for a promotion that then need not wait
    /// for the disk.
    pub(super) async fn reserve(&mut self) {
        let epoch = self.machine.epoch();
        let next = epoch + 1;
        if self.reserving >= next || self.synchroniser.is_exclusive() {
            return;
        }
        let record = Record {
            reserved: next,
            ..self.record(self.machine.primary(), epoch)
        };
        // Written here, so that no later record is written before it.
        if let Err(why) = self.keep(record.clone(), Durability::Process).await {
            tracing::warn!(why, "the next promotion has to wait for the disk");
            return;
        }
        self.kept = Some(record);
        self.reserving = next;
        let (epochs, notes) = (Arc::clone(&self.epochs), self.notes.clone());
        tokio::spawn(async move {
            let synced = tokio::task::spawn_blocking(move || epochs.sync()).await;
            let failed = match synced {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            // The director may have ended.
            notes.send(Note::Reserved { next, failed }).await.ok();
        });
    }

    /// Keeps, as well as the record that it takes the place of, that an epoch that was begun is the old
    /// primary's: whoever begins anew must not take for the primary what did not become it. Requests wait
    /// meanwhile.
    async fn stay(&mut self, slot: Slot, epoch: Epoch) -> Result<(), String> {
        let still = self.record(slot, epoch);
        self.keep(still.clone(), self.durability(epoch)).await?;
        self.kept = Some(still);
        Ok(())
    }

    /// Notes what a primary that stands leaves unread: nobody has executed that, nor ever will. One
    /// without a fence may have processes that are not known here, and those may read on.
    fn note_unread(&self, slot: Slot) {
        let fenced = self
            .member(slot)
            .is_some_and(|member| member.fence.is_some());
        let queues = match self.board.address(slot) {
            Address::Tcp(address) if fenced => unread::queues(*address),
            Address::Tcp(_) | Address::Unix(_) => Ok(Vec::new()),
        };
        match queues {
            Ok(queues) => self.board.leave(self.machine.epoch(), &queues),
            Err(error) => tracing::warn!(%error, "unread bytes cannot be seen"),
        }
    }

    fn keep(
        &self,
        record: Record,
        durability: Durability,
    ) -> impl Future<Output = Result<(), String>> + use<> {
        let epochs = Arc::clone(&self.epochs);
        async move {
            let path = epochs.path().display().to_string();
            let epoch = record.epoch;
            let kept = tokio::task::spawn_blocking(move || {
                epochs.write(&record)?;
                match durability {
                    Durability::Process => Ok(()),
                    Durability::Host => epochs.sync(),
                }
            });
            match kept.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(format!("write epoch {epoch} to {path}: {error}")),
                Err(error) => Err(format!("write epoch {epoch} to {path}: {error}")),
            }
        }
    }

    fn stand(&self, slot: Slot) -> impl Future<Output = Result<(), String>> + use<> {
        let member = self.member(slot);
        let instance = self.board.instances().get(slot);
        let elsewhere = instance.is_some_and(|instance| instance.elsewhere.is_some());
        let stopping = member::stop(
            self.name(slot).to_owned(),
            member.and_then(|member| member.fence.clone()),
            member.map(Member::life),
            self.machine.cause(),
        );
        // It has no state of its own: see `out_of_reach`.
        async move { if elsewhere { Ok(()) } else { stopping.await } }
    }

    fn unfence(&self, slot: Slot) {
        let fence = self.member(slot).and_then(|member| member.fence.as_ref());
        if let Some(Err(error)) = fence.map(|fence| fence.thaw()) {
            tracing::error!(app = self.name(slot), %error, "thaw");
        }
    }

    /// Ends the old primary; its group is let go once nobody is left in it.
    pub(super) fn kill(&mut self, slot: Slot) {
        let name = self.name(slot).to_owned();
        let Some(member) = self.members.get_mut(slot).and_then(Option::take) else {
            return;
        };
        self.begin_life(slot, "it was fenced and ended");
        if let Some(fence) = member.fence {
            self.end(name, member.pid, fence);
        }
    }

    /// Ends everybody behind a fence, beside this task.
    pub(super) fn end(&self, app: String, pid: u32, fence: Arc<Fence>) {
        let notes = self.notes.clone();
        let board = Arc::clone(&self.board);
        let ending = self.endings.begin();
        tokio::spawn(async move {
            // Whoever comes in its place is reached at its address: nobody may take that one for the
            // primary.
            board.followers.heard().await;
            if let Err(why) = member::end(&app, &fence).await {
                let left = Left { app, pid, why };
                if let Err(mpsc::error::SendError(Note::Left(left))) =
                    notes.send(Note::Left(left)).await
                {
                    // Another process directs by now.
                    tracing::error!(app = left.app, pid = left.pid, why = left.why, "not ended");
                }
            }
            drop(ending);
        });
    }

    async fn settle(&mut self, slot: Slot) -> Result<(), String> {
        if !self.synchroniser.is_exclusive() {
            return Ok(());
        }
        let deadline = Instant::now() + SETTLE_BOUND;
        while self.board.under_way(slot) > 0 {
            if Instant::now() >= deadline {
                return Err(format!(
                    "{} requests to {} took longer than {} s",
                    self.board.under_way(slot),
                    self.name(slot),
                    SETTLE_BOUND.as_secs()
                ));
            }
            tokio::time::sleep(FENCE_POLL).await;
        }
        let instances = self.board.instances();
        let to = self.machine.next().and_then(|(to, _)| instances.get(to));
        let (Some(old), Some(to)) = (instances.get(slot), to) else {
            return Ok(());
        };
        let settled = self.synchroniser.settle(old, to);
        match tokio::time::timeout(PROMOTE_BOUND, settled).await {
            Ok(settled) => settled,
            Err(_) => Err(format!(
                "{} did not get all of {} within {} s",
                to.app,
                old.app,
                PROMOTE_BOUND.as_secs()
            )),
        }
    }

    async fn promote(&mut self, slot: Slot, epoch: Epoch) -> Result<(), String> {
        let promoted = self.take_over(slot, epoch).await;
        if promoted.is_err() && self.machine.cause() == Some(Cause::Planned) {
            // The old one serves on.
            let stayed = self.stay(self.machine.primary(), epoch).await;
            if let (Err(why), Err(also)) = (&promoted, stayed) {
                return Err(format!(
                    "{why}; and whoever begins anew may not know: {also}"
                ));
            }
        }
        promoted
    }

    async fn take_over(&mut self, slot: Slot, epoch: Epoch) -> Result<(), String> {
        let board = Arc::clone(&self.board);
        let Some(instance) = board.instances().get(slot) else {
            return Err(format!("there is no instance {slot}"));
        };
        let record = self.record(slot, epoch);
        if self.kept.as_ref() != Some(&record) {
            // It may have been written and not be durable.
            self.keep(record.clone(), self.durability(epoch)).await?;
            self.kept = Some(record);
        }
        let promoted = self.synchroniser.promote(instance);
        match tokio::time::timeout(PROMOTE_BOUND, promoted).await {
            Ok(promoted) => promoted?,
            Err(_) => {
                return Err(format!(
                    "promote {}: it did not take over within {} s",
                    instance.app,
                    PROMOTE_BOUND.as_secs()
                ));
            }
        }
        if let Some(running) = &mut self.running {
            running.to = Some(instance.app.clone());
            running.epoch = epoch;
        }
        Ok(())
    }
}
