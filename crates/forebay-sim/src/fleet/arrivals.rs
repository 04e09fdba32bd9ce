//! The target's side of moves, carried out.

use std::time::Duration;

use forebay_core::fleet::arrival::{self, Arrival, Found};
use forebay_core::fleet::choice::Room;
use forebay_core::fleet::policy::{Homes, Look};
use forebay_core::fleet::tenure::Leave;
use forebay_core::fleet::{Epoch, HostName, Outcome, Ownership};

use super::departures::{MILLI, RENEW, REST, RESTS_MAX};
use super::host::{Coming, Copy, Local};
use super::queue::{Call, Event, Side, Turn};
use super::world::World;
use super::{Micros, SECOND};

/// How long a copy may stand still at a target before it makes room.
const STANDS_MAX: Micros = 60 * SECOND;

impl World {
    /// A source asks for room.
    pub(super) fn reserved(
        &mut self,
        host: usize,
        turn: Turn,
        record: Ownership,
        (need, ages): ((Room, Look), Vec<(HostName, Duration)>),
    ) -> Outcome {
        let app = turn.app;
        let of = &self.hosts[host];
        // Beside what came before, nothing is taken in.
        if of.coming.contains_key(&app)
            || of.disk.arrivals.contains_key(&app)
            || of.local.contains_key(&app)
        {
            self.totals.refused_underway += 1;
            return Outcome::Refused;
        }
        let owner = record.owner.clone();
        if !self.promise(host, app, &owner, need) {
            return Outcome::Refused;
        }
        let name = self.hosts[host].name.clone();
        let begun = Arrival::begin(record.clone(), name);
        self.come_with(host, app, begun, (turn.host, record, ages));
        self.publish(host);
        Outcome::Done
    }

    fn come_with(
        &mut self,
        host: usize,
        app: usize,
        (machine, steps): (Arrival, Vec<arrival::Step>),
        (from, record, ages): (usize, Ownership, Vec<(HostName, Duration)>),
    ) {
        let ticket = self.next_ticket();
        let coming = Coming {
            machine,
            from,
            record,
            ages,
            ticket,
            again: 0,
            waits_since: None,
            streams: true,
        };
        let (life, epoch) = (self.hosts[host].life, coming.record.epoch);
        self.hosts[host].coming.insert(app, coming);
        let event = Event::Tend {
            host,
            life,
            app,
            epoch,
        };
        self.queue.push(self.now + RENEW, event);
        self.take_arrival_steps(host, app, steps);
    }

    pub(super) fn resume_arrival(&mut self, host: usize, app: usize) {
        let Some((record, from, mark)) = self.hosts[host].disk.arrivals.get(&app).cloned() else {
            return;
        };
        let copy = self.hosts[host].local.get(&app).map(|local| local.copy);
        let found = match copy {
            None | Some(Copy::Files(_)) => Found::Nothing,
            Some(Copy::Stands(_)) => Found::Fresh,
            Some(Copy::Runs { .. } | Copy::Suspended(_)) => Found::Started,
        };
        let name = self.hosts[host].name.clone();
        let begun = Arrival::resume(record.clone(), name, mark, found);
        let homes = self.hosts[host].local.get(&app).map(|local| &local.homes);
        let clock = self.hosts[host].boot_clock(self.now);
        let ages = homes.map_or_else(Vec::new, |homes| homes.ages(clock));
        self.come_with(host, app, begun, (from, record, ages));
    }

    /// The rest of one arrived: a copy is made that stands still.
    pub(super) fn received(
        &mut self,
        host: usize,
        app: usize,
        record: &Ownership,
        position: u64,
    ) -> Outcome {
        let Some(coming) = self.hosts[host].coming.get(&app) else {
            return Outcome::Refused;
        };
        let is_open = coming.machine.stage() == arrival::Stage::Receiving;
        if coming.record != *record || !is_open {
            return Outcome::Refused;
        }
        self.arrived(host, app, arrival::Input::Ended(Outcome::Done));
        let local = Local {
            copy: Copy::Stands(position),
            homes: Homes::default(),
            epoch: record.epoch + 1,
        };
        if self.chance(50) {
            self.arrived(host, app, arrival::Input::Ended(Outcome::Refused));
            return Outcome::Refused;
        }
        self.put(host, app, local);
        if let Some(coming) = self.hosts[host].coming.get_mut(&app) {
            coming.waits_since = Some(self.now);
        }
        self.arrived(host, app, arrival::Input::Ended(Outcome::Done));
        Outcome::Done
    }

    /// The target's machine hears something.
    pub(super) fn arrived(&mut self, host: usize, app: usize, input: arrival::Input) {
        let Some(coming) = self.hosts[host].coming.get_mut(&app) else {
            return;
        };
        let before = coming.machine.stage();
        let steps = coming.machine.step(input);
        let after = coming.machine.stage();
        if steps.is_empty() && before == after {
            return;
        }
        coming.again = if before == after { coming.again + 1 } else { 0 };
        coming.streams = after == arrival::Stage::Receiving;
        coming.ticket = self.totals.tickets + 1;
        self.totals.tickets += 1;
        self.share_out(host);
        self.take_arrival_steps(host, app, steps);
    }

    fn take_arrival_steps(&mut self, host: usize, app: usize, steps: Vec<arrival::Step>) {
        let Some(coming) = self.hosts[host].coming.get(&app) else {
            return;
        };
        let (record, from) = (coming.record.clone(), coming.from);
        let (mark, again, stage) = (coming.machine.mark(), coming.again, coming.machine.stage());
        let disk = &mut self.hosts[host].disk;
        match mark {
            Some(mark) => _ = disk.arrivals.insert(app, (record, from, mark)),
            None => _ = disk.arrivals.remove(&app),
        }
        let turn = self.turn(host, app, Side::Arrival);
        for step in steps {
            if again > 0 {
                let rest = REST << again.min(RESTS_MAX);
                self.queue
                    .push(self.now + rest, Event::Arrival { turn, step });
            } else {
                self.arrive(turn, step);
            }
        }
        if let arrival::Stage::Over(end) = stage {
            self.arrival_over(host, app, end);
        }
    }

    fn arrival_over(&mut self, host: usize, app: usize, end: arrival::End) {
        let id = self.apps[app].id.clone();
        let of = &mut self.hosts[host];
        of.coming.remove(&app);
        of.promises.release(&id);
        if end == arrival::End::Runs {
            // Whoever else may have it, the record says; and it may have gone down meanwhile.
            self.resync(host);
        }
        self.publish(host);
    }

    fn end_arrival(&mut self, turn: Turn, after: Micros, outcome: Outcome) {
        let input = arrival::Input::Ended(outcome);
        self.queue
            .push(self.now + after, Event::Arrived { turn, input });
    }

    /// The target takes a step.
    pub(super) fn arrive(&mut self, turn: Turn, step: arrival::Step) {
        use arrival::Step;
        let Turn { host, app, .. } = turn;
        self.tempt(host);
        match step {
            // The source ends these.
            Step::Receive | Step::Prepare => {}
            Step::Read => self.ask(host, Call::Read { turn }),
            Step::Start => {
                let copy = self.hosts[host].local.get(&app).map(|local| local.copy);
                let outcome = match (copy, self.leave(host, app, false)) {
                    (Some(Copy::Runs { .. }), _) => Outcome::Done,
                    (None | Some(Copy::Files(_)), _) | (_, Leave::NotOurs) => Outcome::Refused,
                    (_, Leave::Run { .. }) if self.chance(50) => Outcome::Refused,
                    (_, Leave::Run { .. }) => {
                        self.begin_here(host, app);
                        match self.chance(50) {
                            true => Outcome::Unknown,
                            false => Outcome::Done,
                        }
                    }
                    _ => {
                        self.hosts[host].missed = true;
                        Outcome::Unknown
                    }
                };
                let takes = self.rng.u64(5..30) * MILLI;
                self.end_arrival(turn, takes, outcome);
            }
            Step::Change(epoch, to) => {
                let turn = Some(turn);
                self.ask(
                    host,
                    Call::Change {
                        turn,
                        app,
                        epoch,
                        to,
                    },
                );
            }
            Step::Discard => {
                self.drop_copy(host, app);
                self.end_arrival(turn, 10 * MILLI, Outcome::Done);
            }
        }
    }

    /// A copy that came begins to run.
    fn begin_here(&mut self, host: usize, app: usize) {
        let clock = self.hosts[host].boot_clock(self.now);
        let Some(coming) = self.hosts[host].coming.get(&app) else {
            return;
        };
        let (from, owner) = (coming.from, coming.record.owner.clone());
        let homes = Homes::arrived(clock, &coming.ages, owner);
        let mut first = false;
        if let Some(local) = self.hosts[host].local.get_mut(&app) {
            first = local.homes == Homes::default();
            if first {
                local.homes = homes;
            }
        }
        self.start(host, app);
        if first {
            self.moved(app, from, host);
        }
    }

    /// Looks after one that comes: its promise while a copy is there, and the patience for it.
    pub(super) fn tend(&mut self, host: usize, app: usize, epoch: Epoch) {
        let of = &mut self.hosts[host];
        let Some(coming) = of.coming.get(&app).filter(|of| of.record.epoch == epoch) else {
            return;
        };
        let (stage, waits) = (coming.machine.stage(), coming.waits_since);
        let clock = of.boot_clock(self.now);
        let id = &self.apps[app].id;
        of.promises.expire(clock);
        let kept = of.promises.holds(id);
        let impatient = match stage {
            arrival::Stage::Receiving | arrival::Stage::Preparing => !kept,
            arrival::Stage::Waiting => waits.is_none_or(|since| self.now - since > STANDS_MAX),
            _ => false,
        };
        let life = of.life;
        if impatient {
            self.arrived(host, app, arrival::Input::Impatient);
        }
        let event = Event::Tend {
            host,
            life,
            app,
            epoch,
        };
        self.queue.push(self.now + RENEW, event);
    }
}
