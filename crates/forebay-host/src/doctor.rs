//! What this kernel offers, and what it costs not to have it.

use std::fs;
use std::path::{Path, PathBuf};

use forebay_core::slice::Knob;

use crate::Roots;
use crate::checkpoint::{Criu, probe_tracking};
use crate::cost;
use crate::damon;
use crate::error::HostError;
use crate::groups;
use crate::knobs::{Ways, all_knobs};
use crate::mounts::{Controller, Hierarchies, Hierarchy, Version};
use crate::network;
use crate::owner::{self, Addresses, Answering};
use crate::procs;
use crate::rdma;
use crate::reclaim::{self, Means, ReclaimWay};
use crate::topology::{host_topology, kib_after};

/// One thing that Forebay uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// What it is, in the kernel's words.
    pub name: String,
    /// Whether this host has it.
    pub present: bool,
    /// Where it was found, or why not.
    pub detail: String,
    /// What does not work without it.
    pub lack_costs: &'static str,
}

/// Looks at everything that Forebay uses. Changes nothing, needs no privilege, and may run
/// beside a daemon. `group` is the group that a daemon would use.
///
/// # Errors
/// When /proc is not mounted, or no control group is.
pub fn examine(roots: &Roots, group: &Path) -> Result<Vec<Feature>, HostError> {
    let hierarchies = Hierarchies::read(&roots.proc)?;
    let mut features = vec![privilege(), topology(roots, group)];
    features.extend(controllers(&hierarchies));
    features.extend(knobs(roots, &hierarchies, group));
    features.push(network(&hierarchies));
    features.push(rdma(roots));
    features.push(systemd());
    features.extend(container_runtimes());
    features.push(cost_models(&hierarchies));
    features.push(buffered_writes(&hierarchies));
    features.extend(unified(&hierarchies, group));
    features.extend(memory(roots, &hierarchies, group));
    features.extend(others(roots));
    features.push(checkpoint());
    features.push(tracking());
    Ok(features)
}

fn privilege() -> Feature {
    let root = rustix::process::geteuid().is_root();
    Feature {
        name: "root".to_owned(),
        present: root,
        detail: if root {
            "yes"
        } else {
            "run as root, or delegate a group"
        }
        .to_owned(),
        lack_costs: "nothing can be controlled, except in a delegated group",
    }
}

/// Where programs usually are: what a daemon is told to use it finds by itself.
fn checkpoint() -> Feature {
    let found = Criu::find(None);
    Feature {
        name: "criu".to_owned(),
        present: found.is_ok(),
        detail: match &found {
            Ok(criu) => {
                let (major, minor) = criu.version();
                format!("{major}.{minor} at {}", criu.program().display())
            }
            Err(error) => error.explain(),
        },
        lack_costs: "no images of apps, and none moves with its memory",
    }
}

/// What CRIU does not bring: memory is copied while the process runs.
fn tracking() -> Feature {
    let probed = probe_tracking();
    Feature {
        name: "memory tracking".to_owned(),
        present: probed.is_ok(),
        detail: match probed {
            Ok(()) => "userfaultfd with asynchronous write protection, PAGEMAP_SCAN".to_owned(),
            Err(error) => error.explain(),
        },
        lack_costs: "no app leaves with its memory (move.mode = \"checkpoint\"); images and updates are as before",
    }
}

fn topology(roots: &Roots, group: &Path) -> Feature {
    let read = host_topology(roots, Some(group));
    Feature {
        name: "topology".to_owned(),
        present: read.is_ok(),
        detail: match &read {
            Ok(topology) => format!(
                "CPUs {}, {} node(s), {}",
                topology.cpu_set(),
                topology.nodes().len(),
                topology.memory()
            ),
            Err(error) => error.explain(),
        },
        lack_costs: "no CPU can be given to an app alone",
    }
}

fn controllers(hierarchies: &Hierarchies) -> Vec<Feature> {
    let lack_costs = |controller| match controller {
        Controller::Cpu => "no weights, quotas or idle class: batch work slows critical apps",
        Controller::Cpuacct => "CPU use is read from cpu.stat of v2 instead",
        Controller::Cpuset => "no CPUs of an app's own",
        Controller::Memory => "no memory limits, and no memory use to forecast",
        Controller::Io => "no shares or limits of block devices",
        Controller::Pids => "no limit on processes",
        Controller::Freezer => "apps cannot be frozen",
    };
    Controller::ALL
        .into_iter()
        .filter(|controller| {
            // v2 has its accounting and its freezing everywhere.
            match controller {
                Controller::Cpuacct => hierarchies.list().iter().any(|h| h.version == Version::V1),
                Controller::Freezer => hierarchies.unified().is_none(),
                _ => true,
            }
        })
        .map(|controller| {
            let place = hierarchies.of(controller);
            Feature {
                name: format!("controller {}", controller.name()),
                present: place.is_some_and(|(_, hierarchy)| hierarchy.writable),
                detail: place.map_or_else(
                    || "in no hierarchy".to_owned(),
                    |(_, hierarchy)| describe(hierarchy),
                ),
                lack_costs: lack_costs(controller),
            }
        })
        .collect()
}

fn describe(hierarchy: &Hierarchy) -> String {
    let version = match hierarchy.version {
        Version::V1 => "v1",
        Version::V2 => "v2",
    };
    let access = if hierarchy.writable {
        ""
    } else {
        ", read-only"
    };
    format!("{version} at {}{access}", hierarchy.mount.display())
}

fn knobs(roots: &Roots, hierarchies: &Hierarchies, group: &Path) -> Vec<Feature> {
    let samples: Vec<PathBuf> = hierarchies
        .list()
        .iter()
        .map(|hierarchy| sample_group(hierarchy, group))
        .collect();
    let ways = Ways::probe(hierarchies, |index| {
        samples.get(index).map(PathBuf::as_path)
    });
    all_knobs()
        .into_iter()
        .map(|knob| {
            let way = ways.of(knob);
            Feature {
                name: match knob {
                    Knob::IoMax(_) => "io.max".to_owned(),
                    Knob::IoLatency(_) => "io.latency".to_owned(),
                    knob => knob.to_string(),
                },
                present: way.is_some(),
                detail: match way {
                    None => "no such file".to_owned(),
                    Some(way) => format!(
                        "as {}{}",
                        way.files.join(", "),
                        without_effect(knob, &roots.sys)
                    ),
                },
                lack_costs: knob_lack_costs(knob),
            }
        })
        .collect()
}

/// What keeps a knob that is there from doing anything.
fn without_effect(knob: Knob, sys: &Path) -> String {
    let file = sys.join("devices/system/cpu/cpu0/cpufreq/scaling_governor");
    match (knob, fs::read_to_string(file)) {
        (Knob::CpuUclampMin | Knob::CpuUclampMax, Ok(governor))
            if governor.trim() != "schedutil" =>
        {
            format!(
                ", without effect: the governor is `{}`, and only `schedutil` goes by it",
                governor.trim()
            )
        }
        (Knob::CpuUclampMin | Knob::CpuUclampMax, Err(_)) => {
            ", without effect: the kernel does not choose frequencies here (no cpufreq)".to_owned()
        }
        _ => String::new(),
    }
}

fn network(hierarchies: &Hierarchies) -> Feature {
    let probe = network::probe(hierarchies);
    Feature {
        name: Knob::EgressMax.to_string(),
        present: probe.is_ok(),
        detail: match probe {
            Ok(()) => "BPF programs of a control group".to_owned(),
            Err(error) => error.explain(),
        },
        lack_costs: knob_lack_costs(Knob::EgressMax),
    }
}

fn rdma(roots: &Roots) -> Feature {
    let found = rdma::find(&roots.sys);
    Feature {
        name: "RDMA".to_owned(),
        present: found.is_ok(),
        detail: match found {
            Ok(devices) => format!("{}, by librdmacm", devices.join(", ")),
            Err(why) => why,
        },
        lack_costs: "what moves between hosts goes over TCP",
    }
}

fn systemd() -> Feature {
    let version = owner::systemd_version(&Addresses::from_environment());
    Feature {
        name: "systemd".to_owned(),
        present: version.is_ok(),
        detail: match version {
            Ok(version) => format!("version {version}, by D-Bus"),
            Err(error) => error.explain(),
        },
        lack_costs: "no app can be bound by `systemd`",
    }
}

fn container_runtimes() -> Vec<Feature> {
    let addresses = Addresses::from_environment();
    let (answering, silent) = owner::container_runtimes(&addresses);
    let feature = |present, detail| Feature {
        name: "container runtime".to_owned(),
        present,
        detail,
        lack_costs: "no app can be bound by `container`",
    };
    let answers = |runtime: Answering| {
        let socket = runtime.socket.display();
        feature(true, format!("{}, at {socket}", runtime.name))
    };
    // A runtime that is not installed is no trouble beside one that answers.
    let troubles = silent.iter().filter(|error| !error.is_gone());
    let mut features: Vec<Feature> = answering.into_iter().map(answers).collect();
    features.extend(troubles.map(|error| feature(false, error.explain())));
    if features.is_empty() {
        let sockets = addresses.containers.replace(':', " or ");
        let detail = format!("no socket {sockets}; name another as DOCKER_HOST=unix://PATH");
        features.push(feature(false, detail));
    }
    features
}

const fn knob_lack_costs(knob: Knob) -> &'static str {
    match knob {
        Knob::Cpus => "apps share all CPUs",
        Knob::CpusPartition => {
            "own CPUs of critical apps are kept from other apps, not from the rest of the host"
        }
        Knob::Mems => "memory comes from any node",
        Knob::CpuWeight => "no shares of contended CPUs",
        Knob::CpuIdle => "batch work is held back by the smallest weight instead",
        Knob::CpuMax => "no upper bound on CPU use",
        Knob::CpuBurst => "a quota cuts short bursts",
        Knob::CpuUclampMin => "critical apps do not run fast before their use shows",
        Knob::CpuUclampMax => "batch work drives frequencies up as any other does",
        Knob::MemoryMin => "no memory is safe from reclaim",
        Knob::MemoryLow => "memory of critical apps is reclaimed like any other",
        Knob::MemoryHigh => "batch work is not slowed before memory is short",
        Knob::MemoryMax => "no upper bound on memory",
        Knob::MemorySwapMax => "no upper bound on the swap of an app",
        Knob::MemoryZswapMax => "no upper bound on the memory that zswap keeps for an app",
        Knob::IoWeight => "no shares of busy disks (needs the BFQ scheduler or io.cost)",
        Knob::IoMax(_) => "no upper bound on disk traffic",
        Knob::IoLatency(_) => {
            "with io_protection = \"latency\", a critical app's requests are held up by groups that \
             are no apps all the same (the kernel needs CONFIG_BLK_CGROUP_IOLATENCY)"
        }
        Knob::PidsMax => "no upper bound on processes",
        Knob::L3Cache | Knob::MemoryBandwidth => "batch fills the caches of critical apps",
        Knob::OomScoreAdj => {
            "when memory is out, critical apps are ended like any other, after batch"
        }
        Knob::EgressMax => "no upper bound on what an app sends, and its traffic is not counted",
    }
}

fn cost_models(hierarchies: &Hierarchies) -> Feature {
    let on = cost::examine(hierarchies);
    Feature {
        name: "io.cost".to_owned(),
        present: on.is_ok(),
        detail: match on {
            Ok(on) if on.is_empty() => "on for no device".to_owned(),
            Ok(on) => {
                let on: Vec<String> = on.iter().map(ToString::to_string).collect();
                format!("on for {}", on.join(", "))
            }
            Err(error) => error.explain(),
        },
        lack_costs: "io.weight divides no device but those that BFQ schedules; neither \
                     io_protection = \"cost\" nor `calibrate --install-model` works",
    }
}

/// v1 charges what the kernel writes back later to nobody: a limit does not hold it.
fn buffered_writes(hierarchies: &Hierarchies) -> Feature {
    let on_v2 = |controller| {
        let place = hierarchies.of(controller);
        place.is_some_and(|(_, hierarchy)| hierarchy.version == Version::V2)
    };
    let present = on_v2(Controller::Io) && on_v2(Controller::Memory);
    Feature {
        name: "limits of buffered writes".to_owned(),
        present,
        detail: if present {
            "io and memory are both of v2"
        } else {
            "need io and memory of v2: boot with systemd.unified_cgroup_hierarchy=1, or let batch \
             write directly (O_DIRECT), or bound its dirty pages by ceiling.memory"
        }
        .to_owned(),
        lack_costs: "io.max holds reads and direct writes; what batch writes through the page cache \
                     passes it and can still slow a critical app's reads",
    }
}

/// A group to look for files in: a root group lacks most of them.
fn sample_group(hierarchy: &Hierarchy, group: &Path) -> PathBuf {
    let ours = hierarchy.dir(group);
    if ours.is_dir() {
        return ours;
    }
    let any = groups::children(&hierarchy.mount).into_iter().next();
    any.unwrap_or_else(|| hierarchy.mount.clone())
}

fn unified(hierarchies: &Hierarchies, group: &Path) -> Vec<Feature> {
    let place = hierarchies.unified().map(|(_, hierarchy)| hierarchy);
    let sample = place.map(|hierarchy| sample_group(hierarchy, group));
    let file = |name: &str, lack_costs: &'static str| {
        let present = sample.as_ref().is_some_and(|dir| dir.join(name).exists());
        Feature {
            name: name.to_owned(),
            present,
            detail: match (&place, present) {
                (None, _) => "no cgroup2 mount".to_owned(),
                (Some(hierarchy), true) => format!("at {}", hierarchy.mount.display()),
                // Group files such as cgroup.kill are not in the root.
                (Some(_), false) => "no such file, or no group yet to look in".to_owned(),
            },
            lack_costs,
        }
    };
    vec![
        file(
            "cpu.pressure",
            "waiting for CPU is not seen: forecasts go by use alone",
        ),
        file("memory.pressure", "waiting for memory is not seen"),
        file("io.pressure", "waiting for disks is not seen"),
        file("cgroup.kill", "apps are ended process by process"),
        file("cgroup.freeze", "apps are frozen by v1's freezer, or not"),
        file(
            "cgroup.events",
            "whether a group is empty is read from its list of processes",
        ),
    ]
}

fn interrupts(roots: &Roots) -> Feature {
    let probe = roots.proc.join("irq/default_smp_affinity");
    let writable = rustix::fs::access(&probe, rustix::fs::Access::WRITE_OK).is_ok();
    let balanced = procs::is_any_named(&roots.proc, "irqbalance");
    Feature {
        name: "interrupts".to_owned(),
        present: writable && !balanced,
        detail: match (writable, balanced) {
            (false, _) => format!("{} cannot be written", probe.display()),
            (true, true) => "irqbalance runs and moves them as well: give it \
                             IRQBALANCE_BANNED_CPULIST, or stop it"
                .to_owned(),
            (true, false) => "can be moved".to_owned(),
        },
        lack_costs: "with interrupts = \"shared\", devices interrupt critical apps all the same",
    }
}

/// What making room ahead of a rise needs.
fn memory(roots: &Roots, hierarchies: &Hierarchies, group: &Path) -> Vec<Feature> {
    let samples: Vec<PathBuf> = hierarchies
        .list()
        .iter()
        .map(|hierarchy| sample_group(hierarchy, group))
        .collect();
    let way = ReclaimWay::probe(hierarchies, |index| {
        samples.get(index).map(PathBuf::as_path)
    });
    let swap = fs::read_to_string(roots.proc.join("meminfo"))
        .ok()
        .and_then(|text| kib_after(&text, "SwapTotal:"))
        .filter(|swap| swap.0 > 0);
    vec![
        Feature {
            name: "memory.reclaim".to_owned(),
            present: way.is_some(),
            detail: match way.map(|way| way.means) {
                Some(Means::Reclaim) => "as memory.reclaim".to_owned(),
                Some(Means::Limit) => format!(
                    "by lowering {} for a moment: page cache only, and nothing keeps the app \
                     from taking it again",
                    reclaim::LIMIT_FILE
                ),
                None => "no such file (needs Linux 5.19), or no group yet to look in".to_owned(),
            },
            lack_costs: "batch gives no memory back before a critical app needs it",
        },
        Feature {
            name: "swap".to_owned(),
            present: swap.is_some(),
            detail: swap.map_or_else(|| "none".to_owned(), |swap| swap.to_string()),
            lack_costs: "only page cache can be reclaimed from batch, not its other memory",
        },
        damon(roots),
    ]
}

fn damon(roots: &Roots) -> Feature {
    let found = damon::examine(roots);
    Feature {
        name: "DAMON".to_owned(),
        present: found.is_ok(),
        detail: found.map_or_else(|error| error.explain(), str::to_owned),
        lack_costs: "with hot_memory = \"watched\", cold memory is read off memory.stat all the same",
    }
}

fn fanotify() -> Feature {
    let opened = crate::tier::Watch::open();
    Feature {
        name: "fanotify".to_owned(),
        present: opened.is_ok(),
        detail: match opened {
            Ok(_) => "names files by handles".to_owned(),
            Err(error) => error.explain(),
        },
        lack_costs: "files of tiered directories move only when asked for",
    }
}

/// A process needs a capability to be ended later than it was to be.
fn oom_protection(roots: &Roots) -> Feature {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string(roots.proc.join("self/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let present = effective.is_some_and(|mask| mask >> CAP_SYS_RESOURCE & 1 == 1);
    Feature {
        name: Knob::OomScoreAdj.to_string(),
        present,
        detail: if present {
            "of each process"
        } else {
            "only upwards: give the daemon CAP_SYS_RESOURCE to protect critical apps, too"
        }
        .to_owned(),
        lack_costs: knob_lack_costs(Knob::OomScoreAdj),
    }
}

fn others(roots: &Roots) -> Vec<Feature> {
    let scheduler = fs::read_to_string(roots.sys.join("kernel/sched_ext/state"));
    let replaced = scheduler.is_ok_and(|state| state.trim() == "enabled");
    let pidfd = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    );
    let resctrl = roots.sys.join("fs/resctrl").is_dir();
    vec![
        interrupts(roots),
        fanotify(),
        oom_protection(roots),
        Feature {
            name: "pidfd".to_owned(),
            present: pidfd.is_ok(),
            detail: match pidfd {
                Ok(_) => "yes".to_owned(),
                Err(error) => error.to_string(),
            },
            lack_costs: "programs cannot be supervised, the daemon cannot be guarded",
        },
        Feature {
            name: "kernel's own scheduler".to_owned(),
            present: !replaced,
            detail: if replaced {
                "a sched_ext scheduler is loaded"
            } else {
                "yes"
            }
            .to_owned(),
            lack_costs: "cpu.weight, cpu.idle and cpu.max may do nothing",
        },
        Feature {
            name: "resctrl".to_owned(),
            present: resctrl,
            detail: if resctrl {
                "supported"
            } else {
                "not supported"
            }
            .to_owned(),
            lack_costs: "cache and memory bandwidth are not partitioned",
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clamps_without_a_governor_that_goes_by_them_are_said_to_be_idle() {
        let sys = tempfile::tempdir().unwrap();
        let file = sys
            .path()
            .join("devices/system/cpu/cpu0/cpufreq/scaling_governor");
        let says = |knob: Knob, words: &str| {
            let said = without_effect(knob, sys.path());
            assert!(
                said.contains(words) && said.is_empty() == words.is_empty(),
                "{said}"
            );
        };
        says(Knob::CpuUclampMin, "no cpufreq");
        says(Knob::CpuWeight, "");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "performance\n").unwrap();
        says(Knob::CpuUclampMax, "`performance`");
        fs::write(&file, "schedutil\n").unwrap();
        says(Knob::CpuUclampMax, "");
    }

    #[test]
    fn this_host_is_examined() {
        let features = examine(&Roots::default(), Path::new("forebay-no-such-group")).unwrap();
        for name in [
            "root",
            "controller cpu",
            "cpu.weight",
            "cpu.pressure",
            "pidfd",
        ] {
            assert!(features.iter().any(|f| f.name == name), "{name}");
        }
        // It came with Linux 6.7.
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map(|n| n.parse().unwrap_or(0));
        let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
        let tracking = features.iter().find(|f| f.name == "memory tracking");
        let tracking = tracking.unwrap();
        assert_eq!(tracking.present, version >= (6, 7), "{}", tracking.detail);
    }
}
