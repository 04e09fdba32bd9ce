//! What is done before a hand-over in order, while everybody is still answered.
//!
//! Whatever an instance would only do while clients wait, and can do before, is done before. That takes as long as it
//! takes, up to a bound, and goes on beside the director: a primary that is lost meanwhile is replaced as ever.

use std::time::Duration;

use forebay_core::shadow::promotion::{Cause, Epoch, Input};
use tokio::sync::oneshot;

use super::{Director, Note};
use crate::status::Transition;

/// Whoever asked for a hand-over waits for so long at most until it begins.
const PREPARE_BOUND: Duration = Duration::from_secs(3);

/// A hand-over that begins once both instances are prepared.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Of whoever served when it was asked for.
    epoch: Epoch,
    reply: oneshot::Sender<Result<Transition, String>>,
}

impl Director {
    /// Has both instances prepared; [`Self::hand_over`] comes after it.
    pub(super) fn prepare(&mut self, reply: oneshot::Sender<Result<Transition, String>>) {
        let refused = match self.prepares {
            true => Some("a hand-over is about to begin; try again".to_owned()),
            false => self.not_now(),
        };
        if let Some(why) = refused {
            // Whoever asked may have gone.
            reply.send(Err(why)).ok();
            return;
        }
        self.prepares = true;
        let epoch = self.machine.epoch();
        let (old, to) = (self.machine.primary(), self.board.routing().standby);
        let synchroniser = self.synchroniser.clone();
        let (board, notes) = (self.board.clone(), self.notes.clone());
        tokio::spawn(async move {
            let instances = board.instances();
            let to = to.and_then(|to| instances.get(to));
            if let (Some(old), Some(to)) = (instances.get(old), to) {
                let preparing = synchroniser.prepare(old, to);
                // It only takes longer without.
                match tokio::time::timeout(PREPARE_BOUND, preparing).await {
                    Ok(Ok(())) => {}
                    Ok(Err(why)) => tracing::warn!(why, "a hand-over is not prepared"),
                    Err(_) => tracing::warn!(
                        from = old.app,
                        to = to.app,
                        bound = PREPARE_BOUND.as_secs(),
                        "a hand-over is not prepared in time"
                    ),
                }
            }
            // Another process may direct by now: then nobody waits for the answer.
            notes
                .send(Note::Prepared(Prepared { epoch, reply }))
                .await
                .ok();
        });
    }

    pub(super) async fn hand_over(&mut self, prepared: Prepared) {
        self.prepares = false;
        let Prepared { epoch, reply } = prepared;
        if epoch != self.machine.epoch() {
            let why = format!(
                "{} took over while the hand-over was prepared; ask again if it is still wanted",
                self.name(self.machine.primary())
            );
            // Whoever asked may have gone.
            reply.send(Err(why)).ok();
            return;
        }
        self.change(Cause::Planned, Input::HandOver, reply).await;
    }
}
