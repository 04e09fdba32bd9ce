//! What one device keeps of memory that does not change: decided here, done by its process.
//!
//! Problem: a weight matrix that is read by each of a thousand tasks is copied to the device a thousand
//! times. What was copied before may be used again only if it is what the client's memory holds now.
//!
//! Approach: only memory that the kernel of the system sealed against writing (`F_SEAL_WRITE`) is kept:
//! nobody can write to it, in any process, so that no copy of it can be stale, and nothing has to be
//! believed of a client. A copy is known by a number that no other memory gets, since numbers of files are
//! used again. What was not used for longest is forgotten first.
//!
//! Properties, tested: what is kept and what the tasks need beside it is within the bound, or nothing more
//! is kept; what a task needs is not forgotten for it; what its client forgot is forgotten. This book may
//! name a copy that the device has not made, and never lacks one that it has.

use std::collections::BTreeMap;

use crate::device::Constant;

/// Copies on one device at most.
const COPIES_MAX: usize = 1024;

/// What a device keeps, and when it was used last.
#[derive(Debug, Default)]
pub(super) struct Kept {
    copies: BTreeMap<Constant, u64>,
    bytes: u64,
    uses: u64,
}

/// What a task does to what is kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// For each of the task's constants, whether it is kept from now on.
    pub(super) keeps: Vec<bool>,
    /// Copies that are freed first.
    pub(super) forget: Vec<Constant>,
    /// What was there already, in bytes.
    pub(super) spared: u64,
}

impl Kept {
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn holds(&self, constant: &Constant) -> bool {
        self.copies.contains_key(constant)
    }

    /// Makes room for a task that reads these constants, and takes `beside` bytes for everything else.
    pub(super) fn plan(&mut self, constants: &[Constant], beside: u64, most: u64) -> Plan {
        let mut plan = Plan::default();
        self.uses += 1;
        let now = self.uses;
        for constant in constants {
            if let Some(used) = self.copies.get_mut(constant) {
                // One that is named twice by a task is copied once, too.
                *used = now;
                plan.spared += constant.length;
            }
        }
        let mut beside = beside;
        for constant in constants {
            if self.holds(constant) {
                plan.keeps.push(true);
                continue;
            }
            let needed = beside.saturating_add(constant.length);
            self.make_room(needed, COPIES_MAX - 1, (now, most), &mut plan.forget);
            let fits = self.bytes.saturating_add(needed) <= most && self.copies.len() < COPIES_MAX;
            if fits {
                self.bytes += constant.length;
                self.copies.insert(*constant, now);
            } else {
                beside = needed;
            }
            plan.keeps.push(fits);
        }
        self.make_room(beside, COPIES_MAX, (now, most), &mut plan.forget);
        plan
    }

    /// Forgets what was used before now until this fits beside the rest, or nothing more can go.
    fn make_room(
        &mut self,
        bytes: u64,
        copies: usize,
        (now, most): (u64, u64),
        gone: &mut Vec<Constant>,
    ) {
        while self.bytes.saturating_add(bytes) > most || self.copies.len() > copies {
            let older = self.copies.iter().filter(|(_, used)| **used < now);
            let Some(oldest) = older.min_by_key(|(_, used)| **used).map(|(one, _)| *one) else {
                return;
            };
            self.remove(&oldest);
            gone.push(oldest);
        }
    }

    fn remove(&mut self, constant: &Constant) {
        if self.copies.remove(constant).is_some() {
            self.bytes -= constant.length;
        }
    }

    /// Forgets all copies of these memories.
    pub(super) fn forget(&mut self, memories: &[u64]) -> Vec<Constant> {
        let copies = self.copies.keys().copied();
        let gone: Vec<Constant> = copies
            .filter(|one| memories.contains(&one.memory))
            .collect();
        for constant in &gone {
            self.remove(constant);
        }
        gone
    }

    /// Forgets everything, as the process of a device does that ends.
    pub(super) fn clear(&mut self) -> Vec<Constant> {
        self.bytes = 0;
        std::mem::take(&mut self.copies).into_keys().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 1000;

    fn part(memory: u64, length: u64) -> Constant {
        Constant {
            memory,
            offset: 0,
            length,
        }
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room_and_what_a_task_needs_stays() {
        let mut kept = Kept::default();
        let [a, b, c, d] = [1, 2, 3, 4].map(|memory| part(memory, 300));
        let mut plan = |constants: &[Constant], beside| {
            let plan = kept.plan(constants, beside, MOST);
            assert!(kept.bytes() <= MOST);
            (plan.keeps, plan.forget, plan.spared)
        };
        assert_eq!(plan(&[a, b], 100), (vec![true; 2], vec![], 0));
        assert_eq!(plan(&[a, c, a], 100), (vec![true; 3], vec![], 600));
        // `b` goes for `d`, then nothing can go for what the task itself takes.
        assert_eq!(plan(&[c, d], 100), (vec![true; 2], vec![b], 300));
        assert_eq!(
            plan(&[a, c, d, b], 100),
            (vec![true, true, true, false], vec![], 900)
        );
        // A task without constants has room made for it, too.
        assert_eq!(plan(&[], 500), (vec![], vec![a, c], 0));
        assert_eq!(plan(&[part(5, 2000)], 0), (vec![false], vec![d], 0));
        assert_eq!(kept.bytes(), 0);
    }

    #[test]
    fn what_a_client_forgot_is_forgotten_with_all_its_parts() {
        let mut kept = Kept::default();
        let half = Constant {
            offset: 150,
            ..part(1, 150)
        };
        kept.plan(&[part(1, 300), half, part(2, 10)], 0, MOST);
        assert_eq!(kept.bytes(), 460);
        assert_eq!(kept.forget(&[1, 7]), [part(1, 300), half]);
        assert_eq!((kept.bytes(), kept.holds(&part(2, 10))), (10, true));
        assert_eq!(kept.clear(), [part(2, 10)]);
        assert_eq!(kept.bytes(), 0);
    }

    /// Against what a device does that obeys: it has no more than the book says, and within the bound.
    #[test]
    fn a_device_that_obeys_holds_what_the_book_says() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut kept, mut device) = (Kept::default(), BTreeMap::new());
        for _ in 0..20_000 {
            let constants: Vec<Constant> = (0..random.usize(0..4))
                .map(|_| {
                    let memory = random.u64(0..12);
                    part(memory, 40 + memory * 30)
                })
                .collect();
            let beside = random.u64(0..1200);
            let plan = kept.plan(&constants, beside, MOST);
            for gone in &plan.forget {
                assert!(!constants.contains(gone) && device.remove(gone).is_some());
            }
            let mut spared = 0;
            let before = device.clone();
            for (constant, keeps) in constants.iter().zip(&plan.keeps) {
                spared += before.get(constant).map_or(0, |()| constant.length);
                if *keeps {
                    device.insert(*constant, ());
                }
            }
            assert_eq!(plan.spared, spared);
            if random.u32(0..20) == 0 {
                let memory = random.u64(0..12);
                for gone in kept.forget(&[memory]) {
                    assert!(device.remove(&gone).is_some());
                }
            }
            assert!(device.keys().all(|one| kept.holds(one)));
            let held: u64 = device.keys().map(|one| one.length).sum();
            assert_eq!(held, kept.bytes());
            assert!(held <= MOST);
        }
    }

    #[test]
    fn copies_are_bounded_in_number() {
        let mut kept = Kept::default();
        for memory in 0..3 * COPIES_MAX as u64 {
            kept.plan(&[part(memory, 1)], 0, u64::MAX);
            assert!(kept.copies.len() <= COPIES_MAX);
        }
    }
}
