//! What became of the actions of a period.

use super::{Retry, State};
use crate::app::AppId;
use crate::host::{Action, Outcome};
use crate::plan;
use crate::report::EventKind;
use crate::slice::{Knob, Setting};
use crate::tick::Inputs;
use crate::units::Time;

impl State {
    /// Takes in what became of the actions.
    pub fn settle(
        &mut self,
        inputs: &Inputs<'_>,
        planner: plan::Memory,
        actions: &[Action],
        outcomes: &[Outcome],
    ) {
        if inputs.paused {
            self.planner.offload.stand_still(inputs.time);
        } else {
            self.planner = planner;
        }
        for (action, outcome) in actions.iter().zip(outcomes) {
            match action {
                Action::Set { app, setting } => {
                    self.settle_set(inputs, app, *setting, outcome);
                    self.refuse_cpus(inputs, app, *setting, outcome);
                }
                Action::Start { app } => self.settle_start(inputs, &app.id, outcome),
                Action::Release { app } => self.settle_release(inputs, app, outcome),
                Action::Interrupts { .. } => self.settle_interrupts(inputs, action, outcome),
                Action::CostModel { device, .. } => {
                    self.settle_cost_model(inputs, *device, action, outcome);
                }
                Action::WatchMemory { .. } => self.settle_watching(inputs, action, outcome),
                Action::Reclaim { app, .. } => {
                    if !matches!(outcome, Outcome::Done) {
                        let held = self.planner.givers.entry(app.clone()).or_default();
                        held.refused(inputs.time, inputs.policy.hold);
                        self.planner.offload.refused_memory(inputs.time, app);
                    }
                    self.note_failure(inputs, action, outcome);
                }
                Action::Compact => {
                    self.refuse_compaction(inputs, outcome);
                    self.note_failure(inputs, action, outcome);
                }
                Action::Enter { .. }
                | Action::Adopt { .. }
                | Action::Succeed { .. }
                | Action::Freeze { .. }
                | Action::Thaw { .. }
                | Action::Kill { .. } => self.note_failure(inputs, action, outcome),
            }
        }
    }

    fn note_failure(&mut self, inputs: &Inputs<'_>, action: &Action, outcome: &Outcome) {
        if let Outcome::Failed(why) = outcome {
            let message = format!("{action}: {why}");
            self.note(inputs.time, action.app(), EventKind::Failed, message);
        }
    }

    fn settle_set(&mut self, inputs: &Inputs<'_>, id: &AppId, setting: Setting, outcome: &Outcome) {
        let knob = setting.knob();
        let Some(known) = self.apps.get_mut(id) else {
            return;
        };
        // Asked for again in the next period, also where the plan is by then what it was.
        if *outcome == Outcome::Pending {
            known.pending.insert(knob);
        } else {
            known.pending.remove(&knob);
        }
        match outcome {
            Outcome::Done => {
                known.retries.remove(&knob);
                let in_force = self.in_force.entry(id.clone()).or_default();
                let before = in_force.get(knob).copied();
                in_force.set(setting);
                known.partitioned |= knob == Knob::CpusPartition && in_force.is_partition();
                if let (Knob::Cpus, Some(before)) = (knob, before)
                    && before != setting
                {
                    let message = format!("{setting} (before: {before})");
                    self.note(inputs.time, Some(id), EventKind::Slice, message);
                }
            }
            Outcome::Pending => {}
            Outcome::Unsupported => {
                if known.unsettled.remove(&knob)
                    && let Some(in_force) = self.in_force.get_mut(id)
                {
                    // It was taken while it concerned nobody.
                    in_force.forget(knob);
                }
                // Whoever is refused "no limit" lacks nothing.
                if known.yielded.insert(knob) && !plan::lack::does_nothing(&setting) {
                    let message =
                        format!("{setting} is not set: the host refuses; see `forebay doctor`");
                    self.note(inputs.time, Some(id), EventKind::Shortfall, message);
                }
            }
            Outcome::Failed(why) => {
                let before = known.retries.get(&knob).copied();
                known
                    .retries
                    .insert(knob, Retry::after(before, inputs.time));
                if before.is_none() {
                    self.note(inputs.time, Some(id), EventKind::Failed, why.clone());
                }
            }
        }
    }

    fn settle_start(&mut self, inputs: &Inputs<'_>, id: &AppId, outcome: &Outcome) {
        self.started(inputs.time, id, outcome);
    }

    /// Takes in that an app's program was started, or was to be, in a period or beside it.
    pub fn started(&mut self, time: Time, id: &AppId, outcome: &Outcome) {
        let (kind, message) = match outcome {
            // It is on its way, and asked for again once what it waits for is over.
            Outcome::Pending => return,
            Outcome::Done => (EventKind::Started, "was started".to_owned()),
            Outcome::Unsupported => (
                EventKind::Failed,
                "this host cannot start programs".to_owned(),
            ),
            Outcome::Failed(why) => (EventKind::Failed, why.clone()),
        };
        if let Some(known) = self.apps.get_mut(id) {
            // A failed start counts as a short life: the next try waits.
            known.lives.started(time);
        }
        self.note(time, Some(id), kind, message);
    }

    /// Takes in that an app's program came from another host.
    pub fn came(&mut self, time: Time, id: &AppId) {
        if let Some(known) = self.apps.get_mut(id) {
            known.lives.started(time);
        }
        let message = "goes on here with its memory".to_owned();
        self.note(time, Some(id), EventKind::Started, message);
    }

    fn settle_interrupts(&mut self, inputs: &Inputs<'_>, action: &Action, outcome: &Outcome) {
        let before = self.interrupts.retry;
        self.interrupts.unsupported |= *outcome == Outcome::Unsupported;
        self.interrupts.retry = self.settle_host(inputs, action, outcome, before, "");
    }

    /// Tells of an action on the host, of a failure once and with what takes its place. When it is
    /// to be tried again, with what `before` said of that.
    pub(super) fn settle_host(
        &mut self,
        inputs: &Inputs<'_>,
        action: &Action,
        outcome: &Outcome,
        before: Option<Retry>,
        instead: &str,
    ) -> Option<Retry> {
        let (kind, message) = match outcome {
            Outcome::Done => (EventKind::Slice, action.to_string()),
            Outcome::Pending | Outcome::Unsupported => return before,
            Outcome::Failed(why) => (EventKind::Failed, format!("{why}{instead}")),
        };
        let failed = kind == EventKind::Failed;
        if !failed || before.is_none() {
            self.note(inputs.time, None, kind, message);
        }
        failed.then(|| Retry::after(before, inputs.time))
    }

    fn settle_release(&mut self, inputs: &Inputs<'_>, id: &AppId, outcome: &Outcome) {
        let (kind, message) = match outcome {
            Outcome::Pending => return,
            Outcome::Done | Outcome::Unsupported => {
                self.in_force.remove(id);
                self.planner.before.remove(id);
                self.apps.remove(id);
                (
                    EventKind::Released,
                    "was put back as it was found".to_owned(),
                )
            }
            Outcome::Failed(why) => {
                let before = self.apps.get_mut(id).and_then(|known| {
                    let next = Retry::after(known.release, inputs.time);
                    known.release.replace(next)
                });
                if before.is_some() {
                    return;
                }
                (EventKind::Failed, why.clone())
            }
        };
        self.note(inputs.time, Some(id), kind, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_is_on_its_way_is_told_once_it_was_made() {
        let mut state = State::default();
        let app: AppId = "web".parse().unwrap();
        let time = Time {
            monotonic: std::time::Duration::ZERO,
            unix_ms: 0,
        };
        let mut told = |outcome: Outcome| {
            state.started(time, &app, &outcome);
            std::mem::take(&mut state.fresh)
        };
        assert!(told(Outcome::Pending).is_empty());
        assert_eq!(told(Outcome::Done)[0].kind, EventKind::Started);
        assert_eq!(told(Outcome::Failed("no".to_owned()))[0].message, "no");
    }
}
