//! The broker over its socket, with clients of this process, and devices that a test makes up.

#![expect(
    clippy::unwrap_used,
    reason = "a test, whose functions clippy does not see as such"
)]

mod choices;
mod clients;
mod fake;
mod faults;
mod kept;
mod lasting;
mod refusals;
mod strangers;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forebay_accel::broker::{self, Broker, Options};
use forebay_accel::client::Client;

/// Nothing that a test waits for takes longer, however busy the machine is.
const BOUND: Duration = Duration::from_secs(60);

/// A broker, and where it listens.
struct Stage {
    broker: Option<Broker>,
    path: PathBuf,
    options: Options,
    _directory: tempfile::TempDir,
}

impl Stage {
    fn new(change: impl FnOnce(&mut Options), devices: &[fake::Fake]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("accel.sock");
        let mut options = Options::new(path.clone());
        options.cpu_threads = 2;
        change(&mut options);
        let infos = devices.iter().map(|device| device.info.clone()).collect();
        let launcher = Arc::new(fake::Threads(devices.to_vec()));
        let kept = options.clone();
        Self {
            broker: Some(broker::start(options, infos, launcher).unwrap()),
            options: kept,
            path,
            _directory: directory,
        }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.take() {
            broker.stop();
        }
    }
}

/// Looks until something is so.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + BOUND;
    while !holds() {
        assert!(std::time::Instant::now() < end, "waited for: {what}");
        std::thread::yield_now();
    }
}
