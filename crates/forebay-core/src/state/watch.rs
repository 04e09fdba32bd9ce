//! Having the kernel watch which memory batch apps touch, as the plan wants it.

use std::collections::BTreeSet;

use super::{Retry, State};
use crate::app::AppId;
use crate::host::{Action, Outcome};
use crate::plan::Plan;
use crate::report::EventKind;
use crate::snapshot::{Gap, MemoryWatch, Snapshot};
use crate::tick::Inputs;

/// What is known of watching.
#[derive(Debug, Clone, Default)]
pub(super) struct Watching {
    retry: Option<Retry>,
    /// What was said last of why memory is not watched, to say it once.
    told: Option<String>,
    /// Those that were watched when somebody else came between: left to them.
    yielded: bool,
    /// Those that were watched in the last period.
    before: BTreeSet<AppId>,
}

/// What takes the place of what is not watched.
const INSTEAD: &str = "cold memory is read off memory.stat instead";

impl State {
    /// Takes in who is watched, and who else uses what it needs.
    pub(super) fn record_watching(&mut self, inputs: &Inputs<'_>, snapshot: &Snapshot) {
        let mut able = None;
        let trouble = match &snapshot.host.memory_watch {
            Ok(MemoryWatch { apps, taken: None }) => {
                self.watching.before.clone_from(apps);
                able = Some(apps.clone());
                None
            }
            Ok(MemoryWatch {
                taken: Some(who), ..
            }) => {
                let ours = std::mem::take(&mut self.watching.before);
                self.watching.yielded |= !ours.is_empty();
                let until = match self.watching.yielded {
                    true => "left alone until the next reload",
                    false => "left alone as long as it is so",
                };
                Some((EventKind::Foreign, format!("{who}; {until}: {INSTEAD}")))
            }
            Err(Gap::Unsupported) => Some((
                EventKind::Shortfall,
                format!(
                    "`hot_memory` asks to watch which memory batch touches, and this kernel cannot \
                     (DAMON of virtual addresses: see `forebay doctor`); {INSTEAD}"
                ),
            )),
            Err(Gap::Failed(why)) => Some((EventKind::Failed, format!("{why}; {INSTEAD}"))),
            Err(Gap::NotDue) => None,
        };
        self.planner.watched = able.filter(|_| !self.watching.yielded);
        if !inputs.policy.watch_memory {
            return;
        }
        match trouble {
            Some((kind, message)) if self.watching.told.as_ref() != Some(&message) => {
                self.watching.told = Some(message.clone());
                self.note(inputs.time, None, kind, message);
            }
            Some(_) => {}
            None => self.watching.told = None,
        }
    }

    /// The change of those that are watched, if one is due.
    pub(super) fn watch_memory(
        &self,
        inputs: &Inputs<'_>,
        plan: &Plan,
        snapshot: &Snapshot,
    ) -> Option<Action> {
        let now = snapshot.host.memory_watch.as_ref().ok()?;
        let retry = self.watching.retry;
        let due = retry.is_none_or(|retry| retry.is_due(inputs.time));
        (now.apps != plan.watch && due).then(|| Action::WatchMemory {
            apps: plan.watch.clone(),
        })
    }

    pub(super) fn settle_watching(
        &mut self,
        inputs: &Inputs<'_>,
        action: &Action,
        outcome: &Outcome,
    ) {
        let before = self.watching.retry;
        self.watching.yielded |= *outcome == Outcome::Unsupported;
        let instead = format!("; {INSTEAD}");
        self.watching.retry = self.settle_host(inputs, action, outcome, before, &instead);
    }
}
