//! Built-in kernels on the CPU and on devices: transfer, compute, and what the CPU takes for the same.
//!
//! Each size of each kernel is computed by the implementation on the CPU, by the library that is known
//! for it alone, and by every device, in turn. A device that is a CPU (PoCL) shows what the way
//! to a device costs, and nothing of what a GPU is worth.
//!
//! Devices are opened in a process of its own, whose caches are in a folder that is removed.

use std::process::{Command, ExitCode};

use forebay_accel::backends;
use forebay_accel::device::{DeviceInfo, DeviceKind};
use forebay_accel::kernels::built_in;
use forebay_accel::measure::{Plan, Row, measure};

use super::{Args, Target, conclude};
use crate::demo::Error;
use crate::demo::print as output;

/// Elements of the largest input, some of them; the last is for GPUs alone, which have the memory and
/// need the work.
const SCALES: [u32; 3] = [1 << 12, 1 << 16, 1 << 20];
const SCALE_GPU: u32 = 1 << 24;
/// The implementation on the CPU over the library alone, at the largest size of every run.
const LIBRARY_MAX: f64 = 1.5;

/// Measures; exit status 1 when a target is missed or a device is wrong.
///
/// # Errors
/// When no device is what was asked for, or the result is not written.
pub(super) fn run(args: &Args) -> Result<ExitCode, Error> {
    match &args.inner {
        Some(_) => inside(args),
        None => outside(),
    }
}

/// Runs this again in a process of its own.
fn outside() -> Result<ExitCode, Error> {
    let folder = std::env::temp_dir().join(format!("forebay-bench-accel-{}", std::process::id()));
    std::fs::create_dir(&folder).map_err(Error::system(
        "make",
        folder.display(),
        "check that TMPDIR can be written to",
    ))?;
    let status = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .arg("--inner")
        .arg(&folder)
        .env("POCL_CACHE_DIR", &folder)
        .env("XDG_CACHE_HOME", &folder)
        .status()
        .map_err(Error::system(
            "start",
            "the process that drives devices",
            "check memory and process limits",
        ));
    std::fs::remove_dir_all(&folder).map_err(Error::system(
        "remove",
        folder.display(),
        "remove it by hand",
    ))?;
    let status = status?;
    match status.code() {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        None => {
            output::line(format_args!("a driver ended the process: {status}"));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn inside(args: &Args) -> Result<ExitCode, Error> {
    let found = backends::find();
    for (backend, reason) in &found.absent {
        output::line(format_args!("no {backend} device: {reason}"));
    }
    let wanted: Vec<&DeviceInfo> = found
        .devices
        .iter()
        .filter(|info| is_wanted(info, &args.device))
        .collect();
    if wanted.is_empty() && args.device != "all" {
        let there = names(&found.devices);
        return Err(Error::part(
            format!("look for the device `{}`", args.device),
            format!("there are: {there}"),
        ));
    }
    let mut devices = Vec::new();
    for info in &wanted {
        output::line(format_args!(
            "{}: {}, {}, driver {}, {} MiB",
            info.id,
            info.platform,
            info.name,
            info.driver,
            info.memory_bytes >> 20
        ));
        let device = backends::open(&info.id);
        devices.push(device.map_err(|why| Error::part("open a device", why))?);
    }
    let mut scales = SCALES.to_vec();
    if !wanted.is_empty() && wanted.iter().all(|info| info.kind != DeviceKind::Cpu) {
        scales.push(SCALE_GPU);
    }
    let plan = Plan {
        scales,
        repetitions: args.repetitions,
        seed: args.seed,
    };
    output::line(format_args!(
        "{:<10}{:>9}{:>11}{:>9}  {:<12}{:>10}{:>11}{:>10}{:>9}",
        "kernel",
        "elements",
        "cpu us",
        "/library",
        "device",
        "in us",
        "compute us",
        "out us",
        "cpu/dev"
    ));
    let rows = measure(&built_in(), &mut devices, &plan, print)
        .map_err(|why| Error::part("compute on the CPU", why))?;
    let targets = targets(&rows);
    let result = serde_json::json!({ "devices": wanted, "absent": found.absent, "rows": rows });
    conclude(args, &targets, result)
}

fn is_wanted(info: &DeviceInfo, wanted: &str) -> bool {
    let kind = match info.kind {
        DeviceKind::Cpu => "cpu",
        DeviceKind::Gpu => "gpu",
        DeviceKind::Accelerator => "accelerator",
    };
    wanted == "all" || wanted == kind || wanted == info.id
}

fn names(devices: &[DeviceInfo]) -> String {
    if devices.is_empty() {
        return "none".to_owned();
    }
    let names: Vec<_> = devices
        .iter()
        .map(|info| format!("{} ({})", info.id, info.name))
        .collect();
    names.join(", ")
}

fn print(row: &Row) {
    let ratio = row
        .library_us
        .map_or_else(|| "-".to_owned(), |us| format!("{:.2}", row.cpu_us / us));
    let start = format!(
        "{:<10}{:>9}{:>11.1}{ratio:>9}",
        row.kernel, row.scale, row.cpu_us
    );
    if row.devices.is_empty() {
        output::line(format_args!("{start}"));
    }
    for device in &row.devices {
        match (&device.measured, &device.error) {
            (Some(m), _) => output::line(format_args!(
                "{start}  {:<12}{:>10.1}{:>11.1}{:>10.1}{:>9.2}",
                device.id,
                m.transfer_in_us,
                m.compute_us,
                m.transfer_out_us,
                row.cpu_us / m.total_us
            )),
            (None, Some(error)) => {
                output::line(format_args!("{start}  {:<12}{error}", device.id));
            }
            (None, None) => output::line(format_args!("{start}  {:<12}no source", device.id)),
        }
    }
}

/// The implementation on the CPU stands beside the library at the largest size; no device may be wrong.
fn targets(rows: &[Row]) -> Vec<Target> {
    let largest = rows.iter().map(|row| row.scale).max().unwrap_or_default();
    let ratios = rows.iter().filter(|row| row.scale == largest);
    let worst = ratios
        .filter_map(|row| Some(row.cpu_us / row.library_us?))
        .fold(0.0, f64::max);
    let wrong = rows
        .iter()
        .flat_map(|row| &row.devices)
        .filter(|device| device.error.is_some())
        .count();
    #[expect(clippy::cast_precision_loss, reason = "a few at most")]
    let wrong = wrong as f64;
    vec![
        Target::at_most(
            "cpu over library, the worst kernel",
            worst,
            LIBRARY_MAX,
            "x",
        ),
        Target::at_most(
            "kernels that fail or are wrong on a device",
            wrong,
            0.0,
            "kernels",
        ),
    ]
}
