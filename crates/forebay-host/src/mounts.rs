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

    fn read(fixture: &str, v2: &str) -> Hierarchies {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(fixture)
            .join("mountinfo");
        Hierarchies::parse(&fs::read_to_string(path).unwrap(), |_| v2.to_owned())
    }

    fn place(hierarchies: &Hierarchies, controller: Controller) -> Option<String> {
        hierarchies
            .of(controller)
            .map(|(_, h)| format!("{:?} {}", h.version, h.mount.display()))
    }

    #[test]
    fn each_controller_has_its_place() {
        let check = |fixture: &str, v2: &str, controller: Controller, expected: Option<&str>| {
            assert_eq!(
                place(&read(fixture, v2), controller).as_deref(),
                expected,
                "{fixture} {controller:?}"
            );
        };
        let pure = "cpuset cpu io memory hugetlb pids rdma misc";
        check("pure-v2", pure, Controller::Cpu, Some("V2 /sys/fs/cgroup"));
        check("pure-v2", pure, Controller::Io, Some("V2 /sys/fs/cgroup"));
        check("pure-v2", pure, Controller::Cpuacct, None);
        check(
            "hybrid-split",
            "hugetlb",
            Controller::Cpu,
            Some("V1 /sys/fs/cgroup/cpu"),
        );
        check(
            "hybrid-split",
            "hugetlb",
            Controller::Cpuacct,
            Some("V1 /sys/fs/cgroup/cpuacct"),
        );
        check(
            "hybrid-split",
            "hugetlb",
            Controller::Io,
            Some("V1 /sys/fs/cgroup/blkio"),
        );
        check(
            "v1-comounted",
            "",
            Controller::Cpu,
            Some("V1 /sys/fs/cgroup/cpu,cpuacct"),
        );
        check(
            "v1-comounted",
            "",
            Controller::Cpuacct,
            Some("V1 /sys/fs/cgroup/cpu,cpuacct"),
        );
    }

    #[test]
    fn the_unified_mount_counts_without_controllers() {
        let hybrid = read("hybrid-split", "hugetlb");
        let (_, unified) = hybrid.unified().unwrap();
        assert_eq!(unified.mount, Path::new("/sys/fs/cgroup/unified"));
        assert!(unified.controllers.is_empty());
        assert!(read("v1-comounted", "").unified().is_none());
    }

    #[test]
    fn membership_follows_the_list() {
        let hybrid = read("hybrid-split", "hugetlb");
        let text = "8:pids:/\n6:freezer:/\n4:memory:/a/b\n3:cpuset:/\n2:cpuacct:/\n1:cpu:/x\n7:blkio:/\n0::/u\n";
        let dirs: Vec<_> = hybrid
            .membership(text)
            .into_iter()
            .map(|dir| dir.unwrap().display().to_string())
            .collect();
        assert!(dirs.contains(&"/sys/fs/cgroup/memory/a/b".to_owned()));
        assert!(dirs.contains(&"/sys/fs/cgroup/cpu/x".to_owned()));
        assert!(dirs.contains(&"/sys/fs/cgroup/unified/u".to_owned()));
        assert_eq!(dirs.len(), hybrid.list().len());
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
