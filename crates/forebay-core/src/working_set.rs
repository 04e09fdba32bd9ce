//! Which part of an app's memory is in use, and which is only held.
//!
//! Problem: what is charged to an app is not what it needs. Page cache that was read once and
//! memory that was touched at start-up stay charged until somebody needs the room. Planning
//! for all of it protects what nobody would miss, and takes from batch what it works with.
//!
//! Approach: three witnesses, two of them in memory.stat. The kernel's own ageing says what was not
//! touched twice: the inactive lists. Refaults say whether that is true: a page that comes back
//! soon after it was evicted was in use. As long as refaults come, everything counts as in use;
//! only after [`CALM_MIN`] without them are the inactive lists believed. The kernel ages
//! anonymous memory only when it has to reclaim, so an inactive anonymous page says little:
//! it counts as cold for choosing *whom* to ask, never for planning less protection. Where
//! accesses are watched ([`Touched`]), that is the better witness of anonymous memory and takes
//! the place of the lists: what was not touched for a while is cold, refaults or not, because
//! watching sees the page that came back in use. Page cache is read and written without being
//! mapped, which watching does not see: it stays with the lists.
//!
//! Properties, tested: hot and cold add up to what is charged; what is mapped as unevictable is
//! hot; refaults make everything hot at once that is not watched; unknown is hot, and so is what
//! belongs to processes that are not watched.
//!
//! Source: Johannes Weiner, "mm: thrash detection-based file cache sizing" (Linux 3.15);
//! Weiner et al., "TMO: Transparent Memory Offloading in Datacenters", ASPLOS 2022.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::snapshot::Touched;
use crate::units::{Bytes, Time};

/// Pages that come back in a second, beyond which what is inactive is in use.
pub const REFAULTS_MAX: f64 = 16.0;
/// How long refaults must have been rare before the inactive lists are believed.
pub const CALM_MIN: Duration = Duration::from_secs(30);

/// What an app's memory consists of: memory.stat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStat {
    /// Without a file behind it, touched lately.
    pub active_anon: Bytes,
    /// Without a file behind it, not touched since it was last looked at.
    pub inactive_anon: Bytes,
    /// Page cache that was used again.
    pub active_file: Bytes,
    /// Page cache that was used once.
    pub inactive_file: Bytes,
    /// Locked.
    pub unevictable: Bytes,
    /// Pages that came back after they were evicted, since the group exists; none where the
    /// kernel does not count them.
    pub refaults: Option<u64>,
}

impl MemoryStat {
    /// What can go without a place to put it. Dirty pages are written first.
    #[must_use]
    pub const fn file(&self) -> Bytes {
        self.active_file.saturating_add(self.inactive_file)
    }

    /// What has to go to swap.
    #[must_use]
    pub const fn anon(&self) -> Bytes {
        self.active_anon.saturating_add(self.inactive_anon)
    }
}

/// How refaults went lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Refaults {
    last: Option<(Time, u64)>,
    /// Since when they are rare.
    calm_since: Option<Time>,
    /// Pages in a second, between the last two counts.
    pub per_second: Option<f64>,
}

impl Refaults {
    /// Takes in a count. A count that went back is of a new group.
    pub fn record(&mut self, time: Time, count: Option<u64>) {
        let Some(count) = count else {
            *self = Self::default();
            return;
        };
        let rate = self.last.and_then(|(then, before)| {
            let elapsed = time.since(then).as_secs_f64();
            let grown = count.checked_sub(before)?;
            #[expect(
                clippy::cast_precision_loss,
                reason = "pages of one interval are far fewer than 2^53"
            )]
            (elapsed > 0.0).then(|| grown as f64 / elapsed)
        });
        self.last = Some((time, count));
        self.per_second = rate;
        self.calm_since = match rate {
            Some(rate) if rate <= REFAULTS_MAX => self.calm_since.or(Some(time)),
            Some(_) | None => None,
        };
    }

    /// Whether they have been rare for long enough.
    #[must_use]
    pub fn are_rare(&self, now: Time) -> bool {
        self.calm_since
            .is_some_and(|since| now.since(since) >= CALM_MIN)
    }
}

/// Where it is known from which anonymous memory is cold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Witness {
    /// The kernel's lists in memory.stat: a guess.
    #[default]
    Lists,
    /// Accesses, watched by the kernel (DAMON).
    Accesses,
}

/// An app's memory, divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// In use, or not known to be cold.
    pub hot: Bytes,
    /// Page cache that would not be missed.
    pub cold_file: Bytes,
    /// Anonymous memory that the witness has not seen touched.
    pub cold_anon: Bytes,
    /// Who says so of anonymous memory.
    pub witness: Witness,
}

impl Estimate {
    /// What is probably not in use.
    #[must_use]
    pub const fn cold(&self) -> Bytes {
        self.cold_file.saturating_add(self.cold_anon)
    }
}

/// Divides what is charged. Without evidence everything is hot.
#[must_use]
pub fn estimate(
    used: Bytes,
    stat: Option<&MemoryStat>,
    rare_refaults: bool,
    touched: Option<&Touched>,
) -> Estimate {
    let (file, listed) = match stat {
        Some(stat) if rare_refaults => (stat.inactive_file, stat.inactive_anon),
        _ => (Bytes(0), Bytes(0)),
    };
    let (anon, witness) = match (stat, touched) {
        // Memory that processes share counts once in memory.stat, and for each of them here.
        (Some(stat), Some(touched)) => {
            let watched = touched.watched.min(stat.anon());
            (watched.saturating_sub(touched.hot), Witness::Accesses)
        }
        _ => (listed, Witness::Lists),
    };
    // memory.stat and memory.current are not read in one instant.
    let cold_file = file.min(used);
    let cold_anon = anon.min(used.saturating_sub(cold_file));
    Estimate {
        hot: used.saturating_sub(cold_file).saturating_sub(cold_anon),
        cold_file,
        cold_anon,
        witness,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time {
            monotonic: Duration::from_secs(seconds),
            unix_ms: 0,
        }
    }

    const STAT: MemoryStat = MemoryStat {
        active_anon: Bytes::mib(100),
        inactive_anon: Bytes::mib(200),
        active_file: Bytes::mib(50),
        inactive_file: Bytes::mib(400),
        unevictable: Bytes::mib(10),
        refaults: Some(0),
    };

    #[test]
    fn hot_and_cold_add_up() {
        let check = |used: Bytes, stat: Option<&MemoryStat>, rare, hot: Bytes, cold: Bytes| {
            let divided = estimate(used, stat, rare, None);
            assert_eq!((divided.hot, divided.cold()), (hot, cold), "{used} {rare}");
            assert_eq!(divided.hot.saturating_add(divided.cold()), used);
        };
        let mib = Bytes::mib;
        check(mib(760), Some(&STAT), true, mib(160), mib(600));
        check(mib(760), Some(&STAT), false, mib(760), mib(0));
        check(mib(760), None, true, mib(760), mib(0));
        // Read a moment later, when most of it was gone.
        check(mib(450), Some(&STAT), true, mib(0), mib(450));
    }

    #[test]
    fn watched_accesses_take_the_place_of_the_lists() {
        let mib = Bytes::mib;
        let check = |watched: u64, hot: u64, cold_anon: u64| {
            let touched = Touched {
                watched: mib(watched),
                hot: mib(hot),
            };
            for (rare, cold_file) in [(true, 400), (false, 0)] {
                let divided = estimate(mib(760), Some(&STAT), rare, Some(&touched));
                assert_eq!(divided.cold_anon, mib(cold_anon), "{touched:?}");
                assert_eq!(divided.cold_file, mib(cold_file));
                assert_eq!(divided.witness, Witness::Accesses);
                assert_eq!(divided.hot.saturating_add(divided.cold()), mib(760));
            }
        };
        check(300, 40, 260);
        // Shared by two processes: 300 MiB are there.
        check(600, 40, 260);
        // Half of it is of a process that is not watched.
        check(150, 40, 110);
        check(150, 200, 0);
        let nothing = Touched {
            watched: mib(300),
            hot: mib(0),
        };
        let divided = estimate(mib(760), None, true, Some(&nothing));
        assert_eq!(divided.witness, Witness::Lists, "nothing is known of it");
    }

    #[test]
    fn refaults_are_rare_only_after_a_while_and_one_burst_ends_it() {
        let mut refaults = Refaults::default();
        assert!(!refaults.are_rare(at(1000)), "nothing is known yet");
        for second in 0..=40 {
            refaults.record(at(second), Some(7 + second));
        }
        assert!(refaults.are_rare(at(40)));
        assert_eq!(refaults.per_second, Some(1.0));
        refaults.record(at(41), Some(5000));
        assert!(!refaults.are_rare(at(41)));
        refaults.record(at(42), Some(5000));
        assert!(!refaults.are_rare(at(42)), "calm begins anew");
        assert!(refaults.are_rare(at(42 + CALM_MIN.as_secs())));
        refaults.record(at(80), Some(3));
        assert_eq!(refaults.per_second, None, "another group");
        assert!(!refaults.are_rare(at(80)));
        refaults.record(at(81), None);
        assert_eq!(refaults, Refaults::default());
    }
}
