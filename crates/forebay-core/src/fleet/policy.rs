//! Which application leaves a host that is short of processor time, and when.
//!
//! Problem: a host whose applications want more than it has must give one away, early enough that
//! nobody lacks anything meanwhile, and not so readily that applications wander.
//!
//! Approach: it is looked at what applications want now, and at what they will need within the next
//! minutes, of those that are not batch, which makes way. Where that is more than the host has, for the
//! persistence, the one is chosen whose leaving is enough and costs least to copy; where none is enough,
//! the one that helps most. Where it goes is for [`choice`](super::choice) to say, whose offers carry
//! what hosts will need. What is on its way out counts as gone. With [`Look::Present`] only what is wanted
//! now counts, on both sides.
//!
//! What keeps applications from wandering: the shortage lasts; enough leaves to end below a lower
//! limit; an application rests after a move, and does not go back where it left within the hold; a host
//! begins so many moves an hour and so many at a time, and one for which no target was found is left
//! alone for a while, as is the coordinator.
//!
//! Properties, tested on random loads: nothing is given away without a shortage that lasted; batch and
//! what is not movable stays; an application rests between two moves; an hour has so many moves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::HostName;
use super::choice::{Offer, Room};
use super::need::{Need, Pool};
use crate::app::{AppId, Class};
use crate::units::{Bytes, MilliCpu};

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
        let left = ages.iter();
        let mut homes: VecDeque<_> = left
            .map(|(host, age)| (host.clone(), now.saturating_sub(*age)))
            .collect();
        homes.push_back((from, now));
        while homes.len() > HOMES_MAX {
            homes.pop_front();
        }
        Self(homes)
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
        let last = self.0.back();
        last.is_some_and(|(_, left)| now.saturating_sub(*left) < rules.rest)
    }
}

/// An application that is here.
#[derive(Debug, Clone, Copy)]
pub struct Resident<'a> {
    /// Which.
    pub app: &'a AppId,
    /// How much it matters.
    pub class: Class,
    /// CPUs that it wants now, whether it gets them or not.
    pub now: f64,
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

/// What a host remembers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    short_since: Option<Duration>,
    foreseen_since: Option<Duration>,
    begun: VecDeque<Duration>,
    barred: BTreeMap<AppId, Duration>,
    paused_until: Duration,
}

/// The time in which moves are counted.
const HOUR: Duration = Duration::from_secs(3600);

impl Memory {
    /// A move was begun.
    pub fn began(&mut self, now: Duration) {
        self.begun.push_back(now);
        while self
            .begun
            .front()
            .is_some_and(|at| now.saturating_sub(*at) >= HOUR)
        {
            self.begun.pop_front();
        }
    }

    /// No target was found for it.
    pub fn found_none(&mut self, rules: &Rules, now: Duration, app: &AppId) {
        self.paused_until = now + rules.pause;
        self.stayed(rules, now, app);
    }

    /// The target did not have the room that it offered: what it offers now is not known yet.
    pub fn refused(&mut self, rules: &Rules, now: Duration) {
        self.paused_until = now + rules.pause;
    }

    /// It did not get where it was to go.
    pub fn stayed(&mut self, rules: &Rules, now: Duration, app: &AppId) {
        self.barred.retain(|_, until| *until > now);
        self.barred.insert(app.clone(), now + rules.bar);
    }
}

/// Why one leaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Why {
    /// So many CPUs are wanted of so many.
    Short {
        /// Wanted now.
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
}

/// What leaves.
#[derive(Debug, Clone, PartialEq)]
pub struct Shed {
    /// Which.
    pub app: AppId,
    /// The room that it needs elsewhere.
    pub need: Room,
    /// Why.
    pub why: Why,
}

/// Looks at one host. Pure but for what is remembered of shortages, which is passed in.
#[must_use]
pub fn decide(
    rules: &Rules,
    now: Duration,
    capacity: MilliCpu,
    residents: &[Resident<'_>],
    memory: &mut Memory,
) -> Option<Shed> {
    let capacity = capacity.as_cpus();
    let stays = |of: &&Resident<'_>| of.class != Class::Batch && !of.leaves;
    let mut wanted = 0.0;
    let mut pool = Pool::default();
    for of in residents.iter().filter(stays) {
        wanted += of.now;
        pool.add(of.need);
    }
    let needed = pool.need().most;
    let short = capacity * f64::from(rules.short_percent) / 100.0;
    let lasts = |since: &mut Option<Duration>, is_so: bool, persistence: Duration| {
        *since = is_so.then(|| since.unwrap_or(now));
        since.is_some_and(|since| now.saturating_sub(since) >= persistence)
    };
    let is_short = lasts(
        &mut memory.short_since,
        wanted > capacity,
        rules.persistence,
    );
    let is_foreseen = lasts(
        &mut memory.foreseen_since,
        rules.look == Look::Ahead && needed > short,
        rules.persistence_ahead,
    );
    let (load, why) = match (is_short, is_foreseen) {
        (true, _) => (wanted, Why::Short { wanted, capacity }),
        (false, true) => (needed, Why::Foreseen { needed, capacity }),
        (false, false) => return None,
    };
    let leaving = residents.iter().filter(|of| of.leaves).count();
    let begun = memory.begun.iter();
    let begun = begun.filter(|at| now.saturating_sub(**at) < HOUR).count();
    if leaving >= rules.at_once as usize
        || begun >= rules.moves_per_hour as usize
        || now < memory.paused_until
    {
        return None;
    }
    let excess = load - capacity * f64::from(rules.clear_percent) / 100.0;
    let may = |of: &&Resident<'_>| {
        let barred = memory.barred.get(of.app).is_some_and(|until| *until > now);
        of.movable && !barred && !of.homes.rests(rules, now)
    };
    let relief = |of: &Resident<'_>| match why {
        Why::Short { .. } => of.now,
        Why::Foreseen { .. } => of.need.expected,
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
    let candidates = || residents.iter().filter(stays).filter(may);
    let enough = candidates().filter(|of| relief(of) >= excess);
    let enough = enough.min_by(|a, b| cost(a).total_cmp(&cost(b)));
    let most = || candidates().max_by(|a, b| relief(a).total_cmp(&relief(b)));
    let chosen = enough.or_else(most)?;
    Some(Shed {
        app: chosen.app.clone(),
        need: chosen.need.room(chosen.memory),
        why,
    })
}

/// The offers of hosts to which one may go that left some of them lately.
#[must_use]
pub fn open_to(
    homes: &Homes,
    rules: &Rules,
    now: Duration,
    offers: &BTreeMap<HostName, Offer>,
) -> Option<BTreeMap<HostName, Offer>> {
    let held: BTreeSet<&HostName> = homes.held(rules, now).collect();
    if held.iter().all(|host| !offers.contains_key(*host)) {
        return None;
    }
    let open = offers.iter().filter(|(host, _)| !held.contains(host));
    Some(
        open.map(|(host, offer)| (host.clone(), offer.clone()))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(10);

    struct App {
        id: AppId,
        class: Class,
        now: f64,
        need: Need,
        memory: Bytes,
        homes: Homes,
        leaves: bool,
    }

    fn app(name: &str, class: Class, now: f64, most: f64, mib: u64) -> App {
        App {
            id: name.parse().unwrap(),
            class,
            now,
            need: Need {
                expected: most,
                most,
            },
            memory: Bytes::mib(mib),
            homes: Homes::default(),
            leaves: false,
        }
    }

    fn residents(apps: &[App]) -> Vec<Resident<'_>> {
        let each = |app: &'_ App| Resident {
            app: Box::leak(Box::new(app.id.clone())),
            class: app.class,
            now: app.now,
            need: app.need,
            memory: app.memory,
            movable: true,
            leaves: app.leaves,
            homes: Box::leak(Box::new(app.homes.clone())),
        };
        apps.iter().map(each).collect()
    }

    /// What leaves a host of 8 CPUs that looks so for ten minutes, and when.
    fn check(rules: &Rules, apps: &[App]) -> Option<(u32, String)> {
        let mut memory = Memory::default();
        (0..60).find_map(|step| {
            let now = Duration::from_secs(10_000) + STEP * step;
            let capacity = MilliCpu::cpus(8);
            let shed = decide(rules, now, capacity, &residents(apps), &mut memory)?;
            Some((step, shed.app.to_string()))
        })
    }

    #[test]
    fn what_is_enough_and_costs_least_leaves() {
        let rules = Rules::default();
        let apps = [
            app("big", Class::Standard, 5.0, 5.0, 4096),
            app("enough", Class::Standard, 2.0, 2.0, 1024),
            app("small", Class::Standard, 1.0, 1.0, 100),
            app("critical", Class::Critical, 2.0, 2.0, 600),
            app("batch", Class::Batch, 6.0, 6.0, 10),
        ];
        // 10 are wanted of 8, and 7.2 are the limit: 2.8 are too much.
        assert_eq!(check(&rules, &apps), Some((1, "big".into())));
        // Of 8.5, 1.3 are: two would do, and the critical one counts twice.
        let lighter = [
            app("big", Class::Standard, 3.5, 3.5, 4096),
            app("enough", Class::Standard, 2.0, 2.0, 1024),
            app("small", Class::Standard, 1.0, 1.0, 100),
            app("critical", Class::Critical, 2.0, 2.0, 600),
        ];
        assert_eq!(check(&rules, &lighter), Some((1, "enough".into())));
    }

    #[test]
    fn a_foreseen_shortage_counts_only_where_it_is_looked_ahead() {
        let apps = [
            app("a", Class::Standard, 3.0, 6.0, 100),
            app("b", Class::Standard, 3.0, 4.0, 100),
        ];
        let ahead = Rules::default();
        assert_eq!(check(&ahead, &apps), Some((6, "a".into())));
        let present = Rules {
            look: Look::Present,
            ..ahead
        };
        assert_eq!(check(&present, &apps), None);
    }

    #[test]
    fn batch_makes_way_and_does_not_leave() {
        let apps = [
            app("a", Class::Standard, 6.0, 6.0, 100),
            app("b", Class::Batch, 6.0, 6.0, 1),
        ];
        assert_eq!(check(&Rules::default(), &apps), None);
    }

    #[test]
    fn homes_travel_as_ages_and_are_held_for_an_hour() {
        let rules = Rules::default();
        let host = |name: &str| name.parse::<HostName>().unwrap();
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let homes = Homes::arrived(minutes(1000), &[], host("a"));
        let ages = homes.ages(minutes(1040));
        assert_eq!(ages, [(host("a"), minutes(40))]);
        // The clock of the next host shows something else.
        let homes = Homes::arrived(minutes(100), &ages, host("b"));
        let held = |now| {
            homes
                .held(&rules, minutes(now))
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(held(110), [host("a"), host("b")]);
        assert_eq!(held(125), [host("b")]);
        assert!(homes.rests(&rules, minutes(110)) && !homes.rests(&rules, minutes(115)));
        let mut many = homes.clone();
        for n in 0..20 {
            many = Homes::arrived(
                minutes(100),
                &many.ages(minutes(100)),
                host(&format!("h{n}")),
            );
        }
        assert_eq!(many.0.len(), HOMES_MAX);
    }

    #[test]
    fn whatever_the_load_nothing_wanders() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let rules = Rules::default();
            let mut memory = Memory::default();
            let mut apps: Vec<App> = (0..8)
                .map(|n| {
                    let class = [Class::Critical, Class::Standard, Class::Batch][rng.usize(0..3)];
                    app(&format!("app-{n}"), class, 1.0, 1.0, rng.u64(1..4096))
                })
                .collect();
            let mut begun: Vec<Duration> = Vec::new();
            let mut last: BTreeMap<AppId, Duration> = BTreeMap::new();
            let mut short_for = 0;
            for step in 0..2_000_u32 {
                let now = Duration::from_secs(100_000) + STEP * step;
                for app in &mut apps {
                    app.now = (app.now + rng.f64() - 0.5).clamp(0.1, 4.0);
                    app.need = Need {
                        expected: app.now * (0.5 + rng.f64()),
                        most: app.now * 2.0,
                    };
                }
                let counts = apps.iter().filter(|of| of.class != Class::Batch);
                let wanted: f64 = counts.clone().map(|of| of.now).sum();
                let most: f64 = counts.map(|of| of.need.most).sum();
                let is_short = wanted > 8.0 || most > 8.0;
                short_for = if is_short { short_for + 1 } else { 0 };
                let capacity = MilliCpu::cpus(8);
                let Some(shed) = decide(&rules, now, capacity, &residents(&apps), &mut memory)
                else {
                    continue;
                };
                assert!(short_for >= 2, "seed {seed}: nothing lasted");
                match rng.u8(0..5) {
                    4 => memory.refused(&rules, now),
                    0 => memory.found_none(&rules, now, &shed.app),
                    1 => memory.stayed(&rules, now, &shed.app),
                    _ => {
                        memory.began(now);
                        begun.push(now);
                        let app = apps.iter_mut().find(|of| of.id == shed.app).unwrap();
                        assert_ne!(app.class, Class::Batch, "seed {seed}");
                        let before = last.insert(shed.app.clone(), now);
                        let rested = before.is_none_or(|at| now - at >= rules.rest);
                        assert!(rested, "seed {seed}: no rest");
                        // It went, and another one like it came.
                        let ages = app.homes.ages(now);
                        app.homes = Homes::arrived(now, &ages, "x".parse().unwrap());
                    }
                }
                let hour = begun.iter().filter(|at| now - **at < HOUR).count();
                assert!(hour <= rules.moves_per_hour as usize, "seed {seed}: {hour}");
            }
        }
    }

    #[test]
    fn a_host_that_was_just_left_is_not_offered() {
        let rules = Rules::default();
        let offer = Offer {
            capacity: Room::default(),
            needed: BTreeMap::new(),
            used: None,
            promised: BTreeMap::new(),
            apps: BTreeSet::new(),
            cordoned: false,
            unfit: None,
        };
        let host = |name: &str| name.parse::<HostName>().unwrap();
        let offers = BTreeMap::from([(host("a"), offer.clone()), (host("b"), offer)]);
        let homes = Homes::arrived(Duration::from_secs(100), &[], host("a"));
        let at = |s| open_to(&homes, &rules, Duration::from_secs(s), &offers);
        assert_eq!(at(200).unwrap().keys().collect::<Vec<_>>(), [&host("b")]);
        assert_eq!(at(3_700), None);
    }
}
