//! What freezing promises. A host that cannot freeze skips all of it.

use std::time::Duration;

use forebay_core::app::App;
use forebay_core::host::{Action, Host, Outcome};
use forebay_core::snapshot::{AppSample, RunState};

use super::{Case, Fixture, PERIODS_MAX, Unmet, Verdict, ensure, with};

/// Periods in which a frozen app is watched.
const PERIODS_STILL: u32 = 3;
/// What a task may still book on its way out of a CPU.
const STILL: Duration = Duration::from_millis(1);

/// A frozen app is running and uses no CPU time; thawed, it goes on. Both can be asked for
/// again.
pub fn a_frozen_app_stands_still_and_goes_on<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        ensure_moving(case, &app)?;
        for _ in 0..2 {
            freeze(case, &app)?;
            ensure_still(case, &app)?;
        }
        for _ in 0..2 {
            thaw(case, &app)?;
            ensure_moving(case, &app)?;
        }
        Ok(())
    })
}

/// A frozen program that is released goes on outside, and in its slice once it is back.
pub fn a_frozen_app_goes_on_when_it_is_released<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        freeze(case, &app)?;
        case.done(Action::Release {
            app: app.id.clone(),
        })?;
        case.ensure_nothing_left()?;
        let outside = case.wait(&app, "is outside", |s| !s.strays.is_empty())?;
        case.done(Action::Enter {
            app: app.id.clone(),
            pids: outside.strays.into_iter().collect(),
        })?;
        ensure_moving(case, &app)
    })
}

/// A group that is not Forebay's is thawed by its release as well.
pub fn a_frozen_group_of_others_is_thawed_by_its_release<H: Host>(
    fixture: &mut impl Fixture<H>,
) -> Verdict {
    with(fixture, |case| {
        let app = case.group()?;
        case.wait(&app, "is running", |s| s.state == RunState::Running)?;
        freeze(case, &app)?;
        ensure_still(case, &app)?;
        case.done(Action::Release {
            app: app.id.clone(),
        })?;
        case.ensure_nothing_left()?;
        ensure_moving(case, &app)
    })
}

/// A frozen app can be ended, and what is started in its place is not frozen.
pub fn a_killed_frozen_app_dies_and_starts_again<H: Host>(
    fixture: &mut impl Fixture<H>,
) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        freeze(case, &app)?;
        case.done(Action::Kill {
            app: app.id.clone(),
        })?;
        case.wait(&app, "is over", |s| s.state != RunState::Running)?;
        case.start(&app)?;
        ensure_moving(case, &app)
    })
}

/// A start in a frozen slice is refused, not waited for.
pub fn nothing_is_started_in_a_frozen_slice<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.sample(&app)?;
        let Some(setting) = case.trials().first().copied() else {
            return Ok(());
        };
        // Which makes the slice.
        case.set(&app, setting)?;
        freeze(case, &app)?;
        let outcome = case.apply(Action::Start {
            app: app.clone().into(),
        })?;
        ensure!(
            matches!(&outcome, Outcome::Failed(why) if why.contains("frozen")),
            "a start in a frozen slice gave {outcome:?}"
        );
        thaw(case, &app)?;
        case.start(&app)?;
        ensure_moving(case, &app)
    })
}

/// A host that goes while an app is frozen ends it or lets it go on: the fixture sees to
/// that, and fails when it cannot finish.
pub fn a_frozen_app_does_not_hold_up_the_end<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = case.burner();
        case.start(&app)?;
        freeze(case, &app)
    })
}

/// Asks until nobody runs, in bounded time.
fn freeze<H: Host, F: Fixture<H>>(case: &mut Case<'_, H, F>, app: &App) -> Verdict {
    let mut outcome = Outcome::Unsupported;
    for _ in 0..PERIODS_MAX {
        outcome = case.apply(Action::Freeze {
            app: app.id.clone(),
        })?;
        match outcome {
            Outcome::Done => return Ok(()),
            Outcome::Unsupported => {
                return Err(Unmet::Skipped("this host cannot freeze".to_owned()));
            }
            Outcome::Failed(_) | Outcome::Pending => case.settle(),
        }
    }
    Err(Unmet::Broken(format!(
        "not frozen in {PERIODS_MAX} periods: {outcome:?}"
    )))
}

fn thaw<H: Host, F: Fixture<H>>(case: &mut Case<'_, H, F>, app: &App) -> Verdict {
    case.done(Action::Thaw {
        app: app.id.clone(),
    })
}

fn ensure_still<H: Host, F: Fixture<H>>(case: &mut Case<'_, H, F>, app: &App) -> Verdict {
    let before = used(&case.wait(app, "shows its CPU time", |s| s.cpu_used.is_ok())?);
    for _ in 0..PERIODS_STILL {
        case.settle();
        let sample = case.sample(app)?;
        let state = &sample.state;
        ensure!(*state == RunState::Running, "frozen, it is {state:?}");
        let now = used(&sample);
        ensure!(now <= before + STILL, "frozen at {before:?}, used {now:?}");
    }
    Ok(())
}

fn ensure_moving<H: Host, F: Fixture<H>>(case: &mut Case<'_, H, F>, app: &App) -> Verdict {
    let before = used(&case.wait(app, "shows its CPU time", |s| s.cpu_used.is_ok())?);
    case.wait(app, "uses CPU time", |s| used(s) > before + STILL)?;
    Ok(())
}

/// Processor time used so far, as far as this sample says.
fn used(sample: &AppSample) -> Duration {
    sample.cpu_used.clone().unwrap_or_default()
}
