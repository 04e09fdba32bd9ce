//! Memory that batch gives back before a critical app asks for it.
//!
//! Problem: when a critical app's working set grows into a full host, the kernel reclaims while
//! the app waits, and takes pages from whoever is easiest, the app itself included. Protection
//! (memory.low) decides whose pages go, not when.
//!
//! Approach: the forecast says how far each critical app may rise within [`AHEAD`](crate::demand::AHEAD). Where that is
//! more than the host has available beyond the system's share and what critical apps work
//! with, batch apps are asked for the
//! difference, and held at what they use until the rise is over or no longer expected. The
//! coldest give first: all of an app's cold memory before anybody's that is in use. What has no
//! place to go (anonymous memory without swap) is not asked for. An app that gave little is
//! left alone for a while that doubles.
//!
//! Properties, tested: nothing is asked while memory is enough, nothing below a floor, nothing
//! of critical or standard apps, never more than is missing; what is missing and cannot be had
//! is said, with the reason; one request at a time and app.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Situation;
use crate::app::{App, AppId, Class};
use crate::offload::Cold;
use crate::snapshot::{Reclaim, ReclaimState};
use crate::units::{Bytes, Limit, Time};

/// Less than this is not worth asking for.
const ASK_MIN: Bytes = Bytes::mib(4);
/// The most that one request is about, so that its effect is seen before the next.
const ASK_MAX: Bytes = Bytes::mib(256);
/// Share of what was asked for that must have come, or the app is left alone for a while.
const FRUITFUL_PERCENT: u64 = 25;
/// The shortest time for which a fruitless app is left alone.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest time for which a fruitless app is left alone.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What is remembered of one batch app.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The last request of which the end was taken in.
    seen: u64,
    /// Until when it is not asked, and how long that was.
    paused_until: Option<Time>,
    pause: Duration,
}

/// Why an app was not asked for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The rest is its floor.
    Floor,
    /// The rest is anonymous, and there is no swap to put it into.
    NoSwap,
    /// It gave little when it was last asked.
    GaveLittle,
    /// What it holds is not known.
    Unknown,
    /// It is giving already.
    Asked,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Floor => "the rest is its floor",
            Self::NoSwap => "the rest is anonymous memory, and the host has no free swap for it",
            Self::GaveLittle => "it gave little when it was last asked",
            Self::Unknown => "what it holds is not known yet",
            Self::Asked => "it is giving already",
        })
    }
}

/// What is missing, and who is asked for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GiveBack {
    /// How far critical apps may rise, together.
    pub rise: Bytes,
    /// What the host has for it.
    pub free: Option<Bytes>,
    /// What is asked for now.
    pub asks: BTreeMap<AppId, Bytes>,
    /// Apps that must not grow while something is missing.
    pub held: BTreeMap<AppId, Bytes>,
    /// What is missing and nobody can give.
    pub unmet: Bytes,
    /// Why not, by app.
    pub refused: BTreeMap<AppId, Refusal>,
}

impl GiveBack {
    /// What is missing.
    #[must_use]
    pub fn missing(&self) -> Bytes {
        self.free
            .map_or(Bytes(0), |free| self.rise.saturating_sub(free))
    }
}

/// One batch app that may give.
pub(super) struct Giver<'a> {
    id: &'a AppId,
    used: Bytes,
    /// What can go, at most, and how much of that is cold.
    pub(super) open: Bytes,
    pub(super) cold: Bytes,
    /// What of it is page cache and what anonymous, each as if the other were not.
    cold_parts: (Bytes, Bytes),
    refusal: Refusal,
}

impl Giver<'_> {
    /// What of it is cold, for those who have to divide free swap themselves.
    pub(super) const fn cold_of(&self) -> Cold {
        Cold {
            file: self.cold_parts.0,
            anon: self.cold_parts.1,
            most: self.open,
        }
    }
}

/// Decides for this period.
#[must_use]
pub(super) fn decide(
    situation: &Situation<'_>,
    before: &BTreeMap<AppId, Held>,
) -> (GiveBack, BTreeMap<AppId, Held>) {
    let held = take_in(situation, before);
    let mut plan = GiveBack {
        rise: rise(situation),
        free: free(situation),
        ..GiveBack::default()
    };
    if plan.missing() < ASK_MIN || !situation.capabilities.reclaim {
        return (plan, held);
    }
    // What is on its way already counts as had.
    let coming = apps(situation, Class::Batch)
        .filter_map(|app| running(situation, &app.id))
        .map(|reclaim| reclaim.asked.saturating_sub(reclaim.got))
        .fold(Bytes(0), Bytes::saturating_add);
    let mut missing = plan.missing().saturating_sub(coming);
    let mut swap = situation.host.swap_free.unwrap_or(Bytes(0));
    let mut givers: Vec<Giver<'_>> = apps(situation, Class::Batch)
        .map(|app| giver(situation, app, &held, &mut swap))
        .collect();
    // The coldest first; the sort is stable, so equals stay in the order of their names.
    givers.sort_by_key(|giver| {
        let permille = u128::from(giver.cold.0) * 1000 / u128::from(giver.used.0.max(1));
        std::cmp::Reverse(permille)
    });
    let mut gives: Vec<Bytes> = vec![Bytes(0); givers.len()];
    let portions = [
        |giver: &Giver<'_>| giver.cold,
        |giver: &Giver<'_>| giver.open.saturating_sub(giver.cold),
    ];
    for portion in portions {
        for (give, giver) in gives.iter_mut().zip(&givers) {
            let part = portion(giver).min(missing);
            *give = give.saturating_add(part);
            missing = missing.saturating_sub(part);
        }
    }
    plan.unmet = missing;
    for (give, giver) in gives.into_iter().zip(&givers) {
        plan.held.insert(giver.id.clone(), giver.used);
        if missing > Bytes(0) {
            plan.refused.insert(giver.id.clone(), giver.refusal);
        }
        if give >= ASK_MIN {
            plan.asks.insert(giver.id.clone(), give.min(ASK_MAX));
        }
    }
    (plan, held)
}

/// What a rise may take without taking it from somebody: what the kernel calls available, less
/// the system's share, less the page cache that critical apps work with, which the kernel counts
/// as available and memory.low protects.
fn free(situation: &Situation<'_>) -> Option<Bytes> {
    let cache = apps(situation, Class::Critical)
        .filter_map(|app| {
            let now = situation.demands[&app.id].memory_now;
            Some(now.stat?.file().saturating_sub(now.cold_file))
        })
        .fold(Bytes(0), Bytes::saturating_add);
    let available = situation.host.available?;
    Some(
        available
            .saturating_sub(situation.policy.system_memory)
            .saturating_sub(cache),
    )
}

/// How far critical apps may rise above what they hold.
fn rise(situation: &Situation<'_>) -> Bytes {
    apps(situation, Class::Critical)
        .map(|app| {
            let demand = &situation.demands[&app.id];
            let now = demand.memory_now;
            let Some(used) = now.used else {
                // It holds nothing yet.
                return app.floor.memory;
            };
            let ahead = now.rises_to.unwrap_or(Bytes(0));
            let rise = ahead
                .saturating_sub(now.working_set(used))
                .max(app.floor.memory.saturating_sub(used));
            match app.ceiling.memory {
                Limit::At(ceiling) => rise.min(ceiling.saturating_sub(used)),
                Limit::Max => rise,
            }
        })
        .fold(Bytes(0), Bytes::saturating_add)
}

pub(super) fn giver<'a>(
    situation: &Situation<'_>,
    app: &'a App,
    held: &BTreeMap<AppId, Held>,
    swap: &mut Bytes,
) -> Giver<'a> {
    let now = situation.demands[&app.id].memory_now;
    let nothing = |refusal| Giver {
        id: &app.id,
        used: now.used.unwrap_or(Bytes(0)),
        open: Bytes(0),
        cold: Bytes(0),
        cold_parts: (Bytes(0), Bytes(0)),
        refusal,
    };
    let (Some(used), Some(stat)) = (now.used, now.stat) else {
        return nothing(Refusal::Unknown);
    };
    if running(situation, &app.id).is_some() {
        return nothing(Refusal::Asked);
    }
    if held
        .get(&app.id)
        .is_some_and(|held| held.is_paused(situation.time))
    {
        return nothing(Refusal::GaveLittle);
    }
    let above_floor = used.saturating_sub(app.floor.memory);
    let anon = stat.anon().min(app.ceiling.swap.cut(*swap));
    let movable = stat.file().saturating_add(anon);
    let open = above_floor.min(movable);
    *swap = swap.saturating_sub(open.saturating_sub(stat.file()));
    let cold_parts = (now.cold_file, now.cold_anon.min(anon));
    Giver {
        id: &app.id,
        used,
        open,
        cold: cold_parts.0.saturating_add(cold_parts.1).min(open),
        cold_parts,
        refusal: if above_floor > movable {
            Refusal::NoSwap
        } else {
            Refusal::Floor
        },
    }
}

/// Notes which requests ended with little.
fn take_in(situation: &Situation<'_>, before: &BTreeMap<AppId, Held>) -> BTreeMap<AppId, Held> {
    apps(situation, Class::Batch)
        .map(|app| {
            let mut held = before.get(&app.id).copied().unwrap_or_default();
            let reclaim = situation.demands[&app.id].memory_now.reclaim;
            if let Some(reclaim) = reclaim.filter(|reclaim| {
                reclaim.state != ReclaimState::Running && reclaim.number != held.seen
            }) {
                held.seen = reclaim.number;
                let enough = reclaim.asked.0 / 100 * FRUITFUL_PERCENT;
                if reclaim.got.0 < enough {
                    held.refused(situation.time, situation.policy.hold);
                } else {
                    held.pause = Duration::ZERO;
                    held.paused_until = None;
                }
            }
            (app.id.clone(), held)
        })
        .collect()
}

impl Held {
    /// It gave little, or could not be asked: it is left alone for a while that doubles.
    pub fn refused(&mut self, now: Time, hold: Duration) {
        self.pause = (self.pause * 2).max(hold).clamp(PAUSE_MIN, PAUSE_MAX);
        self.paused_until = Some(Time {
            monotonic: now.monotonic + self.pause,
            ..now
        });
    }

    fn is_paused(&self, now: Time) -> bool {
        self.paused_until
            .is_some_and(|until| now.monotonic < until.monotonic)
    }
}

/// The request to an app that is under way.
pub(super) fn running(situation: &Situation<'_>, id: &AppId) -> Option<Reclaim> {
    let reclaim = situation.demands[id].memory_now.reclaim;
    reclaim.filter(|reclaim| reclaim.state == ReclaimState::Running)
}

pub(super) fn apps<'a>(
    situation: &'a Situation<'_>,
    class: Class,
) -> impl Iterator<Item = &'a App> {
    situation
        .demands
        .keys()
        .filter_map(|id| situation.policy.apps.get(id))
        .filter(move |app| app.class == class)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::app::{Binding, Match, Policy};
    use crate::demand::{Band, Demand, MemoryNow, Usage};
    use crate::host::Capabilities;
    use crate::io_history::IoUse;
    use crate::plan::HostMemory;
    use crate::topology::{Shape, Topology};
    use crate::working_set::MemoryStat;

    /// One host; the system's share is 256 MiB.
    #[derive(Debug)]
    struct Case {
        topology: Topology,
        capabilities: Capabilities,
        policy: Policy,
        demands: BTreeMap<AppId, Demand>,
        host: HostMemory,
    }

    fn id(name: &str) -> AppId {
        name.parse().unwrap()
    }

    impl Case {
        fn new(available_mib: u64, swap_mib: u64) -> Self {
            Self {
                topology: Topology::regular(Shape {
                    nodes: 1,
                    l3s: 1,
                    cores: 2,
                    threads: 1,
                    memory: Bytes::mib(8192),
                }),
                capabilities: Capabilities {
                    knobs: Vec::new(),
                    reclaim: true,
                    ..Capabilities::default()
                },
                policy: Policy::default(),
                demands: BTreeMap::new(),
                host: HostMemory {
                    available: Some(Bytes::mib(available_mib)),
                    swap_free: Some(Bytes::mib(swap_mib)),
                    compaction: None,
                },
            }
        }

        fn app(&mut self, name: &str, class: Class, now: MemoryNow) -> &mut App {
            let band = Band {
                q50: 0.0,
                q90: 0.0,
                q95: 0.0,
                q99: 0.0,
                model: "test".to_owned(),
                cold: false,
            };
            let demand = Demand {
                cpu: band.clone(),
                memory: band,
                cpu_stalled: 0.0,
                memory_now: now,
                usage: Usage::default(),
                response_time: None,
                io_use: IoUse::default(),
                io: BTreeMap::new(),
            };
            self.demands.insert(id(name), demand);
            let app = App::new(
                id(name),
                class,
                Binding::Match(Match {
                    executable: None,
                    command_line: None,
                }),
            );
            self.policy.apps.entry(id(name)).or_insert(app)
        }

        fn decide(&self, second: u64, held: &BTreeMap<AppId, Held>) -> (GiveBack, Givers) {
            let situation = Situation {
                time: Time {
                    monotonic: Duration::from_secs(second),
                    unix_ms: 0,
                },
                topology: &self.topology,
                capabilities: &self.capabilities,
                policy: &self.policy,
                demands: &self.demands,
                host: self.host,
                placed: &BTreeMap::new(),
                away: None,
            };
            decide(&situation, held)
        }

        fn asks(&self) -> Vec<(String, u64)> {
            let (plan, _) = self.decide(0, &Givers::new());
            let mib = |bytes: &Bytes| bytes.0 >> 20;
            plan.asks
                .iter()
                .map(|(app, bytes)| (app.to_string(), mib(bytes)))
                .collect()
        }
    }

    type Givers = BTreeMap<AppId, Held>;

    /// A critical app that holds 1 GiB and rises.
    fn rising(to_mib: u64) -> MemoryNow {
        MemoryNow {
            used: Some(Bytes::mib(1024)),
            rises_to: Some(Bytes::mib(to_mib)),
            ..MemoryNow::default()
        }
    }

    fn holding(used: u64, file: u64, cold_anon: u64) -> MemoryNow {
        MemoryNow {
            used: Some(Bytes::mib(used)),
            cold_anon: Bytes::mib(cold_anon),
            stat: Some(MemoryStat {
                active_file: Bytes::mib(file),
                inactive_anon: Bytes::mib(cold_anon),
                active_anon: Bytes::mib(used - file - cold_anon),
                ..MemoryStat::default()
            }),
            ..MemoryNow::default()
        }
    }

    #[test]
    fn batch_is_asked_for_what_is_missing_the_coldest_first() {
        let mut case = Case::new(356, 4096);
        case.app("web", Class::Critical, rising(1224));
        case.app("warm", Class::Batch, holding(1000, 0, 10));
        case.app("cold", Class::Batch, holding(1000, 0, 80));
        // 200 to come, 100 there: 80 and 10 are cold, 10 more are taken from the coldest.
        assert_eq!(
            case.asks(),
            [("cold".to_owned(), 90), ("warm".to_owned(), 10)]
        );
        case.host.available = Some(Bytes::mib(456));
        assert_eq!(case.asks(), [], "there is room for the rise");
        case.host.available = None;
        assert_eq!(case.asks(), [], "a gap is not a shortage");
    }

    #[test]
    fn one_request_is_bounded_and_the_next_waits_for_it() {
        let mut case = Case::new(256, 4096);
        case.app("web", Class::Critical, rising(2048));
        let batch = holding(2000, 0, 0);
        case.app("batch", Class::Batch, batch);
        assert_eq!(case.asks(), [("batch".to_owned(), 256)]);
        let request = |state, got| MemoryNow {
            reclaim: Some(Reclaim {
                number: 1,
                asked: Bytes::mib(256),
                got: Bytes::mib(got),
                state,
            }),
            ..batch
        };
        case.app("batch", Class::Batch, request(ReclaimState::Running, 100));
        assert_eq!(case.asks(), []);
        case.app("batch", Class::Batch, request(ReclaimState::Done, 256));
        assert_eq!(case.asks(), [("batch".to_owned(), 256)]);
    }

    #[test]
    fn who_gave_little_is_left_alone_for_a_while_that_doubles() {
        let mut case = Case::new(256, 4096);
        case.app("web", Class::Critical, rising(2048));
        let mut held = Givers::new();
        let mut number = 0;
        let mut asked_at = Vec::new();
        for second in 0..100 {
            let mut batch = holding(2000, 0, 0);
            batch.reclaim = (number > 0).then_some(Reclaim {
                number,
                asked: Bytes::mib(256),
                got: Bytes(0),
                state: ReclaimState::Short,
            });
            case.app("batch", Class::Batch, batch);
            let (plan, next) = case.decide(second, &held);
            held = next;
            if plan.asks.is_empty() {
                assert_eq!(plan.refused[&id("batch")], Refusal::GaveLittle);
                assert_eq!(plan.unmet, Bytes::mib(1024));
            } else {
                number += 1;
                asked_at.push(second);
            }
        }
        assert_eq!(asked_at, [0, 6, 17, 38, 79]);
    }

    #[test]
    fn what_has_nowhere_to_go_is_not_asked_for_and_that_is_said() {
        let mut case = Case::new(256, 0);
        case.app("web", Class::Critical, rising(1324));
        case.app("batch", Class::Batch, holding(1000, 50, 500));
        let (plan, _) = case.decide(0, &Givers::new());
        assert_eq!(plan.asks[&id("batch")], Bytes::mib(50));
        assert_eq!(plan.unmet, Bytes::mib(250));
        assert_eq!(plan.refused[&id("batch")], Refusal::NoSwap);
        case.capabilities.reclaim = false;
        assert_eq!(case.asks(), []);
    }

    #[test]
    fn the_page_cache_that_a_critical_app_works_with_is_not_free() {
        let mut case = Case::new(756, 4096);
        let mut web = rising(1424);
        web.stat = Some(MemoryStat {
            active_file: Bytes::mib(400),
            ..MemoryStat::default()
        });
        case.app("web", Class::Critical, web);
        case.app("batch", Class::Batch, holding(1000, 0, 0));
        assert_eq!(case.asks(), [("batch".to_owned(), 256)], "300 are missing");
    }

    #[test]
    fn a_floor_is_made_room_for_and_a_ceiling_bounds_the_rise() {
        let mut case = Case::new(256, 4096);
        let starting = MemoryNow {
            used: Some(Bytes(0)),
            ..MemoryNow::default()
        };
        case.app("web", Class::Critical, starting).floor.memory = Bytes::mib(100);
        case.app("batch", Class::Batch, holding(1000, 0, 0));
        assert_eq!(case.asks(), [("batch".to_owned(), 100)]);
        case.app("web", Class::Critical, rising(4096))
            .ceiling
            .memory = Limit::At(Bytes::mib(1074));
        assert_eq!(case.asks(), [("batch".to_owned(), 50)]);
    }

    proptest! {
        #[test]
        fn never_more_than_is_missing_and_never_below_a_floor(
            available in 0u64..4096,
            swap in 0u64..2048,
            to in 0u64..4096,
            batch in proptest::collection::vec((0u64..2000, 0u64..2000, 0u64..100, 0u64..100), 0..5),
        ) {
            let mut case = Case::new(available, swap);
            case.app("web", Class::Critical, rising(to));
            case.app("mail", Class::Standard, holding(1000, 500, 500));
            let mut may = BTreeMap::new();
            for (n, (used, floor, file, cold)) in batch.into_iter().enumerate() {
                let name = format!("batch{n}");
                let (file, cold) = (used * file / 200, used * cold / 200);
                let app = case.app(&name, Class::Batch, holding(used, file, cold));
                app.floor.memory = Bytes::mib(floor);
                may.insert(id(&name), Bytes::mib(used.saturating_sub(floor)));
            }
            let (plan, _) = case.decide(0, &Givers::new());
            let sum: u64 = plan.asks.values().map(|bytes| bytes.0).sum();
            prop_assert!(sum <= plan.missing().0, "{plan:?}");
            prop_assert!(plan.missing().0 <= Bytes::mib(to.saturating_sub(1024)).0);
            for (app, bytes) in &plan.asks {
                prop_assert!(bytes <= may.get(app).unwrap_or(&Bytes(0)), "{app}: {plan:?}");
                prop_assert!(*bytes <= ASK_MAX);
            }
            let anon: u64 = plan.asks.iter().map(|(app, bytes)| {
                let stat = case.demands[app].memory_now.stat.unwrap();
                bytes.saturating_sub(stat.file()).0
            }).sum();
            prop_assert!(anon <= Bytes::mib(swap).0, "{plan:?}");
            let names: BTreeSet<&AppId> = plan.asks.keys().chain(plan.held.keys()).collect();
            prop_assert!(names.iter().all(|name| name.as_str().starts_with("batch")));
        }
    }
}
