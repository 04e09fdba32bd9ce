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
use forebay_core::fleet::tenure::Takeover;
use forebay_core::fleet::{Epoch, HostName, Ownership};

use super::journal::Content;
use super::service::{Stand, is_handed_over};
use super::{House, Owners, Trouble};
use crate::fleet::guard::guarded;

/// Where nobody owns an application, a host on which it does not run waits so long at least for one where it
/// does.
const CLAIM_AFTER: Duration = Duration::from_secs(3);

/// More records than so many are read at once.
const SINGLE_MAX: usize = 4;
/// What was read is not read again before, where nothing was heard of it since.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(super) struct Claims {
    house: Arc<House>,
    /// Since when nobody owns what is configured here.
    unowned: BTreeMap<AppId, Duration>,
    told: BTreeMap<AppId, String>,
    /// The hosts that were seen to serve what is handed over, and the epoch of the front at that time.
    served: BTreeMap<AppId, (HostName, u64)>,
    /// What was read last.
    asked: Option<Asked>,
}

/// What was read, since it was not settled.
#[derive(Debug)]
struct Asked {
    at: Duration,
    open: Vec<AppId>,
    /// What was heard by then.
    heard: Option<Arc<Owners>>,
}

impl Claims {
    pub(super) const fn new(house: Arc<House>) -> Self {
        Self {
            house,
            unowned: BTreeMap::new(),
            told: BTreeMap::new(),
            served: BTreeMap::new(),
            asked: None,
        }
    }

    /// Looks whose every application is that can move. What was heard of the coordinator and agrees with what is
    /// known is asked of nobody: requests are for what does not, and are as many, however many apps there are.
    pub(super) fn read(&mut self, now: Duration) {
        let heard = self.house.hear();
        let records = heard.records.filter(|_| heard.is_in_reach);
        let movable = self.house.apps.movable();
        let (settled, open): (Vec<App>, Vec<App>) = movable
            .into_iter()
            .partition(|app| self.is_settled(app, records.as_deref()));
        for app in settled {
            self.unowned.remove(&app.id);
            self.told.remove(&app.id);
        }
        if self.is_due(&open, records, now) {
            self.ask(&open, now);
        }
        self.house.publish(super::keeper::now());
    }

    /// Whether what was heard of an application is what is known, and nothing is to be said of it.
    fn is_settled(&self, app: &App, heard: Option<&Owners>) -> bool {
        let id = &app.id;
        let Some(record) = heard.and_then(|heard| heard.get(id)) else {
            return false;
        };
        let known = self.house.book.record(id);
        if known.as_ref() != Some(record) || self.house.book.dispute(id).is_some() {
            return false;
        }
        if !is_handed_over(app) {
            return self.stray(id, record).is_none();
        }
        match self.stand(id) {
            Ok(Some(stand)) => {
                let now = (record.owner.clone(), stand.epoch);
                stand.serves == record.owner && self.served.get(id) == Some(&now)
            }
            Ok(None) => true,
            Err(_) => false,
        }
    }

    /// What was asked for a moment ago, and of which nothing was heard since, waits.
    fn is_due(&mut self, open: &[App], heard: Option<Arc<Owners>>, now: Duration) -> bool {
        let ids: Vec<AppId> = open.iter().map(|app| app.id.clone()).collect();
        let is_same = match (&self.asked, &heard) {
            (Some(asked), Some(heard)) => {
                let before = asked.heard.as_ref();
                asked.open == ids && before.is_some_and(|before| Arc::ptr_eq(before, heard))
            }
            _ => false,
        };
        let at = self.asked.as_ref().map(|asked| asked.at);
        let is_early = at.is_some_and(|at| now.saturating_sub(at) < ASK_AGAIN);
        let waits = is_same && is_early;
        let is_due = !open.is_empty() && !waits;
        if is_due || open.is_empty() {
            self.asked = is_due.then_some(Asked {
                at: now,
                open: ids,
                heard,
            });
        }
        is_due
    }

    /// Reads what is not settled: one by one, or all at once where that is less.
    fn ask(&mut self, open: &[App], now: Duration) {
        // Before: what is read later is not older by having been read earlier.
        let known: BTreeMap<&AppId, Option<Ownership>> = open
            .iter()
            .map(|app| (&app.id, self.house.book.record(&app.id)))
            .collect();
        let all = match open.len() > SINGLE_MAX {
            false => None,
            true => match self.house.records.all() {
                Ok(all) => Some(all),
                Err(trouble) => {
                    tracing::debug!(why = %trouble, "no record is known anew");
                    return;
                }
            },
        };
        for app in open {
            let id = &app.id;
            let looked = guarded(|| {
                let record = match &all {
                    Some(all) => all.get(id).cloned(),
                    None => self.house.records.read(id)?,
                };
                match is_handed_over(app) {
                    true => self.follow(id, (known[id].clone(), record)).map(|()| None),
                    false => self.refresh(app, (known[id].clone(), record), now),
                }
            });
            let looked = looked.unwrap_or_else(|why| {
                tracing::error!(app = %id, why, "looking whose it is ended in an error");
                Ok(Some(format!(
                    "whose it is cannot be looked at: an error in Forebay ({why}); what is known of it stands: \
                     start the daemon again, and report it"
                )))
            });
            match looked {
                Ok(None) => _ = self.told.remove(id),
                Ok(Some(what)) => {
                    if self.told.get(id) != Some(&what) {
                        self.house.apps.warn(id, what.clone());
                        self.told.insert(id.clone(), what);
                    }
                }
                Err(trouble) => {
                    tracing::debug!(app = %id, why = %trouble, "its record is not known anew");
                }
            }
        }
    }

    /// What the user is to hear of it, if anything.
    fn refresh(
        &mut self,
        app: &App,
        (known, record): (Option<Ownership>, Option<Ownership>),
        now: Duration,
    ) -> Result<Option<String>, Trouble> {
        let id = &app.id;
        if let Some(record) = &record {
            self.house.book.learn(id, record);
        }
        if let Some(why) = self.house.disputed(id) {
            return Ok(Some(why));
        }
        let Some(record) = record else {
            return self.claim(app, known, now);
        };
        self.unowned.remove(id);
        let known = known.unwrap_or_else(|| record.clone());
        match known.again(&record) {
            Some((epoch, again)) if known.epoch > record.epoch => {
                self.restore(app, (&known, again), (epoch, &record))
            }
            // It was let run, and the record was not heard to say so.
            Some((epoch, again)) if known.owner == self.house.here && !self.is_moving(id) => {
                self.house.change(id, epoch, &again)?;
                Ok(None)
            }
            _ => Ok(self.stray(id, &record)),
        }
    }

    /// Who serves an application that is handed over, as its front says.
    fn stand(&self, app: &AppId) -> Result<Option<Stand>, Trouble> {
        let stand = self.house.apps.service().map(|service| service.stand(app));
        Ok(stand.transpose()?.flatten())
    }

    /// Has the record say which host serves, where a front of this one handed over by itself, or was asked to
    /// by hand. Only what it was seen to leave, or what is this host's, may it change: another host may have
    /// a front of its own.
    fn follow(
        &mut self,
        app: &AppId,
        (known, record): (Option<Ownership>, Option<Ownership>),
    ) -> Result<(), Trouble> {
        let stand = self.stand(app)?;
        let house = &self.house;
        if let Some(record) = &record {
            house.book.learn(app, record);
        }
        let Some(stand) = stand.filter(|_| !self.is_moving(app)) else {
            return Ok(());
        };
        let (serves, now) = (stand.serves.clone(), (stand.serves.clone(), stand.epoch));
        let before = self.served.insert(app.clone(), now);
        let Some(record) = record else {
            let first = Ownership::first(serves);
            house.records.create(app, &first)?;
            house.book.learn(app, &first);
            return Ok(());
        };
        let is_ours = record.owner == house.here
            || was_left(&record, &stand, before.as_ref(), known.as_ref());
        if record.owner == serves || !is_ours {
            return Ok(());
        }
        let to = record.given_to(&serves).running();
        if let Err(trouble) = house.change(app, record.epoch, &to) {
            // What it left is not forgotten before the record says so.
            self.served.insert(app.clone(), (record.owner, stand.epoch));
            return Err(trouble);
        }
        let what = format!("is served from {serves}, since its front handed over");
        house.apps.tell(app, what);
        Ok(())
    }

    fn is_moving(&self, app: &AppId) -> bool {
        let moves = |content: &Content| {
            content.departures.contains_key(app) || content.arrivals.contains_key(app)
        };
        self.house.book.look(moves)
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
        (known, again): (&Ownership, Ownership),
        (epoch, record): (Epoch, &Ownership),
    ) -> Result<Option<String>, Trouble> {
        let (id, here) = (&app.id, &self.house.here);
        let older = format!(
            "its record at the coordinator is older than what is known here ({} of {} after {} of {}): it was put \
             back to an earlier state",
            known.epoch, known.owner, record.epoch, record.owner
        );
        if self.is_moving(id) {
            return Ok(Some(format!(
                "{older}; a move of it is not over, and its record is left alone meanwhile (`forebay move {id}` \
                 shows how far it is)"
            )));
        }
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
        self.house.change(id, epoch, &again)?;
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
            Some(known) if self.is_moving(id) => {
                return Ok(Some(format!(
                    "nobody has a record of it at the coordinator any more ({} of {} is known here); a move of it \
                     is not over, and none is made meanwhile (`forebay move {id}` shows how far it is)",
                    known.epoch, known.owner
                )));
            }
            Some(known) if known.owner != *here => {
                return Ok(Some(format!(
                    "nobody has a record of it at the coordinator any more; it was {}'s, whose agent makes one \
                     once it runs",
                    known.owner
                )));
            }
            known => {
                // As the owner it may have been given away since what is known here.
                let own =
                    known.map_or_else(|| Ownership::first(here.clone()), |known| known.recalled());
                let runs = self.house.apps.runs(id);
                let lease = self.house.lease();
                let wait = lease.map(|lease| lease.ttl.max(CLAIM_AFTER));
                let is_time = wait.is_some_and(|wait| now.saturating_sub(since) >= wait);
                let is_idle = runs != Some(true);
                if is_idle && (!is_time || runs.is_none() || !has_program(app)) {
                    return Ok(None);
                }
                if is_idle && self.house.records.is_at_another(id)? {
                    return Ok(None);
                }
                own
            }
        };
        self.house.records.create(id, &record)?;
        self.house.book.learn(id, &record);
        Ok(None)
    }
}

/// Whether a front handed over from the owner that the record names, since it was looked at `before`: what
/// it did in between, twice or more, it says itself. After a start of the daemon nothing was looked at
/// before; then its last change counts, if nobody wrote the record since it was `known`.
fn was_left(
    record: &Ownership,
    stand: &Stand,
    before: Option<&(HostName, u64)>,
    known: Option<&Ownership>,
) -> bool {
    let left = stand.left.get(&record.owner);
    match before {
        Some((host, epoch)) => *host == record.owner || left.is_some_and(|left| left > epoch),
        None => known == Some(record) && left == Some(&stand.epoch),
    }
}

/// Whether what it is started by is here.
pub(super) fn has_program(app: &App) -> bool {
    let Binding::Exec(exec) = &app.binding else {
        return true;
    };
    let program = exec.command.first().map(Path::new);
    program.is_some_and(|program| !program.is_absolute() || program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A front whose hosts are a and b, that handed over from these at these epochs.
    fn stand(serves: &str, epoch: u64, left: &[(&str, u64)]) -> Stand {
        let host = |name: &str| name.parse::<HostName>().unwrap();
        Stand {
            front: "web".parse().unwrap(),
            serves: host(serves),
            epoch,
            left: left.iter().map(|(name, at)| (host(name), *at)).collect(),
            others: BTreeMap::new(),
        }
    }

    #[test]
    fn the_record_follows_a_front_that_went_there_and_back_between_two_looks() {
        let host = |name: &str| name.parse::<HostName>().unwrap();
        let of_b = Ownership::first(host("b")).running();
        let before = (host("a"), 7);
        let check = |stand: &Stand, before: Option<&(HostName, u64)>, expected: bool| {
            let known = Some(&of_b);
            assert_eq!(was_left(&of_b, stand, before, known), expected, "{stand:?}");
        };
        // It was moved to b and handed back since.
        check(&stand("a", 9, &[("a", 8), ("b", 9)]), Some(&before), true);
        // It was seen to serve.
        check(&stand("a", 9, &[]), Some(&(host("b"), 8)), true);
        // Another front gave it to b; this one left b long ago.
        check(&stand("a", 7, &[("a", 4), ("b", 5)]), Some(&before), false);
        check(&stand("a", 7, &[]), Some(&before), false);
        // The daemon is new.
        check(&stand("a", 9, &[("a", 8), ("b", 9)]), None, true);
        check(&stand("a", 10, &[("a", 8), ("b", 9)]), None, false);
        let later = of_b.given_to(&host("b"));
        let now = stand("a", 9, &[("b", 9)]);
        assert!(
            !was_left(&later, &now, None, Some(&of_b)),
            "somebody wrote it since"
        );
    }
}
