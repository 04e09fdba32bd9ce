//! A host that took a setting while it concerned nobody, and refuses it when somebody comes.

use forebay_core::app::{App, AppId, Binding, Class, Policy};
use forebay_core::host::{Action, Capabilities, Host, Outcome, Watch};
use forebay_core::report::EventKind;
use forebay_core::slice::{Knob, Setting};
use forebay_core::snapshot::Snapshot;
use forebay_core::state::State;
use forebay_core::tick::{Inputs, tick};
use forebay_core::topology::{Shape, Topology};
use forebay_core::units::Bytes;
use forebay_sim::{Program, SimHost};

/// As a kernel does to a daemon without the right to spare a process.
struct Grudging {
    host: SimHost,
    asked: usize,
}

impl Host for Grudging {
    fn topology(&self) -> &Topology {
        self.host.topology()
    }

    fn capabilities(&self) -> &Capabilities {
        self.host.capabilities()
    }

    fn observe(&mut self, watch: &Watch<'_>) -> Snapshot {
        let mut snapshot = self.host.observe(watch);
        for (id, sample) in &mut snapshot.apps {
            let in_force = watch.in_force.get(id);
            if in_force.is_some_and(|slice| slice.get(Knob::OomScoreAdj).is_some()) {
                sample.unsettled.insert(Knob::OomScoreAdj);
            }
        }
        snapshot
    }

    fn apply(&mut self, actions: &[Action]) -> Vec<Outcome> {
        let mut outcomes = self.host.apply(actions);
        for (action, outcome) in actions.iter().zip(&mut outcomes) {
            if let Action::Set { setting, .. } = action
                && setting.knob() == Knob::OomScoreAdj
            {
                self.asked += 1;
                if self.asked > 1 {
                    *outcome = Outcome::Unsupported;
                }
            }
        }
        outcomes
    }
}

#[test]
fn what_is_refused_later_is_not_in_force_and_is_told_once() {
    let shape = Shape {
        nodes: 1,
        l3s: 1,
        cores: 4,
        threads: 1,
        memory: Bytes::mib(1024),
    };
    let mut host = SimHost::new(Topology::regular(shape), 7);
    host.create_group("web");
    host.spawn("web", Program::burner(1), "web").unwrap();
    let id: AppId = "web".parse().unwrap();
    let app = App::new(id.clone(), Class::Critical, Binding::Cgroup("web".into()));
    let mut policy = Policy::default();
    policy.apps.insert(id.clone(), app);
    let mut host = Grudging { host, asked: 0 };
    let mut state = State::new();
    let mut told = Vec::new();
    let mut in_force = Vec::new();
    for _ in 0..30 {
        host.host.advance(policy.period);
        let inputs = Inputs::new(host.host.time(), &policy);
        let report = tick(&mut state, &mut host, &inputs);
        in_force.push(report.apps[&id].slice.get(Knob::OomScoreAdj).copied());
        let refusals = report.events.into_iter();
        told.extend(refusals.filter(|event| event.kind == EventKind::Shortfall));
    }
    assert!(in_force.contains(&Some(Setting::OomScoreAdj(-903))));
    assert_eq!(in_force.last(), Some(&None));
    assert_eq!(host.asked, 2, "asked again after it was refused");
    let [event] = &*told else {
        panic!("{told:?}");
    };
    assert_eq!(event.app, Some(id));
    assert!(event.message.contains("oom_score_adj = -903"), "{event:?}");
}
