//! Giving the direction of a front to another process, and taking it over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_core::shadow::promotion::{Promotion, Stage};
use tokio::sync::oneshot;

use super::{Detached, Director};
use crate::control::Line;
use crate::fence::Fence;
use crate::followers;
use crate::status::{Failure, Left, Transition};
use crate::succession::{FOLLOWERS_MAX, Outcome, Successor, Testament};
use crate::switchboard::{Gate, Losses};

/// Changes that did not work and are remembered.
const FAILURES_MAX: usize = 64;
/// How soon the lock is tried again of a new process that failed.
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// How long such a process may take to leave it by itself; whoever fails ends and says why.
const LEAVE_BOUND: Duration = Duration::from_millis(500);

/// What a director goes on with.
#[derive(Debug)]
pub(crate) struct Heritage {
    /// The primary serves; else nobody could.
    pub(crate) serves: bool,
    /// Which instances were lost.
    pub(crate) lost: Losses,
    pub(crate) members: Vec<(String, u32, Option<Fence>)>,
    pub(crate) detached: Vec<String>,
    pub(crate) transitions: Vec<Transition>,
    /// Processes that were to be ended and are still there.
    pub(crate) left: Vec<Left>,
}

impl Director {
    /// Has those who serve here serve as the process before did.
    pub(crate) fn assume(&mut self, heritage: &Heritage) {
        let board = Arc::clone(&self.board);
        board.change(|routing| {
            if heritage.serves {
                routing.gate = Gate::Open;
            }
            board.take_losses(routing, &heritage.lost);
        });
        if heritage.serves {
            let routing = self.board.routing();
            self.machine = Promotion::new(routing.primary, routing.epoch);
        }
    }

    /// Goes on where the process before stopped, which follows by now.
    pub(crate) fn inherit(&mut self, heritage: Heritage) {
        self.left = heritage.left;
        for (app, pid, fence) in heritage.members {
            // One that the plan does not have any more is nobody's.
            let Ok(slot) = self.place(&app) else { continue };
            if let Err(why) = self.join(slot, pid, fence) {
                tracing::debug!(app, why, "an instance has ended meanwhile");
            }
        }
        for app in heritage.detached {
            if let Some(place) = self
                .place(&app)
                .ok()
                .and_then(|slot| self.detached.get_mut(slot))
            {
                *place = Detached::Yes;
            }
        }
        self.transitions = heritage.transitions;
        self.publish();
    }

    /// Stops doing anything until it is known whether another process does it from now on.
    pub(super) async fn give_way(
        &mut self,
        reply: oneshot::Sender<Result<Testament, String>>,
        verdict: oneshot::Receiver<Outcome>,
        successor: Option<Successor>,
    ) {
        let testament = self.testament().await;
        let yields = testament.is_ok();
        let outcome = match reply.send(testament) {
            Ok(()) if yields => verdict.await,
            // Whoever asked has gone.
            Err(Ok(testament)) => Ok(Outcome::Failed(testament.followers)),
            Ok(()) | Err(Err(_)) => return,
        };
        match outcome {
            Ok(Outcome::Succeeded) => {
                self.succeeded = true;
                return;
            }
            Ok(Outcome::Failed(lines)) => self.lead_again(lines),
            Err(_) => tracing::warn!("nobody said what became of a succession"),
        }
        self.take_back(successor).await;
    }

    /// Takes back the right to say who serves, which a process that failed leaves with its end. One that
    /// was stopped or hangs would keep it, and nobody would fail over: it is ended. Nothing is directed
    /// here before the kernel has given the right back.
    async fn take_back(&self, mut successor: Option<Successor>) {
        let patience = Instant::now() + LEAVE_BOUND;
        while let Err(error) = self.epochs.lock() {
            tracing::debug!(%error, "a process that did not take the place is still there");
            if Instant::now() >= patience
                && let Some(successor) = successor.take()
            {
                let pid = successor.pid;
                tracing::error!(
                    pid,
                    "a process that was to take the place hangs, and is ended"
                );
                if let Err(error) = successor.end() {
                    tracing::error!(pid, %error, "it cannot be ended; nobody fails over until it is");
                }
            }
            tokio::time::sleep(LOCK_RETRY).await;
        }
    }

    fn lead_again(&self, lines: Vec<(u32, Line)>) {
        for (pid, line) in lines {
            // Without a line it ends by itself.
            if let Err(error) = followers::lead(&self.board, pid, line) {
                tracing::error!(pid, %error, "a process before this one is not led");
            }
        }
    }

    async fn testament(&mut self) -> Result<Testament, String> {
        let serves = match self.machine.stage() {
            Stage::Warm | Stage::Suspect => true,
            Stage::Down => false,
            stage => return Err(format!("the front is busy ({stage:?}); try again")),
        };
        let primary = self.board.instances().get(self.board.routing().primary);
        let primary = primary.cloned().ok_or("it has no instances")?;
        let followers = self.board.followers.gather().await;
        if followers.len() >= FOLLOWERS_MAX {
            let count = followers.len();
            self.lead_again(followers);
            return Err(format!(
                "{count} processes before this one still serve clients; wait until their \
                 connections have ended, or lower `drain`"
            ));
        }
        if let Err(error) = self.epochs.unlock() {
            self.lead_again(followers);
            return Err(format!("unlock {}: {error}", self.epochs.path().display()));
        }
        let routing = self.board.routing();
        let members = self.board.instances().iter().zip(&self.members);
        let members = members.filter_map(|(instance, member)| {
            let member = member.as_ref()?;
            Some((instance.app.clone(), member.pid, member.fence.clone()))
        });
        let detached = self.board.instances().iter().zip(&self.detached);
        let detached = detached.filter(|(_, detached)| **detached == Detached::Yes);
        Ok(Testament {
            epoch: routing.epoch,
            primary,
            serves,
            lost: self.board.losses(&routing),
            number: self.board.followers.number(),
            members: members.collect(),
            detached: detached.map(|(instance, _)| instance.app.clone()).collect(),
            transitions: self.transitions.clone(),
            left: self.left.clone(),
            followers,
        })
    }

    /// Tells whoever asked for a change that it left nobody who serves.
    pub(super) fn disappoint(&mut self) {
        let Some(asked) = self.asked.take() else {
            return;
        };
        let running = self.running.as_ref();
        let trouble = running.map(|running| running.trouble.join("; "));
        let why = trouble.filter(|trouble| !trouble.is_empty());
        let why = why.unwrap_or_else(|| "the shadow did not take over".to_owned());
        asked.send(Err(format!("{why}; nobody serves now"))).ok();
    }

    /// Remembers a change that did not work. The same one again and again is told once.
    pub(super) fn note_failure(&mut self) {
        let Some(running) = &self.running else { return };
        if running.trouble.is_empty() {
            return;
        }
        let what = running.failure();
        let epoch = self.machine.epoch();
        let last = self.failures.last();
        let number = last.map_or(0, |last| last.number) + 1;
        if last.is_some_and(|last| last.what == what && last.epoch == epoch) {
            return;
        }
        if self.failures.len() == FAILURES_MAX {
            self.failures.remove(0);
        }
        self.failures.push(Failure {
            number,
            epoch,
            what,
        });
    }
}
