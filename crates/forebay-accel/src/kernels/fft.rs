//! `fft`: discrete Fourier transforms of `batch` series of `length` complex numbers, real and
//! imaginary part beside each other. Buffers `input`, `output` (f32); scalars `length` (a power of two
//! from 2 to 2^24), `batch`, `inverse` (0 or 1). Nothing is scaled: there and back is `length` times
//! what it was.
//!
//! On the CPU by `rustfft`, which chooses instructions at run time.

use std::cell::RefCell;

use num_complex::Complex32;
use rustfft::{FftDirection, FftPlanner};

use super::{in_dialect, reads, scalars, shared_source, sizes, writes};
use crate::kernel::{Arguments, Check, Cpu, Element, Kernel, Launches, Signature, Tolerance};
use crate::task::{Launch, Scalar, ScalarType, Shape};

const LENGTH_MAX: u32 = 1 << 24;

struct Transform {
    length: u32,
    batch: u32,
    direction: FftDirection,
}

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "fft".into(),
        signature: Signature {
            buffers: vec![reads("input", Element::F32), writes("output", Element::F32)],
            scalars: scalars(ScalarType::U32, &["length", "batch", "inverse"]),
        },
        check: Check::Function(check),
        launches: Launches::Function(launches),
        sources: shared_source(in_dialect!("fft.c")),
        // Every output is a sum of all inputs, so errors are a share of the largest.
        tolerance: Tolerance::Scaled { relative: 1e-5 },
        cpu: Cpu::Native(compute),
    }
}

fn transform(scalars: &[Scalar]) -> Result<Transform, String> {
    let [sizes @ .., Scalar::U32(inverse)] = scalars else {
        return Err("fft takes length, batch and inverse".to_owned());
    };
    let [length, batch] = sizes::counts(sizes)?;
    if !length.is_power_of_two() || !(2..=LENGTH_MAX).contains(&length) {
        return Err(format!(
            "the length is to be a power of two from 2 to {LENGTH_MAX}, not {length}"
        ));
    }
    let direction = match inverse {
        0 => FftDirection::Forward,
        1 => FftDirection::Inverse,
        other => return Err(format!("inverse is 0 or 1, not {other}")),
    };
    Ok(Transform {
        length,
        batch,
        direction,
    })
}

fn check(shape: &Shape<'_>) -> Result<(), String> {
    let Transform { length, batch, .. } = transform(shape.scalars)?;
    let numbers = sizes::product(&[length, batch, 2])?;
    sizes::hold(shape, &[("input", numbers), ("output", numbers)])
}

fn launches(shape: &Shape<'_>) -> Vec<Launch> {
    let Ok(transform) = transform(shape.scalars) else {
        return Vec::new();
    };
    let Transform { length, batch, .. } = transform;
    let pairs = length / 2 * batch;
    let direction = match transform.direction {
        FftDirection::Forward => -1.0,
        FftDirection::Inverse => 1.0,
    };
    let passes = length.ilog2();
    (0..passes)
        .map(|pass| {
            // The last pass writes the output, so the one before it the other place, and so on.
            let place = |passes_left: u32| 1 + passes_left % 2;
            let from = if pass == 0 { 0 } else { place(passes - pass) };
            let to = place(passes - 1 - pass);
            let (half_way, width) = (length >> (pass + 1), 1 << pass);
            let mut scalars: Vec<_> = [from, to, half_way, width, pairs].map(Scalar::U32).into();
            scalars.push(Scalar::F32(direction));
            let mut launch = sizes::line("fft_pass", pairs, 256, scalars);
            // One of 8 bytes where the first pass is the last: no backend has memory of no bytes.
            let other = if passes == 1 { 1 } else { 2 * pairs as usize };
            launch.scratch = vec![other * size_of::<Complex32>()];
            launch
        })
        .collect()
}

thread_local! {
    /// Twiddles and scratch of the lengths that were used. There are 24, each in two directions.
    static PLANS: RefCell<(FftPlanner<f32>, Vec<Complex32>)> =
        RefCell::new((FftPlanner::new(), Vec::new()));
}

fn compute(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let Transform {
        length, direction, ..
    } = transform(arguments.scalars)?;
    let [input, output] = arguments.buffers else {
        return Err("fft takes two buffers".to_owned());
    };
    let output = output.slice_mut::<f32>()?;
    output.copy_from_slice(input.slice()?);
    let numbers: &mut [Complex32] =
        bytemuck::try_cast_slice_mut(output).map_err(|error| error.to_string())?;
    PLANS.with_borrow_mut(|(planner, scratch)| {
        let plan = planner.plan_fft(length as usize, direction);
        scratch.resize(
            scratch.len().max(plan.get_inplace_scratch_len()),
            Complex32::default(),
        );
        plan.process_with_scratch(numbers, scratch);
    });
    Ok(())
}
