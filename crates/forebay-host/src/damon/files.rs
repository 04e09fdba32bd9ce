//! The files of DAMON: what they hold, whose they are, and how they are written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::HostError;
use crate::files::{read_text, write_text};
use crate::ledger::Spot;

/// Below the root of /sys.
pub(super) const DIR: &str = "kernel/mm/damon/admin/kdamonds";
pub(super) const COUNT: &str = "nr_kdamonds";
/// Between two looks at a page: it is touched in between or not.
pub(super) const SAMPLE_US: u64 = 100_000;
/// Of so many looks a sum is made.
pub(super) const AGGREGATION_US: u64 = 2_000_000;
/// Between two looks at which addresses are mapped. The odd end is what tells ours from others.
pub(super) const MARK: u64 = 10_000_019;
/// Regions of one app, at least and at most: what the kernel's thread costs goes by them.
pub(super) const REGIONS: [u64; 2] = [10, 200];
/// Aggregations since the last access after which memory is cold.
pub(super) const COLD_AGE: u64 = 15;
/// How long somebody else may be at DAMON's files, and how often that is looked at.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
pub(super) const POLL: Duration = Duration::from_millis(50);

/// The files of all kdamonds.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
}

/// Whose the kernel's DAMON is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    Nobody,
    /// So many kdamonds, all ours.
    Us(usize),
    /// What they have.
    Others(String),
}

impl Files {
    pub(super) fn below(sys: &Path) -> Self {
        Self { dir: sys.join(DIR) }
    }

    pub(super) fn count(&self) -> Spot {
        Spot {
            file: self.dir.join(COUNT),
            device: None,
        }
    }

    fn of(&self, slot: usize, file: &str) -> PathBuf {
        self.dir.join(slot.to_string()).join(file)
    }

    fn context(&self, slot: usize, file: &str) -> PathBuf {
        self.dir
            .join(slot.to_string())
            .join("contexts/0")
            .join(file)
    }

    pub(super) fn is_on(&self, slot: usize) -> Result<bool, HostError> {
        Ok(read_text(&self.of(slot, "state"))?.trim() == "on")
    }

    pub(super) fn is_marked(&self, slot: usize) -> bool {
        let update = self.context(slot, "monitoring_attrs/intervals/update_us");
        read_text(&update).is_ok_and(|text| number_of(&text) == Some(MARK))
    }

    /// Whether it was made and not yet set up.
    fn is_empty(&self, slot: usize) -> Result<bool, HostError> {
        let is_zero = |file: &Path| Ok(read_text(file)?.trim() == "0");
        let bare = is_zero(&self.of(slot, "contexts/nr_contexts"))?
            || is_zero(&self.context(slot, "targets/nr_targets"))?;
        Ok(bare && !self.is_on(slot)?)
    }

    /// Who has it now. `made` are the numbers of kdamonds that the ledger says we asked for;
    /// without a ledger, at least one has to be marked.
    pub(super) fn owner(&self, made: Option<&[String]>) -> Result<Owner, HostError> {
        let count = read_text(&self.count().file)?.trim().to_owned();
        let number = number(&count).and_then(|count| usize::try_from(count).ok());
        let others = |what: String| {
            Ok(Owner::Others(format!(
                "somebody else uses DAMON ({what} in {})",
                self.dir.display()
            )))
        };
        let Some(number) = number else {
            return others(format!("{COUNT} = {count}"));
        };
        if number == 0 {
            return Ok(Owner::Nobody);
        }
        let mut known = made.is_some_and(|made| made.contains(&count));
        if made.is_some() && !known {
            return others(format!("{COUNT} = {count}"));
        }
        for slot in 0..number {
            let marked = self.is_marked(slot);
            if !marked && !self.is_empty(slot)? {
                return others(format!("kdamond {slot}"));
            }
            known |= marked;
        }
        if !known {
            return others(format!("{COUNT} = {count}"));
        }
        Ok(Owner::Us(number))
    }

    pub(super) fn switch_off(&self, slot: usize) -> Result<(), HostError> {
        if !self.is_on(slot)? {
            return Ok(());
        }
        match write_patiently(&self.of(slot, "state"), "off") {
            // Its last process ended just now, and it with it.
            Err(error) if !self.is_on(slot)? => {
                tracing::debug!(slot, reason = error.explain(), "off by itself");
                Ok(())
            }
            other => other,
        }
    }

    /// Switches all off and removes them.
    pub(super) fn clear(&self, count: usize) -> Result<(), HostError> {
        for slot in 0..count {
            self.switch_off(slot)?;
        }
        write_patiently(&self.count().file, "0")
    }

    /// Has a kdamond that is off watch these processes. False where the kernel cannot.
    pub(super) fn begin(&self, slot: usize, pids: &BTreeSet<u32>) -> Result<bool, HostError> {
        let write = |file: PathBuf, value: &str| write_patiently(&file, value);
        // A context made anew holds nothing of what was there before.
        write(self.of(slot, "contexts/nr_contexts"), "0")?;
        write(self.of(slot, "contexts/nr_contexts"), "1")?;
        let set = |file: &str, value: u64| write(self.context(slot, file), &value.to_string());
        set("monitoring_attrs/intervals/update_us", MARK)?;
        match write(self.context(slot, "operations"), "vaddr") {
            Err(error) if error.errno() == Some(libc::EINVAL) => return Ok(false),
            other => other?,
        }
        set("monitoring_attrs/intervals/sample_us", SAMPLE_US)?;
        set("monitoring_attrs/intervals/aggr_us", AGGREGATION_US)?;
        let [least, most] = REGIONS;
        set("monitoring_attrs/nr_regions/min", least)?;
        set("monitoring_attrs/nr_regions/max", most)?;
        set("targets/nr_targets", pids.len() as u64)?;
        for (index, pid) in pids.iter().enumerate() {
            set(&format!("targets/{index}/pid_target"), u64::from(*pid))?;
        }
        set("schemes/nr_schemes", SCHEMES.len() as u64)?;
        for (index, [accesses, age]) in SCHEMES.iter().enumerate() {
            let scheme = |file: &str| format!("schemes/{index}/{file}");
            write(self.context(slot, &scheme("action")), "stat")?;
            let size = [0, u64::MAX];
            for (name, [least, most]) in [("sz", &size), ("nr_accesses", accesses), ("age", age)] {
                set(&scheme(&format!("access_pattern/{name}/min")), *least)?;
                set(&scheme(&format!("access_pattern/{name}/max")), *most)?;
            }
        }
        let on = write(self.of(slot, "state"), "on");
        on.map(|()| true).map_err(|error| match error.errno() {
            Some(libc::EBUSY) => {
                error.advise("the kernel itself uses DAMON: see `enabled` in /sys/module/damon_*")
            }
            _ => error,
        })
    }

    /// Bytes of address space that were touched lately. Waits for the kernel's thread.
    pub(super) fn warm(&self, slot: usize) -> Result<u64, HostError> {
        write_patiently(&self.of(slot, "state"), "update_schemes_tried_bytes")?;
        let mut sum = 0_u64;
        for index in 0..SCHEMES.len() {
            let file = format!("schemes/{index}/tried_regions/total_bytes");
            let file = self.context(slot, &file);
            let text = read_text(&file)?;
            let bytes = number_of(&text).ok_or_else(|| {
                HostError::invalid(
                    format!("read {}: `{}` is no number", file.display(), text.trim()),
                    "report this as a bug, with the kernel's version",
                )
            })?;
            sum = sum.saturating_add(bytes);
        }
        Ok(sum)
    }
}

/// Accesses in an aggregation and aggregations without change, each from and to: what was
/// touched just now, and what was touched lately.
pub(super) const SCHEMES: [[[u64; 2]; 2]; 2] = [
    [[1, u32::MAX as u64], [0, u32::MAX as u64]],
    [[0, 0], [0, COLD_AGE - 1]],
];

/// Writes a file of DAMON's: the kernel says EBUSY while somebody else is at any of them.
pub(super) fn write_patiently(file: &Path, text: &str) -> Result<(), HostError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match write_text(file, text) {
            Err(error) if error.errno() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(POLL);
            }
            other => return other,
        }
    }
}

pub(super) fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

pub(super) fn number_of(text: &str) -> Option<u64> {
    number(text.trim())
}
