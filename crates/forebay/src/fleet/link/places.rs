//! So many at a time, and so many of one.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) all: usize,
    pub(super) of_one: usize,
}

/// Places, each taken by somebody.
#[derive(Debug)]
pub(super) struct Places<K> {
    bounds: Bounds,
    taken: Mutex<HashMap<K, usize>>,
}

impl<K: Hash + Eq + Clone> Places<K> {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            taken: Mutex::new(HashMap::new()),
        })
    }

    /// Takes one, if there is one left for whoever it is.
    pub(super) fn take(self: &Arc<Self>, who: &K) -> Option<Place<K>> {
        let mut taken = self.taken();
        let all: usize = taken.values().sum();
        let own = taken.get(who).copied().unwrap_or(0);
        if all >= self.bounds.all || own >= self.bounds.of_one {
            return None;
        }
        taken.insert(who.clone(), own + 1);
        Some(Place {
            of: Arc::clone(self),
            who: who.clone(),
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that is taken until it is dropped.
#[derive(Debug)]
pub(super) struct Place<K: Hash + Eq + Clone> {
    of: Arc<Places<K>>,
    who: K,
}

impl<K: Hash + Eq + Clone> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        match taken.get_mut(&self.who) {
            Some(own) if *own > 1 => *own -= 1,
            _ => _ = taken.remove(&self.who),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_places_of_others() {
        let places = Places::new(Bounds { all: 3, of_one: 2 });
        let first = places.take(&"a").unwrap();
        let _second = places.take(&"a").unwrap();
        assert!(places.take(&"a").is_none(), "more than its own");
        let _third = places.take(&"b").unwrap();
        assert!(places.take(&"c").is_none(), "more than all");
        drop(first);
        let _again = places.take(&"c").unwrap();
        assert!(places.take(&"a").is_none());
        assert_eq!(places.taken().len(), 3);
    }
}
