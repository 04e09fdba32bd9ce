//! How much of a block device batch may take.
//!
//! Problem: a device serves requests in turn, so a critical read waits behind whatever batch
//! has in the queue, and a device that is merely busy answers as slowly as its queue is long.
//! Weights do not help where the queue is in the device. What can be bounded is what batch
//! sends; but the kernel grants a limit in slices (`throtl_slice`, 100 ms) at once, so that even
//! a device that is half idle on average has a queue at the start of every slice.
//!
//! Approach: for each device that was measured and that a critical app uses or is about to,
//! batch gets the smaller of two parts of the device's time, shared by reads and writes.
//! The *bandwidth* part is what is left below [`TARGET`] by the critical apps' forecast use,
//! with headroom. The *delay* part applies while a critical app waits for its I/O at all: what
//! batch may send in one slice must be served within the time that one small request alone
//! takes at worst, so that such a request at most doubles. Up to one part in a hundred
//! is given anyway: who meets it is beyond the 99 % quantile. Where critical requests still
//! take more than twice what they take alone (PSI per request), the part is pressed further, by
//! multiplicative decrease and additive increase (Chiu and Jain, 1989). Batch is pressed at
//! once and released one step per hold, with a dead band.
//!
//! The kernel limits reads and writes apart, and both together may not exceed an app's part: each
//! gets half, until the app fills one half and hardly uses the other, which then leaves all but
//! [`SPARE`] to it. That ends when what is left is not enough. A change waits for the hold, and
//! what ends a lean is more than what begins it, so that none goes to and fro.
//!
//! Properties, each tested: reads and writes of an app sum to its part; parts of all batch apps that use the device sum to the room, but
//! none is below its floor; no limit where no critical app uses the device; a limit of the
//! user, or one that was there before, is never exceeded; more critical use never means more
//! for batch; a plan in force plans to itself.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Situation;
use crate::app::{App, AppId, Class, Device, IoMax};
use crate::demand::Demand;
use crate::io::{DeviceCapability, Direction, IoRates};
use crate::offload;
use crate::slice::Knob;
use crate::units::{Limit, Time};

/// A part of a device's time, in millionths.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Ppm(pub u32);

/// All of a device's time: batch is not bounded.
pub const FREE: Ppm = Ppm(1_000_000);
/// What critical apps and batch together may take: above it queues grow without bound.
pub const TARGET: Ppm = Ppm(700_000);
/// What batch gets in any case, all of it together.
pub const ROOM_MIN: Ppm = Ppm(10_000);
/// Less than this is not divided: half of it is less than what batch gets in any case.
const DIVISIBLE_MIN: Ppm = Ppm(2 * ROOM_MIN.0);
/// A critical app whose forecast use is below this does not use a device.
const USES: Ppm = Ppm(500);
/// In what slices the kernel grants a limit.
const SLICE: Duration = Duration::from_millis(100);
/// A critical app that waits for I/O in less than this part of time does not care how long
/// its requests take.
const WAITS: f64 = 0.01;
/// Requests that take so many times what they take alone press batch; below the other
/// multiple it is released.
const SLOW: f64 = 2.0;
const QUICK: f64 = 1.5;
/// How often batch is pressed further.
const PRESS_EVERY: Duration = Duration::from_secs(1);
/// To what percentage it is pressed in one step, at most down to, and back up by.
const PRESS_TO: u32 = 70;
const PRESS_MIN: u32 = 10;
const PRESS_BACK: u32 = 10;
/// A room moves when it is off by more than this share of itself, in percent.
const DEAD_BAND_PERCENT: u32 = 10;
/// One step of release multiplies the room by this.
const RELEASE_STEP: u32 = 4;
/// Every batch app's own floor, for each direction: it makes progress.
const FLOOR_BYTES: u64 = 256 << 10;
const FLOOR_REQUESTS: u64 = 4;
/// The shortest target that the kernel takes for one.
const LATENCY_MIN: Duration = Duration::from_micros(1);
/// Limits in bytes are multiples of this.
const GRAIN: u64 = 64 << 10;

/// What the lesser direction of an app keeps of its part, in percent, and what ends and begins
/// that it is the lesser: so much of the app's part is used, in percent.
const SPARE: u32 = 10;
const LEAN_ENDS: u32 = 8;
const LEAN_BEGINS: u32 = 5;
/// Whoever uses so much of what one direction may, in percent, could use more.
const FILLED: u32 = 80;

/// Which way an app mostly goes on a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lean {
    /// Both, or not known.
    #[default]
    Even,
    /// It reads.
    Reads,
    /// It writes.
    Writes,
}

/// What one app had on one device after the last plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaning {
    /// Which way it goes.
    pub lean: Lean,
    /// When that last moved; never, when absent.
    moved_at: Option<Time>,
}

/// What each app had on each device.
pub type Leanings = BTreeMap<AppId, BTreeMap<Device, Leaning>>;

/// What one device's batch had after the last plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// For all batch apps together.
    pub room: Ppm,
    /// When that last moved.
    moved_at: Time,
    /// What is left of the room because critical requests are slow all the same, in percent.
    pressed_to: u32,
    /// When that last moved; never, when absent.
    pressed_at: Option<Time>,
}

/// Why batch may take what it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// No critical app uses the device.
    Free,
    /// Critical apps' use is left free.
    Bandwidth,
    /// A critical app waits for I/O: what is sent at a time is kept short.
    Delay,
}

/// The numbers that decided for one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Critical apps' forecast use, with headroom and what they are left beyond that.
    pub critical: Ppm,
    /// What batch may take of the device, all of it together.
    pub room: Ppm,
    /// Batch apps that share it.
    pub sharers: u32,
    /// What the room is by now.
    pub bound: Bound,
    /// What is left of it because critical requests are slow all the same, in percent.
    pub pressed_to: u32,
    /// Critical apps that use the device.
    pub used_by: Vec<AppId>,
}

/// What each app may do on each device, where that is bounded, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Allocation {
    /// Of batch apps.
    pub(super) limits: BTreeMap<AppId, BTreeMap<Device, IoMax>>,
    /// By device, each that was measured.
    pub(super) reasons: BTreeMap<Device, Reason>,
    /// For the next plan.
    pub(super) held: BTreeMap<Device, Held>,
    pub(super) leanings: Leanings,
}

/// Bounds batch on every measured device.
#[must_use]
pub(super) fn allocate(
    situation: &Situation<'_>,
    before: &BTreeMap<Device, Held>,
    leanings: &Leanings,
    offload: &offload::Memory,
) -> Allocation {
    let mut allocation = Allocation::default();
    let offers = |knob: &Knob| matches!(knob, Knob::IoMax(_));
    if !situation.capabilities.knobs.iter().any(offers) {
        return allocation;
    }
    for (device, capability) in &situation.policy.devices {
        let extra = |app: &AppId| of_percent(offload.extra_io(app));
        let before = before.get(device);
        let (held, reason) = room(situation, *device, capability, before, extra);
        if held.room < FREE {
            let share = Ppm(held.room.0 / reason.sharers.max(1));
            for (app, demand) in of(situation, Class::Batch) {
                let before = leanings
                    .get(&app.id)
                    .and_then(|devices| devices.get(device));
                let used = used(capability, demand, *device);
                let leaning = lean(situation, before.copied().unwrap_or_default(), share, used);
                let limits = allocation.limits.entry(app.id.clone()).or_default();
                limits.insert(*device, limit(capability, share, leaning.lean));
                let leanings = allocation.leanings.entry(app.id.clone()).or_default();
                leanings.insert(*device, leaning);
            }
        }
        allocation.held.insert(*device, held);
        allocation.reasons.insert(*device, reason);
    }
    allocation
}

/// The stricter of two limits, in each of their numbers.
#[must_use]
pub fn stricter(a: IoMax, b: IoMax) -> IoMax {
    IoMax {
        rbps: a.rbps.min(b.rbps),
        wbps: a.wbps.min(b.wbps),
        riops: a.riops.min(b.riops),
        wiops: a.wiops.min(b.wiops),
    }
}

/// Within what time a critical app's requests are to be answered before the groups beside it are
/// held back: as long as they may take before batch is pressed.
#[must_use]
pub fn latency_target(capability: &DeviceCapability) -> Duration {
    let target = capability.read.latency_worst().mul_f64(SLOW);
    // The kernel takes whole microseconds, and nothing for none.
    Duration::from_micros(u64::try_from(target.as_micros()).unwrap_or(u64::MAX)).max(LATENCY_MIN)
}

fn of<'a>(situation: &Situation<'a>, class: Class) -> impl Iterator<Item = (&'a App, &'a Demand)> {
    let policy = situation.policy;
    situation
        .demands
        .iter()
        .filter_map(|(id, demand)| Some((policy.apps.get(id)?, demand)))
        .filter(move |(app, _)| app.class == class)
}

/// What batch may take of one device, all of it together.
fn room(
    situation: &Situation<'_>,
    device: Device,
    capability: &DeviceCapability,
    before: Option<&Held>,
    extra: impl Fn(&AppId) -> Ppm,
) -> (Held, Reason) {
    let uses = |demand: &Demand| {
        let forecast = demand.io.get(&device)?;
        Some(ppm(forecast.share.q95)).filter(|part| *part >= USES)
    };
    let users: Vec<(&App, &Demand, Ppm)> = of(situation, Class::Critical)
        .filter_map(|(app, demand)| Some((app, demand, uses(demand)?)))
        .collect();
    let headroom = 100 + u64::from(situation.policy.headroom_percent);
    let sum: u64 = users.iter().map(|(.., part)| u64::from(part.0)).sum();
    let extra: u64 = users
        .iter()
        .map(|(app, ..)| u64::from(extra(&app.id).0))
        .sum();
    let critical = Ppm(u32::try_from(sum * headroom / 100 + extra).unwrap_or(u32::MAX));

    let waiting = || users.iter().filter(|(_, demand, _)| waits(demand));
    let slowest = waiting()
        .filter_map(|(_, demand, _)| slowness(demand))
        .fold(0.0, f64::max);
    let (pressed_to, pressed_at) = press(situation, device, before, slowest);

    let bandwidth = Ppm(TARGET.0.saturating_sub(critical.0)).max(ROOM_MIN);
    let delay = delay(capability).max(ROOM_MIN);
    let (bound, fresh) = if users.is_empty() {
        (Bound::Free, FREE)
    } else if waiting().next().is_some() && delay < bandwidth {
        (Bound::Delay, delay)
    } else {
        (Bound::Bandwidth, bandwidth)
    };
    let fresh = match bound {
        Bound::Free => FREE,
        // The product of a part of a million and a percentage fits.
        _ => Ppm(fresh.0 / 100 * pressed_to),
    };
    let held = settle(situation, before, fresh, (pressed_to, pressed_at));
    let sharers = of(situation, Class::Batch).filter(|(_, demand)| is_busy(demand, device));
    let reason = Reason {
        critical,
        room: held.room,
        sharers: u32::try_from(sharers.count()).unwrap_or(u32::MAX).max(1),
        bound,
        pressed_to,
        used_by: users.iter().map(|(app, ..)| app.id.clone()).collect(),
    };
    (held, reason)
}

/// What can be served within the time of a small request at worst, of every slice.
fn delay(capability: &DeviceCapability) -> Ppm {
    ppm(capability.read.latency_worst().as_secs_f64() / SLICE.as_secs_f64())
}

fn waits(demand: &Demand) -> bool {
    demand.io_use.stalled.is_some_and(|part| part >= WAITS)
}

/// How many times what they take alone an app's requests take.
fn slowness(demand: &Demand) -> Option<f64> {
    let alone = demand.io_use.wait_alone?.as_secs_f64();
    Some(demand.io_use.wait?.as_secs_f64() / alone.max(1e-6))
}

const fn of_percent(percent: u32) -> Ppm {
    Ppm(percent.saturating_mul(10_000))
}

/// What an app can be left more of: what batch may take of devices that the app uses and batch, too,
/// of the device where that is least, since the app is left the same of each. None where nothing of
/// any of them can be had, since batch is bounded by something else than what the apps' use leaves.
#[must_use]
pub(super) fn divisible(
    situation: &Situation<'_>,
    reasons: &BTreeMap<Device, Reason>,
    app: &AppId,
) -> Option<Ppm> {
    let used = reasons
        .iter()
        .filter(|(_, reason)| reason.used_by.contains(app));
    let shared = used.filter(|(device, _)| {
        of(situation, Class::Batch).any(|(_, demand)| is_busy(demand, **device))
    });
    // Where batch has hardly anything, it loses nothing.
    let parts = shared.map(|(_, reason)| (reason.bound, unused(reason)));
    let parts: Vec<(Bound, Ppm)> = parts.filter(|(_, part)| *part >= DIVISIBLE_MIN).collect();
    let had = parts.iter().any(|(bound, _)| *bound == Bound::Bandwidth);
    let least = parts.iter().map(|(_, part)| *part).min();
    least.filter(|_| had)
}

/// What the apps' use leaves of a device: what is taken for an app comes out of that, also where
/// batch has less by now.
fn unused(reason: &Reason) -> Ppm {
    match reason.bound {
        Bound::Free | Bound::Bandwidth => reason.room,
        Bound::Delay => Ppm(TARGET.0.saturating_sub(reason.critical.0)),
    }
}

/// Whether an app does something on a device now, or is expected to.
fn is_busy(demand: &Demand, device: Device) -> bool {
    let used = demand.io_use.devices.get(&device);
    let forecast = demand.io.get(&device);
    used.is_some_and(|used| !used.rates.is_idle())
        || forecast.is_some_and(|forecast| ppm(forecast.share.q95) >= USES)
}

/// What is left of the room, since critical requests are so many times slower than alone.
fn press(
    situation: &Situation<'_>,
    device: Device,
    before: Option<&Held>,
    slowest: f64,
) -> (u32, Option<Time>) {
    let (now, moved_at) = match before {
        Some(held) => (held.pressed_to, held.pressed_at),
        None => (100, None),
    };
    let since = moved_at.map(|at| situation.time.since(at));
    let passed = |time: Duration| since.is_none_or(|since| since >= time);
    let batch = of(situation, Class::Batch).any(|(_, demand)| is_busy(demand, device));
    let next = if slowest > SLOW && batch && passed(PRESS_EVERY) {
        (now * PRESS_TO / 100).max(PRESS_MIN)
    } else if slowest < QUICK && passed(situation.policy.hold) {
        (now + PRESS_BACK).min(100)
    } else {
        now
    };
    if next == now {
        (now, moved_at)
    } else {
        (next, Some(situation.time))
    }
}

/// Keeps the old room inside the dead band; presses at once; releases a step after the hold.
fn settle(
    situation: &Situation<'_>,
    before: Option<&Held>,
    fresh: Ppm,
    (pressed_to, pressed_at): (u32, Option<Time>),
) -> Held {
    let old = before.map_or(FREE, |held| held.room);
    let waited =
        before.is_none_or(|held| situation.time.since(held.moved_at) >= situation.policy.hold);
    let far = old.0.abs_diff(fresh.0) > old.0.max(fresh.0) / 100 * DEAD_BAND_PERCENT;
    let room = match (far, fresh < old) {
        (true, true) => fresh,
        (true, false) if waited => fresh.min(Ppm(old.0.saturating_mul(RELEASE_STEP))),
        _ => old,
    };
    Held {
        room,
        moved_at: match before {
            Some(held) if held.room == room => held.moved_at,
            _ => situation.time,
        },
        pressed_to,
        pressed_at,
    }
}

/// Parts of a device that an app's reads and writes take.
#[derive(Debug, Clone, Copy)]
struct Used {
    reads: Ppm,
    writes: Ppm,
}

fn used(capability: &DeviceCapability, demand: &Demand, device: Device) -> Used {
    let rates = demand.io_use.devices.get(&device);
    let rates = rates.map_or_else(IoRates::default, |used| used.rates);
    let part = |rates: IoRates| ppm(capability.share(&rates));
    Used {
        reads: part(IoRates {
            write_bytes: 0.0,
            writes: 0.0,
            ..rates
        }),
        writes: part(IoRates {
            read_bytes: 0.0,
            reads: 0.0,
            ..rates
        }),
    }
}

/// A percentage of a part of a device.
fn percent(part: Ppm, percent: u32) -> u64 {
    u64::from(part.0) * u64::from(percent) / 100
}

/// Which way an app goes by now that may take `share` and takes `used`.
fn lean(situation: &Situation<'_>, before: Leaning, share: Ppm, used: Used) -> Leaning {
    let moved = before.moved_at.map(|at| situation.time.since(at));
    if moved.is_some_and(|since| since < situation.policy.hold) {
        return before;
    }
    let fills_half = |part: Ppm| u64::from(part.0) >= percent(share, FILLED / 2);
    let hardly = |part: Ppm| u64::from(part.0) <= percent(share, LEAN_BEGINS);
    let wants_more = |part: Ppm| u64::from(part.0) >= percent(share, LEAN_ENDS);
    let Used { reads, writes } = used;
    let lean = match before.lean {
        Lean::Even if fills_half(reads) && hardly(writes) => Lean::Reads,
        Lean::Even if fills_half(writes) && hardly(reads) => Lean::Writes,
        Lean::Reads if wants_more(writes) => Lean::Even,
        Lean::Writes if wants_more(reads) => Lean::Even,
        lean => lean,
    };
    if lean == before.lean {
        return before;
    }
    Leaning {
        lean,
        moved_at: Some(situation.time),
    }
}

/// A part of a device as limits.
fn limit(capability: &DeviceCapability, share: Ppm, lean: Lean) -> IoMax {
    let (reads, writes) = match lean {
        Lean::Even => (50, 50),
        Lean::Reads => (100 - SPARE, SPARE),
        Lean::Writes => (SPARE, 100 - SPARE),
    };
    let part = |of: u64, of_part: u32| {
        let whole = u128::from(100 * FREE.0);
        let product = u128::from(of) * u128::from(share.0) * u128::from(of_part) / whole;
        u64::try_from(product).unwrap_or(u64::MAX)
    };
    let bytes = |direction: &Direction, of_part: u32| {
        let bytes = part(direction.bytes_per_second(), of_part) / GRAIN * GRAIN;
        Limit::At(bytes.max(FLOOR_BYTES))
    };
    let requests = |direction: &Direction, of_part: u32| {
        Limit::At(part(direction.requests_per_second(), of_part).max(FLOOR_REQUESTS))
    };
    IoMax {
        rbps: bytes(&capability.read, reads),
        wbps: bytes(capability.writes(), writes),
        riops: requests(&capability.read, reads),
        wiops: requests(capability.writes(), writes),
    }
}

/// The nearest part; more than all is as much as can be said.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "float-to-integer casts saturate, and not-a-number becomes zero"
)]
fn ppm(part: f64) -> Ppm {
    Ppm((part * f64::from(FREE.0)).round() as u32)
}

impl std::fmt::Display for Ppm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1}%", f64::from(self.0) / 10_000.0)
    }
}

#[cfg(test)]
mod tests;
