//! Applications that share no host: two instances of one service, above all.
//!
//! Whoever takes an application in looks at this, by what it has itself: others hear of it as an obstacle with what it
//! publishes, and are refused where they ask all the same. So it holds for moves that somebody asked for, for those
//! that hosts begin by themselves, and for what is taken over from a host that is lost.

use std::collections::BTreeSet;

use forebay_core::app::{App, AppId};

use super::{Apps, House};

/// Those that an application shares no host with: whom it names, and who names it.
fn mates(id: &AppId, apps: &dyn Apps) -> BTreeSet<AppId> {
    let named = |app: &App| app.mobility.as_ref().map(|mobility| mobility.apart.clone());
    let mut mates = apps.app(id).as_ref().and_then(named).unwrap_or_default();
    let name_it = |app: &App| named(app).is_some_and(|apart| apart.contains(id));
    mates.extend(apps.movable().into_iter().filter(name_it).map(|app| app.id));
    mates
}

impl House {
    /// Why an application does not come here: one that it shares no host with is here, or comes as far as the journal
    /// says, or this says.
    pub(super) fn crowds(&self, id: &AppId, comes: impl Fn(&AppId) -> bool) -> Option<String> {
        let mates = mates(id, &*self.apps);
        if mates.is_empty() {
            return None;
        }
        let content = self.book.content();
        let is_ours = |mate: &AppId| {
            let record = content.records.get(mate);
            record.is_some_and(|record| record.owner == self.here)
        };
        let comes = |mate: &AppId| content.arrivals.contains_key(mate) || comes(mate);
        let is_here =
            |mate: &&AppId| is_ours(mate) || comes(mate) || self.apps.runs(mate) == Some(true);
        let mate = mates.iter().find(is_here)?;
        Some(format!(
            "{mate} is on {} or comes there, and {id} shares no host with it (`move.apart`); choose another host, or \
             move {mate} first",
            self.here
        ))
    }
}
