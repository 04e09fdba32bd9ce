//! Whether an app is as well as it was before.

use std::time::Duration;

use super::Pace;

/// Answers before their times say anything.
pub const ANSWERS_MIN: u64 = 50;
/// How many times its past an app without a bound of its own may take.
const SLOWER_MAX: f64 = 2.0;
/// And so much more: of an app that answers in microseconds a factor says nothing.
const SLOWER_BY_MS: f64 = 10.0;
/// Share of errors that is more than chance, beyond that of the past.
const ERRORS_MAX: f64 = 0.01;

/// What is seen of an app at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Looked {
    /// It has a process.
    pub runs: bool,
    /// Somebody takes connections at its address; absent where it has none that is known.
    pub port: Option<bool>,
    /// What its clients saw.
    pub pace: Pace,
    /// Requests that came in that time.
    pub asked: u64,
    /// Requests that ended in it without an answer.
    pub unanswered: u64,
}

/// Whether an app is well now, against what it was and what it may take.
///
/// # Errors
/// Why it is not.
pub fn judge(past: &Looked, now: &Looked, bound: Option<Duration>) -> Result<(), String> {
    if past.runs && !now.runs {
        return Err("it does not run any more".to_owned());
    }
    if past.port == Some(true) && now.port == Some(false) {
        return Err("nobody takes connections at its address any more".to_owned());
    }
    if past.pace.answers >= ANSWERS_MIN && now.pace.answers == 0 && now.asked > 0 {
        return Err(format!("none of {} requests was answered", now.asked));
    }
    let ended = now.pace.answers.saturating_add(now.unanswered);
    let unanswered = now.unanswered as f64 / ended.max(1) as f64;
    if ended >= ANSWERS_MIN && unanswered > ERRORS_MAX {
        return Err(format!(
            "{:.1} % of its requests got no answer",
            unanswered * 100.0
        ));
    }
    if now.pace.answers < ANSWERS_MIN || past.pace.answers < ANSWERS_MIN {
        return Ok(());
    }
    let errors = |pace: &Pace| pace.errors as f64 / pace.answers as f64;
    if errors(&now.pace) > errors(&past.pace) + ERRORS_MAX {
        return Err(format!(
            "{:.1} % of its answers are errors, before it were {:.1} %",
            errors(&now.pace) * 100.0,
            errors(&past.pace) * 100.0
        ));
    }
    let (Some(before), Some(after)) = (past.pace.p99_ms, now.pace.p99_ms) else {
        return Ok(());
    };
    let bound_ms = bound.map_or(0.0, |bound| bound.as_secs_f64() * 1000.0);
    let allowed = (before * SLOWER_MAX + SLOWER_BY_MS).max(bound_ms);
    if after > allowed {
        return Err(format!(
            "one answer in a hundred takes {after:.1} ms, before it was {before:.1} ms"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(runs: bool, port: Option<bool>, answers: u64, errors: u64, p99: f64) -> Looked {
        Looked {
            runs,
            port,
            pace: Pace {
                answers,
                errors,
                p50_ms: Some(p99 / 2.0),
                p99_ms: Some(p99),
                max_ms: Some(p99),
            },
            asked: answers,
            unanswered: 0,
        }
    }

    #[test]
    fn an_app_is_held_to_its_own_past() {
        let past = looked(true, Some(true), 1000, 10, 5.0);
        let check = |now: Looked, bound: Option<u64>, expected: &str| {
            let judged = judge(&past, &now, bound.map(Duration::from_millis));
            let said = judged.err().unwrap_or_default();
            assert!(said.contains(expected), "{said}");
            assert_eq!(said.is_empty(), expected.is_empty(), "{said}");
        };
        check(looked(true, Some(true), 1000, 10, 6.0), None, "");
        check(
            looked(false, Some(true), 1000, 10, 6.0),
            None,
            "does not run",
        );
        check(looked(true, Some(false), 1000, 10, 6.0), None, "nobody");
        check(looked(true, None, 1000, 10, 19.0), None, "");
        check(
            looked(true, None, 1000, 10, 21.0),
            None,
            "takes 21.0 ms, before",
        );
        check(looked(true, None, 1000, 10, 21.0), Some(25), "");
        check(
            looked(true, None, 1000, 21, 5.0),
            None,
            "2.1 % of its answers",
        );
        check(looked(true, None, 49, 49, 900.0), None, "");
    }

    #[test]
    fn an_app_that_takes_connections_and_answers_nobody_is_not_well() {
        let past = looked(true, Some(true), 1000, 0, 5.0);
        let now = |asked, answers, unanswered| Looked {
            asked,
            unanswered,
            ..looked(true, Some(true), answers, 0, 5.0)
        };
        let said = |past: &Looked, now: Looked| judge(past, &now, None).err().unwrap_or_default();
        assert_eq!(said(&past, now(3, 0, 0)), "none of 3 requests was answered");
        assert_eq!(
            said(&past, now(100, 90, 10)),
            "10.0 % of its requests got no answer"
        );
        // Nobody asks any more, and of few nothing is known.
        assert_eq!(said(&past, now(0, 0, 0)), "");
        assert_eq!(said(&past, now(3, 1, 2)), "");
        assert_eq!(said(&looked(true, Some(true), 0, 0, 0.0), now(3, 0, 3)), "");
    }

    #[test]
    fn what_was_not_there_before_is_not_missed() {
        let past = looked(false, Some(false), 0, 0, 0.0);
        assert_eq!(
            judge(&past, &looked(false, Some(false), 0, 0, 0.0), None),
            Ok(())
        );
    }
}
