//! What becomes of applications whose host is lost.
//!
//! The record of one that others may take over (`takeover = "after-lease"`) is changed by the host whose turn it is
//! ([`turn`]), in a transaction that takes effect only while its owner is no member. By then nobody runs it there:
//! what a lease no longer covers was frozen by the daemon, or by the guardian where that hangs or died.
//!
//! Files are no part of that. What was only on the lost host cannot be had, and what is here of it is of before: such
//! an application is started nowhere, and its user is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::app::{App, AppId, Class};
use forebay_core::fleet::choice::{Mover, Offer, Reason, Room};
use forebay_core::fleet::mobility::{Mobility, Way};
use forebay_core::fleet::policy::Look;
use forebay_core::fleet::takeover::{change, turn};
use forebay_core::fleet::taking::rule_out;
use forebay_core::fleet::tenure::Takeover;
use forebay_core::fleet::{HostName, Ownership};

use super::claims::has_program;
use super::{House, Trouble, body};

/// Between two turns: whoever could not take it has let that pass.
const TURN: Duration = Duration::from_secs(4);
/// For how long what was taken is counted beside what this host says that it needs.
const COUNTED: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Debug)]
pub(super) struct Orphans {
    house: Arc<House>,
    /// Since when the owners of records were seen to be lost.
    since: BTreeMap<AppId, (Ownership, Duration)>,
    told: BTreeMap<AppId, String>,
    /// What was taken a moment ago.
    taken: Vec<(Duration, Class, Room)>,
}

/// What is to be done about one.
enum Verdict {
    Take,
    Wait,
    /// It is started here by nobody: why.
    Leave(String),
}

impl Orphans {
    pub(super) const fn new(house: Arc<House>) -> Self {
        Self {
            house,
            since: BTreeMap::new(),
            told: BTreeMap::new(),
            taken: Vec::new(),
        }
    }

    /// Looks at all once, and takes over what it is this host's turn to take.
    pub(super) fn look(&mut self, now: Duration) {
        let heard = self.house.hear();
        let stands = heard.lease.is_some_and(|lease| now < lease.run_until());
        let (true, true, Some(records)) = (heard.is_in_reach, stands, heard.records) else {
            // Nobody knows who is there.
            self.since.clear();
            return;
        };
        let movable = self.house.apps.movable().into_iter();
        let may = |app: &App| {
            let takeover = app.mobility.as_ref().map(|mobility| mobility.takeover);
            takeover == Some(Takeover::AfterLease)
        };
        let others: Vec<(App, Ownership)> = movable
            .filter(may)
            .filter_map(|app| Some((records.get(&app.id)?.clone(), app)))
            .filter(|(record, _)| record.owner != self.house.here)
            .map(|(record, app)| (app, record))
            .collect();
        if others.is_empty() {
            self.since.clear();
            return;
        }
        let members = self.house.records.members();
        let is_lost = |(_, record): &(App, Ownership)| !members.contains_key(&record.owner);
        let lost: Vec<(App, Ownership)> = others.into_iter().filter(is_lost).collect();
        self.since
            .retain(|id, _| lost.iter().any(|(app, _)| app.id == *id));
        self.told
            .retain(|id, _| lost.iter().any(|(app, _)| app.id == *id));
        for (app, record) in lost {
            self.care(&app, record, &members, now);
        }
    }

    fn care(
        &mut self,
        app: &App,
        record: Ownership,
        members: &BTreeMap<HostName, Offer>,
        now: Duration,
    ) {
        let id = &app.id;
        let entry = self.since.entry(id.clone());
        let (seen, since) = entry.or_insert_with(|| (record.clone(), now));
        if *seen != record {
            (*seen, *since) = (record.clone(), now);
        }
        let waited = now.saturating_sub(*since);
        let what = match self.judge(app, &record, members, (now, waited)) {
            Verdict::Wait => return,
            Verdict::Leave(why) => format!("its host {} is lost, and {why}", record.owner),
            Verdict::Take => match self.take(app, &record, now) {
                Ok(()) => return,
                // Another one took it, or its host is there again.
                Err(Trouble::Refused(why)) => {
                    tracing::debug!(app = %id, why, "it is not taken over");
                    return;
                }
                Err(Trouble::Unknown(why)) => {
                    format!(
                        "its host {} is lost, and whether this one has it is not known yet: {why}",
                        record.owner
                    )
                }
            },
        };
        if self.told.get(id) != Some(&what) {
            self.house.apps.warn(id, what.clone());
            self.told.insert(id.clone(), what);
        }
    }

    fn judge(
        &mut self,
        app: &App,
        record: &Ownership,
        members: &BTreeMap<HostName, Offer>,
        (now, waited): (Duration, Duration),
    ) -> Verdict {
        let (id, house) = (&app.id, &self.house);
        let Some(Mobility { way, files, .. }) = &app.mobility else {
            return Verdict::Wait;
        };
        if !files.is_empty() {
            return Verdict::Leave(format!(
                "with it its files ({}): it is started nowhere else; bring that host back, or put them on storage \
                 that the hosts share and leave `files` out",
                files[0].display()
            ));
        }
        if *way != Way::Restart {
            return Verdict::Leave(format!(
                "what moves by `{way}` is not begun anew elsewhere; bring that host back, or use mode = \"restart\""
            ));
        }
        if let Some(why) = house.disputed(id) {
            return Verdict::Leave(why);
        }
        let is_moving = house.book.look(|content| {
            content.departures.contains_key(id) || content.arrivals.contains_key(id)
        });
        match house.apps.runs(id) {
            _ if is_moving => return Verdict::Wait,
            None => return Verdict::Wait,
            Some(true) => {
                return Verdict::Leave(format!(
                    "what is on this one of before is still there; end its processes (`forebay explain {id}` shows \
                     them)"
                ));
            }
            Some(false) => {}
        }
        if !has_program(app) {
            return Verdict::Leave("its program is not on this one; install it here".to_owned());
        }
        if let Some(why) = house.crowds(id, |_| false) {
            return Verdict::Leave(why);
        }
        let mover = Mover {
            class: app.class,
            need: house.apps.need(id, Look::Ahead),
            here: record.owner.clone(),
        };
        self.taken
            .retain(|(at, ..)| now.saturating_sub(*at) < COUNTED);
        let mut offers = members.clone();
        // Whoever would not take it has no turn.
        if let Ok(own) = body::like(app) {
            rule_out(id, &own, &mut offers);
        }
        if let Some(own) = offers.get_mut(&house.here) {
            for (_, class, room) in &self.taken {
                let sum = own.promised.entry(*class).or_default();
                sum.cpu.0 = sum.cpu.0.saturating_add(room.cpu.0);
                sum.memory = sum.memory.saturating_add(room.memory);
            }
        }
        match turn(&mover, &house.here, &offers) {
            Ok(turn) if waited >= TURN * turn => Verdict::Take,
            Ok(_) => Verdict::Wait,
            Err(reasons) => Verdict::Leave(format!("no room for it: {}", listed(&reasons))),
        }
    }

    fn take(&mut self, app: &App, record: &Ownership, now: Duration) -> Result<(), Trouble> {
        let (id, house) = (&app.id, &self.house);
        let takeover = Takeover::AfterLease;
        let Some((_, to)) = change(record, (&record.owner, takeover), &house.here) else {
            return Ok(());
        };
        // Of another time than what it was doing.
        house.apps.forget_images(id)?;
        // Its files are nobody's to wait for: it is let run by being given.
        let to = to.running();
        house.records.take_over(id, record, &to)?;
        house.book.learn(id, &to);
        self.taken
            .push((now, app.class, house.apps.need(id, Look::Ahead)));
        let what = format!(
            "is started here: its host {} is lost, and its lease has ended",
            record.owner
        );
        house.apps.tell(id, what);
        house.publish(now);
        Ok(())
    }
}

fn listed(reasons: &BTreeMap<HostName, Reason>) -> String {
    let reasons = reasons.iter().map(|(host, why)| format!("{host}: {why}"));
    let reasons: Vec<String> = reasons.collect();
    match reasons.is_empty() {
        true => "no host is a member".to_owned(),
        false => reasons.join("; "),
    }
}
