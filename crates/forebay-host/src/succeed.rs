//! Replacing the program of an app by a new one, which gets what it needs of the old one by itself.
//!
//! The old one is not ended here: it may have something to end. Should the new one end first, the old
//! one is the app's program again, and no other is started.

use forebay_core::app::AppId;

use crate::apply::Refusal;
use crate::host::LinuxHost;
use crate::ledger::{Process, Record};
use crate::supervise::Program;

impl LinuxHost {
    /// Starts a program beside the one that runs, which it replaces by itself.
    pub(crate) fn succeed(&mut self, app: &AppId, program: &Program) -> Result<(), Refusal> {
        let Some(entry) = self.entries.get_mut(app) else {
            return Err(Refusal::Failed(format!("replace {app}: unknown app")));
        };
        let Some(before) = entry.main.take() else {
            return Err(Refusal::Failed(format!(
                "replace {app}: it does not run; it is started anew by itself"
            )));
        };
        let process = before.process;
        let started = self.launch(app, program, None);
        if let Some(entry) = self.entries.get_mut(app) {
            match started {
                Ok(()) => entry.before = Some(before),
                Err(_) => entry.main = Some(before),
            }
        }
        if started.is_err() {
            self.note_resumed(app, process);
        }
        started
    }

    /// Notes that a program is the app's again, because the one that was to succeed it ended.
    pub(crate) fn note_resumed(&mut self, app: &AppId, process: Process) {
        let command = self.entries.get(app).map(|entry| entry.command.clone());
        let record = Record::Started {
            app: app.clone(),
            process,
            command: command.unwrap_or_default(),
        };
        if let Err(error) = self.ledger.append(record) {
            tracing::warn!(%app, reason = error.explain(), "the ledger does not name its program");
        }
    }
}
