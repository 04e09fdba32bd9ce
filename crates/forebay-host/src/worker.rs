//! A thread that takes jobs one after another, once there is one.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::error::HostError;

/// The jobs on their way to a thread, and the thread.
#[derive(Debug)]
pub(crate) struct Worker<J> {
    /// What the kernel calls it, at most 15 bytes.
    name: &'static str,
    /// Jobs that may wait.
    jobs_max: usize,
    work: fn(J),
    thread: Option<(SyncSender<J>, JoinHandle<()>)>,
}

impl<J: Send + 'static> Worker<J> {
    pub(crate) const fn new(name: &'static str, jobs_max: usize, work: fn(J)) -> Self {
        Self {
            name,
            jobs_max,
            work,
            thread: None,
        }
    }

    /// Hands a job on. `attempt` says what it is for.
    ///
    /// # Errors
    /// When no thread can be started, or too many jobs wait already.
    pub(crate) fn submit(&mut self, job: J, attempt: String) -> Result<(), HostError> {
        if self.thread.is_none() {
            self.thread = Some(self.start()?);
        }
        let jobs = self.thread.as_ref().map(|(jobs, _)| jobs);
        if jobs.is_some_and(|jobs| jobs.try_send(job).is_ok()) {
            return Ok(());
        }
        Err(HostError::invalid(
            attempt,
            "too many wait already; it is tried again",
        ))
    }

    /// Takes no more jobs, and waits for the end of those that it has.
    pub(crate) fn stop(&mut self) {
        if let Some((jobs, thread)) = self.thread.take() {
            drop(jobs);
            if thread.join().is_err() {
                tracing::error!(thread = self.name, "a thread panicked");
            }
        }
    }

    fn start(&self) -> Result<(SyncSender<J>, JoinHandle<()>), HostError> {
        let (jobs, jobs_in) = sync_channel::<J>(self.jobs_max);
        let work = self.work;
        let thread = std::thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || jobs_in.into_iter().for_each(work))
            .map_err(|e| HostError::io(format!("start the thread `{}`", self.name), e))?;
        Ok((jobs, thread))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_what_fits_is_done() {
        type Job = (Arc<Barrier>, Arc<AtomicU32>);
        let mut worker = Worker::new("test", 1, |(gate, done): Job| {
            gate.wait();
            gate.wait();
            done.fetch_add(1, Ordering::Relaxed);
        });
        let (gate, open) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(1)));
        let done = Arc::new(AtomicU32::new(0));
        let mut submit = |gate: &Arc<Barrier>| {
            worker.submit((Arc::clone(gate), Arc::clone(&done)), "try".to_owned())
        };
        submit(&gate).unwrap();
        // It is at the first; one more may wait.
        gate.wait();
        submit(&open).unwrap();
        let refused = submit(&open).unwrap_err().explain();
        assert!(refused.starts_with("try; too many wait"), "{refused}");
        gate.wait();
        worker.stop();
        assert_eq!(done.load(Ordering::Relaxed), 2);
    }
}
