//! What a host is made of: CPUs, cores, caches, NUMA nodes, memory.

use serde::{Deserialize, Serialize};

use crate::idset::{CpuSet, NodeSet};
use crate::units::Bytes;

/// One logical CPU and what it shares with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Its number in the kernel.
    pub id: usize,
    /// The physical core; CPUs with the same number are SMT siblings.
    pub core: usize,
    /// The last-level cache; CPUs with the same number share it.
    pub l3: usize,
    /// The NUMA node.
    pub node: usize,
}

/// One NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its number in the kernel.
    pub id: usize,
    /// Installed memory.
    pub memory: Bytes,
}

/// The part of a host that Forebay may partition. Never without a CPU or a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    cpus: Vec<Cpu>,
    nodes: Vec<Node>,
}

/// Why a description is not a topology.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// There is no CPU, or no NUMA node.
    #[error("the host shows no online CPU or no NUMA node")]
    Empty,
    /// A number is above what a set can hold, or stands twice.
    #[error("CPU or node {0} stands twice or is beyond {max}", max = CpuSet::IDS_MAX)]
    BadId(usize),
    /// A CPU names a NUMA node that is not described.
    #[error("CPU {cpu} is on NUMA node {node}, which the host does not list")]
    UnknownNode {
        /// The CPU.
        cpu: usize,
        /// The node it names.
        node: usize,
    },
}

impl Topology {
    /// Checks and orders a description.
    ///
    /// # Errors
    /// When it is empty, numbers a thing twice, or names an unknown node.
    pub fn new(mut cpus: Vec<Cpu>, mut nodes: Vec<Node>) -> Result<Self, TopologyError> {
        cpus.sort_by_key(|cpu| cpu.id);
        nodes.sort_by_key(|node| node.id);
        if cpus.is_empty() || nodes.is_empty() {
            return Err(TopologyError::Empty);
        }
        let mut seen = CpuSet::EMPTY;
        for cpu in &cpus {
            if cpu.id >= CpuSet::IDS_MAX || seen.contains(cpu.id) {
                return Err(TopologyError::BadId(cpu.id));
            }
            seen.insert(cpu.id);
        }
        let mut known = NodeSet::EMPTY;
        for node in &nodes {
            if node.id >= NodeSet::IDS_MAX || known.contains(node.id) {
                return Err(TopologyError::BadId(node.id));
            }
            known.insert(node.id);
        }
        if let Some(cpu) = cpus.iter().find(|cpu| !known.contains(cpu.node)) {
            return Err(TopologyError::UnknownNode {
                cpu: cpu.id,
                node: cpu.node,
            });
        }
        Ok(Self { cpus, nodes })
    }

    /// A regular machine, for simulation and tests: `nodes` nodes with `l3s` caches each,
    /// `cores` cores to a cache, `threads` CPUs to a core, `memory` to a node.
    /// CPU numbers run over the first thread of every core, then the second, as on x86 servers.
    #[must_use]
    pub fn regular(shape: Shape) -> Self {
        let Shape {
            nodes,
            l3s,
            cores,
            threads,
            memory,
        } = shape;
        let core_count = nodes * l3s * cores;
        let cpus = (0..core_count * threads)
            .map(|id| {
                let core = id % core_count;
                Cpu {
                    id,
                    core,
                    l3: core / cores,
                    node: core / (cores * l3s),
                }
            })
            .collect();
        let nodes = (0..nodes).map(|id| Node { id, memory }).collect();
        Self::new(cpus, nodes).expect("a regular shape has CPUs, nodes and distinct numbers")
    }

    /// All CPUs, by number.
    #[must_use]
    pub fn cpus(&self) -> &[Cpu] {
        &self.cpus
    }

    /// All NUMA nodes, by number.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The numbers of all CPUs.
    #[must_use]
    pub fn cpu_set(&self) -> CpuSet {
        self.cpus.iter().map(|cpu| cpu.id).collect()
    }

    /// The numbers of all nodes that memory can come from: the kernel refuses one without.
    /// Where nothing is said of memory, all are taken to have some.
    #[must_use]
    pub fn memory_nodes(&self) -> NodeSet {
        let numbers = |nodes: &[&Node]| nodes.iter().map(|node| node.id).collect();
        let all: Vec<&Node> = self.nodes.iter().collect();
        let with: Vec<&Node> = all
            .iter()
            .copied()
            .filter(|node| node.memory > Bytes(0))
            .collect();
        if with.is_empty() {
            numbers(&all)
        } else {
            numbers(&with)
        }
    }

    /// The nodes that the given CPUs sit on.
    #[must_use]
    pub fn nodes_of(&self, cpus: &CpuSet) -> NodeSet {
        self.cpus
            .iter()
            .filter(|cpu| cpus.contains(cpu.id))
            .map(|cpu| cpu.node)
            .collect()
    }

    /// CPUs on the core that has most: 1 without SMT.
    #[must_use]
    pub fn threads_per_core(&self) -> usize {
        let mut counts = std::collections::BTreeMap::new();
        for cpu in &self.cpus {
            *counts.entry(cpu.core).or_insert(0) += 1;
        }
        counts.into_values().max().unwrap_or(1)
    }

    /// Memory of all nodes together.
    #[must_use]
    pub fn memory(&self) -> Bytes {
        self.nodes
            .iter()
            .fold(Bytes(0), |sum, node| sum.saturating_add(node.memory))
    }
}

/// Counts for [`Topology::regular`]; each at least 1.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// NUMA nodes.
    pub nodes: usize,
    /// Last-level caches on each node.
    pub l3s: usize,
    /// Cores under each cache.
    pub cores: usize,
    /// CPUs on each core.
    pub threads: usize,
    /// Memory on each node.
    pub memory: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regular_machine_has_siblings_half_way() {
        let host = Topology::regular(Shape {
            nodes: 2,
            l3s: 1,
            cores: 4,
            threads: 2,
            memory: Bytes::mib(1024),
        });
        assert_eq!(host.cpu_set().to_string(), "0-15");
        assert_eq!(host.cpus()[0].core, host.cpus()[8].core);
        assert_eq!(host.nodes_of(&"0,12".parse().unwrap()).to_string(), "0-1");
        assert_eq!(host.memory(), Bytes::mib(2048));
    }

    #[test]
    fn nonsense_is_refused() {
        let cpu = |id, node| Cpu {
            id,
            core: id,
            l3: 0,
            node,
        };
        let node = Node {
            id: 0,
            memory: Bytes(1),
        };
        assert_eq!(Topology::new(vec![], vec![node]), Err(TopologyError::Empty));
        assert_eq!(
            Topology::new(vec![cpu(0, 0), cpu(0, 0)], vec![node]),
            Err(TopologyError::BadId(0))
        );
        assert_eq!(
            Topology::new(vec![cpu(0, 3)], vec![node]),
            Err(TopologyError::UnknownNode { cpu: 0, node: 3 })
        );
    }
}
