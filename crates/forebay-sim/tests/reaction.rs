//! How soon a step in load is a changed slice.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use forebay_core::app::{App, AppId, Binding, Class, Policy};
use forebay_core::host::{Action, Outcome};
use forebay_core::slice::Setting;
use forebay_core::state::State;
use forebay_core::tick::{Inputs, tick};
use forebay_core::topology::{Shape, Topology};
use forebay_core::units::Bytes;
use forebay_sim::{Load, Program, SimHost};

/// The promise, in periods after the first that saw the step.
const PERIODS_MAX: u64 = 2;

fn host() -> SimHost {
    SimHost::new(
        Topology::regular(Shape {
            nodes: 1,
            l3s: 1,
            cores: 8,
            threads: 1,
            memory: Bytes::mib(8192),
        }),
        7,
    )
}

fn app(name: &str, class: Class) -> App {
    App::new(name.parse().unwrap(), class, Binding::Cgroup(name.into()))
}

/// Periods from the step to the first larger CPU set of `web`.
fn periods_to_react(before: f64, after: f64, step_at: Duration) -> u64 {
    let mut host = host();
    // With lending, the app may use the others' CPUs already and nothing has to be written.
    let mut policy = Policy {
        lend: false,
        ..Policy::default()
    };
    let programs = [
        (
            "web",
            Class::Critical,
            Program {
                cpu: Load::Step {
                    before,
                    after,
                    at: step_at,
                },
                ..Program::steady(after, 8, Bytes::mib(64))
            },
        ),
        ("burn", Class::Batch, Program::burner(16)),
    ];
    for (name, class, program) in programs {
        host.create_group(name);
        host.spawn(name, program, name).unwrap();
        let app = app(name, class);
        policy.apps.insert(app.id.clone(), app);
    }
    let web: AppId = "web".parse().unwrap();
    let mut state = State::new();
    let mut own_before = None;
    for _ in 0..1000 {
        let time = host.time();
        let inputs = Inputs::new(time, &policy);
        let report = tick(&mut state, &mut host, &inputs);
        let own = report.apps[&web]
            .reason
            .as_ref()
            .map(|reason| reason.exclusive.len());
        if time.monotonic <= step_at {
            own_before = own;
        } else if own > own_before {
            let grew = report.actions.iter().any(|(action, outcome)| {
                matches!(action, Action::Set { app, setting: Setting::Cpus(_) } if app == &web)
                    && *outcome == Outcome::Done
            });
            assert!(grew, "a larger share was planned and not written");
            let waited = time.monotonic - step_at;
            return u64::try_from(waited.as_nanos().div_ceil(policy.period.as_nanos())).unwrap();
        }
        host.advance(policy.period);
    }
    panic!("no reaction to a step from {before} to {after} CPUs");
}

#[test]
fn a_step_in_load_is_a_changed_slice_within_two_periods() {
    for (before, after) in [(0.4, 2.5), (0.1, 1.5), (1.2, 4.0), (0.5, 6.0)] {
        // Steps fall anywhere within a period.
        for offset_ms in [0, 1, 50, 99] {
            let step_at = Duration::from_millis(20_000 + offset_ms);
            let periods = periods_to_react(before, after, step_at);
            assert!(
                periods <= PERIODS_MAX,
                "{before} to {after} CPUs at {step_at:?}: {periods} periods"
            );
        }
    }
}
