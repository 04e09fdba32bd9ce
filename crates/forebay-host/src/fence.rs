//! The files by which an unprivileged process can stop an app's group and end it.
//!
//! The kernel asks for permission when a file is opened. Whoever gets these descriptors can
//! freeze this one group and kill its members, and nothing else.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use forebay_core::app::AppId;

use crate::Roots;
use crate::error::HostError;
use crate::freeze;
pub use crate::freeze::{Stop, Unclaimed};
use crate::groups;
use crate::mounts::{Controller, Hierarchies, Hierarchy, Version};
use crate::procs;

/// The process of a group that was there first: of a service, the one that its manager started.
#[must_use]
pub fn first_process(roots: &Roots, group: &Path) -> Option<u32> {
    let hierarchies = Hierarchies::read(&roots.proc).ok()?;
    let versions = [Version::V2, Version::V1].into_iter();
    let dirs = versions.filter_map(|version| Some(freezer(&hierarchies, version)?.dir(group)));
    let members = dirs.flat_map(|dir| groups::members(&dir));
    let processes = members.filter_map(|pid| procs::identify(&roots.proc, pid));
    let first = processes.min_by_key(|process| (process.start_time, process.pid))?;
    Some(first.pid)
}

fn freezer(hierarchies: &Hierarchies, version: Version) -> Option<&Hierarchy> {
    let (_, hierarchy) = match version {
        Version::V2 => hierarchies.unified().filter(|(_, h)| h.writable)?,
        Version::V1 => {
            let v1 = hierarchies.of(Controller::Freezer);
            v1.filter(|(_, h)| h.version == Version::V1)?
        }
    };
    Some(hierarchy)
}

/// The open files of one group.
#[derive(Debug)]
pub struct FenceFiles {
    /// Which freezer: `cgroup.freeze`, `cgroup.events`, `cgroup.procs` and `cgroup.kill` of v2, or
    /// `freezer.state` and `cgroup.procs` of v1.
    pub version: Version,
    /// In the order named above.
    pub files: Vec<OwnedFd>,
}

/// Opens the files that stop an app's group, which has to exist, and marks it as one that a front may
/// stop: whoever is found frozen in it is never let go on.
///
/// # Errors
/// When no hierarchy of this host can freeze it, or its files cannot be opened.
pub fn open(roots: &Roots, anchor: &Path, app: &AppId) -> Result<FenceFiles, HostError> {
    open_group(roots, &groups::of_app(anchor, app))
}

/// Opens the files that stop a group, Forebay's or not.
///
/// # Errors
/// When it is in no hierarchy of this host that freezes, or its files cannot be opened.
pub fn open_group(roots: &Roots, group: &Path) -> Result<FenceFiles, HostError> {
    let (version, dir) = standing(roots, group)?;
    let (changed, looked): (&[&str], &[&str]) = match version {
        Version::V2 => (&["cgroup.freeze"], &["cgroup.events", "cgroup.procs"]),
        Version::V1 => (&["freezer.state"], &["cgroup.procs"]),
    };
    let open = |name: &&str, options: &mut OpenOptions| {
        let file = dir.join(name);
        let opened = options.open(&file);
        opened.map_err(|error| HostError::file("open", &file, error))
    };
    let mut files: Vec<File> = Vec::new();
    for name in changed {
        files.push(open(name, OpenOptions::new().read(true).write(true))?);
    }
    for name in looked {
        files.push(open(name, OpenOptions::new().read(true))?);
    }
    if version == Version::V2 {
        files.push(open(&"cgroup.kill", OpenOptions::new().write(true))?);
    }
    freeze::mark(&dir)?;
    Ok(FenceFiles {
        version,
        files: files.into_iter().map(OwnedFd::from).collect(),
    })
}

/// Ends whoever stands in a group that was fenced, and lets the group go on; whether it stood.
///
/// For a front that may not: v1 has no file by which a group is killed, and an unprivileged process
/// cannot send signals to others' processes.
///
/// # Errors
/// When the group cannot be found, read or written.
pub fn end(roots: &Roots, group: &Path) -> Result<bool, HostError> {
    let (_, dir) = standing(roots, group)?;
    // Nobody is started in a group that stands: whoever is in it was fenced.
    if !freeze::is_frozen(&[&dir]) {
        return Ok(false);
    }
    groups::kill_standing(&dir)?;
    freeze::thaw_all(&[&dir])?;
    Ok(true)
}

/// Marks the group of an app that stands still and is given to another host: whoever lets the group go
/// from now on, the guardian and `forebay restore` too, ends its processes before. The guardian lets those of one
/// that is to stand ([`Unclaimed::Stands`]) not go: [`crate::guardian`] says why.
///
/// # Errors
/// When it has no group that freezes, or that cannot be marked.
pub fn give(
    roots: &Roots,
    anchor: &Path,
    app: &AppId,
    unclaimed: Unclaimed,
) -> Result<(), HostError> {
    let (_, dir) = standing(roots, &groups::of_app(anchor, app))?;
    freeze::mark_given(&dir, unclaimed)
}

/// Opens the file that stops the group of an app, for a process that may open nothing when it is to.
///
/// # Errors
/// When it has no group that freezes, or its file cannot be opened.
pub fn stop(roots: &Roots, anchor: &Path, app: &AppId) -> Result<Option<Stop>, HostError> {
    let (_, dir) = standing(roots, &groups::of_app(anchor, app))?;
    freeze::open(&dir)
}

/// Does what [`give`] does with one that ends, and stops whoever is in the group, for whoever is not the daemon.
///
/// # Errors
/// Like [`give`], or when the group cannot be frozen.
pub fn hold(roots: &Roots, anchor: &Path, app: &AppId) -> Result<(), HostError> {
    let (_, dir) = standing(roots, &groups::of_app(anchor, app))?;
    freeze::mark_given(&dir, Unclaimed::Ends)?;
    freeze::ask(&dir)
}

/// Takes back what [`give`] did. Nothing is to be done where the group is gone.
///
/// # Errors
/// When the mark cannot be taken away.
pub fn keep(roots: &Roots, anchor: &Path, app: &AppId) -> Result<(), HostError> {
    match standing(roots, &groups::of_app(anchor, app)) {
        Ok((_, dir)) => freeze::unmark_given(&dir),
        Err(_) => Ok(()),
    }
}

/// Whether the group of an app is marked by [`give`], and all that is in it stands still.
#[must_use]
pub fn is_given(roots: &Roots, anchor: &Path, app: &AppId) -> bool {
    let found = standing(roots, &groups::of_app(anchor, app));
    found.is_ok_and(|(_, dir)| freeze::is_given(&dir) && freeze::stands(&dir))
}

/// Whether any process is in the group of an app, frozen or not.
#[must_use]
pub fn is_populated(roots: &Roots, anchor: &Path, app: &AppId) -> bool {
    !members(roots, anchor, app).is_empty()
}

/// The processes in the group of an app, frozen or not.
#[must_use]
pub fn members(roots: &Roots, anchor: &Path, app: &AppId) -> Vec<u32> {
    let found = standing(roots, &groups::of_app(anchor, app));
    found.map_or_else(|_| Vec::new(), |(_, dir)| groups::members(&dir))
}

/// The directories of an app's group that are there, one in each hierarchy: whoever is to be in it enters all.
///
/// # Errors
/// When the kernel does not say where control groups are.
pub fn dirs(roots: &Roots, anchor: &Path, app: &AppId) -> Result<Vec<PathBuf>, HostError> {
    let hierarchies = Hierarchies::read(&roots.proc)?;
    let group = groups::of_app(anchor, app);
    let dirs = groups::placed(&hierarchies).map(|(_, hierarchy)| hierarchy.dir(&group));
    Ok(dirs.filter(|dir| dir.is_dir()).collect())
}

/// The directory by which a group is frozen.
fn standing(roots: &Roots, group: &Path) -> Result<(Version, PathBuf), HostError> {
    let hierarchies = Hierarchies::read(&roots.proc)?;
    let found = [Version::V2, Version::V1].into_iter().find_map(|version| {
        let dir = freezer(&hierarchies, version)?.dir(group);
        dir.is_dir().then_some((version, dir))
    });
    found.ok_or_else(|| {
        HostError::invalid(
            format!("freeze group {}", group.display()),
            "it is in no hierarchy of this host that freezes: mount cgroup v2, and make it there",
        )
    })
}
