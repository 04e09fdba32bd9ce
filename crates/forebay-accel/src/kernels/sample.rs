//! Tasks to try kernels with: random content, from a seed. Tests, the benchmark, and whoever wants to
//! know whether a device is sound, take them from here.

use fastrand::Rng;

use crate::agree::{Difference, agree};
use crate::kernel::{Access, Arguments, Cpu, Element, Kernel, Signature};
use crate::task::{Grid, Scalar, Shape, View};

/// Which sizes a task has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizes {
    /// The same for every seed, and convenient: for benchmarks.
    Round,
    /// Other ones for every seed, that divide nothing: for tests.
    Ragged,
}

/// A task with its memory.
#[derive(Debug, Clone)]
pub struct Sample {
    pub scalars: Vec<Scalar>,
    /// As the signature orders them. What is only written holds rubbish.
    pub buffers: Vec<Memory>,
}

/// Bytes that any element may be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    words: Vec<u64>,
    bytes: usize,
}

impl Memory {
    fn new(bytes: usize) -> Self {
        // No result is all ones, so what a kernel leaves out is seen.
        Self {
            words: vec![u64::MAX; bytes.div_ceil(8)],
            bytes,
        }
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }

    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.bytes]
    }
}

impl Sample {
    /// A task of a built-in kernel with some `scale` elements in its largest input. None of a kernel
    /// that there is not.
    #[must_use]
    pub fn of(kernel: &Kernel, scale: u32, sizes: Sizes, seed: u64) -> Option<Self> {
        let mut rng = Rng::with_seed(seed);
        let scale = match sizes {
            Sizes::Round => scale.max(1),
            Sizes::Ragged => rng.u32(1..=scale.max(1)),
        };
        let mut pick = |round: u32, ragged: std::ops::RangeInclusive<u32>| match sizes {
            Sizes::Round => round,
            Sizes::Ragged => rng.u32(ragged),
        };
        let side = scale.isqrt().max(1);
        let (counts, elements): (Vec<u32>, Vec<u32>) = match kernel.name.as_ref() {
            "add" => (vec![scale], vec![scale; 3]),
            "reduce" => (vec![scale], vec![scale, 4]),
            "scan" | "sort" => (vec![scale], vec![scale; 2]),
            "crc32" => {
                let block = pick(4096, 1..=scale + 8);
                (vec![scale, block], vec![scale, scale.div_ceil(block)])
            }
            "sha256" => {
                let block = pick(4096, 1..=scale + 8);
                (vec![scale, block], vec![scale, scale.div_ceil(block) * 32])
            }
            "histogram" => {
                let bins = pick(256, 1..=4096);
                (vec![scale, bins], vec![scale, bins])
            }
            "matmul" => {
                let rows = pick(side, 1..=2 * side);
                let (columns, inner) = (side, pick(side, 1..=side));
                let elements = vec![rows * inner, inner * columns, rows * columns];
                (vec![rows, columns, inner], elements)
            }
            "fft" => {
                let length = 1 << pick(10, 1..=9);
                let batch = (scale / 2 / length).max(1);
                let inverse = pick(0, 0..=1);
                (vec![length, batch, inverse], vec![2 * length * batch; 2])
            }
            "kmeans" => {
                let (clusters, dimensions) = (pick(16, 1..=40), pick(8, 1..=12));
                let count = (scale / dimensions).max(1);
                let coordinates = clusters * dimensions;
                (
                    vec![count, clusters, dimensions],
                    vec![count * dimensions, coordinates, count, coordinates],
                )
            }
            "lstm" => {
                // Round ones are those of the forecaster's network.
                let (steps, width) = (pick(96, 1..=20), pick(40, 1..=30));
                let (hidden, targets) = (pick(32, 1..=80), pick(120, 1..=70));
                let series = (scale / steps / width).max(1);
                let weights = 4 * hidden * (width + hidden + 1) + targets * (hidden + 1);
                (
                    vec![series, steps, width, hidden, targets],
                    vec![weights, series * steps * width, series * targets],
                )
            }
            _ => return None,
        };
        let mut scalars: Vec<_> = counts.into_iter().map(Scalar::U32).collect();
        if kernel.name == "histogram" {
            scalars.extend([Scalar::F32(-0.9), Scalar::F32(0.95)]);
        }
        let parameters = kernel.signature.buffers.iter().zip(elements);
        let buffers = parameters.map(|(parameter, elements)| {
            let mut memory = Memory::new(elements as usize * parameter.element.size());
            if parameter.access.reads() {
                fill(memory.bytes_mut(), parameter.element, &mut rng);
            }
            memory
        });
        let mut sample = Self {
            scalars,
            buffers: buffers.collect(),
        };
        if kernel.name == "lstm" {
            // As small as training begins with. Networks of large weights are chaotic: they make much
            // of the last place of a float, and no two devices agree.
            let weights = sample.buffers[0].bytes_mut();
            for weight in bytemuck::cast_slice_mut::<u8, f32>(weights) {
                *weight *= 0.2;
            }
        }
        Some(sample)
    }

    /// Elements of each buffer.
    #[must_use]
    pub fn elements(&self, signature: &Signature) -> Vec<usize> {
        let parameters = signature.buffers.iter().zip(&self.buffers);
        parameters
            .map(|(parameter, memory)| memory.bytes / parameter.element.size())
            .collect()
    }

    /// What kernels and devices are called with.
    pub fn views(&mut self, signature: &Signature) -> Vec<View<'_>> {
        let parameters = signature.buffers.iter().zip(&mut self.buffers);
        parameters
            .map(|(parameter, memory)| match parameter.access {
                Access::Read => View::Read(memory.bytes()),
                Access::Write => View::Write(memory.bytes_mut()),
                Access::ReadWrite => View::ReadWrite(memory.bytes_mut()),
            })
            .collect()
    }

    /// Computes it on the CPU.
    ///
    /// # Errors
    /// When the kernel refuses it, or has no implementation here.
    pub fn compute(&mut self, kernel: &Kernel) -> Result<(), String> {
        let elements = self.elements(&kernel.signature);
        let scalars = self.scalars.clone();
        let shape = Shape {
            elements: &elements,
            scalars: &scalars,
            grid: Grid::line(1),
        };
        kernel.check(&shape)?;
        let Cpu::Native(compute) = kernel.cpu else {
            return Err(format!("kernel {} is computed by its client", kernel.name));
        };
        compute(&mut Arguments {
            buffers: &mut self.views(&kernel.signature),
            scalars: &scalars,
            grid: shape.grid,
        })
    }

    /// Whether what a device wrote is what the CPU did.
    ///
    /// # Errors
    /// The buffer and the place where it is not.
    pub fn agrees(&self, kernel: &Kernel, device: &Self) -> Result<(), (String, Difference)> {
        let buffers = self.buffers.iter().zip(&device.buffers);
        for (parameter, (cpu, device)) in kernel.signature.buffers.iter().zip(buffers) {
            if parameter.access.writes() {
                let found = agree(
                    kernel.tolerance,
                    parameter.element,
                    cpu.bytes(),
                    device.bytes(),
                );
                found.map_err(|difference| (parameter.name.clone().into_owned(), difference))?;
            }
        }
        Ok(())
    }
}

/// Floats from -1 to 1, so that sums cancel; integers of any value.
fn fill(bytes: &mut [u8], element: Element, rng: &mut Rng) {
    match element {
        Element::F32 => {
            for float in bytemuck::cast_slice_mut::<u8, f32>(bytes) {
                *float = rng.f32() * 2.0 - 1.0;
            }
        }
        Element::F64 => {
            for float in bytemuck::cast_slice_mut::<u8, f64>(bytes) {
                *float = rng.f64() * 2.0 - 1.0;
            }
        }
        Element::U8 | Element::U32 | Element::I32 | Element::U64 => rng.fill(bytes),
    }
}
