//! The LSTM cell: one step forward, one step back.
//!
//! # Approach
//!
//! `i, f, o = sigmoid(z)`, `g = tanh(z)`, `c = f c' + i g`, `h = o tanh(c)`, where
//! `z` is an affine function of the input and the state before. Weights have one
//! row of all four gates for each input, so that both directions run along rows.
//!
//! Source: Hochreiter and Schmidhuber, "Long short-term memory", 1997; Gers,
//! Schmidhuber and Cummins, "Learning to forget", 2000 (the forget gate and its
//! positive initial bias).

use super::math::{Random, add_product, add_scaled, dot, float, sigmoid, tanh};

/// Sizes of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CellShape {
    pub(super) inputs: usize,
    pub(super) hidden: usize,
}

/// A cell after a step. From step to step it remembers `h` and `c`, `hidden` numbers each.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) h: Vec<f32>,
    pub(super) c: Vec<f32>,
    /// The gates of the last step: i, f, g, o, `hidden` each.
    pub(super) gates: Vec<f32>,
    /// tanh(c) of the last step.
    pub(super) tanh_c: Vec<f32>,
}

/// What the steps after one say of its state: gradients by h and c.
#[derive(Clone, Debug)]
pub(super) struct Blame {
    pub(super) h: Vec<f32>,
    pub(super) c: Vec<f32>,
    z: Vec<f32>,
}

impl Memory {
    pub(super) fn new(hidden: usize) -> Self {
        Self {
            h: vec![0.0; hidden],
            c: vec![0.0; hidden],
            gates: vec![0.0; 4 * hidden],
            tanh_c: vec![0.0; hidden],
        }
    }
}

impl Blame {
    pub(super) fn new(hidden: usize) -> Self {
        Self {
            h: vec![0.0; hidden],
            c: vec![0.0; hidden],
            z: vec![0.0; 4 * hidden],
        }
    }
}

impl CellShape {
    /// Parameters: a row of gates for each input, each hidden unit, and the bias.
    pub(super) fn parameters(self) -> usize {
        4 * self.hidden * (self.inputs + self.hidden + 1)
    }

    /// Uniform by fan-in; forget gates start open.
    pub(super) fn initialise(self, parameters: &mut [f32], random: &mut Random) {
        let span = 1.0 / float(self.inputs + self.hidden).sqrt();
        let gates = 4 * self.hidden;
        let (weights, bias) = parameters.split_at_mut(gates * (self.inputs + self.hidden));
        weights
            .iter_mut()
            .for_each(|weight| *weight = span * random.symmetric());
        bias.fill(0.0);
        bias[self.hidden..2 * self.hidden].fill(1.0);
    }

    /// One step: `memory` of the step before becomes that of this one.
    pub(super) fn step(self, parameters: &[f32], x: &[f32], memory: &mut Memory) {
        let gates = 4 * self.hidden;
        let (by_input, rest) = parameters.split_at(gates * self.inputs);
        let (by_state, bias) = rest.split_at(gates * self.hidden);
        let Memory {
            h,
            c,
            gates,
            tanh_c,
        } = memory;
        gates.copy_from_slice(bias);
        add_product(gates, by_input, x);
        add_product(gates, by_state, h);
        let (sigmoids, rest) = gates.split_at_mut(2 * self.hidden);
        let (g, o) = rest.split_at_mut(self.hidden);
        sigmoids.iter_mut().for_each(|z| *z = sigmoid(*z));
        g.iter_mut().for_each(|z| *z = tanh(*z));
        o.iter_mut().for_each(|z| *z = sigmoid(*z));
        let (i, f) = sigmoids.split_at(self.hidden);
        for (((c, i), f), g) in c.iter_mut().zip(i).zip(f).zip(&*g) {
            *c = f * *c + i * g;
        }
        for (((h, t), c), o) in h.iter_mut().zip(tanh_c).zip(&*c).zip(&*o) {
            *t = tanh(*c);
            *h = o * *t;
        }
    }

    /// One step back. `now` is the memory after the step, `before` the one before it;
    /// `blame` is about the state after and becomes about the state before.
    pub(super) fn step_back(
        self,
        parameters: &[f32],
        gradient: &mut [f32],
        x: &[f32],
        (before, now): (&Memory, &Memory),
        blame: &mut Blame,
    ) {
        let n = self.hidden;
        let (i, rest) = now.gates.split_at(n);
        let (f, rest) = rest.split_at(n);
        let (g, o) = rest.split_at(n);
        for k in 0..n {
            let (dh, t) = (blame.h[k], now.tanh_c[k]);
            let dc = blame.c[k] + dh * o[k] * (1.0 - t * t);
            blame.z[k] = dc * g[k] * i[k] * (1.0 - i[k]);
            blame.z[n + k] = dc * before.c[k] * f[k] * (1.0 - f[k]);
            blame.z[2 * n + k] = dc * i[k] * (1.0 - g[k] * g[k]);
            blame.z[3 * n + k] = dh * t * o[k] * (1.0 - o[k]);
            blame.c[k] = dc * f[k];
        }
        let gates = 4 * n;
        let by_state = &parameters[gates * self.inputs..gates * (self.inputs + n)];
        let inputs = x.iter().chain(&before.h).chain(&[1.0]);
        for (row, &input) in gradient.chunks_exact_mut(gates).zip(inputs) {
            add_scaled(row, &blame.z, input);
        }
        for (dh, row) in blame.h.iter_mut().zip(by_state.chunks_exact(gates)) {
            *dh = dot(row, &blame.z);
        }
    }
}
