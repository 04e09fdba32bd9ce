//! Fleets of twenty hosts, for hours, with everything going wrong.

use forebay_core::fleet::tenure::Takeover;

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
        seen.homeless += totals.homeless;
        seen.faults += totals.faults;
    }
    // Enough went wrong for that to say something.
    assert!(seen.moved > 40 && seen.stayed > 5, "{seen:?}");
    assert!(seen.taken_over > 20 && seen.leases_ended > 20, "{seen:?}");
    assert!(seen.lease_freezes > 50 && seen.faults > 500, "{seen:?}");
    // Of those that others may take over next to none waits for room.
    println!("{seen:?}");
    assert!(seen.homeless * 10 <= seen.taken_over, "{seen:?}");
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

/// A world as it begins, and an application of it that runs, with its host and another one.
fn begun(takeover: Takeover) -> (world::World, usize, [usize; 2]) {
    let mut world = start::begin(options(6));
    let mut apps = (0..world.apps.len()).filter(|app| world.apps[*app].takeover == takeover);
    let app = apps.next().unwrap();
    let owner = world.coordinator.records[app].owner.clone();
    let host = world.host_of(&owner);
    world.start(host, app);
    assert_eq!(
        (world.apps[app].running, &world.broken),
        (Some(host), &None)
    );
    let other = (host + 1) % world.hosts.len();
    (world, app, [host, other])
}

#[test]
fn what_runs_is_not_given_away() {
    let (mut world, app, [_, other]) = begun(Takeover::Never);
    let record = world.coordinator.records[app].clone();
    let to = record.given_to(&world.hosts[other].name.clone());
    let outcome = world.change_record(app, record.epoch, &to);
    assert_eq!(outcome, forebay_core::fleet::Outcome::Done);
    let broken = world.broken.take().unwrap();
    assert!(broken.contains("runs it"), "{broken}");
}

#[test]
fn one_that_is_taken_over_goes_on_from_what_was_stored() {
    let took_over = |stops: bool| {
        let (mut world, app, [host, other]) = begun(Takeover::AfterLease);
        world.now += 60 * SECOND;
        if stops {
            world.stop(host, app, world::Fares::Down, host::Copy::Files);
        }
        let record = world.coordinator.records[app].clone();
        let to = record.given_to(&world.hosts[other].name.clone());
        world.change_record(app, record.epoch, &to);
        let copy = host::Local {
            copy: host::Copy::Files(0),
            homes: Default::default(),
            epoch: to.epoch,
        };
        world.broken = None;
        world.put(other, app, copy);
        world.start(other, app);
        if !stops {
            // The old owner ends later, and what it writes is refused.
            world.broken = None;
            world.now += SECOND;
            world.stop(host, app, world::Fares::Down, host::Copy::Files);
        }
        world.broken.take()
    };
    assert_eq!(took_over(true), None);
    let broken = took_over(false).unwrap();
    assert!(broken.contains("a newer owner has it"), "{broken}");
}

#[test]
fn a_host_sees_what_is_used_and_who_waits_and_no_more() {
    let (mut world, app, [host, _]) = begun(Takeover::Never);
    world.apps[app].class = forebay_core::app::Class::Standard;
    let all = world.hosts[host].capacity.cpu.as_cpus();
    let wanted = world.apps[app].wants;
    world.apps[app].wants = 3.0 * all;
    world.share_out(host);
    let uses = world.apps[app].uses;
    assert!(uses.waits && uses.cpus <= all, "{uses:?}");
    assert!(
        world.need(app).expected < 2.0 * all,
        "what it wants is not known"
    );
    world.apps[app].wants = wanted;
    world.share_out(host);
    assert!(!world.apps[app].uses.waits);
}
