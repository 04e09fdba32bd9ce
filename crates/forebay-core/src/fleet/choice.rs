//! Where an application moves to.
//!
//! Problem: the host with the most room now is the one that everybody chooses, and may be full when
//! the move is over.
//!
//! Approach: each host publishes what it will need at most within the next minutes, of apps of a
//! class and of those that matter more; what is left of its capacity is the room that an app of that
//! class finds, since those that matter less make way. The target is the host that has the most left
//! of its scarcest resource after the app has come. Room that was promised to others is taken off
//! before, and a move has to leave the app clearly better off than it is, or it is none. What is
//! missing at the source counts as less than nothing left.
//!
//! An app that lacks something at this moment cannot wait for a host that has room for a quarter of an
//! hour to come: where there is none, one that has it now will do ([`choose_now`]), and of several the
//! one that will be least full.
//!
//! Properties, tested: no host is chosen that lacks room, is cordoned, is unfit, or has an instance
//! that must not share a host with this one; every host that is not chosen has a reason; equals go by
//! name, so that all who look choose the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::HostName;
use super::taking::Takes;
use crate::app::{AppId, Class};
use crate::units::{Bytes, MilliCpu};

/// Some CPU and some memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// CPUs.
    pub cpu: MilliCpu,
    /// Memory.
    pub memory: Bytes,
}

impl Room {
    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            cpu: MilliCpu(self.cpu.0.saturating_add(other.cpu.0)),
            memory: self.memory.saturating_add(other.memory),
        }
    }

    pub(super) const fn less(self, other: Self) -> Self {
        Self {
            cpu: MilliCpu(self.cpu.0.saturating_sub(other.cpu.0)),
            memory: self.memory.saturating_sub(other.memory),
        }
    }

    pub(super) const fn holds(self, other: Self) -> bool {
        self.cpu.0 >= other.cpu.0 && self.memory.0 >= other.memory.0
    }
}

/// What a host publishes of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// All that apps may use.
    pub capacity: Room,
    /// What apps of each class will need at most within the next minutes.
    pub needed: BTreeMap<Class, Room>,
    /// What apps of each class use now; none where the host does not say.
    #[serde(default)]
    pub used: Option<BTreeMap<Class, Room>>,
    /// What was promised to apps that are on their way, by class.
    pub promised: BTreeMap<Class, Room>,
    /// The apps that are there.
    pub apps: BTreeSet<AppId>,
    /// It takes no more.
    pub cordoned: bool,
    /// Why this app cannot run there, if so: the version, the CPUs' features, no CRIU.
    pub unfit: Option<String>,
    /// The apps that it would take, and how; none where it does not say: it may take any.
    #[serde(default)]
    pub takes: Option<Takes>,
}

impl Offer {
    /// The room that an app of a class finds: all that is not needed by those that matter as much
    /// or more.
    #[must_use]
    pub fn room(&self, class: Class) -> Room {
        self.left_of(&self.needed, class)
    }

    /// The same by what is used now; none where the host does not say.
    #[must_use]
    pub fn room_now(&self, class: Class) -> Option<Room> {
        let used = self.used.as_ref()?;
        Some(self.left_of(used, class))
    }

    fn left_of(&self, taken: &BTreeMap<Class, Room>, class: Class) -> Room {
        self.taken(taken, class)
            .fold(self.capacity, |left, room| left.less(room))
    }

    fn taken<'a>(
        &'a self,
        by: &'a BTreeMap<Class, Room>,
        class: Class,
    ) -> impl Iterator<Item = Room> + 'a {
        let all = by.iter().chain(&self.promised);
        let counts = all.filter(move |(other, _)| **other <= class);
        counts.map(|(_, room)| *room)
    }

    /// How much of the scarcer resource is left after so much was taken, as a part of all; below zero
    /// where more is taken than there is.
    fn left_after(&self, by: &BTreeMap<Class, Room>, class: Class, need: Room) -> f64 {
        let taken = self.taken(by, class).fold(need, Room::and);
        let part = |taken: f64, all: f64| {
            if all > 0.0 { 1.0 - taken / all } else { 0.0 }
        };
        part(taken.cpu.as_cpus(), self.capacity.cpu.as_cpus())
            .min(part(taken.memory.as_f64(), self.capacity.memory.as_f64()))
    }
}

/// What moves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mover {
    /// How much it matters.
    pub class: Class,
    /// What it will need at most within the next minutes.
    pub need: Room,
    /// Where it is.
    pub here: HostName,
}

/// Why a host was not chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// It takes no more.
    Cordoned,
    /// The app cannot run there.
    Unfit(String),
    /// It finds this room, and needs that.
    Full {
        /// What it finds.
        room: Room,
        /// What it needs.
        need: Room,
    },
    /// It would be hardly better off: so much would be left there, and so much is here.
    NoBetter {
        /// There, as a part of all.
        there: f64,
        /// Here.
        here: f64,
    },
    /// It does not say what it uses now.
    Silent,
    /// Another one has more.
    Second,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cordoned => f.write_str("takes no more"),
            Self::Unfit(why) => f.write_str(why),
            Self::Full { room, need } => write!(
                f,
                "has room for {} and {}, and it needs {} and {}",
                room.cpu, room.memory, need.cpu, need.memory
            ),
            Self::NoBetter { there, here } => write!(
                f,
                "would have {:.0} % left of its scarcest resource, and {:.0} % are left here",
                there * 100.0,
                here * 100.0
            ),
            Self::Silent => f.write_str("does not say what it uses now; its version may be older"),
            Self::Second => f.write_str("another one has more"),
        }
    }
}

/// How much more has to be left of the target than of the source, as a part of all: forecasts are
/// not better than that, and an app that came must not find a reason to go back.
pub const BETTER_BY: f64 = 0.15;

/// Where it should move to, if anywhere, and why not to the others.
#[must_use]
pub fn choose(
    mover: &Mover,
    hosts: &BTreeMap<HostName, Offer>,
) -> (Option<HostName>, BTreeMap<HostName, Reason>) {
    pick(mover, hosts, By::Ahead(better_than(mover, hosts)))
}

/// The same by what hosts use now, for one that lacks something now and finds no host that will have
/// room: `mover.need` is what it needs now.
#[must_use]
pub fn choose_now(
    mover: &Mover,
    hosts: &BTreeMap<HostName, Offer>,
) -> (Option<HostName>, BTreeMap<HostName, Reason>) {
    let here = hosts.get(&mover.here);
    let used = here.and_then(|offer| Some((offer, offer.used.as_ref()?)));
    let left = used.map_or(0.0, |(offer, used)| {
        offer.left_after(used, mover.class, Room::default())
    });
    pick(mover, hosts, By::Now(left))
}

/// Where there is most room for it, if anywhere, whether it is better off there or not, and why not
/// elsewhere: for one that has to leave.
#[must_use]
pub fn any(
    mover: &Mover,
    hosts: &BTreeMap<HostName, Offer>,
) -> (Option<HostName>, BTreeMap<HostName, Reason>) {
    pick(mover, hosts, By::Ahead(None))
}

/// What is left where it is: what it needs is part of what its host needs already.
fn better_than(mover: &Mover, hosts: &BTreeMap<HostName, Offer>) -> Option<f64> {
    let here = hosts.get(&mover.here);
    let left = here.map(|offer| offer.left_after(&offer.needed, mover.class, Room::default()));
    Some(left.unwrap_or(0.0))
}

/// By which room hosts are judged, and what is left where it is.
#[derive(Debug, Clone, Copy)]
enum By {
    /// What will be needed; whether it is better off or not, where nothing is said of here.
    Ahead(Option<f64>),
    /// What is used now.
    Now(f64),
}

fn pick(
    mover: &Mover,
    hosts: &BTreeMap<HostName, Offer>,
    by: By,
) -> (Option<HostName>, BTreeMap<HostName, Reason>) {
    let mut reasons = BTreeMap::new();
    let mut best: Option<(&HostName, f64)> = None;
    for (name, offer) in hosts.iter().filter(|(name, _)| **name != mover.here) {
        match judge(mover, offer, by) {
            Err(reason) => _ = reasons.insert(name.clone(), reason),
            Ok(left) if best.is_none_or(|(_, most)| left > most) => {
                if let Some((second, _)) = best.replace((name, left)) {
                    reasons.insert(second.clone(), Reason::Second);
                }
            }
            Ok(_) => _ = reasons.insert(name.clone(), Reason::Second),
        }
    }
    (best.map(|(name, _)| name.clone()), reasons)
}

/// How good a host is: what will be left there.
fn judge(mover: &Mover, offer: &Offer, by: By) -> Result<f64, Reason> {
    if offer.cordoned {
        return Err(Reason::Cordoned);
    }
    if let Some(why) = &offer.unfit {
        return Err(Reason::Unfit(why.clone()));
    }
    let (class, need) = (mover.class, mover.need);
    let (taken, here) = match by {
        By::Ahead(here) => (&offer.needed, here),
        By::Now(here) => (offer.used.as_ref().ok_or(Reason::Silent)?, Some(here)),
    };
    let room = offer.left_of(taken, class);
    if !room.holds(need) {
        return Err(Reason::Full { room, need });
    }
    let there = offer.left_after(taken, class, need);
    match here.filter(|here| there < here + BETTER_BY) {
        None => Ok(offer.left_after(&offer.needed, class, need)),
        Some(here) => Err(Reason::NoBetter { there, here }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(cpus: u64, gib: u64) -> Room {
        Room {
            cpu: MilliCpu::cpus(cpus),
            memory: Bytes::mib(gib * 1024),
        }
    }

    /// A host of 8 CPUs and 16 GiB.
    fn offer(critical: Room, batch: Room) -> Offer {
        Offer {
            capacity: room(8, 16),
            needed: BTreeMap::from([(Class::Critical, critical), (Class::Batch, batch)]),
            used: None,
            promised: BTreeMap::new(),
            apps: BTreeSet::new(),
            cordoned: false,
            unfit: None,
            takes: None,
        }
    }

    fn mover(class: Class, need: Room) -> Mover {
        Mover {
            class,
            need,
            here: "here".parse().unwrap(),
        }
    }

    fn check(mover: &Mover, hosts: &[(&str, Offer)]) -> (Option<String>, Vec<(String, Reason)>) {
        let hosts = hosts
            .iter()
            .map(|(name, offer)| (name.parse().unwrap(), offer.clone()))
            .collect();
        let (chosen, reasons) = choose(mover, &hosts);
        (
            chosen.map(|name| name.to_string()),
            reasons
                .into_iter()
                .map(|(name, reason)| (name.to_string(), reason))
                .collect(),
        )
    }

    #[test]
    fn the_host_with_most_left_of_its_scarcest_resource_is_chosen() {
        let (chosen, reasons) = check(
            &mover(Class::Critical, room(2, 2)),
            &[
                ("here", offer(room(8, 4), Room::default())),
                ("cpu", offer(room(1, 12), Room::default())),
                ("even", offer(room(2, 4), Room::default())),
            ],
        );
        assert_eq!(chosen.as_deref(), Some("even"));
        assert!(
            matches!(&reasons[..], [(name, Reason::NoBetter { .. })] if name == "cpu"),
            "{reasons:?}"
        );
    }

    #[test]
    fn batch_makes_way_for_a_critical_app_and_not_the_other_way_round() {
        let full_of_batch = ("there", offer(room(2, 2), room(6, 14)));
        let here = ("here", offer(room(8, 16), Room::default()));
        let hosts = [here.clone(), full_of_batch.clone()];
        let (chosen, _) = check(&mover(Class::Critical, room(2, 2)), &hosts);
        assert_eq!(chosen.as_deref(), Some("there"));
        let (chosen, reasons) = check(&mover(Class::Batch, room(2, 2)), &hosts);
        assert_eq!(chosen, None);
        assert!(matches!(reasons[0].1, Reason::Full { .. }), "{reasons:?}");
    }

    #[test]
    fn a_host_that_may_not_be_chosen_says_why() {
        let free = || offer(Room::default(), Room::default());
        let (chosen, reasons) = check(
            &mover(Class::Critical, room(1, 1)),
            &[
                ("here", offer(room(8, 16), Room::default())),
                (
                    "a",
                    Offer {
                        cordoned: true,
                        ..free()
                    },
                ),
                (
                    "b",
                    Offer {
                        unfit: Some("no CRIU".into()),
                        ..free()
                    },
                ),
                (
                    "d",
                    Offer {
                        promised: BTreeMap::from([(Class::Critical, room(8, 1))]),
                        ..free()
                    },
                ),
                ("e", free()),
                ("f", free()),
            ],
        );
        assert_eq!(chosen.as_deref(), Some("e"), "equals go by name");
        let reasons: Vec<_> = reasons.into_iter().map(|(_, reason)| reason).collect();
        assert_eq!(reasons[0], Reason::Cordoned);
        assert_eq!(reasons[1], Reason::Unfit("no CRIU".into()));
        assert_eq!(
            reasons[2],
            Reason::Full {
                room: room(0, 15),
                need: room(1, 1)
            }
        );
        assert_eq!(reasons[3], Reason::Second);
    }

    #[test]
    fn who_has_to_leave_goes_where_it_is_no_better_off() {
        let hosts = [
            ("here", offer(room(1, 1), room(0, 0))),
            ("there", offer(room(5, 9), room(0, 0))),
        ];
        let hosts: BTreeMap<HostName, Offer> = hosts
            .map(|(name, offer)| (name.parse().unwrap(), offer))
            .into();
        let mover = mover(Class::Critical, room(1, 1));
        let (chosen, reasons) = choose(&mover, &hosts);
        assert_eq!(chosen, None);
        let why = reasons.values().next().unwrap().to_string();
        assert!(why.contains("left of its scarcest resource"), "{why}");
        assert_eq!(any(&mover, &hosts).0, Some("there".parse().unwrap()));
        let huge = Mover {
            need: room(4, 1),
            ..mover
        };
        let (chosen, reasons) = any(&huge, &hosts);
        assert_eq!(chosen, None);
        let why = reasons.values().next().unwrap().to_string();
        assert!(why.contains("has room for 3.00 CPU and 7.0 GiB"), "{why}");
    }

    #[test]
    fn what_is_missing_here_counts_as_less_than_nothing() {
        // 8 CPUs, of which 10 will be needed; there, one of ten is left once it has come.
        let here = ("here", offer(room(10, 4), room(0, 0)));
        let there = ("there", offer(room(6, 4), room(0, 0)));
        let mover = mover(Class::Critical, room(1, 1));
        let (chosen, reasons) = check(&mover, &[here, there.clone()]);
        assert_eq!(chosen.as_deref(), Some("there"), "{reasons:?}");
        let full = ("here", offer(room(8, 4), room(0, 0)));
        let (chosen, reasons) = check(&mover, &[full, there]);
        assert_eq!(chosen, None, "{reasons:?}");
    }

    #[test]
    fn who_lacks_something_now_goes_where_there_is_room_now() {
        let using = |needed: u64, used: u64| Offer {
            used: Some(BTreeMap::from([(Class::Critical, room(used, 4))])),
            ..offer(room(needed, 4), room(0, 0))
        };
        let hosts = |offers: &[(&str, Offer)]| -> BTreeMap<HostName, Offer> {
            let offers = offers.iter();
            offers
                .map(|(name, offer)| (name.parse().unwrap(), offer.clone()))
                .collect()
        };
        let mover = mover(Class::Critical, room(2, 1));
        let now = |offers: &[(&str, Offer)]| {
            let (chosen, reasons) = choose_now(&mover, &hosts(offers));
            (chosen.map(|name| name.to_string()), reasons)
        };
        let offers = [
            ("here", using(9, 8)),
            ("full", using(7, 7)),
            ("later", using(10, 3)),
            ("soon", using(8, 4)),
        ];
        assert_eq!(choose(&mover, &hosts(&offers)).0, None);
        let (chosen, reasons) = now(&offers);
        assert_eq!(
            chosen.as_deref(),
            Some("soon"),
            "that will be fuller: {reasons:?}"
        );
        assert_eq!(
            reasons[&"later".parse::<HostName>().unwrap()],
            Reason::Second
        );
        assert!(
            matches!(
                reasons[&"full".parse::<HostName>().unwrap()],
                Reason::Full { .. }
            ),
            "{reasons:?}"
        );
        // One that does not say what it uses is no host that uses nothing.
        let silent = [
            ("here", using(9, 8)),
            ("silent", offer(room(0, 0), room(0, 0))),
        ];
        let (chosen, reasons) = now(&silent);
        assert_eq!(chosen, None);
        assert_eq!(
            reasons[&"silent".parse::<HostName>().unwrap()],
            Reason::Silent
        );
        // And it has to be better off.
        let (chosen, _) = now(&[("here", using(8, 7)), ("there", using(8, 5))]);
        assert_eq!(chosen, None);
    }

    #[test]
    fn who_moved_finds_no_reason_to_go_back() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..2_000 {
            let need = room(rng.u64(0..4), rng.u64(0..8));
            let mut random = || {
                let extra = room(rng.u64(0..9), rng.u64(0..17));
                offer(extra, Room::default())
            };
            let (mut here, mut there) = (random(), random());
            let load = here.needed.get_mut(&Class::Critical).unwrap();
            *load = load.and(need);
            let mut mover = mover(Class::Critical, need);
            let go = check(&mover, &[("here", here.clone()), ("there", there.clone())]).0;
            if go.is_none() {
                continue;
            }
            let left = here.needed[&Class::Critical].less(need);
            here.needed.insert(Class::Critical, left);
            let load = there.needed.get_mut(&Class::Critical).unwrap();
            *load = load.and(need);
            mover.here = "there".parse().unwrap();
            let back = check(&mover, &[("here", here.clone()), ("there", there.clone())]);
            assert_eq!(back.0, None, "{here:?} {there:?} {need:?}");
        }
    }
}
