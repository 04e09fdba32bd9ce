//! Sources with a seed: perfect, wrong, late, stale, without bounds.

use super::*;

const MINUTE: u64 = 60_000;
/// 2026-01-01.
const EPOCH: u64 = 1_767_225_600_000;

/// A load that changes from minute to minute, as one world that everybody sees.
struct World {
    external: External,
    source: Source,
    loads: Vec<f64>,
    minute: usize,
}

fn source() -> Source {
    Source {
        app: "web".parse().unwrap(),
        resource: Resource::Requests,
        place: "/srv/forecast.json".to_owned(),
    }
}

fn minute(index: usize) -> u64 {
    EPOCH + u64::try_from(index).unwrap() * MINUTE
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut external = External::default();
        external.set_sources([source()]);
        Self {
            external,
            source: source(),
            loads: (0..400).map(|_| 50.0 + 100.0 * random.f64()).collect(),
            minute: 0,
        }
    }

    /// Measures a minute, once a second.
    fn pass(&mut self) {
        let load = self.loads[self.minute];
        for second in 0..60 {
            let time = minute(self.minute) + second * 1000;
            self.external
                .record(time, &self.source.app, self.source.resource, load);
        }
        self.minute += 1;
    }

    fn now(&self) -> u64 {
        minute(self.minute)
    }

    /// Says something of the minutes from `first` on, one after the other.
    fn say(&mut self, first: usize, said: &[f64]) -> Result<(), Refused> {
        let points = said.iter().enumerate().map(|(index, said)| {
            let from = minute(first + index);
            let upper = Some(said * 1.1);
            Point::new(from, from + MINUTE, *said, [upper, upper, upper]).unwrap()
        });
        let given = Given::new(self.now(), points.collect()).unwrap();
        self.external.take(&self.source, self.now(), given)
    }

    fn belief(&self) -> Belief {
        self.external.explain(self.now(), &self.source.app)[0].belief
    }

    fn peaks(&self, minutes: u64) -> Vec<f64> {
        let horizon = Duration::from_millis(minutes * MINUTE);
        let outlook = self.external.expected(self.now(), horizon);
        let of_app = outlook.expected.get(&self.source.app);
        let spans = of_app.into_iter().flatten();
        spans.map(|span| span.peak.q50()).collect()
    }
}

/// After each of some minutes, a source says what `say` makes of the load of the next three.
fn run(seed: u64, minutes: usize, say: impl Fn(f64) -> f64) -> World {
    let mut world = World::new(seed);
    world.pass();
    for _ in 0..minutes {
        let first = world.minute;
        let said: Vec<f64> = world.loads[first..first + 3]
            .iter()
            .map(|v| say(*v))
            .collect();
        world.say(first, &said).unwrap();
        world.pass();
    }
    // One more value ends the last ten seconds of the minute.
    let (app, resource) = (world.source.app.clone(), world.source.resource);
    let load = world.loads[world.minute];
    world
        .external
        .record(minute(world.minute), &app, resource, load);
    world
}

#[test]
fn a_perfect_source_is_believed_wholly_within_the_spans_that_a_record_takes() {
    for seed in 0..20 {
        let before = run(seed, JUDGED_MIN - 1, |load| load);
        assert!((before.belief().share() - 0.5).abs() < 1e-9, "seed {seed}");
        let mut world = run(seed, JUDGED_MIN, |load| load);
        assert!(
            world.belief().share() >= 1.0,
            "seed {seed}: {}",
            world.belief()
        );
        let next = world.loads[world.minute];
        world.say(world.minute, &[next]).unwrap();
        let peaks = world.peaks(1);
        assert!((peaks[0] - next).abs() < 1e-6, "seed {seed}: {peaks:?}");
    }
}

#[test]
fn a_wrong_source_is_dropped_within_the_spans_that_a_record_takes_and_may_come_back() {
    for seed in 0..20 {
        let mut world = run(seed, JUDGED_MIN, |load| load * 3.0);
        assert!(
            world.belief().share() <= 0.0,
            "seed {seed}: {}",
            world.belief()
        );
        world.say(world.minute, &[400.0]).unwrap();
        assert_eq!(world.peaks(5), [0.0; 0], "seed {seed}");
        let said = world.external.explain(world.now(), &world.source.app)[0].to_string();
        assert!(
            said.contains("ignored") && said.contains("/srv/forecast.json"),
            "{said}"
        );
        for _ in 0..JUDGED_MAX {
            let next = world.loads[world.minute];
            world.say(world.minute, &[next]).unwrap();
            world.pass();
        }
        assert!(
            world.belief().share() > 0.5,
            "seed {seed}: {}",
            world.belief()
        );
    }
}

#[test]
fn a_source_that_is_late_earns_nothing_and_is_half_believed() {
    let mut world = World::new(3);
    world.pass();
    for _ in 0..40 {
        world.pass();
        // What it says of the minute before is true, and known to all by now.
        let past = world.minute - 1;
        let said = [world.loads[past], world.loads[past + 1]];
        let points = [(minute(past), said[0]), (world.now() - 1000, said[1])]
            .map(|(from, said)| Point::new(from, from + MINUTE - 1000, said, [None; 3]).unwrap());
        let given = Given::new(world.now(), points.to_vec()).unwrap();
        world
            .external
            .take(&world.source, world.now(), given)
            .unwrap();
    }
    assert_eq!(world.belief(), Belief::Unproven { judged: 0 });
    assert_eq!(world.peaks(1).len(), 1, "what is left of the span counts");
}

#[test]
fn a_source_that_is_stale_expects_nothing_and_says_so() {
    let mut world = World::new(4);
    world.pass();
    let said = world.loads[1..4].to_vec();
    world.say(1, &said).unwrap();
    world.external.refuse(&world.source, "not JSON".to_owned());
    assert_eq!(world.peaks(10).len(), 3, "the last good one stays");
    for _ in 0..3 {
        world.pass();
    }
    assert_eq!(world.peaks(10), [0.0; 0]);
    let explained = world.external.explain(world.now(), &world.source.app);
    let said = explained[0].to_string();
    assert!(said.contains("nothing of the time from now on"), "{said}");
    assert!(said.contains("refused: not JSON"), "{said}");
}

#[test]
fn without_a_record_half_way_between_now_and_what_is_said_is_expected() {
    let mut world = World::new(5);
    world.loads[0] = 100.0;
    world.loads[1] = 100.0;
    world.pass();
    world.say(1, &[300.0]).unwrap();
    // The last ten seconds are not complete yet; those before are.
    assert_eq!(world.peaks(1), [200.0]);
    assert_eq!(world.peaks(0), [0.0; 0]);
    let outlook = world
        .external
        .expected(world.now(), Duration::from_secs(60));
    let why = &outlook.expected[&world.source.app][0].why;
    assert!(why.contains("believed 50 %: 0 of the 6 spans"), "{why}");
}

#[test]
fn reading_the_same_forecast_again_changes_nothing() {
    let again = |times: usize| {
        let mut world = World::new(6);
        world.pass();
        let said = world.loads[1..21].to_vec();
        world.say(1, &said).unwrap();
        let points = said.iter().enumerate().map(|(index, said)| {
            let from = minute(1 + index);
            let upper = Some(said * 1.1);
            Point::new(from, from + MINUTE, *said, [upper, upper, upper]).unwrap()
        });
        let given = Given::new(world.now(), points.collect()).unwrap();
        for _ in 0..20 {
            for _ in 0..times {
                let now = world.now();
                world
                    .external
                    .take(&world.source, now, given.clone())
                    .unwrap();
            }
            world.pass();
        }
        world.belief()
    };
    assert_eq!(again(0), again(3));
    assert!(
        matches!(again(0), Belief::Proven { judged: 19, .. }),
        "{}",
        again(0)
    );
}

#[test]
fn forecasts_of_what_nobody_measures_do_not_pile_up() {
    let mut world = World::new(11);
    for _ in 0..300 {
        world.minute += 1;
        world.say(world.minute, &[1.0, 2.0, 3.0]).unwrap();
    }
    let spans = world.external.sources[&world.source].spans.len();
    assert!(spans <= 5, "{spans}");
}

#[test]
fn a_gap_or_a_clock_set_back_is_not_judged() {
    let mut world = run(7, 3, |load| load);
    let judged = |world: &World| match world.belief() {
        Belief::Unproven { judged } | Belief::Proven { judged, .. } => judged,
    };
    assert_eq!(judged(&world), 3);
    // The spans of the next two minutes are known, and nothing is measured meanwhile.
    world.minute += 5;
    world.pass();
    assert_eq!(judged(&world), 3);
    world.minute -= 3;
    world.pass();
    world.pass();
    assert_eq!(judged(&world), 3);
}

#[test]
fn what_cannot_be_is_refused_and_what_was_said_stays() {
    let mut world = World::new(8);
    world.pass();
    let said = world.loads[1..3].to_vec();
    world.say(1, &said).unwrap();
    let point = |from: u64, until: u64| Point::new(from, until, 1.0, [None; 3]).unwrap();
    let check = |issued: u64, points: Vec<Point>, expected: Refused, world: &mut World| {
        let taken = Given::new(issued, points).and_then(|given| {
            world
                .external
                .take(&world.source.clone(), world.now(), given)
        });
        assert_eq!(taken, Err(expected));
        assert_eq!(world.peaks(10).len(), 2);
    };
    let now = world.now();
    let good = vec![point(now, now + MINUTE)];
    check(now, Vec::new(), Refused::Count(0), &mut world);
    let many = (0..=POINTS_MAX).map(|index| point(minute(index), minute(index + 1)));
    check(
        now,
        many.collect(),
        Refused::Count(POINTS_MAX + 1),
        &mut world,
    );
    let crossed = vec![point(now, now + MINUTE), point(now + 1, now + MINUTE)];
    check(now, crossed, Refused::Order(1), &mut world);
    check(
        now,
        vec![point(now, now + 9_999)],
        Refused::Length(0),
        &mut world,
    );
    check(
        now,
        vec![point(now, now - 1)],
        Refused::Length(0),
        &mut world,
    );
    check(
        now,
        vec![point(now, u64::MAX)],
        Refused::Time(0),
        &mut world,
    );
    check(
        now + 2 * MINUTE,
        good.clone(),
        Refused::IssuedAhead,
        &mut world,
    );
    check(now - 1, good, Refused::IssuedBefore, &mut world);
    let levels = |q50, q95| Point::new(0, MINUTE, q50, [None, q95, None]).unwrap_err();
    assert_eq!(levels(2.0, Some(1.0)), Refused::Crossing);
    assert_eq!(levels(-1.0, None), Refused::Value);
    assert_eq!(levels(f64::INFINITY, None), Refused::Value);
    assert_eq!(levels(1.0, Some(f64::NAN)), Refused::Value);
}

#[test]
fn records_stay_with_their_sources_and_go_with_them() {
    let mut world = run(9, JUDGED_MIN, |load| load);
    let other = Source {
        place: "http://127.0.0.1/f".to_owned(),
        ..source()
    };
    world.external.set_sources([source(), other]);
    assert!(world.belief().share() >= 1.0);
    world.external.set_sources([]);
    assert!(world.external.measured.is_empty());
    world.external.set_sources([source()]);
    assert_eq!(world.belief(), Belief::Unproven { judged: 0 });
}
