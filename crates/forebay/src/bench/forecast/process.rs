//! Series of known processes.
//!
//! What is forecast on them well is known: an autoregression by ARIMA, a season by whoever finds
//! it, a course that comes again by analogues, and nobody foresees a shift of level.

use std::collections::BTreeSet;

use super::HORIZONS;
use crate::backtest::{Series, Setting};

/// Steps of a series, those before the first origin, and those from one origin to the next.
const STEPS: usize = 3000;
const FIRST: usize = 1200;
const EVERY: usize = 15;
/// Steps of a day at one every five minutes.
const DAY: usize = 288;
const PERIOD_SECONDS: f64 = 300.0;

#[derive(Debug, Clone, Copy)]
enum Process {
    /// Two steps back count against one: it oscillates.
    Autoregression,
    /// What shocked the last step is half undone.
    MovingAverage,
    /// Persistent noise about a level that wanders.
    Integrated,
    /// A wave of a day with persistent noise.
    Day,
    /// A burst every 100 steps.
    Bursts,
    /// Bursts at no time that can be known.
    RandomBursts,
    /// A course of nine steps that begins at no time that can be known.
    Courses,
    /// Levels that last some 400 steps.
    Levels,
    /// Jumps with a tail so heavy that their variance hardly exists.
    HeavyTails,
    /// The exponential of persistent noise.
    Lognormal,
}

const PROCESSES: [(Process, &str); 10] = [
    (Process::Autoregression, "autoregression"),
    (Process::MovingAverage, "moving average"),
    (Process::Integrated, "integrated"),
    (Process::Day, "day"),
    (Process::Bursts, "bursts"),
    (Process::RandomBursts, "random bursts"),
    (Process::Courses, "courses"),
    (Process::Levels, "levels"),
    (Process::HeavyTails, "heavy tails"),
    (Process::Lognormal, "lognormal"),
];

/// One series of each process.
pub(super) fn all(seed: u64) -> Vec<Series> {
    let mut random = fastrand::Rng::with_seed(seed);
    let one = |&(process, name): &(Process, &str)| {
        let values = of(process, &mut random);
        let greatest = values[..=FIRST].iter().copied().fold(0.0, f64::max);
        Series {
            name: name.to_owned(),
            samples: values.into_iter().map(Some).collect(),
            origins: origins(),
            setting: Setting {
                period_seconds: Some(PERIOD_SECONDS),
                reference: greatest,
                ..super::setting()
            },
        }
    };
    PROCESSES.iter().map(one).collect()
}

fn origins() -> BTreeSet<usize> {
    let last = STEPS - HORIZONS[HORIZONS.len() - 1];
    (FIRST..last).step_by(EVERY).collect()
}

/// About normal, with a deviation of one.
fn shock(random: &mut fastrand::Rng) -> f64 {
    (0..12).map(|_| random.f64()).sum::<f64>() - 6.0
}

fn of(process: Process, random: &mut fastrand::Rng) -> Vec<f64> {
    let (mut state, mut before, mut left, mut level) = (0.0, 0.0, 0_usize, 40.0);
    let step = |step: usize| {
        let e = shock(random);
        let value = match process {
            Process::Autoregression => {
                (state, before) = (1.6 * state - 0.9 * before + e, state);
                60.0 + state
            }
            Process::MovingAverage => {
                let value = 40.0 + e - 0.5 * before;
                before = e;
                value
            }
            Process::Integrated => {
                state = 0.5 * state + e - 0.4 * before;
                before = e;
                level = 40.0 + 0.998 * (level - 40.0) + 0.3 * state;
                level
            }
            Process::Day => {
                state = 0.7 * state + e;
                #[expect(clippy::cast_precision_loss, reason = "below a day")]
                let phase = (step % DAY) as f64 / DAY as f64;
                40.0 + 20.0 * (std::f64::consts::TAU * phase).sin() + state
            }
            Process::Bursts => 10.0 + e + if step % 100 < 12 { 30.0 } else { 0.0 },
            Process::RandomBursts => {
                left = left.saturating_sub(1);
                if left == 0 && random.u32(..100) == 0 {
                    left = random.usize(5..25);
                }
                10.0 + e + if left > 0 { 40.0 } else { 0.0 }
            }
            Process::Courses => {
                const COURSE: [f64; 9] = [10.0, 30.0, 35.0, 20.0, 40.0, 45.0, 12.0, 50.0, 10.0];
                if left == 0 && random.u32(..40) == 0 {
                    left = COURSE.len() - 1;
                } else {
                    left = left.saturating_sub(1);
                }
                COURSE[left] + 0.5 * e
            }
            Process::Levels => {
                if random.u32(..400) == 0 {
                    level = 10.0 + 60.0 * random.f64();
                }
                level + 2.0 * e
            }
            Process::HeavyTails => {
                state = 0.7 * state + random.f64().max(1e-9).powf(-1.0 / 2.2);
                5.0 + state
            }
            Process::Lognormal => {
                state = 0.97 * state + 0.15 * e;
                (3.0 + state).exp()
            }
        };
        f64::max(value, 0.0)
    };
    (0..STEPS).map(step).collect()
}
