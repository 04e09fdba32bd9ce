//! What a daemon does beside moves: it renews its lease, guards it, publishes, looks for shortages,
//! learns records, and looks after the lost.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_core::app::Class;
use forebay_core::fleet::choice::{self, Mover, Offer, Room};
use forebay_core::fleet::need::{Foresight, Need};
use forebay_core::fleet::offering::{self, Standing};
use forebay_core::fleet::policy::{self, Homes, Look, Resident, Shed};
use forebay_core::fleet::tenure::{Lease, Leave, Takeover};
use forebay_core::fleet::{Epoch, HostName, Outcome, Ownership, departure, takeover};
use forebay_core::units::MilliCpu;

use super::coordinator::{BEAT, TTL};
use super::host::{Copy, Local};
use super::queue::{Answer, Call, Event, Message, Request, Side};
use super::world::{Fares, World};
use super::{Arm, MINUTE, Micros, SECOND};

/// How often a host looks at itself when nothing is wrong.
const LOOK: Micros = MINUTE;
/// What is published changed by this part of the host, or is so old.
const NEWS_PART: f64 = 0.03;
const NEWS_AGE: Micros = 5 * MINUTE;
/// How often records are read again, whatever was heard.
const RESYNC: Micros = 5 * MINUTE;
/// How often the lost are looked after.
const KEEP: Micros = 5 * SECOND;
/// So many of a lost host at a time.
const ORPHANS_MAX: usize = 8;

impl World {
    pub(super) fn happen(&mut self, event: Event) {
        let event = match self.postponed(event) {
            Some(event) => event,
            None => return,
        };
        match event {
            Event::Step => self.next_step(),
            Event::Audit => {
                self.audit();
                self.queue.push(self.now + 10 * MINUTE, Event::Audit);
            }
            Event::Beat { host, life } if self.lives(host, life) => self.beat(host, life),
            Event::Expire { host } => self.expire(host),
            Event::Guard { host, boot } if self.hosts[host].boot == boot => self.guard(host),
            Event::Look { host, life, again } if self.lives(host, life) => self.look(host, again),
            Event::AtCoordinator(request) => self.at_coordinator(request),
            Event::Answer(request, answer) if self.lives(request.host, request.life) => {
                self.answered(&request, answer);
            }
            Event::Notice { host, app, record } => self.noticed(host, app, record),
            Event::Message { from, to, message } => self.heard(from, to, *message),
            Event::Departure { turn, step } if self.is_current(turn) => self.depart(turn, step),
            Event::Departed { turn, input } if self.is_current(turn) => {
                self.departed(turn.host, turn.app, input);
            }
            Event::Arrival { turn, step } if self.is_current(turn) => self.arrive(turn, step),
            Event::Arrived { turn, input } if self.is_current(turn) => {
                self.arrived(turn.host, turn.app, input);
            }
            Event::Renew { turn } if self.lives(turn.host, turn.life) => self.renew(turn),
            Event::Tend {
                host,
                life,
                app,
                epoch,
            } if self.lives(host, life) => self.tend(host, app, epoch),
            Event::Keep { lost } => self.keep(lost),
            Event::Fault(fault) => self.fault(fault),
            Event::Strike { host, fault } => self.strike(host, fault),
            Event::Resume { host } => self.resume(host),
            Event::Boot { host } => self.boot(host),
            Event::Daemon { host, life } => self.daemon_begins(host, life),
            Event::Settled => self.settled(),
            _ => {}
        }
    }

    /// What happens on a host that stands still happens when it goes on.
    fn postponed(&mut self, event: Event) -> Option<Event> {
        let host = match &event {
            Event::Beat { host, .. }
            | Event::Guard { host, .. }
            | Event::Look { host, .. }
            | Event::Notice { host, .. }
            | Event::Tend { host, .. }
            | Event::Daemon { host, .. }
            | Event::Message { to: host, .. } => *host,
            Event::Answer(request, _) => request.host,
            Event::Departure { turn, .. }
            | Event::Departed { turn, .. }
            | Event::Arrival { turn, .. }
            | Event::Arrived { turn, .. }
            | Event::Renew { turn } => turn.host,
            _ => return Some(event),
        };
        let of = &self.hosts[host];
        if of.up && of.is_paused(self.now) {
            self.queue.push(of.paused_until, event);
            return None;
        }
        Some(event)
    }

    /// Renews the lease.
    fn beat(&mut self, host: usize, life: u64) {
        let of = &self.hosts[host];
        let call = Call::Lease {
            id: of.disk.lease_id,
            sent: of.boot_clock(self.now),
        };
        self.ask(host, call);
        self.queue.push(self.now + BEAT, Event::Beat { host, life });
    }

    /// A lease was renewed, or granted anew.
    pub(super) fn leased(&mut self, host: usize, sent: Duration, answer: &Answer) {
        let ttl = Duration::from_micros(TTL);
        match *answer {
            Answer::Granted { id, anew } => {
                let of = &mut self.hosts[host];
                let renewed_at = match of.lease {
                    Some(before) if !anew => before.renewed_at.max(sent),
                    _ => sent,
                };
                of.lease = Some(Lease { renewed_at, ttl });
                of.disk.lease_id = Some(id);
                self.guard_from_now(host);
                if anew {
                    self.forget_what_others_may_have(host);
                }
                if std::mem::take(&mut self.hosts[host].missed) || anew {
                    self.resync(host);
                } else {
                    self.let_run(host);
                }
            }
            Answer::Gone => {
                // Others may have taken over what they may.
                let of = &mut self.hosts[host];
                of.lease = None;
                of.disk.lease_id = None;
                of.published = None;
                self.guard(host);
                self.forget_what_others_may_have(host);
                let sent = self.hosts[host].boot_clock(self.now);
                self.ask(host, Call::Lease { id: None, sent });
            }
            _ => self.hosts[host].missed = true,
        }
    }

    fn forget_what_others_may_have(&mut self, host: usize) {
        let apps = &self.apps;
        let records = &mut self.hosts[host].records;
        records.retain(|app, _| apps[*app].takeover == Takeover::Never);
    }

    pub(super) fn guard_from_now(&mut self, host: usize) {
        let of = &mut self.hosts[host];
        let Some(lease) = of.lease.filter(|_| !of.guarded) else {
            return;
        };
        of.guarded = true;
        let (at, boot) = (of.when(lease.run_until()), of.boot);
        self.queue
            .push(at.max(self.now), Event::Guard { host, boot });
    }

    /// Freezes what others may take over, before they can. The guardian does that, with or without
    /// the daemon.
    fn guard(&mut self, host: usize) {
        self.hosts[host].guarded = false;
        let of = &self.hosts[host];
        if !of.works(self.now) {
            return;
        }
        let clock = of.boot_clock(self.now);
        if of.lease.is_some_and(|lease| clock < lease.run_until()) {
            return self.guard_from_now(host);
        }
        for app in self.running_on(host) {
            if self.apps[app].takeover == Takeover::AfterLease {
                self.totals.lease_freezes += 1;
                self.stop(host, app, Fares::Down, Copy::Stands);
            }
        }
    }

    pub(super) fn running_on(&self, host: usize) -> Vec<usize> {
        let local = self.hosts[host].local.iter();
        let runs = local.filter(|(_, local)| matches!(local.copy, Copy::Runs { .. }));
        runs.map(|(app, _)| *app).collect()
    }

    /// Lets everything run that may and does not.
    pub(super) fn let_run(&mut self, host: usize) {
        let local = self.hosts[host].local.iter();
        let still = local.filter(|(_, local)| !matches!(local.copy, Copy::Runs { .. }));
        let still: Vec<usize> = still.map(|(app, _)| *app).collect();
        for app in still {
            self.try_run(host, app);
        }
    }

    fn try_run(&mut self, host: usize, app: usize) {
        use forebay_core::fleet::arrival::{Mark as ArrivalMark, Stage};
        let of = &self.hosts[host];
        let departs = of.disk.departures.get(&app).map(|(_, _, mark)| *mark);
        // Of one that may be gone already, `leave` says so.
        let is_moved = departs == Some(departure::Mark::Frozen);
        let arrives = match of.coming.get(&app) {
            Some(coming) => coming.machine.stage() != Stage::Announcing,
            None => of
                .disk
                .arrivals
                .get(&app)
                .is_some_and(|(_, _, mark)| *mark != ArrivalMark::Dropped),
        };
        if is_moved || arrives || !of.works(self.now) {
            return;
        }
        if matches!(self.leave(host, app, true), Leave::Run { .. }) {
            self.start(host, app);
        }
    }

    pub(super) fn resync(&mut self, host: usize) {
        let also = self.hosts[host].local.keys().copied().collect();
        self.ask(host, Call::Resync { also });
    }

    /// A watch says that a record changed.
    fn noticed(&mut self, host: usize, app: usize, record: Ownership) {
        let of = &self.hosts[host];
        if !(of.up && of.daemon) {
            return;
        }
        if !self.reaches_coordinator(host) {
            self.hosts[host].missed = true;
            return;
        }
        self.learn(host, app, record);
    }

    /// What a record says has reached a host.
    pub(super) fn learn(&mut self, host: usize, app: usize, record: Ownership) {
        let of = &mut self.hosts[host];
        let seen = of.seen.entry(app).or_insert(record.epoch);
        if record.epoch < *seen {
            return;
        }
        *seen = record.epoch;
        if of.leaving.contains_key(&app) {
            return self.departed(host, app, departure::Input::Read(record));
        }
        if of.coming.contains_key(&app) {
            use forebay_core::fleet::arrival::Input;
            of.records.insert(app, record.clone());
            return self.arrived(host, app, Input::Read(record));
        }
        if of.disk.departures.contains_key(&app) || of.disk.arrivals.contains_key(&app) {
            // The daemon has not taken that up yet.
            return;
        }
        of.records.insert(app, record.clone());
        if record.owner != of.name {
            if of.local.contains_key(&app) {
                self.stop(host, app, Fares::Down, Copy::Stands);
                self.drop_copy(host, app);
            }
            self.hosts[host].records.remove(&app);
            return;
        }
        if self.apps[app].takeover == Takeover::AfterLease {
            self.take_up(host, app, &record);
        }
        self.try_run(host, app);
        let runs = self.apps[app].running == Some(host);
        if runs && !record.runs {
            let (epoch, to) = (record.epoch, record.running());
            self.ask(
                host,
                Call::Change {
                    turn: None,
                    app,
                    epoch,
                    to,
                },
            );
        }
    }

    /// What was given to this host while nobody runs it, or was elsewhere since it stood still here,
    /// begins from what all hosts reach.
    fn take_up(&mut self, host: usize, app: usize, record: &Ownership) {
        let stored = self.apps[app].store.at();
        let fresh = Local {
            copy: Copy::Files(stored),
            homes: Homes::default(),
            epoch: record.epoch,
        };
        let local = self.hosts[host].local.get_mut(&app);
        match local {
            Some(local) if matches!(local.copy, Copy::Runs { .. }) => local.epoch = record.epoch,
            Some(local) if local.epoch == record.epoch => {}
            Some(local) => *local = fresh,
            None => {
                self.put(host, app, fresh);
                let id = self.apps[app].id.clone();
                self.hosts[host].promises.release(&id);
                self.totals.taken_over += 1;
                self.apps[app].moves.clear();
                // What was foreseen of it was known to the host that is lost.
                if let Some(foresight) = &mut self.apps[app].foresight {
                    *foresight = Foresight::new();
                }
            }
        }
    }

    pub(super) fn look_soon(&mut self, host: usize) {
        let of = &mut self.hosts[host];
        if self.options.arm == Arm::Off || !of.daemon || std::mem::replace(&mut of.looks, true) {
            return;
        }
        let life = of.life;
        let again = |again| Event::Look { host, life, again };
        self.queue.push(self.now, again(false));
        let persistence = u64::try_from(self.rules.persistence.as_micros()).unwrap_or(0);
        self.queue.push(self.now + persistence + 1, again(false));
    }

    /// What an application will need, as its host sees it.
    pub(super) fn need(&self, app: usize) -> Need {
        let of = &self.apps[app];
        match &of.foresight {
            Some(foresight) => foresight.need(of.uses.wanted()),
            None => Need::just(of.uses.wanted()),
        }
    }

    /// What a class finds here before promises are taken off, by what will be needed or is used.
    pub(super) fn room(&self, host: usize, class: Class, look: Look) -> Room {
        let offer = Offer {
            promised: BTreeMap::new(),
            ..self.offer(host)
        };
        match look {
            Look::Ahead => offer.room(class),
            Look::Present => offer.room_now(class).unwrap_or_default(),
        }
    }

    /// What a host has to offer.
    fn offer(&self, host: usize) -> Offer {
        let of = &self.hosts[host];
        // A copy that came counts as promised for as long as that stands.
        let is_promised = |app: &usize| of.promises.holds(&self.apps[*app].id);
        let here = of.local.keys();
        let here = here.filter(|app| !(of.coming.contains_key(*app) && is_promised(app)));
        let standing = here.map(|app| {
            let known = &self.apps[*app];
            Standing {
                app: &known.id,
                class: known.class,
                need: self.need(*app),
                memory: known.memory,
                used: Need::just(known.uses.wanted()).room(known.memory),
            }
        });
        offering::of(of.capacity, standing, of.promises.by_class(), false)
    }

    /// Publishes what is offered, if that is news.
    pub(super) fn publish(&mut self, host: usize) {
        let offer = self.offer(host);
        let of = &mut self.hosts[host];
        if of.lease.is_none() {
            return;
        }
        let all = of.capacity.cpu.as_cpus() * NEWS_PART;
        let news = match &of.published {
            Some((at, before)) => {
                let rooms = |offer: &Offer, class| {
                    let now = offer.room_now(class).unwrap_or_default();
                    [offer.room(class), now].map(|room| room.cpu.as_cpus())
                };
                let differs = |class| {
                    let pairs = rooms(before, class).into_iter().zip(rooms(&offer, class));
                    pairs.into_iter().any(|(a, b)| (a - b).abs() > all)
                };
                let classes = [Class::Critical, Class::Standard, Class::Batch];
                self.now - at >= NEWS_AGE
                    || before.promised != offer.promised
                    || classes.into_iter().any(differs)
            }
            None => true,
        };
        if news {
            of.published = Some((self.now, offer.clone()));
            self.ask(host, Call::Publish(Box::new(offer)));
        }
    }

    /// Looks whether somebody has to leave.
    fn look(&mut self, host: usize, again: bool) {
        if again {
            let life = self.hosts[host].life;
            self.queue
                .push(self.now + LOOK, Event::Look { host, life, again });
            self.publish(host);
            if (self.now / LOOK + host as u64).is_multiple_of(RESYNC / LOOK) {
                self.resync(host);
            }
        } else {
            self.hosts[host].looks = false;
        }
        if self.options.arm == Arm::Off {
            return;
        }
        let mut memory = std::mem::take(&mut self.hosts[host].policy);
        let shed = self.decide(host, &mut memory);
        self.hosts[host].policy = memory;
        let of = &self.hosts[host];
        let clock = of.boot_clock(self.now);
        let is_member = of.lease.is_some_and(|lease| clock < lease.run_until());
        if let Some(shed) = shed.filter(|_| is_member) {
            let app = self.by_id[&shed.app];
            let shed = Box::new(shed);
            self.ask(host, Call::Target { app, shed });
        }
    }

    fn decide(&self, host: usize, memory: &mut policy::Memory) -> Option<Shed> {
        let of = &self.hosts[host];
        let here = of.local.iter().filter(|(app, local)| {
            matches!(local.copy, Copy::Runs { .. } | Copy::Stands(_))
                && !of.coming.contains_key(*app)
        });
        let residents: Vec<Resident<'_>> = here
            .map(|(app, local)| {
                let known = &self.apps[*app];
                Resident {
                    app: &known.id,
                    class: known.class,
                    uses: known.uses,
                    need: self.need(*app),
                    memory: known.memory,
                    movable: known.movable && matches!(local.copy, Copy::Runs { .. }),
                    leaves: of.leaving.contains_key(app),
                    homes: &local.homes,
                }
            })
            .collect();
        let clock = of.boot_clock(self.now);
        let capacity = of.capacity.cpu;
        // Every host takes all that can move.
        policy::decide(
            &self.rules,
            clock,
            capacity,
            &residents,
            memory,
            &mut |_| true,
        )
    }

    /// Where one would go, by what is published when the question arrives.
    pub(super) fn target(&self, host: usize, app: usize, shed: &Shed) -> Option<(HostName, Look)> {
        let of = &self.hosts[host];
        let homes = &of.local.get(&app)?.homes;
        let clock = of.boot_clock(self.now);
        let here = (&of.name, homes);
        policy::target(&self.rules, clock, shed, here, &self.coordinator.offers)
    }

    fn expire(&mut self, host: usize) {
        let now = self.now;
        let Some(granted) = self.coordinator.leases[host] else {
            return;
        };
        // Without a quorum no lease ends, and after it all begin anew.
        let anew = self.coordinator.down_until + TTL;
        let until = match self.coordinator.down_until {
            down if down > 0 && now < anew => granted.until.max(anew),
            _ => granted.until,
        };
        if until > now {
            if let Some(granted) = &mut self.coordinator.leases[host] {
                granted.until = until;
            }
            return self.queue.push(until, Event::Expire { host });
        }
        let name = self.hosts[host].name.clone();
        if self.coordinator.expire(now, host, &name) {
            self.totals.leases_ended += 1;
            self.coordinator.load.notices += self.coordinator.members.len() as u64;
            self.queue
                .push(now + SECOND / 20, Event::Keep { lost: host });
        }
    }

    /// The keeper of a lost host looks after what it owned.
    fn keep(&mut self, lost: usize) {
        let name = &self.hosts[lost].name;
        let owned = self.coordinator.owned[lost].iter();
        let mut may = owned.filter(|app| self.apps[**app].takeover == Takeover::AfterLease);
        let Some(keeper) = takeover::keeper(name, &self.coordinator.members) else {
            if self.coordinator.leases[lost].is_none() {
                self.queue.push(self.now + KEEP, Event::Keep { lost });
            }
            return;
        };
        if may.next().is_none() {
            return;
        }
        let keeper = self.host_of(keeper);
        let of = &self.hosts[keeper];
        if of.works(self.now) && of.daemon && of.lease.is_some() {
            self.ask(keeper, Call::Orphans { lost });
        }
        self.queue.push(self.now + KEEP, Event::Keep { lost });
    }

    /// What a lost host owned that others may take, and where each could go.
    pub(super) fn orphans(&self, lost: usize) -> Vec<(usize, Epoch, HostName)> {
        if self.coordinator.leases[lost].is_some() {
            return Vec::new();
        }
        let mut offers = self.coordinator.offers.clone();
        let owned = self.coordinator.owned[lost].iter();
        let may = owned.filter(|app| self.apps[**app].takeover == Takeover::AfterLease);
        let mut found = Vec::new();
        for app in may.take(ORPHANS_MAX) {
            let Some(target) = self.home_for(*app, lost, &offers).0 else {
                continue;
            };
            let (class, need) = (self.apps[*app].class, self.request(*app));
            // The next one finds so much less.
            if let Some(offer) = offers.get_mut(&target) {
                let sum = offer.promised.entry(class).or_default();
                sum.cpu = MilliCpu(sum.cpu.0 + need.cpu.0);
                sum.memory = sum.memory.saturating_add(need.memory);
            }
            found.push((*app, self.coordinator.records[*app].epoch, target));
        }
        found
    }

    /// Where one of a lost host could go, and why nowhere else. It stands still: anywhere is better.
    pub(super) fn home_for(
        &self,
        app: usize,
        lost: usize,
        offers: &BTreeMap<HostName, Offer>,
    ) -> (Option<HostName>, BTreeMap<HostName, choice::Reason>) {
        let mover = Mover {
            class: self.apps[app].class,
            need: self.request(app),
            here: self.hosts[lost].name.clone(),
        };
        choice::any(&mover, offers)
    }

    /// What is known of an application whose host cannot be asked.
    fn request(&self, app: usize) -> Room {
        let of = &self.apps[app];
        Need::just(of.request).room(of.memory)
    }

    /// A keeper asks for room.
    pub(super) fn promise_to_keeper(&mut self, host: usize, message: Message) {
        let Message::Promise {
            keeper,
            lost,
            app,
            epoch,
        } = message
        else {
            return;
        };
        let need = self.request(app);
        let name = self.hosts[keeper].name.clone();
        if self.promise(host, app, &name, (need, Look::Ahead)) {
            self.tell(host, keeper, Message::Promised { lost, app, epoch });
        }
    }

    /// Promises room, and checks what is promised.
    pub(super) fn promise(
        &mut self,
        host: usize,
        app: usize,
        to: &HostName,
        (need, look): (Room, Look),
    ) -> bool {
        let (class, id) = (self.apps[app].class, self.apps[app].id.clone());
        let room = self.room(host, class, look);
        let of = &mut self.hosts[host];
        let clock = of.boot_clock(self.now);
        let leaving = of.disk.departures.get(&app).map(|(_, there, _)| *there);
        of.promises.expire(clock);
        // The same again keeps what it has, however little is left by now.
        let renews = of.promises.holds(&id);
        let leaving = leaving.map(|there| self.hosts[there].name.clone());
        let of = &mut self.hosts[host];
        let asked = (to, class, need);
        if let Err(refusal) = of
            .promises
            .promise(clock, &id, asked, room, leaving.as_ref())
        {
            use forebay_core::fleet::promises::Refusal;
            match refusal {
                Refusal::Full { .. } => self.totals.refused_full += 1,
                Refusal::Busy { .. } => self.totals.refused_busy += 1,
                Refusal::Underway { .. } => self.totals.refused_underway += 1,
            }
            return false;
        }
        // What is promised to this class and those that matter more, with what they need, fits.
        let promised = of.promises.by_class();
        let sum = promised.iter().filter(|(other, _)| **other <= class);
        let sum = sum.fold((0, 0), |(cpu, memory), (_, room)| {
            (cpu + room.cpu.0, memory + room.memory.0)
        });
        if !renews && (sum.0 > room.cpu.0 || sum.1 > room.memory.0) {
            let what = format!("{} promised {sum:?} of {room:?}", of.name);
            self.breaks(what);
        }
        true
    }

    /// What the coordinator answered, if it did.
    pub(super) fn answered(&mut self, request: &Request, answer: Answer) {
        let host = request.host;
        if matches!(answer, Answer::Unknown) {
            self.hosts[host].missed = true;
        }
        match (&request.call, answer) {
            (Call::Lease { sent, .. }, answer) => self.leased(host, *sent, &answer),
            (
                Call::Change {
                    turn: Some(turn),
                    app,
                    to,
                    ..
                },
                answer,
            ) => {
                let outcome = match answer {
                    Answer::Ended(outcome) => outcome,
                    _ => Outcome::Unknown,
                };
                if self.is_current(*turn) {
                    self.changed(*turn, *app, to, outcome);
                }
            }
            (Call::Read { turn }, answer) if self.is_current(*turn) => match answer {
                Answer::Record(record) => self.learn(host, turn.app, record),
                _ => self.ended(*turn, Outcome::Unknown),
            },
            (Call::Resync { .. }, Answer::Records(records)) => {
                for (app, record) in records {
                    self.learn(host, app, record);
                }
                self.let_run(host);
            }
            (Call::Publish(_), Answer::Unknown) => self.hosts[host].published = None,
            (Call::Target { app, shed }, Answer::Target(target)) => {
                self.found(host, *app, shed, target);
            }
            (Call::Orphans { lost }, Answer::Orphans(found)) => {
                for (app, epoch, target) in found {
                    let to = self.host_of(&target);
                    let (keeper, lost) = (host, *lost);
                    let message = Message::Promise {
                        keeper,
                        lost,
                        app,
                        epoch,
                    };
                    self.tell(host, to, message);
                }
            }
            _ => {}
        }
    }

    /// How a step of either side ended.
    pub(super) fn ended(&mut self, turn: super::queue::Turn, outcome: Outcome) {
        use forebay_core::fleet::arrival;
        match turn.side {
            Side::Departure => {
                let input = departure::Input::Ended(outcome);
                self.departed(turn.host, turn.app, input);
            }
            Side::Arrival => {
                let input = arrival::Input::Ended(outcome);
                self.arrived(turn.host, turn.app, input);
            }
        }
    }
}
