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
//! Where the rest may come after it (post-copy), nothing has to be waited for: a round or two send what is not
//! written all the time, and then it is frozen, whatever is left.
//!
//! Source: Clark et al., "Live Migration of Virtual Machines", NSDI 2005, sections 3.3 and 5; Hines and Gopalan,
//! "Post-Copy Based Live Virtual Machine Migration Using Adaptive Pre-Paging and Dynamic Self-Ballooning", VEE 2009.

use std::time::Duration;

use crate::units::Bytes;

/// Rounds at most: each is a pass over the page tables of the application.
pub const ROUNDS_MAX: u32 = 12;
/// Rounds at most where the rest may come after it.
pub const ROUNDS_BEFORE_REST: u32 = 2;
/// And the part of what was sent that the next one may have to send for that.
const PAYS_TO: f64 = 0.5;
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

/// Whether another round pays where the rest may come after it: it sends clearly less than the one before did.
#[must_use]
pub fn pays(bounds: Bounds, rounds: &[Round]) -> bool {
    let shrank = |last: &Round| last.left.as_f64() <= last.copied.as_f64() * PAYS_TO;
    rounds.len() < ROUNDS_BEFORE_REST as usize
        && judge(bounds, rounds) == Verdict::Again
        && rounds.last().is_none_or(shrank)
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
    fn where_the_rest_may_come_after_it_few_rounds_are_enough() {
        let check = |left: &[u64], expected: bool| {
            let round = |left: &u64| Round {
                copied: Bytes::mib(100),
                took: Duration::from_secs(1),
                left: Bytes::mib(*left),
            };
            let rounds: Vec<Round> = left.iter().map(round).collect();
            assert_eq!(pays(BOUNDS, &rounds), expected, "{left:?}");
        };
        check(&[], true);
        check(&[40], true);
        // Most of it was written meanwhile: with pre-copy it would be tried again, and then stay.
        check(&[90], false);
        check(&[40, 20], false);
        check(&[1], false);
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
