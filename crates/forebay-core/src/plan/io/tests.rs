//! What the planner promises of block devices.

use proptest::prelude::*;

use super::*;
use crate::app::{Binding, IoProtection, Match, Policy};
use crate::demand::{Band, MemoryNow, Usage};
use crate::host::Capabilities;
use crate::io::{IoRates, Measured};
use crate::io_history::{DeviceUse, IoDemand, IoUse};
use crate::plan::{HostMemory, Memory, Plan, plan};
use crate::slice::Setting;
use crate::topology::{Shape, Topology};
use crate::units::Bytes;

const DISK: Device = Device { major: 8, minor: 0 };
const MIB: u64 = 1 << 20;

fn disk() -> DeviceCapability {
    let direction = |mib: u64| {
        Direction::new(Measured {
            bytes_per_second: mib * MIB,
            requests_per_second: 4000,
            block_bytes: 4096,
            latency: Duration::from_millis(1),
            latency_p99: Duration::from_millis(2),
        })
    };
    DeviceCapability {
        name: "sda".to_owned(),
        read: direction(100).unwrap(),
        write: direction(50),
        cost_model: None,
    }
}

/// What an app does on the disk.
#[derive(Debug, Clone, Copy, Default)]
struct Io {
    /// Forecast part of the disk.
    share: f64,
    /// Part of time in which it waits.
    stalled: f64,
    /// Times what its requests take alone.
    slow: f64,
    /// Reads now.
    requests: f64,
    /// Writes now.
    writes: f64,
}

#[derive(Debug, Clone)]
struct Case {
    policy: Policy,
    demands: BTreeMap<AppId, Demand>,
    capabilities: Capabilities,
    topology: Topology,
}

impl Case {
    fn new() -> Self {
        Self {
            policy: Policy {
                devices: BTreeMap::from([(DISK, disk())]),
                headroom_percent: 0,
                ..Policy::default()
            },
            demands: BTreeMap::new(),
            capabilities: Capabilities {
                knobs: vec![Knob::IoMax(DISK)],
                ..Capabilities::default()
            },
            topology: Topology::regular(Shape {
                nodes: 1,
                l3s: 1,
                cores: 4,
                threads: 1,
                memory: Bytes::mib(4096),
            }),
        }
    }

    fn app(mut self, name: &str, class: Class, io: Io) -> Self {
        self.add(name, class, io);
        self
    }

    fn add(&mut self, name: &str, class: Class, io: Io) {
        let id: AppId = name.parse().unwrap();
        let app = App::new(
            id.clone(),
            class,
            Binding::Match(Match {
                executable: Some(name.to_owned()),
                command_line: None,
            }),
        );
        self.policy.apps.insert(id, app);
        self.does(name, io);
    }

    fn does(&mut self, name: &str, io: Io) {
        let alone = Duration::from_millis(1);
        let rates = IoRates {
            reads: io.requests,
            read_bytes: io.requests * 4096.0,
            writes: io.writes,
            write_bytes: io.writes * 4096.0,
        };
        let used = DeviceUse {
            rates,
            share: Some(io.share),
        };
        let share = band(io.share);
        let demand = Demand {
            cpu: band(0.1),
            memory: band(1e6),
            cpu_stalled: 0.0,
            memory_now: MemoryNow::default(),
            usage: Usage::default(),
            response_time: None,
            io_use: IoUse {
                devices: BTreeMap::from([(DISK, used)]),
                stalled: Some(io.stalled),
                wait: Some(alone.mul_f64(io.slow)),
                wait_alone: Some(alone),
            },
            io: BTreeMap::from([(DISK, IoDemand { share })]),
        };
        self.demands.insert(name.parse().unwrap(), demand);
    }

    fn at(&self, seconds: u64, memory: &Memory) -> (Plan, Memory) {
        let situation = Situation {
            time: Time {
                monotonic: Duration::from_secs(seconds),
                unix_ms: 0,
            },
            topology: &self.topology,
            capabilities: &self.capabilities,
            policy: &self.policy,
            demands: &self.demands,
            host: HostMemory::default(),
            placed: &BTreeMap::new(),
            away: None,
        };
        plan(&situation, memory)
    }

    fn plan(&self) -> Plan {
        self.at(0, &Memory::default()).0
    }
}

fn band(value: f64) -> Band {
    Band {
        q50: value,
        q90: value,
        q95: value,
        q99: value,
        model: "test".to_owned(),
        cold: false,
    }
}

fn limit_of(plan: &Plan, name: &str) -> IoMax {
    match plan.slices[&name.parse().unwrap()].get(Knob::IoMax(DISK)) {
        Some(Setting::IoMax(_, max)) => *max,
        _ => IoMax::NONE,
    }
}

const READER: Io = Io {
    share: 0.1,
    stalled: 0.2,
    slow: 1.0,
    requests: 100.0,
    writes: 0.0,
};
const HOG: Io = Io {
    share: 0.9,
    stalled: 0.9,
    slow: 30.0,
    requests: 1000.0,
    writes: 0.0,
};

#[test]
fn batch_may_do_what_it_likes_until_a_critical_app_uses_the_disk() {
    let alone =
        Case::new()
            .app("batch", Class::Batch, HOG)
            .app("web", Class::Critical, Io::default());
    assert_eq!(limit_of(&alone.plan(), "batch"), IoMax::NONE);
    assert_eq!(alone.plan().io[&DISK].bound, Bound::Free);
    let beside = alone.app("web", Class::Critical, READER);
    assert!(limit_of(&beside.plan(), "batch") != IoMax::NONE);
    assert_eq!(limit_of(&beside.plan(), "web"), IoMax::NONE);
}

#[test]
fn what_is_sent_in_a_slice_is_served_within_a_slow_request() {
    let case = Case::new()
        .app("web", Class::Critical, READER)
        .app("batch", Class::Batch, HOG);
    let plan = case.plan();
    let reason = &plan.io[&DISK];
    assert_eq!((reason.bound, reason.room), (Bound::Delay, Ppm(20_000)));
    // 2 ms of 100, nearly all of it for reads, since it writes nothing; and the floor.
    let expected = IoMax {
        rbps: Limit::At(28 * MIB / 16),
        wbps: Limit::At(FLOOR_BYTES),
        riops: Limit::At(72),
        wiops: Limit::At(8),
    };
    assert_eq!(limit_of(&plan, "batch"), expected);
}

/// What batch reads and writes in a second, in MiB.
fn does(case: &mut Case, reads: f64, writes: f64) {
    case.does("batch", HOG);
    let demand = case.demands.get_mut(&"batch".parse().unwrap()).unwrap();
    let used = demand.io_use.devices.get_mut(&DISK).unwrap();
    let bytes = |mib: f64| Bytes::mib(1).as_f64() * mib;
    used.rates = IoRates {
        read_bytes: bytes(reads),
        reads,
        write_bytes: bytes(writes),
        writes,
    };
}

#[test]
fn who_goes_one_way_has_most_of_the_room_for_it_and_who_turns_gets_it_back() {
    let patient = Io {
        stalled: 0.001,
        ..READER
    };
    let mut case = Case::new()
        .app("web", Class::Critical, patient)
        .app("batch", Class::Batch, HOG);
    let mut memory = Memory::default();
    let mut second = 0;
    let mut check = |reads: f64, writes: f64, expected: (u64, u64)| {
        does(&mut case, reads, writes);
        second += 10;
        let (plan, next) = case.at(second, &memory);
        memory = next;
        let max = limit_of(&plan, "batch");
        let mib = |mib: u64| Limit::At(mib * MIB);
        let expected = (mib(expected.0), mib(expected.1));
        assert_eq!((max.rbps, max.wbps), expected, "{reads} and {writes}");
    };
    // 60 % of a disk of 100 MiB/s for reads and 50 for writes.
    check(5.0, 5.0, (30, 15));
    check(30.0, 15.0, (30, 15));
    check(29.0, 0.0, (54, 3));
    // It reads less, and still nothing else.
    check(1.0, 0.0, (54, 3));
    check(20.0, 1.0, (54, 3));
    // It fills what is left for writes.
    check(20.0, 3.0, (30, 15));
    check(0.0, 14.0, (6, 27));
    check(6.0, 27.0, (30, 15));
}

#[test]
fn a_change_of_ways_waits_for_the_hold() {
    let mut case = Case::new()
        .app("web", Class::Critical, READER)
        .app("batch", Class::Batch, HOG);
    does(&mut case, 30.0, 0.0);
    let (first, mut memory) = case.at(0, &Memory::default());
    let reads = limit_of(&first, "batch").rbps;
    does(&mut case, 1.0, 30.0);
    for second in 1..5 {
        let (plan, next) = case.at(second, &memory);
        assert_eq!(limit_of(&plan, "batch").rbps, reads, "after {second} s");
        memory = next;
    }
    let (plan, _) = case.at(5, &memory);
    assert!(limit_of(&plan, "batch").rbps < reads);
}

#[test]
fn an_app_that_does_not_wait_leaves_more_to_batch() {
    let patient = Io {
        stalled: 0.001,
        ..READER
    };
    let case = Case::new()
        .app("web", Class::Critical, patient)
        .app("batch", Class::Batch, HOG);
    let reason = &case.plan().io[&DISK];
    assert_eq!(
        (reason.bound, reason.room),
        (Bound::Bandwidth, Ppm(600_000))
    );
}

#[test]
fn a_limit_of_the_user_is_a_ceiling() {
    let mut case = Case::new()
        .app("web", Class::Critical, READER)
        .app("batch", Class::Batch, HOG);
    let batch: AppId = "batch".parse().unwrap();
    let users = IoMax {
        rbps: Limit::At(4096),
        wbps: Limit::At(100 * MIB),
        ..IoMax::NONE
    };
    let app = case.policy.apps.get_mut(&batch).unwrap();
    app.io_max.insert(DISK, users);
    let max = limit_of(&case.plan(), "batch");
    assert_eq!(max.rbps, Limit::At(4096));
    assert_eq!(max.wbps, Limit::At(FLOOR_BYTES));
    case.policy.apps.get_mut(&batch).unwrap().io_max.clear();
    let mut memory = Memory::default();
    let before = [Setting::IoMax(DISK, users)].into_iter().collect();
    memory.before.insert(batch, before);
    assert_eq!(limit_of(&case.at(0, &memory).0, "batch"), max);
}

#[test]
fn a_rise_presses_at_once_and_a_fall_releases_a_step_per_hold() {
    let mut case =
        Case::new()
            .app("web", Class::Critical, Io::default())
            .app("batch", Class::Batch, HOG);
    let (_, memory) = case.at(0, &Memory::default());
    case.does("web", READER);
    let (plan, mut memory) = case.at(1, &memory);
    assert_eq!(plan.io[&DISK].room, Ppm(20_000));
    case.does("web", Io::default());
    let mut rooms = Vec::new();
    for second in 2..22 {
        let (plan, next) = case.at(second, &memory);
        rooms.push(plan.io[&DISK].room.0);
        memory = next;
    }
    let mut steps = rooms.clone();
    steps.dedup();
    assert_eq!(steps, [20_000, 80_000, 320_000, 1_000_000], "{rooms:?}");
    let held = rooms.iter().filter(|room| **room == 80_000).count();
    assert_eq!(held, 5, "{rooms:?}");
}

#[test]
fn slow_requests_press_batch_further_and_quick_ones_release_it() {
    let slow = Io {
        slow: 3.0,
        ..READER
    };
    let mut case = Case::new()
        .app("web", Class::Critical, slow)
        .app("batch", Class::Batch, HOG);
    let mut memory = Memory::default();
    let mut pressed = Vec::new();
    for second in 0..20 {
        let (plan, next) = case.at(second, &memory);
        pressed.push(plan.io[&DISK].pressed_to);
        memory = next;
    }
    assert_eq!(pressed[..4], [70, 49, 34, 23], "{pressed:?}");
    assert_eq!(pressed[19], PRESS_MIN, "{pressed:?}");
    case.does("web", READER);
    for second in 20..120 {
        memory = case.at(second, &memory).1;
    }
    let (plan, _) = case.at(120, &memory);
    assert_eq!(plan.io[&DISK].pressed_to, 100);
    // Between the two nothing moves.
    case.does(
        "web",
        Io {
            slow: 1.8,
            ..READER
        },
    );
    assert_eq!(case.at(130, &memory).0.io[&DISK].pressed_to, 100);
}

#[test]
fn nobody_is_pressed_for_slowness_that_is_not_batchs() {
    let slow = Io {
        slow: 9.0,
        ..READER
    };
    let case =
        Case::new()
            .app("web", Class::Critical, slow)
            .app("batch", Class::Batch, Io::default());
    assert_eq!(case.plan().io[&DISK].pressed_to, 100);
}

#[test]
fn a_tail_that_others_left_while_it_was_measured_does_not_count() {
    let mut case = Case::new()
        .app("web", Class::Critical, READER)
        .app("batch", Class::Batch, HOG);
    let quiet = case.plan();
    let disk = case.policy.devices.get_mut(&DISK).unwrap();
    let loaded = Measured {
        bytes_per_second: 100 * MIB,
        requests_per_second: 4000,
        block_bytes: 4096,
        latency: Duration::from_millis(1),
        latency_p99: Duration::from_millis(70),
    };
    disk.read = Direction::new(loaded).unwrap();
    assert_eq!(case.plan().io, quiet.io);
    assert_eq!(limit_of(&case.plan(), "batch"), limit_of(&quiet, "batch"));
}

/// The target of an app on the disk.
fn target_of(plan: &Plan, name: &str) -> Option<Limit<Duration>> {
    match plan.slices[&name.parse().unwrap()].get(Knob::IoLatency(DISK)) {
        Some(Setting::IoLatency(_, target)) => Some(*target),
        _ => None,
    }
}

#[test]
fn others_are_held_back_for_a_critical_app_only_where_asked_to() {
    let mut case = Case::new()
        .app("web", Class::Critical, Io::default())
        .app("site", Class::Standard, READER)
        .app("batch", Class::Batch, HOG);
    case.capabilities.knobs.push(Knob::IoLatency(DISK));
    assert_eq!(target_of(&case.plan(), "web"), None);
    case.policy.io_protection = IoProtection::Latency;
    let plan = case.plan();
    // Twice the 2 ms that a request alone takes at worst.
    let expected = Limit::At(Duration::from_millis(4));
    assert_eq!(target_of(&plan, "web"), Some(expected));
    assert_eq!(target_of(&plan, "site"), None);
    assert_eq!(target_of(&plan, "batch"), None);
    // An owner's own target stays where it is the stricter one.
    let check = |owners: Duration, expected: Limit<Duration>| {
        let mut memory = Memory::default();
        let before = Setting::IoLatency(DISK, Limit::At(owners));
        let before = [before].into_iter().collect();
        memory.before.insert("web".parse().unwrap(), before);
        assert_eq!(target_of(&case.at(0, &memory).0, "web"), Some(expected));
    };
    let stricter = Duration::from_millis(1);
    check(stricter, Limit::At(stricter));
    check(Duration::from_millis(9), expected);
    case.capabilities.knobs.pop();
    assert_eq!(target_of(&case.plan(), "web"), None);
}

#[test]
fn a_kernel_without_limits_gets_none() {
    let mut case = Case::new()
        .app("web", Class::Critical, READER)
        .app("batch", Class::Batch, HOG);
    case.capabilities.knobs.clear();
    let plan = case.plan();
    assert_eq!(limit_of(&plan, "batch"), IoMax::NONE);
    assert_eq!(plan.io.len(), 0);
}

fn any_io() -> impl Strategy<Value = Io> {
    let some = || prop_oneof![Just(0.0), 0.0..1e4_f64];
    (0.0..1.5_f64, 0.0..1.0_f64, 0.0..20.0_f64, some(), some()).prop_map(
        |(share, stalled, slow, requests, writes)| Io {
            share,
            stalled,
            slow,
            requests,
            writes,
        },
    )
}

fn any_case() -> impl Strategy<Value = Case> {
    let app = (
        prop_oneof![
            Just(Class::Critical),
            Just(Class::Standard),
            Just(Class::Batch)
        ],
        any_io(),
    );
    (proptest::collection::vec(app, 1..8), 0..200_u32).prop_map(|(apps, headroom)| {
        let mut case = Case::new();
        case.policy.headroom_percent = headroom;
        for (number, (class, io)) in apps.into_iter().enumerate() {
            case.add(&format!("app{number}"), class, io);
        }
        case
    })
}

proptest! {
    #[test]
    fn rooms_hold_and_floors_too(case in any_case()) {
        let plan = case.plan();
        let reason = &plan.io[&DISK];
        prop_assert!(reason.room >= Ppm(ROOM_MIN.0 * PRESS_MIN / 100));
        prop_assert!(reason.room == FREE || reason.room <= TARGET);
        prop_assert_eq!(reason.room == FREE, reason.used_by.is_empty());
        let mut sum = 0.0;
        for (id, demand) in &case.demands {
            let max = limit_of(&plan, id.as_str());
            if case.policy.apps[id].class != Class::Batch || reason.room == FREE {
                prop_assert_eq!(max, IoMax::NONE);
                continue;
            }
            let mut parts = 0.0;
            for (bytes, requests, mib) in [(max.rbps, max.riops, 100), (max.wbps, max.wiops, 50)] {
                let (Limit::At(bytes), Limit::At(requests)) = (bytes, requests) else {
                    return Err(TestCaseError::fail("batch without a limit"));
                };
                prop_assert!(bytes >= FLOOR_BYTES && requests >= FLOOR_REQUESTS);
                if bytes > FLOOR_BYTES {
                    parts += Bytes(bytes).as_f64() / Bytes::mib(mib).as_f64();
                }
            }
            if is_busy(demand, DISK) {
                sum += parts;
            }
        }
        // Reads and writes of everybody together.
        let room = f64::from(reason.room.0) / f64::from(FREE.0);
        prop_assert!(sum <= room + 1e-9, "{} of {}", sum, room);
    }

    #[test]
    fn more_critical_use_never_means_more_for_batch(
        case in any_case(),
        more in 0.0..1.0_f64,
    ) {
        let before = case.plan().io[&DISK].room;
        let mut case = case;
        for (id, demand) in &mut case.demands {
            if case.policy.apps[id].class == Class::Critical {
                for forecast in demand.io.values_mut() {
                    forecast.share = band(forecast.share.q95 + more);
                }
            }
        }
        prop_assert!(case.plan().io[&DISK].room <= before);
    }

    #[test]
    fn a_plan_in_force_plans_to_itself(case in any_case()) {
        let (first, memory) = case.at(10, &Memory::default());
        let (second, again) = case.at(10, &memory);
        prop_assert_eq!(first.io, second.io);
        prop_assert_eq!(first.slices, second.slices);
        prop_assert_eq!(memory.io, again.io);
    }
}

#[test]
fn a_ladder_takes_half_of_what_batch_may_and_gives_it_back_when_that_did_not_help() {
    // It uses a tenth of the disk, twice of what it may, and does not wait.
    let calm = Io {
        stalled: 0.0,
        ..READER
    };
    let mut case = Case::new()
        .app("web", Class::Critical, calm)
        .app("batch", Class::Batch, HOG);
    case.policy.offload.mode = crate::offload::Mode::Act;
    case.policy.offload.io_percent = 5;
    let room = |plan: &Plan| plan.io[&DISK].room;
    let mut memory = Memory::default();
    let mut rooms = Vec::new();
    for second in 0..20 {
        let (plan, after) = case.at(second, &memory);
        memory = after;
        if rooms.last() != Some(&room(&plan)) {
            rooms.push(room(&plan));
        }
        if second == 4 {
            assert_eq!(room(&plan), Ppm(300_000), "one period after it was raised");
            let climb = &plan.offload.climbs[&"web".parse().unwrap()];
            let said = climb.sentences().join(" ");
            let part = "divide block devices anew (30% of their time taken from batch), its effect";
            assert!(said.contains(part), "{said}");
        }
    }
    assert_eq!(rooms.first(), Some(&Ppm(600_000)));
    assert_eq!(rooms.last(), Some(&Ppm(600_000)), "{rooms:?}");
    let web = "web".parse().unwrap();
    assert_eq!(memory.offload.extra_io(&web), 0);

    // On a second disk batch has a tenth: half of that is taken from both, and not all of it.
    let other = Device {
        major: 8,
        minor: 16,
    };
    let mut two = case.clone();
    two.policy.devices.insert(other, disk());
    two.capabilities.knobs.push(Knob::IoMax(other));
    for (name, share) in [("web", 0.6), ("batch", 0.0)] {
        let demand = two.demands.get_mut(&name.parse().unwrap()).unwrap();
        let used = demand.io_use.devices[&DISK];
        demand.io_use.devices.insert(other, used);
        let share = band(share);
        demand.io.insert(other, IoDemand { share });
    }
    let mut memory = Memory::default();
    let mut rooms = Vec::new();
    for second in 0..5 {
        let (plan, after) = two.at(second, &memory);
        memory = after;
        rooms.push([DISK, other].map(|device| plan.io[&device].room));
    }
    assert_eq!(rooms.first(), Some(&[Ppm(600_000), Ppm(100_000)]));
    assert_eq!(memory.offload.extra_io(&"web".parse().unwrap()), 5);
    // The first moved by less than the dead band.
    assert_eq!(
        rooms.last(),
        Some(&[Ppm(600_000), Ppm(50_000)]),
        "{rooms:?}"
    );

    // Where batch does nothing there, there is nothing to divide.
    let mut alone = case.clone();
    alone.does("batch", Io::default());
    let mut memory = Memory::default();
    for second in 0..6 {
        let (plan, after) = alone.at(second, &memory);
        memory = after;
        assert!(plan.offload.steps.is_empty());
    }
}
