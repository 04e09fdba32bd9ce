//! What runs here already, told by its control groups.
//!
//! Changes nothing. A service manager, a container runtime and a kubelet name the groups that
//! they make after what runs in them, so no one of them needs to be there. Only for the names of
//! containers, of which their groups say the ID, the runtimes are asked that answer at once.
//! Processes outside any such group count by their program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_core::units::Bytes;

use crate::Roots;
use crate::error::HostError;
use crate::ledger::Process;
use crate::mounts::{Controller, Hierarchies};
use crate::owner::{Addresses, Container, container};
use crate::procs;

/// Listening sockets of one service that are told.
const PORTS_MAX: usize = 16;
/// Programs that run what they are told to.
const INTERPRETERS: [&str; 7] = ["java", "node", "perl", "php", "pypy", "python", "ruby"];
/// A longer command line is not suggested.
const ARGUMENTS_BYTES_MAX: usize = 200;
/// Where the kubelet puts the logs of pods.
const POD_LOGS: &str = "/var/log/pods";
/// State of a listening socket in /proc/net/tcp.
const LISTENING: &str = "0A";

/// Whose a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A service of systemd.
    Systemd,
    /// A session or another scope that somebody handed to systemd.
    Scope,
    /// A container of Docker.
    Docker,
    /// A container of containerd, of no pod that could be told.
    Containerd,
    /// A container of Podman.
    Podman,
    /// A pod of Kubernetes.
    Pod(PodQuality),
    /// Somebody's plain group.
    Plain,
    /// No group of its own.
    None,
}

/// The quality of service that the kubelet gives a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PodQuality {
    /// Requests equal limits.
    Guaranteed,
    /// Requests below limits.
    Burstable,
    /// No requests.
    BestEffort,
}

/// What to write so that an app means it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The group, relative to the hierarchy's root.
    Group(PathBuf),
    /// The program's file, and for an interpreter what it was told to run.
    Program {
        /// As the kernel names it.
        executable: PathBuf,
        /// The arguments, with spaces between them.
        command_line: Option<String>,
    },
}

/// One service, container, pod or program.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// A unit's name without its kind, the start of a container's number, a pod's namespace and
    /// name or else its number, or the name of a program.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// Whose it is.
    pub owner: Owner,
    /// What its runtime calls it, where that was asked and has it in this group.
    pub container: Option<Container>,
    /// Its processes, by number.
    pub pids: Vec<u32>,
    /// The name of its first process.
    pub program: String,
    /// CPUs used while it was watched.
    pub cpus: f64,
    /// Resident memory of its processes; what they share counts more than once.
    pub resident: Bytes,
    /// TCP ports that it listens on, the lowest few.
    pub ports: Vec<u16>,
    /// Whether all of it runs in a batch or idle scheduling class, or nice by 5 or more.
    pub yields: bool,
}

/// Watches what runs for a while. Kernel threads, this process and groups of Forebay's own
/// are left out, and so is whatever comes or goes meanwhile. Container runtimes are asked at
/// `addresses`, for seconds at most.
///
/// # Errors
/// When /proc is not mounted, or no control group is.
pub fn discover(
    roots: &Roots,
    addresses: &Addresses,
    ours: &Path,
    watch: Duration,
) -> Result<Vec<Found>, HostError> {
    let hierarchies = Hierarchies::read(&roots.proc)?;
    let start = Instant::now();
    let before = usage(&roots.proc);
    std::thread::sleep(watch);
    let elapsed = start.elapsed().as_secs_f64();
    let after = usage(&roots.proc);
    let mut listening = BTreeMap::new();
    let pods = pod_names(Path::new(POD_LOGS));
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let page = rustix::param::page_size() as u64;

    let mut found: BTreeMap<Place, Found> = BTreeMap::new();
    for (process, now) in &after {
        let Some(earlier) = before.get(process) else {
            continue;
        };
        if process.pid == std::process::id() {
            continue;
        }
        let Some((place, owner, name)) = place(roots, &hierarchies, ours, process.pid) else {
            continue;
        };
        let cpus = now.ticks.saturating_sub(earlier.ticks) as f64 / ticks_per_second / elapsed;
        let entry = found.entry(place.clone()).or_insert_with(|| Found {
            name: match owner {
                Owner::Pod(_) => pods.get(&name).cloned().unwrap_or(name),
                _ => name,
            },
            place,
            owner,
            container: None,
            pids: Vec::new(),
            program: program(&roots.proc, process.pid),
            cpus: 0.0,
            resident: Bytes(0),
            ports: Vec::new(),
            yields: true,
        });
        entry.pids.push(process.pid);
        entry.cpus += cpus;
        entry.resident = entry
            .resident
            .saturating_add(Bytes(now.resident_pages.saturating_mul(page)));
        entry.yields &= now.yields;
        entry
            .ports
            .extend(ports_of(&roots.proc, process.pid, &mut listening));
    }
    let mut found: Vec<Found> = found.into_values().collect();
    for one in &mut found {
        one.ports.sort_unstable();
        one.ports.dedup();
        one.ports.truncate(PORTS_MAX);
    }
    name_containers(&mut found, addresses);
    Ok(found)
}

/// Has runtimes tell the names of what may be their containers.
fn name_containers(found: &mut [Found], addresses: &Addresses) {
    let ids: BTreeSet<&str> = found.iter().filter_map(container_id).collect();
    let containers = container::running(&addresses.containers, &ids);
    for one in found {
        let known = container_id(one).and_then(|id| containers.get(id));
        // Another group may have the ID in its name as well.
        let is_here = |(group, _): &&(PathBuf, Container)| one.place == Place::Group(group.clone());
        if let Some((_, container)) = known.filter(is_here) {
            one.name.clone_from(&container.name);
            one.owner = match container.is_of_podman {
                true => Owner::Podman,
                false => Owner::Docker,
            };
            one.container = Some(container.clone());
        }
    }
}

/// The ID of the container that a group is named after, whoever made it: below a group that was
/// chosen for it (`--cgroup-parent`) Docker's groups have no other name.
fn container_id(found: &Found) -> Option<&str> {
    let Place::Group(group) = &found.place else {
        return None;
    };
    if !matches!(found.owner, Owner::Docker | Owner::Podman | Owner::Plain) {
        return None;
    }
    let name = group.file_name()?.to_str()?;
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = name.rsplit('-').next()?;
    container::is_id(id).then_some(id)
}

/// What one process has used so far.
#[derive(Debug, Clone, Copy)]
struct Usage {
    ticks: u64,
    resident_pages: u64,
    yields: bool,
}

fn usage(proc_root: &Path) -> BTreeMap<Process, Usage> {
    procs::all(proc_root)
        .into_iter()
        .filter_map(|pid| {
            let text = fs::read_to_string(proc_root.join(format!("{pid}/stat"))).ok()?;
            let stat = procs::parse_stat(&text)?;
            // Kernel threads have no memory of their own.
            (stat.state != 'Z' && stat.resident_pages > 0).then_some((
                Process {
                    pid,
                    start_time: stat.start_time,
                },
                Usage {
                    ticks: stat.ticks,
                    resident_pages: stat.resident_pages,
                    yields: yields(&text),
                },
            ))
        })
        .collect()
}

/// Whether a process is scheduled behind the others: SCHED_BATCH, SCHED_IDLE, or nice.
fn yields(stat: &str) -> bool {
    let field = |number: usize| -> Option<i64> {
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_whitespace().nth(number - 3)?.parse().ok()
    };
    let (nice, policy) = (field(19).unwrap_or(0), field(41).unwrap_or(0));
    nice >= 5 || policy == 3 || policy == 5
}

/// Where a process belongs, whose that is, and its name.
fn place(
    roots: &Roots,
    hierarchies: &Hierarchies,
    ours: &Path,
    pid: u32,
) -> Option<(Place, Owner, String)> {
    let text = fs::read_to_string(roots.proc.join(format!("{pid}/cgroup"))).ok()?;
    let (index, hierarchy) = hierarchies.of(Controller::Cpu)?;
    let dir = hierarchies.membership(&text).get(index)?.clone()?;
    let group = dir.strip_prefix(&hierarchy.mount).ok()?;
    let first = group
        .components()
        .next()
        .map(|part| part.as_os_str().to_string_lossy().into_owned());
    let ours = ours.to_string_lossy();
    if first.is_some_and(|name| name == *ours || name.starts_with(&format!("{ours}."))) {
        return None;
    }
    if let Some((group, owner, name)) = owned(group) {
        return Some((Place::Group(group), owner, name));
    }
    let executable = fs::read_link(roots.proc.join(format!("{pid}/exe"))).ok()?;
    // A program that was replaced on disk while it runs is still that program.
    let executable = executable.to_str()?;
    let executable = PathBuf::from(executable.strip_suffix(" (deleted)").unwrap_or(executable));
    let name = executable.file_name()?.to_string_lossy().into_owned();
    let command_line = is_interpreter(&name)
        .then(|| arguments(&roots.proc, pid))
        .flatten();
    let place = Place::Program {
        executable,
        command_line,
    };
    Some((place, Owner::None, name))
}

/// Whether a program's name says nothing about what it does.
fn is_interpreter(name: &str) -> bool {
    let plain = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    INTERPRETERS.contains(&plain)
}

/// What an interpreter was told to run, as far as it can be written down.
fn arguments(proc_root: &Path, pid: u32) -> Option<String> {
    let bytes = fs::read(proc_root.join(format!("{pid}/cmdline"))).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (_, arguments) = text.split_once('\0')?;
    let arguments = arguments.trim_end_matches('\0').replace('\0', " ");
    let writable = !arguments.is_empty()
        && arguments.len() <= ARGUMENTS_BYTES_MAX
        && !arguments.chars().any(char::is_control);
    writable.then_some(arguments)
}

/// The part of a group's path that is one service, container or pod. None at the root and
/// where nothing but a process manager lives.
fn owned(group: &Path) -> Option<(PathBuf, Owner, String)> {
    let mut path = PathBuf::new();
    let mut quality = None;
    let mut last = None;
    for part in group.components() {
        let Component::Normal(part) = part else {
            continue;
        };
        let part = part.to_str()?;
        path.push(part);
        if part.starts_with("kubepods") {
            quality.get_or_insert(PodQuality::Guaranteed);
        }
        if quality.is_some() {
            if part.contains("burstable") {
                quality = Some(PodQuality::Burstable);
            } else if part.contains("besteffort") {
                quality = Some(PodQuality::BestEffort);
            }
        }
        let found = |owner, name: &str| Some((path.clone(), owner, name.to_owned()));
        if let (Some(quality), Some(uid)) = (quality, pod_uid(part)) {
            return found(Owner::Pod(quality), &uid);
        }
        let container = |prefix: &str| {
            let id = part.strip_prefix(prefix)?;
            let id = id.strip_suffix(".scope").unwrap_or(id);
            container::is_id(id).then(|| id[..12].to_owned())
        };
        if let Some(id) = container("docker-") {
            return found(Owner::Docker, &id);
        }
        if let Some(id) = container("cri-containerd-").or_else(|| container("nerdctl-")) {
            return found(Owner::Containerd, &id);
        }
        if let Some(id) = container("libpod-") {
            return found(Owner::Podman, &id);
        }
        if last.as_deref() == Some("docker") && container::is_id(part) {
            return found(Owner::Docker, &part[..12]);
        }
        if let Some(unit) = part.strip_suffix(".service") {
            // A user's own manager holds services in turn.
            if !unit.starts_with("user@") {
                return found(Owner::Systemd, unit);
            }
        } else if let Some(unit) = part.strip_suffix(".scope") {
            return (unit != "init").then(|| (path.clone(), Owner::Scope, unit.to_owned()));
        }
        last = Some(part.to_owned());
    }
    let name = last?;
    let manager = name.ends_with(".slice") || name.ends_with(".service");
    (!manager).then_some((path, Owner::Plain, name))
}

/// Namespace and name of each pod, by its number: the kubelet names the directories of their logs
/// `NAMESPACE_NAME_NUMBER`. Nothing where there is no kubelet.
fn pod_names(logs: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(logs).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            // Neither namespaces nor names have a `_`.
            let mut parts = name.split('_');
            let (namespace, pod, number) = (parts.next()?, parts.next()?, parts.next()?);
            let whole = parts.next().is_none() && !namespace.is_empty() && !pod.is_empty();
            whole.then(|| (number.to_owned(), format!("{namespace}/{pod}")))
        })
        .collect()
}

/// The uid in `pod<uid>` or `kubepods-burstable-pod<uid>.slice`; systemd has `_` for `-`.
fn pod_uid(part: &str) -> Option<String> {
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let (_, uid) = part
        .rsplit_once("pod")
        .filter(|(before, _)| before.is_empty() || before.ends_with('-'))?;
    let uid = uid.replace('_', "-");
    let plausible = uid.len() >= 32 && uid.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    plausible.then_some(uid)
}

fn program(proc_root: &Path, pid: u32) -> String {
    fs::read_to_string(proc_root.join(format!("{pid}/comm")))
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

/// Listening TCP sockets by inode, of each network namespace that was looked at: a container
/// usually has its own.
type Listening = BTreeMap<PathBuf, BTreeMap<u64, u16>>;

/// Ports of the listening TCP sockets of the namespace that a process is in, by inode.
fn listeners(proc_root: &Path, pid: u32) -> BTreeMap<u64, u16> {
    ["net/tcp", "net/tcp6"]
        .into_iter()
        .filter_map(|file| fs::read_to_string(proc_root.join(format!("{pid}/{file}"))).ok())
        .flat_map(|text| text.lines().filter_map(listener).collect::<Vec<_>>())
        .collect()
}

/// Inode and port of one line of /proc/net/tcp, when it listens.
fn listener(line: &str) -> Option<(u64, u16)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != LISTENING {
        return None;
    }
    let (_, port) = fields.get(1)?.rsplit_once(':')?;
    Some((
        fields.get(9)?.parse().ok()?,
        u16::from_str_radix(port, 16).ok()?,
    ))
}

fn ports_of(proc_root: &Path, pid: u32, listening: &mut Listening) -> BTreeSet<u16> {
    let Ok(entries) = fs::read_dir(proc_root.join(format!("{pid}/fd"))) else {
        return BTreeSet::new();
    };
    let Ok(namespace) = fs::read_link(proc_root.join(format!("{pid}/ns/net"))) else {
        return BTreeSet::new();
    };
    let ports = listening
        .entry(namespace)
        .or_insert_with(|| listeners(proc_root, pid));
    entries
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let inode = target
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?;
            ports.get(&inode.parse().ok()?).copied()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn groups_are_known_by_their_names() {
        let check = |group: &str, expected: Option<(&str, Owner, &str)>| {
            let found = owned(Path::new(group));
            let expected =
                expected.map(|(path, owner, name)| (PathBuf::from(path), owner, name.to_owned()));
            assert_eq!(found, expected, "{group}");
        };
        let service = "system.slice/nginx.service";
        check(service, Some((service, Owner::Systemd, "nginx")));
        check(
            "system.slice/nginx.service/worker",
            Some((service, Owner::Systemd, "nginx")),
        );
        check(
            "user.slice/user-0.slice/session-4.scope",
            Some((
                "user.slice/user-0.slice/session-4.scope",
                Owner::Scope,
                "session-4",
            )),
        );
        check(
            "user.slice/user-1.slice/user@1.service/app.slice/build.service",
            Some((
                "user.slice/user-1.slice/user@1.service/app.slice/build.service",
                Owner::Systemd,
                "build",
            )),
        );
        check("init.scope", None);
        check("", None);
        check("system.slice", None);
        check("build", Some(("build", Owner::Plain, "build")));
        for (group, owner) in [
            (format!("system.slice/docker-{ID}.scope"), Owner::Docker),
            (format!("docker/{ID}"), Owner::Docker),
            (format!("machine.slice/libpod-{ID}.scope"), Owner::Podman),
            (
                format!("system.slice/cri-containerd-{ID}.scope"),
                Owner::Containerd,
            ),
        ] {
            check(&group, Some((group.as_str(), owner, &ID[..12])));
        }
        let uid = "11112222-3333-4444-5555-666677778888";
        let tree = format!(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice",
            uid.replace('-', "_")
        );
        check(
            &format!("{tree}/cri-containerd-{ID}.scope"),
            Some((tree.as_str(), Owner::Pod(PodQuality::Burstable), uid)),
        );
        let plain = format!("kubepods/besteffort/pod{uid}");
        check(
            &format!("{plain}/{ID}"),
            Some((plain.as_str(), Owner::Pod(PodQuality::BestEffort), uid)),
        );
        let guaranteed = format!("kubepods/pod{uid}");
        check(
            &guaranteed,
            Some((guaranteed.as_str(), Owner::Pod(PodQuality::Guaranteed), uid)),
        );
    }

    #[test]
    fn what_may_be_a_container_is_known_by_its_id() {
        let check = |owner: Owner, group: String, expected: Option<&str>| {
            let found = Found {
                name: String::new(),
                place: Place::Group(PathBuf::from(&group)),
                owner,
                container: None,
                pids: Vec::new(),
                program: String::new(),
                cpus: 0.0,
                resident: Bytes(0),
                ports: Vec::new(),
                yields: false,
            };
            assert_eq!(container_id(&found), expected, "{group}");
        };
        let docker = format!("system.slice/docker-{ID}.scope");
        check(Owner::Docker, docker, Some(ID));
        check(
            Owner::Podman,
            format!("machine.slice/libpod-{ID}.scope"),
            Some(ID),
        );
        check(Owner::Docker, format!("docker/{ID}"), Some(ID));
        check(Owner::Plain, format!("build/{ID}"), Some(ID));
        check(Owner::Plain, "build".to_owned(), None);
        check(Owner::Plain, format!("{ID}0"), None);
        let containerd = format!("system.slice/cri-containerd-{ID}.scope");
        check(Owner::Containerd, containerd, None);
    }

    #[test]
    fn pods_are_named_by_the_directories_of_their_logs() {
        let logs = tempfile::tempdir().unwrap();
        let number = "11112222-3333-4444-5555-666677778888";
        for name in [
            format!("shop_front-7d9c5_{number}"),
            "kube-system_etcd-node1_0123456789abcdef0123456789abcdef".to_owned(),
            "lost+found".to_owned(),
            "a_b_c_d".to_owned(),
            "_x_y".to_owned(),
        ] {
            fs::create_dir(logs.path().join(name)).unwrap();
        }
        let names = pod_names(logs.path());
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(names[number], "shop/front-7d9c5");
        assert_eq!(
            names["0123456789abcdef0123456789abcdef"],
            "kube-system/etcd-node1"
        );
        assert!(pod_names(&logs.path().join("none")).is_empty());
    }

    #[test]
    fn interpreters_are_known_with_their_versions() {
        let check =
            |name: &str, expected: bool| assert_eq!(is_interpreter(name), expected, "{name}");
        check("python3.11", true);
        check("java", true);
        check("nginx", false);
        check("pythonista", false);
    }

    #[test]
    fn only_listening_sockets_have_a_port_to_tell() {
        let line = "  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        assert_eq!(listener(line), Some((4711, 8080)));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listener("  sl  local_address rem_address   st"), None);
    }

    #[test]
    fn nice_and_batch_programs_yield() {
        let stat = |nice: &str, policy: &str| {
            let mut fields = vec!["0"; 50];
            fields[0] = "S";
            fields[16] = nice;
            fields[38] = policy;
            format!("1 (a b) {}", fields.join(" "))
        };
        assert!(!yields(&stat("0", "0")));
        assert!(!yields(&stat("-5", "0")));
        assert!(yields(&stat("10", "0")));
        assert!(yields(&stat("0", "3")));
        assert!(yields(&stat("0", "5")));
    }

    #[test]
    fn this_host_is_read_without_a_service_manager_too() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let roots = Roots::default();
        let nobody = Addresses {
            systemd: String::new(),
            containers: "/nowhere/at/all".to_owned(),
        };
        // A program that is just being loaded has no memory yet and is left out.
        let deadline = Instant::now() + Duration::from_secs(20);
        let found = loop {
            let watch = Duration::from_millis(20);
            let found = discover(&roots, &nobody, Path::new("forebay"), watch).unwrap();
            let there = found.iter().any(|f| f.pids.contains(&child.id()));
            if there || Instant::now() > deadline {
                break found;
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            found.iter().any(|f| f.pids.contains(&child.id())),
            "{found:?}"
        );
        assert!(!found.iter().any(|f| f.pids.contains(&std::process::id())));
    }
}
