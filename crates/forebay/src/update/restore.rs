//! Replaces programs that run outdated code: one after the other, through their fronts.
//!
//! Behind a front the one that stands by is replaced first; then it takes over in order, and the one that
//! served is replaced as the one that stands by. What is replaced is known by its life, so that a daemon
//! that comes after another one goes on with what is left.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use forebay_core::app::{AppId, Binding, Restart};
use forebay_core::update::{Fact, Life};
use forebay_shadow::synchronise::Standing;

use super::journal::{Entry, HandOver};
use super::plan;
use super::run::{self, Runner, is_new};
use crate::control::{Command, Deed};
use crate::fronts::{Desk, Known, Refused, Way};

/// How long until a daemon hears of its fronts.
const HEARD_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
/// Hand-overs of one front for one update: there and back, and one more for whoever changed it meanwhile.
const ROUNDS_MAX: usize = 8;

/// Which front could not hand over though one of its instances is to be restarted.
pub(super) fn behind(fronts: &Desk, restart: &BTreeSet<AppId>) -> Option<String> {
    fronts.all().values().find_map(|known| {
        let config = &known.config;
        let is_meant = config.instances.iter().any(|(app, _)| restart.contains(app));
        let has_shadow = config.instances.len() > 1;
        if !is_meant || !has_shadow {
            return None;
        }
        let why = match &known.status {
            Err(why) => why.clone(),
            Ok(status) if status.standby.is_some() && known.unreachable.is_none() => return None,
            Ok(status) => format!("its stage is {}", status.stage),
        };
        Some(format!(
            "front {}: no shadow is in step to take over ({why}); `forebay shadow status {}` shows it",
            config.name, config.name
        ))
    })
}

impl Runner {
    pub(super) async fn restore(&self, entry: &mut Entry) -> Result<Fact, String> {
        let mut troubles = Vec::new();
        let mut left: BTreeSet<AppId> = entry.record.old.keys().cloned().collect();
        for known in self.shared.fronts.all().into_values() {
            let own: BTreeSet<AppId> = left
                .iter()
                .filter(|app| plan::serves(&known, app))
                .cloned()
                .collect();
            left.retain(|app| !own.contains(app));
            if own.is_empty() {
                continue;
            }
            if let Err(why) = self.turn(&known, &own, entry).await {
                troubles.push(format!("front {}: {why}", known.config.name));
            }
        }
        for app in left {
            let Some(life) = entry.record.old.get(&app).copied() else {
                continue;
            };
            if let Err(why) = self.alone(&app, &life, entry).await {
                troubles.push(why);
            }
        }
        troubles.extend(self.outdated_outside().await?);
        Ok(Fact::Restored(troubles))
    }

    /// Those that others start, and that run outdated code: what to type.
    async fn outdated_outside(&self) -> Result<Vec<String>, String> {
        let policy = self.shared.policy().await?;
        let outside = run::outside(&policy);
        let told = outside.iter().map(|(app, file)| {
            let how = match policy.apps.get(app).map(|app| &app.binding) {
                Some(Binding::Systemd(unit)) => format!("`systemctl restart {unit}`"),
                _ => "restart it there".to_owned(),
            };
            format!(
                "{app} runs outdated code ({file}), and Forebay does not start it: {how} when it suits"
            )
        });
        Ok(told.collect())
    }

    /// A program without a shadow: a front itself is succeeded by a new process, others only where the
    /// user said so.
    async fn alone(&self, app: &AppId, life: &Life, entry: &Entry) -> Result<(), String> {
        if is_new(self.report().await?.report.apps.get(app), life) {
            return Ok(());
        }
        let fronts = self.shared.fronts.all();
        let front = fronts.values().find(|known| known.config.app == *app);
        if let Some(known) = front {
            let name = known.config.name.to_string();
            return match self.shared.fronts.upgrade(&name).await {
                Ok(_) => Ok(()),
                Err(Refused::Unknown(why) | Refused::Busy(why)) => Err(format!(
                    "front {name} runs outdated code: {why}; try `forebay shadow upgrade {name}`"
                )),
            };
        }
        if !entry.record.order.restart.contains(app) {
            return Err(format!(
                "{app} runs outdated code, and nothing could serve meanwhile: restart it when it suits"
            ));
        }
        let within = entry.record.order.well_within;
        self.replace(app, life, within).await
    }

    /// Replaces instances of one front.
    async fn turn(
        &self,
        known: &Known,
        own: &BTreeSet<AppId>,
        entry: &mut Entry,
    ) -> Result<(), String> {
        let name = &known.config.name;
        let within = entry.record.order.well_within;
        for _ in 0..ROUNDS_MAX {
            let primary = self.heard(name).await?;
            let report = self.report().await?;
            let old = own.iter().filter_map(|app| {
                let life = entry.record.old.get(app)?;
                (!is_new(report.report.apps.get(app), life)).then(|| (app.clone(), *life))
            });
            let old: Vec<(AppId, Life)> = old.collect();
            if old.is_empty() {
                return Ok(());
            }
            if let Some((app, life)) = old.iter().find(|(app, _)| *app != primary) {
                self.replace(app, life, within).await?;
                self.in_step(name, app, within).await?;
                continue;
            }
            if known.config.instances.len() < 2 {
                let Some((app, life)) = old.first() else {
                    return Ok(());
                };
                if !entry.record.order.restart.contains(app) {
                    return Err(format!(
                        "{app} runs outdated code, and no shadow could serve meanwhile: restart it when \
                         it suits"
                    ));
                }
                self.replace(app, life, within).await?;
                continue;
            }
            let transition = match self.shared.fronts.change(name.as_str(), Way::InOrder).await {
                Ok(transition) => transition,
                Err(Refused::Unknown(why) | Refused::Busy(why)) => return Err(why),
            };
            entry.hand_overs.push(HandOver {
                front: name.clone(),
                said: transition.to_string(),
                pause_ms: plan::pause(&transition).as_secs_f64() * 1000.0,
            });
            self.keep(entry).await?;
            self.no_more_primary(name, &primary).await?;
        }
        Err(format!(
            "not all instances were replaced in {ROUNDS_MAX} rounds"
        ))
    }

    /// Who serves; a daemon that has just begun has not asked its fronts yet.
    async fn heard(&self, front: &AppId) -> Result<AppId, String> {
        let deadline = Instant::now() + HEARD_MAX;
        loop {
            match self.primary(front) {
                Err(_) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
                heard => return heard,
            }
        }
    }

    fn primary(&self, front: &AppId) -> Result<AppId, String> {
        let fronts = self.shared.fronts.all();
        let known = fronts.get(front).ok_or("it is gone")?;
        let status = known.status.as_ref().map_err(Clone::clone)?;
        let primary = status.members.get(status.primary).ok_or("nobody serves")?;
        primary
            .app
            .parse()
            .map_err(|_| format!("it is served by {}, which is no app", primary.app))
    }

    /// Waits until the daemon has heard of a hand-over.
    async fn no_more_primary(&self, front: &AppId, before: &AppId) -> Result<(), String> {
        let deadline = Instant::now() + HEARD_MAX;
        while self.heard(front).await? == *before {
            if Instant::now() >= deadline {
                return Err(format!("{before} still serves after a hand-over"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until an instance could take over.
    async fn in_step(&self, front: &AppId, app: &AppId, within: Duration) -> Result<(), String> {
        let deadline = Instant::now() + within;
        loop {
            let fronts = self.shared.fronts.all();
            let status = fronts.get(front).map(|known| &known.status);
            let pid = self
                .report()
                .await?
                .report
                .apps
                .get(app)
                .and_then(|app| app.main_pid);
            let is_ready = matches!(status, Some(Ok(status)) if status.stage == "warm"
                && status.members.iter().any(|member| member.app == app.as_str()
                    && member.pid == pid
                    && matches!(member.standing, Standing::Ready { .. })));
            if is_ready {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!("{app} was restarted, and is not in step"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends a program and waits for the next.
    async fn replace(&self, app: &AppId, life: &Life, within: Duration) -> Result<(), String> {
        let policy = self.shared.policy().await?;
        let binding = policy.apps.get(app).map(|app| &app.binding);
        let Some(Binding::Exec(exec)) = binding else {
            return Err(format!("restart {app}: Forebay does not start it"));
        };
        if self
            .shared
            .commands
            .try_send(Command::Excuse(app.clone()))
            .is_err()
        {
            tracing::warn!(%app, "it starts again later than it could");
        }
        self.act(app, Deed::End).await?;
        let deadline = Instant::now() + within;
        let mut is_asked = exec.restart != Restart::Never;
        loop {
            let published = self.next_report().await?;
            let seen = published.report.apps.get(app);
            if is_new(seen, life) {
                return Ok(());
            }
            let ended = seen.is_none_or(|seen| seen.main_pid.is_none());
            if ended && !is_asked {
                is_asked = true;
                self.act(app, Deed::Start).await?;
            }
            if Instant::now() >= deadline {
                return Err(format!("{app} was ended, and does not run again"));
            }
        }
    }
}
