//! Tasks that go to accelerators where CPUs are scarce.

use super::*;
use crate::accel::Use;

/// A worker with one device that could compute one kernel of the app.
const WORKER: Use = Use {
    devices: 1,
    quarantined: 0,
    faults: 0,
    kernels: 1,
    busy: 0.0,
    on_cpu: 20.0,
    on_devices: 0.0,
    shared: Bytes(0),
    price: 1.0,
};

fn with_worker(cpu: f64, used: Option<Use>) -> Case {
    let mut case = Case::new("web", Class::Standard, cpu);
    case.demand.usage.accelerator = used;
    case
}

#[test]
fn a_worker_with_a_device_and_a_kernel_for_it_is_a_rung_and_nothing_less_is() {
    let offer = |used| {
        let case = with_worker(1.9, used);
        let means = means(0);
        let offer = means.offer(&case.seen(), Rung::Accelerate, 1.2);
        offer.map(|offer| offer.effect)
    };
    assert_eq!(offer(Some(WORKER)), Ok(Effect::Whole));
    assert_eq!(offer(None), Err(Absence::NoAccelerator));
    let without = |devices, kernels| Use {
        devices,
        kernels,
        ..WORKER
    };
    assert_eq!(offer(Some(without(0, 1))), Err(Absence::NoAcceleratorFree));
    assert_eq!(offer(Some(without(1, 0))), Err(Absence::NoKernels));
}

/// The periods in which something was begun or taken back, where the app uses less of its slice once
/// its tasks go to an accelerator, or does not.
fn climbed(helps: bool, periods: u64) -> (Vec<(u64, Direction)>, Memory) {
    let (hard, eased) = (
        with_worker(1.9, Some(WORKER)),
        with_worker(0.4, Some(WORKER)),
    );
    let (rules, mut memory) = (acting(), Memory::default());
    let mut steps = Vec::new();
    let mut accelerates = false;
    for period in 0..periods {
        let time = at(period * 100);
        let case = if accelerates && helps { &eased } else { &hard };
        let view = View {
            time,
            rules: &rules,
            horizon: Duration::from_secs(1),
            apps: vec![case.seen()],
            means: means(0),
        };
        let (decision, after) = decide(&view, &memory);
        memory = after;
        for step in &decision.steps {
            assert_eq!(step.rung, Rung::Accelerate);
            steps.push((period, step.turn));
        }
        let climb = decision.climbs.get(&case.app.id);
        accelerates = climb.is_some_and(Climb::accelerates);
        let last = steps.last().map(|(_, turn)| *turn);
        assert_eq!(accelerates, last == Some(Direction::Take), "{period}");
    }
    (steps, memory)
}

#[test]
fn what_does_not_help_is_taken_back_and_left_alone_for_a_while() {
    let (steps, _) = climbed(false, 600);
    // Raised after 1 s, measured for twice the settling time, then barred for a minute.
    assert_eq!(steps, [(10, Direction::Take), (110, Direction::Undo)]);
}

#[test]
fn what_helped_is_kept_and_let_go_a_minute_after_it_is_not_needed() {
    let (steps, _) = climbed(true, 720);
    // Measured until 11 s, and not needed for a minute from there on.
    assert_eq!(steps, [(10, Direction::Take), (711, Direction::Undo)]);
}

#[test]
fn a_shortage_that_is_only_forecast_sends_tasks_away_before_it_comes() {
    let mut case = with_worker(0.4, Some(WORKER));
    case.demand.cpu = band(1.9);
    let mut memory = Memory::default();
    let decisions = run(&[case], &acting(), &mut memory, 0, 12, 0);
    assert_eq!(
        steps(&decisions),
        [(10, "web".to_owned(), Rung::Accelerate)]
    );
    let climb = decisions[10].climbs.values().next().unwrap();
    assert_eq!(climb.constraints[0].watched.when, When::Ahead);
}
