//! One series at several resolutions: from ten seconds to a day ahead.
//!
//! # Problem
//!
//! A day is 864,000 periods of 100 ms. No model looks so many steps ahead, and none has to:
//! nobody asks at which tenth of a second tomorrow's peak will come.
//!
//! # Approach
//!
//! Samples are gathered into buckets of 10 s, a minute and an hour ([`SCALES`]). The means of the
//! buckets tell what the value will be about a moment; their maxima, of which the greatest of the
//! next buckets is learnt, how much is needed until then. [`Depth`] says by which models. A question is answered at the finest scale that looks so far ahead; of a window that begins
//! within a bucket, the whole of that bucket is counted. Answers are reconciled: the greatest value
//! until a moment is not below the greatest until an earlier one, and the value at a moment not above it.
//! What a scale has not learnt yet, the longest horizon that is known stands for, its bounds widened
//! by the square root of the ratio, and the answer says that it is cold. Deep models need a quarter of
//! an hour of buckets to begin with: light ones stand in until they know all their horizons.
//!
//! # Properties
//!
//! - A scale costs one step of its models for each bucket, whatever the number of samples.
//! - A series that stands still costs next to nothing: models begin with its first change.
//! - Buckets are of the clock, so that a recorded history continues what is observed.
//! - A clock that is set back begins a new bucket, nothing else; one that leaps ahead leaves a gap.
//! - Bounds of the greatest value do not fall with the horizon.
//!
//! Source: Athanasopoulos, Hyndman, Kourentzes and Petropoulos, "Forecasting with temporal
//! hierarchies", European Journal of Operational Research 2017 (aggregation; here each horizon is
//! served by the scale that learns it directly, and only order is enforced between them).

mod models;

use std::sync::Arc;
use std::time::Duration;

use crate::lstm::Weights;
use crate::mixture::Explanation;
use crate::{Quantiles, Target, is_plausible};
use models::{Models, STILL, Still, by_one};

/// A resolution and how far it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Length of a bucket.
    pub bucket: Duration,
    /// Buckets ahead that are learnt, ascending.
    pub horizons: &'static [usize],
    /// Buckets that are looked back on.
    pub history_max: usize,
    /// A period that the clock suggests, in buckets.
    pub cycle: Option<usize>,
}

/// The resolutions, the finest first: to 10 min over three hours, to 2 h over a day, to a day over
/// a fortnight.
pub const SCALES: [Scale; 3] = [
    Scale {
        bucket: Duration::from_secs(10),
        horizons: &[2, 12, 60],
        history_max: 1080,
        cycle: Some(360),
    },
    Scale {
        bucket: Duration::from_secs(60),
        horizons: &[30, 120],
        history_max: 1440,
        cycle: Some(60),
    },
    Scale {
        bucket: Duration::from_secs(3600),
        horizons: &[6, 24],
        history_max: 360,
        cycle: Some(24),
    },
];

/// Alike buckets that models begin with.
const STILL_TOLD: usize = 64;

/// The furthest that is answered.
pub const AHEAD_MAX: Duration = Duration::from_secs(24 * 3600);

/// An answer about one moment, or about the time until then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ahead {
    /// In the unit of the series.
    pub quantiles: Quantiles,
    /// The scale that answered, by its place in [`SCALES`].
    pub scale: usize,
    /// Whether that scale has not seen enough to look so far, so that bounds are widened.
    pub cold: bool,
}

/// How much a series is worth.
#[derive(Clone, Debug, Default)]
pub enum Depth {
    /// Two [`Series`](crate::Series) at each scale, about 90 KiB: what many applications can have.
    #[default]
    Light,
    /// An [`Ensemble`](crate::Ensemble) for means and a [`Mixture`](crate::Mixture) for maxima: three times as large, and better.
    /// With weights of the network, where it is to take part.
    Full(Option<Arc<Weights>>),
}

/// The samples of one span of time. See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Where it begins, in milliseconds since 1970-01-01 UTC; a multiple of its length.
    pub start_unix_ms: u64,
    /// Mean of its samples.
    pub mean: f64,
    /// Its greatest sample.
    pub max: f64,
    /// How many samples it has: what is observed of it later counts beside them.
    pub samples: u32,
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Scales {
    scales: Vec<AtScale>,
}

/// One series at one resolution.
#[derive(Clone, Debug)]
struct AtScale {
    scale: Scale,
    depth: Depth,
    open: Option<Open>,
    /// What it is like until it changes for the first time; then there are models.
    still: Option<Still>,
    models: Option<Models>,
    /// The newest closed one that has samples.
    last: Option<Bucket>,
    /// Buckets closed so far, gaps among them.
    closed: u64,
}

/// The bucket that samples go into now.
#[derive(Clone, Copy, Debug)]
struct Open {
    start_unix_ms: u64,
    count: f64,
    sum: f64,
    max: f64,
}

impl Open {
    fn of(start_unix_ms: u64) -> Self {
        Self {
            start_unix_ms,
            count: 0.0,
            sum: 0.0,
            max: 0.0,
        }
    }
}

impl Scales {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(depth: &Depth) -> Self {
        let each = |scale: &Scale| AtScale {
            scale: *scale,
            depth: depth.clone(),
            open: None,
            still: None,
            models: None,
            last: None,
            closed: 0,
        };
        Self {
            scales: SCALES.iter().map(each).collect(),
        }
    }

    /// One sample, taken at this time. One that is not plausible leaves no trace.
    pub fn record(&mut self, unix_ms: u64, value: f64) {
        if !is_plausible(value) {
            return;
        }
        let mut gathered = Some(Open {
            start_unix_ms: unix_ms,
            count: 1.0,
            sum: value,
            max: value,
        });
        // A bucket that is closed is a sample of the next coarser scale.
        for at in &mut self.scales {
            let Some(samples) = gathered else { return };
            gathered = at.gather(samples);
        }
    }

    /// A bucket of the past at one scale, by its place in [`SCALES`]: the oldest first, before any
    /// sample after it. One that is not plausible, or not of the past, leaves no trace.
    pub fn replay(&mut self, scale: usize, bucket: &Bucket) {
        let plausible = is_plausible(bucket.mean) && is_plausible(bucket.max);
        if let Some(at) = self.scales.get_mut(scale).filter(|_| plausible) {
            at.replay(bucket);
        }
    }

    /// Fits one model that is due, if any: milliseconds to a second. False if none was.
    pub fn fit(&mut self) -> bool {
        let mut models = self.scales.iter_mut().filter_map(|at| at.models.as_mut());
        models.any(Models::fit)
    }

    /// Other weights for the network from now on.
    pub fn set_weights(&mut self, weights: &Arc<Weights>) {
        for at in &mut self.scales {
            if let Depth::Full(begin_with) = &mut at.depth {
                *begin_with = Some(Arc::clone(weights));
            }
            if let Some(models) = &mut at.models {
                models.set_weights(weights);
            }
        }
    }

    /// What `target` says of a moment so far from `now_unix_ms`, at most [`AHEAD_MAX`]. None before
    /// anything was learnt.
    #[must_use]
    pub fn forecast(&self, target: Target, now_unix_ms: u64, ahead: Duration) -> Option<Ahead> {
        let ahead = ahead.min(AHEAD_MAX);
        let mut peak = self.answer(Target::Peak, now_unix_ms, ahead)?;
        // Whatever is reached earlier is reached until then.
        for (scale, at) in self.scales.iter().enumerate().take(peak.scale + 1) {
            let steps = at.steps(Target::Peak, now_unix_ms, ahead);
            let earlier = |horizon: &&usize| scale < peak.scale || **horizon <= steps;
            let horizons = at.scale.horizons.iter().take_while(earlier);
            let known = horizons.filter_map(|&steps| at.answer(Target::Peak, steps));
            for other in known.filter(|other| peak.cold || !other.cold) {
                peak.quantiles = peak.quantiles.or_greater(other.quantiles);
            }
        }
        if target == Target::Peak {
            return Some(peak);
        }
        let mut value = self.answer(Target::Value, now_unix_ms, ahead)?;
        value.quantiles = value.quantiles.or_less(peak.quantiles);
        Some(value)
    }

    /// Who made the answer about a moment so far ahead. None where nothing is learnt about that.
    #[must_use]
    pub fn explain(
        &self,
        target: Target,
        now_unix_ms: u64,
        ahead: Duration,
    ) -> Option<Explanation> {
        let ahead = ahead.min(AHEAD_MAX);
        let scale = self.answer(target, now_unix_ms, ahead)?.scale;
        let at = self.scales.get(scale)?;
        let steps = at.steps(target, now_unix_ms, ahead);
        let steps = at.served(target, steps)?;
        match &at.models {
            Some(models) => models.explain(target, steps),
            None => Some(by_one(STILL)),
        }
    }

    /// The period found at each scale, finest first.
    pub fn periods(&self) -> impl Iterator<Item = Option<Duration>> {
        self.scales.iter().map(|at| {
            let steps = u32::try_from(at.models.as_ref()?.period()?).ok()?;
            Some(at.scale.bucket * steps)
        })
    }

    /// The newest bucket of the finest scale that is closed and has samples.
    #[must_use]
    pub fn last(&self) -> Option<Bucket> {
        self.scales.first()?.last
    }

    /// Buckets seen at each scale, finest first.
    pub fn buckets(&self) -> impl Iterator<Item = u64> {
        self.scales.iter().map(|at| at.closed)
    }

    /// The answer of the finest scale that looks so far; a coarser one, or else the longest horizon
    /// that is known, widened, where that has learnt nothing yet.
    fn answer(&self, target: Target, now_unix_ms: u64, ahead: Duration) -> Option<Ahead> {
        let known = |(scale, at): (usize, &AtScale)| {
            let answer = at.answer(target, at.steps(target, now_unix_ms, ahead))?;
            (!answer.cold).then_some(Ahead { scale, ..answer })
        };
        let scales = || self.scales.iter().enumerate();
        let mut wide_enough = scales().filter(|(_, at)| ahead <= at.scale.end());
        if let Some(answer) = wide_enough.find_map(known) {
            return Some(answer);
        }
        let longest = |cold: bool| {
            move |(scale, at): (usize, &AtScale)| {
                let (steps, answer) = at.longest(target, cold)?;
                let reached = at.scale.bucket * u32::try_from(steps).ok()?;
                let ratio = ahead.as_secs_f64() / reached.as_secs_f64();
                Some(Ahead {
                    quantiles: answer.quantiles.widened(ratio.max(1.0).sqrt()),
                    scale,
                    cold: true,
                })
            }
        };
        let known = scales().rev().find_map(longest(false));
        known.or_else(|| scales().find_map(longest(true)))
    }

    /// Memory that it takes, in bytes.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        let each = self.scales.iter();
        let models = each.filter_map(|at| at.models.as_ref());
        size_of::<Self>() + models.map(Models::bytes).sum::<usize>()
    }
}

impl Scale {
    /// How far it looks.
    fn end(&self) -> Duration {
        let steps = self.horizons.last().copied().unwrap_or(1);
        let whole = self.bucket * u32::try_from(steps).unwrap_or(u32::MAX);
        whole.min(AHEAD_MAX)
    }

    fn bucket_ms(&self) -> u64 {
        u64::try_from(self.bucket.as_millis()).unwrap_or(u64::MAX)
    }
}

impl AtScale {
    /// Takes in some samples. What was gathered before, where they begin another bucket.
    fn gather(&mut self, samples: Open) -> Option<Open> {
        let start = samples.start_unix_ms - samples.start_unix_ms % self.scale.bucket_ms();
        let closed = self.turn_to(start);
        let open = self.open.get_or_insert_with(|| Open::of(start));
        open.count += samples.count;
        open.sum += samples.sum;
        open.max = open.max.max(samples.max);
        closed
    }

    /// Closes the bucket that is open, if `start` is another, and passes what lies between.
    fn turn_to(&mut self, start: u64) -> Option<Open> {
        let open = self.open.take_if(|open| open.start_unix_ms != start)?;
        self.last = (open.count > 0.0).then(|| Bucket {
            start_unix_ms: open.start_unix_ms,
            mean: open.sum / open.count,
            max: open.max,
            samples: whole(open.count),
        });
        self.pass(self.last.map(|bucket| (bucket.mean, bucket.max)));
        // Of a clock that was set back nothing is known but that time goes on.
        let since = start.saturating_sub(open.start_unix_ms) / self.scale.bucket_ms();
        self.skip(since.saturating_sub(1));
        Some(open)
    }

    /// So many buckets passed unseen. After more than the history has, where in a period it is
    /// is all that is left to know.
    fn skip(&mut self, buckets: u64) {
        let most = u64::try_from(self.scale.history_max).unwrap_or(u64::MAX);
        let cycle = u64::try_from(self.scale.cycle.unwrap_or(1)).unwrap_or(1);
        let passed = match buckets > most {
            true => most - most % cycle + buckets % cycle,
            false => buckets,
        };
        for _ in 0..passed {
            self.pass(None);
        }
    }

    fn replay(&mut self, bucket: &Bucket) {
        let start = bucket.start_unix_ms - bucket.start_unix_ms % self.scale.bucket_ms();
        if self.open.is_some_and(|open| start <= open.start_unix_ms) {
            return;
        }
        self.turn_to(start);
        self.open = Some(Open {
            start_unix_ms: start,
            count: f64::from(bucket.samples.max(1)),
            sum: f64::from(bucket.samples.max(1)) * bucket.mean,
            max: bucket.max,
        });
    }

    fn pass(&mut self, mean_and_max: Option<(f64, f64)>) {
        self.closed += 1;
        if let Some(models) = &mut self.models {
            return models.pass(mean_and_max);
        }
        match (&mut self.still, mean_and_max) {
            (None, None) => {}
            (None, Some((mean, max))) => {
                self.still = Some(Still {
                    mean,
                    max,
                    buckets: 1,
                    unseen: 0,
                });
            }
            (Some(still), None) => still.unseen += 1,
            (Some(still), Some(bucket)) if still.is_like(bucket) => {
                still.buckets += 1;
                still.unseen = 0;
            }
            (Some(still), changed) => {
                let mut models = Models::new(&self.scale, &self.depth);
                for _ in 0..still.buckets.min(STILL_TOLD) {
                    models.pass(Some((still.mean, still.max)));
                }
                for _ in 0..still.unseen.min(STILL_TOLD) {
                    models.pass(None);
                }
                models.pass(changed);
                (self.models, self.still) = (Some(models), None);
            }
        }
    }

    /// Buckets from the last closed one to the one that holds the moment, or ends the window.
    fn steps(&self, target: Target, now_unix_ms: u64, ahead: Duration) -> usize {
        let bucket = self.scale.bucket_ms();
        let start = self.open.map_or(now_unix_ms, |open| open.start_unix_ms);
        // It is closed when the next is begun, which is up to a bucket of the finer scale later.
        let elapsed = now_unix_ms.saturating_sub(start).min(2 * bucket);
        let ahead_ms = u64::try_from(ahead.as_millis()).unwrap_or(u64::MAX);
        let steps = match target {
            Target::Value => (elapsed + ahead_ms) / bucket + 1,
            Target::Peak => (elapsed + ahead_ms).div_ceil(bucket).max(1),
        };
        usize::try_from(steps).unwrap_or(usize::MAX)
    }

    /// The buckets that models are asked about where so many are wanted. A horizon serves a bucket more
    /// than it learns, too: the first has begun. The greatest until a moment is asked at horizons
    /// alone, so that it cannot be more than that until a later one.
    fn served(&self, target: Target, steps: usize) -> Option<usize> {
        let mut horizons = self.scale.horizons.iter();
        let horizon = *horizons.find(|&&horizon| steps <= horizon + 1)?;
        Some(match target {
            Target::Value => steps.min(horizon),
            Target::Peak => horizon,
        })
    }

    fn answer(&self, target: Target, steps: usize) -> Option<Ahead> {
        let steps = self.served(target, steps)?;
        let (quantiles, cold) = match (&self.models, &self.still) {
            (Some(models), _) => models.answer(target, steps)?,
            (None, still) => still.as_ref()?.answer(target, steps)?,
        };
        Some(Ahead {
            quantiles,
            scale: 0,
            cold,
        })
    }

    /// The answer for the longest horizon that there is one for, with its buckets; a cold one only
    /// where that is allowed.
    fn longest(&self, target: Target, cold: bool) -> Option<(usize, Ahead)> {
        let known = |&steps: &usize| Some((steps, self.answer(target, steps)?));
        let horizons = self.scale.horizons.iter().rev();
        horizons
            .filter_map(known)
            .find(|(_, answer)| cold || !answer.cold)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of samples, and a cast stops at the greatest"
)]
fn whole(count: f64) -> u32 {
    count as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FULL: Depth = Depth::Full(None);
    const SECOND: u64 = 1000;
    const HOUR: Duration = Duration::from_secs(3600);

    /// Noon of some day.
    const NOON: u64 = 1_700_049_600_000;

    fn noise(random: &mut fastrand::Rng) -> f64 {
        random.f64() - random.f64()
    }

    /// Samples a second apart, of a course over seconds.
    fn watched(depth: &Depth, seconds: u64, course: impl Fn(u64) -> f64) -> Scales {
        let mut random = fastrand::Rng::with_seed(1);
        let mut scales = Scales::new(depth);
        for second in 0..seconds {
            let value = course(second) + 0.1 * noise(&mut random);
            scales.record(NOON + second * SECOND, value.max(0.0));
        }
        scales
    }

    fn q95(scales: &Scales, now: u64, target: Target, ahead: Duration) -> f64 {
        let ahead = scales.forecast(target, now, ahead).expect("it is known");
        ahead.quantiles.q95()
    }

    #[test]
    fn a_rise_of_every_hour_is_seen_minutes_ahead_and_not_before() {
        // Five minutes of load at the beginning of every hour.
        let course = |second: u64| if second % 3600 < 300 { 8.0 } else { 1.0 };
        let five_to = 5 * 3600 - 300;
        let scales = watched(&FULL, five_to, course);
        let now = NOON + five_to * SECOND;
        let peak = |minutes: u64| {
            q95(
                &scales,
                now,
                Target::Peak,
                Duration::from_secs(60 * minutes),
            )
        };
        assert!(peak(1) < 4.0, "{}", peak(1));
        // By what is learnt of two minutes, and not of ten.
        assert!(peak(2) < 4.0, "{}", peak(2));
        assert!(peak(8) > 7.0, "{}", peak(8));
        assert!(peak(60) > 7.0, "{}", peak(60));
    }

    #[test]
    fn a_recorded_fortnight_shows_tomorrows_peak() {
        let hour_ms = 3600 * SECOND;
        let mut scales = Scales::new(&FULL);
        let load = |hour: u64| match hour % 24 {
            9..=11 => 20.0,
            12..=17 => 10.0,
            _ => 2.0,
        };
        let midnight = NOON - 12 * hour_ms;
        let mut random = fastrand::Rng::with_seed(3);
        for hour in 0..14 * 24 {
            let mean = load(hour) + 0.2 * noise(&mut random);
            let bucket = Bucket {
                start_unix_ms: midnight + hour * hour_ms,
                mean,
                max: 1.5 * mean,
                samples: 36_000,
            };
            scales.replay(2, &bucket);
        }
        let now = midnight + 14 * 24 * hour_ms;
        let ahead = |target, hours: u32| scales.forecast(target, now, HOUR * hours);
        let night = ahead(Target::Value, 5).expect("it is known");
        assert!(night.quantiles.q50() < 4.0 && night.scale == 2, "{night:?}");
        let day = ahead(Target::Peak, 24).expect("it is known");
        assert!(day.quantiles.q50() > 26.0 && !day.cold, "{day:?}");
        assert_eq!(scales.buckets().collect::<Vec<_>>(), [0, 0, 14 * 24 - 1]);
    }

    #[test]
    fn what_is_not_known_yet_is_widened_and_said() {
        let mut random = fastrand::Rng::with_seed(2);
        let mut scales = Scales::new(&FULL);
        assert_eq!(scales.forecast(Target::Peak, NOON, HOUR), None);
        for second in 0..1800 {
            scales.record(NOON + second * SECOND, 10.0 + noise(&mut random));
        }
        let now = NOON + 1800 * SECOND;
        let near = scales.forecast(Target::Peak, now, Duration::from_secs(60));
        let far = scales.forecast(Target::Peak, now, AHEAD_MAX);
        let (near, far) = (near.expect("it is known"), far.expect("it is known"));
        assert!(!near.cold && near.scale == 0, "{near:?}");
        let mut fresh = Scales::new(&FULL);
        (0..30).for_each(|second| fresh.record(NOON + second * SECOND, 10.0));
        let first = fresh.forecast(Target::Peak, NOON + 30 * SECOND, HOUR);
        let first = first.expect("a bucket was seen");
        assert!(first.cold && first.quantiles.q95() > 10.0, "{first:?}");
        assert!(far.cold, "{far:?}");
        let spread = |ahead: Ahead| ahead.quantiles.q95() - ahead.quantiles.q50();
        assert!(spread(far) > 5.0 * spread(near), "{near:?} {far:?}");
    }

    #[test]
    fn a_clock_that_is_set_back_loses_nothing_and_one_that_leaps_goes_on() {
        // Every tenth bucket has a spike, which those that follow do not show.
        let spiky = |second: u64| if second % 100 < 10 { 50.0 } else { 5.0 };
        let mut scales = watched(&Depth::Light, 3600, spiky);
        let now = NOON + 3600 * SECOND;
        let ahead = Duration::from_secs(120);
        let learnt = q95(&scales, now, Target::Peak, ahead);
        assert!(learnt > 40.0, "{learnt}");
        let back = NOON - 86_400 * SECOND;
        (0..20).for_each(|second| scales.record(back + second * SECOND, spiky(second)));
        let peak = q95(&scales, back + 20 * SECOND, Target::Peak, ahead);
        assert!(peak > 40.0, "{peak}");
        // A gap of three months is one: what was before it is long ago.
        let later = NOON + 90 * 86_400 * SECOND;
        (0..20).for_each(|second| scales.record(later + second * SECOND, 5.0));
        let peak = q95(&scales, later + 20 * SECOND, Target::Peak, ahead);
        assert!((4.9..60.0).contains(&peak), "{peak}");
    }

    #[test]
    fn two_minutes_are_answered_by_what_is_learnt_of_two_minutes() {
        // A ramp of ten minutes: what is 120 s ahead is not what is 600 s ahead.
        let ramp = |second: u64| (second % 600) as f64;
        let scales = watched(&FULL, 3 * 3600, ramp);
        let now = NOON + 3 * 3600 * SECOND;
        let value = |seconds| {
            let ahead = scales.forecast(Target::Value, now, Duration::from_secs(seconds));
            ahead.expect("it is known").quantiles.q50()
        };
        assert!((value(120) - 125.0).abs() < 20.0, "{}", value(120));
        // Between what is learnt of 120 s and of 600 s, where the ramp begins anew.
        let (near, far) = (value(120), value(600));
        let between = near.min(far)..near.max(far);
        assert!(between.contains(&value(360)), "{near} {} {far}", value(360));
    }

    #[test]
    fn what_was_not_seen_is_no_evidence_of_standing_still() {
        let mut scales = Scales::new(&FULL);
        (0..11).for_each(|second| scales.record(NOON + second * SECOND, 7.0));
        scales.record(NOON + 600 * SECOND, 7.0);
        let now = NOON + 601 * SECOND;
        let far = scales.forecast(Target::Peak, now, Duration::from_secs(300));
        assert!(far.expect("something is said").cold, "{far:?}");
    }

    #[test]
    fn an_hour_that_was_recorded_in_part_goes_on() {
        let mut scales = Scales::new(&FULL);
        let bucket = Bucket {
            start_unix_ms: NOON,
            mean: 10.0,
            max: 10.0,
            samples: 3000,
        };
        scales.replay(2, &bucket);
        for second in 3000..3600 {
            scales.record(NOON + second * SECOND, 1.0);
        }
        (0..90).for_each(|second| scales.record(NOON + (3600 + second) * SECOND, 1.0));
        let hour = scales.scales[2].last.expect("it is closed");
        assert!((hour.mean - 8.5).abs() < 0.1, "{hour:?}");
    }

    #[test]
    fn what_one_series_takes_is_bounded() {
        let full = Depth::Full(Some(Arc::new(Weights::pretrained())));
        for (depth, kib) in [(Depth::Light, 92), (full, 320)] {
            let scales = watched(&depth, 6 * 3600, |second| {
                f64::from(u32::try_from(second % 977).unwrap())
            });
            let bytes = scales.bytes();
            assert!(bytes < kib * 1024, "{kib} KiB: {bytes}");
        }
    }

    #[test]
    fn what_stands_still_costs_nothing_and_wakes_up() {
        let mut scales = Scales::new(&FULL);
        for second in 0..900 {
            scales.record(NOON + second * SECOND, 7.0);
        }
        assert!(scales.bytes() < 1024, "{}", scales.bytes());
        let now = NOON + 900 * SECOND;
        let near = scales.forecast(Target::Peak, now, Duration::from_secs(60));
        let near = near.expect("it is known");
        assert!(!near.cold && near.quantiles.q99() < 7.1, "{near:?}");
        let far = scales
            .forecast(Target::Peak, now, HOUR)
            .expect("something is said");
        assert!(far.cold, "{far:?}");
        let mut random = fastrand::Rng::with_seed(5);
        for second in 900..1500 {
            scales.record(NOON + second * SECOND, 20.0 + noise(&mut random));
        }
        let woken = q95(
            &scales,
            NOON + 1500 * SECOND,
            Target::Peak,
            Duration::from_secs(60),
        );
        assert!((20.0..30.0).contains(&woken), "{woken}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn peaks_do_not_fall_with_the_horizon_and_are_not_below_values(
            seed in any::<u64>(),
            leaps in proptest::collection::vec((0_u64..2_000_000, 0.0..1e6), 20..60),
        ) {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut scales = Scales::new(&FULL);
            let mut now = NOON;
            for (leap, value) in leaps {
                for _ in 0..20 {
                    scales.record(now, value * random.f64());
                    now += random.u64(..15_000);
                }
                now = match random.bool() {
                    true => now + leap,
                    false => now.saturating_sub(leap / 4),
                };
            }
            let mut before: Option<[f64; 4]> = None;
            for seconds in [1, 9, 10, 70, 300, 590, 600, 3000, 14_340, 15_000, 50_000, 86_400] {
                let ahead = Duration::from_secs(seconds);
                let Some(peak) = scales.forecast(Target::Peak, now, ahead) else { continue };
                if let Some(value) = scales.forecast(Target::Value, now, ahead) {
                    for (p, v) in peak.quantiles.to_array().into_iter().zip(value.quantiles.to_array()) {
                        prop_assert!(p >= v, "{seconds}: {peak:?} {value:?}");
                    }
                }
                let now = peak.quantiles.to_array();
                if let Some(before) = before.replace(now) {
                    prop_assert!(before.iter().zip(now).all(|(b, n)| *b <= n), "{seconds}: {peak:?} after {before:?}");
                }
            }
        }
    }
}
