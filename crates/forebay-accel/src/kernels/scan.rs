//! `scan`: the sum of all elements up to each, and with it, of `u32` that wrap. Buffers `values`,
//! `sums`; scalar `count`. What compaction and run lengths are made of.

use super::{in_dialect, reads, scalars, shared_source_and, sizes, writes};
use crate::kernel::{Arguments, Check, Cpu, Element, Kernel, Launches, Signature, Tolerance};
use crate::task::{Launch, Scalar, ScalarType, Shape};

/// Parts at most, one group each: a group adds up the totals of all before it, an item each.
const PARTS_MAX: u32 = 256;

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "scan".into(),
        signature: Signature {
            buffers: vec![reads("values", Element::U32), writes("sums", Element::U32)],
            scalars: scalars(ScalarType::U32, &["count"]),
        },
        check: Check::Function(check),
        launches: Launches::Function(launches),
        sources: shared_source_and(in_dialect!("scan.c"), include_str!("source/scan.wgsl")),
        tolerance: Tolerance::Exact,
        cpu: Cpu::Native(compute),
    }
}

fn check(shape: &Shape<'_>) -> Result<(), String> {
    let [count] = sizes::counts(shape.scalars)?;
    sizes::hold(
        shape,
        &[("values", count as usize), ("sums", count as usize)],
    )
}

fn launches(shape: &Shape<'_>) -> Vec<Launch> {
    let Ok([count]) = sizes::counts(shape.scalars) else {
        return Vec::new();
    };
    let (part, parts) = sizes::parts(count, PARTS_MAX, 256);
    ["scan_totals", "scan_parts"]
        .map(|entry| {
            let scalars = vec![Scalar::U32(count), Scalar::U32(part)];
            let mut launch = sizes::line(entry, parts * 256, 256, scalars);
            launch.scratch = vec![parts as usize * 4];
            launch
        })
        .into()
}

fn compute(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let [values, sums] = arguments.buffers else {
        return Err("scan takes two buffers".to_owned());
    };
    let mut total = 0_u32;
    let pairs = sums
        .slice_mut::<u32>()?
        .iter_mut()
        .zip(values.slice::<u32>()?);
    for (sum, value) in pairs {
        total = total.wrapping_add(*value);
        *sum = total;
    }
    Ok(())
}
