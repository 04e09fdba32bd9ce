//! Both sides of a move, a record between them, and everything that can go wrong.
//!
//! The world is a model: an application is a number that grows while a copy of it runs. What must
//! hold is checked after every event.

use std::collections::VecDeque;

use fastrand::Rng;

use super::arrival::{self, Arrival};
use super::departure::{self, Departure};
use super::*;

mod machines;

/// Something on a host that could run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    Runs(u64),
    Stands(u64),
}

/// Older records than the one that moves begin with.
const FIRST: Epoch = 5;
/// A source that goes on without a rest takes so many steps at most.
const RESTLESS_MAX: u32 = 24;

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
    /// What the coordinator says instead of the record, since it was put back to an earlier state.
    put_back: Option<Option<Ownership>>,
    /// What the source and the target know of the record, and what of that is on their disks.
    known: [Ownership; 2],
    kept: [Ownership; 2],
    /// The disk of the source and of the target takes nothing more.
    full: [bool; 2],
    /// Steps of the source since its latest rest.
    restless: u32,
}

fn first() -> Ownership {
    Ownership {
        epoch: FIRST,
        ..Ownership::first(source())
    }
}

fn source() -> HostName {
    "source".parse().unwrap()
}

fn target() -> HostName {
    "target".parse().unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        let record = first();
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
            put_back: None,
            known: [first(), first()],
            kept: [first(), first()],
            full: [false; 2],
            restless: 0,
        };
        world.mark();
        world
    }

    /// What the daemons make durable before they take a step.
    fn mark(&mut self) {
        self.is_departure_marked();
        self.is_arrival_marked();
    }

    /// What a side knows of the record from now on, as far as that is news.
    fn learn(&mut self, side: usize, record: &Ownership) {
        match self.known[side].news(record) {
            News::Later => self.known[side] = record.clone(),
            News::None => {}
            News::Conflict => panic!("two owners of one epoch: {record:?}"),
        }
        if !self.full[side] {
            self.kept[side] = self.known[side].clone();
        }
    }

    /// What a side makes of what the coordinator says, where no move is about it there.
    fn claim(&mut self, side: usize) {
        let is_moving = match side {
            0 => self.departure_mark.is_some() || self.departs(),
            _ => self.arrival_mark.is_some() || self.arrives(),
        };
        if is_moving || self.chance(4) {
            return;
        }
        let is_owner = self.known[side].owner == [source(), target()][side];
        let Some(shown) = self.shown() else {
            if is_owner {
                let again = self.known[side].recalled();
                self.story.push(format!("{} makes {again:?}", again.owner));
                (self.record, self.put_back) = (again.clone(), None);
                self.learn(side, &again);
            }
            return;
        };
        match self.known[side].again(&shown).filter(|_| is_owner) {
            Some((epoch, again)) => {
                self.story
                    .push(format!("{} says again: {again:?}", again.owner));
                if self.change(epoch, again.clone()) == Outcome::Done {
                    self.learn(side, &again);
                }
            }
            None if self.known[side].epoch <= shown.epoch => self.learn(side, &shown),
            None => {}
        }
    }

    fn departs(&self) -> bool {
        let stage = self.departure.machine.as_ref().map(Departure::stage);
        stage.is_some_and(|stage| !matches!(stage, departure::Stage::Over(_)))
    }

    fn arrives(&self) -> bool {
        let stage = self.arrival.machine.as_ref().map(Arrival::stage);
        stage.is_some_and(|stage| !matches!(stage, arrival::Stage::Over(_)))
    }

    /// Whether the source may take its steps; where its disk is full it turns back, if it can.
    fn is_departure_marked(&mut self) -> bool {
        use departure::{Input, Stage};
        let known = self.departure.machine.as_ref().and_then(Departure::known);
        if let Some(known) = known {
            self.learn(0, &known);
        }
        let Some(machine) = &mut self.departure.machine else {
            return true;
        };
        if machine.mark() == self.departure_mark {
            return true;
        }
        if !self.full[0] {
            self.departure_mark = machine.mark();
            return true;
        }
        if !matches!(machine.stage(), Stage::Over(_)) {
            let steps = machine.step(Input::Unmarked);
            if !steps.is_empty() || matches!(machine.stage(), Stage::Over(_)) {
                self.story
                    .push(format!("the source's disk is full: {:?}", machine.stage()));
                self.departure.steps = steps.into();
            }
        }
        machine.mark() == self.departure_mark
    }

    /// Whether the target may take its steps; where its disk is full it turns back, if it can.
    fn is_arrival_marked(&mut self) -> bool {
        use arrival::{Input, Stage};
        let known = self.arrival.machine.as_ref().and_then(Arrival::known);
        if let Some(known) = known {
            self.learn(1, &known);
        }
        let Some(machine) = &mut self.arrival.machine else {
            return true;
        };
        if machine.mark() == self.arrival_mark {
            return true;
        }
        if !self.full[1] {
            self.arrival_mark = machine.mark();
            return true;
        }
        if !matches!(machine.stage(), Stage::Over(_)) {
            let steps = machine.step(Input::Unmarked);
            if !steps.is_empty() {
                self.story
                    .push(format!("the target's disk is full: {:?}", machine.stage()));
                self.arrival.steps = steps.into();
            }
        }
        machine.mark() == self.arrival_mark
    }

    /// What whoever reads the record is told.
    fn shown(&self) -> Option<Ownership> {
        let record = Some(self.record.clone());
        self.put_back.clone().unwrap_or(record)
    }

    /// The coordinator is put back to before the first attempt, or loses everything.
    fn put_back(&mut self) {
        let epoch = FIRST - 1 - self.rng.u64(0..3);
        let owner = [source(), target(), "other".parse().unwrap()][self.rng.usize(0..3)].clone();
        let older = Ownership {
            epoch,
            owner,
            runs: self.rng.bool(),
        };
        let older = (self.rng.u8(0..3) > 0).then_some(older);
        self.story
            .push(format!("the record is put back: {older:?}"));
        self.put_back = Some(older);
    }

    /// Its latest state is found again.
    fn put_right(&mut self) {
        if self.put_back.take().is_some() {
            self.story.push("the record is put right".into());
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
        let fits = self.shown().is_some_and(|shown| shown.epoch == *epoch);
        if fits {
            (self.record, self.put_back) = (to.clone(), None);
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

    fn changed_by(&mut self, side: usize, epoch: Epoch, to: &Ownership) -> Outcome {
        let outcome = self.change(epoch, to.clone());
        if outcome == Outcome::Done {
            self.learn(side, to);
        }
        outcome
    }

    fn departure_step(&mut self) {
        use departure::{Input, Step};
        if !self.is_departure_marked() {
            return;
        }
        let Some(step) = self.departure.steps.pop_front() else {
            return;
        };
        self.story.push(format!("source {step:?}"));
        let input = match step.clone() {
            Step::Check | Step::Copy => Input::Ended(self.own()),
            Step::Reserve => {
                let outcome = self.own();
                // A target takes nothing in beside what came before.
                let is_free = match &self.arrival.machine {
                    Some(machine) => matches!(machine.stage(), arrival::Stage::Over(_)),
                    None => self.arrival_mark.is_none(),
                };
                if outcome == Outcome::Done && is_free && !self.full[1] {
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
            Step::Change(epoch, to) => Input::Ended(self.changed_by(0, epoch, &to)),
            Step::Read => match (self.chance(4), self.shown()) {
                (true, _) => Input::Ended(Outcome::Unknown),
                (false, Some(record)) => {
                    self.learn(0, &record);
                    Input::Read(record)
                }
                (false, None) => Input::Gone,
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
            // What it has may be nowhere else as long as it is not known that nobody needs it.
            Step::Lend => {
                assert!(
                    matches!(self.source, None | Some(Copy::Stands(_))),
                    "what the target may still fetch does not stand"
                );
                Input::Ended(self.own())
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
            let next = machine.step(input);
            self.restless = match next == [step] {
                true => 0,
                false => self.restless + 1,
            };
            self.departure.steps.extend(next);
        }
        assert!(self.restless < RESTLESS_MAX, "the source takes no rest");
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
        if !self.is_arrival_marked() {
            return;
        }
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
            Step::Read => match (self.chance(4), self.shown()) {
                (true, _) => Input::Ended(Outcome::Unknown),
                (false, Some(record)) => {
                    self.learn(1, &record);
                    Input::Read(record)
                }
                (false, None) => Input::Gone,
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
            Step::Change(epoch, to) => Input::Ended(self.changed_by(1, epoch, &to)),
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
            self.known[0] = self.kept[0].clone();
        } else {
            self.story.push("the target's daemon ends".into());
            self.arrival = Side::none();
            self.known[1] = self.kept[1].clone();
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
        self.restless = 0;
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
            let found = match self.target {
                None => arrival::Found::Nothing,
                Some(Copy::Stands(_)) => arrival::Found::Fresh,
                Some(Copy::Runs(_)) => arrival::Found::Started,
            };
            let received = self.received.clone();
            self.arrival = Side::new(Arrival::resume(received, target(), mark, found));
        }
    }

    /// Another attempt, after one that was given up.
    fn try_again(&mut self) {
        let stage = self.departure.machine.as_ref().map(Departure::stage);
        let is_over = stage == Some(departure::Stage::Over(departure::End::Stayed))
            && self.departure_mark.is_none();
        // Nobody begins from a record of before, or while another one has it.
        let shown = self.shown();
        let is_known = shown.is_some_and(|shown| self.known[0].epoch <= shown.epoch);
        if is_over && self.attempts > 0 && is_known && self.record.owner == source() {
            self.attempts -= 1;
            self.story.push("the source tries again".into());
            let record = self.record.clone();
            self.learn(0, &record);
            self.began = self.known[0].clone();
            self.restless = 0;
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
            5 => {
                self.resume();
                if self.faults && self.rng.u8(0..6) == 0 {
                    let side = self.rng.usize(0..2);
                    self.full[side] = !self.full[side];
                }
                match self.rng.u8(0..12) {
                    0 if self.faults => self.put_back(),
                    1..=3 if self.faults => self.put_right(),
                    _ => {}
                }
            }
            6 => {
                self.try_again();
                if self.rng.bool()
                    && let Some(epoch) = self.words.pop()
                {
                    self.arrival_input(&arrival::Input::Dropped(epoch));
                }
            }
            7 => {
                let side = self.rng.usize(0..2);
                self.claim(side);
            }
            8..=12 => self.departure_step(),
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
        let stage = self.departure.machine.as_ref().map(Departure::stage);
        assert!(
            stage != Some(departure::Stage::CallingOff) || self.departure_mark.is_none(),
            "it runs, and the record does not say so"
        );
        if self.put_back.is_none() {
            let runs = |copy: &Option<Copy>| matches!(copy, Some(Copy::Runs(_)));
            assert!(
                [self.source, self.target].iter().any(runs),
                "it stands still until there is room on a disk"
            );
        }
        self.full = [false; 2];
        self.mark();
        self.put_right();
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
    let back = world
        .story
        .iter()
        .any(|line| line.contains(&format!("Change({}", FIRST + 1)))
        && world.record.owner == source();
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
    assert_eq!(world.record.epoch, FIRST + 1);
    assert!(world.record.runs);
}
