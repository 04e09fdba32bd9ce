//! Starting the program of an app in its slice, from nothing or from an image of itself.

use std::path::{Path, PathBuf};

use forebay_core::app::{App, AppId};
use forebay_core::snapshot::Ending;

use crate::apply::Refusal;
use crate::checkpoint::{self, Image, Restoring};
use crate::freeze;
use crate::groups;
use crate::host::{Group, LinuxHost};
use crate::ledger::{Process, Record};
use crate::procs;
use crate::supervise::{self, Main, Program};

impl LinuxHost {
    pub(crate) fn start(&mut self, app: &App, program: &Program) -> Result<(), Refusal> {
        let running = self
            .entries
            .get(&app.id)
            .and_then(|entry| entry.main.as_ref());
        if let Some(main) = running {
            if procs::is_alive(&self.options.roots.proc, main.process) {
                // Whoever asks again did not hear that it was done.
                return Ok(());
            }
            return Err(Refusal::Failed(format!(
                "start {}: that process {} ended is not settled yet; it is tried again",
                app.id, main.process.pid
            )));
        }
        let image = self.image_of(app, program)?;
        if app.images.is_some()
            && image.is_none()
            && let Err(error) = checkpoint::raise_numbers(&self.options.roots.proc)
        {
            let reason = error.explain();
            tracing::info!(app = %app.id, reason, "it keeps a low number, and cannot be kept over a boot");
        }
        self.launch(&app.id, program, image)?;
        let entry = self.entries.get(&app.id);
        let process = entry
            .filter(|entry| entry.restoring.is_none())
            .and_then(|entry| Some(entry.main.as_ref()?.process));
        if let Some(process) = process.filter(|_| app.images.is_some()) {
            self.note_running(&app.id, process, &program.begun(), None);
        }
        Ok(())
    }

    /// Starts a program in its app's group, or what begins it from an image, whether another one runs
    /// or not.
    pub(crate) fn launch(
        &mut self,
        app: &AppId,
        program: &Program,
        image: Option<(Program, Image)>,
    ) -> Result<(), Refusal> {
        let begun = image.as_ref().map_or(program, |(restore, _)| restore);
        self.ensure_group(app)?;
        let dirs = self.own_dirs(app);
        let dirs: Vec<&Path> = dirs.iter().flatten().map(PathBuf::as_path).collect();
        let refused = self.entries.get_mut(app);
        let refused = refused.is_some_and(|entry| std::mem::take(&mut entry.refused_frozen));
        if refused && dirs.iter().all(|dir| groups::members(dir).is_empty()) {
            // Nobody is left in it, and whoever fenced it does not come to let it go: one that did
            // would have by now.
            freeze::thaw_all(&dirs)?;
        }
        if freeze::is_frozen(&dirs) {
            if let Some(entry) = self.entries.get_mut(app) {
                entry.refused_frozen = true;
            }
            // Between its fork and its exec it would stand, and hold up the daemon.
            return Err(Refusal::Failed(format!(
                "start {app}: its slice is frozen; thaw it first"
            )));
        }
        self.ledger.append(Record::Starting {
            app: app.clone(),
            at: procs::ticks_since_boot(),
            command: begun.arguments.clone(),
        })?;
        let Some(entry) = self.entries.get_mut(app) else {
            return Err(Refusal::Failed(format!("start {app}: unknown app")));
        };
        let dirs = entry
            .group
            .as_ref()
            .map(Group::all_dirs)
            .unwrap_or_default();
        let pid = match supervise::start(app, begun, &dirs) {
            Ok(pid) => pid,
            Err(error) => {
                self.note_ending(app, Ending::Unknown);
                return Err(Refusal::Failed(format!("{app}: {}", error.explain())));
            }
        };
        // A program may be gone at once: its start time is still there until it is reaped.
        let start_time =
            procs::read_stat(&self.options.roots.proc, pid).map_or(0, |stat| stat.start_time);
        let process = Process { pid, start_time };
        entry.main = Main::open(process);
        entry.ended = None;
        entry.kept.clear();
        entry.command.clone_from(&program.arguments);
        entry.trial = None;
        entry.restoring = image.map(|(_, image)| Restoring::new(image));
        if entry.restoring.is_some() {
            // What is written of it is what it was begun with, until it is known which it is.
            return Ok(());
        }
        let started = Record::Started {
            app: app.clone(),
            process,
            command: program.arguments.clone(),
        };
        // It runs, and whoever comes next finds it by its group and the moment of its start.
        if let Err(error) = self.ledger.append(started) {
            tracing::warn!(%app, pid, reason = error.explain(), "known by its start only");
        }
        Ok(())
    }
}
