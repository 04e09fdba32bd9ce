//! `sha256`: the SHA-256 of each block of the input, the last of which may be shorter. Buffers `data`
//! (bytes), `digests` (32 bytes a block); scalars `count` (bytes), `block`.
//!
//! On the CPU by `sha2`, which uses the processor's own instructions. A device computes a block with
//! one item: it pays where there are thousands of them.

use sha2::{Digest, Sha256};

use super::{in_dialect, reads, scalars, shared_source, sizes, writes};
use crate::kernel::{Arguments, Check, Cpu, Element, Kernel, Launches, Signature, Tolerance};
use crate::task::{Launch, Scalar, ScalarType, Shape};

const DIGEST: usize = 32;

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "sha256".into(),
        signature: Signature {
            buffers: vec![reads("data", Element::U8), writes("digests", Element::U8)],
            scalars: scalars(ScalarType::U32, &["count", "block"]),
        },
        check: Check::Function(check),
        launches: Launches::Function(launches),
        sources: shared_source(in_dialect!("sha256.c")),
        tolerance: Tolerance::Exact,
        cpu: Cpu::Native(compute),
    }
}

fn check(shape: &Shape<'_>) -> Result<(), String> {
    let [count, block] = sizes::counts(shape.scalars)?;
    let digests = count.div_ceil(block) as usize * DIGEST;
    sizes::hold(shape, &[("data", count as usize), ("digests", digests)])
}

fn launches(shape: &Shape<'_>) -> Vec<Launch> {
    let Ok([count, block]) = sizes::counts(shape.scalars) else {
        return Vec::new();
    };
    // A block that is longer than the input would leave what 32 bits count.
    let (block, blocks) = (block.min(count), count.div_ceil(block));
    let scalars = [count, block, blocks].map(Scalar::U32).into();
    vec![sizes::line("sha256", blocks, 64, scalars)]
}

fn compute(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let [_, block] = sizes::counts::<2>(arguments.scalars)?;
    let [data, digests] = arguments.buffers else {
        return Err("sha256 takes two buffers".to_owned());
    };
    let blocks = data.slice::<u8>()?.chunks(block as usize);
    let digests = digests.slice_mut::<u8>()?.chunks_exact_mut(DIGEST);
    for (block, digest) in blocks.zip(digests) {
        digest.copy_from_slice(&Sha256::digest(block));
    }
    Ok(())
}
