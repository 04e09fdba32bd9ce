//! A partition comes and goes with the policy, and is had again when it was lost.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;

use forebay_core::app::{App, AppId, Binding, Ceiling, Class, Floor, Partition, Policy};
use forebay_core::report::{EventKind, TickReport};
use forebay_core::slice::{Knob, Setting};
use forebay_core::state::State;
use forebay_core::tick::{Inputs, tick};
use forebay_core::topology::{Shape, Topology};
use forebay_core::units::{Bytes, Limit, MilliCpu};
use forebay_sim::{Program, SimHost};

struct Run {
    host: SimHost,
    state: State,
    policy: Policy,
}

impl Run {
    /// A critical app on one or two of eight CPUs, beside a batch app.
    fn new(partition: Partition) -> Self {
        let shape = Shape {
            nodes: 1,
            l3s: 1,
            cores: 8,
            threads: 1,
            memory: Bytes::mib(8192),
        };
        let mut host = SimHost::new(Topology::regular(shape), 7);
        let mut policy = Policy {
            partition,
            ..Policy::default()
        };
        for (name, class) in [("web", Class::Critical), ("job", Class::Batch)] {
            host.create_group(name);
            host.spawn(name, Program::burner(1), name).unwrap();
            let id: AppId = name.parse().unwrap();
            let app = App {
                id: id.clone(),
                class,
                binding: Binding::Cgroup(name.into()),
                floor: Floor::default(),
                // Some CPUs are left, whatever is forecast at first.
                ceiling: Ceiling {
                    cpu: Limit::At(MilliCpu(2000)),
                    ..Ceiling::default()
                },
                request: None,
                uclamp: forebay_core::app::Uclamp::default(),
                cpu_weight: None,
                io_weight: None,
                io_max: BTreeMap::new(),
                images: None,
                response_time_max: None,
                mobility: None,
                accelerators: None,
                update: None,
            };
            policy.apps.insert(id, app);
        }
        Self {
            host,
            state: State::new(),
            policy,
        }
    }

    fn tick(&mut self) -> TickReport {
        self.host.advance(self.policy.period);
        let inputs = Inputs::new(self.host.time(), &self.policy);
        tick(&mut self.state, &mut self.host, &inputs)
    }

    /// Ticks until the group of `web` is this, within a bound; returns what failed meanwhile.
    fn until(&mut self, wanted: Partition) -> Vec<String> {
        const TICKS_MAX: usize = 600;
        let mut failed = Vec::new();
        for _ in 0..TICKS_MAX {
            let events = self.tick().events;
            let failures = events.into_iter().filter(|e| e.kind == EventKind::Failed);
            failed.extend(failures.map(|event| event.message));
            if self.is(wanted) {
                return failed;
            }
        }
        panic!("not {wanted} within {TICKS_MAX} periods: {failed:?}");
    }

    fn is(&self, wanted: Partition) -> bool {
        self.host.read("web", Knob::CpusPartition) == Some(Setting::CpusPartition(wanted))
    }
}

#[test]
fn a_partition_follows_the_policy() {
    let mut run = Run::new(Partition::Root);
    assert_eq!(run.until(Partition::Root), Vec::<String>::new());
    run.policy.partition = Partition::Isolated;
    assert_eq!(run.until(Partition::Isolated), Vec::<String>::new());
    run.policy.partition = Partition::Member;
    assert_eq!(run.until(Partition::Member), Vec::<String>::new());
}

#[test]
fn what_was_a_partition_before_stays_one() {
    let mut run = Run::new(Partition::Member);
    run.policy.apps.remove(&"job".parse::<AppId>().unwrap());
    let own = Setting::Cpus([7].into_iter().collect());
    run.host.write("web", own).unwrap();
    let root = Setting::CpusPartition(Partition::Root);
    run.host.write("web", root).unwrap();
    for _ in 0..50 {
        run.tick();
        assert!(run.is(Partition::Root));
    }
}

#[test]
fn a_lost_partition_is_had_again_once_it_can_be() {
    let mut run = Run::new(Partition::Root);
    run.until(Partition::Root);
    // Somebody gives the same CPUs to a group of theirs.
    let all = forebay_core::host::Host::topology(&run.host).cpu_set();
    run.host.create_group("theirs");
    run.host.write("theirs", Setting::Cpus(all)).unwrap();
    let failed = run.until(Partition::Member);
    let failed = [
        failed,
        (0..20).flat_map(|_| run.until(Partition::Member)).collect(),
    ]
    .concat();
    assert!(
        failed.iter().any(|why| why.contains("invalid")),
        "{failed:?}"
    );
    run.host.remove_group("theirs");
    run.until(Partition::Root);
}
