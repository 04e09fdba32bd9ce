//! What the host does to begin a program from its image.
//!
//! CRIU is started where the program would be, in the app's groups, and is the app's main process
//! until it ends; then that is the process that it began. Until then the ledger says that the app is
//! being started, with CRIU's command: a daemon that comes in between ends what it finds, and
//! begins again.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId};
use forebay_core::snapshot::Ending;

use super::criu::{RESTORE_LOG, last_error, restore_max};
use super::store::boot;
use super::{Comparing, Criu, Image, Store, TRIAL, is_restore};
use crate::LinuxHost;
use crate::apply::Refusal;
use crate::error::HostError;
use crate::files::read_text;
use crate::groups;
use crate::ledger::{Process, Record};
use crate::procs;
use crate::supervise::{Begun, Main, Program};

/// How long what is left of a program may take to go, and how often it is looked for: the control
/// thread waits.
const EMPTY_BOUND: Duration = Duration::from_millis(200);
const EMPTY_LOOK: Duration = Duration::from_millis(2);
/// For how long a start is on its way while a process that ended has the number that is needed.
const NUMBER_BOUND: Duration = Duration::from_secs(30);

/// A program that CRIU begins.
#[derive(Debug)]
pub(crate) struct Restoring {
    pub(crate) image: Image,
    /// It has to be there by then.
    pub(crate) until: Instant,
}

impl Restoring {
    pub(crate) fn new(image: Image) -> Self {
        let until = Instant::now() + restore_max(&image);
        Self { image, until }
    }
}

impl LinuxHost {
    fn images(&self) -> Store {
        Store::new(&self.options.state_dir)
    }

    /// What begins a program from its last image, where images of it are taken and one is there
    /// that it may begin from.
    ///
    /// # Errors
    /// While that is compared with its checksums, or a process that ended has the number that it needs.
    pub(crate) fn image_of(
        &mut self,
        app: &App,
        program: &Program,
    ) -> Result<Option<(Program, Image)>, Refusal> {
        if app.images.is_none() {
            return Ok(None);
        }
        let found = match self.usable_image(&app.id, program) {
            Ok(Some(image)) => {
                self.await_number(&app.id, image.pid)?;
                self.compared(&app.id, image)?
            }
            other => other,
        };
        let restore = found.and_then(|image| match image {
            Some(image) => self.restore_of(&app.id, &image).map(Some),
            None => Ok(None),
        });
        Ok(restore.unwrap_or_else(|error| {
            // It begins with nothing, which is better than not at all.
            self.give_up_image(&app.id, &error);
            None
        }))
    }

    fn usable_image(&self, app: &AppId, program: &Program) -> Result<Option<Image>, HostError> {
        let image = self
            .images()
            .usable(app, &program.begun(), &self.options.roots.proc)?;
        if image.is_some() {
            // It needs its numbers and its sockets: what is left of it goes first.
            self.empty(app)?;
        }
        Ok(image)
    }

    /// An image that is as it was written: one of another boot is compared first, beside this thread.
    ///
    /// # Errors
    /// While it is compared, and when nothing can.
    fn compared(
        &mut self,
        app: &AppId,
        image: Image,
    ) -> Result<Result<Option<Image>, HostError>, Refusal> {
        if image.boot == boot(&self.options.roots.proc)? {
            return Ok(Ok(Some(image)));
        }
        let store = self.images();
        let entry = self.entries.entry(app.clone()).or_default();
        let under_way = entry.comparing.take().filter(|one| one.is_of(&image));
        match under_way {
            Some(comparing) if comparing.is_over() => {
                tracing::info!(%app, image = image.number, "its image was compared");
                Ok(comparing.result().map(|()| Some(image)))
            }
            Some(comparing) => {
                entry.comparing = Some(comparing);
                Err(Refusal::Pending)
            }
            None => {
                entry.comparing = Some(Comparing::start(&store, app, &image)?);
                tracing::info!(%app, image = image.number, "its image is compared with its checksums");
                Err(Refusal::Pending)
            }
        }
    }

    fn restore_of(&self, app: &AppId, image: &Image) -> Result<(Program, Image), HostError> {
        let store = self.images();
        let restore = Criu::restore(self.options.criu.as_deref(), &store, app, image)?;
        let image = store.claim(app, image, &self.options.roots.proc)?;
        store.forget_process(app)?;
        Ok((Program::tool(restore), image))
    }

    /// Ends what is left in an app's group, and waits for a moment until it is gone.
    fn empty(&self, app: &AppId) -> Result<(), HostError> {
        let dirs = self.own_dirs(app);
        let dirs: Vec<&Path> = dirs.iter().flatten().map(PathBuf::as_path).collect();
        let is_empty = || dirs.iter().all(|dir| groups::members(dir).is_empty());
        if is_empty() {
            return Ok(());
        }
        groups::kill(&dirs)?;
        let deadline = Instant::now() + EMPTY_BOUND;
        while !is_empty() {
            if Instant::now() >= deadline {
                return Err(HostError::invalid(
                    format!("begin {app} from its image: what is left of it does not end"),
                    "it begins with nothing; look for processes in state D",
                ));
            }
            std::thread::sleep(EMPTY_LOOK);
        }
        Ok(())
    }

    /// Whether the number that an image needs is free: a process that ended has it until its parent takes note of
    /// that, which the init of a container may do after seconds. Until then the start is on its way, for a while.
    /// A number that somebody else has is CRIU's to name.
    ///
    /// # Errors
    /// While it is on its way.
    fn await_number(&mut self, app: &AppId, pid: u32) -> Result<(), Refusal> {
        let stat = procs::read_stat(&self.options.roots.proc, pid);
        let is_held = stat.is_some_and(|stat| matches!(stat.state, 'Z' | 'X'));
        let Some(entry) = self.entries.get_mut(app) else {
            return Ok(());
        };
        if !is_held {
            entry.number_awaited = None;
            return Ok(());
        }
        if entry.number_awaited.is_none() {
            tracing::info!(%app, pid, "it begins from its image once its old process has no number any more");
        }
        let since = *entry.number_awaited.get_or_insert_with(Instant::now);
        match since.elapsed() < NUMBER_BOUND {
            true => Err(Refusal::Pending),
            false => Ok(()),
        }
    }

    /// CRIU ended: what it began is the app's main process.
    pub(crate) fn settle_restore(&mut self, app: &AppId, image: &Image, ending: Ending) {
        let begun = if ending.is_success() {
            self.take_up(app, image)
        } else {
            let log = self.images().directory(app, image.number).join(RESTORE_LOG);
            let said = last_error(&log);
            Err(HostError::invalid(
                format!("begin {app} from its image {}: {said}", image.number),
                "it begins with nothing; the next image is taken as usual",
            ))
        };
        let Err(error) = begun else {
            tracing::info!(%app, image = image.number, "it goes on from its image");
            return;
        };
        self.discard(app, image.number, &error.explain());
        if let Some(entry) = self.entries.get_mut(app) {
            entry.ended = Some(Ending::Unknown);
        }
        self.note_ending(app, Ending::Unknown);
    }

    fn take_up(&mut self, app: &AppId, image: &Image) -> Result<(), HostError> {
        let file = self.images().pid_file(app);
        let text = read_text(&file)?;
        let gone = || {
            HostError::missing(
                format!("find the process {} of {app}", text.trim()),
                "it ended at once; it begins with nothing",
            )
        };
        let pid = text.trim().parse().map_err(|_| gone())?;
        let stat = procs::read_stat(&self.options.roots.proc, pid).ok_or_else(gone)?;
        let process = Process {
            pid,
            start_time: stat.start_time,
        };
        let main = Main::open(process).ok_or_else(gone)?;
        let Some(entry) = self.entries.get_mut(app) else {
            return Ok(());
        };
        entry.main = Some(main);
        entry.trial = Some((image.number, Instant::now() + TRIAL));
        let started = Record::Started {
            app: app.clone(),
            process,
            command: entry.command.clone(),
        };
        self.note_running(app, process, &image.begun, Some(image));
        // It runs, and whoever comes next finds it by its group and the moment of its start.
        if let Err(error) = self.ledger.append(started) {
            tracing::warn!(%app, pid, reason = error.explain(), "known by its start only");
        }
        if let Err(error) = self.images().note_restored(app, image) {
            tracing::warn!(%app, reason = error.explain(), "its restore is not told");
        }
        Ok(())
    }

    /// A program ended: if it was begun from an image a moment ago, that one is not used again.
    pub(crate) fn judge_trial(&mut self, app: &AppId, ending: Ending) {
        let entry = self.entries.get_mut(app);
        let Some((number, until)) = entry.and_then(|entry| entry.trial.take()) else {
            return;
        };
        if Instant::now() < until {
            let seconds = TRIAL.as_secs();
            let why = format!(
                "begin {app} from its image {number}: it ended within {seconds} s ({ending}); it \
                 begins with nothing, and the next image is taken as usual"
            );
            self.discard(app, number, &why);
        }
    }

    /// Notes what a program was begun with, for images of it.
    pub(crate) fn note_running(
        &self,
        app: &AppId,
        process: Process,
        begun: &Begun,
        from: Option<&Image>,
    ) {
        if let Err(error) = self.images().note_running(app, process, begun, from) {
            tracing::warn!(%app, reason = error.explain(), "no images of it are taken");
        }
    }

    /// The process of an app that was being begun from an image when the daemon before this one ended,
    /// if it was begun to its end, with what it was begun with.
    pub(crate) fn restored_meanwhile(
        &self,
        app: &AppId,
        restore: &[String],
        members: &[u32],
    ) -> Option<(Process, Image)> {
        let proc_root = &self.options.roots.proc;
        let is_at_work = members.iter().any(|pid| {
            let line = std::fs::read_to_string(proc_root.join(format!("{pid}/cmdline")));
            let words: Vec<String> = line
                .unwrap_or_default()
                .split('\0')
                .map(str::to_owned)
                .collect();
            is_restore(&words) || words.get(1..).is_some_and(is_restore)
        });
        if is_at_work {
            return None;
        }
        let store = self.images();
        let text = read_text(&store.pid_file(app)).ok()?;
        let pid = text
            .trim()
            .parse()
            .ok()
            .filter(|pid| members.contains(pid))?;
        let process = procs::identify(proc_root, pid)?;
        let image = store.named(app, restore)?;
        Some((process, image))
    }

    fn discard(&self, app: &AppId, number: u64, why: &str) {
        if let Err(error) = self.images().discard(app, number, why) {
            tracing::warn!(%app, why, reason = error.explain(), "an image stays");
        }
    }

    /// Ends what CRIU is at when it takes too long; its end is noticed as any other.
    pub(crate) fn bound_restore(&self, app: &AppId, restoring: &Restoring) {
        if Instant::now() < restoring.until {
            return;
        }
        let dirs = self.own_dirs(app);
        let dirs: Vec<&Path> = dirs.iter().flatten().map(PathBuf::as_path).collect();
        if let Err(error) = groups::kill(&dirs) {
            tracing::warn!(%app, reason = error.explain(), "a restore that takes too long goes on");
        }
    }

    fn give_up_image(&self, app: &AppId, error: &HostError) {
        if let Err(other) = self.images().give_up(app, &error.explain()) {
            let (why, reason) = (error.explain(), other.explain());
            tracing::warn!(%app, why, reason, "an image that was given up stays");
        }
    }
}
