//! An app that is another thing than it was: a container that was made anew under its name.
//!
//! What the old one held is put back if it is still there, under another name or stopped; either
//! way the ledger lets go of it, so that it does not grow with every container that comes.

use std::collections::BTreeSet;

use forebay_core::app::AppId;

use super::book::Note;
use super::link::Task;
use super::{Held, Object};
use crate::error::HostError;
use crate::host::LinuxHost;
use crate::ledger::Record;
use crate::restore::Report;

impl LinuxHost {
    /// Has managers put back what an app had before it was this.
    pub(super) fn leave_others(&mut self, app: &AppId, held: &Held) {
        let entries = self.ledger.state().owned.entries_of_others(app, &held.name);
        let Some(owned) = self.entries.get_mut(app).and_then(|e| e.owned.as_mut()) else {
            return;
        };
        if entries.is_empty() || owned.is_leaving {
            return;
        }
        match self.owners.ask(owned.kind, app, Task::Leave(entries)) {
            // When too much waits already, the next look asks again.
            Ok(asked) => owned.is_leaving = asked,
            Err(error) => tracing::warn!(%app, reason = error.explain(), "not put back"),
        }
    }

    /// Notes what became of that.
    pub(super) fn take_left(&mut self, app: &AppId, objects: BTreeSet<Object>, report: &Report) {
        if let Some(owned) = self.entries.get_mut(app).and_then(|e| e.owned.as_mut()) {
            owned.is_leaving = false;
        }
        if !report.is_complete() {
            let reason = report.failed.join("; ");
            tracing::warn!(%app, reason, "what it was before is not put back yet");
            return;
        }
        let noted = objects.into_iter().try_for_each(|object| {
            tracing::info!(%app, %object, "it is another by now; the old one is as it was, or gone");
            let app = app.clone();
            self.ledger.append(Record::Owned(Note::Left { app, object }))
        });
        let noted = noted.and_then(|()| self.forget_gone_files(app));
        if let Err(error) = noted {
            // Whoever comes later finds it in the ledger once more.
            tracing::warn!(%app, reason = error.explain(), "not recorded");
        }
    }

    /// Lets go of what was changed in the old one's group, which is there no more.
    fn forget_gone_files(&mut self, app: &AppId) -> Result<(), HostError> {
        let Some(record) = self.ledger.state().apps.get(app) else {
            return Ok(());
        };
        let files = record.originals.iter().map(|(spot, _)| &spot.file);
        let dirs = record.oom_scores.iter().map(|(dir, _)| dir);
        if files.chain(dirs).all(|path| path.exists()) {
            return Ok(());
        }
        self.ledger.amend(|state| {
            let Some(record) = state.apps.get_mut(app) else {
                return;
            };
            let originals = std::mem::take(&mut record.originals);
            let (there, gone): (Vec<_>, Vec<_>) = originals
                .into_iter()
                .partition(|(spot, _)| spot.file.exists());
            record.originals = there;
            record.oom_scores.retain(|(dir, _)| dir.exists());
            for (spot, _) in gone {
                state.wrote.remove(&spot);
            }
        })
    }
}
