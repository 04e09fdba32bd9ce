//! The apps whose groups somebody else owns: found, written to, listened to, put back.
//!
//! A setting goes three ways through [`LinuxHost`]: it is queued when it is prepared; what the
//! manager will be asked for is written to the ledger with all else of the batch; and it is sent
//! when the batch is over. It is pending until the answer was heard, and checked against the
//! group's files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use forebay_core::app::{App, AppId, Ceiling};
use forebay_core::slice::{Knob, Setting};
use forebay_core::snapshot::AppSample;

use super::book::{Note, Original, Spot};
use super::link::{Heard, Link, Task, Written};
use super::{Addresses, Held, Kind, Object, Value, Values, of_binding};
use crate::apply::Refusal;
use crate::error::HostError;
use crate::host::{Group, LinuxHost};
use crate::knobs;
use crate::ledger::Record;
use crate::mounts::Version;
use crate::observe::read_knob;
use crate::restore::Report;

/// Periods between two looks at a thing whose group is not there.
const LOOK_EVERY: u64 = 10;
/// Periods between two looks at one whose group is there.
const LOOK_AGAIN_EVERY: u64 = 50;
/// How long a release waits for its manager within a period; a later one goes on.
const RELEASE_PATIENCE: Duration = Duration::from_millis(20);

/// The managers, and what they are asked.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    addresses: Addresses,
    links: BTreeMap<Kind, Link>,
    /// Apps that are being put back, and how that ended.
    returning: BTreeMap<AppId, Option<Report>>,
    /// What is sent once the ledger is synced.
    ready: BTreeMap<AppId, Ready>,
}

/// What one app's manager is going to be asked for.
#[derive(Debug)]
struct Ready {
    kind: Kind,
    task: Task,
    settings: BTreeMap<Knob, Setting>,
}

/// What is known of one app whose group somebody else owns.
#[derive(Debug)]
pub(crate) struct Owned {
    pub(super) kind: Kind,
    /// What the configuration calls it.
    name: String,
    pub(crate) held: Option<Held>,
    /// Whether it is being looked at.
    asked: bool,
    /// What it was before is being put back.
    pub(super) is_leaving: bool,
    /// What is awaited was asked before the group was lost, and says nothing of it now.
    lost: bool,
    /// The app's own limits.
    pub(super) ceiling: Ceiling,
    /// Why it could not be, last time.
    trouble: Option<String>,
    /// What is to be asked for in this batch.
    queued: BTreeMap<Knob, Setting>,
    /// What was asked for and not answered.
    sent: BTreeMap<Knob, Setting>,
    /// What was answered and not asked about again.
    heard: BTreeMap<Knob, (Setting, Result<(), String>)>,
    /// What somebody else set, and was not told yet.
    foreign: BTreeMap<Knob, String>,
    /// Knobs of which it was told that somebody else wrote them: whoever asks for one of these
    /// has decided to write over that.
    told: BTreeSet<Knob>,
}

/// A unit has one property for both.
#[derive(Debug, Clone, Copy)]
struct Weights {
    weight: Option<u32>,
    idle: bool,
}

impl Owners {
    pub(crate) fn new(addresses: Addresses) -> Self {
        Self {
            addresses,
            ..Self::default()
        }
    }

    pub(super) fn ask(&mut self, kind: Kind, app: &AppId, task: Task) -> Result<bool, HostError> {
        if !self.links.contains_key(&kind) {
            let link = Link::open(kind, self.addresses.of(kind))?;
            self.links.insert(kind, link);
        }
        let link = self.links.get(&kind);
        Ok(link.is_some_and(|link| link.ask(app.clone(), task)))
    }

    /// The next answer of any manager, waiting for it until `deadline`.
    fn next(&mut self, deadline: Instant) -> Option<(AppId, Heard)> {
        self.links.values().find_map(|link| link.hear(deadline))
    }
}

impl Owned {
    pub(crate) fn of(app: &App) -> Option<Self> {
        let (kind, name) = of_binding(&app.binding)?;
        Some(Self {
            kind,
            name: name.to_owned(),
            held: None,
            asked: false,
            is_leaving: false,
            lost: false,
            ceiling: app.ceiling,
            trouble: None,
            queued: BTreeMap::new(),
            sent: BTreeMap::new(),
            heard: BTreeMap::new(),
            foreign: BTreeMap::new(),
            told: BTreeSet::new(),
        })
    }

    pub(crate) fn is_of(&self, app: &App) -> bool {
        of_binding(&app.binding) == Some((self.kind, &self.name))
    }

    /// The group, when it has one.
    pub(crate) fn group(&self) -> Option<PathBuf> {
        self.held.as_ref()?.group.clone()
    }

    /// Whether an answer is awaited that changes this knob.
    fn is_writing(&self, knob: Knob) -> bool {
        let own = self.kind.properties(knob);
        let shares = |other: &Knob| {
            let properties = self.kind.properties(*other);
            properties.iter().any(|property| own.contains(property))
        };
        self.sent.keys().any(shares)
    }

    /// A group that is there again may be half made: the manager makes it first and fills it then.
    /// Once it answers what is asked from now on, both are done.
    pub(crate) fn lose_group(&mut self) {
        self.heard.clear();
        self.held = None;
        self.lost = self.asked || !self.sent.is_empty();
    }

    pub(super) fn object(&self, held: &Held) -> Object {
        Object {
            owner: self.kind,
            address: held.at.clone(),
            name: held.name.clone(),
        }
    }

    /// What to ask for so that everything queued is in force.
    fn wanted(&self, held: &Held, weights: Weights, cpu: Version) -> Values {
        let mut values = Values::new();
        let mut now = held.values.clone();
        for setting in self.queued.values() {
            for (property, value) in self.kind.values(setting, &now, cpu) {
                now.insert(property.clone(), value.clone());
                values.insert(property, value);
            }
        }
        if self.queued.contains_key(&Knob::CpuIdle) || self.queued.contains_key(&Knob::CpuWeight) {
            let weight = match (weights.idle, weights.weight) {
                (true, _) => Setting::CpuIdle(true),
                (false, Some(weight)) => Setting::CpuWeight(weight),
                (false, None) => return self.without_weight(values, held),
            };
            values.extend(self.kind.values(&weight, &now, cpu));
        }
        values
    }

    /// No longer idle, and no weight was ever asked for: what it would have by itself.
    fn without_weight(&self, mut values: Values, held: &Held) -> Values {
        for property in self.kind.properties(Knob::CpuWeight) {
            let before = held.values.get(property).cloned();
            let unset = Value::Number(u64::MAX);
            let value = before.filter(|value| *value != Value::Number(0));
            values.insert(property.to_owned(), value.unwrap_or(unset));
        }
        values
    }

    /// The properties that are asked for although somebody else set them.
    fn written_over(&mut self) -> BTreeSet<&'static str> {
        let (queued, kind) = (&self.queued, self.kind);
        let asked: Vec<Knob> = queued
            .keys()
            .filter(|knob| self.told.contains(knob))
            .copied()
            .collect();
        self.told.retain(|knob| !asked.contains(knob));
        asked
            .into_iter()
            .flat_map(|knob| kind.properties(knob))
            .collect()
    }

    /// The knobs that these properties are, among those given.
    fn knobs_of(&self, properties: &Values, knobs: &BTreeMap<Knob, Setting>) -> Vec<Knob> {
        let touches = |knob: &&Knob| {
            let own = self.kind.properties(**knob);
            own.iter()
                .any(|property| properties.contains_key(*property))
        };
        knobs.keys().filter(touches).copied().collect()
    }
}

impl LinuxHost {
    /// Whether somebody else owns an app's group.
    pub(crate) fn is_owned(&self, app: &AppId) -> bool {
        self.entries
            .get(app)
            .is_some_and(|entry| entry.owned.is_some())
    }

    /// Whether somebody else owns an app's group and is asked to write this knob.
    pub(crate) fn asks_owner(&self, app: &AppId, knob: Knob) -> bool {
        let owned = self.entries.get(app).and_then(|e| e.owned.as_ref());
        owned.is_some_and(|owned| {
            let held = owned.held.as_ref();
            !held.is_some_and(|held| held.direct.contains(&knob.of_any_device()))
        })
    }

    /// Takes in what the managers answered.
    pub(crate) fn hear_owners(&mut self) {
        let now = Instant::now();
        while let Some((app, heard)) = self.owners.next(now) {
            self.take_answer(&app, heard);
        }
    }

    fn take_answer(&mut self, app: &AppId, heard: Heard) {
        match heard {
            Heard::PutBack(report) => {
                self.owners.returning.insert(app.clone(), Some(report));
            }
            Heard::Left(objects, report) => self.take_left(app, objects, &report),
            Heard::Seen(seen) => self.take_look(app, seen),
            Heard::Written(written) => self.take_written(app, written),
        }
    }

    fn take_look(&mut self, app: &AppId, seen: Result<Held, HostError>) {
        let Some(owned) = self.entries.get_mut(app).and_then(|e| e.owned.as_mut()) else {
            return;
        };
        owned.asked = false;
        if std::mem::take(&mut owned.lost) {
            return;
        }
        match seen {
            Ok(held) => {
                owned.trouble = None;
                match self.overlap(app, &held) {
                    None => self.take_held(app, held),
                    Some(trouble) => self.refuse_held(app, trouble),
                }
            }
            Err(error) => {
                // While a manager is away, what it made goes on being observed.
                if error.is_gone() {
                    owned.held = None;
                }
                owned.trouble = Some(error.explain());
            }
        }
    }

    /// Why a group cannot be this app's, when it cannot.
    fn overlap(&self, app: &AppId, held: &Held) -> Option<String> {
        let group = held.group.as_ref()?;
        let (name, place) = (&held.name, group.display());
        let both = |other: &PathBuf| other.starts_with(group) || group.starts_with(other);
        let others = self.entries.iter().filter(|(id, _)| *id != app);
        let mut bound = others.filter_map(|(id, entry)| Some((id, entry.bound.as_ref()?)));
        if let Some((other, path)) = bound.find(|(_, path)| both(path)) {
            return Some(format!(
                "{app}: {name} has the control group {place}, and app {other} has {}: processes \
                 would belong to both; give each app processes of its own",
                path.display()
            ));
        }
        let is_home = |dir: &PathBuf| {
            let hierarchies = self.hierarchies.list().iter();
            hierarchies
                .map(|hierarchy| hierarchy.dir(group))
                .any(|own| dir.starts_with(own))
        };
        self.ledger.state().home.iter().any(is_home).then(|| {
            format!(
                "{app}: {name} has the control group {place}, in which Forebay itself runs; name \
                 a unit without it"
            )
        })
    }

    /// Leaves an app alone that cannot be had.
    fn refuse_held(&mut self, app: &AppId, trouble: String) {
        if let Some(owned) = self.entries.get_mut(app).and_then(|e| e.owned.as_mut()) {
            owned.held = None;
            owned.trouble = Some(trouble);
        }
    }

    fn take_held(&mut self, app: &AppId, held: Held) {
        self.leave_others(app, &held);
        if let Some(owned) = self.entries.get_mut(app).and_then(|e| e.owned.as_mut()) {
            owned.held = Some(held);
        }
        self.withhold(app);
    }

    fn take_written(&mut self, app: &AppId, written: Written) {
        let Some(owned) = self.entries.get_mut(app).and_then(|e| e.owned.as_mut()) else {
            return;
        };
        let sent = std::mem::take(&mut owned.sent);
        let lost = std::mem::take(&mut owned.lost);
        match written {
            Written::Done(held) if lost => {
                if let Err(error) = self.note_made(app, &sent, &held) {
                    tracing::warn!(%app, reason = error.explain(), "not recorded");
                }
            }
            _ if lost => {}
            Written::Done(held) => self.take_done(app, &sent, held),
            Written::Foreign(values) => {
                for (property, value) in values {
                    let one = [(property.clone(), value.clone())].into();
                    for knob in owned.knobs_of(&one, &sent) {
                        owned.foreign.insert(knob, format!("{property} = {value}"));
                    }
                }
            }
            Written::Failed(error) => {
                if error.is_gone() {
                    owned.held = None;
                    owned.trouble = Some(error.explain());
                }
                for (knob, setting) in sent {
                    let why = format!("{knob} of {app}: {}", error.explain());
                    owned.heard.insert(knob, (setting, Err(why)));
                }
            }
        }
    }

    /// A manager says that it did what it was asked for: sees what came of that.
    fn take_done(&mut self, app: &AppId, sent: &BTreeMap<Knob, Setting>, held: Held) {
        let made = self.note_made(app, sent, &held);
        if let Err(error) = made {
            // A restore would take it for somebody else's and say so.
            tracing::warn!(%app, reason = error.explain(), "not recorded");
        }
        self.take_held(app, held);
        // The manager may have switched controllers on for this.
        let bound = self.entries.get(app).and_then(|entry| entry.bound.clone());
        if let Some(path) = bound {
            let group = self.bound_group(&path);
            if let Some(entry) = self.entries.get_mut(app)
                && entry.group.is_some()
            {
                entry.group = group.map(|group| Group {
                    unreported: false,
                    ..group
                });
            }
        }
        for (knob, setting) in sent {
            let checked = self.check_in_force(app, setting);
            if let Some(owned) = self.entries.get_mut(app).and_then(|e| e.owned.as_mut()) {
                owned.heard.insert(*knob, (*setting, checked));
            }
        }
        // One property for both: what the other file says is ours as well.
        let weights = [Knob::CpuIdle, Knob::CpuWeight];
        if weights.iter().any(|knob| sent.contains_key(knob)) {
            weights.iter().for_each(|knob| self.note_last(app, *knob));
        }
    }

    /// Notes what a manager made of what it was asked for.
    fn note_made(
        &mut self,
        app: &AppId,
        sent: &BTreeMap<Knob, Setting>,
        held: &Held,
    ) -> Result<(), HostError> {
        let Some(owned) = self.entries.get(app).and_then(|e| e.owned.as_ref()) else {
            return Ok(());
        };
        let object = owned.object(held);
        let kind = owned.kind;
        let asked: BTreeSet<&str> = sent
            .keys()
            .flat_map(|knob| kind.properties(*knob))
            .collect();
        let made = held.values.iter();
        for (property, value) in made.filter(|(property, _)| asked.contains(property.as_str())) {
            let spot = Spot {
                object: object.clone(),
                property: property.clone(),
            };
            let book = &self.ledger.state().owned;
            let known = book.mine(app, &spot).iter().any(|mine| mine.means(value));
            if book.is_written(&spot) && !known {
                let value = value.clone();
                self.ledger
                    .append(Record::Owned(Note::Wrote { spot, value }))?;
            }
        }
        Ok(())
    }

    /// Whether the group's files hold what a setting stands for.
    fn check_in_force(&mut self, app: &AppId, setting: &Setting) -> Result<(), String> {
        let knob = setting.knob();
        self.note_last(app, knob);
        let Some(entry) = self.entries.get(app) else {
            return Ok(());
        };
        let (Some(owned), Some(group), Some(way)) =
            (&entry.owned, &entry.group, self.ways.of(knob))
        else {
            return Err(format!("{knob} of {app}: its control group is gone"));
        };
        // An idle group shows no weight of its own.
        if knob == Knob::CpuWeight && entry.idle {
            return Ok(());
        }
        // Its own limit stays where none is wanted, and newer runtimes spread weights otherwise.
        let own_limit = owned.kind.keeps_limits() && setting.is_unlimited();
        if own_limit || owned.kind.approximates(knob, way.version) {
            return Ok(());
        }
        let (kind, name) = (owned.kind, &owned.name);
        let Some((texts, period)) = read_knob(group, knob, way) else {
            return Err(format!(
                "{knob} of {app}: {kind} took it for {name}, and the kernel has no such file in \
                 its control group"
            ));
        };
        let wanted = knobs::texts(setting, way, period);
        if knobs::parse(knob, way, &texts, period) == knobs::parse(knob, way, &wanted, period) {
            return Ok(());
        }
        Err(format!(
            "{knob} of {app}: {kind} took it for {name}, and the control group holds `{}`",
            texts.join(" ")
        ))
    }

    /// Takes what a knob holds for what we made it.
    fn note_last(&mut self, app: &AppId, knob: Knob) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let read = self.ways.of(knob).zip(entry.group.as_ref());
        match read.and_then(|(way, group)| read_knob(group, knob, way)) {
            Some((texts, _)) => entry.last.insert(knob, texts),
            None => entry.last.remove(&knob),
        };
    }

    /// Asks about an app whose group somebody else owns, when that is due.
    pub(crate) fn look_at_owner(&mut self, app: &AppId, turn: u64) {
        let Some(entry) = self.entries.get_mut(app) else {
            return;
        };
        let has_group = entry.group.is_some();
        let Some(owned) = entry.owned.as_mut() else {
            return;
        };
        let every = if has_group {
            LOOK_AGAIN_EVERY
        } else {
            LOOK_EVERY
        };
        let unheard = owned.held.is_none() && owned.trouble.is_none();
        if owned.asked || !owned.sent.is_empty() || !(unheard || turn.is_multiple_of(every)) {
            return;
        }
        let (kind, name) = (owned.kind, owned.name.clone());
        match self.owners.ask(kind, app, Task::LookUp(name)) {
            Ok(asked) => owned.asked = asked,
            Err(error) => owned.trouble = Some(error.explain()),
        }
    }

    /// Adds what is known of an app's owner to what was seen.
    pub(crate) fn tell_of_owner(&mut self, app: &AppId, sample: &mut AppSample) {
        let Some(owned) = self.entries.get_mut(app).and_then(|e| e.owned.as_mut()) else {
            return;
        };
        // What is being written now changes under the eyes of whoever looks.
        sample.foreign.retain(|knob, _| !owned.is_writing(*knob));
        sample.foreign.append(&mut owned.foreign);
        owned.told.extend(sample.foreign.keys());
        sample.troubles.extend(owned.trouble.clone());
    }

    /// Takes a setting up for the manager.
    pub(crate) fn prepare_owned(&mut self, app: &AppId, setting: &Setting) -> Result<(), Refusal> {
        let knob = setting.knob();
        let withheld = self.capabilities.withheld.get(app);
        if withheld.is_some_and(|knobs| knobs.contains(&knob.of_any_device())) {
            return Err(Refusal::Unsupported);
        }
        let Some(entry) = self.entries.get_mut(app) else {
            return Err(Refusal::Unsupported);
        };
        let has_group = entry.group.is_some();
        let Some(owned) = entry.owned.as_mut() else {
            return Err(Refusal::Unsupported);
        };
        if owned.held.is_none() || !has_group {
            let why = owned.trouble.clone();
            let why = why.unwrap_or_else(|| format!("nothing of {} runs", owned.name));
            return Err(Refusal::Failed(format!("{knob} of {app}: {why}")));
        }
        let answered = owned.heard.get(&knob);
        if answered.is_some_and(|(known, _)| known == setting) || !owned.sent.is_empty() {
            return Ok(());
        }
        match setting {
            Setting::CpuIdle(idle) => entry.idle = *idle,
            Setting::CpuWeight(weight) => entry.weight = Some(*weight),
            _ => {}
        }
        owned.heard.remove(&knob);
        owned.queued.insert(knob, *setting);
        Ok(())
    }

    /// Writes to the ledger what the managers are going to be asked for.
    pub(crate) fn announce_owned(&mut self) {
        let queued: BTreeSet<AppId> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.owned.as_ref().is_some_and(|o| !o.queued.is_empty()))
            .map(|(app, _)| app.clone())
            .collect();
        for app in queued {
            match self.announce_app(&app) {
                Ok(ready) => {
                    self.owners.ready.insert(app, ready);
                }
                Err(error) => self.refuse_queued(&app, &error),
            }
        }
    }

    fn announce_app(&mut self, app: &AppId) -> Result<Ready, HostError> {
        let gone = || HostError::missing(format!("write to {app}"), "it is gone");
        let entry = self.entries.get_mut(app).ok_or_else(gone)?;
        let weights = Weights {
            weight: entry.weight,
            idle: entry.idle,
        };
        let owned = entry.owned.as_mut().ok_or_else(gone)?;
        let held = owned.held.clone().ok_or_else(gone)?;
        let object = owned.object(&held);
        let cpu = self.ways.of(Knob::CpuWeight).map(|way| way.version);
        let mut values = owned.wanted(&held, weights, cpu.unwrap_or(Version::V2));
        let kind = owned.kind;
        let over = owned.written_over();
        let settings = std::mem::take(&mut owned.queued);
        if kind.keeps_limits() {
            self.keep_limits(app, &object, &held, &mut values);
            let is_new = |property: &String, value: &mut Value| {
                let now = held.values.get(property);
                over.contains(property.as_str()) || !now.is_some_and(|now| now.means(value))
            };
            values.retain(is_new);
        }
        let mut mine = Vec::new();
        for (property, value) in &values {
            let spot = Spot {
                object: object.clone(),
                property: property.clone(),
            };
            if let Some(before) = held.values.get(property)
                && !self.ledger.state().owned.is_written(&spot)
            {
                self.ledger.append(Record::Owned(Note::Original {
                    app: app.clone(),
                    spot: spot.clone(),
                    original: Original {
                        value: before.clone(),
                        kept: held.kept.contains(property),
                    },
                }))?;
            }
            if !over.contains(property.as_str()) {
                let known = self.ledger.state().owned.mine(app, &spot);
                mine.push((property.clone(), known));
            }
            let value = value.clone();
            self.ledger
                .append(Record::Owned(Note::Wrote { spot, value }))?;
        }
        Ok(Ready {
            kind,
            task: Task::Write {
                name: held.name,
                values,
                mine,
            },
            settings,
        })
    }

    /// Nothing is sent of which the ledger does not know.
    pub(crate) fn refuse_owned(&mut self, error: &HostError) {
        for (app, ready) in std::mem::take(&mut self.owners.ready) {
            if let Some(owned) = self.entries.get_mut(&app).and_then(|e| e.owned.as_mut()) {
                owned.queued = ready.settings;
            }
            self.refuse_queued(&app, error);
        }
    }

    fn refuse_queued(&mut self, app: &AppId, error: &HostError) {
        let Some(owned) = self.entries.get_mut(app).and_then(|e| e.owned.as_mut()) else {
            return;
        };
        for (knob, setting) in std::mem::take(&mut owned.queued) {
            let why = format!("{knob} of {app}: {}", error.explain());
            owned.heard.insert(knob, (setting, Err(why)));
        }
    }

    /// Sends what is in the ledger now.
    pub(crate) fn send_owned(&mut self) {
        for (app, ready) in std::mem::take(&mut self.owners.ready) {
            let asked = self.owners.ask(ready.kind, &app, ready.task);
            let Some(entry) = self.entries.get_mut(&app) else {
                continue;
            };
            let Some(owned) = entry.owned.as_mut() else {
                continue;
            };
            match asked {
                Ok(true) => {
                    // What they hold meanwhile is neither ours nor foreign.
                    for knob in ready.settings.keys() {
                        entry.last.remove(knob);
                    }
                    if ready.settings.contains_key(&Knob::CpuWeight)
                        || ready.settings.contains_key(&Knob::CpuIdle)
                    {
                        entry.last.remove(&Knob::CpuWeight);
                        entry.last.remove(&Knob::CpuIdle);
                    }
                    owned.sent = ready.settings;
                }
                // Too much waits already: it is asked for again.
                Ok(false) => {}
                Err(error) => {
                    owned.queued = ready.settings;
                    self.refuse_queued(&app, &error);
                }
            }
        }
    }

    /// What became of a setting.
    pub(crate) fn set_owned(&mut self, app: &AppId, setting: &Setting) -> Result<(), Refusal> {
        let owned = self.entries.get_mut(app).and_then(|e| e.owned.as_mut());
        let Some(owned) = owned else {
            return Err(Refusal::Unsupported);
        };
        match owned.heard.get(&setting.knob()) {
            Some((known, _)) if known == setting => {}
            _ => return Err(Refusal::Pending),
        }
        match owned.heard.remove(&setting.knob()) {
            Some((_, Err(why))) => Err(Refusal::Failed(why)),
            _ => Ok(()),
        }
    }

    /// Has a manager put an app back.
    pub(crate) fn return_owned(&mut self, app: &AppId) -> Result<(), Refusal> {
        let entries = self.ledger.state().owned.entries(app);
        let Some(first) = entries.first() else {
            self.owners.returning.remove(app);
            return Ok(());
        };
        if !self.owners.returning.contains_key(app) {
            let kind = first.spot.object.owner;
            if !self.owners.ask(kind, app, Task::PutBack(entries))? {
                return Err(Refusal::Pending);
            }
            self.owners.returning.insert(app.clone(), None);
        }
        let deadline = Instant::now() + RELEASE_PATIENCE;
        while self.owners.returning.get(app).is_some_and(Option::is_none) {
            let Some((whose, heard)) = self.owners.next(deadline) else {
                return Err(Refusal::Pending);
            };
            self.take_answer(&whose, heard);
        }
        let report = self.owners.returning.remove(app).flatten();
        let report = report.unwrap_or_default();
        for foreign in &report.foreign {
            tracing::warn!(%app, property = foreign, "left alone: somebody else set it");
        }
        if !report.is_complete() {
            return Err(Refusal::Failed(report.failed.join("; ")));
        }
        let app = app.clone();
        self.capabilities.withheld.remove(&app);
        self.ledger.append(Record::Owned(Note::Restored { app }))?;
        Ok(())
    }

    /// Gives up speaking to the managers, after the calls under way.
    pub(crate) fn leave_owners(&mut self) {
        self.owners.links.clear();
    }
}
