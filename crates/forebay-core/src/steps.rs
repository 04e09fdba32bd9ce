//! In which order settings are written.
//!
//! Problem: CPUs go from one app to another. If one takes them before the other left, two own
//! them for a moment; and the kernel calls a partition invalid whose CPUs a group beside it
//! names, which gives them back to the whole host.
//!
//! Approach: whatever shrinks is written first, then what grows, then what takes CPUs from
//! everybody. A partition that gives up some CPUs and takes others first keeps what is in both;
//! one that moves as a whole is a plain set meanwhile.
//!
//! Properties, tested: no set is ever empty; no partition ever holds a CPU that is in another
//! set.

use crate::app::{AppId, Partition};
use crate::host::Action;
use crate::slice::{Knob, Setting, Slice};

/// Settings in the order in which no CPU is in two sets at once and no set is ever empty.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    shrinking: Vec<Action>,
    growing: Vec<Action>,
    /// CPUs that come to a partition, once all others have left them.
    taking: Vec<Action>,
    /// Sets that become partitions.
    parting: Vec<Action>,
}

impl Steps {
    pub(crate) fn add(&mut self, id: &AppId, setting: Setting, in_force: &Slice, wanted: &Slice) {
        let set = |setting| Action::Set {
            app: id.clone(),
            setting,
        };
        let before = in_force.get(setting.knob());
        if setting.shrinks(before) {
            self.shrinking.push(set(setting));
            return;
        }
        match (setting, before) {
            (Setting::CpusPartition(_), _) => self.parting.push(set(setting)),
            (Setting::Cpus(new), Some(Setting::Cpus(old)))
                if in_force.is_partition() && wanted.is_partition() =>
            {
                let kept = new.intersection(old);
                if kept.is_empty() {
                    let partition = wanted.get(Knob::CpusPartition).copied();
                    self.shrinking
                        .push(set(Setting::CpusPartition(Partition::Member)));
                    self.growing.push(set(setting));
                    self.parting.extend(partition.map(set));
                } else {
                    if kept != *old {
                        self.shrinking.push(set(Setting::Cpus(kept)));
                    }
                    self.taking.push(set(setting));
                }
            }
            _ => self.growing.push(set(setting)),
        }
    }

    pub(crate) fn in_order(self) -> Vec<Action> {
        let mut actions = self.shrinking;
        actions.extend(self.growing);
        actions.extend(self.taking);
        actions.extend(self.parting);
        actions
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::idset::CpuSet;

    /// Slices of disjoint CPUs, some of them partitions.
    type Slices = BTreeMap<AppId, Slice>;

    const APPS: usize = 4;

    fn any_slices() -> impl Strategy<Value = Slices> {
        let owners = proptest::collection::vec(0..=APPS, 12);
        let partitions = proptest::collection::vec(any::<bool>(), APPS);
        (owners, partitions).prop_map(|(owners, partitions)| {
            let mut slices = Slices::new();
            for (app, partition) in partitions.into_iter().enumerate() {
                // One CPU each is theirs for certain: a slice is never empty.
                let mut cpus: CpuSet = [12 + app].into_iter().collect();
                for (cpu, owner) in owners.iter().enumerate() {
                    if *owner == app {
                        cpus.insert(cpu);
                    }
                }
                // The certain one moves too.
                if owners[0] == app && cpus.len() > 1 {
                    cpus.remove(12 + app);
                }
                let partition = if partition {
                    Partition::Root
                } else {
                    Partition::Member
                };
                let slice = [Setting::Cpus(cpus), Setting::CpusPartition(partition)];
                let id = format!("app{app}").parse().unwrap();
                slices.insert(id, slice.into_iter().collect());
            }
            slices
        })
    }

    fn steps(before: &Slices, wanted: &Slices) -> Vec<Action> {
        let mut steps = Steps::default();
        for (id, wanted) in wanted {
            for setting in wanted.changes_from(&before[id]) {
                steps.add(id, setting, &before[id], wanted);
            }
        }
        steps.in_order()
    }

    proptest! {
        #[test]
        fn no_step_breaks_a_partition(before in any_slices(), wanted in any_slices()) {
            let mut now = before.clone();
            for action in steps(&before, &wanted) {
                let Action::Set { app, setting } = &action else { unreachable!() };
                now.get_mut(app).unwrap().set(*setting);
                for (id, slice) in &now {
                    let cpus = slice.cpus().unwrap();
                    prop_assert!(!cpus.is_empty(), "{action} leaves {id} without a CPU");
                    for (other, beside) in now.iter().filter(|(other, _)| *other != id) {
                        prop_assert!(
                            !slice.is_partition() || cpus.is_disjoint(&beside.cpus().unwrap()),
                            "{action}: {id} is a partition of {cpus}, and {other} has {beside:?}"
                        );
                    }
                }
            }
            prop_assert_eq!(now, wanted);
        }
    }
}
