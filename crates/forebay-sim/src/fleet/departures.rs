//! The source's side of moves, carried out: what each step of the machine does, how long it takes and how
//! it fails.

use std::time::Duration;

use forebay_core::fleet::choice::Room;
use forebay_core::fleet::departure::{self, Departure};
use forebay_core::fleet::policy::{Cause, Look, Shed};
use forebay_core::fleet::rounds::{self, Bounds, Round, Verdict};
use forebay_core::fleet::tenure::Leave;
use forebay_core::fleet::{HostName, Outcome, Ownership};
use forebay_core::units::Bytes;

use super::coordinator::PATIENCE;
use super::host::{Copy, Leaving, Local};
use super::queue::{Call, Event, Message, Side, Turn};
use super::world::{Fares, World};
use super::{Micros, SECOND};

pub(super) const MILLI: Micros = 1_000;
/// What users want of pauses.
const BOUNDS: Bounds = Bounds {
    aim: Duration::from_millis(100),
    most: Duration::from_millis(1000),
    fixed: Duration::from_millis(40),
};
/// How often a promise is renewed while pages come.
pub(super) const RENEW: Micros = 10 * SECOND;
/// The pause before a step is tried again, doubling.
pub(super) const REST: Micros = 200 * MILLI;
pub(super) const RESTS_MAX: u32 = 5;

impl World {
    /// Whether a step is still the one that its machine waits for.
    pub(super) fn is_current(&self, turn: Turn) -> bool {
        let of = &self.hosts[turn.host];
        let ticket = match turn.side {
            Side::Departure => of.leaving.get(&turn.app).map(|of| of.ticket),
            Side::Arrival => of.coming.get(&turn.app).map(|of| of.ticket),
        };
        self.lives(turn.host, turn.life) && ticket == Some(turn.ticket)
    }

    pub(super) fn turn(&self, host: usize, app: usize, side: Side) -> Turn {
        let of = &self.hosts[host];
        let ticket = match side {
            Side::Departure => of.leaving.get(&app).map(|of| of.ticket),
            Side::Arrival => of.coming.get(&app).map(|of| of.ticket),
        };
        Turn {
            host,
            life: of.life,
            app,
            side,
            ticket: ticket.unwrap_or(0),
        }
    }

    /// A target was found for one that has to leave, or none.
    pub(super) fn found(
        &mut self,
        host: usize,
        app: usize,
        shed: &Shed,
        target: Option<(HostName, Look)>,
    ) {
        let rules = self.rules;
        let of = &mut self.hosts[host];
        let clock = of.boot_clock(self.now);
        let cause = shed.why.cause();
        let Some((target, look)) = target else {
            self.totals.no_target += 1;
            return of.policy.found_none(&rules, clock, (&shed.app, cause));
        };
        let need = match look {
            Look::Ahead => shed.need,
            Look::Present => shed.now,
        };
        let runs = |local: &Local| matches!(local.copy, Copy::Runs { .. });
        let is_here = of.local.get(&app).is_some_and(runs);
        let is_free = !of.leaving.contains_key(&app) && !of.coming.contains_key(&app);
        let is_clear =
            !of.disk.departures.contains_key(&app) && !of.disk.arrivals.contains_key(&app);
        let record = of
            .records
            .get(&app)
            .filter(|record| record.owner == of.name);
        let (true, Some(record)) = (is_here && is_free && is_clear, record.cloned()) else {
            return;
        };
        self.totals.begun += 1;
        let there = self.host_of(&target);
        let (machine, steps) = Departure::begin(record.clone(), target);
        let wants = ((need, look), cause);
        self.leave_with(host, app, (machine, steps), (there, record, wants));
    }

    fn leave_with(
        &mut self,
        host: usize,
        app: usize,
        (machine, steps): (Departure, Vec<departure::Step>),
        (there, record, (need, cause)): (usize, Ownership, ((Room, Look), Cause)),
    ) {
        let ticket = self.next_ticket();
        let leaving = Leaving {
            machine,
            there,
            record,
            need,
            cause,
            ticket,
            again: 0,
            left: 0.0,
            streams: false,
            reserved: false,
        };
        self.hosts[host].leaving.insert(app, leaving);
        self.take_departure_steps(host, app, steps);
    }

    pub(super) fn next_ticket(&mut self) -> u64 {
        self.totals.tickets += 1;
        self.totals.tickets
    }

    /// Takes up a departure that is on disk.
    pub(super) fn resume_departure(&mut self, host: usize, app: usize) {
        let Some((record, there, mark)) = self.hosts[host].disk.departures.get(&app).cloned()
        else {
            return;
        };
        let name = self.hosts[there].name.clone();
        let begun = Departure::resume(record.clone(), name, mark);
        // What it was to need is not on disk, nor why it was to go.
        let wants = ((Room::default(), Look::Ahead), Cause::Short);
        self.leave_with(host, app, begun, (there, record, wants));
    }

    /// The source's machine hears something.
    pub(super) fn departed(&mut self, host: usize, app: usize, input: departure::Input) {
        if let departure::Input::Read(record) = &input {
            // Not older than what its own transactions have made of it.
            let known = self.hosts[host].records.get(&app);
            if known.is_none_or(|known| known.epoch <= record.epoch) {
                self.hosts[host].records.insert(app, record.clone());
            }
        }
        let Some(leaving) = self.hosts[host].leaving.get_mut(&app) else {
            return;
        };
        let before = leaving.machine.stage();
        let steps = leaving.machine.step(input);
        let after = leaving.machine.stage();
        if steps.is_empty() && before == after {
            return;
        }
        leaving.again = if before == after {
            leaving.again + 1
        } else {
            0
        };
        leaving.streams = matches!(
            after,
            departure::Stage::Copying | departure::Stage::Freezing | departure::Stage::Sending
        );
        leaving.ticket = self.totals.tickets + 1;
        self.totals.tickets += 1;
        self.share_out(host);
        self.take_departure_steps(host, app, steps);
    }

    fn take_departure_steps(&mut self, host: usize, app: usize, steps: Vec<departure::Step>) {
        let Some(leaving) = self.hosts[host].leaving.get(&app) else {
            return;
        };
        // Durable before the step is taken.
        let (record, there) = (leaving.record.clone(), leaving.there);
        let (mark, again, stage) = (
            leaving.machine.mark(),
            leaving.again,
            leaving.machine.stage(),
        );
        let disk = &mut self.hosts[host].disk;
        match mark {
            Some(mark) => _ = disk.departures.insert(app, (record.clone(), there, mark)),
            None => _ = disk.departures.remove(&app),
        }
        let turn = self.turn(host, app, Side::Departure);
        for step in steps {
            match step {
                departure::Step::Release(epoch) => {
                    self.tell(host, there, Message::Release { app, epoch });
                }
                step if again > 0 => {
                    let rest = REST << again.min(RESTS_MAX);
                    self.queue
                        .push(self.now + rest, Event::Departure { turn, step });
                }
                step => self.depart(turn, step),
            }
        }
        if let departure::Stage::Over(end) = stage {
            self.departure_over(host, app, end);
        }
    }

    fn departure_over(&mut self, host: usize, app: usize, end: departure::End) {
        let rules = self.rules;
        let id = self.apps[app].id.clone();
        let now = self.now;
        let of = &mut self.hosts[host];
        let Some(leaving) = of.leaving.remove(&app) else {
            return;
        };
        let clock = of.boot_clock(now);
        match end {
            departure::End::Moved => {
                of.records.remove(&app);
                self.totals.left += 1;
            }
            departure::End::Stayed | departure::End::Refused => {
                self.totals.stayed += 1;
                let cause = leaving.cause;
                match leaving.reserved {
                    true => of.policy.stayed(&rules, clock, (&id, cause)),
                    false => of.policy.refused(&rules, clock, cause),
                }
                self.let_run(host);
            }
        }
        self.publish(host);
    }

    /// How a step ends, a while from now.
    fn end_departure(&mut self, turn: Turn, after: Micros, outcome: Outcome) {
        let input = departure::Input::Ended(outcome);
        self.queue
            .push(self.now + after, Event::Departed { turn, input });
    }

    /// The source takes a step.
    pub(super) fn depart(&mut self, turn: Turn, step: departure::Step) {
        use departure::Step;
        let Turn { host, app, .. } = turn;
        self.tempt(host);
        let Some(leaving) = self.hosts[host].leaving.get(&app) else {
            return;
        };
        let (there, record, need) = (leaving.there, leaving.record.clone(), leaving.need);
        let copy = self.hosts[host].local.get(&app).map(|local| local.copy);
        match step {
            Step::Check => {
                let runs = matches!(copy, Some(Copy::Runs { .. })) && self.apps[app].movable;
                let outcome = if runs {
                    Outcome::Done
                } else {
                    Outcome::Refused
                };
                self.end_departure(turn, 20 * MILLI, outcome);
            }
            Step::Reserve => {
                let clock = self.hosts[host].boot_clock(self.now);
                let homes = self.hosts[host].local.get(&app).map(|local| &local.homes);
                let ages = homes.map_or_else(Vec::new, |homes| homes.ages(clock));
                let message = Message::Reserve {
                    turn,
                    record,
                    need,
                    ages,
                };
                self.tell(host, there, message);
                self.end_departure(turn, PATIENCE, Outcome::Unknown);
            }
            Step::Copy => {
                let clock = self.hosts[host].boot_clock(self.now);
                let cause = leaving.cause;
                self.hosts[host].policy.began(clock, cause);
                if let Some(leaving) = self.hosts[host].leaving.get_mut(&app) {
                    leaving.reserved = true;
                }
                let (takes, left, verdict) = self.copying(host, there, app);
                let outcome = match verdict {
                    Verdict::Freeze(_) => Outcome::Done,
                    _ => Outcome::Refused,
                };
                if let Some(leaving) = self.hosts[host].leaving.get_mut(&app) {
                    leaving.left = left;
                }
                let outcome = if self.chance(50) {
                    Outcome::Unknown
                } else {
                    outcome
                };
                self.end_departure(turn, takes, outcome);
                self.queue.push(self.now + RENEW, Event::Renew { turn });
            }
            // Whoever is not there any more shows that while pages go there.
            Step::Freeze if !self.is_there(host, there) => {
                self.end_departure(turn, MILLI, Outcome::Refused);
            }
            Step::Freeze => {
                self.stop(host, app, Fares::Held, Copy::Stands);
                let refused = self.chance(50);
                let outcome = if refused {
                    Outcome::Refused
                } else {
                    Outcome::Done
                };
                let takes = self.rng.u64(2..15) * MILLI;
                self.end_departure(turn, takes, outcome);
            }
            Step::Send => self.send(turn, there, record),
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
            Step::Read => self.ask(host, Call::Read { turn }),
            Step::Thaw => {
                // What is on disk says that it may be gone; the machine knows better by now.
                let outcome = match (copy, self.leave(host, app, false)) {
                    (Some(Copy::Runs { .. }), _) => Outcome::Done,
                    (_, Leave::Run { .. }) => {
                        self.start(host, app);
                        Outcome::Done
                    }
                    (_, Leave::NotOurs) => {
                        self.drop_copy(host, app);
                        Outcome::Done
                    }
                    _ => Outcome::Refused,
                };
                self.end_departure(turn, MILLI, outcome);
            }
            // All that it has was sent before.
            Step::Lend => self.end_departure(turn, MILLI, Outcome::Done),
            Step::End => {
                self.drop_copy(host, app);
                self.end_departure(turn, 20 * MILLI, Outcome::Done);
            }
            Step::Release(_) => {}
        }
    }

    /// Copying while it runs: how long that takes, what is left, and what follows.
    fn copying(&self, host: usize, there: usize, app: usize) -> (Micros, f64, Verdict) {
        let speed = self.speed(host, there);
        let of = &self.apps[app];
        let all = of.memory.as_f64();
        let (mut left, mut takes) = (all, 0.0);
        let mut rounds = Vec::new();
        loop {
            let took = left / speed;
            let copied = Bytes::from_f64(left);
            takes += took;
            left = (took * of.writes).min(all);
            rounds.push(Round {
                copied,
                took: Duration::from_secs_f64(took),
                left: Bytes::from_f64(left),
            });
            match rounds::judge(BOUNDS, &rounds) {
                Verdict::Again => {}
                verdict => return (micros(takes), left, verdict),
            }
        }
    }

    /// Bytes per second between two hosts, by what streams there are.
    fn speed(&self, host: usize, there: usize) -> f64 {
        let part = |host: usize| {
            let of = &self.hosts[host];
            let streams = u32::try_from(of.streams()).unwrap_or(u32::MAX);
            of.speed(self.now) / f64::from(streams.max(1))
        };
        part(host).min(part(there))
    }

    fn is_there(&self, host: usize, there: usize) -> bool {
        let of = &self.hosts[there];
        self.hear(host, there) && of.works(self.now) && of.daemon
    }

    fn send(&mut self, turn: Turn, there: usize, record: Ownership) {
        let Turn { host, app, .. } = turn;
        let left = self.hosts[host].leaving.get(&app).map_or(0.0, |of| of.left);
        let takes = micros(left / self.speed(host, there)) + 10 * MILLI;
        let copy = self.hosts[host].local.get(&app).map(|local| local.copy);
        let Some(Copy::Stands(position)) = copy else {
            return self.end_departure(turn, MILLI, Outcome::Refused);
        };
        self.end_departure(turn, takes + PATIENCE, Outcome::Unknown);
        if self.hear(host, there) {
            let message = Box::new(Message::Sent {
                turn,
                record,
                position,
            });
            let event = Event::Message {
                from: host,
                to: there,
                message,
            };
            self.queue.push(self.now + takes, event);
        }
    }

    /// How a transaction of either side ended: what it made of the record is known now.
    pub(super) fn changed(&mut self, turn: Turn, app: usize, to: &Ownership, outcome: Outcome) {
        if outcome == Outcome::Done {
            let of = &mut self.hosts[turn.host];
            of.records.insert(app, to.clone());
            of.seen.insert(app, to.epoch);
        }
        self.ended(turn, outcome);
    }

    pub(super) fn renew(&mut self, turn: Turn) {
        let Turn { host, app, .. } = turn;
        let Some(leaving) = self.hosts[host].leaving.get(&app).filter(|of| of.streams) else {
            return;
        };
        let (there, record, need) = (leaving.there, leaving.record.clone(), leaving.need);
        self.tell(host, there, Message::Renew { app, record, need });
        self.queue.push(self.now + RENEW, Event::Renew { turn });
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "spans of hours at most, and none is negative"
)]
fn micros(seconds: f64) -> Micros {
    (seconds * 1e6) as u64
}
