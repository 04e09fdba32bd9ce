//! Has apps wait for the end of an update on other hosts of the fleet.
//!
//! They leave as `forebay fleet drain` has them leave, and come back as `forebay move` brings them: this host is
//! asked as any host asks another, so that a daemon that comes back asks again and changes nothing by that.
//! Which are to leave is on disk before the first one does; where each is says its record.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId};
use forebay_core::fleet::HostName;
use forebay_core::update::{Fact, Rung};

use super::Shared;
use super::journal::Entry;
use super::run::Runner;
use crate::fleet::coordinator::Command;
use crate::fleet::member;
use crate::fleet::moves::{self, Leaver, Place};

/// How long all have to leave.
const LEAVE_MAX: Duration = Duration::from_secs(1800);
/// How long each has to come back, and the coordinator to be reached for that.
const RETURN_MAX: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(200);
/// Between two attempts at what was refused.
const RETRY: Duration = Duration::from_secs(2);

/// The other hosts, as an update needs them.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    pub(crate) member: member::Desk,
    pub(crate) moves: moves::Desk,
}

impl Fleet {
    /// Whether an app is this host's to give away.
    pub(super) fn can_leave(&self, app: &App) -> bool {
        app.mobility.is_some() && self.moves.moves.ours().contains(&app.id)
    }

    /// Why none can leave for an update.
    pub(super) fn obstacle(&self) -> Option<String> {
        let standing = self.member.standing.borrow().clone();
        let host = &self.member.host;
        if standing.cordoned {
            return Some(format!(
                "{host} takes no apps, so that none could come back: `forebay fleet uncordon {host}` first"
            ));
        }
        let may = standing.may_move(crate::fleet::coordinator::now());
        may.err()
            .map(|why| format!("no app can leave {host}: {why}"))
    }

    /// Asks a host of the fleet, without holding up this thread.
    async fn ask(&self, host: HostName, command: Command) -> Result<String, String> {
        let member = self.member.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let asked = member.ask(&host, &command);
            asked.map_err(|error| error.to_string())
        });
        asked.await.map_err(|error| error.to_string())?
    }

    /// Whose an app is, and whether it runs there as far as its owner says.
    async fn owner(&self, app: &AppId) -> Result<Option<HostName>, String> {
        let (moves, app) = (self.moves.moves.clone(), app.clone());
        let read = tokio::task::spawn_blocking(move || moves.owner(&app));
        read.await.map_err(|error| error.to_string())?
    }

    /// Whether it is here, and no move of it is under way.
    fn is_back(&self, app: &AppId) -> bool {
        let moves = &self.moves.moves;
        moves.ours().contains(app) && !moves.awaited().iter().any(|one| one.app == *app)
    }
}

/// Why those stay that do.
fn stays(apps: &[Leaver]) -> Vec<String> {
    let stays = |one: &Leaver| match &one.place {
        Place::Stays(why) if one.movable => Some(format!("{} stays: {why}", one.app)),
        Place::Waits(Some(why)) => Some(format!("{} has not left: {why}", one.app)),
        Place::Waits(None) | Place::Moves(_) => Some(format!("{} has not left", one.app)),
        Place::Stays(_) | Place::Left(_) => None,
    };
    apps.iter().filter_map(stays).collect()
}

impl Shared {
    fn fleet(&self) -> Result<&Fleet, String> {
        self.fleet.as_ref().ok_or_else(|| {
            "this host has no place in a fleet any more: give it `fleet.link.listen` again, and restart the \
             daemon"
                .to_owned()
        })
    }
}

impl Runner {
    pub(super) async fn leave(&self, entry: &mut Entry) -> Result<Fact, String> {
        let fleet = match self.shared.fleet() {
            Ok(fleet) => fleet,
            Err(why) => return Ok(Fact::Refused(why)),
        };
        if entry.record.away.is_empty() {
            let plan = entry.record.plan.iter();
            let leaves = plan.filter(|(_, choice)| choice.rung == Rung::OtherHost);
            entry.record.away = leaves.map(|(app, _)| app.clone()).collect();
            self.keep(entry).await?;
        }
        let here = fleet.member.host.clone();
        if let Err(why) = fleet.ask(here, Command::Drain).await {
            return Ok(Fact::Refused(format!("have apps leave: {why}")));
        }
        let deadline = Instant::now() + LEAVE_MAX;
        let drained = loop {
            if self.shared.wishes.abort.load(Ordering::Relaxed) {
                return Ok(Fact::Aborted);
            }
            let drained = fleet.moves.drain.shown();
            if drained.goes_on && drained.is_over() || Instant::now() >= deadline {
                break drained;
            }
            tokio::time::sleep(LOOK).await;
        };
        let stays = stays(&drained.apps);
        // With a reboot it would end; beside a command it goes on, and nothing happens to it.
        if entry.record.order.reboot && !stays.is_empty() {
            return Ok(Fact::Refused(format!(
                "{}; the reboot would end it: move it by hand, or take `--rung reboot`",
                stays.join("; ")
            )));
        }
        Ok(Fact::Left(stays))
    }

    pub(super) async fn come_back(&self, entry: &Entry) -> Result<Fact, String> {
        // Whoever lost its fleet meanwhile waits for it: the apps are there.
        let fleet = self.shared.fleet()?;
        let mut troubles = Vec::new();
        let here = &fleet.member.host;
        let deadline = Instant::now() + RETURN_MAX;
        while let Err(why) = fleet.ask(here.clone(), Command::Uncordon).await {
            if Instant::now() >= deadline {
                troubles.push(format!(
                    "{here} takes no apps yet, and those that left stay where they are: {why}; then \
                     `forebay fleet uncordon {here}`"
                ));
                return Ok(Fact::Returned(troubles));
            }
            tokio::time::sleep(RETRY).await;
        }
        for app in &entry.record.away {
            if let Err(why) = bring_back(fleet, app).await {
                troubles.push(format!("{app} did not come back: {why}"));
            }
        }
        Ok(Fact::Returned(troubles))
    }
}

/// Has one come back, wherever it is.
async fn bring_back(fleet: &Fleet, app: &AppId) -> Result<(), String> {
    let here = &fleet.member.host;
    let deadline = Instant::now() + RETURN_MAX;
    let mut why = "nobody owns it".to_owned();
    while Instant::now() < deadline {
        if fleet.is_back(app) {
            return Ok(());
        }
        match fleet.owner(app).await {
            Ok(Some(owner)) if owner != *here => {
                let back = Command::Move {
                    app: app.clone(),
                    to: Some(here.clone()),
                };
                why = match fleet.ask(owner.clone(), back).await {
                    Ok(_) => format!("it is on its way from {owner}"),
                    Err(why) => format!("{why}; `forebay move {app} --to {here}` on {owner}"),
                };
            }
            Ok(_) => {}
            Err(trouble) => why = trouble,
        }
        tokio::time::sleep(RETRY).await;
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_stay_are_named_with_why() {
        let one = |name: &str, movable: bool, place: Place| Leaver {
            app: name.parse().unwrap(),
            movable,
            place,
        };
        let apps = [
            one("gone", true, Place::Left(None)),
            one("full", true, Place::Stays("b: no room".to_owned())),
            one("late", true, Place::Waits(Some("etcd is away".to_owned()))),
            one("tied", false, Place::Stays("it is pinned".to_owned())),
        ];
        assert_eq!(
            stays(&apps),
            ["full stays: b: no room", "late has not left: etcd is away"]
        );
    }
}
