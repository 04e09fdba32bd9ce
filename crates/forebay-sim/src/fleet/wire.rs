//! The way of messages between hosts, and of requests to the coordinator.

use forebay_core::fleet::{Epoch, Outcome, Ownership, arrival};

use super::coordinator::PATIENCE;
use super::host::Coming;
use super::queue::{Answer, Call, Event, Message, Request};
use super::world::World;

impl World {
    /// Whether something goes wrong that may at any time, once in so often.
    pub(super) fn chance(&mut self, once_in: u32) -> bool {
        let may = self.options.faults && self.now < self.calm_from;
        may && self.rng.u32(0..once_in) == 0
    }

    /// A message from host to host, which may be lost.
    pub(super) fn tell(&mut self, from: usize, to: usize, message: Message) {
        if !self.hear(from, to) || self.chance(200) {
            return;
        }
        let late = self.rng.u64(200..1_500);
        let message = Box::new(message);
        self.queue
            .push(self.now + late, Event::Message { from, to, message });
    }

    /// A request to the coordinator. There is an answer always, if only that nobody knows.
    pub(super) fn ask(&mut self, host: usize, call: Call) {
        self.coordinator.load.count(self.now, host);
        let life = self.hosts[host].life;
        let mut request = Request {
            host,
            life,
            call,
            silent: false,
        };
        if !self.reaches_coordinator(host) || self.now < self.coordinator.down_until {
            let request = Box::new(request);
            let event = Event::Answer(request, Answer::Unknown);
            return self.queue.push(self.now + PATIENCE, event);
        }
        let mut late = self.rng.u64(500..2_500);
        // Records are what moves hang on.
        let once_in = match &request.call {
            Call::Change { .. } | Call::Takeover { .. } | Call::Read { .. } => 12,
            _ => 100,
        };
        if self.chance(once_in) {
            let event = Event::Answer(Box::new(request.clone()), Answer::Unknown);
            self.queue.push(self.now + PATIENCE, event);
            request.silent = true;
            match self.rng.u8(0..3) {
                // Lost on the way there.
                0 => return,
                // Lost on the way back.
                1 => {}
                // Late, when nobody waits for it any more.
                _ => late = self.rng.u64(PATIENCE..4 * PATIENCE),
            }
        }
        let event = Event::AtCoordinator(Box::new(request));
        self.queue.push(self.now + late, event);
    }

    /// A request has arrived: it takes effect, and the answer goes back.
    pub(super) fn at_coordinator(&mut self, request: Box<Request>) {
        let host = request.host;
        if self.now < self.coordinator.down_until {
            if !request.silent {
                let event = Event::Answer(request, Answer::Unknown);
                self.queue.push(self.now + PATIENCE, event);
            }
            return;
        }
        let answer = match &request.call {
            Call::Lease { id, .. } => {
                let name = self.hosts[host].name.clone();
                match *id {
                    Some(id) if self.coordinator.renew(self.now, host, id) => {
                        Answer::Granted { id, anew: false }
                    }
                    Some(_) => Answer::Gone,
                    None => {
                        // What is to expire is looked at once for each lease.
                        let first = self.coordinator.leases[host].is_none();
                        let granted = self.coordinator.grant(self.now, host, &name);
                        if first {
                            self.queue.push(granted.until, Event::Expire { host });
                        }
                        Answer::Granted {
                            id: granted.id,
                            anew: true,
                        }
                    }
                }
            }
            Call::Change { app, epoch, to, .. } => {
                Answer::Ended(self.change_record(*app, *epoch, to))
            }
            Call::Takeover {
                lost,
                app,
                epoch,
                to,
            } => {
                let outcome = match self.coordinator.leases[*lost] {
                    None => self.change_record(*app, *epoch, to),
                    Some(_) => Outcome::Refused,
                };
                Answer::Ended(outcome)
            }
            Call::Read { turn } => Answer::Record(self.coordinator.records[turn.app].clone()),
            Call::Resync { also } => {
                let mut apps = self.coordinator.owned[host].clone();
                apps.extend(also);
                let record = |app: usize| (app, self.coordinator.records[app].clone());
                Answer::Records(apps.into_iter().map(record).collect())
            }
            Call::Publish(offer) => {
                if self.coordinator.leases[host].is_some() {
                    let name = self.hosts[host].name.clone();
                    let offer = forebay_core::fleet::choice::Offer::clone(offer);
                    self.coordinator.offers.insert(name, offer);
                }
                Answer::Ended(Outcome::Done)
            }
            Call::Target { app, shed } => Answer::Target(self.target(host, *app, shed)),
            Call::Orphans { lost } => Answer::Orphans(self.orphans(*lost)),
        };
        if !request.silent {
            let late = self.rng.u64(200..1_500);
            self.queue
                .push(self.now + late, Event::Answer(request, answer));
        }
    }

    pub(super) fn change_record(&mut self, app: usize, epoch: Epoch, to: &Ownership) -> Outcome {
        self.coordinator.load.changes += 1;
        let by_name = &self.by_name;
        let changed = self
            .coordinator
            .change(app, (epoch, to), |name| by_name[name]);
        let Some(owners) = changed else {
            return Outcome::Refused;
        };
        // Whoever gives it away or was overtaken has stopped it before.
        if owners[0] != owners[1] && self.apps[app].running == Some(owners[0]) {
            let (id, from) = (&self.apps[app].id, &self.hosts[owners[0]].name);
            let what = format!("{id} is given to {}, and {from} runs it", to.owner);
            self.breaks(what);
        }
        for (place, host) in owners.into_iter().enumerate() {
            if place == 1 && owners[0] == host {
                continue;
            }
            self.coordinator.load.notices += 1;
            if !self.reaches_coordinator(host) {
                self.hosts[host].missed = true;
                continue;
            }
            let late = self.rng.u64(500..3_000);
            let record = to.clone();
            let event = Event::Notice { host, app, record };
            self.queue.push(self.now + late, event);
        }
        Outcome::Done
    }

    /// Somebody says something to a host.
    pub(super) fn heard(&mut self, from: usize, to: usize, message: Message) {
        let of = &self.hosts[to];
        if !(of.up && of.daemon && self.hear(from, to)) {
            return;
        }
        match message {
            Message::Reserve {
                turn,
                record,
                need,
                ages,
            } => {
                let outcome = self.reserved(to, turn, record, (need, ages));
                self.tell(to, from, Message::Reply { turn, outcome });
            }
            Message::Renew { app, record, need } => {
                let is_his = |of: &Coming| of.record == record;
                if self.hosts[to].coming.get(&app).is_some_and(is_his) {
                    let name = self.hosts[from].name.clone();
                    self.promise(to, app, &name, need);
                }
            }
            Message::Sent {
                turn,
                record,
                position,
            } => {
                let outcome = self.received(to, turn.app, &record, position);
                self.tell(to, from, Message::Reply { turn, outcome });
            }
            Message::Reply { turn, outcome } => {
                if self.is_current(turn) {
                    self.ended(turn, outcome);
                }
            }
            Message::Release { app, epoch } => {
                self.arrived(to, app, arrival::Input::Dropped(epoch));
            }
            Message::Promise { .. } => self.promise_to_keeper(to, message),
            Message::Promised { lost, app, epoch } => {
                use forebay_core::fleet::takeover::change;
                let record = Ownership {
                    owner: self.hosts[lost].name.clone(),
                    epoch,
                    runs: false,
                };
                let takeover = self.apps[app].takeover;
                let target = self.hosts[from].name.clone();
                let lost_name = self.hosts[lost].name.clone();
                if let Some((epoch, next)) = change(&record, (&lost_name, takeover), &target) {
                    let call = Call::Takeover {
                        lost,
                        app,
                        epoch,
                        to: next,
                    };
                    self.ask(to, call);
                }
            }
        }
    }
}
