//! A recording, told to models step by step.
//!
//! Each model sees every step once and answers at each origin, as in the daemon. What a model has
//! to fit is fitted where it is due, and timed apart. Models take turns by blocks of steps, so that what they said is judged and
//! forgotten, and the processor time of each is that of its thread within its blocks alone.

use std::time::Duration;

use forebay_forecast::Quantiles;
use rustix::time::{ClockId, clock_gettime};

use super::csv::Recording;
use super::models::{Kind, Model, Setting};
use super::score::{Losses, PARTS, Scale, Score, truth};

/// Steps that a model makes in one turn.
const BLOCK: usize = 512;
/// Steps before the end of which the first model's answers are kept, for the chart.
pub(crate) const KEPT: usize = 300;

/// Which steps are origins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origins {
    /// The first one: what is before is for warming up.
    pub(crate) first: usize,
    /// From one to the next, at least 1.
    pub(crate) every: usize,
}

impl Origins {
    fn has(self, step: usize) -> bool {
        step >= self.first && (step - self.first).is_multiple_of(self.every)
    }
}

/// What a model came to at each horizon, and what it cost.
#[derive(Debug)]
pub(crate) struct Result {
    pub(crate) kind: Kind,
    /// By horizon. None where nothing was judged.
    pub(crate) scores: Vec<Option<Score>>,
    /// Processor time of one step, forecasts included.
    pub(crate) step_us: f64,
    /// Processor time of fits, by step.
    pub(crate) fit_us: f64,
}

/// Answers about the end of a recording: by horizon, then by the step they are about.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fan {
    /// The first step that is kept.
    pub(crate) from: usize,
    /// For each horizon, answers about the steps from `from` on.
    pub(crate) answers: Vec<Vec<Option<Quantiles>>>,
}

#[derive(Debug)]
struct Contestant {
    kind: Kind,
    model: Model,
    spent: Duration,
    /// Part of it.
    fitting: Duration,
    /// Of the present block, by origin and horizon.
    answers: Vec<Option<Quantiles>>,
    losses: Vec<Losses>,
}

/// Runs the models over a recording. The first one's answers about its end come along.
pub(crate) fn replay(
    recording: &Recording,
    kinds: &[Kind],
    setting: &Setting,
    origins: Origins,
) -> (Vec<Result>, Fan) {
    let samples = &recording.samples;
    let mut contestants: Vec<Contestant> = std::iter::once(&Kind::LastValue)
        .chain(kinds)
        .map(|&kind| Contestant::new(kind, setting))
        .collect();
    let from = samples.len().saturating_sub(KEPT);
    let mut fan = Fan {
        from,
        answers: vec![vec![None; samples.len() - from]; setting.horizons.len()],
    };
    let mut starts = recording.restarts.iter().copied();
    let mut end = starts.next().unwrap_or(samples.len());
    let mut begin = 0;
    while begin < samples.len() {
        if begin == end {
            end = starts.next().unwrap_or(samples.len());
            for contestant in &mut contestants {
                contestant.model = Model::new(contestant.kind, setting);
            }
        }
        let block = begin..end.min(begin + BLOCK);
        for contestant in &mut contestants {
            contestant.run(recording, setting, origins, block.clone());
        }
        if let Some((reference, models)) = contestants.split_first_mut() {
            for model in &mut *models {
                judge(
                    model,
                    reference,
                    recording,
                    setting,
                    origins,
                    block.clone(),
                    end,
                );
            }
            if let Some(first) = models.first() {
                keep(&mut fan, first, setting, origins, block.clone(), end);
            }
        }
        begin = block.end;
    }
    let scale = Scale::of(samples, origins.first);
    let results = contestants
        .drain(1..)
        .map(|contestant| contestant.result(samples.len(), scale))
        .collect();
    (results, fan)
}

impl Contestant {
    fn new(kind: Kind, setting: &Setting) -> Self {
        Self {
            kind,
            model: Model::new(kind, setting),
            spent: Duration::ZERO,
            fitting: Duration::ZERO,
            answers: Vec::new(),
            losses: vec![Losses::default(); setting.horizons.len()],
        }
    }

    fn run(
        &mut self,
        recording: &Recording,
        setting: &Setting,
        origins: Origins,
        block: std::ops::Range<usize>,
    ) {
        self.answers.clear();
        let before = thread_time();
        for step in block {
            self.model.update(recording.samples.get(step));
            if self.model.wants_fit() {
                let before = thread_time();
                self.model.fit();
                self.fitting += thread_time().saturating_sub(before);
            }
            if origins.has(step) {
                let answer = |&steps: &usize| self.model.answer(setting.target, steps);
                self.answers.extend(setting.horizons.iter().map(answer));
            }
        }
        self.spent += thread_time().saturating_sub(before);
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn result(self, steps: usize, scale: Scale) -> Result {
        let per_step = |time: Duration| time.as_secs_f64() * 1e6 / steps.max(1) as f64;
        Result {
            kind: self.kind,
            scores: self
                .losses
                .iter()
                .map(|losses| losses.score(scale))
                .collect(),
            step_us: per_step(self.spent.saturating_sub(self.fitting)),
            fit_us: per_step(self.fitting),
        }
    }
}

fn judge(
    model: &mut Contestant,
    reference: &Contestant,
    recording: &Recording,
    setting: &Setting,
    origins: Origins,
    block: std::ops::Range<usize>,
    end: usize,
) {
    let width = setting.horizons.len();
    let judged = recording.samples.len().saturating_sub(origins.first).max(1);
    let answers = model
        .answers
        .chunks(width)
        .zip(reference.answers.chunks(width));
    for (origin, (answers, references)) in block.filter(|&step| origins.has(step)).zip(answers) {
        // At most 20,000,000 times 10.
        let part = (origin - origins.first) * PARTS / judged;
        for (i, &steps) in setting.horizons.iter().enumerate() {
            let Some(reference) = references[i] else {
                continue;
            };
            let known = truth(&recording.samples, origin, steps, setting.target, end);
            if let Some(truth) = known {
                model.losses[i].judge(answers[i], reference, truth, part);
            }
        }
    }
}

/// Keeps the answers of a block that are about the end of the recording.
fn keep(
    fan: &mut Fan,
    model: &Contestant,
    setting: &Setting,
    origins: Origins,
    block: std::ops::Range<usize>,
    end: usize,
) {
    let width = setting.horizons.len();
    let answers = model.answers.chunks(width);
    for (origin, answers) in block.filter(|&step| origins.has(step)).zip(answers) {
        for ((&steps, kept), &answer) in setting.horizons.iter().zip(&mut fan.answers).zip(answers)
        {
            let about = origin + steps;
            if about < end
                && let Some(kept) = about.checked_sub(fan.from).and_then(|i| kept.get_mut(i))
            {
                *kept = answer;
            }
        }
    }
}

/// Processor time of this thread.
pub(crate) fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use forebay_forecast::Target;

    use super::*;

    fn setting() -> Setting {
        Setting {
            target: Target::Value,
            horizons: vec![1, 3],
            history: 64,
            period_seconds: Some(1.0),
            reference: 1.0,
        }
    }

    fn recording(values: impl Iterator<Item = Option<f64>>) -> Recording {
        Recording {
            samples: values.collect(),
            ..Recording::default()
        }
    }

    #[test]
    fn the_yardstick_is_as_good_as_itself() {
        let mut rng = fastrand::Rng::with_seed(1);
        let recording = recording((0..2000).map(|_| Some(rng.f64())));
        let origins = Origins {
            first: 800,
            every: 1,
        };
        let kinds = [Kind::LastValue, Kind::MovingMax];
        let (results, fan) = replay(&recording, &kinds, &setting(), origins);
        for (i, steps) in [1, 3].into_iter().enumerate() {
            let same = results[0].scores[i].as_ref().unwrap();
            assert_eq!(same.relative, [1.0; 4]);
            assert_eq!((same.judged, same.silent), (1200 - steps, 0));
            // Of noise, the window knows more than the last value.
            let window = results[1].scores[i].as_ref().unwrap();
            assert!(window.relative[0] < 0.9, "{window:?}");
            assert!((window.covered[0] - 0.9).abs() < 0.05, "{window:?}");
        }
        assert_eq!(fan.from, 1700);
        assert!(fan.answers.iter().all(|answers| answers.len() == 300));
        assert!(fan.answers.iter().flatten().all(Option::is_some));
    }

    #[test]
    fn nothing_is_judged_across_a_new_start_or_before_its_time() {
        let mut recording = recording((0..1000).map(|_| Some(1.0)));
        recording.restarts = vec![600, 601];
        let origins = Origins {
            first: 400,
            every: 2,
        };
        let (results, _) = replay(&recording, &[Kind::LastValue], &setting(), origins);
        let judged = |i: usize| results[0].scores[i].as_ref().unwrap().judged;
        // Even steps from 400 on whose end is below 600, and from where 16 changes are known.
        assert_eq!(judged(0), 100 + (1000 - 618) / 2);
        assert_eq!(judged(1), 99 + (998 - 620) / 2);
    }
}
