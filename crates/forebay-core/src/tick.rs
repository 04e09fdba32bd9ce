//! The control period: the one function on which everything hangs.

use std::collections::{BTreeMap, BTreeSet};

use crate::app::{AppId, Policy};
use crate::fleet::policy::Away;
use crate::host::{Action, Host, Outcome};
use crate::outlook::{self, Outlook};
use crate::plan;
use crate::report::TickReport;
use crate::signals::{self, Signals};
use crate::state::State;
use crate::units::Time;

/// What a period is given besides its state.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Now.
    pub time: Time,
    /// What the user decided.
    pub policy: &'a Policy,
    /// What is known to come.
    pub outlook: &'a Outlook,
    /// What apps say of themselves.
    pub signals: &'a Signals,
    /// Apps that are not this host's to start.
    pub elsewhere: &'a BTreeSet<AppId>,
    /// Where apps could move to; none without a fleet.
    pub away: Option<&'a BTreeMap<AppId, Away>>,
    /// Observe and forecast, but change nothing.
    pub paused: bool,
}

/// On a host without a fleet nothing is elsewhere.
static NOWHERE: BTreeSet<AppId> = BTreeSet::new();

impl<'a> Inputs<'a> {
    /// A period in which nothing is known beyond what is observed.
    #[must_use]
    pub const fn new(time: Time, policy: &'a Policy) -> Self {
        Self {
            time,
            policy,
            outlook: &outlook::NOTHING,
            signals: &signals::NONE,
            elsewhere: &NOWHERE,
            away: None,
            paused: false,
        }
    }
}

/// One control period. Every effect is a `Host` call.
pub fn tick(state: &mut State, host: &mut impl Host, inputs: &Inputs<'_>) -> TickReport {
    let snapshot = host.observe(&state.watch(inputs));
    state.record(inputs, &snapshot);
    let demands = state.forecast(inputs, &snapshot);

    let situation = plan::Situation {
        time: inputs.time,
        topology: host.topology(),
        capabilities: host.capabilities(),
        policy: inputs.policy,
        demands: &demands,
        host: state.host_memory(),
        placed: &state.placed(),
        away: inputs.away,
    };
    let (plan, memory) = plan::plan(&situation, state.planner());
    let actions = state.actions(inputs, &plan, &snapshot);

    let outcomes = apply(host, &actions);
    state.settle(inputs, memory, &actions, &outcomes);
    state.report(inputs, snapshot, demands, plan, actions, outcomes)
}

/// Does what was decided, and insists on one outcome for each action.
fn apply(host: &mut impl Host, actions: &[Action]) -> Vec<Outcome> {
    if actions.is_empty() {
        return Vec::new();
    }
    let outcomes = host.apply(actions);
    assert_eq!(
        outcomes.len(),
        actions.len(),
        "a host returns one outcome for each action"
    );
    outcomes
}
