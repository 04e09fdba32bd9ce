//! Control groups: made, filled, emptied and removed, in every hierarchy at once.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_core::app::AppId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::{ErrorKind, HostError};
use crate::files::{read_text, write_text};
use crate::freeze;
use crate::mounts::{Controller, Hierarchies, Hierarchy, Version};

/// The links of a directory without directories in it: its name, and its own ".".
const LINKS_OF_LEAF: u64 = 2;
/// How deep groups below ours are looked into.
const DEPTH_MAX: usize = 16;
/// Rounds of signals to a group whose members fork while they are being killed.
const KILL_ROUNDS_MAX: usize = 32;
/// How often an emptied group is tried again while its last members leave.
const REMOVE_POLL: Duration = Duration::from_millis(2);

/// The hierarchies that matter to an app's processes, by their place in the list: those
/// with a controller of ours, and v2 for its pressure and accounting.
pub(crate) fn used(hierarchies: &Hierarchies) -> impl Iterator<Item = (usize, &Hierarchy)> {
    hierarchies
        .list()
        .iter()
        .enumerate()
        .filter(|(_, h)| h.writable && (h.version == Version::V2 || !h.controllers.is_empty()))
}

/// The group of one app: `forebay.web` beside the anchor `forebay`, not inside it. A weight, and
/// the idle class, count among siblings only; inside a common parent, batch would take the
/// weight of the critical apps beside it against the rest of the host.
#[must_use]
pub fn of_app(anchor: &Path, app: &AppId) -> PathBuf {
    let mut name = anchor.as_os_str().to_owned();
    name.push(".");
    name.push(app.as_str());
    PathBuf::from(name)
}

/// Whether a directory is the anchor, an app's group, or below one of these.
pub(crate) fn is_ours(anchor: &Path, dir: &Path) -> bool {
    let (Some(place), Some(name)) = (anchor.parent(), anchor.file_name()) else {
        return false;
    };
    let Ok(Some(first)) = dir
        .strip_prefix(place)
        .map(|inner| inner.components().next())
    else {
        return false;
    };
    let first = first.as_os_str().as_encoded_bytes();
    first
        .strip_prefix(name.as_encoded_bytes())
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
}

/// The hierarchies in which groups of ours are made: v1's freezer is one only where v2 does
/// not freeze.
pub(crate) fn placed(hierarchies: &Hierarchies) -> impl Iterator<Item = (usize, &Hierarchy)> {
    let v2_freezes = hierarchies.unified().is_some_and(|(_, h)| h.writable);
    used(hierarchies).filter(move |(_, h)| !(v2_freezes && h.controllers == [Controller::Freezer]))
}

/// Makes one directory ready for members. It may exist already.
pub(crate) fn make(hierarchy: &Hierarchy, dir: &Path) -> Result<(), HostError> {
    match fs::create_dir(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(HostError::file("make control group", dir, error)),
    }
    if is_v1_cpuset(hierarchy) {
        // A new v1 cpuset is empty and takes no member before both are set.
        let parent = dir.parent().unwrap_or(dir);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if read_text(&dir.join(file))?.trim().is_empty() {
                write_text(&dir.join(file), read_text(&parent.join(file))?.trim())?;
            }
        }
    }
    Ok(())
}

/// Gives a v1 cpuset of ours all that its parent has; v2 does so by itself.
pub(crate) fn follow_parent(hierarchy: &Hierarchy, dir: &Path) -> Result<(), HostError> {
    if !is_v1_cpuset(hierarchy) {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(dir);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        write_text(&dir.join(file), read_text(&parent.join(file))?.trim())?;
    }
    Ok(())
}

fn is_v1_cpuset(hierarchy: &Hierarchy) -> bool {
    hierarchy.version == Version::V1 && hierarchy.controllers.contains(&Controller::Cpuset)
}

/// The controllers that are off for the children of a v2 group and could be on.
pub(crate) fn disabled_controllers(hierarchy: &Hierarchy, dir: &Path) -> Vec<String> {
    if hierarchy.version == Version::V1 {
        return Vec::new();
    }
    let words = |file: &str| -> BTreeSet<String> {
        read_text(&dir.join(file))
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let available = words("cgroup.controllers");
    let enabled = words("cgroup.subtree_control");
    hierarchy
        .controllers
        .iter()
        .map(|controller| controller.name().to_owned())
        .filter(|name| available.contains(name) && !enabled.contains(name))
        .collect()
}

/// Switches controllers on for the children of a v2 group, each by itself: one that is
/// refused does not keep the others off.
pub(crate) fn enable(dir: &Path, controllers: &[String]) {
    let file = dir.join("cgroup.subtree_control");
    for controller in controllers {
        if let Err(error) = write_text(&file, &format!("+{controller}")) {
            tracing::warn!(controller, reason = error.explain(), "controller stays off");
        }
    }
}

/// Switches controllers off again, unless somebody else has groups there by now: they may
/// rely on them.
pub(crate) fn disable(dir: &Path, controllers: &[String]) -> Result<(), HostError> {
    if !children(dir).is_empty() {
        return Err(HostError::invalid(
            format!(
                "switch {} off below {}: it has other groups",
                controllers.join(", "),
                dir.display()
            ),
            "they stay on, which does no harm",
        ));
    }
    for controller in controllers {
        match write_text(
            &dir.join("cgroup.subtree_control"),
            &format!("-{controller}"),
        ) {
            Err(error) if error.is_gone() => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// The processes in one group, and those in groups below it.
pub(crate) fn members(dir: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    walk(dir, 0, &mut |dir| found.extend(direct_members(dir)));
    found
}

/// The processes in one group itself.
pub(crate) fn direct_members(dir: &Path) -> Vec<u32> {
    read_text(&dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        // 0 stands for a process of another pid namespace: not ours to move.
        .filter(|pid| *pid != 0)
        .collect()
}

/// Moves a process. One that is gone needs no move.
pub(crate) fn attach(dir: &Path, pid: u32) -> Result<(), HostError> {
    match write_text(&dir.join("cgroup.procs"), &pid.to_string()) {
        Err(error) if error.errno() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// Removes a group and those that its members made below it. Tries until `deadline` while
/// members leave; `evict` is called for whoever is still inside.
pub(crate) fn remove(
    dir: &Path,
    deadline: Instant,
    mut evict: impl FnMut(u32),
) -> Result<(), HostError> {
    loop {
        members(dir).into_iter().for_each(&mut evict);
        let mut last = Ok(());
        walk(dir, 0, &mut |dir| {
            last = match fs::remove_dir(dir) {
                Ok(()) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(HostError::file("remove control group", dir, error)),
            };
        });
        match last {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Denied => return Err(error),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(REMOVE_POLL),
        }
    }
}

/// Ends every process in the group, as bluntly as the kernel can. In bounded time: whoever
/// is left then has the signal and is on the way out, or forks faster than we count, and the
/// caller sees the members and tries again. Nobody stays frozen.
pub(crate) fn kill(dirs: &[&Path]) -> Result<(), HostError> {
    for dir in dirs {
        let file = dir.join("cgroup.kill");
        if file.exists() {
            write_text(&file, "1")?;
        }
    }
    for round in 0..KILL_ROUNDS_MAX {
        let mut pids: Vec<u32> = dirs.iter().flat_map(|dir| members(dir)).collect();
        pids.sort_unstable();
        pids.dedup();
        let sent = pids
            .iter()
            .filter(|pid| signal(**pid, Signal::KILL))
            .count();
        if round == 0 {
            // The frozen of v1 die only once they may go on; they have the signal by now.
            freeze::thaw_all(dirs)?;
        }
        if sent == 0 {
            break;
        }
    }
    Ok(())
}

/// Kills everybody in a frozen group and below it, without letting it go: who has the signal executes
/// nothing any more once it is.
pub(crate) fn kill_standing(dir: &Path) -> Result<(), HostError> {
    let file = dir.join("cgroup.kill");
    if file.exists() {
        return write_text(&file, "1");
    }
    // Nobody forks who is frozen.
    walk(dir, 0, &mut |dir| {
        for pid in members(dir) {
            signal(pid, Signal::KILL);
        }
    });
    Ok(())
}

/// Sends a signal through a pidfd. False when the process is gone, or already dying.
pub(crate) fn signal(pid: u32, signal: Signal) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    pidfd_open(pid, PidfdFlags::empty()).is_ok_and(|fd| pidfd_send_signal(fd, signal).is_ok())
}

/// The groups directly below one.
pub(crate) fn children(dir: &Path) -> Vec<PathBuf> {
    // Most groups have none, and a directory whose ".." nobody has is quicker asked than listed.
    if fs::symlink_metadata(dir).is_ok_and(|metadata| metadata.nlink() == LINKS_OF_LEAF) {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Visits a group and all below it, deepest first.
pub(crate) fn walk(dir: &Path, depth: usize, visit: &mut impl FnMut(&Path)) {
    if depth < DEPTH_MAX {
        for child in children(dir) {
            walk(&child, depth + 1, visit);
        }
    }
    visit(dir);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn ending_a_group_without_cgroup_kill_is_bounded() {
        // A list that goes on naming a process that was ended, as one that never gets to die
        // would make the kernel's.
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        fs::write(dir.path().join("cgroup.procs"), format!("{}\n", child.id())).unwrap();
        kill(&[dir.path()]).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
