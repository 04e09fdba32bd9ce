//! Which applications are this host's to run, by what the coordinator says and what is on disk.
//!
//! Supervision starts none that is elsewhere. One that runs here although it is another's, or may be, is
//! frozen; it goes on when it is this host's again. What nobody was asked of yet is left as it is: a
//! daemon that begins anew without the coordinator stops nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_core::app::AppId;
use forebay_core::fleet::departure::Mark;
use forebay_core::fleet::mobility::{Known, Mobility, elsewhere};
use forebay_core::fleet::tenure::{Leave, leave};
use forebay_core::fleet::{HostName, Ownership};

pub(super) use crate::fleet::coordinator::now;

use super::depart::marks;
use super::service::{Stand, is_handed_over};
use super::{House, Trouble};

/// Where nobody owns an application, a host on which it does not run waits so long for one where it does.
const CLAIM_AFTER: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Debug)]
pub(super) struct Keeper {
    house: Arc<House>,
    /// Those that were found to be this host's, and let go on, since this daemon runs.
    freed: BTreeSet<AppId>,
    /// Since when nobody owns what is configured here.
    unowned: BTreeMap<AppId, Duration>,
    told: BTreeMap<AppId, String>,
    /// The hosts that were seen to serve what is handed over.
    served: BTreeMap<AppId, HostName>,
}

impl House {
    /// Says which applications are not this host's to start, by all that is known.
    pub(super) fn publish(&self, now: Duration) {
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
        let away = elsewhere(movable, known);
        self.elsewhere.send_if_modified(|told| {
            let news = **told != away;
            if news {
                *told = Arc::new(away);
            }
            news
        });
    }
}

impl Keeper {
    pub(super) const fn new(house: Arc<House>) -> Self {
        Self {
            house,
            freed: BTreeSet::new(),
            unowned: BTreeMap::new(),
            told: BTreeMap::new(),
            served: BTreeMap::new(),
        }
    }

    /// Looks at all once: reads their records, and holds or frees them. `moving` are those that a move is
    /// about, which nobody else may freeze or let go on.
    pub(super) fn look(&mut self, moving: &BTreeSet<AppId>, now: Duration) {
        let movable = self.house.apps.movable();
        for app in &movable {
            let refreshed = match is_handed_over(app) {
                true => self.follow(&app.id, moving),
                false => self.refresh(&app.id, now),
            };
            if let Err(trouble) = refreshed {
                tracing::debug!(app = %app.id, why = %trouble, "its record is not known anew");
            }
        }
        self.house.publish(now);
        for app in &movable {
            if let Some(mobility) = &app.mobility
                && !is_handed_over(app)
                && !moving.contains(&app.id)
            {
                self.hold(&app.id, mobility, now);
            }
        }
    }

    fn refresh(&mut self, app: &AppId, now: Duration) -> Result<(), Trouble> {
        if self.house.read(app)?.is_some() {
            self.unowned.remove(app);
            return Ok(());
        }
        let since = *self.unowned.entry(app.clone()).or_insert(now);
        let runs = self.house.apps.runs(app);
        if runs == Some(true) || (runs.is_some() && now.saturating_sub(since) >= CLAIM_AFTER) {
            let first = Ownership::first(self.house.here.clone());
            self.house.records.create(app, &first)?;
            self.house.book.learn(app, &first);
        }
        Ok(())
    }

    /// Has the record say which host serves, where a front of this one handed over by itself, or was asked to
    /// by hand. Only what it was seen to leave, or what is this host's, may it change: another host may have
    /// a front of its own.
    fn follow(&mut self, app: &AppId, moving: &BTreeSet<AppId>) -> Result<(), Trouble> {
        let house = &self.house;
        let stand = house.apps.service().map(|service| service.stand(app));
        let stand = stand.transpose()?.flatten();
        let record = house.read(app)?;
        let Some(Stand { serves, .. }) = stand.filter(|_| !moving.contains(app)) else {
            return Ok(());
        };
        let before = self.served.insert(app.clone(), serves.clone());
        let Some(record) = record else {
            let first = Ownership::first(serves);
            house.records.create(app, &first)?;
            house.book.learn(app, &first);
            return Ok(());
        };
        let is_ours = record.owner == house.here || before.as_ref() == Some(&record.owner);
        if record.owner == serves || !is_ours {
            return Ok(());
        }
        let to = record.given_to(&serves).running();
        if let Err(trouble) = house.change(app, record.epoch, &to) {
            // What it left is not forgotten before the record says so.
            self.served.insert(app.clone(), record.owner);
            return Err(trouble);
        }
        let what = format!("is served from {serves}, since its front handed over");
        house.apps.tell(app, what);
        Ok(())
    }

    fn hold(&mut self, app: &AppId, mobility: &Mobility, now: Duration) {
        let house = &self.house;
        let content = house.book.content();
        let mark: Option<Mark> = content.departures.get(app).map(|departing| departing.mark);
        let record = content.records.get(app);
        let lease = house.records.lease();
        let may = leave(&house.here, (record, mark), mobility.takeover, lease, now);
        if house.apps.runs(app) != Some(true) {
            self.freed.remove(app);
            return;
        }
        let (done, what) = match (may, record) {
            // Nobody knows whether a move was about it: it stays as it is.
            (Leave::Run { .. }, _) if self.freed.contains(app) || house.book.broken().is_some() => {
                return;
            }
            (Leave::Run { .. }, _) => (house.apps.thaw(app), None),
            (Leave::NotOurs, Some(record)) => {
                let what = format!(
                    "is frozen: it belongs to {}; end it here, or take it back with `forebay fleet`",
                    record.owner
                );
                (house.apps.freeze(app), Some(what))
            }
            (Leave::LeaseEnds, _) => {
                let what =
                    "is frozen: others may take it over, since the coordinator does not know \
                            of this host any more; it goes on when it does"
                        .to_owned();
                (house.apps.freeze(app), Some(what))
            }
            (Leave::NotKnown | Leave::Leaves | Leave::NotOurs, _) => return,
        };
        match (done, what) {
            (Err(trouble), _) => {
                tracing::warn!(%app, why = %trouble, "not held or let go");
            }
            (Ok(()), None) => {
                self.freed.insert(app.clone());
                if self.told.remove(app).is_some() {
                    house
                        .apps
                        .tell(app, "goes on: it is this host's".to_owned());
                }
            }
            (Ok(()), Some(what)) => {
                self.freed.remove(app);
                if self.told.get(app) != Some(&what) {
                    house.apps.warn(app, what.clone());
                    self.told.insert(app.clone(), what);
                }
            }
        }
    }
}
