//! Whose accesses to memory are watched. Off by default.
//!
//! The kernel watches with a thread for each app, so it is only batch apps, since only those are
//! asked for memory, only the largest, and no more than a few. Who is watched stays watched until
//! it shrinks or goes: the kernel begins anew with each, and knows nothing for the first while.

use std::collections::BTreeSet;

use super::Situation;
use super::reclaim::apps;
use crate::app::{AppId, Class};
use crate::units::Bytes;

/// Apps that are watched at once, at most.
pub const WATCHED_MAX: usize = 8;
/// What an app must hold to be worth a thread of the kernel's.
pub const HELD_MIN: Bytes = Bytes::mib(64);

/// Chooses. `watched` are those that are watched now; none where the host cannot watch.
#[must_use]
pub(super) fn choose(
    situation: &Situation<'_>,
    watched: Option<&BTreeSet<AppId>>,
) -> BTreeSet<AppId> {
    let (true, Some(watched)) = (situation.policy.watch_memory, watched) else {
        return BTreeSet::new();
    };
    let mut candidates: Vec<(bool, Bytes, &AppId)> = apps(situation, Class::Batch)
        .filter_map(|app| {
            let used = situation.demands[&app.id].memory_now.used?;
            let stays = watched.contains(&app.id);
            let least = if stays { HELD_MIN.0 / 2 } else { HELD_MIN.0 };
            (used.0 >= least).then_some((stays, used, &app.id))
        })
        .collect();
    // The sort is stable: equals stay in the order of their names.
    candidates.sort_by_key(|(stays, used, _)| std::cmp::Reverse((*stays, *used)));
    let chosen = candidates.into_iter().take(WATCHED_MAX);
    chosen.map(|(_, _, id)| id.clone()).collect()
}
