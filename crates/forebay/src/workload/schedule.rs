//! When an open-loop load generator sends: the requests of a load pattern and their times.
//!
//! # Problem
//!
//! Requests are to come at a rate which changes with time, at times which depend on nothing else.
//!
//! # Approach
//!
//! The integral of the rate from the beginning to a time is the number of requests due until
//! then; request number `n` is due when the integral reaches `n`. The integral has a closed form;
//! its inverse is found by halving the period, which is exact enough and needs no case per shape.
//!
//! # Properties
//!
//! - Intended times never go back, and keep to the rate over every part of a period.
//! - The same pattern gives the same times in every run.
//! - While the rate is 0, nothing is due.

use std::str::FromStr;
use std::time::Duration;

pub(super) const RATE_MAX: f64 = 20_000.0;
pub(super) const SECONDS_MAX: u64 = 3600;
/// Halvings of a period: the longest comes out finer than a microsecond.
const BISECTIONS: usize = 40;

/// A rate which goes from low to high and back once per period. Rates are per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pattern {
    low: f64,
    high: f64,
    period_s: f64,
    shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Low for half of the period, then high.
    Square,
    /// One cosine from low over high to low.
    Sine,
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "expected low:high:period_s or low:high:period_s:square|sine, \
                 with 0 <= low <= high, 0 < high <= {RATE_MAX}, 0.1 <= period_s <= {SECONDS_MAX}"
            )
        };
        let parts: Vec<&str> = text.split(':').collect();
        let (numbers, shape) = match parts.as_slice() {
            [numbers @ .., "square"] => (numbers, Shape::Square),
            [numbers @ .., "sine"] => (numbers, Shape::Sine),
            numbers => (numbers, Shape::Square),
        };
        let &[low, high, period_s] = numbers else {
            return Err(expected());
        };
        let number = |text: &str| text.parse::<f64>().map_err(|_| expected());
        let (low, high, period_s) = (number(low)?, number(high)?, number(period_s)?);
        // Comparisons with NaN are false, so that it is refused, too.
        let rates = 0.0 <= low && low <= high && 0.0 < high && high <= RATE_MAX;
        if rates && 0.1 <= period_s && Duration::from_secs(SECONDS_MAX).as_secs_f64() >= period_s {
            Ok(Self {
                low,
                high,
                period_s,
                shape,
            })
        } else {
            Err(expected())
        }
    }
}

impl Pattern {
    pub(super) fn constant(rate: f64) -> Self {
        Self {
            low: rate,
            high: rate,
            period_s: 1.0,
            shape: Shape::Square,
        }
    }

    /// Requests in one period.
    fn per_period(&self) -> f64 {
        f64::midpoint(self.low, self.high) * self.period_s
    }

    /// Integral of the rate from 0 to `t_s`: how many requests that time asks for.
    fn integral(&self, t_s: f64) -> f64 {
        let periods = (t_s / self.period_s).floor();
        periods * self.per_period() + self.integral_in_period(t_s - periods * self.period_s)
    }

    fn integral_in_period(&self, t_s: f64) -> f64 {
        let half_s = self.period_s / 2.0;
        match self.shape {
            Shape::Square => self.low * t_s.min(half_s) + self.high * (t_s - half_s).max(0.0),
            Shape::Sine => {
                let amplitude = (self.high - self.low) / 2.0;
                let turns = std::f64::consts::TAU / self.period_s;
                f64::midpoint(self.low, self.high) * t_s - amplitude / turns * (turns * t_s).sin()
            }
        }
    }

    /// The latest time, in seconds, up to which the rate asks for no more than `requests`.
    fn inverse(&self, requests: f64) -> f64 {
        let periods = (requests / self.per_period()).floor();
        let rest = requests - periods * self.per_period();
        let (mut early_s, mut late_s) = (0.0, self.period_s);
        for _ in 0..BISECTIONS {
            let middle_s = f64::midpoint(early_s, late_s);
            if self.integral_in_period(middle_s) <= rest {
                early_s = middle_s;
            } else {
                late_s = middle_s;
            }
        }
        periods * self.period_s + early_s
    }
}

/// When requests are due. Times are relative to the start of the warm-up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    pub(super) pattern: Pattern,
    pub(super) warmup: Duration,
    pub(super) measured: Duration,
}

impl Schedule {
    /// Requests in warm-up and measured time together.
    pub(super) fn total(&self) -> u64 {
        let end_s = (self.warmup + self.measured).as_secs_f64();
        whole(self.pattern.integral(end_s).ceil())
    }

    /// When request number `index`, from 0, is to be sent.
    pub(super) fn intended(&self, index: u64) -> Duration {
        Duration::from_secs_f64(self.pattern.inverse(index as f64))
    }

    /// How many requests are due at this time.
    pub(super) fn due(&self, at: Duration) -> u64 {
        let asked = self.pattern.integral(at.as_secs_f64());
        (whole(asked.floor()) + 1).min(self.total())
    }

    /// The second of the measured time which this time belongs to; `None` in the warm-up.
    pub(super) fn slice(&self, at: Duration) -> Option<usize> {
        let second = at.checked_sub(self.warmup)?.as_secs();
        usize::try_from(second).ok()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of requests are whole, not negative, and bounded by rate and time"
)]
fn whole(requests: f64) -> u64 {
    requests as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_parsed() {
        let check = |text: &str, expected: Option<(f64, f64, f64, Shape)>| {
            let expected = expected.map(|(low, high, period_s, shape)| Pattern {
                low,
                high,
                period_s,
                shape,
            });
            assert_eq!(text.parse().ok(), expected, "{text}");
        };
        check("100:300:20", Some((100.0, 300.0, 20.0, Shape::Square)));
        check("0:300:0.5:sine", Some((0.0, 300.0, 0.5, Shape::Sine)));
        check("5:5:20:square", Some((5.0, 5.0, 20.0, Shape::Square)));
        let bad = [
            "",
            "100",
            "100:300",
            "300:100:20",
            "0:0:20",
            "-1:1:20",
            "1:2:0",
            "1:1e9:20",
            "1:2:1e9",
            "nan:2:20",
            "1:nan:20",
            "1:2:nan",
            "1:2:20:saw",
            "1:2:20:sine:",
            "1:2:3:4:sine",
        ];
        for text in bad {
            check(text, None);
        }
    }

    fn schedule(pattern: &str, warmup_s: u64, seconds: u64) -> Schedule {
        Schedule {
            pattern: pattern.parse().unwrap(),
            warmup: Duration::from_secs(warmup_s),
            measured: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn the_integral_of_a_rate_is_its_requests() {
        let check = |pattern: &str, t_s: f64, requests: f64| {
            let integral = pattern.parse::<Pattern>().unwrap().integral(t_s);
            assert!((integral - requests).abs() < 1e-6, "{pattern}: {integral}");
        };
        check("100:300:20", 10.0, 1000.0);
        check("100:300:20", 15.0, 2500.0);
        check("100:300:20", 20.0, 4000.0);
        check("100:300:20", 45.0, 8500.0);
        check("100:300:20:sine", 20.0, 4000.0);
        check("100:300:20:sine", 10.0, 2000.0);
        // A quarter of a period in, the sine has fallen behind by its amplitude over its speed.
        let behind = 100.0 * 20.0 / std::f64::consts::TAU;
        check("100:300:20:sine", 5.0, 1000.0 - behind);
    }

    #[test]
    fn intended_times_follow_the_rate() {
        let check = |pattern: &str, index: u64, expected_s: f64| {
            let at_s = schedule(pattern, 0, 60).intended(index).as_secs_f64();
            assert!(
                (at_s - expected_s).abs() < 1e-6,
                "{pattern} {index}: {at_s}"
            );
        };
        check("100:100:1", 0, 0.0);
        check("100:100:1", 1, 0.01);
        check("100:100:1", 12_345, 123.45);
        check("100:300:20", 999, 9.99);
        check("100:300:20", 1300, 11.0);
        check("100:300:20", 4100, 21.0);
        // Nothing is sent while the rate is 0.
        check("0:100:20", 0, 10.0);
        check("0:100:20", 999, 19.99);
        check("0:100:20", 1000, 30.0);
    }

    #[test]
    fn intended_times_never_go_back_and_stay_in_the_time() {
        for pattern in [
            "100:300:2",
            "100:300:2:sine",
            "0:300:3",
            "0:90:0.7:sine",
            "7:7:1",
        ] {
            let schedule = schedule(pattern, 1, 4);
            let times: Vec<_> = (0..schedule.total())
                .map(|i| schedule.intended(i))
                .collect();
            assert!(times.is_sorted(), "{pattern}");
            // A microsecond is what halving a period leaves open.
            let end = schedule.warmup + schedule.measured + Duration::from_micros(1);
            assert!(times.iter().all(|time| *time <= end), "{pattern}");
            for (index, time) in (0..).zip(&times) {
                let due = schedule.due(*time + Duration::from_micros(1));
                assert!(due > index, "{pattern} {index}: {due}");
            }
        }
    }

    #[test]
    fn the_warm_up_belongs_to_no_slice() {
        let schedule = schedule("1:1:1", 2, 3);
        assert_eq!(schedule.total(), 5);
        let slice = |millis| schedule.slice(Duration::from_millis(millis));
        assert_eq!(slice(1999), None);
        assert_eq!(slice(2000), Some(0));
        assert_eq!(slice(4999), Some(2));
    }
}
