//! What breaks, how often, and what that does.

use forebay_core::fleet::tenure::{Leave, Takeover};

use super::coordinator::BEAT;
use super::host::Copy;
use super::queue::Event;
use super::trace::exponential;
use super::world::{Fares, World};
use super::{MINUTE, Micros, SECOND};

/// Something that breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A host goes down, and comes up again, most of the time.
    Crash,
    /// A host stands still for a while, and does not know it.
    Pause,
    /// The daemon ends; what it started goes on.
    DaemonEnds,
    /// A host and the coordinator do not hear each other.
    CutFromCoordinator,
    /// A host hears nobody.
    Isolated,
    /// Two hosts do not hear each other.
    CutApart,
    /// A link is twenty times as slow.
    SlowLink,
    /// A wall clock jumps by up to twenty minutes.
    ClockJumps,
    /// The coordinator answers nobody.
    Outage,
}

/// Of each, how often it happens: to a host within an hour, an outage to the fleet.
const RATES: [(Fault, f64); 9] = [
    (Fault::Crash, 0.04),
    (Fault::Pause, 0.10),
    (Fault::DaemonEnds, 0.10),
    (Fault::CutFromCoordinator, 0.10),
    (Fault::Isolated, 0.05),
    (Fault::CutApart, 0.20),
    (Fault::SlowLink, 0.05),
    (Fault::ClockJumps, 0.05),
    (Fault::Outage, 0.25),
];
/// One in so many hosts, at most, is lost for good.
const LOST_ONE_IN: usize = 20;

impl World {
    /// Puts in the first of each fault.
    pub(super) fn plan_faults(&mut self) {
        for (fault, _) in RATES {
            self.plan_next(fault);
        }
    }

    fn plan_next(&mut self, fault: Fault) {
        let rate = RATES.iter().find(|(of, _)| *of == fault);
        let per_hour = rate.map_or(0.0, |(_, rate)| *rate);
        let hosts = u32::try_from(self.hosts.len()).unwrap_or(u32::MAX);
        let count = if fault == Fault::Outage {
            1.0
        } else {
            f64::from(hosts)
        };
        let seconds = exponential(&mut self.rng, 3600.0 / (per_hour * count));
        let at = self.now + span(seconds);
        if at < self.calm_from {
            self.queue.push(at, Event::Fault(fault));
        }
    }

    /// Until so long from now, and not beyond the last fault.
    fn until(&mut self, seconds: std::ops::Range<u64>) -> Micros {
        let span = self.rng.u64(seconds.start * SECOND..seconds.end * SECOND);
        (self.now + span).min(self.calm_from)
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        self.plan_next(fault);
        let host = self.rng.usize(0..self.hosts.len());
        if fault == Fault::Outage {
            self.coordinator.down_until = self.until(2..90);
            return;
        }
        self.strike(host, fault);
    }

    /// While something moves, one of both hosts is hit now and then, within the next moments.
    pub(super) fn tempt(&mut self, host: usize) {
        if self.chance(60) {
            let faults = [
                Fault::Crash,
                Fault::Pause,
                Fault::DaemonEnds,
                Fault::DaemonEnds,
                Fault::CutFromCoordinator,
                Fault::Isolated,
            ];
            let fault = faults[self.rng.usize(0..faults.len())];
            let at = self.now + self.rng.u64(0..SECOND / 10);
            self.queue.push(at, Event::Strike { host, fault });
        }
    }

    /// Something breaks of a host.
    pub(super) fn strike(&mut self, host: usize, fault: Fault) {
        if !self.hosts[host].works(self.now) || self.now >= self.calm_from {
            return;
        }
        self.totals.faults += 1;
        match fault {
            Fault::Crash => self.crash(host),
            Fault::Pause => self.pause(host),
            Fault::DaemonEnds => {
                let of = &mut self.hosts[host];
                if of.daemon {
                    of.daemon = false;
                    self.forget_daemon(host);
                    let at = self.until(1..20);
                    let life = self.hosts[host].life;
                    self.queue.push(at, Event::Daemon { host, life });
                }
            }
            Fault::CutFromCoordinator => self.hosts[host].cut_until = self.until(2..180),
            Fault::Isolated => self.hosts[host].isolated_until = self.until(2..120),
            Fault::CutApart => {
                let other = self.rng.usize(0..self.hosts.len());
                let until = self.until(2..300);
                let now = self.now;
                self.cuts.retain(|_, until| *until > now);
                self.cuts.insert((host.min(other), host.max(other)), until);
            }
            Fault::SlowLink => self.hosts[host].slow_until = self.until(60..900),
            Fault::ClockJumps => {
                let jump = i64::try_from(self.rng.u64(0..2_400_000)).unwrap_or(0) - 1_200_000;
                self.hosts[host].wall_offset_ms += jump;
            }
            Fault::Outage => {}
        }
    }

    /// What the daemon has in memory is gone.
    fn forget_daemon(&mut self, host: usize) {
        let of = &mut self.hosts[host];
        of.life += 1;
        of.leaving.clear();
        of.coming.clear();
        of.promises = Default::default();
        of.policy = Default::default();
        of.seen.clear();
        of.published = None;
        of.missed = true;
        of.looks = false;
        self.share_out(host);
    }

    fn crash(&mut self, host: usize) {
        let here: Vec<usize> = self.hosts[host].local.keys().copied().collect();
        for app in here {
            self.stop(host, app, Fares::Down, Copy::Files);
            if self.apps[app].running.is_none() {
                self.fares(app, Fares::Down);
            }
        }
        let of = &mut self.hosts[host];
        of.up = false;
        of.daemon = false;
        of.lease = None;
        of.guarded = false;
        of.boot += 1;
        self.forget_daemon(host);
        let lost = self.hosts.iter().filter(|host| host.gone).count();
        let may_be_lost = (lost + 1) * LOST_ONE_IN <= self.hosts.len();
        if may_be_lost && self.rng.u32(0..10) == 0 {
            self.hosts[host].gone = true;
            return;
        }
        let at = self.until(20..600);
        self.queue.push(at, Event::Boot { host });
    }

    pub(super) fn boot(&mut self, host: usize) {
        let of = &mut self.hosts[host];
        of.up = true;
        // The clock counts from the boot on, and everything kept by it is gone but what is on disk as
        // an age; here it goes on, which is the same.
        let apps = &self.apps;
        of.records
            .retain(|app, _| apps[*app].takeover == Takeover::Never);
        let life = of.life;
        self.daemon_begins(host, life);
    }

    /// The daemon begins, and takes up what is on disk.
    pub(super) fn daemon_begins(&mut self, host: usize, life: u64) {
        let of = &mut self.hosts[host];
        if !of.up || of.daemon || of.life != life {
            return;
        }
        of.daemon = true;
        self.queue.push(self.now, Event::Beat { host, life });
        let first = self.now + self.rng.u64(BEAT..BEAT + MINUTE);
        self.queue.push(
            first,
            Event::Look {
                host,
                life,
                again: true,
            },
        );
        let departures: Vec<usize> = self.hosts[host].disk.departures.keys().copied().collect();
        let arrivals: Vec<usize> = self.hosts[host].disk.arrivals.keys().copied().collect();
        for app in departures {
            self.resume_departure(host, app);
        }
        for app in arrivals {
            self.resume_arrival(host, app);
        }
        self.let_run(host);
    }

    fn pause(&mut self, host: usize) {
        for app in self.running_on(host) {
            self.stop(host, app, Fares::Down, Copy::Suspended);
        }
        let until = self.until(1..120);
        self.hosts[host].paused_until = until;
        self.queue.push(until, Event::Resume { host });
    }

    /// It goes on. The guard looks at the lease first: nothing runs that others may have taken over.
    pub(super) fn resume(&mut self, host: usize) {
        if !self.hosts[host].works(self.now) {
            return;
        }
        let local = self.hosts[host].local.iter();
        let paused = local.filter(|(_, local)| matches!(local.copy, Copy::Suspended(_)));
        let paused: Vec<usize> = paused.map(|(app, _)| *app).collect();
        for app in paused {
            match self.leave(host, app, true) {
                Leave::Run { .. } => self.start(host, app),
                _ => self.stop(host, app, Fares::Down, Copy::Stands),
            }
        }
        self.guard_from_now(host);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "spans of a simulated run, and none is negative"
)]
fn span(seconds: f64) -> Micros {
    (seconds.min(1e9) * 1e6) as u64
}
