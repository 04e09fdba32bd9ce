//! Runs of pages by where they begin, each with where its content is: what a process misses, what came of it, what
//! did not.

use std::collections::BTreeMap;

use super::precopy::userfault::Range;

/// Pages beside each other, here and where their content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) len: u64,
    /// Where the content of the first one is.
    pub(super) offset: u64,
}

/// Runs by where they begin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Runs(pub(super) BTreeMap<u64, Run>);

impl Runs {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sum of their lengths.
    pub(super) fn bytes(&self) -> u64 {
        self.0.values().map(|run| run.len).sum()
    }

    /// The first of them.
    pub(super) fn first(&self, most: u64) -> Option<(u64, Run)> {
        let (start, run) = self.0.first_key_value()?;
        let len = run.len.min(most);
        Some((*start, Run { len, ..*run }))
    }

    /// The first that lies at a place, or behind it.
    pub(super) fn next(&self, from: u64, most: u64) -> Option<(u64, Run)> {
        self.at(from, most).or_else(|| {
            let (start, run) = self.0.range(from..).next()?;
            let len = run.len.min(most);
            Some((*start, Run { len, ..*run }))
        })
    }

    /// How far from a place on there is nothing of them, up to `most`.
    pub(super) fn gap(&self, from: u64, most: u64) -> u64 {
        match self.next(from, 1) {
            Some((start, _)) => (start - from).min(most),
            None => most,
        }
    }

    /// What there is from a place on.
    pub(super) fn at(&self, at: u64, most: u64) -> Option<(u64, Run)> {
        let (start, run) = self.0.range(..=at).next_back()?;
        let within = at - start;
        let len = run.len.checked_sub(within).filter(|len| *len > 0)?;
        let found = Run {
            len: len.min(most),
            offset: run.offset + within,
        };
        Some((at, found))
    }

    /// Takes a range out.
    pub(super) fn take(&mut self, range: Range) -> Vec<(u64, Run)> {
        let end = range.start.saturating_add(range.len);
        let before = self.0.range(..range.start).next_back();
        let first = before
            .filter(|(start, run)| *start + run.len > range.start)
            .map_or(range.start, |(start, _)| *start);
        let touched: Vec<u64> = self.0.range(first..end).map(|(start, _)| *start).collect();
        let mut taken = Vec::new();
        for start in touched {
            let Some(run) = self.0.remove(&start) else {
                continue;
            };
            let run_end = start + run.len;
            let (from, to) = (start.max(range.start), run_end.min(end));
            let part = |from: u64, to: u64| Run {
                len: to - from,
                offset: run.offset + (from - start),
            };
            if start < from {
                self.0.insert(start, part(start, from));
            }
            if to < run_end {
                self.0.insert(to, part(to, run_end));
            }
            if from < to {
                taken.push((from, part(from, to)));
            }
        }
        taken
    }

    /// Moves a range elsewhere.
    pub(super) fn shift(&mut self, from: Range, to: u64) {
        let moved = self.take(from);
        self.take(Range {
            start: to,
            len: from.len,
        });
        let shifted = moved
            .into_iter()
            .map(|(start, run)| (start - from.start + to, run));
        self.0.extend(shifted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages 0 to 9 and 20 to 29.
    fn missing() -> Runs {
        let run = |len, offset| Run { len, offset };
        Runs(BTreeMap::from([(0, run(10, 100)), (20, run(10, 200))]))
    }

    fn offsets(missing: &Runs) -> Vec<(u64, u64, u64)> {
        missing
            .0
            .iter()
            .map(|(start, run)| (*start, run.len, run.offset))
            .collect()
    }

    #[test]
    fn what_is_taken_is_missing_no_more() {
        let check = |start, len, expected: &[(u64, u64, u64)]| {
            let mut left = missing();
            let before: u64 = left.0.values().map(|run| run.len).sum();
            let taken = left.take(Range { start, len });
            assert_eq!(offsets(&left), expected, "{start} {len}");
            let after: u64 = left.0.values().map(|run| run.len).sum();
            let sum: u64 = taken.iter().map(|(_, run)| run.len).sum();
            assert_eq!(before, after + sum);
        };
        check(0, 10, &[(20, 10, 200)]);
        check(3, 2, &[(0, 3, 100), (5, 5, 105), (20, 10, 200)]);
        check(5, 20, &[(0, 5, 100), (25, 5, 205)]);
        check(10, 10, &[(0, 10, 100), (20, 10, 200)]);
        check(0, u64::MAX, &[]);
    }

    #[test]
    fn what_is_asked_for_is_found_and_what_moved_is_found_there() {
        let mut missing = missing();
        assert_eq!(
            missing.at(4, 3),
            Some((
                4,
                Run {
                    len: 3,
                    offset: 104
                }
            ))
        );
        assert_eq!(
            missing.at(28, 9),
            Some((
                28,
                Run {
                    len: 2,
                    offset: 208
                }
            ))
        );
        assert_eq!(missing.at(15, 1), None);
        missing.shift(Range { start: 5, len: 5 }, 25);
        assert_eq!(offsets(&missing), [(0, 5, 100), (20, 5, 200), (25, 5, 105)]);
    }

    #[test]
    fn what_lies_behind_a_place_is_found_and_so_is_where_nothing_does() {
        let missing = missing();
        let next = |from| {
            missing
                .next(from, 4)
                .map(|(at, run)| (at, run.len, run.offset))
        };
        assert_eq!(next(7), Some((7, 3, 107)));
        assert_eq!(next(10), Some((20, 4, 200)));
        assert_eq!(next(30), None);
        let gaps = [3, 10, 15, 30].map(|from| missing.gap(from, 8));
        assert_eq!(gaps, [0, 8, 5, 8]);
        assert_eq!(missing.bytes(), 20);
    }
}
