//! How long an instance took to answer, counted since its front began.
//!
//! Counts and not quantiles: whoever asks twice knows of the time between, and however often
//! several ask, none takes anything away from another.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::latency;

/// Answers by the time that they took, and how many of them were errors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// By bucket: the first ends at 50 µs, each other at a ninth more than the one before it.
    times: Vec<u64>,
    /// Of all answers, those that are errors of the instance: of HTTP, status 500 and above.
    errors: u64,
}

impl Answers {
    /// One more, and whether it is an error.
    pub(crate) fn add(&mut self, took: Duration, kind: Kind) {
        let place = latency::bucket(took);
        if self.times.len() <= place {
            self.times.resize(place + 1, 0);
        }
        if let Some(count) = self.times.get_mut(place) {
            *count += 1;
        }
        self.errors += u64::from(kind == Kind::Error);
    }

    /// What came after another moment; none when that was of another process, which counted itself.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Self> {
        if self.times.len() < before.times.len() {
            return None;
        }
        let grown = self.times.iter().enumerate().map(|(place, count)| {
            let before = before.times.get(place).copied().unwrap_or(0);
            count.checked_sub(before)
        });
        Some(Self {
            times: grown.collect::<Option<Vec<u64>>>()?,
            errors: self.errors.checked_sub(before.errors)?,
        })
    }

    /// These and others.
    #[must_use]
    pub fn and(mut self, others: &Self) -> Self {
        if self.times.len() < others.times.len() {
            self.times.resize(others.times.len(), 0);
        }
        for (count, more) in self.times.iter_mut().zip(&others.times) {
            *count = count.saturating_add(*more);
        }
        self.errors = self.errors.saturating_add(others.errors);
        self
    }

    /// All of them.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.times
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Those that are errors.
    #[must_use]
    pub const fn errors(&self) -> u64 {
        self.errors
    }

    /// What this part of all answers, 0 to 1, took at most, to an eighth above. None without answers.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let wanted = part * self.times.iter().map(|count| *count as f64).sum::<f64>();
        let mut so_far = 0.0;
        let mut places = self.times.iter().enumerate();
        let (place, _) = places.find(|(_, count)| {
            so_far += **count as f64;
            **count > 0 && so_far >= wanted
        })?;
        Some(latency::bound(place))
    }
}

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// What was asked for, or why that is the client's fault.
    Answer,
    /// An error of the instance.
    Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn answers(times: &[(u64, u32)]) -> Answers {
        let mut answers = Answers::default();
        for (took, count) in times {
            for _ in 0..*count {
                answers.add(ms(*took), Kind::Answer);
            }
        }
        answers
    }

    #[test]
    fn quantiles_are_right_to_an_eighth() {
        let check = |times: &[(u64, u32)], part, expected: Option<u64>| {
            let found = answers(times).quantile(part);
            match (found, expected.map(ms)) {
                (Some(found), Some(expected)) => {
                    assert!(
                        found >= expected && found < expected.mul_f64(1.13),
                        "{found:?}"
                    );
                }
                (found, expected) => assert_eq!(found, expected, "{times:?}"),
            }
        };
        check(&[], 0.95, None);
        check(&[(700, 1)], 0.95, Some(700));
        check(&[(1, 95), (700, 5)], 0.95, Some(1));
        check(&[(1, 94), (700, 6)], 0.95, Some(700));
        check(&[(1, 94), (700, 6)], 0.5, Some(1));
        // Nothing is quicker than the first bucket ends.
        let least = Some(Duration::from_micros(50));
        assert_eq!(answers(&[(0, 3)]).quantile(0.5), least);
    }

    #[test]
    fn what_came_since_is_counted_and_another_process_is_noticed() {
        let before = answers(&[(1, 10), (500, 2)]);
        let mut after = before.clone();
        after.add(ms(1), Kind::Answer);
        after.add(ms(900), Kind::Error);
        let since = after.since(&before).unwrap();
        assert_eq!((since.count(), since.errors()), (2, 1));
        assert_eq!(before.since(&before).unwrap().quantile(0.95), None);
        // A new process has counted less, of one kind at least.
        assert_eq!(answers(&[(1, 50)]).since(&before), None);
        assert_eq!(answers(&[(500, 1)]).since(&before), None);
        assert_eq!(answers(&[(1, 10), (500, 2)]).since(&after), None);
    }
}
