//! The fields of a local time, and the next time that matches all of them.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};

/// The first year that is looked at.
pub(super) const YEAR_MIN: i16 = 1970;
/// The last year that is looked at.
pub(super) const YEAR_MAX: i16 = 2199;
/// Microseconds in a second.
pub(super) const SECOND: u64 = 1_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// No change of a clock takes longer to be over than this, in hours, where times may repeat.
const CHANGE_HOURS: i64 = 4;

/// A set of numbers below 64.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Set(u64);

impl Set {
    pub(super) fn all(from: u32, to: u32) -> Self {
        let mut set = Self::default();
        (from..=to).for_each(|number| set.add(number));
        set
    }

    /// Numbers beyond 63 are in no set.
    pub(super) fn add(&mut self, number: u32) {
        self.0 |= 1_u64.checked_shl(number).unwrap_or(0);
    }

    pub(super) fn has(self, number: u32) -> bool {
        1_u64
            .checked_shl(number)
            .is_some_and(|bit| self.0 & bit != 0)
    }

    /// The least that is not below `number`.
    fn at_least(self, number: u32) -> Option<u32> {
        let above = u64::MAX.checked_shl(number).unwrap_or(0) & self.0;
        (above != 0).then(|| above.trailing_zeros())
    }
}

/// From a number to another, both included, in steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Steps {
    pub(super) from: u64,
    pub(super) to: u64,
    /// At least 1.
    pub(super) by: u64,
}

impl Steps {
    /// The least that is not below `number`.
    pub(super) fn at_least(self, number: u64) -> Option<u64> {
        let up = number.saturating_sub(self.from).div_ceil(self.by);
        let found = self.from.checked_add(up.checked_mul(self.by)?)?;
        (found <= self.to).then_some(found)
    }
}

fn least(steps: &[Steps], number: u64) -> Option<u64> {
    steps.iter().filter_map(|each| each.at_least(number)).min()
}

/// The days of a month.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MonthDays {
    /// 1 is the first.
    FromStart(Set),
    /// 1 is the last.
    FromEnd(Set),
}

impl MonthDays {
    fn has(self, date: Date) -> bool {
        let day = |n: i8| u32::from(n.unsigned_abs());
        match self {
            Self::FromStart(set) => set.has(day(date.day())),
            Self::FromEnd(set) => set.has(day(date.days_in_month() - date.day() + 1)),
        }
    }
}

/// How days of the month and of the week count together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DayRule {
    Both,
    Either,
}

/// What becomes of times that a change of the clock skips or repeats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// What is skipped does not happen; what is repeated happens first time.
    Skip,
    /// What is skipped does not happen; what is repeated happens again.
    Repeat,
    /// What is skipped happens right afterwards; what is repeated happens first time.
    Catch,
}

/// A set of values for each field of a local time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expression {
    pub(super) years: Vec<Steps>,
    pub(super) months: Set,
    pub(super) month_days: MonthDays,
    /// 0 is Monday.
    pub(super) weekdays: Set,
    pub(super) day_rule: DayRule,
    pub(super) hours: Set,
    pub(super) minutes: Set,
    /// In microseconds, each below a minute.
    pub(super) seconds: Vec<Steps>,
    pub(super) change: Change,
    pub(super) zone: TimeZone,
}

impl Expression {
    /// Every day at midnight.
    pub(super) fn daily(zone: TimeZone) -> Self {
        Self {
            years: vec![Steps {
                from: YEAR_MIN.unsigned_abs().into(),
                to: YEAR_MAX.unsigned_abs().into(),
                by: 1,
            }],
            months: Set::all(1, 12),
            month_days: MonthDays::FromStart(Set::all(1, 31)),
            weekdays: Set::all(0, 6),
            day_rule: DayRule::Both,
            hours: Set::all(0, 0),
            minutes: Set::all(0, 0),
            seconds: vec![Steps {
                from: 0,
                to: 0,
                by: 1,
            }],
            change: Change::Skip,
            zone,
        }
    }

    pub(super) fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let once = self.next_once(after);
        if self.change != Change::Repeat {
            return once;
        }
        match (once, self.next_repeated(after)) {
            (Some(once), Some(again)) => Some(once.min(again)),
            (once, again) => once.or(again),
        }
    }

    /// The next, of those that are repeated the first alone.
    fn next_once(&self, after: Timestamp) -> Option<Timestamp> {
        let mut from = self.zone.to_datetime(after);
        loop {
            let local = self.next_local(from)?;
            match self.zone.to_ambiguous_timestamp(local).offset() {
                AmbiguousOffset::Unambiguous { offset } => {
                    let time = offset.to_timestamp(local).ok()?;
                    if time > after {
                        return Some(time);
                    }
                    from = step(local)?;
                }
                AmbiguousOffset::Fold { before, .. } => {
                    let time = before.to_timestamp(local).ok()?;
                    if time > after {
                        return Some(time);
                    }
                    // Beyond what is repeated now, unless it is still the first time.
                    let change = self.zone.following(time).next()?.timestamp();
                    let end = before.to_datetime(change);
                    from = if after < change {
                        step(local)?
                    } else {
                        end.max(step(local)?)
                    };
                }
                AmbiguousOffset::Gap { after: new, .. } => {
                    let early = new.to_timestamp(local).ok()?;
                    let change = self.zone.following(early).next()?.timestamp();
                    if self.change == Change::Catch && change > after {
                        return Some(change);
                    }
                    from = new.to_datetime(change).max(step(local)?);
                }
            }
        }
    }

    /// The next that happens a second time, while the clock is about to go back or just has.
    fn next_repeated(&self, after: Timestamp) -> Option<Timestamp> {
        let hours = std::time::Duration::from_secs(CHANGE_HOURS.unsigned_abs() * 3600);
        let before = self.zone.to_offset(after.checked_sub(hours).ok()?);
        let later = after.checked_add(hours).ok()?;
        if before <= self.zone.to_offset(later) {
            return None;
        }
        let mut from = self.zone.to_datetime(after).checked_sub(hours).ok()?;
        let end = self.zone.to_datetime(later);
        loop {
            let local = self.next_local(from).filter(|local| *local < end)?;
            let offset = self.zone.to_ambiguous_timestamp(local).offset();
            if let AmbiguousOffset::Fold { after: new, .. } = offset {
                let time = new.to_timestamp(local).ok()?;
                if time > after {
                    return Some(time);
                }
            }
            from = step(local)?;
        }
    }

    /// The first local time that is not before `from` and matches.
    fn next_local(&self, from: DateTime) -> Option<DateTime> {
        let mut date = self.next_date(from.date())?;
        let mut time = 0;
        if date == from.date() {
            time = time_of_day(from);
        }
        loop {
            if let Some(found) = self.next_time(time) {
                return Some(date.to_datetime(at(found)?));
            }
            date = self.next_date(date.tomorrow().ok()?)?;
            time = 0;
        }
    }

    fn next_date(&self, from: Date) -> Option<Date> {
        let mut date = from;
        loop {
            let year = u64::from(date.year().max(YEAR_MIN).unsigned_abs());
            let wanted = i16::try_from(least(&self.years, year)?).ok()?;
            if wanted > YEAR_MAX {
                return None;
            }
            if wanted != date.year() {
                date = Date::new(wanted, 1, 1).ok()?;
            }
            let Some(month) = self
                .months
                .at_least(u32::from(date.month().unsigned_abs()))
                .and_then(|month| i8::try_from(month).ok())
            else {
                date = Date::new(date.year() + 1, 1, 1).ok()?;
                continue;
            };
            if month != date.month() {
                date = Date::new(date.year(), month, 1).ok()?;
            }
            loop {
                if self.has_month_or_week_day(date) {
                    return Some(date);
                }
                date = date.tomorrow().ok()?;
                if date.month() != month {
                    break;
                }
            }
        }
    }

    pub(super) fn has_day(&self, date: Date) -> bool {
        self.next_date(date) == Some(date)
    }

    fn has_month_or_week_day(&self, date: Date) -> bool {
        let weekday = date.weekday().to_monday_zero_offset().unsigned_abs();
        let (month, week) = (
            self.month_days.has(date),
            self.weekdays.has(u32::from(weekday)),
        );
        match self.day_rule {
            DayRule::Both => month && week,
            DayRule::Either => month || week,
        }
    }

    /// The first time of a day that is not before `from`, both in microseconds since midnight.
    fn next_time(&self, from: u64) -> Option<u64> {
        let part = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let (hour, minute) = (from / HOUR, from % HOUR / MINUTE);
        if self.hours.has(part(hour)) {
            if self.minutes.has(part(minute))
                && let Some(second) = least(&self.seconds, from % MINUTE)
            {
                return Some(hour * HOUR + minute * MINUTE + second);
            }
            if let Some(next) = self.minutes.at_least(part(minute) + 1) {
                return Some(hour * HOUR + u64::from(next) * MINUTE + least(&self.seconds, 0)?);
            }
        }
        let hour = u64::from(self.hours.at_least(part(hour) + 1)?);
        let minute = u64::from(self.minutes.at_least(0)?);
        Some(hour * HOUR + minute * MINUTE + least(&self.seconds, 0)?)
    }
}

/// The next local time that can be told from this one.
fn step(local: DateTime) -> Option<DateTime> {
    let microsecond = std::time::Duration::from_micros(1);
    local.checked_add(microsecond).ok()
}

/// In microseconds, rounded up.
fn time_of_day(local: DateTime) -> u64 {
    let part = |value: i8| u64::from(value.unsigned_abs());
    let below = u64::from(local.subsec_nanosecond().unsigned_abs()).div_ceil(1000);
    part(local.hour()) * HOUR
        + part(local.minute()) * MINUTE
        + part(local.second()) * SECOND
        + below
}

/// None beyond the day.
fn at(time: u64) -> Option<Time> {
    let part = |value: u64| i8::try_from(value).ok();
    let nanos = i32::try_from(time % SECOND * 1000).ok()?;
    Time::new(
        part(time / HOUR)?,
        part(time % HOUR / MINUTE)?,
        part(time % MINUTE / SECOND)?,
        nanos,
    )
    .ok()
}
