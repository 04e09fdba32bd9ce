//! Built-in kernels with samples, run through a worker: for those who measure or show it.

use std::time::{Duration, Instant};

use crate::client::{Client, Error, Memory};
use crate::kernel::Kernel;
use crate::kernels::built_in;
use crate::kernels::sample::{Sample, Sizes};
use crate::wire::{Run, There, Wish};

/// Runs of which the median is told.
const RUNS: usize = 5;
/// How often it is looked whether a device has built a kernel.
const LOOK: Duration = Duration::from_millis(5);

/// A kernel with memory that holds a sample, and what has to come of it.
#[derive(Debug)]
pub struct Trial {
    kernel: Kernel,
    sample: Sample,
    wanted: Sample,
    memories: Vec<Memory>,
}

/// How long a task takes, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compared {
    pub cpu_us: f64,
    pub device_us: f64,
}

impl Trial {
    /// A sample of so many elements, computed here once.
    ///
    /// # Errors
    /// When there is no such kernel or size, or no memory for it.
    pub fn new(client: &Client, kernel: &str, size: u32) -> Result<Self, String> {
        let found = built_in().into_iter().find(|one| one.name == kernel);
        let kernel = found.ok_or_else(|| format!("there is no kernel {kernel}"))?;
        let sample = Sample::of(&kernel, size, Sizes::Round, 1);
        let sample =
            sample.ok_or_else(|| format!("{} has no sample of size {size}", kernel.name))?;
        let mut wanted = sample.clone();
        wanted.compute(&kernel)?;
        let mut memories = Vec::new();
        for buffer in &sample.buffers {
            let memory = client.memory(buffer.bytes().len());
            memories.push(memory.map_err(|error| error.to_string())?);
        }
        Ok(Self {
            kernel,
            sample,
            wanted,
            memories,
        })
    }

    /// Fills the memory anew and runs once.
    ///
    /// # Errors
    /// When there is no result.
    pub fn run(&mut self, client: &Client, wish: Wish) -> Result<Run, Error> {
        for (buffer, memory) in self.sample.buffers.iter().zip(&mut self.memories) {
            memory.slice_mut::<u8>()?.copy_from_slice(buffer.bytes());
        }
        let mut task = client.task(&self.kernel.name).place(wish);
        let parameters = &self.kernel.signature.buffers;
        for (memory, parameter) in self.memories.iter_mut().zip(parameters) {
            task = if parameter.access.writes() {
                task.output(memory)
            } else {
                task.input(memory)
            };
        }
        for scalar in &self.sample.scalars {
            task = task.scalar(*scalar);
        }
        task.submit()?.wait()
    }

    /// Compares what the memory holds with what the implementation on the CPU gave here.
    ///
    /// # Errors
    /// How it differs.
    pub fn check(&self) -> Result<(), String> {
        let mut there = self.sample.clone();
        for (buffer, memory) in there.buffers.iter_mut().zip(&self.memories) {
            let bytes = memory.slice::<u8>().map_err(|error| error.to_string())?;
            buffer.bytes_mut().copy_from_slice(bytes);
        }
        let agrees = self.wanted.agrees(&self.kernel, &there);
        agrees.map_err(|(buffer, why)| format!("{}, {buffer}: {why}", self.kernel.name))
    }

    /// How long it takes on the CPU and on a device, which builds it within `bound` or is none for it.
    ///
    /// # Errors
    /// When a run has no result.
    pub fn compare(
        &mut self,
        client: &Client,
        device: &str,
        bound: Duration,
    ) -> Result<Option<Compared>, Error> {
        // The first one has devices build it, and what is chosen freely begins what is learnt.
        self.run(client, Wish::Best)?;
        let end = Instant::now() + bound;
        while !self.is_built(client, device)? {
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(LOOK);
        }
        let (mut cpu, mut there) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            cpu.push(self.run(client, Wish::Cpu)?.took_us);
            let run = self.run(client, Wish::Device(device.to_owned()))?;
            if run.place != device {
                return Ok(None);
            }
            there.push(run.took_us);
        }
        Ok(Some(Compared {
            cpu_us: median(cpu),
            device_us: median(there),
        }))
    }

    fn is_built(&self, client: &Client, device: &str) -> Result<bool, Error> {
        let devices = client.devices()?;
        let device = devices.iter().find(|one| one.info.id == device);
        let kernels = device.into_iter().flat_map(|one| &one.kernels);
        let mut own = kernels.filter(|one| one.name == self.kernel.name);
        Ok(own.any(|one| one.state == There::Ready))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Kernels and sizes among which somebody looks for tasks that take a device some times as long as the CPU:
/// which these are depends on both, and on how the program was built.
pub const CANDIDATES: [(&str, u32); 21] = [
    ("kmeans", 1 << 16),
    ("kmeans", 1 << 18),
    ("lstm", 1 << 12),
    ("lstm", 1 << 14),
    ("histogram", 1 << 16),
    ("histogram", 1 << 20),
    ("scan", 1 << 14),
    ("scan", 1 << 16),
    ("scan", 1 << 18),
    ("crc32", 1 << 18),
    ("crc32", 1 << 20),
    ("sha256", 1 << 14),
    ("sha256", 1 << 18),
    ("sha256", 1 << 20),
    ("fft", 1 << 12),
    ("fft", 1 << 14),
    ("sort", 1 << 12),
    ("sort", 1 << 14),
    ("sort", 1 << 16),
    ("matmul", 1 << 10),
    ("matmul", 1 << 12),
];
