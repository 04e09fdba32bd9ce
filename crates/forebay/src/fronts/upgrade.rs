//! Replacing the process of a front by a new one, while its clients stay connected.
//!
//! The daemon only starts the new process beside the old one: how it takes the place is between the
//! two of them ([`forebay_shadow::succession`]). The plan is the one of the configuration file as it
//! is now.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use forebay_core::app::AppId;
use forebay_core::report::EventKind;
use forebay_shadow::front::{Plan, RELEASE};
use forebay_shadow::status::{About, Status, Transition};
use tokio::sync::{Mutex, oneshot};

use super::{Desk, Known, Refused, write_plan};
use crate::config::{self, FrontConfig, HostFacts};
use crate::control::{Command, TellOf};
use crate::front::{trouble, trouble_file};

/// How long a new process may take until it serves.
const UPGRADE_BOUND: Duration = Duration::from_secs(15);
/// How often it is looked how far it is.
const UPGRADE_POLL: Duration = Duration::from_millis(20);

/// What an upgrade needs of the daemon.
pub(crate) struct Upgrades {
    pub(crate) file: Option<PathBuf>,
    pub(crate) facts: HostFacts,
    pub(crate) commands: SyncSender<Command>,
    pub(crate) tell: TellOf,
    /// One at a time.
    pub(crate) turn: Mutex<()>,
}

impl fmt::Debug for Upgrades {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrades")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// How a front differs from its plan and from this program, if it does.
pub(super) fn outdated(plan: &Plan, status: &Status) -> Option<String> {
    let About {
        plan: own, release, ..
    } = &status.about;
    let mut differs = Vec::new();
    if *own != plan.fingerprint() {
        differs
            .push("its process runs with another plan than the one that is configured".to_owned());
    }
    if release != RELEASE {
        differs.push(format!(
            "its process is of release {release}, and this is {RELEASE}"
        ));
    }
    let front = &plan.name;
    (!differs.is_empty()).then(|| {
        let differs = differs.join(", and ");
        format!("{differs}; `forebay shadow upgrade {front}` mends that, and disturbs no client")
    })
}

/// What a configuration says otherwise of fronts than the one in force: for whoever reloads it.
pub(crate) fn changed(
    now: &BTreeMap<AppId, Known>,
    next: &BTreeMap<AppId, FrontConfig>,
) -> Vec<String> {
    let mut messages = Vec::new();
    // A certificate is renewed without another process.
    let plain = |front: &FrontConfig| {
        let mut front = front.clone();
        front.mode.forget_certificate();
        front
    };
    for (name, front) in next {
        match now.get(name) {
            Some(known) if plain(&known.config) == plain(front) => {}
            Some(_) => messages.push(format!(
                "front {name} is configured otherwise now: `forebay shadow upgrade {name}` puts \
                 that in force, and disturbs no client"
            )),
            None => messages.push(format!("front {name} is new: it begins at the next start")),
        }
    }
    let gone = now.keys().filter(|name| !next.contains_key(*name));
    messages.extend(gone.map(|name| {
        format!("front {name} is no longer configured: it is ended at the next start")
    }));
    messages
}

impl Desk {
    /// How a front differs from what is configured, if it does.
    pub(crate) fn outdated(&self, known: &Known) -> Option<String> {
        let status = known.status.as_ref().ok()?;
        outdated(&known.config.plan(&self.state_dir), status)
    }

    /// Has a new process take a front's place, with the plan of the configuration file.
    ///
    /// # Errors
    /// When the file has mistakes, or the new process could not take the place: then the old one
    /// goes on as it was.
    pub(crate) async fn upgrade(&self, front: &str) -> Result<Vec<String>, Refused> {
        self.control(front)?;
        let Some(upgrades) = &self.upgrades else {
            return Err(Refused::Busy("this daemon has no fronts".to_owned()));
        };
        let busy = |why: String| Refused::Busy(format!("upgrade front {front}: {why}"));
        let _turn = upgrades.turn.lock().await;
        let next = upgrades.next(front).await.map_err(busy)?;
        let (old, before) = self.known(front).map_err(busy)?;
        write_plan(&next, &self.state_dir).map_err(busy)?;
        self.configure(&next);
        match self.replace(upgrades, &next, old).await {
            Ok(new) => {
                let what = format!(
                    "process {new} has taken the place of process {old} with plan {}; that one \
                     serves the connections it has for {} s at most",
                    next.plan(&self.state_dir).fingerprint(),
                    next.drain.as_secs(),
                );
                (upgrades.tell)(&next.app, EventKind::Shadow, what.clone());
                Ok(vec![format!("{front}: {what}")])
            }
            Err(why) => {
                tracing::error!(front, why, "its process was not replaced");
                let what = format!("its process was not replaced: {why}");
                (upgrades.tell)(&next.app, EventKind::Shadow, what);
                self.configure(&before);
                write_plan(&before, &self.state_dir).map_err(busy)?;
                Err(busy(why))
            }
        }
    }

    /// Starts the new process, and waits until it serves; its number.
    async fn replace(
        &self,
        upgrades: &Upgrades,
        next: &FrontConfig,
        old: u32,
    ) -> Result<u32, String> {
        let plan = next.plan_file(&self.state_dir);
        let file = trouble_file(&plan);
        forget(&file)?;
        let (reply, answer) = oneshot::channel();
        let command = Command::Succeed(next.app.clone(), reply);
        let sent = upgrades.commands.try_send(command);
        sent.map_err(|_| "the control thread is busy or stopping; try again".to_owned())?;
        answer
            .await
            .map_err(|_| "the control thread ended".to_owned())??;
        let deadline = Instant::now() + UPGRADE_BOUND;
        loop {
            // Whoever took the place says so itself.
            let now = self.known(next.name.as_str()).ok().map(|(pid, _)| pid);
            if let Some(new) = now.filter(|pid| *pid != old) {
                return forget(&file).map(|()| new);
            }
            match trouble(&plan) {
                Ok(Some(why)) => return Err(format!("{why}; process {old} goes on")),
                Ok(None) => {}
                Err(error) => return Err(format!("read {}: {error}", file.display())),
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "the new process does not serve within {} s; process {old} goes on",
                    UPGRADE_BOUND.as_secs()
                ));
            }
            tokio::time::sleep(UPGRADE_POLL).await;
        }
    }

    /// The process that a front is, and how it is configured.
    fn known(&self, front: &str) -> Result<(u32, FrontConfig), String> {
        let fronts = self.fronts.borrow();
        let known = fronts.iter().find(|(name, _)| name.as_str() == front);
        let (_, known) = known.ok_or("there is no such front")?;
        if let Some(why) = &known.unreachable {
            return Err(format!("it is unreachable: {why}"));
        }
        let status = known.status.as_ref().map_err(Clone::clone)?;
        Ok((status.about.pid, (*known.config).clone()))
    }

    /// Has everybody go by another configuration of a front.
    fn configure(&self, front: &FrontConfig) {
        self.fronts.send_modify(|fronts| {
            if let Some(known) = fronts.get_mut(&front.name) {
                known.config = Arc::new(front.clone());
            }
        });
    }
}

/// Removes what a process of a front left word in.
fn forget(file: &Path) -> Result<(), String> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", file.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Upgrades {
    /// An instance that was ended because its shadow took over is wanted back as the shadow: its end
    /// says nothing of how well it is.
    pub(super) fn excuse(&self, transition: &Transition) {
        let ended = ["halt", "stall", "forced"].contains(&transition.cause.as_str());
        let app = transition.from.parse::<AppId>();
        let Some(app) = app.ok().filter(|_| ended) else {
            return;
        };
        if self.commands.try_send(Command::Excuse(app)).is_err() {
            tracing::warn!(app = transition.from, "it starts again later than it could");
        }
    }

    /// A front as the configuration file has it now.
    async fn next(&self, front: &str) -> Result<FrontConfig, String> {
        let loaded = config::load(self.file.as_deref(), &self.facts);
        let mut config = loaded.map_err(|errors| errors.to_string())?;
        let name = config.fronts.keys().find(|name| name.as_str() == front);
        let next = name.cloned().and_then(|name| config.fronts.remove(&name));
        let next = next.ok_or("it is no longer configured; it is ended at the next start")?;
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.try_send(Command::Policy(reply));
        sent.map_err(|_| "the control thread is busy or stopping; try again".to_owned())?;
        let policy = answer
            .await
            .map_err(|_| "the control thread ended".to_owned())?;
        let mut here = (next.instances.iter()).filter(|(app, _)| !next.elsewhere.contains_key(app));
        match here.find(|(app, _)| !policy.apps.contains_key(app)) {
            Some((app, _)) => Err(format!(
                "its instance {app} is not known yet; `forebay reload` first"
            )),
            None => Ok(next),
        }
    }
}
