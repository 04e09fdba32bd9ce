//! `histogram`: how many values are in each of `bins` bins of one width from `low` to `high`. Buffers
//! `values` (f32), `counts` (u32); scalars `count`, `bins` (u32), `low`, `high` (f32). The last bin has
//! its upper end; values outside, and what is no number, are in none.

use super::{in_dialect, reads, scalars, shared_source_and, sizes, writes};
use crate::kernel::{Arguments, Check, Cpu, Element, Kernel, Launches, Signature, Tolerance};
use crate::task::{Launch, Scalar, ScalarType, Shape};

/// They are counted in shared memory, of which every device has 32 KiB.
const BINS_MAX: u32 = 4096;
const GROUPS_MAX: u32 = 256;

/// What the scalars say.
struct Bins {
    count: u32,
    bins: u32,
    low: f32,
    high: f32,
    /// Bins in a unit of the values.
    scale: f32,
}

pub(super) fn kernel() -> Kernel {
    let mut parameters = scalars(ScalarType::U32, &["count", "bins"]);
    parameters.extend(scalars(ScalarType::F32, &["low", "high"]));
    Kernel {
        name: "histogram".into(),
        signature: Signature {
            buffers: vec![
                reads("values", Element::F32),
                writes("counts", Element::U32),
            ],
            scalars: parameters,
        },
        check: Check::Function(check),
        launches: Launches::Function(launches),
        sources: shared_source_and(
            in_dialect!("histogram.c"),
            include_str!("source/histogram.wgsl"),
        ),
        // A subtraction and a multiplication, each rounded, say the bin: the same everywhere.
        tolerance: Tolerance::Exact,
        cpu: Cpu::Native(compute),
    }
}

fn bins(scalars: &[Scalar]) -> Result<Bins, String> {
    let [sizes @ .., Scalar::F32(low), Scalar::F32(high)] = scalars else {
        return Err("histogram takes count, bins, low and high".to_owned());
    };
    let [count, bins] = sizes::counts(sizes)?;
    if bins > BINS_MAX {
        return Err(format!(
            "{bins} bins were asked for; {BINS_MAX} is the most"
        ));
    }
    #[expect(clippy::cast_precision_loss, reason = "at most BINS_MAX")]
    let scale = bins as f32 / (high - low);
    if !(low < high && (high - low).is_finite() && scale.is_finite() && scale > 0.0) {
        return Err(format!(
            "bins from {low} to {high} have no width that can be computed with"
        ));
    }
    Ok(Bins {
        count,
        bins,
        low: *low,
        high: *high,
        scale,
    })
}

fn check(shape: &Shape<'_>) -> Result<(), String> {
    let Bins { count, bins, .. } = bins(shape.scalars)?;
    sizes::hold(
        shape,
        &[("values", count as usize), ("counts", bins as usize)],
    )
}

fn launches(shape: &Shape<'_>) -> Vec<Launch> {
    let Ok(wanted) = bins(shape.scalars) else {
        return Vec::new();
    };
    let mut scalars = shape.scalars.to_vec();
    scalars.push(Scalar::F32(wanted.scale));
    let groups = wanted.count.div_ceil(1024).min(GROUPS_MAX);
    vec![
        sizes::line("histogram_clear", wanted.bins, 256, scalars.clone()),
        sizes::line("histogram_count", groups * 256, 256, scalars),
    ]
}

fn compute(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let Bins {
        low, high, scale, ..
    } = bins(arguments.scalars)?;
    let [values, counts] = arguments.buffers else {
        return Err("histogram takes two buffers".to_owned());
    };
    let counts = counts.slice_mut::<u32>()?;
    counts.fill(0);
    let Some(last) = counts.len().checked_sub(1) else {
        return Err("histogram takes at least one bin".to_owned());
    };
    for value in values.slice::<f32>()? {
        if *value >= low && *value <= high {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "not negative, and held to the last bin"
            )]
            let bin = ((value - low) * scale) as usize;
            counts[bin.min(last)] += 1;
        }
    }
    Ok(())
}
