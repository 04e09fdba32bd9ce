//! Has the host begin anew between two images: apps are written down and ended, and go on where they were.
//!
//! Who is kept says the plan, which is on disk. What is done can be repeated in the boot that the update began in:
//! an app that a daemon in between began from its image is written down again. Whatever boot comes after, this
//! daemon's supervision begins apps from their images before this thread looks at them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Binding, Policy, Restart};
use forebay_core::update::{Choice, Fact, Keeps, Order, Rung};
use forebay_host::checkpoint::Origin;
use forebay_host::reboot::{self, Way};

use super::journal::{Content, Entry};
use super::run::Runner;
use super::{Shared, locked, plan};
use crate::control::{Command, Deed};

/// How long a host may take to go down.
const DOWN_MAX: Duration = Duration::from_secs(600);
/// How long apps have to be back: CRIU's own bound for a large one, and what a busy boot takes.
const BACK_MAX: Duration = Duration::from_secs(300);
/// For so long one is waited for that may never begin.
const BEGUN_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

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
                 they were; their connections are closed",
                kernel.version
            ),
            Way::Firmware(why) => format!(
                "apps with `images` are written down and end, the host reboots through its firmware ({why}), and \
                 they go on where they were; their connections are closed"
            ),
        })
    }
}

impl Runner {
    /// Sees that images can be taken, before anything is changed.
    pub(super) async fn try_images(&self, entry: &Entry) -> Result<(), String> {
        for app in entry.record.kept() {
            let tried = self.shared.images.try_one(app).await;
            tried.map_err(|why| format!("{app} cannot be kept over a reboot: {why}"))?;
        }
        Ok(())
    }

    pub(super) async fn depart(&self, entry: &mut Entry) -> Result<Fact, String> {
        let here = &self.shared.place.boot;
        match &entry.record.departs_from {
            // A boot that ended before, as by a power cut, had not the system that this one is to end with.
            None => {
                entry.record.departs_from = Some(here.clone());
                self.keep(entry).await?;
            }
            Some(boot) if boot != here => return Ok(Fact::Booted(Ok(()))),
            Some(_) => self.await_begun(entry).await?,
        }
        if let Err(why) = self.write_down(entry).await {
            self.start_again(entry).await?;
            return Ok(Fact::Booted(Err(why)));
        }
        if self.shared.wishes.resume.load(Ordering::Relaxed) {
            self.start_again(entry).await?;
            let why = "somebody had it go on without".to_owned();
            return Ok(Fact::Booted(Err(why)));
        }
        let begun =
            tokio::task::spawn_blocking(|| reboot::way().and_then(|way| reboot::begin(&way)));
        let begun = begun.await.map_err(|error| error.to_string())?;
        match begun {
            Ok(None) => self.tell("the host begins anew".to_owned()),
            Ok(Some(why)) => self.tell(format!("the host reboots through its firmware: {why}")),
            Err(error) => {
                self.start_again(entry).await?;
                return Ok(Fact::Booted(Err(error.explain())));
            }
        }
        let deadline = Instant::now() + DOWN_MAX;
        while Instant::now() < deadline && !self.shared.wishes.resume.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK).await;
        }
        self.start_again(entry).await?;
        let seconds = DOWN_MAX.as_secs();
        let why = format!(
            "it was asked to, and was still up after {seconds} s, or somebody had it go on"
        );
        Ok(Fact::Booted(Err(why)))
    }

    /// Supervision begins those again that a daemon before this one ended, from their images. Until it has, they are not
    /// seen to run, and what they do afterwards would end with the host.
    async fn await_begun(&self, entry: &Entry) -> Result<(), String> {
        let deadline = Instant::now() + BEGUN_MAX;
        let is_over =
            || Instant::now() >= deadline || self.shared.wishes.resume.load(Ordering::Relaxed);
        for app in entry.record.kept() {
            while self.process(app).await?.is_none() && !is_over() {
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Writes down and ends all that are kept and run, until none does.
    async fn write_down(&self, entry: &Entry) -> Result<(), String> {
        self.hold_back(entry).await?;
        for app in entry.record.kept() {
            if self.process(app).await?.is_none() {
                continue;
            }
            let number = entry.record.number;
            self.shared.images.keep(app, number).await?;
            self.tell(format!("{app} is written down, and ended"));
        }
        Ok(())
    }

    /// Has those that were ended begin again, each from its image.
    async fn start_again(&self, entry: &Entry) -> Result<(), String> {
        self.let_go().await?;
        for app in entry.record.kept() {
            if self.process(app).await?.is_some() {
                continue;
            }
            if let Err(why) = self.act(app, Deed::Start).await {
                // Supervision may have been first, and says so itself where it fails.
                tracing::info!(%app, why, "it is not started again from here");
            }
        }
        Ok(())
    }

    /// The process that an app runs as.
    async fn process(&self, app: &AppId) -> Result<Option<u32>, String> {
        let published = self.report().await?;
        let seen = published.report.apps.get(app);
        Ok(seen.and_then(|app| app.main_pid))
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
            let mut restarts = locked(&self.shared.restarts);
            // Tried again, what is in force is no more what was configured.
            if restarts.is_empty() {
                *restarts = before;
            }
        }
        self.set_restarts(never).await
    }

    /// Has supervision do with them as it is configured again.
    async fn let_go(&self) -> Result<(), String> {
        let before = std::mem::take(&mut *locked(&self.shared.restarts));
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
        let number = entry.record.number;
        let kept: Vec<AppId> = entry.record.kept().cloned().collect();
        let mut lost = Vec::new();
        for app in kept {
            match self.came_back(&app, number).await? {
                Ok(stood) => _ = entry.pauses.insert(app, stood.as_secs_f64() * 1000.0),
                Err(why) => lost.push(format!("{app} lost what it had: {why}")),
            }
        }
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
                        "it did not begin from the image that was kept for it; `forebay events --app {app}` says why"
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
