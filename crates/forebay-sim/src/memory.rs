//! The memory of simulated groups: what is in use, what is only held, and how both are
//! reclaimed.
//!
//! All of it is anonymous, so what is taken away goes to swap. What a program works with is
//! touched all the time: taken away, it comes back in the next step, as refaults for which the
//! program waits. What it only holds does not come back. In memory.stat the one is active, the
//! other inactive.

use std::collections::BTreeSet;

use forebay_core::app::AppId;
use forebay_core::plan::watch::WATCHED_MAX;
use forebay_core::snapshot::{Gap, MemoryWatch, Reading, Reclaim, ReclaimState, Touched};
use forebay_core::units::Bytes;
use forebay_core::working_set::MemoryStat;

use crate::group::Group;
use crate::host::SimHost;

const PAGE: f64 = 4096.0;
/// Bytes a second that a request reclaims.
const RECLAIM_RATE: f64 = 400e6;
/// Bytes a second that come back from where they were put.
const REFAULT_RATE: f64 = 200e6;
/// Bytes a second that the kernel reclaims while somebody waits for them.
const DIRECT_RATE: f64 = 1e9;

/// What a group holds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Holdings {
    /// In use.
    pub(crate) hot: f64,
    /// Held without use.
    pub(crate) cold: f64,
    /// Taken away of what is not in use: nobody touches it, so it stays in swap.
    pub(crate) gone: f64,
    /// Taken away of what is in use since the last step.
    missed: f64,
    /// Pages that came back.
    pub(crate) refaults: f64,
}

impl Group {
    /// What it would hold if nobody took anything: all in use, and what is left of the rest.
    pub(crate) fn memory_wanted(&self, hot: f64, cold: f64) -> f64 {
        hot + (cold - self.holdings.gone).max(0.0)
    }

    /// Lets memory follow the program as far as the limits and the host's `room` let it. What
    /// the host lacked for its growth, the kernel takes from others while it waits.
    pub(crate) fn book_memory(&mut self, step: f64, hot: f64, cold: f64, room: f64, lacks: f64) {
        let most = self.limits.memory.min(room).max(0.0);
        let held = &mut self.holdings;
        let accounts = &mut self.accounts;
        let kept = (cold - held.gone).clamp(0.0, (most - hot).max(0.0));
        held.gone = (cold - kept).max(0.0);
        held.cold = kept;
        let before = held.hot;
        held.hot = hot.min(most);
        let back = std::mem::take(&mut held.missed).min(held.hot);
        let short = hot - held.hot;
        held.refaults += (back + short * step) / PAGE;
        accounts.memory_stalled += (back / REFAULT_RATE).min(step);
        if held.hot > before {
            let waited = lacks.min(held.hot - before) / DIRECT_RATE;
            accounts.memory_stalled += waited.min(step);
        }
        if short > 0.0 {
            accounts.memory_stalled += step * (1.0 - held.hot / hot).sqrt();
        }
        accounts.memory_used = held.hot + held.cold;
    }

    /// Takes up to `bytes` away, what is not in use first, as far as there is `swap` for it.
    /// Says how much it was.
    fn take_away(&mut self, bytes: f64, swap: f64) -> f64 {
        let held = &mut self.holdings;
        let bytes = bytes.min(swap);
        let cold = bytes.min(held.cold);
        held.cold -= cold;
        held.gone += cold;
        let hot = (bytes - cold).min(held.hot - held.missed).max(0.0);
        held.missed += hot;
        self.accounts.memory_used = held.hot - held.missed + held.cold;
        cold + hot
    }

    pub(crate) fn memory_stat(&self) -> MemoryStat {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a sum of pages, never negative and far below 2^53"
        )]
        let refaults = self.holdings.refaults as u64;
        MemoryStat {
            active_anon: Bytes::from_f64(self.holdings.hot - self.holdings.missed),
            inactive_anon: Bytes::from_f64(self.holdings.cold),
            refaults: Some(refaults),
            ..MemoryStat::default()
        }
    }
}

impl SimHost {
    /// Somebody else takes what watching memory needs.
    pub fn take_memory_watch(&mut self) {
        self.memory_watch = MemoryWatch {
            apps: BTreeSet::new(),
            taken: Some("somebody else watches memory".to_owned()),
        };
    }

    /// The apps of which it is watched which memory they touch.
    #[must_use]
    pub const fn watched(&self) -> &BTreeSet<AppId> {
        &self.memory_watch.apps
    }

    pub(crate) fn watch_memory(&mut self, apps: &BTreeSet<AppId>) -> Result<(), String> {
        if let (Some(who), false) = (&self.memory_watch.taken, apps.is_empty()) {
            return Err(who.clone());
        }
        if apps.len() > WATCHED_MAX {
            return Err(format!("at most {WATCHED_MAX} at once"));
        }
        self.memory_watch.apps.clone_from(apps);
        Ok(())
    }

    /// What an app in this group touches.
    pub(crate) fn touched(&self, app: &AppId, group: &str) -> Reading<Touched> {
        let group = self.groups.get(group);
        let watched = group.filter(|_| self.memory_watch.apps.contains(app));
        let held = watched.ok_or(Gap::Unsupported)?.holdings;
        Ok(Touched {
            watched: Bytes::from_f64(held.hot - held.missed + held.cold),
            hot: Bytes::from_f64(held.hot),
        })
    }

    /// The same host with so much swap.
    #[must_use]
    pub fn with_swap(mut self, swap: Bytes) -> Self {
        self.swap = swap;
        self
    }

    /// The same host with a kernel that cannot be asked to reclaim.
    #[must_use]
    pub fn without_reclaim(mut self) -> Self {
        self.capabilities.reclaim = false;
        self
    }

    /// Pages of a group that came back after they were taken away; `None` when there is no
    /// such group.
    #[must_use]
    pub fn refaults(&self, group: &str) -> Option<u64> {
        self.groups.get(group)?.memory_stat().refaults
    }

    /// Swap that holds nothing.
    pub(crate) fn swap_free(&self) -> Bytes {
        let gone = self.groups.values().map(|group| group.holdings.gone).sum();
        self.swap.saturating_sub(Bytes::from_f64(gone))
    }

    /// Asks an app's group for memory; what comes of it shows as time passes.
    pub(crate) fn ask_for_memory(&mut self, id: &AppId, bytes: Bytes) -> Result<(), String> {
        let app = self
            .apps
            .get_mut(id)
            .ok_or("the host does not know this app")?;
        if !self.groups.contains_key(&app.group) {
            return Err(format!("no group `{}`", app.group));
        }
        if app
            .reclaim
            .is_some_and(|reclaim| reclaim.state == ReclaimState::Running)
        {
            return Err("the request before is still under way".to_owned());
        }
        self.requests += 1;
        app.reclaim = Some(Reclaim {
            number: self.requests,
            asked: bytes,
            got: Bytes(0),
            state: ReclaimState::Running,
        });
        Ok(())
    }

    /// Works on all requests for one step.
    pub(crate) fn reclaim(&mut self, step: f64) {
        let mut swap = self.swap_free().as_f64();
        for app in self.apps.values_mut() {
            let Some(reclaim) = app
                .reclaim
                .as_mut()
                .filter(|reclaim| reclaim.state == ReclaimState::Running)
            else {
                continue;
            };
            let Some(group) = self.groups.get_mut(&app.group) else {
                reclaim.state = ReclaimState::Failed;
                continue;
            };
            let left = reclaim.asked.saturating_sub(reclaim.got).as_f64();
            let wanted = left.min(RECLAIM_RATE * step);
            let got = group.take_away(wanted, swap);
            swap -= got.min(swap);
            reclaim.got = reclaim.got.saturating_add(Bytes::from_f64(got));
            reclaim.state = if reclaim.asked.saturating_sub(reclaim.got) <= Bytes(1) {
                ReclaimState::Done
            } else if got + 1.0 < wanted {
                ReclaimState::Short
            } else {
                ReclaimState::Running
            };
        }
    }
}
