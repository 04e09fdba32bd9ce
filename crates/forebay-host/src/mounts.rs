//! Which control group hierarchies this host has, from /proc/self/mountinfo.
//!
//! A controller lives in exactly one hierarchy: a v1 mount that lists it among its options,
//! or the v2 mount. On hybrid hosts the v2 mount has no controller of ours and is still worth
//! having: pressure and cpu.stat fill for whatever is placed in its groups.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::HostError;

/// A kernel controller that Forebay uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Controller {
    /// Weight, quota, burst, idle.
    Cpu,
    /// Accounting of processor time; part of `cpu` in v2.
    Cpuacct,
    /// CPUs and memory nodes.
    Cpuset,
    /// Memory.
    Memory,
    /// Block devices: `io` in v2, `blkio` in v1.
    Io,
    /// Process counts.
    Pids,
    /// Stopping tasks, a part of every v2 group.
    Freezer,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Cpu,
        Self::Cpuacct,
        Self::Cpuset,
        Self::Memory,
        Self::Io,
        Self::Pids,
        Self::Freezer,
    ];

    /// Its name in v2, which is also how it is switched on in cgroup.subtree_control.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Io => "io",
            Self::Pids => "pids",
            Self::Freezer => "freezer",
        }
    }

    const fn name_v1(self) -> &'static str {
        match self {
            Self::Io => "blkio",
            other => other.name(),
        }
    }
}

/// Which interface a hierarchy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// One of several hierarchies with some controllers each.
    V1,
    /// The unified hierarchy.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Which group is visible at the mount point; `/` except in some containers.
    pub mounted_root: PathBuf,
    /// Which interface it speaks.
    pub version: Version,
    /// The controllers of ours that it has.
    pub controllers: Vec<Controller>,
    /// Whether the mount can be written to.
    pub writable: bool,
}

impl Hierarchy {
    /// The directory of a group that is named relative to the hierarchy's root.
    #[must_use]
    pub fn dir(&self, group: &Path) -> PathBuf {
        let relative = group.strip_prefix("/").unwrap_or(group);
        self.mount.join(relative)
    }

    /// The directory of a group as /proc/PID/cgroup names it; none when it lies outside
    /// what is mounted.
    #[must_use]
    pub fn dir_of_member(&self, path: &Path) -> Option<PathBuf> {
        let relative = path.strip_prefix(&self.mounted_root).ok()?;
        let outside = relative
            .components()
            .any(|part| part == std::path::Component::ParentDir);
        (!outside).then(|| self.dir(relative))
    }
}

/// All hierarchies that matter to Forebay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    list: Vec<Hierarchy>,
}

impl Hierarchies {
    /// Reads mountinfo, and cgroup.controllers of the v2 mount.
    ///
    /// # Errors
    /// When mountinfo cannot be read, or no hierarchy with a controller is mounted.
    pub fn read(proc_root: &Path) -> Result<Self, HostError> {
        let path = proc_root.join("self/mountinfo");
        let text = fs::read_to_string(&path).map_err(|e| HostError::file("read", &path, e))?;
        let found = Self::parse(&text, |mount| {
            fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()
        });
        if found.list.iter().all(|h| h.controllers.is_empty()) {
            return Err(HostError::invalid(
                format!("find control groups in {}", path.display()),
                "mount cgroup2 at /sys/fs/cgroup (mount -t cgroup2 none /sys/fs/cgroup)",
            ));
        }
        Ok(found)
    }

    /// Parses mountinfo. `controllers_v2` gives the text of cgroup.controllers of a v2 mount.
    #[must_use]
    pub fn parse(mountinfo: &str, controllers_v2: impl Fn(&Path) -> String) -> Self {
        let mut list: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some(mut hierarchy) = parse_line(line) else {
                continue;
            };
            if hierarchy.version == Version::V2 {
                if list.iter().any(|h| h.version == Version::V2) {
                    continue;
                }
                hierarchy.controllers = parse_controllers_v2(&controllers_v2(&hierarchy.mount));
            }
            // A hierarchy may be mounted more than once; the first place will do.
            let taken = |c: &Controller| list.iter().any(|h| h.controllers.contains(c));
            hierarchy.controllers.retain(|c| !taken(c));
            if hierarchy.version == Version::V2 || !hierarchy.controllers.is_empty() {
                list.push(hierarchy);
            }
        }
        // v2 has no cpuacct: its cpu.stat is there in every group.
        Self { list }
    }

    /// The same with other mount points.
    #[cfg(test)]
    pub(crate) fn at(mut self, place: impl Fn(&Path) -> PathBuf) -> Self {
        for hierarchy in &mut self.list {
            hierarchy.mount = place(&hierarchy.mount);
        }
        self
    }

    /// All hierarchies.
    #[must_use]
    pub fn list(&self) -> &[Hierarchy] {
        &self.list
    }

    /// The hierarchy of a controller and its place in the list.
    #[must_use]
    pub fn of(&self, controller: Controller) -> Option<(usize, &Hierarchy)> {
        self.list
            .iter()
            .enumerate()
            .find(|(_, h)| h.controllers.contains(&controller))
    }

    /// The v2 hierarchy, with or without controllers, and its place in the list.
    #[must_use]
    pub fn unified(&self) -> Option<(usize, &Hierarchy)> {
        self.list
            .iter()
            .enumerate()
            .find(|(_, h)| h.version == Version::V2)
    }

    /// The groups of a process from the text of its /proc/PID/cgroup: one directory for each
    /// hierarchy of the list, in its order; none where it lies outside what is mounted.
    #[must_use]
    pub fn membership(&self, proc_cgroup: &str) -> Vec<Option<PathBuf>> {
        let mut by_name: BTreeMap<&str, &Path> = BTreeMap::new();
        for line in proc_cgroup.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(_), Some(names), Some(path)) = (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            for name in names.split(',') {
                by_name.insert(name, Path::new(path));
            }
        }
        self.list
            .iter()
            .map(|hierarchy| {
                let name = match hierarchy.version {
                    Version::V2 => "",
                    Version::V1 => hierarchy.controllers.first()?.name_v1(),
                };
                hierarchy.dir_of_member(by_name.get(name)?)
            })
            .collect()
    }
}

/// One line of mountinfo, when it is a control group mount:
/// `31 23 0:28 ROOT MOUNTPOINT OPTIONS [TAGS...] - TYPE SOURCE SUPER_OPTIONS`.
fn parse_line(line: &str) -> Option<Hierarchy> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, mount, options) = (left.next()?, left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (kind, _, super_options) = (right.next()?, right.next()?, right.next()?);
    let version = match kind {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    let controllers = match version {
        Version::V2 => Vec::new(),
        Version::V1 => Controller::ALL
            .into_iter()
            .filter(|c| super_options.split(',').any(|o| o == c.name_v1()))
            .collect(),
    };
    let writable = |options: &str| options.split(',').any(|o| o == "rw");
    Some(Hierarchy {
        mount: PathBuf::from(unescape(mount)),
        mounted_root: PathBuf::from(unescape(root)),
        version,
        controllers,
        writable: writable(options) && writable(super_options),
    })
}

fn parse_controllers_v2(text: &str) -> Vec<Controller> {
    Controller::ALL
        .into_iter()
        .filter(|c| text.split_whitespace().any(|name| name == c.name()))
        .collect()
}

/// mountinfo writes blanks and backslashes in octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{self, DEBIAN_11_V1, DEBIAN_12, DEBIAN_13, HYBRID};
    use crate::groups;

    #[test]
    fn each_controller_has_its_place() {
        use Controller::{Cpu, Cpuacct, Cpuset, Freezer, Io, Memory, Pids};
        let check = |fixture: &str, places: &[(Controller, Option<&str>)]| {
            let hierarchies = fixtures::hierarchies(fixture);
            for (controller, expected) in places {
                let place = hierarchies
                    .of(*controller)
                    .map(|(_, h)| format!("{:?} {}", h.version, h.mount.display()));
                let expected = expected.map(str::to_owned);
                assert_eq!(place, expected, "{controller:?} in {hierarchies:?}");
            }
            assert!(hierarchies.list().iter().all(|h| h.writable));
        };
        let pure = Some("V2 /sys/fs/cgroup");
        for fixture in [DEBIAN_12, DEBIAN_13] {
            let all = [Cpu, Cpuset, Memory, Io, Pids].map(|controller| (controller, pure));
            check(fixture, &all);
            check(fixture, &[(Cpuacct, None), (Freezer, None)]);
        }
        check(
            HYBRID,
            &[
                (Cpu, Some("V1 /sys/fs/cgroup/cpu")),
                (Cpuacct, Some("V1 /sys/fs/cgroup/cpuacct")),
                (Cpuset, Some("V1 /sys/fs/cgroup/cpuset")),
                (Memory, Some("V1 /sys/fs/cgroup/memory")),
                (Io, Some("V1 /sys/fs/cgroup/blkio")),
                (Pids, Some("V1 /sys/fs/cgroup/pids")),
                (Freezer, Some("V1 /sys/fs/cgroup/freezer")),
            ],
        );
        check(
            DEBIAN_11_V1,
            &[
                (Cpu, Some("V1 /sys/fs/cgroup/cpu,cpuacct")),
                (Cpuacct, Some("V1 /sys/fs/cgroup/cpu,cpuacct")),
                (Memory, Some("V1 /sys/fs/cgroup/memory")),
                (Freezer, Some("V1 /sys/fs/cgroup/freezer")),
            ],
        );
    }

    #[test]
    fn the_unified_mount_counts_without_controllers() {
        let hybrid = fixtures::hierarchies(HYBRID);
        let (_, unified) = hybrid.unified().unwrap();
        assert_eq!(unified.mount, Path::new("/sys/fs/cgroup/unified"));
        assert!(unified.controllers.is_empty());
        assert!(fixtures::hierarchies(DEBIAN_11_V1).unified().is_none());
    }

    #[test]
    fn groups_of_ours_are_in_one_freezer() {
        let check = |fixture: &str, expected: bool| {
            let hierarchies = fixtures::hierarchies(fixture);
            let (freezer, _) = hierarchies.of(Controller::Freezer).unwrap();
            let mut placed = groups::placed(&hierarchies);
            assert_eq!(placed.any(|(index, _)| index == freezer), expected);
        };
        check(HYBRID, false);
        check(DEBIAN_11_V1, true);
    }

    #[test]
    fn membership_follows_the_list() {
        for fixture in [DEBIAN_12, DEBIAN_13, HYBRID, DEBIAN_11_V1] {
            let hierarchies = fixtures::hierarchies(fixture);
            let text = fixtures::text(fixture, Path::new("/proc/self/cgroup")).unwrap();
            let expected: Vec<Option<PathBuf>> = hierarchies
                .list()
                .iter()
                .map(|hierarchy| Some(hierarchy.mount.join("fixture.web")))
                .collect();
            assert_eq!(hierarchies.membership(text), expected);
        }
    }

    #[test]
    fn a_group_outside_the_mount_is_not_reachable() {
        let check = |mounted_root: &str, member: &str, expected: Option<&str>| {
            let hierarchy = Hierarchy {
                mount: PathBuf::from("/cg"),
                mounted_root: PathBuf::from(mounted_root),
                version: Version::V2,
                controllers: vec![],
                writable: true,
            };
            assert_eq!(
                hierarchy.dir_of_member(Path::new(member)).as_deref(),
                expected.map(Path::new)
            );
        };
        check("/", "/a", Some("/cg/a"));
        check("/docker/x", "/docker/x/a", Some("/cg/a"));
        check("/docker/x", "/system.slice", None);
        check("/", "/../other", None);
    }
}
