//! What is done on block devices, and limits that were there before.

use forebay_core::app::IoMax;
use forebay_core::host::{Action, Host};
use forebay_core::slice::{Knob, Setting};
use forebay_core::units::Limit;

use super::{Fixture, Unmet, Verdict, ensure, id, with};

/// What an app reads is counted on one device, in bytes and in requests, and counters only grow.
pub fn io_is_counted_by_device<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let made = case.fixture.reader(&mut case.host, id("contract-reader"));
        let app = made.map_err(Unmet::Skipped)?;
        case.apps.insert(app.id.clone(), app.clone());
        case.start(&app)?;
        let reads = |sample: &forebay_core::snapshot::AppSample| {
            let io = sample.io.as_ref().ok()?;
            let (device, counters) = io.iter().max_by_key(|(_, counters)| counters.reads)?;
            (counters.reads > 0).then_some((*device, *counters))
        };
        let first = case.wait(&app, "reads", |sample| reads(sample).is_some())?;
        let Some((device, before)) = reads(&first) else {
            return Err(Unmet::Broken("what was there is gone".to_owned()));
        };
        ensure!(
            before.read_bytes >= before.reads * 512,
            "{} bytes in {} requests",
            before.read_bytes,
            before.reads
        );
        let more = case.wait(&app, "reads on", |sample| {
            reads(sample).is_some_and(|(_, now)| now.reads > before.reads)
        })?;
        let now = reads(&more).map(|(_, now)| now).unwrap_or_default();
        ensure!(
            reads(&more).map(|(device, _)| device) == Some(device),
            "first it read from {device}, then {:?}",
            more.io
        );
        ensure!(
            now.read_bytes > before.read_bytes && now.write_bytes >= before.write_bytes,
            "{before:?} became {now:?}"
        );
        Ok(())
    })
}

/// A limit of a device that the owner of a group had set is known, stays known when Forebay
/// has set another, and is there again after the release.
pub fn an_owners_limit_of_a_device_is_known_and_comes_back<H: Host>(
    fixture: &mut impl Fixture<H>,
) -> Verdict {
    with(fixture, |case| {
        let device = case
            .host
            .capabilities()
            .knobs
            .iter()
            .find_map(|knob| match knob {
                Knob::IoMax(device) => Some(*device),
                _ => None,
            });
        let Some(device) = device else {
            return Err(Unmet::Skipped(
                "no limits of devices are offered".to_owned(),
            ));
        };
        let app = case.group()?;
        let owners = IoMax {
            rbps: Limit::At(32 << 20),
            ..IoMax::NONE
        };
        let setting = Setting::IoMax(device, owners);
        let written = case.fixture.write(&mut case.host, &app, setting);
        written.map_err(Unmet::Skipped)?;
        let sample = case.sample(&app)?;
        ensure!(
            sample.io_before.get(setting.knob()) == Some(&setting),
            "the owner set {setting}, known is {:?}",
            sample.io_before
        );
        ensure!(
            sample.found.contains(&setting),
            "{setting} is not in {:?}",
            sample.found
        );
        let ours = IoMax {
            rbps: Limit::At(16 << 20),
            ..owners
        };
        case.set(&app, Setting::IoMax(device, ours))?;
        case.ensure_in_force(&app, Setting::IoMax(device, ours))?;
        case.done(Action::Release {
            app: app.id.clone(),
        })?;
        case.ensure_in_force(&app, setting)
    })
}
