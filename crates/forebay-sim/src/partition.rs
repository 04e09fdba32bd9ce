//! Partitions of CPUs among simulated groups, as the kernel has them: their CPUs leave every
//! other group, and one whose CPUs a group beside it names is no partition any more.

use forebay_core::app::Partition;
use forebay_core::idset::CpuSet;
use forebay_core::slice::Setting;

use crate::host::{ROOT, SimHost};

impl SimHost {
    /// Takes back the partitions that a write to `path` made impossible: its own, or else those
    /// that it runs into.
    pub(crate) fn check_partitions(&mut self, path: &str) {
        if self.partition_problem(path).is_some()
            && let Some(group) = self.groups.get_mut(path)
        {
            group.lost_partition = true;
        }
        let broken: Vec<String> = self
            .groups
            .keys()
            .filter(|other| self.partition_problem(other).is_some())
            .cloned()
            .collect();
        for path in broken {
            if let Some(group) = self.groups.get_mut(&path) {
                group.lost_partition = true;
            }
        }
    }

    /// Why the partition of a group cannot be; none when it can, or there is none.
    fn partition_problem(&self, path: &str) -> Option<&'static str> {
        let taken = self.groups.get(path)?.taken_cpus();
        if taken.is_empty() {
            return None;
        }
        let mut beside = self.groups.iter().filter(|(other, _)| *other != path);
        if beside.any(|(_, group)| !group.named_cpus().is_disjoint(&taken)) {
            return Some("Cpu list in cpuset.cpus not exclusive");
        }
        let all = self.all_taken();
        if self.topology.cpu_set().is_subset(&all) {
            return Some("Parent unable to distribute cpu downstream");
        }
        None
    }

    /// Makes a partition, or says why not and leaves the group what it is.
    pub(crate) fn make_partition(
        &mut self,
        path: &str,
        partition: Partition,
    ) -> Result<(), String> {
        let missing = || format!("no group `{path}`");
        let topology = &self.topology;
        let group = self.groups.get_mut(path).ok_or_else(missing)?;
        if partition != Partition::Member && group.named_cpus().is_empty() {
            return Err(format!("{partition} invalid (cpuset.cpus is empty)"));
        }
        group.write(Setting::CpusPartition(partition), topology)?;
        let Some(problem) = self.partition_problem(path) else {
            return Ok(());
        };
        let group = self.groups.get_mut(path).ok_or_else(missing)?;
        group.write(Setting::CpusPartition(Partition::Member), &self.topology)?;
        Err(format!("{partition} invalid ({problem})"))
    }

    /// The CPUs in which a group may really run.
    pub(crate) fn effective_cpus(&self, path: &str, all_taken: &CpuSet) -> CpuSet {
        let Some(group) = self.groups.get(path) else {
            return CpuSet::EMPTY;
        };
        let own = group.taken_cpus();
        if !own.is_empty() {
            return own;
        }
        let rest = group.limits.cpus.difference(all_taken);
        if rest.is_empty() {
            // The kernel falls back to what the parent has.
            self.topology.cpu_set().difference(all_taken)
        } else {
            rest
        }
    }

    /// The CPUs of all partitions.
    pub(crate) fn all_taken(&self) -> CpuSet {
        self.groups
            .iter()
            .filter(|(path, _)| *path != ROOT)
            .fold(CpuSet::EMPTY, |all, (_, group)| {
                all.union(&group.taken_cpus())
            })
    }
}
