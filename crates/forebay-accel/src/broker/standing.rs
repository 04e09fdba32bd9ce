//! Whether a device gets a task: what failed there is left alone for a while, and its time is shared.
//!
//! Problem: a kernel that crashes says little of its device, and a device that is broken fails every
//! kernel. Time of a device is shared with others, who are other processes.
//!
//! Approach: a fault leaves the kernel alone on that device, for twice as long each time it happens
//! again without a good run between; a device of which [`KERNELS_MAX`] kernels are left alone at once is
//! left alone itself, and so is one whose process does not begin. A bucket of time is filled with the
//! part of a device's time that tasks may take, and emptied by what they took.
//!
//! Properties, tested: one kernel's faults keep no other from the device; the wait doubles and ends;
//! over a long time no more than the part is taken, but for one run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest that anything is left alone.
const QUARANTINE_MAX: Duration = Duration::from_secs(3600);
/// So many kernels left alone at once are the device's fault.
const KERNELS_MAX: usize = 3;
/// Kernels of which faults are remembered; the one that is free for longest is forgotten.
const REMEMBERED_MAX: usize = 256;
/// What a device may be used at once after it was not for long, of its part.
const BURST: Duration = Duration::from_secs(1);

/// Something that is left alone.
#[derive(Debug, Clone)]
pub(super) struct Left {
    pub(super) until: Instant,
    pub(super) why: String,
    in_row: u32,
}

/// What a device may be given.
#[derive(Debug)]
pub(super) struct Standing {
    device: Option<Left>,
    kernels: BTreeMap<Arc<str>, Left>,
    share: Share,
}

/// Who is to be left alone after a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blamed {
    Kernel,
    Device,
}

impl Standing {
    pub(super) fn new(part: f64, now: Instant) -> Self {
        Self {
            device: None,
            kernels: BTreeMap::new(),
            share: Share::new(part, now),
        }
    }

    /// Notes a fault of a kernel. Who is left alone for it, and for how long.
    pub(super) fn fault(
        &mut self,
        kernel: &Arc<str>,
        why: &str,
        first: Duration,
        now: Instant,
    ) -> (Blamed, Duration) {
        let before = self.kernels.remove(kernel);
        let left = Left::again(before.as_ref(), why, first, now);
        let lasts = left.until.saturating_duration_since(now);
        if self.kernels.len() >= REMEMBERED_MAX {
            let oldest = self.kernels.iter().min_by_key(|(_, left)| left.until);
            if let Some(oldest) = oldest.map(|(kernel, _)| Arc::clone(kernel)) {
                self.kernels.remove(&oldest);
            }
        }
        self.kernels.insert(Arc::clone(kernel), left);
        let alone = self.kernels.values().filter(|left| left.until > now);
        if alone.count() < KERNELS_MAX {
            return (Blamed::Kernel, lasts);
        }
        let why = format!("{KERNELS_MAX} kernels or more failed there, the last one: {why}");
        (Blamed::Device, self.device_fault(&why, first, now))
    }

    /// Notes a fault of the device itself; for how long it is left alone.
    pub(super) fn device_fault(&mut self, why: &str, first: Duration, now: Instant) -> Duration {
        let left = Left::again(self.device.as_ref(), why, first, now);
        let lasts = left.until.saturating_duration_since(now);
        self.device = Some(left);
        lasts
    }

    /// A kernel ran well.
    pub(super) fn good(&mut self, kernel: &Arc<str>) {
        self.device = None;
        self.kernels.remove(kernel);
    }

    /// Whether the last thing known of it or of a kernel there is a fault.
    pub(super) fn is_suspect(&self, kernel: &Arc<str>) -> bool {
        self.device.is_some() || self.kernels.contains_key(kernel)
    }

    /// Why the device is left alone now.
    pub(super) fn quarantine(&self, now: Instant) -> Option<&Left> {
        self.device.as_ref().filter(|left| left.until > now)
    }

    /// Why a kernel is left alone there now.
    pub(super) fn of_kernel(&self, kernel: &Arc<str>, now: Instant) -> Option<&Left> {
        self.kernels.get(kernel).filter(|left| left.until > now)
    }

    /// Whether a kernel may run there, behind what is queued, in microseconds.
    pub(super) fn takes(&self, kernel: &Arc<str>, queued_us: f64, now: Instant) -> bool {
        self.quarantine(now).is_none()
            && self.of_kernel(kernel, now).is_none()
            && self.share.has_more_than(queued_us, now)
    }

    /// A run took so long.
    pub(super) fn charge(&mut self, took: Duration, now: Instant) {
        self.share.charge(took, now);
    }

    pub(super) const fn part(&self) -> f64 {
        self.share.part
    }

    pub(super) fn set_part(&mut self, part: f64, now: Instant) {
        self.share.settle(now);
        self.share.part = part;
    }
}

impl Left {
    fn again(before: Option<&Self>, why: &str, first: Duration, now: Instant) -> Self {
        let in_row = before.map_or(0, |before| before.in_row);
        let lasts = first.saturating_mul(1 << in_row.min(16));
        Self {
            until: now + lasts.min(QUARANTINE_MAX),
            why: why.to_owned(),
            in_row: in_row.saturating_add(1),
        }
    }

    /// Why, and for how long still.
    pub(super) fn told(&self, now: Instant) -> String {
        let left = self.until.saturating_duration_since(now).as_secs();
        format!("{}; tried again in {left} s", self.why)
    }
}

/// A bucket of a device's time.
#[derive(Debug)]
struct Share {
    part: f64,
    held_us: f64,
    at: Instant,
}

impl Share {
    fn new(part: f64, now: Instant) -> Self {
        Self {
            part,
            held_us: part * BURST.as_secs_f64() * 1e6,
            at: now,
        }
    }

    fn held_us(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64() * 1e6;
        let most = self.part * BURST.as_secs_f64() * 1e6;
        (self.held_us + since * self.part).min(most)
    }

    fn settle(&mut self, now: Instant) {
        self.held_us = self.held_us(now);
        self.at = now;
    }

    fn has_more_than(&self, queued_us: f64, now: Instant) -> bool {
        self.part >= 1.0 || self.held_us(now) > queued_us
    }

    fn charge(&mut self, took: Duration, now: Instant) {
        self.settle(now);
        self.held_us -= took.as_secs_f64() * 1e6;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(10);

    fn name(text: &str) -> Arc<str> {
        text.into()
    }

    #[test]
    fn one_kernel_s_faults_keep_no_other_from_the_device_and_many_kernels_do() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut standing = Standing::new(1.0, begin);
        let [a, b, c, d] = ["a", "b", "c", "d"].map(name);
        let fault = |standing: &mut Standing, kernel, at| {
            let (blamed, lasts) = standing.fault(kernel, "crash", FIRST, after(at));
            (blamed, lasts.as_secs())
        };
        assert_eq!(fault(&mut standing, &a, 0), (Blamed::Kernel, 10));
        assert!(!standing.takes(&a, 0.0, after(9)) && standing.takes(&b, 0.0, after(9)));
        // It failed again when it was tried again, and then ran well.
        assert_eq!(fault(&mut standing, &a, 10), (Blamed::Kernel, 20));
        assert!(standing.takes(&a, 0.0, after(30)) && standing.is_suspect(&a));
        standing.good(&a);
        assert!(!standing.is_suspect(&a));
        assert_eq!(fault(&mut standing, &a, 40), (Blamed::Kernel, 10));
        assert_eq!(fault(&mut standing, &b, 41), (Blamed::Kernel, 10));
        assert_eq!(fault(&mut standing, &c, 42), (Blamed::Device, 10));
        assert!(!standing.takes(&d, 0.0, after(51)));
        assert!(standing.takes(&d, 0.0, after(52)));
        assert_eq!(
            fault(&mut standing, &d, 52).0,
            Blamed::Kernel,
            "the others are over"
        );
    }

    #[test]
    fn no_more_than_its_part_is_taken_of_a_device_s_time() {
        let begin = Instant::now();
        let mut standing = Standing::new(0.25, begin);
        let kernel = name("a");
        let run = Duration::from_millis(30);
        let mut taken = Duration::ZERO;
        // Whenever it is let, it runs at once.
        for ms in (0..100_000).step_by(30) {
            let now = begin + Duration::from_millis(ms);
            if standing.takes(&kernel, 0.0, now) {
                standing.charge(run, now + run);
                taken += run;
            }
        }
        let part = taken.as_secs_f64() / 100.0;
        assert!((0.24..0.26).contains(&part), "{part}");
        let now = begin + Duration::from_secs(200);
        assert!(standing.takes(&kernel, 0.0, now) && !standing.takes(&kernel, 3e5, now));
        standing.set_part(1.0, now);
        assert!(standing.takes(&kernel, 3e5, now));
    }
}
