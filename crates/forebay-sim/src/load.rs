//! What a simulated program asks for over time.

use std::f64::consts::TAU;
use std::time::Duration;

/// How an amount (CPUs, bytes, bytes per second) goes over the life of a program.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// Always the same.
    Constant(f64),
    /// One change.
    Step {
        /// Until the change.
        before: f64,
        /// From the change on.
        after: f64,
        /// When, since the program started.
        at: Duration,
    },
    /// A regular swing, never below zero.
    Sine {
        /// The middle.
        mean: f64,
        /// From the middle to the top.
        amplitude: f64,
        /// From top to top.
        period: Duration,
    },
    /// Low, with a rise of one length at equal intervals, the first after one of them.
    Pulse {
        /// Between rises.
        low: f64,
        /// In a rise.
        high: f64,
        /// From one rise to the next.
        every: Duration,
        /// Length of a rise.
        length: Duration,
    },
    /// Low, with bursts of random length at random times.
    Bursty {
        /// Between bursts.
        low: f64,
        /// In a burst.
        high: f64,
        /// Mean time from one burst to the next.
        gap: Duration,
        /// Mean length of a burst.
        length: Duration,
    },
    /// A random walk between two bounds.
    Walk {
        /// Where it begins.
        start: f64,
        /// Largest change in one second.
        step: f64,
        /// Never below.
        low: f64,
        /// Never above.
        high: f64,
    },
}

/// A load with what it remembers.
#[derive(Debug, Clone)]
pub(crate) struct Generator {
    load: Load,
    /// Position of a walk.
    position: f64,
    /// Whether a burst is on, and until when.
    burst: bool,
    until: f64,
}

impl Generator {
    pub(crate) fn new(load: Load) -> Self {
        let position = match load {
            Load::Walk { start, .. } => start,
            _ => 0.0,
        };
        Self {
            load,
            position,
            burst: true,
            until: 0.0,
        }
    }

    /// The amount at `age` after the start, `step` seconds after the last call.
    pub(crate) fn next(&mut self, age: f64, step: f64, rng: &mut fastrand::Rng) -> f64 {
        match self.load {
            Load::Constant(value) => value,
            Load::Step { before, after, at } => {
                if age < at.as_secs_f64() {
                    before
                } else {
                    after
                }
            }
            Load::Sine {
                mean,
                amplitude,
                period,
            } => (mean + amplitude * (TAU * age / period.as_secs_f64().max(1e-9)).sin()).max(0.0),
            Load::Pulse {
                low,
                high,
                every,
                length,
            } => {
                let every = every.as_secs_f64().max(1e-3);
                let risen = age >= every && age % every < length.as_secs_f64();
                if risen { high } else { low }
            }
            Load::Bursty {
                low,
                high,
                gap,
                length,
            } => {
                while age >= self.until {
                    self.burst = !self.burst;
                    let mean = if self.burst { length } else { gap }.as_secs_f64();
                    // At least a millisecond, so that the loop ends.
                    self.until += (-mean * (1.0 - rng.f64()).ln()).max(1e-3);
                }
                if self.burst { high } else { low }
            }
            Load::Walk {
                step: most,
                low,
                high,
                ..
            } => {
                let change = most * step * (2.0 * rng.f64() - 1.0);
                self.position = (self.position + change).max(low).min(high);
                self.position
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(load: Load, seconds: u32) -> Vec<f64> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut generator = Generator::new(load);
        (0..seconds * 10)
            .map(|i| generator.next(f64::from(i) / 10.0, 0.1, &mut rng))
            .collect()
    }

    #[test]
    fn a_step_changes_once() {
        let values = values(
            Load::Step {
                before: 1.0,
                after: 3.0,
                at: Duration::from_secs(2),
            },
            4,
        );
        assert_eq!((values[19], values[20], values[39]), (1.0, 3.0, 3.0));
    }

    #[test]
    fn a_sine_swings_and_stays_above_zero() {
        let values = values(
            Load::Sine {
                mean: 1.0,
                amplitude: 2.0,
                period: Duration::from_secs(4),
            },
            8,
        );
        assert!((values[10] - 3.0).abs() < 1e-9, "{values:?}");
        assert_eq!(values[30], 0.0);
    }

    #[test]
    fn bursts_come_as_often_as_asked() {
        let values = values(
            Load::Bursty {
                low: 0.0,
                high: 1.0,
                gap: Duration::from_secs(3),
                length: Duration::from_secs(1),
            },
            4000,
        );
        let share = values.iter().sum::<f64>() / 40_000.0;
        assert!((0.2..0.3).contains(&share), "{share}");
    }

    #[test]
    fn a_walk_stays_in_its_bounds_and_is_steady() {
        let values = values(
            Load::Walk {
                start: 2.0,
                step: 1.0,
                low: 1.0,
                high: 3.0,
            },
            1000,
        );
        assert!(values.iter().all(|v| (1.0..=3.0).contains(v)));
        assert!(values.windows(2).all(|w| (w[1] - w[0]).abs() <= 0.1 + 1e-9));
    }
}
