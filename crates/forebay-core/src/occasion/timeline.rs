//! The occurrences of one source, and which of them a moment belongs to.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::app::AppId;
use crate::calendar::{Days, Schedule};
use crate::outlook::Resource;

/// How long after an occurrence it may have an effect, unless it is declared to last longer.
const LENGTH: Duration = Duration::from_secs(3600);
/// What is declared to last longer is watched for so long only.
const LENGTH_MAX: Duration = Duration::from_secs(12 * 3600);
/// Where occurrences follow each other so closely that less is left to each, they are a period and
/// left to the models that find periods.
const LENGTH_MIN: Duration = Duration::from_secs(20 * 60);
/// Occurrences in a row that are looked at to find out how close they are.
const LOOK_AHEAD: usize = 16;
/// Days in a row that a calendar may forbid.
const FORBIDDEN_MAX: usize = 1000;
/// Occurrences longer ago than anything is watched are over, and not walked through when time has made
/// a leap: clocks are set, and hosts sleep.
const OVER_MS: u64 = LENGTH_MAX.as_secs() * 1000;
/// Lengths that differ by so much alone hold for the same thing: a day is an hour shorter in spring.
const ALIKE_MS: u64 = 3_600_000;

/// On which days something applies.
#[derive(Debug, Clone, Default)]
pub struct DayFilter {
    /// On these days alone.
    pub only: Option<Arc<Days>>,
    /// Never on these days.
    pub except: Option<Arc<Days>>,
}

/// When a source occurs.
#[derive(Debug, Clone)]
pub enum Times {
    /// By a schedule, on days that the filter allows, which are days of the zone.
    Scheduled {
        /// When.
        schedule: Schedule,
        /// On which days.
        filter: DayFilter,
        /// Whose days.
        zone: TimeZone,
    },
    /// At these times that somebody foretold, in milliseconds since 1970-01-01 UTC, ascending.
    Foretold(Vec<u64>),
    /// Whole days of a zone that are unlike others.
    WholeDays {
        /// Which.
        days: Arc<Days>,
        /// Whose days.
        zone: TimeZone,
    },
}

/// Something that recurs and may change what apps need.
#[derive(Debug, Clone)]
pub struct Source {
    /// Who it is, in explanations and in what is remembered: `event nightly`, `timer backup.timer`.
    pub name: String,
    /// When it occurs.
    pub times: Times,
    /// How long it is declared to last.
    pub lasts: Option<Duration>,
    /// The apps that it may change; all when absent.
    pub apps: Option<BTreeSet<AppId>>,
    /// The greatest need while it lasts, as somebody declared it, in the unit of the resource.
    pub declared: Vec<(Resource, f64)>,
}

impl Source {
    pub(super) fn concerns(&self, app: &AppId) -> bool {
        self.apps.as_ref().is_none_or(|apps| apps.contains(app))
    }

    pub(super) fn declares(&self, resource: Resource) -> Option<f64> {
        let mut declared = self.declared.iter();
        declared
            .find(|(what, _)| *what == resource)
            .map(|(_, amount)| *amount)
    }

    /// Whether it occurs at moments, and not on whole days.
    #[must_use]
    pub const fn is_moment(&self) -> bool {
        !matches!(self.times, Times::WholeDays { .. })
    }

    /// The first occurrence after a moment, both in milliseconds since 1970-01-01 UTC. Whole days
    /// have none here.
    #[must_use]
    pub fn next_after(&self, after_ms: u64) -> Option<u64> {
        match &self.times {
            Times::Foretold(times) => times.iter().copied().find(|time| *time > after_ms),
            Times::WholeDays { .. } => None,
            Times::Scheduled {
                schedule,
                filter,
                zone,
            } => {
                let mut after = timestamp(after_ms)?;
                for _ in 0..FORBIDDEN_MAX {
                    after = schedule.next_after(after)?;
                    let date = zone.to_datetime(after).date();
                    let is_in = |days: &Arc<Days>| days.has(date);
                    if filter.only.as_ref().is_none_or(is_in)
                        && !filter.except.as_ref().is_some_and(is_in)
                    {
                        // Rounded up, so that the next one is another.
                        let is_between = after.subsec_nanosecond() % 1_000_000 != 0;
                        let ms = after.as_millisecond() + i64::from(is_between);
                        return u64::try_from(ms).ok();
                    }
                    // On with the next day, whose first moment counts.
                    let tomorrow = date.tomorrow().ok()?.to_datetime(Time::midnight());
                    let begins = zone.to_timestamp(tomorrow).ok()?;
                    after = after.max(begins - SignedDuration::from_nanos(1));
                }
                None
            }
        }
    }

    /// Occurrences after a moment.
    pub(super) fn following(&self, after_ms: u64) -> impl Iterator<Item = u64> {
        std::iter::successors(self.next_after(after_ms), |last| self.next_after(*last))
    }
}

pub(super) fn timestamp(unix_ms: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()
}

/// A span in which something is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// In milliseconds.
    pub(super) start: u64,
    /// Whether it follows an occurrence, or is a time like any other.
    pub(super) is_occurrence: bool,
}

/// A source beside the time.
#[derive(Debug)]
pub(super) struct Timeline {
    pub(super) source: Source,
    /// How long each occurrence is watched, in milliseconds; none where they are too close.
    pub(super) length: Option<u64>,
    last: Option<u64>,
    next: Option<u64>,
}

impl Timeline {
    pub(super) fn new(source: Source, now_ms: u64) -> Self {
        let length = length(&source, now_ms);
        let back = length.unwrap_or(0);
        let mut timeline = Self {
            next: source.next_after(now_ms.saturating_sub(back)),
            last: None,
            length,
            source,
        };
        timeline.advance(now_ms);
        timeline
    }

    /// Takes another's past over: of times that were foretold, what was next may be over by now.
    pub(super) fn follow(&mut self, before: &Self, now_ms: u64) {
        let passed = [before.last, before.next].into_iter().flatten();
        let passed = passed.filter(|time| *time <= now_ms).max();
        if matches!(self.source.times, Times::Foretold(_)) {
            self.last = self.last.max(passed);
            // How close they are is only known from one to the next.
            self.length = self.length.or(before.length);
        }
    }

    /// How long its occurrences are watched, where they were watched so long before: what was learnt
    /// holds for one length. A source whose occurrences lie closer together now and then keeps the
    /// shorter one, so that it does not begin anew each time.
    pub(super) fn settle_length(&mut self, before: Option<u64>) {
        let Some((before, now)) = before.zip(self.length) else {
            return;
        };
        if now >= before && (self.source.lasts.is_none() || now - before <= ALIKE_MS) {
            self.length = Some(before);
        }
    }

    pub(super) fn advance(&mut self, now_ms: u64) {
        let over = now_ms.saturating_sub(OVER_MS);
        if self.next.is_some_and(|next| next < over) {
            self.next = self.source.next_after(over);
        }
        while let Some(next) = self.next.filter(|next| *next <= now_ms) {
            self.last = Some(next);
            self.next = self.source.next_after(next);
        }
    }

    /// What a moment belongs to, after [`Self::advance`] to it.
    pub(super) fn window_at(&self, at_ms: u64) -> Option<Window> {
        let length = self.length?;
        if let Some(last) = self.last {
            let passed = at_ms.checked_sub(last)?;
            if passed < length {
                return Some(Window {
                    start: last,
                    is_occurrence: true,
                });
            }
        }
        let base = self.last.map_or(0, |last| last + length);
        let start = base + at_ms.checked_sub(base)? / length * length;
        let is_clear = self.next.is_none_or(|next| start + length <= next);
        is_clear.then_some(Window {
            start,
            is_occurrence: false,
        })
    }

    /// Occurrences that may last into a span: from its start, less their length, to its end.
    pub(super) fn between(&self, from_ms: u64, to_ms: u64, lasts_ms: u64) -> Vec<u64> {
        let mut found: Vec<u64> = self
            .source
            .following(from_ms.saturating_sub(lasts_ms))
            .take_while(|time| *time <= to_ms)
            .take(super::AHEAD_MAX)
            .collect();
        // Of times that were foretold, the last is no longer among them.
        if let Some(last) = self.last
            && last.saturating_add(lasts_ms) > from_ms
            && last <= to_ms
            && !found.contains(&last)
        {
            found.insert(0, last);
        }
        found
    }
}

/// How long each occurrence may be watched before the next: half the least distance at most.
fn length(source: &Source, now_ms: u64) -> Option<u64> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    // A quarter more than declared, to see the end.
    let wanted = source.lasts.map_or(LENGTH, |lasts| lasts * 4 / 3);
    let wanted = wanted.clamp(LENGTH_MIN, LENGTH_MAX);
    let times: Vec<u64> = source.following(now_ms).take(LOOK_AHEAD).collect();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    let half = gaps.min().map_or(u64::MAX, |gap| gap / 2);
    Some(millis(wanted).min(half)).filter(|length| *length >= millis(LENGTH_MIN))
}
