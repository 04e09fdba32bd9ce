//! When a program that Forebay started is started again.
//!
//! A program that ends is restarted by its policy, after a delay that doubles with every
//! quick death and starts over after a minute of life. One that has images of itself waits for
//! nothing the first time: it begins where it was, and somebody waits for it. One whose end somebody
//! wanted is restarted at once: that says nothing of how well it is.
//!
//! A program that may run on other hosts is started where its record says that it is, and nowhere else:
//! [`Home`] is an argument. How often it failed elsewhere counts for nothing when it comes back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::app::{App, Binding, Restart};
use crate::snapshot::RunState;
use crate::units::Time;

/// The delay before the first restart.
const DELAY_MIN: Duration = Duration::from_secs(1);
/// The longest delay.
const DELAY_MAX: Duration = Duration::from_secs(60);
/// A life this long makes the next delay the first again.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// How long it may take until an end is seen that somebody wanted.
const EXCUSED_FOR: Duration = Duration::from_secs(10);

/// What is remembered of one app's lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lives {
    /// Starts so far.
    pub starts: u32,
    /// When it was last started.
    started_at: Option<Time>,
    /// Deaths in a row that came before it was stable.
    quick_deaths: u32,
    /// When it may start again, once it was seen to have ended.
    due_at: Option<Time>,
    /// When somebody said that its end is wanted, until it is seen.
    #[serde(default)]
    excused_at: Option<Time>,
}

/// Whose program it is to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// This host's.
    Here,
    /// Another host's, or nobody knows whose, or it is being given away.
    Elsewhere,
}

/// Whether to start the program now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It runs, or somebody else runs it.
    Leave,
    /// Start it in this period.
    Start,
    /// It waits for its delay.
    Wait,
    /// Its policy says that it stays ended.
    Ended,
    /// It is not this host's to start.
    Elsewhere,
}

impl Lives {
    /// Decides for one app in this period.
    pub fn judge(&mut self, now: Time, app: &App, state: &RunState, home: Home) -> Verdict {
        let Binding::Exec(exec) = &app.binding else {
            return Verdict::Leave;
        };
        let runs = *state == RunState::Running;
        if home == Home::Elsewhere && !runs {
            *self = Self {
                starts: self.starts,
                ..Self::default()
            };
            return Verdict::Elsewhere;
        }
        let again = match state {
            RunState::Running => {
                self.due_at = None;
                return Verdict::Leave;
            }
            // A start that failed leaves it absent: tried again with the same patience.
            RunState::Absent => true,
            RunState::Ended(ending) => match exec.restart {
                Restart::Always => true,
                Restart::OnFailure => !ending.is_success(),
                Restart::Never => false,
            },
        };
        if !again {
            return Verdict::Ended;
        }
        // Never started by this daemon: it starts now. One that an earlier daemon started and
        // that ended since gets here only if its policy says so.
        let Some(started_at) = self.started_at else {
            return Verdict::Start;
        };
        let excused = self.excused_at.take();
        if self.due_at.is_none() && excused.is_some_and(|at| now.since(at) < EXCUSED_FOR) {
            self.due_at = Some(now);
        }
        let due_at = *self.due_at.get_or_insert_with(|| {
            self.quick_deaths = if now.since(started_at) >= STABLE_AFTER {
                0
            } else {
                self.quick_deaths.saturating_add(1)
            };
            let doublings = self.quick_deaths.saturating_sub(1).min(16);
            let delay = if app.images.is_some() && self.quick_deaths <= 1 {
                Duration::ZERO
            } else {
                (DELAY_MIN * (1 << doublings)).min(DELAY_MAX)
            };
            Time {
                monotonic: now.monotonic + delay,
                ..now
            }
        });
        if now.monotonic >= due_at.monotonic {
            Verdict::Start
        } else {
            Verdict::Wait
        }
    }

    /// Notes that its end was wanted: the one that was seen just now, or the next one if that comes
    /// soon.
    pub fn excuse(&mut self, now: Time) {
        match &mut self.due_at {
            Some(due_at) => {
                *due_at = now;
                self.quick_deaths = self.quick_deaths.saturating_sub(1);
            }
            None => self.excused_at = Some(now),
        }
    }

    /// Notes that it was started.
    pub fn started(&mut self, now: Time) {
        self.starts = self.starts.saturating_add(1);
        self.started_at = Some(now);
        self.due_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{Class, Exec, Images};
    use crate::snapshot::Ending;

    fn at(seconds: u64) -> Time {
        Time {
            monotonic: Duration::from_secs(seconds),
            unix_ms: 0,
        }
    }

    fn exec(restart: Restart) -> App {
        let binding = Binding::Exec(Exec {
            command: vec!["true".to_owned()],
            user: None,
            group: None,
            directory: None,
            environment: std::collections::BTreeMap::new(),
            stdout: None,
            stderr: None,
            restart,
        });
        App::new("a".parse().unwrap(), Class::Standard, binding)
    }

    #[test]
    fn the_policy_decides_after_an_end() {
        let check = |restart, ending, expected| {
            let mut lives = Lives::default();
            lives.started(at(0));
            let ended = RunState::Ended(ending);
            let verdict = lives.judge(at(1), &exec(restart), &ended, Home::Here);
            assert_eq!(verdict, expected, "{restart:?} after {ending}");
        };
        check(Restart::Never, Ending::Status(1), Verdict::Ended);
        check(Restart::OnFailure, Ending::Status(0), Verdict::Ended);
        check(Restart::OnFailure, Ending::Signal(9), Verdict::Wait);
        check(Restart::Always, Ending::Status(0), Verdict::Wait);
    }

    #[test]
    fn a_job_that_ended_under_an_earlier_daemon_stays_ended() {
        let check = |restart, ending, expected| {
            let ended = RunState::Ended(ending);
            let verdict = Lives::default().judge(at(0), &exec(restart), &ended, Home::Here);
            assert_eq!(verdict, expected, "{restart:?} after {ending}");
        };
        check(Restart::Never, Ending::Unknown, Verdict::Ended);
        check(Restart::OnFailure, Ending::Status(0), Verdict::Ended);
        check(Restart::OnFailure, Ending::Unknown, Verdict::Start);
        check(Restart::Always, Ending::Status(0), Verdict::Start);
    }

    #[test]
    fn what_is_elsewhere_is_not_started_and_begins_anew_when_it_comes_back() {
        let app = exec(Restart::Always);
        let ended = RunState::Ended(Ending::Signal(9));
        let mut lives = Lives::default();
        let mut judge =
            |seconds, state: &RunState, home| lives.judge(at(seconds), &app, state, home);
        let absent = RunState::Absent;
        assert_eq!(judge(0, &absent, Home::Elsewhere), Verdict::Elsewhere);
        assert_eq!(judge(0, &absent, Home::Here), Verdict::Start);
        lives.started(at(0));
        let mut judge =
            |seconds, state: &RunState, home| lives.judge(at(seconds), &app, state, home);
        // Whoever runs is not for supervision to end.
        let running = RunState::Running;
        assert_eq!(judge(1, &running, Home::Elsewhere), Verdict::Leave);
        assert_eq!(judge(2, &ended, Home::Here), Verdict::Wait);
        assert_eq!(judge(9, &ended, Home::Elsewhere), Verdict::Elsewhere);
        assert_eq!(judge(9, &ended, Home::Here), Verdict::Start);
        assert_eq!(lives.starts, 1);
    }

    #[test]
    fn quick_deaths_wait_longer_and_a_long_life_forgives() {
        assert_eq!(delays(&exec(Restart::Always)), [1, 2, 4, 8, 16, 32, 60, 60]);
        let app = App {
            images: Some(Images {
                every: Duration::from_secs(60),
            }),
            ..exec(Restart::Always)
        };
        assert_eq!(delays(&app), [0, 2, 4, 8, 16, 32, 60, 60]);
    }

    /// How long each of eight quick deaths waits for the next life. A long life makes the next
    /// wait the first again.
    fn delays(app: &App) -> Vec<u64> {
        let mut lives = Lives::default();
        let ended = RunState::Ended(Ending::Status(1));
        let verdict = lives.judge(at(0), app, &RunState::Absent, Home::Here);
        assert_eq!(verdict, Verdict::Start);
        let mut now = 0;
        let mut delays = Vec::new();
        for _ in 0..8 {
            lives.started(at(now));
            let died = now;
            while lives.judge(at(now), app, &ended, Home::Here) == Verdict::Wait {
                now += 1;
            }
            delays.push(now - died);
        }
        lives.started(at(now));
        now += 100;
        let died = now;
        while lives.judge(at(now), app, &ended, Home::Here) == Verdict::Wait {
            now += 1;
        }
        assert_eq!(now - died, if app.images.is_some() { 0 } else { 1 });
        delays
    }

    #[test]
    fn an_end_that_was_wanted_does_not_delay_the_next_start() {
        let app = exec(Restart::Always);
        let ended = RunState::Ended(Ending::Signal(9));
        let check = |excuses: &[u64], died: u64, expected: &[u64]| {
            let mut lives = Lives::default();
            lives.started(at(0));
            for excuse in excuses.iter().filter(|excuse| **excuse <= died) {
                lives.excuse(at(*excuse));
                lives.judge(at(*excuse), &app, &RunState::Running, Home::Here);
            }
            for second in died.. {
                let verdict = lives.judge(at(second), &app, &ended, Home::Here);
                if let Some(excuse) = excuses.iter().find(|excuse| **excuse > died) {
                    lives.excuse(at(*excuse));
                }
                if verdict == Verdict::Start {
                    assert_eq!([second, u64::from(lives.quick_deaths)], *expected);
                    break;
                }
            }
        };
        check(&[], 5, &[6, 1]);
        // Said before its end is seen, too long before, and afterwards.
        check(&[4], 5, &[5, 0]);
        check(&[4], 15, &[16, 1]);
        check(&[6], 5, &[6, 0]);
    }
}
