//! Partitions of CPUs: cpuset.cpus.partition of cgroup v2.
//!
//! A partition takes its CPUs from everybody else on the host, the daemon included, so they have
//! to be counted back in when the daemon asks which CPUs there are.

use std::path::{Path, PathBuf};

use forebay_core::app::{AppId, Partition};
use forebay_core::idset::CpuSet;
use forebay_core::slice::{Knob, Setting};

use crate::apply::Refusal;
use crate::files::{read_text, write_text};
use crate::groups;
use crate::host::LinuxHost;
use crate::ledger::State;
use crate::mounts::Hierarchies;
use crate::restore::Report;

/// Whether a group has its CPUs for itself.
pub(crate) const FILE: &str = "cpuset.cpus.partition";

/// The CPUs that groups in the ledger take from everybody else.
pub(crate) fn taken(ledger: &State) -> CpuSet {
    let groups = ledger.apps.values().flat_map(|record| {
        let originals = record.originals.iter();
        let bound = originals.filter(|(spot, _)| spot.file.ends_with(FILE));
        let bound = bound.filter_map(|(spot, _)| spot.file.parent().map(Path::to_path_buf));
        record.created.iter().cloned().chain(bound)
    });
    all_taken(groups)
}

/// The CPUs that groups named after ours take, for those who have no ledger; without a group,
/// those that any group at the top takes.
pub(crate) fn taken_beside(hierarchies: &Hierarchies, group: Option<&Path>) -> CpuSet {
    let ours = hierarchies.list().iter().flat_map(|hierarchy| {
        let anchor = group.map(|group| hierarchy.dir(group));
        let place = match &anchor {
            Some(anchor) => anchor.parent(),
            None => Some(hierarchy.mount.as_path()),
        };
        let beside = place.map(groups::children).unwrap_or_default();
        beside.into_iter().filter(move |dir| {
            let anchor = anchor.as_ref();
            anchor.is_none_or(|anchor| groups::is_ours(anchor, dir))
        })
    });
    all_taken(ours)
}

fn all_taken(groups: impl Iterator<Item = PathBuf>) -> CpuSet {
    groups
        .filter_map(|dir| {
            let kind = read_text(&dir.join(FILE)).ok()?;
            let valid = matches!(kind.trim(), "root" | "isolated");
            let cpus = read_text(&dir.join("cpuset.cpus.effective")).ok()?;
            valid.then(|| cpus.trim().parse().ok())?
        })
        .fold(CpuSet::EMPTY, |all, cpus| all.union(&cpus))
}

impl LinuxHost {
    /// Makes an app's CPUs a partition.
    ///
    /// The kernel takes every partition and says afterwards what is wrong with it. One that is
    /// wrong is taken back, so that the app has plain CPUs and not half of a partition.
    pub(crate) fn make_partition(&mut self, app: &AppId, wanted: Partition) -> Result<(), Refusal> {
        self.write_knob(app, &Setting::CpusPartition(wanted))?;
        let file = self.entries.get(app).and_then(|entry| {
            let way = self.ways.of(Knob::CpusPartition)?;
            let dir = entry.group.as_ref()?.dir(way.hierarchy)?;
            Some(dir.join(way.files.first()?))
        });
        let said = read_text(&file.ok_or(Refusal::Unsupported)?)?;
        let said = said.trim();
        if said == wanted.to_string() {
            return Ok(());
        }
        self.write_knob(app, &Setting::CpusPartition(Partition::Member))?;
        Err(Refusal::Failed(format!(
            "make the CPUs of {app} a partition: the kernel says `{said}`; they stay a plain set \
             of CPUs, which the rest of the host may use too, and it is tried again: let no \
             other control group name these CPUs in cpuset.cpus"
        )))
    }
}

/// Gives the CPUs of groups of ours back to everybody before their members leave, who would
/// otherwise come to where these CPUs are missing.
pub(crate) fn dissolve(dirs: &[&Path], report: &mut Report) {
    for dir in dirs {
        let file = dir.join(FILE);
        let done = read_text(&file).and_then(|text| match text.trim() {
            "member" => Ok(()),
            _ => write_text(&file, "member"),
        });
        match done {
            // v1 has none, and a group may be gone.
            Err(error) if !error.is_gone() => report.failed.push(error.explain()),
            Ok(()) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_valid_partitions_take_cpus() {
        let root = tempfile::tempdir().unwrap();
        let group = |name: &str, kind: &str, cpus: &str| {
            let dir = root.path().join(name);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join(FILE), format!("{kind}\n")).unwrap();
            fs::write(dir.join("cpuset.cpus.effective"), format!("{cpus}\n")).unwrap();
            dir
        };
        let dirs = [
            group("web", "root", "2-3"),
            group("db", "isolated", "5"),
            group("job", "member", "0-1"),
            group(
                "lost",
                "root invalid (Cpu list in cpuset.cpus not exclusive)",
                "7",
            ),
            root.path().join("gone"),
        ];
        assert_eq!(all_taken(dirs.into_iter()), "2-3,5".parse().unwrap());
    }
}
