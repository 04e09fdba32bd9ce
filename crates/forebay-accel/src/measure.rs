//! How long built-in kernels take, on the CPU and on devices.
//!
//! Devices are opened in this process: it is one that measures, and may die of a driver.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::device::{BuildError, Device, Timing};
use crate::kernel::Kernel;
use crate::kernels::library;
use crate::kernels::sample::{Sample, Sizes};
use crate::task::{Grid, Launch, Shape};

/// What is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Elements of the largest input, some of them.
    pub scales: Vec<u32>,
    pub repetitions: u32,
    pub seed: u64,
}

/// One kernel with one size.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub kernel: String,
    pub scale: u32,
    /// Of all buffers.
    pub bytes: usize,
    /// Median of the implementation on the CPU, in microseconds.
    pub cpu_us: f64,
    pub library: Option<&'static str>,
    /// Median of the library alone.
    pub library_us: Option<f64>,
    pub devices: Vec<OnDevice>,
}

/// It on one device.
#[derive(Debug, Clone, Serialize)]
pub struct OnDevice {
    pub id: String,
    /// None if the device has no source for it.
    pub measured: Option<Measured>,
    /// Why there is no figure, or a wrong result.
    pub error: Option<String>,
}

/// Medians, in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measured {
    /// Once, from source; caches of the driver are not cleared.
    pub build_us: f64,
    pub transfer_in_us: f64,
    pub compute_us: f64,
    pub transfer_out_us: f64,
    /// Of the whole call.
    pub total_us: f64,
}

/// Measures kernels on the CPU and on devices, each size after the other. CPU, library and devices take
/// turns, so that a slow spell of the machine falls on all.
///
/// # Errors
/// When a kernel fails on the CPU: nothing can be held against it then.
pub fn measure(
    kernels: &[Kernel],
    devices: &mut [Box<dyn Device>],
    plan: &Plan,
    mut done: impl FnMut(&Row),
) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for kernel in kernels {
        let built: Vec<_> = devices
            .iter_mut()
            .map(|device| build(device.as_mut(), kernel))
            .collect();
        for scale in &plan.scales {
            let Some(sample) = Sample::of(kernel, *scale, Sizes::Round, plan.seed) else {
                continue;
            };
            let row = one(kernel, devices, &built, *scale, sample, plan.repetitions)?;
            done(&row);
            rows.push(row);
        }
    }
    Ok(rows)
}

/// How long it took; none without a source.
fn build(device: &mut dyn Device, kernel: &Kernel) -> Result<Option<Duration>, String> {
    let start = Instant::now();
    match device.build(kernel) {
        Ok(()) => Ok(Some(start.elapsed())),
        Err(BuildError::NoSource(_)) => Ok(None),
        Err(error) => Err(format!("build {}: {error}", kernel.name)),
    }
}

fn one(
    kernel: &Kernel,
    devices: &mut [Box<dyn Device>],
    built: &[Result<Option<Duration>, String>],
    scale: u32,
    mut sample: Sample,
    repetitions: u32,
) -> Result<Row, String> {
    let launches = launches(kernel, &sample)?;
    let mut copies: Vec<Sample> = devices.iter().map(|_| sample.clone()).collect();
    let (mut cpu, mut alone) = (Vec::new(), Vec::new());
    let mut runs: Vec<Result<Vec<(Timing, Duration)>, String>> = built
        .iter()
        .map(|built| built.clone().map(|_| Vec::new()))
        .collect();
    // The first turn fills caches, and is not counted.
    for turn in 0..=repetitions {
        let start = Instant::now();
        sample.compute(kernel)?;
        let computed = start.elapsed();
        let start = Instant::now();
        let by_library = library::compute(&kernel.name, &sample).map(black_box);
        let by_library = by_library.map(|_| start.elapsed());
        if turn > 0 {
            cpu.push(computed);
            alone.extend(by_library);
        }
        let each = devices
            .iter_mut()
            .zip(&mut copies)
            .zip(built.iter().zip(&mut runs));
        for ((device, copy), (built, runs)) in each {
            let (Ok(Some(_)), Ok(timings)) = (built, &mut *runs) else {
                continue;
            };
            let scalars = copy.scalars.clone();
            let start = Instant::now();
            let timing = device.run(
                kernel,
                &mut copy.views(&kernel.signature),
                &[],
                &scalars,
                &launches,
            );
            let total = start.elapsed();
            match timing {
                Ok(timing) if turn > 0 => timings.push((timing, total)),
                Ok(_) => {
                    if let Err((buffer, difference)) = sample.agrees(kernel, copy) {
                        *runs = Err(format!("wrong result in {buffer}: {difference}"));
                    }
                }
                Err(error) => *runs = Err(error.to_string()),
            }
        }
    }
    let on_devices = devices.iter().zip(built.iter().zip(runs));
    Ok(Row {
        kernel: kernel.name.clone().into_owned(),
        scale,
        bytes: sample
            .buffers
            .iter()
            .map(|memory| memory.bytes().len())
            .sum(),
        cpu_us: median(cpu),
        library: library::name(&kernel.name),
        library_us: (!alone.is_empty()).then(|| median(alone)),
        devices: on_devices
            .map(|(device, (built, runs))| on_device(&device.info().id, built, runs))
            .collect(),
    })
}

fn launches(kernel: &Kernel, sample: &Sample) -> Result<Vec<Launch>, String> {
    let elements = sample.elements(&kernel.signature);
    let shape = Shape {
        elements: &elements,
        scalars: &sample.scalars,
        grid: Grid::line(1),
    };
    kernel.check(&shape)?;
    Ok(kernel.launches(&shape))
}

fn on_device(
    id: &str,
    built: &Result<Option<Duration>, String>,
    runs: Result<Vec<(Timing, Duration)>, String>,
) -> OnDevice {
    let mut on_device = OnDevice {
        id: id.to_owned(),
        measured: None,
        error: None,
    };
    match (built, runs) {
        (_, Err(error)) => on_device.error = Some(error),
        (Ok(Some(build)), Ok(runs)) if !runs.is_empty() => {
            let of =
                |part: fn(&(Timing, Duration)) -> Duration| median(runs.iter().map(part).collect());
            on_device.measured = Some(Measured {
                build_us: micros(*build),
                transfer_in_us: of(|(timing, _)| timing.transfer_in),
                compute_us: of(|(timing, _)| timing.compute),
                transfer_out_us: of(|(timing, _)| timing.transfer_out),
                total_us: of(|(_, total)| *total),
            });
        }
        _ => {}
    }
    on_device
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn median(mut durations: Vec<Duration>) -> f64 {
    durations.sort_unstable();
    durations
        .get(durations.len() / 2)
        .copied()
        .map_or(f64::NAN, micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Backend, DeviceError, DeviceInfo};
    use crate::kernels::built_in;
    use crate::task::{Scalar, View};

    /// Computes as the CPU does, but for what it is told to spoil.
    struct Echo {
        info: DeviceInfo,
        spoils: &'static str,
    }

    impl Device for Echo {
        fn info(&self) -> &DeviceInfo {
            &self.info
        }

        fn build(&mut self, kernel: &Kernel) -> Result<(), BuildError> {
            match kernel.name.as_ref() {
                "sort" => Err(BuildError::NoSource(Backend::Opencl)),
                "fft" => Err(BuildError::Compile("x".to_owned())),
                _ => Ok(()),
            }
        }

        fn run(
            &mut self,
            kernel: &Kernel,
            buffers: &mut [View<'_>],
            _: &[Option<crate::device::Constant>],
            scalars: &[Scalar],
            _: &[Launch],
        ) -> Result<Timing, DeviceError> {
            let crate::kernel::Cpu::Native(compute) = kernel.cpu else {
                panic!("{}", kernel.name);
            };
            compute(&mut crate::kernel::Arguments {
                buffers,
                scalars,
                grid: Grid::line(1),
            })
            .map_err(DeviceError::Failed)?;
            if kernel.name == self.spoils {
                buffers.last_mut().unwrap().bytes_mut().unwrap()[3] ^= 0x40;
            }
            Ok(Timing {
                compute: Duration::from_micros(7),
                ..Timing::default()
            })
        }

        fn forget(&mut self, _: &[crate::device::Constant]) {}
    }

    #[test]
    fn rows_have_figures_or_say_why_there_are_none() {
        let info = DeviceInfo::of_a_test("opencl:0:0");
        let mut devices: Vec<Box<dyn Device>> = vec![Box::new(Echo {
            info,
            spoils: "scan",
        })];
        let plan = Plan {
            scales: vec![100, 5000],
            repetitions: 2,
            seed: 1,
        };
        let mut seen = 0;
        let rows = measure(&built_in(), &mut devices, &plan, |_| seen += 1).unwrap();
        assert_eq!((rows.len(), seen), (2 * built_in().len(), rows.len()));
        for row in &rows {
            assert!(row.cpu_us > 0.0 && row.bytes > 0, "{row:?}");
            assert_eq!(row.library.is_some(), row.library_us.is_some(), "{row:?}");
            let OnDevice {
                measured, error, ..
            } = &row.devices[0];
            match row.kernel.as_str() {
                "sort" => assert!(measured.is_none() && error.is_none(), "{row:?}"),
                "fft" => assert!(error.as_ref().unwrap().contains("compile"), "{row:?}"),
                "scan" => assert!(error.as_ref().unwrap().contains("wrong"), "{row:?}"),
                _ => assert_eq!(measured.unwrap().compute_us, 7.0, "{row:?}"),
            }
        }
    }
}
