//! Where a task runs: pure, of what was measured.
//!
//! Problem: a task runs on the CPU or on one of a few devices. How long it takes there, transfers
//! included, is learnt only by running it, and a run on the wrong place is what was to be avoided.
//!
//! Approach: the time of a (kernel, place, size) is the median of its latest runs, sizes by powers
//! of two. A task goes where it is expected to end first, after what is queued there; time of the
//! CPU counts by a price, which the offload manager raises for a slice that lacks CPU. A place that
//! was hardly tried, or not for long, is tried now and then ("explore first", Auer et al. 2002,
//! bounded as in "budgeted" bandits): tries are bounded in number, and what tries of known places
//! lose is bounded in time.
//!
//! What a device keeps of a task's memory is not transferred again. So a run is remembered as what
//! it would have taken with nothing kept, and expected to take less by what is kept there now, at
//! the speed at which memory was copied there lately.
//!
//! Properties: the CPU comes first; at most one call in [`CALLS_PER_TRY`] of a (kernel, size) is a
//! try; no try is made of tasks that the CPU ends at once; a place is known by its driver, so that
//! what was learnt holds after a restart on the same host and not for another driver.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One call in so many may be a try: 5 %.
pub const CALLS_PER_TRY: u64 = 20;
/// What the CPU ends in so short a time goes nowhere else, in microseconds: a device is asked
/// through a process.
pub const SMALL_US: f64 = 100.0;
/// So many runs make a place known.
const KNOWN_RUNS: usize = 3;
/// Runs that are remembered.
const MEMORY: usize = 9;
/// Of the time of all calls, this part may be lost by trying places that are known to be slower.
const LOSS: f64 = 0.02;
/// (kernel, size) that are remembered; the one not used for longest is forgotten.
const KEPT_MAX: usize = 4096;
/// Transfers of less say more of what it costs to ask than of the speed, in bytes.
const TRANSFER_MIN: u64 = 64 * 1024;

/// The place that always is there.
pub const CPU: &str = "cpu";

/// What was learnt.
#[derive(Debug, Default)]
pub struct Model {
    cells: BTreeMap<(Arc<str>, u8), Cell>,
    /// Microseconds for a byte to each device, of its latest transfers.
    transfers: BTreeMap<Arc<str>, Recent>,
    /// Of cells that were forgotten.
    past: Spent,
    calls: u64,
    tries: u64,
}

/// Of one kernel and size.
#[derive(Debug, Default)]
struct Cell {
    places: BTreeMap<Arc<str>, Recent>,
    /// How often each place was chosen.
    chosen: BTreeMap<Arc<str>, u64>,
    calls: u64,
    tries: u64,
    spent_us: f64,
    lost_us: f64,
    used: u64,
}

/// The latest values of something.
#[derive(Debug, Default)]
struct Recent {
    values: VecDeque<f64>,
    /// The call of the cell at which it ran last.
    at: u64,
}

impl Recent {
    /// The median; of an even number the lesser, since what gets in the way of a run makes it longer.
    fn expected(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.values.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) / 2).copied()
    }

    fn push(&mut self, value: f64) {
        self.values.push_back(value);
        if self.values.len() > MEMORY {
            self.values.pop_front();
        }
    }
}

/// Choices and what they took, beside the best there was.
#[derive(Debug, Clone, Copy, Default)]
struct Spent {
    calls: u64,
    us: f64,
    best_us: f64,
}

impl Spent {
    fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.us += other.us;
        self.best_us += other.best_us;
    }
}

/// What choices cost beside the best place in hindsight: each counts as the median of the latest runs
/// of its kernel and size at the place that was chosen, and is held against the least median of any
/// place. What queues, prices and faults have to do with it is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Regret {
    /// Choices of places where something ran.
    pub calls: u64,
    /// What they took, and what they would have taken at the best place each, in microseconds.
    pub spent_us: f64,
    pub best_us: f64,
    /// What is lost of `best_us`: 0.1 is a tenth. None before there is anything.
    pub part: Option<f64>,
}

/// A place that a task could go to now.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// [`CPU`], or platform, driver and name of a device.
    pub key: Arc<str>,
    /// What is queued there, in microseconds.
    pub wait_us: f64,
    /// What it keeps of what the task reads, in bytes.
    pub kept_bytes: u64,
}

/// A run of a task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ran {
    pub took_us: f64,
    /// What was not transferred because the place kept it, in bytes.
    pub kept_bytes: u64,
}

impl Ran {
    /// A run for which everything was transferred, or nothing had to be.
    #[must_use]
    pub const fn whole(took_us: f64) -> Self {
        Self {
            took_us,
            kept_bytes: 0,
        }
    }
}

/// Where a task goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Index of the place.
    pub place: usize,
    /// It goes there to learn.
    pub tried: bool,
    /// How long it is expected to run there.
    pub expected_us: Option<f64>,
}

/// The size of a task, by powers of two of its bytes and items.
#[must_use]
pub fn bucket(bytes: u64) -> u8 {
    u8::try_from(64 - bytes.leading_zeros()).unwrap_or(u8::MAX)
}

impl Model {
    /// Where a task goes. The first place is the CPU; `price` is what its time counts, 1 or more.
    ///
    /// # Panics
    /// Without places.
    pub fn choose(&mut self, kernel: &Arc<str>, size: u8, places: &[Place], price: f64) -> Choice {
        let choice = self.best(kernel, size, places, price);
        if let Some(cell) = self.cells.get_mut(&(Arc::clone(kernel), size)) {
            let place = Arc::clone(&places[choice.place].key);
            *cell.chosen.entry(place).or_default() += 1;
        }
        choice
    }

    fn best(&mut self, kernel: &Arc<str>, size: u8, places: &[Place], price: f64) -> Choice {
        assert!(!places.is_empty(), "the CPU is a place always");
        self.calls += 1;
        let now = self.calls;
        self.make_room(kernel, size);
        let spared: Vec<f64> = places
            .iter()
            .map(|place| self.spared_us(&place.key, place.kept_bytes))
            .collect();
        let cell = self.cells.entry((Arc::clone(kernel), size)).or_default();
        cell.calls += 1;
        cell.used = now;
        let expected: Vec<Option<f64>> = places
            .iter()
            .zip(spared)
            .map(|(place, spared)| {
                let whole = cell.places.get(&place.key).and_then(Recent::expected)?;
                Some((whole - spared).max(0.0))
            })
            .collect();
        let chosen = |place: usize, tried| Choice {
            place,
            tried,
            expected_us: expected[place],
        };
        let Some(on_cpu) = expected[0] else {
            return chosen(0, false);
        };
        // Priced alone, since waiting for a CPU takes nothing of it.
        let cost = |index: usize| {
            let run = expected[index]?;
            let weight = if index == 0 { price.max(1.0) } else { 1.0 };
            Some(places[index].wait_us + run * weight)
        };
        if on_cpu * price.max(1.0) < SMALL_US {
            return chosen(0, false);
        }
        let best = (0..places.len())
            .filter_map(|index| Some((index, cost(index)?)))
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .map_or(0, |(index, _)| index);
        if (cell.tries + 1) * CALLS_PER_TRY <= cell.calls
            && let Some(index) = cell.worth_a_try(places, &expected, best)
        {
            cell.tries += 1;
            self.tries += 1;
            return chosen(index, true);
        }
        chosen(best, false)
    }

    /// What choices cost so far.
    #[must_use]
    pub fn regret(&self) -> Regret {
        let mut all = self.past;
        for cell in self.cells.values() {
            all.add(cell.spent());
        }
        Regret {
            calls: all.calls,
            spent_us: all.us,
            best_us: all.best_us,
            part: (all.best_us > 0.0).then(|| all.us / all.best_us - 1.0),
        }
    }

    /// A task ran. What failed is not told: a device that fails is not slow.
    pub fn record(&mut self, kernel: &Arc<str>, size: u8, place: &Arc<str>, ran: Ran) {
        let took_us = ran.took_us;
        let whole_us = took_us + self.spared_us(place, ran.kept_bytes);
        let Some(cell) = self.cells.get_mut(&(Arc::clone(kernel), size)) else {
            return;
        };
        let calls = cell.calls;
        let others = cell.places.iter().filter(|(key, _)| *key != place);
        let best = others
            .filter_map(|(_, recent)| recent.expected())
            .min_by(f64::total_cmp);
        cell.spent_us += took_us;
        if let Some(best) = best {
            cell.lost_us += (took_us - best).max(0.0);
        }
        let recent = cell.places.entry(Arc::clone(place)).or_default();
        recent.at = calls;
        recent.push(whole_us);
    }

    /// So many bytes were copied to a device. There are few devices.
    #[expect(clippy::cast_precision_loss, reason = "a quotient is not that exact")]
    pub fn record_transfer(&mut self, place: &Arc<str>, bytes: u64, took_us: f64) {
        if bytes >= TRANSFER_MIN {
            let recent = self.transfers.entry(Arc::clone(place)).or_default();
            recent.push(took_us / bytes as f64);
        }
    }

    /// How long it would take to copy so much to a place, as far as is known.
    #[expect(clippy::cast_precision_loss, reason = "a product is not that exact")]
    fn spared_us(&self, place: &str, bytes: u64) -> f64 {
        let speed = self.transfers.get(place).and_then(Recent::expected);
        speed.unwrap_or(0.0) * bytes as f64
    }

    /// How long a task is expected to run somewhere, with everything transferred.
    #[must_use]
    pub fn expected_us(&self, kernel: &Arc<str>, size: u8, place: &str) -> Option<f64> {
        let cell = self.cells.get(&(Arc::clone(kernel), size))?;
        cell.places.get(place)?.expected()
    }

    /// Calls, and how many of them were tries.
    #[must_use]
    pub const fn tries(&self) -> (u64, u64) {
        (self.calls, self.tries)
    }

    fn make_room(&mut self, kernel: &Arc<str>, size: u8) {
        if self.cells.len() < KEPT_MAX || self.cells.contains_key(&(Arc::clone(kernel), size)) {
            return;
        }
        let oldest = self.cells.iter().min_by_key(|(_, cell)| cell.used);
        if let Some(key) = oldest.map(|(key, _)| key.clone())
            && let Some(cell) = self.cells.remove(&key)
        {
            self.past.add(cell.spent());
        }
    }
}

impl Cell {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a sum of times is not that exact"
    )]
    fn spent(&self) -> Spent {
        let known = self.places.values().filter_map(Recent::expected);
        let Some(best) = known.min_by(f64::total_cmp) else {
            return Spent::default();
        };
        let mut all = Spent::default();
        for (place, calls) in &self.chosen {
            let Some(each) = self.places.get(place).and_then(Recent::expected) else {
                continue;
            };
            all.add(Spent {
                calls: *calls,
                us: *calls as f64 * each,
                best_us: *calls as f64 * best,
            });
        }
        all
    }

    /// A place that is not known yet; else the one not tried for longest, where the loss that is
    /// to be expected is within what may be lost.
    fn worth_a_try(
        &self,
        places: &[Place],
        expected: &[Option<f64>],
        best: usize,
    ) -> Option<usize> {
        let recent = |index: usize| self.places.get(&places[index].key);
        let others = || (0..places.len()).filter(|index| *index != best);
        let runs = |index: &usize| recent(*index).map_or(0, |recent| recent.values.len());
        let unknown = others().filter(|index| runs(index) < KNOWN_RUNS);
        // One that lost badly at its first runs is known well enough; a single run may have met
        // something else that got in its way.
        let hopeless = |index: &usize| {
            let times = if runs(index) < 2 { 12.0 } else { 3.0 };
            let pair = expected[*index].zip(expected[best]);
            pair.is_some_and(|(run, best)| run > best * times)
        };
        if let Some(index) = unknown.filter(|index| !hopeless(index)).min_by_key(runs) {
            return Some(index);
        }
        let affordable = |index: &usize| {
            let pair = expected[*index].zip(expected[best]);
            pair.is_some_and(|(run, best)| {
                self.lost_us + (run - best).max(0.0) <= self.spent_us * LOSS
            })
        };
        others()
            .filter(affordable)
            .min_by_key(|index| recent(*index).map_or(0, |recent| recent.at))
    }
}

#[cfg(test)]
mod tests;
