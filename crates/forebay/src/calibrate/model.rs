//! What was measured, as the kernel takes it: io.cost.
//!
//! The command asked for it by name, so it outlives the command, and the daemon's stop; it ends by
//! `--remove-model`, by `forebay restore`, and with the boot. A daemon that is told to
//! (`io_protection = "cost"`) installs models itself and takes them back when it goes.

use std::path::Path;
use std::process::ExitCode;

use forebay_core::io::{CostModel, Costs};
use forebay_host::{Roots, cost};

use super::disk::{self, Disk};
use super::known::fastest;
use super::{Args, Calibration, Direction, Error};
use crate::output::Output;

/// A request that takes so many times the median was held up by something else.
const WORST: u64 = 2;

/// What requests cost, where enough was measured.
pub(super) fn of(calibration: &Calibration) -> Option<CostModel> {
    let read = costs(&calibration.read)?;
    let write = match &calibration.write {
        Some(write) => costs(write)?,
        // As everywhere: not measured is as fast.
        None => read,
    };
    Some(CostModel { read, write })
}

fn costs(direction: &Direction) -> Option<Costs> {
    let Direction { random, .. } = direction;
    let in_order = direction.sequential_small.as_ref()?.requests_per_second;
    let costs = Costs {
        bytes_per_second: fastest(direction),
        // A device that likes no order is not made to look worse by it.
        sequential_per_second: in_order.max(random.requests_per_second),
        random_per_second: random.requests_per_second,
        latency_us: random.p99_us.min(random.p50_us.saturating_mul(WORST)),
    };
    let useful = costs.bytes_per_second > 0 && costs.random_per_second > 0 && costs.latency_us > 0;
    useful.then_some(costs)
}

/// Whether a model can be installed at all: before the device is made busy.
pub(super) fn check(state_dir: &Path) -> Result<(), Error> {
    cost::check(state_dir, &Roots::default()).map_err(|error| Error::Model(error.explain()))
}

pub(super) fn install(calibration: &Calibration, state_dir: &Path) -> Result<[String; 2], Error> {
    let name = &calibration.disk.name;
    let model = of(calibration).ok_or_else(|| {
        Error::Model(format!(
            "install a cost model of {name}: its measurement says that it moves nothing; measure \
             it again, with more --seconds"
        ))
    })?;
    cost::install(
        state_dir,
        &Roots::default(),
        calibration.disk.device,
        &model,
    )
    .map_err(|error| Error::Model(error.explain()))
}

/// For people: what was installed, and how it ends.
pub(super) fn told(disk: &Disk, model: &str, qos: &str) -> String {
    format!(
        "io.cost.model: {model}\nio.cost.qos: {qos}\ninstalled until the next boot, `forebay \
         restore`, or `forebay calibrate /dev/{} --remove-model`\n",
        disk.name
    )
}

/// Puts back what was there before [`install`].
pub(super) fn remove(target: &Path, args: &Args, output: &mut Output) -> Result<ExitCode, Error> {
    let (disk, _) = disk::find(target, Path::new("/"))?;
    let report = cost::remove(&args.state_dir, &Roots::default(), Some(disk.device))
        .map_err(|error| Error::Model(error.explain()))?;
    if !report.is_complete() {
        return Err(Error::Model(report.failed.join("; ")));
    }
    let shown = serde_json::json!({
        "device": disk.device, "knobs": report.knobs, "foreign": report.foreign,
    });
    let text = |_: &serde_json::Value| {
        let mut text = format!(
            "put back {} file(s) of {} ({})\n",
            report.knobs, disk.name, disk.device
        );
        for foreign in &report.foreign {
            text += &format!("left alone, written by somebody else: {foreign}\n");
        }
        text
    };
    output
        .show(&shown, text)
        .map_err(|source| Error::system("print the result", source))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rate(requests: u64, bytes: u64, p50_us: u64, p99_us: u64) -> serde_json::Value {
        json!({
            "block_bytes": 4096, "depth": 16, "requests": 10, "bytes_per_second": bytes,
            "requests_per_second": requests, "p50_us": p50_us, "p99_us": p99_us, "max_us": p99_us,
        })
    }

    fn calibration(in_order: Option<serde_json::Value>, write: serde_json::Value) -> Calibration {
        let mut read = json!({
            "sequential": rate(100, 100 << 20, 1, 2),
            "random": rate(1000, 4 << 20, 900, 70_000),
            "single": rate(500, 2 << 20, 300, 400),
        });
        if let Some(in_order) = in_order {
            read["sequential_small"] = in_order;
        }
        serde_json::from_value(json!({
            "disk": {
                "device": "8:0", "name": "sda", "size": 1_u64 << 30, "identity": null,
                "logical_block": 512,
            },
            "measured_unix_ms": 1, "read": read, "write": write,
        }))
        .unwrap()
    }

    #[test]
    fn a_measurement_is_what_requests_cost() {
        let small = rate(3000, 12 << 20, 1, 2);
        let model = of(&calibration(Some(small), json!(null))).unwrap();
        let expected = Costs {
            bytes_per_second: 100 << 20,
            sequential_per_second: 3000,
            random_per_second: 1000,
            // Twice the median: the tail is somebody else's.
            latency_us: 1800,
        };
        assert_eq!(model.read, expected);
        assert_eq!(model.write, expected);
    }

    #[test]
    fn what_was_measured_too_little_or_not_at_all_is_no_model() {
        assert_eq!(of(&calibration(None, json!(null))), None);
        let nothing = rate(0, 0, 0, 0);
        let still = json!({
            "sequential": nothing, "sequential_small": nothing, "random": nothing,
            "single": nothing,
        });
        let small = rate(3000, 12 << 20, 1, 2);
        assert_eq!(of(&calibration(Some(small), still)), None);
        let slow_in_order = rate(10, 1, 1, 2);
        let model = of(&calibration(Some(slow_in_order), json!(null))).unwrap();
        assert_eq!(model.read.sequential_per_second, 1000);
    }
}
