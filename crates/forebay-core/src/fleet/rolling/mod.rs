//! Rolling updates: how many hosts of a fleet may be away at once, and which one is next.
//!
//! # Problem
//! Hosts are updated one after the other. No more than a few may be away at once, whoever else updates some
//! of them; nothing goes on after the first one that is not well; and no host is needed for the others to go
//! on, since each of them may die, the one included at which somebody typed the command.
//!
//! # Approach
//! One value, [`Rolling`], which hosts change by transactions: each reads it, changes it by a rule of this
//! module, and puts it back if nobody was faster. It has the holders of slots, which are a counting semaphore
//! with owners, and the rollout that is under way. There is nobody who leads: each host looks whether it is
//! its turn, takes a slot in the same transaction that says so, and carries out its own update.
//!
//! ```text
//!   waits ──take──▶ updates ──▶ updated        slot: held from `take` until the host says how it ended
//!                    │    ▲ └──▶ failed        failed: nobody begins any more
//!          no beat   ▼    │ it is back
//!                    silent                    silent: nobody begins, and its slot stays held
//! ```
//!
//! A host that updates says so again and again: its beat counts up. Who looks on measures by its own clock
//! how long a beat stood still, so that no clocks are compared.
//!
//! # Properties
//! - The holders of a group are never more than whoever takes a slot allows for.
//! - Taking is recursive: whoever holds a slot takes no second one, and gives it back once.
//! - After a host failed, or fell silent, no host of the rollout begins, and no other client of its group
//!   gets a slot, until somebody has decided.
//! - A host begins once for each attempt: [`Rollout::key`] names it for ever.
//!
//! The tests run hosts that die at any moment, in any order, from seeds.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::HostName;
use crate::app::is_name;
use crate::calendar::Schedule;

/// Hosts of one rollout.
pub const HOSTS_MAX: usize = 1024;
/// Holders of slots, all groups together.
pub const HOLDERS_MAX: usize = 256;
/// Hosts that may be away at once.
pub const AT_ONCE_MAX: u32 = 64;
/// Of a text that a host says of itself, in bytes.
pub const SAID_MAX: usize = 512;
/// The group of whoever names none.
pub const GROUP: &str = "default";
/// What an identity may be long.
const CLIENT_BYTES_MAX: usize = 128;
/// A beat comes so many times before a host counts as silent.
const BEATS: u32 = 8;

/// Who holds a slot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// A host of this fleet, for a rollout.
    Host(HostName),
    /// Somebody who speaks FleetLock, by the identity that it gave.
    Client(String),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => write!(f, "{host}"),
            Self::Client(id) => write!(f, "the FleetLock client {id}"),
        }
    }
}

/// A slot that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// By whom.
    pub owner: Owner,
    /// Slots of one group are counted together.
    pub group: String,
    /// Since when, in milliseconds since 1970, for people.
    pub since_unix_ms: u64,
}

/// What each host is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// What updates: a program and its arguments.
    pub command: Vec<String>,
    /// Where it runs; `/` when absent.
    pub directory: Option<String>,
    /// What undoes it.
    pub rollback: Option<Vec<String>>,
    /// How long it may take on one host, in seconds.
    pub limit_seconds: Option<u64>,
    /// How long apps of one host may take to be well afterwards, in seconds. Not there where nobody says so, as
    /// `rehearse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub well_within_seconds: Option<u64>,
    /// Apps that are restarted where they are.
    pub restart: Vec<String>,
    /// It is complete only after the host began anew.
    pub reboot: bool,
    /// The way that it is to go.
    pub rung: Option<String>,
    /// Whether the kernel that comes is rehearsed. Not there where nobody says so: hosts of before do not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearse: Option<String>,
    /// It goes on where isolation could not be shown.
    pub unproved: bool,
}

/// When hosts may begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// When it opens, as a timer or a crontab has it.
    pub when: String,
    /// How long it is open.
    pub lasts: Duration,
}

/// Whether a window is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// It is.
    Open,
    /// It opens then, if ever.
    Closed(Option<Timestamp>),
}

/// Whether a window that opens by a schedule is open at `now`.
#[must_use]
pub fn opening(schedule: &Schedule, lasts: Duration, now: Timestamp) -> Opening {
    let tick = Duration::from_nanos(1);
    let since = now.checked_sub(lasts).and_then(|at| at.checked_add(tick));
    let until = now.checked_add(tick);
    if let (Ok(since), Ok(until)) = (since, until)
        && schedule.within(since..until).next().is_some()
    {
        return Opening::Open;
    }
    Opening::Closed(schedule.next_after(now))
}

/// How far one host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Standing {
    /// It has not begun.
    Waits,
    /// It has a slot, and updates.
    Updates {
        /// Counts up while it lives.
        beat: u64,
        /// How far it is.
        stage: String,
        /// What it does, or what somebody has to do.
        next: String,
    },
    /// It has a slot, and nothing was heard of it for too long.
    Silent {
        /// The last that was.
        beat: u64,
    },
    /// It is updated, and well.
    Updated,
    /// It is not.
    Failed {
        /// Why.
        why: String,
    },
}

/// One host of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// Counts from 1; one more each time it is tried again.
    pub attempt: u32,
    /// How far it is.
    pub standing: Standing,
}

/// An update of several hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Counts from 1.
    pub number: u64,
    /// When it was asked for, in milliseconds since 1970.
    pub began_unix_ms: u64,
    /// Where.
    pub by: HostName,
    /// What each host does.
    pub wanted: Wanted,
    /// The group of its slots.
    pub group: String,
    /// Hosts of the group that may be away at once, this rollout's or not.
    pub at_once: u32,
    /// When hosts may begin; always if absent.
    pub window: Option<Window>,
    /// A host that says nothing for so long counts as lost.
    pub silence: Duration,
    /// In the order in which they begin.
    pub hosts: Vec<Host>,
    /// Nobody begins any more.
    pub called_off: bool,
}

/// How far a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Hosts begin when it is their turn.
    Going,
    /// A host is not well or silent: somebody has to decide.
    Stopped,
    /// Nobody begins any more; those that did come to their end.
    Ending,
    /// It was called off, and nobody updates.
    CalledOff,
    /// All hosts are updated.
    Complete,
}

/// What a host is to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Nothing: it is not concerned, or done.
    Nothing,
    /// It waits for something.
    Wait(Wait),
    /// Take a slot, and begin.
    Take,
    /// Go on with its own update: it has a slot.
    CarryOn,
}

/// What a host waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// Somebody has to decide.
    Decision,
    /// This host comes before it.
    Behind(HostName),
    /// Those who hold slots.
    Slot(Vec<Owner>),
    /// The window opens then.
    Window(Option<Timestamp>),
}

impl Rollout {
    /// How far it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let any = |is: fn(&Standing) -> bool| self.hosts.iter().any(|host| is(&host.standing));
        let is_away =
            |one: &Standing| matches!(one, Standing::Updates { .. } | Standing::Silent { .. });
        let is_updated = |host: &Host| host.standing == Standing::Updated;
        // The last host of one that was called off may be left out, too.
        if !self.hosts.is_empty() && self.hosts.iter().all(is_updated) {
            Phase::Complete
        } else if self.called_off && any(is_away) {
            Phase::Ending
        } else if self.called_off {
            Phase::CalledOff
        } else if any(|one| matches!(one, Standing::Failed { .. } | Standing::Silent { .. })) {
            Phase::Stopped
        } else {
            Phase::Going
        }
    }

    /// Whether another one may begin.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase(), Phase::Complete | Phase::CalledOff)
    }

    /// What names one host's attempt for ever, also where numbers begin anew.
    #[must_use]
    pub fn key(&self, attempt: u32) -> String {
        format!("{}.{}.{attempt}", self.number, self.began_unix_ms)
    }

    /// How often a host that updates says so.
    #[must_use]
    pub fn beat_every(&self) -> Duration {
        self.silence / BEATS
    }

    /// One of its hosts.
    #[must_use]
    pub fn host(&self, name: &HostName) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name == *name)
    }

    /// How many hosts wait before this one; none where it does not wait.
    #[must_use]
    pub fn place(&self, name: &HostName) -> Option<usize> {
        let mut waiting = self
            .hosts
            .iter()
            .filter(|host| host.standing == Standing::Waits);
        waiting.position(|host| host.name == *name)
    }

    fn host_mut(&mut self, name: &HostName) -> Option<&mut Host> {
        self.hosts.iter_mut().find(|host| host.name == *name)
    }
}

/// What the hosts of a fleet know together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rolling {
    /// Who is away, or may be.
    pub holders: Vec<Holder>,
    /// The one under way, or the last.
    pub rollout: Option<Rollout>,
    /// Rollouts so far.
    pub rollouts: u64,
}

/// Why something is not done: what is there instead, and what to do.
pub type Refused = String;

/// Checks the name of a group, as FleetLock has them.
///
/// # Errors
/// What is wrong with it.
pub fn check_group(group: &str) -> Result<(), Refused> {
    match is_name(group) {
        true => Ok(()),
        false => Err(format!(
            "`{group}` is not a group: use 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or \
             digit"
        )),
    }
}

/// Checks the identity of a FleetLock client.
///
/// # Errors
/// What is wrong with it.
pub fn check_client(id: &str) -> Result<(), Refused> {
    let right =
        !id.is_empty() && id.len() <= CLIENT_BYTES_MAX && id.bytes().all(|b| b.is_ascii_graphic());
    match right {
        true => Ok(()),
        false => Err(format!(
            "the identity is not 1 to {CLIENT_BYTES_MAX} visible characters of ASCII"
        )),
    }
}

/// A text of bounded length.
#[must_use]
pub fn said(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(SAID_MAX));
    text
}

impl Rolling {
    /// Begins a rollout; its number.
    ///
    /// # Errors
    /// Another one is under way, or it makes no sense.
    pub fn begin(&mut self, mut rollout: Rollout) -> Result<u64, Refused> {
        if let Some(old) = self.rollout.as_ref().filter(|old| !old.is_over()) {
            return Err(format!(
                "rolling update {} is under way: there is one at a time; `forebay update fleet status` shows it, \
                 `forebay update fleet abort` has no more hosts begin",
                old.number
            ));
        }
        check_group(&rollout.group)?;
        if rollout.hosts.is_empty() || rollout.hosts.len() > HOSTS_MAX {
            return Err(format!(
                "{} hosts: name 1 to {HOSTS_MAX}",
                rollout.hosts.len()
            ));
        }
        let names: BTreeSet<&HostName> = rollout.hosts.iter().map(|host| &host.name).collect();
        if names.len() != rollout.hosts.len() {
            return Err("a host is named twice: name each once".to_owned());
        }
        if !(1..=AT_ONCE_MAX).contains(&rollout.at_once) {
            return Err(format!(
                "{} hosts at once: use 1 to {AT_ONCE_MAX}",
                rollout.at_once
            ));
        }
        self.rollouts += 1;
        rollout.number = self.rollouts;
        self.rollout = Some(rollout);
        Ok(self.rollouts)
    }

    fn of_group<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a Holder> {
        self.holders.iter().filter(move |one| one.group == group)
    }

    fn holds(&self, owner: &Owner) -> bool {
        self.holders.iter().any(|one| one.owner == *owner)
    }

    /// What a host is to do now. `members` are those that are there; `opening` is of the window.
    #[must_use]
    pub fn turn(&self, here: &HostName, members: &BTreeSet<HostName>, opening: Opening) -> Turn {
        let Some(rollout) = &self.rollout else {
            return Turn::Nothing;
        };
        let Some(host) = rollout.host(here) else {
            return Turn::Nothing;
        };
        match host.standing {
            Standing::Waits => {}
            Standing::Updates { .. } | Standing::Silent { .. } => return Turn::CarryOn,
            Standing::Updated | Standing::Failed { .. } => return Turn::Nothing,
        }
        match rollout.phase() {
            Phase::Going => {}
            Phase::Stopped => return Turn::Wait(Wait::Decision),
            Phase::Ending | Phase::CalledOff | Phase::Complete => return Turn::Nothing,
        }
        // One that is not there begins when it is back.
        let waits = |one: &&Host| one.standing == Standing::Waits && members.contains(&one.name);
        let first = rollout.hosts.iter().find(waits);
        if let Some(first) = first.filter(|first| first.name != *here) {
            let before = |name: &HostName| rollout.hosts.iter().position(|one| one.name == *name);
            if before(&first.name) < before(here) {
                return Turn::Wait(Wait::Behind(first.name.clone()));
            }
        }
        if let Opening::Closed(next) = opening {
            return Turn::Wait(Wait::Window(next));
        }
        let owner = Owner::Host(here.clone());
        match self.room(&owner, &rollout.group, rollout.at_once) {
            Ok(()) => Turn::Take,
            Err(holders) => Turn::Wait(Wait::Slot(holders)),
        }
    }

    /// Whether there is a slot for somebody, or who has them.
    fn room(&self, owner: &Owner, group: &str, at_once: u32) -> Result<(), Vec<Owner>> {
        let held = self.of_group(group).filter(|one| one.owner != *owner);
        let holders: Vec<Owner> = held.map(|one| one.owner.clone()).collect();
        match holders.len() < usize::try_from(at_once).unwrap_or(usize::MAX) {
            true => Ok(()),
            false => Err(holders),
        }
    }

    /// Takes a slot for a host whose [`turn`](Self::turn) it is, and has it update.
    ///
    /// # Errors
    /// It is not its turn.
    pub fn take(
        &mut self,
        here: &HostName,
        members: &BTreeSet<HostName>,
        opening: Opening,
        now_unix_ms: u64,
    ) -> Result<(), Turn> {
        let turn = self.turn(here, members, opening);
        if turn != Turn::Take {
            return Err(turn);
        }
        let Some(rollout) = &mut self.rollout else {
            return Err(turn);
        };
        let group = rollout.group.clone();
        if let Some(host) = rollout.host_mut(here) {
            host.standing = Standing::Updates {
                beat: 0,
                stage: "begins".to_owned(),
                next: String::new(),
            };
        }
        self.hold(Owner::Host(here.clone()), group, now_unix_ms);
        Ok(())
    }

    fn hold(&mut self, owner: Owner, group: String, since_unix_ms: u64) {
        if !self.holds(&owner) {
            self.holders.push(Holder {
                owner,
                group,
                since_unix_ms,
            });
        }
    }

    /// Says that a host updates, and how far it is; it may have been silent.
    pub fn beat(&mut self, here: &HostName, stage: &str, next: &str) {
        let host = self.rollout.as_mut().and_then(|one| one.host_mut(here));
        if let Some(host) = host
            && let Standing::Updates { beat, .. } | Standing::Silent { beat } = host.standing
        {
            host.standing = Standing::Updates {
                beat: beat + 1,
                stage: said(stage.to_owned()),
                next: said(next.to_owned()),
            };
        }
    }

    /// Says how a host's update ended, and gives its slot back. One that was decided about meanwhile stays
    /// as it was decided.
    pub fn ended(&mut self, here: &HostName, how: Result<(), String>) {
        let host = self.rollout.as_mut().and_then(|one| one.host_mut(here));
        if let Some(host) = host
            && let Standing::Updates { .. } | Standing::Silent { .. } = host.standing
        {
            host.standing = match how {
                Ok(()) => Standing::Updated,
                Err(why) => Standing::Failed { why: said(why) },
            };
        }
        self.give_back(&Owner::Host(here.clone()));
    }

    /// Notes that nothing was heard of a host since this beat.
    pub fn silent(&mut self, name: &HostName, since: u64) {
        let host = self.rollout.as_mut().and_then(|one| one.host_mut(name));
        if let Some(host) = host
            && let Standing::Updates { beat, .. } = host.standing
            && beat == since
        {
            host.standing = Standing::Silent { beat };
        }
    }

    /// Takes a slot for somebody who speaks FleetLock.
    ///
    /// # Errors
    /// All are held, or its group is stopped: by whom, and what to do.
    pub fn lock(
        &mut self,
        id: &str,
        group: &str,
        at_once: u32,
        now_unix_ms: u64,
    ) -> Result<(), Refused> {
        let owner = Owner::Client(id.to_owned());
        if self.of_group(group).any(|one| one.owner == owner) {
            return Ok(());
        }
        if self.holds(&owner) {
            return Err(format!(
                "{owner} holds a slot of another group: give that back first"
            ));
        }
        let stopped = self
            .rollout
            .as_ref()
            .filter(|rollout| rollout.group == group && rollout.phase() == Phase::Stopped);
        if let Some(rollout) = stopped {
            return Err(format!(
                "rolling update {} of the group {group} has stopped: a host is not well; `forebay update fleet \
                 status` says which",
                rollout.number
            ));
        }
        if self.holders.len() >= HOLDERS_MAX {
            return Err(format!(
                "{HOLDERS_MAX} slots are held, more than are kept: `forebay update fleet status` lists them, \
                 `forebay update fleet release ID` frees one"
            ));
        }
        self.room(&owner, group, at_once).map_err(|holders| {
            let names: Vec<String> = holders.iter().map(ToString::to_string).collect();
            format!(
                "all {at_once} slots of the group {group} are held, by {}: wait for them",
                names.join(", ")
            )
        })?;
        self.hold(owner, group.to_owned(), now_unix_ms);
        Ok(())
    }

    /// Gives a slot back, if it is held; whether it was.
    pub fn give_back(&mut self, owner: &Owner) -> bool {
        let before = self.holders.len();
        self.holders.retain(|one| one.owner != *owner);
        self.holders.len() < before
    }

    /// Frees the slot of a client that does not come back.
    ///
    /// # Errors
    /// It has none.
    pub fn release(&mut self, id: &str) -> Result<(), Refused> {
        match self.give_back(&Owner::Client(id.to_owned())) {
            true => Ok(()),
            false => Err(format!(
                "no FleetLock client {id} holds a slot; `forebay update fleet status` lists who does"
            )),
        }
    }

    fn under_way(&mut self) -> Result<&mut Rollout, Refused> {
        let rollout = self.rollout.as_mut().filter(|rollout| !rollout.is_over());
        rollout.ok_or_else(|| {
            "no rolling update is under way; `forebay update fleet run -- COMMAND` begins one"
                .to_owned()
        })
    }

    /// Has no more hosts begin; its number.
    ///
    /// # Errors
    /// None is under way.
    pub fn call_off(&mut self) -> Result<u64, Refused> {
        let rollout = self.under_way()?;
        rollout.called_off = true;
        Ok(rollout.number)
    }

    /// Goes on after a stop: hosts that failed are tried again, those of `without` are left out. Where it was
    /// called off, hosts of which nothing is heard can be left out, and nothing else: they would else be
    /// waited for. Its number.
    ///
    /// # Errors
    /// None is under way, or it has not stopped, or a host is silent that is not left out.
    pub fn resume(&mut self, without: &BTreeSet<HostName>) -> Result<u64, Refused> {
        let rollout = self.under_way()?;
        let is_silent = |name: &HostName| {
            let host = rollout.host(name);
            host.is_some_and(|host| matches!(host.standing, Standing::Silent { .. }))
        };
        if rollout.called_off && (without.is_empty() || !without.iter().all(is_silent)) {
            return Err(format!(
                "rolling update {} was called off: hosts that update come to their end; then begin another. One \
                 that is silent and does not come back is left out with `--without HOST`",
                rollout.number
            ));
        }
        if let Some(unknown) = without.iter().find(|name| rollout.host(name).is_none()) {
            return Err(format!(
                "{unknown} has no part in rolling update {}: name those that `forebay update fleet status` lists",
                rollout.number
            ));
        }
        let stays = |host: &&Host| !without.contains(&host.name);
        let mut silent = rollout.hosts.iter().filter(stays);
        let silent = silent.find(|host| matches!(host.standing, Standing::Silent { .. }));
        if let Some(host) = silent.filter(|_| !rollout.called_off) {
            let name = &host.name;
            return Err(format!(
                "nothing is heard of {name}, and it goes on by itself once it is back; leave it out with \
                 `--without {name}` where it does not come back"
            ));
        }
        let updates = |host: &&Host| matches!(host.standing, Standing::Updates { .. });
        if let Some(host) = rollout
            .hosts
            .iter()
            .filter(|host| !stays(host))
            .find(updates)
        {
            return Err(format!(
                "{} updates now: `forebay update abort` on it has it end",
                host.name
            ));
        }
        if without.is_empty() && rollout.phase() == Phase::Going {
            return Err(format!(
                "rolling update {} has not stopped, and goes on by itself; `forebay update fleet status` shows it",
                rollout.number
            ));
        }
        if !rollout.called_off && rollout.hosts.iter().all(|host| !stays(&host)) {
            return Err("no host would be left: `forebay update fleet abort` ends it".to_owned());
        }
        rollout.hosts.retain(|host| !without.contains(&host.name));
        let again = !rollout.called_off;
        for host in rollout.hosts.iter_mut().filter(|_| again) {
            if let Standing::Failed { .. } = host.standing {
                host.standing = Standing::Waits;
                host.attempt += 1;
            }
        }
        let number = rollout.number;
        self.holders
            .retain(|one| !matches!(&one.owner, Owner::Host(name) if without.contains(name)));
        Ok(number)
    }
}

/// Who looks on: since when each beat stands still, by a clock of its own.
#[derive(Debug, Clone, Default)]
pub struct Ears {
    heard: BTreeMap<HostName, (String, u64, Duration)>,
}

impl Ears {
    /// Takes in what is known at `now`, which never goes back. Hosts that have been silent for too long, with
    /// their last beat.
    pub fn hear(&mut self, rolling: &Rolling, now: Duration) -> Vec<(HostName, u64)> {
        let Some(rollout) = &rolling.rollout else {
            self.heard.clear();
            return Vec::new();
        };
        let mut heard = BTreeMap::new();
        let mut silent = Vec::new();
        for host in &rollout.hosts {
            let Standing::Updates { beat, .. } = host.standing else {
                continue;
            };
            let key = rollout.key(host.attempt);
            let before = self.heard.get(&host.name);
            let same = before.filter(|(of, last, _)| *of == key && *last == beat);
            let since = same.map_or(now, |(_, _, since)| *since);
            if now.saturating_sub(since) >= rollout.silence {
                silent.push((host.name.clone(), beat));
            }
            heard.insert(host.name.clone(), (key, beat, since));
        }
        self.heard = heard;
        silent
    }
}
