//! How the instances stand, and who is to take over.

use std::sync::Arc;
use std::time::Instant;

use forebay_core::shadow::promotion::{Cause, Input, Slot, Stage};
use tokio::sync::oneshot;

use super::{Asked, Director, FIRST_CHOICE_BOUND, FIRST_LIVES_BOUND};
use crate::member::Member;
use crate::synchronise::{Renewal, Standing};

impl Director {
    /// Asks, beside this task, how every instance stands.
    pub(super) fn ask_standings(&mut self) {
        let primary = self.machine.primary();
        for slot in 0..self.members.len() {
            // One that has not answered yet is not asked again, and keeps nobody else from it.
            match self.asking.get_mut(slot) {
                Some(asking) if !*asking => *asking = true,
                Some(_) | None => continue,
            }
            let (board, news) = (Arc::clone(&self.board), self.news.clone());
            let synchroniser = Arc::clone(&self.synchroniser);
            let asked = Asked {
                slot,
                life: self.lives.get(slot).copied().unwrap_or_default(),
                primary,
                epoch: self.machine.epoch(),
            };
            let vacant = self.machine.stage() == Stage::Down;
            tokio::spawn(async move {
                let instances = board.instances();
                let (Some(this), Some(first)) = (instances.get(slot), instances.get(primary))
                else {
                    return;
                };
                let standing = if vacant {
                    synchroniser.vacant(this, first, instances).await
                } else if slot == primary {
                    match synchroniser.ping(this).await {
                        Ok(()) => Standing::Ready { lag: None },
                        Err(why) => Standing::Away(why),
                    }
                } else {
                    synchroniser.standing(this, first).await
                };
                // The director may have ended.
                news.send((asked, standing)).await.ok();
            });
        }
    }

    pub(super) async fn stands(&mut self, slot: Slot, standing: Standing) {
        let ready = matches!(standing, Standing::Ready { .. });
        // A shadow is not behind because its primary died while it was asked: what it was before
        // counts when it is to take over.
        let primary = self.machine.primary();
        if !ready && slot != primary && self.has_ended(primary) {
            let epoch = self.machine.epoch();
            self.look(Instant::now()).await;
            if self.machine.epoch() != epoch {
                return;
            }
        }
        if let Standing::Behind(why) = &standing
            && self.machine.stage() == Stage::Warm
            && slot != self.machine.primary()
        {
            tracing::debug!(app = self.name(slot), why, "the shadow is not in step");
            if self.renewal(slot) != Renewal::Due {
                self.follow(slot, None);
            } else if let Err(why) = self.renew(slot) {
                tracing::warn!(why, "the shadow does not follow");
            }
        }
        if let Some(place) = self.standings.get_mut(slot) {
            *place = standing;
        }
        self.choose_standby();
        self.publish();
        // What answers at the address of one that has ended is no instance: the next one joins.
        let ready = ready && !self.is_detached(slot) && !self.has_ended(slot);
        let first_choice = slot == self.machine.primary();
        let first_stands = self.standings.get(self.machine.primary());
        // One with a state of its own that runs and does not answer yet reads what it has: it knows
        // most, and is not lost because that takes long.
        let first_lives = self.synchroniser.is_exclusive()
            && self
                .member(primary)
                .is_some_and(|member| !member.has_ended());
        let bound = if first_lives {
            FIRST_LIVES_BOUND
        } else {
            FIRST_CHOICE_BOUND
        };
        let may_begin = first_choice
            || self.down_since.elapsed() >= bound
            || matches!(first_stands, Some(Standing::Behind(_)));
        if ready && may_begin && self.machine.stage() == Stage::Down {
            // Each attempt is told by itself, or one that fails for hours would grow.
            self.begin(Cause::Vacancy, &[]);
            self.drive(Input::Available(slot)).await;
        }
    }

    /// Whether the process of an instance is known to have ended, and none came in its place.
    pub(super) fn has_ended(&self, slot: Slot) -> bool {
        self.member(slot).is_some_and(Member::has_ended)
    }

    pub(super) fn renewal(&self, slot: Slot) -> Renewal {
        let instance = self.board.instances().get(slot);
        instance.map_or(Renewal::Never, |instance| {
            self.synchroniser.renewal(instance)
        })
    }

    /// Ends an instance that does not follow, so that it is begun anew.
    pub(super) fn renew(&mut self, slot: Slot) -> Result<(), String> {
        let name = self.name(slot);
        let member = self.member(slot);
        if member.is_none_or(|member| member.fence.is_none()) {
            return Err(format!(
                "end {name}, which does not follow: its group cannot be ended from here; end it by hand"
            ));
        }
        // Whoever stands behind a fence is ended, and nobody else: see `member::end`.
        let fence = member.and_then(|member| member.fence.as_ref());
        if let Some(Err(error)) = fence.map(|fence| fence.freeze()) {
            return Err(format!("freeze {name}, which does not follow: {error}"));
        }
        tracing::info!(app = name, "a shadow that does not follow is begun anew");
        self.kill(slot);
        self.publish();
        Ok(())
    }

    pub(super) fn choose_standby(&self) {
        let primary = self.machine.primary();
        let ready = |slot: &Slot| {
            !self.is_detached(*slot)
                && *slot != primary
                && matches!(self.standings.get(*slot), Some(Standing::Ready { .. }))
        };
        let standby = (0..self.members.len()).find(ready);
        if self.board.routing().standby != standby {
            self.board.change(|routing| routing.standby = standby);
        }
    }

    /// Makes an instance follow the primary, beside this task.
    pub(super) fn follow(&self, slot: Slot, reply: Option<oneshot::Sender<Result<(), String>>>) {
        let (board, synchroniser) = (Arc::clone(&self.board), Arc::clone(&self.synchroniser));
        let primary = self.machine.primary();
        tokio::spawn(async move {
            let instances = board.instances();
            let (Some(shadow), Some(first)) = (instances.get(slot), instances.get(primary)) else {
                return;
            };
            let followed = synchroniser.follow(shadow, first).await;
            if let Err(why) = &followed {
                tracing::warn!(app = shadow.app, why, "the shadow does not follow");
            }
            if let Some(reply) = reply {
                // Whoever asked may have gone.
                reply.send(followed).ok();
            }
        });
    }
}
