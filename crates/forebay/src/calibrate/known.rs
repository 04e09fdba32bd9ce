//! What was measured, as the planner takes it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use forebay_core::app::Device;
use forebay_core::io::{DeviceCapability, Direction, Measured};
use forebay_core::units::Bytes;
use forebay_host::doctor::Feature;

use super::measure::Rate;
use super::{Calibration, model, store};

/// Devices of which it is known what they can do, and why others are not.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Known {
    /// By number.
    pub(crate) devices: BTreeMap<Device, DeviceCapability>,
    /// Measurements that are not used, with what to do.
    pub(crate) unused: Vec<String>,
}

/// Reads what `forebay calibrate` kept. A file that is damaged, or a device that is another
/// one now, is named in the result and done without.
pub(crate) fn known(state_dir: &Path, root: &Path) -> Known {
    let calibrations = match store::load(state_dir) {
        Ok(calibrations) => calibrations,
        Err(error) => {
            return Known {
                devices: BTreeMap::new(),
                unused: vec![format!("no block device is planned for: {error}")],
            };
        }
    };
    let mut known = Known::default();
    for calibration in calibrations {
        let device = calibration.disk.device;
        let unused = |why: String| {
            format!(
                "block device {} ({device}) is not planned for: {why}; measure it again with \
                 `forebay calibrate`",
                calibration.disk.name
            )
        };
        if let Some(why) = calibration.disk.differs(root) {
            known.unused.push(unused(why));
        } else if let Some(capability) = capability(&calibration) {
            known.devices.insert(device, capability);
        } else {
            known.unused.push(unused(
                "its measurement says that it moves nothing".to_owned(),
            ));
        }
    }
    known
}

fn capability(calibration: &Calibration) -> Option<DeviceCapability> {
    let direction = |direction: &super::Direction| {
        Direction::new(Measured {
            bytes_per_second: fastest(direction),
            requests_per_second: direction.random.requests_per_second,
            block_bytes: direction.random.block_bytes,
            latency: micros(direction.single.p50_us),
            latency_p99: micros(direction.single.p99_us),
        })
    };
    Some(DeviceCapability {
        name: calibration.disk.name.clone(),
        read: direction(&calibration.read)?,
        write: match &calibration.write {
            Some(write) => Some(direction(write)?),
            None => None,
        },
        cost_model: model::of(calibration),
    })
}

/// On a device without seeks, small requests may move as much as large ones.
pub(super) fn fastest(direction: &super::Direction) -> u64 {
    let rates: [&Rate; 2] = [&direction.sequential, &direction.random];
    let bytes = rates.map(|rate| rate.bytes_per_second);
    bytes[0].max(bytes[1])
}

const fn micros(us: u64) -> Duration {
    Duration::from_micros(us)
}

/// Devices that `doctor` names.
const DEVICES_MAX: usize = 64;

/// For `doctor`: which block devices of this host are planned for.
pub(crate) fn features(state_dir: &Path, root: &Path) -> Vec<Feature> {
    let known = known(state_dir, root);
    let here = disks(root).into_iter().map(|(name, device)| {
        let capability = known.devices.get(&device);
        Feature {
            name: format!("calibration of {name}"),
            present: capability.is_some(),
            detail: match capability {
                Some(capability) => format!(
                    "{device}: reads {}/s, {} requests/s{}",
                    Bytes(capability.read.bytes_per_second()),
                    capability.read.requests_per_second(),
                    if capability.cost_model.is_some() {
                        ""
                    } else {
                        "; too little was measured for a cost model (io_protection = \"cost\"): \
                         measure it again"
                    }
                ),
                None => format!("{device}: measure it with `forebay calibrate /dev/{name}`"),
            },
            lack_costs: "batch is not held back there for a critical app's sake",
        }
    });
    let unused = known.unused.iter().map(|why| Feature {
        name: "calibration".to_owned(),
        present: false,
        detail: why.clone(),
        lack_costs: "batch is not held back there for a critical app's sake",
    });
    here.chain(unused).collect()
}

/// The whole devices of this host that hold something.
fn disks(root: &Path) -> Vec<(String, Device)> {
    let text = |path: &Path, file: &str| {
        let text = std::fs::read_to_string(path.join(file)).ok()?;
        Some(text.trim().to_owned())
    };
    let entries = std::fs::read_dir(root.join("sys/block"));
    let mut disks: Vec<(String, Device)> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let size: u64 = text(&path, "size")?.parse().ok()?;
            let device = text(&path, "dev")?.parse().ok()?;
            let name = entry.file_name().to_str()?.replace('!', "/");
            (size > 0).then_some((name, device))
        })
        .collect();
    disks.sort();
    disks.truncate(DEVICES_MAX);
    disks
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A directory as /, with one disk in its /sys, and a state directory with a measurement.
    fn measured(identity: &str, bandwidth: u64) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("sys/dev/block/8:0");
        std::fs::create_dir_all(disk.join("queue")).unwrap();
        for (file, text) in [
            ("dev", "8:0\n"),
            ("size", "2097152\n"),
            ("wwid", identity),
            ("queue/logical_block_size", "512\n"),
        ] {
            std::fs::write(disk.join(file), text).unwrap();
        }
        let rate = json!({
            "block_bytes": 4096, "depth": 16, "requests": 10, "bytes_per_second": bandwidth,
            "requests_per_second": 768, "p50_us": 11, "p99_us": 22, "max_us": 33,
        });
        let direction = json!({ "sequential": rate, "random": rate, "single": rate });
        let contents = json!({
            "version": 1,
            "devices": [{
                "disk": {
                    "device": "8:0", "name": "sda", "size": 1_u64 << 30, "identity": "a",
                    "logical_block": 512,
                },
                "measured_unix_ms": 1, "read": direction, "write": null,
            }],
        });
        let file = root.path().join("calibration.json");
        std::fs::write(file, contents.to_string()).unwrap();
        root
    }

    #[test]
    fn what_was_measured_is_known() {
        let root = measured("a", 1 << 20);
        let known = known(root.path(), root.path());
        assert_eq!(known.unused, Vec::<String>::new());
        let device = &known.devices.values().next().unwrap();
        assert_eq!(device.read.bytes_per_second(), 1 << 20);
        assert_eq!(device.read.requests_per_second(), 768);
        assert_eq!(device.read.latency_worst(), Duration::from_micros(22));
        assert_eq!(device.write, None);
    }

    #[test]
    fn devices_that_are_not_measured_are_named_with_the_command() {
        let root = measured("a", 1 << 20);
        for (name, device, size) in [("sda", "8:0", 9), ("sdb", "8:16", 9), ("loop0", "7:0", 0)] {
            let dir = root.path().join("sys/block").join(name);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("dev"), device).unwrap();
            std::fs::write(dir.join("size"), format!("{size}\n")).unwrap();
        }
        let features = features(root.path(), root.path());
        let seen: Vec<(&str, bool)> = features
            .iter()
            .map(|feature| (feature.name.as_str(), feature.present))
            .collect();
        assert_eq!(
            seen,
            [("calibration of sda", true), ("calibration of sdb", false)]
        );
        // Its small requests in order were not measured.
        assert!(features[0].detail.contains("cost model"), "{features:?}");
        assert!(features[1].detail.contains("forebay calibrate /dev/sdb"));
    }

    #[test]
    fn what_cannot_be_used_is_named_with_what_to_do() {
        let check = |root: &Path, words: &[&str]| {
            let known = known(root, root);
            assert!(known.devices.is_empty());
            assert_eq!(known.unused.len(), 1, "{:?}", known.unused);
            for word in words {
                assert!(known.unused[0].contains(word), "{:?}", known.unused);
            }
        };
        let other = measured("b", 1 << 20);
        check(other.path(), &["sda (8:0)", "forebay calibrate"]);
        let still = measured("a", 0);
        check(still.path(), &["moves nothing", "forebay calibrate"]);
        let gone = measured("a", 1 << 20);
        std::fs::remove_dir_all(gone.path().join("sys")).unwrap();
        check(gone.path(), &["not here now", "forebay calibrate"]);
        let damaged = measured("a", 1 << 20);
        std::fs::write(damaged.path().join("calibration.json"), "scribbles").unwrap();
        check(damaged.path(), &["calibration.json", "move it away"]);
    }
}
