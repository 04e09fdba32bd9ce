//! CPUs, cores, caches and NUMA nodes, from /sys/devices/system.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use forebay_core::app::Device;
use forebay_core::idset::{CpuSet, NodeSet};
use forebay_core::topology::{Cpu, Node, Topology};
use forebay_core::units::Bytes;

use crate::Roots;
use crate::error::HostError;
use crate::mounts::Hierarchies;
use crate::partition;

/// Reads what this process may use: the online CPUs that `Cpus_allowed_list` of
/// /proc/self/status names, with the nodes they and the memory sit on.
///
/// `taken` are the CPUs of our own partitions, which every other process lost, this one too.
///
/// Some kernels leave memory that was added while they run out of the node's meminfo. A
/// single node has all there is, so it gets what /proc/meminfo says where that is more. With
/// several nodes nobody says which one has the rest, and it stays out of the plan: memory
/// promised from a node that lacks it is worse than memory that nobody was promised.
///
/// # Errors
/// When /sys shows no CPU, or numbers beyond what a set holds.
pub fn read_topology(
    proc_root: &Path,
    sys_root: &Path,
    taken: &CpuSet,
) -> Result<Topology, HostError> {
    let cpu_dir = sys_root.join("devices/system/cpu");
    let online_file = cpu_dir.join("online");
    let online = read_set(&online_file)?;
    let allowed = allowed_cpus(proc_root).unwrap_or(online);
    let usable = match online.intersection(&allowed.union(taken)) {
        none if none.is_empty() => online,
        some => some,
    };
    let node_of = read_nodes(&sys_root.join("devices/system/node"));
    let mut cores: BTreeMap<(usize, usize, usize), usize> = BTreeMap::new();
    let mut caches: BTreeMap<String, usize> = BTreeMap::new();
    let mut cpus = Vec::new();
    for id in usable.iter() {
        let dir = cpu_dir.join(format!("cpu{id}"));
        let node = node_of
            .iter()
            .find(|(_, (cpus, _))| cpus.contains(id))
            .map_or(0, |(node, _)| *node);
        let number = |file: &str| read_number(&dir.join("topology").join(file));
        // Where the kernel says nothing, a CPU is a core of its own.
        let core_key = match number("core_id") {
            Some(core) => (
                number("physical_package_id").unwrap_or(0),
                number("die_id").unwrap_or(0),
                core,
            ),
            None => (usize::MAX, 0, id),
        };
        let core_count = cores.len();
        let core = *cores.entry(core_key).or_insert(core_count);
        let cache_key = last_level_cache(&dir.join("cache"))
            .unwrap_or_else(|| format!("package {}", number("physical_package_id").unwrap_or(0)));
        let cache_count = caches.len();
        let l3 = *caches.entry(cache_key).or_insert(cache_count);
        cpus.push(Cpu { id, core, l3, node });
    }
    let mut nodes: Vec<Node> = node_of
        .iter()
        .map(|(id, (_, memory))| Node {
            id: *id,
            memory: *memory,
        })
        .collect();
    match &mut nodes[..] {
        [] => nodes.push(Node {
            id: 0,
            memory: total_memory(proc_root),
        }),
        [only] => only.memory = only.memory.max(total_memory(proc_root)),
        _ => {}
    }
    Topology::new(cpus, nodes).map_err(|error| {
        HostError::invalid(
            format!("read the topology from {}: {error}", cpu_dir.display()),
            "check that /sys is mounted",
        )
    })
}

/// What a program on this host may be given, whether or not a daemon of ours has taken CPUs
/// for an app. `group` is the group that the daemon uses, if that is known.
///
/// # Errors
/// As [`read_topology`]'s.
pub fn host_topology(roots: &Roots, group: Option<&Path>) -> Result<Topology, HostError> {
    let taken = Hierarchies::read(&roots.proc)
        .map_or(CpuSet::EMPTY, |all| partition::taken_beside(&all, group));
    read_topology(&roots.proc, &roots.sys, &taken)
}

/// Nodes by number: their CPUs and their memory.
fn read_nodes(dir: &Path) -> BTreeMap<usize, (CpuSet, Bytes)> {
    let online: NodeSet = match read_set(&dir.join("online")) {
        Ok(online) => online,
        Err(_) => return BTreeMap::new(),
    };
    online
        .iter()
        .map(|id| {
            let node = dir.join(format!("node{id}"));
            let cpus = read_set(&node.join("cpulist")).unwrap_or(CpuSet::EMPTY);
            let memory = fs::read_to_string(node.join("meminfo"))
                .ok()
                .and_then(|text| kib_after(&text, "MemTotal:"))
                .unwrap_or(Bytes(0));
            (id, (cpus, memory))
        })
        .collect()
}

/// What memory a NUMA node has, and how it is used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeUse {
    /// The node.
    pub id: usize,
    /// Installed.
    pub total: Bytes,
    /// Used by nobody.
    pub free: Bytes,
    /// Holds contents of files, most of which could be read again.
    pub cache: Bytes,
}

/// How the memory of each NUMA node is used now, by number; a node that does not say is left out.
/// On a kernel without nodes all memory is that of node 0.
#[must_use]
pub fn read_node_use(roots: &Roots) -> Vec<NodeUse> {
    let nodes = roots.sys.join("devices/system/node");
    let Ok(online) = read_set(&nodes.join("online")) else {
        // The whole host counts what is mapped and shared under another name.
        return node_use(0, &roots.proc.join("meminfo"), "Cached:")
            .into_iter()
            .collect();
    };
    let one = |id| node_use(id, &nodes.join(format!("node{id}/meminfo")), "FilePages:");
    online.iter().filter_map(one).collect()
}

fn node_use(id: usize, meminfo: &Path, cached: &str) -> Option<NodeUse> {
    let text = fs::read_to_string(meminfo).ok()?;
    let after = |label| kib_after(&text, label);
    // tmpfs is counted among files, and nothing has it on a disk.
    let shared = after("Shmem:").unwrap_or(Bytes(0));
    Some(NodeUse {
        id,
        total: after("MemTotal:")?,
        free: after("MemFree:")?,
        cache: Bytes(after(cached)?.0.saturating_sub(shared.0)),
    })
}

/// The CPUs that share the last-level cache: the deepest data or unified cache listed.
fn last_level_cache(dir: &Path) -> Option<String> {
    let mut deepest: Option<(usize, String)> = None;
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let index = entry.path();
        let Some(level) = read_number(&index.join("level")) else {
            continue;
        };
        let kind = fs::read_to_string(index.join("type")).unwrap_or_default();
        if kind.trim() == "Instruction" {
            continue;
        }
        let Ok(shared) = fs::read_to_string(index.join("shared_cpu_list")) else {
            continue;
        };
        if deepest.as_ref().is_none_or(|(most, _)| level > *most) {
            deepest = Some((level, shared.trim().to_owned()));
        }
    }
    // A cache of one core alone tells nothing about who shares the last level.
    deepest
        .filter(|(level, _)| *level >= 3)
        .map(|(_, shared)| shared)
}

/// The disks of this host that have a capacity, by their numbers, in the order of their names.
pub(crate) fn disks(sys_root: &Path) -> Vec<Device> {
    let entries = fs::read_dir(sys_root.join("block")).into_iter().flatten();
    let mut disks: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    disks.sort();
    disks
        .into_iter()
        .filter(|disk| read_number(&disk.join("size")).is_some_and(|size| size > 0))
        .filter_map(|disk| {
            let number = fs::read_to_string(disk.join("dev")).ok()?;
            number.trim().parse().ok()
        })
        .collect()
}

fn allowed_cpus(proc_root: &Path) -> Option<CpuSet> {
    let status = fs::read_to_string(proc_root.join("self/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    line.trim().parse().ok()
}

fn total_memory(proc_root: &Path) -> Bytes {
    fs::read_to_string(proc_root.join("meminfo"))
        .ok()
        .and_then(|text| kib_after(&text, "MemTotal:"))
        .unwrap_or(Bytes(0))
}

/// The amount after a label such as `MemTotal:` in meminfo.
pub(crate) fn kib_after(text: &str, label: &str) -> Option<Bytes> {
    let (_, rest) = text.split_once(label)?;
    let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
    Some(Bytes(kib.checked_mul(1024)?))
}

fn read_set(path: &Path) -> Result<CpuSet, HostError> {
    let text = fs::read_to_string(path).map_err(|e| HostError::file("read", path, e))?;
    text.parse().map_err(|error| {
        HostError::invalid(
            format!("read {}: {error}", path.display()),
            "this machine has more CPUs than Forebay supports",
        )
    })
}

fn read_number(path: &Path) -> Option<usize> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a tree of small files.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn cpu_files(id: usize, package: usize, core: usize, l3: &str) -> Vec<(String, String)> {
        let dir = format!("sys/devices/system/cpu/cpu{id}");
        vec![
            (
                format!("{dir}/topology/physical_package_id"),
                package.to_string(),
            ),
            (format!("{dir}/topology/core_id"), core.to_string()),
            (format!("{dir}/cache/index0/level"), "1".to_owned()),
            (
                format!("{dir}/cache/index0/shared_cpu_list"),
                id.to_string(),
            ),
            (format!("{dir}/cache/index3/level"), "3".to_owned()),
            (format!("{dir}/cache/index3/shared_cpu_list"), l3.to_owned()),
        ]
    }

    #[test]
    fn two_sockets_with_siblings() {
        let mut files = vec![
            (
                "sys/devices/system/cpu/online".to_owned(),
                "0-7\n".to_owned(),
            ),
            (
                "sys/devices/system/node/online".to_owned(),
                "0-1\n".to_owned(),
            ),
            (
                "sys/devices/system/node/node0/cpulist".to_owned(),
                "0-1,4-5\n".to_owned(),
            ),
            (
                "sys/devices/system/node/node0/meminfo".to_owned(),
                "Node 0 MemTotal:       1024 kB\n".to_owned(),
            ),
            (
                "sys/devices/system/node/node1/cpulist".to_owned(),
                "2-3,6-7\n".to_owned(),
            ),
            (
                "sys/devices/system/node/node1/meminfo".to_owned(),
                "Node 1 MemTotal:       2048 kB\n".to_owned(),
            ),
            (
                "proc/self/status".to_owned(),
                "Name:\tx\nCpus_allowed_list:\t0-6\n".to_owned(),
            ),
        ];
        for id in 0..8 {
            let package = (id % 4) / 2;
            let l3 = if package == 0 { "0-1,4-5" } else { "2-3,6-7" };
            files.extend(cpu_files(id, package, id % 2, l3));
        }
        let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (&**a, &**b)).collect();
        let root = tree(&files);
        let topology = read_topology(
            &root.path().join("proc"),
            &root.path().join("sys"),
            &CpuSet::EMPTY,
        )
        .unwrap();
        assert_eq!(
            topology.cpu_set().to_string(),
            "0-6",
            "only what is allowed"
        );
        let cpus = topology.cpus();
        assert_eq!(cpus[0].core, cpus[4].core);
        assert_ne!(cpus[0].core, cpus[2].core, "same core_id, other package");
        assert_eq!(cpus[0].l3, cpus[1].l3);
        assert_ne!(cpus[0].l3, cpus[2].l3);
        assert_eq!(cpus[6].node, 1);
        assert_eq!(topology.memory(), Bytes(3072 * 1024));
    }

    #[test]
    fn a_machine_that_says_little() {
        let root = tree(&[
            ("sys/devices/system/cpu/online", "0-1\n"),
            ("proc/meminfo", "MemTotal:       4096 kB\n"),
        ]);
        let topology = read_topology(
            &root.path().join("proc"),
            &root.path().join("sys"),
            &CpuSet::EMPTY,
        )
        .unwrap();
        assert_eq!(topology.cpu_set().to_string(), "0-1");
        assert_ne!(topology.cpus()[0].core, topology.cpus()[1].core);
        assert_eq!(topology.cpus()[0].l3, topology.cpus()[1].l3);
        assert_eq!(topology.memory(), Bytes(4096 * 1024));
    }

    #[test]
    fn memory_added_later_counts_where_it_can_only_be() {
        let check = |nodes: &[&str], expected: u64| {
            let online = format!("0-{}", nodes.len() - 1);
            let mut files = vec![
                ("sys/devices/system/cpu/online".to_owned(), "0-1"),
                ("proc/meminfo".to_owned(), "MemTotal:       24684092 kB\n"),
                ("sys/devices/system/node/online".to_owned(), &online),
            ];
            for (id, meminfo) in nodes.iter().enumerate() {
                let file = format!("sys/devices/system/node/node{id}/meminfo");
                files.push((file, meminfo));
            }
            let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (&**a, *b)).collect();
            let root = tree(&files);
            let topology = read_topology(
                &root.path().join("proc"),
                &root.path().join("sys"),
                &CpuSet::EMPTY,
            )
            .unwrap();
            assert_eq!(topology.memory(), Bytes(expected * 1024), "{nodes:?}");
        };
        let small = "Node 0 MemTotal:        8743124 kB\n";
        let large = "Node 0 MemTotal:       24700000 kB\n";
        check(&[small], 24_684_092);
        check(&[large], 24_700_000);
        check(&[small, "Node 1 MemTotal:        1000000 kB\n"], 9_743_124);
    }

    #[test]
    fn no_cpu_is_an_error() {
        let root = tree(&[]);
        let error = read_topology(
            &root.path().join("proc"),
            &root.path().join("sys"),
            &CpuSet::EMPTY,
        );
        assert!(error.unwrap_err().explain().contains("cpu/online"));
    }

    #[test]
    fn each_node_says_what_of_its_memory_is_free_and_what_holds_files() {
        let node = |id: u32, free: u32| {
            format!(
                "Node {id} MemTotal:       4096 kB\nNode {id} MemFree:        {free} kB\n\
                 Node {id} FilePages:       512 kB\nNode {id} Shmem:            12 kB\n"
            )
        };
        let first = node(0, 100);
        let root = tree(&[
            ("sys/devices/system/node/online", "0-2\n"),
            ("sys/devices/system/node/node0/meminfo", &first),
            (
                "sys/devices/system/node/node2/meminfo",
                "Node 2 MemTotal: 1 kB\n",
            ),
        ]);
        let roots = Roots {
            proc: root.path().join("proc"),
            sys: root.path().join("sys"),
        };
        let kib = |kib: u64| Bytes(kib * 1024);
        let only = NodeUse {
            id: 0,
            total: kib(4096),
            free: kib(100),
            cache: kib(500),
        };
        assert_eq!(read_node_use(&roots), [only]);

        let root = tree(&[(
            "proc/meminfo",
            "MemTotal:       4096 kB\nMemFree:         100 kB\nBuffers:           7 kB\nCached:          512 kB\n\
             SwapCached:        9 kB\nShmem:            12 kB\n",
        )]);
        let roots = Roots {
            proc: root.path().join("proc"),
            sys: root.path().join("sys"),
        };
        assert_eq!(read_node_use(&roots), [only]);
    }
}
