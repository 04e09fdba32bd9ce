//! A timer of the kernel's that goes off again and again.
//!
//! Problem: a timeout of a few milliseconds is set and taken back by the kernel with each wait for a
//! message: a microsecond for each wait, which is an eighth of what a small message costs.
//!
//! Approach: a timerfd, which is set once for as long as it is needed.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The timer.
#[derive(Debug)]
pub(super) struct Ticks {
    timer: AsyncFd<OwnedFd>,
    period: Duration,
    runs: bool,
}

impl Ticks {
    /// One that stands still.
    ///
    /// # Errors
    /// When the system has none.
    pub(super) fn new(period: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(unsafe_code, reason = "tokio has no other way to wait for a timerfd")]
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives, and the
        // `AsyncFd` that takes it here ends its registration before it drops it.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Self {
            timer,
            period,
            runs: false,
        })
    }

    /// Stands still until it is waited for again.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn stop(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.runs) {
            self.set(Duration::ZERO)?;
        }
        Ok(())
    }

    /// Waits until it goes off, within one period as a rule; how long ago that was due at least.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) async fn next(&mut self) -> io::Result<Duration> {
        if !self.runs {
            self.set(self.period)?;
            self.runs = true;
        }
        let mut count = [0; 8];
        let read = |timer: &OwnedFd| rustix::io::read(timer, &mut count).map_err(io::Error::from);
        self.timer.async_io(Interest::READABLE, read).await?;
        let missed = u64::from_ne_bytes(count).saturating_sub(1);
        Ok(self
            .period
            .saturating_mul(u32::try_from(missed).unwrap_or(u32::MAX)))
    }

    fn set(&self, period: Duration) -> io::Result<()> {
        let period = Timespec::try_from(period).map_err(io::Error::other)?;
        let times = Itimerspec {
            it_interval: period,
            it_value: period,
        };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &times)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn it_goes_off_again_and_again_until_it_is_stopped() {
        let period = Duration::from_millis(2);
        let mut ticks = Ticks::new(period).unwrap();
        for _ in 0..2 {
            let begun = Instant::now();
            let mut late = Duration::ZERO;
            for _ in 0..5 {
                late += ticks.next().await.unwrap();
            }
            let took = begun.elapsed();
            // Whoever comes late is told by how much.
            assert!(took >= period * 5 + late, "{took:?}, {late:?} late");
            ticks.stop().unwrap();
            let times = rustix::time::timerfd_gettime(ticks.timer.get_ref()).unwrap();
            assert_eq!((times.it_value.tv_sec, times.it_value.tv_nsec), (0, 0));
        }
    }
}
