//! Until when apps may run that other hosts may take over, for whoever is there when the daemon is not.
//!
//! Problem: when the lease of a host ends at the coordinator, others start what it owned. By then nobody of it may
//! run here, also where the daemon hangs, or died and left its apps.
//!
//! Approach: the daemon writes down which apps these are, and until when they may run for certain. At that time the
//! guardian marks and freezes them, whatever the daemon does. They go on by a daemon that knows that they are this
//! host's still; whoever else would let them go on ends them ([`crate::fence::give`]).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_core::app::AppId;
use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::service_address::Addresses;
use crate::{Roots, fence, regular};

/// The file's name in the state directory.
pub const FILE: &str = "tenure.json";
/// A longer one is none of ours.
const BYTES_MAX: u64 = 1 << 20;

/// What is in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenure {
    /// The boot that the time is of.
    pub boot: String,
    /// Until when they may run, in milliseconds of `CLOCK_BOOTTIME`.
    pub until_ms: u64,
    /// The anchor of the groups of apps.
    pub anchor: PathBuf,
    /// Those that others may take over.
    pub apps: BTreeSet<AppId>,
}

/// A clock that goes on while the host is suspended.
pub(crate) fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither is negative: the kernel counts from the boot on.
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

impl Tenure {
    /// Puts it in place of what was there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, state_dir: &Path) -> Result<(), HostError> {
        let file = state_dir.join(FILE);
        let text = serde_json::to_vec(self)
            .map_err(|error| HostError::file("write", &file, std::io::Error::other(error)))?;
        regular::replace(&file, &text, 0o600)
            .map_err(|error| HostError::file("write", &file, std::io::Error::other(error)))
    }

    fn read(state_dir: &Path) -> Option<Self> {
        let file = state_dir.join(FILE);
        let (bytes, _) = match regular::read(&file, BYTES_MAX) {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "what others may take over is not known");
                return None;
            }
        };
        let read = serde_json::from_slice(&bytes);
        if let Err(error) = &read {
            tracing::warn!(file = %file.display(), %error, "what others may take over is not known");
        }
        read.ok()
    }
}

/// Freezes what others may take over, where its time is over or `is_over`; how long until that is to be looked at
/// again, if anything may run by then.
pub(crate) fn hold(roots: &Roots, state_dir: &Path, is_over: bool) -> Option<Duration> {
    let tenure = Tenure::read(state_dir)?;
    if roots.boot_id().ok().as_ref() != Some(&tenure.boot) || tenure.apps.is_empty() {
        return None;
    }
    let left = Duration::from_millis(tenure.until_ms).saturating_sub(now());
    if !left.is_zero() && !is_over {
        return Some(left);
    }
    for app in &tenure.apps {
        let stands = fence::is_given(roots, &tenure.anchor, app);
        if stands || !fence::is_populated(roots, &tenure.anchor, app) {
            continue;
        }
        match fence::hold(roots, &tenure.anchor, app) {
            Ok(()) => tracing::warn!(%app, "frozen: others may take it over"),
            Err(error) => {
                tracing::error!(%app, why = error.explain(), "not frozen, and others may take it over");
            }
        }
    }
    // Whoever takes it over answers for it from then on. They stand by now: nobody runs longer for a change that hangs.
    let addresses = Addresses::new(state_dir, roots.clone());
    for (app, error) in addresses.leave_in_time(&tenure.apps) {
        tracing::error!(%app, why = error.explain(), "its address stays, and others may take it over");
    }
    None
}
