//! Holds applications that are not this host's to run, by what the coordinator said last and what is on disk.
//!
//! Supervision starts none that is elsewhere. One that runs here although it is another's, or may be, is
//! frozen; it goes on when it is this host's again. What nobody was asked of yet is left as it is: a
//! daemon that begins anew without the coordinator stops nothing. What a move is about is the move's.
//!
//! Nobody is asked here who may not answer, so that what others may take over is frozen in time: that is
//! done on a thread of its own, by a clock that is read for each application. What stands still already, and is
//! marked as what it is, is left alone.
//!
//! An error in here that nobody foresaw concerns one application and one look: it is said, whatever others may
//! take over is frozen, and the next look begins with nothing remembered. What stands is let go by nobody
//! meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_core::app::{App, AppId};
use forebay_core::fleet::departure::Mark;
use forebay_core::fleet::mobility::{Known, Mobility, elsewhere};
use forebay_core::fleet::tenure::{Leave, Takeover, leave};
use forebay_host::fence::Unclaimed;

pub(super) use crate::fleet::coordinator::now;

use super::service::is_handed_over;
use super::{House, Trouble};
use crate::fleet::guard::guarded;

/// See the module.
#[derive(Debug)]
pub(super) struct Keeper {
    house: Arc<House>,
    /// Those that were found to be this host's, and let go on, since this daemon runs.
    freed: BTreeSet<AppId>,
    told: BTreeMap<AppId, String>,
    /// Why clients do not reach those that may run.
    unreached: BTreeMap<AppId, String>,
    /// What an error was said of.
    failed: BTreeMap<AppId, String>,
    /// What the guardian goes by.
    tenure: Option<(Duration, BTreeSet<AppId>)>,
}

/// What is to be done with one.
enum Care {
    /// It is another's, or may be: why, for the user.
    Hold(String),
    LetGo,
}

impl House {
    /// Says which applications are not this host's to start, by all that is known.
    pub(super) fn publish(&self, now: Duration) {
        // Before: what is news of it is written down, and whoever looks waits for nothing of the kind.
        self.hear();
        // Looked up within: what one thread knew before another one marked something must not come after.
        self.elsewhere.send_if_modified(|told| {
            let away = self.away(now);
            let news = **told != away;
            if news {
                *told = Arc::new(away);
            }
            news
        });
    }

    fn away(&self, now: Duration) -> BTreeSet<AppId> {
        // In this order: what is known under a lease is not older than it.
        let lease = self.lease();
        let content = self.book.content();
        let known = Known {
            here: &self.here,
            records: &content.records,
            disputed: &content.disputes.keys().cloned().collect(),
            departures: &self.marks(&content),
            arriving: &content.arrivals.keys().cloned().collect(),
            lease,
            now,
        };
        let movable = self.apps.movable();
        let movable = movable
            .iter()
            .filter_map(|app| Some((&app.id, app.mobility.as_ref()?)));
        elsewhere(movable, known)
    }
}

impl House {
    /// The daemon ends, and nobody keeps the lease alive: others may take over what they may. Whoever puts this host
    /// back ends it; what stands already has its mark, and may be one that moves with its memory.
    pub(super) fn hold_what_others_may_take(&self) {
        for app in self.apps.movable() {
            let (id, mobility) = (&app.id, app.mobility.as_ref());
            let may = mobility.is_some_and(|mobility| mobility.takeover != Takeover::Never);
            let is_held = is_handed_over(&app) || self.apps.is_given(id);
            // Whoever takes it over answers for it.
            if may
                && !is_held
                && let Err(trouble) = self.apps.leave_address(id)
            {
                tracing::error!(app = %id, why = %trouble, "its address stays, and others may take it over");
            }
            if !may || is_held || self.apps.runs(id) != Some(true) {
                continue;
            }
            match self
                .apps
                .give(id, Unclaimed::Ends)
                .and_then(|()| self.apps.freeze(id))
            {
                Ok(()) => {
                    let what = "ends with the daemon: others may take it over";
                    self.apps.tell(id, what.to_owned());
                }
                Err(trouble) => {
                    tracing::error!(app = %id, why = %trouble, "others may take over what runs on here");
                }
            }
        }
    }
}

impl Keeper {
    pub(super) const fn new(house: Arc<House>) -> Self {
        Self {
            house,
            freed: BTreeSet::new(),
            told: BTreeMap::new(),
            unreached: BTreeMap::new(),
            failed: BTreeMap::new(),
            tenure: None,
        }
    }

    /// Looks at all once. Those that must not run come first.
    pub(super) fn look(&mut self) {
        self.house.publish(now());
        let movable = self.house.apps.movable();
        let is_covered = self.cover(&movable);
        self.leave_unnamed(&movable);
        for holds in [true, false] {
            for app in &movable {
                // Of what is handed over an instance runs on every host.
                if let Some(mobility) = app.mobility.as_ref().filter(|_| !is_handed_over(app)) {
                    match guarded(|| self.care(&app.id, mobility, (holds, is_covered))) {
                        Ok(()) if holds => {}
                        Ok(()) => _ = self.failed.remove(&app.id),
                        Err(why) => self.fail(&app.id, mobility, &why),
                    }
                }
            }
        }
    }

    /// Takes addresses away that no application has any more.
    fn leave_unnamed(&self, movable: &[App]) {
        for id in self.house.apps.with_addresses() {
            let has = |app: &App| {
                let mobility = app.mobility.as_ref();
                app.id == id && mobility.is_some_and(|mobility| mobility.address.is_some())
            };
            if !movable.iter().any(has) {
                self.leave_address(&id);
            }
        }
    }

    fn leave_address(&self, app: &AppId) {
        if let Err(trouble) = self.house.apps.leave_address(app) {
            tracing::error!(%app, why = %trouble, "its address is not taken away");
        }
    }

    /// Has clients reach one that may run here, whoever took its address away.
    fn reach(&mut self, app: &AppId) {
        let apps = &self.house.apps;
        if apps.answers(app) {
            self.unreached.remove(app);
            return;
        }
        match apps.answer(app) {
            Ok(()) => {
                self.unreached.remove(app);
                apps.tell(app, "its address is here".to_owned());
            }
            Err(trouble) => {
                let what = format!("clients do not reach it: {trouble}");
                if self.unreached.get(app) != Some(&what) {
                    apps.warn(app, what.clone());
                    self.unreached.insert(app.clone(), what);
                }
            }
        }
    }

    /// Tells the guardian until when others cannot have taken over what they may; whether it knows.
    fn cover(&mut self, movable: &[App]) -> bool {
        let may = |app: &&App| {
            let mobility = app.mobility.as_ref().filter(|_| !is_handed_over(app));
            mobility.is_some_and(|mobility| mobility.takeover != Takeover::Never)
        };
        let apps: BTreeSet<AppId> = movable
            .iter()
            .filter(may)
            .map(|app| app.id.clone())
            .collect();
        let lease = self.house.lease();
        let until = lease.map_or(Duration::ZERO, |lease| lease.run_until());
        let tenure = Some((until, apps)).filter(|(_, apps)| !apps.is_empty());
        if self.tenure == tenure || (tenure.is_none() && self.tenure.is_none()) {
            return true;
        }
        let (until, apps) = tenure.clone().unwrap_or_default();
        match self.house.apps.may_run(until, &apps) {
            Ok(()) => self.tenure = tenure,
            Err(trouble) => {
                tracing::error!(why = %trouble, "the guardian does not know until when apps may run");
                return false;
            }
        }
        true
    }

    /// It is not known whether it may run.
    fn fail(&mut self, app: &AppId, mobility: &Mobility, why: &str) {
        self.freed.remove(app);
        let apps = &self.house.apps;
        let may_be_anothers = mobility.takeover != Takeover::Never;
        let becomes = match may_be_anothers {
            true => "it is frozen meanwhile, since others may take it over",
            false => "it stays as it is",
        };
        let what = format!(
            "whether it may run here is not known, and {becomes}: an error in Forebay ({why}); start the daemon \
             again, and report it"
        );
        if self.failed.get(app) != Some(&what) {
            tracing::error!(%app, "{what}");
            apps.warn(app, what.clone());
            self.failed.insert(app.clone(), what);
        }
        if may_be_anothers && !apps.is_given(app) {
            self.leave_address(app);
            let held = guarded(|| {
                apps.give(app, Unclaimed::Ends)
                    .and_then(|()| apps.freeze(app))
            });
            let refused = match held {
                Ok(Ok(())) => return,
                Ok(Err(trouble)) => trouble.to_string(),
                Err(why) => why,
            };
            tracing::error!(%app, why = refused, "it is not frozen");
        }
    }

    fn care(&mut self, app: &AppId, mobility: &Mobility, (holds, is_covered): (bool, bool)) {
        let house = Arc::clone(&self.house);
        // No move that begins meanwhile marks that it froze it.
        let _held = house.hold();
        let care = self.judge(app, mobility);
        if holds && matches!(care, Some(Care::Hold(_))) {
            self.leave_address(app);
        }
        if house.apps.runs(app) != Some(true) {
            self.freed.remove(app);
            return;
        }
        let may_be_taken = mobility.takeover != Takeover::Never;
        match care {
            Some(Care::Hold(what)) if holds && house.apps.is_given(app) => {
                self.freed.remove(app);
                self.settle(app, &Ok(()), Some(what));
            }
            Some(Care::Hold(what)) if holds => {
                // Marked first: whoever lets it go on after this daemon ends it, although it was not frozen
                // yet when that died.
                let done = house
                    .apps
                    .give(app, Unclaimed::Ends)
                    .and_then(|()| house.apps.freeze(app));
                self.freed.remove(app);
                self.settle(app, &done, Some(what));
            }
            // The guardian would not freeze it in time.
            Some(Care::LetGo) if may_be_taken && !is_covered => {}
            // The guardian may have frozen it meanwhile.
            Some(Care::LetGo)
                if !holds
                    && (!self.freed.contains(app)
                        || (may_be_taken && house.apps.is_given(app))) =>
            {
                let done = house.apps.keep(app).and_then(|()| house.apps.thaw(app));
                if done.is_ok() {
                    self.freed.insert(app.clone());
                }
                self.settle(app, &done, None);
            }
            Some(Care::LetGo) if !holds => self.reach(app),
            _ => {}
        }
    }

    fn judge(&self, app: &AppId, mobility: &Mobility) -> Option<Care> {
        let house = &self.house;
        // In this order: what is known under a lease is not older than it.
        let lease = house.lease();
        let (record, departs, arrives) = house.book.look(|content| {
            (
                content.records.get(app).cloned(),
                content.departures.get(app).map(|departing| departing.mark),
                content.arrivals.contains_key(app),
            )
        });
        let goes_on = house.goes_on().contains(app);
        let mark = departs.map(|mark| if goes_on { Mark::Begun } else { mark });
        // Its move lets it stand and go on.
        if arrives || mark.is_some_and(|mark| mark != Mark::Begun) {
            return None;
        }
        if let Some(why) = house.disputed(app) {
            return Some(Care::Hold(format!("is frozen: {why}")));
        }
        let record = record.as_ref();
        match leave(&house.here, (record, mark), mobility.takeover, lease, now()) {
            // Nobody knows whether a move was about it, or it was given to this host and nothing came: it stays
            // as it is.
            Leave::Run { .. } if house.book.broken().is_some() => None,
            Leave::Run { .. } if record.is_some_and(|record| !record.runs) => None,
            Leave::Run { .. } => Some(Care::LetGo),
            Leave::NotOurs => {
                let owner = &record?.owner;
                Some(Care::Hold(format!(
                    "is frozen: it belongs to {owner}, and this is what is here of before; end its processes \
                     (`forebay explain {app}` shows them)"
                )))
            }
            Leave::LeaseEnds => Some(Care::Hold(
                "is frozen: others may take it over, since the coordinator does not know of this host any \
                 more; it goes on when it does"
                    .to_owned(),
            )),
            Leave::NotKnown | Leave::Leaves => None,
        }
    }

    /// Tells of it once.
    fn settle(&mut self, app: &AppId, done: &Result<(), Trouble>, what: Option<String>) {
        let apps = &self.house.apps;
        match (done, what) {
            (Err(trouble), _) => tracing::warn!(%app, why = %trouble, "not held or let go"),
            (Ok(()), None) => {
                if self.told.remove(app).is_some() {
                    apps.tell(app, "goes on: it is this host's".to_owned());
                }
            }
            (Ok(()), Some(what)) => {
                if self.told.get(app) != Some(&what) {
                    apps.warn(app, what.clone());
                    self.told.insert(app.clone(), what);
                }
            }
        }
    }
}
