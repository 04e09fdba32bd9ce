//! Moves that nobody asked for: of what is constrained here, and of what this host will be too small for.
//!
//! ```text
//!   reports ──▶ ladders of the control thread ── a rung: move it to b ──┐
//!      │                 ▲                                              ▼
//!      │                 └── Away: where to, or why not ── Initiative ── Moves::begin ──▶ Note
//!      └──▶ policy::decide: this host is short, or will be ─────────────▲                  │
//!                                                    Memory: budget, rest, bars ◀── how it ended
//! ```
//!
//! One application is constrained: its ladder tries what can be done on this host, and then takes the rung
//! that moves it, to the host that is named here. The host as a whole wants more than it has, or will:
//! [`policy::decide`] says who leaves. Both go by [`policy::target`] on what hosts publish, out of one budget
//! ([`policy::Memory`]), and both are begun here, so that nothing is begun twice. How a move ended is
//! told to the ladder that asked for it.
//!
//! Nothing is begun where `offload.mode` is not `act` or `fleet.moves.by_itself` is false, while Forebay
//! only observes, while this host is being left or is no member of its fleet. What is under way goes on.

use std::cell::LazyCell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::Duration;

use forebay_core::app::{App, AppId};
use forebay_core::fleet::HostName;
use forebay_core::fleet::choice::Offer;
use forebay_core::fleet::departure::End;
use forebay_core::fleet::need::{Need, Use};
use forebay_core::fleet::offering::{self, Standing};
use forebay_core::fleet::policy::{
    self, Away, Cause, Homes, Look, Memory, Resident, Rules, Shed, Stays, Why,
};
use forebay_core::fleet::taking::{self, Untaken};
use forebay_core::offload::{Climb, Mode};
use forebay_core::report::TickReport;
use forebay_core::units::{Bytes, MilliCpu};
use tokio::sync::watch;

use super::hosted::with_floor;
use super::keeper::now;
use super::service::{fit, is_handed_over};
use super::{Apps, Desk, Hosted, Note};
use crate::config::MovesConfig;
use crate::control::Command;
use crate::fleet::coordinator::Members;

/// How often it is looked whether somebody should leave.
const LOOK: Duration = Duration::from_secs(1);
/// A host that one did not get to is not offered to it for so many times as long as it is left alone: when it
/// is tried again, another one is.
const CLOSED_BARS: u32 = 4;
/// Such hosts that are remembered; those that are open soonest are forgotten first.
const CLOSED_MAX: usize = 1024;

/// What is looked at.
pub(crate) struct Around<'a> {
    pub(crate) desk: &'a Desk,
    pub(crate) hosted: &'a Hosted,
    /// Who is there, as is known to the coordinator now; asked once, and where somebody may leave.
    pub(crate) members: &'a LazyCell<Arc<Members>, &'a dyn Fn() -> Arc<Members>>,
    /// Whether anything may begin to move, as the coordinator stands.
    pub(crate) may: bool,
}

/// A move that was begun here.
#[derive(Debug)]
struct Begun {
    note: Arc<Note>,
    cause: Cause,
}

/// Hosts that applications did not get to, and until when they are not offered to them.
#[derive(Debug, Default)]
struct Closed(BTreeMap<(AppId, HostName), Duration>);

impl Closed {
    fn close(&mut self, now: Duration, (app, host): (&AppId, &HostName), until: Duration) {
        self.0.retain(|_, until| *until > now);
        self.0.insert((app.clone(), host.clone()), until);
        while self.0.len() > CLOSED_MAX {
            let soonest = self.0.iter().min_by_key(|(_, until)| **until);
            let Some(soonest) = soonest.map(|(key, _)| key.clone()) else {
                break;
            };
            self.0.remove(&soonest);
        }
    }

    fn is_closed(&self, now: Duration, app: &AppId, host: &HostName) -> bool {
        let until = self.0.get(&(app.clone(), host.clone()));
        until.is_some_and(|until| *until > now)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Initiative {
    is_on: bool,
    rules: Rules,
    memory: Memory,
    begun: BTreeMap<AppId, Begun>,
    closed: Closed,
    /// Those whose ladders were answered, for as long as they stand on that rung.
    answered: BTreeSet<AppId>,
    /// Those that their ladders are to hear of that they stay.
    stayed: BTreeSet<AppId>,
    /// Those that would leave and that no host takes, and until when that is not said again: reasons have numbers.
    told: BTreeMap<AppId, Duration>,
    away: watch::Sender<Option<Arc<BTreeMap<AppId, Away>>>>,
    due: Duration,
}

/// One that runs here.
struct Here<'a> {
    standing: Standing<'a>,
    app: App,
    climb: Option<&'a Climb>,
    uses: Use,
    /// Whether anything is known of what it needs.
    is_known: bool,
    homes: Homes,
    is_ours: bool,
    leaves: bool,
}

impl Here<'_> {
    fn resident(&self) -> Resident<'_> {
        Resident {
            app: self.standing.app,
            class: self.standing.class,
            uses: self.uses,
            // What nothing is known of may need all there is, and is no reason to send anybody away.
            need: match self.is_known {
                true => self.standing.need,
                false => Need::just(self.uses.cpus),
            },
            memory: match is_handed_over(&self.app) {
                // Its instance on the target has its part of that host already.
                true => Bytes(0),
                false => self.standing.memory,
            },
            movable: self.app.mobility.is_some() && self.is_ours,
            leaves: self.leaves,
            homes: &self.homes,
        }
    }

    fn shed(&self, why: Why) -> Shed {
        let shed = Shed::of(&self.resident(), why);
        Shed {
            need: with_floor(shed.need, &self.app),
            now: with_floor(shed.now, &self.app),
            ..shed
        }
    }

    fn is_constrained(&self) -> bool {
        self.climb
            .is_some_and(|climb| !climb.constraints.is_empty())
    }
}

impl Initiative {
    pub(crate) fn new(
        own: MovesConfig,
        away: watch::Sender<Option<Arc<BTreeMap<AppId, Away>>>>,
    ) -> Self {
        Self {
            is_on: own.by_itself,
            rules: own.rules,
            memory: Memory::default(),
            begun: BTreeMap::new(),
            closed: Closed::default(),
            answered: BTreeSet::new(),
            stayed: BTreeSet::new(),
            told: BTreeMap::new(),
            away,
            due: Duration::ZERO,
        }
    }

    /// Looks how what was begun ended, what ladders ask for, and from time to time at the whole host.
    pub(crate) fn step(&mut self, around: &Around<'_>) {
        self.settle(around);
        let published = around.hosted.reports.borrow().clone();
        let Some(report) = published.as_deref().map(|published| &published.report) else {
            return;
        };
        let here = self.here(around, report);
        let begins = self.is_on && self.may_begin(around, report);
        if begins && self.hear_ladders(around, &here) {
            // What it did changes what others find: it is looked anew, and soon.
            self.due = Duration::ZERO;
            return;
        }
        if now() < self.due {
            return;
        }
        self.due = now() + LOOK;
        if begins {
            self.shed(around, &here);
        }
        let away = here.iter();
        let away = away.map(|one| (one.app.id.clone(), self.stance(around, one, &here)));
        self.away.send_replace(Some(Arc::new(away.collect())));
    }

    fn may_begin(&self, around: &Around<'_>, report: &TickReport) -> bool {
        around.may
            && !report.paused
            && report.offload == Mode::Act
            && !around.desk.drain.shown().goes_on
    }

    /// Takes in how moves ended.
    fn settle(&mut self, around: &Around<'_>) {
        let (rules, now) = (self.rules, now());
        let (memory, stayed) = (&mut self.memory, &mut self.stayed);
        let closed = &mut self.closed;
        self.begun.retain(|app, begun| {
            let Some(end) = begun.note.end() else {
                return true;
            };
            match end {
                End::Moved => {}
                End::Stayed => memory.stayed(&rules, now, (app, begun.cause)),
                End::Refused => memory.refused(&rules, now, begun.cause),
            }
            if end != End::Moved {
                stayed.insert(app.clone());
                let until = now + rules.bar * CLOSED_BARS;
                closed.close(now, (app, &begun.note.there), until);
            }
            false
        });
        stayed.retain(|app| {
            match around
                .hosted
                .commands
                .try_send(Command::Stayed(app.clone()))
            {
                Ok(()) | Err(TrySendError::Disconnected(_)) => false,
                // It is asked again: until then its ladder goes on measuring, which does no harm.
                Err(TrySendError::Full(_)) => true,
            }
        });
    }

    /// What runs here.
    fn here<'a>(&self, around: &Around<'_>, report: &'a TickReport) -> Vec<Here<'a>> {
        let Around { desk, hosted, .. } = around;
        let ahead = Arc::clone(&hosted.ahead.borrow());
        let (capacity, standing) = offering::standing(hosted.size, report, &ahead);
        let ours: BTreeSet<AppId> = desk.moves.ours().into_iter().collect();
        let away = desk.moves.away();
        let leaving = away.iter().filter(|(note, _)| note.end().is_none());
        let leaving: BTreeSet<&AppId> = leaving.map(|(note, _)| &note.app).collect();
        let used: f64 = standing.iter().map(|one| one.used.cpu.as_cpus()).sum();
        // Who waits although the apps leave some of the host idle waits for something that no move brings.
        let full = f64::from(self.rules.clear_percent) / 100.0 * capacity.cpu.as_cpus();
        let each = standing.into_iter().filter_map(|standing| {
            let known = report.apps.get(standing.app)?;
            let waits = known.offload.as_ref().is_some_and(Climb::waits_here);
            Some(Here {
                app: hosted.app(standing.app)?,
                climb: known.offload.as_ref(),
                uses: Use {
                    cpus: known.usage.cpu.unwrap_or_default(),
                    waits: waits && used >= full,
                },
                is_known: known.demand.is_some() || ahead.contains_key(standing.app),
                homes: desk.moves.homes(standing.app),
                is_ours: ours.contains(standing.app),
                leaves: leaving.contains(standing.app),
                standing,
            })
        });
        each.collect()
    }

    /// Begins what ladders ask for; whether it did anything.
    fn hear_ladders(&mut self, around: &Around<'_>, here: &[Here<'_>]) -> bool {
        let asks = |one: &&Here<'_>| one.climb.and_then(Climb::moves_to).is_some();
        let asking: Vec<&Here<'_>> = here.iter().filter(asks).collect();
        self.answered
            .retain(|app| asking.iter().any(|one| one.app.id == *app));
        let mut did = false;
        for one in asking {
            let Some(to) = one.climb.and_then(Climb::moves_to) else {
                continue;
            };
            if !self.answered.insert(one.app.id.clone()) {
                continue;
            }
            did = true;
            let look = match self.target(around, one, Why::Constrained, leaving(here)) {
                Ok((host, look)) if host == *to => Ok(look),
                // Somebody else has that room by now, or this host's budget is used up.
                Ok((host, _)) => Err(format!("{to} has no room any more, and {host} does")),
                Err(why) => Err(why.to_string()),
            };
            let begun = look.and_then(|look| {
                let worst = one.climb.and_then(|climb| climb.constraints.first());
                let why = worst.map_or_else(|| Why::Constrained.to_string(), ToString::to_string);
                self.begin(around, &one.app.id, (to, look), Cause::Short, &why)
            });
            if let Err(why) = begun {
                let what = format!("does not move to {to} by itself: {why}");
                around.hosted.warn(&one.app.id, what);
                self.stayed.insert(one.app.id.clone());
            }
        }
        did
    }

    /// Looks whether this host is too small, and lets one go if so.
    fn shed(&mut self, around: &Around<'_>, here: &[Here<'_>]) {
        let mut untaken = BTreeMap::new();
        let shed = self.decide(around, here, &mut untaken);
        self.told.retain(|_, until| *until > now());
        for (app, why) in untaken {
            if let Entry::Vacant(untold) = self.told.entry(app) {
                let what = format!("would leave this host, which is short, and stays: {why}");
                around.hosted.warn(untold.key(), what);
                untold.insert(now() + self.rules.bar);
            }
        }
        let Some(Shed { app, why, .. }) = shed else {
            return;
        };
        let Some(one) = here.iter().find(|one| one.app.id == app) else {
            return;
        };
        let cause = why.cause();
        let (host, look) = match self.place(around, one, why) {
            Ok(to) => to,
            Err(stays) => {
                let what = format!("would leave this host, since {why}, and stays: {stays}");
                around.hosted.warn(&app, what);
                return self.memory.found_none(&self.rules, now(), (&app, cause));
            }
        };
        if let Err(trouble) = self.begin(around, &app, (&host, look), cause, &why.to_string()) {
            let what = format!("does not move to {host} by itself: {trouble}");
            around.hosted.warn(&app, what);
            self.memory.stayed(&self.rules, now(), (&app, cause));
        }
    }

    /// Who leaves, of those that another host takes, and why others that would are not taken.
    fn decide(
        &mut self,
        around: &Around<'_>,
        here: &[Here<'_>],
        untaken: &mut BTreeMap<AppId, Untaken>,
    ) -> Option<Shed> {
        let cpus = around.hosted.size.cpus;
        let capacity = MilliCpu::cpus(u64::try_from(cpus).unwrap_or(u64::MAX));
        let residents: Vec<Resident<'_>> = here.iter().map(Here::resident).collect();
        let mut memory = self.memory.clone();
        let may_be_taken = &mut |app: &AppId| {
            let one = here.iter().find(|one| one.app.id == *app);
            let offers = one.and_then(|one| self.offers(around, one));
            let why = offers.and_then(|offers| taking::untaken(around.desk.moves.here(), &offers));
            why.is_none_or(|why| {
                untaken.insert(app.clone(), why);
                false
            })
        };
        let shed = policy::decide(
            &self.rules,
            now(),
            capacity,
            &residents,
            &mut memory,
            may_be_taken,
        );
        self.memory = memory;
        shed
    }

    fn begin(
        &mut self,
        around: &Around<'_>,
        app: &AppId,
        (to, look): (&HostName, Look),
        cause: Cause,
        why: &str,
    ) -> Result<(), String> {
        let begun = around.desk.moves.begin(app, to, look);
        let note = begun.map_err(|refused| refused.why().to_owned())?;
        // Also where it is refused then: whoever asks in vain asks less.
        self.memory.began(now(), cause);
        around
            .hosted
            .tell(app, format!("leaves for {to} by itself, since {why}"));
        self.begun.insert(app.clone(), Begun { note, cause });
        Ok(())
    }

    /// Where one could go for its own sake, for its ladder and whoever looks.
    fn stance(&self, around: &Around<'_>, one: &Here<'_>, here: &[Here<'_>]) -> Away {
        if one.leaves {
            return Away::Leaves;
        }
        if !one.is_constrained() {
            return Away::Stays(Stays::Unseen);
        }
        let target = self.target(around, one, Why::Constrained, leaving(here));
        target.map_or_else(Away::Stays, |(host, _)| Away::To(host))
    }

    /// Where one goes that is constrained, or why it stays.
    fn target(
        &self,
        around: &Around<'_>,
        one: &Here<'_>,
        why: Why,
        leaving: usize,
    ) -> Result<(HostName, Look), Stays> {
        if !self.is_on {
            return Err(Stays::Off);
        }
        if one.app.mobility.is_none() {
            return Err(Stays::Pinned);
        }
        if !around.may {
            return Err(Stays::Alone);
        }
        if !one.is_ours {
            return Err(Stays::NotOurs);
        }
        if around.desk.drain.shown().goes_on {
            return Err(Stays::Drained);
        }
        let who = (&one.app.id, &one.homes);
        self.memory.allows(&self.rules, now(), who, leaving)?;
        self.place(around, one, why)
    }

    /// Where there is room for one, or why there is none.
    fn place(
        &self,
        around: &Around<'_>,
        one: &Here<'_>,
        why: Why,
    ) -> Result<(HostName, Look), Stays> {
        let offers = self.offers(around, one).ok_or(Stays::NoTarget)?;
        let here = (around.desk.moves.here(), &one.homes);
        let found = policy::target(&self.rules, now(), &one.shed(why), here, &offers);
        let untaken = || taking::untaken(around.desk.moves.here(), &offers);
        found.ok_or_else(|| untaken().map_or(Stays::NoTarget, Stays::Untaken))
    }

    /// What other hosts offer it, with those ruled out that would refuse it; none where its front does not say how it
    /// stands.
    fn offers(&self, around: &Around<'_>, one: &Here<'_>) -> Option<BTreeMap<HostName, Offer>> {
        // Nothing goes where no agent listens.
        let members = around.members.iter();
        let listening = members.filter(|(host, member)| {
            member.address.is_some() && !self.closed.is_closed(now(), &one.app.id, host)
        });
        let mut offers: BTreeMap<HostName, Offer> = listening
            .map(|(name, member)| (name.clone(), member.offer.clone()))
            .collect();
        match fit(&one.app, around.hosted, &mut offers) {
            Ok(()) => Some(offers),
            Err(trouble) => {
                tracing::debug!(app = %one.app.id, %trouble, "it is not known where it could go");
                None
            }
        }
    }
}

fn leaving(here: &[Here<'_>]) -> usize {
    here.iter().filter(|one| one.leaves).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_one_did_not_get_to_is_closed_to_it_alone_and_for_a_while() {
        let mut closed = Closed::default();
        let at = Duration::from_secs;
        let (web, other): (AppId, AppId) = ("web".parse().unwrap(), "other".parse().unwrap());
        let host = |n: usize| -> HostName { format!("h{n}").parse().unwrap() };
        closed.close(at(0), (&web, &host(0)), at(20));
        assert!(closed.is_closed(at(19), &web, &host(0)));
        assert!(!closed.is_closed(at(20), &web, &host(0)));
        assert!(!closed.is_closed(at(1), &other, &host(0)));
        assert!(!closed.is_closed(at(1), &web, &host(1)));
        for n in 1..=CLOSED_MAX {
            closed.close(at(1), (&web, &host(n)), at(30));
        }
        assert_eq!(closed.0.len(), CLOSED_MAX);
        assert!(
            !closed.is_closed(at(2), &web, &host(0)),
            "that was open soonest"
        );
        closed.close(at(40), (&web, &host(0)), at(50));
        assert_eq!(closed.0.len(), 1);
    }
}
