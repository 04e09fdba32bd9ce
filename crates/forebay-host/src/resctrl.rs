//! Shares of the last-level cache and of memory bandwidth: /sys/fs/resctrl.
//!
//! An app that is held to a share gets a group of its own there, `forebay.APP`; everybody else
//! stays in the root group with all of it. A share of the cache is a run of its ways, from the
//! lowest on, the same in each cache domain; groups overlap, so that shares of several batch apps
//! are one and the same part. The group is in the ledger as one that was made: removing it gives
//! its tasks back to the root group, which is all there is to put back.
//!
//! Source: Documentation/filesystems/resctrl.rst of the kernel.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use forebay_core::app::AppId;
use forebay_core::slice::{Knob, Setting};

use crate::apply::Refusal;
use crate::error::HostError;
use crate::files::{read_text, write_text};
use crate::host::LinuxHost;
use crate::ledger::Record;

const SCHEMATA: &str = "schemata";
const TASKS: &str = "tasks";

/// What this host can divide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resctrl {
    root: PathBuf,
    cache: Option<Cache>,
    bandwidth: Option<Bandwidth>,
}

/// The ways of the last-level cache.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cache {
    /// One bit for each way.
    ways: u64,
    /// The fewest that a group may have.
    ways_min: u32,
    domains: Vec<u32>,
}

/// The steps of memory bandwidth, in percent.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bandwidth {
    min: u32,
    step: u32,
    domains: Vec<u32>,
}

impl Resctrl {
    /// None where it is not mounted or divides nothing.
    pub(crate) fn open(sys_root: &Path) -> Option<Self> {
        let root = sys_root.join("fs/resctrl");
        let schemata = read_text(&root.join(SCHEMATA)).ok()?;
        let number = |file: &str| {
            read_text(&root.join("info").join(file))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        let ways = || {
            let text = read_text(&root.join("info/L3/cbm_mask")).ok()?;
            u64::from_str_radix(text.trim(), 16).ok()
        };
        let cache = ways()
            .zip(domains(&schemata, "L3"))
            .map(|(ways, domains)| Cache {
                ways,
                ways_min: number("L3/min_cbm_bits").unwrap_or(1),
                domains,
            });
        let bandwidth = number("MB/min_bandwidth").zip(domains(&schemata, "MB"));
        let bandwidth = bandwidth.map(|(min, domains)| Bandwidth {
            min,
            step: number("MB/bandwidth_gran")
                .filter(|step| *step > 0)
                .unwrap_or(1),
            domains,
        });
        (cache.is_some() || bandwidth.is_some()).then_some(Self {
            root,
            cache,
            bandwidth,
        })
    }

    /// What can be set here.
    pub(crate) fn knobs(&self) -> impl Iterator<Item = Knob> {
        let cache = self.cache.as_ref().map(|_| Knob::L3Cache);
        let bandwidth = self.bandwidth.as_ref().map(|_| Knob::MemoryBandwidth);
        cache.into_iter().chain(bandwidth)
    }

    pub(crate) fn dir(&self, app: &AppId) -> PathBuf {
        self.root.join(format!("forebay.{app}"))
    }

    /// The line of the schemata that a setting stands for.
    fn line(&self, setting: &Setting) -> Option<String> {
        match setting {
            Setting::L3Cache(percent) => {
                let cache = self.cache.as_ref()?;
                let all = cache.ways.count_ones();
                let share = (all * (*percent).min(100)).div_ceil(100);
                let ways = lowest(cache.ways, share.max(cache.ways_min));
                Some(schema("L3", &cache.domains, &format!("{ways:x}")))
            }
            Setting::MemoryBandwidth(percent) => {
                let Bandwidth { min, step, domains } = self.bandwidth.as_ref()?;
                let steps = (*percent).div_ceil(*step) * step;
                Some(schema("MB", domains, &steps.clamp(*min, 100).to_string()))
            }
            _ => None,
        }
    }
}

/// The domains of a resource: `L3:0=fffff;1=fffff` has 0 and 1.
fn domains(schemata: &str, resource: &str) -> Option<Vec<u32>> {
    let mut lines = schemata.lines().map(str::trim);
    let line = lines.find_map(|line| line.strip_prefix(resource)?.strip_prefix(':'))?;
    line.split(';')
        .map(|domain| domain.split_once('=')?.0.trim().parse().ok())
        .collect()
}

fn schema(resource: &str, domains: &[u32], value: &str) -> String {
    let each: Vec<String> = domains.iter().map(|id| format!("{id}={value}")).collect();
    format!("{resource}:{}", each.join(";"))
}

/// The lowest `count` of these bits.
fn lowest(bits: u64, count: u32) -> u64 {
    let mut left = bits;
    for _ in 0..count {
        left &= left.wrapping_sub(1);
    }
    bits ^ left
}

impl LinuxHost {
    /// Records that a group for this app's shares is about to be made.
    pub(crate) fn announce_shares(&mut self, app: &AppId) -> Result<(), Refusal> {
        let resctrl = self.resctrl.as_ref().ok_or(Refusal::Unsupported)?;
        let dir = resctrl.dir(app);
        let record = self.ledger.state().apps.get(app);
        if record.is_none_or(|record| !record.created.contains(&dir)) {
            let app = Some(app.clone());
            self.ledger.append(Record::Created { app, dir })?;
        }
        Ok(())
    }

    /// Holds an app to a share.
    pub(crate) fn set_share(&mut self, app: &AppId, setting: &Setting) -> Result<(), Refusal> {
        let resctrl = self.resctrl.as_ref().ok_or(Refusal::Unsupported)?;
        let line = resctrl.line(setting).ok_or(Refusal::Unsupported)?;
        let dir = resctrl.dir(app);
        if let Err(error) = fs::create_dir(&dir)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            // There are as many groups as the processor has classes of service.
            return Err(Refusal::Failed(
                HostError::file("make resctrl group", &dir, error).explain(),
            ));
        }
        if let Err(error) = write_text(&dir.join(SCHEMATA), &line) {
            let said = read_text(&resctrl.root.join("info/last_cmd_status")).unwrap_or_default();
            return Err(Refusal::Failed(format!(
                "{setting} of {app}: {}; the kernel says `{}`",
                error.explain(),
                said.trim()
            )));
        }
        self.follow_shares(app);
        Ok(())
    }

    /// Takes those threads of an app into its resctrl group that are in none yet: they are born
    /// where their parent is, so these are few.
    pub(crate) fn follow_shares(&self, app: &AppId) {
        let Some(resctrl) = &self.resctrl else { return };
        let tasks = resctrl.dir(app).join(TASKS);
        let Ok(text) = read_text(&tasks) else { return };
        let inside: BTreeSet<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        let root = read_text(&resctrl.root.join(TASKS)).unwrap_or_default();
        let free: BTreeSet<u32> = root.lines().filter_map(|line| line.parse().ok()).collect();
        for thread in self.threads_of(app).difference(&inside) {
            // Whoever is in a group of somebody else's stays there; a thread may be gone.
            if free.contains(thread)
                && let Err(error) = write_text(&tasks, &thread.to_string())
                && !error.is_gone()
            {
                tracing::debug!(%app, thread, reason = error.explain(), "not held to its share");
            }
        }
    }

    fn threads_of(&self, app: &AppId) -> BTreeSet<u32> {
        let group = self.entries.get(app).and_then(|entry| entry.group.as_ref());
        let dirs = group.map(crate::host::Group::all_dirs).unwrap_or_default();
        let lists = dirs.iter().find_map(|dir| {
            let v2 = read_text(&dir.join("cgroup.threads"));
            v2.or_else(|_| read_text(&dir.join(TASKS))).ok()
        });
        let lists = lists.unwrap_or_default();
        lists.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server with two sockets, 11 ways each, as its files look.
    fn server() -> (tempfile::TempDir, Resctrl) {
        let sys = tempfile::tempdir().unwrap();
        let root = sys.path().join("fs/resctrl");
        for (file, text) in [
            ("schemata", "    MB:0=100;1=100\n    L3:0=7ff;1=7ff\n"),
            ("info/L3/cbm_mask", "7ff\n"),
            ("info/L3/min_cbm_bits", "2\n"),
            ("info/MB/min_bandwidth", "10\n"),
            ("info/MB/bandwidth_gran", "10\n"),
        ] {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let resctrl = Resctrl::open(sys.path()).unwrap();
        (sys, resctrl)
    }

    #[test]
    fn shares_are_whole_ways_and_whole_steps() {
        let (_sys, resctrl) = server();
        let check = |setting: Setting, line: &str| {
            assert_eq!(resctrl.line(&setting).as_deref(), Some(line));
        };
        check(Setting::L3Cache(100), "L3:0=7ff;1=7ff");
        check(Setting::L3Cache(25), "L3:0=7;1=7");
        check(Setting::L3Cache(1), "L3:0=3;1=3");
        check(Setting::MemoryBandwidth(45), "MB:0=50;1=50");
        check(Setting::MemoryBandwidth(1), "MB:0=10;1=10");
        check(Setting::MemoryBandwidth(100), "MB:0=100;1=100");
        let knobs: Vec<Knob> = resctrl.knobs().collect();
        assert_eq!(knobs, [Knob::L3Cache, Knob::MemoryBandwidth]);
    }

    #[test]
    fn what_the_processor_lacks_is_not_offered() {
        let (sys, _) = server();
        let root = sys.path().join("fs/resctrl");
        fs::remove_dir_all(root.join("info/MB")).unwrap();
        let resctrl = Resctrl::open(sys.path()).unwrap();
        assert_eq!(resctrl.knobs().collect::<Vec<_>>(), [Knob::L3Cache]);
        assert_eq!(resctrl.line(&Setting::MemoryBandwidth(50)), None);
        fs::write(root.join("schemata"), "L3:garbage\n").unwrap();
        assert_eq!(Resctrl::open(sys.path()), None);
        assert_eq!(Resctrl::open(Path::new("/nowhere")), None);
    }
}
