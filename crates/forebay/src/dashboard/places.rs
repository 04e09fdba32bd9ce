//! Places of connections: who showed the token keeps its place, and all others make room for each other.
//!
//! Whoever reaches the address can connect, and hold a connection open without the token. So those who have not
//! shown it give way to who comes later, the longest there first: a browser shows it within moments. Among those
//! who did, each certificate has its share.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

/// Connections on which no token was shown yet.
pub(super) const STRANGERS_MAX: usize = 32;
/// Connections on which it was. One page uses two or three.
const KNOWN_MAX: usize = 64;
/// Of these, by one certificate.
const EACH_MAX: usize = 16;

/// Of which certificate a connection is, by its SHA-256.
type Certificate = [u8; 32];

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPlace {
    /// The certificate has its share.
    #[error(
        "this certificate has {EACH_MAX} connections to the page, which is its share; close some of its pages"
    )]
    Share,
    /// All are taken.
    #[error("the page has as many connections as it takes; close some, or try again later")]
    Full,
}

#[derive(Debug)]
struct Stranger {
    leave: Arc<Notify>,
    certificate: Option<Certificate>,
}

#[derive(Debug, Default)]
struct Taken {
    /// The number of the next one.
    next: u64,
    strangers: BTreeMap<u64, Stranger>,
    known: HashMap<u64, Option<Certificate>>,
}

/// All places.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

/// A connection's place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    places: Places,
    number: u64,
    leave: Arc<Notify>,
}

impl Places {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for somebody new, for which another stranger may have to leave.
    pub(super) fn seat(&self) -> Seat {
        let leave = Arc::new(Notify::new());
        let mut taken = self.taken();
        if taken.strangers.len() >= STRANGERS_MAX
            && let Some((_, longest)) = taken.strangers.pop_first()
        {
            longest.leave.notify_one();
        }
        let number = taken.next;
        taken.next += 1;
        let stranger = Stranger {
            leave: Arc::clone(&leave),
            certificate: None,
        };
        taken.strangers.insert(number, stranger);
        Seat {
            places: self.clone(),
            number,
            leave,
        }
    }
}

impl Seat {
    /// Done when the place is needed by somebody else.
    pub(super) async fn is_taken(&self) {
        self.leave.notified().await;
    }

    /// Which certificate it came with, in DER.
    pub(super) fn certified(&self, certificate: &[u8]) {
        if let Some(stranger) = self.places.taken().strangers.get_mut(&self.number) {
            stranger.certificate = Some(Sha256::digest(certificate).into());
        }
    }

    /// The token was shown: from now on it keeps its place.
    pub(super) fn is_known(&self) -> Result<(), NoPlace> {
        let mut taken = self.places.taken();
        if taken.known.contains_key(&self.number) {
            return Ok(());
        }
        let stranger = taken.strangers.get(&self.number);
        let certificate = stranger.ok_or(NoPlace::Full)?.certificate;
        if taken.known.len() >= KNOWN_MAX {
            return Err(NoPlace::Full);
        }
        let same = taken.known.values().filter(|known| **known == certificate);
        if certificate.is_some() && same.count() >= EACH_MAX {
            return Err(NoPlace::Share);
        }
        taken.strangers.remove(&self.number);
        taken.known.insert(self.number, certificate);
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.strangers.remove(&self.number);
        taken.known.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(places: &Places, certificate: Option<&[u8]>) -> Result<Seat, NoPlace> {
        let seat = places.seat();
        if let Some(certificate) = certificate {
            seat.certified(certificate);
        }
        seat.is_known()?;
        seat.is_known()?;
        Ok(seat)
    }

    #[test]
    fn strangers_take_no_place_of_who_has_the_token() {
        let places = Places::default();
        let page = known(&places, None).unwrap();
        let strangers: Vec<Seat> = (0..100).map(|_| places.seat()).collect();
        assert_eq!(places.taken().strangers.len(), STRANGERS_MAX);
        page.is_known().unwrap();
        let late = known(&places, None).unwrap();
        assert_eq!(
            strangers[0].is_known(),
            Err(NoPlace::Full),
            "it had to leave"
        );
        strangers[99].is_known().unwrap();
        drop((page, late, strangers));
        let taken = places.taken();
        assert!(
            taken.strangers.is_empty() && taken.known.is_empty(),
            "{taken:?}"
        );
    }

    #[test]
    fn each_certificate_has_its_share() {
        let places = Places::default();
        let mut held = Vec::new();
        for _ in 0..EACH_MAX {
            held.push(known(&places, Some(b"one")).unwrap());
        }
        assert_eq!(known(&places, Some(b"one")).unwrap_err(), NoPlace::Share);
        held.push(known(&places, Some(b"other")).unwrap());
        held.swap_remove(0);
        held.push(known(&places, Some(b"one")).unwrap());
        while held.len() < KNOWN_MAX {
            held.push(known(&places, None).unwrap());
        }
        assert_eq!(known(&places, Some(b"third")).unwrap_err(), NoPlace::Full);
    }
}
