//! What built-in kernels compute, by the library alone and called as its own documents show: what the
//! implementation on the CPU is held against.

use num_complex::Complex32;
use rustfft::FftPlanner;
use sha2::{Digest, Sha256};

use super::sample::Sample;
use crate::task::Scalar;

/// The library that is known for what a kernel computes. Where there is none, the plain loop that one
/// would write instead.
#[must_use]
pub fn name(kernel: &str) -> Option<&'static str> {
    Some(match kernel {
        "crc32" => "crc32fast",
        "fft" => "rustfft",
        "matmul" => "matrixmultiply",
        "sha256" => "sha2",
        "sort" => "std",
        "add" | "histogram" | "kmeans" | "reduce" | "scan" => "plain loop",
        _ => return None,
    })
}

/// Computes a sample by it, and returns something of the result, so that nothing is left out. None
/// where there is no library, or the sample is not one of the kernel.
#[must_use]
pub fn compute(kernel: &str, sample: &Sample) -> Option<u64> {
    let count = |at: usize| match sample.scalars.get(at) {
        Some(Scalar::U32(count)) => Some(*count as usize),
        _ => None,
    };
    let bytes = sample.buffers.first()?.bytes();
    let floats = |at: usize| {
        Some(bytemuck::cast_slice::<u8, f32>(
            sample.buffers.get(at)?.bytes(),
        ))
    };
    match kernel {
        "crc32" => {
            let sums = bytes.chunks(count(1)?).map(crc32fast::hash);
            Some(sums.map(u64::from).sum())
        }
        "sha256" => {
            let digests = bytes.chunks(count(1)?).map(Sha256::digest);
            Some(digests.map(|digest| u64::from(digest[0])).sum())
        }
        "sort" => {
            let mut sorted: Vec<u32> = bytemuck::cast_slice(bytes).to_vec();
            sorted.sort_unstable();
            Some(u64::from(*sorted.last()?))
        }
        "fft" => {
            let mut numbers: Vec<Complex32> = bytemuck::cast_slice(bytes).to_vec();
            FftPlanner::new()
                .plan_fft_forward(count(0)?)
                .process(&mut numbers);
            Some(u64::from(numbers.last()?.re.to_bits()))
        }
        "matmul" => {
            let (rows, columns, inner) = (count(0)?, count(1)?, count(2)?);
            let mut product = vec![0.0; rows * columns];
            super::matmul::multiply(
                super::matmul::Matrix {
                    numbers: floats(0)?,
                    columns: inner,
                },
                super::matmul::Matrix {
                    numbers: floats(1)?,
                    columns,
                },
                &mut product,
                rows,
                super::matmul::Product::Replaces,
            )
            .ok()?;
            Some(u64::from(product.last()?.to_bits()))
        }
        "add" => {
            let sum: Vec<f32> = floats(0)?
                .iter()
                .zip(floats(1)?)
                .map(|(a, b)| a + b)
                .collect();
            Some(u64::from(sum.last()?.to_bits()))
        }
        "reduce" => {
            let values = floats(0)?;
            let (mut sum, mut magnitude) = (0.0, 0.0);
            let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
            for value in values {
                sum += value;
                magnitude += value.abs();
                least = least.min(*value);
                most = most.max(*value);
            }
            Some(u64::from((sum + magnitude + least + most).to_bits()))
        }
        "scan" => {
            let mut total = 0_u32;
            let values: &[u32] = bytemuck::cast_slice(bytes);
            let sums: Vec<u32> = values
                .iter()
                .map(|value| {
                    total = total.wrapping_add(*value);
                    total
                })
                .collect();
            Some(u64::from(*sums.last()?))
        }
        "histogram" => {
            let bins = count(1)?;
            let mut counts = vec![0_u32; bins];
            #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
            let scale = bins as f32 / 1.85;
            for value in floats(0)? {
                if (-0.9..=0.95).contains(value) {
                    #[expect(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "not negative, and held to the last bin"
                    )]
                    let bin = ((value + 0.9) * scale) as usize;
                    counts[bin.min(bins - 1)] += 1;
                }
            }
            Some(u64::from(*counts.first()?))
        }
        "kmeans" => {
            let dimensions = count(2)?;
            let centroids = floats(1)?;
            let mut sums = vec![0.0_f32; centroids.len()];
            for point in floats(0)?.chunks_exact(dimensions) {
                let (mut nearest, mut least) = (0, f32::INFINITY);
                for (cluster, centroid) in centroids.chunks_exact(dimensions).enumerate() {
                    let apart = point.iter().zip(centroid).map(|(a, b)| (a - b) * (a - b));
                    let distance: f32 = apart.sum();
                    if distance < least {
                        (nearest, least) = (cluster, distance);
                    }
                }
                let sums = &mut sums[nearest * dimensions..][..dimensions];
                sums.iter_mut().zip(point).for_each(|(sum, x)| *sum += x);
            }
            Some(u64::from(sums.last()?.to_bits()))
        }
        _ => None,
    }
}
