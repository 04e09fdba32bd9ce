//! `kmeans`: one step of Lloyd's algorithm: the nearest centroid of each point, and the means of the
//! points that each has (a centroid without points stays). Buffers `points` (count x dimensions),
//! `centroids` (clusters x dimensions), `labels` (u32, one a point), `means` (as centroids); scalars
//! `count`, `clusters`, `dimensions`. Of centroids at one distance the first is the nearest; a point
//! that is at no distance from any (not a number) has label 0.
//!
//! Every distance is summed in one order, here and on devices, so that labels are the same everywhere.
//!
//! Source: Lloyd, "Least squares quantization in PCM", 1982.

use super::{in_dialect, reads, scalars, shared_source, sizes, writes};
use crate::kernel::{Arguments, Check, Cpu, Element, Kernel, Launches, Signature, Tolerance};
use crate::task::{Launch, Scalar, ScalarType, Shape};

/// Coordinates of all centroids at most.
const COORDINATES_MAX: usize = 1 << 20;
/// Parts that points are summed in, at most, and the least points of one.
const PARTS_MAX: u32 = 64;
const PART_MIN: u32 = 1024;

pub(super) fn kernel() -> Kernel {
    Kernel {
        name: "kmeans".into(),
        signature: Signature {
            buffers: vec![
                reads("points", Element::F32),
                reads("centroids", Element::F32),
                writes("labels", Element::U32),
                writes("means", Element::F32),
            ],
            scalars: scalars(ScalarType::U32, &["count", "clusters", "dimensions"]),
        },
        check: Check::Function(check),
        launches: Launches::Function(launches),
        sources: shared_source(in_dialect!("kmeans.c")),
        // Of the means; labels are no floats, and compared exactly.
        tolerance: Tolerance::Scaled { relative: 1e-6 },
        cpu: Cpu::Native(compute),
    }
}

fn check(shape: &Shape<'_>) -> Result<(), String> {
    let [count, clusters, dimensions] = sizes::counts(shape.scalars)?;
    let points = sizes::product(&[count, dimensions])?;
    let coordinates = sizes::product(&[clusters, dimensions])?;
    if coordinates > COORDINATES_MAX {
        return Err(format!(
            "all centroids have {coordinates} coordinates; {COORDINATES_MAX} is the most"
        ));
    }
    let wanted = [
        ("points", points),
        ("centroids", coordinates),
        ("labels", count as usize),
        ("means", coordinates),
    ];
    sizes::hold(shape, &wanted)
}

fn launches(shape: &Shape<'_>) -> Vec<Launch> {
    let Ok([count, clusters, dimensions]) = sizes::counts(shape.scalars) else {
        return Vec::new();
    };
    let (part, parts) = sizes::parts(count, PARTS_MAX, PART_MIN);
    let coordinates = clusters * dimensions;
    let items = [
        ("kmeans_label", count),
        ("kmeans_sums", parts * coordinates),
        ("kmeans_means", coordinates),
    ];
    items
        .map(|(entry, items)| {
            let scalars = [count, clusters, dimensions, part, parts].map(Scalar::U32);
            let mut launch = sizes::line(entry, items, 64, scalars.into());
            launch.scratch = vec![
                parts as usize * coordinates as usize * 4,
                parts as usize * clusters as usize * 4,
            ];
            launch
        })
        .into()
}

fn compute(arguments: &mut Arguments<'_, '_>) -> Result<(), String> {
    let [count, clusters, dimensions] = sizes::counts(arguments.scalars)?;
    let (part, _) = sizes::parts(count, PARTS_MAX, PART_MIN);
    let (part, clusters, dimensions) = (part as usize, clusters as usize, dimensions as usize);
    let [points, centroids, labels, means] = arguments.buffers else {
        return Err("kmeans takes four buffers".to_owned());
    };
    let (points, centroids) = (points.slice::<f32>()?, centroids.slice::<f32>()?);
    let (labels, means) = (labels.slice_mut::<u32>()?, means.slice_mut::<f32>()?);
    label(points, centroids, dimensions, labels);

    means.fill(0.0);
    let mut members = vec![0_u32; clusters];
    let mut sums = vec![0.0_f32; clusters * dimensions];
    let parts = points.chunks(part * dimensions).zip(labels.chunks(part));
    for (points, labels) in parts {
        sums.fill(0.0);
        for (point, label) in points.chunks_exact(dimensions).zip(labels) {
            let cluster = *label as usize;
            members[cluster] += 1;
            let sums = &mut sums[cluster * dimensions..][..dimensions];
            for (sum, coordinate) in sums.iter_mut().zip(point) {
                *sum += coordinate;
            }
        }
        for (mean, sum) in means.iter_mut().zip(&sums) {
            *mean += sum;
        }
    }
    let of_clusters = means
        .chunks_exact_mut(dimensions)
        .zip(centroids.chunks_exact(dimensions));
    for ((mean, centroid), members) in of_clusters.zip(members) {
        if members == 0 {
            mean.copy_from_slice(centroid);
        } else {
            #[expect(clippy::cast_precision_loss, reason = "devices divide by the same")]
            let members = members as f32;
            mean.iter_mut().for_each(|mean| *mean /= members);
        }
    }
    Ok(())
}

/// The nearest centroid of each point. Distances to all centroids are summed beside each other, so
/// that vector instructions keep the order of each sum.
fn label(points: &[f32], centroids: &[f32], dimensions: usize, labels: &mut [u32]) {
    let clusters = centroids.len() / dimensions;
    let mut by_dimension = vec![0.0; centroids.len()];
    for (cluster, centroid) in centroids.chunks_exact(dimensions).enumerate() {
        for (dimension, coordinate) in centroid.iter().enumerate() {
            by_dimension[dimension * clusters + cluster] = *coordinate;
        }
    }
    let mut distances = vec![0.0_f32; clusters];
    for (label, point) in labels.iter_mut().zip(points.chunks_exact(dimensions)) {
        distances.fill(0.0);
        for (coordinate, row) in point.iter().zip(by_dimension.chunks_exact(clusters)) {
            for (distance, other) in distances.iter_mut().zip(row) {
                let apart = coordinate - other;
                *distance += apart * apart;
            }
        }
        let mut least = f32::INFINITY;
        *label = 0;
        for (cluster, distance) in (0_u32..).zip(&distances) {
            if *distance < least {
                least = *distance;
                *label = cluster;
            }
        }
    }
}
