//! What is done about a shortage that is only forecast, before it comes.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::offload::{ACTING, Load, Stage, Work, assert_in_the_kernel};
use crate::place::eventually;

/// How far is looked ahead, and the part of the forecast that a source without a record is believed by.
const HORIZON_MS: u64 = 6000;
/// CPUs that the source says the app will need; half of that is expected.
const SAID: f64 = 1.2;

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// What somebody says of `web` from this second on, for ten minutes.
fn say(file: &Path, from: u64) {
    let (issued, until) = (unix_ms() / 1000, from + 600);
    let text = format!(
        "{{\"issued\": {issued}, \"points\": [{{\"from\": {from}, \"until\": {until}, \"q50\": {SAID}}}]}}"
    );
    let beside = file.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, file).unwrap();
}

/// One core is enough for what it is expected to use, and 40 % of one core is less than that: the ladder alone gives it
/// a second one, before anything is asked of it.
#[test]
fn a_shortage_that_is_only_forecast_is_answered_before_it_comes() {
    let name = "a_shortage_that_is_only_forecast_is_answered_before_it_comes";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("said.json");
    say(&file, unix_ms() / 1000 + 3600);
    let rest = format!(
        "{ACTING}\n[policy]\nhorizon = \"{HORIZON_MS}ms\"\n[[external_forecast]]\napp = \"web\"\nresource = \
         \"cpu\"\nsource = \"{}\"\nevery = \"1s\"\n",
        file.display()
    );
    let work = Work {
        us: 10_000,
        at_once: 1,
    };
    let Some(mut stage) = Stage::new(name, work, "", &rest) else {
        return;
    };
    let mut ticks = stage.ticks();
    let begins = unix_ms() / 1000 + 12;
    let begins_ms = begins * 1000;
    say(&file, begins);

    let (raised, why) = ticks.find("a rung is taken", |tick| tick.offload.first().cloned());
    println!(
        "{} ms before: {why}",
        begins_ms.saturating_sub(raised.unix_ms)
    );
    let parts = [
        "offload: give it more CPUs (1.00 CPU), since it is expected to use 0.6",
        "CPU, more than 40% of the 1.00 of its slice, within 6 s and with a chance of at least 50% (`",
        "said.json (believed 50 %",
    ];
    for part in parts {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert!(
        raised.unix_ms + HORIZON_MS >= begins_ms,
        "nobody knows so early: {raised:?}"
    );
    let two = |tick: &crate::offload::Tick| (tick.cpus.len() == 2).then_some(());
    let (grown, ()) = ticks.find("a larger slice", two);
    assert_in_the_kernel(&stage, &grown.cpus);
    assert!(
        grown.unix_ms < begins_ms,
        "it came too late: {begins_ms} {grown:?}"
    );
    assert!(
        grown.cpu.is_none_or(|used| used < 0.3),
        "it is needed already: {grown:?}"
    );
    let said = stage.explained();
    for part in [
        "It is constrained: it is expected to use 0.6",
        "with a chance of at least 50% (`",
        "what it lacks is processor time",
        "In force for it: give it more CPUs (1.00 CPU), its effect is being measured.",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }

    // Then it comes.
    let left = Duration::from_millis(begins_ms.saturating_sub(unix_ms()));
    std::thread::park_timeout(left);
    let load = Load::full(&stage, 1);
    let (busy, ()) = ticks.find("it is used", |tick| {
        tick.cpu.is_some_and(|used| used > 0.4).then_some(())
    });
    assert_eq!(busy.cpus.len(), 2, "{busy:?}");
    eventually("what it did is known", || {
        let said = stage.explained();
        said.contains("Tried: give it more CPUs (1.00 CPU): it was 1.5")
            && said.contains(" predicted), kept.")
            && said.contains("In force for it: give it more CPUs (1.00 CPU).")
    });
    println!("{}", stage.explained());
    drop(load);
    stage.place.stop_well();
}
