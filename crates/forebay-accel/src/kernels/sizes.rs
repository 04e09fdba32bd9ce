//! Sizes of tasks: read from scalars, held against what buffers hold and devices can count.

use crate::task::{Grid, Launch, Scalar, Shape};

/// Elements of one buffer at most: four times as many bytes, and the end of the last group, are still
/// counted in 32 bits.
pub(super) const ELEMENTS_MAX: usize = 1 << 30;

/// All scalars, if they are counts and none is 0.
pub(super) fn counts<const N: usize>(scalars: &[Scalar]) -> Result<[u32; N], String> {
    let mut counts = [0; N];
    if scalars.len() != N {
        return Err(format!(
            "{N} sizes are needed, {} were given",
            scalars.len()
        ));
    }
    for (count, scalar) in counts.iter_mut().zip(scalars) {
        match scalar {
            Scalar::U32(0) => return Err("every size is to be at least 1".to_owned()),
            Scalar::U32(value) => *count = *value,
            other => return Err(format!("a size is to be a u32, not {other:?}")),
        }
    }
    Ok(counts)
}

/// The product of sizes, if that many elements can be counted.
pub(super) fn product(factors: &[u32]) -> Result<usize, String> {
    factors
        .iter()
        .try_fold(1_usize, |all, factor| all.checked_mul(*factor as usize))
        .filter(|all| *all <= ELEMENTS_MAX)
        .ok_or_else(|| format!("the product of {factors:?} is above {ELEMENTS_MAX} elements"))
}

/// Whether buffers hold what the sizes say, no more and no less.
pub(super) fn hold(shape: &Shape<'_>, wanted: &[(&str, usize)]) -> Result<(), String> {
    if shape.elements.len() != wanted.len() {
        return Err(format!(
            "{} buffers are needed, {} were given",
            wanted.len(),
            shape.elements.len()
        ));
    }
    for (held, (name, wanted)) in shape.elements.iter().zip(wanted) {
        if *wanted > ELEMENTS_MAX {
            return Err(format!(
                "`{name}` would hold {wanted} elements; {ELEMENTS_MAX} is the most"
            ));
        }
        if held != wanted {
            return Err(format!(
                "`{name}` is to hold {wanted} elements and holds {held}"
            ));
        }
    }
    Ok(())
}

/// A launch over a line of groups, that are enough for so many items.
pub(super) fn line(entry: &'static str, items: u32, group: u32, scalars: Vec<Scalar>) -> Launch {
    Launch {
        entry: entry.into(),
        grid: Grid::line(items.div_ceil(group).max(1) * group),
        local: Some([group, 1, 1]),
        scratch: Vec::new(),
        scalars,
    }
}

/// Shares among at most `most` parts, each a multiple of `unit` but the last: elements of a part, and
/// how many parts there are.
pub(super) fn parts(count: u32, most: u32, unit: u32) -> (u32, u32) {
    let part = count.div_ceil(most).div_ceil(unit).max(1) * unit;
    (part, count.div_ceil(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_zero_is_refused() {
        let [a, b] = counts([Scalar::U32(3), Scalar::U32(4)].as_slice()).unwrap();
        assert_eq!((a, b), (3, 4));
        assert!(counts::<1>(&[Scalar::U32(0)]).is_err());
        assert!(counts::<1>(&[Scalar::F32(1.0)]).is_err());
        assert!(counts::<2>(&[Scalar::U32(1)]).is_err());
    }

    #[test]
    fn products_that_cannot_be_counted_are_refused() {
        assert_eq!(product(&[1 << 15, 1 << 15]), Ok(1 << 30));
        assert!(product(&[1 << 15, (1 << 15) + 1]).is_err());
        assert!(product(&[u32::MAX; 4]).is_err());
    }

    #[test]
    fn parts_cover_all_and_are_not_empty() {
        for count in [1, 255, 256, 257, 65_536, 65_537, 1 << 30] {
            let (part, parts) = parts(count, 256, 256);
            assert!(parts <= 256 && part % 256 == 0);
            assert!(u64::from(part) * u64::from(parts) >= u64::from(count));
            assert!(u64::from(part) * u64::from(parts - 1) < u64::from(count));
        }
    }
}
