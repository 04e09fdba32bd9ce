//! Room that is kept for applications that are on their way.
//!
//! A move takes seconds to minutes; without a promise, two of them choose the same room. A promise ends
//! by itself if nobody renews it, since whoever asked for it may be gone.

use std::collections::BTreeMap;
use std::time::Duration;

use super::HostName;
use super::choice::Room;
use crate::app::{AppId, Class};

/// How long a promise stands without word from the source.
pub const PROMISE_TTL: Duration = Duration::from_secs(30);
/// Promises at a time: each is a stream of pages that others have to make room for.
pub const PROMISES_MAX: usize = 4;

/// Room that was promised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promise {
    /// To the host that has the application now.
    pub to: HostName,
    /// How much it matters.
    pub class: Class,
    /// How much is kept.
    pub room: Room,
    until: Duration,
}

/// Why no room was promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is not so much left.
    #[error(
        "{app} needs {:.1} CPUs and {} of memory here, and finds {:.1} CPUs and {}; free some, or choose another host",
        need.cpu.as_cpus(), need.memory, room.cpu.as_cpus(), room.memory
    )]
    Full {
        /// What asked.
        app: AppId,
        /// What it needs.
        need: Room,
        /// What it finds.
        room: Room,
    },
    /// So many are on their way already.
    #[error(
        "{app} cannot come now: {PROMISES_MAX} applications are on their way here; try again when one has come"
    )]
    Busy {
        /// What asked.
        app: AppId,
    },
    /// Another host moves it here, or this one has not finished giving it away.
    #[error("{app} is already on its way between this host and {with}; wait until that is over")]
    Underway {
        /// What asked.
        app: AppId,
        /// The other host.
        with: HostName,
    },
}

/// What a host has promised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Promises(BTreeMap<AppId, Promise>);

impl Promises {
    /// Promises room to an application of a host, out of what its class finds here before any promise is
    /// taken off; promising the same again renews it. `leaving` is the host that this one has not
    /// finished giving it to.
    ///
    /// # Errors
    ///
    /// There is not so much room, too many are on their way, or this one is, from elsewhere.
    pub fn promise(
        &mut self,
        now: Duration,
        app: &AppId,
        (to, class, need): (&HostName, Class, Room),
        room: Room,
        leaving: Option<&HostName>,
    ) -> Result<(), Refusal> {
        if let Some(with) = leaving {
            return Err(Refusal::Underway {
                app: app.clone(),
                with: with.clone(),
            });
        }
        // Those whose time is over go when somebody hears of it, and count no more until then.
        let stands = |promise: &&Promise| promise.until > now;
        match self.0.get(app).filter(stands) {
            Some(there) if there.to != *to => {
                return Err(Refusal::Underway {
                    app: app.clone(),
                    with: there.to.clone(),
                });
            }
            Some(there) if (there.class, there.room) == (class, need) => {}
            Some(_) | None => {
                let others = self.0.iter().filter(|(other, _)| *other != app);
                let others: Vec<_> = others.map(|(_, promise)| promise).filter(stands).collect();
                if others.len() >= PROMISES_MAX {
                    return Err(Refusal::Busy { app: app.clone() });
                }
                let before = others.iter().filter(|promise| promise.class <= class);
                let left = before.fold(room, |left, promise| left.less(promise.room));
                if !left.holds(need) {
                    return Err(Refusal::Full {
                        app: app.clone(),
                        need,
                        room: left,
                    });
                }
            }
        }
        let promise = Promise {
            to: to.clone(),
            class,
            room: need,
            until: now + PROMISE_TTL,
        };
        self.0.insert(app.clone(), promise);
        Ok(())
    }

    /// Whether room is kept for it, or was and nobody has dropped it yet.
    #[must_use]
    pub fn holds(&self, app: &AppId) -> bool {
        self.0.contains_key(app)
    }

    /// It came, or will not.
    pub fn release(&mut self, app: &AppId) {
        self.0.remove(app);
    }

    /// Drops those that nobody renewed, and says whose they were.
    pub fn expire(&mut self, now: Duration) -> Vec<AppId> {
        let gone: Vec<_> = self
            .0
            .iter()
            .filter(|(_, promise)| promise.until <= now)
            .map(|(app, _)| app.clone())
            .collect();
        for app in &gone {
            self.0.remove(app);
        }
        gone
    }

    /// All of them, by class, as they are published.
    #[must_use]
    pub fn by_class(&self) -> BTreeMap<Class, Room> {
        let mut sums: BTreeMap<Class, Room> = BTreeMap::new();
        for promise in self.0.values() {
            let sum = sums.entry(promise.class).or_default();
            *sum = sum.and(promise.room);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Bytes, MilliCpu};

    fn room(cpus: u64, mib: u64) -> Room {
        Room {
            cpu: MilliCpu::cpus(cpus),
            memory: Bytes::mib(mib),
        }
    }

    fn ask(
        promises: &mut Promises,
        now_s: u64,
        app: &str,
        from: &str,
        need: Room,
    ) -> Result<(), Refusal> {
        promises.promise(
            Duration::from_secs(now_s),
            &app.parse().unwrap(),
            (&from.parse().unwrap(), Class::Critical, need),
            room(4, 1000),
            None,
        )
    }

    #[test]
    fn the_same_room_is_not_promised_twice() {
        let mut promises = Promises::default();
        ask(&mut promises, 0, "a", "x", room(3, 100)).unwrap();
        let refusal = ask(&mut promises, 1, "b", "x", room(2, 100)).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "b needs 2.0 CPUs and 100.0 MiB of memory here, and finds 1.0 CPUs and 900.0 MiB; \
             free some, or choose another host"
        );
        assert_eq!(promises.by_class()[&Class::Critical], room(3, 100));
        let holds = |app: &str| promises.holds(&app.parse().unwrap());
        assert!(holds("a") && !holds("b"));
        promises.release(&"a".parse().unwrap());
        ask(&mut promises, 1, "b", "x", room(2, 100)).unwrap();
    }

    #[test]
    fn a_promise_that_nobody_renews_ends() {
        let mut promises = Promises::default();
        ask(&mut promises, 0, "a", "x", room(3, 100)).unwrap();
        ask(&mut promises, 20, "a", "x", room(3, 100)).unwrap();
        assert!(promises.expire(Duration::from_secs(49)).is_empty());
        assert_eq!(
            promises.expire(Duration::from_secs(50)),
            ["a".parse().unwrap()]
        );
        ask(&mut promises, 50, "b", "y", room(4, 1000)).unwrap();
    }

    #[test]
    fn an_application_comes_from_one_host_and_so_many_at_a_time() {
        let mut promises = Promises::default();
        for app in ["a", "b", "c", "d"] {
            ask(&mut promises, 0, app, "x", room(0, 1)).unwrap();
        }
        let refusal = ask(&mut promises, 0, "a", "y", room(0, 1)).unwrap_err();
        assert!(matches!(refusal, Refusal::Underway { .. }), "{refusal}");
        let refusal = ask(&mut promises, 0, "e", "x", room(0, 1)).unwrap_err();
        assert!(matches!(refusal, Refusal::Busy { .. }), "{refusal}");
        let gives = promises.promise(
            Duration::ZERO,
            &"f".parse().unwrap(),
            (&"x".parse().unwrap(), Class::Batch, room(0, 1)),
            room(4, 1000),
            Some(&"y".parse().unwrap()),
        );
        let refusal = gives.unwrap_err().to_string();
        assert!(refusal.contains("between this host and y"), "{refusal}");
        // More or less for one that is on its way is no further one.
        ask(&mut promises, 0, "a", "x", room(1, 1)).unwrap();
    }
}
