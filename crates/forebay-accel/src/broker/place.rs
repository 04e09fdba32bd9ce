//! Gives a task a place, and begins it.

use std::sync::Arc;
use std::time::Instant;

use super::{Built, Job, Known, Outbox, Phase, Registration, Shared, State, Work};
use crate::dispatch::{CPU, Place};
use crate::kernel::Cpu;
use crate::wire::{Outcome, Reply, Wish};

/// What nothing is known of counts as much in a queue, in microseconds.
const UNKNOWN_US: f64 = 1000.0;
/// What is expected to end in so short a time is run by the thread that read it: to wake another
/// one takes as long.
pub(super) const INLINE_US: f64 = 50.0;

impl Shared {
    /// Queues a task that waits for nothing.
    pub(super) fn place(&self, state: &mut State, ticket: u64, outbox: &mut Outbox) {
        let Some(entry) = state.tasks.get(&ticket) else {
            return;
        };
        let work = Arc::clone(&entry.work);
        self.build_everywhere(state, &work.known, None);
        let cpu = (CPU.into(), None);
        let mut candidates: Vec<(Arc<str>, Option<usize>)> = vec![cpu];
        let usable = (0..self.slots.len()).filter(|index| self.usable(state, *index, &work));
        candidates.extend(usable.map(|index| (Arc::clone(&self.slots[index].key), Some(index))));
        let (device, expected_us) = match &work.wish {
            Wish::Cpu => (None, None),
            Wish::Device(id) => {
                let mut usable = candidates.iter().filter_map(|(_, index)| *index);
                let device = usable.find(|index| self.slots[*index].info.id == *id);
                (device, None)
            }
            Wish::Best => {
                let places: Vec<Place> = candidates
                    .iter()
                    .map(|(key, index)| Place {
                        key: Arc::clone(key),
                        wait_us: self.wait_us(state, *index),
                        kept_bytes: index.map_or(0, |index| state.devices[index].kept_of(&work)),
                    })
                    .collect();
                let price = state.price;
                let choice = state
                    .model
                    .choose(&work.known.history, work.size, &places, price);
                state.stats.explored += u64::from(choice.tried);
                (candidates[choice.place].1, choice.expected_us)
            }
        };
        let key = device.map_or(CPU, |index| &*self.slots[index].key);
        let whole_us = || {
            let model = &state.model;
            model.expected_us(&work.known.history, work.size, key)
        };
        let expected_us = expected_us.or_else(whole_us).unwrap_or(UNKNOWN_US);
        match device {
            Some(index) => self.queue_on(state, ticket, index, expected_us),
            None => self.queue_on_cpu(state, ticket, expected_us, outbox),
        }
    }

    /// Puts a task where its own implementation runs.
    pub(super) fn queue_on_cpu(
        &self,
        state: &mut State,
        ticket: u64,
        expected_us: f64,
        outbox: &mut Outbox,
    ) {
        let Some(entry) = state.tasks.get_mut(&ticket) else {
            return;
        };
        if let Cpu::Client = entry.work.known.kernel.cpu {
            if !state.sessions.contains_key(&entry.work.session) {
                // Nobody is there to compute it, or to be told.
                return self.finish_locked(state, ticket, Outcome::Cancelled, outbox);
            }
            if entry.work.deadline.is_some_and(|end| end < Instant::now()) {
                return self.finish_locked(state, ticket, Outcome::Late, outbox);
            }
            entry.phase = Phase::AtClient;
            entry.began = Some(Instant::now());
            let task = entry.work.task;
            outbox.push((
                Arc::clone(&entry.work.socket),
                Reply::Compute { ticket, task },
            ));
            return;
        }
        entry.phase = Phase::Queued {
            expected_us,
            place: 0,
        };
        state.cpu.push_back(ticket);
        state.cpu_wait_us += expected_us;
        if expected_us > INLINE_US {
            self.cpu_ready.notify_one();
        }
    }

    fn queue_on(&self, state: &mut State, ticket: u64, index: usize, expected_us: f64) {
        if let Some(entry) = state.tasks.get_mut(&ticket) {
            entry.phase = Phase::Queued {
                expected_us,
                place: index + 1,
            };
            let device = &mut state.devices[index];
            device.queue.push_back(Job::Run(ticket));
            device.wait_us += expected_us;
            self.slots[index].ready.notify_one();
        }
    }

    /// Has each device that has a source for a kernel build it, once. The registration, if there is
    /// one, hears of it.
    pub(super) fn build_everywhere(
        &self,
        state: &mut State,
        known: &Arc<Known>,
        registration: Option<&Arc<Registration>>,
    ) {
        for (index, slot) in self.slots.iter().enumerate() {
            if !known.has_source(slot.info.backend) {
                continue;
            }
            let device = &mut state.devices[index];
            let asked = device.built.contains_key(&known.history);
            if asked && registration.is_none() {
                continue;
            }
            if !asked {
                device
                    .built
                    .insert(Arc::clone(&known.history), Built::Asked);
            }
            let job = Job::Build(Arc::clone(known), registration.cloned());
            device.queue.push_back(job);
            slot.ready.notify_one();
        }
    }

    fn usable(&self, state: &State, index: usize, work: &Work) -> bool {
        let device = &state.devices[index];
        let kernel = &work.known.history;
        let standing = &device.standing;
        device.built.get(kernel) == Some(&Built::Ready)
            && work.bytes <= self.options.device_bytes_max
            && standing.takes(kernel, device.wait_us, Instant::now())
    }

    #[expect(clippy::cast_precision_loss, reason = "threads are few")]
    fn wait_us(&self, state: &State, device: Option<usize>) -> f64 {
        device.map_or(
            state.cpu_wait_us / self.options.cpu_threads.max(1) as f64,
            |index| state.devices[index].wait_us,
        )
    }
}
