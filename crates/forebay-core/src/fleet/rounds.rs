//! When enough of a running application was copied to freeze it for the rest.
//!
//! Problem: while it is copied, it goes on writing. Freezing early makes the pause long; going on for
//! ever copies the same pages again and again.
//!
//! Approach: iterative pre-copy. Every round copies what was written during the one before, which is
//! less if copying is faster than writing. What is left, by the speed that was measured, is the pause
//! that freezing now would cost, beside what it costs anyhow. Enough is what fits the bound that the
//! user set. Where rounds stop shrinking, no more of them help: then it is frozen if the pause is one
//! that the user still accepts, and stays where it is otherwise.
//!
//! Source: Clark et al., "Live Migration of Virtual Machines", NSDI 2005, sections 3.3 and 5.

use std::time::Duration;

use crate::units::Bytes;

/// Rounds at most: each is a pass over the page tables of the application.
pub const ROUNDS_MAX: u32 = 12;
/// A round that leaves more than this part of the one before does not pay for itself.
const SHRINKS_TO: f64 = 0.8;

/// What the user wants of a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Wanted: rounds go on until it is reached.
    pub aim: Duration,
    /// Accepted where it cannot be: more than this, and it stays.
    pub most: Duration,
    /// What freezing, making the copy ready and letting it go on take without any page.
    pub fixed: Duration,
}

/// One round that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// What it copied.
    pub copied: Bytes,
    /// How long that took.
    pub took: Duration,
    /// What was written meanwhile, and is left to copy.
    pub left: Bytes,
}

impl Round {
    /// The pause that freezing now would cost; none where nothing was copied, so that no speed is known.
    #[must_use]
    pub fn pause(&self, fixed: Duration) -> Option<Duration> {
        if self.left == Bytes(0) {
            return Some(fixed);
        }
        let seconds = self.took.as_secs_f64() * self.left.as_f64() / self.copied.as_f64();
        Duration::try_from_secs_f64(seconds)
            .ok()?
            .checked_add(fixed)
    }
}

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Copy what was written meanwhile.
    Again,
    /// Freeze it: so long a pause is expected.
    Freeze(Duration),
    /// It writes faster than it can be copied, and the pause would be this, if that is known.
    Stay(Option<Duration>),
}

/// Judges the rounds so far, oldest first. Without any, the first has to come.
#[must_use]
pub fn judge(bounds: Bounds, rounds: &[Round]) -> Verdict {
    let Some(last) = rounds.last() else {
        return Verdict::Again;
    };
    let pause = last.pause(bounds.fixed);
    if let Some(pause) = pause
        && pause <= bounds.aim
    {
        return Verdict::Freeze(pause);
    }
    let before = rounds.len().checked_sub(2).map(|at| rounds[at].left);
    let shrinks = last.left > Bytes(0)
        && before.is_none_or(|before| last.left.as_f64() <= before.as_f64() * SHRINKS_TO);
    if shrinks && rounds.len() < ROUNDS_MAX as usize {
        return Verdict::Again;
    }
    match pause {
        Some(pause) if pause <= bounds.most => Verdict::Freeze(pause),
        _ => Verdict::Stay(pause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        aim: Duration::from_millis(100),
        most: Duration::from_millis(500),
        fixed: Duration::from_millis(40),
    };

    /// Rounds of an application of `mib` that writes `dirty` MiB/s of its memory, copied at `speed` MiB/s.
    fn check(mib: f64, dirty: f64, speed: f64) -> (usize, Verdict) {
        let mut rounds = Vec::new();
        let mut left = mib;
        loop {
            let took = left / speed;
            let copied = Bytes::from_f64(left * 1048576.0);
            left = (took * dirty).min(mib);
            rounds.push(Round {
                copied,
                took: Duration::from_secs_f64(took),
                left: Bytes::from_f64(left * 1048576.0),
            });
            match judge(BOUNDS, &rounds) {
                Verdict::Again => assert!(rounds.len() <= ROUNDS_MAX as usize),
                verdict => return (rounds.len(), verdict),
            }
        }
    }

    #[test]
    fn rounds_go_on_until_the_pause_is_short() {
        let (rounds, verdict) = check(1024.0, 100.0, 1000.0);
        assert_eq!(rounds, 2);
        assert!(
            matches!(verdict, Verdict::Freeze(pause) if pause < BOUNDS.aim),
            "{verdict:?}"
        );
    }

    #[test]
    fn an_application_at_rest_is_frozen_after_one() {
        assert_eq!(
            check(1024.0, 0.0, 1000.0),
            (1, Verdict::Freeze(BOUNDS.fixed))
        );
    }

    #[test]
    fn no_round_copies_nothing() {
        let bounds = Bounds {
            fixed: Duration::from_millis(200),
            ..BOUNDS
        };
        let round = Round {
            copied: Bytes::mib(1),
            took: Duration::from_millis(1),
            left: Bytes(0),
        };
        assert_eq!(judge(bounds, &[round]), Verdict::Freeze(bounds.fixed));
    }

    #[test]
    fn one_that_writes_too_fast_is_frozen_only_if_that_is_accepted() {
        let (rounds, verdict) = check(200.0, 950.0, 1000.0);
        assert!(rounds < 4);
        assert!(
            matches!(verdict, Verdict::Freeze(pause) if pause > BOUNDS.aim),
            "{verdict:?}"
        );
        let (_, verdict) = check(4096.0, 2000.0, 1000.0);
        assert!(
            matches!(verdict, Verdict::Stay(Some(pause)) if pause > BOUNDS.most),
            "{verdict:?}"
        );
    }

    #[test]
    fn without_a_speed_there_is_no_pause() {
        let round = Round {
            copied: Bytes(0),
            took: Duration::ZERO,
            left: Bytes(1),
        };
        assert_eq!(round.pause(BOUNDS.fixed), None);
        assert_eq!(judge(BOUNDS, &[round, round]), Verdict::Stay(None));
    }
}
