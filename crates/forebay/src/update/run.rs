//! Carries an update out: one deed after the other, each from what is on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Binding, Class, Policy};
use forebay_core::report::{AppReport, EventKind, TickReport};
use forebay_core::snapshot::RunState;
use forebay_core::update::{
    Deed, Ending, Fact, Hold, Life, Looked, Outcome, Stage, Step, Turn, judge, suffers,
};
use rustix::process::{Pid, Signal, kill_process};

use super::errand::{self, Standing};
use super::journal::Entry;
use super::{PREFIX, Shared, locked, measure, outdated, receipt, restore, unix_ms};
use crate::control::{Command, Deed as AppDeed, Published};

/// Between two looks at the command.
pub(super) const LOOK: Duration = Duration::from_millis(200);
/// How long clients are watched before the load, under it, and after the update.
pub(super) const WINDOW: Duration = Duration::from_secs(2);
/// How long a command has to begin.
pub(super) const START_MAX: Duration = Duration::from_secs(60);
/// How long a shadow has to be in step.
const SYNC_MAX: Duration = Duration::from_secs(30);
/// How long an app of an update has to be gone.
const GONE_MAX: Duration = Duration::from_secs(10);
/// Before a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
pub(super) const PROC: &str = "/proc";
/// Runs of commands are counted from 1: this one is the load.
pub(super) const LOAD_RUN: u32 = 0;

/// The one who carries updates out.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) shared: Arc<Shared>,
}

impl Runner {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// For as long as there is a daemon.
    pub(super) async fn run(self) {
        loop {
            match self.shared.book.current() {
                Some(entry) => {
                    if let Err(why) = self.advance(entry).await {
                        self.wait_out(why).await;
                    }
                    *locked(&self.shared.stuck) = None;
                }
                None => self.shared.wake.notified().await,
            }
        }
    }

    /// Says why it cannot go on, and waits until it is to be tried again.
    async fn wait_out(&self, why: String) {
        let before = locked(&self.shared.stuck).replace(why.clone());
        if before.as_ref() != Some(&why) {
            tracing::error!(why, "the update cannot go on, and tries again");
        }
        tokio::time::sleep(RETRY).await;
    }

    /// One deed, and the record of it.
    async fn advance(&self, mut entry: Entry) -> Result<(), String> {
        let Some(deed) = entry.record.deed() else {
            return self.keep(&entry).await;
        };
        let called_off =
            entry.record.can_be_called_off() && self.shared.wishes.abort.load(Ordering::Relaxed);
        let fact = match called_off {
            true => Fact::Aborted,
            false => self.carry_out(deed, &mut entry).await?,
        };
        let before = entry.record.stage;
        let told = entry.record.troubles.len();
        entry.record = entry.record.after(fact);
        let after = entry.record.stage;
        self.keep(&entry).await?;
        let mut said = format!(
            "update {}: {} after {}",
            entry.record.number,
            receipt::stage(after),
            receipt::stage(before)
        );
        for trouble in entry.record.troubles.iter().skip(told) {
            said += &format!("; {trouble}");
        }
        match after {
            Stage::Over(Outcome::Alarmed) => tracing::error!(said, "somebody has to look"),
            _ => tracing::info!(said, "the update goes on"),
        }
        self.tell(said);
        Ok(())
    }

    pub(super) fn tell(&self, said: String) {
        let told = Command::Tell(EventKind::Update, said);
        if self.shared.commands.try_send(told).is_err() {
            tracing::warn!("an event was not told");
        }
    }

    /// Makes an update durable, however long that takes: nothing goes on before.
    pub(super) async fn keep(&self, entry: &Entry) -> Result<(), String> {
        let over = matches!(entry.record.stage, Stage::Over(_));
        loop {
            let kept = self.shared.book.amend(|content| {
                if over {
                    let restarted = restarted(entry);
                    let place = &self.shared.place;
                    let output = place.output(entry.record.number, entry.record.runs);
                    let unconfigured = outdated::unconfigured(Path::new(outdated::DPKG_STATUS));
                    let left = receipt::Left {
                        output: &output,
                        unconfigured: &unconfigured,
                        unbooted: outdated::unbooted(entry.record.began_unix_ms),
                    };
                    let receipt = receipt::receipt(entry, unix_ms(), &restarted, &left);
                    content.current = None;
                    let outcome = receipt.outcome.clone();
                    *content.outcomes.entry(outcome).or_default() += 1;
                    content.held_ms = content.held_ms.saturating_add(receipt.held_ms);
                    content.history.push(receipt);
                    let many = content
                        .history
                        .len()
                        .saturating_sub(super::journal::HISTORY_MAX);
                    content.history.drain(..many);
                } else {
                    content.current = Some(entry.clone());
                }
            });
            match kept {
                Ok(()) => {
                    *locked(&self.shared.stuck) = None;
                    return Ok(());
                }
                Err(why) => self.wait_out(why).await,
            }
        }
    }

    async fn carry_out(&self, deed: Deed, entry: &mut Entry) -> Result<Fact, String> {
        match deed {
            Deed::Lock => Ok(lock()),
            Deed::Prove => self.prove(entry).await,
            Deed::Sync => self.sync(entry).await,
            Deed::Leave => self.leave(entry).await,
            Deed::Tell => self.prepare_apps(entry).await,
            Deed::Return => self.come_back(entry).await,
            Deed::Begin => {
                entry.counted = measure::counted(&self.shared.fronts).await;
                Ok(Fact::Done)
            }
            Deed::Update => {
                let command = entry.record.order.command.clone();
                let fact = self.command(entry, &command).await?;
                if entry.record.order.reboot && !entry.record.order.keep {
                    entry.record.departs_from = Some(self.shared.place.boot.clone());
                }
                Ok(fact)
            }
            Deed::Undo => {
                let command = entry.record.order.rollback.clone().unwrap_or_default();
                self.command(entry, &command).await
            }
            Deed::Rehearse => self.rehearse(entry).await,
            Deed::AwaitBoot => Ok(self.await_boot(entry).await),
            Deed::Depart if entry.record.order.soft => self.depart_softly(entry).await,
            Deed::Depart => self.depart(entry).await,
            Deed::Revive if entry.record.order.soft => self.survived(entry).await,
            Deed::Revive => self.revive(entry).await,
            Deed::Restore => {
                let mut troubles = self.resume_apps(entry).await?;
                let fact = self.restore(entry).await?;
                if let Fact::Restored(more) = &fact {
                    troubles.extend(more.iter().cloned());
                }
                Ok(Fact::Restored(troubles))
            }
            Deed::Verify => self.verify(entry).await,
            Deed::Close => {
                for why in self.resume_apps(entry).await? {
                    entry.record.trouble(why);
                }
                self.close(entry).await
            }
        }
    }

    /// The latest report; waits for the first.
    pub(super) async fn report(&self) -> Result<Arc<Published>, String> {
        let mut reports = self.shared.reports.clone();
        let found = reports.wait_for(Option::is_some).await;
        let found = found.map_err(|_| "the daemon is stopping".to_owned())?;
        found.clone().ok_or_else(|| "there is no report".to_owned())
    }

    /// The report of the next period.
    pub(super) async fn next_report(&self) -> Result<Arc<Published>, String> {
        let mut reports = self.shared.reports.clone();
        reports.mark_unchanged();
        let changed = reports.changed().await;
        changed.map_err(|_| "the daemon is stopping".to_owned())?;
        self.report().await
    }

    /// Adds an app of the update to those that are planned for.
    pub(super) async fn add(&self, app: App) -> Result<(), String> {
        locked(&self.shared.kept.0).insert(app.id.clone(), app.clone());
        let edit = Box::new(move |policy: &mut Policy| {
            policy.apps.entry(app.id.clone()).or_insert(app);
            Ok(())
        });
        self.shared.ask(|reply| Command::Edit(edit, reply)).await?
    }

    /// Takes it away; what it still runs goes on outside.
    async fn remove(&self, id: &AppId) -> Result<(), String> {
        locked(&self.shared.kept.0).remove(id);
        let gone = id.clone();
        let edit = Box::new(move |policy: &mut Policy| {
            policy.apps.remove(&gone);
            Ok(())
        });
        self.shared
            .ask(|reply| Command::Edit(edit, reply))
            .await??;
        let deadline = Instant::now() + GONE_MAX;
        while self.next_report().await?.report.apps.contains_key(id) {
            if Instant::now() >= deadline {
                return Err(format!("take away the slice of {id}: it is still there"));
            }
        }
        Ok(())
    }

    pub(super) async fn act(&self, id: &AppId, deed: AppDeed) -> Result<(), String> {
        self.shared
            .ask(|reply| Command::Do(id.clone(), deed, reply))
            .await?
    }

    /// Ends what an app of the update runs, and takes the app away.
    pub(super) async fn end(&self, id: &AppId) -> Result<(), String> {
        let is_known = self.report().await?.report.apps.contains_key(id);
        if is_known && let Err(why) = self.act(id, AppDeed::End).await {
            tracing::info!(%id, why, "nothing of it is ended");
        }
        self.remove(id).await
    }

    async fn sync(&self, entry: &Entry) -> Result<Fact, String> {
        let deadline = Instant::now() + SYNC_MAX;
        loop {
            let behind = restore::behind(&self.shared.fronts, &entry.record.order.restart);
            let Some(why) = behind else {
                let tried = match self.try_images(entry).await {
                    Ok(()) => self.try_spare(entry).await,
                    refused => refused,
                };
                return Ok(tried.map_or_else(Fact::Refused, |()| Fact::Done));
            };
            if Instant::now() >= deadline {
                return Ok(Fact::Refused(why));
            }
            if self.shared.wishes.abort.load(Ordering::Relaxed) {
                return Ok(Fact::Aborted);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Runs a command of the update to its end, once, and finds what runs outdated code since.
    async fn command(&self, entry: &mut Entry, command: &[String]) -> Result<Fact, String> {
        let step = entry.record.step();
        let place = &self.shared.place;
        let app = place.app(&step, &entry.record.order, command);
        let app = app.ok_or("the command has no name")?;
        let id = app.id.clone();
        let file = place.errand(step.update, step.run);
        if !matches!(errand::look(&file), Ok(Standing::Ended(_))) {
            self.add(app).await?;
        }
        let wish = &self.shared.wishes.abort;
        let ending = self.attend(entry, (&id, wish), &file, &step).await?;
        let policy = self.shared.policy().await?;
        self.take_away(&id, &ending).await?;
        let report = self.report().await?;
        let old = old(&policy, &report.report, &entry.record.order.restart);
        Ok(Fact::Ran(ending, old))
    }

    /// Takes the app of a command away that ended so.
    pub(super) async fn take_away(&self, id: &AppId, ending: &Ending) -> Result<(), String> {
        match ending {
            Ending::Status(_) | Ending::Signal(_) | Ending::NotStarted(_) => self.remove(id).await,
            // Nothing of it may go on beside what undoes it.
            Ending::TimedOut | Ending::Stopped | Ending::Lost => self.end(id).await,
        }
    }

    /// Waits for the end of a command, which stands still while a critical app suffers, and is asked to end where that is
    /// wished.
    pub(super) async fn attend(
        &self,
        entry: &mut Entry,
        (id, wish): (&AppId, &AtomicBool),
        file: &Path,
        step: &Step,
    ) -> Result<Ending, String> {
        let began = Instant::now();
        let mut hold = Hold::default();
        // A daemon before this one may have left it frozen.
        if let Err(why) = self.act(id, AppDeed::Thaw).await {
            tracing::debug!(%id, why, "nothing to thaw");
        }
        let mut is_told = false;
        let ending = loop {
            let standing = errand::look(file)
                .map_err(|error| format!("look at {}: {error}", file.display()))?;
            match standing {
                Standing::Ended(ending) => break ending,
                Standing::Runs(pid) => {
                    // Asked for before it began, or while no package manager was at work: ended amid its
                    // work that one would leave packages half configured.
                    let is_safe = || outdated::package_lock().is_none();
                    if !is_told && wish.load(Ordering::Relaxed) && is_safe() {
                        is_told = true;
                        ask_to_end(pid)?;
                    }
                    self.hold(&mut hold, began.elapsed(), id).await?;
                }
                Standing::Unknown => {
                    // On a host that is full its process may be there long before it gets to run.
                    if began.elapsed() >= START_MAX && !self.runs(id).await? {
                        break errand::forbid(file, step)
                            .map_err(|error| format!("write {}: {error}", file.display()))?;
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        };
        if hold.is_frozen() {
            hold.step(began.elapsed(), false, true);
            self.act(id, AppDeed::Thaw).await?;
        }
        *locked(&self.shared.held) = None;
        let (times, stood) = hold.stood();
        entry.held_times += times;
        entry.held_ms += u64::try_from(stood.as_millis()).unwrap_or(u64::MAX);
        Ok(ending)
    }

    /// The process that an app runs as.
    pub(super) async fn process(&self, app: &AppId) -> Result<Option<u32>, String> {
        let published = self.report().await?;
        let seen = published.report.apps.get(app);
        Ok(seen.and_then(|app| app.main_pid))
    }

    async fn runs(&self, id: &AppId) -> Result<bool, String> {
        let published = self.report().await?;
        let seen = published.report.apps.get(id);
        Ok(seen.is_some_and(|app| app.state == RunState::Running))
    }

    async fn hold(&self, hold: &mut Hold, now: Duration, id: &AppId) -> Result<(), String> {
        let policy = self.shared.policy().await?;
        let report = self.report().await?;
        let why = suffering(&policy, &report.report);
        let is_safe = outdated::package_lock().is_none();
        match hold.step(now, why.is_some(), is_safe) {
            Some(Turn::Freeze) => {
                self.act(id, AppDeed::Freeze).await?;
                let why = why.unwrap_or_default();
                self.tell(format!("the update stands still: {why}"));
                *locked(&self.shared.held) = Some(why);
            }
            Some(Turn::Thaw) => {
                self.act(id, AppDeed::Thaw).await?;
                *locked(&self.shared.held) = None;
                self.tell("the update goes on".to_owned());
            }
            None => {}
        }
        Ok(())
    }

    async fn await_boot(&self, entry: &Entry) -> Fact {
        loop {
            if entry.record.began_anew(&self.shared.place.boot) {
                return Fact::Booted(Ok(()));
            }
            if self.shared.wishes.resume.load(Ordering::Relaxed) {
                return Fact::Done;
            }
            self.shared.wake.notified().await;
        }
    }

    async fn verify(&self, entry: &mut Entry) -> Result<Fact, String> {
        let deadline = Instant::now() + entry.record.order.well_within;
        let judged = loop {
            let counted = measure::counted_over(&self.shared.fronts, WINDOW).await;
            let report = self.report().await?;
            let policy = self.shared.policy().await?;
            let now = measure::look(&self.shared.fronts, &report.report).await;
            let mut sick = Vec::new();
            for (id, was) in &entry.was {
                let Some(app) = policy.apps.get(id).filter(|_| self.is_here(entry, id)) else {
                    continue;
                };
                let front = measure::front_of(&self.shared.fronts, id);
                let front = front.as_ref();
                let past = front.and_then(|front| entry.before.get(front));
                let past = was.looked(past.copied().unwrap_or_default());
                let counted = front.and_then(|front| counted.get(front));
                let counted = counted.cloned().unwrap_or_default();
                let now = now.get(id).copied().unwrap_or_default();
                let now = Looked {
                    asked: counted.requests,
                    unanswered: counted.failed.saturating_add(counted.unknown),
                    ..now.looked(measure::pace(&counted.answers))
                };
                if let Err(why) = judge(&past, &now, app.response_time_max) {
                    sick.push(format!("{id}: {why}"));
                }
            }
            if sick.is_empty() {
                break Ok(());
            }
            if Instant::now() >= deadline {
                break Err(sick.join("; "));
            }
        };
        let counted = measure::counted(&self.shared.fronts).await;
        entry.during = receipt::since(entry, &counted);
        Ok(Fact::Judged(judged))
    }

    /// Whether an app is to be well here: on another host it is that one's.
    fn is_here(&self, entry: &Entry, app: &AppId) -> bool {
        let fleet = self.shared.fleet.as_ref();
        let is_away = |fleet: &super::Fleet| !fleet.moves.moves.ours().contains(app);
        !(entry.record.away.contains(app) && fleet.is_some_and(is_away))
    }

    async fn close(&self, entry: &Entry) -> Result<Fact, String> {
        let policy = self.shared.policy().await?;
        let own = policy
            .apps
            .keys()
            .filter(|id| id.as_str().starts_with(PREFIX));
        for id in own {
            self.remove(id).await?;
        }
        let apart = self.shared.kept.apart();
        let edit = Box::new(move |policy: &mut Policy| {
            apart.release(policy);
            Ok(())
        });
        self.shared
            .ask(|reply| Command::Edit(edit, reply))
            .await??;
        let number = entry.record.number;
        for run in 0..=entry.record.runs {
            forget(&self.shared.place.errand(number, run))?;
        }
        forget(&self.shared.place.dir().join(format!("{number}.load")))?;
        forget(&self.shared.place.output(number, LOAD_RUN))?;
        for file in self.shared.place.of_rehearsal(number) {
            forget(&file)?;
        }
        Ok(Fact::Done)
    }
}

/// A package manager at work would be a second update.
fn lock() -> Fact {
    match outdated::package_lock() {
        Some(lock) => Fact::Refused(format!(
            "a package manager is at work (it holds {lock}): wait for its end"
        )),
        None => Fact::Done,
    }
}

/// Which critical app suffers, and why.
fn suffering(policy: &Policy, report: &TickReport) -> Option<String> {
    let mut critical = policy
        .apps
        .values()
        .filter(|app| app.class == Class::Critical);
    critical.find_map(|app| {
        let seen = report.apps.get(&app.id)?;
        let bound = app
            .response_time_max
            .unwrap_or(policy.offload.response_time);
        let why = suffers(&seen.usage, &seen.io, bound)?;
        Some(format!("{}: {why}", app.id))
    })
}

/// Programs that run code that was replaced, and those that are to be restarted anyway.
pub(super) fn old(
    policy: &Policy,
    report: &TickReport,
    restart: &BTreeSet<AppId>,
) -> BTreeMap<AppId, Life> {
    let proc = Path::new(PROC);
    let programs = policy.apps.values().filter_map(|app| {
        let own = !app.id.as_str().starts_with(PREFIX);
        let is_ours = matches!(app.binding, Binding::Exec(_)) && own;
        let pid = report.apps.get(&app.id).filter(|_| is_ours)?.main_pid?;
        let wanted = restart.contains(&app.id) || outdated::replaced(proc, pid).is_some();
        let life = outdated::life(proc, pid).filter(|_| wanted)?;
        Some((app.id.clone(), life))
    });
    programs.collect()
}

/// Apps that others start and that run code that was replaced, each with a file of it.
pub(super) fn outside(policy: &Policy) -> BTreeMap<AppId, String> {
    let apps = policy.apps.values();
    let theirs = apps.filter(|app| !matches!(app.binding, Binding::Exec(_)));
    let theirs: Vec<_> = theirs.map(|app| (&app.id, &app.binding)).collect();
    match theirs.is_empty() {
        true => BTreeMap::new(),
        false => outdated::outside(Path::new(PROC), &theirs),
    }
}

/// Old programs that are no more.
fn restarted(entry: &Entry) -> BTreeSet<AppId> {
    let proc = Path::new(PROC);
    let old = entry.record.old.iter();
    old.filter(|(_, life)| outdated::life(proc, life.pid) != Some(**life))
        .map(|(app, _)| app.clone())
        .collect()
}

fn ask_to_end(pid: u32) -> Result<(), String> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or("the command has no process")?;
    kill_process(pid, Signal::TERM).map_err(|error| format!("ask the command to end: {error}"))
}

pub(super) fn forget(file: &Path) -> Result<(), String> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", file.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether an app runs as another life than this.
pub(super) fn is_new(app: Option<&AppReport>, old: &Life) -> bool {
    app.is_some_and(|app| {
        app.state == RunState::Running
            && app
                .main_pid
                .and_then(|pid| outdated::life(Path::new(PROC), pid))
                .is_some_and(|life| life != *old)
    })
}
