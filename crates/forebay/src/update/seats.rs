//! Room for connections that have not said yet who they are, so that no user keeps others out.
//!
//! Whoever was admitted needs none: an app is told by one connection, and only its own user may speak for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::locked;

/// Of one user.
const OF_USER_MAX: usize = 4;
/// Of all users but root together, and of root.
const MAX: usize = 32;
const ROOT: u32 = 0;

/// How many wait, by user.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<Mutex<BTreeMap<u32, usize>>>);

/// Room for one of a user's, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    user: u32,
}

impl Seats {
    /// Room for one more of a user's, or why there is none.
    pub(super) fn take(&self, user: u32) -> Result<Seat, String> {
        let mut taken = locked(&self.0);
        let own = taken.get(&user).copied().unwrap_or_default();
        let most = if user == ROOT { MAX } else { OF_USER_MAX };
        if own >= most {
            return Err(format!(
                "user {user} has {own} connections that have not said who they are, the most that it may have"
            ));
        }
        let others = taken.iter().filter(|(other, _)| **other != ROOT);
        let others: usize = others.map(|(_, open)| open).sum();
        if user != ROOT && others >= MAX {
            return Err(format!(
                "{others} connections have not said who they are, the most that may be"
            ));
        }
        taken.insert(user, own + 1);
        Ok(Seat {
            seats: self.clone(),
            user,
        })
    }
}

impl Seat {
    /// Whose it is.
    pub(super) const fn user(&self) -> u32 {
        self.user
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = locked(&self.seats.0);
        if let Some(own) = taken.get_mut(&self.user) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_keeps_others_out() {
        let seats = Seats::default();
        let full = |user, most: usize| -> Vec<Seat> {
            let all: Vec<Seat> = (0..most).map(|_| seats.take(user).unwrap()).collect();
            let why = seats.take(user).unwrap_err();
            assert!(why.contains(&format!("user {user} has {most}")), "{why}");
            all
        };
        let mut others: Vec<Vec<Seat>> = (1000..)
            .take(MAX / OF_USER_MAX)
            .map(|user| full(user, OF_USER_MAX))
            .collect();
        let why = seats.take(2000).unwrap_err();
        assert!(why.contains("32 connections"), "{why}");
        let of_root = full(ROOT, MAX);
        others.pop();
        assert_eq!(seats.take(2000).unwrap().user(), 2000);
        drop((others, of_root));
        assert_eq!(locked(&seats.0).len(), 0);
    }
}
