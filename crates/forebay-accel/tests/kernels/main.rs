//! Every built-in kernel on the CPU, against the plainest code that computes the same.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    reason = "a reference is as plain as can be, and a test that fails stops"
)]

mod reference;

use forebay_accel::agree::agree;
use forebay_accel::kernel::Kernel;
use forebay_accel::kernels::built_in;
use forebay_accel::kernels::sample::{Sample, Sizes};
use forebay_accel::task::{Grid, Scalar, Shape};
use proptest::prelude::*;

fn kernel(name: &str) -> Kernel {
    let mut kernels = built_in().into_iter();
    kernels.find(|kernel| kernel.name == name).unwrap()
}

fn check(kernel: &Kernel, seed: u64) {
    let mut sample = Sample::of(kernel, 6000, Sizes::Ragged, seed).unwrap();
    sample.compute(kernel).unwrap();
    let wanted = reference::outputs(&kernel.name, &sample);
    let written = kernel
        .signature
        .buffers
        .iter()
        .zip(&sample.buffers)
        .filter(|(parameter, _)| parameter.access.writes());
    for ((parameter, memory), wanted) in written.zip(wanted) {
        if let Err(difference) = agree(kernel.tolerance, parameter.element, &wanted, memory.bytes())
        {
            panic!(
                "{} {:?} {}: {difference}",
                kernel.name, sample.scalars, parameter.name
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_cpu_computes_what_the_reference_does(seed: u64) {
        for kernel in built_in() {
            check(&kernel, seed);
        }
    }
}

/// Whether a kernel takes sizes.
fn taken(name: &str, elements: &[usize], scalars: &[Scalar]) -> Result<(), String> {
    kernel(name).check(&Shape {
        elements,
        scalars,
        grid: Grid::line(1),
    })
}

#[test]
fn sizes_that_do_not_fit_are_refused_in_words() {
    let u = Scalar::U32;
    let f = Scalar::F32;
    let most = u32::MAX;
    let refused: &[(&str, &[usize], &[Scalar], &str)] = &[
        ("add", &[3, 3, 2], &[u(3)], "`sum` is to hold 3"),
        ("add", &[0, 0, 0], &[u(0)], "at least 1"),
        ("add", &[3, 3], &[u(3)], "takes 3 buffers"),
        ("add", &[3, 3, 3], &[f(3.0)], "count is to be U32"),
        ("matmul", &[4, 4, 4], &[u(2), u(2), u(most)], "product"),
        (
            "matmul",
            &[1, 1, 1],
            &[u(most), u(most), u(most)],
            "at most",
        ),
        (
            "matmul",
            &[4, 4, 5],
            &[u(2), u(2), u(2)],
            "`c` is to hold 4",
        ),
        ("fft", &[6, 6], &[u(3), u(1), u(0)], "power of two"),
        ("fft", &[2, 2], &[u(1), u(1), u(0)], "power of two"),
        ("fft", &[8, 8], &[u(4), u(1), u(2)], "0 or 1"),
        ("fft", &[8, 8], &[u(1 << 24), u(1 << 24), u(0)], "product"),
        (
            "sort",
            &[2_000_000_000; 2],
            &[u(2_000_000_000)],
            "is the most",
        ),
        (
            "histogram",
            &[1, 4097],
            &[u(1), u(4097), f(0.0), f(1.0)],
            "4096",
        ),
        (
            "histogram",
            &[1, 4],
            &[u(1), u(4), f(1.0), f(1.0)],
            "no width",
        ),
        (
            "histogram",
            &[1, 4],
            &[u(1), u(4), f(0.0), f(f32::NAN)],
            "no width",
        ),
        (
            "histogram",
            &[1, 4],
            &[u(1), u(4), f(f32::MIN), f(f32::MAX)],
            "no width",
        ),
        (
            "sha256",
            &[10, 32],
            &[u(10), u(4)],
            "`digests` is to hold 96",
        ),
        ("crc32", &[10, 1], &[u(10), u(0)], "at least 1"),
        (
            "kmeans",
            &[1; 4],
            &[u(1), u(1 << 15), u(1 << 15)],
            "coordinates",
        ),
        (
            "lstm",
            &[1; 3],
            &[u(1), u(1), u(1), u(257), u(1)],
            "hidden is 257",
        ),
        (
            "lstm",
            &[1; 3],
            &[u(most), u(1), u(1), u(1), u(1)],
            "series is",
        ),
        ("scan", &[5, 4], &[u(5)], "`sums` is to hold 5"),
        ("reduce", &[5, 1], &[u(5)], "`result` is to hold 4"),
    ];
    for (name, elements, scalars, words) in refused {
        let error = taken(name, elements, scalars).unwrap_err();
        assert!(error.contains(words), "{name} {scalars:?}: {error}");
    }
    assert_eq!(taken("add", &[3; 3], &[u(3)]), Ok(()));
}

#[test]
fn no_launch_leaves_32_bits_or_is_empty() {
    for kernel in built_in() {
        for scale in [1, 511, 513, 70_000] {
            let sample = Sample::of(&kernel, scale, Sizes::Round, 1).unwrap();
            let elements = sample.elements(&kernel.signature);
            let shape = Shape {
                elements: &elements,
                scalars: &sample.scalars,
                grid: Grid::line(1),
            };
            kernel.check(&shape).unwrap();
            let launches = kernel.launches(&shape);
            assert!(!launches.is_empty(), "{}", kernel.name);
            for launch in launches {
                let local = launch.local.unwrap();
                for (items, local) in launch.grid.0.into_iter().zip(local) {
                    assert!(items > 0 && items % local == 0, "{launch:?}");
                }
            }
        }
    }
    // The largest that is let pass.
    let most = [1 << 30; 2];
    let scalars = [Scalar::U32(1 << 30)];
    let shape = Shape {
        elements: &most,
        scalars: &scalars,
        grid: Grid::line(1),
    };
    let sort = kernel("sort");
    sort.check(&shape).unwrap();
    assert!(
        sort.launches(&shape)
            .iter()
            .all(|launch| launch.grid.items() <= 1 << 29)
    );
}

#[test]
fn values_that_are_no_numbers_are_where_the_documents_say() {
    let floats = |sample: &Sample, at: usize| -> Vec<f32> {
        bytemuck::cast_slice(sample.buffers[at].bytes()).to_vec()
    };
    let histogram = kernel("histogram");
    let mut sample = Sample::of(&histogram, 4, Sizes::Round, 1).unwrap();
    let values = [f32::NAN, f32::INFINITY, 0.95, -0.9];
    sample.buffers[0]
        .bytes_mut()
        .copy_from_slice(bytemuck::cast_slice(&values));
    sample.compute(&histogram).unwrap();
    let counts: &[u32] = bytemuck::cast_slice(sample.buffers[1].bytes());
    assert_eq!((counts[0], counts[255]), (1, 1));
    assert_eq!(counts.iter().sum::<u32>(), 2);

    let reduce = kernel("reduce");
    let mut sample = Sample::of(&reduce, 40, Sizes::Round, 1).unwrap();
    bytemuck::cast_slice_mut::<u8, f32>(sample.buffers[0].bytes_mut())[7] = f32::NAN;
    sample.compute(&reduce).unwrap();
    let result = floats(&sample, 1);
    assert!(result[0].is_nan() && result[1].is_nan());
    assert!(result[2] < 0.0 && result[3] > 0.0);
}
