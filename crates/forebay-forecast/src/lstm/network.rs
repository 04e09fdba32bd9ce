//! The network: a cell and a linear head, forward and back over a window.
//!
//! # Approach
//!
//! The cell reads one step's features. The head maps its state to the raw outputs
//! of every target ([`super::head`]). Over a window the cell starts from rest; the
//! first steps only warm it up and are not judged. Gradients run back through the
//! whole window and no further (truncated back-propagation through time).
//!
//! Source: Werbos, "Backpropagation through time: what it does and how to do it",
//! 1990.

use super::cell::{Blame, CellShape, Memory};
use super::head::{self, Anchors, OUTPUTS};
use super::lessons::Worth;
use super::math::{Random, add_product, add_scaled, dot};

/// Sizes of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) cell: CellShape,
    pub(super) targets: usize,
}

/// What one step is learnt from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lesson<'a> {
    pub(super) x: &'a [f32],
    pub(super) anchors: &'a [Anchors],
    /// What each target turned out to be, in its unit. NaN if that is not known.
    pub(super) actual: &'a [f32],
    pub(super) worth: &'a [Worth],
}

/// Sum of weighted losses, and how many.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Loss {
    pub(super) sum: f64,
    pub(super) count: u32,
}

/// Room for one window, kept between windows.
#[derive(Clone, Debug)]
pub(super) struct Workspace {
    memories: Vec<Memory>,
    raw: Vec<f32>,
    by_raw: Vec<f32>,
    blame: Blame,
}

impl Loss {
    pub(super) fn add(&mut self, other: Self) {
        self.sum += other.sum;
        self.count += other.count;
    }
}

impl Shape {
    pub(super) fn outputs(self) -> usize {
        self.targets * OUTPUTS
    }

    pub(super) fn parameters(self) -> usize {
        self.cell.parameters() + self.outputs() * (self.cell.hidden + 1)
    }

    /// Parameters of a network that has learnt nothing: its answers are those of
    /// [`head::initial_bias`].
    pub(super) fn initialise(self, random: &mut Random) -> Vec<f32> {
        let mut parameters = vec![0.0; self.parameters()];
        let (cell, head) = parameters.split_at_mut(self.cell.parameters());
        self.cell.initialise(cell, random);
        let (weights, bias) = head.split_at_mut(self.outputs() * self.cell.hidden);
        weights
            .iter_mut()
            .for_each(|weight| *weight = 0.05 * random.symmetric());
        for bias in bias.chunks_exact_mut(OUTPUTS) {
            bias.copy_from_slice(&head::initial_bias());
        }
        parameters
    }

    pub(super) fn step(self, parameters: &[f32], x: &[f32], memory: &mut Memory) {
        self.cell
            .step(&parameters[..self.cell.parameters()], x, memory);
    }

    /// Raw outputs of all targets for a state of the cell.
    pub(super) fn outputs_into(self, parameters: &[f32], h: &[f32], out: &mut [f32]) {
        let head = &parameters[self.cell.parameters()..];
        let (weights, bias) = head.split_at(self.outputs() * self.cell.hidden);
        out.copy_from_slice(bias);
        add_product(out, weights, h);
    }

    /// Raw outputs of one target. None if there is none at that place.
    pub(super) fn outputs_of(
        self,
        parameters: &[f32],
        h: &[f32],
        target: usize,
        out: &mut [f32; OUTPUTS],
    ) -> Option<()> {
        if target >= self.targets {
            return None;
        }
        let head = &parameters[self.cell.parameters()..];
        let outputs = target * OUTPUTS..(target + 1) * OUTPUTS;
        let (weights, bias) = head.split_at(self.outputs() * self.cell.hidden);
        out.copy_from_slice(&bias[outputs.clone()]);
        for (row, &h) in weights.chunks_exact(self.outputs()).zip(h) {
            add_scaled(out, &row[outputs.clone()], h);
        }
        Some(())
    }

    pub(super) fn workspace(self, steps: usize) -> Workspace {
        Workspace {
            memories: vec![Memory::new(self.cell.hidden); steps + 1],
            raw: vec![0.0; self.outputs() * steps],
            by_raw: vec![0.0; self.outputs()],
            blame: Blame::new(self.cell.hidden),
        }
    }

    /// Loss over a window, of which the first `warm_up` steps are not judged.
    pub(super) fn forward(
        self,
        parameters: &[f32],
        window: &[Lesson<'_>],
        warm_up: usize,
        workspace: &mut Workspace,
    ) -> Loss {
        let mut loss = Loss::default();
        let outputs = self.outputs();
        workspace.memories[0] = Memory::new(self.cell.hidden);
        for (t, lesson) in window.iter().enumerate() {
            let (before, now) = workspace.memories.split_at_mut(t + 1);
            now[0].h.copy_from_slice(&before[t].h);
            now[0].c.copy_from_slice(&before[t].c);
            self.step(parameters, lesson.x, &mut now[0]);
            if t < warm_up {
                continue;
            }
            let raw = &mut workspace.raw[t * outputs..(t + 1) * outputs];
            self.outputs_into(parameters, &now[0].h, raw);
            loss.add(judge(raw, lesson, None));
        }
        loss
    }

    /// After [`forward`](Self::forward) over the same window: adds the losses of the
    /// network and those of the naive forecast, in the unit of the series, by target
    /// and level.
    pub(super) fn compare(
        self,
        window: &[Lesson<'_>],
        warm_up: usize,
        workspace: &Workspace,
        tally: &mut [(f64, f64)],
    ) {
        let rows = workspace.raw.chunks_exact(self.outputs());
        for (lesson, raw) in window.iter().zip(rows).skip(warm_up) {
            let targets = raw.chunks_exact(OUTPUTS).zip(tally.chunks_exact_mut(4));
            for (target, (raw, tally)) in targets.enumerate() {
                let (anchors, actual) = (&lesson.anchors[target], lesson.actual[target]);
                if actual.is_nan() {
                    continue;
                }
                let unit = f64::from(anchors.unit);
                let losses = head::pinball(actual, head::quantiles(raw, anchors));
                let naive = head::pinball(actual, anchors.naive());
                for ((sums, loss), naive) in tally.iter_mut().zip(losses).zip(naive) {
                    sums.0 += unit * f64::from(loss.0);
                    sums.1 += unit * f64::from(naive.0);
                }
            }
        }
    }

    /// After [`forward`](Self::forward) over the same window: adds the gradient of
    /// the sum of losses, times `factor`.
    pub(super) fn backward(
        self,
        parameters: &[f32],
        window: &[Lesson<'_>],
        warm_up: usize,
        factor: f32,
        (workspace, gradient): (&mut Workspace, &mut [f32]),
    ) {
        let Workspace {
            memories,
            raw,
            by_raw,
            blame,
        } = workspace;
        let outputs = self.outputs();
        let split = self.cell.parameters();
        let (cell, head) = parameters.split_at(split);
        let (cell_gradient, head_gradient) = gradient.split_at_mut(split);
        *blame = Blame::new(self.cell.hidden);
        for (t, lesson) in window.iter().enumerate().rev() {
            let now = &memories[t + 1];
            if t >= warm_up {
                let raw = &raw[t * outputs..(t + 1) * outputs];
                by_raw.fill(0.0);
                judge(raw, lesson, Some(&mut *by_raw));
                by_raw.iter_mut().for_each(|slope| *slope *= factor);
                let inputs = now.h.iter().chain(&[1.0]);
                for (row, &input) in head_gradient.chunks_exact_mut(outputs).zip(inputs) {
                    add_scaled(row, by_raw, input);
                }
                for (dh, row) in blame.h.iter_mut().zip(head.chunks_exact(outputs)) {
                    *dh += dot(row, by_raw);
                }
            }
            self.cell
                .step_back(cell, cell_gradient, lesson.x, (&memories[t], now), blame);
        }
    }
}

/// Loss of one step, and its gradient by the raw outputs where it is wanted.
fn judge(raw: &[f32], lesson: &Lesson<'_>, mut by_raw: Option<&mut Vec<f32>>) -> Loss {
    let mut loss = Loss::default();
    for (target, raw) in raw.chunks_exact(OUTPUTS).enumerate() {
        let (anchors, actual) = (&lesson.anchors[target], lesson.actual[target]);
        if actual.is_nan() {
            continue;
        }
        let judged = head::pinball(actual, head::quantiles(raw, anchors));
        let mut slopes = [0.0; 4];
        for (((loss_of_level, slope), worth), out) in judged
            .into_iter()
            .zip(lesson.weights(target))
            .zip(&mut slopes)
        {
            loss.sum += f64::from(loss_of_level * worth);
            loss.count += 1;
            *out = slope * worth;
        }
        if let Some(by_raw) = &mut by_raw {
            let out = &mut by_raw[target * OUTPUTS..(target + 1) * OUTPUTS];
            head::gradient(raw, anchors, slopes, out);
        }
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lstm::head::{CENTRES, SPREADS};

    /// A small network and a window of pseudo-random lessons.
    struct Bench {
        shape: Shape,
        parameters: Vec<f32>,
        x: Vec<Vec<f32>>,
        anchors: Vec<Vec<Anchors>>,
        actual: Vec<Vec<f32>>,
        worth: Vec<Worth>,
    }

    impl Bench {
        fn new(steps: usize) -> Self {
            let cell = CellShape {
                inputs: 5,
                hidden: 6,
            };
            let shape = Shape { cell, targets: 2 };
            let mut random = Random::new(11);
            let mut parameters = shape.initialise(&mut random);
            // Larger than at the start, so that every path matters.
            for parameter in &mut parameters {
                *parameter += 0.3 * random.symmetric();
            }
            let anchors = |random: &mut Random| Anchors {
                centres: [0.0; CENTRES].map(|_| random.symmetric()),
                evidence: [0.0; CENTRES].map(|_| random.symmetric()),
                gaps: [[0.0; SPREADS]; 3].map(|gaps| gaps.map(|_: f32| random.symmetric().abs())),
                unit: 0.5,
            };
            let rows = 0..steps;
            Self {
                x: rows
                    .clone()
                    .map(|_| (0..5).map(|_| random.symmetric()).collect())
                    .collect(),
                anchors: rows
                    .clone()
                    .map(|_| (0..2).map(|_| anchors(&mut random)).collect())
                    .collect(),
                // Far from every quantile, where the loss has no corner.
                actual: rows
                    .map(|_| (0..2).map(|_| 9.0 * random.symmetric().signum()).collect())
                    .collect(),
                worth: vec![
                    Worth {
                        levels: [1.0, 2.0, 3.0, 4.0],
                        unit_max: 4.0,
                    };
                    2
                ],
                shape,
                parameters,
            }
        }

        fn lessons(&self) -> Vec<Lesson<'_>> {
            let rows = self.x.iter().zip(&self.anchors).zip(&self.actual);
            rows.map(|((x, anchors), actual)| Lesson {
                x,
                anchors,
                actual,
                worth: &self.worth,
            })
            .collect()
        }

        fn loss(&self, parameters: &[f32]) -> f64 {
            let mut workspace = self.shape.workspace(self.x.len());
            let lessons = self.lessons();
            self.shape
                .forward(parameters, &lessons, 3, &mut workspace)
                .sum
        }
    }

    /// Every partial derivative against a central difference. Single precision
    /// allows 1 % of the value plus 0.02 (losses are about 500).
    #[test]
    fn gradient_agrees_with_finite_differences() {
        let bench = Bench::new(12);
        let lessons = bench.lessons();
        let mut workspace = bench.shape.workspace(12);
        let mut gradient = vec![0.0; bench.shape.parameters()];
        bench
            .shape
            .forward(&bench.parameters, &lessons, 3, &mut workspace);
        let room = (&mut workspace, &mut gradient[..]);
        bench
            .shape
            .backward(&bench.parameters, &lessons, 3, 1.0, room);
        let large = gradient.iter().filter(|g| g.abs() > 0.05).count();
        assert!(large > gradient.len() / 3, "{large} of {}", gradient.len());
        for k in 0..gradient.len() {
            let mut moved = bench.parameters.clone();
            moved[k] += 0.01;
            let above = bench.loss(&moved);
            moved[k] -= 0.02;
            let below = bench.loss(&moved);
            let measured = (above - below) / 0.02;
            let error = (f64::from(gradient[k]) - measured).abs();
            assert!(
                error < 0.02 + 0.01 * measured.abs(),
                "parameter {k}: {} against {measured}",
                gradient[k]
            );
        }
    }

    #[test]
    fn an_unknown_actual_teaches_nothing() {
        let mut bench = Bench::new(8);
        bench
            .actual
            .iter_mut()
            .flatten()
            .for_each(|a| *a = f32::NAN);
        let mut workspace = bench.shape.workspace(8);
        let lessons = bench.lessons();
        let loss = bench
            .shape
            .forward(&bench.parameters, &lessons, 0, &mut workspace);
        assert_eq!(loss, Loss::default());
    }
}
