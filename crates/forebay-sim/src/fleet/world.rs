//! The state of the fleet, and what must hold of it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fastrand::Rng;
use forebay_core::app::{AppId, Class};
use forebay_core::fleet::HostName;
use forebay_core::fleet::need::{Foresight, Use};
use forebay_core::fleet::policy::Rules;
use forebay_core::fleet::tenure::{self, Leave, Takeover};
use forebay_core::units::Bytes;

use super::coordinator::Coordinator;
use super::host::{Copy, Host, Local};
use super::queue::{Event, Queue};
use super::report::Totals;
use super::share::{Gets, Want, divide};
use super::store::Store;
use super::trace::{STEP_S, Trace};
use super::{MINUTE, Micros, Options, REQUESTS_PER_MINUTE_MAX, SECOND};

/// CPUs that a stream of pages takes, on each side.
const STREAM_CPUS: f64 = 0.7;
/// Without faults, one stands still for no longer than this.
const MOVES_WITHIN: Micros = 10 * SECOND;

/// How an application fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fares {
    Well,
    /// It gets less than it wants.
    Lacks,
    /// It stands still, for a move.
    Held,
    /// It does not run, for another reason.
    Down,
}

/// What is known of an application by nobody in the fleet: the truth.
#[derive(Debug)]
pub(super) struct App {
    pub(super) id: AppId,
    pub(super) class: Class,
    pub(super) takeover: Takeover,
    pub(super) movable: bool,
    pub(super) memory: Bytes,
    /// What it writes, in bytes per second.
    pub(super) writes: f64,
    pub(super) request: f64,
    pub(super) wants: f64,
    /// What its host sees of it: what it gets, and whether it waits.
    pub(super) uses: Use,
    pub(super) foresight: Option<Foresight>,
    /// How far its state got, and was said to whoever asked it.
    pub(super) reached: u64,
    /// Where all hosts reach what one keeps that others may take over.
    pub(super) store: Store,
    pub(super) running: Option<usize>,
    pub(super) fares: Fares,
    pub(super) since: Micros,
    pub(super) stopped: Micros,
    /// Its moves, oldest first, of the last hour.
    pub(super) moves: VecDeque<(Micros, usize, usize)>,
}

/// Everything.
#[derive(Debug)]
pub(super) struct World {
    pub(super) options: Options,
    pub(super) rules: Rules,
    pub(super) now: Micros,
    pub(super) end: Micros,
    /// No fault after.
    pub(super) calm_from: Micros,
    pub(super) queue: Queue,
    pub(super) rng: Rng,
    pub(super) hosts: Vec<Host>,
    pub(super) by_name: BTreeMap<HostName, usize>,
    pub(super) apps: Vec<App>,
    pub(super) by_id: BTreeMap<AppId, usize>,
    pub(super) trace: Trace,
    pub(super) step: u64,
    pub(super) coordinator: Coordinator,
    pub(super) cuts: BTreeMap<(usize, usize), Micros>,
    pub(super) totals: Totals,
    pub(super) broken: Option<String>,
    pub(super) wants: Vec<Want>,
    pub(super) gets: Vec<Gets>,
}

/// The world's wall clock when it begins, in milliseconds since 1970.
const EPOCH_MS: u64 = 1_760_000_000_000;

impl World {
    pub(super) fn play(&mut self) -> Result<(), String> {
        while let Some((at, event)) = self.queue.pop() {
            if at > self.end {
                break;
            }
            self.now = at;
            self.happen(event);
            if let Some(what) = self.broken.take() {
                return Err(what);
            }
        }
        self.now = self.end;
        self.audit();
        self.broken.take().map_or(Ok(()), Err)
    }

    /// An invariant does not hold.
    pub(super) fn breaks(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub(super) fn unix_ms(&self) -> u64 {
        EPOCH_MS + self.now / 1_000
    }

    pub(super) fn host_of(&self, name: &HostName) -> usize {
        self.by_name[name]
    }

    /// Whether two hosts hear each other.
    pub(super) fn hear(&self, a: usize, b: usize) -> bool {
        let alone = |host: usize| self.now < self.hosts[host].isolated_until;
        let cut = self.cuts.get(&(a.min(b), a.max(b)));
        a == b || !(alone(a) || alone(b) || cut.is_some_and(|until| self.now < *until))
    }

    /// Whether a host and the coordinator do.
    pub(super) fn reaches_coordinator(&self, host: usize) -> bool {
        let host = &self.hosts[host];
        self.now >= host.cut_until.max(host.isolated_until)
    }

    /// Whether a daemon works that is this one.
    pub(super) fn lives(&self, host: usize, life: u64) -> bool {
        let of = &self.hosts[host];
        of.up && of.daemon && of.life == life
    }

    /// Lets an application run where there is a copy of it that does not, or says what that breaks.
    pub(super) fn start(&mut self, host: usize, app: usize) {
        let Some(local) = self.hosts[host].local.get_mut(&app) else {
            return;
        };
        let (shared, epoch) = (self.apps[app].takeover == Takeover::AfterLease, local.epoch);
        let stored = match (local.copy, shared) {
            (Copy::Runs { .. }, _) => return,
            (_, true) => self.apps[app].store.open(epoch),
            (_, false) => None,
        };
        let from = match (local.copy, stored) {
            // A newer owner has it: checked below.
            (_, None) if shared => u64::MAX,
            // What others may take over has its state where all hosts reach it.
            (Copy::Files(_), Some(at)) => at,
            (copy, _) => copy.position(self.now),
        };
        local.copy = Copy::Runs {
            since: self.now,
            from,
        };
        let of = &self.apps[app];
        let owner = &self.coordinator.records[app].owner;
        let name = &self.hosts[host].name;
        let wrong = if let Some(other) = of.running {
            Some(format!(
                "{} runs on {name} and on {} at once",
                of.id, self.hosts[other].name
            ))
        } else if from != of.reached {
            Some(format!(
                "{} goes on from {from} on {name}, and had acknowledged {}",
                of.id, of.reached
            ))
        } else if owner != name {
            Some(format!("{} runs on {name}, and {owner} owns it", of.id))
        } else {
            None
        };
        if let Some(what) = wrong {
            return self.breaks(what);
        }
        self.apps[app].running = Some(host);
        self.share_out(host);
    }

    /// Stops it, if it runs here.
    pub(super) fn stop(&mut self, host: usize, app: usize, fares: Fares, into: fn(u64) -> Copy) {
        let now = self.now;
        let Some(local) = self.hosts[host].local.get_mut(&app) else {
            return;
        };
        let ran = matches!(local.copy, Copy::Runs { .. });
        let position = local.copy.position(now);
        let epoch = local.epoch;
        local.copy = into(position);
        if ran {
            let of = &mut self.apps[app];
            if of.takeover == Takeover::AfterLease && !of.store.write(epoch, position) {
                let what = format!("{} ran by epoch {epoch}, and a newer owner has it", of.id);
                self.breaks(what);
            }
            let of = &mut self.apps[app];
            of.reached = of.reached.max(position);
            of.running = None;
            of.stopped = now;
            self.fares(app, fares);
            self.share_out(host);
        }
    }

    /// Removes what a host has of it.
    pub(super) fn drop_copy(&mut self, host: usize, app: usize) {
        if let Some(local) = self.hosts[host].local.get(&app) {
            if matches!(local.copy, Copy::Runs { .. }) {
                let what = format!("{} is removed while it runs", self.apps[app].id);
                return self.breaks(what);
            }
            self.hosts[host].local.remove(&app);
        }
    }

    /// Puts a copy where there is none.
    pub(super) fn put(&mut self, host: usize, app: usize, local: Local) {
        self.hosts[host].local.insert(app, local);
    }

    /// Whether a host may let an application run, by what it knows.
    pub(super) fn leave(&self, host: usize, app: usize, departs: bool) -> Leave {
        let of = &self.hosts[host];
        let mark = of.disk.departures.get(&app).map(|(_, _, mark)| *mark);
        tenure::leave(
            &of.name,
            (of.records.get(&app), mark.filter(|_| departs)),
            self.apps[app].takeover,
            of.lease,
            of.boot_clock(self.now),
        )
    }

    /// Notes how one fares from now on, and counts how it did until now.
    pub(super) fn fares(&mut self, app: usize, fares: Fares) {
        let of = &mut self.apps[app];
        let span = self.now - of.since;
        of.since = self.now;
        let was = std::mem::replace(&mut of.fares, fares);
        let totals = &mut self.totals;
        let sum = match (was, of.class) {
            (Fares::Well, _) => return,
            (Fares::Down, _) => &mut totals.down,
            (Fares::Held, _) => &mut totals.held,
            (Fares::Lacks, Class::Batch) => &mut totals.batch_lacked,
            (Fares::Lacks, Class::Standard) => &mut totals.standard_lacked,
            (Fares::Lacks, Class::Critical) => &mut totals.critical_lacked,
        };
        *sum += span;
    }

    /// Divides a host among those that run there.
    pub(super) fn share_out(&mut self, host: usize) {
        let mut wants = std::mem::take(&mut self.wants);
        let mut gets = std::mem::take(&mut self.gets);
        wants.clear();
        let of = &self.hosts[host];
        for (app, local) in &of.local {
            if matches!(local.copy, Copy::Runs { .. }) {
                let known = &self.apps[*app];
                wants.push(Want {
                    app: *app,
                    class: known.class,
                    wants: known.wants,
                    weight: known.request,
                });
            }
        }
        let streams = u32::try_from(of.streams()).unwrap_or(u32::MAX);
        let capacity = of.capacity.cpu.as_cpus() - STREAM_CPUS * f64::from(streams);
        divide(capacity, &wants, &mut gets);
        let mut is_short = false;
        for got in &gets {
            let fares = if got.lacks {
                is_short |= got.class != Class::Batch;
                Fares::Lacks
            } else {
                Fares::Well
            };
            self.apps[got.app].uses = Use {
                cpus: got.cpus,
                waits: got.lacks,
            };
            if self.apps[got.app].fares != fares {
                self.fares(got.app, fares);
            }
        }
        self.hosts[host].is_short = is_short;
        (self.wants, self.gets) = (wants, gets);
    }

    /// The next sample of every load.
    pub(super) fn next_step(&mut self) {
        for app in 0..self.apps.len() {
            self.apps[app].wants = self.trace.next(app, self.step);
        }
        self.step += 1;
        let unix_ms = self.unix_ms();
        for host in 0..self.hosts.len() {
            let of = &self.hosts[host];
            if !of.works(self.now) {
                continue;
            }
            self.share_out(host);
            let of = &self.hosts[host];
            if of.daemon {
                let wall = of.wall_clock(unix_ms);
                for (app, local) in &of.local {
                    let known = &mut self.apps[*app];
                    let runs = matches!(local.copy, Copy::Runs { .. });
                    if let Some(foresight) = known.foresight.as_mut().filter(|_| runs) {
                        foresight.record(wall, known.uses.wanted());
                    }
                }
            }
            if self.hosts[host].is_short {
                self.look_soon(host);
            }
        }
        self.queue.push(self.now + STEP_S * SECOND, Event::Step);
    }

    /// One moved by the rules: was that allowed?
    pub(super) fn moved(&mut self, app: usize, from: usize, to: usize) {
        self.totals.moved += 1;
        let (rules, now) = (self.rules, self.now);
        // Clocks of hosts run up to 5 % apart.
        let nearly = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(0) / 100 * 93;
        let of = &mut self.apps[app];
        let hour = 60 * MINUTE;
        of.moves.retain(|(at, _, _)| now - at < hour);
        let last = of.moves.back().copied();
        of.moves.push_back((now, from, to));
        let most = usize::try_from(hour / nearly(rules.rest).max(1) + 1).unwrap_or(usize::MAX);
        let wrong = match last {
            Some((at, _, _)) if now - at < nearly(rules.rest) => Some("did not rest"),
            Some((at, before, _)) if before == to && now - at < nearly(rules.hold) => {
                Some("went back to the host that it had just left")
            }
            _ if of.moves.len() > most => Some("moved too often in an hour"),
            _ => None,
        };
        if let Some(wrong) = wrong {
            let what = format!("{} {wrong}: {:?}", self.apps[app].id, self.apps[app].moves);
            self.breaks(what);
        }
    }

    /// Counts everything anew, and compares.
    pub(super) fn audit(&mut self) {
        let mut runs = vec![None; self.apps.len()];
        let mut wrong = None;
        for (number, host) in self.hosts.iter().enumerate() {
            for (app, local) in &host.local {
                if !matches!(local.copy, Copy::Runs { .. }) {
                    continue;
                }
                let id = &self.apps[*app].id;
                if !host.works(self.now) {
                    wrong = Some(format!("{id} runs on {}, which does not", host.name));
                }
                if runs[*app].replace(number).is_some() {
                    wrong = Some(format!("{id} runs on two hosts"));
                }
                if self.coordinator.records[*app].owner != host.name {
                    wrong = Some(format!("{id} runs on {}, which does not own it", host.name));
                }
            }
        }
        let counted = self.apps.iter().map(|app| app.running);
        if !counted.eq(runs) {
            wrong = Some("who runs where was counted wrong".to_owned());
        }
        let busiest = self.coordinator.load.busiest_minute;
        if busiest > REQUESTS_PER_MINUTE_MAX {
            wrong = Some(format!(
                "a host asked the coordinator {busiest} times in a minute"
            ));
        }
        for app in 0..self.apps.len() {
            let fares = self.apps[app].fares;
            self.fares(app, fares);
        }
        if let Some(wrong) = wrong {
            self.breaks(wrong);
        }
    }

    /// Once faults are over for long enough: everything runs that can.
    pub(super) fn settled(&mut self) {
        for app in 0..self.apps.len() {
            let of = &self.apps[app];
            let record = &self.coordinator.records[app];
            let owner = self.host_of(&record.owner);
            let lost = self.hosts[owner].gone && of.takeover == Takeover::Never;
            // A move that is under way is none that hangs.
            let moves = of.fares == Fares::Held && self.now - of.stopped < MOVES_WITHIN;
            if of.running.is_some() || lost || moves {
                self.totals.lost += u64::from(lost);
                continue;
            }
            let host = &self.hosts[owner];
            let (home, reasons) = self.home_for(app, owner, &self.coordinator.offers);
            let is_orphan = host.gone && of.takeover == Takeover::AfterLease;
            // No host has room for what it asks for: it waits for that.
            if is_orphan && home.is_none() {
                self.totals.homeless += 1;
                continue;
            }
            let what = format!(
                "{} could go to {home:?} and does not run, others {reasons:?}, {record:?}: copy {:?}, {:?}, {:?}, lease {:?}, record there {:?}",
                of.id,
                host.local.get(&app).map(|local| local.copy),
                host.leaving.get(&app).map(|of| of.machine.stage()),
                host.coming.get(&app).map(|of| of.machine.stage()),
                host.lease,
                host.records.get(&app),
            );
            return self.breaks(what);
        }
    }
}
