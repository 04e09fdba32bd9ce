//! `add`: the sum of two vectors, element by element. Buffers `a`, `b`, `sum`; scalar `count`.

use super::{in_dialect, reads, scalars, shared_source_and, sizes, writes};
use crate::kernel::{Arguments, Check, Cpu, Element, Kernel, Launches, Signature, Tolerance};
use crate::task::{Launch, ScalarType, Shape};

/// Groups at most: items take more than one element each beyond that.
const GROUPS_MAX: u32 = 4096;

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "add".into(),
        signature: Signature {
            buffers: vec![
                reads("a", Element::F32),
                reads("b", Element::F32),
                writes("sum", Element::F32),
            ],
            scalars: scalars(ScalarType::U32, &["count"]),
        },
        check: Check::Function(check),
        launches: Launches::Function(launches),
        sources: shared_source_and(in_dialect!("add.c"), include_str!("source/add.wgsl")),
        // One addition is rounded the same way everywhere.
        tolerance: Tolerance::Exact,
        cpu: Cpu::Native(compute),
    }
}

fn check(shape: &Shape<'_>) -> Result<(), String> {
    let [count] = sizes::counts(shape.scalars)?;
    let count = count as usize;
    sizes::hold(shape, &[("a", count), ("b", count), ("sum", count)])
}

fn launches(shape: &Shape<'_>) -> Vec<Launch> {
    let Ok([count]) = sizes::counts(shape.scalars) else {
        return Vec::new();
    };
    let items = count.min(GROUPS_MAX * 256);
    vec![sizes::line("add", items, 256, shape.scalars.to_vec())]
}

fn compute(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let [a, b, sum] = arguments.buffers else {
        return Err("add takes three buffers".to_owned());
    };
    let inputs = a.slice::<f32>()?.iter().zip(b.slice::<f32>()?);
    for (sum, (a, b)) in sum.slice_mut::<f32>()?.iter_mut().zip(inputs) {
        *sum = a + b;
    }
    Ok(())
}
