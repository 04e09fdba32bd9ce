//! `reduce`: a vector of `f32` in four numbers. Buffers `values` and `result`: the sum, the sum of
//! magnitudes (which says how far the sum is to be trusted: its rounding errors are a share of that),
//! the least, the greatest; scalar `count`. What is no number makes the sums none, and is neither
//! least nor greatest.

use super::{in_dialect, reads, scalars, shared_source_and, sizes, writes};
use crate::kernel::{Arguments, Check, Cpu, Element, Kernel, Launches, Signature, Tolerance};
use crate::task::{Launch, Scalar, ScalarType, Shape};

/// Groups at most: one item of the second launch for each.
const GROUPS_MAX: u32 = 256;
/// Sums beside each other on the CPU, so that they are computed with vector instructions.
const LANES: usize = 16;
/// Elements whose sums are in `f32`; beyond that they are in `f64`.
const BLOCK: usize = 1024;

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "reduce".into(),
        signature: Signature {
            buffers: vec![
                reads("values", Element::F32),
                writes("result", Element::F32),
            ],
            scalars: scalars(ScalarType::U32, &["count"]),
        },
        check: Check::Function(check),
        launches: Launches::Function(launches),
        sources: shared_source_and(in_dialect!("reduce.c"), include_str!("source/reduce.wgsl")),
        // The scale is the sum of magnitudes.
        tolerance: Tolerance::Scaled { relative: 1e-5 },
        cpu: Cpu::Native(compute),
    }
}

fn check(shape: &Shape<'_>) -> Result<(), String> {
    let [count] = sizes::counts(shape.scalars)?;
    sizes::hold(shape, &[("values", count as usize), ("result", 4)])
}

fn launches(shape: &Shape<'_>) -> Vec<Launch> {
    let Ok([count]) = sizes::counts(shape.scalars) else {
        return Vec::new();
    };
    let groups = count.div_ceil(256).min(GROUPS_MAX);
    let parts = vec![groups as usize * 16];
    let mut first = sizes::line("reduce_parts", groups * 256, 256, vec![Scalar::U32(count)]);
    let mut second = sizes::line("reduce_whole", 256, 256, vec![Scalar::U32(groups)]);
    first.scratch.clone_from(&parts);
    second.scratch = parts;
    vec![first, second]
}

fn compute(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let [values, result] = arguments.buffers else {
        return Err("reduce takes two buffers".to_owned());
    };
    result
        .slice_mut::<f32>()?
        .copy_from_slice(&whole(values.slice()?));
    Ok(())
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the result is as exact as its type"
)]
fn whole(values: &[f32]) -> [f32; 4] {
    let (mut sum, mut magnitude) = (0.0_f64, 0.0_f64);
    let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
    for block in values.chunks(BLOCK) {
        let mut sums = [0.0_f32; LANES];
        let mut magnitudes = [0.0_f32; LANES];
        let mut leasts = [f32::INFINITY; LANES];
        let mut mosts = [f32::NEG_INFINITY; LANES];
        let lines = block.chunks_exact(LANES);
        for value in lines.remainder() {
            sum += f64::from(*value);
            magnitude += f64::from(value.abs());
            least = least.min(*value);
            most = most.max(*value);
        }
        for line in lines {
            for lane in 0..LANES {
                let value = line[lane];
                sums[lane] += value;
                magnitudes[lane] += value.abs();
                // A comparison with what is no number is false, and keeps what was there.
                leasts[lane] = if value < leasts[lane] {
                    value
                } else {
                    leasts[lane]
                };
                mosts[lane] = if value > mosts[lane] {
                    value
                } else {
                    mosts[lane]
                };
            }
        }
        sum += f64::from(sums.iter().sum::<f32>());
        magnitude += f64::from(magnitudes.iter().sum::<f32>());
        least = leasts.into_iter().fold(least, f32::min);
        most = mosts.into_iter().fold(most, f32::max);
    }
    [sum as f32, magnitude as f32, least, most]
}
