//! What asking for memory promises. A host that cannot reclaim skips most of it.

use std::collections::BTreeSet;

use forebay_core::app::{App, Binding};
use forebay_core::host::{Action, Host, Outcome};
use forebay_core::plan::watch::WATCHED_MAX;
use forebay_core::slice::Knob;
use forebay_core::snapshot::{AppSample, Gap, MemoryWatch, Reclaim, ReclaimState};
use forebay_core::units::Bytes;

use super::{Case, Fixture, PERIODS_MAX, Unmet, Verdict, ensure, id, with};

/// What a hoarding group must at least have to give.
pub const HOARD: Bytes = Bytes::mib(48);
/// What is asked for.
const ASKED: Bytes = Bytes::mib(16);
/// What must come of it: the group may take a little meanwhile.
const COMES: Bytes = Bytes::mib(12);
/// How often a wait of [`PERIODS_MAX`] is tried: emulated hosts read and reclaim slowly.
const TRIES: u32 = 20;

/// A group that is asked for memory gives it back, and what is under way and what came of it
/// shows; none of its knobs is another afterwards.
pub fn memory_asked_for_comes_back<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let (app, before) = hoard(case)?;
        let limit = case.read(&app, Knob::MemoryMax)?;
        let numbers = [ask(case, &app)?.number, ask(case, &app)?.number];
        ensure!(
            numbers[0] < numbers[1],
            "requests are not counted: {numbers:?}"
        );
        let after = sample_of_memory(case, &app)?;
        ensure!(
            after.saturating_add(COMES).saturating_add(COMES) <= before,
            "twice {ASKED} were asked for: {before} became {after}"
        );
        case.ensure_in_force(&app, limit)?;
        case.done(Action::Release {
            app: app.id.clone(),
        })?;
        case.ensure_in_force(&app, limit)?;
        case.ensure_nothing_left()
    })
}

/// The memory of an app is divided into lists that together are not more than is charged.
pub fn memory_is_divided<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let (app, _) = hoard(case)?;
        let sample = case.wait(&app, "shows its memory.stat", |sample| {
            sample.memory_stat.is_ok()
        })?;
        let (Ok(stat), Ok(used)) = (&sample.memory_stat, &sample.memory_used) else {
            return Err(Unmet::Broken(format!("not read together: {sample:?}")));
        };
        let sum = stat.anon().saturating_add(stat.file());
        ensure!(
            sum >= HOARD && sum.saturating_sub(Bytes::mib(16)) <= *used,
            "{used} are charged, {stat:?}"
        );
        Ok(())
    })
}

/// A request to an app that is not known, or has no group, fails and names it; where the host
/// cannot reclaim at all, it is unsupported.
pub fn memory_of_an_unknown_app_cannot_be_had<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let app = App {
            binding: Binding::Cgroup("contract/no/such/group".into()),
            ..case.burner()
        };
        case.apps.insert(app.id.clone(), app.clone());
        case.sample(&app)?;
        let offered = case.host.capabilities().reclaim;
        for app in [app.id, id("contract-unknown")] {
            let outcome = case.apply(Action::Reclaim {
                app: app.clone(),
                bytes: ASKED,
            })?;
            let said = matches!(&outcome, Outcome::Failed(why) if why.contains(app.as_str()));
            ensure!(
                if offered {
                    said
                } else {
                    outcome == Outcome::Unsupported
                },
                "a request to {app} gave {outcome:?}"
            );
        }
        Ok(())
    })
}

/// Accesses to an app's memory are watched as long as that is asked for, of no more apps than may
/// be; nothing is said to be touched of an app that is not watched.
pub fn memory_is_watched_as_long_as_that_is_asked_for<H: Host>(
    fixture: &mut impl Fixture<H>,
) -> Verdict {
    with(fixture, |case| {
        match case.observe().host.memory_watch {
            Err(Gap::Unsupported) => {
                return Err(Unmet::Skipped("the kernel watches no memory".to_owned()));
            }
            Ok(MemoryWatch {
                taken: Some(who), ..
            }) => return Err(Unmet::Skipped(who)),
            Ok(watch) => ensure!(watch.apps.is_empty(), "nothing was done yet: {watch:?}"),
            Err(gap) => return Err(Unmet::Broken(format!("not read: {gap}"))),
        }
        let app = case.burner();
        case.apps.insert(app.id.clone(), app.clone());
        let sample = case.sample(&app)?;
        ensure!(sample.touched.is_err(), "nobody watches: {sample:?}");
        let crowd = (0..=WATCHED_MAX).map(|index| id(&format!("contract-{index}")));
        let outcome = case.apply(Action::WatchMemory {
            apps: crowd.collect(),
        })?;
        ensure!(
            matches!(outcome, Outcome::Failed(_)),
            "more than {WATCHED_MAX} at once: {outcome:?}"
        );
        for apps in [BTreeSet::from([app.id.clone()]), BTreeSet::new()] {
            case.done_in_time(&Action::WatchMemory { apps: apps.clone() })?;
            let seen = case.observe().host.memory_watch;
            ensure!(
                seen.as_ref()
                    .is_ok_and(|seen| seen.apps == apps && seen.taken.is_none()),
                "watched are {apps:?}, seen is {seen:?}"
            );
        }
        let sample = case.sample(&app)?;
        ensure!(sample.touched.is_err(), "nobody watches: {sample:?}");
        Ok(())
    })
}

/// A group with something to give, once it has it, and how much it holds.
fn hoard<H: Host, F: Fixture<H>>(case: &mut Case<'_, H, F>) -> Result<(App, Bytes), Unmet> {
    if !case.host.capabilities().reclaim {
        return Err(Unmet::Skipped("the host cannot reclaim".to_owned()));
    }
    let made = case
        .fixture
        .hoarding_group(&mut case.host, id("contract-hoard"));
    let app = made.map_err(Unmet::Skipped)?;
    case.apps.insert(app.id.clone(), app.clone());
    let full = |sample: &AppSample| sample.memory_used.as_ref().is_ok_and(|used| *used >= HOARD);
    wait_long(case, &app, "holds its memory", full)?;
    // It may still be taking more.
    let mut used = sample_of_memory(case, &app)?;
    for _ in 1..TRIES * PERIODS_MAX {
        let next = sample_of_memory(case, &app)?;
        if next <= used {
            break;
        }
        used = next;
    }
    Ok((app, used))
}

fn ask<H: Host, F: Fixture<H>>(case: &mut Case<'_, H, F>, app: &App) -> Result<Reclaim, Unmet> {
    case.done(Action::Reclaim {
        app: app.id.clone(),
        bytes: ASKED,
    })?;
    let over = |sample: &AppSample| {
        let reclaim = sample.reclaim;
        reclaim.is_some_and(|reclaim| reclaim.state != ReclaimState::Running)
    };
    let sample = wait_long(case, app, "gave memory back", over)?;
    let Some(reclaim) = sample.reclaim else {
        return Err(Unmet::Broken(format!("no request is shown: {sample:?}")));
    };
    ensure!(
        reclaim.asked == ASKED && reclaim.got >= COMES && reclaim.got <= ASKED,
        "{ASKED} were asked for: {reclaim:?}"
    );
    Ok(reclaim)
}

fn wait_long<H: Host, F: Fixture<H>>(
    case: &mut Case<'_, H, F>,
    app: &App,
    what: &str,
    wanted: impl Fn(&AppSample) -> bool,
) -> Result<AppSample, Unmet> {
    for _ in 1..TRIES * PERIODS_MAX {
        let sample = case.sample(app)?;
        if wanted(&sample) {
            return Ok(sample);
        }
        case.settle();
    }
    case.wait(app, what, wanted)
}

fn sample_of_memory<H: Host, F: Fixture<H>>(
    case: &mut Case<'_, H, F>,
    app: &App,
) -> Result<Bytes, Unmet> {
    // What the group holds may still be on its way from one count to another.
    case.settle();
    let sample = case.sample(app)?;
    sample
        .memory_used
        .map_err(|gap| Unmet::Broken(format!("memory in use is not read: {gap}")))
}
