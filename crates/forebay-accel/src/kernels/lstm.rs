//! `lstm`: a cell over all steps of many series, and a linear head on its last state: the inference of
//! the forecaster's network. Buffers `weights`, `inputs` (series x steps x width), `outputs` (series x
//! targets); scalars `series`, `steps`, `width`, `hidden`, `targets`.
//!
//! Weights are as `forebay-forecast` lays them out: a row of 4 x hidden gates (input, forget, cell,
//! output) for each input, for each unit of the state, and for the bias; then a row of targets for each
//! unit of the state, and their bias. The state begins at rest.
//!
//! On the CPU the series of a block are one matrix, multiplied by `matrixmultiply`.

use super::matmul::{Matrix, Product, multiply};
use super::{in_dialect, reads, scalars, shared_source, sizes, writes};
use crate::kernel::{Arguments, Check, Cpu, Element, Kernel, Launches, Signature, Tolerance};
use crate::task::{Launch, ScalarType, Shape};

/// Units of the state at most: it is in shared memory.
const HIDDEN_MAX: u32 = 256;
/// Inputs of a step, and outputs, at most.
const WIDTH_MAX: u32 = 4096;
/// Series at most: a group of 64 each, and devices start at most 2^31 items in a row.
const SERIES_MAX: u32 = 1 << 20;
/// Series that are computed together on the CPU.
const BLOCK: usize = 64;

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "lstm".into(),
        signature: Signature {
            buffers: vec![
                reads("weights", Element::F32),
                reads("inputs", Element::F32),
                writes("outputs", Element::F32),
            ],
            scalars: scalars(
                ScalarType::U32,
                &["series", "steps", "width", "hidden", "targets"],
            ),
        },
        check: Check::Function(check),
        launches: Launches::Function(launches),
        sources: shared_source(in_dialect!("lstm.c")),
        // Small errors go round the state again and again; gates hold them down.
        tolerance: Tolerance::Scaled { relative: 1e-4 },
        cpu: Cpu::Native(compute),
    }
}

fn check(shape: &Shape<'_>) -> Result<(), String> {
    let [series, steps, width, hidden, targets] = sizes::counts(shape.scalars)?;
    let bounds = [
        ("series", series, SERIES_MAX),
        ("width", width, WIDTH_MAX),
        ("hidden", hidden, HIDDEN_MAX),
        ("targets", targets, WIDTH_MAX),
    ];
    for (name, size, most) in bounds {
        if size > most {
            return Err(format!("{name} is {size}; {most} is the most"));
        }
    }
    let weights = 4 * hidden * (width + hidden + 1) + targets * (hidden + 1);
    let wanted = [
        ("weights", weights as usize),
        ("inputs", sizes::product(&[series, steps, width])?),
        ("outputs", sizes::product(&[series, targets])?),
    ];
    sizes::hold(shape, &wanted)
}

fn launches(shape: &Shape<'_>) -> Vec<Launch> {
    let Ok([series, ..]) = sizes::counts::<5>(shape.scalars) else {
        return Vec::new();
    };
    vec![sizes::line("lstm", series * 64, 64, shape.scalars.to_vec())]
}

fn compute(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let [_, steps, width, hidden, targets] =
        sizes::counts::<5>(arguments.scalars)?.map(|size| size as usize);
    let [weights, inputs, outputs] = arguments.buffers else {
        return Err("lstm takes three buffers".to_owned());
    };
    let network = Network::new(weights.slice()?, width, hidden, targets)?;
    let blocks = inputs.slice::<f32>()?.chunks(BLOCK * steps * width);
    let outputs = outputs.slice_mut::<f32>()?.chunks_mut(BLOCK * targets);
    for (inputs, outputs) in blocks.zip(outputs) {
        network.run(inputs, outputs, steps)?;
    }
    Ok(())
}

/// Weights by what they weigh.
struct Network<'a> {
    width: usize,
    hidden: usize,
    targets: usize,
    by_input: &'a [f32],
    by_state: &'a [f32],
    bias: &'a [f32],
    head: &'a [f32],
    head_bias: &'a [f32],
}

impl<'a> Network<'a> {
    fn new(
        weights: &'a [f32],
        width: usize,
        hidden: usize,
        targets: usize,
    ) -> Result<Self, String> {
        let gates = 4 * hidden;
        let mut rest = weights;
        let mut take = |count: usize| {
            let (taken, after) = rest.split_at_checked(count)?;
            rest = after;
            Some(taken)
        };
        let parts = (|| {
            Some(Self {
                width,
                hidden,
                targets,
                by_input: take(gates * width)?,
                by_state: take(gates * hidden)?,
                bias: take(gates)?,
                head: take(targets * hidden)?,
                head_bias: take(targets)?,
            })
        })();
        parts.ok_or_else(|| "lstm: the buffer of weights is too short".to_owned())
    }

    /// All steps of a block of series.
    fn run(&self, inputs: &[f32], outputs: &mut [f32], steps: usize) -> Result<(), String> {
        let series = outputs.len() / self.targets;
        let gates = 4 * self.hidden;
        let mut x = vec![0.0; series * self.width];
        let mut z = vec![0.0; series * gates];
        let mut states = vec![0.0; series * self.hidden];
        let mut cells = vec![0.0; series * self.hidden];
        for step in 0..steps {
            let of_series = inputs.chunks_exact(steps * self.width);
            for (x, input) in x.chunks_exact_mut(self.width).zip(of_series) {
                x.copy_from_slice(&input[step * self.width..][..self.width]);
            }
            for z in z.chunks_exact_mut(gates) {
                z.copy_from_slice(self.bias);
            }
            add_product(&x, self.by_input, &mut z, (series, self.width, gates))?;
            add_product(&states, self.by_state, &mut z, (series, self.hidden, gates))?;
            let memories = states
                .chunks_exact_mut(self.hidden)
                .zip(cells.chunks_exact_mut(self.hidden));
            for (z, (state, cell)) in z.chunks_exact_mut(gates).zip(memories) {
                step_cell(z, state, cell);
            }
        }
        for output in outputs.chunks_exact_mut(self.targets) {
            output.copy_from_slice(self.head_bias);
        }
        add_product(
            &states,
            self.head,
            outputs,
            (series, self.hidden, self.targets),
        )
    }
}

/// `c += a b` of (rows, inner, columns).
fn add_product(
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    (rows, inner, columns): (usize, usize, usize),
) -> Result<(), String> {
    let a = Matrix {
        numbers: a,
        columns: inner,
    };
    let b = Matrix {
        numbers: b,
        columns,
    };
    multiply(a, b, c, rows, Product::AddsTo)
}

fn step_cell(z: &mut [f32], state: &mut [f32], cell: &mut [f32]) {
    let hidden = cell.len();
    let (i, rest) = z.split_at(hidden);
    let (f, rest) = rest.split_at(hidden);
    let (g, o) = rest.split_at(hidden);
    for unit in 0..hidden {
        cell[unit] = sigmoid(f[unit]) * cell[unit] + sigmoid(i[unit]) * g[unit].tanh();
        state[unit] = sigmoid(o[unit]) * cell[unit].tanh();
    }
}

fn sigmoid(z: f32) -> f32 {
    1.0 / (1.0 + (-z).exp())
}
