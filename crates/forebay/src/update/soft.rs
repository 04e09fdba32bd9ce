//! Has userspace begin anew while critical apps run on.
//!
//! Whoever runs on says the plan, which is on disk, and which lives these are is there before anything else ends. All
//! other programs of Forebay's end in order, as those do that were told of an update, and are started again by what
//! starts those. Then systemd is asked; it ends this daemon, which leaves those that run on in force
//! (`forebay_host::soft_reboot`). The daemon of the next userspace takes them up as one does whose predecessor was
//! killed. One userspace is told from another by the boot and by what systemd counts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Binding, Class, Policy};
use forebay_core::fleet::tenure::Takeover;
use forebay_core::update::{Call, Fact, Life, Order, Soft, Way};
use forebay_host::Roots;
use forebay_host::soft_reboot::{self, Respite};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::journal::Entry;
use super::run::{PROC, Runner};
use super::{PREFIX, Place, Shared, outdated};

/// How long userspace may take to go.
const DOWN_MAX: Duration = Duration::from_secs(600);
/// How long one that was asked to end has until it is killed.
const ASKED_MAX: Duration = Duration::from_secs(30);
/// How long an app that runs on has to be seen again.
const SEEN_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);

/// What is known of a new beginning of userspace, before anything runs.
#[derive(Debug, Default)]
pub(super) struct Softly {
    /// What becomes of each app, where userspace is to begin anew.
    pub(super) apps: BTreeMap<AppId, Soft>,
    /// Why it cannot.
    pub(super) obstacle: Option<String>,
}

/// What keeps a critical app from running on.
fn obstacles(app: &App, bus: &str) -> Vec<String> {
    let mut obstacles = match &app.binding {
        Binding::Exec(_) => Vec::new(),
        Binding::Systemd(unit) => {
            soft_reboot::unit_obstacles(bus, unit).unwrap_or_else(|error| vec![error.explain()])
        }
        Binding::Container(_) => vec!["its runtime ends with userspace".to_owned()],
        Binding::Cgroup(_) | Binding::Match(_) => {
            vec!["whoever started it ends it: have Forebay start it (`exec`)".to_owned()]
        }
    };
    let takeover = app.mobility.as_ref().map(|mobility| mobility.takeover);
    if takeover == Some(Takeover::AfterLease) {
        obstacles.push(
            "other hosts take it over while this one is silent: give it another `move.takeover`"
                .to_owned(),
        );
    }
    obstacles
}

/// What becomes of an app: those that matter run on.
fn becomes(app: &App, bus: &str) -> Soft {
    match app.class {
        Class::Critical => Soft::Survives(obstacles(app, bus)),
        Class::Standard | Class::Batch => Soft::Ends,
    }
}

impl Place {
    /// Which userspace this is. Blocks.
    fn userspace(&self) -> Result<String, String> {
        let count = soft_reboot::count(&self.bus).map_err(|error| error.explain())?;
        Ok(format!("{}+{count}", self.boot))
    }
}

/// Runs what blocks beside this thread.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| error.to_string())
}

impl Shared {
    /// Whether userspace can begin anew here, and what becomes of apps where an order has it do so.
    pub(super) async fn softly(&self, policy: &Policy, order: &Order) -> Result<Softly, String> {
        let apps = policy.apps.values();
        let apps = apps.filter(|app| order.soft && !app.id.as_str().starts_with(PREFIX));
        let apps: Vec<App> = apps.cloned().collect();
        let place = self.place.clone();
        beside(move || {
            let bus = &place.bus;
            let apps = apps.iter().map(|app| (app.id.clone(), becomes(app, bus)));
            Softly {
                apps: apps.collect(),
                obstacle: soft_reboot::offered(bus, &Roots::default())
                    .err()
                    .map(|error| error.explain()),
            }
        })
        .await
    }
}

impl Softly {
    /// Why an update that is to have userspace begin anew does not.
    pub(super) fn cannot(&self) -> Option<String> {
        let name = Way::SoftReboot.name();
        let survives = |soft: &Soft| matches!(soft, Soft::Survives(_));
        if let Some(why) = &self.obstacle {
            return Some(format!(
                "rung {name} is not offered: {why}; `forebay update plan -- COMMAND` shows all"
            ));
        }
        (!self.apps.values().any(survives)).then(|| {
            format!(
                "rung {name}: no app is critical, so that none would run on: give those that are to \
                 `class = \"critical\"`, or take --reboot"
            )
        })
    }
}

impl Runner {
    /// Sees that those that are to run on can be spared, before anything is changed.
    pub(super) async fn try_spare(&self, entry: &Entry) -> Result<(), String> {
        let apps: Vec<AppId> = self.spared(entry).await?.into_iter().collect();
        let anchor = self.shared.place.anchor.clone();
        beside(move || {
            apps.iter().try_for_each(|app| {
                let roots = Roots::default();
                soft_reboot::spare(&roots, &anchor, app)
                    .and_then(|()| soft_reboot::unspare(&roots, &anchor, app))
                    .map_err(|error| {
                        format!(
                            "{app} cannot run on over a soft reboot: {}",
                            error.explain()
                        )
                    })
            })
        })
        .await?
    }

    /// Those that run on in groups of Forebay's own.
    async fn spared(&self, entry: &Entry) -> Result<BTreeSet<AppId>, String> {
        let policy = self.shared.policy().await?;
        let report = self.report().await?;
        let is_ours = |app: &&AppId| {
            let binding = policy.apps.get(*app).map(|app| &app.binding);
            let seen = report.report.apps.get(*app);
            matches!(binding, Some(Binding::Exec(_)))
                && seen.is_some_and(|app| app.main_pid.is_some())
        };
        Ok(entry.record.survivors().filter(is_ours).cloned().collect())
    }

    /// The lives of those that are to run on, and who is to end.
    async fn parted(
        &self,
        entry: &Entry,
    ) -> Result<(BTreeMap<AppId, Life>, BTreeMap<AppId, Call>), String> {
        let policy = self.shared.policy().await?;
        let report = self.report().await?;
        let survivors: BTreeSet<&AppId> = entry.record.survivors().collect();
        let (mut lives, mut ending) = (BTreeMap::new(), BTreeMap::new());
        for (id, app) in &policy.apps {
            let pid = match &app.binding {
                Binding::Systemd(unit) if survivors.contains(id) => {
                    let (bus, unit) = (self.shared.place.bus.clone(), unit.clone());
                    let asked = beside(move || soft_reboot::service_process(&bus, &unit)).await?;
                    asked.map_err(|error| error.explain())?
                }
                _ => report.report.apps.get(id).and_then(|app| app.main_pid),
            };
            let Some(pid) = pid.filter(|_| !id.as_str().starts_with(PREFIX)) else {
                continue;
            };
            if survivors.contains(id) {
                let life = outdated::life(Path::new(PROC), pid);
                lives.extend(life.map(|life| (id.clone(), life)));
            } else if matches!(app.binding, Binding::Exec(_)) {
                ending.insert(id.clone(), Call::End);
            }
        }
        Ok((lives, ending))
    }

    pub(super) async fn depart_softly(&self, entry: &mut Entry) -> Result<Fact, String> {
        let place = self.shared.place.clone();
        let here = beside(move || place.userspace()).await??;
        match &entry.record.departs_from {
            None => {
                let (lives, ending) = self.parted(entry).await?;
                entry.record.lives = lives;
                entry.record.prepared.extend(ending);
                entry.record.departs_from = Some(here);
                self.keep(entry).await?;
            }
            Some(departed) if *departed != here => return Ok(Fact::Booted(Ok(()))),
            Some(_) => {}
        }
        let spared = self.spared(entry).await?;
        if let Err(why) = self.go(entry, &spared).await {
            self.stay(entry).await?;
            return Ok(Fact::Booted(Err(why)));
        }
        self.tell("userspace begins anew".to_owned());
        let deadline = Instant::now() + DOWN_MAX;
        let is_unwanted = || self.shared.wishes.resume.load(Ordering::Relaxed);
        while Instant::now() < deadline && !is_unwanted() {
            tokio::time::sleep(LOOK).await;
        }
        self.stay(entry).await?;
        let seconds = DOWN_MAX.as_secs();
        Ok(Fact::Booted(Err(format!(
            "systemd was asked to, and this daemon still ran after {seconds} s, or somebody had it go on"
        ))))
    }

    /// Ends the others, has those that run on be left in force and spared, and asks systemd.
    async fn go(&self, entry: &Entry, spared: &BTreeSet<AppId>) -> Result<(), String> {
        self.ask_others(entry).await?;
        self.end_prepared(&entry.record.prepared).await?;
        if self.shared.wishes.resume.load(Ordering::Relaxed) {
            return Err("somebody had it go on without".to_owned());
        }
        let (place, spared) = (self.shared.place.clone(), spared.clone());
        beside(move || {
            let roots = Roots::default();
            spared
                .iter()
                .try_for_each(|app| soft_reboot::spare(&roots, &place.anchor, app))
                .and_then(|()| Respite::begin(&roots, &place.state_dir, spared.clone()))
                .and_then(|()| soft_reboot::begin())
        })
        .await?
        .map_err(|error| error.explain())
    }

    /// Asks those that end to end, what matters least first, and gives each time to. Who is there afterwards is killed.
    async fn ask_others(&self, entry: &Entry) -> Result<(), String> {
        let ending = self.shared.board.hold_ended(&entry.record.prepared);
        // The control thread has to know that it is not to start them again.
        self.next_report().await?;
        self.next_report().await?;
        let policy = self.shared.policy().await?;
        let mut ending: Vec<AppId> = ending.into_iter().collect();
        ending.sort_by_key(|id| std::cmp::Reverse(policy.apps.get(id).map(|app| app.class)));
        for app in ending {
            let Some(pid) = self.process(&app).await? else {
                continue;
            };
            let asked = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let asked = asked.map(|pid| kill_process(pid, Signal::TERM));
            if let Some(Err(error)) = asked.filter(|asked| *asked != Err(Errno::SRCH)) {
                return Err(format!("ask {app} to end: {error}"));
            }
            let deadline = Instant::now() + ASKED_MAX;
            while self.process(&app).await? == Some(pid) && Instant::now() < deadline {
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Whoever was to run on is guarded as before again.
    async fn stay(&self, entry: &Entry) -> Result<(), String> {
        let place = self.shared.place.clone();
        let apps: Vec<AppId> = entry.record.lives.keys().cloned().collect();
        beside(move || {
            Respite::end(&place.state_dir)?;
            let roots = Roots::default();
            apps.iter()
                .try_for_each(|app| soft_reboot::unspare(&roots, &place.anchor, app))
        })
        .await?
        .map_err(|error| error.explain())
    }

    /// Sees that those that were to run on are the same that they were.
    pub(super) async fn survived(&self, entry: &Entry) -> Result<Fact, String> {
        self.stay(entry).await?;
        let policy = self.shared.policy().await?;
        let mut lost = Vec::new();
        for (app, life) in &entry.record.lives {
            let binding = policy.apps.get(app).map(|app| &app.binding);
            let is_started = matches!(binding, Some(Binding::Exec(_)));
            if !self.is_seen(app, life, is_started).await? {
                lost.push(format!(
                    "{app} did not run on while userspace began anew; `forebay events --app {app}` says what became of it"
                ));
            }
        }
        Ok(Fact::Revived(lost))
    }

    /// Whether an app runs as this life; of one that this daemon starts, once it has taken it up.
    async fn is_seen(&self, app: &AppId, life: &Life, is_started: bool) -> Result<bool, String> {
        let deadline = Instant::now() + SEEN_MAX;
        while outdated::life(Path::new(PROC), life.pid) == Some(*life) {
            if !is_started || self.process(app).await? == Some(life.pid) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn critical_apps_run_on_where_nothing_else_ends_them() {
        let app = |class, binding| App::new("web".parse().unwrap(), class, binding);
        let exec = || Binding::Exec(forebay_core::app::Exec::of(vec!["web".to_owned()]));
        let check = |app: &App, words: &str| match becomes(app, "unix:path=/nowhere") {
            Soft::Survives(obstacles) => {
                let said = obstacles.join("; ");
                assert!(
                    said.contains(words) && said.is_empty() == words.is_empty(),
                    "{said}"
                );
            }
            Soft::Ends => panic!("it is critical"),
        };
        check(&app(Class::Critical, exec()), "");
        check(
            &app(Class::Critical, Binding::Container("web".to_owned())),
            "its runtime ends",
        );
        check(
            &app(Class::Critical, Binding::Cgroup("web".into())),
            "have Forebay start it",
        );
        check(
            &app(Class::Critical, Binding::Systemd("web.service".to_owned())),
            "ask systemd for web.service",
        );
        for class in [Class::Standard, Class::Batch] {
            assert_eq!(becomes(&app(class, exec()), ""), Soft::Ends);
        }
    }

    #[test]
    fn an_update_for_whom_nobody_runs_on_is_refused() {
        let softly = |soft, obstacle| Softly {
            apps: [("web".parse().unwrap(), soft)].into(),
            obstacle,
        };
        assert_eq!(softly(Soft::Survives(Vec::new()), None).cannot(), None);
        let why = softly(Soft::Ends, None).cannot().unwrap();
        assert!(why.contains("no app is critical"), "{why}");
        let why = softly(Soft::Ends, Some("no systemd".to_owned()))
            .cannot()
            .unwrap();
        assert!(why.contains("is not offered: no systemd"), "{why}");
    }
}
