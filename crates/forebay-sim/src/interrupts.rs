//! The interrupts of the simulated devices.

use std::collections::{BTreeMap, BTreeSet};

use forebay_core::idset::CpuSet;
use forebay_core::snapshot;

use crate::SimHost;

/// One simulated device each: a disk's, and one that was bound to the last CPU by hand.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    /// Where each was found, and is served now.
    lines: BTreeMap<u32, (CpuSet, CpuSet)>,
    kept_off: CpuSet,
    moved: BTreeSet<u32>,
    foreign: BTreeSet<u32>,
    yielded: BTreeSet<u32>,
}

impl Interrupts {
    pub(crate) fn new(cpus: CpuSet) -> Self {
        let last: CpuSet = cpus.iter().next_back().into_iter().collect();
        Self {
            lines: BTreeMap::from([(24, (cpus, cpus)), (25, (last, last))]),
            ..Self::default()
        }
    }

    /// Those that Forebay moved and that are not where they were found.
    pub(crate) fn left_behind(&self) -> Vec<String> {
        let moved = self.lines.iter().filter(|(number, (found, now))| {
            self.moved.contains(number) && !self.yielded.contains(number) && found != now
        });
        moved
            .map(|(number, (found, now))| format!("interrupt {number} on {now}, was on {found}"))
            .collect()
    }

    /// What is in force, and what others moved since the last look.
    pub(crate) fn look(&mut self) -> snapshot::Interrupts {
        snapshot::Interrupts {
            kept_off: Some(self.kept_off),
            foreign: std::mem::take(&mut self.foreign),
        }
    }
}

impl SimHost {
    /// Where each interrupt is served, by its number.
    #[must_use]
    pub fn interrupts(&self) -> BTreeMap<u32, CpuSet> {
        let lines = self.interrupts.lines.iter();
        lines.map(|(number, (_, now))| (*number, *now)).collect()
    }

    /// Somebody else moves an interrupt.
    pub fn move_interrupt(&mut self, number: u32, cpus: CpuSet) {
        let interrupts = &mut self.interrupts;
        if let Some((_, now)) = interrupts.lines.get_mut(&number) {
            *now = cpus;
            if interrupts.moved.contains(&number) {
                interrupts.foreign.insert(number);
                interrupts.yielded.insert(number);
            }
        }
    }

    pub(crate) fn keep_interrupts_off(&mut self, keep_off: CpuSet) -> Result<(), String> {
        let online = self.topology.cpu_set();
        if online.is_subset(&keep_off) {
            return Err("no other CPU is left to serve them".to_owned());
        }
        let interrupts = &mut self.interrupts;
        for (number, (found, now)) in &mut interrupts.lines {
            if interrupts.yielded.contains(number) {
                continue;
            }
            let left = found.difference(&keep_off);
            *now = if left.is_empty() {
                online.difference(&keep_off)
            } else {
                left
            };
            interrupts.moved.insert(*number);
        }
        interrupts.kept_off = keep_off;
        Ok(())
    }
}
