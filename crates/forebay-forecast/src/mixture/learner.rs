//! What is learnt about one horizon.

use std::collections::VecDeque;

use super::analogue::{NEIGHBOURS, Sequel, sequel};
use super::regression::{Measure, Regression};
use super::signals::{GUESS_NAMES, GUESSES, OWN_FEATURES, Outlook, RECENT_PEAK, Signals, features};
use super::weights::Weights;
use super::{Explanation, LEVELS, MODELS_MAX, Part, level};
use crate::backtest::{Judge, is_above};
use crate::history::{Rough, Tail, narrow};
use crate::mean::Mean;
use crate::ranked::{RankedWindow, Upward};
use crate::{Forecaster, Quantiles, Score, Target};

/// What follows analogues: as it was, and moved to the present level.
const SEQUELS: usize = 2;
/// Guesses, the regression, what follows analogues, and models from outside.
const EXPERTS: usize = GUESSES + 1 + SEQUELS + MODELS_MAX;
const REGRESSED: usize = GUESSES;
const FOLLOWED: usize = REGRESSED + 1;
const OUTSIDE: usize = FOLLOWED + SEQUELS;

/// Centres and measures of the errors that are ranked: around the mixture, by how much the
/// series lately changes (of a peak: around the one before, as they are); around the mixture and
/// around the last value, as they are; around the profile of the period, by the size of what is
/// expected.
const RANKED: usize = 4;
/// Bounds that compete for a level: those of ranked errors, and of the others as above; of a peak
/// also the greatest of the history.
const BOUNDS: usize = GREATEST + 1;
const GREATEST: usize = RANKED + 1 + SEQUELS + MODELS_MAX;

const EXPERT_NAMES: [&str; 1 + SEQUELS] = ["regression", "analogues", "analogues, moved"];
const RANKED_NAMES: [&str; RANKED] = [
    "errors, by change",
    "errors",
    "changes",
    "errors of the profile, by size",
];
const PEAK_NAME: &str = "errors of the peak before";
const GREATEST_NAME: &str = "greatest of the history";

/// Errors that are remembered, and the least before there is an answer.
const REMEMBERED: usize = 180;
const WARM_ERRORS: usize = 16;
/// How much the losses of centres and of bounds count, and for how long, in steps: at once, for
/// each step of the horizon, and for each level above the median. So little that several
/// forecasts of like quality share the answer: their mean is better than the best of them. The
/// rarer what a level excepts, the less a number of losses says of it.
const CENTRE_RATE: f32 = 0.2;
const CENTRE_MEMORY: (f32, f32) = (50.0, 5.0);
const BOUND_RATES: [f32; LEVELS] = [0.2, 0.08, 0.05, 0.05];
const BOUND_MEMORY: (f32, f32, f32) = (600.0, 10.0, 200.0);
/// How much longer the losses of bounds on a peak count: one spike is in many windows, and what
/// it says of each bound is known once.
const PEAK_MEMORY: f32 = 2.0;
/// Forecasts of a peak that are judged in each horizon, at most. Those of values all are: of every
/// other one of 60 steps ahead the 0.95 bound loses 1.5 % more.
const PEAKS_JUDGED: usize = 30;
/// Part of a rank that bounds of peaks are higher among what followed analogues. Of values, half a
/// rank costs 1 % at 0.95; of peaks, without it, plans ahead of a rise hold more than they need.
const RANK_OF_PEAKS: f64 = 0.5;
/// Errors that are remembered of each horizon, of values and of peaks.
const ERRORS_EACH: (usize, usize) = (3, 6);
const STRIDE_MIN: usize = 5;
/// How fast the coverage is corrected, of values and of peaks, and by how much of the distance
/// between levels. Of peaks at the rate of values, bounds 60 steps ahead lose less and hold less
/// often, which they do too seldom already.
const COVERAGE_RATES: (f32, f32) = (0.01, 0.004);
const COVERAGE_SLOPE: f32 = 0.7;
/// Part of the promised exceptions that is aimed at: a promise is kept with some to spare.
const COVERAGE_AIM: f32 = 0.85;
/// The same of the next step, from 0.95 on: who counts a hundred forecasts of each of some dozen
/// series finds the worst of them three deviations of 0.02 below what all have, and should find 0.9.
const COVERAGE_AIM_NEXT: f32 = 0.7;
/// Judged forecasts over which the part that was missed is told.
const MISSED_MEMORY: f64 = 400.0;
/// How far beyond the range of the history a centre and a bound may lie.
const CENTRE_BEYOND: f64 = 1.1;
const BOUND_BEYOND: f64 = 1.32;
/// The level that is scored, by its place: 0.95.
const SCORED: usize = 2;
/// From which on the greatest of the history is a bound.
const GREATEST_FROM: usize = SCORED;

/// Everything that is learnt about one target at one horizon.
#[derive(Clone, Debug)]
pub(super) struct Learner {
    target: Target,
    steps: usize,
    regression: Regression,
    centre: Weights<EXPERTS>,
    errors: [RankedWindow<Upward, REMEMBERED>; RANKED],
    bounds: [Weights<BOUNDS>; LEVELS],
    /// How much more often each level was exceeded than it should have been.
    excess: [f32; LEVELS],
    /// The greatest value of the last `steps`, for each sample of the history, where that is the
    /// target and not the sample itself.
    peaks: Option<Tail>,
    pending: VecDeque<Option<Pending>>,
    /// What was said at the last sample: it stands through a gap.
    newest: Option<[f32; LEVELS]>,
    /// Whether the newest sample is the origin of the last pending forecast there is.
    fresh: bool,
    /// Steps between forecasts that are judged: neighbouring ones say nearly the same.
    pace: usize,
    /// Judged forecasts between errors that are remembered.
    stride: usize,
    passed: usize,
    gaps: u16,
    judge: Judge,
    /// Part of the scored bounds that were exceeded lately.
    missed: Mean,
}

/// A forecast whose time has not come. NaN where an expert had nothing to say. What is rough is
/// above the last value, in units. There are as many as a horizon has steps: what follows from
/// other fields is left out.
#[derive(Clone, Debug)]
struct Pending {
    /// Those that are neither one nor guesses.
    features: [Rough; OWN_FEATURES],
    experts: [Rough; EXPERTS],
    bounds: [[Rough; BOUNDS]; LEVELS],
    answer: [f32; LEVELS],
    /// Without the last value.
    centres: [f32; RANKED - 1],
    /// Of the first and the last centre; the others are not scaled.
    scales: [Rough; 2],
    last: f32,
    unit: f32,
    /// Mean change in one step, in units.
    change: Rough,
    /// Gaps until then; wraps.
    gaps: u16,
    /// Gaps right after it. The value of before stands for them in the history, and is no part of
    /// what came.
    lead: u16,
}

/// What is there to forecast from.
#[derive(Debug)]
struct View {
    outlook: Outlook,
    sequels: [Option<Sequel>; SEQUELS],
    outside: [Option<Quantiles>; MODELS_MAX],
}

impl View {
    fn last(&self) -> f64 {
        self.outlook.guesses[0]
    }

    /// Within which a centre may lie.
    fn centre_range(&self) -> (f64, f64) {
        let (low, high) = self.outlook.range;
        (low / CENTRE_BEYOND, high * CENTRE_BEYOND)
    }

    fn bound_most(&self) -> f64 {
        self.outlook.range.1 * BOUND_BEYOND
    }
}

impl Learner {
    /// `history_max` samples are remembered; `steps` is at most half of them.
    pub(super) fn new(target: Target, steps: usize, history_max: usize) -> Self {
        let of_peaks = target == Target::Peak && steps > 1;
        let pace = if of_peaks {
            steps.div_ceil(PEAKS_JUDGED)
        } else {
            1
        };
        #[expect(clippy::cast_precision_loss, reason = "steps are far below 2^24")]
        let (far, apart) = (steps as f32, pace as f32);
        let (at_once, for_steps, for_level) = BOUND_MEMORY;
        let (longer, each) = if of_peaks {
            (PEAK_MEMORY, ERRORS_EACH.1)
        } else {
            (1.0, ERRORS_EACH.0)
        };
        Self {
            target,
            steps,
            regression: Regression::new(),
            centre: Weights::new(
                apart * CENTRE_RATE,
                (CENTRE_MEMORY.0 + CENTRE_MEMORY.1 * far) / apart,
            ),
            errors: std::array::from_fn(|_| RankedWindow::new()),
            bounds: std::array::from_fn(|index| {
                let rank = [0.0, 1.0, 2.0, 3.0][index];
                let memory = at_once + for_steps * far + for_level * rank;
                Weights::new(apart * BOUND_RATES[index], longer * memory / apart)
            }),
            excess: [0.0; LEVELS],
            peaks: of_peaks.then(|| Tail::new(history_max)),
            pending: VecDeque::with_capacity(steps.div_ceil(pace)),
            newest: None,
            fresh: false,
            pace,
            stride: (steps / each).max(STRIDE_MIN).div_ceil(pace),
            passed: 0,
            gaps: 0,
            judge: Judge::default(),
            missed: Mean::default(),
        }
    }

    /// One step passed: judges the forecast whose time has come, and makes the next. `models`
    /// have seen the sample.
    pub(super) fn step(
        &mut self,
        signals: &Signals,
        sample: Option<f64>,
        models: &[&dyn Forecaster],
    ) {
        self.passed = self.passed.wrapping_add(1);
        if sample.is_none() {
            self.gaps = self.gaps.wrapping_add(1);
            if let Some(origin) = self.pending.iter_mut().rev().flatten().next()
                && self.fresh
            {
                origin.lead = origin.lead.saturating_add(1);
            }
        }
        if let Some(peaks) = &mut self.peaks
            && let Some(peak) = signals.tail().peak(self.steps)
        {
            peaks.push(peak);
        }
        let is_due = self
            .passed
            .checked_sub(self.steps)
            .is_some_and(|origin| origin > 0 && origin.is_multiple_of(self.pace));
        if is_due
            && let Some(Some(pending)) = self.pending.pop_front()
            && let Some(value) = self.outcome(signals, sample, &pending)
        {
            self.learn(value, &pending);
        }
        let next = sample.and_then(|_| self.look(signals, models));
        if let Some(next) = &next {
            self.newest = Some(next.answer);
        }
        let is_kept = self.passed.is_multiple_of(self.pace);
        if sample.is_some() {
            self.fresh = is_kept && next.is_some();
        }
        if is_kept {
            self.pending.push_back(next);
        }
    }

    /// What the forecast was about. None where too much of it was not seen.
    fn outcome(&self, signals: &Signals, sample: Option<f64>, pending: &Pending) -> Option<f64> {
        match self.target {
            Target::Value => sample,
            Target::Peak => {
                let missing = usize::from(self.gaps.wrapping_sub(pending.gaps));
                let seen = self.steps.checked_sub(usize::from(pending.lead))?;
                (missing * 4 <= self.steps && seen > 0)
                    .then(|| signals.tail().peak(seen))
                    .flatten()
            }
        }
    }

    fn learn(&mut self, value: f64, pending: &Pending) {
        let unit = f64::from(pending.unit);
        let above = narrow((value - f64::from(pending.last)) / unit);
        let usual = pending.change.get().max(1e-4);
        let spread = narrow(root(self.steps));
        self.regression.learn(
            &features(
                &pending.features.map(Rough::get),
                &pending.experts.map(Rough::get),
            ),
            above,
            Measure {
                clip: 6.0 * usual * spread + 1e-3,
                usual: usual * spread.min(4.0),
            },
        );
        let lost = |said: Rough, level: f32| pinball(above, said.get(), level);
        self.centre
            .learn(&pending.experts.map(|said| lost(said, 0.5)));
        let judged = self.passed / self.pace;
        if judged.is_multiple_of(self.stride) || self.errors[0].len() < WARM_ERRORS {
            let [first, mixed, profile] = pending.centres.map(f64::from);
            let [change, size] = pending.scales.map(|scale| f64::from(scale.get()));
            let ranked = [
                (value - first) / change,
                value - mixed,
                value - f64::from(pending.last),
                (value - profile) / size,
            ];
            for (errors, error) in self.errors.iter_mut().zip(ranked) {
                errors.push(error);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^24")]
        let apart = self.pace as f32;
        let rate = if self.is_of_peaks() {
            COVERAGE_RATES.1
        } else {
            COVERAGE_RATES.0
        };
        for (index, weights) in self.bounds.iter_mut().enumerate() {
            let level = narrow(level(index));
            weights.learn(&pending.bounds[index].map(|said| lost(said, level)));
            let missed = is_above(value, f64::from(pending.answer[index]));
            if index == SCORED {
                let missed = if missed { 1.0 } else { 0.0 };
                self.missed.push(missed, 1.0 / MISSED_MEMORY);
            }
            let rare = 1.0 - level;
            let aim = if self.steps == 1 && index >= SCORED {
                COVERAGE_AIM_NEXT
            } else {
                COVERAGE_AIM
            };
            let excess = apart * rate * (if missed { 1.0 } else { 0.0 } - aim * rare);
            self.excess[index] = (self.excess[index] + excess).clamp(-0.5 * rare, 0.8 * rare);
        }
        self.judge.judge(value, f64::from(pending.answer[SCORED]));
    }

    /// A forecast from here.
    fn look(&self, signals: &Signals, models: &[&dyn Forecaster]) -> Option<Pending> {
        let view = View {
            outlook: signals.outlook(self.target, self.steps)?,
            sequels: self.sequels(signals),
            outside: self.outside(models),
        };
        let experts = self.experts(&view);
        let mixed = f64::from(self.centre.mean(&experts)?);
        let (centres, scales) = self.measures(&view.outlook, mixed);
        let bounds = self.bounds_around(&view, &centres, &scales);
        let Outlook { unit, change, .. } = view.outlook;
        let last = view.last();
        let most = narrow(view.bound_most());
        let above = |said: f32| Rough::new(narrow((f64::from(said) - last) / unit));
        Some(Pending {
            features: std::array::from_fn(|own| Rough::new(view.outlook.features[1 + own])),
            experts: experts.map(above),
            bounds: bounds.map(|bounds| bounds.map(above)),
            answer: self.answer_from(&bounds)?.map(|bound| bound.min(most)),
            centres: [centres[0], centres[1], centres[3]].map(narrow),
            scales: [scales[0], scales[3]]
                .map(|scale| Rough::new(narrow(scale).max(f32::MIN_POSITIVE))),
            last: narrow(last),
            unit: narrow(unit),
            change: Rough::new(narrow(change / unit)),
            gaps: self.gaps,
            lead: 0,
        })
    }

    /// Where each expert expects the centre.
    fn experts(&self, view: &View) -> [f32; EXPERTS] {
        let View {
            outlook,
            sequels,
            outside,
        } = view;
        let (least, most) = view.centre_range();
        let mut experts = [f32::NAN; EXPERTS];
        for (expert, guess) in experts.iter_mut().zip(outlook.guesses) {
            *expert = narrow(guess);
        }
        let regressed =
            view.last() + outlook.unit * f64::from(self.regression.mean(&outlook.features));
        experts[REGRESSED] = narrow(regressed.clamp(least, most));
        for (index, sequel) in sequels.iter().enumerate() {
            experts[FOLLOWED + index] =
                sequel.map_or(f32::NAN, |sequel| narrow(sequel.mean.clamp(0.0, most)));
        }
        for (index, quantiles) in outside.iter().enumerate() {
            experts[OUTSIDE + index] = quantiles.map_or(f32::NAN, |q| narrow(q.q50().min(most)));
        }
        experts
    }

    /// Where each that has bounds puts them.
    fn bounds_around(
        &self,
        view: &View,
        centres: &[f64; RANKED],
        scales: &[f64; RANKED],
    ) -> [[f32; BOUNDS]; LEVELS] {
        let View {
            outlook,
            sequels,
            outside,
        } = view;
        let last = view.last();
        let (least, most) = view.centre_range();
        let above = self.regression.quantiles(&outlook.features);
        let mut bounds = [[f32::NAN; BOUNDS]; LEVELS];
        for (index, bounds) in bounds.iter_mut().enumerate() {
            let ranked = self.errors.iter().zip(centres).zip(scales);
            let ranked = ranked.map(|((errors, centre), scale)| {
                let errors = errors.quantiles();
                errors.map_or(*centre, |errors| centre + scale * errors[index])
            });
            let regressed =
                (last + outlook.unit * f64::from(above[index])).clamp(least.min(last), most);
            let followed = sequels.iter().map(|s| s.map(|s| s.quantiles[index]));
            let outside = outside.iter().map(|q| q.map(|q| q.to_array()[index]));
            let all = ranked
                .chain([regressed])
                .map(Some)
                .chain(followed)
                .chain(outside);
            for (bound, value) in bounds.iter_mut().zip(all) {
                let within = |value: f64| narrow(value.clamp(0.0, view.bound_most()));
                *bound = value.map_or(f32::NAN, within);
            }
            if self.is_of_peaks() && index >= GREATEST_FROM {
                bounds[GREATEST] = narrow(outlook.range.1);
            }
        }
        bounds
    }

    /// What errors are ranked around, and what they are divided by.
    fn measures(&self, outlook: &Outlook, mixed: f64) -> ([f64; RANKED], [f64; RANKED]) {
        let (first, change) = if self.is_of_peaks() {
            (outlook.guesses[RECENT_PEAK], 1.0)
        } else {
            (mixed, outlook.change + 0.02 * outlook.unit)
        };
        let size = mixed.abs() + 0.05 * outlook.magnitude;
        let centres = [first, mixed, outlook.guesses[0], outlook.profile];
        (centres, [change, 1.0, 1.0, size])
    }

    /// Whether windows of more than a step are forecast.
    fn is_of_peaks(&self) -> bool {
        self.peaks.is_some()
    }

    /// The mixed bounds, wider or narrower by what their coverage was, and in order.
    fn answer_from(&self, bounds: &[[f32; BOUNDS]; LEVELS]) -> Option<[f32; LEVELS]> {
        let mut mixed = [0.0; LEVELS];
        for (index, mixed) in mixed.iter_mut().enumerate() {
            *mixed = self.bounds[index].mean(&bounds[index])?;
        }
        let mut answer = mixed;
        for index in 1..LEVELS {
            let apart = (mixed[index] - mixed[index - 1]).max(0.0);
            let wider = self.excess[index] / narrow(1.0 - level(index)) * COVERAGE_SLOPE;
            answer[index] = (mixed[index] + wider * apart).max(answer[index - 1]);
        }
        Some(answer)
    }

    /// What followed moments that were like this one.
    fn sequels(&self, signals: &Signals) -> [Option<Sequel>; SEQUELS] {
        let Some(neighbours) = signals.neighbours(self.steps) else {
            return [None; SEQUELS];
        };
        let samples = signals.tail().samples();
        let after = self.peaks.as_ref().map_or(samples, Tail::samples);
        let Some(&now) = samples.last() else {
            return [None; SEQUELS];
        };
        let above = if self.is_of_peaks() {
            RANK_OF_PEAKS
        } else {
            0.0
        };
        let came = |(lag, weight): (usize, f32)| {
            let then = *samples.get(samples.len().checked_sub(lag + 1)?)?;
            let came = *after.get(after.len().checked_sub(lag + 1)? + self.steps)?;
            Some((came, now - then, weight))
        };
        let mut all = [(0.0, 0.0, 0.0); NEIGHBOURS];
        let mut count = 0;
        for (place, came) in all.iter_mut().zip(neighbours.iter().filter_map(came)) {
            *place = came;
            count += 1;
        }
        let follow = |part: f32| {
            let moved = all[..count].iter();
            sequel(
                moved.map(|&(came, by, weight)| (came + part * by, weight)),
                above,
            )
        };
        [follow(0.0), follow(1.0)]
    }

    /// What models from outside say.
    fn outside(&self, models: &[&dyn Forecaster]) -> [Option<Quantiles>; MODELS_MAX] {
        std::array::from_fn(|index| models.get(index)?.forecast_of(self.target, self.steps))
    }

    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    pub(super) fn target(&self) -> Target {
        self.target
    }

    /// The newest answer. None while too few errors are known.
    pub(super) fn answer(&self) -> Option<Quantiles> {
        if self.errors[0].len() < WARM_ERRORS {
            return None;
        }
        Quantiles::new(self.newest?.map(f64::from))
    }

    pub(super) fn score(&self) -> Option<Score> {
        self.judge.score()
    }

    /// Who made the newest answer. Names of outside models are those of `models`.
    pub(super) fn explain(&self, models: &[&'static str]) -> Explanation {
        let outside = (0..MODELS_MAX).map(|index| models.get(index).copied());
        let experts = GUESS_NAMES.into_iter().chain(EXPERT_NAMES).map(Some);
        let mut ranked = RANKED_NAMES;
        if self.is_of_peaks() {
            ranked[0] = PEAK_NAME;
        }
        let bounds = ranked.into_iter().chain(EXPERT_NAMES).map(Some);
        let newest = self.pending.iter().rev().flatten().next();
        let parts = |names: Vec<Option<&'static str>>, weights: &[f32], said: &[Rough]| {
            let there = names.into_iter().zip(weights).zip(said);
            let mut parts: Vec<Part> = there
                .filter(|(_, said)| !said.get().is_nan())
                .filter_map(|((name, &weight), _)| name.map(|name| Part { name, weight }))
                .collect();
            let total: f32 = parts.iter().map(|part| part.weight).sum();
            for part in &mut parts {
                part.weight /= total.max(f32::MIN_POSITIVE);
            }
            parts.sort_by(|a, b| b.weight.total_cmp(&a.weight));
            parts
        };
        Explanation {
            centre: parts(
                experts.chain(outside.clone()).collect(),
                self.centre.all(),
                newest.map_or(&[], |pending| &pending.experts),
            ),
            bound: parts(
                bounds.chain(outside).chain([Some(GREATEST_NAME)]).collect(),
                self.bounds[SCORED].all(),
                newest.map_or(&[], |pending| &pending.bounds[SCORED]),
            ),
            excess: match self.missed.count() {
                0 => 0.0,
                _ => self.missed.value - (1.0 - level(SCORED)),
            },
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.regression.heap_bytes()
            + self.peaks.as_ref().map_or(0, Tail::bytes)
            + self.pending.capacity() * size_of::<Option<Pending>>()
    }
}

/// What a bound at a level loses by a value.
fn pinball(value: f32, bound: f32, level: f32) -> f32 {
    let over = value - bound;
    (level * over).max((level - 1.0) * over)
}

#[expect(clippy::cast_precision_loss, reason = "steps are far below 2^52")]
fn root(steps: usize) -> f64 {
    (steps as f64).sqrt()
}
