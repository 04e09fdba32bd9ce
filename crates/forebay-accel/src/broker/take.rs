//! Runs tasks on the CPU.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::{Phase, Shared, State, Work};
use crate::dispatch::{CPU, Ran};
use crate::kernel::{Arguments, Cpu};
use crate::task::View;
use crate::wire::{Outcome, Run};

/// A thread of the CPU.
pub(super) fn run(shared: &Shared) {
    loop {
        let mut state = shared.lock();
        let ticket = loop {
            if state.stopping {
                return;
            }
            if let Some(ticket) = state.cpu.pop_front() {
                break ticket;
            }
            state = shared
                .cpu_ready
                .wait(state)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        };
        let begun = shared.begin(&mut state, ticket);
        drop(state);
        shared.run_begun(ticket, begun);
    }
}

/// A task that was taken out of a queue.
#[derive(Debug)]
pub(super) enum Begun {
    Runs(Arc<Work>, Instant),
    Late,
    /// It was answered meanwhile.
    Gone,
}

impl Shared {
    /// Takes a task that left its queue.
    pub(super) fn begin(&self, state: &mut State, ticket: u64) -> Begun {
        let Some(entry) = state.tasks.get_mut(&ticket) else {
            return Begun::Gone;
        };
        let phase = std::mem::replace(&mut entry.phase, Phase::Runs);
        let now = Instant::now();
        let work = Arc::clone(&entry.work);
        entry.began.get_or_insert(now);
        state.left_queue(phase);
        if work.deadline.is_some_and(|end| end < now) {
            return Begun::Late;
        }
        Begun::Runs(work, now)
    }

    pub(super) fn run_begun(&self, ticket: u64, begun: Begun) {
        match begun {
            Begun::Gone => {}
            Begun::Late => self.finish(ticket, Outcome::Late),
            Begun::Runs(work, began) => {
                // SAFETY: the ticket was taken out of its queue by this thread alone, and tasks
                // that conflict with it wait until it is answered.
                #[expect(unsafe_code, reason = "memory is shared by its addresses")]
                let mut views = unsafe { work.views() };
                let computed = compute(&work, &mut views);
                drop(views);
                self.done_on_cpu(ticket, &work, began, computed);
            }
        }
    }

    /// The CPU computed a task, here or at the client.
    pub(super) fn done_on_cpu(
        &self,
        ticket: u64,
        work: &Work,
        began: Instant,
        computed: Result<(), String>,
    ) {
        let took_us = micros(began.elapsed());
        let mut outbox = Vec::new();
        let mut state = self.lock();
        let retries = state.tasks.get(&ticket).map_or(0, |entry| entry.retries);
        let outcome = match computed {
            Ok(()) => {
                let (history, size) = (&work.known.history, work.size);
                let ran = Ran::whole(took_us);
                state.model.record(history, size, &Arc::from(CPU), ran);
                Outcome::Done(Run {
                    place: CPU.to_owned(),
                    waited_us: micros(began.saturating_duration_since(work.submitted)),
                    took_us,
                    retries,
                })
            }
            Err(why) => Outcome::Failed(why),
        };
        self.finish_locked(&mut state, ticket, outcome, &mut outbox);
        drop(state);
        super::say_all(outbox);
    }
}

/// Computes with a kernel's own implementation. A panic of it is an answer.
pub(super) fn compute(work: &Work, views: &mut [View<'_>]) -> Result<(), String> {
    let name = &work.known.kernel.name;
    let Cpu::Native(function) = work.known.kernel.cpu else {
        return Err(format!("kernel {name} is computed by its client"));
    };
    let mut arguments = Arguments {
        buffers: views,
        scalars: &work.scalars,
        grid: work.grid,
    };
    let computed = catch_unwind(AssertUnwindSafe(|| function(&mut arguments)));
    computed.unwrap_or_else(|_| Err(format!("kernel {name} panicked; report it")))
}

pub(super) fn micros(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
