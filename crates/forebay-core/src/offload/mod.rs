//! What is done about an app that its slice does not hold.
//!
//! Problem: the planner divides the host by forecasts of use. An app can suffer all the same: the
//! host is too small for it, its answers are slow though its CPUs are idle half of the time, its
//! memory is full of what nobody uses. Something else has to be tried then, in some order, and it has
//! to be seen whether it helped.
//!
//! Approach: [`trigger`] tells who is constrained, by what, and for how long; [`rung`] what could be
//! done about it, and why some of it cannot; [`ladder`] tries one thing after another for each app,
//! measures and keeps it or takes it back; [`relief`] remembers what helped whom. Apps are served by
//! class and then by harm, and what one is promised is gone for the next.
//!
//! It decides within [`plan`](crate::plan::plan): what it has taken of CPUs counts in the next plan,
//! what it asks of memory becomes an action in the same period. By itself it only watches
//! ([`Mode::Watch`]): it says who is constrained and what could be tried.
//!
//! Properties, each tested: see the modules; a critical app is served before any other; two apps are
//! never promised the same CPU; who left is forgotten, and what was taken for it with it.

pub mod ladder;
mod relief;
pub mod rung;
#[cfg(test)]
mod tests;
pub mod trigger;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::app::{App, AppId, Class};
use crate::demand::Demand;
use crate::fleet::HostName;
use crate::fleet::policy::Away;
use crate::units::{Bytes, MilliCpu, Time};
use ladder::{Ascent, Round, Skip, Strain, Tried, Turn};
use relief::Learned;
pub use rung::{Absence, Cold, Effect, Means, Offer, Rung};
use trigger::{Constraint, Reading, Trigger, Watched, When};

/// What an app has too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// Block devices.
    Io,
    /// The network.
    Network,
}

impl Bottleneck {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Io, Self::Network];
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "processor time",
            Self::Memory => "memory",
            Self::Io => "I/O",
            Self::Network => "network",
        })
    }
}

/// What is done about constraints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing is watched.
    Off,
    /// It is told who is constrained, and what could be tried.
    Watch,
    /// What can be tried is tried.
    Act,
}

/// What counts as a constraint, and what is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// What is done.
    pub mode: Mode,
    /// Part of the processor time of a slice, in percent; above it is too much, as everywhere here.
    pub cpu_percent: u32,
    /// Part of the memory that an app may have.
    pub memory_percent: u32,
    /// Part of a block device's time.
    pub io_percent: u32,
    /// Part of what an app may send.
    pub network_percent: u32,
    /// Share of time in which some task waits for a CPU.
    pub cpu_stalled_percent: u32,
    /// Share of time in which some task waits for memory.
    pub memory_stalled_percent: u32,
    /// Share of time in which some task waits for I/O.
    pub io_stalled_percent: u32,
    /// Share of errors among answers.
    pub errors_percent: u32,
    /// Time until an answer, where the app does not say how long it may take.
    pub response_time: Duration,
    /// With what chance something must be forecast to count, in percent, 1 to 50.
    pub chance_percent: u32,
    /// How long it must last, to begin and to end.
    pub persistence: Duration,
    /// How long after its end it does not begin again.
    pub cool_down: Duration,
    /// How long the effect of the quickest rungs is waited for.
    pub settling: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            mode: Mode::Watch,
            cpu_percent: 80,
            memory_percent: 90,
            io_percent: 80,
            network_percent: 80,
            cpu_stalled_percent: 25,
            memory_stalled_percent: 10,
            io_stalled_percent: 25,
            errors_percent: 1,
            response_time: Duration::from_millis(500),
            chance_percent: 50,
            persistence: Duration::from_secs(3),
            cool_down: Duration::from_secs(30),
            settling: Duration::from_secs(5),
        }
    }
}

/// Whose limit an app meets when it has no more memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBound {
    /// Its own.
    Own,
    /// The host's.
    Host,
}

/// What is known of one app in one period, as the plan of that period has it.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The app.
    pub app: &'a App,
    /// What it does and will need.
    pub demand: &'a Demand,
    /// CPUs' worth of processor time in its slice, as it is in force.
    pub cpus: f64,
    /// Whether its CPU set can be written.
    pub cpu_sets: bool,
    /// The memory that it may have; none where nobody can say.
    pub memory: Option<Bytes>,
    /// Whose limit that is.
    pub memory_bound: MemoryBound,
    /// Memory of its own that is not in use and can go.
    pub cold: Cold,
    /// What batch may take of a block device that it uses and shares with batch, in percent of the
    /// device's time; none where there is nothing to divide anew.
    pub divisible: Option<u32>,
    /// Share of errors among its answers, 0 to 1; none where nobody tells.
    pub errors: Option<f64>,
}

/// Everything that is looked at in one period.
#[derive(Debug)]
pub struct View<'a> {
    /// Now.
    pub time: Time,
    /// What the user decided.
    pub rules: &'a Rules,
    /// How far demand is forecast.
    pub horizon: Duration,
    /// The apps that run.
    pub apps: Vec<Seen<'a>>,
    /// What the host can do.
    pub means: Means<'a>,
}

/// What is remembered between periods.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    apps: BTreeMap<AppId, Held>,
    learned: Learned,
}

/// What is remembered of one app.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Held {
    triggers: Vec<Watching>,
    ascent: Ascent,
}

/// One thing that is watched and is not quiet, with what was read of it last.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Watching {
    watched: Watched,
    trigger: Trigger,
    value: f64,
    limit: f64,
    whole: Option<f64>,
}

impl Memory {
    /// Processor time that an app gets beyond what its forecast wants.
    #[must_use]
    pub fn extra_cpu(&self, app: &AppId) -> MilliCpu {
        let extra = self.in_force(app).filter_map(|effect| match effect {
            Effect::Widen(more) => Some(more.0),
            Effect::Whole | Effect::Spare(_) | Effect::Reclaim(_) | Effect::Move(_) => None,
        });
        MilliCpu(extra.fold(0, u64::saturating_add))
    }

    /// Time of block devices that batch leaves to an app beyond what its forecast wants, in percent.
    #[must_use]
    pub fn extra_io(&self, app: &AppId) -> u32 {
        let extra = self.in_force(app).filter_map(|effect| match effect {
            Effect::Spare(percent) => Some(*percent),
            Effect::Whole | Effect::Widen(_) | Effect::Reclaim(_) | Effect::Move(_) => None,
        });
        extra.fold(0, u32::saturating_add)
    }

    fn in_force(&self, app: &AppId) -> impl Iterator<Item = &Effect> {
        let held = self.apps.get(app).into_iter();
        held.flat_map(|held| held.ascent.in_force().map(|(_, effect)| effect))
    }

    /// Forebay is paused in this period: what was under way is measured once it goes on.
    pub fn stand_still(&mut self, now: Time) {
        for held in self.apps.values_mut() {
            held.ascent.stand_still(now);
        }
    }

    /// The kernel was not asked to compact: whoever waits for the effect of that waits in vain.
    pub fn refused_compaction(&mut self, now: Time) {
        for held in self.apps.values_mut() {
            held.ascent.refuse_rung(now, Rung::Compact);
        }
    }

    /// An app could not be asked for memory: whoever waits for the effect of that waits in vain.
    pub fn refused_memory(&mut self, now: Time, giver: &AppId) {
        for held in self.apps.values_mut() {
            held.ascent.refuse_giver(now, giver);
        }
    }

    /// An app did not get to another host, for which it was to leave.
    pub fn refused_move(&mut self, now: Time, app: &AppId) {
        if let Some(held) = self.apps.get_mut(app) {
            held.ascent.refuse_move(now);
        }
    }

    /// The CPUs of an app could not be written: it did not get those that were to help it.
    pub fn refused_cpus(&mut self, now: Time, app: &AppId) {
        if let Some(held) = self.apps.get_mut(app) {
            let widens = |effect: &Effect| matches!(effect, Effect::Widen(_));
            held.ascent.refuse(now, widens);
        }
    }
}

/// One thing to be done in this period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// For whose sake.
    pub app: AppId,
    /// The rung.
    pub rung: Rung,
    /// What that means.
    pub effect: Effect,
    /// Whether it is taken or taken back.
    pub turn: Direction,
}

/// Whether a rung is taken or taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// It is taken.
    Take,
    /// It is taken back.
    Undo,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.turn {
            Direction::Take => "offload",
            Direction::Undo => "offload, taken back",
        };
        write!(f, "{verb}: {}{}", self.rung, self.effect)
    }
}

/// How an app stands: what constrains it, and what is done about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Climb {
    /// What constrains it, the worst first.
    pub constraints: Vec<Constraint>,
    /// What could be tried next, where rungs are only watched.
    pub could: Option<(Rung, Effect)>,
    /// Whether nothing is done since Forebay is paused.
    #[serde(default)]
    pub paused: bool,
    /// The rung whose effect is being measured.
    pub settling: Option<Rung>,
    /// What is in force.
    pub in_force: Vec<(Rung, Effect)>,
    /// Rungs that are not taken, and why.
    pub skipped: Vec<(Rung, Skip)>,
    /// What was tried lately, oldest first.
    pub tried: Vec<Tried>,
}

/// What one period decided.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Apps that are constrained, or of which something was tried.
    pub climbs: BTreeMap<AppId, Climb>,
    /// What is done.
    pub steps: Vec<Step>,
}

impl Decision {
    /// Whether the kernel is asked to bring free memory together.
    #[must_use]
    pub fn compacts(&self) -> bool {
        let mut steps = self.steps.iter();
        steps.any(|step| step.rung == Rung::Compact && step.turn == Direction::Take)
    }

    /// What is told of a period in which Forebay is paused: nothing of what was decided is done, what is in
    /// force is what was before, and nothing is measured.
    pub(crate) fn pause(&mut self, before: &Memory) {
        for (id, climb) in &mut self.climbs {
            let could = self.steps.iter().find_map(|step| {
                let is_taken = step.app == *id && step.turn == Direction::Take;
                is_taken.then(|| (step.rung, step.effect.clone()))
            });
            let held = before.apps.get(id);
            climb.could = climb.could.take().or(could);
            climb.in_force = held.map_or_else(Vec::new, |held| in_force(&held.ascent));
            climb.tried = held.map_or_else(Vec::new, |held| held.ascent.tried().cloned().collect());
            climb.settling = None;
            climb.paused = true;
        }
        self.steps.clear();
    }

    /// Memory that apps are asked for.
    pub fn asks(&self) -> impl Iterator<Item = (&AppId, Bytes)> {
        let taken = self
            .steps
            .iter()
            .filter(|step| step.turn == Direction::Take);
        taken.flat_map(|step| {
            let from = match &step.effect {
                Effect::Reclaim(from) => Some(from),
                Effect::Whole | Effect::Widen(_) | Effect::Spare(_) | Effect::Move(_) => None,
            };
            let from = from.into_iter().flatten();
            from.map(|(giver, bytes)| (giver, *bytes))
        })
    }
}

/// What is known of one app after its triggers were looked at.
struct Standing<'a> {
    seen: &'a Seen<'a>,
    held: Held,
    readings: Vec<Reading<'a>>,
    constraints: Vec<Constraint>,
    strains: Vec<Strain>,
}

/// One period. Pure: the same view and memory give the same decision.
#[must_use]
pub fn decide(view: &View<'_>, before: &Memory) -> (Decision, Memory) {
    if view.rules.mode == Mode::Off {
        return (Decision::default(), Memory::default());
    }
    let mut after = Memory {
        apps: BTreeMap::new(),
        ..before.clone()
    };
    let apps = view.apps.iter();
    let mut standings: Vec<Standing<'_>> = apps
        .map(|seen| {
            let held = before.apps.get(&seen.app.id).cloned();
            look(view, seen, held.unwrap_or_default())
        })
        .collect();
    // By class, then by harm; the sort is stable, so equals stay in the order of their names.
    standings.sort_by(|a, b| {
        let harm =
            |standing: &Standing<'_>| standing.strains.first().map_or(0.0, |strain| strain.harm);
        let class = |standing: &Standing<'_>| standing.seen.app.class;
        class(a).cmp(&class(b)).then(harm(b).total_cmp(&harm(a)))
    });
    let mut decision = Decision::default();
    let mut means = view.means.clone();
    for mut standing in standings {
        let id = standing.seen.app.id.clone();
        let could = climb(
            view,
            &mut standing,
            &mut means,
            &mut after,
            &mut decision.steps,
        );
        let Standing {
            held, constraints, ..
        } = standing;
        let ascent = &held.ascent;
        // What is in force is told while it is, also where it has helped already and is still measured.
        let climbs = ascent.tried().next().is_some() || ascent.in_force().next().is_some();
        if climbs || !constraints.is_empty() {
            let climb = Climb::of(&held.ascent, constraints, could);
            decision.climbs.insert(id.clone(), climb);
        }
        if !held.triggers.is_empty() || !held.ascent.is_over(view.time) {
            after.apps.insert(id, held);
        }
    }
    (decision, after)
}

/// Takes in what is read of one app, and tells what constrains it.
fn look<'a>(view: &View<'_>, seen: &'a Seen<'a>, mut held: Held) -> Standing<'a> {
    let readings = trigger::readings(seen, view.rules);
    let mut constraints = Vec::new();
    let before = std::mem::take(&mut held.triggers);
    // Most apps are well in most periods.
    if !before.is_empty() || readings.iter().any(|reading| reading.severity() > 1.0) {
        let last = |watched: Watched| before.iter().find(|before| before.watched == watched);
        let gone = |before: &&Watching| {
            let mut read = readings.iter();
            !read.any(|reading| reading.watched == before.watched)
        };
        let gaps = before.iter().filter(gone);
        let read = readings.iter().map(|reading| {
            let before = last(reading.watched).map(|before| before.trigger);
            let severity = Some(reading.severity());
            let trigger = trigger::advance(before, view.time, severity, view.rules);
            (trigger, Watching::read(reading, trigger), reading.foretold)
        });
        let unread = gaps.map(|before| {
            let trigger = trigger::advance(Some(before.trigger), view.time, None, view.rules);
            (trigger, Some(*before), None)
        });
        for (trigger, watching, foretold) in read.chain(unread) {
            let (Some(trigger), Some(watching)) = (trigger, watching) else {
                continue;
            };
            held.triggers.push(Watching {
                trigger,
                ..watching
            });
            if let Some((since, raised_at)) = trigger.raised() {
                constraints.push(Constraint {
                    watched: watching.watched,
                    value: watching.value,
                    limit: watching.limit,
                    whole: watching.whole,
                    foretold: foretold.map(|told| (told.chance, told.by.to_owned())),
                    horizon: view.horizon,
                    lasts: view.time.since(since),
                    raised: view.time.since(raised_at),
                    bottleneck: watching
                        .watched
                        .sign
                        .bottleneck()
                        .or_else(|| blame(&readings)),
                });
            }
        }
    }
    constraints.sort_by(|a, b| b.severity().total_cmp(&a.severity()));
    let strains = strains(seen.app.class, &constraints, &readings);
    Standing {
        seen,
        held,
        readings,
        constraints,
        strains,
    }
}

impl Watching {
    fn read(reading: &Reading<'_>, trigger: Option<Trigger>) -> Option<Self> {
        Some(Self {
            watched: reading.watched,
            trigger: trigger?,
            value: reading.value,
            limit: reading.limit,
            whole: reading.whole,
        })
    }
}

/// What is probably lacking where only the answers show that something is: what is nearest to its
/// own limit now, unless all are far from theirs.
fn blame(readings: &[Reading<'_>]) -> Option<Bottleneck> {
    /// Below this part of its limit, nothing is blamed.
    const BLAMED_MIN: f64 = 0.5;
    let now = readings.iter().filter(|of| of.watched.when == When::Now);
    let named = now.filter_map(|of| Some((of.watched.sign.bottleneck()?, of.severity())));
    let worst = named.max_by(|a, b| a.1.total_cmp(&b.1));
    worst
        .filter(|(_, severity)| *severity >= BLAMED_MIN)
        .map(|(bottleneck, _)| bottleneck)
}

/// What is lacking and what it would cost to leave it, the worst first: of each lack the worst
/// constraint. Nothing is tried on a constraint that is not known to be so now, since what is done
/// about it could not be measured.
fn strains(class: Class, constraints: &[Constraint], readings: &[Reading<'_>]) -> Vec<Strain> {
    /// The least harm of a constraint, before the class counts.
    const HARM_MIN: f64 = 0.25;
    let weight = match class {
        Class::Critical => 1.0,
        Class::Standard => 0.5,
        Class::Batch => 0.25,
    };
    let mut strains: Vec<Strain> = Vec::new();
    for of in constraints {
        let known = readings.iter().any(|read| read.watched == of.watched);
        let named = of.bottleneck.filter(|_| known);
        let new = |bottleneck: &Bottleneck| !strains.iter().any(|of| of.bottleneck == *bottleneck);
        let Some(bottleneck) = named.filter(new) else {
            continue;
        };
        let severity = of.severity();
        let beyond = (severity - 1.0).clamp(0.0, 1.0);
        strains.push(Strain {
            bottleneck,
            watched: of.watched,
            severity,
            harm: weight * (HARM_MIN + (1.0 - HARM_MIN) * beyond),
        });
    }
    strains
}

/// Lets one app go on with its ladder; where rungs are only watched, says what could be tried.
fn climb(
    view: &View<'_>,
    standing: &mut Standing<'_>,
    means: &mut Means<'_>,
    after: &mut Memory,
    steps: &mut Vec<Step>,
) -> Option<(Rung, Effect)> {
    let seen = standing.seen;
    let lacks = standing.constraints.iter();
    let lacks = lacks.filter_map(|of| of.bottleneck).collect();
    let unknown = |of: &Constraint| of.bottleneck.is_none();
    let round = Round {
        now: view.time,
        rules: view.rules,
        app: &seen.app.id,
        leaves: leaves(means, &seen.app.id),
        strains: &standing.strains,
        lacks: &lacks,
        unknown: standing.constraints.iter().any(unknown),
        readings: &standing.readings,
    };
    let ascent = &mut standing.held.ascent;
    let promotes = ascent.in_force().any(|(rung, _)| rung == Rung::PromoteTier);
    let accelerates = ascent.in_force().any(|(rung, _)| rung == Rung::Accelerate);
    let offer = |rung, severity| match rung {
        Rung::PromoteTier if promotes => Err(Absence::FilesMove),
        Rung::Accelerate if accelerates => Err(Absence::Accelerated),
        _ => means.offer(seen, rung, severity),
    };
    if view.rules.mode != Mode::Act {
        *ascent = Ascent::default();
        let found = ascent.seek(&round, &offer, &after.learned);
        return found.map(|(_, rung, offer, _)| (rung, offer.effect));
    }
    let turn = ascent.advance(&round, &offer, &mut after.learned)?;
    let (rung, effect, turn) = match turn {
        Turn::Take(rung, effect) => (rung, effect, Direction::Take),
        Turn::Undo(rung, effect) => (rung, effect, Direction::Undo),
    };
    if turn == Direction::Take {
        means.claim(seen, rung, &effect);
    }
    steps.push(Step {
        app: seen.app.id.clone(),
        rung,
        effect,
        turn,
    });
    None
}

fn leaves(means: &Means<'_>, app: &AppId) -> bool {
    let away = means.away.and_then(|away| away.get(app));
    matches!(away, Some(Away::Leaves))
}

fn in_force(ascent: &Ascent) -> Vec<(Rung, Effect)> {
    let in_force = ascent.in_force();
    in_force
        .map(|(rung, effect)| (rung, effect.clone()))
        .collect()
}

impl Climb {
    fn of(ascent: &Ascent, constraints: Vec<Constraint>, could: Option<(Rung, Effect)>) -> Self {
        Self {
            constraints,
            could,
            paused: false,
            settling: ascent.settling(),
            in_force: in_force(ascent),
            skipped: ascent.skipped().to_vec(),
            tried: ascent.tried().cloned().collect(),
        }
    }

    /// Where it is to move to, since nothing that was tried here helped.
    #[must_use]
    pub fn moves_to(&self) -> Option<&HostName> {
        self.in_force.iter().find_map(|(_, effect)| match effect {
            Effect::Move(host) => Some(host),
            _ => None,
        })
    }

    /// Whether it lacks processor time at this moment, and going to another host is no way out.
    #[must_use]
    pub fn waits_here(&self) -> bool {
        let lacks = |of: &Constraint| {
            of.bottleneck == Some(Bottleneck::Cpu) && of.watched.when == When::Now
        };
        self.settling.is_none()
            && self.constraints.iter().any(lacks)
            && self.skipped.iter().any(|(rung, _)| *rung == Rung::Move)
    }

    /// Whether files of tiered directories are to move although the app waits for I/O.
    #[must_use]
    pub fn moves_files(&self) -> bool {
        let mut in_force = self.in_force.iter();
        in_force.any(|(rung, _)| *rung == Rung::PromoteTier)
    }

    /// Whether time of CPUs is scarce for its tasks, so that they are to go to accelerators.
    #[must_use]
    pub fn accelerates(&self) -> bool {
        let mut in_force = self.in_force.iter();
        in_force.any(|(rung, _)| *rung == Rung::Accelerate)
    }

    /// What an operator is told, in sentences.
    #[must_use]
    pub fn sentences(&self) -> Vec<String> {
        let mut all = Vec::new();
        for constraint in &self.constraints {
            let lacks = match constraint.bottleneck {
                Some(bottleneck) => format!("what it lacks is {bottleneck}"),
                None => "what it lacks cannot be told".to_owned(),
            };
            all.push(format!("It is constrained: {constraint}; {lacks}."));
        }
        all.extend(self.tried.iter().map(|tried| format!("Tried: {tried}.")));
        for (rung, skip) in &self.skipped {
            all.push(format!("Not taken: {rung}: {skip}."));
        }
        let in_force = self.in_force.iter();
        all.extend(in_force.map(|(rung, effect)| {
            let measured = match self.settling == Some(*rung) {
                true => ", its effect is being measured",
                false => "",
            };
            format!("In force for it: {rung}{effect}{measured}.")
        }));
        if let Some((rung, effect)) = &self.could {
            let lets = match self.paused {
                true => "nothing is tried while Forebay is paused",
                false => "`offload.mode = \"act\"` lets Forebay",
            };
            all.push(format!("It could be tried to {rung}{effect}; {lets}."));
        }
        all
    }
}
