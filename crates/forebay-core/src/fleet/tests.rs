//! Both sides of a move, a record between them, and everything that can go wrong.
//!
//! The world is a model: an application is a number that grows while a copy of it runs. What must
//! hold is checked after every event.

use std::collections::VecDeque;

use fastrand::Rng;

use super::arrival::{self, Arrival};
use super::departure::{self, Departure};
use super::*;

/// Something on a host that could run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    Runs(u64),
    Stands(u64),
}

/// A transaction that was sent and of which nobody heard: it may still take effect.
type Late = (Epoch, Ownership);

/// A machine with the steps it is to take, or nothing while its daemon is down.
#[derive(Debug)]
struct Side<M, S> {
    machine: Option<M>,
    steps: VecDeque<S>,
}

impl<M, S> Side<M, S> {
    fn new((machine, steps): (M, Vec<S>)) -> Self {
        Self {
            machine: Some(machine),
            steps: steps.into(),
        }
    }

    fn none() -> Self {
        Self {
            machine: None,
            steps: VecDeque::new(),
        }
    }
}

struct World {
    rng: Rng,
    faults: bool,
    record: Ownership,
    late: Vec<Late>,
    /// What the source said of attempts that it gave up, and the target has not heard.
    words: Vec<Epoch>,
    /// The record that the latest attempt began with.
    began: Ownership,
    /// And the one that the target's began with.
    received: Ownership,
    /// Attempts that are left after one that was given up.
    attempts: u32,
    /// The largest number that the application ever reached.
    reached: u64,
    source: Option<Copy>,
    target: Option<Copy>,
    departure: Side<Departure, departure::Step>,
    departure_mark: Option<departure::Mark>,
    arrival: Side<Arrival, arrival::Step>,
    arrival_mark: Option<arrival::Mark>,
    /// What happened, for the one who reads a failure.
    story: Vec<String>,
}

fn source() -> HostName {
    "source".parse().unwrap()
}

fn target() -> HostName {
    "target".parse().unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let record = Ownership::first(source());
        let mut world = Self {
            rng: Rng::with_seed(seed),
            faults: true,
            record: record.clone(),
            late: Vec::new(),
            words: Vec::new(),
            began: record.clone(),
            received: record.clone(),
            attempts: 2,
            reached: 0,
            source: Some(Copy::Runs(0)),
            target: None,
            departure: Side::new(Departure::begin(record, target())),
            departure_mark: None,
            arrival: Side::none(),
            arrival_mark: None,
            story: Vec::new(),
        };
        world.mark();
        world
    }

    /// What the daemons make durable before they take a step.
    fn mark(&mut self) {
        if let Some(machine) = &self.departure.machine {
            self.departure_mark = machine.mark();
        }
        if let Some(machine) = &self.arrival.machine {
            self.arrival_mark = machine.mark();
        }
    }

    fn chance(&mut self, of: u32) -> bool {
        self.faults && self.rng.u32(0..of) == 0
    }

    /// How a step on the own host ends.
    fn own(&mut self) -> Outcome {
        match self.chance(12) {
            true => Outcome::Refused,
            false => Outcome::Done,
        }
    }

    fn apply(&mut self, (epoch, to): &Late) -> bool {
        let fits = self.record.epoch == *epoch;
        if fits {
            self.record = to.clone();
        }
        fits
    }

    /// A transaction: answered, lost on the way there, lost on the way back, or late.
    fn change(&mut self, epoch: Epoch, to: Ownership) -> Outcome {
        let change = (epoch, to);
        if self.chance(3) {
            match self.rng.u32(0..3) {
                0 => {}
                1 => _ = self.apply(&change),
                _ => self.late.push(change),
            }
            return Outcome::Unknown;
        }
        match self.apply(&change) {
            true => Outcome::Done,
            false => Outcome::Refused,
        }
    }

    fn departure_step(&mut self) {
        use departure::{Input, Step};
        let Some(step) = self.departure.steps.pop_front() else {
            return;
        };
        self.story.push(format!("source {step:?}"));
        let input = match step {
            Step::Check | Step::Copy => Input::Ended(self.own()),
            Step::Reserve => {
                let outcome = self.own();
                // A target takes nothing in beside what came before.
                let is_free = match &self.arrival.machine {
                    Some(machine) => matches!(machine.stage(), arrival::Stage::Over(_)),
                    None => self.arrival_mark.is_none(),
                };
                if outcome == Outcome::Done && is_free {
                    self.received = self.began.clone();
                    self.arrival = Side::new(Arrival::begin(self.began.clone(), target()));
                    Input::Ended(outcome)
                } else {
                    Input::Ended(Outcome::Refused)
                }
            }
            Step::Freeze => {
                let outcome = self.own();
                // Refused or not, it may stand still.
                if let Some(Copy::Runs(n)) = self.source
                    && (outcome == Outcome::Done || self.rng.bool())
                {
                    self.source = Some(Copy::Stands(n));
                }
                Input::Ended(outcome)
            }
            Step::Send => Input::Ended(self.send()),
            Step::Change(epoch, to) => Input::Ended(self.change(epoch, to)),
            Step::Read => match self.chance(4) {
                true => Input::Ended(Outcome::Unknown),
                false => Input::Read(self.record.clone()),
            },
            Step::Thaw => {
                let outcome = self.own();
                if let (Some(Copy::Stands(n) | Copy::Runs(n)), Outcome::Done) =
                    (self.source, outcome)
                {
                    self.source = Some(Copy::Runs(n));
                    assert_eq!(n, self.reached, "what the target did was lost");
                }
                Input::Ended(outcome)
            }
            Step::End => {
                let outcome = self.own();
                if outcome == Outcome::Done {
                    self.source = None;
                }
                Input::Ended(outcome)
            }
            Step::Release(epoch) => {
                // It may come at any time, or never.
                if !self.chance(2) {
                    self.words.push(epoch);
                }
                return;
            }
        };
        if let Some(machine) = &mut self.departure.machine {
            self.departure.steps.extend(machine.step(input));
        }
    }

    /// The rest of the copy goes to the target, which says that it has it, or not.
    fn send(&mut self) -> Outcome {
        if self.chance(6) {
            return Outcome::Unknown;
        }
        let receiving = matches!(
            self.arrival.machine.as_ref().map(Arrival::stage),
            Some(arrival::Stage::Receiving | arrival::Stage::Preparing)
        );
        if !receiving {
            return Outcome::Refused;
        }
        self.arrival_input(&arrival::Input::Ended(Outcome::Done));
        while let Some(arrival::Step::Receive) = self.arrival.steps.front() {
            self.arrival.steps.pop_front();
        }
        self.mark();
        if self.chance(8) {
            return Outcome::Unknown;
        }
        self.arrival_step();
        self.mark();
        let waits =
            self.arrival.machine.as_ref().map(Arrival::stage) == Some(arrival::Stage::Waiting);
        match (waits, self.chance(8)) {
            (_, true) => Outcome::Unknown,
            (true, false) => Outcome::Done,
            (false, false) => Outcome::Refused,
        }
    }

    fn arrival_input(&mut self, input: &arrival::Input) {
        self.story.push(format!("target hears {input:?}"));
        if let Some(machine) = &mut self.arrival.machine {
            let steps = machine.step(input.clone());
            if !steps.is_empty() {
                // What was to be done before is not any more.
                self.arrival.steps = steps.into();
            }
        }
    }

    fn arrival_step(&mut self) {
        use arrival::{Input, Step};
        let Some(step) = self.arrival.steps.front().cloned() else {
            return;
        };
        // It is the source that ends this one.
        if step == Step::Receive {
            return;
        }
        self.arrival.steps.pop_front();
        self.story.push(format!("target {step:?}"));
        let input = match step {
            Step::Receive => return,
            Step::Prepare => {
                let outcome = self.own();
                if let (Some(Copy::Stands(n)), Outcome::Done) = (self.source, outcome) {
                    self.target = Some(Copy::Stands(n));
                    Input::Ended(Outcome::Done)
                } else {
                    Input::Ended(Outcome::Refused)
                }
            }
            Step::Read => match self.chance(4) {
                true => Input::Ended(Outcome::Unknown),
                false => Input::Read(self.record.clone()),
            },
            Step::Start => match (self.target, self.own()) {
                (Some(Copy::Stands(n)), Outcome::Done) => {
                    assert_eq!(n, self.reached, "what the source did was lost");
                    self.target = Some(Copy::Runs(n));
                    match self.chance(3) {
                        true => Input::Ended(Outcome::Unknown),
                        false => Input::Ended(Outcome::Done),
                    }
                }
                (Some(Copy::Runs(_)), _) => Input::Ended(Outcome::Done),
                _ => Input::Ended(Outcome::Refused),
            },
            Step::Change(epoch, to) => Input::Ended(self.change(epoch, to)),
            Step::Discard => {
                let outcome = self.own();
                if outcome == Outcome::Done {
                    assert!(
                        !matches!(self.target, Some(Copy::Runs(_))),
                        "a copy that ran was removed"
                    );
                    self.target = None;
                }
                Input::Ended(outcome)
            }
        };
        if let Some(machine) = &mut self.arrival.machine {
            let steps = machine.step(input);
            self.arrival.steps.extend(steps);
        }
    }

    /// A daemon ends; what it had made durable stays, and so do the application's processes.
    fn crash(&mut self) {
        if self.rng.bool() {
            self.story.push("the source's daemon ends".into());
            self.departure = Side::none();
        } else {
            self.story.push("the target's daemon ends".into());
            self.arrival = Side::none();
            if self.rng.u8(0..4) == 0 && matches!(self.target, Some(Copy::Stands(_))) {
                self.story.push("the target's copy is lost".into());
                // Not where it may have run: that is an application that was lost, and no move.
                if self.arrival_mark != Some(arrival::Mark::Starting) {
                    self.target = None;
                }
            }
        }
    }

    fn resume(&mut self) {
        let first = self.began.clone();
        if self.departure.machine.is_none()
            && let Some(mark) = self.departure_mark
        {
            self.story.push(format!("the source resumes from {mark:?}"));
            self.departure = Side::new(Departure::resume(first.clone(), target(), mark));
        }
        if self.arrival.machine.is_none()
            && let Some(mark) = self.arrival_mark
        {
            self.story.push(format!("the target resumes from {mark:?}"));
            let copy = self.target.is_some();
            self.arrival = Side::new(Arrival::resume(self.received.clone(), target(), mark, copy));
        }
    }

    /// Another attempt, after one that was given up.
    fn try_again(&mut self) {
        let stage = self.departure.machine.as_ref().map(Departure::stage);
        if stage == Some(departure::Stage::Over(departure::End::Stayed)) && self.attempts > 0 {
            self.attempts -= 1;
            self.story.push("the source tries again".into());
            self.began = self.record.clone();
            self.departure = Side::new(Departure::begin(self.began.clone(), target()));
        }
    }

    /// Whatever runs goes on.
    fn run(&mut self) {
        for copy in [&mut self.source, &mut self.target] {
            if let Some(Copy::Runs(n)) = copy {
                *n += 1;
                self.reached = *n;
            }
        }
    }

    fn check(&self) {
        let runs = [self.source, self.target]
            .iter()
            .filter(|copy| matches!(copy, Some(Copy::Runs(_))))
            .count();
        assert!(runs <= 1, "two run");
        if matches!(self.target, Some(Copy::Runs(_))) {
            assert_eq!(
                self.record.owner,
                target(),
                "the target runs what is not its own"
            );
        }
        if matches!(self.source, Some(Copy::Runs(_))) {
            assert_eq!(
                self.record.owner,
                source(),
                "the source runs what is not its own"
            );
        }
    }

    fn event(&mut self) {
        match self.rng.u32(0..20) {
            0 if self.faults => self.crash(),
            1 if self.faults && self.rng.u8(0..8) == 0 => {
                let input = departure::Input::Cancel;
                self.story.push("the source hears Cancel".into());
                if let Some(machine) = &mut self.departure.machine {
                    let steps = machine.step(input);
                    if !steps.is_empty() {
                        // What was to be done may be under way, and nobody waits for it any more.
                        if let Some(departure::Step::Change(epoch, to)) =
                            self.departure.steps.pop_front()
                        {
                            self.late.push((epoch, to));
                        }
                        self.departure.steps = steps.into();
                    }
                }
            }
            2 if self.faults && self.rng.u8(0..8) == 0 => {
                self.arrival_input(&arrival::Input::Impatient);
            }
            3 | 4 => {
                if let Some(change) = self.late.pop() {
                    self.story.push(format!("late: {change:?}"));
                    self.apply(&change);
                }
            }
            5 => self.resume(),
            6 => {
                self.try_again();
                if self.rng.bool()
                    && let Some(epoch) = self.words.pop()
                {
                    self.arrival_input(&arrival::Input::Dropped(epoch));
                }
            }
            7..=12 => self.departure_step(),
            _ => self.arrival_step(),
        }
        self.mark();
        self.run();
        self.check();
    }

    /// How it ends once nothing goes wrong any more.
    fn settle(&mut self) {
        self.faults = false;
        for _ in 0..400 {
            self.event();
        }
        let departed = self.departure.machine.as_ref().map(Departure::stage);
        if !matches!(
            departed,
            Some(departure::Stage::Over(departure::End::Moved))
        ) {
            // The word that the source gave up was lost: the target's patience ends.
            self.arrival_input(&arrival::Input::Impatient);
            for _ in 0..200 {
                self.event();
            }
        }
        let runs = [self.source, self.target].map(|copy| match copy {
            Some(Copy::Runs(_)) => "runs",
            Some(Copy::Stands(_)) => "stands still",
            None => "is gone",
        });
        assert!(
            matches!(runs, ["runs", "is gone"] | ["is gone", "runs"]),
            "{runs:?}"
        );
        assert!(self.record.runs, "nobody may start it again");
        assert_eq!(self.departure_mark, None, "the source is not done");
        assert_eq!(self.arrival_mark, None, "the target is not done");
    }
}

fn play(seed: u64) -> [&'static str; 2] {
    let mut world = World::new(seed);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..world.rng.u32(20..300) {
            world.event();
        }
        world.settle();
    }));
    if let Err(panic) = outcome {
        let story = world.story.join("\n  ");
        let why = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        panic!(
            "seed {seed}: {}\n  {story}\n{:?} {:?} {:?}",
            why.unwrap_or_default(),
            world.record,
            world.departure,
            world.arrival
        );
    }
    let moved = world.source.is_none();
    let back =
        world.story.iter().any(|line| line.contains("Change(2")) && world.record.owner == source();
    [
        if moved { "moved" } else { "stayed" },
        if back { "given back" } else { "" },
    ]
}

#[test]
fn one_copy_runs_whatever_fails() {
    let mut seen = std::collections::BTreeMap::new();
    for seed in 0..8_000 {
        for how in play(seed) {
            *seen.entry(how).or_insert(0) += 1;
        }
    }
    // The faults leave room for every end.
    for how in ["moved", "stayed", "given back"] {
        assert!(seen.get(how).is_some_and(|n| *n > 40), "{seen:?}");
    }
}

#[test]
fn without_faults_it_moves() {
    let mut world = World::new(1);
    world.faults = false;
    for _ in 0..400 {
        world.event();
    }
    assert_eq!(world.source, None);
    assert!(
        matches!(world.target, Some(Copy::Runs(_))),
        "{:?}",
        world.story
    );
    assert_eq!(world.record.epoch, 2);
    assert!(world.record.runs);
}

/// A departure that was driven to a stage by what its steps ended with.
fn departing(inputs: &[departure::Input]) -> (Departure, Vec<departure::Step>) {
    let (mut machine, mut steps) = Departure::begin(Ownership::first(source()), target());
    for input in inputs {
        steps = machine.step(input.clone());
    }
    (machine, steps)
}

#[test]
fn a_source_whose_disk_is_full_turns_back_before_it_asks() {
    use departure::{End, Input, Mark, Stage, Step};
    let done = Input::Ended(Outcome::Done);
    let check = |count: usize, stage, mark, first: Option<Step>| {
        let mut inputs = vec![done.clone(); count];
        inputs.push(Input::Unmarked);
        let (machine, steps) = departing(&inputs);
        assert_eq!((machine.stage(), machine.mark()), (stage, mark));
        assert_eq!(steps.first().cloned(), first);
    };
    check(1, Stage::Over(End::Refused), None, None);
    let recalled = Step::Change(1, Ownership::first(source()).recalled());
    check(3, Stage::CallingOff, Some(Mark::Begun), Some(recalled));
    // Frozen, and all is sent: the record was not asked for yet.
    check(5, Stage::Thawing, Some(Mark::Frozen), Some(Step::Thaw));
    // It was: only the record says now whose it is.
    check(6, Stage::Awaiting, Some(Mark::Committing), None);
}

#[test]
fn what_is_given_back_says_again_that_it_runs() {
    use departure::{End, Input, Mark, Stage, Step};
    let done = Input::Ended(Outcome::Done);
    let back = Ownership::first(source())
        .given_to(&target())
        .given_to(&source());
    let mut inputs = vec![done.clone(); 6];
    inputs.extend([Input::Read(back.clone()), done.clone()]);
    let (mut machine, steps) = departing(&inputs);
    let expected = [Step::Change(back.epoch, back.running())];
    assert_eq!(steps, expected);
    // A daemon that begins anew finds the record once more.
    assert_eq!(machine.mark(), Some(Mark::Committing));
    assert_eq!(machine.step(Input::Ended(Outcome::Unknown)), expected);
    machine.step(done);
    assert_eq!(machine.stage(), Stage::Over(End::Stayed));
}

/// An arrival whose copy is whole.
fn waiting() -> Arrival {
    let (mut machine, _) = Arrival::begin(Ownership::first(source()), target());
    machine.step(arrival::Input::Ended(Outcome::Done));
    machine.step(arrival::Input::Ended(Outcome::Done));
    assert_eq!(machine.stage(), arrival::Stage::Waiting);
    machine
}

#[test]
fn a_target_goes_by_the_record_and_not_by_the_sources_word() {
    use arrival::{End, Input, Stage, Step};
    let done = Input::Ended(Outcome::Done);
    let given = Ownership::first(source()).given_to(&target());
    let mut machine = waiting();
    assert_eq!(machine.step(Input::Dropped(1)), [Step::Discard]);
    machine.step(done.clone());
    assert_eq!(machine.step(Input::Dropped(1)), []);
    let back = Step::Change(given.epoch, given.given_to(&source()));
    assert_eq!(machine.step(Input::Read(given)), [back]);

    let mut machine = waiting();
    machine.step(Input::Dropped(1));
    machine.step(done);
    machine.step(Input::Read(Ownership::first(source()).recalled()));
    assert_eq!(machine.stage(), Stage::Over(End::Dropped));
}

#[test]
fn what_may_have_run_is_not_given_back() {
    use arrival::{Input, Stage, Step};
    let given = Ownership::first(source()).given_to(&target());
    let mut machine = waiting();
    machine.step(Input::Read(given.clone()));
    machine.step(Input::Ended(Outcome::Unknown));
    let runs = Step::Change(given.epoch, given.running());
    assert_eq!(machine.step(Input::Ended(Outcome::Refused)), [runs]);

    let mut machine = waiting();
    machine.step(Input::Read(given));
    machine.step(Input::Ended(Outcome::Refused));
    assert_eq!(machine.stage(), Stage::Returning);
}

#[test]
fn a_target_whose_disk_is_full_gives_it_back() {
    use arrival::{Input, Mark, Stage, Step};
    let given = Ownership::first(source()).given_to(&target());
    let mut machine = waiting();
    machine.step(Input::Read(given.clone()));
    let back = [Step::Change(given.epoch, given.given_to(&source()))];
    assert_eq!(machine.step(Input::Unmarked), back);
    // What is on disk stays true: nothing of it ran.
    assert_eq!(machine.mark(), Some(Mark::Prepared));
    assert_eq!(machine.step(Input::Ended(Outcome::Unknown)), back);
    assert_eq!(machine.mark(), Some(Mark::Prepared));

    // It was not said that the copy is whole.
    let mut machine = waiting();
    assert_eq!(machine.step(Input::Unmarked), [Step::Discard]);
    assert_eq!(machine.stage(), Stage::Discarding { watch: false });
}
