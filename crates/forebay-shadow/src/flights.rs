//! Requests under way: who waits, for how long, and how long answers usually take.

use std::cmp::Reverse;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use forebay_core::shadow::detection::silence_max;
use forebay_core::shadow::promotion::Slot;

use tokio::sync::Notify;

use crate::answers::{Answers, Kind};
use crate::latency::Latency;

/// Routes whose latency is learnt by itself.
pub const ROUTES_MAX: usize = 64;

/// The route of what a front asks by itself.
pub const OWN: &str = "own";

/// What is learnt of requests of one kind.
#[derive(Debug)]
struct Route {
    name: String,
    latency: Latency,
    /// Which of those that had this place it is.
    turn: usize,
    /// When it was asked for last, if it gives way to others that are.
    used: Option<u64>,
    /// No client asked: its answers say nothing of what clients get.
    own: bool,
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
    /// Its answer is counted already.
    counted: bool,
}

/// Who waits for a byte and gives the most reason for doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// How long.
    pub time: Duration,
    /// The 99.9 % quantile of its route, once learnt.
    pub usual: Option<Duration>,
}

impl Waiting {
    /// How close it comes to what is too long where an instance may be silent for `grace`, and beyond
    /// that how quick it usually is: the least is the most suspicious.
    pub(crate) fn suspicion(&self, grace: Duration) -> (Duration, Duration, Reverse<Duration>) {
        let bound = silence_max(self.usual, grace);
        (bound.saturating_sub(self.time), bound, Reverse(self.time))
    }
}

/// The requests to one instance at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Of those that wait for longer than is usual, the one that is usually the quickest: an instance
    /// that answers nobody is found out by that. Else the one that comes closest to it.
    pub waiting: Option<Waiting>,
    /// How long the instance may be silent for what it was asked to do. It may do one thing at a time.
    pub grace: Duration,
    /// How long ago a byte came from it.
    pub heard: Option<Duration>,
}

#[derive(Debug, Default)]
struct Table {
    /// Free places are reused, so that a busy front allocates nothing for a request.
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    routes: Vec<Route>,
    /// Questions for a route so far.
    asked: u64,
    slots: Vec<Counted>,
    /// What each instance answered to clients.
    answers: Vec<Answers>,
}

/// What is kept of each instance.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    flights: usize,
    /// The latest byte that came from it.
    heard: Option<Instant>,
}

/// Whether a route gives way to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stays {
    /// There are few of its kind, all known beforehand.
    Always,
    /// Clients invent them.
    WhileUsed,
}

/// All requests under way through one front.
#[derive(Debug, Default)]
pub struct Flights {
    table: Mutex<Table>,
    /// Whoever looks at them waits for the next one to begin.
    awaited: AtomicBool,
    begun: Notify,
}

impl Flights {
    /// The number of a route that always is one, for [`Self::begin`]. Those beyond [`ROUTES_MAX`] share
    /// the last one.
    #[must_use]
    pub fn route(&self, name: &str) -> usize {
        self.lock().route(name, Stays::Always)
    }

    /// The number of a route that clients invented. The one that was asked for least recently gives way
    /// when there are too many, and its number then means none: see [`Self::is_route`].
    #[must_use]
    pub fn passing_route(&self, name: &str) -> usize {
        self.lock().route(name, Stays::WhileUsed)
    }

    /// Whether a number still is that of the route that it was given for.
    #[must_use]
    pub fn is_route(&self, number: usize) -> bool {
        let mut table = self.lock();
        table.asked += 1;
        let asked = table.asked;
        let Some(route) = table.route_mut(number) else {
            return false;
        };
        route.used = route.used.map(|_| asked);
        true
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
            counted: false,
        });
        table.counted(slot).flights += 1;
        // Nothing but a load, unless somebody waits for it.
        if self.awaited.load(Ordering::Relaxed) && self.awaited.swap(false, Ordering::Relaxed) {
            self.begun.notify_one();
        }
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

    /// Looks at the requests to an instance that may be silent for `grace` in any case.
    #[must_use]
    pub fn look(&self, slot: Slot, grace: Duration) -> Seen {
        let table = self.lock();
        let now = Instant::now();
        let heard = table.slots.get(slot).and_then(|counted| counted.heard);
        let of_slot = || {
            let flights = table.flights.iter().flatten();
            flights.filter(|flight| flight.slot == slot)
        };
        let grace = of_slot()
            .map(|flight| flight.grace)
            .fold(grace, Duration::max);
        let waiting = of_slot().filter(|flight| !flight.rests).map(|flight| {
            let waiting = Waiting {
                time: now.saturating_duration_since(flight.heard),
                usual: table.tail(flight.route),
            };
            (waiting.suspicion(grace), waiting)
        });
        Seen {
            waiting: waiting
                .min_by_key(|(suspicion, _)| *suspicion)
                .map(|(_, waiting)| waiting),
            grace,
            heard: heard.map(|at| now.saturating_duration_since(at)),
        }
    }

    /// How long the request to an instance waits for a byte that waits longest for one. Cheaper than
    /// [`Self::look`], and says less.
    #[must_use]
    pub(crate) fn longest(&self, slot: Slot) -> Option<Duration> {
        let table = self.lock();
        let flights = table.flights.iter().flatten();
        let waiting = flights.filter(|flight| flight.slot == slot && !flight.rests);
        let since = waiting.map(|flight| flight.heard).min()?;
        Some(since.elapsed())
    }

    /// Waits until a request begins, from the first poll of this on.
    pub(crate) async fn begun(&self) {
        self.awaited.store(true, Ordering::Relaxed);
        self.begun.notified().await;
    }

    /// How many requests an instance has not answered to the end.
    #[must_use]
    pub fn count(&self, slot: Slot) -> usize {
        let table = self.lock();
        table.slots.get(slot).map_or(0, |counted| counted.flights)
    }

    /// What an instance has answered to clients since the front began.
    #[must_use]
    pub fn answers(&self, slot: Slot) -> Answers {
        let table = self.lock();
        table.answers.get(slot).cloned().unwrap_or_default()
    }

    /// What all instances together have answered to clients since the front began.
    #[must_use]
    pub fn answers_of_all(&self) -> Answers {
        let table = self.lock();
        table.answers.iter().fold(Answers::default(), Answers::and)
    }

    /// A table is consistent between any two statements under its lock.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn route(&mut self, name: &str, stays: Stays) -> usize {
        self.asked += 1;
        let used = (stays == Stays::WhileUsed).then_some(self.asked);
        let own = stays == Stays::Always && name == OWN;
        let known = self.routes.iter().position(|route| route.name == name);
        let place = known.unwrap_or_else(|| self.place());
        match self.routes.get_mut(place) {
            Some(route) if known.is_some() => route.used = used.filter(|_| route.used.is_some()),
            // Nobody gives way to this one.
            Some(route) if route.used.is_none() => {}
            Some(route) => {
                *route = Route {
                    name: name.to_owned(),
                    latency: Latency::default(),
                    turn: route.turn + 1,
                    used,
                    own,
                }
            }
            None => self.routes.push(Route {
                name: name.to_owned(),
                latency: Latency::default(),
                turn: 0,
                used,
                own,
            }),
        }
        let turn = self.routes.get(place).map_or(0, |route| route.turn);
        turn * ROUTES_MAX + place
    }

    /// Where a new route is kept: the place after the last, that of the one that gives way, or the last.
    fn place(&self) -> usize {
        if self.routes.len() < ROUTES_MAX {
            return self.routes.len();
        }
        let routes = self.routes.iter().enumerate();
        let used = routes.filter_map(|(place, route)| Some((route.used?, place)));
        used.min().map_or(ROUTES_MAX - 1, |(_, place)| place)
    }

    fn route_mut(&mut self, number: usize) -> Option<&mut Route> {
        let route = self.routes.get_mut(number % ROUTES_MAX)?;
        (route.turn == number / ROUTES_MAX).then_some(route)
    }

    fn tail(&self, number: usize) -> Option<Duration> {
        let route = self.routes.get(number % ROUTES_MAX)?;
        (route.turn == number / ROUTES_MAX).then(|| route.latency.tail())?
    }

    /// A request is under way no more.
    fn end(&mut self, place: usize) -> Option<Flight> {
        let flight = self.flights.get_mut(place).and_then(Option::take);
        if let Some(flight) = &flight {
            let counted = self.counted(flight.slot);
            counted.flights = counted.flights.saturating_sub(1);
            self.free.push(place);
        }
        flight
    }

    /// The time that an answer took.
    fn learn(&mut self, flight: &Flight, now: Instant) {
        let took = now.saturating_duration_since(flight.began);
        if let Some(route) = self.route_mut(flight.route) {
            route.latency.add(took);
        }
        if !flight.counted {
            self.count(flight, took, Kind::Answer);
        }
    }

    /// An answer, if it is to a client.
    fn count(&mut self, flight: &Flight, took: Duration, kind: Kind) {
        let route = self.route_mut(flight.route);
        if route.is_some_and(|route| route.own) {
            return;
        }
        if self.answers.len() <= flight.slot {
            self.answers.resize(flight.slot + 1, Answers::default());
        }
        self.answers[flight.slot].add(took, kind);
    }

    fn counted(&mut self, slot: Slot) -> &mut Counted {
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, Counted::default());
        }
        &mut self.slots[slot]
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
        table.counted(slot).heard = Some(now);
    }

    /// The first byte came, and nobody knows of a later one: its time is learnt. The same as
    /// [`Self::heard`], [`Self::answered`] and being dropped, for half of what these cost.
    pub fn complete(self) {
        let this = ManuallyDrop::new(self);
        let mut table = this.flights.lock();
        if let Some(flight) = table.end(this.place) {
            let now = Instant::now();
            table.counted(flight.slot).heard = Some(now);
            table.learn(&flight, now);
        }
    }

    /// The answer begins, and is counted now: what follows comes as fast as the client reads. It took
    /// the time since the request was begun, or since the latest byte of it came from the client, if
    /// one came after that.
    pub(crate) fn replied(&self, kind: Kind, came: Option<Instant>) {
        let mut table = self.flights.lock();
        let now = Instant::now();
        let Some(Some(flight)) = table.flights.get_mut(self.place) else {
            return;
        };
        flight.counted = true;
        let flight = *flight;
        let since = came.map_or(flight.began, |came| came.max(flight.began));
        table.count(&flight, now.saturating_duration_since(since), kind);
    }

    /// As if it had begun so long ago.
    #[cfg(test)]
    pub(crate) fn set_age(&self, age: Duration) {
        let at = Instant::now().checked_sub(age).unwrap();
        let mut table = self.flights.lock();
        let flight = table.flights[self.place].as_mut().unwrap();
        (flight.began, flight.heard) = (at, at);
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
        let this = ManuallyDrop::new(self);
        let mut table = this.flights.lock();
        if let Some(flight) = table.end(this.place) {
            table.learn(&flight, Instant::now());
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.flights.lock().end(self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(flights: &Flights, slot: Slot) -> Option<Waiting> {
        flights.look(slot, Duration::ZERO).waiting
    }

    #[test]
    fn a_request_is_under_way_until_its_ticket_goes() {
        let flights = Flights::default();
        let route = flights.route("GET /");
        assert_eq!(waiting(&flights, 0), None);
        let first = flights.begin(0, route);
        let second = flights.begin(1, route);
        assert_eq!((flights.count(0), flights.count(1)), (1, 1));
        assert!(waiting(&flights, 0).is_some());
        let heard = |slot| flights.look(slot, Duration::ZERO).heard;
        assert_eq!(heard(0), None);
        first.heard();
        assert!(heard(0).is_some() && heard(1).is_none());
        first.answered();
        assert_eq!((flights.count(0), flights.count(1)), (0, 1));
        drop(second);
        assert_eq!(waiting(&flights, 1), None);
        let again = flights.begin(0, route);
        assert_eq!(flights.lock().flights.len(), 2, "places are used again");
        drop(again);
    }

    #[test]
    fn what_clients_are_answered_is_counted_by_instance() {
        let flights = Flights::default();
        let (route, own) = (flights.passing_route("/"), flights.route(OWN));
        flights.begin(1, route).answered();
        flights.begin(1, route).complete();
        let failed = flights.begin(1, route);
        failed.replied(Kind::Error, None);
        failed.answered();
        // Nobody answered that, and nobody asked this.
        drop(flights.begin(1, route));
        flights.begin(1, own).answered();
        let of = |slot| {
            let answers = flights.answers(slot);
            (answers.count(), answers.errors())
        };
        assert_eq!((of(0), of(1), of(2)), ((0, 0), (3, 1), (0, 0)));
    }

    /// A download took as long as its client read it, and so the instance seemed slow.
    #[test]
    fn what_comes_after_its_beginning_is_no_part_of_an_answers_time() {
        let flights = Flights::default();
        let route = flights.passing_route("GET /");
        let hour = Duration::from_secs(3600);
        for _ in 0..20 {
            let download = flights.begin(0, route);
            download.replied(Kind::Answer, None);
            download.set_age(hour);
            download.answered();
        }
        let answers = flights.answers(0);
        assert_eq!(answers.count(), 20, "each once");
        assert!(answers.quantile(1.0).unwrap() < hour / 2);
        let _waits = flights.begin(0, route);
        let usual = waiting(&flights, 0).unwrap().usual;
        assert!(usual.unwrap() >= hour, "detection waits for the end");
        // An upload takes as long as its client writes it.
        let upload = flights.begin(1, route);
        upload.set_age(hour);
        upload.replied(Kind::Answer, Some(Instant::now()));
        assert!(flights.answers(1).quantile(1.0).unwrap() < hour / 2);
        // What had come before says nothing.
        let small = flights.begin(2, route);
        small.set_age(hour);
        small.replied(Kind::Answer, Instant::now().checked_sub(2 * hour));
        assert!(flights.answers(2).quantile(1.0).unwrap() < hour + hour / 4);
    }

    #[test]
    fn one_that_is_complete_was_heard_and_answered() {
        let flights = Flights::default();
        let route = flights.route("tcp");
        for _ in 0..20 {
            flights.begin(0, route).complete();
        }
        assert_eq!(flights.count(0), 0);
        let look = |slot| flights.look(slot, Duration::ZERO);
        assert!(look(0).heard.is_some() && look(1).heard.is_none());
        let _waits = flights.begin(0, route);
        assert!(look(0).waiting.unwrap().usual.is_some(), "it is learnt");
    }

    #[test]
    fn whoever_waits_beside_a_long_request_waits_as_long_as_that_may_take() {
        let flights = Flights::default();
        let route = flights.route("a");
        let second = Duration::from_secs(1);
        let grace = |slot| flights.look(slot, Duration::ZERO).grace;
        let _short = flights.begin(0, route);
        assert_eq!(grace(0), Duration::ZERO);
        let long = flights.begin(0, route).with_grace(second);
        assert_eq!((grace(0), grace(1)), (second, Duration::ZERO));
        assert_eq!(flights.look(0, 2 * second).grace, 2 * second);
        drop(long);
        assert_eq!(grace(0), Duration::ZERO);
    }

    /// A request of a kind of which nothing is known, or that takes long for good reason, hid that an
    /// instance answered nobody else.
    #[test]
    fn a_long_request_does_not_hide_the_short_ones() {
        let flights = Flights::default();
        let (long, short) = (flights.route("long"), flights.route("short"));
        let mut table = flights.lock();
        for _ in 0..100 {
            let route = table.route_mut(short).unwrap();
            route.latency.add(Duration::from_millis(1));
        }
        drop(table);
        let tickets = [long, short].map(|route| flights.begin(0, route));
        let usual = || waiting(&flights, 0).unwrap().usual;
        tickets[0].set_age(Duration::from_secs(900));
        assert_eq!(usual(), None, "it waits for longer than is usual");
        tickets[1].set_age(Duration::from_millis(50));
        assert!(usual().is_some(), "so do both, and this one says more");
    }

    #[tokio::test]
    async fn whoever_looks_is_woken_by_the_next_request() {
        let flights = Flights::default();
        let route = flights.route("a");
        drop(flights.begin(0, route));
        let mut begun = std::pin::pin!(flights.begun());
        let soon = tokio::time::timeout(Duration::ZERO, begun.as_mut());
        assert!(soon.await.is_err(), "nobody waited for that one");
        let _flight = flights.begin(0, route);
        begun.await;
    }

    #[test]
    fn nobody_waits_for_one_that_rests() {
        let flights = Flights::default();
        let open = flights.begin(0, flights.route("transaction"));
        open.rest();
        assert_eq!((waiting(&flights, 0), flights.count(0)), (None, 1));
        open.resume();
        assert!(waiting(&flights, 0).is_some());
    }

    #[test]
    fn routes_are_bounded() {
        let flights = Flights::default();
        for number in 0..2 * ROUTES_MAX {
            let route = flights.route(&format!("command {number}"));
            assert_eq!(route, number.min(ROUTES_MAX - 1));
        }
        assert_eq!(flights.route("command 3"), 3);
    }

    /// The first 64 that came were kept for ever, and all others taken for one.
    #[test]
    fn a_route_that_nobody_asks_for_gives_way() {
        let flights = Flights::default();
        let fixed = flights.route("tcp");
        let kept = flights.passing_route("GET /kept");
        let idle = flights.passing_route("GET /idle");
        let learn = |route| {
            for _ in 0..100 {
                flights.begin(0, route).answered();
            }
        };
        learn(idle);
        let _late = flights.begin(0, idle);
        for number in 0..2 * ROUTES_MAX {
            assert!(flights.is_route(kept), "it is in use");
            let route = flights.passing_route(&format!("GET /{number}"));
            assert!(flights.is_route(route));
        }
        assert_eq!(flights.passing_route("GET /kept"), kept);
        assert_eq!(flights.route("tcp"), fixed);
        assert!(!flights.is_route(idle));
        assert_eq!(waiting(&flights, 0).unwrap().usual, None);
        // What is learnt of one that gave way is not learnt of the one in its place.
        learn(idle);
        assert_eq!(flights.lock().routes.len(), ROUTES_MAX);
        let place = idle % ROUTES_MAX;
        assert_eq!(flights.lock().routes[place].latency.tail(), None);
        assert_ne!(flights.passing_route("GET /idle"), idle);
    }
}
