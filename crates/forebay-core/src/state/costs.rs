//! The models of what requests to devices cost, as the plan wants them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Retry, State};
use crate::app::Device;
use crate::host::{Action, Outcome};
use crate::plan::Plan;
use crate::report::EventKind;
use crate::snapshot::Snapshot;
use crate::tick::Inputs;
use crate::units::Time;

/// What is known of the models.
#[derive(Debug, Clone, Default)]
pub(super) struct Costs {
    retries: BTreeMap<Device, Retry>,
    /// Devices whose model somebody else has changed since Forebay installed it.
    yielded: BTreeSet<Device>,
}

impl State {
    /// Takes in whose models are on. A device has one owner of its model.
    pub(super) fn record_cost_models(&mut self, time: Time, snapshot: &Snapshot) {
        let Ok(models) = &snapshot.host.cost_models else {
            return;
        };
        for device in &models.foreign {
            if self.costs.yielded.insert(*device) {
                let message = format!(
                    "somebody changed the cost model of {device} that Forebay had installed \
                     (io.cost.model, io.cost.qos); left alone until the next reload"
                );
                self.note(time, None, EventKind::Foreign, message);
            }
        }
        self.planner.costed.clone_from(&models.others);
    }

    /// What has to be installed, and what to be put back.
    pub(super) fn set_cost_models(
        &self,
        inputs: &Inputs<'_>,
        plan: &Plan,
        snapshot: &Snapshot,
    ) -> Vec<Action> {
        let Ok(models) = &snapshot.host.cost_models else {
            return Vec::new();
        };
        let wanted = plan.cost_models.iter();
        let installs = wanted
            .filter(|(device, model)| models.in_force.get(device) != Some(model))
            .map(|(device, model)| (*device, Some(*model)));
        let unwanted = models.in_force.keys();
        let removals = unwanted
            .filter(|device| !plan.cost_models.contains_key(device))
            .map(|device| (*device, None));
        removals
            .chain(installs)
            .filter(|(device, _)| !self.costs.yielded.contains(device))
            .filter(|(device, _)| {
                let retry = self.costs.retries.get(device);
                retry.is_none_or(|retry| retry.is_due(inputs.time))
            })
            .map(|(device, model)| Action::CostModel { device, model })
            .collect()
    }

    pub(super) fn settle_cost_model(
        &mut self,
        inputs: &Inputs<'_>,
        device: Device,
        action: &Action,
        outcome: &Outcome,
    ) {
        if *outcome == Outcome::Unsupported {
            self.costs.yielded.insert(device);
        }
        let before = self.costs.retries.remove(&device);
        if let Some(next) = self.settle_host(inputs, action, outcome, before, "") {
            self.costs.retries.insert(device, next);
        }
    }
}
