//! Places of connections: a bounded number in all, of which nobody can take those of others.
//!
//! A user has so many at most, whatever it may do with them; on a listener that other hosts reach, an
//! address has. Root has some besides that nobody else can take, and so has the group.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Places of those who may only look.
const READERS_MAX: usize = 96;
/// Places of root and the group, which readers cannot take.
const CHANGERS_MAX: usize = 16;
/// Places of root, which nobody else can take: 128 in all.
const ROOT_MAX: usize = 16;
/// What one holder has of the first two kinds together, at most: enough for the page of everybody who looks, and so
/// little that it takes several who wish ill to leave no room.
pub(super) const EACH_MAX: usize = 24;

/// Who holds a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    /// A user of this host.
    User(u32),
    /// A host.
    Address(IpAddr),
    /// Somebody of this host of whom the kernel does not tell whose they are: all these together.
    Unknown,
}

/// What a holder may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rank {
    /// Look.
    Reader,
    /// Change things.
    Changer,
    /// Everything.
    Root,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPlace {
    /// The holder has its share.
    #[error(
        "you have {EACH_MAX} connections to the daemon, which is what one user or host may have; end some"
    )]
    Share,
    /// All are taken.
    #[error("the daemon has as many connections as it takes; try again later")]
    Full,
}

#[derive(Debug, Default)]
struct Taken {
    readers: usize,
    changers: usize,
    root: usize,
    /// Of the first two kinds.
    by: HashMap<Holder, usize>,
}

impl Taken {
    fn count(&mut self, rank: Rank) -> (&mut usize, usize) {
        match rank {
            Rank::Reader => (&mut self.readers, READERS_MAX),
            Rank::Changer => (&mut self.changers, CHANGERS_MAX),
            Rank::Root => (&mut self.root, ROOT_MAX),
        }
    }

    /// Takes a place of a kind, if one is left.
    fn take(&mut self, kind: Rank) -> bool {
        let (count, most) = self.count(kind);
        let left = *count < most;
        *count += usize::from(left);
        left
    }
}

/// All places.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

/// A place that is held; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    kind: Rank,
    holder: Holder,
}

impl Places {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a holder.
    pub(super) fn take(&self, holder: Holder, rank: Rank) -> Result<Place, NoPlace> {
        let mut taken = self.taken();
        let place = |kind| Place {
            places: self.clone(),
            kind,
            holder,
        };
        if rank == Rank::Root && taken.take(Rank::Root) {
            return Ok(place(Rank::Root));
        }
        if taken.by.get(&holder).is_some_and(|held| *held >= EACH_MAX) {
            return Err(NoPlace::Share);
        }
        let kind = if rank != Rank::Reader && taken.take(Rank::Changer) {
            Rank::Changer
        } else if taken.take(Rank::Reader) {
            Rank::Reader
        } else {
            return Err(NoPlace::Full);
        };
        *taken.by.entry(holder).or_default() += 1;
        Ok(place(kind))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        *taken.count(self.kind).0 -= 1;
        if self.kind == Rank::Root {
            return;
        }
        if let Some(held) = taken.by.get_mut(&self.holder) {
            *held -= 1;
            if *held == 0 {
                taken.by.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many as there are.
    fn all(places: &Places, holder: Holder, rank: Rank) -> (Vec<Place>, NoPlace) {
        let mut held = Vec::new();
        loop {
            match places.take(holder, rank) {
                Ok(place) => held.push(place),
                Err(why) => return (held, why),
            }
        }
    }

    #[test]
    fn nobody_takes_the_places_of_others() {
        let check = |rank: Rank, most: usize| {
            let places = Places::default();
            let (held, why) = all(&places, Holder::User(1), rank);
            assert_eq!((held.len(), why), (most, NoPlace::Share), "{rank:?}");
            for other in [
                Holder::User(2),
                Holder::Unknown,
                Holder::Address([10, 0, 0, 1].into()),
            ] {
                let (held, _) = all(&places, other, Rank::Reader);
                assert_eq!(held.len(), EACH_MAX, "{other:?} beside a {rank:?}");
            }
        };
        check(Rank::Reader, EACH_MAX);
        check(Rank::Changer, EACH_MAX);
        check(Rank::Root, ROOT_MAX + EACH_MAX);
        const { assert!(CHANGERS_MAX < EACH_MAX && READERS_MAX >= 4 * EACH_MAX) }
    }

    #[test]
    fn the_group_and_root_get_in_where_all_readers_are() {
        let places = Places::default();
        let mut readers = Vec::new();
        for user in 100.. {
            let (held, why) = all(&places, Holder::User(user), Rank::Reader);
            readers.extend(held);
            if why == NoPlace::Full {
                break;
            }
        }
        assert_eq!(readers.len(), READERS_MAX);
        let (changers, why) = all(&places, Holder::User(1), Rank::Changer);
        assert_eq!((changers.len(), why), (CHANGERS_MAX, NoPlace::Full));
        assert_eq!(
            places.take(Holder::User(2), Rank::Changer).unwrap_err(),
            NoPlace::Full
        );
        let (root, why) = all(&places, Holder::User(0), Rank::Root);
        assert_eq!((root.len(), why), (ROOT_MAX, NoPlace::Full));
    }

    #[test]
    fn what_was_held_is_free_again() {
        let places = Places::default();
        for rank in [Rank::Reader, Rank::Changer, Rank::Root] {
            drop(all(&places, Holder::User(1), rank));
        }
        let taken = places.taken();
        assert_eq!((taken.readers, taken.changers, taken.root), (0, 0, 0));
        assert!(taken.by.is_empty(), "{taken:?}");
    }
}
