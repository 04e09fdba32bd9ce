//! What is done on block devices, and limits that were there before.

use forebay_core::app::{Device, IoMax};
use forebay_core::host::{Action, Host};
use forebay_core::io::{CostModel, Costs};
use forebay_core::slice::{Knob, Setting};
use forebay_core::snapshot::CostModels;
use forebay_core::units::Limit;

use super::{Case, Fixture, Unmet, Verdict, ensure, id, with};

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
        let device = disk(case)?;
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
            sample.before.get(setting.knob()) == Some(&setting),
            "the owner set {setting}, known is {:?}",
            sample.before
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

/// The device that limits are offered for.
fn disk<H: Host, F: Fixture<H>>(case: &Case<'_, H, F>) -> Result<Device, Unmet> {
    let mut knobs = case.host.capabilities().knobs.iter();
    let device = knobs.find_map(|knob| match knob {
        Knob::IoMax(device) => Some(*device),
        _ => None,
    });
    device.ok_or_else(|| Unmet::Skipped("no limits of devices are offered".to_owned()))
}

/// The kernel goes by the costs that it is told, another model takes the place of the first, and
/// what was there before comes back.
pub fn a_cost_model_is_installed_and_comes_back<H: Host>(fixture: &mut impl Fixture<H>) -> Verdict {
    with(fixture, |case| {
        let device = disk(case)?;
        if !case.host.capabilities().cost_models {
            return Err(Unmet::Skipped("the kernel has no io.cost here".to_owned()));
        }
        let before = models(case)?;
        if before.others.contains(&device) {
            return Err(Unmet::Skipped(format!("somebody has a model of {device}")));
        }
        ensure!(
            before.in_force.is_empty(),
            "nothing was done yet: {before:?}"
        );
        for bytes_per_second in [1 << 30, 2 << 30] {
            let costs = Costs {
                bytes_per_second,
                sequential_per_second: 200_000,
                random_per_second: 100_000,
                latency_us: 50_000,
            };
            let model = CostModel {
                read: costs,
                write: costs,
            };
            case.done(Action::CostModel {
                device,
                model: Some(model),
            })?;
            let on = case.fixture.has_cost_model(&case.host, device);
            ensure!(on == Ok(true), "{device} has no model: {on:?}");
            let seen = models(case)?;
            ensure!(
                seen.in_force.get(&device) == Some(&model) && seen.foreign.is_empty(),
                "installed was {model:?}, seen is {seen:?}"
            );
        }
        let model = None;
        case.done(Action::CostModel { device, model })?;
        let on = case.fixture.has_cost_model(&case.host, device);
        ensure!(on == Ok(false), "{device} still has a model: {on:?}");
        let seen = models(case)?;
        ensure!(seen == before, "it was {before:?}, and is {seen:?}");
        Ok(())
    })
}

fn models<H: Host, F: Fixture<H>>(case: &mut Case<'_, H, F>) -> Result<CostModels, Unmet> {
    let seen = case.observe().host.cost_models;
    seen.map_err(|gap| Unmet::Broken(format!("cost models: {gap:?}")))
}
