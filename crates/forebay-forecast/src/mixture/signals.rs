//! What the past says, as numbers that models can use.
//!
//! Differences are measured in units of how far the series lately strays from its mean, so that
//! bytes and shares of a CPU look alike.

use crate::Target;
use crate::history::{Range, Tail, narrow};
use crate::period::{Search, Verdict};

use super::analogue::{Analogues, Neighbours};
use super::season::{Echo, Season};

/// Numbers in a feature vector: one, those of its own, and some guesses above the last value.
pub(super) const FEATURES: usize = 1 + OWN_FEATURES + GUESSED.len();
pub(super) const OWN_FEATURES: usize = 18;
/// Guesses at the centre that need no learning; NaN while there is none.
pub(super) const GUESSES: usize = 13;
/// The place of the greatest of as many steps as the horizon has.
pub(super) const RECENT_PEAK: usize = GUESSES - 1;
/// Their names, in order.
pub(super) const GUESS_NAMES: [&str; GUESSES] = [
    "last value",
    "average, 0.05",
    "average, 0.15",
    "average, 0.3",
    "average, 0.6",
    "average, 0.9",
    "damped trend",
    "season found",
    "its profile",
    "season of the clock",
    "the clock's profile",
    "long mean",
    "recent peak",
];

/// The places of those that are features: two averages, both seasons, the mean, the recent peak.
const GUESSED: [usize; 6] = [1 + MIDDLE, 1 + SLOWEST, 7, 9, 11, RECENT_PEAK];

pub(super) type Features = [f32; FEATURES];

/// Weight of the newest sample in each exponential average.
const RATES: [f64; 5] = [0.05, 0.15, 0.3, 0.6, 0.9];
/// The slowest of them, and the one that features are taken from.
const SLOWEST: usize = 0;
const MIDDLE: usize = 2;
/// Holt's level and trend, and the damping of the trend.
const LEVEL: f64 = 0.3;
const TREND: f64 = 0.1;
const DAMPING: f64 = 0.9;
/// Rates of the averages of changes, fast and slow, and of the mean and what strays from it.
const CHANGE_FAST: f64 = 0.2;
const CHANGE: f64 = 0.03;
const MEAN: f64 = 0.003;
const STRAY: f64 = 0.005;
/// How far from the mean a sample is believed when means are formed, in mean distances: a spike
/// moves them little, and a new level is followed, since the distance grows with it.
const BELIEVED: f64 = 30.0;
/// Samples over which the mean and what strays from it are plain averages.
const WARM: u32 = 30;
/// Samples before anything is said: what is learnt from worse means has to be unlearnt.
const SEEN_MIN: u32 = 40;
/// How much of the present distance from the profile lasts.
const PROFILE_KEPT: f64 = 0.7;
/// The unit, in mean distances from the mean, and its least part of the level.
const UNIT: f64 = 3.0;
const UNIT_MIN: f64 = 1e-4;
/// Below this nothing is measured.
const TINY: f64 = 1e-9;

/// The state of one series.
#[derive(Clone, Debug)]
pub(super) struct Signals {
    tail: Tail,
    search: Search,
    /// With the period that was found.
    found: Season,
    /// With the period of the clock, in steps.
    clock: Season,
    cycle: Option<usize>,
    range: Range,
    analogues: Analogues,
    smoothed: [f64; RATES.len()],
    level: f64,
    trend: f64,
    change: f64,
    change_fast: f64,
    mean: f64,
    stray: f64,
    magnitude: f64,
    seen: u32,
}

/// What is guessed and known of one horizon, from one origin.
#[derive(Clone, Debug)]
pub(super) struct Outlook {
    pub(super) features: Features,
    pub(super) guesses: [f64; GUESSES],
    /// The mean of that phase of the period; the long mean without a period.
    pub(super) profile: f64,
    /// What differences are measured in.
    pub(super) unit: f64,
    /// Mean change from one step to the next.
    pub(super) change: f64,
    /// Mean magnitude of the series.
    pub(super) magnitude: f64,
    /// Lowest and highest of the history.
    pub(super) range: (f64, f64),
}

impl Signals {
    /// For histories of `history_max` samples, up to `far` steps ahead.
    pub(super) fn new(history_max: usize, far: usize, cycle: Option<usize>) -> Self {
        Self {
            tail: Tail::new(history_max),
            search: Search::START,
            found: Season::default(),
            clock: Season::default(),
            cycle,
            analogues: Analogues::new(history_max, far),
            range: Range::new(history_max * 8 / 7 + 8),
            smoothed: [0.0; RATES.len()],
            level: 0.0,
            trend: 0.0,
            change: 0.0,
            change_fast: 0.0,
            mean: 0.0,
            stray: 0.0,
            magnitude: 0.0,
            seen: 0,
        }
    }

    pub(super) fn cycle(&self) -> Option<usize> {
        self.cycle
    }

    pub(super) fn period(&self) -> Option<usize> {
        self.found.period()
    }

    #[cfg(test)]
    pub(super) fn mean(&self) -> f64 {
        self.mean
    }

    pub(super) fn tail(&self) -> &Tail {
        &self.tail
    }

    /// One step passed with this sample.
    pub(super) fn update(&mut self, value: f64) {
        let before = self.tail.last().map_or(value, f64::from);
        if self.seen == 0 {
            self.smoothed = [value; RATES.len()];
            self.level = value;
            self.mean = value;
            self.magnitude = value;
        }
        self.seen = self.seen.saturating_add(1);
        for (smoothed, rate) in self.smoothed.iter_mut().zip(RATES) {
            *smoothed += rate * (value - *smoothed);
        }
        let level = self.level;
        self.level = LEVEL * value + (1.0 - LEVEL) * (level + DAMPING * self.trend);
        self.trend = TREND * (self.level - level) + (1.0 - TREND) * DAMPING * self.trend;
        let change = (value - before).abs();
        self.change += CHANGE * (change - self.change);
        self.change_fast += CHANGE_FAST * (change - self.change_fast);
        let warm = |rate: f64| {
            if self.seen < WARM {
                1.0 / f64::from(self.seen)
            } else {
                rate
            }
        };
        // Of what never strayed, nothing says how far it may.
        let believed = if self.seen < WARM || self.stray <= 0.0 {
            value
        } else {
            let most = BELIEVED * self.stray + UNIT_MIN * self.magnitude;
            value.clamp(self.mean - most, self.mean + most)
        };
        self.mean += warm(MEAN) * (believed - self.mean);
        self.stray += warm(STRAY) * ((believed - self.mean).abs() - self.stray);
        self.magnitude += warm(STRAY) * (believed - self.magnitude);
        self.range.push(value);
        self.pass(value);
    }

    /// One step passed without a sample: time goes on with the last value.
    pub(super) fn update_gap(&mut self) {
        if let Some(last) = self.tail.last() {
            self.pass(f64::from(last));
        }
    }

    fn pass(&mut self, value: f64) {
        self.found.step(value);
        self.clock.step(value);
        self.tail.push(value);
        let unit = narrow(self.unit());
        self.analogues.step(self.tail.samples(), unit);
        let samples = self.tail.samples();
        match self.search.step(samples, self.found.period()) {
            Some(Verdict::Replace(period)) => self.found.begin(Some(period), samples),
            Some(Verdict::Drop) => self.found.begin(None, samples),
            Some(Verdict::Keep) | None => {}
        }
        if self.clock.period().is_none() && Some(samples.len()) == self.cycle {
            self.clock.begin(self.cycle, samples);
        }
    }

    /// What differences are measured in.
    fn unit(&self) -> f64 {
        (UNIT * self.stray).max(UNIT_MIN * self.magnitude).max(TINY)
    }

    /// The moments like the present one, at least `steps` ago.
    pub(super) fn neighbours(&self, steps: usize) -> Option<Neighbours> {
        let len = self.tail.samples().len();
        self.analogues.neighbours(len, steps)
    }

    /// What is known `steps` ahead. None while means are of too few samples.
    pub(super) fn outlook(&self, target: Target, steps: usize) -> Option<Outlook> {
        if self.seen <= SEEN_MIN {
            return None;
        }
        let samples = self.tail.samples();
        let last = f64::from(*samples.last()?);
        let unit = self.unit();
        let back = |k: usize| f64::from(samples[samples.len().saturating_sub(k + 1)]);
        let mean_of = |count: usize| {
            let recent = &samples[samples.len().saturating_sub(count)..];
            #[expect(clippy::cast_precision_loss, reason = "a short window")]
            let mean = f64::from(recent.iter().sum::<f32>()) / recent.len() as f64;
            mean
        };
        let peak_in = |count: usize| self.tail.peak(count).unwrap_or(last);
        let echo = |season: &Season| season.echo(samples, target, steps);
        let none = Echo {
            one: last,
            around: last,
            two: last,
            then: last,
            now: last,
        };
        let (found, clock) = (echo(&self.found), echo(&self.clock));
        let profile = clock.or(found).map_or(self.mean, |echo| echo.then);
        let seasons = [found, clock];
        let [found, clock] = seasons.map(|echo| echo.unwrap_or(none));
        let middle = self.smoothed[MIDDLE];
        let peak = peak_in(steps);
        let part = |difference: f64| narrow(difference / unit);
        let own: [f32; OWN_FEATURES] = [
            part(last - back(1)),
            part(back(1) - back(2)),
            part(back(2) - back(3)),
            part(back(3) - back(4)),
            part(back(4) - back(6)),
            part(mean_of(12) - last),
            part(mean_of(60) - last),
            part(found.around - last),
            part(found.two - last),
            part(found.then - last),
            part(found.then - found.now),
            part(clock.around - last),
            part(clock.two - last),
            part(clock.then - last),
            part(clock.then - clock.now),
            part(peak_in(12) - last),
            part(peak_in(60) - last),
            part(self.change_fast),
        ];
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_possible_wrap,
            reason = "far below 2^31"
        )]
        let trend = self.trend * DAMPING * (1.0 - DAMPING.powi(steps as i32)) / (1.0 - DAMPING);
        let [a, b, c, d, e] = self.smoothed;
        let adjusted = |echo: Echo| (echo.then + PROFILE_KEPT * (middle - echo.now)).max(0.0);
        let [[found, its], [clock, clocks]] =
            seasons.map(|echo| echo.map_or([f64::NAN; 2], |echo| [echo.one, adjusted(echo)]));
        let guesses = [
            last,
            a,
            b,
            c,
            d,
            e,
            (self.level + trend).max(0.0),
            found,
            its,
            clock,
            clocks,
            self.mean,
            peak,
        ];
        let above = guesses.map(|guess| part(guess - last));
        Some(Outlook {
            features: features(&own, &above),
            guesses,
            profile,
            unit,
            change: self.change,
            magnitude: self.magnitude,
            range: self.range.bounds().unwrap_or((last, last)),
        })
    }

    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        self.tail.bytes() + self.analogues.heap_bytes() + self.found.bytes() + self.clock.bytes()
    }
}

/// All features; `guesses` are above the last value, in units. One that is absent says the last
/// value.
pub(super) fn features(own: &[f32; OWN_FEATURES], guesses: &[f32]) -> Features {
    let mut features = [1.0; FEATURES];
    let (first, last) = features[1..].split_at_mut(OWN_FEATURES);
    first.copy_from_slice(own);
    for (feature, place) in last.iter_mut().zip(GUESSED) {
        let guess = guesses[place];
        *feature = if guess.is_nan() { 0.0 } else { guess };
    }
    features
}
