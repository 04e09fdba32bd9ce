//! `matmul`: the product of two matrices of `f32`, all by rows. Buffers `a` (rows x inner), `b`
//! (inner x columns), `c` (rows x columns); scalars `rows`, `columns`, `inner`.
//!
//! On the CPU by `matrixmultiply`, which chooses instructions at run time.

use super::{in_dialect, reads, scalars, shared_source_and, sizes, writes};
use crate::kernel::{Arguments, Check, Cpu, Element, Kernel, Launches, Signature, Tolerance};
use crate::task::{Grid, Launch, ScalarType, Shape};

/// Rows and columns of a tile, one group each.
const TILE: u32 = 64;
/// Rows, and columns, at most: devices take at most 65,535 groups in a dimension.
const SIDE_MAX: u32 = 65_535 * TILE;

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "matmul".into(),
        signature: Signature {
            buffers: vec![
                reads("a", Element::F32),
                reads("b", Element::F32),
                writes("c", Element::F32),
            ],
            scalars: scalars(ScalarType::U32, &["rows", "columns", "inner"]),
        },
        check: Check::Function(check),
        launches: Launches::Function(launches),
        sources: shared_source_and(in_dialect!("matmul.c"), include_str!("source/matmul.wgsl")),
        // Sums in another order: what cancels keeps the error of its largest terms.
        tolerance: Tolerance::Scaled { relative: 1e-4 },
        cpu: Cpu::Native(compute),
    }
}

fn check(shape: &Shape<'_>) -> Result<(), String> {
    let [rows, columns, inner] = sizes::counts(shape.scalars)?;
    if rows > SIDE_MAX || columns > SIDE_MAX {
        return Err(format!(
            "rows and columns are at most {SIDE_MAX} each, not {rows} and {columns}"
        ));
    }
    let wanted = [
        ("a", sizes::product(&[rows, inner])?),
        ("b", sizes::product(&[inner, columns])?),
        ("c", sizes::product(&[rows, columns])?),
    ];
    sizes::hold(shape, &wanted)
}

fn launches(shape: &Shape<'_>) -> Vec<Launch> {
    let Ok([rows, columns, _]) = sizes::counts(shape.scalars) else {
        return Vec::new();
    };
    // 16 x 16 items a tile.
    let items = |side: u32| side.div_ceil(TILE) * 16;
    vec![Launch {
        entry: "matmul".into(),
        grid: Grid([items(columns), items(rows), 1]),
        local: Some([16, 16, 1]),
        scratch: Vec::new(),
        scalars: shape.scalars.to_vec(),
    }]
}

fn compute(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let [rows, columns, inner] = sizes::counts::<3>(arguments.scalars)?.map(|size| size as usize);
    let [a, b, c] = arguments.buffers else {
        return Err("matmul takes three buffers".to_owned());
    };
    multiply(
        Matrix {
            numbers: a.slice()?,
            columns: inner,
        },
        Matrix {
            numbers: b.slice()?,
            columns,
        },
        c.slice_mut()?,
        rows,
        Product::Replaces,
    )
}

/// A matrix by rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub(super) numbers: &'a [f32],
    pub(super) columns: usize,
}

/// What becomes of what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Product {
    Replaces,
    AddsTo,
}

/// The product of `a`, of so many rows, and `b`.
#[expect(
    unsafe_code,
    reason = "the library takes pointers, as matrices may have gaps"
)]
pub(super) fn multiply(
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    rows: usize,
    product: Product,
) -> Result<(), String> {
    let (inner, columns) = (a.columns, b.columns);
    let sound = a.numbers.len() == rows * inner
        && b.numbers.len() == inner * columns
        && c.len() == rows * columns;
    let strides = (isize::try_from(inner), isize::try_from(columns));
    let (true, (Ok(a_row), Ok(row))) = (sound, strides) else {
        return Err(format!(
            "matrices of {rows} x {inner} and {inner} x {columns} do not fit their buffers"
        ));
    };
    // SAFETY: the three slices hold exactly the rows and columns that are passed (checked above), and
    // `c` is borrowed alone. The crate has no safe entry for slices.
    unsafe {
        matrixmultiply::sgemm(
            rows,
            inner,
            columns,
            1.0,
            a.numbers.as_ptr(),
            a_row,
            1,
            b.numbers.as_ptr(),
            row,
            1,
            match product {
                Product::Replaces => 0.0,
                Product::AddsTo => 1.0,
            },
            c.as_mut_ptr(),
            row,
            1,
        );
    }
    Ok(())
}
