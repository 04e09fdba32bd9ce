//! One series, online: from samples to what the network reads.
//!
//! # Problem
//!
//! A network for all series must see them alike: kilobytes and shares, calm and
//! bursts. And what takes it long to learn (means, seasons, a linear fit) is cheap
//! to compute.
//!
//! # Approach
//!
//! Every input is a difference from the last value in units of a running mean
//! absolute change or deviation, bounded by a soft clip; or the logarithm of a
//! ratio of such units. Besides the recent changes the network reads what cheap
//! models say: five exponential means, recent peaks, the value one known period
//! before the target, and a recursive least-squares fit for each horizon with the
//! quantiles of its errors ([`super::track`]).
//!
//! # Properties
//!
//! - Inputs are finite and bounded whatever comes, and do not depend on the unit of
//!   the series.
//! - A gap keeps time aligned (the last value is repeated in the history), is not
//!   learnt from and not judged.

use super::head::{Anchors, CENTRES};
use super::math::soften;
use super::past::Past;
use super::track::{INPUTS, Now, PeakTrack, Seen, ValueTrack, in_units};
use crate::Target;
use crate::history::{Range, narrow};
use crate::mean::Mean;

/// Inputs that do not belong to a horizon, to a value, to a peak.
const COMMON: usize = 27;
const PER_VALUE: usize = 11;
const PER_PEAK: usize = 5;
/// Weights of the newest sample in the means.
const RATES: [f64; 5] = [0.5, 0.2, 0.05, 0.01, 0.003];
const SLOW: usize = 3;
/// Weights of the newest one in errors and deviations, in the mean change, in shares,
/// and in the recent change.
const SLOW_RATE: f64 = 1.0 / 256.0;
const UNIT_RATE: f64 = 1.0 / 128.0;
const SHARE_RATE: f64 = 1.0 / 64.0;
const RECENT_RATE: f64 = 1.0 / 12.0;
/// Bound of inputs.
const INPUT_MAX: f32 = 4.0;
/// Steps of the recent range.
const RANGE_STEPS: usize = 1024;
/// Least unit of change: as a share of the value, and for a series of zeros.
const UNIT_SHARE_MIN: f64 = 1e-6;
const UNIT_MIN: f64 = 1e-9;

/// Running statistics of a series and what follows from them.
#[derive(Clone, Debug)]
pub(super) struct Features {
    past: Past,
    longest: usize,
    seen: u32,
    /// Steps since the last gap of the history, at most one more than the longest horizon has.
    unbroken: usize,
    means: [Mean; RATES.len()],
    change: Mean,
    recent_change: Mean,
    deviation: Mean,
    season_error: Mean,
    unchanged: Mean,
    persistence: Mean,
    last_change: f64,
    since_jump: f32,
    range: Range,
    values: Vec<ValueTrack>,
    peaks: Vec<PeakTrack>,
    inputs: usize,
    anchors: Vec<Anchors>,
}

/// How many inputs a network for these horizons has.
pub(super) fn inputs(horizons: &[usize]) -> usize {
    let peaks = horizons.iter().filter(|&&steps| steps > 1).count();
    COMMON + PER_VALUE * horizons.len() + PER_PEAK * peaks
}

impl Features {
    /// To forecast these targets.
    pub(super) fn new(horizons: &[usize], targets: &[Target], period: Option<usize>) -> Self {
        let longest = horizons.iter().copied().max().unwrap_or(1);
        Self {
            past: Past::new(longest, period),
            longest,
            seen: 0,
            unbroken: 0,
            means: [Mean::default(); RATES.len()],
            change: Mean::default(),
            recent_change: Mean::default(),
            deviation: Mean::default(),
            season_error: Mean::default(),
            unchanged: Mean::default(),
            persistence: Mean::default(),
            last_change: 0.0,
            since_jump: 0.0,
            range: Range::new(RANGE_STEPS),
            values: horizons
                .iter()
                .map(|&steps| ValueTrack::new(steps))
                .collect(),
            peaks: horizons
                .iter()
                .filter(|&&steps| steps > 1)
                .map(|&steps| PeakTrack::new(steps, targets))
                .collect(),
            inputs: inputs(horizons),
            anchors: Vec::new(),
        }
    }

    /// What the network weighs after the last sample: values by horizon, then peaks by horizon.
    pub(super) fn anchors(&self) -> &[Anchors] {
        &self.anchors
    }

    /// Samples so far.
    pub(super) fn seen(&self) -> u32 {
        self.seen
    }

    /// The last sample. None before the first.
    pub(super) fn last(&self) -> Option<f64> {
        self.past.last()
    }

    /// Lowest and highest recent sample. None before the first.
    pub(super) fn bounds(&self) -> Option<(f64, f64)> {
        self.range.bounds()
    }

    pub(super) fn period(&self) -> Option<usize> {
        self.past.period()
    }

    /// Another period, or none. Samples are kept as far as they were.
    pub(super) fn set_period(&mut self, period: Option<usize>) {
        if period != self.past.period() {
            self.past = self.past.with_period(period);
            self.season_error = Mean::default();
        }
    }

    #[cfg(test)]
    pub(super) fn heap_bytes(&self) -> usize {
        let tracks = self.values.iter().map(ValueTrack::bytes).sum::<usize>()
            + self.peaks.iter().map(PeakTrack::bytes).sum::<usize>();
        self.past.heap_bytes() + tracks + self.anchors.capacity() * size_of::<Anchors>()
    }

    /// One step passed without a sample.
    pub(super) fn pass(&mut self) {
        let Some(last) = self.last() else { return };
        self.past.push(last);
        self.unbroken = 0;
        for track in &mut self.values {
            track.observe(None);
            track.put_nothing_aside();
        }
        for track in &mut self.peaks {
            track.observe(None);
            track.put_nothing_aside();
        }
    }

    /// One step passed with a plausible sample. What the network reads of it.
    pub(super) fn push(&mut self, value: f64) -> Vec<f32> {
        let before = self.last().unwrap_or(value);
        self.past.push(value);
        self.range.push(value);
        self.seen = self.seen.saturating_add(1);
        self.unbroken = (self.unbroken + 1).min(self.longest + 1);
        self.observe(value);
        self.learn(value, before);
        self.expect(value)
    }

    fn observe(&mut self, value: f64) {
        for track in &mut self.values {
            track.observe(Some(value));
        }
        for track in &mut self.peaks {
            let seen = || {
                let (peak, last) = (self.past.peak(track.steps)?, self.past.back(track.steps)?);
                Some(Seen { peak, last })
            };
            let whole = self.unbroken > track.steps;
            track.observe(whole.then(seen).flatten());
        }
    }

    /// Means, units and the like.
    fn learn(&mut self, value: f64, before: f64) {
        if let Some(expected) = self.past.season(0) {
            self.season_error.push((value - expected).abs(), SLOW_RATE);
        }
        let change = value - before;
        if self.seen > 1 {
            let unit = self.change.value.max(UNIT_MIN);
            let product =
                (change / unit).clamp(-4.0, 4.0) * (self.last_change / unit).clamp(-4.0, 4.0);
            self.persistence.push(product, SHARE_RATE);
            self.deviation
                .push((value - self.means[SLOW].value).abs(), SLOW_RATE);
            self.change.push(change.abs(), UNIT_RATE);
            self.recent_change.push(change.abs(), RECENT_RATE);
            let same = if change == 0.0 { 1.0 } else { 0.0 };
            self.unchanged.push(same, SHARE_RATE);
        }
        for (mean, rate) in self.means.iter_mut().zip(RATES) {
            mean.push(value, rate);
        }
        self.last_change = change;
        let jumped = change.abs() > 3.0 * self.deviation.value.max(self.change.value);
        self.since_jump = if jumped {
            0.0
        } else {
            (self.since_jump + 1.0).min(1e4)
        };
    }

    /// What is expected after this sample: inputs and anchors.
    fn expect(&mut self, value: f64) -> Vec<f32> {
        let unit_min = (UNIT_SHARE_MIN * value).max(UNIT_MIN);
        let unit = self.change.value.max(unit_min);
        let deviation = self.deviation.value.max(0.1 * unit).max(unit_min);
        let (low, high) = self.range.bounds().unwrap_or((value, value));
        let spread = high - low;
        let now = Now {
            last: value,
            slow: self.means[SLOW].value,
            unit_min,
            bounds: (low - 0.1 * spread, high + 0.1 * spread),
        };
        let back = |steps| self.past.back(steps).unwrap_or(value);
        let past: [f64; 6] = std::array::from_fn(back);
        let peak = |steps: usize| self.past.peak(steps).unwrap_or(value);
        let (peak_12, peak_60) = (peak(12), peak(60));
        let low_60 = self.past.lowest(60).unwrap_or(value);
        let means = self.means.map(|mean| mean.value - value);

        let mut x = Inputs(Vec::with_capacity(self.inputs));
        // The last changes, and how far the means lag behind.
        for lag in 0..3 {
            x.push(past[lag] - past[lag + 1], unit);
        }
        x.push(means[0], unit);
        x.push(means[1], unit);
        for mean in means {
            x.push(mean, deviation);
        }
        // Where the last value lies in the recent range.
        for bound in [peak_12, peak_60, low_60, high, low] {
            x.push(bound - value, deviation);
        }
        // How restless the series is: lately, slowly, relative to its level.
        x.ratio(self.recent_change.value, unit);
        x.ratio(deviation, unit);
        x.ratio(unit, value.abs().max(unit));
        x.push(spread, deviation);
        x.raw(narrow(self.unchanged.value));
        x.raw(narrow(self.persistence.value));
        x.raw((1.0 + self.since_jump).ln() / 4.0);
        x.raw(if value == 0.0 { 1.0 } else { 0.0 });
        // Whether there is a season, how good it is, and where in it this step is.
        let seasonal = if self.past.has_season() { 1.0 } else { 0.0 };
        x.raw(seasonal);
        x.ratio(self.season_error.value.max(unit_min), deviation);
        let phase = self.past.phase() * std::f32::consts::TAU;
        x.raw(seasonal * phase.sin());
        x.raw(seasonal * phase.cos());
        debug_assert_eq!(x.0.len(), COMMON);

        self.anchors.clear();
        self.expect_values(&mut x, now, (unit, deviation), &past, peak_12);
        self.expect_peaks(&mut x, now, unit);
        x.0
    }

    /// The targets that are values.
    fn expect_values(
        &mut self,
        x: &mut Inputs,
        now: Now,
        (unit, deviation): (f64, f64),
        past: &[f64; 6],
        peak_12: f64,
    ) {
        let Now { last, .. } = now;
        let means = self.means.map(|mean| mean.value - last);
        for track in &mut self.values {
            let season = self.past.outlook(track.steps, last);
            let inputs: [f64; INPUTS] = [
                0.1 * deviation,
                means[1],
                means[2],
                means[SLOW],
                past[0] - past[1],
                past[1] - past[2],
                past[2] - past[3],
                past[3] - past[5],
                past[5] - last,
                season.exact,
                season.drift,
                season.profile,
                season.turn,
                peak_12 - last,
                means[4],
                0.1 * last,
            ];
            let inputs = inputs.map(|input| narrow(input / deviation).clamp(-50.0, 50.0));
            let centres: [f64; CENTRES - 2] = [
                0.0,
                means[0],
                means[1],
                means[2],
                season.smooth,
                season.drift,
                season.profile,
                0.7 * means[1] + season.turn,
            ];
            let anchors = track.put_aside(now, (&inputs, deviation), centres);
            x.push(season.exact, deviation);
            x.push(season.drift, deviation);
            x.push(season.profile, deviation);
            x.push(season.turn, deviation);
            x.push(track.expected - last, f64::from(anchors.unit));
            x.raw(track.gain());
            x.ratio(f64::from(anchors.unit), unit);
            x.raw(soften(track.drift() / anchors.unit, INPUT_MAX));
            x.raw(soften(anchors.gaps[0][0], INPUT_MAX));
            x.raw(soften(anchors.gaps[2][0], INPUT_MAX));
            x.raw(soften(anchors.gaps[0][1], INPUT_MAX));
            self.anchors.push(anchors);
        }
    }

    /// The targets that are peaks.
    fn expect_peaks(&mut self, x: &mut Inputs, now: Now, unit: f64) {
        let Now { last, .. } = now;
        for track in &mut self.peaks {
            let before = self.past.peak(track.steps).unwrap_or(last) - last;
            let half = self.past.peak(track.steps.div_ceil(2)).unwrap_or(last) - last;
            let season = self
                .past
                .season_peak(track.steps)
                .map_or(before, |p| p - last);
            let fit = self
                .values
                .iter()
                .find(|value| value.steps == track.steps)
                .map_or(0.0, |value| value.expected - last);
            let range_high = self.range.bounds().map_or(last, |(_, high)| high) - last;
            let mean = self.means[SLOW].value - last;
            let centres: [f64; CENTRES] = [
                0.0,
                0.0,
                half,
                season,
                fit,
                mean.max(0.0),
                range_high,
                half.max(fit),
                half.max(season),
                before,
            ];
            let (own, [low, high, higher, highest]) = track.changes(now);
            self.anchors
                .extend(track.put_aside(now, before + last, centres));
            x.ratio(own, unit);
            x.raw(soften(in_units(f64::from(high - low), own), INPUT_MAX));
            x.raw(soften(
                in_units(f64::from(highest - higher), own),
                INPUT_MAX,
            ));
            x.push(before, own);
            x.push(season, own);
        }
    }
}

/// The inputs of the network, in order.
struct Inputs(Vec<f32>);

impl Inputs {
    fn raw(&mut self, input: f32) {
        self.0.push(input);
    }

    /// A difference in a unit, softly bounded.
    fn push(&mut self, difference: f64, unit: f64) {
        self.raw(soften(
            narrow(difference / unit).clamp(-1e6, 1e6),
            INPUT_MAX,
        ));
    }

    /// The logarithm of a ratio, bounded.
    fn ratio(&mut self, a: f64, b: f64) {
        let ratio = narrow(a / b).clamp(1e-6, 1e6);
        self.raw(soften(ratio.ln(), INPUT_MAX));
    }
}
