//! Fleets of twenty hosts, for hours, with everything going wrong.

use super::*;

fn options(seed: u64) -> Options {
    Options {
        hours: 4,
        seed,
        faults: true,
        past_days: 0,
        ..Options::of(20, 200)
    }
}

fn play(options: Options) -> Report {
    run(options).unwrap_or_else(|failure| panic!("{failure}"))
}

/// How many seeds, unless somebody asks for more.
fn seeds() -> u64 {
    let asked = std::env::var("FOREBAY_TEST_SEEDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(12)
}

#[test]
fn nothing_breaks_whatever_fails() {
    let mut seen = Totals::default();
    for seed in 0..seeds() {
        let arm = if seed % 2 == 0 {
            Arm::Forecast
        } else {
            Arm::Reactive
        };
        let load = 0.5 + 0.05 * f64::from(u32::try_from(seed % 6).unwrap());
        let totals = play(Options {
            arm,
            load,
            ..options(seed)
        })
        .totals;
        seen.moved += totals.moved;
        seen.stayed += totals.stayed;
        seen.taken_over += totals.taken_over;
        seen.lease_freezes += totals.lease_freezes;
        seen.leases_ended += totals.leases_ended;
        seen.lost += totals.lost;
        seen.faults += totals.faults;
    }
    // Enough went wrong for that to say something.
    assert!(seen.moved > 40 && seen.stayed > 5, "{seen:?}");
    assert!(seen.taken_over > 20 && seen.leases_ended > 20, "{seen:?}");
    assert!(seen.lease_freezes > 50 && seen.faults > 500, "{seen:?}");
}

#[test]
fn a_seed_replays() {
    let one = play(options(3));
    assert_eq!(one, play(options(3)));
    assert_ne!(one, play(options(4)));
}

#[test]
fn without_faults_nothing_goes_down_and_the_coordinator_is_asked_little() {
    let report = play(Options {
        faults: false,
        load: 0.65,
        ..options(5)
    });
    let totals = report.totals;
    assert_eq!(
        totals.leases_ended + totals.taken_over + totals.lost,
        0,
        "{totals:?}"
    );
    assert!(
        totals.moved > 0 && totals.moved == totals.left,
        "{totals:?}"
    );
    assert!(report.requests_per_host_second() < 0.5, "{report:?}");
    assert!(report.busiest_per_host_second() < 2.0, "{report:?}");
}

#[test]
fn moving_helps_and_foresight_helps_more() {
    let constrained = |arm| {
        let all = (1..=2).map(|seed| {
            play(Options {
                faults: false,
                hosts: 10,
                apps: 100,
                hours: 6,
                past_days: 1,
                arm,
                seed,
                load: 0.6,
            })
            .constrained_minutes()
        });
        all.sum::<f64>()
    };
    let [off, reactive, forecast] = [Arm::Off, Arm::Reactive, Arm::Forecast].map(constrained);
    assert!(
        forecast < reactive && reactive < off,
        "{off} {reactive} {forecast}"
    );
}
