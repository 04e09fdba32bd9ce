//! When to train, and when trained weights are judged. Pure.
//!
//! # Problem
//!
//! Training costs processor time and memory, and what it learns is worth it only where the history
//! tells something new. New weights did better on the part of the history that was held out from
//! their training, and may still do worse on what comes then.
//!
//! # Approach
//!
//! How much history there is, is counted in steps of all resolutions, each up to what is learnt
//! from. Training begins with [`Rules::first_steps`], and again when a part of
//! [`Rules::growth`] is newer than the last training, but not before [`Rules::every`] has passed.
//! What came out is on trial until [`Rules::judge_steps`] steps of ten seconds are newer than all
//! that it learnt from. On these, it is held against the weights before it.
//!
//! # Properties
//!
//! - While weights are on trial nothing is trained: what they go back to has stood a trial.
//! - A trial ends: what nothing can be compared on for [`TRIAL_SPANS_MAX`] times as long is kept.
//! - A clock that was set back does not stop training for as long as it was wrong.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::store::Level;

/// A trial ends after so many times the steps that it takes at least.
const TRIAL_SPANS_MAX: u64 = 12;

/// How often what is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rules {
    /// Steps of history before the first training.
    pub(super) first_steps: u64,
    /// Part of the steps that has to be new.
    pub(super) growth: f64,
    /// Between two trainings, or two comparisons, of one run of the daemon.
    pub(super) every: Duration,
    /// New steps of ten seconds before new weights are compared.
    pub(super) judge_steps: u64,
    /// Steps of one resolution that count.
    pub(super) steps_max: u64,
}

impl Default for Rules {
    /// Four hours of history; then a quarter of what counts, at most every four hours.
    fn default() -> Self {
        Self {
            first_steps: 900,
            growth: 0.25,
            every: Duration::from_secs(4 * 3600),
            judge_steps: 360,
            steps_max: 682,
        }
    }
}

/// What was trained before; kept beside the weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Past {
    /// Of the weights in use.
    pub(super) version: u32,
    /// The highest that any weights had.
    pub(super) versions: u32,
    /// Trainings that ended.
    pub(super) jobs: u64,
    /// Where what was learnt from ends. None before the first training.
    pub(super) until_unix_ms: Option<u64>,
    /// Whether the weights in use are on trial.
    pub(super) on_trial: bool,
}

impl Past {
    /// With an end that is not later than now: later is what a clock was set back from.
    pub(super) fn corrected(self, now_unix_ms: u64) -> Self {
        Self {
            until_unix_ms: self.until_unix_ms.map(|until| until.min(now_unix_ms)),
            ..self
        }
    }
}

/// What there is at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) unix_ms: u64,
    /// Where the roll-ups of each resolution start and end.
    pub(super) spans: [(Level, Option<(u64, u64)>); 3],
    /// Since the last training or comparison of this run.
    pub(super) since_job: Option<Duration>,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    Train,
    /// Compare the weights in use with those before.
    Judge,
}

/// What came of a comparison.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Outcome {
    /// The trial goes on.
    Undecided,
    Keep,
    RollBack,
}

/// What is to be done now.
pub(super) fn next(rules: &Rules, past: &Past, now: &Now) -> Next {
    if now.since_job.is_some_and(|since| since < rules.every) {
        return Next::Wait;
    }
    let until = past.corrected(now.unix_ms).until_unix_ms;
    if past.on_trial {
        return match since_training(until, now) >= rules.judge_steps {
            true => Next::Judge,
            false => Next::Wait,
        };
    }
    let all = steps(rules, 0, now);
    let fresh = until.map_or(all, |until| steps(rules, until, now));
    if all >= rules.first_steps && as_f64(fresh) >= rules.growth * as_f64(all) {
        Next::Train
    } else {
        Next::Wait
    }
}

/// What a comparison of the weights in use with those before means: `ratio` of their losses, where
/// anything could be compared.
pub(super) fn outcome(rules: &Rules, past: &Past, now: &Now, ratio: Option<f64>) -> Outcome {
    match ratio {
        Some(ratio) if ratio <= 1.0 => Outcome::Keep,
        Some(_) => Outcome::RollBack,
        None => {
            match since_training(past.until_unix_ms, now) >= TRIAL_SPANS_MAX * rules.judge_steps {
                true => Outcome::Keep,
                false => Outcome::Undecided,
            }
        }
    }
}

/// Steps of ten seconds from the end of what was learnt from to the newest of the history, kept or
/// not: where less is kept than a trial takes, it has to end all the same.
fn since_training(until: Option<u64>, now: &Now) -> u64 {
    let ten = now
        .spans
        .into_iter()
        .filter(|(l, _)| *l == Level::TenSeconds);
    ten.filter_map(|(level, span)| {
        let (_, newest) = span?;
        Some(newest.saturating_sub(until.unwrap_or(0)) / level.step_ms())
    })
    .sum()
}

fn steps(rules: &Rules, since_unix_ms: u64, now: &Now) -> u64 {
    let of = |(level, span)| steps_of(rules, level, span, since_unix_ms);
    now.spans.into_iter().map(of).sum()
}

fn steps_of(rules: &Rules, level: Level, span: Option<(u64, u64)>, since: u64) -> u64 {
    let Some((oldest, newest)) = span else {
        return 0;
    };
    let passed = newest.saturating_sub(oldest.max(since));
    (passed / level.step_ms()).min(rules.steps_max)
}

#[expect(clippy::cast_precision_loss, reason = "steps are few")]
fn as_f64(steps: u64) -> f64 {
    steps as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const RULES: fn() -> Rules = Rules::default;

    /// History of so many hours, at an hour of the clock.
    fn now(hours: u64, at: u64) -> Now {
        let span = Some(((at - hours) * HOUR, at * HOUR));
        Now {
            unix_ms: at * HOUR,
            spans: Level::ALL.map(|level| (level, span)),
            since_job: None,
        }
    }

    fn trained(hour: u64) -> Past {
        Past {
            until_unix_ms: Some(hour * HOUR),
            jobs: 1,
            ..Past::default()
        }
    }

    #[test]
    fn the_first_training_waits_for_enough_history() {
        let check = |hours, expected| {
            assert_eq!(next(&RULES(), &Past::default(), &now(hours, 100)), expected);
        };
        check(0, Next::Wait);
        check(1, Next::Wait);
        check(3, Next::Wait);
        check(4, Next::Train);
        check(90, Next::Train);
        let mut empty = now(90, 100);
        empty.spans = Level::ALL.map(|level| (level, None));
        assert_eq!(next(&RULES(), &Past::default(), &empty), Next::Wait);
    }

    #[test]
    fn further_ones_wait_for_growth_and_for_their_time() {
        let check = |hours_ago: u64, since_job, expected| {
            let now = Now {
                since_job,
                ..now(400, 1000)
            };
            assert_eq!(next(&RULES(), &trained(1000 - hours_ago), &now), expected);
        };
        check(0, None, Next::Wait);
        check(1, None, Next::Wait);
        check(2, None, Next::Train);
        check(2, Some(Duration::from_secs(3600)), Next::Wait);
        check(9, Some(Duration::from_secs(4 * 3600)), Next::Train);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_stop_training() {
        let past = trained(5000);
        assert_eq!(next(&RULES(), &past, &now(400, 1000)), Next::Wait);
        // The thread writes down the earlier end once it has seen it: see `Past::corrected`.
        let past = past.corrected(1000 * HOUR);
        assert_eq!(next(&RULES(), &past, &now(402, 1002)), Next::Train);
    }

    #[test]
    fn new_weights_are_judged_once_enough_is_newer_and_nothing_is_trained_before() {
        let past = Past {
            on_trial: true,
            ..trained(1000)
        };
        let at = |at| next(&RULES(), &past, &now(400, at));
        assert_eq!(at(1000), Next::Wait);
        assert_eq!(at(1001), Next::Judge);
        assert_eq!(at(1300), Next::Judge);
        // Where less is kept than a trial takes, too.
        let mut short = now(400, 1001);
        short.spans[0].1 = Some((1001 * HOUR - 60_000, 1001 * HOUR));
        assert_eq!(next(&RULES(), &past, &short), Next::Judge);
    }

    #[test]
    fn only_what_lost_is_rolled_back_and_every_trial_ends() {
        let past = trained(1000);
        let check = |hours: u64, ratio, expected| {
            let outcome = outcome(&RULES(), &past, &now(400, 1000 + hours), ratio);
            assert_eq!(outcome, expected, "{ratio:?} after {hours} h");
        };
        check(1, Some(0.9), Outcome::Keep);
        check(1, Some(1.0), Outcome::Keep);
        check(1, Some(1.001), Outcome::RollBack);
        check(1, Some(f64::NAN), Outcome::RollBack);
        check(1, None, Outcome::Undecided);
        check(11, None, Outcome::Undecided);
        check(12, None, Outcome::Keep);
    }
}
