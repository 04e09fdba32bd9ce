//! The plainest code: sums in f64, no blocks, no tricks.

use forebay_accel::kernels::sample::Sample;
use forebay_accel::task::Scalar;

/// What a kernel is to write, buffer by buffer.
pub(crate) fn outputs(kernel: &str, sample: &Sample) -> Vec<Vec<u8>> {
    let sizes: Vec<usize> = sample
        .scalars
        .iter()
        .filter_map(|scalar| match scalar {
            Scalar::U32(size) => Some(*size as usize),
            _ => None,
        })
        .collect();
    let floats = |at: usize| -> &[f32] { bytemuck::cast_slice(sample.buffers[at].bytes()) };
    let words = |at: usize| -> &[u32] { bytemuck::cast_slice(sample.buffers[at].bytes()) };
    let of_floats = |values: Vec<f64>| -> Vec<u8> {
        let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        bytemuck::cast_slice(&values).to_vec()
    };
    let of_words = |values: Vec<u32>| -> Vec<u8> { bytemuck::cast_slice(&values).to_vec() };
    match kernel {
        "add" => {
            let sums = floats(0).iter().zip(floats(1)).map(|(a, b)| a + b);
            vec![bytemuck::cast_slice(&sums.collect::<Vec<f32>>()).to_vec()]
        }
        "matmul" => vec![of_floats(matmul(floats(0), floats(1), &sizes))],
        "reduce" => {
            let values = || floats(0).iter().map(|value| f64::from(*value));
            vec![of_floats(vec![
                values().sum(),
                values().map(f64::abs).sum(),
                values().fold(f64::INFINITY, f64::min),
                values().fold(f64::NEG_INFINITY, f64::max),
            ])]
        }
        "scan" => {
            let sums = (1..=words(0).len()).map(|end| {
                let all = words(0)[..end].iter().map(|value| u64::from(*value));
                all.sum::<u64>() as u32
            });
            vec![of_words(sums.collect())]
        }
        "sort" => {
            let mut sorted = words(0).to_vec();
            // Insertion, so that it is not the sort that is tested.
            for end in 1..sorted.len() {
                let place = sorted[..end].partition_point(|value| *value <= sorted[end]);
                sorted[place..=end].rotate_right(1);
            }
            vec![of_words(sorted)]
        }
        "histogram" => vec![of_words(histogram(floats(0), sizes[1]))],
        "sha256" => {
            let blocks = sample.buffers[0].bytes().chunks(sizes[1]);
            vec![blocks.flat_map(sha256).collect()]
        }
        "crc32" => {
            let blocks = sample.buffers[0].bytes().chunks(sizes[1]);
            vec![of_words(blocks.map(crc32).collect())]
        }
        "fft" => vec![of_floats(fft(floats(0), &sizes))],
        "kmeans" => {
            let (labels, means) = kmeans(floats(0), floats(1), &sizes);
            vec![of_words(labels), of_floats(means)]
        }
        "lstm" => vec![of_floats(lstm(floats(0), floats(1), &sizes))],
        other => panic!("no reference for {other}"),
    }
}

fn matmul(a: &[f32], b: &[f32], sizes: &[usize]) -> Vec<f64> {
    let &[rows, columns, inner] = sizes else {
        panic!("{sizes:?}");
    };
    let at = |row: usize, column: usize| {
        let terms =
            (0..inner).map(|k| f64::from(a[row * inner + k]) * f64::from(b[k * columns + column]));
        terms.sum()
    };
    (0..rows * columns)
        .map(|i| at(i / columns, i % columns))
        .collect()
}

/// The bin is looked for by its edges. They are computed, so a value that is as close to one as
/// rounding goes may be in either: such are given to the bin that the kernel's formula says.
fn histogram(values: &[f32], bins: usize) -> Vec<u32> {
    let (low, high) = (-0.9_f32, 0.95_f32);
    let mut counts = vec![0; bins];
    for value in values {
        if (low..=high).contains(value) {
            let exact = f64::from(value - low) * bins as f64 / f64::from(high - low);
            let edge = exact.round();
            let bin = if (exact - edge).abs() < 1e-3 {
                ((value - low) * (bins as f32 / (high - low))) as usize
            } else {
                exact as usize
            };
            counts[bin.min(bins - 1)] += 1;
        }
    }
    counts
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = (sum >> 1) ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    !sum
}

/// From FIPS 180-4, with constants from the roots of primes.
fn sha256(bytes: &[u8]) -> Vec<u8> {
    let primes: Vec<u32> = (2..312)
        .filter(|n| (2..*n).all(|d| n % d != 0))
        .take(64)
        .collect();
    let fraction = |root: f64| ((root - root.floor()) * 4_294_967_296.0) as u32;
    let rounds: Vec<u32> = primes
        .iter()
        .map(|p| fraction(f64::from(*p).cbrt()))
        .collect();
    let mut state: Vec<u32> = primes[..8]
        .iter()
        .map(|p| fraction(f64::from(*p).sqrt()))
        .collect();
    let mut message = bytes.to_vec();
    message.push(0x80);
    while message.len() % 64 != 56 {
        message.push(0);
    }
    message.extend((bytes.len() as u64 * 8).to_be_bytes());
    for block in message.chunks(64) {
        let mut w: Vec<u32> = block
            .chunks(4)
            .map(|word| u32::from_be_bytes(word.try_into().unwrap()))
            .collect();
        for i in 16..64 {
            let (a, b) = (w[i - 15], w[i - 2]);
            let first = a.rotate_right(7) ^ a.rotate_right(18) ^ (a >> 3);
            let second = b.rotate_right(17) ^ b.rotate_right(19) ^ (b >> 10);
            let next = w[i - 16]
                .wrapping_add(first)
                .wrapping_add(w[i - 7])
                .wrapping_add(second);
            w.push(next);
        }
        let mut v = state.clone();
        for i in 0..64 {
            let (a, b, c, e, f, g) = (v[0], v[1], v[2], v[4], v[5], v[6]);
            let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let first = v[7]
                .wrapping_add(s1)
                .wrapping_add((e & f) ^ (!e & g))
                .wrapping_add(rounds[i])
                .wrapping_add(w[i]);
            let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let second = s0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
            v.rotate_right(1);
            v[4] = v[4].wrapping_add(first);
            v[0] = first.wrapping_add(second);
        }
        for (state, v) in state.iter_mut().zip(v) {
            *state = state.wrapping_add(v);
        }
    }
    state.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn fft(input: &[f32], sizes: &[usize]) -> Vec<f64> {
    let &[length, _, inverse] = sizes else {
        panic!("{sizes:?}");
    };
    let turn = if inverse == 1 { 1.0 } else { -1.0 } * std::f64::consts::TAU / length as f64;
    let mut output = Vec::with_capacity(input.len());
    for series in input.chunks(2 * length) {
        for k in 0..length {
            let (mut re, mut im) = (0.0, 0.0);
            for (j, number) in series.chunks(2).enumerate() {
                let (sin, cos) = (turn * (j * k % length) as f64).sin_cos();
                let (x, y) = (f64::from(number[0]), f64::from(number[1]));
                re += x * cos - y * sin;
                im += x * sin + y * cos;
            }
            output.extend([re, im]);
        }
    }
    output
}

/// Labels by distances in the precision and the order that the kernel promises.
fn kmeans(points: &[f32], centroids: &[f32], sizes: &[usize]) -> (Vec<u32>, Vec<f64>) {
    let &[_, clusters, dimensions] = sizes else {
        panic!("{sizes:?}");
    };
    let mut labels = Vec::new();
    let mut sums = vec![0.0; clusters * dimensions];
    let mut members = vec![0.0; clusters];
    for point in points.chunks(dimensions) {
        let distance = |cluster: usize| {
            let mut sum = 0.0_f32;
            for (i, x) in point.iter().enumerate() {
                let apart = x - centroids[cluster * dimensions + i];
                sum += apart * apart;
            }
            sum
        };
        let mut label = 0;
        for cluster in 1..clusters {
            if distance(cluster) < distance(label) {
                label = cluster;
            }
        }
        labels.push(label as u32);
        members[label] += 1.0;
        for (i, x) in point.iter().enumerate() {
            sums[label * dimensions + i] += f64::from(*x);
        }
    }
    let means = (0..clusters * dimensions).map(|i| {
        let members: f64 = members[i / dimensions];
        if members > 0.0 {
            sums[i] / members
        } else {
            f64::from(centroids[i])
        }
    });
    (labels, means.collect())
}

fn lstm(weights: &[f32], inputs: &[f32], sizes: &[usize]) -> Vec<f64> {
    let &[_, steps, width, hidden, targets] = sizes else {
        panic!("{sizes:?}");
    };
    let gates = 4 * hidden;
    let weight = |row: usize, column: usize| f64::from(weights[row * gates + column]);
    let head = &weights[gates * (width + hidden + 1)..];
    let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
    let mut outputs = Vec::new();
    for series in inputs.chunks(steps * width) {
        let (mut h, mut c) = (vec![0.0; hidden], vec![0.0; hidden]);
        for x in series.chunks(width) {
            let z: Vec<f64> = (0..gates)
                .map(|gate| {
                    let by_input = x
                        .iter()
                        .enumerate()
                        .map(|(k, x)| f64::from(*x) * weight(k, gate));
                    let by_state = h
                        .iter()
                        .enumerate()
                        .map(|(k, h)| h * weight(width + k, gate));
                    weight(width + hidden, gate) + by_input.sum::<f64>() + by_state.sum::<f64>()
                })
                .collect();
            for unit in 0..hidden {
                let (i, f) = (sigmoid(z[unit]), sigmoid(z[hidden + unit]));
                let (g, o) = (z[2 * hidden + unit].tanh(), sigmoid(z[3 * hidden + unit]));
                c[unit] = f * c[unit] + i * g;
                h[unit] = o * f64::tanh(c[unit]);
            }
        }
        for target in 0..targets {
            let by_state = h
                .iter()
                .enumerate()
                .map(|(k, h)| h * f64::from(head[k * targets + target]));
            outputs.push(f64::from(head[hidden * targets + target]) + by_state.sum::<f64>());
        }
    }
    outputs
}
