//! The checks, each a promise that the engine builds on.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_core::app::{App, AppId, Binding, Partition};
use forebay_core::host::{Action, Host, Outcome};
use forebay_core::idset::IdSet;
use forebay_core::slice::{Knob, Setting};
use forebay_core::snapshot::{AppSample, RunState};

use super::freeze::*;
use super::interrupts::*;
use super::io::*;
use super::memory::*;
use super::{Fixture, PERIODS_MAX, Unmet, Verdict, ensure, id, values, with};

macro_rules! all {
    ($($name:ident),+ $(,)?) => {
        /// Runs every check.
        ///
        /// # Panics
        /// When a check finds the contract broken; all are named, each with what was seen.
        pub fn check_all<H: Host>(fixture: &mut impl Fixture<H>) {
            let mut broken = Vec::new();
            $(
                match $name(fixture) {
                    Ok(()) => {}
                    Err(Unmet::Skipped(why)) => {
                        eprintln!("SKIPPED: contract::{}: {why}", stringify!($name));
                    }
                    Err(Unmet::Broken(why)) => {
                        broken.push(format!("contract::{}: {why}", stringify!($name)));
                    }
                }
            )+
            assert!(broken.is_empty(), "the host breaks its contract:\n{}", broken.join("\n"));
        }
    };
}

all!(
    capabilities_are_listed_once,
    every_app_asked_for_is_in_the_snapshot,
    a_started_app_runs_in_its_slice,
    a_slice_may_be_set_before_the_start,
    a_missing_executable_is_named,
    settings_are_in_force,
    the_same_setting_again_changes_nothing,
    nonsense_settings_are_refused,
    a_knob_not_offered_is_unsupported,
    there_is_one_outcome_for_each_action_in_order,
    a_setting_for_an_unknown_app_fails_by_name,
    a_partition_that_cannot_be_is_refused_and_one_that_is_lost_is_noticed,
    a_foreign_write_is_noticed,
    our_own_writes_are_not_foreign,
    a_killed_app_is_over_and_starts_again,
    strays_are_seen_and_enter,
    a_vanished_process_is_no_disaster,
    a_release_restores_a_foreign_group,
    a_released_app_keeps_running_outside,
    a_vanished_group_is_no_disaster,
    a_group_made_anew_is_found_anew,
    a_frozen_app_stands_still_and_goes_on,
    a_frozen_group_of_others_is_thawed_by_its_release,
    a_frozen_app_goes_on_when_it_is_released,
    a_killed_frozen_app_dies_and_starts_again,
    nothing_is_started_in_a_frozen_slice,
    a_frozen_app_does_not_hold_up_the_end,
    interrupts_are_kept_off_and_come_back,
    memory_asked_for_comes_back,
    memory_is_divided,
    memory_is_watched_as_long_as_that_is_asked_for,
    memory_of_an_unknown_app_cannot_be_had,
    io_is_counted_by_device,
    an_owners_limit_of_a_device_is_known_and_comes_back,
    a_cost_model_is_installed_and_comes_back,
);

/// A host can control something, and lists each knob once.
pub fn capabilities_are_listed_once<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let knobs = &case.host.capabilities().knobs;
        ensure!(!knobs.is_empty(), "no knob is offered");
        for (i, knob) in knobs.iter().enumerate() {
            ensure!(!knobs[..i].contains(knob), "{knob} is listed twice");
        }
        Ok(())
    })
}

/// A snapshot has each app that was asked for, there or not, and the time it was asked at.
pub fn every_app_asked_for_is_in_the_snapshot<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        let gone = App {
            id: id("contract-gone"),
            binding: Binding::Cgroup("contract/no/such/group".into()),
            ..app.clone()
        };
        case.apps.insert(gone.id.clone(), gone);
        for _ in 0..3 {
            let time = case.fixture.time(&case.host);
            let snapshot = case.observe();
            ensure!(
                snapshot.apps.keys().eq(case.apps.keys()),
                "asked for {:?}, got {:?}",
                case.apps.keys(),
                snapshot.apps.keys()
            );
            ensure!(snapshot.time >= time, "the snapshot has another time");
            for (id, sample) in &snapshot.apps {
                let state = &sample.state;
                ensure!(*state == RunState::Absent, "{id} is {state:?}");
            }
            case.settle();
        }
        Ok(())
    })
}

/// A started program is running, inside its slice, and the CPU time it uses only grows.
pub fn a_started_app_runs_in_its_slice<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        let sample = case.wait(&app, "is in its slice", |sample| {
            sample.strays.is_empty() && sample.processes.as_ref().is_ok_and(|&n| n >= 1)
        })?;
        ensure!(sample.main_pid.is_some(), "no main process: {sample:?}");
        let mut last = Duration::ZERO;
        let first = case.wait(&app, "shows its CPU time", |sample| sample.cpu_used.is_ok())?;
        for _ in 0..PERIODS_MAX {
            let sample = case.sample(&app)?;
            if let Ok(used) = sample.cpu_used {
                ensure!(used >= last, "CPU time went from {last:?} to {used:?}");
                last = used;
            }
            case.settle();
        }
        ensure!(
            first.cpu_used.as_ref().is_ok_and(|&first| last > first),
            "a program that burns a CPU used none: {:?}, then {last:?}",
            first.cpu_used
        );
        Ok(())
    })
}

/// The engine sets a slice before it starts the program, so that it never runs outside.
pub fn a_slice_may_be_set_before_the_start<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.sample(&app)?;
        let Some(setting) = case.trials().first().copied() else {
            return Ok(());
        };
        case.set(&app, setting)?;
        case.start(&app)?;
        case.ensure_in_force(&app, setting)
    })
}

/// A program that is not there fails to start, and the failure names it or the app.
pub fn a_missing_executable_is_named<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let mut app = case.burner();
        let missing = "/nonexistent/contract-program";
        if let Binding::Exec(exec) = &mut app.binding {
            exec.command = vec![missing.to_owned()];
        }
        case.apps.insert(app.id.clone(), app.clone());
        case.sample(&app)?;
        let outcome = case.apply(Action::Start {
            app: app.clone().into(),
        })?;
        ensure!(
            matches!(&outcome, Outcome::Failed(why) if why.contains(missing)),
            "a start of {missing} gave {outcome:?}"
        );
        let sample = case.sample(&app)?;
        ensure!(sample.state != RunState::Running, "it is said to run");
        Ok(())
    })
}

/// Every knob that is offered holds what was set, as somebody else reads it.
pub fn settings_are_in_force<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        for setting in case.trials() {
            case.set(&app, setting)?;
            case.ensure_in_force(&app, setting)?;
        }
        // Leaving the idle class gives back the weight; no knob undoes another.
        for setting in case.in_force[&app.id].clone().iter() {
            case.ensure_in_force(&app, *setting)?;
        }
        Ok(())
    })
}

/// What is in force can be set again, and nothing changes.
pub fn the_same_setting_again_changes_nothing<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        for setting in case.trials() {
            case.set(&app, setting)?;
            case.set(&app, setting)?;
            case.ensure_in_force(&app, setting)?;
        }
        Ok(())
    })
}

/// A value that the kernel cannot take fails, and leaves what was there.
pub fn nonsense_settings_are_refused<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        let beyond: IdSet = [IdSet::IDS_MAX - 1].into_iter().collect();
        for nonsense in [
            Setting::Cpus(beyond),
            Setting::Mems(beyond),
            Setting::CpuWeight(0),
            Setting::CpuWeight(10_001),
        ] {
            let knob = nonsense.knob();
            if !case.host.capabilities().knobs.contains(&knob) {
                continue;
            }
            let before = case.read(&app, knob)?;
            let outcome = case.apply(Action::Set {
                app: app.id.clone(),
                setting: nonsense,
            })?;
            ensure!(
                matches!(outcome, Outcome::Failed(_)),
                "{nonsense} gave {outcome:?}"
            );
            case.ensure_in_force(&app, before)?;
        }
        Ok(())
    })
}

/// A knob that is not in the capabilities is unsupported, not failed: it is not retried.
pub fn a_knob_not_offered_is_unsupported<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        let topology = case.host.topology().clone();
        let all = [
            Knob::Cpus,
            Knob::Mems,
            Knob::CpuWeight,
            Knob::CpuIdle,
            Knob::CpuMax,
            Knob::CpuUclampMin,
            Knob::CpuUclampMax,
            Knob::MemoryMin,
            Knob::MemoryLow,
            Knob::MemoryHigh,
            Knob::MemoryMax,
            Knob::MemorySwapMax,
            Knob::MemoryZswapMax,
            Knob::IoWeight,
            Knob::PidsMax,
        ];
        let offered = case.host.capabilities().knobs.clone();
        let lacking: Vec<Knob> = all.into_iter().filter(|k| !offered.contains(k)).collect();
        for setting in lacking.iter().flat_map(|&knob| values(knob, &topology)) {
            let outcome = case.apply(Action::Set {
                app: app.id.clone(),
                setting,
            })?;
            ensure!(
                outcome == Outcome::Unsupported,
                "{setting} is not offered and gave {outcome:?}"
            );
        }
        Ok(())
    })
}

/// Outcomes stand in the order of their actions; one that fails does not stop the others.
pub fn there_is_one_outcome_for_each_action_in_order<H: Host>(
    fixture: &mut impl Fixture<H>,
) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        ensure!(case.host.apply(&[]).is_empty(), "no action has an outcome");
        let Some(setting) = case.trials().last().copied() else {
            return Ok(());
        };
        let set = |app: AppId| Action::Set { app, setting };
        let actions = [
            set(app.id.clone()),
            set(id("contract-unknown")),
            set(app.id.clone()),
        ];
        let outcomes = case.host.apply(&actions);
        ensure!(
            matches!(
                outcomes[..],
                [Outcome::Done, Outcome::Failed(_), Outcome::Done]
            ),
            "done, failed, done was due: {outcomes:?}"
        );
        case.ensure_in_force(&app, setting)
    })
}

/// A setting for an app that was never seen, or whose group is not there, fails and names it.
pub fn a_setting_for_an_unknown_app_fails_by_name<H: Host>(
    fixture: &mut impl Fixture<H>,
) -> Verdict {
    with(fixture, |case| {
        let app = App {
            binding: Binding::Cgroup("contract/no/such/group".into()),
            ..case.burner()
        };
        case.apps.insert(app.id.clone(), app.clone());
        case.sample(&app)?;
        let Some(setting) = case.trials().first().copied() else {
            return Ok(());
        };
        for app in [app.id, id("contract-unknown")] {
            let outcome = case.apply(Action::Set {
                app: app.clone(),
                setting,
            })?;
            ensure!(
                matches!(&outcome, Outcome::Failed(why) if why.contains(app.as_str())),
                "a setting for {app} gave {outcome:?}"
            );
        }
        Ok(())
    })
}

/// CPUs that another group names are not taken from everybody, and the app keeps them as a
/// plain set; a partition that the kernel takes back for such a reason is noticed.
pub fn a_partition_that_cannot_be_is_refused_and_one_that_is_lost_is_noticed<H: Host>(
    fixture: &mut impl Fixture<H>,
) -> Verdict {
    with(fixture, |case| {
        let offered = &case.host.capabilities().knobs;
        let all = case.host.topology().cpu_set();
        if !offered.contains(&Knob::CpusPartition) || !offered.contains(&Knob::Cpus) {
            return Err(Unmet::Skipped("no partitions of CPUs".to_owned()));
        }
        let Some(first) = all.iter().next().filter(|_| all.len() > 1) else {
            return Err(Unmet::Skipped("one CPU cannot be parted".to_owned()));
        };
        let own: IdSet = [first].into_iter().collect();
        let root = Setting::CpusPartition(Partition::Root);
        let app = case.burner();
        case.start(&app)?;
        let second = case.fixture.burner(id("contract-second"));
        case.apps.insert(second.id.clone(), second.clone());
        case.start(&second)?;

        case.set(&app, Setting::Cpus(own))?;
        case.set(&second, Setting::Cpus(all))?;
        let outcome = case.apply(Action::Set {
            app: app.id.clone(),
            setting: root,
        })?;
        ensure!(
            matches!(&outcome, Outcome::Failed(why) if why.contains("invalid")),
            "a partition of CPUs that another has gave {outcome:?}"
        );
        case.ensure_in_force(&app, Setting::CpusPartition(Partition::Member))?;
        case.ensure_in_force(&app, Setting::Cpus(own))?;

        case.set(&second, Setting::Cpus(all.difference(&own)))?;
        case.set(&app, root)?;
        case.ensure_in_force(&app, root)?;
        case.set(&second, Setting::Cpus(all))?;
        case.wait(&app, "shows that its partition is lost", |sample| {
            let says = sample.foreign.get(&Knob::CpusPartition);
            says.is_some_and(|says| says.contains("invalid"))
        })?;
        for app in [app, second] {
            case.done(Action::Release { app: app.id })?;
        }
        case.ensure_nothing_left()
    })
}

/// When somebody else writes a knob, it is said within [`PERIODS_MAX`] periods.
pub fn a_foreign_write_is_noticed<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        let offered = case.host.capabilities().knobs.clone();
        let topology = case.host.topology().clone();
        let mut tried = false;
        for knob in [
            Knob::CpuWeight,
            Knob::CpuMax,
            Knob::MemoryMax,
            Knob::PidsMax,
        ] {
            let [ours, theirs] = values(knob, &topology)[..] else {
                continue;
            };
            if !offered.contains(&knob) {
                continue;
            }
            case.set(&app, ours)?;
            let sample = case.sample(&app)?;
            ensure!(sample.foreign.is_empty(), "foreign too early: {sample:?}");
            let wrote = case.fixture.write(&mut case.host, &app, theirs);
            wrote.map_err(Unmet::Skipped)?;
            case.wait(
                &app,
                &format!("shows the foreign write {theirs}"),
                |sample| sample.foreign.contains_key(&knob),
            )?;
            if let Some(slice) = case.in_force.get_mut(&app.id) {
                slice.forget(knob);
            }
            tried = true;
        }
        if tried {
            Ok(())
        } else {
            Err(Unmet::Skipped(
                "none of the knobs tried is offered".to_owned(),
            ))
        }
    })
}

/// What Forebay wrote itself is never taken for somebody else's.
pub fn our_own_writes_are_not_foreign<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        for setting in case.trials() {
            case.set(&app, setting)?;
            let sample = case.sample(&app)?;
            let foreign = &sample.foreign;
            ensure!(foreign.is_empty(), "after {setting}: {foreign:?}");
        }
        for _ in 0..PERIODS_MAX {
            case.settle();
            let sample = case.sample(&app)?;
            ensure!(sample.foreign.is_empty(), "foreign: {:?}", sample.foreign);
        }
        Ok(())
    })
}

/// A killed app is over, and can be started again under the same slice.
pub fn a_killed_app_is_over_and_starts_again<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        let first = case.start(&app)?;
        case.done(Action::Kill {
            app: app.id.clone(),
        })?;
        let over = |sample: &AppSample| sample.state != RunState::Running;
        let sample = case.wait(&app, "is over", over)?;
        ensure!(sample.main_pid.is_none(), "it has a process: {sample:?}");
        case.done(Action::Start {
            app: app.clone().into(),
        })?;
        let second = case.wait(&app, "runs again", |s| s.state == RunState::Running)?;
        ensure!(
            second.main_pid.is_some() && second.main_pid != first.main_pid,
            "the same process again: {:?}",
            second.main_pid
        );
        Ok(())
    })
}

/// A process that matches is a stray until it entered the slice, and is put back at release.
pub fn strays_are_seen_and_enter<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let made = case.fixture.stray(&mut case.host, id("contract-match"));
        let (app, pid) = made.map_err(Unmet::Skipped)?;
        case.apps.insert(app.id.clone(), app.clone());
        let found = case.wait(&app, "shows its stray", |s| s.strays.contains(&pid))?;
        let state = &found.state;
        ensure!(*state == RunState::Running, "with a stray it is {state:?}");
        case.done(Action::Enter {
            app: app.id.clone(),
            pids: found.strays.iter().copied().collect(),
        })?;
        let inside = case.wait(&app, "has no stray", |s| s.strays.is_empty())?;
        let state = &inside.state;
        ensure!(
            *state == RunState::Running,
            "after entering it is {state:?}"
        );
        case.wait(&app, "uses CPU time in its slice", |sample| {
            sample.cpu_used.as_ref().is_ok_and(|used| !used.is_zero())
        })?;
        case.done(Action::Release {
            app: app.id.clone(),
        })?;
        case.ensure_nothing_left()
    })
}

/// A process that left before it could be moved is an outcome, not a panic.
pub fn a_vanished_process_is_no_disaster<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        // Beyond what kernels give to processes.
        let outcome = case.apply(Action::Enter {
            app: app.id.clone(),
            pids: vec![(1 << 22) + 1],
        })?;
        ensure!(
            outcome != Outcome::Unsupported,
            "moving nobody is said to be unsupported"
        );
        let sample = case.sample(&app)?;
        let state = &sample.state;
        ensure!(*state == RunState::Running, "the app is now {state:?}");
        Ok(())
    })
}

/// A release gives a group that is not Forebay's the knobs it had, and leaves nothing.
pub fn a_release_restores_a_foreign_group<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.group()?;
        case.wait(&app, "is running", |s| s.state == RunState::Running)?;
        let trials = case.trials();
        let mut originals = BTreeMap::new();
        for knob in trials.iter().map(Setting::knob) {
            originals.insert(knob, case.read(&app, knob)?);
        }
        // The idle class last: a group in it takes no weight.
        let idle = |knob: &&Knob| **knob == Knob::CpuIdle;
        let others = originals.keys().filter(|knob| !idle(knob));
        for knob in others.chain(originals.keys().filter(idle)) {
            // The first value of each knob alone: the last may be what was there.
            if let Some(setting) = trials.iter().find(|s| s.knob() == *knob) {
                case.set(&app, *setting)?;
            }
        }
        case.done(Action::Release {
            app: app.id.clone(),
        })?;
        for (knob, original) in originals {
            let is = case.read(&app, knob)?;
            ensure!(is == original, "was {original}, is {is}");
        }
        case.in_force.clear();
        let sample = case.sample(&app)?;
        let state = &sample.state;
        ensure!(*state == RunState::Running, "its process is {state:?}");
        case.ensure_nothing_left()
    })
}

/// A released program goes on, outside of any slice, and can still be ended.
pub fn a_released_app_keeps_running_outside<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        let before = case.start(&app)?;
        if let Some(setting) = case.trials().first().copied() {
            case.set(&app, setting)?;
        }
        for _ in 0..2 {
            // A release of what is released is done too.
            case.done(Action::Release {
                app: app.id.clone(),
            })?;
        }
        case.in_force.clear();
        case.ensure_nothing_left()?;
        let sample = case.sample(&app)?;
        let state = &sample.state;
        ensure!(*state == RunState::Running, "released, it is {state:?}");
        ensure!(
            sample.main_pid == before.main_pid,
            "another process: {sample:?}"
        );
        case.done(Action::Kill {
            app: app.id.clone(),
        })?;
        case.wait(&app, "is over", |s| s.state != RunState::Running)?;
        Ok(())
    })
}

/// A group that somebody removes is noticed; what is done to it then has an outcome.
pub fn a_vanished_group_is_no_disaster<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.group()?;
        case.wait(&app, "is running", |s| s.state == RunState::Running)?;
        let Some(setting) = case.trials().first().copied() else {
            return Ok(());
        };
        case.set(&app, setting)?;
        let removed = case.fixture.remove_group(&mut case.host, &app);
        removed.map_err(Unmet::Skipped)?;
        case.wait(&app, "is seen to be gone", |sample| {
            sample.state == RunState::Absent && sample.foreign.is_empty()
        })?;
        let outcome = case.apply(Action::Set {
            app: app.id.clone(),
            setting,
        })?;
        ensure!(
            matches!(outcome, Outcome::Failed(_)),
            "a setting in no group gave {outcome:?}"
        );
        case.done(Action::Release {
            app: app.id.clone(),
        })?;
        case.ensure_nothing_left()
    })
}

/// When a group is made anew for an app that was seen before, the engine learns that its
/// knobs are not what it had set: they are given as found, or the old ones are in force.
pub fn a_group_made_anew_is_found_anew<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        let Some(setting) = case.trials().first().copied() else {
            return Ok(());
        };
        case.set(&app, setting)?;
        case.sample(&app)?;
        let removed = case.fixture.remove_group(&mut case.host, &app);
        removed.map_err(Unmet::Skipped)?;
        case.wait(&app, "is seen to be gone", |s| s.state != RunState::Running)?;
        case.done(Action::Start {
            app: app.clone().into(),
        })?;
        let sample = case.wait(&app, "runs again", |s| s.state == RunState::Running)?;
        let is = case.read(&app, setting.knob())?;
        ensure!(
            is == setting || sample.found.contains(&is),
            "{setting} was set, the new group has {is} and that is not said: {:?}",
            sample.found
        );
        Ok(())
    })
}
