//! `sort`: numbers of 32 bits in ascending order. Buffers `values`, `sorted`; scalar `count`.
//!
//! On the CPU by the standard library.

use super::{in_dialect, reads, scalars, shared_source, sizes, writes};
use crate::kernel::{Arguments, Check, Cpu, Element, Kernel, Launches, Signature, Tolerance};
use crate::task::{Launch, Scalar, ScalarType, Shape};

/// Elements that a group sorts in its shared memory.
const BLOCK: u32 = 512;

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "sort".into(),
        signature: Signature {
            buffers: vec![
                reads("values", Element::U32),
                writes("sorted", Element::U32),
            ],
            scalars: scalars(ScalarType::U32, &["count"]),
        },
        check: Check::Function(check),
        launches: Launches::Function(launches),
        sources: shared_source(in_dialect!("sort.c")),
        tolerance: Tolerance::Exact,
        cpu: Cpu::Native(compute),
    }
}

fn check(shape: &Shape<'_>) -> Result<(), String> {
    let [count] = sizes::counts(shape.scalars)?;
    sizes::hold(
        shape,
        &[("values", count as usize), ("sorted", count as usize)],
    )
}

fn launches(shape: &Shape<'_>) -> Vec<Launch> {
    let Ok([count]) = sizes::counts(shape.scalars) else {
        return Vec::new();
    };
    let blocks = count.div_ceil(BLOCK);
    let scalars = |span| vec![Scalar::U32(count), Scalar::U32(span)];
    let in_blocks = |entry| sizes::line(entry, blocks * 256, 256, scalars(0));
    // Pairs that are `span` apart at the least: as many as there are in whole blocks of twice that.
    let pairs = |entry, span: u32| {
        let items = count.div_ceil(2 * span) * span;
        sizes::line(entry, items, 256, scalars(span))
    };
    let mut launches = vec![in_blocks("sort_start")];
    let mut sorted = BLOCK;
    while sorted < count {
        launches.push(pairs("sort_flip", sorted));
        let mut span = sorted / 2;
        while span >= BLOCK {
            launches.push(pairs("sort_step", span));
            span /= 2;
        }
        launches.push(in_blocks("sort_finish"));
        sorted *= 2;
    }
    launches
}

fn compute(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let [values, sorted] = arguments.buffers else {
        return Err("sort takes two buffers".to_owned());
    };
    let sorted = sorted.slice_mut::<u32>()?;
    sorted.copy_from_slice(values.slice()?);
    sorted.sort_unstable();
    Ok(())
}
