//! What is left out of the plan for an app because its group's owner has its own way.

use std::collections::BTreeSet;

use forebay_core::app::{App, AppId, Ceiling};
use forebay_core::slice::Knob;
use forebay_core::units::Limit;

use super::book::Spot;
use super::{Held, Object, Value, Values};
use crate::host::LinuxHost;
use crate::knobs;

/// What a property holds that is not set.
const UNSET: Value = Value::Number(u64::MAX);

impl LinuxHost {
    /// Takes an app's ceilings in, which decide whose limits are in force.
    pub(crate) fn follow_ceiling(&mut self, app: &App) {
        let entry = self.entries.get_mut(&app.id);
        if let Some(owned) = entry.and_then(|entry| entry.owned.as_mut())
            && owned.ceiling != app.ceiling
        {
            owned.ceiling = app.ceiling;
            self.withhold(&app.id);
        }
    }

    /// Says anew what is not to be planned for an app.
    pub(super) fn withhold(&mut self, app: &AppId) {
        let owned = self.entries.get(app).and_then(|entry| entry.owned.as_ref());
        let Some((owned, held)) = owned.and_then(|owned| Some((owned, owned.held.as_ref()?)))
        else {
            return;
        };
        let mut withheld = held.lacks.clone();
        let idle = |(knob, way): (Knob, &knobs::Way)| {
            let idle = owned.kind.is_idle(knob, way.version);
            idle.then_some(knob)
        };
        withheld.extend(self.ways.knobs().filter_map(idle));
        if owned.kind.keeps_limits() {
            let object = owned.object(held);
            let free = without_ceiling(&owned.ceiling);
            withheld.extend(free.into_iter().filter(|knob| {
                let mut properties = owned.kind.properties(*knob).into_iter();
                properties.any(|property| self.has_limit(app, &object, held, property))
            }));
        }
        self.capabilities.withheld.insert(app.clone(), withheld);
    }

    /// Whether a property holds a limit that is not of our making.
    fn has_limit(&self, app: &AppId, object: &Object, held: &Held, property: &str) -> bool {
        let spot = Spot {
            object: object.clone(),
            property: property.to_owned(),
        };
        let original = self.ledger.state().owned.original(app, &spot);
        let now = held.values.get(property);
        now.is_some_and(|now| *now != UNSET && original.is_none_or(|limit| limit.means(now)))
    }

    /// Where no limit is wanted any more, the one that a thing was made with comes back.
    pub(super) fn keep_limits(
        &self,
        app: &AppId,
        object: &Object,
        held: &Held,
        values: &mut Values,
    ) {
        for (property, value) in values.iter_mut().filter(|(_, value)| **value == UNSET) {
            let spot = Spot {
                object: object.clone(),
                property: property.clone(),
            };
            let original = self.ledger.state().owned.original(app, &spot);
            let made_with = original.or_else(|| held.values.get(property));
            if let Some(limit) = made_with {
                value.clone_from(limit);
            }
        }
    }
}

/// The knobs of limits of which an app has none.
fn without_ceiling(ceiling: &Ceiling) -> BTreeSet<Knob> {
    let all = [
        (Knob::CpuMax, ceiling.cpu == Limit::Max),
        (Knob::MemoryMax, ceiling.memory == Limit::Max),
        (Knob::PidsMax, ceiling.pids == Limit::Max),
    ];
    let free = all.into_iter().filter(|(_, is_free)| *is_free);
    free.map(|(knob, _)| knob).collect()
}
