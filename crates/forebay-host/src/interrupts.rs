//! Keeping the interrupts of devices off CPUs: /proc/irq/*/smp_affinity_list.
//!
//! Each interrupt keeps what it had, less the CPUs to be left alone; one that had only those
//! goes to all others. The kernel binds some interrupts itself (one per queue and CPU) and
//! refuses to move them: they stay. irqbalance moves interrupts by its own lights; what somebody
//! moved after Forebay did is left to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use forebay_core::idset::CpuSet;
use forebay_core::snapshot;

use crate::apply::Refusal;
use crate::error::HostError;
use crate::files::{read_text, write_text};
use crate::host::LinuxHost;
use crate::ledger::{Record, Spot, State};

const FILE: &str = "smp_affinity_list";

/// What is known of the interrupts of this host.
#[derive(Debug)]
pub(crate) struct Interrupts {
    dir: PathBuf,
    kept_off: Option<CpuSet>,
    /// What each file held right after we wrote it.
    last: BTreeMap<u32, String>,
    /// Those that somebody else moved since.
    yielded: BTreeSet<u32>,
}

impl Interrupts {
    /// None where they cannot be moved.
    pub(crate) fn open(proc_root: &Path, ledger: &State) -> Option<Self> {
        let dir = proc_root.join("irq");
        let probe = dir.join("default_smp_affinity");
        let writable = rustix::fs::access(&probe, rustix::fs::Access::WRITE_OK).is_ok();
        let touched = ledger.host.iter().any(|(spot, _)| number(spot).is_some());
        writable.then(|| Self {
            dir,
            kept_off: (!touched).then_some(CpuSet::EMPTY),
            last: BTreeMap::new(),
            yielded: BTreeSet::new(),
        })
    }

    /// What is in force, and who else moved something since the last look. `thorough` looks at
    /// each interrupt.
    pub(crate) fn look(&mut self, thorough: bool) -> snapshot::Interrupts {
        let mut foreign = BTreeSet::new();
        if thorough {
            for (number, ours) in &self.last {
                if read_text(&self.file(*number)).is_ok_and(|now| now.trim() != ours) {
                    foreign.insert(*number);
                }
            }
            for number in &foreign {
                self.last.remove(number);
                self.yielded.insert(*number);
            }
        }
        snapshot::Interrupts {
            kept_off: self.kept_off,
            foreign,
        }
    }

    fn file(&self, number: u32) -> PathBuf {
        self.dir.join(number.to_string()).join(FILE)
    }

    fn spot(&self, number: u32) -> Spot {
        Spot {
            file: self.file(number),
            device: None,
        }
    }

    /// What each interrupt that has to move now holds, and what it is to hold.
    fn moves(
        &self,
        ledger: &State,
        online: &CpuSet,
        keep_off: &CpuSet,
    ) -> Result<Vec<Move>, HostError> {
        let entries = fs::read_dir(&self.dir)
            .map_err(|error| HostError::file("list interrupts in", &self.dir, error))?;
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let numbers: BTreeSet<u32> = numbers.collect();
        let mut moves = Vec::new();
        for number in numbers.difference(&self.yielded) {
            let spot = self.spot(*number);
            // An interrupt may be gone by now.
            let Ok(now) = read_text(&spot.file) else {
                continue;
            };
            let now = now.trim().to_owned();
            let known = ledger.host.iter().find(|(known, _)| *known == spot);
            let original = known.map_or(&now, |(_, text)| text).clone();
            let wanted = wanted(&original, online, keep_off);
            if wanted != now {
                moves.push(Move {
                    number: *number,
                    spot,
                    original,
                    wanted,
                });
            }
        }
        Ok(moves)
    }
}

struct Move {
    number: u32,
    spot: Spot,
    original: String,
    wanted: String,
}

/// The number of the interrupt that a place in the ledger is about.
fn number(spot: &Spot) -> Option<u32> {
    let dir = spot.file.parent()?;
    (spot.file.ends_with(FILE)).then(|| dir.file_name()?.to_str()?.parse().ok())?
}

/// Where an interrupt goes that was served on `original`.
fn wanted(original: &str, online: &CpuSet, keep_off: &CpuSet) -> String {
    let Ok(had) = original.parse::<CpuSet>() else {
        return original.to_owned();
    };
    if had.is_disjoint(keep_off) {
        return original.to_owned();
    }
    let left = had.difference(keep_off);
    if left.intersection(online).is_empty() {
        return online.difference(keep_off).to_string();
    }
    left.to_string()
}

impl LinuxHost {
    /// Records where the interrupts were that are about to be moved.
    pub(crate) fn announce_interrupts(&mut self, keep_off: &CpuSet) -> Result<(), Refusal> {
        let Some(interrupts) = &self.interrupts else {
            return Err(Refusal::Unsupported);
        };
        let online = self.topology.cpu_set();
        if online.is_subset(keep_off) {
            return Err(Refusal::Failed(format!(
                "keep interrupts off CPUs {keep_off}: no other CPU is left to serve them"
            )));
        }
        for each in interrupts.moves(self.ledger.state(), &online, keep_off)? {
            self.ledger.append(Record::HostOriginal {
                spot: each.spot,
                text: each.original,
            })?;
        }
        Ok(())
    }

    /// Moves the interrupts.
    pub(crate) fn move_interrupts(&mut self, keep_off: &CpuSet) -> Result<(), Refusal> {
        let online = self.topology.cpu_set();
        let Some(interrupts) = &mut self.interrupts else {
            return Err(Refusal::Unsupported);
        };
        let mut bound = Vec::new();
        let mut moved = 0_u32;
        for each in interrupts.moves(self.ledger.state(), &online, keep_off)? {
            let spot = each.spot;
            let recorded = self.ledger.state().host.iter().any(|(s, _)| *s == spot);
            if !recorded {
                // It came between the two passes: the next period sees to it.
                continue;
            }
            self.ledger.append(Record::Wrote {
                spot: spot.clone(),
                text: each.wanted.clone(),
            })?;
            // The kernel says EIO of those that it binds itself.
            if let Err(error) = write_text(&spot.file, &each.wanted) {
                tracing::debug!(interrupt = each.number, reason = error.explain(), "stays");
                bound.push(each.number);
                continue;
            }
            moved += 1;
            let held = read_text(&spot.file)?.trim().to_owned();
            if held != each.wanted {
                let text = held.clone();
                self.ledger.append(Record::Wrote { spot, text })?;
            }
            interrupts.last.insert(each.number, held);
        }
        interrupts.kept_off = Some(*keep_off);
        tracing::info!(%keep_off, moved, stay = ?bound, "interrupts of devices");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_keeps_what_it_had_as_far_as_it_can() {
        let check = |original: &str, keep_off: &str, expected: &str| {
            let online = "0-3".parse().unwrap();
            let keep_off = keep_off.parse().unwrap_or(CpuSet::EMPTY);
            assert_eq!(wanted(original, &online, &keep_off), expected);
        };
        check("0-3", "2-3", "0-1");
        check("1", "2-3", "1");
        check("3", "2-3", "0-1");
        check("3,9", "3", "0-2");
        check("0-3", "", "0-3");
        check("all of them", "3", "all of them");
    }
}
