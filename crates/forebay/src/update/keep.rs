//! Has the host begin anew between two images: apps are written down and ended, and go on where they were.
//!
//! Who is kept says the plan, which is on disk. What is done can be repeated in the boot that the update began in:
//! an app that a daemon in between began from its image is written down again. Whatever boot comes after, this
//! daemon's supervision begins apps from their images before this thread looks at them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Binding, Policy, Restart};
use forebay_core::update::{Choice, Fact, Keeps, Life, Order, Rung, Stage};
use forebay_host::Roots;
use forebay_host::checkpoint::{Origin, TRIAL};
use forebay_host::reboot::{self, Ready, Way, boot_loader, last};
use tokio::sync::Notify;

use super::journal::{self, Content, Entry};
use super::run::{PROC, Runner, forget};
use super::{Shared, locked, outdated, plan, rehearse};
use crate::control::{Command, Deed};

/// How long a host may take to go down.
const DOWN_MAX: Duration = Duration::from_secs(600);
/// How long apps have to be back: CRIU's own bound for a large one, and what a busy boot takes.
const BACK_MAX: Duration = Duration::from_secs(300);
/// For so long one is waited for that may never begin.
const BEGUN_MAX: Duration = Duration::from_secs(60);
/// Between two starts of what could not be started yet.
const AGAIN: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(100);
/// For so long other services are waited for that end with the host: less than systemd waits for this one.
const OTHERS_MAX: Duration = Duration::from_secs(300);
/// How long a daemon that is to end waits until apps are written down.
const FAREWELL_MAX: Duration = Duration::from_secs(590);
pub(super) const RESUMED: &str = "somebody had it go on without";

fn still_up() -> String {
    let seconds = DOWN_MAX.as_secs();
    format!("it was asked to, and was still up after {seconds} s, or somebody had it go on")
}

/// What is done between the end of other services and this daemon's own, when the host goes down.
#[derive(Debug, Default)]
pub(super) struct Farewell {
    is_wanted: AtomicBool,
    /// The daemon is to end.
    told: Notify,
    /// It may.
    done: Notify,
}

impl Farewell {
    /// Has done what is to be done last, if anything; whether there was something.
    pub(super) async fn bid(&self) -> bool {
        if !self.is_wanted.load(Ordering::Relaxed) {
            return false;
        }
        self.told.notify_one();
        let done = tokio::time::timeout(FAREWELL_MAX, self.done.notified());
        if done.await.is_err() {
            tracing::error!("apps are not written down in time, and the daemon ends");
        }
        true
    }
}

/// There while a boot is to begin apps that were kept: for the condition of a unit, which reads no journal.
fn sign(state_dir: &Path) -> PathBuf {
    state_dir.join("arriving")
}

/// Those that are to go on in this boot, if it is the one after that which an update ended.
///
/// # Errors
/// When the journal cannot be read.
pub(crate) fn arriving(state_dir: &Path) -> Result<BTreeSet<AppId>, String> {
    let here = Roots::default()
        .boot_id()
        .map_err(|error| error.explain())?;
    let Some(Entry { record, .. }) = journal::read(state_dir)?.current else {
        return Ok(BTreeSet::new());
    };
    Ok(match record.stage {
        Stage::Departing if record.departs_from.is_some() && record.began_anew(&here) => {
            record.kept().cloned().collect()
        }
        _ => BTreeSet::new(),
    })
}

/// Beside what else this thread waits for.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string())
}

/// The boot that comes after the one that was to end.
fn arrived(entry: &Entry) -> Fact {
    let running = reboot::running(PROC.as_ref());
    match (&entry.record.departs_to, running) {
        (Some(meant), Ok(kernel)) if *meant != kernel => Fact::FellBack(kernel),
        (_, Err(error)) => {
            tracing::warn!(reason = error.explain(), "nobody knows which kernel runs");
            Fact::Booted(Ok(()))
        }
        _ => Fact::Booted(Ok(())),
    }
}

/// What one app took before: all that is remembered of its pauses, in milliseconds.
fn took(content: &Content, app: &AppId) -> Option<(Duration, Duration)> {
    let apps = content.history.iter().flat_map(|receipt| &receipt.apps);
    let own = apps.filter(|one| one.planned.app == app.as_str());
    let mut pauses: Vec<f64> = own.filter_map(|one| one.pause_ms).collect();
    pauses.sort_by(f64::total_cmp);
    let time = |ms: &f64| Duration::try_from_secs_f64(ms / 1000.0).ok();
    Some((time(pauses.get(pauses.len() / 2)?)?, time(pauses.last()?)?))
}

/// An app that may be kept: it is started by Forebay, and images of it are taken.
fn may_keep(app: &App) -> bool {
    matches!(app.binding, Binding::Exec(_)) && app.images.is_some()
}

impl Shared {
    /// Which apps an update keeps over the reboot, and what stands against it.
    pub(super) fn keeps(&self, policy: &Policy, order: &Order) -> BTreeMap<AppId, Keeps> {
        if !order.keep {
            return BTreeMap::new();
        }
        let published = self.reports.borrow().clone();
        let content = self.book.content();
        let keeps = |app: &App| {
            let seen = published.as_ref()?.report.apps.get(&app.id)?;
            // One that does not run has nothing to keep.
            let pid = seen.main_pid?;
            let keeps = Keeps {
                obstacles: self.images.obstacles(pid),
                took: took(&content, &app.id),
            };
            Some((app.id.clone(), keeps))
        };
        let apps = policy.apps.values().filter(|app| may_keep(app));
        apps.filter_map(keeps).collect()
    }

    /// Why nothing can be kept over a reboot here, or how the reboot would be.
    pub(super) fn keeping(&self, policy: &Policy) -> Result<String, String> {
        if !policy.apps.values().any(may_keep) {
            return Err(
                "no app has `images`: give them to those that are to go on after a reboot"
                    .to_owned(),
            );
        }
        if let Some(why) = self.images.missing() {
            return Err(why);
        }
        let way = reboot::way().map_err(|error| error.explain())?;
        Ok(match way {
            Way::Kexec(kernel) => format!(
                "apps with `images` are written down and end, kernel {} is started by kexec, and they go on where \
                 they were; connections through fronts stay where they are at rest, others are closed",
                kernel.version
            ),
            Way::Firmware(why) => format!(
                "apps with `images` are written down and end, the host reboots through its firmware ({why}), and \
                 they go on where they were; connections through fronts stay where they are at rest, others are closed"
            ),
        })
    }
}

impl Runner {
    /// Sees that images can be taken, before anything is changed.
    pub(super) async fn try_images(&self, entry: &Entry) -> Result<(), String> {
        // In the boot after a power cut they may just be about to begin.
        self.await_begun(entry).await?;
        for app in entry.record.kept() {
            let tried = self.shared.images.try_one(app).await;
            tried.map_err(|why| format!("{app} cannot be kept over a reboot: {why}"))?;
        }
        Ok(())
    }

    pub(super) async fn depart(&self, entry: &mut Entry) -> Result<Fact, String> {
        let here = &self.shared.place.boot;
        let departed = entry.record.departs_from.clone();
        if departed.as_ref().is_some_and(|boot| boot != here) {
            return Ok(arrived(entry));
        }
        if departed.is_none() {
            entry.lives = self.lives(entry).await?;
        }
        let ready = match self.prepare(entry).await? {
            Ok(ready) => ready,
            Err(why) => {
                if departed.is_some() {
                    self.start_again(entry).await?;
                }
                return Ok(Fact::Booted(Err(why)));
            }
        };
        if let Ready::Firmware(why) = &ready {
            self.tell(format!("the host reboots through its firmware: {why}"));
        }
        // A boot that ended before, as by a power cut, had not the system that this one is to end with.
        entry.record.departs_from = Some(here.clone());
        entry.record.departs_to = ready.version().map(str::to_owned);
        self.keep(entry).await?;
        if entry.record.departs_to.is_some() {
            self.keep_a_way_back().await?;
        }
        let sign = sign(&self.shared.place.state_dir);
        if let Err(error) = File::create(&sign).and_then(|file| file.sync_all()) {
            // Then they go on with the host's other services, and later.
            tracing::warn!(%error, file = %sign.display(), "apps do not go on before other services");
        }
        if departed.is_some() {
            self.await_begun(entry).await?;
        }
        match blocking(|| last::unit(PROC.as_ref())).await? {
            Ok(unit) => self.depart_last(entry, ready, unit).await,
            Err(why) => {
                self.tell(format!(
                    "apps stand while other services end, since this one cannot be the last: {why}"
                ));
                self.depart_first(entry, ready).await
            }
        }
    }

    /// Loads what the host begins anew with, where that is what was rehearsed; or why it does not begin anew.
    async fn prepare(&self, entry: &mut Entry) -> Result<Result<Ready, String>, String> {
        let looked = blocking(|| {
            let way = reboot::way()?;
            let started = match &way {
                Way::Kexec(kernel) => Some(kernel.clone()),
                // Nobody knows what its boot loader starts; usually it is the newest.
                Way::Firmware(_) => None,
            };
            Ok::<_, forebay_host::Error>((way, rehearse::next(started)))
        });
        let (way, next) = match looked.await? {
            Ok(looked) => looked,
            Err(error) => return Ok(Err(error.explain())),
        };
        let next = next.map_err(|error| error.explain());
        // Before it is loaded: what is loaded may be started by whoever reboots the host.
        match entry
            .record
            .begins_with(next.as_ref().map_err(String::as_str))
        {
            Ok(None) => {}
            Ok(Some(said)) => self.tell(said),
            Err(why) => return Ok(Err(why)),
        }
        Ok(Ok(blocking(|| reboot::prepare(way)).await?))
    }

    /// How those run that are to be kept.
    async fn lives(&self, entry: &Entry) -> Result<BTreeMap<AppId, Life>, String> {
        let mut lives = BTreeMap::new();
        for app in entry.record.kept() {
            let pid = self.process(app).await?;
            if let Some(life) = pid.and_then(|pid| outdated::life(PROC.as_ref(), pid)) {
                lives.insert(app.clone(), life);
            }
        }
        Ok(lives)
    }

    /// Whether an app never ended since the host was to begin anew.
    async fn never_ended(&self, entry: &Entry, app: &AppId) -> Result<bool, String> {
        let boot = &self.shared.place.boot;
        let is_this_boot = entry
            .record
            .departs_from
            .as_ref()
            .is_none_or(|from| from == boot);
        // Another boot counts anew.
        let Some(before) = entry.lives.get(app).filter(|_| is_this_boot) else {
            return Ok(false);
        };
        let pid = self.process(app).await?;
        let now = pid.and_then(|pid| outdated::life(PROC.as_ref(), pid));
        Ok(now.as_ref() == Some(before))
    }

    /// Has the kernel of now come next through the firmware, should the one that is meant not come up.
    async fn keep_a_way_back(&self) -> Result<(), String> {
        let prefer = || {
            let version = reboot::running(PROC.as_ref())?;
            boot_loader::prefer_once(&version)
        };
        if let Err(error) = blocking(prefer).await? {
            let why = error.explain();
            self.tell(format!(
                "should the kernel not come up, the host starts what its boot loader always does: {why}"
            ));
        }
        Ok(())
    }

    /// Apps are written down, and the host is asked to begin anew afterwards.
    async fn depart_first(&self, entry: &Entry, ready: Ready) -> Result<Fact, String> {
        if let Err(why) = self.write_down(entry).await {
            self.start_again(entry).await?;
            return Ok(Fact::Booted(Err(why)));
        }
        if self.is_to_go_on() {
            self.start_again(entry).await?;
            return Ok(Fact::Booted(Err(RESUMED.to_owned())));
        }
        if let Err(error) = blocking(move || reboot::begin(&ready)).await? {
            self.start_again(entry).await?;
            return Ok(Fact::Booted(Err(error.explain())));
        }
        self.tell("the host begins anew".to_owned());
        let deadline = Instant::now() + DOWN_MAX;
        while Instant::now() < deadline && !self.is_to_go_on() {
            tokio::time::sleep(LOOK).await;
        }
        self.start_again(entry).await?;
        Ok(Fact::Booted(Err(still_up())))
    }

    /// The host is asked to begin anew, and apps are written down once all other services have ended: those that
    /// clients wait for stand as late as can be.
    async fn depart_last(&self, entry: &Entry, ready: Ready, unit: String) -> Result<Fact, String> {
        // Nobody can stay once the host goes down.
        if let Err(why) = self.stays_possible(entry).await {
            return Ok(Fact::Booted(Err(why)));
        }
        if self.is_to_go_on() {
            return Ok(Fact::Booted(Err(RESUMED.to_owned())));
        }
        let farewell = &self.shared.farewell;
        farewell.is_wanted.store(true, Ordering::Relaxed);
        let asked = blocking(move || reboot::begin(&ready)).await?;
        if let Err(error) = asked {
            farewell.is_wanted.store(false, Ordering::Relaxed);
            return Ok(Fact::Booted(Err(error.explain())));
        }
        self.tell("the host begins anew: apps are written down last".to_owned());
        let told = tokio::time::timeout(DOWN_MAX, farewell.told.notified());
        if told.await.is_err() {
            farewell.is_wanted.store(false, Ordering::Relaxed);
            return Ok(Fact::Booted(Err(still_up())));
        }
        self.await_others(unit).await;
        if let Err(why) = self.write_down(entry).await {
            // The host ends now, and those that were not written down with it: the next boot says so.
            tracing::error!(why, "not all that were to be kept over this boot are");
        }
        farewell.done.notify_one();
        std::future::pending().await
    }

    /// Waits until systemd waits for this service alone; not for ever, since it would be ended then.
    async fn await_others(&self, unit: String) {
        let deadline = Instant::now() + OTHERS_MAX;
        while Instant::now() < deadline {
            let unit = unit.clone();
            match blocking(move || last::is_awaited(&unit)).await {
                Ok(Ok(true)) => return,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    return tracing::warn!(reason = error.explain(), "apps stand now");
                }
                Err(why) => return tracing::warn!(why, "apps stand now"),
            }
            tokio::time::sleep(LOOK).await;
        }
        tracing::warn!("other services still end, and apps stand now");
    }

    /// Sees once more that nothing stands against keeping those that run.
    async fn stays_possible(&self, entry: &Entry) -> Result<(), String> {
        for app in entry.record.kept() {
            let Some(pid) = self.process(app).await? else {
                continue;
            };
            let obstacles = self.shared.images.obstacles(pid);
            if !obstacles.is_empty() {
                let why = obstacles.join("; ");
                return Err(format!("{app} cannot be kept over a reboot: {why}"));
            }
        }
        Ok(())
    }

    pub(super) fn is_to_go_on(&self) -> bool {
        self.shared.wishes.resume.load(Ordering::Relaxed)
    }

    /// Supervision begins those again that a daemon before this one ended, from their images, or that ended with the host.
    /// Until it has, they are not seen to run: there is nothing to take an image of, and what they do afterwards would end
    /// with the host.
    async fn await_begun(&self, entry: &Entry) -> Result<(), String> {
        let deadline = Instant::now() + BEGUN_MAX;
        let is_over = || Instant::now() >= deadline || self.is_to_go_on();
        for app in entry.record.kept() {
            while self.process(app).await?.is_none() && !is_over() {
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Writes down and ends all that are kept and run, until none does: those that matter most stand last.
    async fn write_down(&self, entry: &Entry) -> Result<(), String> {
        self.hold_back(entry).await?;
        // First, since requests under way are answered by them.
        self.write_clients_down(entry).await;
        let policy = self.shared.policy().await?;
        let mut kept: Vec<&AppId> = entry.record.kept().collect();
        kept.sort_by_key(|app| policy.apps.get(*app).map(|app| Reverse(app.class)));
        for app in kept {
            if self.process(app).await?.is_none() {
                continue;
            }
            let number = entry.record.number;
            self.shared.images.keep(app, number).await?;
            self.tell(format!("{app} is written down, and ended"));
        }
        Ok(())
    }

    /// Has those that were ended begin again, each from its image, and their clients' connections go on.
    async fn start_again(&self, entry: &Entry) -> Result<(), String> {
        let begun = self.begin_again(entry).await;
        // In any case: tried again, others would be written down in their place.
        super::clients::bring_back(&self.shared).await;
        begun
    }

    async fn begin_again(&self, entry: &Entry) -> Result<(), String> {
        self.let_go().await?;
        for app in entry.record.kept() {
            if self.process(app).await?.is_some() {
                continue;
            }
            // What its image needs may not be free yet.
            let deadline = Instant::now() + BEGUN_MAX;
            while let Err(why) = self.act(app, Deed::Start).await {
                // Supervision may have been first, and says so itself where it fails.
                if self.process(app).await?.is_some() || Instant::now() >= deadline {
                    tracing::info!(%app, why, "it is not started again from here");
                    break;
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
        Ok(())
    }

    /// Has supervision leave those that are kept ended.
    async fn hold_back(&self, entry: &Entry) -> Result<(), String> {
        let policy = self.shared.policy().await?;
        let restart = |app: &AppId| match &policy.apps.get(app)?.binding {
            Binding::Exec(exec) => Some((app.clone(), exec.restart)),
            _ => None,
        };
        let before: BTreeMap<AppId, Restart> = entry.record.kept().filter_map(restart).collect();
        let never = before
            .keys()
            .map(|app| (app.clone(), Restart::Never))
            .collect();
        {
            let mut restarts = locked(&self.shared.kept.2);
            // Tried again, what is in force is no more what was configured.
            if restarts.is_empty() {
                *restarts = before;
            }
        }
        self.set_restarts(never).await
    }

    /// Has supervision do with them as it is configured again.
    async fn let_go(&self) -> Result<(), String> {
        let before = std::mem::take(&mut *locked(&self.shared.kept.2));
        self.set_restarts(before).await
    }

    async fn set_restarts(&self, restarts: BTreeMap<AppId, Restart>) -> Result<(), String> {
        let edit = Box::new(move |policy: &mut Policy| {
            for (app, restart) in restarts {
                let binding = policy.apps.get_mut(&app).map(|app| &mut app.binding);
                if let Some(Binding::Exec(exec)) = binding {
                    exec.restart = restart;
                }
            }
            Ok(())
        });
        self.shared.ask(|reply| Command::Edit(edit, reply)).await?
    }

    /// Sees that each app that was kept goes on from its image, and how long its clients waited.
    pub(super) async fn revive(&self, entry: &mut Entry) -> Result<Fact, String> {
        forget(&sign(&self.shared.place.state_dir))?;
        if entry.record.departs_from.is_some()
            && let Err(error) = blocking(boot_loader::prefer_no_more).await?
        {
            entry.record.trouble(error.explain());
        }
        let number = entry.record.number;
        let kept: Vec<AppId> = entry.record.kept().cloned().collect();
        let (mut back, mut lost) = (Vec::new(), Vec::new());
        for app in kept {
            if self.never_ended(entry, &app).await? {
                continue;
            }
            match self.came_back(&app, number).await? {
                Ok(stood) => {
                    entry
                        .pauses
                        .insert(app.clone(), stood.as_secs_f64() * 1000.0);
                    back.push(app);
                }
                Err(why) => lost.push(format!("{app} lost what it had: {why}")),
            }
        }
        // What ends at once begins with nothing then, and nobody would have heard of it.
        if !back.is_empty() {
            tokio::time::sleep(TRIAL).await;
        }
        for app in back {
            if let Err(why) = self.came_back(&app, number).await? {
                entry.pauses.remove(&app);
                lost.push(format!("{app} lost what it had, soon after: {why}"));
            }
        }
        self.clients_returned(entry).await;
        Ok(Fact::Revived(lost))
    }

    /// How long an app stood that goes on from the image that was kept for this update, or why it does not.
    async fn came_back(
        &self,
        app: &AppId,
        update: u64,
    ) -> Result<Result<Duration, String>, String> {
        let deadline = Instant::now() + BACK_MAX;
        loop {
            let pid = self.process(app).await?;
            let origin = pid.map_or(Origin::Unknown, |pid| self.shared.images.origin(app, pid));
            match origin {
                Origin::Kept { update: of, stood } if of == update => return Ok(Ok(stood)),
                Origin::Kept { .. } | Origin::Own => {
                    return Ok(Err(format!(
                        "it does not go on from the image that was kept for it; `forebay events --app {app}` says why"
                    )));
                }
                Origin::Unknown if Instant::now() >= deadline => {
                    return Ok(Err("it does not run".to_owned()));
                }
                Origin::Unknown => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

/// Why an update that keeps apps would keep none of them.
pub(super) fn keeps_none(order: &Order, choices: &BTreeMap<AppId, Choice>) -> Option<String> {
    let keeps = choices.values().any(|one| one.rung == Rung::Checkpoint);
    (order.keep && !keeps).then(|| {
        format!(
            "rung {}: no app with `images` runs: there is nothing to keep; take {}",
            plan::rung(Rung::Checkpoint),
            plan::rung(Rung::Reboot)
        )
    })
}

#[cfg(test)]
mod tests {
    use forebay_core::app::{Class, Exec};

    use super::super::Kept;
    use super::*;

    #[test]
    fn a_reload_leaves_those_ended_that_are_kept() {
        let id: AppId = "cache".parse().unwrap();
        let policy = |restart| {
            let exec = Exec {
                restart,
                ..Exec::of(vec!["redis-server".to_owned()])
            };
            let app = App::new(id.clone(), Class::Critical, Binding::Exec(exec));
            Policy {
                apps: BTreeMap::from([(id.clone(), app)]),
                ..Policy::default()
            }
        };
        let restart = |policy: &Policy| match &policy.apps[&id].binding {
            Binding::Exec(exec) => exec.restart,
            other => panic!("{other:?}"),
        };
        let kept = Kept::default();
        let mut reloaded = policy(Restart::Always);
        kept.hold_back(&mut reloaded);
        assert_eq!(restart(&reloaded), Restart::Always, "none is kept");
        locked(&kept.2).insert(id.clone(), Restart::OnFailure);
        kept.hold_back(&mut reloaded);
        assert_eq!(restart(&reloaded), Restart::Never);
        // Afterwards it is as it was configured last.
        assert_eq!(locked(&kept.2)[&id], Restart::Always);
    }
}
