//! The guardian, as the daemon that starts it sees it.

use std::process::{Child, Command, Stdio};

use forebay_core::app::OnStop;

use super::error::{Error, system};
use crate::config::Config;

/// The process that puts everything back when the daemon is lost.
#[derive(Debug)]
pub(super) struct Guardian {
    child: Child,
    on_stop: OnStop,
}

impl Guardian {
    pub(super) fn start(config: &Config, on_stop: OnStop) -> Result<Self, Error> {
        let word = match on_stop {
            OnStop::Keep => "keep",
            OnStop::Kill => "kill",
        };
        let child = Command::new("/proc/self/exe")
            .args(["guardian", "--daemon", &std::process::id().to_string()])
            .arg("--state-dir")
            .arg(&config.daemon.state_dir)
            .arg("--socket")
            .arg(&config.daemon.socket)
            .args(["--lease-ms", &config.daemon.lease.as_millis().to_string()])
            .args(["--on-stop", word])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(system(
                "start the guardian",
                "check memory and process limits",
            ))?;
        Ok(Self { child, on_stop })
    }

    /// Starts another when it was lost.
    pub(super) fn keep(&mut self, config: &Config) {
        match self.child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                tracing::warn!(%status, "the guardian ended; starting another");
                match Self::start(config, self.on_stop) {
                    Ok(another) => *self = another,
                    Err(error) => tracing::error!(%error, "no guardian watches"),
                }
            }
            Err(error) => tracing::error!(%error, "cannot ask after the guardian"),
        }
    }

    /// Lets another one take over, that does something else to the apps.
    pub(super) fn relieve(&mut self, config: &Config, on_stop: OnStop) {
        if self.on_stop == on_stop {
            return;
        }
        match Self::start(config, on_stop) {
            Ok(another) => std::mem::replace(self, another).end(),
            Err(error) => tracing::error!(%error, "the guardian goes by the old on_stop"),
        }
    }

    /// Ends it: everything has been put back.
    pub(super) fn end(mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            tracing::error!(%error, "the guardian could not be ended");
        }
    }
}
