//! A program that is replaced by another one of its app. Needs root and writable control groups.

#![expect(
    dead_code,
    reason = "a test that fails stops, and does not use all of the support"
)]

#[cfg(test)]
mod support;

use forebay_core::app::OnStop;
use forebay_core::host::{Action, Host, Outcome};
use forebay_core::snapshot::{Ending, RunState};
use forebay_host::LinuxHost;
use forebay_host::mounts::Controller;
use support::*;

#[test]
fn a_successor_is_the_program_until_it_ends_before_the_one_that_it_succeeds() {
    let Some(place) = Place::new("successor") else {
        return;
    };
    let mut host = place.open();
    let app = program("web", &["sleep", "1000"]);
    look(&mut host, &[&app], 0);
    let succeed = || Action::Succeed {
        app: app.clone().into(),
    };
    let refused = host.apply(&[succeed()]);
    assert!(
        matches!(refused.as_slice(), [Outcome::Failed(why)] if why.contains("does not run")),
        "{refused:?}"
    );
    apply(
        &mut host,
        &[Action::Start {
            app: app.clone().into(),
        }],
    );
    let main = |host: &mut LinuxHost| look(host, &[&app], 1).apps[&app.id].main_pid;
    let first = main(&mut host);
    apply(&mut host, &[succeed()]);
    let second = main(&mut host);
    assert!(second.is_some() && second != first, "{first:?} {second:?}");
    let group = place.dir(Controller::Cpu, "web");
    assert_eq!(members(&group).len(), 2);
    // One that fails leaves the place to the one before it.
    end(second.unwrap());
    look_until(&mut host, &app, "the first one again", |sample| {
        sample.state == RunState::Running && sample.main_pid == first
    });
    // And whoever was succeeded may go.
    apply(&mut host, &[succeed()]);
    let third = main(&mut host);
    end(first.unwrap());
    wait_for("the first one is gone", || members(&group).len() == 1);
    assert_eq!(main(&mut host), third);
    end(third.unwrap());
    let sample = look_until(&mut host, &app, "end", |s| s.state != RunState::Running);
    assert_eq!(sample.state, RunState::Ended(Ending::Signal(9)));
    assert!(host.close(OnStop::Kill).unwrap().is_complete());
}
