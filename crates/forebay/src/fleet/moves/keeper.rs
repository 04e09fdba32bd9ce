//! Holds applications that are not this host's to run, by what the coordinator said last and what is on disk.
//!
//! Supervision starts none that is elsewhere. One that runs here although it is another's, or may be, is
//! frozen; it goes on when it is this host's again. What nobody was asked of yet is left as it is: a
//! daemon that begins anew without the coordinator stops nothing. What a move is about is the move's.
//!
//! Nobody is asked here who may not answer, so that what others may take over is frozen in time: that is
//! done on a thread of its own, by a clock that is read for each application.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::fleet::departure::Mark;
use forebay_core::fleet::mobility::{Known, Mobility, elsewhere};
use forebay_core::fleet::tenure::{Leave, leave};

pub(super) use crate::fleet::coordinator::now;

use super::depart::marks;
use super::{House, Trouble};

/// See the module.
#[derive(Debug)]
pub(super) struct Keeper {
    house: Arc<House>,
    /// Those that were found to be this host's, and let go on, since this daemon runs.
    freed: BTreeSet<AppId>,
    told: BTreeMap<AppId, String>,
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
        let content = self.book.content();
        let known = Known {
            here: &self.here,
            records: &content.records,
            departures: &marks(&content),
            arriving: &content.arrivals.keys().cloned().collect(),
            lease: self.records.lease(),
            now,
        };
        let movable = self.apps.movable();
        let movable = movable
            .iter()
            .filter_map(|app| Some((&app.id, app.mobility.as_ref()?)));
        elsewhere(movable, known)
    }
}

impl Keeper {
    pub(super) const fn new(house: Arc<House>) -> Self {
        Self {
            house,
            freed: BTreeSet::new(),
            told: BTreeMap::new(),
        }
    }

    /// Looks at all once. Those that must not run come first.
    pub(super) fn look(&mut self) {
        self.house.publish(now());
        let movable = self.house.apps.movable();
        for holds in [true, false] {
            for app in &movable {
                if let Some(mobility) = &app.mobility {
                    self.care(&app.id, mobility, holds);
                }
            }
        }
    }

    fn care(&mut self, app: &AppId, mobility: &Mobility, holds: bool) {
        let house = Arc::clone(&self.house);
        // No move that begins meanwhile marks that it froze it.
        let _held = house.hold();
        if house.apps.runs(app) != Some(true) {
            self.freed.remove(app);
            return;
        }
        match self.judge(app, mobility) {
            Some(Care::Hold(what)) if holds => {
                // Marked first: whoever lets it go on after this daemon ends it, although it was not frozen
                // yet when that died.
                let done = house.apps.give(app).and_then(|()| house.apps.freeze(app));
                self.freed.remove(app);
                self.settle(app, &done, Some(what));
            }
            Some(Care::LetGo) if !holds && !self.freed.contains(app) => {
                let done = house.apps.keep(app).and_then(|()| house.apps.thaw(app));
                if done.is_ok() {
                    self.freed.insert(app.clone());
                }
                self.settle(app, &done, None);
            }
            _ => {}
        }
    }

    fn judge(&self, app: &AppId, mobility: &Mobility) -> Option<Care> {
        let house = &self.house;
        let content = house.book.content();
        let mark = content.departures.get(app).map(|departing| departing.mark);
        // Its move lets it stand and go on.
        if content.arrivals.contains_key(app) || mark.is_some_and(|mark| mark != Mark::Begun) {
            return None;
        }
        let record = content.records.get(app);
        let lease = house.records.lease();
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
