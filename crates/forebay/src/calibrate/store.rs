//! What was measured, on disk: one file, replaced as a whole.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use forebay_host::regular;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{Calibration, Error};

/// The file in the state directory.
const FILE: &str = "calibration.json";
/// The file that says who measures.
const LOCK: &str = "calibration.lock";
/// Devices kept; the oldest measurement makes room.
const DEVICES_MAX: usize = 256;
/// Longest file that is read, in bytes.
const LENGTH_MAX: u64 = 1 << 20;
/// The format that is written.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    devices: Vec<Calibration>,
}

/// The right to measure and to keep the result. Two measurements at a time would spoil each
/// other.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    // The kernel drops the lock with the descriptor.
    _lock: File,
}

impl Store {
    /// Takes the right, and makes sure that a result can be kept before anything is measured.
    ///
    /// # Errors
    /// When another process measures, or the directory cannot be used.
    pub(super) fn take(state_dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(state_dir).map_err(|e| refused("make", state_dir, e))?;
        let path = state_dir.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| refused("open", &path, e))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| {
            if e == rustix::io::Errno::WOULDBLOCK {
                Error::invalid(
                    format!("lock {}: another calibration runs", path.display()),
                    "wait until it has ended",
                )
            } else {
                refused("lock", &path, e)
            }
        })?;
        load(state_dir)?;
        Ok(Self {
            dir: state_dir.to_path_buf(),
            _lock: lock,
        })
    }

    /// Keeps a result in place of an earlier one of the same device. Durable on return; a
    /// crash leaves the old file or the new one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn keep(&self, calibration: &Calibration) -> Result<(), Error> {
        let mut devices = load(&self.dir)?;
        devices.retain(|kept| kept.disk.device != calibration.disk.device);
        devices.push(calibration.clone());
        let excess = devices.len().saturating_sub(DEVICES_MAX);
        devices.drain(..excess);
        let contents = Contents {
            version: VERSION,
            devices,
        };
        let path = self.dir.join(FILE);
        let text =
            serde_json::to_string_pretty(&contents).map_err(|e| refused("write", &path, e))?;
        regular::replace(&path, text.as_bytes(), 0o644)
            .map_err(|e| refused(e.attempt, &e.file, e.source))
    }
}

/// What was kept; nothing where nothing was.
///
/// # Errors
/// When the file cannot be read or is not ours.
pub(super) fn load(state_dir: &Path) -> Result<Vec<Calibration>, Error> {
    let path = state_dir.join(FILE);
    let bytes = match regular::read(&path, LENGTH_MAX) {
        Ok((bytes, _)) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(refused("read", &path, error)),
    };
    let damaged = |why: String| {
        Error::invalid(
            format!("read {}: {why}", path.display()),
            "move it away and calibrate again",
        )
    };
    let contents: Contents = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if contents.version != VERSION {
        return Err(damaged(format!(
            "its version is {}, known is {VERSION}",
            contents.version
        )));
    }
    Ok(contents.devices)
}

fn refused(verb: &str, path: &Path, source: impl Into<std::io::Error>) -> Error {
    Error::System {
        attempt: format!("{verb} {}", path.display()),
        advice: "run as root, or choose a --state-dir with room that you can write".to_owned(),
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn calibration(device: &str, bandwidth: u64) -> Calibration {
        let rate = json!({
            "block_bytes": 4096, "depth": 1, "requests": 10, "bytes_per_second": bandwidth,
            "requests_per_second": 5, "p50_us": 1, "p99_us": 2, "max_us": 3,
        });
        serde_json::from_value(json!({
            "disk": {
                "device": device, "name": "sda", "size": 1 << 30, "identity": null,
                "logical_block": 512,
            },
            "measured_unix_ms": 1,
            "read": { "sequential": rate, "random": rate, "single": rate },
            "write": null,
        }))
        .unwrap()
    }

    #[test]
    fn the_latest_result_of_each_device_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), []);
        let store = Store::take(dir.path()).unwrap();
        for (device, bandwidth) in [("8:0", 1), ("8:16", 2), ("8:0", 3)] {
            store.keep(&calibration(device, bandwidth)).unwrap();
        }
        let expected = [calibration("8:16", 2), calibration("8:0", 3)];
        assert_eq!(load(dir.path()).unwrap(), expected);
    }

    #[test]
    fn devices_beyond_the_bound_push_out_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::take(dir.path()).unwrap();
        for minor in 0..=DEVICES_MAX {
            store.keep(&calibration(&format!("8:{minor}"), 1)).unwrap();
        }
        let kept = load(dir.path()).unwrap();
        assert_eq!(kept.len(), DEVICES_MAX);
        assert_eq!(kept[0], calibration("8:1", 1));
    }

    #[test]
    fn what_is_not_ours_is_said_and_left() {
        let dir = tempfile::tempdir().unwrap();
        let check = |text: &str| {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = Store::take(dir.path()).unwrap_err().to_string();
            assert!(error.contains("move it away"), "{error}");
            assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), text);
        };
        check("");
        check("my notes");
        check(r#"{"version":2,"devices":[]}"#);
        check(r#"{"version":1,"devices":[],"more":1}"#);
    }

    #[test]
    fn one_measures_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::take(dir.path()).unwrap();
        let error = Store::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another calibration runs"), "{error}");
        drop(first);
        Store::take(dir.path()).unwrap();
    }
}
