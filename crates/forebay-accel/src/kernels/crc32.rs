//! `crc32`: the CRC-32 (IEEE 802.3, as in gzip) of each block of the input, the last of which may be
//! shorter. Buffers `data` (bytes), `sums` (u32, one a block); scalars `count` (bytes), `block`.
//!
//! On the CPU by `crc32fast`.

use super::{in_dialect, reads, scalars, shared_source, sizes, writes};
use crate::kernel::{Arguments, Check, Cpu, Element, Kernel, Launches, Signature, Tolerance};
use crate::task::{Launch, Scalar, ScalarType, Shape};

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "crc32".into(),
        signature: Signature {
            buffers: vec![reads("data", Element::U8), writes("sums", Element::U32)],
            scalars: scalars(ScalarType::U32, &["count", "block"]),
        },
        check: Check::Function(check),
        launches: Launches::Function(launches),
        sources: shared_source(in_dialect!("crc32.c")),
        tolerance: Tolerance::Exact,
        cpu: Cpu::Native(compute),
    }
}

fn check(shape: &Shape<'_>) -> Result<(), String> {
    let [count, block] = sizes::counts(shape.scalars)?;
    let sums = count.div_ceil(block) as usize;
    sizes::hold(shape, &[("data", count as usize), ("sums", sums)])
}

fn launches(shape: &Shape<'_>) -> Vec<Launch> {
    let Ok([count, block]) = sizes::counts(shape.scalars) else {
        return Vec::new();
    };
    // A block that is longer than the input would leave what 32 bits count.
    let (block, blocks) = (block.min(count), count.div_ceil(block));
    let scalars = [count, block, blocks].map(Scalar::U32).into();
    vec![sizes::line("crc32", blocks, 64, scalars)]
}

fn compute(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let [_, block] = sizes::counts::<2>(arguments.scalars)?;
    let [data, sums] = arguments.buffers else {
        return Err("crc32 takes two buffers".to_owned());
    };
    let blocks = data.slice::<u8>()?.chunks(block as usize);
    for (block, sum) in blocks.zip(sums.slice_mut::<u32>()?) {
        *sum = crc32fast::hash(block);
    }
    Ok(())
}
