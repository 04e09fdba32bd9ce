//! What the ladders are told of what the host did, and what is told of the ladders.

use std::collections::BTreeMap;

use super::State;
use crate::app::AppId;
use crate::host::Outcome;
use crate::offload::Decision;
use crate::plan::Placed;
use crate::report::EventKind;
use crate::slice::{Knob, Setting};
use crate::tick::Inputs;
use crate::units::Time;

impl State {
    /// Where the apps run at this moment.
    #[must_use]
    pub(crate) fn placed(&self) -> BTreeMap<AppId, Placed> {
        let apps = self.apps.iter();
        apps.map(|(id, known)| {
            let in_force = self.in_force.get(id);
            let placed = Placed {
                cpus: in_force.and_then(crate::slice::Slice::cpus),
                yielded: known.yielded.contains(&Knob::Cpus),
            };
            (id.clone(), placed)
        })
        .collect()
    }

    /// CPUs that could not be written are no help, and nothing is to be learned of them.
    pub(super) fn refuse_cpus(
        &mut self,
        inputs: &Inputs<'_>,
        app: &AppId,
        setting: Setting,
        outcome: &Outcome,
    ) {
        let refused = matches!(outcome, Outcome::Unsupported | Outcome::Failed(_));
        if refused && setting.knob() == Knob::Cpus {
            self.planner.offload.refused_cpus(inputs.time, app);
        }
    }

    /// An app did not get to another host.
    pub fn refuse_move(&mut self, time: Time, app: &AppId) {
        self.planner.offload.refused_move(time, app);
    }

    /// Where the kernel was not asked, nothing is to be learned of compaction.
    pub(super) fn refuse_compaction(&mut self, inputs: &Inputs<'_>, outcome: &Outcome) {
        if !matches!(outcome, Outcome::Done) {
            self.planner.offload.refused_compaction(inputs.time);
        }
    }

    /// Tells each step of a ladder that was taken, and why.
    pub(super) fn note_offload(&mut self, inputs: &Inputs<'_>, offload: &Decision) {
        for step in &offload.steps {
            let climb = offload.climbs.get(&step.app);
            let why = climb.and_then(|climb| climb.constraints.first());
            let message = match why {
                Some(why) => format!("{step}, since {why}"),
                None => step.to_string(),
            };
            self.note(inputs.time, Some(&step.app), EventKind::Offload, message);
        }
    }
}
