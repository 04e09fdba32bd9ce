//! Histories, turned into what the network learns from.
//!
//! # Approach
//!
//! A history is replayed once through [`Features`]. For each sample it leaves the
//! inputs, the anchors and what the targets turned out to be. The last part of the
//! history by time is held out: no target of the part that is learnt from lies in
//! it. Losses are divided by those that the last value with its recent changes
//! had on the part that is learnt from, so that every series, target and level counts
//! alike, and 1 means as good as that.

use super::TARGETS;
use super::features::Features;
use super::head::{self, Anchors};
use super::network::Lesson;
use super::{History, Layout};
use crate::history::narrow;
use crate::{Target, is_plausible};

/// Samples of a history that are not learnt from: its statistics are cold.
const COLD: usize = 32;
/// Unit from which on the loss counts no more, in mean units of the target.
const UNIT_MAX: f32 = 4.0;

/// The lessons of one history.
#[derive(Clone, Debug)]
pub(super) struct Lessons {
    inputs: usize,
    targets: usize,
    x: Vec<f32>,
    anchors: Vec<Anchors>,
    actual: Vec<f32>,
    worth: Vec<Worth>,
    /// The first row that is held out.
    split: usize,
}

/// What losses of one target of one series count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Worth {
    /// Of a loss of 1 in the unit of the series, by level.
    pub(super) levels: [f32; 4],
    /// Largest unit of the target that is believed: the loss of a burst would
    /// outweigh all else.
    pub(super) unit_max: f32,
}

/// A history on its way to become lessons.
#[derive(Clone, Debug)]
pub(super) struct Replay {
    features: Features,
    history: History,
    next: usize,
    /// Time of each row, in steps.
    times: Vec<usize>,
    x: Vec<f32>,
    anchors: Vec<Anchors>,
    last: Vec<f64>,
}

impl Replay {
    pub(super) fn new(layout: &Layout, history: History) -> Self {
        Self {
            features: Features::new(&layout.horizons, &TARGETS, history.period),
            history,
            next: 0,
            times: Vec::new(),
            x: Vec::new(),
            anchors: Vec::new(),
            last: Vec::new(),
        }
    }

    /// Replays some steps. How many; 0 at the end.
    pub(super) fn advance(&mut self, steps: usize) -> usize {
        let values = &self.history.values[self.next..];
        let steps = steps.min(values.len());
        for (time, &value) in (self.next..).zip(&values[..steps]) {
            if !is_plausible(value) {
                self.features.pass();
                continue;
            }
            self.x.extend_from_slice(&self.features.push(value));
            self.times.push(time);
            self.last.push(value);
            self.anchors.extend_from_slice(self.features.anchors());
        }
        self.next += steps;
        steps
    }

    /// The lessons of the whole history, of which `held_out` (0..1) is kept apart.
    /// None if there are too few for windows of `window` on both sides.
    pub(super) fn finish(self, layout: &Layout, held_out: f32, window: usize) -> Option<Lessons> {
        let rows = self.times.len();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a bounded length"
        )]
        let split_time = (self.history.values.len() as f32 * (1.0 - held_out)) as usize;
        let split = self.times.partition_point(|&time| time < split_time);
        if split < COLD + window || rows < split + window / 2 {
            return None;
        }
        let mut lessons = Lessons {
            inputs: layout.shape().cell.inputs,
            targets: layout.targets().count(),
            actual: Vec::with_capacity(self.anchors.len()),
            worth: Vec::new(),
            x: self.x,
            anchors: self.anchors,
            split,
        };
        for row in 0..rows {
            for (index, (target, steps)) in layout.targets().enumerate() {
                let time = self.times[row];
                let leaks = time < split_time && time + steps >= split_time;
                let actual = actual(&self.history.values, time, target, steps);
                let anchors = &lessons.anchors[row * lessons.targets + index];
                let difference = actual.filter(|_| !leaks).map_or(f64::NAN, |actual| {
                    (actual - self.last[row]) / f64::from(anchors.unit)
                });
                lessons.actual.push(narrow(difference));
            }
        }
        lessons.worth = lessons.worths()?;
        Some(lessons)
    }
}

/// What a target turned out to be. None if that was not seen.
fn actual(values: &[f64], time: usize, target: Target, steps: usize) -> Option<f64> {
    let ahead = values.get(time + 1..=time + steps)?;
    match target {
        Target::Value => ahead.last().copied().filter(|&value| is_plausible(value)),
        Target::Peak => ahead.iter().try_fold(0.0, |peak: f64, &value| {
            is_plausible(value).then_some(peak.max(value))
        }),
    }
}

impl Lessons {
    /// Rows that are learnt from: a window may start from the first to the second.
    pub(super) fn starts(&self, window: usize) -> (usize, usize) {
        (COLD / 2, self.split - window)
    }

    /// Windows that judge the held-out part: (first row, rows), `warm_up` of them
    /// before it.
    pub(super) fn held_out(&self, window: usize, warm_up: usize) -> Vec<(usize, usize)> {
        let rows = self.actual.len() / self.targets;
        let starts = (self.split..rows).step_by(window - warm_up);
        starts
            .map(|start| {
                let end = (start + window - warm_up).min(rows);
                (start - warm_up, end + warm_up - start)
            })
            .collect()
    }

    pub(super) fn lesson(&self, row: usize) -> Lesson<'_> {
        let targets = row * self.targets..(row + 1) * self.targets;
        Lesson {
            x: &self.x[row * self.inputs..(row + 1) * self.inputs],
            anchors: &self.anchors[targets.clone()],
            actual: &self.actual[targets],
            worth: &self.worth,
        }
    }

    /// One over the mean loss of the naive forecast, by target and level. None if
    /// nothing could be judged.
    fn worths(&self) -> Option<Vec<Worth>> {
        let mut sums = vec![[0.0_f64; 4]; self.targets];
        let mut units = vec![(0.0_f64, 0_u32); self.targets];
        for row in COLD..self.split {
            for target in 0..self.targets {
                let index = row * self.targets + target;
                let (actual, anchors) = (self.actual[index], &self.anchors[index]);
                if actual.is_nan() {
                    continue;
                }
                let unit = f64::from(anchors.unit);
                let losses = head::pinball(actual, anchors.naive());
                for (sum, (loss, _)) in sums[target].iter_mut().zip(losses) {
                    *sum += unit * f64::from(loss);
                }
                units[target].0 += unit;
                units[target].1 += 1;
            }
        }
        let worth = |(sums, (unit, count)): (&[f64; 4], &(f64, u32))| {
            let count = f64::from(*count);
            // A series that never changes has nothing to be compared with.
            (count > 0.0).then(|| Worth {
                levels: sums.map(|sum| narrow(count / (sum + 0.01 * unit).max(1e-30))),
                unit_max: UNIT_MAX * narrow(unit / count),
            })
        };
        sums.iter().zip(&units).map(worth).collect()
    }
}

impl Lesson<'_> {
    /// What a loss of 1 in the target's unit counts, by level.
    pub(super) fn weights(&self, target: usize) -> [f32; 4] {
        let worth = self.worth[target];
        let unit = self.anchors[target].unit.min(worth.unit_max);
        worth.levels.map(|level| unit * level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lessons(values: Vec<f64>) -> Option<Lessons> {
        let layout = Layout::new(&[1, 12], 4)?;
        let history = History {
            values,
            period: Some(24),
        };
        let mut replay = Replay::new(&layout, history);
        while replay.advance(100) > 0 {}
        replay.finish(&layout, 0.25, 32)
    }

    /// Whatever the held-out part is, what is learnt from does not change.
    #[test]
    fn what_is_held_out_does_not_leak() {
        let mut rng = fastrand::Rng::with_seed(4);
        let calm: Vec<f64> = (0..400).map(|_| 5.0 + rng.f64()).collect();
        let mut wild = calm.clone();
        wild[300..].iter_mut().for_each(|v| *v *= 100.0);
        let (calm, wild) = (lessons(calm).unwrap(), lessons(wild).unwrap());
        assert_eq!((calm.split, wild.split), (300, 300));
        assert_eq!(calm.x[..300 * calm.inputs], wild.x[..300 * calm.inputs]);
        assert_eq!(calm.worth[0].levels, wild.worth[0].levels);
        let bits = |lessons: &Lessons| {
            let learnt = &lessons.actual[..300 * lessons.targets];
            learnt.iter().map(|a| a.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!(bits(&calm), bits(&wild));
        // The last rows before the split know one step ahead, but not twelve.
        assert!(calm.lesson(298).actual[0].is_finite() && calm.lesson(298).actual[1].is_nan());
        assert!(calm.lesson(287).actual[1].is_finite());
        let (start, rows) = calm.held_out(32, 8)[0];
        assert_eq!((start, rows), (292, 32));
    }

    #[test]
    fn gaps_are_no_lessons() {
        let mut values: Vec<f64> = (0..400).map(|t| f64::from(t % 24)).collect();
        values[100] = f64::NAN;
        let lessons = lessons(values).unwrap();
        assert_eq!(lessons.actual.len(), 399 * lessons.targets);
        // Row 99 is followed by the gap: its value and its peak are not known.
        assert!(lessons.lesson(99).actual[0].is_nan() && lessons.lesson(99).actual[2].is_nan());
        assert!(lessons.lesson(99).actual[1].is_finite());
        assert!(lessons.lesson(100).actual[0].is_finite());
    }
}
