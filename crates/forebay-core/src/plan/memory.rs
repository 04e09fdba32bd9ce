//! Who may hold how much memory.
//!
//! Problem: reclaim takes pages from whoever is easiest, and a critical app finds out by
//! faulting them back. Protection that promises more than the host has ends in kills.
//!
//! Approach: floors become memory.min; forecast working sets become memory.low, scaled down
//! together when they do not fit; batch apps share what is left as memory.high, by their
//! present use, never below their floors, and do not grow while memory is missing for a rise
//! that is forecast (see [`reclaim`](super::reclaim)). Where batch cannot keep what it holds,
//! what was watched and not touched goes first, as far as there is swap for it. Bounds are rounded so that small movements write
//! nothing; batch is pressed at once and released one step per hold.
//!
//! Properties: see [`plan`](super).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Shortfall, Situation};
use crate::app::{App, AppId, Class};
use crate::units::{Bytes, Limit, Time};

/// Bounds are multiples of this.
const GRAIN: Bytes = Bytes::mib(16);
/// A bound moves when it is off by more than this share of itself, in percent.
const DEAD_BAND_PERCENT: u64 = 10;

/// The bounds that one app had after the last plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Protected.
    pub low: Bytes,
    /// Slowed above.
    pub high: Limit<Bytes>,
    /// When they last moved.
    pub moved_at: Time,
}

/// One app's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// memory.min
    pub min: Bytes,
    /// memory.low
    pub low: Bytes,
    /// memory.high
    pub high: Limit<Bytes>,
    /// What was planned for.
    pub demand: Bytes,
}

/// All apps' bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// By app.
    pub bounds: BTreeMap<AppId, Bounds>,
    /// For the next plan.
    pub held: BTreeMap<AppId, Held>,
    /// Floors beyond the host.
    pub shortfall: Option<Shortfall>,
}

/// Gives every active app its bounds. Those in `stay` get no more than they have now.
#[must_use]
pub fn allocate(
    situation: &Situation<'_>,
    before: &BTreeMap<AppId, Held>,
    stay: &BTreeMap<AppId, Bytes>,
) -> Allocation {
    let active: Vec<&App> = situation
        .demands
        .keys()
        .filter_map(|id| situation.policy.apps.get(id))
        .collect();
    let room = situation
        .topology
        .memory()
        .saturating_sub(situation.policy.system_memory);
    let floors = sum(active.iter().map(|app| app.floor.memory));
    let shortfall = (floors > room).then_some(Shortfall::Memory { floors, host: room });

    // Working sets above the floors, cut together to what the floors leave.
    let spare = room.saturating_sub(floors);
    let above = |app: &App| {
        if app.class == Class::Critical {
            wanted(situation, app).saturating_sub(app.floor.memory)
        } else {
            Bytes(0)
        }
    };
    let above_sum = sum(active.iter().map(|app| above(app)));
    let left = spare.saturating_sub(above_sum);
    let shares = batch_shares(situation, &active, left);

    let mut bounds = BTreeMap::new();
    let mut held = BTreeMap::new();
    let mut lows = BTreeMap::new();
    for app in &active {
        let min = scaled(app.floor.memory, room, floors);
        let low = min.saturating_add(scaled(above(app), spare, above_sum));
        let high = if app.class == Class::Batch {
            let share = app.floor.memory.saturating_add(shares[&app.id]);
            let stays = stay
                .get(&app.id)
                .copied()
                .unwrap_or(share)
                .max(app.floor.memory);
            Limit::At(rounded(share.min(stays)).max(GRAIN))
        } else {
            Limit::Max
        };
        let fresh = Held {
            low: rounded_down(low),
            high,
            moved_at: situation.time,
        };
        let kept = before
            .get(&app.id)
            .map_or(fresh, |before| settle(situation, *before, fresh));
        let mut kept = kept;
        if let Limit::At(high) = kept.high {
            kept.high = Limit::At(high.max(rounded(app.floor.memory)));
        }
        lows.insert(app.id.clone(), fresh.low.max(min));
        bounds.insert(
            app.id.clone(),
            Bounds {
                min,
                low: kept.low.max(min),
                high: kept.high,
                demand: situation.demands[&app.id].memory_planned(),
            },
        );
        held.insert(app.id.clone(), kept);
    }
    fit(&mut bounds, &mut held, &lows, room);
    Allocation {
        bounds,
        held,
        shortfall,
    }
}

/// What each batch app may have of what is left, by what it holds. Where that is more than is
/// left, what was not touched makes room for what is worked with.
fn batch_shares<'a>(
    situation: &Situation<'_>,
    active: &[&'a App],
    left: Bytes,
) -> BTreeMap<&'a AppId, Bytes> {
    let mut swap = situation.host.swap_free.unwrap_or(Bytes(0));
    let holds: Vec<(&AppId, Bytes, Bytes)> = batch(active)
        .map(|app| {
            let untouched = situation.demands[&app.id].memory_now.untouched();
            let held = present(situation, app);
            let idle = app.ceiling.swap.cut(swap).min(untouched).min(held);
            swap = swap.saturating_sub(idle);
            (&app.id, held.saturating_sub(idle), idle)
        })
        .collect();
    let (works, idles) = (
        sum(holds.iter().map(|(_, works, _)| *works)),
        sum(holds.iter().map(|(_, _, idle)| *idle)),
    );
    let all = works.saturating_add(idles);
    let share = |works_here: Bytes, idle_here: Bytes| {
        if all.0 == 0 {
            left
        } else if all <= left {
            scaled_up(left, works_here.saturating_add(idle_here), all)
        } else if works >= left {
            scaled_up(left, works_here, works)
        } else {
            let rest = left.saturating_sub(works);
            works_here.saturating_add(scaled_up(rest, idle_here, idles))
        }
    };
    holds
        .into_iter()
        .map(|(id, works, idle)| (id, share(works, idle)))
        .collect()
}

/// Keeps the old bound inside the dead band; presses at once; releases after the hold.
fn settle(situation: &Situation<'_>, before: Held, fresh: Held) -> Held {
    let may_release = situation.time.since(before.moved_at) >= situation.policy.hold;
    let low = match (far(before.low, fresh.low), fresh.low > before.low) {
        (true, true) => fresh.low,
        (true, false) if may_release => fresh.low,
        _ => before.low,
    };
    let high = match (before.high, fresh.high) {
        (Limit::At(old), Limit::At(new)) if far(old, new) && (new < old || may_release) => {
            fresh.high
        }
        (Limit::At(_), Limit::At(_)) => before.high,
        _ => fresh.high,
    };
    let moved = low != before.low || high != before.high;
    Held {
        low,
        high,
        moved_at: if moved {
            situation.time
        } else {
            before.moved_at
        },
    }
}

/// A low bound kept from before must not push the sum beyond the host.
fn fit(
    bounds: &mut BTreeMap<AppId, Bounds>,
    held: &mut BTreeMap<AppId, Held>,
    lows: &BTreeMap<AppId, Bytes>,
    room: Bytes,
) {
    let total = sum(bounds.values().map(|bounds| bounds.low));
    if total <= room {
        return;
    }
    for (id, bounds) in bounds {
        bounds.low = lows[id];
        if let Some(held) = held.get_mut(id) {
            held.low = bounds.low;
        }
    }
}

fn batch<'a>(active: &[&'a App]) -> impl Iterator<Item = &'a App> {
    let active = active.iter().copied();
    active.filter(|app| app.class == Class::Batch)
}

fn wanted(situation: &Situation<'_>, app: &App) -> Bytes {
    let demand = present(situation, app).max(app.floor.memory);
    let percent = u64::from(situation.policy.headroom_percent);
    let headroom = Bytes(demand.0 / 100 * percent);
    app.ceiling.memory.cut(demand.saturating_add(headroom))
}

fn present(situation: &Situation<'_>, app: &App) -> Bytes {
    situation.demands[&app.id].memory_planned()
}

fn far(old: Bytes, new: Bytes) -> bool {
    old.0.abs_diff(new.0) > old.0.max(new.0) / 100 * DEAD_BAND_PERCENT
}

/// `part`, cut in the ratio `room / all` when the whole does not fit.
fn scaled(part: Bytes, room: Bytes, all: Bytes) -> Bytes {
    if all <= room {
        part
    } else {
        scaled_up(room, part, all)
    }
}

/// `room * part / all`; `all` is not zero.
fn scaled_up(room: Bytes, part: Bytes, all: Bytes) -> Bytes {
    let product = u128::from(room.0) * u128::from(part.0) / u128::from(all.0.max(1));
    Bytes(u64::try_from(product).unwrap_or(u64::MAX))
}

fn rounded(bytes: Bytes) -> Bytes {
    Bytes(bytes.0.div_ceil(GRAIN.0).saturating_mul(GRAIN.0))
}

fn rounded_down(bytes: Bytes) -> Bytes {
    Bytes(bytes.0 / GRAIN.0 * GRAIN.0)
}

fn sum(parts: impl Iterator<Item = Bytes>) -> Bytes {
    parts.fold(Bytes(0), Bytes::saturating_add)
}
