//! Requests under way: who waits, for how long, and how long answers usually take.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forebay_core::shadow::promotion::Slot;

use crate::latency::Latency;

/// Routes whose latency is learnt by itself; those beyond share the last one.
pub const ROUTES_MAX: usize = 64;

/// What is learnt of requests of one kind.
#[derive(Debug)]
struct Route {
    name: String,
    latency: Latency,
}

/// A request that was sent to an instance.
#[derive(Debug, Clone, Copy)]
struct Flight {
    slot: Slot,
    route: usize,
    began: Instant,
    /// The latest byte of its answer, or its beginning.
    heard: Instant,
    /// How long it may keep its instance from answering anybody.
    grace: Duration,
    /// It is under way, and nobody waits for a byte of it.
    rests: bool,
}

/// Who waits longest for a byte, measured by what is usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// How long.
    pub time: Duration,
    /// The 99.9 % quantile of its route, once learnt.
    pub usual: Option<Duration>,
}

#[derive(Debug, Default)]
struct Table {
    /// Free places are reused, so that a busy front allocates nothing for a request.
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    routes: Vec<Route>,
    /// The latest byte that came from each instance.
    heard: Vec<Option<Instant>>,
}

/// All requests under way through one front.
#[derive(Debug, Default)]
pub struct Flights {
    table: Mutex<Table>,
}

impl Flights {
    /// The number of a route, for [`Self::begin`].
    #[must_use]
    pub fn route(&self, name: &str) -> usize {
        let mut table = self.lock();
        let known = table.routes.iter().position(|route| route.name == name);
        known.unwrap_or_else(|| {
            if table.routes.len() < ROUTES_MAX {
                table.routes.push(Route {
                    name: name.to_owned(),
                    latency: Latency::default(),
                });
            }
            table.routes.len() - 1
        })
    }

    /// A request is sent to an instance.
    #[must_use]
    pub fn begin(&self, slot: Slot, route: usize) -> Ticket<'_> {
        let mut table = self.lock();
        let began = Instant::now();
        let flight = Some(Flight {
            slot,
            route,
            began,
            heard: began,
            grace: Duration::ZERO,
            rests: false,
        });
        let place = match table.free.pop() {
            Some(place) => {
                table.flights[place] = flight;
                place
            }
            None => {
                table.flights.push(flight);
                table.flights.len() - 1
            }
        };
        Ticket {
            flights: self,
            place,
        }
    }

    /// The request to an instance whose wait is longest over what is usual for it.
    #[must_use]
    pub fn waiting(&self, slot: Slot) -> Option<Waiting> {
        let table = self.lock();
        let now = Instant::now();
        let of_slot = table.flights.iter().flatten();
        of_slot
            .filter(|flight| flight.slot == slot && !flight.rests)
            .map(|flight| Waiting {
                time: now.saturating_duration_since(flight.heard),
                usual: table
                    .routes
                    .get(flight.route)
                    .and_then(|route| route.latency.tail()),
            })
            .max_by_key(|waiting| {
                let usual = waiting.usual.unwrap_or_default();
                (waiting.time.saturating_sub(usual * 4), waiting.time)
            })
    }

    /// How long an instance may be silent for what it was asked to do. It may do one thing at a time.
    #[must_use]
    pub fn grace(&self, slot: Slot) -> Duration {
        let table = self.lock();
        let of_slot = table.flights.iter().flatten();
        let of_slot = of_slot.filter(|flight| flight.slot == slot);
        let graces = of_slot.map(|flight| flight.grace);
        graces.max().unwrap_or_default()
    }

    /// How many requests an instance has not answered to the end.
    #[must_use]
    pub fn count(&self, slot: Slot) -> usize {
        let table = self.lock();
        let flights = table.flights.iter().flatten();
        flights.filter(|flight| flight.slot == slot).count()
    }

    /// How long ago a byte came from an instance.
    #[must_use]
    pub fn heard(&self, slot: Slot) -> Option<Duration> {
        let at = self.lock().heard.get(slot).copied().flatten()?;
        Some(at.elapsed())
    }

    /// A table is consistent between any two statements under its lock.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way; it ends when this is dropped.
#[derive(Debug)]
pub struct Ticket<'a> {
    flights: &'a Flights,
    place: usize,
}

impl Ticket<'_> {
    /// This request may keep its instance from answering anybody for so long.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        let mut table = self.flights.lock();
        if let Some(Some(flight)) = table.flights.get_mut(self.place) {
            flight.grace = grace;
        }
        drop(table);
        self
    }

    /// A byte of the answer came.
    pub fn heard(&self) {
        let mut table = self.flights.lock();
        let now = Instant::now();
        let Some(Some(flight)) = table.flights.get_mut(self.place) else {
            return;
        };
        flight.heard = now;
        let slot = flight.slot;
        if table.heard.len() <= slot {
            table.heard.resize(slot + 1, None);
        }
        table.heard[slot] = Some(now);
    }

    /// The first byte came, and nobody knows of a later one: its time is learnt. The same as
    /// [`Self::heard`], [`Self::answered`] and being dropped, for half of what these cost.
    pub fn complete(self) {
        let mut table = self.flights.lock();
        let now = Instant::now();
        if let Some(Some(flight)) = table.flights.get(self.place).copied() {
            let (slot, route) = (flight.slot, flight.route);
            if table.heard.len() <= slot {
                table.heard.resize(slot + 1, None);
            }
            table.heard[slot] = Some(now);
            if let Some(route) = table.routes.get_mut(route) {
                let took = now.saturating_duration_since(flight.began);
                route.latency.add(took);
            }
        }
    }

    /// It is under way, but it is the instance that waits: no byte is due.
    pub fn rest(&self) {
        let mut table = self.flights.lock();
        if let Some(Some(flight)) = table.flights.get_mut(self.place) {
            flight.rests = true;
        }
    }

    /// A byte is due from now on.
    pub fn resume(&self) {
        let mut table = self.flights.lock();
        if let Some(Some(flight)) = table.flights.get_mut(self.place)
            && std::mem::take(&mut flight.rests)
        {
            flight.began = Instant::now();
            flight.heard = flight.began;
        }
    }

    /// The answer is complete; its time is learnt.
    pub fn answered(self) {
        let mut table = self.flights.lock();
        let Some(Some(flight)) = table.flights.get(self.place).copied() else {
            return;
        };
        if let Some(route) = table.routes.get_mut(flight.route) {
            route.latency.add(flight.began.elapsed());
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut table = self.flights.lock();
        table.flights[self.place] = None;
        table.free.push(self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_under_way_until_its_ticket_goes() {
        let flights = Flights::default();
        let route = flights.route("GET /");
        assert_eq!(flights.waiting(0), None);
        let first = flights.begin(0, route);
        let second = flights.begin(1, route);
        assert_eq!((flights.count(0), flights.count(1)), (1, 1));
        assert!(flights.waiting(0).is_some());
        assert_eq!(flights.heard(0), None);
        first.heard();
        assert!(flights.heard(0).is_some() && flights.heard(1).is_none());
        first.answered();
        assert_eq!((flights.count(0), flights.count(1)), (0, 1));
        drop(second);
        assert_eq!(flights.waiting(1), None);
        let again = flights.begin(0, route);
        assert_eq!(flights.lock().flights.len(), 2, "places are used again");
        drop(again);
    }

    #[test]
    fn one_that_is_complete_was_heard_and_answered() {
        let flights = Flights::default();
        let route = flights.route("tcp");
        for _ in 0..20 {
            flights.begin(0, route).complete();
        }
        assert_eq!(flights.count(0), 0);
        assert!(flights.heard(0).is_some() && flights.heard(1).is_none());
        let _waits = flights.begin(0, route);
        assert!(flights.waiting(0).unwrap().usual.is_some(), "it is learnt");
    }

    #[test]
    fn whoever_waits_beside_a_long_request_waits_as_long_as_that_may_take() {
        let flights = Flights::default();
        let route = flights.route("a");
        let second = Duration::from_secs(1);
        let _short = flights.begin(0, route);
        assert_eq!(flights.grace(0), Duration::ZERO);
        let long = flights.begin(0, route).with_grace(second);
        assert_eq!(
            (flights.grace(0), flights.grace(1)),
            (second, Duration::ZERO)
        );
        drop(long);
        assert_eq!(flights.grace(0), Duration::ZERO);
    }

    #[test]
    fn nobody_waits_for_one_that_rests() {
        let flights = Flights::default();
        let open = flights.begin(0, flights.route("transaction"));
        open.rest();
        assert_eq!((flights.waiting(0), flights.count(0)), (None, 1));
        open.resume();
        assert!(flights.waiting(0).is_some());
    }

    #[test]
    fn routes_are_bounded() {
        let flights = Flights::default();
        for number in 0..2 * ROUTES_MAX {
            let route = flights.route(&format!("GET /{number}"));
            assert_eq!(route, number.min(ROUTES_MAX - 1));
        }
        assert_eq!(flights.route("GET /3"), 3);
    }
}
