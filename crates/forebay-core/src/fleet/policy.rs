//! Which application leaves a host that is short of processor time, and when.
//!
//! Problem: a host whose applications want more than it has must give one away, early enough that
//! nobody lacks anything meanwhile, and not so readily that applications wander.
//!
//! Approach: it is looked at what applications use now and whether they wait for more, and at what they
//! will need within the next minutes, of those that are not batch, which makes way. Where somebody waits,
//! or that is more than the host has, for the persistence, the one is chosen whose leaving is enough and
//! costs least to copy; where none is enough, the one that helps most; one that no other host takes is passed over.
//! Where it goes [`target`] says, by
//! what hosts publish: where there will be room for it; of one that leaves because somebody waits,
//! where there is room now, if there is no such host. What is on its way out counts as gone. With
//! [`Look::Present`] only what is used now counts, on both sides.
//!
//! What is foreseen does not stand in the way of what is there: it takes a part of the budget only, never
//! the last place on the way out, and what found no target by forecast is not barred when somebody waits.
//!
//! What keeps applications from wandering: the shortage lasts; enough leaves to end below a lower
//! limit; an application rests after a move, and does not go back where it left within the hold; a host
//! begins so many moves an hour and so many at a time, and one for which no target was found is left
//! alone for a while, as is the coordinator.
//!
//! Properties, tested on random loads: nothing is given away without a shortage that lasted; batch and
//! what is not movable stays; an application rests between two moves; an hour has so many moves, and so
//! many of them by forecast.

mod stays;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::HostName;
use super::choice::{self, Mover, Offer, Room};
use super::need::{Need, Pool, Use};
use crate::app::{AppId, Class};
use crate::units::{Bytes, MilliCpu};
pub use stays::{Away, Stays};

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Look {
    /// What is wanted now alone.
    Present,
    /// What will be needed as well.
    Ahead,
}

/// What counts as a shortage, and how readily something is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// What is looked at.
    pub look: Look,
    /// More of the host than this is short, in percent.
    pub short_percent: u32,
    /// So much leaves that the rest is below this, in percent.
    pub clear_percent: u32,
    /// How long a shortage that is there must last.
    pub persistence: Duration,
    /// How long one that is foreseen must be foreseen.
    pub persistence_ahead: Duration,
    /// How long an application stays after a move.
    pub rest: Duration,
    /// How long an application does not go back where it left.
    pub hold: Duration,
    /// How many moves a host begins within an hour.
    pub moves_per_hour: u32,
    /// Of these, how many because of what is foreseen.
    pub ahead_per_hour: u32,
    /// How many are under way from one host at a time.
    pub at_once: u32,
    /// How long one is left alone that found no target, or did not get there.
    pub bar: Duration,
    /// How long nothing is looked for after no target was found.
    pub pause: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            look: Look::Ahead,
            short_percent: 100,
            clear_percent: 90,
            persistence: Duration::from_secs(3),
            persistence_ahead: Duration::from_secs(60),
            rest: Duration::from_secs(15 * 60),
            hold: Duration::from_secs(3600),
            moves_per_hour: 6,
            ahead_per_hour: 4,
            at_once: 2,
            bar: Duration::from_secs(5 * 60),
            pause: Duration::from_secs(15),
        }
    }
}

/// Hosts of an application that are remembered.
pub const HOMES_MAX: usize = 8;

/// The hosts that an application left, and how long ago: what travels with it. Clocks of hosts differ,
/// so that ages travel and not times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Homes(VecDeque<(HostName, Duration)>);

impl Homes {
    /// Those of an application that comes to a host at `now`, by the ages that came with it; it left
    /// `from` just now.
    #[must_use]
    pub fn arrived(now: Duration, ages: &[(HostName, Duration)], from: HostName) -> Self {
        let mut homes = Self::remembered(now, ages);
        homes.0.push_back((from, now));
        homes.bound()
    }

    /// Those of which it is known how long ago they were left, the longest ago first.
    #[must_use]
    pub fn remembered(now: Duration, ages: &[(HostName, Duration)]) -> Self {
        let left = ages.iter();
        let homes = left.map(|(host, age)| (host.clone(), now.saturating_sub(*age)));
        Self(homes.collect()).bound()
    }

    fn bound(mut self) -> Self {
        let beyond = self.0.len().saturating_sub(HOMES_MAX);
        self.0.drain(..beyond);
        self
    }

    /// How long ago which host was left.
    #[must_use]
    pub fn ages(&self, now: Duration) -> Vec<(HostName, Duration)> {
        let homes = self.0.iter();
        homes
            .map(|(host, left)| (host.clone(), now.saturating_sub(*left)))
            .collect()
    }

    /// Where it does not go.
    pub fn held<'a>(&'a self, rules: &Rules, now: Duration) -> impl Iterator<Item = &'a HostName> {
        let hold = rules.hold;
        let recent = self.0.iter();
        let recent = recent.filter(move |(_, left)| now.saturating_sub(*left) < hold);
        recent.map(|(host, _)| host)
    }

    fn rests(&self, rules: &Rules, now: Duration) -> bool {
        self.rest_left(rules, now).is_some()
    }
}

/// An application that is here.
#[derive(Debug, Clone, Copy)]
pub struct Resident<'a> {
    /// Which.
    pub app: &'a AppId,
    /// How much it matters.
    pub class: Class,
    /// CPUs that it uses now, and whether it waits for more.
    pub uses: Use,
    /// What it will need.
    pub need: Need,
    /// The memory that has to be copied, and held.
    pub memory: Bytes,
    /// Whether it can move at all.
    pub movable: bool,
    /// Whether it is on its way out.
    pub leaves: bool,
    /// Where it was.
    pub homes: &'a Homes,
}

/// What a host does something about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Somebody waits, or too much is used.
    Short,
    /// Too much will be needed.
    Foreseen,
}

/// What a host remembers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    short_since: Option<Duration>,
    foreseen_since: Option<Duration>,
    begun: VecDeque<(Duration, Cause)>,
    barred: BTreeMap<(Cause, AppId), Duration>,
    paused: BTreeMap<Cause, Duration>,
}

/// The time in which moves are counted.
const HOUR: Duration = Duration::from_secs(3600);

impl Memory {
    /// A move was begun.
    pub fn began(&mut self, now: Duration, cause: Cause) {
        self.begun.push_back((now, cause));
        while self
            .begun
            .front()
            .is_some_and(|(at, _)| now.saturating_sub(*at) >= HOUR)
        {
            self.begun.pop_front();
        }
    }

    /// No target was found for it.
    pub fn found_none(&mut self, rules: &Rules, now: Duration, (app, cause): (&AppId, Cause)) {
        self.refused(rules, now, cause);
        self.stayed(rules, now, (app, cause));
    }

    /// The target did not have the room that it offered: what it offers now is not known yet.
    pub fn refused(&mut self, rules: &Rules, now: Duration, cause: Cause) {
        self.paused.insert(cause, now + rules.pause);
    }

    /// It did not get where it was to go.
    pub fn stayed(&mut self, rules: &Rules, now: Duration, (app, cause): (&AppId, Cause)) {
        self.barred.retain(|_, until| *until > now);
        self.barred.insert((cause, app.clone()), now + rules.bar);
    }

    /// Whether it may try because of this: what failed when somebody waited fails by forecast as well,
    /// and not the other way round.
    fn is_free(&self, now: Duration, cause: Cause) -> bool {
        let mut paused = self.paused.range(..=cause);
        !paused.any(|(_, until)| *until > now)
    }

    fn is_barred(&self, now: Duration, cause: Cause, app: &AppId) -> bool {
        let causes = [Cause::Short, Cause::Foreseen].into_iter();
        let mut until = causes
            .filter(|other| *other <= cause)
            .filter_map(|other| self.barred.get(&(other, app.clone())));
        until.any(|until| *until > now)
    }

    /// Whether the budget has one more.
    fn affords(&self, rules: &Rules, now: Duration, cause: Cause) -> bool {
        let recent = self.begun.iter();
        let recent = recent.filter(|(at, _)| now.saturating_sub(*at) < HOUR);
        let ahead = recent
            .clone()
            .filter(|(_, cause)| *cause == Cause::Foreseen);
        recent.count() < rules.moves_per_hour as usize
            && (cause == Cause::Short || ahead.count() < rules.ahead_per_hour as usize)
    }
}

/// Why one leaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Why {
    /// Somebody waits, or too much of what there is is used.
    Short {
        /// CPUs that are wanted now, as far as that can be told.
        wanted: f64,
        /// What there is.
        capacity: f64,
    },
    /// So many will be.
    Foreseen {
        /// Needed within the next minutes.
        needed: f64,
        /// What there is.
        capacity: f64,
    },
    /// It is constrained itself, and nothing that was tried here helped: whatever its host publishes, nothing
    /// is left for it.
    Constrained,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { wanted, capacity } => write!(
                f,
                "{wanted:.2} CPUs are wanted here, and there are {capacity:.2}"
            ),
            Self::Foreseen { needed, capacity } => write!(
                f,
                "{needed:.2} CPUs will be needed here within the next minutes, and there are {capacity:.2}"
            ),
            Self::Constrained => f.write_str("it is constrained, and nothing here helped"),
        }
    }
}

impl Why {
    /// What is done something about.
    #[must_use]
    pub const fn cause(self) -> Cause {
        match self {
            Self::Short { .. } | Self::Constrained => Cause::Short,
            Self::Foreseen { .. } => Cause::Foreseen,
        }
    }
}

/// What leaves.
#[derive(Debug, Clone, PartialEq)]
pub struct Shed {
    /// Which.
    pub app: AppId,
    /// How much it matters.
    pub class: Class,
    /// The room that it will need elsewhere.
    pub need: Room,
    /// The room that it needs now.
    pub now: Room,
    /// Why.
    pub why: Why,
}

impl Shed {
    /// One that is here.
    #[must_use]
    pub fn of(resident: &Resident<'_>, why: Why) -> Self {
        Self {
            app: resident.app.clone(),
            class: resident.class,
            need: resident.need.room(resident.memory),
            now: Need::just(resident.uses.wanted()).room(resident.memory),
            why,
        }
    }
}

/// One that leaves takes away this part of what is too much at least: less helps nobody.
const HELPS_MIN: f64 = 0.1;

/// Looks at one host. Pure but for what is remembered of shortages, which is passed in. Whom `may_be_taken` says that no
/// other host takes is passed over for the next one; it is asked of none but those that would leave.
#[must_use]
pub fn decide(
    rules: &Rules,
    now: Duration,
    capacity: MilliCpu,
    residents: &[Resident<'_>],
    memory: &mut Memory,
    may_be_taken: &mut dyn FnMut(&AppId) -> bool,
) -> Option<Shed> {
    let capacity = capacity.as_cpus();
    let stays = |of: &&Resident<'_>| of.class != Class::Batch && !of.leaves;
    let (mut wanted, mut waits) = (0.0, false);
    let mut pool = Pool::default();
    for of in residents.iter().filter(stays) {
        wanted += of.uses.wanted();
        waits |= of.uses.waits;
        pool.add(of.need);
    }
    let needed = pool.need().most;
    let part = |percent: u32| capacity * f64::from(percent) / 100.0;
    let (short, clear) = (part(rules.short_percent), part(rules.clear_percent));
    let lasts = |since: &mut Option<Duration>, is_so: bool, persistence: Duration| {
        *since = is_so.then(|| since.unwrap_or(now));
        since.is_some_and(|since| now.saturating_sub(since) >= persistence)
    };
    let is_short = lasts(
        &mut memory.short_since,
        waits || wanted > short,
        rules.persistence,
    );
    let is_foreseen = lasts(
        &mut memory.foreseen_since,
        rules.look == Look::Ahead && needed > short,
        rules.persistence_ahead,
    );
    let why = match (is_short, is_foreseen) {
        (true, _) => Why::Short { wanted, capacity },
        (false, true) => Why::Foreseen { needed, capacity },
        (false, false) => return None,
    };
    let cause = why.cause();
    let leaving = residents.iter().filter(|of| of.leaves).count();
    // The last place is for those that somebody waits for.
    let at_once = match cause {
        Cause::Short => rules.at_once,
        Cause::Foreseen => rules.at_once.saturating_sub(1).max(1),
    };
    if leaving >= at_once as usize
        || !memory.affords(rules, now, cause)
        || !memory.is_free(now, cause)
    {
        return None;
    }
    let (excess, relief): (f64, &dyn Fn(&Resident<'_>) -> f64) = match cause {
        Cause::Short => (wanted - clear, &|of| of.uses.wanted()),
        Cause::Foreseen => (needed - clear, &|of| {
            needed - pool.without(of.need).need().most
        }),
    };
    // What matters more is moved less readily.
    let cost = |of: &Resident<'_>| {
        let weight = if of.class == Class::Critical {
            2.0
        } else {
            1.0
        };
        of.memory.as_f64() * weight
    };
    let least = (excess * HELPS_MIN).max(capacity * HELPS_MIN / 100.0);
    let may = |of: &&Resident<'_>| {
        of.movable
            && relief(of) >= least
            && !memory.is_barred(now, cause, of.app)
            && !of.homes.rests(rules, now)
    };
    let candidates = residents.iter().filter(stays).filter(may);
    let (mut enough, mut less): (Vec<&Resident<'_>>, Vec<&Resident<'_>>) =
        candidates.partition(|of| relief(of) >= excess);
    enough.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
    less.sort_by(|a, b| relief(a).total_cmp(&relief(b)));
    let mut by_choice = enough.into_iter().chain(less.into_iter().rev());
    let chosen = by_choice.find(|of| may_be_taken(of.app))?;
    Some(Shed::of(chosen, why))
}

/// Where one that leaves goes, by what hosts publish, and by what the room there is judged.
#[must_use]
pub fn target(
    rules: &Rules,
    now: Duration,
    shed: &Shed,
    (here, homes): (&HostName, &Homes),
    offers: &BTreeMap<HostName, Offer>,
) -> Option<(HostName, Look)> {
    let held = homes.held(rules, now);
    // Of a host that says nothing of itself, nothing is left.
    let here_too = matches!(shed.why, Why::Constrained).then_some(here);
    let open = without(held.chain(here_too).collect(), offers);
    let offers = open.as_ref().unwrap_or(offers);
    let mut mover = Mover {
        class: shed.class,
        need: shed.need,
        here: here.clone(),
    };
    if let (Some(host), _) = choice::choose(&mover, offers) {
        return Some((host, Look::Ahead));
    }
    if shed.why.cause() == Cause::Foreseen {
        return None;
    }
    mover.need = shed.now;
    let (host, _) = choice::choose_now(&mover, offers);
    host.map(|host| (host, Look::Present))
}

/// The offers of other hosts than these, where any of these offers something.
#[must_use]
fn without(
    closed: BTreeSet<&HostName>,
    offers: &BTreeMap<HostName, Offer>,
) -> Option<BTreeMap<HostName, Offer>> {
    if closed.iter().all(|host| !offers.contains_key(*host)) {
        return None;
    }
    let open = offers.iter().filter(|(host, _)| !closed.contains(host));
    Some(
        open.map(|(host, offer)| (host.clone(), offer.clone()))
            .collect(),
    )
}

#[cfg(test)]
mod tests;
