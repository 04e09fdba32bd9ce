//! The planner's promises, on many hosts.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::app::{Binding, Floor, Match};
use crate::demand::{Band, MemoryNow, Usage};
use crate::io_history::IoUse;
use crate::topology::{Node, Shape};
use crate::units::{Limit, Utilization};
use crate::working_set::{MemoryStat, Witness};

mod offload;

const KNOBS: [Knob; 19] = [
    Knob::Cpus,
    Knob::CpusPartition,
    Knob::Mems,
    Knob::CpuWeight,
    Knob::CpuIdle,
    Knob::CpuMax,
    Knob::CpuBurst,
    Knob::CpuUclampMin,
    Knob::CpuUclampMax,
    Knob::MemoryMin,
    Knob::MemoryLow,
    Knob::MemoryHigh,
    Knob::MemoryMax,
    Knob::MemorySwapMax,
    Knob::MemoryZswapMax,
    Knob::IoWeight,
    Knob::PidsMax,
    Knob::EgressMax,
    Knob::OomScoreAdj,
];

/// One host with its apps and their demand.
#[derive(Debug, Clone)]
struct Case {
    topology: Topology,
    policy: Policy,
    demands: BTreeMap<AppId, Demand>,
    capabilities: Capabilities,
    host: HostMemory,
    placed: BTreeMap<AppId, Placed>,
}

impl Case {
    fn new(shape: Shape) -> Self {
        Self {
            topology: Topology::regular(shape),
            policy: Policy::default(),
            demands: BTreeMap::new(),
            capabilities: Capabilities {
                knobs: KNOBS.to_vec(),
                reclaim: true,
                ..Capabilities::default()
            },
            host: HostMemory::default(),
            placed: BTreeMap::new(),
        }
    }

    fn app(mut self, name: &str, class: Class, cpus: f64) -> Self {
        self.add(name, class, Needs { cpus, mib: 64 }, Floor::default());
        self
    }

    fn add(&mut self, name: &str, class: Class, needs: Needs, floor: Floor) {
        let id: AppId = name.parse().unwrap();
        let app = App {
            floor,
            ..App::new(
                id.clone(),
                class,
                Binding::Match(Match {
                    executable: Some(name.to_owned()),
                    command_line: None,
                }),
            )
        };
        self.policy.apps.insert(id.clone(), app);
        self.demands.insert(id, needs.demand());
    }

    fn demand(&mut self, name: &str, cpus: f64) {
        let needs = Needs { cpus, mib: 64 };
        self.demands.insert(name.parse().unwrap(), needs.demand());
    }

    fn stall(&mut self, name: &str, share: f64) {
        let demand = self.demands.get_mut(&name.parse().unwrap());
        demand.unwrap().cpu_stalled = share;
    }

    fn plan_at(&self, seconds: u64, memory: &Memory) -> (Plan, Memory) {
        let situation = Situation {
            time: Time {
                monotonic: Duration::from_secs(seconds),
                unix_ms: 0,
            },
            topology: &self.topology,
            capabilities: &self.capabilities,
            policy: &self.policy,
            demands: &self.demands,
            host: self.host,
            placed: &self.placed,
            away: None,
        };
        plan(&situation, memory)
    }

    fn plan(&self) -> Plan {
        self.plan_at(0, &Memory::default()).0
    }
}

#[derive(Debug, Clone, Copy)]
struct Needs {
    cpus: f64,
    mib: u64,
}

impl Needs {
    fn demand(self) -> Demand {
        let band = |value: f64| Band {
            q50: value,
            q90: value,
            q95: value,
            q99: value,
            model: "test".to_owned(),
            cold: false,
        };
        Demand {
            cpu: band(self.cpus),
            memory: band(Bytes::mib(self.mib).as_f64()),
            cpu_stalled: 0.0,
            io_use: IoUse::default(),
            io: BTreeMap::new(),
            memory_now: MemoryNow::default(),
            usage: Usage::default(),
            response_time: None,
        }
    }
}

fn small() -> Shape {
    Shape {
        nodes: 1,
        l3s: 1,
        cores: 2,
        threads: 1,
        memory: Bytes::mib(4096),
    }
}

fn server() -> Shape {
    Shape {
        nodes: 2,
        l3s: 2,
        cores: 4,
        threads: 2,
        memory: Bytes::mib(65536),
    }
}

fn cpus(plan: &Plan, name: &str) -> CpuSet {
    plan.slices[&name.parse().unwrap()].cpus().unwrap()
}

fn own(plan: &Plan, name: &str) -> CpuSet {
    plan.reasons[&name.parse().unwrap()].exclusive
}

#[test]
fn interrupts_leave_own_cpus_as_long_as_another_is_left() {
    let check = |cpus: usize, moves: bool, expected: &str| {
        let mut case = Case::new(Shape {
            nodes: 1,
            l3s: 1,
            cores: cpus,
            threads: 1,
            memory: Bytes::mib(4096),
        })
        .app("web", Class::Critical, 1.0)
        .app("job", Class::Batch, 1.0);
        case.policy.headroom_percent = 0;
        case.policy.move_interrupts = moves;
        let expected = expected.parse().unwrap_or(CpuSet::EMPTY);
        assert_eq!(case.plan().keep_interrupts_off, expected, "{cpus} CPUs");
    };
    check(4, true, "3");
    check(4, false, "");
    check(1, true, "");
}

#[test]
fn two_cpus_are_split_between_critical_and_batch() {
    let plan = Case::new(small())
        .app("web", Class::Critical, 0.5)
        .app("burn", Class::Batch, 2.0)
        .plan();
    assert_eq!(own(&plan, "web").len(), 1);
    assert_eq!(cpus(&plan, "burn").len(), 1);
    assert!(own(&plan, "web").is_disjoint(&cpus(&plan, "burn")));
}

#[test]
fn a_critical_app_that_needs_more_than_its_own_runs_ahead_on_the_shared() {
    let plan = Case::new(small())
        .app("web", Class::Critical, 1.4)
        .app("burn", Class::Batch, 2.0)
        .plan();
    assert_eq!(cpus(&plan, "web").len(), 2);
    assert_eq!(cpus(&plan, "burn").len(), 1);
    assert!(plan.reasons[&"web".parse().unwrap()].spills);
    let idle = plan.slices[&"burn".parse().unwrap()].get(Knob::CpuIdle);
    assert_eq!(idle, Some(&Setting::CpuIdle(true)));
}

#[test]
fn batch_borrows_until_a_critical_app_waits() {
    let mut case =
        Case::new(small())
            .app("web", Class::Critical, 0.5)
            .app("burn", Class::Batch, 2.0);
    case.policy.lend = true;
    let (plan, memory) = case.plan_at(0, &Memory::default());
    assert!(plan.lends);
    assert_eq!(cpus(&plan, "burn").len(), 2);
    assert_eq!(own(&plan, "web").len(), 1, "lending gives nothing away");

    case.stall("web", 0.5);
    let (plan, mut memory) = case.plan_at(1, &memory);
    assert!(!plan.lends, "taken back in the same period");
    assert!(own(&plan, "web").is_disjoint(&cpus(&plan, "burn")));

    // Each return that ends in another wait is followed by a longer pause.
    let mut lent = Vec::new();
    for second in 2..120 {
        let waits = lent.last().is_some_and(|last| *last == second - 1);
        case.stall("web", if waits { 0.5 } else { 0.0 });
        let (plan, next) = case.plan_at(second, &memory);
        memory = next;
        if plan.lends {
            lent.push(second);
        }
    }
    let gaps: Vec<u64> = lent.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() >= 3, "{lent:?}");
    assert!(gaps.windows(2).all(|pair| pair[1] > pair[0]), "{gaps:?}");
}

#[test]
fn standard_apps_keep_critical_ones_on_their_own_cpus() {
    let mut case = Case::new(server())
        .app("web", Class::Critical, 1.0)
        .app("mail", Class::Standard, 1.0)
        .app("burn", Class::Batch, 9.0);
    case.policy.lend = true;
    let plan = case.plan();
    assert!(plan.lends);
    assert_eq!(cpus(&plan, "web"), own(&plan, "web"));
    assert_eq!(cpus(&plan, "mail"), plan.shared);
    assert_eq!(cpus(&plan, "burn").len(), 32);
}

#[test]
fn one_cpu_is_shared_by_precedence() {
    let shape = Shape {
        cores: 1,
        ..small()
    };
    let plan = Case::new(shape)
        .app("web", Class::Critical, 0.5)
        .app("burn", Class::Batch, 2.0)
        .plan();
    assert_eq!(cpus(&plan, "web"), cpus(&plan, "burn"));
    assert!(own(&plan, "web").is_empty());
}

#[test]
fn no_memory_is_asked_of_a_node_that_has_none() {
    let mut case = Case::new(server())
        .app("db", Class::Critical, 3.0)
        .app("web", Class::Critical, 1.5)
        .app("burn", Class::Batch, 9.0);
    let nodes = case.topology.nodes();
    let bare = nodes[nodes.len() - 1].id;
    let nodes = nodes.iter().map(|node| Node {
        memory: if node.id == bare {
            Bytes(0)
        } else {
            node.memory
        },
        ..*node
    });
    let topology = Topology::new(case.topology.cpus().to_vec(), nodes.collect());
    case.topology = topology.unwrap();
    for (name, slice) in case.plan().slices {
        let Some(Setting::Mems(mems)) = slice.get(Knob::Mems) else {
            panic!("{name} has no nodes");
        };
        assert!(!mems.is_empty() && !mems.contains(bare), "{name}: {mems}");
    }
}

#[test]
fn an_app_stays_within_one_cache_and_on_whole_cores() {
    let case = Case::new(server())
        .app("db", Class::Critical, 3.0)
        .app("web", Class::Critical, 1.5)
        .app("burn", Class::Batch, 9.0);
    let plan = case.plan();
    for name in ["db", "web"] {
        let own = own(&plan, name);
        let shared: Vec<_> = case
            .topology
            .cpus()
            .iter()
            .filter(|cpu| own.contains(cpu.id))
            .map(|cpu| (cpu.l3, cpu.core))
            .collect();
        assert!(own.len() >= 2, "{name} has {own:?}");
        assert!(shared.iter().all(|(l3, _)| *l3 == shared[0].0), "{name}");
        let cores: std::collections::BTreeSet<_> = shared.iter().map(|(_, core)| core).collect();
        assert_eq!(cores.len(), own.len().div_ceil(2), "{name} splits cores");
        let node = case.topology.nodes_of(&own);
        let mems = plan.slices[&name.parse().unwrap()].get(Knob::Mems);
        assert_eq!(mems, Some(&Setting::Mems(node)));
    }
    assert_ne!(
        case.topology.nodes_of(&own(&plan, "db")),
        case.topology.nodes_of(&own(&plan, "web")),
        "the second app goes where there is most room"
    );
}

#[test]
fn a_slice_grows_at_once_and_shrinks_one_cpu_per_hold() {
    let mut case = Case::new(server()).app("db", Class::Critical, 1.0);
    case.add(
        "burn",
        Class::Batch,
        Needs { cpus: 9.0, mib: 64 },
        Floor::default(),
    );
    let (plan, memory) = case.plan_at(0, &Memory::default());
    let before = own(&plan, "db").len();
    case.demand("db", 5.0);
    let (plan, mut memory) = case.plan_at(1, &memory);
    assert_eq!(own(&plan, "db").len(), 8, "grows at once to whole cores");
    case.demand("db", 1.0);
    let mut seen = Vec::new();
    for second in 2..60 {
        let (plan, next) = case.plan_at(second, &memory);
        memory = next;
        seen.push(own(&plan, "db").len());
    }
    assert!(
        seen.windows(2)
            .all(|pair| pair[0] >= pair[1] && pair[0] - pair[1] <= 2),
        "gives back at most a core at a time: {seen:?}"
    );
    assert_eq!(seen[..4], [8, 8, 8, 8], "holds first");
    assert_eq!(seen.last(), Some(&before));
}

#[test]
fn impossible_floors_are_named() {
    let mut case = Case::new(small());
    for name in ["a", "b"] {
        case.add(
            name,
            Class::Critical,
            Needs { cpus: 0.1, mib: 64 },
            Floor {
                cpu: MilliCpu::cpus(3),
                memory: Bytes::mib(3000),
            },
        );
    }
    let plan = case.plan();
    assert_eq!(plan.shortfalls.len(), 2);
    assert!(plan.shortfalls[0].to_string().contains("6.00 CPU"));
}

#[test]
fn what_the_host_lacks_is_left_out() {
    let mut case = Case::new(small()).app("burn", Class::Batch, 1.0);
    case.capabilities.knobs = vec![Knob::Cpus, Knob::CpuWeight];
    let plan = case.plan();
    let knobs: Vec<_> = plan.slices[&"burn".parse().unwrap()]
        .iter()
        .map(Setting::knob)
        .collect();
    assert_eq!(knobs, [Knob::Cpus, Knob::CpuWeight]);
}

#[test]
fn what_an_owner_withholds_from_one_app_is_planned_around() {
    let shape = Shape {
        nodes: 1,
        l3s: 1,
        cores: 4,
        threads: 1,
        memory: Bytes::mib(4096),
    };
    let mut case = Case::new(shape)
        .app("web", Class::Critical, 1.0)
        .app("theirs", Class::Batch, 1.0)
        .app("burn", Class::Batch, 1.0);
    case.policy.lend = true;
    let knobs = |case: &Case, app: &str| {
        let plan = case.plan();
        let slice = &plan.slices[&app.parse().unwrap()];
        [Knob::CpuIdle, Knob::CpuWeight].map(|knob| slice.get(knob).copied())
    };
    let idle = [Some(Setting::CpuIdle(true)), None];
    assert_eq!(knobs(&case, "theirs"), idle);
    assert_eq!(
        case.plan().slices[&"theirs".parse().unwrap()]
            .cpus()
            .unwrap()
            .len(),
        4
    );
    let withheld = [("theirs".parse().unwrap(), [Knob::CpuIdle].into())];
    case.capabilities.withheld = withheld.into();
    // Without the idle class it gets the least weight, and nobody's idle CPUs.
    assert_eq!(knobs(&case, "theirs"), [None, Some(Setting::CpuWeight(1))]);
    assert_eq!(knobs(&case, "burn"), idle);
    let web = case.plan().slices[&"web".parse().unwrap()].cpus().unwrap();
    for app in ["theirs", "burn"] {
        let cpus = case.plan().slices[&app.parse().unwrap()].cpus().unwrap();
        assert!(cpus.is_disjoint(&web), "{app} runs on {cpus}, web on {web}");
    }
}

#[test]
fn what_is_asked_for_in_vain_is_said_and_nothing_else() {
    let shape = Shape {
        nodes: 1,
        l3s: 1,
        cores: 4,
        threads: 1,
        memory: Bytes::mib(4096),
    };
    let mut case = Case::new(shape)
        .app("web", Class::Critical, 1.0)
        .app("job", Class::Batch, 1.0);
    let (web, job): (AppId, AppId) = ("web".parse().unwrap(), "job".parse().unwrap());
    assert!(case.plan().lacks.is_empty());
    let lacked = |case: &Case, id: &AppId| {
        let plan = case.plan();
        let lacks = plan.lacks.get(id).cloned().unwrap_or_default();
        for knob in lacks.keys() {
            assert_eq!(plan.slices[id].get(*knob), None, "{knob}");
        }
        lacks
    };
    let systemd = |knobs: &[Knob]| knobs.iter().map(|k| (*k, lack::Lack::Systemd)).collect();
    let change = |case: &mut Case, id: &AppId, change: &dyn Fn(&mut App)| {
        change(case.policy.apps.get_mut(id).unwrap());
    };

    // What follows from the class alone is `doctor`'s to tell; what the user asked for is told.
    let host = |case: &mut Case, lacking: &[Knob]| {
        case.capabilities.knobs = KNOBS.to_vec();
        case.capabilities
            .knobs
            .retain(|knob| !lacking.contains(knob));
    };
    let lacking = [Knob::CpuIdle, Knob::CpuUclampMax, Knob::MemorySwapMax];
    host(&mut case, &lacking);
    assert!(case.plan().lacks.is_empty());
    change(&mut case, &job, &|app| {
        app.uclamp.max = Some(Utilization::percent(50));
        app.ceiling.swap = Limit::At(Bytes(0));
    });
    let asked = [Knob::CpuUclampMax, Knob::MemorySwapMax].map(|knob| (knob, lack::Lack::Host));
    assert_eq!(lacked(&case, &job), asked.into());
    assert_eq!(lacked(&case, &web), BTreeMap::new());

    // An owner keeps even what an app's class stands for from that one app.
    host(&mut case, &[]);
    assert!(case.plan().lacks.is_empty());
    let withheld = [Knob::CpuIdle, Knob::CpuUclampMax, Knob::PidsMax];
    case.capabilities.withheld = [(job.clone(), withheld.into())].into();
    change(&mut case, &job, &|app| {
        app.binding = Binding::Systemd("job.service".to_owned());
    });
    assert_eq!(lacked(&case, &job), systemd(&withheld[..2]));
    change(&mut case, &job, &|app| app.ceiling.pids = Limit::At(9));
    assert_eq!(lacked(&case, &job), systemd(&withheld));
    // Of a container's class nothing is said: there, every host withholds the same.
    change(&mut case, &job, &|app| {
        app.binding = Binding::Container("job".to_owned());
    });
    let asked = withheld[1..].iter().map(|k| (*k, lack::Lack::Runtime));
    assert_eq!(lacked(&case, &job), asked.collect());
}

prop_compose! {
    fn any_shape()(
        nodes in 1..=4usize,
        l3s in 1..=3usize,
        cores in 1..=8usize,
        threads in 1..=2usize,
        mib in 512..65_536u64,
    ) -> Shape {
        Shape { nodes, l3s, cores, threads, memory: Bytes::mib(mib) }
    }
}

fn any_case() -> impl Strategy<Value = Case> {
    let class = prop_oneof![
        Just(Class::Critical),
        Just(Class::Standard),
        Just(Class::Batch)
    ];
    let app = (class, 0.0..12.0f64, 1..8_192u64, 0..800u64, 0..200u64);
    let apps = proptest::collection::vec(app, 1..12);
    let partition = prop_oneof![
        Just(Partition::Member),
        Just(Partition::Root),
        Just(Partition::Isolated)
    ];
    (any_shape(), apps, any::<bool>(), partition).prop_map(|(shape, apps, lend, partition)| {
        let mut case = Case::new(shape);
        case.policy.lend = lend;
        case.policy.partition = partition;
        for (index, (class, cpus, mib, floor_cpu, floor_mib)) in apps.into_iter().enumerate() {
            let floor = Floor {
                cpu: MilliCpu(floor_cpu),
                memory: Bytes::mib(floor_mib),
            };
            case.add(&format!("app{index}"), class, Needs { cpus, mib }, floor);
        }
        case
    })
}

#[test]
fn own_cpus_are_taken_from_the_host_only_where_asked_to() {
    let shape = Shape {
        nodes: 1,
        l3s: 1,
        cores: 4,
        threads: 1,
        memory: Bytes::mib(4096),
    };
    let check = |policy: Partition, cpus: f64, offered: bool, expected: Option<Partition>| {
        let mut case = Case::new(shape).app("web", Class::Critical, cpus);
        case.policy.partition = policy;
        case.capabilities
            .knobs
            .retain(|knob| offered || *knob != Knob::CpusPartition);
        let plan = case.plan();
        let slice = &plan.slices[&"web".parse().unwrap()];
        let is = slice.get(Knob::CpusPartition).copied();
        assert_eq!(is, expected.map(Setting::CpusPartition), "{policy} {cpus}");
    };
    check(Partition::Member, 1.0, true, None);
    check(Partition::Root, 1.0, true, Some(Partition::Root));
    check(Partition::Isolated, 1.0, true, Some(Partition::Isolated));
    check(Partition::Root, 1.0, false, None);
    // It wants the whole host, so it runs on the shared CPUs as well.
    check(Partition::Root, 8.0, true, Some(Partition::Member));
}

/// What must hold of every plan, whatever came before.
fn check_plan(case: &Case, plan: &Plan) {
    let all = case.topology.cpu_set();
    let mut taken = plan.shared;
    for (id, reason) in &plan.reasons {
        assert!(
            taken.is_disjoint(&reason.exclusive),
            "{id}'s own CPUs are someone's already"
        );
        taken = taken.union(&reason.exclusive);
    }
    assert_eq!(taken, all, "every CPU is owned or shared");

    for (id, slice) in &plan.slices {
        let app = &case.policy.apps[id];
        let reason = &plan.reasons[id];
        let cpus = slice.cpus().unwrap();
        assert!(!cpus.is_empty(), "{id} has no CPU");
        assert!(cpus.is_subset(&all));
        let borrows = plan.lends && app.class == Class::Batch;
        assert!(borrows || cpus.is_subset(&plan.shared.union(&reason.exclusive)));
        if app.class == Class::Critical {
            let enough = reason.exclusive.len() >= reason.cpu_wanted.whole_cpus();
            assert!(
                enough || plan.shared.is_subset(&cpus),
                "{id} lacks CPUs and may not use the shared ones"
            );
            assert!(reason.exclusive.is_subset(&cpus));
        } else {
            assert!(reason.exclusive.is_empty());
            assert_eq!(cpus, if borrows { all } else { plan.shared });
        }
        assert!(reason.cpu_demand >= app.floor.cpu);
        if slice.is_partition() {
            assert_ne!(case.policy.partition, Partition::Member);
            assert_eq!(
                cpus, reason.exclusive,
                "{id} takes CPUs that are not its own"
            );
            assert!(!plan.shared.is_empty(), "nothing is left for the host");
            for (other, beside) in plan.slices.iter().filter(|(other, _)| *other != id) {
                let beside = beside.cpus().unwrap();
                assert!(cpus.is_disjoint(&beside), "{other} runs on {beside} too");
            }
        }
    }

    let room = case
        .topology
        .memory()
        .saturating_sub(case.policy.system_memory);
    let protected: u64 = plan
        .slices
        .values()
        .map(|slice| match slice.get(Knob::MemoryLow) {
            Some(Setting::MemoryLow(low)) => low.0,
            _ => 0,
        })
        .sum();
    assert!(
        protected <= room.0,
        "protects {protected} of {room}, the sum does not fit"
    );
    if plan.shortfalls.is_empty() {
        for (id, slice) in &plan.slices {
            let floor = case.policy.apps[id].floor.memory;
            assert_eq!(slice.get(Knob::MemoryMin), Some(&Setting::MemoryMin(floor)));
            if let Some(Setting::MemoryHigh(high)) = slice.get(Knob::MemoryHigh) {
                assert!(high.allows(floor), "{id} is held below its floor");
            }
        }
    }
}

fn moved(before: &Plan, after: &Plan) -> usize {
    before
        .reasons
        .iter()
        .map(|(id, reason)| {
            let now = after.reasons[id].exclusive;
            now.difference(&reason.exclusive).len() + reason.exclusive.difference(&now).len()
        })
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_plan_keeps_its_promises(case in any_case(), others in any_case()) {
        let (plan, memory) = case.plan_at(0, &Memory::default());
        check_plan(&case, &plan);

        // The same apps on the same host, with the demand of another draw.
        let mut later = case.clone();
        for (id, demand) in &others.demands {
            if later.demands.contains_key(id) {
                later.demands.insert(id.clone(), demand.clone());
            }
        }
        let (second, memory) = later.plan_at(3, &memory);
        check_plan(&later, &second);
        let (third, _) = later.plan_at(60, &memory);
        check_plan(&later, &third);
    }

    #[test]
    fn a_plan_in_force_plans_to_itself(case in any_case()) {
        let (first, memory) = case.plan_at(0, &Memory::default());
        let (second, _) = case.plan_at(0, &memory);
        prop_assert_eq!(first, second);
    }

    #[test]
    fn one_more_cpu_of_demand_moves_few_cpus(case in any_case(), which in any::<prop::sample::Index>()) {
        let (before, memory) = case.plan_at(0, &Memory::default());
        let mut more = case.clone();
        let id = which.get(&case.demands.keys().cloned().collect::<Vec<_>>()).clone();
        let demand = more.demands.get_mut(&id).unwrap();
        demand.cpu.q95 += 1.0;
        let (after, _) = more.plan_at(1, &memory);
        // 1.3 CPUs more wanted is at most two more, a whole core each; each may come from another app.
        prop_assert!(moved(&before, &after) <= 8, "moved {}", moved(&before, &after));
    }
}

#[test]
fn what_was_watched_and_not_touched_makes_room_for_what_is_worked_with() {
    // What is left for batch, what each of two holds, and how much of the first's was not touched.
    let check = |left: u64, witness: Witness, swap: u64, expected: [u64; 2]| {
        let mut case = Case::new(small());
        case.policy.system_memory = Bytes::mib(4096 - left);
        case.host.swap_free = Some(Bytes::mib(swap));
        for (name, cold) in [("hoard", 480), ("work", 0)] {
            let needs = Needs {
                cpus: 0.1,
                mib: 640,
            };
            case.add(name, Class::Batch, needs, Floor::default());
            let demand = case.demands.get_mut(&name.parse().unwrap()).unwrap();
            demand.memory_now.cold_anon = Bytes::mib(cold);
            demand.memory_now.witness = witness;
        }
        let plan = case.plan();
        let highs = ["hoard", "work"].map(|name| {
            match plan.slices[&name.parse().unwrap()].get(Knob::MemoryHigh) {
                Some(Setting::MemoryHigh(Limit::At(high))) => high.0 >> 20,
                other => panic!("{name}: {other:?}"),
            }
        });
        assert_eq!(highs, expected, "{left} MiB left, {witness:?}, swap {swap}");
    };
    // Enough for all that both hold.
    check(1600, Witness::Accesses, 4096, [800, 800]);
    check(1280, Witness::Accesses, 4096, [640, 640]);
    // Not enough: first goes what is not touched,
    check(960, Witness::Accesses, 4096, [320, 640]);
    // and only then what both work with.
    check(400, Witness::Accesses, 4096, [80, 320]);
    // A guess, or nowhere to put it, changes nothing.
    check(960, Witness::Lists, 4096, [480, 480]);
    check(960, Witness::Accesses, 0, [480, 480]);
}
