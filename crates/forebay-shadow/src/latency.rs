//! The tail of a route's answer times, learnt on line.
//!
//! A histogram of logarithmic buckets (a ninth more each) whose old entries fade: each answer
//! weighs a hair more than the one before, so that some ten thousand are remembered.

use std::cell::Cell;
use std::time::Duration;

/// Upper bound of the first bucket.
const FIRST: Duration = Duration::from_micros(50);
const GROWTH: f64 = 1.125;
/// The last bucket begins beyond an hour.
const BUCKETS: usize = 160;
/// Answers until half of one's weight is gone.
const HALF_LIFE: f64 = 7000.0;
/// Answers before a tail is told: fewer say little about one in a thousand.
const ANSWERS_MIN: u32 = 20;
const TAIL: f64 = 0.999;

/// Answer times of one kind of request.
#[derive(Debug, Clone)]
pub(crate) struct Latency {
    weights: Box<[f64; BUCKETS]>,
    total: f64,
    /// The weight of the next answer.
    next: f64,
    answers: u32,
    /// The tail as it was when it was last asked for, and after how many answers: a look at many
    /// requests asks each time.
    told: Cell<(u32, Option<Duration>)>,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            weights: Box::new([0.0; BUCKETS]),
            total: 0.0,
            next: 1.0,
            answers: 0,
            told: Cell::new((0, None)),
        }
    }
}

impl Latency {
    pub(crate) fn add(&mut self, time: Duration) {
        if let Some(weight) = self.weights.get_mut(bucket(time)) {
            *weight += self.next;
        }
        self.total += self.next;
        self.next *= 2_f64.powf(1.0 / HALF_LIFE);
        self.answers = self.answers.saturating_add(1);
        if self.next > 1e12 {
            for weight in self.weights.iter_mut() {
                *weight /= self.next;
            }
            self.total /= self.next;
            self.next = 1.0;
        }
    }

    /// The time that one answer in a thousand exceeds, to an eighth; the greatest one remembered
    /// while there are fewer. None before some answers came.
    pub(crate) fn tail(&self) -> Option<Duration> {
        if self.answers < ANSWERS_MIN {
            return None;
        }
        let (answers, told) = self.told.get();
        if answers == self.answers {
            return told;
        }
        let tail = self.find_tail();
        self.told.set((self.answers, tail));
        tail
    }

    fn find_tail(&self) -> Option<Duration> {
        let beyond = self.total * (1.0 - TAIL);
        let mut above = 0.0;
        let place = (0..BUCKETS).rev().find(|place| {
            above += self.weights.get(*place).copied().unwrap_or(0.0);
            above > beyond
        })?;
        Some(bound(place))
    }
}

/// Where a bucket ends.
pub(crate) fn bound(place: usize) -> Duration {
    let steps = i32::try_from(place).unwrap_or(i32::MAX);
    FIRST.mul_f64(GROWTH.powi(steps))
}

/// The bucket of a time.
pub(crate) fn bucket(time: Duration) -> usize {
    let mut bound = FIRST.as_secs_f64();
    let seconds = time.as_secs_f64();
    let mut place = 0;
    while bound < seconds && place + 1 < BUCKETS {
        bound *= GROWTH;
        place += 1;
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_what_one_in_a_thousand_exceeds() {
        let mut latency = Latency::default();
        let ms = Duration::from_millis;
        for number in 0..10_000 {
            assert_eq!(latency.tail().is_some(), number >= ANSWERS_MIN);
            latency.add(ms(if number % 100 == 0 { 20 } else { 1 }));
        }
        let tail = latency.tail().unwrap();
        assert!(tail >= ms(20) && tail < ms(23), "{tail:?}");
        // What is not seen any more fades.
        for _ in 0..60_000 {
            latency.add(ms(1));
        }
        let tail = latency.tail().unwrap();
        assert!(tail >= ms(1) && tail < ms(2), "{tail:?}");
    }

    #[test]
    fn it_stays_in_bounds_for_ever() {
        let mut latency = Latency::default();
        for _ in 0..1_000_000 {
            latency.add(Duration::from_secs(1 << 20));
        }
        assert!(latency.total.is_finite() && latency.next.is_finite());
        assert!(latency.tail().unwrap() > Duration::from_secs(3600));
    }
}
