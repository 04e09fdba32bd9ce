//! Rolling updates: where they are asked for, and the slots that whoever speaks FleetLock takes.
//!
//! ```text
//! API ──┐                                          ┌── thread of this host (`turn.rs`): its own update
//!       ├──transaction──▶ coordinator: Rolling ◀───┤
//! FleetLock ┘                                      └── threads of other hosts
//! ```
//!
//! The rules are `forebay_core::fleet::rolling`. Nobody leads: what is asked for here is known to all hosts by
//! the coordinator alone, and each goes on whatever becomes of this one. Every change is one transaction, made
//! again where somebody was faster.

mod shown;
mod turn;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use forebay_api as api;
use forebay_core::app::AppId;
use forebay_core::calendar::{Schedule, Zones};
use forebay_core::fleet::rolling::{
    GROUP, Host, Opening, Owner, Rolling, Rollout, Standing, Wanted, Window, check_client,
    check_group, opening,
};
use forebay_core::fleet::{HostName, HostNameError};
use forebay_core::update::Way;
use forebay_host::zones::ZoneFiles;
use jiff::Timestamp;
use tokio::sync::Notify;

use super::order::{Asked, asked, order};
use super::{Refused, unix_ms};
use crate::fleet::coordinator::Error;
use crate::fleet::member;

pub(crate) use turn::Roller;

/// How often a change is tried that others were faster than.
const CONTENDED_MAX: u32 = 16;
/// How long a host may say nothing unless it is said: longer than one takes that begins anew.
const SILENCE_USUAL: Duration = Duration::from_secs(900);
const SILENCE_MIN: Duration = Duration::from_secs(10);
const SILENCE_MAX: Duration = Duration::from_secs(24 * 3600);
/// How long a window may be open.
const WINDOW_MIN: Duration = Duration::from_secs(60);
const WINDOW_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RollError {
    /// By the rules.
    #[error("{0}")]
    Refused(String),
    /// The coordinator could not be asked.
    #[error(transparent)]
    Coordinator(Error),
}

impl From<RollError> for Refused {
    fn from(error: RollError) -> Self {
        match error {
            RollError::Refused(why) => Self::Cannot(why),
            RollError::Coordinator(error) => Self::Cannot(format!(
                "{error}; hosts that update go on by themselves; `forebay fleet status` says how it stands"
            )),
        }
    }
}

/// Where rolling updates are asked for.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    member: member::Desk,
    update: super::Desk,
    wake: Arc<Notify>,
}

impl Desk {
    /// Asks the fleet for a rolling update; its number.
    ///
    /// # Errors
    /// Why it does not begin.
    pub(crate) async fn run(&self, request: api::RolloutRequest) -> Result<u64, Refused> {
        let policy = self.update.0.policy().await.map_err(Refused::Cannot)?;
        // What makes no sense here makes none anywhere. Which apps there are differs.
        let own = api::UpdateRequest {
            restart: Vec::new(),
            ..request.update.clone()
        };
        let way = match asked(&own)? {
            Asked::Way(way) => Some(way),
            // Each host chooses. Of what may be asked for, this way takes all.
            Asked::Chosen => Some(Way::Checkpoint),
            Asked::Usual => None,
        };
        order(own, way, &policy, self.update.0.fleet.as_ref())?;
        let rollout = self.rollout(request)?;
        let begun = self
            .blocking(move |desk| {
                let there = desk.member.coordinator.hosts();
                let there = there.map_err(RollError::Coordinator)?;
                let rollout = desk.with_hosts(rollout, &there.into_keys().collect())?;
                desk.amend(|rolling| rolling.begin(rollout.clone()))
            })
            .await?;
        self.wake.notify_one();
        Ok(begun)
    }

    /// What is asked for, as far as it makes sense; hosts may be left out.
    fn rollout(&self, request: api::RolloutRequest) -> Result<Rollout, Refused> {
        let group = request.group.unwrap_or_else(|| GROUP.to_owned());
        check_group(&group).map_err(Refused::Mistake)?;
        for name in &request.update.restart {
            let checked = name.parse::<AppId>();
            checked
                .map_err(|_| Refused::Mistake(format!("restart {name}: no app has such a name")))?;
        }
        let silence = request.silence_seconds.map(Duration::from_secs);
        let silence = silence.unwrap_or(SILENCE_USUAL);
        if !(SILENCE_MIN..=SILENCE_MAX).contains(&silence) {
            return Err(Refused::Mistake(format!(
                "silence of {} s: use {} to {}",
                silence.as_secs(),
                SILENCE_MIN.as_secs(),
                SILENCE_MAX.as_secs()
            )));
        }
        let parse = |name: &String| {
            let parsed = name.parse::<HostName>();
            parsed.map_err(|error: HostNameError| Refused::Mistake(error.to_string()))
        };
        let hosts = request.hosts.iter().map(parse);
        let hosts = hosts.map(|name| name.map(waiting));
        let update = request.update;
        Ok(Rollout {
            number: 0,
            began_unix_ms: unix_ms(),
            by: self.member.host.clone(),
            wanted: Wanted {
                command: update.command,
                directory: update.directory,
                rollback: update.rollback,
                limit_seconds: update.limit_seconds,
                well_within_seconds: update.well_within_seconds,
                restart: update.restart,
                reboot: update.reboot,
                rung: update.rung,
                rehearse: update.rehearse,
                unproved: update.unproved,
            },
            group,
            at_once: request.at_once.unwrap_or(1),
            window: window(request.when, request.lasts_seconds)?,
            silence,
            hosts: hosts.collect::<Result<_, _>>()?,
            called_off: false,
        })
    }

    /// Names all hosts where none were; those that were have to be there.
    fn with_hosts(
        &self,
        mut rollout: Rollout,
        there: &BTreeSet<HostName>,
    ) -> Result<Rollout, RollError> {
        if rollout.hosts.is_empty() {
            // Whoever watches it here sees the others first.
            let others = there.iter().filter(|name| **name != self.member.host);
            let all = others.chain([&self.member.host]);
            rollout.hosts = all.cloned().map(waiting).collect();
            return Ok(rollout);
        }
        let gone = rollout
            .hosts
            .iter()
            .find(|host| !there.contains(&host.name));
        match gone {
            None => Ok(rollout),
            Some(host) => Err(RollError::Refused(format!(
                "{} is no member now; `forebay fleet hosts` lists those that are",
                host.name
            ))),
        }
    }

    /// How it stands.
    ///
    /// # Errors
    /// The coordinator cannot be asked.
    pub(crate) async fn status(&self) -> Result<api::FleetUpdate, Refused> {
        let known = self
            .blocking(|desk| {
                let coordinator = &desk.member.coordinator;
                let (_, rolling) = coordinator.rolling().map_err(RollError::Coordinator)?;
                let there = coordinator.hosts().map_err(RollError::Coordinator)?;
                Ok((rolling, there.into_keys().collect()))
            })
            .await?;
        let (rolling, there): (Rolling, BTreeSet<HostName>) = known;
        Ok(shown::shown(&rolling, &there))
    }

    /// Has no more hosts begin.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn abort(&self) -> Result<String, Refused> {
        let number = self.blocking(|desk| desk.amend(Rolling::call_off)).await?;
        self.wake.notify_one();
        Ok(format!(
            "rolling update {number}: no more hosts begin; those that update come to their end \
             (`forebay update abort` on one of them has it end)"
        ))
    }

    /// Goes on after a stop.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn resume(&self, request: api::RolloutResume) -> Result<String, Refused> {
        let parse = |name: &String| name.parse::<HostName>();
        let without: Result<BTreeSet<HostName>, _> = request.without.iter().map(parse).collect();
        let without =
            without.map_err(|error: HostNameError| Refused::Mistake(error.to_string()))?;
        let number = self
            .blocking(move |desk| desk.amend(|rolling| rolling.resume(&without)))
            .await?;
        self.wake.notify_one();
        Ok(format!("rolling update {number} goes on"))
    }

    /// Frees the slot of a FleetLock client.
    ///
    /// # Errors
    /// It has none.
    pub(crate) async fn release(&self, id: String) -> Result<String, Refused> {
        let said = format!("the slot of {id} is free");
        self.blocking(move |desk| desk.amend(|rolling| rolling.release(&id)))
            .await?;
        Ok(said)
    }

    /// Takes a slot for a FleetLock client. Blocks.
    ///
    /// # Errors
    /// All are held, or the coordinator cannot be asked.
    pub(crate) fn lock(&self, id: &str, group: &str, at_once: u32) -> Result<(), RollError> {
        check_client(id).map_err(RollError::Refused)?;
        self.amend(|rolling| rolling.lock(id, group, at_once, unix_ms()))
    }

    /// Gives the slot of a FleetLock client back, if it has one. Blocks.
    ///
    /// # Errors
    /// The coordinator cannot be asked.
    pub(crate) fn unlock(&self, id: &str) -> Result<(), RollError> {
        check_client(id).map_err(RollError::Refused)?;
        let owner = Owner::Client(id.to_owned());
        self.amend(|rolling| {
            rolling.give_back(&owner);
            Ok(())
        })
    }

    /// Changes what all hosts know, in one transaction. Blocks.
    fn amend<T>(&self, change: impl Fn(&mut Rolling) -> Result<T, String>) -> Result<T, RollError> {
        for _ in 0..CONTENDED_MAX {
            let read = self.member.coordinator.rolling();
            let (seen, mut rolling) = read.map_err(RollError::Coordinator)?;
            let before = rolling.clone();
            let done = change(&mut rolling).map_err(RollError::Refused)?;
            if rolling == before {
                return Ok(done);
            }
            let rolled = self.member.coordinator.roll(seen, &rolling);
            if rolled.map_err(RollError::Coordinator)? {
                return Ok(done);
            }
        }
        Err(RollError::Refused(
            "others keep changing how far the rolling update is; try again".to_owned(),
        ))
    }

    /// Asks the coordinator off this thread.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, RollError> + Send + 'static,
    ) -> Result<T, Refused> {
        let desk = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&desk)).await;
        let done = done.map_err(|_| {
            Refused::Cannot("asking the fleet panicked; see the daemon's log".to_owned())
        })?;
        Ok(done?)
    }
}

fn waiting(name: HostName) -> Host {
    Host {
        name,
        attempt: 1,
        standing: Standing::Waits,
    }
}

/// The window that was asked for, if one was.
fn window(when: Option<String>, lasts_seconds: Option<u64>) -> Result<Option<Window>, Refused> {
    let (when, lasts) = match (when, lasts_seconds) {
        (None, None) => return Ok(None),
        (Some(when), Some(lasts)) => (when, Duration::from_secs(lasts)),
        (Some(_), None) | (None, Some(_)) => {
            return Err(Refused::Mistake(
                "a window has a time and a length: give both --when and --for, or none of them"
                    .to_owned(),
            ));
        }
    };
    if !(WINDOW_MIN..=WINDOW_MAX).contains(&lasts) {
        return Err(Refused::Mistake(format!(
            "a window of {} s: use {} to {}",
            lasts.as_secs(),
            WINDOW_MIN.as_secs(),
            WINDOW_MAX.as_secs()
        )));
    }
    let parsed =
        schedule(&when).map_err(|why| Refused::Mistake(format!("window {when}: {why}")))?;
    if parsed.next_after(now()).is_none() {
        return Err(Refused::Mistake(format!(
            "window {when}: it never opens; give a time that is to come"
        )));
    }
    Ok(Some(Window { when, lasts }))
}

fn schedule(when: &str) -> Result<Schedule, String> {
    let files = ZoneFiles::new(std::path::Path::new("/"));
    let zones = Zones {
        local: &files.local(),
        named: &|name| files.named(name),
    };
    Schedule::parse(when, zones).map_err(|error| error.to_string())
}

/// The time by this host's clock.
fn now() -> Timestamp {
    let ms = i64::try_from(unix_ms()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
}

/// Whether hosts may begin now; one whose time this host cannot read stays closed.
fn open_now(rollout: &Rollout) -> Opening {
    let Some(window) = &rollout.window else {
        return Opening::Open;
    };
    match schedule(&window.when) {
        Ok(schedule) => opening(&schedule, window.lasts, now()),
        Err(why) => {
            tracing::error!(
                why,
                when = window.when,
                "this host does not begin its update"
            );
            Opening::Closed(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_has_a_time_that_comes_and_a_length() {
        let check = |when: Option<&str>, lasts: Option<u64>, expected: &str| {
            let found = window(when.map(str::to_owned), lasts);
            match found {
                Ok(found) => assert_eq!(found.is_some(), expected == "ok", "{found:?}"),
                Err(Refused::Mistake(why) | Refused::Cannot(why)) => {
                    assert!(why.contains(expected), "{why}");
                }
            }
        };
        check(None, None, "none");
        check(Some("Sat 02:00"), Some(14400), "ok");
        check(Some("0 2 * * 6"), Some(14400), "ok");
        check(Some("Sat 02:00"), None, "both --when and --for");
        check(None, Some(60), "both --when and --for");
        check(Some("Sat 02:00"), Some(59), "use 60 to");
        check(Some("Sut 02:00"), Some(60), "window Sut 02:00");
        check(Some("2001-01-01"), Some(60), "never opens");
    }
}
