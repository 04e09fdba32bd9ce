//! Training, as a job that can be done in small portions.
//!
//! # Problem
//!
//! A daemon may spend a share of one CPU on training, for some minutes, and may be
//! stopped at any time. And no training may make forecasts worse.
//!
//! # Approach
//!
//! A state machine: replay the histories, judge the held-out part, then learn and
//! judge epoch by epoch. [`Trainer::advance`] does a bounded amount of it. A batch is
//! windows from several series, drawn evenly over series; the loss is the pinball
//! loss at the four levels relative to a naive forecast's. The best parameters on
//! the held-out part are kept; training stops when they have not improved for some
//! epochs. The result counts only if it beats the incumbent there.
//!
//! # Properties
//!
//! - The same configuration, histories and seed give the same weights.
//! - What is held out is the latest part of every history; no target that is learnt
//!   from lies in it.
//! - Something not finite ends the job with [`Verdict::Diverged`].
//! - Memory is bounded by [`TrainerConfig::steps_max`], about 800 bytes a step.
//!
//! Source: Salinas, Flunkert, Gasthaus and Januschowski, "DeepAR", 2020 (one network
//! over many series); Prechelt, "Early stopping - but when?", 1998.

use super::adam::{Adam, clip, schedule};
use super::lessons::{Lessons, Replay};
use super::math::{Random, float};
use super::network::{Lesson, Workspace};
use super::weights::{Origin, Weights};
use super::{History, Layout, TrainerConfig};
use crate::mean::Mean;

/// Steps that are replayed at once.
const REPLAY_STEPS: usize = 128;

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress {
    /// There is more to do.
    Working {
        /// Epochs that were finished.
        epoch: usize,
        /// Best loss on the held-out part so far, relative to the naive forecast.
        /// None before it was first judged.
        held_out: Option<f64>,
    },
    /// Nothing is left to do.
    Done(Verdict),
}

/// Why a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There are weights that are better on the held-out part.
    Better,
    /// The incumbent, or the untrained network, stays: nothing was better.
    NotBetter,
    /// A loss or a gradient was not finite.
    Diverged,
    /// The histories are too short, too few, or never change.
    TooLittle,
}

/// Weights that did better than those before.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The new weights; their version is one above the incumbent's.
    pub weights: Weights,
    /// Epochs until they were found.
    pub epochs: usize,
}

/// A training job: a new network, or a better one than the incumbent, in portions.
#[derive(Debug)]
pub struct Trainer {
    config: TrainerConfig,
    layout: Layout,
    random: Random,
    phase: Phase,
    waiting: Vec<History>,
    lessons: Vec<Lessons>,
    held_out: Vec<(usize, usize, usize)>,
    /// Losses on them, the network's and the naive forecast's, by series, target and
    /// level.
    tally: Vec<(f64, f64)>,
    parameters: Vec<f32>,
    best: Best,
    version: u32,
    adam: Adam,
    gradient: Vec<f32>,
    workspace: Workspace,
    epoch: usize,
}

#[derive(Debug)]
enum Phase {
    Replay(Option<Box<Replay>>),
    Judge(usize),
    Learn { windows: usize },
    Done(Verdict),
}

#[derive(Debug)]
struct Best {
    parameters: Vec<f32>,
    /// Held-out loss before training, and the least one since.
    before: Option<f64>,
    loss: f64,
    epoch: usize,
}

impl Trainer {
    /// A job for a new network. Histories beyond [`TrainerConfig::steps_max`] in
    /// total are cut at their beginnings.
    #[must_use]
    pub fn new(config: &TrainerConfig, histories: &[History], seed: u64) -> Self {
        let config = config.clone().held_to_bounds();
        let layout = config.layout.clone();
        let shape = layout.shape();
        let mut random = Random::new(seed);
        let parameters = shape.initialise(&mut random);
        let each = config.steps_max / histories.len().max(1);
        let mut waiting: Vec<History> = histories.iter().map(|h| h.latest(each)).collect();
        waiting.reverse();
        Self {
            random,
            phase: Phase::Replay(None),
            waiting,
            lessons: Vec::new(),
            held_out: Vec::new(),
            tally: Vec::new(),
            best: Best {
                parameters: parameters.clone(),
                before: None,
                loss: f64::INFINITY,
                epoch: 0,
            },
            version: 0,
            adam: Adam::new(parameters.len()),
            gradient: vec![0.0; parameters.len()],
            workspace: shape.workspace(config.window),
            parameters,
            epoch: 0,
            layout,
            config,
        }
    }

    /// A job that starts from the incumbent's weights and has to beat them. An
    /// incumbent of another layout is no start and is ignored.
    #[must_use]
    pub fn improving(mut self, incumbent: &Weights) -> Self {
        if *incumbent.layout() == self.layout {
            self.parameters = incumbent.parameters().to_vec();
            self.best.parameters = self.parameters.clone();
        }
        self.version = incumbent.version();
        self
    }

    /// Does about `work` more steps: a step is one sample of one series, replayed,
    /// judged or learnt from; at most one window more than `work` is done.
    pub fn advance(&mut self, work: usize) -> Progress {
        let mut done = 0;
        while done < work {
            done += match &mut self.phase {
                Phase::Replay(_) => self.replay(),
                Phase::Judge(_) => self.judge(),
                Phase::Learn { .. } => self.learn(),
                Phase::Done(_) => break,
            }
            .max(1);
        }
        match self.phase {
            Phase::Done(verdict) => Progress::Done(verdict),
            _ => Progress::Working {
                epoch: self.epoch,
                held_out: self.best.before.map(|_| self.best.loss),
            },
        }
    }

    /// The result, if the job is done and found something better.
    #[must_use]
    pub fn finish(self) -> Option<Trained> {
        let Phase::Done(Verdict::Better) = self.phase else {
            return None;
        };
        let origin = Origin {
            version: self.version.saturating_add(1),
            config: self.config.fingerprint(),
            loss_before: self.best.before?,
            loss_after: self.best.loss,
        };
        Some(Trained {
            weights: Weights::new(self.layout, self.best.parameters, origin)?,
            epochs: self.best.epoch,
        })
    }

    fn replay(&mut self) -> usize {
        let Phase::Replay(current) = &mut self.phase else {
            return 0;
        };
        if let Some(replay) = current {
            let done = replay.advance(REPLAY_STEPS);
            if done > 0 {
                return done;
            }
            if let Some(replay) = current.take() {
                let TrainerConfig {
                    held_out, window, ..
                } = self.config;
                self.lessons
                    .extend(replay.finish(&self.layout, held_out, window));
            }
        } else if let Some(history) = self.waiting.pop() {
            *current = Some(Box::new(Replay::new(&self.layout, history)));
        } else {
            self.choose_held_out();
            self.phase = if self.held_out.is_empty() {
                Phase::Done(Verdict::TooLittle)
            } else {
                self.tally =
                    vec![(0.0, 0.0); self.lessons.len() * self.layout.targets().count() * 4];
                Phase::Judge(0)
            };
        }
        0
    }

    /// The windows that are judged: spread evenly if there are too many.
    fn choose_held_out(&mut self) {
        let TrainerConfig {
            window, warm_up, ..
        } = self.config;
        let all: Vec<_> = self
            .lessons
            .iter()
            .enumerate()
            .flat_map(|(series, lessons)| {
                let windows = lessons.held_out(window, warm_up).into_iter();
                windows.map(move |(start, rows)| (series, start, rows))
            })
            .collect();
        let stride = all.len().div_ceil(self.config.judged_max).max(1);
        self.held_out = all.into_iter().step_by(stride).collect();
    }

    fn judge(&mut self) -> usize {
        let Phase::Judge(next) = &mut self.phase else {
            return 0;
        };
        if let Some(&(series, start, rows)) = self.held_out.get(*next) {
            let window = window_of(&self.lessons[series], start, rows);
            let shape = self.layout.shape();
            let warm_up = self.config.warm_up;
            shape.forward(&self.parameters, &window, warm_up, &mut self.workspace);
            let cells = shape.targets * 4;
            let tally = &mut self.tally[series * cells..(series + 1) * cells];
            shape.compare(&window, warm_up, &self.workspace, tally);
            *next += 1;
            return rows;
        }
        let loss = ratio(&self.tally);
        self.tally.fill((0.0, 0.0));
        self.take_in(loss);
        0
    }

    /// An epoch, or the start, was judged.
    fn take_in(&mut self, loss: Option<f64>) {
        let Some(loss) = loss else {
            self.phase = Phase::Done(Verdict::TooLittle);
            return;
        };
        if !loss.is_finite() {
            self.phase = Phase::Done(Verdict::Diverged);
            return;
        }
        if self.best.before.is_none() {
            self.best.before = Some(loss);
        }
        if loss < self.best.loss {
            self.best.loss = loss;
            self.best.epoch = self.epoch;
            self.best.parameters.copy_from_slice(&self.parameters);
        }
        let waited = self.epoch - self.best.epoch;
        self.phase = if self.epoch < self.config.epochs_max && waited <= self.config.patience {
            Phase::Learn { windows: 0 }
        } else if self.best.epoch > 0 {
            Phase::Done(Verdict::Better)
        } else {
            Phase::Done(Verdict::NotBetter)
        };
    }

    /// One window; at the end of a batch, a step down the gradient.
    fn learn(&mut self) -> usize {
        let TrainerConfig {
            window,
            warm_up,
            batch,
            ..
        } = self.config;
        let series = self.random.below(self.lessons.len());
        let lessons = &self.lessons[series];
        let (first, last) = lessons.starts(window);
        let start = first + self.random.below(last - first + 1);
        let lesson = window_of(lessons, start, window);
        let shape = self.layout.shape();
        let loss = shape.forward(&self.parameters, &lesson, warm_up, &mut self.workspace);
        if loss.count > 0 {
            // The mean over the batch of the means over windows.
            let factor = 1.0 / (float(batch) * narrow_count(loss.count));
            let room = (&mut self.workspace, &mut self.gradient[..]);
            shape.backward(&self.parameters, &lesson, warm_up, factor, room);
        }
        let Phase::Learn { windows } = &mut self.phase else {
            return window;
        };
        *windows += 1;
        let windows = *windows;
        if windows.is_multiple_of(batch) {
            self.descend(windows);
        }
        window
    }

    fn descend(&mut self, windows: usize) {
        let config = &self.config;
        if clip(&mut self.gradient, config.gradient_max).is_none() {
            self.phase = Phase::Done(Verdict::Diverged);
            return;
        }
        let within = float(windows) / float(config.epoch_windows());
        let done = (float(self.epoch) + within) / float(config.epochs_max);
        let rate = config.learning_rate * schedule(done);
        self.adam.step(
            &mut self.parameters,
            &self.gradient,
            rate,
            config.weight_decay,
        );
        self.gradient.fill(0.0);
        if windows >= config.epoch_windows() {
            self.epoch += 1;
            self.phase = Phase::Judge(0);
        }
    }
}

/// Geometric mean of the ratios: no series, target or level outweighs the others. None
/// if there is none.
fn ratio(tally: &[(f64, f64)]) -> Option<f64> {
    let mut logarithms = Mean::default();
    for (loss, naive) in tally {
        // Where both are right there is nothing to compare.
        if *naive > 0.0 || *loss > 0.0 {
            let floor = 1e-3 * naive.max(*loss);
            logarithms.push(((loss + floor) / (naive + floor)).ln(), 0.0);
        }
    }
    (logarithms.count() > 0).then(|| logarithms.value.exp())
}

fn window_of(lessons: &Lessons, start: usize, rows: usize) -> Vec<Lesson<'_>> {
    (start..start + rows)
        .map(|row| lessons.lesson(row))
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "a window's losses are few")]
fn narrow_count(count: u32) -> f32 {
    count as f32
}
