//! etcd as hosts see it: records, leases, offers, transactions, and what is lost on the way.

use std::collections::{BTreeMap, BTreeSet};

use forebay_core::fleet::choice::Offer;
use forebay_core::fleet::{Epoch, HostName, Ownership};

use super::{Micros, SECOND};

/// How long a lease stands without a renewal.
pub(super) const TTL: Micros = 15 * SECOND;
/// How often it is renewed.
pub(super) const BEAT: Micros = 5 * SECOND;
/// How long an answer is waited for.
pub(super) const PATIENCE: Micros = 3 * SECOND;

/// A lease that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) id: u64,
    pub(super) until: Micros,
}

/// What it holds.
#[derive(Debug)]
pub(super) struct Coordinator {
    /// By application.
    pub(super) records: Vec<Ownership>,
    /// By host: the applications that it owns.
    pub(super) owned: Vec<BTreeSet<usize>>,
    pub(super) leases: Vec<Option<Granted>>,
    pub(super) members: BTreeSet<HostName>,
    pub(super) offers: BTreeMap<HostName, Offer>,
    /// It answers nobody until then.
    pub(super) down_until: Micros,
    next_lease: u64,
    pub(super) load: Load,
}

/// What it was asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Load {
    pub(super) requests: u64,
    /// Of these, transactions that change a record.
    pub(super) changes: u64,
    pub(super) notices: u64,
    /// Of all hosts, in this window and in the busiest.
    window: (Micros, u64),
    pub(super) busiest_window: u64,
    /// By host, in this minute.
    minutes: Vec<(Micros, u64)>,
    pub(super) busiest_minute: u64,
}

/// The span over which the load of all hosts together is taken.
pub(super) const WINDOW: Micros = 10 * SECOND;

impl Load {
    pub(super) fn count(&mut self, now: Micros, host: usize) {
        self.requests += 1;
        let place = now / WINDOW;
        if self.window.0 != place {
            self.window = (place, 0);
        }
        self.window.1 += 1;
        self.busiest_window = self.busiest_window.max(self.window.1);
        let minute = &mut self.minutes[host];
        let place = now / (60 * SECOND);
        if minute.0 != place {
            *minute = (place, 0);
        }
        minute.1 += 1;
        self.busiest_minute = self.busiest_minute.max(minute.1);
    }
}

impl Coordinator {
    pub(super) fn new(hosts: usize) -> Self {
        Self {
            records: Vec::new(),
            owned: vec![BTreeSet::new(); hosts],
            leases: vec![None; hosts],
            members: BTreeSet::new(),
            offers: BTreeMap::new(),
            down_until: 0,
            next_lease: 1,
            load: Load {
                minutes: vec![(0, 0); hosts],
                ..Load::default()
            },
        }
    }

    /// A lease anew, in place of any before.
    pub(super) fn grant(&mut self, now: Micros, host: usize, name: &HostName) -> Granted {
        let granted = Granted {
            id: self.next_lease,
            until: now + TTL,
        };
        self.next_lease += 1;
        self.leases[host] = Some(granted);
        self.members.insert(name.clone());
        granted
    }

    /// Whether a lease was renewed: one that ended, or another's place, is not.
    pub(super) fn renew(&mut self, now: Micros, host: usize, id: u64) -> bool {
        match &mut self.leases[host] {
            Some(granted) if granted.id == id => {
                granted.until = now + TTL;
                true
            }
            _ => false,
        }
    }

    /// Ends a lease whose time is over.
    pub(super) fn expire(&mut self, now: Micros, host: usize, name: &HostName) -> bool {
        let over = self.leases[host].is_some_and(|granted| granted.until <= now);
        if over {
            self.leases[host] = None;
            self.members.remove(name);
            self.offers.remove(name);
        }
        over
    }

    /// A transaction: takes effect if the record has this epoch. Owners before and after, if so.
    pub(super) fn change(
        &mut self,
        app: usize,
        (epoch, to): (Epoch, &Ownership),
        host_of: impl Fn(&HostName) -> usize,
    ) -> Option<[usize; 2]> {
        let record = &mut self.records[app];
        if record.epoch != epoch {
            return None;
        }
        let owners = [host_of(&record.owner), host_of(&to.owner)];
        *record = to.clone();
        self.owned[owners[0]].remove(&app);
        self.owned[owners[1]].insert(app);
        Some(owners)
    }
}
