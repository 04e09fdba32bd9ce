//! Work under a budget of processor time, that ends at once when asked to.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::Shared;

/// The daemon stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stopped;

/// Keeps a thread within its share of one CPU: after each portion of work it pauses as long as
/// the share asks for, so that over any time no more is used than the share of it and one portion.
pub(super) struct Pace<'a> {
    /// Of one CPU, above 0.
    pub(super) share: f64,
    /// Disconnected when the daemon stops.
    pub(super) stop: &'a Receiver<()>,
    pub(super) shared: &'a Shared,
}

impl Pace<'_> {
    /// Does a portion and pauses. Also says how much processor time it took.
    pub(super) fn portion<T>(&self, work: impl FnOnce() -> T) -> Result<(T, Duration), Stopped> {
        let (cpu, wall) = (thread_time(), Instant::now());
        let result = work();
        let spent = thread_time().saturating_sub(cpu);
        self.shared.spent(thread_time());
        self.rest(pause(spent, wall.elapsed(), self.share))?;
        Ok((result, spent))
    }

    /// Does nothing for some time.
    pub(super) fn rest(&self, time: Duration) -> Result<(), Stopped> {
        match self.stop.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(Stopped),
        }
    }
}

/// How long to pause after a portion that took so much processor time in so much time. Pure.
fn pause(spent: Duration, took: Duration, share: f64) -> Duration {
    let whole = Duration::try_from_secs_f64(spent.as_secs_f64() / share);
    whole.unwrap_or(Duration::MAX).saturating_sub(took)
}

/// Processor time of this thread.
pub(super) fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_make_up_for_what_was_spent() {
        let ms = Duration::from_millis;
        assert_eq!(pause(ms(10), ms(10), 0.05), ms(190));
        // Others had the CPU meanwhile.
        assert_eq!(pause(ms(10), ms(150), 0.05), ms(50));
        assert_eq!(pause(ms(10), ms(300), 0.05), ms(0));
        assert_eq!(pause(ms(10), ms(10), 1.0), ms(0));
        assert_eq!(pause(ms(0), ms(0), 0.01), ms(0));
    }
}
