//! When the update stands still because a critical app suffers.
//!
//! It is frozen only where its own progress is at a safe point, which the caller knows, and never for
//! long: what is frozen holds locks that others wait for, and an update that never ends protects nobody.
//!
//! Properties: frozen at most [`FROZEN_MAX`] at a stretch; thawed at least [`BETWEEN`] after each; let go
//! in the same step in which nobody suffers any more.

use std::time::Duration;

use crate::demand::Usage;
use crate::io_history::IoUse;

/// How long an app has to suffer first.
pub const PERSISTENCE: Duration = Duration::from_millis(500);
/// The longest that the update stands still at a stretch.
pub const FROZEN_MAX: Duration = Duration::from_secs(5);
/// The shortest that it goes on after that.
pub const BETWEEN: Duration = Duration::from_secs(10);
/// Share of time in which tasks of a critical app wait for a CPU that counts as suffering.
const CPU_STALLED_MAX: f64 = 0.25;
/// The same of I/O.
const IO_STALLED_MAX: f64 = 0.3;

/// What to do with the update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Stop it where it stands.
    Freeze,
    /// Let it go on.
    Thaw,
}

/// What is remembered of one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hold {
    suffers_since: Option<Duration>,
    frozen_at: Option<Duration>,
    thawed_at: Option<Duration>,
    stood: Duration,
    times: u32,
}

impl Hold {
    /// Decides at `now`, which never goes back: whether some critical app suffers, and whether the
    /// update is where it may be frozen.
    pub fn step(&mut self, now: Duration, suffers: bool, is_safe: bool) -> Option<Turn> {
        match suffers {
            true => _ = self.suffers_since.get_or_insert(now),
            false => self.suffers_since = None,
        }
        if let Some(at) = self.frozen_at {
            let long = now.saturating_sub(at) >= FROZEN_MAX;
            if suffers && !long {
                return None;
            }
            self.stood += now.saturating_sub(at);
            self.frozen_at = None;
            self.thawed_at = Some(now);
            return Some(Turn::Thaw);
        }
        let long_enough = |since: Duration| now.saturating_sub(since) >= PERSISTENCE;
        let rested = |since: Duration| now.saturating_sub(since) >= BETWEEN;
        let freezes = self.suffers_since.is_some_and(long_enough)
            && self.thawed_at.is_none_or(rested)
            && is_safe;
        if !freezes {
            return None;
        }
        self.frozen_at = Some(now);
        self.times += 1;
        Some(Turn::Freeze)
    }

    /// Whether it stands still.
    #[must_use]
    pub const fn is_frozen(&self) -> bool {
        self.frozen_at.is_some()
    }

    /// How often and how long it stood still so far.
    #[must_use]
    pub const fn stood(&self) -> (u32, Duration) {
        (self.times, self.stood)
    }
}

/// Why a critical app suffers, if it does: what its answers take, or what its tasks wait.
#[must_use]
pub fn suffers(usage: &Usage, io: &IoUse, response_time_max: Duration) -> Option<String> {
    let slow_ms = response_time_max.as_secs_f64() * 1000.0;
    if let Some(ms) = usage.response_time.filter(|ms| *ms > slow_ms) {
        return Some(format!(
            "an answer takes {ms:.1} ms, more than {slow_ms:.1} ms"
        ));
    }
    if let Some(share) = usage.cpu_stalled.filter(|share| *share > CPU_STALLED_MAX) {
        return Some(format!(
            "its tasks wait for a CPU {:.0} % of the time",
            share * 100.0
        ));
    }
    let share = io.stalled.filter(|share| *share > IO_STALLED_MAX)?;
    Some(format!(
        "its tasks wait for I/O {:.0} % of the time",
        share * 100.0
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    #[test]
    fn it_stands_still_while_somebody_suffers_and_never_for_ever() {
        let mut hold = Hold::default();
        let (mut frozen, mut stretch, mut longest) = (0_u32, 0_u32, 0_u32);
        for n in 0..6000 {
            hold.step(STEP * n, true, true);
            stretch = if hold.is_frozen() { stretch + 1 } else { 0 };
            frozen += u32::from(hold.is_frozen());
            longest = longest.max(stretch);
        }
        assert_eq!(STEP * longest, FROZEN_MAX);
        let share = f64::from(frozen) / 6000.0;
        assert!((0.3..0.34).contains(&share), "{share}");
        assert!(hold.stood().0 > 30);
    }

    #[test]
    fn it_goes_on_at_once_when_nobody_suffers() {
        let mut hold = Hold::default();
        let turns: Vec<_> = (0..12)
            .map(|n| hold.step(STEP * n, n < 8, true))
            .enumerate()
            .filter_map(|(n, turn)| Some((n, turn?)))
            .collect();
        assert_eq!(turns, [(5, Turn::Freeze), (8, Turn::Thaw)]);
        assert_eq!(hold.stood(), (1, STEP * 3));
    }

    #[test]
    fn it_is_never_frozen_at_an_unsafe_point() {
        let mut hold = Hold::default();
        assert!((0..1000).all(|n| hold.step(STEP * n, true, false).is_none()));
        assert_eq!(hold.step(STEP * 1000, true, true), Some(Turn::Freeze));
        // One that became unsafe while it stood is let go as any other.
        assert_eq!(hold.step(STEP * 1001, false, false), Some(Turn::Thaw));
    }

    #[test]
    fn who_suffers_is_said_with_its_number() {
        let check = |usage: &Usage, io: &IoUse, expected: Option<&str>| {
            let why = suffers(usage, io, Duration::from_millis(20));
            match (why, expected) {
                (Some(why), Some(expected)) => assert!(why.contains(expected), "{why}"),
                (why, expected) => assert_eq!(why.as_deref(), expected),
            }
        };
        let io = IoUse::default();
        check(&Usage::default(), &io, None);
        let slow = Usage {
            response_time: Some(20.5),
            ..Usage::default()
        };
        check(&slow, &io, Some("20.5 ms, more than 20.0 ms"));
        let waits = Usage {
            response_time: Some(20.0),
            cpu_stalled: Some(0.4),
            ..Usage::default()
        };
        check(&waits, &io, Some("CPU 40 %"));
        let io = IoUse {
            stalled: Some(0.5),
            ..IoUse::default()
        };
        check(&Usage::default(), &io, Some("I/O 50 %"));
    }
}
