//! The daemon before the host's services: it begins the apps that were kept over the boot, and nothing else.
//!
//! Whoever waits for one of them waits for the boot as well, and most of that is services which they do not need. The
//! daemon of `forebay-early.service` leaves all as it is when that of `forebay.service` begins, which takes over what
//! runs. Where there is nothing to begin it ends at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::report::TickReport;
use forebay_host::checkpoint::Origin;
use tokio::sync::watch;

use crate::config::Config;
use crate::control::Published;
use crate::{images, update};

/// For so long apps are waited for that are being begun; systemd waits longer (`TimeoutStartSec` of the unit).
const BEGUN_MAX: Duration = Duration::from_secs(240);

/// What the early daemon works by; nothing where it is not needed, or where others decide what may run here.
///
/// # Errors
/// When the journal of updates cannot be read.
pub(super) fn only_kept(mut config: Config) -> Result<Option<Config>, String> {
    let kept = update::arriving(&config.daemon.state_dir)?;
    if kept.is_empty() {
        tracing::info!("no app is kept over this boot: nothing is to be begun early");
        return Ok(None);
    }
    if config.fleet.is_some() {
        tracing::info!(
            "whose apps run here is known once the coordinator answers: none is begun early"
        );
        return Ok(None);
    }
    tracing::info!(apps = ?kept, "these are begun early");
    config.policy.apps.retain(|app, _| kept.contains(app));
    config.fronts = BTreeMap::new();
    config.tiers = BTreeMap::new();
    config.sources = Default::default();
    config.known_future = Default::default();
    config.dashboard = None;
    config.training.on = false;
    config.daemon.http = None;
    config.daemon.otlp = None;
    Ok(Some(config))
}

/// Waits until all apps have begun, for a while. Whoever runs this tells systemd then: what is ordered after the unit
/// begins, and with it the daemon that takes over.
pub(super) async fn begin(
    config: &Config,
    images: &images::Desk,
    published: &mut watch::Receiver<Option<Arc<Published>>>,
) {
    let has_begun = |report: &TickReport| {
        config.policy.apps.keys().all(|app| {
            let seen = report.apps.get(app);
            let pid = seen.and_then(|app| app.main_pid);
            pid.is_some_and(|pid| images.origin(app, pid) != Origin::Unknown)
        })
    };
    let all = published.wait_for(|latest| {
        let latest = latest.as_ref();
        latest.is_some_and(|latest| has_begun(&latest.report))
    });
    match tokio::time::timeout(BEGUN_MAX, all).await {
        Ok(Ok(_)) => tracing::info!("all have begun, and the next daemon takes over"),
        Ok(Err(_)) | Err(_) => {
            tracing::warn!("an app has not begun, and the next daemon sees to it");
        }
    }
}
