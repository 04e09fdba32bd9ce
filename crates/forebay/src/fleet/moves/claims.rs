//! Whose applications are, as the coordinator says, and what is made of it where it says nothing.
//!
//! Problem: a coordinator that is new, or was put back to an earlier state, says less than hosts know. Whoever
//! took that for the truth would start what runs elsewhere, or from files of before.
//!
//! Approach: what a host has on disk of a record counts. An older record at the coordinator is believed by
//! nobody; the host that is the owner by what it knows makes it say so again, with a greater epoch. Where
//! there is no record, that host makes it; one that knows of another owner never does. An application that
//! nobody here ever heard of is made by whoever runs it, at once, or else, after the time in which one that
//! runs it would have become a member, by a host that has its program, where no member says that it is there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::app::{App, AppId, Binding};
use forebay_core::fleet::Ownership;
use forebay_core::fleet::tenure::Takeover;

use super::{House, Trouble};

/// Where nobody owns an application, a host on which it does not run waits so long at least for one where it
/// does.
const CLAIM_AFTER: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug)]
pub(super) struct Claims {
    house: Arc<House>,
    /// Since when nobody owns what is configured here.
    unowned: BTreeMap<AppId, Duration>,
    told: BTreeMap<AppId, String>,
}

impl Claims {
    pub(super) const fn new(house: Arc<House>) -> Self {
        Self {
            house,
            unowned: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    /// Reads the record of every application that can move.
    pub(super) fn read(&mut self, now: Duration) {
        for app in self.house.apps.movable() {
            match self.refresh(&app, now) {
                Ok(None) => _ = self.told.remove(&app.id),
                Ok(Some(what)) => {
                    if self.told.get(&app.id) != Some(&what) {
                        self.house.apps.warn(&app.id, what.clone());
                        self.told.insert(app.id.clone(), what);
                    }
                }
                Err(trouble) => {
                    tracing::debug!(app = %app.id, why = %trouble, "its record is not known anew");
                }
            }
        }
        self.house.publish(super::keeper::now());
    }

    /// What the user is to hear of it, if anything.
    fn refresh(&mut self, app: &App, now: Duration) -> Result<Option<String>, Trouble> {
        let id = &app.id;
        // In this order: what is read later is not older by having been read earlier.
        let known = self.house.book.record(id);
        let Some(record) = self.house.records.read(id)? else {
            return self.claim(app, known, now);
        };
        self.unowned.remove(id);
        match known {
            Some(known) if known.epoch > record.epoch => self.restore(app, &known, &record),
            _ => {
                self.house.book.learn(id, &record);
                Ok(self.stray(id, &record))
            }
        }
    }

    fn is_moving(&self, app: &AppId) -> bool {
        let content = self.house.book.content();
        content.departures.contains_key(app) || content.arrivals.contains_key(app)
    }

    /// One that was given to this host, of which nothing is here: nobody runs it.
    fn stray(&self, app: &AppId, record: &Ownership) -> Option<String> {
        let is_ours = record.owner == self.house.here && !record.runs;
        (is_ours && !self.is_moving(app)).then(|| {
            format!(
                "was given to this host, and its move is not known here any more: nothing starts it; its files \
                 stand still at the host that gave it (`forebay move {app}` there), and moves.json of this host \
                 is to be put back"
            )
        })
    }

    /// The coordinator was put back to an earlier state.
    fn restore(
        &self,
        app: &App,
        known: &Ownership,
        record: &Ownership,
    ) -> Result<Option<String>, Trouble> {
        let (id, here) = (&app.id, &self.house.here);
        if self.is_moving(id) {
            return Ok(None);
        }
        let older = format!(
            "its record at the coordinator is older than what is known here ({} of {} after {} of {}): it was put \
             back to an earlier state",
            known.epoch, known.owner, record.epoch, record.owner
        );
        let takeover = app.mobility.as_ref().map(|mobility| mobility.takeover);
        if known.owner != *here {
            let owner = &known.owner;
            return Ok(Some(format!(
                "{older}; it stays {owner}'s, whose agent says so again once it runs"
            )));
        }
        // Others may have taken it over since.
        if takeover != Some(Takeover::Never) && self.house.apps.runs(id) != Some(true) {
            return Ok(Some(format!(
                "{older}; start it here if it runs nowhere else, so that it is this host's again"
            )));
        }
        self.house.change(id, record.epoch, &known.recalled())?;
        Ok(Some(format!("{older}; it says again that it is {here}'s")))
    }

    fn claim(
        &mut self,
        app: &App,
        known: Option<Ownership>,
        now: Duration,
    ) -> Result<Option<String>, Trouble> {
        let (id, here) = (&app.id, &self.house.here);
        let since = *self.unowned.entry(id.clone()).or_insert(now);
        let record = match known {
            Some(_) if self.is_moving(id) => return Ok(None),
            Some(known) if known.owner != *here => {
                return Ok(Some(format!(
                    "nobody has a record of it at the coordinator any more; it was {}'s, whose agent makes one \
                     once it runs",
                    known.owner
                )));
            }
            Some(known) => known.recalled(),
            None if self.house.apps.runs(id) == Some(true) => Ownership::first(here.clone()),
            None => {
                let lease = self.house.records.lease();
                let wait = lease.map(|lease| lease.ttl.max(CLAIM_AFTER));
                let is_time = wait.is_some_and(|wait| now.saturating_sub(since) >= wait);
                let runs = self.house.apps.runs(id);
                if !is_time || runs.is_none() || !has_program(app) {
                    return Ok(None);
                }
                if self.house.records.is_at_another(id)? {
                    return Ok(None);
                }
                Ownership::first(here.clone())
            }
        };
        self.house.records.create(id, &record)?;
        self.house.book.learn(id, &record);
        Ok(None)
    }
}

/// Whether what it is started by is here.
fn has_program(app: &App) -> bool {
    let Binding::Exec(exec) = &app.binding else {
        return true;
    };
    let program = exec.command.first().map(Path::new);
    program.is_some_and(|program| !program.is_absolute() || program.is_file())
}
