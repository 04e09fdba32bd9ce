//! Files that are to be left alone for a while: just moved, just failed, or moved by hand.

use std::collections::BTreeMap;
use std::time::Duration;

/// How long a file stays where it was moved to, unless room must be made.
const STAY: Duration = Duration::from_secs(60);
/// How long a file that could not be moved is left alone, doubling each time: one that is opened
/// every moment is soon caught closed, one that is held open is seldom tried.
const RETRY: Duration = Duration::from_secs(1);
/// However often it could not.
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// Files remembered; the ones whose time is up first leave.
const FILES_MAX: usize = 65_536;

/// Until when a file is left alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rest {
    /// It was moved: it stays there until then, unless the tier is too full.
    pub stays_until: Duration,
    /// It could not be moved: it is not tried before.
    pub retry_at: Duration,
    /// How often it could not, since it was moved last.
    pub failures: u32,
}

impl Rest {
    fn over(&self) -> Duration {
        // What failed is remembered once more as long, for the next pause to be longer.
        self.stays_until
            .max(self.retry_at.saturating_add(self.pause()))
    }

    fn pause(&self) -> Duration {
        match self.failures {
            0 => Duration::ZERO,
            failures => RETRY
                .saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX))
                .min(RETRY_MAX),
        }
    }
}

/// The rests of all files, by whatever names them.
#[derive(Debug, Clone, Default)]
pub struct Rests<K> {
    files: BTreeMap<K, Rest>,
}

impl<K: Ord + Copy> Rests<K> {
    /// None of them rests.
    #[must_use]
    pub fn new() -> Self {
        Self {
            files: BTreeMap::new(),
        }
    }

    /// The rest of a file.
    #[must_use]
    pub fn of(&self, file: K) -> Rest {
        self.files.get(&file).copied().unwrap_or_default()
    }

    /// It was moved now.
    pub fn moved(&mut self, now: Duration, file: K) {
        self.put(now, file, |_| Rest {
            stays_until: now + STAY,
            ..Rest::default()
        });
    }

    /// It could not be moved now.
    pub fn failed(&mut self, now: Duration, file: K) {
        self.put(now, file, |mut rest| {
            rest.failures = rest.failures.saturating_add(1);
            rest.retry_at = now + rest.pause();
            rest
        });
    }

    /// A person moved it: it stays so long.
    pub fn hold(&mut self, now: Duration, file: K, time: Duration) {
        self.put(now, file, |_| Rest {
            stays_until: now + time,
            ..Rest::default()
        });
    }

    fn put(&mut self, now: Duration, file: K, change: impl FnOnce(Rest) -> Rest) {
        let rest = change(self.of(file));
        self.files.insert(file, rest);
        if self.files.len() <= FILES_MAX {
            return;
        }
        self.files.retain(|_, rest| rest.over() > now);
        while self.files.len() > FILES_MAX {
            let first = self.files.iter().min_by_key(|(_, rest)| rest.over());
            match first.map(|(file, _)| *file) {
                Some(file) => self.files.remove(&file),
                None => break,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn pauses_double_up_to_an_hour_and_a_move_ends_them() {
        let mut rests = Rests::new();
        let mut now = at(1000);
        let mut pauses = Vec::new();
        for _ in 0..15 {
            rests.failed(now, 1);
            let pause = rests.of(1).retry_at - now;
            pauses.push(pause.as_secs());
            now += pause;
        }
        assert_eq!(pauses[..5], [1, 2, 4, 8, 16]);
        assert_eq!(pauses[12..], [3600; 3]);
        rests.moved(now, 1);
        assert_eq!(rests.of(1).retry_at, Duration::ZERO);
        assert_eq!(rests.of(1).stays_until, now + STAY);
        rests.failed(now, 1);
        assert_eq!(rests.of(1).retry_at, now + RETRY);
        assert_eq!(rests.of(2), Rest::default());
    }

    #[test]
    fn a_person_decides_for_as_long_as_is_said() {
        let mut rests = Rests::new();
        rests.failed(at(0), 1);
        rests.hold(at(10), 1, at(3600));
        assert_eq!(rests.of(1).stays_until, at(3610));
        assert_eq!(rests.of(1).retry_at, Duration::ZERO);
    }

    #[test]
    fn what_is_over_leaves_first_and_the_rest_is_bounded() {
        let mut rests = Rests::new();
        for file in 0..FILES_MAX {
            rests.moved(at(0), file);
        }
        rests.moved(at(61), FILES_MAX);
        assert_eq!(rests.files.len(), 1);
        for file in 0..FILES_MAX + 10 {
            rests.moved(at(61), file);
        }
        assert_eq!(rests.files.len(), FILES_MAX);
    }
}
