//! Whether moves wait, so that critical applications do not.
//!
//! # Problem
//!
//! While a critical application waits for I/O, moving files beside it makes it wait longer.
//! But it may wait because its files are on the slow side, which only moving them ends: where that
//! is tried for an application, moves do not wait for it.
//!
//! # Approach
//!
//! Moves wait as soon as it waits, until it hardly does; and at most ten seconds, after which
//! they have two seconds before they wait again.
//!
//! # Properties
//!
//! - Nobody waits: nobody is held back.
//! - Somebody always waits: moves have a sixth of the time, and no less.
//! - Moves are tried for one application: they wait for every other as before.

use std::time::Duration;

use crate::app::Class;

/// Share of time that a critical application waits for I/O, from which moves wait.
const HELD_ABOVE: f64 = 0.05;
/// Share under which they go on.
const FREE_BELOW: f64 = 0.02;
/// How long moves wait at a stretch.
const HELD_MAX: Duration = Duration::from_secs(10);
/// What they then have before they wait again.
const TURN: Duration = Duration::from_secs(2);

/// What one application has to do with moves.
#[derive(Debug, Clone, Copy)]
pub struct Waiter {
    /// Its class: moves wait for critical ones.
    pub class: Class,
    /// Share of time that it waits for I/O lately, where that is known.
    pub stalled: Option<f64>,
    /// Whether it is tried for it to let files move although it waits.
    pub moves_files: bool,
}

/// The most that any application waits for I/O that moves are to wait for, as a share of time; none
/// where there is none, or nobody can tell.
pub fn waiting(apps: impl IntoIterator<Item = Waiter>) -> Option<f64> {
    let mut longest: Option<f64> = None;
    for app in apps {
        let counts = app.class == Class::Critical && !app.moves_files;
        let Some(stalled) = app.stalled.filter(|_| counts) else {
            continue;
        };
        longest = Some(longest.map_or(stalled, |longest| longest.max(stalled)));
    }
    longest
}

/// Who goes first now.
#[derive(Debug, Clone, Copy, Default)]
pub struct Courtesy {
    held_since: Option<Duration>,
    free_until: Duration,
}

impl Courtesy {
    /// Whether moves wait from now on, by what [`waiting`] tells.
    pub fn step(&mut self, now: Duration, waiting: Option<f64>) -> bool {
        let waiting = waiting.unwrap_or(0.0);
        match self.held_since {
            Some(_) if waiting < FREE_BELOW => self.held_since = None,
            Some(since) if now.saturating_sub(since) >= HELD_MAX => {
                self.held_since = None;
                self.free_until = now + TURN;
            }
            None if waiting >= HELD_ABOVE && now >= self.free_until => {
                self.held_since = Some(now);
            }
            _ => {}
        }
        self.held_since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(share: impl Fn(u64) -> f64) -> Vec<bool> {
        let mut courtesy = Courtesy::default();
        let step = |tenth| {
            let now = Duration::from_millis(tenth * 100);
            courtesy.step(now, Some(share(tenth)))
        };
        (0..1200).map(step).collect()
    }

    #[test]
    fn moves_wait_while_somebody_does_and_no_longer() {
        let held = held(|tenth| if (10..50).contains(&tenth) { 0.3 } else { 0.0 });
        let waits: Vec<usize> = (0..held.len()).filter(|tenth| held[*tenth]).collect();
        assert_eq!(waits, (10..50).collect::<Vec<_>>());
        assert!(!Courtesy::default().step(Duration::ZERO, None));
    }

    #[test]
    fn what_is_tried_for_one_lets_nobody_else_wait() {
        let app = |class, stalled, moves_files| Waiter {
            class,
            stalled: Some(stalled),
            moves_files,
        };
        let (web, tried) = (
            app(Class::Critical, 0.3, false),
            app(Class::Critical, 0.5, true),
        );
        let (slow, batch) = (
            app(Class::Standard, 0.6, true),
            app(Class::Batch, 0.9, false),
        );
        let unknown = Waiter {
            stalled: None,
            ..web
        };
        assert_eq!(waiting([]), None);
        assert_eq!(waiting([unknown, slow, batch]), None);
        assert_eq!(waiting([tried, slow, batch]), None, "all that wait have it");
        assert_eq!(waiting([web, tried, slow, batch, unknown]), Some(0.3));
        let mut courtesy = Courtesy::default();
        assert!(courtesy.step(Duration::ZERO, waiting([web, tried])));
        assert!(!courtesy.step(Duration::from_millis(100), waiting([tried])));
    }

    #[test]
    fn a_share_between_the_bounds_changes_nothing() {
        let held = held(|tenth| if tenth == 10 { 0.06 } else { 0.03 });
        assert!(!held[9] && held[10] && held[100]);
    }

    #[test]
    fn who_waits_for_ever_leaves_moves_a_sixth_of_the_time() {
        let held = held(|_| 1.0);
        let free = held.iter().filter(|held| !**held).count();
        assert_eq!(free, held.len() / 6);
    }
}
