//! What the main thread does for the history.

use std::sync::Arc;

use tokio::sync::watch;

use crate::config::Config;
use crate::control::Published;
use crate::outlook;
use crate::store::{self, Recorder, Retention, Store};

/// Opens the history; without one the daemon works all the same, and says so.
pub(super) fn recorder(config: &Config) -> Option<Recorder> {
    let retention = Retention {
        ten_seconds: config.daemon.history.rollup_10s,
        minute: config.daemon.history.rollup_1min,
        hour: config.daemon.history.rollup_1h,
        ..Retention::default()
    };
    let file = config.daemon.state_dir.join(store::FILE);
    match Store::open(&file, retention).and_then(Recorder::start) {
        Ok(recorder) => Some(recorder),
        Err(error) => {
            tracing::error!(%error, "no history is kept");
            None
        }
    }
}

/// Passes reports on to the history and to who looks ahead, until there are no more.
pub(super) async fn record(
    mut published: watch::Receiver<Option<Arc<Published>>>,
    recorder: Option<Recorder>,
    outlook: outlook::Desk,
) {
    let mut told = None;
    while published.changed().await.is_ok() {
        let trouble = recorder.as_ref().and_then(Recorder::last_error);
        if let Some(recorder) = recorder.as_ref().filter(|_| trouble != told) {
            match &trouble {
                Some(error) => tracing::warn!(
                    error,
                    errors = recorder.errors(),
                    lost = recorder.lost(),
                    dropped = recorder.dropped(),
                    "history is not being kept; trying on"
                ),
                None => tracing::info!("history is being kept again"),
            }
            told = trouble;
        }
        let latest = published.borrow_and_update().clone();
        if let Some(latest) = latest {
            let report = Arc::new(latest.report.clone());
            outlook.offer(Arc::clone(&report));
            if let Some(recorder) = &recorder {
                recorder.offer(report);
            }
        }
    }
    if let Some(recorder) = recorder {
        recorder.stop();
    }
}
